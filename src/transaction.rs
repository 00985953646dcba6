//! `Transaction`: the changes and messages of one commit, in memory or, when they are too many, in a spill file without a name.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    change::{Change, Commit, Content, LogicalMessage, Old, Op, Row, Table},
    lsn::Lsn,
};

/// Where and when a transaction leaves memory.
#[derive(Clone, Debug)]
pub struct Spill {
    /// The directory of the spill file.
    pub dir: PathBuf,
    /// Bytes of changes that one transaction may hold in memory.
    pub memory_max: usize,
    /// Bytes that a spill file may grow to.
    pub file_max: u64,
}

/// What one transaction holds: written in order, then read once in order.
///
/// Shape of a stored change, in memory and on disk: a fixed head (`HEAD` bytes: operation, kind of the old row, table,
/// LSN, length and column count of the old and of the new row, and the subtransaction), then the bytes of the rows as the
/// wire had them. A message has its prefix in place of the old row, and its content in place of the new one.
///
/// What is told before its commit is written as it comes, and what turns out not to be a part of it is left out in reading.
#[derive(Debug)]
pub struct Transaction {
    /// Set when the commit has been read.
    pub commit: Commit,
    /// Where it was replicated from (`pg_replication_origin`); `None` when it was written here.
    pub origin: Option<String>,
    /// What its context messages say, a JSON object: of each name what was said last.
    pub context: Option<Vec<u8>>,
    /// `None` of a table that nobody asked for: its changes are left out.
    tables: Vec<Option<Arc<Table>>>,
    /// Subtransactions whose changes are left out.
    rolled_back: HashSet<u32>,
    /// What has not been spilled yet while writing; the window on the file while reading.
    buffer: Vec<u8>,
    /// Where the next change starts in `buffer`.
    read: usize,
    /// How many changes and messages there are.
    len: u64,
    spilled: Option<Spilled>,
}

/// What the spill files of this process hold.
static SPILLED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Bytes in the spill files of this process, which no directory shows: they have no names.
pub fn spilled_bytes() -> u64 {
    SPILLED_BYTES.load(Ordering::Relaxed)
}

#[derive(Debug)]
struct Spilled {
    file: File,
    /// Bytes in the file.
    len: u64,
    /// Bytes of it that have been read back.
    read: u64,
    /// How many bytes are read back at once.
    window: usize,
}

impl Drop for Spilled {
    fn drop(&mut self) {
        SPILLED_BYTES.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// The spill file cannot be made, written or read, or would grow above its limit.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The operating system says no.
    #[error("use a spill file in {}: {cause}; data_dir must be writable and have room", dir.display())]
    Io {
        /// `data_dir`.
        dir: PathBuf,
        /// What it said.
        cause: io::Error,
    },
    /// It and transactions that have not committed yet are larger than `limits.spill` together.
    #[error(
        "hold transactions of more than {max} bytes, of which some have not committed: raise limits.spill, or set \
         `source.streaming: false`"
    )]
    TooLargeTogether {
        /// `limits.spill`.
        max: u64,
    },
    /// The transaction is larger than `limits.spill`.
    #[error("hold a transaction of more than {max} bytes; raise limits.spill")]
    TooLarge {
        /// `limits.spill`.
        max: u64,
    },
}

/// The place of a table among those that `Transaction::complete` is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlyTable(pub u32);

/// A stored change or message.
struct Stored {
    tag: u8,
    old_kind: u8,
    table: usize,
    lsn: Lsn,
    old_columns: u16,
    new_columns: u16,
    old_at: usize,
    new_at: usize,
}

const HEAD: usize = 34;
/// How much of a spill file is read at once, unless a transaction may not hold as much in memory.
const READ_BYTES: usize = 256 * 1024;

impl Transaction {
    /// An empty transaction.
    pub fn new() -> Self {
        let commit = Commit { xid: 0, lsn: Lsn::INVALID, end: Lsn::INVALID, time: 0 };
        Self {
            commit,
            origin: None,
            context: None,
            tables: Vec::new(),
            rolled_back: HashSet::new(),
            buffer: Vec::new(),
            read: 0,
            len: 0,
            spilled: None,
        }
    }

    /// How many changes and messages it holds, read or not.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether its changes are on disk.
    pub fn is_spilled(&self) -> bool {
        self.spilled.is_some()
    }

    /// Empties it and keeps its buffer, unless a large row has made that larger than `keep_max` bytes.
    pub fn clear(&mut self, keep_max: usize) {
        self.tables.clear();
        self.rolled_back.clear();
        self.rolled_back.shrink_to_fit();
        (self.origin, self.context) = (None, None);
        self.buffer.clear();
        self.buffer.shrink_to(keep_max);
        (self.read, self.len, self.spilled) = (0, 0, None);
    }

