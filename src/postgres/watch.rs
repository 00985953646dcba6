//! Slot, catalog and publications, looked at while we stream -> numbers, tables that join, or the fault that ends it. IO.
//!
//! The log does not tell what stops being told: a table that is taken out of a publication is silent, and from
//! PostgreSQL 18 on so is a publication that is gone. So both are compared with what was there before. Tables that the
//! config has come to ask for are added on the way.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime},
};

use postgres_protocol::escape::escape_identifier;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    Start,
    catalog::{CatalogTable, Control},
    fault::{Fault, SlotFault},
    publication::{Plan, Publication, Publications},
    slot::Survey,
};
use crate::{causes::told, config::Config, lsn::Lsn, mapping::catalog::Catalog, source::SourceError};

/// A look takes its time from the server's catalog: it rests so many times as long, so that it costs the server a
/// hundredth of a backend at most.
const REST: u32 = 100;
/// But never longer than this: what goes missing is noticed within a minute.
const REST_MAX: Duration = Duration::from_secs(50);
/// Looks that fail for so long are worth a word.
const BLIND_MAX: Duration = Duration::from_secs(300);
/// A transaction that was open when a table joined, and still is after this, is worth a word.
const OPEN_MAX: Duration = Duration::from_secs(60);

/// Looks at what we stream from, over the session's control connection.
pub struct Watch {
    control: Control,
    config: Config,
    version_num: i32,
    /// As it was when the stream began.
    catalog: Option<Catalog>,
    joining: Vec<Joining>,
    rest_until: Instant,
    seen_at: Instant,
    /// Ours, once it was seen.
    walsender: Option<i32>,
}

/// How far the slot is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lagging {
    /// The end of the server's log.
    pub current: Lsn,
    /// What the slot has confirmed.
    pub confirmed: Lsn,
    /// Bytes of log that the server keeps for the slot.
    pub retained_bytes: u64,
}

/// Tables that are in a publication, while transactions are open that may have written into them before.
struct Joining {
    tables: Vec<String>,
    /// Such transactions have ids below this one.
    horizon: u64,
    since: Instant,
    warned: bool,
}

/// What was published when all was right the last time.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    publications: Publications,
    /// Names of the tables that were asked for and published, by their oids.
    tables: BTreeMap<u32, String>,
    lsn: Lsn,
    time: SystemTime,
}

/// What is not published any more, and how to go on.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    what: String,
    mend: String,
}

impl Watch {
    pub(crate) fn new(
        control: Control,
        config: &Config,
        version_num: i32,
        plan: &Plan,
        catalog: Option<Catalog>,
    ) -> Watch {
        let now = Instant::now();
        let mut watch = Watch {
            control,
            config: config.clone(),
            version_num,
            catalog,
            joining: Vec::new(),
            rest_until: now,
            seen_at: now,
            walsender: None,
        };
        watch.join(&plan.joining, plan.horizon);
        watch
    }

    /// Looks once: at the slot always, at the rest unless it is too soon for that. `None` when the slot is gone.
    ///
    /// A walsender that has ended without our hearing of it ends the stream, which would wait for ever: what stands in between may
    /// keep a connection open of which the other half is dead.
    ///
    /// `SlotLimit` when the server keeps too much for the slot, `SlotLost` when something is not published any more.
    /// Whatever else it meets, the loop meets on its own session too.
    pub async fn look(&mut self, begin: &Start<'_, SourceError>) -> Result<Option<Lagging>, SourceError> {
        let name = self.config.slot();
        let Some(slot) = self.control.slot(&name).await? else { return Ok(None) };
        slot.within(&name, &self.config.limits, begin.warned)?;
        if slot.active_pid.is_none() || self.walsender.is_some_and(|pid| slot.active_pid != Some(pid)) {
            self.control.lose("the server has ended the replication session, and we were not told");
        }
        self.walsender = slot.active_pid;
        let began = Instant::now();
        if began >= self.rest_until {
            match self.compare(begin, slot.current, slot.confirmed).await {
                Ok(()) => self.seen_at = began,
                Err(error @ SourceError::SlotLost(_)) => return Err(error),
                Err(error) if !matches!(error, SourceError::Passing(_)) || began - self.seen_at > BLIND_MAX => {
                    begin.warned.say(&format!("the publications cannot be looked at: {}", told(&error)));
                }
                Err(error) => debug!(%error, "the publications could not be looked at"),
            }
            self.rest_until = Instant::now() + (began.elapsed() * REST).min(REST_MAX);
            self.complete().await?;
        }
        Ok(Some(Lagging { current: slot.current, confirmed: slot.confirmed, retained_bytes: slot.retained_bytes }))
    }

