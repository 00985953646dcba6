//! Config + catalog -> rules with every name resolved, or all that is wrong with it. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use postgres_types::{Kind as TypeKind, Type};

use super::{
    catalog::{Catalog, CatalogTable},
    condition::Condition,
    paths::{Names, Place, close, column_names},
    rules::{
        Aggregate, Because, ChildChange, Collection, EventRule, Field, Hop, MappedColumn, MappedTable, Role, Rules,
        Side, Test, Transition, Trigger,
    },
    value::{Writer, declared, equal_as_text},
};
use crate::{
    change::Identity,
    config::{AggregateConfig, Config, DataConfig, EventConfig, Mask, Misfit, Ordered, TableConfig, TriggerConfig},
    sink::Topic,
};

/// What `when` may be, in one word.
const WORDS: [&str; 4] = ["created", "deleted", "any", "backfill"];
/// What may happen to a child.
const CHILD_CHANGES: [&str; 4] = ["added", "removed", "changed", "any"];

/// Rules, and what proofs are made of.
#[derive(Debug)]
pub(crate) struct Resolved<'a> {
    /// Without what the proofs add: which tables are held, and which of them each event needs.
    pub(crate) rules: Rules,
    /// Per `Rules::tables`.
    pub(crate) tables: Vec<&'a CatalogTable>,
    /// Per `Rules::events`.
    pub(crate) told: Vec<Told<'a>>,
}

/// What an event tells, and of what it depends.
#[derive(Debug, Default)]
pub(crate) struct Told<'a> {
    /// The payload's fields, but those that are dropped, in order.
    pub(crate) fields: Vec<ToldField<'a>>,
    /// Collections of which the payload tells all children, by index.
    pub(crate) lists: Vec<usize>,
}

/// One field of a payload.
#[derive(Debug)]
pub(crate) struct ToldField<'a> {
    /// `tickets[].seat`.
    pub(crate) name: String,
    /// As it is written.
    pub(crate) path: String,
    /// Where its value is.
    pub(crate) place: Place<'a>,
    /// Index in `Rules::tables` of where each hop leads.
    pub(crate) hops: Vec<usize>,
    /// Index in `Aggregate::children`, of a child's field.
    pub(crate) collection: Option<usize>,
    /// What becomes of it.
    pub(crate) mask: Option<Mask>,
    /// What leaves, for people.
    pub(crate) json_type: &'static str,
}

/// Resolves everything, or tells all that is wrong.
pub(crate) fn resolve<'a>(config: &'a Config, catalog: &'a Catalog) -> Result<Resolved<'a>, Vec<Misfit>> {
    let names = Names { catalog, tables: &config.tables };
    let mut resolver = Resolver {
        config,
        names,
        misfits: Vec::new(),
        tables: Vec::new(),
        aggregates: Vec::new(),
        aggregate_indexes: BTreeMap::new(),
    };
    resolver.options();
    for (name, aggregate) in config.aggregates.iter() {
        if let Some(found) = resolver.aggregate(name, aggregate) {
            resolver.aggregate_indexes.insert(name, resolver.aggregates.len());
            resolver.aggregates.push(found);
        }
    }
    let titles: Vec<_> = config.events.iter().map(|(name, event)| resolver.title(name, event)).collect();
    let (mut events, mut told) = (Vec::new(), Vec::new());
    for ((name, event), title) in config.events.iter().zip(&titles) {
        if let Some((rule, fields)) = resolver.event(name, event, title.as_ref(), &titles) {
            events.push(rule);
            told.push(fields);
        }
    }
    resolver.refuse_cycles(&events);
    resolver.refuse_shared_state_topics(&events);
    if !resolver.misfits.is_empty() {
        return Err(resolver.misfits);
    }
    let resolved = resolver.finish(events, told);
    let ill_typed = config.events.iter().zip(&resolved.rules.events).filter_map(|((name, _), rule)| {
        let root = &resolved.rules.tables[resolved.rules.aggregates[rule.aggregate].root];
        let said = rule.condition.as_ref()?.check(root).err()?;
        Some(Misfit::at(&["events", name, "if"], format!("`if`: {said}")))
    });
    let misfits: Vec<_> = ill_typed.collect();
    if misfits.is_empty() { Ok(resolved) } else { Err(misfits) }
}

struct Resolver<'a> {
    config: &'a Config,
    names: Names<'a>,
    misfits: Vec<Misfit>,
    tables: Vec<Draft<'a>>,
    /// Columns are indexes into the catalog's tables until `finish`, here and in events.
    aggregates: Vec<Aggregate>,
    /// Those that could be resolved.
    aggregate_indexes: BTreeMap<&'a str, usize>,
}

/// A table of the rules while they are made.
struct Draft<'a> {
    of: &'a CatalogTable,
    /// Index of the column in the catalog's table -> who needs it.
    needed: BTreeMap<usize, String>,
    roles: Vec<Role>,
}

/// What an event is called.
#[derive(Clone, Debug, PartialEq)]
struct Title {
    name: String,
    version: u32,
}

/// A path of keys.
fn keys(path: &[&str]) -> Vec<String> {
    path.iter().map(|key| (*key).to_owned()).collect()
}

fn within(path: &[String], key: &str) -> Vec<String> {
    path.iter().cloned().chain([key.to_owned()]).collect()
}

impl<'a> Resolver<'a> {
    fn refuse(&mut self, path: Vec<String>, said: impl Into<String>) {
        self.misfits.push(Misfit { path, said: said.into() });
    }

    /// `None`, and what is wrong is told.
    fn or_refuse<T>(&mut self, found: Result<T, String>, path: &[String]) -> Option<T> {
        found.map_err(|said| self.refuse(path.to_vec(), said)).ok()
    }

