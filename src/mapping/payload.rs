//! A touched aggregate -> what an event of it says: its data, its key, its row. Straight from the wire's text. Pure.

use ring::digest::{SHA256, digest};

use super::{
    MapError,
    aggregate::{NetRow, Touched},
    row::{Cell, Cells, Walk},
    rules::{Aggregate, EventRule, Field, Hop, MappedTable, Rules},
    sight::{Sight, View},
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
    /// A foreign key that the database enforces leads nowhere.
    #[error(
        "tell {field}: a foreign key leads to {table} with primary key {key}, and the replica does not have that row, so it and the source \
         disagree; `offshoot reload` reads the held tables again"
    )]
    Row {
        /// `schema.table`.
        table: String,
        /// Its primary key.
        key: String,
        /// Whose value it would be.
        field: String,
    },
}

/// Data cannot be written.
#[derive(Debug)]
pub enum Unwritten {
    /// Something is not known, or has no form.
    Missing(Missing),
    /// Other rows cannot be read.
    Unread(Box<MapError>),
}

impl From<Missing> for Unwritten {
    fn from(missing: Missing) -> Self {
        Unwritten::Missing(missing)
    }
}

impl From<MapError> for Unwritten {
    fn from(error: MapError) -> Self {
        Unwritten::Unread(Box::new(error))
    }
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
pub fn write(sight: Sight<'_>, rule: &EventRule, touched: &Touched<'_>, out: &mut Vec<u8>) -> Result<(), Unwritten> {
    let rules = sight.rules;
    let aggregate = &rules.aggregates[touched.aggregate];
    let table = &rules.tables[aggregate.root];
    let is_gone = touched.root.is_some_and(|root| root.after.is_none());
    let root = Subject { table, state: State::of_root(table, touched) };
    Object { sight, rule, aggregate, touched, is_gone }.write(&rule.data, &root, &mut Vec::new(), out)
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
enum State<'a> {
    /// It is in the transaction.
    Touched {
        before: Option<Walk<'a>>,
        /// What `AsOf::Now` is: after, or before when it is gone.
        now: Option<Walk<'a>>,
    },
    /// It is not; of its primary key of one column there is the text.
    Untouched { key: Option<&'a [u8]> },
}

impl<'a> State<'a> {
    fn of(row: NetRow<'a>) -> Self {
        State::Touched { before: row.before.map(Walk::of), now: row.after.or(row.before).map(Walk::of) }
    }

    fn of_root(table: &MappedTable, touched: &Touched<'a>) -> Self {
        match touched.root {
            Some(row) => Self::of(row),
            None => State::Untouched { key: touched.root_key.filter(|_| table.key_len == 1) },
        }
    }

    /// A value; null of a row that was not there.
    fn cell(&self, column: usize, as_of: AsOf) -> Cell<'a> {
        match self {
            State::Touched { before, .. } if as_of == AsOf::Before => {
                before.as_ref().map_or(Cell::Null, |row| row.get(column))
            }
            State::Touched { before, now } => match now.as_ref().map_or(Cell::Null, |row| row.get(column)) {
                Cell::Unchanged => before.as_ref().map_or(Cell::Unknown, |row| row.get(column)),
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
    sight: Sight<'a>,
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
    ) -> Result<(), Unwritten> {
        out.push(b'{');
        let mut is_first = true;
        for (name, field) in fields {
            if let Field::Column { mask: Some(Mask::Drop), .. } | Field::LookUp { mask: Some(Mask::Drop), .. } = field {
                continue;
            }
            if !std::mem::take(&mut is_first) {
                out.push(b',');
            }
            json::string(out, name.as_bytes()).expect("a str is UTF-8");
            out.push(b':');
            path.push(name);
            match field {
                Field::Column { column, old, mask } => {
                    let (table, cell) = (subject.table, subject.state.cell(*column, as_of(*old)));
                    self.value((table, *column), cell, *mask, path, out)?;
                }
                Field::Object(fields) => self.write(fields, subject, path, out)?,
                Field::LookUp { hops, column, old, mask } => {
                    self.look_up(hops, (*column, *old, *mask), subject, path, out)?;
                }
                Field::Each { collection, data } => self.each(*collection, data, path, out)?,
            }
            path.pop();
        }
        out.push(b'}');
        Ok(())
    }

    fn value(
        &self,
        (table, column): (&MappedTable, usize),
        cell: Cell<'_>,
        mask: Option<Mask>,
        path: &[&str],
        out: &mut Vec<u8>,
    ) -> Result<(), Missing> {
        let field = || self.field(path);
        match (known(table, column, cell, field)?, mask) {
            (Some(text), Some(Mask::Sha256)) => {
                let start = out.len();
                let written = table.columns[column].writer.write_plain(text, out);
                written.map_err(|unfit| does_not_fit(table, column, unfit, field))?;
                let hash = digest(&SHA256, &out[start..]);
                out.truncate(start);
                hex(hash.as_ref(), out);
                Ok(())
            }
            (text, _) => value(table, column, text, field, out),
        }
    }

    /// A column of the row that foreign keys lead to. Of what is gone they lead to what is there still, else to what was.
    fn look_up(
        &self,
        hops: &[Hop],
        (column, old, mask): (usize, bool, Option<Mask>),
        subject: &Subject<'_>,
        path: &[&str],
        out: &mut Vec<u8>,
    ) -> Result<(), Unwritten> {
        let view = match (old, self.is_gone) {
            (true, _) => View::Before,
            (false, true) => View::Last,
            (false, false) => View::After,
        };
        let field = || self.field(path);
        let (mut row, mut next) = (Vec::new(), Vec::new());
        let mut table = subject.table;
        for (number, hop) in hops.iter().enumerate() {
            let key = match number {
                0 => subject.state.cell(hop.key, as_of(old)),
                _ => Cells { bytes: &row }.get(hop.key),
            };
            let Some(key) = known(table, hop.key, key, field)? else {
                out.extend_from_slice(b"null");
                return Ok(());
            };
            table = &self.sight.rules.tables[hop.table];
            if !self.sight.find(hop.table, key, view, &mut next)? {
                if hop.enforced {
                    let key = String::from_utf8_lossy(key).into_owned();
                    return Err(Missing::Row { table: table.full_name(), key, field: field() }.into());
                }
                out.extend_from_slice(b"null");
                return Ok(());
            }
            std::mem::swap(&mut row, &mut next);
        }
        Ok(self.value((table, column), Cells { bytes: &row }.get(column), mask, path, out)?)
    }

    /// As messages have it.
    fn field(&self, path: &[&str]) -> String {
        format!("{}.{}", self.rule.name, path.join("."))
    }

    fn each(
        &self,
        collection: usize,
        data: &'a [(String, Field)],
        path: &mut Vec<&'a str>,
        out: &mut Vec<u8>,
    ) -> Result<(), Unwritten> {
        let table = &self.sight.rules.tables[self.aggregate.children[collection].table];
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
            let state = State::Touched { before: before.map(Walk::of), now: now.map(Walk::of) };
            let subject = Subject { table, state };
            self.write(data, &subject, path, out)?;
        }
        out.push(b']');
        Ok(())
    }
}

fn as_of(old: bool) -> AsOf {
    if old { AsOf::Before } else { AsOf::Now }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postgres_types::Type;

    use super::*;
    use crate::{
        mapping::{
            aggregate::Child,
            held::Held,
            rules::{Collection, MappedColumn, Trigger},
            store::Store,
            value::Writer,
        },
        sink::Topic,
        transaction::Spill,
    };

    fn column(name: &str, ty: Type) -> MappedColumn {
        let writer = Writer::of(&ty, -1, None, None).unwrap();
        MappedColumn {
            name: name.into(),
            ty,
            modifier: -1,
            decimal: None,
            zone: None,
            writer,
            needed_by: String::new(),
        }
    }

    fn table(name: &str, key_len: usize, columns: Vec<MappedColumn>) -> MappedTable {
        MappedTable {
            oid: 0,
            schema: "public".into(),
            name: name.into(),
            columns,
            key_len,
            roles: Vec::new(),
            held: false,
        }
    }

    fn field(column: usize) -> Field {
        Field::Column { column, old: false, mask: None }
    }

    /// Orders with lines; `email` is hashed, `note` dropped.
    fn rules(key_len: usize, key: Vec<usize>) -> Rules {
        let topic = Arc::new(Topic { name: "shop.order".into(), table: "public.orders".into() });
        let orders = vec![
            column("id", Type::TEXT),
            column("shop", Type::INT4),
            column("email", Type::TEXT),
            column("note", Type::TEXT),
            column("total", Type::NUMERIC),
        ];
        let lines = vec![column("line", Type::INT4), column("order_id", Type::TEXT), column("sku", Type::TEXT)];
        let data = vec![
            ("id".into(), field(0)),
            (
                "to \"whom\"".into(),
                Field::Object(vec![
                    ("email".into(), Field::Column { column: 2, old: false, mask: Some(Mask::Sha256) }),
                    ("note".into(), Field::Column { column: 3, old: false, mask: Some(Mask::Drop) }),
                ]),
            ),
            ("was".into(), Field::Column { column: 4, old: true, mask: None }),
            ("total".into(), field(4)),
            (
                "lines".into(),
                Field::Each { collection: 0, data: vec![("sku".into(), field(2)), ("line".into(), field(0))] },
            ),
        ];
        let event = EventRule {
            name: "OrderPlaced".into(),
            version: 1,
            ce_type: "OrderPlaced.v1".into(),
            aggregate: 0,
            topic: topic.clone(),
            subject: "orders".into(),
            when: vec![Trigger::Created],
            condition: None,
            data,
            because: None,
            compact: false,
            backfill: false,
            needs: Vec::new(),
        };
        Rules {
            tables: vec![table("orders", key_len, orders), table("order_line", 1, lines)],
            aggregates: vec![Aggregate {
                name: "Order".into(),
                subject: "orders".into(),
                root: 0,
                topic,
                key,
                children: vec![Collection { name: "lines".into(), table: 1, link: 1, enforced: true }],
            }],
            events: vec![event],
            ..Rules::default()
        }
    }

    fn row(values: &[Cell<'_>]) -> Cells<'static> {
        let mut bytes = Vec::new();
        values.iter().for_each(|value| value.write(&mut bytes));
        Cells { bytes: bytes.leak() }
    }

    fn text(text: &str) -> Cell<'_> {
        Cell::Text(text.as_bytes())
    }

    fn order(total: Cell<'_>) -> Cells<'static> {
        row(&[text("a,1"), text("7"), text("x@example.com"), text("secret"), total])
    }

    fn line(line: &str, sku: &str, was: bool, is: bool) -> Child<'static> {
        let cells = row(&[text(line), text("a,1"), text(sku)]);
        let (before, after) = (was.then_some(cells), is.then_some(cells));
        Child { collection: 0, row: NetRow { before, after }, was, is }
    }

    fn touched(
        before: Option<Cells<'static>>,
        after: Option<Cells<'static>>,
        children: Vec<Child<'static>>,
    ) -> Touched<'static> {
        Touched { aggregate: 0, root: Some(NetRow { before, after }), root_key: None, children }
    }

    fn written(touched: &Touched<'_>) -> Result<String, Missing> {
        let rules = rules(1, vec![0]);
        let mut out = Vec::new();
        let store = Store::new(Spill { dir: std::env::temp_dir(), memory_max: 1 << 20, file_max: 0 });
        let held = Held::new(&rules);
        let sight = Sight { rules: &rules, store: &store, held: &held, has_touched: &[] };
        write(sight, &rules.events[0], touched, &mut out).map_err(|unwritten| match unwritten {
            Unwritten::Missing(missing) => missing,
            Unwritten::Unread(error) => panic!("{error}"),
        })?;
        let text = String::from_utf8(out).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
        Ok(text)
    }

    const EMAIL: &str = "b2a8e0ecdcbc8cfb5e4f5ed8b5a2e7b0";

    fn parsed(touched: &Touched<'_>) -> serde_json::Value {
        let mut value: serde_json::Value = serde_json::from_str(&written(touched).unwrap()).unwrap();
        let hash = value["to \"whom\""]["email"].take();
        let hash = hash.as_str().unwrap();
        assert!(hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)), "{hash}");
        value["to \"whom\""]["email"] = EMAIL.into();
        value
    }

