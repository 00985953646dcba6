//! A touched aggregate -> what an event of it says: its data, its key, its row. Straight from the wire's text. Pure.

use ring::digest::{SHA256, digest};

use super::{
    aggregate::{NetRow, Touched},
    row::{Cell, Cells},
    rules::{Aggregate, EventRule, Field, MappedTable, Rules},
    value::Unfit,
};
use crate::{config::Mask, json};

/// What an event has to say and cannot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The log does not carry it.
    #[error(
        "tell {field}: the transaction does not carry {table}.{column}; `ALTER TABLE {table} REPLICA IDENTITY FULL` makes it carry \
         old values, and `offshoot check` says which events are complete without them"
    )]
    Unknown {
        /// `schema.table`.
        table: String,
        /// The column's name.
        column: String,
        /// Whose value it would be: `OrderPlaced.lines.sku`, or `the key of Order`.
        field: String,
    },
    /// It has no JSON form.
    #[error("tell {field}: {table}.{column} has a value that cannot leave: {unfit}")]
    Unfit {
        /// `schema.table`.
        table: String,
        /// The column's name.
        column: String,
        /// Whose value it would be.
        field: String,
        /// What is the matter, and how to mend it.
        unfit: Unfit,
    },
}

/// Which state of the root is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsOf {
    /// As it was before the transaction.
    Before,
    /// As it is after it; of a root that is gone, as it was.
    Now,
}

/// Appends an event's data, a JSON object.
pub fn write(rules: &Rules, rule: &EventRule, touched: &Touched<'_>, out: &mut Vec<u8>) -> Result<(), Missing> {
    let aggregate = &rules.aggregates[touched.aggregate];
    let table = &rules.tables[aggregate.root];
    let is_gone = touched.root.is_some_and(|root| root.after.is_none());
    let root = Subject { table, state: State::of_root(table, touched) };
    Object { rules, rule, aggregate, touched, is_gone }.write(&rule.data, &root, &mut Vec::new(), out)
}

/// Appends the record's key: the text of one column, or a JSON array of several, each as it leaves in data.
pub fn key(rules: &Rules, touched: &Touched<'_>, as_of: AsOf, out: &mut Vec<u8>) -> Result<(), Missing> {
    let aggregate = &rules.aggregates[touched.aggregate];
    let table = &rules.tables[aggregate.root];
    let state = State::of_root(table, touched);
    let field = || format!("the key of {}", aggregate.name);
    let cell = |column: usize| known(table, column, state.cell(column, as_of), field);
    if let [column] = aggregate.key[..] {
        if let Some(text) = cell(column)? {
            let written = table.columns[column].writer.write_plain(text, out);
            written.map_err(|unfit| does_not_fit(table, column, unfit, field))?;
        }
        return Ok(());
    }
    for (i, &column) in aggregate.key.iter().enumerate() {
        out.push(if i == 0 { b'[' } else { b',' });
        value(table, column, cell(column)?, field, out)?;
    }
    out.push(b']');
    Ok(())
}

/// Appends the primary key of the root's row: its text. Several columns are joined by `,`, and a backslash goes before each `,` and
/// backslash in their texts, so that no two rows have the same.
pub fn row(rules: &Rules, touched: &Touched<'_>, as_of: AsOf, out: &mut Vec<u8>) -> Result<(), Missing> {
    let aggregate = &rules.aggregates[touched.aggregate];
    let table = &rules.tables[aggregate.root];
    let state = State::of_root(table, touched);
    let field = || format!("the primary key of {}", aggregate.name);
    let mut plain = Vec::new();
    for column in 0..table.key_len {
        if column > 0 {
            out.push(b',');
        }
        let text = known(table, column, state.cell(column, as_of), field)?.unwrap_or_default();
        plain.clear();
        let written = table.columns[column].writer.write_plain(text, &mut plain);
        written.map_err(|unfit| does_not_fit(table, column, unfit, field))?;
        for &byte in &plain {
            if table.key_len > 1 && matches!(byte, b',' | b'\\') {
                out.push(b'\\');
            }
            out.push(byte);
        }
    }
    Ok(())
}

/// Appends what an event's cause is found by, a value of the root's column: its text as it leaves. False when it is null.
pub fn plain(
    rules: &Rules,
    touched: &Touched<'_>,
    column: usize,
    as_of: AsOf,
    out: &mut Vec<u8>,
) -> Result<bool, Missing> {
    let aggregate = &rules.aggregates[touched.aggregate];
    let table = &rules.tables[aggregate.root];
    let field = || format!("the cause of an event of {}", aggregate.name);
    let cell = State::of_root(table, touched).cell(column, as_of);
    let Some(text) = known(table, column, cell, field)? else { return Ok(false) };
    let written = table.columns[column].writer.write_plain(text, out);
    written.map_err(|unfit| does_not_fit(table, column, unfit, field)).map(|()| true)
}

/// What is known of a row before and after the transaction.
#[derive(Clone, Copy)]
enum State<'a> {
    /// It is in the transaction.
    Touched {
        before: Option<Cells<'a>>,
        /// What `AsOf::Now` is: after, or before when it is gone.
        now: Option<Cells<'a>>,
    },
    /// It is not; of its primary key of one column there is the text.
    Untouched { key: Option<&'a [u8]> },
}

impl<'a> State<'a> {
    fn of(row: NetRow<'a>) -> Self {
        State::Touched { before: row.before, now: row.after.or(row.before) }
    }

