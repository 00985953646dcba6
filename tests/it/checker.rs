//! A table's own history, and the topic -> whether the topic tells it as promised. Pure.
//!
//! Promised is: all of it, nothing else, per key in order; and what is told again is told again from the start of a
//! transaction. In a partition that is: its records, named by their places in the history, either go on with the next
//! one, or go back to the first one of a transaction.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

/// A change as the table's trigger saw it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// Rises in the order of the changes of a transaction, and in that of the changes of a key.
    pub(crate) n: u64,
    /// The transaction.
    pub(crate) xid: u64,
    /// What was done.
    pub(crate) op: Op,
}

/// What a change did to a row, by key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    Insert {
        id: i64,
        row: Row,
    },
    Update {
        id: i64,
        row: Row,
    },
    /// The key was changed.
    Move {
        from: i64,
        to: i64,
        row: Row,
    },
    Delete {
        id: i64,
    },
}

/// What is compared of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) stamp: i64,
    pub(crate) note_len: usize,
}

/// A record of the topic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) key: i64,
    /// `None` is a tombstone.
    pub(crate) value: Option<Value>,
}

/// What is compared of a record's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Value {
    pub(crate) xid: u64,
    /// Where the transaction's commit record starts.
    pub(crate) commit: u64,
    /// The change's place in the transaction.
    pub(crate) index: usize,
    /// `c`, `u` or `d`.
    pub(crate) op: u8,
    /// `after`.
    pub(crate) row: Option<Row>,
}

/// How a life ended that did not end in good order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Death {
    /// The ends of the partitions then.
    pub(crate) ends: Vec<i64>,
    /// What Postgres had been told.
    pub(crate) confirmed: u64,
    /// The program had said, a moment before, that records were not acknowledged.
    pub(crate) in_flight: bool,
}

/// What was found, when all is well.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Summary {
    pub(crate) transactions: usize,
    /// In the topic, repeats included.
    pub(crate) records: usize,
    /// Records that the topic tells again.
    pub(crate) repeats: usize,
    /// Deaths with records in the topic of which Postgres had not been told.
    pub(crate) unconfirmed: usize,
    /// Deaths with records that were not acknowledged: the program had said so, or the topic shows it.
    pub(crate) unacknowledged: usize,
    /// Deaths with a transaction of which the topic had some records and not all.
    pub(crate) halved: usize,
}

/// What is wrong with a topic.
#[derive(Debug, PartialEq)]
pub(crate) enum Fault {
    /// The history has it and the topic does not, or not before what comes after it.
    Lost { place: Place, found: Option<Place> },
    /// The topic has it and the history does not.
    Invented { record: Record },
    /// A tombstone does not follow its delete.
    Tombstone { key: i64 },
    /// The topic goes back, and not to the start of a transaction.
    HalfRepeated { after: Place, found: Place },
    /// It goes back more often than there was a start.
    TooOften { partition: usize, times: usize },
    /// A key is told in two partitions.
    Strayed { key: i64 },
    /// A transaction has two commit positions, or a commit position two transactions.
    Commits { xid: u64, commit: u64 },
    /// In the order of the commit positions a key's changes are not in the order of its history.
    Backwards { key: i64, xid: u64 },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A record's place in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) xid: u64,
    /// The change in the transaction.
    pub(crate) index: usize,
    /// The record of the change.
    pub(crate) part: usize,
}

/// The records of a change: key, operation and row; no operation is a tombstone.
fn records_of(op: &Op) -> Vec<(i64, Option<u8>, Option<Row>)> {
    match *op {
        Op::Insert { id, row } => vec![(id, Some(b'c'), Some(row))],
        Op::Update { id, row } => vec![(id, Some(b'u'), Some(row))],
        Op::Delete { id } => vec![(id, Some(b'd'), None), (id, None, None)],
        Op::Move { from, to, row } => {
            vec![(from, Some(b'd'), None), (from, None, None), (to, Some(b'c'), Some(row))]
        }
    }
}

