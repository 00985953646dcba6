//! A row of COPY's text format -> cells, as the stream has them. Pure.

use memchr::memchr3;

/// Where a row is in its table: its block, and its place in that. Rows are read in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ctid {
    pub(super) block: u32,
    pub(super) place: u16,
}

/// Appends the values of a row, whose first column is its `ctid`: per column `n`, or `t`, a big-endian `u32` length and the
/// text. `None` when the row is not of so many columns, or not in this format; `cells` has anything then.
pub(super) fn read(row: &[u8], columns: usize, cells: &mut Vec<u8>) -> Option<Ctid> {
    let tab = memchr::memchr(b'\t', row)?;
    let ctid = ctid(&row[..tab])?;
    let mut rest = &row[tab + 1..];
    for column in 1..=columns {
        let end = if column == columns { b'\n' } else { b'\t' };
        rest = value(rest, end, cells)?;
    }
    rest.is_empty().then_some(ctid)
}

/// `(12,3)`
fn ctid(text: &[u8]) -> Option<Ctid> {
    let text = std::str::from_utf8(text).ok()?.strip_prefix('(')?.strip_suffix(')')?;
    let (block, place) = text.split_once(',')?;
    Some(Ctid { block: block.parse().ok()?, place: place.parse().ok()? })
}

/// Appends one value; gives what comes after its end.
fn value<'a>(mut rest: &'a [u8], end: u8, cells: &mut Vec<u8>) -> Option<&'a [u8]> {
    if let Some(after) = rest.strip_prefix(b"\\N") {
        cells.push(b'n');
        return after.strip_prefix(&[end]);
    }
    cells.push(b't');
    let at = cells.len();
    cells.extend_from_slice(&[0; 4]);
    loop {
        let special = memchr3(b'\t', b'\\', b'\n', rest)?;
        cells.extend_from_slice(&rest[..special]);
        let (byte, after) = (rest[special], &rest[special + 1..]);
        if byte == end {
            let len = u32::try_from(cells.len() - at - 4).ok()?;
            cells[at..at + 4].copy_from_slice(&len.to_be_bytes());
            return Some(after);
        }
        if byte != b'\\' {
            return None;
        }
        // What COPY TO writes; it reads more.
        cells.push(match after.first()? {
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            b'\\' => b'\\',
            _ => return None,
        });
        rest = &after[1..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::change::{Row, Value};

    /// As `CopyAttributeOutText` of PostgreSQL has it.
    fn written(values: &[Option<String>]) -> Vec<u8> {
        let escaped = |text: &String| {
            let mut out = Vec::new();
            for byte in text.bytes() {
                match byte {
                    8 => out.extend_from_slice(b"\\b"),
                    b'\t' => out.extend_from_slice(b"\\t"),
                    b'\n' => out.extend_from_slice(b"\\n"),
                    11 => out.extend_from_slice(b"\\v"),
                    12 => out.extend_from_slice(b"\\f"),
                    b'\r' => out.extend_from_slice(b"\\r"),
                    b'\\' => out.extend_from_slice(b"\\\\"),
                    byte => out.push(byte),
                }
            }
            out
        };
        let mut row = b"(7,12)".to_vec();
        for value in values {
            row.push(b'\t');
            row.extend(value.as_ref().map_or(b"\\N".to_vec(), escaped));
        }
        row.push(b'\n');
        row
    }

    fn texts(cells: &[u8], columns: usize) -> Vec<Option<String>> {
        let values = Row { bytes: cells, columns: columns as u16 }.values();
        let text = |value| match value {
            Value::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
            Value::Null => None,
            Value::Unchanged => panic!("a row that is read is whole"),
        };
        values.map(text).collect()
    }

    #[test]
    fn all_escapes_null_and_empty() {
        let values =
            [Some("a\u{8}\t\n\u{b}\u{c}\r\\N\\\\".into()), None, Some(String::new()), Some("\\N".into()), None];
        let mut cells = Vec::new();
        let ctid = read(&written(&values), values.len(), &mut cells).unwrap();
        assert_eq!(ctid, Ctid { block: 7, place: 12 });
        assert_eq!(texts(&cells, values.len()), values);
    }

    #[test]
    fn what_copy_does_not_write_is_refused() {
        for row in [
            "",
            "\n",
            "(1,2)\n",
            "1,2\ta\n",
            "(1,2)\ta",
            "(1,2)\ta\tb\n",
            "(1,2)\ta\n\n",
            "(1,2)\t\\x41\n",
            "(1,2)\t\\",
            "(1,70000)\ta\n",
            "(1,2)\t\\Na\n",
            "(1,2)\ta\\\n",
        ] {
            assert_eq!(read(row.as_bytes(), 1, &mut Vec::new()), None, "{row:?}");
        }
        assert_eq!(read(b"(1,2)\ta\n", 2, &mut Vec::new()), None);
    }

    proptest! {
        #[test]
        fn any_row_is_read_and_none_that_is_cut(values in prop::collection::vec(prop::option::of("[\\PC\u{0}-\u{1f}\\\\N]{0,20}"), 1..6)) {
            let row = written(&values);
            let mut cells = b"before".to_vec();
            prop_assert!(read(&row, values.len(), &mut cells).is_some());
            prop_assert_eq!(texts(&cells[6..], values.len()), values.clone());
            for cut in 0..row.len() {
                prop_assert_eq!(read(&row[..cut], values.len(), &mut Vec::new()), None);
            }
        }
    }
}
