//! What users and servers get wrong, and what comes after: once it is mended nothing is lost. What is said of each
//! situation alone is in `situations.rs`.

use std::{fs, time::Duration};

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};

use crate::{
    connections::{Secured, secured},
    pipe::{DEADLINE, Pipe, ends, now, says, stops},
    support::{
        kafka,
        postgres::{
            self, Db, Session,
            Version::{V17, V18},
        },
        process, servers,
    },
};

fn database() -> Db {
    let db = postgres::shared(V17).create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, note text)");
    db
}

/// A role of this test's own with a password; it goes with nothing, since roles are the server's.
fn role(db: &Db, rights: &str) -> String {
    let role = format!("role_{}", db.name);
    db.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'sEcReT-role' {rights}"));
    role
}

#[test]
fn a_config_that_is_not_there_or_cannot_be_used_begins_nothing() {
    let absent = std::process::Command::new(crate::pipe::binary()).args(["run", "-c", "/nonexistent.yaml"]).output();
    let absent = absent.unwrap();
    assert_eq!(absent.status.code(), Some(2));
    says(&String::from_utf8_lossy(&absent.stderr), &["cannot read /nonexistent.yaml: No such file"]);
    let db = database();
    Pipe { tables: "public.tt".into(), ..Pipe::of(&db) }.ends(2, &["find a table for `public.tt`"]);
    assert_eq!(db.text("SELECT count(*) FROM pg_publication"), "0", "nothing is begun");
}

#[test]
fn two_tables_that_come_to_one_topic_are_refused_before_anything_is_published() {
    let db = database();
    db.execute("CREATE SCHEMA other; CREATE TABLE other.t (id int PRIMARY KEY)");
    let changes = "topic: \"{name}.{table}\"".into();
    let pipe = Pipe { tables: "*.t".into(), changes, ..Pipe::of(&db) };
    let words = ["public.t", "other.t", &format!("{}.t", db.name), "changes.topic"];
    pipe.ends(2, &words);
    pipe.checks(2, &words);
    assert_eq!(db.text("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"), "0");
    let apart = Pipe { changes: String::new(), ..pipe };
    apart.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    apart.arrives("t", &[1]);
}

// Postgres.

#[test]
fn a_role_without_replication_is_told_the_sql_and_goes_on_once_it_has_run() {
    let db = database();
    let role = role(&db, "");
    db.execute(&format!("GRANT CREATE ON DATABASE {} TO {role}; ALTER TABLE t OWNER TO {role}", db.name));
    let pipe = Pipe { url: db.url_as(&role, "sEcReT-role"), ..Pipe::of(&db) };
    let mend = format!("ALTER ROLE \"{role}\" REPLICATION");
    pipe.checks(3, &[&mend]);
    pipe.ends(3, &[&mend]);
    db.execute(&mend);
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    pipe.arrives("t", &[1]);
}

#[test]
fn a_role_that_may_not_make_the_publication_is_told_the_sql_and_goes_on_once_another_has_run_it() {
    let db = database();
    let role = role(&db, "REPLICATION");
    db.execute(&format!("GRANT SELECT ON t TO {role}"));
    let pipe = Pipe { url: db.url_as(&role, "sEcReT-role"), ..Pipe::of(&db) };
    let text = pipe.ends(3, &["permission denied", "run this in database", "CREATE PUBLICATION"]);
    assert_eq!(db.text("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"), "0");
    for statement in text.lines().map(str::trim).filter(|line| line.ends_with(';')) {
        db.execute(statement);
    }
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1)");
    pipe.arrives("t", &[1]);
}

#[test]
fn a_publication_that_misses_a_table_is_told_as_sql_where_it_is_left_to_its_owner() {
    let db = database();
    let pipe = Pipe { source: "create: false".into(), ..Pipe::of(&db) };
    pipe.ends(3, &["source.create: false", "CREATE PUBLICATION", "pg_create_logical_replication_slot"]);
    Pipe::of(&db).prepare();
    pipe.prepare();
    db.execute("CREATE TABLE late (id int PRIMARY KEY)");
    let words = [&format!("ALTER PUBLICATION \"{}\" ADD TABLE ONLY \"public\".\"late\"", pipe.slot()) as &str];
    let text = pipe.ends(3, &words);
    pipe.checks(3, &words);
    for statement in text.lines().map(str::trim).filter(|line| line.ends_with(';')) {
        db.execute(statement);
    }
    db.execute("INSERT INTO late VALUES (1)");
    pipe.arrives("late", &[1]);
}

