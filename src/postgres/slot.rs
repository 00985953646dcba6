//! Slot and publication: look at them, make them, wait for the slot, drop them. IO.

use std::{collections::BTreeSet, sync::Mutex, time::Duration};

use postgres_protocol::escape::{escape_identifier, escape_literal};
use postgres_types::PgLsn;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{
    Start,
    catalog::Control,
    fault::{SlotFault, Sorted, Step, WAL_LEVEL, sort},
    publication::{
        COMMENT, Plan, Publication, PublicationFault, Publications, PublishedTable, comment_with_slot, inserts_name,
        plan,
    },
    tables::{PatternError, Patterns},
};
use crate::{config::Config, finding::Finding, lsn::Lsn, source::SourceError};

/// How soon a held slot is looked at again: at first, and at most.
const HELD_INTERVAL_FIRST: Duration = Duration::from_millis(100);
const HELD_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// PostgreSQL 14.
const VERSION_MIN: i32 = 140_000;

/// A slot as `pg_replication_slots` has it.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) physical: bool,
    pub(crate) plugin: String,
    pub(crate) database: String,
    pub(crate) active_pid: Option<i32>,
    pub(crate) confirmed: Lsn,
    pub(crate) retained_bytes: u64,
    pub(crate) wal_status: String,
    /// Why it is invalidated.
    pub(crate) invalid: Option<String>,
}

/// What `drop_all` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// The slot, if there was one.
    pub slot: Option<String>,
    /// Publications that are gone.
    pub publications: Vec<String>,
    /// Publications that offshoot did not make, and left.
    pub left: Vec<String>,
}

/// What has been warned of in this process: once is enough, however often it connects.
#[derive(Debug, Default)]
pub struct Warned(Mutex<BTreeSet<String>>);

impl Warned {
    fn is_news(&self, finding: &Finding) -> bool {
        self.0.lock().expect("nobody panics with it").insert(finding.what.clone())
    }
}

/// A check that stops us before anything is made.
#[derive(Debug, thiserror::Error)]
enum Unready {
    #[error("use a server of version {version}: PostgreSQL 14 is the oldest that is supported")]
    Version { version: String },
    #[error("read the log: wal_level is {wal_level}; {WAL_LEVEL}")]
    WalLevel { wal_level: String },
    #[error("{why}; run this in database {database}:\n{sql}")]
    RunThis { why: String, database: String, sql: String },
    #[error("drop slot {slot}: PID {pid} holds it; stop the offshoot that reads from it first")]
    Active { slot: String, pid: i32 },
}

impl Control {
    /// The slot of that name; `None` when there is none.
    pub(crate) async fn slot(&self, name: &str) -> Result<Option<Slot>, SourceError> {
        let rows = self.query(SLOT, &[&name]).await?;
        let text = |row: &tokio_postgres::Row, column| row.get::<_, Option<String>>(column).unwrap_or_default();
        Ok(rows.first().map(|row| Slot {
            physical: text(row, "slot_type") == "physical",
            plugin: text(row, "plugin"),
            database: text(row, "database"),
            active_pid: row.get("active_pid"),
            confirmed: Lsn(row.get::<_, Option<PgLsn>>("confirmed").map_or(0, u64::from)),
            retained_bytes: row.get::<_, Option<i64>>("retained").unwrap_or_default().max(0) as u64,
            wal_status: text(row, "wal_status"),
            invalid: row.get("invalid"),
        }))
    }

    /// Our two publications.
    pub(crate) async fn publications(&self, name: &str, version_num: i32) -> Result<Publications, SourceError> {
        Ok(Publications {
            rows: self.publication(name, version_num).await?,
            inserts: self.publication(&inserts_name(name), version_num).await?,
        })
    }

