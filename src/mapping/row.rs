//! A row of a mapped table: only the columns that rules need, by their place in `MappedTable::columns`. Pure.

use postgres_types::Type;

use super::{
    rules::{MappedColumn, MappedTable},
    value::has_same_text,
};
use crate::change::{Identity, Old, Row, Table, Value};

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
    pub fn iter(mut self) -> impl Iterator<Item = Cell<'a>> {
        std::iter::from_fn(move || {
            let (cell, rest) = self.split_first()?;
            self = rest;
            Some(cell)
        })
    }

    /// The first value, and those after it.
    fn split_first(self) -> Option<(Cell<'a>, Cells<'a>)> {
        let (kind, bytes) = self.bytes.split_first()?;
        Some(match kind {
            b'n' => (Cell::Null, Cells { bytes }),
            b'u' => (Cell::Unchanged, Cells { bytes }),
            b'?' => (Cell::Unknown, Cells { bytes }),
            _ => {
                let (len, bytes) = bytes.split_first_chunk::<4>().expect("written with its length");
                let (text, bytes) = bytes.split_at(u32::from_be_bytes(*len) as usize);
                (Cell::Text(text), Cells { bytes })
            }
        })
    }

    /// The first values, which are the primary key's, as they stand in `bytes`; else which of them is not known.
    pub fn key(self, len: usize) -> Result<&'a [u8], usize> {
        let mut bytes = 0;
        for (column, cell) in self.iter().take(len).enumerate() {
            let Cell::Text(text) = cell else { return Err(column) };
            bytes += 1 + size_of::<u32>() + text.len();
        }
        Ok(&self.bytes[..bytes])
    }

    /// What somebody else has kept: nulls and texts; `None` when it is nothing of the kind.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        while let Some((kind, after)) = rest.split_first() {
            rest = match kind {
                b'n' => after,
                b't' => {
                    let (len, text) = after.split_first_chunk::<4>()?;
                    text.get(u32::from_be_bytes(*len) as usize..)?
                }
                _ => return None,
            };
        }
        Some(Self { bytes })
    }

    /// The first column whose value is not known of itself.
    pub fn blank(self) -> Option<usize> {
        self.iter().position(|cell| matches!(cell, Cell::Unchanged | Cell::Unknown))
    }

    /// The value of a column.
    pub fn get(self, column: usize) -> Cell<'a> {
        self.iter().nth(column).expect("a row has all columns that rules need")
    }
}

/// A row whose values are asked for one by one, nearly always in their order: it goes on from where it is, so that all of them
/// take one walk.
#[derive(Debug)]
pub struct Walk<'a> {
    row: Cells<'a>,
    /// The column that comes next, and the values from there on.
    next: std::cell::Cell<(usize, Cells<'a>)>,
}

impl<'a> Walk<'a> {
    /// Begins before the first value.
    pub fn of(row: Cells<'a>) -> Self {
        Self { row, next: std::cell::Cell::new((0, row)) }
    }

    /// The value of a column.
    pub fn get(&self, column: usize) -> Cell<'a> {
        let (mut next, mut rest) = self.next.get();
        if column < next {
            (next, rest) = (0, self.row);
        }
        loop {
            let (cell, after) = rest.split_first().expect("a row has all columns that rules need");
            (next, rest) = (next + 1, after);
            if next > column {
                self.next.set((next, rest));
                return cell;
            }
        }
    }
}

/// Appends what `new` says, and where that is `Unchanged`, what `base` knows.
pub fn fill(new: Cells<'_>, base: Cells<'_>, out: &mut Vec<u8>) {
    for (new, base) in new.iter().zip(base.iter()) {
        match (new, base) {
            (Cell::Unchanged, Cell::Null | Cell::Text(_)) => base.write(out),
            _ => new.write(out),
        }
    }
}