#[test]
fn a_slot_that_is_not_ours_is_left_alone() {
    let db = database();
    let slot = Pipe::of(&db).slot();
    let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
    let ends = |pipe: &Pipe, words: &[&str]| {
        let (code, text) = pipe.command(&["drop", "--yes"]);
        assert_eq!(code, 3, "{text}");
        says(&text, words);
    };
    db.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
    ends(&Pipe::of(&db), &["slot of plugin test_decoding, not pgoutput", "name another one in source.slot"]);
    db.execute(&drop);
    db.execute(&format!("SELECT pg_create_physical_replication_slot('{slot}')"));
    ends(&Pipe::of(&db), &["it is a physical slot", "name another one in source.slot"]);
    db.execute(&drop);
    let other = database();
    db.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    let pipe = Pipe { name: db.name.clone(), ..Pipe::of(&other) };
    ends(
        &pipe,
        &[&format!("it belongs to database {}, not {}", db.name, other.name), "name another one in source.slot"],
    );
    assert_eq!(db.text(&format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'")), "1");
}

#[test]
fn an_invalidated_slot_is_a_gap_and_drop_clears_the_way() {
    let server = postgres::private(V17, &[("max_slot_wal_keep_size", "1MB"), ("max_wal_size", "64MB")]);
    let db = server.create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY)");
    let pipe = Pipe::of(&db);
    pipe.prepare();
    for id in 1..=4 {
        db.execute(&format!("INSERT INTO t VALUES ({id})"));
        db.execute("SELECT pg_switch_wal()");
    }
    db.execute("CHECKPOINT");
    let words = ["it is invalidated (wal_removed)", "`offshoot drop`", "load again what was missed"];
    pipe.ends(5, &words);
    pipe.checks(3, &words);
    let (code, text) = pipe.command(&["drop", "--yes"]);
    assert_eq!(code, 0, "{text}");
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (9)");
    pipe.arrives("t", &[9]);
}

#[test]
fn a_publication_that_is_dropped_while_it_is_streamed_is_a_gap() {
    let db = database();
    let pipe = Pipe::of(&db);
    let mut offshoot = pipe.ready();
    db.execute("INSERT INTO t VALUES (1)");
    offshoot.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1]).then_some(()));
    db.execute(&format!("DROP PUBLICATION {}", pipe.slot()));
    let before = now(&db);
    db.execute("INSERT INTO t VALUES (2)");
    ends(offshoot, 5, &["publication", "does not exist", "`offshoot drop`"]);
    assert!(!pipe.confirmed_past(&db, &before));
    let words = ["it is not there, but slot", "`offshoot drop`"];
    pipe.ends(5, &words);
    pipe.checks(3, &words);
}

/// PostgreSQL 18 only warns and tells nothing of the changes; we look ourselves.
#[test]
fn a_publication_that_is_dropped_in_postgres_18_is_a_gap_too() {
    let db = postgres::shared(V18).create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY)");
    let pipe = Pipe::of(&db);
    let mut offshoot = pipe.ready();
    db.execute("INSERT INTO t VALUES (1)");
    offshoot.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1]).then_some(()));
    db.execute(&format!("DROP PUBLICATION {}; INSERT INTO t VALUES (2)", pipe.slot()));
    ends(offshoot, 5, &["it is not there, but slot", "told to nobody", "`offshoot drop`"]);
}

