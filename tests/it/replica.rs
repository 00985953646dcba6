//! What is held of the source's tables, on real servers: killed, moved, lost, loaded again -> the same events, each once.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use redb::ReadableTable as _;
use serde_json::{Value, json};

use crate::{
    network::before_postgres,
    pipe::{DEADLINE, Pipe, binary, ends, says, stops},
    support::{
        kafka::{self, Record},
        postgres::{self, Db, Session, V17},
        process,
        program::{Config, Offshoot},
        wait,
    },
};

/// Lives in CI; `make soak LIVES=1000` for a night.
const LIVES: usize = 10;
/// How long a life lasts from when it streams, in milliseconds.
const LIFE: std::ops::Range<u64> = 50..700;
const LOADED: &str = "has loaded what events need";

const SCHEMA: &str = "
    CREATE TABLE other (id int PRIMARY KEY);
    CREATE TABLE region (id int PRIMARY KEY, name text NOT NULL);
    CREATE TABLE orders (id bigint PRIMARY KEY, region_id int NOT NULL REFERENCES region, status int NOT NULL,
        note text NOT NULL DEFAULT '', paid numeric);
    ALTER TABLE orders ALTER COLUMN note SET STORAGE EXTERNAL;
    CREATE TABLE line (order_id bigint NOT NULL REFERENCES orders ON UPDATE CASCADE ON DELETE CASCADE, no int,
        sku text NOT NULL, PRIMARY KEY (order_id, no));
    INSERT INTO region SELECT i, 'r' || i FROM generate_series(1, 5) i;
    INSERT INTO orders SELECT i, 1 + i % 5, 0 FROM generate_series(1, 400) i;
    INSERT INTO line SELECT i, n, 'sku-' || n FROM generate_series(1, 400) i, generate_series(1, 2) n;";

const AGGREGATES: &str = "types: com.acme
aggregates:
  Region: { root: region, topic: NAME.region }
  Order: { root: orders, topic: NAME.order, children: { lines: line.order_id } }
events:";
const RENAMED: &str =
    "  RegionRenamed: { of: Region, when: { name: changed }, data: { id: id, was: old.name, now: name } }";
const PLACED: &str = "  OrderPlaced: { of: Order, when: created, data: { id: id, in: region.name, lines: { each: lines, data: { no: no, sku: sku } } } }";
const CHANGED: &str = "  OrderChanged:
    of: Order
    when: { status: changed }
    data: { id: id, was: old.status, now: status, wasIn: old.region.name, in: region.name, note: note, lines: { each: lines, data: { no: no, sku: sku } } }";
const DELETED: &str = "  OrderDeleted: { of: Order, when: deleted, data: { id: id, in: region.name, lines: { each: lines, data: { no: no, sku: sku } } } }";
const THERE: &str = "  OrderThere: { of: Order, when: backfill, data: { id: id, in: region.name, lines: { each: lines, data: { no: no } } } }";

/// A database and a pipeline on the shared servers, whose disk stays.
struct Walk {
    db: Db,
    pipe: Pipe,
}

impl Walk {
    fn new(schema: &str, events: &[&str]) -> Walk {
        Walk::on(postgres::shared(V17).create_database(), schema, events)
    }

    fn on(db: Db, schema: &str, events: &[&str]) -> Walk {
        db.execute(schema);
        let mut walk = Walk { pipe: Pipe::of(&db), db };
        walk.pipe.tables = "public.other".into();
        walk.pipe.kafka = "topics: { partitions: 1 }".into();
        walk.remap(events);
        walk
    }

    fn remap(&mut self, events: &[&str]) {
        self.remap_in(AGGREGATES, events);
    }

    fn remap_in(&mut self, aggregates: &str, events: &[&str]) {
        let of = |line: &&str| line.trim_start().starts_with("data_dir:") || line.starts_with("limits:");
        let kept: Vec<_> = self.pipe.rest.lines().filter(of).map(str::to_owned).collect();
        let data_dir = match kept.is_empty() {
            true => vec![format!("data_dir: {}", process::new_dir("replica").display())],
            false => kept,
        };
        let mapping = format!("{aggregates}\n{}", events.join("\n")).replace("NAME", &self.pipe.name);
        self.pipe.rest = format!("{mapping}\n{}", data_dir.join("\n"));
    }

    fn data_dir(&self) -> &Path {
        Path::new(self.pipe.rest.lines().find_map(|line| line.strip_prefix("data_dir: ")).unwrap())
    }

    fn topic(&self) -> String {
        format!("offshoot.{}.replica", self.pipe.name)
    }

    fn run(&self) -> Offshoot {
        self.pipe.run()
    }

    /// Runs until everything is loaded.
    #[track_caller]
    fn loaded(&self) -> Offshoot {
        let mut offshoot = self.run();
        offshoot.wait_log(LOADED, DEADLINE);
        offshoot
    }

    /// What the topics of events hold: kind, and data.
    fn told(&self) -> Vec<(String, Value)> {
        let kafka = kafka::shared();
        let topics = ["region", "order"].map(|topic| format!("{}.{topic}", self.pipe.name));
        let there = topics.iter().filter(|topic| kafka.partitions(topic) > 0);
        let mut records: Vec<Record> = there.flat_map(|topic| kafka.read_all(topic)).collect();
        records.sort_by_key(|record| header(record, "ce_sequence"));
        records.iter().map(|record| (kind(record), record.value_json())).collect()
    }

    #[track_caller]
    fn tells(&self, offshoot: &mut Offshoot, expected: &[(&str, Value)]) {
        offshoot.wait("the events", DEADLINE, |_| (self.told().len() >= expected.len()).then_some(()));
        assert_eq!(self.told(), named(expected));
    }

    /// Stops once what is committed now is confirmed.
    #[track_caller]
    fn settles(&self, mut offshoot: Offshoot) {
        confirmed(&self.db, &self.pipe.slot(), &mut offshoot);
        stops(offshoot);
    }

    /// The keys of rows that the replica's topic has, as a compaction would leave it.
    fn rows(&self) -> BTreeSet<Vec<u8>> {
        let mut rows = BTreeSet::new();
        let mut reader = kafka::shared().reader(&[&self.topic()], DEADLINE);
        reader.read_to_end(DEADLINE, |record| {
            let key = record.key.expect("a compacted topic has keys");
            _ = if record.value.is_some() { rows.insert(key) } else { rows.remove(&key) };
        });
        rows
    }
}

#[track_caller]
fn confirmed(db: &Db, slot: &str, offshoot: &mut Offshoot) {
    let end = db.text("SELECT pg_current_wal_lsn()");
    let sql = format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{slot}'");
    offshoot.wait("everything to be confirmed", DEADLINE, |_| (db.text(&sql) == "t").then_some(()));
}

fn header(record: &Record, name: &str) -> String {
    let value = record.headers.iter().find(|(header, _)| header == name).and_then(|(_, value)| value.as_deref());
    String::from_utf8(value.unwrap_or_default().to_vec()).unwrap()
}

/// As `Walk::told` has it.
fn named(expected: &[(&str, Value)]) -> Vec<(String, Value)> {
    expected.iter().map(|(kind, data)| ((*kind).to_owned(), data.clone())).collect()
}

