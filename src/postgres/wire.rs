//! `Wire`: the replication connection as the stream sees it. The crash simulation is its second implementation.

use std::{collections::HashMap, future::Future};

use postgres_types::Type;

use crate::source::SourceError;

/// Bytes of the log in, status out, questions about tables.
pub trait Wire {
    /// Waits until `payload` has something to give. Cancel safe.
    fn readable(&mut self) -> impl Future<Output = Result<(), SourceError>>;

    /// The next CopyData payload that is already here.
    fn payload(&mut self) -> Result<Option<&[u8]>, SourceError>;

    /// Writes one CopyData payload.
    fn write(&mut self, payload: &[u8]) -> impl Future<Output = Result<(), SourceError>>;

    /// What the catalog says of a table now; `None` when it is gone. Cancel safe: asked again with the same oid, it goes
    /// on waiting for the same answer.
    fn facts(&mut self, oid: u32) -> impl Future<Output = Result<Option<TableFacts>, SourceError>>;

    /// Ends the session in good order.
    fn close(self) -> impl Future<Output = ()>;
}

/// What only the catalog knows of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableFacts {
    /// Partitioned tables above it, nearest first, as (schema, name).
    pub ancestors: Vec<(String, String)>,
    /// Columns of the primary key in the key's order; empty when there is none.
    pub primary_key: Vec<String>,
    /// Columns of the index that `REPLICA IDENTITY USING INDEX` names, in the index's order.
    pub identity_index: Vec<String>,
    /// Columns of the first unique index that is neither partial nor on expressions and allows no null.
    pub unique: Vec<String>,
    /// Types of its columns that are not built in, by oid; domains resolved, with the modifier that they bring.
    pub types: HashMap<u32, (Type, i32)>,
}
