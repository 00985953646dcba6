//! Findings of both servers -> a page or JSON, and an exit code.

use std::{fmt::Write, future::Future, io::IsTerminal, sync::Arc, thread, time::Duration};

use anstyle::{AnsiColor, Style};
use bytesize::ByteSize;
use serde::Serialize;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    causes::told,
    config::{Config, Delivery, KafkaConfig, Misfit, full_name},
    exit::Exit,
    finding::{Finding, Level},
    kafka::{
        self,
        admin::{KafkaFault, KafkaFaultKind, KafkaReport, TopicFound},
    },
    mapping::{
        catalog::Catalog,
        guarantee::{EventSheet, FieldSheet, FromReplica, HeldSheet, Proof},
        rules::Rules,
    },
    outlets::Outlets,
    postgres::{self, Inspection, SlotSeen},
    progress::{self, Origin, Progress, Reached},
    sink::SinkError,
};

/// Each server has this long to answer; both are asked at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// Kafka's own time is shorter by this, so that it can say what it heard.
const GRACE: Duration = Duration::from_secs(1);

/// How long Kafka waits to hear from Postgres which topics there will be.
const TOPICS_WITHIN: Duration = Duration::from_secs(4);

/// Lines of tables, and of topics, that are as they should be; a page is to be read. `--json` has them all.
const OK_LINES_MAX: usize = 20;

/// Text is not made wider than this, since long lines are hard to read.
const WIDTH_MAX: usize = 110;

/// A name that is longer is not waited for by the others of its section.
const ABOUT_WIDTH_MAX: usize = 32;

/// What Kafka's own default is; less than it is a choice, and a row that is larger stops the stream.
const MESSAGE_BYTES_USUAL: u64 = 1_048_588;

/// A consumer is away for a night, and misses nothing.
const RETENTION_MS_MIN: i64 = 24 * 60 * 60 * 1000;

/// What was found at both ends, each in the order in which it was looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// What the config asks for and the servers show to be wrong, such as an unknown table.
    pub config: Vec<Finding>,
    /// Postgres.
    pub source: Vec<Finding>,
    /// The tables whose rows leave.
    pub tables: Vec<Finding>,
    /// Kafka.
    pub sink: Vec<Finding>,
    /// The topics that they go to.
    pub topics: Vec<Finding>,
    /// A finding per domain event.
    pub events: Vec<Finding>,
    /// What is promised of each of these.
    pub sheets: Vec<EventSheet>,
    /// A finding per table that the replica has.
    pub replica: Vec<Finding>,
    /// What is kept of each of these.
    pub held: Vec<HeldSheet>,
}

/// Asks both servers, prints what they say, and gives the exit code.
pub async fn check(config: &Config, json: bool) -> Exit {
    let (tell, topics) = oneshot::channel();
    let mut inspection = Inspection::default();
    let mut misfit = None;
    let mut mapping = None;
    let (source_late, (kafka, progress)) = tokio::join!(
        late(ask_postgres(config, &mut inspection, &mut misfit, &mut mapping, tell), "Postgres", "source.postgres"),
        ask_kafka_and_progress(config, topics)
    );
    let mut findings = Findings { source: inspection.findings, tables: inspection.tables, ..kafka };
    if let Some(catalog) = mapping {
        of_mapping(config, &catalog, &mut findings);
    }
    findings.source.extend(source_late);
    let (delivery, gap) = of_delivery(config, inspection.slot.as_ref(), progress, &findings.sink);
    findings.sink.extend(delivery);
    // A gap is the slot's: it is gone, or stands where it should not.
    findings.source.extend(gap);
    findings.config.extend(inspection.misfits.into_iter().chain(misfit));
    anstream::print!("{}", if json { findings.json() } else { findings.page(width()) });
    findings.exit()
}

async fn ask_postgres(
    config: &Config,
    inspection: &mut Inspection,
    misfit: &mut Option<Finding>,
    mapping: &mut Option<Catalog>,
    topics: oneshot::Sender<Vec<String>>,
) {
    postgres::inspect(config, inspection).await;
    if !config.events.is_empty() && inspection.slot.is_some() {
        match postgres::schema(config).await {
            Ok(catalog) => *mapping = Some(catalog),
            Err(error) => {
                let what = format!("failed to read the catalog: {}", told(&error));
                inspection
                    .findings
                    .push(Finding::cross(what, "see that the role may read pg_catalog".into()).about("events"));
            }
        }
    }
    match topics_of(config, &inspection.published) {
        // Kafka may have stopped waiting, and says what it can.
        Ok(names) => drop(topics.send(names)),
        Err(found) => *misfit = Some(found),
    }
}

