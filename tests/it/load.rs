//! Rows of tables as they are at one position of the log, read beside the stream, from real servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use offshoot::{
    change::{Content, Old, Op, Row, Value},
    config::Config,
    lsn::Lsn,
    postgres::{
        self as source, Prepared,
        assemble::{Assembler, Kept, Wanted},
        stream::PostgresSource,
        tables::patterns,
    },
    source::{Item, Load, LoadTable, Loaded, Source, SourceError},
    transaction::Spill,
};

use crate::support::{
    postgres::{self, Db, Session, Version},
    wait,
};

/// Nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(60);
/// The pipeline says so often that it lives.
const STATUS: Duration = Duration::from_secs(1);

/// A row by the first column's text: the texts of all columns.
type Rows = BTreeMap<String, Vec<Option<String>>>;
type Stream = PostgresSource<source::Session>;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn config(url: &str, name: &str, rest: &str) -> Config {
    let text =
        format!("name: {name}\nsource: {{ postgres: '{url}' }}\nsink: {{ kafka: {{ brokers: 'b:1' }} }}\n{rest}\n");
    Config::parse(&text, "load.yaml", &|_| None).unwrap()
}

/// Asks the database from a thread of its own: a session of the tests has a runtime, and runtimes do not nest.
fn aside<T: Send>(ask: impl FnOnce() -> T + Send) -> T {
    let asked = std::thread::scope(|scope| scope.spawn(ask).join());
    asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

const ALL: &str = "changes: { tables: ['*.*'] }";

/// Streams from a new slot.
async fn connect(config: &Config) -> (Stream, Prepared) {
    let warned = source::Warned::default();
    let permit: &source::Permit<'_, SourceError> = &|_, _| Box::pin(async { Ok(()) });
    let start = source::Start {
        warned: &warned,
        admissions: &source::Admissions::default(),
        held: &[],
        waiting: &|| {},
        accept: &|_, _| Ok(()),
        permit,
    };
    let (session, prepared) = source::connect(config, &start).await.unwrap();
    let asked = patterns(config, prepared.catalog.as_ref()).unwrap();
    let wanted = Wanted {
        table: Box::new(move |schema, table, above| asked.asked(schema, table, above.unwrap_or_default())),
        message: Box::new(|_| Kept::No),
    };
    let spill = Spill { dir: std::env::temp_dir(), memory_max: 64 << 20, file_max: 1 << 30 };
    (PostgresSource::new(session, Assembler::new(wanted, spill), prepared.confirmed, || 0), prepared)
}

fn table(name: &str, columns: &[&str]) -> LoadTable {
    let (schema, name) = name.split_once('.').unwrap_or(("public", name));
    LoadTable { schema: schema.into(), name: name.into(), columns: columns.iter().map(|c| (*c).into()).collect() }
}

/// Begins a load and gives its position, while the server hears of us as it does from the pipeline. The stream waits.
async fn begin(stream: &mut Stream, tables: &[LoadTable]) -> Result<Lsn, SourceError> {
    stream.load(tables.to_vec());
    stream.pause(true);
    match item(stream).await? {
        Load::From(from) => Ok(from),
        other => panic!("the position comes first: {other:?}"),
    }
}

/// The next rows; at their end the stream goes on.
async fn more(stream: &mut Stream) -> Result<Option<Loaded>, SourceError> {
    match item(stream).await? {
        Load::From(from) => panic!("the position comes once: {from}"),
        Load::Rows(rows) => Ok(Some(rows)),
        Load::Done => {
            stream.pause(false);
            Ok(None)
        }
    }
}

async fn item(stream: &mut Stream) -> Result<Load, SourceError> {
    loop {
        match stream.next()? {
            Some(Item::Load(load)) => return Ok(load),
            Some(other) => panic!("the stream waits: {other:?}"),
            None => {}
        }
        tokio::select! {
            ready = stream.ready() => ready?,
            () = tokio::time::sleep(STATUS) => stream.confirm(Lsn::INVALID).await?,
        }
    }
}

/// All rows that are left of a load, per table.
async fn rows(stream: &mut Stream, tables: &[LoadTable]) -> Result<Vec<Rows>, SourceError> {
    let mut found = vec![Rows::new(); tables.len()];
    loop {
        let Some(batch) = more(stream).await? else { return Ok(found) };
        let mut from = 0;
        for end in batch.ends {
            let columns = tables[batch.table].columns.len() as u16;
            let row = texts(Row { bytes: &batch.bytes[from..end], columns });
            let key = row[0].clone().unwrap();
            assert!(found[batch.table].insert(key.clone(), row).is_none(), "{key} came twice");
            from = end;
        }
        assert_eq!(from, batch.bytes.len());
    }
}

fn texts(row: Row<'_>) -> Vec<Option<String>> {
    let text = |value| match value {
        Value::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
        Value::Null => None,
        Value::Unchanged => Some("(unchanged)".into()),
    };
    row.values().map(text).collect()
}

/// Applies what the stream tells to an empty table, until this row is there: the table then, and as it was at each of these
/// positions.
async fn apply<const N: usize>(stream: &mut Stream, points: [Lsn; N], end: &str) -> (Rows, [Rows; N]) {
    let (mut rows, mut seen) = (Rows::new(), [const { None }; N]);
    while !rows.contains_key(end) {
        tokio::time::timeout(DEADLINE, stream.ready()).await.expect("the stream goes on").unwrap();
        while let Some(item) = stream.next().unwrap() {
            let Item::Transaction(mut transaction) = item else { continue };
            for (point, seen) in points.iter().zip(&mut seen) {
                if transaction.commit.lsn >= *point && seen.is_none() {
                    *seen = Some(rows.clone());
                }
            }
            while let Some(content) = transaction.next_content().unwrap() {
                let Content::Row(change) = content else { continue };
                let key = |row: Row<'_>| texts(row)[0].clone().unwrap();
                match change.op {
                    Op::Insert { new } => {
                        assert!(rows.insert(key(new), texts(new)).is_none(), "{} was there", key(new))
                    }
                    Op::Update { old, new } => {
                        let was = match old {
                            Some(Old::Identity(old) | Old::Full(old)) => key(old),
                            None => key(new),
                        };
                        assert!(rows.remove(&was).is_some(), "{was} was not there");
                        rows.insert(key(new), texts(new));
                    }
                    Op::Delete { old: Old::Identity(old) | Old::Full(old) } => {
                        assert!(rows.remove(&key(old)).is_some(), "{} was not there", key(old));
                    }
                    Op::Truncate => rows.clear(),
                }
            }
            stream.recycle(transaction);
        }
    }
    (rows, seen.map(Option::unwrap))
}

/// The table as it is now.
fn now(db: &Session, sql: &str) -> Rows {
    db.rows(sql).into_iter().map(|row| (row[0].clone().unwrap(), row)).collect()
}

fn told(error: SourceError) -> String {
    let (kind, error) = match &error {
        SourceError::Passing(error) => ("passing", error),
        SourceError::Refused(error) => ("refused", error),
        other => panic!("{other}"),
    };
    format!("{kind}: {error}")
}

const TYPES: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'it''s ok');
    CREATE DOMAIN price AS numeric(8,2) CHECK (VALUE >= 0);
    CREATE TYPE pair AS (a int, b text);
    CREATE TABLE types (id int PRIMARY KEY, bool bool, i2 int2, i8 int8, f4 float4, f8 float8, num numeric, price price,
        text text, varchar varchar(40), bpchar char(5), bytes bytea, date date, time time, timetz timetz, ts timestamp,
        tstz timestamptz, span interval, uuid uuid, json json, jsonb jsonb, money money, ints int[], texts text[],
        mood mood, moods mood[], pair pair, inet inet, cidr cidr, mac macaddr, bit bit(3), varbit varbit, point point,
        box box, words tsvector, range int4range, spans tstzrange, class regclass, oid oid, chr "char", lsn pg_lsn,
        dropped text, "Odd ""name"" \t" text);
    ALTER TABLE types DROP COLUMN dropped;
    ALTER TABLE types ADD COLUMN doubled int8 GENERATED ALWAYS AS (i2 * 2) STORED;
    ALTER TABLE types ALTER text SET STORAGE EXTERNAL;