/// Compares a topic, partition by partition, with the history. `starts` is how often the program was started.
pub(crate) fn check(
    history: &[Change],
    topic: &[Vec<Record>],
    starts: usize,
    deaths: &[Death],
) -> Result<Summary, Fault> {
    let mut transactions: BTreeMap<u64, Vec<&Change>> = BTreeMap::new();
    for change in history {
        transactions.entry(change.xid).or_default().push(change);
    }
    transactions.values_mut().for_each(|changes| changes.sort_by_key(|change| change.n));

    // Where each record stands in the history; with it come the commit of each transaction and the partition of each key.
    let mut commits: BTreeMap<u64, u64> = BTreeMap::new();
    let mut xids: HashMap<u64, u64> = HashMap::new();
    let mut homes: HashMap<i64, usize> = HashMap::new();
    let mut told: Vec<Vec<Place>> = Vec::new();
    for (partition, records) in topic.iter().enumerate() {
        let mut places: Vec<Place> = Vec::with_capacity(records.len());
        for (at, record) in records.iter().enumerate() {
            let place = match &record.value {
                None => {
                    let deleted = at.checked_sub(1).map(|before| (&records[before], places[before]));
                    let deleted = deleted.filter(|(before, _)| {
                        before.key == record.key && before.value.as_ref().is_some_and(|value| value.op == b'd')
                    });
                    let (_, delete) = deleted.ok_or(Fault::Tombstone { key: record.key })?;
                    Place { part: delete.part + 1, ..delete }
                }
                Some(value) => {
                    let place = place_of(record, value, &transactions);
                    let place = place.ok_or_else(|| Fault::Invented { record: record.clone() })?;
                    let fault = Fault::Commits { xid: value.xid, commit: value.commit };
                    if *xids.entry(value.xid).or_insert(value.commit) != value.commit
                        || *commits.entry(value.commit).or_insert(value.xid) != value.xid
                    {
                        return Err(fault);
                    }
                    place
                }
            };
            if *homes.entry(record.key).or_insert(partition) != partition {
                return Err(Fault::Strayed { key: record.key });
            }
            places.push(place);
        }
        told.push(places);
    }
    if let Some((xid, _)) = transactions.iter().find(|(xid, _)| !xids.contains_key(xid)) {
        return Err(Fault::Lost { place: Place { xid: *xid, index: 0, part: 0 }, found: None });
    }

    // What each partition has to tell, in the order of the commits, and where a transaction starts in it.
    let mut expected: Vec<Vec<Place>> = vec![Vec::new(); topic.len()];
    let mut last: HashMap<i64, u64> = HashMap::new();
    for xid in commits.values() {
        for (index, change) in transactions[xid].iter().enumerate() {
            for (part, (key, ..)) in records_of(&change.op).into_iter().enumerate() {
                if last.insert(key, change.n).is_some_and(|before| before > change.n) {
                    return Err(Fault::Backwards { key, xid: *xid });
                }
                let place = Place { xid: *xid, index, part };
                let home = homes.get(&key).ok_or(Fault::Lost { place, found: None })?;
                expected[*home].push(place);
            }
        }
    }

    let mut summary = Summary { transactions: transactions.len(), ..Summary::default() };
    for (partition, (told, expected)) in told.iter().zip(&expected).enumerate() {
        summary.records += told.len();
        summary.repeats += walk(told, expected, partition, starts)?;
    }
    for death in deaths {
        let unconfirmed = told
            .iter()
            .zip(&death.ends)
            .any(|(told, end)| told[..*end as usize].last().is_some_and(|last| xids[&last.xid] >= death.confirmed));
        summary.unconfirmed += usize::from(unconfirmed);
        let halved = is_halved(death, &told, &transactions, &xids);
        summary.halved += usize::from(halved);
        summary.unacknowledged += usize::from(halved || death.in_flight);
    }
    Ok(summary)
}

