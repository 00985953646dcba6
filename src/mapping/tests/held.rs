//! The model test of what the replica knows: rules may ask for anything, and the slow implementation, which keeps whole tables, knows it.
//!
//! Tables are loaded at some position while transactions go on; then every transaction's records are applied, the cache is lost now and
//! then, and now and then what writes is killed while it keeps a transaction's rows. After each transaction the replica is the tables.

use super::*;
use crate::{
    config::Mask,
    mapping::{
        Looked,
        condition::Condition,
        row::{Cell, Cells, write_sorted_key},
        rules::Hop,
    },
    replica::Replica,
};

const HELD_CONSTRUCTS: &[&str] = &[
    "look-up",
    "look-up chain",
    "look-up old",
    "look-up of a row that the transaction has",
    "look-up of a row that has moved",
    "look-up in a list",
    "look-up of what is gone",
    "look-up of what is gone too",
    "look-up that leads nowhere",
    "old value of default identity",
    "untouched child listed",
    "untouched child of a deleted root",
    "child listed of a changed root",
    "root by its children alone",
    "condition",
    "passed over",
    "row before its load",
    "backfill",
    "cache lost",
    "killed while keeping",
    "cut and kept again",
    "garbage",
    "kept",
    "kept gone",
    "kept moved",
    "key reused after a move",
    "held on disk",
    "loose",
    "cause in a held world",
];

impl World {
    fn held(seed: u64) -> (Self, Rules) {
        let mut world = Self::empty(seed);
        world.covered.extend(HELD_CONSTRUCTS.iter().map(|name| (*name, 0)));
        world.is_loose = world.rng.u8(..4) == 0;
        let key_type = [Type::INT4, Type::TEXT, Type::UUID, Type::INT8][world.rng.usize(..4)].clone();
        world.leaf = Some(0);
        let up = ("l".to_owned(), key_type.clone());
        world.schema(vec![("id".into(), key_type), ("n".into(), Type::TEXT), ("t".into(), Type::TEXT), up], 1);
        world.leads.push((0, 3));
        for _ in 0..world.rng.usize(1..=3) {
            world.family();
        }
        world.state.tables = vec![BTreeMap::new(); world.schemas.len()];
        let rules = world.rules();
        (world, rules)
    }

    /// A column that leads to the leaf.
    pub(super) fn lead(&mut self, table: usize, columns: &mut Vec<(String, Type)>) {
        if let Some(leaf) = self.leaf
            && self.rng.u8(..3) > 0
        {
            self.leads.push((table, columns.len()));
            columns.push(("l".into(), self.schemas[leaf].columns[0].1.clone()));
        }
    }

    pub(super) fn lead_row(&mut self, table: usize, row: &mut [Value]) {
        let Some(leaf) = self.leaf else { return };
        if let Some(&(_, column)) = self.leads.iter().find(|(of, _)| *of == table) {
            row[column] = self.some_root_key(leaf);
        }
    }

    pub(super) fn leaf_statement(&mut self, log: &mut Vec<Statement>) {
        let leaf = self.leaf.unwrap();
        let some = self.some(leaf);
        match (self.rng.u8(..10), some) {
            (0..=2, _) | (_, None) => {
                let Some(key) = self.free_key(leaf) else { return };
                let mut row = vec![Some(key[0].clone()), Some("name".into()), self.text(), None, int(0)];
                self.lead_row(leaf, &mut row);
                self.insert(leaf, row, log);
            }
            (3 | 4, Some(id)) => {
                let mut row = self.state.tables[leaf][&id].clone();
                match self.rng.u8(..3) {
                    0 => row[1] = Some(format!("name {}", self.rng.u8(..9))),
                    1 => row[2] = self.text(),
                    _ => self.lead_row(leaf, &mut row),
                }
                self.update(leaf, id, row, log);
            }
            (5, Some(id)) => {
                if let Some(key) = self.free_key(leaf) {
                    self.rekey(leaf, id, key, log);
                }
            }
            (6, Some(one)) => {
                let (Some(two), Some(free)) = (self.some(leaf), self.free_key(leaf)) else { return };
                if one != two {
                    let key = |world: &Self, id| world.key(leaf, &world.state.tables[leaf][&id]);
                    let (first, second) = (key(self, one), key(self, two));
                    self.rekey(leaf, one, free, log);
                    self.rekey(leaf, two, first, log);
                    self.rekey(leaf, one, second, log);
                }
            }
            (7, Some(id)) => {
                // Another row takes the key that this one leaves.
                let old = self.state.tables[leaf][&id].clone();
                if let Some(free) = self.free_key(leaf) {
                    self.rekey(leaf, id, free, log);
                    let row = vec![old[0].clone(), Some("heir".into()), self.text(), None, int(0)];
                    self.insert(leaf, row, log);
                }
            }
            (_, Some(id)) => {
                let key = self.state.tables[leaf][&id][0].clone();
                let leaves_them = self.is_loose && self.rng.bool();
                for (table, column, dependent) in self.dependents(leaf, &key) {
                    if leaves_them || !self.state.tables[table].contains_key(&dependent) {
                        continue;
                    }
                    // Some go with it.
                    if self.rng.u8(..3) == 0 && self.families.iter().any(|family| family.root == table) {
                        self.delete_root(table, dependent, log);
                        continue;
                    }
                    let mut row = self.state.tables[table][&dependent].clone();
                    row[column] = None;
                    self.update(table, dependent, row, log);
                }
                self.delete(leaf, id, log);
            }
        }
    }

