//! Rules + catalog -> proofs: where the value of each field comes from, and for what the replica is needed. Pure.
//!
//! The log says new rows whole, but for long values that an update has not touched (TOAST), and of old rows the columns of the replica
//! identity. The table of whatever an event asks for beyond that is *held*: it is in the event's `needs`.
//!
//! | asked for | held is | unless |
//! |---|---|---|
//! | a column of the root as it is, when it has changed | the root | its values are never stored out of line, or the identity has it |
//! | the same, when only children have changed | the root | it is the primary key, which the children name |
//! | a column of the root as it was, also of one that is deleted | the root | the identity has it |
//! | `when: { column: ... }` | the root | the identity has the column |
//! | `when: any`, when the root has changed | the root | the identity has all mapped columns |
//! | `when: any`, `{ child: changed }`, `{ child: any }` | the children | the identity has all mapped columns |
//! | `{ child: added }`, `{ child: removed }` | the children | the identity has the foreign key |
//! | the record's key as it was: when the root has changed, and always with `compact` | the root | the identity has it |
//! | `if` or `because`, when only children have changed | the root | |
//! | `because` | what `when` and `if` of the cause need | |
//! | all children of a new root | the children | the foreign key is valid and enforced |
//! | all children of a deleted root | the children | that, and the identity has the foreign key |
//! | all children of a root that is neither | the children | |
//! | a look-up | each table on the way | |
//! | `backfill` | the root, the children that it lists | |
//!
//! A child's field is asked for as its list is, and besides as it was in an event of a deleted root, or by `old.`. What is asked of a
//! deleted root in a state topic is its key alone.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    catalog::CatalogTable,
    resolve::{Resolved, Told, ToldField},
    rules::{Aggregate, ChildChange, EventRule, Rules, Side, Test, Trigger},
};
use crate::{
    change::Identity,
    config::{Delivery, Mask, Misfit},
};

/// What voids every proof that rests on a foreign key.
pub const CAVEAT: &str = "session_replication_role = replica and disabled triggers bypass foreign keys; what is written so may be told \
                          incompletely";

/// What is promised, and what it takes.
#[derive(Debug, Default)]
pub struct Proof {
    /// Whole.
    pub rules: Rules,
    /// One per event, in order.
    pub events: Vec<EventSheet>,
    /// The tables that the replica has.
    pub held: Vec<HeldSheet>,
}

/// A table that the replica has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldSheet {
    /// `schema.table`.
    pub table: String,
    /// Those that are kept of each row.
    pub columns: Vec<String>,
    /// Which cannot be made without it.
    pub events: Vec<String>,
    /// About how many; `None` when the table was never analyzed.
    pub rows: Option<u64>,
    /// About how many they take in the topic, before compression.
    pub bytes: Option<u64>,
}

/// What is promised of one event.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EventSheet {
    /// `BookingCreated.v1`.
    pub event: String,
    /// `ce_type`.
    #[serde(rename = "type")]
    pub ce_type: String,
    /// As the config calls it.
    pub aggregate: String,
    /// When it happens, in words.
    pub when: Vec<String>,
    /// Where it goes.
    pub topic: String,
    /// The columns that make the record's key.
    pub key: Vec<String>,
    /// What is promised of the order.
    pub order: String,
    /// The payload.
    pub fields: Vec<FieldSheet>,
    /// What makes it complete in its transaction.
    pub because: Vec<String>,
    /// What would stop the run if it ever happened.
    pub may_stop: Vec<String>,
    /// What its transaction does not say, and the replica does.
    pub replica: Vec<FromReplica>,
    /// What nobody can give it: with any of these the event is refused.
    pub needs: Vec<Need>,
    /// What voids all this.
    pub caveat: &'static str,
}

/// One field of a payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldSheet {
    /// `tickets[].seat`.
    pub field: String,
    /// `string`, `integer`, ...
    pub json_type: String,
    /// It may be null.
    pub nullable: bool,
    /// The path, as it is written.
    pub path: String,
    /// Where its value comes from.
    pub from: String,
}

