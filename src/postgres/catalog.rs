//! Catalog -> what the database says about itself: the server, its tables, their keys and types. IO.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use postgres_types::{Kind, Oid, PgLsn, ToSql, Type};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_postgres::{
    Client, Row,
    config::{ChannelBinding as Binding, SslMode, SslNegotiation},
};
use tracing::info;

use super::{
    Log,
    connect::{Connected, address, connect},
    fault::{Fault, Step, Who, sort},
    url::{ChannelBinding, Host, Target},
    wire::{Question, TableFacts, TableKind, TypeFact},
};
use crate::{causes::told, change::Ancestor, lsn::Lsn, source::SourceError};

/// A question that takes longer is given up and asked again later: nothing may hang behind a lock of the monolith's.
const STATEMENT_TIMEOUT: &str = "30s";
/// Longer than any healthy lock, shorter than what an application notices behind ours.
const LOCK_TIMEOUT: &str = "5s";
/// As the server's own timeout, with room for the way.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// How long the catalog is asked again that does not show a commit yet.
const SEEN_MAX: Duration = Duration::from_secs(10);
const SEEN_INTERVAL: Duration = Duration::from_millis(10);

/// An ordinary session beside the replication session: what is asked of the catalog, and the first to hear of a
/// shutdown.
#[derive(Clone)]
pub(crate) struct Control {
    pub(crate) client: Arc<Client>,
    lost: Arc<watch::Sender<Option<String>>>,
    pub(crate) host: Host,
    pub(crate) who: Who,
}

/// The server and our role on it.
#[derive(Clone, Debug)]
pub(crate) struct ServerFacts {
    pub(crate) version: String,
    pub(crate) version_num: i32,
    pub(crate) wal_level: String,
    pub(crate) database: String,
    pub(crate) user: String,
    pub(crate) encoding: String,
    pub(crate) standby: bool,
    pub(crate) may_replicate: bool,
    pub(crate) slots: (i64, i64),
    pub(crate) walsenders: (i64, i64),
    pub(crate) max_slot_wal_keep_mb: i64,
}

/// A table that could be published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CatalogTable {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// For a partition.
    pub(crate) root: Option<Ancestor>,
    /// A partitioned table has no rows of its own: they are its partitions'.
    pub(crate) partitioned: bool,
    /// Unlogged tables are not in the log.
    pub(crate) unlogged: bool,
    /// Publishing its updates and deletes breaks nothing: the log can name its old rows.
    pub(crate) identified: bool,
    /// Some of its columns are to be left out.
    pub(crate) narrow: Option<Narrow>,
}

/// What is left of a table without the columns that `source.omit_columns` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Narrow {
    /// Those that are published, in the table's order.
    pub(crate) columns: Vec<String>,
    /// Those that are left out.
    pub(crate) omitted: Vec<String>,
    /// Why a publication of updates with such a list would make the application's UPDATE and DELETE fail.
    pub(crate) breaks: Option<&'static str>,
}

