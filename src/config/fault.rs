//! What is wrong with a config -> the text that says where, and how to mend it. Pure.

use std::fmt::{self, Write};

use super::tree::{Key, Place};

/// Something wrong in a config. The derives of serde makes some of these without knowing where it stands; the walk adds that on the way out.
#[derive(Debug)]
pub(super) struct Flaw {
    pub(super) kind: Kind,
    /// The map or the value it is about, as `sink.kafka.topics`; empty for the whole file.
    pub(super) path: Option<String>,
    /// What the caret points at.
    pub(super) place: Option<Box<Place>>,
    /// What the excerpt shows; nothing else of the line is shown, since it may be secret.
    pub(super) shown: Shown,
}

/// What is wrong.
#[derive(Debug)]
pub(super) enum Kind {
    /// A key that does not exist in the map at `path`.
    UnknownKey { key: String, known: &'static [&'static str] },
    /// A key that the map at `path` needs.
    MissingKey { key: &'static str },
    /// A word where one of a few others is asked for.
    UnknownWord { word: String, known: &'static [&'static str] },
    /// What the value at `path` must be.
    Wrong(String),
    /// Anything else, whole.
    Text(String),
}

/// How much of the source an excerpt shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Shown {
    /// No excerpt at all.
    #[default]
    Nothing,
    /// The key alone.
    Key,
    /// The value, after its key when it stands on the same line; the offset is that of the key.
    Value { key: Option<usize> },
    /// The key, and `***` for its value.
    Secret,
}

/// A config that is refused: `file:line:column`, what is wrong, how to mend it, and the line's culprit.
#[derive(Debug)]
pub struct Fault {
    /// As it was named.
    pub file: String,
    /// From 1; 0 when it is about no line.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong and how to mend it, one line.
    pub message: String,
    /// The culprit with a caret below it, and nothing else of its line.
    pub excerpt: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message)?,
            _ => write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?,
        }
        self.excerpt.as_ref().map_or(Ok(()), |excerpt| write!(f, "\n{excerpt}"))
    }
}

impl std::error::Error for Fault {}

/// Keys and words of the plan that this version refuses, with what to do instead.
const NOT_BUILT: &[(&str, &str)] = &[
    ("changes.format=flat", "`changes.format: flat` is not built yet in this version; write `debezium`"),
    ("changes.schemas", "`changes.schemas` is not built yet in this version; records leave without schemas"),
    ("changes.skipped_operations", "`changes.skipped_operations` is not built yet in this version; remove it"),
];

/// What a key that must be there looks like.
const EXAMPLES: &[(&str, &str)] = &[
    ("name", "write `name: shop`"),
    ("source", "write `source: { postgres: postgres://user@host/database }`"),
    ("source.postgres", "write `postgres: postgres://user@host/database`"),
    ("sink", "write `sink: { kafka: { brokers: \"host:9092\", delivery: at_least_once } }`"),
    ("sink.kafka", "write `kafka: { brokers: \"host:9092\", delivery: at_least_once }`"),
    ("sink.kafka.brokers", "write `brokers: host:9092`"),
    ("changes.tables", "write `tables: [public.*]`"),
];

impl Flaw {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, path: None, place: None, shown: Shown::Nothing }
    }

    pub(super) fn text(message: impl Into<String>) -> Self {
        Self::new(Kind::Text(message.into()))
    }

    pub(super) fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert(Box::new(place));
        self
    }

    pub(super) fn at_key(mut self, key: &Key) -> Self {
        if self.place.is_none() {
            self.place = Some(Box::new(key.place.clone()));
            self.shown = if is_plain(&key.text) { Shown::Key } else { Shown::Nothing };
        }
        self
    }

    pub(super) fn within(mut self, path: &str) -> Self {
        self.path.get_or_insert_with(|| path.into());
        self
    }

    /// The text for the user, with nothing of `source` but the culprit.
    pub(super) fn told(self, file: &str, source: &str) -> Fault {
        let path = self.path.unwrap_or_default();
        let message = self.kind.message(&path);
        let place = self.place.unwrap_or_default();
        let excerpt = excerpt(source, &place, self.shown);
        Fault { file: file.into(), line: place.line, column: place.column, message, excerpt }
    }
}

