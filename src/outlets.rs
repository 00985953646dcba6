//! Transaction -> records of every way out, step by step: `changes`, `outbox`, `messages`, `events`.
//!
//! First come its contents, a row change or a message a step, in the order in which they were written; then its events, one a
//! step, since only the whole transaction says what has happened. Steps are counted: of a transaction that is spread over several Kafka transactions, progress says how many are published, and a
//! restart walks over these without a record; the mapping sees them all the same.

use std::{io, sync::Arc};

use serde::Serialize;

use crate::{
    change::{Change, Commit, Content, LogicalMessage, Micros, Op},
    config::{Config, ContextConfig},
    event::Context,
    format::{
        cloudevents,
        debezium::{self, TopicError},
        messages::{self, NoKey},
        outbox::{self, OutboxError},
    },
    json,
    lsn::Lsn,
    mapping::{
        Looked, MapError, Mapping,
        kept::KeptRow,
        payload::Missing,
        rules::{EventRule, MappedColumn, Rules},
        value::text_form,
    },
    replica::{Figures, Position, Replica, ReplicaError},
    sink::{Record, RecordBatch, Ticket, Topic},
    transaction::{Spill, SpillError, Transaction},
};

pub use crate::mapping::Counts;
#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};

/// Every way out of one pipeline.
#[derive(Debug)]
pub struct Outlets {
    changes: Option<debezium::Encoder>,
    outbox: Option<outbox::Encoder>,
    messages: messages::Encoder,
    events: Option<Events>,
    context: Option<ContextConfig>,
    ignore_origin: Vec<String>,
    /// Of the transaction that has begun.
    epoch: u32,
    /// What it says of itself.
    attributes: Context,
}

/// Domain events: what makes them, and what writes them.
#[derive(Debug)]
struct Events {
    mapping: Mapping,
    encoder: cloudevents::Encoder,
    /// How far the replica's copy on disk had come.
    position: Option<Position>,
}

/// The ways out, as metrics count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlet {
    /// `changes`
    Changes,
    /// `outbox`
    Outbox,
    /// `messages`
    Messages,
    /// `events`
    Events,
}

/// What one step has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// What the step was.
    pub what: What,
    /// Records, by way out.
    pub records: [(Outlet, u64); 4],
}

/// What a step was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A row change.
    Row(RowOp),
    /// A message.
    Message,
    /// An event, by its place in `event_names`.
    Event(usize),
    /// A row that the replica is to have.
    Kept {
        /// A transaction that is spread over several Kafka transactions may be cut after it.
        cuts: bool,
    },
}

/// A table of which the mapping holds rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldShape {
    /// What the mapping calls it.
    pub table: usize,
    /// What the database calls it, whatever its name is; 0 is unknown.
    pub oid: u32,
    /// Unquoted.
    pub schema: String,
    /// Unquoted.
    pub name: String,
    /// Unquoted, in the order of its rows.
    pub names: Vec<String>,
    /// Name of each, and how its values are written: `id integer`.
    pub columns: Vec<String>,
    /// Places in `columns` that rows are found by.
    pub links: Vec<usize>,
}

impl HeldShape {
    /// `schema.table`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// What was done to a row, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOp {
    /// INSERT
    Insert,
    /// UPDATE
    Update,
    /// DELETE
    Delete,
    /// TRUNCATE
    Truncate,
}

/// Where a step's records go, and what they say of it.
#[derive(Debug)]
pub struct Step<'a> {
    /// Its place in its transaction, from 0.
    pub index: u64,
    /// When it is published.
    pub now: Micros,
    /// The transaction's.
    pub ticket: Ticket,
    /// `None` when they are published already.
    pub out: Option<&'a mut RecordBatch>,
    /// Where rows go that the replica is to have.
    pub kept: Option<&'a Arc<Topic>>,
}

