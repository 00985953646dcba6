//! Findings of both servers -> a page or JSON, and an exit code.

use std::{fmt::Write, future::Future, time::Duration};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    causes::told,
    config::{Config, KafkaConfig},
    exit::Exit,
    finding::{Finding, Level},
    format::debezium::Encoder,
    kafka::{
        self,
        admin::{KafkaReport, TopicFound},
    },
    postgres,
};

/// Each server has this long to answer; both are asked at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(9);

/// Kafka's own time is shorter by this, so that it can say what it heard.
const GRACE: Duration = Duration::from_secs(1);

/// How long Kafka waits to hear from Postgres which topics there will be.
const TOPICS_WITHIN: Duration = Duration::from_secs(4);

/// What was found at both ends, each in the order in which it was looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// What the config asks for and the servers show to be wrong, such as an unknown table.
    pub config: Vec<Finding>,
    /// Postgres.
    pub source: Vec<Finding>,
    /// Kafka.
    pub sink: Vec<Finding>,
}

/// Asks both servers, prints what they say, and gives the exit code.
pub async fn check(config: &Config, json: bool) -> Exit {
    let (tell, topics) = oneshot::channel();
    let mut misfits = Vec::new();
    let mut findings = Findings::gather(ask_postgres(config, &mut misfits, tell), ask_kafka(config, topics)).await;
    findings.config = misfits;
    anstream::print!("{}", if json { findings.json() } else { findings.page() });
    findings.exit()
}

async fn ask_postgres(
    config: &Config,
    misfits: &mut Vec<Finding>,
    topics: oneshot::Sender<Vec<String>>,
) -> Vec<Finding> {
    let inspection = postgres::inspect(config).await;
    misfits.extend(inspection.misfits);
    match topics_of(config, &inspection.tables) {
        // Kafka may have stopped waiting, and says what it can.
        Ok(names) => drop(topics.send(names)),
        Err(misfit) => misfits.push(misfit),
    }
    inspection.findings
}

/// The topics that the tables' rows go to.
fn topics_of(config: &Config, tables: &[(String, String)]) -> Result<Vec<String>, Finding> {
    let misfit = |error: &dyn std::error::Error| {
        let text = format!("failed to {}", told(error));
        let (what, mend) = text.split_once("; ").unwrap_or((&text, "set `changes.topic`"));
        Finding::cross(what.into(), mend.into())
    };
    let encoder = Encoder::new(&config.name, "", config.changes()).map_err(|error| misfit(&error))?;
    encoder.topics(tables).map_err(|error| misfit(&error))
}

async fn ask_kafka(config: &Config, topics: oneshot::Receiver<Vec<String>>) -> Vec<Finding> {
    let owned = config.clone();
    let end = Instant::now() + ANSWER_WITHIN - GRACE;
    let topics = tokio::time::timeout(TOPICS_WITHIN, topics).await.ok().and_then(Result::ok).unwrap_or_default();
    // librdkafka waits in its own way, so it waits on a thread of its own, and ends before we stop waiting for it.
    let report =
        tokio::task::spawn_blocking(move || kafka::admin::inspect(&owned, &topics, end - Instant::now())).await;
    of_kafka(&report.expect("inspect does not panic"), &config.sink.kafka)
}

impl Findings {
    /// Waits for both sides at once, each for `ANSWER_WITHIN`; a side that does not answer is a cross.
    pub async fn gather(
        source: impl Future<Output = Vec<Finding>>,
        sink: impl Future<Output = Vec<Finding>>,
    ) -> Findings {
        let (source, sink) =
            tokio::join!(answer(source, "Postgres", "source.postgres"), answer(sink, "Kafka", "sink.kafka.brokers"));
        Findings { config: Vec::new(), source, sink }
    }

    /// 0 without a cross, else the code of the side that has the first one.
    pub fn exit(&self) -> Exit {
        let has_cross = |side: &[Finding]| side.iter().any(|finding| finding.level == Level::Cross);
        if has_cross(&self.config) {
            return Exit::Config;
        }
        match (has_cross(&self.source), has_cross(&self.sink)) {
            (true, _) => Exit::Source,
            (false, true) => Exit::Sink,
            (false, false) => Exit::Clean,
        }
    }

