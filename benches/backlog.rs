//! A backlog of 500,000 rows -> how fast Offshoot publishes it, beside a reader that does nothing with the stream.
//!
//!     make bench                     SHAPE=single|ten|one: rows to a transaction; ROUNDS=3; ROWS=500000
//!     cargo bench --bench backlog -- --json
//!
//! Every reader has a slot of its own from before the backlog was written, and the readers take turns in one run, since
//! what two runs say of one machine differs more than what is measured. Rates are of the time from the first row to the
//! last: for Offshoot by the broker's clock, as it appended the records; for the plain reader by ours. The plain reader
//! is Offshoot's own replication session, whose payloads are counted and thrown away: what there is to lose behind it.

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use offshoot::postgres::{
    self as source, Wire,
    frame::{Frame, Status},
};
use serde::Serialize;
use support::{
    kafka::{self, Broker},
    postgres::{self, Server, V17},
    program::{self, Config, Offshoot},
    wait,
};

const DEADLINE: Duration = Duration::from_secs(600);
const ASK_INTERVAL: Duration = Duration::from_millis(250);
const TABLE: &str = "public.seat";

/// One reader's turn.
#[derive(Clone, Debug, Serialize)]
struct Turn {
    reader: &'static str,
    rows: u64,
    seconds: f64,
    rows_per_second: f64,
    /// User and system time of the process, or of the plain reader's thread.
    cpu_seconds: f64,
    cpu_microseconds_per_row: f64,
    peak_mib: Option<f64>,
}

impl Turn {
    fn new(reader: &'static str, rows: u64, took: Duration, cpu: Duration, peak: Option<u64>) -> Turn {
        let (seconds, cpu_seconds) = (took.as_secs_f64(), cpu.as_secs_f64());
        Turn {
            reader,
            rows,
            seconds,
            rows_per_second: rows as f64 / seconds,
            cpu_seconds,
            cpu_microseconds_per_row: cpu_seconds * 1e6 / rows as f64,
            peak_mib: peak.map(|bytes| bytes as f64 / f64::from(1 << 20)),
        }
    }
}

#[derive(Serialize)]
struct Report {
    shape: String,
    rows: u64,
    rows_per_transaction: u64,
    rounds: Vec<Vec<Turn>>,
    /// Of the medians, Offshoot's to the plain reader's.
    rate_ratio: f64,
    cpu_ratio: f64,
}

fn main() {
    let number = |name: &str, usual: u64| env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let shape = env::var("SHAPE").unwrap_or_else(|_| "ten".into());
    let (rows, rounds) = (number("ROWS", 500_000), number("ROUNDS", 3));
    let per_transaction = match shape.as_str() {
        "single" => rows,
        "ten" => 10,
        "one" => 1,
        other => panic!("SHAPE is single, ten or one, not {other}"),
    };
    let json = env::args().any(|argument| argument == "--json");

    let server = postgres::private(V17, &[("synchronous_commit", "off"), ("shared_buffers", "256MB")]);
    let broker = kafka::private(&kafka::Options { heap: "1g", optimize: true, ..kafka::Options::default() });
    server.session("postgres").execute(
        "CREATE TABLE seat (id bigint PRIMARY KEY, section text, row int, number int, price numeric(8,2), sold boolean,
         held_until timestamptz, note text)",
    );
    let config = |name: String| {
        let text = program::config(&name, &server.url("postgres"), broker.address(), &[TABLE]);
        let log_append = "topics: { properties: { message.timestamp.type: LogAppendTime } }";
        (name, Config::new(&text.replace("delivery:", &format!("{log_append}, delivery:"))))
    };
    // The first is not counted: it warms the broker and the disk up.
    let turns: Vec<_> =
        (0..=rounds).map(|round| (config(format!("plain_{round}")), config(format!("offshoot_{round}")))).collect();
    for (_, config) in turns.iter().flat_map(|(plain, ours)| [plain, ours]) {
        let mut offshoot = start(config);
        offshoot.wait_ready(program::START_MAX);
        assert!(offshoot.terminate(program::START_MAX).success());
    }
    write_backlog(&server, rows, per_transaction);

    let mut measured = Vec::new();
    for (round, ((plain_name, plain), (name, ours))) in turns.iter().enumerate() {
        let turn = vec![
            read_plainly(plain, rows, rows / per_transaction),
            publish(ours, &broker, &format!("{name}.{TABLE}"), rows),
        ];
        for name in [plain_name, name] {
            server.session("postgres").execute(&format!("SELECT pg_drop_replication_slot('offshoot_{name}')"));
        }
        if round > 0 {
            measured.push(turn);
        }
    }
    let median = |at: usize, of: fn(&Turn) -> f64| {
        let mut all: Vec<f64> = measured.iter().map(|round: &Vec<Turn>| of(&round[at])).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let ratio = |of: fn(&Turn) -> f64| median(1, of) / median(0, of);
    let report = Report {
        shape,
        rows,
        rows_per_transaction: per_transaction,
        rate_ratio: ratio(|turn| turn.rows_per_second),
        cpu_ratio: ratio(|turn| turn.cpu_seconds),
        rounds: measured,
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&report).expect("numbers and texts"));
    } else {
        print(&report);
    }
}

