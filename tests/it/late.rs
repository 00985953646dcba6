//! Kafka that is slow, or takes away what we write to -> what is published once all the same, or words that say what to do.

use std::time::{Duration, Instant};

use crate::{
    outages::{DEADLINE, IN_FLIGHT_BYTES_MAX, Walk},
    pipe::{Pipe, ends, now, stops},
    support::{
        kafka,
        postgres::{self, Db, V17},
        wait,
    },
};

/// The broker may say at once that a topic is gone; or the client library waits for it to come back, for as long as this.
const NOTICED_SOON: &str = "properties: { transaction.timeout.ms: 5000 }";

fn database() -> Db {
    let db = postgres::shared(V17).create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, note text)");
    db
}

/// The id by which Kafka knows a pipeline's producer.
fn client(name: &str) -> String {
    format!("offshoot-{name}")
}

#[test]
fn a_quota_of_kafka_slows_down_and_loses_nothing() {
    let kafka = kafka::shared();
    let db = postgres::shared(V17).create_database();
    let mut walk = Walk::new(&db.name, &db.url, kafka);
    let mut offshoot = walk.started();
    walk.commit(50);
    let pid = walk.slot("active_pid").expect("the slot is held");
    kafka.set_quota(&client(&db.name), Some(50_000));
    offshoot.wait("what is in flight to fill up", DEADLINE, |o| {
        (o.metric("offshoot_in_flight_bytes")? > 0.5 * IN_FLIGHT_BYTES_MAX).then_some(())
    });
    // Longer than the walsender waits for us.
    let _ = wait::attempt(Duration::from_secs(12), || {
        assert!(offshoot.process().exited().is_none(), "it ended; its log:\n{}", offshoot.log().join("\n"));
        let in_flight = offshoot.metric("offshoot_in_flight_bytes").expect("it answers");
        assert!(in_flight < IN_FLIGHT_BYTES_MAX, "{in_flight} bytes are in flight");
        assert_eq!(walk.slot("active_pid").as_ref(), Some(&pid), "the walsender has gone");
        false
    });
    kafka.set_quota(&client(&db.name), None);
    walk.settle(offshoot, 0);
}

#[test]
fn a_transaction_that_always_takes_too_long_ends_it_with_words() {
    const ROWS: usize = 500;
    let kafka = kafka::shared();
    let db = database();
    let mut pipe = Pipe::of(&db);
    // Small batches, so that Kafka is seen to be at work all the time.
    let properties = |timeout| format!("properties: {{ transaction.timeout.ms: {timeout}, batch.size: 20000 }}");
    pipe.kafka = properties(4000);
    pipe.prepare();
    // What was not used in the last ten seconds may be used at once.
    kafka.set_quota(&client(&pipe.name), Some(40_000));
    // Text that does not compress.
    let note = "SELECT string_agg(md5(i || '.' || g), '') FROM generate_series(1, 64) g";
    db.execute(&format!("INSERT INTO t SELECT i, ({note}) FROM generate_series(1, {ROWS}) i"));
    let words = ["again and again failed to", "transaction.timeout.ms is 4 s", "lower limits.transaction_events"];
    let text = pipe.ends(4, &words);
    println!("{}", text.lines().filter(|line| line.contains("transaction.timeout.ms")).collect::<Vec<_>>().join("\n"));
    assert_eq!(kafka.read_all(&pipe.topic("t")).len(), 0, "half a transaction is to be seen");
    pipe.kafka = properties(60_000);
    pipe.arrives("t", &(1..=ROWS as i64).collect::<Vec<_>>());
    assert_eq!(kafka.read_all(&pipe.topic("t")).len(), ROWS);
}

