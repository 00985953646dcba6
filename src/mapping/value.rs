//! A value's text form -> JSON that people and programs of other services understand: money as a decimal string, times in
//! RFC 3339, `jsonb` embedded. Pure.

use std::io::Write;

use jiff::{
    civil::DateTime,
    tz::{Offset, TimeZone},
};
use postgres_types::{Kind, Type};

use crate::{
    json,
    text::{self, Day, Digits, Interval, Malformed},
};

/// How the values of one column leave.
#[derive(Clone, Debug, PartialEq)]
pub enum Writer {
    /// A JSON number, as it is.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A string.
    Text,
    /// `char(n)`: a string without the blanks that fill it, which mean nothing in SQL either.
    Padded,
    /// `numeric`, `real`, `double precision`: a string of digits, rounded half to even when there are `digits` after the point.
    Decimal {
        /// Digits after the point; `None` as Postgres has them.
        digits: Option<u8>,
    },
    /// `money`: a string of digits with two after the point.
    Money,
    /// `bytea`: base64.
    Bytes,
    /// `date`: `2015-01-10`.
    Date,
    /// `time`: `14:00:00.5`.
    Time,
    /// `timetz`: `14:00:00.5+02:00`.
    TimeWithZone,
    /// `timestamp`: RFC 3339 with the offset that the zone had then.
    Timestamp(TimeZone),
    /// `timestamptz`: RFC 3339 in UTC.
    TimestampWithZone,
    /// `interval`: ISO 8601, `P1Y2M3DT4H5M6.7S`.
    Interval,
    /// `json`, `jsonb`: as it is.
    Json,
    /// An object of strings and nulls.
    Hstore,
    /// An array of what its elements are.
    Array(Box<Writer>),
}

/// Whether values of two columns, each a type and its modifier, are equal in SQL only when their texts are: a child finds its root by its text.
pub(crate) fn equal_as_text(a: (&Type, i32), b: (&Type, i32)) -> bool {
    match *a.0 {
        Type::FLOAT4 | Type::FLOAT8 | Type::INTERVAL | Type::JSONB => false,
        // 1.0 is 1.
        Type::NUMERIC => has_same_text(a, b) && a.1 >= 4,
        _ => {
            has_same_text(a, b) && !["citext", "hstore"].contains(&a.0.name()) && !matches!(a.0.kind(), Kind::Array(_))
        }
    }
}

/// Whether what one of these types, with its modifier, holds is written in the same way as the other.
pub(crate) fn has_same_text(a: (&Type, i32), b: (&Type, i32)) -> bool {
    text_form(a) == text_form(b)
}

/// Names the way in which values are written: types with one name write a value in the same way, and sort their texts in the same way.
pub(crate) fn text_form((ty, modifier): (&Type, i32)) -> String {
    match *ty {
        Type::INT2 | Type::INT4 | Type::INT8 => "integer".into(),
        Type::TEXT | Type::VARCHAR => "text".into(),
        // Digits after the point.
        Type::NUMERIC if modifier >= 4 => format!("numeric.{}", (modifier - 4) & 0x7ff),
        // Filled with blanks.
        Type::BPCHAR => format!("bpchar({modifier})"),
        // One that was made again under its name may be another.
        _ if ty.oid() >= FIRST_OID_OF_USERS => format!("{} {}", ty.name(), ty.oid()),
        _ => ty.name().into(),
    }
}

/// Types from here on are not built in.
const FIRST_OID_OF_USERS: u32 = 16_384;

/// What a type is called in SQL.
pub(crate) fn declared((ty, modifier): (&Type, i32)) -> String {
    let name = match *ty {
        Type::NUMERIC if modifier >= 4 => {
            let (precision, scale) = ((modifier - 4) >> 16, (modifier - 4) & 0x7ff);
            return format!("numeric({precision},{scale})");
        }
        Type::BPCHAR if modifier >= 4 => return format!("char({})", modifier - 4),
        Type::INT2 => "smallint",
        Type::INT4 => "integer",
        Type::INT8 => "bigint",
        Type::FLOAT4 => "real",
        Type::FLOAT8 => "double precision",
        Type::BOOL => "boolean",
        Type::BPCHAR => "char",
        _ => ty.name(),
    };
    name.into()
}

/// A value that has no such JSON, in words that name how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

const MALFORMED: &str = "it is not in the text form of its type; was a session setting such as DateStyle or TimeZone forced on our \
                         role? if not, we want to hear of it";
const NOT_UTF8: &str = "it is not UTF-8, so JSON cannot hold it; mend the row, or take the column out of `events`";
const NOT_FINITE: &str =
    "it is NaN or infinite, which no decimal number says; mend the row, or take the column out of `events`";
