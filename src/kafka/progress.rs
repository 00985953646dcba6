//! The progress topic: made, read, and written to before there is a stream. The stream writes to it through its producer.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    config::{ClientConfig, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext},
};
use tokio::sync::oneshot;
use tracing::{debug, info};

use crate::{
    admission::Admission,
    config::{Delivery, KafkaConfig, Property, Topics},
    kafka::{
        admin, client,
        fault::{self, Fault},
        producer::{REFUSED_MAX, again},
    },
    progress::{Progress, ProgressError},
    sink::{SinkError, Topic},
};

/// The key of every progress record: compaction keeps the last.
pub(crate) const KEY: &str = "progress";
/// How long Kafka may take to say where the topic ends and what is in it, before we connect again.
const READ_WAIT: Duration = Duration::from_secs(30);
/// How long it may be silent at first, before that is said.
const AWAY_WAIT: Duration = Duration::from_secs(5);
/// One question of these.
const STEP: Duration = Duration::from_secs(2);
/// How many offsets before the end are read first. A commit takes two.
const TAIL: i64 = 200;
/// How long a record that is written on its own may take.
const WRITE_WAIT: Duration = Duration::from_secs(30);

/// Up to where the topic is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// What is committed now.
    Committed,
    /// Its very end, when nobody else can write any more: what a `read_committed` reader sees may be older for a moment.
    End,
}

/// Why the progress topic cannot be used.
#[derive(Debug, thiserror::Error)]
enum ProgressFault {
    #[error("read progress topic {topic}: {code}{}", mend.as_ref().map(|mend| format!("; {mend}")).unwrap_or_default())]
    Read { topic: String, code: RDKafkaErrorCode, mend: Option<String> },
    #[error("connect to kafka at {brokers}: {reason}; {mend}")]
    NotLetIn { brokers: String, reason: String, mend: &'static str },
    #[error("connect to kafka at {brokers}: no answer ({reason})")]
    Away { brokers: String, reason: String },
    #[error("read progress topic {topic} to its end within {} s", READ_WAIT.as_secs())]
    Slow { topic: String },
    #[error("{source} (topic {topic}, offset {offset})")]
    Record { topic: String, offset: i64, source: ProgressError },
    #[error("write to progress topic {topic}: {code}{}", mend.as_ref().map(|mend| format!("; {mend}")).unwrap_or_default())]
    Write { topic: String, code: RDKafkaErrorCode, mend: Option<String> },
    #[error("find progress topic {topic} with one partition: it has {partitions}; make it again with one")]
    Partitions { topic: String, partitions: usize },
}

/// The topic of a pipeline's progress.
pub fn topic_name(name: &str) -> String {
    format!("offshoot.{name}.progress")
}

/// As the config, but its topics are made as a progress topic must be.
pub(crate) fn config_of(config: &KafkaConfig) -> KafkaConfig {
    let property = |name: &str, value: &str| (name.to_owned(), Property(value.to_owned()));
    let properties = BTreeMap::from([
        property("cleanup.policy", "compact"),
        // Small pieces, so that old records go soon.
        property("segment.bytes", "1048576"),
    ]);
    KafkaConfig { topics: Topics { partitions: 1, properties, ..config.topics.clone() }, ..config.clone() }
}

/// Reads the last progress record that is committed; `None` when there is none, or no topic.
pub async fn read(config: &KafkaConfig, name: &str, admission: &Arc<Admission>) -> Result<Option<Progress>, SinkError> {
    let (config, name, admission) = (config.clone(), name.to_owned(), admission.clone());
    aside(move |stop| read_until(&config, &name, Until::Committed, &admission, stop)).await
}

/// Makes the progress topic if it is not there and writes the first record to it: the slot is about to be made.
pub async fn write_first(config: &KafkaConfig, name: &str, progress: Progress) -> Result<(), SinkError> {
    let (config, name) = (config.clone(), name.to_owned());
    aside(move |stop| write(&config, &name, &progress, stop)).await
}

/// Does what blocks on a thread of its own, which is told to end when nobody waits for it any more.
async fn aside<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T, SinkError> + Send + 'static,
) -> Result<T, SinkError> {
    struct Stop(Arc<AtomicBool>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let failed = |error: io::Error| SinkError::Passing(Box::new(error));
    let stop = Stop(Arc::default());
    let (tell, told) = oneshot::channel();
    let seen = stop.0.clone();
    let run = move || drop(tell.send(work(&seen)));
    thread::Builder::new().name("kafka-progress".into()).spawn(run).map_err(failed)?;
    told.await.unwrap_or_else(|_| Err(failed(io::Error::other("the thread that asks kafka has ended"))))
}

/// Reads the last progress record; `None` when there is none, or no topic. Blocks.
pub(crate) fn read_until(
    config: &KafkaConfig,
    name: &str,
    until: Until,
    admission: &Admission,
    stop: &AtomicBool,
) -> Result<Option<Progress>, SinkError> {
    let topic = topic_name(name);
    let mut properties = client::reader_properties(config, name).map_err(|e| again(admission, Box::new(e)))?;
    let reader = |properties: &ClientConfig| {
        let consumer: Result<BaseConsumer<Heard>, _> = properties.create_with_context(Heard::default());
        consumer.map_err(|e| SinkError::Refused(Box::new(client::refused_together(&e))))
    };
    let committed = reader(&properties)?;
    let began = Instant::now();
    let reading = Reading { config, topic: &topic, admission, stop, began, deadline: began + READ_WAIT };
    if !reading.is_there(&committed)? {
        return Ok(None);
    }
    let (low, end) = match until {
        Until::Committed => reading.offsets(&committed)?,
        Until::End => reading.offsets(&reader(properties.set("isolation.level", "read_uncommitted"))?)?,
    };
    let mut from = (end - TAIL).max(low);
    loop {
        let found = reading.last(&committed, from, end)?;
        if found.is_some() || from <= low {
            return Ok(found);
        }
        from = (end - (end - from) * 10).max(low);
    }
}

/// Makes the progress topic if it is not there, and writes a record to it. Blocks.
fn write(config: &KafkaConfig, name: &str, progress: &Progress, stop: &AtomicBool) -> Result<(), SinkError> {
    let topic = topic_name(name);
    let refused = |e: client::PropertyError| SinkError::Refused(Box::new(e));
    let properties =
        client::producer_properties(&KafkaConfig { delivery: Delivery::AtLeastOnce, ..config.clone() }, name)
            .map_err(refused)?;
    let admin = client::admin_properties(config, name).map_err(refused)?;
    let producer: BaseProducer<Heard> =
        properties.create_with_context(Heard::default()).map_err(|e| refused(client::refused_together(&e)))?;
    let its = Topic { name: topic.clone(), table: "the progress record".into() };
    admin::ensure_topic(producer.client(), &config_of(config), &admin, &its, stop)?;
    let failed = |code| {
        let refused = fault::sort(code) == Fault::Refused;
        let mend = refused.then(|| fault::mend(code, &topic, config));
        let error = Box::new(ProgressFault::Write { topic: topic.clone(), code, mend });
        if refused { SinkError::Refused(error) } else { SinkError::Passing(error) }
    };
    let value = progress.encode();
    let record = BaseRecord::with_opaque_to(&topic, ()).key(KEY).payload(&value[..]);
    let code = |error: KafkaError| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
    producer.send(record).map_err(|(error, _)| failed(code(error)))?;
    let deadline = Instant::now() + WRITE_WAIT;
    loop {
        producer.poll(Duration::from_millis(50));
        match producer.context().delivered() {
            Some(Ok(())) => return Ok(()),
            Some(Err(code)) => return Err(failed(code)),
            None if Instant::now() > deadline || stop.load(Ordering::Acquire) => {
                return Err(failed(RDKafkaErrorCode::MessageTimedOut));
            }
            None => {}
        }
    }
}

/// One reading of the topic.
struct Reading<'a> {
    config: &'a KafkaConfig,
    topic: &'a str,
    admission: &'a Admission,
    stop: &'a AtomicBool,
    began: Instant,
    deadline: Instant,
}

