//! Transactions that are read before they commit -> what is published, which is what would be published without it.

use std::{cell::RefCell, path::Path, rc::Rc, sync::Mutex, thread, time::Duration};

use offshoot::{
    config::Config,
    postgres::{self as source, Question, TableFacts, Wire, frame::Frame},
    source::{Load, LoadTable, SourceError},
};
use tokio::sync::mpsc::Receiver;

use crate::{
    golden::records,
    support::{
        kafka,
        postgres::{self, Db, Session, V14, V17, V18, Version},
        program::{self, Offshoot},
        wait,
    },
};

/// Nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(120);

/// A slot of its own; all else is the same, the name that records tell included.
fn config(db: &Db, slot: &str, streaming: bool) -> Config {
    let text = format!(
        "name: golden\nsource: {{ postgres: '{}', slot: {slot}, publication: everything, create: true, streaming: {streaming}, \
         decoding_work_mem: 64KiB }}\nsink: {{ kafka: {{ brokers: 'b:1' }} }}\nchanges: {{ tables: [public.*] }}\n",
        db.url
    );
    Config::parse(&text, "streamed.yaml", &|_| None).unwrap()
}

/// Reads until the last row: what it is published as, and the kinds of messages that came.
fn read(
    config: &Config,
    database: &str,
    memory_max: usize,
    gate: &Mutex<()>,
    streams: impl FnOnce(),
) -> (String, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let warned = source::Warned::default();
        let permit: &source::Permit<'_, SourceError> = &|_, _| Box::pin(async { Ok(()) });
        let start = source::Start {
            warned: &warned,
            admissions: &source::Admissions::default(),
            waiting: &|| {},
            accept: &|_, _| Ok(()),
            permit,
            held: &[],
        };
        let (wire, _) = source::connect(config, &start).await.unwrap();
        streams();
        let kinds = Rc::new(RefCell::new(Vec::new()));
        let text = records(Gated { wire, gate, kinds: kinds.clone() }, database, memory_max).await;
        (text, kinds.take())
    })
}

/// A session that gives nothing while somebody holds the gate, and counts what it gives.
struct Gated<'a, W> {
    wire: W,
    gate: &'a Mutex<()>,
    kinds: Rc<RefCell<Vec<u8>>>,
}

impl<W: Wire> Wire for Gated<'_, W> {
    fn load(&mut self, tables: Vec<LoadTable>) -> Receiver<Result<Load, SourceError>> {
        self.wire.load(tables)
    }

    async fn readable(&mut self) -> Result<(), SourceError> {
        self.wire.readable().await
    }

    fn payload(&mut self) -> Result<Option<&[u8]>, SourceError> {
        drop(self.gate.lock());
        let payload = self.wire.payload()?;
        if let Some(Ok(Frame::Wal { message, .. })) = payload.map(Frame::decode) {
            self.kinds.borrow_mut().push(message[0]);
        }
        Ok(payload)
    }

    async fn write(&mut self, payload: &[u8]) -> Result<(), SourceError> {
        self.wire.write(payload).await
    }

    async fn facts(&mut self, question: &Question) -> Result<TableFacts, SourceError> {
        self.wire.facts(question).await
    }

    async fn close(self) {
        self.wire.close().await;
    }
}

/// Waits until the readers have been sent what open transactions have done.
fn told(aside: &Session) {
    // Somebody's commit puts the log on disk, from where alone it is decoded.
    aside.execute("SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'test', 'flush')");
    let end = aside.text("SELECT pg_current_wal_lsn()");
    wait::until(DEADLINE, "the readers", || {
        let late = "SELECT count(*) FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid";
        aside.text(&format!("{late} WHERE s.database = current_database() AND r.sent_lsn >= '{end}'")) == "2"
    });
}

