//! A backlog and the program -> where its time goes: a flame graph, and its hottest functions in a table.
//!
//!     make profile                   SHAPE=one MODE=events ROWS=500000
//!
//! Linux' perf looks 997 times a second at what each thread of the program does, from when it streams to the last record that
//! is acknowledged, and keeps the stack; `inferno` counts the stacks and draws them. Functions that the compiler has put
//! into their callers are told apart by the debugging information.

#[path = "bench/shapes.rs"]
#[allow(dead_code)]
mod shapes;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use shapes::Shape;
use support::{
    kafka,
    postgres::{self, V17},
    process::{self, Process},
    program::{self, Config, Offshoot},
    wait,
};

const DEADLINE: Duration = Duration::from_secs(600);
const ASK_INTERVAL: Duration = Duration::from_millis(250);
/// Not a round number, so that it does not beat with what happens a thousand times a second.
const SAMPLES_PER_SECOND: &str = "997";
/// How much of a stack is kept with each sample.
const STACK: &str = "dwarf,16384";
const LINES_MAX: usize = 30;

fn main() {
    let text = |name: &str, usual: &str| env::var(name).ok().filter(|text| !text.is_empty()).unwrap_or(usual.into());
    let (name, mode) = (text("SHAPE", "one"), text("MODE", "events"));
    let shape = Shape::named(&name).unwrap_or_else(|| panic!("no SHAPE is {name}"));
    let rows: u64 = text("ROWS", "500000").parse().expect("ROWS is a number");
    let events = match mode.as_str() {
        "events" => Some(shape.events),
        "replica" => Some(shape.look_ups),
        "changes" => None,
        _ => panic!("MODE is changes, events or replica, not {mode}"),
    };
    assert!(events.is_none_or(|events| !events.is_empty()), "{name} has no such events");

    let server = postgres::private(V17, &[("synchronous_commit", "off"), ("shared_buffers", "256MB")]);
    let broker = kafka::private(&kafka::Options { heap: "1g", optimize: true, ..kafka::Options::default() });
    let db = server.create_database();
    db.execute(&shape.schema());
    let tables: Vec<_> = shape.tables.iter().map(|table| format!("public.{table}")).collect();
    let tables: Vec<_> = tables.iter().map(String::as_str).collect();
    let config = program::config("profile", &db.url, broker.address(), &tables);
    let (ends, changes) = config.split_once("changes:").expect("it has changes");
    let way_out = events.map_or(format!("changes:{changes}"), |events| events.replace("NAME", "profile"));
    let config = Config::new(&format!("{ends}{way_out}\n"));

    // The slot first, so that the backlog waits for it.
    let mut offshoot = start(&config);
    offshoot.wait_ready(program::START_MAX);
    if mode == "replica" {
        offshoot.wait_log("has loaded what events need", DEADLINE);
    }
    assert!(offshoot.terminate(program::START_MAX).success());
    let per_transaction = if shape.is_single() { rows } else { shape.per_transaction };
    let transactions = rows / per_transaction;
    db.execute(&shape.backlog(rows, transactions));
    let records = if events.is_some() { rows / shape.per_event } else { rows };

    let dir = process::new_dir("profile");
    let samples = dir.join("perf.data");
    let mut offshoot = start(&config);
    // Not from its start: perf knows the names of threads that are there when it comes.
    offshoot.wait_ready(program::START_MAX);
    let mut command = Command::new("perf");
    command.args(["record", "--freq", SAMPLES_PER_SECOND, "--call-graph", STACK, "--output"]).arg(&samples);
    command.args(["--pid", &offshoot.pid().to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut perf = Process::spawn("perf", command, libc::SIGKILL).expect("`make profile` installs perf");
    offshoot.wait("all records", DEADLINE, |offshoot| {
        // Asked a hundred times a second, its answers would be a part of what is measured.
        let _ = wait::attempt(ASK_INTERVAL, || false);
        (offshoot.metric("offshoot_records_acknowledged_total")? >= records as f64).then_some(())
    });
    let cpu = offshoot.process().cpu_time().expect("it runs");
    perf.signal(libc::SIGINT);
    perf.exit(DEADLINE);
    assert!(offshoot.terminate(program::START_MAX).success());

    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let (stacks, graph) = (target.join("profile.folded"), target.join("profile.svg"));
    let (printed, folded) = (dir.join("printed"), dir.join("folded"));
    let mut perf = Command::new("perf");
    run(perf.args(["script", "--input"]).arg(&samples), &printed);
    run(Command::new("inferno-collapse-perf").arg(&printed), &folded);
    let folded = fs::read_to_string(folded).expect("it was just written");
    let folded: String = folded.lines().map(without_the_way_there).collect();
    fs::write(&stacks, &folded).expect("target is writable");
    let title = format!("{mode}: {rows} rows, {}; {:.2} µs of processor time a row", shape.about, per_row(cpu, rows));
    let mut inferno = Command::new("inferno-flamegraph");
    inferno
        .args(["--title", &title, "--countname", "samples", "--hash", "--inverted", "--minwidth", "0.1"])
        .arg(&stacks);
    run(&mut inferno, &graph);

    println!("\n{title}\n");
    Profile::of(&folded).print();
    println!("\n{} and {}: docs/testing.md tells how to read them.", graph.display(), stacks.display());
}

fn start(config: &Config) -> Offshoot {
    Offshoot::run_again(Path::new(env!("CARGO_BIN_EXE_offshoot")), config)
}

/// Runs a command, whose output goes to a file.
fn run(command: &mut Command, output: &Path) {
    let output = File::create(output).expect("the directory is ours");
    let done = command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped()).output();
    let done = done.unwrap_or_else(|e| panic!("run {command:?}: {e}; `make profile` installs it"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn per_row(cpu: Duration, rows: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / rows as f64
}

fn is_ours(function: &str) -> bool {
    function.trim_start_matches('<').starts_with("offshoot::")
}

/// A thread, a stack and its count, without what starts threads and drives tasks: the stack from the first function on that is
/// ours or librdkafka's.
fn without_the_way_there(line: &str) -> String {
    let (thread, stack) = line.split_once(';').unwrap_or((line, ""));
    let starts = stack.match_indices(';').map(|(at, _)| at + 1);
    let first = std::iter::once(0).chain(starts).find(|at| is_ours(&stack[*at..]) || stack[*at..].starts_with("rd_"));
    format!("{thread};{}\n", &stack[first.unwrap_or(0)..])
}

/// Samples by function.
#[derive(Default)]
struct Profile {
    all: u64,
    threads: BTreeMap<String, u64>,
    /// In the function itself.
    own: BTreeMap<String, u64>,
    /// In the function and in all that it calls.
    whole: BTreeMap<String, u64>,
}

impl Profile {
    /// Of stacks as inferno writes them: a thread, functions from the outermost on, and a count.
    fn of(folded: &str) -> Profile {
        let mut profile = Profile::default();
        for line in folded.lines() {
            let (stack, count) = line.rsplit_once(' ').expect("a stack and a count");
            let count: u64 = count.parse().expect("a count");
            let mut frames = stack.split(';');
            let thread = frames.next().expect("the thread's name");
            profile.all += count;
            *profile.threads.entry(thread.into()).or_default() += count;
            let frames: Vec<_> = frames.collect();
            if let Some(last) = frames.last() {
                *profile.own.entry((*last).into()).or_default() += count;
            }
            // A function that calls itself is there once.
            for frame in frames.into_iter().collect::<BTreeSet<_>>() {
                *profile.whole.entry(frame.into()).or_default() += count;
            }
        }
        profile
    }

    fn print(&self) {
        println!("| thread | % |\n|---|---|");
        self.lines(&self.threads, |_| true);
        println!("\n| function, itself | % |\n|---|---|");
        self.lines(&self.own, |_| true);
        println!("\n| function of ours, with what it calls | % |\n|---|---|");
        self.lines(&self.whole, is_ours);
    }

    fn lines(&self, counts: &BTreeMap<String, u64>, shown: fn(&str) -> bool) {
        let mut sorted: Vec<_> = counts.iter().filter(|(name, _)| shown(name)).collect();
        sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (name, count) in sorted.into_iter().take(LINES_MAX) {
            println!("| `{name}` | {:.1} |", *count as f64 * 100.0 / self.all as f64);
        }
    }
}
