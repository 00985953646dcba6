//! A backlog -> how fast each reader is done with it. Each has a slot of its own from before the backlog was written, and they take turns
//! in one run, since what two runs say of one machine differs more than what is measured.
//!
//! Rates are of the time from the first row to the last: of the program by the broker's clock, as it appended the records; of readers that
//! publish nothing by ours. Of a single transaction, of which nothing may be published before all of it was read, the time counts
//! from when the reader streams.

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use offshoot::{
    config::Config as Parsed,
    postgres::{
        self as source, Session as Streaming, Wire,
        frame::{Frame, Status},
    },
    source::SourceError,
};
use tokio::runtime::{self, Runtime};

use crate::{
    appended,
    counted::{self, Received, Tally},
    debezium::Debezium,
    progress::Progress,
    raw::{How, Raw},
    readers::{Kind, Reader, pg_recvlogical},
    results::{Drained, Read, Turn},
    shapes::Shape,
    support::{
        kafka::Broker,
        postgres::{Db, Server},
        process::Process,
        program::{self, Config, Offshoot},
        wait,
    },
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(600);
/// Asked a hundred times a second, the program's answers would be a part of what is measured.
const ASK_INTERVAL: Duration = Duration::from_millis(250);
/// By the records' own timestamps the broker says when it has appended them.
pub(crate) const APPEND_TIME: &str = "topics: { properties: { message.timestamp.type: LogAppendTime } }";

/// The servers that everything is measured on.
#[derive(Clone, Copy)]
pub(crate) struct Servers<'a> {
    pub(crate) postgres: &'a Server,
    pub(crate) broker: &'a Broker,
}

/// One reader's turn in one round: a slot, and what it has to be read with.
struct Lane<'a> {
    reader: Reader,
    name: String,
    /// `None` of readers that are not ours.
    config: Option<Config>,
    /// With a slot that it drops itself.
    peer: Option<Debezium<'a>>,
}

impl Lane<'_> {
    fn slot(&self) -> String {
        format!("offshoot_{}", self.name)
    }
}

/// A backlog that everybody reads.
struct Backlog<'a> {
    shape: &'a Shape,
    servers: &'a Servers<'a>,
    db: &'a Db,
    rows: u64,
    transactions: u64,
    /// Where the log was after it.
    end: u64,
}

/// How much of it.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) rows: u64,
    pub(crate) transactions: u64,
    pub(crate) rounds: usize,
    /// Rounds before these that are not counted: they warm the broker up, and the disk.
    pub(crate) warm_up: usize,
}

/// Has everybody read.
pub(crate) fn measure(
    shape: &Shape,
    servers: &Servers<'_>,
    readers: &[Reader],
    extent: Extent,
    progress: &Progress,
) -> Drained {
    let Extent { rows, transactions, rounds, warm_up } = extent;
    let db = servers.postgres.create_database();
    db.execute(&shape.schema());
    let mut backlog = Backlog { shape, servers, db: &db, rows, transactions, end: 0 };
    let all = warm_up + rounds;
    progress.tell(&format!("{}: {} slots", shape.name, readers.iter().map(|reader| reader.turns(all)).sum::<usize>()));
    let lanes: Vec<Vec<Lane<'_>>> = (0..all)
        .map(|round| {
            let readers = readers.iter().enumerate().filter(|(_, reader)| round + reader.turns(all) >= all);
            readers.map(|(at, reader)| prepare(&backlog, *reader, round, at)).collect()
        })
        .collect();
    progress.tell(&format!("{}: writes {rows} rows", shape.name));
    db.execute(&shape.backlog(rows, transactions));
    backlog.end = end_of_log(&db);
    // Nobody was made to wait for the disk; here all of it is there.
    db.execute("SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'bench', 'all is on disk')");
    let mut reads: Vec<Read> = readers.iter().map(|reader| Read { reader: *reader, turns: Vec::new() }).collect();
    for (round, mut lanes) in lanes.into_iter().enumerate() {
        // Nobody always comes after the same one.
        let first = round % lanes.len();
        lanes.rotate_left(first);
        // Others' programs come after all of ours.
        lanes.sort_by_key(|lane| lane.peer.is_some());
        for lane in lanes {
            progress.turn(&format!(
                "{}, round {} of {}: {}",
                shape.name,
                round + 1,
                warm_up + rounds,
                lane.reader.title()
            ));
            let turn = read(&backlog, &lane);
            if lane.peer.is_none() {
                drop_slot(&db, &lane.slot());
            }
            if round >= warm_up {
                reads.iter_mut().find(|read| read.reader == lane.reader).expect("it is one of them").turns.push(turn);
            }
        }
    }
    Drained {
        shape: shape.name.into(),
        about: shape.about.into(),
        label: shape.label.into(),
        rows,
        single: shape.is_single(),
        usual: shape.usual,
        reads,
    }
}