    /// Appends a change.
    pub fn push(&mut self, table: &Arc<Table>, lsn: Lsn, op: Op<'_>, spill: &Spill) -> Result<(), SpillError> {
        let table = self.table_index(table);
        self.push_early(EarlyTable(table), 0, lsn, op, spill)
    }

    /// Appends a change by the subtransaction `xid`; `complete` says later of which table, and whether it is one at all.
    pub fn push_early(
        &mut self,
        EarlyTable(table): EarlyTable,
        xid: u32,
        lsn: Lsn,
        op: Op<'_>,
        spill: &Spill,
    ) -> Result<(), SpillError> {
        let none = Row { bytes: &[], columns: 0 };
        let (tag, old_kind, old, new) = match op {
            Op::Insert { new } => (b'I', 0, none, new),
            Op::Update { old: None, new } => (b'U', 0, none, new),
            Op::Update { old: Some(Old::Identity(old)), new } => (b'U', b'K', old, new),
            Op::Update { old: Some(Old::Full(old)), new } => (b'U', b'O', old, new),
            Op::Delete { old: Old::Identity(old) } => (b'D', b'K', old, none),
            Op::Delete { old: Old::Full(old) } => (b'D', b'O', old, none),
            Op::Truncate => (b'T', 0, none, none),
        };
        self.append([tag, old_kind], table, xid, lsn, [old, new], spill)
    }

    /// Appends a message.
    pub fn push_message(&mut self, message: &LogicalMessage<'_>, spill: &Spill) -> Result<(), SpillError> {
        let parts = [message.prefix.as_bytes(), message.content].map(|bytes| Row { bytes, columns: 0 });
        self.append([b'M', u8::from(message.transactional)], 0, 0, message.lsn, parts, spill)
    }

    /// Writes everything to the file, so that it takes no memory until it goes on.
    pub fn park(&mut self, spill: &Spill) -> Result<(), SpillError> {
        if !self.buffer.is_empty() {
            self.spill(spill)?;
        }
        self.buffer.shrink_to_fit();
        Ok(())
    }

    /// Bytes in its file.
    pub fn file_bytes(&self) -> u64 {
        self.spilled.as_ref().map_or(0, |spilled| spilled.len)
    }

    /// Says of what was pushed early which tables that was of, `None` of those whose changes are left out, and which subtransactions
    /// were rolled back.
    pub fn complete(&mut self, tables: Vec<Option<Arc<Table>>>, rolled_back: HashSet<u32>) {
        (self.tables, self.rolled_back) = (tables, rolled_back);
    }

    /// After `complete` and `rewind`: counts again what it holds, since something may be left out. Gives the first table of which a
    /// row is there that nobody can say who asked for it.
    pub fn recount(&mut self) -> io::Result<Option<Arc<Table>>> {
        let orphan = |table: &Option<Arc<Table>>| table.as_ref().is_none_or(|table| table.asked.orphan);
        if self.rolled_back.is_empty() && !self.tables.iter().any(orphan) {
            return Ok(None);
        }
        let (mut len, mut orphan) = (0, None);
        while let Some(content) = self.next_content()? {
            if let Content::Row(Change { table, .. }) = content
                && orphan.is_none()
                && table.asked.orphan
            {
                orphan = Some(table.clone());
            }
            len += 1;
        }
        self.len = len;
        self.read_again()?;
        Ok(orphan)
    }

    fn append(
        &mut self,
        kind: [u8; 2],
        table: u32,
        xid: u32,
        lsn: Lsn,
        [old, new]: [Row<'_>; 2],
        spill: &Spill,
    ) -> Result<(), SpillError> {
        let buffer = &mut self.buffer;
        buffer.reserve(HEAD + old.bytes.len() + new.bytes.len());
        buffer.extend_from_slice(&kind);
        buffer.extend_from_slice(&table.to_ne_bytes());
        buffer.extend_from_slice(&lsn.0.to_ne_bytes());
        for row in [old, new] {
            buffer.extend_from_slice(&(row.bytes.len() as u32).to_ne_bytes());
            buffer.extend_from_slice(&u32::from(row.columns).to_ne_bytes());
        }
        buffer.extend_from_slice(&xid.to_ne_bytes());
        buffer.extend_from_slice(old.bytes);
        buffer.extend_from_slice(new.bytes);
        self.len += 1;
        if self.buffer.len() > spill.memory_max { self.spill(spill) } else { Ok(()) }
    }

    /// The next change or message that has not been read.
    pub fn next_content(&mut self) -> io::Result<Option<Content<'_>>> {
        let Some(Stored { tag, old_kind, table, lsn, old_columns, new_columns, old_at, new_at }) =
            self.next_stored()?
        else {
            return Ok(None);
        };
        let (old, new) = (&self.buffer[old_at..new_at], &self.buffer[new_at..self.read]);
        if tag == b'M' {
            let prefix = std::str::from_utf8(old).map_err(|_| io::ErrorKind::InvalidData)?;
            let message = LogicalMessage { lsn, transactional: old_kind == 1, prefix, content: new };
            return Ok(Some(Content::Message(message)));
        }
        let old = Row { bytes: old, columns: old_columns };
        let new = Row { bytes: new, columns: new_columns };
        let old = match old_kind {
            b'K' => Some(Old::Identity(old)),
            b'O' => Some(Old::Full(old)),
            _ => None,
        };
        let op = match tag {
            b'I' => Op::Insert { new },
            b'U' => Op::Update { old, new },
            b'D' => Op::Delete { old: old.expect("a delete was written with its old row") },
            _ => Op::Truncate,
        };
        let table = self.tables[table].as_ref().expect("a change without a table is left out");
        Ok(Some(Content::Row(Change { table, lsn, op })))
    }

