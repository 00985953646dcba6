//! Records, and what Debezium published for the same SQL -> how they differ. Pure but for reading the fixtures.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, fs, io,
    path::Path,
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value as Json;

/// What is left of a field that no two runs have alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Normal {
    /// Whether it is there, and whether it is null.
    Presence,
    /// As `Presence`, and which records share it: the two sides' values must correspond one to one.
    Pairs,
    /// Nothing.
    Nothing,
}

/// All that is not compared by its value, in one place. Paths start inside a record's value; a final `*` stands for the
/// rest of a name.
pub(crate) const NORMALISED: [(&str, Normal); 11] = [
    ("ts_ms", Normal::Presence),
    ("ts_us", Normal::Presence),
    ("ts_ns", Normal::Presence),
    ("source.version", Normal::Presence),
    ("source.ts_ms", Normal::Presence),
    ("source.ts_us", Normal::Presence),
    ("source.ts_ns", Normal::Presence),
    ("source.sequence", Normal::Presence),
    ("source.lsn", Normal::Presence),
    ("source.txId", Normal::Pairs),
    // Debezium's own bookkeeping, which nobody else can have.
    ("headers.__debezium.context.*", Normal::Nothing),
];

/// A Kafka record with its JSON read: one line of a `.norm.jsonl`, or what was consumed from a real topic.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Record {
    /// The topic's name.
    pub topic: String,
    /// The partition, which tells whether order across keys can be seen.
    #[serde(default)]
    pub partition: i32,
    /// `Null` for a null key.
    #[serde(default)]
    pub key: Json,
    /// `Null` for a tombstone.
    #[serde(default)]
    pub value: Json,
    /// In the record's order.
    #[serde(default)]
    pub headers: Vec<(String, Json)>,
}

/// One field, or one record, that is not as Debezium has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Difference {
    /// Whose topic.
    pub topic: String,
    /// The key of the record.
    pub key: Json,
    /// Which of the records of that key, from 0.
    pub n: usize,
    /// The field, dotted, as in `NORMALISED`; or `(topic)`, `(order)`, `(record)`, `(transaction)` for what is no field.
    pub path: String,
    /// `None`: we do not have it.
    pub ours: Option<Json>,
    /// `None`: Debezium does not have it.
    pub debezium: Option<Json>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |side: &Option<Json>| side.as_ref().map_or("(absent)".into(), |json| shortened(json.to_string()));
        let Self { topic, key, n, path, ours, debezium } = self;
        write!(f, "{topic} {key} #{n} {path}: {} instead of {}", shown(ours), shown(debezium))
    }
}

/// Reads a `.norm.jsonl`.
pub(crate) fn load(path: &Path) -> io::Result<Vec<Record>> {
    let text = fs::read_to_string(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(i, line)| {
        serde_json::from_str(line).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}, line {}: {error}", path.display(), i + 1))
        })
    };
    lines.map(read).collect()
}

/// Leaves out what an initial snapshot published.
pub(crate) fn streamed(records: Vec<Record>) -> Vec<Record> {
    let snapshot = |record: &Record| record.value["source"]["snapshot"].as_str().is_some_and(|word| word != "false");
    records.into_iter().filter(|record| !snapshot(record)).collect()
}