    /// As a JSON array: `side` (`config`, `source` or `sink`), `level` (`ok`, `warning` or `cross`), `what`, `mend`.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Object<'a> {
            side: &'static str,
            #[serde(flatten)]
            finding: &'a Finding,
        }
        let sides = [("config", &self.config), ("source", &self.source), ("sink", &self.sink)];
        let objects = sides.iter().flat_map(|(side, findings)| findings.iter().map(|finding| Object { side, finding }));
        let objects: Vec<_> = objects.collect();
        serde_json::to_string_pretty(&objects).expect("findings are plain text and enums") + "\n"
    }

    /// For people, with colours; print it through `anstream`, which takes them out where they are not wanted.
    pub fn page(&self) -> String {
        let mut page = String::new();
        let config = (!self.config.is_empty()).then_some(("Config", &self.config));
        for (title, findings) in config.into_iter().chain([("Postgres", &self.source), ("Kafka", &self.sink)]) {
            let bold = Style::new().bold();
            writeln!(page, "{bold}{title}{bold:#}").expect("writing to a String cannot fail");
            findings.iter().for_each(|finding| paint(finding, &mut page));
            page.push('\n');
        }
        page + &self.verdict() + "\n"
    }

    fn verdict(&self) -> String {
        let all = || self.config.iter().chain(&self.source).chain(&self.sink);
        let count = |level| all().filter(|finding| finding.level == level).count();
        let counted = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
        match (count(Level::Cross), count(Level::Warning)) {
            (0, 0) => "ready to run".into(),
            (0, warnings) => format!("ready to run, with {}", counted(warnings, "warning", "warnings")),
            (crosses, _) => format!("not ready: {} to mend", counted(crosses, "thing", "things")),
        }
    }
}

