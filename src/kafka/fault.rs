//! What Kafka or librdkafka says -> what is to be done about it. Pure.

use rdkafka::types::RDKafkaErrorCode;

use crate::{config::KafkaConfig, kafka::rights};

/// What is to be done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It passes: connect again.
    Passing,
    /// It lasts until somebody mends a right or a setting.
    Refused,
    /// It is one record's.
    Record,
    /// Not an error of its own but the echo of another: what was queued behind it was given up.
    Echo,
}

/// Sorts an error of a delivery, of a metadata request or of the creation of a topic.
///
/// What is not known to last is taken to pass: starting again from the slot is safe, and the log shows a fault that
/// comes back each time.
pub fn sort(code: RDKafkaErrorCode) -> Fault {
    use RDKafkaErrorCode as E;
    match code {
        E::MessageSizeTooLarge | E::MessageBatchTooLarge | E::InvalidRecord | E::InvalidTimestamp => Fault::Record,
        E::PurgeQueue | E::PurgeInflight | E::Fatal | E::GaplessGuarantee | E::InvalidDifferentRecord => Fault::Echo,
        code if is_refusal(code) => Fault::Refused,
        E::TopicAuthorizationFailed
        | E::ClusterAuthorizationFailed
        | E::TransactionalIdAuthorizationFailed
        | E::InvalidTopic
        | E::PolicyViolation
        | E::InvalidConfig
        | E::InvalidPartitions
        | E::InvalidReplicationFactor
        | E::InvalidReplicaAssignment
        | E::InvalidRequiredAcks
        | E::UnsupportedVersion
        | E::UnsupportedFeature
        | E::UnsupportedForMessageFormat
        | E::UnsupportedCompressionType => Fault::Refused,
        _ => Fault::Passing,
    }
}

/// Whether an error of a connection says that we are not let in, as against not being heard.
pub fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as E;
    matches!(
        code,
        E::Authentication
            | E::SaslAuthenticationFailed
            | E::UnsupportedSASLMechanism
            | E::IllegalSASLState
            | E::SecurityDisabled
            | E::SSL
    )
}

/// The code of an error of a connection. A broker that does not take our certificate says so by a TLS alert, which librdkafka
/// counts among the outages.
pub fn of_connection(code: RDKafkaErrorCode, reason: &str) -> RDKafkaErrorCode {
    match code {
        RDKafkaErrorCode::BrokerTransportFailure if reason.contains("SSL alert number") => RDKafkaErrorCode::SSL,
        code => code,
    }
}

/// How to mend a refusal that concerns a topic, or several with ` --topic ` between.
pub fn mend(code: RDKafkaErrorCode, topic: &str, config: &KafkaConfig) -> String {
    use RDKafkaErrorCode as E;
    match code {
        E::TopicAuthorizationFailed => {
            format!("allow it: {}", acl_command(config, &["Describe", "Write"], &format!("--topic {topic}")))
        }
        E::ClusterAuthorizationFailed => {
            // Since Kafka 2.8 the right to write to any topic is enough for an idempotent producer.
            format!(
                "allow it: {}; before Kafka 2.8 also: {}",
                acl_command(config, &["Describe", "Write"], &format!("--topic {topic}")),
                acl_command(config, &["IdempotentWrite"], "--cluster")
            )
        }
        E::InvalidTopic => {
            "choose another name in changes.topic: letters, digits, '.', '_' and '-', at most 249".into()
        }
        E::PolicyViolation => format!(
            "the cluster's policy does not take it: change partitions ({}), replication ({}) or properties of \
             sink.kafka.topics, or the policy; the broker's log says which",
            config.topics.partitions, config.topics.replication
        ),
        E::InvalidConfig => {
            let names: Vec<_> = config.topics.properties.keys().map(String::as_str).collect();
            format!(
                "change sink.kafka.topics.properties ({}); the broker's log says which it does not take, and why",
                names.join(", ")
            )
        }
        E::InvalidReplicationFactor => "set sink.kafka.topics.replication to what the cluster can hold".into(),
        E::InvalidPartitions => "set sink.kafka.topics.partitions to 1 or more".into(),
        E::UnsupportedCompressionType => {
            "set compression.type under sink.kafka.properties to one that the broker knows".into()
        }
        E::UnsupportedVersion | E::UnsupportedFeature | E::UnsupportedForMessageFormat => {
            "the broker is too old; 2.1 is the oldest that is supported".into()
        }
        code if is_refusal(code) => mend_refusal(code).into(),
        _ => "the broker's log says why".into(),
    }
}

