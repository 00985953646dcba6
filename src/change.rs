//! What happened in the database, in no dialect: tables, rows, changes, transactions.
//!
//! A row stays what the wire brought: a slice of bytes that is walked when it is written, never a tree of values.

use std::sync::Arc;

use postgres_types::Type;

use crate::lsn::Lsn;

/// Microseconds since 1970-01-01 00:00:00 UTC.
pub type Micros = i64;

/// One shape of a table: what a Relation message said, completed with what only the catalog knows.
///
/// A table that changes gets a new `Table`; rows keep the one that they were written under.
#[derive(Debug, PartialEq)]
pub struct Table {
    /// Counts the shapes seen by this process; no two shapes share one.
    pub version: u64,
    /// `pg_class.oid`.
    pub oid: u32,
    /// The schema's name as the catalog has it, unquoted.
    pub schema: String,
    /// The table's name as the catalog has it, unquoted.
    pub name: String,
    /// Of a partition: its parent, then the parent's, up to the root.
    pub ancestors: Vec<Ancestor>,
    /// What the log says of old rows.
    pub identity: Identity,
    /// Who asked for its rows.
    pub asked: Asked,
    /// In the order of the row's values.
    pub columns: Vec<Column>,
    /// Indexes into `columns` of what names a row, in the key's own order; empty for a table without a key.
    pub key: Vec<usize>,
}

/// What a partition is a partition of, as the catalog has it when the partition's shape is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Unquoted.
    pub schema: String,
    /// Unquoted.
    pub name: String,
}

impl Table {
    /// Oid, schema and name of all tables that its rows are rows of: its own, then those of its ancestors.
    pub fn line(&self) -> impl Iterator<Item = (u32, &str, &str)> + Clone {
        let ancestors = self.ancestors.iter().map(|above| (above.oid, &*above.schema, &*above.name));
        std::iter::once((self.oid, &*self.schema, &*self.name)).chain(ancestors)
    }
}

/// Who asked for the rows of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `changes`: a record per row change.
    pub changes: bool,
    /// `aggregates`: it is a root, or a child.
    pub mapping: bool,
    /// `outbox`: its new rows are records.
    pub outbox: bool,
    /// One of these did, and nobody knows which: it is gone, and was a partition of a table that is named.
    pub orphan: bool,
}

impl Asked {
    /// Nobody did.
    pub const NOBODY: Asked = Asked { changes: false, mapping: false, outbox: false, orphan: false };
    /// `changes` alone.
    pub const CHANGES: Asked = Asked { changes: true, ..Asked::NOBODY };

    /// Whether anybody did.
    pub fn is_any(self) -> bool {
        self != Asked::NOBODY
    }
}

/// One column of one shape of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// As the catalog has it, unquoted.
    pub name: String,
    /// The column's type; a domain is resolved to the type below it.
    pub ty: Type,
    /// `atttypmod`, or the domain's; -1 when there is none.
    pub modifier: i32,
    /// Part of the replica identity.
    pub identity: bool,
}

/// `REPLICA IDENTITY`: which columns of an old row the log keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The primary key; nothing for a table without one.
    Default,
    /// Nothing: updates and deletes of a published table are refused by Postgres.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of a chosen unique index.
    Index,
}

/// The values of one row, in the order of the table's columns, as pgoutput sent them.
///
/// Shape: per column a kind byte, `n` (null), `u` (unchanged TOAST) or `t` (text), and after `t` a big-endian `u32`
/// length and that many bytes. `pgoutput.rs` has checked it, so walking it cannot fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Everything after the column count.
    pub bytes: &'a [u8],
    /// How many columns there are.
    pub columns: u16,
}

/// What the log says of one value of a row. A column that is not in the row's table version has no `Value` at all:
/// null, unchanged and unknown are three things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the update did not touch and the log does not repeat.
    Unchanged,
    /// The type's text form, in the database's encoding on the wire (UTF-8).
    Text(&'a [u8]),
}

impl<'a> Row<'a> {
    /// The values in column order.
    pub fn values(self) -> impl Iterator<Item = Value<'a>> {
        let mut rest = self.bytes;
        (0..self.columns).map(move |_| {
            let (kind, after) = rest.split_first().expect("the decoder counted the columns");
            rest = after;
            match kind {
                b'n' => Value::Null,
                b'u' => Value::Unchanged,
                _ => {
                    let (len, after) = rest.split_first_chunk::<4>().expect("the decoder saw the length");
                    let (text, after) = after.split_at(u32::from_be_bytes(*len) as usize);
                    rest = after;
                    Value::Text(text)
                }
            }
        })
    }
}

/// What an update or a delete says of the row as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old<'a> {
    /// Only the identity columns; every other column is unknown, although the wire fills it with `n`.
    Identity(Row<'a>),
    /// The whole row (`REPLICA IDENTITY FULL`).
    Full(Row<'a>),
}

/// What was done to one row, or to one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// A row is there that was not.
    Insert {
        /// The row.
        new: Row<'a>,
    },
    /// A row is another.
    Update {
        /// The row before: `None` when the identity did not change and is not full.
        old: Option<Old<'a>>,
        /// The row after; unchanged TOAST may be missing.
        new: Row<'a>,
    },
    /// A row is gone.
    Delete {
        /// What the log kept of it.
        old: Old<'a>,
    },
    /// All rows of the table are gone, untold.
    Truncate,
}

/// One change of a transaction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change<'a> {
    /// The table's shape when the change was written.
    pub table: &'a Arc<Table>,
    /// Where the change stands in the log. Not an order: transactions interleave.
    pub lsn: Lsn,
    /// What was done.
    pub op: Op<'a>,
}

/// What `pg_logical_emit_message` wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Where its record ends in the log.
    pub lsn: Lsn,
    /// It belongs to the transaction around it. Otherwise it stands alone, even if its transaction was rolled back.
    pub transactional: bool,
    /// What the writer called it.
    pub prefix: &'a str,
    /// Any bytes.
    pub content: &'a [u8],
}

/// One thing that a transaction holds, in the order in which it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Content<'a> {
    /// A row change.
    Row(Change<'a>),
    /// A message.
    Message(LogicalMessage<'a>),
}

/// What is known of a transaction beside its changes.
///
/// A message that is not transactional is one of its own, without an id: `end` is where its record ends, and `lsn` the byte
/// before that, so that it has a place in the order of commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The transaction's id, as Begin told it (32 bits; it wraps). 0 is none.
    pub xid: u32,
    /// Where the commit record starts: the transaction's place in the order of commits.
    pub lsn: Lsn,
    /// Where the commit record ends: what is confirmed to Postgres once the transaction is durable elsewhere.
    pub end: Lsn,
    /// When it was committed, by the server's clock; for a message that stands alone, when we have read it.
    pub time: Micros,
}