/// What makes of a config its ways out.
#[derive(Debug, thiserror::Error)]
pub enum OutletsError {
    /// `changes.topic` is no template.
    #[error(transparent)]
    Template(#[from] debezium::TemplateError),
    /// A prefix of `messages` is no pattern.
    #[error("read a prefix of messages: {0}")]
    Prefix(#[from] globset::Error),
}

/// A step that cannot be told. It lasts: the same step comes again after a restart.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A row change.
    #[error(transparent)]
    Change(#[from] debezium::EncodeError),
    /// An outbox event.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// A message.
    #[error(transparent)]
    Message(#[from] NoKey),
    /// What happened in the business.
    #[error(transparent)]
    Map(MapError),
    /// What a transaction says of itself.
    #[error("read the context message, with prefix {prefix:?}, of the transaction that commits at {commit}: {why}")]
    Context {
        /// Where the transaction's commit record starts.
        commit: Lsn,
        /// The message's prefix.
        prefix: String,
        /// What is the matter.
        why: String,
    },
}

/// Why a transaction does not go on.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// It cannot be told.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Its spill file cannot be read back.
    #[error(transparent)]
    Spill(#[from] io::Error),
    /// There is no room to find out what it has done.
    #[error(transparent)]
    Net(#[from] SpillError),
    /// Rows that are held cannot be read or kept.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
}

impl From<MapError> for StepError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Spill(error) => StepError::Net(error),
            MapError::Replica(error) => StepError::Replica(error),
            error => StepError::Encode(EncodeError::Map(error)),
        }
    }
}

/// Whether a transaction leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// It does.
    Yes,
    /// It came from an origin that `ignore_origin` names.
    Ignored,
}

impl EncodeError {
    /// Whether it is the config that is to be mended, and not the row.
    pub fn is_config(&self) -> bool {
        matches!(self, EncodeError::Change(debezium::EncodeError::Topic { .. }))
            || matches!(self, EncodeError::Outbox(OutboxError::NoColumn { .. }))
    }

    /// Whether its text has the way on already.
    pub fn says_how_to_go_on(&self) -> bool {
        use MapError::{
            Event, NoRoot, NotHeld, PartTruncated, Renamed, Replaced, RootRenamed, TooLarge, Truncated, Unkept,
            Unmapped,
        };
        let EncodeError::Map(error) = self else { return self.is_config() };
        match error {
            Truncated { .. } | PartTruncated { .. } | TooLarge { .. } | Unmapped { .. } => true,
            // The replica and the source disagree: who goes on without the transaction meets the next row that is not there.
            NotHeld { .. } | NoRoot { .. } | Unkept { .. } => true,
            // Nor is one transaction all that is not known of them.
            Renamed { .. } | RootRenamed { .. } | Replaced { .. } => true,
            Event { missing, .. } => matches!(**missing, Missing::Row { .. }),
            _ => false,
        }
    }
}

impl Outlets {
    /// Of a config, on `database`.
    pub fn new(config: &Config, database: &str) -> Result<Self, OutletsError> {
        let changes = |changes| debezium::Encoder::new(&config.name, database, changes);
        Ok(Self {
            changes: config.changes.as_ref().map(changes).transpose()?,
            outbox: config.outbox.as_ref().map(|outbox| outbox::Encoder::new(&config.name, outbox)),
            messages: messages::Encoder::new(&config.messages)?,
            events: None,
            context: config.context.clone(),
            ignore_origin: config.ignore_origin.clone(),
            epoch: 0,
            attributes: Context::default(),
        })
    }

    /// With the events of these rules; `spill` bounds what is netted in memory.
    pub fn with_events(self, config: &Config, rules: Rules, spill: Spill) -> Self {
        let encoder = cloudevents::Encoder::new(&config.name, config.format);
        Self { events: Some(Events { mapping: Mapping::new(rules, spill), encoder, position: None }), ..self }
    }

    /// With the copy on disk of what is held, and how far it has come.
    pub fn with_replica(mut self, replica: Replica, position: Option<Position>) -> Self {
        self.mapping().hold(replica);
        self.events.as_mut().expect("rows are held for events").position = position;
        self
    }