    // Rules that ask for anything.

    /// Where foreign keys of a table lead: column and table.
    fn hops_from(&self, table: usize) -> Vec<Hop> {
        let leads = self.leads.iter().filter(|(of, _)| *of == table).map(|(_, column)| (*column, self.leaf.unwrap()));
        let refs = self.refs.get(&table).map(|column| (*column, self.families[0].root));
        let links = self.families.iter().flat_map(|family| {
            let children = family.children.iter().filter(|(child, _)| *child == table);
            children.map(|(_, link)| (*link, family.root))
        });
        let all = leads.chain(refs).chain(links);
        all.map(|(key, table)| Hop { key, table, enforced: !self.is_loose }).collect()
    }

    fn field(&self, rng: &mut Rng, table: usize, needs: &mut Vec<usize>) -> Field {
        let old = rng.u8(..3) == 0;
        let mut hops = Vec::new();
        let mut at = table;
        while rng.u8(..3) > 0 && hops.len() < 4 {
            let from = self.hops_from(at);
            if from.is_empty() {
                break;
            }
            let hop = from[rng.usize(..from.len())];
            needs.push(hop.table);
            at = hop.table;
            hops.push(hop);
        }
        let column = rng.usize(..self.schemas[at].columns.len() - 1);
        match hops.is_empty() {
            true => Field::Column { column, old, mask: None },
            false => Field::LookUp { hops, column, old, mask: None },
        }
    }

    fn fields(&self, rng: &mut Rng, table: usize, needs: &mut Vec<usize>) -> Vec<(String, Field)> {
        (0..rng.usize(1..4)).map(|at| (format!("f{at}"), self.field(rng, table, needs))).collect()
    }

    pub(super) fn held_rule(
        &mut self,
        index: usize,
        name: &str,
        events: &[EventRule],
        topic: &Arc<Topic>,
    ) -> Option<EventRule> {
        self.leaf?;
        if !self.is_loose && self.rng.u8(..5) == 0 {
            return None;
        }
        let mut rng = self.rng.fork();
        let family = &self.families[index];
        let mut needs = vec![family.root];
        needs.extend(family.children.iter().map(|(table, _)| *table));
        let mut data = self.fields(&mut rng, family.root, &mut needs);
        data.push(("o".into(), Field::Object(self.fields(&mut rng, family.root, &mut needs))));
        for (collection, (table, _)) in family.children.iter().enumerate() {
            if rng.u8(..3) > 0 {
                let data_of = self.fields(&mut rng, *table, &mut needs);
                data.push((format!("c{collection}"), Field::Each { collection, data: data_of }));
            }
        }
        let column = |rng: &mut Rng| {
            let names = ["id", "a", "b", "k", "t", "l"];
            let name = names[rng.usize(..names.len())];
            let place = self.schemas[family.root].columns.iter().position(|(column, _)| column == name).unwrap_or(0);
            let side = |rng: &mut Rng| match rng.u8(..6) {
                0 => Side::Null,
                1 if name == "a" => Side::Text("1".into()),
                _ => Side::Anything,
            };
            Test::Column(place, Transition { from: side(rng), to: side(rng) })
        };
        let changes = [ChildChange::Added, ChildChange::Removed, ChildChange::Changed, ChildChange::Any];
        let mut when = Vec::new();
        for _ in 0..rng.usize(1..=2) {
            when.push(match rng.u8(..8) {
                0 => Trigger::Created,
                1 | 2 => Trigger::Deleted,
                3 if !self.is_loose => Trigger::Any,
                4 | 5 if !self.is_loose && !family.children.is_empty() => {
                    let collection = rng.usize(..family.children.len());
                    let mut tests = vec![Test::Children(collection, changes[rng.usize(..4)])];
                    if rng.u8(..4) == 0 {
                        tests.push(column(&mut rng));
                    }
                    Trigger::All(tests)
                }
                _ => Trigger::All(vec![column(&mut rng)]),
            });
        }
        let backfill = rng.u8(..3) == 0;
        if backfill && rng.bool() {
            when.clear();
        }
        let compact = when == [Trigger::Any] && rng.bool();
        let condition = (rng.u8(..5) == 0).then(|| {
            let place = |name: &str| self.schemas[family.root].columns.iter().position(|(column, _)| column == name);
            Condition::compile(IS_ONE, &place).unwrap()
        });
        let via = self.refs.get(&family.root).copied();
        let causes: Vec<usize> = (0..events.len()).filter(|&event| events[event].aggregate == 0).collect();
        let because = via.filter(|_| index > 0 && !causes.is_empty() && rng.bool());
        let because = because.map(|via| Because { event: causes[rng.usize(..causes.len())], via });
        // What the cause is asked has to be known too.
        if let Some(Because { event, .. }) = &because {
            needs.extend(&events[*event].needs);
        }
        needs.sort_unstable();
        needs.dedup();
        Some(EventRule {
            ce_type: format!("com.acme.{name}.v1"),
            name: name.into(),
            version: 1,
            aggregate: index,
            topic: topic.clone(),
            subject: "s".into(),
            when,
            condition,
            data,
            because,
            compact,
            backfill,
            needs,
        })
    }

    // What the replica is to have.

