//! TicketMonster's transactions -> the domain events that Offshoot makes of them, side by side, on servers of its own.
//!
//! `make demo` builds and runs it; `make demo DEMO=--json` prints one JSON object per transaction.

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::{self, Command},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Style};
use clap::Parser;
use indicatif::{MultiProgress, ProgressBar};
use offshoot::cli::columns::{Columns, Line, cut, spaced, wrap};
use serde_json::{Value, json};

use support::{
    fixture::{self, Transaction},
    kafka::{self, Record},
    postgres::{self, Session, Version},
    program::{Config, Offshoot, START_MAX},
};

const SCHEMA: &str = include_str!("../tests/fixtures/ticketmonster/schema.sql");
const SEED: &str = include_str!("../tests/fixtures/ticketmonster/seed.sql");
const TRANSACTIONS: &str = include_str!("../tests/fixtures/ticketmonster/transactions.sql");
const EVENTS: &str = include_str!("../tests/fixtures/ticketmonster/events.txt");
const CONFIG: &str = include_str!("../config/events.yaml");

/// The topics of the config.
const TOPICS: [&str; 3] = ["ticketmonster.performance", "ticketmonster.booking", "ticketmonster.price"];

/// The name of what was there before, among the expected events.
const BEFORE: &str = "T0";

/// Each makes one event, and leaves no trace: the first record of a new producer to a new topic takes up to a second.
const FIRST: [&str; 6] = [
    "UPDATE performance SET date = date + interval '1 hour' WHERE id = 5",
    "UPDATE performance SET date = date - interval '1 hour' WHERE id = 5",
    "UPDATE ticketprice SET price = price + 1 WHERE id = 12",
    "UPDATE ticketprice SET price = price - 1 WHERE id = 12",
    "INSERT INTO booking VALUES (999, 5, 'first@acme.example', 'x', '2015-01-01')",
    "DELETE FROM booking WHERE id = 999",
];

/// How long the records of a transaction may take on a busy machine.
const RECORDS_MAX: Duration = Duration::from_secs(30);

/// Lines that one statement takes at most, and one event.
const STATEMENT_LINES_MAX: usize = 2;
const EVENT_LINES_MAX: usize = 8;

/// What there is to see, in a paragraph for each column.
const INTRODUCTION: [&str; 2] = [
    "Left: what an application does to its Postgres, a transaction at a time. Offshoot reads the database's log beside it.",
    "Right: the domain events that a Kafka consumer got for it, by config/events.yaml: what happened, the record's key, its \
     data. Time: from COMMIT to the consumer.",
];

/// TicketMonster's transactions, and the domain events that Offshoot makes of them.
#[derive(Parser)]
struct Arguments {
    /// Print one JSON object per transaction
    #[arg(long)]
    json: bool,
    /// The program; by default the one that was built beside this one
    #[arg(long, value_name = "FILE")]
    offshoot: Option<PathBuf>,
}

