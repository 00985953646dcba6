//! The replica's topic, by the sink itself: made right or refused with words, written within the transaction, and read back whole.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use futures::executor::block_on;
use offshoot::{
    admission::Admission,
    config::Config,
    kafka::producer::KafkaSink,
    progress::{Origin, Progress},
    sink::{Acknowledgement, News, Record, RecordBatch, Sink, SinkError, Ticket, Topic},
};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminOptions, AlterConfig, ResourceSpecifier},
};

use crate::support::{
    kafka::{self, Broker},
    wait,
};

/// No test waits longer for one thing.
const DEADLINE: Duration = Duration::from_secs(30);

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());

/// A sink of a pipeline, at the shared broker.
struct Keeping {
    broker: &'static Broker,
    name: String,
    sink: KafkaSink,
    tickets: u64,
}

fn connect(broker: &Broker, name: &str, lines: &str) -> KafkaSink {
    let text = format!(
        "{{ name: {name}, source: {{ postgres: x }}, changes: {{ tables: [a.b] }}, sink: {{ kafka: {{ brokers: \"{}\"{lines} }} }} }}",
        broker.address()
    );
    let config = Config::parse(&text, "c", &|_| None).unwrap();
    KafkaSink::connect(&config.sink.kafka, name, 1 << 20, &Arc::<Admission>::default()).unwrap()
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited {DEADLINE:?} for {what}"))
}

fn progress() -> Progress {
    let origin = Origin { system_identifier: "7".into(), timeline: 1, slot: "s".into() };
    Progress::creating(1, origin, "f".into(), 0)
}

type Pair = (Vec<u8>, Option<Vec<u8>>);

fn pair(key: &str, value: Option<&str>) -> Pair {
    (key.as_bytes().to_vec(), value.map(|value| value.as_bytes().to_vec()))
}

impl Keeping {
    /// Taken over, as a start does it; the progress topic is there.
    async fn new() -> Self {
        let broker = kafka::shared();
        let name = broker.topic_name("kept").replace('.', "_");
        broker.create_topic(&format!("offshoot.{name}.progress"), 1, &[("cleanup.policy", "compact")]);
        Self::again(broker, name).await
    }

    async fn again(broker: &'static Broker, name: String) -> Self {
        let mut sink = connect(broker, &name, "");
        soon("the take-over", sink.take_over()).await.unwrap();
        Self { broker, name, sink, tickets: 0 }
    }

    fn topic(&self) -> String {
        format!("offshoot.{}.replica", self.name)
    }

    fn send(&mut self, topic: &Arc<Topic>, pairs: &[Pair]) {
        let mut batch = self.sink.batch();
        for (key, value) in pairs {
            self.tickets += 1;
            push(&mut batch, topic, self.tickets, key, value.as_deref());
        }
        self.sink.send(batch).unwrap();
    }

    /// Waits until so many records are acknowledged, and for a commit if that was asked for.
    async fn news(&mut self, records: u64, committed: bool) -> Result<News, SinkError> {
        let mut all = News::default();
        let count = |all: &News| all.acknowledged.iter().map(|a: &Acknowledgement| a.records).sum::<u64>();
        while count(&all) < records || all.committed != committed {
            soon("news", self.sink.news(&mut all)).await?;
        }
        Ok(all)
    }

    async fn commit(&mut self, records: u64) -> News {
        self.sink.commit(&progress()).unwrap();
        self.news(records, true).await.unwrap()
    }

    async fn found(&mut self, make: bool) -> Result<Option<std::ops::Range<i64>>, SinkError> {
        soon("the topic", self.sink.find_kept(make)).await
    }

    async fn read(&mut self, from: i64, end: i64) -> Result<Vec<Pair>, SinkError> {
        let (mut next, mut pairs) = (from, Vec::new());
        while let Some(mut kept) = soon("records", self.sink.kept(next, end)).await? {
            assert!(kept.next > next, "it does not come on from {next}");
            next = kept.next;
            pairs.append(&mut kept.records);
        }
        assert_eq!(next, end.max(from));
        Ok(pairs)
    }
}

