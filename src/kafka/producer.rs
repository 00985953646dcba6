//! `RecordBatch` -> records that Kafka has, and back the news of it. `KafkaSink` and the thread that is its producer.

use std::{
    collections::{HashMap, VecDeque},
    io,
    ops::Range,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rdkafka::{
    bindings::{
        rd_kafka_queue_destroy, rd_kafka_queue_get_main, rd_kafka_queue_io_event_enable, rd_kafka_queue_length,
        rd_kafka_queue_t,
    },
    client::ClientContext,
    config::{ClientConfig, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::Message,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig},
};
use tokio::sync::{Notify, oneshot};
use tracing::{debug, info, warn};

use crate::{
    admission::Admission,
    causes::told,
    config::{Delivery, KafkaConfig},
    kafka::{
        admin, client,
        fault::{self, Fault},
        handle::{BY_KEY, TopicHandle},
        kept::Keeper,
        progress::{self, Reader},
        transaction::{self, TransactionError},
    },
    progress::Progress,
    sink::{Acknowledgement, Kept, News, RECORD_OVERHEAD, Record, RecordBatch, Sink, SinkError, Ticket, Topic},
};

/// Batches kept for the next `batch()`. The loop fills one while the thread empties another; the rest is slack.
const SPARE_BATCHES: usize = 4;
/// The same while there is much to do: the loop fills many while Kafka commits, and a new one would grow from nothing.
const SPARE_BATCHES_MAX: usize = 32;
/// What one kept batch may hold on to after a large record.
const SPARE_BYTES: usize = 1024 * 1024;
/// Records handed to librdkafka between two looks at what came back.
const RECORDS_PER_TURN: usize = 2000;
/// How long a connection may be refused (password, certificate) before that ends the producer. Not at once: a broker that
/// starts may refuse what it will take a moment later. Whether another producer may try is a matter of `Admission`: it reads
/// the secrets again.
pub(super) const REFUSED_MAX: Duration = Duration::from_secs(3);
/// How often one broker's going away is worth a warning.
const AWAY_WARN_INTERVAL: Duration = Duration::from_secs(60);
/// After a fatal error, how long the delivery that caused it is waited for, since it says more.
const CAUSE_WAIT: Duration = Duration::from_secs(1);
/// How long a topic's limit is asked for, once a record was too large for it; the answer only sharpens the words.
const LIMIT_WAIT: Duration = Duration::from_secs(3);
/// What a record takes in a batch beside its value, roughly: the heads of both, and a key.
const BATCH_OVERHEAD: u64 = 1024;
/// How long `close` waits for the thread. It gives nothing up: the thread ends by itself.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// How long one call that begins or ends a transaction goes on before it is looked whether anybody still waits.
const TRANSACTION_STEP: Duration = Duration::from_millis(500);
/// Between the end of one transaction and the first record of the next. The broker goes on with the one before after it has
/// answered, and a record that comes too soon is made to wait 20 ms by librdkafka. Seen: 3 ms suffice on a busy machine.
const REST: Duration = Duration::from_millis(3);
/// How long the end of a session waits for its open transaction to be given up, so that readers need not wait for that.
const ABORT_WAIT: Duration = Duration::from_secs(1);
/// With less than this in librdkafka's hands it is quiet, and records wait for no others: a few dozen of usual size.
const QUIET_BYTES: usize = 16 * 1024;
/// How long records then do not wait, while some are on their way all the time.
const FLUSH_MAX: Duration = Duration::from_millis(5);
/// In place of an `opaque`: the progress record.
const PROGRESS: usize = usize::MAX;
/// Beside the weight of a record of the replica's topic, in an `opaque`: no record weighs so much.
const OF_REPLICA: usize = 1 << 31;
/// The replica's topic has one partition; other records go where their keys say.
const REPLICA_PARTITION: i32 = 0;
/// Bytes of a refused record's key that are kept to name it.
const KEY_SHOWN_MAX: usize = 200;

/// Kafka, as a sink.
#[derive(Debug)]
pub struct KafkaSink {
    work: mpsc::Sender<Work>,
    shared: Arc<Shared>,
    ended: oneshot::Receiver<()>,
    keeper: Keeper,
    reader: Option<Box<Reader>>,
}

/// What the loop gives the producer's thread to do, in order.
#[derive(Debug)]
enum Work {
    /// Fence off, and read how far whoever was before us came, with a reader that is connected already.
    TakeOver(Option<Box<Reader>>),
    /// Send these; so many of them have been handed to librdkafka.
    Batch(RecordBatch, usize),
    /// Write this progress record, and commit what was sent.
    Commit(Vec<u8>),
}

/// What the loop and the producer's thread both hold.
#[derive(Debug)]
struct Shared {
    /// Wakes the thread.
    wake: Wake,
    stop: AtomicBool,
    /// The ticket of the last record that librdkafka was given.
    newest: AtomicU64,
    /// A flush is asked for, and not begun.
    flush_asked: AtomicBool,
    outcome: Mutex<Outcome>,
    /// Wakes the loop.
    news: Notify,
    spare: Mutex<Vec<RecordBatch>>,
}

/// What the other thread is given to do, since it blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// What librdkafka has shall not wait for more.
    Flush,
    /// Everything that was sent, and then the transaction.
    Commit,
}

/// What came of what was sent.
#[derive(Debug, Default)]
struct Outcome {
    acknowledged: Vec<Acknowledgement>,
    /// The commit that was asked for is done.
    committed: bool,
    /// The offset after the last record of the replica's topic that is durable, when there were some since the last commit.
    kept: Option<i64>,
    /// The same, of what is committed.
    kept_end: Option<i64>,
    /// Nobody else can publish any more; and what was there of progress.
    taken_over: Option<Option<Progress>>,
    error: Option<SinkError>,
    /// Nothing is acknowledged any more: what comes after a failure must not pass as durable in order.
    failed: bool,
    /// The thread has come to its end, and `error` says why, if there is something to say.
    ended: bool,
    /// Bytes that have left librdkafka since the thread last looked, failed ones and overhead included.
    returned: usize,
    failure: Option<Failure>,
    /// Errors that belong to no record, since the thread last looked.
    events: Vec<(RDKafkaErrorCode, String)>,
}

/// A delivery that failed.
#[derive(Debug, PartialEq)]
struct Failure {
    code: RDKafkaErrorCode,
    topic: String,
    ticket: Ticket,
    key: String,
    size: usize,
    /// How many records failed with it for the same reason; `None` when it never left librdkafka.
    batch: Option<usize>,
}

/// Why the sink ended.
#[derive(Debug, thiserror::Error)]
enum ProduceError {
    #[error("publish to topic {topic}: {code}{}", mend.as_ref().map(|m| format!("; {m}")).unwrap_or_default())]
    Delivery { topic: String, code: RDKafkaErrorCode, mend: Option<String> },
    /// Which record it is, is said around it.
    #[error("topic {topic} refuses it: {code}; {mend}")]
    Record { topic: String, code: RDKafkaErrorCode, mend: String },
    #[error(
        "publish to topic {topic} of {table}: a batch of {records} records is larger than the topic's \
         max.message.bytes of {limit}; set batch.size under sink.kafka.properties below that, or raise it"
    )]
    Batch { topic: String, table: String, records: usize, limit: u64 },
    #[error("connect to kafka at {brokers}: {reason}; {mend}")]
    NotLetIn { brokers: String, reason: String, mend: &'static str },
    #[error("{error}; it has let us in before, so it is asked again for {left}")]
    Again { error: String, left: humantime::FormattedDuration },
    #[error("{doing}: {code}: {reason}{}", mend.as_ref().map(|m| format!("; {m}")).unwrap_or_default())]
    Transaction { doing: &'static str, code: RDKafkaErrorCode, reason: String, mend: Option<String> },
    #[error(
        "{reason}; the transaction of Kafka was open for {} s, and transaction.timeout.ms is {} s. If that \
         does not pass, raise transaction.timeout.ms under sink.kafka.properties (brokers admit at most their \
         transaction.max.timeout.ms), or lower limits.transaction_events, above which a transaction of Postgres is spread \
         over several of Kafka",
        open.as_secs(), timeout.as_secs()
    )]
    Late { reason: String, open: Duration, timeout: Duration },
    #[error("publish: {code}: {reason}{}", mend.as_ref().map(|m| format!("; {m}")).unwrap_or_default())]
    Fatal { code: RDKafkaErrorCode, reason: String, mend: Option<String> },
    #[error("publish: the producer has ended")]
    Ended,
    #[error("start the producer: {0}")]
    Start(io::Error),
}

