//! The text forms of Postgres' types -> their parts. Pure.
//!
//! The session pins `DateStyle = ISO`, `IntervalStyle = postgres`, `TimeZone = UTC`, `lc_monetary = C` and `bytea_output = hex`, so there
//! is one text form of each. `None`, or `Malformed`, means that a text is not of that form.

use crate::json;

/// Microseconds of a day.
pub const DAY_MICROS: i64 = 86_400_000_000;

/// No text that Postgres writes for the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Digits without a leading zero: what JSON has for a number without a sign.
pub fn is_integer(digits: &[u8]) -> bool {
    digits.iter().all(u8::is_ascii_digit) && matches!(digits, [_] | [b'1'..=b'9', ..])
}

/// `-$1,234.56`, as `lc_monetary = C` prints it, without its currency sign and commas.
pub fn money(text: &[u8]) -> Option<Money> {
    let mut plain = Money { text: [0; MONEY_LEN_MAX], len: 0 };
    for &byte in text.iter().filter(|b| !matches!(b, b'$' | b',')) {
        *plain.text.get_mut(plain.len)? = byte;
        plain.len += 1;
    }
    Some(plain)
}

/// A sign, 17 digits, a point and two digits are the longest.
const MONEY_LEN_MAX: usize = 24;

/// A plain decimal number.
#[derive(Debug)]
pub struct Money {
    text: [u8; MONEY_LEN_MAX],
    len: usize,
}

impl Money {
    /// Its text.
    pub fn text(&self) -> &[u8] {
        &self.text[..self.len]
    }
}

/// `-12.50` in its parts.
#[derive(Clone, Copy, Debug)]
pub struct Digits<'a> {
    /// It begins with `-`.
    pub negative: bool,
    /// The digits before the point, at least one.
    pub whole: &'a [u8],
    /// The digits after the point.
    pub fraction: &'a [u8],
}

impl<'a> Digits<'a> {
    /// Reads a number without an exponent; `None` for anything else, `NaN` and `Infinity` too.
    pub fn read(text: &'a [u8]) -> Option<Self> {
        let (negative, digits) = match text {
            [b'-', digits @ ..] => (true, digits),
            _ => (false, text),
        };
        let point = digits.iter().position(|&b| b == b'.');
        let (whole, fraction) = point.map_or((digits, b"" as &[u8]), |at| (&digits[..at], &digits[at + 1..]));
        let all_digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
        let some = !whole.is_empty() && (point.is_none() || !fraction.is_empty());
        (some && all_digits(whole) && all_digits(fraction)).then_some(Self { negative, whole, fraction })
    }
}

/// `\xdeadbeef` -> base64, in parts that need no memory of their own.
pub fn bytes(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const PART: usize = 96;
    let hex = text.strip_prefix(b"\\x")?;
    let (pairs, odd) = hex.as_chunks::<2>();
    if !odd.is_empty() {
        return None;
    }
    out.reserve(hex.len() * 2 / 3 + 6);
    out.push(b'"');
    let mut part = [0; PART];
    for pairs in pairs.chunks(PART) {
        for (byte, [high, low]) in part.iter_mut().zip(pairs) {
            let (high, low) = (HEX[usize::from(*high)], HEX[usize::from(*low)]);
            if high | low > 0x0f {
                return None;
            }
            *byte = high << 4 | low;
        }
        json::base64_part(out, &part[..pairs.len()]);
    }
    out.push(b'"');
    Some(())
}

