//! Domain event -> the record that carries it: CloudEvents 1.0 in its Kafka binding, or the data alone. Pure.

use std::{io::Write, ops::Range, sync::Arc};

use jiff::{Timestamp, tz::Offset};

use crate::{
    change::{Commit, Micros},
    config::EventFormat,
    event::{Context, Event},
    json,
    mapping::rules::EventRule,
    sink::{Header, HeaderName, Record, RecordBatch, Ticket},
};

const CONTENT_TYPE: &str = "content-type";
const JSON: &[u8] = b"application/json";
const STRUCTURED: &[u8] = b"application/cloudevents+json; charset=UTF-8";

/// What the attributes' headers begin with.
const PREFIX: &str = "ce_";
const SPECVERSION: &str = "ce_specversion";
const ID: &str = "ce_id";
const SOURCE: &str = "ce_source";
const TYPE: &str = "ce_type";
const SUBJECT: &str = "ce_subject";
const TIME: &str = "ce_time";
const SEQUENCE: &str = "ce_sequence";
const PREVIOUS_KEY: &str = "ce_previouskey";
const CAUSATION_ID: &str = "ce_causationid";

/// Writes events as records.
#[derive(Debug)]
pub struct Encoder {
    format: EventFormat,
    /// `/ticketmonster`
    source: String,
    /// Attributes of contexts, and their headers: as many as the config names.
    contexts: Vec<(Arc<str>, HeaderName)>,
    stamped: Stamped,
    attributes: Attributes,
}

/// What an event's record has of its transaction.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// Counts the histories of the log: after a failover the same LSN can be another transaction.
    pub epoch: u32,
    /// The transaction's.
    pub commit: Commit,
    /// What it says of itself.
    pub context: &'a Context,
}

/// The part of ids, sequences and times that all events of a transaction share.
#[derive(Debug, Default)]
struct Stamped {
    of: Option<(u32, Commit)>,
    /// `1-0000000002719350-`
    id: String,
    /// `0001-0000000002719350-`
    sequence: String,
    /// `2015-01-10T14:00:00.123456Z`
    time: Vec<u8>,
}

/// An event's attributes: their headers' names, and their values in one buffer.
#[derive(Debug, Default)]
struct Attributes {
    bytes: Vec<u8>,
    list: Vec<(HeaderName, Range<usize>)>,
}

impl Encoder {
    /// An encoder for the pipeline `name`.
    pub fn new(name: &str, format: EventFormat) -> Self {
        Self {
            format,
            source: format!("/{name}"),
            contexts: Vec::new(),
            stamped: Stamped::default(),
            attributes: Attributes::default(),
        }
    }

    /// Appends the event's record to `out`.
    pub fn encode(&mut self, stamp: &Stamp<'_>, event: &Event<'_>, ticket: Ticket, out: &mut RecordBatch) {
        self.stamped.set(stamp.epoch, &stamp.commit);
        self.fill(stamp.context, event);
        let topic = out.topic_index(&event.rule.topic);
        let key = appended(out, event.key);
        let first = out.headers.len();
        let is_structured = self.format == EventFormat::CloudeventsStructured && event.data.is_some();
        match self.format {
            EventFormat::Json => {
                for (name, attribute) in [("id", ID), ("type", TYPE)] {
                    header(out, name, self.attributes.get(attribute));
                }
            }
            _ if is_structured => header(out, CONTENT_TYPE, STRUCTURED),
            // A tombstone too: a CloudEvent without data, whose value is null. So a reader learns when the key went.
            EventFormat::Cloudevents | EventFormat::CloudeventsStructured => {
                if event.data.is_some() {
                    header(out, CONTENT_TYPE, JSON);
                }
                let start = appended(out, &self.attributes.bytes).start;
                let headers = self.attributes.list.iter();
                let headers =
                    headers.map(|(name, value)| Header::new(name.clone(), start + value.start..start + value.end));
                out.headers.extend(headers);
            }
        }
        let headers = first..out.headers.len();
        let payload = event.data.map(|data| {
            let start = out.bytes.len();
            if is_structured {
                self.attributes.object(&mut out.bytes);
                out.bytes.extend_from_slice(b",\"datacontenttype\":\"application/json\",\"data\":");
                out.bytes.extend_from_slice(data);
                out.bytes.push(b'}');
            } else {
                out.bytes.extend_from_slice(data);
            }
            start..out.bytes.len()
        });
        out.records.push(Record { topic, ticket, key: Some(key), payload, timestamp: None, headers });
    }

