//! Config and catalog -> compiled rules: names resolved to places, values to writers, conditions to programs. Pure.

use std::sync::Arc;

use postgres_types::Type;

use super::{
    catalog::Catalog,
    condition::Condition,
    guarantee::{self, EventSheet},
    resolve,
    value::Writer,
};
use crate::{
    config::{Config, Mask, Misfit, Truncate, Unmapped},
    sink::Topic,
};

/// Everything that `tables`, `aggregates` and `events` say, resolved.
#[derive(Debug, Default)]
pub struct Rules {
    /// Tables that are roots or children of aggregates.
    pub tables: Vec<MappedTable>,
    /// In the order of the config.
    pub aggregates: Vec<Aggregate>,
    /// In the order of the config, which is that in which events of one transaction leave.
    pub events: Vec<EventRule>,
    /// What of changes that no event tells of.
    pub unmapped: Unmapped,
    /// What of TRUNCATE.
    pub truncate: Truncate,
}

/// A table of which rules need rows.
#[derive(Debug)]
pub struct MappedTable {
    /// Unquoted.
    pub schema: String,
    /// Unquoted.
    pub name: String,
    /// The columns that rules need: those of its primary key first, in the key's order, then the others by name.
    pub columns: Vec<MappedColumn>,
    /// How many of `columns` are its primary key.
    pub key_len: usize,
    /// What it is to which aggregates.
    pub roles: Vec<Role>,
}

/// One column that rules need.
#[derive(Clone, Debug, PartialEq)]
pub struct MappedColumn {
    /// Unquoted.
    pub name: String,
    /// A domain is resolved to the type below it. A row of another type stops the run.
    pub ty: Type,
    /// `atttypmod`, or the domain's.
    pub modifier: i32,
    /// `tables.<table>.decimal`: digits after the point.
    pub decimal: Option<u8>,
    /// `tables.<table>.zone`, of a `timestamp` without one.
    pub zone: Option<String>,
    /// How its values leave.
    pub writer: Writer,
    /// Who needs it, for messages: `BookingCreated.email`, `aggregates.Booking.key`.
    pub needed_by: String,
}

/// What a table is to an aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its rows are roots.
    Root {
        /// Index in `Rules::aggregates`.
        aggregate: usize,
    },
    /// Its rows are children.
    Child {
        /// Index in `Rules::aggregates`.
        aggregate: usize,
        /// Index in `Aggregate::children`.
        collection: usize,
    },
}

/// A root row and the rows that hang on it.
#[derive(Debug)]
pub struct Aggregate {
    /// As the config calls it.
    pub name: String,
    /// `ce_subject` is this, a slash and the record's key: the root's table as paths call it.
    pub subject: String,
    /// Index in `Rules::tables`.
    pub root: usize,
    /// Where its events go.
    pub topic: Arc<Topic>,
    /// Indexes into the root's columns: what makes the record's key.
    pub key: Vec<usize>,
    /// In the order of the config.
    pub children: Vec<Collection>,
}

/// Child rows of an aggregate.
#[derive(Debug)]
pub struct Collection {
    /// As the config calls it.
    pub name: String,
    /// Index in `Rules::tables`.
    pub table: usize,
    /// Index into the child's columns: the foreign key, which holds the root's primary key, of one column.
    pub link: usize,
}

/// When something has happened, and what is told of it.
#[derive(Debug)]
pub struct EventRule {
    /// Without its version.
    pub name: String,
    /// From 1.
    pub version: u32,
    /// `com.acme.BookingCreated.v1`.
    pub ce_type: String,
    /// Index in `Rules::aggregates`.
    pub aggregate: usize,
    /// That aggregate's, so that an event knows where it goes.
    pub topic: Arc<Topic>,
    /// That aggregate's.
    pub subject: String,
    /// Any of these.
    pub when: Vec<Trigger>,
    /// `if`.
    pub condition: Option<Condition>,
    /// The payload.
    pub data: Vec<(String, Field)>,
    /// Its cause in the same transaction.
    pub because: Option<Because>,
    /// A state topic: a deletion is a tombstone.
    pub compact: bool,
}

/// One alternative of `when`.
#[derive(Clone, Debug, PartialEq)]
pub enum Trigger {
    /// The root is there that was not.
    Created,
    /// The root is gone that was there.
    Deleted,
    /// Created, changed or deleted, or one of its children was added, removed or changed.
    Any,
    /// The root was there before and is there after, and all of these hold.
    All(Vec<Test>),
}

impl Trigger {
    /// Whether it may hold for what has happened to children of a collection alone.
    pub fn looks_at(&self, collection: usize) -> bool {
        match self {
            Trigger::Created | Trigger::Deleted => false,
            Trigger::Any => true,
            Trigger::All(tests) => tests.iter().any(|test| matches!(test, Test::Children(of, _) if *of == collection)),
        }
    }
}

/// What one key of a `when` map asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// A column of the root, by its index there, has changed so.
    Column(usize, Transition),
    /// A child of a collection, by its index, has changed so.
    Children(usize, ChildChange),
}

/// How a column has changed. What is asked of a side is its text; a transition to the same value is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// Before.
    pub from: Side,
    /// After.
    pub to: Side,
}

/// What a transition asks of one side.
#[derive(Clone, Debug, PartialEq)]
pub enum Side {
    /// `*`
    Anything,
    /// `null`
    Null,
    /// The value's text form.
    Text(String),
}

/// What has happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildChange {
    /// It hangs on this root, and did not before.
    Added,
    /// It hung on this root, and does not any more.
    Removed,
    /// It hangs on this root before and after, and is another.
    Changed,
    /// Any of these.
    Any,
}

/// One field of a payload.
#[derive(Debug)]
pub enum Field {
    /// A column of the row that the object is about: the root, or in `Each` a child.
    Column {
        /// Index into that table's columns.
        column: usize,
        /// Before the transaction: `old.column`. Else after it; of what is gone, as it was.
        old: bool,
        /// `None` as it is.
        mask: Option<Mask>,
    },
    /// An object of the same row's.
    Object(Vec<(String, Field)>),
    /// A list of objects, one per child: all as of this commit; as they were before it when the root is gone. By the children's
    /// primary key.
    Each {
        /// Index in `Aggregate::children`.
        collection: usize,
        /// Fields of each.
        data: Vec<(String, Field)>,
    },
}

/// `because: Name via column`.
#[derive(Clone, Debug, PartialEq)]
pub struct Because {
    /// Index in `Rules::events`.
    pub event: usize,
    /// Index into the root's columns: it holds the primary key of that event's root. As it was, where the root is gone.
    pub via: usize,
}

impl Rules {
    /// Resolves what a config says against the catalog; or all that is wrong with it, and all that it would need the replica for.
    pub fn compile(config: &Config, catalog: &Catalog) -> Result<Rules, Vec<Misfit>> {
        let (rules, sheets) = Self::prove(config, catalog)?;
        let misfits: Vec<_> = sheets.into_iter().flat_map(|sheet| sheet.needs).map(Misfit::from).collect();
        if misfits.is_empty() { Ok(rules) } else { Err(misfits) }
    }

    /// As `compile`; what needs the replica is told in the sheets, one per event, and is not in the rules.
    pub fn prove(config: &Config, catalog: &Catalog) -> Result<(Rules, Vec<EventSheet>), Vec<Misfit>> {
        let resolved = resolve::resolve(config, catalog)?;
        let sheets = guarantee::prove(&resolved);
        Ok((resolved.rules, sheets))
    }
}

impl MappedTable {
    /// `schema.table`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}
