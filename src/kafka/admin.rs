//! Topics that records go to: made as the config asks, or said what is missing. And what `check` wants to know of Kafka.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    bindings::rd_kafka_controllerid,
    client::{Client, ClientContext, DefaultClientContext},
    config::{ClientConfig, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, Producer, ProducerContext},
};
use tracing::{debug, info};

use crate::{
    causes::told,
    config::{Config, KafkaConfig},
    kafka::{
        client::{self, PropertyError},
        fault::{self, Fault},
        kept, rights,
    },
    sink::{SinkError, Topic},
};

/// How long one question for metadata waits: how often, while Kafka is away, it is seen that nobody waits any more.
const METADATA_WAIT: Duration = Duration::from_secs(2);
/// Between two looks at a topic whose partitions have no leader yet.
const LEADER_INTERVAL: Duration = Duration::from_millis(50);
/// How long a new topic may take to get leaders before we connect again.
const LEADER_WAIT: Duration = Duration::from_secs(30);
/// How long the making of a topic may take.
const CREATE_WAIT: Duration = Duration::from_secs(10);

/// How long `check` goes on once every broker has failed to answer: it is there to say so.
const ALL_DOWN_WAIT: Duration = Duration::from_millis(600);

/// Why a topic cannot be written to.
#[derive(Debug, thiserror::Error)]
enum TopicError {
    #[error("find topic {topic} for {table}, which sink.kafka.topics.create: false leaves to you; make it: {command}")]
    Absent { topic: String, table: String, command: String },
    #[error("create topic {topic} for {table}: {code}; {mend}")]
    Create { topic: String, table: String, code: RDKafkaErrorCode, mend: String },
    #[error("look up topic {topic} for {table}: {code}; {mend}")]
    Look { topic: String, table: String, code: RDKafkaErrorCode, mend: String },
    #[error("look up topic {topic} for {table}: no leader for all of its partitions within {} s", LEADER_WAIT.as_secs())]
    NoLeader { topic: String, table: String },
}

/// Sees to it that a topic exists and has leaders. While Kafka is away it waits, until `stop`.
///
/// The client's `allow.auto.create.topics` must be false: asking must not make the topic with the broker's defaults.
pub(crate) fn ensure_topic<C: ClientContext>(
    client: &Client<C>,
    config: &KafkaConfig,
    properties: &ClientConfig,
    topic: &Topic,
    stop: &AtomicBool,
) -> Result<(), SinkError> {
    let mut created: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        match look(client, &topic.name, METADATA_WAIT) {
            Ok(Some(partitions)) => {
                if created.is_none() && partitions != config.topics.partitions {
                    info!(
                        topic = topic.name,
                        partitions,
                        asked_for = config.topics.partitions,
                        "topic is there with another number of partitions, and is used as it is"
                    );
                }
                return Ok(());
            }
            Ok(None) if created.is_some() => thread::sleep(LEADER_INTERVAL),
            Ok(None) => {
                if !config.topics.create {
                    let command = fault::topic_command(config, &topic.name);
                    let (topic, table) = (topic.name.clone(), topic.table.clone());
                    return Err(SinkError::Refused(Box::new(TopicError::Absent { topic, table, command })));
                }
                create(config, properties, topic)?;
                created = Some(Instant::now());
            }
            Err(RDKafkaErrorCode::LeaderNotAvailable) => thread::sleep(LEADER_INTERVAL),
            Err(code) if fault::sort(code) == Fault::Refused && !fault::is_refusal(code) => {
                let mend = fault::mend(code, &topic.name, config);
                let (topic, table) = (topic.name.clone(), topic.table.clone());
                return Err(SinkError::Refused(Box::new(TopicError::Look { topic, table, code, mend })));
            }
            Err(code) => {
                // A question that was not heard has waited already; one that was answered badly has not.
                debug!(topic = topic.name, %code, "kafka does not say whether the topic is there");
                thread::sleep(LEADER_INTERVAL);
            }
        }
        if created.is_some_and(|at| at.elapsed() > LEADER_WAIT) {
            let (topic, table) = (topic.name.clone(), topic.table.clone());
            return Err(SinkError::Passing(Box::new(TopicError::NoLeader { topic, table })));
        }
    }
    Ok(())
}

