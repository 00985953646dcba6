//! The config's structs -> JSON Schema, for editors. Pure.
//!
//! The derives say which keys there are and what they hold; here is what the walk does beyond that: every value may come
//! from a variable, numbers and booleans may be written as text, and a key whose children are all commented out is null.

use schemars::{
    JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema, transform::transform_subschemas,
};
use serde_json::{Value, json};

use super::{Config, Property, Secret};

/// A text with a variable in it: what it comes to is known only when it is loaded.
const VARIABLE: &str = r"\$\{[A-Za-z_]";

/// The JSON Schema of a config file, draft 7, which the YAML servers of editors know.
///
/// It is as strict as can be said without servers, files and variables; `Config::load` has the last word.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.with_transform(loosen).into_generator().into_root_schema_for::<Config>();
    schema.insert("title".into(), "Offshoot's config".into());
    schema.to_value()
}

/// A size, such as `24MiB`.
pub(super) fn size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["string", "integer"],
        "minimum": 0,
        "pattern": r"^[0-9]+(\.[0-9]+)?\s*([bB]|[kKmMgGtTpPeE]([iI]?[bB]?))?$"
    })
}

/// An address and a port.
pub(super) fn address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": r"^(\[[0-9a-fA-F:.]+\]|[0-9.]+):[0-9]{1,5}$" })
}

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

impl JsonSchema for Property {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Property".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

/// Lets a schema take what the walk takes.
fn loosen(schema: &mut Schema) {
    // What a struct of defaults comes to is for machines; the descriptions tell it to people.
    schema.remove("default");
    if let Some(Value::Array(mut words)) = schema.remove("oneOf") {
        words.push(json!({ "type": "string", "pattern": VARIABLE }));
        schema.insert("anyOf".into(), words.into());
        return;
    }
    transform_subschemas(&mut loosen, schema);
    let has = |key: &str| schema.get(key).is_some();
    let is = |name: &str| match schema.get("type") {
        Some(Value::String(only)) => only == name,
        Some(Value::Array(several)) => several.iter().any(|one| one == name),
        _ => false,
    };
    let as_text = match () {
        () if is("string") && !has("pattern") && !has("enum") && !has("const") => return,
        () if is("string") => None,
        () if is("boolean") => Some("^(true|false)$"),
        () if is("integer") => Some("^-?[0-9]+$"),
        () if is("number") => Some(r"^-?[0-9.]+$"),
        () if schema.pointer("/properties/nanos").is_some() && schema.pointer("/properties/secs").is_some() => {
            // A duration, which serde would have as this struct, and the config as a text such as `1m 30s`.
            let kinds = if is("null") { json!(["string", "null"]) } else { json!("string") };
            let description = schema.remove("description");
            *schema = json_schema!({ "type": kinds, "pattern": format!(r"^([0-9]+\s*[a-z]+\s*)+$|{VARIABLE}") });
            description.map(|text| schema.insert("description".into(), text));
            return;
        }
        () => {
            // A key whose children are all commented out.
            if schema.get("type") == Some(&json!("object")) && !has("required") {
                schema.insert("type".into(), json!(["object", "null"]));
            }
            return;
        }
    };
    let mut strict = std::mem::take(schema.ensure_object());
    let description = strict.remove("description");
    let pattern = as_text.map_or(VARIABLE.into(), |text| format!("{text}|{VARIABLE}"));
    schema.insert("anyOf".into(), json!([strict, { "type": "string", "pattern": pattern }]));
    description.map(|text| schema.insert("description".into(), text));
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct Kinds {
        count: u32,
        on: bool,
        wait: Option<Duration>,
        words: Vec<String>,
        map: BTreeMap<String, Property>,
    }

    #[test]
    fn a_schema_takes_what_the_walk_takes() {
        let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
        let schema = settings.with_transform(loosen).into_generator().into_root_schema_for::<Kinds>().to_value();
        let good = json!({ "count": 3, "on": true, "wait": "1m 30s", "words": ["a"], "map": { "b": 1 } });
        let with = |key: &str, value: Value| {
            let mut config = good.clone();
            config[key] = value;
            jsonschema::is_valid(&schema, &config)
        };
        assert!(jsonschema::is_valid(&schema, &good), "{schema:#}");
        for (key, value) in [
            ("count", json!("3")),
            ("count", json!("${COUNT:-3}")),
            ("on", json!("false")),
            ("on", json!("${ON}")),
            ("wait", json!("${WAIT}")),
            ("wait", json!("10s")),
            ("wait", Value::Null),
            ("words", json!(["${WORD}"])),
        ] {
            assert!(with(key, value.clone()), "{key}: {value}\n{schema:#}");
        }
        for (key, value) in [
            ("count", json!("three")),
            ("count", json!(true)),
            ("on", json!("yes")),
            ("wait", json!("soon")),
            ("wait", json!({ "secs": 1, "nanos": 0 })),
            ("words", json!("a")),
        ] {
            assert!(!with(key, value.clone()), "{key}: {value}\n{schema:#}");
        }
    }
}
