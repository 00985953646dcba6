//! TicketMonster's and the shop's transactions on real servers -> the domain events that a consumer reads.

use std::{collections::BTreeMap, process::Command, time::Duration};

use serde_json::Value;

use crate::support::{
    fixture,
    kafka::{self, Record},
    postgres::{self, Session, V14, V17, V18, Version},
    program::{self, Config, Offshoot, START_MAX},
};

const DEADLINE: Duration = Duration::from_secs(60);
const DEADLINE_OF_A_LOOK: Duration = Duration::from_secs(30);

/// A monolith: its files, and how its events are asked for.
struct Monolith {
    name: &'static str,
    schema: &'static str,
    transactions: &'static str,
    events: &'static str,
    config: &'static str,
    url: &'static str,
    topics: &'static [&'static str],
}

const TICKETMONSTER: Monolith = Monolith {
    name: "ticketmonster",
    schema: concat!(
        include_str!("../fixtures/ticketmonster/schema.sql"),
        include_str!("../fixtures/ticketmonster/seed.sql"),
    ),
    transactions: include_str!("../fixtures/ticketmonster/transactions.sql"),
    events: include_str!("../fixtures/ticketmonster/events.txt"),
    config: include_str!("../../config/events.yaml"),
    url: "TICKETMONSTER_URL",
    topics: &["performance", "booking", "price"],
};

/// As its own config has it: nothing is asked of the database, and what its log does not say comes from the replica.
const SHOP: Monolith = Monolith {
    name: "shop",
    schema: concat!(include_str!("../fixtures/shop/schema.sql"), include_str!("../fixtures/shop/seed.sql")),
    transactions: include_str!("../fixtures/shop/transactions.sql"),
    events: include_str!("../fixtures/shop/events_replica.txt"),
    config: include_str!("../../config/shop.yaml"),
    url: "SHOP_URL",
    topics: &["order", "tax", "stock"],
};

/// With old rows in the log, and without the replica.
const SHOP_FULL: Monolith = Monolith {
    name: "shop",
    schema: concat!(
        include_str!("../fixtures/shop/schema.sql"),
        include_str!("../fixtures/shop/seed.sql"),
        "ALTER TABLE orders REPLICA IDENTITY FULL; ALTER TABLE tax_rate REPLICA IDENTITY FULL;
         ALTER TABLE inventory REPLICA IDENTITY FULL;",
    ),
    transactions: include_str!("../fixtures/shop/transactions.sql"),
    events: include_str!("../fixtures/shop/events.txt"),
    config: include_str!("../fixtures/shop/events.yaml"),
    url: "SHOP_URL",
    topics: &["order", "tax", "stock"],
};