const NO_YEAR: &str =
    "its year is not between 1 and 9999, and RFC 3339 has no other; mend the row, or take the column out of `events`";

/// Digits after the point that `decimal` may ask for: more than any double has.
const DIGITS_MAX: u8 = 38;

impl From<Malformed> for Unfit {
    fn from(_: Malformed) -> Self {
        Unfit(MALFORMED.into())
    }
}

impl Writer {
    /// For a column's type; in words, with the key to mend it, why there is none: `real` without `decimal`, a `timestamp` without
    /// `zone`.
    pub fn of(ty: &Type, modifier: i32, decimal: Option<u8>, zone: Option<&str>) -> Result<Writer, String> {
        let writer = Self::of_type(ty, modifier, decimal, zone)?;
        match decimal {
            Some(digits) if digits > DIGITS_MAX => {
                Err(format!("`decimal` has {digits} digits after the point; it may have {DIGITS_MAX}"))
            }
            Some(_) if !writer.is_decimal() => {
                let name = ty.name();
                Err(format!(
                    "`decimal` is for `real`, `double precision` and `numeric`, and this is `{name}`; leave it out"
                ))
            }
            _ => Ok(writer),
        }
    }

    fn of_type(ty: &Type, modifier: i32, decimal: Option<u8>, zone: Option<&str>) -> Result<Writer, String> {
        Ok(match *ty {
            Type::INT2 | Type::INT4 | Type::INT8 | Type::OID => Writer::Integer,
            Type::BOOL => Writer::Boolean,
            // Without a length nothing is filled: whoever wrote blanks has meant them.
            Type::BPCHAR if modifier >= 0 => Writer::Padded,
            Type::NUMERIC => Writer::Decimal { digits: decimal },
            Type::FLOAT4 | Type::FLOAT8 if decimal.is_none() => {
                let name = if *ty == Type::FLOAT4 { "real" } else { "double precision" };
                return Err(format!(
                    "`{name}` is a binary fraction: 19.99 may come out as 19.989999; say how many digits after the point are meant, \
                     with `tables.<table>.decimal: {{ <column>: 2 }}`"
                ));
            }
            Type::FLOAT4 | Type::FLOAT8 => Writer::Decimal { digits: decimal },
            Type::MONEY => Writer::Money,
            Type::BYTEA => Writer::Bytes,
            Type::DATE => Writer::Date,
            Type::TIME => Writer::Time,
            Type::TIMETZ => Writer::TimeWithZone,
            Type::TIMESTAMPTZ => Writer::TimestampWithZone,
            Type::TIMESTAMP => Writer::Timestamp(time_zone(zone)?),
            Type::INTERVAL => Writer::Interval,
            Type::JSON | Type::JSONB => Writer::Json,
            // Arrays by their kind, but their text has spaces and no braces.
            Type::INT2_VECTOR | Type::OID_VECTOR => Writer::Text,
            // The one type whose array has semicolons.
            Type::BOX_ARRAY => Writer::Text,
            _ => match ty.kind() {
                Kind::Domain(base) => Self::of_type(base, modifier, decimal, zone)?,
                Kind::Array(element) => Writer::Array(Box::new(Self::of_type(element, modifier, decimal, zone)?)),
                Kind::Simple if ty.name() == "hstore" => Writer::Hstore,
                _ => Writer::Text,
            },
        })
    }

    fn is_decimal(&self) -> bool {
        match self {
            Writer::Decimal { .. } => true,
            Writer::Array(element) => element.is_decimal(),
            _ => false,
        }
    }

    /// Appends a value that is not null; what was appended is meaningless after an error.
    pub fn write(&self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
        let known = match self {
            Writer::Integer => integer(text, out),
            Writer::Boolean => boolean(text, out),
            Writer::Text => return string(text, out),
            Writer::Padded => return string(unpadded(text), out),
            Writer::Decimal { digits } => return decimal(text, *digits, out),
            Writer::Money => text::money(text).and_then(|money| {
                Digits::read(money.text())?;
                quoted(money.text(), out);
                Some(())
            }),
            Writer::Bytes => text::bytes(text, out),
            Writer::Date => return date(text, out),
            Writer::Time => time(text, out),
            Writer::TimeWithZone => time_with_zone(text, out),
            Writer::Timestamp(zone) => return timestamp(text, zone, out),
            Writer::TimestampWithZone => return timestamp_with_zone(text, out),
            Writer::Interval => interval(text, out),
            Writer::Json => return embedded(text, out),
            Writer::Hstore => return hstore(text, out),
            Writer::Array(element) => return text::array(text, out, |text, out| element.write(text, out)),
        };
        known.ok_or(Malformed.into())
    }

