//! Nothing, or settings -> a running Kafka of one node, topics in it, and what they hold.

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock},
    thread,
    time::{Duration, Instant},
};

use futures::executor::block_on;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
    producer::{BaseProducer, BaseRecord, Producer},
};
use testcontainers_modules::testcontainers::{
    GenericImage, ImageExt,
    core::{IntoContainerPort, WaitFor},
    runners::AsyncRunner,
};

use super::{
    process::{self, Process},
    servers::{self, REMEDY},
    wait,
};

/// How long a broker may take to start or stop on a busy machine.
const START_MAX: Duration = Duration::from_secs(90);
/// How long an administrative request may take.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// Quick to start and to come back, small, and no topic by accident. A registration that ends after a second lets a
/// broker that was killed start again at once.
const PROPERTIES: [(&str, &str); 23] = [
    ("process.roles", "broker,controller"),
    ("node.id", "1"),
    ("controller.listener.names", "CONTROLLER"),
    ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
    ("inter.broker.listener.name", "PLAINTEXT"),
    ("auto.create.topics.enable", "false"),
    ("num.partitions", "1"),
    ("default.replication.factor", "1"),
    ("offsets.topic.replication.factor", "1"),
    ("offsets.topic.num.partitions", "1"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("transaction.state.log.num.partitions", "1"),
    ("share.coordinator.state.topic.replication.factor", "1"),
    ("share.coordinator.state.topic.min.isr", "1"),
    ("share.coordinator.state.topic.num.partitions", "1"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("log.cleaner.dedupe.buffer.size", "2000000"),
    ("log.retention.hours", "-1"),
    ("broker.session.timeout.ms", "1000"),
    ("broker.heartbeat.interval.ms", "200"),
    ("controlled.shutdown.enable", "false"),
    // Ten seconds by default: how late a transaction that is too old is given up.
    ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "500"),
];

/// The broker that the whole run shares. Tests use topics of their own and leave the broker alone.
pub fn shared() -> &'static Broker {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    SHARED.get_or_init(|| {
        if let Ok(address) = env::var("OFFSHOOT_TEST_KAFKA") {
            return Broker { address, local: None };
        }
        if servers::fetched().is_none() && servers::docker_runs() {
            return container();
        }
        // It is never killed; on a busy machine a second without a heartbeat would fence it, and its topics lose their leaders.
        private(&Options::default().property("broker.session.timeout.ms", "30000"))
    })
}

/// A broker of one test's own, to be stopped, killed, frozen and configured.
pub fn private(options: &Options) -> Broker {
    let broker = unstarted(options);
    broker.start();
    broker
}

/// Brokers that hold everything among them, and the controller that they follow.
pub struct Cluster {
    /// For its clients, who reach it through any of its brokers.
    pub all: Broker,
    brokers: Vec<Broker>,
    _controller: Broker,
}

/// A cluster of one test's own, whose brokers may die one by one: what is in it has three replicas, two of which must be in sync.
pub fn cluster() -> Cluster {
    let port = servers::free_port();
    let node = |id: usize, role: &str| {
        let options = Options { heap: "128m", ..Options::default() };
        let options = options.property("process.roles", role).property("node.id", &id.to_string());
        let options = options.property("controller.quorum.voters", &format!("1@127.0.0.1:{port}"));
        // A broker that is dead is missed soon, and one that is only slow on a busy machine is not.
        let options = options.property("broker.session.timeout.ms", "3000");
        let (three, two) = (
            ["default", "offsets.topic", "transaction.state.log"],
            ["transaction.state.log.min.isr", "min.insync.replicas"],
        );
        let options = three.iter().fold(options, |o, of| o.property(&format!("{of}.replication.factor"), "3"));
        two.iter().fold(options, |o, name| o.property(name, "2"))
    };
    let controller = unstarted(&node(1, "controller").property("listeners", &format!("CONTROLLER://127.0.0.1:{port}")));
    let broker = |id| unstarted(&node(id, "broker").property("listeners", "PLAINTEXT://127.0.0.1:{port}"));
    let brokers: Vec<Broker> = (2..5).map(broker).collect();
    thread::scope(|scope| {
        for broker in brokers.iter().chain([&controller]) {
            scope.spawn(|| broker.start());
        }
    });
    let address = brokers.iter().map(Broker::address).collect::<Vec<_>>().join(",");
    Cluster { all: Broker { address, local: None }, brokers, _controller: controller }
}

