//! A recorded stream -> the instructions that each pure step of the walk takes for it.
//!
//!     make instructions              WRITE=1: keep the figures in docs/instructions.md
//!
//! Valgrind counts them, by way of gungraun: they are nearly the same in every run, whatever else the machine does, so that a
//! change of a percent is seen. What comes in was recorded from a real Postgres (`make golden`, `steps/stream.sql`): a section for each
//! table. The first transaction of a section goes before the count, since it makes what is kept: shapes, plans, buffers.

// What the library's attributes make has no documentation.
#![allow(missing_docs, unreachable_pub)]

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::{collections::HashMap, env, fs, hint::black_box, mem, path::Path};

use gungraun::{library_benchmark, library_benchmark_group};
use offshoot::{
    change::{Asked, Content, Identity, Micros, Table},
    config::Config,
    event::{Context, Event},
    format::{cloudevents, debezium, outbox},
    ledger::Ledger,
    lsn::Lsn,
    mapping::{
        Mapping,
        catalog::{Catalog, CatalogColumn, CatalogTable, ForeignKey, Kind},
        rules::Rules,
    },
    postgres::{
        TableFacts,
        assemble::{Assembler, Kept, Step, Wanted},
        frame::Frame,
        pgoutput::{self, Message},
    },
    replica::{HeldRow, Replica},
    sink::{Acknowledgement, RecordBatch, Ticket},
    transaction::{Spill, Transaction},
};
use postgres_types::Type;
use serde_json::Value as Json;
use support::recording::{self, Line};

/// When all of it is published: 2023-11-14 22:13:20 UTC.
const NOW: Micros = 1_700_000_000_000_000;

