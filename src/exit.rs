//! How the process ends -> its exit code.

use std::process::ExitCode;

use crate::{config::ConfigError, sink::SinkError, source::SourceError};

/// Why the process ends; the discriminant is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or stopped on request with everything in order.
    Clean = 0,
    /// Nothing below.
    Unexpected = 1,
    /// The config, or the command line.
    Config = 2,
    /// The source refuses for good.
    Source = 3,
    /// The sink refuses for good.
    Sink = 4,
    /// The slot is lost, or going on would leave a gap.
    SlotLost = 5,
    /// Another instance holds the pipeline, and waiting was not wanted.
    Held = 6,
    /// A change that cannot be decoded or mapped.
    Undecodable = 7,
    /// The server keeps more log for the slot than `limits.slot_wal_stop` allows.
    SlotLimit = 8,
}

/// The codes, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  clean stop
  1  unexpected
  2  config, or the command line
  3  the source refuses for good
  4  the sink refuses for good
  5  the slot is lost, or going on would leave a gap
  6  another instance holds the pipeline, and waiting was not wanted
  7  a change that cannot be decoded or mapped
  8  the server keeps more log for the slot than limits.slot_wal_stop allows";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

impl From<&ConfigError> for Exit {
    fn from(_: &ConfigError) -> Self {
        Exit::Config
    }
}

/// How the process ends when a source's error is not tried again; what passes has no code of its own.
impl From<&SourceError> for Exit {
    fn from(error: &SourceError) -> Self {
        match error {
            SourceError::Passing(_) | SourceError::Spill(_) => Exit::Unexpected,
            SourceError::Refused(_) => Exit::Source,
            SourceError::Config(_) => Exit::Config,
            SourceError::SlotLost(_) => Exit::SlotLost,
            SourceError::SlotLimit(_) => Exit::SlotLimit,
            SourceError::Undecodable(_) => Exit::Undecodable,
        }
    }
}

/// How the process ends when a sink's error is not tried again; what passes has no code of its own.
impl From<&SinkError> for Exit {
    fn from(error: &SinkError) -> Self {
        match error {
            SinkError::Passing(_) => Exit::Unexpected,
            SinkError::Late(_) | SinkError::Refused(_) | SinkError::Record { .. } => Exit::Sink,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_code() {
        use Exit::*;
        for exit in [Clean, Unexpected, Config, Source, Sink, SlotLost, Held, Undecodable, SlotLimit] {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
        }
    }
}
