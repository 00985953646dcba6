//! WAL payload -> `Message`. Pure.
//!
//! pgoutput's protocol 1, and what protocol 2 adds to it, as "Logical Replication Message Formats" in Postgres' manual has it.
//! The decoder is total: what is short, long, unknown or contradicts itself is an error, never skipped and never guessed.

use crate::{
    change::{Identity, Micros, Old, Row},
    lsn::Lsn,
    postgres::frame::POSTGRES_EPOCH,
};

/// One message of the plugin; texts and rows are slices of the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Message<'a> {
    /// A committed transaction begins.
    Begin {
        /// Where its commit record starts.
        commit: Lsn,
        /// When it was committed.
        time: Micros,
        /// Its id.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// Where the commit record starts; Begin said the same.
        commit: Lsn,
        /// Where the commit record ends.
        end: Lsn,
        /// When it was committed.
        time: Micros,
    },
    /// The transaction came here by replication from elsewhere.
    Origin {
        /// The commit's position there.
        commit: Lsn,
        /// The origin's name.
        name: &'a str,
    },
    /// The shape that the following rows of a table have.
    Relation(Relation<'a>),
    /// The name of a type that is not built in.
    Type {
        /// `pg_type.oid`.
        oid: u32,
        /// Its schema; empty for `pg_catalog`.
        schema: &'a str,
        /// Its name; a domain's is that of the type below it.
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// The table's oid.
        table: u32,
        /// The row.
        new: Row<'a>,
    },
    /// A changed row.
    Update {
        /// The table's oid.
        table: u32,
        /// What the log kept of the row before.
        old: Option<Old<'a>>,
        /// The row after.
        new: Row<'a>,
    },
    /// A deleted row.
    Delete {
        /// The table's oid.
        table: u32,
        /// What the log kept of it.
        old: Old<'a>,
    },
    /// Emptied tables.
    Truncate {
        /// Their oids.
        tables: Oids<'a>,
        /// `CASCADE` was given.
        cascade: bool,
        /// `RESTART IDENTITY` was given.
        restart_identity: bool,
    },
    /// What `pg_logical_emit_message` wrote.
    Logical {
        /// It belongs to the transaction around it; otherwise it stands alone, whatever became of its transaction.
        transactional: bool,
        /// Where its record ends in the log.
        lsn: Lsn,
        /// Its prefix.
        prefix: &'a str,
        /// Its content.
        content: &'a [u8],
    },
    /// A block of what a transaction has done begins, which has not committed yet.
    StreamStart {
        /// The transaction's id.
        xid: u32,
        /// It is the transaction's first one.
        first: bool,
    },
    /// The block ends.
    StreamStop,
    /// A transaction that was told in blocks is committed.
    StreamCommit {
        /// Its id.
        xid: u32,
        /// Where the commit record starts.
        commit: Lsn,
        /// Where it ends.
        end: Lsn,
        /// When it was committed.
        time: Micros,
    },
    /// A transaction that was told in blocks, or a subtransaction of it, is rolled back.
    StreamAbort {
        /// The transaction's id.
        xid: u32,
        /// What is rolled back: the same for all of it.
        subxid: u32,
    },
}

/// A table's shape, as the stream tells it before the table's first row and after each change of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Relation<'a> {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What the log keeps of old rows.
    pub identity: Identity,
    /// In the order of the rows' values.
    pub columns: Vec<RelationColumn<'a>>,
}

/// A column of a `Relation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Part of the replica identity.
    pub identity: bool,
    /// Its name.
    pub name: &'a str,
    /// `pg_type.oid` of its type.
    pub type_oid: u32,
    /// `atttypmod`.
    pub modifier: i32,
}

/// A list of oids on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oids<'a>(&'a [u8]);

impl Oids<'_> {
    /// The oids in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.chunks_exact(4).map(|oid| u32::from_be_bytes(oid.try_into().expect("four bytes")))
    }
}

