//! Config and server -> findings: what is there, what is missing, and what mends it. IO.

use std::collections::BTreeMap;

use bytesize::ByteSize;
use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Row;

use super::{
    Ends,
    catalog::{Control, ServerFacts},
    fault::{POOLER, Sorted},
    publication::Plan,
    slot::{Slot, slot_sql},
};
use crate::{
    causes::told,
    config::Config,
    finding::{Finding, Level},
    lsn::Lsn,
    mapping::{catalog::Catalog, rules::Rules},
    source::SourceError,
};

/// What `inspect` found.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// Of the server, in the order in which they were looked at.
    pub findings: Vec<Finding>,
    /// A finding per table: its key and its replica identity, and what they mean for its records.
    pub tables: Vec<Finding>,
    /// What the config asks for and the database does not have.
    pub misfits: Vec<Finding>,
    /// The tables whose rows leave, schema and name; empty when that cannot be said.
    pub published: Vec<(String, String)>,
    /// The slot and the cluster, once they were looked at.
    pub slot: Option<SlotSeen>,
}

/// What the progress record in Kafka is compared with.
#[derive(Clone, Debug)]
pub struct SlotSeen {
    /// What the slot has confirmed; `None` when there is none.
    pub confirmed: Option<Lsn>,
    /// Which cluster it is, if we may know.
    pub system_identifier: Option<String>,
}

/// What passes by itself may also be mended.
const UNREACHED: &str =
    "see that the server runs, that `source.postgres` names it, and that the network and its firewalls let us through";

impl Finding {
    /// Our texts say after a semicolon how it is mended.
    fn error(error: &SourceError) -> Finding {
        let text = format!("failed to {}", told(error));
        let split =
            |at: &str| text.split_once(at).map(|(what, _)| (what.to_owned(), text[what.len() + 2..].to_owned()));
        // A server's words may have a semicolon of their own.
        let said = match error {
            SourceError::Passing(error) | SourceError::Refused(error) => error.downcast_ref::<Sorted>(),
            _ => None,
        };
        let said = said.and_then(|said| split(&format!("; {}", said.mend.as_ref()?)));
        let (what, mend) = match said.or_else(|| split("; run this in database")).or_else(|| split("; ")) {
            Some((what, mend)) => (what, as_lines(&mend)),
            None if matches!(error, SourceError::Passing(_)) => (text, UNREACHED.to_owned()),
            None => (text, "the server's log says more".to_owned()),
        };
        Finding::cross(what, mend)
    }
}

/// SQL that can be pasted stands on a line of its own.
fn as_lines(mend: &str) -> String {
    if !["ALTER ", "CREATE ", "GRANT ", "SELECT "].iter().any(|verb| mend.starts_with(verb)) || mend.contains(";\n") {
        return mend.to_owned();
    }
    for word in ["and", "or"] {
        if let Some((sql, rest)) = mend.split_once(&format!(", {word} ")) {
            return format!("{sql};\n-- {word} {rest}");
        }
    }
    format!("{};", mend.trim_end_matches(';'))
}

/// Looks at everything that `connect` needs, and changes nothing. What was found until then stays when it is given up.
///
/// A server that cannot be reached or does not let us in is a finding, and the last one.
pub async fn inspect(config: &Config, inspection: &mut Inspection) {
    if let Err(error) = inspect_into(inspection, config).await {
        inspection.findings.push(Finding::error(&error));
    }
}

async fn inspect_into(inspection: &mut Inspection, config: &Config) -> Result<(), SourceError> {
    let ends = Ends::of(config)?;
    let control = ends.control().await?;
    let server = control.server().await?;
    let setup = control.setup().await?;
    let slot = control.slot(&config.slot()).await?;
    let findings = &mut inspection.findings;
    if slot.is_none() {
        findings.extend(control.forgotten_slots(&config.slot()).await?);
    }
    look_at_server(&server, &setup, &control, findings);
    look_at_role(&server, &setup, findings);
    let full = look_at_room(&server, &setup, slot.as_ref(), config, findings);
    look_at_timeouts(&setup, findings);
    if !setup.options_arrived {
        let what = "the server did not get our start-up options".to_owned();
        findings.push(Finding::cross(what, POOLER.to_owned()).about("connection"));
    } else if server.may_replicate && !full {
        log_in_to_replicate(&ends, &control, findings).await;
    }
    look_at_slot(&config.slot(), slot.as_ref(), &server, config.source.create, findings);
    let foreign = slot.as_ref().is_some_and(|slot| slot.check(&config.slot(), &server.database).is_err());
    let ours = slot.filter(|_| !foreign);
    if !foreign {
        let confirmed = ours.as_ref().map(|slot| slot.confirmed);
        inspection.slot = Some(SlotSeen { confirmed, system_identifier: control.system_identifier().await? });
    }
    match control.plan(config, server.version_num, ours.as_ref()).await {
        Ok((plan, catalog)) => {
            if let Some(catalog) = &catalog {
                look_at_load(inspection, config, catalog, &server, &setup, ours.is_some(), &control).await?;
            }
            look_at_plan(inspection, plan, config, &server, &control).await?
        }
        Err(error @ SourceError::Config(_)) => inspection.misfits.push(Finding::error(&error)),
        Err(error) => inspection.findings.push(Finding::error(&error).about("publications")),
    }
    Ok(())
}

