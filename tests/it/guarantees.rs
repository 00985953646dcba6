//! What is promised when something goes wrong, each by doing it to real servers: docs/guarantees.md names these tests.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    producer::{BaseProducer, BaseRecord, Producer},
};

use crate::{
    network,
    pipe::{DEADLINE, Pipe, now, says, stops},
    support::{
        kafka::{self, Broker},
        postgres::{self, Db, Version::V17},
        program::{self, Offshoot},
        wait,
    },
    workload::{self, TABLE, Workload},
};

fn database() -> Db {
    let db = postgres::shared(V17).create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, note text)");
    db
}

fn progress_topic(pipe: &Pipe) -> String {
    format!("offshoot.{}.progress", pipe.name)
}

/// The last progress record.
fn progress(pipe: &Pipe, kafka: &Broker) -> serde_json::Value {
    kafka.read_all(&progress_topic(pipe)).last().expect("there is a record").value_json()
}

/// How many records a topic holds that are not committed, or not yet.
fn uncommitted(kafka: &Broker, topic: &str) -> usize {
    let mut client = kafka.client();
    client.set("group.id", "reader").set("isolation.level", "read_uncommitted").set("enable.partition.eof", "true");
    client.set("fetch.wait.max.ms", "10");
    let consumer: BaseConsumer = client.create().unwrap();
    let mut partitions = TopicPartitionList::new();
    let count = kafka.partitions(topic);
    for partition in 0..count as i32 {
        partitions.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&partitions).unwrap();
    let (mut records, mut ended) = (0, 0);
    let end = Instant::now() + DEADLINE;
    while ended < count {
        assert!(Instant::now() < end, "the topic does not end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(_)) => records += 1,
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
            _ => {}
        }
    }
    records - kafka.read_all(topic).len()
}

// A way on after a gap is explicit, never silent.

#[test]
fn a_slot_of_which_kafka_knows_nothing_is_refused_until_somebody_says_where_to_go_on() {
    let db = database();
    let pipe = Pipe::of(&db);
    db.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", pipe.slot()));
    // A slot that was made before its publication knows nothing of it.
    db.execute(&format!("CREATE PUBLICATION {} FOR TABLE t", pipe.slot()));
    pipe.ends(5, &["kafka has no progress record of this pipeline", "offshoot resume --from-slot"]);
    let (code, text) = pipe.command(&["resume", "--from-slot", "--yes"]);
    assert_eq!(code, 0, "{text}");
    says(&text, &["in epoch 1", "is not known"]);
    // The publication is younger than the slot's start, and was there before anything was written.
    db.execute("INSERT INTO t VALUES (1)");
    pipe.arrives("t", &[1]);
}

#[test]
fn a_slot_that_is_gone_is_a_gap_that_resume_names() {
    let db = database();
    let pipe = Pipe::of(&db);
    db.execute("INSERT INTO t VALUES (0)");
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    pipe.arrives("t", &[1]);
    db.execute(&format!("SELECT pg_drop_replication_slot('{}')", pipe.slot()));
    db.execute("INSERT INTO t VALUES (2)");
    pipe.ends(5, &["is not there any more", "offshoot resume --new-slot"]);
    let (code, text) = pipe.command(&["resume", "--from-slot", "--yes"]);
    assert_eq!(code, 2, "{text}");
    says(&text, &["there is no slot", "--new-slot"]);
    let (code, text) = pipe.command(&["resume", "--new-slot"]);
    assert_eq!(code, 2, "nobody is there to be asked: {text}");
    let (code, text) = pipe.command(&["resume", "--new-slot", "--yes"]);
    assert_eq!(code, 0, "{text}");
    says(&text, &["is not published", "in epoch 2"]);
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (3)");
    pipe.arrives("t", &[1, 3]);
    assert_eq!(progress(&pipe, kafka::shared())["epoch"], 2);
}

