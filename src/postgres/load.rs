//! Tables -> their rows as they are at one position of the log, while the log is streamed on. IO.
//!
//! A temporary slot on a connection of its own says the position and exports a snapshot of all that was committed before it.
//! Sessions on that snapshot read ranges of blocks. Each range is a transaction of its own: no lock is held, not even the weakest,
//! for longer than a range takes to read, or than whoever takes the rows lets us wait. What changes a table's file in between
//! (VACUUM FULL, TRUNCATE, some of ALTER TABLE) is seen by the file's number, and ends the load.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Ends,
    catalog::Control,
    copied::{self, Ctid},
    fault::{Fault, Step},
    session::Greeting,
};
use crate::source::{Load, LoadTable, Loaded, SourceError};

/// Sessions that read at a time: enough for us, and no burden for the server.
const READERS: usize = 2;
/// Of a table's file, 32 MiB with the usual blocks.
const RANGE_BLOCKS: u32 = 4096;
/// Rows that are handed on together.
const BATCH_BYTES: usize = 128 << 10;
/// Batches that wait to be taken.
const BATCHES: usize = 4;
/// Whoever takes no rows for so long makes us give the table's lock back.
const STALL: Duration = Duration::from_secs(2);
/// Between tries to lock a table that another session has locked, and how long it is tried.
const LOCK_PAUSE: Duration = Duration::from_secs(1);
const LOCK_MAX: Duration = Duration::from_secs(600);
/// How often the log says how far it is.
const WORD: Duration = Duration::from_secs(10);
/// After so long the log says for whom the slot waits.
const WAIT_WORD: Duration = Duration::from_secs(5);

/// Begins a load, in tasks of its own, and gives what comes of it. It ends when nobody takes that any more, and its slot with it.
pub(super) fn begin(ends: Ends, control: Control, tables: Vec<LoadTable>) -> mpsc::Receiver<Result<Load, SourceError>> {
    let (out, loaded) = mpsc::channel(BATCHES);
    let job = Job { ends, control, tables, out: out.clone() };
    tokio::spawn(async move {
        let done = tokio::select! {
            done = job.run() => done.map(|()| Load::Done),
            () = out.closed() => return,
        };
        // Nobody is there to hear it when the load was given up.
        let _ = out.send(done).await;
    });
    loaded
}

/// What is to be done.
struct Job {
    ends: Ends,
    control: Control,
    tables: Vec<LoadTable>,
    out: mpsc::Sender<Result<Load, SourceError>>,
}

/// A table that has rows of its own: one of those asked for, or a partition of it, as it was at the snapshot.
#[derive(Debug)]
struct Leaf {
    /// Index in what was asked for.
    table: usize,
    oid: String,
    /// `"schema"."name"`
    quoted: String,
    /// The number of its file.
    file: String,
    blocks: u32,
}

/// Blocks of one leaf.
#[derive(Clone, Copy, Debug)]
struct Range {
    leaf: usize,
    from: u32,
    /// The first that is not read; `None` is its end, wherever that is by now.
    to: Option<u32>,
    /// The last row that was read.
    after: Option<Ctid>,
}

/// What the readers share.
struct Work {
    job: Job,
    snapshot: String,
    leaves: Vec<Leaf>,
    /// Taken from the end.
    ranges: Mutex<Vec<Range>>,
    progress: Vec<Progress>,
}

/// How far a table is.
#[derive(Debug, Default)]
struct Progress {
    rows: AtomicU64,
    /// By the catalog; 0 is unknown.
    rows_estimated: u64,
    ranges_left: AtomicU64,
}

