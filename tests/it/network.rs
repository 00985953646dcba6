//! A network that is slow, refuses or falls silent between Offshoot and its servers -> a topic that tells the table's
//! history all the same, and words and numbers that say what is going on.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    outages::{DEADLINE, PAUSE, Walk},
    pipe::{Pipe, stops},
    support::{
        kafka::{self, Broker, Options},
        postgres::{self, Db, V17},
        process,
        program::{self, Offshoot},
        proxy::{Network, Proxy},
        servers,
    },
    workload::TABLE,
};

/// A silence is noticed by then, with a busy machine's delay.
const NOTICED_MAX: Duration = Duration::from_secs(60);

fn database() -> Db {
    postgres::shared(V17).create_database()
}

/// A proxy in front of the database's server, and the URL that goes through it.
pub(crate) fn before_postgres(db: &Db) -> (Proxy, String) {
    let config: tokio_postgres::Config = db.url.parse().unwrap();
    let port = config.get_ports()[0];
    let proxy = Proxy::to(port);
    let url = db.url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    (proxy, url)
}

/// A broker with a listener that is reached, and advertised under this name, through a proxy.
fn behind_a_proxy(host: &str) -> (Broker, Proxy) {
    let port = servers::free_port();
    let proxy = Proxy::to(port);
    let usual = "PLAINTEXT://127.0.0.1:{port}";
    let options = Options::default()
        .property("listeners", &format!("{usual},CONTROLLER://127.0.0.1:{{controller_port}},PROXY://127.0.0.1:{port}"))
        .property("advertised.listeners", &format!("{usual},PROXY://{host}:{}", proxy.port()))
        .property("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXY:PLAINTEXT");
    (kafka::private(&options), proxy)
}

fn walk<'a>(db: &Db, url: &str, kafka: &'a Broker, brokers: &str) -> Walk<'a> {
    let config = program::config(&db.name, url, brokers, &[TABLE]) + "limits: { memory: 8MiB }";
    // Kafka's own default is a minute.
    let config = config.replace("exactly_once", "exactly_once, properties: { socket.timeout.ms: 10000 }");
    Walk::through(&db.name, &db.url, kafka, &config)
}

fn restarts(offshoot: &Offshoot) -> Option<f64> {
    offshoot.metric("offshoot_restarts_total")
}

/// Waits until it says that it does not stream.
#[track_caller]
fn retries(offshoot: &mut Offshoot, deadline: Duration) {
    offshoot.wait("it to say that it retries", deadline, |o| {
        o.get("/readyz").filter(|(status, text)| *status == 503 && text.contains("retrying"))
    });
}

#[test]
fn postgres_behind_a_slow_link_and_one_that_refuses() {
    let db = database();
    let (proxy, url) = before_postgres(&db);
    let mut walk = walk(&db, &url, kafka::shared(), kafka::shared().address());
    let mut offshoot = walk.started();
    walk.commit(50);
    proxy.set(Network::Slow(30_000));
    walk.commit(300);
    // It is behind, says by how much, and is still the one who streams.
    offshoot.wait("the lag to be told", DEADLINE, |o| (o.metric("offshoot_lag_bytes")? > 100_000.0).then_some(()));
    assert_eq!(offshoot.get("/readyz").map(|(status, _)| status), Some(200));
    assert_eq!(restarts(&offshoot), Some(0.0));
    proxy.set(Network::Refused);
    retries(&mut offshoot, DEADLINE);
    offshoot.wait_log("refused", DEADLINE);
    walk.commit(50);
    proxy.set(Network::Good);
    offshoot.wait_ready(DEADLINE);
    walk.commit(50);
    walk.settle(offshoot, 0);
}

// Whatever is in between goes on taking what we send in these, so that TCP sees nothing wrong.

#[test]
fn postgres_that_falls_silent_is_noticed() {
    postgres_falls_silent(|proxy| proxy.set(Network::Silent), NOTICED_MAX, "no answer");
}

#[test]
fn a_replication_session_of_which_only_our_half_is_left_is_noticed() {
    let noticed_max = Duration::from_secs(30);
    postgres_falls_silent(Proxy::silence_last, noticed_max, "the server has ended the replication session");
}

fn postgres_falls_silent(silence: impl Fn(&Proxy), noticed_max: Duration, words: &str) {
    let db = database();
    let (proxy, url) = before_postgres(&db);
    let mut walk = walk(&db, &url, kafka::shared(), kafka::shared().address());
    let mut offshoot = walk.started();
    walk.commit(50);
    silence(&proxy);
    // Nothing more is written: silence is all there is.
    walk.commit(20);
    walk.workload.stop();
    let began = Instant::now();
    offshoot.wait_log(words, noticed_max);
    println!("{words}: noticed after {:.1?}", began.elapsed());
    proxy.set(Network::Good);
    let began = Instant::now();
    offshoot.wait_ready(DEADLINE);
    println!("streams again after {:.1?}", began.elapsed());
    assert!(restarts(&offshoot) >= Some(1.0));
    walk.workload.start(fastrand::u64(..), PAUSE);
    walk.commit(50);
    walk.settle(offshoot, 0);
}