fn print(report: &Report) {
    println!("{} rows, {} to a transaction", report.rows, report.rows_per_transaction);
    println!(
        "{:<6} {:<9} {:>9} {:>8} {:>8} {:>10} {:>9}",
        "round", "reader", "rows/s", "seconds", "cpu s", "cpu us/row", "peak MiB"
    );
    for (round, turns) in report.rounds.iter().enumerate() {
        for turn in turns {
            println!(
                "{:<6} {:<9} {:>9.0} {:>8.2} {:>8.2} {:>10.2} {:>9}",
                round + 1,
                turn.reader,
                turn.rows_per_second,
                turn.seconds,
                turn.cpu_seconds,
                turn.cpu_microseconds_per_row,
                turn.peak_mib.map_or("-".into(), |peak| format!("{peak:.1}")),
            );
        }
    }
    println!("of the medians, offshoot : plain: rate {:.2}, processor {:.2}", report.rate_ratio, report.cpu_ratio);
}

fn start(config: &Config) -> Offshoot {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
    command.arg("run").arg("-c").arg(&config.path);
    Offshoot::start(command, config)
}

fn write_backlog(server: &Server, rows: u64, per_transaction: u64) {
    server.session("postgres").execute(&format!(
        "DO $$ BEGIN
            FOR t IN 0 .. {} LOOP
                INSERT INTO seat SELECT i, 'section ' || i % 40, i % 50, i % 97, i % 300 + 0.5, i % 3 = 0, now(),
                    'a note of some length that makes the row as long as rows are'
                FROM generate_series(t * {per_transaction}::bigint, (t + 1) * {per_transaction}::bigint - 1) i;
                COMMIT;
            END LOOP;
        END $$",
        rows / per_transaction - 1
    ));
}

/// Our own session; what comes is counted and thrown away.
fn read_plainly(config: &Config, rows: u64, transactions: u64) -> Turn {
    let config = offshoot::config::Config::load(&config.path, &[]).expect("it was loaded before");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had");
    let cpu_before = thread_cpu();
    let took = runtime.block_on(async {
        let warned = source::Warned::default();
        let start = source::Start::<offshoot::source::SourceError> {
            warned: &warned,
            admissions: &source::Admissions::default(),
            waiting: &|| {},
            accept: &|_| Ok(()),
            permit: &|_, _| Box::pin(async { Ok(()) }),
        };
        let (mut session, prepared) = source::connect(&config, &start).await.expect("the slot is free");
        let (mut inserts, mut commits, mut began, mut told) = (0, 0, None, Instant::now());
        while commits < transactions {
            session.readable().await.expect("the server stays");
            while let Some(payload) = session.payload().expect("the server stays") {
                let Ok(Frame::Wal { message, .. }) = Frame::decode(payload) else { continue };
                match message.first() {
                    Some(b'I') => inserts += 1,
                    Some(b'C') => commits += 1,
                    _ => {}
                }
                began.get_or_insert_with(Instant::now);
            }
            if told.elapsed() > Duration::from_secs(3) {
                let status = Status { confirmed: prepared.confirmed, now: 0 };
                session.write(&status.encode()).await.expect("the server stays");
                told = Instant::now();
            }
        }
        assert_eq!(inserts, rows);
        let took = began.expect("there were rows").elapsed();
        session.close().await;
        took
    });
    Turn::new("plain", rows, took, thread_cpu() - cpu_before, None)
}

/// The program, by the broker's clock.
fn publish(config: &Config, broker: &Broker, topic: &str, rows: u64) -> Turn {
    let mut offshoot = start(config);
    offshoot.wait("all records", DEADLINE, |offshoot| {
        // Asked a hundred times a second, its answers would be a part of what is measured.
        let _ = wait::attempt(ASK_INTERVAL, || false);
        (offshoot.metric("offshoot_records_acknowledged_total")? >= rows as f64).then_some(())
    });
    let cpu = offshoot.process().cpu_time().expect("it runs");
    let peak = offshoot.peak_memory();
    assert!(offshoot.terminate(program::START_MAX).success());
    let (mut first, mut last, mut records) = (i64::MAX, 0, 0);
    broker.reader(&[topic], DEADLINE).read_to_end(DEADLINE, |record| {
        (first, last) = (first.min(record.timestamp), last.max(record.timestamp));
        records += 1;
    });
    let ends = broker.ends(topic);
    assert_eq!((records, ends.iter().sum::<i64>() as u64), (rows, rows), "read, and what the broker has: {ends:?}");
    broker.delete_topic(topic);
    Turn::new("offshoot", rows, Duration::from_millis((last - first) as u64), cpu, peak)
}

/// Processor time of this thread, in user and system mode together.
fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one timespec, which is ours.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
