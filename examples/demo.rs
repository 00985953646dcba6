//! TicketMonster's transactions -> the records that Offshoot makes of them, side by side, on servers of its own.
//!
//! `make demo` builds and runs it; `make demo DEMO=--json` prints one JSON object per transaction.

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::{
    collections::HashMap,
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
use serde_json::{Map, Value, json};

use support::{
    kafka::{self, Record},
    postgres::{self, Session, Version},
    program::{Config, Offshoot, START_MAX},
};

const SCHEMA: &str = include_str!("../tests/fixtures/ticketmonster/schema.sql");
const SEED: &str = include_str!("../tests/fixtures/ticketmonster/seed.sql");
const TRANSACTIONS: &str = include_str!("../tests/fixtures/ticketmonster/transactions.sql");
const CONFIG: &str = include_str!("../config/ticketmonster.yaml");

/// The tables that the config names.
const TABLES: [&str; 8] =
    ["booking", "ticket", "performance", "appearance", "ticketprice", "event", "venue", "section"];

/// How long the records of a transaction may take on a busy machine.
const RECORDS_MAX: Duration = Duration::from_secs(30);

/// Lines that one statement or one record takes at most.
const LINES_MAX: usize = 2;

/// What there is to see, in a paragraph for each column.
const INTRODUCTION: [&str; 2] = [
    "Left: what an application does to its Postgres, a transaction at a time. Offshoot reads the database's log beside it.",
    "Right: the records that a Kafka consumer got for it: c created, u updated, d deleted; the table, whose topic is \
     ticketmonster.public.<table>; the key; what the row holds, or what has changed. Time: from COMMIT to the consumer.",
];

/// TicketMonster's transactions, and the Kafka records that Offshoot makes of them.
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

    let mut page = Page::new();
    if !arguments.json {
        INTRODUCTION.iter().for_each(|paragraph| page.paragraph(paragraph));
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
    let topics = TABLES.map(|table| format!("ticketmonster.public.{table}"));
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    // Made here so that the reader is there before the first record; Offshoot takes what is there as it is.
    kafka.create_topics(&topics, 1, &[]);

    let config = Config::new(CONFIG);
    let mut command = Command::new(&binary);
    command.arg("run").arg("-c").arg(&config.path);
    command.env("TICKETMONSTER_URL", &db.url).env("KAFKA_BROKERS", kafka.address());
    let mut offshoot = progress.step("Offshoot", || {
        let mut offshoot = Offshoot::start(command, &config);
        offshoot.wait_ready(START_MAX);
        offshoot
    });

    let records = follow(kafka.reader(&topics, START_MAX));
    // What the log holds of each transaction, read by a slot beside Offshoot's: so we know how many records to wait for.
    db.execute("SELECT pg_create_logical_replication_slot('demo', 'pgoutput')");
    let arrivals = |transaction: &str| {
        let expected = expected_records(&db);
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
    // The first record of a new producer to a new topic takes up to a second. Besides, the page learns each row's state,
    // so that it can tell what an update has changed.
    progress.step("a first record of every row", || {
        TABLES.iter().for_each(|table| db.execute(&format!("UPDATE {table} SET id = id")));
        arrivals("the first records").iter().for_each(|(_, record)| page.learn(record));
    });
    let transactions = transactions(TRANSACTIONS);
    let (mut latencies, mut published) = (Vec::new(), 0);
    for transaction in &transactions {
        let committed = run(&db, transaction);
        let arrived = arrivals(&transaction.name);
        let latency = arrived.iter().map(|(at, _)| at.saturating_duration_since(committed)).max();
        latencies.extend(latency);
        published += arrived.len();
        let arrived = in_order(arrived.into_iter().map(|(_, record)| record).collect());
        if arguments.json {
            println!("{}", as_json(transaction, &arrived, latency));
        } else {
            page.print(transaction, &arrived, latency);
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
            json!({ "transactions": transactions.len(), "records": published,
                    "latency_p50_ms": millis(median), "memory_peak_bytes": memory })
        );
    } else {
        println!();
        page.paragraph(&format!(
            "{} transactions, {published} records; from COMMIT to a consumer {:.1} ms (p50); Offshoot's memory at its peak \
             {:.1} MiB",
            transactions.len(),
            millis(median),
            memory as f64 / f64::from(1 << 20)
        ));
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

/// A transaction of the fixture.
struct Transaction {
    /// T1 and so on; two under one name are told apart by a letter.
    name: String,
    /// What it is in the business.
    about: String,
    /// From BEGIN to COMMIT or ROLLBACK.
    statements: Vec<String>,
}

/// Splits the fixture at its `-- T1  about  -> expected events` lines, and these parts at their COMMITs and ROLLBACKs.
fn transactions(fixture: &str) -> Vec<Transaction> {
    let mut transactions: Vec<Transaction> = Vec::new();
    for part in fixture.split("\n-- T").skip(1) {
        let (heading, sql) = part.split_once('\n').expect("a heading is followed by SQL");
        let (number, about) = heading.split_once(' ').expect("a heading is a number and a sentence");
        let about = about.split("  ->").next().unwrap_or_default().trim().trim_end_matches('.');
        let mut of_part = vec![Vec::new()];
        for statement in statements(sql) {
            let ends = statement == "COMMIT" || statement == "ROLLBACK";
            of_part.last_mut().expect("it has one").push(statement);
            if ends {
                of_part.push(Vec::new());
            }
        }
        of_part.pop();
        let single = of_part.len() == 1;
        for (letter, statements) in ('a'..).zip(of_part) {
            let name = if single { format!("T{number}") } else { format!("T{number}{letter}") };
            transactions.push(Transaction { name, about: about.into(), statements });
        }
    }
    transactions
}

/// SQL -> its statements; a semicolon in quotes ends none. The fixture has neither dollar quotes nor comments in SQL.
fn statements(sql: &str) -> Vec<String> {
    let mut quoted = false;
    let parts = sql.split(|c| {
        quoted ^= c == '\'';
        c == ';' && !quoted
    });
    let statements = parts.map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    statements.filter(|statement| !statement.is_empty()).collect()
}

/// Runs a transaction and gives the moment when its end was sent.
fn run(session: &Session, transaction: &Transaction) -> Instant {
    let (last, before) = transaction.statements.split_last().expect("it has a COMMIT");
    before.iter().for_each(|statement| session.execute(statement));
    let sent = Instant::now();
    session.execute(last);
    sent
}

/// How many records the transactions since the last call make: a row's change one, its deletion a tombstone more.
fn expected_records(session: &Session) -> usize {
    let sql = "SELECT coalesce(sum(CASE get_byte(data, 0) WHEN ascii('D') THEN 2 ELSE 1 END), 0)
               FROM pg_logical_slot_get_binary_changes('demo', NULL, NULL,
                    'proto_version', '1', 'publication_names', 'offshoot_ticketmonster')
               WHERE get_byte(data, 0) IN (ascii('I'), ascii('U'), ascii('D'))";
    session.text(sql).parse().expect("it is a count")
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

/// Puts the records of several topics into the order of their transaction; within a topic it is the order already.
fn in_order(records: Vec<Record>) -> Vec<Record> {
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut keyed: Vec<(u64, Record)> = Vec::new();
    for record in records {
        let last = last.entry(record.topic.clone()).or_default();
        // `["<commit LSN>", "<index>"]`; a tombstone has none and follows its delete.
        let sequence = record.value_json()["source"]["sequence"].as_str().map(str::to_string);
        let sequence = sequence.and_then(|text| serde_json::from_str::<[String; 2]>(&text).ok());
        if let Some([_, index]) = sequence {
            *last = index.parse().expect("an index is a number");
        }
        keyed.push((*last, record));
    }
    keyed.sort_by_key(|(index, _)| *index);
    keyed.into_iter().map(|(_, record)| record).collect()
}

fn as_json(transaction: &Transaction, records: &[Record], latency: Option<Duration>) -> Value {
    let record = |record: &Record| {
        json!({ "topic": record.topic, "partition": record.partition, "offset": record.offset,
                "key": record.key_json(), "value": record.value_json() })
    };
    json!({ "transaction": transaction.name, "about": transaction.about, "sql": transaction.statements,
            "records": records.iter().map(record).collect::<Vec<_>>(), "latency_ms": latency.map(millis) })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

/// A line of a column.
struct Line {
    style: Style,
    text: String,
}

/// Two columns as wide as the terminal.
struct Page {
    left: usize,
    right: usize,
    /// The last state of each row that was seen, by topic and key.
    rows: HashMap<(String, String), Map<String, Value>>,
}

impl Page {
    fn new() -> Self {
        let width = terminal_width().unwrap_or(120).clamp(60, 200);
        let left = (width - 3) / 2;
        Self { left, right: width - 3 - left, rows: HashMap::new() }
    }

    /// A text over both columns.
    fn paragraph(&self, text: &str) {
        for line in wrap(text, self.left + self.right + 3, usize::MAX, Style::new()) {
            println!("{}", line.text);
        }
    }

    fn print(&mut self, transaction: &Transaction, records: &[Record], latency: Option<Duration>) {
        let bold = Style::new().bold();
        let dim = Style::new().dimmed();
        let took = latency.map_or(String::new(), |latency| format!(" {:.1} ms", millis(latency)));
        let heading = format!("{:<4} {}", transaction.name, transaction.about);
        let room = (self.left + self.right + 3).saturating_sub(took.len());
        let heading = cut(&heading, room);
        println!("\n{bold}{heading:<room$}{bold:#}{took}");
        let sql = transaction.statements.iter().flat_map(|sql| wrap(sql, self.left, LINES_MAX, Style::new()));
        let sql: Vec<Line> = sql.collect();
        let mut made: Vec<Line> = Vec::new();
        for (at, record) in records.iter().enumerate() {
            // A delete tells of the tombstone that follows it.
            if record.value.is_some() {
                let tombstone =
                    records[at + 1..].iter().find(|next| next.topic == record.topic && next.key == record.key);
                made.extend(self.record(record, tombstone.is_some_and(|next| next.value.is_none())));
            }
        }
        if records.is_empty() {
            let rolled_back = transaction.statements.last().is_some_and(|last| last == "ROLLBACK");
            let text =
                if rolled_back { "rolled back: no record" } else { "no record: the config leaves this table out" };
            made.extend(wrap(text, self.right, LINES_MAX, dim));
        }
        for row in 0..sql.len().max(made.len()) {
            let empty = Line { style: Style::new(), text: String::new() };
            let (left, right) = (sql.get(row).unwrap_or(&empty), made.get(row).unwrap_or(&empty));
            let pad = " ".repeat(self.left - left.text.chars().count());
            let (l, r) = (left.style, right.style);
            println!("{l}{}{l:#}{pad} {dim}│{dim:#} {r}{}{r:#}", left.text, right.text);
        }
        let _ = io::stdout().flush();
    }

    /// Remembers what a row holds now.
    fn learn(&mut self, record: &Record) {
        let row = (record.topic.clone(), columns(record.key_json().as_object().into_iter().flatten()));
        match record.value_json()["after"].as_object() {
            Some(after) => self.rows.insert(row, after.clone()),
            None => self.rows.remove(&row),
        };
    }

    /// Operation, table, key, and the columns that it changed, where we have seen the row before; else what it holds.
    fn record(&mut self, record: &Record, tombstone: bool) -> Vec<Line> {
        let value = record.value_json();
        let key = record.key_json();
        let named = columns(key.as_object().into_iter().flatten());
        let row = (record.topic.clone(), named.clone());
        let after = value["after"].as_object();
        // The key has been said.
        let beside = |after: &Map<String, Value>| {
            columns(after.iter().filter(|(name, value)| key.get(name.as_str()).is_none() && !value.is_null()))
        };
        let (color, text) = match value["op"].as_str().unwrap_or_default() {
            "c" => (AnsiColor::Green, after.map(beside).unwrap_or_default()),
            "u" => (
                AnsiColor::Yellow,
                match (self.rows.get(&row), after) {
                    (Some(before), Some(after)) => changed(before, after),
                    _ => after.map(beside).unwrap_or_default(),
                },
            ),
            "d" if tombstone => (AnsiColor::Red, "and a tombstone".into()),
            "d" => (AnsiColor::Red, String::new()),
            _ => (AnsiColor::White, String::new()),
        };
        self.learn(record);
        let op = value["op"].as_str().unwrap_or_default();
        let table = record.topic.rsplit('.').next().unwrap_or_default();
        let style = Style::new().fg_color(Some(color.into()));
        wrap(format!("{op} {table} {named}  {text}").trim_end(), self.right, LINES_MAX, style)
    }
}

/// `name=value`, one after another.
fn columns<'a>(columns: impl Iterator<Item = (&'a String, &'a Value)>) -> String {
    columns.map(|(name, value)| format!("{name}={}", plain(value))).collect::<Vec<_>>().join(" ")
}

/// The columns of an update that differ from the row's last state.
fn changed(before: &Map<String, Value>, after: &Map<String, Value>) -> String {
    let changed = after.iter().filter_map(|(name, value)| match before.get(name) {
        Some(old) if old == value => None,
        Some(old) => Some(format!("{name}={}→{}", plain(old), plain(value))),
        None => Some(format!("{name}={}", plain(value))),
    });
    let changed: Vec<String> = changed.collect();
    if changed.is_empty() { "nothing changed".into() } else { changed.join(" ") }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// Breaks a text at spaces into at most `lines_max` lines; from the second on they are indented, and what does not fit is
/// cut.
fn wrap(text: &str, width: usize, lines_max: usize, style: Style) -> Vec<Line> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() == lines_max;
        let line = lines.last_mut().expect("there is a first line");
        if line.is_empty() {
            *line = word.into();
        } else if last || line.chars().count() + 1 + word.chars().count() <= width {
            *line += &format!(" {word}");
        } else {
            lines.push(format!("  {word}"));
        }
    }
    lines.into_iter().map(|text| Line { style, text: cut(&text, width) }).collect()
}

/// The text, or its start and a mark.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.into();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// The columns of the terminal that stdout is, or of `COLUMNS`.
fn terminal_width() -> Option<usize> {
    // SAFETY: the call writes the size into the value that it is given; zero is a value of every field.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        (libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) == 0).then_some(size)
    };
    let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
    columns.or_else(|| env::var("COLUMNS").ok()?.parse().ok())
}