    /// The topics that `changes` of these tables, schema and name, would go to; each once.
    pub fn topics(&self, tables: &[(String, String)]) -> Result<Vec<String>, TopicError> {
        self.changes.as_ref().map_or(Ok(Vec::new()), |changes| changes.topics(tables))
    }

    /// The events that there may be, as the config has them in order: `BookingCreated.v1`.
    pub fn event_names(&self) -> Vec<String> {
        let rules = self.events.iter().flat_map(|events| &events.mapping.rules().events);
        rules.map(EventRule::full_name).collect()
    }

    /// What the rows of mapped tables have come to.
    pub fn counts(&self) -> Counts {
        self.events.as_ref().map(|events| events.mapping.counts()).unwrap_or_default()
    }

    /// Bytes of the file in which a transaction's rows are put together; 0 in memory.
    pub fn netting_bytes(&self) -> u64 {
        self.events.as_ref().map_or(0, |events| events.mapping.spilled_bytes())
    }

    /// Begins a transaction of `epoch`, whose steps follow. `keeping` when all of it is told, and only rows are to be kept.
    pub fn begin(&mut self, transaction: &Transaction, epoch: u32, keeping: bool) -> Result<Leaves, EncodeError> {
        self.epoch = epoch;
        self.attributes.0.clear();
        let mut origins: Vec<String> = transaction.origin.iter().cloned().collect();
        if let (Some(context), Some(content)) = (&self.context, &transaction.context) {
            let refuse = |why: String| EncodeError::Context {
                commit: transaction.commit.lsn,
                prefix: context.prefix.clone(),
                why,
            };
            let members = json::members(content).map_err(|error| refuse(format!("of its content, {error}")))?;
            let member = |name: &str| {
                let Some((_, value)) = members.iter().rfind(|(of, _)| of == name) else { return Ok(None) };
                if value.starts_with(b"{") || value.starts_with(b"[") {
                    return Err(refuse(format!("its {name} is neither text nor a number")));
                }
                let text = json::text_of(value).map(|text| String::from_utf8_lossy(&text).into_owned());
                Ok(text)
            };
            for (attribute, field) in &context.attributes {
                if let Some(value) = member(field)? {
                    self.attributes.0.push((attribute.as_str().into(), value));
                }
            }
            origins.extend(member("origin")?);
        }
        let is_ignored = origins.iter().any(|origin| self.ignore_origin.contains(origin));
        if let Some(events) = &mut self.events {
            // What it does to rows that are held counts all the same.
            events.mapping.begin(&transaction.commit, keeping || is_ignored);
        }
        Ok(if is_ignored { Leaves::Ignored } else { Leaves::Yes })
    }

    /// The end of a transaction: nothing of it is held any more.
    pub fn end(&mut self) {
        if let Some(events) = &mut self.events {
            events.mapping.end();
        }
    }

    /// Takes the next step; `None` when there is no further one. After an error the batch is as it was.
    pub fn step(&mut self, transaction: &mut Transaction, step: Step<'_>) -> Result<Option<Told>, StepError> {
        let commit = transaction.commit;
        let Some(content) = transaction.next_content()? else {
            return match self.tell_event(&commit, step)? {
                Ok(told) => Ok(Some(told)),
                Err(step) => self.keep_row(step),
            };
        };
        #[cfg(test)]
        let is_seen = step.out.is_some() || !is_planted(PlantedBug::PublishedIsUnseen);
        #[cfg(not(test))]
        let is_seen = true;
        if let (Content::Row(change), Some(events)) = (&content, &mut self.events)
            && change.table.asked.mapping
            && is_seen
        {
            events.mapping.take(change)?;
        }
        let what = match content {
            Content::Row(change) => What::Row(RowOp::of(&change.op)),
            Content::Message(_) => What::Message,
        };
        let mut told = Told::nothing(what);
        let Some(out) = step.out else { return Ok(Some(told)) };
        let before = out.mark();
        let mut batch = Counting { ticket: step.ticket, out, told: &mut told };
        let written = match content {
            Content::Row(change) => self.tell_row(&commit, step.index, step.now, &change, &mut batch),
            Content::Message(message) => self.tell_message(&commit, step.index, &message, &mut batch),
        };
        match written {
            Ok(()) => Ok(Some(told)),
            Err(error) => {
                batch.out.back_to(before);
                Err(error.into())
            }
        }
    }