impl Cluster {
    /// The broker that leads a topic of one partition.
    #[track_caller]
    pub fn leader(&self, topic: &str) -> &Broker {
        let id = wait::until(REQUEST_MAX, "a leader", || {
            self.partition(topic).map(|(leader, _)| leader).filter(|id| *id > 0)
        });
        &self.brokers[id as usize - 2]
    }

    /// The others.
    pub fn others(&self, than: &Broker) -> impl Iterator<Item = &Broker> {
        self.brokers.iter().filter(move |broker| broker.address != than.address)
    }

    /// Waits until all replicas of topics of one partition are in sync.
    #[track_caller]
    pub fn wait_in_sync(&self, topics: &[&str]) {
        for topic in topics {
            let in_sync = || self.partition(topic).is_some_and(|(_, in_sync)| in_sync == self.brokers.len());
            wait::until(START_MAX, &format!("the replicas of {topic} to be in sync"), in_sync);
        }
    }

    /// The leader of a topic's only partition, and how many replicas are in sync.
    fn partition(&self, topic: &str) -> Option<(i32, usize)> {
        let consumer: BaseConsumer = self.all.client().create().expect("the configuration is right");
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5)).ok()?;
        let partition = metadata.topics().first()?.partitions().first()?;
        Some((partition.leader(), partition.isr().len()))
    }
}

/// How a private broker differs from the usual one.
#[derive(Clone, Debug)]
pub struct Options {
    /// Server properties on top of the usual ones. In their values `{port}` and `{controller_port}` are the two ports
    /// of the usual listeners, and `{dir}` is the broker's directory.
    pub properties: Vec<(String, String)>,
    /// Arguments of `kafka-storage format`, such as `--add-scram`; without any a formatted directory is copied.
    pub format: Vec<String>,
    /// `-Xmx`.
    pub heap: &'static str,
    /// The full just-in-time compiler: slower to start, faster later. For measurements.
    pub optimize: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { properties: Vec::new(), format: Vec::new(), heap: "256m", optimize: false }
    }
}

impl Options {
    /// The same with a server property.
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }
}

/// A running Kafka. Dropped, it is killed.
pub struct Broker {
    address: String,
    local: Option<Local>,
}

/// What a broker of our own has, besides an address.
struct Local {
    dir: PathBuf,
    options: Options,
    process: Mutex<Option<Process>>,
}

impl Broker {
    /// `host:port`, for `brokers` and `bootstrap.servers`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A name that no other test uses, with `prefix` at its start.
    pub fn topic_name(&self, prefix: &str) -> String {
        format!("{prefix}.{}", std::iter::repeat_with(fastrand::lowercase).take(10).collect::<String>())
    }

    /// A new topic of one partition; its name starts with `prefix`.
    pub fn topic(&self, prefix: &str) -> String {
        let name = self.topic_name(prefix);
        self.create_topic(&name, 1, &[]);
        name
    }

    /// Makes a topic.
    #[track_caller]
    pub fn create_topic(&self, name: &str, partitions: i32, properties: &[(&str, &str)]) {
        self.create_topics(&[name], partitions, properties);
    }

    /// Makes topics of one kind.
    #[track_caller]
    pub fn create_topics(&self, names: &[&str], partitions: i32, properties: &[(&str, &str)]) {
        let topic = |name| {
            let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
            properties.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
        };
        let topics: Vec<NewTopic<'_>> = names.iter().map(|name| topic(name)).collect();
        let made = block_on(self.admin().create_topics(&topics, &AdminOptions::new())).expect("the broker answers");
        for result in made {
            result.unwrap_or_else(|(name, e)| panic!("create topic {name}: {e}"));
        }
        for name in names {
            wait::until(REQUEST_MAX, &format!("topic {name}"), || self.partitions(name) == partitions as usize);
        }
    }

