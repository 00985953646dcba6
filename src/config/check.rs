//! `Config` -> `Config` that can work: what YAML and types cannot say. Pure.

use std::{ops::RangeInclusive, time::Duration};

use bytesize::ByteSize;

use super::{
    Admin, ChangesConfig, Config, KafkaConfig, Misfit, SlotWalAction,
    fault::Flaw,
    tree::{Node, Value},
    walk,
};

/// Below this, librdkafka's queue and the assembler leave each other no room.
const MEMORY_MIN: ByteSize = ByteSize::mib(8);
const REPLICA_CACHE_MIN: ByteSize = ByteSize::mib(4);
/// Four segments: Postgres keeps about so much for any slot, from one checkpoint or long transaction to the next.
const SLOT_WAL_STOP_MIN: ByteSize = ByteSize::mib(64);
/// Readers of what is committed wait as long; and Kafka gives up what stays open for too long.
const COMMIT_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);
/// Smaller ones would be a Kafka transaction for every few records.
const TRANSACTION_EVENTS_MIN: u64 = 1000;
/// With `offshoot_` before it this is Postgres' longest name.
const NAME_LEN_MAX: usize = 54;
/// Postgres' `NAMEDATALEN - 1`.
const IDENTIFIER_LEN_MAX: usize = 63;
/// A shorter token is guessed, or is a placeholder.
const TOKEN_LEN_MIN: usize = 16;
/// Kafka's own limit.
const TOPIC_LEN_MAX: usize = 249;

/// Refuses what is well-formed and cannot work.
pub(super) fn check(config: &Config, tree: &Node) -> Result<(), Flaw> {
    let refuse = |path: &[&str], said: String| Err(locate(tree, path, said));
    if !is_word(&config.name, NAME_LEN_MAX) {
        return refuse(
            &["name"],
            format!("`name` must match [a-z0-9_]{{1,{NAME_LEN_MAX}}}: it names the slot and the publication"),
        );
    }
    if config.source.postgres.read().is_ok_and(|text| text.reveal().trim().is_empty()) {
        return refuse(
            &["source", "postgres"],
            "`source.postgres` is empty; write `postgres://user@host/database`".into(),
        );
    }
    for (key, name) in [("slot", &config.source.slot), ("publication", &config.source.publication)] {
        if name.as_ref().is_some_and(|name| !is_word(name, IDENTIFIER_LEN_MAX)) {
            return refuse(&["source", key], format!("`source.{key}` must match [a-z0-9_]{{1,{IDENTIFIER_LEN_MAX}}}"));
        }
    }
    if config.source.decoding_work_mem.is_some_and(|size| size < ByteSize::kib(64)) {
        return refuse(
            &["source", "decoding_work_mem"],
            "`source.decoding_work_mem` must be at least 64KiB, as Postgres asks".into(),
        );
    }
    if config.source.streaming && (config.wants_messages() || !config.ignore_origin.is_empty()) {
        let said = "`source.streaming` does not go with `messages`, `context`, `outbox.prefix` or `ignore_origin`: of an open \
                    transaction Postgres says neither its origin nor which savepoint a message belongs to";
        return refuse(&["source", "streaming"], said.into());
    }
    for (index, column) in config.source.omit_columns.iter().enumerate() {
        let parts: Vec<_> = column.split('.').collect();
        if parts.len() != 3 || parts.iter().any(|part| part.is_empty()) {
            let said = format!("`source.omit_columns`: `{column}` must be `schema.table.column`");
            return refuse(&["source", "omit_columns", &index.to_string()], said);
        }
    }
    check_kafka(&config.sink.kafka, tree)?;
    if let Some(changes) = &config.changes {
        check_changes(changes, tree)?;
    }
    let Config { changes, events, outbox, messages, .. } = config;
    if changes.is_none() && events.is_empty() && outbox.is_none() && messages.is_empty() {
        let said =
            "nothing says what is to leave; write `changes: { tables: [public.*] }`, or `aggregates` and `events`";
        return refuse(&["changes"], said.into());
    }
    if let Some(found) = super::outbox::misfit(config) {
        return Err(misfit(found, tree));
    }
    if config.limits.memory < MEMORY_MIN {
        return refuse(&["limits", "memory"], "`limits.memory` must be at least 8MiB".into());
    }
    if config.limits.replica_cache < REPLICA_CACHE_MIN {
        return refuse(&["limits", "replica_cache"], "`limits.replica_cache` must be at least 4MiB".into());
    }
    if config.limits.transaction_events < TRANSACTION_EVENTS_MIN {
        let said = format!("`limits.transaction_events` must be at least {TRANSACTION_EVENTS_MIN}");
        return refuse(&["limits", "transaction_events"], said);
    }
    if config.limits.slot_wal_stop.is_some_and(|size| size < SLOT_WAL_STOP_MIN) {
        let said = "`limits.slot_wal_stop` must be at least 64MiB: a slot keeps some log even when nothing is late";
        return refuse(&["limits", "slot_wal_stop"], said.into());
    }
    if config.limits.slot_wal_action == SlotWalAction::DropSlot && config.limits.slot_wal_stop.is_none() {
        let said = "`limits.slot_wal_action: drop_slot` needs a `limits.slot_wal_stop` at which it is done";
        return refuse(&["limits", "slot_wal_action"], said.into());
    }
    check_admin(&config.admin, tree)
}