/// What only `check` wants to know of a server.
#[derive(Debug)]
struct Setup {
    superuser: bool,
    /// May replicate by its attribute, and not as a superuser or by a role that it is a member of.
    replication: bool,
    may_create: bool,
    host: Hosting,
    /// False behind a pooler that swallows them.
    options_arrived: bool,
    slot_wal_keep: String,
    /// PostgreSQL 18's; `None` when it is off or not known there.
    slot_idle: Option<String>,
    sender_timeout: String,
}

/// Who runs the server, and so how a setting is changed and replication granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hosting {
    Own,
    Rds,
    CloudSql,
    Azure,
}

impl Hosting {
    fn of(found: Option<&str>) -> Hosting {
        match found {
            Some("rds") => Hosting::Rds,
            Some("cloudsql") => Hosting::CloudSql,
            Some("azure") => Hosting::Azure,
            _ => Hosting::Own,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Hosting::Own => "",
            Hosting::Rds => ", on Amazon RDS or Aurora",
            Hosting::CloudSql => ", on Google Cloud SQL",
            Hosting::Azure => ", on Azure Flexible Server",
        }
    }

    /// How a setting is changed that a reload or a restart takes up.
    fn set(self, name: &str, value: &str, restart: bool) -> String {
        let then = |words: &'static str| if restart { words } else { "" };
        match self {
            Hosting::Own if restart => format!("ALTER SYSTEM SET {name} = {value};\n-- then restart the server"),
            Hosting::Own => format!("ALTER SYSTEM SET {name} = {value};\nSELECT pg_reload_conf();"),
            Hosting::Rds => {
                format!("set {name} = {value} in the parameter group{}", then(", then reboot the instance"))
            }
            Hosting::CloudSql => {
                format!("set the flag {name} = {value} on the instance{}", then(", which restarts it"))
            }
            Hosting::Azure => format!("set the server parameter {name} = {value}{}", then(", then restart the server")),
        }
    }

    fn set_wal_level(self) -> String {
        match self {
            Hosting::Rds => self.set("rds.logical_replication", "1", true),
            Hosting::CloudSql => self.set("cloudsql.logical_decoding", "on", true),
            Hosting::Own | Hosting::Azure => self.set("wal_level", "logical", true),
        }
    }

    fn grant_replication(self, user: &str) -> String {
        let user = escape_identifier(user);
        match self {
            Hosting::Rds => format!("GRANT rds_replication TO {user};"),
            Hosting::Own => format!("ALTER ROLE {user} REPLICATION;"),
            Hosting::CloudSql => format!("ALTER ROLE {user} REPLICATION;  -- as a member of cloudsqlsuperuser"),
            Hosting::Azure => format!("ALTER ROLE {user} REPLICATION;  -- as the server's admin"),
        }
    }
}

impl Control {
    async fn setup(&self) -> Result<Setup, SourceError> {
        let rows = self.query(SETUP, &[]).await?;
        let row = &rows[0];
        Ok(Setup {
            superuser: row.get("superuser"),
            replication: row.get("replication"),
            may_create: row.get("may_create"),
            host: Hosting::of(row.get("host")),
            options_arrived: row.get("options_arrived"),
            slot_wal_keep: row.get("slot_wal_keep"),
            slot_idle: row.get::<_, Option<String>>("slot_idle").filter(|idle| idle != "0"),
            sender_timeout: row.get("sender_timeout"),
        })
    }
}

