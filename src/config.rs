//! YAML and environment -> `Config`, the sum of the modules' configs. Defaults are written here, once.

//!
//! In three steps: `tree.rs` reads the YAML and keeps every place, `walk.rs` puts variables in and makes the structs below,
//! `check.rs` refuses what is well-formed and cannot work.

mod tree;
mod walk;
mod check;
mod fault;
mod mapping;
mod outbox;
mod schema;

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de::Error as _};

pub use check::bad_topic;
pub use fault::Fault;
pub(crate) use fault::nearest;
pub use mapping::{
    AggregateConfig, DataConfig, EventConfig, EventFormat, Mask, Ordered, TableConfig, TriggerConfig, Truncate,
    Unmapped,
};
pub use outbox::{
    ContextConfig, Converter, MessagesConfig, OnUpdate, OutboxColumns, OutboxConfig, OutboxField, Placement,
};
pub use schema::schema;
use walk::Walk;

/// What a config file or a secret's may hold; a larger one is the wrong file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A whole config file.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// As it is written, to tell where something in it stands.
    #[serde(skip)]
    pub(crate) written: Written,
    /// `[a-z0-9_]{1,54}`: names the slot, the publication and, later, the transactional id.
    #[schemars(regex(pattern = r"^[a-z0-9_]{1,54}$"))]
    pub name: String,
    /// Where changes come from.
    pub source: SourceConfig,
    /// Where events go.
    pub sink: SinkConfig,
    /// A record per row change.
    pub changes: Option<ChangesConfig>,
    /// What `ce_type` begins with, such as `com.acme.shop`; the pipeline's name when absent.
    pub types: Option<String>,
    /// How events become records.
    #[serde(default)]
    pub format: EventFormat,
    /// What the catalog cannot know of tables.
    #[serde(default)]
    pub tables: Ordered<TableConfig>,
    /// Roots and what hangs on them.
    #[serde(default)]
    pub aggregates: Ordered<AggregateConfig>,
    /// Domain events, assembled per transaction.
    #[serde(default)]
    pub events: Ordered<EventConfig>,
    /// Changes of mapped tables that no event tells of.
    #[serde(default)]
    pub unmapped: Unmapped,
    /// TRUNCATE of a mapped table.
    #[serde(default)]
    pub truncate: Truncate,
    /// What the application itself writes as events, into a table or as logical messages.
    pub outbox: Option<OutboxConfig>,
    /// Logical messages that leave as they are, by their prefix.
    #[serde(default)]
    pub messages: Vec<MessagesConfig>,
    /// A logical message that tells of its transaction: correlation, trace.
    pub context: Option<ContextConfig>,
    /// Replication origins, and values of `origin` in a context message, whose transactions are left out.
    #[serde(default)]
    pub ignore_origin: Vec<String>,
    /// Spill files; may be empty at any start.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// What may be used.
    #[serde(default)]
    pub limits: Limits,
    /// Probes and metrics.
    #[serde(default)]
    pub admin: Admin,
}

/// The text of a config file. Not printed: it may hold a secret.
#[derive(Clone, Default)]
pub(crate) struct Written {
    file: Arc<str>,
    text: Arc<str>,
}

/// `source`: the database.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// A URI or keywords, as libpq has them.
    pub postgres: Secret,
    /// The replication slot; `offshoot_<name>` when absent.
    pub slot: Option<String>,
    /// The publication; `offshoot_<name>` when absent.
    pub publication: Option<String>,
    /// Make slot and publication when they are absent.
    #[serde(default = "yes")]
    pub create: bool,
    /// `schema.table.column`: columns that the publication leaves out, so that they never leave the database.
    #[serde(default)]
    pub omit_columns: Vec<String>,
    /// `logical_decoding_work_mem` of our session; the server's own when absent.
    #[serde(default, deserialize_with = "some_size")]
    #[schemars(schema_with = "schema::size")]
    pub decoding_work_mem: Option<ByteSize>,
    /// Large transactions are read while they are open, and wait here for their commit instead of on the server's disk.
    #[serde(default)]
    pub streaming: bool,
}

