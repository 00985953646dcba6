//! Postgres' text of dates, times and intervals -> Debezium's numbers and ISO strings. Pure.
//!
//! The session pins `DateStyle = ISO`, `IntervalStyle = postgres` and `TimeZone = UTC`, so there is one text form of
//! each. `None` means that a text is not of that form.

use std::io::Write;

use crate::{
    json,
    text::{DAY_MICROS, Day, Interval, offset_micros, time_of_day},
};

/// Debezium's own days for an infinite date are an accident of an overflow; these are the ends of its 32 bits, which no
/// date of Postgres reaches.
const DATE_INFINITY: i32 = i32::MAX;
const DATE_MINUS_INFINITY: i32 = i32::MIN;

/// What pgjdbc has for an infinite timestamp, in milliseconds: Debezium publishes it.
const TIMESTAMP_INFINITY_MILLIS: i64 = 9_223_372_036_825_200;
const TIMESTAMP_MINUS_INFINITY_MILLIS: i64 = -9_223_372_036_832_400;

/// What a count of time units counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Micros,
}

impl Unit {
    /// What Debezium counts in for a column of this modifier: up to three digits of a second are milliseconds.
    pub(super) fn of(modifier: i32) -> Self {
        if (0..=3).contains(&modifier) { Unit::Millis } else { Unit::Micros }
    }

    fn micros(self) -> i64 {
        match self {
            Unit::Millis => 1000,
            Unit::Micros => 1,
        }
    }
}

/// `date` -> days since 1970-01-01.
pub(super) fn date(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let days = match text {
        b"infinity" => i64::from(DATE_INFINITY),
        b"-infinity" => i64::from(DATE_MINUS_INFINITY),
        _ => {
            let (day, rest) = Day::read(text)?;
            day.of_era(rest)?.since_epoch()
        }
    };
    json::integer(out, days);
    Some(())
}

/// `time` -> units since midnight; 24:00:00 is a whole day.
pub(super) fn time(text: &[u8], unit: Unit, out: &mut Vec<u8>) -> Option<()> {
    let (micros, rest) = time_of_day(text)?;
    json::integer(out, whole(micros, unit)?);
    rest.is_empty().then_some(())
}

