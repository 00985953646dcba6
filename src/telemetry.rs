//! What happens -> log lines on stderr, and numbers for `/metrics`.

use std::{
    io::{self, IsTerminal},
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Metric, Registry, Unit},
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::change::Micros;

/// What is logged, and how.
#[derive(Clone, Copy, Debug)]
pub struct Logs<'a> {
    /// How a line looks.
    pub format: LogFormat,
    /// Levels, by module if wanted.
    pub filter: &'a str,
}

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

/// Sends `tracing`, and the `log` of libraries such as rdkafka, to stderr.
pub fn init(logs: Logs<'_>) -> Result<(), LogError> {
    let registry = tracing_subscriber::registry().with(filter(logs.filter)?);
    let lines = fmt::layer().with_writer(io::stderr);
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpLabel {
    op: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    kind: &'static str,
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
    /// Transactions that went to a spill file.
    pub spilled_transactions: Counter,
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
    /// Bytes sent and not acknowledged.
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

    errors: Family<ErrorLabel, Counter>,
    last_commit: Gauge<f64, AtomicU64>,
    since_last_commit: Gauge<f64, AtomicU64>,
    up: Gauge<u64, AtomicU64>,
    states: Family<StateLabel, Gauge<u64, AtomicU64>>,
    state: AtomicU8,
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
        let mut of = Book { registry: Registry::with_prefix("offshoot") };
        let rows: Family<OpLabel, Counter> = of.family("rows", "Row changes read from Postgres, by operation");
        let row = |op| rows.get_or_create_owned(&OpLabel { op });
        let version: Info<Vec<(&str, &str)>> = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        of.registry.register("build", "The program that answers", version);
        let metrics = Self(Arc::new(Seams {
            rows: Rows {
                insert: row("insert"),
                update: row("update"),
                delete: row("delete"),
                truncate: row("truncate"),
            },
            transactions: of.plain("transactions", "Transactions read whole from Postgres"),
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
            in_flight_bytes: of.unit("in_flight", "Bytes sent to Kafka and not acknowledged", Unit::Bytes),
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
            state: AtomicU8::new(State::Starting as u8),
            registry: of.registry,
        }));
        metrics.last_commit.set(f64::NAN);
        for kind in ERROR_KINDS {
            drop(metrics.errors.get_or_create(&ErrorLabel { kind }));
        }
        metrics.set_state(State::Starting);
        metrics
    }

    /// What the pipeline is doing from now on. Draining is the last: nothing leads out of it.
    pub fn set_state(&self, state: State) {
        let draining = State::Draining as u8;
        let set = |now| (now != draining).then_some(state as u8);
        if self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set).is_err() {
            return;
        }
        self.up.set(u64::from(state == State::Streaming));
        for each in State::ALL {
            let label = StateLabel { state: each.as_str().replace(' ', "_") };
            self.states.get_or_create(&label).set(u64::from(each == state));
        }
    }

    /// What the pipeline is doing.
    pub fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Ordering::Relaxed))]
    }

    /// A transaction that was committed then has been delivered.
    pub fn delivered_commit(&self, time: Micros) {
        self.last_commit.set(time as f64 / 1e6);
    }

    /// Something of this kind, one of `ERROR_KINDS`, ended the stream.
    pub fn error(&self, kind: &'static str) {
        debug_assert!(ERROR_KINDS.contains(&kind));
        self.errors.get_or_create(&ErrorLabel { kind }).inc();
    }

    /// All numbers in OpenMetrics' text form.
    pub fn render(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // Clocks of two machines: never negative.
        self.since_last_commit.set(if self.last_commit.get().is_nan() {
            f64::NAN
        } else {
            (now - self.last_commit.get()).max(0.0)
        });
        let mut page = String::new();
        text::encode(&mut page, &self.registry).expect("writing to a String cannot fail");
        page
    }
}

/// The values of the label `kind` of `offshoot_errors_total`, so that each is there with 0 before it happens.
pub const ERROR_KINDS: [&str; 9] = [
    "source_passing",
    "source_refused",
    "config",
    "slot_lost",
    "undecodable",
    "spill",
    "sink_passing",
    "sink_refused",
    "record_refused",
];

/// A registry that hands out what it registers.
struct Book {
    registry: Registry,
}

impl Book {
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
        let page = Metrics::new().render();
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
            "offshoot_up",
            "offshoot_state",
            "offshoot_build_info",
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
        let page = metrics.render();
        assert!(page.contains("offshoot_rows_total{op=\"update\"} 3\n"), "{page}");
        assert!(page.contains("offshoot_errors_total{kind=\"sink_refused\"} 1\n"), "{page}");
        assert!(page.contains("offshoot_errors_total{kind=\"slot_lost\"} 0\n"), "{page}");
    }

    #[test]
    fn the_age_of_the_last_commit_is_unknown_before_the_first() {
        let metrics = Metrics::new();
        assert_eq!(
            line(&metrics.render(), "offshoot_since_last_commit_seconds"),
            "offshoot_since_last_commit_seconds NaN"
        );
        metrics.delivered_commit(1_000_000);
        let page = metrics.render();
        let age: f64 = line(&page, "offshoot_since_last_commit_seconds").rsplit(' ').next().unwrap().parse().unwrap();
        assert!(age > 1e9, "{age}");
        assert_eq!(line(&page, "offshoot_last_commit_timestamp_seconds"), "offshoot_last_commit_timestamp_seconds 1.0");
    }

    #[test]
    fn only_streaming_is_up_and_draining_is_the_last_state() {
        let metrics = Metrics::new();
        assert_eq!(metrics.state(), State::Starting);
        metrics.set_state(State::Streaming);
        assert!(metrics.render().contains("offshoot_up 1\n"));
        assert!(metrics.render().contains("offshoot_state{state=\"streaming\"} 1\n"));
        metrics.set_state(State::Draining);
        metrics.set_state(State::Retrying);
        assert_eq!(metrics.state(), State::Draining);
        assert!(metrics.render().contains("offshoot_up 0\n"));
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