/// The topics that the tables' rows go to.
fn topics_of(config: &Config, tables: &[(String, String)]) -> Result<Vec<String>, Finding> {
    let misfit = |error: &dyn std::error::Error| {
        let text = format!("failed to {}", told(error));
        let (what, mend) = text.split_once("; ").unwrap_or((&text, "set `changes.topic`"));
        Finding::cross(what.into(), mend.into())
    };
    let outlets = Outlets::new(config, "").map_err(|error| misfit(&error))?;
    let mut topics = outlets.topics(tables).map_err(|error| misfit(&error))?;
    let aggregates = config.events.iter().filter_map(|(_, event)| config.aggregates.get(&event.of));
    let events = aggregates.map(|of| {
        let usual = || format!("{}.{}", config.name, full_name(&of.root).1);
        of.topic.clone().unwrap_or_else(usual)
    });
    for topic in config.messages.iter().map(|messages| messages.topic.clone()).chain(events) {
        if !topics.contains(&topic) {
            topics.push(topic);
        }
    }
    Ok(topics)
}

/// A finding per event: complete, or what it lacks; what is wrong with the mapping as a whole comes first, with its place in the file.
/// And one per table that the replica has.
fn of_mapping(config: &Config, catalog: &Catalog, findings: &mut Findings) {
    let Proof { events, held, .. } = match Rules::prove(config, catalog) {
        Ok(proof) => proof,
        Err(misfits) => {
            findings.events = misfits.into_iter().map(|misfit| of_misfit(config, misfit)).collect();
            return;
        }
    };
    findings.events = events.iter().map(|sheet| of_event(config, sheet).about(&*sheet.event)).collect();
    findings.replica = held.iter().map(of_held).collect();
    (findings.sheets, findings.held) = (events, held);
}

fn of_event(config: &Config, sheet: &EventSheet) -> Finding {
    let (key, fields) = (sheet.key.join(", "), sheet.fields.len());
    let what =
        format!("{} of {} -> {}, key {key}, {fields} fields", sheet.when.join(" or "), sheet.aggregate, sheet.topic);
    if !sheet.needs.is_empty() {
        let lacking: Vec<_> =
            sheet.needs.iter().map(|need| of_misfit(config, need.clone().into()).to_string()).collect();
        return Finding::cross(format!("{what}; it cannot have what it needs"), lacking.join("\n"));
    }
    match (sheet.may_stop.as_slice(), sheet.replica.is_empty()) {
        ([], true) => Finding::ok(format!("{what}; complete in its transaction")),
        ([], false) => Finding::ok(format!("{what}; complete with the replica")),
        (stops, _) => Finding::warning(format!("{what}; the run stops if this happens"), stops.join("\n")),
    }
}

/// What a table that the replica has costs.
fn of_held(held: &HeldSheet) -> Finding {
    let size = match (held.rows, held.bytes) {
        (Some(rows), Some(bytes)) => {
            format!("about {} and {} in the topic", counted(rows, "row", "rows"), ByteSize::b(bytes))
        }
        _ => "its size is not known before ANALYZE".to_owned(),
    };
    let what = format!("{}; {size}; for {}", held.columns.join(", "), held.events.join(", "));
    Finding::ok(what).about(&*held.table)
}

fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// `file:line:column` and the words; what mends it comes after the last semicolon.
fn of_misfit(config: &Config, misfit: Misfit) -> Finding {
    let mut fault = config.fault(misfit);
    fault.excerpt = None;
    let text = fault.to_string();
    match text.rsplit_once("; ") {
        Some((what, mend)) => Finding::cross(what.to_owned(), mend.to_owned()),
        None => Finding::cross(text, "docs/mapping.md has an example of each key".to_owned()),
    }
}

async fn ask_kafka(config: &Config, topics: oneshot::Receiver<Vec<String>>) -> Findings {
    let owned = config.clone();
    let end = Instant::now() + ANSWER_WITHIN - GRACE;
    let topics = tokio::time::timeout(TOPICS_WITHIN, topics).await.ok().and_then(Result::ok).unwrap_or_default();
    let (tell, answer) = oneshot::channel();
    // librdkafka waits in its own way, so it waits on a thread of its own, and ends before we stop waiting for it. Not on
    // one of the runtime's: their end is waited for.
    thread::spawn(move || {
        let _ = tell.send(kafka::admin::inspect(&owned, &topics, end - Instant::now()));
    });
    let mut findings = Findings::default();
    let asked = async {
        let report = answer.await.expect("inspect does not panic");
        (findings.sink, findings.topics) = of_kafka(&report, &config.sink.kafka);
    };
    let late = late(asked, "Kafka", "sink.kafka.brokers").await;
    findings.sink.extend(late);
    findings
}

