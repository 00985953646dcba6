//! What can be seen of rows that an event does not have of its own aggregate: as they were before the transaction, and after it.

use super::{
    MapError,
    aggregate::{Fate, Settled, kept_row, read_settled},
    held::Held,
    row::write_sorted,
    rules::Rules,
    store::{Place, Store},
};
#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};

/// Rows of held tables.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    pub(super) rules: &'a Rules,
    pub(super) store: &'a Store,
    pub(super) held: &'a Held,
    /// Per table whether the transaction has left any of its rows another.
    pub(super) has_touched: &'a [bool],
}

/// As of when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Before,
    After,
    /// After the transaction where it is there still, else before it.
    Last,
}

impl Sight<'_> {
    /// The row of a table that has a primary key of one column, in place of what is in `out`; false when it is not there.
    pub(super) fn find(&self, table: usize, key: &[u8], view: View, out: &mut Vec<u8>) -> Result<bool, MapError> {
        let mut sorted = Vec::with_capacity(key.len() + 9);
        write_sorted(key, &self.rules.tables[table].columns[0].ty, &mut sorted);
        out.clear();
        match view {
            View::Before => self.before(table, &sorted, out),
            View::After => self.after(table, &sorted, out),
            View::Last => Ok(self.after(table, &sorted, out)? || self.before(table, &sorted, out)?),
        }
    }

    /// Appends the row that had a key before the transaction.
    fn before(&self, table: usize, key: &[u8], out: &mut Vec<u8>) -> Result<bool, MapError> {
        #[cfg(test)]
        if is_planted(PlantedBug::SeesItsOwnFuture) {
            return self.after(table, key, out);
        }
        self.held.get(table, key, out)
    }

    /// Appends the row that has a key after the transaction.
    pub(super) fn after(&self, table: usize, key: &[u8], out: &mut Vec<u8>) -> Result<bool, MapError> {
        if self.has_touched[table] {
            let (mut reference, mut value) = (Vec::new(), Vec::new());
            for fate in [Fate::Came, Fate::Settled, Fate::Left] {
                kept_row(fate, table, key, &mut reference);
                if !self.store.get(&reference, &mut value)? {
                    continue;
                }
                if fate == Fate::Left {
                    return Ok(false);
                }
                let (id, settled) = read_settled(&value);
                if settled == Settled::Deleted {
                    return Ok(false);
                }
                self.store.row_after(Place { table, is_there: true, id }, out)?;
                return Ok(true);
            }
        }
        if self.held.is_truncated(table) {
            return Ok(false);
        }
        self.held.get(table, key, out)
    }

    /// Whether the transaction has made another row, or none, of the one that had a key before it.
    pub(super) fn is_touched(&self, table: usize, key: &[u8]) -> Result<bool, MapError> {
        if !self.has_touched[table] {
            return Ok(false);
        }
        let (mut reference, mut value) = (Vec::new(), Vec::new());
        for fate in [Fate::Settled, Fate::Left] {
            kept_row(fate, table, key, &mut reference);
            if self.store.get(&reference, &mut value)? && (fate == Fate::Left || !is_insert(&value)) {
                return Ok(true);
            }
            value.clear();
        }
        Ok(false)
    }
}

fn is_insert(value: &[u8]) -> bool {
    read_settled(value).1 == Settled::Inserted
}
