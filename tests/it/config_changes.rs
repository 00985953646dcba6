//! Another config, another catalog, another publication: what joins, what leaves, and what must not go unnoticed.

use std::{thread, time::Duration};

use crate::{
    pipe::{DEADLINE, Pipe, says, stops},
    support::{
        kafka,
        postgres::{
            self, Db,
            Version::{self, V14, V15, V17, V18},
        },
        program::Offshoot,
        wait,
    },
};

/// A look rests a hundred times as long as it took: on a busy machine the next one may be a minute away.
const LOOK_MAX: Duration = Duration::from_secs(150);

fn database(version: Version) -> Db {
    let db = postgres::shared(version).create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY, note text, photo text); CREATE TABLE u (id int PRIMARY KEY)");
    db
}

/// Waits until what is published has been looked at: what goes missing later is missed.
#[track_caller]
fn looked(offshoot: &mut Offshoot) {
    offshoot.wait("a look", LOOK_MAX, |o| o.metric("offshoot_server_lsn").filter(|lsn| *lsn > 0.0));
}

#[track_caller]
fn arrives(offshoot: &mut Offshoot, pipe: &Pipe, table: &str, ids: &[i64]) {
    offshoot.wait("rows to arrive", DEADLINE, |_| (pipe.ids(kafka::shared(), table) == ids).then_some(()));
}

fn joined(db: &Db, publication: &str) -> String {
    let tables = "string_agg(tablename, ' ' ORDER BY tablename)";
    db.text(&format!("SELECT {tables} FROM pg_publication_tables WHERE pubname = '{publication}'"))
}

/// These wait for one look after another: together they take no longer than the longest.
#[test]
fn while_it_streams() {
    at_once(&[
        what_is_not_published_any_more_ends_with_5_and_says_since_when,
        what_the_application_drops_or_renames_is_said_and_the_rest_goes_on,
        a_table_that_a_glob_has_come_to_match_joins_without_a_gap,
        a_table_that_we_may_not_add_is_told_as_sql_once_and_joins_when_it_has_run,
        a_column_that_is_omitted_never_leaves_and_the_application_goes_on,
    ]);
}

/// Runs cases side by side; the first that fails fails the test, and the panic before says where.
pub(crate) fn at_once(cases: &[fn()]) {
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(case);
        }
    });
}

/// What somebody does to our publication while it is streamed, and what we say before we end with 5.
const TAKEN: &[(Version, &str, &[&str])] = &[
    (V17, "ALTER PUBLICATION {p} DROP TABLE t", &["public.t was taken out of publication {p}", "ADD TABLE ONLY"]),
    (V18, "ALTER PUBLICATION {p} DROP TABLE t", &["public.t was taken out of publication {p}", "changes.tables"]),
    (V14, "ALTER PUBLICATION {p} DROP TABLE t", &["public.t was taken out of publication {p}"]),
    (V17, "ALTER PUBLICATION {p} DROP TABLE t; ALTER PUBLICATION {p} ADD TABLE t", &["and put into it again"]),
    (
        V17,
        "ALTER PUBLICATION {p} SET (publish = 'insert, update')",
        &[
            "publication {p} does not publish delete, truncate any more",
            "SET (publish = 'insert, update, delete, truncate')",
        ],
    ),
    (
        V17,
        "ALTER PUBLICATION {p} SET (publish_via_partition_root = true)",
        &["publish_via_partition_root of publication {p}"],
    ),
    (V17, "ALTER PUBLICATION {p} SET TABLE t WHERE (id > 5), u", &["again, with a row filter"]),
    (V17, "ALTER PUBLICATION {p} SET TABLE t (id, note), u", &["again, with only columns id, note"]),
    (
        V17,
        "ALTER PUBLICATION {p} SET TABLE t (id, note), u; ALTER TABLE t DROP note CASCADE",
        &["public.t was taken out"],
    ),
    (
        V18,
        "DROP PUBLICATION {p}; CREATE PUBLICATION {p} FOR TABLE t, u",
        &["publication {p} was dropped and made again"],
    ),
    (V18, "DROP PUBLICATION {p}_inserts", &["use publication {p}_inserts: it is not there"]),
];

