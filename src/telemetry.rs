//! What happens -> log lines on stderr, and numbers for `/metrics`.

mod process;

use std::{
    collections::HashMap,
    future::Future,
    io::{self, IsTerminal},
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry, Unit},
};
use tokio::{sync::watch, time::Instant};
use tracing_subscriber::{
    EnvFilter,
    filter::LevelFilter,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{change::Micros, transaction};

/// How often whoever only waits gives a sign of life.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// From a commit to its acknowledgement, in seconds: from a quiet loopback to a Kafka that was away for an hour.
const DELIVERY_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0];

/// What is logged, and how.
#[derive(Clone, Copy, Debug)]
pub struct Logs<'a> {
    /// How a line looks.
    pub format: LogFormat,
    /// Levels, by module if wanted.
    pub filter: &'a str,
    /// Lines that tell now and then how far a load is are left out: it is drawn.
    pub draws_loads: bool,
}

/// The target of these lines.
const LOADING: &str = "offshoot::loading";

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `--log` says nothing that can be understood.
    #[error(
        "--log {filter:?}: {reason}; write a level (error, warn, info, debug, trace) or `info,offshoot::postgres=debug`"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody else has set a log up in this process.
    #[error("set up the log: {0}")]
    Taken(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends `tracing`, and the `log` of libraries such as rdkafka, to a writer, which is stderr in the end.
pub fn init(logs: Logs<'_>, writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) -> Result<(), LogError> {
    let mut filter = filter(logs.filter)?;
    if logs.draws_loads {
        filter = filter.add_directive(format!("{LOADING}=off").parse().expect("a directive"));
    }
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(writer);
    match logs.format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_span_list(false)).try_init()?,
        LogFormat::Text => registry.with(lines.compact().with_ansi(coloured())).try_init()?,
    }
    Ok(())
}

fn coloured() -> bool {
    let stderr = io::stderr();
    stderr.is_terminal() && anstream::AutoStream::choice(&stderr) != anstream::ColorChoice::Never
}

fn filter(text: &str) -> Result<EnvFilter, LogError> {
    let refused = |reason: String| LogError::Filter { filter: text.into(), reason };
    for directive in text.split(',').map(str::trim) {
        // The library takes a word that is no level for a module's name, and a misspelt level would log nothing.
        let level = directive.rsplit('=').next().unwrap_or_default();
        if level.parse::<LevelFilter>().is_err() || level.is_empty() {
            return Err(refused(format!("`{level}` is no level")));
        }
    }
    EnvFilter::try_new(text).map_err(|error| refused(error.to_string()))
}

/// What the pipeline is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum State {
    /// Not connected yet.
    Starting,
    /// Another session reads from the slot.
    WaitingForSlot,
    /// Changes flow.
    Streaming,
    /// Something failed that passes; a pause, then again.
    Retrying,
    /// Told to stop; what is in flight is being delivered.
    Draining,
}

impl State {
    const ALL: [State; 5] =
        [State::Starting, State::WaitingForSlot, State::Streaming, State::Retrying, State::Draining];

    /// In words, for `/readyz`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::WaitingForSlot => "waiting for the slot",
            State::Streaming => "streaming",
            State::Retrying => "retrying",
            State::Draining => "draining",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

/// How a page of numbers is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageForm {
    /// OpenMetrics 1.0, which Prometheus asks for.
    OpenMetrics,
    /// Prometheus' text format 0.0.4, which everything reads.
    Classic,
}