    async fn publication(&self, name: &str, version_num: i32) -> Result<Option<Publication>, SourceError> {
        let rows = self.query(PUBLICATION, &[&name]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let tables = self.query(PUBLICATION_TABLES, &[&name]).await?;
        let schemas = match version_num {
            150_000.. => self.query(PUBLICATION_SCHEMAS, &[&name]).await?,
            _ => Vec::new(),
        };
        let operations = ["insert", "update", "delete", "truncate"];
        let comment = row.get::<_, Option<String>>("comment").unwrap_or_default();
        Ok(Some(Publication {
            name: name.to_owned(),
            ours: comment.starts_with(COMMENT),
            comment,
            all_tables: row.get("all_tables"),
            schemas: schemas.iter().map(|row| row.get(0)).collect(),
            tables: tables
                .iter()
                .map(|row| PublishedTable {
                    schema: row.get("schema"),
                    name: row.get("name"),
                    column_list: row.get("column_list"),
                    row_filter: row.get("row_filter"),
                })
                .collect(),
            publishes: operations.into_iter().filter(|operation| row.get(*operation)).collect(),
            via_root: row.get("via_root"),
        }))
    }

    /// Sees to publications and slot, waits until nobody else holds the slot, and says what to stream from where.
    pub(crate) async fn prepare(&self, config: &Config, begin: &Start<'_>) -> Result<(Plan, Lsn), SourceError> {
        let server = self.server().await?;
        fits(server.version_num, &server.version, &server.wal_level).map_err(refused)?;
        let name = config.slot();
        // First the wait: whoever holds the slot also keeps the publications.
        let slot = self.wait_for_slot(&name, begin.waiting).await?;
        let plan = self.plan(config, server.version_num, slot.as_ref()).await?;
        (begin.accept)(&plan.tables).map_err(|why| SourceError::Config(why.into()))?;
        plan.findings.iter().filter(|finding| begin.warned.is_news(finding)).for_each(|finding| warn!("{finding}"));
        let mut sql = plan.statements.clone();
        if slot.is_none() {
            sql.push(slot_sql(&name));
        }
        if !config.source.create && !sql.is_empty() {
            let why = "go on without slot and publication, which source.create: false leaves to you".to_owned();
            return Err(self.run_this(why, &sql));
        }
        self.apply(&plan, &sql).await?;
        for table in &plan.joining {
            info!(%table, "a table joins the publication; what it holds already is not told");
        }
        let confirmed = match slot {
            // It was free a moment ago, and may have moved until then.
            Some(_) => self.slot(&name).await?.map_or(Lsn::INVALID, |slot| slot.confirmed),
            None => self.create_slot(&name).await?,
        };
        self.remember_slot(config, server.version_num).await?;
        Ok((plan, confirmed))
    }

    /// Writes into the comment of a publication of ours that the slot has been made.
    async fn remember_slot(&self, config: &Config, version_num: i32) -> Result<(), SourceError> {
        let comment = comment_with_slot(&config.slot());
        match self.publication(&config.publication(), version_num).await? {
            Some(rows) if rows.ours && rows.comment != comment && config.source.create => {
                let (name, comment) = (escape_identifier(&rows.name), escape_literal(&comment));
                let sql = format!("COMMENT ON PUBLICATION {name} IS {}", comment.trim());
                match self.execute(&sql, Step::Prepare).await {
                    // One who had the right made it from our SQL: a lost slot will not be told from a first start.
                    Err(SourceError::Refused(why)) => debug!(%why, "the publication does not remember the slot"),
                    done => return done,
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What has to be done to the publications.
    pub(crate) async fn plan(
        &self,
        config: &Config,
        version_num: i32,
        slot: Option<&Slot>,
    ) -> Result<Plan, SourceError> {
        let tables = self.tables().await?;
        let mut with_rows = Vec::new();
        let wanted = match &config.changes {
            Some(changes) => {
                let patterns = Patterns::compile(changes).map_err(misfit)?;
                with_rows = patterns.with_rows(&tables);
                match patterns.choose(&tables) {
                    Ok(chosen) => chosen,
                    Err(error) => return Err(misfit(self.explain(error).await?)),
                }
            }
            None => Vec::new(),
        };
        let with_rows = with_rows.iter().map(|table| (table.schema.clone(), table.name.clone())).collect();
        let there = self.publications(&config.publication(), version_num).await?;
        let name = config.slot();
        let confirmed = slot.map(|slot| slot.confirmed);
        let plan = plan(&config.publication(), &there, &wanted, &name, confirmed, config.source.create);
        let plan = plan.map_err(|error| match error {
            PublicationFault::Gone(error) => SourceError::SlotLost(Box::new(error)),
            error => refused(error),
        })?;
        Ok(Plan { tables: with_rows, ..plan })
    }

    /// A name that no table has may be a view's, a foreign table's or a temporary table's.
    async fn explain(&self, error: PatternError) -> Result<PatternError, SourceError> {
        let PatternError::NoTable { pattern: table, .. } = &error else { return Ok(error) };
        let table = table.clone();
        let rows = self.query(RELATION_KIND, &[&table]).await?;
        let kind = rows.first().and_then(|row| match row.get::<_, &str>("kind") {
            "v" => Some("a view"),
            "m" => Some("a materialized view"),
            "f" => Some("a foreign table"),
            "r" | "p" => Some("a temporary or system table"),
            "S" => Some("a sequence"),
            _ => None,
        });
        Ok(kind.map_or(error, |kind| PatternError::NotATable { table, kind }))
    }

    /// Runs a plan whole or not at all.
    async fn apply(&self, plan: &Plan, sql: &[String]) -> Result<(), SourceError> {
        if plan.statements.is_empty() {
            return Ok(());
        }
        let whole = format!("BEGIN; {}; COMMIT", plan.statements.join("; "));
        match self.client.batch_execute(&whole).await {
            Ok(()) => {
                info!(publications = %plan.names.join(", "), "publications are as the config asks");
                Ok(())
            }
            Err(error) => {
                let _ = self.client.batch_execute("ROLLBACK").await;
                Err(self.refuse_with_sql(error, sql))
            }
        }
    }

    /// Makes the slot, and says where it starts.
    async fn create_slot(&self, name: &str) -> Result<Lsn, SourceError> {
        info!(slot = %name, "making the slot; this waits for the transactions that are running now");
        // As long as the longest of them: no timeout of ours may end it.
        self.execute("SET statement_timeout = 0; SET lock_timeout = 0", Step::Prepare).await?;
        let row = self.client.query_one(CREATE_SLOT, &[&name]).await;
        // Whoever may not make a slot may not read one: made by another, it would not help.
        let row = row.map_err(|error| sort(error, Step::Prepare, &self.who))?;
        self.execute("RESET statement_timeout; RESET lock_timeout", Step::Prepare).await?;
        let start = Lsn(row.get::<_, PgLsn>(0).into());
        info!(slot = %name, %start, "made the slot");
        Ok(start)
    }

    /// Waits while another holds the slot. `None` when there is no slot.
    async fn wait_for_slot(&self, name: &str, waiting: impl Fn()) -> Result<Option<Slot>, SourceError> {
        let mut told = None;
        let mut interval = HELD_INTERVAL_FIRST;
        loop {
            let slot = self.slot(name).await?;
            if let Some(slot) = &slot {
                slot.check(name, &self.who.database)?;
            }
            let Some(pid) = slot.as_ref().and_then(|slot| slot.active_pid) else {
                return Ok(slot);
            };
            if told != Some(pid) {
                info!(slot = %name, pid, "another holds the slot; waiting for it");
                waiting();
                told = Some(pid);
            }
            sleep(interval).await;
            interval = (interval * 2).min(HELD_INTERVAL_MAX);
        }
    }

    /// Drops the slot, then the publications that are ours.
    pub(crate) async fn drop_all(&self, config: &Config) -> Result<Dropped, SourceError> {
        let mut dropped = Dropped::default();
        let name = config.slot();
        if let Some(slot) = self.slot(&name).await? {
            slot.check_ours(&name, &self.who.database)?;
            if let Some(pid) = slot.active_pid {
                return Err(refused(Unready::Active { slot: name, pid }));
            }
            self.query("SELECT pg_drop_replication_slot($1)", &[&name]).await?;
            dropped.slot = Some(name);
        }
        let server = self.server().await?;
        let there = self.publications(&config.publication(), server.version_num).await?;
        for publication in [there.rows, there.inserts].into_iter().flatten() {
            if publication.ours {
                let sql = format!("DROP PUBLICATION {}", escape_identifier(&publication.name));
                self.execute(&sql, Step::Prepare).await?;
                dropped.publications.push(publication.name);
            } else {
                dropped.left.push(publication.name);
            }
        }
        Ok(dropped)
    }

    async fn execute(&self, sql: &str, step: Step) -> Result<(), SourceError> {
        self.client.batch_execute(sql).await.map_err(|error| sort(error, step, &self.who))
    }

    /// Where a right is missing, the SQL for one who has it.
    fn refuse_with_sql(&self, error: tokio_postgres::Error, sql: &[String]) -> SourceError {
        match sort(error, Step::Prepare, &self.who) {
            SourceError::Refused(error) if error.downcast_ref::<Sorted>().is_some_and(|e| e.said.code == "42501") => {
                self.run_this(error.to_string(), sql)
            }
            error => error,
        }
    }

    fn run_this(&self, why: String, sql: &[String]) -> SourceError {
        let sql = sql.iter().map(|statement| format!("  {statement};")).collect::<Vec<_>>().join("\n") + "\n";
        refused(Unready::RunThis { why, database: self.who.database.clone(), sql })
    }
}

impl Slot {
    /// Whether it can be streamed from, now or once it is free.
    pub(crate) fn check(&self, name: &str, ours: &str) -> Result<(), SourceError> {
        self.check_ours(name, ours)?;
        match &self.invalid {
            Some(why) => {
                let fault = SlotFault::Invalidated { slot: name.into(), why: why.clone(), confirmed: self.confirmed };
                Err(SourceError::SlotLost(Box::new(fault)))
            }
            None => Ok(()),
        }
    }

    fn check_ours(&self, name: &str, ours: &str) -> Result<(), SourceError> {
        let (slot, plugin, database) = (name.to_owned(), self.plugin.clone(), self.database.clone());
        let fault = if self.physical {
            SlotFault::Physical { slot }
        } else if plugin != "pgoutput" {
            SlotFault::Plugin { slot, plugin }
        } else if database != ours {
            SlotFault::Database { slot, database, ours: ours.into() }
        } else {
            return Ok(());
        };
        // Nothing of ours is lost by it: it is a name that is taken.
        Err(refused(fault))
    }
}

/// The SQL that makes a slot.
pub(crate) fn slot_sql(name: &str) -> String {
    format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput')", escape_literal(name).trim())
}

/// Whether a server of this version and `wal_level` can be streamed from.
fn fits(version_num: i32, version: &str, wal_level: &str) -> Result<(), Unready> {
    match wal_level {
        _ if version_num < VERSION_MIN => Err(Unready::Version { version: version.to_owned() }),
        "logical" => Ok(()),
        _ => Err(Unready::WalLevel { wal_level: wal_level.to_owned() }),
    }
}

fn misfit(error: PatternError) -> SourceError {
    SourceError::Config(Box::new(error))
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> SourceError {
    SourceError::Refused(Box::new(error))
}

const CREATE_SLOT: &str = "SELECT lsn FROM pg_create_logical_replication_slot($1, 'pgoutput')";

/// `to_jsonb` asks for columns that older versions do not have: `conflicting` is PostgreSQL 16's, the reason 17's.
const SLOT: &str = "
SELECT s.slot_type::text, s.plugin::text, s.database::text, s.active_pid, s.confirmed_flush_lsn AS confirmed, s.wal_status,
  (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - s.restart_lsn)::bigint
    AS retained,
  CASE WHEN s.wal_status = 'lost' OR to_jsonb(s) ->> 'conflicting' = 'true' OR to_jsonb(s) ->> 'invalidation_reason' <> ''
    THEN coalesce(to_jsonb(s) ->> 'invalidation_reason', 'wal_removed') END AS invalid
FROM pg_replication_slots s WHERE s.slot_name = $1";

const RELATION_KIND: &str = "
SELECT c.relkind::text AS kind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = $1";

const PUBLICATION: &str = "
SELECT p.puballtables AS all_tables, p.pubinsert AS insert, p.pubupdate AS update, p.pubdelete AS delete,
  p.pubtruncate AS truncate, p.pubviaroot AS via_root, obj_description(p.oid, 'pg_publication') AS comment
FROM pg_publication p WHERE p.pubname = $1";

/// Column lists and row filters are PostgreSQL 15's.
const PUBLICATION_TABLES: &str = "
SELECT n.nspname AS schema, c.relname AS name, to_jsonb(r) ->> 'prattrs' IS NOT NULL AS column_list,
  to_jsonb(r) ->> 'prqual' IS NOT NULL AS row_filter
FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = $1";

const PUBLICATION_SCHEMAS: &str = "
SELECT n.nspname FROM pg_publication p JOIN pg_publication_namespace s ON s.pnpubid = p.oid
  JOIN pg_namespace n ON n.oid = s.pnnspid
WHERE p.pubname = $1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_is_refused_by_its_version() {
        assert!(fits(140_000, "14.0", "logical").is_ok());
        let old = fits(130_012, "13.12", "logical").unwrap_err().to_string();
        assert_eq!(old, "use a server of version 13.12: PostgreSQL 14 is the oldest that is supported");
        assert!(matches!(refused(fits(130_012, "13.12", "replica").unwrap_err()), SourceError::Refused(_)));
        assert!(fits(170_000, "17.0", "replica").unwrap_err().to_string().contains("SET wal_level = logical"));
    }

    #[test]
    fn a_process_warns_of_one_thing_once() {
        let warned = Warned::default();
        let finding = |what: &str| Finding::warning(what.into(), "mend".into());
        assert!(warned.is_news(&finding("a")) && warned.is_news(&finding("b")) && !warned.is_news(&finding("a")));
    }
}
