//! `Exit`: how the process ends, for whoever started it.

use std::process::{ExitCode, Termination};

/// Exit codes, as the help lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Clean stop.
    Clean = 0,
    /// Something nobody thought of.
    Unexpected = 1,
    /// Config or mapping.
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
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}
