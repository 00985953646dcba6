//! A column's wire text -> its JSON in Debezium's encoding. Which encoding is chosen once per shape of a table. Pure.

use postgres_types::{Kind, Type};

use super::{
    decimal,
    time::{self, Unit},
};
use crate::{
    change::Column,
    config::Decimal,
    json,
    text::{self, Entry, Malformed, bytes, is_integer},
};

/// How the values of one column are written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Boolean,
    Integer,
    /// As a string: the type's text is what is published.
    Text,
    Real,
    Double,
    Fixed {
        scale: i32,
    },
    Variable,
    NumericDouble,
    NumericString,
    MoneyFixed,
    MoneyDouble,
    MoneyString,
    Bytes,
    Date,
    Time(Unit),
    TimeWithZone,
    Timestamp(Unit),
    TimestampWithZone {
        digits: u8,
    },
    Interval,
    Bit,
    Bits,
    Point,
    Hstore,
    Array(Box<Encoding>),
}

/// Why a value cannot be written. The texts say what was found and how to mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// No text that Postgres writes for the type.
    #[error(
        "the value is not in the text form of its type; was a session setting such as DateStyle or TimeZone forced on \
         our role? if not, `changes.except` leaves the table out, and we want to hear of it"
    )]
    Malformed,
    /// A database in SQL_ASCII takes any bytes.
    #[error("the value is not UTF-8, so JSON cannot hold it; mend the row, or leave the table out by `changes.except`")]
    NotUtf8,
    /// NaN or an infinity, which Connect's Decimal does not have.
    #[error(
        "the value is NaN or infinite, which `changes.decimal: precise` cannot say; set it to `string` or `double`"
    )]
    NotFinite,
    /// Larger than the largest double.
    #[error("the value is larger than any double; set `changes.decimal` to `precise` or `string`")]
    TooLarge,
}

impl From<Malformed> for Unfit {
    fn from(_: Malformed) -> Self {
        Unfit::Malformed
    }
}

impl Encoding {
    /// Chooses by the column's type and modifier; `None` for a type that Debezium leaves out.
    pub(super) fn of(column: &Column, mode: Decimal) -> Option<Self> {
        Self::of_type(&column.ty, column.modifier, mode)
    }

    fn of_type(ty: &Type, modifier: i32, mode: Decimal) -> Option<Self> {
        Some(match *ty {
            Type::BOOL => Encoding::Boolean,
            Type::INT2 | Type::INT4 | Type::INT8 | Type::OID => Encoding::Integer,
            Type::CHAR | Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME => Encoding::Text,
            Type::UUID | Type::XML | Type::JSON | Type::JSONB | Type::TS_VECTOR => Encoding::Text,
            Type::INET | Type::CIDR | Type::MACADDR | Type::MACADDR8 => Encoding::Text,
            Type::INT4_RANGE | Type::INT8_RANGE | Type::NUM_RANGE => Encoding::Text,
            Type::TS_RANGE | Type::TSTZ_RANGE | Type::DATE_RANGE => Encoding::Text,
            Type::FLOAT4 => Encoding::Real,
            Type::FLOAT8 => Encoding::Double,
            Type::NUMERIC => match (mode, numeric_scale(modifier)) {
                (Decimal::Precise, Some(scale)) => Encoding::Fixed { scale },
                (Decimal::Precise, None) => Encoding::Variable,
                (Decimal::Double, _) => Encoding::NumericDouble,
                (Decimal::String, _) => Encoding::NumericString,
            },
            Type::MONEY => match mode {
                Decimal::Precise => Encoding::MoneyFixed,
                Decimal::Double => Encoding::MoneyDouble,
                Decimal::String => Encoding::MoneyString,
            },
            Type::BYTEA => Encoding::Bytes,
            Type::DATE => Encoding::Date,
            Type::TIME => Encoding::Time(Unit::of(modifier)),
            Type::TIMETZ => Encoding::TimeWithZone,
            Type::TIMESTAMP => Encoding::Timestamp(Unit::of(modifier)),
            Type::TIMESTAMPTZ => Encoding::TimestampWithZone { digits: u8::try_from(modifier).unwrap_or(6).min(6) },
            Type::INTERVAL => Encoding::Interval,
            Type::BIT if modifier == 1 => Encoding::Bit,
            Type::BIT | Type::VARBIT => Encoding::Bits,
            Type::POINT => Encoding::Point,
            _ => match ty.kind() {
                Kind::Enum(_) => Encoding::Text,
                Kind::Domain(base) => return Self::of_type(base, modifier, mode),
                Kind::Array(element) => return Self::of_array(element, modifier, mode),
                Kind::Simple => match ty.name() {
                    "citext" | "ltree" | "isbn" => Encoding::Text,
                    "hstore" => Encoding::Hstore,
                    _ => return None,
                },
                _ => return None,
            },
        })
    }