    fn tell_row(
        &mut self,
        commit: &Commit,
        index: u64,
        now: Micros,
        change: &Change<'_>,
        batch: &mut Counting<'_>,
    ) -> Result<(), EncodeError> {
        let asked = change.table.asked;
        if let Some(changes) = self.changes.as_mut().filter(|_| asked.changes) {
            batch.count(Outlet::Changes, |ticket, out| changes.encode(commit, index, change, now, ticket, out))?;
        }
        if let Some(outbox) = self.outbox.as_mut().filter(|_| asked.outbox) {
            batch.count(Outlet::Outbox, |ticket, out| outbox.encode(change, ticket, out))?;
        }
        Ok(())
    }

    fn tell_message(
        &mut self,
        commit: &Commit,
        index: u64,
        message: &LogicalMessage<'_>,
        batch: &mut Counting<'_>,
    ) -> Result<(), EncodeError> {
        if let Some(outbox) = self.outbox.as_mut().filter(|outbox| outbox.takes(message.prefix)) {
            batch.count(Outlet::Outbox, |ticket, out| outbox.encode_message(message, ticket, out))?;
        }
        let place = messages::Place { epoch: self.epoch, commit: *commit, index };
        batch.count(Outlet::Messages, |ticket, out| self.messages.encode(&place, message, ticket, out))?;
        Ok(())
    }

