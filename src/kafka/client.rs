//! `KafkaConfig` -> librdkafka's properties: what we set, what the user may set on top, and what is ours alone.

use std::collections::BTreeMap;

use rdkafka::{
    client::ClientContext,
    config::{ClientConfig, RDKafkaLogLevel},
    error::KafkaError,
    producer::{BaseProducer, DeliveryResult, ProducerContext},
    types::RDKafkaConfRes,
};

use crate::{
    causes::told,
    config::{Config, Delivery, KafkaConfig, Misfit, SecretError},
};

/// A property of `sink.kafka.properties` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PropertyError {
    /// librdkafka has no such property.
    #[error("`sink.kafka.properties.{name}`: librdkafka knows no such property{}", nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    Unknown {
        /// As written in the config.
        name: String,
        /// The nearest one that there is.
        nearest: Option<&'static str>,
    },
    /// librdkafka does not take the value.
    #[error("`sink.kafka.properties.{name}`: {reason}")]
    Invalid {
        /// As written in the config.
        name: String,
        /// librdkafka's words.
        reason: String,
    },
    /// What is promised rests on the value that we set.
    #[error("`sink.kafka.properties.{name}` cannot be set there: {mend}")]
    Owned {
        /// As written in the config.
        name: String,
        /// Why, or what to set instead.
        mend: &'static str,
    },
    /// The file that holds the value cannot be read.
    #[error("`sink.kafka.properties.{name}`")]
    File {
        /// As written in the config.
        name: String,
        /// What the operating system said.
        source: SecretError,
    },
    /// Nobody to get a token from.
    #[error(
        "`sink.kafka.properties.sasl.mechanism`: OAUTHBEARER needs a token, and this version has none to offer but the unsecured one of \
         `enable.sasl.oauthbearer.unsecure.jwt: true`; log in by SCRAM or a certificate"
    )]
    NoToken,
    /// Two names of one property.
    #[error("`sink.kafka.properties`: `{first}` and `{second}` are two names of one property; keep one")]
    Twice {
        /// One name.
        first: String,
        /// The other.
        second: String,
    },
    /// Nobody to connect to.
    #[error("`sink.kafka.brokers` names no broker; write `host:port`, with commas between several")]
    NoBroker,
    /// The properties do not go together.
    #[error("`sink.kafka.properties`: {0}")]
    Together(String),
}

/// The largest record that leaves us. So high that the topic's own limit decides, whose refusal names the topic; below
/// the broker's `socket.request.max.bytes` of 104,857,600, since a broker answers a larger request by hanging up, which
/// nothing can tell from an outage.
const MESSAGE_BYTES_MAX: u32 = 100_000_000;

/// How long a Kafka transaction may stay open, and readers of what is committed wait after a host is lost and nobody takes
/// over. What Kafka cannot take in that time is sent again from the slot.
const TRANSACTION_TIMEOUT_MS: &str = "60000";

/// How long a record waits for others to be sent with.
pub(super) const LINGER: &str = "queue.buffering.max.ms";

/// What we set and the user may set otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    // Halves what is sent and what the broker spends.
    ("compression.codec", "lz4"),
    // What a broker spends goes by the request. Only under load does a record wait for so long: see the producer's `flushes`.
    (LINGER, "10"),
    ("batch.size", "1000000"),
    // An outage of Kafka is waited out: the pipeline stops reading, and Postgres keeps the log.
    ("message.timeout.ms", "0"),
    ("socket.keepalive.enable", "true"),
    // A broker that is silent for longer is given up, well before the transaction is.
    ("socket.timeout.ms", "30000"),
    ("socket.nagle.disable", "true"),
    // An outage shall not be followed by ten more seconds of our own.
    ("reconnect.backoff.max.ms", "2000"),
    // The error callback tells of broken connections; said once is enough.
    ("log.connection.close", "false"),
];

