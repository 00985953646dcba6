//! Change or event -> bytes of the records that tell of it. Pure.

pub mod debezium;
pub mod cloudevents;
