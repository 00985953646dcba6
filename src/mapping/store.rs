//! Where a transaction's net rows are kept and put in order: in memory, or in a file without a name when they are too many.
//!
//! Both hold the same pairs of bytes in the same order, so that what is made of them does not depend on which it is.

use std::{
    fmt::Display,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use redb::{
    Builder, Database, Durability, Range, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, StorageBackend, Table, TableDefinition, WriteTransaction, backends::FileBackend,
};

use super::{
    MapError,
    held::{Completed, Held},
    net::Net,
    row::{Cells, fill, write_sorted_key},
    rules::MappedTable,
};
use crate::transaction::{Spill, SpillError};

/// Net rows of one transaction, and references to them in the order in which events are made.
pub(super) struct Store {
    spill: Spill,
    net: Net,
    pairs: Pairs,
    disk: Option<Disk>,
}

/// Where a walk over the references is.
#[derive(Default)]
pub(super) struct Cursor {
    at: usize,
    range: Option<Range<'static, &'static [u8], &'static [u8]>>,
    /// The reference here; empty at the end.
    pub(super) key: Vec<u8>,
    /// Its value.
    pub(super) value: Vec<u8>,
}

/// Which row a reference is to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Index in `Rules::tables`.
    pub(super) table: usize,
    /// Its primary key as `write_sorted_key` has it: after the transaction, or before it when it is gone.
    pub(super) key: &'a [u8],
    /// It is there after the transaction.
    pub(super) is_there: bool,
    /// Its number among the transaction's net rows.
    pub(super) number: u32,
}

/// One net row that is to be put in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visited<'a> {
    /// Index in `Rules::tables`.
    pub(super) table: usize,
    /// Its number among the transaction's net rows.
    pub(super) number: u32,
    /// As it was.
    pub(super) before: Option<Cells<'a>>,
    /// As it is.
    pub(super) after: Option<Cells<'a>>,
}

/// Takes references.
pub(super) struct References<'a, 'txn> {
    pairs: &'a mut Pairs,
    spill: &'a Spill,
    disk: Option<(Bytes<'txn>, &'a Bounds)>,
}

/// Pairs of bytes in one buffer.
#[derive(Debug, Default)]
struct Pairs {
    bytes: Vec<u8>,
    /// Start, length of the key, length of the value behind it.
    places: Vec<(u32, u32, u32)>,
    /// So many are in order.
    sorted: usize,
}

type Bytes<'txn> = Table<'txn, &'static [u8], &'static [u8]>;
type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Table and primary key after -> the row before, with its length in front, and after.
const THERE: Definition = TableDefinition::new("there");
/// Table and primary key before, of rows that are gone or whose key was taken by an insert -> the row before.
const GONE: Definition = TableDefinition::new("gone");
/// References.
const REFERENCES: Definition = TableDefinition::new("references");
/// In place of the length of a row before that was not there.
const NOT_THERE: u32 = u32::MAX;
/// redb wants a few pages.
const CACHE_BYTES_MIN: usize = 64 * 1024;

impl Store {
    pub(super) fn new(spill: Spill) -> Self {
        Self { spill, net: Net::default(), pairs: Pairs::default(), disk: None }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.net.clear(self.spill.memory_max);
        self.pairs.clear();
        self.pairs.bytes.shrink_to(self.spill.memory_max);
        self.disk = None;
    }

