//! Where a transaction's net rows are kept and put in order: in memory, or in files without names when they are too many.
//!
//! What memory held of a transaction is a piece. A piece in a file says of each primary key what has become of the row that had it,
//! and pieces are put together key by key, an older one below a newer one. Only a row whose primary key changes is at two places:
//! the piece that has one is put together with all that are there at once.

use std::{cell::RefCell, sync::Arc};

pub(super) use super::runs::{Cursor, Sorted};
use super::{
    MapError,
    held::{Completed, Held},
    net::Net,
    row::{Cells, fill, write_sorted_key},
    rules::MappedTable,
    runs::{Files, Merge, Pairs, Run, Runs, Window, Writer},
};
#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};
use crate::transaction::{Spill, SpillError};

/// Net rows of one transaction, and references to them in the order in which events are made.
pub(super) struct Store {
    memory_max: usize,
    net: Net,
    references: Sorted,
    files: Arc<Files>,
    /// Net rows in files, by table and primary key.
    pieces: Runs,
    settled: Option<InFile>,
}

/// Net rows in a file, in the end.
struct InFile {
    rows: Run,
    /// What was read of it last, by table.
    windows: RefCell<Vec<Window>>,
}

/// Where a net row is.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowId {
    /// Counts the transaction's net rows.
    pub(super) number: u32,
    /// In the file, when they are in one.
    at: u64,
}

/// Which row a reference is to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Index in `Rules::tables`.
    pub(super) table: usize,
    /// It is there after the transaction.
    pub(super) is_there: bool,
    /// Where it is.
    pub(super) id: RowId,
}

/// One net row that is to be put in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visited<'a> {
    /// Index in `Rules::tables`.
    pub(super) table: usize,
    /// Where it is.
    pub(super) id: RowId,
    /// As it was.
    pub(super) before: Option<Cells<'a>>,
    /// As it is.
    pub(super) after: Option<Cells<'a>>,
}

/// What has become of a primary key, by what was there when the piece began.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Effect<'a> {
    /// The row that had it and is no more.
    gone: Option<Cells<'a>>,
    /// The row that has it: as it was, when it was there, and as it is.
    there: Option<(Option<Cells<'a>>, Cells<'a>)>,
    /// That row had another key.
    came: bool,
}

impl Store {
    pub(super) fn new(spill: Spill) -> Self {
        let memory_max = spill.memory_max;
        let files = Files::new(spill);
        let references = Sorted::new(files.clone());
        Self { memory_max, net: Net::default(), references, files, pieces: Runs::default(), settled: None }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.net.clear(self.memory_max);
        self.references.clear();
        self.pieces.replace([]);
        self.settled = None;
    }

    /// Bytes of the files, when there are any.
    pub(super) fn file_bytes(&self) -> u64 {
        self.files.bytes()
    }

    /// The rows of the transaction so far, to add a change to. Half of the memory is for what is being read from the disk.
    pub(super) fn net(&mut self, tables: &[MappedTable]) -> Result<&mut Net, MapError> {
        if self.net.bytes() > self.memory_max / 2 {
            self.spill(tables)?;
        }
        Ok(&mut self.net)
    }

    /// Whether the transaction may have touched rows of a table.
    pub(super) fn may_have(&self, table: usize) -> bool {
        self.pieces.is_any() || (0..self.net.len()).any(|entry| self.net.row(entry).0 == table)
    }

    /// Forgets the rows of a table.
    pub(super) fn forget(&mut self, table: usize, tables: &[MappedTable]) -> Result<(), MapError> {
        self.net.forget(table, tables[table].key_len);
        if self.pieces.is_any() {
            let kept = merged(&self.files, tables, &self.pieces.all(), None, |of| of != table)?;
            self.pieces.replace(kept);
        }
        Ok(())
    }

