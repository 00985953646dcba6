//! Crash simulation, deterministic by seed: the program's own assembler, encoder, pipeline, ledger and supervisor live and
//! die thousands of times against a model database and a model broker, in virtual time.
//!
//! Only the source's wire, the sink, the clock and randomness are replaced. A *life* goes from a start to its kill; a
//! *world* (one seed) is a database, a broker and some twenty lives, the last of which is left in peace so that everything must arrive.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    rc::Rc,
    time::Duration,
};

use fastrand::Rng;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    change::Micros,
    config::{ChangesConfig, Delivery},
    format::debezium::Encoder,
    ledger::{Ledger, PlantedBug},
    lsn::Lsn,
    pipeline::{Commits, Pipeline},
    postgres::{
        assemble::Assembler,
        compose::{self, Cell},
        stream::PostgresSource,
        wire::{Question, TableFacts, Wire},
    },
    progress::{Found, Origin, Progress},
    sink::{Acknowledgement, News, RecordBatch, Sink, SinkError, Ticket},
    source::SourceError,
    supervisor::{self, Attempt},
    telemetry::Metrics,
    transaction::Spill,
};

const EPOCH: Micros = 1_700_000_000_000_000;
const PARTITIONS: usize = 3;
const LIVES: usize = 20;
const TABLE: u32 = 16_400;
const OTHER_TABLE: u32 = 16_401;
const COLUMNS: &[(bool, &str, u32, i32)] = &[(true, "id", 23, -1), (false, "v", 25, -1)];

/// A committed transaction of the model database.
#[derive(Clone)]
struct Committed {
    commit: Lsn,
    end: Lsn,
    /// Keys of the rows it writes to the table that is asked for.
    keys: Vec<u8>,
    /// It also writes to a table that nobody asked for.
    other: bool,
}

/// A record that the broker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Published {
    commit: Lsn,
    index: u64,
    key: u8,
}

/// The database, the broker, and what is left of them between lives.
struct World {
    rng: Rng,
    log: Vec<Committed>,
    /// The server's position.
    position: Lsn,
    /// What the slot has confirmed.
    confirmed: Lsn,
    /// What is promised in this world.
    delivery: Delivery,
    /// Partitions of the topic, as who reads what is committed sees them.
    topic: [Vec<Published>; PARTITIONS],
    /// Everything that is in the topic to be seen.
    durable: HashSet<Published>,
    /// The open Kafka transaction.
    open: [Vec<Published>; PARTITIONS],
    /// The last progress record.
    progress: Option<Progress>,
    /// Counts who has taken over; whoever did so before the last is fenced off.
    producers: u64,
    /// No faults from now on.
    peace: bool,
    /// `limits.transaction_events`.
    transaction_events_max: u64,
    /// The first promise that was broken.
    broken: Option<String>,
    planted: Option<PlantedBug>,
    lives: usize,
    /// The last session ended with records in flight.
    in_flight: bool,
    /// Lives that were killed with records in flight.
    died_in_flight: usize,
}

type Shared = Rc<RefCell<World>>;

impl World {
    fn new(seed: u64, delivery: Delivery, planted: Option<PlantedBug>) -> Self {
        let start = Lsn(1000);
        let mut rng = Rng::with_seed(seed);
        let events = if rng.bool() { 10_000 } else { rng.u64(5..40) };
        Self {
            rng,
            transaction_events_max: events,
            delivery,
            open: Default::default(),
            progress: Some(Progress::creating(1, origin(), String::new(), 0)),
            producers: 0,
            log: Vec::new(),
            position: start,
            confirmed: start,
            topic: Default::default(),
            durable: HashSet::new(),
            peace: false,
            broken: None,
            planted,
            lives: 0,
            in_flight: false,
            died_in_flight: 0,
        }
    }