impl Reading<'_> {
    /// Whether the topic exists.
    fn is_there(&self, consumer: &BaseConsumer<Heard>) -> Result<bool, SinkError> {
        let metadata = self.ask(consumer, || {
            let metadata = consumer.fetch_metadata(Some(self.topic), STEP)?;
            let found = metadata.topics().iter().find(|topic| topic.name() == self.topic);
            match found.and_then(|topic| topic.error()).map(RDKafkaErrorCode::from) {
                Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Ok(0),
                Some(code) => Err(KafkaError::MetadataFetch(code)),
                None => Ok(found.map_or(0, |topic| topic.partitions().len())),
            }
        })?;
        match metadata {
            0 => Ok(false),
            1 => Ok(true),
            partitions => {
                let fault = ProgressFault::Partitions { topic: self.topic.to_owned(), partitions };
                Err(SinkError::Refused(Box::new(fault)))
            }
        }
    }

    /// Where the topic begins and ends, as the consumer's isolation level sees it.
    fn offsets(&self, consumer: &BaseConsumer<Heard>) -> Result<(i64, i64), SinkError> {
        self.ask(consumer, || consumer.fetch_watermarks(self.topic, 0, STEP))
    }

    /// Asks until there is an answer, a refusal, or no time.
    fn ask<T>(
        &self,
        consumer: &BaseConsumer<Heard>,
        question: impl Fn() -> Result<T, KafkaError>,
    ) -> Result<T, SinkError> {
        loop {
            let error = match question() {
                Ok(answer) => {
                    self.admission.let_in();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            self.refuse(code)?;
            // Errors of the connection are events, and served by a poll.
            let _ = consumer.poll(Duration::from_millis(20));
            let waited = self.began.elapsed();
            match consumer.context().refusal() {
                // Not at once: a broker that starts may refuse what it will take a moment later.
                Some((code, reason)) if waited > REFUSED_MAX => {
                    let (brokers, mend) = (self.config.brokers.clone(), fault::mend_refusal(code));
                    let fault = ProgressFault::NotLetIn { brokers, reason, mend };
                    return Err(again(self.admission, Box::new(fault)));
                }
                None if waited > AWAY_WAIT => return Err(SinkError::Passing(Box::new(self.away(consumer)))),
                _ => self.in_time(self.away(consumer))?,
            }
        }
    }

    /// No broker answers; with what was heard of it.
    fn away(&self, consumer: &BaseConsumer<Heard>) -> ProgressFault {
        let reason = consumer.context().reason().unwrap_or_else(|| "silence".into());
        ProgressFault::Away { brokers: self.config.brokers.clone(), reason }
    }

    /// The last record between two offsets, when everything before the second can be seen.
    fn last(&self, consumer: &BaseConsumer<Heard>, from: i64, end: i64) -> Result<Option<Progress>, SinkError> {
        if from >= end {
            return Ok(None);
        }
        let mut assignment = TopicPartitionList::new();
        let place = |error: KafkaError| {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            SinkError::Passing(Box::new(ProgressFault::Read { topic: self.topic.to_owned(), code, mend: None }))
        };
        assignment.add_partition_offset(self.topic, 0, Offset::Offset(from)).map_err(place)?;
        consumer.assign(&assignment).map_err(place)?;
        let mut last: Option<Progress> = None;
        let mut waits = false;
        loop {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    // A tombstone says that there is no progress: somebody set it back by hand.
                    let Some(value) = message.payload() else {
                        last = None;
                        continue;
                    };
                    let progress = Progress::decode(value).map_err(|source| {
                        let (topic, offset) = (self.topic.to_owned(), message.offset());
                        SinkError::Refused(Box::new(ProgressFault::Record { topic, offset, source }))
                    })?;
                    if last.as_ref().is_none_or(|last| progress.supersedes(last)) {
                        last = Some(progress);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    let (_, visible) = self.offsets(consumer)?;
                    if visible >= end {
                        return Ok(last);
                    }
                    if !std::mem::replace(&mut waits, true) {
                        info!(
                            topic = self.topic,
                            "waits for an open transaction to be given up, which hides the last record"
                        );
                    }
                }
                Some(Err(error)) => self.refuse(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))?,
                None => {}
            }
            self.in_time(ProgressFault::Slow { topic: self.topic.to_owned() })?;
        }
    }

    /// Fails for a code that lasts.
    fn refuse(&self, code: RDKafkaErrorCode) -> Result<(), SinkError> {
        if fault::sort(code) != Fault::Refused || fault::is_refusal(code) {
            return Ok(());
        }
        let allow = fault::acl_command(
            self.config,
            &["Read", "Write", "Describe", "Create"],
            &format!("--topic {}", self.topic),
        );
        let mend = Some(match code {
            RDKafkaErrorCode::TopicAuthorizationFailed => format!("allow it: {allow}"),
            code => fault::mend(code, self.topic, self.config),
        });
        Err(SinkError::Refused(Box::new(ProgressFault::Read { topic: self.topic.to_owned(), code, mend })))
    }

    fn in_time(&self, late: ProgressFault) -> Result<(), SinkError> {
        if Instant::now() > self.deadline || self.stop.load(Ordering::Acquire) {
            return Err(SinkError::Passing(Box::new(late)));
        }
        Ok(())
    }
}