    /// Compares what is there with what was there, and with what the config asks for.
    async fn compare(&mut self, begin: &Start<'_, SourceError>, lsn: Lsn, confirmed: Lsn) -> Result<(), SourceError> {
        let (config, version_num) = (&self.config, self.version_num);
        let survey = self.control.survey(config, version_num, self.catalog.as_ref(), begin.held).await?;
        begin.warned.compare(&config.slot(), &survey, config)?;
        if let Err(error) = survey.check(config, version_num) {
            let text = told(&error);
            begin
                .warned
                .say(&format!("the config does not fit the database any more; the next start would fail to {text}"));
        }
        let plan = survey.plan(config, Some(confirmed))?;
        for finding in plan.findings.iter().filter(|finding| begin.warned.is_news(&finding.what)) {
            warn!("{finding}");
        }
        let mut seen = Seen::of(&survey, config, lsn);
        if !plan.statements.is_empty() {
            match self.change(begin, &plan).await {
                Ok(()) => {
                    let survey = self.control.survey(config, version_num, self.catalog.as_ref(), begin.held).await?;
                    seen = Seen::of(&survey, config, lsn);
                }
                Err(error) => {
                    let text = told(&error);
                    begin.warned.say(&format!("the publications are not as the config asks: failed to {text}"));
                }
            }
        }
        // By us, or by an owner who ran our SQL.
        let joined = begin.warned.saw(seen);
        let is_known = |table: &String| self.joining.iter().any(|joining| joining.tables.contains(table));
        let joining: Vec<_> = joined.into_iter().filter(|table| !is_known(table)).collect();
        let horizon = self.control.horizon(&joining).await?;
        self.join(&joining, horizon);
        Ok(())
    }

    /// Brings the publications to what the config asks for, where that is left to us.
    async fn change(&self, begin: &Start<'_, SourceError>, plan: &Plan) -> Result<(), SourceError> {
        (begin.accept)(&plan.changes, None).map_err(|why| SourceError::Config(why.into()))?;
        if !self.config.source.create {
            let why = "change what source.create: false leaves to you".to_owned();
            return Err(self.control.run_this(why, &plan.statements));
        }
        self.control.apply(plan, &plan.statements).await
    }

    fn join(&mut self, tables: &[String], horizon: Option<u64>) {
        for table in tables {
            info!(%table, "a table joins the publication; what it holds already is not told");
        }
        if let Some(horizon) = horizon {
            self.joining.push(Joining { tables: tables.to_vec(), horizon, since: Instant::now(), warned: false });
        }
    }

    /// Says from where on tables that joined are told whole.
    ///
    /// A transaction that was open then may have written into them before: these rows are not told, and those that it
    /// writes later need not be on servers that do not tell open transactions of a change to a publication.
    async fn complete(&mut self) -> Result<(), SourceError> {
        if self.joining.is_empty() {
            return Ok(());
        }
        let (oldest, lsn) = self.control.oldest_transaction().await?;
        for joining in &mut self.joining {
            let tables = joining.tables.join(", ");
            if oldest >= joining.horizon {
                info!(%tables, complete_from = %lsn, "told whole from here on: what was open when they joined has ended");
            } else if joining.since.elapsed() > OPEN_MAX && !joining.warned {
                joining.warned = true;
                warn!(
                    %tables, transaction = oldest,
                    "not told whole yet: a transaction is open that may have written into them before they joined"
                );
            }
        }
        self.joining.retain(|joining| oldest < joining.horizon);
        Ok(())
    }
}

impl Seen {
    /// Names of the tables that are published, and were not before.
    pub(crate) fn joined_since(&self, before: &Seen) -> Vec<String> {
        let joined = self.tables.iter().filter(|(oid, _)| !before.tables.contains_key(oid));
        joined.map(|(_, name)| name.clone()).collect()
    }

    pub(crate) fn of(survey: &Survey, config: &Config, lsn: Lsn) -> Seen {
        let Publications { rows, inserts } = &survey.there;
        let covered = |table: &&CatalogTable| [rows, inserts].into_iter().flatten().any(|there| there.covers(table));
        let tables = wanted(survey, config).into_iter().filter(covered);
        let tables = tables.map(|table| (table.oid, table.full_name())).collect();
        Seen { publications: survey.there.clone(), tables, lsn, time: SystemTime::now() }
    }