impl KafkaSink {
    /// Starts a producer. `name` is the pipeline's; `buffer_bytes` is what may be in librdkafka's hands at once.
    ///
    /// Returns before Kafka has been reached: that it cannot be is waited out, and that it lets us in no more, or not
    /// at all, is told by `acknowledged`. Fails with `Refused` for properties that cannot be used, and with `Passing` for
    /// those that could be used before: the files that they name may be about to be replaced.
    pub fn connect(
        config: &KafkaConfig,
        name: &str,
        buffer_bytes: usize,
        admission: &Arc<Admission>,
    ) -> Result<KafkaSink, SinkError> {
        let refused = |e: client::PropertyError| again(admission, Box::new(e));
        let properties = client::producer_properties(config, name).map_err(refused)?;
        Self::start(config, name, buffer_bytes, admission, &properties)
    }

    fn start(
        config: &KafkaConfig,
        name: &str,
        buffer_bytes: usize,
        admission: &Arc<Admission>,
        properties: &ClientConfig,
    ) -> Result<KafkaSink, SinkError> {
        let refused = |e: client::PropertyError| again(admission, Box::new(e));
        let admin = client::admin_properties(config, name).map_err(refused)?;
        let start = |e| SinkError::Passing(Box::new(ProduceError::Start(e)));

        let shared = Arc::new(Shared {
            wake: Wake::new().map_err(start)?,
            stop: AtomicBool::new(false),
            newest: AtomicU64::new(0),
            flush_asked: AtomicBool::new(false),
            outcome: Mutex::default(),
            news: Notify::new(),
            spare: Mutex::default(),
        });
        let producer: BaseProducer<Context> = properties
            .create_with_context(Context {
                shared: shared.clone(),
                transactional: config.delivery == Delivery::ExactlyOnce,
            })
            .map_err(|e| refused(client::refused_together(&e)))?;
        let queue = EventQueue::new(&producer, &shared.wake);
        let producer = Arc::new(producer);
        let (work, incoming) = mpsc::channel();
        let (ended_sender, ended) = oneshot::channel();
        let (asked, answers) = start_topic_thread(config, admin.clone(), &producer, &shared).map_err(start)?;
        let (calls, commits) = start_calling_thread(&producer, &shared).map_err(start)?;
        let keeper = Keeper::new(config, name, admission);
        let timeout = properties.get("transaction.timeout.ms").and_then(|timeout| timeout.parse().ok());
        let worker = Worker {
            queue,
            topics: HashMap::new(),
            handles: Vec::new(),
            producer,
            shared: shared.clone(),
            config: config.clone(),
            buffer_bytes,
            incoming,
            name: name.to_owned(),
            progress_topic: progress::topic_name(name),
            kept_topic: keeper.topic().clone(),
            waiting: VecDeque::new(),
            transaction: match config.delivery {
                Delivery::ExactlyOnce => Some(Phase::Closed),
                Delivery::AtLeastOnce => None,
            },
            transaction_timeout: timeout.map_or(Duration::MAX, Duration::from_millis),
            transaction_began: None,
            rests_until: None,
            acknowledged_at: None,
            calls,
            commits,
            flushes: config.delivery == Delivery::AtLeastOnce && !client::sets_linger(config),
            buffered: 0,
            admin,
            asked,
            answers,
            connection: Connection { admission: admission.clone(), ..Connection::default() },
            closing: None,
        };
        let ending = Ending(shared.clone());
        let run = move || {
            let _ending = ending;
            worker.run();
            // Nobody listens after `CLOSE_WAIT`, which is fine.
            let _ = ended_sender.send(());
        };
        thread::Builder::new().name("kafka".into()).spawn(run).map_err(start)?;
        Ok(KafkaSink { work, shared, ended, keeper, reader: None })
    }

    /// Progress is read by who has read it before, and need not connect.
    pub fn reading_with(mut self, reader: Reader) -> KafkaSink {
        self.reader = Some(Box::new(reader));
        self
    }
}

impl Sink for KafkaSink {
    async fn find_kept(&mut self, make: bool) -> Result<Option<Range<i64>>, SinkError> {
        self.keeper.find(make).await
    }

    async fn kept(&mut self, from: i64, end: i64) -> Result<Option<Kept>, SinkError> {
        self.keeper.next(from, end).await
    }

    fn kept_topic(&self) -> Arc<Topic> {
        self.keeper.topic().clone()
    }

    fn batch(&mut self) -> RecordBatch {
        lock(&self.shared.spare).pop().unwrap_or_default()
    }

    async fn take_over(&mut self) -> Result<Option<Progress>, SinkError> {
        let reader = self.reader.take();
        self.give(Work::TakeOver(reader))?;
        loop {
            {
                let mut outcome = lock(&self.shared.outcome);
                if let Some(progress) = outcome.taken_over.take() {
                    return Ok(progress);
                }
                if outcome.ended {
                    return Err(outcome.take_error());
                }
            }
            self.shared.news.notified().await;
        }
    }

    fn send(&mut self, batch: RecordBatch) -> Result<(), SinkError> {
        self.give(Work::Batch(batch, 0))
    }

    fn commit(&mut self, progress: &Progress) -> Result<(), SinkError> {
        self.give(Work::Commit(progress.encode()))
    }

    async fn news(&mut self, into: &mut News) -> Result<(), SinkError> {
        loop {
            {
                let mut outcome = lock(&self.shared.outcome);
                if !outcome.acknowledged.is_empty() || outcome.committed {
                    into.acknowledged.append(&mut outcome.acknowledged);
                    into.committed |= std::mem::take(&mut outcome.committed);
                    into.kept_end = outcome.kept_end.take().or(into.kept_end);
                    return Ok(());
                }
                if outcome.ended {
                    return Err(outcome.take_error());
                }
            }
            // News that arrive between the look and the wait leave a permit, so none is missed.
            self.shared.news.notified().await;
        }
    }

    async fn close(mut self) {
        self.shared.stop();
        if tokio::time::timeout(CLOSE_WAIT, &mut self.ended).await.is_err() {
            warn!("the producer takes long to end; it is left to end by itself");
        }
        if let Some(reader) = self.reader.take() {
            reader.close().await;
        }
    }
}

impl KafkaSink {
    fn give(&mut self, work: Work) -> Result<(), SinkError> {
        let taken = self.work.send(work);
        self.shared.wake.wake();
        taken.map_err(|_| lock(&self.shared.outcome).take_error())
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Shared {
    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake.wake();
    }
}

/// Lets the loop know that the thread has ended, however it did.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.0.news.notify_one();
    }
}

impl Outcome {
    fn take_error(&mut self) -> SinkError {
        self.error.take().unwrap_or_else(|| SinkError::Passing(Box::new(ProduceError::Ended)))
    }

