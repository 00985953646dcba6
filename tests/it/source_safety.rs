//! What Offshoot may do to the database that carries the company: its locks, its queries, its slot, a shutdown.

use std::{
    sync::{
        Barrier, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    config_changes::at_once,
    pipe::{DEADLINE, Pipe, ends, now, says, stops},
    support::{
        kafka::{self, Broker},
        postgres::{
            self, Db, Server,
            Version::{self, V17},
        },
        program::Offshoot,
        wait,
    },
};

/// A look rests a hundred times as long as it took: on a busy machine the next one may be a minute away.
const LOOK_MAX: Duration = Duration::from_secs(150);

/// A server that logs every statement, with the application that sent it.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| postgres::private(V17, &[("log_statement", "all"), ("log_line_prefix", "%a|")]))
}

fn database() -> Db {
    let db = server().create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, note text)");
    db
}

/// A Kafka that is there for the start, which wants to know how far events have come, and can be stopped.
fn leaving() -> Broker {
    kafka::private(&kafka::Options::default())
}

/// Waits until what is published has been looked at.
fn looked(offshoot: &mut Offshoot) {
    offshoot.wait("a look", LOOK_MAX, |o| o.metric("offshoot_server_lsn").filter(|lsn| *lsn > 0.0));
}

/// So much log that belongs to no table.
fn flood(db: &Db, mebibytes: u32) {
    let message = "pg_logical_emit_message(false, 'flood', repeat('x', 1048576))";
    db.execute(&format!("SELECT count({message}) FROM generate_series(1, {mebibytes})"));
}

/// It ends with 8 at a look, and says all of these words. What it printed.
#[track_caller]
fn ended(offshoot: &mut Offshoot, words: &[&str]) -> String {
    let status = offshoot.exit(LOOK_MAX);
    // What it said last may still be on its way through the pipe.
    let _ = wait::attempt(DEADLINE, || offshoot.log().iter().any(|line| line.contains("stopped")));
    let log = offshoot.log().join("\n");
    assert_eq!(status.code(), Some(8), "{log}");
    says(&log, words);
    log
}