/// What is taken from the replica of a table, for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FromReplica {
    /// `schema.table`.
    pub table: String,
    /// What of the event needs it: `email`, `when`, `the list of tickets`.
    pub of: Vec<String>,
    /// Why the transaction does not say it.
    pub why: String,
    /// The SQL after which it does.
    pub instead: Option<String>,
}

/// What an event cannot have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The keys that lead to it in the config.
    pub at: Vec<String>,
    /// What is needed.
    pub what: String,
    /// Why it is not to be had.
    pub why: String,
    /// What can be done.
    pub mend: String,
}

impl From<Need> for Misfit {
    fn from(need: Need) -> Misfit {
        Misfit { path: need.at, said: format!("{}: {}; {}", need.what, need.why, need.mend) }
    }
}

/// What has happened to the root when an event is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Occasion {
    Created,
    Changed,
    /// Only its children were touched.
    Alone,
    Deleted,
    /// It was there before the first event.
    Backfill,
}

/// Why the transaction does not say a value.
#[derive(Clone, Debug)]
struct Lack {
    /// Index in `Rules::tables`: the replica of it does.
    table: usize,
    why: String,
    /// After this SQL the transaction does.
    instead: Option<String>,
}

/// Where a value is, in words.
type Known = Result<&'static str, Lack>;

const NO_ROW: &str = "null: there was no row";

/// Proves each event; says in the rules which tables are held, and for which events.
pub(crate) fn prove(resolved: Resolved<'_>, delivery: Delivery) -> Proof {
    let events = resolved.rules.events.iter().zip(&resolved.told);
    let mut proven: Vec<_> = events.map(|(rule, told)| Prover::new(&resolved, rule, told).prove()).collect();
    for (event, rule) in resolved.rules.events.iter().enumerate() {
        let Some(because) = &rule.because else { continue };
        let cause = &proven[because.event];
        let why = format!("without it nobody knows whether `{}` has happened", cause.sheet.event);
        for table in cause.fires.clone() {
            if !proven[event].needs.contains(&table) {
                let lack = Lack { table, why: why.clone(), instead: None };
                proven[event].take(lack, "`because`".into(), &resolved);
            }
        }
    }
    let held: BTreeSet<usize> = proven.iter().flat_map(|proven| proven.needs.iter().copied()).collect();
    let sheets = held.iter().map(|table| held_sheet(*table, &resolved, &proven)).collect();
    let Resolved { mut rules, .. } = resolved;
    held.iter().for_each(|table| rules.tables[*table].held = true);
    let mut events = Vec::new();
    for (rule, Proven { mut sheet, needs, may_stop, .. }) in rules.events.iter_mut().zip(proven) {
        rule.needs = needs.into_iter().collect();
        // What the replica has anyway stops nothing.
        sheet.may_stop =
            may_stop.into_iter().filter(|(table, _)| !held.contains(table)).map(|(_, stop)| stop).collect();
        if delivery == Delivery::AtLeastOnce {
            sheet.needs.extend(out_of_step(&sheet));
        }
        events.push(sheet);
    }
    Proof { rules, events, held: sheets }
}

/// What an event that takes something from the replica lacks, when a transaction of Kafka's does not hold both together.
fn out_of_step(sheet: &EventSheet) -> Option<Need> {
    let first = sheet.replica.first()?;
    let of: BTreeSet<&str> = sheet.replica.iter().flat_map(|taken| taken.of.iter().map(String::as_str)).collect();
    let mut instead: Vec<&str> = Vec::new();
    for taken in &sheet.replica {
        instead.extend(taken.instead.as_deref().filter(|sql| !instead.contains(sql)));
    }
    let all = sheet.replica.iter().all(|taken| taken.instead.is_some());
    let or = if all { format!("or {}", instead.join(" and ")) } else { "or do without them".into() };
    Some(Need {
        at: ["sink", "kafka", "delivery"].map(String::from).to_vec(),
        what: format!("`{}` needs the replica for {}", sheet.event, of.into_iter().collect::<Vec<_>>().join(", ")),
        why: format!(
            "{}, and the replica agrees with the events only when one transaction of Kafka's writes both, which `at_least_once` has not",
            first.why
        ),
        mend: format!("write `exactly_once`, {or}"),
    })
}