fn kind(record: &Record) -> String {
    header(record, "ce_type").strip_prefix("com.acme.").unwrap_or_default().trim_end_matches(".v1").to_owned()
}

fn renamed(id: i32, was: &str, now: &str) -> (&'static str, Value) {
    ("RegionRenamed", json!({ "id": id, "was": was, "now": now }))
}

// Killed at any moment.

#[derive(Clone, PartialEq)]
struct Order {
    region: i32,
    status: i32,
    note: String,
    lines: BTreeMap<i32, String>,
}

/// The tables as they are, and what should have been told of how they came to be so.
struct World {
    regions: BTreeMap<i32, String>,
    orders: BTreeMap<i64, Order>,
    fresh: i64,
    told: BTreeMap<&'static str, Vec<(String, String, Value)>>,
    rng: fastrand::Rng,
}

impl World {
    /// As `SCHEMA` makes it.
    fn new(seed: u64) -> World {
        let lines = || (1..=2).map(|no| (no, format!("sku-{no}"))).collect();
        let order = |id: i64| Order { region: 1 + (id % 5) as i32, status: 0, note: String::new(), lines: lines() };
        World {
            regions: (1..=5).map(|id| (id, format!("r{id}"))).collect(),
            orders: (1..=400).map(|id| (id, order(id))).collect(),
            fresh: 1000,
            told: BTreeMap::from([("region", Vec::new()), ("order", Vec::new())]),
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// A transaction; each order is touched by one statement of it at most.
    fn step(&mut self) -> String {
        let (regions, orders) = (self.regions.clone(), self.orders.clone());
        let mut free: Vec<i64> = orders.keys().copied().collect();
        self.rng.shuffle(&mut free);
        let mut moved = BTreeMap::new();
        let statements = if self.rng.u8(..) < 10 { 60 } else { self.rng.usize(1..6) };
        let mut sql = String::from("BEGIN;");
        if self.rng.u8(..) < 4 {
            // More than one of Kafka's transactions holds.
            sql += "UPDATE orders SET status = status + 1; UPDATE line SET sku = sku || 'x';";
            for order in self.orders.values_mut() {
                order.status += 1;
                order.lines.values_mut().for_each(|sku| sku.push('x'));
            }
        }
        for _ in 0..statements {
            sql += &self.statement(&mut free, &mut moved);
        }
        if self.rng.u8(..) < 20 {
            (self.regions, self.orders) = (regions, orders);
            return sql + "ROLLBACK";
        }
        self.tell(&regions, &orders, &moved);
        sql + "COMMIT"
    }

    fn statement(&mut self, free: &mut Vec<i64>, moved: &mut BTreeMap<i64, i64>) -> String {
        let choice = self.rng.u8(..);
        let region = self.rng.i32(1..=5);
        self.fresh += 1;
        let fresh = self.fresh;
        if choice < 25 {
            self.regions.insert(region, format!("r{region}-{fresh}"));
            return format!("UPDATE region SET name = 'r{region}-{fresh}' WHERE id = {region};");
        }
        let Some(id) = free.pop().filter(|_| choice >= 60 || self.orders.len() > 450) else {
            let lines: BTreeMap<_, _> = (0..self.rng.i32(0..4)).map(|no| (no, format!("s{fresh}"))).collect();
            let note = "n".repeat(self.rng.usize(0..20));
            let mut sql = format!("INSERT INTO orders VALUES ({fresh}, {region}, 0, '{note}');");
            for (no, sku) in &lines {
                sql += &format!("INSERT INTO line VALUES ({fresh}, {no}, '{sku}');");
            }
            self.orders.insert(fresh, Order { region, status: 0, note, lines });
            return sql;
        };
        let order = self.orders.get_mut(&id).unwrap();
        match choice {
            ..110 => {
                order.status += 1;
                format!("UPDATE orders SET status = status + 1 WHERE id = {id};")
            }
            110..130 => {
                (order.status, order.region) = (order.status + 1, region);
                format!("UPDATE orders SET status = status + 1, region_id = {region} WHERE id = {id};")
            }
            130..145 => {
                order.region = region;
                format!("UPDATE orders SET region_id = {region} WHERE id = {id};")
            }
            145..165 => {
                // Too long for its row: an update that leaves it as it is does not tell it.
                order.note = format!("{fresh}").repeat(600);
                format!("UPDATE orders SET note = repeat('{fresh}', 600) WHERE id = {id};")
            }
            165..200 => {
                let no = self.rng.i32(0..4);
                order.lines.insert(no, format!("s{fresh}"));
                format!(
                    "INSERT INTO line VALUES ({id}, {no}, 's{fresh}') ON CONFLICT (order_id, no) DO UPDATE SET sku = excluded.sku;"
                )
            }
            200..215 => {
                let no = self.rng.i32(0..4);
                order.lines.remove(&no);
                format!("DELETE FROM line WHERE order_id = {id} AND no = {no};")
            }
            215..235 => {
                let mut order = self.orders.remove(&id).unwrap();
                order.status += 1;
                self.orders.insert(fresh, order);
                moved.insert(fresh, id);
                format!("UPDATE orders SET id = {fresh}, status = status + 1 WHERE id = {id};")
            }
            235.. => {
                self.orders.remove(&id);
                format!("DELETE FROM orders WHERE id = {id};")
            }
        }
    }

    /// What the step from there to here tells, in the order of the mapping, then by key.
    fn tell(&mut self, regions: &BTreeMap<i32, String>, orders: &BTreeMap<i64, Order>, moved: &BTreeMap<i64, i64>) {
        let lines = |order: &Order| -> Vec<Value> {
            order.lines.iter().map(|(no, sku)| json!({ "no": no, "sku": sku })).collect()
        };
        let told = self.told.get_mut("region").unwrap();
        for (id, now) in self.regions.iter().filter(|(id, now)| regions[*id] != **now) {
            told.push((id.to_string(), "RegionRenamed".into(), json!({ "id": id, "was": regions[id], "now": now })));
        }
        let told = self.told.get_mut("order").unwrap();
        let before = |id: &i64| orders.get(moved.get(id).unwrap_or(id));
        for (id, order) in self.orders.iter().filter(|(id, _)| before(id).is_none()) {
            let data = json!({ "id": id, "in": self.regions[&order.region], "lines": lines(order) });
            told.push((id.to_string(), "OrderPlaced".into(), data));
        }
        for (id, order) in &self.orders {
            let Some(was) = before(id).filter(|was| was.status != order.status) else { continue };
            let data = json!({
                "id": id, "was": was.status, "now": order.status, "wasIn": regions[&was.region],
                "in": self.regions[&order.region], "note": order.note, "lines": lines(order),
            });
            told.push((id.to_string(), "OrderChanged".into(), data));
        }
        let is_gone = |id: &i64| !self.orders.contains_key(id) && !moved.values().any(|from| from == id);
        for (id, order) in orders.iter().filter(|(id, _)| is_gone(id)) {
            // Of what it led to, as it is now; of itself and its children, as they were.
            let data = json!({ "id": id, "in": self.regions[&order.region], "lines": lines(order) });
            told.push((id.to_string(), "OrderDeleted".into(), data));
        }
    }
}

#[test]
fn killed_moved_wiped_and_taken_over_tells_the_same_events_byte_for_byte() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let lives = number("OFFSHOOT_TEST_LIVES").map_or(LIVES, |lives| lives as usize);
    let seed = number("OFFSHOOT_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}, {lives} lives");
    let mut rng = fastrand::Rng::with_seed(seed);
    let walk = Walk::new(SCHEMA, &[RENAMED, PLACED, CHANGED, DELETED]);
    let name = &walk.pipe.name;
    // Large transactions are spread over several of Kafka's.
    let yaml = |name: &str| {
        let text = walk.pipe.yaml().replace(&walk.pipe.name, name).replace(&walk.pipe.url, &walk.db.url);
        let lines = text.lines().filter(|line| !line.starts_with("data_dir:"));
        lines.chain(["limits: { transaction_events: 1000 }"]).collect::<Vec<_>>().join("\n")
    };
    let undisturbed = format!("{name}_calm");
    let calm = Config::new(&yaml(&undisturbed).replace(&walk.db.url.replace(name, &undisturbed), &walk.db.url));
    let machines = [(); 2].map(|()| Config::new(&yaml(name)));
    let start = |machine: &Config| {
        let mut command = Command::new(binary());
        command.arg("run").arg("-c").arg(&machine.path);
        Offshoot::start(command, machine)
    };
    // What is written before all is loaded is not promised.
    for mut life in [&calm, &machines[0]].map(start) {
        life.wait_log(LOADED, DEADLINE);
        stops(life);
    }
    let mut world = World::new(seed);
    let stop = AtomicBool::new(false);
    let transactions = thread::scope(|scope| {
        let (stop, world, url) = (&stop, &mut world, &walk.db.url);
        let writer = scope.spawn(move || {
            let session = Session::connect(url).unwrap();
            let mut transactions = 0;
            while !stop.load(Relaxed) {
                session.execute(&world.step());
                transactions += 1;
                let _ = wait::attempt(Duration::from_millis(10), || stop.load(Relaxed));
            }
            transactions
        });
        let lives = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut standby: Option<Offshoot> = None;
            for number in 0..lives {
                let here = &machines[number % 2];
                let mut life = standby.take().unwrap_or_else(|| start(here));
                if number % 5 != 4 {
                    life.wait_ready(DEADLINE);
                }
                if number % 3 == 1 {
                    standby = Some(start(&machines[(number + 1) % 2]));
                }
                let lasts = Duration::from_millis(rng.u64(LIFE));
                if let Ok(status) = wait::attempt(lasts, || life.process().exited()) {
                    panic!("it ended with {status}; its log:\n{}", life.log().join("\n"));
                }
                life.kill();
                if number % 4 == 2 {
                    let file = here.data_dir.join(format!("replica-{name}.redb"));
                    fs::remove_file(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
                }
            }
            drop(standby);
        }));
        stop.store(true, Relaxed);
        let transactions = writer.join().expect("the writer does not panic");
        lives.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        transactions
    });
    let (mut last, mut once) = (start(&machines[0]), start(&calm));
    confirmed(&walk.db, &format!("offshoot_{name}"), &mut last);
    confirmed(&walk.db, &format!("offshoot_{undisturbed}"), &mut once);
    stops(last);
    stops(once);

    let kafka = kafka::shared();
    let mut events = 0;
    for (topic, expected) in &world.told {
        let (found, calm) =
            (kafka.read_all(&format!("{name}.{topic}")), kafka.read_all(&format!("{undisturbed}.{topic}")));
        let told = |record: &Record| {
            let key = String::from_utf8(record.key.clone().unwrap()).unwrap();
            (key, kind(record), record.value_json())
        };
        let records = found.iter().map(told);
        for (index, (told, expected)) in records.zip(expected).enumerate() {
            assert_eq!(told, *expected, "{topic} {index}: {:?}", found[index].headers);
        }
        assert_eq!(found.len(), expected.len(), "{topic}");
        let bytes = |record: &Record| {
            let headers = record.headers.iter().filter(|(name, _)| name != "ce_source").cloned();
            (record.key.clone(), record.value.clone(), headers.collect::<Vec<_>>())
        };
        for (found, calm) in found.iter().zip(&calm) {
            assert_eq!(bytes(found), bytes(calm), "{topic}: one that was never killed tells it otherwise");
        }
        assert_eq!(found.len(), calm.len(), "{topic}");
        events += found.len();
    }
    let rows = world.regions.len() + world.orders.values().map(|order| 1 + order.lines.len()).sum::<usize>();
    assert_eq!(walk.rows().len(), rows, "rows that the topic has");
    println!("{transactions} transactions, {events} events, {lives} lives");
    assert!(events > 100 * lives.min(10) / 10, "{events} events are too few to tell anything");
}

