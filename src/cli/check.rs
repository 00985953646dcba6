//! Findings of both servers -> a page or JSON, and an exit code.

use std::{fmt::Write, future::Future, time::Duration};

use anstyle::{AnsiColor, Style};

use crate::{
    exit::Exit,
    finding::{Finding, Level, Side},
};

/// Each side has this long to answer; both are asked at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(9);

/// Asks both sides, prints what they say, and gives the exit code.
pub async fn check(
    json: bool,
    source: impl Future<Output = Vec<Finding>>,
    sink: impl Future<Output = Vec<Finding>>,
) -> Exit {
    let findings = gather(source, sink).await;
    if json {
        anstream::print!("{}", self::json(&findings));
    } else {
        anstream::print!("{}", page(&findings));
    }
    exit(&findings)
}

/// Waits for both sides at once, each for `ANSWER_WITHIN`; a side that does not answer is a cross.
pub async fn gather(
    source: impl Future<Output = Vec<Finding>>,
    sink: impl Future<Output = Vec<Finding>>,
) -> Vec<Finding> {
    let (mut findings, sink) = tokio::join!(side(Side::Source, source), side(Side::Sink, sink));
    findings.extend(sink);
    findings
}

async fn side(side: Side, findings: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    let (server, key) = match side {
        Side::Source => ("Postgres", "source.postgres"),
        Side::Sink => ("Kafka", "sink.kafka.brokers"),
    };
    tokio::time::timeout(ANSWER_WITHIN, findings).await.unwrap_or_else(|_| {
        let what = format!("{server} did not answer within {} s", ANSWER_WITHIN.as_secs());
        vec![Finding::cross(side, what, format!("see that `{key}` names it and that the network lets us through"))]
    })
}

/// 0 without a cross, else the code of the first one's side.
pub fn exit(findings: &[Finding]) -> Exit {
    match findings.iter().find(|finding| finding.level == Level::Cross).map(|finding| finding.side) {
        None => Exit::Clean,
        Some(Side::Source) => Exit::Source,
        Some(Side::Sink) => Exit::Sink,
    }
}

/// The findings as a JSON array.
pub fn json(findings: &[Finding]) -> String {
    serde_json::to_string_pretty(findings).expect("findings are plain text and enums") + "\n"
}

/// The findings for people, with colours; print it through `anstream`, which takes them out where they are not wanted.
pub fn page(findings: &[Finding]) -> String {
    let mut page = String::new();
    for (side, title) in [(Side::Source, "Postgres"), (Side::Sink, "Kafka")] {
        let bold = Style::new().bold();
        writeln!(page, "{bold}{title}{bold:#}").expect("writing to a String cannot fail");
        findings.iter().filter(|finding| finding.side == side).for_each(|finding| paint(finding, &mut page));
        page.push('\n');
    }
    page + &verdict(findings) + "\n"
}

fn paint(finding: &Finding, page: &mut String) {
    let (mark, colour) = match finding.level {
        Level::Ok => ("✓", AnsiColor::Green),
        Level::Warning => ("!", AnsiColor::Yellow),
        Level::Cross => ("✗", AnsiColor::Red),
    };
    let style = colour.on_default().bold();
    writeln!(page, "  {style}{mark}{style:#} {}", finding.what).expect("writing to a String cannot fail");
    for line in finding.mend.iter().flat_map(|mend| mend.lines()) {
        writeln!(page, "      {line}").expect("writing to a String cannot fail");
    }
}

fn verdict(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let counted = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    match (count(Level::Cross), count(Level::Warning)) {
        (0, 0) => "ready to run".into(),
        (0, warnings) => format!("ready to run, with {}", counted(warnings, "warning", "warnings")),
        (crosses, _) => format!("not ready: {} to mend", counted(crosses, "thing", "things")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok(Side::Source, "PostgreSQL 17.5, database shop"),
            Finding::cross(
                Side::Source,
                "wal_level is replica",
                "ALTER SYSTEM SET wal_level = logical;\n-- then restart the server",
            ),
            Finding::warning(
                Side::Sink,
                "topic shop.public.orders has 3 partitions, the config says 6",
                "used as it is",
            ),
        ]
    }

    fn plain(page: &str) -> String {
        anstream::adapter::strip_str(page).to_string()
    }

    #[test]
    fn the_page_marks_each_finding_and_indents_what_mends_it() {
        assert_eq!(
            plain(&page(&findings())),
            "\
Postgres
  ✓ PostgreSQL 17.5, database shop
  ✗ wal_level is replica
      ALTER SYSTEM SET wal_level = logical;
      -- then restart the server

Kafka
  ! topic shop.public.orders has 3 partitions, the config says 6
      used as it is

not ready: 1 thing to mend
"
        );
    }

    #[test]
    fn the_verdict_follows_the_worst_level() {
        let of = |range| verdict(&findings()[range]);
        assert_eq!(of(0..1), "ready to run");
        assert_eq!(of(2..3), "ready to run, with 1 warning");
        assert_eq!(of(0..3), "not ready: 1 thing to mend");
    }

    #[test]
    fn the_first_cross_decides_the_exit_code() {
        let cross = |side| Finding::cross(side, "x", "y");
        assert_eq!(exit(&findings()[..1]), Exit::Clean);
        assert_eq!(exit(&findings()[2..]), Exit::Clean);
        assert_eq!(exit(&[cross(Side::Sink), cross(Side::Source)]), Exit::Sink);
        assert_eq!(exit(&findings()), Exit::Source);
    }

    #[test]
    fn json_is_an_array_of_objects() {
        let json: serde_json::Value = serde_json::from_str(&json(&findings())).unwrap();
        assert_eq!(json[2]["side"], "sink");
        assert_eq!(json[2]["level"], "warning");
        assert_eq!(json[0]["mend"], serde_json::Value::Null);
        assert_eq!(json.as_array().unwrap().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_does_not_answer_is_a_cross_and_the_other_is_still_told() {
        let ok = Finding::ok(Side::Sink, "3 brokers");
        let told = gather(std::future::pending(), async { vec![ok.clone()] }).await;
        assert_eq!(told[0].what, "Postgres did not answer within 9 s");
        assert_eq!((told[0].level, &told[1]), (Level::Cross, &ok));
    }
}
