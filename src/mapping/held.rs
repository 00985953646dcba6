//! Held tables: from where on their rows are known, and the rows themselves, as they were before the transaction.

use postgres_types::Type;

use super::{
    MapError,
    kept::{self, KeptRow},
    row::{Cell, Cells, complete, fill, write_sorted, write_sorted_key},
    rules::{MappedTable, Rules},
};
#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};
use crate::{
    lsn::Lsn,
    replica::{HeldRow, Replica},
};

/// The tables of the rules, and the replica.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) replica: Option<Replica>,
    tables: Vec<Holding>,
    /// Where the commit record of the transaction starts.
    commit: Lsn,
    /// Some table is held as of this transaction.
    is_any: bool,
    key: Vec<u8>,
    links: Vec<Vec<u8>>,
    record: Record,
}

/// One table.
#[derive(Debug, Default)]
struct Holding {
    held: bool,
    load: u32,
    from: Option<Lsn>,
    /// Columns by which its rows are found, and of what type they are there.
    links: Vec<(usize, Type)>,
    /// Its rows are known as of this transaction.
    is_now: bool,
    /// This transaction has truncated it.
    is_truncated: bool,
}

/// What the topic is to be told.
#[derive(Debug, Default)]
struct Record {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl Held {
    pub(super) fn new(rules: &Rules) -> Self {
        let tables = rules.tables.iter().enumerate().map(|(index, table)| {
            let links = if table.held { rules.links(index) } else { Vec::new() };
            let links = links.into_iter().map(|column| (column, table.columns[column].ty.clone()));
            Holding { held: table.held, links: links.collect(), ..Holding::default() }
        });
        Self {
            replica: None,
            tables: tables.collect(),
            commit: Lsn::INVALID,
            is_any: false,
            key: Vec::new(),
            links: Vec::new(),
            record: Record::default(),
        }
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = usize> {
        self.tables.iter().enumerate().filter(|(_, table)| table.held).map(|(index, _)| index)
    }

    pub(super) fn hold(&mut self, mut replica: Replica) {
        for (index, table) in self.tables.iter().enumerate().filter(|(_, table)| table.held) {
            replica.set_load(index as u16, table.load);
        }
        self.replica = Some(replica);
    }

    pub(super) fn set(&mut self, table: usize, load: u32, from: Option<Lsn>) {
        let holding = &mut self.tables[table];
        (holding.load, holding.from) = (load, from);
        if let Some(replica) = &mut self.replica {
            replica.set_load(table as u16, load);
        }
    }

    /// A transaction begins.
    pub(super) fn begin(&mut self, commit: Lsn) {
        self.know(commit, |from| commit >= from);
    }

    /// All rows that are held are told.
    pub(super) fn begin_backfill(&mut self, commit: Lsn) {
        self.know(commit, |_| true);
    }

    fn know(&mut self, commit: Lsn, is_known: impl Fn(Lsn) -> bool) {
        (self.commit, self.is_any) = (commit, false);
        for table in &mut self.tables {
            table.is_now = table.held && table.from.is_some_and(&is_known);
            table.is_truncated = false;
            self.is_any |= table.is_now;
        }
        assert!(!self.is_any || self.replica.is_some(), "held tables have a replica");
    }

    /// Where the commit record of the transaction starts.
    pub(super) fn commit(&self) -> Lsn {
        self.commit
    }

    /// Whether rows of any table are known as of this transaction.
    pub(super) fn is_any(&self) -> bool {
        self.is_any
    }

    /// Whether rows of a table are known as of this transaction.
    pub(super) fn is_now(&self, table: usize) -> bool {
        self.tables[table].is_now
    }

    pub(super) fn truncate(&mut self, table: usize) {
        self.tables[table].is_truncated = true;
    }

    /// Whether the rows that the table had before the transaction are all gone.
    pub(super) fn is_truncated(&self, table: usize) -> bool {
        self.tables[table].is_truncated
    }

    fn replica(&self) -> &Replica {
        self.replica.as_ref().expect("held tables have a replica")
    }

    /// Appends a row as it was before the transaction, by its key as `write_sorted_key` has it; false when it was not there.
    pub(super) fn get(&self, table: usize, key: &[u8], out: &mut Vec<u8>) -> Result<bool, MapError> {
        Ok(self.replica().get(table as u16, key, out)?)
    }

    /// The keys of rows whose `column` had a value before the transaction, of at most so many bytes; false when there are more.
    pub(super) fn linked(
        &self,
        table: usize,
        column: usize,
        value: &[u8],
        bytes_max: usize,
        keys: &mut Vec<Vec<u8>>,
    ) -> Result<bool, MapError> {
        let links = &self.tables[table].links;
        let link = links.iter().position(|(link, _)| *link == column).expect("collections are links");
        let mut sorted = Vec::new();
        write_sorted(value, &links[link].1, &mut sorted);
        let mut bytes = 0_usize;
        self.replica().linked(table as u16, link as u16, &sorted, &mut |key| {
            bytes = bytes.saturating_add(key.len() + size_of::<Vec<u8>>());
            if bytes <= bytes_max {
                keys.push(key.to_vec());
            }
        })?;
        Ok(bytes <= bytes_max)
    }

    /// The first row of a table after a key, whose place it takes: appends its values. False at the end.
    pub(super) fn after(&self, table: usize, after: &mut Vec<u8>, row: &mut Vec<u8>) -> Result<bool, MapError> {
        let load = self.tables[table].load;
        loop {
            row.clear();
            match self.step(table, after, row)? {
                Some(of) if of == load => return Ok(true),
                Some(_) => {}
                None => return Ok(false),
            }
        }
    }

    /// The first row of a table after a key, whose place it takes, whatever load it is of. No key is empty.
    fn step(&self, table: usize, after: &mut Vec<u8>, row: &mut Vec<u8>) -> Result<Option<u32>, MapError> {
        let mut key = Vec::new();
        let from = (!after.is_empty()).then_some(&after[..]);
        let load = self.replica().after(table as u16, from, &mut key, row)?;
        if load.is_some() {
            *after = key;
        }
        Ok(load)
    }

    /// Writes what is known of a row with what the replica knows of it, where the log says less; whether it had to.
    pub(super) fn complete(
        &self,
        mapped: &MappedTable,
        table: usize,
        (before, after): (Cells<'_>, Option<Cells<'_>>),
        completed: &mut Completed,
    ) -> Result<bool, MapError> {
        let (before_blank, after_blank) = (before.blank(), after.and_then(Cells::blank));
        if before_blank.is_none() && after_blank.is_none() {
            return Ok(false);
        }
        completed.before.clear();
        completed.after.clear();
        if before_blank.is_some() {
            let Completed { key, held, .. } = completed;
            key.clear();
            held.clear();
            write_sorted_key(mapped, before, key);
            #[cfg(test)]
            if let Some(after) = after.filter(|_| is_planted(PlantedBug::CompletesFromTheNewKey)) {
                key.clear();
                write_sorted_key(mapped, after, key);
            }
            if !self.get(table, key, held)? {
                return Err(MapError::NotHeld {
                    commit: self.commit,
                    table: mapped.full_name(),
                    key: key_text(mapped, before),
                });
            }
            complete(before, Cells { bytes: held }, &mut completed.before);
        } else {
            completed.before.extend_from_slice(before.bytes);
        }
        if let Some(after) = after {
            fill(after, Cells { bytes: &completed.before }, &mut completed.after);
        }
        Ok(true)
    }

    /// Puts a row; the record says so.
    pub(super) fn put(
        &mut self,
        mapped: &MappedTable,
        table: usize,
        load: u32,
        row: Cells<'_>,
    ) -> Result<(), MapError> {
        let unkept = |column: usize| MapError::Unkept {
            commit: self.commit,
            table: mapped.full_name(),
            column: mapped.columns[column].name.clone(),
        };
        let key = row.key(mapped.key_len).map_err(unkept)?;
        if let Some(column) = row.blank() {
            return Err(unkept(column));
        }
        self.store(mapped, table, load, key, row)?;
        self.record.key.clear();
        kept::write_key(mapped, key, &mut self.record.key);
        let value = self.record.value.get_or_insert_default();
        value.clear();
        kept::write_value(load, row, value);
        Ok(())
    }

    /// The record of what was put or forgotten last.
    pub(super) fn record(&self, splits: bool) -> KeptRow<'_> {
        KeptRow { key: &self.record.key, value: self.record.value.as_deref(), splits }
    }