    /// Bytes of the file, when there is one.
    pub(super) fn file_bytes(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.bounds.len.load(Ordering::Relaxed))
    }

    /// The rows of the transaction so far, to add a change to. Half of the memory is for what is being read from the disk.
    pub(super) fn net(&mut self, tables: &[MappedTable]) -> Result<&mut Net, SpillError> {
        if self.net.bytes() > self.spill.memory_max / 2 {
            self.spill(tables)?;
        }
        Ok(&mut self.net)
    }

    /// Whether the transaction may have touched rows of a table.
    pub(super) fn may_have(&self, table: usize) -> bool {
        self.disk.is_some() || (0..self.net.len()).any(|entry| self.net.row(entry).0 == table)
    }

    /// Forgets the rows of a table.
    pub(super) fn forget(&mut self, table: usize, tables: &[MappedTable]) -> Result<(), SpillError> {
        self.net.forget(table, tables[table].key_len);
        let Some(disk) = &mut self.disk else { return Ok(()) };
        let (first, end) = (table_prefix(table), table_prefix(table + 1));
        disk.write(&self.spill, |transaction| {
            for definition in [THERE, GONE] {
                let mut rows = transaction.open_table(definition)?;
                rows.retain_in(&first[..]..&end[..], |_, _| false)?;
            }
            Ok(())
        })
    }

    /// The end of the changes: rows of held tables are completed. Then calls `refer` for each net row in each pass that it is of.
    pub(super) fn settle(
        &mut self,
        tables: &[MappedTable],
        held: &Held,
        gone: Gone,
        is_of: impl Fn(usize, Pass) -> bool,
        mut refer: impl FnMut(Pass, Visited<'_>, &mut References<'_, '_>) -> Result<(), SpillError>,
    ) -> Result<(), MapError> {
        let passes = if held.is_any() { &Pass::ALL[..] } else { &Pass::ALL[..2] };
        if self.disk.is_some() {
            self.spill(tables)?;
        } else {
            self.net.settle(|table| tables[table].key_len);
        }
        if held.is_any() && !self.complete(tables, held, gone)? {
            self.spill(tables)?;
            self.complete(tables, held, gone)?;
        }
        let Self { spill, net, pairs, disk } = self;
        let Some(disk) = disk else {
            let mut references = References { pairs, spill, disk: None };
            for &pass in passes {
                for entry in 0..net.len() {
                    let (table, before, after) = net.row(entry);
                    if is_of(table, pass) && (before.is_some() || after.is_some()) {
                        refer(pass, Visited { table, number: entry as u32, before, after }, &mut references)?;
                    }
                }
                references.end()?;
            }
            return Ok(());
        };
        let Disk { writer, bounds, rows, .. } = disk;
        let transaction = writer.as_mut().expect("it is written to until now");
        let failed = |error: redb::Error| bounds.failed(spill, error);
        let mut visit = || -> Result<Result<(), SpillError>, redb::Error> {
            let (there, gone) = (transaction.open_table(THERE)?, transaction.open_table(GONE)?);
            let references = transaction.open_table(REFERENCES)?;
            let mut references = References { pairs, spill, disk: Some((references, bounds)) };
            let none_gone = gone.is_empty()?;
            let mut first = vec![None; tables.len()];
            for &pass in passes {
                for table in (0..tables.len()).filter(|&table| is_of(table, pass)) {
                    let mut number = *first[table].get_or_insert(*rows);
                    let (from, to) = (table_prefix(table), table_prefix(table + 1));
                    for pair in there.range(&from[..]..&to[..])? {
                        let (key, value) = pair?;
                        let (before, after) = split(value.value());
                        let was = if before.is_none() && !none_gone { gone.get(key.value())? } else { None };
                        let before = before.or(was.as_ref().map(|row| Cells { bytes: row.value() }));
                        let visited = Visited { table, number, before, after: Some(after) };
                        if let Err(error) = refer(pass, visited, &mut references) {
                            return Ok(Err(error));
                        }
                        number += 1;
                    }
                    for pair in gone.range(&from[..]..&to[..])? {
                        let (key, value) = pair?;
                        if there.get(key.value())?.is_some_and(|row| split(row.value()).0.is_none()) {
                            continue;
                        }
                        let before = Some(Cells { bytes: value.value() });
                        if let Err(error) = refer(pass, Visited { table, number, before, after: None }, &mut references)
                        {
                            return Ok(Err(error));
                        }
                        number += 1;
                    }
                    *rows = (*rows).max(number);
                }
                if let Err(error) = references.end() {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        };
        visit().map_err(failed)??;
        Ok(disk.read(spill)?)
    }

    /// Fills in what the log does not say of rows and the replica knows. False when memory does not hold it.
    fn complete(&mut self, tables: &[MappedTable], held: &Held, gone: Gone) -> Result<bool, MapError> {
        let Self { spill, net, disk, .. } = self;
        let mut completed = Completed::default();
        let Some(disk) = disk else {
            for entry in 0..net.len() {
                let (table, Some(before), after) = net.row(entry) else { continue };
                if !held.is_now(table) || after.is_none() && gone == Gone::Left {
                    continue;
                }
                if held.complete(&tables[table], table, (before, after), &mut completed)? {
                    net.complete(entry, &completed.before, &completed.after);
                }
                if net.bytes() > spill.memory_max {
                    return Ok(false);
                }
            }
            return Ok(true);
        };
        let transaction = disk.writer.as_ref().expect("it is written to until now");
        let failed = |error: redb::Error| disk.bounds.failed(spill, error);
        let (batch_max, mut value, mut from) = (spill.memory_max / 4, Vec::new(), Vec::new());
        let mut batch = Pairs::default();
        for table in (0..tables.len()).filter(|&table| held.is_now(table)) {
            for (definition, is_gone) in [(THERE, false), (GONE, true)] {
                if is_gone && gone == Gone::Left {
                    continue;
                }
                let mut rows = transaction.open_table(definition).map_err(|error| failed(error.into()))?;
                let end = table_prefix(table + 1);
                from.clear();
                from.extend_from_slice(&table_prefix(table));
                // What is read is not written to at the same time: a batch of rows, then what has become of them.
                loop {
                    batch.clear();
                    let mut next = None;
                    for pair in rows.range(&from[..]..&end[..]).map_err(|error| failed(error.into()))? {
                        let (key, row) = pair.map_err(|error| failed(error.into()))?;
                        let (before, after) = if is_gone {
                            (Some(Cells { bytes: row.value() }), None)
                        } else {
                            let (before, after) = split(row.value());
                            (before, Some(after))
                        };
                        let Some(before) = before else { continue };
                        if !held.complete(&tables[table], table, (before, after), &mut completed)? {
                            continue;
                        }
                        let before = Cells { bytes: &completed.before };
                        if after.is_some() {
                            join(Some(before), &completed.after, &mut value);
                            batch.push(key.value(), &value);
                        } else {
                            batch.push(key.value(), before.bytes);
                        }
                        if batch.memory() > batch_max {
                            next = Some([key.value(), &[0]].concat());
                            break;
                        }
                    }
                    for (key, row) in batch.iter() {
                        rows.insert(key, row).map_err(|error| failed(error.into()))?;
                    }
                    match next {
                        Some(next) => from = next,
                        None => break,
                    }
                }
            }
        }
        Ok(true)
    }

    /// Appends the value of a reference; false when there is none.
    pub(super) fn get(&self, key: &[u8], value: &mut Vec<u8>) -> Result<bool, SpillError> {
        match &self.disk {
            None => Ok(self.pairs.get(key, value)),
            Some(disk) => disk.get(&disk.reader().references, key, value, &self.spill),
        }
    }

    /// Goes to the first reference at or after a key.
    pub(super) fn seek(&self, key: &[u8], cursor: &mut Cursor) -> Result<(), SpillError> {
        match &self.disk {
            None => cursor.at = self.pairs.first_from(key),
            Some(disk) => {
                let range = disk.reader().references.range(key..);
                cursor.range = Some(range.map_err(|error| disk.bounds.failed(&self.spill, error))?);
            }
        }
        self.step(cursor)
    }

    /// Goes to the next reference.
    pub(super) fn step(&self, cursor: &mut Cursor) -> Result<(), SpillError> {
        cursor.key.clear();
        cursor.value.clear();
        match &self.disk {
            None => {
                if let Some((key, value)) = self.pairs.pair(cursor.at) {
                    cursor.key.extend_from_slice(key);
                    cursor.value.extend_from_slice(value);
                    cursor.at += 1;
                }
            }
            Some(disk) => {
                let next = cursor.range.as_mut().and_then(|range| range.next()).transpose();
                if let Some((key, value)) = next.map_err(|error| disk.bounds.failed(&self.spill, error))? {
                    cursor.key.extend_from_slice(key.value());
                    cursor.value.extend_from_slice(value.value());
                }
            }
        }
        Ok(())
    }

    /// Appends a row before and after, and says how long each is.
    pub(super) fn row(
        &self,
        place: Place<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(Option<usize>, Option<usize>), SpillError> {
        let mut append = |row: Option<Cells<'_>>| {
            row.map(|row| {
                out.extend_from_slice(row.bytes);
                row.bytes.len()
            })
        };
        let Some(disk) = &self.disk else {
            let (_, before, after) = self.net.row(place.number as usize);
            return Ok((append(before), append(after)));
        };
        let mut key = table_prefix(place.table).to_vec();
        key.extend_from_slice(place.key);
        let failed = |error| disk.bounds.failed(&self.spill, error);
        let Reader { there, gone, .. } = disk.reader();
        if !place.is_there {
            let row = gone.get(&key[..]).map_err(failed)?.expect("a reference is to a row");
            return Ok((append(Some(Cells { bytes: row.value() })), None));
        }
        let row = there.get(&key[..]).map_err(failed)?.expect("a reference is to a row");
        let (before, after) = split(row.value());
        let before = match before {
            None => {
                let was = gone.get(&key[..]).map_err(failed)?;
                append(was.as_ref().map(|row| Cells { bytes: row.value() }))
            }
            before => append(before),
        };
        Ok((before, append(Some(after))))
    }

    /// Appends a row as it is after the transaction.
    pub(super) fn row_after(&self, place: Place<'_>, out: &mut Vec<u8>) -> Result<(), SpillError> {
        let start = out.len();
        let (before, after) = self.row(place, out)?;
        after.expect("it is there");
        out.drain(start..start + before.unwrap_or(0));
        Ok(())
    }

    /// Adds what is in memory to what is on disk.
    fn spill(&mut self, tables: &[MappedTable]) -> Result<(), SpillError> {
        let disk = match &mut self.disk {
            Some(disk) => disk,
            None => self.disk.insert(Disk::new(&self.spill)?),
        };
        let net = &self.net;
        disk.write(&self.spill, |transaction| absorb(net, tables, transaction))?;
        self.net.clear(self.spill.memory_max);
        Ok(())
    }
}

/// Which rows are put in order: those of roots come first, since they say where children hung before a root's key changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Roots,
    Children,
    /// Of held tables.
    Held,
}

impl Pass {
    const ALL: [Pass; 3] = [Pass::Roots, Pass::Children, Pass::Held];
}

/// What of rows that are gone: whether anybody asks for what they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// They are completed as others are.
    Completed,
    /// The replica may not have them any more.
    Left,
}

