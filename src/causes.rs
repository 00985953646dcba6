//! An error and its causes -> one line for people. Pure.
//!
//! An error's text either holds its cause, where words come after it, or has it as its `source`, never both: so a printer
//! that walks causes, ours or another, says each once.

use std::error::Error;

/// The error's text and those of its causes; what the text holds already is not said again.
pub fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{sink::SinkError, source::SourceError};

    #[derive(Debug, thiserror::Error)]
    #[error("start the session")]
    struct Outer(#[source] io::Error);

    fn outer() -> Box<Outer> {
        Box::new(Outer(io::Error::other("broken pipe")))
    }

    #[test]
    fn causes_are_told_once() {
        assert_eq!(told(&SourceError::Passing(outer())), "start the session: broken pipe");
    }

    #[test]
    fn whoever_walks_the_causes_meets_each_once() {
        let walked = |error: &dyn Error| {
            let mut texts = vec![error.to_string()];
            let mut cause = error.source();
            while let Some(inner) = cause {
                texts.push(inner.to_string());
                cause = inner.source();
            }
            texts
        };
        assert_eq!(walked(&SourceError::Refused(outer())), ["start the session", "broken pipe"]);
        assert_eq!(walked(&SinkError::Passing(outer())), ["start the session", "broken pipe"]);
    }
}