impl Job {
    async fn run(self) -> Result<(), SourceError> {
        let names: Vec<_> = self.tables.iter().map(|table| format!("{}.{}", table.schema, table.name)).collect();
        let names = names.join(", ");
        let began = Instant::now();
        info!(tables = %names, "a load begins: making its temporary slot, which waits for the transactions that are running now");
        if !self.control.query(SYNCHRONOUS, &[&self.ends.slot]).await?.is_empty() {
            let application_name = self.ends.application_name.clone();
            return Err(Fault::Synchronous { application_name }.refused());
        }
        let mut slot = self.ends.greeting(&self.control).await?;
        slot.step = Step::Load;
        last(&mut slot).await?;
        let name = slot_name(&self.ends.slot);
        let (lsn, snapshot) = self.waiting(slot.create_exporting_slot(&name)).await?;
        info!(
            tables = %names, at = %lsn,
            "loading the rows as they are at this position; until it ends the server cannot clean up what is deleted after it"
        );
        // Whoever waited for it may be gone; then so is the load in a moment.
        let _ = self.out.send(Ok(Load::From(lsn))).await;
        let work = Arc::new(self.plan(snapshot).await?);
        let mut readers = JoinSet::new();
        for _ in 0..READERS.min(work.leaves.len()) {
            let work = work.clone();
            readers.spawn(async move { work.read().await });
        }
        let mut words = interval(WORD);
        words.set_missed_tick_behavior(MissedTickBehavior::Delay);
        words.tick().await;
        loop {
            tokio::select! {
                done = readers.join_next() => match done {
                    Some(Ok(read)) => read?,
                    Some(Err(error)) => {
                        let doing = "load rows".into();
                        return Err(Fault::Lost { doing, what: error.to_string() }.passing());
                    }
                    None => break,
                },
                _ = words.tick() => work.tell(),
            }
        }
        // The slot is free for another before anybody hears of the end.
        slot.close().await;
        let rows: u64 = work.progress.iter().map(|progress| progress.rows.load(Relaxed)).sum();
        let took = humantime::format_duration(Duration::from_secs(began.elapsed().as_secs()));
        info!(tables = %names, rows, %took, at = %lsn, "loaded");
        Ok(())
    }

    /// Waits for the slot, and says once for whom.
    async fn waiting<T>(&self, made: impl Future<Output = T>) -> T {
        let mut made = std::pin::pin!(made);
        if let Ok(done) = timeout(WAIT_WORD, &mut made).await {
            return done;
        }
        match self.control.query(OLDEST, &[]).await.map(|rows| rows.first().map(|row| (row.get(0), row.get(1)))) {
            Ok(Some((pid, since))) => {
                let (pid, since): (i32, String) = (pid, since);
                info!(pid, %since, "the load waits for the transactions that run, of which this one is the oldest");
            }
            Ok(None) => info!("the load waits for the transactions that run, or are prepared"),
            Err(error) => debug!(%error, "who is waited for is not known"),
        }
        made.await
    }

    /// Looks at the tables as they are at the snapshot.
    async fn plan(self, snapshot: String) -> Result<Work, SourceError> {
        let mut session = self.reader().await?;
        let mut leaves = Vec::new();
        let mut progress = Vec::new();
        for (table, asked) in self.tables.iter().enumerate() {
            let quoted = quoted(&asked.schema, &asked.name);
            session.who.table = Some(quoted.clone());
            let sql = format!(
                "{}; SET LOCAL search_path = pg_catalog; {}; COMMIT",
                begin_at(&snapshot),
                LEAVES
                    .replace("$1", escape_literal(&asked.schema).trim())
                    .replace("$2", escape_literal(&asked.name).trim())
            );
            let rows = unlocked(&mut session, &quoted, &sql).await?;
            if rows.is_empty() {
                return Err(Fault::Changed { table: quoted, why: "it is gone" }.passing());
            }
            let mut estimated = 0;
            for row in rows.iter().filter(|row| row.first().is_some_and(|kind| kind == "r")) {
                let [_, oid, schema, name, file, blocks, estimate] = row.as_slice() else {
                    return Err(
                        Fault::Changed { table: quoted, why: "the catalog says nothing that makes sense" }.passing()
                    );
                };
                let blocks = blocks.parse().unwrap_or(u32::MAX);
                estimated += estimate.parse::<u64>().unwrap_or(0);
                leaves.push(Leaf {
                    table,
                    oid: oid.clone(),
                    quoted: self::quoted(schema, name),
                    file: file.clone(),
                    blocks,
                });
            }
            progress.push(Progress { rows_estimated: estimated, ..Progress::default() });
        }
        session.close().await;
        let mut ranges = Vec::new();
        for (index, leaf) in leaves.iter().enumerate() {
            let before = ranges.len();
            ranges.extend(ranges_of(index, leaf.blocks));
            progress[leaf.table].ranges_left.fetch_add((ranges.len() - before) as u64, Relaxed);
        }
        ranges.reverse();
        Ok(Work { job: self, snapshot, leaves, ranges: Mutex::new(ranges), progress })
    }

    async fn reader(&self) -> Result<Greeting, SourceError> {
        let mut session = self.ends.reader(&self.control).await?;
        session.step = Step::Load;
        last(&mut session).await?;
        Ok(session)
    }
}

/// A leaf in parts; the last one has no end.
fn ranges_of(leaf: usize, blocks: u32) -> impl Iterator<Item = Range> {
    let starts = (0..blocks.max(1)).step_by(RANGE_BLOCKS as usize);
    starts.map(move |from| {
        let to = from.checked_add(RANGE_BLOCKS).filter(|to| *to < blocks);
        Range { leaf, from, to, after: None }
    })
}