#[test]
fn a_standby_follows_the_topic_and_reads_only_the_tail_when_it_takes_over() {
    let walk = Walk::new(SCHEMA, &[CHANGED]);
    let mut active = walk.loaded();
    let dir = process::new_dir("replica");
    let elsewhere = Config::new(&walk.pipe.yaml().replace(walk.data_dir().to_str().unwrap(), dir.to_str().unwrap()));
    let mut command = Command::new(binary());
    command.arg("run").arg("-c").arg(&elsewhere.path);
    // What passes: somebody looks at its file just then.
    let looked_at = redb::Database::create(dir.join(format!("replica-{}.redb", walk.pipe.name))).unwrap();
    let mut standby = Offshoot::start(command, &elsewhere);
    says(&standby.wait_log("a standby that does not follow", DEADLINE), &["another process has it open"]);
    drop(looked_at);
    standby.wait_log("follows the replica's topic meanwhile", DEADLINE);
    let read = |standby: &Offshoot| standby.metric("offshoot_replica_restored_records_total").unwrap_or(0.0);
    standby.wait("the rows to be followed", DEADLINE, |o| (read(o) >= 1205.0).then_some(()));
    let gave_up = || standby.log().iter().filter(|line| line.contains("a standby that does not follow")).count();
    assert_eq!(gave_up(), 1, "it is said once");
    walk.db.execute("UPDATE orders SET status = 1 WHERE id <= 300");
    standby.wait("what comes later to be followed", DEADLINE, |o| (read(o) >= 1505.0).then_some(()));
    assert_eq!(standby.get("/readyz").map(|(status, _)| status), Some(503));
    let followed = read(&standby);
    let lines = json!([{ "no": 1, "sku": "sku-1" }, { "no": 2, "sku": "sku-2" }]);
    let told = |id: i32, was: i32| {
        let within = format!("r{}", 1 + id % 5);
        let data =
            json!({ "id": id, "was": was, "now": was + 1, "wasIn": within, "in": within, "note": "", "lines": lines });
        ("OrderChanged", data)
    };
    let mut expected: Vec<_> = (1..=300).map(|id| told(id, 0)).collect();
    walk.tells(&mut active, &expected);
    active.kill();
    walk.db.execute("UPDATE orders SET status = 2 WHERE id IN (7, 300); UPDATE orders SET status = 1 WHERE id = 400");
    expected.extend([told(7, 1), told(300, 1), told(400, 0)]);
    walk.tells(&mut standby, &expected);
    assert!(read(&standby) - followed <= 3.0, "{} records after {followed}", read(&standby) - followed);
    walk.settles(standby);
    assert_eq!(walk.rows().len(), 1205);
}