impl Kind {
    fn message(self, path: &str) -> String {
        let child = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        let within = if path.is_empty() { String::new() } else { format!(" in `{path}`") };
        match self {
            Self::UnknownKey { key, known } => match not_built(&child(&key)) {
                Some(said) => said.into(),
                None if !is_plain(&key) => format!("unknown key{within}; the keys there are {}", listed(known)),
                None => format!("unknown key `{key}`{within}; {}", nearest_or_all(&key, known, "the keys there are")),
            },
            Self::MissingKey { key } => {
                let mend = EXAMPLES.iter().find(|(of, _)| *of == child(key)).map(|(_, mend)| *mend);
                format!("missing key `{key}`{within}{}", mend.map(|mend| format!("; {mend}")).unwrap_or_default())
            }
            Self::UnknownWord { word, known } => match not_built(&format!("{path}={word}")) {
                Some(said) => said.into(),
                None => format!("`{path}` cannot be `{word}`; {}", nearest_or_all(&word, known, "write")),
            },
            Self::Wrong(said) => format!("`{path}` {said}"),
            Self::Text(text) => text,
        }
    }
}

/// Whether a key looks like one, and not like a value that stands in a key's place and may be secret.
pub(super) fn is_plain(key: &str) -> bool {
    key.len() <= 64 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn not_built(path: &str) -> Option<&'static str> {
    NOT_BUILT.iter().find(|(of, _)| *of == path).map(|(_, said)| *said)
}

/// The word that was probably meant, else all there are.
fn nearest_or_all(word: &str, known: &[&str], all: &str) -> String {
    match nearest(word, known) {
        Some(best) => format!("did you mean `{best}`?"),
        None => format!("{all} {}", listed(known)),
    }
}

/// The word that was probably meant.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    /// Below this likeness a guess misleads more than it helps.
    const LIKENESS_MIN: f64 = 0.6;
    let word = word.to_lowercase();
    let likeness = |of: &str| strsim::normalized_damerau_levenshtein(&word, &of.to_lowercase());
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    best.copied().filter(|best| likeness(best) >= LIKENESS_MIN)
}

/// `a`, `b` or `c`.
fn listed(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

fn excerpt(source: &str, place: &Place, shown: Shown) -> Option<String> {
    let token = source.get(place.bytes.clone())?.trim_end();
    let line_start = source[..place.bytes.start].rfind('\n').map_or(0, |at| at + 1);
    // What is shown starts with the key when there is one on the same line; `lead` is what stands before the caret.
    let (start, lead, token) = match shown {
        Shown::Nothing => return None,
        Shown::Key => (place.bytes.start, "", format!("{token}: …")),
        Shown::Secret => (place.bytes.start, "", format!("{token}: ***")),
        Shown::Value { .. } if token.contains('\n') => return None,
        Shown::Value { key: Some(key) } if key >= line_start => (key, &source[key..place.bytes.start], token.into()),
        Shown::Value { .. } => (place.bytes.start, "", token.to_owned()),
    };
    let before = &source[line_start..start];
    let indent = if before.chars().all(|c| c == ' ' || c == '-') { before } else { "… " };
    let caret_at = indent.chars().count() + lead.chars().count();
    let carets = match shown {
        Shown::Key | Shown::Secret => source[place.bytes.clone()].trim_end().chars().count(),
        _ => token.chars().count(),
    };
    let (number, blank) = (place.line.to_string(), " ".repeat(place.line.to_string().len()));
    let mut text = format!("{blank} |\n{number} | {indent}{lead}{token}\n{blank} | ");
    write!(text, "{}{}", " ".repeat(caret_at), "^".repeat(carets.max(1))).expect("writing to a String cannot fail");
    Some(text)
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for Flaw {}

impl serde::de::Error for Flaw {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Wrong(message.to_string()))
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownKey { key: field.into(), known })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Kind::MissingKey { key })
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownWord { word: word.into(), known })
    }
}
