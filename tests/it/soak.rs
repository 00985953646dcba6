//! Sessions that write while the program is killed again and again -> a topic that tells the table's history.

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    checker::Death,
    support::{
        kafka,
        postgres::{self, V17},
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
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn kill_9_while_sessions_write_loses_nothing_and_repeats_nothing() {
    soak("exactly_once", LIVES);
}

#[test]
fn kill_9_while_sessions_write_loses_nothing_and_repeats_only_whole_transactions() {
    soak("at_least_once", LIVES_AT_LEAST_ONCE);
}

fn soak(delivery: &str, lives: usize) {
    let exactly_once = delivery == "exactly_once";
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let lives = number("OFFSHOOT_TEST_LIVES").map_or(lives, |lives| lives as usize);
    let seed = number("OFFSHOOT_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}, {lives} lives, {delivery}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let began = Instant::now();

    let db = postgres::shared(V17).create_database();
    let kafka = kafka::shared();
    let mut workload = Workload::create(&db.url);
    let text = program::config(&db.name, &db.url, kafka.address(), &[TABLE]);
    // A broker on the same machine acknowledges within a millisecond or two, and most deaths would fall between two
    // acknowledgements. Records that linger are in flight for as long as on a slow network.
    let lingering = format!("properties: {{ linger.ms: {LINGER_MS} }}, delivery: {delivery}");
    let config = Config::new(&text.replace("delivery: exactly_once", &lingering));
    let topic = format!("{}.{TABLE}", db.name);
    let slot = format!("offshoot_{}", db.name);
    let confirmed = format!("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let confirmed = || db.text(&confirmed).parse::<u64>().unwrap_or(0);
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.arg("run").arg("-c").arg(&config.path);
        Offshoot::start(command, &config)
    };
    // The first life makes the slot: what is written before there is one is not promised.
    let mut life = start();
    life.wait_ready(program::START_MAX);
    assert!(life.terminate(program::START_MAX).success());
    workload.start(seed, Duration::from_millis(20));

    let (mut deaths, mut stops) = (Vec::new(), 0);
    for number in 1..=lives {
        let mut life = start();
        if number % LIVES_PER_YOUNG != 0 {
            life.wait_ready(DEADLINE);
        }
        let lasts = Duration::from_millis(rng.u64(LIFE));
        if let Ok(status) = wait::attempt(lasts, || life.process().exited()) {
            panic!("it ended by itself with {status}; its log:\n{}", life.log().join("\n"));
        }
        if number % LIVES_PER_STOP == 0 {
            let status = life.terminate(program::START_MAX);
            assert!(status.success(), "{status}; its log:\n{}", life.log().join("\n"));
            stops += 1;
            continue;
        }
        let in_flight = || life.metric("offshoot_in_flight_bytes").is_some_and(|bytes| bytes > 0.0);
        let in_flight = if number % LIVES_PER_AIMED == 0 {
            wait::attempt(AIM_MAX, || in_flight().then_some(())).is_ok()
        } else {
            in_flight()
        };
        life.kill();
        // With transactions offsets count more than records; what was in flight the program has said.
        let ends = if exactly_once { Vec::new() } else { kafka.ends(&topic) };
        deaths.push(Death { ends, confirmed: confirmed(), in_flight });
    }
    workload.stop();

    let end: u64 = db.text("SELECT pg_current_wal_lsn() - '0/0'").parse().unwrap();
    let mut life = start();
    life.wait("everything to be confirmed", DEADLINE, |_| (confirmed() >= end).then_some(()));
    assert!(life.terminate(program::START_MAX).success());

    let topic_read = workload::read(kafka, &topic, DEADLINE);
    let starts = lives + 2;
    let summary = workload.check(&topic_read, starts, &deaths);
    println!(
        "{delivery}, seed {seed}: {starts} lives, {stops} stopped in order, {} killed: {} with records unacknowledged, \
         {} with records in the topic and not confirmed, {} within a transaction; {} transactions, {} records, {} of them \
         repeats; {:.0?}",
        deaths.len(),
        summary.unacknowledged,
        summary.unconfirmed,
        summary.halved,
        summary.transactions,
        summary.records,
        summary.repeats,
        began.elapsed(),
    );
    kafka.delete_topic(&topic);
    assert!(!exactly_once || summary.repeats == 0, "{} repeats", summary.repeats);
    // A Kafka transaction that is acknowledged and not committed counts as nothing here, and is most of a death.
    let least = if exactly_once { 1 } else { deaths.len() / 3 };
    assert!(summary.unacknowledged >= least, "too few lives died with records that were not acknowledged");
}
