//! Postgres' text of `numeric` and `money` -> Connect's Decimal, Debezium's VariableScaleDecimal, doubles, text. Pure.

use std::ops::{Add, Mul};

use num_bigint::BigInt;

use super::value::Unfit;
use crate::{json, text::Digits};

/// Digits that certainly fit 64 bits, and 128.
const DIGITS_I64: usize = 18;
const DIGITS_I128: usize = 38;

/// Writes the unscaled value at `scale` in base64 of its shortest two's complement, most significant byte first.
pub(super) fn fixed(text: &[u8], scale: i32, out: &mut Vec<u8>) -> Result<(), Unfit> {
    unscaled(&read(text)?, scale, out)
}

/// Writes `{"scale":1,"value":"Cw=="}` with the smallest scale, not below 0, that loses nothing.
pub(super) fn variable(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let mut digits = read(text)?;
    while let [shorter @ .., b'0'] = digits.fraction {
        digits.fraction = shorter;
    }
    let scale = digits.fraction.len() as i32;
    out.extend_from_slice(b"{\"scale\":");
    json::integer(out, scale);
    out.extend_from_slice(b",\"value\":");
    unscaled(&digits, scale, out)?;
    out.push(b'}');
    Ok(())
}

/// Writes the nearest double; the words for what is no number as `json::double` has them.
pub(super) fn double(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let number = match text {
        b"NaN" => f64::NAN,
        b"Infinity" => f64::INFINITY,
        b"-Infinity" => f64::NEG_INFINITY,
        _ => {
            read(text)?;
            let text = std::str::from_utf8(text).map_err(|_| Unfit::Malformed)?;
            let number: f64 = text.parse().map_err(|_| Unfit::Malformed)?;
            if number.is_infinite() {
                return Err(Unfit::TooLarge);
            }
            number
        }
    };
    json::double(out, number);
    Ok(())
}

/// Writes the text as a string, trailing zeros and all; Debezium's words for what is no number.
pub(super) fn string(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let word = match text {
        b"NaN" => b"NAN",
        b"Infinity" => b"POSITIVE_INFINITY" as &[u8],
        b"-Infinity" => b"NEGATIVE_INFINITY",
        _ => {
            read(text)?;
            text
        }
    };
    out.push(b'"');
    out.extend_from_slice(word);
    out.push(b'"');
    Ok(())
}

/// Reads a number; the words for what is none are not finite.
fn read(text: &[u8]) -> Result<Digits<'_>, Unfit> {
    Digits::read(text).ok_or(match text.strip_prefix(b"-").unwrap_or(text) {
        b"NaN" | b"Infinity" => Unfit::NotFinite,
        _ => Unfit::Malformed,
    })
}

fn unscaled(number: &Digits<'_>, scale: i32, out: &mut Vec<u8>) -> Result<(), Unfit> {
    let padding = usize::try_from(scale).ok().and_then(|scale| scale.checked_sub(number.fraction.len()));
    let digits = number.whole.len() + number.fraction.len();
    match padding {
        Some(0) if digits <= DIGITS_I64 => {
            let value = folded(number.fraction, folded(number.whole, 0_i64));
            let bytes = if number.negative { -value } else { value }.to_be_bytes();
            json::base64(out, shortest(&bytes));
        }
        Some(padding) if digits + padding <= DIGITS_I128 => {
            let value = folded(number.fraction, folded(number.whole, 0_i128)) * 10_i128.pow(padding as u32);
            let bytes = if number.negative { -value } else { value }.to_be_bytes();
            json::base64(out, shortest(&bytes));
        }
        _ => json::base64(out, &unscaled_large(number, scale)?.to_signed_bytes_be()),
    }
    Ok(())
}

/// For numbers that 128 bits may not hold, and scales below the number of digits given.
fn unscaled_large(number: &Digits<'_>, scale: i32) -> Result<BigInt, Unfit> {
    let mut digits = [number.whole, number.fraction].concat();
    let len = i64::from(scale) + number.whole.len() as i64;
    let kept = digits.len().min(usize::try_from(len).unwrap_or(0));
    if digits.drain(kept..).any(|digit| digit != b'0') {
        return Err(Unfit::Malformed);
    }
    // A scale of more than the wire's own digits comes from the catalog, which allows 1000 at most.
    digits.resize(usize::try_from(len).unwrap_or(0), b'0');
    let value = BigInt::parse_bytes(&digits, 10).unwrap_or_default();
    Ok(if number.negative { -value } else { value })
}

/// `number` with digits put behind it.
fn folded<Number>(digits: &[u8], number: Number) -> Number
where
    Number: From<i8> + Mul<Output = Number> + Add<Output = Number>,
{
    digits.iter().fold(number, |number, digit| number * 10.into() + ((digit - b'0') as i8).into())
}

