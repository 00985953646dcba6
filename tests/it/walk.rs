//! A Postgres of each version and the built program -> the records that a consumer of Kafka reads: the walk from end to end.

use std::{collections::HashMap, path::Path, time::Duration};

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use serde_json::{Value, json};

use crate::support::{
    kafka::{self, Broker, Record},
    postgres::{self, Db, Version},
    program::{Offshoot, START_MAX},
};

/// Long enough for a busy machine; nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(60);

/// A composite key in another order than the columns, no key, full identity, names that no topic may have, and one table
/// that nobody asked for.
const TABLES: &str = r#"
    CREATE TABLE seat (id int PRIMARY KEY, row text NOT NULL, price numeric(8,2), held boolean DEFAULT false);
    CREATE TABLE performance (venue int, number smallint, starts timestamptz, tags jsonb, PRIMARY KEY (number, venue));
    CREATE TABLE note (said text, day date);
    CREATE TABLE stock (sku text PRIMARY KEY, on_hand bigint);
    ALTER TABLE stock REPLICA IDENTITY FULL;
    CREATE SCHEMA "box office";
    CREATE TABLE "box office"."Till" (id uuid PRIMARY KEY, open boolean);
    CREATE TABLE audit_log (what text);
"#;

/// What is committed before the program is asked to stop; a transaction a line.
const TRANSACTIONS: [&str; 12] = [
    "INSERT INTO seat VALUES (1, 'A', 19.50, false), (2, 'A', NULL, true), (3, 'Ä \"\\', 0, DEFAULT)",
    "BEGIN; INSERT INTO performance VALUES (7, 1, '2027-01-02 03:04:05.6+00', '{\"a\": [1]}');
        UPDATE seat SET held = true WHERE id = 1; INSERT INTO note VALUES ('first', '1970-01-02'); COMMIT",
    "UPDATE seat SET id = 4 WHERE id = 2",
    "BEGIN; INSERT INTO seat VALUES (50, 'never'); ROLLBACK",
    "BEGIN; INSERT INTO seat VALUES (5, 'B'); SAVEPOINT s; UPDATE seat SET row = 'never' WHERE id = 5; DELETE FROM seat;
        ROLLBACK TO s; UPDATE seat SET row = 'C' WHERE id = 5; RELEASE s; COMMIT",
    "INSERT INTO stock VALUES ('chair', 3)",
    "UPDATE stock SET on_hand = 9007199254740993 WHERE sku = 'chair'",
    "DELETE FROM stock",
    "INSERT INTO \"box office\".\"Till\" VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', true)",
    "DELETE FROM performance",
    "DELETE FROM seat WHERE id = 3",
    "TRUNCATE seat, stock",
];