/// Makes a lane's slot.
fn prepare<'a>(backlog: &Backlog<'a>, reader: Reader, round: usize, at: usize) -> Lane<'a> {
    let Backlog { shape, db, servers, .. } = backlog;
    // A name that nobody has had on this broker: what the pipeline has published is remembered there.
    let name = format!("{}_{}_{round}_{at}", shape.name, db.name);
    let mut lane = Lane { reader, name, config: None, peer: None };
    match reader.kind {
        Kind::Eager | Kind::Plain | Kind::PgRecvlogical => {
            let slot = lane.slot();
            db.execute(&format!("CREATE PUBLICATION {slot} FOR TABLE {}", shape.tables.join(", ")));
            db.text(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
        }
        Kind::Debezium => {
            let tables = shape.table_names();
            let tables: Vec<_> = tables.iter().map(String::as_str).collect();
            lane.peer = Some(Debezium::prepare(servers.postgres, &db.name, servers.broker, &lane.name, &tables));
        }
        Kind::Best => {
            let config = Config::new(&config(backlog, &lane));
            let (runtime, config) = (new_runtime(), lane.config.insert(config));
            let (session, _) = runtime.block_on(connect(&parse(config)));
            runtime.block_on(session.close());
        }
        kind => {
            let config = Config::new(&config(backlog, &lane));
            let mut offshoot = start(lane.config.insert(config));
            if kind == Kind::EventsWithReplica {
                offshoot.wait_log("has loaded what events need", DEADLINE);
            }
            offshoot.wait_ready(program::START_MAX);
            assert!(offshoot.terminate(program::START_MAX).success());
        }
    }
    lane
}

/// A config of a pipeline.
fn config(backlog: &Backlog<'_>, lane: &Lane<'_>) -> String {
    let Backlog { shape, servers, db, .. } = backlog;
    let Reader { kind, memory, streamed, tls } = lane.reader;
    let tables = shape.table_names();
    let tables: Vec<_> = tables.iter().map(String::as_str).collect();
    let url = format!("{}?sslmode={}", db.url, if tls { "require" } else { "disable" });
    let text = program::config(&lane.name, &url, servers.broker.address(), &tables);
    let text = text.replace("delivery: exactly_once", &format!("{APPEND_TIME}, delivery: {}", kind.delivery()));
    let text = if memory { text.replace("source: {", "source: { decoding_work_mem: 512MB,") } else { text };
    let text = if streamed { text.replace("source: {", "source: { streaming: true,") } else { text };
    let (ends, changes) = text.split_once("changes:").expect("it has changes");
    let ways_out = match kind {
        Kind::Events => shape.events.replace("NAME", &lane.name),
        Kind::EventsWithReplica => shape.look_ups.replace("NAME", &lane.name),
        _ => format!("changes:{changes}"),
    };
    format!("{ends}{ways_out}\n")
}

fn read(backlog: &Backlog<'_>, lane: &Lane<'_>) -> Turn {
    match lane.reader.kind {
        Kind::Eager => read_raw(backlog, lane, How::Eager),
        Kind::Plain => read_raw(backlog, lane, How::Plain),
        Kind::Best => read_best(backlog, lane),
        Kind::PgRecvlogical => read_by_pg_recvlogical(backlog, lane),
        Kind::Debezium => read_by_debezium(backlog, lane),
        _ => publish(backlog, lane),
    }
}

fn read_raw(backlog: &Backlog<'_>, lane: &Lane<'_>, how: How) -> Turn {
    let slot = lane.slot();
    let mut raw = Raw::start(&backlog.db.url, &slot, &slot);
    let (streams, mut tally) = (Instant::now(), Tally::of(backlog.transactions));
    let (took, cpu) = raw.drain(how, &mut tally);
    let received = counted::received(backlog.db, &slot);
    raw.close();
    assert_eq!(tally.rows(), backlog.rows, "rows of {slot}");
    Turn::of(backlog.rows, took, tally.end() - streams).with(cpu, None, received)
}

