//! A touched aggregate -> whether a rule's `when` holds, or what the log does not say to know it. Pure.

use super::{
    aggregate::{Changed, Child, NetRow, Open, Touched, changed},
    row::Cell,
    rules::{Aggregate, ChildChange, Side, Test, Transition, Trigger},
};
#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};

/// Whether something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    /// It depends on what a column was before, which the log does not say.
    Unknown(Blank),
}

/// A column of which the log does not say what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blank {
    /// Index in `Rules::tables`.
    pub(super) table: usize,
    /// Index in its columns.
    pub(super) column: usize,
}

impl Answer {
    fn of(holds: bool) -> Self {
        if holds { Answer::Yes } else { Answer::No }
    }

    fn any(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut all = Answer::No;
        for answer in answers {
            match answer {
                Answer::Yes => return Answer::Yes,
                Answer::No => {}
                unknown => all = unknown,
            }
        }
        all
    }

    fn all(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut all = Answer::Yes;
        for answer in answers {
            match answer {
                Answer::Yes => {}
                Answer::No => return Answer::No,
                unknown => all = unknown,
            }
        }
        all
    }
}

/// What of an aggregate and a transaction is the same for all roots.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) aggregate: &'a Aggregate,
    /// Per collection what the log leaves open.
    pub(super) open: &'a [Open],
}

impl Asked<'_> {
    /// Whether any of the alternatives holds of an aggregate.
    pub(super) fn fires(&self, when: &[Trigger], touched: &Touched<'_>) -> Answer {
        Answer::any(when.iter().map(|trigger| match trigger {
            Trigger::Created => {
                Answer::of(touched.root.is_some_and(|root| root.before.is_none() && root.after.is_some()))
            }
            Trigger::Deleted => {
                Answer::of(touched.root.is_some_and(|root| root.before.is_some() && root.after.is_none()))
            }
            Trigger::Any => {
                let root = touched.root.map(|root| self.answer(self.aggregate.root, root.changed(None)));
                let collections = 0..self.aggregate.children.len();
                let children = collections.map(|collection| self.children(collection, ChildChange::Any, touched));
                Answer::any(root.into_iter().chain(children))
            }
            Trigger::All(tests) => Answer::all(tests.iter().map(|test| match test {
                Test::Column(column, transition) => self.column(*column, transition, touched.root),
                Test::Children(collection, change) => self.children(*collection, *change, touched),
            })),
        }))
    }

    /// What has to be known before any root can be asked: a child that has left a root that the log does not name may have left one
    /// that nothing else speaks of.
    pub(super) fn fires_unseen(&self, when: &[Trigger]) -> Option<Blank> {
        when.iter().find_map(|trigger| match trigger {
            Trigger::Created | Trigger::Deleted => None,
            Trigger::Any => {
                (0..self.aggregate.children.len()).find_map(|collection| self.unseen(collection, ChildChange::Any))
            }
            Trigger::All(tests) => {
                let unseen = tests.iter().map(|test| match test {
                    Test::Column(..) => None,
                    Test::Children(collection, change) => self.unseen(*collection, *change),
                });
                unseen.collect::<Option<Vec<_>>>().and_then(|blanks| blanks.first().copied())
            }
        })
    }

    fn unseen(&self, collection: usize, change: ChildChange) -> Option<Blank> {
        let Open { was, is } = self.open[collection];
        let is_open = match change {
            ChildChange::Added => is,
            ChildChange::Removed => was,
            ChildChange::Changed => was && is,
            ChildChange::Any => was || is,
        };
        is_open.then(|| self.link(collection))
    }

    fn link(&self, collection: usize) -> Blank {
        let collection = &self.aggregate.children[collection];
        Blank { table: collection.table, column: collection.link }
    }

    fn answer(&self, table: usize, changed: Changed) -> Answer {
        match changed {
            Changed::Yes => Answer::Yes,
            Changed::No => Answer::No,
            Changed::Unknown(column) => Answer::Unknown(Blank { table, column }),
        }
    }

    fn column(&self, column: usize, transition: &Transition, root: Option<NetRow<'_>>) -> Answer {
        let Some(NetRow { before: Some(before), after: Some(after) }) = root else { return Answer::No };
        let (before, after) = (before.get(column), after.get(column));
        match changed(before, after) {
            Some(changed) => Answer::of(changed && transition.from.fits(before) && transition.to.fits(after)),
            // It would have to come from what it is now, which is no change.
            None if transition.from != Side::Anything && transition.from.fits(after) => Answer::No,
            None if !transition.to.fits(after) => Answer::No,
            None => Answer::Unknown(Blank { table: self.aggregate.root, column }),
        }
    }

    fn children(&self, collection: usize, change: ChildChange, touched: &Touched<'_>) -> Answer {
        let children = touched.children.iter().filter(|child| child.collection == collection);
        let told = Answer::any(children.map(|child| self.child(child, change)));
        match self.unseen(collection, change) {
            Some(blank) if told != Answer::Yes => Answer::Unknown(blank),
            _ => told,
        }
    }

    fn child(&self, child: &Child<'_>, change: ChildChange) -> Answer {
        let Blank { table, column: link } = self.link(child.collection);
        // A link that has followed the root's key is no change.
        let changed = || self.answer(table, child.row.changed(Some(link)));
        let left_open = child.row.before.is_some_and(|before| before.get(link) == Cell::Unknown);
        if child.is && left_open {
            let unknown = Answer::Unknown(Blank { table, column: link });
            return match (change, changed()) {
                (ChildChange::Removed, _) | (ChildChange::Changed, Answer::No) => Answer::No,
                (ChildChange::Any, Answer::Yes) => Answer::Yes,
                _ => unknown,
            };
        }
        #[cfg(test)]
        if is_planted(PlantedBug::MovesAreChanges) && change == ChildChange::Changed {
            return Answer::Yes;
        }
        match (change, child.was, child.is) {
            (ChildChange::Added | ChildChange::Any, false, true) => Answer::Yes,
            (ChildChange::Removed | ChildChange::Any, true, false) => Answer::Yes,
            (ChildChange::Changed | ChildChange::Any, true, true) => changed(),
            _ => Answer::No,
        }
    }
}

impl Side {
    fn fits(&self, cell: Cell<'_>) -> bool {
        match self {
            Side::Anything => true,
            Side::Null => cell == Cell::Null,
            Side::Text(text) => cell == Cell::Text(text.as_bytes()),
        }
    }
}
