//! The mapped tables of the model database: random statements on roots and their parts, and the events that must come of them.
//!
//! What is expected is found by comparing whole tables before and after, by ids that only the model knows. mapping/tests.rs does so for
//! any schema and any rule; here it is one small schema, so that what crashes do to its events is judged to the byte.

use std::collections::BTreeMap;

use fastrand::Rng;
use jiff::Timestamp;

use crate::{
    change::Micros,
    lsn::Lsn,
    mapping::catalog::{Catalog, samples::table},
    postgres::compose::{self, Cell},
};

pub(super) const ROOT: u32 = 16_402;
pub(super) const PART: u32 = 16_403;
/// A table as the log has it: oid, name, columns.
type Relation = (u32, &'static str, &'static [(bool, &'static str, u32, i32)]);
/// What the log says of the two tables.
pub(super) const RELATIONS: [Relation; 2] = [
    (ROOT, "root", &[(true, "id", 23, -1), (true, "v", 25, -1)]),
    (PART, "part", &[(true, "id", 23, -1), (true, "root_id", 23, -1), (true, "n", 23, -1)]),
];
/// Where transactions come from that are left out.
pub(super) const IGNORED_ORIGIN: &str = "elsewhere";
/// The prefix of the message that says which transaction it is.
pub(super) const CONTEXT: &str = "ctx";
pub(super) const ROOT_TOPIC: &str = "sim.root";
pub(super) const STATE_TOPIC: &str = "sim.state";
/// Roots' keys, in one lane each; the state topic's are in others.
const KEYS: std::ops::Range<u8> = 10..22;
const STATE_LANES: u8 = 100;
/// A config's members.
pub(super) const CONFIG: &str = "
    ignore_origin: [elsewhere],
    context: { prefix: ctx, xid: xid },
    aggregates: {
        Root: { root: root, topic: sim.root, children: { parts: part.root_id } },
        State: { root: root, topic: sim.state },
    },
    events: {
        Opened: { of: Root, when: created, data: { id: id, v: v, parts: { each: parts, data: { id: id, n: n } } } },
        Changed: { of: Root, when: { v: changed }, data: { id: id, v: v, was: old.v } },
        PartsChanged: { of: Root, when: { parts: any }, data: { id: id } },
        Closed: { of: Root, when: deleted, data: { id: id, v: v, parts: { each: parts, data: { id: id, n: n } } } },
        Latest: { of: State, when: any, compact: true, data: { id: id, v: v } },
    }";

/// In the id of the event that its transaction tells all of.
pub(super) const COMPLETE: &str = "-Opened.";
/// Beside them, what needs rows that a transaction does not carry.
pub(super) const HELD: &str = "
        Told: { of: Root, when: [created, { v: changed }, { parts: any }], data: {
            id: id, v: v, parts: { each: parts, data: { id: id, n: n, of: root.v, was: old.root.v } } } },
    }";

/// What the database says of the tables. The log has old rows whole, unless rows are held in their place.
pub(super) fn catalog(held: bool) -> Catalog {
    let root = table("root", 1, &["id integer", "v text!"]);
    let part = table("part", 1, &["id integer", "root_id integer", "n integer!"]).foreign("root_id", "root", "id");
    Catalog { tables: if held { vec![root, part] } else { vec![root.full(), part.full()] } }
}

/// The rows of a table by the names of its columns, as a load gives them.
pub(super) fn loaded(tables: &Tables, table: &str) -> Vec<BTreeMap<&'static str, Option<String>>> {
    let named = |table: usize, cells: Vec<Option<String>>| {
        RELATIONS[table].2.iter().map(|(_, name, ..)| *name).zip(cells).collect()
    };
    match table {
        "root" => tables.roots.values().map(|root| named(0, root.cells())).collect(),
        "part" => tables.parts.values().map(|part| named(1, part.cells())).collect(),
        table => panic!("{table} is not held"),
    }
}

/// The rows of both tables, by ids that only the model knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    roots: BTreeMap<u64, Root>,
    parts: BTreeMap<u64, Part>,
    next_id: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Root {
    key: u8,
    v: u8,
}

#[derive(Clone, Debug, PartialEq)]
struct Part {
    key: u16,
    root: Option<u8>,
    n: u8,
}

/// An event that a transaction must become, but for its epoch.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// Its place among the events of its transaction.
    pub(super) index: u64,
    /// What is in order together: a root's key in one topic.
    pub(super) lane: u8,
    /// Its headers and its data.
    pub(super) text: String,
}

