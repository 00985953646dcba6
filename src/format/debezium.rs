//! Change -> records in Debezium's envelope: a key, a value, and the tombstone that follows a delete. Pure.
//!
//! Field for field and byte for byte what Debezium's PostgresConnector publishes through Connect's JSON converter
//! without schemas, except where that loses or alters a value. Then:
//!
//! - columns of an old row that the log does not keep are null, never zeros or defaults, and a NULL is never replaced by
//!   a default;
//! - NaN and infinite numerics stop with an error in `decimal: precise`, and so does every value that does not parse;
//! - an unchanged TOASTed value is taken from a full old row; a numeric that is not there is left out, not null;
//! - arrays of arrays nest; enum and bit arrays keep their NULLs; `name` columns are published; `numeric(3,-2)` has its
//!   scale; infinite dates are the ends of 32 bits; timestamps after the year 294246 do not wrap around;
//! - a key column of a type that Debezium leaves out is written as its text, so that a key always tells rows apart.

mod decimal;
mod time;
mod topic;
mod value;

use std::{collections::HashMap, ops::Range, sync::Arc};

use tracing::warn;

pub(super) use self::value::Encoding;
pub use self::{
    topic::{TemplateError, TopicError},
    value::Unfit,
};
use crate::{
    change::{Change, Commit, Micros, Old, Op, Row, Table, Value},
    config::{ChangesConfig, Decimal},
    json,
    lsn::Lsn,
    sink::{Header, Record, RecordBatch, Ticket, Topic},
};

/// The key of the row that a deleted one has become, as JSON.
const NEW_KEY: &str = "__debezium.newkey";
/// The key of the row that a created one was, as JSON.
const OLD_KEY: &str = "__debezium.oldkey";

/// Writes changes as records in Debezium's dialect.
#[derive(Debug)]
pub struct Encoder {
    topics: topic::Topics,
    decimal: Decimal,
    /// One per table: that of the shape last seen.
    plans: Vec<Plan>,
    /// `pg_class.oid` -> index in `plans`.
    by_oid: HashMap<u32, usize>,
    /// The plan of the last change, which is the next one's more often than not.
    last: usize,
    stamp: Stamp,
}

/// A change cannot be told as a record. It lasts: the same change comes again after a restart.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// One value has no JSON form.
    #[error("encode column {column} ({type_name}) of {table} at {lsn}: {unfit}")]
    Value {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
        /// The column's name.
        column: String,
        /// The column's type.
        type_name: String,
        /// What is the matter, and how to mend it.
        unfit: Unfit,
    },
    /// The log does not say what a key column holds.
    #[error(
        "find the key of a row of {table} at {lsn}: the log does not have column {column}; choose a replica identity \
         that covers the key (ALTER TABLE ... REPLICA IDENTITY FULL has every column), or leave the table out by \
         `changes.except`"
    )]
    KeyUnknown {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
        /// The key column's name.
        column: String,
    },
    /// A row is not of the table's shape.
    #[error(
        "read a row of {table} at {lsn}: it has {found} values for {expected} columns; restart, and tell us if it stays"
    )]
    Shape {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
        /// Values in the row.
        found: usize,
        /// Columns of the table.
        expected: usize,
    },
    /// The table has no topic.
    #[error("{cause}; met at {lsn}")]
    Topic {
        /// Where the change stands.
        lsn: Lsn,
        /// What is the matter, and how to mend it.
        cause: TopicError,
    },
}

impl Encoder {
    /// An encoder for the pipeline `name` on `database`.
    pub fn new(name: &str, database: &str, changes: &ChangesConfig) -> Result<Self, TemplateError> {
        Ok(Self {
            topics: topic::Topics::new(&changes.topic, name)?,
            decimal: changes.decimal,
            plans: Vec::new(),
            by_oid: HashMap::new(),
            last: 0,
            stamp: Stamp::new(name, database),
        })
    }

    /// The topics that rows of these tables, schema and name, would go to; each once.
    pub fn topics(&self, tables: &[(String, String)]) -> Result<Vec<String>, TopicError> {
        self.topics.all(tables)
    }

    /// Appends the change's records to `out`: one, or two with the tombstone of a delete, or three when a row's key
    /// changes. After an error `out` is as it was.
    ///
    /// `index` is the change's place in its transaction, `now` the time at which it is published.
    pub fn encode(
        &mut self,
        commit: &Commit,
        index: u64,
        change: &Change<'_>,
        now: Micros,
        ticket: Ticket,
        out: &mut RecordBatch,
    ) -> Result<(), EncodeError> {
        let before = out.mark();
        let written = self.append(commit, index, change, now, ticket, out);
        if written.is_err() {
            out.back_to(before);
        }
        written
    }

