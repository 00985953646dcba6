//! `Sink`: where records go, and how it is learnt that they are durable.

use std::{error::Error, fmt, future::Future, ops::Deref, ops::Range, sync::Arc};

use crate::progress::Progress;

/// Names a transaction in flight: the ledger opened it, each of its records carries it, each acknowledgement names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The header of a record whose transaction is spread over several Kafka transactions, so that it may be seen in part.
pub const SPLIT: &str = "offshoot-split";

/// What librdkafka keeps of a record in flight beside its bytes: a message of 232 bytes, a list of headers of 64, and what the
/// allocator adds to these; small records must not escape the budget.
pub const RECORD_OVERHEAD: usize = 336;
/// What it keeps of each header beside its name and its value: 42 bytes, a place in the list, and what the allocator adds.
pub const HEADER_OVERHEAD: usize = 66;

/// Records on their way to the sink, their bytes in one buffer, in the order in which they are to be sent.
#[derive(Debug, Default)]
pub struct RecordBatch {
    /// Keys, payloads and header values; records point into it.
    pub bytes: Vec<u8>,
    /// In sending order.
    pub records: Vec<Record>,
    /// Headers of the records, each record's together.
    pub headers: Vec<Header>,
    topics: Vec<Arc<Topic>>,
}

/// A topic that records go to.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    /// A legal Kafka topic name.
    pub name: String,
    /// Whose rows it carries, `schema.table`, for messages about it.
    pub table: String,
}

/// How much was in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    bytes: usize,
    records: usize,
    headers: usize,
}

/// One record of a batch; ranges point into `RecordBatch::bytes`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Index for `RecordBatch::topic`.
    pub topic: usize,
    /// The transaction it belongs to.
    pub ticket: Ticket,
    /// `None` is Kafka's null key.
    pub key: Option<Range<usize>>,
    /// `None` is Kafka's null value: a tombstone.
    pub payload: Option<Range<usize>>,
    /// Milliseconds since 1970, after its beginning; when it is published, if `None`.
    pub timestamp: Option<i64>,
    /// Range in `RecordBatch::headers`.
    pub headers: Range<usize>,
}

/// One header of a record.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The header's key.
    pub name: HeaderName,
    /// Its value, in `RecordBatch::bytes`; `None` is Kafka's null.
    pub value: Option<Range<usize>>,
}

/// A header's key: one of the program's, or one of the config's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderName {
    /// The program's.
    Fixed(&'static str),
    /// The config's.
    Own(Arc<str>),
}

impl Header {
    /// A header with a value.
    pub fn new(name: impl Into<HeaderName>, value: Range<usize>) -> Header {
        Header { name: name.into(), value: Some(value) }
    }
}

impl From<&'static str> for HeaderName {
    fn from(name: &'static str) -> Self {
        HeaderName::Fixed(name)
    }
}

impl From<&Arc<str>> for HeaderName {
    fn from(name: &Arc<str>) -> Self {
        HeaderName::Own(name.clone())
    }
}

impl Deref for HeaderName {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            HeaderName::Fixed(name) => name,
            HeaderName::Own(name) => name,
        }
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl RecordBatch {
    /// The index of `topic` in this batch, entered when it is new.
    pub fn topic_index(&mut self, topic: &Arc<Topic>) -> usize {
        let known = self.topics.iter().rposition(|t| Arc::ptr_eq(t, topic));
        known.unwrap_or_else(|| {
            self.topics.push(topic.clone());
            self.topics.len() - 1
        })
    }

    /// The topics that its records go to.
    pub fn topics(&self) -> &[Arc<Topic>] {
        &self.topics
    }

    /// The topic that a record goes to.
    pub fn topic(&self, record: &Record) -> &Arc<Topic> {
        &self.topics[record.topic]
    }

    /// Bytes of a record: key, payload, and names and values of its headers.
    pub fn len_of(&self, record: &Record) -> usize {
        let len = |range: &Option<Range<usize>>| range.as_ref().map_or(0, |r| r.len());
        let headers = self.headers[record.headers.clone()].iter().map(|header| header.name.len() + len(&header.value));
        len(&record.key) + len(&record.payload) + headers.sum::<usize>()
    }

    /// What a record takes of the budget for records in flight: its bytes, and what is kept beside them.
    pub fn weight_of(&self, record: &Record) -> usize {
        self.len_of(record) + RECORD_OVERHEAD + record.headers.len() * HEADER_OVERHEAD
    }

    /// How much is in it, to go back there.
    pub fn mark(&self) -> Mark {
        Mark { bytes: self.bytes.len(), records: self.records.len(), headers: self.headers.len() }
    }

    /// Takes out what was added since.
    pub fn back_to(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.records.truncate(mark.records);
        self.headers.truncate(mark.headers);
    }

    /// Marks the records from this one on as of a transaction that is spread over several Kafka transactions.
    pub fn mark_from(&mut self, first: usize) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(b"true");
        for record in &mut self.records[first..] {
            // A record's headers stand together.
            let own = self.headers[record.headers.clone()].to_vec();
            let from = self.headers.len();
            self.headers.extend(own);
            self.headers.push(Header::new(SPLIT, start..start + 4));
            record.headers = from..self.headers.len();
        }
    }

    /// Empties the batch and keeps its buffers.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
        self.headers.clear();
        self.topics.clear();
    }
}