/// Which pipeline it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Names {
    /// The config's `name`.
    pub pipeline: String,
    /// The replication slot.
    pub slot: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutletLabel {
    outlet: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    event: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpLabel {
    op: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabel {
    table: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    kind: &'static str,
}

/// A table that is being loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableLoad {
    /// `schema.table`.
    pub table: String,
    /// Rows that have been read.
    pub rows: u64,
    /// Rows that the table is thought to have; 0 where nobody knows.
    pub expected: u64,
}

/// A load, which is shown until this is dropped.
#[derive(Debug)]
pub struct ShownLoad(Metrics);

impl Drop for ShownLoad {
    fn drop(&mut self) {
        self.0.loads.send_replace(Vec::new());
    }
}

/// The numbers, and the state behind `/readyz`. A clone is the same numbers.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Seams>);

/// Counters and gauges by the seam where they are counted. Each is an atomic: cheap, and from any thread.
#[derive(Debug)]
pub struct Seams {
    /// Transactions read whole.
    pub transactions: Counter,
    /// Row changes read, by what was done.
    pub rows: Rows,
    /// Logical messages read that were asked for.
    pub messages: Counter,
    /// Records that changes and messages became, by way out.
    pub told: Told,
    /// Rows of mapped tables, as events are made of them.
    pub netting: Netting,
    /// Transactions that were left out, since `ignore_origin` names where they came from.
    pub ignored_transactions: Counter,
    /// Transactions that went to a spill file.
    pub spilled_transactions: Counter,
    /// Rows of transactions that the replica was given.
    pub replica_kept_rows: Counter,
    /// Records handed to the sink.
    pub records: Counter,
    /// Their keys, values and headers.
    pub record_bytes: Counter,
    /// Records that are durable.
    pub records_acknowledged: Counter,
    /// Progress records that are committed.
    pub commits: Counter,
    /// Transactions that came again although they are published, and were left out.
    pub repeated_transactions: Counter,
    /// Starts after the first.
    pub restarts: Counter,
    /// What records sent and not acknowledged take of memory.
    pub in_flight_bytes: Gauge<u64, AtomicU64>,
    /// Transactions sent and not acknowledged.
    pub in_flight_transactions: Gauge<u64, AtomicU64>,
    /// What Postgres was told it may forget.
    pub confirmed_lsn: Gauge<u64, AtomicU64>,
    /// The end of what was read.
    pub received_lsn: Gauge<u64, AtomicU64>,
    /// The end of the server's log.
    pub server_lsn: Gauge<u64, AtomicU64>,
    /// `server_lsn - confirmed_lsn`.
    pub lag_bytes: Gauge<u64, AtomicU64>,
    /// Age of the oldest commit that is not durable in the sink; 0 when there is none.
    pub lag_seconds: Gauge<f64, AtomicU64>,
    /// Log that the server keeps for the slot.
    pub slot_retained_bytes: Gauge<u64, AtomicU64>,
    /// From a transaction's commit to its acknowledgement, by the clocks of two machines.
    pub delivery_seconds: Histogram,
    /// The replica's local file.
    pub replica_bytes: Gauge<u64, AtomicU64>,
    /// Records of the replica's topic that were read for the local file.
    pub replica_restored: Counter,
    /// Rows that were asked of the replica by their key, and are there.
    pub replica_hits: Counter,
    /// Rows that were asked of the replica by their key, and are not there.
    pub replica_misses: Counter,
    replica_rows: Family<TableLabel, Gauge<u64, AtomicU64>>,
    replica_loaded: Family<TableLabel, Gauge<u64, AtomicU64>>,
    replica_expected: Family<TableLabel, Gauge<u64, AtomicU64>>,
    replica_kept: Gauge<f64, AtomicU64>,
    replica_age: Gauge<f64, AtomicU64>,
    /// `limits.slot_wal_warn` and `limits.slot_wal_stop`.
    slot_limits: Family<LimitLabel, Gauge<u64, AtomicU64>>,

    spill_bytes: Gauge<u64, AtomicU64>,
    info: Family<Names, Gauge<u64, AtomicU64>>,
    names: OnceLock<Names>,
    errors: Family<ErrorLabel, Counter>,
    events: Family<EventLabel, Counter>,
    last_commit: Gauge<f64, AtomicU64>,
    since_last_commit: Gauge<f64, AtomicU64>,
    up: Gauge<u64, AtomicU64>,
    states: Family<StateLabel, Gauge<u64, AtomicU64>>,
    state: watch::Sender<State>,
    loads: watch::Sender<Vec<TableLoad>>,
    beats: AtomicU64,
    /// When the last one was, in milliseconds since `started`.
    last_beat: AtomicU64,
    started: Instant,
    registry: Registry,
}

/// `offshoot_rows_total`, a handle for each operation.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Inserts.
    pub insert: Counter,
    /// Updates.
    pub update: Counter,
    /// Deletes.
    pub delete: Counter,
    /// Truncated tables.
    pub truncate: Counter,
}