fn push(batch: &mut RecordBatch, topic: &Arc<Topic>, ticket: u64, key: &[u8], payload: Option<&[u8]>) {
    let topic = batch.topic_index(topic);
    let mut put = |bytes: &[u8]| {
        batch.bytes.extend_from_slice(bytes);
        batch.bytes.len() - bytes.len()..batch.bytes.len()
    };
    let (key, payload) = (Some(put(key)), payload.map(put));
    let at = batch.headers.len();
    batch.records.push(Record { topic, ticket: Ticket(ticket), key, payload, headers: at..at, timestamp: None });
}

#[test]
fn the_topic_is_made_as_it_must_be_and_only_when_asked_for() {
    RUNTIME.block_on(async {
        let mut keeping = Keeping::new().await;
        assert_eq!(keeping.found(false).await.unwrap(), None);
        assert_eq!(keeping.broker.partitions(&keeping.topic()), 0);
        assert_eq!(keeping.found(true).await.unwrap(), Some(0..0));
        assert_eq!(keeping.found(false).await.unwrap(), Some(0..0));
        assert_eq!(keeping.broker.partitions(&keeping.topic()), 1);
        let topic = keeping.topic();
        let described = keeping.broker.admin();
        let described = block_on(described.describe_configs(&[ResourceSpecifier::Topic(&topic)], &AdminOptions::new()));
        let described = described.unwrap().remove(0).unwrap();
        let value = |property| described.get(property).and_then(|entry| entry.value.clone()).unwrap();
        assert_eq!(value("cleanup.policy"), "compact");
        assert_eq!(value("delete.retention.ms"), "604800000");
        assert_eq!(value("segment.bytes"), "67108864");
        assert!(keeping.read(0, 0).await.unwrap().is_empty());
    });
}

#[test]
fn a_topic_that_may_lose_rows_is_refused_with_the_command_that_mends_it() {
    RUNTIME.block_on(async {
        type Properties = &'static [(&'static str, &'static str)];
        let table: [(i32, Properties, &str); 4] = [
            (1, &[], "its cleanup.policy is delete, "),
            (1, &[("cleanup.policy", "compact,delete")], "its cleanup.policy is compact,delete, "),
            (
                1,
                &[("cleanup.policy", "compact"), ("delete.retention.ms", "86400000")],
                "--add-config delete.retention.ms=604800000",
            ),
            (2, &[("cleanup.policy", "compact")], "with one partition: it has 2; make it again with one"),
        ];
        for (partitions, properties, words) in table {
            let mut keeping = Keeping::new().await;
            keeping.broker.create_topic(&keeping.topic(), partitions, properties);
            let error = keeping.found(true).await.unwrap_err();
            assert!(matches!(error, SinkError::Refused(_)) && error.to_string().contains(words), "{error}");
            println!("{error}");
        }
    });
}

#[test]
fn a_topic_that_we_may_not_make_is_told_with_its_command() {
    RUNTIME.block_on(async {
        let broker = kafka::shared();
        let name = broker.topic_name("kept").replace('.', "_");
        let mut sink = connect(broker, &name, ", topics: { create: false, properties: { retention.ms: 1000 } }");
        soon("the take-over", sink.take_over()).await.unwrap();
        let error = soon("the topic", sink.find_kept(true)).await.unwrap_err();
        let command = format!(
            "--create --topic offshoot.{name}.replica --partitions 1 --config cleanup.policy=compact --config \
             delete.retention.ms=604800000 --config segment.bytes=67108864"
        );
        assert!(matches!(error, SinkError::Refused(_)) && error.to_string().ends_with(&command), "{error}");
    });
}