#[test]
fn ticketmonster_on_postgres_14() {
    let records = TICKETMONSTER.publish(V14);
    let booked = &records["booking"][1];
    assert_eq!(header(booked, "ce_correlationid"), "req-77");
    assert_eq!(header(booked, "ce_traceparent"), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    assert_eq!(header(booked, "ce_specversion"), "1.0");
    assert_eq!(header(booked, "content-type"), "application/json");
    assert_eq!(header(booked, "ce_subject"), "booking/2");
    let [epoch, lsn, rest] =
        header(booked, "ce_id").splitn(3, '-').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((epoch.as_str(), rest.as_str()), ("1", "BookingCreated.v1-2"));
    assert_eq!(header(booked, "ce_sequence"), format!("0001-{lsn}-0000000000"));
    // A cause is known by its id.
    let cancelled = records["booking"].iter().rfind(|record| header(record, "ce_type").contains("Cancelled")).unwrap();
    assert_eq!(header(cancelled, "ce_causationid"), header(records["performance"].last().unwrap(), "ce_id"));
    // Four prices of one show share the key, and no id.
    let mut ids: Vec<_> = records["price"].iter().map(|record| header(record, "ce_id")).collect();
    ids.dedup();
    assert_eq!(ids.len(), 4);
}

#[test]
fn ticketmonster_on_postgres_18() {
    TICKETMONSTER.publish(V18);
}

#[test]
fn the_shop_and_its_outbox() {
    SHOP.publish(V17);
}

#[test]
fn the_shop_with_old_rows_in_the_log() {
    SHOP_FULL.publish(V17);
}

#[test]
fn the_replica_with_at_least_once_is_refused_before_anything_is_made() {
    let db = postgres::shared(V17).create_database();
    db.execute(include_str!("../fixtures/ticketmonster/schema.sql"));
    let text = TICKETMONSTER.config.replace("name: ticketmonster", &format!("name: {}", db.name));
    let config = Config::new(&text.replace("  kafka:\n", "  kafka:\n    delivery: at_least_once\n"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
    command.arg("run").arg("-c").arg(&config.path).arg("--log=error");
    command.env("TICKETMONSTER_URL", &db.url).env("KAFKA_BROKERS", kafka::shared().address());
    let (code, said) = program::output(&mut command);
    assert_eq!(code, Some(2), "{said}");
    for words in [
        "offshoot.yaml:",
        "`PerformanceRescheduled.v1` needs the replica for `from`, `when`",
        "the log says of an old row of `public.performance` its primary key alone (the default REPLICA IDENTITY)",
        "write `exactly_once`, or ALTER TABLE public.performance REPLICA IDENTITY FULL",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(db.text("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"), "0");
}

#[test]
fn a_preview_shows_rows_beside_events_and_keeps_nothing() {
    let db = postgres::shared(V17).create_database();
    db.execute(TICKETMONSTER.schema);
    let config = Config::new(&TICKETMONSTER.config.replace("name: ticketmonster", &format!("name: {}", db.name)));
    let preview = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.arg("preview").arg("-c").arg(&config.path).args(arguments);
        // It asks nothing of Kafka.
        command.env("TICKETMONSTER_URL", &db.url).env("KAFKA_BROKERS", "127.0.0.1:1");
        command
    };
    let (code, said) = program::output(&mut preview(&[]));
    assert!(code == Some(3) && said.contains("CREATE PUBLICATION"), "{code:?} {said}");
    let sql = said
        .lines()
        .filter(|line| line.trim_start().starts_with("CREATE PUBLICATION") || line.trim_start().starts_with("COMMENT"));
    db.execute(&sql.collect::<Vec<_>>().concat());

    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    let mut looking = Offshoot::start(preview(&["--json", "--transactions=2"]), &config);
    looking.wait_log("what is committed from", DEADLINE_OF_A_LOOK);
    for transaction in fixture::transactions(TICKETMONSTER.transactions).iter().take(5) {
        run(&db, &transaction.statements);
    }
    assert!(looking.exit(DEADLINE).success(), "{:?}", looking.log());
    let pages: Vec<Value> = looking.log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(pages.len(), 2, "{:?}", looking.log());
    assert_eq!(pages[0]["records"][0]["headers"]["ce_type"], "com.acme.ticketmonster.BookingCreated.v1");
    assert_eq!(pages[0]["records"][0]["value"]["tickets"].as_array().unwrap().len(), 3);
    assert!(pages[0]["rows"].as_array().unwrap().iter().any(|row| row.as_str().unwrap().starts_with("+ booking")));
    assert_eq!((&pages[1]["records_in_all"], db.text(slots).as_str()), (&Value::from(4), "0"));
}

impl Monolith {
    /// What of its config is about events, with servers of ours.
    fn config(&self) -> String {
        let events = self.config.split_once("\ntypes:").expect("what comes before is of the servers").1;
        let events = events.split("\ndata_dir:").next().expect("split gives one");
        format!(
            "name: {}\nsource:\n  postgres: ${{{}}}\nsink:\n  kafka: {{ brokers: \"${{KAFKA_BROKERS}}\" }}\ntypes:{events}\n",
            self.name, self.url
        )
    }

    /// Commits the transactions beside the program; the records by topic, without its prefix, are what was expected.
    fn publish(&self, version: Version) -> BTreeMap<String, Vec<Record>> {
        let db = postgres::shared(version).create_database();
        db.execute(self.schema);
        let kafka = kafka::shared();
        // Topics of its own on the shared broker.
        let own = |text: &str| text.replace(&format!("{}.", self.name), &format!("{}.", db.name));
        let own = |text: &str| own(text).replace(&format!("name: {}", self.name), &format!("name: {}", db.name));
        let text = own(&self.config()).replace("topic: inventory.", &format!("topic: {}.inventory.", db.name));
        let text = text.replace("topic: \"inventory.", &format!("topic: \"{}.inventory.", db.name));
        let config = Config::new(&text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.arg("run").arg("-c").arg(&config.path);
        command.env(self.url, &db.url).env("KAFKA_BROKERS", kafka.address());
        let mut offshoot = Offshoot::start(command, &config);
        offshoot.wait_ready(START_MAX);
        let transactions = fixture::transactions(self.transactions);
        assert!(transactions.len() > 7);
        transactions.iter().for_each(|transaction| run(&db, &transaction.statements));
        // A clean stop publishes what was committed before it.
        let confirmed = format!(
            "SELECT confirmed_flush_lsn >= '{}' FROM pg_replication_slots WHERE slot_name = 'offshoot_{}'",
            db.text("SELECT pg_current_wal_lsn()"),
            db.name
        );
        offshoot.wait("everything to be confirmed", DEADLINE, |_| (db.text(&confirmed) == "t").then_some(()));
        assert!(offshoot.terminate(START_MAX).success(), "{}", offshoot.log().join("\n"));

        let mut expected: BTreeMap<String, Vec<[String; 3]>> = BTreeMap::new();
        // What was there before comes first.
        let before = format!("{}0", &transactions[0].name[..1]);
        for name in std::iter::once(&before).chain(transactions.iter().map(|transaction| &transaction.name)) {
            for [topic, key, event, data] in fixture::events(self.events, name) {
                expected.entry(topic.into()).or_default().push([key, event, data].map(str::to_owned));
            }
        }
        let mut all = BTreeMap::new();
        for (topic, expected) in expected {
            let own_topic = own(&topic).replace("inventory.", &format!("{}.inventory.", db.name));
            let records = kafka.read_all(&own_topic);
            // A key's order is that of its partition; over all, that of the sequence.
            let mut records = records;
            records.sort_by_key(|record| (header(record, "ce_sequence"), record.timestamp));
            let shown: Vec<_> = records.iter().map(shown).collect();
            assert_eq!(shown.len(), expected.len(), "{topic}: {shown:#?}");
            for (shown, expected) in shown.iter().zip(&expected) {
                assert_eq!(&shown[..2], &expected[..2], "{topic}");
                assert_eq!(json(&shown[2]), json(&expected[2]), "{topic}");
                assert!(
                    !self.topics.iter().any(|own| topic == format!("{}.{own}", self.name)) || shown[2] == expected[2],
                    "{shown:?}: fields in their order"
                );
            }
            all.insert(topic.split('.').nth(1).unwrap().to_owned(), records);
            kafka.delete_topic(&own_topic);
        }
        all
    }
}

fn run(session: &Session, statements: &[String]) {
    statements.iter().for_each(|statement| session.execute(statement));
}

/// Key, event and data, as the file of expected events has them.
fn shown(record: &Record) -> [String; 3] {
    let text =
        |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or("-".into(), |bytes| String::from_utf8(bytes.clone()).unwrap());
    let kind = header(record, "ce_type");
    // A tombstone has no type.
    let kind = if kind.is_empty() {
        "-".into()
    } else {
        kind.rsplit('.').take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(".")
    };
    [text(&record.key), kind, text(&record.value)]
}

fn json(text: &str) -> Value {
    if text == "-" { Value::Null } else { serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text}")) }
}

fn header(record: &Record, name: &str) -> String {
    let value = record.headers.iter().find(|(header, _)| header == name).and_then(|(_, value)| value.as_deref());
    String::from_utf8(value.unwrap_or_default().to_vec()).unwrap()
}