    /// The names of the columns that records of the table do not have, because Debezium leaves their types out.
    pub fn left_out<'t>(&self, table: &'t Table) -> Vec<&'t str> {
        let encodings = table.columns.iter().enumerate().map(|(i, _)| encoding_of(table, i, self.decimal));
        let columns = table.columns.iter().zip(encodings);
        columns.filter(|(_, encoding)| encoding.is_none()).map(|(column, _)| column.name.as_str()).collect()
    }

    fn append(
        &mut self,
        commit: &Commit,
        index: u64,
        change: &Change<'_>,
        now: Micros,
        ticket: Ticket,
        out: &mut RecordBatch,
    ) -> Result<(), EncodeError> {
        let at = self.plan(change)?;
        self.stamp.set(commit, now);
        let plan = &self.plans[at];
        let topic = out.topic_index(&plan.topic);
        let mut writer = Writer { plan, stamp: &self.stamp, index, change, topic, ticket, out };
        match change.op {
            Op::Insert { new } => {
                let key = writer.key(new, None)?;
                writer.record(key, Letter::Create, None, Some(After { row: new, old: None }), no_headers())
            }
            Op::Update { old, new } => writer.update(old, new),
            Op::Delete { old } => {
                let key = writer.old_key(old)?;
                writer.record(key.clone(), Letter::Delete, Some(old), None, no_headers())?;
                writer.tombstone(key, no_headers());
                Ok(())
            }
            Op::Truncate => writer.record(None, Letter::Truncate, None, None, no_headers()),
        }
    }

    /// The index of the plan for the change's table, made anew when the table has another shape than before.
    fn plan(&mut self, change: &Change<'_>) -> Result<usize, EncodeError> {
        let table = change.table;
        if self.plans.get(self.last).is_some_and(|plan| plan.table.version == table.version) {
            return Ok(self.last);
        }
        let known = self.by_oid.get(&table.oid).copied();
        if known.is_none_or(|at| self.plans[at].table.version != table.version) {
            let topic = self.topics.of(table).map_err(|cause| EncodeError::Topic { lsn: change.lsn, cause })?;
            let plan = Plan::new(table, topic, self.decimal);
            let left_out = self.left_out(table).join(", ");
            if !left_out.is_empty() {
                // Once per shape of the table, so once in a while.
                let table = format!("{}.{}", table.schema, table.name);
                warn!(%table, columns = %left_out, "records have no such columns: Debezium leaves out their types");
            }
            match known {
                Some(at) => self.plans[at] = plan,
                None => {
                    self.by_oid.insert(table.oid, self.plans.len());
                    self.plans.push(plan);
                }
            }
        }
        self.last = self.by_oid[&table.oid];
        Ok(self.last)
    }
}

/// What of a table's records is the same for every row.
#[derive(Debug)]
struct Plan {
    table: Arc<Table>,
    topic: Arc<Topic>,
    columns: Vec<ColumnPlan>,
    /// `,"schema":"public","table":"t","txId":`
    source: Vec<u8>,
}

#[derive(Debug)]
struct ColumnPlan {
    /// `,"name":`
    prefix: Vec<u8>,
    /// `None` leaves the column out, but never one of the key.
    encoding: Option<Encoding>,
    /// What stands for an unchanged TOASTed value; `None` leaves the column out.
    unavailable: Option<&'static [u8]>,
}

impl Plan {
    fn new(table: &Arc<Table>, topic: Arc<Topic>, decimal: Decimal) -> Self {
        let columns = table.columns.iter().enumerate().map(|(i, column)| {
            let mut prefix = vec![b','];
            quote(&mut prefix, &column.name);
            prefix.push(b':');
            let encoding = encoding_of(table, i, decimal);
            let unavailable = encoding.as_ref().and_then(|encoding| value::unavailable(column, encoding));
            ColumnPlan { prefix, encoding, unavailable }
        });
        let mut source = b",\"schema\":".to_vec();
        quote(&mut source, &table.schema);
        source.extend_from_slice(b",\"table\":");
        quote(&mut source, &table.name);
        source.extend_from_slice(b",\"txId\":");
        Self { columns: columns.collect(), table: table.clone(), topic, source }
    }