/// The transaction that events are of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of {
    pub(super) xid: u32,
    pub(super) commit: Lsn,
    pub(super) time: Micros,
}

/// The lane of a record.
pub(super) fn lane(topic: &str, key: &str) -> u8 {
    let key: u8 = key.parse().expect("the key of a root");
    if topic == STATE_TOPIC { key + STATE_LANES } else { key }
}

impl Root {
    fn cells(&self) -> Vec<Option<String>> {
        vec![Some(self.key.to_string()), Some(format!("v{}", self.v))]
    }

    fn data(&self) -> String {
        format!(r#""id":{},"v":"v{}""#, self.key, self.v)
    }
}

impl Part {
    fn cells(&self) -> Vec<Option<String>> {
        vec![Some(self.key.to_string()), self.root.map(|root| root.to_string()), Some(self.n.to_string())]
    }
}

fn with<T>(cells: &[Option<String>], write: impl FnOnce(&[Cell<'_>]) -> T) -> T {
    let cells: Vec<_> = cells.iter().map(|cell| cell.as_ref().map_or(Cell::Null, |text| Cell::Text(text))).collect();
    write(&cells)
}

fn inserted(table: u32, new: &[Option<String>]) -> Vec<u8> {
    with(new, |new| compose::insert(table, new))
}

/// An old row by its key alone.
fn by_key(old: &[Option<String>]) -> Vec<Option<String>> {
    old.iter().enumerate().map(|(at, cell)| cell.clone().filter(|_| at == 0)).collect()
}

/// A transaction on the tables, while it is written.
struct Writing<'a> {
    rng: &'a mut Rng,
    now: Tables,
    /// The log has of old rows only their key, and of a text that is as it was nothing.
    held: bool,
    log: Vec<Vec<u8>>,
}

impl Tables {
    /// The statements of a random transaction, as the log has them, and the tables after it.
    pub(super) fn write(&self, rng: &mut Rng, held: bool) -> (Vec<Vec<u8>>, Tables) {
        let statements = if rng.u8(..6) == 0 { rng.usize(8..30) } else { rng.usize(1..5) };
        let mut writing = Writing { rng, now: self.clone(), held, log: Vec::new() };
        for _ in 0..statements {
            writing.statement();
        }
        (writing.log, writing.now)
    }
}

impl Writing<'_> {
    fn statement(&mut self) {
        let (root, part) = (self.some_root(), self.some_part());
        match (self.rng.u8(..12), root, part) {
            (0..=2, _, _) => self.insert_root(),
            (3 | 4, Some(id), _) => {
                let v = self.rng.u8(..3);
                self.update_root(id, |root| root.v = v);
            }
            (5, Some(id), _) => self.delete_root(id),
            (6, Some(id), _) => self.rekey(id),
            (7, _, Some(id)) => {
                let n = self.rng.u8(..3);
                self.update_part(id, |part| part.n = n);
            }
            (8, _, Some(id)) => {
                // A child that moves, or is left alone.
                let to = self.some_root().filter(|_| self.rng.u8(..4) > 0).map(|id| self.now.roots[&id].key);
                self.update_part(id, |part| part.root = to);
            }
            (9, _, Some(id)) => self.delete_part(id),
            (_, Some(id), _) => self.insert_part(Some(id)),
            _ => self.insert_part(None),
        }
    }

    fn updated(&mut self, table: u32, old: &[Option<String>], new: &[Option<String>]) {
        if !self.held {
            return self.log.push(with(old, |old| with(new, |new| compose::update(table, Some((b'O', old)), new))));
        }
        let key = by_key(old);
        let message = with(&key, |key| {
            with(new, |cells| {
                let mut cells = cells.to_vec();
                if table == ROOT && old[1] == new[1] {
                    cells[1] = Cell::Unchanged;
                }
                compose::update(table, (old[0] != new[0]).then_some((b'K', key)), &cells)
            })
        });
        self.log.push(message);
    }

    fn deleted(&mut self, table: u32, old: &[Option<String>]) {
        let message = match self.held {
            true => with(&by_key(old), |key| compose::delete(table, b'K', key)),
            false => with(old, |old| compose::delete(table, b'O', old)),
        };
        self.log.push(message);
    }

    fn some_root(&mut self) -> Option<u64> {
        let nth = self.rng.usize(..self.now.roots.len().max(1));
        self.now.roots.keys().nth(nth).copied()
    }

    fn some_part(&mut self) -> Option<u64> {
        let nth = self.rng.usize(..self.now.parts.len().max(1));
        self.now.parts.keys().nth(nth).copied()
    }

    fn insert_root(&mut self) {
        let (key, v) = (self.rng.u8(KEYS), self.rng.u8(..3));
        if self.now.roots.values().any(|root| root.key == key) {
            return;
        }
        let id = self.next_id();
        let root = Root { key, v };
        self.log.push(inserted(ROOT, &root.cells()));
        self.now.roots.insert(id, root);
        for _ in 0..self.rng.usize(..3) {
            self.insert_part(Some(id));
        }
    }

    fn insert_part(&mut self, root: Option<u64>) {
        let key = self.rng.u16(..60);
        if self.now.parts.values().any(|part| part.key == key) {
            return;
        }
        let id = self.next_id();
        let part = Part { key, root: root.map(|id| self.now.roots[&id].key), n: self.rng.u8(..3) };
        self.log.push(inserted(PART, &part.cells()));
        self.now.parts.insert(id, part);
    }

    fn next_id(&mut self) -> u64 {
        self.now.next_id += 1;
        self.now.next_id
    }

    fn update_root(&mut self, id: u64, change: impl FnOnce(&mut Root)) {
        let root = self.now.roots.get_mut(&id).expect("it is there");
        let old = root.cells();
        change(root);
        let new = root.cells();
        self.updated(ROOT, &old, &new);
    }

    fn update_part(&mut self, id: u64, change: impl FnOnce(&mut Part)) {
        let part = self.now.parts.get_mut(&id).expect("it is there");
        let old = part.cells();
        change(part);
        let new = part.cells();
        self.updated(PART, &old, &new);
    }

    fn delete_part(&mut self, id: u64) {
        let part = self.now.parts.remove(&id).expect("it is there");
        self.deleted(PART, &part.cells());
    }

    fn parts_of(&self, root: u8) -> Vec<u64> {
        self.now.parts.iter().filter(|(_, part)| part.root == Some(root)).map(|(id, _)| *id).collect()
    }

    /// Its parts go first, or are let go, or follow it.
    fn delete_root(&mut self, id: u64) {
        let key = self.now.roots[&id].key;
        for part in self.parts_of(key) {
            match self.rng.u8(..3) {
                0 => self.delete_part(part),
                1 => self.update_part(part, |part| part.root = None),
                _ => {
                    self.update_part(part, |part| part.root = None);
                    self.delete_part(part);
                }
            }
        }
        let root = self.now.roots.remove(&id).expect("it is there");
        self.deleted(ROOT, &root.cells());
    }

    /// Another key, that no root has; its parts follow.
    fn rekey(&mut self, id: u64) {
        let (old, new) = (self.now.roots[&id].key, self.rng.u8(KEYS));
        if self.now.roots.values().any(|root| root.key == new) {
            return;
        }
        self.update_root(id, |root| root.key = new);
        for part in self.parts_of(old) {
            self.update_part(part, |part| part.root = Some(new));
        }
    }
}

/// One row before and after.
#[derive(Clone, Copy)]
struct Pair<'a, R> {
    before: Option<&'a R>,
    after: Option<&'a R>,
}

