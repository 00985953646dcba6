//! `Finding`: one thing that was looked at in a server, and how to mend it.

use std::fmt;

use serde::Serialize;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it stands.
    pub level: Level,
    /// What was found, one line, without a secret.
    pub what: String,
    /// The SQL or the setting that mends it, in as many lines as it takes.
    pub mend: Option<String>,
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// `run` works; somebody should know.
    Warning,
    /// `run` would not work.
    Cross,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: String) -> Self {
        Self { level: Level::Ok, what, mend: None }
    }

    /// `run` works; somebody should know.
    pub fn warning(what: String, mend: String) -> Self {
        Self { level: Level::Warning, what, mend: Some(mend) }
    }

    /// `run` would not work until `mend` is done.
    pub fn cross(what: String, mend: String) -> Self {
        Self { level: Level::Cross, what, mend: Some(mend) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mend {
            Some(mend) => write!(f, "{}; {mend}", self.what),
            None => f.write_str(&self.what),
        }
    }
}
