//! The fixtures of domain events: transactions as an application commits them, and the events that are expected of them.

/// A transaction of the fixture.
pub struct Transaction {
    /// T1 and so on; two under one name are told apart by a letter.
    pub name: String,
    /// What it is in the business.
    pub about: String,
    /// From BEGIN to COMMIT or ROLLBACK.
    pub statements: Vec<String>,
}

/// Splits a fixture at its `-- T1  about  -> expected events` lines, and these parts at their COMMITs and ROLLBACKs.
pub fn transactions(fixture: &str) -> Vec<Transaction> {
    let mut transactions: Vec<Transaction> = Vec::new();
    for part in fixture.split("\n-- ").skip(1) {
        let (heading, sql) = part.split_once('\n').expect("a heading is followed by SQL");
        let (part, about) = heading.split_once(' ').expect("a heading is a number and a sentence");
        let about = about.split("  ->").next().unwrap_or_default().trim().trim_end_matches('.');
        let mut of_part = vec![Vec::new()];
        for statement in statements(sql) {
            let ends = statement == "COMMIT" || statement == "ROLLBACK";
            of_part.last_mut().expect("it has one").push(statement);
            if ends {
                of_part.push(Vec::new());
            }
        }
        of_part.pop();
        let single = of_part.len() == 1;
        for (letter, statements) in ('a'..).zip(of_part) {
            let name = if single { part.to_owned() } else { format!("{part}{letter}") };
            transactions.push(Transaction { name, about: about.into(), statements });
        }
    }
    transactions
}

/// SQL -> its statements; a semicolon in quotes ends none. The fixture has neither dollar quotes nor comments in SQL.
fn statements(sql: &str) -> Vec<String> {
    let mut quoted = false;
    let parts = sql.split(|c| {
        quoted ^= c == '\'';
        c == ';' && !quoted
    });
    let statements = parts.map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    statements.filter(|statement| !statement.is_empty()).collect()
}

/// The lines of a file of expected events that are a transaction's: topic, key, event (`-` without a type) and data (`-` for a
/// tombstone).
pub fn events<'a>(expected: &'a str, transaction: &'a str) -> impl Iterator<Item = [&'a str; 4]> {
    expected.lines().filter_map(move |line| {
        let line = line.strip_prefix(transaction)?.strip_prefix(' ')?;
        // A key has no space in it.
        let parts: Vec<_> = line.splitn(4, ' ').collect();
        Some(parts.try_into().expect("a line has a topic, a key, an event and data"))
    })
}
