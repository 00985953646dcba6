//! A primary that dies and a standby that is promoted -> the same topic goes on, or words that say why it does not.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Instant,
};

use postgres_protocol::message::frontend;
use tokio_postgres::config::Host;
use tokio_util::bytes::BytesMut;

use crate::{
    outages::Walk,
    pipe::{DEADLINE, Pipe, ends, says, stops},
    support::{
        kafka,
        postgres::{self, Db, Server, Session, V15, V16, V17, Version},
        wait,
    },
};

/// A primary and a hot standby that follows it; from PostgreSQL 17 on it keeps the logical slots in step.
fn pair(version: Version) -> (Server, Server) {
    let primary = postgres::private(version, &[]);
    primary.session("postgres").execute("SELECT pg_create_physical_replication_slot('phys', true)");
    let standby = primary.standby();
    let follow =
        format!("host=127.0.0.1 port={} user=postgres password={} dbname=postgres", primary.port(), postgres::PASSWORD);
    standby.configure(&[("primary_conninfo", &follow), ("primary_slot_name", "phys"), ("hot_standby_feedback", "on")]);
    if version >= V17 {
        standby.configure(&[("sync_replication_slots", "on")]);
    }
    (primary, standby)
}

/// The URL that names both.
fn both((primary, standby): (&Server, &Server), database: &str) -> String {
    let (password, p, s) = (postgres::PASSWORD, primary.port(), standby.port());
    format!("postgres://postgres:{password}@127.0.0.1:{p},127.0.0.1:{s}/{database}?target_session_attrs=read-write")
}

/// Waits until the standby has a slot that outlives a fail-over.
fn synced((primary, standby): (&Server, &Server), slot: &str) {
    let (primary, standby) = (primary.session("postgres"), standby.session("postgres"));
    let ready =
        format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND synced AND NOT temporary");
    wait::until(DEADLINE, "the slot to be kept in step", || {
        // What lets the slot's own start move on, so that the standby has all of its log.
        primary.execute("SELECT pg_log_standby_snapshot()");
        standby.text(&ready) == "1"
    });
}

/// Waits until the standby has all that the primary has.
fn replayed(primary: &Session, standby: &Server) {
    let end = primary.text("SELECT pg_current_wal_flush_lsn()");
    let session = standby.session("postgres");
    let has = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    wait::until(DEADLINE, "the standby to follow", || session.text(&has) == "t");
}

fn promote(standby: &Server) {
    assert_eq!(standby.session("postgres").text("SELECT pg_promote()"), "t");
}

fn database(server: &Server) -> Db {
    let db = server.create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, note text)");
    db
}

fn progress(pipe: &str) -> serde_json::Value {
    kafka::shared().read_all(&format!("offshoot.{pipe}.progress")).last().expect("there is a record").value_json()
}

#[test]
fn from_17_on_it_goes_on_at_the_promoted_standby_by_itself() {
    let (primary, standby) = pair(V17);
    let url = both((&primary, &standby), "postgres");
    let name = kafka::shared().topic_name("failover").replace('.', "_");
    let mut walk = Walk::new(&name, &url, kafka::shared());
    let mut offshoot = walk.started();
    synced((&primary, &standby), &format!("offshoot_{name}"));
    // From now on nothing is published that the standby does not have.
    primary.configure(&[("synchronized_standby_slots", "phys")]);
    walk.commit(300);
    let published = offshoot.metric("offshoot_records_acknowledged_total");
    assert!(published > Some(0.0), "{published:?}");
    primary.kill();
    let began = Instant::now();
    promote(&standby);
    let promoted = began.elapsed();
    offshoot.wait("the promoted standby to be read from", DEADLINE, |_| walk.slot("active_pid"));
    offshoot.wait_ready(DEADLINE);
    println!("promoted in {promoted:.1?}, streaming {:.1?} after the primary died", began.elapsed());
    walk.commit(200);
    let log = offshoot.log().join("\n");
    assert!(!log.contains("the fail-over has undone"), "{log}");
    walk.settle(offshoot, 0);
    assert_eq!(progress(&name)["origin"]["timeline"], 2);
}