    #[test]
    fn a_created_root_is_told_with_its_children() {
        let children =
            vec![line("1", "SKU-1", false, true), line("2", "SKU-2", true, false), line("3", "a\"b", false, true)];
        let told = parsed(&touched(None, Some(order(text("12.50"))), children));
        let expected = serde_json::json!({
            "id": "a,1",
            "to \"whom\"": { "email": EMAIL },
            "was": null,
            "total": "12.50",
            "lines": [{ "sku": "SKU-1", "line": 1 }, { "sku": "a\"b", "line": 3 }],
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn a_deleted_root_is_told_as_it_was_with_the_children_it_had() {
        let moved = Child {
            row: NetRow {
                before: Some(row(&[text("4"), text("a,1"), text("then")])),
                after: Some(row(&[text("4"), text("b"), text("now")])),
            },
            ..line("4", "", true, false)
        };
        let told = parsed(&touched(Some(order(text("9"))), None, vec![line("1", "SKU-1", true, false), moved]));
        assert_eq!((&told["was"], &told["total"]), (&"9".into(), &"9".into()));
        assert_eq!(told["lines"], serde_json::json!([{ "sku": "SKU-1", "line": 1 }, { "sku": "then", "line": 4 }]));
    }

    #[test]
    fn masks_hash_the_text_and_drop_the_field() {
        let told = written(&touched(None, Some(order(Cell::Null)), Vec::new())).unwrap();
        // sha256sum of x@example.com
        assert!(told.contains(SHA_OF_EMAIL), "{told}");
        assert!(!told.contains("note") && !told.contains("secret"), "{told}");
        let null = row(&[text("1"), text("7"), Cell::Null, Cell::Null, Cell::Null]);
        assert!(written(&touched(None, Some(null), Vec::new())).unwrap().contains("{\"email\":null}"));
    }

    const SHA_OF_EMAIL: &str = "106ab2de3ae32f0e429961a20307e3a5e05d7b4dd6f25e8c2e5282de58208f00";

    #[test]
    fn an_unchanged_value_is_what_it_was_and_never_a_guess() {
        let told = parsed(&touched(Some(order(text("9"))), Some(order(Cell::Unchanged)), Vec::new()));
        assert_eq!((&told["was"], &told["total"]), (&"9".into(), &"9".into()));
        let missing =
            written(&touched(Some(order(Cell::Unknown)), Some(order(Cell::Unchanged)), Vec::new())).unwrap_err();
        assert_eq!(
            missing,
            Missing::Unknown { table: "public.orders".into(), column: "total".into(), field: "OrderPlaced.was".into() }
        );
        let only_children = Touched { root: None, root_key: Some(b"a,1"), ..touched(None, None, Vec::new()) };
        let missing = written(&only_children).unwrap_err();
        assert!(missing.to_string().starts_with(
            "tell OrderPlaced.to \"whom\".email: the transaction does not carry public.orders.email; `ALTER"
        ));
    }

    #[test]
    fn a_value_that_cannot_leave_is_named() {
        let missing = written(&touched(None, Some(order(text("NaN"))), Vec::new())).unwrap_err();
        assert!(
            missing
                .to_string()
                .starts_with("tell OrderPlaced.total: public.orders.total has a value that cannot leave: it is NaN")
        );
    }

    #[test]
    fn keys_and_rows_are_texts() {
        let said = |key_len, columns: Vec<usize>, as_of, touched: &Touched<'_>| {
            let rules = rules(key_len, columns);
            let (mut of_key, mut of_row) = (Vec::new(), Vec::new());
            key(&rules, touched, as_of, &mut of_key).unwrap();
            row_text(&rules, touched, as_of, &mut of_row);
            (String::from_utf8(of_key).unwrap(), String::from_utf8(of_row).unwrap())
        };
        let touched = touched(
            Some(order(text("1.50"))),
            Some(row(&[text("b"), text("8"), Cell::Null, Cell::Null, text("2")])),
            Vec::new(),
        );
        assert_eq!(said(1, vec![0], AsOf::Before, &touched), ("a,1".into(), "a,1".into()));
        assert_eq!(said(1, vec![0], AsOf::Now, &touched), ("b".into(), "b".into()));
        assert_eq!(said(2, vec![1, 0, 4], AsOf::Before, &touched), ("[7,\"a,1\",\"1.50\"]".into(), "a\\,1,7".into()));
        assert_eq!(said(2, vec![4], AsOf::Now, &touched), ("2".into(), "b,8".into()));
        let gone = Touched { root: touched.root.map(|root| NetRow { after: None, ..root }), ..touched.clone() };
        assert_eq!(said(1, vec![0], AsOf::Now, &gone), ("a,1".into(), "a,1".into()));
        let untouched = Touched { root: None, root_key: Some(b"c"), ..touched };
        assert_eq!(said(1, vec![0], AsOf::Now, &untouched), ("c".into(), "c".into()));
    }

    fn row_text(rules: &Rules, touched: &Touched<'_>, as_of: AsOf, out: &mut Vec<u8>) {
        super::row(rules, touched, as_of, out).unwrap();
    }
}
