//! Config -> attempts: both ends connected and the loop run, again and again until it ends for good.

use std::{
    cell::{Cell, OnceCell, RefCell},
    convert::Infallible,
    future::pending,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    admission::Admission,
    causes::told,
    change::Micros,
    config::{Config, Delivery, SlotWalAction},
    exit::Exit,
    kafka::{self, producer::KafkaSink, progress::Reader},
    ledger::Ledger,
    lsn::Lsn,
    mapping::{catalog::Catalog, rules::Rules},
    outlets::{Outlets, StepError},
    pipeline::{self, Commits, Error, Pipeline},
    postgres::{
        self, Start, Warned, Watch,
        assemble::{Assembler, Wanted},
        stream::PostgresSource,
        tables::{self, Patterns},
    },
    progress::{self, Found, Gap, Origin, Progress, Reached},
    replica::Replica,
    sink::Sink,
    source::SourceError,
    supervisor::{self, Attempt},
    telemetry::{Metrics, State},
    transaction::Spill,
};

/// How often the slot and what is published are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);
/// Parts of `limits.memory`: one for changes that are being assembled, one for records in flight. What is left is for the
/// buffers between them.
const MEMORY_PARTS: u64 = 3;

/// Publishes until `shutdown` or a lasting fault.
pub async fn stream(config: &Config, metrics: &Metrics, shutdown: CancellationToken) -> Exit {
    // Nothing is begun with a config that an attempt would stumble over.
    let compiled = outlets(config, "").and_then(|_| patterns(config, None));
    if let Err(why) = compiled {
        error!("failed to {why}");
        return Exit::Config;
    }
    let delivery = config.sink.kafka.delivery;
    info!(name = config.name, version = env!("CARGO_PKG_VERSION"), delivery = delivery.as_str(), "starting");
    if delivery == Delivery::ExactlyOnce {
        info!("for consumers with isolation.level=read_committed; Java's read uncommitted unless told otherwise");
    }
    let warned = Warned::default();
    let admissions = Admissions::default();
    let untold = Cell::new(None);
    let attempt = async || {
        // In a box, and only while it lasts: what waits for it would hold it twice, on the stack of the main thread.
        let run = || Box::pin(attempt(config, metrics, &warned, &admissions, &shutdown, &untold));
        let first = run().await;
        let attempt = match (&first.result, untold.get()) {
            // What was sent with it was given up with it: once more, and this time what comes before it is committed first.
            (Err(Error::Encode { .. } | Error::Record { .. }), Some(commit)) if delivery == Delivery::ExactlyOnce => {
                info!(%commit, "a transaction cannot be told; what comes before it is published first");
                run().await
            }
            _ => first,
        };
        relieve(config, metrics, attempt).await
    };
    metrics
        .set_slot_limits(config.limits.slot_wal_warn.as_u64(), config.limits.slot_wal_stop.map(|size| size.as_u64()));
    supervisor::run(attempt, shutdown.cancelled(), fastrand::u64(..), metrics).await
}

/// What is kept over all attempts.
#[derive(Default)]
struct Admissions {
    /// What both ends thought of us.
    source: postgres::Admissions,
    sink: Arc<Admission>,
    /// By which events are made. Not by what it is at a later attempt: rows that come again then have the shape of before, and those
    /// whose shape is another are known by it.
    catalog: OnceCell<Catalog>,
    /// Oids of the tables of which rows are held for these events.
    held: OnceCell<Vec<u32>>,
}

impl Admissions {
    fn held(&self) -> &[u32] {
        self.held.get().map_or(&[], Vec::as_slice)
    }
}

/// Connects, streams until it ends, and closes. `untold` is the transaction that an attempt before could not tell, and
/// that this one cannot.
async fn attempt(
    config: &Config,
    metrics: &Metrics,
    warned: &Warned,
    admissions: &Admissions,
    shutdown: &CancellationToken,
    untold: &Cell<Option<Lsn>>,
) -> Attempt {
    metrics.set_state(State::Starting);
    let connected = tokio::select! {
        biased;
        () = shutdown.cancelled() => return Attempt { result: Ok(()), progressed: false },
        connected = metrics.beating(connect(config, metrics, warned, admissions)) => connected,
    };
    let (mut pipeline, mut watched) = match connected {
        Ok(connected) => connected,
        Err(error) => return Attempt { result: Err(error), progressed: false },
    };
    let commits = metrics.commits.get();
    pipeline.commit_before = untold.take();
    let result = tokio::select! {
        result = pipeline.run(shutdown.cancelled()) => result,
        error = watch(&mut watched, config, metrics, warned, admissions) => Err(error.into()),
    };
    let confirmed = pipeline.ledger.confirmed();
    if pipeline.commit_before.is_none() {
        untold.set(pipeline.untold);
    }
    match (&result, pipeline.ledger.tickets_in_flight()) {
        (Ok(()), 0) => info!(%confirmed, "everything that was read is published"),
        (Ok(()), left) => {
            warn!(%confirmed, transactions = left, "kafka has not acknowledged everything that was read; the rest will be sent again");
        }
        (Err(_), _) => {}
    }
    metrics.beating(pipeline.close()).await;
    Attempt { result, progressed: metrics.commits.get() > commits }
}

