//! DDL of the application while Offshoot streams, and while it is down: each record has the shape that its row had.

use std::{path::Path, process::Command, thread, time::Duration};

use serde_json::Value as Json;

use crate::support::{
    kafka,
    postgres::{self, Db, Version},
    program::{Config, Offshoot, START_MAX},
};

/// Long enough for a busy machine; nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(60);

/// A database, and the program between it and Kafka.
struct Walk {
    db: Db,
    /// In front of each topic.
    prefix: String,
    config: Config,
    offshoot: Offshoot,
    /// How many records have been looked at.
    seen: usize,
}

impl Walk {
    /// Runs `setup`, then starts with a publication that Offshoot makes for `tables`.
    fn start(setup: &str, tables: &str) -> Walk {
        Self::on(postgres::shared(Version::V17).create_database(), setup, tables)
    }

    fn on(db: Db, setup: &str, tables: &str) -> Walk {
        db.execute(setup);
        let prefix = format!("{}.", kafka::shared().topic_name("schema"));
        let (url, slot, brokers) = (&db.url, &db.name, kafka::shared().address());
        // One topic for all of it shows the order across tables.
        let config = Config::new(&format!(
            "name: {slot}\nsource: {{ postgres: '{url}', slot: {slot} }}\nsink:\n  kafka:\n    brokers: {brokers}\n    \
             delivery: at_least_once\n    topics: {{ partitions: 1 }}\nchanges:\n  tables: {tables}\n  \
             topic: '{prefix}all'\n"
        ));
        let offshoot = run(&config);
        Walk { db, prefix, config, offshoot, seen: 0 }
    }

    fn stop(&mut self) {
        let status = self.offshoot.terminate(START_MAX);
        assert!(status.success(), "{status}; its log:\n{}", self.offshoot.log().join("\n"));
    }

    /// Another life with the same config.
    fn start_again(&mut self) {
        self.offshoot = run(&self.config);
    }

    /// `offshoot_s` is the pipeline's publication.
    fn execute(&self, sql: &str) {
        self.db.execute(&sql.replace("offshoot_s ", &format!("offshoot_{} ", self.db.name)));
    }

    /// Waits until everything that is committed now is in Kafka, and says what is new there: a line each, tombstones
    /// without a row.
    fn told(&mut self) -> Vec<String> {
        let end = self.db.text("SELECT pg_current_wal_flush_lsn()");
        let confirmed = format!(
            "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{}'",
            self.db.name
        );
        let db = &self.db;
        self.offshoot.wait("all to be confirmed", DEADLINE, |_| (db.text(&confirmed) == "t").then_some(()));
        let topic = format!("{}all", self.prefix);
        let records = match kafka::shared().partitions(&topic) {
            0 => Vec::new(),
            _ => kafka::shared().read_all(&topic),
        };
        let new = records[self.seen..].iter().map(line).collect();
        self.seen = records.len();
        new
    }

    #[track_caller]
    fn expect(&mut self, lines: &[&str]) {
        assert_eq!(self.told(), lines);
    }
}

fn run(config: &Config) -> Offshoot {
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_offshoot")));
    command.arg("run").arg("-c").arg(&config.path);
    let mut offshoot = Offshoot::start(command, config);
    offshoot.wait_ready(START_MAX);
    offshoot
}

/// `c item {"id":1} {"id":1,"name":"a"}`: operation, table, key, and the row after, or before if it is gone.
fn line(record: &kafka::Record) -> String {
    let (key, value) = (record.key_json(), record.value_json());
    if value.is_null() {
        return format!("tombstone {key}");
    }
    let text = |json: &Json| json.as_str().expect("a text").to_string();
    let row = if value["after"].is_null() { &value["before"] } else { &value["after"] };
    format!("{} {} {key} {row}", text(&value["op"]), text(&value["source"]["table"]))
}