/// What is ours to set: the only values that may be written, if any, and why not another.
const OWNED: &[(&str, &[&str], &str)] = &[
    ("metadata.broker.list", &[], "`sink.kafka.brokers` says it"),
    ("enable.idempotence", &["true"], "without it, a retry can change the order of records; remove it"),
    ("enable.gapless.guarantee", &["true"], "without it, a later record can overtake one that fails; remove it"),
    (
        "request.required.acks",
        &["all", "-1"],
        "Postgres may forget only what all in-sync replicas have; write `all` or remove it",
    ),
    ("queuing.strategy", &["fifo"], "order per key rests on it; remove it"),
    (
        "partitioner",
        &["murmur2_random"],
        "keys go to the partitions that Java's clients would choose, by murmur2_random; remove it",
    ),
    (
        "transactional.id",
        &[],
        "it is `offshoot.` and the pipeline's `name`, so that no two pipelines have one; remove it",
    ),
    ("allow.auto.create.topics", &["false"], "topics are made as `sink.kafka.topics` says; remove it"),
    ("delivery.report.only.error", &["false"], "delivery reports say what Postgres may forget; remove it"),
    ("queue.buffering.max.messages", &[], "`limits.memory` says it"),
    ("queue.buffering.max.kbytes", &[], "`limits.memory` says it"),
    ("log.queue", &[], "logs are routed by us; remove it"),
    ("log_level", &[], "`--log` says it"),
];