    /// The next event; the step again, when there is no further one.
    fn tell_event<'s>(&mut self, commit: &Commit, step: Step<'s>) -> Result<Result<Told, Step<'s>>, StepError> {
        let Some(Events { mapping, encoder, .. }) = &mut self.events else { return Ok(Err(step)) };
        let Some(event) = mapping.next()? else { return Ok(Err(step)) };
        let mut told = Told::nothing(What::Event(event.number));
        if let Some(out) = step.out {
            let stamp = cloudevents::Stamp { epoch: self.epoch, commit: *commit, context: &self.attributes };
            let mut batch = Counting { ticket: step.ticket, out, told: &mut told };
            let write = |ticket, out: &mut RecordBatch| {
                encoder.encode(&stamp, &event, ticket, out);
                Ok::<_, EncodeError>(())
            };
            batch.count(Outlet::Events, write)?;
            return Ok(Ok(told));
        }
        #[cfg(test)]
        if is_planted(PlantedBug::EventsCountAnew) {
            mapping.uncount();
        }
        Ok(Ok(told))
    }

    /// The next row that the replica is to have.
    fn keep_row(&mut self, step: Step<'_>) -> Result<Option<Told>, StepError> {
        let Some(Events { mapping, .. }) = &mut self.events else { return Ok(None) };
        let Some(row) = mapping.next_kept()? else { return Ok(None) };
        let told = Told::nothing(What::Kept { cuts: row.splits });
        if let (Some(out), Some(topic)) = (step.out, step.kept) {
            keep(&row, topic, step.ticket, out);
        }
        Ok(Some(told))
    }

    /// The tables of which rows are held, for events need them.
    pub fn held(&self) -> Vec<HeldShape> {
        let Some(Events { mapping, .. }) = &self.events else { return Vec::new() };
        let rules = mapping.rules();
        let column = |column: &MappedColumn| format!("{} {}", column.name, text_form((&column.ty, column.modifier)));
        let shape = |table: usize| {
            let of = &rules.tables[table];
            HeldShape {
                table,
                oid: of.oid,
                schema: of.schema.clone(),
                name: of.name.clone(),
                names: of.columns.iter().map(|column| column.name.clone()).collect(),
                columns: of.columns.iter().map(column).collect(),
                links: rules.links(table),
            }
        };
        mapping.held().into_iter().map(shape).collect()
    }

    /// Of which load a held table's rows are, and from which position on they are known; `None` is nowhere yet.
    pub fn set_held(&mut self, table: usize, load: u32, from: Option<Lsn>) {
        self.mapping().set_held(table, load, from);
    }

    /// Up to where the copy on disk has what is held, as it was opened or stored.
    pub fn replica_position(&self) -> Option<Position> {
        self.events.as_ref().and_then(|events| events.position.clone())
    }

    /// Empties the copy on disk.
    pub fn wipe_replica(&mut self) -> Result<(), StepError> {
        self.events.as_mut().expect("rows are held for events").position = None;
        Ok(self.replica().wipe()?)
    }

    /// A record of the replica's topic.
    pub fn restore(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StepError> {
        Ok(self.mapping().restore(key, value)?)
    }

    /// What was put is there at the next start.
    pub fn store(&mut self, position: &Position, durable: bool) -> Result<(), StepError> {
        self.replica().commit(position, durable)?;
        self.events.as_mut().expect("rows are held for events").position = Some(position.clone());
        Ok(())
    }

    /// How much is held, and how it was used since this was last asked.
    pub fn replica_figures(&mut self) -> Figures {
        self.replica().figures()
    }

    /// Keeps a row that was loaded.
    pub fn load_row(
        &mut self,
        table: usize,
        load: u32,
        cells: &[u8],
        topic: &Arc<Topic>,
        ticket: Ticket,
        out: &mut RecordBatch,
    ) -> Result<(), StepError> {
        keep(&self.mapping().load_row(table, load, cells)?, topic, ticket, out);
        Ok(())
    }

    /// Looks at the next row after a key, and takes it out of the topic if it is of an earlier load; whether it is, and `None` at the end.
    pub fn bury(
        &mut self,
        table: usize,
        after: &mut Vec<u8>,
        topic: &Arc<Topic>,
        ticket: Ticket,
        out: &mut RecordBatch,
    ) -> Result<Option<bool>, StepError> {
        Ok(match self.mapping().garbage(table, after)? {
            Looked::Forgotten(row) => {
                keep(&row, topic, ticket, out);
                Some(true)
            }
            Looked::Stays => Some(false),
            Looked::End => None,
        })
    }

    /// The events, by their place, that are to tell of rows which were there before, and are not among those that have.
    pub fn backfills(&self, told: &[String]) -> Vec<usize> {
        let Some(Events { mapping, .. }) = &self.events else { return Vec::new() };
        let events = mapping.rules().events.iter().enumerate();
        let tells = events.filter(|(_, event)| event.backfill && !told.contains(&event.full_name()));
        tells.map(|(index, _)| index).collect()
    }

    /// All events that tell of rows which were there before.
    pub fn backfill_names(&self) -> Vec<String> {
        let Some(Events { mapping, .. }) = &self.events else { return Vec::new() };
        mapping.rules().events.iter().filter(|event| event.backfill).map(EventRule::full_name).collect()
    }

    /// Begins to tell of rows that were there before, as if a transaction had made them at this commit; its steps follow.
    pub fn begin_backfill(&mut self, commit: &Commit, epoch: u32, events: &[usize]) {
        self.epoch = epoch;
        self.attributes.0.clear();
        self.mapping().begin_backfill(commit, events);
    }

    fn mapping(&mut self) -> &mut Mapping {
        &mut self.events.as_mut().expect("rows are held for events").mapping
    }

    fn replica(&mut self) -> &mut Replica {
        self.mapping().replica_mut().expect("it was given to the mapping")
    }

    /// Steps that a transaction of so many contents may have at most; `None` when that is better asked before the first event, since only
    /// events are told. Else the first record leaves before anybody knows how many events there will be, and of each content two may be
    /// told by each rule: of the root that a child leaves and of the one that it comes to, or an event and a tombstone.
    pub fn steps_max(&self, contents: u64) -> Option<u64> {
        let events = self.events.as_ref().map_or(0, |events| events.mapping.rules().events.len() as u64);
        let tells_contents = self.changes.is_some() || self.outbox.is_some() || !self.messages.is_empty();
        let kept = u64::from(self.events.as_ref().is_some_and(|events| !events.mapping.held().is_empty()));
        (tells_contents || events == 0).then(|| contents.saturating_mul(1 + 2 * events + kept))
    }

    /// Events, and rows that are to be kept, that a transaction of so many contents may have at most which have all been taken.
    pub fn events_max(&mut self, contents: u64) -> Result<u64, StepError> {
        let Some(Events { mapping, .. }) = &mut self.events else { return Ok(0) };
        let kept = if mapping.held().is_empty() { 0 } else { contents };
        Ok(mapping.events_max()?.saturating_add(kept))
    }
}

