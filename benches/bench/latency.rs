//! Commits at a steady rate -> how long each takes to a consumer that reads committed, beside what Kafka takes by itself.
//!
//! Writer and consumer are threads of this process and read one clock. A commit is timed from just before COMMIT is sent
//! until the consumer has the record; what Kafka takes by itself, from just before the record is sent, or the first of a transaction's two.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    bindings::{rd_kafka_commit_transaction, rd_kafka_error_destroy},
    consumer::{BaseConsumer, Consumer},
    producer::{BaseProducer, BaseRecord, Producer},
};

use crate::{
    asked::Asked,
    drain::{Servers, start},
    progress::Progress,
    results::Latency,
    support::{
        kafka::Broker,
        program::{self, Config},
        wait,
    },
};

const DEADLINE: Duration = Duration::from_secs(60);
/// What is not counted: connections, caches, topics.
const WARM_UP: Duration = Duration::from_secs(3);

/// When each was begun, and how long it took.
#[derive(Default)]
struct Times {
    begun: Mutex<Vec<Option<Instant>>>,
    /// By the same number; the time of arrival.
    arrived: Mutex<Vec<Option<Instant>>>,
}

fn put(times: &Mutex<Vec<Option<Instant>>>, number: usize, at: Instant) {
    let mut times = times.lock().unwrap();
    if times.len() <= number {
        times.resize(number + 1, None);
    }
    times[number].get_or_insert(at);
}

impl Times {
    fn arrivals(&self) -> usize {
        self.arrived.lock().unwrap().iter().flatten().count()
    }

    /// Of all that were begun after the warm-up, shortest first.
    fn sorted(&self) -> Vec<Duration> {
        let (begun, arrived) = (self.begun.lock().unwrap(), self.arrived.lock().unwrap());
        let since = begun.iter().flatten().min().expect("something was begun").to_owned() + WARM_UP;
        let pairs = begun.iter().zip(arrived.iter()).filter_map(|(begun, arrived)| Some(((*begun)?, (*arrived)?)));
        let mut took: Vec<_> = pairs.filter(|(begun, _)| *begun >= since).map(|(begun, at)| at - begun).collect();
        took.sort_unstable();
        took
    }
}

/// All cases.
pub(crate) fn measure(servers: &Servers<'_>, asked: &Asked, progress: &Progress) -> Vec<Latency> {
    let length = WARM_UP + asked.latency;
    servers.postgres.session("postgres").execute("CREATE TABLE told (id bigint PRIMARY KEY, note text)");
    // The broker compiles itself while it is in use: the first case would pay for all.
    bare(servers.broker, "exactly_once", Some(200), WARM_UP);
    let mut all = Vec::new();
    for delivery in ["exactly_once", "at_least_once"] {
        for rate in [20, 500] {
            progress.tell(&format!("latency: {rate} commits a second, {delivery}"));
            all.push(case("a commit", Some(delivery), rate, &published(servers, delivery, rate, length)));
        }
    }
    progress.tell("latency: Kafka alone");
    let records = bare(servers.broker, "at_least_once", Some(500), length);
    all.push(case("a record of Kafka's, nothing else", None, 500, &records));
    all.push(case(
        "a Kafka transaction of two records, nothing else",
        None,
        20,
        &bare(servers.broker, "exactly_once", Some(20), length),
    ));
    let back_to_back = bare(servers.broker, "exactly_once", None, length);
    let rate = back_to_back.len() as u64 / asked.latency.as_secs().max(1);
    all.push(case("the same, one after the other", None, rate, &back_to_back));
    servers.postgres.session("postgres").execute("DROP TABLE told");
    all
}

fn case(what: &str, delivery: Option<&str>, per_second: u64, took: &[Duration]) -> Latency {
    let of = |hundredths: usize| took[(took.len() * hundredths / 100).min(took.len() - 1)].as_secs_f64() * 1e3;
    Latency {
        what: what.into(),
        delivery: delivery.map(str::to_owned),
        per_second,
        p50_ms: of(50),
        p99_ms: of(99),
        max_ms: of(100),
        counted: took.len(),
    }
}

/// Calls `each` at this rate, or as fast as it goes, until `length` has passed, with a number that counts up.
fn paced(rate: Option<u64>, length: Duration, mut each: impl FnMut(usize)) -> usize {
    let began = Instant::now();
    for number in 0.. {
        if began.elapsed() >= length {
            return number;
        }
        let due = rate.map_or(Duration::ZERO, |rate| Duration::from_micros(number as u64 * 1_000_000 / rate));
        thread::sleep(due.saturating_sub(began.elapsed()));
        each(number);
    }
    unreachable!("numbers do not end")
}