/// Net changes on top of the net changes that are there: a row's state before is the older one's, its state after the newer one's.
fn absorb(net: &Net, tables: &[MappedTable], transaction: &WriteTransaction) -> Result<(), redb::Error> {
    let (mut there, mut gone) = (transaction.open_table(THERE)?, transaction.open_table(GONE)?);
    let key_of = |table: usize, row: Cells<'_>| {
        let mut key = table_prefix(table).to_vec();
        write_sorted_key(&tables[table], row, &mut key);
        key
    };
    // In the order of the tree, which is kinder to it.
    let mut keys = Pairs::default();
    for entry in 0..net.len() {
        if let (table, Some(before), _) = net.row(entry) {
            keys.push(&key_of(table, before), &(entry as u32).to_be_bytes());
        }
    }
    keys.sort();
    let mut arrived = Pairs::default();
    let (mut value, mut filled) = (Vec::new(), Vec::new());
    for (key, entry) in keys.iter() {
        let (table, before, after) = net.row(number(entry) as usize);
        let before = before.expect("only those were taken");
        let known = there.remove(key)?;
        let (older, last) = known.as_ref().map(|row| split(row.value())).unzip();
        let before = older.unwrap_or(Some(before));
        match after {
            Some(after) => {
                filled.clear();
                fill(after, last.unwrap_or(after), &mut filled);
                join(before, &filled, &mut value);
                drop(known);
                let new_key = key_of(table, after);
                if new_key == key {
                    there.insert(key, &value[..])?;
                } else {
                    // After all that leave have left.
                    arrived.push(&new_key, &value);
                }
            }
            None => {
                if let Some(before) = before {
                    gone.insert(&key_of(table, before)[..], before.bytes)?;
                }
            }
        }
    }
    for entry in 0..net.len() {
        if let (table, None, Some(after)) = net.row(entry) {
            join(None, after.bytes, &mut value);
            arrived.push(&key_of(table, after), &value);
        }
    }
    arrived.sort();
    for (key, value) in arrived.iter() {
        there.insert(key, value)?;
    }
    Ok(())
}

