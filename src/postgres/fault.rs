//! What Postgres or the network said -> `SourceError`: sorted by what is to be done, with the mend in the text. Pure.

use std::{error::Error, io};

use bytesize::ByteSize;
use postgres_protocol::message::backend::{ErrorField, ErrorFields};
use tokio_postgres::{error::DbError, fallible_iterator::FallibleIterator};

use crate::{causes::told, lsn::Lsn, source::SourceError};

/// An ErrorResponse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code}){}", detail.as_ref().map(|detail| format!("; {detail}")).unwrap_or_default())]
pub(crate) struct Said {
    /// SQLSTATE.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// The detail, where there is one.
    pub detail: Option<String>,
}

/// What was being done when it went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A session of the ordinary kind.
    LogIn,
    /// A replication session, up to and without START_REPLICATION.
    LogInToReplicate,
    /// A question to the catalog.
    Ask,
    /// Making, changing or dropping a slot or a publication.
    Prepare,
    /// Reading rows as they are.
    Load,
    /// START_REPLICATION, and everything after it.
    Stream,
}

/// Who asks whom for what: the names that a mend is written with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Who {
    pub(crate) address: String,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) slot: String,
    /// Why the password file has no password for us, where one is used.
    pub(crate) passfile: Option<String>,
    /// `sslcert` is given.
    pub(crate) certificate: bool,
    /// The table whose rows are read, as SQL has it.
    pub(crate) table: Option<String>,
}

impl Who {
    /// What is said when a password is asked for that we do not have.
    pub(crate) fn no_password(&self) -> String {
        let none = "the server asks for a password, and source.postgres has none";
        match &self.passfile {
            Some(why) => format!("{none}; {why}"),
            None => format!("{none}; put it there, or into the password file"),
        }
    }
}

/// Found by us, not said by a server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("connect to {address}")]
    Unreachable { address: String, source: io::Error },
    #[error("connect and log in to {address} within {seconds} s")]
    ConnectTimeout { address: String, seconds: u64 },
    #[error(
        "use TLS with {address}: the server does not offer it (ssl = off); turn it on there, or say sslmode=disable"
    )]
    NoTls { address: String },
    #[error("use TLS with {address}: {cause}; {mend}")]
    Tls { address: String, cause: io::Error, mend: &'static str },
    #[error("log in to {address} as channel_binding=require asks: {why}, or say channel_binding=prefer")]
    NotBound { address: String, why: &'static str },
    #[error("{what}; it has let us in before, so it is asked again for {left}")]
    Again { what: String, left: humantime::FormattedDuration },
    #[error("reach any of the hosts: {what}")]
    Unreached { what: String },
    #[error("read {key} {path}: {cause}; name a PEM file that can be read")]
    TlsFile { key: &'static str, path: String, cause: Box<dyn Error + Send + Sync> },
    #[error("log in to {address}: {what}")]
    LogIn { address: String, what: String },
    #[error("find a primary among {hosts}: all of them are standbys; name the primary too, or promote one")]
    OnlyStandbys { hosts: String },
    #[error("{doing} from {address}")]
    Broken { doing: &'static str, address: String, source: io::Error },
    #[error("go on reading from {address}: the server ended the stream")]
    Ended { address: String },
    #[error(
        "see in the catalog the table with oid {table}, which transaction {xid} has told of, within {seconds} s: its commit waits, as for a \
         synchronous standby that is away"
    )]
    Unseen { xid: u32, table: u32, seconds: u64 },
    #[error("start to stream from slot {slot} within {seconds} s")]
    StartTimeout { slot: String, seconds: u64 },
    #[error("write to {address} within {seconds} s")]
    WriteTimeout { address: String, seconds: u64 },
    #[error("go on with {address}: {why}")]
    ControlLost { address: String, why: String },
    #[error("change the publications: {what}{holders}; nothing was changed, and it is tried again")]
    Busy { what: Said, holders: String },
    #[error("{doing}: {what}")]
    Lost { doing: String, what: String },
    #[error("load {table}: {why}; the load begins again")]
    Changed { table: String, why: &'static str },
    #[error("load {table}: another session has held a lock on it for {seconds} s; the load begins again")]
    Locked { table: String, seconds: u64 },
    #[error(
        "load rows: synchronous_standby_names counts {application_name}, so commits wait for us, and the load would wait for them: name the \
         standbys there instead of `*` (ALTER SYSTEM SET synchronous_standby_names = '...'; SELECT pg_reload_conf())"
    )]
    Synchronous { application_name: String },
    #[error("understand {address}: {what}")]
    Protocol { address: String, what: String },
}