    /// `tables`.
    fn options(&mut self) {
        let mut seen: Vec<(&CatalogTable, &str)> = Vec::new();
        for (name, options) in self.config.tables.iter() {
            let at = keys(&["tables", name]);
            let Some(table) = self.or_refuse(self.names.table(name), &at) else { continue };
            if seen.iter().any(|(other, _)| std::ptr::eq(*other, table)) {
                self.refuse(at, format!("`{}` is in `tables` twice", table.full_name()));
                continue;
            }
            let called = options.name.as_deref().unwrap_or(&table.name);
            let named = if options.name.is_some() { within(&at, "name") } else { at.clone() };
            if let Some(twin) = seen.iter().find(|(_, other)| *other == called).map(|(other, _)| other.full_name()) {
                self.refuse(
                    named,
                    format!("`{called}` is what `{twin}` is called; each table needs a name of its own"),
                );
            } else if called.is_empty() || called.contains(['.', '/']) {
                self.refuse(named, format!("`{called}` is no name for paths; write a word"));
            }
            seen.push((table, called));
            self.column_options(table, options, &at);
        }
    }

    fn column_options(&mut self, table: &CatalogTable, options: &TableConfig, at: &[String]) {
        for (column, digits) in &options.decimal {
            let at = within(&within(at, "decimal"), column);
            let Some(index) = table.column(column) else {
                let near = close(column, &column_names(table), "its columns are");
                self.refuse(at, format!("`{}` has no column `{column}`; {near}", table.full_name()));
                continue;
            };
            let found = &table.columns[index];
            if !takes_decimal(&found.ty, found.modifier) {
                let said = format!(
                    "`decimal` is for `real`, `double precision` and bare `numeric`; `{column}` is {}",
                    sql_type(&found.ty)
                );
                self.refuse(at, said);
            } else if *digits > DECIMAL_MAX {
                self.refuse(at, format!("`decimal` is from 0 to {DECIMAL_MAX} digits after the point"));
            }
        }
        if let Some(zone) = &options.zone {
            let at = within(at, "zone");
            if jiff::tz::TimeZone::get(zone).is_err() {
                let known: Vec<_> = jiff::tz::db().available().map(|name| name.to_string()).collect();
                let near = crate::config::nearest(zone, &known.iter().map(String::as_str).collect::<Vec<_>>());
                let near = near.map_or("write one such as `America/Toronto` or `UTC`".into(), |near| {
                    format!("did you mean `{near}`?")
                });
                self.refuse(at, format!("`{zone}` is no time zone of the IANA database; {near}"));
            } else if !table.columns.iter().any(|column| takes_zone(&column.ty)) {
                let said =
                    format!("`{}` has no `timestamp` without time zone, so that `zone` has no use", table.full_name());
                self.refuse(at, said);
            }
        }
    }

    /// The place of a table among those that rules need.
    fn draft(&mut self, table: &'a CatalogTable) -> usize {
        let known = self.tables.iter().position(|draft| std::ptr::eq(draft.of, table));
        known.unwrap_or_else(|| {
            self.tables.push(Draft { of: table, needed: BTreeMap::new(), roles: Vec::new() });
            self.tables.len() - 1
        })
    }

    fn need(&mut self, table: usize, column: usize, by: &str) {
        self.tables[table].needed.entry(column).or_insert_with(|| by.to_owned());
    }

    /// A table whose rows can be told apart, before and after.
    fn keyed(&mut self, table: &'a CatalogTable, at: &[String], what: &str) -> bool {
        let (full, quoted) = (table.full_name(), table.quoted());
        if table.primary_key.is_empty() {
            let said =
                format!("`{full}` has no primary key, which {what} needs; ALTER TABLE {quoted} ADD PRIMARY KEY (...)");
            self.refuse(at.to_vec(), said);
            return false;
        }
        if !table.has_immediate_key() {
            let said = format!(
                "`{full}` has a primary key that is DEFERRABLE: within a transaction two rows may share it, and nobody can tell them apart; \
                 ALTER TABLE {quoted} DROP CONSTRAINT ..., ADD PRIMARY KEY ({})",
                table.primary_key.join(", ")
            );
            self.refuse(at.to_vec(), said);
            return false;
        }
        if table.identity == Identity::Nothing {
            let said = format!(
                "`{full}` has REPLICA IDENTITY NOTHING: the log does not say which row went; ALTER TABLE {quoted} REPLICA IDENTITY DEFAULT"
            );
            self.refuse(at.to_vec(), said);
            return false;
        }
        let unsaid =
            table.primary_key.iter().find(|key| table.column(key).is_some_and(|column| !table.says_old(column)));
        if let Some(column) = unsaid {
            let said = format!(
                "`{full}` has a REPLICA IDENTITY without `{column}`, which is of its primary key: the log does not say which row went; ALTER \
                 TABLE {quoted} REPLICA IDENTITY DEFAULT"
            );
            self.refuse(at.to_vec(), said);
            return false;
        }
        true
    }

