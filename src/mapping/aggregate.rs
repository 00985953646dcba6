//! Net changes -> the aggregates that they touch: root, and children that were added, removed or changed. Pure.

use super::row::Cells;

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
    /// Children that the transaction has touched, by collection, then by their primary key.
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
