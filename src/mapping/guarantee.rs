//! Rules + catalog -> proofs: where the value of each field comes from, and what its transaction cannot say. Pure.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    catalog::CatalogTable,
    resolve::{Resolved, Told, ToldField},
    rules::{Aggregate, EventRule, Side, Test, Trigger},
};
use crate::{
    change::Identity,
    config::{Mask, Misfit},
};

/// What voids every proof that rests on a foreign key.
pub const CAVEAT: &str = "session_replication_role = replica and disabled triggers bypass foreign keys; what is written so may be told \
                          incompletely";

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
    /// What its transaction does not say: with any of these the event is refused.
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

/// What the transaction does not say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The keys that lead to it in the config.
    pub at: Vec<String>,
    /// What is needed.
    pub what: String,
    /// Why the transaction does not say it.
    pub why: String,
    /// What can be done now.
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
}

/// Why a value is not known.
struct Lack<'a> {
    why: String,
    /// `REPLICA IDENTITY FULL` of this table would say it.
    full: Option<&'a CatalogTable>,
}

type Known<'a> = Result<&'static str, Lack<'a>>;

/// Proves each event, or says what it lacks.
pub(crate) fn prove(resolved: &Resolved<'_>) -> Vec<EventSheet> {
    resolved
        .rules
        .events
        .iter()
        .zip(&resolved.told)
        .map(|(rule, told)| Prover::new(resolved, rule, told).sheet())
        .collect()
}