const CONFIG: &str = "
name: shop
source: { postgres: postgres://u@h/d }
sink: { kafka: { brokers: 'k:1' } }
changes: { tables: [public.*] }
outbox: { table: outbox }
aggregates:
  Seat: { root: seat, topic: shop.seat }
  Booking: { root: booking, topic: shop.booking, children: { tickets: ticket.booking_id } }
events:
  SeatAdded:
    of: Seat
    when: created
    data: { seatId: id, section: section, row: row, number: number, price: price, sold: sold, heldUntil: held_until, note: note }
  BookingCreated:
    of: Booking
    when: created
    data:
      bookingId: id
      email: email
      bookedAt: booked_at
      tickets: { each: tickets, data: { ticketId: id, section: section, row: row, seat: number, price: price } }
";

/// Of a ticket the booking's email is told, which the transaction does not touch, and the number that it had.
const WITH_REPLICA: &str = "
name: shop
source: { postgres: postgres://u@h/d }
sink: { kafka: { brokers: 'k:1' } }
aggregates:
  Booking: { root: booking, topic: shop.booking }
  Ticket: { root: ticket, topic: shop.ticket }
events:
  TicketMoved: { of: Ticket, when: { number: changed }, data: { ticketId: id, was: old.number, now: number, email: booking.email } }
";

/// What a step is given; it lives as long as the process, so that the end of it is not counted.
type Given<T> = &'static mut T;

fn given<T>(of: T) -> Given<T> {
    Box::leak(Box::new(of))
}

fn spill() -> Spill {
    Spill { dir: env::temp_dir(), memory_max: 16 << 20, file_max: 1 << 30 }
}

fn config(text: &str) -> Config {
    Config::parse(text, "steps.yaml", &|_| None).expect("the config is right")
}

/// One transaction as it came: payloads of CopyData, from Begin to Commit.
struct Recorded {
    payloads: Vec<&'static [u8]>,
    /// Of its first row.
    table: String,
}

/// The recording.
struct Stream {
    transactions: Vec<Recorded>,
    facts: HashMap<u32, TableFacts>,
}

fn message(payload: &'static [u8]) -> Option<(Lsn, &'static [u8])> {
    match Frame::decode(payload).expect("it came from Postgres") {
        Frame::Wal { start, message, .. } => Some((start, message)),
        Frame::Keepalive { .. } => None,
    }
}

impl Stream {
    fn load() -> Stream {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/steps/stream.wire");
        let mut stream = Stream { transactions: Vec::new(), facts: HashMap::new() };
        let mut open = Recorded { payloads: Vec::new(), table: String::new() };
        for line in recording::load(&file) {
            match line {
                Line::Server { .. } => {}
                Line::Facts { oid, answer } => {
                    stream.facts.insert(oid, answer.to_facts());
                }
                Line::Payload(digits) => {
                    let payload: &'static [u8] = recording::unhex(&digits).leak();
                    let Some((_, message)) = message(payload) else { continue };
                    open.payloads.push(payload);
                    match pgoutput::decode(message).expect("it came from Postgres") {
                        Message::Insert { table, .. } | Message::Update { table, .. } if open.table.is_empty() => {
                            open.table.clone_from(&stream.facts[&table].name);
                        }
                        Message::Commit { .. } => {
                            let next = Recorded { payloads: Vec::new(), table: String::new() };
                            stream.transactions.push(mem::replace(&mut open, next));
                        }
                        _ => {}
                    }
                }
            }
        }
        stream
    }

    /// The payloads of a table's section but for its first transaction; before them all payloads up to that one.
    fn section(&self, table: &str) -> (Vec<&'static [u8]>, Vec<&'static [u8]>) {
        let payloads = |of: &[Recorded]| of.iter().flat_map(|of| of.payloads.clone()).collect();
        let is_of = |transaction: &Recorded| transaction.table == table;
        let first = self.transactions.iter().position(is_of).expect("there is such a section");
        let len = self.transactions[first..].iter().take_while(|transaction| is_of(transaction)).count();
        (payloads(&self.transactions[..=first]), payloads(&self.transactions[first + 1..first + len]))
    }

    /// Pushes messages; gives the transactions that they make.
    fn push(&self, assembler: &mut Assembler, payloads: &[&'static [u8]]) -> Vec<Transaction> {
        let mut whole = Vec::new();
        for (lsn, message) in payloads.iter().filter_map(|payload| message(payload)) {
            match assembler.push(lsn, pgoutput::decode(message).expect("it came from Postgres")) {
                Ok(Step::More) => {}
                Ok(Step::Ask(question)) => assembler.answer(self.facts[&question.table].clone()),
                Ok(Step::Done(transaction)) => whole.push(transaction),
                Err(error) => panic!("{error}"),
            }
        }
        whole
    }

    /// The transactions of a section, the first one apart.
    fn transactions(&self, table: &str) -> (Transaction, Vec<Transaction>) {
        let (before, rest) = self.section(table);
        let mut assembler = assembler();
        let first = self.push(&mut assembler, &before).pop().expect("it is whole");
        (first, self.push(&mut assembler, &rest))
    }

    /// What the catalog says of all tables.
    fn catalog(&self) -> Catalog {
        let mut tables: Vec<CatalogTable> = Vec::new();
        let mut assembler = assembler();
        for transaction in &self.transactions {
            for mut transaction in self.push(&mut assembler, &transaction.payloads) {
                while let Some(Content::Row(change)) = transaction.next_content().expect("it is in memory") {
                    if tables.iter().all(|table| table.name != change.table.name) {
                        tables.push(described(change.table));
                    }
                }
            }
        }
        Catalog { tables }
    }
}

fn described(table: &Table) -> CatalogTable {
    let primary_key: Vec<_> = table.key.iter().map(|column| table.columns[*column].name.clone()).collect();
    let columns = table.columns.iter().map(|column| CatalogColumn {
        name: column.name.clone(),
        ty: column.ty.clone(),
        modifier: column.modifier,
        not_null: column.identity || matches!(column.name.as_str(), "email" | "booked_at" | "booking_id"),
        toastable: matches!(column.ty, Type::TEXT | Type::NUMERIC | Type::JSONB),
        identity: column.identity,
        width: None,
    });
    let booking = ForeignKey {
        columns: vec!["booking_id".into()],
        to: ("public".into(), "booking".into()),
        to_columns: vec!["id".into()],
        valid: true,
    };
    CatalogTable {
        oid: table.oid,
        schema: table.schema.clone(),
        name: table.name.clone(),
        kind: Kind::Table,
        identity: if table.name == "hot" { Identity::Full } else { Identity::Default },
        columns: columns.collect(),
        unique: vec![primary_key.clone()],
        primary_key,
        foreign_keys: if table.name == "ticket" { vec![booking] } else { Vec::new() },
        triggers_disabled: false,
        rows: None,
    }
}

fn assembler() -> Assembler {
    let asked = Asked { changes: true, mapping: true, outbox: true, orphan: false };
    let wanted = Wanted { table: Box::new(move |_, _, _| asked), message: Box::new(|_| Kept::No) };
    Assembler::new(wanted, spill())
}

// Frames and messages.

fn payloads(table: &str) -> Given<Vec<&'static [u8]>> {
    given(Stream::load().section(table).1)
}

fn messages(table: &str) -> Given<Vec<&'static [u8]>> {
    given(Stream::load().section(table).1.into_iter().filter_map(message).map(|(_, message)| message).collect())
}

#[library_benchmark]
#[bench::seat(args = ("seat"), setup = payloads)]
fn frame(payloads: Given<Vec<&'static [u8]>>) {
    for payload in payloads.iter() {
        let _ = black_box(Frame::decode(black_box(payload)));
    }
}

#[library_benchmark]
#[bench::seat(args = ("seat"), setup = messages)]
#[bench::hot(args = ("hot"), setup = messages)]
fn decode(messages: Given<Vec<&'static [u8]>>) {
    for message in messages.iter() {
        let _ = black_box(pgoutput::decode(black_box(message)));
    }
}

// Transactions.

type Messages = Vec<(Lsn, Message<'static>)>;

fn assembling(table: &str) -> Given<(Assembler, Messages)> {
    let stream = Stream::load();
    let (before, rest) = stream.section(table);
    let mut assembler = assembler();
    for transaction in stream.push(&mut assembler, &before) {
        assembler.recycle(transaction);
    }
    let messages = rest.into_iter().filter_map(message);
    let messages = messages.map(|(lsn, message)| (lsn, pgoutput::decode(message).expect("it came from Postgres")));
    given((assembler, messages.collect()))
}

#[library_benchmark]
#[bench::seat(args = ("seat"), setup = assembling)]
fn assemble((assembler, messages): Given<(Assembler, Messages)>) {
    for (lsn, message) in messages.drain(..) {
        if let Ok(Step::Done(transaction)) = assembler.push(lsn, message) {
            assembler.recycle(transaction);
        }
    }
}

// Row changes as records.

fn encoding(table: &str) -> Given<(debezium::Encoder, Vec<Transaction>, RecordBatch)> {
    let config = config(CONFIG);
    let changes = config.changes.as_ref().expect("it has changes");
    let mut encoder = debezium::Encoder::new(&config.name, "shop", changes).expect("the topic is a template");
    let (first, rest) = Stream::load().transactions(table);
    let mut batch = RecordBatch::default();
    write_changes(&mut encoder, &mut [first], &mut batch);
    given((encoder, rest, batch))
}

#[library_benchmark]
#[bench::seat(args = ("seat"), setup = encoding)]
#[bench::hot(args = ("hot"), setup = encoding)]
fn changes((encoder, transactions, batch): Given<(debezium::Encoder, Vec<Transaction>, RecordBatch)>) {
    write_changes(encoder, transactions, batch);
}

fn write_changes(encoder: &mut debezium::Encoder, transactions: &mut [Transaction], batch: &mut RecordBatch) {
    for transaction in transactions {
        let commit = transaction.commit;
        for index in 0.. {
            let Some(Content::Row(change)) = transaction.next_content().expect("it is in memory") else { break };
            encoder.encode(&commit, index, &change, NOW, Ticket(0), batch).expect("it has a form");
        }
        black_box(&batch);
        batch.clear();
    }
}

fn outgoing(table: &str) -> Given<(outbox::Encoder, Vec<Transaction>, RecordBatch)> {
    let config = config(CONFIG);
    let mut encoder = outbox::Encoder::new(&config.name, config.outbox.as_ref().expect("it has an outbox"));
    let (first, rest) = Stream::load().transactions(table);
    let mut batch = RecordBatch::default();
    write_outbox(&mut encoder, &mut [first], &mut batch);
    given((encoder, rest, batch))
}

#[library_benchmark]
#[bench::outbox(args = ("outbox"), setup = outgoing)]
fn outbox_records((encoder, transactions, batch): Given<(outbox::Encoder, Vec<Transaction>, RecordBatch)>) {
    write_outbox(encoder, transactions, batch);
}

fn write_outbox(encoder: &mut outbox::Encoder, transactions: &mut [Transaction], batch: &mut RecordBatch) {
    for transaction in transactions {
        while let Some(Content::Row(change)) = transaction.next_content().expect("it is in memory") {
            encoder.encode(&change, Ticket(0), batch).expect("it has a form");
        }
        black_box(&batch);
        batch.clear();
    }
}

// Events, in three benches of which each goes a step further than the one before.

struct Events {
    mapping: Mapping,
    encoder: cloudevents::Encoder,
    context: Context,
    transactions: Vec<Transaction>,
    batch: RecordBatch,
}

/// How far transactions are taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    Netted,
    Mapped,
    Encoded,
}

fn mapped(table: &str) -> Given<Events> {
    let (stream, config) = (Stream::load(), config(CONFIG));
    let rules = Rules::compile(&config, &stream.catalog()).expect("the rules fit the catalog");
    events(Mapping::new(rules, spill()), stream.transactions(table), &config)
}

/// The replica holds all rows of the sections before.
fn held(table: &str) -> Given<Events> {
    let (stream, config) = (Stream::load(), config(WITH_REPLICA));
    let rules = Rules::compile(&config, &stream.catalog()).expect("the rules fit the catalog");
    let mut mapping = Mapping::new(rules, spill());
    mapping.hold(Replica::in_memory());
    let held = mapping.held();
    assert_eq!(held.len(), 2, "bookings and tickets are held");
    held.into_iter().for_each(|table| mapping.set_held(table, 1, Some(Lsn(0))));
    let (first, rest) = stream.transactions("booking");
    for mut transaction in std::iter::once(first).chain(rest) {
        take(&mut mapping, &mut transaction);
        while mapping.next().expect("it is told").is_some() {}
        while mapping.next_kept().expect("it is kept").is_some() {}
        mapping.end();
    }
    events(mapping, stream.transactions(table), &config)
}

fn events(mapping: Mapping, (first, rest): (Transaction, Vec<Transaction>), config: &Config) -> Given<Events> {
    let encoder = cloudevents::Encoder::new(&config.name, config.format);
    let (context, batch) = (Context::default(), RecordBatch::default());
    let mut events = Events { mapping, encoder, context, transactions: vec![first], batch };
    assert!(tell(&mut events, Depth::Encoded) > 0, "there are events");
    events.transactions = rest;
    given(events)
}

fn take(mapping: &mut Mapping, transaction: &mut Transaction) {
    mapping.begin(&transaction.commit, false);
    while let Some(Content::Row(change)) = transaction.next_content().expect("it is in memory") {
        mapping.take(&change).expect("it fits the rules");
    }
}

fn next(mapping: &mut Mapping, depth: Depth) -> Option<Event<'_>> {
    if depth == Depth::Netted { None } else { black_box(mapping.next().expect("it is told")) }
}

