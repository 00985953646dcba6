//! Blocks of a transaction that has not committed -> what it has done, kept apart until it has. Pure, but for its spill file.
//!
//! Postgres tells a shape anew in each such transaction, and what is told in one is another's only after its commit. What of
//! it is rolled back is told when it happens: each change has the id of its subtransaction, and reading leaves out those of the ones
//! that were.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    change::{Op, Table},
    lsn::Lsn,
    postgres::{
        assemble::{AssembleError, Shape},
        pgoutput::Message,
    },
    transaction::{EarlyTable, Spill, SpillError, Transaction},
};

/// A transaction that is told before it commits.
#[derive(Default)]
pub(super) struct Streamed {
    transaction: Transaction,
    /// What it has told of tables, in order, each with when that was.
    pub(super) shapes: Vec<(u64, Shape)>,
    /// By oid: which of these its rows have.
    pub(super) now: HashMap<u32, u32>,
    /// Names of types that are not built in, by oid, as (schema, name).
    pub(super) types: HashMap<u32, (String, String)>,
    rolled_back: HashSet<u32>,
    /// By subtransaction: the first thing that did not fit. It counts when that is committed.
    faults: BTreeMap<u32, AssembleError>,
}

impl Streamed {
    /// Takes what the subtransaction `xid` of transaction `of` has done; `told` counts the Relation messages.
    pub(super) fn push(
        &mut self,
        of: u32,
        told: u64,
        lsn: Lsn,
        xid: u32,
        message: Message<'_>,
        spill: &Spill,
    ) -> Result<Result<(), SpillError>, AssembleError> {
        let unfit = |what| Err(AssembleError::Block { what, xid: of, why: "inside a block" });
        let pushed = match message {
            Message::Insert { table, new } => self.change(lsn, xid, table, Op::Insert { new }, spill),
            Message::Update { table, old, new } => self.change(lsn, xid, table, Op::Update { old, new }, spill),
            Message::Delete { table, old } => self.change(lsn, xid, table, Op::Delete { old }, spill),
            Message::Truncate { tables, .. } => {
                let mut changed = tables.iter().map(|table| self.change(lsn, xid, table, Op::Truncate, spill));
                changed.find(Result::is_err).unwrap_or(Ok(()))
            }
            Message::Relation(relation) => {
                self.tell(Shape::of(&relation), told);
                Ok(())
            }
            Message::Type { oid, schema, name } => {
                self.types.insert(oid, (schema.into(), name.into()));
                Ok(())
            }
            Message::Origin { name, .. } => {
                self.transaction.origin = Some(name.into());
                Ok(())
            }
            // Of a message Postgres does not say which subtransaction has written it, so none is asked for.
            Message::Logical { .. } => return unfit("a message"),
            Message::Begin { .. } => return unfit("a BEGIN"),
            Message::Commit { .. } | Message::StreamCommit { .. } => return unfit("a COMMIT"),
            Message::StreamAbort { .. } => return unfit("a STREAM ABORT"),
            Message::StreamStart { .. } => return unfit("a STREAM START"),
            Message::StreamStop => return unfit("a STREAM STOP"),
        };
        Ok(pushed)
    }

    fn tell(&mut self, shape: Shape, told: u64) {
        let place = self.now.get(&shape.oid).copied();
        // It is told again after whatever may have changed it.
        if let Some((at, same)) = place.map(|place| &mut self.shapes[place as usize])
            && *same == shape
        {
            *at = told;
            return;
        }
        self.now.insert(shape.oid, self.shapes.len() as u32);
        self.shapes.push((told, shape));
    }

    fn change(&mut self, lsn: Lsn, xid: u32, oid: u32, op: Op<'_>, spill: &Spill) -> Result<(), SpillError> {
        let place = match self.now.get(&oid) {
            Some(&place) => self.shapes[place as usize].1.fits(op).map(|()| place),
            None => Err(AssembleError::UnknownTable { oid }),
        };
        match place {
            Ok(place) => self.transaction.push_early(EarlyTable(place), xid, lsn, op, spill),
            Err(fault) => {
                self.faults.entry(xid).or_insert(fault);
                Ok(())
            }
        }
    }

    /// Between its blocks it takes no memory for its changes.
    pub(super) fn park(&mut self, spill: &Spill) -> Result<(), SpillError> {
        self.transaction.park(spill)
    }

    /// Bytes in its file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.transaction.file_bytes()
    }

    /// Leaves out what a subtransaction has done.
    pub(super) fn roll_back(&mut self, subxid: u32) {
        self.rolled_back.insert(subxid);
    }

    /// What did not fit, and was not rolled back.
    pub(super) fn take_fault(&mut self) -> Option<AssembleError> {
        let rolled_back = &self.rolled_back;
        let mut faults = std::mem::take(&mut self.faults).into_iter();
        faults.find(|(xid, _)| !rolled_back.contains(xid)).map(|(_, fault)| fault)
    }

    /// The transaction, by what its shapes are: `None` of those whose rows nobody asked for.
    pub(super) fn whole(mut self, tables: Vec<Option<Arc<Table>>>) -> Transaction {
        self.transaction.complete(tables, self.rolled_back);
        self.transaction
    }
}
