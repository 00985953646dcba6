//! `Message`s -> `Transaction`. Pure, but for the spill file of a transaction that is too large for memory.
//!
//! It remembers each table's shape from the Relation messages; what only the catalog knows (the order of a key, types
//! that are not built in) it asks for, once per shape, and waits. Of a transaction that is told before its commit
//! (`streamed.rs`) it asks then, since nobody else sees earlier what that has done to a table.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use postgres_types::{Kind, Type};

use crate::{
    change::{Ancestor, Asked, Column, Commit, Identity, LogicalMessage, Old, Op, Row, Table},
    json,
    lsn::Lsn,
    postgres::{
        pgoutput::{DecodeError, Message, Relation},
        streamed::Streamed,
        wire::{Question, TableFacts},
    },
    transaction::{Spill, SpillError, Transaction},
};

/// Says what is asked for.
pub struct Wanted {
    /// Who asks for the rows of `schema`.`table`, a partition of the tables that follow. Of a table that is gone nobody knows
    /// whose partition it was: `None`.
    pub table: Box<WantedTable>,
    /// What becomes of messages with this prefix.
    pub message: Box<dyn Fn(&str) -> Kept>,
}

/// Schema, table, ancestors -> who asks for it.
pub type WantedTable = dyn Fn(&str, &str, Option<&[Ancestor]>) -> Asked;

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nobody asks for it.
    No,
    /// It is part of its transaction.
    InOrder,
    /// It says something of its transaction, and of none when it stands alone. Of each name in it the last that is said counts.
    Context,
}

impl Wanted {
    /// All rows, as `changes` asks for them, and no messages.
    pub fn all_rows() -> Wanted {
        Wanted { table: Box::new(|_, _, _| Asked::CHANGES), message: Box::new(|_| Kept::No) }
    }
}

/// Turns messages into transactions.
pub struct Assembler {
    wanted: Wanted,
    /// By oid: tables whose rows the mapping is to see under whatever name.
    held: Vec<u32>,
    spill: Spill,
    /// `limits.spill`; `spill` has what is left of it by the transactions that have not committed.
    file_max: u64,
    /// By oid.
    tables: HashMap<u32, Known>,
    /// Names of types that are not built in, by oid, as (schema, name).
    types: HashMap<u32, (String, String)>,
    /// A shape that waits for what the catalog says.
    asked: Option<Shape>,
    versions: u64,
    /// Counts the Relation messages.
    told: u64,
    /// The transaction that is open, and what its Begin said.
    open: Option<Open>,
    /// Where the last commit ended.
    last_end: Lsn,
    spare: Option<Transaction>,
    /// By xid: transactions that are told and have not committed.
    streamed: HashMap<u32, Streamed>,
    /// Whose block is open.
    block: Option<u32>,
    /// One of them that has committed, until the catalog has said what it says of its tables.
    closing: Option<Closing>,
}

/// What rows of a table are read by.
struct Known {
    /// When its Relation message came, of all of them.
    told: u64,
    /// `None` for a table that nobody asked for.
    table: Option<Arc<Table>>,
}

struct Closing {
    commit: Commit,
    streamed: Streamed,
    /// Of its shapes, in their order: what they are now that the catalog was asked.
    tables: Vec<Option<Arc<Table>>>,
}

struct Open {
    transaction: Transaction,
    commit: Lsn,
    xid: u32,
}

/// A Relation message, kept.
#[derive(Clone, PartialEq)]
pub(super) struct Shape {
    pub(super) oid: u32,
    schema: String,
    name: String,
    identity: Identity,
    columns: Vec<ShapeColumn>,
}

#[derive(Clone, PartialEq)]
struct ShapeColumn {
    identity: bool,
    name: String,
    type_oid: u32,
    modifier: i32,
}

/// What a message led to.
#[derive(Debug)]
pub enum Step {
    /// More messages are needed.
    More,
    /// `answer` must be given what the catalog says of this before the next message.
    Ask(Question),
    /// A transaction is whole.
    Done(Transaction),
}

/// The messages do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A message that is not one.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A transaction begins in another.
    #[error("BEGIN of transaction {xid} inside the transaction that commits at {open}")]
    Nested {
        /// The new one.
        xid: u32,
        /// The open one's commit LSN.
        open: Lsn,
    },
    /// Something that belongs in a transaction stands outside.
    #[error("{what} outside a transaction")]
    Outside {
        /// What.
        what: &'static str,
    },
    /// Commit and Begin tell of different transactions.
    #[error("COMMIT at {commit} does not close BEGIN for {begin}")]
    Mismatch {
        /// The commit LSN that Commit tells.
        commit: Lsn,
        /// The commit LSN that Begin told.
        begin: Lsn,
    },
    /// A transaction is not after the one before.
    #[error("COMMIT from {commit} to {end} after a transaction that ended at {last_end}")]
    Backwards {
        /// Where the commit record starts.
        commit: Lsn,
        /// Where it ends.
        end: Lsn,
        /// Where the one before ended.
        last_end: Lsn,
    },
    /// A row of a table that no Relation message told of.
    #[error("a row of table oid {oid}, which no Relation message has told of")]
    UnknownTable {
        /// The table's oid.
        oid: u32,
    },
    /// A row with more or fewer values than its table has columns.
    #[error("a row of {table} with {values} values for {columns} columns")]
    Width {
        /// `schema.table`.
        table: String,
        /// Values in the row.
        values: u16,
        /// Columns of the table.
        columns: usize,
    },
    /// Something that stands alone stands in a transaction.
    #[error(
        "a message with prefix {prefix:?} that is not transactional, inside the transaction that commits at {open}"
    )]
    Inside {
        /// The message's prefix.
        prefix: String,
        /// The open transaction's commit LSN.
        open: Lsn,
    },
    /// More context than a transaction may have.
    #[error(
        "context messages of {bytes} bytes, with prefix {prefix:?}: all of a transaction's may have {CONTEXT_BYTES_MAX}"
    )]
    LargeContext {
        /// The message's prefix.
        prefix: String,
        /// Bytes of what they come to.
        bytes: usize,
    },
    /// A row of a partition that has been dropped since.
    #[error(
        "a row of {table}, which has been dropped: it was a partition of a table that is asked for, and the catalog does not say any \
         more of which"
    )]
    Orphan {
        /// `schema.table`.
        table: String,
    },
    /// Blocks of transactions that have not committed do not fit together.
    #[error("{what} of transaction {xid}, {why}")]
    Block {
        /// What.
        what: &'static str,
        /// The transaction, or the one whose block is open.
        xid: u32,
        /// What does not fit.
        why: &'static str,
    },
    /// Too large for memory, and the spill file fails.
    #[error(transparent)]
    Spill(#[from] SpillError),
}

