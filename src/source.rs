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

/// Committed transactions in commit order.
pub trait Source {
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