/// Both at once; but of a Kafka that cannot be reached nobody waits to hear the same again.
async fn ask_kafka_and_progress(
    config: &Config,
    topics: oneshot::Receiver<Vec<String>>,
) -> (Findings, Option<Result<Option<Progress>, SinkError>>) {
    let mut kafka = std::pin::pin!(ask_kafka(config, topics));
    let mut progress = std::pin::pin!(ask_progress(config));
    tokio::select! {
        progress = &mut progress => (kafka.await, progress),
        kafka = &mut kafka => {
            let progress = if kafka.has_cross("sink") { None } else { progress.await };
            (kafka, progress)
        }
    }
}

/// How far events have come; `None` when Kafka does not say, which is told elsewhere.
async fn ask_progress(config: &Config) -> Option<Result<Option<Progress>, SinkError>> {
    let admission = Arc::default();
    let asked = kafka::progress::read(&config.sink.kafka, &config.name, &admission);
    tokio::time::timeout(ANSWER_WITHIN - GRACE, asked).await.ok()
}

/// What is promised to whom, and whether the slot and the progress record fit together.
fn of_delivery(
    config: &Config,
    slot: Option<&SlotSeen>,
    progress: Option<Result<Option<Progress>, SinkError>>,
    kafka: &[Finding],
) -> (Vec<Finding>, Option<Finding>) {
    let promise = match config.sink.kafka.delivery {
        Delivery::ExactlyOnce => {
            "exactly_once, for consumers with isolation.level=read_committed; Java's read uncommitted unless told otherwise"
        }
        Delivery::AtLeastOnce => {
            "at_least_once: a crash repeats whole transactions, which consumers must drop themselves"
        }
    };
    let mut findings = vec![Finding::ok(promise.to_owned()).about("delivery")];
    let progress = match progress {
        Some(Ok(progress)) => progress,
        // What keeps us from Kafka altogether has been told.
        Some(Err(error)) if kafka.iter().all(|finding| finding.level != Level::Cross) => {
            let text = format!("failed to {}", told(&error));
            let (what, mend) = text.split_once("; ").unwrap_or((&text, "see that the topic is ours alone"));
            findings.push(Finding::cross(what.to_owned(), mend.to_owned()).about("progress"));
            return (findings, None);
        }
        Some(Err(_)) | None => return (findings, None),
    };
    let gap = slot.and_then(|slot| {
        let system_identifier = slot.system_identifier.clone();
        let here = system_identifier.map(|id| Origin { system_identifier: id, timeline: 0, slot: config.slot() });
        let same = here.map_or(Ok(()), |here| progress::same_system(progress.as_ref(), &here));
        let fits = same.and_then(|()| progress::may_begin(progress.as_ref(), slot.confirmed, &config.slot()));
        fits.err().or_else(|| progress::slot_ahead(progress.as_ref()?, slot.confirmed?, &config.slot()).err())
    });
    if let Some(gap) = gap {
        let text = format!("failed to {gap}");
        let what = text.split(": offshoot resume").next().unwrap_or(&text).to_owned();
        return (findings, Some(Finding::cross(what, gap.mend().to_owned()).about("progress")));
    }
    findings.push(match &progress {
        None => Finding::ok("none yet: the first `run` makes its topic".into()).about("progress"),
        Some(Progress { reached: Reached::Creating, .. }) => {
            Finding::ok("the slot is to be made; nothing is published".into()).about("progress")
        }
        Some(progress @ Progress { reached: Reached::End { end, .. }, epoch, .. }) => {
            let what = format!("published up to {end} in epoch {epoch}, as of {}", progress::date(progress.time));
            Finding::ok(what).about("progress")
        }
    });
    (findings, None)
}

/// Waits for `ANSWER_WITHIN`: a side that does not answer is a cross, and what it has said until then stays.
async fn late(asked: impl Future<Output = ()>, server: &str, key: &str) -> Option<Finding> {
    tokio::time::timeout(ANSWER_WITHIN, asked).await.err()?;
    let what = format!("{server} did not answer within {} s", ANSWER_WITHIN.as_secs());
    Some(Finding::cross(
        what,
        format!("see that `{key}` names it, that it is not hung, and that the network lets us through"),
    ))
}

impl Findings {
    /// Sections of the page, in order: title, side of the JSON, findings.
    fn sections(&self) -> [(&'static str, &'static str, &[Finding]); 7] {
        [
            ("Config", "config", &self.config),
            ("Postgres", "source", &self.source),
            ("Tables", "source", &self.tables),
            ("Events", "config", &self.events),
            ("Replica", "config", &self.replica),
            ("Kafka", "sink", &self.sink),
            ("Topics", "sink", &self.topics),
        ]
    }

