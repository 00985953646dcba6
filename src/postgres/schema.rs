//! Names of the config -> the mapping's `Catalog`: what the database says of the tables that events are made of. IO.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use postgres_types::Oid;

use super::{
    Ends,
    catalog::{Control, TYPES, known_type, resolve},
};
use crate::{
    change::Identity,
    config::{Config, DataConfig, Ordered, full_name},
    mapping::catalog::{Catalog, CatalogColumn, CatalogTable, ForeignKey, Kind, may_be_toasted},
    source::SourceError,
};

/// Names for "did you mean"; a database with more tables has others to name them.
const NAMES_MAX: i64 = 10_000;

/// Reads the catalog over a connection of its own.
pub async fn schema(config: &Config) -> Result<Catalog, SourceError> {
    Ends::of(config)?.control().await?.schema(config).await
}

impl Control {
    /// The tables that the mapping names and those that its paths may lead to, whole; of all others only their names.
    pub(crate) async fn schema(&self, config: &Config) -> Result<Catalog, SourceError> {
        let rows = self.query(NAMES, &[&NAMES_MAX, &named(config)]).await?;
        let mut tables: BTreeMap<Oid, CatalogTable> = rows.iter().map(|row| (row.get("oid"), bare(row))).collect();
        let asked = named(config);
        let is_asked = |table: &CatalogTable| asked.contains(&table.full_name());
        let mut next: Vec<Oid> = tables.iter().filter(|(_, table)| is_asked(table)).map(|(oid, _)| *oid).collect();
        let mut seen = BTreeSet::new();
        for _ in 0..=hops_max(config) {
            next.retain(|oid| seen.insert(*oid));
            if next.is_empty() {
                break;
            }
            self.complete(&next, &mut tables).await?;
            let leads_to = |foreign: &ForeignKey| {
                tables
                    .iter()
                    .find(|(_, table)| (&table.schema, &table.name) == (&foreign.to.0, &foreign.to.1))
                    .map(|(oid, _)| *oid)
            };
            next = next.iter().flat_map(|oid| &tables[oid].foreign_keys).filter_map(leads_to).collect();
        }
        Ok(Catalog { tables: tables.into_values().collect() })
    }

    /// Reads these tables whole.
    async fn complete(&self, oids: &[Oid], tables: &mut BTreeMap<Oid, CatalogTable>) -> Result<(), SourceError> {
        let columns = self.query(COLUMNS, &[&oids]).await?;
        let types: BTreeSet<Oid> = columns.iter().map(|row| row.get("type")).collect();
        let types: Vec<Oid> = types.into_iter().collect();
        let known = self.query(TYPES, &[&types]).await?.iter().map(known_type).collect::<HashMap<_, _>>();
        for row in &columns {
            let fact = resolve(row.get("type"), &known);
            let modifier = fact.modifier.unwrap_or_else(|| row.get("modifier"));
            let toastable = row.get::<_, bool>("toastable") && may_be_toasted(&fact.ty, modifier);
            let column = CatalogColumn {
                name: row.get("name"),
                ty: fact.ty,
                modifier,
                not_null: row.get("not_null"),
                toastable,
                identity: false,
                width: row.get::<_, Option<i32>>("width").and_then(|width| width.try_into().ok()),
            };
            of(tables, row).columns.push(column);
        }
        for row in self.query(INDEXES, &[&oids]).await? {
            let table = of(tables, &row);
            let names: Vec<String> = row.get("columns");
            if row.get("replident") && table.identity == Identity::Index {
                say_old(table, &names);
            }
            if row.get("is_primary") {
                table.primary_key = names.clone();
                // A key that is DEFERRABLE identifies nothing in the log.
                if table.identity == Identity::Default && row.get("usable") {
                    say_old(table, &names);
                }
            }
            if row.get("usable") {
                table.unique.push(names);
            }
        }
        for row in self.query(FOREIGN_KEYS, &[&oids]).await? {
            let foreign = ForeignKey {
                columns: row.get("columns"),
                to: (row.get("to_schema"), row.get("to_name")),
                to_columns: row.get("to_columns"),
                valid: row.get("valid"),
            };
            of(tables, &row).foreign_keys.push(foreign);
        }
        for row in self.query(ROWS, &[&oids]).await? {
            of(tables, &row).rows = row.get::<_, Option<i64>>("rows").map(|rows| rows.max(0) as u64);
        }
        for row in self.query(DISABLED, &[&oids]).await? {
            of(tables, &row).triggers_disabled = true;
        }
        for oid in oids {
            let table = tables.get_mut(oid).expect("its name was read");
            if table.identity == Identity::Full {
                table.columns.iter_mut().for_each(|column| column.identity = true);
            }
        }
        Ok(())
    }
}

fn of<'a>(tables: &'a mut BTreeMap<Oid, CatalogTable>, row: &tokio_postgres::Row) -> &'a mut CatalogTable {
    tables.get_mut(&row.get::<_, Oid>("oid")).expect("its name was read")
}

fn say_old(table: &mut CatalogTable, names: &[String]) {
    table.columns.iter_mut().filter(|column| names.contains(&column.name)).for_each(|column| column.identity = true);
}

fn bare(row: &tokio_postgres::Row) -> CatalogTable {
    let unlogged = row.get::<_, &str>("persistence") == "u";
    CatalogTable {
        oid: row.get("oid"),
        schema: row.get("schema"),
        name: row.get("name"),
        kind: match row.get::<_, &str>("kind") {
            "r" | "p" if unlogged => Kind::Unlogged,
            "r" | "p" => Kind::Table,
            "v" => Kind::Other("a view"),
            "m" => Kind::Other("a materialized view"),
            _ => Kind::Other("a foreign table"),
        },
        identity: match row.get::<_, &str>("identity") {
            "f" => Identity::Full,
            "i" => Identity::Index,
            "n" => Identity::Nothing,
            _ => Identity::Default,
        },
        columns: Vec::new(),
        primary_key: Vec::new(),
        unique: Vec::new(),
        foreign_keys: Vec::new(),
        triggers_disabled: false,
        rows: None,
    }
}