fn join(before: Option<Cells<'_>>, after: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&before.map_or(NOT_THERE, |row| row.bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(before.map_or(&[], |row| row.bytes));
    out.extend_from_slice(after);
}

fn split(value: &[u8]) -> (Option<Cells<'_>>, Cells<'_>) {
    let (len, rows) = value.split_at(size_of::<u32>());
    match number(len) {
        NOT_THERE => (None, Cells { bytes: rows }),
        len => {
            let (before, after) = rows.split_at(len as usize);
            (Some(Cells { bytes: before }), Cells { bytes: after })
        }
    }
}

/// What a number is written as in values of references.
pub(super) fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("written as four bytes"))
}

fn table_prefix(table: usize) -> [u8; 2] {
    (table as u16).to_be_bytes()
}

impl References<'_, '_> {
    /// Takes one. Two with one key are the same.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), SpillError> {
        self.pairs.push(key, value);
        if self.disk.is_some() && self.pairs.memory() > self.spill.memory_max / 4 { self.flush() } else { Ok(()) }
    }

    /// The value of one that was taken in an earlier pass.
    pub(super) fn get(&self, key: &[u8], value: &mut Vec<u8>) -> Result<bool, SpillError> {
        let Some((table, bounds)) = &self.disk else { return Ok(self.pairs.get(key, value)) };
        let found = table.get(key).map_err(|error| bounds.failed(self.spill, error))?;
        Ok(found.map(|found| value.extend_from_slice(found.value())).is_some())
    }

    /// The end of a pass.
    fn end(&mut self) -> Result<(), SpillError> {
        if self.disk.is_some() {
            return self.flush();
        }
        self.pairs.sort();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SpillError> {
        let (table, bounds) = self.disk.as_mut().expect("only what is on disk is flushed");
        self.pairs.sort();
        for (key, value) in self.pairs.iter() {
            table.insert(key, value).map_err(|error| bounds.failed(self.spill, error))?;
        }
        self.pairs.clear();
        Ok(())
    }
}

