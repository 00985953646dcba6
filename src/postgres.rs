//! Everything that knows Postgres, and nothing else does.

pub mod url;
mod fault;
mod binding;
mod connect;
mod pace;
pub mod wire;
pub mod session;
pub mod frame;
pub mod pgoutput;
pub mod assemble;
mod streamed;
pub mod stream;
mod catalog;
pub mod tables;
mod publication;
mod slot;
mod watch;
mod copied;
mod load;
mod inspect;
mod schema;
pub mod save;
pub mod preview;
#[cfg(test)]
pub(crate) mod compose;

pub use inspect::{Inspection, SlotSeen, inspect};
pub use schema::schema;
pub use session::Session;
pub use slot::{Dropped, Warned};
pub use watch::{Lagging, Watch};
pub use wire::{Question, TableFacts, TableKind, TypeFact, Wire};

use std::{
    pin::Pin,
    time::{Duration, Instant, SystemTime},
};

use catalog::Control;
use fault::{Fault, Sorted};
use session::{Greeting, Purpose, Wishes};
use tokio::time::timeout;
use tracing::info;
use url::Target;

use crate::{
    admission::Admission,
    causes::told,
    config::{Config, Misfit},
    lsn::Lsn,
    mapping::catalog::Catalog,
    source::SourceError,
};

/// What the server may take to begin to stream. It reads nothing before that; what it reads comes after.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What was found and made on the way to a streaming session.
pub struct Prepared {
    /// The slot's position: what was committed before it is not told again.
    pub confirmed: Lsn,
    /// Which cluster this is; it outlives fail-over, but not pg_upgrade.
    pub system_identifier: String,
    /// Counts the fail-overs of the cluster.
    pub timeline: u32,
    /// Timelines before it, each with the position at which the log left it.
    pub history: Vec<(u32, Lsn)>,
    /// The end of the server's log, once the slot was taken.
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
    /// What the database says of the tables that events are made of; `None` where none are.
    pub catalog: Option<Catalog>,
    /// Looks at the slot and at what is published, over the session's control connection.
    pub watch: Watch,
}

/// Whether `source.postgres` can be understood.
pub fn check(config: &Config) -> Result<(), Misfit> {
    let misfit = |error: &dyn std::error::Error| Misfit::at(&["source", "postgres"], told(error));
    let text = config.source.postgres.read().map_err(|error| misfit(&error))?;
    Target::parse(&text).map(drop).map_err(|error| misfit(&error))
}

/// Whether `changes` of these tables, schema and name, can leave, and events be made of what the catalog says, where there are some;
/// else why not.
pub type Accept<'a> = dyn Fn(&[(String, String)], Option<&Catalog>) -> Result<(), String> + 'a;

/// Which of our sessions have been let in, over all connections of this process. A role may be let in and not replicate.
#[derive(Debug, Default)]
pub struct Admissions {
    control: Admission,
    replication: Admission,
}

/// Asked when the slot is free, or absent, and before anything is made: whether to begin. It is told what the slot has
/// confirmed, if it is there, and may ask the server.
pub type Permit<'a, E> = dyn Fn(Option<Lsn>, Server) -> Pin<Box<dyn Future<Output = Result<(), E>> + 'a>> + 'a;

/// A server, before anything is streamed from it.
pub struct Server(Control);

impl Server {
    /// Which log it writes.
    pub async fn log(&self) -> Result<Log, SourceError> {
        self.0.log().await
    }
}

/// Which log a server writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Of the database cluster; `None` when we may not know it yet.
    pub system_identifier: Option<String>,
    /// `None` for a standby, and when we may not know it yet.
    pub timeline: Option<u32>,
    /// Its end, as far as it can be streamed.
    pub end_of_log: Lsn,
}

/// What whoever starts a stream has to say on the way.
pub struct Start<'a, E> {
    /// Keeps a process from warning of one thing at every start of the stream.
    pub warned: &'a Warned,
    /// Which of our sessions have been let in.
    pub admissions: &'a Admissions,
    /// Oids of the tables of which the process holds rows: they stay published if they get other names.
    pub held: &'a [u32],
    /// Called when a wait for the slot begins.
    pub waiting: &'a dyn Fn(),
    /// Asked before anything is made in the database.
    pub accept: &'a Accept<'a>,
    /// Asked after that.
    pub permit: &'a Permit<'a, E>,
}