    /// Forgets a row; the record says so.
    pub(super) fn delete(&mut self, mapped: &MappedTable, table: usize, key: &[u8]) -> Result<(), MapError> {
        self.key.clear();
        write_sorted_key(mapped, Cells { bytes: key }, &mut self.key);
        let replica = self.replica.as_mut().expect("held tables have a replica");
        replica.delete(table as u16, &self.key)?;
        self.record.key.clear();
        self.record.value = None;
        kept::write_key(mapped, key, &mut self.record.key);
        Ok(())
    }

    /// Of which load the rows of a table are.
    pub(super) fn load(&self, table: usize) -> u32 {
        self.tables[table].load
    }

    fn store(
        &mut self,
        mapped: &MappedTable,
        table: usize,
        load: u32,
        key: &[u8],
        row: Cells<'_>,
    ) -> Result<(), MapError> {
        self.key.clear();
        write_sorted_key(mapped, Cells { bytes: key }, &mut self.key);
        let holding = &self.tables[table];
        // Rows of another load may be of another shape, and nobody looks for them.
        let is_of_shape = row.iter().count() == mapped.columns.len();
        let links = if is_of_shape { &holding.links[..] } else { &[] };
        self.links.resize_with(links.len(), Vec::new);
        let mut is_null = Vec::with_capacity(links.len());
        for ((column, ty), link) in links.iter().zip(&mut self.links) {
            link.clear();
            let text = match row.get(*column) {
                Cell::Text(text) => Some(text),
                _ => None,
            };
            is_null.push(text.is_none());
            write_sorted(text.unwrap_or_default(), ty, link);
        }
        let links: Vec<_> = is_null.iter().zip(&self.links).map(|(null, link)| (!null).then_some(&link[..])).collect();
        let row = HeldRow { table: table as u16, key: &self.key, load, links: &links, cells: row.bytes };
        self.replica.as_mut().expect("held tables have a replica").put(&row)?;
        Ok(())
    }