    /// A client for the rest of the admin API; its futures want `futures::executor::block_on`.
    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().expect("the configuration is right")
    }

    /// All topics and their partition counts.
    pub fn topics(&self) -> BTreeMap<String, usize> {
        let consumer: BaseConsumer = self.client().create().expect("the configuration is right");
        let metadata = consumer.fetch_metadata(None, REQUEST_MAX).expect("the broker answers");
        metadata.topics().iter().map(|topic| (topic.name().into(), topic.partitions().len())).collect()
    }

    /// Sends a record and waits until it is durable.
    #[track_caller]
    pub fn produce(&self, topic: &str, key: Option<&[u8]>, value: Option<&[u8]>) {
        let producer: BaseProducer = self.client().set("acks", "all").create().expect("the configuration is right");
        let mut record = BaseRecord::<[u8], [u8]>::to(topic);
        (record.key, record.payload) = (key, value);
        producer.send(record).unwrap_or_else(|(e, _)| panic!("send to {topic}: {e}"));
        producer.flush(REQUEST_MAX).unwrap_or_else(|e| panic!("send to {topic}: {e}"));
    }

    /// Deletes a topic, for what it takes on the disk.
    pub fn delete_topic(&self, name: &str) {
        let deleted = block_on(self.admin().delete_topics(&[name], &AdminOptions::new())).expect("the broker answers");
        deleted.into_iter().for_each(|topic| assert_eq!(topic, Ok(name.into())));
    }

    /// Reads a topic from its beginning until `enough` holds for what was read; panics after `deadline`.
    #[track_caller]
    pub fn read(&self, topic: &str, deadline: Duration, mut enough: impl FnMut(&[Record]) -> bool) -> Vec<Record> {
        let mut reader = self.reader(&[topic], deadline);
        let end = Instant::now() + deadline;
        let mut records = Vec::new();
        while !enough(&records) {
            match reader.next(end.saturating_duration_since(Instant::now())) {
                Some(record) => records.push(record),
                None => panic!("waited {deadline:?} for records of {topic}; last: {} of them", records.len()),
            }
        }
        records
    }

    /// Reads what a topic holds now, from its beginning to its end.
    #[track_caller]
    pub fn read_all(&self, topic: &str) -> Vec<Record> {
        let mut reader = self.reader(&[topic], REQUEST_MAX);
        let mut records = Vec::new();
        reader.read_to_end(REQUEST_MAX, |record| records.push(record));
        records
    }

    /// A reader of all partitions of some topics from their beginning, once all of them are there.
    #[track_caller]
    pub fn reader(&self, topics: &[&str], deadline: Duration) -> Reader {
        let mut client = self.client();
        client.set("group.id", "reader").set("enable.auto.commit", "false").set("auto.offset.reset", "error");
        client.set("fetch.error.backoff.ms", "20").set("fetch.queue.backoff.ms", "5");
        // The broker answers a question on this connection, such as for the ends, only after the fetch that waits before it.
        client.set("fetch.wait.max.ms", "20");
        let consumer: BaseConsumer = client.create().expect("the configuration is right");
        let mut partitions = TopicPartitionList::new();
        for topic in topics {
            let count = wait::until(deadline, &format!("topic {topic}"), || match self.partitions(topic) {
                0 => None,
                count => Some(count),
            });
            for partition in 0..count as i32 {
                partitions.add_partition_offset(topic, partition, Offset::Beginning).expect("the offset is legal");
            }
        }
        consumer.assign(&partitions).expect("the partitions are there");
        Reader { consumer, client, partitions, next: BTreeMap::new() }
    }

    /// How many partitions a topic has; 0 when it is not there.
    pub fn partitions(&self, topic: &str) -> usize {
        let consumer: BaseConsumer = self.client().create().expect("the configuration is right");
        let metadata = consumer.fetch_metadata(Some(topic), REQUEST_MAX).expect("the broker answers");
        metadata.topics().iter().find(|found| found.name() == topic).map_or(0, |found| found.partitions().len())
    }

    /// Where each partition of a topic ends; empty when the topic is not there.
    pub fn ends(&self, topic: &str) -> Vec<i64> {
        let consumer: BaseConsumer = self.client().create().expect("the configuration is right");
        let end =
            |partition| consumer.fetch_watermarks(topic, partition as i32, REQUEST_MAX).expect("the broker answers").1;
        (0..self.partitions(topic)).map(end).collect()
    }

    /// Gives a user of SCRAM-SHA-256 another password; connections that are open stay so.
    #[track_caller]
    pub fn set_password(&self, user: &str, password: &str) {
        let password = format!("SCRAM-SHA-256=[password={password}]");
        self.alter(&["--add-config", &password, "--entity-type", "users", "--entity-name", user]);
    }

    /// Lets a client write so many bytes a second to each broker; without a number as many as it likes.
    #[track_caller]
    pub fn set_quota(&self, client: &str, bytes: Option<u32>) {
        let (how, what) = match bytes {
            Some(bytes) => ("--add-config", format!("producer_byte_rate={bytes}")),
            None => ("--delete-config", "producer_byte_rate".into()),
        };
        self.alter(&[how, &what, "--entity-type", "clients", "--entity-name", client]);
    }

    #[track_caller]
    fn alter(&self, arguments: &[&str]) {
        let mut command = java(&self.local.as_ref().map_or_else(Options::default, |local| local.options.clone()));
        command.args(["kafka.admin.ConfigCommand", "--bootstrap-server", &self.address, "--alter"]);
        let output = command.args(arguments).output().expect("Java runs");
        assert!(output.status.success(), "{output:?}");
    }

    /// What the broker has logged since it was made.
    pub fn log(&self) -> String {
        fs::read_to_string(self.own().dir.join("log")).unwrap_or_default()
    }

    /// Its process id; `None` while it is down.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::pid)
    }

    /// Processor time that it has used.
    pub fn cpu_time(&self) -> Option<Duration> {
        self.process().as_ref()?.cpu_time()
    }

    /// Where a broker of our own keeps its files.
    pub fn dir(&self) -> Option<&Path> {
        Some(&self.local.as_ref()?.dir)
    }

    /// Starts a broker that is down, and waits until it answers.
    pub fn start(&self) {
        let local = self.own();
        let fetched = servers::fetched().unwrap_or_else(|| panic!("no local Kafka: {REMEDY}"));
        let mut process = self.process();
        assert!(process.is_none(), "Kafka runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(local.dir.join("log")).unwrap();
        let logged = log.metadata().unwrap().len() as usize;
        let mut command = java(&local.options);
        // Made for the quick compiler and this collector; another Java ignores it.
        let classes = fetched.join("kafka/classes.jsa");
        if classes.exists() && !local.options.optimize {
            command.arg(format!("-XX:SharedArchiveFile={}", classes.display())).arg("-Xlog:cds=off");
        }
        command.arg("kafka.Kafka").arg(local.dir.join("properties"));
        command.current_dir(&local.dir).stdout(log.try_clone().unwrap()).stderr(log);
        let started = Process::spawn("Kafka", command, libc::SIGKILL);
        let running = process.insert(started.unwrap_or_else(|e| panic!("start Kafka: {e}; {REMEDY}")));
        let answers = wait::attempt(START_MAX, || match running.exited() {
            Some(status) => Ok(Err(format!("it ended with {status}"))),
            // The line ends the start, and a broker that was fenced for its former life is unfenced by then.
            None if self.log()[logged..].contains("Kafka Server started") => Ok(Ok(())),
            None => Err("not started"),
        });
        let answers = answers.and_then(|answer| answer);
        answers.unwrap_or_else(|state| panic!("start Kafka: {state}\n{}", self.log()));
    }

    /// SIGTERM, to its end.
    pub fn stop(&self) {
        let mut process = self.process().take().expect("it runs");
        process.signal(libc::SIGTERM);
        process.exit(START_MAX);
    }

    /// kill -9, to its end.
    pub fn kill(&self) {
        self.process().take().expect("it runs").kill();
    }

    /// Freezes it: connections stay open and nothing answers.
    pub fn pause(&self) {
        self.process().as_mut().expect("it runs").signal(libc::SIGSTOP);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.process().as_mut().expect("it runs").signal(libc::SIGCONT);
    }

    /// The usual configuration of a client.
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.address);
        // A test that starts a broker does not want to wait for a client that has been waiting for it.
        client.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "200");
        client
    }

    fn own(&self) -> &Local {
        self.local.as_ref().unwrap_or_else(|| panic!("no local Kafka: {REMEDY}"))
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.own().process.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Reads topics from their beginning.
pub struct Reader {
    consumer: BaseConsumer,
    client: ClientConfig,
    partitions: TopicPartitionList,
    /// The next offset by topic and partition, for those of which something was read.
    next: BTreeMap<(String, i32), i64>,
}

impl Reader {
    /// The next record; `None` when none comes within `deadline`.
    pub fn next(&mut self, deadline: Duration) -> Option<Record> {
        let end = Instant::now() + deadline;
        loop {
            match self.consumer.poll(end.saturating_duration_since(Instant::now())) {
                None if Instant::now() < end => {}
                None => return None,
                Some(Ok(message)) => {
                    let record = Record::of(&message);
                    self.next.insert((record.topic.clone(), record.partition), record.offset + 1);
                    return Some(record);
                }
                // A broker that is down, or a topic that it has not heard of yet: it connects again by itself.
                Some(Err(_)) if Instant::now() < end => {}
                Some(Err(_)) => return None,
            }
        }
    }

    /// Reads up to what the topics hold at this moment.
    #[track_caller]
    pub fn read_to_end(&mut self, deadline: Duration, mut each: impl FnMut(Record)) {
        let end = Instant::now() + deadline;
        let left = || end.saturating_duration_since(Instant::now());
        let elements = self.partitions.elements();
        let partitions: Vec<(String, i32)> = elements.iter().map(|e| (e.topic().to_string(), e.partition())).collect();
        for partition in partitions {
            // A broker may not know yet that it leads a new partition.
            let (low, high) = wait::until(left(), "the end of a partition", || {
                self.consumer.fetch_watermarks(&partition.0, partition.1, left())
            });
            while self.next.get(&partition).copied().unwrap_or(low) < high {
                match self.next(Duration::from_millis(20)) {
                    Some(record) => each(record),
                    None if self.is_read(&partition, low, left()) => break,
                    None => assert!(!left().is_zero(), "waited {deadline:?} for the end of {partition:?}, {high}"),
                }
            }
        }
    }
}

impl Reader {
    /// Whether nothing is left in a partition but what no reader sees: the marks of transactions, and what was aborted.
    fn is_read(&self, partition: &(String, i32), low: i64, deadline: Duration) -> bool {
        let mut client = self.client.clone();
        client.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
        let consumer: BaseConsumer = client.create().expect("the configuration is right");
        let next = self.next.get(partition).copied().unwrap_or(low);
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&partition.0, partition.1, Offset::Offset(next)).expect("the offset is legal");
        consumer.assign(&from).expect("the partition is there");
        let end = Instant::now() + deadline;
        while Instant::now() < end {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(_)) => return false,
                Some(Err(KafkaError::PartitionEOF(_))) => return true,
                Some(Err(_)) | None => {}
            }
        }
        false
    }
}

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    fn of(message: &impl Message) -> Record {
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Record {
            topic: message.topic().into(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp: message.timestamp().to_millis().unwrap_or_default(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.map(|h| (h.key.to_string(), h.value.map(<[u8]>::to_vec))).collect(),
        }
    }

    /// The key as JSON; null when there is none.
    #[track_caller]
    pub fn key_json(&self) -> serde_json::Value {
        json(self.key.as_deref())
    }

    /// The value as JSON; null for a tombstone.
    #[track_caller]
    pub fn value_json(&self) -> serde_json::Value {
        json(self.value.as_deref())
    }
}

#[track_caller]
fn json(bytes: Option<&[u8]>) -> serde_json::Value {
    let Some(bytes) = bytes else { return serde_json::Value::Null };
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("{e} in {:?}", String::from_utf8_lossy(bytes)))
}

