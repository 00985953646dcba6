//! DDL on tables that events are made of: a run stops before the first transaction that it would tell wrongly, with everything before
//! it delivered; and goes on, with nothing lost, once a person has said how.

use crate::{
    pipe::{DEADLINE, Pipe, ends, now, says, stops},
    support::{
        kafka,
        postgres::{self, Db, Version::V17},
        program::Offshoot,
    },
};

const MAPPING: &str = "aggregates:
  Order: { root: orders, topic: TOPIC }
events:
  Placed: { of: Order, when: created, data: { orderId: id, email: email, total: total } }";

/// A database, its pipeline, and what its topic holds so far.
struct Walk {
    db: Db,
    pipe: Pipe,
    topic: String,
    told: Vec<String>,
}

impl Walk {
    fn new(setup: &str) -> Walk {
        let db = postgres::shared(V17).create_database();
        db.execute(setup);
        let topic = format!("{}.order", db.name);
        let kafka = "topics: { partitions: 1 }".into();
        // `changes` are there too: what stops an event stops its whole transaction.
        let pipe = Pipe { kafka, rest: MAPPING.replace("TOPIC", &topic), ..Pipe::of(&db) };
        Walk { db, pipe, topic, told: Vec::new() }
    }

    fn remap(&mut self, from: &str, to: &str) {
        assert!(self.pipe.rest.contains(from), "{}", self.pipe.rest);
        self.pipe.rest = self.pipe.rest.replace(from, to);
    }

    fn records(&self) -> Vec<String> {
        let text = |bytes: Option<&[u8]>| bytes.map_or("-".into(), |bytes| String::from_utf8(bytes.to_vec()).unwrap());
        if kafka::shared().partitions(&self.topic) == 0 {
            return Vec::new();
        }
        let records = kafka::shared().read_all(&self.topic);
        records
            .iter()
            .map(|record| format!("{} {}", text(record.key.as_deref()), text(record.value.as_deref())))
            .collect()
    }

    /// These are told, after all that was told before, each once.
    #[track_caller]
    fn tells(&mut self, offshoot: &mut Offshoot, new: &[&str]) {
        self.told.extend(new.iter().map(|line| (*line).to_owned()));
        let told = &self.told;
        offshoot.wait("the events", DEADLINE, |_| (self.records().len() >= told.len()).then_some(()));
        assert_eq!(self.records(), *told);
    }

    /// The run ends by itself before what was committed after `before`, with all that was committed until then delivered and confirmed.
    #[track_caller]
    fn stops_at(&mut self, offshoot: Offshoot, before: &str, new: &[&str], words: &[&str]) {
        let said = ends(offshoot, 7, &[words, &["offshoot skip --lsn "]].concat());
        assert!(!said.contains("vAlUe"), "{said}");
        self.told.extend(new.iter().map(|line| (*line).to_owned()));
        assert_eq!(self.records(), self.told);
        let slot = self.pipe.slot();
        let confirmed =
            format!("SELECT confirmed_flush_lsn >= '{before}' FROM pg_replication_slots WHERE slot_name = '{slot}'");
        assert_eq!(self.db.text(&confirmed), "t", "all before it is confirmed");
    }

    /// Goes on until these are told, and stops in good order.
    #[track_caller]
    fn goes_on(&mut self, new: &[&str]) {
        let mut offshoot = self.pipe.ready();
        self.tells(&mut offshoot, new);
        stops(offshoot);
    }

    /// The end of what is committed now.
    fn end(&self) -> String {
        self.db.text("SELECT pg_current_wal_flush_lsn()")
    }
}

