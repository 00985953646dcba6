//! `offshoot reload`: what is held of the source's tables is read from there again.

use crate::{
    causes::told,
    config::Config,
    exit::Exit,
    progress::{Progress, Reached},
};

use super::{ReloadArguments, drop::agreed, stream::now};

/// Says what it means, asks unless `yes`, and writes the progress record.
pub async fn reload(config: &Config, arguments: &ReloadArguments) -> Exit {
    let (progress, _) = match super::at_rest(config).await {
        Ok(found) => found,
        Err(exit) => return exit,
    };
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