    /// Whether all that was published still is. Gives what ought to be said of tables that are gone by themselves.
    pub(crate) fn compare(&self, slot: &str, survey: &Survey, config: &Config) -> Result<Vec<String>, SourceError> {
        let lost = |missing: Missing| {
            let (slot, Missing { what, mend }) = (slot.to_owned(), missing);
            let since = self.to_string();
            SourceError::SlotLost(Box::new(SlotFault::Unpublished { slot, what, since, mend }))
        };
        let now = &survey.there;
        for (was, is) in [(&self.publications.rows, &now.rows), (&self.publications.inserts, &now.inserts)] {
            let Some(was) = was else { continue };
            let Some(is) = is else {
                let (publication, slot) = (was.name.clone(), slot.to_owned());
                let gone = SlotFault::PublicationGone { publication, slot, confirmed: self.lsn };
                return Err(SourceError::SlotLost(Box::new(gone)));
            };
            compare(was, is, &survey.tables, &wanted(survey, config)).map_err(lost)?;
        }
        let covered = |table: &CatalogTable| [&now.rows, &now.inserts].into_iter().flatten().any(|is| is.covers(table));
        let mut said = Vec::new();
        let wanted = wanted(survey, config);
        for (oid, name) in &self.tables {
            match survey.tables.iter().find(|table| table.oid == *oid) {
                None => said.push(format!("{name} was dropped; what was committed before is told")),
                Some(table) if !wanted.iter().any(|wanted| wanted.oid == *oid) => {
                    let now = table.full_name();
                    if now != *name && table.root.is_none() {
                        said.push(format!(
                            "{name} is called {now} now, which the config does not name: it is not told any more"
                        ));
                    }
                }
                Some(table) if !covered(table) => {
                    let name = table.full_name();
                    return Err(lost(Missing {
                        what: format!("{name} is in no publication any more"),
                        mend: put_back(self.publications.rows.as_ref().map_or("", |rows| &rows.name), table),
                    }));
                }
                Some(table) if survey.held.contains(oid) && table.full_name() != *name => said.push(format!(
                    "{name} is called {now} now, and its rows are held: the first one that is read under that name ends the run; give it its \
                     name back, or name it so in the config and start again",
                    now = table.full_name()
                )),
                Some(_) => {}
            }
        }
        Ok(said)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.lsn, humantime::format_rfc3339_seconds(self.time))
    }
}

fn wanted<'a>(survey: &'a Survey, config: &Config) -> Vec<&'a CatalogTable> {
    // A config whose patterns do not compile does not come this far.
    survey.patterns(config).ok().map(|patterns| patterns.choose(&survey.tables)).unwrap_or_default()
}

/// Whether a publication tells all that it told.
fn compare(
    was: &Publication,
    is: &Publication,
    tables: &[CatalogTable],
    wanted: &[&CatalogTable],
) -> Result<(), Missing> {
    let (name, sql_name) = (&is.name, escape_identifier(&is.name));
    if was.oid != is.oid {
        return Err(Missing {
            what: format!("publication {name} was dropped and made again"),
            mend: "start again, after `offshoot drop` if that does not stream, and load again what was missed".into(),
        });
    }
    let less: Vec<_> = was.publishes.iter().filter(|operation| !is.publishes.contains(operation)).copied().collect();
    if !less.is_empty() {
        let all = was.publishes.join(", ");
        return Err(Missing {
            what: format!("publication {name} does not publish {} any more", less.join(", ")),
            mend: format!(
                "ALTER PUBLICATION {sql_name} SET (publish = '{all}'), start again, and load again what was missed; if it \
                 is meant, just start again"
            ),
        });
    }
    if was.via_root != is.via_root {
        let before = was.via_root;
        return Err(Missing {
            what: format!(
                "publish_via_partition_root of publication {name} was changed, so partitions go to other topics"
            ),
            mend: format!(
                "ALTER PUBLICATION {sql_name} SET (publish_via_partition_root = {before}) and start again; if it is meant, \
                 just start again"
            ),
        });
    }
    for entry in was.tables.iter().filter(|entry| !is.tables.iter().any(|now| now.oid == entry.oid)) {
        // Dropped by the application, or renamed to something that nobody asked for.
        let Some(table) = tables.iter().find(|table| table.oid == entry.table) else { continue };
        if !wanted.iter().any(|wanted| wanted.oid == table.oid) {
            continue;
        }
        let full_name = table.full_name();
        return Err(match is.tables.iter().find(|now| now.table == entry.table) {
            None => Missing {
                what: format!("{full_name} was taken out of publication {name}"),
                mend: put_back(name, table),
            },
            Some(now) => {
                let with = match (&now.columns, now.row_filter) {
                    (Some(columns), true) => format!(", with a row filter and only columns {}", columns.join(", ")),
                    (Some(columns), false) => format!(", with only columns {}", columns.join(", ")),
                    (None, true) => ", with a row filter".to_owned(),
                    (None, false) => String::new(),
                };
                Missing {
                    what: format!("{full_name} was taken out of publication {name} and put into it again{with}"),
                    mend: "start again, and load again what was missed; where the publication is ours, the next start puts \
                           it in as the config asks"
                        .into(),
                }
            }
        });
    }
    Ok(())
}