// Loads.

const BIG_AGGREGATES: &str = "types: com.acme
aggregates: { Big: { root: big, topic: NAME.order } }
events:";
const BIG_CHANGED: &str = "  Changed: { of: Big, when: { v: changed }, data: { id: id, was: old.v, now: v } }";

fn changed(id: i32, was: i32, now: i32) -> (&'static str, Value) {
    ("Changed", json!({ "id": id, "was": was, "now": now }))
}

#[test]
fn killed_while_it_loads_it_loads_again_and_what_is_left_of_the_first_load_goes() {
    let mut walk = Walk::new(SCHEMA, &[CHANGED]);
    let (proxy, url) = before_postgres(&walk.db);
    let direct = std::mem::replace(&mut walk.pipe.url, url);
    // One of the two that read tables, at the orders.
    proxy.hold(r#"FROM ONLY "public"."orders""#);
    let kafka = kafka::shared();
    let mut first = walk.run();
    let topic = walk.topic();
    let has_rows = || proxy.holds() && kafka.partitions(&topic) > 0 && kafka.ends(&topic)[0] > 400;
    first.wait("rows of the first load", DEADLINE, |_| has_rows().then_some(()));
    first.kill();
    assert!(!first.log().join("\n").contains(LOADED), "{:?}", first.log());
    proxy.let_go();
    walk.pipe.url = direct;
    walk.db.execute("DELETE FROM orders WHERE id % 2 = 0; UPDATE orders SET status = 7 WHERE id = 1");
    let mut second = walk.run();
    says(&second.wait_log("events that need it begin there", DEADLINE), &["table=", "from="]);
    second.wait_log(LOADED, DEADLINE);
    walk.db.execute("UPDATE orders SET status = 8 WHERE id IN (1, 3)");
    let lines = json!([{ "no": 1, "sku": "sku-1" }, { "no": 2, "sku": "sku-2" }]);
    let told = |id: i32, was: i32, within: &str| {
        let data = json!({ "id": id, "was": was, "now": 8, "wasIn": within, "in": within, "note": "", "lines": lines });
        ("OrderChanged", data)
    };
    walk.tells(&mut second, &[told(1, 7, "r2"), told(3, 0, "r4")]);
    for (table, rows) in [("region", 5.0), ("orders", 200.0), ("line", 400.0)] {
        let number = |name: &str| format!("offshoot_replica_{name}{{table=\"public.{table}\"}}");
        assert_eq!(second.metric(&number("loaded_rows")), Some(rows), "{table}");
        assert!(second.metric(&number("load_expected_rows")).is_some());
        let held = number("rows");
        second
            .wait("what is left of the first load to go", DEADLINE, |o| (o.metric(&held) == Some(rows)).then_some(()));
    }
    assert!(second.metric("offshoot_replica_bytes").unwrap() > 10_000.0);
    assert!(second.metric("offshoot_replica_hits_total").unwrap() >= 2.0);
    assert!(second.metric("offshoot_replica_age_seconds").unwrap() < 60.0);
    walk.settles(second);
    assert_eq!(walk.rows().len(), 605);
}

#[test]
fn a_topic_that_is_gone_stops_it_with_words_and_reload_goes_on() {
    let walk = Walk::new(SCHEMA, &[RENAMED]);
    let kafka = kafka::shared();
    let mut life = walk.loaded();
    walk.db.execute("UPDATE region SET name = 'a' WHERE id = 1");
    walk.tells(&mut life, &[renamed(1, "r1", "a")]);
    walk.settles(life);
    let topic = walk.topic();
    kafka.delete_topic(&topic);
    walk.pipe.ends(5, &[&topic, "is not there", "offshoot reload"]);
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact"), ("delete.retention.ms", "604800000")]);
    walk.pipe.ends(5, &[&topic, "ends at offset 0", "offshoot reload"]);
    walk.db.execute("UPDATE region SET name = 'b' WHERE id = 1");
    let (code, said) = walk.pipe.command(&["reload", "--yes"]);
    assert_eq!(code, 0, "{said}");
    says(&said, &["every row of public.region", "are not made of what was committed after"]);
    let mut life = walk.run();
    says(&life.wait_log("loads the table", DEADLINE), &["public.region", "from="]);
    life.wait_log(LOADED, DEADLINE);
    walk.db.execute("UPDATE region SET name = 'c' WHERE id = 1");
    walk.tells(&mut life, &[renamed(1, "r1", "a"), renamed(1, "b", "c")]);
    walk.settles(life);
    assert_eq!(walk.rows().len(), 5);
}

#[test]
fn what_a_skipped_transaction_did_to_rows_is_known_later() {
    let changed = "  Changed: { of: Order, when: { status: changed }, data: { id: id, was: old.status, in: region.name, paid: paid } }";
    let walk = Walk::new(SCHEMA, &[RENAMED, changed]);
    let life = walk.loaded();
    walk.settles(life);
    walk.db.execute(
        "BEGIN; UPDATE region SET name = 'told by nobody' WHERE id = 1;
         UPDATE orders SET status = 5, paid = 'NaN', region_id = 1 WHERE id = 2; UPDATE orders SET status = 9 WHERE id = 3; COMMIT",
    );
    walk.db.execute("UPDATE orders SET status = 6, paid = 1.5 WHERE id = 2");
    let said = walk.pipe.ends(7, &["offshoot skip --lsn "]);
    let lsn = said.rsplit("offshoot skip --lsn ").next().unwrap();
    let lsn: String = lsn.chars().take_while(|c| c.is_ascii_hexdigit() || *c == '/').collect();
    let (code, said) = walk.pipe.command(&["skip", "--lsn", &lsn, "--yes"]);
    assert_eq!(code, 0, "{said}");
    says(&said, &["what it did to rows that later events need is taken over by the next run"]);
    let mut life = walk.run();
    walk.db.execute("UPDATE region SET name = 'a' WHERE id = 1; UPDATE orders SET status = 10 WHERE id = 3");
    let changed = |id: i32, was: i32, now_in: &str, paid: Value| {
        ("Changed", json!({ "id": id, "was": was, "in": now_in, "paid": paid }))
    };
    walk.tells(
        &mut life,
        &[
            changed(2, 5, "told by nobody", json!("1.5")),
            renamed(1, "told by nobody", "a"),
            changed(3, 9, "r4", Value::Null),
        ],
    );
    walk.settles(life);
}

#[test]
fn a_changed_mapping_loads_what_it_newly_needs_beside_the_stream() {
    let mut walk = Walk::new(SCHEMA, &[RENAMED]);
    walk.db.execute("DELETE FROM orders WHERE id > 2; INSERT INTO line VALUES (1, 9, 's')");
    walk.settles(walk.loaded());
    walk.db.execute("UPDATE region SET name = 'a' WHERE id = 2");
    walk.remap(&[RENAMED, CHANGED, THERE]);
    let (proxy, url) = before_postgres(&walk.db);
    let direct = std::mem::replace(&mut walk.pipe.url, url);
    proxy.hold("COPY");
    let mut life = walk.run();
    life.wait("the load", DEADLINE, |_| proxy.holds().then_some(()));
    // What was committed before is told, and needs nothing new; what is committed now waits.
    walk.tells(&mut life, &[renamed(2, "r2", "a")]);
    walk.db.execute("UPDATE orders SET status = 1 WHERE id = 1; UPDATE region SET name = 'b' WHERE id = 2");
    proxy.let_go();
    life.wait_log(LOADED, DEADLINE);
    let there = |id: i32, within: &str, numbers: &[i32]| {
        let lines: Vec<_> = numbers.iter().map(|no| json!({ "no": no })).collect();
        ("OrderThere", json!({ "id": id, "in": within, "lines": lines }))
    };
    let lines = json!([{ "no": 1, "sku": "sku-1" }, { "no": 2, "sku": "sku-2" }, { "no": 9, "sku": "s" }]);
    let order = json!({ "id": 1, "was": 0, "now": 1, "wasIn": "a", "in": "b", "note": "", "lines": lines });
    let mut told = vec![
        renamed(2, "r2", "a"),
        there(1, "a", &[1, 2, 9]),
        there(2, "r3", &[1, 2]),
        renamed(2, "a", "b"),
        ("OrderChanged", order),
    ];
    walk.tells(&mut life, &told);
    walk.settles(life);
    walk.pipe.url = direct;

    // Nothing is held, and then again.
    walk.remap(&["  RegionAdded: { of: Region, when: created, data: { id: id } }"]);
    let mut life = walk.pipe.ready();
    walk.db.execute("INSERT INTO region VALUES (6, 'six'); UPDATE region SET name = 'c' WHERE id = 2");
    told.push(("RegionAdded", json!({ "id": 6 })));
    walk.tells(&mut life, &told);
    walk.settles(life);
    walk.remap(&[RENAMED, CHANGED, THERE]);
    let mut life = walk.run();
    says(&life.wait_log("loads the table", DEADLINE), &["from="]);
    life.wait_log(LOADED, DEADLINE);
    walk.db.execute("UPDATE region SET name = 'd' WHERE id IN (2, 6)");
    told.extend([renamed(2, "c", "d"), renamed(6, "six", "d")]);
    walk.tells(&mut life, &told);
    walk.settles(life);
}

#[test]
fn a_table_that_is_locked_is_waited_for_and_the_rest_goes_on() {
    let mut walk = Walk::new(SCHEMA, &[CHANGED]);
    let (proxy, url) = before_postgres(&walk.db);
    let direct = std::mem::replace(&mut walk.pipe.url, url);
    proxy.hold(r#"FROM ONLY "public"."orders""#);
    let mut life = walk.run();
    life.wait("the load", DEADLINE, |_| proxy.holds().then_some(()));
    // Not before the load has its position, for which it would wait for this transaction.
    let migration = walk.db.connect();
    migration.execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE");
    proxy.let_go();
    says(&life.wait_log("another session has locked a table that is loaded; it is tried again", DEADLINE), &["orders"]);
    let slot = walk.pipe.slot();
    let heard = || {
        walk.db.text(&format!(
            "SELECT reply_time FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid WHERE slot_name = '{slot}'"
        ))
    };
    for _ in 0..2 {
        let before = heard();
        life.wait("the server to hear of us", DEADLINE, |_| (heard() != before).then_some(()));
    }
    assert_eq!(life.get("/livez").map(|(status, _)| status), Some(200));
    assert!(!life.log().join("\n").contains(LOADED));
    migration.execute("UPDATE orders SET status = 1 WHERE id = 1; COMMIT");
    life.wait_log(LOADED, DEADLINE);
    let lines = json!([{ "no": 1, "sku": "sku-1" }, { "no": 2, "sku": "sku-2" }]);
    let data = json!({ "id": 1, "was": 0, "now": 1, "wasIn": "r2", "in": "r2", "note": "", "lines": lines });
    walk.tells(&mut life, &[("OrderChanged", data)]);
    walk.settles(life);
    walk.pipe.url = direct;
}

#[test]
fn a_load_that_commits_would_wait_for_is_refused() {
    let server = postgres::private(V17, &[]);
    let walk = Walk::on(server.create_database(), SCHEMA, &[RENAMED]);
    walk.settles(walk.loaded());
    let (code, said) = walk.pipe.command(&["reload", "--yes"]);
    assert_eq!(code, 0, "{said}");
    let configure = |sql: &str| {
        walk.db.execute(sql);
        walk.db.execute("SELECT pg_reload_conf()");
    };
    configure("ALTER SYSTEM SET synchronous_standby_names = '*'");
    let application = walk.db.connect();
    let committed = thread::spawn(move || application.execute("UPDATE region SET name = 'a' WHERE id = 1"));
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    wait::until(DEADLINE, "the commit to wait for a standby", || walk.db.text(waits) == "1");
    let words = ["synchronous_standby_names counts offshoot_", "name the standbys there instead of `*`"];
    ends(walk.run(), 3, &words);
    assert!(!committed.is_finished());
    configure("ALTER SYSTEM RESET synchronous_standby_names");
    committed.join().unwrap();
    let mut life = walk.loaded();
    walk.db.execute("UPDATE region SET name = 'b' WHERE id = 1");
    walk.tells(&mut life, &[renamed(1, "a", "b")]);
    walk.settles(life);
}

#[test]
fn a_load_beside_a_synchronous_standby_waits_only_while_that_is_away() {
    let primary = postgres::private(V17, &[]);
    let standby = primary.standby();
    let follow = format!("host=127.0.0.1 port={} user=postgres password={}", primary.port(), postgres::PASSWORD);
    standby.configure(&[("primary_conninfo", &format!("{follow} application_name=near"))]);
    primary.configure(&[("synchronous_standby_names", "near"), ("synchronous_commit", "remote_apply")]);
    let walk = Walk::on(primary.create_database(), SCHEMA, &[RENAMED]);
    let state = "SELECT coalesce(max(sync_state), '') FROM pg_stat_replication WHERE application_name = 'near'";
    wait::until(DEADLINE, "the standby to be waited for", || walk.db.text(state) == "sync");
    // Commits go on while it loads, each when the standby has it.
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let application = walk.db.connect();
    let mut life = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let n = count.fetch_add(1, Relaxed);
                application.execute(&format!("UPDATE region SET name = 'n{n}' WHERE id = 1"));
            }
        });
        let life = walk.loaded();
        let enough = count.load(Relaxed) + 20;
        wait::until(DEADLINE, "commits", || count.load(Relaxed) >= enough);
        stop.store(true, Relaxed);
        life
    });
    let last = format!("n{}", count.load(Relaxed) - 1);
    life.wait("the last event", DEADLINE, |_| {
        walk.told().last().is_some_and(|(_, data)| data["now"] == last.as_str()).then_some(())
    });
    let told = walk.told();
    assert!(told.windows(2).all(|pair| pair[0].1["now"] == pair[1].1["was"]), "{told:?}");
    walk.settles(life);

    // It is away: what is committed runs on, for all that the load knows.
    let (code, said) = walk.pipe.command(&["reload", "--yes"]);
    assert_eq!(code, 0, "{said}");
    standby.stop();
    let committed = thread::spawn(move || application.execute("UPDATE region SET name = 'waits' WHERE id = 1"));
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    wait::until(DEADLINE, "the commit to wait for the standby", || walk.db.text(waits) == "1");
    let mut life = walk.run();
    says(&life.wait_log("the load waits for the transactions that run", DEADLINE), &["pid="]);
    assert!(!committed.is_finished() && !life.log().join("\n").contains(LOADED));
    standby.start();
    life.wait_log(LOADED, DEADLINE);
    committed.join().unwrap();
    walk.db.execute("UPDATE region SET name = 'after' WHERE id = 1");
    let after = |walk: &Walk| walk.told().last().unwrap().1["now"] == "after";
    life.wait("the event", DEADLINE, |_| after(&walk).then_some(()));
    assert_eq!(walk.told().last().unwrap().1["was"], "waits", "the load has what waited");
    walk.settles(life);
}

