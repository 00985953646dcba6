//! `Node` + environment -> the config's structs: serde's derives ask, the walk answers and says where it stood.
//!
//! Variables are put in here, into the text of a single value, after YAML has been read: whatever a variable holds, it
//! cannot become a second key, and lines and columns stay those of the file.

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::{
    SecretError,
    fault::{Flaw, Shown, is_plain},
    read_secret,
    tree::{Key, Node, Value},
};

/// Where variables come from.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One node on the way down.
#[derive(Clone)]
pub(super) struct Walk<'a> {
    node: &'a Node,
    /// `None` in a list and at the top.
    key: Option<&'a Key>,
    path: String,
    env: Env<'a>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(node: &'a Node, env: Env<'a>) -> Self {
        Self { node, key: None, path: String::new(), env }
    }

    fn child(&self, key: &'a Key, node: &'a Node) -> Self {
        let name = if is_plain(&key.text) { key.text.as_str() } else { "?" };
        let path = if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) };
        Self { node, key: Some(key), path, env: self.env }
    }

    fn item(&self, index: usize, node: &'a Node) -> Self {
        Self { node, key: None, path: format!("{}[{index}]", self.path), env: self.env }
    }

    /// Completes a flaw that does not know its place yet.
    fn place(&self, flaw: Flaw) -> Flaw {
        let flaw = flaw.within(&self.path);
        if flaw.place.is_some() { flaw } else { place(flaw, self.key, self.node, is_hidden(&self.path)) }
    }

    fn expected(&self, what: &str) -> Flaw {
        let found = match &self.node.value {
            Value::Scalar(_) if self.node.alias || is_hidden(&self.path) => "a text".into(),
            Value::Scalar(raw) => format!("`{raw}`"),
            _ => self.node.kind().into(),
        };
        let subject = if self.path.is_empty() { "the file" } else { &format!("`{}`", self.path) };
        self.place(Flaw::text(format!("{subject} must be {what}, found {found}")))
    }

    /// The text of a single value, with its variables put in.
    fn text(&self, what: &str) -> Result<String, Flaw> {
        let Value::Scalar(raw) = &self.node.value else { return Err(self.expected(what)) };
        expand(raw, self.env).map_err(|said| self.place(Flaw::text(format!("`{}`: {said}", self.path))))
    }

    /// As `text`. Whoever uses it reads the file that it may name; here only that it can be read is seen to.
    fn secret(&self) -> Result<String, Flaw> {
        let text = self.text("text")?;
        let unread = |error: SecretError| {
            let said = format!("`{}`: cannot read {}: {}", self.path, error.path.display(), error.source);
            self.place(Flaw::text(said))
        };
        read_secret(&text).map_err(unread)?;
        Ok(text)
    }

    fn number<T: std::str::FromStr>(&self) -> Result<T, Flaw> {
        let what = "a whole number";
        self.text(what)?.parse().map_err(|_| self.expected(what))
    }
}

/// Points a flaw at a value, without showing it when it is secret, or at its key when the value is not one line of text.
pub(super) fn place(mut flaw: Flaw, key: Option<&Key>, node: &Node, hidden: bool) -> Flaw {
    match (key, &node.value) {
        (Some(key), Value::Scalar(_)) if hidden => {
            flaw = flaw.at_key(key);
            if flaw.shown == Shown::Key {
                flaw.shown = Shown::Secret;
            }
            flaw
        }
        (None, Value::Scalar(_)) if hidden => flaw.at(node.place.clone()),
        (_, Value::Scalar(_)) => {
            flaw.place = Some(Box::new(node.place.clone()));
            flaw.shown = Shown::Value { key: key.map(|key| key.place.bytes.start) };
            flaw
        }
        (Some(key), _) => flaw.at_key(key),
        (None, _) => flaw.at(node.place.clone()),
    }
}

/// Whether the value at this path may be a secret: it can come from a file.
fn is_secret(path: &str) -> bool {
    ["source.postgres", "admin.token"].contains(&path) || path.starts_with("sink.kafka.properties.")
}

/// Whether a text at this path is never shown: it may be a secret, or one that was written a level too high.
pub(super) fn is_hidden(path: &str) -> bool {
    is_secret(path) || ["", "source", "sink", "sink.kafka", "sink.kafka.properties", "admin"].contains(&path)
}

