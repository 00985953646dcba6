//! Transaction -> events: what happened in the business, by the rules of `aggregates` and `events`. Pure, but for the file that a
//! transaction is netted in when it is too large for memory.
//!
//! `rules.rs` compiles the config against the catalog, once per start. Then each transaction is taken change by change: `net.rs`
//! keeps one net change per row, `store.rs` puts these in order (with `runs.rs`, in files when they are too many), `aggregate.rs` finds
//! the aggregates that they touch, `trigger.rs` whether a rule speaks of them, and `payload.rs` writes what it tells of each. The same
//! transaction gives the same events for ever, in the same order: by rule, as declared, then by the root's key.
//!
//! What a transaction does not say of tables that are held, the replica knows, as it was before it: `held.rs` completes the net rows,
//! `kin.rs` lists the children that are not touched, `sight.rs` finds the rows that foreign keys lead to. The last thing that is made of a
//! transaction are the rows that the replica is to have of it.

use std::collections::{HashMap, HashSet};

use tracing::warn;

pub use self::kept::KeptRow;
use self::{
    aggregate::{Fate, Group, GroupError, NetRow, Open, Owner, Referrer, Settled, Touched, prefix},
    held::{Garbage, Held},
    kin::Kin,
    net::Taken,
    payload::{Missing, Unwritten},
    row::{Cell, Cells, Misshapen, Projection, write_sorted},
    rules::{Because, EventRule, Field, MappedTable, Role, Rules},
    sight::{Sight, View},
    store::{Cursor, Gone, Pass, Place, Store},
    trigger::{Answer, Asked, Blank},
    value::declared,
};
use crate::{
    change::{Change, Commit, Op, Table},
    config::{Truncate, Unmapped},
    event::Event,
    lsn::Lsn,
    replica::{Replica, ReplicaError},
    transaction::{Spill, SpillError},
};

pub mod catalog;
pub mod rules;
pub(crate) mod resolve;
pub(crate) mod paths;
pub mod guarantee;
pub mod row;
pub mod value;
pub mod condition;
mod net;
mod runs;
mod store;
pub mod kept;
mod held;
mod sight;
pub mod aggregate;
mod kin;
mod trigger;
pub mod payload;

/// An aggregate's rows are held in memory while its events are made, at least so many bytes of them. What Kafka takes in one record
/// is less.
pub const AGGREGATE_BYTES_MIN: usize = 4 * 1024 * 1024;

/// Makes events of transactions, one transaction at a time.
pub struct Mapping {
    rules: Rules,
    /// Whether some event is of an aggregate, and whether one of these is of a state topic.
    uses: Vec<Use>,
    /// Per event the collections that its data lists.
    listed: Vec<Vec<usize>>,
    aggregate_bytes_max: usize,
    commit: Commit,
    counts: Counts,
    /// Shape of a table -> the mapped tables that its rows belong to.
    plans: HashMap<u64, Plan>,
    store: Store,
    taker: Taker,
    giver: Option<Giver>,
    giving: Buffers,
    referrer: Referrer,
    held: Held,
    /// Per table whether the transaction has left any of its rows another, of those that are held.
    has_touched: Vec<bool>,
    /// Per event whether none is made of this transaction: rows that it needs are not known as of it.
    passed: Vec<bool>,
    /// No events are made of this transaction: they are published, and some of its rows are kept.
    keeping: bool,
    keeper: Keeper,
    /// What is told is not a transaction, but what was there before the first one.
    backfill: Option<Backfill>,
    /// Tables whose changes no event has told of, once in the log.
    warned: HashSet<usize>,
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without rows.
        f.debug_struct("Mapping").field("commit", &self.commit).field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// What transactions have come to, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows that a transaction has touched and not left as if it had not been.
    pub rows: u64,
    /// Of these, rows that have the values they had.
    pub no_ops: u64,
    /// Of these, rows that have changed and no event tells of.
    pub unmapped: u64,
    /// Transactions whose rows were put together on disk.
    pub on_disk: u64,
}