/// How our records differ from Debezium's: per topic and key, in order, field by field, and in their order across the
/// keys of a topic where both sides have it in one partition. Records of a partition come in its order.
pub(crate) fn compare(ours: &[Record], debezium: &[Record]) -> Vec<Difference> {
    let mut found = Vec::new();
    let (ours, debezium) = (by_topic(ours), by_topic(debezium));
    let mut pairs = Pairs::default();
    for topic in ours.keys().chain(debezium.keys()).copied().collect::<BTreeSet<_>>() {
        let none = Vec::new();
        let (ours, debezium) = (ours.get(topic).unwrap_or(&none), debezium.get(topic).unwrap_or(&none));
        if ours.is_empty() || debezium.is_empty() {
            let count = |side: &[Normalised]| (!side.is_empty()).then(|| Json::from(side.len()));
            found.push(Difference {
                topic: topic.into(),
                key: Json::Null,
                n: 0,
                path: "(topic)".into(),
                ours: count(ours),
                debezium: count(debezium),
            });
            continue;
        }
        found.extend(compare_order(topic, ours, debezium));
        let mut keys: Vec<&Json> = Vec::new();
        for record in debezium.iter().chain(ours) {
            if !keys.contains(&record.key) {
                keys.push(record.key);
            }
        }
        for key in keys {
            for (n, pair) in align(of_key(ours, key), of_key(debezium, key)).into_iter().enumerate() {
                let difference = |path: &str, ours: Option<&Json>, debezium: Option<&Json>| Difference {
                    topic: topic.into(),
                    key: key.clone(),
                    n,
                    path: path.into(),
                    ours: ours.cloned(),
                    debezium: debezium.cloned(),
                };
                match pair {
                    (Some(ours), Some(debezium)) => {
                        differ(&ours.fields, &debezium.fields, "", &mut |path, ours, debezium| {
                            found.push(difference(path, ours, debezium));
                        });
                        if let (Some(ours), Some(debezium)) = (&ours.pair, &debezium.pair)
                            && !pairs.agree(ours, debezium)
                        {
                            found.push(difference("(transaction)", Some(ours), Some(debezium)));
                        }
                    }
                    (ours, debezium) => found.push(difference(
                        "(record)",
                        ours.as_ref().map(|r| &r.fields),
                        debezium.as_ref().map(|r| &r.fields),
                    )),
                }
            }
        }
    }
    found
}

/// A record as it is compared.
#[derive(Clone, Debug)]
struct Normalised<'a> {
    partition: i32,
    key: &'a Json,
    /// The value's fields, and `headers` beside them; a value that is no object, such as a tombstone, is `(value)`.
    fields: Json,
    /// What must correspond one to one.
    pair: Option<Json>,
}

fn by_topic(records: &[Record]) -> BTreeMap<&str, Vec<Normalised<'_>>> {
    let mut topics = BTreeMap::<&str, Vec<_>>::new();
    for record in records {
        topics.entry(&record.topic).or_default().push(normalise(record));
    }
    topics
}

fn normalise(record: &Record) -> Normalised<'_> {
    let mut fields = match &record.value {
        Json::Object(fields) => fields.clone(),
        other => [("(value)".to_string(), other.clone())].into_iter().collect(),
    };
    let mut headers = serde_json::Map::new();
    for (name, value) in &record.headers {
        let same_name = headers.entry(name).or_insert_with(|| Json::Array(Vec::new()));
        same_name.as_array_mut().expect("made as an array").push(value.clone());
    }
    fields.insert("headers".into(), Json::Object(headers));
    let mut fields = Json::Object(fields);
    let mut pair = None;
    for (path, normal) in NORMALISED {
        // A header's name has dots of its own.
        let (parent, name) = path.split_once('.').map_or((None, path), |(parent, name)| (Some(parent), name));
        let parent = match parent {
            Some(parent) => fields.get_mut(parent),
            None => Some(&mut fields),
        };
        let Some(Json::Object(parent)) = parent else { continue };
        match normal {
            Normal::Nothing => {
                let start = name.trim_end_matches('*');
                parent.retain(|field, _| !field.starts_with(start));
            }
            Normal::Presence | Normal::Pairs => {
                let Some(value) = parent.get_mut(name).filter(|value| !value.is_null()) else { continue };
                let was = std::mem::replace(value, "<normalised>".into());
                if normal == Normal::Pairs {
                    pair = Some(was);
                }
            }
        }
    }
    Normalised { partition: record.partition, key: &record.key, fields, pair }
}

fn of_key<'a>(side: &[Normalised<'a>], key: &Json) -> Vec<Normalised<'a>> {
    side.iter().filter(|record| record.key == key).cloned().collect()
}

