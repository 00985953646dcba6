//! A day in minutes: idle, load, idle, a restart of Postgres, of Kafka, again and again -> the slot follows, memory stays
//! flat, nothing is missing, and nobody reconnects who was not made to.

use std::{
    env, fs,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    support::{
        kafka::{self, Broker},
        postgres::{self, Server, Session, V17},
        program::{self, Config, Offshoot},
        wait,
    },
    workload::{self, TABLE, Workload},
};

/// `make endurance` takes ten minutes of it.
const SECONDS: u64 = 40;
const DEADLINE: Duration = Duration::from_secs(120);
/// Between two transactions of a session.
const PAUSE: Duration = Duration::from_millis(30);
/// What the allocator, librdkafka's queues and metadata may come and go by. A leak of one record per second would pass in a
/// minute and not in ten.
const MEMORY_DRIFT_MAX: f64 = 6.0;

/// One hour of the day.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hour {
    Load,
    Idle,
    RestartPostgres,
    RestartKafka,
}

use Hour::{Idle, Load, RestartKafka, RestartPostgres};

/// Load comes after each restart, and idleness after each load.
const DAY: [Hour; 8] = [Idle, Load, Idle, RestartPostgres, Load, Idle, RestartKafka, Load];

struct Day {
    server: Server,
    broker: Broker,
    offshoot: Offshoot,
    workload: Workload,
    /// Starts of the stream after the first, so far.
    restarts: f64,
    /// Resident MiB at the end of each round, and the most that the server kept for the slot.
    resident: Vec<f64>,
    retained_max: u64,
}

impl Day {
    fn session(&self) -> Session {
        Session::connect(&self.server.url("postgres")).unwrap()
    }

    fn metric(&self, name: &str) -> f64 {
        self.offshoot.metric(name).unwrap_or_else(|| panic!("{name}; its log:\n{}", self.offshoot.log().join("\n")))
    }

    /// Resident memory in MiB.
    fn resident(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.offshoot.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// A phase in which nothing happens but what the sessions do.
    fn pass(&mut self, hour: Hour, lasts: Duration) {
        let restarts = self.metric("offshoot_restarts_total");
        if hour == Load {
            self.workload.start(fastrand::u64(..), PAUSE);
        }
        let ended = wait::attempt(lasts, || self.offshoot.process().exited());
        assert!(ended.is_err(), "it ended; its log:\n{}", self.offshoot.log().join("\n"));
        if hour == Load {
            self.workload.stop();
        }
        self.follows();
        assert_eq!(self.metric("offshoot_restarts_total"), restarts, "{hour:?}: somebody reconnected unasked");
        assert_eq!(self.metric("offshoot_up"), 1.0);
    }

    /// Waits until the slot has followed to here: all is confirmed, and the server may remove the log before it.
    fn follows(&mut self) {
        let session = self.session();
        let end = session.text("SELECT pg_current_wal_lsn()");
        let behind = format!(
            "SELECT confirmed_flush_lsn >= '{end}' AND restart_lsn >= '{end}' FROM pg_replication_slots
             WHERE slot_name = 'offshoot_endurance'"
        );
        let retained = "SELECT pg_current_wal_lsn() - restart_lsn FROM pg_replication_slots";
        self.retained_max = self.retained_max.max(session.text(retained).parse().unwrap());
        self.offshoot.wait("the slot to follow", DEADLINE, |_| {
            // The restart position moves when the log says which transactions run, as a checkpoint does.
            session.execute("CHECKPOINT");
            (session.text(&behind) == "t").then_some(())
        });
    }

    /// Restarts a server, and counts who had to reconnect.
    fn restart(&mut self, hour: Hour) {
        match hour {
            RestartPostgres => {
                let began = Instant::now();
                self.server.stop();
                assert!(began.elapsed() < Duration::from_secs(10), "the shutdown took {:?}", began.elapsed());
                self.server.start();
            }
            RestartKafka => {
                self.broker.stop();
                self.broker.start();
            }
            Load | Idle => unreachable!("these restart nothing"),
        }
        self.offshoot.wait_ready(DEADLINE);
        self.follows();
        self.restarts = self.metric("offshoot_restarts_total");
    }
}

#[test]
fn a_day_in_minutes() {
    let seconds = env::var("OFFSHOOT_TEST_ENDURANCE").map_or(SECONDS, |text| text.parse().expect("a number"));
    let began = Instant::now();
    let server = postgres::private(V17, &[("wal_sender_timeout", "5s")]);
    let broker = kafka::private(&kafka::Options::default());
    let url = server.url("postgres");
    let config = program::config("endurance", &url, broker.address(), &[TABLE]) + "limits: { memory: 8MiB }";
    let config = Config::new(&config);
    let workload = Workload::create(&url);
    let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
    command.arg("run").arg("-c").arg(&config.path);
    let mut offshoot = Offshoot::start(command, &config);
    offshoot.wait_ready(program::START_MAX);
    let mut day = Day { server, broker, offshoot, workload, restarts: 0.0, resident: Vec::new(), retained_max: 0 };

    let phases = DAY.iter().filter(|hour| matches!(hour, Load | Idle)).count() as u64;
    let rounds = (seconds / 100).max(1);
    let lasts = Duration::from_secs(seconds) / (rounds * phases) as u32;
    for round in 0..rounds {
        for hour in DAY {
            match hour {
                Load | Idle => day.pass(hour, lasts),
                RestartPostgres | RestartKafka => day.restart(hour),
            }
            day.resident.push(day.resident());
        }
        println!(
            "round {round} after {:.0?}: resident {:.1?} MiB, {} restarts of the stream, {} transactions committed",
            began.elapsed(),
            &day.resident[day.resident.len() - DAY.len()..],
            day.restarts,
            day.workload.committed()
        );
    }

    // Whatever comes of load and restarts is there after the first round, or half of the only one; from then on it stays.
    let most = |resident: &[f64]| resident.iter().copied().fold(0.0, f64::max);
    let part = DAY.len().min(day.resident.len() / 2);
    let (first, last) = (most(&day.resident[..part]), most(&day.resident[day.resident.len() - part..]));
    let restarts = day.restarts as usize;
    let status = day.offshoot.terminate(program::START_MAX);
    assert!(status.success(), "{status}; its log:\n{}", day.offshoot.log().join("\n"));
    let topic = workload::read(&day.broker, &format!("endurance.{TABLE}"), DEADLINE);
    let summary = day.workload.check(&topic, 1 + restarts, &[]);
    println!(
        "{:.0?}: {summary:?}; {restarts} restarts of the stream in {rounds} restarts of each server; resident at most {first:.1} \
         MiB at first and {last:.1} at last; the server kept {:.1} MiB for the slot at most",
        began.elapsed(),
        day.retained_max as f64 / f64::from(1 << 20)
    );
    assert!(summary.records > 0, "the day tells of nothing");
    assert!(last < first + MEMORY_DRIFT_MAX, "memory grew from {first:.1} to {last:.1} MiB");
}