/// Appends what `row` says, and where that is nothing, what `held` knows.
pub fn complete(row: Cells<'_>, held: Cells<'_>, out: &mut Vec<u8>) {
    for (cell, held) in row.iter().zip(held.iter()) {
        match cell {
            Cell::Unchanged | Cell::Unknown => held.write(out),
            cell => cell.write(out),
        }
    }
}

/// Appends a value of a key so that bytes compare as keys do: integers as numbers, else as the bytes of their text. It ends itself: keys
/// of several columns are their values' one after the other.
pub fn write_sorted(text: &[u8], ty: &Type, out: &mut Vec<u8>) {
    let is_integer = matches!(*ty, Type::INT2 | Type::INT4 | Type::INT8 | Type::OID);
    #[cfg(test)]
    let is_integer = is_integer && !crate::planted::is_planted(crate::planted::PlantedBug::SortsNumbersAsText);
    let number = str::from_utf8(text).ok().filter(|_| is_integer).and_then(|text| text.parse::<i64>().ok());
    if let Some(number) = number {
        out.push(1);
        out.extend_from_slice(&(number ^ i64::MIN).to_be_bytes());
        return;
    }
    out.push(2);
    for &byte in text {
        out.push(byte);
        if byte == 0 {
            out.push(0xFF);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

/// Appends the primary key of a row as `write_sorted` has it, of each value. The key is known.
pub fn write_sorted_key(table: &MappedTable, row: Cells<'_>, out: &mut Vec<u8>) {
    for (column, cell) in table.columns.iter().zip(row.iter()).take(table.key_len) {
        if let Cell::Text(text) = cell {
            write_sorted(text, &column.ty, out);
        }
    }
}

/// How long the key of so many columns is that `sorted` begins with.
pub fn sorted_len(sorted: &[u8], columns: usize) -> usize {
    let mut at = 0;
    for _ in 0..columns {
        if sorted[at] == 1 {
            at += 9;
            continue;
        }
        at += 1;
        while sorted[at..at + 2] != [0, 0] {
            // A zero of the text has its mark behind it.
            at += if sorted[at] == 0 { 2 } else { 1 };
        }
        at += 2;
    }
    at
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

/// Why rows of a shape cannot be read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Misshapen<'a> {
    /// It does not have the column.
    Dropped(&'a MappedColumn),
    /// The column is of a type whose text is another.
    Retyped(&'a MappedColumn),
    /// Its primary key has other columns.
    OtherKey,
}

impl Projection {
    /// Finds the columns that rules need in a shape of their table.
    pub fn resolve<'a>(table: &'a MappedTable, shape: &Table) -> Result<Self, Misshapen<'a>> {
        let mut columns = Vec::with_capacity(table.columns.len());
        for column in &table.columns {
            let place = shape.columns.iter().position(|c| c.name == column.name).ok_or(Misshapen::Dropped(column))?;
            let found = &shape.columns[place];
            if !has_same_text((&found.ty, found.modifier), (&column.ty, column.modifier)) {
                return Err(Misshapen::Retyped(column));
            }
            columns.push((place, found.identity));
        }
        let identity = shape.columns.iter().filter(|column| column.identity).count();
        let covered = columns[..table.key_len].iter().filter(|(_, identity)| *identity).count();
        // Where the log has no flags of the key, the catalog's word is taken, which may be that of a moment later; of a table that is gone
        // it has none.
        let is_another = match shape.identity {
            Identity::Default => (covered, identity) != (table.key_len, table.key_len),
            Identity::Full if !shape.key.is_empty() => {
                let is_mapped = |place: &usize| columns[..table.key_len].iter().any(|(key, _)| key == place);
                shape.key.len() != table.key_len || !shape.key.iter().all(is_mapped)
            }
            _ => false,
        };
        if is_another {
            return Err(Misshapen::OtherKey);
        }
        Ok(Self { columns })
    }

    /// Appends what is said of an old row when only the new one is: an update that is told without it has not touched the identity.
    pub fn kept(&self, new: Row<'_>, out: &mut Vec<u8>) {
        self.pick(new, |identity| identity, out);
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        change::{Asked, Column},
        mapping::value::Writer,
    };

    fn mapped(columns: &[(&str, Type, i32)]) -> MappedTable {
        let column = |(name, ty, modifier): &(&str, Type, i32)| MappedColumn {
            name: (*name).into(),
            ty: ty.clone(),
            modifier: *modifier,
            decimal: None,
            zone: None,
            writer: Writer::Text,
            needed_by: "E.f".into(),
        };
        let columns = columns.iter().map(column).collect();
        MappedTable {
            oid: 0,
            schema: "public".into(),
            name: "t".into(),
            columns,
            key_len: 1,
            roles: Vec::new(),
            held: false,
        }
    }

    fn shape(identity: Identity, key: &[usize], columns: &[(&str, Type, i32)]) -> Table {
        let column = |(at, (name, ty, modifier)): (usize, &(&str, Type, i32))| Column {
            name: (*name).into(),
            ty: ty.clone(),
            modifier: *modifier,
            identity: identity == Identity::Full || key.contains(&at),
        };
        Table {
            version: 1,
            oid: 1,
            schema: "public".into(),
            name: "t".into(),
            ancestors: vec![],
            identity,
            asked: Asked { mapping: true, ..Asked::NOBODY },
            columns: columns.iter().enumerate().map(column).collect(),
            key: key.to_vec(),
        }
    }

    #[test]
    fn a_type_may_change_as_long_as_its_text_does_not() {
        let numeric = |precision: i32, scale: i32| ((precision << 16) | scale) + 4;
        let fits = |was: (Type, i32), is: (Type, i32)| {
            let mapped = mapped(&[("id", Type::INT4, -1), ("v", was.0, was.1)]);
            let shape = shape(Identity::Default, &[1], &[("v", is.0, is.1), ("id", Type::INT8, -1)]);
            match Projection::resolve(&mapped, &shape) {
                Ok(found) => {
                    assert_eq!(found.columns, [(1, true), (0, false)]);
                    true
                }
                Err(misshapen) => {
                    assert_eq!(misshapen, Misshapen::Retyped(&mapped.columns[1]));
                    false
                }
            }
        };
        assert!(fits((Type::TEXT, -1), (Type::VARCHAR, 12)));
        assert!(fits((Type::NUMERIC, numeric(10, 2)), (Type::NUMERIC, numeric(12, 2))));
        assert!(fits((Type::TIMESTAMP, 0), (Type::TIMESTAMP, 3)));
        assert!(!fits((Type::NUMERIC, numeric(10, 2)), (Type::NUMERIC, numeric(10, 4))));
        assert!(!fits((Type::NUMERIC, -1), (Type::NUMERIC, numeric(10, 4))));
        assert!(!fits((Type::BPCHAR, 6), (Type::BPCHAR, 7)));
        assert!(!fits((Type::TIMESTAMP, -1), (Type::TIMESTAMPTZ, -1)));
        assert!(!fits((Type::INT4, -1), (Type::TEXT, -1)));
    }

    #[test]
    fn another_primary_key_is_found_by_the_flags_of_the_log_or_by_the_catalog() {
        let columns = [("id", Type::INT4, -1), ("code", Type::INT4, -1)];
        let mapped = mapped(&columns);
        let resolve = |identity, key: &[usize]| Projection::resolve(&mapped, &shape(identity, key, &columns)).is_ok();
        assert!(resolve(Identity::Default, &[0]) && resolve(Identity::Full, &[0]));
        assert!(resolve(Identity::Full, &[]), "a table that is gone");
        for key in [&[1][..], &[0, 1], &[1, 0]] {
            assert!(!resolve(Identity::Default, key) && !resolve(Identity::Full, key), "{key:?}");
        }
    }
}
