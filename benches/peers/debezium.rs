//! A backlog -> how fast Debezium publishes it, on Kafka Connect: a peer, to be measured beside Offshoot on the same servers.
//!
//! `scripts/setup peers` fetches both from Maven. `SETTINGS` are all that differs from what they come with, but for
//! addresses; they are meant to make it fast. It publishes at least once, and has a slot and a publication of its own from before the backlog is written.

#![allow(unreachable_pub)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::{
    kafka::Broker,
    postgres::Server,
    process::{self, Process},
    servers, wait,
};

/// What it is run with.
pub const SETTINGS: [(&str, &[(&str, &str)]); 3] = [
    // Those that Kafka's own scripts start it with.
    (
        "java",
        &[
            ("-Xms256m", ""),
            ("-Xmx2g", ""),
            ("-XX:+UseG1GC", ""),
            ("-XX:MaxGCPauseMillis", "20"),
            ("-XX:InitiatingHeapOccupancyPercent", "35"),
        ],
    ),
    (
        "worker",
        &[
            ("key.converter", "org.apache.kafka.connect.json.JsonConverter"),
            ("key.converter.schemas.enable", "false"),
            ("value.converter", "org.apache.kafka.connect.json.JsonConverter"),
            ("value.converter.schemas.enable", "false"),
            ("plugin.discovery", "service_load"),
            ("producer.compression.type", "lz4"),
            ("producer.linger.ms", "5"),
            ("producer.batch.size", "1048576"),
            ("producer.buffer.memory", "67108864"),
            // With this, several requests at once keep the order.
            ("producer.enable.idempotence", "true"),
            ("producer.max.in.flight.requests.per.connection", "5"),
        ],
    ),
    (
        "connector",
        &[
            ("connector.class", "io.debezium.connector.postgresql.PostgresConnector"),
            ("tasks.max", "1"),
            ("plugin.name", "pgoutput"),
            ("publication.autocreate.mode", "disabled"),
            ("snapshot.mode", "no_data"),
            ("max.batch.size", "8192"),
            ("max.queue.size", "32768"),
            ("poll.interval.ms", "10"),
        ],
    ),
];

/// Partitions of each topic, as Offshoot makes them.
const PARTITIONS: i32 = 6;
const ASK_INTERVAL: Duration = Duration::from_millis(250);
const START_MAX: Duration = Duration::from_secs(120);
/// How long it may take to end.
const END_MAX: Duration = Duration::from_secs(20);

/// A connector that waits for its backlog.
pub struct Debezium<'a> {
    server: &'a Server,
    broker: &'a Broker,
    database: String,
    /// Of its slot and its publication.
    name: String,
    topics: Vec<String>,
    dir: PathBuf,
}

/// How a drain went.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    /// When the broker appended the first record, in milliseconds.
    pub first_ms: i64,
    /// When it appended the last one.
    pub last_ms: i64,
    /// Processor time from the first record on.
    pub cpu: Duration,
    /// The most that was resident at once.
    pub peak_mib: f64,
    /// From the start of the process to its first record.
    pub start_up: Duration,
    /// Processor time of that.
    pub start_up_cpu: Duration,
}

