//! `Config` -> `Config` that can work: what YAML and types cannot say. Pure.

use bytesize::ByteSize;

use super::{
    ChangesConfig, Config, KafkaConfig, Misfit,
    fault::Flaw,
    tree::{Node, Value},
    walk,
};

/// Below this, librdkafka's queue and the assembler leave each other no room.
const MEMORY_MIN: ByteSize = ByteSize::mib(8);
/// With `offshoot_` before it this is Postgres' longest name.
const NAME_LEN_MAX: usize = 54;
/// Postgres' `NAMEDATALEN - 1`.
const IDENTIFIER_LEN_MAX: usize = 63;
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
    if config.source.postgres.reveal().trim().is_empty() {
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
    check_kafka(&config.sink.kafka, tree)?;
    match &config.changes {
        Some(changes) => check_changes(changes, tree)?,
        None => {
            return refuse(
                &["changes"],
                "nothing says what is to leave; write `changes: { tables: [public.*] }`".into(),
            );
        }
    }
    if config.limits.memory < MEMORY_MIN {
        return refuse(&["limits", "memory"], "`limits.memory` must be at least 8MiB".into());
    }
    Ok(())
}

fn check_kafka(kafka: &KafkaConfig, tree: &Node) -> Result<(), Flaw> {
    let refuse = |path: &[&str], said: String| Err(locate(tree, &[&["sink", "kafka"], path].concat(), said));
    let is_broker = |broker: &str| !broker.is_empty() && !broker.contains(char::is_whitespace);
    if !kafka.brokers.split(',').all(|broker| is_broker(broker.trim())) {
        return refuse(&["brokers"], "`sink.kafka.brokers` must be `host:port`, with commas between several".into());
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
    if template.is_empty() || [".", ".."].contains(&template) || literal.len() > TOPIC_LEN_MAX {
        return Some("it does not make a topic's name, which has 1 to 249 letters, digits, `.`, `_` and `-`".into());
    }
    let illegal = literal.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c));
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
                None => break,
            },
        }
        found.push(*step);
    }
    walk::place(Flaw::text(said), key, node, walk::is_hidden(&found.join(".")))
}