/// Puts `${NAME}` and `${NAME:-default}` in; `$${` is a literal `${`.
fn expand(raw: &str, env: Env<'_>) -> Result<String, String> {
    const LITERAL: &str = "write `$${` for a literal `${`";
    let mut text = String::new();
    let mut rest = raw;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            text.push_str(&rest[..at]);
            text.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        text.push_str(&rest[..at]);
        let (inner, after) = rest[at + 2..].split_once('}').ok_or(format!("`${{` is not closed by `}}`; {LITERAL}"))?;
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        let legal = |name: &str| {
            !name.starts_with(|c: char| c.is_ascii_digit())
                && !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if !legal(name) {
            return Err(format!(
                "`${{...}}` wants the name of a variable, `${{NAME}}` or `${{NAME:-default}}`; {LITERAL}"
            ));
        }
        let value = match (env(name), default) {
            (Some(value), Some(default)) if value.is_empty() => default.to_owned(),
            (Some(value), _) => value,
            (None, Some(default)) => default.to_owned(),
            (None, None) => {
                return Err(format!("environment variable {name} is not set; set it, or write `${{{name}:-default}}`"));
            }
        };
        text.push_str(&value);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

macro_rules! numbers {
    ($($ask:ident $answer:ident,)*) => {
        $(fn $ask<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
            visitor.$answer(self.number()?)
        })*
    };
}

impl<'de, 'a: 'de> Deserializer<'de> for Walk<'a> {
    type Error = Flaw;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Scalar(_) => visitor.visit_string(self.text("text")?),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        let what = "true or false";
        match self.text(what)?.as_str() {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(self.expected(what)),
        }
    }

    numbers! {
        deserialize_i8 visit_i8,
        deserialize_i16 visit_i16,
        deserialize_i32 visit_i32,
        deserialize_i64 visit_i64,
        deserialize_u8 visit_u8,
        deserialize_u16 visit_u16,
        deserialize_u32 visit_u32,
        deserialize_u64 visit_u64,
        deserialize_f32 visit_f32,
        deserialize_f64 visit_f64,
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        visitor.visit_string(self.text("text")?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Flaw> {
        if is_secret(&self.path) {
            visitor.visit_newtype_struct(self.secret()?.into_deserializer())
        } else {
            visitor.visit_newtype_struct(self)
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        let Value::List(items) = &self.node.value else { return Err(self.expected("a list such as [a, b]")) };
        visitor.visit_seq(Items { of: &self, items, next: 0 }).map_err(|flaw| self.place(flaw))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Flaw> {
        let entries = match &self.node.value {
            Value::Map(entries) => entries.as_slice(),
            // A key whose children are all commented out.
            Value::Null => &[],
            _ => return Err(self.expected("a map of keys")),
        };
        visitor.visit_map(Entries { of: &self, entries, next: 0 }).map_err(|flaw| self.place(flaw))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Flaw> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Flaw> {
        let word = self.text("one word")?;
        visitor.visit_enum(Word(word)).map_err(|flaw| self.place(flaw))
    }

    serde::forward_to_deserialize_any! {
        char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items<'w, 'a> {
    of: &'w Walk<'a>,
    items: &'a [Node],
    next: usize,
}

impl<'de, 'a: 'de> SeqAccess<'de> for Items<'_, 'a> {
    type Error = Flaw;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Flaw> {
        let Some(node) = self.items.get(self.next) else { return Ok(None) };
        let walk = self.of.item(self.next, node);
        self.next += 1;
        seed.deserialize(walk.clone()).map(Some).map_err(|flaw| walk.place(flaw))
    }
}

struct Entries<'w, 'a> {
    of: &'w Walk<'a>,
    entries: &'a [(Key, Node)],
    next: usize,
}

impl<'de, 'a: 'de> MapAccess<'de> for Entries<'_, 'a> {
    type Error = Flaw;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Flaw> {
        let Some((key, _)) = self.entries.get(self.next) else { return Ok(None) };
        let known = seed.deserialize(key.text.as_str().into_deserializer());
        known.map(Some).map_err(|flaw: Flaw| flaw.within(&self.of.path).at_key(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Flaw> {
        let (key, node) = &self.entries[self.next];
        self.next += 1;
        let walk = self.of.child(key, node);
        seed.deserialize(walk.clone()).map_err(|flaw| walk.place(flaw))
    }
}

/// The single word that names a variant.
struct Word(String);

impl<'de> EnumAccess<'de> for Word {
    type Error = Flaw;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Flaw> {
        Ok((seed.deserialize(self.0.as_str().into_deserializer())?, self))
    }
}

impl<'de> VariantAccess<'de> for Word {
    type Error = Flaw;

    fn unit_variant(self) -> Result<(), Flaw> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Flaw> {
        Err(Flaw::text(format!("`{}` stands alone", self.0)))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Flaw> {
        Err(Flaw::text(format!("`{}` stands alone", self.0)))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Flaw> {
        Err(Flaw::text(format!("`{}` stands alone", self.0)))
    }
}