/// What open transactions may do, in an order in which each of them is told before it ends.
fn work(db: &Db, gate: &Mutex<()>) {
    let [a, b, c, d] = std::array::from_fn(|_| db.connect());
    let told = || told(&d);
    // What the catalog says of a table is what it says after the commit, which the log tells a moment before others see it.
    let commit = |session: &Session| {
        let _held = gate.lock();
        session.execute("COMMIT");
    };
    let seats = |from: u32, rows: u32| {
        let to = from + rows - 1;
        format!(
            "INSERT INTO seat (id, section, price, note) SELECT i, 'section ' || i, i + 0.5, repeat('x', 60) FROM generate_series({from}, {to}) i"
        )
    };
    // Two at once, with subtransactions that stay and that are rolled back, before and after they are told.
    a.execute("BEGIN");
    a.execute(&seats(0, 2_000));
    b.execute("BEGIN; INSERT INTO whole SELECT i, 'a row of its own' FROM generate_series(0, 1999) i");
    told();
    a.execute("SAVEPOINT stays");
    a.execute(&seats(10_000, 1_500));
    a.execute("SAVEPOINT goes; UPDATE seat SET section = 'never' WHERE id < 1500");
    told();
    a.execute("SAVEPOINT within; DELETE FROM seat WHERE id < 1000");
    told();
    a.execute("RELEASE within; UPDATE seat SET price = 1 WHERE id > 1500");
    told();
    c.execute("INSERT INTO whole VALUES (-1, 'small, in between')");
    a.execute("ROLLBACK TO goes");
    a.execute(&seats(20_000, 1_500));
    told();
    b.execute("SAVEPOINT one; UPDATE whole SET note = 'changed' WHERE id >= 0; SAVEPOINT two; DELETE FROM whole WHERE id BETWEEN 0 AND 99");
    told();
    a.execute(
        "SAVEPOINT short; INSERT INTO seat (id) VALUES (-5); ROLLBACK TO short; INSERT INTO seat (id) VALUES (-6)",
    );
    a.execute("UPDATE seat SET id = id + 100000 WHERE id < 500; RELEASE stays; TRUNCATE small CASCADE");
    c.execute("UPDATE whole SET note = 'small again' WHERE id = -1");
    commit(&a);
    told();
    b.execute("RELEASE two; ROLLBACK TO one; INSERT INTO whole SELECT i, 'after' FROM generate_series(5000, 6000) i");
    told();
    commit(&b);
    // All of it is rolled back, with a column that never was.
    a.execute("BEGIN; ALTER TABLE whole ADD never int; INSERT INTO whole SELECT i, 'never', i FROM generate_series(7000, 9000) i");
    told();
    a.execute("ROLLBACK");
    c.execute("INSERT INTO whole VALUES (-2, 'as it was')");
    // Values out of line: told, and left as they are.
    a.execute("BEGIN; INSERT INTO large SELECT i, repeat('0123456789', 1000), 0 FROM generate_series(0, 39) i");
    told();
    a.execute(
        "UPDATE large SET n = 1; SAVEPOINT goes; UPDATE large SET n = 2, body = repeat('abc', 3000) WHERE id < 20",
    );
    told();
    a.execute("ROLLBACK TO goes; UPDATE large SET n = 3 WHERE id < 10; DELETE FROM large WHERE id = 39");
    commit(&a);
    // Tables that change while they are written, also in what is rolled back, and others' rows after that.
    a.execute("BEGIN");
    a.execute(&seats(30_000, 1_000));
    told();
    a.execute("ALTER TABLE seat ADD COLUMN extra int DEFAULT 7");
    a.execute(&seats(40_000, 1_000));
    told();
    a.execute("SAVEPOINT goes; ALTER TABLE seat ADD COLUMN more text DEFAULT 'm', DROP COLUMN note");
    a.execute("UPDATE seat SET section = 'never' WHERE id > 40000");
    told();
    a.execute("ROLLBACK TO goes");
    a.execute(&seats(50_000, 1_000));
    told();
    a.execute("ALTER TABLE seat DROP COLUMN price");
    a.execute("UPDATE seat SET extra = 8 WHERE id >= 50000");
    told();
    commit(&a);
    a.execute("INSERT INTO seat (id, extra) VALUES (-10, 9)");
    // A table, and a type, that nobody else sees before the commit.
    a.execute("BEGIN; CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TABLE fresh (b int, a int, mood mood, PRIMARY KEY (a, b))");
    a.execute("INSERT INTO fresh SELECT i, i % 7, 'happy' FROM generate_series(0, 1999) i");
    told();
    a.execute("CREATE TABLE brief (id int PRIMARY KEY); INSERT INTO brief SELECT generate_series(0, 1999)");
    told();
    commit(&a);
    a.execute("INSERT INTO fresh VALUES (-1, -1, 'sad')");
    // Two shapes of one table in two open transactions cannot be; other tables' can.
    a.execute("BEGIN; ALTER TABLE whole ADD told int; INSERT INTO whole SELECT i, 'new', i FROM generate_series(10000, 11000) i");
    b.execute("BEGIN; ALTER TABLE large ADD told int; INSERT INTO large SELECT i, 'new', i, i FROM generate_series(10000, 11000) i");
    told();
    c.execute("INSERT INTO seat (id) VALUES (-11)");
    b.execute("ROLLBACK");
    c.execute("INSERT INTO large VALUES (-1, 'three columns', 0)");
    commit(&a);
    c.execute("INSERT INTO whole VALUES (-3, 'with three', 3)");
    // Many subtransactions, every third of which is rolled back.
    a.execute("DO $$ BEGIN FOR t IN 0 .. 999 LOOP BEGIN INSERT INTO seat (id) VALUES (200000 + t), (300000 + t); IF t % 3 = 0 THEN PERFORM 1 / 0; END IF;
        EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$");
    c.execute("INSERT INTO golden_end VALUES (1)");
}

fn says_the_same(version: Version) {
    let db = postgres::shared(version).create_database();
    db.execute(
        "CREATE TABLE seat (id int PRIMARY KEY, section text, price numeric(8,2), note text);
         CREATE TABLE whole (id int PRIMARY KEY, note text); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE large (id int PRIMARY KEY, body text, n int); ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
         CREATE TABLE small (id int PRIMARY KEY); INSERT INTO small VALUES (1);
         CREATE TABLE golden_end (id int PRIMARY KEY);
         CREATE PUBLICATION everything FOR ALL TABLES",
    );
    let gate = Mutex::new(());
    let (starts, started) = std::sync::mpsc::channel();
    let (whole, streamed) = thread::scope(|scope| {
        let reader = |slot: &'static str, streaming, memory_max| {
            let (starts, db, gate) = (starts.clone(), &db, &gate);
            scope.spawn(move || {
                read(&config(db, slot, streaming), &db.name, memory_max, gate, || starts.send(()).unwrap())
            })
        };
        let whole = reader("whole", false, 1 << 20);
        started.recv_timeout(DEADLINE).unwrap();
        let streamed = reader("streamed", true, 20_000);
        started.recv_timeout(DEADLINE).unwrap();
        work(&db, &gate);
        (whole.join().unwrap(), streamed.join().unwrap())
    });
    let count = |kinds: &[u8], kind: u8| kinds.iter().filter(|found| **found == kind).count();
    for (kind, at_least) in [(b'S', 20), (b'E', 20), (b'c', 6), (b'A', 5)] {
        let (none, some) = (count(&whole.1, kind), count(&streamed.1, kind));
        println!("Postgres {}: {some} {:?}", version as u32, kind as char);
        assert!(none == 0 && some >= at_least, "{none} and {some} messages {:?}", kind as char);
    }
    let rows = |kinds: &[u8]| b"IUD".iter().map(|kind| count(kinds, *kind)).sum::<usize>();
    println!("{} rows told, and {} when streamed", rows(&whole.1), rows(&streamed.1));
    assert!(rows(&streamed.1) > rows(&whole.1) + 5_000, "what is rolled back was told");
    let (whole, streamed) = (whole.0, streamed.0);
    assert!(whole.lines().count() > 30_000);
    let differs = whole.lines().zip(streamed.lines()).position(|(whole, streamed)| whole != streamed);
    if let Some(at) = differs {
        let line = |text: &str| text.lines().nth(at).unwrap_or_default().to_string();
        panic!("Postgres {}, line {}:\n{}\ninstead of\n{}", version as u32, at + 1, line(&streamed), line(&whole));
    }
    assert_eq!(whole.len(), streamed.len());
}

