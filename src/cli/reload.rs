//! `offshoot reload`: what is held of the source's tables is read from there again.

use std::sync::Arc;

use crate::{
    causes::told,
    config::Config,
    exit::Exit,
    kafka,
    pipeline::Error,
    postgres,
    progress::{Progress, Reached},
};

use super::{ReloadArguments, drop::agreed, stream::now};

/// Says what it means, asks unless `yes`, and writes the progress record.
pub async fn reload(config: &Config, arguments: &ReloadArguments) -> Exit {
    let found = async {
        let progress = kafka::progress::read(&config.sink.kafka, &config.name, &Arc::default()).await?;
        Ok::<_, Error>((progress, postgres::look(config).await?))
    };
    let (progress, look) = match found.await {
        Ok(found) => found,
        Err(error) => {
            anstream::eprintln!("nothing was changed: failed to {}", told(&error));
            return super::exit_of(&error);
        }
    };
    if let Some((_, Some(pid))) = look.slot {
        let slot = config.slot();
        anstream::eprintln!("nothing was changed: PID {pid} reads from slot {slot}; stop that offshoot first");
        return Exit::Held;
    }
    let Some(progress) = progress.filter(|progress| progress.replica.is_some()) else {
        anstream::eprintln!("nothing was changed: no rows of the source's tables are held");
        return Exit::Config;
    };
    let question = ("This reads again, at the next start:", "Load them again?");
    if let Err(exit) = agreed(question, &consequences(&progress), arguments.yes, "nothing was changed") {
        return exit;
    }
    let written = super::write_progress(config, move |found| match found {
        // Somebody may have gone on in the meantime.
        Some(found) if *found == progress => {
            let mut next = progress.forgetting();
            next.time = now();
            Ok(next)
        }
        _ => Err("another offshoot has published since; look again".into()),
    });
    match written.await {
        Ok(()) => {
            anstream::eprintln!(
                "done; the next `offshoot run` loads them, and logs from which position on events are made of them"
            );
            Exit::Clean
        }
        Err(error) => {
            anstream::eprintln!("failed to {}", told(&error));
            super::exit_of(&error)
        }
    }
}

fn consequences(progress: &Progress) -> Vec<String> {
    let tables = progress.replica.iter().flat_map(|replica| &replica.tables);
    let held: Vec<_> = tables.map(|table| format!("every row of {}, as it is then", table.table)).collect();
    let Reached::End { end, .. } = progress.reached else { return held };
    let gap = format!(
        "events that need these rows are not made of what was committed after {end} and before the position of the load; all others are"
    );
    held.into_iter().chain([gap]).collect()
}
