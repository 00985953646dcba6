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

/// Messages of transactions that are told as they go on: blocks of several at a time, with subtransactions of which some are
/// rolled back, whole ones between them. Gives how many are committed.
fn streams(random: &mut fastrand::Rng) -> (Vec<u8>, usize) {
    fn numbers(tag: u8, numbers: &[u32]) -> Vec<u8> {
        [vec![tag], numbers.iter().flat_map(|number| number.to_be_bytes()).collect()].concat()
    }
    let relation =
        |head: Vec<u8>| [&head[..], b"\0\0\0\x01public\0t\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff"].concat();
    let insert =
        |head: Vec<u8>, value: u32| [&head[..], b"\0\0\0\x01N\0\x01t\0\0\0\x04", &value.to_be_bytes()].concat();
    let commit = |head: Vec<u8>, at: u32| [&head[..], b"\0", &numbers(0, &[at, 0, at, 8, 0, 0])[1..]].concat();
    let (mut bytes, mut commits, mut xid) = (Vec::new(), 0, 1_000);
    // Each open one, and its subtransactions.
    let mut open: Vec<(u32, Vec<u32>)> = Vec::new();
    let mut say = |message: Vec<u8>| {
        bytes.extend((message.len() as u16).to_be_bytes());
        bytes.extend(message);
    };
    for at in 1..random.u32(10..150) {
        match random.u8(..10) {
            0..5 => {
                let is_first = open.is_empty() || open.len() < 4 && random.u8(..4) == 0;
                if is_first {
                    xid += 1;
                    open.push((xid, vec![xid]));
                }
                let of = if is_first { open.len() - 1 } else { random.usize(..open.len()) };
                let (top, subs) = &mut open[of];
                say([numbers(b'S', &[*top]), vec![is_first.into()]].concat());
                for row in 0..random.u32(u32::from(is_first)..8) {
                    if row == 0 && is_first || random.u8(..10) == 0 {
                        say(relation(numbers(b'R', &[*top])));
                    }
                    if random.u8(..3) == 0 {
                        xid += 1;
                        subs.push(xid);
                    }
                    say(insert(numbers(b'I', &[subs[random.usize(..subs.len())]]), at * 10 + row));
                }
                say(b"E".to_vec());
            }
            5..7 if !open.is_empty() => {
                let (top, subs) = &open[random.usize(..open.len())];
                if let Some(sub) = subs.get(random.usize(..subs.len())).filter(|sub| *sub != top) {
                    say(numbers(b'A', &[*top, *sub]));
                }
            }
            7 if !open.is_empty() => {
                let (top, _) = open.swap_remove(random.usize(..open.len()));
                say(numbers(b'A', &[top, top]));
            }
            8 if !open.is_empty() => {
                let (top, _) = open.swap_remove(random.usize(..open.len()));
                say(commit(numbers(b'c', &[top]), at));
                commits += 1;
            }
            _ => {
                say(relation(b"R".to_vec()));
                say(numbers(b'B', &[at, 0, 0, 0, 9]));
                say(insert(b"I".to_vec(), at));
                say(commit(b"C".to_vec(), at));
                commits += 1;
            }
        }
    }
    (bytes, commits)
}

#[test]
fn any_order_of_blocks_gives_what_was_committed() {
    for seed in 0..3_000 {
        println!("seed {seed}");
        let (bytes, commits) = streams(&mut fastrand::Rng::with_seed(seed));
        targets::assemble(&bytes);
        assert_eq!(targets::transactions(&bytes, 48).len(), commits, "seed {seed}");
    }
}