/// `offshoot_outlet_records_total`, a handle for each way out.
#[derive(Clone, Debug)]
pub struct Told {
    /// `changes`
    pub changes: Counter,
    /// `outbox`
    pub outbox: Counter,
    /// `messages`
    pub messages: Counter,
    /// `events`
    pub events: Counter,
}

/// What the rows of mapped tables have come to.
#[derive(Clone, Debug)]
pub struct Netting {
    /// Rows that a transaction has touched, each once.
    pub rows: Counter,
    /// Of these, rows that have the values they had.
    pub no_ops: Counter,
    /// Of these, rows that have changed and no event tells of.
    pub unmapped: Counter,
    /// Transactions whose rows were put together on disk.
    pub on_disk: Counter,
    /// The file that this is done in.
    pub bytes: Gauge<u64, AtomicU64>,
}

impl Deref for Metrics {
    type Target = Seams;

    fn deref(&self) -> &Seams {
        &self.0
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at 0, in `State::Starting`.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        let mut of = Book { registry: registry.sub_registry_with_prefix("offshoot") };
        let rows: Family<OpLabel, Counter> = of.family("rows", "Row changes read from Postgres, by operation");
        let row = |op| rows.get_or_create_owned(&OpLabel { op });
        let told: Family<OutletLabel, Counter> = of.family("outlet_records", "Records made, by way out");
        let outlet = |outlet| told.get_or_create_owned(&OutletLabel { outlet });
        let version: Info<Vec<(&str, &str)>> = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        of.registry.register("build", "The program that answers", version);
        let metrics = Self(Arc::new(Seams {
            rows: Rows {
                insert: row("insert"),
                update: row("update"),
                delete: row("delete"),
                truncate: row("truncate"),
            },
            told: Told {
                changes: outlet("changes"),
                outbox: outlet("outbox"),
                messages: outlet("messages"),
                events: outlet("events"),
            },
            netting: Netting {
                rows: of.plain("net_rows", "Rows of mapped tables that transactions have touched, each once a transaction"),
                no_ops: of.plain("net_no_op_rows", "Of these, rows that were left with the values they had"),
                unmapped: of.plain("net_unmapped_rows", "Of these, rows that have changed and no event tells of"),
                on_disk: of.plain(
                    "netted_on_disk_transactions",
                    "Transactions with too many rows of mapped tables for memory, which are put together in a file",
                ),
                bytes: of.unit("netting_file", "The file in which such a transaction is put together", Unit::Bytes),
            },
            events: of.family("events", "Domain events made, and tombstones of state topics, by name and version"),
            messages: of.plain("messages", "Logical messages read from Postgres that were asked for"),
            ignored_transactions: of.plain(
                "ignored_transactions",
                "Transactions that were left out, since ignore_origin names where they came from",
            ),
            transactions: of.plain("transactions", "Transactions read whole from Postgres"),
            replica_kept_rows: of.plain("replica_kept_rows", "Rows that transactions have changed, and events may need later"),
            spilled_transactions: of
                .plain("spilled_transactions", "Transactions too large for memory, held in a spill file"),
            records: of.plain("records", "Records handed to Kafka's producer"),
            record_bytes: of.unit(
                "record",
                "Keys, values and headers of the records handed to Kafka's producer",
                Unit::Bytes,
            ),
            records_acknowledged: of.plain("records_acknowledged", "Records that Kafka has acknowledged"),
            commits: of.plain(
                "commits",
                "Progress records that Kafka has committed, with exactly_once each in one Kafka transaction with its events",
            ),
            repeated_transactions: of.plain(
                "repeated_transactions",
                "Transactions that Postgres sent again although their events are published, and that were left out",
            ),
            restarts: of.plain("restarts", "Times the stream was started again after an error"),
            errors: of.family("errors", "Errors that ended the stream, by kind"),
            in_flight_bytes: of.unit(
                "in_flight",
                "What records sent to Kafka and not acknowledged take of memory, with what its producer keeps beside them",
                Unit::Bytes,
            ),
            in_flight_transactions: of
                .plain("in_flight_transactions", "Transactions sent to Kafka and not acknowledged"),
            confirmed_lsn: of.plain("confirmed_lsn", "Log position that Postgres was told it may forget, in bytes"),
            received_lsn: of.plain("received_lsn", "Log position up to which Postgres has sent, in bytes"),
            server_lsn: of.plain("server_lsn", "End of the server's log, in bytes"),
            lag_bytes: of.unit(
                "lag",
                "Log between the confirmed position and the end of the server's log",
                Unit::Bytes,
            ),
            lag_seconds: of.unit(
                "lag",
                "Age of the oldest commit that is not durable in Kafka; 0 when there is none",
                Unit::Seconds,
            ),
            slot_retained_bytes: of.unit("slot_retained", "Log that the server keeps for the slot", Unit::Bytes),
            delivery_seconds: of.histogram(
                "delivery",
                "Time from a transaction's commit in Postgres to its acknowledgement by Kafka",
                Unit::Seconds,
                &DELIVERY_BUCKETS,
            ),
            replica_rows: of.family("replica_rows", "Rows that the replica holds, by table"),
            replica_bytes: of.unit("replica", "The replica's local file, which is a cache of its topic", Unit::Bytes),
            replica_restored: of.plain(
                "replica_restored_records",
                "Records of the replica's topic that were read for the local file, at starts and while another publishes",
            ),
            replica_hits: of.plain("replica_hits", "Rows that were asked of the replica by their key, and are there"),
            replica_misses: of
                .plain("replica_misses", "Rows that were asked of the replica by their key, and are not there"),
            replica_loaded: of.family("replica_loaded_rows", "Rows that the load of a table has read so far"),
            replica_expected: of.family(
                "replica_load_expected_rows",
                "Rows that the load of a table is expected to read, as Postgres estimates them",
            ),
            replica_kept: Gauge::default(),
            replica_age: of.unit(
                "replica_age",
                "Time since the replica's local file was last brought up to date; NaN before, and where there is none",
                Unit::Seconds,
            ),
            spill_bytes: of.unit("spill", "Spill files of transactions too large for memory", Unit::Bytes),
            info: of.family("pipeline_info", "Which pipeline it is; always 1"),
            names: OnceLock::new(),
            slot_limits: {
                let limits = Family::default();
                let help =
                    "Log that the server may keep for the slot before we warn or stop; no line where there is no limit";
                of.registry.register_with_unit("slot_limit", help, Unit::Bytes, limits.clone());
                limits
            },
            last_commit: of.unit(
                "last_commit_timestamp",
                "When the last delivered transaction was committed, as Unix time; NaN before the first",
                Unit::Seconds,
            ),
            since_last_commit: of.unit(
                "since_last_commit",
                "Time since the last delivered transaction was committed; NaN before the first",
                Unit::Seconds,
            ),
            up: of.plain("up", "1 while changes flow, else 0"),
            states: of.family("state", "1 for what the pipeline is doing, else 0"),
            state: watch::Sender::new(State::Starting),
            loads: watch::Sender::new(Vec::new()),
            beats: AtomicU64::new(0),
            last_beat: AtomicU64::new(0),
            started: Instant::now(),
            registry,
        }));
        metrics.last_commit.set(f64::NAN);
        metrics.replica_kept.set(f64::NAN);
        for kind in ERROR_KINDS {
            drop(metrics.errors.get_or_create(&ErrorLabel { kind }));
        }
        metrics.set_state(State::Starting);
        metrics
    }