/// Writes a record of the replica's topic.
fn keep(row: &KeptRow<'_>, topic: &Arc<Topic>, ticket: Ticket, out: &mut RecordBatch) {
    let start = out.bytes.len();
    out.bytes.extend_from_slice(row.key);
    let key_end = out.bytes.len();
    out.bytes.extend_from_slice(row.value.unwrap_or_default());
    let headers = out.headers.len();
    let record = Record {
        topic: out.topic_index(topic),
        ticket,
        key: Some(start..key_end),
        payload: row.value.map(|_| key_end..out.bytes.len()),
        headers: headers..headers,
        timestamp: None,
    };
    out.records.push(record);
}

/// A batch that counts what becomes of a step.
struct Counting<'a> {
    ticket: Ticket,
    out: &'a mut RecordBatch,
    told: &'a mut Told,
}

impl Counting<'_> {
    fn count<E>(
        &mut self,
        outlet: Outlet,
        write: impl FnOnce(Ticket, &mut RecordBatch) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = self.out.records.len();
        write(self.ticket, self.out)?;
        self.told.records[outlet as usize].1 += (self.out.records.len() - before) as u64;
        Ok(())
    }
}

impl Told {
    fn nothing(what: What) -> Told {
        let all = [Outlet::Changes, Outlet::Outbox, Outlet::Messages, Outlet::Events];
        Told { what, records: all.map(|outlet| (outlet, 0)) }
    }
}

