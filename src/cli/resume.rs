//! `offshoot resume`: a person says where to go on, where the program cannot know.

use crate::{
    causes::told,
    config::Config,
    exit::Exit,
    kafka,
    lsn::Lsn,
    postgres::Look,
    progress::{Origin, Progress, Reached, date},
};

use super::{ResumeArguments, drop::agreed, stream::now};

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Where the slot stands.
    Slot,
    /// A position that the slot still has.
    Position(Lsn),
    /// Now, with a new slot.
    NewSlot,
}

/// Why the position cannot be taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("there is no slot {0}; begin with a new one: --new-slot")]
    NoSlot(String),
    #[error("slot {0} is there; go on from it: --from-slot, or drop it first: offshoot drop")]
    SlotIsThere(String),
    #[error("slot {slot} stands at {confirmed}, and the log before that is gone: {at} cannot be had")]
    Gone { slot: String, confirmed: Lsn, at: Lsn },
    #[error("the server's log ends at {end}: {at} is beyond it")]
    Beyond { at: Lsn, end: Lsn },
    #[error("--epoch {epoch} is not above {known}, the one that events have now")]
    Epoch { epoch: u32, known: u32 },
}

/// Says what will be repeated or missing, asks unless `yes`, and writes the progress record.
pub async fn resume(config: &Config, arguments: &ResumeArguments) -> Exit {
    let kafka = &config.sink.kafka;
    let (progress, look) = match super::at_rest(config).await {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let next = match next(config, progress.as_ref(), &look, arguments.from(), arguments.epoch) {
        Ok(next) => next,
        Err(refusal) => {
            anstream::eprintln!("nothing was changed: {refusal}");
            return Exit::Config;
        }
    };
    let question = ("This sets, for good:", "Go on from there?");
    let things = consequences(progress.as_ref(), &next);
    if let Err(exit) = agreed(question, &things, arguments.yes, "nothing was changed") {
        return exit;
    }
    let written = async {
        if progress.is_none() {
            // Makes the topic, too.
            kafka::progress::write_first(kafka, &config.name, next.clone()).await?;
        }
        super::write_progress(config, |_| Ok(next.clone())).await
    };
    match written.await {
        Ok(_) => {
            anstream::eprintln!("done; the next `offshoot run` goes on from there, in epoch {}", next.epoch);
            Exit::Clean
        }
        Err(error) => {
            anstream::eprintln!("failed to {}", told(&error));
            super::exit_of(&error)
        }
    }
}

/// The record that says so.
fn next(
    config: &Config,
    progress: Option<&Progress>,
    look: &Look,
    from: From,
    epoch: Option<u32>,
) -> Result<Progress, Refusal> {
    let slot = config.slot();
    let reached = match (from, look.slot) {
        (From::NewSlot, None) => Reached::Creating,
        (From::NewSlot, Some(_)) => return Err(Refusal::SlotIsThere(slot)),
        (_, None) => return Err(Refusal::NoSlot(slot)),
        (From::Slot, Some((confirmed, _))) => Reached::End { end: confirmed, partial: None },
        (From::Position(at), Some((confirmed, _))) if at < confirmed => {
            return Err(Refusal::Gone { slot, confirmed, at });
        }
        (From::Position(at), _) if at > look.end_of_log => {
            return Err(Refusal::Beyond { at, end: look.end_of_log });
        }
        (From::Position(at), _) => Reached::End { end: at, partial: None },
    };
    // The highest that ids were made with.
    let known = progress.map_or(0, |progress| progress.next_epoch() - 1);
    let epoch = epoch.unwrap_or(known + 1);
    if epoch <= known {
        return Err(Refusal::Epoch { epoch, known });
    }
    let origin = Origin { system_identifier: look.system_identifier.clone(), timeline: look.timeline, slot };
    let mut next = Progress::creating(epoch, origin, config.fingerprint(), now());
    next.reached = reached;
    next.skipped = progress.and_then(|progress| progress.skipped.clone());
    // What was held is as of another position.
    Ok(next.holding(progress.and_then(|progress| progress.replica.clone())).forgetting())
}

/// What it means for whoever reads the topics.
fn consequences(progress: Option<&Progress>, next: &Progress) -> Vec<String> {
    let end = |progress: &Progress| match progress.reached {
        Reached::End { end, .. } => Some(end),
        Reached::Creating => None,
    };
    let before = progress.and_then(|progress| Some((end(progress)?, progress)));
    let same = before.is_some_and(|(_, progress)| progress.origin.system_identifier == next.origin.system_identifier);
    let place = match end(next) {
        Some(end) => format!("events go on with what is committed after {end}, in epoch {}", next.epoch),
        None => format!("events go on with what is committed once a new slot is made, in epoch {}", next.epoch),
    };
    let meaning = match (before, end(next)) {
        (None, _) => "what was published before is not known: some of it may come again".into(),
        (Some((reached, progress)), None) => format!(
            "everything that was committed after {reached}, since {}, and before that is not published",
            date(progress.time)
        ),
        (Some((reached, _)), _) if !same => {
            format!("positions of the other cluster, up to {reached}, say nothing here: what is missing is not known")
        }
        (Some((reached, progress)), Some(at)) if at > reached => format!(
            "what was committed between {reached} and {at}, {} bytes of the log since {}, is not published",
            at.bytes_since(reached),
            date(progress.time)
        ),
        (Some((reached, _)), Some(at)) if at < reached => {
            format!("what was committed between {at} and {reached} is published again")
        }
        (Some(_), Some(_)) => "nothing is missing, and nothing comes again".into(),
    };
    vec![place, meaning]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = "{ name: shop, source: { postgres: postgres://u@h/d }, changes: { tables: [a.b] }, \
                    sink: { kafka: { brokers: \"k:1\" } } }";
        Config::parse(text, "c", &|_| None).unwrap()
    }

    fn look(slot: Option<u64>) -> Look {
        let slot = slot.map(|confirmed| (Lsn(confirmed), None));
        Look { slot, system_identifier: "7".into(), timeline: 1, end_of_log: Lsn(900) }
    }

    fn at(end: u64) -> Progress {
        let mut progress = next(&config(), None, &look(Some(end)), From::Slot, None).unwrap();
        progress.epoch = 3;
        progress
    }

    #[test]
    fn goes_on_where_it_is_told_in_a_new_epoch() {
        let config = config();
        let found = next(&config, Some(&at(100)), &look(Some(200)), From::Slot, None).unwrap();
        assert_eq!((found.reached, found.epoch), (Reached::End { end: Lsn(200), partial: None }, 4));
        assert!(consequences(Some(&at(100)), &found)[1].contains("100 bytes of the log"));
        let back = next(&config, Some(&at(300)), &look(Some(200)), From::Position(Lsn(250)), Some(9)).unwrap();
        assert_eq!(back.epoch, 9);
        assert!(consequences(Some(&at(300)), &back)[1].contains("published again"));
        let new = next(&config, Some(&at(300)), &look(None), From::NewSlot, None).unwrap();
        assert_eq!(new.reached, Reached::Creating);
        assert!(consequences(None, &new)[1].contains("not known"));
    }

    #[test]
    fn refuses_what_the_slot_cannot_give() {
        let config = config();
        let refused = |slot, from, epoch| next(&config, Some(&at(100)), &look(slot), from, epoch).unwrap_err();
        assert!(matches!(refused(None, From::Slot, None), Refusal::NoSlot(_)));
        assert!(matches!(refused(Some(1), From::NewSlot, None), Refusal::SlotIsThere(_)));
        assert!(matches!(refused(Some(50), From::Position(Lsn(49)), None), Refusal::Gone { .. }));
        assert!(matches!(refused(Some(50), From::Position(Lsn(901)), None), Refusal::Beyond { .. }));
        assert_eq!(refused(Some(50), From::Slot, Some(3)), Refusal::Epoch { epoch: 3, known: 3 });
    }
}
