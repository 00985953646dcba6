//! Offshoot: committed changes of a Postgres monolith become events in Kafka, in order.
//!
//! The walk of one byte from the write-ahead log to Kafka, and of its position back, is the reading order of the
//! modules below; ARCHITECTURE.md tells it with its reasons.

pub mod lsn;
pub mod json;
pub mod text;
pub mod causes;
pub mod change;
pub mod transaction;
pub mod admission;
pub mod progress;
pub mod source;
pub mod sink;
pub mod postgres;
pub mod replica;
pub mod mapping;
pub mod event;
pub mod format;
pub mod outlets;
pub mod kafka;
pub mod ledger;
pub mod pipeline;
pub mod supervisor;
pub mod config;
pub mod exit;
pub mod finding;
pub mod telemetry;
pub mod admin;
pub mod cli;
#[cfg(test)]
mod planted;
#[cfg(test)]
mod simulation;