#[test]
fn what_events_do_not_need_may_change_while_they_run() {
    let mut walk = Walk::new(
        "CREATE TABLE orders (id int PRIMARY KEY, email text, total numeric(10,2), spare text, wide varchar(9))",
    );
    let mut offshoot = walk.pipe.ready();
    for sql in [
        "INSERT INTO orders VALUES (1, 'a', 1.5, 's')",
        "ALTER TABLE orders ADD COLUMN extra int NOT NULL DEFAULT 3",
        "INSERT INTO orders VALUES (2, 'b', 2)",
        "ALTER TABLE orders ALTER COLUMN spare TYPE int USING 1",
        "INSERT INTO orders VALUES (3, NULL, 3)",
        "ALTER TABLE orders DROP COLUMN spare",
        "INSERT INTO orders VALUES (4, 'd', NULL)",
        "ALTER TABLE orders RENAME COLUMN wide TO narrow",
        // What leaves is the same, and so is what it is compared with.
        "ALTER TABLE orders ALTER COLUMN id TYPE bigint, ALTER COLUMN email TYPE varchar(20), ALTER COLUMN total TYPE numeric(14,2)",
        "INSERT INTO orders VALUES (9000000000, 'e', 123456789012.5)",
        "ALTER TABLE orders ALTER COLUMN email SET NOT NULL, ADD UNIQUE (email), ALTER COLUMN total SET DEFAULT 0",
    ] {
        // A NOT NULL that finds a NULL is refused.
        let _ = walk.db.connect().try_execute(sql);
    }
    walk.tells(
        &mut offshoot,
        &[
            r#"1 {"orderId":1,"email":"a","total":"1.50"}"#,
            r#"2 {"orderId":2,"email":"b","total":"2.00"}"#,
            r#"3 {"orderId":3,"email":null,"total":"3.00"}"#,
            r#"4 {"orderId":4,"email":"d","total":null}"#,
            r#"9000000000 {"orderId":9000000000,"email":"e","total":"123456789012.50"}"#,
        ],
    );
    assert_eq!(
        offshoot.log().iter().filter(|line| line.contains("made the slot")).count(),
        1,
        "it never started again"
    );
    stops(offshoot);
}

