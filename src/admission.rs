//! Whether a server that lets us in no more is asked again: a password or a certificate may be on its way to us.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a server that has let us in may refuse us. Secrets that are replaced reach both ends at different times:
/// Kubernetes takes up to two minutes to renew a file, people take longer.
pub const REFUSED_MAX: Duration = Duration::from_secs(300);

/// What one server thought of us, over all connections of this process.
#[derive(Debug, Default)]
pub struct Admission(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// A refusal lasts: what the config says has never been right.
    #[default]
    Never,
    LetIn,
    RefusedSince(Instant),
}

impl Admission {
    /// It has let us in.
    pub fn let_in(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State::LetIn;
    }

    /// It has refused us: how long it is still asked again. `None` where the refusal is taken to last.
    pub fn refused(&self, now: Instant) -> Option<Duration> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *state {
            State::Never => return None,
            State::LetIn => now,
            State::RefusedSince(since) => since,
        };
        *state = State::RefusedSince(since);
        REFUSED_MAX.checked_sub(now - since).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_never_let_in_is_not_asked_again() {
        let admission = Admission::default();
        let now = Instant::now();
        assert_eq!(admission.refused(now), None);
        assert_eq!(admission.refused(now + Duration::from_secs(1)), None);
    }

    #[test]
    fn who_was_let_in_is_asked_again_for_a_while_and_anew_after_being_let_in_again() {
        let admission = Admission::default();
        let now = Instant::now();
        admission.let_in();
        assert_eq!(admission.refused(now), Some(REFUSED_MAX));
        assert_eq!(admission.refused(now + REFUSED_MAX / 3), Some(REFUSED_MAX - REFUSED_MAX / 3));
        assert_eq!(admission.refused(now + REFUSED_MAX), None);
        assert_eq!(admission.refused(now + 2 * REFUSED_MAX), None);
        admission.let_in();
        assert_eq!(admission.refused(now + 2 * REFUSED_MAX), Some(REFUSED_MAX));
    }
}