/// The first place where keys come in another order, if each side has the topic in one partition and the same keys.
fn compare_order(topic: &str, ours: &[Normalised<'_>], debezium: &[Normalised<'_>]) -> Option<Difference> {
    let one_partition = |side: &[Normalised<'_>]| side.iter().all(|r| r.partition == side[0].partition);
    let keys = |side: &[Normalised<'_>]| side.iter().map(|r| r.key.to_string()).collect::<Vec<_>>();
    let sorted = |mut keys: Vec<String>| {
        keys.sort();
        keys
    };
    if !one_partition(ours) || !one_partition(debezium) || sorted(keys(ours)) != sorted(keys(debezium)) {
        return None;
    }
    let (n, (ours, debezium)) = ours.iter().zip(debezium).enumerate().find(|(_, (a, b))| a.key != b.key)?;
    let path = "(order)".into();
    let (ours, debezium) = (Some(ours.key.clone()), Some(debezium.key.clone()));
    Some(Difference { topic: topic.into(), key: Json::Null, n, path, ours, debezium })
}

type Aligned<'a> = Vec<(Option<Normalised<'a>>, Option<Normalised<'a>>)>;

/// Pairs the records of a key: one to one where there are as many, else along the longest run of those that look alike,
/// so that one record too many or too few is told as that.
fn align<'a>(ours: Vec<Normalised<'a>>, debezium: Vec<Normalised<'a>>) -> Aligned<'a> {
    if ours.len() == debezium.len() {
        return ours.into_iter().zip(debezium).map(|(a, b)| (Some(a), Some(b))).collect();
    }
    let alike = |a: &Normalised<'_>, b: &Normalised<'_>| {
        ["op", "after", "(value)"].iter().all(|field| a.fields.get(field) == b.fields.get(field))
    };
    // longest[i][j]: how many pairs the records from i and from j on have at most.
    let mut longest = vec![vec![0; debezium.len() + 1]; ours.len() + 1];
    for i in (0..ours.len()).rev() {
        for j in (0..debezium.len()).rev() {
            longest[i][j] = match alike(&ours[i], &debezium[j]) {
                true => longest[i + 1][j + 1] + 1,
                false => longest[i + 1][j].max(longest[i][j + 1]),
            };
        }
    }
    let (mut aligned, mut i, mut j) = (Vec::new(), 0, 0);
    while i < ours.len() || j < debezium.len() {
        let (mine, theirs) = (ours.get(i), debezium.get(j));
        let (take_mine, take_theirs) = match (mine, theirs) {
            (Some(a), Some(b)) if alike(a, b) => (true, true),
            (Some(_), Some(_)) if longest[i + 1][j + 1] == longest[i][j] => (true, true),
            (Some(_), Some(_)) if longest[i + 1][j] == longest[i][j] => (true, false),
            (Some(_), None) => (true, false),
            _ => (false, true),
        };
        aligned.push((mine.filter(|_| take_mine).cloned(), theirs.filter(|_| take_theirs).cloned()));
        i += usize::from(take_mine);
        j += usize::from(take_theirs);
    }
    aligned
}

/// Tells each field that differs, with its dotted path.
fn differ(ours: &Json, debezium: &Json, path: &str, tell: &mut impl FnMut(&str, Option<&Json>, Option<&Json>)) {
    match (ours, debezium) {
        (Json::Object(ours), Json::Object(debezium)) => {
            let names: BTreeSet<_> = ours.keys().chain(debezium.keys()).collect();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match (ours.get(name), debezium.get(name)) {
                    (Some(ours), Some(debezium)) => differ(ours, debezium, &path, tell),
                    (ours, debezium) => tell(&path, ours, debezium),
                }
            }
        }
        (Json::Array(ours), Json::Array(debezium)) if ours.len() == debezium.len() => {
            for (i, (ours, debezium)) in ours.iter().zip(debezium).enumerate() {
                differ(ours, debezium, &format!("{path}.{i}"), tell);
            }
        }
        // As text, 0.0 is not -0.0 and 1 is not 1.0.
        (Json::Number(a), Json::Number(b)) if a.to_string() == b.to_string() => {}
        (Json::Number(_), Json::Number(_)) => tell(path, Some(ours), Some(debezium)),
        _ if ours == debezium => {}
        _ => tell(path, Some(ours), Some(debezium)),
    }
}

/// Which of our values stands for which of Debezium's.
#[derive(Default)]
struct Pairs {
    ours: HashMap<String, String>,
    debezium: HashMap<String, String>,
}

impl Pairs {
    fn agree(&mut self, ours: &Json, debezium: &Json) -> bool {
        let (ours, debezium) = (ours.to_string(), debezium.to_string());
        let there = self.ours.entry(ours.clone()).or_insert_with(|| debezium.clone()) == &debezium;
        let back = self.debezium.entry(debezium).or_insert_with(|| ours.clone()) == &ours;
        there && back
    }
}

fn shortened(text: String) -> String {
    const CHARS_MAX: usize = 160;
    match text.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// A `NAME.sql`: what to run, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scenario {
    /// What it is about.
    pub about: String,
    /// Debezium's options, in every run.
    pub options: Vec<(String, String)>,
    /// One run each, with options of its own; none means one run without a name.
    pub variants: Vec<Variant>,
    /// Before the connector starts.
    pub setup: Vec<Step>,
    /// Once it streams.
    pub stream: Vec<Step>,
    /// Debezium stops on the way.
    pub fails: bool,
    /// Captured with schemas, too.
    pub schemas: bool,
    /// Patterns of further topics.
    pub topics: Vec<String>,
    /// The topic whose first record means that all has arrived.
    pub end: String,
}

/// One run of a scenario.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Variant {
    /// Its part of the file's name.
    pub name: String,
    /// Debezium's options.
    pub options: serde_json::Map<String, Json>,
}