/// The rows of a table before and after; what was deleted and what was inserted at its key are one.
fn pairs<'a, R, K: PartialEq>(
    before: &'a BTreeMap<u64, R>,
    after: &'a BTreeMap<u64, R>,
    key: impl Fn(&R) -> K,
) -> Vec<Pair<'a, R>> {
    let mut fresh: Vec<&R> = after.iter().filter(|(id, _)| !before.contains_key(id)).map(|(_, row)| row).collect();
    let mut pairs = Vec::new();
    for (id, old) in before {
        let again = || Some(fresh.remove(fresh.iter().position(|new| key(new) == key(old))?));
        pairs.push(Pair { before: Some(old), after: after.get(id).or_else(again) });
    }
    pairs.extend(fresh.into_iter().map(|new| Pair { before: None, after: Some(new) }));
    pairs
}

impl Pair<'_, Root> {
    /// As it is, or as it was.
    fn last(&self) -> &Root {
        self.after.or(self.before).expect("one of them")
    }

    /// The key of its row in ids.
    fn row(&self) -> String {
        match (self.before, self.after) {
            (Some(before), Some(after)) if before.key != after.key => format!("{},{}", after.key, before.key),
            _ => self.last().key.to_string(),
        }
    }
}

/// A transaction's events, while they are found.
struct Finding<'a> {
    of: Of,
    parts: Vec<Pair<'a, Part>>,
    all: Vec<Expected>,
}