    /// Something happens in the database: a transaction, or traffic of others that only moves the log.
    fn happen(&mut self) {
        self.position.0 += self.rng.u64(1..500);
        if self.rng.u8(..4) == 0 {
            return;
        }
        let rows = match self.rng.u8(..20) {
            0 => 0,
            1 => self.rng.usize(20..60),
            _ => self.rng.usize(1..4),
        };
        let keys = (0..rows).map(|_| self.rng.u8(..6)).collect();
        let commit = self.position;
        let end = Lsn(commit.0 + 48);
        self.position = end;
        let other = self.rng.u8(..3) == 0;
        self.log.push(Committed { commit, end, keys, other });
    }

    fn break_promise(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// The slot is told a position: everything before it must be with the broker.
    fn confirm(&mut self, confirmed: Lsn) {
        if confirmed > self.position {
            self.break_promise(format!("{confirmed} is confirmed, but the log ends at {}", self.position));
        }
        let from = self.confirmed;
        let passed = self.index_after(from)..self.index_after(confirmed);
        for transaction in passed {
            if let Some(missing) = self.missing(&self.log[transaction]).first() {
                self.break_promise(format!("{confirmed} is confirmed, but {missing:?} is not with the broker"));
            }
        }
        self.confirmed = self.confirmed.max(confirmed);
    }

    /// The index of the first transaction whose commit record starts at or after `position`.
    fn index_after(&self, position: Lsn) -> usize {
        self.log.partition_point(|t| t.commit < position)
    }

    fn missing(&self, transaction: &Committed) -> Vec<Published> {
        let Committed { commit, .. } = *transaction;
        let all = transaction.keys.iter().enumerate().map(|(i, &key)| Published { commit, index: i as u64, key });
        all.filter(|p| !self.durable.contains(p)).collect()
    }

    /// After the last life: nothing lost, nothing invented, no key backwards but by a transaction sent again from its start.
    fn judge(&mut self) {
        let mut expected = HashSet::new();
        for transaction in self.log.clone() {
            if let Some(missing) = self.missing(&transaction).first() {
                self.break_promise(format!("{missing:?} was lost"));
            }
            for (index, &key) in transaction.keys.iter().enumerate() {
                expected.insert(Published { commit: transaction.commit, index: index as u64, key });
            }
        }
        let mut first_of: HashMap<(Lsn, u8), u64> = HashMap::new();
        for p in &expected {
            let first = first_of.entry((p.commit, p.key)).or_insert(p.index);
            *first = (*first).min(p.index);
        }
        let mut seen = HashSet::new();
        for partition in self.topic.clone() {
            let mut last: BTreeMap<u8, Published> = BTreeMap::new();
            for p in partition {
                if !expected.contains(&p) {
                    self.break_promise(format!("{p:?} was invented"));
                }
                if !seen.insert(p) && self.delivery == Delivery::ExactlyOnce {
                    self.break_promise(format!("{p:?} was published twice"));
                }
                if let Some(&before) = last.get(&p.key)
                    && p <= before
                    && first_of.get(&(p.commit, p.key)) != Some(&p.index)
                {
                    self.break_promise(format!("{p:?} after {before:?} is not a start over"));
                }
                last.insert(p.key, p);
            }
        }
        let end = self.log.last().map_or(self.confirmed, |t| t.end);
        if self.confirmed < end {
            self.break_promise(format!("the slot stays at {}, the log goes to {end}", self.confirmed));
        }
    }
}

fn origin() -> Origin {
    Origin { system_identifier: "7".into(), timeline: 1, slot: "offshoot_sim".into() }
}

fn partition(key: u8) -> usize {
    usize::from(key) % PARTITIONS
}

fn passing(what: &str) -> Box<dyn std::error::Error + Send + Sync> {
    what.into()
}

/// The replication connection to the model database.
struct SimWire {
    world: Shared,
    /// Where decoding has come to: everything that committed before has been sent.
    sent: Lsn,
    told_relations: bool,
    payloads: VecDeque<Vec<u8>>,
    current: Vec<u8>,
    /// When this connection breaks.
    breaks_at: Instant,
}

impl SimWire {
    fn connect(world: &Shared) -> Self {
        let mut w = world.borrow_mut();
        let until = if w.peace { 1 << 30 } else { w.rng.u64(1..10_000) };
        let sent = w.confirmed;
        drop(w);
        let breaks_at = Instant::now() + Duration::from_millis(until);
        let world = world.clone();
        Self { world, sent, told_relations: false, payloads: VecDeque::new(), current: Vec::new(), breaks_at }
    }

