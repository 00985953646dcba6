//! Backlogs of 500,000 row changes -> how fast Offshoot publishes them, beside a reader that does nothing with the stream.
//!
//!     make bench                     SHAPES="ten one"; ROUNDS=3; ROWS=500000
//!     cargo bench --bench backlog -- --json
//!
//! Every reader has a slot of its own from before the backlog was written, and the readers take turns in one run, since
//! what two runs say of one machine differs more than what is measured. Rates are of the time from the first row to the
//! last: for Offshoot by the broker's clock, as it appended the records; for the plain reader by ours. The plain reader
//! is Offshoot's own replication session, whose payloads are counted and thrown away: what there is to lose behind it.

#[path = "peers/debezium.rs"]
mod debezium;
#[path = "backlog/shapes.rs"]
mod shapes;
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
use shapes::{Shape, shape};
use support::{
    kafka::{self, Broker},
    postgres::{self, Server, V17},
    program::{self, Config, Offshoot},
    wait,
};

const DEADLINE: Duration = Duration::from_secs(600);
const ASK_INTERVAL: Duration = Duration::from_millis(250);

/// Who reads a backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Plain,
    Changes(&'static str),
    Events,
    Debezium,
}

/// With `PEERS=1` the last one too.
const READERS: [Reader; 5] = [
    Reader::Plain,
    Reader::Changes("at_least_once"),
    Reader::Changes("exactly_once"),
    Reader::Events,
    Reader::Debezium,
];

fn readers() -> &'static [Reader] {
    if env::var_os("PEERS").is_some() { &READERS } else { &READERS[..4] }
}

impl Reader {
    fn name(self) -> &'static str {
        match self {
            Reader::Plain => "plain",
            Reader::Changes("at_least_once") => "changes, at least once",
            Reader::Changes(_) => "changes, exactly once",
            Reader::Events => "events, exactly once",
            Reader::Debezium => "Debezium, at least once",
        }
    }
}

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
    shape: &'static str,
    about: &'static str,
    rows: u64,
    rounds: Vec<Vec<Turn>>,
}

impl Report {
    fn median(&self, reader: usize, of: fn(&Turn) -> f64) -> f64 {
        let mut all: Vec<f64> = self.rounds.iter().map(|round| of(&round[reader])).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }

    /// A line per reader, of the medians.
    fn print(&self) {
        println!("\n### {}: {}, {} rounds\n", self.shape, self.about, self.rounds.len());
        println!("| reader | rows/s | of plain | CPU us/row | peak MiB |\n|---|---|---|---|---|");
        let plain = self.median(0, |turn| turn.rows_per_second);
        for (at, reader) in readers().iter().enumerate() {
            let rate = self.median(at, |turn| turn.rows_per_second);
            let peak = self.rounds.iter().filter_map(|round| round[at].peak_mib).reduce(f64::max);
            println!(
                "| {} | {rate:.0} | {:.2} | {:.2} | {} |",
                reader.name(),
                rate / plain,
                self.median(at, |turn| turn.cpu_microseconds_per_row),
                peak.map_or("-".into(), |peak| format!("{peak:.1}")),
            );
        }
    }
}

fn main() {
    let number = |name: &str, usual: u64| env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let asked = env::var("SHAPES").unwrap_or_else(|_| "ten one single booking".into());
    let (rows, rounds) = (number("ROWS", 500_000), number("ROUNDS", 3));
    let shapes: Vec<_> = asked.split_whitespace().map(shape).collect();
    let json = env::args().any(|argument| argument == "--json");
    if readers().contains(&Reader::Debezium) {
        for (of, settings) in debezium::SETTINGS {
            let settings: Vec<_> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
            eprintln!("Debezium's {of}: {}", settings.join(", "));
        }
    }

    let settings = [
        ("synchronous_commit", "off"),
        ("shared_buffers", "256MB"),
        ("max_replication_slots", "60"),
        ("max_wal_senders", "60"),
    ];
    let server = postgres::private(V17, &settings);
    let broker = kafka::private(&kafka::Options { heap: "1g", optimize: true, ..kafka::Options::default() });
    let reports: Vec<_> = shapes
        .into_iter()
        .map(|shape| {
            let report = measure(shape, &server, &broker, if shape.name == "large" { rows / 25 } else { rows }, rounds);
            if !json {
                report.print();
            }
            report
        })
        .collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&reports).expect("numbers and texts"));
    }
}

/// A pipeline with a slot of its own.
struct Pipeline<'a> {
    reader: Reader,
    /// In the program's place.
    debezium: Option<debezium::Debezium<'a>>,
    name: String,
    config: Config,
}