/// How many partitions a topic has; `None` when there is no such topic.
fn look<C: ClientContext>(client: &Client<C>, topic: &str, wait: Duration) -> Result<Option<i32>, RDKafkaErrorCode> {
    let metadata = client.fetch_metadata(Some(topic), wait).map_err(|e| code_of(&e))?;
    let found = metadata.topics().iter().find(|t| t.name() == topic).ok_or(RDKafkaErrorCode::LeaderNotAvailable)?;
    match found.error().map(RDKafkaErrorCode::from) {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Ok(None),
        Some(code) => Err(code),
        None if found.partitions().is_empty() => Err(RDKafkaErrorCode::LeaderNotAvailable),
        None if found.partitions().iter().any(|p| p.leader() < 0) => Err(RDKafkaErrorCode::LeaderNotAvailable),
        None => Ok(Some(found.partitions().len() as i32)),
    }
}

fn create(config: &KafkaConfig, properties: &ClientConfig, topic: &Topic) -> Result<(), SinkError> {
    let asked = &config.topics;
    let new = new_topic(config, &topic.name);
    let admin: AdminClient<DefaultClientContext> =
        properties.create().map_err(|e| SinkError::Refused(Box::new(client::refused_together(&e))))?;
    let options = AdminOptions::new().request_timeout(Some(CREATE_WAIT)).operation_timeout(Some(CREATE_WAIT));
    let answer = wait(admin.create_topics([&new], &options));
    let code = match answer {
        Ok(results) => match results.into_iter().next() {
            Some(Err((_, code))) => code,
            _ => {
                info!(topic = topic.name, partitions = asked.partitions, "topic created");
                return Ok(());
            }
        },
        Err(error) => code_of(&error),
    };
    // Another instance, or a hand, was faster.
    if code == RDKafkaErrorCode::TopicAlreadyExists {
        return Ok(());
    }
    let mend = mend_create(config, code, &topic.name);
    let refused = fault::sort(code) == Fault::Refused || code == RDKafkaErrorCode::InvalidRequest;
    let (topic, table) = (topic.name.clone(), topic.table.clone());
    let error = Box::new(TopicError::Create { topic, table, code, mend });
    Err(if refused { SinkError::Refused(error) } else { SinkError::Passing(error) })
}

fn new_topic<'a>(config: &'a KafkaConfig, name: &'a str) -> NewTopic<'a> {
    let asked = &config.topics;
    let new = NewTopic::new(name, asked.partitions, TopicReplication::Fixed(asked.replication));
    asked.properties.iter().fold(new, |new, (name, value)| new.set(name, &value.0))
}

fn mend_create(config: &KafkaConfig, code: RDKafkaErrorCode, topic: &str) -> String {
    match code {
        RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed => format!(
            "allow it: {}; or make it: {}",
            fault::acl_command(config, &["Create", "Describe", "Write"], &format!("--topic {topic}")),
            fault::topic_command(config, topic)
        ),
        RDKafkaErrorCode::InvalidReplicationFactor => format!(
            "sink.kafka.topics.replication is {}: set it to what the cluster's brokers can hold",
            config.topics.replication
        ),
        code => fault::mend(code, topic, config),
    }
}

/// A topic's `max.message.bytes`, if we may know it.
pub(crate) fn message_bytes_max(properties: &ClientConfig, topic: &str, wait_max: Duration) -> Option<u64> {
    describe_topic(properties, topic, wait_max).ok()?.get("max.message.bytes")?.value.as_ref()?.parse().ok()
}

/// A topic's properties.
pub(crate) fn describe_topic(
    properties: &ClientConfig,
    topic: &str,
    wait_max: Duration,
) -> Result<ConfigResource, RDKafkaErrorCode> {
    let admin: AdminClient<DefaultClientContext> = properties.create().map_err(|error| code_of(&error))?;
    let options = AdminOptions::new().request_timeout(Some(wait_max));
    let described = wait(admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options));
    let resource = described.map_err(|error| code_of(&error))?.into_iter().next();
    resource.unwrap_or(Err(RDKafkaErrorCode::Fail))
}

fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    match error {
        KafkaError::AdminOp(code) => *code,
        other => other.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
    }
}

/// Waits for librdkafka's answer, which comes from a thread of its own and bounds itself. Needs no runtime, and may be
/// called where there is one.
fn wait<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => thread::park(),
        }
    }
}

/// What `check` finds at Kafka.
#[derive(Debug, Default)]
pub struct KafkaReport {
    /// The cluster's id.
    pub cluster_id: Option<String>,
    /// The controller's broker id.
    pub controller: Option<i32>,
    /// The brokers that are there.
    pub brokers: Vec<BrokerReport>,
    /// The topics that were asked for, in that order.
    pub topics: Vec<TopicReport>,
    /// Topics that there was no time to look at.
    pub unseen: usize,
    /// Who we are to an authorizer, when the config says whom to log in as.
    pub principal: Option<String>,
    /// The commands that give us all that `run` needs.
    pub acls: Vec<String>,
    /// What stands in the way, each with its mend.
    pub faults: Vec<KafkaFault>,
}