"#;

/// Settings that make other texts of the same values.
const HOSTILE: [&str; 7] = [
    "DateStyle = 'SQL, DMY'",
    "IntervalStyle = 'iso_8601'",
    "extra_float_digits = -3",
    "bytea_output = 'escape'",
    "TimeZone = 'Asia/Tokyo'",
    "idle_in_transaction_session_timeout = '1s'",
    "statement_timeout = '3s'",
];

const VALUES: &str = r#"
    INSERT INTO types VALUES
    (1, true, -32768, 9223372036854775807, 0.1, 0.1, 12345.678900, 1.5, E'tab\t nl\n cr\r bs\b ff\f vt\v \\ \\N \\. ä 🎫 "q"', '', 'ab',
     '\x00ff5c0a', '0044-03-15 BC', '01:02:03.4', '01:02:03+05:30', '2024-02-29 12:34:56.789', '2024-07-01 00:00:00+02',
     '1 year 2 mons -3 days 04:05:06.7', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', E'{"a":  "\\n",\n "b":1}', '{"b":1,"a":[null]}',
     1234.5, '{1,NULL,3}', ARRAY['a,b', NULL, '', 'NULL', E'q"\\'], 'it''s ok', '{sad}', ROW(1, E'x\t"y'), '10.0.0.1/8',
     '10.0.0.0/8', '08:00:2b:01:02:03', '101', '10', '(1.1,-2e-10)', '(1,1),(0,0)', 'a fat:2 cat', '[1,5)',
     '[2024-01-01, 2024-07-01)', 'types', 42, 'x', '16/B374D848', E'o\\N');
    INSERT INTO types VALUES (2, false, 0, 0, 'NaN', '-Infinity', 'NaN', 0, repeat(E'long \t', 200000), E'\\N', '', '', 'infinity', '24:00:00', '00:00:00-12', '-infinity',
     'infinity', '-00:00:01', '00000000-0000-0000-0000-000000000000', '[]', '""', -0.01, '{}', '{}', 'sad', '{}', ROW(NULL, NULL),
     '::1', '::/0', 'ff:ff:ff:ff:ff:ff', '000', '', '(0,0)', '(0,0),(0,0)', '', 'empty', '(,)', 'pg_class', 0, '', '0/0', '');
    INSERT INTO types VALUES (3)
