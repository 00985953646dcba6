//! `changes.tables` and the catalog -> the tables that are asked for. Pure.

use std::collections::BTreeMap;

use globset::{Glob, GlobMatcher};

use super::catalog::CatalogTable;
use crate::config::ChangesConfig;

/// The patterns of the config, compiled: `schema.table`, names or globs, and what is taken out again.
#[derive(Clone, Debug)]
pub struct Patterns {
    tables: Vec<Pattern>,
    except: Vec<Pattern>,
}

/// A pattern that cannot be used, or finds nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a glob.
    #[error("read the pattern `{pattern}` of changes.{key}: {why}")]
    Glob {
        /// `tables` or `except`.
        key: &'static str,
        /// As written.
        pattern: String,
        /// What globset says.
        why: String,
    },
    /// No table has such a name.
    #[error("find a table for `{pattern}` of changes.tables{}", nearest.as_ref().map(|name| format!("; the nearest is {name}")).unwrap_or_else(|| "; the database has none that can be published".into()))]
    NoTable {
        /// As written.
        pattern: String,
        /// The table with the most similar name.
        nearest: Option<String>,
    },
    /// A column that cannot be left out.
    #[error("leave out `{column}` of source.omit_columns: {why}")]
    Omit {
        /// As written.
        column: String,
        /// What is the matter, and how to mend it.
        why: String,
    },
    /// It is there and is no table whose rows are in the log.
    #[error(
        "publish {table}: it is {kind}, and the log has no rows of it; take it out of changes.tables, or name the tables that it reads from"
    )]
    NotATable {
        /// `schema.table`.
        table: String,
        /// `a view`, `a foreign table` and so on.
        kind: &'static str,
    },
    /// A table by its name that the log knows nothing of.
    #[error("publish {table}: it is unlogged; ALTER TABLE {table} SET LOGGED, or take it out of changes.tables")]
    Unlogged {
        /// `schema.table`.
        table: String,
    },
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    glob: GlobMatcher,
}

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        self.text == name || self.glob.is_match(name)
    }
}

impl Patterns {
    /// Compiles the patterns of a config.
    pub fn compile(changes: &ChangesConfig) -> Result<Patterns, PatternError> {
        let compile = |key, texts: &[String]| {
            let pattern = |text: &String| {
                let failed = |error: globset::Error| PatternError::Glob {
                    key,
                    pattern: text.clone(),
                    why: error.kind().to_string(),
                };
                Ok(Pattern { text: text.clone(), glob: Glob::new(text).map_err(failed)?.compile_matcher() })
            };
            texts.iter().map(pattern).collect::<Result<Vec<_>, _>>()
        };
        Ok(Patterns { tables: compile("tables", &changes.tables)?, except: compile("except", &changes.except)? })
    }

    /// Whether a table is asked for: it or an ancestor is named, and none of them is taken out again.
    pub fn want(&self, schema: &str, table: &str, ancestors: &[(String, String)]) -> bool {
        let ancestors = ancestors.iter().map(|(schema, table)| format!("{schema}.{table}"));
        let names: Vec<_> = std::iter::once(format!("{schema}.{table}")).chain(ancestors).collect();
        let any = |patterns: &[Pattern]| names.iter().any(|name| patterns.iter().any(|pattern| pattern.fits(name)));
        any(&self.tables) && !any(&self.except)
    }

    /// Whether a table that is gone is asked for. It may have been a partition of one that is named: if the publication
    /// lists its tables, nothing else but partitions of these comes without a name of its own.
    pub fn want_gone(&self, schema: &str, table: &str, publication_lists: bool) -> bool {
        let name = format!("{schema}.{table}");
        let excepted = self.except.iter().any(|pattern| pattern.fits(&name));
        self.want(schema, table, &[]) || (publication_lists && !excepted)
    }

    /// Whether each pattern finds something that can be published.
    pub(crate) fn check(&self, tables: &[CatalogTable]) -> Result<(), PatternError> {
        for pattern in &self.tables {
            if !tables.iter().any(|table| pattern.fits(&table.full_name())) {
                let similarity = |table: &CatalogTable| strsim::jaro_winkler(&pattern.text, &table.full_name());
                let nearest = tables.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
                let nearest = nearest.map(CatalogTable::full_name);
                return Err(PatternError::NoTable { pattern: pattern.text.clone(), nearest });
            }
            if let Some(table) = tables.iter().find(|table| table.unlogged && table.full_name() == pattern.text) {
                return Err(PatternError::Unlogged { table: table.full_name() });
            }
        }
        Ok(())
    }

    /// The tables to publish: those asked for, without partitions that come with their root.
    pub(crate) fn choose<'a>(&self, tables: &'a [CatalogTable]) -> Vec<&'a CatalogTable> {
        let wanted = |table: &&CatalogTable| {
            let root = table.root.as_slice();
            let covered = root.iter().any(|(schema, name)| self.want(schema, name, &[]));
            !table.unlogged && !covered && self.want(&table.schema, &table.name, root)
        };
        tables.iter().filter(wanted).collect()
    }

    /// The tables whose rows leave: partitions, and not their root, which has none.
    pub(crate) fn with_rows<'a>(&self, tables: &'a [CatalogTable]) -> Vec<&'a CatalogTable> {
        let wanted = |table: &&CatalogTable| {
            !table.unlogged && !table.partitioned && self.want(&table.schema, &table.name, table.root.as_slice())
        };
        tables.iter().filter(wanted).collect()
    }
}

