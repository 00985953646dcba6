//! A path of the config, such as `performance.show.event.name` -> the column that it means. Pure.

use super::{
    catalog::{Catalog, CatalogColumn, CatalogTable, Kind},
    value::{declared, equal_as_text},
};
use crate::config::{Ordered, TableConfig, full_name, nearest};

/// Where the value of a path is.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    /// As it was before the transaction: `old.column`.
    pub(crate) old: bool,
    /// Other tables on the way; none when the row itself has it.
    pub(crate) hops: Vec<Hop<'a>>,
    /// The table that has the column.
    pub(crate) table: &'a CatalogTable,
    /// Index into its columns.
    pub(crate) column: usize,
}

/// From a row to the row that its foreign key names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hop<'a> {
    /// The table that has the key.
    pub(crate) from: &'a CatalogTable,
    /// Index into its columns: the key.
    pub(crate) column: usize,
    /// The table that it points to.
    pub(crate) to: &'a CatalogTable,
    /// Index into that one's columns: what the key holds.
    pub(crate) to_column: usize,
    /// The database sees to it that the row is there.
    pub(crate) enforced: bool,
}

/// What tables are called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    /// The tables.
    pub(crate) catalog: &'a Catalog,
    /// `tables`.
    pub(crate) tables: &'a Ordered<TableConfig>,
}

impl<'a> Place<'a> {
    /// The column itself.
    pub(crate) fn of(&self) -> &'a CatalogColumn {
        &self.table.columns[self.column]
    }
}

impl Hop<'_> {
    /// The foreign key's column.
    pub(crate) fn key(&self) -> &str {
        &self.from.columns[self.column].name
    }

    /// Whether it goes the same way.
    fn is_as(&self, other: &Hop<'_>) -> bool {
        std::ptr::eq(self.to, other.to) && (self.column, self.to_column) == (other.column, other.to_column)
    }

    /// Whether a row can be found by what the key holds; in words why not.
    pub(crate) fn can_be_followed(&self) -> Result<(), String> {
        logged(self.to)?;
        let (from, to) = (&self.from.columns[self.column], &self.to.columns[self.to_column]);
        let (key, target) =
            (format!("{}.{}", self.from.full_name(), from.name), format!("{}.{}", self.to.full_name(), to.name));
        if self.to.primary_key != [to.name.clone()] {
            return Err(format!(
                "the foreign key `{key}` leads to `{target}`, which is not the primary key of `{}`; only a primary key of one column can \
                 be followed",
                self.to.full_name()
            ));
        }
        let (of_key, of_target) = ((&from.ty, from.modifier), (&to.ty, to.modifier));
        if !equal_as_text(of_key, of_target) {
            return Err(format!(
                "`{key}` is {} and `{target}` is {}: equal values of these may be written in two ways, such as 1 and 1.0, and then the row is \
                 not found; give both one type, such as bigint or text",
                declared(of_key),
                declared(of_target)
            ));
        }
        Ok(())
    }
}

