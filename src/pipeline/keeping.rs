//! What is held of the source's tables, in step with what is published: found again at a start, loaded where it is new, told of by
//! `backfill`, and kept on disk between Kafka's commits.
//!
//! A load reads tables as they are at one position of the log. What commits before that goes on meanwhile, without the events that
//! need these tables; what commits there or later waits until the load is at its end.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::{Error, Run, STATUS_INTERVAL, Sending, copy};
#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};
use crate::{
    change::{Commit, Micros},
    ledger::Ledger,
    lsn::Lsn,
    outlets::HeldShape,
    progress::{self, Gap, HeldTable, Holding},
    replica::Position,
    sink::{Sink, Ticket},
    source::{Item, Load, LoadTable, Loaded, Source, SourceError},
    telemetry::{Metrics, ShownLoad, State},
    transaction::Transaction,
};

/// What was committed in Kafka is kept on disk at most so often; what is not is read from the topic again at the next start.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
/// And so often it outlives the host.
const DURABLE_INTERVAL: Duration = Duration::from_secs(10);

/// So many rows are looked at in one go for whether they are of earlier loads; then whoever else waits has a turn.
const LOOKED_ROWS: usize = 1000;

/// What is held, and what is under way about it. Empty where the mapping needs nothing of the kind.
#[derive(Default)]
pub(super) struct Keeping {
    /// As the next progress record has it.
    pub(super) holding: Option<Holding>,
    shapes: Vec<HeldShape>,
    load: Option<Loading>,
    /// Where the topic ends, after the last record of ours that is durable; `None` until that has been found.
    end: Option<i64>,
    /// Rows that were put, those of them that the commit on its way covers, and those that are on disk.
    put: u64,
    committing: u64,
    stored: u64,
    stored_at: Option<Instant>,
    durable_at: Option<Instant>,
    /// Events that are to tell of the rows that were there, once the stream is at this position.
    backfill: Option<(Lsn, Vec<usize>)>,
    /// What comes after the load, or after the backfill.
    waiting: Option<Item>,
    /// Tables of which the topic may have rows of earlier loads, and how far the first one has been looked through.
    burying: VecDeque<usize>,
    buried: Vec<u8>,
}

/// A load.
struct Loading {
    /// Indexes in `Keeping::shapes`, as it was asked for.
    tables: Vec<usize>,
    number: u32,
    /// The topic was empty when it began.
    is_first: bool,
    /// `None` until the source has said it.
    from: Option<Lsn>,
    /// Rows, by table.
    read: BTreeMap<usize, u64>,
    since: Instant,
    _shown: ShownLoad,
}

impl Keeping {
    /// What has been put is committed in Kafka, but for what was put since.
    pub(super) fn committed(&mut self, end: Option<i64>) {
        self.end = self.end.max(end);
    }

    /// What is put from now on is not of the commit that is asked for now.
    pub(super) fn commits(&mut self) -> Option<Holding> {
        self.committing = self.put;
        let end = self.end;
        self.holding.as_mut().map(|holding| {
            holding.end = end.unwrap_or(holding.end);
            holding.clone()
        })
    }

    /// It is time that what was put is kept on disk, and for that nothing more must be put until Kafka has committed what was.
    pub(super) fn settles(&self) -> bool {
        self.put > self.stored && self.stored_at.is_some_and(|at| at.elapsed() >= STORE_INTERVAL)
    }

    /// Rows of earlier loads may be in the topic.
    pub(super) fn buries(&self) -> bool {
        !self.burying.is_empty()
    }

    /// It is not known yet from which position on rows are held.
    pub(super) fn waits_for_position(&self) -> bool {
        self.load.as_ref().is_some_and(|load| load.from.is_none())
    }

    /// Rows of the source's tables are held.
    pub(super) fn holds(&self) -> bool {
        !self.shapes.is_empty()
    }

    /// A row was put.
    pub(super) fn put(&mut self) {
        self.put += 1;
    }
}