    fn cells(&self, table: usize, row: &[Value]) -> Vec<u8> {
        let mut out = Vec::new();
        for value in &row[..self.schemas[table].columns.len() - 1] {
            value.as_ref().map_or(Cell::Null, |text| Cell::Text(text.as_bytes())).write(&mut out);
        }
        out
    }

    fn whole(&self, table: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mapped = mapped(&self.schemas[table]);
        let rows = self.state.tables[table].values().map(|row| {
            let cells = self.cells(table, row);
            let mut key = Vec::new();
            write_sorted_key(&mapped, Cells { bytes: &cells }, &mut key);
            (key, cells)
        });
        rows.collect()
    }
}

impl<'a> Compared<'a> {
    /// The row that hops lead to from a row, and its table.
    pub(super) fn look_up(
        &self,
        row: Option<&'a Vec<Value>>,
        mut table: usize,
        hops: &[Hop],
        old: bool,
        is_gone: bool,
    ) -> (Option<&'a Vec<Value>>, usize) {
        let mut row = row;
        for hop in hops {
            let key = row.and_then(|row| row[hop.key].as_ref());
            table = hop.table;
            let find = |state: &'a State| {
                let key = key?;
                state.tables[hop.table].values().find(|row| row[0].as_ref() == Some(key))
            };
            row = match (old, is_gone) {
                (true, _) => find(self.before),
                (false, false) => find(self.after),
                (false, true) => find(self.after).or_else(|| find(self.before)),
            };
        }
        (row, table)
    }

    /// Events of what is there.
    fn backfill(&self, events: &[usize]) -> Vec<Told> {
        let mut all = Vec::new();
        for &index in events {
            let rule = &self.rules.events[index];
            let family = &self.world.families[rule.aggregate];
            let a = self.world.column(family.root, "a");
            for &root in &self.rows[family.root] {
                let row = root.after.unwrap();
                if rule.condition.is_some() && row[a].as_deref() != Some("1") {
                    continue;
                }
                all.push(Told {
                    rule: index,
                    index: all.len() as u64,
                    key: self.record_key(family, row),
                    previous: None,
                    row: self.row(family.root, root),
                    data: Some(self.data(family, family.root, &rule.data, root, root)),
                    cause: None,
                });
            }
        }
        all
    }
}

type Record = (Vec<u8>, Option<Vec<u8>>);

fn kept(mapping: &mut Mapping) -> Result<Vec<(Record, bool)>, crate::mapping::MapError> {
    let mut all = Vec::new();
    while let Some(row) = mapping.next_kept()? {
        all.push(((row.key.to_vec(), row.value.map(<[u8]>::to_vec)), row.splits));
    }
    Ok(all)
}

fn rows_of(mapping: &mut Mapping, table: usize, load: u32) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let replica = mapping.replica_mut().unwrap();
    let mut rows = BTreeMap::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let (mut key, mut cells) = (Vec::new(), Vec::new());
        match replica.after(table as u16, after.as_deref(), &mut key, &mut cells).unwrap() {
            None => return rows,
            Some(of) if of == load => {
                rows.insert(key.clone(), cells);
            }
            Some(_) => {}
        }
        after = Some(key);
    }
}

