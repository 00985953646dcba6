//! Again after a passing fault, with backoff and jitter; an exit code after a lasting one.

use std::{future::Future, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tracing::{error, info, warn};

use crate::{
    causes::told,
    exit::Exit,
    outlets::StepError,
    pipeline::Error,
    sink::SinkError,
    source::SourceError,
    telemetry::{Metrics, State},
};

/// The first wait after a passing fault.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest wait: short enough that a database that is back is noticed at once.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// So many attempts in a row may end late with nothing committed: one or two are Kafka's, more are our own.
const LATE_MAX: u32 = 3;

/// What one attempt came to.
#[derive(Debug)]
pub struct Attempt {
    /// How it ended; `Ok` is a clean stop.
    pub result: Result<(), Error>,
    /// Something was committed on the way, so the next wait is a first one.
    pub progressed: bool,
}

/// Runs attempts until one stops cleanly or meets a lasting fault, or `shutdown` comes while it waits.
///
/// An attempt connects both ends, streams and closes. `seed` makes the jitter.
pub async fn run<F>(
    mut attempt: impl FnMut() -> F,
    shutdown: impl Future<Output = ()>,
    seed: u64,
    metrics: &Metrics,
) -> Exit
where
    F: Future<Output = Attempt>,
{
    let mut waits = backoff(seed);
    let mut late = 0;
    tokio::pin!(shutdown);
    loop {
        let Attempt { result, progressed } = attempt().await;
        let fault = match result {
            Ok(()) => return Exit::Clean,
            Err(fault) => fault,
        };
        metrics.error(kind(&fault));
        late = match &fault {
            Error::Sink(SinkError::Late(_)) if !progressed => late + 1,
            _ => 0,
        };
        if late == LATE_MAX {
            error!(exit = Exit::Sink as u8, times = late, "again and again failed to {}", told(&fault));
            return Exit::Sink;
        }
        if let Some(exit) = lasting(&fault) {
            error!(exit = exit as u8, "failed to {}", told(&fault));
            return exit;
        }
        if progressed {
            waits = backoff(seed);
        }
        let wait = waits.next().expect("they have no end");
        metrics.set_state(State::Retrying);
        warn!(retry_in = %in_milliseconds(wait), "failed to {}", told(&fault));
        tokio::select! {
            () = &mut shutdown => {
                info!("stopped while waiting to connect again");
                return Exit::Clean;
            }
            () = metrics.beating(tokio::time::sleep(wait)) => metrics.restarts.inc(),
        };
    }
}

/// The waits before what met a passing fault is tried again: they grow to a bound, and have no end. `seed` makes the jitter.
pub fn backoff(seed: u64) -> impl Iterator<Item = Duration> {
    let builder = ExponentialBuilder::new().with_min_delay(BACKOFF_MIN).with_max_delay(BACKOFF_MAX);
    builder.with_jitter().with_jitter_seed(seed).without_max_times().build()
}

/// As people read it: `202ms`, `3s 40ms`.
fn in_milliseconds(wait: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(wait.as_millis() as u64))
}

/// The exit code of a fault that does not pass.
pub fn lasting(fault: &Error) -> Option<Exit> {
    match fault {
        Error::Source(SourceError::Passing(_)) | Error::Sink(SinkError::Passing(_) | SinkError::Late(_)) => None,
        Error::Source(error) => Some(error.into()),
        Error::Sink(error) => Some(error.into()),
        Error::Record { .. } => Some(Exit::Sink),
        Error::Encode { source, .. } if source.is_config() => Some(Exit::Config),
        Error::Encode { .. } => Some(Exit::Undecodable),
        Error::Hold(StepError::Encode(_)) => Some(Exit::Undecodable),
        Error::Hold(StepError::Replica(error)) if !error.is_lasting() => None,
        Error::Spill { .. } | Error::Hold(_) => Some(Exit::Unexpected),
    }
}

