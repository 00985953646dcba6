//! `offshoot skip`: one whole transaction that cannot be published -> a file, and the stream goes on after it.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    causes::told,
    config::Config,
    exit::Exit,
    kafka,
    pipeline::Error,
    postgres::{
        self, Start, Warned,
        assemble::Kept,
        save::{SaveError, Saved, save},
        tables::Patterns,
    },
    progress::{Origin, Partial, Progress, Reached, Skipped},
    source::SourceError,
};

use super::{SkipArguments, drop::agreed, stream::now};

/// Why nothing was skipped.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("PID {pid} reads from slot {slot}; stop that offshoot first")]
    Held { slot: String, pid: i32 },
    #[error("nothing has been published yet: there is no progress record to go on from")]
    NoProgress,
    #[error(
        "the next transaction that is not published commits at {next}, and no part of it stands at {asked}: skipping goes \
         transaction by transaction, and only where the stream stands"
    )]
    AnotherIsNext { next: crate::lsn::Lsn, asked: crate::lsn::Lsn },
    #[error("make the file {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Save(#[from] SaveError),
    #[error(transparent)]
    Ends(#[from] Error),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Failure::Ends(error.into())
    }
}

/// Saves the transaction, says what it is, asks unless `yes`, and writes a progress record that covers it.
pub async fn skip(config: &Config, arguments: &SkipArguments) -> Exit {
    match try_to_skip(config, arguments).await {
        Ok(exit) => exit,
        Err(failure) => {
            anstream::eprintln!("nothing was skipped: {}", told(&failure));
            match failure {
                Failure::Held { .. } => Exit::Held,
                Failure::Ends(error) => super::exit_of(&error),
                Failure::Save(SaveError::Source(error)) => super::exit_of(&error.into()),
                Failure::File { .. } | Failure::Save(SaveError::File(_)) => Exit::Unexpected,
                _ => Exit::Config,
            }
        }
    }
}

async fn try_to_skip(config: &Config, arguments: &SkipArguments) -> Result<Exit, Failure> {
    let look = postgres::look(config).await?;
    if let Some((_, Some(pid))) = look.slot {
        return Err(Failure::Held { slot: config.slot(), pid });
    }
    let progress =
        kafka::progress::read(&config.sink.kafka, &config.name, &Arc::default()).await.map_err(Error::from)?;
    let Some(progress @ Progress { reached: Reached::End { end, .. }, .. }) = progress else {
        return Err(Failure::NoProgress);
    };
    let warned = Warned::default();
    let nothing = &|| {};
    let admissions = postgres::Admissions::default();
    let held: Vec<u32> = progress.replica.iter().flat_map(|holding| &holding.tables).map(|table| table.oid).collect();
    let start = Start {
        warned: &warned,
        admissions: &admissions,
        held: &held,
        waiting: nothing,
        accept: &|_, _| Ok(()),
        // The slot is there, and its progress is known: `run` has seen to both.
        permit: &|_, _| Box::pin(async { Ok::<(), SourceError>(()) }),
    };
    let (mut session, prepared) = postgres::connect(config, &start).await?;
    let path = arguments.file.clone().unwrap_or_else(|| {
        let name = format!("skipped-{}-{}.jsonl", config.name, arguments.lsn.to_string().replace('/', "-"));
        config.data_dir.join(name)
    });
    let saved = save_to(&path, &mut session, end, config, arguments).await;
    postgres::Wire::close(session).await;
    let saved = saved?;
    if !saved.has_position {
        let _ = fs::remove_file(&path);
        return Err(Failure::AnotherIsNext { next: saved.commit, asked: arguments.lsn });
    }
    let holds = progress.replica.as_ref().is_some_and(|replica| !replica.tables.is_empty());
    // It was to be passed over like this before, and even that failed.
    let failed = matches!(progress.reached, Reached::End { partial: Some(partial), .. } if partial.keeping && partial.commit == saved.commit);
    let keeps = holds && !failed;
    let rows = match (holds, keeps) {
        (false, _) => None,
        (true, true) => Some("what it did to rows that later events need is taken over by the next run".to_owned()),
        (true, false) => Some(
            "rows that later events need are loaded again by the next run: events that need them are not made of what was committed before that"
                .to_owned(),
        ),
    };
    let things = [
        format!("transaction {} that commits at {}, with {} messages", saved.xid, saved.commit, saved.messages),
        format!("it is saved in {}, one message a line", path.display()),
    ];
    let things: Vec<_> = things.into_iter().chain(rows).collect();
    let question = ("This leaves out, for good:", "It will never be published. Skip it?");
    if let Err(exit) = agreed(question, &things, arguments.yes, "nothing was skipped") {
        return Ok(exit);
    }
    let origin =
        Origin { system_identifier: prepared.system_identifier, timeline: prepared.timeline, slot: prepared.slot };
    let skipped = Skipped {
        commit: saved.commit,
        xid: saved.xid,
        by: whoever_this_is(),
        at: now(),
        file: path.display().to_string(),
    };
    let written = super::write_progress(config, move |found| {
        // Somebody may have gone on in the meantime.
        if found != Some(&progress) {
            return Err("another offshoot has published since; look again".into());
        }
        let mut next = progress.clone();
        (next.origin, next.skipped, next.time) = (origin.clone(), Some(skipped.clone()), now());
        if keeps {
            // The next run takes it once more, for what it did to rows that are held, and tells nothing of it.
            let partial = Some(Partial { commit: saved.commit, index: 0, keeping: true });
            next.reached = Reached::End { end, partial };
            return Ok(next);
        }
        next.reached = Reached::End { end: saved.end, partial: None };
        Ok(next.forgetting())
    });
    written.await?;
    anstream::eprintln!("skipped; the next `offshoot run` goes on after {}", saved.end);
    Ok(Exit::Clean)
}

async fn save_to(
    path: &Path,
    session: &mut postgres::Session,
    end: crate::lsn::Lsn,
    config: &Config,
    arguments: &SkipArguments,
) -> Result<Saved, Failure> {
    let failed = |source| Failure::File { path: path.to_owned(), source };
    let file = File::create(path).map_err(failed)?;
    let mut writer = BufWriter::new(file);
    let patterns = Patterns::compile(config, &[]).map_err(|error| SourceError::Config(Box::new(error)))?;
    let leaves = |prefix: &str| patterns.kept(prefix) == Kept::InOrder;
    let saved = save(session, end, arguments.lsn, &leaves, now, &mut writer).await?;
    writer.flush().map_err(failed)?;
    // It is the only copy from now on.
    writer.get_ref().sync_all().map_err(failed)?;
    Ok(saved)
}

/// The user and the host, for the record.
fn whoever_this_is() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "somebody".into());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}
