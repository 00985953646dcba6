//! Bytes -> what must hold of every decoder whatever the bytes. The fuzz targets and the corpus test share it.

#![allow(unreachable_pub)]

use std::{
    collections::{HashMap, HashSet},
    env,
};

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
    let ends = |message, head: usize| match message {
        Message::Insert { new, .. } => assert_eq!(head + walk(new), bytes.len()),
        Message::Update { old, new, .. } => assert_eq!(head + old.map_or(0, walk_old) + walk(new), bytes.len()),
        Message::Delete { old, .. } => assert_eq!(head + walk_old(old), bytes.len()),
        Message::Truncate { tables, .. } => assert_eq!(head + 1 + tables.iter().count() * 4, bytes.len()),
        _ => {}
    };
    if let Ok(message) = pgoutput::decode(bytes) {
        ends(message, 5);
    }
    if let Ok((_, message)) = pgoutput::decode_in_block(bytes) {
        ends(message, 9);
    }
}

/// A stream of messages, each after its length in two bytes: transactions come out whole, in order, with the changes that
/// were told and not rolled back, as often in memory as from a spill file that is read in small pieces.
pub fn assemble(bytes: &[u8]) {
    let in_memory = transactions(bytes, 1 << 20);
    let spilled = transactions(bytes, 48);
    assert_eq!(in_memory, spilled);
    assert!(in_memory.is_sorted());
}

/// The commit LSN of each transaction up to the first error.
pub fn transactions(mut bytes: &[u8], memory_max: usize) -> Vec<Lsn> {
    let spill = Spill { dir: env::temp_dir(), memory_max, file_max: 1 << 30 };
    let wanted = Wanted { table: Box::new(|_, _, _| Asked::CHANGES), message: Box::new(|_| Kept::InOrder) };
    let mut assembler = Assembler::new(wanted, spill);
    let (mut told, mut whole, mut streamed) = (Vec::new(), Vec::new(), Streamed::default());
    for lsn in (1..).map(Lsn) {
        let Some((len, rest)) = bytes.split_first_chunk::<2>() else { break };
        let Some((message, rest)) = rest.split_at_checked(u16::from_be_bytes(*len).into()) else { break };
        bytes = rest;
        let mut step = if assembler.is_in_block() {
            let Ok((xid, message)) = pgoutput::decode_in_block(message) else { break };
            streamed.push(xid, contents(lsn, &message));
            assembler.push_in_block(lsn, xid, message)
        } else {
            let Ok(message) = pgoutput::decode(message) else { break };
            told.extend(contents(lsn, &message));
            told.extend(streamed.learn(&message));
            assembler.push(lsn, message)
        };
        while let Ok(Step::Ask(_)) = step {
            assembler.answer(TableFacts::default());
            step = assembler.close();
        }
        match step {
            Ok(Step::More | Step::Ask(_)) => {}
            Ok(Step::Done(mut transaction)) => {
                assert_eq!(transaction.len(), told.len() as u64);
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

/// What transactions have done that have not committed, by xid: each with the subtransaction that has done it, and those
/// that were rolled back.
#[derive(Default)]
struct Streamed {
    block: u32,
    open: HashMap<u32, Open>,
}

#[derive(Default)]
struct Open {
    told: Vec<(u32, Told)>,
    rolled_back: HashSet<u32>,
}

impl Streamed {
    fn push(&mut self, xid: u32, told: Vec<Told>) {
        let open = self.open.entry(self.block).or_default();
        open.told.extend(told.into_iter().map(|told| (xid, told)));
    }

    /// What is committed by it.
    fn learn(&mut self, message: &Message<'_>) -> Vec<Told> {
        match *message {
            Message::StreamStart { xid, .. } => self.block = xid,
            Message::StreamAbort { xid, subxid } if xid == subxid => drop(self.open.remove(&xid)),
            Message::StreamAbort { xid, subxid } => {
                if let Some(open) = self.open.get_mut(&xid) {
                    open.rolled_back.insert(subxid);
                }
            }
            Message::StreamCommit { xid, .. } => {
                let Open { told, rolled_back } = self.open.remove(&xid).unwrap_or_default();
                let lasting = told.into_iter().filter(|(xid, _)| !rolled_back.contains(xid));
                return lasting.map(|(_, told)| told).collect();
            }
            _ => {}
        }
        Vec::new()
    }
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
