//! Debezium's scenarios through the built program on real servers, and its records compared with Debezium's, field by
//! field. All that differs is in one table, with the reason.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use globset::Glob;
use serde_json::Value as Json;

use crate::support::{
    golden::{self, Difference, Record, Scenario, Step},
    kafka,
    postgres::{self, Db, Session, Version},
    program::{self, Config, Offshoot, START_MAX},
};

/// Long enough for a busy machine; nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(60);

/// A way in which our records differ from Debezium's, knowingly.
struct Known {
    /// Names of scenarios as globs; with its variant after a dot, if there is one.
    scenario: &'static str,
    /// A glob for topics.
    topic: &'static str,
    /// A glob for paths of fields, as `golden` tells them.
    path: &'static str,
    /// A glob for what we have instead, as JSON; `(absent)` where we have nothing.
    ours: &'static str,
    why: &'static str,
}

/// Every known difference. A line that fits nothing any more fails its scenarios, as does a difference that fits no line.
const KNOWN: &[Known] = &[
    Known { scenario: "01_*", topic: "*.customers", path: "before.*", ours: "null", why: UNKNOWN },
    Known { scenario: "03_*", topic: "*.line_item", path: "before.qty", ours: "null", why: UNKNOWN },
    Known { scenario: "06_*", topic: "*.ints", path: "before.si_nn", ours: "null", why: UNKNOWN },
    Known { scenario: "07_*", topic: "*.nums", path: "before.req", ours: "null", why: UNKNOWN },
    Known { scenario: "11_*", topic: "*.bin", path: "before.b_nn", ours: "null", why: UNKNOWN },
    Known { scenario: "18_*", topic: "*.article", path: "before.tail", ours: "null", why: UNKNOWN },
    Known { scenario: "19_*", topic: "*.item", path: "before.{grade,weight}", ours: "null", why: UNKNOWN },
    Known { scenario: "23_*", topic: "*.gen", path: "before.[hw]", ours: "null", why: UNKNOWN },
    Known { scenario: "19_*", topic: "*.item", path: "after.weight", ours: "null", why: DEFAULT },
    Known { scenario: "08_*", topic: "*.odd_default", path: "after.[np]", ours: "null", why: DEFAULT },
    Known {
        scenario: "04_*",
        topic: "*.keyed_indexed",
        path: "(record)",
        ours: "*",
        why: "under REPLICA IDENTITY USING INDEX the index is the key, which the log has of every old row; Debezium's primary key is not in it, so that it deletes {\"id\":0}",
    },
    Known { scenario: "07_*.precise", topic: "*.nums", path: "after.nneg", ours: "\"*=\"", why: NEGATIVE_SCALE },
    Known { scenario: "07_*.string", topic: "*.nums", path: "after.nneg", ours: "\"*0\"", why: NEGATIVE_SCALE },
    Known {
        scenario: "09_*",
        topic: "*.floats",
        path: "after.f24",
        ours: "1.1754944e-38",
        why: "the shortest text that reads as the same float, as Postgres prints it; Java's has a digit more than it needs",
    },
    Known {
        scenario: "10_*",
        topic: "*.texts",
        path: "after.nm",
        ours: "\"*\"",
        why: "a value of type name is published; Debezium streams null",
    },
    Known {
        scenario: "13_*",
        topic: "*.d_ext",
        path: "after.v",
        ours: "*21474836*",
        why: "infinite dates are the ends of 32 bits; Debezium's are days in the calendar's middle",
    },
    Known {
        scenario: "13_*",
        topic: "*.ts_ext",
        path: "after.v",
        ours: "9224318015999999999",
        why: "microseconds past 64 bits do not wrap around to negative ones",
    },
    Known {
        scenario: "17_*",
        topic: "*.arr_a",
        path: "after.e",
        ours: "*null*",
        why: "an array of an enum keeps its NULLs; Debezium's whole array is null",
    },
    Known {
        scenario: "17_*",
        topic: "*.arr_multi",
        path: "after.m*",
        ours: "?*,*?",
        why: "arrays of arrays nest; Debezium has nulls, or the address of a Java object",
    },
    Known {
        scenario: "18_*",
        topic: "*.toast_types",
        path: "after.num",
        ours: "(absent)",
        why: "an unchanged TOASTed numeric is left out: null would say that it is NULL",
    },
    Known {
        scenario: "22_*",
        topic: "*.a_b",
        path: "(record)",
        ours: "(absent)",
        why: "two tables never share a topic: table `a b` is left out here, since its name comes to that of `a_b`",
    },
    Known {
        scenario: "28_*.expand",
        topic: "*.Mixed.Case-1",
        path: "(value)",
        ours: "\"just a string\"",
        why: EMBEDDED,
    },
    Known { scenario: "28_*.expand", topic: "*.order", path: "{note,tags}", ours: "*", why: EMBEDDED },
    Known { scenario: "28_*.expand", topic: "*.order", path: "(value)", ours: "*", why: EMBEDDED },
    Known { scenario: "28_*.expand", topic: "*.order", path: "{deep,e,f,mixed,nums}", ours: "*", why: EMBEDDED },
    Known {
        scenario: "28_*.expand_envelope",
        topic: "*.Mixed.Case-1",
        path: "payload",
        ours: "\"just a string\"",
        why: EMBEDDED,
    },
    Known { scenario: "28_*.expand_envelope", topic: "*.order", path: "payload.tags", ours: "*", why: EMBEDDED },
    Known { scenario: "28_*.expand_envelope", topic: "*.order", path: "payload", ours: "*three*", why: EMBEDDED },
    Known { scenario: "28_*.expand_envelope", topic: "*.order", path: "payload", ours: "*nums*", why: EMBEDDED },
    Known {
        scenario: "33_*.expand",
        topic: "*.order",
        path: "(record)",
        ours: "*1,2,3*",
        why: "an array of numbers is embedded; it stops Debezium's task",
    },
];