fn what_is_not_published_any_more_ends_with_5_and_says_since_when() {
    thread::scope(|scope| {
        for (version, sql, words) in TAKEN {
            scope.spawn(move || {
                let db = database(*version);
                let pipe = Pipe::of(&db);
                let mut offshoot = pipe.ready();
                looked(&mut offshoot);
                db.execute("INSERT INTO t VALUES (1)");
                arrives(&mut offshoot, &pipe, "t", &[1]);
                let of = |text: &str| text.replace("{p}", &pipe.slot());
                db.execute(&of(sql));
                let status = offshoot.exit(LOOK_MAX);
                // What it said last may still be on its way through the pipe.
                let _ = wait::attempt(DEADLINE, || offshoot.log().iter().any(|line| line.contains("stopped")));
                let log = offshoot.log().join("\n");
                assert_eq!(status.code(), Some(5), "{sql}: {log}");
                let error = log.lines().rfind(|line| line.contains("ERROR")).unwrap_or_else(|| panic!("{log}"));
                println!("SEEN {error}");
                words.iter().for_each(|word| says(error, &[&of(word)]));
                if !sql.starts_with("DROP") {
                    says(error, &["when all was there", "was committed after", "start again"]);
                    if error.contains("ADD TABLE ONLY") {
                        // A restart is no remedy: the gap is for a person to see, who runs what the message says.
                        pipe.ends(
                            5,
                            &[&of("public.t was taken out of publication {p}"), "the last look of an earlier run"],
                        );
                        pipe.checks(3, &["was taken out of publication", "ADD TABLE ONLY"]);
                        db.execute(&of("ALTER PUBLICATION {p} ADD TABLE ONLY t"));
                    }
                    // Else the next start brings it to what the config asks for.
                    let mut offshoot = pipe.ready();
                    db.execute("INSERT INTO t VALUES (2)");
                    arrives(&mut offshoot, &pipe, "t", &[1, 2]);
                    stops(offshoot);
                }
            });
        }
    });
}

fn what_the_application_drops_or_renames_is_said_and_the_rest_goes_on() {
    let db = database(V17);
    db.execute("CREATE SCHEMA old");
    let pipe = Pipe { tables: "public.t\", \"public.u\", \"public.w*".into(), ..Pipe::of(&db) };
    db.execute("CREATE TABLE w (id int PRIMARY KEY); CREATE TABLE w2 (id int PRIMARY KEY)");
    let mut offshoot = pipe.ready();
    looked(&mut offshoot);
    db.execute("INSERT INTO u VALUES (1); DROP TABLE u; INSERT INTO w VALUES (1); ALTER TABLE w RENAME TO v; INSERT INTO t VALUES (1)");
    offshoot.wait_log("public.u was dropped; what was committed before is told", LOOK_MAX);
    offshoot.wait_log("public.w is called public.v now, which the config does not name", LOOK_MAX);
    offshoot.wait_log("the next start would fail to find a table for `public.u`", LOOK_MAX);
    arrives(&mut offshoot, &pipe, "u", &[1]);
    // A table that takes the name of another joins, though the config does not fit any more.
    db.execute("CREATE TABLE w (id int PRIMARY KEY)");
    offshoot.wait_log("table=public.w", LOOK_MAX);
    db.execute("INSERT INTO w VALUES (2); INSERT INTO t VALUES (2)");
    arrives(&mut offshoot, &pipe, "w", &[1, 2]);
    arrives(&mut offshoot, &pipe, "t", &[1, 2]);
    stops(offshoot);
}

/// A transaction that was open when the table joined: what it did before is not told, and from where on all is told is said.
fn a_table_that_a_glob_has_come_to_match_joins_without_a_gap() {
    // Its own server: everybody who makes a slot waits for a transaction that is open.
    let server = postgres::private(V17, &[]);
    let db = server.create_database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY)");
    let pipe = Pipe::of(&db);
    let mut offshoot = pipe.ready();
    looked(&mut offshoot);
    db.execute("CREATE TABLE late (id int PRIMARY KEY)");
    let open = db.connect();
    open.execute("BEGIN; INSERT INTO late VALUES (1)");
    offshoot.wait_log("table=public.late", LOOK_MAX);
    db.execute("INSERT INTO late VALUES (3)");
    arrives(&mut offshoot, &pipe, "late", &[3]);
    let whole = |offshoot: &Offshoot| offshoot.log().into_iter().find(|line| line.contains("told whole from here on"));
    assert_eq!(whole(&offshoot), None, "a transaction is open");
    open.execute("COMMIT");
    let line = offshoot.wait("the log to say so", LOOK_MAX, whole);
    says(&line, &["tables=public.late", "complete_from=0/"]);
    db.execute("INSERT INTO late VALUES (4)");
    // Whether the first row is told depends on what the server has cached by then; these are, whatever it has.
    offshoot.wait("rows to arrive", DEADLINE, |_| {
        let ids = pipe.ids(kafka::shared(), "late");
        (ids.contains(&3) && ids.contains(&4)).then_some(())
    });
    let from = line.split("complete_from=").nth(1).unwrap().split_whitespace().next().unwrap();
    assert_eq!(db.text(&format!("SELECT pg_current_wal_lsn() > '{from}'")), "t");
    stops(offshoot);
    // The same at a start.
    db.execute("CREATE TABLE later (id int PRIMARY KEY)");
    open.execute("BEGIN; INSERT INTO later VALUES (1)");
    let mut offshoot = pipe.ready();
    offshoot.wait_log("table=public.later", DEADLINE);
    open.execute("COMMIT");
    says(&offshoot.wait_log("told whole from here on", LOOK_MAX), &["public.later"]);
    let joins = offshoot.log().iter().filter(|line| line.contains("table=public.later")).count();
    assert_eq!(joins, 1, "{}", offshoot.log().join("\n"));
    stops(offshoot);
}

