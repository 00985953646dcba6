//! A disk in memory that outlives the processes of the simulation.

use std::{
    io,
    sync::{Arc, Mutex},
};

use redb::{StorageBackend, backends::InMemoryBackend};

use super::{IN_MEMORY_CACHE_BYTES, Medium, Place, Position, Replica, ReplicaError};

/// A disk with one file. A clone is the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<File>>);

/// A file, which outlives its name for those who have it open.
#[derive(Clone, Debug, Default)]
pub(super) struct File(Arc<InMemoryBackend>);

impl Disk {
    /// The disk as it is now: what a process that is killed now leaves behind.
    pub(crate) fn copy(&self) -> Disk {
        let (file, copy) = (self.file(), File::default());
        let write = || -> io::Result<()> {
            let mut bytes = vec![0; file.len()? as usize];
            file.read(0, &mut bytes)?;
            copy.set_len(bytes.len() as u64)?;
            copy.write(0, &bytes)
        };
        write().expect("memory does not fail");
        Disk(Arc::new(Mutex::new(copy)))
    }

    pub(super) fn file(&self) -> File {
        self.0.lock().expect("nobody panics with it").clone()
    }

    pub(super) fn remove(&self) {
        *self.0.lock().expect("nobody panics with it") = File::default();
    }
}

impl Replica {
    /// As `open`, on such a disk. One at a time.
    pub(crate) fn open_on(disk: &Disk) -> Result<(Self, Option<Position>), ReplicaError> {
        Self::open_at(Place { medium: Medium::Disk(disk.clone()), cache_bytes: IN_MEMORY_CACHE_BYTES })
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}