type Connected<'a> = Pipeline<'a, PostgresSource<postgres::Session>, KafkaSink>;

/// What each part of what takes memory may take.
fn memory_part(config: &Config) -> usize {
    (config.limits.memory.as_u64() / MEMORY_PARTS) as usize
}

/// Whether to begin, with a slot that has confirmed so much or that is still to be made: by what Kafka knows of us. Gives the sink, which
/// connects while Postgres is asked on; it publishes nothing, and fences nobody off, before it takes over.
async fn permit(
    config: &Config,
    admission: &Arc<Admission>,
    slot: Option<Lsn>,
    server: postgres::Server,
) -> Result<KafkaSink, Error> {
    let kafka = &config.sink.kafka;
    let (progress, reader) = Reader::connect(kafka, &config.name, admission)?.committed().await?;
    if let Err(error) = may_begin(config, progress.as_ref(), slot, server).await {
        reader.close().await;
        return Err(error);
    }
    let sink = KafkaSink::connect(kafka, &config.name, memory_part(config), admission)?;
    if progress.is_none() {
        // Whoever has found no topic may not see at once that it has been made.
        reader.close().await;
        return Ok(sink);
    }
    Ok(sink.reading_with(reader))
}

/// Holds what Kafka knows of us against slot and server, and writes that it begins where Kafka knows nothing.
async fn may_begin(
    config: &Config,
    progress: Option<&Progress>,
    slot: Option<Lsn>,
    server: postgres::Server,
) -> Result<(), Error> {
    let lost = |gap: Gap| Error::Source(SourceError::SlotLost(Box::new(gap)));
    let log = server.log().await?;
    let origin = Origin {
        system_identifier: log.system_identifier.unwrap_or_default(),
        timeline: log.timeline.unwrap_or_default(),
        slot: config.slot(),
    };
    if !origin.system_identifier.is_empty() {
        progress::same_system(progress, &origin).map_err(lost)?;
    }
    if log.timeline.is_some() {
        progress::not_moved_back(progress, origin.timeline, log.end_of_log).map_err(lost)?;
    }
    progress::may_begin(progress, slot, &origin.slot).map_err(lost)?;
    if let (Some(Progress { reached: Reached::Creating, time, .. }), None) = (progress, slot) {
        let since = progress::date(*time);
        info!(%since, "it was to begin then and has published nothing, and has no slot: it begins with what is committed from now on");
    }
    if progress.is_none() {
        // So that a slot which is there without a word of ours is another's, or of a progress topic that was lost.
        let first = Progress::creating(1, origin, config.fingerprint(), now());
        kafka::progress::write_first(&config.sink.kafka, &config.name, first).await?;
    }
    Ok(())
}

/// Takes the slot, for a producer that has not taken over yet.
async fn connect<'a>(
    config: &Config,
    metrics: &'a Metrics,
    warned: &Warned,
    admissions: &Admissions,
) -> Result<(Connected<'a>, Watch), Error> {
    let sink = RefCell::new(None);
    let connected = connect_with(&sink, config, metrics, warned, admissions).await;
    // It is closed in good order, for the process may end now.
    let unused = sink.take();
    if let Some(sink) = unused {
        sink.close().await;
    }
    connected
}