    fn of_array(element: &Type, modifier: i32, mode: Decimal) -> Option<Self> {
        // Debezium publishes these alone, and leaves their arrays out.
        let alone = matches!(*element, Type::MONEY | Type::INTERVAL | Type::POINT | Type::NAME)
            || matches!(element.kind(), Kind::Domain(_) | Kind::Array(_));
        let encoding = Self::of_type(element, modifier, mode).filter(|_| !alone)?;
        Some(Encoding::Array(Box::new(encoding)))
    }

    /// Appends the JSON of a value that is not null; what was appended is meaningless after an error.
    pub(super) fn write(&self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
        let known = match self {
            Encoding::Integer => integer(text, out),
            Encoding::Text => return json::string(out, text).map_err(|_| Unfit::NotUtf8),
            Encoding::Boolean | Encoding::Bit => boolean(text, out),
            Encoding::Real => real(text, out),
            Encoding::Double => double(text, out),
            Encoding::Fixed { scale } => return decimal::fixed(text, *scale, out),
            Encoding::Variable => return decimal::variable(text, out),
            Encoding::NumericDouble => return decimal::double(text, out),
            Encoding::NumericString => return decimal::string(text, out),
            Encoding::MoneyFixed => return decimal::fixed(text::money(text).ok_or(Unfit::Malformed)?.text(), 2, out),
            Encoding::MoneyDouble => return decimal::double(text::money(text).ok_or(Unfit::Malformed)?.text(), out),
            Encoding::MoneyString => return decimal::string(text::money(text).ok_or(Unfit::Malformed)?.text(), out),
            Encoding::Bytes => bytes(text, out),
            Encoding::Date => time::date(text, out),
            Encoding::Time(unit) => time::time(text, *unit, out),
            Encoding::TimeWithZone => time::time_with_zone(text, out),
            Encoding::Timestamp(unit) => time::timestamp(text, *unit, out),
            Encoding::TimestampWithZone { digits } => time::timestamp_with_zone(text, *digits, out),
            Encoding::Interval => time::interval(text, out),
            Encoding::Bits => bits(text, out),
            Encoding::Point => point(text, out),
            Encoding::Hstore => return hstore(text, out),
            Encoding::Array(element) => return text::array(text, out, |text, out| element.write(text, out)),
        };
        known.ok_or(Unfit::Malformed)
    }
}

/// What stands for an unchanged TOASTed value: Debezium's word in the form that it has for the column's type.
///
/// `None` where Debezium has no form of it but null: then the value is left out of the record.
pub(super) fn unavailable(column: &Column, encoding: &Encoding) -> Option<&'static [u8]> {
    const WORD: &[u8] = b"\"__debezium_unavailable_value\"";
    const BASE64: &[u8] = b"\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"";
    const NUMBERS: &[u8] =
        b"[95,95,100,101,98,101,122,105,117,109,95,117,110,97,118,97,105,108,97,98,108,101,95,118,97,108,117,101]";
    const HSTORE: &[u8] = b"\"{\\\"__debezium_unavailable_value\\\":\\\"__debezium_unavailable_value\\\"}\"";
    const TEXTS: &[u8] = b"[\"__debezium_unavailable_value\"]";
    const BASE64S: &[u8] = b"[\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"]";
    const UUIDS: &[u8] = b"[\"b68a35a7-17ad-35b3-af2a-ae46edb4545a\"]";
    match encoding {
        Encoding::Text => Some(WORD),
        Encoding::Bytes => Some(BASE64),
        Encoding::Hstore => Some(HSTORE),
        Encoding::Array(_) if column.ty == Type::UUID_ARRAY => Some(UUIDS),
        Encoding::Array(element) => match **element {
            Encoding::Text => Some(TEXTS),
            Encoding::Bytes => Some(BASE64S),
            Encoding::Integer | Encoding::Date => Some(NUMBERS),
            _ => None,
        },
        _ => None,
    }
}

/// The scale of `numeric(p,s)`, which may be negative; `None` for a plain `numeric`.
fn numeric_scale(modifier: i32) -> Option<i32> {
    // The modifier is 4 + (precision << 16 | scale), the scale in 11 bits of two's complement.
    (modifier >= 4).then(|| (((modifier - 4) & 0x7ff) ^ 1024) - 1024)
}

fn integer(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    out.extend_from_slice(text);
    is_integer(digits).then_some(())
}

fn boolean(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(match text {
        b"t" | b"1" => b"true",
        b"f" | b"0" => b"false" as &[u8],
        _ => return None,
    });
    Some(())
}

