//! Everything that knows Postgres, and nothing else does.

pub mod url;
mod fault;
mod connect;
mod pace;
pub mod wire;
pub mod session;
pub mod frame;
pub mod pgoutput;
pub mod assemble;
pub mod stream;
mod catalog;
#[cfg(test)]
pub(crate) mod compose;

pub use catalog::{Lag, Lagging};