impl Fault {
    /// As what passes.
    pub(crate) fn passing(self) -> SourceError {
        SourceError::Passing(Box::new(self))
    }

    /// As what lasts.
    pub(crate) fn refused(self) -> SourceError {
        SourceError::Refused(Box::new(self))
    }
}

impl Said {
    pub(crate) fn read(mut fields: ErrorFields<'_>) -> io::Result<Said> {
        let mut said = Said { code: String::new(), message: String::new(), detail: None };
        let text = |field: &ErrorField<'_>| String::from_utf8_lossy(field.value_bytes()).into_owned();
        while let Some(field) = fields.next()? {
            match field.type_() {
                b'C' => said.code = text(&field),
                b'M' => said.message = text(&field),
                b'D' => said.detail = Some(fragment(&text(&field))),
                _ => {}
            }
        }
        Ok(said)
    }

    /// Sorts it by what is to be done, and says how it is mended.
    pub(crate) fn sort(self, step: Step, who: &Who) -> SourceError {
        let kind = self.kind(step);
        let mend = mend(&self, step, who);
        let text = match &mend {
            Some(mend) => format!("{}: {self}; {mend}", doing(step, who)),
            None => format!("{}: {self}", doing(step, who)),
        };
        let error = Box::new(Sorted { text, said: self, mend });
        match kind {
            Kind::Passing => SourceError::Passing(error),
            Kind::Refused => SourceError::Refused(error),
            Kind::SlotLost => SourceError::SlotLost(error),
        }
    }

    fn kind(&self, step: Step) -> Kind {
        let message = self.message.as_str();
        match (self.code.as_str(), step) {
            // "replication slot ... does not exist", "requested WAL segment ... has already been removed", "can no
            // longer get changes from replication slot", "this slot has been invalidated".
            ("42704", Step::Stream) if message.contains("replication slot") => Kind::SlotLost,
            // What is committed while a publication is not there is told to nobody.
            ("42704", Step::Stream) if message.contains("publication") => Kind::SlotLost,
            ("58P01", Step::Stream) if message.contains("WAL segment") => Kind::SlotLost,
            ("55000", Step::Stream) if message.contains("replication slot") => Kind::SlotLost,
            // Held by another, or about to be free.
            ("55006", _) => Kind::Passing,
            ("55P03", _) => Kind::Passing,
            // The table has changed since it was looked at, or the snapshot went with its session: both are looked at again.
            ("42P01" | "42703" | "3F000" | "22023" | "55000", Step::Load) => Kind::Passing,
            // Another instance has just made it.
            ("42710", Step::Prepare) => Kind::Passing,
            // A pooler will say so for ever.
            ("08P01", _) if message.contains(POOLER_SAYS) => Kind::Refused,
            (code, _) => match code.get(..2).unwrap_or_default() {
                // 0A not supported, 22 bad value, 25006 read-only, 28 who are you, 3D no database, 42 no right or no
                // such thing, 55 wrong state.
                "0A" | "22" | "25" | "28" | "3D" | "3F" | "42" | "55" => Kind::Refused,
                _ => Kind::Passing,
            },
        }
    }
}

impl From<&DbError> for Said {
    fn from(error: &DbError) -> Said {
        Said {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(fragment),
        }
    }
}

/// A detail is a sentence; what follows it here is not.
fn fragment(sentence: &str) -> String {
    sentence.trim_end_matches('.').to_owned()
}