/// What the next item of the stream has to wait for.
fn at(item: &Item) -> Option<Lsn> {
    match item {
        Item::Transaction(transaction) => Some(transaction.commit.lsn),
        Item::Progress(position) => Some(*position),
        Item::Load(_) => None,
    }
}

/// A position before everything that commits at `position` or later, and after all that did before: no commit record starts there.
fn just_before(position: Lsn) -> Lsn {
    Lsn(position.0 - 1)
}

/// Answers the source while something is waited for.
async fn answering<S: Source, T, E: Into<Error>>(
    source: &mut S,
    ledger: &Ledger,
    told_at: &mut Instant,
    metrics: &Metrics,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    let mut work = std::pin::pin!(metrics.beating(work));
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done.map_err(Into::into),
            () = sleep_until(*told_at + STATUS_INTERVAL) => source.confirm(ledger.confirmed()).await?,
        }
        *told_at = Instant::now();
    }
}

impl<S: Source, K: Sink> Run<'_, '_, S, K> {
    /// Finds again what is held, and begins to load what is not.
    pub(super) async fn hold(&mut self) -> Result<(), Error> {
        let Some(progress) = &self.progress else { return Ok(()) };
        let before = progress.replica.clone();
        self.keeping.shapes = self.pipe.outlets.held();
        if self.keeping.shapes.is_empty() {
            // What was held is not in step any more, should it be needed again.
            self.keeping.holding = before.map(|before| Holding { tables: Vec::new(), ..before });
            return Ok(());
        }
        let mut holding = progress::held(progress, &self.pipe.found, &self.start);
        if holding.tables.is_empty() {
            // Whatever a copy on disk has is of no use.
            holding.generation = format!("{:016x}", fastrand::u64(..));
        }
        let published = self.start.published;
        let topic = self.find_topic(&holding).await?;
        let shapes = &self.keeping.shapes;
        let shape_of = |table: &HeldTable| {
            let is_it = |shape: &&HeldShape| shape.oid == table.oid || [shape.oid, table.oid].contains(&0);
            let shape = shapes.iter().find(|shape| shape.full_name() == table.table && shape.columns == table.columns);
            shape.filter(is_it)
        };
        holding.tables.retain(|table| shape_of(table).is_some());
        for table in &holding.tables {
            let shape = shape_of(table).expect("only those are left");
            self.pipe.outlets.set_held(shape.table, table.load, Some(table.from));
        }
        let is_held = |shape: &HeldShape| holding.tables.iter().any(|table| table.table == shape.full_name());
        let missing: Vec<usize> = (0..shapes.len()).filter(|index| !is_held(&shapes[*index])).collect();
        let is_first = topic.end == 0;
        self.read_topic(&holding, topic).await?;
        #[cfg(test)]
        let leaves = is_planted(PlantedBug::LeavesEarlierLoads);
        #[cfg(not(test))]
        let leaves = false;
        self.bury_tables(&holding, |_| !leaves);
        if !missing.is_empty() {
            let now = (self.pipe.clock)() / 1_000_000;
            holding.loads = (holding.loads + 1).max(now as u32);
            self.load(missing, holding.loads, is_first);
        } else if let Some(at) = holding.backfilling {
            self.plan_backfill(&holding, Lsn(at.0 + 1));
        } else {
            self.plan_backfill(&holding, published);
        }
        self.keeping.holding = Some(holding);
        self.keeping.stored_at = Some(Instant::now());
        self.keeping.durable_at = Some(Instant::now());
        Ok(())
    }

    /// Where the topic begins and ends; it is made when nothing is to be in it.
    async fn find_topic(&mut self, holding: &Holding) -> Result<Range<i64>, Error> {
        let make = holding.tables.is_empty();
        let super::Pipeline { source, sink, ledger, metrics, .. } = &mut *self.pipe;
        let name = sink.kept_topic().name.clone();
        let found = answering(source, ledger, &mut self.told_at, metrics, sink.find_kept(make)).await?;
        let lost = |found: String| {
            let end = self.start.published;
            Error::Source(SourceError::SlotLost(Box::new(Gap::NotHeld { end, topic: name, found })))
        };
        match found {
            None => Err(lost("is not there".into())),
            Some(range) if !make && range.end < holding.end => {
                Err(lost(format!("ends at offset {}, and we have written up to {}", range.end, holding.end)))
            }
            Some(range) => Ok(range),
        }
    }

