//! Everything that knows Postgres, and nothing else does.

pub mod url;
mod connect;
mod pace;
pub mod wire;
pub mod session;
mod fault;
mod catalog;

pub use catalog::{Lag, Lagging};
pub use session::Session;
pub use wire::{TableFacts, TableKind, TypeFact, Wire};