/// `schema.table` of all tables that the mapping names.
fn named(config: &Config) -> Vec<String> {
    let mut names: BTreeSet<&str> = config.tables.iter().map(|(name, _)| name).collect();
    for (_, aggregate) in config.aggregates.iter() {
        names.insert(&aggregate.root);
        names.extend(aggregate.children.iter().filter_map(|(_, link)| Some(link.rsplit_once('.')?.0)));
    }
    let full = |name: &str| {
        let (schema, table) = full_name(name);
        format!("{schema}.{table}")
    };
    names.into_iter().map(full).collect()
}

/// How many tables away the farthest path leads.
fn hops_max(config: &Config) -> usize {
    fn of(data: &Ordered<DataConfig>) -> usize {
        let hops = data.iter().map(|(_, field)| match field {
            DataConfig::Path(path) => path.matches('.').count(),
            DataConfig::Object(data) | DataConfig::Each { data, .. } => of(data),
        });
        hops.max().unwrap_or(0)
    }
    config.events.iter().map(|(_, event)| of(&event.data)).max().unwrap_or(0)
}

/// Names of all tables, those that are asked for first. A partitioned table's rows have the identities of its partitions.
const NAMES: &str = "
WITH RECURSIVE below(root, oid) AS (
  SELECT c.oid, c.oid FROM pg_class c WHERE c.relkind = 'p'
  UNION ALL
  SELECT b.root, i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.oid
), leaves AS (
  SELECT b.root, CASE
      WHEN bool_and(leaf.relreplident = 'f') THEN 'f'
      WHEN bool_or(leaf.relreplident IN ('n', 'i')) THEN 'n'
      ELSE 'd'
    END AS identity
  FROM below b JOIN pg_class leaf ON leaf.oid = b.oid WHERE leaf.relkind = 'r' GROUP BY b.root
)
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.relpersistence::text AS persistence,
  coalesce(l.identity, c.relreplident::text) AS identity
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN leaves l ON l.root = c.oid
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
ORDER BY n.nspname || '.' || c.relname = ANY ($2) DESC, n.nspname, c.relname LIMIT $1";

/// Generated columns are not in the log.
const COLUMNS: &str = "
SELECT a.attrelid AS oid, a.attname AS name, a.atttypid AS type, a.atttypmod AS modifier, a.attnotnull AS not_null,
  a.attlen = -1 AND a.attstorage <> 'p' AS toastable,
  (SELECT max(s.avg_width) FROM pg_stats s
     WHERE s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname) AS width
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attrelid, a.attnum";

const INDEXES: &str = "
SELECT i.indrelid AS oid, i.indisprimary AS is_primary, i.indisreplident AS replident,
  i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AS usable,
  (SELECT array_agg(a.attname ORDER BY k.place) FROM unnest(i.indkey) WITH ORDINALITY k(attnum, place), pg_attribute a
     WHERE k.place <= i.indnkeyatts AND a.attrelid = i.indrelid AND a.attnum = k.attnum) AS columns
FROM pg_index i
WHERE i.indrelid = ANY ($1) AND i.indisunique AND i.indexprs IS NULL
ORDER BY i.indrelid, i.indexrelid";

/// `conenforced` is there from PostgreSQL 18 on.
const FOREIGN_KEYS: &str = "
SELECT k.conrelid AS oid, n.nspname AS to_schema, c.relname AS to_name,
  (SELECT array_agg(a.attname ORDER BY u.place) FROM unnest(k.conkey) WITH ORDINALITY u(attnum, place), pg_attribute a
     WHERE a.attrelid = k.conrelid AND a.attnum = u.attnum) AS columns,
  (SELECT array_agg(a.attname ORDER BY u.place) FROM unnest(k.confkey) WITH ORDINALITY u(attnum, place), pg_attribute a
     WHERE a.attrelid = k.confrelid AND a.attnum = u.attnum) AS to_columns,
  k.convalidated AND coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true) AS valid
FROM pg_constraint k JOIN pg_class c ON c.oid = k.confrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND k.conrelid = ANY ($1)
ORDER BY k.conrelid, k.conname";

/// About how many rows tables have. A partition that nobody has analyzed says -1, and so it is not known.
const ROWS: &str = "
WITH RECURSIVE leaf(root, oid) AS (
  SELECT c.oid, c.oid FROM pg_class c WHERE c.oid = ANY ($1)
  UNION ALL
  SELECT leaf.root, i.inhrelid FROM leaf JOIN pg_class p ON p.oid = leaf.oid AND p.relkind = 'p'
    JOIN pg_inherits i ON i.inhparent = leaf.oid
)
SELECT leaf.root AS oid, CASE WHEN bool_and(c.reltuples >= 0) THEN sum(c.reltuples)::bigint END AS rows
FROM leaf JOIN pg_class c ON c.oid = leaf.oid WHERE c.relkind = 'r' GROUP BY leaf.root";

/// Tables of which a trigger that enforces a foreign key does not fire in an ordinary session.
const DISABLED: &str = "
SELECT DISTINCT t.tgrelid AS oid FROM pg_trigger t JOIN pg_constraint k ON k.oid = t.tgconstraint
WHERE t.tgrelid = ANY ($1) AND k.contype = 'f' AND t.tgenabled IN ('D', 'R')";
