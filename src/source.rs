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
    /// Of the tables that `load` was asked for.
    Load(Load),
}

/// What a load gives, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Load {
    /// Rows are as they are at this position: what commits there or later comes in the stream, what committed before is in the rows.
    From(Lsn),
    /// Some of them, in no order.
    Rows(Loaded),
    /// There are no more.
    Done,
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

/// Rows of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Index in what `load` was asked for.
    pub table: usize,
    /// One row after another: per column `n` (null), or `t`, a big-endian `u32` length and the type's text form.
    pub bytes: Vec<u8>,
    /// Where each row ends in `bytes`.
    pub ends: Vec<usize>,
    /// How many rows the whole table is thought to have; 0 where nobody knows.
    pub expected: u64,
}

impl Loaded {
    /// One row after another.
    pub fn rows(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }
}

/// Committed transactions in commit order.
pub trait Source {
    /// Begins to read tables as they are at one position of the log; `next` gives the position, the rows and their end beside what
    /// commits. A load that was begun before is given up.
    fn load(&mut self, tables: Vec<LoadTable>);

    /// From now on nothing comes but what is loaded, or everything again.
    fn pause(&mut self, paused: bool);

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