/// Buffers of a transaction that is handed back are kept up to this size.
const SPARE_BYTES_MAX: usize = 1 << 20;
/// What context messages say becomes headers of each event of its transaction, and stays in memory until then.
const CONTEXT_BYTES_MAX: usize = 64 << 10;

impl Assembler {
    /// Starts with nothing known: the server tells every shape again after START_REPLICATION.
    pub fn new(wanted: Wanted, spill: Spill) -> Self {
        Self {
            wanted,
            held: Vec::new(),
            file_max: spill.file_max,
            spill,
            tables: HashMap::new(),
            types: HashMap::new(),
            asked: None,
            versions: 0,
            told: 0,
            open: None,
            last_end: Lsn::INVALID,
            spare: None,
            streamed: HashMap::new(),
            block: None,
            closing: None,
        }
    }

    /// Whether a transaction is open, so that the server's position says nothing of what is done.
    pub fn is_open(&self) -> bool {
        self.open.is_some() || self.is_in_block() || self.is_closing()
    }

    /// Whether the next message stands in a block of a transaction that has not committed: `push_in_block` takes it.
    pub fn is_in_block(&self) -> bool {
        self.block.is_some()
    }

    /// Whether a commit waits for what the catalog says: `close` goes on with it, before the next message.
    pub fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Takes a transaction back for its buffer.
    pub fn recycle(&mut self, mut transaction: Transaction) {
        transaction.clear(SPARE_BYTES_MAX);
        self.spare = Some(transaction);
    }

    /// Of which tables, by oid, the mapping is to see each row under whatever name, also those of their partitions: it knows what to do
    /// when that is another.
    pub fn holding(self, held: Vec<u32>) -> Self {
        Self { held, ..self }
    }

    /// Takes the next message, which stands at `lsn` in the log.
    pub fn push(&mut self, lsn: Lsn, message: Message<'_>) -> Result<Step, AssembleError> {
        match message {
            Message::Insert { table, new } => self.change(lsn, table, "an INSERT", Op::Insert { new })?,
            Message::Update { table, old, new } => self.change(lsn, table, "an UPDATE", Op::Update { old, new })?,
            Message::Delete { table, old } => self.change(lsn, table, "a DELETE", Op::Delete { old })?,
            Message::Truncate { tables, .. } => {
                for table in tables.iter() {
                    self.change(lsn, table, "a TRUNCATE", Op::Truncate)?;
                }
            }
            Message::Begin { commit, xid, .. } => self.begin(commit, xid)?,
            Message::Commit { commit, end, time } => return self.commit(commit, end, time),
            Message::Relation(relation) => {
                self.told += 1;
                let shape = self.asked.insert(Shape::of(&relation));
                return Ok(Step::Ask(shape.question(self.open.as_ref().map_or(0, |open| open.xid))));
            }
            Message::Type { oid, schema, name } => {
                self.types.insert(oid, (schema.into(), name.into()));
            }
            Message::Origin { .. } if self.open.is_none() => return Err(AssembleError::Outside { what: "an ORIGIN" }),
            Message::Origin { name, .. } => {
                let open = self.open.as_mut().expect("it was just looked at");
                open.transaction.origin = Some(name.into());
            }
            Message::Logical { transactional, lsn, prefix, content } => {
                return self.message(&LogicalMessage { lsn, transactional, prefix, content });
            }
            Message::StreamStart { xid, first } => self.begin_block(xid, first)?,
            Message::StreamStop => return Err(AssembleError::Outside { what: "a STREAM STOP" }),
            Message::StreamCommit { xid, commit, end, time } => {
                return self.commit_streamed(Commit { xid, lsn: commit, end, time });
            }
            // One of which nothing was told leaves nothing to forget.
            Message::StreamAbort { xid, subxid } if xid == subxid => {
                self.streamed.remove(&xid);
                self.leave_room();
            }
            Message::StreamAbort { xid, subxid } => {
                if let Some(streamed) = self.streamed.get_mut(&xid) {
                    streamed.roll_back(subxid);
                }
            }
        }
        Ok(Step::More)
    }

    /// Takes the next message, when a block is open: what the subtransaction `xid` has done.
    pub fn push_in_block(&mut self, lsn: Lsn, xid: u32, message: Message<'_>) -> Result<Step, AssembleError> {
        let Some(of) = self.block else { return Err(AssembleError::Outside { what: "a streamed message" }) };
        let streamed = self.streamed.get_mut(&of).expect("it was there when its block began");
        self.told += u64::from(matches!(message, Message::Relation(_)));
        match message {
            Message::StreamStop => {
                let parked = streamed.park(&self.spill);
                self.together(parked)?;
                self.block = None;
                self.leave_room();
            }
            message => {
                let pushed = streamed.push(of, self.told, lsn, xid, message, &self.spill)?;
                self.together(pushed)?;
            }
        }
        Ok(Step::More)
    }

    /// Completes the shape that `push` asked about.
    pub fn answer(&mut self, facts: TableFacts) {
        if let Some(mut closing) = self.closing.take() {
            if let Some((_, shape)) = closing.streamed.shapes.get(closing.tables.len()) {
                closing.tables.push(self.complete(shape.clone(), &facts, &closing.streamed.types));
            }
            self.closing = Some(closing);
            return;
        }
        let Some(shape) = self.asked.take() else { return };
        let oid = shape.oid;
        let types = std::mem::take(&mut self.types);
        let table = self.complete(shape, &facts, &types);
        self.types = types;
        self.tables.insert(oid, Known { told: self.told, table });
    }