fn held_sheet(table: usize, resolved: &Resolved<'_>, proven: &[Proven]) -> HeldSheet {
    let (mapped, of) = (&resolved.rules.tables[table], resolved.tables[table]);
    let columns: Vec<_> = mapped.columns.iter().filter_map(|column| of.column(&column.name)).collect();
    HeldSheet {
        table: mapped.full_name(),
        columns: mapped.columns.iter().map(|column| column.name.clone()).collect(),
        events: { proven.iter() }
            .filter(|proven| proven.needs.contains(&table))
            .map(|proven| proven.sheet.event.clone())
            .collect(),
        rows: of.rows,
        bytes: of.rows.map(|rows| rows.saturating_mul(record_bytes(of, &columns, mapped.key_len))),
    }
}

/// About how many bytes the record of a row takes in the replica's topic, without compression: key and value as `kept.rs` writes them.
fn record_bytes(table: &CatalogTable, columns: &[usize], key_len: usize) -> u64 {
    /// Lengths, offset and time of a record in its batch.
    const RECORD_BYTES: u64 = 16;
    /// The zero behind the table's name; format and number of the load.
    const FRAME_BYTES: u64 = 1 + 1 + 4;
    /// Kind and length of a value.
    const CELL_BYTES: u64 = 1 + 4;
    let cell = |column: &usize| CELL_BYTES + table.columns[*column].text_bytes();
    let key: u64 = columns[..key_len].iter().map(cell).sum();
    let value: u64 = columns.iter().map(cell).sum();
    RECORD_BYTES + FRAME_BYTES + table.full_name().len() as u64 + key + value
}

/// What was found of one event.
#[derive(Debug, Default)]
struct Proven {
    sheet: EventSheet,
    /// Indexes in `Rules::tables`.
    needs: BTreeSet<usize>,
    /// Those of them without which it is not known whether it has happened.
    fires: BTreeSet<usize>,
    /// What would stop the run, unless the table is held.
    may_stop: Vec<(usize, String)>,
}

impl Proven {
    /// Takes down what the replica must give.
    fn take(&mut self, lack: Lack, of: String, resolved: &Resolved<'_>) {
        self.needs.insert(lack.table);
        let table = resolved.rules.tables[lack.table].full_name();
        let known = self.sheet.replica.iter_mut().find(|taken| taken.table == table && taken.why == lack.why);
        match known {
            Some(taken) if taken.of.contains(&of) => {}
            Some(taken) => taken.of.push(of),
            None => {
                self.sheet.replica.push(FromReplica { table, of: vec![of], why: lack.why, instead: lack.instead });
            }
        }
    }
}

struct Prover<'a> {
    resolved: &'a Resolved<'a>,
    rule: &'a EventRule,
    told: &'a Told<'a>,
    aggregate: &'a Aggregate,
    occasions: Vec<Occasion>,
    proven: Proven,
}

