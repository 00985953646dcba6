//! New row of the outbox table, or message in its place -> the record that the application meant. Pure.
//!
//! The layout is Debezium's EventRouter's: the key is the aggregate's id, the header `id` the event's, the value its payload,
//! alone or in an envelope with further columns. What the application wrote is published even if it deletes the row in the
//! same transaction, as outboxes do to stay empty: each insert counts, and a delete says nothing.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use postgres_types::Type;
use tracing::warn;

use super::debezium::{Encoding, Unfit};
use crate::{
    change::{Change, LogicalMessage, Op, Row, Table, Value},
    config::{Converter, Decimal, OnUpdate, OutboxConfig, Placement, bad_topic},
    json,
    lsn::Lsn,
    sink::{Header, HeaderName, Record, RecordBatch, Ticket, Topic},
    text::{DAY_MICROS, Day, time_of_day},
};

/// Topics that are remembered; a template with a value in it could make any number.
const TOPICS_MAX: usize = 10_000;
/// The year 10000.
const MILLIS_END: i64 = 253_402_300_800_000;
/// The header with the event's id.
const ID: &str = "id";

/// Writes outbox rows as records.
#[derive(Debug)]
pub struct Encoder {
    config: OutboxConfig,
    /// `outbox.topic`, but for the aggregate's type.
    template: String,
    /// By the aggregate's type.
    topics: HashMap<Vec<u8>, Arc<Topic>>,
    /// What the application calls an additional field, and what the record does.
    fields: Vec<(String, Arc<str>, Placement)>,
    plan: Option<Plan>,
    /// Tables of which it was said that updates are left out, by oid.
    warned: HashSet<u32>,
}

/// A row or a message that cannot become a record. It lasts: the same comes again after a restart.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    /// The table has not what the config names.
    #[error("read a row of the outbox {table} at {lsn}: it has no column {column}; set `outbox.{key}`")]
    NoColumn {
        /// Where the row stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
        /// As the config has it.
        column: String,
        /// Where the config names it.
        key: String,
    },
    /// One value has no JSON form.
    #[error("encode column {column} of the outbox {table} at {lsn}: {unfit}")]
    Value {
        /// Where the row stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
        /// The column's name.
        column: String,
        /// What is the matter.
        unfit: Unfit,
    },
    /// A row of the outbox was updated.
    #[error(
        "read an UPDATE of the outbox {table} at {lsn}: an event that was written cannot be changed; `outbox.on_update: warn` leaves \
         it out"
    )]
    Update {
        /// Where the change stands.
        lsn: Lsn,
        /// `schema.table`.
        table: String,
    },
    /// Kafka takes no such topic.
    #[error(
        "find a topic for an outbox event of {of} at {lsn}: {topic:?} is no name that Kafka takes, which has 1 to 249 letters, digits, \
         '.', '_' and '-'"
    )]
    Topic {
        /// Where the event stands.
        lsn: Lsn,
        /// The table, or the prefix.
        of: String,
        /// The name that it comes to.
        topic: String,
    },
    /// There is no topic without it.
    #[error("find a topic for an outbox event of {of} at {lsn}: it has no {column}")]
    NoType {
        /// Where the event stands.
        lsn: Lsn,
        /// The table, or the prefix.
        of: String,
        /// What the application calls the aggregate's type.
        column: String,
    },
    /// No time of the log's makes a record's.
    #[error(
        "read the time of an outbox event of {of} at {lsn}: {column} must be a time after 1970 and before the year 10000, in a column of \
         type timestamp or timestamptz, or in a message milliseconds or an RFC 3339 text; take `outbox.columns.timestamp` out, \
         or mend the row"
    )]
    Time {
        /// Where the event stands.
        lsn: Lsn,
        /// The table, or the prefix.
        of: String,
        /// What the application calls it.
        column: String,
    },
    /// A message that is not what the config says.
    #[error("read an outbox message with prefix {prefix:?} at {lsn}: {why}")]
    Message {
        /// Where it stands.
        lsn: Lsn,
        /// Its prefix.
        prefix: String,
        /// What is the matter, and how to mend it.
        why: &'static str,
    },
}

