//! Config and topics -> the rights that we need, as `kafka-acls` takes them, and whether the broker grants them. IO.

use std::{
    collections::BTreeSet,
    ffi::{CStr, CString},
    ptr,
    time::Duration,
};

use rdkafka::{
    bindings::{self, rd_kafka_AclOperation_t as Operation},
    client::{Client, ClientContext},
};

use crate::{
    config::{Config, KafkaConfig},
    kafka::{fault, kept},
};

/// Who we are to an authorizer, as far as the config tells; `None` when it asks nobody to log in.
pub fn principal(config: &KafkaConfig) -> Option<String> {
    let property = |name| config.properties.get(name).and_then(|value| value.read().ok());
    if let Some(user) = property("sasl.username") {
        return Some(format!("User:{user}"));
    }
    let protocol = property("security.protocol").unwrap_or_default().to_ascii_lowercase();
    if protocol.starts_with("sasl") {
        return Some("User:<the subject of the token>".into());
    }
    let certificate = ["ssl.certificate.location", "ssl.certificate.pem", "ssl.keystore.location"];
    certificate.into_iter().any(|name| property(name).is_some()).then(|| "User:<the name in the certificate>".into())
}

/// The commands that give us all that `run` needs, and nothing more. `DescribeConfigs` is for `check`, and for a message
/// that can name a topic's limit. The replica's topic is among `topics` where there is one.
pub fn commands(config: &Config, topics: &[String]) -> Vec<String> {
    let kafka = &config.sink.kafka;
    let mut operations = vec!["Describe", "DescribeConfigs", "Write"];
    if kafka.topics.create {
        operations.push("Create");
    }
    // What comes before the first name that is not known yet is what all topics of a template begin with.
    let of_changes = config.changes.as_ref().map(|changes| changes.topic.as_str());
    let templates = of_changes.into_iter().chain(config.outbox.as_ref().map(|outbox| outbox.topic.as_str()));
    let templates: Vec<_> = templates.map(|template| template.replace("{name}", &config.name)).collect();
    let prefixes: Vec<_> = templates.iter().filter_map(|filled| Some(filled.split_once('{')?.0)).collect();
    let prefixes: Vec<_> = prefixes.into_iter().filter(|prefix| !prefix.is_empty()).collect();
    let of_prefix = |prefix: &&str| format!("--resource-pattern-type prefixed --topic {prefix}");
    let mut resources: Vec<_> = prefixes.iter().map(of_prefix).collect();
    let fixed = templates.iter().filter(|filled| !filled.contains('{'));
    let name = &config.name;
    let of_replica = kept::topic_name(name);
    let is_other = |topic: &&String| **topic != of_replica && !prefixes.iter().any(|prefix| topic.starts_with(prefix));
    let named: BTreeSet<_> = fixed.chain(topics.iter().filter(is_other)).collect();
    if !named.is_empty() {
        resources.push(named.iter().map(|topic| format!("--topic {topic}")).collect::<Vec<_>>().join(" "));
    }
    let mut commands = Vec::new();
    commands.extend(resources.iter().map(|resource| fault::acl_command(kafka, &operations, resource)));
    if topics.contains(&of_replica) {
        commands.push(fault::acl_command(kafka, kept::OF_REPLICA.rights, &format!("--topic {of_replica}")));
    }
    commands.extend([
        fault::acl_command(
            kafka,
            &["Describe", "Read", "Write", "Create"],
            &format!("--topic offshoot.{name}.progress"),
        ),
        fault::acl_command(kafka, &["Describe", "Write"], &format!("--transactional-id offshoot.{name}")),
        fault::acl_command(kafka, &["IdempotentWrite"], "--cluster"),
    ]);
    commands
}