impl<'a> Prover<'a> {
    fn new(resolved: &'a Resolved<'a>, rule: &'a EventRule, told: &'a Told<'a>) -> Self {
        let aggregate = &resolved.rules.aggregates[rule.aggregate];
        let of_trigger = |trigger: &Trigger| match trigger {
            Trigger::Created => vec![Occasion::Created],
            Trigger::Deleted => vec![Occasion::Deleted],
            Trigger::Any if aggregate.children.is_empty() => {
                vec![Occasion::Created, Occasion::Changed, Occasion::Deleted]
            }
            Trigger::Any => vec![Occasion::Created, Occasion::Changed, Occasion::Alone, Occasion::Deleted],
            Trigger::All(tests) if tests.iter().any(|test| matches!(test, Test::Column(..))) => vec![Occasion::Changed],
            Trigger::All(_) => vec![Occasion::Changed, Occasion::Alone],
        };
        let mut occasions: BTreeSet<_> = rule.when.iter().flat_map(of_trigger).collect();
        if rule.backfill {
            occasions.insert(Occasion::Backfill);
        }
        let occasions = occasions.into_iter().collect();
        Prover { resolved, rule, told, aggregate, occasions, proven: Proven::default() }
    }

    fn prove(mut self) -> Proven {
        self.proven.sheet = self.head();
        self.triggers();
        self.condition();
        self.proven.fires = self.proven.needs.clone();
        self.key();
        self.lists();
        for field in &self.told.fields {
            self.field(field);
        }
        self.cause();
        self.proven
    }

    fn head(&self) -> EventSheet {
        let rule = self.rule;
        let table = &self.resolved.rules.tables[self.aggregate.root];
        let backfill = rule.backfill.then(|| "backfill".to_owned());
        EventSheet {
            event: format!("{}.v{}", rule.name, rule.version),
            ce_type: rule.ce_type.clone(),
            aggregate: self.aggregate.name.clone(),
            when: rule.when.iter().map(|trigger| self.in_words(trigger)).chain(backfill).collect(),
            topic: rule.topic.name.clone(),
            key: self.aggregate.key.iter().map(|column| table.columns[*column].name.clone()).collect(),
            order: match rule.compact {
                true => "the latest per key; a deletion is a tombstone".into(),
                false => "per key, in the order of commits; of one transaction, as declared".into(),
            },
            caveat: CAVEAT,
            ..EventSheet::default()
        }
    }

    fn in_words(&self, trigger: &Trigger) -> String {
        let side = |side: &Side| match side {
            Side::Anything => "*".to_owned(),
            Side::Null => "null".to_owned(),
            Side::Text(text) => text.trim_end().to_owned(),
        };
        let test = |test: &Test| match test {
            Test::Column(column, change) => {
                let name = &self.resolved.rules.tables[self.aggregate.root].columns[*column].name;
                match (&change.from, &change.to) {
                    (Side::Anything, Side::Anything) => format!("{name}: changed"),
                    (from, to) => format!("{name}: {} -> {}", side(from), side(to)),
                }
            }
            Test::Children(collection, change) => {
                format!("{}: {}", self.aggregate.children[*collection].name, format!("{change:?}").to_lowercase())
            }
        };
        match trigger {
            Trigger::Created => "created".into(),
            Trigger::Deleted => "deleted".into(),
            Trigger::Any => "any".into(),
            Trigger::All(tests) => tests.iter().map(test).collect::<Vec<_>>().join(", "),
        }
    }

    /// What the triggers themselves must know.
    fn triggers(&mut self) {
        let (rule, root) = (self.rule, self.aggregate.root);
        for trigger in &rule.when {
            match trigger {
                Trigger::Created | Trigger::Deleted => {}
                Trigger::Any => {
                    self.old_row(root);
                    for collection in 0..self.aggregate.children.len() {
                        self.old_row(self.aggregate.children[collection].table);
                    }
                }
                Trigger::All(tests) => {
                    for test in tests {
                        match test {
                            Test::Column(column, _) => {
                                let known = self.old_of(root, self.place(root, *column));
                                self.note(known, "`when`");
                            }
                            Test::Children(collection, change) => {
                                let of = &self.aggregate.children[*collection];
                                let known = self.old_of(of.table, self.place(of.table, of.link));
                                self.note(known, "`when`");
                                if matches!(change, ChildChange::Changed | ChildChange::Any) {
                                    self.old_row(of.table);
                                }
                            }
                        }
                    }
                }
            }
        }
        if rule.backfill {
            let lack = there_before(root);
            self.note(Err(lack), "`when`");
        }
    }