    /// What is promised of the event that a finding is about.
    fn sheet(&self, section: &str, finding: &Finding) -> Option<&EventSheet> {
        self.sheets.iter().find(|sheet| section == "Events" && sheet.event == finding.about)
    }

    /// What is kept of the table that a finding is about.
    fn held(&self, section: &str, finding: &Finding) -> Option<&HeldSheet> {
        self.held.iter().find(|held| section == "Replica" && held.table == finding.about)
    }

    fn has_cross(&self, side: &str) -> bool {
        let of_side = self.sections().into_iter().filter(|(_, of, _)| *of == side);
        of_side.flat_map(|(.., findings)| findings).any(|finding| finding.level == Level::Cross)
    }

    /// 0 without a cross, else the code of the side that has the first one.
    pub fn exit(&self) -> Exit {
        let codes = [("config", Exit::Config), ("source", Exit::Source), ("sink", Exit::Sink)];
        codes.into_iter().find(|(side, _)| self.has_cross(side)).map_or(Exit::Clean, |(_, exit)| exit)
    }

    /// As a JSON array: `side` (`config`, `source` or `sink`), `level` (`ok`, `warning` or `cross`), `about`, `what`,
    /// `mend`; of an event its `sheet`, of a table that the replica has what is `held`.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Object<'a> {
            side: &'static str,
            #[serde(flatten)]
            finding: &'a Finding,
            /// Of an event.
            #[serde(skip_serializing_if = "Option::is_none")]
            sheet: Option<&'a EventSheet>,
            /// Of a table that the replica has.
            #[serde(skip_serializing_if = "Option::is_none")]
            held: Option<&'a HeldSheet>,
        }
        let sections = self.sections();
        let object = |title: &str, side, finding| {
            let (sheet, held) = (self.sheet(title, finding), self.held(title, finding));
            Object { side, finding, sheet, held }
        };
        let objects =
            sections.iter().flat_map(|(title, side, all)| all.iter().map(move |finding| object(title, side, finding)));
        let objects: Vec<_> = objects.collect();
        serde_json::to_string_pretty(&objects).expect("findings are plain text and enums") + "\n"
    }

    /// For people, with colours; print it through `anstream`, which takes them out where they are not wanted. A terminal
    /// of a width has columns and wrapped lines; a file has a line a finding, to be searched.
    pub fn page(&self, width: Option<usize>) -> String {
        let mut page = String::new();
        let bold = Style::new().bold();
        for (title, _, findings) in self.sections() {
            if findings.is_empty() && !["Postgres", "Kafka"].contains(&title) {
                continue;
            }
            writeln!(page, "{bold}{title}{bold:#}\n").expect("writing to a String cannot fail");
            let short = |finding: &&Finding| finding.about.chars().count() <= ABOUT_WIDTH_MAX;
            let widest = findings.iter().filter(short).map(|finding| finding.about.chars().count()).max();
            let column = width.and(widest).map_or(0, |widest| widest + 1);
            let mut well = 0;
            for finding in findings {
                well += usize::from(finding.level == Level::Ok);
                let of_many = ["Tables", "Topics"].contains(&title) && well > OK_LINES_MAX && finding.mend.is_none();
                if !(of_many && finding.level == Level::Ok) {
                    paint(finding, column, width, &mut page);
                }
                if let Some(sheet) = self.sheet(title, finding) {
                    paint_sheet(sheet, &mut page);
                }
            }
            if well > OK_LINES_MAX && ["Tables", "Topics"].contains(&title) {
                let more = well - OK_LINES_MAX;
                writeln!(page, "    and {more} more that are well; --json has them all").expect("as above");
            }
            page.push('\n');
        }
        page + &self.verdict() + "\n"
    }

    fn verdict(&self) -> String {
        let all = || self.sections().into_iter().flat_map(|(.., findings)| findings);
        let count = |level| all().filter(|finding| finding.level == level).count();
        let counted = |n: usize, one: &str, many: &str| counted(n as u64, one, many);
        let (level, text) = match (count(Level::Cross), count(Level::Warning)) {
            (0, 0) => (Level::Ok, "ready to run".into()),
            (0, warnings) => (Level::Ok, format!("ready to run, with {}", counted(warnings, "warning", "warnings"))),
            (crosses, _) => (Level::Cross, format!("not ready: {} to mend", counted(crosses, "thing", "things"))),
        };
        let style = look(level).1.bold();
        format!("{style}{text}{style:#}")
    }
}

fn look(level: Level) -> (&'static str, Style) {
    let (mark, colour) = match level {
        Level::Ok => ("✓", AnsiColor::Green),
        Level::Warning => ("!", AnsiColor::Yellow),
        Level::Cross => ("✗", AnsiColor::Red),
    };
    (mark, colour.on_default())
}

