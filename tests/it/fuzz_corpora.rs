//! What fuzzing starts from, and what it has found, through the fuzz targets: no decoder panics on any of it.

use std::{fs, path::Path};

#[path = "../../fuzz/targets.rs"]
mod targets;

/// Runs every file of a corpus through its target.
fn run(corpus: &str, target: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(corpus);
    let mut files = 0;
    for entry in fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.unwrap().path();
        // A panic does not say which file it was.
        println!("{}", path.display());
        let bytes = fs::read(path).unwrap();
        target(&bytes);
        // Every cut too: most of them end inside a field.
        (0..bytes.len().min(1_000)).for_each(|len| target(&bytes[..len]));
        files += 1;
    }
    assert!(files > 0);
}

#[test]
fn frame() {
    run("frame", targets::frame);
}

#[test]
fn pgoutput() {
    run("pgoutput", targets::pgoutput);
}

#[test]
fn assemble() {
    run("assemble", targets::assemble);
}
