//! Servers that stop, die, freeze and come back, and stops of our own -> a topic that tells the table's history all the
//! same.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    checker::Summary,
    support::{
        kafka::{self, Broker},
        postgres::{self, Server, Session, V17},
        program::{self, Config, Offshoot},
        wait,
    },
    workload::{self, TABLE, Workload},
};

/// For a busy machine; nothing waits for it when all is well.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// Rest of each session between two transactions.
pub(crate) const PAUSE: Duration = Duration::from_millis(30);
/// Long enough for every timeout on the way; the issue asks for it.
const KAFKA_AWAY: Duration = Duration::from_secs(60);
/// Records in flight of `limits.memory: 8MiB`, with the batch that was let through last.
pub(crate) const IN_FLIGHT_BYTES_MAX: f64 = 3.0 * 1024.0 * 1024.0;
/// What `limits.memory: 8MiB` leaves the process, librdkafka included.
const RESIDENT_BYTES_MAX: u64 = 48 << 20;

/// A database with a workload in it, a broker, and how to start the program between them.
pub(crate) struct Walk<'a> {
    url: String,
    kafka: &'a Broker,
    name: String,
    pub(crate) topic: String,
    config: Config,
    pub(crate) workload: Workload,
}

impl<'a> Walk<'a> {
    /// A workload in the database behind `url`; `name` is the pipeline's.
    pub(crate) fn new(name: &str, url: &str, kafka: &'a Broker) -> Walk<'a> {
        Self::with(name, url, kafka, "exactly_once")
    }

    /// The same with another promise.
    fn with(name: &str, url: &str, kafka: &'a Broker, delivery: &'static str) -> Walk<'a> {
        let text = program::config(name, url, kafka.address(), &[TABLE]) + "limits: { memory: 8MiB }";
        Self::through(name, url, kafka, &text.replace("exactly_once", delivery))
    }

