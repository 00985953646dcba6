//! Recorded streams of each Postgres from 14 to 18 -> records, byte for byte what they were when the streams were
//! recorded. `make golden` records them again.
//!
//! A `.wire` is JSON, a line each: the server, then in their order the CopyData payloads in hexadecimal and what the
//! catalog answered. A `.records` is text; `{version}` in it stands for ours.

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
        self as source, Question, TableFacts, TableKind, TypeFact, Wire,
        assemble::{Assembler, Kept, Wanted},
        frame::Frame,
        stream::PostgresSource,
        tables::Patterns,
    },
    sink::{RecordBatch, Ticket},
    source::{Item, Load, LoadTable, Source, SourceError},
    transaction::Spill,
};
use postgres_types::{Kind, Type};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tokio::sync::mpsc::Receiver;

use crate::support::{
    golden::{Scenario, Step},
    postgres::{self, Session, Version},
};

const DATABASE: &str = "golden";
/// When all of it is published: 2023-11-14 22:13:20 UTC.
const NOW: Micros = 1_700_000_000_000_000;
/// Its only row is the last one of the script.
const END: &str = "golden.public.golden_end";

/// A line of a `.wire`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Server { version: String, database: String },
    Payload(String),
    Facts { oid: u32, answer: Facts },
}

/// `TableFacts`, written down.
#[derive(Serialize, Deserialize)]
struct Facts {
    schema: String,
    name: String,
    partitioned: bool,
    ancestors: Vec<(String, String)>,
    primary_key: Vec<String>,
    identity_index: Vec<String>,
    unique: Option<Vec<String>>,
    types: BTreeMap<u32, (TypeForm, Option<i32>)>,
}

/// `postgres_types::Type`, written down.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TypeForm {
    BuiltIn(u32),
    Simple(TypeName),
    Composite(TypeName),
    Enum(TypeName, Vec<String>),
    Array(TypeName, Box<TypeForm>),
    Range(TypeName, Box<TypeForm>),
    Multirange(TypeName, Box<TypeForm>),
}

#[derive(Serialize, Deserialize)]
struct TypeName {
    oid: u32,
    schema: String,
    name: String,
}

impl TypeForm {
    fn of(ty: &Type) -> TypeForm {
        if Type::from_oid(ty.oid()).is_some() {
            return TypeForm::BuiltIn(ty.oid());
        }
        let name = TypeName { oid: ty.oid(), schema: ty.schema().into(), name: ty.name().into() };
        match ty.kind() {
            Kind::Simple => TypeForm::Simple(name),
            Kind::Composite(_) => TypeForm::Composite(name),
            Kind::Enum(labels) => TypeForm::Enum(name, labels.clone()),
            Kind::Array(element) => TypeForm::Array(name, Box::new(TypeForm::of(element))),
            Kind::Range(subtype) => TypeForm::Range(name, Box::new(TypeForm::of(subtype))),
            Kind::Multirange(subtype) => TypeForm::Multirange(name, Box::new(TypeForm::of(subtype))),
            kind => panic!("the catalog resolves a {kind:?}"),
        }
    }

    fn to_type(&self) -> Type {
        let (name, kind) = match self {
            TypeForm::BuiltIn(oid) => return Type::from_oid(*oid).expect("it was built in"),
            TypeForm::Simple(name) => (name, Kind::Simple),
            TypeForm::Composite(name) => (name, Kind::Composite(Vec::new())),
            TypeForm::Enum(name, labels) => (name, Kind::Enum(labels.clone())),
            TypeForm::Array(name, element) => (name, Kind::Array(element.to_type())),
            TypeForm::Range(name, subtype) => (name, Kind::Range(subtype.to_type())),
            TypeForm::Multirange(name, subtype) => (name, Kind::Multirange(subtype.to_type())),
        };
        Type::new(name.name.clone(), name.oid, kind, name.schema.clone())
    }
}

impl Facts {
    fn of(facts: &TableFacts) -> Facts {
        let types = facts.types.iter().map(|(oid, fact)| (*oid, (TypeForm::of(&fact.ty), fact.modifier)));
        Facts {
            schema: facts.schema.clone(),
            name: facts.name.clone(),
            partitioned: facts.kind == TableKind::Partitioned,
            ancestors: facts.ancestors.clone(),
            primary_key: facts.primary_key.clone(),
            identity_index: facts.identity_index.clone(),
            unique: facts.unique.clone(),
            types: types.collect(),
        }
    }

    fn to_facts(&self) -> TableFacts {
        let types = self.types.iter();
        let types = types.map(|(oid, (ty, modifier))| (*oid, TypeFact { ty: ty.to_type(), modifier: *modifier }));
        TableFacts {
            gone: false,
            schema: self.schema.clone(),
            name: self.name.clone(),
            kind: if self.partitioned { TableKind::Partitioned } else { TableKind::Table },
            ancestors: self.ancestors.clone(),
            primary_key: self.primary_key.clone(),
            identity_index: self.identity_index.clone(),
            unique: self.unique.clone(),
            types: types.collect(),
        }
    }
}