fn look_at_server(server: &ServerFacts, setup: &Setup, control: &Control, findings: &mut Vec<Finding>) {
    let kind = if server.standby { "a standby" } else { "a primary" };
    let (address, host) = (&control.who.address, setup.host.name());
    let what = format!("PostgreSQL {}, {kind}{host}, at {address}, database {}", server.version, server.database);
    findings.push(Finding::ok(what).about("server"));
    if server.version_num < 140_000 {
        let mend = "PostgreSQL 14 is the oldest that is supported: upgrade the server";
        findings.push(Finding::cross(server.version.clone(), mend.into()).about("version"));
    }
    findings.push(match server.wal_level.as_str() {
        "logical" => Finding::ok("logical".into()).about("wal_level"),
        level => Finding::cross(level.into(), setup.host.set_wal_level()).about("wal_level"),
    });
    if server.standby && server.version_num < 160_000 {
        let what = "a standby decodes its log from PostgreSQL 16 on".to_owned();
        let mend = "name the primary in source.postgres, or all hosts with target_session_attrs=read-write";
        findings.push(Finding::cross(what, mend.into()).about("standby"));
    }
    if server.encoding == "SQL_ASCII" {
        let mend = "see that everybody writes UTF-8 into it; what is not UTF-8 stops the stream";
        findings.push(Finding::warning("SQL_ASCII, which converts nothing".into(), mend.into()).about("encoding"));
    }
}

fn look_at_role(server: &ServerFacts, setup: &Setup, findings: &mut Vec<Finding>) {
    let user = &server.user;
    let create =
        if setup.may_create { "may make a publication of tables that it owns" } else { "may make no publication" };
    findings.push(
        match server.may_replicate {
            _ if setup.superuser => Finding::warning(
                format!("{user} is a superuser; REPLICATION alone is enough"),
                "docs/operations.md, \"Before the first start\", has the SQL of a role that may only replicate".into(),
            ),
            true if setup.replication => Finding::ok(format!("{user} has REPLICATION; it {create}")),
            true => Finding::ok(format!("{user} replicates as a member of rds_replication; it {create}")),
            false => Finding::cross(format!("{user} may not replicate"), setup.host.grant_replication(user)),
        }
        .about("role"),
    );
}

/// Whether no walsender is free.
fn look_at_room(
    server: &ServerFacts,
    setup: &Setup,
    slot: Option<&Slot>,
    config: &Config,
    findings: &mut Vec<Finding>,
) -> bool {
    let (slots, slots_max) = server.slots;
    let what = format!("{slots} of {slots_max} in use");
    let more = |max: i64| (max + 10).to_string();
    findings.push(
        match slot {
            None if slots >= slots_max => Finding::cross(
                what,
                format!(
                    "{}\n-- or drop a slot that nobody needs: SELECT slot_name, active, wal_status FROM pg_replication_slots",
                    setup.host.set("max_replication_slots", &more(slots_max), true)
                ),
            ),
            _ => Finding::ok(what),
        }
        .about("slots"),
    );
    let (senders, senders_max) = server.walsenders;
    // Whoever reads from our slot has one, and gives it to us.
    let full = senders >= senders_max && slot.is_none_or(|slot| slot.active_pid.is_none());
    let what = format!("{senders} of {senders_max} in use");
    findings.push(
        match full {
            true => Finding::cross(what, setup.host.set("max_wal_senders", &more(senders_max), true)),
            false => Finding::ok(what),
        }
        .about("walsenders"),
    );
    findings.push(
        if server.max_slot_wal_keep_mb < 0 {
            let what = "unlimited: while nobody reads from the slot, its log can fill the server's disk".to_owned();
            let mend = setup.host.set("max_slot_wal_keep_size", "'50GB'", false);
            Finding::warning(what, format!("{mend}\n-- or what the disk has to spare"))
        } else {
            let what = format!("{}: beyond it the slot is lost and the disk is not", setup.slot_wal_keep);
            Finding::ok(what)
        }
        .about("max_slot_wal_keep_size"),
    );
    if let Some(idle) = &setup.slot_idle {
        let (name, slot) = ("idle_replication_slot_timeout", config.slot());
        let what = format!("{idle}: slot {slot} is lost when offshoot is stopped for longer");
        findings.push(Finding::warning(what, setup.host.set(name, "0", false)).about(name));
    }
    full
}