    fn aggregate(&mut self, name: &'a str, config: &'a AggregateConfig) -> Option<Aggregate> {
        let (at, root_at) = (keys(&["aggregates", name]), keys(&["aggregates", name, "root"]));
        let table = self.or_refuse(self.names.table(&config.root), &root_at)?;
        if !self.keyed(table, &root_at, "the root of an aggregate") {
            return None;
        }
        let (root, index) = (self.draft(table), self.aggregates.len());
        let mut key = Vec::new();
        let needs = format!("aggregates.{name}.key");
        for (place, column) in config.key.iter().enumerate() {
            let at = within(&within(&at, "key"), &place.to_string());
            let column = self.root_column(table, column, &at)?;
            if key.contains(&column) {
                self.refuse(at, format!("`{}` is in `key` twice", table.columns[column].name));
            }
            key.push(column);
        }
        if key.is_empty() {
            key = table.primary_key.iter().filter_map(|column| table.column(column)).collect();
        }
        key.iter().for_each(|column| self.need(root, *column, &needs));
        let mut children = Vec::new();
        for (collection, target) in config.children.iter() {
            let at = keys(&["aggregates", name, "children", collection]);
            let (child, link) = self.child(table, collection, target, &at)?;
            let (child_table, collection_index) = (self.draft(child), children.len());
            self.need(child_table, link, &format!("aggregates.{name}.children.{collection}"));
            self.tables[child_table].roles.push(Role::Child { aggregate: index, collection: collection_index });
            let holds = child.foreign_keys.iter().any(|foreign| {
                let to = (table.schema.clone(), table.name.clone());
                foreign.valid && foreign.columns == [child.columns[link].name.clone()] && foreign.to == to
            });
            let enforced = holds && !child.triggers_disabled && !table.triggers_disabled;
            children.push(Collection { name: collection.into(), table: child_table, link, enforced });
        }
        self.tables[root].roles.push(Role::Root { aggregate: index });
        let topic = config.topic.clone().unwrap_or_else(|| format!("{}.{}", self.config.name, table.name));
        if let Some(said) = crate::config::bad_topic(&topic) {
            self.refuse(within(&at, if config.topic.is_some() { "topic" } else { "root" }), said);
        }
        // Aggregates that share a topic share its counters and its order in a batch too.
        let shared = self.aggregates.iter().find(|other| other.topic.name == topic).map(|other| other.topic.clone());
        let topic = shared.unwrap_or_else(|| Arc::new(Topic { name: topic, table: table.full_name() }));
        Some(Aggregate { name: name.into(), subject: self.names.called(table).into(), root, topic, key, children })
    }

    /// A column by its bare name.
    fn root_column(&mut self, table: &'a CatalogTable, name: &str, at: &[String]) -> Option<usize> {
        let near = || close(name, &column_names(table), "its columns are");
        let found =
            table.column(name).ok_or_else(|| format!("`{}` has no column `{name}`; {}", table.full_name(), near()));
        self.or_refuse(found, at)
    }

    /// The table and the link of `collection: table.column`.
    fn child(
        &mut self,
        root: &'a CatalogTable,
        collection: &str,
        target: &str,
        at: &[String],
    ) -> Option<(&'a CatalogTable, usize)> {
        let root_name = root.full_name();
        if root.column(collection).is_some() {
            let said = format!("`{collection}` is a column of `{root_name}` too; give the collection another name");
            self.refuse(at.to_vec(), said);
            return None;
        }
        let Some((table, column)) = target.rsplit_once('.') else {
            let said = format!("`{target}` must be `table.column`, the foreign key that leads to `{root_name}`");
            self.refuse(at.to_vec(), said);
            return None;
        };
        let table = self.or_refuse(self.names.table(table), at)?;
        let full = table.full_name();
        if !self.keyed(table, at, "a child") {
            return None;
        }
        let [key] = root.primary_key.as_slice() else {
            let said = format!(
                "the primary key of `{root_name}` has several columns, `{}`; children hang on a key of one column",
                root.primary_key.join("`, `")
            );
            self.refuse(at.to_vec(), said);
            return None;
        };
        let root_id = (root.schema.clone(), root.name.clone());
        let leading: Vec<_> = table.foreign_keys.iter().filter(|foreign| foreign.to == root_id).collect();
        let usable: Vec<_> = leading
            .iter()
            .filter(|foreign| foreign.columns.len() == 1 && foreign.to_columns == [key.clone()])
            .map(|foreign| format!("{}.{}", table.name, foreign.columns[0]))
            .collect();
        let Some(link) = table.column(column) else {
            let known = if usable.is_empty() {
                column_names(table)
            } else {
                usable
                    .iter()
                    .map(|name| name.rsplit_once('.').map_or(name.clone(), |(_, column)| column.to_owned()))
                    .collect()
            };
            self.refuse(at.to_vec(), format!("`{full}` has no column `{column}`; {}", close(column, &known, "write")));
            return None;
        };
        if let Some(foreign) = leading.iter().find(|foreign| foreign.columns == [column.to_owned()]) {
            if foreign.to_columns == [key.clone()] {
                return self.link_fits(root, key, table, link, at).then_some((table, link));
            }
            let said = format!(
                "`{full}.{column}` points to `{root_name}.{}`, not to its primary key `{key}`; children hang on that",
                foreign.to_columns.join("`, `")
            );
            self.refuse(at.to_vec(), said);
            return None;
        }
        let near = match usable.first() {
            Some(right) => format!("did you mean `{right}`?"),
            None => format!(
                "ALTER TABLE {} ADD FOREIGN KEY ({column}) REFERENCES {} makes it one",
                table.quoted(),
                root.quoted()
            ),
        };
        let said = format!("`{full}.{column}` is no foreign key to `{root_name}`, the aggregate's root; {near}");
        self.refuse(at.to_vec(), said);
        None
    }

    /// A child finds its root by the text of the key, and a foreign key asks only that both are equal.
    fn link_fits(&mut self, root: &CatalogTable, key: &str, child: &CatalogTable, link: usize, at: &[String]) -> bool {
        let Some(key) = root.column(key).map(|key| &root.columns[key]) else { return true };
        let link = &child.columns[link];
        let (of_key, of_link) = ((&key.ty, key.modifier), (&link.ty, link.modifier));
        if equal_as_text(of_link, of_key) {
            return true;
        }
        let mend = match equal_as_text(of_key, of_key) {
            true => format!("ALTER TABLE {} ALTER COLUMN {} TYPE {}", child.quoted(), link.name, declared(of_key)),
            false => {
                format!("ALTER TABLE {} ALTER COLUMN {} TYPE bigint, say, and the child's", root.quoted(), key.name)
            }
        };
        let said = format!(
            "`{}.{}` is {} and the key `{}.{}` is {}: equal values of these may be written in two ways, such as 1 and 1.0, and then a child \
             does not find its root; {mend}",
            child.full_name(),
            link.name,
            declared(of_link),
            root.full_name(),
            key.name,
            declared(of_key)
        );
        self.refuse(at.to_vec(), said);
        false
    }

