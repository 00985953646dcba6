//! Config and catalog -> the tables and messages that are asked for, and by whom. Pure.

use std::collections::{BTreeMap, BTreeSet};

use globset::{Glob, GlobMatcher};

use super::{assemble::Kept, catalog::CatalogTable};
use crate::{
    change::{Ancestor, Asked},
    config::{Config, full_name},
    mapping::{
        catalog::Catalog,
        rules::{LookedUp, looked_up},
    },
};

/// What a config asks for: tables of `changes` by patterns, names or globs, less what is taken out again; tables of aggregates
/// and the outbox by their names; messages by their prefixes.
#[derive(Clone, Debug)]
pub struct Patterns {
    tables: Vec<Pattern>,
    except: Vec<Pattern>,
    /// `schema.table`
    mapped: Vec<String>,
    /// Those of `mapped` that only look-ups lead to, and which of their columns are read.
    looked_up: BTreeMap<String, BTreeSet<String>>,
    /// `schema.table`
    outbox: Option<String>,
    messages: Vec<Pattern>,
    context: Option<String>,
    /// Oids of tables that are published under whatever name.
    held: Vec<u32>,
}

/// A pattern that cannot be used, or finds nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a glob.
    #[error("read the pattern `{pattern}` of {key}: {why}")]
    Glob {
        /// `changes.tables`, `changes.except` or `messages`.
        key: &'static str,
        /// As written.
        pattern: String,
        /// What globset says.
        why: String,
    },
    /// No table has such a name.
    #[error("find a table for `{pattern}` of {key}{}", nearest.as_ref().map(|name| format!("; the nearest is {name}")).unwrap_or_else(|| "; the database has none that can be published".into()))]
    NoTable {
        /// `changes.tables` or `outbox.table`.
        key: &'static str,
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
        "publish {table}: it is {kind}, and the log has no rows of it; take it out of {key}, or name the tables that it reads from"
    )]
    NotATable {
        /// `changes.tables` or `outbox.table`.
        key: &'static str,
        /// `schema.table`.
        table: String,
        /// `a view`, `a foreign table` and so on.
        kind: &'static str,
    },
    /// A table by its name that the log knows nothing of.
    #[error("publish {table}: it is unlogged; ALTER TABLE {table} SET LOGGED, or take it out of {key}")]
    Unlogged {
        /// `changes.tables` or `outbox.table`.
        key: &'static str,
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
    /// Compiles what a config asks for. The tables that look-ups lead to only the catalog knows.
    pub fn compile(config: &Config, looked_up: &[LookedUp]) -> Result<Patterns, PatternError> {
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
        let whole = |(schema, name): (&str, &str)| format!("{schema}.{name}");
        let (tables, except) = config.changes.as_ref().map_or((&[][..], &[][..]), |c| (&c.tables, &c.except));
        // A root by its table, a child by the column that leads to the root.
        let roots = config.aggregates.iter().map(|(_, aggregate)| whole(full_name(&aggregate.root)));
        let links = config.aggregates.iter().flat_map(|(_, aggregate)| aggregate.children.iter());
        let children = links.filter_map(|(_, link)| Some(whole(full_name(link.rsplit_once('.')?.0))));
        let looked_up: BTreeMap<_, _> =
            looked_up.iter().map(|table| (whole((&table.schema, &table.name)), table.columns.clone())).collect();
        let outbox = config.outbox.as_ref();
        let prefixes: Vec<String> = config.messages.iter().map(|messages| messages.prefix.clone()).collect();
        let mut messages = compile("messages", &prefixes)?;
        let own = outbox.and_then(|outbox| outbox.prefix.as_ref()).map(|prefix| globset::escape(prefix));
        messages.extend(compile("outbox.prefix", own.as_slice())?);
        Ok(Patterns {
            tables: compile("changes.tables", tables)?,
            except: compile("changes.except", except)?,
            mapped: roots.chain(children).chain(looked_up.keys().cloned()).collect(),
            looked_up,
            outbox: outbox.and_then(|outbox| outbox.table().map(whole)),
            messages,
            context: config.context.as_ref().map(|context| context.prefix.clone()),
            held: Vec::new(),
        })
    }

    /// These tables, by their oids, are published under whatever name: what is held of them would be wrong without what becomes of them.
    pub(crate) fn holding(self, held: &[u32]) -> Patterns {
        Patterns { held: held.to_vec(), ..self }
    }

    /// Who asks for a table: by its own name or an ancestor's. What `changes.except` names, `changes` does not ask for.
    pub fn asked(&self, schema: &str, table: &str, ancestors: &[Ancestor]) -> Asked {
        let ancestors = ancestors.iter().map(|Ancestor { schema, name, .. }| format!("{schema}.{name}"));
        let names: Vec<_> = std::iter::once(format!("{schema}.{table}")).chain(ancestors).collect();
        let any = |patterns: &[Pattern]| names.iter().any(|name| patterns.iter().any(|pattern| pattern.fits(name)));
        Asked {
            changes: any(&self.tables) && !any(&self.except),
            mapping: names.iter().any(|name| self.mapped.contains(name)),
            outbox: self.outbox.as_ref().is_some_and(|outbox| names.contains(outbox)),
            orphan: false,
        }
    }

    /// Who asks for a table that is gone. It may have been a partition of one that is named: if the publication lists its
    /// tables, nothing else but partitions of these comes without a name of its own.
    pub fn asked_gone(&self, schema: &str, table: &str, publication_lists: bool) -> Asked {
        let name = format!("{schema}.{table}");
        let excepted = self.except.iter().any(|pattern| pattern.fits(&name));
        let asked = self.asked(schema, table, &[]);
        if asked.is_any() || !publication_lists {
            return asked;
        }
        let asks = [!self.tables.is_empty(), !self.mapped.is_empty(), self.outbox.is_some()];
        match asks {
            [true, false, false] => Asked { changes: !excepted, ..Asked::NOBODY },
            [false, false, true] => Asked { outbox: true, ..Asked::NOBODY },
            _ => Asked { orphan: true, ..Asked::NOBODY },
        }
    }

    /// What becomes of messages with this prefix.
    pub fn kept(&self, prefix: &str) -> Kept {
        if self.context.as_deref() == Some(prefix) {
            return Kept::Context;
        }
        if self.messages.iter().any(|pattern| pattern.fits(prefix)) { Kept::InOrder } else { Kept::No }
    }

    /// Whether each table that is named can be published, and each pattern finds one.
    pub(crate) fn check(&self, tables: &[CatalogTable]) -> Result<(), PatternError> {
        let no_table = |key, text: &str| {
            let similarity = |table: &CatalogTable| strsim::jaro_winkler(text, &table.full_name());
            let nearest = tables.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
            PatternError::NoTable { key, pattern: text.to_owned(), nearest: nearest.map(CatalogTable::full_name) }
        };
        let unlogged = |key, text: &str| {
            let found = tables.iter().find(|table| table.unlogged && table.full_name() == text);
            found.map_or(Ok(()), |table| Err(PatternError::Unlogged { key, table: table.full_name() }))
        };
        for pattern in &self.tables {
            if !tables.iter().any(|table| pattern.fits(&table.full_name())) {
                return Err(no_table("changes.tables", &pattern.text));
            }
            unlogged("changes.tables", &pattern.text)?;
        }
        let Some(outbox) = &self.outbox else { return Ok(()) };
        if !tables.iter().any(|table| table.full_name() == *outbox) {
            return Err(no_table("outbox.table", outbox));
        }
        unlogged("outbox.table", outbox)
    }

    /// The tables to publish: those asked for, without partitions that come with their root.
    pub(crate) fn choose<'a>(&self, tables: &'a [CatalogTable]) -> Vec<&'a CatalogTable> {
        let wanted = |table: &&CatalogTable| {
            let root = table.root.as_slice();
            let covered = root.iter().any(|root| self.asked(&root.schema, &root.name, &[]).is_any());
            let asked = self.asked(&table.schema, &table.name, root).is_any() || self.held.contains(&table.oid);
            !table.unlogged && !covered && asked
        };
        tables.iter().filter(wanted).collect()
    }

    /// The tables whose rows are read, and who asks for them: partitions, and not their root, which has none.
    pub(crate) fn with_rows<'a>(&self, tables: &'a [CatalogTable]) -> Vec<(&'a CatalogTable, Asked)> {
        let there = tables.iter().filter(|table| !table.unlogged && !table.partitioned);
        let asked = there.map(|table| (table, self.asked(&table.schema, &table.name, table.root.as_slice())));
        asked.filter(|(_, asked)| asked.is_any()).collect()
    }

    /// Whether nothing that is mapped, or of the outbox, is left out.
    pub(crate) fn check_whole(&self, columns: &[String]) -> Result<(), PatternError> {
        for text in columns {
            let Some((name, column)) = text.rsplit_once('.') else { continue };
            let (schema, table) = full_name(name);
            match self.looked_up.get(&format!("{schema}.{table}")) {
                Some(columns) if columns.contains(column) => {
                    let why =
                        "a path of `events` leads to it; take that field out of `data`, or publish the column".into();
                    return Err(PatternError::Omit { column: text.clone(), why });
                }
                Some(_) => continue,
                None => {}
            }
            let asked = self.asked(schema, table, &[]);
            let of = match asked {
                Asked { outbox: true, .. } => "the outbox, whose rows leave whole",
                Asked { mapping: true, .. } => {
                    "a table of `aggregates`, whose rows are read whole; leave the column out of `data`"
                }
                _ => continue,
            };
            return Err(PatternError::Omit { column: text.clone(), why: format!("its table is {of}") });
        }
        Ok(())
    }
}