fn tell(events: &mut Events, depth: Depth) -> u64 {
    let Events { mapping, encoder, context, transactions, batch } = events;
    let mut told = 0;
    for transaction in transactions {
        take(mapping, transaction);
        let stamp = cloudevents::Stamp { epoch: 1, commit: transaction.commit, context };
        while let Some(event) = next(mapping, depth) {
            if depth == Depth::Encoded {
                encoder.encode(&stamp, &event, Ticket(0), batch);
            }
            told += 1;
        }
        mapping.end();
        black_box(&batch);
        batch.clear();
    }
    told
}

#[library_benchmark]
#[bench::seat(args = ("seat"), setup = mapped)]
#[bench::booking(args = ("booking"), setup = mapped)]
fn net(events: Given<Events>) {
    tell(events, Depth::Netted);
}

#[library_benchmark]
#[bench::seat(args = ("seat"), setup = mapped)]
#[bench::booking(args = ("booking"), setup = mapped)]
#[bench::ticket(args = ("ticket"), setup = held)]
fn map(events: Given<Events>) {
    tell(events, Depth::Mapped);
}

#[library_benchmark]
#[bench::seat(args = ("seat"), setup = mapped)]
#[bench::booking(args = ("booking"), setup = mapped)]
fn encode(events: Given<Events>) {
    tell(events, Depth::Encoded);
}