"#;

fn texts_are_the_streams(version: Version) {
    let db = postgres::shared(version).create_database();
    HOSTILE.iter().for_each(|setting| db.execute(&format!("ALTER DATABASE {} SET {setting}", db.name)));
    db.execute(TYPES);
    let columns = db.text(
        "SELECT string_agg(attname, '|' ORDER BY attnum) FROM pg_attribute
         WHERE attrelid = 'types'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
    );
    let tables = [table("types", &columns.split('|').collect::<Vec<_>>())];
    runtime().block_on(async {
        let (mut stream, _) = connect(&config(&db.url, "texts", ALL)).await;
        aside(|| db.execute(VALUES));
        let point = begin(&mut stream, &tables).await.unwrap();
        let mut loaded = rows(&mut stream, &tables).await.unwrap();
        aside(|| db.execute("INSERT INTO types (id) VALUES (9)"));
        let (_, [before]) = apply(&mut stream, [point], "9").await;
        let loaded = loaded.remove(0);
        assert_eq!(loaded.len(), 3);
        for (key, row) in &before {
            let columns = tables[0].columns.iter().zip(row).zip(&loaded[key]);
            for ((column, stream), load) in columns {
                assert_eq!(load, stream, "{column} of row {key}");
            }
        }
        assert_eq!(before, loaded);
        stream.close().await;
    });
}