async fn connect_with<'a>(
    sink: &RefCell<Option<KafkaSink>>,
    config: &Config,
    metrics: &'a Metrics,
    warned: &Warned,
    admissions: &Admissions,
) -> Result<(Connected<'a>, Watch), Error> {
    let misfit = |why: String| SourceError::Config(why.into());
    let (compiled, waits) = (Cell::new(None), Notify::new());
    let start = Start {
        warned,
        admissions: &admissions.source,
        held: admissions.held(),
        waiting: &|| {
            // By the time the slot is free, what it has logged in with may have been replaced.
            sink.take();
            metrics.set_state(State::WaitingForSlot);
            waits.notify_one();
        },
        // Those that are there now; a table that comes later is looked at when it comes.
        accept: &|tables, catalog| {
            accept(config, tables, None)?;
            let catalog = admissions.catalog.get().or(catalog);
            compiled.set(catalog.map(|catalog| rules(config, catalog)).transpose()?);
            Ok(())
        },
        permit: &|slot, server| {
            let permitted = permit(config, &admissions.sink, slot, server);
            Box::pin(async move { permitted.await.map(|connecting| drop(sink.replace(Some(connecting)))) })
        },
    };
    let (session, prepared) = tokio::select! {
        biased;
        connected = postgres::connect(config, &start) => connected?,
        // It lets go of the copy on disk when it ends here.
        never = stand_by(config, metrics, warned, admissions, &waits) => match never {},
    };
    let found = Found {
        origin: Origin {
            system_identifier: prepared.system_identifier,
            timeline: prepared.timeline,
            slot: prepared.slot,
        },
        history: prepared.history,
        confirmed: prepared.confirmed,
        end_of_log: prepared.end_of_log,
        fingerprint: config.fingerprint(),
    };
    let memory = memory_part(config);
    let spill = Spill { dir: config.data_dir.clone(), memory_max: memory, file_max: config.limits.spill.as_u64() };
    let patterns = patterns(config, prepared.catalog.as_ref()).map_err(misfit)?;
    let mut outlets = outlets(config, &prepared.database).map_err(misfit)?;
    if let Some(catalog) = prepared.catalog {
        admissions.catalog.get_or_init(|| catalog);
    }
    if let Some(rules) = compiled.take() {
        outlets = outlets.with_events(config, rules, spill.clone());
    }
    if !outlets.held().is_empty() {
        outlets = with_replica(outlets, config)?;
    }
    let held = admissions.held.get_or_init(|| outlets.held().iter().map(|shape| shape.oid).collect()).clone();
    let source = PostgresSource::new(
        session,
        Assembler::new(wanted(patterns, prepared.publication_lists), spill).holding(held),
        prepared.confirmed,
        now,
    );
    let pipeline = Pipeline {
        source,
        sink: sink.take().expect("whoever may begin has one"),
        outlets,
        ledger: Ledger::new(prepared.confirmed),
        found,
        commits: Commits {
            delivery: config.sink.kafka.delivery,
            interval: config.sink.kafka.commit_interval,
            events: config.sink.kafka.commit_events,
            transaction_events_max: config.limits.transaction_events,
        },
        commit_before: None,
        untold: None,
        in_flight_bytes_max: memory as u64,
        clock: now,
        metrics,
    };
    Ok((pipeline, prepared.watch))
}

/// While another has the slot: follows the replica's topic, so that little of it is left to be read when the slot is ours. What keeps it from that
/// is said once; a fault that lasts meets whoever takes over, who sorts it.
async fn stand_by(
    config: &Config,
    metrics: &Metrics,
    warned: &Warned,
    admissions: &Admissions,
    waits: &Notify,
) -> Infallible {
    waits.notified().await;
    for retry in supervisor::backoff(fastrand::u64(..)) {
        let Err(error) = follow(config, metrics, admissions).await else { break };
        warned.say(&format!(
            "a standby that does not follow the replica's topic reads it when it takes over; failed to {}",
            told(&error)
        ));
        if supervisor::lasting(&error).is_some() {
            break;
        }
        sleep(retry).await;
    }
    pending().await
}

/// Ends when nothing is held.
async fn follow(config: &Config, metrics: &Metrics, admissions: &Admissions) -> Result<(), Error> {
    if config.events.is_empty() {
        return Ok(());
    }
    let misfit = |why: String| SourceError::Config(why.into());
    let catalog = match admissions.catalog.get() {
        Some(catalog) => catalog.clone(),
        None => postgres::schema(config).await?,
    };
    let spill = Spill { dir: config.data_dir.clone(), memory_max: 0, file_max: 0 };
    let outlets = outlets(config, "").map_err(misfit)?;
    let outlets = outlets.with_events(config, rules(config, &catalog).map_err(misfit)?, spill);
    if outlets.held().is_empty() {
        return Ok(());
    }
    let mut outlets = with_replica(outlets, config)?;
    let (kafka, admission) = (&config.sink.kafka, &admissions.sink);
    // It publishes nothing, and fences nobody off, before it takes over.
    let mut sink = KafkaSink::connect(kafka, &config.name, memory_part(config), admission)?;
    info!("follows the replica's topic meanwhile");
    let progress = async || kafka::progress::read(kafka, &config.name, admission).await;
    Err(pipeline::follow(&mut sink, &mut outlets, progress, now, metrics).await)
}