    /// Goes on with a commit that waits for what the catalog says.
    pub fn close(&mut self) -> Result<Step, AssembleError> {
        let Some(closing) = &self.closing else { return Ok(Step::More) };
        if let Some((_, shape)) = closing.streamed.shapes.get(closing.tables.len()) {
            return Ok(Step::Ask(shape.question(closing.commit.xid)));
        }
        let Closing { commit, streamed, tables } = self.closing.take().expect("it was just looked at");
        for (&oid, &place) in &streamed.now {
            let (told, table) = (streamed.shapes[place as usize].0, &tables[place as usize]);
            // The server tells a shape no more that it has told in a transaction which has committed since; nor what it has told of
            // others later.
            if self.tables.get(&oid).is_none_or(|known| known.told < told) {
                self.tables.insert(oid, Known { told, table: table.clone() });
            }
        }
        let mut transaction = streamed.whole(tables);
        transaction.commit = commit;
        self.last_end = commit.end;
        self.leave_room();
        transaction.rewind(&self.spill)?;
        let failed = |cause| SpillError::Io { dir: self.spill.dir.clone(), cause };
        match transaction.recount().map_err(failed)? {
            Some(table) => Err(AssembleError::Orphan { table: format!("{}.{}", table.schema, table.name) }),
            None => Ok(Step::Done(transaction)),
        }
    }

    fn complete(
        &mut self,
        shape: Shape,
        facts: &TableFacts,
        types: &HashMap<u32, (String, String)>,
    ) -> Option<Arc<Table>> {
        let ancestors = (!facts.gone).then_some(facts.ancestors.as_slice());
        let mut asked = (self.wanted.table)(&shape.schema, &shape.name, ancestors);
        let is_held = |oid: &u32| self.held.contains(oid);
        asked.mapping |= is_held(&shape.oid) || facts.ancestors.iter().any(|above| is_held(&above.oid));
        asked.is_any().then(|| {
            self.versions += 1;
            Arc::new(shape.complete(self.versions, asked, facts, types))
        })
    }

    fn begin_block(&mut self, xid: u32, first: bool) -> Result<(), AssembleError> {
        let unfit = |why| Err(AssembleError::Block { what: "a block", xid, why });
        match self.streamed.contains_key(&xid) {
            _ if self.open.is_some() => return unfit("inside another transaction"),
            true if first => return unfit("the first of it, after others"),
            false if !first => return unfit("which no first one came before"),
            true => {}
            false => drop(self.streamed.insert(xid, Streamed::default())),
        }
        self.block = Some(xid);
        self.leave_room();
        Ok(())
    }

    fn commit_streamed(&mut self, commit: Commit) -> Result<Step, AssembleError> {
        let Commit { xid, lsn, end, .. } = commit;
        let unfit = |why| AssembleError::Block { what: "the commit", xid, why };
        if self.open.is_some() {
            return Err(unfit("inside another transaction"));
        }
        let mut streamed = self.streamed.remove(&xid).ok_or_else(|| unfit("of which no block was told"))?;
        self.in_order(lsn, end)?;
        if let Some(fault) = streamed.take_fault() {
            return Err(fault);
        }
        self.closing = Some(Closing { commit, streamed, tables: Vec::new() });
        self.close()
    }

    /// Transactions that have not committed leave others, and each other, less room for files.
    fn leave_room(&mut self) {
        let others = self.streamed.iter().filter(|(xid, _)| Some(**xid) != self.block);
        let taken: u64 = others.map(|(_, streamed)| streamed.file_bytes()).sum();
        self.spill.file_max = self.file_max.saturating_sub(taken);
    }

    /// What is too large by itself, or only with others.
    fn together<T>(&self, written: Result<T, SpillError>) -> Result<T, AssembleError> {
        written.map_err(|error| match error {
            SpillError::TooLarge { .. } if self.spill.file_max < self.file_max => {
                SpillError::TooLargeTogether { max: self.file_max }.into()
            }
            error => error.into(),
        })
    }

    fn begin(&mut self, commit: Lsn, xid: u32) -> Result<(), AssembleError> {
        if let Some(open) = &self.open {
            return Err(AssembleError::Nested { xid, open: open.commit });
        }
        let transaction = self.spare.take().unwrap_or_default();
        self.open = Some(Open { transaction, commit, xid });
        Ok(())
    }

    fn commit(&mut self, commit: Lsn, end: Lsn, time: i64) -> Result<Step, AssembleError> {
        let Some(Open { mut transaction, commit: begin, xid }) = self.open.take() else {
            return Err(AssembleError::Outside { what: "a COMMIT" });
        };
        if commit != begin {
            return Err(AssembleError::Mismatch { commit, begin });
        }
        self.in_order(commit, end)?;
        self.last_end = end;
        transaction.commit = Commit { xid, lsn: commit, end, time };
        let rewound = transaction.rewind(&self.spill);
        self.together(rewound)?;
        Ok(Step::Done(transaction))
    }

    fn in_order(&self, commit: Lsn, end: Lsn) -> Result<(), AssembleError> {
        match commit < self.last_end || end <= commit {
            true => Err(AssembleError::Backwards { commit, end, last_end: self.last_end }),
            false => Ok(()),
        }
    }

    fn message(&mut self, message: &LogicalMessage<'_>) -> Result<Step, AssembleError> {
        let LogicalMessage { lsn, transactional, prefix, content } = *message;
        let kept = (self.wanted.message)(prefix);
        match (&mut self.open, transactional) {
            (None, true) => return Err(AssembleError::Outside { what: "a transactional message" }),
            (Some(open), false) => {
                return Err(AssembleError::Inside { prefix: prefix.into(), open: open.commit });
            }
            (Some(open), true) => match kept {
                Kept::No => {}
                Kept::InOrder => open.transaction.push_message(message, &self.spill)?,
                Kept::Context => {
                    let context = &mut open.transaction.context;
                    let large = |bytes| AssembleError::LargeContext { prefix: prefix.into(), bytes };
                    if content.len() > CONTEXT_BYTES_MAX {
                        return Err(large(content.len()));
                    }
                    let said = context.take().map_or_else(|| content.to_vec(), |before| json::merged(&before, content));
                    if said.len() > CONTEXT_BYTES_MAX {
                        return Err(large(said.len()));
                    }
                    *context = Some(said);
                }
            },
            (None, false) if kept == Kept::InOrder => {
                // Where its record starts nobody says. It is longer than a byte, so this is after all that came before.
                let begin = Lsn(lsn.0.saturating_sub(1));
                if begin < self.last_end {
                    return Err(AssembleError::Backwards { commit: begin, end: lsn, last_end: self.last_end });
                }
                let mut transaction = self.spare.take().unwrap_or_default();
                transaction.push_message(message, &self.spill)?;
                transaction.commit = Commit { xid: 0, lsn: begin, end: lsn, time: 0 };
                transaction.rewind(&self.spill)?;
                self.last_end = lsn;
                return Ok(Step::Done(transaction));
            }
            (None, false) => {}
        }
        Ok(Step::More)
    }