#[test]
fn what_is_kept_comes_back_in_order_and_the_end_comes_with_its_commit() {
    RUNTIME.block_on(async {
        let mut keeping = Keeping::new().await;
        keeping.found(true).await.unwrap();
        let kept = keeping.sink.kept_topic();
        assert_eq!(kept.name, keeping.topic());
        let events = Arc::new(Topic { name: keeping.broker.topic("events"), table: "a.b".into() });
        let first = [pair("a", Some("1")), pair("b", Some("2"))];
        keeping.send(&kept, &first);
        keeping.send(&events, &[pair("e", Some("event"))]);
        // Durable is not committed.
        assert_eq!(keeping.news(3, false).await.unwrap().kept_end, None);
        let news = keeping.commit(0).await;
        assert_eq!(news.kept_end, Some(2));
        // Transactions without rows say nothing of it.
        keeping.send(&events, &[pair("e", Some("event"))]);
        assert_eq!(keeping.commit(1).await.kept_end, None);
        // Offset 2 marks the commit.
        let second = [pair("a", None), pair("", Some("")), pair("b", Some("3"))];
        keeping.send(&kept, &second);
        let news = keeping.commit(3).await;
        assert_eq!(news.kept_end, Some(6));
        assert_eq!(news.acknowledged.iter().map(|a| a.ticket.0).collect::<Vec<_>>(), [5, 6, 7]);

        let end = keeping.found(false).await.unwrap().unwrap();
        assert_eq!(end, 0..7);
        let all = [&first[..], &second].concat();
        assert_eq!(keeping.read(0, 7).await.unwrap(), all);
        assert_eq!(keeping.read(6, 7).await.unwrap(), []);
        assert_eq!(keeping.read(7, 7).await.unwrap(), []);
        // From the middle, up to an end that is not the topic's, and elsewhere at will.
        assert_eq!(keeping.read(1, 5).await.unwrap(), &all[1..4]);
        let part = keeping.sink.kept(4, 7).await.unwrap().unwrap();
        assert_eq!((part.records.len(), part.next), (2, 7));
        assert_eq!(keeping.read(0, 2).await.unwrap(), first);
    });
}

#[test]
fn what_was_given_up_is_not_seen_and_the_end_is_behind_it() {
    RUNTIME.block_on(async {
        let mut keeping = Keeping::new().await;
        keeping.found(true).await.unwrap();
        let kept = keeping.sink.kept_topic();
        let committed = [pair("a", Some("1"))];
        keeping.send(&kept, &committed);
        keeping.commit(1).await;
        keeping.send(&kept, &[pair("a", Some("never")), pair("b", Some("never"))]);
        keeping.news(2, false).await.unwrap();
        // The first has not ended: whoever takes over gives up what it left open.
        let mut next = Keeping::again(keeping.broker, keeping.name.clone()).await;
        let range = next.found(true).await.unwrap().unwrap();
        assert_eq!(range, 0..5, "a record, its mark, two that were given up, and the mark of that");
        assert_eq!(next.read(0, range.end).await.unwrap(), committed);
        assert_eq!(next.read(2, range.end).await.unwrap(), []);
    });
}

#[test]
fn a_range_that_was_deleted_is_told_of() {
    RUNTIME.block_on(async {
        let mut keeping = Keeping::new().await;
        keeping.found(true).await.unwrap();
        let kept = keeping.sink.kept_topic();
        keeping.send(&kept, &[pair("a", Some("1")), pair("b", Some("2")), pair("c", Some("3"))]);
        keeping.commit(3).await;
        // Kafka deletes records on request only where its policy deletes some anyway.
        let admin = keeping.broker.admin();
        let set_policy = |policy| {
            let topic = AlterConfig::new(ResourceSpecifier::Topic(&kept.name));
            let topic = topic.set("cleanup.policy", policy).set("delete.retention.ms", "604800000");
            block_on(admin.alter_configs(&[topic], &AdminOptions::new())).unwrap().remove(0).unwrap();
        };
        let mut before = TopicPartitionList::new();
        before.add_partition_offset(&kept.name, 0, Offset::Offset(2)).unwrap();
        set_policy("compact,delete");
        wait::until(DEADLINE, "records to go", || {
            let deleted = block_on(admin.delete_records(&before, &AdminOptions::new())).unwrap();
            deleted.elements()[0].error().is_ok()
        });
        set_policy("compact");
        let end = Instant::now() + DEADLINE;
        while keeping.found(false).await.ok().flatten() != Some(2..4) {
            assert!(Instant::now() < end, "it does not begin at 2");
        }
        assert_eq!(keeping.read(2, 4).await.unwrap(), [pair("c", Some("3"))]);
        let error = keeping.read(1, 4).await.unwrap_err();
        let words = format!("read the replica's topic {} from offset 1: it begins at 2 now", kept.name);
        assert!(matches!(error, SinkError::Refused(_)) && error.to_string().contains(&words), "{error}");
    });
}

