//! Bytes -> what must hold of every decoder whatever the bytes. The fuzz targets and the corpus test share it.

#![allow(unreachable_pub)]

use std::env;

use offshoot::{
    change::{Asked, Content, LogicalMessage, Old, Op, Row, Value},
    lsn::Lsn,
    postgres::{
        assemble::{Assembler, Kept, Step, Wanted},
        frame::Frame,
        pgoutput::{self, Message},
        wire::TableFacts,
    },
    transaction::Spill,
};

/// One CopyData payload: it decodes to what its bytes say, or is refused.
pub fn frame(bytes: &[u8]) {
    match Frame::decode(bytes) {
        Ok(Frame::Wal { message, .. }) => assert_eq!(message.len() + 25, bytes.len()),
        Ok(Frame::Keepalive { .. }) => assert_eq!(bytes.len(), 18),
        Err(_) => {}
    }
}

/// One pgoutput message: rows hold as many values as they say, and with them the message is at its end.
pub fn pgoutput(bytes: &[u8]) {
    match pgoutput::decode(bytes) {
        Ok(Message::Insert { new, .. }) => assert_eq!(5 + walk(new), bytes.len()),
        Ok(Message::Update { old, new, .. }) => assert_eq!(5 + old.map_or(0, walk_old) + walk(new), bytes.len()),
        Ok(Message::Delete { old, .. }) => assert_eq!(5 + walk_old(old), bytes.len()),
        Ok(Message::Truncate { tables, .. }) => assert_eq!(6 + tables.iter().count() * 4, bytes.len()),
        Ok(_) | Err(_) => {}
    }
}

/// A stream of messages, each after its length in two bytes: transactions come out whole, in order, with the changes that
/// were told, as often in memory as from a spill file that is read in small pieces.
pub fn assemble(bytes: &[u8]) {
    let in_memory = transactions(bytes, 1 << 20);
    let spilled = transactions(bytes, 48);
    assert_eq!(in_memory, spilled);
    assert!(in_memory.is_sorted());
}

/// The commit LSN of each transaction up to the first error.
fn transactions(mut bytes: &[u8], memory_max: usize) -> Vec<Lsn> {
    let spill = Spill { dir: env::temp_dir(), memory_max, file_max: 1 << 30 };
    let wanted = Wanted { table: Box::new(|_, _, _| Asked::CHANGES), message: Box::new(|_| Kept::InOrder) };
    let mut assembler = Assembler::new(wanted, spill);
    let (mut told, mut whole) = (Vec::new(), Vec::new());
    for lsn in (1..).map(Lsn) {
        let Some((len, rest)) = bytes.split_first_chunk::<2>() else { break };
        let Some((message, rest)) = rest.split_at_checked(u16::from_be_bytes(*len).into()) else { break };
        bytes = rest;
        let Ok(message) = pgoutput::decode(message) else { break };
        told.extend(contents(lsn, &message));
        match assembler.push(lsn, message) {
            Ok(Step::More) => {}
            Ok(Step::Ask(_)) => assembler.answer(TableFacts::default()),
            Ok(Step::Done(mut transaction)) => {
                for told in told.drain(..) {
                    let found = transaction.next_content().expect("the spill file is there").expect("it was told");
                    let found = match found {
                        Content::Row(change) => (change.lsn, change.table.oid, row_change(change.op)),
                        Content::Message(message) => logical(&message),
                    };
                    assert_eq!(found, told);
                }
                assert!(transaction.next_content().expect("the spill file is there").is_none());
                whole.push(transaction.commit.lsn);
                assembler.recycle(transaction);
            }
            Err(_) => break,
        }
    }
    whole
}

/// Where it stands, the oid of its table, and what it says.
type Told = (Lsn, u32, (char, Vec<WireRow>));

/// What a message says, which stands at `lsn`.
fn contents(lsn: Lsn, message: &Message<'_>) -> Vec<Told> {
    let row = |table, op| (lsn, table, row_change(op));
    match *message {
        Message::Insert { table, new } => vec![row(table, Op::Insert { new })],
        Message::Update { table, old, new } => vec![row(table, Op::Update { old, new })],
        Message::Delete { table, old } => vec![row(table, Op::Delete { old })],
        Message::Truncate { tables, .. } => tables.iter().map(|table| row(table, Op::Truncate)).collect(),
        Message::Logical { transactional, lsn, prefix, content } => {
            vec![logical(&LogicalMessage { lsn, transactional, prefix, content })]
        }
        _ => Vec::new(),
    }
}

/// What a message from `pg_logical_emit_message` is.
fn logical(message: &LogicalMessage<'_>) -> Told {
    let kind = if message.transactional { 'M' } else { 'm' };
    let parts = [message.prefix.as_bytes(), message.content].map(|part| (kind, 0, part.to_vec()));
    (message.lsn, 0, (kind, parts.to_vec()))
}

/// A row as the wire has it: kind, number of values, and these.
type WireRow = (char, u16, Vec<u8>);

/// What a change is, and a copy of its rows.
fn row_change(op: Op<'_>) -> (char, Vec<WireRow>) {
    let row = |kind, row: Row<'_>| (kind, row.columns, row.bytes.to_vec());
    let old_row = |old| match old {
        Old::Identity(old) => row('K', old),
        Old::Full(old) => row('O', old),
    };
    match op {
        Op::Insert { new } => ('I', vec![row('N', new)]),
        Op::Update { old, new } => ('U', old.map(old_row).into_iter().chain([row('N', new)]).collect()),
        Op::Delete { old } => ('D', vec![old_row(old)]),
        Op::Truncate => ('T', Vec::new()),
    }
}

fn walk_old(old: Old<'_>) -> usize {
    match old {
        Old::Identity(row) | Old::Full(row) => walk(row),
    }
}

/// The bytes that a row takes in its message: its kind, the number of its values, and these.
fn walk(row: Row<'_>) -> usize {
    let (mut values, mut bytes) = (0, 0);
    for value in row.values() {
        values += 1;
        bytes += match value {
            Value::Null | Value::Unchanged => 1,
            Value::Text(text) => 5 + text.len(),
        };
    }
    assert_eq!((values, bytes), (row.columns, row.bytes.len()));
    3 + bytes
}
