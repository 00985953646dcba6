//! A stream to look at: of publications that are there, by a slot that ends with the session. Nothing is made that stays. IO.

use tokio::time::timeout;

use super::{
    Ends,
    fault::Fault,
    session::{Session, Wishes},
};
use crate::{config::Config, lsn::Lsn, mapping::catalog::Catalog, source::SourceError};

/// What the preview streams.
pub struct Preview {
    /// Streams from now on.
    pub session: Session,
    /// The end of the log when it began.
    pub from: Lsn,
    /// What the database says of the tables that events are made of; `None` where none are.
    pub catalog: Option<Catalog>,
    /// The database's name.
    pub database: String,
    /// Which publications.
    pub publications: Vec<String>,
    /// The publication is for tables that it lists, not for all or for whole schemas.
    pub publication_lists: bool,
}

/// Begins to stream what is committed from now on.
pub async fn preview(config: &Config) -> Result<Preview, SourceError> {
    let ends = Ends::of(config)?;
    let control = ends.control().await?;
    let server = control.fitting_server().await?;
    let mut as_it_is = config.clone();
    as_it_is.source.create = false;
    let (plan, catalog) = control.plan(&as_it_is, server.version_num, None).await?;
    if !plan.statements.is_empty() {
        let why = "preview without a publication of what the config asks for, and a preview makes none".to_owned();
        return Err(control.run_this(why, &plan.statements));
    }
    let mut greeting = ends.greeting(&control).await?;
    // By process and pipeline: several may look at a time.
    let slot = format!("offshoot_preview_{}_{}", std::process::id(), config.name);
    let slot = &slot[..slot.len().min(IDENTIFIER_LEN_MAX)];
    // Its slot begins now, and what it shows is committed.
    let wishes = Wishes { messages: config.wants_messages(), open_transactions: false };
    let start = async {
        let from = greeting.create_temporary_slot(slot).await?;
        Ok::<_, SourceError>((from, greeting.start(slot, &plan.names, wishes, control.clone(), ends.clone()).await?))
    };
    let late = || Fault::StartTimeout { slot: slot.into(), seconds: super::START_TIMEOUT.as_secs() }.passing();
    let (from, session) = timeout(super::START_TIMEOUT, start).await.unwrap_or_else(|_| Err(late()))?;
    Ok(Preview {
        session,
        from,
        catalog,
        database: server.database,
        publications: plan.names,
        publication_lists: plan.lists_tables,
    })
}

/// Postgres' `NAMEDATALEN - 1`.
const IDENTIFIER_LEN_MAX: usize = 63;