fn look_at_timeouts(setup: &Setup, findings: &mut Vec<Finding>) {
    let what = match setup.sender_timeout.as_str() {
        "0" => "off; our own session asks for 10s, so that the slot of a host that vanished comes free".to_owned(),
        timeout => format!("{timeout}; our own session asks for 10s"),
    };
    findings.push(Finding::ok(what).about("wal_sender_timeout"));
}

async fn log_in_to_replicate(ends: &Ends, control: &Control, findings: &mut Vec<Finding>) {
    let finding = match ends.greeting(control).await {
        Ok(mut greeting) => {
            let system = greeting.identify().await;
            greeting.close().await;
            system.map(|system| {
                Finding::ok(format!("logged in; system {}, timeline {}", system.identifier, system.timeline))
            })
        }
        Err(error) => Err(error),
    };
    findings.push(finding.unwrap_or_else(|error| Finding::error(&error)).about("replication"));
}

fn look_at_slot(name: &str, slot: Option<&Slot>, server: &ServerFacts, create: bool, findings: &mut Vec<Finding>) {
    let Some(slot) = slot else {
        findings.push(
            match create {
                true => Finding::ok(format!("{name} is not there; it will be made at the next start")),
                false => Finding::cross(format!("{name} is not there"), format!("{};", slot_sql(name, server))),
            }
            .about("slot"),
        );
        return;
    };
    if let Err(error) = slot.check(name, &server.database) {
        findings.push(Finding::error(&error).about("slot"));
        return;
    }
    let holder = slot.active_pid.map_or("free".to_owned(), |pid| format!("held by PID {pid}"));
    let (confirmed, retained) = (slot.confirmed, ByteSize::b(slot.retained_bytes));
    let what = format!("{name}, {holder}, confirmed {confirmed}, the server keeps {retained} of log for it");
    findings.push(
        match slot.wal_status.as_str() {
            "unreserved" => Finding::warning(what, "read from it soon: its log is about to be removed".into()),
            _ => Finding::ok(what),
        }
        .about("slot"),
    );
    if slot.failover == Some(false) && !server.standby {
        let what =
            format!("{name} was made without failover: standbys do not keep it, and it is gone after a fail-over");
        let mend = format!(
            "stop offshoot, and then: psql 'dbname={} replication=database' -c \
             'ALTER_REPLICATION_SLOT {} (FAILOVER true)'",
            server.database,
            escape_identifier(name)
        );
        findings.push(Finding::warning(what, mend).about("failover"));
    }
}

async fn look_at_plan(
    inspection: &mut Inspection,
    plan: Plan,
    config: &Config,
    server: &ServerFacts,
    control: &Control,
) -> Result<(), SourceError> {
    let details = control.query(TABLES, &[]).await?;
    let names = plan.names.join(", ");
    let sql: String = plan.statements.iter().map(|statement| format!("{statement};\n")).collect();
    let what = match plan.statements.as_slice() {
        [] => Ok(format!("{names}, as the config asks")),
        _ if !config.source.create => Err(format!("{names} are not as the config asks, and source.create is false")),
        _ if server.standby => Err(format!("{names} are not as the config asks, and can be made on the primary only")),
        statements => match lacks(statements, &plan.names, &details, control).await? {
            lacking if lacking.is_empty() => Ok(format!("{names} will be made or changed at the next start")),
            lacking => Err(format!(
                "{names} are not as the config asks, and {} may not make them so: it lacks {}",
                server.user,
                lacking.join(", ")
            )),
        },
    };
    let mend = (!sql.is_empty()).then(|| match what {
        Ok(_) => sql.trim_end().to_owned(),
        Err(_) => format!("-- in database {}, as one who owns the tables:\n{}", server.database, sql.trim_end()),
    });
    let (level, what) = match what {
        Ok(what) => (Level::Ok, what),
        Err(what) => (Level::Cross, what),
    };
    inspection.findings.push(Finding { level, mend, ..Finding::ok(what) }.about("publications"));
    // What is said of a table is said in its line.
    let (of_tables, rest): (Vec<_>, Vec<_>) = plan.findings.into_iter().partition(|finding| !finding.about.is_empty());
    inspection.findings.extend(rest.into_iter().map(|finding| finding.about("publications")));
    let mut said: BTreeMap<_, _> = of_tables.into_iter().map(|finding| (finding.about.clone(), finding)).collect();
    for row in &details {
        let table = (row.get("schema"), row.get("name"));
        let name = full_name(row);
        match said.remove(&name) {
            Some(finding) => inspection.tables.push(finding),
            None if plan.tables.contains(&table) => inspection.tables.push(of_table(row).about(name)),
            None => {}
        }
    }
    inspection.published = plan.changes;
    Ok(())
}

