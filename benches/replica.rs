//! A table of 10,000,000 rows -> what the replica of it takes: to load, to keep, to look up in, to find again.
//!
//!     make replica                   ROWS=10000000; CHANGES=500000: updates of scattered rows
//!
//! One row in two hundred belongs to a customer table of its own, which events look names up in. Every event needs two rows
//! of the replica (what the order was, its customer), and changes one. Memory is the kernel's peak (`VmHWM`), processor time
//! that of the whole process.

#[path = "../tests/it/support/mod.rs"]
mod support;

use std::{
    env, fs,
    path::Path,
    time::{Duration, Instant},
};

use support::{
    kafka::{self, Broker},
    postgres::{self, Db, V17},
    process,
    program::{self, Config, Offshoot},
};

const DEADLINE: Duration = Duration::from_secs(3600);
const NAME: &str = "kept";
const CUSTOMERS_PER_ORDER: f64 = 1.0 / 200.0;
const PER_TRANSACTION: u64 = 100;
const MIB: f64 = (1 << 20) as f64;

const EVENTS: &str = "
aggregates: { Order: { root: orders, topic: kept.order } }
events:
  OrderChanged:
    of: Order
    when: { status: changed }
    data: { orderId: id, was: old.status, now: status, customer: customer.name, price: price }";

fn main() {
    let number = |name: &str, usual: u64| env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let (rows, changes) = (number("ROWS", 10_000_000), number("CHANGES", 500_000));
    let customers = ((rows as f64 * CUSTOMERS_PER_ORDER) as u64).max(1);
    let settings = [("synchronous_commit", "off"), ("shared_buffers", "512MB"), ("max_wal_size", "8GB")];
    let server = postgres::private(V17, &settings);
    let broker = kafka::private(&kafka::Options { heap: "1g", optimize: true, ..kafka::Options::default() });
    let db = server.create_database();
    db.execute(&format!(
        "CREATE TABLE other (id int PRIMARY KEY);
        CREATE TABLE customer (id bigint PRIMARY KEY, name text NOT NULL);
        CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint NOT NULL REFERENCES customer, status int NOT NULL,
            price numeric(10,2) NOT NULL, note text);
        INSERT INTO customer SELECT i, 'a customer by the name of ' || i FROM generate_series(1, {customers}) i;
        ALTER TABLE orders DISABLE TRIGGER ALL;
        INSERT INTO orders SELECT i, 1 + i % {customers}, 0, i % 1000 + 0.5, 'a note that no event tells'
            FROM generate_series(1, {rows}) i;
        ALTER TABLE orders ENABLE TRIGGER ALL"
    ));
    db.execute("VACUUM ANALYZE");
    let data_dir = process::new_dir("replica-bench");
    let text = program::config(NAME, &db.url, broker.address(), &["public.other"]);
    let (ends, _) = text.split_once("changes:").expect("it has changes");
    let topics = "topics: { partitions: 1, properties: { message.timestamp.type: LogAppendTime } }";
    let ends = ends.replace("delivery: exactly_once", &format!("{topics}, delivery: exactly_once"));
    let config = Config::new(&format!("{ends}data_dir: {}{EVENTS}\n", data_dir.display()));

    println!("| {rows} orders, {customers} customers | |\n|---|---|");
    let began = Instant::now();
    let mut offshoot = start(&config);
    offshoot.wait_log("has loaded what events need", DEADLINE);
    let took = began.elapsed();
    let all = (rows + customers) as f64;
    println!("| the load, s | {:.1} |\n| rows a second | {:.0} |", took.as_secs_f64(), all / took.as_secs_f64());
    confirmed(&db, &mut offshoot);
    println!("| processor time of the load, µs a row | {:.2} |", cpu(&mut offshoot) * 1e6 / all);
    println!("| memory at its peak, MiB | {:.1} |", peak(&offshoot));
    assert!(offshoot.terminate(DEADLINE).success());
    println!("| the file, MiB | {:.0} |", size(&data_dir) / MIB);
    println!("| the topic, MiB | {:.0} |", topic_size(&broker) / MIB);

    db.execute(&format!(
        "DO $$ BEGIN FOR t IN 1 .. {} LOOP UPDATE orders SET status = status + 1 WHERE id IN
         (SELECT (random() * {})::bigint + 1 FROM generate_series(1, {PER_TRANSACTION})); COMMIT; END LOOP; END $$",
        changes / PER_TRANSACTION,
        rows - 1
    ));
    let changed: u64 = db.text("SELECT sum(status) FROM orders").parse().expect("a number");
    for (what, again) in [("the cache", false), ("an empty disk", true)] {
        if again {
            fs::remove_dir_all(&data_dir).unwrap();
            fs::create_dir_all(&data_dir).unwrap();
        }
        let began = Instant::now();
        let mut offshoot = start(&config);
        offshoot.wait_ready(DEADLINE);
        println!("| a start with {what}, s | {:.2} |", began.elapsed().as_secs_f64());
        if !again {
            let started = cpu(&mut offshoot);
            let told = |offshoot: &Offshoot| offshoot.metric("offshoot_events_total{event=\"OrderChanged.v1\"}");
            offshoot.wait("all events", DEADLINE, |offshoot| (told(offshoot)? >= changed as f64).then_some(()));
            confirmed(&db, &mut offshoot);
            let (mut first, mut last, mut read) = (i64::MAX, 0, 0);
            broker.reader(&["kept.order"], DEADLINE).read_to_end(DEADLINE, |record| {
                (first, last) = (first.min(record.timestamp), last.max(record.timestamp));
                read += 1;
            });
            assert_eq!(read, changed, "an event for each changed row");
            let rate = changed as f64 * 1e3 / (last - first).max(1) as f64;
            println!(
                "| events a second, each of a scattered row | {rate:.0} |\n| look-ups a second | {:.0} |",
                rate * 2.0
            );
            println!(
                "| processor time of an event, µs | {:.1} |",
                (cpu(&mut offshoot) - started) * 1e6 / changed as f64
            );
        }
        println!("| memory at its peak, MiB | {:.1} |", peak(&offshoot));
        assert!(offshoot.terminate(DEADLINE).success());
        println!("| the file, MiB | {:.0} |", size(&data_dir) / MIB);
    }
    println!("| the topic, MiB | {:.0} |", topic_size(&broker) / MIB);
}

fn start(config: &Config) -> Offshoot {
    Offshoot::run_again(Path::new(env!("CARGO_BIN_EXE_offshoot")), config)
}

fn confirmed(db: &Db, offshoot: &mut Offshoot) {
    let end = db.text("SELECT pg_current_wal_lsn()");
    let sql =
        format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'offshoot_{NAME}'");
    offshoot.wait("everything to be confirmed", DEADLINE, |_| (db.text(&sql) == "t").then_some(()));
}

fn cpu(offshoot: &mut Offshoot) -> f64 {
    offshoot.process().cpu_time().expect("it runs").as_secs_f64()
}

fn peak(offshoot: &Offshoot) -> f64 {
    offshoot.peak_memory().expect("it runs") as f64 / MIB
}

/// Of the files below a directory; 0 without one.
fn size(dir: &Path) -> f64 {
    let files = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok);
    files
        .filter_map(|file| file.metadata().ok())
        .filter(|metadata| metadata.is_file())
        .map(|file| file.len() as f64)
        .sum()
}

fn topic_size(broker: &Broker) -> f64 {
    let dir = broker.dir().expect("it is on this machine").join("data");
    size(&dir.join(format!("offshoot.{NAME}.replica-0")))
}
