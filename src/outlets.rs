//! Transaction -> records of every way out, step by step: `changes`, `outbox`, `messages`.
//!
//! A step is one content of the transaction, a row change or a message, in the order in which it was written. Steps are
//! counted: of a transaction that is spread over several Kafka transactions, progress says how many are published, and a
//! restart walks over these without a record.

use std::{io, sync::Arc};

use crate::{
    change::{Commit, Content, LogicalMessage, Micros, Op},
    config::{Config, ContextConfig},
    format::{
        debezium::{self, TopicError},
        messages::{self, NoKey},
        outbox::{self, OutboxError},
    },
    json,
    lsn::Lsn,
    sink::{RecordBatch, Ticket},
    transaction::Transaction,
};

/// Every way out of one pipeline.
#[derive(Debug)]
pub struct Outlets {
    changes: Option<debezium::Encoder>,
    outbox: Option<outbox::Encoder>,
    messages: messages::Encoder,
    context: Option<ContextConfig>,
    ignore_origin: Vec<String>,
    /// Of the transaction that has begun.
    epoch: u32,
    /// What it says of itself.
    attributes: Context,
}

/// What a transaction says of itself: attributes for its events, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context(pub Vec<(Arc<str>, String)>);

/// The ways out, as metrics count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlet {
    /// `changes`
    Changes,
    /// `outbox`
    Outbox,
    /// `messages`
    Messages,
}

/// What one step has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// What was done to a row; `None` of a message.
    pub row: Option<RowOp>,
    /// Records, by way out.
    pub records: [(Outlet, u64); 3],
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
}

impl Outlets {
    /// Of a config, on `database`.
    pub fn new(config: &Config, database: &str) -> Result<Self, OutletsError> {
        let changes = |changes| debezium::Encoder::new(&config.name, database, changes);
        Ok(Self {
            changes: config.changes.as_ref().map(changes).transpose()?,
            outbox: config.outbox.as_ref().map(|outbox| outbox::Encoder::new(&config.name, outbox)),
            messages: messages::Encoder::new(&config.messages)?,
            context: config.context.clone(),
            ignore_origin: config.ignore_origin.clone(),
            epoch: 0,
            attributes: Context::default(),
        })
    }

    /// The topics that `changes` of these tables, schema and name, would go to; each once.
    pub fn topics(&self, tables: &[(String, String)]) -> Result<Vec<String>, TopicError> {
        self.changes.as_ref().map_or(Ok(Vec::new()), |changes| changes.topics(tables))
    }

    /// Begins a transaction of `epoch`, whose steps follow.
    pub fn begin(&mut self, transaction: &Transaction, epoch: u32) -> Result<Leaves, EncodeError> {
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
        Ok(if is_ignored { Leaves::Ignored } else { Leaves::Yes })
    }

    /// Takes the next step; `None` when there is no further one. After an error the batch is as it was.
    pub fn step(&mut self, transaction: &mut Transaction, step: Step<'_>) -> Result<Option<Told>, StepError> {
        let commit = transaction.commit;
        let Some(content) = transaction.next_content()? else { return Ok(None) };
        let row = match content {
            Content::Row(change) => Some(RowOp::of(&change.op)),
            Content::Message(_) => None,
        };
        let mut told = Told { row, records: [Outlet::Changes, Outlet::Outbox, Outlet::Messages].map(|of| (of, 0)) };
        let Some(out) = step.out else { return Ok(Some(told)) };
        let (index, now, ticket) = (step.index, step.now, step.ticket);
        let before = out.mark();
        let mut counted = out.records.len();
        let mut count = |outlet: Outlet, out: &RecordBatch| {
            told.records[outlet as usize].1 += (out.records.len() - counted) as u64;
            counted = out.records.len();
        };
        let mut tell = || {
            match content {
                Content::Row(change) => {
                    if let (true, Some(changes)) = (change.table.asked.changes, &mut self.changes) {
                        changes.encode(&commit, index, &change, now, ticket, out)?;
                        count(Outlet::Changes, out);
                    }
                    if let (true, Some(outbox)) = (change.table.asked.outbox, &mut self.outbox) {
                        outbox.encode(&change, ticket, out)?;
                        count(Outlet::Outbox, out);
                    }
                }
                Content::Message(message) => {
                    self.tell_message(&commit, index, &message, ticket, out, &mut count)?;
                }
            }
            Ok::<_, EncodeError>(())
        };
        match tell() {
            Ok(()) => Ok(Some(told)),
            Err(error) => {
                out.back_to(before);
                Err(error.into())
            }
        }
    }

    fn tell_message(
        &mut self,
        commit: &Commit,
        index: u64,
        message: &LogicalMessage<'_>,
        ticket: Ticket,
        out: &mut RecordBatch,
        count: &mut impl FnMut(Outlet, &RecordBatch),
    ) -> Result<(), EncodeError> {
        if let Some(outbox) = self.outbox.as_mut().filter(|outbox| outbox.takes(message.prefix)) {
            outbox.encode_message(message, ticket, out)?;
            count(Outlet::Outbox, out);
        }
        let place = messages::Place { epoch: self.epoch, commit: *commit, index };
        self.messages.encode(&place, message, ticket, out)?;
        count(Outlet::Messages, out);
        Ok(())
    }

    /// Steps that a transaction of so many contents may have at most.
    pub fn steps_max(&self, contents: u64) -> u64 {
        contents
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