    fn fill(&mut self, context: &Context, event: &Event<'_>) {
        let Self { stamped, attributes, .. } = self;
        attributes.list.clear();
        attributes.bytes.clear();
        attributes.push(SPECVERSION, |out| out.extend_from_slice(b"1.0"));
        attributes.push(ID, |out| stamped.write_id(event.rule, event.row, event.data.is_none(), out));
        attributes.push(SOURCE, |out| out.extend_from_slice(self.source.as_bytes()));
        attributes.push(TYPE, |out| out.extend_from_slice(event.rule.ce_type.as_bytes()));
        attributes.push(SUBJECT, |out| {
            out.extend_from_slice(event.rule.subject.as_bytes());
            out.push(b'/');
            out.extend_from_slice(event.key);
        });
        attributes.push(TIME, |out| out.extend_from_slice(&stamped.time));
        attributes.push(SEQUENCE, |out| {
            out.extend_from_slice(stamped.sequence.as_bytes());
            // Texts, and they compare as numbers do.
            write_digits(event.index, 10, out);
        });
        if let Some(key) = event.previous_key {
            attributes.push(PREVIOUS_KEY, |out| out.extend_from_slice(key));
        }
        if let Some((rule, row)) = event.cause {
            attributes.push(CAUSATION_ID, |out| stamped.write_id(rule, row, false, out));
        }
        for (name, value) in &context.0 {
            let name = header_name(&mut self.contexts, name);
            attributes.push(name, |out| out.extend_from_slice(value.as_bytes()));
        }
    }
}

impl Stamped {
    fn set(&mut self, epoch: u32, commit: &Commit) {
        if self.of == Some((epoch, *commit)) {
            return;
        }
        self.of = Some((epoch, *commit));
        self.id = format!("{epoch}-{:016X}-", commit.lsn.0);
        self.sequence = format!("{epoch:04}-{:016X}-", commit.lsn.0);
        self.time.clear();
        write_time(commit.time, &mut self.time);
    }

    /// `<epoch>-<commit LSN>-<Event>.v<N>-<row>`; of a tombstone `.gone` follows the version, since the event of a row whose key has
    /// changed and the tombstone of its old key may share the rest.
    fn write_id(&self, rule: &EventRule, row: &[u8], is_tombstone: bool, out: &mut Vec<u8>) {
        for part in [self.id.as_str(), rule.name.as_str(), ".v"] {
            out.extend_from_slice(part.as_bytes());
        }
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{}", rule.version);
        out.extend_from_slice(if is_tombstone { b".gone-" } else { b"-" });
        out.extend_from_slice(row);
    }
}

/// RFC 3339, to the microsecond. By hand, since each transaction has one: by a format it was seen to be 2.6 % of a drain.
fn write_time(time: Micros, out: &mut Vec<u8>) {
    // Jiff ends with the year 9999, and no server's clock is there.
    let time = Offset::UTC.to_datetime(Timestamp::from_microsecond(time).unwrap_or(Timestamp::MAX));
    let small = |number: i8| number.unsigned_abs().into();
    for (number, digits, after) in [
        (time.year().unsigned_abs().into(), 4, b'-'),
        (small(time.month()), 2, b'-'),
        (small(time.day()), 2, b'T'),
        (small(time.hour()), 2, b':'),
        (small(time.minute()), 2, b':'),
        (small(time.second()), 2, b'.'),
        (u64::from(time.subsec_nanosecond().unsigned_abs()) / 1000, 6, b'Z'),
    ] {
        write_digits(number, digits, out);
        out.push(after);
    }
}

/// At least so many digits, at most 20. By hand, since each event has some.
fn write_digits(mut number: u64, least: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    while number > 0 {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&digits[at.min(digits.len() - least)..]);
}

impl Attributes {
    fn push(&mut self, name: impl Into<HeaderName>, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        self.list.push((name.into(), start..self.bytes.len()));
    }

    fn get(&self, name: &str) -> &[u8] {
        let found = self.list.iter().find(|(of, _)| **of == *name);
        found.map_or(&[], |(_, value)| &self.bytes[value.clone()])
    }

    /// Writes them as the members of an object that is not closed.
    fn object(&self, out: &mut Vec<u8>) {
        for (i, (name, value)) in self.list.iter().enumerate() {
            out.push(if i == 0 { b'{' } else { b',' });
            json::string(out, &name.as_bytes()[PREFIX.len()..]).expect("a str is UTF-8");
            out.push(b':');
            json::string(out, &self.bytes[value.clone()]).expect("keys and rows are written as UTF-8, or not at all");
        }
    }
}