    /// The end of the changes: rows of held tables are completed. Then calls `refer` for each net row in each pass that it is of.
    pub(super) fn settle(
        &mut self,
        tables: &[MappedTable],
        held: &Held,
        gone: Gone,
        is_of: impl Fn(usize, Pass) -> bool,
        mut refer: impl FnMut(Pass, Visited<'_>, &mut Sorted) -> Result<(), SpillError>,
    ) -> Result<(), MapError> {
        if !self.pieces.is_any() {
            self.net.settle(|table| tables[table].key_len);
        }
        if self.pieces.is_any() || !self.complete(tables, held, gone)? {
            self.settle_in_file(tables, held, gone)?;
        }
        let Self { net, references, settled, .. } = self;
        let is_any_of = |pass: &Pass| (0..tables.len()).any(|table| is_of(table, *pass));
        for pass in Pass::ALL.into_iter().filter(is_any_of) {
            match settled {
                None => {
                    for entry in 0..net.len() {
                        let (table, before, after) = net.row(entry);
                        if is_of(table, pass) && (before.is_some() || after.is_some()) {
                            let id = RowId { number: entry as u32, at: 0 };
                            refer(pass, Visited { table, id, before, after }, references)?;
                        }
                    }
                }
                Some(InFile { rows, .. }) => {
                    let (mut window, mut id) = (Window::default(), RowId { number: 0, at: 0 });
                    while let Some(pair) = rows.pair(id.at, &mut window)? {
                        let (table, effect) = (table_of(pair.key), Effect::read(pair.value).settled());
                        let there = effect.there.map(|(before, after)| (before, Some(after)));
                        for (before, after) in there.into_iter().chain(effect.gone.map(|gone| (Some(gone), None))) {
                            if is_of(table, pass) {
                                refer(pass, Visited { table, id, before, after }, references)?;
                            }
                            id.number += 1;
                        }
                        id.at = pair.next;
                    }
                }
            }
            references.end()?;
        }
        Ok(())
    }

    /// Fills in what the log does not say of rows and the replica knows. False when memory does not hold it.
    fn complete(&mut self, tables: &[MappedTable], held: &Held, gone: Gone) -> Result<bool, MapError> {
        let mut completed = Completed::default();
        for entry in 0..self.net.len() {
            let (table, Some(before), after) = self.net.row(entry) else { continue };
            if !gone.is_completed(held, table, after) {
                continue;
            }
            if held.complete(&tables[table], table, (before, after), &mut completed)? {
                self.net.complete(entry, &completed.before, &completed.after);
            }
            if self.net.bytes() > self.memory_max {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts the pieces together to one, whose rows are completed.
    fn settle_in_file(&mut self, tables: &[MappedTable], held: &Held, gone: Gone) -> Result<(), MapError> {
        self.spill(tables)?;
        // A row that had moved before it went is in a piece of its own.
        while self.pieces.all().len() > 1 {
            let pieces = merged(&self.files, tables, &self.pieces.all(), None, |_| true)?;
            self.pieces.replace(pieces);
        }
        let mut rows = self.pieces.pop().expect("a piece was written");
        if held.is_any() {
            rows = completed(&self.files, &rows, tables, held, gone)?;
        }
        let windows = tables.iter().map(|_| Window::default()).collect();
        self.settled = Some(InFile { rows, windows: RefCell::new(windows) });
        Ok(())
    }

    /// Appends the value of a reference; false when there is none.
    pub(super) fn get(&self, key: &[u8], value: &mut Vec<u8>) -> Result<bool, SpillError> {
        self.references.get(key, value)
    }

    /// Goes to the first reference at or after a key.
    pub(super) fn seek(&self, key: &[u8], cursor: &mut Cursor) -> Result<(), SpillError> {
        self.references.seek(key, cursor)
    }

    /// Goes to the next reference.
    pub(super) fn step(&self, cursor: &mut Cursor) -> Result<(), SpillError> {
        self.references.step(cursor)
    }

    /// Appends a row before and after, and says how long each is.
    pub(super) fn row(&self, place: Place, out: &mut Vec<u8>) -> Result<(Option<usize>, Option<usize>), SpillError> {
        let Place { table, is_there, id } = place;
        let mut append = |row: Option<Cells<'_>>| {
            row.map(|row| {
                out.extend_from_slice(row.bytes);
                row.bytes.len()
            })
        };
        let Some(InFile { rows, windows }) = &self.settled else {
            let (_, before, after) = self.net.row(id.number as usize);
            return Ok((append(before), append(after)));
        };
        let mut windows = windows.borrow_mut();
        let pair = rows.pair(id.at, &mut windows[table])?.expect("a reference is to a row");
        let effect = Effect::read(pair.value).settled();
        Ok(match effect.there {
            Some((before, after)) if is_there => (append(before), append(Some(after))),
            _ => (append(effect.gone), None),
        })
    }

    /// Appends a row as it is after the transaction.
    pub(super) fn row_after(&self, place: Place, out: &mut Vec<u8>) -> Result<(), SpillError> {
        let start = out.len();
        let (before, after) = self.row(place, out)?;
        after.expect("it is there");
        out.drain(start..start + before.unwrap_or(0));
        Ok(())
    }

    /// What is in memory becomes the newest piece.
    fn spill(&mut self, tables: &[MappedTable]) -> Result<(), SpillError> {
        let Self { net, files, pieces, memory_max, .. } = self;
        let newest = Newest::of(net, tables);
        if newest.moves {
            let all = merged(files, tables, &pieces.all(), Some(&newest), |_| true)?;
            pieces.replace(all);
        } else {
            let one = |pieces: &[&Run], newest| -> Result<Run, SpillError> {
                let mut all = merged(files, tables, pieces, newest, |_| true)?;
                Ok(all.pop().expect("there is one at least"))
            };
            pieces.push(one(&[], Some(&newest))?, |pieces| one(pieces, None))?;
        }
        net.clear(*memory_max);
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

impl Gone {
    fn is_completed(self, held: &Held, table: usize, after: Option<Cells<'_>>) -> bool {
        held.is_now(table) && (after.is_some() || self == Gone::Completed)
    }
}

impl RowId {
    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.number.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.at.to_ne_bytes());
        bytes
    }

    /// What a value begins with that it was written to.
    pub(super) fn read(value: &[u8]) -> Self {
        let (number, rest) = value.split_first_chunk().expect("written with its number");
        let at = rest.first_chunk().expect("written with its place");
        Self { number: u32::from_ne_bytes(*number), at: u64::from_ne_bytes(*at) }
    }

    /// How many bytes it is written as.
    pub(super) const LEN: usize = 12;
}

impl<'a> Effect<'a> {
    const NONE: Self = Self { gone: None, there: None, came: false };
    const GONE: u8 = 1;
    const THERE: u8 = 2;
    const BEFORE: u8 = 4;
    const CAME: u8 = 8;

    /// Shape: a byte of flags, the lengths of `gone` and of the row before where they are there, then the rows, the one after last.
    fn write(&self, out: &mut Vec<u8>) {
        let before = self.there.and_then(|(before, _)| before);
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        out.push(
            flag(self.gone.is_some(), Self::GONE)
                | flag(self.there.is_some(), Self::THERE)
                | flag(before.is_some(), Self::BEFORE)
                | flag(self.came, Self::CAME),
        );
        for row in [self.gone, before].into_iter().flatten() {
            out.extend_from_slice(&(row.bytes.len() as u32).to_ne_bytes());
        }
        for row in [self.gone, before, self.there.map(|(_, after)| after)].into_iter().flatten() {
            out.extend_from_slice(row.bytes);
        }
    }

    /// Of no bytes: nothing has become of the key.
    fn read(bytes: &'a [u8]) -> Self {
        let Some((flags, mut rest)) = bytes.split_first() else { return Self::NONE };
        let mut len = |flag: u8| {
            (flags & flag != 0).then(|| {
                let (len, others) = rest.split_first_chunk().expect("written with its length");
                rest = others;
                u32::from_ne_bytes(*len) as usize
            })
        };
        let (gone, before) = (len(Self::GONE), len(Self::BEFORE));
        let mut row = |len: usize| {
            let (bytes, others) = rest.split_at(len);
            rest = others;
            Cells { bytes }
        };
        let (gone, before) = (gone.map(&mut row), before.map(&mut row));
        let after = Cells { bytes: rest };
        Self { gone, there: (flags & Self::THERE != 0).then_some((before, after)), came: flags & Self::CAME != 0 }
    }

    /// This, and then what a newer piece says of the key. Also the row that is gone from here and had come from elsewhere.
    fn then(self, newer: Effect<'a>, filled: &'a mut Vec<u8>) -> (Self, Option<Cells<'a>>) {
        let Some((before, last)) = self.there else {
            return (Effect { gone: self.gone.or(newer.gone), ..newer }, None);
        };
        #[cfg(test)]
        if is_planted(PlantedBug::TakesOlderPiecesForThePast) && newer.there.is_some() {
            return (Effect { gone: self.gone, ..newer }, None);
        }
        if newer.gone.is_some() {
            let (gone, elsewhere) = if self.came { (self.gone, before) } else { (self.gone.or(before), None) };
            return (Effect { gone, ..newer }, elsewhere);
        }
        let there = match newer.there {
            None => return (self, None),
            Some((Some(_), after)) if !newer.came => {
                fill(after, last, filled);
                Some((before, Cells { bytes: filled }))
            }
            // The key of a row that is there is not taken.
            Some(_) => return (Effect { gone: self.gone, ..newer }, None),
        };
        (Effect { there, ..self }, None)
    }

    /// In the end what was deleted and what was inserted at its key are one row.
    fn settled(self) -> Self {
        match (self.gone, self.there) {
            (Some(_), Some((None, after))) => Self { gone: None, there: Some((self.gone, after)), came: false },
            _ => self,
        }
    }
}

/// The piece that is in memory.
struct Newest<'a> {
    net: &'a Net,
    /// Entries by the key that they had first.
    entries: Pairs,
    /// The primary key of some row is another than it was.
    moves: bool,
}

impl<'a> Newest<'a> {
    fn of(net: &'a Net, tables: &[MappedTable]) -> Self {
        let (mut entries, mut moves, mut key) = (Pairs::default(), false, Vec::new());
        for entry in 0..net.len() {
            let (table, before, after) = net.row(entry);
            let Some(first) = before.or(after) else { continue };
            write_key(tables, table, first, &mut key);
            entries.push(&key, &(entry as u32).to_ne_bytes());
            if let (Some(before), Some(after)) = (before, after) {
                let key_len = tables[table].key_len;
                moves |= before.key(key_len) != after.key(key_len);
            }
        }
        entries.sort();
        Self { net, entries, moves }
    }

    /// The key of an entry in order, and the row before and after.
    fn entry(&self, at: usize) -> Option<(&[u8], Option<Cells<'a>>, Option<Cells<'a>>)> {
        let (key, entry) = self.entries.pair(at)?;
        let entry = u32::from_ne_bytes(entry.try_into().expect("written as four bytes"));
        let (_, before, after) = self.net.row(entry as usize);
        Some((key, before, after))
    }
}

/// Pieces, older ones first, and the newest -> one piece of the tables that are kept. Where keys have changed it may take three: before
/// it one of the rows that are gone and had another key first, behind it one of those that have another now.
fn merged(
    files: &Arc<Files>,
    tables: &[MappedTable],
    pieces: &[&Run],
    newest: Option<&Newest<'_>>,
    is_kept: impl Fn(usize) -> bool,
) -> Result<Vec<Run>, SpillError> {
    let (mut merge, mut all) = (Merge::of(pieces)?, Writer::new(files)?);
    let (mut key, mut entry) = (Vec::new(), 0);
    let mut here = Here {
        tables,
        table: 0,
        effect: Vec::new(),
        gone: Sorted::new(files.clone()),
        come: Sorted::new(files.clone()),
        spare: Vec::new(),
        row: Vec::new(),
        key: Vec::new(),
    };
    loop {
        let in_memory = newest.and_then(|newest| newest.entry(entry)).map(|(key, ..)| key);
        let Some(next) = [merge.pair().map(|(key, _)| key), in_memory].into_iter().flatten().min() else { break };
        key.clear();
        key.extend_from_slice(next);
        here.table = table_of(&key);
        here.effect.clear();
        while let Some((_, effect)) = merge.pair().filter(|(of, _)| *of == key) {
            here.add(effect)?;
            merge.step()?;
        }
        let (mut leaves, mut arrives) = (None, None);
        while let Some((_, before, after)) = newest.and_then(|n| n.entry(entry)).filter(|(of, ..)| *of == key) {
            match before {
                Some(before) => leaves = Some((before, after)),
                None => arrives = after,
            }
            entry += 1;
        }
        match leaves {
            Some((before, Some(after))) if here.is_moved(before, after) => here.leave(before, after)?,
            Some((before, Some(after))) => here.then(Effect { there: Some((Some(before), after)), ..Effect::NONE })?,
            Some((before, None)) => here.then(Effect { gone: Some(before), ..Effect::NONE })?,
            None => {}
        }
        if let Some(after) = arrives {
            here.then(Effect { there: Some((None, after)), ..Effect::NONE })?;
        }
        if is_kept(here.table) && Effect::read(&here.effect) != Effect::NONE {
            all.push(&key, &here.effect)?;
        }
    }
    let runs = [here.gone.into_run()?, Some(all.end()?), here.come.into_run()?];
    Ok(runs.into_iter().flatten().collect())
}

/// The key that pieces are being put together of.
struct Here<'a> {
    tables: &'a [MappedTable],
    table: usize,
    /// What has become of it so far, as `Effect::write` has it.
    effect: Vec<u8>,
    /// Rows that are gone and had come from elsewhere, by the keys that they had first.
    gone: Sorted,
    /// Rows that have left, by the keys that they have now.
    come: Sorted,
    spare: Vec<u8>,
    row: Vec<u8>,
    key: Vec<u8>,
}

impl Here<'_> {
    /// What a newer piece says.
    fn add(&mut self, effect: &[u8]) -> Result<(), SpillError> {
        if self.effect.is_empty() {
            self.effect.extend_from_slice(effect);
            return Ok(());
        }
        self.then(Effect::read(effect))
    }

