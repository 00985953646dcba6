//! The next unpublished transaction, as the wire brings it -> a file that a person can read. IO.
//!
//! Nothing of it is understood but where it begins and ends: it may be what cannot be decoded. One JSON object a line: the
//! message's place in the log, its kind, the texts of its row where they can be read, and its bytes.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde_json::{Value as Json, json};
use tokio::time::{Instant, sleep_until};

use super::{
    frame::{Frame, Status},
    pgoutput::{self, Message},
    wire::Wire,
};
use crate::{
    change::{Micros, Old, Row, Value},
    lsn::Lsn,
    source::SourceError,
};

/// A status goes to Postgres at least this often, a third of the session's `wal_sender_timeout`. It confirms nothing.
const STATUS_INTERVAL: Duration = Duration::from_secs(3);

/// A transaction that was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its id, as the log has it.
    pub xid: u32,
    /// Where its commit record starts.
    pub commit: Lsn,
    /// Where it ends: how far the log is done with when it is skipped.
    pub end: Lsn,
    /// Its messages, begin and commit included.
    pub messages: u64,
    /// The position that was asked for is one of its messages', or its commit's.
    pub has_position: bool,
}

/// Why the transaction was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Postgres, or the way there.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file.
    #[error("write the transaction to the file")]
    File(#[from] io::Error),
    /// Everything up to the position is published.
    #[error("find a transaction that is not published up to {0}")]
    Nothing(Lsn),
}

/// Reads on until the first transaction that ends after `published` is whole, and writes it to `file`. `position` is what a
/// person calls it by. A message that stands alone is a transaction of its own, if messages with its prefix leave.
pub async fn save(
    wire: &mut impl Wire,
    published: Lsn,
    position: Lsn,
    leaves: &dyn Fn(&str) -> bool,
    clock: fn() -> Micros,
    file: &mut impl Write,
) -> Result<Saved, SaveError> {
    let mut open: Option<Saved> = None;
    let mut status_at = Instant::now();
    loop {
        while let Some(payload) = wire.payload()? {
            let (start, message) = match Frame::decode(payload) {
                Ok(Frame::Wal { start, message, .. }) => (start, message),
                Ok(Frame::Keepalive { server, .. }) if open.is_none() && server > position => {
                    return Err(SaveError::Nothing(position));
                }
                Ok(Frame::Keepalive { .. }) => continue,
                Err(error) => return Err(SourceError::Undecodable(Box::new(error)).into()),
            };
            let known = pgoutput::decode(message);
            if let Ok(Message::Begin { commit, xid, .. }) = known {
                // A transaction ends after its commit record starts; those before are published.
                open = (commit >= published).then_some(Saved {
                    xid,
                    commit,
                    end: commit,
                    messages: 0,
                    has_position: commit == position,
                });
            }
            if let Ok(Message::Logical { transactional: false, lsn: end, prefix, .. }) = known
                && end > published
                && leaves(prefix)
            {
                let commit = Lsn(end.0.saturating_sub(1));
                write(file, start, message, known.as_ref().ok())?;
                file.flush()?;
                let has_position = [start, commit, end].contains(&position);
                return Ok(Saved { xid: 0, commit, end, messages: 1, has_position });
            }
            let Some(saved) = &mut open else { continue };
            saved.messages += 1;
            saved.has_position |= start == position;
            write(file, start, message, known.as_ref().ok())?;
            if let Ok(Message::Commit { end, .. }) = known {
                saved.end = end;
                file.flush()?;
                return Ok(saved.clone());
            }
        }
        tokio::select! {
            readable = wire.readable() => readable?,
            () = sleep_until(status_at) => {
                wire.write(&Status { confirmed: Lsn::INVALID, now: clock() }.encode()).await?;
                status_at = Instant::now() + STATUS_INTERVAL;
            }
        }
    }
}

/// One line of the file.
fn write(file: &mut impl Write, start: Lsn, message: &[u8], known: Option<&Message<'_>>) -> io::Result<()> {
    let hex: String = message.iter().map(|byte| format!("{byte:02x}")).collect();
    let kind = message.first().map_or('?', |tag| char::from(*tag)).to_string();
    let mut line = json!({ "lsn": start.to_string(), "kind": kind });
    let row = |row: &Row<'_>| {
        let text = |value| match value {
            Value::Null => Json::Null,
            // Not null, and no text either: the log does not say.
            Value::Unchanged => json!({ "unchanged": true }),
            Value::Text(bytes) => Json::from(String::from_utf8_lossy(bytes)),
        };
        Json::from(row.values().map(text).collect::<Vec<_>>())
    };
    match known {
        Some(Message::Begin { commit, xid, .. }) => {
            line["commit"] = commit.to_string().into();
            line["xid"] = (*xid).into();
        }
        Some(Message::Relation(relation)) => {
            line["table"] = relation.oid.into();
            line["name"] = format!("{}.{}", relation.schema, relation.name).into();
            line["columns"] = relation.columns.iter().map(|column| column.name).collect::<Vec<_>>().into();
        }
        Some(Message::Insert { table, new }) => {
            line["table"] = (*table).into();
            line["new"] = row(new);
        }
        Some(Message::Update { table, old, new }) => {
            line["table"] = (*table).into();
            if let Some(Old::Identity(old) | Old::Full(old)) = old {
                line["old"] = row(old);
            }
            line["new"] = row(new);
        }
        Some(Message::Delete { table, old: Old::Identity(old) | Old::Full(old) }) => {
            line["table"] = (*table).into();
            line["old"] = row(old);
        }
        Some(Message::Logical { transactional, prefix, content, .. }) => {
            line["transactional"] = (*transactional).into();
            line["prefix"] = (*prefix).into();
            line["content"] = String::from_utf8_lossy(content).into();
        }
        _ => {}
    }
    line["bytes"] = hex.into();
    serde_json::to_writer(&mut *file, &line)?;
    writeln!(file)
}