impl RowOp {
    /// Of a change.
    pub fn of(op: &Op<'_>) -> RowOp {
        match op {
            Op::Insert { .. } => RowOp::Insert,
            Op::Update { .. } => RowOp::Update,
            Op::Delete { .. } => RowOp::Delete,
            Op::Truncate => RowOp::Truncate,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postgres_types::Type;

    use super::*;
    use crate::{
        change::{Asked, Column, Identity, Row, Table},
        mapping::catalog::{Catalog, CatalogColumn, CatalogTable, Kind},
    };

    fn outlets(rest: &str) -> Outlets {
        let head = "name: shop\nsource: { postgres: postgres://u@h/d }\nsink: { kafka: { brokers: \"k:1\" } }\n";
        let config = Config::parse(&format!("{head}messages: [{{ prefix: m, topic: t }}]\n{rest}"), "c", &|_| None);
        Outlets::new(&config.unwrap(), "d").unwrap()
    }

    fn said(origin: Option<&str>, context: Option<&str>) -> Transaction {
        let mut transaction = Transaction::new();
        transaction.origin = origin.map(Into::into);
        transaction.context = context.map(|text| text.as_bytes().to_vec());
        transaction
    }

    #[test]
    fn who_names_a_way_on_is_not_given_another() {
        let text = || String::from("x");
        let (lsn, commit) = (Lsn(16), Lsn(32));
        let row = Missing::Row { table: text(), key: text(), field: text() };
        let unknown = Missing::Unknown { table: text(), column: text(), field: text() };
        let errors = [
            MapError::PartTruncated { lsn, commit, partition: text(), table: text() },
            MapError::NotHeld { commit, table: text(), key: text() },
            MapError::NoRoot { commit, event: text(), child: text(), table: text(), key: text() },
            MapError::Unkept { commit, table: text(), column: text() },
            MapError::Event { commit, event: text(), missing: Box::new(row) },
            MapError::Event { commit, event: text(), missing: Box::new(unknown) },
            MapError::Renamed { lsn, table: text(), now: text() },
            MapError::RootRenamed { lsn, partition: text(), table: text(), now: text() },
            MapError::Replaced { lsn, table: text() },
            MapError::Dropped { lsn, table: text(), column: text(), needed_by: text() },
        ];
        for error in errors {
            let said = error.to_string();
            let names_one =
                ["offshoot skip", "offshoot reload", "start again: its rows"].iter().any(|way| said.contains(way));
            assert_eq!(EncodeError::Map(error).says_how_to_go_on(), names_one, "{said}");
        }
    }

    #[test]
    fn a_transaction_says_what_its_events_are_told_with() {
        let mut outlets = outlets("context: { prefix: ctx, correlationid: correlation_id, traceparent: tp, n: n }\n");
        let context = r#"{"correlation_id": "c-\"1\"", "n": 7, "tp": null, "other": {"x": 1}}"#;
        assert_eq!(outlets.begin(&said(None, Some(context)), 1, false).unwrap(), Leaves::Yes);
        let told: Vec<_> = outlets.attributes.0.iter().map(|(name, value)| (&**name, value.as_str())).collect();
        assert_eq!(told, [("correlationid", "c-\"1\""), ("n", "7")]);
        assert_eq!(outlets.begin(&said(None, None), 1, false).unwrap(), Leaves::Yes);
        assert_eq!(outlets.attributes, Context::default(), "it is of its own transaction alone");
        for (wrong, words) in
            [("x", "it is not a JSON object"), (r#"{"tp": [1]}"#, "its tp is neither text nor a number")]
        {
            let error = outlets.begin(&said(None, Some(wrong)), 1, false).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    /// The assembler makes one object of several messages.
    #[test]
    fn a_null_takes_back_what_an_earlier_message_said() {
        let mut outlets = outlets("context: { prefix: ctx, n: n, tp: tp }\nignore_origin: [mirror]\n");
        let first = br#"{"n": 1, "tp": "a", "origin": "mirror"}"#;
        let said = |text: &[u8]| {
            let context = json::merged(first, text);
            said(None, Some(str::from_utf8(&context).unwrap()))
        };
        assert_eq!(outlets.begin(&said(b"{}"), 1, false).unwrap(), Leaves::Ignored);
        assert_eq!(outlets.begin(&said(br#"{"n": 2}"#), 1, false).unwrap(), Leaves::Ignored);
        assert_eq!(outlets.begin(&said(br#"{"n": 2, "tp": null, "origin": null}"#), 1, false).unwrap(), Leaves::Yes);
        let told: Vec<_> = outlets.attributes.0.iter().map(|(name, value)| (&**name, value.as_str())).collect();
        assert_eq!(told, [("n", "2")]);
        assert!(outlets.begin(&said(b"no"), 1, false).is_err());
    }

    #[test]
    fn what_comes_from_an_origin_that_is_named_is_ignored() {
        let mut outlets = outlets("context: { prefix: ctx }\nignore_origin: [node_b, mirror]\n");
        let mut leaves = |origin, context| outlets.begin(&said(origin, context), 1, false).unwrap();
        assert_eq!(leaves(Some("node_b"), None), Leaves::Ignored);
        assert_eq!(leaves(Some("node_a"), None), Leaves::Yes);
        assert_eq!(leaves(None, Some(r#"{"origin": "mirror"}"#)), Leaves::Ignored);
        assert_eq!(leaves(Some("node_a"), Some(r#"{"origin": "shop"}"#)), Leaves::Yes);
    }

    const ORDERS: &str = "changes: { tables: [public.orders] }\n\
        aggregates: { Order: { root: orders, topic: shop.order } }\n\
        events: { OrderPlaced: { of: Order, when: created, data: { orderId: id } } }\n";

    fn shop() -> Outlets {
        let head = "name: shop\nsource: { postgres: postgres://u@h/d }\nsink: { kafka: { brokers: \"k:1\" } }\n";
        let config = Config::parse(&format!("{head}{ORDERS}"), "c", &|_| None).unwrap();
        let id = CatalogColumn {
            name: "id".into(),
            ty: Type::INT4,
            modifier: -1,
            not_null: true,
            toastable: false,
            identity: true,
            width: None,
        };
        let orders = CatalogTable {
            oid: 0,
            schema: "public".into(),
            name: "orders".into(),
            kind: Kind::Table,
            identity: Identity::Default,
            columns: vec![id],
            primary_key: vec!["id".into()],
            unique: vec![vec!["id".into()]],
            foreign_keys: Vec::new(),
            triggers_disabled: false,
            rows: None,
        };
        let rules = Rules::compile(&config, &Catalog { tables: vec![orders] }).unwrap();
        Outlets::new(&config, "d").unwrap().with_events(&config, rules, spill())
    }

    fn spill() -> Spill {
        Spill { dir: std::env::temp_dir(), memory_max: 1 << 20, file_max: 1 << 20 }
    }

    /// Three new orders.
    fn placed() -> Transaction {
        let column = Column { name: "id".into(), ty: Type::INT4, modifier: -1, identity: true };
        let table = Arc::new(Table {
            version: 1,
            oid: 1,
            schema: "public".into(),
            name: "orders".into(),
            ancestors: vec![],
            identity: Identity::Default,
            asked: Asked { changes: true, mapping: true, ..Asked::NOBODY },
            columns: vec![column],
            key: vec![0],
        });
        let mut transaction = Transaction::new();
        transaction.commit = Commit { xid: 7, lsn: Lsn(16), end: Lsn(32), time: 0 };
        for id in [b'1', b'2', b'3'] {
            let new = Row { bytes: &[b't', 0, 0, 0, 1, id], columns: 1 };
            transaction.push(&table, Lsn(9), Op::Insert { new }, &spill()).unwrap();
        }
        transaction
    }

    /// Topic and key of each record from a step on; those before are walked over.
    fn told_from(first: u64) -> Vec<String> {
        let (mut outlets, mut transaction, mut out) = (shop(), placed(), RecordBatch::default());
        assert_eq!(outlets.begin(&transaction, 3, false).unwrap(), Leaves::Yes);
        assert_eq!(outlets.steps_max(transaction.len()), Some(9));
        for index in 0.. {
            let batch = (index >= first).then_some(&mut out);
            let step = Step { index, now: 0, ticket: Ticket(1), out: batch, kept: None };
            if outlets.step(&mut transaction, step).unwrap().is_none() {
                assert_eq!(index, 6, "three changes and three events");
                break;
            }
        }
        let told = |record: &crate::sink::Record| {
            let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&out.bytes[range]).into_owned();
            let headers = out.headers[record.headers.clone()].iter();
            let id = headers.filter(|header| &*header.name == "ce_id").filter_map(|header| header.value.clone());
            let id: String = id.map(text).collect();
            format!("{} {} {id}", out.topic(record).name, text(record.key.clone().unwrap()))
        };
        out.records.iter().map(told).collect()
    }

    #[test]
    fn events_follow_the_changes_and_are_the_same_from_any_step_on() {
        let all = told_from(0);
        assert_eq!(all[0], "shop.public.orders {\"id\":1} ");
        assert_eq!(all[3], "shop.order 1 3-0000000000000010-OrderPlaced.v1-1");
        assert_eq!(all.len(), 6);
        for first in 1..=6 {
            assert_eq!(told_from(first as u64), all[first..]);
        }
    }
}