/// Where in a row of the table what is, for one shape of it.
#[derive(Debug)]
struct Plan {
    version: u64,
    id: Place,
    aggregateid: Place,
    aggregatetype: Place,
    payload: Place,
    timestamp: Option<Place>,
    fields: Vec<Place>,
}

/// A column of the table.
#[derive(Debug)]
struct Place {
    column: usize,
    encoding: Encoding,
    /// Its text is JSON.
    json: bool,
}

/// A value that the application wrote.
#[derive(Clone, Copy)]
enum Datum<'a> {
    Null,
    Column(&'a [u8], &'a Place),
    /// A JSON value that is not null.
    Json(&'a [u8]),
}

/// What one record is made of.
struct Parts<'a> {
    lsn: Lsn,
    /// The table, or the prefix.
    of: &'a str,
    id: Datum<'a>,
    aggregateid: Datum<'a>,
    aggregatetype: Datum<'a>,
    payload: Datum<'a>,
    timestamp: Datum<'a>,
    fields: Vec<Datum<'a>>,
}

impl Encoder {
    /// An encoder for the pipeline `name`.
    pub fn new(name: &str, config: &OutboxConfig) -> Self {
        let field = |(column, field): (&str, &crate::config::OutboxField)| {
            (column.to_owned(), field.name.as_deref().unwrap_or(column).into(), field.to)
        };
        Self {
            template: config.topic.replace("{name}", name),
            fields: config.fields.iter().map(field).collect(),
            config: config.clone(),
            topics: HashMap::new(),
            plan: None,
            warned: HashSet::new(),
        }
    }

    /// Whether messages with this prefix are outbox events.
    pub fn takes(&self, prefix: &str) -> bool {
        self.config.prefix.as_deref() == Some(prefix)
    }

    /// Appends the record of a change of the outbox table, if it makes one. After an error `out` is as it was.
    pub fn encode(&mut self, change: &Change<'_>, ticket: Ticket, out: &mut RecordBatch) -> Result<(), OutboxError> {
        let Change { table, lsn, op } = *change;
        match op {
            Op::Insert { new } => {
                let plan = match self.plan.take() {
                    Some(plan) if plan.version == table.version => plan,
                    _ => self.plan_of(table, lsn)?,
                };
                let of = format!("{}.{}", table.schema, table.name);
                let value = |place: &'_ Place| plan_value(new, place.column);
                let datum = |place| value(place).map_or(Datum::Null, |text| Datum::Column(text, place));
                let parts = Parts {
                    lsn,
                    of: &of,
                    id: datum(&plan.id),
                    aggregateid: datum(&plan.aggregateid),
                    aggregatetype: datum(&plan.aggregatetype),
                    payload: datum(&plan.payload),
                    timestamp: plan.timestamp.as_ref().map_or(Datum::Null, datum),
                    fields: plan.fields.iter().map(datum).collect(),
                };
                let written = self.append(&parts, Some(table), ticket, out);
                drop(parts);
                self.plan = Some(plan);
                written
            }
            Op::Update { .. } if self.config.on_update == OnUpdate::Stop => {
                Err(OutboxError::Update { lsn, table: format!("{}.{}", table.schema, table.name) })
            }
            Op::Update { .. } => {
                if self.warned.insert(table.oid) {
                    let table = format!("{}.{}", table.schema, table.name);
                    warn!(%table, %lsn, "an UPDATE of the outbox is left out, as are those that follow: only new rows are events");
                }
                Ok(())
            }
            // The row has done its work.
            Op::Delete { .. } | Op::Truncate => Ok(()),
        }
    }