/// Postgres prints the shortest text that reads as the same number, and it is JSON but for the words; Java always has
/// a fraction or an exponent.
fn double(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    if matches!(text, b"NaN" | b"Infinity" | b"-Infinity") {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
        return Some(());
    }
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let (mantissa, exponent) = match digits.iter().position(|&b| b == b'e') {
        Some(at) => (&digits[..at], Some(&digits[at + 1..])),
        None => (digits, None),
    };
    let point = mantissa.iter().position(|&b| b == b'.');
    let (whole, fraction) = point.map_or((mantissa, None), |at| (&mantissa[..at], Some(&mantissa[at + 1..])));
    let some_digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let signed_digits = |part: &[u8]| some_digits(part.strip_prefix(b"-").or(part.strip_prefix(b"+")).unwrap_or(part));
    if !is_integer(whole) || !fraction.is_none_or(some_digits) || !exponent.is_none_or(signed_digits) {
        return None;
    }
    out.extend_from_slice(text);
    if fraction.is_none() && exponent.is_none() {
        out.extend_from_slice(b".0");
    }
    Some(())
}

/// As `double`, but Java has two digits at least, which is another double for the smallest floats: 1e-45 is 1.4e-45.
fn real(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    match text {
        [b'-', b'1'..=b'9', b'e', ..] | [b'1'..=b'9', b'e', ..]
            if text.ends_with(b"e-45") || text.ends_with(b"e-44") =>
        {
            let number: f32 = std::str::from_utf8(text).ok()?.parse().ok()?;
            out.extend_from_slice(format!("{:.1e}", f64::from(number)).as_bytes());
            Some(())
        }
        _ => double(text, out),
    }
}

/// Bits as a number -> its bytes in base64, lowest first and without zeros at the high end, as Java's BitSet has them.
fn bits(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut bytes = Vec::with_capacity(text.len().div_ceil(8));
    for eight in text.rchunks(8) {
        bytes.push(eight.iter().try_fold(0, |byte, bit| match bit {
            b'0' => Some(byte << 1),
            b'1' => Some(byte << 1 | 1),
            _ => None,
        })?);
    }
    let len = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
    json::base64(out, &bytes[..len]);
    Some(())
}

/// `(1.5,-2)` -> `{"x":1.5,"y":-2.0,"wkb":"...","srid":null}`.
fn point(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const LITTLE_ENDIAN_POINT: [u8; 5] = [1, 1, 0, 0, 0];
    let text = std::str::from_utf8(text).ok()?;
    let (x, y) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    out.extend_from_slice(b"{\"x\":");
    double(x.as_bytes(), out)?;
    out.extend_from_slice(b",\"y\":");
    double(y.as_bytes(), out)?;
    out.extend_from_slice(b",\"wkb\":");
    let mut wkb = [0; 21];
    wkb[..5].copy_from_slice(&LITTLE_ENDIAN_POINT);
    wkb[5..13].copy_from_slice(&x.parse::<f64>().ok()?.to_le_bytes());
    wkb[13..].copy_from_slice(&y.parse::<f64>().ok()?.to_le_bytes());
    json::base64(out, &wkb);
    out.extend_from_slice(b",\"srid\":null}");
    Some(())
}

/// `"a"=>"1", "b"=>NULL` -> the JSON string `{"a":"1","b":null}`.
///
/// Debezium lets a HashMap decide the order of the keys. It is kept, so that a string compares equal to Debezium's.
fn hstore(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let entries = text::hstore_entries(text).ok_or(Unfit::Malformed)?;
    let mut object = Vec::with_capacity(text.len() + 2);
    object.push(b'{');
    for (i, (key, value)) in hash_order(entries)?.iter().enumerate() {
        if i > 0 {
            object.push(b',');
        }
        json::string(&mut object, key.as_bytes()).map_err(|_| Unfit::NotUtf8)?;
        object.push(b':');
        match value {
            Some(value) => json::string(&mut object, value).map_err(|_| Unfit::NotUtf8)?,
            None => object.extend_from_slice(b"null"),
        }
    }
    object.push(b'}');
    json::string(out, &object).map_err(|_| Unfit::NotUtf8)
}

/// Entries in the order in which a Java HashMap that they were put into gives them back.
fn hash_order(entries: Vec<Entry<Vec<u8>>>) -> Result<Vec<Entry<String>>, Unfit> {
    let mut named = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        named.push((String::from_utf8(key).map_err(|_| Unfit::NotUtf8)?, value));
    }
    // It starts with 16 buckets and doubles them when it is more than three quarters full.
    let buckets = (named.len() * 4).div_ceil(3).next_power_of_two().max(16) as u32;
    named.sort_by_key(|(key, _)| {
        let hash = key.encode_utf16().fold(0_u32, |hash, unit| hash.wrapping_mul(31).wrapping_add(u32::from(unit)));
        (hash ^ hash >> 16) & (buckets - 1)
    });
    Ok(named)
}