// What is in flight.

/// Of transactions of one record.
const TICKETS: u64 = 1000;
/// How many are in flight.
const IN_FLIGHT: u64 = 100;

fn commits(_: &str) -> Given<(Ledger, Vec<offshoot::change::Commit>)> {
    let commit = |n: u64| offshoot::change::Commit { xid: 1, lsn: Lsn(n * 100), end: Lsn(n * 100 + 50), time: NOW };
    given((Ledger::new(Lsn(0)), (1..=TICKETS).map(commit).collect()))
}

#[library_benchmark]
#[bench::one(args = (""), setup = commits)]
fn ledger((ledger, commits): Given<(Ledger, Vec<offshoot::change::Commit>)>) {
    let acknowledge = |ledger: &mut Ledger, ticket| {
        ledger.acknowledge(Acknowledgement { ticket: Ticket(ticket), records: 1, bytes: 500 });
    };
    for (number, commit) in (0..).zip(commits.iter()) {
        let ticket = ledger.open(*commit);
        ledger.sent(ticket, 1, 500);
        ledger.close(ticket);
        if number >= IN_FLIGHT {
            acknowledge(ledger, number - IN_FLIGHT);
        }
        if number % IN_FLIGHT == 0 {
            ledger.commit(ledger.retired());
            ledger.newly_retired().for_each(drop);
        }
    }
}

