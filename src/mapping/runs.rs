//! Pairs of bytes -> the same in the order of their keys: in memory, and merged from files without names when they are too many.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Write},
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::transaction::{Spill, SpillError};

/// How much of a file is read or written at once.
const WINDOW_BYTES: usize = 32 * 1024;
/// The same after a jump.
const JUMP_BYTES: usize = 8 * 1024;
/// Of so many bytes of a file one key is known without reading it.
const BLOCK_BYTES: u64 = 8 * 1024;
/// So many runs of about one size are merged into one, so that there are never many, and no pair is written often.
const RUNS_MAX: usize = 32;
/// Runs are not shorter for lack of memory.
const RUN_BYTES_MIN: usize = 256;
/// Lengths of key and value, in front of them.
const HEAD: usize = 8;

/// Where the files are made, and what they hold together.
#[derive(Debug)]
pub(super) struct Files {
    spill: Spill,
    bytes: AtomicU64,
}

/// Pairs in the order of their keys, in a file.
#[derive(Debug)]
pub(super) struct Run {
    files: Arc<Files>,
    file: File,
    len: u64,
    /// The first keys of blocks, one behind the other; where in them each is, and where in the file its pair starts.
    keys: Vec<u8>,
    blocks: Vec<(Range<usize>, u64)>,
}

/// A run that is being written.
#[derive(Debug)]
pub(super) struct Writer {
    run: Run,
    buffer: Vec<u8>,
}

/// Runs, older ones first; those that came of a merge know of how many.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<(u32, Run)>);

/// What of a file is in memory.
#[derive(Debug, Default)]
pub(super) struct Window {
    bytes: Vec<u8>,
    at: u64,
}

/// A pair in a file, and where the next one starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) next: u64,
}

/// Several runs, read as one: of pairs with one key the older run's comes first.
#[derive(Debug)]
pub(super) struct Merge<'a> {
    readers: Vec<Reader<'a>>,
    /// Which of them have a pair left, the next one last.
    order: Vec<usize>,
}

#[derive(Debug)]
struct Reader<'a> {
    run: &'a Run,
    window: Window,
    next: u64,
    key: Range<usize>,
    value: Range<usize>,
}

/// Pairs of bytes in one buffer.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    bytes: Vec<u8>,
    /// Start, length of the key, length of the value behind it.
    places: Vec<(u32, u32, u32)>,
    /// So many are in order.
    sorted: usize,
}

/// Pairs that come in any order, to be looked up and read in order: after `end` those before it. Two with one key are the same.
#[derive(Debug)]
pub(super) struct Sorted {
    files: Arc<Files>,
    pairs: Pairs,
    runs: Runs,
    looked_up: RefCell<Window>,
}

/// Where a walk over sorted pairs is.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// Index in memory, or place in the file, of the pair behind this one.
    next: u64,
    window: Window,
    /// The key here; empty at the end.
    pub(super) key: Vec<u8>,
    /// Its value.
    pub(super) value: Vec<u8>,
}

impl Files {
    pub(super) fn new(spill: Spill) -> Arc<Self> {
        Arc::new(Self { spill, bytes: AtomicU64::new(0) })
    }

    /// What they hold.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn failed(&self, cause: io::Error) -> SpillError {
        SpillError::Io { dir: self.spill.dir.clone(), cause }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.files.bytes.fetch_sub(self.len, Ordering::Relaxed);
    }
}

impl Writer {
    pub(super) fn new(files: &Arc<Files>) -> Result<Self, SpillError> {
        // Without a name from the start: it is gone when the process is, however that ends.
        let file = tempfile::tempfile_in(&files.spill.dir).map_err(|cause| files.failed(cause))?;
        let run = Run { files: files.clone(), file, len: 0, keys: Vec::new(), blocks: Vec::new() };
        Ok(Self { run, buffer: Vec::with_capacity(WINDOW_BYTES) })
    }

    /// Appends a pair whose key is not below the last one's.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), SpillError> {
        let Self { run, buffer } = self;
        let at = run.len + buffer.len() as u64;
        if run.blocks.last().is_none_or(|(_, block)| at - block >= BLOCK_BYTES) {
            let start = run.keys.len();
            run.keys.extend_from_slice(key);
            run.blocks.push((start..run.keys.len(), at));
        }
        // One value is a few rows, each shorter than a CopyData message, whose length has 32 bits.
        buffer.extend_from_slice(&(key.len() as u32).to_ne_bytes());
        buffer.extend_from_slice(&(value.len() as u32).to_ne_bytes());
        buffer.extend_from_slice(key);
        buffer.extend_from_slice(value);
        if self.buffer.len() >= WINDOW_BYTES { self.flush() } else { Ok(()) }
    }

    pub(super) fn end(mut self) -> Result<Run, SpillError> {
        self.flush()?;
        Ok(self.run)
    }

    fn flush(&mut self) -> Result<(), SpillError> {
        let Self { run, buffer } = self;
        let (files, more) = (&run.files, buffer.len() as u64);
        let max = files.spill.file_max;
        if files.bytes() + more > max {
            return Err(SpillError::TooLarge { max });
        }
        run.file.write_all(buffer).map_err(|cause| files.failed(cause))?;
        files.bytes.fetch_add(more, Ordering::Relaxed);
        run.len += more;
        buffer.clear();
        buffer.shrink_to(WINDOW_BYTES * 2);
        Ok(())
    }
}