/// Drops leading bytes that only repeat the sign.
fn shortest(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes
        && let Some(second) = rest.first()
        && (*first == 0 && *second < 0x80 || *first == 0xff && *second >= 0x80)
    {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::money;

    fn with(write: impl FnOnce(&mut Vec<u8>) -> Result<(), Unfit>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn writes_the_unscaled_value_as_connect_does() {
        let cases = [
            ("999.99", 2, "AYaf"),
            ("-999.99", 2, "/nlh"),
            ("0.00", 2, "AA=="),
            ("1.1", 2, "bg=="),
            ("-1.28", 2, "gA=="),
            ("128", 0, "AIA="),
            ("-256", 0, "/wA="),
            ("65535", 0, "AP//"),
            ("99999999999999999999999999999999999999", 0, "SztMqFqGxHoJiiI//////w=="),
            ("-99999999999999999999.999999999999999999", 18, "tMSzV6V5O4X2dd3AAAAAAQ=="),
            ("0.0099", 4, "Yw=="),
            ("99900", -2, "A+c="),
            ("0", -2, "AA=="),
        ];
        for (text, scale, base64) in cases {
            assert_eq!(with(|out| fixed(text.as_bytes(), scale, out)), format!("{base64:?}"), "{text}");
        }
    }

    #[test]
    fn a_number_without_a_scale_carries_its_own() {
        let cases = [
            ("1.10", 1, "Cw=="),
            ("100", 0, "ZA=="),
            ("0.00", 0, "AA=="),
            ("100000000000000000000", 0, "BWvHXi1jEAAA"),
            ("0.0000000001", 10, "AQ=="),
            ("-0.000000000000000000000000000001", 30, "/w=="),
            (
                "123456789012345678901234567890.123456789012345678901234567890",
                29,
                "Afd+5uOsaXA1hlpdOME4xULa4ZgorjmBFQ==",
            ),
        ];
        for (text, scale, base64) in cases {
            let expected = format!("{{\"scale\":{scale},\"value\":\"{base64}\"}}");
            assert_eq!(with(|out| variable(text.as_bytes(), out)), expected);
        }
    }

    #[test]
    fn money_is_a_decimal_of_scale_two() {
        for (text, base64) in [
            ("$92,233,720,368,547,758.07", "f/////////8="),
            ("-$92,233,720,368,547,758.08", "gAAAAAAAAAA="),
            ("-$0.01", "/w=="),
            ("$1,234,567.89", "B1vNFQ=="),
        ] {
            let plain = money(text.as_bytes()).unwrap();
            assert_eq!(with(|out| fixed(plain.text(), 2, out)), format!("{base64:?}"));
        }
        assert_eq!(with(|out| string(money(b"-$1,234.56").unwrap().text(), out)), "\"-1234.56\"");
    }

    #[test]
    fn words_have_a_form_in_double_and_string_only() {
        for (word, in_double, in_string) in [
            ("NaN", "\"NaN\"", "\"NAN\""),
            ("Infinity", "\"Infinity\"", "\"POSITIVE_INFINITY\""),
            ("-Infinity", "\"-Infinity\"", "\"NEGATIVE_INFINITY\""),
        ] {
            assert_eq!(with(|out| double(word.as_bytes(), out)), in_double);
            assert_eq!(with(|out| string(word.as_bytes(), out)), in_string);
            assert!(matches!(fixed(word.as_bytes(), 2, &mut Vec::new()), Err(Unfit::NotFinite)));
            assert!(matches!(variable(word.as_bytes(), &mut Vec::new()), Err(Unfit::NotFinite)));
        }
    }

    #[test]
    fn doubles_are_rounded_and_never_overflow_silently() {
        for (text, number) in [("99999999999999999999.999999999999999999", "1e20"), ("255", "255.0"), ("-1.10", "-1.1")]
        {
            assert_eq!(with(|out| double(text.as_bytes(), out)), number);
        }
        assert!(matches!(double("9".repeat(400).as_bytes(), &mut Vec::new()), Err(Unfit::TooLarge)));
    }

    #[test]
    fn refuses_what_is_no_number() {
        for text in ["", "-", ".", "1.", ".5", "1e5", "1 ", "0x1", "1.2.3", "--1", "$1"] {
            for write in [string, double, variable] {
                assert!(matches!(write(text.as_bytes(), &mut Vec::new()), Err(Unfit::Malformed)), "{text:?}");
            }
            assert!(fixed(text.as_bytes(), 2, &mut Vec::new()).is_err(), "{text:?}");
        }
        assert!(matches!(fixed(b"1.234", 2, &mut Vec::new()), Err(Unfit::Malformed)), "a digit would be lost");
        assert!(matches!(fixed(b"120", -2, &mut Vec::new()), Err(Unfit::Malformed)), "a digit would be lost");
    }

    proptest! {
        #[test]
        fn any_number_equals_what_num_bigint_makes_of_it(
            negative: bool,
            whole in "[0-9]{1,45}",
            fraction in "[0-9]{0,30}",
            more in 0..20_usize,
        ) {
            let scale = fraction.len() + more;
            let point = if fraction.is_empty() { "" } else { "." };
            let text = format!("{}{whole}{point}{fraction}", if negative { "-" } else { "" });
            let sign = if negative { "-" } else { "" };
            let number: BigInt = format!("{sign}{whole}{fraction}{}", "0".repeat(more)).parse().unwrap();
            let mut expected = Vec::new();
            json::base64(&mut expected, &number.to_signed_bytes_be());
            prop_assert_eq!(with(|out| fixed(text.as_bytes(), scale as i32, out)).into_bytes(), expected);
        }
    }
}