/// The place of a record that says where it comes from, when what it says is so.
fn place_of(record: &Record, value: &Value, transactions: &BTreeMap<u64, Vec<&Change>>) -> Option<Place> {
    let change = transactions.get(&value.xid)?.get(value.index)?;
    let told = (record.key, Some(value.op), value.row);
    let part = records_of(&change.op).iter().position(|expected| *expected == told)?;
    Some(Place { xid: value.xid, index: value.index, part })
}

/// Follows a partition through what it has to tell; gives how many records it tells again.
fn walk(told: &[Place], expected: &[Place], partition: usize, starts: usize) -> Result<usize, Fault> {
    let at: HashMap<Place, usize> = expected.iter().enumerate().map(|(at, place)| (*place, at)).collect();
    let (mut next, mut furthest, mut times, mut repeats) = (0, 0, 0, 0);
    for place in told {
        let here = at[place];
        if here > next {
            return Err(Fault::Lost { place: expected[next], found: Some(*place) });
        }
        if here < next {
            times += 1;
            if here > 0 && expected[here - 1].xid == place.xid {
                return Err(Fault::HalfRepeated { after: expected[next - 1], found: *place });
            }
        }
        next = here + 1;
        repeats += usize::from(next <= furthest);
        furthest = furthest.max(next);
    }
    if next < expected.len() {
        return Err(Fault::Lost { place: expected[next], found: None });
    }
    if times >= starts.max(1) {
        return Err(Fault::TooOften { partition, times });
    }
    Ok(repeats)
}

/// Whether the last transaction that the topic had begun to tell at a death was not told to its end.
fn is_halved(
    death: &Death,
    told: &[Vec<Place>],
    transactions: &BTreeMap<u64, Vec<&Change>>,
    commits: &HashMap<u64, u64>,
) -> bool {
    let lasts = told.iter().zip(&death.ends).filter_map(|(told, end)| told[..*end as usize].last());
    let Some(xid) = lasts.map(|place| place.xid).max_by_key(|xid| commits[xid]) else { return false };
    let here = told
        .iter()
        .zip(&death.ends)
        .flat_map(|(told, end)| told[..*end as usize].iter().rev().take_while(|p| p.xid == xid));
    let here: HashSet<&Place> = here.collect();
    here.len() < transactions[&xid].iter().map(|change| records_of(&change.op).len()).sum()
}

mod tests {
    use super::*;

    const ROW: Row = Row { stamp: 1, note_len: 2 };

    /// Two keys in two partitions, and three transactions: two inserts; an update and a change of the key; a delete.
    fn history() -> Vec<Change> {
        let ops = [
            (7, Op::Insert { id: 1, row: ROW }),
            (7, Op::Insert { id: 2, row: ROW }),
            (5, Op::Update { id: 1, row: Row { stamp: 9, ..ROW } }),
            (5, Op::Move { from: 2, to: 4, row: ROW }),
            (8, Op::Delete { id: 1 }),
        ];
        ops.into_iter().zip(1..).map(|((xid, op), n)| Change { n, xid, op }).collect()
    }

    const COMMITS: [(u64, u64); 3] = [(7, 100), (5, 200), (8, 300)];

    /// What a program without a fault publishes of it: even keys in partition 0, odd ones in 1.
    fn topic() -> Vec<Vec<Record>> {
        let mut topic = vec![Vec::new(), Vec::new()];
        let history = history();
        for (xid, commit) in COMMITS {
            for (index, change) in history.iter().filter(|change| change.xid == xid).enumerate() {
                for (key, op, row) in records_of(&change.op) {
                    let value = op.map(|op| Value { xid, commit, index, op, row });
                    topic[key as usize % 2].push(Record { key, value });
                }
            }
        }
        topic
    }

    fn found(topic: &[Vec<Record>]) -> Result<Summary, Fault> {
        check(&history(), topic, 2, &[])
    }

    #[test]
    fn what_is_told_once_in_order_is_right() {
        let summary = found(&topic()).unwrap();
        assert_eq!((summary.transactions, summary.records, summary.repeats), (3, 8, 0));
    }