    /// The next that is not left out: its head, and where in the buffer its rows are, which end where is read next.
    fn next_stored(&mut self) -> io::Result<Option<Stored>> {
        loop {
            if !self.fill(HEAD)? {
                return Ok(None);
            }
            let head = &self.buffer[self.read..self.read + HEAD];
            let u32_at = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
            let (old_len, new_len, xid) = (u32_at(14) as usize, u32_at(22) as usize, u32_at(30));
            let lsn = Lsn(u64::from_ne_bytes(head[6..14].try_into().expect("eight bytes")));
            let (tag, old_kind, table) = (head[0], head[1], u32_at(2) as usize);
            let (old_columns, new_columns) = (u32_at(18) as u16, u32_at(26) as u16);
            if !self.fill(HEAD + old_len + new_len)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let old_at = self.read + HEAD;
            let new_at = old_at + old_len;
            self.read = new_at + new_len;
            if tag == b'M' || self.tables[table].is_some() && !self.rolled_back.contains(&xid) {
                return Ok(Some(Stored { tag, old_kind, table, lsn, old_columns, new_columns, old_at, new_at }));
            }
        }
    }

    /// Ends the writing: what was spilled is read from its start.
    pub fn rewind(&mut self, spill: &Spill) -> Result<(), SpillError> {
        if self.spilled.is_some() {
            self.spill(spill)?;
            // What it was written from is not kept while it is published: records in flight take memory then.
            self.buffer.shrink_to(READ_BYTES);
            let spilled = self.spilled.as_mut().expect("just spilled");
            spilled.file.seek(SeekFrom::Start(0)).map_err(|cause| SpillError::Io { dir: spill.dir.clone(), cause })?;
        }
        Ok(())
    }

    /// Goes back to the first of what it holds, for another reading.
    pub fn read_again(&mut self) -> io::Result<()> {
        self.read = 0;
        if let Some(spilled) = &mut self.spilled {
            self.buffer.clear();
            spilled.read = 0;
            spilled.file.seek(SeekFrom::Start(0))?;
        }
        Ok(())
    }

    fn table_index(&mut self, table: &Arc<Table>) -> u32 {
        let known = self.tables.iter().rposition(|t| t.as_ref().is_some_and(|t| Arc::ptr_eq(t, table)));
        known.unwrap_or_else(|| {
            self.tables.push(Some(table.clone()));
            self.tables.len() - 1
        }) as u32
    }

    fn spill(&mut self, spill: &Spill) -> Result<(), SpillError> {
        let failed = |cause| SpillError::Io { dir: spill.dir.clone(), cause };
        if self.spilled.is_none() {
            // Without a name from the start: it is gone when the process is, however that ends.
            let file = tempfile::tempfile_in(&spill.dir).map_err(failed)?;
            self.spilled = Some(Spilled { file, len: 0, read: 0, window: READ_BYTES.min(spill.memory_max) });
        }
        let spilled = self.spilled.as_mut().expect("just made");
        if spilled.len + self.buffer.len() as u64 > spill.file_max {
            return Err(SpillError::TooLarge { max: spill.file_max });
        }
        spilled.file.write_all(&self.buffer).map_err(failed)?;
        spilled.len += self.buffer.len() as u64;
        SPILLED_BYTES.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
        self.buffer.clear();
        Ok(())
    }

    /// Sees to it that `want` unread bytes are in the buffer; false at the end of the changes.
    fn fill(&mut self, want: usize) -> io::Result<bool> {
        let have = self.buffer.len() - self.read;
        if have >= want {
            return Ok(true);
        }
        let Some(spilled) = &mut self.spilled else { return Ok(false) };
        let left = (spilled.len - spilled.read) as usize;
        if left < want - have {
            return Ok(false);
        }
        self.buffer.copy_within(self.read.., 0);
        let take = spilled.window.max(want - have).min(left);
        self.buffer.resize(have + take, 0);
        spilled.file.read_exact(&mut self.buffer[have..])?;
        spilled.read += take as u64;
        self.read = 0;
        Ok(true)
    }
}

impl Default for Transaction {
    fn default() -> Self {
        Self::new()
    }
}