/// The header of a context's attribute.
fn header_name(known: &mut Vec<(Arc<str>, HeaderName)>, attribute: &Arc<str>) -> HeaderName {
    match known.iter().find(|(of, _)| of == attribute) {
        Some((_, header)) => header.clone(),
        None => {
            let header = HeaderName::Own(format!("{PREFIX}{attribute}").into());
            known.push((attribute.clone(), header.clone()));
            header
        }
    }
}

fn header(out: &mut RecordBatch, name: impl Into<HeaderName>, value: &[u8]) {
    let value = appended(out, value);
    out.headers.push(Header::new(name, value));
}

fn appended(out: &mut RecordBatch, bytes: &[u8]) -> Range<usize> {
    let start = out.bytes.len();
    out.bytes.extend_from_slice(bytes);
    start..out.bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lsn::Lsn, sink::Topic};

    fn rule(name: &str, version: u32) -> EventRule {
        EventRule {
            name: name.into(),
            version,
            ce_type: format!("com.acme.ticketmonster.{name}.v{version}"),
            aggregate: 0,
            topic: Arc::new(Topic { name: "ticketmonster.booking".into(), table: "public.booking".into() }),
            subject: "booking".into(),
            when: Vec::new(),
            condition: None,
            data: Vec::new(),
            because: None,
            compact: false,
            backfill: false,
            needs: Vec::new(),
        }
    }

    fn event<'a>(rule: &'a EventRule, data: Option<&'a str>) -> Event<'a> {
        let data = data.map(str::as_bytes);
        Event { rule, number: 0, index: 0, key: b"42", previous_key: None, row: b"42", data, cause: None }
    }

    const COMMIT: Commit = Commit { xid: 1, lsn: Lsn(0x271_9350), end: Lsn(0x271_9380), time: 1_420_898_400_123_456 };

    /// The record's headers, key and value, a line each.
    fn lines(encoder: &mut Encoder, context: &Context, event: &Event<'_>) -> Vec<String> {
        let mut out = RecordBatch::default();
        encoder.encode(&Stamp { epoch: 1, commit: COMMIT, context }, event, Ticket(7), &mut out);
        let [record] = &out.records[..] else { panic!("one record") };
        assert_eq!((record.ticket, out.topic(record).name.as_str()), (Ticket(7), "ticketmonster.booking"));
        let text = |range: &Range<usize>| String::from_utf8(out.bytes[range.clone()].to_vec()).unwrap();
        let headers = out.headers[record.headers.clone()].iter();
        let mut lines: Vec<_> =
            headers.map(|header| format!("{} {}", header.name, text(header.value.as_ref().unwrap()))).collect();
        lines.push(format!("key {}", text(record.key.as_ref().unwrap())));
        lines.push(record.payload.as_ref().map_or("null".into(), text));
        lines
    }

    fn golden(format: EventFormat, event: &Event<'_>) -> Vec<String> {
        let context = Context(vec![
            ("correlationid".into(), "req-é\"1".into()),
            ("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        ]);
        lines(&mut Encoder::new("ticketmonster", format), &context, event)
    }

    #[test]
    fn binary_mode_has_the_attributes_in_headers() {
        let rule = rule("BookingCreated", 1);
        assert_eq!(
            golden(EventFormat::Cloudevents, &event(&rule, Some("{\"bookingId\":42}"))),
            [
                "content-type application/json",
                "ce_specversion 1.0",
                "ce_id 1-0000000002719350-BookingCreated.v1-42",
                "ce_source /ticketmonster",
                "ce_type com.acme.ticketmonster.BookingCreated.v1",
                "ce_subject booking/42",
                "ce_time 2015-01-10T14:00:00.123456Z",
                "ce_sequence 0001-0000000002719350-0000000000",
                "ce_correlationid req-é\"1",
                "ce_traceparent 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "key 42",
                "{\"bookingId\":42}",
            ]
        );
    }

    #[test]
    fn an_event_names_its_cause_and_the_key_it_had() {
        let (cancelled, cause) = (rule("BookingCancelled", 2), rule("PerformanceCancelled", 1));
        let event = Event {
            index: 4_294_967_296,
            key: "[\"CA\",\"ON\"]".as_bytes(),
            previous_key: Some("[\"CA\",\"QC\"]".as_bytes()),
            row: b"7,a\\,b",
            cause: Some((&cause, b"3")),
            ..event(&cancelled, Some("{}"))
        };
        let lines = lines(&mut Encoder::new("shop", EventFormat::Cloudevents), &Context::default(), &event);
        assert_eq!(
            lines[2..],
            [
                "ce_id 1-0000000002719350-BookingCancelled.v2-7,a\\,b",
                "ce_source /shop",
                "ce_type com.acme.ticketmonster.BookingCancelled.v2",
                "ce_subject booking/[\"CA\",\"ON\"]",
                "ce_time 2015-01-10T14:00:00.123456Z",
                "ce_sequence 0001-0000000002719350-4294967296",
                "ce_previouskey [\"CA\",\"QC\"]",
                "ce_causationid 1-0000000002719350-PerformanceCancelled.v1-3",
                "key [\"CA\",\"ON\"]",
                "{}",
            ]
        );
    }

    #[test]
    fn structured_mode_is_one_object() {
        let rule = rule("BookingCreated", 1);
        let lines = golden(EventFormat::CloudeventsStructured, &event(&rule, Some("{\"bookingId\":42}")));
        assert_eq!(
            lines,
            [
                "content-type application/cloudevents+json; charset=UTF-8",
                "key 42",
                concat!(
                    "{\"specversion\":\"1.0\",\"id\":\"1-0000000002719350-BookingCreated.v1-42\",\"source\":\"/ticketmonster\",",
                    "\"type\":\"com.acme.ticketmonster.BookingCreated.v1\",\"subject\":\"booking/42\",",
                    "\"time\":\"2015-01-10T14:00:00.123456Z\",\"sequence\":\"0001-0000000002719350-0000000000\",",
                    "\"correlationid\":\"req-é\\\"1\",\"traceparent\":\"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\",",
                    "\"datacontenttype\":\"application/json\",\"data\":{\"bookingId\":42}}"
                ),
            ]
        );
        serde_json::from_str::<serde_json::Value>(&lines[2]).unwrap();
    }

    #[test]
    fn bare_json_has_id_and_type_alone() {
        let rule = rule("BookingCreated", 1);
        let (id, of) = ("id 1-0000000002719350-BookingCreated.v1-42", "type com.acme.ticketmonster.BookingCreated.v1");
        assert_eq!(golden(EventFormat::Json, &event(&rule, Some("{}"))), [id, of, "key 42", "{}"]);
    }

    #[test]
    fn a_tombstone_says_when_the_key_went() {
        let rule = rule("StockLevel", 1);
        for format in [EventFormat::Cloudevents, EventFormat::CloudeventsStructured] {
            let lines = golden(format, &event(&rule, None));
            assert_eq!(lines[1], "ce_id 1-0000000002719350-StockLevel.v1.gone-42");
            assert_eq!(lines[6], "ce_sequence 0001-0000000002719350-0000000000");
            assert!(!lines.iter().any(|line| line.starts_with("content-type")), "{lines:?}");
            assert_eq!(lines[lines.len() - 2..], ["key 42", "null"]);
        }
        let id = "id 1-0000000002719350-StockLevel.v1.gone-42";
        assert_eq!(golden(EventFormat::Json, &event(&rule, None))[0], id);
    }

    #[test]
    fn each_transaction_has_its_own_stamp() {
        let rule = rule("BookingCreated", 1);
        let (mut encoder, context) = (Encoder::new("t", EventFormat::Cloudevents), Context::default());
        let event = event(&rule, Some("{}"));
        let mut out = RecordBatch::default();
        for (epoch, lsn) in [(1, 0x10), (1, 0x20), (2, 0x20), (1, u64::MAX)] {
            let commit = Commit { lsn: Lsn(lsn), ..COMMIT };
            encoder.encode(&Stamp { epoch, commit, context: &context }, &event, Ticket(1), &mut out);
        }
        let values = |name: &str| -> Vec<String> {
            let headers = out.headers.iter().filter(|header| *header.name == *name);
            headers
                .map(|header| String::from_utf8(out.bytes[header.value.clone().unwrap()].to_vec()).unwrap())
                .collect()
        };
        assert_eq!(
            values("ce_sequence"),
            [
                "0001-0000000000000010-0000000000",
                "0001-0000000000000020-0000000000",
                "0002-0000000000000020-0000000000",
                "0001-FFFFFFFFFFFFFFFF-0000000000",
            ]
        );
        assert_eq!(values("ce_id")[2], "2-0000000000000020-BookingCreated.v1-42");
    }
}