fn main() {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        let message = message.unwrap_or("it ended unexpectedly");
        eprintln!("demo: {message}");
    }));
    thread::spawn(stop_on_signal);
    let binary = arguments.offshoot.clone().unwrap_or_else(built_offshoot);
    if !binary.is_file() {
        panic!("there is no {}: run `make demo`, which builds it", binary.display());
    }

    let columns = Columns::of_terminal();
    if !arguments.json {
        INTRODUCTION.iter().for_each(|text| paragraph(columns, text));
        println!();
    }
    let progress = Progress::new();
    // Each takes a second or two, most of it waiting.
    let (postgres, kafka) = thread::scope(|scope| {
        let postgres = scope.spawn(|| progress.step("Postgres 17", || postgres::shared(Version::V17)));
        let kafka = scope.spawn(|| progress.step("Kafka 4.1", kafka::shared));
        (postgres.join(), kafka.join())
    });
    // What went wrong has been said.
    let (Ok(postgres), Ok(kafka)) = (postgres, kafka) else { process::exit(1) };
    let db = postgres.create_database();
    progress.step("TicketMonster's tables and rows", || db.execute(&format!("{SCHEMA};{SEED}")));
    // Made here so that the reader is there before the first record; Offshoot takes what is there as it is.
    kafka.create_topics(&TOPICS, 1, &[]);

    let config = Config::new(CONFIG);
    let mut command = Command::new(&binary);
    command.arg("run").arg("-c").arg(&config.path);
    command.env("TICKETMONSTER_URL", &db.url).env("KAFKA_BROKERS", kafka.address());
    let mut offshoot = progress.step("Offshoot", || {
        let mut offshoot = Offshoot::start(command, &config);
        offshoot.wait_ready(START_MAX);
        offshoot
    });

    let records = follow(kafka.reader(&TOPICS, START_MAX));
    let arrivals = |transaction: &str, expected: usize| {
        let mut arrived: Vec<(Instant, Record)> = Vec::new();
        while arrived.len() < expected {
            match records.recv_timeout(RECORDS_MAX) {
                Ok(record) => arrived.push(record),
                Err(_) => panic!(
                    "{transaction}: {} of {expected} records after {RECORDS_MAX:?}; Offshoot says:\n{}",
                    arrived.len(),
                    offshoot.log().join("\n")
                ),
            }
        }
        arrived
    };
    // Rows that were there before come first: `when: backfill`.
    let before = progress.step("the bookings that were there", || {
        arrivals("the bookings that were there", fixture::events(EVENTS, BEFORE).count())
    });
    let mut published = before.len();
    let there = fixture::Transaction {
        name: BEFORE.into(),
        about: "a booking that was there before Offshoot".into(),
        statements: vec!["-- nothing is done: `when: backfill` tells of it".into()],
    };
    let before = in_order(before.into_iter().map(|(_, record)| record).collect());
    progress.step("a first record in every topic", || {
        FIRST.iter().for_each(|sql| db.execute(sql));
        arrivals("the first records", FIRST.len());
    });
    let transactions = fixture::transactions(TRANSACTIONS);
    if arguments.json {
        println!("{}", as_json(&there, &before, None));
    } else {
        print(columns, &there, &before, None);
    }
    let mut latencies = Vec::new();
    for transaction in &transactions {
        let committed = run(&db, transaction);
        let arrived = arrivals(&transaction.name, fixture::events(EVENTS, &transaction.name).count());
        let latency = arrived.iter().map(|(at, _)| at.saturating_duration_since(committed)).max();
        latencies.extend(latency);
        published += arrived.len();
        let arrived = in_order(arrived.into_iter().map(|(_, record)| record).collect());
        if arguments.json {
            println!("{}", as_json(transaction, &arrived, latency));
        } else {
            print(columns, transaction, &arrived, latency);
        }
    }

    let memory = offshoot.peak_memory().expect("it runs");
    let status = offshoot.terminate(START_MAX);
    if !status.success() {
        panic!("Offshoot ended with {status}; it says:\n{}", offshoot.log().join("\n"));
    }
    latencies.sort();
    let median = latencies[latencies.len() / 2];
    if arguments.json {
        println!(
            "{}",
            json!({ "transactions": transactions.len(), "events": published,
                    "latency_p50_ms": millis(median), "memory_peak_bytes": memory })
        );
    } else {
        println!();
        let text = format!(
            "{} transactions, {published} events; from COMMIT to a consumer {:.1} ms (p50); Offshoot's memory at its peak \
             {:.1} MiB",
            transactions.len(),
            millis(median),
            memory as f64 / f64::from(1 << 20)
        );
        paragraph(columns, &text);
    }
    // The servers' end is the end of this process.
}

/// Ctrl-C and SIGTERM end the process as `main` does: with everything that it started.
fn stop_on_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had");
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).expect("a signal can be caught");
        let mut terminate = signal(SignalKind::terminate()).expect("a signal can be caught");
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    });
    process::exit(130);
}

/// The program beside `examples/demo` in the directory of what was built.
fn built_offshoot() -> PathBuf {
    let demo = env::current_exe().expect("this program has a path");
    let dir = demo.parent().and_then(|examples| examples.parent()).expect("examples are built into a directory");
    dir.join("offshoot")
}

