//! `offshoot preview`: what a config would publish of what is committed from now on, rows on the left and records on the right.
//! Nothing is sent, and nothing is kept.

use std::{sync::Arc, time::Duration};

use anstyle::{AnsiColor, Style};
use serde_json::{Value as Json, json};
use tokio::{
    signal,
    time::{Instant, sleep_until},
};

use crate::{
    causes::told,
    change::{Change, Content, Old, Op, Row, Value},
    config::Config,
    exit::Exit,
    lsn::Lsn,
    outlets::{Leaves, Outlets, Step, StepError},
    pipeline::Error,
    postgres::{self, assemble::Assembler, preview::Preview, stream::PostgresSource},
    progress,
    replica::Replica,
    sink::{Record, RecordBatch, Ticket, Topic},
    source::{Item, Load, LoadTable, Source, SourceError},
    transaction::{Spill, SpillError, Transaction},
};

use super::{
    PreviewArguments,
    columns::{Columns, Line, cut, spaced, wrap},
    stream::{now, outlets, patterns, rules, wanted},
};

/// A status goes to Postgres at least this often, a third of the session's `wal_sender_timeout`.
const STATUS_INTERVAL: Duration = Duration::from_secs(3);
/// Rows, and records, of one transaction that are shown; the others are counted.
const SHOWN_MAX: usize = 50;
/// Lines that one row takes at most, and one record's value.
const ROW_LINES_MAX: usize = 2;
const VALUE_LINES_MAX: usize = 12;
/// Characters of one value of a row.
const VALUE_CHARS_MAX: usize = 40;

/// What one transaction would become.
struct Page {
    xid: u32,
    commit: Lsn,
    at: String,
    rows: Vec<Shown>,
    rows_in_all: usize,
    records: Vec<Told>,
    records_in_all: usize,
    /// Why `run` would stop at it.
    stops: Option<String>,
    ignored: bool,
}

/// A row change or a message.
struct Shown {
    sign: char,
    text: String,
}

/// A record that would be sent.
struct Told {
    topic: String,
    kind: String,
    key: Option<String>,
    headers: Vec<(String, String)>,
    value: Option<String>,
}

/// Shows transactions until it is stopped, or so many as were asked for.
pub async fn preview(config: &Config, arguments: &PreviewArguments) -> Exit {
    match try_to_show(config, arguments).await {
        Ok(()) => Exit::Clean,
        Err(error) => {
            anstream::eprintln!("failed to {}", told(&error));
            super::exit_of(&error)
        }
    }
}

async fn try_to_show(config: &Config, arguments: &PreviewArguments) -> Result<(), Error> {
    let misfit = |why: String| SourceError::Config(why.into());
    let mut outlets = outlets(config, "").map_err(misfit)?;
    patterns(config, None).map_err(misfit)?;
    let Preview { session, mut from, catalog, publication_lists, .. } = postgres::preview::preview(config).await?;
    let patterns = patterns(config, catalog.as_ref()).map_err(misfit)?;
    let memory_max = config.limits.memory.as_u64() as usize / 3;
    // What is shown is small; `data_dir` may be another user's.
    let spill = Spill { dir: std::env::temp_dir(), memory_max, file_max: config.limits.spill.as_u64() };
    if let Some(catalog) = &catalog {
        outlets = outlets.with_events(config, rules(config, catalog).map_err(misfit)?, spill.clone());
    }
    let held = outlets.held().iter().map(|shape| shape.oid).collect();
    let assembler = Assembler::new(wanted(patterns, publication_lists), spill).holding(held);
    let mut source = PostgresSource::new(session, assembler, from, now);
    // Where the rows are that events need; it is gone with the preview.
    let dir = tempfile::tempdir().map_err(|cause| SpillError::Io { dir: std::env::temp_dir(), cause });
    let dir = dir.map_err(SourceError::Spill)?;
    if !outlets.held().is_empty() {
        let cache = config.limits.replica_cache.as_u64() as usize;
        let (replica, _) = Replica::open(dir.path(), &config.name, cache).map_err(|error| Error::Hold(error.into()))?;
        outlets = outlets.with_replica(replica, None);
        from = load(&mut source, &mut outlets).await?;
    }
    anstream::eprintln!("what is committed from {from} on; nothing is sent or kept; Ctrl-C ends it");
    let shown = show(&mut source, &mut outlets, arguments).await;
    source.close().await;
    shown
}

