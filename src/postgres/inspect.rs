//! Config and server -> findings: what is there, what is missing, and what mends it. IO.

use super::{
    Ends,
    catalog::{Control, ServerFacts},
    fault::WAL_LEVEL,
    slot::{Slot, slot_sql},
};
use crate::{
    causes::told,
    config::Config,
    finding::{Finding, Level},
    source::SourceError,
};

/// What `inspect` found.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// In the order in which they were looked at.
    pub findings: Vec<Finding>,
    /// What the config asks for and the database does not have.
    pub misfits: Vec<Finding>,
    /// The tables whose rows leave, schema and name; empty when that cannot be said.
    pub tables: Vec<(String, String)>,
}

/// What passes by itself may also be mended.
const UNREACHED: &str =
    "see that the server runs, that `source.postgres` names it, and that the network and its firewalls let us through";

impl Finding {
    /// Our texts say after a semicolon how it is mended.
    fn error(error: &SourceError) -> Finding {
        let text = format!("failed to {}", told(error));
        let (what, mend) = match text.split_once("; ") {
            Some((what, mend)) => (what.to_owned(), mend.to_owned()),
            None if matches!(error, SourceError::Passing(_)) => (text, UNREACHED.to_owned()),
            None => (text, "the server's log says more".to_owned()),
        };
        Finding::cross(what, mend)
    }
}

/// Looks at everything that `connect` needs, and changes nothing.
///
/// A server that cannot be reached or does not let us in is a finding, and the last one.
pub async fn inspect(config: &Config) -> Inspection {
    let mut inspection = Inspection::default();
    if let Err(error) = inspect_into(&mut inspection, config).await {
        inspection.findings.push(Finding::error(&error));
    }
    inspection
}

async fn inspect_into(inspection: &mut Inspection, config: &Config) -> Result<(), SourceError> {
    let Inspection { findings, misfits, tables } = inspection;
    let ends = Ends::of(config)?;
    let control = ends.control().await?;
    let server = control.server().await?;
    look_at_server(&server, &control, findings);
    match ends.greeting(&control).await {
        Ok(mut greeting) => {
            match greeting.identify().await {
                Ok(system) => findings.push(Finding::ok(format!(
                    "replication: logged in; system {}, timeline {}",
                    system.identifier, system.timeline
                ))),
                Err(error) => findings.push(Finding::error(&error)),
            }
            greeting.close().await;
        }
        Err(error) => findings.push(Finding::error(&error)),
    }
    let slot = control.slot(&config.slot()).await?;
    if slot.is_none() {
        findings.extend(control.forgotten_slots(&config.slot()).await?);
    }
    look_at_slot(&config.slot(), slot.as_ref(), &server, config.source.create, findings);
    let ours = slot.filter(|slot| slot.check(&config.slot(), &server.database).is_ok());
    match control.plan(config, server.version_num, ours.as_ref()).await {
        Ok(plan) => {
            let names = plan.names.join(", ");
            match plan.statements.as_slice() {
                [] => findings.push(Finding::ok(format!("publications: {names}, as the config asks"))),
                statements => {
                    let sql = statements.join(";\n");
                    let (level, what) = match config.source.create {
                        true => (Level::Ok, format!("publications: {names} will be made or changed at the next start")),
                        false => (Level::Cross, format!("publications: {names} are not as the config asks")),
                    };
                    findings.push(Finding { level, what, mend: Some(sql) });
                }
            }
            findings.extend(plan.findings);
            *tables = plan.tables;
        }
        Err(error @ SourceError::Config(_)) => misfits.push(Finding::error(&error)),
        Err(error) => findings.push(Finding::error(&error)),
    }
    Ok(())
}

fn look_at_server(server: &ServerFacts, control: &Control, findings: &mut Vec<Finding>) {
    let who = &control.who;
    let role = if server.standby { "a standby" } else { "a primary" };
    findings.push(Finding::ok(format!(
        "server: PostgreSQL {}, {role} at {}, database {}, role {}",
        server.version, who.address, server.database, server.user
    )));
    if server.version_num < 140_000 {
        let mend = "PostgreSQL 14 is the oldest that is supported";
        findings.push(Finding::cross(format!("version: {}", server.version), mend.into()));
    }
    findings.push(match server.wal_level.as_str() {
        "logical" => Finding::ok("wal_level: logical".into()),
        level => Finding::cross(format!("wal_level: {level}"), WAL_LEVEL.into()),
    });
    if !server.may_replicate {
        let mend = format!("ALTER ROLE \"{}\" REPLICATION", server.user);
        findings.push(Finding::cross(format!("role: {} may not replicate", server.user), mend));
    }
    let (used, max) = server.walsenders;
    let what = format!("walsenders: {used} of {max} are used");
    findings.push(match used < max {
        true => Finding::ok(what),
        false => Finding::cross(what, "raise max_wal_senders and restart the server".into()),
    });
    if server.max_slot_wal_keep_mb < 0 {
        let mend = "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB', or what the disk has to spare, and reload";
        let what = "max_slot_wal_keep_size: unlimited; while offshoot is away the log can fill the server's disk";
        findings.push(Finding::warning(what.into(), mend.into()));
    }
    if server.encoding == "SQL_ASCII" {
        let mend = "see that everybody writes UTF-8 into it; what is not UTF-8 stops the stream";
        findings.push(Finding::warning("encoding: SQL_ASCII, which converts nothing".into(), mend.into()));
    }
}

fn look_at_slot(name: &str, slot: Option<&Slot>, server: &ServerFacts, create: bool, findings: &mut Vec<Finding>) {
    let Some(slot) = slot else {
        let (used, max) = server.slots;
        if used >= max {
            let mend = "raise max_replication_slots and restart the server, or drop one that is not used";
            findings.push(Finding::cross(format!("slots: {used} of {max} are used"), mend.into()));
        }
        findings.push(match create {
            true => Finding::ok(format!("slot: {name} is not there; it will be made at the next start")),
            false => Finding::cross(format!("slot: {name} is not there"), slot_sql(name)),
        });
        return;
    };
    if let Err(error) = slot.check(name, &server.database) {
        findings.push(Finding::error(&error));
        return;
    }
    let holder = slot.active_pid.map_or("free".to_owned(), |pid| format!("held by PID {pid}"));
    let (confirmed, retained) = (slot.confirmed, slot.retained_bytes);
    let what =
        format!("slot: {name}, {holder}, confirmed {confirmed}, the server keeps {retained} bytes of log for it");
    findings.push(match slot.wal_status.as_str() {
        "unreserved" => Finding::warning(what, "read from it soon: its log is about to be removed".into()),
        _ => Finding::ok(what),
    });
}
