//! `tables`, `aggregates`, `events`: how rows become domain events, as it is written. `mapping/rules.rs` gives it a meaning.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

/// A map in the order in which it is written: events of one transaction leave in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordered<T>(pub Vec<(String, T)>);

/// `tables.<table>`: what the catalog cannot know. The key is `table` of schema `public`, or `schema.table`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableConfig {
    /// What a hop to the table is called in paths; the foreign key's column less `_id` always does too.
    pub name: Option<String>,
    /// Digits after the point of columns whose type has none of its own (`real`, `double precision`, bare `numeric`).
    #[serde(default)]
    pub decimal: BTreeMap<String, u8>,
    /// What a `timestamp` without a time zone meant, such as `America/Toronto`.
    pub zone: Option<String>,
}

/// `aggregates.<Name>`: a root row and the rows that hang on it.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AggregateConfig {
    /// The root's table, `table` or `schema.table`.
    pub root: String,
    /// Where its events go; `<name>.<root's table>` when absent.
    pub topic: Option<String>,
    /// Columns of the root that make the record's key; its primary key when absent.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(with = "OneOrMany<String>")]
    pub key: Vec<String>,
    /// Name of a collection -> `table.column`, the foreign key that leads to the root.
    #[serde(default)]
    pub children: Ordered<String>,
}

/// `events.<Name>`: when something has happened, and what is told of it.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventConfig {
    /// The aggregate.
    pub of: String,
    /// Any of these.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(with = "OneOrMany<TriggerConfig>")]
    pub when: Vec<TriggerConfig>,
    /// A CEL predicate over `old` and `new`.
    #[serde(rename = "if")]
    pub condition: Option<String>,
    /// The payload's fields.
    pub data: Ordered<DataConfig>,
    /// `EventName via column`: its cause in the same transaction.
    pub because: Option<String>,
    /// Its topic keeps the latest per key; a deletion is a tombstone.
    #[serde(default)]
    pub compact: bool,
    /// 1 when absent; may also be written at the name's end: `BookingCreated.v2`.
    pub version: Option<u32>,
    /// Fields of `data` that do not leave as they are, `field` or `field.field`.
    #[serde(default)]
    pub mask: BTreeMap<String, Mask>,
}

/// One alternative of `when`.
#[derive(Clone, Debug, PartialEq)]
pub enum TriggerConfig {
    /// `created`, `deleted`, `backfill` or `any`; another word is refused by the rules.
    Word(String),
    /// Column or collection -> its transition; all must hold.
    All(Ordered<String>),
}

/// One field of a payload.
#[derive(Clone, Debug, PartialEq)]
pub enum DataConfig {
    /// `column`, `old.column`, `hop.column`.
    Path(String),
    /// An object.
    Object(Ordered<DataConfig>),
    /// `{ each: collection, data: { ... } }`: a list of objects.
    Each {
        /// The collection's name.
        each: String,
        /// Fields of each of its rows.
        data: Ordered<DataConfig>,
    },
}

/// What becomes of a field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// Lower-case hex of the SHA-256 of its text; null stays null.
    Sha256,
    /// The field is left out.
    Drop,
}

/// `unmapped`: changes of mapped tables that no event tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unmapped {
    /// They are counted.
    Ignore,
    /// They are counted, and the log names the table once.
    #[default]
    Warn,
    /// They stop the run.
    Fail,
}

/// `truncate`: TRUNCATE of a mapped table, which carries no rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Truncate {
    /// It stops the run; `offshoot skip` is the way on.
    #[default]
    Fail,
    /// Its rows go without an event.
    Ignore,
}

/// `format`: how an event becomes a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventFormat {
    /// CloudEvents, binary mode: the attributes are headers, the value is the data.
    #[default]
    Cloudevents,
    /// CloudEvents, structured mode: one JSON object with the attributes and the data.
    CloudeventsStructured,
    /// The data alone, and no headers but `id` and `type`.
    Json,
}

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Ordered<T> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&T> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Keys and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Ordered<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of keys")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Ordered<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Ordered_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        BTreeMap::<String, T>::json_schema(generator)
    }
}

/// `a` or `[a, b]`.
struct OneOrMany<T>(PhantomData<T>);

fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Either<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one, or a list")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            T::deserialize(serde::de::value::StrDeserializer::new(text)).map(|one| vec![one])
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(item) = items.next_element()? {
                all.push(item);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(Either(PhantomData))
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}

impl<'de> Deserialize<'de> for TriggerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Alternative;
        impl<'de> Visitor<'de> for Alternative {
            type Value = TriggerConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word such as `created`, or a map such as `{ status: a -> b }`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TriggerConfig, E> {
                Ok(TriggerConfig::Word(text.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TriggerConfig, A::Error> {
                Ordered::deserialize(MapAccessDeserializer::new(map)).map(TriggerConfig::All)
            }
        }
        deserializer.deserialize_any(Alternative)
    }
}

impl JsonSchema for TriggerConfig {
    fn schema_name() -> Cow<'static, str> {
        "Trigger".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "enum": ["created", "deleted", "backfill", "any"] },
            { "type": "object", "minProperties": 1, "additionalProperties": { "type": "string" } },
        ] })
    }
}

impl<'de> Deserialize<'de> for DataConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Field;
        impl<'de> Visitor<'de> for Field {
            type Value = DataConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path such as `column`, a map of fields, or `{ each: collection, data: { ... } }`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<DataConfig, E> {
                Ok(DataConfig::Path(text.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DataConfig, A::Error> {
                let Ordered(mut fields) = Ordered::<DataConfig>::deserialize(MapAccessDeserializer::new(map))?;
                let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
                if names != ["each", "data"] && names != ["data", "each"] {
                    return Ok(DataConfig::Object(Ordered(fields)));
                }
                fields.sort_by_key(|(name, _)| name == "data");
                match <[_; 2]>::try_from(fields).map(|fields| fields.map(|(_, field)| field)) {
                    Ok([DataConfig::Path(each), DataConfig::Object(data)]) => Ok(DataConfig::Each { each, data }),
                    _ => Err(serde::de::Error::custom("`each` must name a collection, and `data` be a map of fields")),
                }
            }
        }
        deserializer.deserialize_any(Field)
    }
}

impl JsonSchema for DataConfig {
    fn schema_name() -> Cow<'static, str> {
        "Data".into()
    }

    fn inline_schema() -> bool {
        // It holds itself.
        false
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let inner = generator.subschema_for::<DataConfig>();
        json_schema!({ "anyOf": [{ "type": "string" }, { "type": "object", "additionalProperties": inner }] })
    }
}
