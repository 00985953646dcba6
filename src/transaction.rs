//! `Transaction`: the changes and messages of one commit, in memory or, when they are too many, in a spill file without a name.

use std::{
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
/// LSN, and length and column count of the old and of the new row), then the bytes of the rows as the wire had them. A
/// message has its prefix in place of the old row, and its content in place of the new one.
#[derive(Debug)]
pub struct Transaction {
    /// Set when the commit has been read.
    pub commit: Commit,
    /// Where it was replicated from (`pg_replication_origin`); `None` when it was written here.
    pub origin: Option<String>,
    /// What its context messages say, a JSON object: of each name what was said last.
    pub context: Option<Vec<u8>>,
    tables: Vec<Arc<Table>>,
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
    /// The transaction is larger than `limits.spill`.
    #[error("hold a transaction of more than {max} bytes; raise limits.spill")]
    TooLarge {
        /// `limits.spill`.
        max: u64,
    },
}

const HEAD: usize = 30;
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
        (self.origin, self.context) = (None, None);
        self.buffer.clear();
        self.buffer.shrink_to(keep_max);
        (self.read, self.len, self.spilled) = (0, 0, None);
    }

    /// Appends a change.
    pub fn push(&mut self, table: &Arc<Table>, lsn: Lsn, op: Op<'_>, spill: &Spill) -> Result<(), SpillError> {
        let table = self.table_index(table);
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
        self.append([tag, old_kind], table, lsn, [old, new], spill)
    }

    /// Appends a message.
    pub fn push_message(&mut self, message: &LogicalMessage<'_>, spill: &Spill) -> Result<(), SpillError> {
        let parts = [message.prefix.as_bytes(), message.content].map(|bytes| Row { bytes, columns: 0 });
        self.append([b'M', u8::from(message.transactional)], 0, message.lsn, parts, spill)
    }

    fn append(
        &mut self,
        kind: [u8; 2],
        table: u32,
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
        buffer.extend_from_slice(old.bytes);
        buffer.extend_from_slice(new.bytes);
        self.len += 1;
        if self.buffer.len() > spill.memory_max { self.spill(spill) } else { Ok(()) }
    }

    /// The next change or message that has not been read.
    pub fn next_content(&mut self) -> io::Result<Option<Content<'_>>> {
        if !self.fill(HEAD)? {
            return Ok(None);
        }
        let head = &self.buffer[self.read..self.read + HEAD];
        let u32_at = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes")) as usize;
        let (tag, old_kind, table) = (head[0], head[1], u32_at(2));
        let lsn = Lsn(u64::from_ne_bytes(head[6..14].try_into().expect("eight bytes")));
        let (old_len, old_columns, new_len, new_columns) = (u32_at(14), u32_at(18), u32_at(22), u32_at(26));
        if !self.fill(HEAD + old_len + new_len)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let old_at = self.read + HEAD;
        let new_at = old_at + old_len;
        self.read = new_at + new_len;
        let (old, new) = (&self.buffer[old_at..new_at], &self.buffer[new_at..self.read]);
        if tag == b'M' {
            let prefix = std::str::from_utf8(old).map_err(|_| io::ErrorKind::InvalidData)?;
            let message = LogicalMessage { lsn, transactional: old_kind == 1, prefix, content: new };
            return Ok(Some(Content::Message(message)));
        }
        let old = Row { bytes: old, columns: old_columns as u16 };
        let new = Row { bytes: new, columns: new_columns as u16 };
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
        Ok(Some(Content::Row(Change { table: &self.tables[table], lsn, op })))
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
        let known = self.tables.iter().rposition(|t| Arc::ptr_eq(t, table));
        known.unwrap_or_else(|| {
            self.tables.push(table.clone());
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
