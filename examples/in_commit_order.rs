//! Topics of one pipeline -> their events in the order in which the database committed them, one line each.
//!
//! `cargo run --example in_commit_order -- localhost:9092 shop.order shop.stock` ends when it has told all there is; `--follow` goes on.
//!
//! Kafka keeps the order within a partition only. `ce_sequence` compares as a string across partitions and topics, so events can be
//! sorted by it; what remains is to know when none can come any more that belongs before. The pipeline has one producer, which
//! commits its transactions one after the other. So when an event is seen, everything with a lower sequence has been written to Kafka
//! already: it stands below the end that each partition has now. Hence, round by round: note how far we have seen; read every
//! partition to its present end; tell what is not after the noted place. A topic in which nothing happens holds nobody up.

use std::{collections::BTreeMap, env, error::Error, thread, time::Duration};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    config::ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
};

/// How long Kafka may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Between two looks at topics in which nothing happens.
const PAUSE: Duration = Duration::from_millis(100);

fn main() -> Result<(), Box<dyn Error>> {
    let (options, arguments): (Vec<_>, Vec<_>) = env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let [brokers, names @ ..] = &arguments[..] else {
        return Err("usage: in_commit_order [--follow] BROKERS TOPIC...".into());
    };
    let follow = options.iter().any(|option| option == "--follow");
    let mut merge = Merge::new(brokers, names)?;
    loop {
        let (events, is_all) = merge.round()?;
        events.iter().for_each(|event| println!("{event}"));
        if is_all {
            if !follow {
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
    }
}

/// Several topics, as one sequence.
pub struct Merge {
    topics: Vec<Topic>,
    ends: BaseConsumer,
    /// Events by their sequence: a line each. A repeated one falls on itself.
    events: BTreeMap<String, String>,
    /// The highest sequence so far.
    seen: String,
}

struct Topic {
    name: String,
    committed: BaseConsumer,
    /// What is read next, by partition.
    next: Vec<i64>,
}

impl Merge {
    /// Of topics that are there, from their beginning.
    pub fn new(brokers: &str, names: &[String]) -> Result<Merge, Box<dyn Error>> {
        let ends = consumer(brokers, "read_uncommitted")?;
        let mut topics = Vec::new();
        for name in names {
            let committed = consumer(brokers, "read_committed")?;
            let metadata = committed.fetch_metadata(Some(name), ANSWER_MAX)?;
            let partitions = metadata.topics()[0].partitions().len();
            if partitions == 0 {
                return Err(format!("there is no topic {name}").into());
            }
            topics.push(Topic { name: name.clone(), committed, next: vec![0; partitions] });
        }
        Ok(Merge { topics, ends, events: BTreeMap::new(), seen: String::new() })
    }

    /// The next events, in order; and whether that is all there is.
    pub fn round(&mut self) -> Result<(Vec<String>, bool), Box<dyn Error>> {
        let settled = self.seen.clone();
        let is_quiet = !self.read_all()?;
        if let Some((last, _)) = self.events.last_key_value() {
            self.seen = self.seen.clone().max(last.clone());
        }
        let mut told = Vec::new();
        while let Some(event) = self.events.first_entry().filter(|event| event.key() <= &settled) {
            told.push(event.remove());
        }
        Ok((told, is_quiet && self.events.is_empty()))
    }

    /// Reads every partition to the end that it has when this begins, or further; false when there was nothing new.
    fn read_all(&mut self) -> Result<bool, Box<dyn Error>> {
        // All ends first: an event that is seen below has everything before it below these, or was seen in an earlier round.
        let mut targets = Vec::new();
        for (index, topic) in self.topics.iter().enumerate() {
            for partition in 0..topic.next.len() {
                let (_, end) = self.ends.fetch_watermarks(&topic.name, partition as i32, ANSWER_MAX)?;
                targets.push((index, partition, end));
            }
        }
        let mut is_new = false;
        for (index, partition, end) in targets {
            is_new |= self.topics[index].read(partition, end, &mut self.events)?;
        }
        Ok(is_new)
    }
}

fn consumer(brokers: &str, isolation: &str) -> Result<BaseConsumer, KafkaError> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("isolation.level", isolation).set("group.id", "in_commit_order");
    config.set("auto.offset.reset", "earliest").set("enable.auto.commit", "false");
    // The end of a partition is told by a fetch that has waited in vain.
    config.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10").create()
}

impl Topic {
    fn read(
        &mut self,
        partition: usize,
        end: i64,
        events: &mut BTreeMap<String, String>,
    ) -> Result<bool, Box<dyn Error>> {
        if self.next[partition] >= end {
            return Ok(false);
        }
        // What is written may not be committed yet.
        let number = partition as i32;
        while self.committed.fetch_watermarks(&self.name, number, ANSWER_MAX)?.1 < end {
            thread::sleep(PAUSE);
        }
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&self.name, number, Offset::Offset(self.next[partition]))?;
        self.committed.assign(&from)?;
        loop {
            match self.committed.poll(ANSWER_MAX).ok_or("Kafka does not answer")? {
                Ok(message) => {
                    let headers = message.headers();
                    let sequence = headers.and_then(|all| all.iter().find(|header| header.key == "ce_sequence"));
                    let sequence = sequence.and_then(|header| header.value).ok_or("a record without ce_sequence")?;
                    let sequence = String::from_utf8(sequence.to_vec())?;
                    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or(b"null")).into_owned();
                    let line = format!("{sequence} {} {} {}", self.name, text(message.key()), text(message.payload()));
                    events.insert(sequence, line);
                }
                Err(KafkaError::PartitionEOF(_)) => break,
                Err(error) => return Err(error.into()),
            }
        }
        // Markers of transactions have offsets too, and are no messages; so the end counts, not the last message's place.
        self.next[partition] = end;
        Ok(true)
    }
}