/// `sink`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SinkConfig {
    /// The only sink there is.
    pub kafka: KafkaConfig,
}

/// `sink.kafka`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// `host:port`, with commas between several.
    pub brokers: String,
    /// What is promised.
    #[serde(default)]
    pub delivery: Delivery,
    /// With `exactly_once`: how long the first event of a Kafka transaction waits for its commit at most, under load. When
    /// it is quiet, each transaction of Postgres is committed at once.
    #[serde(default = "default_commit_interval", deserialize_with = "duration")]
    pub commit_interval: Duration,
    /// With `exactly_once`: a Kafka transaction with so many events takes no further transaction of Postgres.
    #[serde(default = "default_commit_events")]
    pub commit_events: u64,
    /// How topics are made.
    #[serde(default)]
    pub topics: Topics,
    /// Anything librdkafka knows.
    #[serde(default)]
    pub properties: BTreeMap<String, Property>,
}

/// `sink.kafka.delivery`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Whoever reads `read_committed` sees each event once, and each transaction whole or not at all.
    #[default]
    ExactlyOnce,
    /// For brokers without transactions: a crash repeats whole transactions.
    AtLeastOnce,
}

impl Delivery {
    /// As the config has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Delivery::ExactlyOnce => "exactly_once",
            Delivery::AtLeastOnce => "at_least_once",
        }
    }
}

/// `sink.kafka.topics`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Topics {
    /// Make topics that are absent.
    pub create: bool,
    /// Partitions of a topic that we make.
    pub partitions: i32,
    /// Replicas of a topic that we make; -1 is the broker's own default.
    pub replication: i32,
    /// Topic properties such as `retention.ms`.
    pub properties: BTreeMap<String, Property>,
}

/// `changes`: a record per row change.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangesConfig {
    /// `schema.table`, names or globs.
    pub tables: Vec<String>,
    /// Taken out again.
    #[serde(default)]
    pub except: Vec<String>,
    /// A template of `{name}`, `{schema}`, `{table}`.
    #[serde(default = "default_topic")]
    pub topic: String,
    /// The dialect.
    #[serde(default)]
    pub format: ChangesFormat,
    /// How `numeric` and `money` leave.
    #[serde(default)]
    pub decimal: Decimal,
}

/// `changes.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangesFormat {
    /// Debezium's envelope.
    #[default]
    Debezium,
}

/// `changes.decimal`, Debezium's `decimal.handling.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decimal {
    /// Connect's Decimal: base64 of the unscaled value; a struct with its scale where the column has none.
    #[default]
    Precise,
    /// A JSON number; digits beyond a double's are lost.
    Double,
    /// The text as Postgres has it.
    String,
}

/// `limits`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Assembler, queues and librdkafka's buffer together.
    #[serde(deserialize_with = "size")]
    #[schemars(schema_with = "schema::size")]
    pub memory: ByteSize,
    /// What one spill file may grow to.
    #[serde(deserialize_with = "size")]
    #[schemars(schema_with = "schema::size")]
    pub spill: ByteSize,
    /// What the cache of the replica may take of memory, beside `memory`; nothing where the mapping needs no replica.
    #[serde(deserialize_with = "size")]
    #[schemars(schema_with = "schema::size")]
    pub replica_cache: ByteSize,
    /// With `exactly_once`: a transaction of more events is spread over several Kafka transactions, its records marked.
    pub transaction_events: u64,
    /// Log that the server may keep for the slot before we warn.
    #[serde(deserialize_with = "size")]
    #[schemars(schema_with = "schema::size")]
    pub slot_wal_warn: ByteSize,
    /// Log that the server may keep for the slot before we do `slot_wal_action`; without a bound when absent.
    #[serde(deserialize_with = "some_size")]
    #[schemars(schema_with = "schema::size")]
    pub slot_wal_stop: Option<ByteSize>,
    /// What is done at `slot_wal_stop`.
    pub slot_wal_action: SlotWalAction,
}

/// `limits.slot_wal_action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SlotWalAction {
    /// The process ends; the slot stays, and so does its log.
    #[default]
    Stop,
    /// The slot is dropped, so that the server may forget its log; then the process ends.
    DropSlot,
}

