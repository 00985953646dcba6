//! Everything that knows Kafka, and nothing else does.

pub mod client;
pub mod fault;
pub mod rights;
pub mod admin;
mod reading;
pub mod progress;
pub mod kept;
mod transaction;
mod handle;
pub mod producer;