/// What a scenario does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// A statement, on its own (autocommit).
    Statement {
        /// Which connection.
        session: String,
        /// With its semicolon.
        sql: String,
        /// Postgres refuses it.
        fails: bool,
    },
    /// A pause that the capture made. A replay waits for its condition instead.
    Pause(Duration),
}

impl Scenario {
    /// Reads the SQL with its directives.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut scenario = Self { end: "g.public.golden_end".into(), ..Self::default() };
        let mut streaming = false;
        let mut session = "main".to_string();
        let mut statement = String::new();
        let mut quoted = false;
        for (i, line) in text.lines().enumerate() {
            let wrong = |what: &str| format!("line {}: {what}: {line}", i + 1);
            if let Some(comment) = line.strip_prefix("--").filter(|_| statement.is_empty()) {
                let (word, rest) = comment.trim().split_once(' ').unwrap_or((comment.trim(), ""));
                let rest = rest.trim();
                match word {
                    "about:" => scenario.about = rest.into(),
                    "option" => {
                        let (name, value) = rest.split_once('=').ok_or_else(|| wrong("an option has a value"))?;
                        scenario.options.push((name.into(), value.into()));
                    }
                    "variant" => {
                        let (name, options) = rest.split_once(' ').unwrap_or((rest, "{}"));
                        let options = serde_json::from_str(options).map_err(|error| wrong(&error.to_string()))?;
                        scenario.variants.push(Variant { name: name.into(), options });
                    }
                    "setup" if rest.is_empty() => streaming = false,
                    "stream" if rest.is_empty() => streaming = true,
                    "session" if !rest.is_empty() && !rest.contains(' ') => session = rest.into(),
                    "sleep" if rest.parse::<f64>().is_ok() => {
                        let pause = Duration::try_from_secs_f64(rest.parse().expect("it just parsed"));
                        let pause = Step::Pause(pause.map_err(|error| wrong(&error.to_string()))?);
                        if streaming { scenario.stream.push(pause) } else { scenario.setup.push(pause) }
                    }
                    "topics" if !rest.is_empty() => scenario.topics.push(rest.into()),
                    "end" if !rest.is_empty() => scenario.end = rest.into(),
                    "schemas" if rest.is_empty() => scenario.schemas = true,
                    "fails" if rest.is_empty() => scenario.fails = true,
                    // A comment.
                    _ => {}
                }
                continue;
            }
            if line.trim().is_empty() && statement.is_empty() {
                continue;
            }
            quoted ^= line.matches("$$").count() % 2 == 1;
            statement.push_str(line);
            statement.push('\n');
            if !quoted && line.trim_end().ends_with(';') {
                let sql = std::mem::take(&mut statement).trim_end().to_string();
                let fails = sql.contains("/* fails */");
                let step = Step::Statement { session: session.clone(), sql, fails };
                if streaming { scenario.stream.push(step) } else { scenario.setup.push(step) }
            }
        }
        if statement.is_empty() { Ok(scenario) } else { Err(format!("the last statement does not end: {statement}")) }
    }

    /// The variants' names, `None` for the only run of a scenario without any.
    pub(crate) fn runs(&self) -> Vec<Option<&str>> {
        match self.variants.as_slice() {
            [] => vec![None],
            variants => variants.iter().map(|variant| Some(variant.name.as_str())).collect(),
        }
    }
}

