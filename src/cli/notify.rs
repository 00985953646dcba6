//! States and signs of life -> systemd, by sd_notify(3); nothing happens where no service manager listens.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

use crate::{
    exit::Exit,
    telemetry::{Metrics, State},
};

/// Without a watchdog the status line is still brought up to date.
const STATUS_INTERVAL: Duration = Duration::from_secs(30);
/// Signs of life are passed on this many times within what the watchdog allows.
const PINGS: u32 = 4;

/// Tells until it is dropped.
///
/// Ready is who has come to something: streaming, waiting for the slot as a standby, or waiting for a server that is away. A
/// lasting fault ends the process before that, so that `systemctl start` fails; a server that is away does not fail it, and
/// a boot does not wait for one.
pub async fn tell(metrics: Metrics, watchdog: Option<Duration>, send: impl Fn(&[NotifyState<'_>])) {
    let mut states = metrics.states();
    let interval = watchdog.map_or(STATUS_INTERVAL, |allowed| allowed / PINGS);
    let mut ticks = tokio::time::interval(interval);
    let (mut ready, mut beats) = (false, metrics.beats());
    loop {
        let state = *states.borrow_and_update();
        let status = status(state, &metrics);
        let mut say = vec![NotifyState::Status(&status)];
        match state {
            State::Starting => {}
            State::Draining => say.push(NotifyState::Stopping),
            State::Streaming | State::WaitingForSlot | State::Retrying => {
                if !ready {
                    say.push(NotifyState::Ready);
                }
                ready = true;
            }
        }
        // The task that owns the pipeline beats, not this one: when that hangs, systemd hears nothing.
        if beats != metrics.beats() {
            beats = metrics.beats();
            say.extend(watchdog.map(|_| NotifyState::Watchdog));
        }
        send(&say);
        tokio::select! {
            _ = states.changed() => {}
            _ = ticks.tick() => {}
        }
    }
}

/// Says at the end how it ended.
pub fn ended(exit: Exit) {
    let status = format!("stopped with exit code {}", exit as u8);
    send(&[NotifyState::Stopping, NotifyState::Status(&status)]);
}

fn status(state: State, metrics: &Metrics) -> String {
    match state {
        State::Streaming => format!("streaming, {:.1} s behind", metrics.lag_seconds.get()),
        other => other.as_str().into(),
    }
}

/// How long signs of life may stay out, when a watchdog waits for them.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// To `NOTIFY_SOCKET`, where there is one.
pub fn send(say: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(say) {
        warn!(%error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::{task::LocalSet, time::sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_gives_no_sign_of_life_is_not_covered_up() {
        let (metrics, said) = (Metrics::new(), Rc::new(RefCell::new(Vec::new())));
        let (log, allowed) = (said.clone(), Duration::from_secs(8));
        let heard = |from: usize, word: &str| said.borrow()[from..].iter().filter(|line| *line == word).count();
        let send = move |say: &[NotifyState<'_>]| log.borrow_mut().extend(say.iter().map(ToString::to_string));
        LocalSet::new()
            .run_until(async {
                tokio::task::spawn_local(tell(metrics.clone(), Some(allowed), send));
                metrics.beating(sleep(allowed * 2)).await;
                assert!(heard(0, "WATCHDOG=1") >= 7);
                assert_eq!(heard(0, "READY=1"), 0, "it starts still");
                metrics.set_state(State::Retrying);
                metrics.beating(sleep(allowed * 2)).await;
                metrics.set_state(State::Streaming);
                sleep(Duration::from_secs(3)).await;
                assert_eq!(heard(0, "READY=1"), 1);
                assert!(heard(0, "STATUS=retrying") > 0);
                // The runtime turns, and so does this task; the pipeline's own does not.
                let from = said.borrow().len();
                sleep(allowed * 3).await;
                assert_eq!(heard(from, "WATCHDOG=1"), 0);
                assert!(heard(from, "STATUS=streaming, 0.0 s behind") > 0);
                metrics.beat();
                sleep(allowed).await;
                assert_eq!(heard(from, "WATCHDOG=1"), 1);
                metrics.set_state(State::Draining);
                sleep(Duration::from_secs(1)).await;
                assert!(heard(from, "STOPPING=1") > 0);
            })
            .await;
    }
}