fn check_admin(admin: &Admin, tree: &Node) -> Result<(), Flaw> {
    let refuse = |key: &str, said: String| Err(locate(tree, &["admin", key], said));
    if let Some(token) = admin.token.as_ref().map(|token| token.reveal())
        && (token.len() < TOKEN_LEN_MIN || !token.bytes().all(|b| b.is_ascii_graphic()))
    {
        let said = format!(
            "`admin.token` must be at least {TOKEN_LEN_MIN} characters that a header can hold; make one: openssl rand -hex 32"
        );
        return refuse("token", said);
    }
    if !admin.listen.ip().is_loopback() && admin.token.is_none() && admin.tls.is_none() {
        let said = format!(
            "`admin.listen` is {}, which others can reach: add `admin.token` (a bearer token) or `admin.tls`, or listen on 127.0.0.1",
            admin.listen
        );
        return refuse("listen", said);
    }
    Ok(())
}

fn check_kafka(kafka: &KafkaConfig, tree: &Node) -> Result<(), Flaw> {
    let refuse = |path: &[&str], said: String| Err(locate(tree, &[&["sink", "kafka"], path].concat(), said));
    let is_broker = |broker: &str| !broker.is_empty() && !broker.contains(char::is_whitespace);
    if !kafka.brokers.split(',').all(|broker| is_broker(broker.trim())) {
        return refuse(&["brokers"], "`sink.kafka.brokers` must be `host:port`, with commas between several".into());
    }
    if !COMMIT_INTERVAL.contains(&kafka.commit_interval) {
        return refuse(&["commit_interval"], "`sink.kafka.commit_interval` must be from 1ms to 10s".into());
    }
    if kafka.commit_events == 0 {
        return refuse(&["commit_events"], "`sink.kafka.commit_events` must be at least 1".into());
    }
    if kafka.topics.partitions < 1 {
        return refuse(&["topics", "partitions"], "`sink.kafka.topics.partitions` must be at least 1".into());
    }
    if kafka.topics.replication != -1 && !(1..=i32::from(i16::MAX)).contains(&kafka.topics.replication) {
        let said = "`sink.kafka.topics.replication` must be from 1 to 32767, or -1 for the broker's own default";
        return refuse(&["topics", "replication"], said.into());
    }
    Ok(())
}

fn check_changes(changes: &ChangesConfig, tree: &Node) -> Result<(), Flaw> {
    let refuse = |path: &[&str], said: String| Err(locate(tree, &[&["changes"], path].concat(), said));
    if changes.tables.is_empty() {
        return refuse(&["tables"], "`changes.tables` names no table; write `tables: [public.*]`".into());
    }
    for (key, patterns) in [("tables", &changes.tables), ("except", &changes.except)] {
        for (index, pattern) in patterns.iter().enumerate() {
            if let Some(said) = bad_pattern(pattern) {
                return refuse(&[key, &index.to_string()], format!("`changes.{key}`: `{pattern}` {said}"));
            }
        }
    }
    bad_template(&changes.topic).map_or(Ok(()), |said| refuse(&["topic"], format!("`changes.topic`: {said}")))
}

fn bad_pattern(pattern: &str) -> Option<String> {
    match pattern.split_once('.') {
        Some((schema, table)) if !schema.is_empty() && !table.is_empty() => {
            globset::Glob::new(pattern).err().map(|error| format!("is not a pattern: {}", error.kind()))
        }
        Some(_) => Some("must be `schema.table`".into()),
        None => Some(format!("has no schema; write `public.{pattern}`")),
    }
}

fn bad_template(template: &str) -> Option<String> {
    let mut literal = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((placeholder, after)) = after.split_once('}') else { return Some("`{` is not closed by `}`".into()) };
        if !["name", "schema", "table"].contains(&placeholder) {
            return Some(format!("`{{{placeholder}}}` is unknown; there are {{name}}, {{schema}} and {{table}}"));
        }
        literal.push_str(before);
        rest = after;
    }
    literal.push_str(rest);
    // Between placeholders `.` and `..` stand well.
    if template == literal { bad_topic(template) } else { illegal(&literal) }
}

/// Why Kafka would not have a topic of this name. The one place that knows.
pub fn bad_topic(name: &str) -> Option<String> {
    if name.is_empty() || [".", ".."].contains(&name) {
        return Some(NO_TOPIC.into());
    }
    illegal(name)
}

const NO_TOPIC: &str = "it does not make a topic's name, which has 1 to 249 letters, digits, `.`, `_` and `-`";

fn illegal(name: &str) -> Option<String> {
    if name.len() > TOPIC_LEN_MAX {
        return Some(NO_TOPIC.into());
    }
    let illegal = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c));
    illegal.map(|c| format!("Kafka allows no `{c}` in a topic's name, only letters, digits, `.`, `_` and `-`"))
}

fn is_word(text: &str, len_max: usize) -> bool {
    (1..=len_max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// What a module found, with its place.
pub(super) fn misfit(misfit: Misfit, tree: &Node) -> Flaw {
    let path: Vec<_> = misfit.path.iter().map(String::as_str).collect();
    locate(tree, &path, misfit.said)
}

/// A flaw at `path`, or at what stands above it when the value is a default.
fn locate(tree: &Node, path: &[&str], said: String) -> Flaw {
    let (mut node, mut key) = (tree, None);
    let mut found = Vec::new();
    for step in path {
        match &node.value {
            Value::List(items) => match step.parse().ok().and_then(|index: usize| items.get(index)) {
                Some(item) => (node, key) = (item, None),
                None => break,
            },
            _ => match node.entry(step) {
                Some((name, value)) => (node, key) = (value, Some(name)),
                // A list of one may be written without brackets.
                None if *step == "0" => continue,
                None => break,
            },
        }
        found.push(*step);
    }
    walk::place(Flaw::text(said), key, node, walk::is_hidden(&found.join(".")))
}
