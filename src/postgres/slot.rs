//! Slot and publication: look at them, make them, wait for the slot, drop them. IO.

use std::{
    collections::BTreeSet,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use bytesize::ByteSize;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use postgres_types::{PgLsn, ToSql};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::{
    Server, Start,
    catalog::{ANSWER_TIMEOUT, CatalogTable, Control, ServerFacts},
    fault::{Fault, SlotFault, Sorted, Step, WAL_LEVEL, sort},
    publication::{
        COMMENT, Plan, Publication, PublicationFault, Publications, PublishedTable, comment_with_tables, inserts_name,
        plan,
    },
    tables::{PatternError, Patterns, check_omitted, omitted, patterns},
    watch::{Seen, is_busy, put_back},
};
use crate::{
    causes::told,
    change::Asked,
    config::{Config, Limits},
    finding::Finding,
    lsn::Lsn,
    mapping::catalog::Catalog,
    source::SourceError,
};

/// How soon a held slot is looked at again: at first, and at most.
const HELD_INTERVAL_FIRST: Duration = Duration::from_millis(100);
const HELD_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// What a change to the publications waits for a lock, and how long each of its statements may take: while it waits or
/// holds one, an application's ALTER TABLE on that table waits too. Longer than the second after which autovacuum
/// makes way for us.
const CHANGE_TIMEOUTS: &str = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '5s'";
/// How long a slot that is to be dropped may take to be free: as long as a server takes to miss a host that vanished.
const FREE_MAX: Duration = Duration::from_secs(15);
/// A slot that was over `limits.slot_wal_warn` is back below it at so many hundredths of it.
const WARN_BACK_PERCENT: u64 = 80;
/// PostgreSQL 14.
const VERSION_MIN: i32 = 140_000;
/// PostgreSQL 17: slots that standbys keep in step.
const FAILOVER_VERSION_MIN: i32 = 170_000;

/// A slot as `pg_replication_slots` has it.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) physical: bool,
    pub(crate) plugin: String,
    pub(crate) database: String,
    pub(crate) active_pid: Option<i32>,
    /// The end of the server's log.
    pub(crate) current: Lsn,
    pub(crate) confirmed: Lsn,
    pub(crate) retained_bytes: u64,
    pub(crate) wal_status: String,
    /// Why it is invalidated.
    pub(crate) invalid: Option<String>,
    /// Standbys may keep it in step; `None` before PostgreSQL 17.
    pub(crate) failover: Option<bool>,
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

/// What a process keeps from one connection to the next: what it has warned of, since once is enough, and what it saw.
#[derive(Debug, Default)]
pub struct Warned(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    said: BTreeSet<String>,
    /// The slot is over `limits.slot_wal_warn`.
    over: bool,
    seen: Option<Seen>,
}

impl Warned {
    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.0.lock().expect("nobody panics with it")
    }

    /// Whether this has not been said yet; from now on it has.
    pub(crate) fn is_news(&self, what: &str) -> bool {
        self.memory().said.insert(what.to_owned())
    }

    /// Warns, once.
    pub(crate) fn say(&self, what: &str) {
        if self.is_news(what) {
            warn!("{what}");
        }
    }

    /// Keeps what is published; gives the tables that were not before.
    pub(crate) fn saw(&self, seen: Seen) -> Vec<String> {
        let mut memory = self.memory();
        let joined = memory.seen.as_ref().map(|before| seen.joined_since(before)).unwrap_or_default();
        memory.seen = Some(seen);
        joined
    }

    /// Whether what was published the last time still is.
    pub(crate) fn compare(&self, slot: &str, survey: &Survey, config: &Config) -> Result<(), SourceError> {
        let seen = self.memory().seen.clone();
        let said = seen.map_or(Ok(Vec::new()), |seen| seen.compare(slot, survey, config))?;
        said.iter().for_each(|said| self.say(said));
        Ok(())
    }
}

/// What there is to be published, and what is.
pub(crate) struct Survey {
    pub(crate) tables: Vec<CatalogTable>,
    pub(crate) there: Publications,
    /// What the database says of the tables that events are made of; `None` where none are.
    pub(crate) catalog: Option<Catalog>,
    /// Oids of the tables of which rows are held.
    pub(crate) held: Vec<u32>,
}

