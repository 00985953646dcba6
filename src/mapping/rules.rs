//! Config and catalog -> compiled rules: names resolved to places, values to writers, conditions to programs. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use postgres_types::Type;

use super::{
    catalog::{Catalog, CatalogTable},
    condition::Condition,
    guarantee::{self, Proof},
    paths::Names,
    resolve,
    value::Writer,
};
use crate::{
    config::{AggregateConfig, Config, DataConfig, Mask, Misfit, Truncate, Unmapped, full_name},
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
    /// What the database calls it, whatever its name is; 0 is unknown.
    pub oid: u32,
    /// Unquoted.
    pub schema: String,
    /// Unquoted.
    pub name: String,
    /// The columns that rules need: those of its primary key first, in the key's order, then the others by name.
    pub columns: Vec<MappedColumn>,
    /// How many of `columns` are its primary key.
    pub key_len: usize,
    /// What it is to which aggregates; nothing, when only look-ups lead to it.
    pub roles: Vec<Role>,
    /// The replica has its rows.
    pub held: bool,
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
    /// The database sees to it that the root is there.
    pub enforced: bool,
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
    /// `when: backfill`: rows that were there before the first event are told of too.
    pub backfill: bool,
    /// Indexes in `Rules::tables`, of the held tables without whose rows it cannot be made.
    pub needs: Vec<usize>,
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
    /// A column of another row, which foreign keys lead to. A null on the way is null.
    LookUp {
        /// From the row that the object is about; at least one.
        hops: Vec<Hop>,
        /// Index into the last table's columns.
        column: usize,
        /// Everything as it was before the transaction.
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

/// From a row to the one that its foreign key names by its primary key, of one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Index into the columns of the table that has the key.
    pub key: usize,
    /// Index in `Rules::tables`: where it leads.
    pub table: usize,
    /// The database sees to it that the row is there.
    pub enforced: bool,
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
    /// Resolves what a config says against the catalog; or all that is wrong with it, and all that an event cannot have.
    pub fn compile(config: &Config, catalog: &Catalog) -> Result<Rules, Vec<Misfit>> {
        let Proof { rules, events, .. } = Self::prove(config, catalog)?;
        let misfits: Vec<_> = events.into_iter().flat_map(|sheet| sheet.needs).map(Misfit::from).collect();
        if misfits.is_empty() { Ok(rules) } else { Err(misfits) }
    }

    /// As `compile`, with what is promised of each event, and what it takes; an event that cannot have what it needs says so there.
    pub fn prove(config: &Config, catalog: &Catalog) -> Result<Proof, Vec<Misfit>> {
        Ok(guarantee::prove(resolve::resolve(config, catalog)?, config.sink.kafka.delivery))
    }

    /// By which columns rows of a table are found in the replica: where it is a child, those that hold the root's key; each once.
    pub fn links(&self, table: usize) -> Vec<usize> {
        let mut links = Vec::new();
        for collection in self.aggregates.iter().flat_map(|aggregate| &aggregate.children) {
            if collection.table == table && !links.contains(&collection.link) {
                links.push(collection.link);
            }
        }
        links
    }
}

impl EventRule {
    /// Name and version: `BookingCreated.v1`.
    pub fn full_name(&self) -> String {
        format!("{}.v{}", self.name, self.version)
    }
}

/// A table that only look-ups lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookedUp {
    /// Unquoted.
    pub schema: String,
    /// Unquoted.
    pub name: String,
    /// The columns that look-ups need.
    pub columns: BTreeSet<String>,
}

/// The tables that paths of `data` lead to and that are neither roots nor children. Paths that lead nowhere are passed over: the
/// rules refuse them.
pub fn looked_up(config: &Config, catalog: &Catalog) -> Vec<LookedUp> {
    let names = Names { catalog, tables: &config.tables };
    let mut found = BTreeMap::new();
    let child = |aggregate: &AggregateConfig, each: &str| {
        aggregate.children.get(each).and_then(|link| Some(link.rsplit_once('.')?.0.to_owned()))
    };
    for (_, event) in config.events.iter() {
        let Some(aggregate) = config.aggregates.get(&event.of) else { continue };
        let mut left: Vec<_> = event.data.iter().map(|(_, field)| (aggregate.root.clone(), field)).collect();
        while let Some((start, field)) = left.pop() {
            match field {
                DataConfig::Object(data) => left.extend(data.iter().map(|(_, field)| (start.clone(), field))),
                DataConfig::Each { each, data } => {
                    let Some(start) = child(aggregate, each) else { continue };
                    left.extend(data.iter().map(|(_, field)| (start.clone(), field)));
                }
                DataConfig::Path(path) => {
                    let place = names.table(&start).and_then(|start| names.find(start, path));
                    let Ok(place) = place else { continue };
                    for hop in &place.hops {
                        let columns: &mut BTreeSet<String> = found.entry(hop.to.full_name()).or_default();
                        columns.insert(hop.to.columns[hop.to_column].name.clone());
                        columns.extend(hop.to.primary_key.iter().cloned());
                    }
                    for hop in place.hops.iter().skip(1) {
                        found.entry(hop.from.full_name()).or_default().insert(hop.key().to_owned());
                    }
                    if !place.hops.is_empty() {
                        found.entry(place.table.full_name()).or_default().insert(place.of().name.clone());
                    }
                }
            }
        }
    }
    for (_, aggregate) in config.aggregates.iter() {
        let children = aggregate.children.iter().filter_map(|(name, _)| child(aggregate, name));
        for name in children.chain([aggregate.root.clone()]) {
            let (schema, table) = full_name(&name);
            found.remove(&format!("{schema}.{table}"));
        }
    }
    let named = |table: &CatalogTable| {
        let columns = found.get(&table.full_name())?.clone();
        Some(LookedUp { schema: table.schema.clone(), name: table.name.clone(), columns })
    };
    catalog.tables.iter().filter_map(named).collect()
}

impl MappedTable {
    /// `schema.table`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}