/// The columns to leave out of each table, by its oid; those of tables that are not there are passed over.
pub(crate) fn omitted<'a>(columns: &'a [String], tables: &[CatalogTable]) -> BTreeMap<u32, Vec<&'a str>> {
    let mut omit: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for column in columns {
        let Some((name, column)) = column.rsplit_once('.') else { continue };
        if let Some(table) = tables.iter().find(|table| table.full_name() == name) {
            omit.entry(table.oid).or_default().push(column);
        }
    }
    omit
}

/// Whether each column of `source.omit_columns` can be left out, of tables as `omitted` and `Control::narrow` made them.
pub(crate) fn check_omitted(columns: &[String], tables: &[CatalogTable]) -> Result<(), PatternError> {
    for text in columns {
        let refuse = |why: &str| Err(PatternError::Omit { column: text.clone(), why: why.into() });
        let (name, column) = text.rsplit_once('.').unwrap_or_default();
        let Some(table) = tables.iter().find(|table| table.full_name() == name) else {
            return refuse("there is no such table");
        };
        if table.partitioned || table.root.is_some() {
            return refuse("its table is partitioned, and a column list does not reach partitions");
        }
        match &table.narrow {
            Some(narrow) if narrow.columns.is_empty() => return refuse("no column would be left"),
            Some(narrow) if narrow.omitted.iter().any(|omitted| omitted == column) => {}
            _ => return refuse("its table has no such column, or it is a generated one, which never leaves"),
        }
    }
    Ok(())
}

impl CatalogTable {
    /// `schema.table`, as patterns and people name it.
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, root: Option<&str>) -> CatalogTable {
        let pair = |name: &str| {
            let (schema, name) = name.split_once('.').unwrap();
            (schema.to_owned(), name.to_owned())
        };
        let (schema, name) = pair(name);
        CatalogTable { schema, name, root: root.map(pair), identified: true, ..Default::default() }
    }

    fn chosen(tables: &[&str], except: &[&str], catalog: &[CatalogTable]) -> Result<Vec<String>, PatternError> {
        let own = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        let changes = ChangesConfig {
            tables: own(tables),
            except: own(except),
            topic: String::new(),
            format: Default::default(),
            decimal: Default::default(),
        };
        let patterns = Patterns::compile(&changes)?;
        patterns.check(catalog)?;
        Ok(patterns.choose(catalog).into_iter().map(CatalogTable::full_name).collect())
    }

    #[test]
    fn takes_names_and_globs_and_leaves_out_again() {
        let catalog =
            ["public.audit_log", "public.orders", "public.odd[1]", "sales.orders"].map(|name| table(name, None));
        assert_eq!(chosen(&["public.*"], &["*.audit_*"], &catalog).unwrap(), ["public.orders", "public.odd[1]"]);
        assert_eq!(chosen(&["*.orders"], &[], &catalog).unwrap(), ["public.orders", "sales.orders"]);
        assert_eq!(chosen(&["public.odd[1]"], &[], &catalog).unwrap(), ["public.odd[1]"]);
    }

    #[test]
    fn a_partition_comes_with_its_root() {
        let catalog = [table("public.log", None), table("public.log_1", Some("public.log")), table("public.a", None)];
        assert_eq!(chosen(&["public.*"], &[], &catalog).unwrap(), ["public.log", "public.a"]);
        assert_eq!(chosen(&["public.log_1"], &[], &catalog).unwrap(), ["public.log_1"]);
        assert_eq!(chosen(&["public.*"], &["public.log"], &catalog).unwrap(), ["public.a"]);
    }

    #[test]
    fn a_table_that_is_gone_may_have_been_a_partition() {
        let own = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        let changes = ChangesConfig {
            tables: own(&["public.log"]),
            except: own(&["*.scratch"]),
            topic: String::new(),
            format: Default::default(),
            decimal: Default::default(),
        };
        let patterns = Patterns::compile(&changes).unwrap();
        let wants = |table, lists| patterns.want_gone("public", table, lists);
        assert!(wants("log", false) && wants("log_1", true));
        assert!(!wants("log_1", false), "one for all tables publishes anything");
        assert!(!wants("scratch", true));
    }

    #[test]
    fn names_the_pattern_that_finds_nothing_and_the_nearest_table() {
        let catalog = [table("public.orders", None), table("public.users", None)];
        assert_eq!(
            chosen(&["public.users", "public.oders"], &[], &catalog).unwrap_err().to_string(),
            "find a table for `public.oders` of changes.tables; the nearest is public.orders"
        );
        assert!(
            chosen(&["public.[a"], &[], &catalog).unwrap_err().to_string().starts_with("read the pattern `public.[a`")
        );
        let mut cache = table("public.cache", None);
        cache.unlogged = true;
        assert!(matches!(chosen(&["public.cache"], &[], &[cache]), Err(PatternError::Unlogged { .. })));
    }
}