#[test]
fn texts_are_those_of_the_stream_on_14() {
    texts_are_the_streams(Version::V14);
}

#[test]
fn texts_are_those_of_the_stream_on_18() {
    texts_are_the_streams(Version::V18);
}

/// Commits without end: rows that come, change, get another key and go.
fn write(db: &Session, writer: u64, stop: &AtomicBool) -> u64 {
    let mut random = fastrand::Rng::with_seed(writer);
    let mut commits = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut any = || random.u64(0..400) * 4 + writer;
        let (a, b, c) = (any(), any(), any());
        let moved = a + 1_000_000;
        db.execute(&format!(
            "BEGIN; INSERT INTO busy VALUES ({a}, 'new {commits}') ON CONFLICT (id) DO UPDATE SET said = 'again {commits}';
             UPDATE busy SET said = repeat('x', {c}) WHERE id = {b}; DELETE FROM busy WHERE id = {c};
             DELETE FROM busy WHERE id = {moved}; UPDATE busy SET id = {moved} WHERE id = {b} AND {b} = {a}; COMMIT"
        ));
        if commits % 5 == 0 {
            db.execute(&format!(
                "BEGIN; DELETE FROM busy WHERE id = {moved}; UPDATE busy SET id = {moved} WHERE id = {a}; COMMIT"
            ));
        }
        commits += 1;
    }
    commits
}

#[test]
fn the_position_is_exact_while_others_commit() {
    let db = postgres::shared(Version::V17).create_database();
    db.execute("CREATE TABLE busy (id bigint PRIMARY KEY, said text)");
    let tables = [table("busy", &["id", "said"])];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        runtime().block_on(async {
            let (mut stream, _) = connect(&config(&db.url, "exact", ALL)).await;
            aside(|| db.execute("INSERT INTO busy SELECT 10000000 + n, repeat('y', 200) FROM generate_series(1, 20000) n"));
            let writers: Vec<_> = (0..3)
                .map(|writer| {
                    let (db, stop) = (aside(|| db.connect()), &stop);
                    scope.spawn(move || write(&db, writer, stop))
                })
                .collect();
            let open = aside(|| db.connect());
            aside(|| open.execute("BEGIN; INSERT INTO busy VALUES (5000001, 'open when the load began')"));
            let watcher = aside(|| db.connect());
            let waits = "SELECT count(*) FROM pg_stat_replication r JOIN pg_stat_activity a USING (pid) WHERE a.wait_event_type = 'Lock'
                         AND a.datname = current_database()";
            let ender = scope.spawn(move || {
                wait::until(DEADLINE, "the slot to wait for what runs", || watcher.text(waits) == "1");
                aside(|| open.execute("INSERT INTO busy VALUES (5000002, 'still open'); COMMIT"));
            });
            let first = begin(&mut stream, &tables).await.unwrap();
            ender.join().unwrap();
            let loaded_first = rows(&mut stream, &tables).await.unwrap().remove(0);
            // Once more, with nothing in the way.
            let second = begin(&mut stream, &tables).await.unwrap();
            let loaded_second = rows(&mut stream, &tables).await.unwrap().remove(0);
            stop.store(true, Ordering::Relaxed);
            let commits: u64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
            aside(|| db.execute("INSERT INTO busy VALUES (9999999, 'the end')"));
            let (whole, [at_first, at_second]) = apply(&mut stream, [first, second], "9999999").await;
            assert!(loaded_first == at_first, "rows at {first} are not what the stream tells up to there");
            assert!(loaded_second == at_second, "rows at {second} are not what the stream tells up to there");
            assert_eq!(whole, aside(|| now(&db, "SELECT id, said FROM busy")));
            assert!(["5000001", "5000002"].iter().all(|id| at_first.contains_key(*id)), "what was open is waited for");
            assert!(first < second && commits > 100 && at_first != at_second, "{first} {second} {commits}");
            stream.close().await;
        });
    });
}