/// The file with Debezium's records for a run: `01_crud.norm.jsonl`, `03_keys.default.norm.jsonl`.
pub(crate) fn records_file(scenario: &str, variant: Option<&str>) -> String {
    match variant {
        Some(variant) => format!("{scenario}.{variant}.norm.jsonl"),
        None => format!("{scenario}.norm.jsonl"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/debezium")
    }

    fn envelope(op: &str, after: Json, transaction: u32) -> Json {
        json!({
            "before": null, "after": after, "op": op, "ts_ms": 5,
            "source": {"version": "x", "snapshot": "false", "txId": transaction, "lsn": 7, "xmin": null},
        })
    }

    fn record(key: Json, value: Json) -> Record {
        Record { topic: "g.public.t".into(), partition: 0, key, value, headers: vec![] }
    }

    /// Two rows, the second one deleted.
    fn debezium() -> Vec<Record> {
        vec![
            record(json!({"id": 1}), envelope("c", json!({"id": 1, "n": 1.0}), 10)),
            record(json!({"id": 2}), envelope("c", json!({"id": 2, "n": null}), 10)),
            record(json!({"id": 2}), envelope("d", Json::Null, 11)),
            record(json!({"id": 2}), Json::Null),
        ]
    }

    fn paths(ours: &[Record]) -> Vec<String> {
        compare(ours, &debezium()).into_iter().map(|difference| difference.path).collect()
    }

    #[test]
    fn what_no_two_runs_have_alike_makes_no_difference() {
        let mut ours = debezium();
        for (i, record) in ours.iter_mut().enumerate() {
            record.headers.push(("__debezium.context.runId".into(), i.into()));
            let Json::Object(value) = &mut record.value else { continue };
            value["ts_ms"] = 17.into();
            value["source"]["lsn"] = "<lsn>".into();
            value["source"]["version"] = "y".into();
            let transaction = value["source"]["txId"].as_u64().unwrap();
            value["source"]["txId"] = format!("tx{transaction}").into();
        }
        assert_eq!(compare(&ours, &debezium()), []);
    }

    #[test]
    fn tells_each_field_that_differs() {
        let mut ours = debezium();
        ours[0].value["after"]["n"] = 1.into();
        ours[1].value["after"].as_object_mut().unwrap().remove("n");
        ours[2].value["source"]["xmin"] = 3.into();
        ours[3].headers.push(("__debezium.newkey".into(), "k".into()));
        assert_eq!(paths(&ours), ["after.n", "after.n", "source.xmin", "headers.__debezium.newkey"]);
        let found = compare(&ours, &debezium());
        assert_eq!(found[0].to_string(), "g.public.t {\"id\":1} #0 after.n: 1 instead of 1.0");
        assert_eq!(found[1].to_string(), "g.public.t {\"id\":2} #0 after.n: (absent) instead of null");
    }

    #[test]
    fn a_normalised_field_must_still_be_there() {
        let mut ours = debezium();
        ours[0].value["source"]["lsn"] = Json::Null;
        ours[1].value.as_object_mut().unwrap().remove("ts_ms");
        assert_eq!(paths(&ours), ["source.lsn", "ts_ms"]);
    }

    #[test]
    fn transactions_must_correspond_one_to_one() {
        let mut ours = debezium();
        ours[2].value["source"]["txId"] = 10.into();
        assert_eq!(paths(&ours), ["(transaction)"], "two of theirs are one of ours");
        let mut ours = debezium();
        ours[1].value["source"]["txId"] = 12.into();
        assert_eq!(paths(&ours), ["(transaction)"], "one of theirs is two of ours");
    }

    #[test]
    fn a_record_too_many_or_too_few_is_told_as_that() {
        let mut ours = debezium();
        ours.remove(2);
        let found = compare(&ours, &debezium());
        assert_eq!((found.len(), found[0].path.as_str(), &found[0].ours), (1, "(record)", &None));
        assert_eq!(found[0].debezium.as_ref().unwrap()["op"], "d");

        let mut ours = debezium();
        ours.insert(1, ours[0].clone());
        let found = compare(&ours, &debezium());
        assert_eq!((found.len(), found[0].path.as_str(), &found[0].debezium), (1, "(record)", &None));
    }

    #[test]
    fn order_across_keys_counts_within_one_partition() {
        let mut ours = debezium();
        ours.swap(0, 1);
        assert_eq!(paths(&ours), ["(order)"]);
        ours[1].partition = 1;
        assert_eq!(compare(&ours, &debezium()), []);
    }

    #[test]
    fn a_topic_that_only_one_side_has_is_told_once() {
        let mut ours = debezium();
        ours.iter_mut().for_each(|record| record.topic = "other".into());
        let told: Vec<_> = compare(&ours, &debezium()).into_iter().map(|d| (d.topic, d.path)).collect();
        let both = ["g.public.t", "other"].map(|topic| (topic.to_string(), "(topic)".to_string()));
        assert_eq!(told, both);
    }

    #[test]
    fn every_fixture_equals_itself_and_only_itself() {
        let mut files = 0;
        for entry in fs::read_dir(fixtures()).unwrap() {
            let path = entry.unwrap().path();
            if path.to_str().unwrap().ends_with(".norm.jsonl") {
                let records = load(&path).unwrap();
                assert!(!records.is_empty());
                assert_eq!(compare(&records, &records), [], "{}", path.display());
                assert_ne!(compare(&records[1..], &records), [], "{}", path.display());
                files += 1;
            }
        }
        assert!(files > 10);
    }

    #[test]
    fn the_snapshot_is_left_out() {
        let records = load(&fixtures().join(records_file("06_types_integer", None))).unwrap();
        assert!(records.iter().any(|record| record.value["op"] == "r"));
        let kept = streamed(records);
        assert!(kept.iter().all(|record| record.value["op"] != "r"));
        assert!(kept.iter().any(|record| record.value.is_null()), "a tombstone is no snapshot");
    }

    #[test]
    fn reads_every_directive() {
        let text = "-- about: it all\n-- option a.b=c=d\n-- variant one {\"x\":\"y\"}\n-- variant two\n-- schemas\n\
                    -- topics __x.*\n-- end g.other\n-- fails\n-- setup\ncreate table t (\n  id int);\n-- a comment\n\
                    -- stream\ninsert into t values (1);\n-- session a\nbegin;\n-- sleep 0.5\n\
                    do $$ begin\n  -- sleep 9\n  null;\nend $$;\nselect 1 /* fails */;\n";
        let scenario = Scenario::parse(text).unwrap();
        let statement = |session: &str, sql: &str| Step::Statement {
            session: session.into(),
            sql: sql.into(),
            fails: sql.contains("fails"),
        };
        assert_eq!(scenario.about, "it all");
        assert_eq!(scenario.options, [("a.b".to_string(), "c=d".to_string())]);
        assert_eq!(scenario.runs(), [Some("one"), Some("two")]);
        assert_eq!(scenario.variants[0].options["x"], "y");
        assert!(scenario.schemas && scenario.fails);
        assert_eq!((scenario.topics.as_slice(), scenario.end.as_str()), (&["__x.*".to_string()] as &[_], "g.other"));
        assert_eq!(scenario.setup, [statement("main", "create table t (\n  id int);")]);
        assert_eq!(
            scenario.stream,
            [
                statement("main", "insert into t values (1);"),
                statement("a", "begin;"),
                Step::Pause(Duration::from_millis(500)),
                statement("a", "do $$ begin\n  -- sleep 9\n  null;\nend $$;"),
                statement("a", "select 1 /* fails */;"),
            ]
        );
        assert!(Scenario::parse("select 1").is_err());
        assert!(Scenario::parse("-- variant x {").is_err());
    }

    #[test]
    fn every_scenario_reads_and_has_its_records() {
        for entry in fs::read_dir(fixtures()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "sql") {
                let scenario = Scenario::parse(&fs::read_to_string(&path).unwrap()).unwrap();
                assert!(!scenario.stream.is_empty() && !scenario.about.is_empty(), "{}", path.display());
                let name = path.file_stem().unwrap().to_str().unwrap();
                let there = |variant: &Option<&str>| fixtures().join(records_file(name, *variant)).exists();
                assert!(scenario.runs().iter().any(there), "{name} has no records");
            }
        }
    }
}
