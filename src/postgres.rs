//! Everything that knows Postgres, and nothing else does.

pub mod url;
mod fault;
mod connect;
mod pace;
pub mod wire;
pub mod session;
pub mod frame;
pub mod pgoutput;
pub mod assemble;
pub mod stream;
mod catalog;
pub mod tables;
mod publication;
mod slot;
mod inspect;
pub mod save;
#[cfg(test)]
pub(crate) mod compose;

pub use catalog::{Lag, Lagging};
pub use inspect::{Inspection, inspect};
pub use session::Session;
pub use slot::{Dropped, Warned};
pub use wire::{Question, TableFacts, TableKind, TypeFact, Wire};

use std::{pin::Pin, time::Duration};

use catalog::Control;
use fault::{Fault, Sorted};
use session::Greeting;
use tokio::time::timeout;
use tracing::info;
use url::Target;

use crate::{
    causes::told,
    config::{Config, Misfit},
    lsn::Lsn,
    source::SourceError,
};

/// What the server may take to begin to stream. It reads nothing before that; what it reads comes after.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What was found and made on the way to a streaming session.
#[derive(Clone)]
pub struct Prepared {
    /// The slot's position: what was committed before it is not told again.
    pub confirmed: Lsn,
    /// Which cluster this is; it outlives fail-over, but not pg_upgrade.
    pub system_identifier: String,
    /// Counts the fail-overs of the cluster.
    pub timeline: u32,
    /// Timelines before it, each with the position at which the log left it.
    pub history: Vec<(u32, Lsn)>,
    /// The end of the server's log.
    pub end_of_log: Lsn,
    /// As the server prints it, such as `17.5`.
    pub server_version: String,
    /// The database's name.
    pub database: String,
    /// The slot's name.
    pub slot: String,
    /// What the walsender was asked for.
    pub publications: Vec<String>,
    /// The publication is for tables that it lists, not for all or for whole schemas.
    pub publication_lists: bool,
    /// Asks how far the slot is behind, while the session lives.
    pub lag: Lag,
}

/// Whether `source.postgres` can be understood.
pub fn check(config: &Config) -> Result<(), Misfit> {
    let parsed = Target::parse(&config.source.postgres);
    parsed.map(drop).map_err(|error| Misfit::at(&["source", "postgres"], told(&error)))
}

/// Whether rows of these tables, schema and name, can leave; else why not.
pub type Accept<'a> = dyn Fn(&[(String, String)]) -> Result<(), String> + 'a;

/// Asked when the slot is free, or absent, and before anything is made: whether to begin. It is told what the slot has
/// confirmed, if it is there, and the system identifier, if we may know it.
pub type Permit<'a, E> = dyn Fn(Option<Lsn>, Option<String>) -> Pin<Box<dyn Future<Output = Result<(), E>> + 'a>> + 'a;

/// What whoever starts a stream has to say on the way.
pub struct Start<'a, E> {
    /// Keeps a process from warning of one thing at every start of the stream.
    pub warned: &'a Warned,
    /// Called when a wait for the slot begins.
    pub waiting: &'a dyn Fn(),
    /// Asked before anything is made in the database.
    pub accept: &'a Accept<'a>,
    /// Asked after that.
    pub permit: &'a Permit<'a, E>,
}

/// Connects, sees to publication and slot, waits for the slot while another holds it, and starts to stream.
pub async fn connect<E: From<SourceError>>(config: &Config, begin: &Start<'_, E>) -> Result<(Session, Prepared), E> {
    let ends = Ends::of(config)?;
    let control = ends.control().await?;
    let slot = config.slot();
    loop {
        let (plan, confirmed) = control.prepare(config, begin).await?;
        let publications = plan.names;
        let server = control.server().await?;
        let lag = control.lag(&publications, confirmed);
        let mut greeting = ends.greeting(&control).await?;
        let start = async {
            let system = greeting.identify().await?;
            Ok::<_, SourceError>((greeting.start(&slot, &publications, control.clone()).await?, system))
        };
        let late = || Fault::StartTimeout { slot: slot.clone(), seconds: START_TIMEOUT.as_secs() }.passing();
        let (session, system) = match timeout(START_TIMEOUT, start).await.unwrap_or_else(|_| Err(late())) {
            Ok(started) => started,
            // Another was faster: wait for the slot again.
            Err(SourceError::Passing(error))
                if error.downcast_ref::<Sorted>().is_some_and(|error| error.said.code == "55006") =>
            {
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        info!(%slot, %confirmed, publications = %publications.join(", "), "streaming");
        let prepared = Prepared {
            confirmed,
            system_identifier: system.identifier,
            timeline: system.timeline,
            history: system.history,
            end_of_log: system.end_of_log,
            server_version: server.version,
            database: server.database,
            slot,
            publications,
            publication_lists: plan.lists_tables,
            lag,
        };
        return Ok((session, prepared));
    }
}

/// What a command that says where to go on has to know before it does.
#[derive(Clone, Debug)]
pub struct Look {
    /// What the slot has confirmed, and the process that holds it; `None` when there is no slot.
    pub slot: Option<(Lsn, Option<i32>)>,
    /// Which log it is.
    pub system_identifier: String,
    /// Which timeline.
    pub timeline: u32,
    /// The end of the server's log.
    pub end_of_log: Lsn,
}

/// Looks at the server and the slot.
pub async fn look(config: &Config) -> Result<Look, SourceError> {
    let ends = Ends::of(config)?;
    let control = ends.control().await?;
    let slot = control.slot(&config.slot()).await?;
    if let Some(slot) = &slot {
        slot.check(&config.slot(), &control.who.database)?;
    }
    let system = ends.greeting(&control).await?.identify().await?;
    Ok(Look {
        slot: slot.map(|slot| (slot.confirmed, slot.active_pid)),
        system_identifier: system.identifier,
        timeline: system.timeline,
        end_of_log: system.end_of_log,
    })
}

/// Drops the slot and the publications that offshoot made. A slot that is held is not touched, nor is anything else then.
pub async fn drop_all(config: &Config) -> Result<Dropped, SourceError> {
    Ends::of(config)?.control().await?.drop_all(config).await
}

/// How both sessions are opened.
struct Ends {
    target: Target,
    slot: String,
    application_name: String,
    decoding_work_mem: Option<u64>,
}

impl Ends {
    fn of(config: &Config) -> Result<Ends, SourceError> {
        let target = Target::parse(&config.source.postgres).map_err(|error| SourceError::Config(Box::new(error)))?;
        let application_name = target.application_name.clone().unwrap_or_else(|| format!("offshoot_{}", config.name));
        let decoding_work_mem = config.source.decoding_work_mem.map(|size| size.as_u64());
        Ok(Ends { target, slot: config.slot(), application_name, decoding_work_mem })
    }

    async fn control(&self) -> Result<Control, SourceError> {
        Control::open(&self.target, &self.slot, &self.application_name).await
    }

    /// On the host that the control session is on.
    async fn greeting(&self, control: &Control) -> Result<Greeting, SourceError> {
        let (host, who) = (&control.host, control.who.clone());
        Greeting::open(&self.target, host, who, &self.application_name, self.decoding_work_mem).await
    }
}