#[test]
fn many_are_taken_in_pieces_and_whoever_stops_asking_is_not_waited_for() {
    RUNTIME.block_on(async {
        let mut keeping = Keeping::new().await;
        keeping.found(true).await.unwrap();
        let kept = keeping.sink.kept_topic();
        let value = "v".repeat(1000);
        let pairs: Vec<_> = (0..20_000).map(|n| pair(&n.to_string(), Some(&value))).collect();
        for pairs in pairs.chunks(1000) {
            keeping.send(&kept, pairs);
        }
        keeping.commit(20_000).await;
        let end = keeping.found(false).await.unwrap().unwrap().end;
        let (mut next, mut pieces, mut read) = (0, 0, Vec::new());
        while let Some(mut piece) = soon("records", keeping.sink.kept(next, end)).await.unwrap() {
            let bytes: usize = piece.records.iter().map(|(k, v)| k.len() + v.as_ref().map_or(0, Vec::len)).sum();
            assert!(bytes < 1024 * 1024 + 2000, "{bytes}");
            next = piece.next;
            pieces += 1;
            read.append(&mut piece.records);
        }
        assert!(pieces >= 19, "{pieces}");
        assert!(read == pairs, "{} of {}", read.len(), pairs.len());
        // Left in the middle.
        soon("records", keeping.sink.kept(0, end)).await.unwrap().unwrap();
        let threads = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
            names.filter(|name| name.starts_with("kafka-reader")).count()
        };
        drop(keeping);
        let end = Instant::now() + DEADLINE;
        while threads() > 0 {
            assert!(Instant::now() < end, "its thread goes on");
            tokio::task::yield_now().await;
        }
    });
}

/// `OFFSHOOT_ROWS=10000000 cargo test --release --test it kept::how_fast_it_is_read -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn how_fast_it_is_read() {
    RUNTIME.block_on(async {
        let rows: usize = std::env::var("OFFSHOOT_ROWS").map_or(1_000_000, |rows| rows.parse().unwrap());
        let mut keeping = Keeping::new().await;
        keeping.found(true).await.unwrap();
        let kept = keeping.sink.kept_topic();
        let began = Instant::now();
        let mut done = 0;
        while done < rows {
            let pairs: Vec<_> = (done..rows.min(done + 50_000))
                .map(|n| pair(&format!("public.orders\0t0000{n:08}"), Some(&format!("{n:0100}"))))
                .collect();
            done += pairs.len();
            keeping.send(&kept, &pairs);
            keeping.commit(pairs.len() as u64).await;
        }
        println!("{rows} records written in {:.1?}", began.elapsed());
        let end = keeping.found(false).await.unwrap().unwrap().end;
        let (mut next, mut read, began) = (0, 0, Instant::now());
        while let Some(piece) = keeping.sink.kept(next, end).await.unwrap() {
            (next, read) = (piece.next, read + piece.records.len());
        }
        assert_eq!(read, rows);
        let took = began.elapsed();
        println!("{rows} records read in {took:.1?}: {:.0} a second", rows as f64 / took.as_secs_f64());
        keeping.broker.delete_topic(&keeping.topic());
    });
}
