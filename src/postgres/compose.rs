//! Messages -> wire bytes, as Postgres writes them: for tests and for the crash simulation's model database.

use crate::{change::Micros, lsn::Lsn, postgres::frame::POSTGRES_EPOCH};

/// A value to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cell<'a> {
    Null,
    Unchanged,
    Text(&'a str),
}

/// CopyData payload of a piece of the log.
pub(crate) fn wal(start: Lsn, message: &[u8]) -> Vec<u8> {
    let mut out = vec![b'w'];
    for number in [start.0, start.0, 0] {
        out.extend(number.to_be_bytes());
    }
    out.extend(message);
    out
}

/// CopyData payload of a keepalive.
pub(crate) fn keepalive(server: Lsn, reply: bool) -> Vec<u8> {
    let mut out = vec![b'k'];
    out.extend(server.0.to_be_bytes());
    out.extend(0u64.to_be_bytes());
    out.push(reply.into());
    out
}

pub(crate) fn begin(commit: Lsn, time: Micros, xid: u32) -> Vec<u8> {
    let mut out = vec![b'B'];
    out.extend(commit.0.to_be_bytes());
    out.extend((time - POSTGRES_EPOCH).to_be_bytes());
    out.extend(xid.to_be_bytes());
    out
}

pub(crate) fn commit(commit: Lsn, end: Lsn, time: Micros) -> Vec<u8> {
    let mut out = vec![b'C', 0];
    out.extend(commit.0.to_be_bytes());
    out.extend(end.0.to_be_bytes());
    out.extend((time - POSTGRES_EPOCH).to_be_bytes());
    out
}

/// Columns are (identity, name, type oid, modifier).
pub(crate) fn relation(
    oid: u32,
    schema: &str,
    name: &str,
    identity: u8,
    columns: &[(bool, &str, u32, i32)],
) -> Vec<u8> {
    let mut out = vec![b'R'];
    out.extend(oid.to_be_bytes());
    text(&mut out, schema);
    text(&mut out, name);
    out.push(identity);
    out.extend((columns.len() as u16).to_be_bytes());
    for (identity, name, type_oid, modifier) in columns {
        out.push(u8::from(*identity));
        text(&mut out, name);
        out.extend(type_oid.to_be_bytes());
        out.extend(modifier.to_be_bytes());
    }
    out
}

pub(crate) fn insert(table: u32, new: &[Cell<'_>]) -> Vec<u8> {
    let mut out = vec![b'I'];
    out.extend(table.to_be_bytes());
    row(&mut out, b'N', new);
    out
}

/// `old` comes with its kind, `K` or `O`.
pub(crate) fn update(table: u32, old: Option<(u8, &[Cell<'_>])>, new: &[Cell<'_>]) -> Vec<u8> {
    let mut out = vec![b'U'];
    out.extend(table.to_be_bytes());
    if let Some((kind, old)) = old {
        row(&mut out, kind, old);
    }
    row(&mut out, b'N', new);
    out
}

pub(crate) fn delete(table: u32, kind: u8, old: &[Cell<'_>]) -> Vec<u8> {
    let mut out = vec![b'D'];
    out.extend(table.to_be_bytes());
    row(&mut out, kind, old);
    out
}

pub(crate) fn truncate(tables: &[u32], options: u8) -> Vec<u8> {
    let mut out = vec![b'T'];
    out.extend((tables.len() as u32).to_be_bytes());
    out.push(options);
    for table in tables {
        out.extend(table.to_be_bytes());
    }
    out
}

pub(crate) fn origin(commit: Lsn, name: &str) -> Vec<u8> {
    let mut out = vec![b'O'];
    out.extend(commit.0.to_be_bytes());
    text(&mut out, name);
    out
}

/// `end` is where the message's record ends.
pub(crate) fn logical(transactional: bool, end: Lsn, prefix: &str, content: &[u8]) -> Vec<u8> {
    let mut out = vec![b'M', transactional.into()];
    out.extend(end.0.to_be_bytes());
    text(&mut out, prefix);
    out.extend((content.len() as u32).to_be_bytes());
    out.extend(content);
    out
}

/// The same message, in a block, by the subtransaction `xid`.
pub(crate) fn by(xid: u32, message: &[u8]) -> Vec<u8> {
    let mut out = message.to_vec();
    out.splice(1..1, xid.to_be_bytes());
    out
}

pub(crate) fn stream_start(xid: u32, first: bool) -> Vec<u8> {
    let mut out = by(xid, b"S");
    out.push(first.into());
    out
}

pub(crate) fn stream_stop() -> Vec<u8> {
    b"E".to_vec()
}

pub(crate) fn stream_commit(xid: u32, begin: Lsn, end: Lsn, time: Micros) -> Vec<u8> {
    let mut out = by(xid, &commit(begin, end, time));
    out[0] = b'c';
    out
}

pub(crate) fn stream_abort(xid: u32, subxid: u32) -> Vec<u8> {
    let mut out = by(xid, b"A");
    out.extend(subxid.to_be_bytes());
    out
}

fn row(out: &mut Vec<u8>, kind: u8, cells: &[Cell<'_>]) {
    out.push(kind);
    out.extend((cells.len() as u16).to_be_bytes());
    for cell in cells {
        match cell {
            Cell::Null => out.push(b'n'),
            Cell::Unchanged => out.push(b'u'),
            Cell::Text(value) => {
                out.push(b't');
                out.extend((value.len() as u32).to_be_bytes());
                out.extend(value.as_bytes());
            }
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(text.as_bytes());
    out.push(0);
}
