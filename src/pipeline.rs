//! The loop: committed transactions -> records in flight -> the position that Postgres may forget.
//!
//! One task owns everything. Backpressure is a guard on the arm that reads: while too much is in flight nothing is read,
//! and Postgres goes on getting its status. Any error ends the loop; what then is the supervisor's.

use std::{io, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::{
    change::{Micros, Op},
    format::debezium::{EncodeError, Encoder},
    ledger::Ledger,
    lsn::Lsn,
    sink::{Acknowledgement, RecordBatch, Sink, SinkError, Ticket},
    source::{Item, Source, SourceError},
    telemetry::Metrics,
    transaction::Transaction,
};

/// A status goes to Postgres at least this often: a third of the `wal_sender_timeout` that the session asks for.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(3);
/// A status that only tells of progress goes at most this often: each one wakes the walsender.
pub const STATUS_GAP: Duration = Duration::from_millis(100);
/// A batch goes to the sink when it is this large, or when there is nothing more to add to it.
pub const BATCH_BYTES: usize = 64 * 1024;
/// While records are on their way, a batch that is small is not sent before this has passed: each batch wakes three threads
/// and may become a request of its own, which a backlog that comes in small pieces would pay for every few rows.
pub const GATHER_MAX: Duration = Duration::from_millis(2);
/// How long a clean stop waits for what is in flight.
pub const DRAIN_MAX: Duration = Duration::from_secs(20);

/// What connects a source with a sink for one session of both.
pub struct Pipeline<'a, S, K> {
    /// Where transactions come from.
    pub source: S,
    /// Where records go.
    pub sink: K,
    /// Changes to records.
    pub encoder: Encoder,
    /// What is in flight.
    pub ledger: Ledger,
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
        "publish a record of {table} with key {key} and {size} bytes, of the transaction that commits at {commit}: {reason}",
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
    /// A change that cannot become a record.
    #[error(transparent)]
    Encode(#[from] EncodeError),
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
    /// How many of its changes have been encoded.
    index: u64,
}

/// The state of one run of the loop.
struct Run<'a, 'e, S, K> {
    pipe: &'a mut Pipeline<'e, S, K>,
    sending: Option<Sending>,
    batch: RecordBatch,
    /// When a batch that was held back is to be sent.
    gather_until: Option<Instant>,
    /// Records handed to the sink and not acknowledged.
    sent_records: u64,
    acknowledged: Vec<Acknowledgement>,
    /// What Postgres has been told.
    told: Lsn,
    told_at: Instant,
}

impl<S: Source, K: Sink> Pipeline<'_, S, K> {
    /// Runs until `shutdown`, then lets what is in flight arrive and confirms it. Errors end it at once.
    pub async fn run(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let told = self.ledger.confirmed();
        let batch = self.sink.batch();
        let mut run = Run {
            pipe: self,
            sending: None,
            batch,
            gather_until: None,
            sent_records: 0,
            acknowledged: Vec::new(),
            told,
            told_at: Instant::now(),
        };
        // The ticket that stays open when its transaction cannot be told.
        let (untold, open) = match run.stream(shutdown).await {
            Ok(()) => return run.drain(0).await,
            Err(error @ Error::Encode(_)) => (error, 1),
            Err(error @ Error::Source(SourceError::Undecodable(_))) => (error, 0),
            Err(error) => return Err(error),
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
        loop {
            let has_room = self.has_room();
            let status_at = self.status_at();
            let gather_until = self.gather_until;
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                () = sleep_until(status_at) => self.confirm().await?,
                result = self.pipe.sink.acknowledged(&mut self.acknowledged) => self.retire(result)?,
                () = sleep_until(gather_until.unwrap_or(status_at)), if gather_until.is_some() => self.flush()?,
                result = self.pipe.source.ready(), if has_room && self.sending.is_none() => result?,
            }
            self.pump()?;
            self.show();
            if self.pipe.source.status_wanted() {
                self.confirm().await?;
            }
        }
    }

    /// Reads no more, and waits until what was read is durable, but for `open` transactions that never will be.
    async fn drain(&mut self, open: usize) -> Result<(), Error> {
        let deadline = Instant::now() + DRAIN_MAX;
        self.flush()?;
        while self.sending.is_some() || self.pipe.ledger.tickets_in_flight() > open {
            let status_at = self.status_at();
            tokio::select! {
                biased;
                () = sleep_until(deadline) => break,
                () = sleep_until(status_at) => self.confirm().await?,
                result = self.pipe.sink.acknowledged(&mut self.acknowledged) => self.retire(result)?,
            }
            self.send_on()?;
            self.show();
        }
        self.confirm().await
    }

    /// Takes what is here, encodes it and sends it, as far as there is room.
    fn pump(&mut self) -> Result<(), Error> {
        self.send_on()?;
        while self.sending.is_none() && self.has_room() {
            match self.pipe.source.next()? {
                Some(Item::Transaction(transaction)) => {
                    let ticket = self.pipe.ledger.open(transaction.commit);
                    self.count_transaction(&transaction);
                    self.sending = Some(Sending { transaction, ticket, index: 0 });
                    self.encode()?;
                }
                Some(Item::Progress(position)) => self.pipe.ledger.progress(position),
                None => break,
            }
        }
        self.flush_or_gather()
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
        let Some(mut sending) = self.sending.take() else { return Ok(()) };
        let now = (self.pipe.clock)();
        let commit = sending.transaction.commit;
        let failed = |source| Error::Spill { commit: commit.lsn, source };
        while self.has_room() {
            let Some(change) = sending.transaction.next_change().map_err(failed)? else {
                self.pipe.ledger.close(sending.ticket);
                self.pipe.source.recycle(sending.transaction);
                return Ok(());
            };
            let first = self.batch.records.len();
            let ticket = sending.ticket;
            if let Err(error) = self.pipe.encoder.encode(&commit, sending.index, &change, now, ticket, &mut self.batch)
            {
                self.batch.records.retain(|record| record.ticket != ticket);
                return Err(error.into());
            }
            count_row(self.pipe.metrics, &change.op);
            sending.index += 1;
            let records = &self.batch.records[first..];
            let bytes: usize = records.iter().map(|record| self.batch.len_of(record)).sum();
            self.pipe.ledger.sent(sending.ticket, records.len() as u64, bytes as u64);
            self.pipe.metrics.record_bytes.inc_by(bytes as u64);
            if self.batch.bytes.len() >= BATCH_BYTES {
                self.flush()?;
            }
        }
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
        self.pipe.metrics.records.inc_by(batch.records.len() as u64);
        self.pipe.sink.send(batch).map_err(|error| self.named(error))
    }

    fn retire(&mut self, result: Result<(), SinkError>) -> Result<(), Error> {
        for acknowledgement in self.acknowledged.drain(..) {
            self.sent_records -= acknowledgement.records;
            self.pipe.metrics.records_acknowledged.inc_by(acknowledgement.records);
            self.pipe.ledger.acknowledge(acknowledgement);
        }
        result.map_err(|error| self.named(error))
    }

    async fn confirm(&mut self) -> Result<(), Error> {
        let confirmed = self.pipe.ledger.confirmed();
        self.pipe.source.confirm(confirmed).await?;
        self.pipe.metrics.confirmed_lsn.set(confirmed.0);
        (self.told, self.told_at) = (confirmed, Instant::now());
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.pipe.ledger.bytes_in_flight() < self.pipe.in_flight_bytes_max
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

    /// What is in flight, and since when.
    fn show(&mut self) {
        let (metrics, ledger, now) = (self.pipe.metrics, &mut self.pipe.ledger, (self.pipe.clock)());
        metrics.beat();
        ledger.retired().for_each(|committed| metrics.delivered(committed, now));
        metrics.in_flight_bytes.set(ledger.bytes_in_flight());
        metrics.in_flight_transactions.set(ledger.tickets_in_flight() as u64);
        let age = ledger.oldest().map_or(0, |commit| (now - commit.time).max(0));
        metrics.lag_seconds.set(age as f64 / 1e6);
        if let Some(commit) = ledger.delivered() {
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

fn count_row(metrics: &Metrics, op: &Op<'_>) {
    match op {
        Op::Insert { .. } => metrics.rows.insert.inc(),
        Op::Update { .. } => metrics.rows.update.inc(),
        Op::Delete { .. } => metrics.rows.delete.inc(),
        Op::Truncate => metrics.rows.truncate.inc(),
    };
}
