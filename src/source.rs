//! `Source`: where committed transactions come from, and where the confirmed position goes.

use std::{error::Error, future::Future};

use crate::{
    lsn::Lsn,
    transaction::{SpillError, Transaction},
};

/// What a source gives, in commit order.
#[derive(Debug)]
pub enum Item {
    /// A committed transaction, whole; or a message that stands alone.
    Transaction(Transaction),
    /// Nothing was committed up to here that the source has not given before: an idle keepalive.
    Progress(Lsn),
}

/// A table whose rows are to be read as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadTable {
    /// Unquoted.
    pub schema: String,
    /// Unquoted.
    pub name: String,
    /// Unquoted, in the order in which rows are to have them.
    pub columns: Vec<String>,
}

/// Rows of a table, as they were at the position that `load` gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Index in what `load` was asked for.
    pub table: usize,
    /// One row after another: per column `n` (null), or `t`, a big-endian `u32` length and the type's text form.
    pub bytes: Vec<u8>,
    /// Where each row ends in `bytes`.
    pub ends: Vec<usize>,
}

/// Committed transactions in commit order.
pub trait Source {
    /// Begins to read tables as they are at one position of the log, and gives that: what commits there or later comes in the stream,
    /// what committed before is in the rows that `loaded` gives. A load that was begun before is given up.
    ///
    /// It may take as long as the longest transaction that runs. Cancel safe: asked for the same before it has answered, it goes
    /// on waiting for the same answer.
    fn load(&mut self, tables: Vec<LoadTable>) -> impl Future<Output = Result<Lsn, SourceError>>;

    /// The next rows of what `load` began, in no order; `None` at their end. Cancel safe.
    fn loaded(&mut self) -> impl Future<Output = Result<Option<Loaded>, SourceError>>;

    /// Waits until `next` has something to give. Cancel safe.
    fn ready(&mut self) -> impl Future<Output = Result<(), SourceError>>;

    /// The next item that is already here; `None` means: wait for `ready`.
    fn next(&mut self) -> Result<Option<Item>, SourceError>;

    /// Takes a transaction back that has been read, for its buffers.
    fn recycle(&mut self, transaction: Transaction);

    /// Whether the source asks for a `confirm` now, moved or not.
    fn status_wanted(&self) -> bool;

    /// Tells the source that everything before `confirmed` is durable elsewhere and may be forgotten.
    ///
    /// Also the sign of life: the pipeline calls it at least every `STATUS_INTERVAL`, moved or not. Not cancel safe.
    fn confirm(&mut self, confirmed: Lsn) -> impl Future<Output = Result<(), SourceError>>;

    /// Ends the session in good order, so that the slot is free at once.
    fn close(self) -> impl Future<Output = ()>;
}

/// Why a source gives no more, sorted by what is to be done about it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It passes: connect again and go on from the slot.
    #[error(transparent)]
    Passing(Box<dyn Error + Send + Sync>),
    /// Postgres refuses for good: a right, a setting, a name. The text says how to mend it.
    #[error(transparent)]
    Refused(Box<dyn Error + Send + Sync>),
    /// The config asks for what the database does not have, such as an unknown table.
    #[error(transparent)]
    Config(Box<dyn Error + Send + Sync>),
    /// The slot or what it needs is lost: going on would leave a gap.
    #[error(transparent)]
    SlotLost(Box<dyn Error + Send + Sync>),
    /// The server keeps more log for the slot than it is allowed to.
    #[error(transparent)]
    SlotLimit(Box<dyn Error + Send + Sync>),
    /// A transaction is too large for memory, and its spill file fails.
    #[error(transparent)]
    Spill(#[from] SpillError),
    /// A message or a row that cannot be decoded.
    #[error(transparent)]
    Undecodable(Box<dyn Error + Send + Sync>),
}