/// What commits of one row take to the consumer, by way of the program.
fn published(servers: &Servers<'_>, delivery: &str, rate: u64, length: Duration) -> Vec<Duration> {
    let Servers { postgres: server, broker } = *servers;
    let name = format!("{delivery}_{rate}");
    let text = program::config(&name, &server.url("postgres"), broker.address(), &["public.told"]);
    let config = Config::new(&text.replace("exactly_once }", &format!("{delivery} }}")));
    let mut offshoot = start(&config);
    offshoot.wait_ready(DEADLINE);
    let topic = format!("{name}.public.told");
    broker.create_topic(&topic, 1, &[]);

    let session = server.session("postgres");
    // Only what is flushed is streamed: without waiting for it, a commit leaves with the log writer's next round.
    session.execute("SET synchronous_commit = on; TRUNCATE told");
    let times = Arc::new(Times::default());
    let reader = Reading::of(broker, &topic, &times, |message| {
        let key: serde_json::Value = serde_json::from_slice(message).ok()?;
        key["id"].as_u64()
    });
    let all = paced(Some(rate), length, |number| {
        session.execute(&format!("BEGIN; INSERT INTO told VALUES ({number}, 'a note of a usual length')"));
        put(&times.begun, number, Instant::now());
        session.execute("COMMIT");
    });
    wait::until(DEADLINE, "everything to arrive", || times.arrivals() == all);
    reader.end();
    assert!(offshoot.terminate(DEADLINE).success());
    server.session("postgres").execute(&format!("SELECT pg_drop_replication_slot('offshoot_{name}')"));
    broker.delete_topic(&topic);
    times.sorted()
}

/// What a record takes to the consumer, or a transaction of two, by a producer that does nothing else.
fn bare(broker: &Broker, delivery: &str, rate: Option<u64>, length: Duration) -> Vec<Duration> {
    let topic = broker.topic("bare");
    let is_transactional = delivery == "exactly_once";
    let mut client = broker.client();
    client.set("enable.idempotence", "true").set("compression.codec", "lz4").set("linger.ms", "0");
    if is_transactional {
        client.set("transactional.id", &topic);
    }
    let producer: Arc<BaseProducer> = Arc::new(client.create().expect("the configuration is right"));
    if is_transactional {
        producer.init_transactions(DEADLINE).expect("the broker answers");
    }
    let over = Arc::new(AtomicBool::new(false));
    let poller = {
        let (producer, over) = (producer.clone(), over.clone());
        thread::spawn(move || {
            while !over.load(Relaxed) {
                producer.poll(Duration::from_millis(100));
            }
        })
    };
    let times = Arc::new(Times::default());
    let reader = Reading::of(broker, &topic, &times, |key| std::str::from_utf8(key).ok()?.parse().ok());
    let send = |number: usize, record: &str| {
        producer.send(BaseRecord::to(&topic).key(&number.to_string()).payload(record)).expect("there is room");
    };
    let all = paced(rate, length, |number| {
        put(&times.begun, number, Instant::now());
        if !is_transactional {
            return send(number, "alone");
        }
        producer.begin_transaction().expect("there is none");
        send(number, "first");
        send(number, "second");
        // The wrapper's own waits in steps of 100 ms.
        // SAFETY: the client lives for as long as the call, and an error is ours to destroy.
        let error = unsafe { rd_kafka_commit_transaction(producer.client().native_ptr(), DEADLINE.as_millis() as i32) };
        let committed = error.is_null();
        unsafe { rd_kafka_error_destroy(error) };
        assert!(committed, "the broker commits");
    });
    wait::until(DEADLINE, "everything to arrive", || times.arrivals() == all);
    reader.end();
    over.store(true, Relaxed);
    poller.join().unwrap();
    times.sorted()
}

/// A consumer of one topic that notes when each number arrives first.
struct Reading {
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reading {
    fn of(broker: &Broker, topic: &str, times: &Arc<Times>, number: fn(&[u8]) -> Option<u64>) -> Reading {
        let mut client = broker.client();
        client.set("group.id", "latency").set("enable.auto.commit", "false").set("isolation.level", "read_committed");
        let consumer: BaseConsumer = client.create().expect("the configuration is right");
        let mut partitions = TopicPartitionList::new();
        for partition in 0..broker.partitions(topic) as i32 {
            partitions.add_partition_offset(topic, partition, Offset::Beginning).expect("the offset is legal");
        }
        consumer.assign(&partitions).expect("the partitions are there");
        let (over, times) = (Arc::new(AtomicBool::new(false)), times.clone());
        let ends = over.clone();
        let thread = thread::spawn(move || {
            while !ends.load(Relaxed) {
                let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
                let now = Instant::now();
                if let Some(number) = message.key().and_then(number) {
                    put(&times.arrived, number as usize, now);
                }
            }
        });
        Reading { over, thread }
    }

    fn end(self) {
        self.over.store(true, Relaxed);
        self.thread.join().unwrap();
    }
}
