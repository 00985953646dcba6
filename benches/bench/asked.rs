//! The environment -> what is to be measured.

use std::{env, path::PathBuf, time::Duration};

use crate::{
    readers::{self, Kind},
    shapes::{ROWS, SHAPES, Shape},
};

/// What there is to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Drain,
    Tls,
    Latency,
    Recovery,
    Start,
    Idle,
}

const PARTS: [(&str, Part); 6] = [
    ("drain", Part::Drain),
    ("tls", Part::Tls),
    ("latency", Part::Latency),
    ("recovery", Part::Recovery),
    ("start", Part::Start),
    ("idle", Part::Idle),
];

/// Variables that say what is measured, as they are told in the results.
const VARIABLES: [&str; 11] = [
    "PEERS",
    "PARTS",
    "SHAPES",
    "READERS",
    "ROWS",
    "ROUNDS",
    "WARM_UP",
    "SECONDS",
    "WAL_MIB",
    "STARTS",
    "IDLE_SECONDS",
];

/// What is to be measured, and how much of it.
pub(crate) struct Asked {
    pub(crate) parts: Vec<Part>,
    pub(crate) shapes: Vec<Shape>,
    pub(crate) readers: Vec<Kind>,
    /// Of the usual shapes; the others have as many more or fewer as by themselves.
    pub(crate) rows: u64,
    pub(crate) rounds: usize,
    /// Rounds of the first shape that are not counted.
    pub(crate) warm_up: usize,
    /// Of each case of latency.
    pub(crate) latency: Duration,
    /// Of the backlog in which the program is killed.
    pub(crate) wal_mib: u64,
    pub(crate) starts: usize,
    pub(crate) idle: Duration,
    /// `docs/benchmarks.*` are written again.
    pub(crate) writes: bool,
    /// Nothing is measured: the page and the chart are made of these results.
    pub(crate) from: Option<PathBuf>,
}

impl Asked {
    pub(crate) fn read() -> Asked {
        let kinds = Kind::ALL.map(|kind| (kind.name(), kind));
        Asked {
            parts: chosen("PARTS", &PARTS.map(|(name, part)| (name.to_owned(), part))),
            shapes: chosen("SHAPES", &SHAPES.map(|shape| (shape.name.to_owned(), shape))),
            readers: chosen("READERS", &kinds),
            rows: number("ROWS", ROWS),
            rounds: number("ROUNDS", 3).max(1) as usize,
            warm_up: number("WARM_UP", 1) as usize,
            latency: Duration::from_secs(number("SECONDS", 10)),
            wal_mib: number("WAL_MIB", 1024),
            starts: number("STARTS", 9) as usize,
            idle: Duration::from_secs(number("IDLE_SECONDS", 20)),
            writes: given("WRITE").is_some(),
            from: given("FROM").map(PathBuf::from),
        }
    }

    pub(crate) fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    /// How to measure it again.
    pub(crate) fn command(&self) -> String {
        let set = VARIABLES.iter().filter_map(|name| Some(format!(" {name}=\"{}\"", given(name)?)));
        format!("make {}{}", if self.writes { "benchmarks" } else { "bench" }, set.collect::<String>())
    }

    /// How many turns readers have in all, and about how long everything takes on two cores where nothing else runs.
    pub(crate) fn estimate(&self) -> (u64, Duration) {
        // What a turn takes besides its rows: of the program a start, a stop and a slot, of the others next to nothing.
        const TURN: f64 = 1.7;
        // Writing a row to the table.
        const WRITE: f64 = 30e-6;
        let (mut turns, mut seconds) = (0, 15.0);
        let mut add = |shape: &Shape, all: usize| {
            let rows = shape.size(self.rows).0 as f64;
            turns += all as u64;
            seconds += rows * WRITE + all as f64 * (TURN + rows * shape.estimate as f64 / 1e6);
        };
        if self.has(Part::Drain) {
            for (at, shape) in self.shapes.iter().enumerate() {
                let warm_up = if at == 0 { self.warm_up } else { 0 };
                let readers = readers::of(shape, &self.readers);
                add(shape, readers.iter().map(|reader| reader.turns(self.rounds + warm_up)).sum());
            }
        }
        if self.has(Part::Tls) {
            add(&SHAPES[0], 5 * self.rounds);
        }
        for (part, takes) in [
            (Part::Latency, 20.0 + 7.0 * (self.latency.as_secs_f64() + 4.0)),
            (Part::Recovery, self.wal_mib as f64 / 1024.0 * 70.0),
            (Part::Start, self.starts as f64 * 2.0 * 1.5),
            (Part::Idle, self.idle.as_secs_f64() + 8.0),
        ] {
            seconds += if self.has(part) { takes } else { 0.0 };
        }
        (turns, Duration::from_secs_f64(seconds))
    }
}

fn given(name: &str) -> Option<String> {
    env::var(name).ok().filter(|text| !text.trim().is_empty())
}

fn number(name: &str, usual: u64) -> u64 {
    given(name).map_or(usual, |text| text.trim().parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

/// What a list of names asks for; all of it without one.
fn chosen<T: Clone>(variable: &str, all: &[(String, T)]) -> Vec<T> {
    let Some(text) = given(variable) else { return all.iter().map(|(_, value)| value.clone()).collect() };
    let named = |name: &str| {
        let found = all.iter().find(|(known, _)| known == name);
        let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
        found.unwrap_or_else(|| panic!("{variable} are {}, not {name}", names.join(", "))).1.clone()
    };
    text.split_whitespace().map(named).collect()
}