// Rows that are held.

const ROWS: u32 = 10_000;
const LOOK_UPS: u32 = 1000;
const CHILDREN: u32 = 4;

/// Each row is a child of one in four.
fn rows(_: &str) -> Given<Replica> {
    let mut replica = Replica::in_memory();
    replica.set_load(0, 1);
    for id in 0..ROWS {
        let (key, parent) = (id.to_be_bytes(), (id / CHILDREN).to_be_bytes());
        let links: [Option<&[u8]>; 1] = [Some(&parent)];
        let row = HeldRow { table: 0, key: &key, load: 1, links: &links, cells: &[b'x'; 100] };
        replica.put(&row).expect("there is memory");
    }
    given(replica)
}

#[library_benchmark]
#[bench::by_key(args = (""), setup = rows)]
fn look_up(replica: Given<Replica>) {
    let mut row = Vec::with_capacity(1000);
    for id in (0..ROWS).step_by((ROWS / LOOK_UPS) as usize) {
        row.clear();
        assert!(replica.get(0, &id.to_be_bytes(), &mut row).expect("it is in memory"));
    }
}

#[library_benchmark]
#[bench::by_link(args = (""), setup = rows)]
fn look_up_children(replica: Given<Replica>) {
    let mut found = 0;
    for id in (0..ROWS / CHILDREN).step_by((ROWS / CHILDREN / LOOK_UPS) as usize) {
        replica.linked(0, 0, &id.to_be_bytes(), &mut |_| found += 1).expect("it is in memory");
    }
    black_box(found);
}

library_benchmark_group!(
    name = steps,
    benchmarks =
        [frame, decode, assemble, changes, outbox_records, net, map, encode, ledger, look_up, look_up_children]
);

mod counted {
    use gungraun::{Callgrind, LibraryBenchmarkConfig};

    use super::steps;

    gungraun::main!(
        config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"]));
        library_benchmark_groups = steps
    );

    /// Counts; or does one bench, when the runner has started us for it.
    pub(super) fn count() {
        main();
    }
}

/// A line of the result.
struct Figure {
    step: &'static str,
    what: &'static str,
    /// The bench, and the one whose count is in it and is not meant.
    bench: &'static str,
    without: Option<&'static str>,
    /// How many of `what` there are.
    of: u64,
}

const fn figure(step: &'static str, what: &'static str, bench: &'static str, of: u64) -> Figure {
    Figure { step, what, bench, without: None, of }
}

const fn beyond(step: &'static str, what: &'static str, bench: &'static str, without: &'static str, of: u64) -> Figure {
    Figure { step, what, bench, without: Some(without), of }
}

