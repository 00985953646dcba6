//! A row of a mapped table: only the columns that rules need, by their place in `MappedTable::columns`. Pure.

use crate::change::{Old, Row, Value};

/// What is known of one value of a row. Null, unchanged and unknown are three things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// SQL NULL.
    Null,
    /// The type's text form.
    Text(&'a [u8]),
    /// A TOASTed value that no update of the transaction has touched: it is what it was before.
    Unchanged,
    /// The log does not say.
    Unknown,
}

/// The values of a row that rules need.
///
/// Shape: per column of `MappedTable::columns` a kind byte, `n` (null), `u` (unchanged), `?` (unknown) or `t` (text), and after `t` a
/// big-endian `u32` length and that many bytes, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells<'a> {
    /// All of it.
    pub bytes: &'a [u8],
}

impl<'a> Cells<'a> {
    /// The values in order.
    pub fn iter(self) -> impl Iterator<Item = Cell<'a>> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (kind, after) = rest.split_first()?;
            rest = after;
            Some(match kind {
                b'n' => Cell::Null,
                b'u' => Cell::Unchanged,
                b'?' => Cell::Unknown,
                _ => {
                    let (len, after) = rest.split_first_chunk::<4>().expect("written with its length");
                    let (text, after) = after.split_at(u32::from_be_bytes(*len) as usize);
                    rest = after;
                    Cell::Text(text)
                }
            })
        })
    }

    /// The value of a column.
    pub fn get(self, column: usize) -> Cell<'a> {
        self.iter().nth(column).expect("a row has all columns that rules need")
    }
}

impl Cell<'_> {
    /// Appends the value to a row that is being written.
    pub fn write(self, out: &mut Vec<u8>) {
        match self {
            Cell::Null => out.push(b'n'),
            Cell::Unchanged => out.push(b'u'),
            Cell::Unknown => out.push(b'?'),
            Cell::Text(text) => {
                out.push(b't');
                // One value is shorter than a CopyData message, whose length has 32 bits.
                out.extend_from_slice(&(text.len() as u32).to_be_bytes());
                out.extend_from_slice(text);
            }
        }
    }
}

impl<'a> From<Value<'a>> for Cell<'a> {
    fn from(value: Value<'a>) -> Self {
        match value {
            Value::Null => Cell::Null,
            Value::Text(text) => Cell::Text(text),
            Value::Unchanged => Cell::Unchanged,
        }
    }
}

/// The places in a row on the wire of the columns that rules need, for one shape of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Per column of `MappedTable::columns` its place on the wire, and whether the replica identity has it.
    pub columns: Vec<(usize, bool)>,
}

impl Projection {
    /// Appends what a new row says.
    pub fn row(&self, row: Row<'_>, out: &mut Vec<u8>) {
        self.pick(row, |_| true, out);
    }

    /// Appends what is said of an old row.
    pub fn old(&self, old: Old<'_>, out: &mut Vec<u8>) {
        match old {
            Old::Full(row) => self.pick(row, |_| true, out),
            Old::Identity(row) => self.pick(row, |identity| identity, out),
        }
    }

    fn pick(&self, row: Row<'_>, is_said: impl Fn(bool) -> bool, out: &mut Vec<u8>) {
        // In the order of the wire nearly always, so that one walk serves.
        let (mut values, mut at) = (row.values(), 0);
        for &(place, identity) in &self.columns {
            if place < at {
                (values, at) = (row.values(), 0);
            }
            let value = values.nth(place - at).expect("the assembler has counted the values");
            at = place + 1;
            if is_said(identity) { Cell::from(value).write(out) } else { Cell::Unknown.write(out) }
        }
    }
}