#[test]
fn the_next_record_has_the_new_shape() {
    let mut walk = Walk::start("CREATE TABLE item (id int PRIMARY KEY, name text, qty int)", "[public.*]");
    // Nobody waits between them: what the decoder asks the catalog may be answered much later.
    walk.execute("INSERT INTO item VALUES (1, 'a', 1)");
    walk.execute("ALTER TABLE item ADD COLUMN colour text");
    walk.execute("INSERT INTO item VALUES (2, 'b', 2, 'red')");
    walk.execute("ALTER TABLE item ADD COLUMN grade int NOT NULL DEFAULT 3");
    walk.execute("UPDATE item SET qty = 10 WHERE id = 1");
    walk.execute("ALTER TABLE item DROP COLUMN qty");
    walk.execute("INSERT INTO item (id, name) VALUES (3, 'c')");
    walk.execute("ALTER TABLE item RENAME COLUMN name TO title");
    walk.execute("UPDATE item SET colour = 'blue' WHERE id = 2");
    walk.execute("ALTER TABLE item ALTER COLUMN id TYPE bigint");
    walk.execute("INSERT INTO item (id, title) VALUES (9000000000, 'd')");
    walk.execute("ALTER TABLE item ALTER COLUMN grade TYPE text USING 'g' || grade");
    walk.execute("UPDATE item SET title = 'aa' WHERE id = 1");
    walk.execute("ALTER TABLE item RENAME TO article");
    walk.execute("DELETE FROM article WHERE id = 3");
    // Another table takes the name.
    walk.execute("ALTER TABLE article RENAME TO item_old");
    walk.execute("INSERT INTO item_old VALUES (5, 'e', null, 'g5')");
    walk.expect(&[
        r#"c item {"id":1} {"id":1,"name":"a","qty":1}"#,
        r#"c item {"id":2} {"colour":"red","id":2,"name":"b","qty":2}"#,
        r#"u item {"id":1} {"colour":null,"grade":3,"id":1,"name":"a","qty":10}"#,
        r#"c item {"id":3} {"colour":null,"grade":3,"id":3,"name":"c"}"#,
        r#"u item {"id":2} {"colour":"blue","grade":3,"id":2,"title":"b"}"#,
        r#"c item {"id":9000000000} {"colour":null,"grade":3,"id":9000000000,"title":"d"}"#,
        r#"u item {"id":1} {"colour":null,"grade":"g3","id":1,"title":"aa"}"#,
        r#"d article {"id":3} {"colour":null,"grade":null,"id":3,"title":null}"#,
        r#"tombstone {"id":3}"#,
        r#"c item_old {"id":5} {"colour":null,"grade":"g5","id":5,"title":"e"}"#,
    ]);
    let starts = walk.offshoot.log().iter().filter(|line| line.contains("made the slot")).count();
    assert_eq!(starts, 1, "it never started again");
}