/// As many as `steps/stream.sql` makes, without the first transaction of a section.
const FIGURES: [Figure; 17] = [
    figure("frame", "a message of CopyData", "frame.seat", 240),
    figure("decode", "an INSERT of 8 columns", "decode.seat", 200),
    figure("decode", "an UPDATE of 8 columns with its whole old row", "decode.hot", 100),
    figure("assemble", "a row, ten a transaction", "assemble.seat", 200),
    figure("encode, `changes`", "an INSERT of 8 columns, Debezium's envelope", "changes.seat", 200),
    figure("encode, `changes`", "an UPDATE of 8 columns with its whole old row", "changes.hot", 100),
    figure("encode, `outbox`", "a row of an outbox table", "outbox_records.outbox", 100),
    figure("net", "a row, ten a transaction", "net.seat", 200),
    figure("net", "a row of a booking and its three tickets", "net.booking", 200),
    beyond("map", "an event of one row, 8 fields", "map.seat", "net.seat", 200),
    beyond("map", "an event of four rows, 18 fields", "map.booking", "net.booking", 50),
    figure("net and map, with the replica", "an event with an old value and a look-up", "map.ticket", 100),
    beyond("encode, `events`", "an event of one row, CloudEvents", "encode.seat", "map.seat", 200),
    beyond("encode, `events`", "an event of four rows, CloudEvents", "encode.booking", "map.booking", 50),
    figure("ledger", "a transaction of one record", "ledger.one", TICKETS),
    figure("replica", "a row by its key, of 10,000", "look_up.by_key", LOOK_UPS as u64),
    figure("replica", "four rows by their foreign key, of 10,000", "look_up_children.by_link", LOOK_UPS as u64),
];

const KEPT: &str = "docs/instructions.md";

fn main() {
    if env::args().any(|argument| argument == "--gungraun-run") {
        return counted::count();
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/gungraun");
    // It would compare with the run before; what counts is what is kept.
    let _ = fs::remove_dir_all(&target);
    // SAFETY: no other thread is there yet.
    unsafe {
        env::set_var("GUNGRAUN_SAVE_SUMMARY", "json");
        env::set_var("GUNGRAUN_HOME", &target);
    }
    counted::count();
    let counts = counts(&target);
    let count = |bench: &str| *counts.get(bench).unwrap_or_else(|| panic!("gungraun has counted no {bench}"));
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join(KEPT);
    let before = fs::read_to_string(&kept).unwrap_or_default();
    let (head, _) = before.split_once("| step |").unwrap_or((&before, ""));
    let mut table = String::from("| step | of | instructions |\n|---|---|---|\n");
    println!("\n| step | of | instructions | in {KEPT} | |\n|---|---|---|---|---|");
    for Figure { step, what, bench, without, of } in FIGURES {
        let each = (count(bench) - without.map_or(0, count)) / of;
        let line = format!("| {step} | {what} | ");
        let was = before.lines().find_map(|kept| kept.strip_prefix(&line)?.strip_suffix(" |")?.parse::<u64>().ok());
        let change = was.map(|was| (each as f64 / was as f64 - 1.0) * 100.0);
        let shown = |text: Option<String>| text.unwrap_or_default();
        let (was, change) =
            (shown(was.map(|was| was.to_string())), shown(change.map(|change| format!("{change:+.1} %"))));
        println!("{line}{each} | {was} | {change} |");
        table += &format!("{line}{each} |\n");
    }
    if env::var_os("WRITE").is_some() {
        fs::write(&kept, format!("{head}{table}")).unwrap_or_else(|e| panic!("{KEPT}: {e}"));
        println!("\n{KEPT} is written.");
    }
}

/// Instructions by bench, `frame.seat`, as gungraun has written them down.
fn counts(home: &Path) -> HashMap<String, u64> {
    let files = walkdir::WalkDir::new(home).into_iter().filter_map(Result::ok);
    let files = files.filter(|file| file.file_name() == "summary.json");
    let counts = files.map(|file| {
        let text = fs::read_to_string(file.path()).expect("it was just found");
        let summary: Json = serde_json::from_str(&text).expect("it is JSON");
        let name = |field: &str| summary[field].as_str().unwrap_or_default().to_string();
        let counted = &summary["profiles"][0]["data"]["parts"][0]["metrics"]["Ir"]["values"]["new"];
        let instructions = counted.as_u64().unwrap_or_else(|| panic!("no count in {}", file.path().display()));
        (format!("{}.{}", name("function_name"), name("id")), instructions)
    });
    counts.collect()
}