const EMBEDDED: &str = "a payload that is JSON is embedded as it was written: Debezium drops nulls and empty arrays, shortens \
     12.50, and leaves a payload with a mixed array as text";
const UNKNOWN: &str =
    "what the log does not have of an old row is null; Debezium invents the column's default, or zero";
const DEFAULT: &str = "a NULL is a NULL: the column's default is not put in its place";
const NEGATIVE_SCALE: &str = "numeric(3,-2) has the scale -2; Debezium takes 2046";

/// The databases of the captures had this name; ours have one each.
const DATABASE: &str = "golden_db";

/// A statement that the captures' Postgres refused, for a reason that ours does not have.
const ONLY_THERE_REFUSED: &str = "alter table renamed set schema pg_catalog";

/// Tables that a scenario has to leave out.
const EXCEPT: &[(&str, &str)] = &[("22_names.default", "public.a b")];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/debezium")
}

fn scenario(name: &str) -> Scenario {
    let text = fs::read_to_string(fixtures().join(format!("{name}.sql"))).unwrap();
    Scenario::parse(&text).unwrap()
}

/// One scenario in a database of its own, with the program between it and Kafka.
struct Replay {
    db: Db,
    sessions: BTreeMap<String, Session>,
    /// In front of each topic, since all scenarios share a broker.
    prefix: String,
}

impl Replay {
    fn new() -> Replay {
        let db = postgres::shared(Version::V15).create_database();
        let prefix = format!("{}.", kafka::shared().topic_name("debezium"));
        Replay { db, sessions: BTreeMap::new(), prefix }
    }

    fn config(&self, decimal: &str, except: &[&str]) -> String {
        let (url, slot, prefix, brokers) = (&self.db.url, &self.db.name, &self.prefix, kafka::shared().address());
        format!(
            "name: {slot}\nsource:\n  postgres: {url}\n  slot: {slot}\n  publication: golden_pub\nsink:\n  kafka:\n    \
             brokers: {brokers}\n    delivery: at_least_once\n    topics: {{ partitions: 1 }}\nchanges:\n  \
             tables: [\"*.*\"]\n  except: {except:?}\n  topic: \"{prefix}g.{{schema}}.{{table}}\"\n  \
             decimal: {decimal}\n"
        )
    }

    /// Without `changes`, as the other way out has its options.
    fn outbox_config(&self, outbox: &str) -> String {
        let config = self.config("precise", &[]);
        let (before, _) = config.split_once("changes:\n").unwrap();
        let lines = outbox.replace("TOPIC", &self.prefix);
        format!("{before}outbox:\n  converter: json\n{lines}\n")
    }

    fn run(&mut self, steps: &[Step], mut before: impl FnMut(&Self, &Step)) {
        for step in steps {
            before(self, step);
            let Step::Statement { session, sql, fails } = step else { continue };
            if sql.starts_with(ONLY_THERE_REFUSED) {
                continue;
            }
            let session = self.sessions.entry(session.clone()).or_insert_with(|| self.db.connect());
            match (session.try_execute(sql), fails) {
                (Ok(()), false) | (Err(_), true) => {}
                (Ok(()), true) => panic!("Postgres takes what it refused for Debezium: {sql}"),
                (Err(error), false) => panic!("{sql}: {error:?}"),
            }
        }
    }

