//! What the database says about the tables that are mapped: what rules are resolved against, and proofs are made of.
//!
//! A plain value: `postgres/schema.rs` reads it, tests write it down.

use postgres_types::Type;

use crate::change::Identity;

/// Tables that rules may name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    /// In no order.
    pub tables: Vec<CatalogTable>,
}

/// One table.
#[derive(Clone, Debug, PartialEq)]
pub struct CatalogTable {
    /// Unquoted.
    pub schema: String,
    /// Unquoted.
    pub name: String,
    /// What it is; only rows of tables are in the log.
    pub kind: Kind,
    /// What the log keeps of old rows.
    pub identity: Identity,
    /// In the table's order, without those that are dropped.
    pub columns: Vec<CatalogColumn>,
    /// The primary key's columns by name, in the key's order; empty without one.
    pub primary_key: Vec<String>,
    /// The columns by name of each unique index that is whole, valid and immediate, the primary key's included.
    pub unique: Vec<Vec<String>>,
    /// Those that are declared on it.
    pub foreign_keys: Vec<ForeignKey>,
    /// Some trigger that enforces a foreign key is disabled on it.
    pub triggers_disabled: bool,
}

/// What a name of the catalog is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A table, or a partitioned one, whose rows are in the log.
    Table,
    /// Its rows are not in the log.
    Unlogged,
    /// A view, a materialized view, a foreign table: in words.
    Other(&'static str),
}

/// One column.
#[derive(Clone, Debug, PartialEq)]
pub struct CatalogColumn {
    /// Unquoted.
    pub name: String,
    /// A domain is resolved to the type below it.
    pub ty: Type,
    /// `atttypmod`, or the domain's; -1 when there is none.
    pub modifier: i32,
    /// NOT NULL.
    pub not_null: bool,
    /// A value of it may be stored out of line, so that an update which does not touch it does not repeat it.
    pub toastable: bool,
    /// Of the replica identity.
    pub identity: bool,
}

/// A foreign key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    /// Its columns by name.
    pub columns: Vec<String>,
    /// Schema and name of the table that it points to.
    pub to: (String, String),
    /// The columns there, by name.
    pub to_columns: Vec<String>,
    /// It holds for all rows: validated, and enforced.
    pub valid: bool,
}

impl Catalog {
    /// The table of a name as a config has it: `table` of schema `public`, or `schema.table`.
    pub fn table(&self, name: &str) -> Option<&CatalogTable> {
        let (schema, name) = full_name(name);
        self.tables.iter().find(|table| table.schema == schema && table.name == name)
    }
}

impl CatalogTable {
    /// The place of a column in `columns`.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

/// Schema and name of a table as a config has it.
pub fn full_name(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or(("public", name))
}