/// One broker, as the cluster names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerReport {
    /// Its id.
    pub id: i32,
    /// `host:port` as it is advertised.
    pub address: String,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicReport {
    /// Its name.
    pub name: String,
    /// `None` when it is not there.
    pub found: Option<TopicFound>,
}

/// What a topic is like. Properties are absent when we may not read them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicFound {
    /// How many partitions it has.
    pub partitions: i32,
    /// Replicas of its first partition.
    pub replication: i32,
    /// Partitions without a leader now.
    pub leaderless: i32,
    /// `cleanup.policy`.
    pub cleanup_policy: Option<String>,
    /// `retention.ms`; -1 is for ever.
    pub retention_ms: Option<i64>,
    /// `retention.bytes`, of a partition; -1 is without bound.
    pub retention_bytes: Option<i64>,
    /// `min.insync.replicas`.
    pub min_insync_replicas: Option<i32>,
    /// `max.message.bytes`.
    pub message_bytes_max: Option<u64>,
}

/// Something that stands in the way at Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaFault {
    /// Which kind.
    pub kind: KafkaFaultKind,
    /// What was found.
    pub what: String,
    /// How to mend it.
    pub mend: String,
}

/// Kinds of what stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KafkaFaultKind {
    /// A property that cannot be used.
    Config,
    /// No broker can be reached: refused, unknown host, or silence.
    Unreachable,
    /// User, password or mechanism.
    Authentication,
    /// Certificates.
    Tls,
    /// A right that is missing.
    Authorization,
    /// A topic that is absent and that we are told not to make, or anything else about a topic.
    Topic,
}

/// Remembers what went wrong while a connection was tried.
#[derive(Default)]
struct Listener(Mutex<Vec<(RDKafkaErrorCode, String)>>);

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "librdkafka", ?level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let mut heard = self.0.lock().expect("nobody panics with it");
        heard.push((fault::of_connection(code_of(&error), reason), reason.to_owned()));
    }
}

impl ProducerContext for Listener {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &rdkafka::producer::DeliveryResult<'_>, (): ()) {}
}

/// Looks at Kafka for `check`: brokers, and the topics of these names. Changes nothing. Blocks for at most about
/// `timeout` in all.
pub fn inspect(config: &Config, topics: &[String], timeout: Duration) -> KafkaReport {
    let mut report = KafkaReport::default();
    if let Err(error) = inspect_into(&mut report, config, topics, timeout) {
        let mend = "change it in the config".to_owned();
        report.faults.push(KafkaFault { kind: KafkaFaultKind::Config, what: told(&error), mend });
    }
    report
}