impl Pairs {
    fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
        self.sorted = 0;
    }

    fn memory(&self) -> usize {
        self.bytes.len() + self.places.len() * size_of::<(u32, u32, u32)>()
    }

    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.places.push((self.bytes.len() as u32, key.len() as u32, value.len() as u32));
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
    }

    fn sort(&mut self) {
        let Self { bytes, places, sorted } = self;
        let key = |&(start, len, _): &(u32, u32, u32)| &bytes[start as usize..][..len as usize];
        places.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        *sorted = places.len();
    }

    fn pair(&self, at: usize) -> Option<(&[u8], &[u8])> {
        let &(start, key, value) = self.places.get(at)?;
        let (key, rest) = self.bytes[start as usize..].split_at(key as usize);
        Some((key, &rest[..value as usize]))
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (0..self.places.len()).map_while(|at| self.pair(at))
    }

    fn first_from(&self, key: &[u8]) -> usize {
        self.places[..self.sorted]
            .partition_point(|&(start, len, _)| &self.bytes[start as usize..][..len as usize] < key)
    }

    fn get(&self, key: &[u8], value: &mut Vec<u8>) -> bool {
        let at = self.first_from(key);
        let found = self.pair(at).filter(|(found, _)| at < self.sorted && *found == key);
        found.map(|(_, found)| value.extend_from_slice(found)).is_some()
    }
}

