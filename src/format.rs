//! Change, message or event -> bytes of the records that tell of it. Pure.

pub mod debezium;
pub mod cloudevents;
pub mod outbox;
pub mod messages;