    /// Waits until everything that is committed now has been read.
    fn catch_up(&self, offshoot: &mut Offshoot) {
        let end: f64 = self.db.text("SELECT pg_current_wal_flush_lsn() - '0/0'").parse().unwrap();
        offshoot.wait("all to be read", DEADLINE, |o| (o.metric("offshoot_received_lsn")? >= end).then_some(()));
    }

    fn consumed(&self) -> Vec<kafka::Record> {
        let topics = kafka::shared().topics();
        let topics: Vec<&str> =
            topics.keys().filter(|topic| topic.starts_with(&self.prefix)).map(String::as_str).collect();
        let mut consumed = Vec::new();
        kafka::shared().reader(&topics, DEADLINE).read_to_end(DEADLINE, |record| consumed.push(record));
        consumed
    }

    fn timestamps(&self) -> Vec<(String, i64)> {
        let id = |record: &kafka::Record| {
            let value = record.headers.iter().find(|(name, _)| name == "id")?.1.clone();
            String::from_utf8(value?).ok()
        };
        self.consumed().iter().map(|record| (id(record).unwrap_or_default(), record.timestamp)).collect()
    }

    /// What is in Kafka, as the reference has it: by topic, then offset; topics and database under the captures' names.
    fn records(&self) -> Vec<Record> {
        let mut consumed = self.consumed();
        consumed.sort_by(|a, b| (&a.topic, a.partition, a.offset).cmp(&(&b.topic, b.partition, b.offset)));
        let text = |bytes: &[u8]| Json::from(String::from_utf8(bytes.to_vec()).unwrap());
        let record = |record: &kafka::Record| {
            let mut value = record.value_json();
            if let Some(db) = value.pointer_mut("/source/db") {
                assert_eq!(*db, *self.db.name, "the record names its database");
                *db = DATABASE.into();
            }
            if let Some(name) = value.pointer_mut("/source/name") {
                assert_eq!(*name, *self.db.name, "the record names its pipeline");
                *name = "g".into();
            }
            let headers = record.headers.iter();
            Record {
                topic: record.topic[self.prefix.len()..].into(),
                partition: record.partition,
                key: record.key_json(),
                value,
                headers: headers
                    .map(|(name, value)| (name.clone(), value.as_deref().map_or(Json::Null, text)))
                    .collect(),
            }
        };
        consumed.iter().map(record).collect()
    }
}

fn is_ddl(sql: &str) -> bool {
    ["alter ", "create ", "drop "].iter().any(|verb| sql.starts_with(verb))
}

fn replay(name: &str, variant: Option<&str>) {
    let full_name = full_name(name, variant);
    let decimal = variant.filter(|variant| ["double", "string"].contains(variant)).unwrap_or("precise");
    let except: Vec<&str> = EXCEPT.iter().filter(|(of, _)| *of == full_name).map(|(_, table)| *table).collect();
    let _ = replay_with(name, variant, |replay| replay.config(decimal, &except));
}

fn full_name(name: &str, variant: Option<&str>) -> String {
    variant.map_or(name.to_string(), |variant| format!("{name}.{variant}"))
}

/// The header `id` of each record, if there is one, and its timestamp.
fn replay_with(name: &str, variant: Option<&str>, config: impl Fn(&Replay) -> String) -> Vec<(String, i64)> {
    let full_name = full_name(name, variant);
    let scenario = scenario(name);
    let mut replay = Replay::new();
    replay.run(&scenario.setup, |_, _| {});
    let config = config(&replay);
    let mut offshoot = Offshoot::run(Path::new(env!("CARGO_BIN_EXE_offshoot")), &config);
    offshoot.wait_ready(START_MAX);
    replay.run(&scenario.stream, |replay, step| match step {
        Step::Pause(_) => replay.catch_up(&mut offshoot),
        // Debezium had caught up with what came before; in a transaction that is all that was committed.
        Step::Statement { sql, .. } if is_ddl(sql) => replay.catch_up(&mut offshoot),
        Step::Statement { .. } => {}
    });
    replay.catch_up(&mut offshoot);
    let status = offshoot.terminate(START_MAX);
    assert!(status.success(), "{status}; its log:\n{}", offshoot.log().join("\n"));

    let ours = replay.records();
    assert_eq!(ours.iter().filter(|record| record.topic == scenario.end).count(), 1, "the scenario ran to its end");
    let debezium = golden::streamed(golden::load(&fixtures().join(golden::records_file(name, variant))).unwrap());
    let found = golden::compare(&ours, &debezium);
    judge(&full_name, &ours, &debezium, &found);
    replay.timestamps()
}