/// Reads what events need of the source's tables, as they are now. What commits meanwhile waits.
async fn load(source: &mut impl Source, outlets: &mut Outlets) -> Result<Lsn, Error> {
    /// A preview has no other.
    const LOAD: u32 = 1;
    let shapes = outlets.held();
    let asked = shapes.iter().map(|shape| LoadTable {
        schema: shape.schema.clone(),
        name: shape.name.clone(),
        columns: shape.names.clone(),
    });
    source.load(asked.collect());
    source.pause(true);
    let nowhere = Arc::new(Topic { name: String::new(), table: String::new() });
    let (mut batch, mut status_at, mut position) = (RecordBatch::default(), Instant::now(), Lsn::INVALID);
    loop {
        tokio::select! {
            biased;
            () = sleep_until(status_at) => {
                source.confirm(Lsn::INVALID).await?;
                status_at = Instant::now() + STATUS_INTERVAL;
            }
            ready = source.ready() => ready?,
        }
        while let Some(Item::Load(item)) = source.next()? {
            match item {
                Load::From(from) => {
                    shapes.iter().for_each(|shape| outlets.set_held(shape.table, LOAD, Some(from)));
                    position = from;
                }
                Load::Rows(rows) => {
                    let table = shapes[rows.table].table;
                    for cells in rows.rows() {
                        outlets.load_row(table, LOAD, cells, &nowhere, Ticket(0), &mut batch).map_err(Error::Hold)?;
                    }
                    batch.clear();
                }
                Load::Done => {
                    source.pause(false);
                    return Ok(position);
                }
            }
        }
    }
}

async fn show(source: &mut impl Source, outlets: &mut Outlets, arguments: &PreviewArguments) -> Result<(), Error> {
    let columns = Columns::of_terminal();
    let (mut left, mut status_at, mut seen) = (arguments.transactions, Instant::now(), Lsn::INVALID);
    let mut stop = std::pin::pin!(signal::ctrl_c());
    while left != Some(0) {
        tokio::select! {
            biased;
            _ = &mut stop => return Ok(()),
            () = sleep_until(status_at) => {
                source.confirm(seen).await?;
                status_at = Instant::now() + STATUS_INTERVAL;
            }
            ready = source.ready() => ready?,
        }
        while let Some(item) = source.next()? {
            match item {
                Item::Progress(position) => seen = seen.max(position),
                Item::Load(_) => unreachable!("all was loaded before"),
                Item::Transaction(mut transaction) => {
                    seen = seen.max(transaction.commit.end);
                    let page = page(&mut transaction, outlets)?;
                    source.recycle(transaction);
                    if page.rows_in_all == 0 {
                        continue;
                    }
                    if arguments.json {
                        println!("{}", page.json())
                    } else {
                        page.print(columns)
                    }
                    left = left.map(|left| left - 1);
                    if left == Some(0) {
                        break;
                    }
                }
            }
        }
    }
    Ok(())
}