    /// Appends a value that is not null as text: what a string has between its quotes, before it is escaped; else its JSON.
    pub fn write_plain(&self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
        let start = out.len();
        match self {
            Writer::Text | Writer::Padded => {
                let text = if *self == Writer::Padded { unpadded(text) } else { text };
                std::str::from_utf8(text).map_err(|_| Unfit(NOT_UTF8.into()))?;
                out.extend_from_slice(text);
            }
            _ => {
                self.write(text, out)?;
                let is_string = !matches!(self, Writer::Json) && out[start] == b'"';
                if is_string {
                    // No string of another type has anything that is escaped.
                    out.remove(start);
                    out.pop();
                }
            }
        }
        Ok(())
    }

    /// The JSON type that leaves, for people: `integer`, `string (RFC 3339)`.
    pub fn json_type(&self) -> &'static str {
        match self {
            Writer::Integer => "integer",
            Writer::Boolean => "boolean",
            Writer::Text | Writer::Padded => "string",
            Writer::Decimal { .. } | Writer::Money => "string (decimal)",
            Writer::Bytes => "string (base64)",
            Writer::Date => "string (date)",
            Writer::Time => "string (time)",
            Writer::TimeWithZone => "string (time with offset)",
            Writer::Timestamp(_) | Writer::TimestampWithZone => "string (RFC 3339)",
            Writer::Interval => "string (ISO 8601 duration)",
            Writer::Json => "any",
            Writer::Hstore => "object of strings",
            Writer::Array(element) => match **element {
                Writer::Integer => "array of integers",
                Writer::Boolean => "array of booleans",
                Writer::Decimal { .. } | Writer::Money => "array of strings (decimal)",
                Writer::Timestamp(_) | Writer::TimestampWithZone => "array of strings (RFC 3339)",
                Writer::Json => "array",
                Writer::Hstore => "array of objects",
                _ => "array of strings",
            },
        }
    }
}

fn time_zone(zone: Option<&str>) -> Result<TimeZone, String> {
    let Some(zone) = zone else {
        return Err(
            "`timestamp` does not say in which time zone it is; say what was meant, with `tables.<table>.zone: \
                    Europe/Berlin`"
                .into(),
        );
    };
    TimeZone::get(zone).map_err(|_| {
        format!("`zone: {zone}` is no time zone; it is a name of the IANA database, such as America/Toronto or UTC")
    })
}

fn string(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    json::string(out, text).map_err(|_| Unfit(NOT_UTF8.into()))
}