    fn change(&mut self, lsn: Lsn, oid: u32, what: &'static str, op: Op<'_>) -> Result<(), AssembleError> {
        let open = self.open.as_mut().ok_or(AssembleError::Outside { what })?;
        let known = self.tables.get(&oid).ok_or(AssembleError::UnknownTable { oid })?;
        let Some(table) = &known.table else { return Ok(()) };
        if table.asked.orphan {
            return Err(AssembleError::Orphan { table: format!("{}.{}", table.schema, table.name) });
        }
        fits(op, &table.schema, &table.name, table.columns.len())?;
        let pushed = open.transaction.push(table, lsn, op, &self.spill);
        self.together(pushed)
    }
}

/// Whether rows have as many values as their table has columns.
fn fits(op: Op<'_>, schema: &str, name: &str, columns: usize) -> Result<(), AssembleError> {
    let fits = |row: Row<'_>| match usize::from(row.columns) == columns {
        true => Ok(()),
        false => Err(AssembleError::Width { table: format!("{schema}.{name}"), values: row.columns, columns }),
    };
    let fits_old = |old: Old<'_>| match old {
        Old::Identity(row) | Old::Full(row) => fits(row),
    };
    match op {
        Op::Insert { new } => fits(new),
        Op::Update { old, new } => old.map_or(Ok(()), fits_old).and_then(|()| fits(new)),
        Op::Delete { old } => fits_old(old),
        Op::Truncate => Ok(()),
    }
}

impl Shape {
    /// Whether rows of the table have this shape.
    pub(super) fn fits(&self, op: Op<'_>) -> Result<(), AssembleError> {
        fits(op, &self.schema, &self.name, self.columns.len())
    }

    pub(super) fn of(relation: &Relation<'_>) -> Self {
        let columns = relation.columns.iter().map(|c| ShapeColumn {
            identity: c.identity,
            name: c.name.into(),
            type_oid: c.type_oid,
            modifier: c.modifier,
        });
        Self {
            oid: relation.oid,
            schema: or_pg_catalog(relation.schema).into(),
            name: relation.name.into(),
            identity: relation.identity,
            columns: columns.collect(),
        }
    }

    fn question(&self, xid: u32) -> Question {
        let types = self.columns.iter().map(|c| c.type_oid).filter(|&oid| Type::from_oid(oid).is_none());
        Question { xid, table: self.oid, types: types.collect() }
    }

    fn complete(self, version: u64, asked: Asked, facts: &TableFacts, types: &HashMap<u32, (String, String)>) -> Table {
        let columns: Vec<Column> = self
            .columns
            .into_iter()
            .map(|c| {
                let (ty, modifier) = resolve(c.type_oid, c.modifier, facts, types);
                Column { name: c.name, ty, modifier, identity: c.identity }
            })
            .collect();
        let key = key(self.identity, &columns, facts);
        Table {
            version,
            oid: self.oid,
            schema: self.schema,
            name: self.name,
            ancestors: facts.ancestors.clone(),
            identity: self.identity,
            asked,
            columns,
            key,
        }
    }
}

/// The type of a column: built in, or what the catalog says, or, when the type is gone from the catalog, what the stream
/// called it, whose text form is then all that is known.
fn resolve(oid: u32, modifier: i32, facts: &TableFacts, types: &HashMap<u32, (String, String)>) -> (Type, i32) {
    if let Some(ty) = Type::from_oid(oid) {
        return (ty, modifier);
    }
    if let Some(fact) = facts.types.get(&oid) {
        return (fact.ty.clone(), fact.modifier.unwrap_or(modifier));
    }
    let (schema, name) = types.get(&oid).map_or(("", ""), |(schema, name)| (schema, name));
    // A domain is told under the name of the type below it, which may be built in.
    let built_in = || (1..10_000).filter_map(Type::from_oid).find(|ty| ty.name() == name);
    let below_domain = if or_pg_catalog(schema) == "pg_catalog" { built_in() } else { None };
    let gone = || Type::new(name.into(), oid, Kind::Enum(Vec::new()), schema.into());
    (below_domain.unwrap_or_else(gone), modifier)
}

/// What names a row.
///
/// The log's own flags say which columns, as of the row; the catalog, which may be newer, gives only their order. Where
/// the log cannot tell (identity full or nothing, or no key), the catalog's key serves if the row has its columns.
fn key(identity: Identity, columns: &[Column], facts: &TableFacts) -> Vec<usize> {
    let index_of = |name: &String| columns.iter().position(|c| c.name == *name);
    let indexes = |names: &[String]| names.iter().map(index_of).collect::<Option<Vec<usize>>>().unwrap_or_default();
    let flagged: Vec<usize> = (0..columns.len()).filter(|&i| columns[i].identity).collect();
    if matches!(identity, Identity::Default | Identity::Index) && !flagged.is_empty() {
        let ordered = indexes(if identity == Identity::Default { &facts.primary_key } else { &facts.identity_index });
        let set = |indexes: &[usize]| indexes.iter().copied().collect::<HashSet<usize>>();
        return if set(&ordered) == set(&flagged) { ordered } else { flagged };
    }
    match indexes(&facts.primary_key) {
        key if key.is_empty() => facts.unique.as_deref().map(indexes).unwrap_or_default(),
        key => key,
    }
}

