//! Topics -> what a consumer that reads committed finds in them, and when the broker has appended it.

use std::time::Duration;

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::BorrowedMessage,
};

use crate::support::kafka::Broker;

/// How long the broker may take for the next record.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads topics from their beginning to their end. Their writers have ended.
pub(crate) fn read(broker: &Broker, topics: &[&str], mut each: impl FnMut(&BorrowedMessage<'_>)) {
    let mut client = broker.client();
    client.set("group.id", "bench").set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    client.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
    let consumer: BaseConsumer = client.create().expect("the configuration is right");
    let mut partitions = TopicPartitionList::new();
    for topic in topics {
        for partition in 0..broker.partitions(topic) as i32 {
            partitions.add_partition_offset(topic, partition, Offset::Beginning).expect("the offset is legal");
        }
    }
    consumer.assign(&partitions).expect("the partitions are there");
    let mut left = partitions.count();
    while left > 0 {
        match consumer.poll(PATIENCE) {
            Some(Ok(record)) => each(&record),
            Some(Err(KafkaError::PartitionEOF(_))) => left -= 1,
            Some(Err(error)) => panic!("read {topics:?}: {error}"),
            None => panic!("read {topics:?}: nothing for {PATIENCE:?}"),
        }
    }
}

/// When it was appended, in milliseconds since 1970.
pub(crate) fn at(record: &BorrowedMessage<'_>) -> i64 {
    record.timestamp().to_millis().expect("every record has one")
}

/// The `id` in its key.
pub(crate) fn id(record: &BorrowedMessage<'_>) -> usize {
    let key: serde_json::Value = serde_json::from_slice(record.key().expect("it has one")).expect("it is JSON");
    key["id"].as_u64().expect("the key is the row's") as usize
}