#[test]
fn a_table_that_is_dropped_while_it_is_streamed_is_no_fault_of_the_others() {
    let db = database();
    db.execute("CREATE TABLE gone (id int PRIMARY KEY)");
    let pipe = Pipe::of(&db);
    let mut offshoot = pipe.ready();
    db.execute("INSERT INTO gone VALUES (1); DROP TABLE gone; INSERT INTO t VALUES (1)");
    offshoot.wait("a row to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), "t") == [1]).then_some(()));
    stops(offshoot);
    db.execute("INSERT INTO t VALUES (2)");
    pipe.arrives("t", &[1, 2]);
    // By its name it is missed at the next start.
    Pipe { tables: "public.gone".into(), ..pipe }.ends(2, &["find a table for `public.gone`"]);
}

#[test]
fn a_postgres_that_is_away_is_tried_again_and_a_stop_is_clean() {
    let db = database();
    let port = servers::free_port();
    let pipe = Pipe { url: format!("postgres://x:y@127.0.0.1:{port}/d"), ..Pipe::of(&db) };
    let mut offshoot = pipe.run();
    let line = offshoot.wait_log("retry_in=", DEADLINE);
    says(&line, &["WARN", "failed to connect to 127.0.0.1", "Connection refused"]);
    assert!(!line.contains("us ") && !line.contains("ns"), "{line}");
    assert_eq!(line.matches("Connection refused").count(), 1, "{line}");
    stops(offshoot);
    pipe.checks(3, &["Connection refused", "`source.postgres` names it"]);
}

// Changes that cannot go on.

#[test]
fn a_number_that_is_none_stops_with_its_place_and_decimal_string_goes_on() {
    let db = postgres::shared(V17).create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, price numeric(10, 2))");
    let pipe = Pipe::of(&db);
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1, 9.99)");
    let before = now(&db);
    db.execute("INSERT INTO t VALUES (2, 'NaN')");
    db.execute("INSERT INTO t VALUES (3, 1)");
    let text = pipe.ends(7, &["public.t", "column price", "at 0/", "NaN", "`changes.decimal: precise`", "`string`"]);
    assert!(!text.contains("9.99"), "{text}");
    assert!(!pipe.confirmed_past(&db, &before));
    Pipe { changes: "decimal: string".into(), ..pipe }.arrives("t", &[1, 2, 3]);
}

/// By the two statements of docs/operations.md, "A change that cannot be decoded".
#[test]
fn a_transaction_that_cannot_be_encoded_is_skipped_by_command() {
    let db = postgres::shared(V17).create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, price numeric(10, 2))");
    let pipe = Pipe::of(&db);
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1, 1)");
    db.execute("INSERT INTO t VALUES (2, 'NaN')");
    db.execute("INSERT INTO t VALUES (3, 3)");
    let text = pipe.ends(7, &["column price", " at 0/", "offshoot skip --lsn "]);
    let lsn = text.split("offshoot skip --lsn ").nth(1).unwrap().split_whitespace().next().unwrap();
    let (code, said) = pipe.command(&["skip", "--lsn", lsn, "--yes"]);
    assert_eq!(code, 0, "{said}");
    pipe.arrives("t", &[1, 3]);
}

/// A transaction that does not fit into a third of the smallest memory.
const LARGE: &str = "INSERT INTO t SELECT id, repeat('x', 300) FROM generate_series(1, 20000) AS id";

#[test]
fn a_spill_that_fails_stops_and_what_it_held_arrives_later() {
    let all: Vec<i64> = (1..=20_000).collect();
    let limits = "limits: { memory: 8MiB }".to_owned();
    for (rest, words) in [
        (format!("{limits}\ndata_dir: /dev/null/x"), ["/dev/null/x", "data_dir must be writable and have room"]),
        ("limits: { memory: 8MiB, spill: 1MiB }".into(), ["a transaction of more than", "raise limits.spill"]),
    ] {
        let db = database();
        let pipe = Pipe { rest, ..Pipe::of(&db) };
        pipe.prepare();
        let before = now(&db);
        db.execute(LARGE);
        pipe.ends(1, &words);
        assert!(!pipe.confirmed_past(&db, &before));
        Pipe { rest: limits.clone(), ..pipe }.arrives("t", &all);
    }
}

#[test]
fn a_spill_that_fills_the_disk_stops_and_what_it_held_arrives_later() {
    let db = database();
    let dir = process::new_dir("disk");
    let pipe = Pipe { rest: format!("limits: {{ memory: 8MiB }}\ndata_dir: {}", dir.display()), ..Pipe::of(&db) };
    pipe.prepare();
    let before = now(&db);
    db.execute(LARGE);
    let on_a_small_disk = pipe.run_apart(&format!("mount -t tmpfs -o size=1m none {}", dir.display()));
    ends(on_a_small_disk, 1, &["No space left on device", "data_dir must be writable and have room"]);
    assert!(!pipe.confirmed_past(&db, &before));
    pipe.arrives("t", &(1..=20_000).collect::<Vec<_>>());
}

// Kafka.

