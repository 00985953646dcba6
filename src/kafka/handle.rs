//! A topic as librdkafka knows it, and a `Record` handed over to it. By name, as the wrapper does it, librdkafka looks through all
//! topics that it knows for every record, under a lock that its other threads want.

use std::{
    ffi::{CString, c_void},
    ops::Range,
    ptr,
};

use rdkafka::{
    bindings::{
        RD_KAFKA_MSG_F_COPY, rd_kafka_header_add, rd_kafka_headers_destroy, rd_kafka_headers_new, rd_kafka_headers_t,
        rd_kafka_producev, rd_kafka_topic_destroy, rd_kafka_topic_new, rd_kafka_topic_t, rd_kafka_vtype_t,
    },
    error::RDKafkaErrorCode,
    producer::{BaseProducer, Producer, ProducerContext},
    types::RDKafkaRespErr,
};

use crate::sink::{Header, Record, RecordBatch};

/// Where the key says.
pub(super) const BY_KEY: i32 = -1;

/// A topic of a client that is still there. Goes before the client does.
pub(super) struct TopicHandle(*mut rd_kafka_topic_t);

// SAFETY: librdkafka's topics may be used from any thread, and from several at once.
unsafe impl Send for TopicHandle {}
unsafe impl Sync for TopicHandle {}

impl TopicHandle {
    /// The topic need not be there yet.
    pub(super) fn new<C: ProducerContext>(
        producer: &BaseProducer<C>,
        name: &str,
    ) -> Result<TopicHandle, RDKafkaErrorCode> {
        let text = CString::new(name).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        // SAFETY: the client lives, the name ends in a null, and there is no configuration to hand over.
        let topic = unsafe { rd_kafka_topic_new(producer.client().native_ptr(), text.as_ptr(), ptr::null_mut()) };
        if topic.is_null() { Err(RDKafkaErrorCode::InvalidTopic) } else { Ok(TopicHandle(topic)) }
    }

    /// Hands one record of a batch over, whose bytes are copied; `opaque` comes back with its delivery.
    pub(super) fn produce<C: ProducerContext<DeliveryOpaque = usize>>(
        &self,
        producer: &BaseProducer<C>,
        batch: &RecordBatch,
        record: &Record,
        partition: i32,
        opaque: usize,
    ) -> Result<(), RDKafkaErrorCode> {
        use rd_kafka_vtype_t as is;
        let (key, key_len) = part(batch, record.key.as_ref());
        let (value, value_len) = part(batch, record.payload.as_ref());
        let headers = headers(batch, &batch.headers[record.headers.clone()]);
        // SAFETY: the client lives, and the topic is of it. Pointers come with their lengths, a null one means that there is
        // nothing; librdkafka copies what they point to. The headers are its own from here on, unless it fails.
        let result = unsafe {
            rd_kafka_producev(
                producer.client().native_ptr(),
                is::RD_KAFKA_VTYPE_RKT,
                self.0,
                is::RD_KAFKA_VTYPE_PARTITION,
                partition,
                is::RD_KAFKA_VTYPE_MSGFLAGS,
                RD_KAFKA_MSG_F_COPY,
                is::RD_KAFKA_VTYPE_VALUE,
                value,
                value_len,
                is::RD_KAFKA_VTYPE_KEY,
                key,
                key_len,
                is::RD_KAFKA_VTYPE_OPAQUE,
                opaque as *mut c_void,
                is::RD_KAFKA_VTYPE_TIMESTAMP,
                record.timestamp.unwrap_or(0),
                is::RD_KAFKA_VTYPE_HEADERS,
                headers,
                is::RD_KAFKA_VTYPE_END,
            )
        };
        if result == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        if !headers.is_null() {
            // SAFETY: ours again, and destroyed once.
            unsafe { rd_kafka_headers_destroy(headers) };
        }
        Err(result.into())
    }
}

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: got from `rd_kafka_topic_new`, given back once.
        unsafe { rd_kafka_topic_destroy(self.0) };
    }
}

/// A part of a batch's bytes; null where there is none, which is not the same as empty.
fn part(batch: &RecordBatch, range: Option<&Range<usize>>) -> (*mut c_void, usize) {
    match range {
        None => (ptr::null_mut(), 0),
        Some(range) => {
            let bytes = &batch.bytes[range.clone()];
            (bytes.as_ptr() as *mut c_void, bytes.len())
        }
    }
}

/// librdkafka's own; null where there are none.
fn headers(batch: &RecordBatch, all: &[Header]) -> *mut rd_kafka_headers_t {
    if all.is_empty() {
        return ptr::null_mut();
    }
    // SAFETY: nothing is handed over but a number.
    let list = unsafe { rd_kafka_headers_new(all.len()) };
    for header in all {
        let (value, len) = part(batch, header.value.as_ref());
        let name = &*header.name;
        // SAFETY: the list is ours; librdkafka copies name and value.
        let result =
            unsafe { rd_kafka_header_add(list, name.as_ptr().cast(), name.len() as isize, value, len as isize) };
        // It fails only for a list that may not be written.
        assert_eq!(result, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, "a list of ours");
    }
    list
}
