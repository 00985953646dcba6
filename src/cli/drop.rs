//! What is to be dropped -> the answer of whoever sits at the terminal.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    causes::told,
    config::Config,
    exit::Exit,
    kafka,
    pipeline::Error,
    postgres::{self, Dropped},
    progress::Progress,
    replica,
    sink::SinkError,
};

use super::stream::now;

/// How long Kafka may take to hear of it: the slot is gone by then, which is what the database needs.
const FORGET_WAIT: Duration = Duration::from_secs(15);

/// May it be dropped?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Drop it.
    Yes,
    /// Leave it.
    No,
    /// Nobody is there to be asked, and `--yes` was not given.
    NobodyThere,
}

/// How consent is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// `--yes`.
    Given,
    /// Somebody sits at the terminal.
    Ask,
    /// Standard input is a pipe or a file.
    Nobody,
}

impl Consent {
    /// From `--yes`, and from what standard input is.
    pub fn new(yes: bool, terminal: bool) -> Self {
        match (yes, terminal) {
            (true, _) => Self::Given,
            (false, true) => Self::Ask,
            (false, false) => Self::Nobody,
        }
    }
}

/// Says what will be dropped, asks unless `yes`, and drops it.
pub async fn drop(config: &Config, yes: bool) -> Exit {
    let question = ("This drops, for good:", "Changes that are committed from now on will not be published. Drop?");
    if let Err(exit) = agreed(question, &things(config), yes, "nothing was dropped") {
        return exit;
    }
    match postgres::drop_all(config).await {
        Ok(dropped) => {
            anstream::eprint!("{}", report(&dropped));
            if let Some(file) = cache(config) {
                anstream::eprint!("{}", removed(&file, fs::remove_file(&file)));
            }
            if !config.events.is_empty() {
                anstream::eprint!("{}", left_topic(config));
            }
            forget(config).await
        }
        Err(error) => {
            anstream::eprintln!("failed to {}", told(&error));
            Exit::Source
        }
    }
}

/// What there may be, by its names.
fn things(config: &Config) -> Vec<String> {
    let publication = config.publication();
    let mut things = vec![
        format!("the replication slot {}", config.slot()),
        format!("the publications {publication} and {publication}_inserts, where offshoot made them"),
    ];
    things.extend(cache(config).map(|file| format!("the file {}, a copy of the replica's topic", file.display())));
    things
}

/// The replica's local file, when there is one here.
fn cache(config: &Config) -> Option<PathBuf> {
    Some(replica::file_of(&config.data_dir, &config.name)).filter(|file| file.exists())
}

fn removed(file: &Path, result: io::Result<()>) -> String {
    match result {
        Ok(()) => format!("deleted {}\n", file.display()),
        Err(error) => format!("left {}: {error}\n", file.display()),
    }
}

/// What is in Kafka stays: whoever reads it may not be done. The replica's topic is of no use to anybody else.
fn left_topic(config: &Config) -> String {
    format!(
        "left the replica's topic, if there is one; delete it: kafka-topics --bootstrap-server {} --delete --topic {}\n",
        config.sink.kafka.brokers,
        kafka::kept::topic_name(&config.name)
    )
}

/// What has become of them.
fn report(dropped: &Dropped) -> String {
    let gone = dropped.slot.iter().map(|name| format!("dropped slot {name}\n"));
    let gone = gone.chain(dropped.publications.iter().map(|name| format!("dropped publication {name}\n")));
    let left = dropped.left.iter().map(|name| format!("left publication {name}: offshoot did not make it\n"));
    let text: String = gone.chain(left).collect();
    if text.is_empty() { "nothing was there\n".into() } else { text }
}

/// Lets the progress record say that a slot is to be made: the next `run` begins anew, and that is no gap.
async fn forget(config: &Config) -> Exit {
    let kafka = &config.sink.kafka;
    let forgotten = async {
        let Some(progress) = kafka::progress::read(kafka, &config.name, &Arc::default()).await? else { return Ok(()) };
        let next = |_: Option<&Progress>| {
            let mut next = Progress::creating(progress.next_epoch(), progress.origin, progress.fingerprint, now());
            next.skipped = progress.skipped;
            Ok(next)
        };
        super::write_progress(config, next).await
    };
    match tokio::time::timeout(FORGET_WAIT, forgotten).await.unwrap_or_else(|_| Err(late())) {
        Ok(()) => Exit::Clean,
        Err(error) => {
            anstream::eprintln!(
                "the progress record in kafka stays, and a later `run` will ask for `offshoot resume --new-slot`: failed to {}",
                told(&error)
            );
            super::exit_of(&error)
        }
    }
}

