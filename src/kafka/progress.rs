//! The progress topic: made, read, and written to before there is a stream. The stream writes to it through its producer.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    Message,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};
use tracing::info;

use crate::{
    admission::Admission,
    config::{Delivery, KafkaConfig, Property, Topics},
    kafka::{
        admin, client,
        fault::{self, Fault},
        producer::again,
        reading::{Heard, Kind, Reading, STEP, aside},
    },
    progress::{Progress, ProgressError},
    sink::{SinkError, Topic},
};

/// The key of every progress record: compaction keeps the last.
pub(crate) const KEY: &str = "progress";
/// How many offsets before the end are read first. A commit takes two.
const TAIL: i64 = 200;
/// How long a record that is written on its own may take.
const WRITE_WAIT: Duration = Duration::from_secs(30);

/// What it is to those who read it.
const OF_PROGRESS: Kind = Kind { what: "progress topic", rights: &["Read", "Write", "Describe", "Create"] };

/// Why the progress topic cannot be used.
#[derive(Debug, thiserror::Error)]
enum ProgressFault {
    #[error("{source} (topic {topic}, offset {offset})")]
    Record { topic: String, offset: i64, source: ProgressError },
    #[error("write to progress topic {topic}: {code}{}", mend.as_ref().map(|mend| format!("; {mend}")).unwrap_or_default())]
    Write { topic: String, code: RDKafkaErrorCode, mend: Option<String> },
}

/// The topic of a pipeline's progress.
pub fn topic_name(name: &str) -> String {
    format!("offshoot.{name}.progress")
}

/// As the config, but its topics are made as a progress topic must be.
pub(crate) fn config_of(config: &KafkaConfig) -> KafkaConfig {
    let property = |name: &str, value: &str| (name.to_owned(), Property(value.to_owned()));
    let properties = BTreeMap::from([
        property("cleanup.policy", "compact"),
        // Small pieces, so that old records go soon.
        property("segment.bytes", "1048576"),
    ]);
    KafkaConfig { topics: Topics { partitions: 1, properties, ..config.topics.clone() }, ..config.clone() }
}

/// Reads the last progress record that is committed; `None` when there is none, or no topic.
pub async fn read(config: &KafkaConfig, name: &str, admission: &Arc<Admission>) -> Result<Option<Progress>, SinkError> {
    let (progress, reader) = Reader::connect(config, name, admission)?.committed().await?;
    reader.close().await;
    Ok(progress)
}

/// Makes the progress topic if it is not there and writes the first record to it: the slot is about to be made.
pub async fn write_first(config: &KafkaConfig, name: &str, progress: Progress) -> Result<(), SinkError> {
    let (config, name) = (config.clone(), name.to_owned());
    aside(move |stop| write(&config, &name, &progress, stop)).await
}

/// Who reads the progress topic: one connection, however often it is asked. To drop it takes librdkafka a tenth of a second.
pub struct Reader {
    consumer: BaseConsumer<Heard>,
    config: KafkaConfig,
    name: String,
    admission: Arc<Admission>,
}

impl Reader {
    /// Begins to connect, and does not wait for it. Fails for properties that cannot be used.
    pub fn connect(config: &KafkaConfig, name: &str, admission: &Arc<Admission>) -> Result<Reader, SinkError> {
        let properties = client::reader_properties(config, name).map_err(|e| again(admission, Box::new(e)))?;
        let consumer = properties.create_with_context(Heard::default());
        let consumer = consumer.map_err(|e| SinkError::Refused(Box::new(client::refused_together(&e))))?;
        let (config, name, admission) = (config.clone(), name.to_owned(), admission.clone());
        Ok(Reader { consumer, config, name, admission })
    }

    /// Reads the last record that is committed now; `None` when there is none, or no topic.
    pub async fn committed(self) -> Result<(Option<Progress>, Reader), SinkError> {
        aside(move |stop| Ok((self.read(stop, |reading| reading.offsets(&self.consumer))?, self))).await
    }

    /// Reads up to the topic's very end, when nobody else can write any more: what a `read_committed` reader sees may be older for a
    /// moment, but a producer of ours sees it. Blocks.
    pub(crate) fn to_the_end<C: ProducerContext>(
        &self,
        producer: &BaseProducer<C>,
        stop: &AtomicBool,
    ) -> Result<Option<Progress>, SinkError> {
        self.read(stop, |reading| {
            reading.ask(&self.consumer, || producer.client().fetch_watermarks(reading.topic, 0, STEP))
        })
    }