    /// A record of the topic.
    pub(super) fn restore(&mut self, rules: &Rules, key: &[u8], value: Option<&[u8]>) -> Result<(), MapError> {
        let malformed = |cause| MapError::Malformed { cause };
        let (name, key) = kept::read_key(key).map_err(malformed)?;
        let is_it = |&table: &usize| {
            let MappedTable { schema, name: table, .. } = &rules.tables[table];
            name.len() == schema.len() + 1 + table.len()
                && name.starts_with(schema.as_bytes())
                && name[schema.len()] == b'.'
                && name.ends_with(table.as_bytes())
        };
        let Some(table) = self.tables().find(is_it) else { return Ok(()) };
        let mapped = &rules.tables[table];
        if key.iter().count() != mapped.key_len {
            // It had another primary key: garbage of an older load.
            return Ok(());
        }
        let Some(value) = value else {
            self.key.clear();
            write_sorted_key(mapped, key, &mut self.key);
            let replica = self.replica.as_mut().expect("held tables have a replica");
            return Ok(replica.delete(table as u16, &self.key)?);
        };
        let (load, row) = kept::read_value(value).map_err(malformed)?;
        if load == self.tables[table].load && row.iter().count() != mapped.columns.len() {
            return Err(malformed(kept::Malformed::Value));
        }
        self.store(mapped, table, load, key.bytes, row)
    }

    /// Forgets the next row after a key, whose place it takes, if it is of an older load; the record says so.
    pub(super) fn garbage(
        &mut self,
        mapped: &MappedTable,
        table: usize,
        after: &mut Vec<u8>,
    ) -> Result<Garbage, MapError> {
        let mut row = Vec::new();
        match self.step(table, after, &mut row)? {
            None => Ok(Garbage::End),
            Some(load) if load == self.tables[table].load => Ok(Garbage::Stays),
            Some(_) => {
                self.forget(mapped, table, after, &row)?;
                Ok(Garbage::Goes)
            }
        }
    }

    /// Forgets the next row that a table had before it was truncated, after a key, whose place it takes; the record says so. False when
    /// there is none.
    pub(super) fn next_truncated(
        &mut self,
        mapped: &MappedTable,
        table: usize,
        after: &mut Vec<u8>,
    ) -> Result<bool, MapError> {
        let mut row = Vec::new();
        let is_there = self.step(table, after, &mut row)?.is_some();
        if is_there {
            self.forget(mapped, table, after, &row)?;
        }
        Ok(is_there)
    }

    fn forget(&mut self, mapped: &MappedTable, table: usize, key: &[u8], row: &[u8]) -> Result<(), MapError> {
        let replica = self.replica.as_mut().expect("held tables have a replica");
        replica.delete(table as u16, key)?;
        self.record.key.clear();
        self.record.value = None;
        let key = Cells { bytes: row }.key(mapped.key_len).expect("rows have their key");
        kept::write_key(mapped, key, &mut self.record.key);
        Ok(())
    }
}

/// What was found where the next row of an older load was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Garbage {
    Goes,
    Stays,
    End,
}

/// A row with what the replica knows of it.
#[derive(Debug, Default)]
pub(super) struct Completed {
    pub(super) before: Vec<u8>,
    /// Empty when the row is gone.
    pub(super) after: Vec<u8>,
    key: Vec<u8>,
    held: Vec<u8>,
}

/// A primary key as messages have it: `7`, `CA, ON`.
pub(super) fn key_text(table: &MappedTable, row: Cells<'_>) -> String {
    let texts = row.iter().take(table.key_len).map(|cell| match cell {
        Cell::Text(text) => String::from_utf8_lossy(text).into_owned(),
        _ => "?".into(),
    });
    texts.collect::<Vec<_>>().join(", ")
}
