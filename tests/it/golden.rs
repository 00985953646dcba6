//! Recorded streams of each Postgres from 14 to 18 -> records, byte for byte what they were when the streams were
//! recorded. `make golden` records them again.
//!
//! A `.wire` is what `support/recording.rs` has written. A `.records` is text; `{version}` in it stands for ours.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use offshoot::{
    change::Micros,
    config::Config,
    lsn::Lsn,
    outlets::{self, Leaves, Outlets},
    postgres::{
        self as source, Wire,
        assemble::{Assembler, Kept, Wanted},
        frame::Frame,
        stream::PostgresSource,
        tables::Patterns,
    },
    sink::{RecordBatch, Ticket},
    source::{Item, Source, SourceError},
    transaction::Spill,
};
use serde_json::Value as Json;

use crate::support::{
    golden::{Scenario, Step},
    postgres::{self, Session, Version},
    recording::{self, Line, Played, Recording, unhex},
};

const DATABASE: &str = "golden";
/// When all of it is published: 2023-11-14 22:13:20 UTC.
const NOW: Micros = 1_700_000_000_000_000;
/// Its only row is the last one of the script.
const END: &str = "golden.public.golden_end";

fn file(version: Version, extension: &str) -> PathBuf {
    let name = format!("tests/fixtures/golden/pg{}.{extension}", version as u32);
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn config(url: &str) -> Config {
    let text = format!(
        "name: golden\nsource: {{ postgres: '{url}' }}\nsink: {{ kafka: {{ brokers: 'b:1', delivery: at_least_once }} \
         }}\nchanges: {{ tables: [public.*] }}\n"
    );
    Config::parse(&text, "golden.yaml", &|_| None).unwrap()
}

/// The walk from a wire to records, up to the last row of the script.
pub(crate) async fn records(wire: impl Wire, database: &str, memory_max: usize) -> String {
    let config = config("postgres://localhost/golden");
    let patterns = Patterns::compile(&config, &[]).unwrap();
    let wanted = Wanted {
        table: Box::new(move |schema, table, ancestors| {
            patterns.asked(schema, table, ancestors.expect("the script drops no table"))
        }),
        message: Box::new(|_| Kept::No),
    };
    let spill = Spill { dir: std::env::temp_dir(), memory_max, file_max: 1 << 30 };
    let mut source = PostgresSource::new(wire, Assembler::new(wanted, spill), Lsn::INVALID, || NOW);
    let mut outlets = Outlets::new(&config, database).unwrap();
    let mut text = String::new();
    let mut batch = RecordBatch::default();
    while !text.contains(END) {
        source.ready().await.unwrap();
        if source.status_wanted() {
            source.confirm(Lsn::INVALID).await.unwrap();
        }
        while let Some(item) = source.next().unwrap() {
            let Item::Transaction(mut transaction) = item else { continue };
            assert_eq!(outlets.begin(&transaction, 1, false).unwrap(), Leaves::Yes);
            for index in 0.. {
                let step = outlets::Step { index, now: NOW, ticket: Ticket(0), out: Some(&mut batch), kept: None };
                if outlets.step(&mut transaction, step).unwrap().is_none() {
                    break;
                }
            }
            source.recycle(transaction);
            write_records(&batch, &mut text);
            batch.clear();
        }
    }
    source.close().await;
    text
}

fn write_records(batch: &RecordBatch, text: &mut String) {
    let bytes = |range: &std::ops::Range<usize>| std::str::from_utf8(&batch.bytes[range.clone()]).unwrap();
    for record in &batch.records {
        writeln!(text, "topic {}", batch.topic(record).name).unwrap();
        for header in &batch.headers[record.headers.clone()] {
            writeln!(text, "header {} {}", header.name, header.value.as_ref().map_or("(null)", bytes)).unwrap();
        }
        for (name, part) in [("key", &record.key), ("value", &record.payload)] {
            if let Some(range) = part {
                writeln!(text, "{name} {}", bytes(range)).unwrap();
            }
        }
        text.push('\n');
    }
}

/// `"version":"0.1.0"` and what stands for it in a file.
fn ours() -> [String; 2] {
    [env!("CARGO_PKG_VERSION"), "{version}"].map(|version| format!("\"source\":{{\"version\":\"{version}\""))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn recorded_streams_become_the_same_records_for_ever() {
    for version in Version::ALL {
        let expected = fs::read_to_string(file(version, "records")).unwrap();
        for memory_max in [1 << 20, 0] {
            let mut lines = VecDeque::from(recording::load(&file(version, "wire")));
            let Some(Line::Server { version: server, database }) = lines.pop_front() else {
                panic!("the first line tells of the server");
            };
            assert!(server.starts_with(&format!("{}.", version as u32)), "{server}");
            let played = Played::new(lines);
            let [ours, any] = ours();
            let found = runtime().block_on(records(played, &database, memory_max)).replace(&ours, &any);
            let differs = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
            if let Some(at) = differs {
                let line = |text: &str| text.lines().nth(at).unwrap_or_default().to_string();
                panic!("Postgres {server}, line {}:\n{}\ninstead of\n{}", at + 1, line(&found), line(&expected));
            }
            assert_eq!(found.len(), expected.len(), "Postgres {server}");
        }
    }
}

/// What a record says, without where and when it was written.
fn said(records: &str) -> Vec<Vec<String>> {
    let line = |line: &str| match line.strip_prefix("value ") {
        Some(value) => {
            let value: Json = serde_json::from_str(value).unwrap();
            format!("{} {} {}", value["op"], value["before"], value["after"])
        }
        None => line.to_string(),
    };
    records.split("\n\n").map(|record| record.lines().map(line).collect()).collect()
}

#[test]
fn every_postgres_says_the_same() {
    let read = |version| said(&fs::read_to_string(file(version, "records")).unwrap());
    let oldest = read(Version::V14);
    assert!(oldest.len() > 100);
    for version in &Version::ALL[1..] {
        for (n, (found, expected)) in read(*version).iter().zip(&oldest).enumerate() {
            assert_eq!(found, expected, "record {n} of Postgres {}", *version as u32);
        }
        assert_eq!(read(*version).len(), oldest.len());
    }
}

/// Not a test: it makes the files that the tests read, and the corpora that fuzzing starts from.
#[test]
#[ignore = "make golden runs it"]
fn capture() {
    for version in Version::ALL {
        let (lines, text) = captured(version, "tests/fixtures/golden/golden.sql");
        recording::save(&file(version, "wire"), &lines);
        let [ours, any] = ours();
        fs::write(file(version, "records"), text.replace(&ours, &any)).unwrap();
        if version == Version::V18 {
            write_corpora(version, &lines);
        }
    }
}

/// Not a test: it makes the file that `benches/steps.rs` counts the instructions of.
#[test]
#[ignore = "make golden runs it"]
fn capture_steps() {
    let (lines, _) = captured(Version::V17, "benches/steps/stream.sql");
    recording::save(&Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/steps/stream.wire"), &lines);
}

/// What a script is on the wire, and the records of it.
fn captured(version: Version, script: &str) -> (Vec<Line>, String) {
    let script = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(script));
    let script = Scenario::parse(&script.unwrap()).unwrap();
    let server = postgres::private(version, &[]);
    server.session("postgres").execute(&format!("CREATE DATABASE {DATABASE}"));
    let mut sessions = BTreeMap::new();
    run(&script.setup, &mut sessions, || server.session(DATABASE));
    let lines = Rc::new(RefCell::new(Vec::new()));
    let (text, version) = runtime().block_on(async {
        let warned = source::Warned::default();
        let permit: &source::Permit<'_, SourceError> = &|_, _| Box::pin(async { Ok(()) });
        let start = source::Start {
            warned: &warned,
            admissions: &source::Admissions::default(),
            held: &[],
            waiting: &|| {},
            accept: &|_, _| Ok(()),
            permit,
        };
        let (session, prepared) = source::connect(&config(&server.url(DATABASE)), &start).await.unwrap();
        // All of it before the first byte is read, so that the catalog is the same at each question.
        std::thread::scope(|scope| {
            scope.spawn(|| run(&script.stream, &mut sessions, || server.session(DATABASE))).join().unwrap();
        });
        let recording = Recording { wire: session, lines: lines.clone() };
        (records(recording, DATABASE, 1 << 20).await, prepared.server_version)
    });
    let mut lines = lines.take();
    lines.insert(0, Line::Server { version, database: DATABASE.into() });
    (lines, text)
}

fn run(steps: &[Step], sessions: &mut BTreeMap<String, Session>, connect: impl Fn() -> Session) {
    for step in steps {
        let Step::Statement { session, sql, .. } = step else { continue };
        sessions.entry(session.clone()).or_insert_with(&connect).execute(sql);
    }
}

/// What fuzzing starts from: a frame of each kind, a message of each kind and size, and a stream of whole transactions.
fn write_corpora(version: Version, lines: &[Line]) {
    /// Long messages teach a fuzzer nothing that short ones do not.
    const SEED_BYTES_MAX: usize = 600;
    const STREAM_BYTES_MAX: usize = 4_000;
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let seed = |target: &str, name: &str, bytes: &[u8]| {
        let name = format!("pg{}-{name}", version as u32);
        fs::create_dir_all(corpus.join(target)).unwrap();
        fs::write(corpus.join(target).join(name), bytes).unwrap();
    };
    let mut seen = BTreeMap::new();
    let mut stream = Vec::new();
    for line in lines {
        let Line::Payload(payload) = line else { continue };
        let payload = unhex(payload);
        let Ok(Frame::Wal { message, .. }) = Frame::decode(&payload) else {
            seed("frame", "keepalive", &payload);
            continue;
        };
        // Updates and deletes come in several forms: their sixth byte tells which.
        let form = message.get(5).filter(|_| matches!(message[0], b'U' | b'D')).map_or("", |form| match form {
            b'K' => "-key",
            b'O' => "-old",
            _ => "-new",
        });
        let name = format!("{}{form}", (message[0] as char).to_lowercase());
        if message.len() <= SEED_BYTES_MAX && seen.get(&name).is_none_or(|len| message.len() > *len) {
            seen.insert(name.clone(), message.len());
            seed("frame", &name, &payload);
            seed("pgoutput", &name, message);
        }
        if stream.len() + message.len() <= STREAM_BYTES_MAX {
            stream.extend((message.len() as u16).to_be_bytes());
            stream.extend(message);
        }
    }
    seed("assemble", "stream", &stream);
}
