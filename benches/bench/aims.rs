//! Results -> how far each aim is met.

use crate::{
    readers::{Kind, Reader},
    results::{Drained, Latency, Read, Results},
};

/// One thing that was aimed for.
pub(crate) struct Aim {
    pub(crate) what: &'static str,
    pub(crate) wanted: String,
    pub(crate) measured: String,
    pub(crate) met: bool,
}

/// Of at least so much, or of at most so much.
#[derive(Clone, Copy)]
enum Bound {
    Least(f64),
    Most(f64),
}

impl Bound {
    /// The value of all that is furthest from the aim.
    fn worst<T>(self, all: impl IntoIterator<Item = (f64, T)>) -> Option<(f64, T)> {
        all.into_iter().reduce(|one, other| if self.is_worse(other.0, one.0) { other } else { one })
    }

    fn is_worse(self, one: f64, than: f64) -> bool {
        match self {
            Bound::Least(_) => one < than,
            Bound::Most(_) => one > than,
        }
    }

    fn is_met(self, by: f64) -> bool {
        match self {
            Bound::Least(least) => by >= least,
            Bound::Most(most) => by <= most,
        }
    }
}

/// `limits.replica_cache` unless a config says otherwise.
const REPLICA_CACHE_MIB: f64 = 32.0;
const CHANGES: [Kind; 2] = [Kind::ChangesAtLeastOnce, Kind::ChangesExactlyOnce];

/// All aims of which something was measured.
pub(crate) fn of(results: &Results) -> Vec<Aim> {
    let drained = &results.drained;
    let mut aims = Vec::new();
    let mut aim = |what, wanted: &str, measured: Option<(String, bool)>| {
        aims.extend(measured.map(|(measured, met)| Aim { what, wanted: wanted.into(), measured, met }));
    };
    let usual = |drained: &&Drained| drained.usual;
    let unusual = |drained: &&Drained| !drained.usual;
    let ratio = |to: Kind| move |drained: &Drained, read: &Read| drained.ratio(read.reader, to);

    aim(
        "backlogs: `changes` publishes at the rate of the best reader that throws everything away",
        "≥ 0.9 of its rate, each shape, both deliveries",
        worst(drained.iter().filter(usual), Kind::is_changes, Bound::Least(0.9), "", ratio(Kind::Best)),
    );
    aim(
        "backlogs: and of a plain reader that throws everything away",
        "≥ 1.0 of its rate, each shape, both deliveries",
        worst(drained.iter().filter(usual), Kind::is_changes, Bound::Least(1.0), "", ratio(Kind::Plain)),
    );
    aim(
        "the same, in every single round",
        "never below 0.9",
        worst(drained.iter().filter(usual), Kind::is_changes, Bound::Least(0.9), "", |drained, read| {
            let plain = drained.rate(Reader::of(Kind::Plain))?;
            drained.rates(read.reader).into_iter().map(|rate| rate / plain).reduce(f64::min)
        }),
    );
    aim(
        "one huge transaction, with 512 MB of decoding memory asked for, from when it streams",
        "≥ 2 × the plain reader with the server's 64 MB",
        drained.iter().find(|drained| drained.single).and_then(|drained| {
            let all = CHANGES.map(|kind| Reader { memory: true, ..Reader::of(kind) });
            let all = all.into_iter().filter_map(|reader| Some((drained.ratio(reader, Kind::Plain)?, reader.title())));
            said(all.collect(), Bound::Least(2.0), " ×")
        }),
    );
    aim(
        "a hundred columns; values of 10 kB",
        "≥ 0.9 of the best reader, both deliveries",
        worst(drained.iter().filter(unusual), Kind::is_changes, Bound::Least(0.9), "", ratio(Kind::Best)),
    );
    let cpu = |_: &Drained, read: &Read| read.cpu_microseconds_per_row();
    aim(
        "processor time, `changes`, rows of usual size",
        "≤ 3 µs a row",
        worst(drained.iter().filter(usual), Kind::is_changes, Bound::Most(3.0), " µs", cpu),
    );
    aim(
        "processor time, `events`, rows of usual size",
        "≤ 5 µs a row",
        worst(drained.iter().filter(usual), |kind| kind == Kind::Events, Bound::Most(5.0), " µs", cpu),
    );
    aim(
        "resident memory at its peak, while a backlog is drained",
        "≤ 48 MiB",
        worst(
            drained.iter(),
            |kind| kind.publishes() && kind != Kind::EventsWithReplica,
            Bound::Most(48.0),
            " MiB",
            |_, read| read.peak_mib(),
        ),
    );
    aim(
        "the same with the replica, which is told to take 32 MiB for its cache (`limits.replica_cache`)",
        "≤ 48 MiB and the cache",
        worst(
            drained.iter(),
            |kind| kind == Kind::EventsWithReplica,
            Bound::Most(48.0 + REPLICA_CACHE_MIB),
            " MiB",
            |_, read| read.peak_mib(),
        ),
    );
    aim(
        "idle",
        "≤ 20 MiB, ≤ 0.5 % of a core",
        results.idle.as_ref().map(|idle| {
            let met = idle.resident_mib <= 20.0 && idle.cpu_percent <= 0.5;
            (format!("{:.2} MiB, {:.2} %", idle.resident_mib, idle.cpu_percent), met)
        }),
    );
    aim(
        "latency at 500 commits a second, at least once",
        "p50 ≤ 1 ms, p99 ≤ 5 ms",
        latency(results, "at_least_once", 500, 1.0, Some(5.0)),
    );
    aim("latency at 20 commits a second, exactly once", "p50 ≤ 5 ms", latency(results, "exactly_once", 20, 5.0, None));
    aim(
        "latency at 500 commits a second, exactly once",
        "p50 ≤ 10 ms, p99 ≤ 20 ms",
        latency(results, "exactly_once", 500, 10.0, Some(20.0)),
    );
    aim("from start to the first record", "≤ 300 ms", {
        let all = results.starts.iter().map(|starts| (starts.median(), in_words(&starts.delivery).to_owned()));
        said(all.collect(), Bound::Most(300.0), " ms")
    });
    aim(
        "kill -9 in a backlog: what a reader of committed sees twice, or not at all",
        "nothing",
        results.recovery.as_ref().map(|recovery| {
            let words = format!("{} twice, {} missing, of {}", recovery.duplicates, recovery.missing, recovery.rows);
            (words, recovery.duplicates + recovery.missing == 0)
        }),
    );
    aims
}

