//! Where an event stands: the order that everything downstream keeps.

use crate::lsn::Lsn;

/// The position of an event: its transaction's place in the order of commits, then its place in the transaction.
///
/// Row LSNs are not an order, since transactions interleave in the log; this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Where the transaction's commit record starts.
    pub commit: Lsn,
    /// Counts the transaction's changes from 0.
    pub index: u64,
}
