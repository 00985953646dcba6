//! The command line -> what was asked for. One file per command below.

pub mod run;
pub mod bars;
pub mod stream;
pub mod check;
pub mod drop;
pub mod notify;
pub mod completions;
pub mod schema;
pub mod resume;
pub mod skip;
pub mod reload;
pub mod columns;
pub mod preview;

use std::{path::PathBuf, sync::Arc};

use clap::{ArgGroup, Args, Parser, Subcommand};

use self::bars::Bars;
use crate::{
    causes::told,
    config::{Check, Config},
    exit::{EXIT_CODES, Exit},
    kafka::{self, producer::KafkaSink},
    lsn::Lsn,
    pipeline::Error,
    postgres::{self, Look},
    progress::Progress,
    sink::{News, Sink},
    source::SourceError,
    telemetry::{LogFormat, Logs},
};

/// Whoever looks at its part of a config before anything is begun.
pub const CHECKS: &[Check] = &[postgres::check, kafka::client::check];

/// What was asked for.
#[derive(Debug, Parser)]
#[command(name = "offshoot", version, about, long_about = ABOUT, after_long_help = format!("{EXAMPLE}\n\n{EXIT_CODES}"))]
#[command(max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What is logged, and how.
    #[command(flatten)]
    pub logs: LogArguments,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a config would publish, rows beside records; nothing is sent or kept
    #[command(long_about = PREVIEW, after_long_help = EXIT_CODES)]
    Preview(PreviewArguments),
    /// Publish committed changes until stopped
    #[command(long_about = RUN, after_long_help = EXIT_CODES)]
    Run(ConfigArguments),
    /// Look at both servers and say what is missing and how to mend it
    #[command(long_about = CHECK, after_long_help = EXIT_CODES)]
    Check(CheckArguments),
    /// Remove what `run` made in Postgres: the slot and the publications
    #[command(long_about = DROP, after_long_help = EXIT_CODES)]
    Drop(DropArguments),
    /// Say where to go on after a gap that `run` refuses to pass by itself
    #[command(long_about = RESUME, after_long_help = EXIT_CODES)]
    Resume(ResumeArguments),
    /// Leave out one transaction that cannot be published, and keep it in a file
    #[command(long_about = SKIP, after_long_help = EXIT_CODES)]
    Skip(SkipArguments),
    /// Have what events need of the source's tables loaded from there again
    #[command(long_about = RELOAD, after_long_help = EXIT_CODES)]
    Reload(ReloadArguments),
    /// Print the config's JSON Schema, for editors
    #[command(long_about = SCHEMA)]
    ConfigSchema,
    /// Print the script that completes these commands in a shell
    #[command(long_about = COMPLETIONS)]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// Shells that a script is printed for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Shell {
    /// Bash 4 or later.
    Bash,
    /// Zsh.
    Zsh,
    /// Fish.
    Fish,
}

/// Which pipeline.
#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// The pipeline's config
    #[arg(short, long = "config", value_name = "FILE", env = "OFFSHOOT_CONFIG")]
    pub config: PathBuf,
}

/// `offshoot check`.
#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Which pipeline.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Print the findings as a JSON array
    #[arg(long)]
    pub json: bool,
}

/// `offshoot preview`.
#[derive(Debug, Args)]
pub struct PreviewArguments {
    /// Which pipeline.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Print one JSON object per transaction
    #[arg(long)]
    pub json: bool,
    /// End after so many transactions
    #[arg(long, value_name = "N")]
    pub transactions: Option<u64>,
}