    /// Name and version of an event.
    fn title(&mut self, name: &str, config: &EventConfig) -> Option<Title> {
        let at = keys(&["events", name]);
        let suffix = name.rsplit_once(".v").and_then(|(bare, digits)| Some((bare, digits.parse::<u32>().ok()?)));
        let (bare, named) = suffix.map_or((name, None), |(bare, version)| (bare, Some(version)));
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !bare.starts_with(|c: char| c.is_ascii_alphabetic()) || !bare.chars().all(legal) {
            let said = format!(
                "`{name}` is no name for an event; write letters and digits, such as `OrderPlaced` or `OrderPlaced.v2`"
            );
            self.refuse(at, said);
            return None;
        }
        let version = match (named, config.version) {
            (Some(named), Some(version)) if named != version => {
                let said = format!("the name says version {named}, and `version` says {version}; leave one out");
                self.refuse(within(&at, "version"), said);
                return None;
            }
            (named, version) => named.or(version).unwrap_or(1),
        };
        if version == 0 {
            self.refuse(if named.is_some() { at } else { within(&at, "version") }, "versions count from 1");
            return None;
        }
        Some(Title { name: bare.into(), version })
    }

    fn event(
        &mut self,
        name: &'a str,
        config: &'a EventConfig,
        title: Option<&Title>,
        titles: &[Option<Title>],
    ) -> Option<(EventRule, Told<'a>)> {
        let at = keys(&["events", name]);
        let misfits = self.misfits.len();
        let aggregate = self.aggregate_of(&config.of, &at)?;
        let title = title?;
        let place = self.config.events.iter().position(|(other, _)| other == name);
        let twin = titles
            .iter()
            .zip(self.config.events.iter())
            .take(place.unwrap_or(0))
            .find(|(other, _)| other.as_ref() == Some(title));
        if let Some((_, (twin, _))) = twin {
            let Title { name, version } = title;
            let said =
                format!("`{name}` of version {version} is there as `{twin}` already; write `{name}.v{}`", version + 1);
            self.refuse(at, said);
            return None;
        }
        let root = self.aggregates[aggregate].root;
        let (mut when, mut backfill) = (Vec::new(), false);
        if config.when.is_empty() {
            self.refuse(within(&at, "when"), "`when` names nothing; write `created`, say");
        }
        for (index, trigger) in config.when.iter().enumerate() {
            let at = within(&within(&at, "when"), &index.to_string());
            match trigger {
                TriggerConfig::Word(word) => match word.as_str() {
                    "created" => when.push(Trigger::Created),
                    "deleted" => when.push(Trigger::Deleted),
                    "any" => when.push(Trigger::Any),
                    "backfill" => backfill = true,
                    _ => self.refuse(at, self.no_trigger(aggregate, word)),
                },
                TriggerConfig::All(tests) => {
                    when.extend(self.tests(name, aggregate, tests, &at).map(Trigger::All));
                }
            }
        }
        let condition = config.condition.as_ref().and_then(|text| {
            let table = self.tables[root].of;
            let compiled = Condition::compile(text, &|column| table.column(column));
            let compiled = self.or_refuse(compiled.map_err(|said| format!("`if`: {said}")), &within(&at, "if"))?;
            let columns = compiled.old.iter().chain(&compiled.new).copied().collect::<BTreeSet<_>>();
            columns.into_iter().for_each(|column| self.need(root, column, &format!("{name}.if")));
            Some(compiled)
        });
        let mut fields = Fields {
            event: name,
            aggregate,
            list: None,
            mask: &config.mask,
            masked: BTreeSet::new(),
            told: Told::default(),
        };
        let data = self.fields(&config.data, &mut fields, "", &within(&at, "data"));
        for field in config.mask.keys() {
            if !fields.masked.contains(field) {
                let known: Vec<_> = field_names(&config.data, "");
                let said = match known.iter().any(|name| name.starts_with(&format!("{field}."))) {
                    true => format!("`{field}` is an object; mask its fields, such as `{field}.name`"),
                    false => format!("`data` has no field `{field}`; {}", close(field, &known, "its fields are")),
                };
                self.refuse(within(&within(&at, "mask"), field), said);
            }
        }
        let because = config
            .because
            .as_ref()
            .and_then(|text| self.because(name, text, aggregate, titles, &within(&at, "because")));
        if config.compact {
            self.refuse_loose_key(aggregate, &within(&at, "compact"));
        }
        if self.misfits.len() > misfits {
            return None;
        }
        let of = &self.aggregates[aggregate];
        let types = self.config.types.as_deref().unwrap_or(&self.config.name);
        let rule = EventRule {
            name: title.name.clone(),
            version: title.version,
            ce_type: format!("{types}.{}.v{}", title.name, title.version),
            aggregate,
            topic: of.topic.clone(),
            subject: of.subject.clone(),
            when,
            condition,
            data,
            because,
            compact: config.compact,
            backfill,
            needs: Vec::new(),
        };
        Some((rule, fields.told))
    }

    fn aggregate_of(&mut self, name: &str, at: &[String]) -> Option<usize> {
        let found = self.aggregate_indexes.get(name).copied();
        // One that is there and could not be resolved has been told of.
        if found.is_none() && self.config.aggregates.get(name).is_none() {
            let known: Vec<_> = self.config.aggregates.iter().map(|(name, _)| name.to_owned()).collect();
            let said = format!("there is no aggregate `{name}`; {}", close(name, &known, "there are"));
            self.refuse(within(at, "of"), said);
        }
        found
    }