#[test]
fn a_broker_that_is_frozen_for_longer_than_a_transaction_may_take() {
    const ROWS: usize = 60_000;
    let broker = kafka::private(&kafka::Options::default());
    let db = database();
    let mut pipe = Pipe::of(&db);
    pipe.brokers = broker.address().into();
    pipe.kafka = "properties: { transaction.timeout.ms: 8000 }".into();
    let mut offshoot = pipe.ready();
    db.execute(&format!("INSERT INTO t SELECT i, 'note' FROM generate_series(1, {ROWS}) i"));
    let acknowledged = "offshoot_records_acknowledged_total";
    offshoot.wait("some of it", DEADLINE, |o| (o.metric(acknowledged)? > 5_000.0).then_some(()));
    broker.pause();
    assert!(offshoot.metric(acknowledged).expect("it runs") < ROWS as f64, "it was frozen too late");
    offshoot.wait_log("failed to publish", DEADLINE);
    broker.resume();
    let began = Instant::now();
    let end = now(&db);
    db.execute("INSERT INTO t VALUES (0)");
    offshoot.wait("all of it", DEADLINE, |_| pipe.confirmed_past(&db, &end).then_some(()));
    assert!(offshoot.metric("offshoot_restarts_total") >= Some(1.0));
    println!("all is there {:.1?} after the broker woke up", began.elapsed());
    stops(offshoot);
    assert_eq!(broker.read_all(&pipe.topic("t")).len(), ROWS + 1);
}

#[test]
fn a_topic_that_is_deleted_while_it_streams_is_made_again() {
    let kafka = kafka::shared();
    let db = database();
    let mut pipe = Pipe::of(&db);
    let topic = pipe.topic("t");
    pipe.kafka = NOTICED_SOON.into();
    let mut offshoot = pipe.ready();
    db.execute("INSERT INTO t VALUES (1)");
    offshoot.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka, "t") == [1]).then_some(()));
    kafka.delete_topic(&topic);
    wait::until(DEADLINE, "the topic to go", || kafka.partitions(&topic) == 0);
    db.execute("INSERT INTO t VALUES (2)");
    let began = Instant::now();
    offshoot.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka, "t") == [2]).then_some(()));
    println!("a deleted topic is there again after {:.1?}", began.elapsed());
    db.execute("INSERT INTO t VALUES (3)");
    offshoot.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka, "t") == [2, 3]).then_some(()));
    let log = offshoot.log().join("\n");
    assert!(!log.contains("the producer has ended"), "it does not say why: {log}");
    stops(offshoot);
    assert_eq!(kafka.read_all(&topic).len(), 2, "each once");

    // Where topics are somebody else's to make, so is this one.
    pipe.kafka = format!("{NOTICED_SOON}\ntopics: {{ create: false }}");
    let offshoot = pipe.ready();
    kafka.delete_topic(&topic);
    wait::until(DEADLINE, "the topic to go", || kafka.partitions(&topic) == 0);
    db.execute("INSERT INTO t VALUES (4)");
    ends(offshoot, 4, &[&format!("find topic {topic}"), "kafka-topics", "--create"]);
    kafka.create_topic(&topic, 1, &[]);
    pipe.arrives("t", &[4]);
}

#[test]
fn a_progress_topic_that_is_deleted_while_it_streams_stops_it_until_somebody_says_where_to_go_on() {
    let kafka = kafka::shared();
    let db = database();
    let mut pipe = Pipe::of(&db);
    pipe.kafka = NOTICED_SOON.into();
    let mut offshoot = pipe.ready();
    db.execute("INSERT INTO t VALUES (1)");
    let end = now(&db);
    db.execute("CREATE TABLE that_moves_the_log_on ()");
    offshoot.wait("it to be confirmed", DEADLINE, |_| pipe.confirmed_past(&db, &end).then_some(()));
    let progress = format!("offshoot.{}.progress", pipe.name);
    kafka.delete_topic(&progress);
    wait::until(DEADLINE, "the topic to go", || kafka.partitions(&progress) == 0);
    db.execute("INSERT INTO t VALUES (2)");
    let began = Instant::now();
    let log = ends(offshoot, 5, &["kafka has no progress record of this pipeline", "offshoot resume --from-slot"]);
    assert!(!log.contains("the producer has ended"), "it does not say why: {log}");
    println!("a deleted progress topic is noticed after {:.1?}", began.elapsed());
    assert_eq!(pipe.ids(kafka, "t"), [1], "nothing is published that no record covers");
    let (code, text) = pipe.command(&["resume", "--from-slot", "--yes"]);
    assert_eq!(code, 0, "{text}");
    db.execute("INSERT INTO t VALUES (3)");
    pipe.arrives("t", &[1, 2, 3]);
    assert_eq!(kafka.read_all(&pipe.topic("t")).len(), 3, "each once");
}