/// How to mend a connection that is refused.
pub fn mend_refusal(code: RDKafkaErrorCode) -> &'static str {
    use RDKafkaErrorCode as E;
    match code {
        E::SSL => {
            "check ssl.ca.location, ssl.certificate.location and ssl.key.location under sink.kafka.properties, and \
             that brokers are named as in their certificate"
        }
        E::UnsupportedSASLMechanism => "set sasl.mechanism under sink.kafka.properties to one that the broker has",
        _ => "check sasl.username, sasl.password, sasl.mechanism and security.protocol under sink.kafka.properties",
    }
}

/// The command that gives us a right.
pub fn acl_command(config: &KafkaConfig, operations: &[&str], resource: &str) -> String {
    let principal = rights::principal(config).unwrap_or_else(|| "User:ANONYMOUS".into());
    let operations: String = operations.iter().map(|operation| format!(" --operation {operation}")).collect();
    let brokers = &config.brokers;
    format!(
        "kafka-acls --bootstrap-server {brokers} --add --allow-principal {}{operations} {resource}",
        quote(&principal)
    )
}

/// The command that makes a topic as the config asks for it.
pub fn topic_command(config: &KafkaConfig, topic: &str) -> String {
    let topics = &config.topics;
    let mut command = format!(
        "kafka-topics --bootstrap-server {} --create --topic {topic} --partitions {}",
        config.brokers, topics.partitions
    );
    if topics.replication > 0 {
        command += &format!(" --replication-factor {}", topics.replication);
    }
    for (name, value) in &topics.properties {
        command += &format!(" --config {}", quote(&format!("{name}={}", value.0)));
    }
    command
}

/// Quotes a word for a shell, where it needs that.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:=,/@%+".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Delivery, Property, Topics};

    #[test]
    fn errors_are_sorted_by_what_is_to_be_done() {
        use RDKafkaErrorCode as E;
        let table = [
            (
                Fault::Passing,
                &[
                    E::BrokerTransportFailure,
                    E::AllBrokersDown,
                    E::MessageTimedOut,
                    E::OperationTimedOut,
                    E::RequestTimedOut,
                    E::NotLeaderForPartition,
                    E::LeaderNotAvailable,
                    E::NotEnoughReplicas,
                    E::NotEnoughReplicasAfterAppend,
                    E::UnknownTopic,
                    E::UnknownPartition,
                    E::UnknownTopicOrPartition,
                    E::OutOfOrderSequenceNumber,
                    E::UnknownProducerId,
                    E::InvalidProducerEpoch,
                    E::KafkaStorageError,
                    E::Fenced,
                ][..],
            ),
            (
                Fault::Refused,
                &[
                    E::TopicAuthorizationFailed,
                    E::ClusterAuthorizationFailed,
                    E::Authentication,
                    E::SaslAuthenticationFailed,
                    E::SSL,
                    E::InvalidTopic,
                    E::PolicyViolation,
                    E::InvalidConfig,
                    E::UnsupportedVersion,
                    E::UnsupportedCompressionType,
                ],
            ),
            (Fault::Record, &[E::MessageSizeTooLarge, E::InvalidRecord]),
            (Fault::Echo, &[E::PurgeQueue, E::PurgeInflight, E::Fatal, E::GaplessGuarantee]),
        ];
        for (fault, codes) in table {
            for code in codes {
                assert_eq!(sort(*code), fault, "{code:?}");
            }
        }
    }

    #[test]
    fn a_certificate_that_is_refused_is_told_from_an_outage() {
        use RDKafkaErrorCode as E;
        let alert =
            "Receive failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116";
        assert_eq!(of_connection(E::BrokerTransportFailure, alert), E::SSL);
        assert_eq!(of_connection(E::BrokerTransportFailure, "Connection refused"), E::BrokerTransportFailure);
        assert_eq!(of_connection(E::Authentication, alert), E::Authentication);
    }

    #[test]
    fn commands_can_be_pasted() {
        let text = |text: &str| Property(text.to_owned());
        let config = KafkaConfig {
            topics: Topics {
                create: false,
                partitions: 3,
                replication: 2,
                properties: BTreeMap::from([("cleanup.policy".to_owned(), text("compact,delete"))]),
            },
            properties: BTreeMap::from([("sasl.username".to_owned(), text("a user"))]),
            ..KafkaConfig::at("kafka:9092", Delivery::AtLeastOnce)
        };
        assert_eq!(
            topic_command(&config, "shop.public.orders"),
            "kafka-topics --bootstrap-server kafka:9092 --create --topic shop.public.orders --partitions 3 \
             --replication-factor 2 --config cleanup.policy=compact,delete"
        );
        assert_eq!(
            mend(RDKafkaErrorCode::TopicAuthorizationFailed, "shop.public.orders", &config),
            "allow it: kafka-acls --bootstrap-server kafka:9092 --add --allow-principal 'User:a user' \
             --operation Describe --operation Write --topic shop.public.orders"
        );
    }
}