impl Control {
    /// Connects to the first host that answers, and logs in.
    pub(crate) async fn open(target: &Target, slot: &str, application_name: &str) -> Result<Control, SourceError> {
        let (mut failed, mut texts) = (Vec::new(), Vec::new());
        for host in &target.hosts {
            let who = Who {
                address: address(host),
                user: target.user.clone(),
                database: target.database.clone(),
                slot: slot.to_owned(),
                passfile: host.passfile.clone(),
                certificate: target.tls.identity.is_some(),
                table: None,
            };
            match Control::open_host(target, host, who, application_name).await {
                Ok(control) if !target.primary_only || !control.is_standby().await? => return Ok(control),
                Ok(_) => texts.push(format!("{} is a standby", address(host))),
                // The next may be better; what a server refuses, the others refuse too.
                Err(SourceError::Passing(error)) => {
                    texts.push(told(&*error));
                    failed.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(match failed.len() {
            0 => {
                Fault::OnlyStandbys { hosts: target.hosts.iter().map(address).collect::<Vec<_>>().join(", ") }.passing()
            }
            1 if target.hosts.len() == 1 => SourceError::Passing(failed.remove(0)),
            _ => Fault::Unreached { what: texts.join(", ") }.passing(),
        })
    }

    async fn open_host(target: &Target, host: &Host, who: Who, application_name: &str) -> Result<Control, SourceError> {
        let mut config = tokio_postgres::Config::new();
        config.user(&target.user).dbname(&target.database).application_name(application_name);
        config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        config.channel_binding(match target.channel_binding {
            ChannelBinding::Disable => Binding::Disable,
            ChannelBinding::Prefer => Binding::Prefer,
            ChannelBinding::Require => Binding::Require,
        });
        if let Some(password) = &host.password {
            config.password(password.reveal());
        }
        config.options(format!(
            "{} -c search_path=pg_catalog -c statement_timeout={STATEMENT_TIMEOUT} -c lock_timeout={LOCK_TIMEOUT} \
             -c idle_session_timeout=0 -c default_transaction_read_only=off",
            target.options.as_deref().unwrap_or_default()
        ));
        let open = async {
            let stream = connect(target, host).await?;
            config.connect_raw(stream, Connected).await.map_err(|error| sort(error, Step::LogIn, &who))
        };
        let seconds = target.connect_timeout.as_secs();
        let late = |_| Fault::ConnectTimeout { address: who.address.clone(), seconds }.passing();
        let (client, connection) = timeout(target.connect_timeout, open).await.map_err(late)??;
        let lost = Arc::new(watch::Sender::new(None));
        let tell = lost.clone();
        tokio::spawn(async move {
            let why = match connection.await {
                Ok(()) => "it was closed".to_owned(),
                Err(error) => told(&error),
            };
            tell.send_replace(Some(format!("the control connection is lost ({why})")));
        });
        Ok(Control { client: Arc::new(client), lost, host: host.clone(), who })
    }

    /// Waits until the connection is lost, and says why. Cancel safe.
    pub(crate) async fn lost(&self) -> SourceError {
        let why = self.lost.subscribe().wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default());
        self.lost_fault(why.expect("we hold the sender"))
    }

    /// Has whoever streams beside this connection end, and connect again.
    pub(crate) fn lose(&self, why: &str) {
        self.lost.send_replace(Some(why.to_owned()));
    }

    /// An error when the connection is lost.
    pub(crate) fn check(&self) -> Result<(), SourceError> {
        match &*self.lost.borrow() {
            Some(why) => Err(self.lost_fault(why.clone())),
            None => Ok(()),
        }
    }

    fn lost_fault(&self, why: String) -> SourceError {
        Fault::ControlLost { address: self.who.address.clone(), why }.passing()
    }

    pub(crate) async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, SourceError> {
        let asked = timeout(ANSWER_TIMEOUT, self.client.query(sql, parameters)).await.map_err(|_| self.no_answer())?;
        asked.map_err(|error| sort(error, Step::Ask, &self.who))
    }

    /// A server that lives answers in time, if only that it has not got the answer. Whatever stands in between may go on
    /// taking what we send, so that TCP never finds out.
    pub(crate) fn no_answer(&self) -> SourceError {
        let why = format!("the control connection got no answer in {} s", ANSWER_TIMEOUT.as_secs());
        self.lose(&why);
        self.lost_fault(why)
    }

    /// Which database cluster this is; `None` when we may not know it yet.
    pub(crate) async fn system_identifier(&self) -> Result<Option<String>, SourceError> {
        match self.query("SELECT system_identifier::text FROM pg_control_system()", &[]).await {
            Ok(rows) => Ok(Some(rows[0].get(0))),
            // The replication session says it in any case; here it only comes sooner.
            Err(SourceError::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Which timeline the server writes; `None` for a standby, and when we may not know it yet.
    async fn timeline(&self) -> Result<Option<u32>, SourceError> {
        match self.query(TIMELINE, &[]).await {
            Ok(rows) => Ok(rows[0].get::<_, Option<&str>>(0).and_then(|hex| u32::from_str_radix(hex, 16).ok())),
            Err(SourceError::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The end of the server's log, as far as it can be streamed.
    pub(crate) async fn end_of_log(&self) -> Result<Lsn, SourceError> {
        let rows = self.query(END_OF_LOG, &[]).await?;
        Ok(Lsn(rows[0].get::<_, Option<PgLsn>>(0).map_or(0, u64::from)))
    }

    /// Which log the server writes.
    pub(crate) async fn log(&self) -> Result<Log, SourceError> {
        let asked = tokio::try_join!(self.system_identifier(), self.timeline(), self.end_of_log());
        let (system_identifier, timeline, end_of_log) = asked?;
        Ok(Log { system_identifier, timeline, end_of_log })
    }

    async fn is_standby(&self) -> Result<bool, SourceError> {
        let rows = self.query("SELECT pg_is_in_recovery()", &[]).await?;
        Ok(rows[0].get(0))
    }

    /// What the catalog says of a table and of types, once it shows what the transaction that told of them has done: its commit is in
    /// the log a moment before others see it, and as long as it waits for a synchronous standby.
    pub(crate) async fn facts(&self, question: &Question) -> Result<TableFacts, SourceError> {
        let began = Instant::now();
        let mut waits = false;
        loop {
            let (is_seen, facts) = self.facts_now(question).await?;
            match is_seen {
                true => return Ok(facts),
                // The commit may wait for us.
                false if began.elapsed() >= SEEN_MAX && !facts.gone => return Ok(facts),
                false if began.elapsed() >= SEEN_MAX => {
                    let Question { xid, table, .. } = *question;
                    return Err(Fault::Unseen { xid, table, seconds: SEEN_MAX.as_secs() }.passing());
                }
                false => {}
            }
            if !std::mem::replace(&mut waits, true) {
                info!(xid = question.xid, oid = question.table, "waits until the catalog shows what is committed");
            }
            sleep(SEEN_INTERVAL).await;
        }
    }

    /// The same as the catalog has it now, and whether that shows what the transaction has done.
    async fn facts_now(&self, question: &Question) -> Result<(bool, TableFacts), SourceError> {
        // Sent together, answered one after the other.
        let (table, types): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 1]) =
            ([&question.table], [&question.types]);
        let (snapshot, table, types) =
            tokio::try_join!(self.query(SNAPSHOT, &[]), self.query(TABLE, &table), self.query(TYPES, &types))?;
        let is_seen = question.xid == 0 || is_seen(question.xid, snapshot[0].get(0));
        let known = types.iter().map(known_type).collect::<HashMap<_, _>>();
        let types = known.keys().map(|oid| (*oid, resolve(*oid, &known))).collect();
        let Some(table) = table.first() else {
            return Ok((is_seen, TableFacts { gone: true, types, ..TableFacts::default() }));
        };
        let names = |column| table.get::<_, Option<Vec<String>>>(column).unwrap_or_default();
        let oids = table.get::<_, Option<Vec<u32>>>("ancestors").unwrap_or_default();
        let ancestors = oids.into_iter().zip(names("ancestor_schemas")).zip(names("ancestor_names"));
        let ancestors = ancestors.map(|((oid, schema), name)| Ancestor { oid, schema, name }).collect();
        let facts = TableFacts {
            gone: false,
            schema: table.get("schema"),
            name: table.get("name"),
            kind: if table.get::<_, &str>("kind") == "p" { TableKind::Partitioned } else { TableKind::Table },
            ancestors,
            primary_key: names("primary_key"),
            identity_index: names("identity_index"),
            unique: table.get("unique_key"),
            types,
        };
        Ok((is_seen, facts))
    }

    /// The server, and our role on it.
    pub(crate) async fn server(&self) -> Result<ServerFacts, SourceError> {
        let rows = self.query(SERVER, &[]).await?;
        let row = &rows[0];
        Ok(ServerFacts {
            version: row.get("version"),
            version_num: row.get("version_num"),
            wal_level: row.get("wal_level"),
            database: row.get("database"),
            user: row.get("role"),
            encoding: row.get("encoding"),
            standby: row.get("standby"),
            may_replicate: row.get("may_replicate"),
            slots: (row.get("slots"), row.get("slots_max")),
            walsenders: (row.get("walsenders"), row.get("walsenders_max")),
            max_slot_wal_keep_mb: row.get("max_slot_wal_keep_mb"),
        })
    }

    /// Every table that could be published; never those of the system.
    pub(crate) async fn tables(&self) -> Result<Vec<CatalogTable>, SourceError> {
        let rows = self.query(TABLES, &[]).await?;
        let root = |row: &Row| {
            let oid = row.get::<_, Option<u32>>("root")?;
            Some(Ancestor { oid, schema: row.get("root_schema"), name: row.get("root_name") })
        };
        let table = |row: &Row| CatalogTable {
            oid: row.get("oid"),
            schema: row.get("schema"),
            name: row.get("name"),
            root: root(row),
            partitioned: row.get("partitioned"),
            unlogged: row.get("unlogged"),
            identified: row.get("identified"),
            narrow: None,
        };
        Ok(rows.iter().map(table).collect())
    }

    /// What is left of these tables without these columns, by the tables' oids. A column that is not there is passed over.
    pub(crate) async fn narrow(&self, omit: &BTreeMap<u32, Vec<&str>>) -> Result<BTreeMap<u32, Narrow>, SourceError> {
        let oids: Vec<u32> = omit.keys().copied().collect();
        let rows = self.query(COLUMNS, &[&oids]).await?;
        let narrow = |row: &Row| {
            let oid: u32 = row.get("oid");
            let is_omitted = |column: &String| omit[&oid].contains(&column.as_str());
            let names = |column| row.get::<_, Option<Vec<String>>>(column).unwrap_or_default();
            let (omitted, columns) = names("columns").into_iter().partition(is_omitted);
            let breaks = match row.get::<_, &str>("identity") {
                "f" => Some("it has REPLICA IDENTITY FULL, which is all columns"),
                _ if names("key").iter().any(is_omitted) => Some("it is of the replica identity"),
                _ => None,
            };
            (oid, Narrow { columns, omitted, breaks })
        };
        Ok(rows.iter().map(narrow).collect())
    }
}

/// A row of `TYPES`.
#[derive(Debug)]
pub(super) struct KnownType {
    schema: String,
    name: String,
    kind: KnownKind,
}

#[derive(Debug)]
enum KnownKind {
    Simple,
    Enum(Vec<String>),
    Domain { base: Oid, modifier: i32 },
    Array(Oid),
    Range(Oid),
    Multirange(Oid),
    Composite,
}

pub(super) fn known_type(row: &Row) -> (Oid, KnownType) {
    let (base, element, subtype): (Oid, Oid, Option<Oid>) = (row.get("base"), row.get("element"), row.get("subtype"));
    let kind = match (row.get::<_, &str>("kind"), subtype) {
        ("d", _) => KnownKind::Domain { base, modifier: row.get("modifier") },
        ("e", _) => KnownKind::Enum(row.get::<_, Option<Vec<String>>>("labels").unwrap_or_default()),
        ("r", Some(subtype)) => KnownKind::Range(subtype),
        ("m", Some(subtype)) => KnownKind::Multirange(subtype),
        ("c", _) => KnownKind::Composite,
        _ if row.get("is_array") => KnownKind::Array(element),
        _ => KnownKind::Simple,
    };
    (row.get("oid"), KnownType { schema: row.get("schema"), name: row.get("name"), kind })
}

/// Follows a type down to what is built in, or cannot be followed.
pub(super) fn resolve(oid: Oid, known: &HashMap<Oid, KnownType>) -> TypeFact {
    if let Some(ty) = Type::from_oid(oid) {
        return TypeFact { ty, modifier: None };
    }
    // The catalog has no cycles: a type is made of types that were there before.
    let Some(KnownType { schema, name, kind }) = known.get(&oid) else {
        return TypeFact { ty: Type::new("unknown".into(), oid, Kind::Simple, String::new()), modifier: None };
    };
    let made = |kind, modifier| TypeFact { ty: Type::new(name.clone(), oid, kind, schema.clone()), modifier };
    match kind {
        KnownKind::Simple => made(Kind::Simple, None),
        KnownKind::Enum(labels) => made(Kind::Enum(labels.clone()), None),
        KnownKind::Composite => made(Kind::Composite(Vec::new()), None),
        KnownKind::Range(subtype) => made(Kind::Range(resolve(*subtype, known).ty), None),
        KnownKind::Multirange(subtype) => made(Kind::Multirange(resolve(*subtype, known).ty), None),
        KnownKind::Array(element) => {
            let element = resolve(*element, known);
            made(Kind::Array(element.ty), element.modifier)
        }
        KnownKind::Domain { base, modifier } => {
            let below = resolve(*base, known);
            // `numeric(8,2)` is written at one domain of a chain, and those above it have none.
            let modifier = if *modifier >= 0 { *modifier } else { below.modifier.unwrap_or(-1) };
            TypeFact { ty: below.ty, modifier: Some(modifier) }
        }
    }
}

const SNAPSHOT: &str = "SELECT pg_current_snapshot()::text";

/// Whether a transaction that has committed is seen by a snapshot: `xmin:xmax:xip,xip`, with epochs, which the log's numbers do not have.
fn is_seen(xid: u32, snapshot: &str) -> bool {
    let mut parts = snapshot.split(':').skip(1);
    let numbers = parts.next().into_iter().chain(parts.next().into_iter().flat_map(|running| running.split(',')));
    let mut numbers = numbers.filter_map(|number| number.parse::<u64>().ok()).map(|number| number as u32);
    // Both are of one time, so the nearer way round says which is older.
    let is_before_its_end = numbers.next().is_some_and(|end| (xid.wrapping_sub(end) as i32) < 0);
    is_before_its_end && numbers.all(|running| running != xid)
}

/// The file that the log is written to has it in its name; the control file may lag behind after a promotion.
const TIMELINE: &str = "
SELECT CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END";

const END_OF_LOG: &str = "
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END";

const TABLE: &str = "
SELECT n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
  above.oids AS ancestors, above.schemas AS ancestor_schemas, above.names AS ancestor_names,
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
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
  LATERAL (SELECT array_agg(ac.oid ORDER BY a.depth) AS oids, array_agg(an.nspname ORDER BY a.depth) AS schemas,
     array_agg(ac.relname ORDER BY a.depth) AS names FROM pg_partition_ancestors(c.oid) WITH ORDINALITY a(oid, depth)
     JOIN pg_class ac ON ac.oid = a.oid JOIN pg_namespace an ON an.oid = ac.relnamespace WHERE a.oid <> c.oid) above
WHERE c.oid = $1 AND c.relkind IN ('r', 'p')";

/// Types, and what they are made of, as far as it is not built in.
pub(super) const TYPES: &str = "
WITH RECURSIVE made(oid) AS (
  SELECT unnest($1::oid[])
  UNION
  SELECT part.oid FROM made JOIN pg_type t ON t.oid = made.oid LEFT JOIN pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid),
    LATERAL (VALUES (t.typbasetype), (t.typelem), (r.rngsubtype)) part(oid) WHERE part.oid <> 0
)
SELECT t.oid, n.nspname AS schema, t.typname AS name, t.typtype::text AS kind, t.typbasetype AS base,
  t.typtypmod AS modifier, t.typelem AS element, t.typcategory = 'A' AS is_array,
  (SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)) AS subtype,
  (SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid) AS labels
FROM made JOIN pg_type t ON t.oid = made.oid JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE t.oid >= 12000";

/// A role may replicate by its attribute, as a superuser, or as clouds have it, by membership.
const SERVER: &str = "
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS version_num,
  current_setting('wal_level') AS wal_level, current_database()::text AS database, current_user::text AS role,
  current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS standby,
  (r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_roles c WHERE c.rolname = 'rds_replication'
     AND pg_has_role(current_user, c.oid, 'MEMBER'))) AS may_replicate,
  (SELECT count(*) FROM pg_replication_slots) AS slots,
  current_setting('max_replication_slots')::bigint AS slots_max,
  (SELECT count(*) FROM pg_stat_replication) AS walsenders,
  current_setting('max_wal_senders')::bigint AS walsenders_max,
  (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS max_slot_wal_keep_mb
FROM pg_roles r WHERE r.rolname = current_user";

/// A table is identified when each update and delete can name its old row: by a whole old row, a chosen index, or a
/// primary key that is not deferrable. Partitions are looked up in pg_inherits: pg_partition_tree() locks them. A partitioned table is when its own key sees to that for partitions to come,
/// and every leaf that is there is.
const TABLES: &str = "
WITH RECURSIVE own AS (
  SELECT c.oid, c.relkind, c.relispartition, c.relname, n.nspname, c.relpersistence,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate) AS keyed,
    CASE c.relreplident
      WHEN 'f' THEN true
      WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)
      WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indimmediate)
      ELSE false
    END AS identified,
    CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid END AS root
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
    AND n.nspname <> 'information_schema'
), below(root, oid) AS (
  SELECT o.oid, o.oid FROM own o WHERE o.relkind = 'p'
  UNION ALL
  SELECT b.root, i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.oid
), unnamed AS (
  SELECT DISTINCT b.root FROM below b JOIN own leaf ON leaf.oid = b.oid WHERE leaf.relkind = 'r' AND NOT leaf.identified
)
SELECT o.oid, o.nspname AS schema, o.relname AS name,
  root.oid AS root, root.nspname AS root_schema, root.relname AS root_name,
  o.relkind = 'p' AS partitioned, o.relpersistence = 'u' AS unlogged,
  CASE o.relkind WHEN 'p' THEN o.keyed AND o.oid NOT IN (SELECT root FROM unnamed) ELSE o.identified END AS identified
FROM own o LEFT JOIN own root ON root.oid = o.root
ORDER BY o.nspname, o.relname";

/// What a column list must have: all columns that are not generated, and those of the replica identity.
const COLUMNS: &str = "
SELECT c.oid, array_agg(a.attname ORDER BY a.attnum) FILTER (WHERE a.attgenerated = '') AS columns,
  c.relreplident::text AS identity,
  (SELECT array_agg(k.attname) FROM pg_index i JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = ANY (i.indkey)
     WHERE i.indrelid = c.oid AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END) AS key
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.oid = ANY ($1) GROUP BY c.oid";

#[cfg(test)]
mod tests {
    use super::*;