    #[test]
    fn a_transaction_told_again_from_its_start_is_right_and_counted() {
        let mut topic = topic();
        // Partition 1 told the first two transactions, then all from the second one.
        let again = topic[1][1..].to_vec();
        topic[1].truncate(2);
        topic[1].extend(again);
        assert_eq!(found(&topic).unwrap().repeats, 1);
        assert_eq!(check(&history(), &topic, 1, &[]), Err(Fault::TooOften { partition: 1, times: 1 }));
    }

    #[test]
    fn a_lost_record_is_found_wherever_it_was() {
        for partition in 0..2 {
            for at in 0..topic()[partition].len() {
                let mut topic = topic();
                let lost = topic[partition].remove(at);
                let fault = found(&topic).unwrap_err();
                assert!(matches!(fault, Fault::Lost { .. } | Fault::Tombstone { .. }), "{lost:?}: {fault}");
            }
        }
    }

    #[test]
    fn an_invented_record_is_found() {
        let value = |xid, index, op, row| Value { xid, commit: 100, index, op, row };
        let invented = [
            // A transaction that was rolled back.
            value(6, 0, b'c', Some(ROW)),
            value(7, 2, b'c', Some(ROW)),
            value(7, 0, b'u', Some(ROW)),
            value(7, 0, b'c', Some(Row { stamp: 2, ..ROW })),
        ];
        for value in invented {
            let mut topic = topic();
            let record = Record { key: 1, value: Some(value) };
            topic[1].push(record.clone());
            assert_eq!(found(&topic), Err(Fault::Invented { record }));
        }
    }

    #[test]
    fn a_reordered_record_is_found() {
        for (partition, at) in [(0, 0), (0, 2), (1, 0), (1, 1)] {
            let mut topic = topic();
            topic[partition].swap(at, at + 1);
            assert!(found(&topic).is_err(), "{partition} {at}");
        }
        // All of a transaction before an earlier one of the same key, by positions that say so.
        let mut topic = self::topic();
        for value in topic.iter_mut().flatten().filter_map(|record| record.value.as_mut()) {
            value.commit = if value.xid == 7 { 250 } else { value.commit };
        }
        topic[1].swap(0, 1);
        assert!(matches!(found(&topic), Err(Fault::Backwards { .. })));
    }

    #[test]
    fn a_transaction_repeated_from_its_middle_is_found() {
        let mut topic = topic();
        // The create of the changed key again, without the delete before it.
        let again = topic[0].last().unwrap().clone();
        topic[0].push(again);
        assert!(matches!(found(&topic), Err(Fault::HalfRepeated { .. })));
    }

    #[test]
    fn a_key_in_two_partitions_and_a_transaction_with_two_commits_are_found() {
        let mut topic_ = topic();
        let again = topic_[1][0].clone();
        topic_[0].insert(0, again);
        assert_eq!(found(&topic_), Err(Fault::Strayed { key: 1 }));
        let mut topic_ = topic();
        topic_[1][0].value.as_mut().unwrap().commit = 101;
        assert!(matches!(found(&topic_), Err(Fault::Commits { xid: 7, .. })));
    }

    #[test]
    fn a_death_shows_what_was_not_confirmed_and_what_was_not_told_to_its_end() {
        let death = |ends: [i64; 2], confirmed| Death { ends: ends.into(), confirmed, in_flight: false };
        let deaths = [
            // After everything, all confirmed.
            death([4, 4], 301),
            // The last transaction is whole and not confirmed.
            death([4, 4], 300),
            Death { in_flight: true, ..death([4, 4], 300) },
            // The last transaction has its tombstone to come.
            death([4, 3], 201),
            death([0, 0], 0),
            // The topic was not there yet.
            Death::default(),
        ];
        let shown = |death: &Death| {
            let summary = check(&history(), &topic(), 1, std::slice::from_ref(death)).unwrap();
            (summary.unconfirmed, summary.unacknowledged, summary.halved)
        };
        assert_eq!(deaths.each_ref().map(shown), [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (0, 0, 0), (0, 0, 0)]);
    }
}