struct Prover<'a> {
    resolved: &'a Resolved<'a>,
    rule: &'a EventRule,
    told: &'a Told<'a>,
    aggregate: &'a Aggregate,
    root: &'a CatalogTable,
    occasions: BTreeSet<Occasion>,
    sheet: EventSheet,
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
        let occasions = rule.when.iter().flat_map(of_trigger).collect();
        let root = resolved.tables[aggregate.root];
        Prover { resolved, rule, told, aggregate, root, occasions, sheet: EventSheet::default() }
    }

    fn sheet(mut self) -> EventSheet {
        self.head();
        self.triggers();
        self.key();
        self.lists();
        for field in &self.told.fields {
            self.field(field);
        }
        self.condition_and_cause();
        self.sheet
    }

    fn head(&mut self) {
        let (rule, of) = (self.rule, &self.resolved.rules);
        let table = &of.tables[self.aggregate.root];
        let backfill = self.told.backfill.as_ref().map(|_| "backfill".to_owned());
        self.sheet = EventSheet {
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
        };
        if let Some(at) = &self.told.backfill {
            self.sheet.needs.push(Need {
                at: at.clone(),
                what: "`backfill`".into(),
                why: "rows that were there before need the snapshot that comes with the replica".into(),
                mend: "take `backfill` away until this version has it".into(),
            });
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
        let (rule, told) = (self.rule, self.told);
        for (trigger, at) in rule.when.iter().zip(&told.when) {
            let mut collections = BTreeSet::new();
            if let Trigger::All(tests) = trigger {
                for test in tests {
                    match test {
                        Test::Column(column, _) => {
                            let column = self.of_root(*column);
                            let what = format!("`when` asks how `{}` has changed", self.root.columns[column].name);
                            let known = self.old_of(self.root, column);
                            self.note(known, at, what, false);
                        }
                        Test::Children(collection, _) => drop(collections.insert(*collection)),
                    }
                }
            } else if *trigger == Trigger::Any {
                self.no_ops(at);
                collections.extend(0..self.aggregate.children.len());
            }
            for collection in collections {
                let (child, link) = self.child(collection);
                let name = &self.aggregate.children[collection].name;
                let what = format!("`when` asks which `{name}` were added or removed, and so where each hung before");
                let known = self.old_of(child, link);
                self.note(known, at, what, false);
            }
        }
    }

    /// What an update has left as it was has not changed: `any` must know what it was.
    fn no_ops(&mut self, at: &[String]) {
        let children = self.aggregate.children.iter().map(|collection| collection.table);
        let tables: BTreeSet<usize> = std::iter::once(self.aggregate.root).chain(children).collect();
        for index in tables {
            let table = self.resolved.tables[index];
            let columns = self.resolved.rules.tables[index].columns.iter();
            let unknown = columns.filter_map(|column| {
                let lack = self.old_of(table, table.column(&column.name)?).err()?;
                Some((format!("`when: any` asks whether `{}` has changed", column.name), lack))
            });
            // One of them is enough to say it.
            let unknown = { unknown }.next();
            if let Some((what, lack)) = unknown {
                self.note(Err(lack), at, what, false);
            }
        }
    }

    /// The record's key, and those that it had before.
    fn key(&mut self) {
        for column in &self.aggregate.key {
            let column = self.of_root(*column);
            let name = &self.root.columns[column].name;
            let at = vec!["aggregates".into(), self.aggregate.name.clone(), "key".into()];
            for occasion in self.occasions.clone() {
                let known = self.of_occasion(column, false, occasion);
                self.note(known, &at, format!("`{name}` makes the key of `{}`", self.sheet.event), false);
            }
            if self.rule.compact && self.occasions.contains(&Occasion::Changed) {
                let known = self.old_of(self.root, column);
                let what = format!("the tombstone on the old key, when `{name}` of `{}` changes", self.sheet.event);
                self.note(known, &at, what, false);
            }
        }
    }

    /// Whether all children are told.
    fn lists(&mut self) {
        let told = self.told;
        for (collection, at) in &told.lists {
            let (child, link) = self.child(*collection);
            let name = self.aggregate.children[*collection].name.clone();
            let what = format!("the list of `{name}`");
            let enforced = self.enforced(child, link);
            for occasion in self.occasions.clone() {
                match occasion {
                    Occasion::Created => match &enforced {
                        Ok(proof) => self.proof(proof),
                        Err(lack) => self.lack(at, &what, lack.clone()),
                    },
                    Occasion::Deleted if self.rule.compact => {}
                    Occasion::Deleted => match &enforced {
                        Ok(proof) => {
                            self.proof(proof);
                            let known = self.old_of(child, link);
                            self.note(known, at, what.clone(), false);
                        }
                        Err(lack) => self.lack(at, &what, lack.clone()),
                    },
                    Occasion::Changed | Occasion::Alone => {
                        let why = format!(
                            "when `{}` only changes, its transaction says nothing of the children that it does not touch",
                            self.root.full_name()
                        );
                        self.lack(at, &what, (why, LATER_FIELD.into()));
                    }
                }
            }
        }
    }

    /// Why no child can be there without its root; else why it can, and what mends it.
    fn enforced(&self, child: &CatalogTable, link: usize) -> Result<String, (String, String)> {
        let column = &child.columns[link].name;
        let (full, root) = (child.full_name(), self.root.full_name());
        let foreign = child.foreign_keys.iter().find(|foreign| {
            foreign.columns == [column.clone()] && foreign.to == (self.root.schema.clone(), self.root.name.clone())
        });
        match foreign {
            Some(foreign) if !foreign.valid => Err((
                format!(
                    "the foreign key `{full}.{column}` is not validated or not enforced, so that children may be there before their root"
                ),
                format!("ALTER TABLE {} VALIDATE CONSTRAINT ... makes it hold, or leave the list out", child.quoted()),
            )),
            Some(_) if child.triggers_disabled || self.root.triggers_disabled => {
                let table = if child.triggers_disabled { child } else { self.root };
                Err((
                    format!(
                        "triggers of `{}` that enforce the foreign key `{full}.{column}` are disabled",
                        table.full_name()
                    ),
                    format!("ALTER TABLE {} ENABLE TRIGGER ALL, or leave the list out", table.quoted()),
                ))
            }
            _ => Ok(format!(
                "no row of {full} can be without its {root}: its foreign key {column} is valid and enforced"
            )),
        }
    }

    fn field(&mut self, field: &'a ToldField<'a>) {
        let place = &field.place;
        let column = place.of();
        let mut from: Vec<String> = Vec::new();
        let mut known_on = |occasion: Occasion, source: &str| {
            let text = if self.occasions.len() == 1 {
                source.to_owned()
            } else {
                format!("{}: {source}", in_a_word(occasion))
            };
            if !from.contains(&text) {
                from.push(text);
            }
        };
        let mut lacks = Vec::new();
        let mut may_stop = None;
        if let Some(hop) = place.hops.first() {
            let keys = place.hops.iter().map(|hop| hop.key()).collect::<Vec<_>>().join("`, `");
            let why = format!(
                "it is in another table, `{}`, behind `{keys}` of `{}`, and the transaction need not touch that",
                place.table.full_name(),
                hop.from.full_name()
            );
            lacks.push(Lack { why, full: None });
        } else {
            for occasion in &self.occasions {
                if *occasion == Occasion::Deleted && self.rule.compact {
                    known_on(*occasion, "none: a tombstone");
                    continue;
                }
                let known = match field.collection {
                    None => self.of_occasion(place.column, place.old, *occasion),
                    Some(_) => self.of_child(place.table, place.column, place.old, *occasion),
                };
                match known {
                    Ok(source) => known_on(*occasion, source),
                    Err(lack) => lacks.push(lack),
                }
                if field.collection.is_some()
                    && *occasion == Occasion::Created
                    && column.toastable
                    && !place.table.says_old(place.column)
                {
                    may_stop = Some(format!(
                        "`{}`: a row of `{}` that is linked to a new root by UPDATE and not inserted, with a long value of `{}` that the update \
                         does not touch, is not in the log; ALTER TABLE {} REPLICA IDENTITY FULL says it",
                        field.name,
                        place.table.full_name(),
                        column.name,
                        place.table.quoted()
                    ));
                }
            }
        }
        let from = if lacks.is_empty() { from.join("; ") } else { "not in its transaction".into() };
        // What only another means can give decides what can be done.
        lacks.sort_by_key(|lack| lack.full.is_some());
        if let Some(lack) = lacks.into_iter().next() {
            self.note(Err(lack), &field.at, format!("`{}` of `{}`", field.name, self.sheet.event), true);
        }
        self.sheet.may_stop.extend(may_stop);
        let null_on_the_way = place.hops.iter().any(|hop| !hop.from.columns[hop.column].not_null);
        let json_type = match field.mask {
            Some(Mask::Sha256) => "string (SHA-256)".into(),
            _ => field.json_type.to_owned(),
        };
        self.sheet.fields.push(FieldSheet {
            field: field.name.clone(),
            json_type,
            nullable: !column.not_null || null_on_the_way || (place.old && self.occasions.contains(&Occasion::Created)),
            path: field.path.clone(),
            from,
        });
    }

    fn condition_and_cause(&mut self) {
        let rule = self.rule;
        let at = |key: &str| vec!["events".to_owned(), self.told.name.clone(), key.to_owned()];
        let (if_at, because_at) = (at("if"), at("because"));
        let mut needs = Vec::new();
        if let Some(condition) = &rule.condition {
            let sides = condition
                .old
                .iter()
                .map(|column| (*column, true))
                .chain(condition.new.iter().map(|column| (*column, false)));
            needs.extend(sides.map(|(column, old)| (column, old, &if_at, "`if` reads")));
        }
        if let Some(because) = &rule.because {
            needs.push((because.via, false, &because_at, "`because` reads"));
        }
        for (column, old, at, what) in needs {
            let column = self.of_root(column);
            for occasion in self.occasions.clone() {
                let known = self.of_occasion(column, old, occasion);
                let side = if old { "old." } else { "" };
                self.note(known, at, format!("{what} `{side}{}`", self.root.columns[column].name), false);
            }
        }
    }

    /// The place in the catalog's root of a column of the rules'.
    fn of_root(&self, column: usize) -> usize {
        let name = &self.resolved.rules.tables[self.aggregate.root].columns[column].name;
        self.root.column(name).expect("rules are made of the catalog's columns")
    }

    /// The table of a collection, and its link there.
    fn child(&self, collection: usize) -> (&'a CatalogTable, usize) {
        let collection = &self.aggregate.children[collection];
        let table = self.resolved.tables[collection.table];
        let name = &self.resolved.rules.tables[collection.table].columns[collection.link].name;
        (table, table.column(name).expect("rules are made of the catalog's columns"))
    }

    /// A value of the root.
    fn of_occasion(&self, column: usize, old: bool, occasion: Occasion) -> Known<'a> {
        let root = self.root;
        let found = &root.columns[column];
        match occasion {
            Occasion::Created if old => Ok("null: there was no row"),
            Occasion::Created => Ok("the inserted row"),
            Occasion::Changed if old => self.old_of(root, column),
            Occasion::Changed if found.toastable && !root.says_old(column) => {
                let why = format!(
                    "`{}` may be stored out of line (TOAST), and an update that does not touch such a value does not say it",
                    found.name
                );
                Err(Lack { why, full: Some(root) })
            }
            Occasion::Changed => Ok("the row after the update"),
            Occasion::Alone if root.primary_key == [found.name.clone()] => Ok("the children's foreign key"),
            Occasion::Alone => {
                let why = format!(
                    "when only children change, the transaction says of `{}` its primary key alone",
                    root.full_name()
                );
                Err(Lack { why, full: None })
            }
            Occasion::Deleted => self.old_of(root, column),
        }
    }

    /// A value of a child.
    fn of_child(&self, child: &'a CatalogTable, column: usize, old: bool, occasion: Occasion) -> Known<'a> {
        match occasion {
            Occasion::Created if !old => Ok("the inserted or linked child"),
            Occasion::Created => self.old_of(child, column),
            Occasion::Deleted => self.old_of(child, column),
            // What is wrong with the list as a whole is said once, of the list.
            Occasion::Changed | Occasion::Alone => Ok("the children"),
        }
    }

    /// A value as it was before.
    fn old_of(&self, table: &'a CatalogTable, column: usize) -> Known<'a> {
        let name = &table.columns[column].name;
        match table.identity {
            Identity::Full => return Ok("the old row (REPLICA IDENTITY FULL)"),
            _ if table.says_old(column) && table.primary_key.contains(name) => return Ok("the old row's key"),
            _ if table.says_old(column) => return Ok("the old row (its replica identity)"),
            _ => {}
        }
        let identity = match table.identity {
            Identity::Index => "the columns of its REPLICA IDENTITY index alone",
            _ => "its primary key alone (the default REPLICA IDENTITY)",
        };
        Err(Lack {
            why: format!("the log says of an old row of `{}` {identity}, not `{name}`", table.full_name()),
            full: Some(table),
        })
    }

    fn proof(&mut self, proof: &str) {
        if !self.sheet.because.iter().any(|said| said == proof) {
            self.sheet.because.push(proof.to_owned());
        }
    }

    /// Takes down what is lacking.
    fn note(&mut self, known: Known<'_>, at: &[String], what: String, is_field: bool) {
        let Err(Lack { why, full }) = known else { return };
        let or_else = if is_field { "leave the field out" } else { "do without it" };
        let mend = match full {
            Some(table) => {
                format!("ALTER TABLE {} REPLICA IDENTITY FULL, or {or_else} until the replica is there", table.quoted())
            }
            None if is_field => LATER_FIELD.into(),
            None => "it comes with the replica, which this version does not have; do without it until then".into(),
        };
        self.lack(at, &what, (why, mend));
    }

    fn lack(&mut self, at: &[String], what: &str, (why, mend): (String, String)) {
        let need = Need { at: at.to_vec(), what: what.to_owned(), why, mend };
        if !self.sheet.needs.contains(&need) {
            self.sheet.needs.push(need);
        }
    }
}

const LATER_FIELD: &str = "it comes with the replica, which this version does not have; leave it out until then";

fn in_a_word(occasion: Occasion) -> &'static str {
    match occasion {
        Occasion::Created => "created",
        Occasion::Changed => "changed",
        Occasion::Alone => "only children changed",
        Occasion::Deleted => "deleted",
    }
}

#[cfg(test)]
mod tests;
