//! Everything that knows Kafka, and nothing else does.

pub mod client;
pub mod fault;
pub mod rights;
pub mod admin;
pub mod progress;
mod transaction;
pub mod producer;