/// The run of one world.
struct Life {
    world: World,
    mapping: Mapping,
    /// Every record, in order.
    topic: Vec<Record>,
    /// Per held table its load, and from which commit on it is known.
    held: BTreeMap<usize, (u32, Option<u64>)>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let (mut world, rules) = World::held(seed);
        let on_disk = world.rng.u8(..6) == 0;
        let memory = if on_disk { world.rng.usize(..3000) } else { 1 << 20 };
        let mut mapping = Mapping::new(rules, spill(memory));
        mapping.hold(Replica::in_memory());
        let held = mapping.held().into_iter().map(|table| (table, (0, None))).collect();
        if world.is_loose {
            world.cover("loose");
        }
        Self { world, mapping, topic: Vec::new(), held }
    }

    fn set_held(&mut self, table: usize, load: u32, from: Option<u64>) {
        self.held.insert(table, (load, from));
        self.mapping.set_held(table, load, from.map(|commit| Lsn(commit * 1000)));
    }

    /// Loads a table as it is before a commit; now and then it has been begun before.
    fn load(&mut self, table: usize, commit: u64) {
        if self.world.rng.u8(..3) == 0 {
            self.set_held(table, 1, None);
            let rows = self.world.whole(table);
            for cells in rows.values().filter(|_| self.world.rng.bool()).collect::<Vec<_>>() {
                let row = self.mapping.load_row(table, 1, cells).unwrap();
                self.topic.push((row.key.to_vec(), row.value.map(<[u8]>::to_vec)));
            }
            // What was deleted meanwhile.
            let mut log = Vec::new();
            if self.world.leaf != Some(table)
                && let Some(id) = self.world.some(table)
                && let Some(family) = self.world.families.iter().find(|family| family.root == table)
                && family.children.is_empty()
                && (table != self.world.families[0].root || self.world.refs.is_empty())
            {
                self.world.delete(table, id, &mut log);
            }
        }
        self.set_held(table, 2, None);
        for cells in self.world.whole(table).values() {
            let row = self.mapping.load_row(table, 2, cells).unwrap();
            self.topic.push((row.key.to_vec(), row.value.map(<[u8]>::to_vec)));
        }
        let mut after = Vec::new();
        loop {
            match self.mapping.garbage(table, &mut after).unwrap() {
                Looked::Forgotten(row) => {
                    assert!(row.value.is_none());
                    self.topic.push((row.key.to_vec(), None));
                    self.world.cover("garbage");
                }
                Looked::Stays => {}
                Looked::End => break,
            }
        }
        self.set_held(table, 2, Some(commit));
    }

    /// Another cache, of a part of the topic.
    fn lose(&mut self, records: usize) {
        self.mapping.hold(Replica::in_memory());
        for (key, value) in &self.topic[..records] {
            self.mapping.restore(key, value.as_deref()).unwrap();
        }
    }

    fn passed(&self, commit: u64) -> Vec<bool> {
        let is_known = |table: &usize| self.held[table].1.is_some_and(|from| commit >= from);
        self.mapping.rules().events.iter().map(|event| !event.needs.iter().all(is_known)).collect()
    }

    fn backfill(&mut self, commit: u64, seed: u64) {
        let passed = self.passed(commit);
        let events: Vec<usize> =
            (0..passed.len()).filter(|&event| self.mapping.rules().events[event].backfill && !passed[event]).collect();
        self.mapping.begin_backfill(&at(commit), &events);
        let told = tell(&mut self.mapping).unwrap();
        let empty = State { tables: vec![BTreeMap::new(); self.world.schemas.len()] };
        let expected = Compared::new(&self.world, self.mapping.rules(), &empty, &self.world.state).backfill(&events);
        assert_eq!(told, expected, "OFFSHOOT_SEED={seed}: backfill before {commit}");
        assert_eq!(kept(&mut self.mapping).unwrap(), []);
        if !told.is_empty() {
            self.world.cover("backfill");
        }
    }

    fn commit(&mut self, commit: u64, seed: u64) {
        let before = self.world.state.clone();
        let mut log = Vec::new();
        for _ in 0..self.world.rng.usize(1..12) {
            self.world.statement(&mut log);
        }
        let passed = self.passed(commit);
        let mut rng = Rng::with_seed(seed ^ commit);
        let (expected, permuted) = {
            let mut compared = Compared::new(&self.world, self.mapping.rules(), &before, &self.world.state);
            compared.passed = passed.clone();
            (compared.events(), compared.permuted(&mut rng))
        };
        for (statements, how) in [(&permuted, "permuted"), (&log, "as it was")] {
            let told = take(&mut self.mapping, &self.world.schemas, statements, commit);
            let told = told.and_then(|()| tell(&mut self.mapping));
            let context = || {
                format!(
                    "OFFSHOOT_SEED={seed}, commit {commit}, {how}\n{statements:#?}\n{:#?}\n{:#?}",
                    self.world.families,
                    self.mapping.rules().events
                )
            };
            let told = told.unwrap_or_else(|error| panic!("{error}\n{}", context()));
            assert_eq!(told, expected, "{}", context());
        }
        let on_disk = self.mapping.spilled_bytes() > 0;
        let start = self.topic.len();
        let mut records = kept(&mut self.mapping).unwrap();
        let cuts: Vec<usize> = (0..records.len()).filter(|&at| records[at].1).collect();
        self.cover_kept(&records);
        if !cuts.is_empty() && rng.u8(..3) == 0 {
            // Killed, and what was kept until then is all that there is.
            let cut = cuts[rng.usize(..cuts.len())] + 1;
            self.topic.extend(records[..cut].iter().map(|(record, _)| record.clone()));
            self.lose(start + cut);
            self.world.cover("killed while keeping");
            if cut < records.len() {
                self.world.cover("cut and kept again");
            }
            let statements = if rng.bool() { &log } else { &permuted };
            self.mapping.begin(&at(commit), true);
            take_all(&mut self.mapping, &self.world.schemas, statements, commit).unwrap();
            let none = tell(&mut self.mapping)
                .unwrap_or_else(|error| panic!("OFFSHOOT_SEED={seed}, commit {commit}, kept again: {error}"));
            assert_eq!(none, []);
            records = kept(&mut self.mapping).unwrap();
        }
        self.topic.extend(records.into_iter().map(|(record, _)| record));
        self.compare(&format!("OFFSHOOT_SEED={seed}, after commit {commit}\n{log:#?}"), commit);
        if rng.u8(..5) == 0 {
            self.lose(self.topic.len());
            self.compare(&format!("OFFSHOOT_SEED={seed}, restored after commit {commit}"), commit);
            self.world.cover("cache lost");
        }
        if on_disk && !self.held.is_empty() {
            self.world.cover("held on disk");
        }
        self.cover_commit(&before, &expected, &passed, commit);
    }

    /// The replica is the tables, and so is the topic.
    fn compare(&mut self, context: &str, commit: u64) {
        let last: BTreeMap<&Vec<u8>, &Option<Vec<u8>>> = self.topic.iter().map(|(key, value)| (key, value)).collect();
        for (&table, &(load, from)) in &self.held {
            if from.is_none_or(|from| commit < from) {
                continue;
            }
            let expected = self.world.whole(table);
            assert_eq!(rows_of(&mut self.mapping, table, load), expected, "table {table}: {context}");
            let name = format!("public.{}\0", self.world.schemas[table].name);
            let kept = last.iter().filter(|(key, value)| key.starts_with(name.as_bytes()) && value.is_some());
            assert_eq!(kept.count(), expected.len(), "records of table {table}: {context}");
        }
    }

    fn cover_kept(&mut self, records: &[(Record, bool)]) {
        for ((_, value), splits) in records {
            self.world.cover(if value.is_some() { "kept" } else { "kept gone" });
            if !splits {
                self.world.cover("kept moved");
            }
        }
    }

    fn cover_commit(&mut self, before: &State, told: &[Told], passed: &[bool], commit: u64) {
        let rules = std::mem::take(&mut self.mapping.rules);
        let mut seen = Vec::new();
        if passed.contains(&true) {
            seen.push("passed over");
        }
        if self.held.values().any(|(_, from)| from.is_some_and(|from| commit < from)) {
            seen.push("row before its load");
        }
        {
            let compared = Compared::new(&self.world, &rules, before, &self.world.state);
            for event in told {
                let rule = &rules.events[event.rule];
                if rule.condition.is_some() {
                    seen.push("condition");
                }
                if event.cause.is_some() {
                    seen.push("cause in a held world");
                }
                let family = &self.world.families[rule.aggregate];
                let find = |pair: &&Pair<'_>| compared.row(family.root, **pair) == event.row;
                let root = *compared.rows[family.root].iter().find(find).unwrap();
                compared.see(family, family.root, &rule.data, root, root, false, &mut seen);
                if root.before == root.after {
                    seen.push("root by its children alone");
                }
            }
            for table in 0..self.world.schemas.len() {
                for pair in &compared.rows[table] {
                    let key = |row: &Vec<Value>| self.world.key(table, row);
                    if let (Some(old), Some(new)) = (pair.before, pair.after)
                        && key(old) != key(new)
                        && compared.rows[table].iter().any(|other| {
                            other.before.is_none() && other.after.is_some_and(|other| key(other) == key(old))
                        })
                    {
                        seen.push("key reused after a move");
                    }
                }
            }
        }
        self.mapping.rules = rules;
        for name in seen {
            self.world.cover(name);
        }
    }
}