    fn no_trigger(&self, aggregate: usize, word: &str) -> String {
        let (aggregate, root) = (&self.aggregates[aggregate], self.tables[self.aggregates[aggregate].root].of);
        if aggregate.children.iter().any(|child| child.name == word) {
            return format!("`{word}` is a collection; write `{{ {word}: added }}`, or removed, changed, any");
        }
        if root.column(word).is_some() {
            return format!("`{word}` is a column; write `{{ {word}: changed }}`");
        }
        format!("`when` knows no `{word}`; {}", close(word, &WORDS, "write one of"))
    }

    fn tests(&mut self, event: &str, aggregate: usize, tests: &Ordered<String>, at: &[String]) -> Option<Vec<Test>> {
        let root = self.aggregates[aggregate].root;
        let table = self.tables[root].of;
        if tests.is_empty() {
            self.refuse(at.to_vec(), "an empty map asks for nothing; write `{ column: changed }`");
        }
        let mut found = Vec::new();
        for (name, text) in tests.iter() {
            let at = within(at, name);
            let children = &self.aggregates[aggregate].children;
            if let Some(collection) = children.iter().position(|child| child.name == name) {
                let change = match text.trim() {
                    "added" => Ok(ChildChange::Added),
                    "removed" => Ok(ChildChange::Removed),
                    "changed" => Ok(ChildChange::Changed),
                    "any" => Ok(ChildChange::Any),
                    other => {
                        Err(format!("`{name}` cannot be `{other}`; {}", close(other, &CHILD_CHANGES, "write one of")))
                    }
                };
                found.push(Test::Children(collection, self.or_refuse(change, &at)?));
                continue;
            }
            let Some(column) = table.column(name) else {
                let known: Vec<_> =
                    column_names(table).into_iter().chain(children.iter().map(|child| child.name.clone())).collect();
                let near = close(name, &known, "there are");
                self.refuse(at, format!("`{}` has no column or collection `{name}`; {near}", table.full_name()));
                return None;
            };
            let column_type = &table.columns[column];
            let transition = transition(text.trim(), &column_type.ty, column_type.modifier)
                .map_err(|said| format!("`{name}`: {said}"));
            found.push(Test::Column(column, self.or_refuse(transition, &at)?));
            self.need(root, column, &format!("{event}.when"));
        }
        Some(found)
    }

    fn fields(
        &mut self,
        data: &'a Ordered<DataConfig>,
        within_event: &mut Fields<'a>,
        prefix: &str,
        at: &[String],
    ) -> Vec<(String, Field)> {
        let mut fields = Vec::new();
        for (name, config) in data.iter() {
            let (full, at) = (format!("{prefix}{name}"), within(at, name));
            let field = match config {
                DataConfig::Path(path) => self.field(path, within_event, &full, &at),
                DataConfig::Object(inner) => {
                    Some(Field::Object(self.fields(inner, within_event, &format!("{full}."), &at)))
                }
                DataConfig::Each { each, data } => self.each(each, data, within_event, &full, &at),
            };
            fields.extend(field.map(|field| (name.to_owned(), field)));
        }
        fields
    }

    fn each(
        &mut self,
        each: &str,
        data: &'a Ordered<DataConfig>,
        event: &mut Fields<'a>,
        name: &str,
        at: &[String],
    ) -> Option<Field> {
        if event.list.is_some() {
            self.refuse(
                within(at, "each"),
                "a list within a list cannot be told: a collection hangs on the root alone",
            );
            return None;
        }
        let children = &self.aggregates[event.aggregate].children;
        let Some(collection) = children.iter().position(|child| child.name == each) else {
            let known: Vec<_> = children.iter().map(|child| child.name.clone()).collect();
            let aggregate = self.aggregates[event.aggregate].name.clone();
            let near = if known.is_empty() {
                format!("add it to `aggregates.{aggregate}.children`, such as `{each}: table.column`")
            } else {
                close(each, &known, "its children are")
            };
            self.refuse(within(at, "each"), format!("`{aggregate}` has no collection `{each}`; {near}"));
            return None;
        };
        event.list = Some((collection, name.to_owned()));
        event.told.lists.push(collection);
        let data = self.fields(data, event, &format!("{name}."), &within(at, "data"));
        event.list = None;
        Some(Field::Each { collection, data })
    }

    /// One value; `None` too when it is dropped.
    fn field(&mut self, path: &str, event: &mut Fields<'a>, name: &str, at: &[String]) -> Option<Field> {
        let aggregate = &self.aggregates[event.aggregate];
        let table = event.collection().map_or(aggregate.root, |collection| aggregate.children[collection].table);
        let start = self.tables[table].of;
        if event.list.is_none() && aggregate.children.iter().any(|child| child.name == path) {
            self.refuse(at.to_vec(), format!("`{path}` is a collection; write `{{ each: {path}, data: {{ ... }} }}`"));
            return None;
        }
        let mask = event.mask.get(name).copied();
        if mask.is_some() {
            event.masked.insert(name.to_owned());
        }
        let place = self.or_refuse(self.names.find(start, path), at)?;
        if mask == Some(Mask::Drop) {
            return None;
        }
        let writer = self.or_refuse(self.writer(&place), at)?;
        let json_type = if mask == Some(Mask::Sha256) { "string" } else { writer.json_type() };
        let hops = self.hops(&place, table, &format!("{}.{name}", event.event), at)?;
        let (old, column) = (place.old, place.column);
        event.told.fields.push(ToldField {
            name: event.shown(name),
            path: path.into(),
            place,
            hops: hops.iter().map(|hop| hop.table).collect(),
            collection: event.collection(),
            mask,
            json_type,
        });
        Some(if hops.is_empty() {
            Field::Column { column, old, mask }
        } else {
            Field::LookUp { hops, column, old, mask }
        })
    }