#[test]
fn kafka_behind_a_slow_link_and_one_that_refuses() {
    let (broker, proxy) = behind_a_proxy("127.0.0.1");
    let db = database();
    let mut walk = walk(&db, &db.url, &broker, &format!("127.0.0.1:{}", proxy.port()));
    let mut offshoot = walk.started();
    walk.commit(50);
    proxy.set(Network::Slow(30_000));
    walk.commit(200);
    offshoot.wait("the lag to be told", DEADLINE, |o| (o.metric("offshoot_lag_bytes")? > 100_000.0).then_some(()));
    assert_eq!(offshoot.get("/readyz").map(|(status, _)| status), Some(200));
    proxy.set(Network::Refused);
    walk.commit(100);
    let pid = walk.slot("active_pid");
    assert!(pid.is_some(), "the source is kept");
    proxy.set(Network::Good);
    walk.commit(50);
    walk.settle(offshoot, 0);
}

#[test]
fn kafka_that_falls_silent_is_noticed() {
    let (broker, proxy) = behind_a_proxy("127.0.0.1");
    let db = database();
    let mut walk = walk(&db, &db.url, &broker, &format!("127.0.0.1:{}", proxy.port()));
    let mut offshoot = walk.started();
    walk.commit(50);
    let acknowledged = |o: &Offshoot| o.metric("offshoot_records_acknowledged_total");
    offshoot.wait("records", DEADLINE, |o| (acknowledged(o)? > 0.0).then_some(()));
    proxy.set(Network::Silent);
    walk.commit(20);
    walk.workload.stop();
    let before = acknowledged(&offshoot).expect("it runs");
    // The connections that are open are dead for good: new ones must be made.
    proxy.set(Network::Good);
    let began = Instant::now();
    offshoot.wait("records again", DEADLINE, |o| (acknowledged(o)? > before).then_some(()));
    println!("publishes again after {:.1?}, {:?} restarts", began.elapsed(), restarts(&offshoot));
    walk.settle(offshoot, 0);
}

#[test]
fn hosts_whose_names_are_gone_are_waited_for() {
    const KAFKA: &str = "kafka.offshoot.test";
    const POSTGRES: &str = "postgres.offshoot.test";
    let (broker, to_kafka) = behind_a_proxy(KAFKA);
    let db = database();
    db.execute("CREATE TABLE t (id int PRIMARY KEY)");
    let (to_postgres, url) = before_postgres(&db);
    let brokers = format!("{KAFKA}:{}", to_kafka.port());
    let pipe = Pipe { url: url.replace("127.0.0.1", POSTGRES), brokers, ..Pipe::of(&db) };
    let dir = process::new_dir("names");
    let (hosts, switch) = (dir.join("hosts"), dir.join("nsswitch.conf"));
    // Written, not replaced: it is the file that is mounted.
    let known = |names: &str| fs::write(&hosts, format!("127.0.0.1 localhost {names}\n")).unwrap();
    known(&format!("{POSTGRES} {KAFKA}"));
    fs::write(&switch, "hosts: files\n").unwrap();
    let mount = |file: &Path, over: &str| format!("[ ! -e {over} ] || mount --bind {} {over}", file.display());
    // A broker that is away is told of once; why it stays so is librdkafka's to say.
    let logs = "export OFFSHOOT_LOG=info,librdkafka=debug,offshoot::kafka=debug";
    let script = format!("{logs}; {}; {}", mount(&hosts, "/etc/hosts"), mount(&switch, "/etc/nsswitch.conf"));
    let mut offshoot = pipe.run_apart(&script);
    offshoot.wait_ready(DEADLINE);
    let arrives = |offshoot: &mut Offshoot, ids: &[i64]| {
        db.execute(&format!("INSERT INTO t VALUES ({})", ids.len()));
        offshoot.wait("rows to arrive", DEADLINE, |_| (pipe.ids(&broker, "t") == ids).then_some(()));
    };
    arrives(&mut offshoot, &[1]);

    known(KAFKA);
    to_postgres.set(Network::Refused);
    retries(&mut offshoot, DEADLINE);
    let unknown = format!("{POSTGRES}:{}: failed to lookup address", to_postgres.port());
    offshoot.wait_log(&unknown, DEADLINE);
    to_postgres.set(Network::Good);
    known(&format!("{POSTGRES} {KAFKA}"));
    offshoot.wait_ready(DEADLINE);
    arrives(&mut offshoot, &[1, 2]);

    known(POSTGRES);
    to_kafka.set(Network::Refused);
    offshoot.wait_log(&format!("Failed to resolve '{brokers}'", brokers = pipe.brokers), DEADLINE);
    to_kafka.set(Network::Good);
    known(&format!("{POSTGRES} {KAFKA}"));
    arrives(&mut offshoot, &[1, 2, 3]);
    stops(offshoot);
    assert_eq!(broker.read_all(&pipe.topic("t")).len(), 3, "each once");
}
