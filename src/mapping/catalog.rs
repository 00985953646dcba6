//! What the database says about the tables that are mapped: what rules are resolved against, and proofs are made of.
//!
//! A plain value: `postgres/schema.rs` reads it, tests write it down.

#[cfg(test)]
pub(crate) mod samples;

use postgres_types::Type;

use crate::{change::Identity, config::full_name};

/// Tables that rules may name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    /// In no order.
    pub tables: Vec<CatalogTable>,
}

/// One table.
#[derive(Clone, Debug, PartialEq)]
pub struct CatalogTable {
    /// What the database calls it, whatever its name is; 0 is unknown.
    pub oid: u32,
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
    /// About how many rows it has, by the planner's statistics; `None` when it was never analyzed.
    pub rows: Option<u64>,
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
    /// Bytes that a value takes on average, by the planner's statistics.
    pub width: Option<u32>,
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

impl CatalogColumn {
    /// About how many bytes the text of a value has.
    pub fn text_bytes(&self) -> u64 {
        /// Of a text of which nothing is known.
        const TEXT_BYTES: u32 = 16;
        let width = self.width.unwrap_or(TEXT_BYTES);
        let bytes = match self.ty {
            Type::BOOL => 1,
            Type::INT2 => 3,
            Type::INT4 | Type::OID => 6,
            Type::INT8 => 8,
            Type::FLOAT4 => 7,
            Type::FLOAT8 => 12,
            Type::DATE => 10,
            Type::TIME => 12,
            Type::TIMESTAMP => 22,
            Type::TIMESTAMPTZ => 25,
            Type::UUID => 36,
            // Two bytes have four digits, two characters have one byte, and labels have no width.
            Type::NUMERIC => width.saturating_mul(2),
            Type::BYTEA => width.saturating_mul(2).saturating_add(2),
            _ if matches!(self.ty.kind(), postgres_types::Kind::Enum(_)) => 8,
            _ => width,
        };
        bytes.into()
    }
}

impl CatalogTable {
    /// `schema.table`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// As SQL has it.
    pub fn quoted(&self) -> String {
        let quote = |name: &str| match name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            true => name.to_owned(),
            false => format!("\"{}\"", name.replace('"', "\"\"")),
        };
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// Whether no two rows ever share a primary key, not even within a transaction: it is no DEFERRABLE one.
    pub fn has_immediate_key(&self) -> bool {
        let is_key = |columns: &Vec<String>| {
            columns.len() == self.primary_key.len() && columns.iter().all(|column| self.primary_key.contains(column))
        };
        self.unique.iter().any(is_key)
    }

    /// Whether the log says the old value of a column whenever its row changes or goes.
    pub fn says_old(&self, column: usize) -> bool {
        self.identity == Identity::Full || self.columns[column].identity
    }

    /// The place of a column in `columns`.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }
}

/// Whether a value of a type that can be stored out of line may be so large that it is.
///
/// Postgres moves no value of up to 24 bytes out of its row (`toast_tuple_find_biggest_attribute`), and some types say how long theirs
/// get: `numeric(12,2)`, `char(2)`.
pub fn may_be_toasted(ty: &Type, modifier: i32) -> bool {
    const INLINE_BYTES_MAX: i32 = 24;
    /// The length word, and what `numeric` adds to it.
    const HEADER_BYTES: i32 = 4;
    const NUMERIC_HEADER_BYTES: i32 = HEADER_BYTES + 4;
    /// Of a character in any server encoding.
    const CHARACTER_BYTES_MAX: i32 = 4;
    match *ty {
        Type::VARCHAR | Type::BPCHAR if modifier >= 4 => {
            (modifier - 4).saturating_mul(CHARACTER_BYTES_MAX).saturating_add(HEADER_BYTES) > INLINE_BYTES_MAX
        }
        Type::NUMERIC if modifier >= 4 => {
            // Two bytes hold four digits, and the point may part a group.
            let precision = ((modifier - 4) >> 16) & 0xffff;
            NUMERIC_HEADER_BYTES + (precision / 4 + 2) * 2 > INLINE_BYTES_MAX
        }
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NUMERIC | Type::BYTEA | Type::JSON | Type::JSONB => true,
        Type::BOOL | Type::CHAR | Type::INT2 | Type::INT4 | Type::INT8 | Type::OID | Type::FLOAT4 | Type::FLOAT8 => {
            false
        }
        Type::DATE | Type::TIME | Type::TIMETZ | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::INTERVAL => false,
        Type::UUID | Type::MONEY | Type::MACADDR => false,
        _ => !matches!(ty.kind(), postgres_types::Kind::Enum(_)),
    }
}
