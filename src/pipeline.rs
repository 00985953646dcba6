//! The loop: committed transactions -> records in flight -> the position that Postgres may forget.
//!
//! One task owns everything. Backpressure is a guard on the arm that reads: while too much is in flight nothing is read,
//! and Postgres goes on getting its status. Any error ends the loop; what then is the supervisor's.

mod copy;
mod keeping;

use std::{io, time::Duration};

use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};

pub use self::copy::follow;
use self::keeping::Keeping;
#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};
use crate::{
    change::{Commit, Micros},
    config::Delivery,
    ledger::Ledger,
    lsn::Lsn,
    outlets::{Counts, EncodeError, Leaves, Outlet, Outlets, RowOp, Step, StepError, Told, What},
    progress::{self, Found, Partial, Progress, Reached, Start},
    sink::{News, RecordBatch, Sink, SinkError, Ticket},
    source::{Item, Source, SourceError},
    telemetry::{Counter, Metrics, State},
    transaction::Transaction,
};

/// A status goes to Postgres at least this often: a third of the `wal_sender_timeout` that the session asks for.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(3);
/// A status that only tells of progress goes at most this often: each one wakes the walsender. As often, without
/// `exactly_once`, a progress record is written, which comes before it.
pub const STATUS_GAP: Duration = Duration::from_millis(100);
/// A batch goes to the sink when it is this large, or when there is nothing more to add to it.
pub const BATCH_BYTES: usize = 64 * 1024;
/// While records are on their way, a batch that is small is not sent before this has passed: each batch wakes three threads
/// and may become a request of its own, which a backlog that comes in small pieces would pay for every few rows.
pub const GATHER_MAX: Duration = Duration::from_millis(2);
/// How long a clean stop waits for what is in flight.
pub const DRAIN_MAX: Duration = Duration::from_secs(20);
/// Traffic of others moves the log too; a progress record for that alone is written at most this often.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Between the end of a Kafka transaction and the commit of the next. The sink rests between two for a little longer, so what
/// comes meanwhile and the progress record are handed over together. The simulation's sink does not rest, so there it is both.
pub const COMMIT_GAP: Duration = Duration::from_millis(if cfg!(test) { 6 } else { 2 });
/// What a Kafka transaction adds to the gap after it for each of its events: while one is committed nothing is sent, so
/// under load they are few and large.
pub const COMMIT_GAP_PER_EVENT: Duration = Duration::from_micros(10);

/// So many steps of a transaction are taken in one go, of which many may have no record: then whoever else waits has a turn,
/// and Postgres its status.
const STEPS_MAX: usize = 10_000;

/// When what was sent is committed.
#[derive(Clone, Copy, Debug)]
pub struct Commits {
    /// What is promised.
    pub delivery: Delivery,
    /// How long the first event of a Kafka transaction waits for its commit at most, while more keeps coming.
    pub interval: Duration,
    /// A Kafka transaction with so many events takes no further Postgres transaction.
    pub events: u64,
    /// A Postgres transaction of more events is spread over several Kafka transactions.
    pub transaction_events_max: u64,
}