    /// What an update has left as it was has not changed: who asks for any change must know all that was.
    fn old_row(&mut self, table: usize) {
        for column in 0..self.resolved.rules.tables[table].columns.len() {
            let known = self.old_of(table, self.place(table, column));
            self.note(known, "`when`");
        }
    }

    fn condition(&mut self) {
        let Some(condition) = &self.rule.condition else { return };
        let sides = [(&condition.old, true), (&condition.new, false)];
        for occasion in self.occasions.clone() {
            if occasion == Occasion::Alone {
                let lack = self.untouched_root();
                self.note(Err(lack), "`if`");
                continue;
            }
            for (column, old) in sides.iter().flat_map(|(columns, old)| columns.iter().map(|column| (*column, *old))) {
                // Of a root that is deleted all of `new` is null.
                if old || occasion != Occasion::Deleted {
                    let known = self.of_root(self.place(self.aggregate.root, column), old, occasion);
                    self.note(known, "`if`");
                }
            }
        }
    }

    /// The record's key, and those that it had before.
    fn key(&mut self) {
        let root = self.aggregate.root;
        for column in &self.aggregate.key {
            let column = self.place(root, *column);
            for occasion in self.occasions.clone() {
                let known = self.of_root(column, false, occasion);
                self.note(known, "the record's key");
            }
            if self.rule.compact || self.occasions.contains(&Occasion::Changed) {
                let known = self.old_of(root, column);
                self.note(known, "the key that it had");
            }
        }
    }

    /// Whether all children are told.
    fn lists(&mut self) {
        for &collection in &self.told.lists {
            let of = &self.aggregate.children[collection];
            let name = format!("the list of `{}`", of.name);
            for occasion in self.occasions.clone() {
                if self.is_tombstone(occasion) {
                    continue;
                }
                if let (Occasion::Created | Occasion::Deleted, Ok(proof)) = (occasion, self.enforced(collection))
                    && !self.proven.sheet.because.contains(&proof)
                {
                    self.proven.sheet.because.push(proof);
                }
                if occasion == Occasion::Created {
                    self.may_stop(of.table, self.place(of.table, of.link), &name);
                }
                let known = self.list(collection, occasion);
                self.note(known, &name);
            }
        }
    }

    fn field(&mut self, field: &'a ToldField<'a>) {
        let place = &field.place;
        let first = place.hops.first().map_or(place.column, |hop| hop.column);
        let of = format!("`{}`", field.name);
        let mut from: Vec<String> = Vec::new();
        for occasion in self.occasions.clone() {
            let known = if self.is_tombstone(occasion) {
                Ok("none: a tombstone")
            } else {
                self.value(field.collection, first, place.old, occasion)
            };
            if occasion == Occasion::Created
                && let Some(collection) = field.collection
            {
                self.may_stop(self.aggregate.children[collection].table, first, &of);
            }
            let source = match &known {
                Ok(source) if place.hops.is_empty() || *source == NO_ROW || self.is_tombstone(occasion) => {
                    (*source).to_owned()
                }
                Err(lack) if place.hops.is_empty() => format!("the replica: {}", lack.why),
                Ok(_) | Err(_) => {
                    let keys: Vec<_> = place.hops.iter().map(|hop| hop.key()).collect();
                    format!("the replica: a row of `{}`, behind `{}`", place.table.full_name(), keys.join("`, `"))
                }
            };
            self.note(known, &of);
            let text = match self.occasions.len() {
                1 => source,
                _ => format!("{}: {source}", in_a_word(occasion)),
            };
            if !from.contains(&text) {
                from.push(text);
            }
        }
        for table in &field.hops {
            let why = "look-ups lead there, and the transaction need not touch the row".into();
            self.note(Err(Lack { table: *table, why, instead: None }), &of);
        }
        let null_on_the_way = place.hops.iter().any(|hop| !hop.enforced || !hop.from.columns[hop.column].not_null);
        let no_row =
            place.old && [Occasion::Created, Occasion::Backfill].iter().any(|one| self.occasions.contains(one));
        let json_type = match field.mask {
            Some(Mask::Sha256) => "string (SHA-256)".into(),
            _ => field.json_type.to_owned(),
        };
        self.proven.sheet.fields.push(FieldSheet {
            field: field.name.clone(),
            json_type,
            nullable: !place.of().not_null || null_on_the_way || no_row,
            path: field.path.clone(),
            from: from.join("; "),
        });
    }