async fn answer(findings: impl Future<Output = Vec<Finding>>, server: &str, key: &str) -> Vec<Finding> {
    tokio::time::timeout(ANSWER_WITHIN, findings).await.unwrap_or_else(|_| {
        let what = format!("{server} did not answer within {} s", ANSWER_WITHIN.as_secs());
        vec![Finding::cross(what, format!("see that `{key}` names it and that the network lets us through"))]
    })
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

/// What Kafka's report says, in order: the cluster, the topics, what stands in the way.
pub fn of_kafka(report: &KafkaReport, config: &KafkaConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !report.brokers.is_empty() {
        let addresses: Vec<_> = report.brokers.iter().map(|broker| broker.address.as_str()).collect();
        let brokers = if addresses.len() == 1 { "broker" } else { "brokers" };
        findings.push(Finding::ok(format!("{} {brokers}: {}", addresses.len(), addresses.join(", "))));
    }
    for topic in &report.topics {
        match &topic.found {
            Some(found) => findings.push(of_topic(&topic.name, found, config)),
            None if config.topics.create => {
                let asked = &config.topics;
                let replicas =
                    if asked.replication == -1 { "the broker's own".into() } else { asked.replication.to_string() };
                findings.push(Finding::ok(format!(
                    "topic {} is not there; `run` makes it: partitions {}, replication {replicas}",
                    topic.name, asked.partitions
                )));
            }
            // The report has it among its faults.
            None => {}
        }
    }
    findings.extend(report.faults.iter().map(|fault| Finding::cross(fault.what.clone(), fault.mend.clone())));
    findings
}

fn of_topic(name: &str, found: &TopicFound, config: &KafkaConfig) -> Finding {
    let is = format!("topic {name}: partitions {}, replication {}", found.partitions, found.replication);
    let compacted = found.cleanup_policy.as_deref().is_some_and(|policy| policy.contains("compact"));
    if found.leaderless > 0 {
        Finding::warning(
            format!("{is}; {} without a leader", found.leaderless),
            "its records wait until a broker that has them is back".into(),
        )
    } else if found.min_insync_replicas.is_some_and(|min| min > found.replication) {
        Finding::warning(
            format!("{is}; min.insync.replicas is {}", found.min_insync_replicas.unwrap_or_default()),
            "a broker before 4.0 refuses every record: lower min.insync.replicas, or add replicas".into(),
        )
    } else if found.partitions != config.topics.partitions {
        Finding::warning(
            format!("{is}; the config says partitions {}", config.topics.partitions),
            "it is used as it is; adding partitions would move keys and end their order".into(),
        )
    } else if compacted {
        Finding::warning(
            format!("{is}; cleanup.policy is {}", found.cleanup_policy.as_deref().unwrap_or_default()),
            "older records of a key go when newer are there: a state, not a history; records without a key are refused"
                .into(),
        )
    } else {
        Finding::ok(is)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Delivery,
        kafka::admin::{BrokerReport, KafkaFault, KafkaFaultKind, TopicReport},
    };

    fn findings() -> Findings {
        Findings {
            config: Vec::new(),
            source: vec![
                Finding::ok("PostgreSQL 17.5, database shop".into()),
                Finding::cross(
                    "wal_level is replica".into(),
                    "ALTER SYSTEM SET wal_level = logical;\n-- then restart the server".into(),
                ),
            ],
            sink: vec![Finding::warning(
                "topic shop.public.orders has 3 partitions".into(),
                "it is used as it is".into(),
            )],
        }
    }

    fn plain(page: &str) -> String {
        anstream::adapter::strip_str(page).to_string()
    }

    #[test]
    fn the_page_marks_each_finding_and_indents_what_mends_it() {
        assert_eq!(
            plain(&findings().page()),
            "\
Postgres
  ✓ PostgreSQL 17.5, database shop
  ✗ wal_level is replica
      ALTER SYSTEM SET wal_level = logical;
      -- then restart the server

Kafka
  ! topic shop.public.orders has 3 partitions
      it is used as it is

not ready: 1 thing to mend
"
        );
    }

    #[test]
    fn the_verdict_follows_the_worst_level() {
        let mut findings = findings();
        assert_eq!(findings.verdict(), "not ready: 1 thing to mend");
        findings.source.pop();
        assert_eq!(findings.verdict(), "ready to run, with 1 warning");
        findings.sink.pop();
        assert_eq!(findings.verdict(), "ready to run");
    }

    #[test]
    fn the_first_cross_decides_the_exit_code() {
        let cross = || vec![Finding::cross("x".into(), "y".into())];
        let ok = || vec![Finding::ok("x".into()), Finding::warning("x".into(), "y".into())];
        assert_eq!(Findings { source: ok(), sink: ok(), ..Findings::default() }.exit(), Exit::Clean);
        assert_eq!(Findings { source: ok(), sink: cross(), ..Findings::default() }.exit(), Exit::Sink);
        assert_eq!(Findings { source: cross(), sink: cross(), ..Findings::default() }.exit(), Exit::Source);
    }

    #[test]
    fn what_the_config_asks_for_in_vain_comes_first() {
        let cross = Finding::cross("failed to find a table".into(), "the nearest is a.b".into());
        let findings = Findings { config: vec![cross], ..findings() };
        assert_eq!(findings.exit(), Exit::Config);
        assert!(
            plain(&findings.page())
                .starts_with("Config\n  ✗ failed to find a table\n      the nearest is a.b\n\nPostgres\n")
        );
        assert!(findings.json().contains("\"side\": \"config\""));
    }

    #[test]
    fn json_is_an_array_of_objects() {
        let json: serde_json::Value = serde_json::from_str(&findings().json()).unwrap();
        assert_eq!(
            json[2],
            serde_json::json!({
                "side": "sink",
                "level": "warning",
                "what": "topic shop.public.orders has 3 partitions",
                "mend": "it is used as it is",
            })
        );
        assert_eq!((json[0]["side"].as_str(), json[0]["mend"].is_null()), (Some("source"), true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_does_not_answer_is_a_cross_and_the_other_is_still_told() {
        let sink = vec![Finding::ok("3 brokers".into())];
        let told = Findings::gather(std::future::pending(), async { sink.clone() }).await;
        assert_eq!(told.source[0].what, "Postgres did not answer within 9 s");
        assert_eq!((told.source[0].level, told.sink), (Level::Cross, sink));
    }

    #[test]
    fn kafka_is_told_as_cluster_topics_and_faults() {
        let config = KafkaConfig::at("k:9092", Delivery::AtLeastOnce);
        let topic = |name: &str, found| TopicReport { name: name.into(), found };
        let found = TopicFound { partitions: 6, replication: 1, ..TopicFound::default() };
        let report = KafkaReport {
            brokers: vec![BrokerReport { id: 1, address: "k:9092".into() }],
            topics: vec![
                topic("a", Some(found.clone())),
                topic("b", Some(TopicFound { partitions: 3, ..found.clone() })),
                topic("c", Some(TopicFound { min_insync_replicas: Some(2), ..found.clone() })),
                topic("d", Some(TopicFound { cleanup_policy: Some("compact".into()), ..found.clone() })),
                topic("e", Some(TopicFound { leaderless: 2, ..found })),
                topic("f", None),
            ],
            faults: vec![KafkaFault {
                kind: KafkaFaultKind::Authorization,
                what: "topic g: no".into(),
                mend: "allow it".into(),
            }],
            ..KafkaReport::default()
        };
        let findings = Findings { sink: of_kafka(&report, &config), ..Findings::default() };
        assert_eq!(
            plain(&findings.page()),
            "\
Postgres

Kafka
  ✓ 1 broker: k:9092
  ✓ topic a: partitions 6, replication 1
  ! topic b: partitions 3, replication 1; the config says partitions 6
      it is used as it is; adding partitions would move keys and end their order
  ! topic c: partitions 6, replication 1; min.insync.replicas is 2
      a broker before 4.0 refuses every record: lower min.insync.replicas, or add replicas
  ! topic d: partitions 6, replication 1; cleanup.policy is compact
      older records of a key go when newer are there: a state, not a history; records without a key are refused
  ! topic e: partitions 6, replication 1; 2 without a leader
      its records wait until a broker that has them is back
  ✓ topic f is not there; `run` makes it: partitions 6, replication the broker's own
  ✗ topic g: no
      allow it

not ready: 1 thing to mend
"
        );
    }
}