    /// What the pipeline is doing from now on. Draining is the last: nothing leads out of it.
    pub fn set_state(&self, state: State) {
        self.beat();
        let set = |now: &mut State| {
            let moves = *now != state && *now != State::Draining;
            if moves {
                *now = state;
            }
            moves
        };
        self.state.send_if_modified(set);
        let state = self.state();
        self.up.set(u64::from(state == State::Streaming));
        for each in State::ALL {
            let label = StateLabel { state: each.as_str().replace(' ', "_") };
            self.states.get_or_create(&label).set(u64::from(each == state));
        }
    }

    /// The limits of what the server may keep for the slot, in bytes.
    pub fn set_slot_limits(&self, warn: u64, stop: Option<u64>) {
        let set = |limit, bytes| self.slot_limits.get_or_create(&LimitLabel { limit }).set(bytes);
        set("warn", warn);
        if let Some(bytes) = stop {
            set("stop", bytes);
        }
    }

    /// When the last delivered transaction was committed; `None` before the first.
    pub fn last_delivered(&self) -> Option<SystemTime> {
        let seconds = self.last_commit.get();
        (seconds > 0.0).then(|| UNIX_EPOCH + std::time::Duration::from_secs_f64(seconds))
    }

    /// What the pipeline is doing.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// What the pipeline is doing, to be awaited.
    pub fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Which pipeline it is, from now on; the first call counts.
    pub fn set_names(&self, pipeline: &str, slot: &str) {
        let names = self.names.get_or_init(|| Names { pipeline: pipeline.into(), slot: slot.into() });
        self.info.get_or_create(names).set(1);
    }