    /// One record is durable.
    fn acknowledge(&mut self, ticket: Ticket, bytes: u64) {
        if self.failed || self.failure.is_some() {
            return;
        }
        match self.acknowledged.last_mut() {
            Some(last) if last.ticket == ticket => {
                last.records += 1;
                last.bytes += bytes;
            }
            _ => self.acknowledged.push(Acknowledgement { ticket, records: 1, bytes }),
        }
    }

    /// The progress record is durable. In a transaction that says nothing yet.
    fn progress_is_written(&mut self, transactional: bool) {
        self.committed |= !transactional && !self.failed && self.failure.is_none();
    }

    /// One record is not, for good. What says more is kept: a cause before its echo, and of the records of a batch that
    /// was too large the largest.
    fn fail(&mut self, failure: Failure) {
        let weight = |f: &Failure| match fault::sort(f.code) {
            Fault::Echo => (0, 0),
            Fault::Record => (2, f.size),
            Fault::Passing | Fault::Refused => (1, 0),
        };
        let Some(known) = &mut self.failure else {
            self.failure = Some(failure);
            return;
        };
        let together = if known.code == failure.code { known.batch.unwrap_or(0) } else { 0 };
        if weight(known) < weight(&failure) {
            *known = failure;
        }
        known.batch = known.batch.map(|batch| batch.max(together + 1));
    }
}

/// What librdkafka calls back into; on the producer's thread, inside `poll`.
struct Context {
    shared: Arc<Shared>,
    transactional: bool,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let told = match facility {
            // Arrive as events too, and are told there, once.
            "FAIL" | "ERROR" | "FATAL" => false,
            // What librdkafka has to say of the properties that we chose is no news.
            "CONFWARN" => !["enable.gapless.guarantee", "isolation.level"].iter().any(|ours| message.contains(ours)),
            // Its warnings tell of every step of an outage, one per partition; its errors are few.
            _ => (level as i32) <= RDKafkaLogLevel::Error as i32,
        };
        if told {
            warn!(target: "librdkafka", facility, "{message}");
        } else {
            debug!(target: "librdkafka", ?level, facility, "{message}");
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        let code = fault::of_connection(code, reason);
        let mut outcome = lock(&self.shared.outcome);
        // The wrapper tells a producer's errors twice.
        if outcome.events.last().is_none_or(|(c, r)| (*c, r.as_str()) != (code, reason)) {
            outcome.events.push((code, reason.to_owned()));
        }
    }

    // Asked for by `statistics.interval.ms`; there is nobody to read them but the log.
    fn stats_raw(&self, statistics: &[u8]) {
        debug!(target: "librdkafka", statistics = %String::from_utf8_lossy(statistics));
    }
}

impl ProducerContext for Context {
    /// It costs no allocation.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let of_progress = opaque == PROGRESS;
        let (ticket, weight) = match result {
            Ok(message) | Err((_, message)) if of_progress => {
                (Ticket(PROGRESS as u64), message.key_len() + message.payload_len() + RECORD_OVERHEAD)
            }
            _ => of_opaque(opaque, self.shared.newest.load(Ordering::Relaxed)),
        };
        let mut outcome = lock(&self.shared.outcome);
        outcome.returned += weight;
        let of_replica = !of_progress && opaque & OF_REPLICA != 0;
        match result {
            Ok(_) if of_progress => outcome.progress_is_written(self.transactional),
            Ok(message) => {
                if of_replica {
                    outcome.kept = outcome.kept.max(Some(message.offset() + 1));
                }
                outcome.acknowledge(ticket, weight as u64);
            }
            Err((error, message)) => outcome.fail(Failure {
                code: error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
                topic: message.topic().to_owned(),
                ticket,
                key: key_text(message.key()),
                size: message.payload_len(),
                batch: Some(1),
            }),
        }
    }
}

/// The producer's thread. It sleeps in one place, until there is a batch, a delivery, an answer about a topic, or the
/// end, all of which write to one eventfd; so it costs nothing when idle and loses no time when not.
struct Worker {
    // Before the producer: librdkafka wants its queues and topics given back first.
    queue: EventQueue,
    topics: HashMap<String, KnownTopic>,
    /// Of the batch that is being handed over, in the order of its topics.
    handles: Vec<Arc<TopicHandle>>,
    producer: Arc<BaseProducer<Context>>,
    shared: Arc<Shared>,
    config: KafkaConfig,
    buffer_bytes: usize,
    name: String,
    progress_topic: String,
    kept_topic: Arc<Topic>,
    incoming: mpsc::Receiver<Work>,
    /// What is not done yet.
    waiting: VecDeque<Work>,
    /// Where the Kafka transaction is; `None` without `exactly_once`.
    transaction: Option<Phase>,
    /// Kafka gives up a transaction that is open for longer.
    transaction_timeout: Duration,
    transaction_began: Option<Instant>,
    /// The next one does not begin before.
    rests_until: Option<Instant>,
    /// When Kafka last took a record.
    acknowledged_at: Option<Instant>,
    calls: mpsc::Sender<Call>,
    commits: mpsc::Receiver<Result<(), TransactionError>>,
    /// Records wait for others to be sent with, but not while it is quiet. Those of a transaction go when it is committed.
    flushes: bool,
    /// Bytes in librdkafka's hands.
    buffered: usize,
    /// For questions to the cluster.
    admin: ClientConfig,
    asked: mpsc::Sender<Arc<Topic>>,
    answers: mpsc::Receiver<(String, Result<(), SinkError>)>,
    connection: Connection,
    /// Whoever has read the progress takes its leave, for which nobody waits but the end.
    closing: Option<JoinHandle<()>>,
}

struct KnownTopic {
    table: String,
    /// Once it is known to exist.
    handle: Option<Arc<TopicHandle>>,
}

/// Where a Kafka transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is none; the next record begins one.
    Closed,
    /// Records are being sent.
    Open,
    /// It is being committed, and nothing may be sent.
    Committing,
}

/// How a turn of handing over ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// There is more, and room.
    More,
    /// Nothing to hand over, or no room, or a topic is not ready: something must come back first.
    Wait,
}

impl Worker {
    fn run(mut self) {
        if let Err(error) = self.serve() {
            let error = self.late(error);
            let mut outcome = lock(&self.shared.outcome);
            outcome.error = Some(error);
            (outcome.failed, outcome.ended) = (true, true);
            drop(outcome);
            self.shared.news.notify_one();
        }
        self.shared.stop.store(true, Ordering::Release);
        self.producer.purge(PurgeConfig::default().queue().inflight());
        if self.transaction.is_some_and(|phase| phase != Phase::Closed) {
            // Else its readers wait until it times out, or until somebody takes over.
            if let Err(error) = transaction::abort(&self.producer, ABORT_WAIT) {
                debug!(code = %error.code, reason = error.reason, "the open transaction is left to whoever comes next");
            }
        }
        if let Some(closing) = self.closing.take() {
            // It has nothing to say.
            let _ = closing.join();
        }
        drop(self);
    }

    /// Runs until it is told to stop, or the sink can go no further.
    fn serve(&mut self) -> Result<(), SinkError> {
        loop {
            let mut turn = Turn::More;
            while turn == Turn::More {
                if self.shared.stop.load(Ordering::Acquire) {
                    return Ok(());
                }
                self.take_answers()?;
                self.waiting.extend(self.incoming.try_iter());
                turn = self.hand_over()?;
                let buffered = self.buffered;
                self.take_deliveries()?;
                if self.buffered < buffered && !self.waiting.is_empty() {
                    turn = Turn::More;
                }
            }
            if self.buffered == 0 && self.waiting.is_empty() {
                lock(&self.shared.spare).truncate(SPARE_BATCHES);
            }
            let deadlines = [self.connection.deadline(), self.rests_until];
            self.shared.wake.wait(deadlines.into_iter().flatten().min());
            self.connection.check(&self.config.brokers)?;
        }
    }