/// `offshoot drop`.
#[derive(Debug, Args)]
pub struct DropArguments {
    /// Which pipeline.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// `offshoot resume`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("from").required(true))]
pub struct ResumeArguments {
    /// Which pipeline.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Go on where the slot stands
    #[arg(long, group = "from")]
    pub from_slot: bool,
    /// Go on after this position, which the slot must still have
    #[arg(long, value_name = "LSN", group = "from")]
    pub at: Option<Lsn>,
    /// Begin again with a new slot, when the old one is gone
    #[arg(long, group = "from")]
    pub new_slot: bool,
    /// The epoch of what is published from then on; above all that were before when not said
    #[arg(long, value_name = "N")]
    pub epoch: Option<u32>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

impl ResumeArguments {
    /// Where to go on.
    pub fn from(&self) -> resume::From {
        match (self.at, self.new_slot) {
            (Some(at), _) => resume::From::Position(at),
            (None, true) => resume::From::NewSlot,
            (None, false) => resume::From::Slot,
        }
    }
}

/// `offshoot skip`.
#[derive(Debug, Args)]
pub struct SkipArguments {
    /// Which pipeline.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// The transaction, by the position that the message of the stop named
    #[arg(long, value_name = "LSN")]
    pub lsn: Lsn,
    /// Where to save it; below `data_dir` when not said
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// `offshoot reload`.
#[derive(Debug, Args)]
pub struct ReloadArguments {
    /// Which pipeline.
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// `--log`, `--log-format`.
#[derive(Debug, Args)]
pub struct LogArguments {
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value = "text", env = "OFFSHOOT_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or by module such as `info,offshoot::postgres=debug`
    #[arg(long, global = true, value_name = "FILTER", default_value = "info", env = "OFFSHOOT_LOG")]
    pub log: String,
}

impl Arguments {
    /// What is logged, and how.
    pub fn logs(&self, bars: &Bars) -> Logs<'_> {
        Logs { format: self.logs.log_format, filter: &self.logs.log, draws_loads: bars.are_drawn() }
    }
}

/// The progress record and the slot of a pipeline that nobody runs; else says why it cannot be changed.
async fn at_rest(config: &Config) -> Result<(Option<Progress>, Look), Exit> {
    let found = async {
        let progress = kafka::progress::read(&config.sink.kafka, &config.name, &Arc::default()).await?;
        Ok::<_, Error>((progress, postgres::look(config).await?))
    };
    let (progress, look) = found.await.map_err(|error| {
        anstream::eprintln!("nothing was changed: failed to {}", told(&error));
        exit_of(&error)
    })?;
    if let Some((_, Some(pid))) = look.slot {
        let slot = config.slot();
        anstream::eprintln!("nothing was changed: PID {pid} reads from slot {slot}; stop that offshoot first");
        return Err(Exit::Held);
    }
    Ok((progress, look))
}

/// Writes the progress record that `next` makes of the last one, when nobody else can publish any more.
async fn write_progress(
    config: &Config,
    next: impl FnOnce(Option<&Progress>) -> Result<Progress, String>,
) -> Result<(), Error> {
    let buffer_bytes = config.limits.memory.as_u64() as usize;
    let mut sink = KafkaSink::connect(&config.sink.kafka, &config.name, buffer_bytes, &Arc::default())?;
    let found = sink.take_over().await?;
    let next = next(found.as_ref()).map_err(|why| SourceError::Refused(why.into()))?;
    sink.commit(&next)?;
    let mut news = News::default();
    while !news.committed {
        sink.news(&mut news).await?;
    }
    sink.close().await;
    Ok(())
}

/// How a command ends whose ends fail; there is no trying again.
fn exit_of(error: &Error) -> Exit {
    match error {
        Error::Source(error) => error.into(),
        Error::Sink(error) => error.into(),
        _ => Exit::Unexpected,
    }
}

// Paragraphs are single lines, which clap breaks where the terminal ends; what must stay as it is keeps within 80.

const ABOUT: &str = "\
Offshoot reads the committed changes of a Postgres database from its write-ahead log (logical replication, pgoutput) \
and publishes them to Kafka, per key in commit order: as the domain events that a config file describes, and as row changes in Debezium's envelope.

Postgres forgets its log only up to what Kafka has committed: nothing committed is lost. Consumers that read committed \
see each change once, and each transaction whole or not at all.";

const EXAMPLE: &str = "\
A config, shop.yaml:

  name: shop
  source:
    postgres: ${SHOP_URL}            # or file:/run/secrets/shop-url
  sink:
    kafka:
      brokers: kafka-1:9092,kafka-2:9092
  changes:
    tables: [public.*]

The way to a running pipeline:

  export SHOP_URL='postgres://cdc:secret@db.internal/shop?sslmode=verify-full'
  offshoot check -c shop.yaml    # what is missing, and the SQL that mends it
  offshoot run -c shop.yaml      # publishes to shop.<schema>.<table>
  offshoot drop -c shop.yaml     # at its end: a forgotten slot fills the disk

`offshoot help run`, `check`, `drop`, `resume`, `skip` and `reload` say more.";

const RUN: &str = "\
Makes the replication slot and the publication when they are absent, and publishes every change that is committed from \
then on, until SIGTERM or SIGINT: then what is in flight is delivered and confirmed, and the exit code is 0. A second \
signal ends it at once, with 1.

Servers that cannot be reached are tried again for ever, with growing pauses. What trying again cannot mend ends it \
with one of the codes below, and the log says how to mend it. While another instance reads from the slot, this one waits.

/livez, /readyz and /metrics answer on `admin.listen`, 127.0.0.1:8642 unless the config says otherwise.

Example:
  offshoot run -c shop.yaml --log-format json";

const PREVIEW: &str = "\
Reads what is committed from now on and shows what the config would make of it: on the left the rows of each transaction, on the \
right the records, or why `run` would stop there. It needs a publication of the tables (and prints the SQL when there is none), takes a \
temporary slot that is gone when it ends, does not connect to Kafka, and keeps nothing.

Example:
  offshoot preview -c shop.yaml --transactions 10";

const CHECK: &str = "\
Connects to both servers, changes nothing, and prints what is there (✓), what somebody should know (!) and what would \
keep `run` from working (✗), each with the SQL, command or setting that mends it, to be pasted. Answers within ten \
seconds, whoever is away. The exit code \
is 0 when there is no ✗, else 2 when what the config asks for is not there, 3 when the source has one and 4 when only \
the sink has.

Example:
  offshoot check -c shop.yaml --json | jq '.[] | select(.level == \"cross\")'";

const SCHEMA: &str = "\
Prints a JSON Schema (draft 7) of the config file. An editor with a YAML language server completes keys with it, shows what \
they mean and marks what is wrong.

Example:
  offshoot config-schema > offshoot.schema.json

and, as the first line of a config:
  # yaml-language-server: $schema=offshoot.schema.json";

const COMPLETIONS: &str = "\
Prints a script that completes commands and options in a shell.

Examples:
  offshoot completions bash > /etc/bash_completion.d/offshoot
  offshoot completions zsh > /usr/local/share/zsh/site-functions/_offshoot
  offshoot completions fish > ~/.config/fish/completions/offshoot.fish";

const DROP: &str = "\
Drops the replication slot and the publications that `run` made, after saying which and asking. Topics and their \
records stay. What is committed from then on is never published: a later `run` begins with a new slot, at its own start.

A slot that nobody reads keeps the write-ahead log for ever and fills the database's disk: drop it when a pipeline retires.

Example:
  offshoot drop -c shop.yaml --yes";

const RESUME: &str = "\
Where the slot and the progress record in Kafka do not fit together (one of them is lost, or belongs to another database \
cluster), `run` stops with exit code 5 and says what is missing: going on by itself would be a silent gap. This command \
says where to go on. It prints what will be missing or come again, asks, and writes a progress record with a new epoch.

Example:
  offshoot resume -c shop.yaml --from-slot";

const SKIP: &str = "\
A transaction that cannot be decoded, encoded or sent stops `run`, and Postgres keeps its log from there on: never \
skipping would fill the disk. Where it cannot be mended, this command leaves out that one transaction, whole. It is \
saved to a file first, one message a line; who skipped it, and when, stands in the progress record. No offshoot may \
read from the slot meanwhile.

Example:
  offshoot skip -c shop.yaml --lsn 16/B374D848";

const RELOAD: &str = "\
Events that need old values, look-ups or children that a transaction does not carry are made with a copy of the rows of those tables: a \
compacted topic, offshoot.<name>.replica, with a cache of it in data_dir. The cache may be lost at any time; the topic may not: when \
it was deleted or set back, `run` stops with exit code 5. This command has the tables loaded again, from a snapshot of the source, at the next start. \
Events that need them begin at the position of that snapshot. No offshoot may read from the slot meanwhile.

Example:
  offshoot reload -c shop.yaml";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_config_that_help_shows_loads() {
        let text = EXAMPLE.split("shop.yaml:\n").nth(1).unwrap().split("The way").next().unwrap();
        crate::config::Config::parse(text, "help", &|_| Some("postgres://cdc@db/shop".into())).unwrap();
    }

    #[test]
    fn what_must_stay_as_it_is_keeps_within_80_columns() {
        let kept = EXAMPLE.lines().filter(|line| line.starts_with("  "));
        assert_eq!(kept.filter(|line| line.chars().count() > 79).collect::<Vec<_>>(), [""; 0]);
    }
}