    /// The same with a config whose way to the servers may be another than the workload's.
    pub(crate) fn through(name: &str, url: &str, kafka: &'a Broker, config: &str) -> Walk<'a> {
        Walk {
            url: url.into(),
            kafka,
            name: name.into(),
            topic: format!("{name}.{TABLE}"),
            config: Config::new(config),
            workload: Workload::create(url),
        }
    }

    /// The same in a server of its own.
    pub(crate) fn on(server: &Server, name: &str, kafka: &'a Broker) -> Walk<'a> {
        Walk::new(name, &server.url("postgres"), kafka)
    }

    fn start(&self) -> Offshoot {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.arg("run").arg("-c").arg(&self.config.path);
        Offshoot::start(command, &self.config)
    }

    /// A program that streams, under load.
    pub(crate) fn started(&mut self) -> Offshoot {
        let mut offshoot = self.start();
        offshoot.wait_ready(program::START_MAX);
        self.workload.start(fastrand::u64(..), PAUSE);
        offshoot
    }

    /// Waits until the sessions have committed so many transactions more.
    #[track_caller]
    pub(crate) fn commit(&self, transactions: u64) {
        let goal = self.workload.committed() + transactions;
        wait::until(DEADLINE, "the workload to commit", || self.workload.committed() >= goal);
    }

    /// What the slot says in a column.
    pub(crate) fn slot(&self, column: &str) -> Option<String> {
        let session = Session::connect(&self.url).ok()?;
        let name = &self.name;
        let sql = format!("SELECT ({column})::text FROM pg_replication_slots WHERE slot_name = 'offshoot_{name}'");
        session.try_text(&sql).ok().filter(|text| !text.is_empty())
    }

    pub(crate) fn confirmed(&self) -> u64 {
        self.slot("confirmed_flush_lsn - '0/0'").map_or(0, |lsn| lsn.parse().unwrap())
    }

    /// Stops the workload, lets everything arrive, stops the program, and compares topic and history.
    #[track_caller]
    pub(crate) fn settle(&mut self, mut offshoot: Offshoot, starts_before: usize) -> Summary {
        self.workload.stop();
        let end = wal_end(&Session::connect(&self.url).unwrap());
        offshoot.wait("everything to be confirmed", DEADLINE, |_| (self.confirmed() >= end).then_some(()));
        let restarts = offshoot.metric("offshoot_restarts_total").expect("it runs") as usize;
        let peak = offshoot.peak_memory().expect("it runs");
        assert!(peak < RESIDENT_BYTES_MAX, "{peak} bytes were resident");
        let status = offshoot.terminate(program::START_MAX);
        assert!(status.success(), "{status}; its log:\n{}", offshoot.log().join("\n"));
        let topic = workload::read(self.kafka, &self.topic, DEADLINE);
        let summary = self.workload.check(&topic, starts_before + 1 + restarts, &[]);
        println!("{}: {summary:?}, {restarts} restarts, peak {:.1} MiB", self.name, peak as f64 / f64::from(1 << 20));
        assert!(summary.records > 0, "the case tells of nothing");
        let config = std::fs::read_to_string(&self.config.path).unwrap();
        assert!(!config.contains("exactly_once") || summary.repeats == 0, "{} repeats", summary.repeats);
        summary
    }
}

fn wal_end(session: &Session) -> u64 {
    session.text("SELECT pg_current_wal_lsn() - '0/0'").parse().unwrap()
}

#[test]
fn postgres_restarted_under_load() {
    let server = postgres::private(V17, &[]);
    let mut walk = Walk::on(&server, "pg_restarted", kafka::shared());
    let offshoot = walk.started();
    for _ in 0..2 {
        walk.commit(200);
        let began = Instant::now();
        server.stop();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(10), "we held up the shutdown: it took {took:?}");
        server.start();
    }
    walk.commit(200);
    walk.settle(offshoot, 0);
}

#[test]
fn postgres_killed_under_load() {
    let server = postgres::private(V17, &[]);
    let mut walk = Walk::on(&server, "pg_killed", kafka::shared());
    let offshoot = walk.started();
    for _ in 0..2 {
        walk.commit(200);
        server.kill();
        server.start();
    }
    walk.commit(200);
    walk.settle(offshoot, 0);
}

#[test]
fn walsender_terminated_under_load() {
    let db = postgres::shared(V17).create_database();
    let mut walk = Walk::new(&db.name, &db.url, kafka::shared());
    let mut offshoot = walk.started();
    for _ in 0..5 {
        walk.commit(100);
        offshoot.wait_ready(DEADLINE);
        let pid = offshoot.wait("the slot to be held", DEADLINE, |_| walk.slot("active_pid"));
        db.execute(&format!("SELECT pg_terminate_backend({pid})"));
        offshoot.wait("another walsender", DEADLINE, |_| walk.slot("active_pid").filter(|other| *other != pid));
    }
    walk.settle(offshoot, 0);
}

#[test]
fn kafka_away_for_a_minute_under_load() {
    kafka_away("at_least_once");
}

#[test]
fn kafka_away_for_a_minute_under_load_repeats_nothing() {
    kafka_away("exactly_once");
}

fn kafka_away(delivery: &'static str) {
    let broker = kafka::private(&kafka::Options::default());
    // The session asks for 10 s by itself; the server's own is longer.
    let db = postgres::shared(V17).create_database();
    let mut walk = Walk::with(&db.name, &db.url, &broker, delivery);
    let mut offshoot = walk.started();
    walk.commit(200);
    offshoot.wait("records", DEADLINE, |o| (o.metric("offshoot_records_acknowledged_total")? > 0.0).then_some(()));
    let pid = walk.slot("active_pid").expect("the slot is held");

    broker.stop();
    let (mut received, mut most) = (0.0, 0.0_f64);
    // With exactly_once a transaction that Kafka does not take within its timeout, a minute too, is begun again.
    let away = if delivery == "exactly_once" { KAFKA_AWAY - Duration::from_secs(10) } else { KAFKA_AWAY };
    let _ = wait::attempt(away, || {
        assert!(offshoot.process().exited().is_none(), "it ended; its log:\n{}", offshoot.log().join("\n"));
        let in_flight = offshoot.metric("offshoot_in_flight_bytes").expect("it answers");
        assert!(in_flight < IN_FLIGHT_BYTES_MAX, "{in_flight} bytes are in flight");
        most = most.max(in_flight);
        received = offshoot.metric("offshoot_received_lsn").expect("it answers");
        assert_eq!(walk.slot("active_pid").as_ref(), Some(&pid), "the walsender has gone");
        false
    });
    assert!(most > 0.5 * IN_FLIGHT_BYTES_MAX, "the case did not fill what may be in flight: {most}");
    let behind = wal_end(&db) as f64 - received;
    assert!(behind > 0.0, "it read on without room");
    assert_eq!(offshoot.metric("offshoot_restarts_total"), Some(0.0));
    broker.start();
    walk.commit(100);
    let summary = walk.settle(offshoot, 0);
    assert_eq!(summary.repeats, 0, "an outage of kafka is waited out without sending anything again");
}

#[test]
fn kafka_frozen_and_killed_under_load() {
    let broker = kafka::private(&kafka::Options::default());
    let db = postgres::shared(V17).create_database();
    let mut walk = Walk::new(&db.name, &db.url, &broker);
    let mut offshoot = walk.started();
    walk.commit(100);
    offshoot.wait("records", DEADLINE, |o| (o.metric("offshoot_records_acknowledged_total")? > 0.0).then_some(()));
    broker.pause();
    let ended = wait::attempt(Duration::from_secs(5), || offshoot.process().exited());
    assert!(ended.is_err(), "it ended; its log:\n{}", offshoot.log().join("\n"));
    broker.resume();
    walk.commit(100);
    broker.kill();
    broker.start();
    walk.commit(100);
    walk.settle(offshoot, 0);
}

#[test]
fn kafka_away_at_the_start() {
    let broker = kafka::private(&kafka::Options::default());
    broker.stop();
    let db = postgres::shared(V17).create_database();
    let mut walk = Walk::new(&db.name, &db.url, &broker);
    let mut offshoot = walk.start();
    // Without Kafka nobody knows where to go on: no slot is made, and none is read.
    offshoot.wait_log("no answer", DEADLINE);
    assert_eq!(offshoot.get("/readyz").map(|(status, _)| status), Some(503));
    broker.start();
    offshoot.wait_ready(DEADLINE);
    walk.workload.start(fastrand::u64(..), PAUSE);
    walk.commit(50);
    walk.settle(offshoot, 0);
}

#[test]
fn postgres_away_at_the_start() {
    let server = postgres::private(V17, &[]);
    let mut walk = Walk::on(&server, "pg_away", kafka::shared());
    server.stop();
    let mut offshoot = walk.start();
    let said = offshoot.wait("/readyz", DEADLINE, |o| o.get("/readyz").filter(|(_, said)| said.contains("retrying")));
    assert_eq!(said.0, 503);
    server.start();
    offshoot.wait_ready(DEADLINE);
    walk.workload.start(fastrand::u64(..), PAUSE);
    walk.commit(50);
    walk.settle(offshoot, 0);
}

#[test]
fn the_slot_advances_while_only_others_write() {
    let server = postgres::private(V17, &[]);
    let walk = Walk::on(&server, "quiet", kafka::shared());
    let mut offshoot = walk.start();
    offshoot.wait_ready(program::START_MAX);
    let other = server.create_database();
    let others = [("another table", server.session("postgres")), ("another database", other.connect())];
    for (who, session) in others {
        session.execute("CREATE TABLE busy (n int)");
        session.execute("INSERT INTO busy SELECT generate_series(1, 1000)");
        let end = wal_end(&session);
        // A progress record for the traffic of others is written every second.
        offshoot.wait(&format!("the slot to pass {who}"), Duration::from_secs(20), |_| {
            (walk.confirmed() >= end).then_some(())
        });
    }
    assert_eq!(offshoot.metric("offshoot_records_total"), Some(0.0));
    assert!(offshoot.terminate(program::START_MAX).success());
}

#[test]
fn a_stop_in_order_repeats_nothing() {
    let db = postgres::shared(V17).create_database();
    let mut walk = Walk::new(&db.name, &db.url, kafka::shared());
    let mut offshoot = walk.started();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGTERM, libc::SIGTERM] {
        walk.commit(100);
        offshoot.process().signal(signal);
        let status = offshoot.exit(program::START_MAX);
        assert!(status.success(), "{status}; its log:\n{}", offshoot.log().join("\n"));
        assert!(offshoot.log().iter().any(|line| line.contains("everything that was read is published")));
        offshoot = walk.start();
        offshoot.wait_ready(program::START_MAX);
    }
    walk.commit(50);
    let summary = walk.settle(offshoot, 4);
    assert_eq!(summary.repeats, 0);
}