/// A payload is not a message of pgoutput's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends before its last field.
    #[error("a pgoutput message {message:?} that ends in its {field}")]
    Short {
        /// The message's tag; `?` when there is none.
        message: char,
        /// Where it ends.
        field: &'static str,
    },
    /// It goes on after its last field.
    #[error("a pgoutput message {message:?} with {bytes} bytes too many")]
    Long {
        /// The message's tag.
        message: char,
        /// How many.
        bytes: usize,
    },
    /// Its tag is not one of the plugin's.
    #[error("a pgoutput message of unknown kind {0:#04x}")]
    UnknownMessage(u8),
    /// A field holds what it cannot.
    #[error("a pgoutput message {message:?} whose {field} is {value}")]
    Value {
        /// The message's tag.
        message: char,
        /// Which.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
    /// A name or a prefix is not UTF-8, although the session asked for it.
    #[error("a pgoutput message {message:?} whose {field} is not UTF-8")]
    Utf8 {
        /// The message's tag.
        message: char,
        /// Which.
        field: &'static str,
    },
}

/// Reads one message that stands outside blocks; the whole payload must be it.
pub fn decode(payload: &[u8]) -> Result<Message<'_>, DecodeError> {
    let (tag, mut wire) = Wire::of(payload)?;
    wire.message(tag)
}

/// Reads one message that stands in a block, and the id of the subtransaction that it is of; 0 where it does not say.
pub fn decode_in_block(payload: &[u8]) -> Result<(u32, Message<'_>), DecodeError> {
    let (tag, mut wire) = Wire::of(payload)?;
    let xid = match tag {
        b'I' | b'U' | b'D' | b'T' | b'R' | b'Y' | b'M' => wire.u32("xid")?,
        _ => 0,
    };
    Ok((xid, wire.message(tag)?))
}

/// What is left of a message.
struct Wire<'a> {
    message: char,
    rest: &'a [u8],
}

impl<'a> Wire<'a> {
    /// A message's tag, and what follows it.
    fn of(payload: &'a [u8]) -> Result<(u8, Self), DecodeError> {
        let (&tag, rest) = payload.split_first().ok_or(DecodeError::Short { message: '?', field: "kind" })?;
        Ok((tag, Self { message: tag as char, rest }))
    }

