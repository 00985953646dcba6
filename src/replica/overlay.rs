//! Rows and what they are found by <-> pairs of one redb table, within a transaction that is being written. IO.
//!
//! | key | value |
//! |---|---|
//! | `R`, table, primary key | load, length of the links, links, cells |
//! | `L`, table, link, value, primary key | |
//!
//! Numbers are big-endian: tables and links two bytes, the others four. A link is its value's length and one more, then the value; 0 is none.

use std::{ops::Bound, sync::Arc};

use redb::{Database, ReadableTable, StorageError, Table, TableDefinition, WriteTransaction};

use super::HeldRow;

const PAIRS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("pairs");
const ROW: u8 = b'R';
const LINK: u8 = b'L';
const NUMBER: usize = size_of::<u32>();

/// What is being written, which is read like what has been.
pub(super) struct Overlay {
    // In this order: the table is given back before the transaction ends.
    pairs: Table<'static, &'static [u8], &'static [u8]>,
    transaction: Arc<WriteTransaction>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Overlay {
    pub(super) fn begin(database: &Database) -> Result<Self, redb::Error> {
        let transaction = Arc::new(database.begin_write()?);
        // Opened once, since that takes as long as half of a look-up, and so that `each` of `linked` may look rows up.
        // SAFETY: the transaction stays where it is for as long as the `Arc`, which is dropped or moved out of only after the table.
        let pairs = unsafe { &*Arc::as_ptr(&transaction) }.open_table(PAIRS)?;
        Ok(Self { pairs, transaction, key: Vec::new(), value: Vec::new() })
    }

    /// What was written, to be committed.
    pub(super) fn end(self) -> WriteTransaction {
        let Self { pairs, transaction, .. } = self;
        drop(pairs);
        Arc::into_inner(transaction).expect("it is shared with nobody")
    }

    pub(super) fn get(
        &self,
        table: u16,
        key: &[u8],
        load: Option<u32>,
        out: &mut Vec<u8>,
    ) -> Result<bool, redb::Error> {
        let mut full = Vec::with_capacity(key.len() + 3);
        row_key(table, key, &mut full);
        let Some(found) = self.pairs.get(&full[..])? else { return Ok(false) };
        let row = Row::read(found.value())?;
        let is_there = Some(row.load) == load;
        if is_there {
            out.extend_from_slice(row.cells);
        }
        Ok(is_there)
    }

    pub(super) fn linked(
        &self,
        table: u16,
        link: u16,
        value: &[u8],
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(), redb::Error> {
        let mut from = Vec::with_capacity(value.len() + 5);
        link_key(table, link, value, &[], &mut from);
        for pair in self.pairs.range::<&[u8]>(&from[..]..)? {
            let (pair, _) = pair?;
            let Some(key) = pair.value().strip_prefix(&from[..]) else { break };
            each(key);
        }
        Ok(())
    }

    /// Whether there was none with its key.
    pub(super) fn put(&mut self, row: &HeldRow<'_>) -> Result<bool, redb::Error> {
        let Self { pairs, key, value, .. } = self;
        row_key(row.table, row.key, key);
        let links = write_value(row, value);
        let old = pairs.insert(&key[..], &value[..])?;
        let old_links = match &old {
            None => None,
            // Mostly they are the same.
            Some(old) => match Row::read(old.value())?.links {
                same if same == &value[links.clone()] => return Ok(false),
                other => Some(other.to_vec()),
            },
        };
        drop(old);
        let old = old_links.as_deref().unwrap_or_default();
        let new = &value[links];
        let mut pair = Vec::new();
        for (number, (old, new)) in both(old, new).enumerate().filter(|(_, (old, new))| old != new) {
            if let Some(old) = old {
                link_key(row.table, number as u16, old, row.key, &mut pair);
                pairs.remove(&pair[..])?;
            }
            if let Some(new) = new {
                link_key(row.table, number as u16, new, row.key, &mut pair);
                pairs.insert(&pair[..], &[][..])?;
            }
        }
        Ok(old_links.is_none())
    }

    /// Whether it was there.
    pub(super) fn delete(&mut self, table: u16, key: &[u8]) -> Result<bool, redb::Error> {
        let Self { pairs, key: full, .. } = self;
        row_key(table, key, full);
        let Some(old) = pairs.remove(&full[..])? else { return Ok(false) };
        let links = Row::read(old.value())?.links.to_vec();
        drop(old);
        for (number, value) in links_of(&links).enumerate() {
            if let Some(value) = value {
                link_key(table, number as u16, value, key, full);
                pairs.remove(&full[..])?;
            }
        }
        Ok(true)
    }

    pub(super) fn after(
        &self,
        table: u16,
        from: Bound<&[u8]>,
        key: &mut Vec<u8>,
        cells: &mut Vec<u8>,
    ) -> Result<Option<u32>, redb::Error> {
        let mut prefix = Vec::new();
        row_key(table, &[], &mut prefix);
        let from = from.map(|key| [&prefix[..], key].concat());
        let from = from.as_ref().map(|key| &key[..]);
        let Some(pair) = self.pairs.range::<&[u8]>((from, Bound::Unbounded))?.next() else { return Ok(None) };
        let (pair, value) = pair?;
        let Some(found) = pair.value().strip_prefix(&prefix[..]) else { return Ok(None) };
        let row = Row::read(value.value())?;
        key.extend_from_slice(found);
        cells.extend_from_slice(row.cells);
        Ok(Some(row.load))
    }
}

/// A row's value.
struct Row<'a> {
    load: u32,
    links: &'a [u8],
    cells: &'a [u8],
}

impl<'a> Row<'a> {
    fn read(value: &'a [u8]) -> Result<Self, redb::Error> {
        let read = || {
            let (load, rest) = number(value)?;
            let (len, rest) = number(rest)?;
            let (links, cells) = rest.split_at_checked(len as usize)?;
            Some(Self { load, links, cells })
        };
        read().ok_or_else(|| StorageError::Corrupted("a row is too short".into()).into())
    }
}

/// Writes a row's value, and says where its links are in it.
fn write_value(row: &HeldRow<'_>, out: &mut Vec<u8>) -> std::ops::Range<usize> {
    out.clear();
    out.extend_from_slice(&row.load.to_be_bytes());
    out.extend_from_slice(&[0; NUMBER]);
    let from = out.len();
    for link in row.links {
        out.extend_from_slice(&link.map_or(0, |value| value.len() as u32 + 1).to_be_bytes());
        out.extend_from_slice(link.unwrap_or_default());
    }
    let links = from..out.len();
    out[from - NUMBER..from].copy_from_slice(&(links.len() as u32).to_be_bytes());
    out.extend_from_slice(row.cells);
    links
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<NUMBER>()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// The links of a row, by number.
fn links_of(mut links: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        let (len, rest) = number(links)?;
        let (value, rest) = rest.split_at_checked((len as usize).saturating_sub(1))?;
        links = rest;
        Some((len > 0).then_some(value))
    })
}

/// The links of two rows side by side, by number.
fn both<'a>(old: &'a [u8], new: &'a [u8]) -> impl Iterator<Item = (Option<&'a [u8]>, Option<&'a [u8]>)> {
    let (mut old, mut new) = (links_of(old), links_of(new));
    std::iter::from_fn(move || match (old.next(), new.next()) {
        (None, None) => None,
        (old, new) => Some((old.flatten(), new.flatten())),
    })
}

fn row_key(table: u16, key: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.push(ROW);
    out.extend_from_slice(&table.to_be_bytes());
    out.extend_from_slice(key);
}

fn link_key(table: u16, link: u16, value: &[u8], key: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.push(LINK);
    out.extend_from_slice(&table.to_be_bytes());
    out.extend_from_slice(&link.to_be_bytes());
    out.extend_from_slice(value);
    out.extend_from_slice(key);
}