#[test]
fn a_held_table_under_another_name_stops_it_before_what_that_would_falsify() {
    let mut walk = Walk::new(SCHEMA, &[CHANGED]);
    let mut life = walk.loaded();
    let lines = |more: &[i32]| -> Value {
        [1, 2].iter().chain(more).map(|no| json!({ "no": no, "sku": format!("sku-{no}") })).collect()
    };
    let told = |was: i32, more: &[i32]| {
        let lines = lines(more);
        let data =
            json!({ "id": 5, "was": was, "now": was + 1, "wasIn": "r1", "in": "r1", "note": "", "lines": lines });
        ("OrderChanged", data)
    };
    walk.db.execute("ALTER TABLE line RENAME TO item");
    // Whoever looks after the publication does not take it out.
    life.wait_log("public.line is called public.item now, and its rows are held", 2 * DEADLINE);
    walk.db.execute("UPDATE orders SET status = 1 WHERE id = 5");
    walk.tells(&mut life, &[told(0, &[])]);
    walk.db
        .execute("BEGIN; UPDATE orders SET status = 2 WHERE id = 5; INSERT INTO item VALUES (5, 9, 'sku-9'); COMMIT");
    let words =
        ["read a row of public.item at ", "that is public.line under another name", "its rows are loaded again"];
    let said = ends(life, 7, &words);
    assert!(!said.contains("offshoot skip"), "{said}");
    assert_eq!(walk.told().len(), 1);
    assert_eq!(walk.db.text("SELECT count(*) FROM pg_publication_tables WHERE tablename = 'item'"), "1");
    walk.remap_in(&AGGREGATES.replace("line.order_id", "item.order_id"), &[CHANGED]);
    let mut life = walk.loaded();
    walk.db.execute("UPDATE orders SET status = 3 WHERE id = 5");
    walk.tells(&mut life, &[told(0, &[]), told(2, &[9])]);
    walk.settles(life);

    // Another table that has the name while nobody looks.
    let walk = Walk::new(SCHEMA, &[RENAMED]);
    walk.settles(walk.loaded());
    walk.db.execute(
        "ALTER TABLE region RENAME TO past; CREATE TABLE region (id int PRIMARY KEY, name text NOT NULL);
         INSERT INTO region VALUES (1, 'new')",
    );
    let mut life = walk.loaded();
    walk.db.execute("UPDATE region SET name = 'newer' WHERE id = 1");
    walk.tells(&mut life, &[renamed(1, "new", "newer")]);
    walk.settles(life);
}