/// Field, type and source of each value in columns, and what it all rests on.
fn paint_sheet(sheet: &EventSheet, page: &mut String) {
    let (dim, name) = (Style::new().dimmed(), AnsiColor::Blue.on_default());
    let json_type = |field: &FieldSheet| format!("{}{}", field.json_type, if field.nullable { " or null" } else { "" });
    let widest = |of: &dyn Fn(&FieldSheet) -> String| {
        sheet.fields.iter().map(|field| of(field).chars().count()).max().unwrap_or(0)
    };
    let (fields, types) = (widest(&|field| field.field.clone()), widest(&json_type));
    for field in &sheet.fields {
        let (of, from) = (json_type(field), format!("{}: {}", field.path, field.from));
        writeln!(page, "      {name}{:<fields$}{name:#}  {of:<types$}  {dim}{from}{dim:#}", field.field)
            .expect("writing to a String cannot fail");
    }
    let order = format!("order: {}", sheet.order);
    for line in [order].iter().chain(&sheet.because) {
        writeln!(page, "      {dim}{line}{dim:#}").expect("as above");
    }
    for FromReplica { table, of, why, instead } in &sheet.replica {
        let or = instead.as_ref().map_or_else(String::new, |sql| format!("; or {sql}"));
        writeln!(page, "      {dim}needs the replica of {table} for {}: {why}{or}{dim:#}", of.join(", "))
            .expect("as above");
    }
    if !sheet.because.is_empty() {
        writeln!(page, "      {dim}but {}{dim:#}", sheet.caveat).expect("as above");
    }
}

/// A mark, what it is about in a column of its own, what was found, and below it what mends it: lines to be pasted in
/// one colour and whole, the rest as text.
fn paint(finding: &Finding, column: usize, width: Option<usize>, page: &mut String) {
    let (mark, style) = look(finding.level);
    let (bold, paste, dim) = (style.bold(), AnsiColor::Cyan.on_default(), Style::new().dimmed());
    let about = if finding.about.is_empty() { String::new() } else { format!("{}:", finding.about) };
    let label = match about.as_str() {
        "" => String::new(),
        about => format!("{about:<column$} "),
    };
    // A name that is too long for its column has what was found below it, where the others have it.
    let indent = if label.is_empty() { 4 } else { 4 + label.chars().count().min(column.max(1) + 1) };
    let mut lines = wrapped(&format!("{label}{}", finding.what), 4, indent, width);
    let first = lines.remove(0);
    writeln!(page, "  {bold}{mark}{bold:#} {first}").expect("writing to a String cannot fail");
    for line in lines {
        writeln!(page, "{:indent$}{line}", "").expect("writing to a String cannot fail");
    }
    for line in finding.mend.iter().flat_map(|mend| mend.lines()) {
        if is_pasted(line) {
            writeln!(page, "      {paste}{line}{paste:#}").expect("writing to a String cannot fail");
            continue;
        }
        for line in wrapped(line, 6, 6, width) {
            writeln!(page, "      {dim}{line}{dim:#}").expect("writing to a String cannot fail");
        }
    }
}

/// Whether a line of a mend is SQL or a command: it ends as a statement does, or is a tool's.
fn is_pasted(line: &str) -> bool {
    let statement = line.split("  -- ").next().unwrap_or_default();
    statement.ends_with(';') || line.starts_with("kafka-")
}

/// Breaks a text between words, `first` columns being taken on the first line and `rest` on those below.
fn wrapped(text: &str, first: usize, rest: usize, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else { return vec![text.to_owned()] };
    let mut lines = vec![String::new()];
    for word in text.split_inclusive(' ') {
        let taken = if lines.len() == 1 { first } else { rest };
        let line = lines.last_mut().expect("there is always one");
        if line.is_empty() || taken + line.chars().count() + word.trim_end().chars().count() <= width {
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// The terminal's width; `None` when nobody looks on.
fn width() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    // SAFETY: the call fills the struct, whose every value is legal, or fails.
    let columns = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        if libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) == 0 { size.ws_col as usize } else { 0 }
    };
    Some(if columns == 0 { 80 } else { columns.clamp(40, WIDTH_MAX) })
}