/// The fault's kind, for the count of errors.
fn kind(fault: &Error) -> &'static str {
    match fault {
        Error::Source(SourceError::Passing(_)) => "source_passing",
        Error::Source(SourceError::Refused(_)) => "source_refused",
        Error::Source(SourceError::Config(_)) => "config",
        Error::Encode { source, .. } if source.is_config() => "config",
        Error::Source(SourceError::SlotLost(_)) => "slot_lost",
        Error::Source(SourceError::SlotLimit(_)) => "slot_limit",
        Error::Source(SourceError::Undecodable(_)) | Error::Encode { .. } | Error::Hold(StepError::Encode(_)) => {
            "undecodable"
        }
        Error::Source(SourceError::Spill(_)) | Error::Spill { .. } | Error::Hold(_) => "spill",
        Error::Sink(SinkError::Passing(_) | SinkError::Late(_)) => "sink_passing",
        Error::Sink(SinkError::Refused(_)) => "sink_refused",
        Error::Sink(SinkError::Record { .. }) | Error::Record { .. } => "record_refused",
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending};

    use tokio::time::Instant;

    use super::*;

    fn passing() -> Error {
        Error::Source(SourceError::Passing("connection reset".into()))
    }

    fn paused() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    #[test]
    fn a_lasting_fault_ends_with_its_exit_code_at_once() {
        let source =
            |fault: fn(Box<dyn std::error::Error + Send + Sync>) -> SourceError| Error::Source(fault("x".into()));
        let cases = [
            (source(SourceError::Refused), Exit::Source),
            (source(SourceError::Config), Exit::Config),
            (source(SourceError::SlotLost), Exit::SlotLost),
            (source(SourceError::SlotLimit), Exit::SlotLimit),
            (source(SourceError::Undecodable), Exit::Undecodable),
            (Error::Sink(SinkError::Refused("x".into())), Exit::Sink),
        ];
        for (fault, exit) in cases {
            let mut fault = Some(fault);
            let attempt = || {
                let result = Err(fault.take().expect("one attempt is enough"));
                async { Attempt { result, progressed: false } }
            };
            assert_eq!(paused().block_on(run(attempt, pending(), 1, &Metrics::new())), exit);
        }
    }

    #[test]
    fn a_passing_fault_is_tried_again_with_waits_that_grow_to_a_bound_and_start_over_after_progress() {
        paused().block_on(async {
            let waits = Cell::new(Vec::new());
            let last = Cell::new(Instant::now());
            let attempt = async || {
                let mut seen = waits.take();
                seen.push(last.replace(Instant::now()).elapsed());
                let attempts = seen.len();
                waits.set(seen);
                match attempts {
                    16 => Attempt { result: Ok(()), progressed: true },
                    _ => Attempt { result: Err(passing()), progressed: attempts == 14 },
                }
            };
            assert_eq!(run(attempt, pending(), 1, &Metrics::new()).await, Exit::Clean);
            let waits = waits.take();
            assert!(waits[1] >= BACKOFF_MIN && waits[1] <= BACKOFF_MIN * 2, "{waits:?}");
            assert!(waits[13] >= BACKOFF_MAX && waits[13] <= BACKOFF_MAX * 2, "{waits:?}");
            assert!(waits[14] <= BACKOFF_MIN * 2, "{waits:?}");
        });
    }

    #[test]
    fn what_is_late_again_and_again_and_never_gets_anywhere_lasts() {
        let late = || Err(Error::Sink(SinkError::Late("it took too long".into())));
        // Which attempts are late, in which something is committed, and how many it takes.
        type Which = fn(usize) -> bool;
        let cases: [(Which, Which, usize); 3] = [
            (|_| true, |_| false, 3),
            // Something was committed in each third.
            (|_| true, |attempt| attempt % 3 == 0 && attempt < 12, 12),
            // Another fault came in between.
            (|attempt| attempt % 3 != 0 || attempt > 12, |_| false, 15),
        ];
        for (is_late, progressed, attempts) in cases {
            let made = Cell::new(0);
            let attempt = async || {
                made.set(made.get() + 1);
                let result = if is_late(made.get()) { late() } else { Err(passing()) };
                Attempt { result, progressed: progressed(made.get()) }
            };
            assert_eq!(paused().block_on(run(attempt, pending(), 1, &Metrics::new())), Exit::Sink);
            assert_eq!(made.get(), attempts);
        }
    }

    #[test]
    fn a_stop_that_comes_while_it_waits_is_clean() {
        let attempt = async || Attempt { result: Err(passing()), progressed: false };
        let stop = async { tokio::time::sleep(Duration::from_secs(60)).await };
        assert_eq!(paused().block_on(run(attempt, stop, 1, &Metrics::new())), Exit::Clean);
    }

    #[test]
    fn waits_are_told_in_whole_milliseconds() {
        assert_eq!(in_milliseconds(Duration::from_nanos(202_593_749)).to_string(), "202ms");
        assert_eq!(in_milliseconds(Duration::from_nanos(3_040_000_001)).to_string(), "3s 40ms");
    }
}
