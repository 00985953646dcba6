//! Everything that knows Postgres; nothing else does.

pub mod wire;
pub mod frame;
pub mod pgoutput;
pub mod assemble;
pub mod stream;
#[cfg(test)]
pub(crate) mod compose;