/// What Kafka's report says, in order: the cluster and what stands in the way of all, then the topics.
pub fn of_kafka(report: &KafkaReport, config: &KafkaConfig) -> (Vec<Finding>, Vec<Finding>) {
    let (mut findings, mut topics) = (Vec::new(), Vec::new());
    if !report.brokers.is_empty() {
        let addresses: Vec<_> = report.brokers.iter().map(|broker| broker.address.as_str()).collect();
        let brokers = if addresses.len() == 1 { "broker" } else { "brokers" };
        findings.push(Finding::ok(format!("{} {brokers}: {}", addresses.len(), addresses.join(", "))));
        let controller = report.controller.map_or("none is known".into(), |id| format!("broker {id}"));
        let id = report.cluster_id.as_deref().unwrap_or("without an id");
        findings.push(Finding::ok(format!("{id}, controller {controller}")).about("cluster"));
    }
    for topic in &report.topics {
        let asked = asked_for(config);
        let (is, found) = match &topic.found {
            Some(found) => (format!("partitions {}, replication {}", found.partitions, found.replication), found),
            None if config.topics.create => {
                let replication = config.topics.replication;
                let replicas = if replication == -1 { "the broker's own".into() } else { replication.to_string() };
                let is = format!("not there; `run` makes it: partitions {}, replication {replicas}", asked.partitions);
                (is, &asked)
            }
            // The report has it among its faults.
            None => continue,
        };
        let about = format!("topic {}", topic.name);
        let all = of_topic(&topic.name, &is, found, config);
        topics.extend(all.into_iter().map(|finding| finding.about(about.clone())));
    }
    if report.unseen > 0 {
        let what = format!("{} topics were not looked at: there was no time for all", report.unseen);
        topics.push(Finding::warning(what, "a broker is slow to answer: ask again".into()));
    }
    let (rights, faults): (Vec<_>, Vec<_>) =
        report.faults.iter().partition(|fault| fault.kind == KafkaFaultKind::Authorization);
    for fault in faults {
        let of_topic = fault.kind == KafkaFaultKind::Topic;
        let side = if of_topic { &mut topics } else { &mut findings };
        side.push(Finding::cross(fault.what.clone(), fault.mend.clone()));
    }
    if !report.brokers.is_empty() {
        findings.push(of_rights(report, &rights).about("rights"));
    }
    (findings, topics)
}

/// One finding for all rights: they are given together.
fn of_rights(report: &KafkaReport, missing: &[&KafkaFault]) -> Finding {
    let commands = report.acls.join("\n");
    match (missing, &report.principal) {
        ([], None) => Finding::ok("the config logs in as nobody, and nothing was refused".into()),
        ([], Some(principal)) => Finding {
            mend: Some(commands),
            ..Finding::ok(format!("nothing was refused to {principal}; all that it needs where an authorizer asks:"))
        },
        ([first, rest @ ..], principal) => {
            let who = principal.as_deref().unwrap_or("User:ANONYMOUS");
            let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
            Finding::cross(format!("not granted to {who}: {}{more}", first.what), commands)
        }
    }
}

/// A topic as the config would have it made.
fn asked_for(config: &KafkaConfig) -> TopicFound {
    let asked = &config.topics;
    let property = |name: &str| asked.properties.get(name).map(|value| value.0.clone());
    let number = |name| property(name).and_then(|value| value.parse().ok());
    TopicFound {
        partitions: asked.partitions,
        replication: asked.replication,
        leaderless: 0,
        cleanup_policy: property("cleanup.policy"),
        retention_ms: number("retention.ms"),
        retention_bytes: number("retention.bytes"),
        min_insync_replicas: number("min.insync.replicas").filter(|_| asked.replication > 0).map(|min| min as i32),
        message_bytes_max: number("max.message.bytes").map(|max| max as u64),
    }
}

