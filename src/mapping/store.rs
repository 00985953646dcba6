//! Where a transaction's net rows are kept and put in order: in memory, or in a file without a name when they are too many.
//!
//! Both hold the same pairs of bytes in the same order, so that what is read from them does not depend on which it is.

use redb::{
    Builder, Database, Durability, Range, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition, WriteTransaction,
};

use super::{
    net::{Net, Taken},
    row::{Cells, write_sorted_key},
    rules::MappedTable,
};
use crate::transaction::{Spill, SpillError};

/// Net rows of one transaction, and references to them in the order in which events are made.
#[derive(Debug)]
pub(super) struct Store {
    spill: Spill,
    net: Net,
    pairs: Pairs,
    disk: Option<Disk>,
}

/// Where a walk over the references is.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    at: usize,
    range: Option<Range<'static, &'static [u8], &'static [u8]>>,
    /// The reference here; empty at the end.
    pub(super) key: Vec<u8>,
    /// Its value.
    pub(super) value: Vec<u8>,
}

/// Which row a reference is to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Index in `Rules::tables`.
    pub(super) table: usize,
    /// Its primary key as `write_sorted` has it: after the transaction, or before it when it is gone.
    pub(super) key: &'a [u8],
    /// It is there after the transaction.
    pub(super) is_there: bool,
    /// Its number among the transaction's net rows.
    pub(super) number: u32,
}

/// One net row that is put in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visited<'a> {
    pub(super) table: usize,
    pub(super) number: u32,
    pub(super) before: Option<Cells<'a>>,
    pub(super) after: Option<Cells<'a>>,
}

/// Takes references.
pub(super) struct References<'a, 'txn> {
    pairs: &'a mut Pairs,
    disk: Option<(redb::Table<'txn, &'static [u8], &'static [u8]>, &'a Spill)>,
}

/// Pairs of bytes in one buffer.
#[derive(Debug, Default)]
struct Pairs {
    bytes: Vec<u8>,
    /// Start, length of the key, length of the value behind it.
    places: Vec<(u32, u32, u32)>,
    /// So many are in order.
    sorted: usize,
}

/// A B-tree in a file without a name.
#[derive(Debug)]
struct Disk {
    /// Dropped before the database.
    reader: Option<Reader>,
    writer: Option<WriteTransaction>,
    file: std::io::Result<u64>,
    len: Box<dyn FileLen>,
    _database: Database,
    /// The number of the first row of each table, and how many there are in all.
    numbers: Vec<Option<u32>>,
    rows: u32,
}