/// The stream leaves the name of `pg_catalog` out.
fn or_pg_catalog(schema: &str) -> &str {
    if schema.is_empty() { "pg_catalog" } else { schema }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        change::{Change, Content},
        postgres::{
            compose::{self, Cell},
            pgoutput,
            wire::TypeFact,
        },
    };

    const COLUMNS: &[(bool, &str, u32, i32)] = &[(false, "note", 25, -1), (true, "b", 23, -1), (true, "a", 23, -1)];
    const ROW: &[Cell<'_>] = &[Cell::Text("x"), Cell::Text("1"), Cell::Text("2")];

    fn assembler(memory_max: usize) -> Assembler {
        let spill = Spill { dir: std::env::temp_dir(), memory_max, file_max: 10_000 };
        let table = |_: &str, name: &str, _: Option<&[Ancestor]>| match name {
            "unwanted" => Asked::NOBODY,
            _ => Asked::CHANGES,
        };
        let message = |prefix: &str| match prefix {
            "unwanted" => Kept::No,
            "ctx" => Kept::Context,
            _ => Kept::InOrder,
        };
        Assembler::new(Wanted { table: Box::new(table), message: Box::new(message) }, spill)
    }

    fn push(assembler: &mut Assembler, lsn: u64, bytes: &[u8]) -> Result<Step, AssembleError> {
        assembler.push(Lsn(lsn), pgoutput::decode(bytes)?)
    }

    fn tell(assembler: &mut Assembler, relation: &[u8], facts: TableFacts) {
        assert!(matches!(push(assembler, 0, relation), Ok(Step::Ask(_))));
        assembler.answer(facts);
    }

    fn names(table: &Table) -> Vec<&str> {
        table.key.iter().map(|&i| table.columns[i].name.as_str()).collect()
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.into()).collect()
    }

    #[test]
    fn a_transaction_is_given_whole_at_its_commit() {
        let mut assembler = assembler(1 << 20);
        tell(&mut assembler, &compose::relation(1, "public", "t", b'd', COLUMNS), TableFacts::default());
        tell(&mut assembler, &compose::relation(2, "public", "unwanted", b'd', COLUMNS), TableFacts::default());
        push(&mut assembler, 0, &compose::begin(Lsn(50), 9, 3)).unwrap();
        push(&mut assembler, 10, &compose::insert(1, ROW)).unwrap();
        push(&mut assembler, 11, &compose::insert(2, ROW)).unwrap();
        push(&mut assembler, 12, &compose::truncate(&[1, 2], 0)).unwrap();
        assert!(assembler.is_open());
        let Step::Done(mut transaction) = push(&mut assembler, 50, &compose::commit(Lsn(50), Lsn(60), 9)).unwrap()
        else {
            panic!("the transaction is whole");
        };
        assert_eq!(transaction.commit, Commit { xid: 3, lsn: Lsn(50), end: Lsn(60), time: 9 });
        let change = row(&mut transaction);
        assert!(matches!((change.lsn, change.op), (Lsn(10), Op::Insert { .. })));
        let change = row(&mut transaction);
        assert_eq!((change.lsn, change.op, change.table.name.as_str()), (Lsn(12), Op::Truncate, "t"));
        assert!(transaction.next_content().unwrap().is_none());
        assert!(!assembler.is_open());
    }

    #[track_caller]
    fn row(transaction: &mut Transaction) -> Change<'_> {
        match transaction.next_content().unwrap() {
            Some(Content::Row(change)) => change,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_stand_in_order_and_what_a_transaction_says_of_itself_beside_it() {
        for memory_max in [0, 1 << 20] {
            let mut assembler = assembler(memory_max);
            tell(&mut assembler, &compose::relation(1, "public", "t", b'd', COLUMNS), TableFacts::default());
            push(&mut assembler, 0, &compose::begin(Lsn(50), 9, 3)).unwrap();
            push(&mut assembler, 0, &compose::origin(Lsn(5), "node_b")).unwrap();
            push(&mut assembler, 10, &compose::insert(1, ROW)).unwrap();
            for (prefix, content) in
                [("ctx", r#"{"a":1,"b":2}"#), ("unwanted", "x"), ("audit", "two"), ("ctx", r#"{"b":3}"#)]
            {
                push(&mut assembler, 0, &compose::logical(true, Lsn(20), prefix, content.as_bytes())).unwrap();
            }
            let Step::Done(mut transaction) = push(&mut assembler, 50, &compose::commit(Lsn(50), Lsn(60), 9)).unwrap()
            else {
                panic!("the transaction is whole");
            };
            assert_eq!(transaction.origin.as_deref(), Some("node_b"));
            assert_eq!(transaction.context.as_deref(), Some(&br#"{"a":1,"b":3}"#[..]), "the last of each name");
            assert!(matches!(row(&mut transaction).op, Op::Insert { .. }));
            let two = LogicalMessage { lsn: Lsn(20), transactional: true, prefix: "audit", content: b"two" };
            assert_eq!(transaction.next_content().unwrap(), Some(Content::Message(two)));
            assert_eq!(transaction.next_content().unwrap(), None);
            assembler.recycle(transaction);
            // One that stands alone is a transaction of its own; what it says of itself is said of nothing.
            assert!(matches!(push(&mut assembler, 0, &compose::logical(false, Lsn(80), "ctx", b"")), Ok(Step::More)));
            let alone = push(&mut assembler, 0, &compose::logical(false, Lsn(80), "audit", b"alone")).unwrap();
            let Step::Done(mut alone) = alone else { panic!("{alone:?}") };
            assert_eq!(alone.commit, Commit { xid: 0, lsn: Lsn(79), end: Lsn(80), time: 0 });
            assert_eq!((alone.origin.clone(), alone.context.clone(), alone.len()), (None, None, 1));
            assert!(matches!(
                alone.next_content().unwrap(),
                Some(Content::Message(LogicalMessage { transactional: false, content: b"alone", .. }))
            ));
        }
    }

    #[test]
    fn messages_that_do_not_fit_together_are_refused() {
        let begun = || {
            let mut assembler = assembler(1 << 20);
            tell(&mut assembler, &compose::relation(1, "public", "t", b'd', COLUMNS), TableFacts::default());
            push(&mut assembler, 0, &compose::begin(Lsn(50), 0, 3)).unwrap();
            assembler
        };
        let refused = |assembler: &mut Assembler, bytes: &[u8]| push(assembler, 0, bytes).unwrap_err().to_string();
        assert_eq!(
            refused(&mut begun(), &compose::begin(Lsn(70), 0, 4)),
            "BEGIN of transaction 4 inside the transaction that commits at 0/32"
        );
        assert_eq!(
            refused(&mut begun(), &compose::commit(Lsn(51), Lsn(60), 0)),
            "COMMIT at 0/33 does not close BEGIN for 0/32"
        );
        assert_eq!(
            refused(&mut begun(), &compose::insert(9, ROW)),
            "a row of table oid 9, which no Relation message has told of"
        );
        assert_eq!(
            refused(&mut begun(), &compose::logical(false, Lsn(9), "audit", b"")),
            "a message with prefix \"audit\" that is not transactional, inside the transaction that commits at 0/32"
        );
        assert_eq!(
            refused(&mut begun(), &compose::logical(true, Lsn(9), "ctx", &[b'x'; 70_000])),
            "context messages of 70000 bytes, with prefix \"ctx\": all of a transaction's may have 65536"
        );
        // Together they are too large; that one replaces the other is not.
        let mut large = begun();
        let named = |name: &str| format!("{{\"{name}\":\"{}\"}}", "x".repeat(40_000)).into_bytes();
        for name in ["a", "a"] {
            push(&mut large, 0, &compose::logical(true, Lsn(9), "ctx", &named(name))).unwrap();
        }
        assert!(
            refused(&mut large, &compose::logical(true, Lsn(9), "ctx", &named("b")))
                .starts_with("context messages of 80")
        );
        assert_eq!(
            refused(&mut begun(), &compose::insert(1, &ROW[..2])),
            "a row of public.t with 2 values for 3 columns"
        );
        let mut assembler = begun();
        push(&mut assembler, 0, &compose::commit(Lsn(50), Lsn(60), 0)).unwrap();
        assert_eq!(refused(&mut assembler, &compose::insert(1, ROW)), "an INSERT outside a transaction");
        assert_eq!(
            refused(&mut assembler, &compose::logical(true, Lsn(61), "audit", b"")),
            "a transactional message outside a transaction"
        );
        assert_eq!(
            refused(&mut assembler, &compose::logical(false, Lsn(60), "audit", b"")),
            "COMMIT from 0/3B to 0/3C after a transaction that ended at 0/3C"
        );
        assert_eq!(refused(&mut assembler, &compose::commit(Lsn(50), Lsn(60), 0)), "a COMMIT outside a transaction");
        push(&mut assembler, 0, &compose::begin(Lsn(59), 0, 4)).unwrap();
        assert_eq!(
            refused(&mut assembler, &compose::commit(Lsn(59), Lsn(61), 0)),
            "COMMIT from 0/3B to 0/3D after a transaction that ended at 0/3C"
        );
    }

    #[test]
    fn the_log_says_which_columns_are_the_key_and_the_catalog_their_order() {
        let mut assembler = assembler(1 << 20);
        let mut key_of = |identity: u8, columns: &[(bool, &str, u32, i32)], facts: TableFacts| {
            tell(&mut assembler, &compose::relation(1, "", "t", identity, columns), facts);
            let table = assembler.tables[&1].table.clone().unwrap();
            assert_eq!(table.schema, "pg_catalog");
            names(&table).join(",")
        };
        let primary = |key: &[&str]| TableFacts { primary_key: strings(key), ..TableFacts::default() };
        assert_eq!(key_of(b'd', COLUMNS, primary(&["a", "b"])), "a,b");
        // The key was changed since, or the table is gone: the log's flags hold.
        assert_eq!(key_of(b'd', COLUMNS, primary(&["note"])), "b,a");
        assert_eq!(key_of(b'd', COLUMNS, TableFacts::default()), "b,a");
        let index = TableFacts { identity_index: strings(&["a", "b"]), ..primary(&["note"]) };
        assert_eq!(key_of(b'i', COLUMNS, index), "a,b");
        let full: Vec<_> = COLUMNS.iter().map(|c| (true, c.1, c.2, c.3)).collect();
        assert_eq!(key_of(b'f', &full, primary(&["a"])), "a");
        assert_eq!(key_of(b'f', &full, primary(&["new_column"])), "");
        let keyless: Vec<_> = COLUMNS.iter().map(|c| (false, c.1, c.2, c.3)).collect();
        let unique = TableFacts { unique: Some(strings(&["b"])), ..TableFacts::default() };
        assert_eq!(key_of(b'd', &keyless, unique), "b");
        assert_eq!(key_of(b'n', &keyless, primary(&["a"])), "a");
        assert_eq!(key_of(b'd', &keyless, TableFacts::default()), "");
    }

    #[test]
    fn types_come_from_the_catalog_or_by_the_name_that_the_stream_gives() {
        let mut assembler = assembler(1 << 20);
        for (oid, schema, name) in [(20_000, "", "numeric"), (20_001, "public", "mood"), (20_002, "public", "price")] {
            let mut ty = vec![b'Y'];
            ty.extend(u32::to_be_bytes(oid));
            ty.extend(format!("{schema}\0{name}\0").as_bytes());
            push(&mut assembler, 0, &ty).unwrap();
        }
        let columns = [(false, "gone", 20_000, -1), (false, "mood", 20_001, -1), (false, "price", 20_002, -1)];
        let types = HashMap::from([(20_002, TypeFact { ty: Type::NUMERIC, modifier: Some(655_366) })]);
        tell(
            &mut assembler,
            &compose::relation(1, "public", "t", b'n', &columns),
            TableFacts { types, ..TableFacts::default() },
        );
        let table = assembler.tables[&1].table.clone().unwrap();
        assert_eq!((&table.columns[0].ty, table.columns[0].modifier), (&Type::NUMERIC, -1));
        assert!(matches!(table.columns[1].ty.kind(), Kind::Enum(_)));
        assert_eq!((&table.columns[2].ty, table.columns[2].modifier), (&Type::NUMERIC, 655_366));
    }

    #[test]
    fn who_asks_for_a_table_is_told_its_ancestors() {
        let spill = Spill { dir: std::env::temp_dir(), memory_max: 1, file_max: 1 };
        let root = |ancestors: &[Ancestor]| ancestors.iter().any(|above| above.name == "root");
        let table: Box<WantedTable> =
            Box::new(move |_, _, ancestors| Asked { changes: ancestors.is_none_or(root), ..Asked::NOBODY });
        let mut assembler = Assembler::new(Wanted { table, ..Wanted::all_rows() }, spill).holding(vec![3, 10]);
        let below = |oid: u32, name: &str| {
            let above = Ancestor { oid, schema: "public".into(), name: name.into() };
            TableFacts { ancestors: vec![above], ..TableFacts::default() }
        };
        let none = TableFacts::default;
        let tables = [below(9, "root"), none(), none(), below(10, "renamed"), below(11, "another")];
        for (oid, facts) in (1..).zip(tables) {
            tell(&mut assembler, &compose::relation(oid, "public", "t", b'd', COLUMNS), facts);
        }
        let asked = (1..=5).filter_map(|oid| Some((oid, assembler.tables[&oid].table.as_ref()?.asked)));
        let held = Asked { mapping: true, ..Asked::NOBODY };
        assert_eq!(asked.collect::<Vec<_>>(), [(1, Asked::CHANGES), (3, held), (4, held)]);
    }

    #[test]
    fn a_row_of_nobody_knows_whose_partition_is_refused() {
        let spill = Spill { dir: std::env::temp_dir(), memory_max: 1 << 20, file_max: 1 };
        let table: Box<WantedTable> = Box::new(|_, _, ancestors| match ancestors {
            None => Asked { orphan: true, ..Asked::NOBODY },
            Some(_) => Asked::CHANGES,
        });
        let mut assembler = Assembler::new(Wanted { table, ..Wanted::all_rows() }, spill);
        let gone = TableFacts { gone: true, ..TableFacts::default() };
        tell(&mut assembler, &compose::relation(1, "public", "leaf", b'd', COLUMNS), gone);
        push(&mut assembler, 0, &compose::begin(Lsn(50), 0, 3)).unwrap();
        let error = push(&mut assembler, 0, &compose::insert(1, ROW)).unwrap_err().to_string();
        assert!(error.starts_with("a row of public.leaf, which has been dropped"), "{error}");
    }

    #[test]
    fn a_large_transaction_leaves_memory_and_comes_back_in_order() {
        for memory_max in [0, 100, 1000, 1 << 20] {
            let mut assembler = assembler(memory_max);
            tell(&mut assembler, &compose::relation(1, "public", "t", b'd', COLUMNS), TableFacts::default());
            for round in 1..3u64 {
                let (commit, end) = (Lsn(round * 1000), Lsn(round * 1000 + 8));
                push(&mut assembler, 0, &compose::begin(commit, 0, 3)).unwrap();
                for lsn in 0..100 {
                    push(&mut assembler, lsn, &compose::update(1, Some((b'K', ROW)), ROW)).unwrap();
                }
                let Step::Done(mut transaction) = push(&mut assembler, 0, &compose::commit(commit, end, 0)).unwrap()
                else {
                    panic!("the transaction is whole");
                };
                assert_eq!((transaction.len(), transaction.is_spilled()), (100, memory_max < 7000));
                for lsn in 0..100 {
                    let change = row(&mut transaction);
                    assert_eq!(change.lsn, Lsn(lsn));
                    let Op::Update { old: Some(Old::Identity(old)), new } = change.op else { panic!("{change:?}") };
                    assert_eq!((old, new.values().count()), (new, 3));
                }
                assert!(transaction.next_content().unwrap().is_none());
                assembler.recycle(transaction);
            }
        }
    }

    /// The messages of a block of transaction `of`, each with the subtransaction that it is of.
    fn block(
        assembler: &mut Assembler,
        of: u32,
        first: bool,
        lsn: u64,
        messages: &[(u32, Vec<u8>)],
    ) -> Result<(), AssembleError> {
        push(assembler, 0, &compose::stream_start(of, first))?;
        for ((xid, message), lsn) in messages.iter().zip(lsn..) {
            let bytes = compose::by(*xid, message);
            let (xid, message) = pgoutput::decode_in_block(&bytes)?;
            assert!(matches!(assembler.push_in_block(Lsn(lsn), xid, message)?, Step::More));
        }
        let (xid, stop) = pgoutput::decode_in_block(b"E")?;
        assembler.push_in_block(Lsn(0), xid, stop).map(drop)
    }

    /// Commits it, and gives what the catalog is asked.
    fn commit_streamed(
        assembler: &mut Assembler,
        of: u32,
        commit: u64,
    ) -> Result<(Transaction, Vec<Question>), AssembleError> {
        let mut questions = Vec::new();
        let mut step = push(assembler, commit, &compose::stream_commit(of, Lsn(commit), Lsn(commit + 8), 9))?;
        loop {
            match step {
                Step::Done(transaction) => return Ok((transaction, questions)),
                Step::Ask(question) => questions.push(question),
                Step::More => panic!("it is committed"),
            }
            assert!(assembler.is_open() && assembler.is_closing());
            assembler.answer(TableFacts::default());
            step = assembler.close()?;
        }
    }

    fn lsns(transaction: &mut Transaction) -> Vec<u64> {
        let mut lsns = Vec::new();
        while let Some(content) = transaction.next_content().unwrap() {
            let Content::Row(change) = content else { panic!("{content:?}") };
            lsns.push(change.lsn.0);
        }
        lsns
    }

    fn relation(oid: u32, name: &str) -> Vec<u8> {
        compose::relation(oid, "public", name, b'd', COLUMNS)
    }

    #[test]
    fn what_is_told_before_the_commit_is_given_at_it_without_what_was_rolled_back() {
        for memory_max in [0, 100, 1 << 20] {
            let mut assembler = assembler(memory_max);
            let insert = || compose::insert(1, ROW);
            let truncate = compose::truncate(&[1, 2], 0);
            // 3 is the transaction, 4 and 5 are subtransactions, 5 within 4.
            let first =
                [(3, relation(1, "t")), (3, insert()), (4, insert()), (5, insert()), (4, insert()), (3, insert())];
            block(&mut assembler, 3, true, 10, &first).unwrap();
            assert!(!assembler.is_open(), "what the server says between two blocks is progress");
            // Another one in between, whole, and one that is rolled back.
            tell(&mut assembler, &relation(1, "t"), TableFacts::default());
            push(&mut assembler, 0, &compose::begin(Lsn(50), 9, 9)).unwrap();
            push(&mut assembler, 30, &insert()).unwrap();
            let Step::Done(mut small) = push(&mut assembler, 50, &compose::commit(Lsn(50), Lsn(58), 9)).unwrap() else {
                panic!("it is whole");
            };
            assert_eq!(lsns(&mut small), [30]);
            block(&mut assembler, 8, true, 60, &[(8, relation(1, "t")), (8, insert())]).unwrap();
            push(&mut assembler, 0, &compose::stream_abort(3, 5)).unwrap();
            push(&mut assembler, 0, &compose::stream_abort(8, 8)).unwrap();
            let second = [(4, insert()), (6, relation(2, "unwanted")), (6, compose::insert(2, ROW)), (6, truncate)];
            block(&mut assembler, 3, false, 70, &second).unwrap();
            push(&mut assembler, 0, &compose::stream_abort(3, 7)).unwrap();
            let (mut transaction, questions) = commit_streamed(&mut assembler, 3, 90).unwrap();
            assert_eq!(transaction.commit, Commit { xid: 3, lsn: Lsn(90), end: Lsn(98), time: 9 });
            assert_eq!(questions.iter().map(|question| question.table).collect::<Vec<_>>(), [1, 2], "then, once each");
            assert_eq!(transaction.len(), 6);
            assert_eq!(lsns(&mut transaction), [11, 12, 14, 15, 70, 73]);
            transaction.read_again().unwrap();
            assert_eq!(lsns(&mut transaction).len(), 6);
            assembler.recycle(transaction);
            assert!(!assembler.is_open() && assembler.streamed.is_empty());
            let error = commit_streamed(&mut assembler, 8, 99).unwrap_err().to_string();
            assert_eq!(error, "the commit of transaction 8, of which no block was told", "it was rolled back");
        }
    }

    #[test]
    fn a_shape_of_an_open_transaction_is_its_own_until_it_commits() {
        let mut assembler = assembler(1 << 20);
        let two = compose::relation(1, "public", "t", b'd', &COLUMNS[..2]);
        let small = |assembler: &mut Assembler, at: u64, row: &[Cell<'_>]| {
            push(assembler, 0, &compose::begin(Lsn(at), 9, 9))?;
            push(assembler, 0, &compose::insert(1, row))?;
            push(assembler, at, &compose::commit(Lsn(at), Lsn(at + 8), 9)).map(drop)
        };
        block(&mut assembler, 3, true, 10, &[(3, relation(1, "t")), (3, compose::insert(1, ROW))]).unwrap();
        assert!(small(&mut assembler, 20, ROW).unwrap_err().to_string().contains("no Relation message"));
        assembler.open = None;
        tell(&mut assembler, &two, TableFacts::default());
        small(&mut assembler, 30, &ROW[..2]).unwrap();
        // 4 tells the newest, and is rolled back; 3 has told an older one than the others have.
        block(&mut assembler, 4, true, 40, &[(4, relation(1, "t"))]).unwrap();
        push(&mut assembler, 0, &compose::stream_abort(4, 4)).unwrap();
        small(&mut assembler, 50, &ROW[..2]).unwrap();
        let (mut transaction, _) = commit_streamed(&mut assembler, 3, 60).unwrap();
        assert_eq!(row(&mut transaction).table.columns.len(), 3);
        small(&mut assembler, 70, &ROW[..2]).unwrap();
        // What is told last holds for others from its commit on.
        block(&mut assembler, 5, true, 80, &[(5, relation(1, "t"))]).unwrap();
        small(&mut assembler, 90, &ROW[..2]).unwrap();
        commit_streamed(&mut assembler, 5, 100).unwrap();
        small(&mut assembler, 110, ROW).unwrap();
    }

    #[test]
    fn what_does_not_fit_counts_when_it_is_committed() {
        let two = compose::insert(1, &ROW[..2]);
        let told = |rolled_back: bool| {
            let mut assembler = assembler(1 << 20);
            let messages = [(3, relation(1, "t")), (4, two.clone()), (3, compose::insert(1, ROW))];
            block(&mut assembler, 3, true, 10, &messages).unwrap();
            if rolled_back {
                push(&mut assembler, 0, &compose::stream_abort(3, 4)).unwrap();
            }
            commit_streamed(&mut assembler, 3, 60).map(|(mut transaction, _)| lsns(&mut transaction))
        };
        assert_eq!(told(true).unwrap(), [12]);
        assert_eq!(told(false).unwrap_err().to_string(), "a row of public.t with 2 values for 3 columns");
    }

    #[test]
    fn blocks_that_do_not_fit_together_are_refused() {
        let refused = |assembler: &mut Assembler, bytes: &[u8]| push(assembler, 0, bytes).unwrap_err().to_string();
        let mut none = assembler(100);
        assert_eq!(
            refused(&mut none, &compose::stream_start(3, false)),
            "a block of transaction 3, which no first one came before"
        );
        assert_eq!(refused(&mut none, &compose::stream_stop()), "a STREAM STOP outside a transaction");
        block(&mut none, 3, true, 0, &[]).unwrap();
        assert_eq!(
            refused(&mut none, &compose::stream_start(3, true)),
            "a block of transaction 3, the first of it, after others"
        );
        let message = compose::logical(true, Lsn(9), "audit", b"");
        assert_eq!(
            block(&mut none, 3, false, 0, &[(3, message)]).unwrap_err().to_string(),
            "a message of transaction 3, inside a block"
        );
        let mut open = assembler(100);
        block(&mut open, 3, true, 0, &[]).unwrap();
        push(&mut open, 0, &compose::begin(Lsn(50), 0, 9)).unwrap();
        assert_eq!(
            refused(&mut open, &compose::stream_start(4, true)),
            "a block of transaction 4, inside another transaction"
        );
        assert_eq!(
            refused(&mut open, &compose::stream_commit(3, Lsn(60), Lsn(68), 0)),
            "the commit of transaction 3, inside another transaction"
        );
    }

    #[test]
    fn transactions_that_have_not_committed_share_one_limit_and_leave_memory_between_blocks() {
        let mut assembler = assembler(1 << 20);
        let rows = |of: u32| [vec![(of, relation(1, "t"))], vec![(of, compose::insert(1, ROW)); 80]].concat();
        block(&mut assembler, 3, true, 0, &rows(3)).unwrap();
        let bytes = assembler.streamed[&3].file_bytes();
        assert!((3_000..5_000).contains(&bytes), "{bytes} bytes in the file");
        block(&mut assembler, 4, true, 0, &rows(4)).unwrap();
        let error = block(&mut assembler, 5, true, 0, &rows(5)).unwrap_err().to_string();
        assert!(error.starts_with("hold transactions of more than 10000 bytes, of which some"), "{error}");
        // What is forgotten leaves room again.
        let mut again = super::tests::assembler(1 << 20);
        for of in 3..9 {
            block(&mut again, of, true, 0, &rows(of)).unwrap();
            push(&mut again, 0, &compose::stream_abort(of, of)).unwrap();
        }
        block(&mut again, 9, true, 0, &rows(9)).unwrap();
        assert_eq!(commit_streamed(&mut again, 9, 60).unwrap().0.len(), 80);
        assert_eq!(again.spill.file_max, 10_000);
    }

    #[test]
    fn a_spill_file_has_a_limit_and_an_address() {
        let mut too_small = assembler(100);
        (too_small.spill.file_max, too_small.file_max) = (200, 200);
        let mut nowhere = assembler(100);
        nowhere.spill.dir = "/nonexistent".into();
        for (mut assembler, words) in [(too_small, "raise limits.spill"), (nowhere, "data_dir must be writable")] {
            tell(&mut assembler, &compose::relation(1, "public", "t", b'd', COLUMNS), TableFacts::default());
            push(&mut assembler, 0, &compose::begin(Lsn(9), 0, 3)).unwrap();
            let error = (0..9).find_map(|_| push(&mut assembler, 0, &compose::insert(1, ROW)).err()).unwrap();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