    /// Reads what of the topic the copy on disk does not have.
    async fn read_topic(&mut self, holding: &Holding, topic: Range<i64>) -> Result<(), Error> {
        let now = (self.pipe.clock)();
        let super::Pipeline { source, sink, ledger, metrics, outlets, .. } = &mut *self.pipe;
        let read = copy::catch_up(sink, outlets, &holding.generation, &topic, now, metrics);
        answering(source, ledger, &mut self.told_at, metrics, read).await?;
        self.tell_figures(now);
        self.keeping.end = Some(topic.end);
        Ok(())
    }

    fn load(&mut self, tables: Vec<usize>, number: u32, is_first: bool) {
        let shapes = &self.keeping.shapes;
        for table in &tables {
            self.pipe.outlets.set_held(shapes[*table].table, number, None);
        }
        let asked = tables.iter().map(|table| {
            let HeldShape { schema, name, names, .. } = &shapes[*table];
            LoadTable { schema: schema.clone(), name: name.clone(), columns: names.clone() }
        });
        self.pipe.source.load(asked.collect());
        // What commits before the rows may go on, and that is not known yet.
        self.pipe.source.pause(true);
        let shown = self.pipe.metrics.load(tables.iter().map(|table| shapes[*table].full_name()));
        let (read, since) = (BTreeMap::new(), Instant::now());
        self.keeping.load = Some(Loading { tables, number, is_first, from: None, read, since, _shown: shown });
    }

    /// Takes what a load gives.
    pub(super) fn take_load(&mut self, load: Load) -> Result<(), Error> {
        match load {
            Load::From(from) => {
                let loading = self.keeping.load.as_mut().expect("it was asked for");
                loading.from = Some(from);
                let (number, alone) = (loading.number, loading.is_first);
                let holding = self.keeping.holding.as_mut().expect("it is held");
                for table in &loading.tables {
                    let shape = &self.keeping.shapes[*table];
                    self.pipe.outlets.set_held(shape.table, number, Some(from));
                    holding.tables.push(HeldTable {
                        table: shape.full_name(),
                        oid: shape.oid,
                        columns: shape.columns.clone(),
                        load: number,
                        from,
                        complete: false,
                        alone,
                    });
                    info!(table = shape.full_name(), %from, "loads the table; events that need it begin there");
                }
                self.pipe.source.pause(false);
                // What is committed from now on is told of.
                self.pipe.metrics.set_state(State::Streaming);
                Ok(())
            }
            Load::Rows(rows) => self.keep_loaded(&rows),
            Load::Done => {
                let loading = self.keeping.load.take().expect("it was asked for");
                let mut holding = self.keeping.holding.clone().expect("it is held");
                let of_it = holding.tables.iter_mut().filter(|table| table.load == loading.number);
                of_it.for_each(|table| table.complete = true);
                self.bury_tables(&holding, |table| table.load == loading.number);
                let rows: u64 = loading.read.values().sum();
                info!(rows, seconds = loading.since.elapsed().as_secs(), "has loaded what events need");
                self.plan_backfill(&holding, self.pipe.ledger.sent_whole());
                self.keeping.holding = Some(holding);
                Ok(())
            }
        }
    }

