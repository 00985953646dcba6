//! Kafka transactions and flushes, as librdkafka has them: what the wrapper does in slices of 100 ms, done at once.

use std::{ffi::CStr, sync::Arc, time::Duration};

use rdkafka::{
    bindings::{
        rd_kafka_abort_transaction, rd_kafka_commit_transaction, rd_kafka_error_code, rd_kafka_error_destroy,
        rd_kafka_error_is_retriable, rd_kafka_error_string, rd_kafka_error_t, rd_kafka_flush,
        rd_kafka_init_transactions,
    },
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, Producer, ProducerContext},
};

/// Why a step of a transaction failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TransactionError {
    pub(crate) code: RDKafkaErrorCode,
    pub(crate) reason: String,
    /// The same step may be asked for again, and goes on where it was.
    pub(crate) retriable: bool,
}

/// Fences off whoever has the same transactional id, and ends what they left open. Goes on for at most `wait`.
pub(crate) fn init<C: ProducerContext>(producer: &BaseProducer<C>, wait: Duration) -> Result<(), TransactionError> {
    // SAFETY: the client lives for as long as the call.
    told(unsafe { rd_kafka_init_transactions(producer.client().native_ptr(), milliseconds(wait)) })
}

/// Begins a transaction. Does not wait.
pub(crate) fn begin<C: ProducerContext>(producer: &BaseProducer<C>) -> Result<(), TransactionError> {
    producer.begin_transaction().map_err(|error| match error {
        KafkaError::Transaction(error) => {
            TransactionError { code: error.code(), reason: error.string(), retriable: error.is_retriable() }
        }
        other => TransactionError {
            code: other.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
            reason: other.to_string(),
            retriable: false,
        },
    })
}

/// Waits until everything that was sent is there, then commits it. Another thread must serve the producer's events
/// meanwhile. Goes on for at most `wait`.
pub(crate) fn commit<C: ProducerContext>(
    producer: &Arc<BaseProducer<C>>,
    wait: Duration,
) -> Result<(), TransactionError> {
    // SAFETY: the client lives for as long as the call.
    told(unsafe { rd_kafka_commit_transaction(producer.client().native_ptr(), milliseconds(wait)) })
}

/// Gives up what was sent since `begin`.
pub(crate) fn abort<C: ProducerContext>(producer: &BaseProducer<C>, wait: Duration) -> Result<(), TransactionError> {
    // SAFETY: the client lives for as long as the call.
    told(unsafe { rd_kafka_abort_transaction(producer.client().native_ptr(), milliseconds(wait)) })
}

/// Lets no record wait for others to be sent with, until all are there or `wait` is over. Another thread must serve the
/// producer's events meanwhile.
pub(crate) fn flush<C: ProducerContext>(producer: &BaseProducer<C>, wait: Duration) {
    // That time is over is no fault. SAFETY: the client lives for as long as the call.
    unsafe { rd_kafka_flush(producer.client().native_ptr(), milliseconds(wait)) };
}

fn milliseconds(wait: Duration) -> i32 {
    wait.as_millis().min(i32::MAX as u128) as i32
}

fn told(error: *mut rd_kafka_error_t) -> Result<(), TransactionError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: an error that librdkafka gave us is ours to read, and to destroy once.
    unsafe {
        let reason = CStr::from_ptr(rd_kafka_error_string(error)).to_string_lossy().into_owned();
        let (code, retriable) = (rd_kafka_error_code(error).into(), rd_kafka_error_is_retriable(error) != 0);
        rd_kafka_error_destroy(error);
        Err(TransactionError { code, reason, retriable })
    }
}