/// `admin`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where `/livez`, `/readyz` and `/metrics` answer.
    #[serde(deserialize_with = "address")]
    #[schemars(schema_with = "schema::address")]
    pub listen: SocketAddr,
    /// What `/` and `/metrics` ask for: `Authorization: Bearer <token>`. The probes, `/livez` and `/readyz`, never do.
    pub token: Option<Secret>,
    /// HTTPS instead of HTTP, on all of them.
    pub tls: Option<AdminTls>,
}

/// `admin.tls`: PEM files. They are read again when they change, so that a renewed certificate is taken up.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminTls {
    /// Ours, and those that lead from it to an authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A text that is never printed. One that begins with `file:` names the file that holds it.
#[derive(Clone, Deserialize)]
pub struct Secret(String);

/// A property's value; YAML's numbers and booleans are taken as their text. Not printed: it may be `sasl.password`'s.
/// One of `sink.kafka.properties` that begins with `file:` names the file that holds it.
#[derive(Clone, PartialEq, Deserialize)]
pub struct Property(pub String);

/// The file that holds a secret cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {}", path.display())]
pub struct SecretError {
    /// As it was named.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

/// The config cannot be used; exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file itself.
    #[error("cannot read {}", path.display())]
    Read {
        /// As it was named.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something in it.
    #[error("{0}")]
    Refused(#[from] Box<Fault>),
}

/// What a module finds wrong in its part of a config that is otherwise right.
#[derive(Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The keys that lead to it, such as `sink`, `kafka`, `properties`, `linger.ms`.
    pub path: Vec<String>,
    /// What is wrong and how to mend it, with the key in it and without a secret.
    pub said: String,
}

/// A module's look at its part of a config: so that `config` need not know what librdkafka and Postgres take.
pub type Check = fn(&Config) -> Result<(), Misfit>;

impl Misfit {
    /// At a path of keys.
    pub fn at(path: &[&str], said: impl Into<String>) -> Misfit {
        Misfit { path: path.iter().map(|key| (*key).to_owned()).collect(), said: said.into() }
    }
}

impl Config {
    /// Reads a config file, with the process's environment, and lets the modules look at their parts of it.
    pub fn load(path: &Path, checks: &[Check]) -> Result<Config, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.into(), source };
        let mut text = String::new();
        let len = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
        if len.map_err(failed)? as u64 > FILE_BYTES_MAX {
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB")));
        }
        Self::parse_checked(&text, &path.display().to_string(), &|name| std::env::var(name).ok(), checks)
    }

    /// Reads a config from `text`; `file` is how messages call it, `env` knows the variables.
    pub fn parse(text: &str, file: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        Self::parse_checked(text, file, env, &[])
    }

    fn parse_checked(
        text: &str,
        file: &str,
        env: &dyn Fn(&str) -> Option<String>,
        checks: &[Check],
    ) -> Result<Config, ConfigError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let config = tree::parse(text).and_then(|tree| {
            let mut config = Config::deserialize(Walk::new(&tree, env))?;
            config.written = Written { file: file.into(), text: text.into() };
            check::check(&config, &tree)?;
            checks.iter().try_for_each(|check| check(&config).map_err(|misfit| check::misfit(misfit, &tree)))?;
            Ok(config)
        });
        config.map_err(|flaw| ConfigError::Refused(Box::new(flaw.told(file, text))))
    }

    /// What is found wrong after the config was loaded, with its place in the file.
    pub fn fault(&self, misfit: Misfit) -> Fault {
        let Written { file, text } = &self.written;
        let flaw = match tree::parse(text) {
            Ok(tree) => check::misfit(misfit, &tree),
            Err(flaw) => flaw,
        };
        flaw.told(file, text)
    }

    /// The slot's name.
    pub fn slot(&self) -> String {
        self.source.slot.clone().unwrap_or_else(|| format!("offshoot_{}", self.name))
    }

    /// Whether logical messages are asked for.
    pub fn wants_messages(&self) -> bool {
        let by_outbox = self.outbox.as_ref().is_some_and(|outbox| outbox.prefix.is_some());
        by_outbox || !self.messages.is_empty() || self.context.is_some()
    }

    /// What the index of a step of a transaction depends on: what is in it, and what becomes of that. Another config or
    /// program may count otherwise.
    pub fn fingerprint(&self) -> String {
        let Config { changes, outbox, messages, context, ignore_origin, tables, aggregates, events, .. } = self;
        let Config { types, format, unmapped, truncate, .. } = self;
        let mapped = (tables, aggregates, events, types, format, unmapped, truncate);
        let version = env!("CARGO_PKG_VERSION");
        let text = format!("{version} {changes:?} {outbox:?} {messages:?} {context:?} {ignore_origin:?} {mapped:?}");
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The publication's name.
    pub fn publication(&self) -> String {
        self.source.publication.clone().unwrap_or_else(|| format!("offshoot_{}", self.name))
    }
}