    fn keep_loaded(&mut self, rows: &Loaded) -> Result<(), Error> {
        let loading = self.keeping.load.as_mut().expect("it was asked for");
        let shape = &self.keeping.shapes[loading.tables[rows.table]];
        let (table, number) = (shape.table, loading.number);
        let read = loading.read.entry(rows.table).or_default();
        *read += rows.ends.len() as u64;
        self.pipe.metrics.replica_loaded(&shape.full_name(), *read, rows.expected);
        let ticket = self.pipe.ledger.aside();
        let topic = self.pipe.sink.kept_topic();
        for cells in rows.rows() {
            self.pipe.outlets.load_row(table, number, cells, &topic, ticket, &mut self.batch).map_err(Error::Hold)?;
            self.kept_one(ticket)?;
        }
        self.pipe.ledger.close(ticket);
        self.flush()
    }

    /// Rows of earlier loads of these tables are to leave the topic, where there may be some.
    fn bury_tables(&mut self, holding: &Holding, which: impl Fn(&HeldTable) -> bool) {
        let tables = holding.tables.iter().filter(|table| table.complete && !table.alone && which(table));
        let names: Vec<&str> = tables.map(|table| table.table.as_str()).collect();
        let Keeping { shapes, burying, .. } = &mut self.keeping;
        burying.extend((0..shapes.len()).filter(|shape| names.contains(&&*shapes[*shape].full_name())));
    }

    /// Looks at some rows, and takes those of earlier loads out of the topic, where nobody takes them for being there.
    pub(super) fn bury(&mut self) -> Result<(), Error> {
        let Some(&shape) = self.keeping.burying.front().filter(|_| self.sending.is_none() && self.has_room()) else {
            return Ok(());
        };
        let ticket = self.pipe.ledger.aside();
        let topic = self.pipe.sink.kept_topic();
        let (table, mut after) = (self.keeping.shapes[shape].table, std::mem::take(&mut self.keeping.buried));
        for _ in 0..LOOKED_ROWS {
            match self.pipe.outlets.bury(table, &mut after, &topic, ticket, &mut self.batch).map_err(Error::Hold)? {
                Some(true) => self.kept_one(ticket)?,
                Some(false) => {}
                None => {
                    self.keeping.burying.pop_front();
                    let name = self.keeping.shapes[shape].full_name();
                    let held = self.keeping.holding.iter_mut().flat_map(|holding| &mut holding.tables);
                    held.filter(|held| held.table == name).for_each(|held| held.alone = true);
                    after.clear();
                    break;
                }
            }
        }
        self.keeping.buried = after;
        self.pipe.ledger.close(ticket);
        self.flush()
    }