#[test]
fn a_stop_while_kafka_is_away_ends_and_says_what_is_left() {
    let broker = kafka::private(&kafka::Options::default());
    let db = postgres::shared(V17).create_database();
    let mut walk = Walk::new(&db.name, &db.url, &broker);
    let mut offshoot = walk.started();
    walk.commit(50);
    broker.stop();
    walk.commit(20);
    offshoot.wait("records in flight", DEADLINE, |o| (o.metric("offshoot_in_flight_bytes")? > 0.0).then_some(()));
    let began = Instant::now();
    let status = offshoot.terminate(Duration::from_secs(30));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(25), "it took {took:?}");
    assert!(status.success(), "{status}");
    let log = offshoot.log().join("\n");
    assert!(!log.contains("everything that was read is published"), "it was not; {log}");
    assert!(log.contains("will be sent again"), "{log}");
    broker.start();
    let mut offshoot = walk.start();
    offshoot.wait_ready(program::START_MAX);
    walk.settle(offshoot, 1);
}

#[test]
fn a_second_instance_waits_and_takes_over() {
    let db = postgres::shared(V17).create_database();
    let mut walk = Walk::new(&db.name, &db.url, kafka::shared());
    let mut first = walk.started();
    walk.commit(20);
    let text = program::config(&db.name, &db.url, walk.kafka.address(), &[TABLE]);
    let second =
        || Offshoot::run(env!("CARGO_BIN_EXE_offshoot").as_ref(), &(text.clone() + "limits: { memory: 8MiB }"));
    let mut next = second();
    let pid = walk.slot("active_pid").expect("the first holds it");
    let line = next.wait_log("another holds the slot", DEADLINE);
    assert!(line.contains(&pid), "{line}");
    assert_eq!(next.get("/readyz").map(|(status, said)| (status, said.contains("waiting"))), Some((503, true)));
    first.kill();
    let began = Instant::now();
    next.wait_ready(Duration::from_secs(12));
    println!("after kill -9 the second streams within {:.1?}", began.elapsed());
    walk.commit(20);

    // A host that has vanished: its connections are open, and it says nothing any more. Nothing is in flight, since what
    // a zombie has in flight may come late.
    walk.workload.stop();
    let end = wal_end(&db);
    next.wait("everything to be confirmed", DEADLINE, |_| (walk.confirmed() >= end).then_some(()));
    let mut third = second();
    third.wait_log("another holds the slot", DEADLINE);
    next.process().signal(libc::SIGSTOP);
    let began = Instant::now();
    third.wait_ready(Duration::from_secs(30));
    println!("after SIGSTOP the third streams within {:.1?}", began.elapsed());
    next.process().signal(libc::SIGCONT);
    next.wait_log("another holds the slot", DEADLINE);
    assert!(next.terminate(program::START_MAX).success());
    walk.settle(third, 2);
}