    fn then(&mut self, newer: Effect<'_>) -> Result<(), SpillError> {
        self.spare.clear();
        self.row.clear();
        let (both, elsewhere) = Effect::read(&self.effect).then(newer, &mut self.row);
        both.write(&mut self.spare);
        if let Some(row) = elsewhere {
            write_key(self.tables, self.table, row, &mut self.key);
            let mut gone = Vec::new();
            Effect { gone: Some(row), ..Effect::NONE }.write(&mut gone);
            self.gone.put(&self.key, &gone)?;
        }
        std::mem::swap(&mut self.effect, &mut self.spare);
        Ok(())
    }

    fn is_moved(&self, before: Cells<'_>, after: Cells<'_>) -> bool {
        let key_len = self.tables[self.table].key_len;
        before.key(key_len) != after.key(key_len)
    }

    /// The row that is here, and was this one before the newest piece, has another key now.
    fn leave(&mut self, before: Cells<'_>, after: Cells<'_>) -> Result<(), SpillError> {
        let here = Effect::read(&self.effect);
        let (before, last) = here.there.unwrap_or((Some(before), after));
        let came = before.is_some_and(|before| self.is_moved(before, after));
        #[cfg(test)]
        let came = came && !is_planted(PlantedBug::GoesFromWhereItCame);
        self.row.clear();
        fill(after, last, &mut self.row);
        let there = Some((before, Cells { bytes: &self.row }));
        self.spare.clear();
        Effect { gone: None, there, came }.write(&mut self.spare);
        write_key(self.tables, self.table, after, &mut self.key);
        self.come.put(&self.key, &self.spare)?;
        self.spare.clear();
        Effect { gone: here.gone, ..Effect::NONE }.write(&mut self.spare);
        std::mem::swap(&mut self.effect, &mut self.spare);
        Ok(())
    }
}

