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

    each_once(&format!("{name}.public.seat"), ROWS);
    assert!(peak < RESIDENT_BYTES_MAX, "{peak} bytes were resident");
}

/// Rows of a transaction of bookings; `OFFSHOOT_TEST_EVENT_ROWS=2000000` for as many as `changes` has.
const EVENT_ROWS: usize = 500_000;

#[test]
fn a_transaction_of_bookings_is_netted_on_disk_and_told_from_64_mib() {
    let rows = std::env::var("OFFSHOOT_TEST_EVENT_ROWS").map_or(EVENT_ROWS, |rows| rows.parse().expect("a number"));
    let bookings = rows / 4;
    let db = postgres::shared(V17).create_database();
    let kafka = kafka::shared();
    db.execute(
        "CREATE TABLE booking (id bigint PRIMARY KEY, email text NOT NULL, booked_at timestamptz NOT NULL);
         CREATE TABLE ticket (id bigint PRIMARY KEY, booking_id bigint NOT NULL, section text, row int, number int, price numeric(8,2))",
    );
    let name = db.name.clone();
    let text = program::config(&name, &db.url, kafka.address(), &[]);
    let (ends, _) = text.split_once("changes:").expect("it has changes");
    let events = format!(
        "aggregates: {{ Booking: {{ root: booking, topic: {name}.booking, children: {{ tickets: ticket.booking_id }} }} }}
events:
  BookingCreated:
    of: Booking
    when: created
    data: {{ bookingId: id, email: email, tickets: {{ each: tickets, data: {{ ticketId: id, section: section, price: price }} }} }}
"
    );
    db.execute("ALTER TABLE ticket ADD FOREIGN KEY (booking_id) REFERENCES booking");
    let config = format!("{ends}{events}");
    let mut offshoot = Offshoot::run(Path::new(env!("CARGO_BIN_EXE_offshoot")), &config);
    offshoot.wait_ready(program::START_MAX);

    let began = Instant::now();
    // Foreign keys are looked up row by row, which would be most of the test; these rows hold them all the same.
    db.execute(&format!(
        "BEGIN; SET LOCAL session_replication_role = replica;
         INSERT INTO ticket SELECT i, i / 3, 'section ' || i % 40, i % 50, i % 97, i % 300 + 0.5 FROM generate_series(0, {bookings} * 3 - 1) i;
         INSERT INTO booking SELECT i, 'somebody' || i || '@acme.example', now() FROM generate_series(0, {bookings} - 1) i;
         COMMIT"
    ));
    let committed = began.elapsed();
    offshoot.wait("its rows to be put together in a file", DEADLINE, |offshoot| {
        offshoot.metric("offshoot_netting_file_bytes").filter(|bytes| *bytes > 0.0)
    });
    assert_eq!(fs::read_dir(&offshoot.config().data_dir).unwrap().count(), 0, "the file has a name");
    let told = "offshoot_events_total{event=\"BookingCreated.v1\"}";
    offshoot.wait("all events to be acknowledged", DEADLINE, |offshoot| {
        (offshoot.metric("offshoot_records_acknowledged_total")? as usize == bookings).then_some(())
    });
    let delivered = began.elapsed();
    offshoot.wait("the files to go", DEADLINE, |offshoot| spill_file_of(offshoot).is_none().then_some(()));
    for (metric, value) in [
        (told, bookings),
        ("offshoot_net_rows_total", bookings * 4),
        ("offshoot_net_unmapped_rows_total", 0),
        ("offshoot_netted_on_disk_transactions_total", 1),
        ("offshoot_netting_file_bytes", 0),
    ] {
        assert_eq!(offshoot.metric(metric), Some(value as f64), "{metric}");
    }
    let (peak, cpu) = (offshoot.peak_memory().expect("it runs"), offshoot.process().cpu_time().expect("it runs"));
    println!(
        "{bookings} events of 4 rows each in one transaction: committed after {committed:.1?}, delivered after {delivered:.1?}, \
         peak {:.1} MiB, processor {cpu:.1?}",
        peak as f64 / (1 << 20) as f64,
    );
    assert!(offshoot.terminate(program::START_MAX).success());

    let topic = format!("{name}.booking");
    kafka.reader(&[topic.as_str()], DEADLINE).read_to_end(DEADLINE, |record| {
        // Fewer events than `limits.transaction_events`, although there may be more rows.
        assert!(!record.headers.iter().any(|(name, _)| name == "offshoot-split"), "{:?}", record.headers);
        let data = record.value.as_ref().expect("it has data");
        assert_eq!(data.windows(10).filter(|bytes| bytes == b"\"ticketId\"").count(), 3);
    });
    each_once(&topic, bookings);
    println!("read after {:.1?}", began.elapsed());
    assert!(peak < RESIDENT_BYTES_MAX, "{peak} bytes were resident");
}