    /// Appends a row as an object; the index of the column whose value does not fit, when there is one.
    ///
    /// `old` fills in for what the row does not say.
    fn row(&self, row: Row<'_>, old: Option<Old<'_>>, out: &mut Vec<u8>) -> Result<(), (usize, Unfit)> {
        let start = out.len();
        for (i, (column, value)) in self.columns.iter().zip(row.values()).enumerate() {
            let Some(encoding) = &column.encoding else { continue };
            let value = match value {
                Value::Unchanged => self.kept(old, i).unwrap_or(value),
                _ => value,
            };
            match value {
                Value::Text(text) => {
                    out.extend_from_slice(&column.prefix);
                    encoding.write(text, out).map_err(|unfit| (i, unfit))?;
                }
                Value::Null => {
                    out.extend_from_slice(&column.prefix);
                    out.extend_from_slice(b"null");
                }
                Value::Unchanged => {
                    if let Some(word) = column.unavailable {
                        out.extend_from_slice(&column.prefix);
                        out.extend_from_slice(word);
                    }
                }
            }
        }
        close_object(start, out);
        Ok(())
    }

    /// What an old row says of a column, if it does.
    fn kept<'a>(&self, old: Option<Old<'a>>, column: usize) -> Option<Value<'a>> {
        let row = match old? {
            Old::Full(row) => row,
            Old::Identity(row) if self.table.columns[column].identity => row,
            Old::Identity(_) => return None,
        };
        row.values().nth(column).filter(|value| *value != Value::Unchanged)
    }
}

/// The encoding of a column. What Debezium leaves out is written as text where it is part of the key.
fn encoding_of(table: &Table, column: usize, decimal: Decimal) -> Option<Encoding> {
    let encoding = Encoding::of(&table.columns[column], decimal);
    encoding.or(table.key.contains(&column).then_some(Encoding::Text))
}

/// What of a record is the same for all changes of a transaction.
#[derive(Debug)]
struct Stamp {
    /// `,"source":{"version":"0.1.0","connector":"postgresql","name":"shop","ts_ms":`
    producer: Vec<u8>,
    /// `,"snapshot":"false","db":"shop","sequence":"[\"`
    database: Vec<u8>,
    of: Option<(Commit, Micros)>,
    /// From `producer` up to the commit's place in the sequence.
    head: Vec<u8>,
    /// What follows the change's place in the sequence, up to `ts_ns`.
    times: Vec<u8>,
    /// The transaction's id and what follows it up to the change's LSN.
    transaction: Vec<u8>,
    /// `,"ts_ms":...}`: when it is published, and the end.
    tail: Vec<u8>,
}

impl Stamp {
    fn new(name: &str, database: &str) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let mut producer = format!(",\"source\":{{\"version\":\"{version}\",\"connector\":\"postgresql\",\"name\":");
        let mut quoted = Vec::new();
        quote(&mut quoted, name);
        producer.push_str(std::str::from_utf8(&quoted).expect("a string was quoted"));
        producer.push_str(",\"ts_ms\":");
        let mut before_sequence = b",\"snapshot\":\"false\",\"db\":".to_vec();
        quote(&mut before_sequence, database);
        before_sequence.extend_from_slice(b",\"sequence\":\"[\\\"");
        Self {
            producer: producer.into_bytes(),
            database: before_sequence,
            of: None,
            head: Vec::new(),
            times: Vec::new(),
            transaction: Vec::new(),
            tail: Vec::new(),
        }
    }

    fn set(&mut self, commit: &Commit, now: Micros) {
        if self.of == Some((*commit, now)) {
            return;
        }
        self.of = Some((*commit, now));
        self.head.clear();
        self.head.extend_from_slice(&self.producer);
        json::integer(&mut self.head, commit.time.div_euclid(1000));
        self.head.extend_from_slice(&self.database);
        json::integer(&mut self.head, commit.lsn.0);
        self.head.extend_from_slice(b"\\\",\\\"");

        self.times.clear();
        self.times.extend_from_slice(b"\\\"]\"");
        micros_and_nanos(&mut self.times, commit.time);

        self.transaction.clear();
        json::integer(&mut self.transaction, commit.xid);
        self.transaction.extend_from_slice(b",\"lsn\":");

        self.tail.clear();
        self.tail.extend_from_slice(b",\"ts_ms\":");
        json::integer(&mut self.tail, now.div_euclid(1000));
        micros_and_nanos(&mut self.tail, now);
        self.tail.push(b'}');
    }
}

