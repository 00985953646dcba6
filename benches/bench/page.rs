//! Results -> a page for people, in Markdown.

use std::fmt::Write as _;

use crate::{
    aims,
    machine::About,
    readers::{Kind, Reader},
    results::{Drained, Results},
};

/// What stands between these two lines is written by people, and stays.
const NOTES: &str = "<!-- notes: written by hand, kept by `make benchmarks` -->";
const NOTES_END: &str = "<!-- end of notes -->";

/// Above it somebody else has worked on the machine.
const LOAD_MAX: f64 = 0.8;

const WHO: &str = "\
Each reader has a slot of its own from before the backlog was written, and all take turns in one run: what two runs say of one machine
differs more than what is measured. Figures are medians of the rounds, the memory the most of all rounds. Shown are ratios to *plain*; other
machines give other rates.

| reader | what it does |
|---|---|
| eager | reads what is there as fast as it can, and throws it away |
| plain | waits half a millisecond between reads of 16 KiB at most, and throws everything away |
| best | Offshoot's own replication session, whose reads adapt to the segments that come; throws everything away |
| `pg_recvlogical` | Postgres' own client, writing into a pipe |
| `changes` | Offshoot: a Debezium record per row |
| `events` | Offshoot, exactly once: domain events that the transaction says all of |
| `events`, replica | Offshoot, exactly once: domain events with old values and look-ups, from the replica |

Rates count row changes from the first to the last: of Offshoot by the times at which the broker has appended the records, which are all
read back and counted; of the other readers by our clock. Of `events` that means rows, also where four of them make one event. *Start to end*
counts from when the reader streams: what the walsender takes before its first row is in it. Processor time is what the kernel counts for the process
(of eager, plain and best for the thread that reads), without its start-up, and for the other two that share the cores: the walsender that serves it, since that connected,
and Kafka's broker meanwhile. Memory is the kernel's `VmHWM`. *Segments* are TCP's, a row: the walsender sends every
message by itself, and a reader that lets many of them travel in one segment makes the walsender faster. Reads of 16 KiB every half a millisecond are also a
limit of their own, about 29 MB/s: of large rows *best* says more than *plain*. Debezium, where it is in the tables, has one turn, after all others'.
";

/// The whole page.
pub(crate) fn page(results: &Results, notes: &str) -> String {
    let mut page = String::from("# How fast\n\n");
    let _ = writeln!(
        page,
        "Made by `make benchmarks` and not written by hand; the same figures are in [benchmarks.json](benchmarks.json). `make bench` measures again and\n\
         prints, with servers of its own, and `make help` says how to ask for a part of it.\n"
    );
    if !results.drained.is_empty() {
        let _ = writeln!(page, "![Rates by shape of the backlog, as ratios to a plain reader](benchmarks.svg)\n");
    }
    if let Some(doubt) = doubt(&results.about) {
        let _ = writeln!(
            page,
            "> **{doubt}** Not to be quoted: `make benchmarks` on a machine that does nothing else makes figures that may be.\n"
        );
    }
    about(&mut page, &results.about);
    let aims = aims::of(results);
    if !aims.is_empty() {
        let _ = writeln!(
            page,
            "## Aims\n\nOn two cores that Postgres, Kafka and Offshoot share.\n\n| what | aim | measured | met |\n|---|---|---|---|"
        );
        for aim in aims {
            let met = if aim.met { "yes" } else { "**no**" };
            let _ = writeln!(page, "| {} | {} | {} | {met} |", aim.what, aim.wanted, aim.measured);
        }
    }
    let _ = writeln!(page, "\n{NOTES}\n{}\n{NOTES_END}\n", notes.trim());
    if !results.drained.is_empty() {
        let _ = writeln!(page, "## Backlogs\n\n{WHO}");
        results.drained.iter().for_each(|drained| table(&mut page, drained));
    }
    if let Some(tls) = &results.tls {
        let _ = writeln!(
            page,
            "## TLS to Postgres\n\nThe backlog of ten rows a transaction again, with and without `sslmode=require`.\n"
        );
        table(&mut page, tls);
        for kind in [Kind::Best, Kind::ChangesExactlyOnce] {
            let rates = [true, false].map(|tls_on| tls.rate(Reader { tls: tls_on, ..Reader::of(kind) }));
            if let [Some(with), Some(without)] = rates {
                let _ = writeln!(page, "{} with TLS: {:.2} of its rate without.\n", kind.title(), with / without);
            }
        }
    }
    latency(&mut page, results);
    recovery(&mut page, results);
    life(&mut page, results);
    page.truncate(page.trim_end().len());
    page + "\n"
}

/// What people have written into a page.
pub(crate) fn notes(page: &str) -> &str {
    let after = page.split_once(NOTES).map_or("", |(_, after)| after);
    after.split_once(NOTES_END).map_or("", |(notes, _)| notes)
}

/// Why these figures say little.
fn doubt(about: &About) -> Option<String> {
    if about.load > LOAD_MAX {
        return Some(format!("The machine was busy: a load of {} when this began.", about.load));
    }
    let is_whole = matches!(about.command.as_str(), "make benchmarks" | "make benchmarks PEERS=\"1\"");
    (!is_whole).then(|| "A part of what is measured, or less of it than usual.".to_owned())
}

