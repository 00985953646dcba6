//! The replica's topic: made, looked at, and read. The stream writes to it through its producer.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use rdkafka::{
    Message,
    admin::ConfigResource,
    config::ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio::sync::mpsc;
use tracing::info;

use crate::{
    admission::Admission,
    config::{KafkaConfig, Property, Topics},
    kafka::{
        admin, client,
        producer::again,
        reading::{self, Heard, Kind, Reading, STEP, Stop, aside},
    },
    sink::{Kept, SinkError, Topic},
};

/// How long the topic remembers that a row is gone, and so how old a copy of it may be: one that is older may still have the row.
const TOMBSTONES_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Keys and values that are handed over together, roughly.
const TAKEN_BYTES: usize = 1024 * 1024;
/// Whoever waits for so long for a transaction of another to end says so; a standby meets one that is open each time.
const OPEN_WAIT: Duration = Duration::from_secs(3);
/// How many of these are read ahead.
const TAKEN_AHEAD: usize = 2;
/// What librdkafka reads ahead of that, in KiB.
const QUEUED_KIB: &str = "1024";
/// What it asks for at once; at least one batch comes. Rows are packed tightly there, and each takes some hundred bytes in
/// its queue: a mebibyte of the topic was 40 of memory.
const FETCHED_BYTES: &str = "131072";

pub(super) const OF_REPLICA: Kind =
    Kind { what: "the replica's topic", rights: &["Read", "Write", "Describe", "DescribeConfigs", "Create"] };

/// Why the replica's topic cannot be used.
#[derive(Debug, thiserror::Error)]
enum KeptFault {
    #[error("use {0}; set it: {command}", command = .0.mend())]
    Misfit(Misfit),
    #[error(
        "read the replica's topic {topic} from offset {from}: it begins at {low} now, so what was before that was deleted"
    )]
    Begins { topic: String, from: i64, low: i64 },
    #[error("read the replica's topic {topic} from offset {from}: it is not there")]
    Gone { topic: String, from: i64 },
}

/// A property of the topic that would lose rows.
#[derive(Debug, thiserror::Error)]
#[error("the replica's topic {topic}: its {property} is {found}, and with that it may lose rows that are to be kept")]
pub(super) struct Misfit {
    topic: String,
    property: &'static str,
    found: String,
    needed: String,
    brokers: String,
}

impl Misfit {
    /// The command that mends it.
    pub(super) fn mend(&self) -> String {
        let Self { topic, property, needed, brokers, .. } = self;
        format!(
            "kafka-configs --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} \
             --add-config {property}={needed}"
        )
    }
}

/// The topic of a pipeline's replica.
pub fn topic_name(name: &str) -> String {
    format!("offshoot.{name}.replica")
}

/// The replica's topic as those know it who publish to it.
#[derive(Debug)]
pub(super) struct Keeper {
    config: KafkaConfig,
    name: String,
    admission: Arc<Admission>,
    topic: Arc<Topic>,
    reader: Option<Reader>,
}

/// A thread that reads ahead.
#[derive(Debug)]
struct Reader {
    taken: mpsc::Receiver<Result<Kept, SinkError>>,
    /// Where the next one begins.
    next: i64,
    end: i64,
    _stop: Stop,
}

impl Keeper {
    pub(super) fn new(config: &KafkaConfig, name: &str, admission: &Arc<Admission>) -> Self {
        let topic = Arc::new(Topic { name: topic_name(name), table: "the replica".into() });
        Self { config: config.clone(), name: name.to_owned(), admission: admission.clone(), topic, reader: None }
    }

    pub(super) fn topic(&self) -> &Arc<Topic> {
        &self.topic
    }

    /// Where the topic begins and ends, for those who see what is not committed, too; it is made if that is asked for.
    pub(super) async fn find(&self, make: bool) -> Result<Option<Range<i64>>, SinkError> {
        let (config, name, admission) = (self.config.clone(), self.name.clone(), self.admission.clone());
        let topic = self.topic.clone();
        aside(move |stop| find(&config, &name, &topic, &admission, make, stop)).await
    }