fn micros_and_nanos(out: &mut Vec<u8>, time: Micros) {
    out.extend_from_slice(b",\"ts_us\":");
    json::integer(out, time);
    out.extend_from_slice(b",\"ts_ns\":");
    // Nanoseconds fit 64 bits until the year 2262; a clock that is further off is not worth an error.
    json::integer(out, time.saturating_mul(1000));
}

/// `op`.
#[derive(Clone, Copy, Debug)]
enum Letter {
    Create,
    Update,
    Delete,
    Truncate,
}

impl Letter {
    /// What stands between the change's LSN and the time of publishing.
    fn after_lsn(self) -> &'static [u8] {
        macro_rules! after_lsn {
            ($letter:literal) => {
                concat!(
                    ",\"xmin\":null,\"origin\":null,\"origin_lsn\":null},\"transaction\":null,\"op\":\"",
                    $letter,
                    "\""
                )
                .as_bytes()
            };
        }
        match self {
            Letter::Create => after_lsn!("c"),
            Letter::Update => after_lsn!("u"),
            Letter::Delete => after_lsn!("d"),
            Letter::Truncate => after_lsn!("t"),
        }
    }
}

/// A row as it is now, and what is known of it as it was.
#[derive(Clone, Copy)]
struct After<'a> {
    row: Row<'a>,
    old: Option<Old<'a>>,
}

/// Writes the records of one change.
struct Writer<'a> {
    plan: &'a Plan,
    stamp: &'a Stamp,
    index: u64,
    change: &'a Change<'a>,
    topic: usize,
    ticket: Ticket,
    out: &'a mut RecordBatch,
}

type Key = Option<Range<usize>>;