/// The records of these, in the order of the log: table, key, operation, before, after, and headers where there are some.
/// A record without an operation is a tombstone.
const RECORDS: &str = r#"
    ["seat", {"id":1}, "c", null, {"id":1,"row":"A","price":"19.50","held":false}]
    ["seat", {"id":2}, "c", null, {"id":2,"row":"A","price":null,"held":true}]
    ["seat", {"id":3}, "c", null, {"id":3,"row":"Ä \"\\","price":"0.00","held":false}]
    ["performance", {"number":1,"venue":7}, "c", null, {"venue":7,"number":1,"starts":"2027-01-02T03:04:05.600000Z","tags":"{\"a\": [1]}"}]
    ["seat", {"id":1}, "u", null, {"id":1,"row":"A","price":"19.50","held":true}]
    ["note", null, "c", null, {"said":"first","day":1}]
    ["seat", {"id":2}, "d", {"id":2,"row":null,"price":null,"held":null}, null, {"__debezium.newkey":{"id":4}}]
    ["seat", {"id":2}]
    ["seat", {"id":4}, "c", null, {"id":4,"row":"A","price":null,"held":true}, {"__debezium.oldkey":{"id":2}}]
    ["seat", {"id":5}, "c", null, {"id":5,"row":"B","price":null,"held":false}]
    ["seat", {"id":5}, "u", null, {"id":5,"row":"C","price":null,"held":false}]
    ["stock", {"sku":"chair"}, "c", null, {"sku":"chair","on_hand":3}]
    ["stock", {"sku":"chair"}, "u", {"sku":"chair","on_hand":3}, {"sku":"chair","on_hand":9007199254740993}]
    ["stock", {"sku":"chair"}, "d", {"sku":"chair","on_hand":9007199254740993}, null]
    ["stock", {"sku":"chair"}]
    ["Till", {"id":"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}, "c", null, {"id":"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11","open":true}]
    ["performance", {"number":1,"venue":7}, "d", {"venue":7,"number":1,"starts":null,"tags":null}, null]
    ["performance", {"number":1,"venue":7}]
    ["seat", {"id":3}, "d", {"id":3,"row":null,"price":null,"held":null}, null]
    ["seat", {"id":3}]
    ["seat", null, "t", null, null]
    ["stock", null, "t", null, null]
    ["seat", {"id":6}, "c", null, {"id":6,"row":"B committed first","price":null,"held":false}]
    ["seat", {"id":7}, "c", null, {"id":7,"row":"A began first","price":null,"held":false}]
"#;

/// What follows them when the program runs again.
const RECORDS_OF_THE_SECOND_LIFE: &str = r#"
    ["seat", {"id":8}, "c", null, {"id":8,"row":"while it was away","price":null,"held":false}]
    ["seat", {"id":8}, "u", null, {"id":8,"row":"when it was back","price":null,"held":false}]
"#;

#[test]
fn postgres_14_to_kafka() {
    walk(Version::V14);
}

#[test]
fn postgres_15_to_kafka() {
    walk(Version::V15);
}

#[test]
fn postgres_16_to_kafka() {
    walk(Version::V16);
}

#[test]
fn postgres_17_to_kafka() {
    walk(Version::V17);
}

#[test]
fn postgres_18_to_kafka() {
    walk(Version::V18);
}

#[test]
fn postgres_14_to_kafka_with_the_least_privilege() {
    walk_as(Version::V14, least_privilege);
}

#[test]
fn postgres_15_to_kafka_with_the_least_privilege() {
    walk_as(Version::V15, least_privilege);
}

#[test]
fn postgres_16_to_kafka_with_the_least_privilege() {
    walk_as(Version::V16, least_privilege);
}

#[test]
fn postgres_17_to_kafka_with_the_least_privilege() {
    walk_as(Version::V17, least_privilege);
}

#[test]
fn postgres_18_to_kafka_with_the_least_privilege() {
    walk_as(Version::V18, least_privilege);
}

/// The role and the publications of docs/operations.md, "Before the first start", by its own SQL: the role's URL.
fn least_privilege(db: &Db, name: &str) -> String {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let section = manual.split("\n## Before the first start\n").nth(1).expect("the manual has the section");
    let mut sql = section.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap().to_owned();
    let role = format!("cdc_{}", db.name);
    for (written, ours) in [
        ("ROLE cdc ", format!("ROLE {role} ")),
        ("TO cdc;", format!("TO {role};")),
        ("DATABASE shop ", format!("DATABASE {} ", db.name)),
        ("'...'", "'secret'".into()),
        ("offshoot_shop", format!("offshoot_{name}")),
        ("orders, order_line", "seat, performance, stock, \"box office\".\"Till\"".into()),
        ("audit_log", "note".into()),
    ] {
        assert!(sql.contains(written), "{written} is not in\n{sql}");
        sql = sql.replace(written, &ours);
    }
    sql.split_inclusive(';').filter(|statement| statement.contains(';')).for_each(|statement| db.execute(statement));
    let rights = format!("SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = '{role}'");
    assert_eq!(db.text(&rights), "f");
    assert_eq!(db.text(&format!("SELECT has_table_privilege('{role}', 'seat', 'SELECT,INSERT,UPDATE,DELETE')")), "f");
    db.url_as(&role, "secret")
}

fn walk(version: Version) {
    walk_as(version, |db, _| db.url.clone());
}

fn walk_as(version: Version, log_in: impl Fn(&Db, &str) -> String) {
    let db = postgres::shared(version).create_database();
    let kafka = kafka::shared();
    db.execute(TABLES);
    let name = format!("walk_{}", db.name);
    let url = log_in(&db, &name);
    let topic = |table: &str| format!("{name}.{table}");
    let topics = ["public.seat", "public.performance", "public.note", "public.stock", "box_office.Till"].map(topic);
    let [seat, _, _, stock, _] = &topics;
    kafka.create_topic(stock, 5, &[]);

    let mut offshoot = Offshoot::run(
        Path::new(env!("CARGO_BIN_EXE_offshoot")),
        &format!(
            r#"
name: {name}
source: {{ postgres: "{}" }}
sink:
  kafka:
    brokers: {}
    delivery: at_least_once
    topics: {{ partitions: 3, replication: 1, properties: {{ retention.ms: 86400000, max.message.bytes: 2000000 }} }}
changes: {{ tables: [public.*, box office.*], except: [public.audit_*], decimal: string }}
"#,
            url,
            kafka.address()
        ),
    );
    offshoot.wait_ready(START_MAX);
    assert_eq!(offshoot.get("/livez").map(|(status, _)| status), Some(200));

    TRANSACTIONS.iter().for_each(|transaction| db.execute(transaction));
    // Commits are the order, not what was written first.
    let other = db.connect();
    db.execute("BEGIN; INSERT INTO seat VALUES (7, 'A began first')");
    other.execute("INSERT INTO seat VALUES (6, 'B committed first')");
    db.execute("COMMIT");

    let expected = lines(RECORDS);
    for topic in &topics {
        offshoot.wait(&format!("topic {topic}"), DEADLINE, |_| (kafka.partitions(topic) > 0).then_some(()));
    }
    let mut reader = kafka.reader(&topics.each_ref().map(String::as_str), DEADLINE);
    let mut records = Vec::new();
    while records.len() < expected.len() {
        let Some(record) = reader.next(DEADLINE) else {
            let log = offshoot.log().join("\n");
            panic!("waited {DEADLINE:?} for record {} of {}; the log:\n{log}", records.len() + 1, expected.len());
        };
        records.push(record);
    }
    assert_lines(&told(&records), &expected);
    // The columns of a key have the key's order, not the table's.
    let key = records.iter().find(|record| record.topic.ends_with(".performance")).unwrap().key.as_deref();
    assert_eq!(key.map(String::from_utf8_lossy).unwrap(), r#"{"number":1,"venue":7}"#);
    sources_are_told(&records, &name, &db);

    // Topics: made as asked for; one that was there is used as it is, and said.
    for topic in &topics {
        let partitions = if topic == stock { 5 } else { 3 };
        assert_eq!(kafka.partitions(topic), partitions, "{topic}");
        for record in records.iter().filter(|record| record.topic == *topic) {
            let Some(key) = &record.key else { continue };
            assert_eq!(record.partition, java_partition(key, partitions as i32), "{record:?}");
        }
    }
    assert_eq!(properties(kafka, seat, ["retention.ms", "max.message.bytes"]), ["86400000", "2000000"]);
    let said = offshoot.wait_log("another number of partitions", START_MAX);
    for word in [stock.as_str(), "partitions=5", "asked_for=3"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }

    // Counted. A row whose key changes is one row and three records.
    let acknowledged = expected.len() as f64;
    offshoot.wait("all records to be acknowledged", DEADLINE, |offshoot| {
        offshoot.metric("offshoot_records_acknowledged_total").filter(|count| *count == acknowledged)
    });
    for (metric, count) in [
        ("offshoot_rows_total{op=\"insert\"}", 10.0),
        ("offshoot_rows_total{op=\"update\"}", 4.0),
        ("offshoot_rows_total{op=\"delete\"}", 3.0),
        ("offshoot_rows_total{op=\"truncate\"}", 2.0),
        ("offshoot_records_total", acknowledged),
        ("offshoot_up", 1.0),
    ] {
        assert_eq!(offshoot.metric(metric), Some(count), "{metric}");
    }
    // Before 15 a server also tells of transactions that did nothing to the published tables, such as its own.
    let transactions = offshoot.metric("offshoot_transactions_total").unwrap();
    assert!(if version == Version::V14 { transactions >= 13.0 } else { transactions == 13.0 }, "{transactions}");

    // The log goes on without us: the slot follows.
    db.execute("INSERT INTO audit_log SELECT 'unseen' FROM generate_series(1, 1000)");
    let end = db.text("SELECT pg_current_wal_lsn()");
    let passed = format!(
        "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'offshoot_{name}' AND confirmed_flush_lsn >= '{end}'"
    );
    offshoot.wait("the slot to pass what concerns nobody", DEADLINE, |_| (db.text(&passed) == "1").then_some(()));

    // Stopped in order, and started again: nothing twice.
    let status = offshoot.terminate(START_MAX);
    assert_eq!(status.code(), Some(0), "{status}; its log:\n{}", offshoot.log().join("\n"));
    db.execute("INSERT INTO seat VALUES (8, 'while it was away')");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_offshoot"));
    command.arg("run").arg("-c").arg(&offshoot.config().path);
    let mut offshoot = Offshoot::start(command, offshoot.config());
    offshoot.wait_ready(START_MAX);
    db.execute("UPDATE seat SET row = 'when it was back' WHERE id = 8");
    let second = lines(RECORDS_OF_THE_SECOND_LIFE);
    offshoot.wait("the records of the second life", DEADLINE, |offshoot| {
        offshoot.metric("offshoot_records_acknowledged_total").filter(|count| *count >= second.len() as f64)
    });
    assert_eq!(offshoot.terminate(START_MAX).code(), Some(0));
    let mut all = Vec::new();
    let mut reader = kafka.reader(&topics.each_ref().map(String::as_str), DEADLINE);
    reader.read_to_end(DEADLINE, |record| all.push(record));
    assert_lines(&told(&all), &[expected, second].concat());
}

/// Each line as a JSON value.
fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

#[track_caller]
fn assert_lines(told: &[Value], expected: &[Value]) {
    let text = |lines: &[Value]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    assert!(told == expected, "told:\n{}\nexpected:\n{}", text(told), text(expected));
}

/// Records as lines like those above, in the order of the log. In each partition the position must rise.
fn told(records: &[Record]) -> Vec<Value> {
    let mut at: HashMap<(&str, i32), (u64, u64)> = HashMap::new();
    let mut lines = Vec::new();
    for record in records {
        let last = at.entry((&record.topic, record.partition)).or_default();
        // A tombstone tells no position: it follows its delete.
        if record.value.is_some() {
            let position = position(record);
            assert!(position >= *last, "{position:?} after {last:?}: {record:?}");
            *last = position;
        }
        let value = record.value_json();
        let table = record.topic.rsplit('.').next();
        let mut line = match record.value {
            Some(_) => json!([table, record.key_json(), value["op"], value["before"], value["after"]]),
            None => json!([table, record.key_json()]),
        };
        let of_row = match value["op"].as_str() {
            Some("d") => 0,
            None => 1,
            Some(_) => 2,
        };
        if record.value.is_some() && !record.headers.is_empty() {
            let headers = record.headers.iter().map(|(name, value)| {
                (name.clone(), serde_json::from_slice(value.as_deref().expect("it has a value")).expect("it is JSON"))
            });
            line.as_array_mut().expect("it is one").push(Value::Object(headers.collect()));
        }
        lines.push(((*last, of_row), line));
    }
    lines.sort_by_key(|(order, _)| *order);
    lines.into_iter().map(|(_, line)| line).collect()
}

/// `source.sequence`: (commit LSN, index in the transaction).
fn position(record: &Record) -> (u64, u64) {
    let value = record.value_json();
    let sequence = value["source"]["sequence"].as_str().unwrap_or_else(|| panic!("no sequence: {record:?}"));
    let [commit, index]: [String; 2] = serde_json::from_str(sequence).unwrap_or_else(|e| panic!("{sequence}: {e}"));
    (commit.parse().expect("a number"), index.parse().expect("a number"))
}

/// What every record says of where it comes from; rows of one transaction share its commit and its id.
fn sources_are_told(records: &[Record], name: &str, db: &Db) {
    let mut transactions: HashMap<u64, Value> = HashMap::new();
    for record in records.iter().filter(|record| record.value.is_some()) {
        let value = record.value_json();
        let source = &value["source"];
        let table = record.topic.rsplit('.').next();
        let schema = if table == Some("Till") { "box office" } else { "public" };
        assert_eq!(
            json!([source["connector"], source["name"], source["db"], source["schema"], source["table"]]),
            json!(["postgresql", name, db.name, schema, table])
        );
        assert_eq!(source["snapshot"], "false");
        let committed = source["ts_ms"].as_u64().expect("a number");
        assert!(committed > 1_700_000_000_000 && value["ts_ms"].as_u64() >= Some(committed), "{value}");
        let transaction = transactions.entry(position(record).0).or_insert_with(|| source["txId"].clone());
        assert_eq!(*transaction, source["txId"]);
    }
    let ids: std::collections::HashSet<String> = transactions.values().map(Value::to_string).collect();
    assert_eq!((transactions.len(), ids.len()), (13, 13));
}

fn properties(kafka: &Broker, topic: &str, names: [&str; 2]) -> [String; 2] {
    let admin = kafka.admin();
    let (topic, options) = ([ResourceSpecifier::Topic(topic)], AdminOptions::new());
    let described = admin.describe_configs(&topic, &options);
    let described = block_on(described).unwrap().remove(0).unwrap();
    names.map(|name| described.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default())
}

/// The partition that Java's default partitioner chooses for a key.
fn java_partition(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(bytes: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !rest.is_empty() {
        let k = rest.iter().rev().fold(0, |k, byte| (k << 8) | u32::from(*byte));
        hash = (hash ^ k).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
}

#[test]
fn the_partitioner_of_these_tests_is_javas() {
    // From Kafka's own UtilsTest.testMurmur2.
    for (key, hash) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
    }
}
