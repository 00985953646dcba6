//! Sessions that write while the program, and with `exactly_once` its servers, are killed again and again, or its servers are
//! away for long -> a topic that tells the table's history.

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    checker::Death,
    outages::{IN_FLIGHT_BYTES_MAX, PAUSE, Walk},
    support::{
        kafka::{self, Broker},
        postgres::{self, Server, Session, V17},
        program::{self, Config, Offshoot},
        wait,
    },
    workload::{self, TABLE, Workload},
};

/// Lives in CI; `make soak LIVES=1000` for a night.
const LIVES: usize = 30;
/// The same for the weaker promise.
const LIVES_AT_LEAST_ONCE: usize = 10;
/// How long a life lasts from when it streams; every so many die on the way there, within as long.
const LIFE: std::ops::Range<u64> = 50..1500;
const LIVES_PER_YOUNG: usize = 5;
const LINGER_MS: u32 = 40;
/// Every so many lives end in good order.
const LIVES_PER_STOP: usize = 7;
/// Every so many die as soon as records are seen in flight, the others at any moment.
const LIVES_PER_AIMED: usize = 2;
const AIM_MAX: Duration = Duration::from_secs(10);
/// With servers of our own, one life of so many sees Postgres die, and another one Kafka.
const LIVES_PER_SERVERS: usize = 9;
/// How long servers are away in CI; `make soak AWAY=600` for what a night may bring.
const AWAY_S: u64 = 3;
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn kill_9_while_sessions_write_loses_nothing_and_repeats_nothing() {
    soak("exactly_once", LIVES);
}

