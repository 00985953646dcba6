//! The cache against a model, through lives that end well and badly.

use std::{collections::BTreeMap, fs, path::Path};

use super::{disk::Disk, *};

const CACHE: usize = 1024 * 1024;

fn position(offset: i64) -> Position {
    Position { generation: "g".into(), offset, time: 7, shapes: "s".into() }
}

fn row<'a>(table: u16, key: &'a [u8], load: u32, links: &'a [Option<&'a [u8]>], cells: &'a [u8]) -> HeldRow<'a> {
    HeldRow { table, key, load, links, cells }
}

fn get(replica: &Replica, table: u16, key: &[u8]) -> Option<Vec<u8>> {
    let mut cells = Vec::new();
    replica.get(table, key, &mut cells).unwrap().then_some(cells)
}

fn linked(replica: &Replica, table: u16, link: u16, value: &[u8]) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    replica.linked(table, link, value, &mut |key| keys.push(key.to_vec())).unwrap();
    keys
}

/// Key, load and cells of all rows of a table.
fn walk(replica: &Replica, table: u16) -> Vec<(Vec<u8>, u32, Vec<u8>)> {
    let mut rows: Vec<(Vec<u8>, u32, Vec<u8>)> = Vec::new();
    loop {
        let (mut key, mut cells) = (Vec::new(), Vec::new());
        let after = rows.last().map(|(key, ..)| &key[..]);
        let Some(load) = replica.after(table, after, &mut key, &mut cells).unwrap() else { return rows };
        rows.push((key, load, cells));
    }
}

#[test]
fn a_row_is_found_by_its_key_and_by_its_links_until_they_change() {
    let mut replica = Replica::in_memory();
    replica.set_load(1, 5);
    replica.put(&row(1, b"a", 5, &[Some(b"x\0"), None], b"first")).unwrap();
    replica.put(&row(1, b"b", 5, &[Some(b"x\0"), Some(b"y\0")], b"other")).unwrap();
    // Other tables and links with the same bytes are others.
    replica.put(&row(2, b"a", 5, &[Some(b"x\0")], b"elsewhere")).unwrap();
    assert_eq!(get(&replica, 1, b"a").unwrap(), b"first");
    assert_eq!(get(&replica, 1, b"c"), None);
    assert_eq!(linked(&replica, 1, 0, b"x\0"), [b"a", b"b"]);
    assert_eq!(linked(&replica, 1, 1, b"y\0"), [b"b"]);
    assert!(linked(&replica, 1, 1, b"x\0").is_empty());

    replica.put(&row(1, b"a", 5, &[None, Some(b"y\0")], b"second")).unwrap();
    assert_eq!(get(&replica, 1, b"a").unwrap(), b"second");
    assert_eq!(linked(&replica, 1, 0, b"x\0"), [b"b"]);
    assert_eq!(linked(&replica, 1, 1, b"y\0"), [b"a", b"b"]);

    replica.delete(1, b"b").unwrap();
    replica.delete(1, b"never").unwrap();
    assert_eq!(get(&replica, 1, b"b"), None);
    assert!(linked(&replica, 1, 0, b"x\0").is_empty());
    assert_eq!(linked(&replica, 2, 0, b"x\0"), [b"a"]);
    let figures = replica.figures();
    assert_eq!((figures.rows, figures.hits, figures.misses), (vec![0, 1, 1], 2, 2));
}

#[test]
fn a_row_of_another_load_is_not_there_but_is_walked() {
    let mut replica = Replica::in_memory();
    replica.put(&row(0, b"a", 1, &[], b"old")).unwrap();
    assert_eq!(get(&replica, 0, b"a"), None, "no load is known yet");
    replica.set_load(0, 1);
    assert_eq!(get(&replica, 0, b"a").unwrap(), b"old");
    replica.set_load(0, 2);
    assert_eq!(get(&replica, 0, b"a"), None);
    replica.put(&row(0, b"b", 2, &[], b"new")).unwrap();
    replica.put(&row(1, b"a", 2, &[], b"of the next table")).unwrap();
    let rows = walk(&replica, 0);
    assert_eq!(rows, [(b"a".to_vec(), 1, b"old".to_vec()), (b"b".to_vec(), 2, b"new".to_vec())]);
    // The empty key is a key.
    replica.put(&row(0, b"", 2, &[], b"least")).unwrap();
    assert_eq!(walk(&replica, 0)[0].0, b"");
    assert_eq!(walk(&replica, 0).len(), 3);
}