fn read_best(backlog: &Backlog<'_>, lane: &Lane<'_>) -> Turn {
    let config = parse(lane.config.as_ref().expect("it has one"));
    let mut tally = Tally::of(backlog.transactions);
    new_runtime().block_on(async {
        let (mut session, prepared) = connect(&config).await;
        let (streams, cpu_before, mut told) = (Instant::now(), counted::thread_cpu(), Instant::now());
        while !tally.is_full() {
            session.readable().await.expect("the server stays");
            while let Some(payload) = session.payload().expect("the server stays") {
                if let Ok(Frame::Wal { message, .. }) = Frame::decode(payload) {
                    tally.count(message);
                }
            }
            if told.elapsed() > Duration::from_secs(3) {
                let status = Status { confirmed: prepared.confirmed, now: 0 };
                session.write(&status.encode()).await.expect("the server stays");
                told = Instant::now();
            }
        }
        let cpu = counted::thread_cpu() - cpu_before;
        // Asked from a thread without a runtime: the question has one of its own.
        let received = thread::scope(|scope| scope.spawn(|| received_anew(backlog, lane)).join().expect("it answers"));
        session.close().await;
        assert_eq!(tally.rows(), backlog.rows, "rows of {}", lane.name);
        Turn::of(backlog.rows, tally.took(), tally.end() - streams).with(cpu, None, received)
    })
}

fn received_anew(backlog: &Backlog<'_>, lane: &Lane<'_>) -> Option<Received> {
    counted::received(&backlog.db.connect(), &lane.slot())
}

