//! Transaction -> events: what happened in the business, by the rules of `aggregates` and `events`. Pure, but for the file that a
//! transaction is netted in when it is too large for memory.
//!
//! `rules.rs` compiles the config against the catalog, once per start. Then each transaction is taken change by change: `net.rs`
//! keeps one net change per row, `aggregate.rs` finds the aggregates that these touch, `payload.rs` writes what the rules tell of
//! each. The same transaction gives the same events for ever, in the same order: by rule, as declared, then by the root's key.

pub mod catalog;
pub mod rules;
pub(crate) mod resolve;
pub(crate) mod paths;
pub mod guarantee;
pub mod row;
pub mod value;
pub mod condition;
pub mod aggregate;