#[test]
fn a_slot_that_was_moved_on_by_hand_is_a_gap_of_so_many_bytes() {
    let db = database();
    let pipe = Pipe::of(&db);
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    db.execute(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", pipe.slot()));
    let text = pipe.ends(5, &["bytes of the log", "offshoot resume --from-slot"]);
    assert!(!text.contains(" 0 bytes"), "{text}");
    let (code, text) = pipe.command(&["resume", "--from-slot", "--yes"]);
    assert_eq!(code, 0, "{text}");
    db.execute("INSERT INTO t VALUES (2)");
    pipe.arrives("t", &[2]);
}

#[test]
fn a_progress_topic_that_was_deleted_is_refused_and_resume_repeats_from_the_slot() {
    let db = database();
    let pipe = Pipe::of(&db);
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    pipe.arrives("t", &[1]);
    kafka::shared().delete_topic(&progress_topic(&pipe));
    wait::until(DEADLINE, "the topic to go", || kafka::shared().partitions(&progress_topic(&pipe)) == 0);
    pipe.ends(5, &["kafka has no progress record of this pipeline", "offshoot resume"]);
    let (code, text) = pipe.command(&["resume", "--from-slot", "--epoch", "7", "--yes"]);
    assert_eq!(code, 0, "{text}");
    db.execute("INSERT INTO t VALUES (2)");
    pipe.arrives("t", &[1, 2]);
    assert_eq!(progress(&pipe, kafka::shared())["epoch"], 7);
}

#[test]
fn a_position_that_resume_is_told_is_taken_to_the_transaction() {
    let db = database();
    let pipe = Pipe::of(&db);
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    let after_first = now(&db);
    db.execute("INSERT INTO t VALUES (2)");
    let (code, text) = pipe.command(&["resume", "--at", "0/1", "--yes"]);
    assert_eq!(code, 2, "{text}");
    says(&text, &["the log before that is gone"]);
    let (code, text) = pipe.command(&["resume", "--at", "FFFF/0", "--yes"]);
    assert_eq!(code, 2, "{text}");
    says(&text, &["is beyond it"]);
    let (code, text) = pipe.command(&["resume", "--at", &after_first, "--yes"]);
    assert_eq!(code, 0, "{text}");
    pipe.arrives("t", &[2]);
}

#[test]
fn a_start_that_was_held_up_before_it_took_the_slot_goes_on_where_another_has_come() {
    let db = database();
    let pipe = Pipe::of(&db);
    pipe.prepare();
    let (proxy, url) = network::before_postgres(&db);
    proxy.hold("START_REPLICATION");
    let mut late = Pipe { url, ..pipe.clone() }.run();
    late.wait("it to be about to take the slot", DEADLINE, |_| proxy.holds().then_some(()));
    // It has seen the end of the log. Another goes on from there, and ends.
    db.execute("INSERT INTO t VALUES (1)");
    pipe.arrives("t", &[1]);
    proxy.let_go();
    late.wait_ready(DEADLINE);
    db.execute("INSERT INTO t VALUES (2)");
    late.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1, 2]).then_some(()));
    stops(late);
    assert_eq!(kafka::shared().read_all(&pipe.topic("t")).len(), 2, "each once");
}

#[test]
fn a_slot_that_goes_before_anything_was_published_is_made_again_and_that_is_said() {
    let db = database();
    let pipe = Pipe::of(&db);
    pipe.prepare();
    // A record as it stands before the first commit, and the slot of that start.
    let (code, text) = pipe.command(&["drop", "--yes"]);
    assert_eq!(code, 0, "{text}");
    let slot = pipe.slot();
    db.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    db.execute("INSERT INTO t VALUES (1)");
    db.execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    let mut offshoot = pipe.ready();
    offshoot.wait_log("has published nothing, and has no slot: it begins with what is committed from now on", DEADLINE);
    stops(offshoot);
    // From here on the slot is one that events came from.
    db.execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    pipe.ends(5, &["is not there any more"]);
}

