//! A condition and a deadline -> the moment when it holds. Tests wait with this and never sleep.

use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What a condition may give: `bool`, `Option` or `Result`.
pub trait Condition {
    /// What there is once it holds.
    type Value;

    /// The value, or the state that does not satisfy yet.
    fn settle(self) -> Result<Self::Value, String>;
}

/// Waits until `condition` holds and gives its value; panics with `what` and the last state after `deadline`.
#[track_caller]
pub fn until<C: Condition>(deadline: Duration, what: &str, condition: impl FnMut() -> C) -> C::Value {
    match attempt(deadline, condition) {
        Ok(value) => value,
        Err(state) => panic!("waited {deadline:?} for {what}; last: {state}"),
    }
}

/// As `until`, but gives the last state back instead of panicking.
pub fn attempt<C: Condition>(deadline: Duration, mut condition: impl FnMut() -> C) -> Result<C::Value, String> {
    let end = Instant::now() + deadline;
    loop {
        match condition().settle() {
            Ok(value) => return Ok(value),
            Err(state) if Instant::now() >= end => return Err(state),
            Err(_) => thread::sleep(POLL_INTERVAL),
        }
    }
}

impl Condition for bool {
    type Value = ();

    fn settle(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Condition for Option<T> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".into())
    }
}

impl<T, E: Debug> Condition for Result<T, E> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.map_err(|state| format!("{state:?}"))
    }
}