/// What connects a source with a sink for one session of both.
pub struct Pipeline<'a, S, K> {
    /// Where transactions come from.
    pub source: S,
    /// Where records go.
    pub sink: K,
    /// Transactions to records.
    pub outlets: Outlets,
    /// What is in flight.
    pub ledger: Ledger,
    /// What the database says of itself and the slot.
    pub found: Found,
    /// When what was sent is committed.
    pub commits: Commits,
    /// Commit everything before the transaction whose commit record starts here, for it cannot be told.
    pub commit_before: Option<Lsn>,
    /// Where the commit record of the transaction starts that could not be told.
    pub untold: Option<Lsn>,
    /// Bytes that may be in flight; one record more, however large, is always let through.
    pub in_flight_bytes_max: u64,
    /// Our clock.
    pub clock: fn() -> Micros,
    /// Counted at the seams.
    pub metrics: &'a Metrics,
}

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source's fault.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The sink's fault.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The sink refuses a record.
    #[error(
        "publish a record of {table} with key {key} and {size} bytes, of the transaction that commits at {commit}: {reason}; or go on without \
         the transaction: offshoot skip --lsn {commit}",
        key = if key.is_empty() { "(none)" } else { key }
    )]
    Record {
        /// `schema.table`.
        table: String,
        /// The record's key.
        key: String,
        /// Bytes of its value.
        size: usize,
        /// Where its transaction's commit record starts.
        commit: Lsn,
        /// What the sink said.
        reason: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A step of a transaction that cannot be told.
    #[error("{source}{}", to_go_on(source, *commit, *is_backfill))]
    Encode {
        /// Where its transaction's commit record starts.
        commit: Lsn,
        /// It is no transaction: what cannot be told is a row that was there before.
        is_backfill: bool,
        /// What is the matter, and how to mend it.
        source: EncodeError,
    },
    /// What is held of the source's tables cannot be kept, or what the topic has of it cannot be read.
    #[error("keep what events need of the source's tables")]
    Hold(#[source] StepError),
    /// The spill file cannot be read back.
    #[error("read the spill file of the transaction that commits at {commit}")]
    Spill {
        /// Where the commit record starts.
        commit: Lsn,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A transaction that is being sent.
struct Sending {
    transaction: Transaction,
    ticket: Ticket,
    /// How many of its steps have been taken.
    index: u64,
    /// How many of them were published before this start: they are taken without a record.
    published: u64,
    /// It may be too large for one Kafka transaction; not known before its first event, when only events are told.
    splits: Option<bool>,
    /// Some of its records have been handed to the sink.
    flushed: bool,
    /// It waits until everything before it is committed.
    held: bool,
    /// Its events are told, and what is left are rows that are to be kept.
    keeps: bool,
    /// After the last step it may be cut.
    cuts: bool,
}

impl Sending {
    /// Nothing of a transaction has been sent.
    fn of(transaction: Transaction, ticket: Ticket) -> Self {
        let (index, published) = (0, 0);
        Self {
            transaction,
            ticket,
            index,
            published,
            splits: Some(false),
            flushed: false,
            held: false,
            keeps: false,
            cuts: true,
        }
    }
}

/// What is not committed yet.
#[derive(Debug)]
struct Uncommitted {
    /// Records sent since the last commit was asked for.
    events: u64,
    /// When the first of them was sent.
    since: Option<Instant>,
    /// When the first of their transactions was committed in Postgres.
    oldest: Option<Micros>,
    /// How far the commit reaches that is on its way, and how many events it holds.
    committing: Option<(Reached, u64)>,
    /// When the last commit was done.
    committed_at: Instant,
    /// How long after it the next one waits, when there is nothing more to send.
    gap: Duration,
}

/// The state of one run of the loop.
struct Run<'a, 'e, S, K> {
    pipe: &'a mut Pipeline<'e, S, K>,
    sending: Option<Sending>,
    batch: RecordBatch,
    /// When a batch that was held back is to be sent.
    gather_until: Option<Instant>,
    /// By event, as `Outlets::event_names` has them.
    events: Vec<Counter>,
    /// What of the rows of mapped tables has been shown.
    counted: Counts,
    /// Records handed to the sink and not acknowledged.
    sent_records: u64,
    news: News,
    uncommitted: Uncommitted,
    /// The last committed progress record.
    progress: Option<Progress>,
    /// What of the log is published.
    start: Start,
    /// What is held of the source's tables.
    keeping: Keeping,
    /// The source had nothing more when it was last asked.
    dry: bool,
    /// What Postgres has been told.
    told: Lsn,
    told_at: Instant,
}

impl<S: Source, K: Sink> Pipeline<'_, S, K> {
    /// Runs until `shutdown`, then lets what is in flight arrive and confirms it. Errors end it at once.
    pub async fn run(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let told = self.ledger.confirmed();
        let batch = self.sink.batch();
        let exactly_once = self.commits.delivery == Delivery::ExactlyOnce;
        let events = self.outlets.event_names();
        let events = events.into_iter().map(|name| self.metrics.event(name)).collect();
        let mut run = Run {
            pipe: self,
            sending: None,
            batch,
            gather_until: None,
            counted: Counts::default(),
            events,
            sent_records: 0,
            news: News::default(),
            uncommitted: Uncommitted {
                events: 0,
                since: None,
                oldest: None,
                committing: None,
                committed_at: Instant::now(),
                gap: COMMIT_GAP,
            },
            progress: None,
            start: Start { published: told, partial: None, never_came_to_be: None },
            keeping: Keeping::default(),
            dry: false,
            told,
            told_at: Instant::now(),
        };
        // The ticket that stays open when its transaction cannot be told.
        let (untold, open) = match run.stream(shutdown).await {
            Ok(()) => return run.drain(0).await,
            // Some of it is in the open Kafka transaction, which cannot be committed any more.
            Err(error @ Error::Encode { .. }) if exactly_once && run.flushed() => return Err(error),
            Err(error @ Error::Encode { .. }) => (error, 1),
            Err(error @ Error::Source(SourceError::Undecodable(_))) => (error, 0),
            Err(error) => {
                #[cfg(test)]
                if is_planted(PlantedBug::KeepsWhatFailed) {
                    run.uncommitted.committing = None;
                    let _ = run.store(true);
                }
                if let Error::Record { commit, .. } = &error {
                    run.pipe.untold = Some(*commit);
                }
                return Err(error);
            }
        };
        // What was committed before it is delivered and confirmed: whoever skips the transaction skips nothing else. Should
        // that fail too, it comes again at the next start, and the first error is the one to mend.
        let _ = run.drain(open).await;
        Err(untold)
    }

    /// Ends both sessions in good order.
    pub async fn close(self) {
        self.source.close().await;
        self.sink.close().await;
    }
}

impl<S: Source, K: Sink> Run<'_, '_, S, K> {
    async fn stream(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        tokio::pin!(shutdown);
        self.confirm().await?;
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            result = self.begin() => result?,
        }
        loop {
            let has_room = self.has_room();
            let status_at = self.status_at();
            let gather_until = self.gather_until;
            let commit_at = self.commit_at();
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                () = sleep_until(status_at) => self.confirm().await?,
                result = self.pipe.sink.news(&mut self.news) => self.retire(result)?,
                () = sleep_until(gather_until.unwrap_or(status_at)), if gather_until.is_some() => self.flush()?,
                () = sleep_until(commit_at.unwrap_or(status_at)), if commit_at.is_some() => {}
                result = self.pipe.source.ready(), if has_room && self.sending.is_none() => result?,
                () = yield_now(), if self.goes_on() => {}
            }
            self.pump()?;
            self.commit_if_due()?;
            self.show();
            if self.pipe.source.status_wanted() {
                self.confirm().await?;
            }
        }
    }

    /// Fences off whoever published before, then finds out where to go on. Postgres is answered meanwhile.
    async fn begin(&mut self) -> Result<(), Error> {
        let progress = {
            let Pipeline { source, sink, ledger, metrics, .. } = &mut *self.pipe;
            let mut take_over = std::pin::pin!(metrics.beating(sink.take_over()));
            loop {
                tokio::select! {
                    biased;
                    progress = &mut take_over => break progress?,
                    () = sleep_until(self.told_at + STATUS_INTERVAL) => source.confirm(ledger.confirmed()).await?,
                }
                self.told_at = Instant::now();
            }
        };
        let start = progress::start(progress.as_ref(), &self.pipe.found);
        self.start = start.map_err(|gap| SourceError::SlotLost(Box::new(gap)))?;
        if let Some((from, to)) = self.start.never_came_to_be {
            tracing::warn!(
                timeline = self.pipe.found.origin.timeline, %from, %to,
                "events were published of transactions that the fail-over has undone: those that committed between the two"
            );
        }
        self.pipe.ledger = Ledger::going_on(&self.pipe.ledger, self.start.published);
        // A stop may come before it is found again.
        let before = progress.as_ref().filter(|progress| progress.replica.is_some());
        self.keeping.holding = before.map(|before| progress::held(before, &self.pipe.found, &self.start));
        self.progress = progress;
        self.hold().await?;
        if !self.keeping.waits_for_position() {
            self.pipe.metrics.set_state(State::Streaming);
        }
        Ok(())
    }

    /// Reads no more, and waits until what was read is durable, but for `open` transactions that never will be.
    async fn drain(&mut self, open: usize) -> Result<(), Error> {
        let deadline = Instant::now() + DRAIN_MAX;
        self.dry = true;
        self.flush()?;
        if self.progress.is_none() {
            return self.confirm().await;
        }
        loop {
            if self.pipe.commits.delivery == Delivery::ExactlyOnce || self.pipe.ledger.tickets_in_flight() <= open {
                self.commit(open)?;
            }
            let waits = self.sending.is_some() && open == 0
                || self.pipe.ledger.tickets_in_flight() > open
                || self.uncommitted.committing.is_some();
            if !waits {
                break;
            }
            let status_at = self.status_at();
            tokio::select! {
                biased;
                () = sleep_until(deadline) => break,
                () = sleep_until(status_at) => self.confirm().await?,
                result = self.pipe.sink.news(&mut self.news) => self.retire(result)?,
                () = yield_now(), if open == 0 && self.sending.is_some() && self.goes_on() => {}
            }
            if open == 0 {
                self.send_on()?;
            }
            self.show();
        }
        self.store(true)?;
        self.confirm().await
    }

    /// Takes what is here, encodes it and sends it, as far as there is room.
    fn pump(&mut self) -> Result<(), Error> {
        self.send_on()?;
        self.bury()?;
        self.dry = false;
        while self.sending.is_none() && self.has_room() {
            if self.go_on()? {
                continue;
            }
            let Some(item) = self.pipe.source.next()? else {
                self.dry = true;
                break;
            };
            if let Some(item) = self.may_come(item) {
                self.take(item)?;
            }
        }
        self.flush_or_gather()
    }

    fn take(&mut self, item: Item) -> Result<(), Error> {
        match item {
            Item::Transaction(transaction) => {
                self.open(transaction)?;
                self.commit_if_due()
            }
            Item::Progress(position) => {
                self.pipe.metrics.received_lsn.set(position.0);
                self.pipe.ledger.progress(position);
                Ok(())
            }
            Item::Load(load) => {
                self.take_load(load)?;
                self.commit_if_due()
            }
        }
    }

    /// Begins to send a transaction, unless it is published already.
    fn open(&mut self, transaction: Transaction) -> Result<(), Error> {
        let commit = transaction.commit;
        self.count_transaction(&transaction);
        let Some(published) = self.start.published_of(&commit) else {
            self.pipe.metrics.repeated_transactions.inc();
            self.pipe.ledger.progress(commit.end);
            self.pipe.source.recycle(transaction);
            return Ok(());
        };
        let held = self.pipe.commit_before == Some(commit.lsn) && self.is_uncommitted();
        let ticket = self.pipe.ledger.open(commit);
        let splits = match self.pipe.commits.delivery {
            Delivery::AtLeastOnce => Some(false),
            // It was begun so.
            Delivery::ExactlyOnce if published > 0 => Some(true),
            Delivery::ExactlyOnce => {
                let steps = self.pipe.outlets.steps_max(transaction.len());
                steps.map(|steps| steps > self.pipe.commits.transaction_events_max)
            }
        };
        // Without progress nothing is read.
        let epoch = self.progress.as_ref().map_or(1, |progress| progress.epoch);
        let epoch = progress::epoch_of(epoch, &self.pipe.found, commit.lsn);
        let partial = self.start.partial.filter(|partial| partial.commit == commit.lsn);
        let keeping = partial.is_some_and(|partial| partial.keeping);
        // Its events are told, and what it says is taken once more for the rows that are to be kept of it.
        let published = if keeping { transaction.len() } else { published };
        let leaves = self.pipe.outlets.begin(&transaction, epoch, keeping);
        let flushed = published > 0 || keeping;
        let sending = Sending { published, splits, flushed, held, ..Sending::of(transaction, ticket) };
        match leaves {
            Ok(Leaves::Yes) => {
                self.sending = Some(sending);
                self.encode()
            }
            Ok(Leaves::Ignored) => {
                self.pipe.metrics.ignored_transactions.inc();
                if self.keeping.holds() {
                    let published = sending.transaction.len();
                    self.sending = Some(Sending { published, ..sending });
                    return self.encode();
                }
                self.close(sending);
                Ok(())
            }
            Err(error) => Err(self.failed(sending, error.into())),
        }
    }

    /// Everything of a transaction has been sent.
    fn close(&mut self, sending: Sending) {
        self.pipe.ledger.close(sending.ticket);
        self.pipe.outlets.end();
        self.backfilled(sending.transaction.commit.lsn);
        self.pipe.source.recycle(sending.transaction);
    }

    /// A transaction does not go on: what of it is in the batch is taken out again.
    fn failed(&mut self, sending: Sending, error: StepError) -> Error {
        let commit = sending.transaction.commit.lsn;
        match error {
            StepError::Encode(source) => {
                self.batch.records.retain(|record| record.ticket != sending.ticket);
                self.pipe.untold = Some(commit);
                self.sending = Some(sending);
                let holding = self.keeping.holding.as_ref();
                let is_backfill = holding.is_some_and(|holding| holding.backfilling == Some(commit));
                Error::Encode { commit, is_backfill, source }
            }
            StepError::Spill(source) => Error::Spill { commit, source },
            StepError::Net(error) => Error::Source(SourceError::Spill(error)),
            error @ StepError::Replica(_) => Error::Hold(error),
        }
    }

    /// Goes on with a transaction that there was no room for.
    fn send_on(&mut self) -> Result<(), Error> {
        if self.sending.is_some() {
            self.encode()?;
            self.flush()?;
        }
        Ok(())
    }

    /// Encodes the transaction that is being sent, as far as there is room.
    fn encode(&mut self) -> Result<(), Error> {
        let Some(mut sending) = self.sending.take_if(|sending| !sending.held) else { return Ok(()) };
        let now = (self.pipe.clock)();
        let commit = sending.transaction.commit;
        let kept = self.keeping.holding.as_ref().map(|_| self.pipe.sink.kept_topic());
        for _ in 0..STEPS_MAX {
            if sending.splits.is_none() && sending.index == sending.transaction.len() {
                match self.pipe.outlets.events_max(sending.index) {
                    Ok(events) => sending.splits = Some(events > self.pipe.commits.transaction_events_max),
                    Err(error) => return Err(self.failed(sending, error)),
                }
            }
            let splits = sending.splits == Some(true);
            let is_full = self.uncommitted.events >= self.pipe.commits.transaction_events_max;
            if !self.has_room() || splits && is_full && sending.cuts {
                break;
            }
            let first = self.batch.records.len();
            let is_news = sending.index >= sending.published;
            let out = is_news.then_some(&mut self.batch);
            let step = Step { index: sending.index, now, ticket: sending.ticket, out, kept: kept.as_ref() };
            let told = match self.pipe.outlets.step(&mut sending.transaction, step) {
                Ok(Some(told)) => told,
                Ok(None) => {
                    self.close(sending);
                    return Ok(());
                }
                Err(error) => return Err(self.failed(sending, error)),
            };
            sending.index += 1;
            if !is_news {
                continue;
            }
            self.count(&told);
            if let What::Kept { cuts } = told.what {
                (sending.keeps, sending.cuts) = (true, cuts);
                self.keeping.put();
            }
            if self.batch.records.len() == first {
                continue;
            }
            if splits && !sending.keeps {
                self.batch.mark_from(first);
            }
            let records = &self.batch.records[first..];
            let bytes: usize = records.iter().map(|record| self.batch.len_of(record)).sum();
            let weight: usize = records.iter().map(|record| self.batch.weight_of(record)).sum();
            self.uncommitted.events += records.len() as u64;
            self.uncommitted.oldest.get_or_insert(commit.time);
            self.pipe.ledger.sent(sending.ticket, records.len() as u64, weight as u64);
            self.pipe.metrics.record_bytes.inc_by(bytes as u64);
            if self.batch.bytes.len() >= BATCH_BYTES {
                sending.flushed = true;
                self.flush()?;
            }
        }
        // Whoever cannot go on here flushes what there is.
        sending.flushed = true;
        self.sending = Some(sending);
        Ok(())
    }

    /// Sends at once when nothing is on its way: latency comes first when it is quiet. Else gathers, for a moment.
    fn flush_or_gather(&mut self) -> Result<(), Error> {
        if self.sent_records == 0 || self.batch.bytes.len() >= BATCH_BYTES {
            return self.flush();
        }
        if !self.batch.records.is_empty() {
            self.gather_until.get_or_insert_with(|| Instant::now() + GATHER_MAX);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.gather_until = None;
        if self.batch.records.is_empty() {
            return Ok(());
        }
        let next = self.pipe.sink.batch();
        let batch = std::mem::replace(&mut self.batch, next);
        self.sent_records += batch.records.len() as u64;
        self.uncommitted.since.get_or_insert_with(Instant::now);
        self.pipe.metrics.records.inc_by(batch.records.len() as u64);
        self.pipe.sink.send(batch).map_err(|error| self.named(error))
    }

    /// The transaction that is being sent waits for nothing.
    fn goes_on(&self) -> bool {
        let max = self.pipe.commits.transaction_events_max;
        let is_full = self.uncommitted.events >= max;
        let waits = |sending: &Sending| sending.held || sending.splits == Some(true) && is_full && sending.cuts;
        self.has_room() && self.sending.as_ref().map_or(self.keeping.buries(), |sending| !waits(sending))
    }

    /// Some records of the transaction that is being sent have left.
    fn flushed(&self) -> bool {
        self.sending.as_ref().is_some_and(|sending| sending.flushed)
    }

    /// How far a progress record may reach now: with `exactly_once` it is committed together with what was sent, and else
    /// it follows what is acknowledged.
    fn reach(&self) -> Lsn {
        match self.pipe.commits.delivery {
            Delivery::ExactlyOnce => self.pipe.ledger.sent_whole(),
            Delivery::AtLeastOnce => self.pipe.ledger.retired(),
        }
    }

    /// There is something that no committed progress record covers.
    fn is_uncommitted(&self) -> bool {
        let ledger = &self.pipe.ledger;
        self.uncommitted.committing.is_some() || self.reach() > ledger.covered() || ledger.tickets_in_flight() > 0
    }

    /// When a commit is due; `None` while one is on its way, and when there is nothing to commit.
    fn commit_at(&self) -> Option<Instant> {
        let Uncommitted { events, since, ref committing, committed_at, gap, .. } = self.uncommitted;
        let progress = self.progress.as_ref()?;
        if committing.is_some() {
            return None;
        }
        let now = committed_at;
        if progress.reached == Reached::Creating && self.sending.is_none() {
            // From here on the slot is not made again when it is gone.
            return Some(now);
        }
        let moved = self.reach() > self.pipe.ledger.covered() || self.keeping.holding != progress.replica;
        let commits = &self.pipe.commits;
        match (commits.delivery, &self.sending) {
            (Delivery::AtLeastOnce, Some(sending)) if sending.held => moved.then_some(now),
            (Delivery::AtLeastOnce, _) => {
                moved.then_some(committed_at + if events > 0 { STATUS_GAP } else { PROGRESS_INTERVAL })
            }
            (Delivery::ExactlyOnce, Some(sending)) => {
                let full = sending.splits == Some(true) && events >= commits.transaction_events_max && sending.cuts;
                (full || sending.held && (events > 0 || moved)).then_some(now)
            }
            (Delivery::ExactlyOnce, None) if events == 0 => moved.then_some(committed_at + PROGRESS_INTERVAL),
            (Delivery::ExactlyOnce, None) if events >= commits.events => Some(now),
            (Delivery::ExactlyOnce, None) if self.dry => Some(committed_at + gap),
            (Delivery::ExactlyOnce, None) => Some(since.unwrap_or(committed_at) + commits.interval),
        }
    }

    fn commit_if_due(&mut self) -> Result<(), Error> {
        match self.commit_at() {
            Some(at) if at <= Instant::now() => self.commit(0),
            _ => Ok(()),
        }
    }

    /// Asks for a progress record that covers what was sent whole, or acknowledged, unless one is on its way or there is
    /// nothing new. Of a transaction that is being sent it tells the part, unless it is one of `open` that is given up.
    fn commit(&mut self, open: usize) -> Result<(), Error> {
        let Some(before) = &self.progress else { return Ok(()) };
        let end = self.reach();
        let commits = &self.pipe.commits;
        let partial = match &self.sending {
            Some(sending) if open == 0 && sending.splits == Some(true) && !sending.held => {
                if self.uncommitted.events < commits.transaction_events_max || !sending.cuts {
                    return Ok(());
                }
                let index = sending.index.max(sending.published);
                Some(Partial { commit: sending.transaction.commit.lsn, index, keeping: sending.keeps })
            }
            // Within a transaction nothing can be committed but what holds all of it.
            Some(sending)
                if open == 0 && !sending.held && sending.flushed && commits.delivery == Delivery::ExactlyOnce =>
            {
                return Ok(());
            }
            // What was begun before this start and has not come again is still begun.
            _ => self.start.partial.filter(|partial| partial.commit >= end),
        };
        let reached = Reached::End { end, partial };
        let is_news = end > self.pipe.ledger.covered() || before.reached != reached || self.uncommitted.events > 0;
        let is_news = is_news || self.keeping.holding != before.replica;
        if self.uncommitted.committing.is_some() || !is_news {
            return Ok(());
        }
        let before = before.clone();
        self.flush()?;
        let found = &self.pipe.found;
        let mut progress = before.holding(self.keeping.commits());
        progress.reached = reached;
        progress.origin = found.origin.clone();
        progress.fingerprint = found.fingerprint.clone();
        progress.time = (self.pipe.clock)();
        self.pipe.sink.commit(&progress).map_err(|error| self.named(error))?;
        let events = std::mem::take(&mut self.uncommitted.events);
        self.uncommitted.since = None;
        self.uncommitted.committing = Some((reached, events));
        self.progress = Some(progress);
        Ok(())
    }

    fn retire(&mut self, result: Result<(), SinkError>) -> Result<(), Error> {
        for acknowledgement in self.news.acknowledged.drain(..) {
            self.sent_records -= acknowledgement.records;
            self.pipe.metrics.records_acknowledged.inc_by(acknowledgement.records);
            self.pipe.ledger.acknowledge(acknowledgement);
        }
        if std::mem::take(&mut self.news.committed)
            && let Some((Reached::End { end, .. }, events)) = self.uncommitted.committing.take()
        {
            self.pipe.ledger.commit(end);
            self.keeping.committed(self.news.kept_end.take());
            self.pipe.metrics.commits.inc();
            let (metrics, now) = (self.pipe.metrics, (self.pipe.clock)());
            self.pipe.ledger.newly_retired().for_each(|committed| metrics.delivered(committed, now));
            self.uncommitted.committed_at = Instant::now();
            let gap = COMMIT_GAP_PER_EVENT.saturating_mul(events.min(u64::from(u32::MAX)) as u32);
            self.uncommitted.gap = (COMMIT_GAP + gap).min(self.pipe.commits.interval.max(COMMIT_GAP));
            self.uncommitted.oldest = self.pipe.ledger.oldest().map(|commit| commit.time);
            if let Some(commit) = self.pipe.ledger.delivered() {
                self.pipe.metrics.delivered_commit(commit.time);
            }
        }
        if let Some(sending) = &self.sending
            && sending.held
            && self.uncommitted.committing.is_none()
            && self.reach() <= self.pipe.ledger.covered()
            && self.pipe.ledger.tickets_in_flight() == 1
        {
            self.sending.as_mut().expect("it was there").held = false;
        }
        result.map_err(|error| self.named(error))?;
        self.store(false)
    }

    async fn confirm(&mut self) -> Result<(), Error> {
        let confirmed = self.pipe.ledger.confirmed();
        #[cfg(test)]
        let confirmed =
            if is_planted(PlantedBug::ConfirmsBeforeCommit) { self.pipe.ledger.sent_whole() } else { confirmed };
        self.pipe.source.confirm(confirmed).await?;
        self.pipe.metrics.confirmed_lsn.set(confirmed.0);
        (self.told, self.told_at) = (confirmed, Instant::now());
        Ok(())
    }

    fn has_room(&self) -> bool {
        let settles = self.keeping.settles() && self.uncommitted.committing.is_some();
        self.pipe.ledger.bytes_in_flight() < self.pipe.in_flight_bytes_max && !settles
    }

    /// When the next status is due.
    fn status_at(&self) -> Instant {
        let moved = self.pipe.ledger.confirmed() > self.told;
        self.told_at + if moved { STATUS_GAP } else { STATUS_INTERVAL }
    }

    fn count_transaction(&self, transaction: &Transaction) {
        self.pipe.metrics.transactions.inc();
        self.pipe.metrics.received_lsn.set(transaction.commit.end.0);
        if transaction.is_spilled() {
            self.pipe.metrics.spilled_transactions.inc();
        }
    }

    fn count(&self, told: &Told) {
        let metrics = self.pipe.metrics;
        match told.what {
            What::Row(RowOp::Insert) => metrics.rows.insert.inc(),
            What::Row(RowOp::Update) => metrics.rows.update.inc(),
            What::Row(RowOp::Delete) => metrics.rows.delete.inc(),
            What::Row(RowOp::Truncate) => metrics.rows.truncate.inc(),
            What::Message => metrics.messages.inc(),
            What::Event(number) => self.events[number].inc(),
            What::Kept { .. } => metrics.replica_kept_rows.inc(),
        };
        for (outlet, records) in told.records.iter().filter(|(_, records)| *records > 0) {
            let counter = match outlet {
                Outlet::Changes => &metrics.told.changes,
                Outlet::Outbox => &metrics.told.outbox,
                Outlet::Messages => &metrics.told.messages,
                Outlet::Events => &metrics.told.events,
            };
            counter.inc_by(*records);
        }
    }

    /// What the rows of mapped tables have come to since it was last shown.
    fn show_netting(&mut self) {
        let (metrics, now) = (self.pipe.metrics, self.pipe.outlets.counts());
        let before = std::mem::replace(&mut self.counted, now);
        metrics.netting.rows.inc_by(now.rows - before.rows);
        metrics.netting.no_ops.inc_by(now.no_ops - before.no_ops);
        metrics.netting.unmapped.inc_by(now.unmapped - before.unmapped);
        metrics.netting.on_disk.inc_by(now.on_disk - before.on_disk);
        metrics.netting.bytes.set(self.pipe.outlets.netting_bytes());
    }

    /// What is in flight, and since when.
    fn show(&mut self) {
        self.show_netting();
        let (metrics, ledger, now) = (self.pipe.metrics, &mut self.pipe.ledger, (self.pipe.clock)());
        metrics.beat();
        if self.pipe.commits.delivery == Delivery::AtLeastOnce {
            ledger.newly_retired().for_each(|committed| metrics.delivered(committed, now));
        }
        metrics.in_flight_bytes.set(ledger.bytes_in_flight());
        metrics.in_flight_transactions.set(ledger.tickets_in_flight() as u64);
        let oldest = match self.pipe.commits.delivery {
            Delivery::ExactlyOnce => self.uncommitted.oldest,
            Delivery::AtLeastOnce => ledger.oldest().map(|commit: Commit| commit.time),
        };
        let age = oldest.map_or(0, |time| (now - time).max(0));
        metrics.lag_seconds.set(age as f64 / 1e6);
        if let (Delivery::AtLeastOnce, Some(commit)) = (self.pipe.commits.delivery, ledger.delivered()) {
            metrics.delivered_commit(commit.time);
        }
    }

    /// Adds to a refused record where in the log it comes from.
    fn named(&self, error: SinkError) -> Error {
        match error {
            SinkError::Record { ticket, table, key, size, reason } => {
                let commit = self.pipe.ledger.commit_of(ticket).map_or(Lsn::INVALID, |commit| commit.lsn);
                Error::Record { table, key, size, commit, reason }
            }
            other => Error::Sink(other),
        }
    }
}

/// How to go on without what cannot be told; a table without a topic is for the config to mend.
fn to_go_on(error: &EncodeError, commit: Lsn, is_backfill: bool) -> String {
    match (error.says_how_to_go_on(), is_backfill) {
        (true, _) => String::new(),
        (false, false) => format!("; or go on without the transaction: offshoot skip --lsn {commit}"),
        (false, true) => "; it is a row that was there before, which `backfill` tells of: change the event so that it can be told, or take \
                          `backfill` out of its `when`; or mend the row, and offshoot reload reads it again"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, future::pending};

    use super::*;
    use crate::{config::Config, progress::Origin};

    const CONFIG: &str =
        "{ name: s, source: { postgres: x }, sink: { kafka: { brokers: \"k:1\" } }, changes: { tables: [a.b] } }";

    /// A database in which only others write: it tells how far its log is, and hears how far we are.
    #[derive(Default)]
    struct Quiet {
        positions: VecDeque<Lsn>,
        heard: Vec<Lsn>,
    }

    impl Source for Quiet {
        fn load(&mut self, _: Vec<crate::source::LoadTable>) {
            unreachable!("nothing is held here")
        }

        fn pause(&mut self, _: bool) {
            unreachable!("nothing is held here")
        }

        async fn ready(&mut self) -> Result<(), SourceError> {
            if self.positions.is_empty() { pending().await } else { Ok(()) }
        }

        fn next(&mut self) -> Result<Option<Item>, SourceError> {
            Ok(self.positions.pop_front().map(Item::Progress))
        }

        fn recycle(&mut self, _: Transaction) {}

        fn status_wanted(&self) -> bool {
            false
        }

        async fn confirm(&mut self, confirmed: Lsn) -> Result<(), SourceError> {
            self.heard.push(confirmed);
            Ok(())
        }

        async fn close(self) {}
    }

    /// A broker that commits at once.
    struct Prompt {
        before: Progress,
        written: Vec<Progress>,
        committed: bool,
    }

    impl Sink for Prompt {
        async fn find_kept(&mut self, _: bool) -> Result<Option<std::ops::Range<i64>>, SinkError> {
            unreachable!("nothing is held here")
        }

        async fn kept(&mut self, _: i64, _: i64) -> Result<Option<crate::sink::Kept>, SinkError> {
            unreachable!("nothing is held here")
        }

        fn kept_topic(&self) -> std::sync::Arc<crate::sink::Topic> {
            unreachable!("nothing is held here")
        }

        async fn take_over(&mut self) -> Result<Option<Progress>, SinkError> {
            Ok(Some(self.before.clone()))
        }

        fn batch(&mut self) -> RecordBatch {
            RecordBatch::default()
        }

        fn send(&mut self, _: RecordBatch) -> Result<(), SinkError> {
            unreachable!("nothing is published")
        }

        fn commit(&mut self, progress: &Progress) -> Result<(), SinkError> {
            self.written.push(progress.clone());
            self.committed = true;
            Ok(())
        }

        async fn news(&mut self, into: &mut News) -> Result<(), SinkError> {
            if !self.committed {
                pending::<()>().await;
            }
            self.committed = false;
            into.committed = true;
            Ok(())
        }

        async fn close(self) {}
    }

    /// What Postgres has heard and what was written, when the log moves to `positions` after a start at `reached`, with
    /// a slot at 90.
    async fn after(reached: Reached, positions: &[u64]) -> (Vec<Lsn>, Vec<Reached>) {
        let origin = Origin { system_identifier: "7".into(), timeline: 1, slot: "s".into() };
        let mut before = Progress::creating(1, origin.clone(), String::new(), 0);
        before.reached = reached;
        let metrics = Metrics::default();
        let confirmed = Lsn(90);
        let mut pipeline = Pipeline {
            source: Quiet { positions: positions.iter().map(|at| Lsn(*at)).collect(), heard: Vec::new() },
            sink: Prompt { before, written: Vec::new(), committed: false },
            outlets: Outlets::new(&Config::parse(CONFIG, "c", &|_| None).unwrap(), "d").unwrap(),
            ledger: Ledger::new(confirmed),
            found: Found { origin, history: Vec::new(), confirmed, end_of_log: Lsn(900), fingerprint: String::new() },
            commits: Commits {
                delivery: Delivery::ExactlyOnce,
                interval: Duration::from_millis(100),
                events: 10,
                transaction_events_max: 10,
            },
            commit_before: None,
            untold: None,
            in_flight_bytes_max: 1000,
            clock: || 0,
            metrics: &metrics,
        };
        pipeline.run(tokio::time::sleep(10 * PROGRESS_INTERVAL)).await.unwrap();
        (pipeline.source.heard, pipeline.sink.written.iter().map(|progress| progress.reached).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_before_the_rest_of_a_transaction_comes_again_keeps_what_is_published_of_it() {
        let partial = Some(Partial { commit: Lsn(200), index: 3, keeping: false });
        let (_, written) = after(Reached::End { end: Lsn(100), partial }, &[150]).await;
        assert_eq!(written, [Reached::End { end: Lsn(150), partial }]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_position_that_a_person_has_named_is_not_confirmed_before_the_source_has_named_one_from_there_on() {
        let named = Reached::End { end: Lsn(105), partial: None };
        // A commit record may stand from 100 to 110: Postgres would not tell of it again.
        let (heard, written) = after(named, &[]).await;
        assert!(heard.iter().all(|at| *at == Lsn(90)) && written.is_empty(), "{heard:?} {written:?}");
        let (heard, _) = after(named, &[100]).await;
        assert_eq!(heard.last(), Some(&Lsn(100)));
        let (heard, written) = after(named, &[100, 110]).await;
        assert_eq!((heard.last(), written), (Some(&Lsn(110)), vec![Reached::End { end: Lsn(110), partial: None }]));
        assert!(!heard.contains(&Lsn(105)), "{heard:?}");
    }
}