impl Survey {
    /// What the config asks for, with the tables that its look-ups lead to.
    pub(crate) fn patterns(&self, config: &Config) -> Result<Patterns, PatternError> {
        Ok(patterns(config, self.catalog.as_ref())?.holding(&self.held))
    }

    /// Whether the database has what the config names.
    pub(crate) fn check(&self, config: &Config, version_num: i32) -> Result<(), PatternError> {
        let patterns = self.patterns(config)?;
        patterns.check(&self.tables)?;
        patterns.check_whole(&config.source.omit_columns)?;
        match config.source.omit_columns.first() {
            Some(column) if version_num < 150_000 => {
                let why = "column lists are there from PostgreSQL 15 on; remove it".into();
                Err(PatternError::Omit { column: column.clone(), why })
            }
            _ => check_omitted(&config.source.omit_columns, &self.tables),
        }
    }

    /// Whether what a publication of ours held, when it was written down, is still published.
    fn recall(&self, slot: &str, wanted: &[&CatalogTable]) -> Result<(), SourceError> {
        let Publications { rows: Some(rows), inserts } = &self.there else { return Ok(()) };
        let remembered = if rows.ours { rows.remembered() } else { Vec::new() };
        let covered = |table: &CatalogTable| rows.covers(table) || inserts.as_ref().is_some_and(|i| i.covers(table));
        match wanted.iter().find(|table| remembered.contains(&table.oid) && !covered(table)) {
            None => Ok(()),
            Some(table) => Err(SourceError::SlotLost(Box::new(SlotFault::Unpublished {
                slot: slot.into(),
                what: format!("{} was taken out of publication {}", table.full_name(), rows.name),
                since: "the last look of an earlier run".into(),
                mend: put_back(&rows.name, table),
            }))),
        }
    }