impl Run {
    /// The pair that starts at a place; none at the end.
    pub(super) fn pair<'w>(&self, at: u64, window: &'w mut Window) -> Result<Option<Pair<'w>>, SpillError> {
        if at >= self.len {
            return Ok(None);
        }
        let head = self.bytes(at, HEAD, window)?;
        let len = |from: usize| u32::from_ne_bytes(head[from..from + 4].try_into().expect("four bytes")) as usize;
        let (key, value) = (len(0), len(4));
        let pair = &self.bytes(at, HEAD + key + value, window)?[HEAD..];
        Ok(Some(Pair { key: &pair[..key], value: &pair[key..], next: at + (HEAD + key + value) as u64 }))
    }

    fn bytes<'w>(&self, at: u64, len: usize, window: &'w mut Window) -> Result<&'w [u8], SpillError> {
        let Window { bytes, at: start } = window;
        let end = *start + bytes.len() as u64;
        if at < *start || at + len as u64 > end {
            let goes_on = (*start..=end).contains(&at);
            let usual = if goes_on { WINDOW_BYTES } else { JUMP_BYTES };
            let want = (usual.max(len) as u64).min(self.len - at) as usize;
            bytes.resize(want, 0);
            bytes.shrink_to(WINDOW_BYTES * 2);
            *start = at;
            self.file.read_exact_at(bytes, at).map_err(|cause| {
                // What it says of itself then is not to be read.
                bytes.clear();
                self.files.failed(cause)
            })?;
        }
        let from = (at - *start) as usize;
        Ok(&bytes[from..from + len])
    }

    /// Where the first pair starts whose key is not below this one.
    fn seek(&self, key: &[u8], window: &mut Window) -> Result<u64, SpillError> {
        let before = self.blocks.partition_point(|(first, _)| &self.keys[first.clone()] < key);
        let mut at = before.checked_sub(1).map_or(0, |block| self.blocks[block].1);
        while let Some(pair) = self.pair(at, window)?.filter(|pair| pair.key < key) {
            at = pair.next;
        }
        Ok(at)
    }
}

impl Runs {
    /// Adds the newest. `merge` makes one of several, older ones first.
    pub(super) fn push<E>(&mut self, run: Run, mut merge: impl FnMut(&[&Run]) -> Result<Run, E>) -> Result<(), E> {
        self.0.push((0, run));
        while let Some(&(times, _)) = self.0.last()
            && let Some(from) = self.0.len().checked_sub(RUNS_MAX)
            && self.0[from].0 == times
        {
            let merged = merge(&self.of(from))?;
            self.0.truncate(from);
            self.0.push((times + 1, merged));
        }
        Ok(())
    }

    pub(super) fn is_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Takes the newest.
    pub(super) fn pop(&mut self) -> Option<Run> {
        self.0.pop().map(|(_, run)| run)
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<&Run> {
        self.of(0)
    }

    fn of(&self, from: usize) -> Vec<&Run> {
        self.0[from..].iter().map(|(_, run)| run).collect()
    }

    /// In place of those that were there; they are never merged with newer ones alone.
    pub(super) fn replace(&mut self, runs: impl IntoIterator<Item = Run>) {
        self.0.clear();
        self.0.extend(runs.into_iter().map(|run| (u32::MAX, run)));
    }
}

impl<'a> Merge<'a> {
    pub(super) fn of(runs: &[&'a Run]) -> Result<Self, SpillError> {
        let reader = |run: &&'a Run| Reader { run, window: Window::default(), next: 0, key: 0..0, value: 0..0 };
        let mut merge = Self { readers: runs.iter().map(reader).collect(), order: Vec::new() };
        for reader in 0..merge.readers.len() {
            merge.read(reader)?;
        }
        Ok(merge)
    }

    /// The next pair.
    pub(super) fn pair(&self) -> Option<(&[u8], &[u8])> {
        let reader = &self.readers[*self.order.last()?];
        Some((reader.key(), &reader.window.bytes[reader.value.clone()]))
    }

    /// Goes on behind it.
    pub(super) fn step(&mut self) -> Result<(), SpillError> {
        self.order.pop().map_or(Ok(()), |reader| self.read(reader))
    }

    fn read(&mut self, at: usize) -> Result<(), SpillError> {
        let Reader { run, window, next, key, value } = &mut self.readers[at];
        let Some(pair) = run.pair(*next, window)? else { return Ok(()) };
        let (key_len, value_len, from) = (pair.key.len(), pair.value.len(), *next);
        *next = pair.next;
        let start = (from - window.at) as usize + HEAD;
        (*key, *value) = (start..start + key_len, start + key_len..start + key_len + value_len);
        let here = (self.readers[at].key(), at);
        // Nearly always it is the next one again.
        let behind = self.order.iter().rev().take_while(|other| (self.readers[**other].key(), **other) < here).count();
        self.order.insert(self.order.len() - behind, at);
        Ok(())
    }
}

impl Reader<'_> {
    fn key(&self) -> &[u8] {
        &self.window.bytes[self.key.clone()]
    }
}

impl Pairs {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
        self.sorted = 0;
    }

