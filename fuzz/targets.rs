//! Bytes -> what must hold of every decoder whatever the bytes. The fuzz targets and the corpus test share it.

#![allow(unreachable_pub)]

use std::path::PathBuf;

use offshoot::{
    change::{Old, Op, Row, Value},
    lsn::Lsn,
    postgres::{
        assemble::{Assembler, Step},
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

/// One pgoutput message: rows hold as many values as they say, all inside the message.
pub fn pgoutput(bytes: &[u8]) {
    match pgoutput::decode(bytes) {
        Ok(Message::Insert { new, .. }) => walk(new),
        Ok(Message::Update { old, new, .. }) => {
            old.into_iter().for_each(walk_old);
            walk(new);
        }
        Ok(Message::Delete { old, .. }) => walk_old(old),
        Ok(Message::Truncate { tables, .. }) => assert_eq!(tables.iter().count() * 4 + 6, bytes.len()),
        Ok(_) | Err(_) => {}
    }
}

/// A stream of messages, each after its length in two bytes: transactions come out whole, in order, as often in memory as
/// from a spill file.
pub fn assemble(bytes: &[u8]) {
    let in_memory = transactions(bytes, 1 << 20);
    let spilled = transactions(bytes, 0);
    assert_eq!(in_memory, spilled);
    assert!(in_memory.is_sorted());
}

/// (commit LSN, changes, bytes of rows) of each transaction up to the first error.
fn transactions(mut bytes: &[u8], memory_max: usize) -> Vec<(Lsn, u64, usize)> {
    let spill = Spill { dir: PathBuf::from("/tmp"), memory_max, file_max: 1 << 30 };
    let mut assembler = Assembler::new(Box::new(|_, _, _| true), spill);
    let mut whole = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<2>() {
        let Some((message, rest)) = rest.split_at_checked(u16::from_be_bytes(*len).into()) else { break };
        bytes = rest;
        let Ok(message) = pgoutput::decode(message) else { break };
        match assembler.push(Lsn(1), message) {
            Ok(Step::More) => {}
            Ok(Step::Ask(_)) => assembler.answer(TableFacts::default()),
            Ok(Step::Done(mut transaction)) => {
                let (mut changes, mut row_bytes) = (0, 0);
                while let Some(change) = transaction.next_change().expect("the spill file is there") {
                    changes += 1;
                    row_bytes += match change.op {
                        Op::Insert { new } | Op::Update { old: None, new } => new.bytes.len(),
                        Op::Update { old: Some(Old::Identity(old) | Old::Full(old)), new } => {
                            old.bytes.len() + new.bytes.len()
                        }
                        Op::Delete { old: Old::Identity(old) | Old::Full(old) } => old.bytes.len(),
                        Op::Truncate => 0,
                    };
                }
                assert_eq!(changes, transaction.len());
                whole.push((transaction.commit.lsn, changes, row_bytes));
                assembler.recycle(transaction);
            }
            Err(_) => break,
        }
    }
    whole
}

fn walk_old(old: Old<'_>) {
    match old {
        Old::Identity(row) | Old::Full(row) => walk(row),
    }
}

fn walk(row: Row<'_>) {
    let (mut values, mut bytes) = (0, 0);
    for value in row.values() {
        values += 1;
        bytes += match value {
            Value::Null | Value::Unchanged => 1,
            Value::Text(text) => 5 + text.len(),
        };
    }
    assert_eq!((values, bytes), (row.columns, row.bytes.len()));
}
