//! Net changes -> the aggregates that they touch: root, and children that were added, removed or changed.

use std::collections::HashSet;

use super::{
    MapError,
    row::{Cell, Cells, sorted_len, write_sorted, write_sorted_key},
    rules::{Aggregate, Collection, Rules},
    store::{Cursor, Place, RowId, Sorted, Store, Visited},
};
#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};
use crate::transaction::SpillError;

/// What a transaction has done to one row, in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetRow<'a> {
    /// As it was before the transaction, as far as the log says; `None` when it was not there.
    pub before: Option<Cells<'a>>,
    /// As it is after it; `None` when it is gone. Unchanged values that `before` knows are filled in.
    pub after: Option<Cells<'a>>,
}

/// One aggregate that a transaction has touched.
#[derive(Clone, Debug)]
pub struct Touched<'a> {
    /// Index in `Rules::aggregates`.
    pub aggregate: usize,
    /// What has been done to the root; `None` when only children were touched.
    pub root: Option<NetRow<'a>>,
    /// The root's primary key as text where only children were touched, whose link says it.
    pub root_key: Option<&'a [u8]>,
    /// Children that the transaction has touched, by collection, then by their primary key; where they are listed, the others too.
    pub children: Vec<Child<'a>>,
}

/// One child that a transaction has touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child<'a> {
    /// Index in `Aggregate::children`.
    pub collection: usize,
    /// What has been done to it.
    pub row: NetRow<'a>,
    /// It hung on this root before.
    pub was: bool,
    /// It hangs on this root after.
    pub is: bool,
}

/// What the log of one transaction leaves open about a collection of an aggregate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    /// Of some child it does not say on which root it hung before.
    pub(super) was: bool,
    /// Nor after.
    pub(super) is: bool,
}

/// What a reference is for, the byte behind the root's key. In this order.
const GONE: u8 = 0;
const THERE: u8 = 1;
/// The root of this key has another now, which is the value.
const LEFT: u8 = 2;
const CHILD: u8 = 3;

/// Ends the reference of a child: it hung on the root of this key before,
const WAS: u8 = 0;
/// on the root that has this key now, and had another,
const WAS_ELSEWHERE: u8 = 1;
/// it hangs on the root of this key after.
const IS: u8 = 2;

/// In place of an aggregate: rows of held tables that are not as they were.
const KEPT: [u8; 2] = [0xFF, 0xFE];
/// In place of an aggregate: record keys that rows hold after the transaction.
const HELD: [u8; 2] = [0xFF; 2];

/// The first bytes of all references of an aggregate, which are followed by a root's key.
pub(super) fn prefix(aggregate: usize, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&(aggregate as u16).to_be_bytes());
}

/// The reference by which it is known that some row holds a record key; the key's values are in `row`.
pub(super) fn held(aggregate: usize, key: &[usize], row: Cells<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&HELD);
    out.extend_from_slice(&(aggregate as u16).to_be_bytes());
    for &column in key {
        row.get(column).write(out);
    }
}

/// The reference to the key that the root of this reference's key has now.
pub(super) fn left(root: &[u8]) -> Vec<u8> {
    [root, &[LEFT]].concat()
}

/// What has become of a row of a held table, in the order in which rows are kept. A key may have several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The row of the key was inserted, changed or deleted: by `Settled`.
    Settled = 0,
    /// The row of the key had another.
    Came = 1,
    /// The row of the key has another now: its primary key as it stands in rows is the value.
    Left = 2,
}

/// What a reference of `Fate::Settled` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Inserted = 0,
    Changed = 1,
    Deleted = 2,
}

/// The first bytes of all references of a fate, which are followed by the number of a table and a key.
pub(super) fn kept(fate: Fate, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&KEPT);
    out.push(fate as u8);
}

/// The reference to what has become of the row that has a key.
pub(super) fn kept_row(fate: Fate, table: usize, key: &[u8], out: &mut Vec<u8>) {
    kept(fate, out);
    out.extend_from_slice(&(table as u16).to_be_bytes());
    out.extend_from_slice(key);
}

/// Fate, table and key of a reference; `None` when it is another reference, or none.
pub(super) fn read_kept(reference: &[u8]) -> Option<(Fate, usize, &[u8])> {
    let (fate, rest) = reference.strip_prefix(&KEPT)?.split_first()?;
    let (table, key) = rest.split_first_chunk().expect("written with its table");
    let fate = [Fate::Settled, Fate::Came, Fate::Left][usize::from(*fate)];
    Some((fate, usize::from(u16::from_be_bytes(*table)), key))
}

/// What a reference of `Fate::Settled` or `Fate::Came` says.
pub(super) fn read_settled(value: &[u8]) -> (RowId, Settled) {
    let settled = [Settled::Inserted, Settled::Changed, Settled::Deleted][usize::from(value[RowId::LEN])];
    (RowId::read(value), settled)
}