#[test]
fn transactions_of_500_sessions_at_once_are_delivered_from_64_mib() {
    const SESSIONS: usize = 500;
    let rows_each = std::env::var("OFFSHOOT_TEST_ROWS").map_or(2_000, |rows| rows.parse().expect("a number"));
    let all: usize = SESSIONS * rows_each;
    let server = postgres::private(V17, &[("max_connections", "520")]);
    let kafka = kafka::shared();
    server.session("postgres").execute("CREATE TABLE sold (id int PRIMARY KEY)");
    let name = kafka.topic_name("many").replace('.', "_");
    let socket = server.socket_url("postgres");
    let config = program::config(&name, &server.url("postgres"), kafka.address(), &["public.sold"]);
    let mut offshoot = Offshoot::run(Path::new(env!("CARGO_BIN_EXE_offshoot")), &config);
    offshoot.wait_ready(program::START_MAX);

    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connect = |_| async {
            let (client, connection) = tokio_postgres::connect(&socket, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            Ok::<_, tokio_postgres::Error>(client)
        };
        let sessions = futures::future::try_join_all((0..SESSIONS).map(connect)).await.unwrap();
        let write = sessions.iter().enumerate().map(|(session, client)| {
            let rows = format!("generate_series({}, {}) i", session * rows_each, (session + 1) * rows_each - 1);
            async move { client.batch_execute(&format!("BEGIN; INSERT INTO sold SELECT i FROM {rows}")).await }
        });
        futures::future::try_join_all(write).await.unwrap();
        let commit = sessions.iter().map(|client| client.batch_execute("COMMIT"));
        futures::future::try_join_all(commit).await.unwrap();
    });
    let committed = began.elapsed();
    offshoot.wait("all records to be acknowledged", DEADLINE, |offshoot| {
        (offshoot.metric("offshoot_records_acknowledged_total")? as usize == all).then_some(())
    });
    let delivered = began.elapsed();
    let (peak, cpu) = (offshoot.peak_memory().expect("it runs"), offshoot.process().cpu_time().expect("it runs"));
    println!(
        "{SESSIONS} transactions of {rows_each} rows: committed after {committed:.1?}, delivered after {delivered:.1?}, \
         peak {:.1} MiB, processor {cpu:.1?}",
        peak as f64 / (1 << 20) as f64,
    );
    assert!(offshoot.terminate(program::START_MAX).success());
    each_once(&format!("{name}.public.sold"), all);
    println!("read after {:.1?}", began.elapsed());
    assert!(peak < RESIDENT_BYTES_MAX, "{peak} bytes were resident");
}

/// Reads a topic in which each `id` below `rows` must be once, and deletes it.
fn each_once(topic: &str, rows: usize) {
    let kafka = kafka::shared();
    let mut seen = vec![false; rows];
    let mut records = 0;
    kafka.reader(&[topic], DEADLINE).read_to_end(DEADLINE, |record| {
        // Millions of them: a parser would take as long as all else.
        let key = record.key.expect("it has a key");
        let id: String = String::from_utf8_lossy(&key).chars().filter(char::is_ascii_digit).collect();
        let id: usize = id.parse().expect("the key is an id");
        assert!(!std::mem::replace(&mut seen[id], true), "{id} came twice");
        records += 1;
    });
    assert_eq!(records, rows);
    kafka.delete_topic(topic);
}

/// The open file in the data directory, as the kernel names it.
fn spill_file_of(offshoot: &Offshoot) -> Option<PathBuf> {
    let files = fs::read_dir(format!("/proc/{}/fd", offshoot.pid())).ok()?.flatten();
    let mut files = files.filter_map(|file| fs::read_link(file.path()).ok());
    files.find(|file| file.starts_with(&offshoot.config().data_dir))
}
