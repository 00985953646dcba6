//! The outbox, messages and what a transaction says of itself, beside `changes` on one slot.

use crate::{
    pipe::{DEADLINE, Pipe, now, says, stops},
    support::{
        kafka::{self, Record},
        postgres::{self, Db, Version},
    },
};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
    CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text, aggregateid text, type text, payload jsonb)";

/// All ways out, each topic with one partition.
fn all(db: &Db, delivery: &'static str) -> Pipe {
    let name = &db.name;
    let rest = format!(
        "outbox:
  table: outbox
  prefix: outbox
  topic: \"{{name}}.outbox.{{aggregatetype}}\"
  fields: {{ type: {{ to: header }} }}
messages:
  - {{ prefix: \"audit*\", topic: {name}.audit, key: who }}
  - {{ prefix: note, topic: {name}.note }}
context: {{ prefix: ctx, correlationid: correlation_id }}
ignore_origin: [{name}_node, mirror]"
    );
    let kafka = "topics: { partitions: 1 }".into();
    Pipe { delivery, kafka, changes: "except: [public.outbox]".into(), rest, ..Pipe::of(db) }
}

fn records(topic: &str) -> Vec<Record> {
    let kafka = kafka::shared();
    if kafka.partitions(topic) == 0 { Vec::new() } else { kafka.read_all(topic) }
}

fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or("(null)".into(), |bytes| String::from_utf8(bytes.to_vec()).unwrap())
}

/// `key value name=header...` of each record, with what no two runs have alike left out.
fn told(topic: &str) -> Vec<String> {
    let header = |(name, value): &(String, Option<Vec<u8>>)| match name.as_str() {
        "id" | "time" => format!("{name}="),
        _ => format!("{name}={}", text(value.as_deref())),
    };
    let told = |record: &Record| {
        let headers = record.headers.iter().map(header).collect::<Vec<_>>().join(" ");
        format!("{} {} {headers}", text(record.key.as_deref()), text(record.value.as_deref()))
    };
    records(topic).iter().map(told).collect()
}

fn header(record: &Record, name: &str) -> String {
    let (_, value) = record.headers.iter().find(|(of, _)| of == name).unwrap();
    text(value.as_deref())
}

fn everything_leaves_in_commit_order(version: Version, delivery: &'static str) {
    let db = postgres::shared(version).create_database();
    db.execute(TABLES);
    let pipe = all(&db, delivery);
    let name = &pipe.name;
    let mut offshoot = pipe.ready();
    db.execute("INSERT INTO t VALUES (1)");
    db.execute(
        r#"BEGIN;
        INSERT INTO outbox VALUES ('00000000-0000-0000-0000-000000000001', 'order', 'o-1', 'Placed', '{"n": 1}');
        SELECT pg_logical_emit_message(true, 'outbox', '{"id": "m-1", "aggregatetype": "order", "aggregateid": "o-1",
            "type": "Paid", "payload": {"n": 2}}');
        INSERT INTO t VALUES (2);
        DELETE FROM outbox;
        SELECT pg_logical_emit_message(true, 'audit.login', '{"who": "ann", "ok": true}');
        SELECT pg_logical_emit_message(true, 'unasked', 'x');
        SELECT pg_logical_emit_message(true, 'ctx', '{"correlation_id": "c-1", "origin": "shop"}');
        COMMIT"#,
    );
    // One that stands alone is there although its transaction never was.
    db.execute(
        "BEGIN; SELECT pg_logical_emit_message(true, 'note', 'never'); SELECT pg_logical_emit_message(false, 'note', 'survives');
        SELECT pg_logical_emit_message(false, 'ctx', 'of nothing'); INSERT INTO t VALUES (99); ROLLBACK",
    );
    db.execute("INSERT INTO outbox VALUES ('00000000-0000-0000-0000-000000000002', 'cart', 'c-1', NULL, NULL)");
    db.execute("UPDATE outbox SET payload = '{}'");
    // What came from elsewhere leaves nothing, as its origin's name or it itself says.
    let session = db.connect();
    let origin = format!("{name}_node");
    session.execute(&format!("SELECT pg_replication_origin_create('{origin}')"));
    session.execute(&format!("SELECT pg_replication_origin_session_setup('{origin}')"));
    session.execute("INSERT INTO t VALUES (3)");
    session.execute("SELECT pg_replication_origin_session_reset()");
    // Whichever of its messages says so, and what the last says of it counts.
    db.execute(
        r#"BEGIN; INSERT INTO t VALUES (4); SELECT pg_logical_emit_message(true, 'ctx', '{"origin": "mirror"}');
        SELECT pg_logical_emit_message(true, 'ctx', '{"correlation_id": "c-2"}'); COMMIT"#,
    );
    db.execute(
        r#"BEGIN; INSERT INTO t VALUES (6); SELECT pg_logical_emit_message(true, 'ctx', '{"origin": "mirror"}');
        SELECT pg_logical_emit_message(true, 'ctx', '{"origin": null}'); COMMIT"#,
    );
    db.execute("INSERT INTO t VALUES (5)");
    offshoot.wait("the last row", DEADLINE, |_| pipe.ids(kafka::shared(), "t").contains(&5).then_some(()));
    offshoot.wait("all of it", DEADLINE, |o| (o.metric("offshoot_in_flight_transactions")? == 0.0).then_some(()));

    assert_eq!(pipe.ids(kafka::shared(), "t"), [1, 2, 5, 6]);
    let order = format!("{name}.outbox.order");
    assert_eq!(told(&order), ["o-1 {\"n\": 1} id= type=Placed", "o-1 {\"n\": 2} id= type=Paid"]);
    let ids: Vec<_> = records(&order).iter().map(|record| header(record, "id")).collect();
    assert_eq!(ids, ["00000000-0000-0000-0000-000000000001", "m-1"]);
    assert_eq!(told(&format!("{name}.outbox.cart")), ["c-1 (null) id= type=(null)"]);
    says(&offshoot.wait_log("an UPDATE of the outbox is left out", DEADLINE), &["WARN", "public.outbox"]);
    let (audit, note) = (format!("{name}.audit"), format!("{name}.note"));
    assert_eq!(told(&audit), ["ann {\"who\": \"ann\", \"ok\": true} prefix=audit.login id= transactional=true time="]);
    assert_eq!(told(&note), ["note survives prefix=note id= transactional=false"]);
    // The ids of one transaction share its place in the order of commits with its changes.
    let change = records(&pipe.topic("t")).into_iter().find(|record| record.value_json()["after"]["id"] == 2).unwrap();
    let sequence = change.value_json()["source"]["sequence"].as_str().unwrap().to_owned();
    let sequence: Vec<String> = serde_json::from_str(&sequence).unwrap();
    let commit: u64 = sequence[0].parse().unwrap();
    assert_eq!(sequence[1], "2", "after the outbox's row and message");
    assert_eq!(header(&records(&audit)[0], "id"), format!("1-{commit:016X}-4"));
    assert!(header(&records(&note)[0], "id") > format!("1-{commit:016X}-4"));
    for (metric, count) in [
        ("offshoot_ignored_transactions_total", 2.0),
        ("offshoot_outlet_records_total{outlet=\"changes\"}", 4.0),
        ("offshoot_outlet_records_total{outlet=\"outbox\"}", 3.0),
        ("offshoot_outlet_records_total{outlet=\"messages\"}", 2.0),
        ("offshoot_messages_total", 3.0),
    ] {
        assert_eq!(offshoot.metric(metric), Some(count), "{metric}");
    }
    stops(offshoot);

    // One that stands alone is not told again once its end is confirmed, by whatever it is followed or not.
    db.execute("SELECT pg_logical_emit_message(false, 'note', 'while away')");
    let end = now(&db);
    for _ in 0..2 {
        let mut offshoot = pipe.ready();
        offshoot.wait("the message", DEADLINE, |_| (told(&note).len() == 2).then_some(()));
        db.execute("SELECT pg_switch_wal()");
        offshoot.wait("the slot to pass it", DEADLINE, |_| pipe.confirmed_past(&db, &end).then_some(()));
        assert_eq!(offshoot.metric("offshoot_repeated_transactions_total"), Some(0.0));
        stops(offshoot);
    }
    assert_eq!(told(&note)[1], "note while away prefix=note id= transactional=false");
    assert_eq!(records(&note).len(), 2);
}

#[test]
fn every_way_out_of_one_slot_in_commit_order() {
    everything_leaves_in_commit_order(Version::V17, "exactly_once");
}

#[test]
fn every_way_out_of_the_oldest_server_without_kafka_transactions() {
    everything_leaves_in_commit_order(Version::V14, "at_least_once");
}

#[test]
fn an_outbox_alone_is_published_alone_and_whole() {
    let db = postgres::shared(Version::V17).create_database();
    db.execute(TABLES);
    let alone = |rest: &str| {
        let pipe = Pipe { rest: rest.into(), kafka: "topics: { partitions: 1 }".into(), ..Pipe::of(&db) };
        let yaml = pipe.yaml().replace("changes:\n  tables: [\"public.*\"]\n", "");
        assert!(!yaml.contains("changes"));
        (pipe, yaml)
    };
    let refuses = |rest: &str, source: &str, words: &[&str]| {
        let (_, yaml) = alone(rest);
        let yaml = yaml.replace("source:\n", &format!("source:\n{source}"));
        let offshoot = crate::support::program::Offshoot::run(crate::pipe::binary(), &yaml);
        crate::pipe::ends(offshoot, 2, words);
    };
    refuses(
        "outbox: { table: outboxes }",
        "",
        &["find a table for `public.outboxes` of outbox.table", "public.outbox"],
    );
    refuses(
        "outbox: { table: outbox }",
        "  omit_columns: [public.outbox.type]\n",
        &["leave out `public.outbox.type`", "whose rows leave whole"],
    );
    assert_eq!(db.text("SELECT count(*) FROM pg_publication"), "0", "nothing is begun");

    let (pipe, yaml) = alone("outbox: { table: outbox, topic: \"{name}.{aggregatetype}\" }");
    let mut offshoot = crate::support::program::Offshoot::run(crate::pipe::binary(), &yaml);
    offshoot.wait_ready(DEADLINE);
    let published = db.text("SELECT string_agg(pubname || ' ' || tablename, ', ') FROM pg_publication_tables");
    assert_eq!(published, format!("{} outbox", pipe.slot()));
    db.execute("INSERT INTO t VALUES (1); INSERT INTO outbox VALUES (DEFAULT, 'order', 'o-1', 'Placed', '[1, null]')");
    let topic = format!("{}.order", pipe.name);
    offshoot.wait("the event", DEADLINE, |_| (told(&topic) == ["o-1 [1, null] id="]).then_some(()));
    stops(offshoot);
}

#[test]
fn what_a_message_must_not_be_stops_the_run_and_can_be_skipped() {
    let db = postgres::shared(Version::V17).create_database();
    db.execute(TABLES);
    let dir = tempfile::tempdir().unwrap();
    let pipe = all(&db, "exactly_once");
    let pipe = Pipe { rest: format!("{}\ndata_dir: {}", pipe.rest, dir.path().display()), ..pipe };
    pipe.prepare();
    for (statement, words) in [
        ("false, 'outbox', '{}'", ["it is not transactional", "pg_logical_emit_message(true, ...)"]),
        ("true, 'outbox', '{\"id\": 1}'", ["find a topic for an outbox event of outbox", "it has no aggregatetype"]),
        ("true, 'audit', '{\"whom\": 1}'", ["find the key of a message with prefix \"audit\"", "has no who"]),
        ("true, 'ctx', 'not json'", ["read the context message, with prefix \"ctx\"", "not a JSON object"]),
    ] {
        db.execute(&format!("BEGIN; INSERT INTO t VALUES (1); SELECT pg_logical_emit_message({statement}); ROLLBACK"));
        db.execute(&format!("SELECT pg_logical_emit_message({statement})"));
        let said = pipe.ends(7, &words);
        let at = said.rsplit("offshoot skip --lsn ").next().unwrap();
        let at: String = at.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '/').collect();
        let mut skips = 1 + usize::from(statement.starts_with("false"));
        let mut lsn = at;
        while skips > 0 {
            let (code, text) = pipe.command(&["skip", "--lsn", &lsn, "--yes"]);
            assert_eq!(code, 0, "{text}");
            skips -= 1;
            if skips > 0 {
                // The one that was rolled back stood alone too.
                let said = pipe.ends(7, &words);
                let next = said.rsplit("offshoot skip --lsn ").next().unwrap();
                lsn = next.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '/').collect();
            }
        }
    }
    db.execute("INSERT INTO t VALUES (7)");
    pipe.arrives("t", &[7]);
}
