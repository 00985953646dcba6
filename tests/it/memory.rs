//! A transaction far larger than memory -> all of its records, from a process that stays small.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::support::{
    kafka,
    postgres::{self, V17},
    program::{self, Offshoot},
};

/// Resident memory that the process may reach with the default limits.
const RESIDENT_BYTES_MAX: u64 = 64 << 20;
const ROWS: usize = 2_000_000;
/// For a busy machine; on quiet cores the whole test takes half a minute.
const DEADLINE: Duration = Duration::from_secs(300);

#[test]
fn a_transaction_of_2_000_000_rows_is_delivered_from_64_mib() {
    let db = postgres::shared(V17).create_database();
    let kafka = kafka::shared();
    db.execute(
        "CREATE TABLE seat (id int PRIMARY KEY, section text, row int, number int, price numeric(8,2), sold boolean,
         held_until timestamptz, note text)",
    );
    let name = db.name.clone();
    let config = program::config(&name, &db.url, kafka.address(), &["public.seat"]);
    let mut offshoot = Offshoot::run(Path::new(env!("CARGO_BIN_EXE_offshoot")), &config);
    offshoot.wait_ready(program::START_MAX);

    let began = Instant::now();
    db.execute(&format!(
        "INSERT INTO seat SELECT i, 'section ' || i % 40, i % 50, i % 97, i % 300 + 0.5, i % 3 = 0, now(),
         'a note of some length that makes the row as long as rows are' FROM generate_series(0, {ROWS} - 1) i"
    ));
    let committed = began.elapsed();
    let spill_file = offshoot.wait("a spill file", DEADLINE, spill_file_of);
    offshoot.wait("its bytes to be told", DEADLINE, |offshoot| {
        offshoot.metric("offshoot_spill_bytes").filter(|bytes| *bytes > 0.0)
    });
    assert!(spill_file.to_string_lossy().ends_with(" (deleted)"), "the spill file has a name: {spill_file:?}");
    assert_eq!(fs::read_dir(&offshoot.config().data_dir).unwrap().count(), 0, "the spill file has a name");
    offshoot.wait("all records to be acknowledged", DEADLINE, |offshoot| {
        (offshoot.metric("offshoot_records_acknowledged_total")? as usize == ROWS).then_some(())
    });
    let delivered = began.elapsed();
    offshoot.wait("the spill file to go", DEADLINE, |offshoot| spill_file_of(offshoot).is_none().then_some(()));
    assert_eq!(offshoot.metric("offshoot_spilled_transactions_total"), Some(1.0));
    assert_eq!(offshoot.metric("offshoot_spill_bytes"), Some(0.0));
    let peak = offshoot.peak_memory().expect("it runs");
    let cpu = offshoot.process().cpu_time().expect("it runs");
    println!(
        "{ROWS} rows in one transaction: committed after {committed:.1?}, delivered after {delivered:.1?}, \
         peak {:.1} MiB, processor {cpu:.1?}",
        peak as f64 / (1 << 20) as f64,
    );
    assert!(offshoot.terminate(program::START_MAX).success());

    let topic = format!("{name}.public.seat");
    let mut seen = vec![false; ROWS];
    let mut records = 0;
    let mut reader = kafka.reader(&[&topic], DEADLINE);
    reader.read_to_end(DEADLINE, |record| {
        let id = record.key_json()["id"].as_u64().expect("the key has an id") as usize;
        assert!(!std::mem::replace(&mut seen[id], true), "{id} came twice");
        records += 1;
    });
    assert_eq!(records, ROWS);
    kafka.delete_topic(&topic);
    assert!(peak < RESIDENT_BYTES_MAX, "{peak} bytes were resident");
}

/// The open file in the data directory, as the kernel names it.
fn spill_file_of(offshoot: &Offshoot) -> Option<PathBuf> {
    let files = fs::read_dir(format!("/proc/{}/fd", offshoot.pid())).ok()?.flatten();
    let mut files = files.filter_map(|file| fs::read_link(file.path()).ok());
    files.find(|file| file.starts_with(&offshoot.config().data_dir))
}