/// The events of a transaction that has made of some tables these.
pub(super) fn events(of: Of, before: &Tables, after: &Tables, held: bool) -> Vec<Expected> {
    let mut roots = pairs(&before.roots, &after.roots, |root| root.key);
    roots.sort_by_key(|pair| (pair.last().key, pair.after.is_some()));
    let parts = pairs(&before.parts, &after.parts, |part| part.key);
    let mut finding = Finding { of, parts, all: Vec::new() };
    for pair in &roots {
        if pair.before.is_none() {
            let data = format!("{},{}", pair.last().data(), list(after, pair.last().key));
            finding.event("Opened", pair, &data);
        }
    }
    for pair in &roots {
        if let (Some(old), Some(new)) = (pair.before, pair.after)
            && old.v != new.v
        {
            finding.event("Changed", pair, &format!(r#"{},"was":"v{}""#, new.data(), old.v));
        }
    }
    for pair in &roots {
        if finding.parts_changed(pair) {
            finding.event("PartsChanged", pair, &format!(r#""id":{}"#, pair.last().key));
        }
    }
    for pair in &roots {
        if pair.after.is_none() {
            let data = format!("{},{}", pair.last().data(), list(before, pair.last().key));
            finding.event("Closed", pair, &data);
        }
    }
    for pair in roots.iter().filter(|pair| pair.before != pair.after) {
        if let Some(now) = pair.after {
            finding.event("Latest", pair, &now.data());
        }
        let lost = pair.before.map(|root| root.key).filter(|lost| pair.after.is_none_or(|now| now.key != *lost));
        if let Some(lost) = lost.filter(|lost| !after.roots.values().any(|root| root.key == *lost)) {
            finding.tombstone(pair, lost);
        }
    }
    for pair in roots.iter().filter(|_| held) {
        let has_changed = pair.before.is_none_or(|old| pair.after.is_some_and(|new| old.v != new.v));
        if has_changed || finding.parts_changed(pair) {
            let (now, tables) = (pair.last(), if pair.after.is_some() { after } else { before });
            let data = format!("{},{}", now.data(), list_with_roots(tables, before, after, pair));
            finding.event("Told", pair, &data);
        }
    }
    finding.all
}

/// The parts of a root, with the root's value as it is, and of the root that each had before as it was.
fn list_with_roots(tables: &Tables, before: &Tables, after: &Tables, pair: &Pair<'_, Root>) -> String {
    let root = pair.last();
    // What a key of a root that is gone leads to may be another root by now.
    let of = after.roots.values().find(|now| now.key == root.key).unwrap_or(root).v;
    let mut parts: Vec<_> = tables.parts.iter().filter(|(_, part)| part.root == Some(root.key)).collect();
    parts.sort_by_key(|(_, part)| part.key);
    let parts: Vec<_> = parts
        .into_iter()
        .map(|(id, part)| {
            let was = before.parts.get(id).or_else(|| before.parts.values().find(|old| old.key == part.key));
            let was = was.and_then(|was| before.roots.values().find(|old| Some(old.key) == was.root));
            let was = was.map_or("null".into(), |was| format!(r#""v{}""#, was.v));
            format!(r#"{{"id":{},"n":{},"of":"v{}","was":{was}}}"#, part.key, part.n, of)
        })
        .collect();
    format!(r#""parts":[{}]"#, parts.join(","))
}

/// The parts of a root.
fn list(tables: &Tables, root: u8) -> String {
    let mut parts: Vec<_> = tables.parts.values().filter(|part| part.root == Some(root)).collect();
    parts.sort_by_key(|part| part.key);
    let parts: Vec<_> = parts.iter().map(|part| format!(r#"{{"id":{},"n":{}}}"#, part.key, part.n)).collect();
    format!(r#""parts":[{}]"#, parts.join(","))
}

impl Finding<'_> {
    fn parts_changed(&self, pair: &Pair<'_, Root>) -> bool {
        self.parts.iter().any(|part| {
            let hangs = |part: Option<&Part>, root: Option<&Root>| {
                part.zip(root).is_some_and(|(part, root)| part.root == Some(root.key))
            };
            let (was, is) = (hangs(part.before, pair.before), hangs(part.after, pair.after));
            // Following its root to another key changes nothing of it.
            was != is || was && is && part.before.map(|part| part.n) != part.after.map(|part| part.n)
        })
    }

    fn event(&mut self, name: &str, pair: &Pair<'_, Root>, data: &str) {
        let key = pair.last().key;
        let previous = pair.before.map(|root| root.key).filter(|was| pair.after.is_some() && *was != key);
        self.push(name, "", pair, key, previous, &format!("{{{data}}}"));
    }

    fn tombstone(&mut self, pair: &Pair<'_, Root>, lost: u8) {
        self.push("Latest", ".gone", pair, lost, None, "null");
    }

    fn push(&mut self, name: &str, gone: &str, pair: &Pair<'_, Root>, key: u8, previous: Option<u8>, data: &str) {
        let Of { xid, commit, time } = self.of;
        let index = self.all.len() as u64;
        let topic = if name == "Latest" { STATE_TOPIC } else { ROOT_TOPIC };
        let time = Timestamp::from_microsecond(time).expect("a time of this century");
        let content_type = if data == "null" { "" } else { "content-type=application/json\n" };
        let previous = previous.map_or(String::new(), |key| format!("ce_previouskey={key}\n"));
        let text = format!(
            "{content_type}ce_specversion=1.0\nce_id=-{lsn:016X}-{name}.v1{gone}-{row}\nce_source=/sim\nce_type=sim.{name}.v1\n\
             ce_subject=root/{key}\nce_time={time:.6}\nce_sequence=-{lsn:016X}-{index:010}\n{previous}ce_xid={xid}\n{data}",
            lsn = commit.0,
            row = pair.row(),
        );
        self.all.push(Expected { index, lane: lane(topic, &key.to_string()), text });
    }
}

/// What a record says, for comparing with what is expected.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) xid: u32,
    pub(super) commit: Lsn,
    pub(super) index: u64,
    /// In its id and in its sequence.
    pub(super) epoch: u32,
    pub(super) text: String,
}

/// Reads an event's headers and value.
pub(super) fn hear<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>, data: &str) -> Heard {
    let mut heard = Heard { xid: 0, commit: Lsn::INVALID, index: 0, epoch: 0, text: String::new() };
    let mut epochs = Vec::new();
    for (name, mut value) in headers {
        if let "ce_id" | "ce_sequence" = name {
            let (epoch, rest) = value.split_once('-').expect("an epoch comes first");
            epochs.push(epoch.parse().expect("a number"));
            value = &value[epoch.len()..];
            let (lsn, index) = rest.split_once('-').expect("then the commit");
            heard.commit = Lsn(u64::from_str_radix(lsn, 16).expect("hexadecimal"));
            heard.index = index.parse().unwrap_or(heard.index);
        }
        if name == "ce_xid" {
            heard.xid = value.parse().expect("the context message has a number");
        }
        heard.text.push_str(&format!("{name}={value}\n"));
    }
    assert!(epochs.len() == 2 && epochs[0] == epochs[1], "one epoch in id and sequence: {epochs:?}");
    heard.epoch = epochs[0];
    heard.text.push_str(data);
    heard
}
