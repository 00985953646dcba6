//! YAML text -> `Node`s that know where they stand. Pure.
//!
//! The library's own errors and excerpts are not shown to the user as they are: an excerpt prints whole lines, and a
//! line of a config may hold a password.

use std::{fmt, ops::Range};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    Location, MessageFormatter, Spanned, UserMessageFormatter,
    options::{DuplicateKeyPolicy, NonFiniteFloatPolicy},
};

use super::fault::{Flaw, is_plain};

/// Where a key or a value stands in the text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Place {
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
    /// The token itself.
    pub(super) bytes: Range<usize>,
}

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
    /// It stands here as `*name`; what the name stands for may be a secret.
    pub(super) alias: bool,
}

/// What a value is. Numbers and booleans stay text: what they mean depends on the key.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key and where it stands.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) place: Place,
}

/// Reads one YAML document; refuses a key that appears twice.
pub(super) fn parse(text: &str) -> Result<Node, Flaw> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
    };
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = error.location().map(|at| place(&at)).unwrap_or_default();
        let said = UserMessageFormatter.format_message(&error).into_owned();
        let mend = text.lines().nth(place.line.saturating_sub(1)).and_then(mend).unwrap_or_default();
        Flaw::text(format!("not valid YAML: {said}{mend}")).at(place)
    })?;
    let node = Node::from_raw(raw, text);
    refuse_twins(&node)?;
    Ok(node)
}

impl Node {
    fn from_raw(raw: Spanned<Raw>, text: &str) -> Self {
        let source = place(&raw.defined).bytes;
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Typed => Value::Scalar(text.get(source).unwrap_or_default().trim().into()),
            Raw::Text(text) => Value::Scalar(text),
            Raw::List(items) => Value::List(items.into_iter().map(|item| Self::from_raw(item, text)).collect()),
            Raw::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        let at = place(&key.referenced);
                        (Key { text: key.value, place: at }, Self::from_raw(value, text))
                    })
                    .collect(),
            ),
        };
        Self { place: place(&raw.referenced), value, alias: raw.referenced != raw.defined }
    }

    /// The entry of `name` in a map.
    pub(super) fn entry(&self, name: &str) -> Option<(&Key, &Node)> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(key, _)| key.text == name).map(|(key, node)| (key, node))
    }

    /// What the value is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar(_) => "a value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map of keys",
        }
    }
}

/// What the library hands over; `Typed` is a number or a boolean, whose text is taken from the source.
enum Raw {
    Null,
    Typed,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

fn refuse_twins(node: &Node) -> Result<(), Flaw> {
    match &node.value {
        Value::Null | Value::Scalar(_) => Ok(()),
        Value::List(items) => items.iter().try_for_each(refuse_twins),
        Value::Map(entries) => entries.iter().enumerate().try_for_each(|(i, (key, node))| {
            match entries[..i].iter().find(|(earlier, _)| earlier.text == key.text) {
                Some((first, _)) => {
                    let named = if is_plain(&key.text) { format!(" `{}`", key.text) } else { String::new() };
                    let said = format!("key{named} appears twice; the first is on line {}", first.place.line);
                    Err(Flaw::text(said).at_key(key))
                }
                None => refuse_twins(node),
            }
        }),
    }
}

/// What usually mends a line that YAML refuses.
fn mend(line: &str) -> Option<&'static str> {
    let quotes_before = |at: usize| line[..at].matches(['"', '\'']).count();
    let unquoted = |text: &str| line.match_indices(text).any(|(at, _)| quotes_before(at) % 2 == 0);
    if line.trim_start_matches(' ').starts_with('\t') {
        Some("; indent with spaces, not tabs")
    } else if unquoted("${") {
        Some("; write \"${...}\" in quotes within { }")
    } else if ["{name}", "{schema}", "{table}"].into_iter().any(unquoted) {
        Some("; a text with { } needs quotes, such as \"{name}.{table}\"")
    } else {
        None
    }
}

fn place(location: &Location) -> Place {
    let span = location.span();
    let bytes = match (span.byte_offset(), span.byte_len()) {
        (Some(at), Some(len)) => at as usize..(at + len) as usize,
        _ => 0..0,
    };
    Place { line: location.line() as usize, column: location.column() as usize, bytes }
}