/// With the copy on disk of what is held.
fn with_replica(outlets: Outlets, config: &Config) -> Result<Outlets, Error> {
    let cache = config.limits.replica_cache.as_u64() as usize;
    let opened = Replica::open(&config.data_dir, &config.name, cache);
    let (replica, position) = opened.map_err(|error| Error::Hold(StepError::Replica(error)))?;
    Ok(outlets.with_replica(replica, position))
}

pub(super) fn outlets(config: &Config, database: &str) -> Result<Outlets, String> {
    Outlets::new(config, database).map_err(|error| error.to_string())
}

/// What the assembler keeps.
pub(super) fn wanted(patterns: Patterns, publication_lists: bool) -> Wanted {
    let messages = patterns.clone();
    Wanted {
        table: Box::new(move |schema, table, ancestors| match ancestors {
            Some(ancestors) => {
                let asked = patterns.asked(schema, table, ancestors);
                if publication_lists && !asked.is_any() {
                    let table = format!("{schema}.{table}");
                    warn!(
                        table,
                        "its rows are published, and the config names neither it nor what it is a partition of now: they are passed over, \
                         also where it was renamed or detached since they were written"
                    );
                }
                asked
            }
            None => patterns.asked_gone(schema, table, publication_lists),
        }),
        message: Box::new(move |prefix| messages.kept(prefix)),
    }
}

/// What is asked for, with the tables that look-ups lead to once the catalog is known.
pub(super) fn patterns(config: &Config, catalog: Option<&Catalog>) -> Result<Patterns, String> {
    tables::patterns(config, catalog).map_err(|error| error.to_string())
}

/// Whether `changes` of these tables can leave, and events be made of what the catalog says.
fn accept(config: &Config, tables: &[(String, String)], catalog: Option<&Catalog>) -> Result<(), String> {
    outlets(config, "")?.topics(tables).map_err(|error| error.to_string())?;
    catalog.map_or(Ok(()), |catalog| rules(config, catalog).map(drop))
}

/// The rules by which events are made; or, a line each, what is wrong with them and where in the config.
pub(super) fn rules(config: &Config, catalog: &Catalog) -> Result<Rules, String> {
    Rules::compile(config, catalog).map_err(|misfits| {
        let told = misfits.into_iter().map(|misfit| config.fault(misfit).to_string());
        format!("make events:\n{}", told.collect::<Vec<_>>().join("\n"))
    })
}

/// Shows how far the slot is behind, lets tables join, and ends when the server keeps too much for the slot, or when what
/// is streamed is no longer published.
async fn watch(
    watch: &mut Watch,
    config: &Config,
    metrics: &Metrics,
    warned: &Warned,
    admissions: &Admissions,
) -> SourceError {
    let begin = Start {
        warned,
        admissions: &admissions.source,
        held: admissions.held(),
        waiting: &|| {},
        accept: &|tables, catalog| accept(config, tables, admissions.catalog.get().or(catalog)),
        // What streams has begun.
        permit: &|_, _| Box::pin(async { Ok(()) }),
    };
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for look in 0u64.. {
        ticks.tick().await;
        if look == 1 {
            give_memory_back();
        }
        match watch.look(&begin).await {
            Ok(Some(lagging)) => {
                metrics.server_lsn.set(lagging.current.0);
                metrics.lag_bytes.set(lagging.current.bytes_since(lagging.confirmed));
                metrics.slot_retained_bytes.set(lagging.retained_bytes);
            }
            Ok(None) => {}
            Err(error @ (SourceError::SlotLost(_) | SourceError::SlotLimit(_))) => return error,
            // The loop meets the same fault on its own session; here it costs only a number.
            Err(error) => debug!(%error, "the lag is not known"),
        }
    }
    unreachable!("numbers do not end")
}

/// What only the start has needed. Once: under load the next records would take it again.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Drops the slot of an attempt that ended since the server keeps too much for it, where the config says so.
async fn relieve(config: &Config, metrics: &Metrics, attempt: Attempt) -> Attempt {
    match attempt.result {
        Err(Error::Source(SourceError::SlotLimit(_))) if config.limits.slot_wal_action == SlotWalAction::DropSlot => {
            let fault = postgres::give_up(config, metrics.last_delivered()).await;
            Attempt { result: Err(fault.into()), ..attempt }
        }
        _ => attempt,
    }
}

/// Our clock.
pub(super) fn now() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as Micros)
}