    /// Appends the record of a message. After an error `out` is as it was.
    pub fn encode_message(
        &mut self,
        message: &LogicalMessage<'_>,
        ticket: Ticket,
        out: &mut RecordBatch,
    ) -> Result<(), OutboxError> {
        let LogicalMessage { lsn, transactional, prefix, content } = *message;
        let refuse = |why| OutboxError::Message { lsn, prefix: prefix.into(), why };
        if !transactional {
            return Err(refuse(
                "it is not transactional, so that it would be published even if what it tells of is rolled back; write it by \
                 pg_logical_emit_message(true, ...)",
            ));
        }
        let members = json::members(content).map_err(|_| refuse("its content is not a JSON object"))?;
        let member = |name: &str| {
            let value = members.iter().rfind(|(of, _)| of == name).map(|(_, value)| *value);
            value.filter(|value| *value != b"null").map_or(Datum::Null, Datum::Json)
        };
        let columns = self.config.columns.clone();
        let parts = Parts {
            lsn,
            of: prefix,
            id: member(&columns.id),
            aggregateid: member(&columns.aggregateid),
            aggregatetype: member(&columns.aggregatetype),
            payload: member(&columns.payload),
            timestamp: columns.timestamp.as_deref().map_or(Datum::Null, member),
            fields: self.fields.iter().map(|(column, ..)| member(column)).collect(),
        };
        if matches!(parts.id, Datum::Null) {
            return Err(refuse("it has no id (`outbox.columns.id`), by which consumers know it when it comes again"));
        }
        self.append(&parts, None, ticket, out)
    }

    fn plan_of(&self, table: &Table, lsn: Lsn) -> Result<Plan, OutboxError> {
        let place = |name: &str, key: &str| {
            let column = table.columns.iter().position(|column| column.name == name);
            let column = column.ok_or_else(|| OutboxError::NoColumn {
                lsn,
                table: format!("{}.{}", table.schema, table.name),
                column: name.into(),
                key: key.into(),
            })?;
            let shape = &table.columns[column];
            let encoding = Encoding::of(shape, Decimal::Precise).unwrap_or(Encoding::Text);
            Ok(Place { column, encoding, json: matches!(shape.ty, Type::JSON | Type::JSONB) })
        };
        let columns = &self.config.columns;
        let field = |(column, ..): &(String, Arc<str>, Placement)| place(column, &format!("fields.{column}"));
        Ok(Plan {
            version: table.version,
            id: place(&columns.id, "columns.id")?,
            aggregateid: place(&columns.aggregateid, "columns.aggregateid")?,
            aggregatetype: place(&columns.aggregatetype, "columns.aggregatetype")?,
            payload: place(&columns.payload, "columns.payload")?,
            timestamp: columns.timestamp.as_ref().map(|name| place(name, "columns.timestamp")).transpose()?,
            fields: self.fields.iter().map(field).collect::<Result<_, _>>()?,
        })
    }

    fn append(
        &mut self,
        parts: &Parts<'_>,
        table: Option<&Table>,
        ticket: Ticket,
        out: &mut RecordBatch,
    ) -> Result<(), OutboxError> {
        let before = out.mark();
        let written = self.write(parts, ticket, out).map_err(|failed| match failed {
            Failed::Known(error) => error,
            Failed::Unfit(datum, unfit) => {
                let column = match (datum, table) {
                    (Datum::Column(_, place), Some(table)) => table.columns[place.column].name.clone(),
                    _ => String::new(),
                };
                OutboxError::Value { lsn: parts.lsn, table: parts.of.into(), column, unfit }
            }
        });
        if written.is_err() {
            out.back_to(before);
        }
        written
    }