/// Says how a scenario came out; fails when a difference is not known, or a known one is gone.
fn judge(name: &str, ours: &[Record], debezium: &[Record], found: &[Difference]) {
    let fits = |glob: &str, text: &str| Glob::new(glob).unwrap().compile_matcher().is_match(text);
    let known: Vec<&Known> = KNOWN.iter().filter(|known| fits(known.scenario, name)).collect();
    let mut seen = vec![0; known.len()];
    let mut unknown = Vec::new();
    for difference in found {
        let ours = difference.ours.as_ref().map_or("(absent)".to_string(), Json::to_string);
        let fits = |known: &&Known| {
            fits(known.topic, &difference.topic) && fits(known.path, &difference.path) && fits(known.ours, &ours)
        };
        match known.iter().position(fits) {
            Some(at) => seen[at] += 1,
            None => unknown.push(difference),
        }
    }
    let mut differing: Vec<_> = found.iter().map(|d| (&d.topic, d.key.to_string(), d.n)).collect();
    differing.sort();
    differing.dedup();
    let equal = debezium.len().saturating_sub(differing.len());
    let line = format!(
        "{name}: {} records, Debezium {}, {equal} equal, {} known differences in fields, {} unknown\n",
        ours.len(),
        debezium.len(),
        found.len() - unknown.len(),
        unknown.len()
    );
    // Past the harness, which keeps what a test prints unless it fails.
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    let gone = known.iter().zip(&seen).filter(|(_, count)| **count == 0).map(|(known, _)| {
        format!("gone: {} {} {} {} ({})", known.scenario, known.topic, known.path, known.ours, known.why)
    });
    let problems: Vec<String> = unknown.iter().map(|difference| difference.to_string()).chain(gone).collect();
    assert!(problems.is_empty(), "{name}:\n{}", problems.join("\n"));
}

/// A test per run of a scenario.
macro_rules! scenarios {
    ($($test:ident: $name:literal $($variant:literal)?;)*) => {$(
        #[test]
        fn $test() {
            #[allow(unused_mut, unused_assignments)]
            let mut variant = None;
            $(variant = Some($variant);)?
            replay($name, variant);
        }
    )*};
}

scenarios! {
    crud: "01_crud";
    transactions: "02_transactions";
    keys: "03_keys" "default";
    replica_identity: "04_replica_identity";
    types_integer: "06_types_integer";
    types_numeric_precise: "07_types_numeric" "precise";
    types_numeric_double: "07_types_numeric" "double";
    types_numeric_string: "07_types_numeric" "string";
    types_numeric_nan: "08_types_numeric_nan" "string";
    types_float: "09_types_float";
    types_text: "10_types_text";
    types_bytea: "11_types_bytea" "bytes";
    types_temporal: "12_types_temporal" "adaptive";
    types_temporal_extreme: "13_types_temporal_extreme" "adaptive";
    types_misc: "15_types_misc" "default";
    types_extension: "16_types_extension" "json";
    types_array: "17_types_array" "default";
    toast: "18_toast" "default";
    ddl: "19_ddl";
    names: "22_names" "default";
    truncate_and_generated: "23_truncate_generated" "none";
}

/// Debezium's EventRouter, and its options under our words.
fn outbox(name: &str, variant: &str, options: &str) {
    let _ = replay_with(name, Some(variant), |replay| replay.outbox_config(options));
}

const OUTBOX: &str = "  table: outbox\n  topic: \"TOPICoutbox.event.{aggregatetype}\"\n";

#[test]
fn outbox_default() {
    outbox("28_outbox", "default", OUTBOX);
}

#[test]
fn outbox_headers() {
    let fields = "  fields: { type: { to: header, as: eventType }, tenant: { to: header }, seq: { to: header, as: seqNo }, \
                  created: { to: header } }";
    outbox("28_outbox", "headers", &format!("{OUTBOX}{fields}"));
}

#[test]
fn outbox_envelope() {
    let fields =
        "  fields: { type: { to: envelope, as: eventType }, seq: { to: envelope }, created: { to: envelope, as: at } }";
    outbox("28_outbox", "envelope", &format!("{OUTBOX}{fields}"));
}

#[test]
fn outbox_expanded() {
    outbox("28_outbox", "expand", &format!("{OUTBOX}  expand_json: true"));
    outbox("28_outbox", "tombstone", &format!("{OUTBOX}  tombstone: true"));
}

#[test]
fn outbox_expanded_in_an_envelope() {
    let fields = "  fields: { type: { to: envelope }, tenant: { to: envelope } }\n  expand_json: true";
    outbox("28_outbox", "expand_envelope", &format!("{OUTBOX}{fields}"));
}