fn inspect_into(
    report: &mut KafkaReport,
    config: &Config,
    topics: &[String],
    timeout: Duration,
) -> Result<(), PropertyError> {
    let kafka = &config.sink.kafka;
    let deadline = Instant::now() + timeout;
    let properties = client::admin_properties(kafka, &config.name)?;
    // Both that promise and these that only ask must be accepted.
    let _: BaseProducer<Listener> = client::producer_properties(kafka, &config.name)?
        .create_with_context(Listener::default())
        .map_err(|e| client::refused_together(&e))?;
    let producer: BaseProducer<Listener> =
        properties.create_with_context(Listener::default()).map_err(|e| client::refused_together(&e))?;
    let client = producer.client();

    if !reach(&producer, deadline) {
        report.faults.push(why_unreachable(kafka, &producer));
        return Ok(());
    }
    report.cluster_id = client.fetch_cluster_id(left(deadline));
    // SAFETY: the client lives; the call only asks.
    let controller = unsafe { rd_kafka_controllerid(client.native_ptr(), left(deadline).as_millis() as i32) };
    report.controller = (controller >= 0).then_some(controller);

    report.principal = rights::principal(kafka);
    report.acls = rights::commands(config, topics);
    let of_replica = kept::topic_name(&config.name);
    let (kept, topics): (Vec<_>, Vec<_>) = topics.iter().partition(|topic| **topic == of_replica);
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    for (at, name) in topics.iter().copied().enumerate() {
        if Instant::now() >= deadline {
            report.unseen = topics.len() - at;
            break;
        }
        match client.fetch_metadata(Some(name), left(deadline)) {
            Ok(metadata) => {
                if report.brokers.is_empty() {
                    report.brokers = brokers(metadata.brokers());
                }
                let topic = metadata.topics().iter().find(|t| t.name() == name);
                match topic.and_then(|t| t.error()).map(RDKafkaErrorCode::from) {
                    None => {
                        let partitions = topic.map_or(&[][..], |t| t.partitions());
                        found.push(name);
                        let found = TopicFound {
                            partitions: partitions.len() as i32,
                            replication: partitions.first().map_or(0, |p| p.replicas().len() as i32),
                            leaderless: partitions.iter().filter(|p| p.leader() < 0).count() as i32,
                            ..TopicFound::default()
                        };
                        report.topics.push(TopicReport { name: name.clone(), found: Some(found) });
                    }
                    Some(RDKafkaErrorCode::UnknownTopicOrPartition) => {
                        report.topics.push(TopicReport { name: name.clone(), found: None });
                        if kafka.topics.create {
                            absent.push(name);
                        } else {
                            report.faults.push(KafkaFault {
                                kind: KafkaFaultKind::Topic,
                                what: format!("topic {name} is absent, and sink.kafka.topics.create is false"),
                                mend: fault::topic_command(kafka, name),
                            });
                        }
                    }
                    Some(code) => report.faults.push(topic_fault(kafka, name, code)),
                }
            }
            Err(error) => report.faults.push(topic_fault(kafka, name, code_of(&error))),
        }
    }
    if report.brokers.is_empty()
        && let Ok(metadata) = client.fetch_metadata(Some("offshoot.check"), left(deadline))
    {
        report.brokers = brokers(metadata.brokers());
    }
    if !found.is_empty() {
        describe(report, &properties, &found, left(deadline));
        let forbidden = |name| topic_fault(kafka, name, RDKafkaErrorCode::TopicAuthorizationFailed);
        let unwritable = rights::unwritable(client, &found, left(deadline));
        report.faults.extend(unwritable.iter().map(|name| forbidden(name)));
    }
    if !absent.is_empty() {
        would_be_made(report, kafka, &properties, &absent, left(deadline));
    }
    if !kept.is_empty() && Instant::now() < deadline {
        inspect_kept(report, kafka, &properties, client, &of_replica, deadline);
    }
    Ok(())
}

/// The replica's topic: not made as the config's topics are, and its properties are no matter of taste.
fn inspect_kept<C: ClientContext>(
    report: &mut KafkaReport,
    kafka: &KafkaConfig,
    properties: &ClientConfig,
    client: &Client<C>,
    topic: &String,
    deadline: Instant,
) {
    let config = kept::config_of(kafka);
    match look(client, topic, left(deadline)) {
        Ok(Some(_)) => {
            let (what, mend) = match describe_topic(properties, topic, left(deadline)) {
                Ok(found) => match kept::misfit(&found, topic, kafka) {
                    Some(misfit) => (misfit.to_string(), misfit.mend()),
                    None => return,
                },
                Err(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                    let allow = fault::acl_command(kafka, kept::OF_REPLICA.rights, &format!("--topic {topic}"));
                    (format!("topic {topic}: we may not see its properties"), allow)
                }
                // It is told by `run`.
                Err(_) => return,
            };
            report.faults.push(KafkaFault { kind: KafkaFaultKind::Topic, what, mend });
        }
        Ok(None) if config.topics.create => would_be_made(report, &config, properties, &[topic], left(deadline)),
        Ok(None) => report.faults.push(KafkaFault {
            kind: KafkaFaultKind::Topic,
            what: format!("topic {topic} is absent, and sink.kafka.topics.create is false"),
            mend: fault::topic_command(&config, topic),
        }),
        Err(code) => report.faults.push(topic_fault(&config, topic, code)),
    }
}

/// Asks the broker whether it would make these topics. It looks at rights, partitions, replication, properties and policy,
/// and makes nothing.
fn would_be_made(
    report: &mut KafkaReport,
    config: &KafkaConfig,
    properties: &ClientConfig,
    absent: &[&String],
    timeout: Duration,
) {
    let admin: Result<AdminClient<DefaultClientContext>, _> = properties.create();
    let Ok(admin) = admin else { return };
    let topics: Vec<_> = absent.iter().map(|name| new_topic(config, name)).collect();
    let options = AdminOptions::new().request_timeout(Some(timeout)).validate_only(true);
    // What cannot be asked now is told by `run`.
    for made in wait(admin.create_topics(&topics, &options)).unwrap_or_default() {
        let Err((name, code)) = made else { continue };
        // A broker that is slow to answer does not refuse.
        if matches!(fault::sort(code), Fault::Refused) || code == RDKafkaErrorCode::InvalidRequest {
            let fault = topic_fault(config, &name, code);
            report.faults.push(KafkaFault { mend: mend_create(config, code, &name), ..fault });
            report.topics.retain(|topic| topic.name != name);
        }
    }
}