/// The SQL that publishes a table again, and how to go on.
pub(crate) fn put_back(publication: &str, table: &CatalogTable) -> String {
    let (name, table_name) = (escape_identifier(publication), table.full_name());
    let (schema, relation) = (escape_identifier(&table.schema), escape_identifier(&table.name));
    format!(
        "ALTER PUBLICATION {name} ADD TABLE ONLY {schema}.{relation}, start again, and load again what was missed; if it is \
         meant, take {table_name} out of changes.tables and start again"
    )
}

/// Whether a lock, or a slow server, kept us from a change: nothing was changed, and it is worth another try.
pub(crate) fn is_busy(error: &SourceError) -> bool {
    let SourceError::Passing(error) = error else { return false };
    matches!(error.downcast_ref::<Fault>(), Some(Fault::Busy { .. }))
}

#[cfg(test)]
mod tests {
    use super::{super::publication::PublishedTable, *};

    fn catalog(oid: u32, name: &str) -> CatalogTable {
        CatalogTable { oid, schema: "public".into(), name: name.into(), identified: true, ..Default::default() }
    }

    fn entry(oid: u32, table: u32, name: &str) -> PublishedTable {
        PublishedTable { oid, table, schema: "public".into(), name: name.into(), ..Default::default() }
    }

    fn publication(tables: Vec<PublishedTable>) -> Publication {
        let publishes = vec!["insert", "update", "delete", "truncate"];
        Publication { oid: 9, name: "p".into(), publishes, tables, ..Default::default() }
    }

    #[track_caller]
    fn missing(is: Publication, tables: &[CatalogTable], words: &str) {
        let was = publication(vec![entry(1, 10, "a"), entry(2, 20, "b")]);
        let found = compare(&was, &is, tables, &tables.iter().collect::<Vec<_>>());
        match (found, words) {
            (Ok(()), "") => {}
            (Err(found), words) if !words.is_empty() => assert!(found.what.contains(words), "{found:?}"),
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn what_is_less_than_before_is_missing() {
        let tables = [catalog(10, "a"), catalog(20, "b")];
        let both = || vec![entry(1, 10, "a"), entry(2, 20, "b")];
        missing(publication(both()), &tables, "");
        missing(publication(vec![entry(1, 10, "a")]), &tables, "public.b was taken out of publication p");
        missing(publication(vec![entry(1, 10, "a"), entry(3, 20, "b")]), &tables, "and put into it again");
        missing(Publication { publishes: vec!["insert"], ..publication(both()) }, &tables, "update, delete, truncate");
        missing(Publication { via_root: true, ..publication(both()) }, &tables, "publish_via_partition_root");
        missing(Publication { oid: 8, ..publication(both()) }, &tables, "made again");
    }

    #[test]
    fn what_the_application_dropped_renamed_or_added_is_not_missing() {
        let there = || publication(vec![entry(1, 10, "a")]);
        missing(there(), &[catalog(10, "a")], "");
        missing(publication(vec![entry(1, 10, "c"), entry(2, 20, "b")]), &[catalog(10, "c"), catalog(20, "b")], "");
        let more = vec![entry(1, 10, "a"), entry(2, 20, "b"), entry(3, 30, "c")];
        missing(publication(more), &[catalog(10, "a"), catalog(20, "b"), catalog(30, "c")], "");
    }
}