    fn memory(&self) -> usize {
        self.bytes.len() + self.places.len() * size_of::<(u32, u32, u32)>()
    }

    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) {
        self.places.push((self.bytes.len() as u32, key.len() as u32, value.len() as u32));
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
    }

    pub(super) fn sort(&mut self) {
        let Self { bytes, places, sorted } = self;
        let key = |&(start, len, _): &(u32, u32, u32)| &bytes[start as usize..][..len as usize];
        places.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        *sorted = places.len();
    }

    pub(super) fn pair(&self, at: usize) -> Option<(&[u8], &[u8])> {
        let &(start, key, value) = self.places.get(at)?;
        let (key, rest) = self.bytes[start as usize..].split_at(key as usize);
        Some((key, &rest[..value as usize]))
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (0..self.places.len()).map_while(|at| self.pair(at))
    }

    fn first_from(&self, key: &[u8]) -> usize {
        self.places[..self.sorted]
            .partition_point(|&(start, len, _)| &self.bytes[start as usize..][..len as usize] < key)
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let at = self.first_from(key);
        self.pair(at).filter(|(found, _)| at < self.sorted && *found == key).map(|(_, value)| value)
    }
}

impl Sorted {
    pub(super) fn new(files: Arc<Files>) -> Self {
        Self { files, pairs: Pairs::default(), runs: Runs::default(), looked_up: RefCell::default() }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.pairs.clear();
        self.pairs.bytes.shrink_to(self.files.spill.memory_max);
        self.runs.0.clear();
        self.looked_up.take();
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), SpillError> {
        self.pairs.push(key, value);
        let max = (self.files.spill.memory_max / 4).max(RUN_BYTES_MIN);
        if self.pairs.memory() > max { self.flush() } else { Ok(()) }
    }

    /// What was put can be found from now on.
    pub(super) fn end(&mut self) -> Result<(), SpillError> {
        if self.runs.0.is_empty() {
            self.pairs.sort();
            return Ok(());
        }
        if !self.pairs.places.is_empty() {
            self.flush()?;
        }
        if self.runs.0.len() > 1 {
            let merged = merged(&self.files, &self.runs.all())?;
            self.runs.replace([merged]);
        }
        self.looked_up.take();
        Ok(())
    }

    /// All of it as one run; none when there is nothing.
    pub(super) fn into_run(mut self) -> Result<Option<Run>, SpillError> {
        if !self.pairs.places.is_empty() {
            self.flush()?;
        }
        self.end()?;
        Ok(self.runs.pop())
    }

    /// Appends the value of a key; false when there is none.
    pub(super) fn get(&self, key: &[u8], value: &mut Vec<u8>) -> Result<bool, SpillError> {
        let Some((_, run)) = self.runs.0.first() else {
            return Ok(self.pairs.get(key).map(|found| value.extend_from_slice(found)).is_some());
        };
        let mut window = self.looked_up.borrow_mut();
        let at = run.seek(key, &mut window)?;
        let found = run.pair(at, &mut window)?.filter(|pair| pair.key == key);
        Ok(found.map(|pair| value.extend_from_slice(pair.value)).is_some())
    }

    /// Goes to the first pair at or after a key.
    pub(super) fn seek(&self, key: &[u8], cursor: &mut Cursor) -> Result<(), SpillError> {
        cursor.next = match self.runs.0.first() {
            None => self.pairs.first_from(key) as u64,
            Some((_, run)) => {
                // It may have been in another file.
                cursor.window = Window::default();
                run.seek(key, &mut cursor.window)?
            }
        };
        self.step(cursor)
    }

