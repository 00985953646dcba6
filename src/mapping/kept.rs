//! A row of a held table <-> its record in the replica's topic. Pure.
//!
//! Key: `schema.table`, a zero byte, and the values of its primary key as `Cells` has them. Value: the format, the number of the load as
//! a big-endian `u32`, and all values that rules need as `Cells` has them. A record without a value: the row is gone.

use super::{row::Cells, rules::MappedTable};

/// The first byte of a value.
const FORMAT: u8 = 1;

/// A record of the replica's topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptRow<'a> {
    /// Which row it is.
    pub key: &'a [u8],
    /// The row; `None` when it is gone.
    pub value: Option<&'a [u8]>,
    /// A transaction that is split may be cut after it.
    pub splits: bool,
}

/// A record that no offshoot of this version has written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The key has not the form.
    #[error("its key is not a table and a primary key")]
    Key,
    /// The value is of another format.
    #[error(
        "its value is of format {found}, this program reads {FORMAT}; use the offshoot that wrote it, or a newer one"
    )]
    Format {
        /// What it says.
        found: u8,
    },
    /// The value has not the form.
    #[error("its value is not a row")]
    Value,
}

/// Appends the key of a row.
pub(super) fn write_key(table: &MappedTable, key: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(table.schema.as_bytes());
    out.push(b'.');
    out.extend_from_slice(table.name.as_bytes());
    out.push(0);
    out.extend_from_slice(key);
}

/// Appends the value of a row.
pub(super) fn write_value(load: u32, row: Cells<'_>, out: &mut Vec<u8>) {
    out.push(FORMAT);
    out.extend_from_slice(&load.to_be_bytes());
    out.extend_from_slice(row.bytes);
}

/// `schema.table` and the primary key.
pub(super) fn read_key(key: &[u8]) -> Result<(&[u8], Cells<'_>), Malformed> {
    let end = key.iter().position(|byte| *byte == 0).ok_or(Malformed::Key)?;
    let row = Cells::read(&key[end + 1..]).ok_or(Malformed::Key)?;
    Ok((&key[..end], row))
}

/// The number of its load, and the row.
pub(super) fn read_value(value: &[u8]) -> Result<(u32, Cells<'_>), Malformed> {
    let (format, rest) = value.split_first().ok_or(Malformed::Value)?;
    if *format != FORMAT {
        return Err(Malformed::Format { found: *format });
    }
    let (load, row) = rest.split_first_chunk().ok_or(Malformed::Value)?;
    Ok((u32::from_be_bytes(*load), Cells::read(row).ok_or(Malformed::Value)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::row::Cell;

    fn table() -> MappedTable {
        MappedTable {
            oid: 0,
            schema: "public".into(),
            name: "a.b".into(),
            columns: Vec::new(),
            key_len: 1,
            roles: Vec::new(),
            held: true,
        }
    }

    #[test]
    fn a_record_is_what_was_written() {
        let mut row = Vec::new();
        [Cell::Text(b"7"), Cell::Null].iter().for_each(|cell| cell.write(&mut row));
        let row = Cells { bytes: &row };
        let (mut key, mut value) = (Vec::new(), Vec::new());
        write_key(&table(), row.key(1).unwrap(), &mut key);
        write_value(3, row, &mut value);
        assert_eq!(key, b"public.a.b\0t\0\0\0\x017");
        assert_eq!(value, b"\x01\0\0\0\x03t\0\0\0\x017n");
        assert_eq!(read_key(&key), Ok((&b"public.a.b"[..], Cells { bytes: &row.bytes[..6] })));
        assert_eq!(read_value(&value), Ok((3, row)));
    }

    #[test]
    fn what_was_not_written_so_is_refused() {
        assert_eq!(read_key(b"public.t"), Err(Malformed::Key));
        assert_eq!(read_key(b"public.t\0t\0\0\0\x09a"), Err(Malformed::Key));
        assert_eq!(read_key(b"public.t\0?"), Err(Malformed::Key));
        assert_eq!(read_value(b""), Err(Malformed::Value));
        assert_eq!(read_value(b"\x02\0\0\0\x01n"), Err(Malformed::Format { found: 2 }));
        assert_eq!(read_value(b"\x01\0\0\0"), Err(Malformed::Value));
        assert_eq!(read_value(b"\x01\0\0\0\x01x"), Err(Malformed::Value));
        assert_eq!(read_value(b"\x01\0\0\0\x01t\0\0"), Err(Malformed::Value));
    }
}
