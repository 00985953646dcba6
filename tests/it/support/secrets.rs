//! What must never be printed: every password of the tests carries a mark, and so do values of rows. The harness looks for
//! both in all that every Offshoot prints, logs and serves.

/// In every password that a test uses.
pub const SECRET: &str = "sEcReT-";
/// In values of rows, but for keys: a record that Kafka refuses is named by its key.
pub const VALUE: &str = "vAlUe-";

/// Panics when a text of the program has a password or a row's value in it.
#[track_caller]
pub fn must_not_be_in(what: &str, text: &str) {
    for line in text.lines() {
        assert!(!line.contains(SECRET), "{what} has a password in it: {line}");
        assert!(!line.contains(VALUE), "{what} has a row's value in it: {line}");
    }
}