    /// Goes to the next pair.
    pub(super) fn step(&self, cursor: &mut Cursor) -> Result<(), SpillError> {
        let Cursor { next, window, key, value } = cursor;
        key.clear();
        value.clear();
        let (found, after) = match self.runs.0.first() {
            None => (self.pairs.pair(*next as usize), *next + 1),
            Some((_, run)) => match run.pair(*next, window)? {
                None => (None, *next),
                Some(pair) => (Some((pair.key, pair.value)), pair.next),
            },
        };
        if let Some((found, of)) = found {
            key.extend_from_slice(found);
            value.extend_from_slice(of);
            *next = after;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SpillError> {
        self.pairs.sort();
        let mut writer = Writer::new(&self.files)?;
        for (key, value) in self.pairs.iter() {
            writer.push(key, value)?;
        }
        self.pairs.clear();
        self.runs.push(writer.end()?, |runs| merged(&self.files, runs))
    }
}

fn merged(files: &Arc<Files>, runs: &[&Run]) -> Result<Run, SpillError> {
    let (mut merge, mut writer) = (Merge::of(runs)?, Writer::new(files)?);
    while let Some((key, value)) = merge.pair() {
        writer.push(key, value)?;
        merge.step()?;
    }
    writer.end()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn spill(memory_max: usize, file_max: u64) -> Spill {
        Spill { dir: std::env::temp_dir(), memory_max, file_max }
    }

    fn walked(sorted: &Sorted, from: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (mut cursor, mut all) = (Cursor::default(), Vec::new());
        sorted.seek(from, &mut cursor).unwrap();
        while !cursor.key.is_empty() {
            all.push((cursor.key.clone(), cursor.value.clone()));
            sorted.step(&mut cursor).unwrap();
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// In memory, in one run and in many, with keys of blocks and without.
        #[test]
        fn pairs_are_found_and_walked_in_order(
            keys in prop::collection::vec(1..40_000_u32, 1..400),
            first in 0..400_usize,
            len in 0..1500_usize,
            memory_max in prop::sample::select(vec![0, 1024 * 1024]),
            asked in prop::collection::vec(0..40_001_u32, 20),
        ) {
            let mut sorted = Sorted::new(Files::new(spill(memory_max, u64::MAX)));
            let value = |key: u32| vec![key as u8; len + key as usize % 7];
            let key = |key: u32| key.to_be_bytes();
            let mut known = BTreeMap::new();
            for (at, &number) in keys.iter().enumerate() {
                if at == first {
                    sorted.end().unwrap();
                }
                sorted.put(&key(number), &value(number)).unwrap();
                known.insert(key(number).to_vec(), value(number));
            }
            sorted.end().unwrap();
            for asked in asked.into_iter().chain(keys) {
                let mut found = Vec::new();
                let is_found = sorted.get(&key(asked), &mut found).unwrap();
                prop_assert_eq!(is_found.then_some(&found), known.get(&key(asked)[..]));
                let mut rest = walked(&sorted, &key(asked));
                rest.dedup();
                let expected: Vec<_> = known.range(key(asked).to_vec()..).map(|(k, v)| (k.clone(), v.clone())).collect();
                prop_assert_eq!(rest, expected);
            }
            let files = sorted.files.clone();
            sorted.clear();
            prop_assert_eq!(files.bytes(), 0);
        }
    }

    #[test]
    fn many_runs_are_few_files() {
        let mut sorted = Sorted::new(Files::new(spill(0, u64::MAX)));
        for number in 0..50_000_u32 {
            sorted.put(&number.reverse_bits().to_be_bytes(), b"what it says").unwrap();
            assert!(sorted.runs.0.len() < 3 * RUNS_MAX);
        }
        assert!(sorted.runs.0.len() > 1);
        sorted.end().unwrap();
        assert_eq!(walked(&sorted, &[]).len(), 50_000);
    }

    #[test]
    fn of_one_key_the_older_run_comes_first() {
        let files = Files::new(spill(0, u64::MAX));
        let run = |pairs: &[(&[u8], &[u8])]| {
            let mut writer = Writer::new(&files).unwrap();
            for (key, value) in pairs {
                writer.push(key, value).unwrap();
            }
            writer.end().unwrap()
        };
        let runs =
            [run(&[(b"b", b"1"), (b"c", b"1")]), run(&[]), run(&[(b"a", b"2"), (b"b", b"2")]), run(&[(b"b", b"3")])];
        let mut merge = Merge::of(&runs.iter().collect::<Vec<_>>()).unwrap();
        let mut all = Vec::new();
        while let Some((key, value)) = merge.pair() {
            all.push([key, value].concat());
            merge.step().unwrap();
        }
        assert_eq!(all, [b"a2", b"b1", b"b2", b"b3", b"c1"]);
    }

    #[test]
    fn more_than_the_disk_may_take_is_refused_with_the_limit() {
        let mut sorted = Sorted::new(Files::new(spill(0, 100_000)));
        let error = (0..100_000_u32).find_map(|number| sorted.put(&number.to_be_bytes(), b"what it says").err());
        assert!(matches!(error, Some(SpillError::TooLarge { max: 100_000 })), "{error:?}");
    }
}