    /// The way to a value from a row of a table, where all of it can be followed; its columns are needed then.
    fn hops(&mut self, place: &Place<'a>, start: usize, by: &str, at: &[String]) -> Option<Vec<Hop>> {
        let (mut hops, mut table) = (Vec::new(), start);
        for hop in &place.hops {
            self.or_refuse(hop.can_be_followed(), at)?;
            if !self.keyed(hop.to, at, "a look-up") {
                return None;
            }
            self.need(table, hop.column, by);
            table = self.draft(hop.to);
            hops.push(Hop { key: hop.column, table, enforced: hop.enforced });
        }
        self.need(table, place.column, by);
        Some(hops)
    }

    /// How the values of a place leave.
    fn writer(&self, place: &Place<'a>) -> Result<Writer, String> {
        let options = self.names.options(place.table);
        writer(place.table, place.column, options)
    }

    fn because(
        &mut self,
        name: &str,
        text: &str,
        aggregate: usize,
        titles: &[Option<Title>],
        at: &[String],
    ) -> Option<Because> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [cause, "via", column] = words.as_slice() else {
            self.refuse(at.to_vec(), format!("`{text}` must be `EventName via column`"));
            return None;
        };
        let is_it = |title: &&Option<Title>| {
            title
                .as_ref()
                .is_some_and(|title| title.name == *cause || format!("{}.v{}", title.name, title.version) == *cause)
        };
        let found: Vec<_> = (0..titles.len()).filter(|index| is_it(&&titles[*index])).collect();
        let event = match found.as_slice() {
            [one] => *one,
            [] => {
                let known: Vec<_> = self.config.events.iter().map(|(name, _)| name.to_owned()).collect();
                self.refuse(at.to_vec(), format!("there is no event `{cause}`; {}", close(cause, &known, "there are")));
                return None;
            }
            _ => {
                let said = format!("`{cause}` has several versions; write `{cause}.v1 via {column}`, say");
                self.refuse(at.to_vec(), said);
                return None;
            }
        };
        let root = self.aggregates[aggregate].root;
        let table = self.tables[root].of;
        let via = self.root_column(table, column, at)?;
        let of = &self.config.events.0[event].1.of;
        let cause_aggregate = &self.aggregates[*self.aggregate_indexes.get(of.as_str())?];
        let cause_table = self.tables[cause_aggregate.root].of;
        let [key] = cause_table.primary_key.as_slice() else {
            let said = format!(
                "the primary key of `{}` has several columns; a cause is found by a key of one",
                cause_table.full_name()
            );
            self.refuse(at.to_vec(), said);
            return None;
        };
        let key = &cause_table.columns[cause_table.column(key)?];
        let via_type = &table.columns[via].ty;
        if !equal_as_text((via_type, table.columns[via].modifier), (&key.ty, key.modifier)) {
            let said = format!(
                "`{column}` is {} and cannot hold the key of `{}`, which is {}; name the column that holds `{}.{}`",
                sql_type(via_type),
                cause_table.full_name(),
                sql_type(&key.ty),
                cause_table.name,
                key.name
            );
            self.refuse(at.to_vec(), said);
            return None;
        }
        self.need(root, via, &format!("{name}.because"));
        Some(Because { event, via })
    }

    /// A state topic keeps one record per key.
    fn refuse_loose_key(&mut self, aggregate: usize, at: &[String]) {
        let of = &self.aggregates[aggregate];
        let table = self.tables[of.root].of;
        let names: BTreeSet<_> = of.key.iter().map(|column| table.columns[*column].name.as_str()).collect();
        let unique =
            table.unique.iter().chain([&table.primary_key]).any(|columns| {
                !columns.is_empty() && columns.iter().map(String::as_str).collect::<BTreeSet<_>>() == names
            });
        let nullable = of.key.iter().find(|column| !table.columns[**column].not_null);
        let key = names.iter().copied().collect::<Vec<_>>().join(", ");
        let (full, quoted) = (table.full_name(), table.quoted());
        if !unique {
            let said = format!(
                "`compact` keeps one record per key, and `{key}` is not unique in `{full}`; use its primary key, or CREATE UNIQUE INDEX ON \
                 {quoted} ({key})"
            );
            self.refuse(at.to_vec(), said);
        } else if let Some(column) = nullable {
            let column = &table.columns[*column].name;
            let said = format!(
                "`compact` keeps one record per key, and `{column}` of it may be null; ALTER TABLE {quoted} ALTER COLUMN {column} SET NOT NULL"
            );
            self.refuse(at.to_vec(), said);
        }
    }

    /// An event cannot come of itself, not even by way of others.
    fn refuse_cycles(&mut self, events: &[EventRule]) {
        if events.len() != self.config.events.0.len() {
            // The indexes are those of the config only when all are there.
            return;
        }
        for start in 0..events.len() {
            let (mut at, mut way) = (start, vec![start]);
            while let Some(because) = &events[at].because {
                at = because.event;
                if at == start {
                    let names: Vec<_> =
                        way.iter().chain([&start]).map(|event| self.config.events.0[*event].0.as_str()).collect();
                    let said =
                        format!("events cause each other: {}; take one `because` away", names.join(" because of "));
                    self.refuse(keys(&["events", &self.config.events.0[start].0, "because"]), said);
                    // Once is enough for all of a cycle.
                    return;
                }
                if way.contains(&at) {
                    break;
                }
                way.push(at);
            }
        }
    }

    /// A topic that keeps the latest record per key can hold one event alone.
    fn refuse_shared_state_topics(&mut self, events: &[EventRule]) {
        for (event, (name, _)) in events.iter().zip(self.config.events.iter()).filter(|(event, _)| event.compact) {
            let other =
                events.iter().find(|other| !std::ptr::eq(*other, event) && other.topic.name == event.topic.name);
            if let Some(other) = other {
                let said = format!(
                    "`{}` keeps the latest record per key, and `{}.v{}` goes there too: each would replace the other; give one an \
                     aggregate with another topic",
                    event.topic.name, other.name, other.version
                );
                self.refuse(keys(&["events", name, "compact"]), said);
                return;
            }
        }
    }

    /// From indexes into the catalog's tables to those into the rules' own.
    fn finish(self, mut events: Vec<EventRule>, told: Vec<Told<'a>>) -> Resolved<'a> {
        let (mut tables, mut of, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for draft in self.tables {
            let (table, place) = mapped(&draft, self.names.options(draft.of));
            tables.push(table);
            of.push(draft.of);
            places.push(place);
        }
        let mut aggregates = self.aggregates;
        for aggregate in &mut aggregates {
            aggregate.key.iter_mut().for_each(|column| *column = places[aggregate.root][column]);
            for child in &mut aggregate.children {
                child.link = places[child.table][&child.link];
            }
        }
        for event in &mut events {
            let aggregate = &aggregates[event.aggregate];
            let root = &places[aggregate.root];
            for trigger in &mut event.when {
                let Trigger::All(tests) = trigger else { continue };
                for test in tests {
                    if let Test::Column(column, _) = test {
                        *column = root[column];
                    }
                }
            }
            if let Some(because) = &mut event.because {
                because.via = root[&because.via];
            }
            if let Some(condition) = &mut event.condition {
                condition.old.iter_mut().chain(&mut condition.new).for_each(|column| *column = root[column]);
            }
            replace(&mut event.data, root, &places, aggregate);
        }
        let rules =
            Rules { tables, aggregates, events, unmapped: self.config.unmapped, truncate: self.config.truncate };
        Resolved { rules, tables: of, told }
    }
}

/// What is carried along while the fields of one event are resolved.
struct Fields<'a> {
    event: &'a str,
    aggregate: usize,
    /// The collection, and the name of the list, when the fields are those of a list's rows.
    list: Option<(usize, String)>,
    mask: &'a BTreeMap<String, Mask>,
    masked: BTreeSet<String>,
    told: Told<'a>,
}