#[test]
fn open_transactions_are_published_byte_for_byte_as_committed_ones_by_14() {
    says_the_same(V14);
}

#[test]
fn open_transactions_are_published_byte_for_byte_as_committed_ones_by_17() {
    says_the_same(V17);
}

#[test]
fn open_transactions_are_published_byte_for_byte_as_committed_ones_by_18() {
    says_the_same(V18);
}

/// Resident memory that the process may reach with the default limits.
const RESIDENT_BYTES_MAX: u64 = 64 << 20;

#[test]
fn killed_within_an_open_transaction_it_publishes_each_of_its_rows_once() {
    const ROWS: usize = 300_000;
    let db = postgres::shared(V17).create_database();
    let kafka = kafka::shared();
    db.execute("CREATE TABLE seat (id int PRIMARY KEY, note text); CREATE TABLE other (id int PRIMARY KEY)");
    let name = db.name.clone();
    let text = program::config(&name, &db.url, kafka.address(), &["public.seat", "public.other"]);
    let text = text.replace("source: {", "source: { streaming: true, decoding_work_mem: 1MiB,");
    let binary = Path::new(env!("CARGO_BIN_EXE_offshoot"));
    let mut offshoot = Offshoot::run(binary, &text);
    offshoot.wait_ready(program::START_MAX);
    let open = db.connect();
    let seats = |from: usize, to: usize| {
        format!("INSERT INTO seat SELECT i, 'a note of some length' FROM generate_series({from}, {to} - 1) i")
    };
    let confirmed = || {
        db.text(&format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'offshoot_{name}'"))
    };
    open.execute("BEGIN");
    let begun = db.text("SELECT pg_current_wal_insert_lsn()");
    open.execute(&seats(0, ROWS / 3));
    for life in 0..3 {
        // What is committed meanwhile leaves, and is confirmed past where the open one began.
        db.execute(&format!("INSERT INTO other VALUES ({life})"));
        let small = db.text("SELECT pg_current_wal_lsn()");
        wait::until(DEADLINE, "a small one to be confirmed", || {
            db.text(&format!(
                "SELECT '{}'::pg_lsn >= '{small}'::pg_lsn AND '{small}'::pg_lsn > '{begun}'::pg_lsn",
                confirmed()
            )) == "t"
        });
        offshoot.wait("rows that are not committed", DEADLINE, |offshoot| {
            offshoot.metric("offshoot_spill_bytes").filter(|bytes| *bytes > 1e6)
        });
        let config = offshoot.config().clone();
        offshoot.kill();
        offshoot = Offshoot::run_again(binary, &config);
        offshoot.wait_ready(program::START_MAX);
        match life {
            0 => {
                open.execute(&format!("SAVEPOINT goes; {}", seats(ROWS, ROWS * 2)));
            }
            1 => open.execute(&format!("ROLLBACK TO goes; {}", seats(ROWS / 3, ROWS))),
            _ => open.execute("COMMIT"),
        }
    }
    let mut seen = vec![false; ROWS];
    offshoot.wait("all of it to be acknowledged", DEADLINE, |offshoot| {
        (offshoot.metric("offshoot_records_acknowledged_total")? as usize >= ROWS).then_some(())
    });
    offshoot.wait("the file to go", DEADLINE, |offshoot| {
        offshoot.metric("offshoot_spill_bytes").filter(|bytes| *bytes == 0.0)
    });
    let peak = offshoot.peak_memory().expect("it runs");
    assert!(offshoot.terminate(program::START_MAX).success());
    kafka.reader(&[format!("{name}.public.seat").as_str()], DEADLINE).read_to_end(DEADLINE, |record| {
        let key = record.key.expect("it has a key");
        let id: String = String::from_utf8_lossy(&key).chars().filter(char::is_ascii_digit).collect();
        let id: usize = id.parse().expect("the key is an id");
        assert!(!std::mem::replace(&mut seen[id], true), "{id} came twice");
    });
    assert!(seen.iter().all(|seen| *seen), "some rows never came");
    let mut others = 0;
    kafka.reader(&[format!("{name}.public.other").as_str()], DEADLINE).read_to_end(DEADLINE, |_| others += 1);
    assert_eq!(others, 3);
    println!("peak {:.1} MiB", peak as f64 / (1 << 20) as f64);
    assert!(peak < RESIDENT_BYTES_MAX, "{peak} bytes were resident");
}