    /// The last record before the end that is asked for. Blocks.
    fn read(
        &self,
        stop: &AtomicBool,
        offsets: impl FnOnce(&Reading<'_>) -> Result<(i64, i64), SinkError>,
    ) -> Result<Option<Progress>, SinkError> {
        let topic = topic_name(&self.name);
        let reading = Reading::new(&self.config, &OF_PROGRESS, &topic, &self.admission, stop);
        if !reading.is_there(&self.consumer)? {
            return Ok(None);
        }
        let (low, end) = offsets(&reading)?;
        let mut from = (end - TAIL).max(low);
        let found = loop {
            let found = last(&reading, &self.consumer, from, end)?;
            if found.is_some() || from <= low {
                break found;
            }
            from = (end - (end - from) * 10).max(low);
        };
        // It may be long until it is asked again. That it goes on to fetch would only cost.
        let _ = self.consumer.unassign();
        Ok(found)
    }

    /// Closes the connection, and waits for that.
    pub async fn close(self) {
        // It has nothing to say.
        let _ = aside(move |_| {
            drop(self);
            Ok(())
        })
        .await;
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Makes the progress topic if it is not there, and writes a record to it. Blocks.
fn write(config: &KafkaConfig, name: &str, progress: &Progress, stop: &AtomicBool) -> Result<(), SinkError> {
    let topic = topic_name(name);
    let refused = |e: client::PropertyError| SinkError::Refused(Box::new(e));
    let properties =
        client::producer_properties(&KafkaConfig { delivery: Delivery::AtLeastOnce, ..config.clone() }, name)
            .map_err(refused)?;
    let admin = client::admin_properties(config, name).map_err(refused)?;
    let producer: BaseProducer<Heard> =
        properties.create_with_context(Heard::default()).map_err(|e| refused(client::refused_together(&e)))?;
    let its = Topic { name: topic.clone(), table: "the progress record".into() };
    admin::ensure_topic(producer.client(), &config_of(config), &admin, &its, stop)?;
    let failed = |code| {
        let refused = fault::sort(code) == Fault::Refused;
        let mend = refused.then(|| fault::mend(code, &topic, config));
        let error = Box::new(ProgressFault::Write { topic: topic.clone(), code, mend });
        if refused { SinkError::Refused(error) } else { SinkError::Passing(error) }
    };
    let value = progress.encode();
    let record = BaseRecord::with_opaque_to(&topic, ()).key(KEY).payload(&value[..]);
    let code = |error: KafkaError| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
    producer.send(record).map_err(|(error, _)| failed(code(error)))?;
    let deadline = Instant::now() + WRITE_WAIT;
    loop {
        producer.poll(Duration::from_millis(50));
        match producer.context().delivered() {
            Some(Ok(())) => return Ok(()),
            Some(Err(code)) => return Err(failed(code)),
            None if Instant::now() > deadline || stop.load(Ordering::Acquire) => {
                return Err(failed(RDKafkaErrorCode::MessageTimedOut));
            }
            None => {}
        }
    }
}

/// The last record between two offsets, when everything before the second can be seen.
fn last(
    reading: &Reading<'_>,
    consumer: &BaseConsumer<Heard>,
    from: i64,
    end: i64,
) -> Result<Option<Progress>, SinkError> {
    if from >= end {
        return Ok(None);
    }
    reading.assign(consumer, from)?;
    let mut last: Option<Progress> = None;
    let mut waits = false;
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                // A tombstone says that there is no progress: somebody set it back by hand.
                let Some(value) = message.payload() else {
                    last = None;
                    continue;
                };
                let progress = Progress::decode(value).map_err(|source| {
                    let (topic, offset) = (reading.topic.to_owned(), message.offset());
                    SinkError::Refused(Box::new(ProgressFault::Record { topic, offset, source }))
                })?;
                if last.as_ref().is_none_or(|last| progress.supersedes(last)) {
                    last = Some(progress);
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {
                let (_, visible) = reading.offsets(consumer)?;
                if visible >= end {
                    return Ok(last);
                }
                if !std::mem::replace(&mut waits, true) {
                    info!(
                        topic = reading.topic,
                        "waits for an open transaction to be given up, which hides the last record"
                    );
                }
            }
            Some(Err(error)) => reading.refuse(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))?,
            None => {}
        }
        reading.in_time()?;
    }
}
