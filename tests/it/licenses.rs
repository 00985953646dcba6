//! The lock file -> every dependency's license, each of which may be part of an Apache-2.0 program.

use std::process::Command;

use serde_json::Value;

/// Licenses that ask for no more than a notice. `deny.toml` has the same.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];

/// Whether an SPDX expression leaves a way of using the package: one of each `OR`, all of each `AND`, which binds closer.
/// An exception (`WITH`) only adds to what is allowed. Old manifests write `/` for `OR`, some `or`, as SPDX allows.
fn may_be_used(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace(" or ", " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let allowed = any(&mut words);
    assert_eq!(words.next(), None, "in {expression}");
    allowed
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>) -> bool {
    let mut allowed = all(words);
    while words.next_if_eq(&"OR").is_some() {
        allowed |= all(words);
    }
    allowed
}

fn all(words: &mut Words<'_>) -> bool {
    let mut allowed = one(words);
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words);
    }
    allowed
}

fn one(words: &mut Words<'_>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let allowed = any(words);
        assert_eq!(words.next(), Some(")"));
        return allowed;
    }
    let allowed = ALLOWED.contains(&words.next().expect("a license"));
    if words.next_if_eq(&"WITH").is_some() {
        words.next();
    }
    allowed
}

#[test]
fn every_dependency_may_be_part_of_an_apache_program() {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["metadata", "--format-version=1", "--locked", "--offline"]);
    // Only this platform's packages have been fetched for the build.
    command.arg(format!("--filter-platform={}-unknown-linux-gnu", std::env::consts::ARCH));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{} packages", packages.len());
    let refused = packages.iter().filter(|package| !package["license"].as_str().is_some_and(may_be_used));
    let refused: Vec<String> = refused.map(|package| format!("{} {}", package["name"], package["license"])).collect();
    assert!(refused.is_empty(), "not on the list: {refused:#?}");
}

#[test]
fn an_expression_is_read_as_spdx_has_it() {
    for (expression, allowed) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/GPL-3.0", true),
        ("GPL-3.0 OR Apache-2.0 WITH LLVM-exception", true),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("MIT OR GPL-3.0 AND LGPL-3.0", true),
    ] {
        assert_eq!(may_be_used(expression), allowed, "{expression}");
    }
}