/// What a reader of committed records sees as the end may be older than the last commit: somebody's transaction is open.
#[test]
fn progress_behind_an_open_transaction_is_waited_for() {
    let db = database();
    let kafka = kafka::shared();
    let pipe = Pipe::of(&db);
    let mut first = pipe.ready();
    db.execute("INSERT INTO t VALUES (1)");
    first.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka, "t") == [1]).then_some(()));
    let mut client = kafka.client();
    client.set("transactional.id", format!("{}.other", pipe.name));
    let other: BaseProducer = client.create().unwrap();
    other.init_transactions(DEADLINE).unwrap();
    other.begin_transaction().unwrap();
    let copy = serde_json::to_vec(&progress(&pipe, kafka)).unwrap();
    other.send(BaseRecord::to(&progress_topic(&pipe)).key("progress").payload(&copy)).unwrap();
    other.flush(DEADLINE).unwrap();
    db.execute("INSERT INTO t VALUES (2)");
    first.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka, "t") == [1, 2]).then_some(()));
    first.kill();
    let mut second = pipe.run();
    second.wait_log("waits for an open transaction to be given up", DEADLINE);
    assert_eq!(second.get("/readyz").map(|(status, _)| status), Some(503));
    other.abort_transaction(DEADLINE).unwrap();
    second.wait_ready(DEADLINE);
    db.execute("INSERT INTO t VALUES (3)");
    second.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka, "t") == [1, 2, 3]).then_some(()));
    stops(second);
    assert_eq!(kafka.read_all(&pipe.topic("t")).len(), 3, "each once");
}

#[test]
fn another_database_cluster_is_refused_before_anybody_is_fenced_off() {
    let db = database();
    let mut pipe = Pipe::of(&db);
    let mut here = pipe.ready();
    let elsewhere = postgres::shared(postgres::Version::V16).create_database();
    elsewhere.execute("CREATE TABLE t (id int PRIMARY KEY, note text)");
    let url = std::mem::replace(&mut pipe.url, elsewhere.url.clone());
    pipe.ends(5, &["that is a position of database cluster", "offshoot resume --from-slot"]);
    assert_eq!(elsewhere.text("SELECT count(*) FROM pg_replication_slots"), "0", "nothing was made there");
    pipe.url = url;
    db.execute("INSERT INTO t VALUES (1)");
    here.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1]).then_some(()));
    assert_eq!(here.metric("offshoot_restarts_total"), Some(0.0), "it was fenced off");
    stops(here);
}