/// Sorts what tokio-postgres reports.
pub(crate) fn sort(error: tokio_postgres::Error, step: Step, who: &Who) -> SourceError {
    if let Some(said) = error.as_db_error() {
        return Said::from(said).sort(step, who);
    }
    let closed = error.is_closed();
    let text = told(&error);
    let address = who.address.clone();
    let source = error.into_source().and_then(|source| source.downcast::<io::Error>().ok());
    let passing = closed || source.as_deref().is_some_and(is_network);
    if let Some((mend, cause)) = source.as_ref().and_then(|source| tls_mend(source)).zip(source) {
        return Fault::Tls { address, cause: *cause, mend }.refused();
    }
    let doing = doing(step, who);
    if passing {
        return Fault::Lost { doing, what: text }.passing();
    }
    if text.contains("channel binding") {
        return Fault::NotBound { address, why: NOT_BOUND }.refused();
    }
    let text = if text.contains("password missing") { who.no_password() } else { text };
    match step {
        Step::LogIn => Fault::LogIn { address, what: text }.refused(),
        // A question that this version of the server cannot answer, or an answer that we do not understand.
        _ => Fault::Protocol { address, what: format!("{doing}: {text}") }.refused(),
    }
}

/// Whether the network broke, and not what was said over it.
pub(crate) fn is_network(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
}

/// How an error of TLS is mended; `None` when it is not one that we know.
///
/// Under TLS 1.3 what the server thinks of our certificate comes only when we first read.
pub(crate) fn tls_mend(error: &io::Error) -> Option<&'static str> {
    use rustls::{CertificateError as Wrong, Error::*};
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. }) => {
            Some("connect by a name that is among the certificate's subjectAltNames, or say sslmode=verify-ca")
        }
        InvalidCertificate(Wrong::Expired | Wrong::ExpiredContext { .. }) => {
            Some("the server's certificate has expired: renew it there (ssl_cert_file) and reload; or a clock is wrong")
        }
        InvalidCertificate(_) => Some("name the authority that signed it in sslrootcert"),
        AlertReceived(_) => Some(
            "the server refuses our certificate: sslcert must be signed by an authority in its ssl_ca_file, and be valid",
        ),
        _ => None,
    }
}

/// What a sorted server error prints, and the error itself as its cause.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Sorted {
    text: String,
    /// What the server said.
    pub said: Said,
    /// The end of the text: what is to be done.
    pub mend: Option<String>,
}

/// The slot cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotFault {
    #[error("use slot {slot}: it is a slot of plugin {plugin}, not pgoutput; name another one in source.slot")]
    Plugin { slot: String, plugin: String },
    #[error("use slot {slot}: it is a physical slot; name another one in source.slot")]
    Physical { slot: String },
    #[error("use slot {slot}: it belongs to database {database}, not {ours}; name another one in source.slot")]
    Database { slot: String, database: String, ours: String },
    #[error(
        "use slot {slot}: it is invalidated ({why}), and the log after {confirmed} is gone; drop it with `offshoot drop`, \
         start again, and load again what was missed"
    )]
    Invalidated { slot: String, why: String, confirmed: Lsn },
    #[error(
        "use publication {publication}: it is not there, but slot {slot} is, and what was committed after {confirmed} \
         without a publication is told to nobody; drop the slot with `offshoot drop` and start again"
    )]
    PublicationGone { publication: String, slot: String, confirmed: Lsn },
    #[error(
        "go on with slot {slot}: {what}; what was committed after {since}, when all was there, may be told to nobody; {mend}"
    )]
    Unpublished { slot: String, what: String, since: String, mend: String },
    #[error(
        "go on with slot {slot}: the server keeps {retained} of log for it, and limits.slot_wal_stop is {limit}; what was \
         committed after {confirmed} is not published yet, and not lost: {mend}"
    )]
    TooMuch { slot: String, retained: ByteSize, limit: ByteSize, confirmed: Lsn, mend: &'static str },
    #[error(
        "go on with slot {slot}: the server kept {retained} of log for it, limits.slot_wal_stop is {limit}, and \
         limits.slot_wal_action is drop_slot: the slot is dropped, so that the server can remove that log. Lost is what was \
         committed from {confirmed} to {current}, {lost} of log; {since}; clear the rest with `offshoot drop`, start again, \
         and load again what was missed"
    )]
    GivenUp {
        slot: String,
        retained: ByteSize,
        limit: ByteSize,
        confirmed: Lsn,
        current: Lsn,
        lost: ByteSize,
        since: String,
    },
}