impl<'a> Compared<'a> {
    /// What the data of an event had to know.
    #[allow(clippy::too_many_arguments)]
    fn see(
        &self,
        family: &Family,
        table: usize,
        fields: &[(String, Field)],
        pair: Pair<'a>,
        root: Pair<'a>,
        in_list: bool,
        seen: &mut Vec<&'static str>,
    ) {
        let is_gone = root.after.is_none();
        for (_, field) in fields {
            match field {
                Field::Column { old, .. } => {
                    if *old && pair.before.is_some() && self.world.schemas[table].kind == Identity::Default {
                        seen.push("old value of default identity");
                    }
                }
                Field::Object(fields) => self.see(family, table, fields, pair, root, in_list, seen),
                Field::LookUp { hops, old, .. } => {
                    let row = if *old { pair.before } else { pair.after.or(pair.before) };
                    let (found, target) = self.look_up(row, table, hops, *old, is_gone);
                    let Some(found) = found else {
                        let (last, _) = self.look_up(row, table, &hops[..hops.len() - 1], *old, is_gone);
                        if last.is_some_and(|row| row[hops.last().unwrap().key].is_some()) {
                            seen.push("look-up that leads nowhere");
                        }
                        continue;
                    };
                    let mut see = |holds: bool, name| seen.extend(holds.then_some(name));
                    see(true, "look-up");
                    see(hops.len() > 1, "look-up chain");
                    see(*old, "look-up old");
                    see(in_list, "look-up in a list");
                    let of = self.rows[target].iter().find(|pair| {
                        let is_it = |row: Option<&Vec<Value>>| row.is_some_and(|row| std::ptr::eq(row, found));
                        is_it(pair.before) || is_it(pair.after)
                    });
                    let of = of.unwrap();
                    see(of.differs(None), "look-up of a row that the transaction has");
                    let key = |row: &Vec<Value>| row[0].clone();
                    see(of.before.map(key) != of.after.map(key), "look-up of a row that has moved");
                    see(is_gone && !*old && of.after.is_some(), "look-up of what is gone");
                    see(is_gone && !*old && of.after.is_none(), "look-up of what is gone too");
                }
                Field::Each { collection, data } => {
                    let child = family.children[*collection].0;
                    for kin in self.kin(family, *collection, root) {
                        if if is_gone { !kin.was } else { !kin.is } {
                            continue;
                        }
                        let pair = if is_gone { Pair { before: kin.pair.before, after: None } } else { kin.pair };
                        if kin.pair.before == kin.pair.after {
                            seen.push(if is_gone {
                                "untouched child of a deleted root"
                            } else {
                                "untouched child listed"
                            });
                        }
                        if root.before.is_some() && !is_gone {
                            seen.push("child listed of a changed root");
                        }
                        self.see(family, child, data, pair, root, true, seen);
                    }
                }
            }
        }
    }
}

fn live(seed: u64) -> BTreeMap<&'static str, u64> {
    let mut life = Life::new(seed);
    let tables: Vec<usize> = life.held.keys().copied().collect();
    let loads: Vec<u64> = (0..2).map(|_| life.world.rng.u64(1..5)).collect();
    let at: BTreeMap<usize, u64> =
        tables.iter().map(|&table| (table, loads[usize::from(life.world.rng.u8(..4) == 0)])).collect();
    // The position of a load may be known before the rows are there.
    for &table in &tables {
        if life.world.rng.bool() {
            life.set_held(table, 2, Some(at[&table]));
        }
    }
    for commit in 1..=life.world.rng.u64(5..11) {
        for &table in tables.iter().filter(|table| at[table] == commit) {
            life.load(table, commit);
        }
        if loads.iter().max() == Some(&commit) {
            life.backfill(commit, seed);
        }
        life.commit(commit, seed);
    }
    life.world.covered
}