/// So many records of one transaction are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Whose records.
    pub ticket: Ticket,
    /// How many.
    pub records: u64,
    /// What they took of the budget, as `RecordBatch::weight_of` counts.
    pub bytes: u64,
}

/// What became of what was sent.
#[derive(Debug, Default)]
pub struct News {
    /// Records that are durable. With `exactly_once` nobody sees them before they are committed.
    pub acknowledged: Vec<Acknowledgement>,
    /// The commit that was asked for is done: its progress record, and everything sent before it, is there to be seen.
    pub committed: bool,
    /// The offset after the last record of the replica's topic that is durable, when there were some.
    pub kept_end: Option<i64>,
}

/// Records of the replica's topic, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Key and value; a value that is `None` is a tombstone.
    pub records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The offset after the last of them, and after what was passed over since.
    pub next: i64,
}

/// Somewhere that records become durable, in order per key.
pub trait Sink {
    /// Makes sure that whoever published before us can publish no more, and says how far it came. Called once, first.
    fn take_over(&mut self) -> impl Future<Output = Result<Option<Progress>, SinkError>>;

    /// Where the replica's topic begins and ends; `None` when there is none, and `make` does not ask for it. Called after
    /// `take_over`.
    fn find_kept(&mut self, make: bool) -> impl Future<Output = Result<Option<Range<i64>>, SinkError>>;

    /// The next records of the replica's topic from an offset on that are before `end`; `None` when there are no more. Each call
    /// begins where the last one has ended, or elsewhere at will.
    fn kept(&mut self, from: i64, end: i64) -> impl Future<Output = Result<Option<Kept>, SinkError>>;

    /// The topic that the replica's records are sent to.
    fn kept_topic(&self) -> Arc<Topic>;

    /// An empty batch to fill.
    fn batch(&mut self) -> RecordBatch;

    /// Takes records to send in order. Never waits: how much may be in flight is the pipeline's to bound.
    fn send(&mut self, batch: RecordBatch) -> Result<(), SinkError>;

    /// Writes a progress record after everything that was sent, and with `exactly_once` commits it all. Never waits; one
    /// commit at a time.
    fn commit(&mut self, progress: &Progress) -> Result<(), SinkError>;

    /// Waits for news and adds them to those that are there. Cancel safe.
    fn news(&mut self, into: &mut News) -> impl Future<Output = Result<(), SinkError>>;

    /// Gives up what is in flight and ends.
    fn close(self) -> impl Future<Output = ()>;
}

/// Why a sink takes no more, sorted by what is to be done about it.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// It passes: connect again and go on from the slot.
    #[error(transparent)]
    Passing(Box<dyn Error + Send + Sync>),
    /// What is committed together took longer than Kafka lets it take, although Kafka was at work all the time. It passes
    /// when Kafka was slow, and never does when there is too much of it; the text says how to mend that.
    #[error(transparent)]
    Late(Box<dyn Error + Send + Sync>),
    /// Kafka refuses for good: a right, a setting. The text says how to mend it.
    #[error(transparent)]
    Refused(Box<dyn Error + Send + Sync>),
    /// One record is refused for good, such as one that is larger than the broker takes.
    #[error("publish a record of {table} with key {key} and {size} bytes: {reason}")]
    Record {
        /// Whose record it is; the pipeline knows the LSN.
        ticket: Ticket,
        /// `schema.table`.
        table: String,
        /// The record's key as text; empty when it has none.
        key: String,
        /// Bytes of its value.
        size: usize,
        /// What Kafka said, and how to mend it.
        reason: Box<dyn Error + Send + Sync>,
    },
}