enum Kind {
    Passing,
    Refused,
    SlotLost,
}

fn doing(step: Step, who: &Who) -> String {
    match step {
        Step::LogIn => format!("log in to {} as {}", who.address, who.user),
        Step::LogInToReplicate => format!("log in to {} as {} for replication", who.address, who.user),
        Step::Ask => format!("ask {}", who.address),
        Step::Prepare => format!("prepare {} for replication", who.address),
        Step::Load => match &who.table {
            Some(table) => format!("load {table} from {}", who.address),
            None => format!("load rows from {}", who.address),
        },
        Step::Stream => format!("stream from slot {}", who.slot),
    }
}

fn mend(said: &Said, step: Step, who: &Who) -> Option<String> {
    let Who { user, database, slot, certificate, .. } = who;
    let table = who.table.as_deref().unwrap_or("...");
    let mend = match (said.code.as_str(), step) {
        ("08P01", _) if said.message.contains(POOLER_SAYS) => POOLER.into(),
        // `clientcert=verify-full` says no more than this of a certificate for somebody else.
        ("28P01", _) if *certificate => {
            format!("check user and password in source.postgres, and that the certificate in sslcert is for CN={user}")
        }
        ("28P01", _) => "check user and password in source.postgres".into(),
        ("28000", _) if said.message.contains("valid client certificate") => {
            format!("name a certificate for CN={user} in sslcert, and its key in sslkey")
        }
        ("28000", _) if said.message.contains("certificate authentication failed") => {
            format!("the certificate in sslcert must be for CN={user}, or a map in pg_ident.conf must lead there")
        }
        ("28000", _) if said.message.contains("pg_hba.conf") => {
            format!("add a line such as `hostssl {database} {user} ADDRESS scram-sha-256` to pg_hba.conf and reload it")
        }
        ("28000", _) if said.message.contains("does not exist") => {
            format!("CREATE ROLE \"{user}\" LOGIN REPLICATION PASSWORD '...', or check the user in source.postgres")
        }
        ("28000", _) if said.message.contains("not permitted to log in") => format!("ALTER ROLE \"{user}\" LOGIN"),
        ("28000", Step::LogInToReplicate) => format!("ALTER ROLE \"{user}\" REPLICATION"),
        ("3D000", _) => format!("check the database in source.postgres, or CREATE DATABASE \"{database}\""),
        ("42501", Step::LogIn) => format!("GRANT CONNECT ON DATABASE \"{database}\" TO \"{user}\""),
        ("42501", Step::LogInToReplicate | Step::Stream) => format!("ALTER ROLE \"{user}\" REPLICATION"),
        ("42501", Step::Load) if said.message.contains("row-level security") => format!(
            "ALTER ROLE \"{user}\" BYPASSRLS, since a policy would hide rows of it; or map nothing that needs its old rows"
        ),
        ("42501", Step::Load) if said.message.contains("schema") => {
            let schema = table.split_once('.').map_or(table, |(schema, _)| schema);
            format!("GRANT USAGE ON SCHEMA {schema} TO \"{user}\"")
        }
        ("42501", Step::Load) if who.table.is_some() => format!("GRANT SELECT ON {table} TO \"{user}\""),
        ("42501", Step::Load) => format!("ALTER ROLE \"{user}\" REPLICATION"),
        ("42501", Step::Prepare) if said.message.contains("replication") => {
            format!("ALTER ROLE \"{user}\" REPLICATION")
        }
        ("53300", Step::LogInToReplicate | Step::Load) => {
            "raise max_wal_senders, or end another replication session".into()
        }
        ("53300", _) if said.message.contains("for role") => format!("ALTER ROLE \"{user}\" CONNECTION LIMIT -1"),
        ("53300", _) if said.message.contains("for database") => {
            format!("ALTER DATABASE \"{database}\" CONNECTION LIMIT -1")
        }
        ("53300", _) => "raise max_connections, or end other sessions".into(),
        ("53400", _) => "raise max_replication_slots and restart the server, or drop a slot that is not used".into(),
        ("55000", _) if said.message.contains("wal_level") => WAL_LEVEL.into(),
        ("25006", _) => "the server is a standby: prepare slot and publication on the primary".into(),
        ("42704", Step::Stream) if said.message.contains("publication") => format!(
            "it was dropped, or made after what is in the log; drop slot {slot} with `offshoot drop`, start again, and load \
             again what was missed"
        ),
        ("42704" | "58P01" | "55000", Step::Stream) => format!(
            "drop slot {slot} with `offshoot drop` if it is still there, start again, and load again what was missed"
        ),
        _ => return None,
    };
    Some(mend)
}