/// Second names that librdkafka takes, and the first.
const ALIASES: &[(&str, &str)] = &[
    ("bootstrap.servers", "metadata.broker.list"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("sasl.mechanism", "sasl.mechanisms"),
    ("linger.ms", LINGER),
    ("retries", "message.send.max.retries"),
    ("compression.type", "compression.codec"),
    ("acks", "request.required.acks"),
    ("delivery.timeout.ms", "message.timeout.ms"),
];

/// Names to suggest for one that is mistyped: those of librdkafka's properties that a producer is given in practice.
const KNOWN: &[&str] = &[
    "acks",
    "api.version.request.timeout.ms",
    "batch.num.messages",
    "batch.size",
    "broker.address.family",
    "broker.address.ttl",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "debug",
    "delivery.timeout.ms",
    "linger.ms",
    "max.in.flight.requests.per.connection",
    "message.max.bytes",
    "message.timeout.ms",
    "metadata.max.age.ms",
    "partitioner",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.timeout.ms",
    "retries",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "statistics.interval.ms",
    "sticky.partitioning.linger.ms",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.interval.ms",
    "transaction.timeout.ms",
];

impl PropertyError {
    /// The keys in the config that lead to it.
    fn path(&self) -> Vec<&str> {
        let properties = ["sink", "kafka", "properties"];
        match self {
            Self::Unknown { name, .. }
            | Self::Invalid { name, .. }
            | Self::Owned { name, .. }
            | Self::File { name, .. } => [&properties[..], &[name]].concat(),
            Self::Twice { second, .. } => [&properties[..], &[second]].concat(),
            Self::NoToken => vec!["sink", "kafka", "properties"],
            Self::NoBroker => vec!["sink", "kafka", "brokers"],
            Self::Together(_) => properties.to_vec(),
        }
    }
}

/// Whether librdkafka takes `sink.kafka.properties`, one by one and together; also reads the files that they name.
pub fn check(config: &Config) -> Result<(), Misfit> {
    let misfit = |error: PropertyError| Misfit::at(&error.path(), told(&error));
    let mut properties = producer_properties(&config.sink.kafka, &config.name).map_err(misfit)?;
    // A client without brokers says whether it can be, and connects to nobody.
    properties.remove("metadata.broker.list");
    match properties.create_with_context::<_, BaseProducer<Silent>>(Silent) {
        Ok(_) => Ok(()),
        Err(error) => Err(misfit(refused_together(&error))),
    }
}

/// Hears nothing: what a client without brokers says is no news.
struct Silent;

impl ClientContext for Silent {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Silent {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// The properties of a client that asks and administers: whom to reach, and as whom.
pub fn admin_properties(config: &KafkaConfig, name: &str) -> Result<ClientConfig, PropertyError> {
    let mut properties = producer_properties(config, name)?;
    // Nothing is produced, so no producer id need be had.
    properties.remove("transactional.id");
    properties.set("enable.idempotence", "false").set("enable.gapless.guarantee", "false");
    Ok(properties)
}

/// The properties of a client that reads what is committed.
pub(crate) fn reader_properties(config: &KafkaConfig, name: &str) -> Result<ClientConfig, PropertyError> {
    let written = producer_properties(config, name)?;
    let mut properties = ClientConfig::new();
    // Whom to reach, and as whom; the rest is a producer's.
    let of_connection = [
        "metadata.broker.list",
        "client.",
        "socket.",
        "ssl.",
        "sasl.",
        "security.",
        "reconnect.",
        "enable.sasl.",
        "enable.ssl.",
        "broker.",
        "https.",
        "api.version.",
        "debug",
    ];
    // The map of the wrapper hides passwords; `get` does not.
    for (key, value) in written.config_map().into_keys().filter_map(|key| Some((key, written.get(key)?))) {
        if of_connection.iter().any(|prefix| key.starts_with(prefix)) {
            properties.set(key, value);
        }
    }
    properties
        // librdkafka wants one for a partition to be assigned; nothing is ever committed in it.
        .set("group.id", format!("offshoot.{name}"))
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        // The end of a topic is known only when the broker has waited for more in vain.
        .set("fetch.wait.max.ms", "3")
        .set("allow.auto.create.topics", "false")
        .set_log_level(RDKafkaLogLevel::Info);
    Ok(properties)
}

/// The properties of the idempotent producer.
pub fn producer_properties(config: &KafkaConfig, name: &str) -> Result<ClientConfig, PropertyError> {
    if config.brokers.split(',').all(|broker| broker.trim().is_empty()) {
        return Err(PropertyError::NoBroker);
    }
    let mut properties = BTreeMap::from_iter(DEFAULTS.iter().map(|(k, v)| (*k, (*v).to_owned())));
    properties.insert("client.id", format!("offshoot-{name}"));
    properties.insert("message.max.bytes", MESSAGE_BYTES_MAX.to_string());
    let transactional = config.delivery == Delivery::ExactlyOnce;
    if transactional {
        properties.insert("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS.into());
    }

    let mut written: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, value) in &config.properties {
        let first = first_name(name);
        if let Some(other) = written.insert(first, name) {
            return Err(PropertyError::Twice { first: other.to_owned(), second: name.clone() });
        }
        let value = value.read().map_err(|source| PropertyError::File { name: name.clone(), source })?;
        try_property(name, &value)?;
        properties.insert(first, value);
    }

    let says = |name: &str, value: &str| properties.get(name).is_some_and(|said| said.eq_ignore_ascii_case(value));
    // librdkafka would wait for ever for somebody to bring it a token.
    if says("sasl.mechanisms", "OAUTHBEARER") && !says("enable.sasl.oauthbearer.unsecure.jwt", "true") {
        return Err(PropertyError::NoToken);
    }

    if transactional && !written.contains_key("message.timeout.ms") {
        // librdkafka wants it no longer than the transaction: what takes longer is given up and sent again from the slot.
        properties.insert("message.timeout.ms", properties["transaction.timeout.ms"].clone());
    }
    // The same, of the one that we set.
    let timeout = |name: &str| properties.get(name).and_then(|value| value.parse::<u64>().ok());
    if transactional
        && !written.contains_key("socket.timeout.ms")
        && timeout("transaction.timeout.ms") < timeout("socket.timeout.ms")
    {
        properties.insert("socket.timeout.ms", properties["transaction.timeout.ms"].clone());
    }

    let mut client = ClientConfig::new();
    for (name, value) in properties {
        client.set(name, value);
    }
    if transactional {
        client.set("transactional.id", format!("offshoot.{name}"));
    }
    client
        .set("metadata.broker.list", &config.brokers)
        .set("enable.idempotence", "true")
        // As Java's clients choose a partition, so that a key written by either lands in one place.
        .set("partitioner", "murmur2_random")
        .set("request.required.acks", "all")
        // A record that fails for good must not be overtaken by later ones of its partition; a transaction fails whole.
        .set("enable.gapless.guarantee", if transactional { "false" } else { "true" })
        .set("allow.auto.create.topics", "false")
        // A consumer's, which librdkafka heeds of a producer that is asked where a topic ends: also what is not committed counts.
        .set("isolation.level", "read_uncommitted")
        // The producer's thread bounds what it hands over itself: librdkafka would refuse for ever a record that is
        // larger than its whole queue.
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", "2147483647")
        // Its errors arrive a second time through the error callback; its debugging only when asked for.
        .set_log_level(RDKafkaLogLevel::Info);
    if written.contains_key("debug") {
        client.set_log_level(RDKafkaLogLevel::Debug);
    }
    Ok(client)
}

/// librdkafka's refusal of properties that are right one by one.
pub(crate) fn refused_together(error: &KafkaError) -> PropertyError {
    match error {
        KafkaError::ClientCreation(reason) => PropertyError::Together(reason.clone()),
        KafkaError::ClientConfig(_, reason, name, _) => {
            PropertyError::Invalid { name: name.clone(), reason: reason.clone() }
        }
        other => PropertyError::Together(other.to_string()),
    }
}

/// The name of a property that may be written by another.
fn first_name(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, first)| first)
}

/// Whether the user says how long records wait for others.
pub(super) fn sets_linger(config: &KafkaConfig) -> bool {
    config.properties.keys().any(|name| first_name(name) == LINGER)
}

fn try_property(name: &str, value: &str) -> Result<(), PropertyError> {
    let first = first_name(name);
    if let Some((_, allowed, mend)) = OWNED.iter().find(|(owned, ..)| *owned == first) {
        let same = allowed.contains(&value);
        return if same { Ok(()) } else { Err(PropertyError::Owned { name: name.to_owned(), mend }) };
    }
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Err(PropertyError::Unknown { name: name.to_owned(), nearest: nearest(name) })
        }
        Err(KafkaError::ClientConfig(_, reason, ..)) => Err(PropertyError::Invalid { name: name.to_owned(), reason }),
        Err(other) => Err(PropertyError::Invalid { name: name.to_owned(), reason: other.to_string() }),
    }
}

