//! Sessions that write at random into a table whose triggers write its history, and what a topic tells of it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde::Deserialize;

use crate::{
    checker::{self, Change, Op, Record, Row, Value},
    support::{
        kafka::{self, Broker},
        postgres::Session,
        wait,
    },
};

/// The table that is published.
pub(crate) const TABLE: &str = "public.account";
/// Sessions that write.
const WRITERS: u64 = 8;
/// Keys that all sessions fight for.
const HOT_KEYS: u64 = 12;
const COLD_KEYS: u64 = 20_000;

const SCHEMA: &str = "
    CREATE TABLE account (id bigint PRIMARY KEY, stamp bigint NOT NULL, note text NOT NULL);
    CREATE SEQUENCE fresh START 1000000;
    CREATE TABLE history (n bigserial, xid bigint NOT NULL, op text NOT NULL, old_id bigint, new_id bigint, stamp bigint,
        note_len int);
    CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        -- After the row is locked and before it is free again: n rises with the changes of a key.
        IF TG_OP = 'DELETE' THEN
            INSERT INTO history (xid, op, old_id) VALUES (pg_current_xact_id()::text::bigint, TG_OP, OLD.id);
        ELSE
            INSERT INTO history (xid, op, old_id, new_id, stamp, note_len)
            VALUES (pg_current_xact_id()::text::bigint, TG_OP, CASE TG_OP WHEN 'UPDATE' THEN OLD.id END, NEW.id, NEW.stamp,
                length(NEW.note));
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON account FOR EACH ROW EXECUTE FUNCTION remember();";

/// Sessions that write until they are told to stop. A server that goes away is waited for.
pub(crate) struct Workload {
    url: String,
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    committed: AtomicU64,
    refused: Mutex<Vec<String>>,
}

impl Workload {
    /// Makes the tables.
    pub(crate) fn create(url: &str) -> Workload {
        Session::connect(url).unwrap().execute(SCHEMA);
        Workload { url: url.into(), shared: Arc::default(), writers: Vec::new() }
    }

    /// Starts the sessions; `pause` is how long each of them rests between two transactions.
    pub(crate) fn start(&mut self, seed: u64, pause: Duration) {
        self.shared.stop.store(false, Relaxed);
        for writer in 0..WRITERS {
            let (url, shared) = (self.url.clone(), self.shared.clone());
            let rng = fastrand::Rng::with_seed(seed.wrapping_add(writer));
            self.writers.push(thread::spawn(move || write(&url, &shared, rng, pause)));
        }
    }

    /// Transactions that the sessions know to be committed.
    pub(crate) fn committed(&self) -> u64 {
        self.shared.committed.load(Relaxed)
    }

    /// Stops the sessions.
    pub(crate) fn stop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.writers.drain(..).for_each(|writer| writer.join().expect("no writer panics"));
        assert_eq!(self.shared.refused.lock().unwrap().as_slice(), [""; 0], "statements that the server refused");
    }

    /// What the table's triggers wrote.
    pub(crate) fn history(&self) -> Vec<Change> {
        let session = Session::connect(&self.url).unwrap();
        let rows = session.query("SELECT n, xid, op, old_id, new_id, stamp, note_len FROM history ORDER BY n", &[]);
        let change = |row: &tokio_postgres::Row| {
            let (old, new): (Option<i64>, Option<i64>) = (row.get(3), row.get(4));
            let to = || Row { stamp: row.get(5), note_len: row.get::<_, i32>(6) as usize };
            let op = match (row.get(2), old, new) {
                ("INSERT", None, Some(id)) => Op::Insert { id, row: to() },
                ("UPDATE", Some(from), Some(id)) if from == id => Op::Update { id, row: to() },
                ("UPDATE", Some(from), Some(to_id)) => Op::Move { from, to: to_id, row: to() },
                ("DELETE", Some(id), None) => Op::Delete { id },
                other => panic!("the trigger writes no {other:?}"),
            };
            Change { n: row.get::<_, i64>(0) as u64, xid: row.get::<_, i64>(1) as u64, op }
        };
        rows.iter().map(change).collect()
    }

    /// Compares a topic with the history.
    #[track_caller]
    pub(crate) fn check(&self, topic: &[Vec<Record>], starts: usize, deaths: &[checker::Death]) -> checker::Summary {
        checker::check(&self.history(), topic, starts, deaths).unwrap_or_else(|fault| panic!("{fault}"))
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for writer in self.writers.drain(..) {
            let _ = writer.join();
        }
    }
}

fn write(url: &str, shared: &Shared, mut rng: fastrand::Rng, pause: Duration) {
    let stopped = || shared.stop.load(Relaxed);
    while !stopped() {
        let session = Session::connect(url).and_then(|session| {
            session.try_execute("SET deadlock_timeout = '50ms'")?;
            Ok(session)
        });
        let Ok(session) = session else {
            let _ = wait::attempt(Duration::from_millis(100), stopped);
            continue;
        };
        while !stopped() {
            let (sql, commits) = transaction(&mut rng);
            match session.try_execute(&sql) {
                Ok(()) => _ = shared.committed.fetch_add(u64::from(commits), Relaxed),
                Err(error) => match error.code().map(|code| code.code()) {
                    // A deadlock, and two that insert one key.
                    Some("40P01" | "23505") => session.try_execute("ROLLBACK").unwrap_or_default(),
                    // The server is going, or gone.
                    Some("57P01" | "57P02" | "57P03") | None => break,
                    Some(_) => shared.refused.lock().unwrap().push(format!("{sql}: {error:?}")),
                },
            }
            let _ = wait::attempt(rng.u32(0..=200) * pause / 100, stopped);
        }
    }
}