/// Schema and name of a table as a config has it: `table` of schema `public`, or `schema.table`.
pub fn full_name(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or(("public", name))
}

#[cfg(test)]
impl KafkaConfig {
    /// Of these brokers, all else as it is when nothing is said.
    pub(crate) fn at(brokers: &str, delivery: Delivery) -> Self {
        Self {
            brokers: brokers.into(),
            delivery,
            commit_interval: default_commit_interval(),
            commit_events: default_commit_events(),
            topics: Topics::default(),
            properties: BTreeMap::new(),
        }
    }
}

impl Secret {
    /// The text itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The secret as it is now: its file is read each time, since it may be replaced while we run.
    pub fn read(&self) -> Result<Secret, SecretError> {
        read_secret(&self.0).map(Secret)
    }
}

impl Property {
    /// The value as it is now: its file is read each time, since it may be replaced while we run.
    pub fn read(&self) -> Result<String, SecretError> {
        read_secret(&self.0)
    }
}

/// The text, or what is in the file that it names, without the line end that editors leave there.
fn read_secret(text: &str) -> Result<String, SecretError> {
    let Some(path) = text.strip_prefix("file:") else { return Ok(text.to_owned()) };
    let mut secret = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut secret));
    let read = read.and_then(|len| match len as u64 > FILE_BYTES_MAX {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB")),
        false => Ok(()),
    });
    read.map_err(|source| SecretError { path: path.into(), source })?;
    secret.truncate(secret.trim_end_matches(['\r', '\n']).len());
    Ok(secret)
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)
    }
}

impl fmt::Debug for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Default for Topics {
    fn default() -> Self {
        Self { create: true, partitions: 6, replication: -1, properties: BTreeMap::new() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: ByteSize::mib(24),
            spill: ByteSize::gib(10),
            replica_cache: ByteSize::mib(32),
            transaction_events: 1_000_000,
            slot_wal_warn: ByteSize::gib(10),
            slot_wal_stop: None,
            slot_wal_action: SlotWalAction::Stop,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8642)), token: None, tls: None }
    }
}

impl Default for ChangesConfig {
    fn default() -> Self {
        Self {
            tables: Vec::new(),
            except: Vec::new(),
            topic: default_topic(),
            format: ChangesFormat::default(),
            decimal: Decimal::default(),
        }
    }
}

fn default_data_dir() -> PathBuf {
    "/var/lib/offshoot".into()
}

fn default_topic() -> String {
    "{name}.{schema}.{table}".into()
}

fn yes() -> bool {
    true
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom("must be a size, such as 24MiB or 10GiB"))
}

fn default_commit_interval() -> Duration {
    Duration::from_millis(100)
}

fn default_commit_events() -> u64 {
    100_000
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|_| D::Error::custom("must be a time, such as 100ms or 1s"))
}

fn some_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
    struct Size(ByteSize);
    impl<'de> Deserialize<'de> for Size {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            size(deserializer).map(Size)
        }
    }
    Ok(Option::<Size>::deserialize(deserializer)?.map(|size| size.0))
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom("must be an address and a port, such as 127.0.0.1:8642"))
}

#[cfg(test)]
mod tests;