#[test]
fn what_a_failover_has_undone_is_said_and_an_old_primary_is_refused() {
    let (primary, standby) = pair(V17);
    let db = database(&primary);
    let mut pipe = Pipe::of(&db);
    pipe.url = both((&primary, &standby), &db.name);
    let mut offshoot = pipe.ready();
    let mut arrives = |ids: &[i64]| {
        offshoot.wait("rows to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == ids).then_some(()));
    };
    db.execute("INSERT INTO t VALUES (1)");
    arrives(&[1]);
    synced((&primary, &standby), &pipe.slot());
    replayed(&db, &standby);
    // Published before any standby has it: `synchronized_standby_slots` is not set.
    standby.stop();
    db.execute("INSERT INTO t VALUES (2)");
    arrives(&[1, 2]);
    primary.kill();
    standby.start();
    promote(&standby);
    let there = standby.session(&db.name);
    there.execute("INSERT INTO t VALUES (3); INSERT INTO t VALUES (4)");
    arrives(&[1, 2, 3, 4]);
    let line = offshoot.wait_log("the fail-over has undone", DEADLINE);
    says(&line, &["WARN", "timeline=2", "from=", "to="]);
    println!("{line}");
    assert_eq!(there.text("SELECT string_agg(id::text, ',' ORDER BY id) FROM t"), "1,3,4");

    let restarts = offshoot.metric("offshoot_restarts_total");
    primary.start();
    Pipe { url: primary.url(&db.name), ..pipe.clone() }.ends(
        5,
        &["of timeline 2: the server's log ends at", "of timeline 1. It was moved back", "Connect to the right server"],
    );
    assert_eq!(progress(&pipe.name)["origin"]["timeline"], 2, "it wrote nothing");
    // The right one has not noticed.
    there.execute("INSERT INTO t VALUES (5)");
    offshoot.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1, 2, 3, 4, 5]).then_some(()));
    assert_eq!(offshoot.metric("offshoot_restarts_total"), restarts, "it was fenced off");
    stops(offshoot);
    assert_eq!(kafka::shared().read_all(&pipe.topic("t")).len(), 5, "each once");
}

#[test]
fn before_17_a_promoted_standby_has_no_slot_and_that_is_a_gap_that_resume_names() {
    let (primary, standby) = pair(V15);
    let db = database(&primary);
    let mut pipe = Pipe::of(&db);
    pipe.url = both((&primary, &standby), &db.name);
    let mut offshoot = pipe.ready();
    db.execute("INSERT INTO t VALUES (1)");
    offshoot.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1]).then_some(()));
    replayed(&db, &standby);
    primary.kill();
    // A standby that is not promoted is waited for.
    offshoot.wait_log("is a standby", DEADLINE);
    promote(&standby);
    ends(
        offshoot,
        5,
        &["is not there any more", "every change that was committed since", "offshoot resume --new-slot"],
    );
    let there = standby.session(&db.name);
    there.execute("INSERT INTO t VALUES (2)");
    let (code, text) = pipe.command(&["resume", "--new-slot", "--yes"]);
    assert_eq!(code, 0, "{text}");
    says(&text, &["is not published", "in epoch 2"]);
    pipe.prepare();
    there.execute("INSERT INTO t VALUES (3)");
    pipe.arrives("t", &[1, 3]);
    assert_eq!(progress(&pipe.name)["epoch"], 2);
    assert_eq!(progress(&pipe.name)["origin"]["timeline"], 2);
}

#[test]
fn its_slot_is_one_that_standbys_keep_and_check_says_when_it_is_not() {
    let db = database(postgres::shared(V17));
    let pipe = Pipe::of(&db);
    let by_hand = |version: Version| {
        let db = database(postgres::shared(version));
        let mut pipe = Pipe::of(&db);
        pipe.source = "create: false".into();
        let (_, text) = pipe.command(&["check"]);
        says(&text, &["pg_create_logical_replication_slot("]);
        text.contains("'pgoutput', failover => true)")
    };
    assert!(by_hand(V17) && !by_hand(V16));
    // There is no standby, and nothing waits for one.
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    pipe.arrives("t", &[1]);
    let slot = pipe.slot();
    assert_eq!(db.text(&format!("SELECT failover FROM pg_replication_slots WHERE slot_name = '{slot}'")), "t");
    assert!(!pipe.checks(0, &[]).contains("ALTER_REPLICATION_SLOT"));
    replicate(&db, &format!("ALTER_REPLICATION_SLOT \"{slot}\" (FAILOVER false)"));
    let mend = format!("ALTER_REPLICATION_SLOT \"{slot}\" (FAILOVER true)");
    pipe.checks(0, &["was made without failover", &mend]);
    replicate(&db, &mend);
    assert!(!pipe.checks(0, &[]).contains("ALTER_REPLICATION_SLOT"));
}

/// Runs a replication command, as psql does with `replication=database`.
fn replicate(db: &Db, command: &str) {
    let config: tokio_postgres::Config = db.socket_url().parse().unwrap();
    let Host::Unix(dir) = &config.get_hosts()[0] else { panic!("it is a socket's URL") };
    let mut stream = UnixStream::connect(dir.join(format!(".s.PGSQL.{}", config.get_ports()[0]))).unwrap();
    let mut out = BytesMut::new();
    let parameters = [("user", "postgres"), ("database", &db.name), ("replication", "database")];
    frontend::startup_message(parameters, &mut out).unwrap();
    frontend::query(command, &mut out).unwrap();
    frontend::terminate(&mut out);
    stream.write_all(&out).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(!text.contains("ERROR") && text.contains("ALTER_REPLICATION_SLOT"), "{text}");
}