/// A transaction, and whether it means to commit.
fn transaction(rng: &mut fastrand::Rng) -> (String, bool) {
    let mut sql = String::from("BEGIN;");
    let statements = match rng.u8(..) {
        0..150 => 1,
        150..250 => rng.usize(2..8),
        _ => rng.usize(30..80),
    };
    for _ in 0..statements {
        match rng.u8(..) {
            0..20 => {
                sql += &format!("SAVEPOINT s; {} ROLLBACK TO s; {}", statement(rng), statement(rng));
            }
            20..30 => sql += &format!("SAVEPOINT s; {} RELEASE s;", statement(rng)),
            // Commits of others come before this one, with later rows.
            30..32 => sql += "SELECT pg_sleep(0.03);",
            _ => sql += &statement(rng),
        }
    }
    let commits = rng.u8(..) > 25;
    (sql + if commits { "COMMIT" } else { "ROLLBACK" }, commits)
}

fn statement(rng: &mut fastrand::Rng) -> String {
    let key = if rng.bool() { rng.u64(0..HOT_KEYS) } else { rng.u64(HOT_KEYS..COLD_KEYS) };
    // Ranges are of cold keys: else everybody would wait for everybody.
    let range = |rng: &mut fastrand::Rng, len: u64| {
        let from = rng.u64(HOT_KEYS..COLD_KEYS);
        format!("BETWEEN {from} AND {}", from + rng.u64(0..len))
    };
    let stamp = rng.u32(..);
    let note = rng.usize(0..400);
    match rng.u8(..) {
        0..80 => format!(
            "INSERT INTO account VALUES ({key}, {stamp}, 'vAlUe-' || repeat('n', {note}))
             ON CONFLICT (id) DO UPDATE SET stamp = excluded.stamp, note = excluded.note;"
        ),
        80..160 => {
            format!("UPDATE account SET stamp = {stamp}, note = 'vAlUe-' || repeat('u', {note}) WHERE id = {key};")
        }
        160..190 => format!("DELETE FROM account WHERE id = {key};"),
        190..205 => format!("UPDATE account SET id = nextval('fresh'), stamp = {stamp} WHERE id = {key};"),
        205..215 => format!("UPDATE account SET stamp = stamp + 1 WHERE id {};", range(rng, 400)),
        215..225 => format!("DELETE FROM account WHERE id {};", range(rng, 100)),
        225..230 => format!("UPDATE account SET id = nextval('fresh') WHERE id {};", range(rng, 50)),
        230..255 => {
            let (from, len) = (rng.u64(HOT_KEYS..COLD_KEYS), rng.u64(0..300));
            format!(
                "INSERT INTO account SELECT i, {stamp}, 'vAlUe-' || repeat('m', {note}) FROM generate_series({from}, {}) i
                 ON CONFLICT (id) DO UPDATE SET stamp = excluded.stamp;",
                from + len
            )
        }
        255.. => format!(
            "INSERT INTO account SELECT nextval('fresh'), {stamp}, 'vAlUe-' || repeat('x', {note}) FROM generate_series(1, {});",
            rng.u32(2_000..10_000)
        ),
    }
}

/// What a topic holds, partition by partition.
pub(crate) fn read(kafka: &Broker, topic: &str, deadline: Duration) -> Vec<Vec<Record>> {
    let mut partitions = vec![Vec::new(); kafka.partitions(topic)];
    let mut reader = kafka.reader(&[topic], deadline);
    reader.read_to_end(deadline, |record| {
        let partition: &mut Vec<Record> = &mut partitions[record.partition as usize];
        // With transactions there are marks between the records, which count as places and are none.
        assert!(record.offset as usize >= partition.len(), "offsets rise");
        partition.push(decode(&record));
    });
    partitions
}

fn decode(record: &kafka::Record) -> Record {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        after: Option<After>,
        source: Source,
        op: &'a str,
    }
    #[derive(Deserialize)]
    struct After {
        stamp: i64,
        note: String,
    }
    #[derive(Deserialize)]
    struct Source {
        #[serde(rename = "txId")]
        xid: u64,
        sequence: String,
    }
    let value = record.value.as_deref().map(|value| {
        let fault = |e| -> ! { panic!("{e} in {}", String::from_utf8_lossy(value)) };
        let envelope: Envelope<'_> = serde_json::from_slice(value).unwrap_or_else(|e| fault(e));
        let [commit, index]: [String; 2] = serde_json::from_str(&envelope.source.sequence).unwrap_or_else(|e| fault(e));
        Value {
            xid: envelope.source.xid,
            commit: commit.parse().unwrap(),
            index: index.parse().unwrap(),
            op: envelope.op.as_bytes()[0],
            row: envelope.after.map(|after| Row { stamp: after.stamp, note_len: after.note.len() }),
        }
    });
    Record { key: record.key_json()["id"].as_i64().expect("the key has an id"), value }
}
