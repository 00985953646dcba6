//! `Wire`: the replication connection as the stream sees it. Bytes in, status out, questions about tables.

use std::{collections::HashMap, future::Future};

use postgres_types::Type;
use tokio::sync::mpsc::Receiver;

use crate::{
    change::Ancestor,
    source::{Load, LoadTable, SourceError},
};

/// The replication connection as the stream sees it. The simulation has another one.
pub trait Wire {
    /// Waits until `payload` has something to give. Cancel safe.
    fn readable(&mut self) -> impl Future<Output = Result<(), SourceError>>;

    /// The next CopyData payload that is already here, without its tag and length; `None` means: wait for `readable`.
    fn payload(&mut self) -> Result<Option<&[u8]>, SourceError>;

    /// Writes one CopyData payload (a status update) to the server. Cancel safe: what was begun is ended by the next
    /// write.
    fn write(&mut self, payload: &[u8]) -> impl Future<Output = Result<(), SourceError>>;

    /// What the catalog says now of a table and of types; nothing is said of what is gone. Cancel safe: asked the same
    /// again it goes on waiting for the same answer.
    fn facts(&mut self, question: &Question) -> impl Future<Output = Result<TableFacts, SourceError>>;

    /// Begins to read tables, as `Source::load` has it, and gives what comes of it: it is read no faster than it is taken, and given up
    /// when nobody takes it any more.
    fn load(&mut self, tables: Vec<LoadTable>) -> Receiver<Result<Load, SourceError>>;

    /// Ends the session in good order, so that the slot is free at once.
    fn close(self) -> impl Future<Output = ()>;
}

/// What a Relation message leaves open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The transaction that told it; 0 when none did.
    pub xid: u32,
    /// The table's oid.
    pub table: u32,
    /// The types of its columns that are not built in. The row's columns, not the table's: these may be others by now.
    pub types: Vec<u32>,
}

/// What the catalog says of a table, beyond what a Relation message tells. All is empty of a table that is gone, but
/// not its types.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableFacts {
    /// The table is gone.
    pub gone: bool,
    /// The schema's name now, unquoted.
    pub schema: String,
    /// The table's name now, unquoted.
    pub name: String,
    /// Table or partitioned table.
    pub kind: TableKind,
    /// For a partition: its parent, then the parent's, up to the root.
    pub ancestors: Vec<Ancestor>,
    /// The primary key's columns in the key's order; empty without one.
    pub primary_key: Vec<String>,
    /// The columns of the index that `REPLICA IDENTITY USING INDEX` names, in its order; empty without one.
    pub identity_index: Vec<String>,
    /// The columns of the first index by name that is unique, whole, without expressions and over NOT NULL columns, in
    /// its order: what Debezium takes for the key where there is no primary key.
    pub unique: Option<Vec<String>>,
    /// By oid: the types that were asked about, and what they are made of.
    pub types: HashMap<u32, TypeFact>,
}

/// `pg_class.relkind` of what can be published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableKind {
    /// `r`
    #[default]
    Table,
    /// `p`
    Partitioned,
}

/// What is below a type that is not built in.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeFact {
    /// The type; a domain, or an array of one, is resolved to what is below it. A composite's fields are not listed.
    pub ty: Type,
    /// The domain's own modifier; `None` where the column's counts.
    pub modifier: Option<i32>,
}