impl Work {
    /// Reads ranges until there is none left.
    async fn read(&self) -> Result<(), SourceError> {
        let mut session = None;
        loop {
            let next = self.ranges.lock().expect("nobody panics with it").pop();
            let Some(mut range) = next else { break };
            while !self.read_range(&mut session, &mut range).await? {}
            let leaf = &self.leaves[range.leaf];
            let progress = &self.progress[leaf.table];
            if progress.ranges_left.fetch_sub(1, Relaxed) == 1 {
                let LoadTable { schema, name, .. } = &self.job.tables[leaf.table];
                info!(table = %format!("{schema}.{name}"), rows = progress.rows.load(Relaxed), "all rows of the table are read");
            }
        }
        if let Some(session) = session {
            session.close().await;
        }
        Ok(())
    }

    /// Reads a range, from where it was left, in a transaction. False when it was left again: nobody took the rows, and the lock
    /// is given back by giving up the session.
    async fn read_range(&self, session: &mut Option<Greeting>, range: &mut Range) -> Result<bool, SourceError> {
        let leaf = &self.leaves[range.leaf];
        let columns = &self.job.tables[leaf.table].columns;
        let mut reader = match session.take() {
            Some(reader) => reader,
            None => self.job.reader().await?,
        };
        reader.who.table = Some(leaf.quoted.clone());
        let locked = format!(
            "{}; SELECT FROM ONLY {}; {}",
            begin_at(&self.snapshot),
            format_args!("{} LIMIT 0", leaf.quoted),
            SAME.replace("$1", &leaf.oid).replace("$2", escape_literal(&leaf.quoted).trim())
        );
        let found = unlocked(&mut reader, &leaf.quoted, &locked).await?;
        if found.last().and_then(|row| row.first()) != Some(&leaf.file) {
            let why = "it was rewritten or truncated in the meantime";
            return Err(Fault::Changed { table: leaf.quoted.clone(), why }.passing());
        }
        reader.copy(&range.sql(leaf, columns)).await?;
        let mut batch = Loaded { table: leaf.table, ..Loaded::default() };
        while let Some(line) = reader.line().await? {
            let ctid = copied::read(line.data(), columns.len(), &mut batch.bytes);
            let Some(ctid) = ctid.filter(|ctid| range.after.is_none_or(|after| after < *ctid)) else {
                let what = format!("a row of {} in COPY's text format", leaf.quoted);
                let fault = Fault::Protocol { address: reader.who.address.clone(), what };
                return Err(SourceError::Undecodable(Box::new(fault)));
            };
            batch.ends.push(batch.bytes.len());
            range.after = Some(ctid);
            if batch.bytes.len() >= BATCH_BYTES {
                let full = std::mem::replace(&mut batch, Loaded { table: leaf.table, ..Loaded::default() });
                match timeout(STALL, self.job.out.reserve()).await {
                    Ok(room) => self.give(room, full),
                    Err(_) => {
                        debug!(table = %leaf.quoted, "nobody takes the rows; the table is let go for that long");
                        drop(reader);
                        self.give(self.job.out.reserve().await, full);
                        return Ok(false);
                    }
                }
            }
        }
        if let Err(said) = reader.statements("COMMIT").await? {
            return Err(reader.sort(said));
        }
        if !batch.ends.is_empty() {
            self.give(self.job.out.reserve().await, batch);
        }
        *session = Some(reader);
        Ok(true)
    }

    /// Nobody takes rows of a load that is given up, and its tasks end in a moment.
    fn give(
        &self,
        room: Result<mpsc::Permit<'_, Result<Load, SourceError>>, mpsc::error::SendError<()>>,
        mut batch: Loaded,
    ) {
        let progress = &self.progress[batch.table];
        batch.expected = progress.rows_estimated;
        progress.rows.fetch_add(batch.ends.len() as u64, Relaxed);
        if let Ok(room) = room {
            room.send(Ok(Load::Rows(batch)));
        }
    }

    /// Says how far it is.
    fn tell(&self) {
        for (table, progress) in self.job.tables.iter().zip(&self.progress) {
            let rows = progress.rows.load(Relaxed);
            if rows > 0 && progress.ranges_left.load(Relaxed) > 0 {
                let (table, of_about) = (format!("{}.{}", table.schema, table.name), progress.rows_estimated);
                // Of a target of its own: where loads are drawn these lines are left out.
                info!(target: "offshoot::loading", %table, rows, of_about, "loading");
            }
        }
    }
}