/// Rows in a file, with what the log does not say of them and the replica knows.
fn completed(files: &Arc<Files>, rows: &Run, tables: &[MappedTable], held: &Held, gone: Gone) -> Result<Run, MapError> {
    let (mut out, mut window, mut at, mut value) = (Writer::new(files)?, Window::default(), 0, Vec::new());
    let (mut there, mut left) = (Completed::default(), Completed::default());
    while let Some(pair) = rows.pair(at, &mut window)? {
        let (table, mut effect) = (table_of(pair.key), Effect::read(pair.value).settled());
        let complete = |before, after, completed: &mut Completed| {
            let asked = gone.is_completed(held, table, after);
            Ok::<_, MapError>(asked && held.complete(&tables[table], table, (before, after), completed)?)
        };
        if let Some((Some(before), after)) = effect.there
            && complete(before, Some(after), &mut there)?
        {
            effect.there = Some((Some(Cells { bytes: &there.before }), Cells { bytes: &there.after }));
        }
        if let Some(before) = effect.gone
            && complete(before, None, &mut left)?
        {
            effect.gone = Some(Cells { bytes: &left.before });
        }
        value.clear();
        effect.write(&mut value);
        out.push(pair.key, &value)?;
        at = pair.next;
    }
    Ok(out.end()?)
}

fn write_key(tables: &[MappedTable], table: usize, row: Cells<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&(table as u16).to_be_bytes());
    write_sorted_key(&tables[table], row, out);
}

fn table_of(key: &[u8]) -> usize {
    usize::from(u16::from_be_bytes(*key.first_chunk().expect("written with its table")))
}