/// What of a transaction there is to be seen.
fn page(transaction: &mut Transaction, outlets: &mut Outlets) -> Result<Page, Error> {
    let commit = transaction.commit;
    let mut page = Page {
        xid: commit.xid,
        commit: commit.lsn,
        at: progress::date(commit.time),
        rows: Vec::new(),
        rows_in_all: 0,
        records: Vec::new(),
        records_in_all: 0,
        stops: None,
        ignored: false,
    };
    let failed = |source| Error::Spill { commit: commit.lsn, source };
    while let Some(content) = transaction.next_content().map_err(failed)? {
        page.rows_in_all += 1;
        if page.rows.len() < SHOWN_MAX {
            page.rows.push(Shown::of(&content));
        }
    }
    transaction.read_again().map_err(failed)?;
    match outlets.begin(transaction, 1, false) {
        Ok(Leaves::Yes) => {}
        Ok(Leaves::Ignored) => {
            page.ignored = true;
            keep(transaction, outlets)?;
            return Ok(page);
        }
        Err(error) => {
            page.stops = Some(told(&error));
            return Ok(page);
        }
    }
    for index in 0.. {
        let mut batch = RecordBatch::default();
        let step = Step { index, now: now(), ticket: Ticket(0), out: Some(&mut batch), kept: None };
        match outlets.step(transaction, step) {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(StepError::Spill(source)) => return Err(failed(source)),
            Err(StepError::Net(error)) => return Err(SourceError::Spill(error).into()),
            Err(error @ StepError::Replica(_)) => return Err(Error::Hold(error)),
            Err(StepError::Encode(error)) => {
                page.stops = Some(told(&error));
                keep(transaction, outlets)?;
                break;
            }
        }
        page.records_in_all += batch.records.len();
        let room = SHOWN_MAX.saturating_sub(page.records.len());
        page.records.extend(batch.records.iter().take(room).map(|record| Told::of(&batch, record)));
    }
    Ok(page)
}

/// Takes over what a transaction that cannot be told has done to rows that later events need.
fn keep(transaction: &mut Transaction, outlets: &mut Outlets) -> Result<(), Error> {
    let commit = transaction.commit.lsn;
    transaction.read_again().map_err(|source| Error::Spill { commit, source })?;
    if outlets.held().is_empty() || outlets.begin(transaction, 1, true).is_err() {
        return Ok(());
    }
    for index in 0.. {
        let step = Step { index, now: now(), ticket: Ticket(0), out: None, kept: None };
        if outlets.step(transaction, step).map_err(Error::Hold)?.is_none() {
            break;
        }
    }
    Ok(())
}

impl Shown {
    fn of(content: &Content<'_>) -> Shown {
        let Change { table, op, .. } = match content {
            Content::Row(change) => change,
            Content::Message(message) => {
                let text = format!("message {}  {}", message.prefix, text(message.content));
                return Shown { sign: '!', text };
            }
        };
        let is_key = |at: usize| table.key.contains(&at);
        let named = |row: Row<'_>, wanted: &dyn Fn(usize, Value<'_>) -> bool| -> String {
            let values =
                table.columns.iter().zip(row.values()).enumerate().filter(|(at, (_, value))| wanted(*at, *value));
            let texts = values.map(|(_, (column, value))| format!("{}={}", column.name, value_text(value)));
            texts.collect::<Vec<_>>().join(" ")
        };
        let told = |_: usize, value: Value<'_>| !matches!(value, Value::Null | Value::Unchanged);
        let (sign, rest) = match op {
            Op::Insert { new } => ('+', named(*new, &told)),
            Op::Update { old: Some(Old::Full(old)), new } => {
                let before: Vec<_> = old.values().collect();
                let changed =
                    named(*new, &|at, value| is_key(at) || value != Value::Unchanged && before.get(at) != Some(&value));
                ('~', changed)
            }
            Op::Update { new, .. } => ('~', named(*new, &|_, value| value != Value::Unchanged)),
            Op::Delete { old: Old::Full(old) } => ('-', named(*old, &told)),
            Op::Delete { old: Old::Identity(old) } => ('-', named(*old, &|at, _| table.columns[at].identity)),
            Op::Truncate => ('-', "TRUNCATE".into()),
        };
        let schema = if table.schema == "public" { String::new() } else { format!("{}.", table.schema) };
        Shown { sign, text: format!("{schema}{}  {rest}", table.name) }
    }
}

fn value_text(value: Value<'_>) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Unchanged => "(unchanged)".into(),
        Value::Text(bytes) => cut(&text(bytes), VALUE_CHARS_MAX),
    }
}