    /// The last record of the batch is of the replica's topic.
    fn kept_one(&mut self, ticket: Ticket) -> Result<(), Error> {
        let bytes = self.batch.weight_of(self.batch.records.last().expect("it was just written"));
        self.pipe.ledger.sent(ticket, 1, bytes as u64);
        self.uncommitted.events += 1;
        self.keeping.put();
        if self.batch.bytes.len() >= super::BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Whether an item of the stream comes now; else it is kept until it may.
    pub(super) fn may_come(&mut self, item: Item) -> Option<Item> {
        let Some(at) = at(&item) else { return Some(item) };
        let loads = self.keeping.load.as_ref().is_some_and(|load| load.from.is_none_or(|from| at >= from));
        #[cfg(test)]
        let loads = loads && !is_planted(PlantedBug::NothingWaitsForLoads);
        let tells = self.keeping.backfill.as_ref().is_some_and(|(from, _)| at >= *from);
        if !loads && !tells {
            return Some(item);
        }
        self.pipe.source.pause(true);
        self.keeping.waiting = Some(item);
        None
    }

    /// Lets come what has waited and may: the rows that were there, then what comes after them. False when there is nothing.
    pub(super) fn go_on(&mut self) -> Result<bool, Error> {
        if self.keeping.load.is_some() || self.keeping.waiting.is_none() {
            return Ok(false);
        }
        match self.keeping.backfill.take() {
            Some((from, events)) => self.open_backfill(from, &events)?,
            None => {
                self.pipe.source.pause(false);
                let item = self.keeping.waiting.take().expect("it was looked for");
                self.take(item)?;
            }
        }
        Ok(true)
    }

    /// Events that tell of rows that were there before are due once the stream is where the rows are as they are held.
    fn plan_backfill(&mut self, holding: &Holding, published: Lsn) {
        let events = self.pipe.outlets.backfills(&holding.backfilled);
        if events.is_empty() {
            return;
        }
        let from = holding.tables.iter().map(|table| table.from).max().unwrap_or(published);
        self.keeping.backfill = Some((from.max(published), events));
    }

    fn open_backfill(&mut self, from: Lsn, events: &[usize]) -> Result<(), Error> {
        let mut transaction = Transaction::new();
        let commit = Commit { xid: 0, lsn: just_before(from), end: from, time: (self.pipe.clock)() };
        transaction.commit = commit;
        let partial = self.start.partial.filter(|partial| partial.commit == commit.lsn);
        let published = partial.map_or(0, |partial| partial.index);
        info!(%from, "tells of the rows that were there before");
        self.keeping.holding.as_mut().expect("it is held").backfilling = Some(commit.lsn);
        let epoch = self.progress.as_ref().map_or(1, |progress| progress.epoch);
        let epoch = progress::epoch_of(epoch, &self.pipe.found, commit.lsn);
        self.pipe.outlets.begin_backfill(&commit, epoch, events);
        let ticket = self.pipe.ledger.open(commit);
        self.sending =
            Some(Sending { published, splits: Some(true), flushed: published > 0, ..Sending::of(transaction, ticket) });
        self.encode()
    }

    /// The rows that were there are all told of.
    pub(super) fn backfilled(&mut self, commit: Lsn) {
        let Some(holding) = self.keeping.holding.as_mut().filter(|holding| holding.backfilling == Some(commit)) else {
            return;
        };
        holding.backfilling = None;
        holding.backfilled = self.pipe.outlets.backfill_names();
    }

    /// Keeps on disk what was put, when Kafka has committed all of it.
    pub(super) fn store(&mut self, is_last: bool) -> Result<(), Error> {
        let Keeping { put, committing, stored, stored_at, durable_at, .. } = &mut self.keeping;
        let (Some(at), Some(durable)) = (*stored_at, *durable_at) else { return Ok(()) };
        let is_quiet = *put == *committing && self.uncommitted.committing.is_none();
        #[cfg(test)]
        let is_quiet = is_quiet
            || is_planted(PlantedBug::StoresBeforeTheCommit)
            || is_planted(PlantedBug::KeepsWhatFailed) && is_last;
        if !is_quiet || *put == *stored || !is_last && at.elapsed() < STORE_INTERVAL {
            return Ok(());
        }
        let is_durable = is_last || durable.elapsed() >= DURABLE_INTERVAL;
        *stored = *put;
        *stored_at = Some(Instant::now());
        if is_durable {
            *durable_at = Some(Instant::now());
        }
        let holding = self.keeping.holding.as_ref().expect("something was put");
        let offset = self.keeping.end.expect("the topic was read before anything was put");
        #[cfg(test)]
        let offset = offset + i64::from(is_planted(PlantedBug::StoresOneTooFar));
        let position = Position {
            generation: holding.generation.clone(),
            offset,
            time: (self.pipe.clock)(),
            shapes: copy::shapes(&self.keeping.shapes),
        };
        self.pipe.outlets.store(&position, is_durable).map_err(Error::Hold)?;
        self.tell_figures(position.time);
        Ok(())
    }

    /// The copy on disk was brought up to date then.
    fn tell_figures(&mut self, time: Micros) {
        let (figures, metrics) = (self.pipe.outlets.replica_figures(), self.pipe.metrics);
        for shape in &self.keeping.shapes {
            metrics.replica_rows(&shape.full_name(), figures.rows.get(shape.table).copied().unwrap_or(0));
        }
        metrics.replica_bytes.set(figures.bytes);
        metrics.replica_hits.inc_by(figures.hits);
        metrics.replica_misses.inc_by(figures.misses);
        metrics.replica_kept(time);
    }
}