/// Partitions, and below one of them another.
const PARTS: &str = "
    CREATE TABLE other (id int PRIMARY KEY);
    CREATE SCHEMA aside;
    CREATE TABLE big (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
    CREATE TABLE low PARTITION OF big FOR VALUES FROM (0) TO (100);
    CREATE TABLE middle PARTITION OF big FOR VALUES FROM (100) TO (300) PARTITION BY RANGE (id);
    CREATE TABLE high PARTITION OF middle FOR VALUES FROM (100) TO (200);
    INSERT INTO big VALUES (1, 0), (101, 0);";

fn of_parts() -> Walk {
    let mut walk = Walk::new(PARTS, &[]);
    walk.remap_in(BIG_AGGREGATES, &[BIG_CHANGED]);
    walk.settles(walk.loaded());
    walk
}

/// Both rows of `PARTS`.
fn both_changed(was: i32, now: i32) -> [(&'static str, Value); 2] {
    [1, 101].map(|id| changed(id, was, now))
}

/// Changes both rows of a table, and waits until that is told too.
fn change_both(
    walk: &Walk,
    life: &mut Offshoot,
    table: &str,
    (was, now): (i32, i32),
    told: &mut Vec<(&'static str, Value)>,
) {
    walk.db.execute(&format!("UPDATE {table} SET v = {now}"));
    told.extend(both_changed(was, now));
    walk.tells(life, told);
}

#[test]
fn a_held_root_of_partitions_under_another_name_stops_it_at_its_first_row() {
    let walk = of_parts();
    let mut life = walk.pipe.ready();
    let mut told = Vec::new();
    // What the partitions are called does not matter.
    walk.db.execute(
        "ALTER TABLE low RENAME TO first; ALTER TABLE middle RENAME TO rest; ALTER TABLE high SET SCHEMA aside",
    );
    change_both(&walk, &mut life, "big", (0, 1), &mut told);
    walk.db.execute("ALTER TABLE big RENAME TO large");
    let slot = walk.pipe.slot();
    let pid = || {
        walk.db
            .text(&format!("SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = '{slot}'"))
    };
    // A new connection is told of all shapes again.
    let before = pid();
    walk.db.execute(&format!("SELECT pg_terminate_backend({before})"));
    life.wait("another connection", DEADLINE, |_| (![before.as_str(), "0"].contains(&pid().as_str())).then_some(()));
    walk.db.execute("UPDATE large SET v = 2");
    let words = [
        "read a row of public.first at ",
        "it is a partition of public.large, which is public.big under another name",
        "give it its name back and start again",
    ];
    let said = ends(life, 7, &words);
    assert!(!said.contains("offshoot skip"), "{said}");
    assert_eq!(walk.told(), named(&told));
    walk.db.execute("ALTER TABLE large RENAME TO big");
    let mut life = walk.pipe.ready();
    told.extend(both_changed(1, 2));
    walk.tells(&mut life, &told);

    // Any change of a partition has its shape told again.
    walk.db.execute("ALTER TABLE big SET SCHEMA aside; ALTER TABLE aside.big ADD COLUMN w int");
    walk.db.execute("UPDATE aside.big SET v = 3");
    ends(life, 7, &["it is a partition of aside.big, which is public.big under another name"]);
    walk.db.execute("ALTER TABLE aside.big SET SCHEMA public");
    let mut life = walk.pipe.ready();
    told.extend(both_changed(2, 3));
    walk.tells(&mut life, &told);
    walk.settles(life);
}

#[test]
fn a_held_root_that_is_renamed_while_it_is_away_goes_on_under_either_name() {
    let mut walk = of_parts();
    walk.db.execute("ALTER TABLE big RENAME TO large; UPDATE large SET v = 1");
    walk.pipe.ends(2, &["public.big"]);
    walk.db.execute("ALTER TABLE large RENAME TO big");
    let mut life = walk.pipe.ready();
    let mut told = both_changed(0, 1).to_vec();
    walk.tells(&mut life, &told);
    walk.settles(life);
    walk.db.execute("ALTER TABLE big RENAME TO large; UPDATE large SET v = 2");
    walk.remap_in(&BIG_AGGREGATES.replace("root: big", "root: large"), &[BIG_CHANGED]);
    let mut life = walk.loaded();
    change_both(&walk, &mut life, "large", (2, 3), &mut told);
    walk.settles(life);
}

#[test]
fn a_held_root_that_is_published_as_such_stops_it_under_another_name() {
    let walk = of_parts();
    let publication = walk.pipe.slot();
    walk.db.execute(&format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)"));
    let mut life = walk.pipe.ready();
    let mut told = Vec::new();
    change_both(&walk, &mut life, "big", (0, 1), &mut told);
    walk.db.execute("ALTER TABLE big RENAME TO large; ALTER TABLE large ADD COLUMN w int");
    walk.db.execute("UPDATE large SET v = 2");
    ends(life, 7, &["read a row of public.large at ", "that is public.big under another name", "offshoot reload"]);
    assert_eq!(walk.told(), named(&told));
    walk.db.execute("ALTER TABLE large RENAME TO big");
    let (code, said) = walk.pipe.command(&["reload", "--yes"]);
    assert_eq!(code, 0, "{said}");
    let mut life = walk.loaded();
    change_both(&walk, &mut life, "big", (2, 3), &mut told);
    walk.settles(life);
}

#[test]
fn a_held_table_that_is_dropped_and_made_anew_stops_it_at_the_new_ones_first_row() {
    for (schema, partition) in [
        (PARTS, " PARTITION BY RANGE (id); CREATE TABLE low PARTITION OF big DEFAULT"),
        (
            "CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE big (id int PRIMARY KEY, v int); INSERT INTO big VALUES (1, 0), (101, 0)",
            "",
        ),
    ] {
        let mut walk = Walk::new(schema, &[]);
        walk.remap_in(BIG_AGGREGATES, &[BIG_CHANGED]);
        let mut life = walk.loaded();
        let mut told = Vec::new();
        change_both(&walk, &mut life, "big", (0, 1), &mut told);
        walk.db.execute(&format!(
            "BEGIN; DROP TABLE big; CREATE TABLE big (id int PRIMARY KEY, v int){partition};
             ALTER PUBLICATION {} ADD TABLE ONLY big; COMMIT",
            walk.pipe.slot()
        ));
        // Of a table that its own transaction fills, a commit may be read before the catalog has it.
        walk.db.execute("INSERT INTO big VALUES (1, 5), (101, 5)");
        let words = ["read a row of public.big at ", "another table than the one of this name whose rows are held"];
        let said = ends(life, 7, &words);
        assert!(!said.contains("offshoot skip"), "{said}");
        assert_eq!(walk.told(), named(&told));
        let mut life = walk.loaded();
        change_both(&walk, &mut life, "big", (5, 6), &mut told);
        walk.settles(life);
    }
}

#[test]
fn partitions_that_leave_take_their_rows_and_those_that_join_are_known_after_a_reload() {
    let walk = of_parts();
    let mut life = walk.pipe.ready();
    let mut told = Vec::new();
    change_both(&walk, &mut life, "big", (0, 1), &mut told);
    walk.db.execute(
        "ALTER TABLE big DETACH PARTITION low; CREATE TABLE large (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
         ALTER TABLE large ATTACH PARTITION low FOR VALUES FROM (0) TO (100)",
    );
    walk.db.execute("UPDATE large SET v = 7; UPDATE big SET v = 2");
    told.push(changed(101, 1, 2));
    walk.tells(&mut life, &told);
    walk.db.execute(
        "INSERT INTO large VALUES (2, 7); ALTER TABLE large DETACH PARTITION low;
         ALTER TABLE big ATTACH PARTITION low FOR VALUES FROM (0) TO (100)",
    );
    walk.db.execute("UPDATE big SET v = 8 WHERE id = 2");
    ends(life, 7, &["offshoot reload"]);
    let (code, said) = walk.pipe.command(&["reload", "--yes"]);
    assert_eq!(code, 0, "{said}");
    let mut life = walk.loaded();
    walk.db.execute("UPDATE big SET v = 9 WHERE id < 3");
    told.extend([changed(1, 7, 9), changed(2, 8, 9)]);
    walk.tells(&mut life, &told);
    walk.settles(life);
    // Nobody knows any more whose partition it was when its rows were written; they do not go without a word.
    walk.db.execute("UPDATE big SET v = 10; ALTER TABLE big DETACH PARTITION low");
    let mut life = walk.pipe.ready();
    says(&life.wait_log("its rows are published", DEADLINE), &["public.low", "detached", "WARN"]);
    told.push(changed(101, 2, 10));
    walk.tells(&mut life, &told);
    walk.settles(life);
}

#[test]
fn a_column_of_another_type_is_loaded_again_only_where_its_text_is_another() {
    const PAID: &str = "  Paid: { of: Order, when: { paid: changed }, data: { id: id, was: old.paid, now: paid } }";
    let walk = Walk::new(SCHEMA, &[RENAMED, PAID]);
    walk.db.execute("UPDATE orders SET paid = 1.5 WHERE id = 1");
    walk.settles(walk.loaded());
    walk.db.execute(
        "ALTER TABLE orders DROP CONSTRAINT orders_region_id_fkey;
         ALTER TABLE region ALTER COLUMN id TYPE bigint, ALTER COLUMN name TYPE varchar(99)",
    );
    let mut life = walk.pipe.ready();
    walk.db.execute("UPDATE region SET name = 'a' WHERE id = 1");
    let mut told = vec![renamed(1, "r1", "a")];
    walk.tells(&mut life, &told);
    assert_eq!(life.metric("offshoot_replica_restored_records_total"), Some(0.0));
    assert!(!life.log().join("\n").contains("loads the table"), "{:?}", life.log());
    walk.settles(life);
    walk.db.execute("ALTER TABLE orders ALTER COLUMN paid TYPE numeric(12,4)");
    let mut life = walk.loaded();
    says(&life.wait_log("loads the table", DEADLINE), &["public.orders"]);
    walk.db.execute("UPDATE orders SET paid = 2 WHERE id = 1");
    told.push(("Paid", json!({ "id": 1, "was": "1.5000", "now": "2.0000" })));
    walk.tells(&mut life, &told);
    walk.settles(life);
}

// Bad input.

#[test]
fn a_row_that_was_there_before_and_cannot_be_told_is_not_to_be_skipped() {
    let mut walk = Walk::new(
        "CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE big (id int PRIMARY KEY, v date);
         INSERT INTO big VALUES (1, '2024-01-01'), (2, '0044-03-15 BC')",
        &[],
    );
    walk.remap_in(BIG_AGGREGATES, &["  There: { of: Big, when: backfill, data: { id: id, v: v } }"]);
    let said = walk.pipe.ends(
        7,
        &["There.v1", "public.big.v", "a row that was there before, which `backfill` tells of", "offshoot reload"],
    );
    assert!(!said.contains("offshoot skip"), "{said}");
}

#[test]
fn a_parent_that_is_missing_where_nothing_enforces_it_is_null() {
    let walk = Walk::new(SCHEMA, &[CHANGED]);
    walk.db.execute(
        "ALTER TABLE orders DROP CONSTRAINT orders_region_id_fkey; UPDATE orders SET region_id = 99 WHERE id = 1;
         ALTER TABLE orders ADD FOREIGN KEY (region_id) REFERENCES region NOT VALID",
    );
    let mut life = walk.loaded();
    walk.db.execute("UPDATE orders SET status = 1 WHERE id = 1");
    let lines = json!([{ "no": 1, "sku": "sku-1" }, { "no": 2, "sku": "sku-2" }]);
    let data = json!({ "id": 1, "was": 0, "now": 1, "wasIn": null, "in": null, "note": "", "lines": lines });
    walk.tells(&mut life, &[("OrderChanged", data)]);
    walk.settles(life);
}

#[test]
fn a_held_table_that_changes_under_it_stops_it() {
    let mut walk = Walk::new(SCHEMA, &[CHANGED]);
    let mut life = walk.loaded();
    confirmed(&walk.db, &walk.pipe.slot(), &mut life);
    walk.db.execute("ALTER TABLE region RENAME COLUMN name TO title; UPDATE region SET title = 'x' WHERE id = 1");
    ends(life, 7, &["public.region", "name"]);
    walk.remap(&[&CHANGED.replace("region.name", "region.title")]);
    let mut life = walk.loaded();
    walk.db.execute("UPDATE orders SET status = 1 WHERE id = 5");
    let lines = json!([{ "no": 1, "sku": "sku-1" }, { "no": 2, "sku": "sku-2" }]);
    let data = json!({ "id": 5, "was": 0, "now": 1, "wasIn": "x", "in": "x", "note": "", "lines": lines });
    walk.tells(&mut life, &[("OrderChanged", data)]);
    walk.settles(life);
    walk.db.execute("ALTER TABLE orders DROP CONSTRAINT orders_region_id_fkey; DROP TABLE region");
    walk.pipe.ends(2, &["region"]);
}

#[test]
fn a_disk_that_the_cache_cannot_be_on_stops_it_with_words() {
    let walk = Walk::new(SCHEMA, &[CHANGED]);
    let dir = walk.data_dir().display().to_string();
    let denied = walk.pipe.run_apart(&format!("mount -t tmpfs -o ro none {dir}"));
    ends(denied, 1, &["the replica's cache", "data_dir must be a directory that offshoot may write to"]);
    // It fills up under way: more rows than there is room for, which are in the topic all the same.
    let small = walk.pipe.run_apart(&format!("mount -t tmpfs -o size=4m none {dir}"));
    // None of these is so large that it is spilled, onto the same disk.
    for from in (1000..60_000).step_by(10_000) {
        let to = (from + 9999).min(60_000);
        walk.db
            .execute(&format!("INSERT INTO region SELECT i, repeat(i::text, 40) FROM generate_series({from}, {to}) i"));
    }
    let file = format!("{dir}/replica-{}.redb", walk.pipe.name);
    ends(
        small,
        1,
        &[&file, "its file system is full (No space left on device", "make room there, or give data_dir another"],
    );
    let life = walk.pipe.ready();
    walk.settles(life);
    assert_eq!(walk.rows().len(), 5 + 400 + 800 + 59_001);
}

#[test]
fn another_versions_file_stops_it_and_two_processes_do_not_share_one() {
    const META: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    let walk = Walk::new(SCHEMA, &[RENAMED]);
    walk.settles(walk.loaded());
    let file = walk.data_dir().join(format!("replica-{}.redb", walk.pipe.name));
    let database = redb::Database::open(&file).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut table = write.open_table(META).unwrap();
        let meta = table.get("replica").unwrap().unwrap().value().to_vec();
        let mut meta: Value = serde_json::from_slice(&meta).unwrap();
        assert_eq!(meta["format"], 1);
        meta["format"] = 99.into();
        table.insert("replica", meta.to_string().as_bytes()).unwrap();
    }
    write.commit().unwrap();
    drop(database);
    walk.pipe.ends(1, &["its format is 99, this program reads 1", "delete the file", file.to_str().unwrap()]);
    fs::remove_file(&file).unwrap();
    let mut first = walk.pipe.ready();
    let mut second = walk.run();
    second
        .wait("the second to wait", DEADLINE, |o| o.log().join("\n").contains("another holds the slot").then_some(()));
    let said =
        second.wait_log("a standby that does not follow the replica's topic reads it when it takes over", DEADLINE);
    says(&said, &[file.to_str().unwrap(), "another process has it open; give each instance a data_dir of its own"]);
    walk.db.execute("UPDATE region SET name = 'a' WHERE id = 1");
    walk.tells(&mut first, &[renamed(1, "r1", "a")]);
    first.kill();
    walk.db.execute("UPDATE region SET name = 'b' WHERE id = 1");
    walk.tells(&mut second, &[renamed(1, "r1", "a"), renamed(1, "a", "b")]);
    walk.settles(second);
}

#[test]
fn a_large_transaction_that_is_killed_in_parts_is_told_once_and_kept_whole() {
    const ROWS: i32 = 20_000;
    let mut walk = Walk::new(
        "CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE big (id int PRIMARY KEY, v int);
         INSERT INTO big SELECT i, i FROM generate_series(1, 20000) i",
        &[],
    );
    walk.remap_in(BIG_AGGREGATES, &[BIG_CHANGED]);
    walk.pipe.rest += "\nlimits: { transaction_events: 1000 }\ntruncate: ignore";
    walk.settles(walk.loaded());
    let kafka = kafka::shared();
    walk.db.execute("UPDATE big SET v = v + 1");
    let topic = walk.topic();
    let before = kafka.ends(&topic)[0];
    let mut cut = 0;
    for rows in [1, 2000, 6000, 11_000, 16_000] {
        let mut life = walk.run();
        life.wait("kept rows", DEADLINE, |_| (kafka.ends(&topic)[0] > before + rows).then_some(()));
        life.kill();
        let progress = kafka.read_all(&format!("offshoot.{}.progress", walk.pipe.name));
        cut += usize::from(progress.last().unwrap().value_json().to_string().contains("\"keeping\":true"));
    }
    println!("{cut} of 5 lives were killed among kept rows");
    let mut life = walk.run();
    let mut told: Vec<_> = (1..=ROWS).map(|id| changed(id, id, id + 1)).collect();
    walk.tells(&mut life, &told);
    walk.db.execute("UPDATE big SET v = -1 WHERE id IN (1, 9000, 20000)");
    told.extend([1, 9000, ROWS].map(|id| changed(id, id + 1, -1)));
    walk.tells(&mut life, &told);
    // What a TRUNCATE took away is not there for what comes after it.
    walk.db.execute("TRUNCATE big; INSERT INTO big VALUES (1, 8)");
    walk.db.execute("UPDATE big SET v = 9 WHERE id = 1");
    told.push(changed(1, 8, 9));
    walk.tells(&mut life, &told);
    walk.settles(life);
    assert_eq!(walk.rows().len(), 1);
    assert!(cut > 0, "no life was killed among kept rows");
}