#[test]
fn kill_9_while_sessions_write_loses_nothing_and_repeats_only_whole_transactions() {
    soak("at_least_once", LIVES_AT_LEAST_ONCE);
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn soak(delivery: &str, lives: usize) {
    let exactly_once = delivery == "exactly_once";
    let lives = number("OFFSHOOT_TEST_LIVES").map_or(lives, |lives| lives as usize);
    let seed = number("OFFSHOOT_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}, {lives} lives, {delivery}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let began = Instant::now();

    let (own_server, own_broker);
    let (server, kafka): (&Server, &Broker) = if exactly_once {
        (own_server, own_broker) = (postgres::private(V17, &[]), kafka::private(&kafka::Options::default()));
        (&own_server, &own_broker)
    } else {
        (postgres::shared(V17), kafka::shared())
    };
    let db = server.create_database();
    let mut workload = Workload::create(&db.url);
    let text = program::config(&db.name, &db.url, kafka.address(), &[TABLE]);
    // A broker on the same machine acknowledges within a millisecond or two, and most deaths would fall between two
    // acknowledgements. Records that linger are in flight for as long as on a slow network.
    let lingering = format!("properties: {{ linger.ms: {LINGER_MS} }}, delivery: {delivery}");
    let config = Config::new(&text.replace("delivery: exactly_once", &lingering));
    let topic = format!("{}.{TABLE}", db.name);
    let slot = format!("offshoot_{}", db.name);
    let confirmed = format!("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = '{slot}'");
    // The server may be down, or may have been.
    let ask = |sql: &str| Session::connect(&db.url).ok()?.try_text(sql).ok()?.parse::<u64>().ok();
    let confirmed = || ask(&confirmed).unwrap_or(0);
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.arg("run").arg("-c").arg(&config.path);
        Offshoot::start(command, &config)
    };
    // The first life makes the slot: what is written before there is one is not promised.
    let mut life = start();
    life.wait_ready(program::START_MAX);
    assert!(life.terminate(program::START_MAX).success());
    // Many lives write less each, so that all of it can be compared in memory at the end.
    workload.start(seed, Duration::from_millis(20) * lives.div_ceil(60) as u32);

    // How the server that is dead comes back.
    let mut away: Option<Box<dyn FnOnce() + '_>> = None;
    let (mut deaths, mut stops, mut servers) = (Vec::new(), 0, Servers { postgres: 0, kafka: 0, survived: 0 });
    for number in 1..=lives {
        if number % 50 == 0 {
            println!("{delivery}: life {number} after {:.0?}", began.elapsed());
        }
        let mut life = start();
        if let Some(back) = away.take() {
            back();
        }
        if number % LIVES_PER_YOUNG != 0 {
            life.wait_ready(DEADLINE);
        }
        let lasts = Duration::from_millis(rng.u64(LIFE));
        if let Ok(status) = wait::attempt(lasts, || life.process().exited()) {
            panic!("it ended by itself with {status}; its log:\n{}", life.log().join("\n"));
        }
        let in_flight = |life: &Offshoot| life.metric("offshoot_in_flight_bytes").is_some_and(|bytes| bytes > 0.0);
        let aim = |life: &Offshoot| {
            if number % LIVES_PER_AIMED == 0 {
                wait::attempt(AIM_MAX, || in_flight(life)).is_ok()
            } else {
                in_flight(life)
            }
        };
        match number % LIVES_PER_SERVERS {
            2 if exactly_once => {
                aim(&life);
                server.kill();
                servers.postgres += 1;
                away = Some(Box::new(|| server.start()));
            }
            5 if exactly_once => {
                aim(&life);
                kafka.kill();
                servers.kafka += 1;
                away = Some(Box::new(|| kafka.start()));
            }
            _ => {}
        }
        // Half of the lives see the server come back, and go on by themselves; else the next one begins without it.
        if let Some(back) = away.take() {
            if number % LIVES_PER_STOP != 0 && rng.bool() {
                away = Some(back);
            } else {
                back();
                servers.survived += 1;
                life.wait_ready(DEADLINE);
                let committed = |life: &Offshoot| life.metric("offshoot_commits_total");
                let before = committed(&life);
                life.wait("it to go on", DEADLINE, |life| (committed(life)? > before?).then_some(()));
            }
        }
        if number % LIVES_PER_STOP == 0 {
            let status = life.terminate(program::START_MAX);
            assert!(status.success(), "{status}; its log:\n{}", life.log().join("\n"));
            stops += 1;
            continue;
        }
        let in_flight = aim(&life);
        life.kill();
        // With transactions offsets count more than records; what was in flight the program has said.
        let ends = if exactly_once { Vec::new() } else { kafka.ends(&topic) };
        deaths.push(Death { ends, confirmed: confirmed(), in_flight });
    }
    if let Some(back) = away.take() {
        back();
    }
    workload.stop();

    let end = ask("SELECT pg_current_wal_lsn() - '0/0'").expect("it runs");
    let left = end.saturating_sub(confirmed());
    let mut life = start();
    // After many lives on a slow machine much of it may be left.
    let settled = wait::attempt(DEADLINE * lives.div_ceil(20) as u32, || {
        assert!(life.process().exited().is_none(), "it ended; its log:\n{}", life.log().join("\n"));
        if confirmed() >= end { Ok(()) } else { Err(life.get("/metrics").map(|(_, metrics)| metrics)) }
    });
    if let Err(metrics) = settled {
        let log = life.log().join("\n");
        panic!("of {left} bytes {} are not confirmed; its log:\n{log}\n{metrics}", end.saturating_sub(confirmed()));
    }
    println!("{delivery}: at the end {left} bytes of log were left");
    assert!(life.terminate(program::START_MAX).success());

    let topic_read = workload::read(kafka, &topic, DEADLINE * lives.div_ceil(20) as u32);
    let starts = lives + 2;
    let summary = workload.check(&topic_read, starts, &deaths);
    println!(
        "{delivery}, seed {seed}: {starts} lives, {stops} stopped in order, {} killed: {} with records unacknowledged, \
         {} with records in the topic and not confirmed, {} within a transaction; postgres was killed {} times, kafka {}, \
         {} of these while it lived on; {} transactions, {} records, {} of them repeats; {:.0?}",
        deaths.len(),
        summary.unacknowledged,
        summary.unconfirmed,
        summary.halved,
        servers.postgres,
        servers.kafka,
        servers.survived,
        summary.transactions,
        summary.records,
        summary.repeats,
        began.elapsed(),
    );
    kafka.delete_topic(&topic);
    assert!(!exactly_once || lives < LIVES || servers.postgres > 0 && servers.kafka > 0, "no server died");
    assert!(!exactly_once || summary.repeats == 0, "{} repeats", summary.repeats);
    // A Kafka transaction that is acknowledged and not committed counts as nothing here, and is most of a death.
    let least = if exactly_once { 1 } else { deaths.len() / 3 };
    assert!(summary.unacknowledged >= least, "too few lives died with records that were not acknowledged");
}

/// How often a server died, and how often a life went on after it.
struct Servers {
    postgres: usize,
    kafka: usize,
    survived: usize,
}

#[test]
fn kafka_away_for_as_long_as_it_takes() {
    away(&[Step::KafkaLeaves, Step::Away, Step::KafkaReturns]);
}

#[test]
fn postgres_away_for_as_long_as_it_takes() {
    away(&[Step::PostgresLeaves, Step::Away, Step::PostgresReturns]);
}

#[test]
fn kafka_and_then_postgres_away_for_as_long_as_it_takes() {
    use Step::*;
    away(&[KafkaLeaves, Noticed, PostgresLeaves, Away, KafkaReturns, Noticed, PostgresReturns]);
}

#[test]
fn postgres_and_then_kafka_away_for_as_long_as_it_takes() {
    use Step::*;
    away(&[PostgresLeaves, Noticed, KafkaLeaves, Away, PostgresReturns, Noticed, KafkaReturns]);
}

#[derive(Clone, Copy)]
enum Step {
    KafkaLeaves,
    KafkaReturns,
    PostgresLeaves,
    PostgresReturns,
    /// For a moment.
    Noticed,
    /// For as long as is asked for.
    Away,
}

/// Servers that leave and return, while sessions write as long as they can.
fn away(steps: &[Step]) {
    let away = Duration::from_secs(number("OFFSHOOT_TEST_AWAY").unwrap_or(AWAY_S));
    let (server, broker) = (postgres::private(V17, &[]), kafka::private(&kafka::Options::default()));
    let mut walk = Walk::on(&server, "away", &broker);
    let mut offshoot = walk.started();
    walk.commit(100);
    // As much is written in a long absence as in a short one, so that it can be compared.
    walk.workload.stop();
    walk.workload.start(fastrand::u64(..), PAUSE.max(away / 1000));
    offshoot.wait("records", DEADLINE, |o| (o.metric("offshoot_commits_total")? > 1.0).then_some(()));
    for step in steps {
        match step {
            Step::KafkaLeaves => broker.stop(),
            Step::KafkaReturns => broker.start(),
            Step::PostgresLeaves => server.stop(),
            Step::PostgresReturns => server.start(),
            Step::Noticed => lives_on(&mut offshoot, Duration::from_secs(1)),
            Step::Away => lives_on(&mut offshoot, away),
        }
    }
    let began = Instant::now();
    offshoot.wait_ready(DEADLINE);
    println!("away for {away:?}: streams {:.1?} after all are back", began.elapsed());
    walk.commit(50);
    walk.settle(offshoot, 0);
}

/// It neither ends nor grows.
fn lives_on(offshoot: &mut Offshoot, lasts: Duration) {
    let _ = wait::attempt(lasts, || {
        assert!(offshoot.process().exited().is_none(), "it ended; its log:\n{}", offshoot.log().join("\n"));
        let in_flight = offshoot.metric("offshoot_in_flight_bytes").expect("it answers");
        assert!(in_flight < IN_FLIGHT_BYTES_MAX, "{in_flight} bytes are in flight");
        assert_eq!(offshoot.get("/livez").map(|(status, _)| status), Some(200));
        false
    });
}
