//! Rows of held tables, as they were after the last transaction that was published: the local cache of the replica's topic. IO.
//!
//! What is put is there to be read at once, and is kept for the next start by `commit` alone, which is called when everything that was
//! put is committed in Kafka. So what a start finds on disk is what the topic said up to an offset, and the topic says the rest.
//!
//! It is one B-tree in a file. The transaction of redb that is open all the time is the overlay: what is in it is read like the rest,
//! and is gone with the process, or with the run that failed.

mod overlay;
#[cfg(test)]
pub(crate) mod disk;

use std::{
    fmt, fs, io,
    ops::Bound,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use redb::{Builder, Database, Durability, ReadableDatabase, TableDefinition, backends::InMemoryBackend};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::change::Micros;
use overlay::Overlay;

/// The version of the file's contents that this program writes, and the only one that it reads.
pub const FORMAT: u32 = 1;
/// What the file says of itself, as JSON under one key.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const META_KEY: &str = "replica";
/// Memory of a replica that has no file, for pages that are looked at.
const IN_MEMORY_CACHE_BYTES: usize = 4 * 1024 * 1024;

/// Rows of held tables.
pub struct Replica {
    /// `None` after a failure: nothing more comes of it.
    overlay: Option<Overlay>,
    database: Database,
    place: Place,
    /// By the number of the table.
    loads: Vec<Option<u32>>,
    /// Rows of each table, of whatever load.
    rows: Vec<u64>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Where it is kept.
#[derive(Debug)]
struct Place {
    medium: Medium,
    cache_bytes: usize,
}

#[derive(Debug)]
enum Medium {
    File(PathBuf),
    /// Gone with the `Replica`.
    Memory,
    #[cfg(test)]
    Disk(disk::Disk),
}

/// Up to where the topic is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// As the progress record has it.
    pub generation: String,
    /// The offset of the next record.
    pub offset: i64,
    /// When this was so, by our clock.
    pub time: Micros,
    /// What the numbers of tables and links mean, and what columns rows have: rows of another meaning are not looked at.
    pub shapes: String,
}

/// What the file says of itself.
#[derive(Serialize, Deserialize)]
struct Meta {
    format: u32,
    position: Position,
    rows: Vec<u64>,
}

/// One row to be kept.
#[derive(Clone, Copy, Debug)]
pub struct HeldRow<'a> {
    /// The number of its table.
    pub table: u16,
    /// Its primary key, in a form that sorts.
    pub key: &'a [u8],
    /// Of which load it is.
    pub load: u32,
    /// Values that it is found by, in a form that sorts and ends itself; by number. `None` is found by nothing.
    pub links: &'a [Option<&'a [u8]>],
    /// Its values.
    pub cells: &'a [u8],
}

/// How much there is, and how it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Rows by the number of their table, those of older loads that are not cleared away yet among them.
    pub rows: Vec<u64>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Rows that were asked for by their key and are there, since the figures were last taken.
    pub hits: u64,
    /// Rows that were asked for by their key and are not there, since the figures were last taken.
    pub misses: u64,
}

/// The cache cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// There is no room for it.
    #[error(
        "write the replica's cache {}: its file system is full ({cause}); make room there, or give data_dir another: the file has each row \
         that events may need (`offshoot check` says how many bytes), and nothing is lost with it, for it is built again from the \
         replica's topic", file.display()
    )]
    Full {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The operating system says no.
    #[error("use the replica's cache {}: {cause}; see to the disk that data_dir is on", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What it said.
        cause: io::Error,
    },
    /// It may not be written to.
    #[error("make the replica's cache {}: {cause}; data_dir must be a directory that offshoot may write to", file.display())]
    Denied {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// Somebody else has it open.
    #[error("open the replica's cache {}: another process has it open; give each instance a data_dir of its own", file.display())]
    Taken {
        /// The file.
        file: PathBuf,
    },
    /// Another version's.
    #[error(
        "read the replica's cache {}: its format is {found}, this program reads {FORMAT}; use the offshoot that wrote it, or delete \
         the file, and it is built again from the replica's topic", file.display()
    )]
    Format {
        /// The file.
        file: PathBuf,
        /// What it says.
        found: String,
    },
    /// It is damaged; the next `open` builds it anew.
    #[error("read the replica's cache {}, which is damaged ({reason}); it is built again from the replica's topic", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ReplicaError {
    /// Whether it stands until somebody mends it; else another try may do.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Denied { .. } | Self::Format { .. } | Self::Full { .. } => true,
            Self::Io { .. } | Self::Taken { .. } | Self::Damaged { .. } => false,
        }
    }
}

/// The file of a pipeline.
pub fn file_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("replica-{name}.redb"))
}