/// Whether the rows that old values and look-ups need can be loaded.
async fn look_at_load(
    inspection: &mut Inspection,
    config: &Config,
    catalog: &Catalog,
    server: &ServerFacts,
    setup: &Setup,
    has_slot: bool,
    control: &Control,
) -> Result<(), SourceError> {
    // What is wrong with the rules is told elsewhere.
    let Ok(rules) = Rules::compile(config, catalog) else { return Ok(()) };
    let held: Vec<_> = rules.tables.iter().filter(|table| table.held).collect();
    if held.is_empty() {
        return Ok(());
    }
    let user = escape_identifier(&server.user);
    for table in held {
        let rows = control.query(READABLE, &[&table.schema, &table.name]).await?;
        let said = |row: &Row| {
            let [schema, name] = ["schema", "name"].map(|part| escape_identifier(row.get(part)));
            let mend = match (row.get("usable"), row.get("readable"), row.get("hidden")) {
                (false, _, _) => {
                    format!("GRANT USAGE ON SCHEMA {schema} TO {user};\nGRANT SELECT ON {schema}.{name} TO {user};")
                }
                (_, false, _) => format!("GRANT SELECT ON {schema}.{name} TO {user};"),
                (_, _, true) => format!("ALTER ROLE {user} BYPASSRLS;  -- as a superuser: a policy would hide rows"),
                _ => return None,
            };
            Some(mend)
        };
        let mends: Vec<String> = rows.iter().filter_map(said).collect();
        if !mends.is_empty() {
            let what = format!("{} may not read its rows, which old values or look-ups need", server.user);
            inspection.findings.push(Finding::cross(what, mends.join("\n")).about(table.full_name()));
        }
    }
    // The load has a slot of its own beside the pipeline's, and a walsender.
    let free = |(used, max): (i64, i64)| max - used - i64::from(!has_slot);
    for (name, room) in [("max_replication_slots", free(server.slots)), ("max_wal_senders", free(server.walsenders))] {
        if room < 1 {
            let (_, max) = if name == "max_wal_senders" { server.walsenders } else { server.slots };
            let what = format!("{name} leaves no room for the temporary slot by which rows are loaded");
            inspection
                .findings
                .push(Finding::cross(what, setup.host.set(name, &(max + 10).to_string(), true)).about("load"));
        }
    }
    Ok(())
}

/// The rights that the statements want and we do not have.
async fn lacks(
    statements: &[String],
    publications: &[String],
    tables: &[Row],
    control: &Control,
) -> Result<Vec<String>, SourceError> {
    let rows = control.query(RIGHTS, &[&publications]).await?;
    let row = &rows[0];
    let mut lacking = Vec::new();
    if statements.iter().any(|sql| sql.starts_with("CREATE PUBLICATION")) && !row.get::<_, bool>("may_create") {
        lacking.push("CREATE on the database".to_owned());
    }
    if let Some(foreign) = row.get::<_, Option<String>>("foreign") {
        lacking.push(format!("ownership of publication {foreign}"));
    }
    let named = |row: &&Row| {
        let name = [row.get("schema"), row.get("name")].map(|part: &str| escape_identifier(part)).join(".");
        statements.iter().any(|sql| sql.contains(&name))
    };
    let foreign: Vec<_> =
        tables.iter().filter(|row| !row.get::<_, bool>("owned")).filter(named).map(full_name).collect();
    match foreign.as_slice() {
        [] => {}
        [one] => lacking.push(format!("ownership of {one}")),
        [first, rest @ ..] => lacking.push(format!("ownership of {first} and {} more", rest.len())),
    }
    Ok(lacking)
}

fn full_name(row: &Row) -> String {
    format!("{}.{}", row.get::<_, &str>("schema"), row.get::<_, &str>("name"))
}