fn measure(shape: &'static Shape, server: &Server, broker: &Broker, rows: u64, rounds: u64) -> Report {
    let db = server.create_database();
    db.execute(shape.schema);
    let tables: Vec<_> = shape.tables.iter().map(|table| format!("public.{table}")).collect();
    let tables: Vec<_> = tables.iter().map(String::as_str).collect();
    let pipeline = |round: u64, (at, reader): (usize, &Reader)| {
        let name = format!("{}_{round}_{at}", shape.name);
        let delivery = if let Reader::Changes(delivery) = reader { delivery } else { "exactly_once" };
        let topics = "topics: { properties: { message.timestamp.type: LogAppendTime } }";
        let text = program::config(&name, &db.url, broker.address(), &tables);
        let text = text.replace("delivery: exactly_once", &format!("{topics}, delivery: {delivery}"));
        let (ends, changes) = text.split_once("changes:").expect("it has changes");
        let ways_out = match reader {
            Reader::Events => shape.events.replace("NAME", &name),
            _ => format!("changes:{changes}"),
        };
        let debezium = || debezium::Debezium::prepare(server, &db.name, broker, &name, &tables);
        let debezium = (*reader == Reader::Debezium).then(debezium);
        Pipeline { reader: *reader, debezium, config: Config::new(&format!("{ends}{ways_out}\n")), name }
    };
    // The first round is not counted: it warms the broker and the disk up.
    let turns: Vec<Vec<Pipeline<'_>>> = (0..=rounds)
        .map(|round| readers().iter().enumerate().map(|reader| pipeline(round, reader)).collect())
        .collect();
    for pipeline in turns.iter().flatten().filter(|pipeline| pipeline.debezium.is_none()) {
        let mut offshoot = start(&pipeline.config);
        offshoot.wait_ready(program::START_MAX);
        assert!(offshoot.terminate(program::START_MAX).success());
    }
    let per_transaction = if shape.per_transaction == 0 { rows } else { shape.per_transaction };
    let transactions = rows / per_transaction;
    db.execute(&format!(
        "DO $$ DECLARE n bigint := {per_transaction}; BEGIN FOR t IN 0 .. {} LOOP {}; COMMIT; END LOOP; END $$",
        transactions - 1,
        shape.write
    ));
    let mut measured = Vec::new();
    for (round, pipelines) in turns.iter().enumerate() {
        let turn = pipelines.iter().map(|pipeline| {
            if let Some(debezium) = &pipeline.debezium {
                return drain(debezium, rows);
            }
            let turn = match pipeline.reader {
                Reader::Debezium => unreachable!("it has had its turn"),
                Reader::Plain => read_plainly(&pipeline.config, rows, transactions),
                Reader::Changes(_) => {
                    let topics: Vec<_> = tables.iter().map(|table| format!("{}.{table}", pipeline.name)).collect();
                    publish(pipeline, broker, &topics, rows, rows)
                }
                Reader::Events => {
                    let topic = format!("{}.{}", pipeline.name, shape.tables[0]);
                    publish(pipeline, broker, &[topic], rows, rows / shape.per_event)
                }
            };
            db.execute(&format!("SELECT pg_drop_replication_slot('offshoot_{}')", pipeline.name));
            turn
        });
        let turn: Vec<_> = turn.collect();
        if round > 0 {
            measured.push(turn);
        }
    }
    Report { shape: shape.name, about: shape.about, rows, rounds: measured }
}

fn start(config: &Config) -> Offshoot {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
    command.arg("run").arg("-c").arg(&config.path);
    Offshoot::start(command, config)
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
            accept: &|_, _| Ok(()),
            permit: &|_, _| Box::pin(async { Ok(()) }),
        };
        let (mut session, prepared) = source::connect(&config, &start).await.expect("the slot is free");
        let (mut changes, mut commits, mut began, mut told) = (0, 0, None, Instant::now());
        while commits < transactions {
            session.readable().await.expect("the server stays");
            while let Some(payload) = session.payload().expect("the server stays") {
                let Ok(Frame::Wal { message, .. }) = Frame::decode(payload) else { continue };
                match message.first() {
                    Some(b'I' | b'U' | b'D') => changes += 1,
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
        assert_eq!(changes, rows);
        let took = began.expect("there were rows").elapsed();
        session.close().await;
        took
    });
    Turn::new(Reader::Plain.name(), rows, took, thread_cpu() - cpu_before, None)
}

/// The program, by the broker's clock.
fn publish(pipeline: &Pipeline, broker: &Broker, topics: &[String], rows: u64, records: u64) -> Turn {
    let mut offshoot = start(&pipeline.config);
    offshoot.wait("all records", DEADLINE, |offshoot| {
        // Asked a hundred times a second, its answers would be a part of what is measured.
        let _ = wait::attempt(ASK_INTERVAL, || false);
        (offshoot.metric("offshoot_records_acknowledged_total")? >= records as f64).then_some(())
    });
    let cpu = offshoot.process().cpu_time().expect("it runs");
    let peak = offshoot.peak_memory();
    assert!(offshoot.terminate(program::START_MAX).success());
    let (mut first, mut last, mut read) = (i64::MAX, 0, 0);
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    broker.reader(&topics, DEADLINE).read_to_end(DEADLINE, |record| {
        (first, last) = (first.min(record.timestamp), last.max(record.timestamp));
        read += 1;
    });
    assert_eq!(read, records, "records of {}", pipeline.name);
    topics.iter().for_each(|topic| broker.delete_topic(topic));
    Turn::new(pipeline.reader.name(), rows, Duration::from_millis((last - first).max(1) as u64), cpu, peak)
}

/// Debezium, by the broker's clock, without its start.
fn drain(debezium: &debezium::Debezium<'_>, rows: u64) -> Turn {
    let drained = debezium.drain(rows, DEADLINE);
    let [start_up, cpu] = [drained.start_up, drained.start_up_cpu].map(|time| time.as_secs_f64());
    eprintln!("Debezium's start: {start_up:.1} s, {cpu:.1} s of processor time, which are not counted");
    let took = Duration::from_millis((drained.last_ms - drained.first_ms).max(1) as u64);
    let peak = (drained.peak_mib * f64::from(1 << 20)) as u64;
    Turn::new(Reader::Debezium.name(), rows, took, drained.cpu, Some(peak))
}

/// Processor time of this thread, in user and system mode together.
fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one timespec, which is ours.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