#[test]
fn a_mapped_column_that_changes_stops_the_run_and_a_new_mapping_goes_on() {
    let mut walk =
        Walk::new("CREATE TABLE orders (id int PRIMARY KEY, code int NOT NULL, email text, total numeric(10,2))");
    // Renamed: the config says the new name.
    let offshoot = walk.pipe.ready();
    walk.db.execute("INSERT INTO orders VALUES (1, 11, 'vAlUe-1', 1)");
    let before = walk.end();
    walk.db.execute("ALTER TABLE orders RENAME COLUMN email TO mail");
    walk.db.execute("INSERT INTO orders VALUES (2, 12, 'vAlUe-2', 2)");
    walk.stops_at(
        offshoot,
        &before,
        &[r#"1 {"orderId":1,"email":"vAlUe-1","total":"1.00"}"#],
        &["read a row of public.orders at ", "it has no column email, which Placed.email needs", "dropped or renamed"],
    );
    walk.pipe.checks(2, &["`public.orders` has no column `email`", "did you mean `mail`?"]);
    walk.remap("email: email", "email: mail");
    walk.goes_on(&[r#"2 {"orderId":2,"email":"vAlUe-2","total":"2.00"}"#]);

    // Dropped: the config does without.
    let offshoot = walk.pipe.ready();
    walk.db.execute("INSERT INTO orders VALUES (3, 13, 'vAlUe-3', 3)");
    let before = walk.end();
    walk.db.execute("BEGIN; INSERT INTO orders VALUES (4, 14, 'vAlUe-4', 4); ALTER TABLE orders DROP COLUMN mail; INSERT INTO orders VALUES (5, 15, 5); COMMIT");
    walk.stops_at(
        offshoot,
        &before,
        &[r#"3 {"orderId":3,"email":"vAlUe-3","total":"3.00"}"#],
        &["it has no column mail, which Placed.email needs"],
    );
    walk.remap(" email: mail,", "");
    walk.goes_on(&[r#"4 {"orderId":4,"total":"4.00"}"#, r#"5 {"orderId":5,"total":"5.00"}"#]);

    // Of another type: the new form is what is wanted.
    let offshoot = walk.pipe.ready();
    walk.db.execute("INSERT INTO orders VALUES (6, 16, 6)");
    let before = walk.end();
    walk.db.execute("ALTER TABLE orders ALTER COLUMN total TYPE numeric(12,4)");
    walk.db.execute("INSERT INTO orders VALUES (7, 17, 7)");
    walk.stops_at(
        offshoot,
        &before,
        &[r#"6 {"orderId":6,"total":"6.00"}"#],
        &["column total, which Placed.total needs, is of type numeric(12,4) and was numeric(10,2) at the start of this run"],
    );
    walk.pipe.checks(0, &["Placed.v1"]);
    walk.goes_on(&[r#"7 {"orderId":7,"total":"7.0000"}"#]);

    // Another key.
    for identity in ["DEFAULT", "FULL"] {
        let (key, other) = if identity == "DEFAULT" { ("id", "code") } else { ("code", "id") };
        walk.db.execute(&format!("ALTER TABLE orders REPLICA IDENTITY {identity}"));
        let mut offshoot = walk.pipe.ready();
        let n = if identity == "DEFAULT" { 8 } else { 10 };
        let line = |n: i32, key: &str| {
            format!(r#"{} {{"orderId":{n},"total":"{n}.0000"}}"#, if key == "id" { n } else { n + 10 })
        };
        walk.db.execute(&format!("INSERT INTO orders VALUES ({n}, {}, {n})", n + 10));
        // Under FULL the key is asked of the catalog, and an answer that comes after the ALTER would have stopped it here already.
        walk.tells(&mut offshoot, &[&line(n, key)]);
        let before = walk.end();
        walk.db.execute(&format!("ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD PRIMARY KEY ({other})"));
        walk.db.execute(&format!("INSERT INTO orders VALUES ({}, {}, {})", n + 1, n + 11, n + 1));
        walk.stops_at(
            offshoot,
            &before,
            &[],
            &[&format!("its primary key is not ({key}), which named its rows at the start of this run")],
        );
        walk.goes_on(&[&line(n + 1, other)]);
    }
}

#[test]
fn a_column_that_was_renamed_while_it_was_away_goes_back_until_it_has_caught_up() {
    let mut walk = Walk::new("CREATE TABLE orders (id int PRIMARY KEY, email text, total numeric(10,2))");
    walk.pipe.prepare();
    walk.db.execute("INSERT INTO orders VALUES (1, 'a', 1)");
    let first = now(&walk.db);
    walk.db.execute("ALTER TABLE orders RENAME COLUMN email TO mail");
    walk.db.execute("INSERT INTO orders VALUES (2, 'b', 2)");
    // The catalog is that of now, and the first row is not.
    walk.pipe.ends(2, &["offshoot.yaml:", "`public.orders` has no column `email`; did you mean `mail`?"]);
    let old = walk.pipe.clone();
    walk.remap("email: email", "email: mail");
    let told = ["it has no column mail, which Placed.email needs", "younger than the row"];
    let offshoot = walk.pipe.run();
    walk.stops_at(offshoot, "0/0", &[], &told);
    // What the table had then, until the rows of then are published.
    walk.db.execute("ALTER TABLE orders RENAME COLUMN mail TO email");
    let new = std::mem::replace(&mut walk.pipe, old);
    let offshoot = walk.pipe.run();
    walk.stops_at(
        offshoot,
        &first,
        &[r#"1 {"orderId":1,"email":"a","total":"1.00"}"#],
        &["it has no column email, which Placed.email needs"],
    );
    walk.db.execute("ALTER TABLE orders RENAME COLUMN email TO mail");
    walk.pipe = new;
    walk.db.execute("INSERT INTO orders VALUES (3, 'c', 3)");
    walk.goes_on(&[r#"2 {"orderId":2,"email":"b","total":"2.00"}"#, r#"3 {"orderId":3,"email":"c","total":"3.00"}"#]);
    says(&walk.pipe.checks(0, &[]), &["Placed.v1"]);
}
