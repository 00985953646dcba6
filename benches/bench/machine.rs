//! What was measured, and on what: machine, versions, settings, commit.

use std::{fs, path::Path, process::Command, thread};

use rdkafka::util::get_rdkafka_version;
use serde::{Deserialize, Serialize};

use crate::{asked::Asked, debezium, drain::Servers, readers, support::servers};

/// What a figure has no meaning without: names and what they are, in order.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) command: String,
    pub(crate) machine: Vec<(String, String)>,
    pub(crate) versions: Vec<(String, String)>,
    pub(crate) settings: Vec<(String, String)>,
    /// Processes that wanted to run when it began.
    pub(crate) load: f64,
    /// How long all of it took.
    pub(crate) minutes: f64,
}

/// Of Postgres, on top of what the tests' servers have.
pub(crate) const POSTGRES: [(&str, &str); 4] = [
    ("synchronous_commit", "off"),
    ("shared_buffers", "256MB"),
    ("max_replication_slots", "300"),
    ("max_wal_senders", "100"),
];
/// Of Kafka: `-Xmx`.
pub(crate) const HEAP: &str = "1g";

pub(crate) fn about(asked: &Asked, servers: &Servers<'_>) -> About {
    let pair = |name: &str, value: String| (name.to_owned(), value);
    let session = servers.postgres.session("postgres");
    let shown = [
        "fsync",
        "synchronous_commit",
        "full_page_writes",
        "shared_buffers",
        "max_wal_size",
        "logical_decoding_work_mem",
    ]
    .map(|name| format!("{name} = {}", session.text(&format!("SHOW {name}"))));
    let load: f64 = line("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default();
    About {
        date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        commit: commit(),
        command: asked.command(),
        machine: vec![
            pair("cores", thread::available_parallelism().map_or("?".into(), |n| n.to_string())),
            pair("processor", field("/proc/cpuinfo", "model name")),
            pair("memory", memory()),
            pair("kernel", format!("Linux {}", line("/proc/sys/kernel/osrelease"))),
            pair("TCP congestion control", line("/proc/sys/net/ipv4/tcp_congestion_control")),
            pair("load when it began", load.to_string()),
        ],
        versions: vec![
            pair("Offshoot", env!("CARGO_PKG_VERSION").into()),
            pair("Postgres", session.text("SHOW server_version")),
            pair("Kafka", kafka()),
            pair("librdkafka", get_rdkafka_version().1),
            pair("Java", java()),
        ],
        settings: [
            pair("Postgres", shown.join(", ")),
            pair(
                "Kafka",
                format!("one node, `-Xmx{HEAP}`, topics of 6 partitions, message.timestamp.type = LogAppendTime"),
            ),
            pair("Offshoot", "defaults; `delivery` as each table says".into()),
            pair("connections", "TCP on the loopback interface, without TLS but where a table says so".into()),
        ]
        .into_iter()
        .chain(readers::peers().then(peer).into_iter().flatten())
        .collect(),
        load,
        minutes: 0.0,
    }
}

fn peer() -> impl Iterator<Item = (String, String)> {
    debezium::SETTINGS.iter().map(|(of, settings)| {
        let settings: Vec<_> = settings.iter().map(|(name, value)| [*name, *value].join(" ")).collect();
        (format!("Debezium, {of}"), settings.join(", "))
    })
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "not known".into() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs"])
        .is_some_and(|text| !text.is_empty());
    if changed { format!("{commit}, changed since") } else { commit }
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map_or("not known".into(), |text| text.trim().to_owned())
}

fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    found.map_or("not known".into(), |value| value.trim().to_owned())
}

fn memory() -> String {
    let kib = field("/proc/meminfo", "MemTotal");
    let kib = kib.strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok());
    kib.map_or("not known".into(), |kib| format!("{:.0} GiB", kib as f64 / f64::from(1 << 20)))
}

/// By the name of its jar.
fn kafka() -> String {
    let jars = servers::fetched().map(|dir| dir.join("kafka/jars"));
    let jars = jars.iter().flat_map(|dir| fs::read_dir(dir as &Path).into_iter().flatten()).flatten();
    let versions = jars.filter_map(|jar| {
        let name = jar.file_name().into_string().ok()?;
        Some(name.strip_prefix("kafka_2.13-")?.strip_suffix(".jar")?.to_owned())
    });
    versions.min().unwrap_or_else(|| "not known".into())
}

fn java() -> String {
    let output = Command::new("java").arg("-version").output();
    let said = output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stderr).into_owned());
    said.split('"').nth(1).unwrap_or("not known").to_owned()
}