#[test]
fn a_record_is_keyed_by_the_key_that_its_row_had() {
    let mut walk = Walk::start("CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL, c text NOT NULL)", "[public.t]");
    walk.execute("INSERT INTO t VALUES (1, 10, 'x')");
    walk.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (b)");
    walk.execute("INSERT INTO t VALUES (2, 20, 'y')");
    walk.execute("UPDATE t SET b = 11 WHERE a = 1");
    walk.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (c, a)");
    walk.execute("UPDATE t SET b = 12 WHERE a = 1");
    walk.execute("ALTER TABLE t DROP CONSTRAINT t_pkey, REPLICA IDENTITY FULL");
    walk.execute("UPDATE t SET b = 13 WHERE a = 1");
    walk.execute("DELETE FROM t WHERE a = 2");
    // The catalog has forgotten the keys when the first of these rows is decoded, if it is slow.
    let told = walk.told();
    let expected = [
        r#"c t {"a":1} {"a":1,"b":10,"c":"x"}"#,
        r#"c t {"b":20} {"a":2,"b":20,"c":"y"}"#,
        r#"d t {"b":10} {"a":null,"b":10,"c":null}"#,
        r#"tombstone {"b":10}"#,
        r#"c t {"b":11} {"a":1,"b":11,"c":"x"}"#,
        r#"u t {"a":1,"c":"x"} {"a":1,"b":12,"c":"x"}"#,
        r#"u t null {"a":1,"b":13,"c":"x"}"#,
        r#"d t null {"a":2,"b":20,"c":"y"}"#,
        r#"tombstone null"#,
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_table_joins_the_publication_without_a_restart() {
    let mut walk = Walk::start("CREATE TABLE early (id int PRIMARY KEY)", "[public.*]");
    walk.execute("INSERT INTO early VALUES (1)");
    walk.expect(&[r#"c early {"id":1} {"id":1}"#]);
    // At once, before it is added by our own look; config_changes.rs has that.
    walk.execute(
        "BEGIN; CREATE TABLE late (id int PRIMARY KEY); CREATE SCHEMA hidden; CREATE TABLE hidden.late (id int PRIMARY KEY); \
         ALTER PUBLICATION offshoot_s ADD TABLE late, hidden.late; COMMIT",
    );
    walk.execute("INSERT INTO late VALUES (2)");
    // It is published, and nobody asked for it.
    walk.execute("INSERT INTO hidden.late VALUES (3)");
    walk.execute("INSERT INTO early VALUES (4)");
    walk.expect(&[r#"c late {"id":2} {"id":2}"#, r#"c early {"id":4} {"id":4}"#]);
}

#[test]
fn ddl_that_is_rolled_back_was_never_there() {
    let mut walk = Walk::start("CREATE TABLE item (id int PRIMARY KEY, name text)", "[public.item]");
    walk.execute("INSERT INTO item VALUES (1, 'a')");
    walk.execute(
        "BEGIN; ALTER TABLE item ADD COLUMN extra int; INSERT INTO item VALUES (2, 'b', 2); \
         ALTER TABLE item DROP COLUMN name; ROLLBACK",
    );
    walk.execute("INSERT INTO item VALUES (3, 'c')");
    walk.execute(
        "BEGIN; INSERT INTO item VALUES (4, 'd'); SAVEPOINT s; ALTER TABLE item ADD COLUMN extra int; \
         INSERT INTO item VALUES (5, 'e', 5); ROLLBACK TO s; INSERT INTO item VALUES (6, 'f'); COMMIT",
    );
    walk.expect(&[
        r#"c item {"id":1} {"id":1,"name":"a"}"#,
        r#"c item {"id":3} {"id":3,"name":"c"}"#,
        r#"c item {"id":4} {"id":4,"name":"d"}"#,
        r#"c item {"id":6} {"id":6,"name":"f"}"#,
    ]);
}

#[test]
fn rows_before_and_after_ddl_in_one_transaction_have_their_own_shapes() {
    let mut walk = Walk::start("CREATE TABLE item (id int PRIMARY KEY, name text)", "[public.*]");
    walk.execute(
        "BEGIN; INSERT INTO item VALUES (1, 'a'); ALTER TABLE item ADD COLUMN extra numeric(6,2); \
         INSERT INTO item VALUES (2, 'b', 1.50); ALTER TABLE item RENAME COLUMN name TO title; \
         UPDATE item SET extra = 2 WHERE id = 1; ALTER TABLE item RENAME TO thing; \
         ALTER TABLE thing ALTER COLUMN extra TYPE text; INSERT INTO thing VALUES (3, 'c', 'x'); \
         ALTER TABLE thing DROP COLUMN title; DELETE FROM thing WHERE id = 2; COMMIT",
    );
    walk.expect(&[
        r#"c item {"id":1} {"id":1,"name":"a"}"#,
        r#"c item {"id":2} {"extra":"AJY=","id":2,"name":"b"}"#,
        r#"u item {"id":1} {"extra":"AMg=","id":1,"title":"a"}"#,
        r#"c thing {"id":3} {"extra":"x","id":3,"title":"c"}"#,
        r#"d thing {"id":2} {"extra":null,"id":2}"#,
        r#"tombstone {"id":2}"#,
    ]);
}

#[test]
fn a_lock_of_the_applications_does_not_hold_the_stream() {
    let mut walk =
        Walk::start("CREATE TABLE item (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)", "[public.*]");
    walk.stop();
    walk.execute("INSERT INTO item VALUES (1)");
    let migration = walk.db.connect();
    // It holds the strongest lock on the table that the decoder has to ask about.
    migration.execute("BEGIN; ALTER TABLE item ADD COLUMN extra int; INSERT INTO item VALUES (2, 2)");
    walk.start_again();
    walk.execute("INSERT INTO other VALUES (1)");
    walk.expect(&[r#"c item {"id":1} {"id":1}"#, r#"c other {"id":1} {"id":1}"#]);
    migration.execute("COMMIT");
    walk.expect(&[r#"c item {"id":2} {"extra":2,"id":2}"#]);
}

#[test]
fn a_backlog_is_told_in_the_shapes_that_its_rows_had() {
    let mut walk = Walk::start(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN price AS numeric(9,3); \
         CREATE TABLE item (id int PRIMARY KEY, name text, m mood); \
         CREATE EXTENSION hstore; CREATE TYPE size AS ENUM ('s', 'l'); CREATE DOMAIN cost AS numeric(9,3); \
         CREATE TABLE priced (id int PRIMARY KEY, p price); \
         CREATE TABLE moved_and_gone (id int PRIMARY KEY, s size[]); \
         CREATE TABLE moved (id int PRIMARY KEY, s size[], h hstore, c cost); CREATE TABLE gone (v text, k int PRIMARY KEY); \
         CREATE TABLE keyed (a int, b int, c text NOT NULL, PRIMARY KEY (b, a)); CREATE TABLE other (id int PRIMARY KEY)",
        "[public.*]",
    );
    walk.stop();
    walk.execute("INSERT INTO item VALUES (1, 'a', 'sad')");
    walk.execute("ALTER TABLE item ADD COLUMN qty int");
    walk.execute("INSERT INTO item VALUES (2, 'b', 'ok', 2)");
    walk.execute("ALTER TABLE item DROP COLUMN name");
    walk.execute("ALTER TABLE item ALTER COLUMN qty TYPE text");
    walk.execute("UPDATE item SET qty = 'two' WHERE id = 2");
    // The types of rows that are still to be told are gone.
    walk.execute("ALTER TABLE item ALTER COLUMN m TYPE text; DROP TYPE mood");
    walk.execute("INSERT INTO item VALUES (3, 'free', 'x')");
    walk.execute("INSERT INTO priced VALUES (1, 1.5)");
    walk.execute("ALTER TABLE priced ALTER COLUMN p TYPE text; DROP DOMAIN price");
    walk.execute("INSERT INTO priced VALUES (2, 'dear')");
    // Here they are still there, and no column has them any more.
    walk.execute("INSERT INTO moved VALUES (1, '{s,l}', 'a=>1', 1.5)");
    walk.execute("ALTER TABLE moved DROP COLUMN s, DROP COLUMN h, ALTER COLUMN c TYPE text");
    walk.execute("INSERT INTO moved VALUES (2, 'x')");
    walk.execute("INSERT INTO moved_and_gone VALUES (1, '{s}'); DROP TABLE moved_and_gone");
    walk.execute("INSERT INTO keyed VALUES (1, 10, 'x')");
    walk.execute("ALTER TABLE keyed DROP CONSTRAINT keyed_pkey, ADD PRIMARY KEY (c)");
    walk.execute("UPDATE keyed SET c = 'y'");
    walk.execute("INSERT INTO gone VALUES ('v', 1); UPDATE gone SET k = 2; DELETE FROM gone; DROP TABLE gone");
    // Another table under the name of one that is gone.
    walk.execute("DROP TABLE other; CREATE TABLE other (id text PRIMARY KEY)");
    walk.execute("ALTER PUBLICATION offshoot_s ADD TABLE other");
    walk.execute("INSERT INTO other VALUES ('one')");
    walk.start_again();
    walk.expect(&[
        r#"c item {"id":1} {"id":1,"m":"sad","name":"a"}"#,
        r#"c item {"id":2} {"id":2,"m":"ok","name":"b","qty":2}"#,
        r#"u item {"id":2} {"id":2,"m":"ok","qty":"two"}"#,
        r#"c item {"id":3} {"id":3,"m":"free","qty":"x"}"#,
        // Of a domain that is gone the stream tells the type below it, but not its precision.
        r#"c priced {"id":1} {"id":1,"p":{"scale":1,"value":"Dw=="}}"#,
        r#"c priced {"id":2} {"id":2,"p":"dear"}"#,
        r#"c moved {"id":1} {"c":"Bdw=","h":"{\"a\":\"1\"}","id":1,"s":["s","l"]}"#,
        r#"c moved {"id":2} {"c":"x","id":2}"#,
        r#"c moved_and_gone {"id":1} {"id":1,"s":["s"]}"#,
        r#"c keyed {"a":1,"b":10} {"a":1,"b":10,"c":"x"}"#,
        r#"d keyed {"c":"x"} {"a":null,"b":null,"c":"x"}"#,
        r#"tombstone {"c":"x"}"#,
        r#"c keyed {"c":"y"} {"a":1,"b":10,"c":"y"}"#,
        r#"c gone {"k":1} {"k":1,"v":"v"}"#,
        r#"d gone {"k":1} {"k":1,"v":null}"#,
        r#"tombstone {"k":1}"#,
        r#"c gone {"k":2} {"k":2,"v":"v"}"#,
        r#"d gone {"k":2} {"k":2,"v":null}"#,
        r#"tombstone {"k":2}"#,
        r#"c other {"id":"one"} {"id":"one"}"#,
    ]);
}

#[test]
fn rows_of_a_partition_that_is_gone_are_told_as_those_of_its_root() {
    let mut walk = Walk::start(
        "CREATE TABLE log (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day); \
         CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2024-01-01') TO ('2024-02-01'); \
         CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM ('2024-02-01') TO ('2024-03-01'); \
         CREATE TABLE other (id int PRIMARY KEY)",
        "[public.log]",
    );
    walk.stop();
    walk.execute("INSERT INTO log VALUES (1, '2024-01-05'); DROP TABLE log_1");
    walk.execute("INSERT INTO log VALUES (2, '2024-02-05'); INSERT INTO other VALUES (3)");
    walk.start_again();
    walk.expect(&[
        r#"c log_1 {"day":19727,"id":1} {"day":19727,"id":1}"#,
        r#"c log_2 {"day":19758,"id":2} {"day":19758,"id":2}"#,
    ]);
}

#[test]
fn a_table_is_asked_about_when_its_commit_can_be_seen() {
    let server = postgres::private(Version::V17, &[]);
    let setup = "CREATE TABLE p (a int, b int, PRIMARY KEY (b, a)) PARTITION BY RANGE (a)";
    let mut walk = Walk::on(server.create_database(), setup, "[public.p]");
    let configure = |sql: &str| {
        walk.db.execute(sql);
        walk.db.execute("SELECT pg_reload_conf()");
    };
    // The commit is in the log, and others do not see it as long as it waits.
    configure("ALTER SYSTEM SET synchronous_standby_names = 'away'");
    let application = walk.db.connect();
    let committed = thread::spawn(move || {
        application.execute(
            "BEGIN; CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 2); COMMIT",
        );
    });
    walk.offshoot.wait_log("waits until the catalog shows what is committed", DEADLINE);
    assert!(!committed.is_finished());
    configure("ALTER SYSTEM RESET synchronous_standby_names");
    committed.join().unwrap();
    walk.expect(&[r#"c p1 {"a":1,"b":2} {"a":1,"b":2}"#]);
    walk.stop();
}