/// Worlds of one run.
const HELD_SEEDS: u64 = 1000;

#[test]
fn events_of_a_replica_are_those_of_a_model_that_keeps_whole_tables() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = number("OFFSHOOT_SEED") {
        live(seed);
        return;
    }
    let mut covered: BTreeMap<&str, u64> = BTreeMap::new();
    let seeds = number("OFFSHOOT_SEEDS").unwrap_or(HELD_SEEDS);
    for seed in 0..seeds {
        for (name, times) in live(seed) {
            *covered.entry(name).or_default() += times;
        }
    }
    covered.retain(|name, _| HELD_CONSTRUCTS.contains(name));
    println!("{seeds} worlds: {covered:?}");
    let missed: Vec<_> = covered.iter().filter(|(_, times)| **times == 0).collect();
    assert!(missed.is_empty(), "not covered: {missed:?}");
}

#[test]
fn finds_each_planted_mistake_of_the_replica() {
    const BUGS: &[PlantedBug] = &[
        PlantedBug::SeesItsOwnFuture,
        PlantedBug::ListsTouchedChildrenTwice,
        PlantedBug::CompletesFromTheNewKey,
        PlantedBug::KeepsBeforeEvents,
        PlantedBug::ForgetsReusedKeys,
    ];
    for &bug in BUGS {
        plant(Some(bug));
        let found = (0..SEEDS).find(|&seed| std::panic::catch_unwind(|| live(seed)).is_err());
        plant(None);
        println!("{bug:?}: seed {found:?}");
        assert!(found.is_some(), "{bug:?} was not found");
    }
}

// Said by hand.

/// `t0`: events with a name `n`; `t1`: shows with an event `e` and a price `a`; `t2`: tickets with a show `s` and a text `v`. The log has
/// only their keys of what they were.
fn shows(is_enforced: bool) -> (World, Mapping) {
    let made = |seed: u64| {
        let mut world = World::empty(seed);
        let column = |name: &str, ty: Type| (name.to_owned(), ty);
        world.schema(vec![column("id", Type::INT4), column("n", Type::TEXT)], 1);
        world.schema(vec![column("id", Type::INT4), column("e", Type::INT4), column("a", Type::INT4)], 1);
        world.schema(vec![column("id", Type::INT4), column("s", Type::INT4), column("v", Type::TEXT)], 1);
        world.state.tables = vec![BTreeMap::new(); 3];
        world
    };
    let is_it = |world: &World| {
        world.schemas.iter().all(|schema| schema.kind == Identity::Default && schema.shape.name == schema.name)
    };
    let world = (0..).map(made).find(is_it).unwrap();
    let topic = Arc::new(Topic { name: "show".into(), table: "public.t1".into() });
    let mut tables: Vec<MappedTable> = world.schemas.iter().map(mapped).collect();
    tables.iter_mut().for_each(|table| table.held = true);
    tables[1].roles.push(Role::Root { aggregate: 0 });
    tables[2].roles.push(Role::Child { aggregate: 0, collection: 0 });
    let column = |column, old| Field::Column { column, old, mask: None };
    let name = |old, mask| {
        let hops = vec![Hop { key: 1, table: 0, enforced: is_enforced }];
        Field::LookUp { hops, column: 1, old, mask }
    };
    let data = vec![
        ("id".into(), column(0, false)),
        ("was".into(), column(2, true)),
        ("now".into(), column(2, false)),
        ("event".into(), name(false, None)),
        ("old event".into(), name(true, None)),
        ("secret".into(), name(false, Some(Mask::Drop))),
        ("c0".into(), Field::Each { collection: 0, data: vec![("id".into(), column(0, false))] }),
    ];
    let changed = Test::Column(2, Transition { from: Side::Anything, to: Side::Anything });
    let children = Test::Children(0, ChildChange::Any);
    let event = EventRule {
        name: "E0".into(),
        version: 1,
        ce_type: "E0.v1".into(),
        aggregate: 0,
        topic: topic.clone(),
        subject: "show".into(),
        when: vec![Trigger::Created, Trigger::Deleted, Trigger::All(vec![changed]), Trigger::All(vec![children])],
        condition: None,
        data,
        because: None,
        compact: false,
        backfill: true,
        needs: vec![0, 1, 2],
    };
    let aggregate = Aggregate {
        name: "Show".into(),
        subject: "show".into(),
        root: 1,
        topic,
        key: vec![0],
        children: vec![Collection { name: "tickets".into(), table: 2, link: 1, enforced: is_enforced }],
    };
    let rules = Rules {
        tables,
        aggregates: vec![aggregate],
        events: vec![event],
        unmapped: Unmapped::Fail,
        truncate: Truncate::Ignore,
    };
    let mut mapping = Mapping::new(rules, spill(1 << 20));
    mapping.hold(Replica::in_memory());
    let rows: &[(usize, &[&str])] = &[
        (0, &["1", "Shane's Sock Puppets"]),
        (0, &["2", "Rock concert"]),
        (1, &["10", "1", "100"]),
        (1, &["11", "2", "200"]),
        (2, &["20", "10", "x"]),
        (2, &["21", "10", "y"]),
    ];
    for (table, values) in rows {
        let mut cells = Vec::new();
        values.iter().for_each(|text| Cell::Text(text.as_bytes()).write(&mut cells));
        mapping.load_row(*table, 1, &cells).unwrap();
    }
    (0..3).for_each(|table| mapping.set_held(table, 1, Some(Lsn(1000))));
    (world, mapping)
}

