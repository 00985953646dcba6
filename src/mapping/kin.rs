//! The children of an aggregate that a transaction has not touched, of the replica: an event that lists children lists them too.

use std::collections::HashSet;

use super::{
    aggregate::{Child, Group, GroupError, NetRow},
    row::{Cell, Cells, write_sorted_key},
    rules::{Collection, EventRule, Rules},
    sight::Sight,
};
#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};

/// Children of one aggregate.
#[derive(Debug, Default)]
pub(super) struct Kin {
    bytes: Vec<u8>,
    rows: Vec<Found>,
}

/// One child, as it is and was.
#[derive(Debug)]
struct Found {
    collection: usize,
    key: Vec<u8>,
    start: usize,
    end: usize,
    /// Its table was truncated, or it was not there before anything was.
    sides: Sides,
    was: bool,
    is: bool,
}

/// When a child is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sides {
    Both,
    Before,
    After,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) sight: Sight<'a>,
    pub(super) rule: &'a EventRule,
    /// Indexes of the collections that its data lists.
    pub(super) listed: &'a [usize],
}

/// A buffer that is larger is not kept.
const KEPT_BYTES: usize = 64 * 1024;

impl Asked<'_> {
    /// Finds the children of a root that the transaction has not touched.
    pub(super) fn find(
        &self,
        root: Option<NetRow<'_>>,
        group: &Group,
        bytes_max: usize,
        kin: &mut Kin,
    ) -> Result<(), GroupError> {
        kin.clear();
        let Sight { rules, held, .. } = self.sight;
        let Some(NetRow { before, after }) = root else { return Ok(()) };
        let mut touched = None;
        for &collection in self.listed {
            let Collection { table, enforced, .. } = rules.aggregates[self.rule.aggregate].children[collection];
            // None was there before its root, where the database sees to that.
            if !held.is_now(table) || before.is_none() && enforced {
                continue;
            }
            let touched = touched.get_or_insert_with(|| group.before_keys(rules, self.rule.aggregate));
            let (was, is) = (before.and_then(key_of), after.and_then(key_of));
            let is_truncated = held.is_truncated(table);
            let sides = if is_truncated { Sides::Before } else { Sides::Both };
            if let Some(key) = was {
                let hangs = (true, was == is && !is_truncated);
                self.add(collection, key, (sides, hangs), touched, bytes_max, kin)?;
            }
            if let Some(key) = is.filter(|_| was != is && !is_truncated) {
                self.add(collection, key, (sides, (false, true)), touched, bytes_max, kin)?;
            }
        }
        if group.bytes().saturating_add(kin.bytes.len()) > bytes_max { Err(GroupError::TooLarge) } else { Ok(()) }
    }

    /// Finds all children of a root, where no transaction is told.
    pub(super) fn find_all(&self, root: NetRow<'_>, bytes_max: usize, kin: &mut Kin) -> Result<(), GroupError> {
        kin.clear();
        let Some(key) = root.after.and_then(key_of) else { return Ok(()) };
        for &collection in self.listed {
            self.add(collection, key, (Sides::After, (false, true)), &HashSet::new(), bytes_max, kin)?;
        }
        Ok(())
    }

    /// Adds the children of a collection whose link has a value, but for those that are touched.
    fn add(
        &self,
        collection: usize,
        root: &[u8],
        (sides, (was, is)): (Sides, (bool, bool)),
        touched: &HashSet<(usize, Vec<u8>)>,
        bytes_max: usize,
        kin: &mut Kin,
    ) -> Result<(), GroupError> {
        let Sight { rules, held, .. } = self.sight;
        let Collection { table, link, .. } = rules.aggregates[self.rule.aggregate].children[collection];
        let mut keys = Vec::new();
        if !held.linked(table, link, root, bytes_max, &mut keys)? {
            return Err(GroupError::TooLarge);
        }
        for key in keys {
            let named = (collection, key);
            #[cfg(test)]
            let twice = is_planted(PlantedBug::ListsTouchedChildrenTwice);
            #[cfg(not(test))]
            let twice = false;
            // One that hangs elsewhere now is among the children of another root.
            if (touched.contains(&named) || self.sight.is_touched(table, &named.1)?) && !twice {
                continue;
            }
            let start = kin.bytes.len();
            if !held.get(table, &named.1, &mut kin.bytes)? {
                continue;
            }
            if kin.bytes.len() > bytes_max {
                return Err(GroupError::TooLarge);
            }
            kin.rows.push(Found { collection, key: named.1, start, end: kin.bytes.len(), sides, was, is });
        }
        Ok(())
    }
}

impl Kin {
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.rows.clear();
    }

    /// These children and those that the transaction has touched, by collection, then by primary key.
    pub(super) fn with<'a>(
        &'a self,
        rules: &Rules,
        aggregate: usize,
        touched: impl IntoIterator<Item = Child<'a>>,
    ) -> Vec<Child<'a>> {
        let touched = touched.into_iter();
        if self.rows.is_empty() {
            return touched.collect();
        }
        let collections = &rules.aggregates[aggregate].children;
        let touched = touched.map(|child| {
            let mut key = Vec::new();
            let named = child.row.after.or(child.row.before).expect("a net row was there or is there");
            write_sorted_key(&rules.tables[collections[child.collection].table], named, &mut key);
            ((child.collection, key, child.row.after.is_some()), child)
        });
        let untouched = self.rows.iter().map(|found| {
            let row = Some(Cells { bytes: &self.bytes[found.start..found.end] });
            let row = match found.sides {
                Sides::Both => NetRow { before: row, after: row },
                Sides::Before => NetRow { before: row, after: None },
                Sides::After => NetRow { before: None, after: row },
            };
            let child = Child { collection: found.collection, row, was: found.was, is: found.is };
            ((found.collection, found.key.clone(), row.after.is_some()), child)
        });
        let mut all: Vec<_> = touched.chain(untouched).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all.into_iter().map(|(_, child)| child).collect()
    }
}

/// A root's primary key, of one column.
fn key_of(root: Cells<'_>) -> Option<&[u8]> {
    match root.get(0) {
        Cell::Text(text) => Some(text),
        _ => None,
    }
}
