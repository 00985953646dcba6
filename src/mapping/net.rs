//! Changes -> one net change per row of a transaction, in memory. Pure.
//!
//! A row is followed through updates that change its primary key. What is deleted and what is inserted at the same key are one row
//! again, but only in the end (`settle`): so the order of statements does not matter, only what was where before and after.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
};

use super::row::{Cell, Cells, fill};
#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};

/// Rows that a piece of a transaction has touched.
#[derive(Debug, Default)]
pub(super) struct Net {
    /// Cells of rows.
    arena: Vec<u8>,
    entries: Vec<Entry>,
    /// Hash of table and current key -> the first entry of those that are there and have it.
    index: HashMap<u64, u32, BuildHasherDefault<AsItIs>>,
    hasher: RandomState,
    filled: Vec<u8>,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Index in `Rules::tables`.
    pub(super) table: u32,
    next: u32,
    before: Span,
    after: Span,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    start: u32,
    len: u32,
}

const END: u32 = u32::MAX;
const NOWHERE: Span = Span { start: 0, len: u32::MAX };

/// Two rows would have one primary key at the same time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken;

/// The hash of a hash.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Net {
    /// Forgets everything, and keeps its buffers unless they have become larger than `keep_max` bytes.
    pub(super) fn clear(&mut self, keep_max: usize) {
        self.arena.clear();
        self.arena.shrink_to(keep_max);
        self.entries.clear();
        self.entries.shrink_to(keep_max / ENTRY_BYTES);
        self.index.clear();
        self.index.shrink_to(keep_max / ENTRY_BYTES);
    }

    /// What it takes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.arena.len() + self.entries.len() * ENTRY_BYTES
    }

    /// How many entries there are, void ones too.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The table of a row, and the row before and after; neither is there of a void one.
    pub(super) fn row(&self, entry: usize) -> (usize, Option<Cells<'_>>, Option<Cells<'_>>) {
        let Entry { table, before, after, .. } = self.entries[entry];
        (table as usize, self.cells(before), self.cells(after))
    }

    /// A row is there. `new` begins with its `key`, as everywhere here.
    pub(super) fn insert(&mut self, table: usize, key: &[u8], new: &[u8]) -> Result<(), Taken> {
        let hash = self.hash(table, key);
        if self.find(hash, table, key).is_some() {
            return Err(Taken);
        }
        let after = self.store(new);
        let entry = self.push(table, NOWHERE, after);
        self.link(hash, entry);
        Ok(())
    }

    /// A row is another.
    pub(super) fn update(
        &mut self,
        table: usize,
        (old_key, old): (&[u8], &[u8]),
        (new_key, new): (&[u8], &[u8]),
    ) -> Result<(), Taken> {
        let hash = self.hash(table, old_key);
        let found = self.find(hash, table, old_key);
        let entry = match found {
            Some(entry) => entry,
            None => {
                let before = self.store(old);
                self.push(table, before, NOWHERE)
            }
        };
        let mut filled = std::mem::take(&mut self.filled);
        let new = self.with_unchanged(entry, old, new, &mut filled);
        let moved = old_key != new_key;
        let new_hash = if moved { self.hash(table, new_key) } else { hash };
        if moved {
            if found.is_some() {
                self.unlink(hash, entry);
            }
            if self.find(new_hash, table, new_key).is_some() {
                return Err(Taken);
            }
        }
        let place = self.entries[entry as usize].after;
        let after = if place != NOWHERE && new.len() <= place.len as usize {
            let start = place.start as usize;
            self.arena[start..start + new.len()].copy_from_slice(new);
            Span { start: place.start, len: new.len() as u32 }
        } else {
            self.store(new)
        };
        self.entries[entry as usize].after = after;
        if moved || found.is_none() {
            self.link(new_hash, entry);
        }
        self.filled = filled;
        Ok(())
    }

    /// A row is gone.
    pub(super) fn delete(&mut self, table: usize, key: &[u8], old: &[u8]) {
        let hash = self.hash(table, key);
        match self.find(hash, table, key) {
            Some(entry) => {
                self.unlink(hash, entry);
                #[cfg(test)]
                if self.entries[entry as usize].before == NOWHERE && is_planted(PlantedBug::KeepsWhatWasDeleted) {
                    return;
                }
                self.entries[entry as usize].after = NOWHERE;
            }
            None => {
                let before = self.store(old);
                self.push(table, before, NOWHERE);
            }
        }
    }

    /// Forgets a table's rows. `key_len` is of its primary key.
    pub(super) fn forget(&mut self, table: usize, key_len: usize) {
        for entry in 0..self.entries.len() {
            let (at, _, after) = self.row(entry);
            if at != table {
                continue;
            }
            if let Some(row) = after {
                let hash = self.hash(table, row.key(key_len).expect("it is found by its key"));
                self.unlink(hash, entry as u32);
            }
            (self.entries[entry].before, self.entries[entry].after) = (NOWHERE, NOWHERE);
        }
    }

    /// The end of the transaction: what was deleted and what was inserted at its key are one row. `key_len` is of a table's primary key.
    pub(super) fn settle(&mut self, key_len: impl Fn(usize) -> usize) {
        #[cfg(test)]
        if is_planted(PlantedBug::ForgetsWhatWasDeleted) {
            return;
        }
        for gone in 0..self.entries.len() {
            let (table, Some(before), None) = self.row(gone) else { continue };
            let key = before.key(key_len(table)).expect("it was found by its key");
            let Some(new) = self.find(self.hash(table, key), table, key) else { continue };
            if self.entries[new as usize].before != NOWHERE {
                continue;
            }
            self.entries[new as usize].before = self.entries[gone].before;
            self.entries[gone].before = NOWHERE;
        }
    }

    /// After `settle`: a row is known better.
    pub(super) fn complete(&mut self, entry: usize, before: &[u8], after: &[u8]) {
        self.entries[entry].before = self.store(before);
        if self.entries[entry].after != NOWHERE {
            self.entries[entry].after = self.store(after);
        }
    }

    fn with_unchanged<'a>(&self, entry: u32, old: &[u8], new: &'a [u8], filled: &'a mut Vec<u8>) -> &'a [u8] {
        let is_whole = |row: &[u8]| !Cells { bytes: row }.iter().any(|cell| cell == Cell::Unchanged);
        if is_whole(new) {
            return new;
        }
        #[cfg(test)]
        if is_planted(PlantedBug::LeavesUnchangedValues) {
            return new;
        }
        // What the transaction said last, then what the change itself says of the old row.
        let Entry { before, after, .. } = self.entries[entry as usize];
        let last = self.cells(after).or(self.cells(before)).expect("a row that is updated was there");
        filled.clear();
        fill(Cells { bytes: new }, last, filled);
        if !is_whole(filled) {
            let once = std::mem::take(filled);
            fill(Cells { bytes: &once }, Cells { bytes: old }, filled);
        }
        filled
    }

    fn cells(&self, span: Span) -> Option<Cells<'_>> {
        let range = span.start as usize..span.start as usize + span.len as usize;
        (span != NOWHERE).then(|| Cells { bytes: &self.arena[range] })
    }

    fn store(&mut self, row: &[u8]) -> Span {
        // Its owner keeps it far below 4 GiB.
        let span = Span { start: self.arena.len() as u32, len: row.len() as u32 };
        self.arena.extend_from_slice(row);
        span
    }

    fn push(&mut self, table: usize, before: Span, after: Span) -> u32 {
        self.entries.push(Entry { table: table as u32, next: END, before, after });
        self.entries.len() as u32 - 1
    }

    fn hash(&self, table: usize, key: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u32(table as u32);
        hasher.write(key);
        hasher.finish()
    }

    /// The entry of the row that has the key now.
    fn find(&self, hash: u64, table: usize, key: &[u8]) -> Option<u32> {
        let mut at = *self.index.get(&hash)?;
        while at != END {
            let Entry { table: of, next, after, .. } = self.entries[at as usize];
            let start = after.start as usize;
            if of as usize == table && self.arena[start..start + after.len as usize].starts_with(key) {
                return Some(at);
            }
            at = next;
        }
        None
    }

    fn link(&mut self, hash: u64, entry: u32) {
        let first = self.index.insert(hash, entry);
        self.entries[entry as usize].next = first.unwrap_or(END);
    }

    fn unlink(&mut self, hash: u64, entry: u32) {
        let after = self.entries[entry as usize].next;
        let first = self.index[&hash];
        if first == entry {
            if after == END {
                self.index.remove(&hash);
            } else {
                self.index.insert(hash, after);
            }
            return;
        }
        let mut at = first;
        while self.entries[at as usize].next != entry {
            at = self.entries[at as usize].next;
        }
        self.entries[at as usize].next = after;
    }
}

/// What an entry takes, with its place in the index.
const ENTRY_BYTES: usize = size_of::<Entry>() + 24;
