//! What docs/mapping.md tells consumers and newcomers, done as it is written.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use crate::{
    pipe::{DEADLINE, Pipe, stops},
    support::{
        kafka,
        postgres::{self, Session, Version::V17},
        program::{Config, Offshoot, output},
        wait,
    },
};

#[path = "../../examples/in_commit_order.rs"]
#[allow(dead_code, unreachable_pub)]
mod in_commit_order;

use in_commit_order::Merge;

const SESSIONS: usize = 6;
const STEPS: usize = 1500;
/// Between two of them the writer waits for the reader.
const BATCHES: usize = 15;
/// The last event of all.
const LAST: usize = 1_000_000;

/// Transactions that overlap -> what they tell, in the order of their commits.
#[derive(Default)]
struct Written {
    events: Vec<String>,
    /// Commits of transactions that began after another one that was still open.
    overtaken: usize,
}

/// What an open transaction has inserted: orders and stock, and when it began.
#[derive(Default)]
struct Open {
    orders: Vec<usize>,
    stock: Vec<usize>,
    began: usize,
}

impl Written {
    fn commit(&mut self, open: &Open, order: &str, stock: &str) {
        // As the events are declared, then by key.
        for (topic, name, ids) in [(order, "orderId", &open.orders), (stock, "sku", &open.stock)] {
            self.events.extend(ids.iter().map(|id| format!("{topic} {id} {{\"{name}\":{id}}}")));
        }
    }
}

/// One thread, so that the order of the commits is known.
fn write(sessions: &[Session], order: &str, stock: &str, read: &AtomicUsize) -> Written {
    let mut written = Written::default();
    let mut open: Vec<Option<Open>> = sessions.iter().map(|_| None).collect();
    let mut random = 7_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut seen = 0;
    for step in 1..=STEPS {
        if step % (STEPS / BATCHES) == 0 {
            // Some has been told, and most transactions are open.
            wait::until(DEADLINE, "something to be told", || read.load(Ordering::Relaxed) > seen);
            seen = read.load(Ordering::Relaxed);
        }
        let at = next(sessions.len() as u64) as usize;
        let session = &sessions[at];
        let Some(of) = &mut open[at] else {
            session.execute("BEGIN");
            open[at] = Some(Open { began: step, ..Open::default() });
            continue;
        };
        match next(12) {
            0..=2 => {
                session.execute("COMMIT");
                let done = open[at].take().unwrap();
                written.overtaken += usize::from(open.iter().flatten().any(|other| other.began < done.began));
                written.commit(&done, order, stock);
            }
            3 => {
                session.execute("ROLLBACK");
                open[at] = None;
            }
            4..=7 => {
                session.execute(&format!("INSERT INTO orders VALUES ({step})"));
                of.orders.push(step);
            }
            _ => {
                session.execute(&format!("INSERT INTO stock VALUES ({step})"));
                of.stock.push(step);
            }
        }
    }
    for (session, _) in sessions.iter().zip(&open).filter(|(_, open)| open.is_some()) {
        session.execute("ROLLBACK");
    }
    sessions[0].execute(&format!("INSERT INTO stock VALUES ({LAST})"));
    written.commit(&Open { stock: vec![LAST], ..Open::default() }, order, stock);
    written
}

/// A line without its sequence.
fn told(line: &str) -> String {
    line.split_once(' ').unwrap().1.to_owned()
}