impl Replica {
    /// Opens the cache of a pipeline, and says how far it came; makes it, and its directory, when they are not there. A file that is
    /// damaged is made anew. `cache_bytes` is the memory that it may take for pages.
    pub fn open(dir: &Path, name: &str, cache_bytes: usize) -> Result<(Self, Option<Position>), ReplicaError> {
        let place = Place { medium: Medium::File(file_of(dir, name)), cache_bytes };
        fs::create_dir_all(dir).map_err(|cause| place.io(cause))?;
        Self::open_at(place)
    }

    /// An empty one in memory, for tests: it keeps nothing.
    pub fn in_memory() -> Self {
        let place = Place { medium: Medium::Memory, cache_bytes: IN_MEMORY_CACHE_BYTES };
        Self::open_at(place).expect("memory does not fail").0
    }

    fn open_at(place: Place) -> Result<(Self, Option<Position>), ReplicaError> {
        let opened = match place.open() {
            Err(ReplicaError::Damaged { file, reason }) => {
                warn!(file = %file.display(), reason, "the replica's cache is damaged, and is built again from the topic");
                place.open()
            }
            opened => opened,
        };
        let (overlay, database, meta) = opened?;
        let (position, rows) = meta.map(|meta| (meta.position, meta.rows)).unzip();
        let (loads, rows) = (Vec::new(), rows.unwrap_or_default());
        let (hits, misses) = Default::default();
        Ok((Self { overlay: Some(overlay), database, place, loads, rows, hits, misses }, position))
    }

    /// Forgets everything, what was committed too, and takes up a new file.
    pub fn wipe(&mut self) -> Result<(), ReplicaError> {
        // Nothing of what is being written shall reach the old file.
        self.overlay = None;
        self.place.remove().map_err(|cause| self.place.io(cause))?;
        let (overlay, database, _) = self.place.open()?;
        (self.overlay, self.database) = (Some(overlay), database);
        self.rows.clear();
        Ok(())
    }

    /// Keeps what was put for the next start, with the position that it is true of. Not `durable`, it may be lost with the process, back to the
    /// last time that it was; it is never kept in part.
    pub fn commit(&mut self, position: &Position, durable: bool) -> Result<(), ReplicaError> {
        let meta = Meta { format: FORMAT, position: position.clone(), rows: self.rows.clone() };
        let meta = serde_json::to_vec(&meta).expect("neither maps nor foreign types are in it");
        let overlay = self.overlay.take().ok_or_else(|| self.place.ended())?;
        let commit = || -> Result<Overlay, redb::Error> {
            let mut transaction = overlay.end();
            transaction.open_table(META)?.insert(META_KEY, &meta[..])?;
            let durability = if durable { Durability::Immediate } else { Durability::None };
            transaction.set_durability(durability).map_err(|error| redb::Error::Io(io::Error::other(error)))?;
            // Else the file is walked from end to end at the start after a crash.
            transaction.set_quick_repair(durable);
            transaction.commit()?;
            Overlay::begin(&self.database)
        };
        self.overlay = Some(self.place.guard(commit)?);
        Ok(())
    }

    /// From now on rows of a table are those of this load; others are not there.
    pub fn set_load(&mut self, table: u16, load: u32) {
        *entry(&mut self.loads, table) = Some(load);
    }

    /// Appends the values of a row; false when it is not there.
    pub fn get(&self, table: u16, key: &[u8], out: &mut Vec<u8>) -> Result<bool, ReplicaError> {
        let load = self.loads.get(usize::from(table)).copied().flatten();
        let overlay = self.overlay()?;
        let found = self.place.guard(|| overlay.get(table, key, load, out))?;
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(found)
    }

    /// The keys of the rows that have a value, in order; rows of other loads may be among them.
    pub fn linked(&self, table: u16, link: u16, value: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), ReplicaError> {
        let overlay = self.overlay()?;
        self.place.guard(|| overlay.linked(table, link, value, each))
    }

    /// Keeps a row in place of the one that has its key.
    pub fn put(&mut self, row: &HeldRow<'_>) -> Result<(), ReplicaError> {
        let overlay = self.overlay.as_mut().ok_or_else(|| self.place.ended())?;
        let is_new = self.place.guard(|| overlay.put(row))?;
        *entry(&mut self.rows, row.table) += u64::from(is_new);
        Ok(())
    }

    /// Forgets a row.
    pub fn delete(&mut self, table: u16, key: &[u8]) -> Result<(), ReplicaError> {
        let overlay = self.overlay.as_mut().ok_or_else(|| self.place.ended())?;
        let was_there = self.place.guard(|| overlay.delete(table, key))?;
        *entry(&mut self.rows, table) -= u64::from(was_there);
        Ok(())
    }

    /// The first row of a table after a key, in order of keys, whatever load it is of: appends key and values, and gives its load; `None` at the end.
    pub fn after(
        &self,
        table: u16,
        after: Option<&[u8]>,
        key: &mut Vec<u8>,
        cells: &mut Vec<u8>,
    ) -> Result<Option<u32>, ReplicaError> {
        let from = after.map_or(Bound::Included(&[][..]), Bound::Excluded);
        let overlay = self.overlay()?;
        self.place.guard(|| overlay.after(table, from, key, cells))
    }