fn row(values: &[&str]) -> Vec<Value> {
    let values = values.iter().map(|text| (!text.is_empty()).then(|| (*text).to_owned()));
    values.chain([int(0)]).collect()
}

fn data(world: &World, mapping: &mut Mapping, log: &[Statement]) -> Result<Vec<String>, String> {
    let told = take(mapping, &world.schemas, log, 1).and_then(|()| tell(mapping)).map_err(|error| error.to_string())?;
    Ok(told.into_iter().map(|event| event.data.unwrap()).collect())
}

fn update(table: usize, old: &[&str], new: &[&str]) -> Statement {
    Statement::Update(table, row(old), row(new))
}

#[test]
fn what_a_transaction_does_not_carry_is_as_of_just_before_it() {
    let (world, mut mapping) = shows(true);
    let mut told = |log: &[Statement]| data(&world, &mut mapping, log).unwrap();
    let tickets = r#""c0":[{"id":20},{"id":21}]"#;
    let puppets = r#""event":"Shane's Sock Puppets","old event":"Shane's Sock Puppets""#;
    let price = update(1, &["10", "1", "100"], &["10", "1", "150"]);
    assert_eq!(told(&[price]), [format!(r#"{{"id":10,"was":100,"now":150,{puppets},{tickets}}}"#)]);
    let ticket = Statement::Insert(2, row(&["9", "10", "z"]));
    let with_new = r#""c0":[{"id":9},{"id":20},{"id":21}]"#;
    assert_eq!(told(&[ticket]), [format!(r#"{{"id":10,"was":100,"now":100,{puppets},{with_new}}}"#)]);
    // The new side sees what the transaction has done elsewhere, the old side what was.
    let log = [
        update(0, &["1", "Shane's Sock Puppets"], &["1", "Puppets"]),
        update(1, &["10", "1", "100"], &["10", "1", "1"]),
    ];
    let renamed = r#""event":"Puppets","old event":"Shane's Sock Puppets""#;
    assert_eq!(told(&log), [format!(r#"{{"id":10,"was":100,"now":1,{renamed},{tickets}}}"#)]);
}

#[test]
fn a_deleted_root_is_told_with_what_is_there_still_and_else_with_what_was() {
    let (world, mut mapping) = shows(true);
    let gone = [
        Statement::Delete(2, row(&["20", "10", "x"])),
        update(2, &["21", "10", "y"], &["21", "11", "y"]),
        Statement::Delete(1, row(&["10", "1", "100"])),
    ];
    let puppets = r#""event":"Shane's Sock Puppets","old event":"Shane's Sock Puppets""#;
    let tickets = r#""c0":[{"id":20},{"id":21}]"#;
    let other = r#"{"id":11,"was":200,"now":200,"event":"Rock concert","old event":"Rock concert","c0":[{"id":21}]}"#;
    let told = data(&world, &mut mapping, &gone).unwrap();
    assert_eq!(told, [format!(r#"{{"id":10,"was":100,"now":100,{puppets},{tickets}}}"#), other.to_owned()]);
    let mut with_event = gone.to_vec();
    with_event.push(Statement::Delete(0, row(&["1", "Shane's Sock Puppets"])));
    assert_eq!(data(&world, &mut mapping, &with_event).unwrap(), told);
    let mut renamed = gone.to_vec();
    renamed.push(update(0, &["1", "Shane's Sock Puppets"], &["1", "Puppets"]));
    let puppets = r#""event":"Puppets","old event":"Shane's Sock Puppets""#;
    assert_eq!(
        data(&world, &mut mapping, &renamed).unwrap()[0],
        format!(r#"{{"id":10,"was":100,"now":100,{puppets},{tickets}}}"#)
    );
}

#[test]
fn what_the_replica_should_have_and_has_not_stops_with_its_place() {
    let (world, mut mapping) = shows(true);
    let mut failed = |statement: Statement| data(&world, &mut mapping, &[statement]).unwrap_err();
    let error = failed(update(1, &["77", "1", "1"], &["77", "1", "2"]));
    assert!(error.contains("a row of public.t1") && error.contains("primary key 77"), "{error}");
    assert!(error.contains("commits at 0/3E8") && error.contains("offshoot reload"), "{error}");
    let error = failed(Statement::Insert(1, row(&["12", "78", "1"])));
    assert!(error.contains("tell E0.event: a foreign key leads to public.t0 with primary key 78"), "{error}");
    assert!(error.contains("make E0.v1 of the transaction that commits at 0/3E8"), "{error}");
    let error = failed(Statement::Insert(2, row(&["30", "79", "z"])));
    assert!(error.contains("rows of public.t2 hang on the row of public.t1 with primary key 79"), "{error}");
    // Where no foreign key says that they are there, they need not be.
    let (world, mut mapping) = shows(false);
    let told = data(&world, &mut mapping, &[Statement::Insert(1, row(&["12", "78", "1"]))]).unwrap();
    assert_eq!(told, [r#"{"id":12,"was":null,"now":1,"event":null,"old event":null,"c0":[]}"#]);
    assert_eq!(data(&world, &mut mapping, &[Statement::Insert(1, row(&["12", "", "1"]))]).unwrap(), told);
    mapping.rules.unmapped = Unmapped::Ignore;
    assert_eq!(data(&world, &mut mapping, &[Statement::Insert(2, row(&["30", "79", "z"]))]), Ok(Vec::new()));
}

#[test]
fn before_a_table_is_loaded_nothing_is_told_or_kept_and_nothing_is_missed() {
    let (world, mut mapping) = shows(true);
    let price = [update(1, &["10", "1", "100"], &["10", "1", "150"])];
    mapping.set_held(0, 1, Some(Lsn(1001)));
    assert_eq!(data(&world, &mut mapping, &price), Ok(Vec::new()));
    assert_eq!(kept(&mut mapping).unwrap().len(), 1, "shows are held from 0/3E8");
    mapping.set_held(1, 1, None);
    assert_eq!(data(&world, &mut mapping, &price), Ok(Vec::new()));
    assert_eq!(kept(&mut mapping).unwrap(), []);
}

#[test]
fn a_truncated_table_is_forgotten_and_what_came_after_is_kept() {
    let (world, mut mapping) = shows(false);
    mapping.rules.unmapped = Unmapped::Ignore;
    mapping.begin(&at(1), false);
    let gone = [Statement::Delete(0, row(&["2", "Rock concert"]))];
    take_all(&mut mapping, &world.schemas, &gone, 1).unwrap();
    for table in [0, 2] {
        let change = Change { table: &world.schemas[table].shape, lsn: Lsn(5), op: Op::Truncate };
        mapping.take(&change).unwrap();
    }
    let then = [
        Statement::Insert(0, row(&["2", "Jazz"])),
        Statement::Insert(2, row(&["22", "11", "z"])),
        update(1, &["10", "1", "100"], &["10", "1", "150"]),
    ];
    take_all(&mut mapping, &world.schemas, &then, 1).unwrap();
    let told: Vec<_> = tell(&mut mapping).unwrap().into_iter().map(|event| event.data.unwrap()).collect();
    assert_eq!(
        told,
        [
            r#"{"id":10,"was":100,"now":150,"event":null,"old event":"Shane's Sock Puppets","c0":[]}"#,
            r#"{"id":11,"was":200,"now":200,"event":"Jazz","old event":"Rock concert","c0":[{"id":22}]}"#
        ]
    );
    kept(&mut mapping).unwrap();
    let left = |mapping: &mut Mapping, table| rows_of(mapping, table, 1).into_values().collect::<Vec<_>>();
    let cells = |table: usize, values: &[&str]| world.cells(table, &row(values));
    assert_eq!(left(&mut mapping, 0), [cells(0, &["2", "Jazz"])]);
    assert_eq!(left(&mut mapping, 1), [cells(1, &["10", "1", "150"]), cells(1, &["11", "2", "200"])]);
    assert_eq!(left(&mut mapping, 2), [cells(2, &["22", "11", "z"])]);
    // Of a partition nobody knows which rows these were.
    let Table { oid, identity, asked, columns, .. } = &*world.schemas[0].shape;
    let part = Arc::new(Table {
        version: 99,
        oid: *oid,
        schema: "public".into(),
        name: "t0_p1".into(),
        ancestors: vec![Ancestor { oid: 0, schema: "public".into(), name: "t0".into() }],
        identity: *identity,
        asked: *asked,
        columns: columns.clone(),
        key: Vec::new(),
    });
    mapping.begin(&at(2), false);
    let error = mapping.take(&Change { table: &part, lsn: Lsn(6), op: Op::Truncate }).unwrap_err().to_string();
    assert!(error.contains("TRUNCATE of public.t0_p1 at 0/6") && error.contains("which rows of public.t0"), "{error}");
}

#[test]
fn an_aggregate_with_more_children_than_memory_holds_is_refused() {
    let (world, mut mapping) = shows(true);
    let long = "x".repeat(1 << 20);
    for ticket in 100..105 {
        let cells = world.cells(2, &row(&[&ticket.to_string(), "10", &long]));
        mapping.load_row(2, 1, &cells).unwrap();
    }
    let price = [update(1, &["10", "1", "100"], &["10", "1", "150"])];
    let error = data(&world, &mut mapping, &price).unwrap_err();
    assert!(error.contains("hold one Show") && error.contains("limits.memory"), "{error}");
}

#[test]
fn records_of_others_are_refused_or_passed_over() {
    let (_, mut mapping) = shows(true);
    mapping.restore(b"public.other\0t\0\0\0\x011", Some(b"\x01\0\0\0\x01t\0\0\0\x011")).unwrap();
    let error = mapping.restore(b"public.t0\0t\0\0\0\x011", Some(b"\x02")).unwrap_err().to_string();
    assert!(error.contains("format 2"), "{error}");
    let error = mapping.restore(b"public.t0\0t\0\0\0\x011", Some(b"\x01\0\0\0\x01n")).unwrap_err().to_string();
    assert!(error.contains("not a row"), "{error}");
    mapping.restore(b"public.t0\0t\0\0\0\x011", None).unwrap();
    assert_eq!(rows_of(&mut mapping, 0, 1).len(), 1);
}