    /// Does what there is to do, in order: hands records to librdkafka, and commits.
    fn hand_over(&mut self) -> Result<Turn, SinkError> {
        let mut turn = 0;
        loop {
            if self.transaction == Some(Phase::Committing) || self.rests() {
                return Ok(Turn::Wait);
            }
            match self.waiting.front() {
                None => return Ok(Turn::Wait),
                Some(Work::TakeOver(_)) => {
                    let Some(Work::TakeOver(reader)) = self.waiting.pop_front() else {
                        unreachable!("it is the front")
                    };
                    let progress = self.take_over(reader)?;
                    lock(&self.shared.outcome).taken_over = Some(progress);
                    self.shared.news.notify_one();
                }
                Some(Work::Commit(_)) => {
                    let Some(Work::Commit(value)) = self.waiting.pop_front() else { unreachable!("it is the front") };
                    self.commit(&value)?;
                }
                Some(Work::Batch(..)) => {
                    if let Some(ended) = self.hand_over_batch(&mut turn)? {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// Hands the records of the batch at the front over; `None` when it is done.
    fn hand_over_batch(&mut self, turn: &mut usize) -> Result<Option<Turn>, SinkError> {
        self.begin()?;
        let is_quiet = self.buffered < QUIET_BYTES;
        if let Some(Work::Batch(batch, 0)) = self.waiting.front() {
            let topics = batch.topics().to_vec();
            if !self.find_handles(&topics)? {
                return Ok(Some(Turn::Wait));
            }
        }
        let Some(Work::Batch(batch, sent)) = self.waiting.front_mut() else { unreachable!("it is the front") };
        while let Some(record) = batch.records.get(*sent) {
            let weight = batch.weight_of(record);
            // A record larger than the whole budget goes alone.
            if self.buffered > 0 && self.buffered + weight > self.buffer_bytes {
                return Ok(Some(Turn::Wait));
            }
            if *turn == RECORDS_PER_TURN {
                return Ok(Some(Turn::More));
            }
            self.shared.newest.fetch_max(record.ticket.0, Ordering::Relaxed);
            let is_kept = Arc::ptr_eq(batch.topic(record), &self.kept_topic);
            let (partition, of_replica) = if is_kept { (REPLICA_PARTITION, OF_REPLICA) } else { (BY_KEY, 0) };
            let opaque = opaque(record.ticket, weight) | of_replica;
            match self.handles[record.topic].produce(&self.producer, batch, record, partition, opaque) {
                Ok(()) => {}
                Err(RDKafkaErrorCode::QueueFull) => return Ok(Some(Turn::Wait)),
                Err(code) => {
                    let failure = Failure {
                        code,
                        topic: batch.topic(record).name.clone(),
                        ticket: record.ticket,
                        key: key_text(record.key.clone().map(|range| &batch.bytes[range])),
                        size: record.payload.as_ref().map_or(0, |range| range.len()),
                        batch: None,
                    };
                    // Acknowledgements of what went before are still on their way; the slot repeats those.
                    return Err(self.cause(failure));
                }
            }
            self.buffered += weight;
            *sent += 1;
            *turn += 1;
        }
        if let Some(Work::Batch(batch, _)) = self.waiting.pop_front() {
            self.recycle(batch);
        }
        if self.flushes && is_quiet && !self.shared.flush_asked.swap(true, Ordering::AcqRel) {
            self.call(Call::Flush);
        }
        Ok(None)
    }

    /// Finds the handles of a batch's topics, when all of them are known to exist; those that nobody has asked for yet are asked for.
    fn find_handles(&mut self, topics: &[Arc<Topic>]) -> Result<bool, SinkError> {
        self.handles.clear();
        for topic in topics {
            if let Some(known) = self.topics.get(&topic.name) {
                self.handles.extend(known.handle.clone());
                continue;
            }
            // The replica's has been found before, and is not made as the config's topics are.
            let is_kept = Arc::ptr_eq(topic, &self.kept_topic);
            let handle = if is_kept { Some(self.handle_of(&topic.name)?) } else { None };
            self.handles.extend(handle.clone());
            self.topics.insert(topic.name.clone(), KnownTopic { table: topic.table.clone(), handle });
            if !is_kept {
                // Its thread ends only when we do.
                let _ = self.asked.send(topic.clone());
            }
        }
        Ok(self.handles.len() == topics.len())
    }

    fn handle_of(&self, topic: &str) -> Result<Arc<TopicHandle>, SinkError> {
        let failed =
            |code| SinkError::Passing(Box::new(ProduceError::Delivery { topic: topic.into(), code, mend: None }));
        TopicHandle::new(&self.producer, topic).map(Arc::new).map_err(failed)
    }

    /// Fences off whoever published before, and reads how far it came. Blocks: there is nothing else to do.
    fn take_over(&mut self, reader: Option<Box<Reader>>) -> Result<Option<Progress>, SinkError> {
        if self.transaction.is_some() {
            // Only to be connected: librdkafka looks for the coordinator at once and then each half a second, whether a broker can be asked
            // or not. What answers here is no broker of the first addresses, which it leaves as soon as it knows the others.
            let _ = self.producer.client().fetch_watermarks(&self.progress_topic, 0, TRANSACTION_STEP);
            while let Err(error) = transaction::init(&self.producer, TRANSACTION_STEP) {
                if !error.retriable {
                    return Err(self.why_transaction("take over from whoever published before", error));
                }
                if self.shared.stop.load(Ordering::Acquire) {
                    return Err(SinkError::Passing(Box::new(ProduceError::Ended)));
                }
                self.take_deliveries()?;
            }
            self.connection.answered();
        }
        let reader = match reader {
            Some(reader) => *reader,
            None => Reader::connect(&self.config, &self.name, &self.connection.admission)?,
        };
        let progress = reader.to_the_end(&self.producer, &self.shared.stop)?;
        self.closing = thread::Builder::new().name("kafka-closer".into()).spawn(move || drop(reader)).ok();
        Ok(progress)
    }

    /// The transaction before has only just ended.
    fn rests(&mut self) -> bool {
        self.rests_until = self.rests_until.filter(|until| *until > Instant::now());
        self.rests_until.is_some()
    }

    /// Begins a Kafka transaction, where there is one to begin.
    fn begin(&mut self) -> Result<(), SinkError> {
        if self.transaction == Some(Phase::Closed) {
            let failed = |error| self.why_transaction("begin a transaction", error);
            transaction::begin(&self.producer).map_err(failed)?;
            self.transaction = Some(Phase::Open);
            self.transaction_began = Some(Instant::now());
        }
        Ok(())
    }

    /// Writes the progress record, and lets the other thread commit it with what was sent.
    fn commit(&mut self, value: &[u8]) -> Result<(), SinkError> {
        self.begin()?;
        let record = BaseRecord::with_opaque_to(&self.progress_topic, PROGRESS).key(progress::KEY).payload(value);
        if let Err((error, _)) = self.producer.send(record) {
            return Err(self.cause(Failure {
                code: error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
                topic: self.progress_topic.clone(),
                ticket: Ticket(PROGRESS as u64),
                key: progress::KEY.into(),
                size: value.len(),
                batch: None,
            }));
        }
        self.buffered += progress::KEY.len() + value.len() + RECORD_OVERHEAD;
        if self.transaction.is_some() {
            self.transaction = Some(Phase::Committing);
            self.call(Call::Commit);
        }
        Ok(())
    }

    fn call(&self, call: Call) {
        // The thread ends only when we do.
        let _ = self.calls.send(call);
    }

    /// Serves librdkafka's events until there are none: deliveries, errors, logs.
    fn take_deliveries(&mut self) -> Result<(), SinkError> {
        // `poll` takes one event a call when it may not wait.
        while self.queue.len() > 0 {
            self.producer.poll(Duration::ZERO);
        }
        let mut outcome = lock(&self.shared.outcome);
        self.buffered = self.buffered.saturating_sub(std::mem::take(&mut outcome.returned));
        let delivered = !outcome.acknowledged.is_empty() || outcome.committed;
        let failure = outcome.failure.take();
        let events = std::mem::take(&mut outcome.events);
        // From here on nothing is acknowledged, whatever librdkafka still says.
        outcome.failed |= failure.is_some();
        drop(outcome);
        if delivered {
            self.acknowledged_at = Some(Instant::now());
            self.connection.answered();
            self.shared.news.notify_one();
        }
        if let Some(failure) = failure {
            return Err(self.cause(failure));
        }
        // A fatal error comes under its own code; only the client knows that it is one.
        if !events.is_empty() && self.producer.client().fatal_error().is_some() {
            return Err(self.fatal());
        }
        for (code, reason) in events {
            self.connection.note(code, &reason);
        }
        self.connection.check(&self.config.brokers)
    }

    fn take_answers(&mut self) -> Result<(), SinkError> {
        while let Ok((name, answer)) = self.answers.try_recv() {
            answer?;
            self.connection.answered();
            let handle = self.handle_of(&name)?;
            self.topics.get_mut(&name).expect("it was asked for").handle = Some(handle);
        }
        while let Ok(committed) = self.commits.try_recv() {
            // Why a record failed says more than that the commit did.
            self.take_deliveries()?;
            committed.map_err(|error| self.why_transaction("commit", error))?;
            self.transaction = Some(Phase::Closed);
            self.transaction_began = None;
            self.rests_until = Some(Instant::now() + REST);
            self.connection.answered();
            let mut outcome = lock(&self.shared.outcome);
            outcome.committed = true;
            outcome.kept_end = outcome.kept.take().or(outcome.kept_end);
            drop(outcome);
            self.shared.news.notify_one();
        }
        Ok(())
    }

    /// The error for a transaction that cannot go on.
    fn why_transaction(&self, doing: &'static str, error: TransactionError) -> SinkError {
        use RDKafkaErrorCode as E;
        let TransactionError { code, reason, .. } = error;
        let refused = fault::sort(code) == Fault::Refused;
        let mend = match code {
            E::Fenced | E::InvalidProducerEpoch | E::ProducerFenced => Some(
                "another instance has taken over, or Kafka has given up a transaction that took longer than \
                 transaction.timeout.ms"
                    .to_owned(),
            ),
            E::TransactionalIdAuthorizationFailed => {
                let resource = format!("--transactional-id offshoot.{}", self.name);
                Some(format!("allow it: {}", fault::acl_command(&self.config, &["Write", "Describe"], &resource)))
            }
            code if refused => Some(fault::mend(code, &self.progress_topic, &self.config)),
            _ => None,
        };
        let error = Box::new(ProduceError::Transaction { doing, code, reason, mend });
        if refused { SinkError::Refused(error) } else { SinkError::Passing(error) }
    }

    /// In a transaction that is older than Kafka lets it be, its age is the cause of whatever fails; unless Kafka took nothing
    /// for a good part of it, which is an outage.
    fn late(&self, error: SinkError) -> SinkError {
        let (open, timeout) = (self.transaction_began.map(|began| began.elapsed()), self.transaction_timeout);
        let was_at_work = self.acknowledged_at.is_some_and(|at| at.elapsed() < timeout / 2);
        match (error, open) {
            (SinkError::Passing(reason), Some(open)) if open >= timeout && was_at_work => {
                SinkError::Late(Box::new(ProduceError::Late { reason: told(&*reason), open, timeout }))
            }
            (error, _) => error,
        }
    }

    fn recycle(&self, mut batch: RecordBatch) {
        let mut spare = lock(&self.shared.spare);
        if spare.len() < SPARE_BATCHES_MAX {
            batch.clear();
            batch.bytes.shrink_to(SPARE_BYTES);
            batch.records.shrink_to(SPARE_BYTES / size_of::<Record>());
            batch.headers.shrink_to(SPARE_BYTES / size_of::<crate::sink::Header>());
            spare.push(batch);
        }
    }

    /// A fatal error of librdkafka: the delivery that led to it says more, and comes at about the same time.
    fn fatal(&self) -> SinkError {
        let deadline = Instant::now() + CAUSE_WAIT;
        while Instant::now() < deadline && self.producer.in_flight_count() > 0 {
            self.producer.poll(Duration::from_millis(10));
            let failure = lock(&self.shared.outcome).failure.take_if(|f| fault::sort(f.code) != Fault::Echo);
            if let Some(failure) = failure {
                return self.why(failure);
            }
        }
        let failure = lock(&self.shared.outcome).failure.take();
        match failure.filter(|f| fault::sort(f.code) != Fault::Echo) {
            Some(failure) => self.why(failure),
            None => self.why_fatal(),
        }
    }

    /// The error for a failed delivery, or for what it is an echo of.
    fn cause(&self, failure: Failure) -> SinkError {
        if fault::sort(failure.code) == Fault::Echo { self.fatal() } else { self.why(failure) }
    }

    fn why_fatal(&self) -> SinkError {
        let Some((code, reason)) = self.producer.client().fatal_error() else {
            // It is the transaction that failed, and its commit says why.
            let committing = self.transaction == Some(Phase::Committing);
            let committed = committing.then(|| self.commits.recv_timeout(CAUSE_WAIT));
            return match committed {
                Some(Ok(Err(error))) => self.why_transaction("commit", error),
                _ => SinkError::Passing(Box::new(ProduceError::Ended)),
            };
        };
        if matches!(code, RDKafkaErrorCode::Fenced | RDKafkaErrorCode::InvalidProducerEpoch) {
            return self.why_transaction("publish", TransactionError { code, reason, retriable: false });
        }
        let refused = fault::sort(code) == Fault::Refused;
        let mut topics: Vec<_> = self.topics.keys().map(String::as_str).collect();
        topics.sort_unstable();
        let mend = refused.then(|| fault::mend(code, &topics.join(" --topic "), &self.config));
        let error = Box::new(ProduceError::Fatal { code, reason, mend });
        if refused { SinkError::Refused(error) } else { SinkError::Passing(error) }
    }

    fn why(&self, failure: Failure) -> SinkError {
        let Failure { code, topic, ticket, key, size, batch } = failure;
        let table = self.topics.get(&topic).map_or_else(String::new, |known| known.table.clone());
        let mend = match fault::sort(code) {
            Fault::Refused => {
                let mend = Some(fault::mend(code, &topic, &self.config));
                return SinkError::Refused(Box::new(ProduceError::Delivery { topic, code, mend }));
            }
            Fault::Passing | Fault::Echo => {
                return SinkError::Passing(Box::new(ProduceError::Delivery { topic, code, mend: None }));
            }
            Fault::Record if code != RDKafkaErrorCode::MessageSizeTooLarge => {
                "the topic's settings do not admit it, such as those of a compacted topic a record without a key".into()
            }
            Fault::Record if batch.is_none() => {
                "raise message.max.bytes under sink.kafka.properties, and max.message.bytes of the topic".into()
            }
            Fault::Record => {
                let limit = admin::message_bytes_max(&self.admin, &topic, LIMIT_WAIT);
                match (limit, batch) {
                    (Some(limit), _) if (size as u64) < limit.saturating_sub(BATCH_OVERHEAD) => {
                        let records = batch.unwrap_or(1);
                        let error = ProduceError::Batch { topic, table, records, limit };
                        return SinkError::Refused(Box::new(error));
                    }
                    (Some(limit), _) => format!("raise max.message.bytes of the topic, which is {limit}"),
                    (None, Some(2..)) => "raise max.message.bytes of the topic; or, if this largest record of its \
                                          batch is smaller than that, set batch.size under sink.kafka.properties \
                                          below it"
                        .into(),
                    (None, _) => "raise max.message.bytes of the topic".into(),
                }
            }
        };
        let reason = ProduceError::Record { topic, code, mend };
        SinkError::Record { ticket, table, key, size, reason: Box::new(reason) }
    }
}

/// What librdkafka hands back with a record: the lower half of its ticket, and what it takes of the budget, so that a delivery need not
/// count that again. librdkafka takes no record of 1 GB.
fn opaque(ticket: Ticket, weight: usize) -> usize {
    (ticket.0 as u32 as usize) << 32 | weight.min(OF_REPLICA - 1)
}

/// Ticket and weight; no more than the lower half of tickets is in flight at once.
fn of_opaque(opaque: usize, newest: u64) -> (Ticket, usize) {
    let age = (newest as u32).wrapping_sub((opaque >> 32) as u32);
    (Ticket(newest - u64::from(age)), opaque & (OF_REPLICA - 1))
}

/// Starts the thread that looks topics up and makes them: its questions block, and acknowledgements must not wait.
///
/// It ends when the producer's thread has, or a moment later: its questions are bounded.
#[expect(clippy::type_complexity, reason = "the two ends of one conversation")]
fn start_topic_thread(
    config: &KafkaConfig,
    admin: ClientConfig,
    producer: &Arc<BaseProducer<Context>>,
    shared: &Arc<Shared>,
) -> io::Result<(mpsc::Sender<Arc<Topic>>, mpsc::Receiver<(String, Result<(), SinkError>)>)> {
    let (asked, questions) = mpsc::channel::<Arc<Topic>>();
    let (answer, answers) = mpsc::channel();
    let (config, producer, shared) = (config.clone(), producer.clone(), shared.clone());
    let run = move || {
        for topic in questions {
            let result = admin::ensure_topic(producer.client(), &config, &admin, &topic, &shared.stop);
            if shared.stop.load(Ordering::Acquire) || answer.send((topic.name.clone(), result)).is_err() {
                return;
            }
            shared.wake.wake();
        }
    };
    thread::Builder::new().name("kafka-topics".into()).spawn(run)?;
    Ok((asked, answers))
}

/// Starts the thread that commits and flushes: both calls block until everything that was sent is there, and the producer's
/// events must be served meanwhile. It answers for commits alone.
#[expect(clippy::type_complexity, reason = "the two ends of one conversation")]
fn start_calling_thread(
    producer: &Arc<BaseProducer<Context>>,
    shared: &Arc<Shared>,
) -> io::Result<(mpsc::Sender<Call>, mpsc::Receiver<Result<(), TransactionError>>)> {
    let (asked, questions) = mpsc::channel::<Call>();
    let (answer, answers) = mpsc::channel();
    let (producer, shared) = (producer.clone(), shared.clone());
    let run = move || {
        for call in questions {
            if call == Call::Flush {
                shared.flush_asked.store(false, Ordering::Release);
                transaction::flush(&producer, FLUSH_MAX);
                continue;
            }
            let mut result = transaction::commit(&producer, TRANSACTION_STEP);
            while result.as_ref().is_err_and(|error| error.retriable) && !shared.stop.load(Ordering::Acquire) {
                result = transaction::commit(&producer, TRANSACTION_STEP);
            }
            if answer.send(result).is_err() {
                return;
            }
            shared.wake.wake();
        }
    };
    thread::Builder::new().name("kafka-commits".into()).spawn(run)?;
    Ok((asked, answers))
}

/// What is known of the connection to the cluster, and what of it has been said.
#[derive(Debug, Default)]
struct Connection {
    admission: Arc<Admission>,
    /// Since when, and why, we are not.
    refused: Option<Refusal>,
    /// Since when no broker at all can be reached.
    away_since: Option<Instant>,
    /// When it was last said that a broker is away.
    warned: HashMap<String, Instant>,
}

#[derive(Debug)]
struct Refusal {
    since: Instant,
    code: RDKafkaErrorCode,
    reason: String,
}

impl Connection {
    /// Kafka has done something for us.
    fn answered(&mut self) {
        self.admission.let_in();
        self.refused = None;
        // All brokers are away also when the only connection was closed for having been idle: no warning, no news.
        if let Some(since) = self.away_since.take()
            && !self.warned.is_empty()
        {
            self.warned.clear();
            info!(away_s = since.elapsed().as_secs_f32(), "kafka is back");
        }
    }

    fn note(&mut self, code: RDKafkaErrorCode, reason: &str) {
        if fault::is_refusal(code) {
            if self.refused.is_none() {
                warn!(reason, "kafka does not let us in");
                self.refused = Some(Refusal { since: Instant::now(), code, reason: reason.to_owned() });
            }
            return;
        }
        if code == RDKafkaErrorCode::AllBrokersDown {
            self.away_since.get_or_insert_with(Instant::now);
            return;
        }
        // librdkafka's texts begin with the broker: `host:port/id: ...`.
        let broker = reason.split_once(": ").map_or("", |(broker, _)| broker);
        let now = Instant::now();
        if self.refused.is_some() {
            debug!(%code, reason, "kafka still does not let us in");
            return;
        }
        let said = self.warned.get(broker).is_some_and(|at| now - *at < AWAY_WARN_INTERVAL);
        if said || (self.away_since.is_some() && !self.warned.is_empty()) {
            debug!(%code, reason, "kafka is still away");
        } else {
            self.warned.insert(broker.to_owned(), now);
            warn!(%code, reason, "a kafka broker is away; what is unsent waits");
        }
    }

    /// When `check` can have something to say at the latest.
    fn deadline(&self) -> Option<Instant> {
        self.refused.as_ref().map(|refusal| refusal.since + REFUSED_MAX)
    }

    fn check(&self, brokers: &str) -> Result<(), SinkError> {
        match &self.refused {
            Some(refusal) if refusal.since.elapsed() >= REFUSED_MAX => {
                let (brokers, reason, mend) =
                    (brokers.to_owned(), refusal.reason.clone(), fault::mend_refusal(refusal.code));
                Err(again(&self.admission, Box::new(ProduceError::NotLetIn { brokers, reason, mend })))
            }
            _ => Ok(()),
        }
    }
}

/// A refusal lasts, unless we have been let in a while ago.
pub(super) fn again(admission: &Admission, error: Box<dyn std::error::Error + Send + Sync>) -> SinkError {
    match admission.refused(Instant::now()) {
        Some(left) => {
            let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
            SinkError::Passing(Box::new(ProduceError::Again { error: told(&*error), left }))
        }
        None => SinkError::Refused(error),
    }
}

/// librdkafka's queue of events, which writes to the eventfd when it is no longer empty.
struct EventQueue(*mut rd_kafka_queue_t);

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for EventQueue {}

impl EventQueue {
    fn new(producer: &BaseProducer<Context>, wake: &Wake) -> Self {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the client lives; librdkafka copies the payload; the eventfd is in `Shared`, which the client's
        // context holds for as long as the client lives.
        let queue = unsafe { rd_kafka_queue_get_main(producer.client().native_ptr()) };
        unsafe { rd_kafka_queue_io_event_enable(queue, wake.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        Self(queue)
    }

    fn len(&self) -> usize {
        // SAFETY: the queue is ours until it is dropped.
        unsafe { rd_kafka_queue_length(self.0) }
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        // SAFETY: got from `rd_kafka_queue_get_main`, given back once.
        unsafe { rd_kafka_queue_destroy(self.0) };
    }
}

/// An eventfd.
#[derive(Debug)]
struct Wake(OwnedFd);

impl Wake {
    fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked and then owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes from a buffer of eight. It can fail only when the counter is full: it is awake then.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Waits until somebody wakes us, or until `deadline`.
    fn wait(&self, deadline: Option<Instant>) {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.map(|left| libc::timespec {
            tv_sec: left.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut count = [0u8; 8];
        // SAFETY: one pollfd, and a timespec or null; eight bytes into a buffer of eight. A signal only makes the caller look
        // early.
        unsafe {
            libc::ppoll(&mut poll, 1, left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref), std::ptr::null());
            libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len());
        }
    }
}

/// A key as it is shown: text where it is, cut where it is long.
fn key_text(key: Option<&[u8]>) -> String {
    let key = key.unwrap_or_default();
    let cut = &key[..key.len().min(KEY_SHOWN_MAX)];
    let mut text = String::from_utf8_lossy(cut).into_owned();
    if cut.len() < key.len() {
        text.push('…');
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with it")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rdkafka::{
        mocking::MockCluster,
        types::{RDKafkaApiKey, RDKafkaRespErr},
    };

    use super::*;
    use crate::config::{Delivery, Property, Topics};

    /// No test waits longer for news.
    const DEADLINE: Duration = Duration::from_secs(30);

    fn config(brokers: String, properties: &[(&str, &str)]) -> KafkaConfig {
        let properties = properties.iter().map(|(k, v)| ((*k).to_owned(), Property((*v).to_owned())));
        KafkaConfig {
            topics: Topics { create: false, properties: BTreeMap::new(), ..Topics::default() },
            properties: properties.collect(),
            ..KafkaConfig::at(&brokers, Delivery::AtLeastOnce)
        }
    }

    fn cluster() -> MockCluster<'static, rdkafka::producer::DefaultProducerContext> {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("shop.public.orders", 1, 1).unwrap();
        cluster
    }

    fn orders() -> Arc<Topic> {
        Arc::new(Topic { name: "shop.public.orders".into(), table: "public.orders".into() })
    }

    fn push(batch: &mut RecordBatch, topic: &Arc<Topic>, ticket: u64, key: &[u8], payload: Option<&[u8]>) {
        let topic = batch.topic_index(topic);
        let mut put = |bytes: &[u8]| {
            batch.bytes.extend_from_slice(bytes);
            batch.bytes.len() - bytes.len()..batch.bytes.len()
        };
        let (key, payload) = (Some(put(key)), payload.map(put));
        let at = batch.headers.len();
        batch.records.push(Record { topic, ticket: Ticket(ticket), key, payload, timestamp: None, headers: at..at });
    }

    /// Collects acknowledgements until there are `records`, or the sink ends.
    async fn acknowledged(sink: &mut KafkaSink, records: u64) -> Result<Vec<Acknowledgement>, SinkError> {
        let mut all = Vec::new();
        while all.iter().map(|a: &Acknowledgement| a.records).sum::<u64>() < records {
            let mut news = News::default();
            tokio::time::timeout(DEADLINE, sink.news(&mut news)).await.expect("news within the deadline")?;
            all.append(&mut news.acknowledged);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn acknowledges_what_was_sent_by_ticket_and_in_bytes_of_the_budget() {
        let cluster = cluster();
        let mut sink =
            KafkaSink::connect(&config(cluster.bootstrap_servers(), &[]), "shop", 1 << 20, &Arc::default()).unwrap();
        let topic = orders();
        let mut expected = BTreeMap::new();
        for turn in 0..10u64 {
            let mut batch = sink.batch();
            for n in 0..100u64 {
                let ticket = (turn * 100 + n) / 7;
                push(&mut batch, &topic, ticket, b"key", (n % 10 != 0).then_some(&b"a payload"[..]));
                if n % 3 == 0 {
                    let at = batch.bytes.len();
                    batch.bytes.extend_from_slice(b"old key");
                    let first = batch.headers.len();
                    batch.headers.push(crate::sink::Header::new("__debezium.oldkey", at..at + 7));
                    batch.records.last_mut().unwrap().headers = first..first + 1;
                }
                let record = batch.records.last().unwrap();
                let sum = expected.entry(ticket).or_insert((0, 0));
                *sum = (sum.0 + 1, sum.1 + batch.weight_of(record) as u64);
            }
            sink.send(batch).unwrap();
        }
        let mut found = BTreeMap::new();
        let all = acknowledged(&mut sink, 1000).await.unwrap();
        assert!(all.is_sorted_by_key(|a| a.ticket), "one partition is acknowledged in order");
        for a in all {
            let sum = found.entry(a.ticket.0).or_insert((0, 0));
            *sum = (sum.0 + a.records, sum.1 + a.bytes);
        }
        assert_eq!(found, expected);
        sink.close().await;
    }

    #[tokio::test]
    async fn a_record_larger_than_the_whole_buffer_goes_through() {
        let cluster = cluster();
        let mut sink =
            KafkaSink::connect(&config(cluster.bootstrap_servers(), &[]), "shop", 1000, &Arc::default()).unwrap();
        let mut batch = sink.batch();
        push(&mut batch, &orders(), 1, b"a", Some(b"small"));
        push(&mut batch, &orders(), 2, b"b", Some(&[b'x'; 100_000]));
        push(&mut batch, &orders(), 3, b"c", Some(b"small"));
        sink.send(batch).unwrap();
        let all = acknowledged(&mut sink, 3).await.unwrap();
        assert_eq!(all.iter().map(|a| a.ticket.0).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_record_waits_for_no_others_while_it_is_quiet() {
        let cluster = cluster();
        let config = config(cluster.bootstrap_servers(), &[]);
        let mut properties = client::producer_properties(&config, "shop").unwrap();
        let linger = Duration::from_secs(1);
        properties.set(client::LINGER, linger.as_millis().to_string());
        let mut sink = KafkaSink::start(&config, "shop", 1 << 20, &Arc::default(), &properties).unwrap();
        // A flush is over after `FLUSH_MAX`, also when there is no connection yet; without one, each of them waits.
        for ticket in 1..=10 {
            let mut batch = sink.batch();
            push(&mut batch, &orders(), ticket, b"a", Some(b"small"));
            let sent = Instant::now();
            sink.send(batch).unwrap();
            assert_eq!(acknowledged(&mut sink, 1).await.unwrap()[0].ticket, Ticket(ticket));
            if sent.elapsed() < linger / 2 {
                return sink.close().await;
            }
        }
        panic!("each has waited for others");
    }

    #[tokio::test]
    async fn buffers_come_back_empty_and_not_large() {
        let cluster = cluster();
        let mut sink =
            KafkaSink::connect(&config(cluster.bootstrap_servers(), &[]), "shop", 1 << 20, &Arc::default()).unwrap();
        let mut batch = sink.batch();
        batch.bytes.reserve(10 * SPARE_BYTES);
        push(&mut batch, &orders(), 1, b"a", Some(b"small"));
        sink.send(batch).unwrap();
        acknowledged(&mut sink, 1).await.unwrap();
        let batch = sink.batch();
        assert!(batch.records.is_empty() && batch.bytes.is_empty() && batch.topics().is_empty());
        assert!((1..=SPARE_BYTES).contains(&batch.bytes.capacity()), "{}", batch.bytes.capacity());
    }

    #[tokio::test]
    async fn what_the_broker_answers_is_sorted_and_nothing_is_acknowledged_after() {
        type Expected = fn(&SinkError) -> bool;
        let table: [(RDKafkaRespErr, Expected, &str); 4] = [
            (
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
                |e| matches!(e, SinkError::Refused(_)),
                "--operation Describe --operation Write --topic shop.public.orders",
            ),
            (
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
                |e| {
                    matches!(e, SinkError::Record { ticket: Ticket(1), table, key, size: 5, .. }
                    if table == "public.orders" && key == "a")
                },
                "raise max.message.bytes of the topic",
            ),
            (
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD,
                |e| matches!(e, SinkError::Record { ticket: Ticket(1), .. }),
                "the topic's settings do not admit it",
            ),
            (
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN,
                |e| matches!(e, SinkError::Passing(_)),
                "publish to topic shop.public.orders",
            ),
        ];
        for (code, expected, text) in table {
            let cluster = cluster();
            cluster.request_errors(RDKafkaApiKey::Produce, &[code]);
            let properties = [("batch.num.messages", "1"), ("max.in.flight", "1")];
            let mut sink =
                KafkaSink::connect(&config(cluster.bootstrap_servers(), &properties), "shop", 1 << 20, &Arc::default())
                    .unwrap();
            let mut batch = sink.batch();
            push(&mut batch, &orders(), 1, b"a", Some(b"first"));
            push(&mut batch, &orders(), 2, b"a", Some(b"second"));
            sink.send(batch).unwrap();
            let error = acknowledged(&mut sink, 1).await.unwrap_err();
            assert!(expected(&error) && error.to_string().contains(text), "{code:?}: {error:?}");
            sink.close().await;
        }
    }

    #[tokio::test]
    async fn a_record_larger_than_the_producers_own_limit_is_named() {
        let cluster = cluster();
        let properties = [("message.max.bytes", "1000")];
        let mut sink =
            KafkaSink::connect(&config(cluster.bootstrap_servers(), &properties), "shop", 1 << 20, &Arc::default())
                .unwrap();
        let mut batch = sink.batch();
        push(&mut batch, &orders(), 7, b"k", Some(&[b'x'; 5000]));
        sink.send(batch).unwrap();
        let error = acknowledged(&mut sink, 1).await.unwrap_err();
        assert!(matches!(&error, SinkError::Record { ticket: Ticket(7), size: 5000, .. }), "{error:?}");
        assert!(error.to_string().contains("raise message.max.bytes under sink.kafka.properties"), "{error}");
    }

    #[tokio::test]
    async fn an_absent_topic_that_we_may_not_make_is_told_with_the_command_that_makes_it() {
        let cluster = cluster();
        let mut sink =
            KafkaSink::connect(&config(cluster.bootstrap_servers(), &[]), "shop", 1 << 20, &Arc::default()).unwrap();
        let absent = Arc::new(Topic { name: "shop.public.absent".into(), table: "public.absent".into() });
        let mut batch = sink.batch();
        push(&mut batch, &absent, 1, b"k", Some(b"v"));
        sink.send(batch).unwrap();
        let error = acknowledged(&mut sink, 1).await.unwrap_err();
        assert!(matches!(error, SinkError::Refused(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("--create --topic shop.public.absent --partitions 6"), "{text}");
    }

    #[tokio::test]
    async fn closes_while_kafka_is_away() {
        let mut sink =
            KafkaSink::connect(&config("127.0.0.1:1".into(), &[]), "shop", 1 << 20, &Arc::default()).unwrap();
        let mut batch = sink.batch();
        push(&mut batch, &orders(), 1, b"k", Some(b"v"));
        sink.send(batch).unwrap();
        tokio::time::timeout(DEADLINE, sink.close()).await.unwrap();
    }

    #[test]
    fn properties_that_cannot_be_used_are_refused_at_once() {
        for property in [("acks", "1"), ("max.in.flight", "6"), ("no.such.property", "1")] {
            let error =
                KafkaSink::connect(&config("127.0.0.1:1".into(), &[property]), "shop", 1 << 20, &Arc::default())
                    .unwrap_err();
            assert!(matches!(error, SinkError::Refused(_)), "{error:?}");
            assert!(error.to_string().contains(property.0), "{error}");
        }
    }

    #[test]
    fn acknowledgements_of_one_ticket_in_a_row_are_one() {
        let mut outcome = Outcome::default();
        for (ticket, bytes) in [(1, 10), (1, 20), (2, 5), (1, 1)] {
            outcome.acknowledge(Ticket(ticket), bytes);
        }
        let ack = |ticket, records, bytes| Acknowledgement { ticket: Ticket(ticket), records, bytes };
        assert_eq!(outcome.acknowledged, [ack(1, 2, 30), ack(2, 1, 5), ack(1, 1, 1)]);
    }

    #[test]
    fn nothing_is_acknowledged_after_a_failure_and_the_cause_is_told_before_its_echo() {
        let failure = |code, size, key: &str| Failure {
            code,
            topic: "t".into(),
            ticket: Ticket(1),
            key: key.into(),
            size,
            batch: Some(1),
        };
        let mut outcome = Outcome::default();
        outcome.acknowledge(Ticket(1), 1);
        outcome.fail(failure(RDKafkaErrorCode::PurgeQueue, 9, "echo"));
        outcome.acknowledge(Ticket(2), 1);
        outcome.fail(failure(RDKafkaErrorCode::MessageSizeTooLarge, 10, "small"));
        outcome.fail(failure(RDKafkaErrorCode::MessageSizeTooLarge, 30, "large"));
        outcome.fail(failure(RDKafkaErrorCode::MessageSizeTooLarge, 20, "medium"));
        outcome.fail(failure(RDKafkaErrorCode::PurgeQueue, 99, "echo"));
        assert_eq!(outcome.acknowledged.len(), 1);
        let told = outcome.failure.unwrap();
        assert_eq!((told.key.as_str(), told.size, told.batch), ("large", 30, Some(3)));
    }

    #[test]
    fn a_refused_connection_lasts_unless_we_were_let_in_before() {
        let refused = RDKafkaErrorCode::Authentication;
        let mut connection = Connection::default();
        let told_after = |connection: &mut Connection| {
            connection.note(refused, "kafka:9092/1: wrong password");
            let refusal = connection.refused.as_mut().unwrap();
            let since = refusal.since;
            refusal.since -= REFUSED_MAX;
            assert_eq!(connection.deadline(), Some(since));
            connection.check("kafka:9092").unwrap_err()
        };
        let error = told_after(&mut connection);
        assert!(matches!(&error, SinkError::Refused(_)) && error.to_string().contains("sasl.password"), "{error}");
        connection.answered();
        assert_eq!(connection.deadline(), None);
        let error = told_after(&mut connection);
        assert!(matches!(&error, SinkError::Passing(_)) && error.to_string().contains("sasl.password"), "{error}");
        // The next producer knows of it.
        let mut next = Connection { admission: connection.admission, ..Connection::default() };
        assert!(matches!(told_after(&mut next), SinkError::Passing(_)));
    }

    #[tokio::test]
    async fn a_file_of_a_property_that_is_gone_is_waited_for_once_we_were_let_in() {
        let file = [("sasl.password", "file:/nonexistent/password")];
        let admission = Arc::default();
        let connect =
            || KafkaSink::connect(&config("127.0.0.1:1".into(), &file), "shop", 1 << 20, &admission).unwrap_err();
        assert!(matches!(connect(), SinkError::Refused(_)));
        admission.let_in();
        let error = connect();
        let words = "`sink.kafka.properties.sasl.password`: read /nonexistent/password: No such file";
        assert!(matches!(&error, SinkError::Passing(_)) && error.to_string().contains(words), "{error}");
    }

    #[test]
    fn long_and_binary_keys_are_shown_short_and_as_text() {
        assert_eq!(key_text(None), "");
        assert_eq!(key_text(Some(b"{\"id\":1}")), "{\"id\":1}");
        assert_eq!(key_text(Some(&[b'x'; KEY_SHOWN_MAX + 1])), format!("{}…", "x".repeat(KEY_SHOWN_MAX)));
    }
}
