//! What happened in the business: an event of one aggregate, made of one committed transaction.

use std::sync::Arc;

use crate::mapping::rules::EventRule;

/// What a transaction says of itself, for its events: values by the names of CloudEvents attributes, such as `correlationid`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context(pub Vec<(Arc<str>, String)>);

/// One event; its bytes live until the next one is made.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// What it is an event of, and where it goes.
    pub rule: &'a EventRule,
    /// The rule's place among those of the config.
    pub number: usize,
    /// Its place among the events of its transaction, from 0.
    pub index: u64,
    /// The record's key: the aggregate's, as text.
    pub key: &'a [u8],
    /// The key that the aggregate had before the transaction, when that was another.
    pub previous_key: Option<&'a [u8]>,
    /// The primary key of the root's row, as text: several columns joined by `,`. It makes the id unique.
    pub row: &'a [u8],
    /// JSON of its data; `None` is a tombstone of a state topic.
    pub data: Option<&'a [u8]>,
    /// The event of the same transaction that it came of, with the primary key of that one's root.
    pub cause: Option<(&'a EventRule, &'a [u8])>,
}
