//! The servers that the other tests stand on: that they start, answer, stop, and leave nothing behind.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{
    kafka,
    postgres::{self, Version},
    process, wait,
};

/// Long enough for a busy machine; nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(60);

fn streams_pgoutput(version: Version) {
    let server = postgres::shared(version);
    let db = server.create_database();
    let number: u32 = db.text("SHOW server_version_num").parse().unwrap();
    assert_eq!(number / 10_000, version as u32);
    db.execute("CREATE TABLE seat (id int PRIMARY KEY, row text); CREATE PUBLICATION p FOR TABLE seat");
    db.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", db.name));
    db.execute("INSERT INTO seat VALUES (1, 'A'), (2, 'B')");
    let changes = db.query(
        "SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'p')",
        &[&db.name],
    );
    let tags: String = changes.iter().map(|row| row.get::<_, &[u8]>(0)[0] as char).collect();
    assert_eq!(tags, "BRIIC");
}

#[test]
fn postgres_14_streams_pgoutput() {
    streams_pgoutput(Version::V14);
}

#[test]
fn postgres_15_streams_pgoutput() {
    streams_pgoutput(Version::V15);
}

#[test]
fn postgres_16_streams_pgoutput() {
    streams_pgoutput(Version::V16);
}

#[test]
fn postgres_17_streams_pgoutput() {
    streams_pgoutput(Version::V17);
}

#[test]
fn postgres_18_streams_pgoutput() {
    streams_pgoutput(Version::V18);
}

#[test]
fn postgres_asks_for_a_password_over_tcp_and_not_on_its_socket() {
    let db = postgres::shared(Version::V17).create_database();
    assert!(postgres::Session::connect(&db.url_as("postgres", "wrong")).is_err());
    let session = postgres::Session::connect(db.socket_url()).unwrap();
    assert_eq!(session.text("SELECT current_database()"), db.name);
}

#[test]
fn a_database_goes_with_its_slots() {
    let server = postgres::shared(Version::V17);
    let db = server.create_database();
    db.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", db.name));
    let name = db.name.clone();
    drop(db);
    let left = format!(
        "SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}')
                             + (SELECT count(*) FROM pg_database WHERE datname = '{name}')"
    );
    assert_eq!(server.session("postgres").text(&left), "0");
}

#[test]
fn a_private_postgres_comes_back_after_a_stop_and_after_kill_9() {
    let server = postgres::private(Version::V17, &[("max_replication_slots", "3")]);
    let session = server.session("postgres");
    assert_eq!(session.text("SHOW max_replication_slots"), "3");
    session.execute("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)");
    server.kill();
    assert!(session.try_execute("SELECT 1").is_err());
    server.start();
    assert_eq!(server.session("postgres").text("SELECT count(*) FROM kept"), "1");
    server.configure(&[("max_replication_slots", "4")]);
    server.restart();
    assert_eq!(server.session("postgres").text("SHOW max_replication_slots"), "4");
}

#[test]
fn kafka_gives_back_what_it_was_given() {
    let kafka = kafka::shared();
    let topic = kafka.topic_name("round.trip");
    kafka.create_topic(&topic, 3, &[("retention.ms", "-1")]);
    assert_eq!(kafka.partitions(&topic), 3);
    kafka.produce(&topic, Some(b"a"), Some(b"{\"n\": 1}"));
    kafka.produce(&topic, Some(b"a"), None);
    kafka.produce(&topic, None, Some(b"2"));
    let records = kafka.read(&topic, DEADLINE, |records| records.len() == 3);
    assert_eq!(kafka.read_all(&topic).len(), 3);
    let of_key: Vec<_> = records.iter().filter(|record| record.key.as_deref() == Some(b"a")).collect();
    assert_eq!(of_key[0].value_json()["n"], 1);
    assert_eq!((of_key[1].value.as_deref(), of_key[1].offset), (None, of_key[0].offset + 1));
    assert!(records.iter().all(|record| record.timestamp > 0));
}

#[test]
fn a_private_kafka_comes_back_after_kill_9_and_after_a_pause() {
    let kafka = kafka::private(&kafka::Options::default());
    let topic = kafka.topic("comes.back");
    kafka.produce(&topic, None, Some(b"1"));
    kafka.kill();
    kafka.start();
    kafka.produce(&topic, None, Some(b"2"));
    kafka.pause();
    kafka.resume();
    kafka.produce(&topic, None, Some(b"3"));
    kafka.stop();
    kafka.start();
    let values: Vec<_> = kafka.read_all(&topic).into_iter().map(|record| record.value.unwrap()).collect();
    assert_eq!(values, [b"1", b"2", b"3"]);
}

/// This test is two: it starts the test binary again, which runs the other half of it, and kills that with -9.
#[test]
fn nothing_outlives_a_run_that_is_killed() {
    const CHILD: &str = "OFFSHOOT_TEST_LEAVE_SERVERS_RUNNING";
    if let Ok(told) = std::env::var(CHILD) {
        let postgres = postgres::private(Version::V17, &[]);
        let kafka = kafka::private(&kafka::Options::default());
        kafka.pause();
        let pids = format!("{} {} {}", process::run_dir().display(), postgres.pid().unwrap(), kafka.pid().unwrap());
        fs::write(format!("{told}.new"), pids).unwrap();
        fs::rename(format!("{told}.new"), told).unwrap();
        loop {
            std::thread::park();
        }
    }
    let told = process::new_dir("told").join("pids");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "servers::nothing_outlives_a_run_that_is_killed"]).env(CHILD, &told);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = process::Process::spawn("a test run", command, libc::SIGKILL).unwrap();
    let told = wait::until(2 * DEADLINE, "servers in the other run", || fs::read_to_string(&told));
    let told: Vec<&str> = told.split(' ').collect();
    let there = || {
        let dir = Path::new(told[0]).exists().then_some(told[0]);
        let pids = told[1..].iter().copied().filter(|pid| Path::new("/proc").join(pid).exists());
        dir.into_iter().chain(pids).collect::<Vec<_>>()
    };
    assert_eq!(there().len(), 3);
    child.kill();
    wait::until(DEADLINE, "the other run's servers and directory to go", || match there() {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
}