impl<'a> Debezium<'a> {
    /// Makes slot, publication and topics of `tables`, `schema.table` each: what is committed from now on waits for `drain`.
    pub fn prepare(
        server: &'a Server,
        database: &str,
        broker: &'a Broker,
        name: &str,
        tables: &[&str],
    ) -> Debezium<'a> {
        let dir = process::new_dir("debezium");
        let topics: Vec<String> = tables.iter().map(|table| format!("debezium_{name}.{table}")).collect();
        let name = format!("debezium_{name}");
        for topic in &topics {
            broker.create_topic(topic, PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
        }
        let session = server.session(database);
        session.execute(&format!("CREATE PUBLICATION {name} FOR TABLE {}", tables.join(", ")));
        session.execute(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"));
        let debezium = Debezium { server, broker, database: database.into(), name, topics, dir };
        debezium.configure(tables);
        debezium
    }

    /// Publishes so many records, ends, and removes its slot, its publication and its topics.
    pub fn drain(&self, records: u64, deadline: Duration) -> Drained {
        let started = Instant::now();
        let mut process = self.start();
        let mut wait_for = |records: u64, deadline| {
            let come = wait::attempt(deadline, || {
                // Asked without a pause, the broker's answers would be a part of what is measured.
                let _ = wait::attempt(ASK_INTERVAL, || false);
                let come: i64 = self.topics.iter().flat_map(|topic| self.broker.ends(topic)).sum();
                match process.exited() {
                    None if come as u64 >= records => Ok(Ok(())),
                    None => Err(format!("{come} records")),
                    Some(status) => Ok(Err(format!("it ended with {status}"))),
                }
            });
            let come = come.and_then(|come| come);
            come.unwrap_or_else(|state| panic!("wait for {records} records of Debezium: {state}\n{}", self.log()));
            process.cpu_time().expect("it runs")
        };
        let start_up_cpu = wait_for(1, START_MAX);
        let start_up = started.elapsed();
        let cpu = wait_for(records, deadline) - start_up_cpu;
        let peak_mib = process.peak_memory().expect("it runs") as f64 / f64::from(1 << 20);
        process.signal(libc::SIGTERM);
        // Seen once: it goes on for ever, with all its records published. Dropped, it is killed.
        let _ = wait::attempt(END_MAX, || process.exited());
        drop(process);

        let (mut first_ms, mut last_ms, mut read) = (i64::MAX, 0, 0);
        let topics: Vec<_> = self.topics.iter().map(String::as_str).collect();
        self.broker.reader(&topics, deadline).read_to_end(deadline, |record| {
            (first_ms, last_ms) = (first_ms.min(record.timestamp), last_ms.max(record.timestamp));
            read += 1;
        });
        assert_eq!(read, records, "records of {}", self.name);
        topics.iter().for_each(|topic| self.broker.delete_topic(topic));
        let session = self.server.session(&self.database);
        wait::until(START_MAX, "Debezium to leave its slot", || {
            session.try_execute(&format!("SELECT pg_drop_replication_slot('{}')", self.name)).is_ok()
        });
        session.execute(&format!("DROP PUBLICATION {}", self.name));
        Drained { first_ms, last_ms, cpu, peak_mib, start_up, start_up_cpu }
    }

    fn configure(&self, tables: &[&str]) {
        let url = self.server.url(&self.database);
        let url: tokio_postgres::Config = url.parse().expect("it is a URL");
        let [tokio_postgres::config::Host::Tcp(host)] = url.get_hosts() else { panic!("the server has one address") };
        let password = String::from_utf8_lossy(url.get_password().expect("it has a password"));
        let write = |file: &str, ours: &[(&str, &str)]| {
            let (_, settings) = SETTINGS.iter().find(|(of, _)| *of == file).expect("it has settings");
            let lines = settings.iter().chain(ours).map(|(name, value)| format!("{name}={value}\n"));
            fs::write(self.dir.join(file), lines.collect::<String>()).expect("the directory is ours");
        };
        let offsets = self.dir.join("offsets").display().to_string();
        let listener = format!("HTTP://127.0.0.1:{}", servers::free_port());
        write(
            "worker",
            &[
                ("bootstrap.servers", self.broker.address()),
                ("offset.storage.file.filename", &offsets),
                ("listeners", &listener),
            ],
        );
        write(
            "connector",
            &[
                ("name", &self.name),
                ("topic.prefix", &self.name),
                ("slot.name", &self.name),
                ("publication.name", &self.name),
                ("database.hostname", host),
                ("database.port", &url.get_ports()[0].to_string()),
                ("database.user", url.get_user().expect("it has a user")),
                ("database.password", &password),
                ("database.dbname", &self.database),
                ("table.include.list", &tables.join(",")),
            ],
        );
    }

    fn start(&self) -> Process {
        let servers = servers::fetched().unwrap_or_else(|| panic!("no local Kafka: {}", servers::REMEDY));
        let peers = servers.join("peers");
        assert!(peers.join("whole").exists(), "no Debezium: run `scripts/setup peers`, which fetches it");
        // What it logs goes nowhere without this one, which Kafka has.
        let logger = servers.join("kafka/jars/slf4j-simple-1.7.36.jar");
        let classes = format!("{}/*:{}", peers.join("debezium").display(), logger.display());
        let mut command = Command::new("java");
        for (name, value) in SETTINGS[0].1 {
            command.arg(if value.is_empty() { name.to_string() } else { format!("{name}={value}") });
        }
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", &classes]);
        command.args(["org.apache.kafka.connect.cli.ConnectStandalone", "worker", "connector"]);
        let log = fs::File::create(self.log_file()).expect("the directory is ours");
        let copy = log.try_clone().expect("it is open");
        command.current_dir(&self.dir).stdin(Stdio::null()).stdout(log).stderr(copy);
        Process::spawn("Debezium", command, libc::SIGKILL).unwrap_or_else(|e| panic!("start Java: {e}"))
    }

    fn log_file(&self) -> PathBuf {
        Path::new(&self.dir).join("log")
    }

    /// Its end.
    fn log(&self) -> String {
        const LINES: usize = 60;
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}