#[test]
fn a_kafka_that_is_away_is_waited_for_and_a_stop_is_clean() {
    let db = database();
    let brokers = format!("127.0.0.1:{}", servers::free_port());
    Pipe::of(&db).prepare();
    let pipe = Pipe { brokers, ..Pipe::of(&db) };
    let before = now(&db);
    db.execute("INSERT INTO t VALUES (1)");
    let mut offshoot = pipe.run();
    offshoot.wait_log("no answer", DEADLINE);
    assert_eq!(offshoot.get("/readyz").map(|(status, _)| status), Some(503));
    assert_eq!(offshoot.terminate(DEADLINE).code(), Some(0), "{}", offshoot.log().join("\n"));
    assert!(!pipe.confirmed_past(&db, &before));
    let began = std::time::Instant::now();
    pipe.checks(4, &["Connection refused", "sink.kafka.brokers"]);
    assert!(began.elapsed() < Duration::from_secs(4), "check took {:?}", began.elapsed());
    Pipe::of(&db).arrives("t", &[1]);
}

#[test]
fn a_topic_that_is_left_to_its_owner_is_told_as_a_command() {
    let db = database();
    let kafka = kafka::shared();
    let pipe = Pipe { kafka: "topics: { create: false, partitions: 1 }".into(), ..Pipe::of(&db) };
    let progress = format!("offshoot.{}.progress", pipe.name);
    let command = format!("--create --topic {progress} --partitions 1 --config cleanup.policy=compact");
    pipe.ends(4, &["sink.kafka.topics.create: false", "the progress record", &command]);
    kafka.create_topic(&progress, 1, &[("cleanup.policy", "compact")]);
    pipe.prepare();
    let before = now(&db);
    db.execute("INSERT INTO t VALUES (1)");
    let topic = pipe.topic("t");
    let command =
        format!("kafka-topics --bootstrap-server {} --create --topic {topic} --partitions 1", kafka.address());
    pipe.ends(4, &["sink.kafka.topics.create: false", "public.t", &command]);
    pipe.checks(4, &[&format!("topic {topic} is absent"), &command]);
    assert!(!pipe.confirmed_past(&db, &before));
    kafka.create_topic(&topic, 1, &[]);
    pipe.arrives("t", &[1]);
}

#[test]
fn a_record_that_the_topic_does_not_take_stops_before_it_and_all_arrives_once_it_does() {
    let db = database();
    let kafka = kafka::shared();
    let pipe = Pipe { kafka: "topics: { partitions: 1 }".into(), ..Pipe::of(&db) };
    kafka.create_topic(&pipe.topic("t"), 1, &[("max.message.bytes", "3000")]);
    pipe.prepare();
    db.execute("INSERT INTO t VALUES (1, 'small')");
    let before = now(&db);
    // Words that do not compress.
    db.execute("INSERT INTO t SELECT 2, string_agg(md5(random()::text), '') FROM generate_series(1, 400)");
    db.execute("INSERT INTO t VALUES (3, 'small')");
    let topic = pipe.topic("t");
    pipe.ends(4, &["public.t", "{\"id\":2}", "bytes", "commits at 0/", &topic, "max.message.bytes"]);
    assert!(!pipe.confirmed_past(&db, &before));
    let raise = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("max.message.bytes", "100000");
    block_on(kafka.admin().alter_configs(&[raise], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    pipe.arrives("t", &[1, 2, 3]);
}

#[test]
fn a_topic_that_is_forbidden_is_told_as_a_command_and_all_arrives_once_it_is_allowed() {
    let Secured { broker, sasl, .. } = secured();
    let db = database();
    // Bob is let in and may do nothing.
    let properties = "security.protocol: SASL_PLAINTEXT\n  sasl.mechanism: PLAIN\n  sasl.username: bob\n  sasl.password: sEcReT-kafka";
    let pipe = Pipe { brokers: sasl.clone(), kafka: format!("properties:\n  {properties}"), ..Pipe::of(&db) };
    let alices = Pipe { kafka: format!("properties:\n  {}", properties.replace("bob", "alice")), ..pipe.clone() };
    alices.prepare();
    let before = now(&db);
    db.execute("INSERT INTO t VALUES (1)");
    let topic = format!("offshoot.{}.progress", pipe.name);
    pipe.ends(4, &[&topic, "kafka-acls --bootstrap-server", "--allow-principal User:bob"]);
    pipe.checks(4, &[&topic, "kafka-acls --bootstrap-server"]);
    assert!(!pipe.confirmed_past(&db, &before));
    alices.arrives_at(broker, "t", &[1]);
}

#[test]
fn a_secret_file_is_read_without_its_last_line_end() {
    let db = database();
    let file = process::new_dir("secret").join("url");
    fs::write(&file, format!("{}\n", db.url)).unwrap();
    Pipe { url: format!("file:{}", file.display()), ..Pipe::of(&db) }.prepare();
    assert!(Session::connect(&db.url).is_ok());
}
