//! What was measured, as it is in the JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    counted::Received,
    machine::About,
    readers::{Kind, Reader},
};

/// Everything of one run; what was not asked for is empty.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) about: About,
    pub(crate) drained: Vec<Drained>,
    pub(crate) tls: Option<Drained>,
    pub(crate) latency: Vec<Latency>,
    pub(crate) recovery: Option<Recovery>,
    pub(crate) starts: Vec<Starts>,
    pub(crate) idle: Option<Idle>,
}

/// A backlog, and who has read it how.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Drained {
    pub(crate) shape: String,
    pub(crate) about: String,
    pub(crate) label: String,
    pub(crate) rows: u64,
    /// It is one transaction, and times count from when the reader streams.
    pub(crate) single: bool,
    pub(crate) usual: bool,
    pub(crate) reads: Vec<Read>,
}

/// All turns of a reader.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Read {
    pub(crate) reader: Reader,
    pub(crate) turns: Vec<Turn>,
}

/// One reader's turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Turn {
    pub(crate) rows: u64,
    /// From the first row to the last.
    pub(crate) seconds: f64,
    /// From when it streams to the last row.
    pub(crate) seconds_streaming: f64,
    /// Of the process since it streams, or of the thread that reads; in user and system mode.
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_mib: Option<f64>,
    pub(crate) segments_per_row: Option<f64>,
    /// Processor time of the walsender that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) walsender_seconds: Option<f64>,
    /// Processor time of Kafka's broker meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kafka_seconds: Option<f64>,
    /// Of a peer: seconds to its first record, and of processor time until then, which are in nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) start: Option<(f64, f64)>,
}

impl Turn {
    /// So many rows in this time, and in this one since it streams.
    pub(crate) fn of(rows: u64, took: Duration, streaming: Duration) -> Turn {
        Turn {
            rows,
            seconds: took.as_secs_f64(),
            seconds_streaming: streaming.as_secs_f64(),
            cpu_seconds: 0.0,
            peak_mib: None,
            segments_per_row: None,
            walsender_seconds: None,
            kafka_seconds: None,
            start: None,
        }
    }

    /// With what it took, where that is known.
    pub(crate) fn with(self, cpu: Duration, peak: Option<u64>, received: Option<Received>) -> Turn {
        let rows = self.rows as f64;
        Turn {
            cpu_seconds: cpu.as_secs_f64(),
            peak_mib: peak.map(mib),
            segments_per_row: received.map(|received| received.segments as f64 / rows),
            walsender_seconds: received.map(|received| received.walsender.as_secs_f64()),
            ..self
        }
    }

    fn rate(&self, single: bool) -> f64 {
        self.rows as f64 / if single { self.seconds_streaming } else { self.seconds }
    }
}

impl Drained {
    /// The turns of a reader, if it had some.
    pub(crate) fn read(&self, reader: Reader) -> Option<&Read> {
        self.reads.iter().find(|read| read.reader == reader && !read.turns.is_empty())
    }

    /// Rows a second, in the median of the rounds.
    pub(crate) fn rate(&self, reader: Reader) -> Option<f64> {
        median(self.rates(reader))
    }

    /// Rows a second, in each round.
    pub(crate) fn rates(&self, reader: Reader) -> Vec<f64> {
        self.read(reader).into_iter().flat_map(|read| &read.turns).map(|turn| turn.rate(self.single)).collect()
    }

    /// Its rate over another one's; over the best one's with as much memory.
    pub(crate) fn ratio(&self, reader: Reader, to: Kind) -> Option<f64> {
        let usual = Reader::of(to);
        let alike = Reader { memory: reader.memory && to == Kind::Best, ..usual };
        Some(self.rate(reader)? / self.rate(alike).or_else(|| self.rate(usual))?)
    }
}

impl Read {
    /// In the median of the rounds.
    pub(crate) fn cpu_microseconds_per_row(&self) -> Option<f64> {
        self.microseconds_per_row(|turn| Some(turn.cpu_seconds))
    }

    /// Of some seconds of each turn, in the median of the rounds.
    pub(crate) fn microseconds_per_row(&self, seconds: fn(&Turn) -> Option<f64>) -> Option<f64> {
        median(self.turns.iter().filter_map(|turn| Some(seconds(turn)? * 1e6 / turn.rows as f64)))
    }

    /// The most of all rounds.
    pub(crate) fn peak_mib(&self) -> Option<f64> {
        self.turns.iter().filter_map(|turn| turn.peak_mib).reduce(f64::max)
    }

    /// In the median of the rounds.
    pub(crate) fn segments_per_row(&self) -> Option<f64> {
        median(self.turns.iter().filter_map(|turn| turn.segments_per_row))
    }
}

/// From a commit to a consumer.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) what: String,
    /// `sink.kafka.delivery`; `None` of Kafka alone.
    pub(crate) delivery: Option<String>,
    pub(crate) per_second: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) counted: usize,
}

/// After kill -9 in the middle of a backlog.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Recovery {
    pub(crate) wal_mib: f64,
    pub(crate) rows: u64,
    /// Of these, what a reader of committed saw before the kill.
    pub(crate) rows_before: u64,
    /// From the new process to its first record.
    pub(crate) seconds_to_first: f64,
    /// From the new process to the last record.
    pub(crate) seconds_to_last: f64,
    /// As a reader of committed sees it.
    pub(crate) duplicates: u64,
    pub(crate) missing: u64,
}

/// From exec to the first record.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Starts {
    pub(crate) delivery: String,
    pub(crate) milliseconds: Vec<f64>,
}

impl Starts {
    pub(crate) fn median(&self) -> f64 {
        median(self.milliseconds.iter().copied()).unwrap_or_default()
    }
}

/// A pipeline of a database that nobody writes to.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Idle {
    pub(crate) seconds: f64,
    /// Of one core.
    pub(crate) cpu_percent: f64,
    pub(crate) resident_mib: f64,
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// `None` of nothing.
pub(crate) fn median(of: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut all: Vec<f64> = of.into_iter().collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}