    /// What has to be done to the publications. `confirmed` is where the slot stands, if it is there.
    pub(crate) fn plan(&self, config: &Config, confirmed: Option<Lsn>) -> Result<Plan, SourceError> {
        let patterns = self.patterns(config).map_err(misfit)?;
        let with_rows = patterns.with_rows(&self.tables);
        let wanted = patterns.choose(&self.tables);
        if confirmed.is_some() {
            self.recall(&config.slot(), &wanted)?;
        }
        let plan = plan(&config.publication(), &self.there, &wanted, &config.slot(), confirmed, config.source.create);
        let plan = plan.map_err(|error| match error {
            PublicationFault::Gone(error) => SourceError::SlotLost(Box::new(error)),
            error @ (PublicationFault::NarrowBreaks { .. } | PublicationFault::NarrowFixed { .. }) => {
                SourceError::Config(Box::new(error))
            }
            error => refused(error),
        })?;
        let named = |(table, _): &(&CatalogTable, Asked)| (table.schema.clone(), table.name.clone());
        let tables = with_rows.iter().map(named).collect();
        let changes = with_rows.iter().filter(|(_, asked)| asked.changes).map(named).collect();
        Ok(Plan { tables, changes, ..plan })
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
            current: Lsn(row.get::<_, Option<PgLsn>>("current").map_or(0, u64::from)),
            confirmed: Lsn(row.get::<_, Option<PgLsn>>("confirmed").map_or(0, u64::from)),
            retained_bytes: row.get::<_, Option<i64>>("retained").unwrap_or_default().max(0) as u64,
            wal_status: text(row, "wal_status"),
            invalid: row.get("invalid"),
            failover: row.get("failover"),
        }))
    }

    /// Our two publications.
    pub(crate) async fn publications(&self, name: &str, version_num: i32) -> Result<Publications, SourceError> {
        let inserts = inserts_name(name);
        let asked = tokio::try_join!(self.publication(name, version_num), self.publication(&inserts, version_num));
        let (rows, inserts) = asked?;
        Ok(Publications { rows, inserts })
    }

    async fn publication(&self, name: &str, version_num: i32) -> Result<Option<Publication>, SourceError> {
        let parameters: [&(dyn ToSql + Sync); 1] = [&name];
        let schemas = async {
            match version_num {
                150_000.. => self.query(PUBLICATION_SCHEMAS, &parameters).await,
                _ => Ok(Vec::new()),
            }
        };
        // Sent together, answered one after the other.
        let asked = tokio::try_join!(
            self.query(PUBLICATION, &parameters),
            self.query(PUBLICATION_TABLES, &parameters),
            schemas
        );
        let (rows, tables, schemas) = asked?;
        let Some(row) = rows.first() else { return Ok(None) };
        let operations = ["insert", "update", "delete", "truncate"];
        let comment = row.get::<_, Option<String>>("comment").unwrap_or_default();
        Ok(Some(Publication {
            oid: row.get("oid"),
            name: name.to_owned(),
            ours: comment.starts_with(COMMENT),
            comment,
            all_tables: row.get("all_tables"),
            schemas: schemas.iter().map(|row| row.get(0)).collect(),
            tables: tables
                .iter()
                .map(|row| PublishedTable {
                    oid: row.get("oid"),
                    table: row.get("table"),
                    schema: row.get("schema"),
                    name: row.get("name"),
                    columns: row.get("columns"),
                    row_filter: row.get("row_filter"),
                })
                .collect(),
            publishes: operations.into_iter().filter(|operation| row.get(*operation)).collect(),
            via_root: row.get("via_root"),
        }))
    }

    /// The server, if we can stream from it.
    pub(crate) async fn fitting_server(&self) -> Result<ServerFacts, SourceError> {
        let server = self.server().await?;
        fits(server.version_num, &server.version, &server.wal_level).map_err(refused)?;
        Ok(server)
    }

    /// Sees to publications and slot, waits until nobody else holds the slot, and says what to stream from where.
    pub(crate) async fn prepare<E: From<SourceError>>(
        &self,
        config: &Config,
        begin: &Start<'_, E>,
    ) -> Result<(ServerFacts, Plan, Lsn, Option<Catalog>), E> {
        let server = self.fitting_server().await?;
        let name = config.slot();
        // First the wait: whoever holds the slot also keeps the publications.
        let slot = self.wait_for_slot(&name, begin.waiting).await?;
        if let Some(slot) = &slot {
            slot.within(&name, &config.limits, begin.warned)?;
        }
        let survey = self.survey(config, server.version_num, None, begin.held).await?;
        begin.warned.compare(&name, &survey, config)?;
        self.check_names(&survey, config, server.version_num).await?;
        let mut plan = survey.plan(config, slot.as_ref().map(|slot| slot.confirmed))?;
        let catalog = &survey.catalog;
        (begin.accept)(&plan.changes, catalog.as_ref()).map_err(|why| SourceError::Config(why.into()))?;
        (begin.permit)(slot.as_ref().map(|slot| slot.confirmed), Server(self.clone())).await?;
        if slot.is_none() {
            plan.findings.extend(self.forgotten_slots(&name).await?);
        }
        let news = plan.findings.iter().filter(|finding| begin.warned.is_news(&finding.what));
        news.for_each(|finding| warn!("{finding}"));
        let mut sql = plan.statements.clone();
        if slot.is_none() {
            sql.push(slot_sql(&name, &server));
        }
        if !config.source.create && !sql.is_empty() {
            let why = "go on without slot and publication, which source.create: false leaves to you".to_owned();
            return Err(self.run_this(why, &sql).into());
        }
        match self.apply(&plan, &sql).await {
            // What is published already goes on meanwhile; it is tried again while we stream.
            Err(error) if slot.is_some() && is_busy(&error) => {
                begin.warned.say(&format!("failed to {}", told(&error)));
                let is_joining = |oid: &u32| {
                    let table = survey.tables.iter().find(|table| table.oid == *oid);
                    table.is_some_and(|table| plan.joining.contains(&table.full_name()))
                };
                plan.published.retain(|oid| !is_joining(oid));
                plan.joining.clear();
            }
            done => done?,
        }
        let confirmed = match slot {
            // It was free a moment ago, and may have moved until then.
            Some(_) => {
                plan.horizon = self.horizon(&plan.joining).await?;
                self.slot(&name).await?.map_or(Lsn::INVALID, |slot| slot.confirmed)
            }
            None => self.create_slot(&name, &server).await?,
        };
        self.remember(config, server.version_num, &plan).await?;
        Ok((server, plan, confirmed, survey.catalog))
    }

    /// Writes into the comment of a publication of ours that the slot has been made, and what is published.
    async fn remember(&self, config: &Config, version_num: i32, plan: &Plan) -> Result<(), SourceError> {
        let comment = comment_with_tables(&config.slot(), &plan.published);
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

    /// What there is to be published, and what is. While a stream runs, its look-ups lead where they led when it began: to what
    /// `known` says. Tables of which rows are `held` are known by their oids.
    pub(crate) async fn survey(
        &self,
        config: &Config,
        version_num: i32,
        known: Option<&Catalog>,
        held: &[u32],
    ) -> Result<Survey, SourceError> {
        let mut tables = self.tables().await?;
        let omit = omitted(&config.source.omit_columns, &tables);
        if !omit.is_empty() {
            let mut narrow = self.narrow(&omit).await?;
            for table in tables.iter_mut().filter(|table| !table.partitioned && table.root.is_none()) {
                table.narrow = narrow.remove(&table.oid).filter(|narrow| !narrow.omitted.is_empty());
            }
        }
        let catalog = match known {
            _ if config.events.is_empty() => None,
            Some(known) => Some(known.clone()),
            None => Some(self.schema(config).await?),
        };
        let there = self.publications(&config.publication(), version_num).await?;
        Ok(Survey { tables, there, catalog, held: held.to_vec() })
    }

    /// What has to be done to the publications, of what the config asks for and the database has, and what that says of the tables
    /// that events are made of.
    pub(crate) async fn plan(
        &self,
        config: &Config,
        version_num: i32,
        slot: Option<&Slot>,
    ) -> Result<(Plan, Option<Catalog>), SourceError> {
        let survey = self.survey(config, version_num, None, &[]).await?;
        self.check_names(&survey, config, version_num).await?;
        Ok((survey.plan(config, slot.map(|slot| slot.confirmed))?, survey.catalog))
    }

    /// Whether the database has what the config names.
    async fn check_names(&self, survey: &Survey, config: &Config, version_num: i32) -> Result<(), SourceError> {
        match survey.check(config, version_num) {
            Ok(()) => Ok(()),
            Err(error) => Err(misfit(self.explain(error).await?)),
        }
    }

    /// A name that no table has may be a view's, a foreign table's or a temporary table's.
    async fn explain(&self, error: PatternError) -> Result<PatternError, SourceError> {
        let PatternError::NoTable { key, pattern: table, .. } = &error else { return Ok(error) };
        let (key, table) = (*key, table.clone());
        let rows = self.query(RELATION_KIND, &[&table]).await?;
        let kind = rows.first().and_then(|row| match row.get::<_, &str>("kind") {
            "v" => Some("a view"),
            "m" => Some("a materialized view"),
            "f" => Some("a foreign table"),
            "r" | "p" => Some("a temporary or system table"),
            "S" => Some("a sequence"),
            _ => None,
        });
        Ok(kind.map_or(error, |kind| PatternError::NotATable { key, table, kind }))
    }

    /// Runs a plan whole or not at all. `Fault::Busy` when a lock was in the way.
    pub(crate) async fn apply(&self, plan: &Plan, sql: &[String]) -> Result<(), SourceError> {
        if plan.statements.is_empty() {
            return Ok(());
        }
        let whole = format!("BEGIN; {CHANGE_TIMEOUTS}; {}; COMMIT", plan.statements.join("; "));
        match timeout(ANSWER_TIMEOUT, self.client.batch_execute(&whole)).await {
            Err(_) => Err(self.no_answer()),
            Ok(Ok(())) => {
                info!(publications = %plan.names.join(", "), "publications are as the config asks");
                Ok(())
            }
            Ok(Err(error)) => {
                let _ = timeout(ANSWER_TIMEOUT, self.client.batch_execute("ROLLBACK")).await;
                Err(match error.as_db_error() {
                    // A lock timeout, a statement timeout.
                    Some(said) if ["55P03", "57014"].contains(&said.code().code()) => {
                        Fault::Busy { what: said.into(), holders: self.holders(&plan.tables).await }.passing()
                    }
                    _ => self.refuse_with_sql(error, sql),
                })
            }
        }
    }

    /// Who holds locks on tables that keep a publication from being changed.
    async fn holders(&self, tables: &[(String, String)]) -> String {
        let names: Vec<_> = tables.iter().map(|(schema, name)| format!("{schema}.{name}")).collect();
        let rows = self.query(HOLDERS, &[&names]).await.unwrap_or_default();
        let text = |row: &tokio_postgres::Row| {
            let (pid, mode, table) = (row.get::<_, Option<i32>>(0), row.get::<_, String>(1), row.get::<_, String>(2));
            format!("PID {} holds {mode} on {table}", pid.unwrap_or_default())
        };
        let holders: Vec<_> = rows.iter().map(text).collect();
        if holders.is_empty() { String::new() } else { format!(": {}", holders.join(", ")) }
    }

    /// After tables have joined: every transaction that could have written into them before has a lower id.
    pub(crate) async fn horizon(&self, joining: &[String]) -> Result<Option<u64>, SourceError> {
        if joining.is_empty() {
            return Ok(None);
        }
        let rows = self.query("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?;
        Ok(rows[0].get::<_, &str>(0).parse().ok())
    }

    /// The oldest transaction that is open, and a position in the log after the end of all that are older.
    pub(crate) async fn oldest_transaction(&self) -> Result<(u64, Lsn), SourceError> {
        let sql = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text, pg_current_wal_insert_lsn()";
        let rows = self.query(sql, &[]).await?;
        Ok((rows[0].get::<_, &str>(0).parse().unwrap_or(0), Lsn(rows[0].get::<_, PgLsn>(1).into())))
    }

    /// Slots of ours in this database that nobody reads, such as that of a pipeline that has another name now.
    pub(crate) async fn forgotten_slots(&self, ours: &str) -> Result<Vec<Finding>, SourceError> {
        let rows = self.query(FORGOTTEN, &[&ours, &format!("{COMMENT}; slot ")]).await?;
        let finding = |row: &tokio_postgres::Row| {
            let (slot, retained) = (row.get::<_, &str>(0), row.get::<_, Option<i64>>(1).unwrap_or_default());
            let retained = ByteSize::b(retained.max(0) as u64);
            Finding::warning(
                format!("slot {slot} is read by nobody, and the server keeps {retained} of log for it"),
                format!(
                    "if it is of this pipeline under another name, run `offshoot drop` with its old config, or SELECT \
                     pg_drop_replication_slot({})",
                    escape_literal(slot).trim()
                ),
            )
        };
        Ok(rows.iter().map(finding).collect())
    }

    /// Drops a slot that the server keeps too much log for, and says what is lost with it.
    pub(crate) async fn give_up(&self, config: &Config, delivered: Option<SystemTime>) -> SourceError {
        let name = config.slot();
        let deadline = Instant::now() + FREE_MAX;
        loop {
            let slot = match self.slot(&name).await {
                Ok(Some(slot)) => slot,
                Ok(None) => {
                    return Fault::Lost { doing: format!("drop slot {name}"), what: "it is gone".into() }.passing();
                }
                Err(error) => return error,
            };
            let free = slot.active_pid.is_none();
            match self.query("SELECT pg_drop_replication_slot($1)", &[&name]).await {
                Ok(_) => {
                    let (retained, limit) = (ByteSize::b(slot.retained_bytes), config.limits.slot_wal_stop);
                    let since = match delivered {
                        Some(time) => {
                            format!(
                                "the last transaction delivered was committed at {}",
                                humantime::format_rfc3339_seconds(time)
                            )
                        }
                        None => "nothing was delivered since this process started".into(),
                    };
                    let lost = ByteSize::b(slot.current.bytes_since(slot.confirmed));
                    let (confirmed, current, limit) = (slot.confirmed, slot.current, limit.unwrap_or_default());
                    let fault = SlotFault::GivenUp { slot: name, retained, limit, confirmed, current, lost, since };
                    return SourceError::SlotLimit(Box::new(fault));
                }
                Err(error) if free || Instant::now() > deadline => return error,
                Err(_) => sleep(HELD_INTERVAL_FIRST).await,
            }
        }
    }

    /// Makes the slot, and says where it starts.
    async fn create_slot(&self, name: &str, server: &ServerFacts) -> Result<Lsn, SourceError> {
        info!(slot = %name, "a new pipeline: making its slot, which waits for the transactions that are running now");
        // As long as the longest of them: no timeout of ours may end it.
        self.execute("SET statement_timeout = 0; SET lock_timeout = 0", Step::Prepare).await?;
        let failover = failover_argument(server);
        let sql = format!("SELECT lsn FROM pg_create_logical_replication_slot($1, 'pgoutput'{failover})");
        let row = self.client.query_one(&sql, &[&name]).await;
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
        let asked = timeout(ANSWER_TIMEOUT, self.client.batch_execute(sql)).await.map_err(|_| self.no_answer())?;
        asked.map_err(|error| sort(error, step, &self.who))
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

    pub(crate) fn run_this(&self, why: String, sql: &[String]) -> SourceError {
        let sql = sql.iter().map(|statement| format!("  {statement};")).collect::<Vec<_>>().join("\n") + "\n";
        refused(Unready::RunThis { why, database: self.who.database.clone(), sql })
    }
}

impl Slot {
    /// Whether the server keeps no more log for it than it may. Warns when it begins to be much, and says when it is over.
    pub(crate) fn within(&self, name: &str, limits: &Limits, warned: &Warned) -> Result<(), SourceError> {
        let retained = ByteSize::b(self.retained_bytes);
        if let Some(limit) = limits.slot_wal_stop.filter(|limit| retained > *limit) {
            // What is not published yet is the log after `confirmed`; the rest is for transactions that are open.
            let late = self.current.bytes_since(self.confirmed);
            let mend = if late > self.retained_bytes / 2 {
                "see that Kafka takes it, raise limits.slot_wal_stop and start again, or lose it by `offshoot drop`"
            } else {
                "most of that log is kept for a transaction that has been open for long: end it (SELECT pid, xact_start FROM \
                 pg_stat_activity ORDER BY xact_start), or raise limits.slot_wal_stop, and start again"
            };
            let (slot, confirmed) = (name.to_owned(), self.confirmed);
            let fault = SlotFault::TooMuch { slot, retained, limit, confirmed, mend };
            return Err(SourceError::SlotLimit(Box::new(fault)));
        }
        let limit = limits.slot_wal_warn;
        let mut memory = warned.memory();
        let back = memory.over && self.retained_bytes < limit.as_u64() / 100 * WARN_BACK_PERCENT;
        if !memory.over && retained > limit {
            memory.over = true;
            warn!(slot = %name, %retained, %limit, confirmed = %self.confirmed, "the server keeps much log for the slot");
        } else if back {
            memory.over = false;
            info!(slot = %name, %retained, %limit, "the server keeps little log for the slot again");
        }
        Ok(())
    }

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
pub(crate) fn slot_sql(name: &str, server: &ServerFacts) -> String {
    let failover = failover_argument(server);
    format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput'{failover})", escape_literal(name).trim())
}

/// Lets standbys keep the slot in step, so that it outlives a fail-over; without standbys it costs nothing. A slot on a
/// standby cannot have it.
fn failover_argument(server: &ServerFacts) -> &'static str {
    if server.version_num >= FAILOVER_VERSION_MIN && !server.standby { ", failover => true" } else { "" }
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

/// `to_jsonb` asks for columns that older versions do not have: `conflicting` is PostgreSQL 16's, the reason and `failover`
/// are 17's.
const SLOT: &str = "
SELECT s.slot_type::text, s.plugin::text, s.database::text, s.active_pid, s.confirmed_flush_lsn AS confirmed, s.wal_status,
  l.current, (l.current - s.restart_lsn)::bigint AS retained,
  CASE WHEN s.wal_status = 'lost' OR to_jsonb(s) ->> 'conflicting' = 'true' OR to_jsonb(s) ->> 'invalidation_reason' <> ''
    THEN coalesce(to_jsonb(s) ->> 'invalidation_reason', 'wal_removed') END AS invalid,
  (to_jsonb(s) ->> 'failover')::boolean AS failover
FROM pg_replication_slots s, LATERAL (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
  ELSE pg_current_wal_lsn() END AS current) l
WHERE s.slot_name = $1";

/// By their names, or by the comment of the publication that was made for them.
const FORGOTTEN: &str = "
SELECT s.slot_name::text, (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END
  - s.restart_lsn)::bigint
FROM pg_replication_slots s
WHERE s.database = current_database() AND NOT s.active AND s.plugin = 'pgoutput' AND s.slot_name <> $1
  AND (s.slot_name ^@ 'offshoot_' OR EXISTS (SELECT FROM pg_publication p
    WHERE obj_description(p.oid, 'pg_publication') ^@ ($2 || s.slot_name || ' was made')))
ORDER BY 1";

/// Modes that a change to a publication, which takes SHARE UPDATE EXCLUSIVE on its tables, waits for.
const HOLDERS: &str = "
SELECT l.pid, l.mode, n.nspname || '.' || c.relname
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE l.granted AND l.locktype = 'relation' AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND n.nspname || '.' || c.relname = ANY ($1)
  AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
ORDER BY 3, 1 LIMIT 3";

const RELATION_KIND: &str = "
SELECT c.relkind::text AS kind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = $1";

const PUBLICATION: &str = "
SELECT p.oid, p.puballtables AS all_tables, p.pubinsert AS insert, p.pubupdate AS update, p.pubdelete AS delete,
  p.pubtruncate AS truncate, p.pubviaroot AS via_root, obj_description(p.oid, 'pg_publication') AS comment
FROM pg_publication p WHERE p.pubname = $1";

/// Column lists and row filters are PostgreSQL 15's.
const PUBLICATION_TABLES: &str = "
SELECT r.oid, r.prrelid AS table, n.nspname AS schema, c.relname AS name,
  (SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = r.prrelid
     AND to_jsonb(r) -> 'prattrs' @> to_jsonb(a.attnum)) AS columns,
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
        assert!(warned.is_news("a") && warned.is_news("b") && !warned.is_news("a"));
    }

    fn slot(retained_bytes: u64, late: u64) -> Slot {
        Slot {
            physical: false,
            plugin: "pgoutput".into(),
            database: "shop".into(),
            active_pid: None,
            current: Lsn(1 << 40),
            confirmed: Lsn((1 << 40) - late),
            retained_bytes,
            wal_status: "reserved".into(),
            invalid: None,
            failover: Some(true),
        }
    }

    #[test]
    fn a_slot_is_warned_of_once_until_it_is_well_below_again() {
        let (warned, limits) = (Warned::default(), Limits { slot_wal_warn: ByteSize::b(1000), ..Limits::default() });
        for (retained, over) in [(1000, false), (1001, true), (900, true), (799, false), (900, false), (1001, true)] {
            slot(retained, 0).within("s", &limits, &warned).unwrap();
            assert_eq!(warned.memory().over, over, "{retained}");
        }
    }

    #[test]
    fn a_slot_beyond_its_limit_stops_and_the_culprit_is_named() {
        let limits = Limits { slot_wal_stop: Some(ByteSize::mib(64)), ..Limits::default() };
        let said = |slot: Slot| match slot.within("s", &limits, &Warned::default()) {
            Err(SourceError::SlotLimit(error)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        let late = said(slot(65 << 20, 60 << 20));
        assert!(late.contains("keeps 65.0 MiB") && late.contains("see that Kafka takes it"), "{late}");
        assert!(said(slot(65 << 20, 10)).contains("a transaction that has been open"));
        assert!(slot(64 << 20, 10).within("s", &limits, &Warned::default()).is_ok());
    }
}