/// `delivery` for people.
pub(crate) fn in_words(delivery: &str) -> &str {
    if delivery == "at_least_once" { "at least once" } else { "exactly once" }
}

/// The worst of some readers over some shapes.
fn worst<'a>(
    drained: impl Iterator<Item = &'a Drained>,
    whose: impl Fn(Kind) -> bool,
    bound: Bound,
    unit: &str,
    value: impl Fn(&Drained, &Read) -> Option<f64>,
) -> Option<(String, bool)> {
    let mut all = Vec::new();
    for drained in drained {
        for read in drained.reads.iter().filter(|read| whose(read.reader.kind)) {
            all.extend(
                value(drained, read).map(|value| (value, format!("{}, {}", drained.label, read.reader.title()))),
            );
        }
    }
    said(all, bound, unit)
}

fn said(all: Vec<(f64, String)>, bound: Bound, unit: &str) -> Option<(String, bool)> {
    let (count, met) = (all.len(), all.iter().filter(|(value, _)| bound.is_met(*value)).count());
    let (value, whose) = bound.worst(all)?;
    let value = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    let how_many = if count > 1 { format!("{met} of {count}; ") } else { String::new() };
    Some((format!("{how_many}the worst {value}{unit} ({whose})"), met == count))
}

fn latency(results: &Results, delivery: &str, rate: u64, p50: f64, p99: Option<f64>) -> Option<(String, bool)> {
    let of = |latency: &&Latency| latency.delivery.as_deref() == Some(delivery) && latency.per_second == rate;
    let found = results.latency.iter().find(of)?;
    let met = found.p50_ms <= p50 && p99.is_none_or(|p99| found.p99_ms <= p99);
    Some((format!("p50 {:.1} ms, p99 {:.1} ms", found.p50_ms, found.p99_ms), met))
}