    fn write<'a>(&mut self, parts: &Parts<'a>, ticket: Ticket, out: &mut RecordBatch) -> Result<(), Failed<'a>> {
        let topic = self.topic(parts)?;
        let topic = out.topic_index(&topic);
        let converter = self.config.converter;
        let key = match (parts.aggregateid, converter) {
            (Datum::Null, _) => None,
            (id, Converter::String) => id.plain(&mut out.bytes)?,
            (id, Converter::Json) => Some(written(&mut out.bytes, |bytes| id.json(bytes, false))?),
        };
        let timestamp = self.timestamp(parts)?;
        let first = out.headers.len();
        let value = parts.id.plain(&mut out.bytes)?;
        out.headers.push(Header { name: ID.into(), value });
        for ((_, name, placement), datum) in self.fields.iter().zip(&parts.fields) {
            if *placement == Placement::Header {
                let value = datum.plain(&mut out.bytes)?;
                out.headers.push(Header { name: HeaderName::from(name), value });
            }
        }
        let payload = self.value(parts, &mut out.bytes)?;
        let headers = first..out.headers.len();
        out.records.push(Record { topic, ticket, key, payload, timestamp, headers });
        Ok(())
    }

    fn value<'a>(&self, parts: &Parts<'a>, bytes: &mut Vec<u8>) -> Result<Option<Range<usize>>, Failed<'a>> {
        let payload = parts.payload;
        if self.config.tombstone && payload.is_empty() {
            return Ok(None);
        }
        let expand = self.config.expand_json;
        if !self.fields.iter().any(|(.., placement)| *placement == Placement::Envelope) {
            return match self.config.converter {
                Converter::String => payload.plain(bytes),
                Converter::Json => written(bytes, |bytes| payload.json(bytes, expand)).map(Some),
            };
        }
        let envelope = |bytes: &mut Vec<u8>| {
            bytes.extend_from_slice(b"{\"payload\":");
            payload.json(bytes, expand)?;
            for ((_, name, placement), datum) in self.fields.iter().zip(&parts.fields) {
                if *placement == Placement::Envelope {
                    bytes.push(b',');
                    json::string(bytes, name.as_bytes()).expect("a str is UTF-8");
                    bytes.push(b':');
                    // A field keeps its JSON type.
                    match datum {
                        Datum::Json(value) => bytes.extend_from_slice(value),
                        _ => datum.json(bytes, false)?,
                    }
                }
            }
            bytes.push(b'}');
            Ok(())
        };
        written(bytes, envelope).map(Some)
    }

    /// The record's timestamp, as EventRouter has it: a `timestamp` as if it were UTC.
    fn timestamp(&self, parts: &Parts<'_>) -> Result<Option<i64>, Failed<'static>> {
        let found = match parts.timestamp {
            Datum::Null => return Ok(None),
            Datum::Column(text, Place { encoding: Encoding::Timestamp(_), .. }) => millis(text, b""),
            Datum::Column(text, Place { encoding: Encoding::TimestampWithZone { .. }, .. }) => millis(text, b"+00"),
            Datum::Column(..) => None,
            Datum::Json(value) => json::text_of(value).and_then(|text| {
                let text = str::from_utf8(&text).ok()?;
                let said = || text.parse().ok().map(|time: jiff::Timestamp| time.as_millisecond());
                text.parse().ok().or_else(said)
            }),
        };
        // Zero means to librdkafka what no timestamp means.
        let fits = found.filter(|millis| (1..MILLIS_END).contains(millis));
        let column = || self.config.columns.timestamp.clone().unwrap_or_default();
        fits.map(Some)
            .ok_or_else(|| Failed::Known(OutboxError::Time { lsn: parts.lsn, of: parts.of.into(), column: column() }))
    }

    fn topic(&mut self, parts: &Parts<'_>) -> Result<Arc<Topic>, Failed<'static>> {
        let (lsn, of) = (parts.lsn, parts.of.to_owned());
        let mut bytes = Vec::new();
        let ty = parts.aggregatetype.plain(&mut bytes).ok().flatten();
        if ty.is_none() {
            let column = self.config.columns.aggregatetype.clone();
            return Err(Failed::Known(OutboxError::NoType { lsn, of, column }));
        }
        if let Some(topic) = self.topics.get(&bytes) {
            return Ok(topic.clone());
        }
        let name = self.template.replace("{aggregatetype}", &String::from_utf8_lossy(&bytes));
        if bad_topic(&name).is_some() {
            return Err(Failed::Known(OutboxError::Topic { lsn, of, topic: name }));
        }
        if self.topics.len() >= TOPICS_MAX {
            self.topics.clear();
        }
        let topic = Arc::new(Topic { name, table: of });
        self.topics.insert(bytes, topic.clone());
        Ok(topic)
    }
}

/// Milliseconds since 1970 of Postgres' text, whose zone is `zone`.
fn millis(text: &[u8], zone: &[u8]) -> Option<i64> {
    let (day, rest) = Day::read(text)?;
    let (micros, rest) = time_of_day(rest.strip_prefix(b" ")?)?;
    let day = day.of_era(rest.strip_prefix(zone)?)?;
    Some(day.since_epoch() * (DAY_MICROS / 1000) + micros / 1000)
}

fn plan_value(row: Row<'_>, column: usize) -> Option<&[u8]> {
    match row.values().nth(column)? {
        Value::Text(text) => Some(text),
        Value::Null | Value::Unchanged => None,
    }
}

enum Failed<'a> {
    Known(OutboxError),
    Unfit(Datum<'a>, Unfit),
}

/// Where in the bytes what `write` appends is.
fn written<'a>(
    bytes: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), Failed<'a>>,
) -> Result<Range<usize>, Failed<'a>> {
    let start = bytes.len();
    write(bytes)?;
    Ok(start..bytes.len())
}