impl Fields<'_> {
    fn collection(&self) -> Option<usize> {
        self.list.as_ref().map(|(collection, _)| *collection)
    }

    /// `tickets.seat` -> `tickets[].seat`.
    fn shown(&self, name: &str) -> String {
        let rest = self.list.as_ref().and_then(|(_, list)| Some((list, name.strip_prefix(list.as_str())?)));
        rest.map_or(name.to_owned(), |(list, rest)| format!("{list}[]{rest}"))
    }
}

/// The names of a payload's values, `field.field`.
fn field_names(data: &Ordered<DataConfig>, prefix: &str) -> Vec<String> {
    let names = data.iter().flat_map(|(name, field)| match field {
        DataConfig::Path(_) => vec![format!("{prefix}{name}")],
        DataConfig::Object(data) | DataConfig::Each { data, .. } => field_names(data, &format!("{prefix}{name}.")),
    });
    names.collect()
}

/// A table of the rules, and the place there of each column of the catalog's that is needed.
fn mapped(draft: &Draft<'_>, options: Option<&TableConfig>) -> (MappedTable, BTreeMap<usize, usize>) {
    let table = draft.of;
    let key: Vec<_> = table.primary_key.iter().filter_map(|column| table.column(column)).collect();
    let mut others: Vec<_> = draft.needed.keys().copied().filter(|column| !key.contains(column)).collect();
    others.sort_by_key(|column| &table.columns[*column].name);
    let places: Vec<_> = key.iter().copied().chain(others).collect();
    let column = |place: &usize| {
        let column = &table.columns[*place];
        MappedColumn {
            name: column.name.clone(),
            ty: column.ty.clone(),
            modifier: column.modifier,
            decimal: options.and_then(|options| options.decimal.get(&column.name).copied()),
            zone: options.and_then(|options| options.zone.clone()).filter(|_| takes_zone(&column.ty)),
            // Those that are in no payload leave in keys, as text, or not at all.
            writer: writer(table, *place, options).unwrap_or(Writer::Text),
            needed_by: draft.needed.get(place).cloned().unwrap_or_else(|| "the primary key".into()),
        }
    };
    let mapped = MappedTable {
        oid: table.oid,
        schema: table.schema.clone(),
        name: table.name.clone(),
        columns: places.iter().map(column).collect(),
        key_len: key.len(),
        roles: draft.roles.clone(),
        held: false,
    };
    (mapped, places.into_iter().enumerate().map(|(at, column)| (column, at)).collect())
}

fn replace(
    data: &mut [(String, Field)],
    here: &BTreeMap<usize, usize>,
    places: &[BTreeMap<usize, usize>],
    aggregate: &Aggregate,
) {
    for (_, field) in data {
        match field {
            Field::Column { column, .. } => *column = here[column],
            Field::LookUp { hops, column, .. } => {
                let mut from = here;
                for hop in hops {
                    hop.key = from[&hop.key];
                    from = &places[hop.table];
                }
                *column = from[column];
            }
            Field::Object(data) => replace(data, here, places, aggregate),
            Field::Each { collection, data } => {
                replace(data, &places[aggregate.children[*collection].table], places, aggregate);
            }
        }
    }
}

fn writer(table: &CatalogTable, column: usize, options: Option<&TableConfig>) -> Result<Writer, String> {
    let column = &table.columns[column];
    // What has no use, and a zone that is not there, are refused where they stand.
    let decimal = options.and_then(|options| options.decimal.get(&column.name).copied());
    let decimal = decimal.filter(|_| takes_decimal(&column.ty, column.modifier));
    let zone = options.and_then(|options| options.zone.as_deref()).filter(|_| takes_zone(&column.ty));
    let zone = zone.map(|zone| if jiff::tz::TimeZone::get(zone).is_ok() { zone } else { "UTC" });
    Writer::of(&column.ty, column.modifier, decimal, zone)
        .map_err(|said| format!("`{}.{}`: {said}", table.full_name(), column.name))
}