/// What is known to hold nothing that a JSON string escapes.
fn quoted(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

fn unpadded(text: &[u8]) -> &[u8] {
    let len = text.iter().rposition(|&byte| byte != b' ').map_or(0, |last| last + 1);
    &text[..len]
}

fn integer(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(text);
    text::is_integer(text.strip_prefix(b"-").unwrap_or(text)).then_some(())
}

fn boolean(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(match text {
        b"t" => b"true",
        b"f" => b"false" as &[u8],
        _ => return None,
    });
    Some(())
}

fn decimal(text: &[u8], digits: Option<u8>, out: &mut Vec<u8>) -> Result<(), Unfit> {
    if matches!(text, b"NaN" | b"Infinity" | b"-Infinity") {
        return Err(Unfit(NOT_FINITE.into()));
    }
    match digits {
        None => {
            Digits::read(text).ok_or(Malformed)?;
            quoted(text, out);
        }
        Some(digits) => {
            out.push(b'"');
            rounded(text, digits.into(), out).ok_or(Malformed)?;
            out.push(b'"');
        }
    }
    Ok(())
}

/// `219.5`, `1e+20`, `1.5e-07` -> so many digits after the point, rounded half to even by the digits of the text: the binary fraction
/// behind it, of which the text is the shortest name, is not asked.
fn rounded(text: &[u8], digits: usize, out: &mut Vec<u8>) -> Option<()> {
    /// Beyond any double's, so that a forged exponent cannot ask for memory.
    const EXPONENT_MAX: i64 = 400;
    let (mantissa, exponent) = match text.iter().position(|&byte| byte == b'e') {
        Some(at) => (&text[..at], std::str::from_utf8(&text[at + 1..]).ok()?.parse::<i64>().ok()?),
        None => (text, 0),
    };
    let parts = Digits::read(mantissa)?;
    if exponent.abs() > EXPONENT_MAX {
        return None;
    }
    // The value is 0.DIGITS times ten to the power of `point`.
    let mut number = [parts.whole, parts.fraction].concat();
    let mut point = parts.whole.len() as i64 + exponent;
    if point < 0 {
        number.splice(..0, std::iter::repeat_n(b'0', point.unsigned_abs() as usize));
        point = 0;
    }
    // What is kept: digits before the point, and `digits` after it.
    let kept = point as usize + digits;
    if number.len() <= kept {
        number.resize(kept, b'0');
    } else {
        let dropped = &number[kept..];
        let half = dropped[0] == b'5' && dropped[1..].iter().all(|&digit| digit == b'0');
        let is_odd = kept > 0 && number[kept - 1] % 2 == 1;
        let up = if half { is_odd } else { dropped[0] >= b'5' };
        number.truncate(kept);
        if up {
            let nines = number.iter().rev().take_while(|&&digit| digit == b'9').count();
            number[kept - nines..].fill(b'0');
            if nines == kept {
                number.insert(0, b'1');
                point += 1;
            } else {
                number[kept - nines - 1] += 1;
            }
        }
    }
    let (whole, fraction) = number.split_at(point as usize);
    let leading = whole.iter().take_while(|&&digit| digit == b'0').count();
    if parts.negative && number.iter().any(|&digit| digit != b'0') {
        out.push(b'-');
    }
    out.extend_from_slice(if leading == whole.len() { b"0" } else { &whole[leading..] });
    if digits > 0 {
        out.push(b'.');
        out.extend_from_slice(fraction);
    }
    Some(())
}

/// `infinity` and `-infinity`, which applications keep on purpose (`valid_until`), leave as they are.
fn infinite(text: &[u8], out: &mut Vec<u8>) -> bool {
    let infinite = matches!(text, b"infinity" | b"-infinity");
    if infinite {
        quoted(text, out);
    }
    infinite
}

/// Reads a day that RFC 3339 has, up to what follows it.
fn day(text: &[u8]) -> Result<(Day, &[u8]), Unfit> {
    let (day, rest) = Day::read(text).ok_or(Malformed)?;
    if day.year > 9999 || rest.ends_with(b" BC") {
        return Err(Unfit(NO_YEAR.into()));
    }
    Ok((day, rest))
}

fn date(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    if infinite(text, out) {
        return Ok(());
    }
    let (_, rest) = day(text)?;
    quoted(text, out);
    if rest.is_empty() { Ok(()) } else { Err(Malformed.into()) }
}

fn time(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (_, rest) = text::time_of_day(text)?;
    quoted(text, out);
    rest.is_empty().then_some(())
}

fn time_with_zone(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (_, offset) = text::time_of_day(text)?;
    text::offset_micros(offset)?;
    out.push(b'"');
    match offset {
        b"+00" => {
            out.extend_from_slice(&text[..text.len() - 3]);
            out.push(b'Z');
        }
        [_, _, _] => {
            out.extend_from_slice(text);
            out.extend_from_slice(b":00");
        }
        _ => out.extend_from_slice(text),
    }
    out.push(b'"');
    Some(())
}

/// `2015-01-10 14:00:00.5+00` -> `2015-01-10T14:00:00.5Z`; Postgres has left out the zeros at the end of the fraction.
fn timestamp_with_zone(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    if infinite(text, out) {
        return Ok(());
    }
    let (_, rest) = day(text)?;
    let clock = rest.strip_prefix(b" ").ok_or(Malformed)?;
    let (_, rest) = text::time_of_day(clock).ok_or(Malformed)?;
    // The session's zone is UTC, so another offset means that the setting was lost.
    if rest != b"+00" {
        return Err(Malformed.into());
    }
    out.push(b'"');
    out.extend_from_slice(&text[..10]);
    out.push(b'T');
    out.extend_from_slice(&clock[..clock.len() - 3]);
    out.extend_from_slice(b"Z\"");
    Ok(())
}

/// `2015-01-10 14:00:00.5` in America/Toronto -> `2015-01-10T14:00:00.5-05:00`.
///
/// A time that the clocks show twice is the first of the two; one that they skip is as much later as they skip.
fn timestamp(text: &[u8], zone: &TimeZone, out: &mut Vec<u8>) -> Result<(), Unfit> {
    if infinite(text, out) {
        return Ok(());
    }
    let (day, rest) = day(text)?;
    let clock = rest.strip_prefix(b" ").ok_or(Malformed)?;
    let (micros, rest) = text::time_of_day(clock).ok_or(Malformed)?;
    if !rest.is_empty() {
        return Err(Malformed.into());
    }
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let civil = DateTime::new(
        day.year as i16,
        day.month as i8,
        day.day as i8,
        (seconds / 3600) as i8,
        (seconds / 60 % 60) as i8,
        (seconds % 60) as i8,
        fraction as i32 * 1000,
    )
    .map_err(|_| Malformed)?;
    let zoned = zone.to_zoned(civil).map_err(|_| Unfit(NO_YEAR.into()))?;
    let mut offset = zoned.offset();
    // Before there were zones a town had its own time, to the second, which RFC 3339 has no offset for.
    if offset.seconds() % 60 != 0 {
        offset = Offset::UTC;
    }
    let local = offset.to_datetime(zoned.timestamp());
    if !(1..=9999).contains(&local.year()) {
        return Err(Unfit(NO_YEAR.into()));
    }
    let date = local.strftime("\"%Y-%m-%dT%H:%M:%S");
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{date}");
    out.extend_from_slice(clock.get(8..).unwrap_or_default());
    if offset == Offset::UTC {
        out.push(b'Z');
    } else {
        let minutes = offset.seconds() / 60;
        let sign = if minutes < 0 { '-' } else { '+' };
        let _ = write!(out, "{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60);
    }
    out.push(b'"');
    Ok(())
}

/// `1 year 2 mons -3 days +04:05:06.7` -> `P1Y2M-3DT4H5M6.7S`, as the interval style `iso_8601` has it.
fn interval(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    if infinite(text, out) {
        return Some(());
    }
    let Interval { years, months, days, micros } = Interval::read(text)?;
    let (hours, minutes, seconds) = (micros / 3_600_000_000, micros / 60_000_000 % 60, micros % 60_000_000);
    let _ = write!(out, "\"P");
    for (amount, unit) in [(years, 'Y'), (months, 'M'), (days, 'D')] {
        if amount != 0 {
            let _ = write!(out, "{amount}{unit}");
        }
    }
    let is_zero = (years, months, days) == (0, 0, 0);
    if micros != 0 || is_zero {
        out.push(b'T');
    }
    for (amount, unit) in [(hours, 'H'), (minutes, 'M')] {
        if amount != 0 {
            let _ = write!(out, "{amount}{unit}");
        }
    }
    if seconds != 0 || micros == 0 && is_zero {
        let (sign, amount) = if seconds < 0 { ("-", -seconds) } else { ("", seconds) };
        let _ = write!(out, "{sign}{}", amount / 1_000_000);
        if amount % 1_000_000 != 0 {
            let _ = write!(out, ".{:06}", amount % 1_000_000);
            while out.last() == Some(&b'0') {
                out.pop();
            }
        }
        out.push(b'S');
    }
    out.push(b'"');
    Some(())
}

/// Postgres has parsed it when it was stored; a glance costs little, and nothing but JSON may get into an event.
fn embedded(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    if std::str::from_utf8(text).is_err() {
        return Err(Unfit(NOT_UTF8.into()));
    }
    if !json::is_json(text) {
        return Err(Malformed.into());
    }
    out.extend_from_slice(text);
    Ok(())
}

fn hstore(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    out.push(b'{');
    for (i, (key, value)) in text::hstore_entries(text).ok_or(Malformed)?.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        string(key, out)?;
        out.push(b':');
        match value {
            Some(value) => string(value, out)?,
            None => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn written(writer: &Writer, text: &str) -> Result<String, String> {
        let mut out = Vec::new();
        writer.write(text.as_bytes(), &mut out).map_err(|unfit| unfit.0)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn of(ty: Type) -> Writer {
        // That of char(5), where it means something.
        Writer::of(&ty, 9, None, Some("America/Toronto")).unwrap()
    }

    fn decimal(digits: u8) -> Writer {
        Writer::of(&Type::FLOAT8, -1, Some(digits), None).unwrap()
    }

    #[test]
    fn writes_what_other_services_understand() {
        for (ty, text, json) in [
            (Type::INT4, "-42", "-42"),
            (Type::INT8, "9223372036854775807", "9223372036854775807"),
            (Type::BOOL, "t", "true"),
            (Type::TEXT, "a \"b\" \u{1f600}", r#""a \"b\" 😀""#),
            (Type::BPCHAR, "CA   ", r#""CA""#),
            (Type::VARCHAR, "CA   ", r#""CA   ""#),
            (Type::UUID, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", r#""a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11""#),
            (Type::NUMERIC, "-12.50", r#""-12.50""#),
            (Type::NUMERIC, "123456789012345678901234567890.0001", r#""123456789012345678901234567890.0001""#),
            (Type::MONEY, "-$1,234.56", r#""-1234.56""#),
            (Type::BYTEA, "\\xdeadbeef", r#""3q2+7w==""#),
            (Type::DATE, "2015-01-10", r#""2015-01-10""#),
            (Type::DATE, "infinity", r#""infinity""#),
            (Type::TIME, "14:00:00.5", r#""14:00:00.5""#),
            (Type::TIMETZ, "14:00:00.5+00", r#""14:00:00.5Z""#),
            (Type::TIMETZ, "14:00:00-03", r#""14:00:00-03:00""#),
            (Type::TIMETZ, "14:00:00+05:30", r#""14:00:00+05:30""#),
            (Type::TIMESTAMPTZ, "2015-01-10 14:00:00.123456+00", r#""2015-01-10T14:00:00.123456Z""#),
            (Type::TIMESTAMPTZ, "2015-01-10 14:00:00+00", r#""2015-01-10T14:00:00Z""#),
            (Type::TIMESTAMPTZ, "-infinity", r#""-infinity""#),
            (Type::INTERVAL, "1 year 2 mons -3 days +04:05:06.7", r#""P1Y2M-3DT4H5M6.7S""#),
            (Type::INTERVAL, "-00:00:00.000001", r#""PT-0.000001S""#),
            (Type::INTERVAL, "-25:00:01", r#""PT-25H-1S""#),
            (Type::INTERVAL, "3 days", r#""P3D""#),
            (Type::INTERVAL, "00:00:00", r#""PT0S""#),
            (Type::INTERVAL, "infinity", r#""infinity""#),
            (Type::JSONB, r#"{"a": [1.50, null]}"#, r#"{"a": [1.50, null]}"#),
            (Type::INT4_ARRAY, "{1,NULL,-3}", "[1,null,-3]"),
            (Type::INT4_ARRAY, "[0:1]={{1},{2}}", "[[1],[2]]"),
            (Type::TEXT_ARRAY, r#"{a,"NULL",NULL,"b \"c\", \\d",""}"#, r#"["a","NULL",null,"b \"c\", \\d",""]"#),
            (Type::NUMERIC_ARRAY, "{1.10}", r#"["1.10"]"#),
            (Type::JSONB_ARRAY, r#"{"{\"a\": 1}",null}"#, r#"[{"a": 1},null]"#),
            (Type::TIMESTAMP_ARRAY, r#"{"2015-01-10 14:00:00"}"#, r#"["2015-01-10T14:00:00-05:00"]"#),
            (Type::BOX_ARRAY, "{(1,1),(0,0);(2,2),(1,1)}", r#""{(1,1),(0,0);(2,2),(1,1)}""#),
            (Type::INT2_VECTOR, "1 2", r#""1 2""#),
            (Type::INT4_RANGE, "[1,5)", r#""[1,5)""#),
            (Type::INET, "10.0.0.1/8", r#""10.0.0.1/8""#),
            (Type::VARBIT, "0101", r#""0101""#),
            (Type::POINT, "(1.5,-2)", r#""(1.5,-2)""#),
        ] {
            assert_eq!(written(&of(ty.clone()), text).as_deref(), Ok(json), "{ty} {text}");
        }
        let hstore = Type::new("hstore".into(), 70_000, Kind::Simple, "public".into());
        assert_eq!(written(&of(hstore), r#""b"=>NULL, "a\""=>"1""#).unwrap(), r#"{"b":null,"a\"":"1"}"#);
        let mood = Type::new("mood".into(), 70_001, Kind::Enum(vec!["so so".into()]), "public".into());
        assert_eq!(written(&of(mood.clone()), "so so").unwrap(), r#""so so""#);
        let moods = Type::new("_mood".into(), 70_002, Kind::Array(mood), "public".into());
        assert_eq!(written(&of(moods), r#"{"so so"}"#).unwrap(), r#"["so so"]"#);
    }

    #[test]
    fn rounds_the_digits_that_are_there() {
        for (text, digits, decimal) in [
            ("219.5", 2, "219.50"),
            ("219.505", 2, "219.50"),
            ("219.515", 2, "219.52"),
            ("219.5150001", 2, "219.52"),
            ("-0.005", 2, "0.00"),
            ("-0.015", 2, "-0.02"),
            ("-0", 2, "0.00"),
            ("9.999", 2, "10.00"),
            ("0.5", 0, "0"),
            ("1.5", 0, "2"),
            ("0.05", 1, "0.0"),
            ("0.06", 1, "0.1"),
            ("1e+20", 2, "100000000000000000000.00"),
            ("1.5e-07", 7, "0.0000002"),
            ("1.5e-07", 2, "0.00"),
            ("1.7976931348623157e+308", 0, &format!("17976931348623157{}", "0".repeat(292))),
            ("19.99", 4, "19.9900"),
        ] {
            assert_eq!(written(&super::tests::decimal(digits), text), Ok(format!("{decimal:?}")), "{text}");
        }
        for text in ["NaN", "Infinity", "-Infinity"] {
            assert!(written(&decimal(2), text).unwrap_err().contains("NaN or infinite"));
            assert!(written(&of(Type::NUMERIC), text).unwrap_err().contains("NaN or infinite"));
        }
        for text in ["1e999999999", "1e+", "1e5.5", "e5", "", "1.e5", "0x10"] {
            assert_eq!(written(&decimal(2), text), Err(MALFORMED.into()), "{text}");
        }
    }

    #[test]
    fn a_time_without_a_zone_has_the_offset_that_its_zone_had_then() {
        for (zone, text, time) in [
            ("America/Toronto", "2015-01-10 14:00:00", "2015-01-10T14:00:00-05:00"),
            ("America/Toronto", "2015-07-10 14:00:00.25", "2015-07-10T14:00:00.25-04:00"),
            ("UTC", "2015-07-10 14:00:00", "2015-07-10T14:00:00Z"),
            ("Asia/Kolkata", "2015-07-10 14:00:00", "2015-07-10T14:00:00+05:30"),
            // Shown twice: the first. Never shown: as much later.
            ("America/Toronto", "2015-11-01 01:30:00", "2015-11-01T01:30:00-04:00"),
            ("America/Toronto", "2015-03-08 02:30:00.5", "2015-03-08T03:30:00.5-04:00"),
            // Toronto's own noon, -05:17:32.
            ("America/Toronto", "1890-01-01 12:00:00", "1890-01-01T17:17:32Z"),
            ("America/Toronto", "infinity", "infinity"),
        ] {
            let writer = Writer::of(&Type::TIMESTAMP, -1, None, Some(zone)).unwrap();
            assert_eq!(written(&writer, text), Ok(format!("{time:?}")), "{zone} {text}");
        }
    }

    #[test]
    fn refuses_columns_whose_values_would_be_guessed() {
        let refused = |ty: &Type, decimal, zone| Writer::of(ty, -1, decimal, zone).unwrap_err();
        assert!(refused(&Type::FLOAT4, None, None).contains("`tables.<table>.decimal: { <column>: 2 }`"));
        assert!(refused(&Type::FLOAT8_ARRAY, None, None).contains("double precision"));
        assert!(refused(&Type::TIMESTAMP, None, None).contains("`tables.<table>.zone: Europe/Berlin`"));
        assert!(refused(&Type::TIMESTAMP_ARRAY, None, Some("Mars/Base")).contains("`zone: Mars/Base` is no time zone"));
        assert!(refused(&Type::INT4, Some(2), None).contains("this is `int4`"));
        assert!(refused(&Type::NUMERIC, Some(39), None).contains("it may have 38"));
        assert!(Writer::of(&Type::FLOAT8_ARRAY, -1, Some(2), None).is_ok());
    }

    #[test]
    fn stops_at_values_that_have_no_such_form() {
        for (ty, text) in [
            (Type::DATE, "0044-03-15 BC"),
            (Type::DATE, "10000-01-01"),
            (Type::TIMESTAMPTZ, "0044-03-15 12:00:00+00 BC"),
            (Type::TIMESTAMP, "20155-01-10 12:00:00"),
            (Type::TIMESTAMP, "9999-12-31 23:00:00 BC"),
        ] {
            assert_eq!(written(&of(ty.clone()), text), Err(NO_YEAR.into()), "{ty} {text}");
        }
        for (ty, text) in [
            (Type::INT4, "01"),
            (Type::INT4, ""),
            (Type::BOOL, "true"),
            (Type::NUMERIC, "1e5"),
            (Type::MONEY, "1,50 EUR"),
            (Type::DATE, "01/10/2015"),
            (Type::TIMESTAMPTZ, "2015-01-10 14:00:00-05"),
            (Type::TIMESTAMP, "2015-02-30 14:00:00"),
            (Type::INTERVAL, "P1D"),
            (Type::BYTEA, "\\336\\255"),
            (Type::JSONB, "{"),
            (Type::JSONB, "1 2"),
            (Type::INT4_ARRAY, "{1,2"),
        ] {
            assert_eq!(written(&of(ty.clone()), text), Err(MALFORMED.into()), "{ty} {text}");
        }
        for ty in [Type::TEXT, Type::BPCHAR, Type::TEXT_ARRAY, Type::JSON] {
            let unfit = of(ty).write(b"{\xff}", &mut Vec::new()).unwrap_err();
            assert_eq!(unfit, Unfit(NOT_UTF8.into()));
        }
    }

    #[test]
    fn plain_text_is_what_a_json_reader_has() {
        for (ty, text, plain) in [
            (Type::TEXT, "a \"b\"\n", "a \"b\"\n"),
            (Type::BPCHAR, "CA ", "CA"),
            (Type::INT8, "42", "42"),
            (Type::TIMESTAMPTZ, "2015-01-10 14:00:00+00", "2015-01-10T14:00:00Z"),
            (Type::JSONB, "\"a\"", "\"a\""),
            (Type::MONEY, "$0.50", "0.50"),
        ] {
            let mut out = b"before".to_vec();
            of(ty).write_plain(text.as_bytes(), &mut out).unwrap();
            assert_eq!(out, format!("before{plain}").into_bytes());
        }
    }

    fn any_writer() -> impl Strategy<Value = Writer> {
        let types = vec![
            Type::INT8,
            Type::BOOL,
            Type::TEXT,
            Type::BPCHAR,
            Type::NUMERIC,
            Type::MONEY,
            Type::BYTEA,
            Type::DATE,
            Type::TIME,
            Type::TIMETZ,
            Type::TIMESTAMP,
            Type::TIMESTAMPTZ,
            Type::INTERVAL,
            Type::JSON,
            Type::INT4_ARRAY,
            Type::TEXT_ARRAY,
            Type::JSONB_ARRAY,
            Type::TIMESTAMP_ARRAY,
            Type::INTERVAL_ARRAY,
            Type::BYTEA_ARRAY,
        ];
        let hstore = Type::new("hstore".into(), 70_000, Kind::Simple, "public".into());
        prop_oneof![
            20 => prop::sample::select(types).prop_map(of),
            1 => Just(of(hstore)),
            2 => (0..20_u8).prop_map(decimal),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Texts that are near those of every type.
        #[test]
        fn no_text_makes_invalid_json(
            writer in any_writer(),
            text in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "[-+]?[0-9]{0,3}[.e:,{}\\[\\]\"\\\\ ]{0,3}[0-9a-zN]{0,6}[\"}\\]=>, ]{0,4}".prop_map(String::into_bytes),
                "[0-9]{4,6}-[01][0-9]-[0-3][0-9]( [0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,6})?)?([+-][01][0-9])?( BC)?"
                    .prop_map(String::into_bytes),
                "-?[0-9]{1,20}(\\.[0-9]{1,10})?(e[-+][0-9]{1,4})?".prop_map(String::into_bytes),
                "\\{(\"([a-z]|\\\\.){0,4}\"|NULL|[0-9]|\\{[0-9]\\}|,){0,5}\\}".prop_map(String::into_bytes),
                "(-?[0-9]{1,10} (year|mons|days) ?){0,2}([+-]?[0-9]{1,10}:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?)?"
                    .prop_map(String::into_bytes),
            ],
        ) {
            let mut out = Vec::new();
            if writer.write(&text, &mut out).is_ok() {
                // Numbers in `jsonb` may be larger than any that this reader has.
                let read = serde_json::from_slice::<serde_json::Value>(&out).map_err(|error| error.to_string());
                let is_json = read.is_ok() || read.is_err_and(|error| error.starts_with("number out of range"));
                prop_assert!(is_json, "{:?}", String::from_utf8_lossy(&out));
            }
        }

        #[test]
        fn rounding_agrees_with_exact_arithmetic(units in any::<i64>(), scale in 0..19_usize, digits in 0..19_usize) {
            let sign = if units < 0 { "-" } else { "" };
            let text = format!("{:0>width$}", units.unsigned_abs(), width = scale + 1);
            let (whole, fraction) = text.split_at(text.len() - scale);
            let text = if scale > 0 { format!("{sign}{whole}.{fraction}") } else { format!("{sign}{whole}") };
            // In units of the result, by integers: the quotient, to the nearest, ties to even.
            let number = i128::from(units.unsigned_abs()) * 10_i128.pow(digits as u32);
            let unit = 10_i128.pow(scale as u32);
            let (quotient, twice) = (number / unit, number % unit * 2);
            let result = quotient + i128::from(twice > unit || twice == unit && quotient % 2 == 1);
            let expected = format!("{result:0>width$}", width = digits + 1);
            let (whole, fraction) = expected.split_at(expected.len() - digits);
            let sign = if result == 0 { "" } else { sign };
            let expected = if digits > 0 { format!("{sign}{whole}.{fraction}") } else { format!("{sign}{whole}") };
            let got: serde_json::Value = serde_json::from_str(&written(&decimal(digits as u8), &text).unwrap()).unwrap();
            prop_assert_eq!(got, json!(expected));
        }

        #[test]
        fn any_array_of_any_texts_comes_back(texts in prop::collection::vec(prop::option::of("(?s).{0,8}"), 0..6)) {
            let quoted = |text: &String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let elements: Vec<_> = texts.iter().map(|text| text.as_ref().map_or("NULL".into(), quoted)).collect();
            let json = written(&of(Type::TEXT_ARRAY), &format!("{{{}}}", elements.join(","))).unwrap();
            prop_assert_eq!(serde_json::from_str::<Vec<Option<String>>>(&json).unwrap(), texts);
        }
    }
}