#[test]
fn outbox_with_columns_of_other_names_and_types() {
    let table = "  table: events\n  topic: \"TOPICrouted.{aggregatetype}.events\"\n";
    for (variant, payload) in [("text", "body"), ("bytes", "raw")] {
        let columns = format!("id: event_id, aggregateid: entity_id, aggregatetype: entity, payload: {payload}");
        outbox("29_outbox_custom", variant, &format!("{table}  columns: {{ {columns} }}"));
    }
}

/// EventRouter's `table.field.event.timestamp`; the captures hold all of a record but its timestamp.
#[test]
fn outbox_with_the_time_that_the_application_says() {
    let outbox_with = |columns: &str| {
        let table = "  table: events\n  topic: \"TOPICrouted.{aggregatetype}.events\"\n";
        let columns = format!("id: event_id, aggregateid: entity_id, aggregatetype: entity, payload: body{columns}");
        replay_with("29_outbox_custom", Some("timestamp"), |replay| {
            replay.outbox_config(&format!("{table}  columns: {{ {columns} }}"))
        })
    };
    // 2024-06-01 12:00:00 as if it were UTC, to the millisecond.
    let noon = 1_717_243_200_000;
    let told = outbox_with(", timestamp: at_ts");
    let of = |told: &[(String, i64)], id: &str| told.iter().find(|(of, _)| of == id).unwrap().1;
    assert_eq!(["1", "2", "3", "4", "99"].map(|id| of(&told, id) - noon), [0, 1500, 2000, 3000, 4000]);
    // Else it is the time of publishing.
    assert!(outbox_with("").iter().all(|(_, timestamp)| *timestamp > noon + 24 * 3_600_000));
}

#[test]
fn an_outbox_event_that_no_topic_can_take_stops_the_run() {
    for (variant, options) in [("default", ""), ("expand", "  expand_json: true")] {
        fails_as_debezium(variant, options);
    }
}

fn fails_as_debezium(variant: &str, options: &str) {
    let scenario = scenario("33_outbox_fails");
    let mut replay = Replay::new();
    replay.run(&scenario.setup, |_, _| {});
    let mut offshoot =
        Offshoot::run(Path::new(env!("CARGO_BIN_EXE_offshoot")), &replay.outbox_config(&format!("{OUTBOX}{options}")));
    offshoot.wait_ready(START_MAX);
    replay.run(&scenario.stream, |_, _| {});
    crate::pipe::ends(offshoot, 7, &["no name that Kafka takes", "offshoot skip --lsn"]);
    let debezium = golden::load(&fixtures().join(golden::records_file("33_outbox_fails", Some(variant)))).unwrap();
    let ours = replay.records();
    judge(&full_name("33_outbox_fails", Some(variant)), &ours, &debezium, &golden::compare(&ours, &debezium));
}

#[test]
fn two_tables_that_come_to_one_topic_stop_the_run() {
    let scenario = scenario("22_names");
    let mut replay = Replay::new();
    replay.run(&scenario.setup, |_, _| {});
    let mut offshoot = Offshoot::run(Path::new(env!("CARGO_BIN_EXE_offshoot")), &replay.config("precise", &[]));
    let status = offshoot.exit(DEADLINE);
    let log = offshoot.log().join("\n");
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("public.a b") && log.contains("public.a_b"), "{log}");
    // Nobody would read from a slot that a config which cannot run had left behind.
    assert_eq!(replay.db.text("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"), "0");
}

#[test]
fn a_slot_that_debezium_left_is_taken_over() {
    let replay = Replay::new();
    replay.db.execute("CREATE TABLE moved (id int PRIMARY KEY); CREATE PUBLICATION golden_pub FOR ALL TABLES");
    replay.db.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", replay.db.name));
    replay.db.execute("INSERT INTO moved VALUES (1)");
    let config = Config::new(&replay.config("precise", &[]));
    let binary = Path::new(env!("CARGO_BIN_EXE_offshoot"));
    let mut resume = Command::new(binary);
    resume.args(["resume", "--from-slot", "--yes", "-c"]).arg(&config.path);
    let (code, said) = program::output(&mut resume);
    assert_eq!(code, Some(0), "{said}");
    let mut run = Command::new(binary);
    run.args(["run", "-c"]).arg(&config.path);
    let mut offshoot = Offshoot::start(run, &config);
    offshoot.wait_ready(START_MAX);
    replay.catch_up(&mut offshoot);
    assert!(offshoot.terminate(START_MAX).success());
    let keys: Vec<Json> = replay.records().into_iter().map(|record| record.key).collect();
    assert_eq!(keys, [serde_json::json!({"id": 1})]);
}
