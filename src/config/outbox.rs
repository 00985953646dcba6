//! `outbox`, `messages`, `context`: what the application itself says, as it is written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Config, Misfit, Ordered, bad_topic, full_name};

/// `outbox`: the rows of a table, or messages, that the application has written as events. Debezium's EventRouter's layout.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutboxConfig {
    /// `table` of schema `public`, or `schema.table`: its new rows leave.
    pub table: Option<String>,
    /// Messages with this prefix leave too: `pg_logical_emit_message(true, prefix, json)`, whose JSON object has the columns of
    /// the table as its fields.
    pub prefix: Option<String>,
    /// A template of `{name}` and `{aggregatetype}`.
    #[serde(default = "default_topic")]
    pub topic: String,
    /// How the table calls its columns.
    #[serde(default)]
    pub columns: OutboxColumns,
    /// Further columns that leave, and where.
    #[serde(default)]
    pub fields: Ordered<OutboxField>,
    /// How keys and values are written.
    #[serde(default)]
    pub converter: Converter,
    /// A payload that is JSON is embedded as such, where it would be a string.
    #[serde(default)]
    pub expand_json: bool,
    /// An empty payload makes a tombstone, also in an envelope.
    #[serde(default)]
    pub tombstone: bool,
    /// What of an UPDATE of the table, of which no record can tell.
    #[serde(default)]
    pub on_update: OnUpdate,
}

/// `outbox.columns`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxColumns {
    /// The event's id: the header `id`.
    pub id: String,
    /// The record's key.
    pub aggregateid: String,
    /// What the topic is named after.
    pub aggregatetype: String,
    /// The record's value.
    pub payload: String,
    /// The record's timestamp, a `timestamp` or `timestamptz`; when it is published, if absent or null.
    pub timestamp: Option<String>,
}

/// `outbox.fields.<column>`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutboxField {
    /// Where the column's value goes.
    pub to: Placement,
    /// What it is called there; as the column when absent.
    #[serde(rename = "as")]
    pub name: Option<String>,
}

/// `outbox.fields.<column>.to`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// A header of the record.
    Header,
    /// A field beside the payload, which makes the value an object with the field `payload`.
    Envelope,
}

/// `outbox.converter`, after Connect's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Converter {
    /// The text itself, and the bytes of a `bytea`: what StringConverter and BinaryDataConverter write.
    #[default]
    String,
    /// JSON, so that a text has quotes: what JsonConverter writes without schemas.
    Json,
}

/// `outbox.on_update`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUpdate {
    /// It is left out, and the log says so.
    #[default]
    Warn,
    /// It stops the run.
    Stop,
}

/// One of `messages`: logical messages that leave as they are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MessagesConfig {
    /// The messages' prefix.
    pub prefix: String,
    /// Where they go.
    pub topic: String,
    /// A field of their content, a JSON object, that makes the record's key; the prefix is the key when absent.
    pub key: Option<String>,
}

/// `context`: a logical message -> attributes of its transaction's events.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct ContextConfig {
    /// The message's prefix.
    pub prefix: String,
    /// Attribute of the events -> field of the message's content, a JSON object.
    #[serde(flatten)]
    pub attributes: BTreeMap<String, String>,
}

impl OutboxConfig {
    /// Schema and name of the table.
    pub fn table(&self) -> Option<(&str, &str)> {
        self.table.as_deref().map(full_name)
    }
}

impl Default for OutboxColumns {
    fn default() -> Self {
        Self {
            id: "id".into(),
            aggregateid: "aggregateid".into(),
            aggregatetype: "aggregatetype".into(),
            payload: "payload".into(),
            timestamp: None,
        }
    }
}

fn default_topic() -> String {
    "outbox.event.{aggregatetype}".into()
}

/// What of these sections is well-formed and cannot work.
pub(super) fn misfit(config: &Config) -> Option<Misfit> {
    let Config { outbox, messages, context, .. } = config;
    if let Some(found) = outbox.as_ref().and_then(of_outbox) {
        return Some(found);
    }
    for (index, MessagesConfig { prefix, topic, .. }) in messages.iter().enumerate() {
        let at = |key: &str, said: String| Some(Misfit::at(&["messages", &index.to_string(), key], said));
        if let Err(error) = globset::Glob::new(prefix) {
            return at("prefix", format!("`messages`: `{prefix}` is not a pattern: {}", error.kind()));
        }
        if let Some(said) = bad_topic(topic) {
            return at("topic", format!("`messages`: {said}"));
        }
    }
    let Some(ContextConfig { prefix, attributes }) = context else { return None };
    let at = |key: &str, said: String| Some(Misfit::at(&["context", key], said));
    for name in attributes.keys() {
        if TAKEN.contains(&name.as_str()) {
            return at(name, format!("`context`: events have a `{name}` already; give the attribute another name"));
        }
        if !(1..=20).contains(&name.len()) || !name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) {
            let said = format!("`context`: `{name}` is no attribute's name, which has 1 to 20 of a-z and 0-9");
            return at(name, said);
        }
    }
    let asked = messages.iter().map(|messages| &messages.prefix);
    let asked = asked.chain(outbox.iter().filter_map(|outbox| outbox.prefix.as_ref()));
    let taken = asked.into_iter().any(|asked| asked == prefix);
    taken.then(|| Misfit::at(&["context", "prefix"], "`context.prefix`: these messages leave already; choose another"))
}

fn of_outbox(outbox: &OutboxConfig) -> Option<Misfit> {
    let at = |key: &str, said: String| Some(Misfit::at(&["outbox", key], said));
    if outbox.table.is_none() && outbox.prefix.is_none() {
        return at("table", "`outbox` needs a `table`, or the `prefix` of messages".into());
    }
    if let Some((schema, name)) = outbox.table()
        && (schema.is_empty() || name.is_empty() || name.contains('.'))
    {
        return at("table", "`outbox.table` must be `table` or `schema.table`".into());
    }
    let mut literal = outbox.topic.replace("{name}", "").replace("{aggregatetype}", "");
    if let Some(brace) = literal.find(['{', '}']) {
        let stray = &literal[brace..];
        let said = format!("`outbox.topic`: `{stray}` is unknown; there are {{name}} and {{aggregatetype}}");
        return at("topic", said);
    }
    // Beside an aggregate's type `.` and `..` stand well.
    if literal != outbox.topic {
        literal.push('x');
    }
    bad_topic(&literal).and_then(|said| at("topic", format!("`outbox.topic`: {said}")))
}

/// Attributes that events have anyhow.
const TAKEN: &[&str] = &[
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "data",
    "datacontenttype",
    "dataschema",
    "sequence",
    "causationid",
    "previouskey",
];