    /// The next records from an offset on, before another. Cancel safe.
    pub(super) async fn next(&mut self, from: i64, end: i64) -> Result<Option<Kept>, SinkError> {
        if self.reader.as_ref().is_some_and(|reader| (reader.next, reader.end) != (from, end)) || from >= end {
            self.reader = None;
        }
        if from >= end {
            return Ok(None);
        }
        if self.reader.is_none() {
            self.reader = Some(self.read(from, end)?);
        }
        let reader = self.reader.as_mut().expect("there is one now");
        let kept = reader.taken.recv().await.unwrap_or_else(|| Err(reading::ended()))?;
        reader.next = kept.next;
        Ok(Some(kept))
    }

    fn read(&self, from: i64, end: i64) -> Result<Reader, SinkError> {
        let (give, taken) = mpsc::channel(TAKEN_AHEAD);
        let (config, name, admission) = (self.config.clone(), self.name.clone(), self.admission.clone());
        let run = move |stop: &AtomicBool| {
            let each = |kept| give.blocking_send(Ok(kept)).is_ok();
            if let Err(error) = read(&config, &name, &admission, from..end, stop, each) {
                // Nobody listens when nobody waits for it any more.
                let _ = give.blocking_send(Err(error));
            }
        };
        Ok(Reader { taken, next: from, end, _stop: reading::start(run)? })
    }
}

/// As the config, but its topics are made as the replica's must be.
pub(crate) fn config_of(config: &KafkaConfig) -> KafkaConfig {
    let property = |name: &str, value: &str| (name.to_owned(), Property(value.to_owned()));
    let properties = BTreeMap::from([
        property("cleanup.policy", "compact"),
        property("delete.retention.ms", &TOMBSTONES_MS.to_string()),
        // Of the last segment nothing is cleared away: it shall be small beside the rows.
        property("segment.bytes", "67108864"),
    ]);
    KafkaConfig { topics: Topics { partitions: 1, properties, ..config.topics.clone() }, ..config.clone() }
}

fn reader_of(
    config: &KafkaConfig,
    name: &str,
    admission: &Admission,
    properties: &[(&str, &str)],
) -> Result<BaseConsumer<Heard>, SinkError> {
    let mut client: ClientConfig =
        client::reader_properties(config, name).map_err(|error| again(admission, Box::new(error)))?;
    for (name, value) in properties {
        client.set(*name, *value);
    }
    let consumer = client.create_with_context(Heard::default());
    consumer.map_err(|error| SinkError::Refused(Box::new(client::refused_together(&error))))
}

/// Blocks.
fn find(
    config: &KafkaConfig,
    name: &str,
    topic: &Topic,
    admission: &Admission,
    make: bool,
    stop: &AtomicBool,
) -> Result<Option<Range<i64>>, SinkError> {
    // Its very end: nobody else can write any more, and what a `read_committed` reader sees may be older for a moment.
    let consumer = reader_of(config, name, admission, &[("isolation.level", "read_uncommitted")])?;
    let admin = client::admin_properties(config, name).map_err(|error| again(admission, Box::new(error)))?;
    let mut reading = Reading::new(config, &OF_REPLICA, &topic.name, admission, stop);
    if !reading.is_there(&consumer)? {
        if !make {
            return Ok(None);
        }
        admin::ensure_topic(consumer.client(), &config_of(config), &admin, topic, stop)?;
        reading.goes_on();
    }
    let properties = reading.ask(&consumer, || {
        // The wrapper's error of it has no code.
        admin::describe_topic(&admin, &topic.name, STEP).map_err(KafkaError::MetadataFetch)
    })?;
    if let Some(misfit) = misfit(&properties, &topic.name, config) {
        return Err(SinkError::Refused(Box::new(KeptFault::Misfit(misfit))));
    }
    let (low, end) = reading.offsets(&consumer)?;
    Ok(Some(low..end))
}

