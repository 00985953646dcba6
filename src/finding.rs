//! `Finding`: one thing that was looked at in a server, and how to mend it.

use std::fmt;

use serde::Serialize;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it stands.
    pub level: Level,
    /// What was looked at, such as `wal_level`, a table or a topic; empty when `what` is about nothing in particular.
    pub about: String,
    /// What was found, one line, without a secret.
    pub what: String,
    /// The SQL, command or setting that mends it, in as many lines as it takes. Lines that can be pasted stand alone.
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
        Self { level: Level::Ok, about: String::new(), what, mend: None }
    }

    /// `run` works; somebody should know.
    pub fn warning(what: String, mend: String) -> Self {
        Self { level: Level::Warning, mend: Some(mend), ..Self::ok(what) }
    }

    /// `run` would not work until `mend` is done.
    pub fn cross(what: String, mend: String) -> Self {
        Self { level: Level::Cross, ..Self::warning(what, mend) }
    }

    /// Says what was looked at, unless that is said.
    pub fn about(mut self, about: impl Into<String>) -> Self {
        if self.about.is_empty() {
            self.about = about.into();
        }
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.about.is_empty() {
            write!(f, "{}: ", self.about)?;
        }
        match &self.mend {
            Some(mend) => write!(f, "{}; {mend}", self.what),
            None => f.write_str(&self.what),
        }
    }
}