    fn known(types: Vec<(Oid, &str, KnownKind)>) -> HashMap<Oid, KnownType> {
        let known =
            |(oid, name, kind): (Oid, &str, _)| (oid, KnownType { schema: "s".into(), name: name.into(), kind });
        types.into_iter().map(known).collect()
    }

    #[test]
    fn a_commit_is_seen_by_snapshots_after_its_end() {
        for (xid, snapshot, seen) in [
            (10, "5:11:", true),
            (10, "5:11:7,9", true),
            (10, "5:11:7,10", false),
            (10, "5:10:", false),
            (12, "5:10:7", false),
            // Of an epoch, and around its end.
            (10, "4294967300:4294967310:", true),
            (u32::MAX, "4294967295:4294967299:", true),
            (3, "4294967290:4294967295:", false),
        ] {
            assert_eq!(is_seen(xid, snapshot), seen, "{xid} by {snapshot}");
        }
    }

    #[test]
    fn a_domain_is_what_is_below_it_with_the_nearest_modifier() {
        let known = known(vec![
            (20_000, "money2", KnownKind::Domain { base: Type::NUMERIC.oid(), modifier: 524_294 }),
            (20_001, "price", KnownKind::Domain { base: 20_000, modifier: -1 }),
            (20_002, "_price", KnownKind::Array(20_001)),
        ]);
        assert_eq!(resolve(20_001, &known), TypeFact { ty: Type::NUMERIC, modifier: Some(524_294) });
        let array = resolve(20_002, &known);
        assert_eq!((array.ty.kind(), array.modifier), (&Kind::Array(Type::NUMERIC), Some(524_294)));
    }

    #[test]
    fn made_types_keep_their_names() {
        let labels = vec!["sad".to_owned(), "ok".to_owned()];
        let known =
            known(vec![(20_000, "mood", KnownKind::Enum(labels.clone())), (20_001, "hstore", KnownKind::Simple)]);
        let mood = resolve(20_000, &known).ty;
        assert_eq!((mood.name(), mood.schema(), mood.kind()), ("mood", "s", &Kind::Enum(labels)));
        assert_eq!(resolve(20_001, &known).ty.kind(), &Kind::Simple);
        assert_eq!(resolve(Type::INT4.oid(), &known), TypeFact { ty: Type::INT4, modifier: None });
    }
}