/// A topic in one line, or a line for each thing that somebody should know of it.
fn of_topic(name: &str, is: &str, found: &TopicFound, config: &KafkaConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut warn = |what: String, mend: &str| findings.push(Finding::warning(format!("{is}; {what}"), mend.into()));
    if found.leaderless > 0 {
        let mend = "its records wait until a broker that has them is back";
        warn(format!("{} without a leader", found.leaderless), mend);
    }
    if found.partitions != config.topics.partitions {
        let mend = "it is used as it is; adding partitions would move keys and end their order";
        warn(format!("the config says partitions {}", config.topics.partitions), mend);
    }
    if let Some(policy) = found.cleanup_policy.as_ref().filter(|policy| policy.contains("compact")) {
        let mend = "older records of a key go when newer are there: a state, not a history; records without a key are \
                    refused";
        warn(format!("cleanup.policy is {policy}"), mend);
    }
    let deletes = found.cleanup_policy.as_ref().is_none_or(|policy| policy.contains("delete"));
    let kept = |ms: i64| humantime::format_duration(Duration::from_millis(ms.unsigned_abs()));
    if let Some(ms) = found.retention_ms.filter(|ms| deletes && (0..RETENTION_MS_MIN).contains(ms)) {
        let mend = "a consumer that is away for longer misses events: raise it";
        warn(format!("records are kept for {} (retention.ms)", kept(ms)), mend);
    }
    if let Some(bytes) = found.retention_bytes.filter(|bytes| deletes && *bytes >= 0) {
        let mend = "a consumer that is away while more is written misses events: raise it";
        warn(format!("a partition keeps {bytes} bytes (retention.bytes)"), mend);
    }
    if let Some(bytes) = found.message_bytes_max.filter(|bytes| *bytes < MESSAGE_BYTES_USUAL) {
        let mend = "a larger row stops the stream with exit code 4: raise it, unless all rows are small";
        warn(format!("records of up to {bytes} bytes (max.message.bytes)"), mend);
    }
    match found.min_insync_replicas {
        Some(min) if min > found.replication => {
            let (brokers, replication) = (&config.brokers, found.replication);
            let mend = format!(
                "kafka-configs --bootstrap-server {brokers} --alter --topic {name} --add-config \
                 min.insync.replicas={replication}\nor add replicas: brokers before 4.0 refuse every record"
            );
            findings.push(Finding::cross(format!("{is}; min.insync.replicas is {min}"), mend));
        }
        Some(1) if found.replication > 1 => {
            let mend = "an acknowledged record may be on one broker alone, and lost with it: raise it to 2";
            warn("min.insync.replicas is 1".into(), mend);
        }
        _ => {}
    }
    if findings.is_empty() {
        let kept = found.retention_ms.filter(|ms| deletes && *ms >= 0).map(|ms| format!(", kept for {}", kept(ms)));
        let max = found.message_bytes_max.map(|max| format!(", records of up to {}", ByteSize::b(max)));
        findings.push(Finding::ok([is, &kept.unwrap_or_default(), &max.unwrap_or_default()].concat()));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::admin::{BrokerReport, KafkaFault, KafkaFaultKind, TopicReport};

    fn findings() -> Findings {
        Findings {
            source: vec![
                Finding::ok("PostgreSQL 17.5, database shop".into()).about("server"),
                Finding::cross(
                    "replica".into(),
                    "ALTER SYSTEM SET wal_level = logical;\n-- then restart the server".into(),
                )
                .about("wal_level"),
            ],
            sink: vec![Finding::ok("1 broker: k:9092".into())],
            topics: vec![
                Finding::warning("partitions 3".into(), "it is used as it is".into()).about("topic shop.public.orders"),
            ],
            ..Findings::default()
        }
    }

    fn plain(page: &str) -> String {
        anstream::adapter::strip_str(page).to_string()
    }

    #[test]
    fn the_page_marks_each_finding_and_indents_what_mends_it() {
        assert_eq!(
            plain(&findings().page(None)),
            "\
Postgres

  ✓ server: PostgreSQL 17.5, database shop
  ✗ wal_level: replica
      ALTER SYSTEM SET wal_level = logical;
      -- then restart the server

Kafka

  ✓ 1 broker: k:9092

Topics

  ! topic shop.public.orders: partitions 3
      it is used as it is

not ready: 1 thing to mend
"
        );
    }

    #[test]
    fn a_terminal_has_columns_and_no_line_wider_than_it_is() {
        let page = plain(&findings().page(Some(40)));
        assert!(page.contains("\n  ✓ server:    PostgreSQL 17.5, database\n               shop\n"), "{page}");
        assert!(page.contains("\n  ✗ wal_level: replica\n"), "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 45), "{page}");
        assert!(page.contains("      ALTER SYSTEM SET wal_level = logical;\n"), "what is pasted is whole: {page}");
    }

    #[test]
    fn many_that_are_well_are_counted_and_none_that_is_not() {
        let mut tables: Vec<_> = (0..300).map(|n| Finding::ok("key id".into()).about(format!("public.t{n}"))).collect();
        tables.push(Finding::warning("no key".into(), "add one".into()).about("public.z"));
        let page = plain(&Findings { tables, ..Findings::default() }.page(None));
        assert!(page.contains("public.t19:") && !page.contains("public.t20:"), "{page}");
        assert!(page.contains("  ! public.z: no key\n") && page.contains("and 280 more that are well"), "{page}");
    }

    #[test]
    fn the_verdict_follows_the_worst_level() {
        let mut findings = findings();
        assert_eq!(plain(&findings.verdict()), "not ready: 1 thing to mend");
        findings.source.pop();
        assert_eq!(plain(&findings.verdict()), "ready to run, with 1 warning");
        findings.topics.pop();
        assert_eq!(plain(&findings.verdict()), "ready to run");
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
            plain(&findings.page(None))
                .starts_with("Config\n\n  ✗ failed to find a table\n      the nearest is a.b\n\nPostgres\n")
        );
        assert!(findings.json().contains("\"side\": \"config\""));
    }

    #[test]
    fn json_is_an_array_of_objects() {
        let json: serde_json::Value = serde_json::from_str(&findings().json()).unwrap();
        assert_eq!(
            json[3],
            serde_json::json!({
                "side": "sink",
                "level": "warning",
                "about": "topic shop.public.orders",
                "what": "partitions 3",
                "mend": "it is used as it is",
            })
        );
        assert_eq!((json[0]["side"].as_str(), json[0]["mend"].is_null()), (Some("source"), true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_does_not_answer_is_a_cross() {
        let told = late(std::future::pending(), "Postgres", "source.postgres").await.unwrap();
        assert_eq!((told.what.as_str(), told.level), ("Postgres did not answer within 8 s", Level::Cross));
        assert_eq!(late(async {}, "Postgres", "source.postgres").await, None);
    }

    #[test]
    fn kafka_is_told_as_cluster_topics_and_faults() {
        let config = KafkaConfig::at("k:9092", Delivery::AtLeastOnce);
        let topic = |name: &str, found| TopicReport { name: name.into(), found };
        let found = TopicFound { partitions: 6, replication: 3, ..TopicFound::default() };
        let fault = |kind, what: &str| KafkaFault { kind, what: what.into(), mend: "mend it".into() };
        let mut report = KafkaReport {
            brokers: vec![BrokerReport { id: 1, address: "k:9092".into() }],
            topics: vec![
                topic("a", Some(found.clone())),
                topic("b", Some(TopicFound { partitions: 3, ..found.clone() })),
                topic("c", Some(TopicFound { min_insync_replicas: Some(4), ..found.clone() })),
                topic("d", Some(TopicFound { cleanup_policy: Some("compact".into()), ..found.clone() })),
                topic("e", Some(TopicFound { leaderless: 2, ..found.clone() })),
                topic("f", None),
                topic("g", Some(TopicFound { retention_ms: Some(3_600_000), ..found.clone() })),
                topic("h", Some(TopicFound { min_insync_replicas: Some(1), ..found.clone() })),
                topic("i", Some(TopicFound { message_bytes_max: Some(1000), ..found.clone() })),
                topic("j", Some(TopicFound { retention_bytes: Some(7), ..found })),
            ],
            principal: Some("User:cdc".into()),
            acls: vec!["kafka-acls --add".into()],
            faults: vec![
                fault(KafkaFaultKind::Authorization, "topic k"),
                fault(KafkaFaultKind::Authorization, "topic l"),
            ],
            ..KafkaReport::default()
        };
        let page = |report: &KafkaReport| {
            let (sink, topics) = of_kafka(report, &config);
            plain(&Findings { sink, topics, ..Findings::default() }.page(None))
        };
        assert_eq!(
            page(&report),
            "\
Postgres


Kafka

  ✓ 1 broker: k:9092
  ✓ cluster: without an id, controller none is known
  ✗ rights: not granted to User:cdc: topic k, and 1 more
      kafka-acls --add

Topics

  ✓ topic a: partitions 6, replication 3
  ! topic b: partitions 3, replication 3; the config says partitions 6
      it is used as it is; adding partitions would move keys and end their order
  ✗ topic c: partitions 6, replication 3; min.insync.replicas is 4
      kafka-configs --bootstrap-server k:9092 --alter --topic c --add-config min.insync.replicas=3
      or add replicas: brokers before 4.0 refuse every record
  ! topic d: partitions 6, replication 3; cleanup.policy is compact
      older records of a key go when newer are there: a state, not a history; records without a key are refused
  ! topic e: partitions 6, replication 3; 2 without a leader
      its records wait until a broker that has them is back
  ✓ topic f: not there; `run` makes it: partitions 6, replication the broker's own
  ! topic g: partitions 6, replication 3; records are kept for 1h (retention.ms)
      a consumer that is away for longer misses events: raise it
  ! topic h: partitions 6, replication 3; min.insync.replicas is 1
      an acknowledged record may be on one broker alone, and lost with it: raise it to 2
  ! topic i: partitions 6, replication 3; records of up to 1000 bytes (max.message.bytes)
      a larger row stops the stream with exit code 4: raise it, unless all rows are small
  ! topic j: partitions 6, replication 3; a partition keeps 7 bytes (retention.bytes)
      a consumer that is away while more is written misses events: raise it

not ready: 2 things to mend
"
        );
        report.faults.clear();
        assert!(page(&report).contains("✓ rights: nothing was refused to User:cdc"), "{}", page(&report));
        report.principal = None;
        assert!(page(&report).contains("✓ rights: the config logs in as nobody"), "{}", page(&report));
    }
}