/// What would lose rows, if the topic has such properties.
pub(super) fn misfit(properties: &ConfigResource, topic: &str, config: &KafkaConfig) -> Option<Misfit> {
    let value = |property| properties.get(property).and_then(|entry| entry.value.clone()).unwrap_or_default();
    let (policy, tombstones) = (value("cleanup.policy"), value("delete.retention.ms"));
    let (property, found, needed) = match tombstones.parse::<u64>() {
        _ if policy != "compact" => ("cleanup.policy", policy, "compact".to_owned()),
        Ok(ms) if ms < TOMBSTONES_MS => ("delete.retention.ms", tombstones, TOMBSTONES_MS.to_string()),
        _ => return None,
    };
    let (topic, brokers) = (topic.to_owned(), config.brokers.clone());
    Some(Misfit { topic, property, found, needed, brokers })
}

/// Gives the records of a range to `each`, in order, until that says that nobody waits any more. Blocks.
fn read(
    config: &KafkaConfig,
    name: &str,
    admission: &Admission,
    Range { start: from, end }: Range<i64>,
    stop: &AtomicBool,
    mut each: impl FnMut(Kept) -> bool,
) -> Result<(), SinkError> {
    let topic = topic_name(name);
    let mut reading = Reading::new(config, &OF_REPLICA, &topic, admission, stop);
    let properties = [
        // An offset that is not there is no reason to begin somewhere else.
        ("auto.offset.reset", "error"),
        ("queued.max.messages.kbytes", QUEUED_KIB),
        ("fetch.message.max.bytes", FETCHED_BYTES),
        // After a full queue librdkafka would ask for more only a second later.
        ("fetch.queue.backoff.ms", "5"),
    ];
    let consumer = reader_of(config, name, admission, &properties)?;
    let refused = |fault: KeptFault| Err(SinkError::Refused(Box::new(fault)));
    let begins_before = |reading: &Reading<'_>| match reading.offsets(&consumer)? {
        (low, _) if low > from => refused(KeptFault::Begins { topic: topic.clone(), from, low }),
        _ => Ok(()),
    };
    if !reading.is_there(&consumer)? {
        return refused(KeptFault::Gone { topic, from });
    }
    begins_before(&reading)?;
    reading.assign(&consumer, from)?;
    let (mut kept, mut bytes) = (Kept { next: from, ..Kept::default() }, 0);
    let (mut waits, mut told) = (None, false);
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) if message.offset() < end => {
                reading.goes_on();
                let (key, value) = (message.key().unwrap_or_default(), message.payload());
                bytes += key.len() + value.map_or(0, <[u8]>::len);
                kept.records.push((key.to_vec(), value.map(<[u8]>::to_vec)));
                kept.next = message.offset() + 1;
                if bytes >= TAKEN_BYTES && kept.next < end {
                    bytes = 0;
                    let next = Kept { records: Vec::with_capacity(kept.records.len()), next: kept.next };
                    if !each(std::mem::replace(&mut kept, next)) {
                        return Ok(());
                    }
                    // Whoever takes them may have taken long.
                    reading.goes_on();
                }
                if kept.next < end {
                    continue;
                }
            }
            // Somebody has written since; all that was asked for has been there.
            Some(Ok(_)) => {}
            Some(Err(KafkaError::PartitionEOF(_))) => {
                let (_, visible) = reading.offsets(&consumer)?;
                if visible < end {
                    let since = *waits.get_or_insert_with(Instant::now);
                    if since.elapsed() > OPEN_WAIT && !std::mem::replace(&mut told, true) {
                        info!(topic, "waits for an open transaction to be given up, which hides the last records");
                    }
                    reading.in_time()?;
                    continue;
                }
            }
            Some(Err(error)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                reading.refuse(code)?;
                if code == RDKafkaErrorCode::AutoOffsetReset {
                    begins_before(&reading)?;
                }
                reading.in_time()?;
                continue;
            }
            None => {
                reading.in_time()?;
                continue;
            }
        }
        // Beyond the last record there may be what only says that transactions have ended.
        each(Kept { next: end, ..kept });
        return Ok(());
    }
}