impl Writer<'_> {
    fn update(&mut self, old: Option<Old<'_>>, new: Row<'_>) -> Result<(), EncodeError> {
        let key = self.key(new, old)?;
        let after = After { row: new, old };
        let Some((old, old_key)) = self.moved(old, new, &key)? else {
            return self.record(key, Letter::Update, old, Some(after), no_headers());
        };
        let link = self.header(NEW_KEY, &key);
        self.record(old_key.clone(), Letter::Delete, Some(old), None, link)?;
        let link = self.header(NEW_KEY, &key);
        self.tombstone(old_key.clone(), link);
        let link = self.header(OLD_KEY, &old_key);
        self.record(key, Letter::Create, None, Some(after), link)
    }

    /// The old row and its key, if that is another than the new one's.
    fn moved<'o>(
        &mut self,
        old: Option<Old<'o>>,
        new: Row<'_>,
        key: &Key,
    ) -> Result<Option<(Old<'o>, Key)>, EncodeError> {
        let (Some(old), Some(key)) = (old, key) else { return Ok(None) };
        let (Old::Full(row) | Old::Identity(row)) = old;
        self.check_shape(row)?;
        // A full old row comes with every update: its key is written only if a key column's text differs.
        let same = |&at: &usize| match new.values().nth(at) {
            Some(Value::Unchanged) => true,
            value => row.values().nth(at) == value,
        };
        if self.plan.table.key.iter().all(same) {
            return Ok(None);
        }
        let old_key = self.old_key(old)?;
        // Two texts can be one key: 1.0 and 1.00.
        Ok((old_key.clone().map(|range| &self.out.bytes[range]) != Some(&self.out.bytes[key.clone()]))
            .then_some((old, old_key)))
    }

    /// Writes the key of a row as it is now.
    fn key(&mut self, row: Row<'_>, old: Option<Old<'_>>) -> Result<Key, EncodeError> {
        self.check_shape(row)?;
        let plan = self.plan;
        self.key_of(|column| match row.values().nth(column) {
            Some(Value::Unchanged) => plan.kept(old, column),
            value => value,
        })
    }

    /// Writes the key of a row as it was.
    fn old_key(&mut self, old: Old<'_>) -> Result<Key, EncodeError> {
        let (Old::Full(row) | Old::Identity(row)) = old;
        self.check_shape(row)?;
        let plan = self.plan;
        self.key_of(|column| plan.kept(Some(old), column))
    }

    fn key_of<'v>(&mut self, value: impl Fn(usize) -> Option<Value<'v>>) -> Result<Key, EncodeError> {
        if self.plan.table.key.is_empty() {
            return Ok(None);
        }
        let start = self.out.bytes.len();
        for &i in &self.plan.table.key {
            let column = &self.plan.columns[i];
            self.out.bytes.extend_from_slice(&column.prefix);
            match value(i) {
                Some(Value::Text(text)) => {
                    let encoding = column.encoding.as_ref().expect("no column of the key is left out");
                    let written = encoding.write(text, &mut self.out.bytes);
                    written.map_err(|unfit| self.unfit(i, unfit))?;
                }
                Some(Value::Null) => self.out.bytes.extend_from_slice(b"null"),
                Some(Value::Unchanged) | None => {
                    return Err(EncodeError::KeyUnknown {
                        lsn: self.change.lsn,
                        table: self.plan.topic.table.clone(),
                        column: self.plan.table.columns[i].name.clone(),
                    });
                }
            }
        }
        close_object(start, &mut self.out.bytes);
        Ok(Some(start..self.out.bytes.len()))
    }

    fn record(
        &mut self,
        key: Key,
        letter: Letter,
        before: Option<Old<'_>>,
        after: Option<After<'_>>,
        headers: Range<usize>,
    ) -> Result<(), EncodeError> {
        let start = self.out.bytes.len();
        self.out.bytes.extend_from_slice(b"{\"before\":");
        match before {
            Some(Old::Full(row) | Old::Identity(row)) => self.row(row, None)?,
            None => self.out.bytes.extend_from_slice(b"null"),
        }
        self.out.bytes.extend_from_slice(b",\"after\":");
        match after {
            Some(After { row, old }) => self.row(row, old)?,
            None => self.out.bytes.extend_from_slice(b"null"),
        }
        let bytes = &mut self.out.bytes;
        bytes.extend_from_slice(&self.stamp.head);
        json::integer(bytes, self.index);
        bytes.extend_from_slice(&self.stamp.times);
        bytes.extend_from_slice(&self.plan.source);
        bytes.extend_from_slice(&self.stamp.transaction);
        json::integer(bytes, self.change.lsn.0);
        bytes.extend_from_slice(letter.after_lsn());
        bytes.extend_from_slice(&self.stamp.tail);
        let payload = Some(start..bytes.len());
        self.out.records.push(Record {
            topic: self.topic,
            ticket: self.ticket,
            key,
            payload,
            timestamp: None,
            headers,
        });
        Ok(())
    }

    fn tombstone(&mut self, key: Key, headers: Range<usize>) {
        self.out.records.push(Record {
            topic: self.topic,
            ticket: self.ticket,
            key,
            payload: None,
            timestamp: None,
            headers,
        });
    }

    /// A header whose value is a key that is in the batch already.
    fn header(&mut self, name: &'static str, key: &Key) -> Range<usize> {
        let start = self.out.headers.len();
        self.out.headers.extend(key.clone().map(|value| Header::new(name, value)));
        start..self.out.headers.len()
    }

    fn row(&mut self, row: Row<'_>, old: Option<Old<'_>>) -> Result<(), EncodeError> {
        self.check_shape(row)?;
        let written = self.plan.row(row, old, &mut self.out.bytes);
        written.map_err(|(column, unfit)| self.unfit(column, unfit))
    }

    fn check_shape(&self, row: Row<'_>) -> Result<(), EncodeError> {
        let (found, expected) = (usize::from(row.columns), self.plan.columns.len());
        if found == expected {
            return Ok(());
        }
        Err(EncodeError::Shape { lsn: self.change.lsn, table: self.plan.topic.table.clone(), found, expected })
    }

    fn unfit(&self, column: usize, unfit: Unfit) -> EncodeError {
        let column = &self.plan.table.columns[column];
        EncodeError::Value {
            lsn: self.change.lsn,
            table: self.plan.topic.table.clone(),
            column: column.name.clone(),
            type_name: column.ty.name().into(),
            unfit,
        }
    }
}

fn no_headers() -> Range<usize> {
    0..0
}

/// Makes an object of the members since `start`, each of which has a comma before it.
fn close_object(start: usize, out: &mut Vec<u8>) {
    match out.get_mut(start) {
        Some(comma) => *comma = b'{',
        None => out.push(b'{'),
    }
    out.push(b'}');
}

fn quote(out: &mut Vec<u8>, text: &str) {
    json::string(out, text.as_bytes()).expect("a str is UTF-8");
}

#[cfg(test)]
mod tests;
