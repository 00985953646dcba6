//! A database, topics and a few lines of YAML -> the built program on them, once or again, and what arrived.

#![allow(unreachable_pub)]

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::support::{
    apart::apart,
    kafka::{self, Broker, Record},
    postgres::Db,
    program::{self, Config, Offshoot},
    wait,
};

/// Long enough for a busy machine; nothing waits for it when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The built program.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_offshoot"))
}

/// A pipeline's config, to be changed before it is written. Its name is the database's, which nobody else has.
#[derive(Clone)]
pub struct Pipe {
    pub name: String,
    pub url: String,
    pub brokers: String,
    pub tables: String,
    /// `exactly_once`, unless a test says otherwise.
    pub delivery: &'static str,
    /// Further lines, each below the key of that name.
    pub source: String,
    pub kafka: String,
    pub changes: String,
    pub rest: String,
}

impl Pipe {
    /// The superuser's, on the shared Kafka.
    pub fn of(db: &Db) -> Pipe {
        Pipe {
            name: db.name.clone(),
            url: db.url.clone(),
            brokers: kafka::shared().address().into(),
            tables: "public.*".into(),
            delivery: "exactly_once",
            source: String::new(),
            kafka: String::new(),
            changes: String::new(),
            rest: String::new(),
        }
    }

    /// The config's text.
    pub fn yaml(&self) -> String {
        let below =
            |lines: &str, indent: &str| lines.lines().map(|line| format!("{indent}{line}\n")).collect::<String>();
        let Pipe { name, url, brokers, tables, delivery, rest, .. } = self;
        let (source, kafka, changes) =
            (below(&self.source, "  "), below(&self.kafka, "    "), below(&self.changes, "  "));
        format!(
            "name: {name}\nsource:\n  postgres: \"{url}\"\n{source}sink:\n  kafka:\n    brokers: \"{brokers}\"\n    \
             delivery: {delivery}\n{kafka}changes:\n  tables: [\"{tables}\"]\n{changes}{rest}\n"
        )
    }

    /// The slot's and the publication's name.
    pub fn slot(&self) -> String {
        format!("offshoot_{}", self.name)
    }

    /// `offshoot run`.
    pub fn run(&self) -> Offshoot {
        Offshoot::run(binary(), &self.yaml())
    }

    /// `offshoot run` after `script` has made mounts that nobody else sees.
    #[track_caller]
    pub fn run_apart(&self, script: &str) -> Offshoot {
        let config = Config::new(&self.yaml());
        let mut command = Command::new(binary());
        command.arg("run").arg("-c").arg(&config.path);
        Offshoot::start(apart(script, &command), &config)
    }

    /// `offshoot run` until it streams.
    #[track_caller]
    pub fn ready(&self) -> Offshoot {
        let mut offshoot = self.run();
        offshoot.wait_ready(DEADLINE);
        offshoot
    }

    /// Makes slot and publication, and stops.
    #[track_caller]
    pub fn prepare(&self) {
        stops(self.ready());
    }

    /// `offshoot run` ends by itself with this code, and says all of these words. What it printed.
    #[track_caller]
    pub fn ends(&self, code: i32, words: &[&str]) -> String {
        ends(self.run(), code, words)
    }

    /// A command that ends: its exit code and what it printed.
    pub fn command(&self, arguments: &[&str]) -> (i32, String) {
        let config = Config::new(&self.yaml());
        let mut command = Command::new(binary());
        command.arg(arguments[0]).arg("-c").arg(&config.path).args(&arguments[1..]);
        let (code, text) = program::output(&mut command);
        (code.expect("it ends by itself"), text)
    }

    /// `offshoot check` gives this code within ten seconds and says all of these words.
    #[track_caller]
    pub fn checks(&self, code: i32, words: &[&str]) -> String {
        let began = Instant::now();
        let (found, text) = self.command(&["check"]);
        assert_eq!(found, code, "{text}");
        says(&text, words);
        assert!(began.elapsed() < Duration::from_secs(10), "check took {:?}", began.elapsed());
        text
    }

    /// The topic of a table of `public`.
    pub fn topic(&self, table: &str) -> String {
        format!("{}.public.{table}", self.name)
    }

    /// The `id`s of the new rows that a table's topic holds, each once, in order of their first appearance.
    pub fn ids(&self, kafka: &Broker, table: &str) -> Vec<i64> {
        let topic = self.topic(table);
        let records = if kafka.partitions(&topic) == 0 { Vec::new() } else { kafka.read_all(&topic) };
        let id = |record: &Record| record.value_json()["after"]["id"].as_i64();
        let mut ids: Vec<i64> = records.iter().filter_map(id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Runs until these rows have arrived, and stops in good order with all of it confirmed.
    #[track_caller]
    pub fn arrives_at(&self, kafka: &Broker, table: &str, ids: &[i64]) {
        let mut offshoot = self.ready();
        offshoot.wait("the rows to arrive", DEADLINE, |_| (self.ids(kafka, table) == ids).then_some(()));
        stops(offshoot);
    }

    /// The same on the shared Kafka.
    #[track_caller]
    pub fn arrives(&self, table: &str, ids: &[i64]) {
        self.arrives_at(kafka::shared(), table, ids);
    }

    /// Whether Postgres may have forgotten anything from `lsn` on.
    pub fn confirmed_past(&self, db: &Db, lsn: &str) -> bool {
        let slot = self.slot();
        db.text(&format!("SELECT confirmed_flush_lsn > '{lsn}' FROM pg_replication_slots WHERE slot_name = '{slot}'"))
            == "t"
    }
}

/// The end of the log.
pub fn now(db: &Db) -> String {
    db.text("SELECT pg_current_wal_insert_lsn()")
}

/// SIGTERM, and a clean end.
#[track_caller]
pub fn stops(mut offshoot: Offshoot) {
    let status = offshoot.terminate(DEADLINE);
    assert_eq!(status.code(), Some(0), "{}", offshoot.log().join("\n"));
}

/// It ends by itself with this code, and says all of these words. What it printed.
#[track_caller]
pub fn ends(mut offshoot: Offshoot, code: i32, words: &[&str]) -> String {
    let status = offshoot.exit(DEADLINE);
    // What it said last may still be on its way through the pipe.
    let has_all = || words.iter().all(|word| offshoot.log().join("\n").contains(word));
    let _ = wait::attempt(Duration::from_secs(2), has_all);
    let text = offshoot.log().join("\n");
    assert_eq!(status.code(), Some(code), "{text}");
    says(&text, words);
    if std::env::var_os("OFFSHOOT_TEST_SHOW").is_some() {
        let last = text.lines().rfind(|line| line.contains("ERROR") || line.contains("error"));
        println!("SEEN {code}: {}", last.unwrap_or(&text));
    }
    text
}

#[track_caller]
pub fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in\n{text}");
    }
}