/// Connects, sees to publication and slot, waits for the slot while another holds it, and starts to stream.
pub async fn connect<E: From<SourceError>>(config: &Config, begin: &Start<'_, E>) -> Result<(Session, Prepared), E> {
    let Admissions { control: asked, replication } = begin.admissions;
    let ends = Ends::of(config).map_err(|error| again(asked, error))?;
    let control = ends.control().await.map_err(|error| again(asked, error))?;
    asked.let_in();
    let slot = config.slot();
    loop {
        let (server, plan, confirmed, catalog) = control.prepare(config, begin).await?;
        let watch = Watch::new(control.clone(), config, server.version_num, &plan, catalog.clone());
        let publications = plan.names;
        let mut greeting = ends.greeting(&control).await.map_err(|error| again(replication, error))?;
        replication.let_in();
        let wishes = Wishes { messages: config.wants_messages(), open_transactions: config.source.streaming };
        let start = async {
            let system = greeting.identify().await?;
            Ok::<_, SourceError>((
                greeting.start(&slot, &publications, wishes, control.clone(), ends.clone()).await?,
                system,
            ))
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
        // Not before the slot was ours: until then somebody else may have published more of a log that has grown since.
        let end_of_log = control.end_of_log().await?;
        info!(%slot, %confirmed, publications = %publications.join(", "), "streaming");
        let prepared = Prepared {
            confirmed,
            system_identifier: system.identifier,
            timeline: system.timeline,
            history: system.history,
            end_of_log,
            server_version: server.version,
            database: server.database,
            slot,
            publications,
            publication_lists: plan.lists_tables,
            catalog,
            watch,
        };
        return Ok((session, prepared));
    }
}

/// A log-in that is refused lasts, unless it was not a while ago: a password, a certificate or the file that holds it may be
/// about to be replaced.
fn again(admission: &Admission, error: SourceError) -> SourceError {
    let (SourceError::Refused(_) | SourceError::Config(_)) = error else { return error };
    match admission.refused(Instant::now()) {
        Some(left) => {
            let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
            Fault::Again { what: told(&error), left }.passing()
        }
        None => error,
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

/// Drops the slot, for whose sake the server keeps more log than `limits.slot_wal_stop` allows, so that the server lives.
/// Gives the fault that says what is lost with it; `delivered` is when the last delivered transaction was committed.
pub async fn give_up(config: &Config, delivered: Option<SystemTime>) -> SourceError {
    let control = match Ends::of(config) {
        Ok(ends) => ends.control().await,
        Err(error) => Err(error),
    };
    match control {
        Ok(control) => control.give_up(config, delivered).await,
        Err(error) => error,
    }
}

/// How sessions are opened.
#[derive(Clone)]
pub(crate) struct Ends {
    target: Target,
    slot: String,
    application_name: String,
    decoding_work_mem: Option<u64>,
}

impl Ends {
    fn of(config: &Config) -> Result<Ends, SourceError> {
        let text = config.source.postgres.read().map_err(|error| SourceError::Config(Box::new(error)))?;
        let target = Target::parse(&text).map_err(|error| SourceError::Config(Box::new(error)))?;
        let application_name = target.application_name.clone().unwrap_or_else(|| format!("offshoot_{}", config.name));
        let decoding_work_mem = config.source.decoding_work_mem.map(|size| size.as_u64());
        Ok(Ends { target, slot: config.slot(), application_name, decoding_work_mem })
    }

    async fn control(&self) -> Result<Control, SourceError> {
        Control::open(&self.target, &self.slot, &self.application_name).await
    }

    /// On the host that the control session is on.
    async fn greeting(&self, control: &Control) -> Result<Greeting, SourceError> {
        self.open(control, Purpose::Replicate).await
    }

    /// One that reads rows, on the same host.
    async fn reader(&self, control: &Control) -> Result<Greeting, SourceError> {
        self.open(control, Purpose::Read).await
    }

    async fn open(&self, control: &Control, purpose: Purpose) -> Result<Greeting, SourceError> {
        let (host, who) = (&control.host, control.who.clone());
        let work_mem = self.decoding_work_mem.filter(|_| purpose == Purpose::Replicate);
        Greeting::open(&self.target, host, who, &self.application_name, work_mem, purpose).await
    }
}
