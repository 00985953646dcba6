//! Logical message -> the record that carries it: its content is the value, and headers say what it is. Pure.

use std::sync::Arc;

use globset::{Glob, GlobMatcher};

use crate::{
    change::{Commit, LogicalMessage, Micros},
    config::MessagesConfig,
    json,
    lsn::Lsn,
    sink::{Header, Record, RecordBatch, Ticket, Topic},
};

/// Writes messages as records.
#[derive(Debug, Default)]
pub struct Encoder {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    prefix: String,
    glob: GlobMatcher,
    topic: Arc<Topic>,
    key: Option<String>,
}

/// A message that cannot become a record. It lasts: the same comes again after a restart.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "find the key of a message with prefix {prefix:?} at {lsn}: {why}; `messages.key` names a field of a JSON object, and without it \
     the prefix is the key"
)]
pub struct NoKey {
    /// Where it stands.
    pub lsn: Lsn,
    /// Its prefix.
    pub prefix: String,
    /// What is the matter.
    pub why: String,
}

/// What of a message's record is its transaction's.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// As ids of events have it.
    pub epoch: u32,
    /// The transaction's.
    pub commit: Commit,
    /// The message's place in the transaction.
    pub index: u64,
}

impl Encoder {
    /// Patterns were checked when the config was loaded.
    pub fn new(config: &[MessagesConfig]) -> Result<Self, globset::Error> {
        let rule = |MessagesConfig { prefix, topic, key }: &MessagesConfig| {
            let topic = Arc::new(Topic { name: topic.clone(), table: format!("messages with prefix {prefix}") });
            Ok(Rule { prefix: prefix.clone(), glob: Glob::new(prefix)?.compile_matcher(), topic, key: key.clone() })
        };
        Ok(Self { rules: config.iter().map(rule).collect::<Result<_, _>>()? })
    }

    /// Whether no message leaves.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether messages with this prefix leave.
    pub fn takes(&self, prefix: &str) -> bool {
        self.rule(prefix).is_some()
    }

    fn rule(&self, prefix: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.prefix == prefix || rule.glob.is_match(prefix))
    }

    /// Appends the message's record, if it leaves. After an error `out` is as it was.
    pub fn encode(
        &self,
        place: &Place,
        message: &LogicalMessage<'_>,
        ticket: Ticket,
        out: &mut RecordBatch,
    ) -> Result<(), NoKey> {
        let LogicalMessage { lsn, transactional, prefix, content } = *message;
        let Some(rule) = self.rule(prefix) else { return Ok(()) };
        let no_key = |why: String| NoKey { lsn, prefix: prefix.into(), why };
        let own_key = match &rule.key {
            None => None,
            Some(field) => {
                let members = json::members(content).map_err(|error| no_key(format!("of its content, {error}")))?;
                let value = members.iter().rfind(|(name, _)| name == field).and_then(|(_, value)| json::text_of(value));
                Some(value.ok_or_else(|| no_key(format!("its content has no {field}")))?.into_owned())
            }
        };
        let mut append = |bytes: &[u8]| {
            let start = out.bytes.len();
            out.bytes.extend_from_slice(bytes);
            start..out.bytes.len()
        };
        let Place { epoch, commit, index } = *place;
        let key = append(own_key.as_deref().unwrap_or(prefix.as_bytes()));
        let payload = append(content);
        let mut headers = vec![
            Header::new("prefix", append(prefix.as_bytes())),
            Header::new("id", append(format!("{epoch}-{:016X}-{index}", commit.lsn.0).as_bytes())),
            Header::new("transactional", append(if transactional { b"true" } else { b"false" })),
        ];
        if transactional {
            headers.push(Header::new("time", append(rfc3339(commit.time).as_bytes())));
        }
        let first = out.headers.len();
        out.headers.append(&mut headers);
        let topic = out.topic_index(&rule.topic);
        let headers = first..out.headers.len();
        out.records.push(Record { topic, ticket, key: Some(key), payload: Some(payload), timestamp: None, headers });
        Ok(())
    }
}

/// To the microsecond, in UTC.
fn rfc3339(time: Micros) -> String {
    let since = std::time::Duration::from_micros(time.max(0) as u64);
    humantime::format_rfc3339_micros(std::time::UNIX_EPOCH + since).to_string()
}