    /// Which pipeline it is; empty before `set_names`.
    pub fn names(&self) -> Names {
        self.names.get().cloned().unwrap_or_default()
    }

    /// A sign of life of the task that owns the pipeline; when they stay out, a supervisor ends the process.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
        self.last_beat.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// How many signs of life there have been.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// How long ago the last sign of life was.
    pub fn silent_for(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.last_beat.load(Ordering::Relaxed)))
    }

    /// Gives signs of life for as long as a wait is polled that gives none itself: a pause, or an answer that may take hours.
    pub async fn beating<T>(&self, wait: impl Future<Output = T>) -> T {
        tokio::pin!(wait);
        loop {
            tokio::select! {
                biased;
                value = &mut wait => return value,
                () = tokio::time::sleep(BEAT_INTERVAL) => self.beat(),
            }
        }
    }

    /// Counts an event of this name and version, one of the config's; it is there with 0 from now on.
    pub fn event(&self, event: String) -> Counter {
        self.events.get_or_create_owned(&EventLabel { event })
    }

    /// A transaction that was committed then has been delivered.
    pub fn delivered_commit(&self, time: Micros) {
        self.last_commit.set(time as f64 / 1e6);
    }

    /// The replica holds so many rows of a table.
    pub fn replica_rows(&self, table: &str, rows: u64) {
        self.replica_rows.get_or_create(&TableLabel { table: table.into() }).set(rows);
    }

    /// Tables begin to be loaded.
    pub fn load(&self, tables: impl IntoIterator<Item = String>) -> ShownLoad {
        let tables = tables.into_iter().map(|table| TableLoad { table, ..TableLoad::default() });
        self.loads.send_replace(tables.collect());
        ShownLoad(self.clone())
    }

    /// The tables that are being loaded, to be awaited.
    pub fn loads(&self) -> watch::Receiver<Vec<TableLoad>> {
        self.loads.subscribe()
    }

    /// The load of a table has read so many rows, of so many that it is expected to read.
    pub fn replica_loaded(&self, table: &str, rows: u64, expected: u64) {
        self.loads.send_modify(|loads| {
            let load = loads.iter_mut().find(|load| load.table == table);
            load.into_iter().for_each(|load| (load.rows, load.expected) = (rows, expected));
        });
        let table = TableLabel { table: table.into() };
        self.replica_loaded.get_or_create(&table).set(rows);
        self.replica_expected.get_or_create(&table).set(expected);
    }

    /// The replica's local file was up to date then.
    pub fn replica_kept(&self, time: Micros) {
        self.replica_kept.set(time as f64 / 1e6);
    }

    /// Something of this kind, one of `ERROR_KINDS`, ended the stream.
    pub fn error(&self, kind: &'static str) {
        debug_assert!(ERROR_KINDS.contains(&kind));
        self.errors.get_or_create(&ErrorLabel { kind }).inc();
    }

    /// A transaction that was committed at `time` has been acknowledged at `now`.
    pub fn delivered(&self, time: Micros, now: Micros) {
        self.delivery_seconds.observe((now - time).max(0) as f64 / 1e6);
    }

    /// All numbers.
    pub fn render(&self, form: PageForm) -> String {
        self.spill_bytes.set(transaction::spilled_bytes());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // Clocks of two machines: never negative. NaN stays NaN.
        let since = |time: f64| if time.is_nan() { time } else { (now - time).max(0.0) };
        self.since_last_commit.set(since(self.last_commit.get()));
        self.replica_age.set(since(self.replica_kept.get()));
        let mut page = String::new();
        text::encode(&mut page, &self.registry).expect("writing to a String cannot fail");
        match form {
            PageForm::OpenMetrics => page,
            PageForm::Classic => classic(&page),
        }
    }
}