    /// The rest of a message, which must be all of it.
    fn message(&mut self, tag: u8) -> Result<Message<'a>, DecodeError> {
        let message = match tag {
            b'I' => Message::Insert { table: self.u32("table")?, new: self.new_row()? },
            b'U' => {
                let table = self.u32("table")?;
                let old = match self.peek("kind of row")? {
                    b'K' | b'O' => Some(self.old_row()?),
                    _ => None,
                };
                Message::Update { table, old, new: self.new_row()? }
            }
            b'D' => Message::Delete { table: self.u32("table")?, old: self.old_row()? },
            b'B' => Message::Begin {
                commit: self.lsn("commit LSN")?,
                time: self.time("commit time")?,
                xid: self.u32("xid")?,
            },
            b'C' => {
                self.expect("flags", 0)?;
                Message::Commit {
                    commit: self.lsn("commit LSN")?,
                    end: self.lsn("end LSN")?,
                    time: self.time("commit time")?,
                }
            }
            b'O' => Message::Origin { commit: self.lsn("origin LSN")?, name: self.text("origin name")? },
            b'R' => Message::Relation(self.relation()?),
            b'Y' => {
                Message::Type { oid: self.u32("oid")?, schema: self.text("schema")?, name: self.text("type name")? }
            }
            b'T' => self.truncate()?,
            b'M' => self.logical()?,
            b'S' => {
                let xid = self.u32("xid")?;
                match self.u8("flags")? {
                    flags @ 0..=1 => Message::StreamStart { xid, first: flags == 1 },
                    flags => return Err(self.wrong("flags", flags.into())),
                }
            }
            b'E' => Message::StreamStop,
            b'c' => {
                let xid = self.u32("xid")?;
                self.expect("flags", 0)?;
                Message::StreamCommit {
                    xid,
                    commit: self.lsn("commit LSN")?,
                    end: self.lsn("end LSN")?,
                    time: self.time("commit time")?,
                }
            }
            b'A' => Message::StreamAbort { xid: self.u32("xid")?, subxid: self.u32("subxid")? },
            _ => return Err(DecodeError::UnknownMessage(tag)),
        };
        match self.rest.len() {
            0 => Ok(message),
            bytes => Err(DecodeError::Long { message: tag as char, bytes }),
        }
    }

    fn bytes<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (bytes, rest) =
            self.rest.split_first_chunk::<N>().ok_or(DecodeError::Short { message: self.message, field })?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn slice(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (slice, rest) =
            self.rest.split_at_checked(len).ok_or(DecodeError::Short { message: self.message, field })?;
        self.rest = rest;
        Ok(slice)
    }

    fn peek(&self, field: &'static str) -> Result<u8, DecodeError> {
        self.rest.first().copied().ok_or(DecodeError::Short { message: self.message, field })
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(self.bytes::<1>(field)?[0])
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.bytes(field)?))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.bytes(field)?))
    }

    fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        Ok(Lsn(u64::from_be_bytes(self.bytes(field)?)))
    }

    fn time(&mut self, field: &'static str) -> Result<Micros, DecodeError> {
        let since_2000 = i64::from_be_bytes(self.bytes(field)?);
        since_2000.checked_add(POSTGRES_EPOCH).ok_or(self.wrong(field, since_2000))
    }

    /// A text that ends with a zero byte.
    fn text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let end = memchr::memchr(0, self.rest).ok_or(DecodeError::Short { message: self.message, field })?;
        let text =
            std::str::from_utf8(&self.rest[..end]).map_err(|_| DecodeError::Utf8 { message: self.message, field })?;
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    fn expect(&mut self, field: &'static str, expected: u8) -> Result<(), DecodeError> {
        match self.u8(field)? {
            found if found == expected => Ok(()),
            found => Err(self.wrong(field, found.into())),
        }
    }

    fn wrong(&self, field: &'static str, value: i64) -> DecodeError {
        DecodeError::Value { message: self.message, field, value }
    }

    fn new_row(&mut self) -> Result<Row<'a>, DecodeError> {
        self.expect("kind of row", b'N')?;
        self.row(true)
    }

    fn old_row(&mut self) -> Result<Old<'a>, DecodeError> {
        match self.u8("kind of row")? {
            b'K' => Ok(Old::Identity(self.row(false)?)),
            b'O' => Ok(Old::Full(self.row(false)?)),
            kind => Err(self.wrong("kind of row", kind.into())),
        }
    }

    /// Walks the row once to its end, so that whoever walks it again can trust it. An old row is always written whole,
    /// so an unchanged value in it is nonsense.
    fn row(&mut self, may_be_unchanged: bool) -> Result<Row<'a>, DecodeError> {
        let columns = self.u16("column count")?;
        let start = self.rest;
        for _ in 0..columns {
            match self.u8("kind of value")? {
                b't' => {
                    let len = self.u32("length of a value")?;
                    self.slice(len as usize, "value")?;
                }
                b'n' => {}
                b'u' if may_be_unchanged => {}
                kind => return Err(self.wrong("kind of value", kind.into())),
            }
        }
        Ok(Row { bytes: &start[..start.len() - self.rest.len()], columns })
    }

    fn relation(&mut self) -> Result<Relation<'a>, DecodeError> {
        let oid = self.u32("oid")?;
        let schema = self.text("schema")?;
        let name = self.text("table name")?;
        let identity = match self.u8("replica identity")? {
            b'd' => Identity::Default,
            b'n' => Identity::Nothing,
            b'f' => Identity::Full,
            b'i' => Identity::Index,
            kind => return Err(self.wrong("replica identity", kind.into())),
        };
        let count = self.u16("column count")?;
        let mut columns = Vec::new();
        for _ in 0..count {
            let identity = match self.u8("column flags")? {
                0 => false,
                1 => true,
                flags => return Err(self.wrong("column flags", flags.into())),
            };
            columns.push(RelationColumn {
                identity,
                name: self.text("column name")?,
                type_oid: self.u32("type oid")?,
                modifier: self.u32("type modifier")? as i32,
            });
        }
        Ok(Relation { oid, schema, name, identity, columns })
    }

    fn truncate(&mut self) -> Result<Message<'a>, DecodeError> {
        let count = self.u32("table count")? as usize;
        let options = self.u8("options")?;
        if options > 3 {
            return Err(self.wrong("options", options.into()));
        }
        let tables = Oids(self.slice(count.saturating_mul(4), "tables")?);
        Ok(Message::Truncate { tables, cascade: options & 1 != 0, restart_identity: options & 2 != 0 })
    }

    fn logical(&mut self) -> Result<Message<'a>, DecodeError> {
        let transactional = match self.u8("flags")? {
            0 => false,
            1 => true,
            flags => return Err(self.wrong("flags", flags.into())),
        };
        let lsn = self.lsn("LSN")?;
        let prefix = self.text("prefix")?;
        let len = self.u32("length")?;
        Ok(Message::Logical { transactional, lsn, prefix, content: self.slice(len as usize, "content")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        change::Value,
        postgres::compose::{self, Cell},
    };

    const ROW: &[Cell<'_>] = &[Cell::Text("1"), Cell::Null, Cell::Unchanged, Cell::Text("")];
    const OLD: &[Cell<'_>] = &[Cell::Text("1"), Cell::Null, Cell::Null, Cell::Null];

    /// One message of each kind and shape.
    fn messages() -> Vec<Vec<u8>> {
        let mut ty = vec![b'Y'];
        ty.extend(16_400u32.to_be_bytes());
        ty.extend(b"public\0mood\0");
        vec![
            compose::begin(Lsn(7), 11, 3),
            compose::commit(Lsn(7), Lsn(9), 11),
            compose::origin(Lsn(5), "node_a"),
            compose::relation(1, "public", "t", b'd', &[(true, "id", 23, -1), (false, "n", 1700, 655_366)]),
            ty,
            compose::insert(1, ROW),
            compose::update(1, None, ROW),
            compose::update(1, Some((b'K', OLD)), ROW),
            compose::update(1, Some((b'O', OLD)), ROW),
            compose::delete(1, b'K', OLD),
            compose::delete(1, b'O', OLD),
            compose::truncate(&[1, 2], 3),
            compose::logical(true, Lsn(6), "ctx", b"abc"),
            compose::stream_start(3, true),
            compose::stream_stop(),
            compose::stream_commit(3, Lsn(7), Lsn(9), 11),
            compose::stream_abort(3, 4),
        ]
    }

    #[test]
    fn reads_every_message() {
        for bytes in messages() {
            let message = decode(&bytes).unwrap();
            match (bytes[0], &message) {
                (b'B', Message::Begin { commit: Lsn(7), time: 11, xid: 3 }) => {}
                (b'C', Message::Commit { commit: Lsn(7), end: Lsn(9), time: 11 }) => {}
                (b'O', Message::Origin { commit: Lsn(5), name: "node_a" }) => {}
                (b'R', Message::Relation(relation)) => {
                    assert_eq!((relation.oid, relation.schema, relation.name), (1, "public", "t"));
                    let second = RelationColumn { identity: false, name: "n", type_oid: 1700, modifier: 655_366 };
                    assert_eq!(relation.columns[1], second);
                }
                (b'Y', Message::Type { oid: 16_400, schema: "public", name: "mood" }) => {}
                (b'I', Message::Insert { table: 1, new }) => {
                    let values: Vec<_> = new.values().collect();
                    assert_eq!(values, [Value::Text(b"1"), Value::Null, Value::Unchanged, Value::Text(b"")]);
                }
                (b'U', Message::Update { table: 1, .. }) | (b'D', Message::Delete { table: 1, .. }) => {}
                (b'T', Message::Truncate { tables, cascade: true, restart_identity: true }) => {
                    assert_eq!(tables.iter().collect::<Vec<_>>(), [1, 2]);
                }
                (b'M', Message::Logical { transactional: true, lsn: Lsn(6), prefix: "ctx", content: b"abc" }) => {}
                (b'S', Message::StreamStart { xid: 3, first: true }) | (b'E', Message::StreamStop) => {}
                (b'c', Message::StreamCommit { xid: 3, commit: Lsn(7), end: Lsn(9), time: 11 }) => {}
                (b'A', Message::StreamAbort { xid: 3, subxid: 4 }) => {}
                (tag, message) => panic!("{} became {message:?}", tag as char),
            }
        }
    }

    #[test]
    fn in_a_block_messages_say_whose_they_are() {
        for bytes in messages() {
            let message = decode(&bytes).unwrap();
            let (xid, in_block) = match bytes[0] {
                b'B' | b'C' | b'O' | b'S' | b'E' | b'c' | b'A' => (0, bytes.clone()),
                _ => (7, compose::by(7, &bytes)),
            };
            assert_eq!(decode_in_block(&in_block), Ok((xid, message)));
            for len in 0..in_block.len() {
                assert!(matches!(decode_in_block(&in_block[..len]), Err(DecodeError::Short { .. })), "{in_block:?}");
            }
            let long = [in_block.as_slice(), b"x"].concat();
            assert!(matches!(decode_in_block(&long), Err(DecodeError::Long { bytes: 1, .. })), "{in_block:?}");
        }
    }

    #[test]
    fn every_cut_is_short_and_every_addition_long() {
        for bytes in messages() {
            for len in 0..bytes.len() {
                let error = decode(&bytes[..len]).unwrap_err();
                assert!(matches!(error, DecodeError::Short { .. }), "{len} of {bytes:?}: {error}");
            }
            let error = decode(&[bytes.as_slice(), b"x"].concat()).unwrap_err();
            assert!(matches!(error, DecodeError::Long { bytes: 1, .. }), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn refuses_what_a_field_cannot_hold() {
        let refuse = |bytes: &[u8], field: &str| match decode(bytes).unwrap_err() {
            DecodeError::Value { field: found, .. } | DecodeError::Utf8 { field: found, .. } => {
                assert_eq!(found, field);
            }
            error => panic!("{error}"),
        };
        refuse(b"C\x01", "flags");
        refuse(b"S\0\0\0\x01\x02", "flags");
        refuse(b"c\0\0\0\x01\x01", "flags");
        refuse(b"U\0\0\0\x01X", "kind of row");
        refuse(b"D\0\0\0\x01N", "kind of row");
        refuse(b"I\0\0\0\x01N\0\x01b", "kind of value");
        refuse(&compose::delete(1, b'K', ROW), "kind of value");
        refuse(&compose::relation(1, "public", "t", b'x', &[]), "replica identity");
        refuse(b"R\0\0\0\x01\xff\0", "schema");
        refuse(&compose::truncate(&[], 4), "options");
        assert_eq!(decode(b"z"), Err(DecodeError::UnknownMessage(b'z')));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
            let _ = decode_in_block(&bytes);
        }

        #[test]
        fn no_flipped_byte_panics_or_reads_outside(which in 0usize..17, at: usize, value: u8) {
            let mut bytes = messages().swap_remove(which);
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(Message::Insert { new, .. } | Message::Update { new, .. }) = decode(&bytes) {
                assert_eq!(new.values().count(), usize::from(new.columns));
            }
        }
    }
}