/// What takes a while: a spinner in a terminal, a line once it is done elsewhere. On stderr, so that stdout is the result.
struct Progress {
    bars: MultiProgress,
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { bars: MultiProgress::new(), terminal: io::stderr().is_terminal() }
    }

    fn step<T>(&self, what: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let spinner = self.terminal.then(|| {
            let spinner = self.bars.add(ProgressBar::new_spinner().with_message(what));
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        let done = work();
        let line = format!("{what}: {:.1} s", start.elapsed().as_secs_f64());
        match spinner {
            Some(spinner) => spinner.finish_with_message(line),
            None => eprintln!("{line}"),
        }
        done
    }
}

/// Runs a transaction and gives the moment when its end was sent.
fn run(session: &Session, transaction: &Transaction) -> Instant {
    let (last, before) = transaction.statements.split_last().expect("it has a COMMIT");
    before.iter().for_each(|statement| session.execute(statement));
    let sent = Instant::now();
    session.execute(last);
    sent
}

/// Reads in a thread of its own, so that each record has the moment when it came.
fn follow(mut reader: kafka::Reader) -> Receiver<(Instant, Record)> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        loop {
            let Some(record) = reader.next(Duration::from_secs(1)) else { continue };
            if sender.send((Instant::now(), record)).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Puts the records of several topics into the order of their transaction.
fn in_order(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by_key(|record| header(record, "ce_sequence"));
    records
}

fn header(record: &Record, name: &str) -> String {
    let value = record.headers.iter().find(|(header, _)| header == name).and_then(|(_, value)| value.as_deref());
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

fn as_json(transaction: &Transaction, records: &[Record], latency: Option<Duration>) -> Value {
    let text = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let record = |record: &Record| {
        let headers: serde_json::Map<String, Value> =
            record.headers.iter().map(|(name, value)| (name.clone(), text(value).into())).collect();
        json!({ "topic": record.topic, "partition": record.partition, "offset": record.offset,
                "key": text(&record.key), "headers": headers, "value": record.value_json() })
    };
    json!({ "transaction": transaction.name, "about": transaction.about, "sql": transaction.statements,
            "records": records.iter().map(record).collect::<Vec<_>>(), "latency_ms": latency.map(millis) })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

/// A text over both columns.
fn paragraph(columns: Columns, text: &str) {
    for line in wrap(text, columns.width(), usize::MAX, Style::new()) {
        println!("{}", line.text);
    }
}

fn print(columns: Columns, transaction: &Transaction, records: &[Record], latency: Option<Duration>) {
    let bold = Style::new().bold();
    let took = latency.map_or(String::new(), |latency| format!(" {:.1} ms", millis(latency)));
    let heading = format!("{:<4} {}", transaction.name, transaction.about);
    let room = columns.width().saturating_sub(took.len());
    let heading = cut(&heading, room);
    println!("\n{bold}{heading:<room$}{bold:#}{took}");
    let statement = |sql: &String| wrap(sql, columns.left, STATEMENT_LINES_MAX, Style::new());
    let sql: Vec<Line> = transaction.statements.iter().flat_map(statement).collect();
    let mut events: Vec<Line> = records.iter().flat_map(|record| event(columns, record)).collect();
    if records.is_empty() {
        let rolled_back = transaction.statements.last().is_some_and(|last| last == "ROLLBACK");
        let text = if rolled_back { "rolled back: no event" } else { "no event: nothing that the config tells of" };
        events.extend(wrap(text, columns.right, 1, Style::new().dimmed()));
    }
    columns.print(&sql, &events);
    let _ = io::stdout().flush();
}

/// What happened, the record's key, what came of it and of what, and the data.
fn event(columns: Columns, record: &Record) -> Vec<Line> {
    let kind = header(record, "ce_type");
    let name = kind.trim_start_matches("com.acme.ticketmonster.");
    let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
    let cause = header(record, "ce_causationid");
    let because = if cause.is_empty() { String::new() } else { format!("  because of {cause}") };
    let color = match name {
        name if name.contains("Cancelled") => AnsiColor::Red,
        name if name.contains("Created") => AnsiColor::Green,
        _ => AnsiColor::Yellow,
    };
    let style = Style::new().bold().fg_color(Some(color.into()));
    let mut lines = wrap(&format!("{name}  key {key}{because}"), columns.right, 2, style);
    let data = format!("  {}", spaced(&String::from_utf8_lossy(record.value.as_deref().unwrap_or_default())));
    lines.extend(wrap(&data, columns.right, EVENT_LINES_MAX, Style::new()));
    lines
}