/// What a terminal takes: a control character in a row must not become one of the screen.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Told {
    fn of(batch: &RecordBatch, record: &Record) -> Told {
        let bytes = |range: &std::ops::Range<usize>| text(&batch.bytes[range.clone()]);
        let headers = batch.headers[record.headers.clone()].iter();
        let headers: Vec<_> = headers
            .map(|header| (header.name.to_string(), header.value.as_ref().map(&bytes).unwrap_or_default()))
            .collect();
        let topic = batch.topic(record).name.clone();
        let named = headers.iter().find(|(name, _)| name == "ce_type" || name == "type");
        // Without what all of a pipeline's types begin with.
        let kind = named.map_or(topic.clone(), |(_, kind)| {
            let parts: Vec<_> = kind.rsplitn(3, '.').collect();
            if parts.len() == 3 { format!("{}.{}", parts[1], parts[0]) } else { kind.clone() }
        });
        Told {
            topic,
            kind,
            key: record.key.as_ref().map(&bytes),
            headers,
            value: record
                .payload
                .as_ref()
                .map(|range| String::from_utf8_lossy(&batch.bytes[range.clone()]).into_owned()),
        }
    }
}

impl Page {
    fn print(&self, columns: Columns) {
        let bold = Style::new().bold();
        let message = if self.xid == 0 { "message" } else { "transaction" };
        anstream::println!("\n{bold}{message} {} at {}, {}{bold:#}", self.xid, self.commit, self.at);
        let coloured = |color: AnsiColor| Style::new().fg_color(Some(color.into()));
        let dim = Style::new().dimmed();
        let mut left: Vec<Line> = Vec::new();
        for row in &self.rows {
            let style = match row.sign {
                '+' => coloured(AnsiColor::Green),
                '-' => coloured(AnsiColor::Red),
                '~' => coloured(AnsiColor::Yellow),
                _ => Style::new(),
            };
            left.extend(wrap(&format!("{} {}", row.sign, row.text), columns.left, ROW_LINES_MAX, style));
        }
        let more = |shown: usize, all: usize, width: usize| {
            (all > shown).then(|| wrap(&format!("and {} more", all - shown), width, 1, dim)).into_iter().flatten()
        };
        left.extend(more(self.rows.len(), self.rows_in_all, columns.left));
        let mut right: Vec<Line> = Vec::new();
        for record in &self.records {
            let key = record.key.as_deref().unwrap_or("(none)");
            let head = format!("{}  key {key}  to {}", record.kind, record.topic);
            right.extend(wrap(&head, columns.right, 2, bold));
            let value = record.value.as_deref().map_or("  (tombstone)".into(), |value| format!("  {}", spaced(value)));
            right.extend(wrap(&text(value.as_bytes()), columns.right, VALUE_LINES_MAX, Style::new()));
        }
        right.extend(more(self.records.len(), self.records_in_all, columns.right));
        if let Some(stops) = &self.stops {
            let text = format!("run would stop here: failed to {stops}");
            right.extend(wrap(&text, columns.right, usize::MAX, coloured(AnsiColor::Red)));
        } else if self.ignored {
            right.extend(wrap("ignored, by its origin", columns.right, 1, dim));
        } else if self.records_in_all == 0 {
            right.extend(wrap("nothing", columns.right, 1, dim));
        }
        columns.print(&left, &right);
    }

    fn json(&self) -> String {
        let record = |record: &Told| {
            let headers: serde_json::Map<String, Json> =
                record.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
            let parsed = |value: &str| serde_json::from_str::<Json>(value).unwrap_or_else(|_| value.into());
            let value = record.value.as_deref().map(parsed);
            json!({ "topic": record.topic, "key": record.key, "headers": headers, "value": value })
        };
        json!({
            "xid": self.xid,
            "lsn": self.commit.to_string(),
            "committed": self.at,
            "rows": self.rows.iter().map(|row| format!("{} {}", row.sign, row.text)).collect::<Vec<_>>(),
            "rows_in_all": self.rows_in_all,
            "records": self.records.iter().map(record).collect::<Vec<_>>(),
            "records_in_all": self.records_in_all,
            "stops": self.stops,
            "ignored": self.ignored,
        })
        .to_string()
    }
}