/// A B-tree in a file without a name.
struct Disk {
    // Before the database, so that they are dropped before it.
    reader: Option<Reader>,
    writer: Option<WriteTransaction>,
    database: Database,
    bounds: Arc<Bounds>,
    /// How many net rows there are.
    rows: u32,
}

struct Reader {
    there: ReadOnlyTable<&'static [u8], &'static [u8]>,
    gone: ReadOnlyTable<&'static [u8], &'static [u8]>,
    references: ReadOnlyTable<&'static [u8], &'static [u8]>,
    _transaction: ReadTransaction,
}

/// How large the file is, and may be.
#[derive(Debug)]
struct Bounds {
    len: AtomicU64,
    max: u64,
}

/// The file: it is never synced, since nothing of it outlives the process.
#[derive(Debug)]
struct Unnamed {
    file: FileBackend,
    bounds: Arc<Bounds>,
}

impl Disk {
    fn new(spill: &Spill) -> Result<Self, SpillError> {
        let bounds = Arc::new(Bounds { len: AtomicU64::new(0), max: spill.file_max });
        let open = || -> Result<(Database, WriteTransaction), redb::Error> {
            let file = FileBackend::new(tempfile::tempfile_in(&spill.dir)?)?;
            let cache = (spill.memory_max / 2).max(CACHE_BYTES_MIN);
            let file = Unnamed { file, bounds: bounds.clone() };
            let database = Builder::new().set_cache_size(cache).create_with_backend(file)?;
            let mut writer = database.begin_write()?;
            writer.set_durability(Durability::None).map_err(|error| redb::Error::Io(io::Error::other(error)))?;
            Ok((database, writer))
        };
        let (database, writer) = open().map_err(|error| bounds.failed(spill, error))?;
        Ok(Self { reader: None, writer: Some(writer), database, bounds, rows: 0 })
    }

    fn write(
        &mut self,
        spill: &Spill,
        work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), SpillError> {
        let transaction = self.writer.as_ref().expect("it is written to until it is read");
        work(transaction).map_err(|error| self.bounds.failed(spill, error))
    }

    /// The end of the writing.
    fn read(&mut self, spill: &Spill) -> Result<(), SpillError> {
        let writer = self.writer.take().expect("it is read after it was written to");
        let open = || -> Result<Reader, redb::Error> {
            writer.commit()?;
            let transaction = self.database.begin_read()?;
            Ok(Reader {
                there: transaction.open_table(THERE)?,
                gone: transaction.open_table(GONE)?,
                references: transaction.open_table(REFERENCES)?,
                _transaction: transaction,
            })
        };
        self.reader = Some(open().map_err(|error| self.bounds.failed(spill, error))?);
        Ok(())
    }

    fn reader(&self) -> &Reader {
        self.reader.as_ref().expect("it is read once it is settled")
    }

    fn get(
        &self,
        table: &ReadOnlyTable<&'static [u8], &'static [u8]>,
        key: &[u8],
        value: &mut Vec<u8>,
        spill: &Spill,
    ) -> Result<bool, SpillError> {
        let found = table.get(key).map_err(|error| self.bounds.failed(spill, error))?;
        Ok(found.map(|found| value.extend_from_slice(found.value())).is_some())
    }
}

impl Bounds {
    fn failed(&self, spill: &Spill, error: impl Into<redb::Error> + Display) -> SpillError {
        if self.len.load(Ordering::Relaxed) > self.max {
            return SpillError::TooLarge { max: self.max };
        }
        let cause = match error.into() {
            redb::Error::Io(cause) => cause,
            error => io::Error::other(error),
        };
        SpillError::Io { dir: spill.dir.clone(), cause }
    }
}

impl StorageBackend for Unnamed {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bounds.len.store(len, Ordering::Relaxed);
        if len > self.bounds.max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }
}