fn slots(db: &Db) -> String {
    db.text("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
}

/// These wait for one look after another: together they take no longer than the longest.
#[test]
fn beside_the_application() {
    at_once(&[
        a_slot_that_keeps_too_much_log_ends_with_8_and_goes_on_where_it_was,
        a_slot_that_keeps_too_much_log_is_dropped_where_the_config_says_so,
        starts_and_looks_while_every_table_is_locked,
        a_table_that_cannot_be_locked_is_waited_for_without_holding_up_others,
        a_catalog_that_is_locked_is_given_up_and_asked_again,
        no_query_reads_a_table,
    ]);
}

/// Kafka is away, and nobody watches at night.
fn a_slot_that_keeps_too_much_log_ends_with_8_and_goes_on_where_it_was() {
    let db = database();
    let small = "limits: { slot_wal_warn: 32MiB, slot_wal_stop: 200MiB }".to_owned();
    let broker = leaving();
    let pipe = Pipe { brokers: broker.address().into(), rest: small, ..Pipe::of(&db) };
    let mut offshoot = pipe.ready();
    // From here on the slot is known to have been there.
    offshoot.wait("progress", DEADLINE, |o| o.metric("offshoot_commits_total").filter(|commits| *commits > 0.0));
    broker.stop();
    db.execute("INSERT INTO t VALUES (1, 'x')");
    flood(&db, 40);
    let line = offshoot.wait_log("the server keeps much log for the slot", LOOK_MAX);
    says(&line, &["WARN", "MiB", &pipe.slot()]);
    let metric = |name: &str| offshoot.metric(name).unwrap();
    assert_eq!(metric("offshoot_slot_limit_bytes{limit=\"warn\"}"), f64::from(32 << 20));
    assert_eq!(metric("offshoot_slot_limit_bytes{limit=\"stop\"}"), f64::from(200 << 20));
    flood(&db, 180);
    let words = ["MiB of log for it", "limits.slot_wal_stop is 200.0 MiB", "not lost", "see that Kafka takes it"];
    ended(&mut offshoot, &words);
    assert_eq!(slots(&db), "1");
    // A start looks before it reads.
    pipe.ends(8, &words);
    // With more room, and Kafka back, nothing is missing.
    let rest = "limits: { slot_wal_warn: 32MiB, slot_wal_stop: 1GiB }".to_owned();
    broker.start();
    let pipe = Pipe { rest, ..pipe };
    let mut offshoot = pipe.ready();
    offshoot.wait("the row to arrive", DEADLINE, |_| (pipe.ids(&broker, "t") == [1]).then_some(()));
    offshoot.wait("the slot to follow", LOOK_MAX, |offshoot| {
        db.execute("CHECKPOINT");
        offshoot.log().iter().any(|line| line.contains("keeps little log for the slot again")).then_some(())
    });
    stops(offshoot);
}

fn a_slot_that_keeps_too_much_log_is_dropped_where_the_config_says_so() {
    let db = database();
    let rest = "limits: { slot_wal_stop: 64MiB, slot_wal_action: drop_slot }".to_owned();
    let broker = leaving();
    let pipe = Pipe { brokers: broker.address().into(), rest, ..Pipe::of(&db) };
    let mut offshoot = pipe.ready();
    // From here on the slot is known to have been there.
    offshoot.wait("progress", DEADLINE, |o| o.metric("offshoot_commits_total").filter(|commits| *commits > 0.0));
    broker.stop();
    let before = now(&db);
    db.execute("INSERT INTO t VALUES (1, 'x')");
    flood(&db, 70);
    let words = ["the slot is dropped", "limits.slot_wal_stop is 64.0 MiB", "nothing was delivered since"];
    let log = ended(&mut offshoot, &words);
    let from = log.split("Lost is what was committed from ").nth(1).unwrap_or_default().split(' ').next().unwrap();
    assert_eq!(db.text(&format!("SELECT '{from}'::pg_lsn <= '{before}'")), "t", "{log}");
    assert_eq!(slots(&db), "0");
    // Never silently from the present on.
    broker.start();
    pipe.ends(5, &["is not there any more", "offshoot resume --new-slot"]);
    assert_eq!(pipe.command(&["resume", "--new-slot", "--yes"]).0, 0);
    pipe.prepare();
}

/// Nothing that we ask needs a lock on a table: not even ACCESS SHARE, which would wait here.
fn starts_and_looks_while_every_table_is_locked() {
    let db = database();
    db.execute(
        "CREATE TABLE part (id int, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
         CREATE TABLE keyless (id int)",
    );
    let pipe = Pipe::of(&db);
    pipe.prepare();
    let migration = db.connect();
    migration.execute("BEGIN; LOCK TABLE t, part, part_1, keyless IN ACCESS EXCLUSIVE MODE");
    let began = Instant::now();
    pipe.checks(0, &["publications:"]);
    let mut offshoot = pipe.ready();
    looked(&mut offshoot);
    println!("checked, started and looked within {:.1?}", began.elapsed());
    migration.execute("ROLLBACK");
    db.execute("INSERT INTO t VALUES (1, 'x')");
    offshoot.wait("the row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1]).then_some(()));
    stops(offshoot);
}

/// The one lock we take, SHARE UPDATE EXCLUSIVE on a table that joins, is given up after two seconds.
fn a_table_that_cannot_be_locked_is_waited_for_without_holding_up_others() {
    let db = database();
    let pipe = Pipe::of(&db);
    let mut offshoot = pipe.ready();
    looked(&mut offshoot);
    db.execute("CREATE TABLE free (id int PRIMARY KEY); CREATE TABLE held (id int PRIMARY KEY)");
    let vacuum = db.connect();
    vacuum.execute("BEGIN; LOCK TABLE held IN SHARE UPDATE EXCLUSIVE MODE");
    let pid = vacuum.text("SELECT pg_backend_pid()");
    let done = AtomicBool::new(false);
    let longest = thread::scope(|scope| {
        // An application's own migration of the other table: it waits for us while we wait for the held one.
        let migrations = scope.spawn(|| {
            let session = db.connect();
            let mut longest = Duration::ZERO;
            while !done.load(Relaxed) {
                let began = Instant::now();
                session.execute("ALTER TABLE free SET (fillfactor = 90)");
                longest = longest.max(began.elapsed());
                let _ = wait::attempt(Duration::from_millis(50), || done.load(Relaxed));
            }
            longest
        });
        let line = offshoot.wait_log("the publications are not as the config asks", LOOK_MAX);
        let held = format!("PID {pid} holds ShareUpdateExclusiveLock on public.held");
        says(&line, &["WARN", "lock timeout", &held, "nothing was changed", "tried again"]);
        done.store(true, Relaxed);
        migrations.join().unwrap()
    });
    println!("an ALTER TABLE waited for us for at most {longest:.1?}");
    assert!(longest < Duration::from_secs(4), "an ALTER TABLE waited for {longest:?}");
    // What is published goes on meanwhile.
    db.execute("INSERT INTO t VALUES (1, 'x')");
    offshoot.wait("the row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1]).then_some(()));
    vacuum.execute("COMMIT");
    offshoot.wait_log("table=public.held", LOOK_MAX);
    db.execute("INSERT INTO held VALUES (7)");
    offshoot.wait("the row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "held") == [7]).then_some(()));
    stops(offshoot);
}

fn a_catalog_that_is_locked_is_given_up_and_asked_again() {
    let db = database();
    let pipe = Pipe::of(&db);
    pipe.prepare();
    let other = db.connect();
    other.execute("BEGIN; LOCK TABLE pg_publication IN ACCESS EXCLUSIVE MODE");
    let mut offshoot = pipe.run();
    let line = offshoot.wait_log("retry_in=", DEADLINE);
    says(&line, &["lock timeout"]);
    other.execute("ROLLBACK");
    offshoot.wait_ready(DEADLINE);
    stops(offshoot);
}

fn no_query_reads_a_table() {
    let db = database();
    let tables = "CREATE TABLE zebra (id int PRIMARY KEY, note text); CREATE TABLE zebra_log (id int);
        CREATE TABLE zebra_part (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE zebra_part_1 PARTITION OF zebra_part FOR VALUES FROM (0) TO (10)";
    db.execute(tables);
    let scans =
        "SELECT coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0) FROM pg_stat_user_tables WHERE relname ~ 'zebra'";
    db.execute("SELECT pg_stat_force_next_flush()");
    wait::until(DEADLINE, "the counts of the indexes' making", || db.text(scans) == "2");
    db.execute("SELECT pg_stat_reset()");
    let pipe = Pipe { source: "omit_columns: [public.zebra.note]".into(), ..Pipe::of(&db) };
    pipe.checks(0, &[]);
    let mut offshoot = pipe.ready();
    looked(&mut offshoot);
    db.execute(
        "INSERT INTO zebra VALUES (1, 'x'); INSERT INTO zebra_part VALUES (1); INSERT INTO zebra_log VALUES (1)",
    );
    db.execute("CREATE TABLE zebra_late (id int); ALTER TABLE zebra_late REPLICA IDENTITY FULL");
    offshoot.wait_log("table=public.zebra_late", LOOK_MAX);
    offshoot.wait("the row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "zebra") == [1]).then_some(()));
    stops(offshoot);
    assert_eq!(pipe.command(&["drop", "--yes"]).0, 0);

    // Sessions write their counts when they end.
    wait::until(DEADLINE, "our sessions to end", || {
        db.text("SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^offshoot_' AND datname = current_database()") == "0"
    });
    assert_eq!(db.text(scans), "0", "tables were read");
    // The counts tell: this one is seen.
    db.execute("SELECT * FROM zebra; SELECT pg_stat_force_next_flush()");
    wait::until(DEADLINE, "the count of a scan", || db.text(scans) == "1");

    let log = server().log();
    let application = format!("offshoot_{}|", db.name);
    let ours: Vec<_> = log.lines().filter(|line| line.starts_with(&application)).collect();
    assert!(ours.len() > 20, "the log has {} lines of ours", ours.len());
    for line in ours {
        let named = line.contains("zebra");
        assert!(!named || line.contains(" PUBLICATION "), "a statement names a table: {line}");
    }
}

/// A walsender waits for us to confirm what we may not; we leave instead.
#[test]
fn a_fast_shutdown_takes_seconds_while_kafka_is_away() {
    let broker = leaving();
    let (ready, left) = (Barrier::new(Version::ALL.len() + 1), Barrier::new(Version::ALL.len() + 1));
    let stop = |version: Version| {
        let server = postgres::private(version, &[]);
        let db = server.create_database();
        db.execute("CREATE TABLE t (id int PRIMARY KEY)");
        let pipe = Pipe { brokers: broker.address().into(), ..Pipe::of(&db) };
        let mut offshoot = pipe.ready();
        ready.wait();
        left.wait();
        db.execute("INSERT INTO t SELECT generate_series(1, 1000)");
        offshoot.wait("records in flight", DEADLINE, |o| o.metric("offshoot_in_flight_bytes").filter(|n| *n > 0.0));
        let began = Instant::now();
        server.stop();
        let took = began.elapsed();
        assert!(offshoot.process().exited().is_none());
        took
    };
    thread::scope(|scope| {
        let stop = &stop;
        let stops = Version::ALL.map(|version| (version, scope.spawn(move || stop(version))));
        ready.wait();
        broker.stop();
        left.wait();
        for (version, took) in stops {
            let took = took.join().unwrap();
            println!("Postgres {} stopped within {took:.1?}", version as u32);
            assert!(took < Duration::from_secs(10), "Postgres {} took {took:?}", version as u32);
        }
    });
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    let db = database();
    let with = |limits: &str| Pipe { rest: format!("limits: {{ {limits} }}"), ..Pipe::of(&db) };
    ends(with("slot_wal_action: drop_slot").run(), 2, &["needs a `limits.slot_wal_stop`"]);
    ends(with("slot_wal_stop: 1MiB").run(), 2, &["must be at least 64MiB"]);
    ends(with("slot_wal_action: shrug, slot_wal_stop: 1GiB").run(), 2, &["limits.slot_wal_action", "drop_slot"]);
}