fn partitions_are_read_and_heirs_are_not(version: Version) {
    let db = postgres::shared(version).create_database();
    db.execute(
        "CREATE SCHEMA \"Parts\";
         CREATE TABLE log (id int, day date, said text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
         CREATE TABLE \"Parts\".\"log 1\" PARTITION OF log FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
         CREATE TABLE log_2 (said text, gone int, day date NOT NULL, id int NOT NULL);
         ALTER TABLE log_2 DROP COLUMN gone, ADD PRIMARY KEY (id, day);
         ALTER TABLE log ATTACH PARTITION log_2 FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
         CREATE TABLE log_3 PARTITION OF log DEFAULT PARTITION BY RANGE (id);
         CREATE TABLE log_3a PARTITION OF log_3 FOR VALUES FROM (0) TO (100000);
         CREATE TABLE log_3b PARTITION OF log_3 DEFAULT;
         CREATE TABLE parent (id int PRIMARY KEY, said text);
         CREATE TABLE heir () INHERITS (parent);
         CREATE TABLE empty (id int PRIMARY KEY);
         INSERT INTO log SELECT n, '2024-01-01'::date + n % 100, 'row ' || n FROM generate_series(-50, 500) n;
         INSERT INTO parent VALUES (1, 'mine');
         INSERT INTO heir VALUES (2, 'an heir''s')",
    );
    let tables = [table("log", &["id", "day", "said"]), table("parent", &["id", "said"]), table("empty", &["id"])];
    runtime().block_on(async {
        let (mut stream, _) = connect(&config(&db.url, "parts", ALL)).await;
        begin(&mut stream, &tables).await.unwrap();
        let loaded = rows(&mut stream, &tables).await.unwrap();
        assert_eq!(loaded[0], aside(|| now(&db, "SELECT id, day, said FROM log")));
        assert_eq!(loaded[0].len(), 551);
        assert_eq!(loaded[1], aside(|| now(&db, "SELECT id, said FROM ONLY parent")));
        assert_eq!((loaded[1].len(), loaded[2].len()), (1, 0));
        // Nothing to load is a position all the same.
        assert!(begin(&mut stream, &[]).await.unwrap() > Lsn::INVALID);
        assert_eq!(more(&mut stream).await.unwrap(), None);
        stream.close().await;
    });
    assert_eq!(
        db.text("SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND temporary"),
        "0"
    );
}

#[test]
fn partitions_are_read_and_heirs_are_not_on_14() {
    partitions_are_read_and_heirs_are_not(Version::V14);
}

#[test]
fn partitions_are_read_and_heirs_are_not_on_18() {
    partitions_are_read_and_heirs_are_not(Version::V18);
}

/// So many rows that two ranges are full and the pipe between is, too.
const MANY: u64 = 400_000;

fn many(db: &Db, rows: u64) {
    db.execute(&format!(
        "CREATE TABLE many (id bigint PRIMARY KEY, said text, price numeric(8,2), at timestamptz DEFAULT now());
         INSERT INTO many SELECT n, 'row ' || md5(n::text) || repeat('.', 80), n % 1000 FROM generate_series(1, {rows}) n"
    ));
}

/// Waits until a load has read as much as it may without being asked.
fn stalled(db: &Session) {
    let locks = "SELECT count(*) FROM pg_locks WHERE relation = 'many'::regclass AND pid <> pg_backend_pid()";
    wait::until(DEADLINE, "the table to be let go", || db.text(locks) == "0");
}

#[test]
fn whoever_takes_no_rows_holds_no_lock() {
    let db = postgres::shared(Version::V17).create_database();
    many(&db, MANY);
    let tables = [table("many", &["id", "said"])];
    runtime().block_on(async {
        let (mut stream, _) = connect(&config(&db.url, "stall", ALL)).await;
        begin(&mut stream, &tables).await.unwrap();
        let first = more(&mut stream).await.unwrap().unwrap();
        assert!(first.bytes.len() < 256 << 10, "{}", first.bytes.len());
        let waited = tokio::task::spawn_blocking({
            let (db, meanwhile) = (aside(|| db.connect()), aside(|| db.connect()));
            move || {
                stalled(&db);
                for sql in ["ALTER TABLE many ADD COLUMN more int", "DELETE FROM many WHERE id % 3 = 0", "VACUUM many"]
                {
                    meanwhile.execute(sql);
                }
            }
        });
        waited.await.unwrap();
        stream.confirm(Lsn::INVALID).await.unwrap();
        let rest = rows(&mut stream, &tables).await.unwrap().remove(0);
        assert_eq!(first.ends.len() + rest.len(), MANY as usize, "as they were, each once");
        stream.close().await;
    });
}

#[test]
fn a_table_that_gets_another_file_is_loaded_again() {
    let db = postgres::shared(Version::V14).create_database();
    many(&db, MANY);
    let tables = [table("many", &["id", "said"])];
    for change in ["VACUUM FULL many", "TRUNCATE many", "DROP TABLE many"] {
        runtime().block_on(async {
            let (mut stream, _) = connect(&config(&db.url, "rewritten", ALL)).await;
            begin(&mut stream, &tables).await.unwrap();
            more(&mut stream).await.unwrap().unwrap();
            let session = aside(|| db.connect());
            tokio::task::spawn_blocking(move || {
                stalled(&session);
                session.execute(change);
                if change.starts_with("TRUNCATE") {
                    let more = "INSERT INTO many SELECT n, repeat('.', 100) FROM generate_series(1, 400000) n";
                    session.execute(more);
                }
            })
            .await
            .unwrap();
            let error = told(rows(&mut stream, &tables).await.unwrap_err());
            let words = if change.starts_with("DROP") { "does not exist" } else { "rewritten or truncated" };
            assert!(
                error.starts_with("passing: load \"public\".\"many\"") && error.contains(words),
                "{change}: {error}"
            );
            stream.close().await;
        });
    }
}

#[test]
fn what_cannot_be_loaded_says_what_mends_it() {
    let db = postgres::shared(Version::V18).create_database();
    let role = format!("cdc_{}", db.name);
    db.execute(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'secret';
         CREATE SCHEMA other;
         CREATE TABLE secret (id int PRIMARY KEY, said text);
         CREATE TABLE partly (id int PRIMARY KEY, said text, hidden text);
         CREATE TABLE other.far (id int PRIMARY KEY);
         CREATE TABLE mine (id int PRIMARY KEY);
         INSERT INTO partly VALUES (1, 'a', 'b'); INSERT INTO mine VALUES (1);
         GRANT SELECT (id, said) ON secret TO {role};
         GRANT SELECT ON partly, mine, other.far TO {role};
         ALTER TABLE mine ENABLE ROW LEVEL SECURITY;
         CREATE POLICY none ON mine USING (false);
         CREATE PUBLICATION offshoot_rights FOR TABLE secret, partly, other.far, mine;
         CREATE PUBLICATION offshoot_rights_inserts WITH (publish = 'insert')"
    ));
    runtime().block_on(async {
        let (mut stream, _) = connect(&config(&db.url_as(&role, "secret"), "rights", ALL)).await;
        for (asked, words) in [
            (table("secret", &["id"]), format!("refused: GRANT SELECT ON \"public\".\"secret\" TO \"{role}\"")),
            (table("other.far", &["id"]), "refused: GRANT USAGE ON SCHEMA \"other\"".into()),
            (table("mine", &["id"]), format!("refused: ALTER ROLE \"{role}\" BYPASSRLS")),
            (table("nowhere", &["id"]), "passing: it is gone; the load begins again".into()),
            (table("partly", &["id", "nothing"]), "passing: column \"nothing\" does not exist".into()),
        ] {
            let tables = [asked];
            let loaded = match begin(&mut stream, &tables).await {
                Ok(_) => rows(&mut stream, &tables).await,
                Err(error) => Err(error),
            };
            let error = told(loaded.unwrap_err());
            let (kind, words) = words.split_once(": ").unwrap();
            assert!(error.starts_with(kind) && error.contains(words), "{error}\n{words}");
        }
        let tables = [table("partly", &["id", "said"])];
        begin(&mut stream, &tables).await.unwrap();
        assert_eq!(rows(&mut stream, &tables).await.unwrap()[0].len(), 1);
        stream.close().await;
    });
    db.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn a_load_without_a_free_slot_says_what_to_raise() {
    let server = postgres::private(Version::V14, &[("max_replication_slots", "1")]);
    let db = server.create_database();
    db.execute("CREATE TABLE a (id int PRIMARY KEY)");
    runtime().block_on(async {
        let (mut stream, _) = connect(&config(&db.url, "room", ALL)).await;
        let error = told(begin(&mut stream, &[table("a", &["id"])]).await.unwrap_err());
        assert!(error.starts_with("passing") && error.contains("raise max_replication_slots"), "{error}");
        stream.close().await;
    });
}

#[test]
fn a_load_that_is_cut_or_given_up_leaves_nothing() {
    let db = postgres::shared(Version::V17).create_database();
    many(&db, MANY);
    let tables = [table("many", &["id"])];
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND temporary";
    let readers = "FROM pg_stat_activity WHERE datname = current_database() AND query ~ '^COPY'";
    let none = |what: &str| wait::until(DEADLINE, what, || db.text(slots) == "0");
    runtime().block_on(async {
        let (mut stream, _) = connect(&config(&db.url, "cut", ALL)).await;
        begin(&mut stream, &tables).await.unwrap();
        more(&mut stream).await.unwrap().unwrap();
        assert_eq!(aside(|| db.text(slots)), "1");
        aside(|| db.execute(&format!("SELECT pg_terminate_backend(pid) {readers}")));
        let error = told(rows(&mut stream, &tables).await.unwrap_err());
        assert!(error.starts_with("passing: load \"public\".\"many\""), "{error}");
        aside(|| none("the slot to go with a load that failed"));
        // Another load takes the place of one that goes on.
        begin(&mut stream, &tables).await.unwrap();
        more(&mut stream).await.unwrap().unwrap();
        begin(&mut stream, &tables).await.unwrap();
        assert_eq!(rows(&mut stream, &tables).await.unwrap()[0].len(), MANY as usize);
        aside(|| none("the slots to go at the end"));
        // As after kill -9: the connections end without a word, also while the slot waits for others.
        begin(&mut stream, &tables).await.unwrap();
        drop(stream);
    });
    none("the slot to go with its process");
    db.execute("SELECT pg_drop_replication_slot('offshoot_cut') FROM pg_replication_slots WHERE slot_name = 'offshoot_cut' AND NOT active");
    let other = db.connect();
    runtime().block_on(async {
        let (mut stream, _) = connect(&config(&db.url, "wait", ALL)).await;
        aside(|| other.execute("BEGIN; SELECT pg_current_xact_id()"));
        let begun = tokio::time::timeout(Duration::from_millis(1500), begin(&mut stream, &tables)).await;
        assert!(begun.is_err(), "the slot waits for what runs");
        assert_eq!(aside(|| db.text(slots)), "1");
    });
    none("the server to notice that nobody waits any more");
    other.execute("COMMIT");
}

#[test]
fn a_million_rows_in_bounded_memory() {
    let db = postgres::shared(Version::V17).create_database();
    many(&db, 1_000_000);
    let tables = [table("many", &["id", "said", "price", "at"])];
    runtime().block_on(async {
        let (mut stream, _) = connect(&config(&db.url, "million", ALL)).await;
        let began = Instant::now();
        begin(&mut stream, &tables).await.unwrap();
        let (mut rows, mut bytes) = (0, 0);
        while let Some(batch) = more(&mut stream).await.unwrap() {
            rows += batch.ends.len();
            bytes += batch.bytes.len();
            assert!(batch.bytes.capacity() <= 512 << 10, "{}", batch.bytes.capacity());
        }
        assert_eq!(rows, 1_000_000);
        let took = began.elapsed();
        println!("{rows} rows, {bytes} bytes in {took:?}: {} rows/s", (rows as f64 / took.as_secs_f64()) as u64);
        stream.close().await;
    });
}

const LOOK_UP: &str = "
aggregates: { Order: { root: orders, topic: o, children: { lines: line.order_id } } }
events:
  OrderPlaced:
    of: Order
    when: created
    data: { id: id, city: customer.city.name, lines: { each: lines, data: { product: product.title } } }
";

#[test]
fn tables_that_look_ups_lead_to_are_published_and_watched() {
    let db = postgres::shared(Version::V18).create_database();
    db.execute(
        "CREATE SCHEMA geo;
         CREATE TABLE geo.city (id int PRIMARY KEY, name text);
         CREATE TABLE customer (id int PRIMARY KEY, city_id int REFERENCES geo.city, email text);
         CREATE TABLE product (id int PRIMARY KEY, title text);
         CREATE TABLE orders (id int PRIMARY KEY, customer_id int REFERENCES customer);
         CREATE TABLE line (id int PRIMARY KEY, order_id int REFERENCES orders, product_id int REFERENCES product);
         CREATE TABLE other (id int PRIMARY KEY)",
    );
    let published =
        "SELECT string_agg(schemaname || '.' || tablename, ' ' ORDER BY 1) FROM (SELECT DISTINCT schemaname, tablename
                     FROM pg_publication_tables WHERE pubname = 'offshoot_looked' ORDER BY 1, 2) t";
    let config = config(&db.url, "looked", LOOK_UP);
    runtime().block_on(async {
        let (mut stream, prepared) = connect(&config).await;
        let names: BTreeSet<_> = aside(|| db.text(published)).split(' ').map(String::from).collect();
        let expected = ["geo.city", "public.customer", "public.line", "public.orders", "public.product"];
        assert_eq!(names, expected.map(String::from).into());
        aside(|| db.execute("INSERT INTO geo.city VALUES (1, 'Olten')"));
        let (rows, []) = apply(&mut stream, [], "1").await;
        assert_eq!(rows["1"][1].as_deref(), Some("Olten"));
        let Prepared { mut watch, catalog, .. } = prepared;
        let city = catalog.unwrap().tables.into_iter().find(|table| table.name == "city").unwrap();
        assert_eq!((city.rows, city.columns[1].width), (None, None), "nobody has analyzed it");
        let (warned, admissions) = (source::Warned::default(), source::Admissions::default());
        let permit: &source::Permit<'_, SourceError> = &|_, _| Box::pin(async { Ok(()) });
        let start = source::Start {
            warned: &warned,
            admissions: &admissions,
            held: &[],
            waiting: &|| {},
            accept: &|_, _| Ok(()),
            permit,
        };
        watch.look(&start).await.unwrap();
        // A foreign key that goes takes nothing out of the publication while we stream; somebody else may.
        aside(|| db.execute("ALTER TABLE customer DROP CONSTRAINT customer_city_id_fkey"));
        aside(|| db.execute("ALTER PUBLICATION offshoot_looked DROP TABLE geo.city"));
        let deadline = Instant::now() + DEADLINE;
        let error = loop {
            assert!(Instant::now() < deadline, "the watch sees nothing");
            // It rests a hundred times as long as a look takes.
            if let Err(error) = watch.look(&start).await {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(matches!(&error, SourceError::SlotLost(error) if error.to_string().contains("geo.city")), "{error}");
        stream.close().await;
    });
}