#[test]
fn a_progress_record_of_another_format_stops_with_words() {
    let db = database();
    let pipe = Pipe::of(&db);
    pipe.prepare();
    kafka::shared().produce(&progress_topic(&pipe), Some(b"progress"), Some(br#"{"format":3,"shape":"unknown"}"#));
    pipe.ends(4, &["its format is 3, this program reads 1 to 2"]);
    let (code, text) = pipe.command(&["resume", "--from-slot", "--yes"]);
    assert_eq!(code, 4, "{text}");
}

#[test]
fn after_a_drop_it_begins_anew_and_that_is_no_gap() {
    let db = database();
    let pipe = Pipe::of(&db);
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    let (code, text) = pipe.command(&["drop", "--yes"]);
    assert_eq!(code, 0, "{text}");
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (2)");
    pipe.arrives("t", &[2]);
}

// A way past poison.

#[test]
fn what_comes_before_a_record_that_kafka_refuses_is_published_and_skip_goes_past_it() {
    let db = database();
    let mut pipe = Pipe::of(&db);
    pipe.kafka = "topics: { partitions: 2, properties: { max.message.bytes: 20000 } }".into();
    pipe.prepare();
    // Words that do not compress.
    let large = "SELECT 3, string_agg(md5(random()::text), '') FROM generate_series(1, 2000)";
    for sql in ["VALUES (1)", "VALUES (2)", large, "VALUES (4)"] {
        db.execute(&format!("INSERT INTO t {sql}"));
    }
    let text = pipe.ends(4, &["publish a record of public.t", "offshoot skip --lsn "]);
    assert_eq!(pipe.ids(kafka::shared(), "t"), [1, 2]);
    let lsn = text.split("offshoot skip --lsn ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let (code, said) = pipe.command(&["skip", "--lsn", "0/1", "--yes"]);
    assert_eq!(code, 2, "{said}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("skipped.jsonl");
    let (code, said) = pipe.command(&["skip", "--lsn", &lsn, "--yes", "--file", file.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    let saved = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<serde_json::Value> = saved.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines[0]["kind"].as_str(), lines[0]["commit"].as_str()), (Some("B"), Some(lsn.as_str())));
    assert!(lines.iter().any(|line| line["new"][0] == "3"), "{saved}");
    assert_eq!(lines.last().unwrap()["kind"], "C");
    let skipped = &progress(&pipe, kafka::shared())["skipped"];
    assert_eq!(skipped["commit"], lsn.as_str());
    assert!(skipped["by"].as_str().unwrap().contains('@') && skipped["at"].as_i64().unwrap() > 0);
    pipe.arrives("t", &[1, 2, 4]);
    assert_eq!(kafka::shared().read_all(&pipe.topic("t")).len(), 3, "each is there once");
}

// Whole or not at all, and once.

#[test]
fn a_transaction_that_is_half_sent_when_it_dies_is_seen_once_and_whole() {
    const ROWS: usize = 300_000;
    let db = database();
    let kafka = kafka::shared();
    let pipe = Pipe::of(&db);
    let mut offshoot = pipe.ready();
    db.execute(&format!("INSERT INTO t SELECT i, 'note' FROM generate_series(1, {ROWS}) i"));
    offshoot
        .wait("half of it", DEADLINE, |o| (o.metric("offshoot_records_acknowledged_total")? > 5_000.0).then_some(()));
    offshoot.kill();
    let topic = pipe.topic("t");
    let hidden = uncommitted(kafka, &topic);
    assert!((1..ROWS).contains(&hidden), "{hidden}: it died too early or too late");
    assert_eq!(kafka.read_all(&topic).len(), 0, "half a transaction is to be seen");
    let mut offshoot = pipe.ready();
    offshoot.wait("all of it", DEADLINE, |o| {
        (o.metric("offshoot_records_acknowledged_total")? as usize == ROWS).then_some(())
    });
    stops(offshoot);
    assert_eq!(kafka.read_all(&topic).len(), ROWS);
    kafka.delete_topic(&topic);
}

#[test]
fn a_transaction_above_the_limit_is_split_and_marked_and_goes_on_where_it_was() {
    const ROWS: usize = 200_000;
    let db = database();
    db.execute("CREATE TABLE other (id int PRIMARY KEY)");
    let kafka = kafka::shared();
    let mut pipe = Pipe::of(&db);
    pipe.rest = "limits: { transaction_events: 5000 }".into();
    let mut offshoot = pipe.ready();
    db.execute(&format!("INSERT INTO t SELECT i, 'note' FROM generate_series(1, {ROWS}) i"));
    offshoot.wait("some parts", DEADLINE, |o| (o.metric("offshoot_commits_total")? > 4.0).then_some(()));
    offshoot.kill();
    let topic = pipe.topic("t");
    let before = kafka.read_all(&topic).len();
    assert!((1..ROWS).contains(&before), "{before}: it died too early or too late");
    let partial = progress(&pipe, kafka)["reached"]["end"]["partial"].clone();
    assert_eq!(partial["index"].as_u64(), Some(before as u64));
    // Another config could count its changes otherwise.
    let mut other = pipe.clone();
    other.changes = "except: [public.other]".into();
    other.ends(5, &["were published by another config", "offshoot resume --from-slot"]);
    let offshoot = pipe.ready();
    wait::until(DEADLINE, "the rest", || progress(&pipe, kafka)["reached"]["end"]["partial"].is_null());
    stops(offshoot);
    let records = kafka.read_all(&topic);
    let mut ids: Vec<i64> = records.iter().map(|record| record.key_json()["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=ROWS as i64).collect::<Vec<_>>(), "each once");
    let marked = |record: &kafka::Record| record.headers == [("offshoot-split".to_owned(), Some(b"true".to_vec()))];
    assert!(records.iter().all(marked));
    kafka.delete_topic(&topic);
}

#[test]
fn at_least_once_goes_on_from_its_progress_and_finds_the_same_gaps() {
    let db = database();
    let mut pipe = Pipe::of(&db);
    pipe.delivery = "at_least_once";
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    pipe.arrives("t", &[1]);
    let end = progress(&pipe, kafka::shared())["reached"]["end"]["end"].as_str().unwrap().to_owned();
    let slot = pipe.slot();
    let confirmed =
        db.text(&format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"));
    assert_eq!(end, confirmed, "nothing is confirmed that no record covers");
    db.execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    pipe.ends(5, &["is not there any more", "offshoot resume --new-slot"]);
}

/// Two instances that take over from each other, however the one before ended, while sessions write.
#[test]
fn two_instances_swap_and_each_change_is_seen_once() {
    let swaps = std::env::var("OFFSHOOT_TEST_SWAPS").map_or(10, |swaps| swaps.parse().expect("a number"));
    let db = postgres::shared(V17).create_database();
    let kafka = kafka::shared();
    let mut workload = Workload::create(&db.url);
    let text = program::config(&db.name, &db.url, kafka.address(), &[TABLE]);
    let start = || Offshoot::run(env!("CARGO_BIN_EXE_offshoot").as_ref(), &text);
    let mut active = start();
    active.wait_ready(program::START_MAX);
    workload.start(7, Duration::from_millis(20));
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for swap in 0..swaps {
        let mut standby = start();
        standby.wait_log("another holds the slot", DEADLINE);
        assert_eq!(standby.get("/readyz").map(|(status, _)| status), Some(503));
        let goal = workload.committed() + 20;
        wait::until(DEADLINE, "the workload to commit", || workload.committed() >= goal);
        let began = Instant::now();
        let how = match swap % 10 {
            9 => {
                active.process().signal(libc::SIGSTOP);
                "frozen"
            }
            3 | 6 => {
                active.process().signal(libc::SIGTERM);
                "stopped"
            }
            _ => {
                active.kill();
                "killed"
            }
        };
        standby.wait_ready(DEADLINE);
        times.entry(how).or_default().push(began.elapsed());
        let before = std::mem::replace(&mut active, standby);
        if how == "frozen" {
            // It wakes up with a transaction in its hands, and must not publish it.
            before_wakes(before);
        }
    }
    workload.stop();
    let end: u64 = db.text("SELECT pg_current_wal_lsn() - '0/0'").parse().unwrap();
    let confirmed = format!(
        "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = 'offshoot_{}'",
        db.name
    );
    active.wait("everything to be confirmed", DEADLINE, |_| {
        (db.text(&confirmed).parse::<u64>().unwrap() >= end).then_some(())
    });
    stops(active);
    let topic = workload::read(kafka, &format!("{}.{TABLE}", db.name), DEADLINE);
    let summary = workload.check(&topic, 1, &[]);
    assert_eq!(summary.repeats, 0);
    for (how, mut times) in times {
        times.sort();
        println!(
            "{how}: {} takeovers, p50 {:.0?}, max {:.0?}",
            times.len(),
            times[times.len() / 2],
            times[times.len() - 1]
        );
    }
    println!("{swaps} swaps: {summary:?}");
}

fn before_wakes(mut before: Offshoot) {
    // It has waited once before, as a standby.
    let waits = |o: &Offshoot| o.log().iter().filter(|line| line.contains("another holds the slot")).count();
    let waited = waits(&before);
    before.process().signal(libc::SIGCONT);
    before.wait("it to wait as a standby", DEADLINE, |o| (waits(o) > waited).then_some(()));
    // Else it would be the next to take over.
    stops(before);
}

#[test]
fn a_start_that_is_fenced_off_waits_as_a_standby() {
    let db = database();
    let pipe = Pipe::of(&db);
    let mut active = pipe.ready();
    db.execute("INSERT INTO t VALUES (1)");
    active.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1]).then_some(()));
    // Somebody with our transactional id, though not with our slot.
    let mut other = kafka::shared().client();
    other.set("transactional.id", format!("offshoot.{}", pipe.name));
    let producer: rdkafka::producer::BaseProducer = other.create().unwrap();
    rdkafka::producer::Producer::init_transactions(&producer, DEADLINE).unwrap();
    db.execute("INSERT INTO t VALUES (2)");
    active.wait("another start", DEADLINE, |o| (o.metric("offshoot_restarts_total")? >= 1.0).then_some(()));
    active.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1, 2]).then_some(()));
    says(&active.log().join("\n"), &["another instance has taken over"]);
    stops(active);
    assert_eq!(kafka::shared().read_all(&pipe.topic("t")).len(), 2);
}
