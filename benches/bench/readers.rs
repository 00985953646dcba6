//! Who reads a backlog.

use std::{env, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::shapes::Shape;

/// Who reads, and what it is given besides its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reader {
    pub(crate) kind: Kind,
    /// 512 MB for `logical_decoding_work_mem`, asked for by the session; else the server's 64 MB.
    #[serde(default, skip_serializing_if = "is_not")]
    pub(crate) memory: bool,
    /// `source.streaming`: it is read before it commits.
    #[serde(default, skip_serializing_if = "is_not")]
    pub(crate) streamed: bool,
    /// `sslmode=require`.
    #[serde(default, skip_serializing_if = "is_not")]
    pub(crate) tls: bool,
}

fn is_not(flag: &bool) -> bool {
    !flag
}

/// A program that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Reads what is there as fast as it can, and does nothing with it.
    Eager,
    /// Waits half a millisecond between reads of 16 KiB at most.
    Plain,
    /// Our own replication session, which adapts its reads; what comes is counted and thrown away.
    Best,
    /// Postgres' own client.
    PgRecvlogical,
    ChangesAtLeastOnce,
    ChangesExactlyOnce,
    Events,
    EventsWithReplica,
    /// On Kafka Connect; with `PEERS=1`.
    Debezium,
}

use Kind::*;

impl Kind {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Kind; 9] = [
        Eager,
        Plain,
        Best,
        PgRecvlogical,
        ChangesAtLeastOnce,
        ChangesExactlyOnce,
        Events,
        EventsWithReplica,
        Debezium,
    ];

    /// For `READERS`, and in the JSON.
    pub(crate) fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|name| Some(name.as_str()?.to_owned()))
            .expect("a unit variant is a text")
    }

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Eager => "eager",
            Plain => "plain",
            Best => "best",
            PgRecvlogical => "`pg_recvlogical`",
            ChangesAtLeastOnce => "`changes`, at least once",
            ChangesExactlyOnce => "`changes`, exactly once",
            Events => "`events`",
            EventsWithReplica => "`events`, replica",
            Debezium => "Debezium, at least once",
        }
    }

    /// Whether it is a pipeline of the program's.
    pub(crate) fn publishes(self) -> bool {
        matches!(self, ChangesAtLeastOnce | ChangesExactlyOnce | Events | EventsWithReplica)
    }

    /// Whether it publishes row changes.
    pub(crate) fn is_changes(self) -> bool {
        matches!(self, ChangesAtLeastOnce | ChangesExactlyOnce)
    }

    /// `sink.kafka.delivery`.
    pub(crate) fn delivery(self) -> &'static str {
        if self == ChangesAtLeastOnce { "at_least_once" } else { "exactly_once" }
    }

    /// How many records it makes of so many rows.
    pub(crate) fn records(self, shape: &Shape, rows: u64) -> u64 {
        if matches!(self, Events | EventsWithReplica) { rows / shape.per_event } else { rows }
    }
}

impl Reader {
    pub(crate) const fn of(kind: Kind) -> Reader {
        Reader { kind, memory: false, streamed: false, tls: false }
    }

    /// How many turns it has in so many rounds; the last ones. Another's program takes as long as everybody else together.
    pub(crate) fn turns(self, rounds: usize) -> usize {
        if self.kind == Debezium { 1 } else { rounds }
    }

    /// For people.
    pub(crate) fn title(self) -> String {
        let with = [(self.memory, ", 512 MB"), (self.streamed, ", streamed"), (self.tls, ", TLS")];
        let with: String = with.into_iter().filter_map(|(has, with)| has.then_some(with)).collect();
        format!("{}{with}", self.kind.title())
    }
}

/// Who reads a shape, of those that are asked for.
pub(crate) fn of(shape: &Shape, asked: &[Kind]) -> Vec<Reader> {
    let has_sense = |kind: &Kind| match kind {
        Events => !shape.events.is_empty(),
        EventsWithReplica => !shape.look_ups.is_empty(),
        PgRecvlogical => pg_recvlogical().is_some(),
        Debezium => peers(),
        // One is enough of what takes longest; both are read with more memory.
        ChangesAtLeastOnce => !shape.is_single(),
        _ => true,
    };
    let usual = asked.iter().filter(|kind| has_sense(kind)).map(|kind| Reader::of(*kind));
    let larger = asked.iter().filter(|kind| shape.is_single() && (kind.is_changes() || matches!(kind, Best | Events)));
    let larger = larger.map(|kind| Reader { memory: true, ..Reader::of(*kind) });
    let streamed = asked.iter().filter(|kind| shape.is_single() && **kind == ChangesExactlyOnce);
    let streamed = streamed.map(|kind| Reader { streamed: true, ..Reader::of(*kind) });
    usual.chain(larger).chain(streamed).collect()
}

/// Whether others' programs take part.
pub(crate) fn peers() -> bool {
    env::var("PEERS").is_ok_and(|text| !text.trim().is_empty())
}

/// Where Postgres' own client is, if it is installed.
pub(crate) fn pg_recvlogical() -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join("pg_recvlogical")).find(|path| path.is_file())
}