    /// Puts what the walsender sends next into `payloads`.
    fn decode_some(&mut self) {
        let mut world = self.world.borrow_mut();
        if !world.peace || world.log.is_empty() {
            world.happen();
        }
        let how_many = world.rng.usize(1..6);
        let next: Vec<(usize, Committed)> =
            world.log.iter().cloned().enumerate().skip(world.index_after(self.sent)).take(how_many).collect();
        let reply = world.rng.u8(..3) == 0;
        if next.is_empty() {
            self.sent = world.position;
            self.payloads.push_back(compose::keepalive(self.sent, reply));
            return;
        }
        for (xid, transaction) in next {
            let Committed { commit, end, ref keys, other } = transaction;
            let mut send = |message: &[u8]| self.payloads.push_back(compose::wal(Lsn(commit.0 - 1), message));
            send(&compose::begin(commit, EPOCH + commit.0 as i64, xid as u32));
            if !self.told_relations || world.rng.u8(..10) == 0 {
                send(&compose::relation(TABLE, "public", "t", b'd', COLUMNS));
                send(&compose::relation(OTHER_TABLE, "public", "other", b'd', COLUMNS));
                self.told_relations = true;
            }
            if other {
                send(&compose::insert(OTHER_TABLE, &[Cell::Text("1"), Cell::Null]));
            }
            for key in keys {
                send(&compose::insert(TABLE, &[Cell::Text(&key.to_string()), Cell::Text("x")]));
            }
            if world.rng.u8(..8) == 0 {
                // A keepalive inside a transaction: its position says nothing of what is done.
                self.payloads.push_back(compose::keepalive(world.position, reply));
            }
            self.payloads.push_back(compose::wal(commit, &compose::commit(commit, end, EPOCH + commit.0 as i64)));
            self.sent = end;
        }
    }
}

impl Wire for SimWire {
    async fn readable(&mut self) -> Result<(), SourceError> {
        while self.payloads.is_empty() {
            let wait = self.world.borrow_mut().rng.u64(0..300);
            let until = Instant::now() + Duration::from_millis(wait);
            sleep_until(until.min(self.breaks_at)).await;
            if Instant::now() >= self.breaks_at {
                return Err(SourceError::Passing(passing("connection reset")));
            }
            self.decode_some();
        }
        Ok(())
    }

    fn payload(&mut self) -> Result<Option<&[u8]>, SourceError> {
        let Some(payload) = self.payloads.pop_front() else { return Ok(None) };
        self.current = payload;
        Ok(Some(&self.current))
    }

    async fn write(&mut self, payload: &[u8]) -> Result<(), SourceError> {
        if Instant::now() >= self.breaks_at {
            return Err(SourceError::Passing(passing("connection reset")));
        }
        let confirmed = Lsn(u64::from_be_bytes(payload[9..17].try_into().expect("a status has a flush position")));
        self.world.borrow_mut().confirm(confirmed);
        Ok(())
    }

    async fn facts(&mut self, _: &Question) -> Result<TableFacts, SourceError> {
        let wait = self.world.borrow_mut().rng.u64(0..20);
        sleep(Duration::from_millis(wait)).await;
        Ok(TableFacts { primary_key: vec!["id".into()], ..TableFacts::default() })
    }