/// Waits until a broker answers, or says that we are not let in, or time is up.
fn reach(producer: &BaseProducer<Listener>, mut deadline: Instant) -> bool {
    let step = Duration::from_millis(500);
    let mut all_down = None;
    loop {
        producer.poll(Duration::ZERO);
        if producer.client().fetch_cluster_id(step.min(left(deadline))).is_some() {
            return true;
        }
        // Errors are events of the queue, one a poll.
        for _ in 0..16 {
            producer.poll(Duration::ZERO);
        }
        let heard = producer.context().0.lock().expect("nobody panics with it");
        if heard.iter().any(|(code, _)| *code == RDKafkaErrorCode::AllBrokersDown) {
            // All that are named have been tried; once more, and that is that.
            deadline = *all_down.get_or_insert_with(|| deadline.min(Instant::now() + ALL_DOWN_WAIT));
        }
        if Instant::now() >= deadline || heard.iter().any(|(code, _)| fault::is_refusal(*code)) {
            return false;
        }
    }
}

fn why_unreachable(config: &KafkaConfig, producer: &BaseProducer<Listener>) -> KafkaFault {
    let heard = producer.context().0.lock().expect("nobody panics with it");
    let words = |found: Option<&(RDKafkaErrorCode, String)>| found.map(|(_, reason)| reason.clone());
    let brokers = &config.brokers;
    if let Some((code, reason)) = heard.iter().find(|(code, _)| fault::is_refusal(*code)) {
        let kind = match code {
            RDKafkaErrorCode::SSL => KafkaFaultKind::Tls,
            _ => KafkaFaultKind::Authentication,
        };
        return KafkaFault { kind, what: reason.clone(), mend: fault::mend_refusal(*code).to_owned() };
    }
    let told = heard.iter().find(|(code, _)| *code != RDKafkaErrorCode::AllBrokersDown);
    let what = words(told).unwrap_or_else(|| format!("no answer from {brokers}"));
    let mend = "check sink.kafka.brokers and the network between; a broker that hangs up or is silent may want TLS or \
                SASL: security.protocol under sink.kafka.properties";
    KafkaFault { kind: KafkaFaultKind::Unreachable, what, mend: mend.to_owned() }
}

fn brokers(found: &[rdkafka::metadata::MetadataBroker]) -> Vec<BrokerReport> {
    let report = |b: &rdkafka::metadata::MetadataBroker| BrokerReport {
        id: b.id(),
        address: format!("{}:{}", b.host(), b.port()),
    };
    found.iter().map(report).collect()
}

fn topic_fault(config: &KafkaConfig, topic: &str, code: RDKafkaErrorCode) -> KafkaFault {
    let kind = match code {
        RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed => {
            KafkaFaultKind::Authorization
        }
        _ => KafkaFaultKind::Topic,
    };
    KafkaFault { kind, what: format!("topic {topic}: {code}"), mend: fault::mend(code, topic, config) }
}

/// Adds the properties of topics. Not to be allowed to read them is no fault: writing does not need it.
fn describe(report: &mut KafkaReport, properties: &ClientConfig, found: &[&String], timeout: Duration) {
    let admin: Result<AdminClient<DefaultClientContext>, _> = properties.create();
    let Ok(admin) = admin else { return };
    let specifiers: Vec<_> = found.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let options = AdminOptions::new().request_timeout(Some(timeout));
    let Ok(described) = wait(admin.describe_configs(&specifiers, &options)) else { return };
    for (name, resource) in found.iter().zip(described) {
        let Ok(resource) = resource else { continue };
        let value = |property: &str| resource.get(property).and_then(|entry| entry.value.clone());
        let topic = report.topics.iter_mut().find(|topic| topic.name == **name).and_then(|t| t.found.as_mut());
        if let Some(topic) = topic {
            topic.cleanup_policy = value("cleanup.policy");
            topic.retention_ms = value("retention.ms").and_then(|v| v.parse().ok());
            topic.retention_bytes = value("retention.bytes").and_then(|v| v.parse().ok());
            topic.min_insync_replicas = value("min.insync.replicas").and_then(|v| v.parse().ok());
            topic.message_bytes_max = value("max.message.bytes").and_then(|v| v.parse().ok());
        }
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100))
}