/// What the key and the replica identity of a table mean for its records.
fn of_table(row: &Row) -> Finding {
    let columns = |column| row.get::<_, Option<Vec<String>>>(column).filter(|names| !names.is_empty());
    let key = columns("primary_key").or_else(|| columns("unique_key")).map(|names| names.join(", "));
    match (row.get::<_, &str>("identity"), key, columns("identity_index")) {
        ("i", _, Some(index)) => {
            Finding::ok(format!("key {}, of its replica identity; deletes carry the key only", index.join(", ")))
        }
        ("f", Some(key), _) => {
            Finding::ok(format!("key {key}; replica identity full: updates and deletes carry the whole old row"))
        }
        ("f", None, _) => Finding::warning(
            "no key; replica identity full: updates and deletes carry the whole old row; no order between records"
                .into(),
            "records without a key go to any partition: a primary key brings those of a row into one, in order".into(),
        ),
        (_, Some(key), _) => Finding::ok(format!("key {key}; deletes carry the key only")),
        (_, None, _) => Finding::ok("no key".into()),
    }
}

/// The setting of a managed server tells who manages it, and the roles that it comes with.
const SETUP: &str = "
SELECT r.rolsuper AS superuser, r.rolreplication AS replication,
  has_database_privilege(current_database(), 'CREATE') AS may_create,
  CASE
    WHEN current_setting('rds.logical_replication', true) IS NOT NULL THEN 'rds'
    WHEN current_setting('cloudsql.logical_decoding', true) IS NOT NULL THEN 'cloudsql'
    WHEN current_setting('azure.extensions', true) IS NOT NULL THEN 'azure'
    ELSE (SELECT CASE c.rolname WHEN 'cloudsqlsuperuser' THEN 'cloudsql' WHEN 'azure_pg_admin' THEN 'azure' ELSE 'rds' END
      FROM pg_roles c WHERE c.rolname IN ('rds_replication', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin')
      LIMIT 1)
  END AS host,
  current_setting('search_path') = 'pg_catalog' AS options_arrived,
  current_setting('max_slot_wal_keep_size') AS slot_wal_keep,
  current_setting('idle_replication_slot_timeout', true) AS slot_idle,
  current_setting('wal_sender_timeout') AS sender_timeout
FROM pg_roles r WHERE r.rolname = current_user";

/// Per table with rows, of one that may be partitioned: whether its schema may be used, all of it be read (`ctid` is asked for), and rows are hidden.
const READABLE: &str = "
WITH RECURSIVE leaf(oid) AS (
  SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = $1::text AND c.relname = $2::text AND c.relkind IN ('r', 'p')
  UNION ALL
  SELECT i.inhrelid FROM leaf JOIN pg_class p ON p.oid = leaf.oid AND p.relkind = 'p'
    JOIN pg_inherits i ON i.inhparent = leaf.oid
)
SELECT n.nspname AS schema, c.relname AS name, has_schema_privilege(n.oid, 'USAGE') AS usable,
  has_table_privilege(c.oid, 'SELECT') AS readable, row_security_active(c.oid) AS hidden
FROM leaf JOIN pg_class c ON c.oid = leaf.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' ORDER BY 1, 2";

const RIGHTS: &str = "
SELECT has_database_privilege(current_database(), 'CREATE') AS may_create,
  (SELECT string_agg(p.pubname, ', ' ORDER BY p.pubname) FROM pg_publication p
     WHERE p.pubname = ANY ($1::text[]) AND NOT pg_has_role(p.pubowner, 'USAGE')) AS foreign";

const TABLES: &str = "
SELECT n.nspname AS schema, c.relname AS name, c.relreplident::text AS identity, pg_has_role(c.relowner, 'USAGE') AS owned,
  (SELECT array_agg(a.attname ORDER BY k.place) FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(attnum, place),
     pg_attribute a WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts
     AND a.attrelid = c.oid AND a.attnum = k.attnum) AS primary_key,
  (SELECT array_agg(a.attname ORDER BY k.place) FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(attnum, place),
     pg_attribute a WHERE i.indrelid = c.oid AND i.indisreplident AND k.place <= i.indnkeyatts
     AND a.attrelid = c.oid AND a.attnum = k.attnum) AS identity_index,
  (SELECT array_agg(a.attname ORDER BY k.place) FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid,
     unnest(i.indkey) WITH ORDINALITY k(attnum, place), pg_attribute a
     WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
     AND k.place <= i.indnkeyatts AND a.attrelid = c.oid AND a.attnum = k.attnum
     GROUP BY ic.relname HAVING bool_and(a.attnotnull) ORDER BY ic.relname LIMIT 1) AS unique_key
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY n.nspname, c.relname";