#[test]
fn rows_may_be_looked_up_while_links_are_walked() {
    let mut replica = Replica::in_memory();
    replica.set_load(0, 1);
    for key in [b"a", b"b"] {
        replica.put(&row(0, key, 1, &[Some(b"x")], b"cells")).unwrap();
    }
    let mut found = 0;
    let mut each = |key: &[u8]| found += usize::from(get(&replica, 0, key).is_some());
    replica.linked(0, 0, b"x", &mut each).unwrap();
    assert_eq!(found, 2);
}

/// What a model of the cache holds: by table and key, the load, links and cells.
type Model = BTreeMap<(u16, Vec<u8>), (u32, Vec<Option<Vec<u8>>>, Vec<u8>)>;

fn same(replica: &Replica, model: &Model) {
    let mut links: BTreeMap<(u16, u16, Vec<u8>), Vec<Vec<u8>>> = BTreeMap::new();
    for ((table, key), (_, values, _)) in model {
        for (link, value) in values.iter().enumerate() {
            if let Some(value) = value {
                links.entry((*table, link as u16, value.clone())).or_default().push(key.clone());
            }
        }
    }
    for table in 0..3 {
        let of_table = model.iter().filter(|((t, _), _)| *t == table);
        let expected: Vec<_> =
            of_table.map(|((_, key), (load, _, cells))| (key.clone(), *load, cells.clone())).collect();
        assert_eq!(walk(replica, table), expected);
        assert_eq!(replica.figures().rows.get(table as usize).copied().unwrap_or(0), expected.len() as u64);
        for link in 0..2 {
            for value in 0..4u8 {
                let found = linked(replica, table, link, &[value, 0]);
                let expected = links.get(&(table, link, vec![value, 0])).cloned().unwrap_or_default();
                assert_eq!(found, expected, "table {table}, link {link}, value {value}");
            }
        }
    }
}

#[test]
fn it_is_a_true_prefix_whenever_it_is_killed() {
    let mut random = fastrand::Rng::with_seed(1);
    let (mut killed, mut closed, mut lost) = (0, 0, 0);
    for _ in 0..40 {
        let mut disk = Disk::default();
        // What each position that was committed was true of.
        let mut history = BTreeMap::from([(0, Model::new())]);
        let (mut durable, mut offset) = (0, 0);
        for _ in 0..6 {
            let (mut replica, found) = Replica::open_on(&disk).unwrap();
            let at = found.map_or(0, |position| position.offset);
            assert!(at >= durable, "{at} is before {durable}");
            lost += usize::from(at < offset);
            offset = at;
            let mut model = history[&at].clone();
            same(&replica, &model);
            for _ in 0..random.usize(1..200) {
                let (table, key) = (random.u16(0..3), vec![b'k', random.u8(0..30)]);
                match random.u8(0..20) {
                    0 => {
                        offset += 1;
                        let safe = random.bool();
                        replica.commit(&position(offset), safe).unwrap();
                        history.insert(offset, model.clone());
                        durable = if safe { offset } else { durable };
                    }
                    1..6 => {
                        replica.delete(table, &key).unwrap();
                        model.remove(&(table, key));
                    }
                    _ => {
                        let links: Vec<_> = (0..2).map(|_| random.bool().then(|| vec![random.u8(0..4), 0])).collect();
                        let borrowed: Vec<_> = links.iter().map(|link| link.as_deref()).collect();
                        let cells = vec![random.u8(..); random.usize(0..300)];
                        replica.put(&row(table, &key, 1, &borrowed, &cells)).unwrap();
                        model.insert((table, key), (1, links, cells));
                    }
                }
            }
            same(&replica, &model);
            history.retain(|at, _| *at <= offset);
            if random.bool() {
                disk = disk.copy();
                killed += 1;
            } else {
                closed += 1;
            }
        }
    }
    assert!(killed > 50 && closed > 50 && lost > 20, "{killed} {closed} {lost}");
}

#[test]
fn what_is_wiped_does_not_come_back() {
    let disk = Disk::default();
    let (mut replica, found) = Replica::open_on(&disk).unwrap();
    assert_eq!(found, None);
    replica.put(&row(0, b"a", 1, &[Some(b"x")], b"cells")).unwrap();
    replica.commit(&position(1), true).unwrap();
    replica.put(&row(0, b"b", 1, &[], b"cells")).unwrap();
    replica.wipe().unwrap();
    assert!(walk(&replica, 0).is_empty() && replica.figures().rows.is_empty());
    let left = disk.copy();
    assert_eq!(Replica::open_on(&left).unwrap().1, None);
    replica.put(&row(0, b"c", 1, &[], b"cells")).unwrap();
    replica.commit(&position(9), true).unwrap();
    drop(replica);
    let (replica, found) = Replica::open_on(&disk).unwrap();
    assert_eq!(found, Some(position(9)));
    assert_eq!(walk(&replica, 0).len(), 1);
}