    async fn close(self) {}
}

/// A producer to the model broker: appends in order per partition, acknowledges late and in any order across partitions,
/// commits late.
struct SimSink {
    world: Shared,
    /// Which of those that have taken over this is; 0 before.
    producer: u64,
    /// Sent, not appended.
    queues: [VecDeque<(Published, Ticket, u64)>; PARTITIONS],
    /// Appended, not acknowledged, with the time when it will be.
    acknowledgements: Vec<(Instant, Acknowledgement)>,
    /// What is to be committed when everything before it has been appended, and, from then on, when.
    commit: Option<(Progress, Option<Instant>)>,
    /// Batches that were sent after the commit was asked for.
    after: VecDeque<RecordBatch>,
    fails_at: Instant,
}

impl SimSink {
    fn connect(world: &Shared) -> Self {
        let mut w = world.borrow_mut();
        let until = if w.peace { 1 << 30 } else { w.rng.u64(1..10_000) };
        drop(w);
        Self {
            world: world.clone(),
            producer: 0,
            queues: Default::default(),
            acknowledgements: Vec::new(),
            commit: None,
            after: VecDeque::new(),
            fails_at: Instant::now() + Duration::from_millis(until),
        }
    }

    fn is_fenced(&self) -> bool {
        let world = self.world.borrow();
        world.delivery == Delivery::ExactlyOnce && self.producer != world.producers
    }

    /// The broker takes some records of each partition, in order, and perhaps the commit behind them.
    fn append_some(&mut self) {
        if self.is_fenced() {
            return;
        }
        let mut world = self.world.borrow_mut();
        for (partition, queue) in self.queues.iter_mut().enumerate() {
            let some = world.rng.usize(0..=queue.len().min(30));
            let delay = Duration::from_millis(world.rng.u64(0..400));
            for (published, ticket, bytes) in queue.drain(..some) {
                match world.delivery {
                    Delivery::ExactlyOnce => world.open[partition].push(published),
                    Delivery::AtLeastOnce => {
                        world.topic[partition].push(published);
                        world.durable.insert(published);
                    }
                }
                self.acknowledgements.push((Instant::now() + delay, Acknowledgement { ticket, records: 1, bytes }));
            }
        }
        // Without transactions the progress record is one of another partition, and waits for nobody.
        let arrived = self.queues.iter().all(VecDeque::is_empty) && self.acknowledgements.is_empty();
        if let Some((_, at @ None)) = &mut self.commit
            && (arrived || world.delivery == Delivery::AtLeastOnce)
        {
            *at = Some(Instant::now() + Duration::from_millis(world.rng.u64(0..200)));
        }
    }

    /// The broker commits what has been appended, and the progress record with it.
    fn commit_now(&mut self) {
        let Some((progress, _)) = self.commit.take() else { return };
        let world = &mut *self.world.borrow_mut();
        for (open, topic) in world.open.iter_mut().zip(&mut world.topic) {
            world.durable.extend(open.iter().copied());
            topic.append(open);
        }
        if world.progress.as_ref().is_none_or(|before| progress.supersedes(before)) {
            world.progress = Some(progress);
        }
    }

    fn in_flight(&self) -> usize {
        let after: usize = self.after.iter().map(|batch| batch.records.len()).sum();
        self.queues.iter().map(VecDeque::len).sum::<usize>()
            + self.acknowledgements.len()
            + after
            + usize::from(self.commit.is_some())
    }

