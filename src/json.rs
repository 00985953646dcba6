//! Wire text, numbers and bytes -> JSON in a byte buffer. Pure.

use std::{io::Write, str::Utf8Error};

use base64::{Engine, engine::general_purpose::STANDARD};

/// Writes `text` as a JSON string; an error when it is not UTF-8, with nothing said of what was written by then.
pub fn string(out: &mut Vec<u8>, text: &[u8]) -> Result<(), Utf8Error> {
    out.reserve(text.len() + 2);
    out.push(b'"');
    escaped(out, text)?;
    out.push(b'"');
    Ok(())
}

/// Writes the inside of a JSON string.
///
/// Control characters, `"` and `\` are escaped as Jackson does; everything else is copied, runs at a time.
pub fn escaped(out: &mut Vec<u8>, text: &[u8]) -> Result<(), Utf8Error> {
    let mut seen = 0;
    let mut done = 0;
    while let Some(at) = next_to_escape(text, done, &mut seen) {
        out.extend_from_slice(&text[done..at]);
        escape(out, text[at]);
        done = at + 1;
    }
    out.extend_from_slice(&text[done..]);
    // Plain ASCII, the common case, is known to be UTF-8 without a second look.
    if seen & HIGH_BITS != 0 {
        std::str::from_utf8(text)?;
    }
    Ok(())
}

/// Writes an integer.
pub fn integer(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Writes the shortest number that parses to the same double, with a fraction or an exponent as Java has it (`1.0`);
/// what JSON has no number for becomes the string `"NaN"`, `"Infinity"` or `"-Infinity"`, as Connect's converter does.
pub fn double(out: &mut Vec<u8>, number: f64) {
    if number.is_finite() {
        write!(out, "{number:?}").expect("writing to a Vec cannot fail");
    } else if number.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else {
        out.extend_from_slice(if number > 0.0 { b"\"Infinity\"" as &[u8] } else { b"\"-Infinity\"" });
    }
}

/// Writes `bytes` in base64 as a JSON string, with padding.
pub fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    base64_part(out, bytes);
    out.push(b'"');
}

/// Writes `bytes` in base64; parts of a multiple of three bytes join without a seam.
pub fn base64_part(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    STANDARD.encode_slice(bytes, &mut out[start..]).expect("four characters for every three bytes were made room for");
}

/// A text is not one JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a JSON object")]
pub struct NotAnObject;

/// The members of an object, each with its value's own text.
pub fn members(text: &[u8]) -> Result<Vec<(String, &[u8])>, NotAnObject> {
    // The object is known to be one before it is cut; so whatever stands where a member may begin is its name.
    serde_json::from_slice::<std::collections::HashMap<String, serde::de::IgnoredAny>>(text)
        .map_err(|_| NotAnObject)?;
    let mut members = Vec::new();
    let mut at = 1 + text.iter().position(|&c| c == b'{').ok_or(NotAnObject)?;
    while let Some(start) = text[at..].iter().position(|&c| c == b'"').map(|found| at + found) {
        let end = end_of_value(text, start);
        let name = serde_json::from_slice(&text[start..end]).map_err(|_| NotAnObject)?;
        let colon = end + text[end..].iter().position(|&c| c == b':').ok_or(NotAnObject)?;
        let start = colon + 1;
        at = end_of_value(text, start);
        members.push((name, text[start..at].trim_ascii()));
    }
    Ok(members)
}

/// Two objects as one: what `new` names replaces what `old` says of it, a null too. A text that is no object is kept in place of both.
pub fn merged(old: &[u8], new: &[u8]) -> Vec<u8> {
    let Ok(before) = members(old) else { return old.to_vec() };
    let Ok(after) = members(new) else { return new.to_vec() };
    let kept = before.iter().filter(|(name, _)| !after.iter().any(|(other, _)| other == name));
    let mut out = vec![b'{'];
    for (name, value) in kept.chain(&after) {
        if out.len() > 1 {
            out.push(b',');
        }
        string(&mut out, name.as_bytes()).expect("a str is UTF-8");
        out.push(b':');
        out.extend_from_slice(value);
    }
    out.push(b'}');
    out
}

/// Where a value ends that begins at `start` or after it: at the comma or the bracket that is not its own.
fn end_of_value(text: &[u8], start: usize) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (at, &c) in text.iter().enumerate().skip(start) {
        match (quoted, c) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => quoted = false,
            (true, _) => {}
            (false, b'"') => quoted = true,
            (false, b'{' | b'[') => depth += 1,
            (false, b'}' | b']' | b',' | b':') if depth == 0 => return at,
            (false, b'}' | b']') => depth -= 1,
            (false, _) => {}
        }
    }
    text.len()
}

/// What a value says as text: a string without its quotes, anything else as it is written; `None` for null.
pub fn text_of(value: &[u8]) -> Option<std::borrow::Cow<'_, [u8]>> {
    match value.first() {
        Some(b'n') => None,
        Some(b'"') => serde_json::from_slice::<String>(value).ok().map(|text| text.into_bytes().into()),
        _ => Some(value.into()),
    }
}

/// Whether a text is one JSON value.
pub fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = ONES * 0x80;
const QUOTES: u64 = ONES * b'"' as u64;
const BACKSLASHES: u64 = ONES * b'\\' as u64;

/// The place of the next byte at or after `from` that must be escaped; ors what it passed into `seen`.
fn next_to_escape(text: &[u8], from: usize, seen: &mut u64) -> Option<usize> {
    let mut at = from;
    while let Some(eight) = text[at..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*eight);
        *seen |= word;
        let found = below_space(word) | zero(word ^ QUOTES) | zero(word ^ BACKSLASHES);
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    for (i, &byte) in text[at..].iter().enumerate() {
        *seen |= u64::from(byte);
        if byte < b' ' || byte == b'"' || byte == b'\\' {
            return Some(at + i);
        }
    }
    None
}