    /// How much there is, and how it is used.
    pub fn figures(&self) -> Figures {
        Figures {
            rows: self.rows.clone(),
            bytes: match &self.place.medium {
                Medium::File(file) => fs::metadata(file).map_or(0, |metadata| metadata.len()),
                _ => 0,
            },
            hits: self.hits.swap(0, Ordering::Relaxed),
            misses: self.misses.swap(0, Ordering::Relaxed),
        }
    }

    fn overlay(&self) -> Result<&Overlay, ReplicaError> {
        self.overlay.as_ref().ok_or_else(|| self.place.ended())
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("place", &self.place).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Place {
    /// Opens it, or makes it when it is not there, and reads what it says of itself.
    fn open(&self) -> Result<(Overlay, Database, Option<Meta>), ReplicaError> {
        let mut builder = Builder::new();
        builder.set_cache_size(self.cache_bytes);
        let create = || match &self.medium {
            Medium::File(file) => builder.create(file),
            Medium::Memory => builder.create_with_backend(InMemoryBackend::new()),
            #[cfg(test)]
            Medium::Disk(disk) => builder.create_with_backend(disk.file()),
        };
        let database = self.guard(create)?;
        let begin = || -> Result<_, redb::Error> {
            let reader = database.begin_read()?;
            let meta = match reader.open_table(META) {
                Ok(table) => table.get(META_KEY)?.map(|meta| meta.value().to_vec()),
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error.into()),
            };
            drop(reader);
            Ok((Overlay::begin(&database)?, meta))
        };
        let (overlay, meta) = self.guard(begin)?;
        let meta = meta.map(|meta| self.read_meta(&meta)).transpose()?;
        Ok((overlay, database, meta))
    }

    fn read_meta(&self, meta: &[u8]) -> Result<Meta, ReplicaError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let damaged = |error: serde_json::Error| self.damaged(error.to_string());
        let head: Head = serde_json::from_slice(meta).map_err(damaged)?;
        if head.format != FORMAT {
            return Err(ReplicaError::Format { file: self.shown(), found: head.format.to_string() });
        }
        serde_json::from_slice(meta).map_err(damaged)
    }

    /// Takes the file away; whoever has it open goes on with what nobody else sees.
    fn remove(&self) -> io::Result<()> {
        match &self.medium {
            Medium::File(file) => match fs::remove_file(file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            },
            Medium::Memory => Ok(()),
            #[cfg(test)]
            Medium::Disk(disk) => {
                disk.remove();
                Ok(())
            }
        }
    }

    /// Takes it away, so that the next to open it makes it anew.
    fn damaged(&self, reason: String) -> ReplicaError {
        match self.remove() {
            Ok(()) => ReplicaError::Damaged { file: self.shown(), reason },
            Err(cause) => self.io(cause),
        }
    }

    /// What redb has to say. It takes some pages that make no sense for its own mistakes, and panics.
    fn guard<T, E: Into<redb::Error>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, ReplicaError> {
        match panic::catch_unwind(AssertUnwindSafe(work)) {
            Ok(done) => done.map_err(|error| self.failed(error.into())),
            Err(_) => Err(self.damaged("a page makes no sense".into())),
        }
    }

    fn failed(&self, error: redb::Error) -> ReplicaError {
        let file = self.shown();
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => ReplicaError::Taken { file },
            redb::Error::UpgradeRequired(version) => {
                ReplicaError::Format { file, found: format!("that of a file of version {version}") }
            }
            // Said of a file that is something else, or too short for what it says.
            redb::Error::Io(cause)
                if matches!(cause.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                self.damaged(cause.to_string())
            }
            redb::Error::Io(cause) => self.io(cause),
            error @ (redb::Error::Corrupted(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::RepairAborted) => self.damaged(error.to_string()),
            error => self.io(io::Error::other(error)),
        }
    }

    fn io(&self, cause: io::Error) -> ReplicaError {
        use io::ErrorKind as K;
        let file = self.shown();
        match cause.kind() {
            K::PermissionDenied | K::ReadOnlyFilesystem | K::NotADirectory | K::IsADirectory | K::AlreadyExists => {
                ReplicaError::Denied { file, cause }
            }
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ReplicaError::Full { file, cause },
            _ => ReplicaError::Io { file, cause },
        }
    }

    /// The failure before this one has said why.
    fn ended(&self) -> ReplicaError {
        self.io(io::Error::other("it has failed before"))
    }

    fn shown(&self) -> PathBuf {
        match &self.medium {
            Medium::File(file) => file.clone(),
            _ => "in memory".into(),
        }
    }
}

/// What a list has at a table's number.
fn entry<T: Default + Clone>(list: &mut Vec<T>, table: u16) -> &mut T {
    let at = usize::from(table);
    if list.len() <= at {
        list.resize(at + 1, T::default());
    }
    &mut list[at]
}

#[cfg(test)]
mod tests;