/// What a config asks for, with the tables that its look-ups lead to in a database.
pub fn patterns(config: &Config, catalog: Option<&Catalog>) -> Result<Patterns, PatternError> {
    Patterns::compile(config, &catalog.map(|catalog| looked_up(config, catalog)).unwrap_or_default())
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
        let root = root.map(pair).map(|(schema, name)| Ancestor { oid: 0, schema, name });
        CatalogTable { schema, name, root, identified: true, ..Default::default() }
    }

    fn config(tables: &[&str], except: &[&str], rest: &str) -> Config {
        let changes = match tables {
            [] => String::new(),
            _ => format!("changes: {{ tables: {tables:?}, except: {except:?} }}"),
        };
        let head = "name: shop\nsource: { postgres: postgres://u@h/d }\nsink: { kafka: { brokers: \"k:1\" } }";
        Config::parse(&format!("{head}\n{changes}\n{rest}\n"), "c", &|_| None).unwrap()
    }

    fn chosen(tables: &[&str], except: &[&str], catalog: &[CatalogTable]) -> Result<Vec<String>, PatternError> {
        let patterns = Patterns::compile(&config(tables, except, ""), &[])?;
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
    fn a_held_table_is_published_under_whatever_name() {
        let mut catalog = [table("public.renamed", None), table("public.other", None)];
        (catalog[0].oid, catalog[1].oid) = (1, 2);
        let patterns = Patterns::compile(&config(&["public.orders"], &[], ""), &[]).unwrap();
        assert!(patterns.choose(&catalog).is_empty());
        assert_eq!(patterns.holding(&[1, 3]).choose(&catalog), [&catalog[0]]);
    }

    #[test]
    fn a_table_that_is_gone_may_have_been_a_partition() {
        let patterns = Patterns::compile(&config(&["public.log"], &["*.scratch"], ""), &[]).unwrap();
        let wants = |table, lists| patterns.asked_gone("public", table, lists).is_any();
        assert!(wants("log", false) && wants("log_1", true));
        assert!(!wants("log_1", false), "one for all tables publishes anything");
        assert!(!wants("scratch", true));
        let outbox = Patterns::compile(&config(&[], &[], "outbox: { table: outbox }"), &[]).unwrap();
        assert_eq!(outbox.asked_gone("public", "outbox_1", true), Asked { outbox: true, ..Asked::NOBODY });
        let both = Patterns::compile(&config(&["public.log"], &[], "outbox: { table: outbox }"), &[]).unwrap();
        assert_eq!(both.asked_gone("public", "outbox_1", true), Asked { orphan: true, ..Asked::NOBODY });
        assert_eq!(both.asked_gone("public", "log", true), Asked::CHANGES);
    }

    #[test]
    fn says_who_asks_for_a_table_and_for_a_message() {
        let rest = "aggregates: { Order: { root: orders, topic: o, children: { lines: sales.line.order_id } } }\n\
                    outbox: { table: outbox, prefix: \"out*\" }\nmessages: [{ prefix: \"audit.*\", topic: a }]\n\
                    context: { prefix: ctx, traceparent: tp }";
        let columns = ["id", "email"].map(String::from).into();
        let looked_up = [LookedUp { schema: "sales".into(), name: "customer".into(), columns }];
        let patterns = Patterns::compile(&config(&["public.*"], &["*.outbox"], rest), &looked_up).unwrap();
        let asked = |schema, table| patterns.asked(schema, table, &[]);
        assert_eq!(asked("sales", "customer"), Asked { mapping: true, ..Asked::NOBODY });
        assert_eq!(asked("public", "orders"), Asked { changes: true, mapping: true, ..Asked::NOBODY });
        assert_eq!(asked("sales", "line"), Asked { mapping: true, ..Asked::NOBODY });
        assert_eq!(asked("public", "outbox"), Asked { outbox: true, ..Asked::NOBODY });
        assert_eq!(asked("public", "other"), Asked::CHANGES);
        assert_eq!(asked("sales", "other"), Asked::NOBODY);
        let root = Ancestor { oid: 0, schema: "public".into(), name: "outbox".into() };
        assert!(patterns.asked("parts", "outbox_1", &[root]).outbox);
        let kept = ["ctx", "audit.x", "audit", "out*", "outbox"].map(|prefix| patterns.kept(prefix));
        assert_eq!(kept, [Kept::Context, Kept::InOrder, Kept::No, Kept::InOrder, Kept::No]);
        for (column, words) in [
            ("public.orders.note", "a table of `aggregates`"),
            ("public.outbox.payload", "the outbox, whose rows leave whole"),
            ("sales.customer.email", "a path of `events` leads to it"),
        ] {
            let error = patterns.check_whole(&[column.into()]).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(column), "{error}");
        }
        assert_eq!(patterns.check_whole(&["public.other.note".into(), "sales.customer.photo".into()]), Ok(()));
    }

    #[test]
    fn names_the_pattern_that_finds_nothing_and_the_nearest_table() {
        let catalog = [table("public.orders", None), table("public.users", None)];
        assert_eq!(
            chosen(&["public.users", "public.oders"], &[], &catalog).unwrap_err().to_string(),
            "find a table for `public.oders` of changes.tables; the nearest is public.orders"
        );
        let mut cache = table("public.cache", None);
        cache.unlogged = true;
        assert!(matches!(chosen(&["public.cache"], &[], &[cache]), Err(PatternError::Unlogged { .. })));
    }
}