fn about(page: &mut String, about: &About) {
    let pairs = |pairs: &[(String, String)]| {
        pairs.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join("; ")
    };
    let _ = writeln!(page, "| | |\n|---|---|");
    let _ = writeln!(page, "| measured | {}, by `{}`, in {:.0} minutes |", about.date, about.command, about.minutes);
    let _ = writeln!(page, "| commit | {} |", about.commit);
    let _ = writeln!(page, "| machine | {} |", pairs(&about.machine));
    let _ = writeln!(page, "| versions | {} |", pairs(&about.versions));
    for (name, value) in &about.settings {
        let _ = writeln!(page, "| {name} | {value} |");
    }
    page.push('\n');
}

fn table(page: &mut String, drained: &Drained) {
    let rounds = drained.reads.iter().map(|read| read.turns.len()).max().unwrap_or_default();
    let _ = writeln!(
        page,
        "### {}: {}\n\n{} rows, {rounds} round{}.",
        drained.label,
        drained.about,
        thousands(drained.rows as f64),
        if rounds == 1 { "" } else { "s" }
    );
    if drained.single {
        let _ = writeln!(
            page,
            "Nothing of it may be published before all of it was read, so rates count from start to end. *Best* has as much memory as the reader beside it, *plain* the server's 64 MB."
        );
    }
    let _ = writeln!(
        page,
        "\n| reader | rows/s | of plain | of best | start to end, s | CPU µs a row | walsender µs | Kafka µs | peak MiB | segments a row |\n|---|---|---|---|---|---|---|---|---|---|"
    );
    let shown =
        |value: Option<f64>, decimals: usize| value.map_or(String::new(), |value| format!("{value:.decimals$}"));
    for read in drained.reads.iter().filter(|read| !read.turns.is_empty()) {
        let rate = drained.rate(read.reader).map_or(String::new(), thousands);
        let to = |kind| shown(drained.ratio(read.reader, kind), 2);
        let whole = crate::results::median(read.turns.iter().map(|turn| turn.seconds_streaming));
        let _ = writeln!(
            page,
            "| {} | {rate} | {} | {} | {} | {} | {} | {} | {} | {} |",
            read.reader.title(),
            to(Kind::Plain),
            to(Kind::Best),
            shown(whole, 2),
            shown(read.cpu_microseconds_per_row(), 2),
            shown(read.microseconds_per_row(|turn| turn.walsender_seconds), 2),
            shown(read.microseconds_per_row(|turn| turn.kafka_seconds), 2),
            shown(read.peak_mib(), 1),
            shown(read.segments_per_row(), 2),
        );
    }
    page.push('\n');
}

fn latency(page: &mut String, results: &Results) {
    if results.latency.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "## A commit\n\nFrom just before COMMIT is sent to a consumer that reads committed. What has nothing else in it is librdkafka's on the same\n\
         broker, read by the same consumer: what there is to lose without Offshoot.\n\n| | delivery | a second | p50 ms | p99 ms | max ms | counted |\n|---|---|---|---|---|---|---|"
    );
    for case in &results.latency {
        let delivery = case.delivery.as_deref().map_or(String::new(), |delivery| format!("`{delivery}`"));
        let _ = writeln!(
            page,
            "| {} | {delivery} | {} | {:.1} | {:.1} | {:.1} | {} |",
            case.what, case.per_second, case.p50_ms, case.p99_ms, case.max_ms, case.counted
        );
    }
    page.push('\n');
}

fn recovery(page: &mut String, results: &Results) {
    let Some(recovery) = &results.recovery else { return };
    let _ = writeln!(
        page,
        "## After kill -9\n\nA backlog of {:.0} MiB of log, {} rows of about 1 kB, ten a transaction, `exactly_once`; killed when half of it was\n\
         acknowledged, and started again at once. Times count from the new process.\n\n| | |\n|---|---|",
        recovery.wal_mib,
        thousands(recovery.rows as f64)
    );
    let _ = writeln!(page, "| rows committed before the kill | {} |", thousands(recovery.rows_before as f64));
    let _ = writeln!(page, "| first new record, s | {:.2} |", recovery.seconds_to_first);
    let _ = writeln!(page, "| all of it, s | {:.2} |", recovery.seconds_to_last);
    let _ = writeln!(page, "| seen twice by a reader of committed | {} |", recovery.duplicates);
    let _ = writeln!(page, "| missing | {} |\n", recovery.missing);
}

fn life(page: &mut String, results: &Results) {
    if results.starts.is_empty() && results.idle.is_none() {
        return;
    }
    let _ = writeln!(page, "## Start, and rest\n\n| | |\n|---|---|");
    for starts in &results.starts {
        let (least, most) =
            starts.milliseconds.iter().fold((f64::MAX, 0.0_f64), |(least, most), ms| (least.min(*ms), most.max(*ms)));
        let _ = writeln!(
            page,
            "| from exec to the first record at the broker, `{}`, ms | {:.0}, the median of {} ({least:.0} to {most:.0}) |",
            starts.delivery,
            starts.median(),
            starts.milliseconds.len()
        );
    }
    if let Some(idle) = &results.idle {
        let _ = writeln!(
            page,
            "| processor time of a database that nobody writes to, over {:.0} s | {:.2} % of a core |",
            idle.seconds, idle.cpu_percent
        );
        let _ = writeln!(page, "| its resident memory, MiB | {:.1} |", idle.resident_mib);
    }
    page.push('\n');
}

/// A whole number with commas.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
