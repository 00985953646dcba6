//! The arrows between modules, as ARCHITECTURE.md draws them: this reads the `use` lines and paths of `src`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// What each module of the crate may name; it may always name itself.
const ARROWS: &[(&str, &[&str])] = &[
    ("lsn", &[]),
    ("json", &[]),
    ("text", &["json"]),
    ("change", &["lsn"]),
    ("transaction", &["change", "lsn"]),
    ("source", &["lsn", "transaction"]),
    ("progress", &["change", "lsn"]),
    ("sink", &["progress"]),
    ("replica", &["change"]),
    ("mapping", &["change", "config", "event", "json", "lsn", "replica", "sink", "transaction", "text"]),
    ("event", &["mapping"]),
    ("finding", &[]),
    ("causes", &[]),
    ("admission", &[]),
    ("config", &[]),
    ("exit", &["config", "sink", "source"]),
    (
        "postgres",
        &["admission", "causes", "change", "config", "finding", "json", "lsn", "mapping", "source", "transaction"],
    ),
    ("format", &["change", "config", "event", "json", "lsn", "mapping", "sink", "text"]),
    ("outlets", &["change", "config", "event", "format", "json", "lsn", "mapping", "replica", "sink", "transaction"]),
    ("kafka", &["admission", "causes", "config", "progress", "sink"]),
    ("ledger", &["change", "lsn", "sink"]),
    ("telemetry", &["change", "transaction"]),
    (
        "pipeline",
        &[
            "change",
            "config",
            "ledger",
            "lsn",
            "outlets",
            "progress",
            "replica",
            "sink",
            "source",
            "telemetry",
            "transaction",
        ],
    ),
    ("supervisor", &["causes", "exit", "outlets", "pipeline", "sink", "source", "telemetry"]),
    ("admin", &["config", "lsn", "telemetry"]),
];

/// Files without sockets, clocks, files or tasks: values in, values out. (`transaction.rs` has its spill file.)
const PURE: &[&str] = &[
    "lsn.rs",
    "json.rs",
    "text.rs",
    "causes.rs",
    "change.rs",
    "ledger.rs",
    "sink.rs",
    "postgres/frame.rs",
    "postgres/pgoutput.rs",
    "postgres/assemble.rs",
    "postgres/streamed.rs",
    "postgres/copied.rs",
    "event.rs",
    "mapping.rs",
    "mapping",
    "format.rs",
    "format",
];
const IMPURE: &[&str] =
    &["tokio", "rdkafka", "tokio_postgres", "std::net", "std::fs", "std::time::Instant", "SystemTime"];

fn files(root: &Path) -> Vec<PathBuf> {
    let files = walkdir::WalkDir::new(root).sort_by_file_name().into_iter().map(|entry| entry.unwrap().into_path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs"))
        .collect()
}

/// The code of a file without comments and without what is only there for tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = product.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules of this crate that the code names, in `crate::x` or in `use crate::{x, y::z}`.
fn named(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for after in code.split("crate::").skip(1) {
        let Some(group) = after.strip_prefix('{') else {
            names.insert(word(after));
            continue;
        };
        let (mut depth, mut at_name) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => at_name = true,
                c if at_name && c.is_alphanumeric() => {
                    names.insert(word(&group[at..]));
                    at_name = false;
                }
                _ => {}
            }
        }
    }
    names
}

#[test]
fn arrows_point_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files(&root) {
        let inside = path.strip_prefix(&root).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        // Where the modules are joined: arrows to everything.
        if ["main", "lib", "cli", "planted", "simulation"].contains(&module) {
            continue;
        }
        let allowed = ARROWS.iter().find(|(name, _)| *name == module);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{module} has no line in ARROWS"));
        let mut names = named(&code(&path));
        names.remove(module);
        // Mistakes in test builds.
        names.remove("planted");
        for name in &names {
            assert!(allowed.contains(&name.as_str()), "{} must not name {name}", inside.display());
        }
        seen.entry(module.into()).or_default().append(&mut names);
    }
    // The picture is no wider than the code.
    let drawn = ARROWS.iter().map(|(module, names)| ((*module).into(), names.iter().map(|n| n.to_string()).collect()));
    assert_eq!(seen, drawn.collect());
}

#[test]
fn the_middle_of_the_walk_is_pure() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for pure in PURE {
        for path in files(&root.join(pure)) {
            let code = code(&path);
            for impure in IMPURE {
                assert!(!code.contains(impure), "{} must not name {impure}", path.display());
            }
        }
    }
}

#[test]
fn a_wrong_arrow_would_be_seen() {
    let names = |code: &str| named(code).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(names("use crate::kafka::producer;"), "kafka");
    assert_eq!(
        names("use crate::{\n    lsn::Lsn,\n    postgres::{frame::{A, B}, wire},\n    kafka,\n};"),
        "kafka lsn postgres"
    );
    assert_eq!(names("fn f() { crate::kafka::send() }"), "kafka");
}
