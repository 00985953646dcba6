//! `offshoot run`: the process around the stream: probes, signals, the end.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    admin,
    config::Config,
    exit::Exit,
    telemetry::{Metrics, State},
};

use super::{bars::Bars, notify, stream::stream};

/// Answers probes and publishes until it ends; SIGTERM or SIGINT asks for a clean stop.
pub async fn run(config: &Config, bars: &Bars) -> Exit {
    let metrics = Metrics::new();
    metrics.set_names(&config.name, &config.slot());
    let shutdown = CancellationToken::new();
    let (terminate, interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            error!(%error, "cannot listen for signals");
            return Exit::Unexpected;
        }
    };
    let probes = match admin::bind(&config.admin).await {
        Ok(endpoint) => tokio::spawn(admin::serve(endpoint, metrics.clone())),
        Err(error) => {
            error!("{error}");
            return Exit::Config;
        }
    };
    let signals = tokio::spawn(drain_when_told(terminate, interrupt, metrics.clone(), shutdown.clone()));
    let notices = tokio::spawn(notify::tell(metrics.clone(), notify::watchdog(), notify::send));
    let drawn = tokio::spawn(bars.clone().draw(metrics.clone()));
    let exit = stream(config, &metrics, shutdown).await;
    drawn.abort();
    signals.abort();
    probes.abort();
    notices.abort();
    notify::ended(exit);
    info!(code = exit as u8, "stopped");
    exit
}

/// The first signal asks for a clean stop; from then on a signal ends the process at once.
async fn drain_when_told(mut terminate: Signal, mut interrupt: Signal, metrics: Metrics, shutdown: CancellationToken) {
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    end_at_the_next_signal();
    info!(signal = name, "stopping; a second signal ends it at once");
    metrics.set_state(State::Draining);
    shutdown.cancel();
}

/// The handler ends the process by itself, since the loop may be what hangs; and the default action would do nothing in a
/// container, where the process is number 1.
fn end_at_the_next_signal() {
    extern "C" fn end(_: libc::c_int) {
        // SAFETY: `_exit` is async-signal-safe and never returns.
        unsafe { libc::_exit(Exit::Unexpected as libc::c_int) }
    }
    let end: extern "C" fn(libc::c_int) = end;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler calls only what is async-signal-safe.
        unsafe { libc::signal(signal, end as libc::sighandler_t) };
    }
}
