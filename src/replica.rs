//! Rows of held tables, as they were after the last transaction that was published: the local cache of the replica's topic.
//!
//! What is put is there to be read at once, and is kept for the next start by `commit` alone, which is called when everything that was
//! put is committed in Kafka. So what a start finds on disk is what the topic said up to an offset, and the topic says the rest.

use std::collections::BTreeMap;

use crate::change::Micros;

/// Rows of held tables.
#[derive(Debug, Default)]
pub struct Replica {
    rows: BTreeMap<(u16, Vec<u8>), Kept>,
    links: std::collections::BTreeSet<(u16, u16, Vec<u8>, Vec<u8>)>,
    loads: BTreeMap<u16, u32>,
}

#[derive(Debug)]
struct Kept {
    load: u32,
    links: Vec<Option<Vec<u8>>>,
    cells: Vec<u8>,
}

/// Up to where the topic is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// As the progress record has it.
    pub generation: String,
    /// The offset of the next record.
    pub offset: i64,
    /// When this was so, by our clock.
    pub time: Micros,
    /// What the numbers of tables and links mean, and what columns rows have: rows of another meaning are not looked at.
    pub shapes: String,
}

/// One row to be kept.
#[derive(Clone, Copy, Debug)]
pub struct HeldRow<'a> {
    /// The number of its table.
    pub table: u16,
    /// Its primary key, in a form that sorts.
    pub key: &'a [u8],
    /// Of which load it is.
    pub load: u32,
    /// Values that it is found by, in a form that sorts and ends itself; by number. `None` is found by nothing.
    pub links: &'a [Option<&'a [u8]>],
    /// Its values.
    pub cells: &'a [u8],
}

/// The cache cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {}

impl Replica {
    /// From now on rows of a table are those of this load; others are not there.
    pub fn set_load(&mut self, table: u16, load: u32) {
        self.loads.insert(table, load);
    }

    /// Appends the values of a row; false when it is not there.
    pub fn get(&self, table: u16, key: &[u8], out: &mut Vec<u8>) -> Result<bool, ReplicaError> {
        let load = self.loads.get(&table);
        let row = self.rows.get(&(table, key.to_vec())).filter(|row| Some(&row.load) == load);
        Ok(row.map(|row| out.extend_from_slice(&row.cells)).is_some())
    }

    /// The keys of the rows that have a value, in order; rows of other loads may be among them.
    pub fn linked(&self, table: u16, link: u16, value: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), ReplicaError> {
        let from = (table, link, value.to_vec(), Vec::new());
        self.links
            .range(from..)
            .take_while(|(t, l, v, _)| (*t, *l, v.as_slice()) == (table, link, value))
            .for_each(|(.., key)| each(key));
        Ok(())
    }

    /// Keeps a row in place of the one that has its key.
    pub fn put(&mut self, row: &HeldRow<'_>) -> Result<(), ReplicaError> {
        self.delete(row.table, row.key)?;
        for (link, value) in row.links.iter().enumerate() {
            if let Some(value) = value {
                self.links.insert((row.table, link as u16, value.to_vec(), row.key.to_vec()));
            }
        }
        let links = row.links.iter().map(|value| value.map(<[u8]>::to_vec)).collect();
        self.rows.insert((row.table, row.key.to_vec()), Kept { load: row.load, links, cells: row.cells.to_vec() });
        Ok(())
    }

    /// Forgets a row.
    pub fn delete(&mut self, table: u16, key: &[u8]) -> Result<(), ReplicaError> {
        if let Some(row) = self.rows.remove(&(table, key.to_vec())) {
            for (link, value) in row.links.into_iter().enumerate() {
                if let Some(value) = value {
                    self.links.remove(&(table, link as u16, value, key.to_vec()));
                }
            }
        }
        Ok(())
    }

    /// The first row of a table after a key, in order of keys, whatever load it is of: appends key and values, and gives its load; `None` at the end.
    pub fn after(
        &self,
        table: u16,
        after: Option<&[u8]>,
        key: &mut Vec<u8>,
        cells: &mut Vec<u8>,
    ) -> Result<Option<u32>, ReplicaError> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let from = match after {
            Some(after) => Excluded((table, after.to_vec())),
            None => Included((table, Vec::new())),
        };
        let next = self.rows.range((from, Unbounded)).next().filter(|((t, _), _)| *t == table);
        Ok(next.map(|((_, found), row)| {
            key.extend_from_slice(found);
            cells.extend_from_slice(&row.cells);
            row.load
        }))
    }
}