/// Postgres' own client, which writes into a pipe that we read.
fn read_by_pg_recvlogical(backlog: &Backlog<'_>, lane: &Lane<'_>) -> Turn {
    let (slot, end) = (lane.slot(), backlog.db.text("SELECT pg_current_wal_flush_lsn()"));
    let mut command = Command::new(pg_recvlogical().expect("it was there"));
    command.args([
        "--dbname",
        &backlog.db.url,
        "--slot",
        &slot,
        "--start",
        "--no-loop",
        "--file",
        "-",
        "--endpos",
        &end,
    ]);
    command.args(["--option", "proto_version=1", "--option", &format!("publication_names={slot}")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let started = Instant::now();
    let mut process = Process::spawn("pg_recvlogical", command, libc::SIGKILL).expect("it starts");
    let mut pipe = process.child().stdout.take().expect("it was piped");
    let (over, sample) = (AtomicBool::new(false), Mutex::new(None));
    let (bytes, first, last) = thread::scope(|scope| {
        // It leaves by itself, and its connection with it: so it is looked at meanwhile.
        scope.spawn(|| {
            let session = backlog.db.connect();
            while !over.load(Relaxed) {
                if let Some(received) = counted::received(&session, &slot) {
                    *sample.lock().expect("nobody panics") = Some(received);
                }
                thread::sleep(ASK_INTERVAL);
            }
        });
        let (mut bytes, mut first, mut last) = (0, None, started);
        let mut part = vec![0; 64 << 10];
        loop {
            match pipe.read(&mut part).expect("it is a pipe") {
                0 => break,
                read => {
                    bytes += read as u64;
                    last = Instant::now();
                    first.get_or_insert(last);
                }
            }
        }
        over.store(true, Relaxed);
        (bytes, first.expect("there were rows"), last)
    });
    let cpu = process.cpu_time().unwrap_or_default();
    assert!(process.exit(DEADLINE).success(), "pg_recvlogical");
    let sample: Option<Received> = sample.into_inner().expect("nobody panics");
    // The sample is older than the end: of all bytes there are as many more segments. What is not in the pipe is a header a message.
    let received = sample.map(|sample| {
        let all = bytes + backlog.rows * 29;
        Received { segments: sample.segments * all / sample.bytes.max(1), bytes: all, ..sample }
    });
    Turn::of(backlog.rows, last - first, last - started).with(cpu, None, received)
}

/// The peer, by the broker's clock, from its first record on.
fn read_by_debezium(backlog: &Backlog<'_>, lane: &Lane<'_>) -> Turn {
    let drained = lane.peer.as_ref().expect("it was prepared").drain(backlog.rows, DEADLINE);
    let took = Duration::from_millis((drained.last_ms - drained.first_ms).max(1) as u64);
    let peak = (drained.peak_mib * f64::from(1 << 20)) as u64;
    let start = (drained.start_up.as_secs_f64(), drained.start_up_cpu.as_secs_f64());
    Turn { start: Some(start), ..Turn::of(backlog.rows, took, took).with(drained.cpu, Some(peak), None) }
}

/// The program, by the broker's clock.
fn publish(backlog: &Backlog<'_>, lane: &Lane<'_>) -> Turn {
    let Backlog { shape, servers: Servers { broker, .. }, db, rows, end, .. } = *backlog;
    let kind = lane.reader.kind;
    let records = kind.records(shape, rows);
    let mut offshoot = start(lane.config.as_ref().expect("it has one"));
    offshoot.wait_ready(program::START_MAX);
    let (streams, cpu_before) = (SystemTime::now(), offshoot.process().cpu_time().expect("it runs"));
    let kafka_before = broker.cpu_time();
    match kind {
        // Rows that it keeps are acknowledged too: how many of the records are events is not told.
        Kind::EventsWithReplica => wait_confirmed(&mut offshoot, end),
        _ => wait_published(&mut offshoot, records),
    }
    let cpu = offshoot.process().cpu_time().expect("it runs") - cpu_before;
    let kafka = broker.cpu_time().zip(kafka_before).map(|(now, before)| (now - before).as_secs_f64());
    let (peak, received) = (offshoot.peak_memory(), counted::received(db, &lane.slot()));
    assert!(offshoot.terminate(program::START_MAX).success());
    let topics: Vec<_> = match kind.is_changes() {
        true => shape.table_names().iter().map(|table| format!("{}.{table}", lane.name)).collect(),
        false => vec![format!("{}.{}", lane.name, shape.tables[0])],
    };
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    let (mut first, mut last, mut read) = (i64::MAX, 0, 0);
    appended::read(broker, &topics, |record| {
        let at = appended::at(record);
        (first, last) = (first.min(at), last.max(at));
        read += 1;
    });
    assert_eq!(read, records, "records of {}", lane.name);
    topics.iter().for_each(|topic| broker.delete_topic(topic));
    let after = |from: i64| Duration::from_millis((last - from).max(1) as u64);
    let turn = Turn::of(rows, after(first), after(milliseconds(streams))).with(cpu, peak, received);
    Turn { kafka_seconds: kafka, ..turn }
}

/// Waits until the broker has acknowledged so many records of this life.
pub(crate) fn wait_published(offshoot: &mut Offshoot, records: u64) {
    offshoot.wait("all records", DEADLINE, |offshoot| {
        let there = offshoot.metric("offshoot_records_acknowledged_total")? >= records as f64;
        if !there {
            thread::sleep(ASK_INTERVAL);
        }
        there.then_some(())
    });
}

/// Waits until everything before this position is published.
pub(crate) fn wait_confirmed(offshoot: &mut Offshoot, position: u64) {
    offshoot.wait("the end of the backlog", DEADLINE, |offshoot| {
        let there = offshoot.metric("offshoot_confirmed_lsn")? >= position as f64;
        if !there {
            thread::sleep(ASK_INTERVAL);
        }
        there.then_some(())
    });
}

/// In bytes, as the metrics tell of positions. What is committed afterwards takes a pipeline past it.
pub(crate) fn end_of_log(db: &Db) -> u64 {
    db.text("SELECT pg_current_wal_insert_lsn() - '0/0'").parse().expect("a number")
}

/// As records tell of times.
pub(crate) fn milliseconds(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_millis() as i64
}

/// Starts the program.
pub(crate) fn start(config: &Config) -> Offshoot {
    Offshoot::run_again(Path::new(env!("CARGO_BIN_EXE_offshoot")), config)
}

/// Drops a slot as soon as its reader is gone.
pub(crate) fn drop_slot(db: &Db, slot: &str) {
    wait::until(DEADLINE, "a slot to be free", || {
        db.try_execute(&format!("SELECT pg_drop_replication_slot('{slot}')"))
    });
}

fn parse(config: &Config) -> Parsed {
    Parsed::load(&config.path, &[]).expect("it is right")
}

fn new_runtime() -> Runtime {
    runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had")
}

/// Our own session; it makes slot and publication when they are absent.
async fn connect(config: &Parsed) -> (Streaming, source::Prepared) {
    let warned = source::Warned::default();
    let start = source::Start::<SourceError> {
        warned: &warned,
        admissions: &source::Admissions::default(),
        held: &[],
        waiting: &|| {},
        accept: &|_, _| Ok(()),
        permit: &|_, _| Box::pin(async { Ok(()) }),
    };
    source::connect(config, &start).await.expect("the slot is free")
}