fn late() -> Error {
    Error::Sink(SinkError::Passing(format!("reach kafka within {} s", FORGET_WAIT.as_secs()).into()))
}

/// Says what will be done, and asks unless `yes`. Without a yes it says `nothing` was done, and how to end.
pub(super) fn agreed(question: (&str, &str), things: &[String], yes: bool, nothing: &str) -> Result<(), Exit> {
    let stdin = io::stdin();
    let consent = Consent::new(yes, stdin.is_terminal());
    match ask(question, things, consent, &mut stdin.lock(), &mut anstream::stderr()) {
        Ok(Answer::Yes) => Ok(()),
        Ok(Answer::No) => {
            anstream::eprintln!("{nothing}");
            Err(Exit::Clean)
        }
        Ok(Answer::NobodyThere) => {
            anstream::eprintln!("{nothing}: there is nobody to ask; add --yes");
            Err(Exit::Config)
        }
        Err(error) => {
            anstream::eprintln!("{nothing}: the answer cannot be read: {error}");
            Err(Exit::Unexpected)
        }
    }
}

/// Says what will be done, then asks where it must.
pub fn ask(
    (what, question): (&str, &str),
    things: &[String],
    consent: Consent,
    from: &mut dyn BufRead,
    to: &mut dyn Write,
) -> io::Result<Answer> {
    writeln!(to, "{what}")?;
    for thing in things {
        writeln!(to, "  {thing}")?;
    }
    match consent {
        Consent::Given => return Ok(Answer::Yes),
        Consent::Nobody => return Ok(Answer::NobodyThere),
        Consent::Ask => {}
    }
    write!(to, "{question} [y/N] ")?;
    to.flush()?;
    let mut line = String::new();
    from.read_line(&mut line)?;
    match line.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(Answer::Yes),
        _ => Ok(Answer::No),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(consent: Consent, typed: &str) -> (Answer, String) {
        let mut said = Vec::new();
        let things = ["slot offshoot_shop".into(), "publication offshoot_shop".into()];
        let answer =
            ask(("This drops, for good:", "Drop?"), &things, consent, &mut typed.as_bytes(), &mut said).unwrap();
        (answer, String::from_utf8(said).unwrap())
    }

    #[test]
    fn says_first_what_it_will_drop() {
        let (_, said) = asked(Consent::Given, "");
        assert_eq!(said, "This drops, for good:\n  slot offshoot_shop\n  publication offshoot_shop\n");
    }

    #[test]
    fn tells_what_has_become_of_each() {
        assert_eq!(report(&Dropped::default()), "nothing was there\n");
        let dropped = Dropped {
            slot: Some("offshoot_shop".into()),
            publications: vec!["offshoot_shop".into()],
            left: vec!["offshoot_shop_inserts".into()],
        };
        assert_eq!(
            report(&dropped),
            "dropped slot offshoot_shop\ndropped publication offshoot_shop\n\
             left publication offshoot_shop_inserts: offshoot did not make it\n"
        );
    }

    #[test]
    fn names_the_replicas_file_and_topic_where_there_may_be_some() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "{{ name: shop, data_dir: \"{}\", source: {{ postgres: x }}, changes: {{ tables: [a.b] }}, \
             sink: {{ kafka: {{ brokers: \"k:9092\" }} }} }}",
            dir.path().display()
        );
        let config = Config::parse(&text, "c", &|_| None).unwrap();
        assert_eq!(things(&config).len(), 2);
        let file = dir.path().join("replica-shop.redb");
        fs::write(&file, "rows").unwrap();
        assert_eq!(things(&config)[2], format!("the file {}, a copy of the replica's topic", file.display()));
        assert_eq!(removed(&file, fs::remove_file(&file)), format!("deleted {}\n", file.display()));
        assert!(removed(&file, fs::remove_file(&file)).starts_with("left "));
        assert!(
            left_topic(&config)
                .ends_with("kafka-topics --bootstrap-server k:9092 --delete --topic offshoot.shop.replica\n")
        );
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        for (typed, answer) in [
            ("y\n", Answer::Yes),
            ("YES\n", Answer::Yes),
            ("\n", Answer::No),
            ("", Answer::No),
            ("no\n", Answer::No),
            ("yep\n", Answer::No),
        ] {
            assert_eq!(asked(Consent::Ask, typed).0, answer, "{typed:?}");
        }
    }

    #[test]
    fn refuses_in_a_pipe_unless_told() {
        assert_eq!(asked(Consent::new(false, false), "y\n").0, Answer::NobodyThere);
        assert_eq!(asked(Consent::new(true, false), "").0, Answer::Yes);
    }
}