    fn enqueue(&mut self, batch: &RecordBatch) {
        for record in &batch.records {
            let text = |range: &Option<std::ops::Range<usize>>| {
                std::str::from_utf8(&batch.bytes[range.clone().expect("neither is null here")])
                    .expect("JSON")
                    .to_owned()
            };
            let (key, payload) = (text(&record.key), text(&record.payload));
            let number = |text: &str, after: &str| -> u64 {
                let at = text.find(after).expect("the envelope has it") + after.len();
                text[at..]
                    .split(|c: char| !c.is_ascii_digit())
                    .next()
                    .expect("split gives one")
                    .parse()
                    .expect("digits")
            };
            let key = number(&key, "\"id\":") as u8;
            let commit = Lsn(number(&payload, "\"sequence\":\"[\\\""));
            let index = number(&payload, "\\\",\\\"");
            let published = Published { commit, index, key };
            let bytes = batch.len_of(record) as u64;
            self.queues[partition(key)].push_back((published, record.ticket, bytes));
        }
    }
}

impl Drop for SimSink {
    /// A producer that dies leaves requests on the way: some of them still arrive.
    fn drop(&mut self) {
        self.world.borrow_mut().in_flight = self.in_flight() > 0;
        self.append_some();
        let arrives = self.world.borrow_mut().rng.bool();
        if arrives && !self.is_fenced() && matches!(self.commit, Some((_, Some(_)))) {
            self.commit_now();
        }
    }
}

impl Sink for SimSink {
    async fn take_over(&mut self) -> Result<Option<Progress>, SinkError> {
        let wait = self.world.borrow_mut().rng.u64(0..300);
        sleep_until((Instant::now() + Duration::from_millis(wait)).min(self.fails_at)).await;
        if Instant::now() >= self.fails_at {
            return Err(SinkError::Passing(passing("broker transport failure")));
        }
        let mut world = self.world.borrow_mut();
        world.producers += 1;
        self.producer = world.producers;
        world.open = Default::default();
        Ok(world.progress.clone())
    }

    fn batch(&mut self) -> RecordBatch {
        RecordBatch::default()
    }

    fn send(&mut self, batch: RecordBatch) -> Result<(), SinkError> {
        match self.commit {
            Some(_) => self.after.push_back(batch),
            None => self.enqueue(&batch),
        }
        Ok(())
    }

    fn commit(&mut self, progress: &Progress) -> Result<(), SinkError> {
        assert!(self.commit.is_none(), "one commit at a time");
        self.commit = Some((progress.clone(), None));
        Ok(())
    }

    async fn news(&mut self, into: &mut News) -> Result<(), SinkError> {
        loop {
            let now = Instant::now();
            if now >= self.fails_at {
                return Err(SinkError::Passing(passing("broker transport failure")));
            }
            if self.is_fenced() {
                return Err(SinkError::Passing(passing("fenced")));
            }
            let before = into.acknowledged.len();
            self.acknowledgements.retain(|(at, acknowledgement)| {
                if *at <= now {
                    into.acknowledged.push(*acknowledgement);
                }
                *at > now
            });
            if matches!(self.commit, Some((_, Some(at))) if at <= now) {
                self.commit_now();
                into.committed = true;
                for batch in std::mem::take(&mut self.after) {
                    self.enqueue(&batch);
                }
            }
            if into.acknowledged.len() > before || into.committed {
                return Ok(());
            }
            let wait = Duration::from_millis(self.world.borrow_mut().rng.u64(1..200));
            let commit = self.commit.as_ref().and_then(|(_, at)| *at);
            let next = self.acknowledgements.iter().map(|(at, _)| *at).chain(commit).min().unwrap_or(now + wait);
            sleep_until(next.min(now + wait).min(self.fails_at)).await;
            self.append_some();
        }
    }