    fn cause(&mut self) {
        let Some(because) = &self.rule.because else { return };
        for occasion in self.occasions.clone() {
            let known = match occasion {
                Occasion::Alone => Err(self.untouched_root()),
                // Rows that were there before have no cause, and tombstones say none.
                Occasion::Backfill => continue,
                _ if self.is_tombstone(occasion) => continue,
                _ => self.of_root(self.place(self.aggregate.root, because.via), false, occasion),
            };
            self.note(known, "`because`");
        }
    }

    fn is_tombstone(&self, occasion: Occasion) -> bool {
        self.rule.compact && occasion == Occasion::Deleted
    }

    /// The place in the catalog's table of a column of the rules'. All below is about these.
    fn place(&self, table: usize, column: usize) -> usize {
        let name = &self.resolved.rules.tables[table].columns[column].name;
        self.resolved.tables[table].column(name).expect("rules are made of the catalog's columns")
    }

    /// A value of the root, or of a child in a list.
    fn value(&self, collection: Option<usize>, column: usize, old: bool, occasion: Occasion) -> Known {
        let Some(collection) = collection else { return self.of_root(column, old, occasion) };
        let table = self.aggregate.children[collection].table;
        let listed = self.list(collection, occasion)?;
        match occasion {
            Occasion::Created if !old => Ok(listed),
            _ => self.old_of(table, column),
        }
    }

    /// A value of the root.
    fn of_root(&self, column: usize, old: bool, occasion: Occasion) -> Known {
        let root = self.aggregate.root;
        let table = self.resolved.tables[root];
        let found = &table.columns[column];
        match occasion {
            Occasion::Created | Occasion::Backfill if old => Ok(NO_ROW),
            Occasion::Created => Ok("the inserted row"),
            Occasion::Backfill => Err(there_before(root)),
            Occasion::Changed if !old && found.toastable && !table.says_old(column) => {
                let why = format!(
                    "`{}` may be stored out of line (TOAST), and an update that does not touch such a value does not say it",
                    found.name
                );
                Err(Lack { table: root, why, instead: Some(full_identity(table)) })
            }
            Occasion::Changed if !old => Ok("the row after the update"),
            Occasion::Alone if table.primary_key == [found.name.clone()] => Ok("the children's foreign key"),
            Occasion::Alone => Err(self.untouched_root()),
            Occasion::Changed | Occasion::Deleted => self.old_of(root, column),
        }
    }

    /// All children of a root.
    fn list(&self, collection: usize, occasion: Occasion) -> Known {
        let of = &self.aggregate.children[collection];
        match occasion {
            Occasion::Created => self.enforced(collection).map(|_| "the inserted or linked child"),
            Occasion::Deleted => {
                self.enforced(collection)?;
                self.old_of(of.table, self.place(of.table, of.link))
            }
            Occasion::Backfill => Err(there_before(of.table)),
            Occasion::Changed | Occasion::Alone => {
                let root = self.resolved.tables[self.aggregate.root].full_name();
                let why = format!(
                    "when `{root}` only changes, its transaction says nothing of the children that it does not touch"
                );
                Err(Lack { table: of.table, why, instead: None })
            }
        }
    }