fn open(dir: &Path) -> Result<(Replica, Option<Position>), ReplicaError> {
    Replica::open(dir, "shop", CACHE)
}

/// A file with some rows.
fn filled(dir: &Path) {
    let (mut replica, _) = open(dir).unwrap();
    for n in 0..5000u32 {
        replica.put(&row(0, &n.to_be_bytes(), 1, &[], &[b'x'; 100])).unwrap();
    }
    replica.commit(&position(5), true).unwrap();
}

#[test]
fn the_file_and_its_directory_are_made_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("not/there/yet");
    filled(&dir);
    assert!(file_of(&dir, "shop").is_file());
    let (replica, found) = open(&dir).unwrap();
    assert_eq!(found, Some(position(5)));
    let figures = replica.figures();
    assert_eq!(figures.rows, [5000]);
    assert!(figures.bytes > 500_000, "{figures:?}");
    assert_eq!(Replica::open(&dir, "other", CACHE).unwrap().1, None);
}

#[test]
fn a_file_that_is_open_elsewhere_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, ReplicaError::Taken { .. }) && !error.is_lasting(), "{error:?}");
    assert!(error.to_string().contains("replica-shop.redb: another process has it open"), "{error}");
    drop(first);
    open(dir.path()).unwrap();
}

#[test]
fn a_damaged_file_is_made_anew() {
    type Damage = fn(&mut Vec<u8>);
    let table: [(&str, Damage); 6] = [
        ("another program's", |bytes| *bytes = b"SQLite format 3\0 and so on, for more than a page".repeat(1000)),
        ("cut short", |bytes| bytes.truncate(bytes.len() / 2)),
        ("cut to its first bytes", |bytes| bytes.truncate(100)),
        ("its head is overwritten", |bytes| bytes[9..300].fill(0xFF)),
        ("all is zero", |bytes| bytes.fill(0)),
        // redb panics then.
        ("its pages make no sense", |bytes| bytes[4096..].fill(0xEE)),
    ];
    for (what, damage) in table {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path());
        let file = file_of(dir.path(), "shop");
        let mut bytes = fs::read(&file).unwrap();
        damage(&mut bytes);
        fs::write(&file, bytes).unwrap();
        let (mut replica, found) = open(dir.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(found, None, "{what}");
        assert!(walk(&replica, 0).is_empty(), "{what}");
        replica.put(&row(0, b"a", 1, &[], b"cells")).unwrap();
        replica.commit(&position(1), true).unwrap();
        drop(replica);
        assert_eq!(open(dir.path()).unwrap().1, Some(position(1)), "{what}");
    }
}

#[test]
fn a_file_that_turns_out_to_be_damaged_is_made_anew_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let file = file_of(dir.path(), "shop");
    let mut bytes = fs::read(&file).unwrap();
    // A page of rows, where no start looks.
    let rows = bytes.windows(50).position(|window| window == [b'x'; 50]).unwrap() / 4096;
    bytes[rows * 4096..(rows + 1) * 4096].fill(0xEE);
    fs::write(&file, bytes).unwrap();
    let (mut replica, found) = open(dir.path()).unwrap();
    assert_eq!(found, Some(position(5)));
    replica.set_load(0, 1);
    let mut out = Vec::new();
    let error = (0..5000u32).find_map(|n| replica.get(0, &n.to_be_bytes(), &mut out).err()).expect("it is damaged");
    assert!(matches!(error, ReplicaError::Damaged { .. }) && !error.is_lasting(), "{error:?}");
    drop(replica);
    assert_eq!(open(dir.path()).unwrap().1, None);
}

#[test]
fn another_formats_file_is_left_alone_and_told_of() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let database = Database::open(file_of(dir.path(), "shop")).unwrap();
    let writer = database.begin_write().unwrap();
    writer.open_table(META).unwrap().insert(META_KEY, &br#"{"format":2,"else":true}"#[..]).unwrap();
    writer.commit().unwrap();
    drop(database);
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, ReplicaError::Format { .. }) && error.is_lasting(), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("its format is 2, this program reads 1; use the offshoot that wrote it, or delete"),
        "{text}"
    );
    assert!(file_of(dir.path(), "shop").is_file());
}

