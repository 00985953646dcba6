//! The replica's topic -> its copy on disk: what the copy does not have yet, at a start and for as long as a standby waits.

use std::{ops::Range, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::Error;
use crate::{
    change::Micros,
    outlets::{HeldShape, Outlets},
    progress::Progress,
    replica::Position,
    sink::{Sink, SinkError},
    telemetry::Metrics,
};

/// A copy on disk that is older is not gone on with: deletions that it has not seen may be gone from the topic. Half of its
/// `delete.retention.ms`.
const COPY_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600 / 2);
/// One to which nothing is to be added is told that it is still up to date when it was told so this long ago.
const COPY_AGE_TOLD: Duration = Duration::from_secs(3600);
/// While the topic is read, the log says so every so many records. It is kept on disk at its end, once: pages that are rewritten between
/// many commits are not free before the next durable one.
const TOLD_RECORDS: usize = 200_000;
/// How often a standby looks for what is new.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(5);

/// Follows the topic for as long as somebody else publishes, whose progress is asked for: whoever takes over then has little to read. Only
/// what is committed is read, so whatever the copy has, a start would have read. What Kafka does not give now is asked for again; ends with any
/// other fault.
pub async fn follow<K: Sink>(
    sink: &mut K,
    outlets: &mut Outlets,
    progress: impl AsyncFn() -> Result<Option<Progress>, SinkError>,
    clock: fn() -> Micros,
    metrics: &Metrics,
) -> Error {
    loop {
        match look(sink, outlets, &progress, clock, metrics).await {
            Ok(()) => {}
            Err(Error::Sink(SinkError::Passing(error))) => {
                debug!(%error, "the replica's topic is not followed; it is tried again");
            }
            Err(error) => return error,
        }
        sleep(FOLLOW_INTERVAL).await;
    }
}

async fn look<K: Sink>(
    sink: &mut K,
    outlets: &mut Outlets,
    progress: &impl AsyncFn() -> Result<Option<Progress>, SinkError>,
    clock: fn() -> Micros,
    metrics: &Metrics,
) -> Result<(), Error> {
    // Nothing may have been loaded yet, or it is forgotten and will be loaded again.
    let holding = progress().await?.and_then(|progress| progress.replica).filter(|holding| !holding.tables.is_empty());
    let Some(holding) = holding else { return Ok(()) };
    let now = clock();
    let Some(topic) = sink.find_kept(false).await? else { return Ok(()) };
    catch_up(sink, outlets, &holding.generation, &topic, now, metrics).await
}

/// Reads what the copy does not have of a topic that has been found to reach so far at `now` or later.
pub(super) async fn catch_up<K: Sink>(
    sink: &mut K,
    outlets: &mut Outlets,
    generation: &str,
    topic: &Range<i64>,
    now: Micros,
    metrics: &Metrics,
) -> Result<(), Error> {
    let shapes = shapes(&outlets.held());
    let age = |time: Micros| Duration::from_micros((now - time).max(0) as u64);
    let is_ours = |found: &Position| {
        (found.generation.as_str(), &found.shapes) == (generation, &shapes)
            && (topic.start..=topic.end).contains(&found.offset)
            && age(found.time) < COPY_AGE_MAX
    };
    let mut from = match outlets.replica_position().filter(is_ours) {
        Some(found) if found.offset == topic.end && age(found.time) < COPY_AGE_TOLD => return Ok(()),
        Some(found) => found.offset,
        None => {
            outlets.wipe_replica().map_err(Error::Hold)?;
            topic.start
        }
    };
    let (began, first, mut told) = (Instant::now(), from, 0);
    while let Some(kept) = sink.kept(from, topic.end).await? {
        for (key, value) in &kept.records {
            outlets.restore(key, value.as_deref()).map_err(Error::Hold)?;
        }
        from = kept.next;
        metrics.replica_restored.inc_by(kept.records.len() as u64);
        told += kept.records.len();
        if told >= TOLD_RECORDS {
            told = 0;
            info!(offset = from, end = topic.end, "reads what is held of the source's tables");
        }
    }
    let position = Position { generation: generation.to_owned(), offset: topic.end, time: now, shapes };
    outlets.store(&position, true).map_err(Error::Hold)?;
    if topic.end - first > TOLD_RECORDS as i64 {
        let (records, seconds) = (topic.end - first, began.elapsed().as_secs());
        info!(records, seconds, "has read what is held of the source's tables");
    }
    Ok(())
}

/// What the rows of the copy are, as it says of itself.
pub(super) fn shapes(held: &[HeldShape]) -> String {
    serde_json::to_string(held).expect("plain texts")
}