/// OpenMetrics -> the format before it: the samples are the same, but a family was named as its samples are, and there was
/// neither a unit nor an end.
fn classic(page: &str) -> String {
    let word = |line: &str, at: usize| line.split(' ').nth(at).unwrap_or_default().to_owned();
    let types = page.lines().filter(|line| line.starts_with("# TYPE "));
    let types: HashMap<_, _> = types.map(|line| (word(line, 2), word(line, 3))).collect();
    let mut classic = String::with_capacity(page.len());
    for line in page.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let name = word(line, 2);
        let suffix = match types.get(&name).map(String::as_str) {
            Some("counter") if line.starts_with("# ") => "_total",
            Some("info") if line.starts_with("# ") => "_info",
            _ => "",
        };
        let line = match line.strip_prefix("# TYPE ") {
            Some(_) if suffix == "_info" => format!("# TYPE {name}_info gauge"),
            _ => line.replacen(&name, &format!("{name}{suffix}"), usize::from(!suffix.is_empty())),
        };
        classic.push_str(&line);
        classic.push('\n');
    }
    classic
}

/// The values of the label `kind` of `offshoot_errors_total`, so that each is there with 0 before it happens.
pub const ERROR_KINDS: [&str; 10] = [
    "source_passing",
    "source_refused",
    "config",
    "slot_lost",
    "slot_limit",
    "undecodable",
    "spill",
    "sink_passing",
    "sink_refused",
    "record_refused",
];

/// A registry that hands out what it registers.
struct Book<'a> {
    registry: &'a mut Registry,
}