/// A transaction cannot be told. It lasts: the same transaction comes again after a restart.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A mapped column is not there any more.
    #[error(
        "read a row of {table} at {lsn}: it has no column {column}, which {needed_by} needs; if it was dropped or renamed while this \
         run went on, mend the mapping and start again; if before, or if it is younger than the row, give the table or the mapping back \
         what they had until this row is published"
    )]
    Dropped {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
        /// The column's name.
        column: String,
        /// The event's field, or what else names it in the config.
        needed_by: String,
    },
    /// A mapped column has another type.
    #[error(
        "read a row of {table} at {lsn}: column {column}, which {needed_by} needs, is of type {change} at the start of this run, so \
         that it would be told in another way; if it was altered while this run went on, run `offshoot check`, and start again if the new \
         form is what you want; if before, give it back its type until this row is published"
    )]
    Retyped {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
        /// The column's name.
        column: String,
        /// The event's field, or what else names it in the config.
        needed_by: String,
        /// The type that it has, and the one that it had when the mapping was made: `text and was integer`.
        change: String,
    },
    /// The primary key is another.
    #[error(
        "read a row of {table} at {lsn}: its primary key is not ({key}), which named its rows at the start of this run; if it was altered \
         while this run went on, run `offshoot check`, and start again; if before, give it back its key until this row is published"
    )]
    OtherKey {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
        /// The columns that it had.
        key: String,
    },
    /// The log does not say which row it is.
    #[error(
        "find the row of {table} that is changed at {lsn}: the log does not have column {column} of its primary key; choose a replica \
         identity that covers it (ALTER TABLE {table} REPLICA IDENTITY FULL, or DEFAULT)"
    )]
    KeyUnknown {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
        /// The column's name.
        column: String,
    },
    /// Two rows have one primary key.
    #[error(
        "tell rows of {table} apart at {lsn}: two have one primary key for a while; a primary key that is DEFERRABLE cannot name the \
         rows of an aggregate"
    )]
    KeyTaken {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
    },
    /// TRUNCATE says no rows.
    #[error(
        "tell what TRUNCATE of {table} at {lsn} has deleted: it carries no rows; `truncate: ignore` lets its rows go without an event, and \
         offshoot skip --lsn {commit} goes on without the transaction"
    )]
    Truncated {
        /// Where the change stands.
        lsn: Lsn,
        /// Where the commit record starts.
        commit: Lsn,
        /// `schema.table`.
        table: String,
    },
    /// Whether an event has happened depends on an old value.
    #[error(
        "know whether {event} has happened in the transaction that commits at {commit}: the log does not say what {table}.{column} was; \
         ALTER TABLE {table} REPLICA IDENTITY FULL makes it say so from then on"
    )]
    OldUnknown {
        /// Where the commit record starts.
        commit: Lsn,
        /// Name and version.
        event: String,
        /// `schema.table`.
        table: String,
        /// The column's name.
        column: String,
    },
    /// The root was there before, and so were children that the transaction does not touch.
    #[error(
        "tell {collection} of {event} in the transaction that commits at {commit}: it does not carry the children that it does not \
         touch; only an event with `when: created` can list children, or one with `when: deleted` where {table} has REPLICA IDENTITY FULL"
    )]
    Children {
        /// Where the commit record starts.
        commit: Lsn,
        /// Name and version.
        event: String,
        /// As the config calls it.
        collection: String,
        /// `schema.table` of the children.
        table: String,
    },
    /// A field, the key or the row of an event is not known, or has no form.
    #[error("make {event} of the transaction that commits at {commit}: failed to {missing}")]
    Event {
        /// Where the commit record starts.
        commit: Lsn,
        /// Name and version.
        event: String,
        /// What is the matter, and how to mend it.
        missing: Box<Missing>,
    },
    /// `if` cannot be answered.
    #[error("answer `if` of {event} in the transaction that commits at {commit}: {reason}")]
    Condition {
        /// Where the commit record starts.
        commit: Lsn,
        /// Name and version.
        event: String,
        /// Why not.
        reason: String,
    },
    /// One aggregate has too many rows in the transaction.
    #[error(
        "hold one {aggregate} of the transaction that commits at {commit}: it has touched more than {max} bytes of its rows; raise \
         limits.memory, or go on without the transaction: offshoot skip --lsn {commit}"
    )]
    TooLarge {
        /// Where the commit record starts.
        commit: Lsn,
        /// As the config calls it.
        aggregate: String,
        /// How many it may be.
        max: usize,
    },
    /// No event tells of a change, and `unmapped: fail` says that one must.
    #[error(
        "tell of every change in the transaction that commits at {commit}: no event tells of a row of {table}; add one, say \
         `unmapped: warn`, or go on without the transaction: offshoot skip --lsn {commit}"
    )]
    Unmapped {
        /// Where the commit record starts.
        commit: Lsn,
        /// `schema.table`.
        table: String,
    },
    /// The replica has less than the source had.
    #[error(
        "complete a row of {table} that the transaction which commits at {commit} has touched: the replica does not have the one with \
         primary key {key}, so it and the source disagree; `offshoot reload` reads the held tables again"
    )]
    NotHeld {
        /// Where the commit record starts.
        commit: Lsn,
        /// `schema.table`.
        table: String,
        /// Its primary key.
        key: String,
    },
    /// A child hangs on a root that is not there.
    #[error(
        "make {event} of the transaction that commits at {commit}: rows of {child} hang on the row of {table} with primary key {key}, and \
         the replica does not have it, so it and the source disagree; `offshoot reload` reads the held tables again"
    )]
    NoRoot {
        /// Where the commit record starts.
        commit: Lsn,
        /// Name and version.
        event: String,
        /// `schema.table` of the child.
        child: String,
        /// `schema.table` of the root.
        table: String,
        /// The root's primary key.
        key: String,
    },
    /// A row cannot be kept.
    #[error(
        "keep a row of {table} that the transaction which commits at {commit} has touched: nothing says what its column {column} is; \
         `offshoot reload` reads the held tables again"
    )]
    Unkept {
        /// Where the commit record starts.
        commit: Lsn,
        /// `schema.table`.
        table: String,
        /// The column's name.
        column: String,
    },
    /// A held table has another name.
    #[error(
        "read a row of {now} at {lsn}: that is {table} under another name, and rows of {table} are held, since events need them; name it so \
         in the config, or give it its name back and run `offshoot reload`, and start again: its rows are loaded again"
    )]
    Renamed {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table` at the start of this run.
        table: String,
        /// `schema.table`.
        now: String,
    },
    /// A row of a partition of a held table that has another name.
    #[error(
        "read a row of {partition} at {lsn}: it is a partition of {now}, which is {table} under another name, and rows of {table} are held, \
         since events need them; give it its name back and start again, and nothing is lost; or name it so in the config, and start again: \
         its rows are loaded again"
    )]
    RootRenamed {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        partition: String,
        /// `schema.table` at the start of this run.
        table: String,
        /// `schema.table`.
        now: String,
    },
    /// Another table has a held one's name.
    #[error(
        "read a row of {table} at {lsn}: that is another table than the one of this name whose rows are held, since events need them; \
         start again: its rows are loaded again"
    )]
    Replaced {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
    },
    /// TRUNCATE of a partition of a held table.
    #[error(
        "forget the rows that TRUNCATE of {partition} at {lsn} has deleted: nothing says which rows of {table}, whose partition it is, were \
         in it; go on without the transaction and read the held tables again: offshoot skip --lsn {commit}"
    )]
    PartTruncated {
        /// Where the change stands.
        lsn: Lsn,
        /// Where the commit record starts.
        commit: Lsn,
        /// `schema.table` of the partition.
        partition: String,
        /// `schema.table` as the config names it.
        table: String,
    },
    /// Somebody else's record.
    #[error("read a record of the replica's topic: {cause}")]
    Malformed {
        /// What is the matter.
        cause: kept::Malformed,
    },
    /// The replica's cache.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// Disk.
    #[error(transparent)]
    Spill(#[from] SpillError),
}

/// What became of a row that may be of an older load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked<'a> {
    /// It is; the record says that it is gone.
    Forgotten(KeptRow<'a>),
    /// It is of the present one.
    Stays,
    /// There is no row.
    End,
}

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    events: bool,
    compacts: bool,
}

/// Reads changes.
#[derive(Debug, Default)]
struct Taker {
    old: Vec<u8>,
    new: Vec<u8>,
}

/// Where the making of events is.
#[derive(Default)]
struct Giver {
    /// Per aggregate and collection what the log leaves open.
    open: Vec<Vec<Open>>,
    rule: usize,
    cursor: Cursor,
    /// The cursor is where the rule's aggregate begins, or after that.
    is_begun: bool,
    /// The next of the group's aggregates.
    owner: usize,
    /// A tombstone follows: `Buffers::previous` is its key.
    tombstone: bool,
    index: u64,
    /// Per table how many rows were met.
    met: Vec<u64>,
    /// By number of row: some event has told of it, or there is nothing to tell.
    told: Vec<bool>,
    /// Per table how many rows are to be told of.
    untold: Vec<u64>,
}

/// Where the keeping of rows is.
#[derive(Default)]
struct Keeper {
    /// The table that is looked at for whether it was truncated.
    table: usize,
    /// The key of the last row that was forgotten there.
    after: Vec<u8>,
    /// The cursor is where the references to rows are.
    is_begun: bool,
    cursor: Cursor,
    reference: Vec<u8>,
    value: Vec<u8>,
    other: Vec<u8>,
    row: Vec<u8>,
}

/// Where the telling of what was there is.
#[derive(Debug)]
struct Backfill {
    /// Indexes in `Rules::events`, the next one last.
    events: Vec<usize>,
    /// The key of the last root that was told.
    after: Vec<u8>,
    index: u64,
}

/// What an event is made in.
#[derive(Debug, Default)]
struct Buffers {
    group: Group,
    cause: Group,
    root: Vec<u8>,
    cause_root: Vec<u8>,
    kin: Kin,
    reference: Vec<u8>,
    key: Vec<u8>,
    previous: Vec<u8>,
    row: Vec<u8>,
    data: Vec<u8>,
    cause_row: Vec<u8>,
}

/// What has been made in the buffers.
#[derive(Clone, Copy, Debug)]
struct Made {
    rule: usize,
    index: u64,
    /// The key is `Buffers::previous`, and there is no data.
    is_tombstone: bool,
    /// The key was `Buffers::previous`.
    has_previous: bool,
    /// Index in `Rules::events`.
    cause: Option<usize>,
}

impl Mapping {
    /// For rules; what does not fit into `spill.memory_max` bytes goes to a file.
    pub fn new(rules: Rules, spill: Spill) -> Self {
        let mut uses = vec![Use::default(); rules.aggregates.len()];
        for event in rules.events.iter().filter(|event| !event.when.is_empty()) {
            uses[event.aggregate].events = true;
            uses[event.aggregate].compacts |= event.compact;
        }
        let held = Held::new(&rules);
        let listed = rules.events.iter().map(|event| {
            let mut listed = Vec::new();
            list(&event.data, &mut listed);
            listed
        });
        Self {
            listed: listed.collect(),
            uses,
            aggregate_bytes_max: spill.memory_max.max(AGGREGATE_BYTES_MIN),
            commit: Commit { xid: 0, lsn: Lsn::INVALID, end: Lsn::INVALID, time: 0 },
            counts: Counts::default(),
            plans: HashMap::new(),
            store: Store::new(spill),
            taker: Taker::default(),
            giver: None,
            giving: Buffers::default(),
            referrer: Referrer::default(),
            held,
            has_touched: vec![false; rules.tables.len()],
            passed: vec![false; rules.events.len()],
            keeping: false,
            keeper: Keeper::default(),
            backfill: None,
            warned: HashSet::new(),
            rules,
        }
    }

    /// By which events are made.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What transactions have come to.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes of the file that the transaction is netted in; 0 in memory.
    pub fn spilled_bytes(&self) -> u64 {
        self.store.file_bytes()
    }

    /// Gives it the replica, which it needs before the first transaction when any table is held.
    pub fn hold(&mut self, replica: Replica) {
        self.held.hold(replica);
    }

    /// The replica.
    pub fn replica_mut(&mut self) -> Option<&mut Replica> {
        self.held.replica.as_mut()
    }

    /// Indexes in `Rules::tables`, of the tables that are held.
    pub fn held(&self) -> Vec<usize> {
        self.held.tables().collect()
    }

    /// From now on a held table's rows are those of this load, and are right for transactions whose commit record starts at `from` or
    /// after; `None`: they are not known.
    pub fn set_held(&mut self, table: usize, load: u32, from: Option<Lsn>) {
        self.held.set(table, load, from);
    }

    /// The end of a transaction: a file that it was put together in goes.
    pub fn end(&mut self) {
        let commit = self.commit;
        self.clear(&commit);
    }

    /// Forgets what was taken and begins a transaction. `keeping`: its events are published, and some of its rows are kept; none are made,
    /// and all rows are kept again.
    pub fn begin(&mut self, commit: &Commit, keeping: bool) {
        self.clear(commit);
        self.keeping = keeping;
        self.held.begin(commit.lsn);
        self.pass();
    }

    /// Begins to tell what the held tables have: `next` gives the events with these indexes in `Rules::events`, of each root that is
    /// there. `commit` is where they stand among transactions.
    pub fn begin_backfill(&mut self, commit: &Commit, events: &[usize]) {
        self.clear(commit);
        self.held.begin_backfill(commit.lsn);
        let mut events = events.to_vec();
        events.sort_unstable_by(|a, b| b.cmp(a));
        self.backfill = Some(Backfill { events, after: Vec::new(), index: 0 });
    }

    fn clear(&mut self, commit: &Commit) {
        self.commit = *commit;
        self.store.clear();
        self.giver = None;
        self.backfill = None;
        self.keeping = false;
        self.has_touched.fill(false);
        let Keeper { table, after, is_begun, cursor, .. } = &mut self.keeper;
        (*table, *is_begun) = (0, false);
        after.clear();
        // It may hold on to the file of the transaction before.
        *cursor = Cursor::default();
    }

    /// Finds the events that are not made of this transaction.
    fn pass(&mut self) {
        for (event, passed) in self.rules.events.iter().zip(&mut self.passed) {
            *passed = event.needs.iter().any(|&table| !self.held.is_now(table));
        }
    }

    /// A record of the replica's topic, into the replica; one of a table that is not held is passed over.
    pub fn restore(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), MapError> {
        self.held.restore(&self.rules, key, value)
    }

    /// A row of a load, into the replica: the values of all columns of the table as `Cells` has them. Gives its record.
    pub fn load_row(&mut self, table: usize, load: u32, cells: &[u8]) -> Result<KeptRow<'_>, MapError> {
        self.held.put(&self.rules.tables[table], table, load, Cells { bytes: cells })?;
        Ok(self.held.record(true))
    }

    /// Looks at the next row of a table, and forgets it if it is of an older load; `after` is where the search is, and begins empty.
    pub fn garbage(&mut self, table: usize, after: &mut Vec<u8>) -> Result<Looked<'_>, MapError> {
        Ok(match self.held.garbage(&self.rules.tables[table], table, after)? {
            Garbage::Goes => Looked::Forgotten(self.held.record(true)),
            Garbage::Stays => Looked::Stays,
            Garbage::End => Looked::End,
        })
    }

    /// Takes a change; changes of tables that no rule names are passed over.
    pub fn take(&mut self, change: &Change<'_>) -> Result<(), MapError> {
        let Self { rules, plans, store, taker, held, .. } = self;
        let plan = match plans.get(&change.table.version) {
            Some(plan) => plan,
            None => {
                let plan = resolve(rules, change.table, change.lsn)?;
                if plans.len() >= PLANS_MAX {
                    plans.clear();
                }
                plans.entry(change.table.version).or_insert(plan)
            }
        };
        if let Some((table, now)) = plan.other.as_ref().filter(|(table, _)| held.is_now(*table)) {
            let (lsn, table, now) = (change.lsn, rules.tables[*table].full_name(), now.clone());
            let partition = format!("{}.{}", change.table.schema, change.table.name);
            return Err(if table == now {
                MapError::Replaced { lsn, table }
            } else if partition == now {
                MapError::Renamed { lsn, table, now }
            } else {
                MapError::RootRenamed { lsn, partition, table, now }
            });
        }
        for (table, projection) in &plan.tables {
            // Only look-ups lead there, and none is made.
            if rules.tables[*table].roles.is_empty() && !held.is_now(*table) {
                continue;
            }
            taker.take(rules, *table, projection, change, (store, held))?;
        }
        Ok(())
    }

    /// How many events and tombstones there may be at most, once all changes are taken: by what may happen to each row that was touched.
    pub fn events_max(&mut self) -> Result<u64, MapError> {
        if self.giver.is_none() {
            self.settle()?;
        }
        let met = &self.giver.as_ref().expect("it is settled").met;
        let of_row = |role: &Role| -> u64 {
            let (Role::Root { aggregate: of } | Role::Child { aggregate: of, .. }) = *role;
            let rules = self.rules.events.iter().filter(|rule| rule.aggregate == of);
            let each = rules.map(|rule| match role {
                Role::Root { .. } => 1 + u64::from(rule.compact),
                // It may leave one root and come to another.
                Role::Child { collection, .. } => {
                    2 * u64::from(rule.when.iter().any(|when| when.looks_at(*collection)))
                }
            });
            each.sum()
        };
        let tables = self.rules.tables.iter().zip(met);
        Ok(tables.map(|(table, rows)| rows.saturating_mul(table.roles.iter().map(of_row).sum())).sum())
    }

    /// The next event in order, once all changes are taken; None when there is no more.
    // What it gives is borrowed from it, which no `Iterator` can.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Event<'_>>, MapError> {
        let made = match &self.backfill {
            Some(_) => self.advance_backfill()?,
            None => {
                if self.giver.is_none() {
                    self.settle()?;
                }
                if self.keeping { None } else { self.advance()? }
            }
        };
        let Some(made) = made else { return Ok(None) };
        let Buffers { key, previous, row, data, cause_row, .. } = &self.giving;
        Ok(Some(Event {
            rule: &self.rules.events[made.rule],
            number: made.rule,
            index: made.index,
            key: if made.is_tombstone { previous } else { key },
            previous_key: made.has_previous.then_some(previous),
            row,
            data: (!made.is_tombstone).then_some(data),
            cause: made.cause.map(|cause| (&self.rules.events[cause], &cause_row[..])),
        }))
    }

    /// The last event does not count.
    #[cfg(test)]
    pub(crate) fn uncount(&mut self) {
        self.giver.as_mut().expect("an event was made").index -= 1;
    }

    /// The next of the rows that the replica is to have of the transaction, once all events are made: it is in the replica, and this is
    /// its record. None when there is no more.
    pub fn next_kept(&mut self) -> Result<Option<KeptRow<'_>>, MapError> {
        if self.backfill.is_some() || !self.held.is_any() {
            return Ok(None);
        }
        if self.giver.is_none() {
            self.settle()?;
        }
        let splits = self.keep()?;
        Ok(splits.map(|splits| self.held.record(splits)))
    }

    /// Keeps the next row; says whether the transaction may be cut after it. What comes after the first row that has another key than it
    /// had must not be parted: such rows are completed by the keys that they had, of which others have some then.
    fn keep(&mut self) -> Result<Option<bool>, MapError> {
        let Self { rules, store, held, keeper, .. } = self;
        let Keeper { table, after, is_begun, cursor, reference, value, other, row } = keeper;
        while let Some(mapped) = rules.tables.get(*table) {
            if held.is_truncated(*table) && held.next_truncated(mapped, *table, after)? {
                return Ok(Some(true));
            }
            after.clear();
            *table += 1;
        }
        if !std::mem::replace(is_begun, true) {
            aggregate::kept(Fate::Settled, reference);
            store.seek(reference, cursor)?;
        }
        loop {
            std::mem::swap(reference, &mut cursor.key);
            std::mem::swap(value, &mut cursor.value);
            let Some((fate, table, key)) = aggregate::read_kept(reference) else {
                // To be found here again.
                std::mem::swap(reference, &mut cursor.key);
                return Ok(None);
            };
            store.step(cursor)?;
            let mapped = &rules.tables[table];
            let mut is_also = |fate: Fate, value: &mut Vec<u8>| {
                aggregate::kept_row(fate, table, key, other);
                value.clear();
                store.get(other, value)
            };
            let mut put = |value: &[u8], held: &mut Held| {
                row.clear();
                let (id, _) = aggregate::read_settled(value);
                store.row_after(Place { table, is_there: true, id }, row)?;
                held.put(mapped, table, held.load(table), Cells { bytes: row })
            };
            match fate {
                Fate::Settled => match aggregate::read_settled(value) {
                    (_, Settled::Inserted) if is_also(Fate::Left, &mut Vec::new())? => {}
                    (_, Settled::Inserted | Settled::Changed) => {
                        put(value, held)?;
                        return Ok(Some(true));
                    }
                    (_, Settled::Deleted) if is_also(Fate::Came, &mut Vec::new())? => {}
                    (id, Settled::Deleted) => {
                        row.clear();
                        store.row(Place { table, is_there: false, id }, row)?;
                        let key = Cells { bytes: row }.key(mapped.key_len).expect("it is found by its key");
                        held.delete(mapped, table, key)?;
                        return Ok(Some(true));
                    }
                },
                Fate::Came => {
                    put(value, held)?;
                    return Ok(Some(false));
                }
                Fate::Left => {
                    #[cfg(test)]
                    if crate::planted::is_planted(crate::planted::PlantedBug::ForgetsReusedKeys) {
                        held.delete(mapped, table, value)?;
                        return Ok(Some(false));
                    }
                    let mut inserted = Vec::new();
                    if is_also(Fate::Settled, &mut inserted)? {
                        put(&inserted, held)?;
                    } else if is_also(Fate::Came, &mut inserted)? {
                        continue;
                    } else {
                        held.delete(mapped, table, value)?;
                    }
                    return Ok(Some(false));
                }
            }
        }
    }

    /// The end of the changes: puts in order what they touch.
    fn settle(&mut self) -> Result<(), MapError> {
        let Self { rules, uses, store, referrer, counts, held, has_touched, .. } = self;
        let keeping = self.keeping;
        let tables = &rules.tables;
        let open = rules.aggregates.iter().map(|aggregate| vec![Open::default(); aggregate.children.len()]);
        let none = vec![0; tables.len()];
        let mut giver = Giver { open: open.collect(), met: none.clone(), untold: none, ..Giver::default() };
        let Giver { open, told, untold, met: rows, .. } = &mut giver;
        // Each row is met once to be counted, whatever it is to how many aggregates.
        let mut met = |row: &store::Visited<'_>| {
            let number = row.id.number as usize;
            if told.len() <= number {
                told.resize(number + 1, true);
            }
            counts.rows += 1;
            rows[row.table] += 1;
            if (NetRow { before: row.before, after: row.after }).changed(None) == aggregate::Changed::No {
                counts.no_ops += 1;
            } else {
                told[number] = false;
                untold[row.table] += 1;
            }
        };
        let has_roots = |table: usize| tables[table].roles.iter().any(|role| matches!(role, Role::Root { .. }));
        let has_children = |table: usize| tables[table].roles.iter().any(|role| matches!(role, Role::Child { .. }));
        store.settle(
            tables,
            held,
            if keeping { Gone::Left } else { Gone::Completed },
            |table, pass| match pass {
                Pass::Roots => has_roots(table) && !keeping,
                Pass::Children => has_children(table) && !keeping,
                Pass::Held => held.is_now(table),
            },
            |pass, row, references| {
                if pass == Pass::Held {
                    has_touched[row.table] |= referrer.kept(rules, row, references)?;
                    return Ok(());
                }
                if pass == Pass::Roots || !has_roots(row.table) {
                    met(&row);
                }
                for &role in &tables[row.table].roles {
                    match role {
                        Role::Root { aggregate } if pass == Pass::Roots && uses[aggregate].events => {
                            referrer.root(rules, aggregate, uses[aggregate].compacts, row, references)?;
                        }
                        Role::Child { aggregate, collection } if pass == Pass::Children && uses[aggregate].events => {
                            let Open { was, is } = referrer.child(rules, aggregate, collection, row, references)?;
                            let open = &mut open[aggregate][collection];
                            open.was |= was;
                            open.is |= is;
                        }
                        _ => {}
                    }
                }
                Ok(())
            },
        )?;
        counts.on_disk += u64::from(store.file_bytes() > 0);
        self.giver = Some(giver);
        #[cfg(test)]
        if crate::planted::is_planted(crate::planted::PlantedBug::KeepsBeforeEvents) && self.held.is_any() {
            while self.keep()?.is_some() {}
            self.keeper = Keeper::default();
        }
        Ok(())
    }

    /// Makes the next event.
    fn advance(&mut self) -> Result<Option<Made>, MapError> {
        let Self {
            rules, store, giver, giving, listed, commit, aggregate_bytes_max, held, has_touched, passed, ..
        } = self;
        let giver = giver.as_mut().expect("the transaction is settled");
        let sight = Sight { rules, store, held, has_touched };
        let (commit, aggregate_bytes_max) = (commit.lsn, *aggregate_bytes_max);
        let maker = Maker { rules, store, sight, listed, passed, commit, aggregate_bytes_max };
        while let Some(rule) = rules.events.get(giver.rule) {
            if std::mem::take(&mut giver.tombstone) {
                let index = giver.index;
                giver.index += 1;
                return Ok(Some(Made { is_tombstone: true, ..Made::of(giver.rule, index) }));
            }
            if !giver.is_begun {
                if rule.when.is_empty() || passed[giver.rule] {
                    giver.rule += 1;
                    continue;
                }
                let asked = maker.asked(rule, giver);
                if let Some(blank) = asked.fires_unseen(&rule.when) {
                    return Err(maker.old_unknown(rule, blank));
                }
                prefix(rule.aggregate, &mut giving.reference);
                store.seek(&giving.reference, &mut giver.cursor)?;
                giving.group.owners.clear();
                (giver.is_begun, giver.owner) = (true, 0);
            }
            let Some(&owner) = giving.group.owners.get(giver.owner) else {
                if !maker.load(&mut giving.group, rule.aggregate, &mut giver.cursor)? {
                    (giver.rule, giver.is_begun) = (giver.rule + 1, false);
                }
                giver.owner = 0;
                continue;
            };
            giver.owner += 1;
            let (tells, made) = maker.make(owner, giver, giving)?;
            if tells {
                for (number, table) in giving.group.numbers(owner) {
                    if !std::mem::replace(&mut giver.told[number as usize], true) {
                        giver.untold[table] -= 1;
                    }
                }
            }
            if made.is_some() {
                giver.index += 1;
                return Ok(made);
            }
        }
        self.report_untold()?;
        Ok(None)
    }

    /// Makes the next event of what is there.
    fn advance_backfill(&mut self) -> Result<Option<Made>, MapError> {
        let Self {
            rules, store, giving, listed, commit, aggregate_bytes_max, held, has_touched, passed, backfill, ..
        } = self;
        let Some(Backfill { events, after, index }) = backfill else { return Ok(None) };
        let sight = Sight { rules, store, held, has_touched };
        let (commit, aggregate_bytes_max) = (commit.lsn, *aggregate_bytes_max);
        let maker = Maker { rules, store, sight, listed, passed, commit, aggregate_bytes_max };
        while let Some(&rule) = events.last() {
            if !held.after(rules.aggregates[rules.events[rule].aggregate].root, after, &mut giving.root)? {
                events.pop();
                after.clear();
                continue;
            }
            if maker.make_of_what_is_there(rule, giving)? {
                let made = Made::of(rule, *index);
                *index += 1;
                return Ok(Some(made));
            }
        }
        Ok(None)
    }

    /// The end of a transaction.
    fn report_untold(&mut self) -> Result<(), MapError> {
        // An event that is passed over might have told of it.
        if self.passed.contains(&true) {
            return Ok(());
        }
        let giver = self.giver.as_mut().expect("the transaction is settled");
        for (table, untold) in giver.untold.iter_mut().enumerate() {
            let untold = std::mem::take(untold);
            if untold == 0 {
                continue;
            }
            self.counts.unmapped += untold;
            let table_name = || self.rules.tables[table].full_name();
            match self.rules.unmapped {
                Unmapped::Ignore => {}
                Unmapped::Warn => {
                    if self.warned.insert(table) {
                        warn!(table = table_name(), commit = %self.commit.lsn, "no event tells of some changes");
                    }
                }
                Unmapped::Fail => {
                    return Err(MapError::Unmapped { commit: self.commit.lsn, table: table_name() });
                }
            }
        }
        Ok(())
    }
}

/// Shapes of tables that are remembered; a database with more has them found again.
const PLANS_MAX: usize = 10_000;

/// What rows of a shape are.
struct Plan {
    /// The mapped tables that they belong to.
    tables: Vec<(usize, Projection)>,
    /// The held table that this one, or what it is a partition of, was, or whose name that has; and that name.
    other: Option<(usize, String)>,
}

/// The mapped tables that rows of a shape belong to: by its own name, or as a partition.
fn resolve(rules: &Rules, shape: &Table, lsn: Lsn) -> Result<Plan, MapError> {
    let has_name = |table: &MappedTable, schema: &str, name: &str| table.schema == schema && table.name == name;
    let other = |(index, table): (usize, &MappedTable)| {
        let is_other = |(oid, schema, name): &(u32, &str, &str)| has_name(table, schema, name) != (table.oid == *oid);
        let known = shape.line().filter(|_| table.held && table.oid != 0);
        known.filter(is_other).map(|(_, schema, name)| (index, format!("{schema}.{name}"))).next()
    };
    let other = rules.tables.iter().enumerate().find_map(other);
    let is_of = |table: &MappedTable| shape.line().any(|(_, schema, name)| has_name(table, schema, name));
    let tables = rules.tables.iter().enumerate().filter(|(_, table)| is_of(table));
    let plan = tables.map(|(index, table)| {
        let name = || format!("{}.{}", shape.schema, shape.name);
        let projection = Projection::resolve(table, shape).map_err(|misshapen| match misshapen {
            Misshapen::Dropped(column) => MapError::Dropped {
                lsn,
                table: name(),
                column: column.name.clone(),
                needed_by: column.needed_by.clone(),
            },
            Misshapen::Retyped(column) => {
                let found = shape.columns.iter().find(|found| found.name == column.name);
                let found = found.map_or("unknown".into(), |found| declared((&found.ty, found.modifier)));
                MapError::Retyped {
                    lsn,
                    table: name(),
                    column: column.name.clone(),
                    needed_by: column.needed_by.clone(),
                    change: format!("{found} and was {}", declared((&column.ty, column.modifier))),
                }
            }
            Misshapen::OtherKey => {
                let key: Vec<_> = table.columns[..table.key_len].iter().map(|column| column.name.as_str()).collect();
                MapError::OtherKey { lsn, table: name(), key: key.join(", ") }
            }
        })?;
        Ok((index, projection))
    });
    Ok(Plan { tables: plan.collect::<Result<_, MapError>>()?, other })
}

impl Taker {
    fn take(
        &mut self,
        rules: &Rules,
        table: usize,
        projection: &Projection,
        change: &Change<'_>,
        (store, held): (&mut Store, &mut Held),
    ) -> Result<(), MapError> {
        let Self { old, new } = self;
        let commit = held.commit();
        old.clear();
        new.clear();
        let mapped = &rules.tables[table];
        let name = || format!("{}.{}", change.table.schema, change.table.name);
        let unknown = |column: usize| MapError::KeyUnknown {
            lsn: change.lsn,
            table: name(),
            column: mapped.columns[column].name.clone(),
        };
        let is_part = mapped.schema != change.table.schema || mapped.name != change.table.name;
        let taken = |Taken| MapError::KeyTaken { lsn: change.lsn, table: name() };
        match change.op {
            Op::Insert { new: row } => {
                projection.row(row, new);
                let key = Cells { bytes: new }.key(mapped.key_len).map_err(unknown)?;
                store.net(&rules.tables)?.insert(table, key, new).map_err(taken)
            }
            Op::Update { old: told, new: row } => {
                projection.row(row, new);
                match told {
                    Some(told) => projection.old(told, old),
                    None => projection.kept(row, old),
                }
                let old_key = Cells { bytes: old }.key(mapped.key_len).map_err(unknown)?;
                let new_row = Cells { bytes: new };
                // A key so long that it is stored out of line is not repeated.
                let new_key = match new_row.key(mapped.key_len) {
                    Ok(key) => key,
                    Err(_) => {
                        let mut filled = Vec::with_capacity(new.len() + old.len());
                        row::fill(new_row, Cells { bytes: old }, &mut filled);
                        *new = filled;
                        Cells { bytes: new }.key(mapped.key_len).map_err(unknown)?
                    }
                };
                store.net(&rules.tables)?.update(table, (old_key, old), (new_key, new)).map_err(taken)
            }
            Op::Delete { old: told } => {
                projection.old(told, old);
                let key = Cells { bytes: old }.key(mapped.key_len).map_err(unknown)?;
                store.net(&rules.tables)?.delete(table, key, old);
                Ok(())
            }
            Op::Truncate => match rules.truncate {
                Truncate::Fail => Err(MapError::Truncated { lsn: change.lsn, commit, table: name() }),
                // Of a partitioned table it is not known which of its rows are the partition's.
                Truncate::Ignore if is_part && held.is_now(table) => {
                    let table = mapped.full_name();
                    Err(MapError::PartTruncated { lsn: change.lsn, commit, partition: name(), table })
                }
                Truncate::Ignore if is_part && store.may_have(table) => {
                    Err(MapError::Truncated { lsn: change.lsn, commit, table: name() })
                }
                Truncate::Ignore => {
                    held.truncate(table);
                    Ok(store.forget(table, &rules.tables)?)
                }
            },
        }
    }
}

/// The collections that data lists.
fn list(data: &[(String, Field)], listed: &mut Vec<usize>) {
    for (_, field) in data {
        match field {
            Field::Column { .. } | Field::LookUp { .. } => {}
            Field::Object(fields) => list(fields, listed),
            Field::Each { collection, .. } => listed.push(*collection),
        }
    }
}

impl Made {
    fn of(rule: usize, index: u64) -> Self {
        Self { rule, index, is_tombstone: false, has_previous: false, cause: None }
    }
}

/// Makes events of one transaction.
#[derive(Clone, Copy)]
struct Maker<'a> {
    rules: &'a Rules,
    store: &'a Store,
    sight: Sight<'a>,
    listed: &'a [Vec<usize>],
    passed: &'a [bool],
    commit: Lsn,
    aggregate_bytes_max: usize,
}

impl<'a> Maker<'a> {
    /// What a rule tells of one aggregate: whether it tells of it at all, and the event.
    fn make(&self, owner: Owner, giver: &mut Giver, giving: &mut Buffers) -> Result<(bool, Option<Made>), MapError> {
        let index = giver.rule;
        let rule = &self.rules.events[index];
        let aggregate = &self.rules.aggregates[rule.aggregate];
        let Buffers { group, cause, root, cause_root, kin, reference, key, previous, row, data, cause_row } = giving;
        let mut touched = group.touched(self.rules, rule.aggregate, owner);
        let fires = self.fires(rule, &mut touched, giver, root)?;
        let lost = if rule.compact { self.lost_key(rule, &touched, reference)? } else { None };
        if !fires && lost.is_none() {
            return Ok((false, None));
        }
        for buffer in [&mut *key, &mut *previous, &mut *row, &mut *data, &mut *cause_row] {
            buffer.clear();
        }
        self.row(rule, &touched, row)?;
        let mut made = Made::of(index, giver.index);
        let is_gone = touched.root.is_some_and(|root| root.after.is_none());
        if !fires || rule.compact && is_gone {
            if lost != Some(Lost::ForGood) {
                return Ok((true, None));
            }
            self.event(rule, payload::key(self.rules, &touched, payload::AsOf::Before, previous))?;
            return Ok((true, Some(Made { is_tombstone: true, ..made })));
        }
        if let Some(NetRow { before: Some(before), after: Some(after) }) = touched.root {
            for &column in &aggregate.key {
                match aggregate::changed(before.get(column), after.get(column)) {
                    Some(changed) => made.has_previous |= changed,
                    None => return Err(self.old_unknown(rule, Blank { table: aggregate.root, column })),
                }
            }
        }
        if made.has_previous {
            self.event(rule, payload::key(self.rules, &touched, payload::AsOf::Before, previous))?;
        }
        self.event(rule, payload::key(self.rules, &touched, payload::AsOf::Now, key))?;
        if !self.listed[index].is_empty() {
            self.lists_all(index, &touched, &giver.open[rule.aggregate])?;
            let held = kin::Asked { sight: self.sight, rule, listed: &self.listed[index] };
            let untouched = held.find(touched.root, group, self.aggregate_bytes_max, kin);
            untouched.map_err(|error| self.too_large(rule.aggregate, error))?;
            touched.children = kin.with(self.rules, rule.aggregate, group.children(owner));
        }
        self.write(rule, &touched, data)?;
        if let Some(because) = &rule.because {
            made.cause = self.cause(rule, because, &touched, giver, (cause, cause_root, reference, cause_row))?;
        }
        giver.tombstone = lost == Some(Lost::ForGood);
        Ok((true, Some(made)))
    }

    /// Loads the next group.
    fn load(&self, group: &mut Group, aggregate: usize, cursor: &mut Cursor) -> Result<bool, MapError> {
        let loaded = group.load(self.rules, aggregate, self.store, cursor, self.aggregate_bytes_max);
        loaded.map_err(|error| self.too_large(aggregate, error))
    }

    fn too_large(&self, aggregate: usize, error: GroupError) -> MapError {
        match error {
            GroupError::Map(error) => error,
            GroupError::TooLarge => MapError::TooLarge {
                commit: self.commit,
                aggregate: self.rules.aggregates[aggregate].name.clone(),
                max: self.aggregate_bytes_max,
            },
        }
    }

    /// What an event of what is there tells of the root in `Buffers::root`; false when its `if` does not hold. Nothing was before.
    fn make_of_what_is_there(&self, index: usize, giving: &mut Buffers) -> Result<bool, MapError> {
        let rule = &self.rules.events[index];
        let Buffers { root, kin, key, row, data, .. } = giving;
        for buffer in [&mut *key, &mut *row, &mut *data] {
            buffer.clear();
        }
        let there = NetRow { before: None, after: Some(Cells { bytes: root }) };
        let mut touched =
            Touched { aggregate: rule.aggregate, root: Some(there), root_key: None, children: Vec::new() };
        if !self.holds(rule, &touched)? {
            return Ok(false);
        }
        self.row(rule, &touched, row)?;
        self.event(rule, payload::key(self.rules, &touched, payload::AsOf::Now, key))?;
        let asked = kin::Asked { sight: self.sight, rule, listed: &self.listed[index] };
        asked.find_all(there, self.aggregate_bytes_max, kin).map_err(|error| self.too_large(rule.aggregate, error))?;
        touched.children = kin.with(self.rules, rule.aggregate, []);
        self.write(rule, &touched, data)?;
        Ok(true)
    }

    fn write(&self, rule: &EventRule, touched: &Touched<'_>, data: &mut Vec<u8>) -> Result<(), MapError> {
        payload::write(self.sight, rule, touched, data).or_else(|unwritten| match unwritten {
            Unwritten::Missing(missing) => self.event(rule, Err(missing)),
            Unwritten::Unread(error) => Err(*error),
        })
    }

    fn asked(&self, rule: &EventRule, giver: &'a Giver) -> Asked<'a> {
        Asked { aggregate: &self.rules.aggregates[rule.aggregate], open: &giver.open[rule.aggregate] }
    }

    /// Whether `when` and `if` hold. If so, a root that the transaction has not touched is known, where its table is held: it is in `row`.
    fn fires<'t>(
        &self,
        rule: &EventRule,
        touched: &mut Touched<'t>,
        giver: &Giver,
        row: &'t mut Vec<u8>,
    ) -> Result<bool, MapError> {
        match self.asked(rule, giver).fires(&rule.when, touched) {
            Answer::No => return Ok(false),
            Answer::Unknown(blank) => return Err(self.old_unknown(rule, blank)),
            Answer::Yes => {}
        }
        let root = self.rules.aggregates[rule.aggregate].root;
        if touched.root.is_none() && self.sight.held.is_now(root) {
            let key = touched.root_key.expect("children of a root that is not touched have its key");
            if !self.sight.find(root, key, View::After, row)? {
                return self.no_root(rule, touched, key);
            }
            let row = Some(Cells { bytes: row });
            touched.root = Some(NetRow { before: row, after: row });
        }
        self.holds(rule, touched)
    }

    /// Children hang on what is not there: no event, if the database allows that.
    fn no_root(&self, rule: &EventRule, touched: &Touched<'_>, key: &[u8]) -> Result<bool, MapError> {
        let aggregate = &self.rules.aggregates[rule.aggregate];
        let mut collections = touched.children.iter().map(|child| &aggregate.children[child.collection]);
        let Some(collection) = collections.find(|collection| collection.enforced) else { return Ok(false) };
        Err(MapError::NoRoot {
            commit: self.commit,
            event: rule.full_name(),
            child: self.rules.tables[collection.table].full_name(),
            table: self.rules.tables[aggregate.root].full_name(),
            key: String::from_utf8_lossy(key).into_owned(),
        })
    }

    /// Whether `if` holds.
    fn holds(&self, rule: &EventRule, touched: &Touched<'_>) -> Result<bool, MapError> {
        let Some(condition) = &rule.condition else { return Ok(true) };
        let failed = |reason| MapError::Condition { commit: self.commit, event: rule.full_name(), reason };
        let Some(NetRow { before, after }) = touched.root else {
            let reason = "only children have changed, and the transaction does not carry the root's columns".into();
            return Err(failed(reason));
        };
        let table = &self.rules.tables[self.rules.aggregates[rule.aggregate].root];
        condition.holds(table, before, after).map_err(failed)
    }

    /// Whether a root has lost its record key, and to whom.
    fn lost_key(
        &self,
        rule: &EventRule,
        touched: &Touched<'_>,
        reference: &mut Vec<u8>,
    ) -> Result<Option<Lost>, MapError> {
        let Some(NetRow { before: Some(before), after }) = touched.root else { return Ok(None) };
        let key = &self.rules.aggregates[rule.aggregate].key;
        if let Some(after) = after {
            let mut has_changed = false;
            for &column in key {
                has_changed |= aggregate::changed(before.get(column), after.get(column)).unwrap_or(false);
            }
            if !has_changed {
                return Ok(None);
            }
        }
        aggregate::held(rule.aggregate, key, before, reference);
        #[cfg(test)]
        if crate::planted::is_planted(crate::planted::PlantedBug::BuriesReusedKeys) {
            return Ok(Some(Lost::ForGood));
        }
        Ok(Some(if self.store.get(reference, &mut Vec::new())? { Lost::ToAnother } else { Lost::ForGood }))
    }

    /// The primary key of the root's row. One whose key has changed has the old one behind the new one: what was there may be gone, and is
    /// another event.
    fn row(&self, rule: &EventRule, touched: &Touched<'_>, out: &mut Vec<u8>) -> Result<(), MapError> {
        self.event(rule, payload::row(self.rules, touched, payload::AsOf::Now, out))?;
        let key_len = self.rules.tables[self.rules.aggregates[rule.aggregate].root].key_len;
        if touched.root.is_some_and(|root| root.before.is_some() && root.after.is_some() && root.key_changed(key_len)) {
            out.push(b',');
            self.event(rule, payload::row(self.rules, touched, payload::AsOf::Before, out))?;
        }
        Ok(())
    }

    /// Sees to it that the children that an event lists are all that there are.
    fn lists_all(&self, index: usize, touched: &Touched<'_>, open: &[Open]) -> Result<(), MapError> {
        let rule = &self.rules.events[index];
        for &collection in &self.listed[index] {
            let listed = &self.rules.aggregates[rule.aggregate].children[collection];
            if self.sight.held.is_now(listed.table) {
                continue;
            }
            let is_open = match touched.root {
                Some(NetRow { before: None, .. }) => open[collection].is,
                Some(NetRow { after: None, .. }) => open[collection].was,
                _ => {
                    return Err(MapError::Children {
                        commit: self.commit,
                        event: rule.full_name(),
                        collection: listed.name.clone(),
                        table: self.rules.tables[listed.table].full_name(),
                    });
                }
            };
            if is_open {
                return Err(self.old_unknown(rule, Blank { table: listed.table, column: listed.link }));
            }
        }
        Ok(())
    }

    /// The event of the transaction that an event came of.
    fn cause(
        &self,
        rule: &EventRule,
        because: &Because,
        touched: &Touched<'_>,
        giver: &Giver,
        (group, cause_root, reference, cause_row): (&mut Group, &mut Vec<u8>, &mut Vec<u8>, &mut Vec<u8>),
    ) -> Result<Option<usize>, MapError> {
        if self.passed[because.event] {
            return Ok(None);
        }
        let table = self.rules.aggregates[rule.aggregate].root;
        let blank = Blank { table, column: because.via };
        let Some(NetRow { before, after }) = touched.root else { return Err(self.old_unknown(rule, blank)) };
        let (Some(state), is_gone) = (after.or(before), after.is_none()) else { return Ok(None) };
        let text = match state.get(because.via) {
            Cell::Text(text) => text,
            Cell::Null => return Ok(None),
            Cell::Unchanged | Cell::Unknown => return Err(self.old_unknown(rule, blank)),
        };
        let cause = &self.rules.events[because.event];
        let root = &self.rules.tables[self.rules.aggregates[cause.aggregate].root];
        prefix(cause.aggregate, reference);
        let start = reference.len();
        write_sorted(text, &root.columns[0].ty, reference);
        if is_gone {
            let mut moved = Vec::new();
            if self.store.get(&aggregate::left(reference), &mut moved)? {
                reference.truncate(start);
                reference.extend_from_slice(&moved);
            }
        }
        let mut cursor = Cursor::default();
        self.store.seek(reference, &mut cursor)?;
        if !cursor.key.starts_with(reference) || !self.load(group, cause.aggregate, &mut cursor)? {
            return Ok(None);
        }
        for &owner in group.owners.iter().rev() {
            let mut other = group.touched(self.rules, cause.aggregate, owner);
            let named = other.root.and_then(|root| if is_gone { root.before } else { root.after.or(root.before) });
            let is_it =
                named.map_or(other.root_key, |row| row.key(1).ok().and_then(|_| text_of(row.get(0)))) == Some(text);
            if !is_it {
                continue;
            }
            // Whatever else had the key is another row. A tombstone has no id.
            let is_tombstone = cause.compact && other.root.is_some_and(|root| root.after.is_none());
            if is_tombstone || !self.fires(cause, &mut other, giver, cause_root)? {
                return Ok(None);
            }
            self.row(cause, &other, cause_row)?;
            return Ok(Some(because.event));
        }
        Ok(None)
    }

    fn event<T>(&self, rule: &EventRule, made: Result<T, Missing>) -> Result<T, MapError> {
        made.map_err(|missing| MapError::Event {
            commit: self.commit,
            event: rule.full_name(),
            missing: Box::new(missing),
        })
    }

    fn old_unknown(&self, rule: &EventRule, Blank { table, column }: Blank) -> MapError {
        let table = &self.rules.tables[table];
        MapError::OldUnknown {
            commit: self.commit,
            event: rule.full_name(),
            table: table.full_name(),
            column: table.columns[column].name.clone(),
        }
    }
}

/// To whom a root has lost its record key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    ForGood,
    ToAnother,
}

fn text_of(cell: Cell<'_>) -> Option<&[u8]> {
    match cell {
        Cell::Text(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