/// More digits than any number has that `real` and `double precision` can tell apart.
const DECIMAL_MAX: u8 = 30;

/// The type itself, or that of an array's elements.
fn element(ty: &Type) -> &Type {
    match ty.kind() {
        TypeKind::Array(element) => element,
        _ => ty,
    }
}

fn takes_decimal(ty: &Type, modifier: i32) -> bool {
    matches!(*element(ty), Type::FLOAT4 | Type::FLOAT8) || (*element(ty) == Type::NUMERIC && modifier < 0)
}

fn takes_zone(ty: &Type) -> bool {
    *element(ty) == Type::TIMESTAMP
}

/// What a type is called in SQL.
pub(crate) fn sql_type(ty: &Type) -> String {
    match *ty {
        Type::INT2 => "smallint",
        Type::INT4 => "integer",
        Type::INT8 => "bigint",
        Type::FLOAT4 => "real",
        Type::FLOAT8 => "double precision",
        Type::BOOL => "boolean",
        Type::VARCHAR => "varchar",
        Type::BPCHAR => "char",
        Type::TIMESTAMP => "timestamp without time zone",
        Type::TIMESTAMPTZ => "timestamp with time zone",
        _ => return format!("`{}`", ty.name()),
    }
    .into()
}

/// `changed`, `a -> b`.
fn transition(text: &str, ty: &Type, modifier: i32) -> Result<Transition, String> {
    const WAYS: &str = "write `changed`, `a -> b`, `* -> b`, `a -> *`, `null -> *` or `* -> null`";
    if text == "changed" {
        return Ok(Transition { from: Side::Anything, to: Side::Anything });
    }
    let parts: Vec<_> = text.split(" -> ").map(str::trim).collect();
    let [from, to] = parts.as_slice() else {
        return Err(match text.split("->").map(str::trim).collect::<Vec<_>>().as_slice() {
            [from, to] if !from.is_empty() && !to.is_empty() => {
                format!("`{text}` is no transition; write `{from} -> {to}`, with a blank on both sides of the arrow")
            }
            _ => format!("`{text}` is no transition; {WAYS}"),
        });
    };
    if from.is_empty() || to.is_empty() {
        return Err(format!("`{text}` is no transition; {WAYS}"));
    }
    if from == to {
        return Err(match *from {
            "*" => format!("`{text}` is any change; write `changed`"),
            _ => format!("`{text}` is no change: both sides are the same"),
        });
    }
    Ok(Transition { from: side(from, ty, modifier)?, to: side(to, ty, modifier)? })
}

/// One side of a transition, in the text form that Postgres gives to the value.
fn side(text: &str, ty: &Type, modifier: i32) -> Result<Side, String> {
    let exactly = |text: &str| Ok(Side::Text(text.to_owned()));
    match text {
        "*" => return Ok(Side::Anything),
        "null" => return Ok(Side::Null),
        _ => {}
    }
    if let TypeKind::Enum(labels) = ty.kind() {
        return match labels.iter().any(|label| label == text) {
            true => exactly(text),
            false => Err(format!(
                "the type `{}` has no label `{text}`; {}",
                ty.name(),
                close(text, labels, "its labels are")
            )),
        };
    }
    let unfit = |example: &str| Err(format!("`{text}` is no value of {}; write one such as `{example}`", sql_type(ty)));
    match *ty {
        Type::TEXT | Type::VARCHAR | Type::NAME => exactly(text),
        // Filled with blanks up to its length.
        Type::BPCHAR => {
            let len = usize::try_from(modifier - 4).unwrap_or(0);
            if modifier >= 4 && text.chars().count() > len {
                return Err(format!("`{text}` is longer than char({len}) can be"));
            }
            Ok(Side::Text(format!("{text:<len$}")))
        }
        Type::BOOL => match text {
            "true" | "t" => exactly("t"),
            "false" | "f" => exactly("f"),
            _ => unfit("true"),
        },
        Type::INT2 | Type::INT4 | Type::INT8 => match text.parse::<i64>() {
            Ok(number) => Ok(Side::Text(number.to_string())),
            Err(_) => unfit("1"),
        },
        Type::UUID => match text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            true => Ok(Side::Text(text.to_lowercase())),
            false => unfit("11111111-1111-4111-8111-111111111111"),
        },
        Type::DATE => match text.parse::<jiff::civil::Date>() {
            Ok(date) => Ok(Side::Text(date.to_string())),
            Err(_) => unfit("2024-12-31"),
        },
        Type::NUMERIC if modifier >= 4 => {
            fixed(text, ((modifier - 4) & 0x7ff) as usize).map_or_else(|| unfit("12.50"), |text| Ok(Side::Text(text)))
        }
        _ => Err(format!(
            "a value of {} has no one text to compare with; write `changed`, and compare in `if`",
            sql_type(ty)
        )),
    }
}

/// A decimal number with so many digits after the point, as `numeric(p,s)` is written.
fn fixed(text: &str, scale: usize) -> Option<String> {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let are_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let fraction = fraction.trim_end_matches('0');
    if whole.is_empty() || !are_digits(whole) || !are_digits(fraction) || fraction.len() > scale {
        return None;
    }
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    let point = if scale == 0 { "" } else { "." };
    let sign = if whole == "0" && fraction.is_empty() { "" } else { sign };
    Some(format!("{sign}{whole}{point}{fraction:0<scale$}"))
}

#[cfg(test)]
mod tests;
