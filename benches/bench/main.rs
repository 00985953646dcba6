//! What is asked for -> how fast Offshoot is, beside readers that do nothing with the stream: a page, the figures, and a chart.
//!
//!     make bench                               all of it, printed; `make help` says how to ask for a part
//!     make benchmarks                          and docs/benchmarks.{md,json,svg} are written again
//!     make bench PARTS=drain SHAPES="ten one" ROWS=30000 ROUNDS=1
//!     make benchmarks FROM=docs/benchmarks.json    page and chart alone, of what was measured before
//!
//! Servers of its own, side by side on this machine; everybody takes turns in one run.

mod asked;
mod shapes;
mod readers;
mod counted;
mod appended;
mod raw;
mod drain;
mod latency;
mod recovery;
mod life;
mod machine;
mod results;
mod aims;
mod page;
mod chart;
mod progress;
#[path = "../peers/debezium.rs"]
mod debezium;
#[path = "../../tests/it/support/mod.rs"]
mod support;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use asked::{Asked, Part};
use drain::{Extent, Servers};
use progress::Progress;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use readers::{Kind, Reader};
use results::{Drained, Results};
use shapes::Shape;
use support::{
    kafka,
    postgres::{self, Server, V17},
    process::{self, User},
};

fn main() {
    let asked = Asked::read();
    let results = match &asked.from {
        Some(file) => read(file),
        None => measure(&asked),
    };
    if asked.writes {
        write(&results);
    } else if std::env::args().any(|argument| argument == "--json") {
        println!("{}", json(&results));
    } else {
        println!("{}", page::page(&results, ""));
    }
}

fn measure(asked: &Asked) -> Results {
    let (turns, estimate) = asked.estimate();
    let progress = Progress::new(turns, estimate);
    progress.tell("starts Postgres and Kafka");
    let postgres = postgres::private(V17, &machine::POSTGRES);
    let broker = kafka::private(&kafka::Options { heap: machine::HEAP, optimize: true, ..kafka::Options::default() });
    let servers = Servers { postgres: &postgres, broker: &broker };
    let mut results = Results {
        about: machine::about(asked, &servers),
        drained: Vec::new(),
        tls: None,
        latency: Vec::new(),
        recovery: None,
        starts: Vec::new(),
        idle: None,
    };
    if asked.has(Part::Drain) {
        for (at, shape) in asked.shapes.iter().enumerate() {
            let warm_up = if at == 0 { asked.warm_up } else { 0 };
            let readers = readers::of(shape, &asked.readers);
            results.drained.push(drain::measure(shape, &servers, &readers, extent(shape, asked, warm_up), &progress));
        }
    }
    if asked.has(Part::Tls) {
        results.tls = Some(under_tls(&servers, asked, &progress));
    }
    if asked.has(Part::Latency) {
        results.latency = latency::measure(&servers, asked, &progress);
    }
    if asked.has(Part::Recovery) {
        results.recovery = Some(recovery::measure(&servers, asked, &progress));
    }
    if asked.has(Part::Start) {
        results.starts = life::starts(&servers, asked, &progress);
    }
    if asked.has(Part::Idle) {
        results.idle = Some(life::idle(&servers, asked, &progress));
    }
    results.about.minutes = progress.end().as_secs_f64() / 60.0;
    results
}

fn extent(shape: &Shape, asked: &Asked, warm_up: usize) -> Extent {
    let (rows, transactions) = shape.size(asked.rows);
    Extent { rows, transactions, rounds: asked.rounds, warm_up }
}

/// The first shape, with TLS and without.
fn under_tls(servers: &Servers<'_>, asked: &Asked, progress: &Progress) -> Drained {
    let postgres = with_tls();
    let readers = [
        Reader::of(Kind::Plain),
        Reader::of(Kind::Best),
        Reader { tls: true, ..Reader::of(Kind::Best) },
        Reader::of(Kind::ChangesExactlyOnce),
        Reader { tls: true, ..Reader::of(Kind::ChangesExactlyOnce) },
    ];
    let shape = Shape::named("ten").expect("it is there");
    drain::measure(&shape, &Servers { postgres: &postgres, ..*servers }, &readers, extent(&shape, asked, 0), progress)
}

/// A Postgres with a certificate that it has signed itself.
fn with_tls() -> Server {
    let dir = process::new_dir("certificate");
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".into()]).expect("a key can be had");
    let (certificate, key) = (dir.join("server.crt"), dir.join("server.key"));
    fs::write(&certificate, cert.pem()).expect("the directory is ours");
    fs::write(&key, signing_key.serialize_pem()).expect("the directory is ours");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    if let Some(user) = User::ordinary() {
        user.own(&key);
    }
    let path = |file: &Path| file.to_str().expect("a temporary directory's name is text").to_owned();
    let (certificate, key) = (path(&certificate), path(&key));
    let of_tls = [("ssl", "on"), ("ssl_cert_file", certificate.as_str()), ("ssl_key_file", key.as_str())];
    postgres::private(V17, &[&machine::POSTGRES[..], &of_tls].concat())
}

fn read(file: &Path) -> Results {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn json(results: &Results) -> String {
    serde_json::to_string_pretty(results).expect("numbers and texts")
}

/// Writes `docs/benchmarks.*` again; what people have written into the page stays.
fn write(results: &Results) {
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    let write =
        |name: &str, text: &str| fs::write(file(name), text).unwrap_or_else(|error| panic!("docs/{name}: {error}"));
    let before = fs::read_to_string(file("benchmarks.md")).unwrap_or_default();
    write("benchmarks.md", &page::page(results, page::notes(&before)));
    write("benchmarks.json", &(json(results) + "\n"));
    if let Some(svg) = chart::chart(results) {
        write("benchmarks.svg", &svg);
    }
    println!("docs/benchmarks.md, docs/benchmarks.json and docs/benchmarks.svg are written");
}