    async fn close(self) {}
}

/// One life: the program from its start until it is killed, or stopped when `mercy` says so.
async fn live(world: &Shared, metrics: &Metrics) {
    let (kill_after, stops_cleanly, seed) = {
        let mut w = world.borrow_mut();
        w.lives += 1;
        let kill_after = if w.peace { 120_000 } else { w.rng.u64(1..8_000) };
        (Duration::from_millis(kill_after), w.peace || w.rng.u8(..5) == 0, w.rng.u64(..))
    };
    let attempt = async || {
        let changes = ChangesConfig { tables: vec!["public.t".into()], ..ChangesConfig::default() };
        let encoder = Encoder::new("sim", "sim", &changes).expect("the template is the default");
        let (confirmed, planted, budget, memory_max) = {
            let mut w = world.borrow_mut();
            let memory_max = if w.rng.u8(..10) == 0 { 200 } else { 1 << 16 };
            (w.confirmed, w.planted, w.rng.u64(100..20_000), memory_max)
        };
        let spill = Spill { dir: std::env::temp_dir(), memory_max, file_max: 1 << 20 };
        let assembler = Assembler::new(Box::new(|_, name, _| name == "t"), spill);
        let mut ledger = Ledger::new(confirmed);
        ledger.plant(planted);
        let mut pipeline = Pipeline {
            source: PostgresSource::new(SimWire::connect(world), assembler, confirmed, || EPOCH),
            sink: SimSink::connect(world),
            encoder,
            ledger,
            found: Found {
                origin: origin(),
                history: Vec::new(),
                confirmed,
                end_of_log: world.borrow().position,
                fingerprint: String::new(),
            },
            commits: Commits {
                delivery: world.borrow().delivery,
                interval: Duration::from_millis(100),
                events: 20,
                transaction_events_max: world.borrow().transaction_events_max,
            },
            commit_before: None,
            untold: None,
            in_flight_bytes_max: budget,
            clock: || EPOCH,
            metrics,
        };
        let stop_after = if stops_cleanly { kill_after / 2 } else { Duration::MAX };
        let result = pipeline.run(sleep(stop_after)).await;
        let progressed = pipeline.ledger.confirmed() > confirmed;
        pipeline.close().await;
        Attempt { result, progressed }
    };
    let killed = timeout(kill_after, supervisor::run(attempt, std::future::pending(), seed, metrics)).await.is_err();
    let mut world = world.borrow_mut();
    if killed && world.in_flight {
        world.died_in_flight += 1;
    }
}

/// Lives the lives of one seed and judges what is left.
fn world(seed: u64, delivery: Delivery, planted: Option<PlantedBug>) -> World {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let metrics = Metrics::default();
    let world = Rc::new(RefCell::new(World::new(seed, delivery, planted)));
    for life in 1..=LIVES {
        world.borrow_mut().peace = life == LIVES;
        runtime.block_on(live(&world, &metrics));
        if world.borrow().broken.is_some() {
            break;
        }
    }
    let mut world = Rc::into_inner(world).expect("all lives are over").into_inner();
    world.judge();
    world
}

/// How many seeds `cargo test` lives; `OFFSHOOT_SEEDS=100000` lives more, `OFFSHOOT_SEED=7` one.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (number("OFFSHOOT_SEED"), number("OFFSHOOT_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(500),
    }
}

#[test]
fn no_crash_loses_invents_or_reorders() {
    live_and_judge(Delivery::AtLeastOnce);
}

#[test]
fn no_crash_loses_invents_reorders_or_repeats() {
    live_and_judge(Delivery::ExactlyOnce);
}

fn live_and_judge(delivery: Delivery) {
    let (mut lives, mut died_in_flight, mut records) = (0, 0, 0);
    let began = std::time::Instant::now();
    for seed in seeds() {
        let world = world(seed, delivery, None);
        if let Some(broken) = world.broken {
            panic!("seed {seed}: {broken}; again with OFFSHOOT_SEED={seed}");
        }
        lives += world.lives;
        died_in_flight += world.died_in_flight;
        records += world.topic.iter().map(Vec::len).sum::<usize>();
    }
    let seconds = began.elapsed().as_secs_f64();
    let per_second = lives as f64 / seconds;
    println!("{lives} lives, {died_in_flight} killed in flight, {records} records, {per_second:.0} lives a second");
    assert!(died_in_flight * 2 >= lives, "only {died_in_flight} of {lives} lives died with records in flight");
}

#[test]
fn a_seed_lives_the_same_lives_again() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let topic = |seed| world(seed, delivery, None).topic;
        assert_eq!(topic(3), topic(3));
        assert_ne!(topic(3), topic(4));
    }
}

/// The simulation counts only because it finds these.
#[test]
fn each_planted_bug_is_found() {
    const SEEDS_MAX: u64 = 20;
    for bug in [PlantedBug::ConfirmsNewest, PlantedBug::ConfirmsReceived, PlantedBug::RetiresOneEarly] {
        let found = (0..SEEDS_MAX).find(|&seed| world(seed, Delivery::AtLeastOnce, Some(bug)).broken.is_some());
        assert!(found.is_some(), "{bug:?} was not found within {SEEDS_MAX} seeds");
    }
}