/// The value of a hexadecimal digit; 255 for what is none.
const HEX: [u8; 256] = {
    let mut table = [255; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = digit as u8;
        table[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};

/// `{1,NULL,"a \"b\""}` -> `[1,null,"a \"b\""]`, each element as `element` writes it; arrays of arrays nest, and lower bounds are
/// dropped.
pub fn array<E: From<Malformed>>(
    text: &[u8],
    out: &mut Vec<u8>,
    mut element: impl FnMut(&[u8], &mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    /// Postgres' `MAXDIM`.
    const DEPTH_MAX: usize = 6;
    let mut rest = match text {
        [b'[', ..] => text.splitn(2, |&b| b == b'=').nth(1).ok_or(Malformed)?,
        _ => text,
    };
    let mut unescaped = Vec::new();
    let mut depth = 0;
    // Whether an element or an inner array must come next, and not what follows one.
    let mut due = true;
    loop {
        let (&first, after) = rest.split_first().ok_or(Malformed)?;
        rest = after;
        match first {
            b'{' if due && depth < DEPTH_MAX => {
                out.push(b'[');
                depth += 1;
                due = rest.first() != Some(&b'}');
            }
            b'}' if !due => {
                out.push(b']');
                depth -= 1;
                if depth == 0 {
                    return if rest.is_empty() { Ok(()) } else { Err(Malformed.into()) };
                }
            }
            b',' if !due => {
                out.push(b',');
                due = true;
            }
            b'"' if due && depth > 0 => {
                let (quoted, after) = quoted(rest, &mut unescaped).ok_or(Malformed)?;
                element(quoted, out)?;
                (rest, due) = (after, false);
            }
            b'{' | b'}' | b',' | b'"' => return Err(Malformed.into()),
            _ if due && depth > 0 => {
                let end = rest.iter().position(|b| matches!(b, b',' | b'}')).ok_or(Malformed)?;
                // With the byte that was split off above.
                let from = text.len() - rest.len() - 1;
                match &text[from..=from + end] {
                    b"NULL" => out.extend_from_slice(b"null"),
                    plain => element(plain, out)?,
                }
                (rest, due) = (&rest[end..], false);
            }
            _ => return Err(Malformed.into()),
        }
    }
}

/// Reads up to the quote that closes, taking backslashes away; a text without any is not copied.
fn quoted<'t: 'u, 'u>(text: &'t [u8], unescaped: &'u mut Vec<u8>) -> Option<(&'u [u8], &'t [u8])> {
    let mut end = text.iter().position(|b| matches!(b, b'"' | b'\\'))?;
    if text[end] == b'"' {
        return Some((&text[..end], &text[end + 1..]));
    }
    unescaped.clear();
    unescaped.extend_from_slice(&text[..end]);
    loop {
        match text.get(end)? {
            b'"' => return Some((unescaped, &text[end + 1..])),
            b'\\' => {
                unescaped.push(*text.get(end + 1)?);
                end += 2;
            }
            byte => {
                unescaped.push(*byte);
                end += 1;
            }
        }
    }
}

/// Key and value of an entry of an hstore.
pub type Entry<Key> = (Key, Option<Vec<u8>>);

/// `"a"=>"1", "b"=>NULL` -> its entries in order.
pub fn hstore_entries(text: &[u8]) -> Option<Vec<Entry<Vec<u8>>>> {
    let mut entries = Vec::new();
    let mut unescaped = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if !entries.is_empty() {
            rest = rest.strip_prefix(b", ")?;
        }
        let (key, after) = quoted(rest.strip_prefix(b"\"")?, &mut unescaped)?;
        let key = key.to_vec();
        let after = after.strip_prefix(b"=>")?;
        let (value, after) = match after.strip_prefix(b"NULL") {
            Some(after) => (None, after),
            None => {
                let (value, after) = quoted(after.strip_prefix(b"\"")?, &mut unescaped)?;
                (Some(value.to_vec()), after)
            }
        };
        entries.push((key, value));
        rest = after;
    }
    Some(entries)
}

/// A day of the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug)]
pub struct Day {
    /// Year 0 is 1 BC, once its era is known.
    pub year: i64,
    /// From 1.
    pub month: i64,
    /// From 1 to 31.
    pub day: i64,
}

impl Day {
    /// Reads `YYYY-MM-DD`, with up to seven digits of a year.
    pub fn read(text: &[u8]) -> Option<(Self, &[u8])> {
        let (year, rest) = digits(text, 4, 7)?;
        let (month, rest) = two_digits(rest.strip_prefix(b"-")?)?;
        let (day, rest) = two_digits(rest.strip_prefix(b"-")?)?;
        let real = year > 0 && (1..=12).contains(&month) && (1..=31).contains(&day);
        real.then_some((Self { year, month, day }, rest))
    }

    /// What ends the text decides the era: nothing, or ` BC`.
    pub fn of_era(self, rest: &[u8]) -> Option<Self> {
        match rest {
            b"" => Some(self),
            b" BC" => Some(Self { year: 1 - self.year, ..self }),
            _ => None,
        }
    }

    /// Days since 1970-01-01; the arithmetic counts 400-year eras that begin on a first of March.
    pub fn since_epoch(&self) -> i64 {
        let year = if self.month <= 2 { self.year - 1 } else { self.year };
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * ((self.month + 9) % 12) + 2) / 5 + self.day - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
    }
}