/// A session that writes down what comes through it.
struct Recording<W> {
    wire: W,
    lines: Rc<RefCell<Vec<Line>>>,
}

impl<W: Wire> Wire for Recording<W> {
    fn load(&mut self, tables: Vec<LoadTable>) -> Receiver<Result<Load, SourceError>> {
        self.wire.load(tables)
    }

    async fn readable(&mut self) -> Result<(), SourceError> {
        self.wire.readable().await
    }

    fn payload(&mut self) -> Result<Option<&[u8]>, SourceError> {
        let payload = self.wire.payload()?;
        if let Some(payload) = payload {
            self.lines.borrow_mut().push(Line::Payload(hex(payload)));
        }
        Ok(payload)
    }

    async fn write(&mut self, payload: &[u8]) -> Result<(), SourceError> {
        self.wire.write(payload).await
    }

    async fn facts(&mut self, question: &Question) -> Result<TableFacts, SourceError> {
        let facts = self.wire.facts(question).await?;
        self.lines.borrow_mut().push(Line::Facts { oid: question.table, answer: Facts::of(&facts) });
        Ok(facts)
    }

    async fn close(self) {
        self.wire.close().await;
    }
}

/// A recording, played.
struct Played {
    lines: VecDeque<Line>,
    payload: Vec<u8>,
}

impl Wire for Played {
    fn load(&mut self, _: Vec<LoadTable>) -> Receiver<Result<Load, SourceError>> {
        unreachable!("nothing is loaded here")
    }

    async fn readable(&mut self) -> Result<(), SourceError> {
        match self.lines.front() {
            Some(Line::Payload(_)) => Ok(()),
            _ => Err(SourceError::Passing("the recording has nothing more to say".into())),
        }
    }

    fn payload(&mut self) -> Result<Option<&[u8]>, SourceError> {
        let Some(Line::Payload(payload)) = self.lines.front() else { return Ok(None) };
        self.payload = unhex(payload);
        self.lines.pop_front();
        Ok(Some(&self.payload))
    }

    async fn write(&mut self, _: &[u8]) -> Result<(), SourceError> {
        Ok(())
    }

    async fn facts(&mut self, question: &Question) -> Result<TableFacts, SourceError> {
        match self.lines.pop_front() {
            Some(Line::Facts { oid, answer }) if oid == question.table => Ok(answer.to_facts()),
            _ => panic!("the recording has no answer to {question:?} here"),
        }
    }

    async fn close(self) {}
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes it");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    assert!(odd.is_empty());
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.iter().map(byte).collect()
}

fn file(version: Version, extension: &str) -> PathBuf {
    let name = format!("tests/fixtures/golden/pg{}.{extension}", version as u32);
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn load(version: Version) -> Vec<Line> {
    let text = fs::read_to_string(file(version, "wire")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn config(url: &str) -> Config {
    let text = format!(
        "name: golden\nsource: {{ postgres: '{url}' }}\nsink: {{ kafka: {{ brokers: 'b:1', delivery: at_least_once }} \
         }}\nchanges: {{ tables: [public.*] }}\n"
    );
    Config::parse(&text, "golden.yaml", &|_| None).unwrap()
}

/// The walk from a wire to records, up to the last row of the script.
async fn records(wire: impl Wire, database: &str, memory_max: usize) -> String {
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
            let mut lines = VecDeque::from(load(version));
            let Some(Line::Server { version: server, database }) = lines.pop_front() else {
                panic!("the first line tells of the server");
            };
            assert!(server.starts_with(&format!("{}.", version as u32)), "{server}");
            let played = Played { lines, payload: Vec::new() };
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
    let script = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/golden.sql"));
    let script = Scenario::parse(&script.unwrap()).unwrap();
    for version in Version::ALL {
        let server = postgres::private(version, &[]);
        server.session("postgres").execute(&format!("CREATE DATABASE {DATABASE}"));
        let mut sessions = BTreeMap::new();
        run(&script.setup, &mut sessions, || server.session(DATABASE));
        let lines = Rc::new(RefCell::new(Vec::new()));
        let (text, version_text) = runtime().block_on(async {
            let warned = source::Warned::default();
            let permit: &source::Permit<'_, SourceError> = &|_, _| Box::pin(async { Ok(()) });
            let start = source::Start {
                warned: &warned,
                admissions: &source::Admissions::default(),
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
        let first = Line::Server { version: version_text, database: DATABASE.into() };
        let lines = lines.take();
        let wire = std::iter::once(&first).chain(&lines).map(|line| serde_json::to_string(line).unwrap() + "\n");
        fs::write(file(version, "wire"), wire.collect::<String>()).unwrap();
        let [ours, any] = ours();
        fs::write(file(version, "records"), text.replace(&ours, &any)).unwrap();
        if version == Version::V18 {
            write_corpora(version, &lines);
        }
    }
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