fn a_table_that_we_may_not_add_is_told_as_sql_once_and_joins_when_it_has_run() {
    let db = database(V17);
    let role = format!("role_{}", db.name);
    db.execute(&format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'secret'"));
    let pipe = Pipe { url: db.url_as(&role, "secret"), ..Pipe::of(&db) };
    let publication = pipe.slot();
    db.execute(&format!(
        "CREATE PUBLICATION {publication} FOR TABLE t, u; CREATE PUBLICATION {publication}_inserts WITH (publish = 'insert')"
    ));
    let mut offshoot = pipe.ready();
    looked(&mut offshoot);
    db.execute("CREATE TABLE late (id int PRIMARY KEY)");
    let sql = format!("ALTER PUBLICATION \"{publication}\" ADD TABLE ONLY \"public\".\"late\"");
    offshoot.wait_log(&sql, LOOK_MAX);
    db.execute("INSERT INTO t VALUES (1)");
    arrives(&mut offshoot, &pipe, "t", &[1]);
    db.execute(&sql);
    offshoot.wait_log("told whole from here on", LOOK_MAX);
    db.execute("INSERT INTO late VALUES (1)");
    arrives(&mut offshoot, &pipe, "late", &[1]);
    assert_eq!(offshoot.log().iter().filter(|line| line.contains(&sql)).count(), 1);
    stops(offshoot);
}

#[test]
fn another_config_takes_tables_in_and_out_and_renames_topics_and_pipelines() {
    let db = database(V17);
    let kafka = kafka::shared();
    let one = Pipe { tables: "public.t".into(), ..Pipe::of(&db) };
    one.prepare();
    db.execute("INSERT INTO t VALUES (1); INSERT INTO u VALUES (1)");
    one.arrives("t", &[1]);
    let other = Pipe { tables: "public.u".into(), ..one.clone() };
    let mut offshoot = other.ready();
    assert_eq!(joined(&db, &one.slot()), "u");
    db.execute("INSERT INTO t VALUES (2); INSERT INTO u VALUES (2)");
    arrives(&mut offshoot, &other, "u", &[2]);
    stops(offshoot);
    assert_eq!(one.ids(kafka, "t"), [1], "it was taken out");
    let both = Pipe::of(&db);
    let mut offshoot = both.ready();
    assert_eq!(joined(&db, &one.slot()), "t u");
    db.execute("INSERT INTO t VALUES (3)");
    arrives(&mut offshoot, &both, "t", &[1, 3]);
    stops(offshoot);

    // Another topic: from then on.
    let renamed = Pipe { changes: "topic: \"{name}.new.{table}\"".into(), ..both.clone() };
    let mut offshoot = renamed.ready();
    db.execute("INSERT INTO t VALUES (4)");
    let topic = format!("{}.new.t", db.name);
    offshoot.wait("the new topic", DEADLINE, |_| (kafka.partitions(&topic) > 0).then_some(()));
    offshoot.wait("the row to arrive", DEADLINE, |_| {
        let ids: Vec<_> =
            kafka.read_all(&topic).iter().map(|record| record.value_json()["after"]["id"].clone()).collect();
        (ids == [4]).then_some(())
    });
    stops(offshoot);
    assert_eq!(both.ids(kafka, "t"), [1, 3]);

    // Another name: a new pipeline, and the old one's slot holds the log.
    let new = Pipe { name: format!("{}_v2", db.name), ..both.clone() };
    let old = both.slot();
    new.checks(0, &[&format!("slot {old} is read by nobody"), "pg_drop_replication_slot"]);
    let mut offshoot = new.ready();
    let line = offshoot.wait_log("is read by nobody", DEADLINE);
    says(&line, &["WARN", &old, "of log for it", "`offshoot drop` with its old config"]);
    offshoot.wait_log("a new pipeline", DEADLINE);
    stops(offshoot);
    assert_eq!(new.command(&["drop", "--yes"]).0, 0);
}

fn a_column_that_is_omitted_never_leaves_and_the_application_goes_on() {
    for version in [V15, V17, V18] {
        let db = postgres::shared(version).create_database();
        db.execute(
            "CREATE TABLE t (id int PRIMARY KEY, title text, photo text, twice int GENERATED ALWAYS AS (id * 2) STORED)",
        );
        let pipe = Pipe { source: "omit_columns: [public.t.photo]".into(), ..Pipe::of(&db) };
        pipe.checks(0, &["public.t is published without photo", "DROP COLUMN ... CASCADE", "REPLICA IDENTITY FULL"]);
        let mut offshoot = pipe.ready();
        looked(&mut offshoot);
        db.execute(
            "INSERT INTO t VALUES (1, 'a', 'secret'); UPDATE t SET photo = 'secret2', title = 'b'; DELETE FROM t",
        );
        db.execute("INSERT INTO t VALUES (2, 'a', 'secret')");
        arrives(&mut offshoot, &pipe, "t", &[1, 2]);
        let records = || kafka::shared().read_all(&pipe.topic("t"));
        let text = || records().iter().map(|record| format!("{}\n", record.value_json())).collect::<String>();
        says(&text(), &["\"title\":\"b\"", "\"op\":\"d\""]);
        assert!(!text().contains("secret") && !text().contains("photo"), "{}", text());
        if version != V17 {
            stops(offshoot);
            continue;
        }
        // A column more is told from the next look on.
        db.execute("ALTER TABLE t ADD COLUMN extra text");
        let publication = pipe.slot();
        let columns = |name: &str| {
            db.text(&format!(
                "SELECT array_to_string(attnames, ' ') FROM pg_publication_tables WHERE pubname = '{publication}{name}'"
            ))
        };
        offshoot.wait("the new column", LOOK_MAX, |_| (columns("") == "id title extra").then_some(()));
        db.execute("INSERT INTO t VALUES (3, 'c', 'secret', DEFAULT, 'more')");
        arrives(&mut offshoot, &pipe, "t", &[1, 2, 3]);
        says(&text(), &["\"extra\":\"more\""]);
        // A migration that breaks the list: only inserts, and the application lives.
        db.execute("ALTER TABLE t REPLICA IDENTITY FULL");
        offshoot.wait("the table to move", LOOK_MAX, |_| (columns("_inserts") == "id title extra").then_some(()));
        db.execute("UPDATE t SET title = 'not told'; INSERT INTO t VALUES (4, 'd', 'secret')");
        arrives(&mut offshoot, &pipe, "t", &[1, 2, 3, 4]);
        says(&offshoot.wait_log("only its inserts are told", DEADLINE), &["WARN", "photo"]);
        db.execute("ALTER TABLE t REPLICA IDENTITY DEFAULT");
        offshoot.wait("the table to move back", LOOK_MAX, |_| (columns("") == "id title extra").then_some(()));
        db.execute("UPDATE t SET title = 'told' WHERE id = 4");
        offshoot.wait("an update", DEADLINE, |_| text().contains("\"title\":\"told\"").then_some(()));
        assert!(!text().contains("secret") && !text().contains("photo") && !text().contains("not told"), "{}", text());
        stops(offshoot);
        // Without it, the whole row again.
        let whole = Pipe { source: String::new(), ..pipe.clone() };
        whole.prepare();
        assert_eq!(columns(""), "id title photo extra");
    }
}

#[test]
fn a_column_that_cannot_be_omitted_is_refused_before_anything_is_made() {
    let db = database(V17);
    db.execute(
        "CREATE TABLE f (id int PRIMARY KEY, photo text); ALTER TABLE f REPLICA IDENTITY FULL;
         CREATE TABLE part (id int PRIMARY KEY) PARTITION BY RANGE (id)",
    );
    let ends = |column: &str, words: &[&str]| {
        let pipe = Pipe { source: format!("omit_columns: [{column}]"), ..Pipe::of(&db) };
        pipe.ends(2, words);
        pipe.checks(2, words);
    };
    ends(
        "public.t.id",
        &["leave out id of public.t: it is of the replica identity", "UPDATE and DELETE on it would fail"],
    );
    ends("public.f.photo", &["leave out photo of public.f", "REPLICA IDENTITY FULL"]);
    ends("public.t.foto", &["leave out `public.t.foto` of source.omit_columns", "no such column"]);
    ends("public.x.photo", &["there is no such table"]);
    ends("public.part.id", &["its table is partitioned"]);
    assert_eq!(db.text("SELECT count(*) FROM pg_publication"), "0", "nothing is begun");
    let old = database(V14);
    Pipe { source: "omit_columns: [public.t.photo]".into(), ..Pipe::of(&old) }.ends(2, &["PostgreSQL 15"]);
}