    /// Why no child can be there without its root; else why it can, and what mends it.
    fn enforced(&self, collection: usize) -> Result<String, Lack> {
        let of = &self.aggregate.children[collection];
        let (child, root) = (self.resolved.tables[of.table], self.resolved.tables[self.aggregate.root]);
        let column = &child.columns[self.place(of.table, of.link)].name;
        let (full, root_full) = (child.full_name(), root.full_name());
        if of.enforced {
            return Ok(format!(
                "no row of {full} can be without its {root_full}: its foreign key {column} is valid and enforced"
            ));
        }
        let disabled = [child, root].into_iter().find(|table| table.triggers_disabled);
        let (why, instead) = match disabled {
            Some(table) => (
                format!(
                    "triggers of `{}` that enforce the foreign key `{full}.{column}` are disabled",
                    table.full_name()
                ),
                format!("ALTER TABLE {} ENABLE TRIGGER ALL", table.quoted()),
            ),
            None => (
                format!(
                    "the foreign key `{full}.{column}` is not validated or not enforced, so that children may be there without their root"
                ),
                format!("ALTER TABLE {} VALIDATE CONSTRAINT ...", child.quoted()),
            ),
        };
        Err(Lack { table: of.table, why, instead: Some(instead) })
    }

    /// A value as it was before.
    fn old_of(&self, table: usize, column: usize) -> Known {
        let of = self.resolved.tables[table];
        match of.identity {
            Identity::Full => return Ok("the old row (REPLICA IDENTITY FULL)"),
            _ if of.says_old(column) && of.primary_key.contains(&of.columns[column].name) => {
                return Ok("the old row's key");
            }
            _ if of.says_old(column) => return Ok("the old row (its replica identity)"),
            _ => {}
        }
        let identity = match of.identity {
            Identity::Index => "the columns of its REPLICA IDENTITY index alone",
            _ => "its primary key alone (the default REPLICA IDENTITY)",
        };
        let why = format!("the log says of an old row of `{}` {identity}", of.full_name());
        Err(Lack { table, why, instead: Some(full_identity(of)) })
    }

    fn untouched_root(&self) -> Lack {
        let table = self.aggregate.root;
        let why = format!(
            "when only children change, the transaction says of `{}` its primary key alone",
            self.resolved.tables[table].full_name()
        );
        Lack { table, why, instead: None }
    }

    /// A child that is linked by UPDATE to a new root has values that its update does not touch.
    fn may_stop(&mut self, table: usize, column: usize, of: &str) {
        let child = self.resolved.tables[table];
        if !child.columns[column].toastable || child.says_old(column) {
            return;
        }
        let (full, column) = (child.full_name(), &child.columns[column].name);
        let stop = format!(
            "{of}: a row of `{full}` that is linked to a new root by UPDATE and not inserted, with a long value of `{column}` that the \
             update does not touch, is not in the log; {} says it",
            full_identity(child)
        );
        if !self.proven.may_stop.iter().any(|(_, said)| *said == stop) {
            self.proven.may_stop.push((table, stop));
        }
    }

    fn note(&mut self, known: Known, of: &str) {
        if let Err(lack) = known {
            self.proven.take(lack, of.to_owned(), self.resolved);
        }
    }
}

/// What is in no transaction at all.
fn there_before(table: usize) -> Lack {
    let why = "`backfill` tells of rows that were there before the first event".into();
    Lack { table, why, instead: None }
}

fn full_identity(table: &CatalogTable) -> String {
    format!("ALTER TABLE {} REPLICA IDENTITY FULL", table.quoted())
}

fn in_a_word(occasion: Occasion) -> &'static str {
    match occasion {
        Occasion::Created => "created",
        Occasion::Changed => "changed",
        Occasion::Alone => "only children changed",
        Occasion::Deleted => "deleted",
        Occasion::Backfill => "backfill",
    }
}

#[cfg(test)]
mod tests;