    fn of_root(table: &MappedTable, touched: &Touched<'a>) -> Self {
        match touched.root {
            Some(row) => Self::of(row),
            None => State::Untouched { key: touched.root_key.filter(|_| table.key_len == 1) },
        }
    }

    /// A value; null of a row that was not there.
    fn cell(self, column: usize, as_of: AsOf) -> Cell<'a> {
        match self {
            State::Touched { before, .. } if as_of == AsOf::Before => before.map_or(Cell::Null, |row| row.get(column)),
            State::Touched { before, now } => match now.map_or(Cell::Null, |row| row.get(column)) {
                Cell::Unchanged => before.map_or(Cell::Unknown, |row| row.get(column)),
                cell => cell,
            },
            State::Untouched { key: Some(key) } if column == 0 => Cell::Text(key),
            State::Untouched { .. } => Cell::Unknown,
        }
    }
}

/// The row that an object is about.
struct Subject<'a> {
    table: &'a MappedTable,
    state: State<'a>,
}

/// Writes an event's objects.
struct Object<'a> {
    rules: &'a Rules,
    rule: &'a EventRule,
    aggregate: &'a Aggregate,
    touched: &'a Touched<'a>,
    /// The root is there no more.
    is_gone: bool,
}

impl<'a> Object<'a> {
    /// `path` has the names of the fields on the way here.
    fn write(
        &self,
        fields: &'a [(String, Field)],
        subject: &Subject<'a>,
        path: &mut Vec<&'a str>,
        out: &mut Vec<u8>,
    ) -> Result<(), Missing> {
        out.push(b'{');
        let mut is_first = true;
        for (name, field) in fields {
            if matches!(field, Field::Column { mask: Some(Mask::Drop), .. }) {
                continue;
            }
            if !std::mem::take(&mut is_first) {
                out.push(b',');
            }
            json::string(out, name.as_bytes()).expect("a str is UTF-8");
            out.push(b':');
            path.push(name);
            match field {
                Field::Column { column, old, mask } => self.column(*column, *old, *mask, subject, path, out)?,
                Field::Object(fields) => self.write(fields, subject, path, out)?,
                Field::Each { collection, data } => self.each(*collection, data, path, out)?,
            }
            path.pop();
        }
        out.push(b'}');
        Ok(())
    }

    fn column(
        &self,
        column: usize,
        old: bool,
        mask: Option<Mask>,
        subject: &Subject<'_>,
        path: &[&str],
        out: &mut Vec<u8>,
    ) -> Result<(), Missing> {
        let table = subject.table;
        let field = || format!("{}.{}", self.rule.name, path.join("."));
        let as_of = if old { AsOf::Before } else { AsOf::Now };
        let text = known(table, column, subject.state.cell(column, as_of), field)?;
        match (text, mask) {
            (Some(text), Some(Mask::Sha256)) => {
                let start = out.len();
                let written = table.columns[column].writer.write_plain(text, out);
                written.map_err(|unfit| does_not_fit(table, column, unfit, field))?;
                let hash = digest(&SHA256, &out[start..]);
                out.truncate(start);
                hex(hash.as_ref(), out);
                Ok(())
            }
            _ => value(table, column, text, field, out),
        }
    }

    fn each(
        &self,
        collection: usize,
        data: &'a [(String, Field)],
        path: &mut Vec<&'a str>,
        out: &mut Vec<u8>,
    ) -> Result<(), Missing> {
        let table = &self.rules.tables[self.aggregate.children[collection].table];
        out.push(b'[');
        let mut is_first = true;
        for child in &self.touched.children {
            let hangs = if self.is_gone { child.was } else { child.is };
            if child.collection != collection || !hangs {
                continue;
            }
            if !std::mem::take(&mut is_first) {
                out.push(b',');
            }
            let NetRow { before, after } = child.row;
            // Of a root that is gone they are told as they were with it, wherever they hang now.
            let now = if self.is_gone { before } else { after };
            let subject = Subject { table, state: State::Touched { before, now } };
            self.write(data, &subject, path, out)?;
        }
        out.push(b']');
        Ok(())
    }
}

/// A value's text, or `None` for null.
fn known<'a>(
    table: &MappedTable,
    column: usize,
    cell: Cell<'a>,
    field: impl Fn() -> String,
) -> Result<Option<&'a [u8]>, Missing> {
    match cell {
        Cell::Null => Ok(None),
        Cell::Text(text) => Ok(Some(text)),
        Cell::Unchanged | Cell::Unknown => Err(Missing::Unknown {
            table: table.full_name(),
            column: table.columns[column].name.clone(),
            field: field(),
        }),
    }
}

fn value(
    table: &MappedTable,
    column: usize,
    text: Option<&[u8]>,
    field: impl Fn() -> String,
    out: &mut Vec<u8>,
) -> Result<(), Missing> {
    match text {
        None => {
            out.extend_from_slice(b"null");
            Ok(())
        }
        Some(text) => {
            let written = table.columns[column].writer.write(text, out);
            written.map_err(|unfit| does_not_fit(table, column, unfit, field))
        }
    }
}

fn does_not_fit(table: &MappedTable, column: usize, unfit: Unfit, field: impl Fn() -> String) -> Missing {
    Missing::Unfit { table: table.full_name(), column: table.columns[column].name.clone(), field: field(), unfit }
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    out.extend(bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]));
    out.push(b'"');
}