#[test]
fn two_topics_are_merged_into_the_order_of_commits() {
    let db = postgres::shared(V17).create_database();
    db.execute("CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE stock (sku int PRIMARY KEY)");
    let (order, stock) = (format!("{}.order", db.name), format!("{}.stock", db.name));
    let rest = format!(
        "aggregates:
  Order: {{ root: orders, topic: {order} }}
  Stock: {{ root: stock, topic: {stock} }}
events:
  Placed: {{ of: Order, when: created, data: {{ orderId: id }} }}
  Counted: {{ of: Stock, when: created, data: {{ sku: sku }} }}"
    );
    let kafka = "topics: { partitions: 4 }\ncommit_interval: 5ms".into();
    let pipe = Pipe { rest, kafka, ..Pipe::of(&db) };
    let mut offshoot = pipe.ready();
    db.execute("BEGIN; INSERT INTO orders VALUES (0); INSERT INTO stock VALUES (0); COMMIT");
    let made = || [&order, &stock].iter().all(|topic| kafka::shared().partitions(topic) == 4);
    offshoot.wait("both topics", DEADLINE, |_| made().then_some(()));

    // It reads while they are written, which is when an event may be missing that belongs before.
    let names = [order.clone(), stock.clone()];
    let brokers = kafka::shared().address().to_string();
    let read = Arc::new(AtomicUsize::new(0));
    let reading = {
        let (names, read) = (names.clone(), read.clone());
        thread::spawn(move || {
            let (mut merge, mut lines) = (Merge::new(&brokers, &names).unwrap(), Vec::new());
            let (began, last, mut rounds) = (Instant::now(), format!(" {LAST} "), 0);
            while !lines.last().is_some_and(|line: &String| line.contains(&last)) {
                assert!(began.elapsed() < DEADLINE, "{} events in {rounds} rounds", lines.len());
                let (events, _) = merge.round().unwrap();
                rounds += usize::from(!events.is_empty());
                lines.extend(events);
                read.store(lines.len(), Ordering::Relaxed);
            }
            (lines, rounds)
        })
    };
    let sessions: Vec<Session> = (0..SESSIONS).map(|_| db.connect()).collect();
    let mut written = Written::default();
    written.commit(&Open { orders: vec![0], stock: vec![0], began: 0 }, &order, &stock);
    let rest = write(&sessions, &order, &stock, &read);
    written.events.extend(rest.events);
    let (lines, rounds) = reading.join().unwrap();
    assert_eq!(lines.iter().map(|line| told(line)).collect::<Vec<_>>(), written.events);
    assert!(rest.overtaken > 50 && rounds >= BATCHES, "{} overtaken, {rounds} rounds", rest.overtaken);
    println!("{} events, {} transactions overtaken, {rounds} rounds", lines.len(), rest.overtaken);
    // Whoever comes later sees the same.
    let (mut merge, mut again) = (Merge::new(kafka::shared().address(), &names).unwrap(), Vec::new());
    loop {
        let (events, is_all) = merge.round().unwrap();
        again.extend(events);
        if is_all {
            break;
        }
    }
    assert_eq!(again, lines);
    stops(offshoot);
}

/// The code blocks of a language in a section of the guide, in order.
fn blocks(section: &str, language: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut inside = false;
    for line in section.lines().map(str::trim_end) {
        let bare = line.strip_prefix("   ").unwrap_or(line);
        match bare.trim_start().strip_prefix("```") {
            Some(word) if !inside && word == language => {
                inside = true;
                blocks.push(String::new());
            }
            Some(_) => inside = false,
            None if inside => *blocks.last_mut().unwrap() += &format!("{bare}\n"),
            None => {}
        }
    }
    blocks
}

#[test]
fn the_guide_takes_a_newcomer_from_a_table_to_an_event() {
    let guide = include_str!("../../docs/mapping.md");
    let section = guide.split("\n## From a table to an event in ten minutes\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let sql = blocks(section, "sql");
    let [create, full, insert, cancel] = &sql[..] else { panic!("{sql:#?}") };
    let yaml = blocks(section, "yaml");
    let [config] = &yaml[..] else { panic!("{yaml:#?}") };
    let json = blocks(section, "json");
    let [placed, cancelled] = &json[..] else { panic!("{json:#?}") };

    let db = postgres::shared(V17).create_database();
    let name = &db.name;
    let topic = format!("{name}.order");
    // Only what is this machine's is another; the password stays in the variable.
    let config = config
        .replace("name: shop", &format!("name: {name}"))
        .replace("topic: shop.order", &format!("topic: {topic}"))
        .replace("localhost:9092", kafka::shared().address());
    let config = Config::new(&config);
    let command = |arguments: &[&str]| {
        let mut command = std::process::Command::new(crate::pipe::binary());
        command.arg(arguments[0]).arg("-c").arg(&config.path).args(&arguments[1..]).env("DATABASE_URL", &db.url);
        command
    };
    db.execute(create);
    let (code, said) = output(&mut command(&["check"]));
    assert_eq!(code, Some(0), "{said}");
    let statement = full.trim_end().trim_end_matches(';');
    for words in ["OrderPlaced.v1", "OrderCancelled.v1", "complete with the replica", "orderId", "shipTo", statement] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let mut offshoot = Offshoot::start(command(&["run"]), &config);
    offshoot.wait_ready(DEADLINE);
    db.execute(insert);
    db.execute(cancel);
    let records =
        || if kafka::shared().partitions(&topic) == 0 { Vec::new() } else { kafka::shared().read_all(&topic) };
    let records = offshoot.wait("both events", DEADLINE, |_| Some(records()).filter(|records| records.len() == 2));
    let text = |bytes: &Option<Vec<u8>>| String::from_utf8(bytes.clone().unwrap()).unwrap();
    let key = "11111111-1111-4111-8111-111111111111";
    assert!(section.contains(&format!("under the key `{key}`")));
    let shown: Vec<_> = records.iter().map(|record| (text(&record.key), text(&record.value) + "\n")).collect();
    assert_eq!(shown, [(key.to_owned(), placed.clone()), (key.to_owned(), cancelled.clone())]);
    stops(offshoot);
    // And away again, as it says.
    assert!(section.contains("offshoot drop -c offshoot.yaml"));
    let (code, said) = output(&mut command(&["drop", "--yes"]));
    assert_eq!(code, Some(0), "{said}");
    let left = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())";
    assert_eq!(db.text(left), "0");
}