/// Writes the references of net rows.
#[derive(Debug, Default)]
pub(super) struct Referrer {
    key: Vec<u8>,
    other: Vec<u8>,
    moved: Vec<u8>,
}

impl Referrer {
    /// References to a root; `compacts` when record keys that are held are to be known.
    pub(super) fn root(
        &mut self,
        rules: &Rules,
        aggregate: usize,
        compacts: bool,
        row: Visited<'_>,
        references: &mut Sorted,
    ) -> Result<(), SpillError> {
        let Aggregate { root, key, .. } = &rules.aggregates[aggregate];
        let table = &rules.tables[*root];
        let id = row.id.to_bytes();
        prefix(aggregate, &mut self.key);
        match (row.before, row.after) {
            (_, Some(after)) => {
                write_sorted_key(table, after, &mut self.key);
                if let Some(before) = row.before {
                    prefix(aggregate, &mut self.other);
                    write_sorted_key(table, before, &mut self.other);
                    if self.other != self.key {
                        self.other.push(LEFT);
                        references.put(&self.other, &self.key[PREFIX..])?;
                    }
                }
                self.key.push(THERE);
                references.put(&self.key, &id)?;
                if compacts {
                    held(aggregate, key, after, &mut self.key);
                    references.put(&self.key, &[])?;
                }
                Ok(())
            }
            (Some(before), None) => {
                write_sorted_key(table, before, &mut self.key);
                self.key.push(GONE);
                references.put(&self.key, &id)
            }
            (None, None) => Ok(()),
        }
    }

    /// References to a child; says what the log leaves open about it.
    pub(super) fn child(
        &mut self,
        rules: &Rules,
        aggregate: usize,
        collection: usize,
        row: Visited<'_>,
        references: &mut Sorted,
    ) -> Result<Open, SpillError> {
        let Aggregate { root, children, .. } = &rules.aggregates[aggregate];
        let Collection { table, link, .. } = children[collection];
        let (table, root_key) = (&rules.tables[table], &rules.tables[*root].columns[0].ty);
        let mut open = Open::default();
        for (side, state) in [(WAS, row.before), (IS, row.after)] {
            let Some(state) = state else { continue };
            let text = match state.get(link) {
                Cell::Null => continue,
                Cell::Text(text) => text,
                Cell::Unchanged | Cell::Unknown => {
                    *(if side == WAS { &mut open.was } else { &mut open.is }) = true;
                    continue;
                }
            };
            let mut side = side;
            prefix(aggregate, &mut self.key);
            write_sorted(text, root_key, &mut self.key);
            #[cfg(test)]
            let stays = is_planted(PlantedBug::ChildrenStayBehind);
            #[cfg(not(test))]
            let stays = false;
            if side == WAS && !stays {
                self.other.clear();
                self.other.extend_from_slice(&self.key);
                self.other.push(LEFT);
                self.moved.clear();
                if references.get(&self.other, &mut self.moved)? {
                    side = WAS_ELSEWHERE;
                    self.key.truncate(PREFIX);
                    self.key.extend_from_slice(&self.moved);
                }
            }
            self.key.push(CHILD);
            self.key.extend_from_slice(&(collection as u16).to_be_bytes());
            let named = row.after.or(row.before).expect("a net row was there or is there");
            write_sorted_key(table, named, &mut self.key);
            self.key.push(u8::from(row.after.is_some()));
            self.key.push(side);
            references.put(&self.key, &row.id.to_bytes())?;
        }
        Ok(open)
    }

    /// References to a row of a held table; whether there are any.
    pub(super) fn kept(
        &mut self,
        rules: &Rules,
        row: Visited<'_>,
        references: &mut Sorted,
    ) -> Result<bool, SpillError> {
        let table = &rules.tables[row.table];
        if (NetRow { before: row.before, after: row.after }).changed(None) == Changed::No {
            return Ok(false);
        }
        let mut put = |fate, settled: Settled, named| {
            self.moved.clear();
            write_sorted_key(table, named, &mut self.moved);
            kept_row(fate, row.table, &self.moved, &mut self.key);
            self.other.clear();
            self.other.extend_from_slice(&row.id.to_bytes());
            self.other.push(settled as u8);
            references.put(&self.key, &self.other)
        };
        match (row.before, row.after) {
            (None, Some(after)) => put(Fate::Settled, Settled::Inserted, after)?,
            (Some(before), None) => put(Fate::Settled, Settled::Deleted, before)?,
            (Some(before), Some(after)) => {
                let (old_key, new_key) = (before.key(table.key_len), after.key(table.key_len));
                if old_key == new_key {
                    put(Fate::Settled, Settled::Changed, after)?;
                } else {
                    put(Fate::Came, Settled::Changed, after)?;
                    self.moved.clear();
                    write_sorted_key(table, before, &mut self.moved);
                    kept_row(Fate::Left, row.table, &self.moved, &mut self.key);
                    references.put(&self.key, old_key.expect("it is found by its key"))?;
                }
            }
            (None, None) => {}
        }
        Ok(true)
    }
}