fn nearest(name: &str) -> Option<&'static str> {
    let scored = KNOWN.iter().map(|known| (strsim::jaro_winkler(name, known), *known));
    scored.filter(|(score, _)| *score > 0.85).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Property;

    fn config(properties: &[(&str, &str)]) -> KafkaConfig {
        KafkaConfig {
            properties: properties.iter().map(|(k, v)| ((*k).to_owned(), Property((*v).to_owned()))).collect(),
            ..KafkaConfig::at("localhost:1", Delivery::AtLeastOnce)
        }
    }

    #[test]
    fn who_says_how_long_records_wait_is_heeded() {
        for (properties, said) in
            [(&[("linger.ms", "0")][..], true), (&[("queue.buffering.max.ms", "5")], true), (&[("acks", "all")], false)]
        {
            assert_eq!(sets_linger(&config(properties)), said, "{properties:?}");
        }
        let properties = producer_properties(&config(&[("linger.ms", "3")]), "shop").unwrap();
        assert_eq!(properties.get(LINGER), Some("3"));
    }

    fn refusal(properties: &[(&str, &str)]) -> String {
        producer_properties(&config(properties), "shop").unwrap_err().to_string()
    }

    #[test]
    fn our_own_properties_are_accepted_by_librdkafka() {
        for properties in [producer_properties(&config(&[]), "shop"), admin_properties(&config(&[]), "shop")] {
            let properties = properties.unwrap();
            assert_eq!(properties.get("client.id"), Some("offshoot-shop"));
            properties.create::<rdkafka::producer::BaseProducer>().unwrap();
        }
    }

    #[test]
    fn brokers_must_be_named() {
        let nobody = KafkaConfig { brokers: " , ".into(), ..config(&[]) };
        assert!(matches!(producer_properties(&nobody, "shop"), Err(PropertyError::NoBroker)));
    }

    #[test]
    fn a_property_of_the_user_wins_under_either_of_its_names() {
        for name in ["linger.ms", "queue.buffering.max.ms"] {
            let properties = producer_properties(&config(&[(name, "7")]), "shop").unwrap();
            assert_eq!(properties.get("queue.buffering.max.ms"), Some("7"));
            assert_eq!(properties.get("linger.ms"), None);
        }
    }

    #[test]
    fn a_shorter_transaction_takes_our_own_timeouts_with_it() {
        let short = KafkaConfig { delivery: Delivery::ExactlyOnce, ..config(&[("transaction.timeout.ms", "5000")]) };
        let properties = producer_properties(&short, "shop").unwrap();
        for name in ["transaction.timeout.ms", "message.timeout.ms", "socket.timeout.ms"] {
            assert_eq!(properties.get(name), Some("5000"), "{name}");
        }
        properties.create::<rdkafka::producer::BaseProducer>().unwrap();
    }

    #[test]
    fn two_names_of_one_property_are_refused() {
        let text = refusal(&[("linger.ms", "1"), ("queue.buffering.max.ms", "2")]);
        assert!(text.contains("`linger.ms` and `queue.buffering.max.ms` are two names of one property"), "{text}");
    }

    #[test]
    fn what_the_promise_rests_on_cannot_be_overridden() {
        for (name, value) in [
            ("acks", "1"),
            ("request.required.acks", "1"),
            ("enable.idempotence", "false"),
            ("enable.gapless.guarantee", "false"),
            ("bootstrap.servers", "elsewhere:9092"),
            ("metadata.broker.list", "elsewhere:9092"),
            ("transactional.id", "mine"),
            ("queue.buffering.max.kbytes", "1"),
            ("partitioner", "random"),
            ("partitioner", "murmur2"),
            ("partitioner", "consistent_random"),
        ] {
            let text = refusal(&[(name, value)]);
            assert!(text.starts_with(&format!("`sink.kafka.properties.{name}` cannot be set there: ")), "{text}");
        }
        for (name, value) in
            [("enable.idempotence", "true"), ("acks", "all"), ("acks", "-1"), ("partitioner", "murmur2_random")]
        {
            let properties = producer_properties(&config(&[(name, value)]), "shop").unwrap();
            assert_eq!(properties.get("partitioner"), Some("murmur2_random"));
            assert_eq!(properties.get("request.required.acks"), Some("all"));
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_key() {
        let path = |properties: &[(&str, &str)]| {
            let text = "{ name: shop, source: { postgres: x }, changes: { tables: [a.b] }, \
                        sink: { kafka: { brokers: \"k:1\", delivery: at_least_once } } }";
            let mut whole = Config::parse(text, "c", &|_| None).unwrap();
            whole.sink.kafka = config(properties);
            check(&whole).map_err(|misfit| misfit.path.join("."))
        };
        assert_eq!(path(&[("linger.ms", "5")]), Ok(()));
        assert_eq!(path(&[("linger.sm", "5")]).unwrap_err(), "sink.kafka.properties.linger.sm");
        assert_eq!(path(&[("acks", "1")]).unwrap_err(), "sink.kafka.properties.acks");
        assert_eq!(path(&[("max.in.flight", "6")]).unwrap_err(), "sink.kafka.properties");
        let no_file = [("security.protocol", "ssl"), ("ssl.ca.location", "/nonexistent/ca.pem")];
        assert_eq!(path(&no_file).unwrap_err(), "sink.kafka.properties");
    }

    #[test]
    fn an_unknown_property_names_the_nearest() {
        let text = refusal(&[("compresion.type", "zstd")]);
        assert_eq!(
            text,
            "`sink.kafka.properties.compresion.type`: librdkafka knows no such property; did you mean `compression.type`?"
        );
    }

    #[test]
    fn a_value_that_is_not_one_is_refused_in_librdkafkas_words() {
        let text = refusal(&[("compression.type", "rar")]);
        assert!(text.starts_with("`sink.kafka.properties.compression.type`: Invalid value \"rar\""), "{text}");
    }

    #[test]
    fn properties_that_do_not_go_together_are_refused_when_the_client_is_made() {
        let properties = producer_properties(&config(&[("max.in.flight", "6")]), "shop").unwrap();
        let error = properties.create::<rdkafka::producer::BaseProducer>().err().unwrap();
        assert!(refused_together(&error).to_string().contains("max.in.flight"), "{error}");
    }
}