impl<'a> Datum<'a> {
    /// Appends it as text, without quotes; nothing for null.
    fn plain(self, bytes: &mut Vec<u8>) -> Result<Option<Range<usize>>, Failed<'a>> {
        let start = bytes.len();
        match self {
            Datum::Null => return Ok(None),
            Datum::Json(value) => bytes.extend_from_slice(&json::text_of(value).unwrap_or_default()),
            Datum::Column(text, Place { encoding: Encoding::Text, .. }) => bytes.extend_from_slice(text),
            Datum::Column(text, Place { encoding: Encoding::Bytes, .. }) => {
                let hex = text.strip_prefix(b"\\x").ok_or(Failed::Unfit(self, Unfit::Malformed))?;
                let digit = |c: u8| (c as char).to_digit(16).ok_or(Failed::Unfit(self, Unfit::Malformed));
                for pair in hex.chunks(2) {
                    let [high, low] = pair else { return Err(Failed::Unfit(self, Unfit::Malformed)) };
                    bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
                }
            }
            Datum::Column(..) => {
                let mut value = Vec::new();
                self.json(&mut value, false)?;
                bytes.extend_from_slice(&json::text_of(&value).unwrap_or_default());
            }
        }
        Ok(Some(start..bytes.len()))
    }

    /// Appends it as JSON; `expand` embeds a text that is JSON already.
    fn json(self, bytes: &mut Vec<u8>, expand: bool) -> Result<(), Failed<'a>> {
        match self {
            Datum::Null => bytes.extend_from_slice(b"null"),
            Datum::Json(value) if expand => bytes.extend_from_slice(value),
            Datum::Json(value) => {
                let text = json::text_of(value).unwrap_or(Cow::Borrowed(b""));
                json::string(bytes, &text).map_err(|_| Failed::Unfit(self, Unfit::NotUtf8))?;
            }
            Datum::Column(text, place) if expand && (place.json || json::is_json(text)) => {
                bytes.extend_from_slice(text);
            }
            Datum::Column(text, place) => {
                place.encoding.write(text, bytes).map_err(|unfit| Failed::Unfit(self, unfit))?;
            }
        }
        Ok(())
    }

    /// Nothing, or white space.
    fn is_empty(self) -> bool {
        match self {
            Datum::Null => true,
            Datum::Column(text, _) => text.trim_ascii().is_empty() || text == b"\\x",
            Datum::Json(value) => json::text_of(value).is_none_or(|text| text.trim_ascii().is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        change::{Asked, Column, Identity},
        config::Config,
    };

    fn encoder(outbox: &str) -> Encoder {
        let text = format!(
            "{{ name: shop, source: {{ postgres: postgres://u@h/d }}, sink: {{ kafka: {{ brokers: \"k:1\" }} }}, outbox: {{ {outbox} }} }}"
        );
        let config = Config::parse(&text, "c", &|_| None).unwrap();
        Encoder::new(&config.name, config.outbox.as_ref().unwrap())
    }

    const COLUMNS: &[(&str, Type)] = &[
        ("id", Type::UUID),
        ("aggregatetype", Type::VARCHAR),
        ("aggregateid", Type::INT8),
        ("payload", Type::JSONB),
        ("at", Type::TIMESTAMPTZ),
    ];

    fn table(columns: &[(&str, Type)]) -> Arc<Table> {
        let column =
            |(name, ty): &(&str, Type)| Column { name: (*name).into(), ty: ty.clone(), modifier: -1, identity: false };
        Arc::new(Table {
            version: 1,
            oid: 1,
            schema: "public".into(),
            name: "outbox".into(),
            ancestors: vec![],
            identity: Identity::Default,
            asked: Asked { outbox: true, ..Asked::NOBODY },
            columns: columns.iter().map(column).collect(),
            key: vec![0],
        })
    }

    fn wire(values: &[Option<&str>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for value in values {
            match value {
                None => bytes.push(b'n'),
                Some(text) => {
                    bytes.push(b't');
                    bytes.extend((text.len() as u32).to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
        bytes
    }

    fn insert(encoder: &mut Encoder, table: &Arc<Table>, values: &[Option<&str>]) -> Result<Vec<String>, OutboxError> {
        let bytes = wire(values);
        let new = Row { bytes: &bytes, columns: values.len() as u16 };
        let mut out = RecordBatch::default();
        let result = encoder.encode(&Change { table, lsn: Lsn(9), op: Op::Insert { new } }, Ticket(1), &mut out);
        result.map(|()| told(&out))
    }

    /// Topic, key, value and headers of the only record.
    fn told(out: &RecordBatch) -> Vec<String> {
        let text = |range: &Option<Range<usize>>| match range {
            Some(range) => String::from_utf8_lossy(&out.bytes[range.clone()]).into_owned(),
            None => "(null)".into(),
        };
        let record = &out.records[0];
        assert_eq!(out.records.len(), 1);
        let mut told = vec![out.topic(record).name.clone(), text(&record.key), text(&record.payload)];
        let headers = out.headers[record.headers.clone()].iter();
        told.extend(headers.map(|header| format!("{}={}", header.name, text(&header.value))));
        told
    }

    const ROW: &[Option<&str>] =
        &[Some("u-1"), Some("order"), Some("42"), Some(r#"{"n": 1.50}"#), Some("2024-01-01 00:00:00+00")];

    #[test]
    fn a_row_is_its_payload_as_text_under_its_aggregate() {
        let mut plain = encoder("table: outbox");
        assert_eq!(
            insert(&mut plain, &table(COLUMNS), ROW).unwrap(),
            ["outbox.event.order", "42", r#"{"n": 1.50}"#, "id=u-1"]
        );
        let null = [Some("u-1"), Some("order"), None, None, None];
        assert_eq!(
            insert(&mut plain, &table(COLUMNS), &null).unwrap(),
            ["outbox.event.order", "(null)", "(null)", "id=u-1"]
        );
        let bytes = [("id", Type::INT8), ("aggregatetype", Type::TEXT), ("aggregateid", Type::TEXT)];
        let bytes = table(&[&bytes[..], &[("payload", Type::BYTEA)]].concat());
        let row = [Some("1"), Some("a-b"), Some("k"), Some("\\x6869")];
        assert_eq!(
            insert(&mut encoder("table: outbox, topic: \"{name}.{aggregatetype}\""), &bytes, &row).unwrap(),
            ["shop.a-b", "k", "hi", "id=1"]
        );
    }

    #[test]
    fn further_columns_go_to_headers_or_beside_the_payload() {
        let mut encoder = encoder(
            "table: outbox, expand_json: true, fields: { at: { to: header, as: createdAt }, aggregateid: { to: envelope, as: n } }",
        );
        assert_eq!(
            insert(&mut encoder, &table(COLUMNS), ROW).unwrap(),
            [
                "outbox.event.order",
                "42",
                r#"{"payload":{"n": 1.50},"n":42}"#,
                "id=u-1",
                "createdAt=2024-01-01T00:00:00.000000Z"
            ]
        );
    }

    #[test]
    fn a_column_may_be_the_time_of_the_record() {
        let with = |ty: Type, text: Option<&str>| {
            let mut columns = COLUMNS.to_vec();
            columns[4].1 = ty;
            let mut row = ROW.to_vec();
            row[4] = text;
            let (table, bytes) = (table(&columns), wire(&row));
            let new = Row { bytes: &bytes, columns: 5 };
            let mut out = RecordBatch::default();
            let change = Change { table: &table, lsn: Lsn(9), op: Op::Insert { new } };
            encoder("table: outbox, columns: { timestamp: at }")
                .encode(&change, Ticket(1), &mut out)
                .map(|()| out.records[0].timestamp)
                .map_err(|error| (error.to_string(), out.records.len(), out.bytes.len()))
        };
        assert_eq!(with(Type::TIMESTAMP, Some("2024-06-01 12:00:01.5")), Ok(Some(1_717_243_201_500)));
        assert_eq!(with(Type::TIMESTAMPTZ, Some("2024-06-01 12:00:01.0009+00")), Ok(Some(1_717_243_201_000)));
        assert_eq!(with(Type::TIMESTAMP, None), Ok(None), "when it is published");
        for (ty, text) in [
            (Type::TIMESTAMP, "infinity"),
            (Type::TIMESTAMP, "1969-12-31 23:59:59"),
            (Type::TIMESTAMP, "1970-01-01 00:00:00"),
            (Type::TIMESTAMPTZ, "10000-01-01 00:00:00+00"),
            (Type::TEXT, "2024-06-01 12:00:00"),
        ] {
            let (said, records, bytes) = with(ty, Some(text)).unwrap_err();
            assert!(said.contains("at must be a time after 1970") && !said.contains(text), "{said}");
            assert_eq!((records, bytes), (0, 0));
        }
        let mut encoder = encoder("prefix: outbox, columns: { timestamp: at }");
        let mut of = |at: &str| {
            let content = format!(r#"{{"id": "u-1", "aggregatetype": "order", "at": {at}}}"#);
            let message =
                LogicalMessage { lsn: Lsn(9), transactional: true, prefix: "outbox", content: content.as_bytes() };
            let mut out = RecordBatch::default();
            encoder.encode_message(&message, Ticket(1), &mut out).map(|()| out.records[0].timestamp)
        };
        for at in ["1717243201500", "\"2024-06-01T12:00:01.5Z\"", "\"2024-06-01T14:00:01.5+02:00\""] {
            assert_eq!(of(at), Ok(Some(1_717_243_201_500)), "{at}");
        }
        assert_eq!(of("null"), Ok(None));
        assert!(matches!(of("\"yesterday\""), Err(OutboxError::Time { .. })));
    }

    #[test]
    fn a_message_is_what_a_row_would_be() {
        let mut encoder = encoder("prefix: outbox, fields: { seq: { to: envelope }, tenant: { to: header } }");
        let content =
            br#"{"id": "u-1", "aggregatetype": "order", "aggregateid": 42, "payload": {"n": 1.50}, "seq": 7}"#;
        let mut tell = |transactional, content: &[u8]| {
            let mut out = RecordBatch::default();
            let message = LogicalMessage { lsn: Lsn(9), transactional, prefix: "outbox", content };
            encoder.encode_message(&message, Ticket(1), &mut out).map(|()| told(&out)).map_err(|e| e.to_string())
        };
        assert_eq!(
            tell(true, content).unwrap(),
            ["outbox.event.order", "42", r#"{"payload":"{\"n\": 1.50}","seq":7}"#, "id=u-1", "tenant=(null)"]
        );
        let refused = |told: Result<Vec<String>, String>, words: &str| {
            let said = told.unwrap_err();
            assert!(said.contains(words), "{said}");
        };
        refused(tell(false, content), "it is not transactional");
        refused(tell(true, b"[]"), "its content is not a JSON object");
        refused(tell(true, b"{}"), "it has no id");
        refused(tell(true, b"{\"id\":1}"), "it has no aggregatetype");
    }

    #[test]
    fn what_cannot_be_told_is_said_and_leaves_nothing() {
        let said = |outbox: &str, values: &[Option<&str>]| {
            insert(&mut encoder(outbox), &table(COLUMNS), values).unwrap_err().to_string()
        };
        assert!(
            said("table: outbox, columns: { payload: body }", ROW)
                .ends_with("it has no column body; set `outbox.columns.payload`")
        );
        let mut other = ROW.to_vec();
        other[1] = Some("Mixed Case/é");
        assert!(said("table: outbox", &other).contains("\"outbox.event.Mixed Case/é\" is no name that Kafka takes"));
        other[1] = None;
        assert!(said("table: outbox", &other).contains("it has no aggregatetype"));
        let (table, bytes) = (table(COLUMNS), wire(ROW));
        let new = Row { bytes: &bytes, columns: 5 };
        let update = Change { table: &table, lsn: Lsn(9), op: Op::Update { old: None, new } };
        let mut out = RecordBatch::default();
        let stop = encoder("table: outbox, on_update: stop").encode(&update, Ticket(1), &mut out);
        assert!(matches!(stop, Err(OutboxError::Update { .. })));
        assert_eq!(encoder("table: outbox").encode(&update, Ticket(1), &mut out), Ok(()));
        assert!(out.records.is_empty());
    }
}