const PREFIX: usize = 2;

/// What a transaction has touched under one key of roots: one aggregate, or two when the key of a root that is gone was taken by another.
#[derive(Debug, Default)]
pub(super) struct Group {
    bytes: Vec<u8>,
    rows: Vec<Loaded>,
    gone: Option<usize>,
    there: Option<usize>,
    children: Vec<LoadedChild>,
    /// Which aggregates there are.
    pub(super) owners: Vec<Owner>,
}

/// Whose a child is in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The root that is gone.
    Gone,
    /// The root that has the key after.
    There,
    /// A root that the transaction did not touch.
    Untouched,
}

#[derive(Clone, Copy, Debug)]
struct Loaded {
    number: u32,
    table: usize,
    start: usize,
    before: Option<usize>,
    after: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct LoadedChild {
    collection: usize,
    row: usize,
    was: Option<Owner>,
    is: Option<Owner>,
}

/// A group cannot be held in memory.
#[derive(Debug)]
pub(super) enum GroupError {
    Map(MapError),
    TooLarge,
}

impl<E: Into<MapError>> From<E> for GroupError {
    fn from(error: E) -> Self {
        GroupError::Map(error.into())
    }
}

impl Group {
    /// Loads what the cursor stands before, of this aggregate; false when it has no more.
    pub(super) fn load(
        &mut self,
        rules: &Rules,
        aggregate: usize,
        store: &Store,
        cursor: &mut Cursor,
        bytes_max: usize,
    ) -> Result<bool, GroupError> {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.rows.clear();
        self.children.clear();
        self.owners.clear();
        (self.gone, self.there) = (None, None);
        let Aggregate { root, children, .. } = &rules.aggregates[aggregate];
        let root_key_len = rules.tables[*root].key_len;
        if !cursor.key.starts_with(&(aggregate as u16).to_be_bytes()) {
            return Ok(false);
        }
        let head = PREFIX + sorted_len(&cursor.key[PREFIX..], root_key_len);
        let group = cursor.key[..head].to_vec();
        let mut left = false;
        let mut came = false;
        let mut last: Option<Vec<u8>> = None;
        while cursor.key.len() > head && cursor.key[..head] == group {
            let id = || RowId::read(&cursor.value);
            match cursor.key[head] {
                LEFT => left = true,
                kind @ (GONE | THERE) => {
                    let is_there = kind == THERE;
                    let place = Place { table: *root, is_there, id: id() };
                    let row = self.add(place, store)?;
                    if is_there {
                        self.there = Some(row);
                        came = self.net(row).key_changed(root_key_len);
                    } else {
                        self.gone = Some(row);
                    }
                }
                _ => {
                    let [collection_high, collection_low, .., is_there, side] = &cursor.key[head + 1..] else {
                        unreachable!("written with all of it")
                    };
                    let collection = usize::from(u16::from_be_bytes([*collection_high, *collection_low]));
                    let named = &cursor.key[head..cursor.key.len() - 1];
                    if last.as_deref() != Some(named) {
                        let table = children[collection].table;
                        let place = Place { table, is_there: *is_there == 1, id: id() };
                        let row = self.add(place, store)?;
                        self.children.push(LoadedChild { collection, row, was: None, is: None });
                        let last = last.get_or_insert_default();
                        last.clear();
                        last.extend_from_slice(named);
                    }
                    let (gone, there) = (self.gone.is_some(), self.there.is_some());
                    let child = self.children.last_mut().expect("just pushed");
                    match *side {
                        WAS_ELSEWHERE => child.was = Some(Owner::There),
                        WAS if gone => child.was = Some(Owner::Gone),
                        // The root that has the key now did not have it then, and no other did: the link led nowhere.
                        WAS if came => {}
                        WAS if there => child.was = Some(Owner::There),
                        WAS => child.was = Some(Owner::Untouched),
                        _ if there => child.is = Some(Owner::There),
                        _ if gone || left => {}
                        _ => child.is = Some(Owner::Untouched),
                    }
                }
            }
            if self.bytes.len() > bytes_max {
                return Err(GroupError::TooLarge);
            }
            store.step(cursor)?;
        }
        self.owners.extend(self.gone.map(|_| Owner::Gone));
        self.owners.extend(self.there.map(|_| Owner::There));
        if self.owners.is_empty() && self.children.iter().any(|c| [c.was, c.is].contains(&Some(Owner::Untouched))) {
            self.owners.push(Owner::Untouched);
        }
        Ok(true)
    }