/// Reads `HH:MM:SS` and up to six digits of a fraction, in microseconds.
pub fn time_of_day(text: &[u8]) -> Option<(i64, &[u8])> {
    let (hours, rest) = two_digits(text)?;
    let (minutes, rest) = minutes_and_seconds(rest)?;
    let micros = hours * 3_600_000_000 + minutes;
    (micros <= DAY_MICROS).then_some((micros, rest))
}

/// Reads `:MM:SS` and up to six digits of a fraction, in microseconds.
fn minutes_and_seconds(text: &[u8]) -> Option<(i64, &[u8])> {
    let (minutes, rest) = two_digits(text.strip_prefix(b":")?)?;
    let (seconds, rest) = two_digits(rest.strip_prefix(b":")?)?;
    if minutes > 59 || seconds > 60 {
        return None;
    }
    let (fraction, rest) = match rest.strip_prefix(b".") {
        Some(fraction) => {
            let (number, after) = digits(fraction, 1, 6)?;
            (number * 10_i64.pow(6 - (fraction.len() - after.len()) as u32), after)
        }
        None => (0, rest),
    };
    Some(((minutes * 60 + seconds) * 1_000_000 + fraction, rest))
}

/// Reads `+HH`, `-HH:MM` or `+HH:MM:SS` to the end, in microseconds east of UTC.
pub fn offset_micros(text: &[u8]) -> Option<i64> {
    let sign = match text.first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (mut seconds, mut rest) = two_digits(&text[1..]).map(|(hours, rest)| (hours * 3600, rest))?;
    for unit in [60, 1] {
        if let Some(more) = rest.strip_prefix(b":") {
            let (count, after) = two_digits(more)?;
            seconds += count * unit;
            rest = after;
        }
    }
    rest.is_empty().then_some(sign * seconds * 1_000_000)
}

/// An interval in the units that Postgres keeps apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// `year`
    pub years: i64,
    /// `mon`
    pub months: i64,
    /// `day`
    pub days: i64,
    /// `HH:MM:SS.ffffff`
    pub micros: i128,
}

impl Interval {
    /// Reads `1 year 2 mons 3 days -04:05:06.7`, the style `postgres`; its words for infinity are none.
    pub fn read(text: &[u8]) -> Option<Self> {
        let mut interval = Self::default();
        let mut words = text;
        if words.is_empty() {
            return None;
        }
        while !words.is_empty() {
            let (sign, rest) = match words[0] {
                b'-' => (-1, &words[1..]),
                b'+' => (1, &words[1..]),
                _ => (1, words),
            };
            let (count, rest) = digits(rest, 1, 10)?;
            let rest = if rest.first() == Some(&b':') {
                let (minutes, rest) = minutes_and_seconds(rest)?;
                interval.micros += i128::from(sign) * (i128::from(count) * 3_600_000_000 + i128::from(minutes));
                rest
            } else {
                let rest = rest.strip_prefix(b" ")?;
                let end = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
                let unit = match &rest[..end] {
                    b"year" | b"years" => &mut interval.years,
                    b"mon" | b"mons" => &mut interval.months,
                    b"day" | b"days" => &mut interval.days,
                    _ => return None,
                };
                *unit = unit.checked_add(sign * count)?;
                &rest[end..]
            };
            words = match rest {
                b"" => rest,
                _ => rest.strip_prefix(b" ").filter(|rest| !rest.is_empty())?,
            };
        }
        Some(interval)
    }
}

/// Reads a number of two digits.
fn two_digits(text: &[u8]) -> Option<(i64, &[u8])> {
    match text {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9', rest @ ..] => {
            Some((i64::from(tens - b'0') * 10 + i64::from(ones - b'0'), rest))
        }
        _ => None,
    }
}

/// Reads a number of at least `min` and at most `max` digits, and no digit may follow.
fn digits(text: &[u8], min: usize, max: usize) -> Option<(i64, &[u8])> {
    let mut number = 0;
    let mut len = 0;
    while let Some(digit) = text.get(len).map(|b| b.wrapping_sub(b'0')).filter(|&d| d < 10) {
        if len == max {
            return None;
        }
        number = number * 10 + i64::from(digit);
        len += 1;
    }
    (len >= min).then_some((number, &text[len..]))
}