/// Remembers what went wrong with the connection, and what became of the one record that is written.
#[derive(Default)]
struct Heard(Mutex<HeardSoFar>);

#[derive(Default)]
struct HeardSoFar {
    /// Why no broker answers.
    reason: Option<String>,
    refusal: Option<(RDKafkaErrorCode, String)>,
    delivered: Option<Result<(), RDKafkaErrorCode>>,
}

impl Heard {
    fn refusal(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.0.lock().expect("nobody panics with it").refusal.clone()
    }

    fn reason(&self) -> Option<String> {
        self.0.lock().expect("nobody panics with it").reason.clone()
    }

    fn delivered(&self) -> Option<Result<(), RDKafkaErrorCode>> {
        self.0.lock().expect("nobody panics with it").delivered
    }
}

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", ?level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        let code = fault::of_connection(code, reason);
        let mut heard = self.0.lock().expect("nobody panics with it");
        if fault::is_refusal(code) {
            heard.refusal = Some((code, reason.to_owned()));
        } else if code != RDKafkaErrorCode::AllBrokersDown {
            heard.reason = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Heard {}

impl ProducerContext for Heard {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let result = result.as_ref().map(drop);
        let code = |error: &KafkaError| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        self.0.lock().expect("nobody panics with it").delivered = Some(result.map_err(|(error, _)| code(error)));
    }
}