impl Range {
    fn sql(&self, leaf: &Leaf, columns: &[String]) -> String {
        let columns: Vec<_> = columns.iter().map(|column| escape_identifier(column)).collect();
        let from = match self.after {
            Some(Ctid { block, place }) => format!("OPERATOR(pg_catalog.>) '({block},{place})'"),
            None => format!("OPERATOR(pg_catalog.>=) '({},0)'", self.from),
        };
        let to = self.to.map(|to| format!(" AND ctid OPERATOR(pg_catalog.<) '({to},0)'")).unwrap_or_default();
        format!("COPY (SELECT ctid, {} FROM ONLY {} WHERE ctid {from}{to}) TO STDOUT", columns.join(", "), leaf.quoted)
    }
}

/// Asks until no lock of another session is in the way. The lock is not waited for long, since others queue behind whoever waits.
async fn unlocked(session: &mut Greeting, table: &str, sql: &str) -> Result<Vec<Vec<String>>, SourceError> {
    let (since, mut told) = (Instant::now(), false);
    loop {
        match session.statements(sql).await? {
            Ok(rows) => return Ok(rows),
            Err(said) if said.code == LOCK_NOT_AVAILABLE => {
                if since.elapsed() > LOCK_MAX {
                    return Err(Fault::Locked { table: table.into(), seconds: LOCK_MAX.as_secs() }.passing());
                }
                if !std::mem::replace(&mut told, true) {
                    warn!(%table, "another session has locked a table that is loaded; it is tried again");
                }
                if let Err(said) = session.statements("ROLLBACK").await? {
                    return Err(session.sort(said));
                }
                sleep(LOCK_PAUSE).await;
            }
            Err(said) => return Err(session.sort(said)),
        }
    }
}

/// Sees to it that the server does not end a session because it is quiet, and ends it soon when we are gone.
async fn last(session: &mut Greeting) -> Result<(), SourceError> {
    if let Err(said) = session.statements(PATIENT).await? {
        return Err(session.sort(said));
    }
    // Not on every platform. The second statement is the first to be under it.
    if let Err(said) = session.statements(NOTICE_THE_END).await? {
        debug!(%said, "the server would not notice during a long wait that we are gone");
    }
    Ok(())
}

fn begin_at(snapshot: &str) -> String {
    let snapshot = escape_literal(snapshot);
    format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}", snapshot.trim())
}

fn quoted(schema: &str, name: &str) -> String {
    format!("{}.{}", escape_identifier(schema), escape_identifier(name))
}

/// Of this load alone: one that was given up may take a moment to go.
fn slot_name(slot: &str) -> String {
    const IDENTIFIER_LEN_MAX: usize = 63;
    let tail = format!("_load_{}_{:08x}", std::process::id(), fastrand::u32(..));
    let head = &slot[..slot.len().min(IDENTIFIER_LEN_MAX - tail.len())];
    format!("{head}{tail}")
}

const LOCK_NOT_AVAILABLE: &str = "55P03";

/// `transaction_timeout` is PostgreSQL 17's.
const PATIENT: &str = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN \
                       ('idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')";

const NOTICE_THE_END: &str = "SET client_connection_check_interval = '5s'; SELECT 1";

/// Whether commits wait for the session that streams. While they do they run, for all that a new slot knows; and they would wait for ever,
/// since nothing is confirmed before the slot's position is known.
const SYNCHRONOUS: &str = "
SELECT FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
WHERE s.slot_name = $1 AND r.sync_state <> 'async'";

/// The transactions that a slot waits for have ids; the oldest of them.
const OLDEST: &str = "
SELECT pid, coalesce(to_char(xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), 'a time that our role may not see')
FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1";

/// A table and its partitions, with what the snapshot knows of them, and how many blocks they have by now.
const LEAVES: &str = "
WITH RECURSIVE leaf(oid) AS (
  SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
  UNION ALL
  SELECT i.inhrelid FROM leaf JOIN pg_class p ON p.oid = leaf.oid AND p.relkind = 'p'
    JOIN pg_inherits i ON i.inhparent = leaf.oid
)
SELECT c.relkind, c.oid, n.nspname, c.relname, c.relfilenode,
  CASE WHEN c.relkind = 'r' THEN coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::bigint ELSE 0 END,
  greatest(c.reltuples, 0)::bigint
FROM leaf JOIN pg_class c ON c.oid = leaf.oid JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY n.nspname, c.relname";

/// The file of a table, if the name still is that table's. Asked under its lock, it stays so.
const SAME: &str = "SELECT CASE WHEN $2::pg_catalog.regclass::pg_catalog.oid = '$1'::pg_catalog.oid \
                    THEN pg_catalog.pg_relation_filenode('$1'::pg_catalog.oid)::pg_catalog.text ELSE '' END";
