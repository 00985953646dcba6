//! Questions to Kafka about a topic of ours: asked again until there is an answer, a refusal that lasts, or no time. IO.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryResult, ProducerContext},
};
use tokio::sync::oneshot;
use tracing::debug;

use crate::{
    admission::Admission,
    config::KafkaConfig,
    kafka::{
        fault::{self, Fault},
        producer::{REFUSED_MAX, again},
    },
    sink::SinkError,
};

/// How long Kafka may take to say where a topic ends and what is in it, before we connect again.
const READ_WAIT: Duration = Duration::from_secs(30);
/// How long it may be silent at first, before that is said.
const AWAY_WAIT: Duration = Duration::from_secs(5);
/// One question of these.
pub(super) const STEP: Duration = Duration::from_secs(2);

/// What a topic is to those who read it.
pub(super) struct Kind {
    /// In messages.
    pub(super) what: &'static str,
    /// What we must be allowed to do with it.
    pub(super) rights: &'static [&'static str],
}

/// Why a topic cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadFault {
    #[error("read {what} {topic}: {code}{}", mend.as_ref().map(|mend| format!("; {mend}")).unwrap_or_default())]
    Read { what: &'static str, topic: String, code: RDKafkaErrorCode, mend: Option<String> },
    #[error("connect to kafka at {brokers}: {reason}; {mend}")]
    NotLetIn { brokers: String, reason: String, mend: &'static str },
    #[error("connect to kafka at {brokers}: no answer ({reason})")]
    Away { brokers: String, reason: String },
    #[error("read {what} {topic} to its end within {} s", READ_WAIT.as_secs())]
    Slow { what: &'static str, topic: String },
    #[error("find {what} {topic} with one partition: it has {partitions}; make it again with one")]
    Partitions { what: &'static str, topic: String, partitions: usize },
}

/// Does what blocks on a thread of its own, which is told to end when nobody waits for it any more.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T, SinkError> + Send + 'static,
) -> Result<T, SinkError> {
    let (tell, told) = oneshot::channel();
    let _stop = start(move |stop| drop(tell.send(work(stop))))?;
    told.await.unwrap_or_else(|_| Err(ended()))
}

/// Starts a thread that is told to end when what this gives is dropped.
pub(super) fn start(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Result<Stop, SinkError> {
    let stop = Stop(Arc::default());
    let seen = stop.0.clone();
    let failed = |error: io::Error| SinkError::Passing(Box::new(error));
    thread::Builder::new().name("kafka-reader".into()).spawn(move || work(&seen)).map_err(failed)?;
    Ok(stop)
}

/// The thread has ended without a word.
pub(super) fn ended() -> SinkError {
    SinkError::Passing(Box::new(io::Error::other("the thread that asks kafka has ended")))
}

/// Tells a thread to end.
#[derive(Debug)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// One reading of a topic with one partition.
pub(super) struct Reading<'a> {
    config: &'a KafkaConfig,
    kind: &'a Kind,
    pub(super) topic: &'a str,
    admission: &'a Admission,
    stop: &'a AtomicBool,
    began: Instant,
    deadline: Instant,
}

impl<'a> Reading<'a> {
    pub(super) fn new(
        config: &'a KafkaConfig,
        kind: &'a Kind,
        topic: &'a str,
        admission: &'a Admission,
        stop: &'a AtomicBool,
    ) -> Self {
        let began = Instant::now();
        Self { config, kind, topic, admission, stop, began, deadline: began + READ_WAIT }
    }

    /// Kafka has answered: it has its time once more.
    pub(super) fn goes_on(&mut self) {
        self.deadline = Instant::now() + READ_WAIT;
    }

    /// Whether the topic exists.
    pub(super) fn is_there(&self, consumer: &BaseConsumer<Heard>) -> Result<bool, SinkError> {
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
                let (what, topic) = (self.kind.what, self.topic.to_owned());
                let fault = ReadFault::Partitions { what, topic, partitions };
                Err(SinkError::Refused(Box::new(fault)))
            }
        }
    }

    /// Where the topic begins and ends, as the consumer's isolation level sees it.
    pub(super) fn offsets(&self, consumer: &BaseConsumer<Heard>) -> Result<(i64, i64), SinkError> {
        self.ask(consumer, || consumer.fetch_watermarks(self.topic, 0, STEP))
    }

    /// Asks until there is an answer, a refusal, or no time.
    pub(super) fn ask<T>(
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
                    let fault = ReadFault::NotLetIn { brokers, reason, mend };
                    return Err(again(self.admission, Box::new(fault)));
                }
                None if waited > AWAY_WAIT => return Err(SinkError::Passing(Box::new(self.away(consumer)))),
                _ => self.before_deadline(|| self.away(consumer))?,
            }
        }
    }

    /// No broker answers; with what was heard of it.
    fn away(&self, consumer: &BaseConsumer<Heard>) -> ReadFault {
        let reason = consumer.context().reason().unwrap_or_else(|| "silence".into());
        ReadFault::Away { brokers: self.config.brokers.clone(), reason }
    }

    /// Lets the consumer read from an offset on.
    pub(super) fn assign(&self, consumer: &BaseConsumer<Heard>, from: i64) -> Result<(), SinkError> {
        let mut assignment = TopicPartitionList::new();
        let place = |error: KafkaError| {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            SinkError::Passing(Box::new(self.unread(code, None)))
        };
        assignment.add_partition_offset(self.topic, 0, Offset::Offset(from)).map_err(place)?;
        consumer.assign(&assignment).map_err(place)
    }

    /// Fails for a code that lasts.
    pub(super) fn refuse(&self, code: RDKafkaErrorCode) -> Result<(), SinkError> {
        if fault::sort(code) != Fault::Refused || fault::is_refusal(code) {
            return Ok(());
        }
        let allow = fault::acl_command(self.config, self.kind.rights, &format!("--topic {}", self.topic));
        let mend = Some(match code {
            RDKafkaErrorCode::TopicAuthorizationFailed => format!("allow it: {allow}"),
            code => fault::mend(code, self.topic, self.config),
        });
        Err(SinkError::Refused(Box::new(self.unread(code, mend))))
    }

    fn unread(&self, code: RDKafkaErrorCode, mend: Option<String>) -> ReadFault {
        ReadFault::Read { what: self.kind.what, topic: self.topic.to_owned(), code, mend }
    }

    /// Fails when it takes too long, or nobody waits any more.
    pub(super) fn in_time(&self) -> Result<(), SinkError> {
        self.before_deadline(|| ReadFault::Slow { what: self.kind.what, topic: self.topic.to_owned() })
    }

    fn before_deadline(&self, late: impl FnOnce() -> ReadFault) -> Result<(), SinkError> {
        if Instant::now() > self.deadline || self.stop.load(Ordering::Acquire) {
            return Err(SinkError::Passing(Box::new(late())));
        }
        Ok(())
    }
}

/// Remembers what went wrong with the connection, and what became of the one record that is written.
#[derive(Default)]
pub(super) struct Heard(Mutex<HeardSoFar>);

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

    pub(super) fn delivered(&self) -> Option<Result<(), RDKafkaErrorCode>> {
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