    /// One aggregate of the group, with its children that are not as they were.
    pub(super) fn touched<'a>(&'a self, rules: &Rules, aggregate: usize, owner: Owner) -> Touched<'a> {
        let collections = &rules.aggregates[aggregate].children;
        let root = match owner {
            Owner::Gone => self.gone.map(|row| self.net(row)),
            Owner::There => self.there.map(|row| self.net(row)),
            Owner::Untouched => None,
        };
        let mut root_key = None;
        if owner == Owner::Untouched {
            let child = self.of(owner).next().expect("a root is touched by its children");
            let row = self.net(child.row);
            let side = if child.is == Some(owner) { row.after } else { row.before };
            if let Some(Cell::Text(text)) = side.map(|row| row.get(collections[child.collection].link)) {
                root_key = Some(text);
            }
        }
        let is_touched = |child: &Child<'_>| {
            let link = collections[child.collection].link;
            !(child.was && child.is && child.row.changed(Some(link)) == Changed::No)
        };
        Touched { aggregate, root, root_key, children: self.children(owner).filter(is_touched).collect() }
    }

    /// All children of one aggregate that the transaction has touched, also those that are as they were.
    pub(super) fn children(&self, owner: Owner) -> impl Iterator<Item = Child<'_>> {
        self.of(owner).map(move |c| Child {
            collection: c.collection,
            row: self.net(c.row),
            was: c.was == Some(owner),
            is: c.is == Some(owner),
        })
    }

    /// Collection and old key, as `write_sorted_key` has it, of the children that the transaction has touched.
    pub(super) fn before_keys(&self, rules: &Rules, aggregate: usize) -> HashSet<(usize, Vec<u8>)> {
        let collections = &rules.aggregates[aggregate].children;
        let keys = self.children.iter().filter_map(|child| {
            let mut key = Vec::new();
            write_sorted_key(&rules.tables[collections[child.collection].table], self.net(child.row).before?, &mut key);
            Some((child.collection, key))
        });
        keys.collect()
    }

    /// How many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Number and table of each row of one aggregate.
    pub(super) fn numbers(&self, owner: Owner) -> impl Iterator<Item = (u32, usize)> {
        let root = match owner {
            Owner::Gone => self.gone,
            Owner::There => self.there,
            Owner::Untouched => None,
        };
        let rows = root.into_iter().chain(self.of(owner).map(|child| child.row));
        rows.map(|row| (self.rows[row].number, self.rows[row].table))
    }

    fn of(&self, owner: Owner) -> impl Iterator<Item = &LoadedChild> {
        self.children.iter().filter(move |child| child.was == Some(owner) || child.is == Some(owner))
    }

    fn add(&mut self, place: Place, store: &Store) -> Result<usize, SpillError> {
        let start = self.bytes.len();
        let (before, after) = store.row(place, &mut self.bytes)?;
        self.rows.push(Loaded { number: place.id.number, table: place.table, start, before, after });
        Ok(self.rows.len() - 1)
    }

    fn net(&self, row: usize) -> NetRow<'_> {
        let Loaded { start, before, after, .. } = self.rows[row];
        let middle = start + before.unwrap_or(0);
        NetRow {
            before: before.map(|_| Cells { bytes: &self.bytes[start..middle] }),
            after: after.map(|len| Cells { bytes: &self.bytes[middle..middle + len] }),
        }
    }
}

/// A group's buffer that is larger is not kept.
const KEPT_BYTES: usize = 64 * 1024;

/// Whether a row is another than it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    Yes,
    No,
    /// The log does not say what this column was.
    Unknown(usize),
}

impl NetRow<'_> {
    /// Whether the row's primary key, of so many columns, is another than it was, or it had none.
    pub(super) fn key_changed(&self, key_len: usize) -> bool {
        self.before.map(|row| row.key(key_len)) != self.after.map(|row| row.key(key_len))
    }

    /// Whether a row that was there and is there has changed in some column but one.
    pub(super) fn changed(&self, but: Option<usize>) -> Changed {
        let (Some(before), Some(after)) = (self.before, self.after) else { return Changed::Yes };
        let mut all = Changed::No;
        for (column, (before, after)) in before.iter().zip(after.iter()).enumerate() {
            match changed(before, after) {
                _ if but == Some(column) => {}
                Some(true) => return Changed::Yes,
                Some(false) => {}
                None => all = Changed::Unknown(column),
            }
        }
        all
    }
}

/// Whether a value is another than it was, if that is known.
pub(super) fn changed(before: Cell<'_>, after: Cell<'_>) -> Option<bool> {
    match (before, after) {
        (_, Cell::Unchanged) => Some(false),
        (Cell::Unknown | Cell::Unchanged, _) | (_, Cell::Unknown) => None,
        (before, after) => Some(before != after),
    }
}