/// A broker that is ready to be started.
fn unstarted(options: &Options) -> Broker {
    let fetched = servers::fetched().unwrap_or_else(|| panic!("no local Kafka: {REMEDY}"));
    let dir = process::new_dir("kafka");
    let (port, controller_port) = (servers::free_port(), servers::free_port());
    let usual = PROPERTIES.map(|(name, value)| (name.to_string(), value.to_string()));
    let mut properties = BTreeMap::from(usual);
    properties.insert("log.dirs".into(), dir.join("data").display().to_string());
    properties
        .insert("listeners".into(), "PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}".into());
    properties.insert("controller.quorum.voters".into(), "1@127.0.0.1:{controller_port}".into());
    properties.extend(options.properties.iter().cloned());
    let fill = |value: &str| {
        let value =
            value.replace("{port}", &port.to_string()).replace("{controller_port}", &controller_port.to_string());
        value.replace("{dir}", dir.to_str().expect("a temporary directory's name is text"))
    };
    let lines = properties.iter().map(|(name, value)| format!("{name}={}\n", fill(value)));
    fs::write(dir.join("properties"), lines.collect::<String>()).unwrap();
    let mut command = if options.format.is_empty() {
        let mut command = Command::new("cp");
        command.arg("-r").arg(fetched.join("kafka/formatted")).arg(dir.join("data"));
        command
    } else {
        let mut command = java(options);
        command.args(["kafka.tools.StorageTool", "format", "--cluster-id", "4L6g3nShT-eMCtK--X86sw"]);
        command.arg("-c").arg(dir.join("properties")).args(&options.format);
        command
    };
    let output = command.output().unwrap_or_else(|e| panic!("format Kafka's directory: {e}; {REMEDY}"));
    assert!(output.status.success(), "format Kafka's directory: {output:?}");
    if properties["node.id"] != "1" {
        // Of the copy; it makes an id for its directory by itself.
        let meta = dir.join("data/meta.properties");
        let lines = fs::read_to_string(&meta).unwrap();
        let lines = lines.lines().filter(|line| !line.starts_with("node.id=") && !line.starts_with("directory.id="));
        let node = format!("node.id={}", properties["node.id"]);
        fs::write(&meta, lines.chain([node.as_str()]).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    }
    let address = format!("127.0.0.1:{port}");
    Broker { address, local: Some(Local { dir, options: options.clone(), process: Mutex::new(None) }) }
}

/// A Java with Kafka's classes.
fn java(options: &Options) -> Command {
    let fetched = servers::fetched().unwrap_or_else(|| panic!("no local Kafka: {REMEDY}"));
    let class_path = fs::read_to_string(fetched.join("kafka/classpath")).expect("make setup wrote it");
    let mut command = Command::new("java");
    command.arg(format!("-Xmx{}", options.heap)).arg("-Dorg.slf4j.simpleLogger.showDateTime=true");
    if !options.optimize {
        command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
    }
    command.arg("-cp").arg(class_path).stdin(Stdio::null());
    command
}

/// A directory with Kafka's own `kafka-acls` and `kafka-configs`, for a `PATH`. They log in by `admin`, the lines of a
/// properties file, as whoever administers a cluster has them.
pub fn tools(admin: &str) -> PathBuf {
    let dir = process::new_dir("kafka-tools");
    let fetched = servers::fetched().unwrap_or_else(|| panic!("no Kafka tools: {REMEDY}"));
    let class_path = fs::read_to_string(fetched.join("kafka/classpath")).expect("make setup wrote it");
    fs::write(dir.join("admin.properties"), admin).unwrap();
    for (name, class) in [
        ("kafka-acls", "org.apache.kafka.tools.AclCommand"),
        ("kafka-configs", "kafka.admin.ConfigCommand"),
        ("kafka-topics", "org.apache.kafka.tools.TopicCommand"),
    ] {
        let script = format!(
            "#!/bin/sh\nexec java -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp '{class_path}:{}/*' {class} \
             --command-config '{}/admin.properties' \"$@\"\n",
            fetched.join("extras/kafka").display(),
            dir.display()
        );
        fs::write(dir.join(name), script).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

/// Starts a broker in Docker.
fn container() -> Broker {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had");
    let port = servers::free_port();
    let own = [
        ("listeners", "PLAINTEXT://0.0.0.0:9092,BROKER://0.0.0.0:9093,CONTROLLER://0.0.0.0:9094".to_string()),
        ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{port},BROKER://localhost:9093")),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT".into()),
        ("inter.broker.listener.name", "BROKER".into()),
        ("controller.quorum.voters", "1@localhost:9094".into()),
    ];
    let usual = PROPERTIES.map(|(name, value)| (name, value.to_string()));
    let properties: BTreeMap<&str, String> = usual.into_iter().chain(own).collect();
    // The image takes a property from the environment, under its name in capitals with underscores.
    let variable = |name: &str| format!("KAFKA_{}", name.to_uppercase().replace('.', "_"));
    let image = GenericImage::new("apache/kafka", "4.1.0")
        .with_wait_for(WaitFor::message_on_stdout("Kafka Server started"))
        .with_mapped_port(port, 9092.tcp());
    let image = properties.iter().fold(image, |image, (name, value)| image.with_env_var(variable(name), value));
    let container = runtime.block_on(image.start());
    let container = container.unwrap_or_else(|e| panic!("start Kafka in Docker: {e}; or {REMEDY}"));
    process::remove_at_end(container.id());
    // Its own removal needs a runtime that outlives it; the shell that watches us does that.
    std::mem::forget(container);
    Broker { address: format!("127.0.0.1:{port}"), local: None }
}