/// Those of these topics that we may describe and not write to. None when the broker does not say.
pub(crate) fn unwritable<C: ClientContext>(client: &Client<C>, topics: &[&String], wait: Duration) -> Vec<String> {
    let names: Vec<CString> = topics.iter().filter_map(|topic| CString::new(topic.as_str()).ok()).collect();
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let wait = wait.as_millis() as i32;
    let mut unwritable = Vec::new();
    // SAFETY: the client outlives the call. Each object is destroyed once, after the last use of what it owns; names and
    // operations are read while the event that holds them is alive. Every function takes what the one before it gave.
    unsafe {
        let rk = client.native_ptr();
        let collection = bindings::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let for_api = bindings::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = bindings::rd_kafka_AdminOptions_new(rk, for_api);
        bindings::rd_kafka_AdminOptions_set_request_timeout(options, wait, ptr::null_mut(), 0);
        let refused = bindings::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
        let queue = bindings::rd_kafka_queue_new(rk);
        if refused.is_null() {
            bindings::rd_kafka_DescribeTopics(rk, collection, options, queue);
            let event = bindings::rd_kafka_queue_poll(queue, wait);
            let result = match event.is_null() {
                true => ptr::null(),
                false => bindings::rd_kafka_event_DescribeTopics_result(event),
            };
            if !result.is_null() {
                let mut count = 0;
                let described = bindings::rd_kafka_DescribeTopics_result_topics(result, &mut count);
                for at in 0..count {
                    let topic = *described.add(at);
                    let mut count = 0;
                    let granted = bindings::rd_kafka_TopicDescription_authorized_operations(topic, &mut count);
                    let granted = |operation| (0..count).any(|at| *granted.add(at) == operation);
                    if count > 0 && !granted(Operation::RD_KAFKA_ACL_OPERATION_WRITE) {
                        let name = CStr::from_ptr(bindings::rd_kafka_TopicDescription_name(topic));
                        unwritable.push(name.to_string_lossy().into_owned());
                    }
                }
            }
            if !event.is_null() {
                bindings::rd_kafka_event_destroy(event);
            }
        } else {
            bindings::rd_kafka_error_destroy(refused);
        }
        bindings::rd_kafka_queue_destroy(queue);
        bindings::rd_kafka_AdminOptions_destroy(options);
        bindings::rd_kafka_TopicCollection_destroy(collection);
    }
    unwritable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(lines: &str, topic: &str) -> Config {
        let text = format!(
            "{{ name: shop, source: {{ postgres: x }}, changes: {{ tables: [a.b]{topic} }}, \
             sink: {{ kafka: {{ brokers: \"k:9092\", delivery: at_least_once{lines} }} }} }}"
        );
        Config::parse(&text, "c", &|_| None).unwrap()
    }

    #[test]
    fn topics_are_named_by_what_they_all_begin_with() {
        let resources = |lines, topic, topics: &[&str]| {
            let topics: Vec<_> = topics.iter().map(|topic| topic.to_string()).collect();
            let commands = commands(&config(lines, topic), &topics);
            let of_topics = commands[..commands.len() - 3].iter();
            of_topics.map(|command| command.split(" --operation Write").nth(1).unwrap().to_owned()).collect::<Vec<_>>()
        };
        let prefixed = " --operation Create --resource-pattern-type prefixed --topic shop.";
        assert_eq!(resources("", "", &["shop.a.b"]), [prefixed]);
        let all = ", topic: \"{name}.all\"";
        assert_eq!(resources(", topics: { create: false }", all, &["shop.all"]), [" --topic shop.all"]);
        let by_table = ", topic: \"{table}.a\"";
        assert_eq!(resources("", by_table, &["c.a", "b.a"]), [" --operation Create --topic b.a --topic c.a"]);
        // Events and messages go to topics of their own.
        assert_eq!(resources("", "", &["shop.a.b", "booking"]), [prefixed, " --operation Create --topic booking"]);
        // The replica's is ours alone, and read too.
        let replica = commands(&config("", ""), &["shop.a.b".into(), "offshoot.shop.replica".into()]).remove(1);
        let rights =
            "--operation Read --operation Write --operation Describe --operation DescribeConfigs --operation Create";
        assert!(replica.ends_with(&format!("{rights} --topic offshoot.shop.replica")), "{replica}");
    }

    #[test]
    fn the_principal_is_whoever_logs_in() {
        let of = |lines: &str| principal(&config(lines, "").sink.kafka);
        assert_eq!(of(""), None);
        assert_eq!(of(", properties: { sasl.username: cdc }").as_deref(), Some("User:cdc"));
        let certificate = of(", properties: { security.protocol: SSL, ssl.certificate.location: /x.pem }").unwrap();
        assert_eq!(certificate, "User:<the name in the certificate>");
        assert_eq!(of(", properties: { security.protocol: SSL }"), None);
    }
}