impl<'a> Names<'a> {
    /// What the config says of a table.
    pub(crate) fn options(&self, table: &CatalogTable) -> Option<&'a TableConfig> {
        let is_it = |name: &str| full_name(name) == (&table.schema, &table.name);
        self.tables.iter().find(|(name, _)| is_it(name)).map(|(_, options)| options)
    }

    /// What paths and subjects call a table.
    pub(crate) fn called(&self, table: &'a CatalogTable) -> &'a str {
        self.options(table).and_then(|options| options.name.as_deref()).unwrap_or(&table.name)
    }

    /// The table of a name, whose rows are in the log; in words why there is none.
    pub(crate) fn table(&self, name: &str) -> Result<&'a CatalogTable, String> {
        let Some(table) = self.catalog.table(name) else {
            let (schema, bare) = full_name(name);
            let known: Vec<_> =
                self.catalog.tables.iter().map(|table| self.written(table, name.contains('.'))).collect();
            let elsewhere = self.catalog.tables.iter().find(|table| table.name == bare && table.schema != schema);
            return Err(match elsewhere {
                Some(table) => format!("there is no table `{schema}.{bare}`; did you mean `{}.{bare}`?", table.schema),
                None => format!("there is no table `{schema}.{bare}`; {}", close(name, &known, "there are")),
            });
        };
        logged(table).map(|()| table)
    }

    /// A table's name as a config would have it.
    fn written(&self, table: &CatalogTable, full: bool) -> String {
        if full || table.schema != "public" { table.full_name() } else { table.name.clone() }
    }

    /// Resolves a path from a row of `start`; in words why it cannot be.
    pub(crate) fn find(&self, start: &'a CatalogTable, path: &str) -> Result<Place<'a>, String> {
        let mut readings = Vec::new();
        let plain = self.read(start, path, &mut readings);
        let mut wrong = plain.err();
        if let Some(rest) = path.strip_prefix("old.") {
            let before = readings.len();
            let old = self.read(start, rest, &mut readings);
            readings[before..].iter_mut().for_each(|place| place.old = true);
            wrong = old.err();
        }
        match readings.len() {
            1 => Ok(readings.remove(0).shortened()),
            0 => Err(wrong.unwrap_or_else(|| format!("`{path}` is no path"))),
            _ => {
                let meant: Vec<_> = readings.iter().map(|place| format!("`{}`", place.told())).collect();
                Err(format!(
                    "`{path}` could mean {}; hop by the foreign key's column less `_id`, or give a table another `name` in \
                     `tables`",
                    meant.join(" or ")
                ))
            }
        }
    }

    /// Collects each way to read a path; in words why there is none.
    fn read(&self, at: &'a CatalogTable, path: &str, readings: &mut Vec<Place<'a>>) -> Result<(), String> {
        let before = readings.len();
        if let Some(column) = at.column(path) {
            readings.push(Place { old: false, hops: Vec::new(), table: at, column });
        }
        let full = at.full_name();
        let Some((first, rest)) = path.split_once('.') else {
            if readings.len() > before {
                return Ok(());
            }
            let (columns, hops) = (column_names(at), self.hop_names(at));
            return Err(if hops.iter().any(|hop| hop == path) {
                format!("`{path}` leads from `{full}` to another table; write `{path}.` and a column of it")
            } else {
                format!("`{full}` has no column `{path}`; {}", close(path, &columns, "its columns are"))
            });
        };
        let mut wrong = None;
        for hop in self.hops(at, first)? {
            let inner_before = readings.len();
            if let Err(said) = self.read(hop.to, rest, readings) {
                wrong.get_or_insert(said);
            }
            readings[inner_before..].iter_mut().for_each(|place| place.hops.insert(0, hop));
        }
        match wrong {
            _ if readings.len() > before => Ok(()),
            Some(said) => Err(said),
            None => Err(self.no_hop(at, first)),
        }
    }

    /// The foreign keys of a table that a hop could mean.
    fn hops(&self, at: &'a CatalogTable, name: &str) -> Result<Vec<Hop<'a>>, String> {
        let mut found: Vec<Hop<'a>> = Vec::new();
        for foreign in &at.foreign_keys {
            let Some(to) =
                self.catalog.tables.iter().find(|table| (&table.schema, &table.name) == (&foreign.to.0, &foreign.to.1))
            else {
                continue;
            };
            let (called, by_column) =
                (self.called(to) == name, foreign.columns.iter().any(|column| less_id(column) == name));
            match (foreign.columns.as_slice(), foreign.to_columns.as_slice()) {
                ([column], [to_column]) if called || by_column => {
                    let (Some(column), Some(to_column)) = (at.column(column), to.column(to_column)) else { continue };
                    let enforced = foreign.valid && !at.triggers_disabled && !to.triggers_disabled;
                    let hop = Hop { from: at, column, to, to_column, enforced };
                    // Two foreign keys may say the same.
                    match found.iter_mut().find(|twin| hop.is_as(twin)) {
                        Some(twin) => twin.enforced |= enforced,
                        None => found.push(hop),
                    }
                }
                (columns, _) if columns.len() > 1 && (called || by_column) => {
                    return Err(format!(
                        "the hop `{name}` from `{}` to `{}` hangs on several columns, `{}`; only a key of one column can be followed",
                        at.full_name(),
                        to.full_name(),
                        columns.join("`, `"),
                    ));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn hop_names(&self, at: &'a CatalogTable) -> Vec<String> {
        let single = at.foreign_keys.iter().filter(|foreign| foreign.columns.len() == 1);
        single.map(|foreign| less_id(&foreign.columns[0]).to_owned()).collect()
    }

    fn no_hop(&self, at: &'a CatalogTable, name: &str) -> String {
        let full = at.full_name();
        if at.column(name).is_some() {
            return format!(
                "`{name}` is a column of `{full}` without a foreign key: nothing can be looked up behind it"
            );
        }
        match self.hop_names(at) {
            hops if hops.is_empty() => format!("`{full}` has no foreign keys, so that `{name}.` leads nowhere"),
            hops => format!("`{name}` leads nowhere from `{full}`; {}", close(name, &hops, "its foreign keys lead to")),
        }
    }
}

impl<'a> Place<'a> {
    /// What a foreign key points at is in the key itself: `performance.id` is `performance_id`.
    fn shortened(mut self) -> Self {
        while let Some(hop) = self.hops.last()
            && hop.to_column == self.column
        {
            (self.table, self.column) = (hop.from, hop.column);
            self.hops.pop();
        }
        self
    }

    fn told(&self) -> String {
        let hops: String = self.hops.iter().map(|hop| format!("{} -> ", hop.key())).collect();
        format!("{hops}{}.{}", self.table.name, self.of().name)
    }
}

/// Whether a table's rows are in the log; in words why not.
fn logged(table: &CatalogTable) -> Result<(), String> {
    let full = table.full_name();
    match table.kind {
        Kind::Table => Ok(()),
        Kind::Unlogged => Err(format!(
            "`{full}` is unlogged: its rows are not in the log; ALTER TABLE {} SET LOGGED writes them there",
            table.quoted()
        )),
        Kind::Other(what) => Err(format!("`{full}` is {what}: it has no rows in the log; name the table below it")),
    }
}

/// The name that a foreign key's column gives to a hop.
fn less_id(column: &str) -> &str {
    column.strip_suffix("_id").filter(|name| !name.is_empty()).unwrap_or(column)
}

pub(crate) fn column_names(table: &CatalogTable) -> Vec<String> {
    table.columns.iter().map(|column| column.name.clone()).collect()
}

/// The nearest right word, or those that there are.
pub(crate) fn close(word: &str, known: &[impl AsRef<str>], all: &str) -> String {
    /// More than that is no help.
    const SHOWN_MAX: usize = 12;
    let words: Vec<_> = known.iter().map(AsRef::as_ref).collect();
    match nearest(word, &words) {
        Some(near) => format!("did you mean `{near}`?"),
        None if words.is_empty() => "there is none".into(),
        None => {
            let shown: Vec<_> = words.iter().take(SHOWN_MAX).map(|word| format!("`{word}`")).collect();
            let more = if words.len() > SHOWN_MAX { ", ..." } else { "" };
            format!("{all} {}{more}", shown.join(", "))
        }
    }
}