/// `timetz` -> ISO, moved to UTC, without trailing zeros of the fraction: `18:29:59.5Z`.
pub(super) fn time_with_zone(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (micros, rest) = time_of_day(text)?;
    let micros = (micros - offset_micros(rest)?).rem_euclid(DAY_MICROS);
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let _ = write!(out, "\"{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction != 0 {
        let _ = write!(out, ".{fraction:06}");
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
    out.extend_from_slice(b"Z\"");
    Some(())
}

/// `timestamp` -> units since 1970-01-01 00:00:00, as if it were UTC.
///
/// Microseconds after the year 294246 do not fit 64 bits. Debezium's wrap around; here the true number is written.
pub(super) fn timestamp(text: &[u8], unit: Unit, out: &mut Vec<u8>) -> Option<()> {
    let infinite = match text {
        b"infinity" => Some(TIMESTAMP_INFINITY_MILLIS),
        b"-infinity" => Some(TIMESTAMP_MINUS_INFINITY_MILLIS),
        _ => None,
    };
    if let Some(millis) = infinite {
        json::integer(out, millis * (1000 / unit.micros()));
        return Some(());
    }
    let (day, rest) = Day::read(text)?;
    let (micros, rest) = time_of_day(rest.strip_prefix(b" ")?)?;
    let days = day.of_era(rest)?.since_epoch();
    let units_of_day = whole(micros, unit)?;
    let units_per_day = DAY_MICROS / unit.micros();
    match days.checked_mul(units_per_day).and_then(|units| units.checked_add(units_of_day)) {
        Some(units) => json::integer(out, units),
        None => json::integer(out, i128::from(days) * i128::from(units_per_day) + i128::from(units_of_day)),
    }
    Some(())
}

/// `timestamptz` -> ISO in UTC with `digits` digits of a second: `2024-02-29T18:29:59.120Z`; or `infinity`.
pub(super) fn timestamp_with_zone(text: &[u8], digits: u8, out: &mut Vec<u8>) -> Option<()> {
    if text == b"infinity" || text == b"-infinity" {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
        return Some(());
    }
    let (day, rest) = Day::read(text)?;
    let clock = rest.strip_prefix(b" ")?;
    let date = &text[..text.len() - rest.len()];
    let (micros, rest) = time_of_day(clock)?;
    // The session's zone is UTC, so another offset means that the setting was lost.
    let day = day.of_era(rest.strip_prefix(b"+00")?)?;
    out.push(b'"');
    match day.year {
        1..=9999 => out.extend_from_slice(date),
        10_000.. => {
            let _ = write!(out, "+{}-{:02}-{:02}", day.year, day.month, day.day);
        }
        0 => {
            let _ = write!(out, "0000-{:02}-{:02}", day.month, day.day);
        }
        ..0 => {
            let _ = write!(out, "-{:04}-{:02}-{:02}", -day.year, day.month, day.day);
        }
    }
    out.push(b'T');
    out.extend_from_slice(&clock[..8]);
    if digits > 0 {
        let fraction = &clock[8..clock.len() - rest.len()];
        let missing = usize::from(digits + 1).checked_sub(fraction.len())?;
        if fraction.is_empty() {
            out.push(b'.');
            out.resize(out.len() + missing - 1, b'0');
        } else {
            out.extend_from_slice(fraction);
            out.resize(out.len() + missing, b'0');
        }
    } else if micros % 1_000_000 != 0 {
        return None;
    }
    out.extend_from_slice(b"Z\"");
    Some(())
}

/// `interval` -> microseconds, a month as 30.4375 days, held at the ends of 64 bits as Debezium does.
pub(super) fn interval(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const MONTH_MICROS: i128 = 2_629_800_000_000;
    let micros = match text {
        b"infinity" => i128::MAX,
        b"-infinity" => i128::MIN,
        _ => {
            let parts = Interval::read(text)?;
            let months = i128::from(parts.years) * 12 + i128::from(parts.months);
            months * MONTH_MICROS + i128::from(parts.days) * i128::from(DAY_MICROS) + parts.micros
        }
    };
    json::integer(out, micros.clamp(i64::MIN.into(), i64::MAX.into()) as i64);
    Some(())
}

/// Microseconds in a unit that they are a whole number of.
fn whole(micros: i64, unit: Unit) -> Option<i64> {
    (micros % unit.micros() == 0).then(|| micros / unit.micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(write: impl FnOnce(&mut Vec<u8>) -> Option<()>) -> Option<String> {
        let mut out = Vec::new();
        write(&mut out).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn dates_are_days_of_the_proleptic_calendar() {
        for (text, days) in [
            ("1970-01-01", "0"),
            ("2024-02-29", "19782"),
            ("1969-12-31", "-1"),
            ("1582-10-10", "-141432"),
            ("2262-04-11", "106751"),
            ("9999-12-31", "2932896"),
            ("4713-01-01 BC", "-2440550"),
            ("0001-12-31 BC", "-719163"),
            ("5874897-12-31", "2145042905"),
            ("infinity", "2147483647"),
            ("-infinity", "-2147483648"),
        ] {
            assert_eq!(with(|out| date(text.as_bytes(), out)).as_deref(), Some(days), "{text}");
        }
    }

    #[test]
    fn times_count_in_the_unit_of_their_precision() {
        for (text, modifier, units) in [
            ("23:59:59.999999", -1, "86399999999"),
            ("23:59:59", 0, "86399000"),
            ("12:34:56.7", 3, "45296700"),
            ("00:00:00.000001", 6, "1"),
            ("06:07:08.09", 4, "22028090000"),
            ("24:00:00", -1, "86400000000"),
            ("24:00:00", 0, "86400000"),
        ] {
            assert_eq!(with(|out| time(text.as_bytes(), Unit::of(modifier), out)).as_deref(), Some(units), "{text}");
        }
    }

    #[test]
    fn times_with_a_zone_move_to_utc() {
        for (text, iso) in [
            ("00:00:00+00", "00:00:00Z"),
            ("23:59:59.999999+05:30", "18:29:59.999999Z"),
            ("01:02:03-08", "09:02:03Z"),
            ("12:34:56.7-00:30", "13:04:56.7Z"),
            ("12:34:56+14", "22:34:56Z"),
            ("10:00:00+02", "08:00:00Z"),
            ("06:07:08.09+00", "06:07:08.09Z"),
            ("24:00:00+00", "00:00:00Z"),
            ("00:00:00+15:59", "08:01:00Z"),
            ("00:00:00-15:59", "15:59:00Z"),
            ("00:00:00-00:00:01", "00:00:01Z"),
        ] {
            let quoted = format!("{iso:?}");
            assert_eq!(with(|out| time_with_zone(text.as_bytes(), out)), Some(quoted), "{text}");
        }
    }

    #[test]
    fn timestamps_count_in_the_unit_of_their_precision() {
        for (text, modifier, units) in [
            ("1970-01-01 00:00:00", -1, "0"),
            ("2024-02-29 23:59:59.999999", -1, "1709251199999999"),
            ("2024-02-29 23:59:59", 0, "1709251199000"),
            ("2024-02-29 23:59:59.9999", 4, "1709251199999900"),
            ("1969-12-31 23:59:59.999999", -1, "-1"),
            ("1969-12-31 23:59:59.999", 3, "-1"),
            ("1582-10-04 12:00:00", -1, "-12220200000000000"),
            ("0099-12-31 23:59:59.123456", 6, "-59011459200876544"),
            ("4713-01-01 00:00:00 BC", -1, "-210863520000000000"),
            ("0001-12-31 23:59:59.5 BC", -1, "-62135596800500000"),
            ("0044-03-15 12:00:00 BC", 3, "-63517780800000"),
            ("294276-12-31 23:59:59.999", 3, "9224318015999999"),
            ("294276-12-31 23:59:59.999999", -1, "9224318015999999999"),
            ("infinity", -1, "9223372036825200000"),
            ("-infinity", -1, "-9223372036832400000"),
            ("infinity", 3, "9223372036825200"),
            ("-infinity", 0, "-9223372036832400"),
        ] {
            let written = with(|out| timestamp(text.as_bytes(), Unit::of(modifier), out));
            assert_eq!(written.as_deref(), Some(units), "{text}");
        }
    }

    #[test]
    fn timestamps_with_a_zone_are_iso_with_the_digits_of_their_precision() {
        for (text, digits, iso) in [
            ("1970-01-01 00:00:00+00", 6, "1970-01-01T00:00:00.000000Z"),
            ("2024-02-29 18:29:59.999999+00", 6, "2024-02-29T18:29:59.999999Z"),
            ("2024-03-01 07:59:59+00", 0, "2024-03-01T07:59:59Z"),
            ("2038-01-19 02:14:08.12+00", 3, "2038-01-19T02:14:08.120Z"),
            ("4713-01-01 00:00:00+00 BC", 6, "-4712-01-01T00:00:00.000000Z"),
            ("0001-12-31 23:59:59.5+00 BC", 6, "0000-12-31T23:59:59.500000Z"),
            ("0044-03-15 12:00:00+00 BC", 3, "-0043-03-15T12:00:00.000Z"),
            ("294276-12-31 23:59:59.999999+00", 6, "+294276-12-31T23:59:59.999999Z"),
            ("infinity", 6, "infinity"),
            ("-infinity", 0, "-infinity"),
        ] {
            let written = with(|out| timestamp_with_zone(text.as_bytes(), digits, out));
            assert_eq!(written, Some(format!("{iso:?}")), "{text}");
        }
    }

    #[test]
    fn intervals_are_microseconds() {
        for (text, micros) in [
            ("1 year 2 mons 3 days 04:05:06.000007", "37091106000007"),
            ("-1 years -2 mons -3 days -04:05:06.000007", "-37091106000007"),
            ("00:00:00", "0"),
            ("-00:00:01", "-1000000"),
            ("1 mon -1 days +00:00:01", "2543401000000"),
            ("1 day -01:00:00", "82800000000"),
            ("1 year 1 mon", "34187400000000"),
            ("-3 days +04:05:06.789", "-244493211000"),
            ("25:00:00", "90000000000"),
            ("100 years", "3155760000000000"),
            ("178000000 years", "9223372036854775807"),
            ("-178000000 years", "-9223372036854775808"),
            ("2562047788:00:54.775807", "9223372036854775807"),
            ("infinity", "9223372036854775807"),
            ("-infinity", "-9223372036854775808"),
        ] {
            assert_eq!(with(|out| interval(text.as_bytes(), out)).as_deref(), Some(micros), "{text}");
        }
    }

    #[test]
    fn refuses_any_other_form() {
        let refused = |written: Option<String>, text: &str| assert_eq!(written, None, "{text:?}");
        for text in ["", "2024", "2024-1-01", "02/29/2024", "2024-13-01", "2024-00-01", "2024-01-32", "0000-01-01"] {
            refused(with(|out| date(text.as_bytes(), out)), text);
        }
        for text in ["2024-01-01 AD", "2024-01-01 ", "99999999-01-01", "Infinity", "2024-01-01 00:00:00"] {
            refused(with(|out| date(text.as_bytes(), out)), text);
        }
        for text in ["", "1:00:00", "00:60:00", "00:00:61", "24:00:01", "00:00:00.", "00:00:00.1234567", "00:00:00+00"]
        {
            refused(with(|out| time(text.as_bytes(), Unit::Micros, out)), text);
        }
        refused(with(|out| time(b"00:00:00.0001", Unit::Millis, out)), "a digit would be lost");
        for text in ["00:00:00", "00:00:00 +00", "00:00:00+0", "00:00:00+00:00:00:00", "00:00:00+00x"] {
            refused(with(|out| time_with_zone(text.as_bytes(), out)), text);
        }
        for text in ["2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00:00+00", "2024-01-01 00:00:00 AD"] {
            refused(with(|out| timestamp(text.as_bytes(), Unit::Micros, out)), text);
        }
        for text in ["2024-01-01 00:00:00", "2024-01-01 00:00:00+01", "2024-01-01 00:00:00.1234+00"] {
            refused(with(|out| timestamp_with_zone(text.as_bytes(), 3, out)), text);
        }
        refused(with(|out| timestamp_with_zone(b"2024-01-01 00:00:00.5+00", 0, out)), "a digit would be lost");
        for text in ["", " ", "1", "1 week", "P1Y", "@ 1 day", "1 day ", "1 day  1 mon", "00:00", "- 1 day"] {
            refused(with(|out| interval(text.as_bytes(), out)), text);
        }
    }
}