/// What is said of a server that asks for less than SCRAM-SHA-256-PLUS.
pub(crate) const NOT_BOUND: &str = "the server does not bind the log-in to TLS; have pg_hba.conf ask for scram-sha-256, and set \
                                    the password again under password_encryption = scram-sha-256";

/// What PgBouncer answers to `options` and to `replication`; it gives it the code of a protocol violation.
const POOLER_SAYS: &str = "unsupported startup parameter";

/// How a pooler is mended.
pub(crate) const POOLER: &str = "that is a pooler such as PgBouncer, which replication does not pass: name the server itself, and \
                                 its own port, in source.postgres";

/// How `wal_level` is mended.
pub(crate) const WAL_LEVEL: &str = "ALTER SYSTEM SET wal_level = logical, and restart the server";

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(code: &str, message: &str, step: Step) -> SourceError {
        let who = Who {
            address: "db:5432".into(),
            user: "cdc".into(),
            database: "shop".into(),
            slot: "offshoot_shop".into(),
            ..Who::default()
        };
        Said { code: code.into(), message: message.into(), detail: None }.sort(step, &who)
    }

    #[test]
    fn a_server_that_goes_away_passes() {
        for (code, step) in [
            ("57P01", Step::Stream),
            ("57P03", Step::LogIn),
            ("53300", Step::LogInToReplicate),
            ("55006", Step::Stream),
            ("55P03", Step::Prepare),
            ("42710", Step::Prepare),
            ("40001", Step::Ask),
            ("XX000", Step::Stream),
        ] {
            assert!(matches!(sorted(code, "m", step), SourceError::Passing(_)), "{code}");
        }
    }

    #[test]
    fn a_refusal_says_how_it_is_mended() {
        for (code, message, step, mend) in [
            ("28P01", "password authentication failed", Step::LogIn, "check user and password in source.postgres"),
            ("28000", "no pg_hba.conf entry for host", Step::LogIn, "`hostssl shop cdc ADDRESS scram-sha-256`"),
            ("28000", "role \"cdc\" does not exist", Step::LogIn, "CREATE ROLE \"cdc\" LOGIN REPLICATION"),
            ("3D000", "database \"shop\" does not exist", Step::LogIn, "CREATE DATABASE \"shop\""),
            ("42501", "must be superuser", Step::LogInToReplicate, "ALTER ROLE \"cdc\" REPLICATION"),
            ("55000", "logical decoding requires wal_level >= logical", Step::Prepare, "SET wal_level = logical"),
            ("53400", "all replication slots are in use", Step::Prepare, "max_replication_slots"),
            (
                "08P01",
                "unsupported startup parameter: replication",
                Step::LogInToReplicate,
                "a pooler such as PgBouncer",
            ),
        ] {
            let error = sorted(code, message, step);
            let passing = code == "53400";
            assert_eq!(matches!(error, SourceError::Passing(_)), passing, "{code}");
            let text = error.to_string();
            assert!(text.contains(mend) && text.contains(message) && text.contains(code), "{text}");
        }
    }

    #[test]
    fn a_slot_that_cannot_go_on_is_lost() {
        for (code, message) in [
            ("42704", "replication slot \"offshoot_shop\" does not exist"),
            ("58P01", "requested WAL segment 0001 has already been removed"),
            ("55000", "cannot read from logical replication slot \"offshoot_shop\""),
            ("55000", "can no longer get changes from replication slot \"offshoot_shop\""),
        ] {
            assert!(matches!(sorted(code, message, Step::Stream), SourceError::SlotLost(_)), "{message}");
        }
        let gone = sorted("42704", "publication \"p\" does not exist", Step::Stream);
        assert!(matches!(gone, SourceError::SlotLost(_)));
    }
}
