//! The command line -> what was asked for. One file per command below.

pub mod run;
pub mod stream;
pub mod check;
pub mod drop;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    config::Check,
    exit::EXIT_CODES,
    kafka, postgres,
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
    /// Publish committed changes until stopped
    #[command(long_about = RUN, after_long_help = EXIT_CODES)]
    Run(ConfigArguments),
    /// Look at both servers and say what is missing and how to mend it
    #[command(long_about = CHECK, after_long_help = EXIT_CODES)]
    Check(CheckArguments),
    /// Remove what `run` made in Postgres: the slot and the publications
    #[command(long_about = DROP, after_long_help = EXIT_CODES)]
    Drop(DropArguments),
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
    /// The config file of whichever command it is.
    pub fn config(&self) -> &PathBuf {
        match &self.command {
            Command::Run(config) => &config.config,
            Command::Check(check) => &check.config.config,
            Command::Drop(drop) => &drop.config.config,
        }
    }

    /// What is logged, and how.
    pub fn logs(&self) -> Logs<'_> {
        Logs { format: self.logs.log_format, filter: &self.logs.log }
    }
}

// Paragraphs are single lines, which clap breaks where the terminal ends; what must stay as it is keeps within 80.

const ABOUT: &str = "\
Offshoot reads the committed changes of a Postgres database from its write-ahead log (logical replication, pgoutput) \
and publishes them to Kafka, per key in commit order, in Debezium's envelope.

Postgres forgets its log only up to what Kafka has acknowledged: nothing committed is lost. A crash repeats whole \
transactions; a consumer drops repeats by `source.sequence`.";

const EXAMPLE: &str = "\
A config, shop.yaml:

  name: shop
  source:
    postgres: ${SHOP_URL}            # or file:/run/secrets/shop-url
  sink:
    kafka:
      brokers: kafka-1:9092,kafka-2:9092
      delivery: at_least_once
  changes:
    tables: [public.*]

The way to a running pipeline:

  export SHOP_URL='postgres://cdc:secret@db.internal/shop?sslmode=verify-full'
  offshoot check -c shop.yaml    # what is missing, and the SQL that mends it
  offshoot run -c shop.yaml      # publishes to shop.<schema>.<table>
  offshoot drop -c shop.yaml     # at its end: a forgotten slot fills the disk

`offshoot help run`, `check` and `drop` say more.";

const RUN: &str = "\
Makes the replication slot and the publication when they are absent, and publishes every change that is committed from \
then on, until SIGTERM or SIGINT: then what is in flight is delivered and confirmed, and the exit code is 0. A second \
signal ends it at once, with 1.

Servers that cannot be reached are tried again for ever, with growing pauses. What trying again cannot mend ends it \
with one of the codes below, and the log says how to mend it. While another instance reads from the slot, this one waits.

/livez, /readyz and /metrics answer on `admin.listen`, 127.0.0.1:8642 unless the config says otherwise.

Example:
  offshoot run -c shop.yaml --log-format json";

const CHECK: &str = "\
Connects to both servers, changes nothing, and prints what is there (✓), what somebody should know (!) and what would \
keep `run` from working (✗), each with the SQL, command or setting that mends it, to be pasted. Answers within ten \
seconds, whoever is away. The exit code \
is 0 when there is no ✗, else 2 when what the config asks for is not there, 3 when the source has one and 4 when only \
the sink has.

Example:
  offshoot check -c shop.yaml --json | jq '.[] | select(.level == \"cross\")'";

const DROP: &str = "\
Drops the replication slot and the publications that `run` made, after saying which and asking. Topics and their \
records stay. What is committed from then on is never published: a later `run` begins with a new slot, at its own start.

A slot that nobody reads keeps the write-ahead log for ever and fills the database's disk: drop it when a pipeline retires.

Example:
  offshoot drop -c shop.yaml --yes";

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