/// The high bit of each byte that is below a space. The lowest set bit is exact; borrows may set wrong ones above it.
fn below_space(word: u64) -> u64 {
    word.wrapping_sub(ONES * b' ' as u64) & !word & HIGH_BITS
}

/// The high bit of each byte that is zero, as exact as `below_space`.
fn zero(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGH_BITS
}

fn escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\x08' => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        b'\x0c' => b'f',
        b'\r' => b'r',
        _ => {
            let hex = b"0123456789ABCDEF";
            let digits = [hex[usize::from(byte >> 4)], hex[usize::from(byte & 15)]];
            out.extend_from_slice(b"\\u00");
            return out.extend_from_slice(&digits);
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &[u8]) -> String {
        let mut out = Vec::new();
        string(&mut out, text).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_said_last_of_a_name_replaces_what_was_said_before() {
        let merged = |old: &str, new: &str| String::from_utf8(merged(old.as_bytes(), new.as_bytes())).unwrap();
        assert_eq!(
            merged(r#"{"a":1, "b":{"x":[1]}, "a":2}"#, r#"{"c":"q\"","a":null}"#),
            r#"{"b":{"x":[1]},"c":"q\"","a":null}"#
        );
        assert_eq!(merged(r#"{"\u0061\"":1}"#, "{ }"), r#"{"a\"":1}"#);
        assert_eq!(merged("{}", "{}"), "{}");
        assert_eq!(
            (merged("no", "{}"), merged("{}", "no")),
            ("no".into(), "no".into()),
            "for whoever reads it to refuse"
        );
    }

    #[test]
    fn an_object_is_cut_into_its_members() {
        let text = br#" { "a" : 12.50 ,"b":{"x":[1,"}"]},"c\u0064":"q\"\\","n":null , "e":[ ] } "#;
        let members = members(text).unwrap();
        let told: Vec<_> = members.iter().map(|(n, v)| (n.as_str(), std::str::from_utf8(v).unwrap())).collect();
        assert_eq!(
            told,
            [("a", "12.50"), ("b", r#"{"x":[1,"}"]}"#), ("cd", r#""q\"\\""#), ("n", "null"), ("e", "[ ]")]
        );
        let texts: Vec<_> = members.iter().map(|(_, v)| text_of(v).map(|t| t.into_owned())).collect();
        assert_eq!(texts[0], Some(b"12.50".to_vec()));
        assert_eq!((texts[2].clone(), texts[3].clone()), (Some(b"q\"\\".to_vec()), None));
        assert_eq!(super::members(b"{}"), Ok(vec![]));
        for none in ["", "[1]", "1", "{\"a\":}", "{\"a\":1} x", "null"] {
            assert_eq!(super::members(none.as_bytes()), Err(NotAnObject), "{none}");
        }
    }

    proptest! {
        #[test]
        fn members_are_what_a_parser_finds(object: std::collections::BTreeMap<String, (String, Vec<i32>, Option<bool>)>) {
            let text = serde_json::to_vec(&object).unwrap();
            let found = members(&text).unwrap();
            prop_assert_eq!(found.len(), object.len());
            for (name, value) in found {
                prop_assert_eq!(serde_json::from_slice::<(String, Vec<i32>, Option<bool>)>(value).unwrap(), object[&name].clone());
            }
        }
    }

    #[test]
    fn escapes_as_jackson_does() {
        assert_eq!(written("\"\\\u{8}\t\n\u{c}\r\u{1}\u{1f}\u{7f}/é😀\u{2028}".as_bytes()), {
            "\"\\\"\\\\\\b\\t\\n\\f\\r\\u0001\\u001F\u{7f}/é😀\u{2028}\""
        });
        assert_eq!(written(b""), "\"\"");
    }

    #[test]
    fn refuses_what_is_not_utf8() {
        for text in [b"\xff" as &[u8], b"12345678\xc3", b"\n\xe4bc", b"1234567\xe4"] {
            assert!(string(&mut Vec::new(), text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn writes_doubles_that_json_knows() {
        let written = |number: f64| {
            let mut out = Vec::new();
            double(&mut out, number);
            String::from_utf8(out).unwrap()
        };
        for (number, text) in [(1.0, "1.0"), (-0.0, "-0.0"), (1e-7, "1e-7"), (f64::MAX, "1.7976931348623157e308")] {
            assert_eq!(written(number), text);
            assert_eq!(serde_json::from_str::<f64>(text).unwrap(), number);
        }
        assert_eq!(written(f64::NAN), "\"NaN\"");
        assert_eq!(written(f64::NEG_INFINITY), "\"-Infinity\"");
    }

    proptest! {
        #[test]
        fn every_text_comes_back_through_a_json_reader(text in "(?s)([a-z]|[\0-\"]|\\\\|.){0,40}") {
            prop_assert_eq!(serde_json::from_str::<String>(&written(text.as_bytes())).unwrap(), text);
        }

        #[test]
        fn never_writes_what_is_not_utf8(text in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(string(&mut Vec::new(), &text).is_ok(), std::str::from_utf8(&text).is_ok());
        }

        #[test]
        fn base64_joins_without_a_seam(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut out = Vec::new();
            bytes.chunks(48).for_each(|part| base64_part(&mut out, part));
            prop_assert_eq!(out, STANDARD.encode(&bytes).into_bytes());
        }
    }
}