#[test]
fn a_directory_that_cannot_be_written_to_lasts_and_what_else_a_disk_says_passes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for inside in ["file", "file/deeper"] {
        let error = open(&dir.path().join(inside)).unwrap_err();
        assert!(matches!(error, ReplicaError::Denied { .. }) && error.is_lasting(), "{error:?}");
        assert!(error.to_string().contains("data_dir must be a directory that offshoot may write to"), "{error}");
    }
    // What is no disk.
    let full = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", file_of(full.path(), "shop")).unwrap();
    let error = open(full.path()).unwrap_err();
    assert!(!error.is_lasting(), "{error:?}");
}

#[test]
fn a_failure_is_the_end_of_it_and_the_next_start_finds_what_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let (mut replica, _) = open(dir.path()).unwrap();
    replica.put(&row(0, b"more", 1, &[], b"cells")).unwrap();
    replica.overlay = None;
    let error = replica.put(&row(0, b"more", 1, &[], b"cells")).unwrap_err();
    assert!(!error.is_lasting() && error.to_string().contains("it has failed before"), "{error}");
    assert!(replica.commit(&position(6), true).is_err());
    drop(replica);
    assert_eq!(open(dir.path()).unwrap().1, Some(position(5)));
}

/// `cargo test --release --lib replica::tests::what_it_takes -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn what_it_takes() {
    use std::time::Instant;
    let rows: u64 = std::env::var("OFFSHOOT_ROWS").map_or(1_000_000, |rows| rows.parse().unwrap());
    let cache: usize = std::env::var("OFFSHOOT_CACHE_MIB").map_or(256, |mib| mib.parse().unwrap()) << 20;
    let dir = tempfile::tempdir_in(".").unwrap();
    let (mut replica, _) = Replica::open(dir.path(), "shop", cache).unwrap();
    replica.set_load(0, 1);
    let each = |began: Instant, count: u64| began.elapsed().as_nanos() as f64 / count as f64 / 1000.0;
    let cells = [b'x'; 100];
    let parent = |n: u64| (n / 4).to_be_bytes();
    let began = Instant::now();
    for n in 0..rows {
        replica.put(&row(0, &n.to_be_bytes(), 1, &[Some(&parent(n))], &cells)).unwrap();
    }
    println!("load {:.2} us a row", each(began, rows));
    let began = Instant::now();
    replica.commit(&position(1), true).unwrap();
    println!("commit of it {:?}, {} MiB", began.elapsed(), replica.figures().bytes >> 20);
    let mut random = fastrand::Rng::with_seed(1);
    let some = 300_000;
    for (what, among) in [("of all", rows), ("of 1,000", 1000)] {
        let (mut out, began) = (Vec::new(), Instant::now());
        for _ in 0..some {
            out.clear();
            assert!(replica.get(0, &random.u64(..among).to_be_bytes(), &mut out).unwrap());
        }
        println!("get {what} {:.2} us", each(began, some));
        let began = Instant::now();
        for _ in 0..some {
            let n = random.u64(..among);
            replica.put(&row(0, &n.to_be_bytes(), 1, &[Some(&parent(n))], &cells)).unwrap();
        }
        println!("put {what} {:.2} us, its links as they were", each(began, some));
        let began = Instant::now();
        for _ in 0..some {
            let n = random.u64(..among);
            replica.put(&row(0, &n.to_be_bytes(), 1, &[Some(&parent(random.u64(..among)))], &cells)).unwrap();
        }
        println!("put {what} {:.2} us, its links other ones", each(began, some));
        let (mut found, began) = (0, Instant::now());
        for _ in 0..some {
            replica.linked(0, 0, &parent(random.u64(..among)), &mut |_| found += 1).unwrap();
        }
        println!("linked {what} {:.2} us, {:.1} rows each", each(began, some), found as f64 / some as f64);
    }
    for durable in [false, true, false, true] {
        for n in 0..1000 {
            let key = random.u64(..rows).to_be_bytes();
            replica.put(&row(0, &key, 1, &[Some(&parent(n))], &cells)).unwrap();
        }
        let began = Instant::now();
        replica.commit(&position(2), durable).unwrap();
        println!("commit of 1000 rows, durable {durable}: {:?}", began.elapsed());
    }
    // As a process that is killed leaves it: nobody says that it is closed.
    let left = tempfile::tempdir_in(".").unwrap();
    fs::copy(file_of(dir.path(), "shop"), file_of(left.path(), "shop")).unwrap();
    let began = Instant::now();
    let (killed, found) = Replica::open(left.path(), "shop", cache).unwrap();
    println!("open after a kill {:?}, at {:?}", began.elapsed(), found.unwrap().offset);
    drop(killed);
    let began = Instant::now();
    drop(replica);
    println!("close {:?}", began.elapsed());
    let began = Instant::now();
    drop(Replica::open(dir.path(), "shop", cache).unwrap());
    println!("open and close {:?}", began.elapsed());
}