impl Book<'_> {
    fn plain<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.registry.register(name, help, metric.clone());
        metric
    }

    fn unit<M: Metric + Clone + Default>(&mut self, name: &str, help: &str, unit: Unit) -> M {
        let metric = M::default();
        self.registry.register_with_unit(name, help, unit, metric.clone());
        metric
    }

    fn histogram(&mut self, name: &str, help: &str, unit: Unit, buckets: &[f64]) -> Histogram {
        let metric = Histogram::new(buckets.iter().copied());
        self.registry.register_with_unit(name, help, unit, metric.clone());
        metric
    }

    fn family<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.plain(name, help)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(page: &'a str, name: &str) -> &'a str {
        let found = page.lines().find(|line| line.split([' ', '{']).next() == Some(name));
        found.unwrap_or_else(|| panic!("{name} is not in\n{page}"))
    }

    #[test]
    fn every_promised_number_is_there_from_the_start() {
        let page = Metrics::new().render(PageForm::OpenMetrics);
        for name in [
            "offshoot_transactions_total",
            "offshoot_rows_total",
            "offshoot_records_total",
            "offshoot_records_acknowledged_total",
            "offshoot_record_bytes_total",
            "offshoot_errors_total",
            "offshoot_in_flight_bytes",
            "offshoot_in_flight_transactions",
            "offshoot_confirmed_lsn",
            "offshoot_received_lsn",
            "offshoot_server_lsn",
            "offshoot_lag_bytes",
            "offshoot_lag_seconds",
            "offshoot_slot_retained_bytes",
            "offshoot_last_commit_timestamp_seconds",
            "offshoot_since_last_commit_seconds",
            "offshoot_restarts_total",
            "offshoot_spilled_transactions_total",
            "offshoot_net_rows_total",
            "offshoot_net_no_op_rows_total",
            "offshoot_net_unmapped_rows_total",
            "offshoot_netted_on_disk_transactions_total",
            "offshoot_netting_file_bytes",
            "offshoot_up",
            "offshoot_state",
            "offshoot_build_info",
            "offshoot_spill_bytes",
            "offshoot_replica_bytes",
            "offshoot_replica_restored_records_total",
            "offshoot_replica_hits_total",
            "offshoot_replica_misses_total",
            "offshoot_replica_age_seconds",
            "offshoot_delivery_seconds_bucket",
            "offshoot_delivery_seconds_count",
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
            "process_start_time_seconds",
            "process_open_fds",
        ] {
            line(&page, name);
        }
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn counts_are_told() {
        let metrics = Metrics::new();
        metrics.clone().rows.update.inc_by(3);
        metrics.error("sink_refused");
        let page = metrics.render(PageForm::OpenMetrics);
        assert!(page.contains("offshoot_rows_total{op=\"update\"} 3\n"), "{page}");
        assert!(page.contains("offshoot_errors_total{kind=\"sink_refused\"} 1\n"), "{page}");
        assert!(page.contains("offshoot_errors_total{kind=\"slot_lost\"} 0\n"), "{page}");
    }

    #[test]
    fn the_age_of_the_last_commit_is_unknown_before_the_first() {
        let metrics = Metrics::new();
        assert_eq!(
            line(&metrics.render(PageForm::OpenMetrics), "offshoot_since_last_commit_seconds"),
            "offshoot_since_last_commit_seconds NaN"
        );
        metrics.delivered_commit(1_000_000);
        let page = metrics.render(PageForm::OpenMetrics);
        let age: f64 = line(&page, "offshoot_since_last_commit_seconds").rsplit(' ').next().unwrap().parse().unwrap();
        assert!(age > 1e9, "{age}");
        assert_eq!(line(&page, "offshoot_last_commit_timestamp_seconds"), "offshoot_last_commit_timestamp_seconds 1.0");
    }

    #[test]
    fn the_replica_is_told_of_by_table() {
        let metrics = Metrics::new();
        assert!(metrics.render(PageForm::OpenMetrics).contains("offshoot_replica_age_seconds NaN\n"));
        metrics.replica_rows("public.orders", 7);
        metrics.replica_loaded("public.orders", 3, 10);
        metrics.replica_kept(1_000_000);
        let page = metrics.render(PageForm::OpenMetrics);
        for line in [
            "offshoot_replica_rows{table=\"public.orders\"} 7",
            "offshoot_replica_loaded_rows{table=\"public.orders\"} 3",
            "offshoot_replica_load_expected_rows{table=\"public.orders\"} 10",
        ] {
            assert!(page.lines().any(|has| has == line), "{line} is not in\n{page}");
        }
        let age: f64 = line(&page, "offshoot_replica_age_seconds").rsplit(' ').next().unwrap().parse().unwrap();
        assert!(age > 1e9, "{age}");
    }

    #[test]
    fn the_classic_form_names_families_as_their_samples() {
        let metrics = Metrics::new();
        metrics.set_names("shop", "offshoot_shop");
        metrics.delivered(1_000_000, 1_200_000);
        let page = metrics.render(PageForm::Classic);
        for line in [
            "# HELP offshoot_rows_total Row changes read from Postgres, by operation.",
            "# TYPE offshoot_rows_total counter",
            "# TYPE offshoot_build_info gauge",
            "# TYPE offshoot_lag_seconds gauge",
            "# TYPE process_cpu_seconds_total counter",
            "# TYPE offshoot_delivery_seconds histogram",
            "offshoot_delivery_seconds_bucket{le=\"0.25\"} 1",
            "offshoot_pipeline_info{pipeline=\"shop\",slot=\"offshoot_shop\"} 1",
        ] {
            assert!(page.lines().any(|has| has == line), "{line} is not in\n{page}");
        }
        assert!(!page.contains("# EOF") && !page.contains("# UNIT"), "{page}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gives_signs_of_life() {
        let metrics = Metrics::new();
        let before = metrics.beats();
        let beats = metrics.beating(async {
            tokio::time::sleep(BEAT_INTERVAL * 10).await;
            metrics.beats()
        });
        assert!(beats.await - before >= 9);
    }

    #[test]
    fn only_streaming_is_up_and_draining_is_the_last_state() {
        let metrics = Metrics::new();
        assert_eq!(metrics.state(), State::Starting);
        metrics.set_state(State::Streaming);
        assert!(metrics.render(PageForm::OpenMetrics).contains("offshoot_up 1\n"));
        assert!(metrics.render(PageForm::OpenMetrics).contains("offshoot_state{state=\"streaming\"} 1\n"));
        metrics.set_state(State::Draining);
        metrics.set_state(State::Retrying);
        assert_eq!(metrics.state(), State::Draining);
        assert!(metrics.render(PageForm::OpenMetrics).contains("offshoot_up 0\n"));
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        for good in ["info", "WARN", "info,offshoot::postgres=debug", "off", "rdkafka=trace,warn"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["inof", "", "info,", "offshoot=loud", "offshoot"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
        assert_eq!(
            filter("inof").unwrap_err().to_string(),
            "--log \"inof\": `inof` is no level; write a level (error, warn, info, debug, trace) or `info,offshoot::postgres=debug`"
        );
    }
}
