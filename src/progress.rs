//! How far a pipeline's events have come, as Kafka keeps it beside them, and where a start goes on from there. Pure.
//!
//! The record is JSON under one key of a compacted topic. With `exactly_once` it is written in the same Kafka transaction as
//! the events that it covers; what it covers is skipped at a start and never sent again.

use serde::{Deserialize, Serialize};

#[cfg(test)]
use crate::planted::{PlantedBug, is_planted};
use crate::{
    change::{Commit, Micros},
    lsn::Lsn,
};

/// The version of the record's format that this program writes, and the last one that it reads.
pub const FORMAT: u32 = 1;
/// The version of a record that says what is held: who does not know of it must not go on from there.
pub const FORMAT_HOLDING: u32 = 2;

/// A progress record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// `FORMAT`.
    format: u32,
    /// Counts the times that a person has said where to go on, from 1.
    pub epoch: u32,
    /// How far events have come.
    pub reached: Reached,
    /// The cluster that positions are of.
    pub origin: Origin,
    /// Whose "first so many changes" a partial transaction's index counts: config and program.
    pub fingerprint: String,
    /// When it was written, in microseconds since 1970, by the clock of the instance that wrote it.
    pub time: Micros,
    /// The last transaction that a person has skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
    /// What is held of the source's tables, where the mapping needs that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<Holding>,
}

/// How far events have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reached {
    /// The slot is being made; nothing has been published.
    Creating,
    /// Everything that ends here or before is published.
    End {
        /// Where the last whole transaction's commit record ends: not where it starts, which is not what the slot is told.
        end: Lsn,
        /// The transaction after it, of which some is published.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        partial: Option<Partial>,
    },
}

/// A transaction that was too large for one Kafka transaction, and is not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// Where its commit record starts.
    pub commit: Lsn,
    /// How many of its steps are published.
    pub index: u64,
    /// Its events are all published, and some of the rows that the replica is to have of it: these are written again, all of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeping: bool,
}

/// What is held of the source's tables, in a topic beside the progress record's and in step with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Names the topic's contents: another word, another topic.
    pub generation: String,
    /// Where the topic ended at least: the offset after the last record of ours, when this was written.
    pub end: i64,
    /// The number of the last load that was begun.
    pub loads: u32,
    /// What is held.
    pub tables: Vec<HeldTable>,
    /// Events that have told of the rows which were there before, by name and version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backfilled: Vec<String>,
    /// Where the telling of these rows stands in the log, as if it were a transaction, while it is not at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfilling: Option<Lsn>,
}

/// A table whose rows are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldTable {
    /// `schema.table`.
    pub table: String,
    /// What the database called it; 0 is unknown. Another table that has its name since is not held.
    #[serde(default)]
    pub oid: u32,
    /// Name of each column and how its values are written, in the order of the rows: `id integer`.
    pub columns: Vec<String>,
    /// Rows of other loads are not there.
    pub load: u32,
    /// Where a transaction commits before that, rows are not as they were when it did.
    pub from: Lsn,
    /// All its rows of that load are in the topic.
    pub complete: bool,
    /// And no rows of earlier loads are.
    #[serde(default)]
    pub alone: bool,
}

/// Which log positions are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Of the database cluster; outlives fail-over, but not pg_upgrade.
    pub system_identifier: String,
    /// Counts the cluster's fail-overs.
    pub timeline: u32,
    /// The slot.
    pub slot: String,
}

/// A transaction that was skipped on request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Where its commit record starts.
    pub commit: Lsn,
    /// Its id, as the log has it.
    pub xid: u32,
    /// Who said so: the user and the host of the command.
    pub by: String,
    /// When, in microseconds since 1970.
    pub at: Micros,
    /// The file that it was saved to.
    pub file: String,
}

/// A record that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum ProgressError {
    /// Another program's, or another version's.
    #[error(
        "read the progress record: its format is {found}, this program reads {FORMAT} to {FORMAT_HOLDING}; use the offshoot that wrote it, or a \
         newer one"
    )]
    Format {
        /// What it says.
        found: u64,
    },
    /// Not a progress record.
    #[error("read the progress record: {0}; somebody else has written to the topic")]
    Malformed(serde_json::Error),
}

impl Progress {
    /// Of a pipeline whose slot is about to be made.
    pub fn creating(epoch: u32, origin: Origin, fingerprint: String, time: Micros) -> Self {
        Self {
            format: FORMAT,
            epoch,
            reached: Reached::Creating,
            origin,
            fingerprint,
            time,
            skipped: None,
            replica: None,
        }
    }

    /// An epoch above all that ids were made with.
    pub fn next_epoch(&self) -> u32 {
        self.epoch + self.origin.timeline.max(1)
    }

    /// With what is held, or with nothing.
    pub fn holding(self, replica: Option<Holding>) -> Self {
        Self { format: if replica.is_some() { FORMAT_HOLDING } else { FORMAT }, replica, ..self }
    }

    /// As it is when rows of held tables are not known any more: they are loaded again.
    pub fn forgetting(self) -> Self {
        let forgotten =
            self.replica.clone().map(|replica| Holding { tables: Vec::new(), backfilling: None, ..replica });
        self.holding(forgotten)
    }

    /// The record's value.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("neither maps nor foreign types are in it")
    }

    /// The record of a value.
    pub fn decode(value: &[u8]) -> Result<Self, ProgressError> {
        #[derive(Deserialize)]
        struct Head {
            format: u64,
        }
        let head: Head = serde_json::from_slice(value).map_err(ProgressError::Malformed)?;
        if ![FORMAT, FORMAT_HOLDING].map(u64::from).contains(&head.format) {
            return Err(ProgressError::Format { found: head.format });
        }
        serde_json::from_slice(value).map_err(ProgressError::Malformed)
    }

    /// Which of two records is the later one, whatever their order in the topic: without transactions, the last record of
    /// an instance that died may land after its successor's first.
    pub fn supersedes(&self, other: &Progress) -> bool {
        let rank = |progress: &Progress| {
            let reached = match progress.reached {
                Reached::Creating => (Lsn::INVALID, 0),
                Reached::End { end, partial } => (end, partial.map_or(0, |partial| partial.index)),
            };
            (progress.epoch, progress.origin.timeline, reached)
        };
        rank(self) >= rank(other)
    }
}

/// What the database says of itself and of the slot, when the slot has been taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which log it is.
    pub origin: Origin,
    /// Timelines before this one, each with the position at which the log left it.
    pub history: Vec<(u32, Lsn)>,
    /// What the slot has confirmed.
    pub confirmed: Lsn,
    /// The end of the server's log.
    pub end_of_log: Lsn,
    /// As in `Progress`.
    pub fingerprint: String,
}

/// The epoch of a transaction, for ids and sequences of what it becomes: the same whenever it is published, and another after
/// a fail-over, when its position can mean another transaction.
///
/// It counts the times that a person has said where to go on, and the timelines up to the one whose log the commit is in.
pub fn epoch_of(epoch: u32, found: &Found, commit: Lsn) -> u32 {
    #[cfg(test)]
    if is_planted(PlantedBug::EpochOfToday) {
        return epoch + found.origin.timeline.max(1) - 1;
    }
    let older = found.history.iter().find(|(_, left)| commit < *left).map(|(timeline, _)| *timeline);
    epoch + older.unwrap_or(found.origin.timeline).max(1) - 1
}

/// Where a start goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Transactions that end here or before are published.
    pub published: Lsn,
    /// The transaction of which the first changes are published too.
    pub partial: Option<Partial>,
    /// What was published of a timeline that was given up: from where it was left to where we had come.
    pub never_came_to_be: Option<(Lsn, Lsn)>,
}

/// Why going on would lose, repeat or invent; the text says what is known, and the ways on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// A slot of which Kafka knows nothing.
    #[error(
        "go on from slot {slot}, which stands at {confirmed}: kafka has no progress record of this pipeline, so this may be a \
         first start with a slot that somebody made, or one whose progress topic was lost. If nothing was published \
         yet, or what was may come again: offshoot resume --from-slot. If you know how far events have come: offshoot resume \
         --at LSN"
    )]
    NoProgress {
        /// The slot.
        slot: String,
        /// What it has confirmed.
        confirmed: Lsn,
    },
    /// The slot that events came from is gone.
    #[error(
        "go on after {end}: slot {slot} is not there any more, and with it every change that was committed since {since}. \
         Begin again from now, with a gap: offshoot resume --new-slot. What is missing can be read from the tables"
    )]
    NoSlot {
        /// The slot.
        slot: String,
        /// How far events have come.
        end: Lsn,
        /// When that was written.
        since: String,
    },
    /// The slot has been moved past what was published.
    #[error(
        "go on after {end}: slot {slot} stands at {confirmed}, so {bytes} bytes of the log, since {since}, were skipped by \
         somebody else, or the progress topic was set back. Go on with that gap: offshoot resume --from-slot"
    )]
    SlotAhead {
        /// The slot.
        slot: String,
        /// What it has confirmed.
        confirmed: Lsn,
        /// How far events have come.
        end: Lsn,
        /// What lies between.
        bytes: u64,
        /// When `end` was written.
        since: String,
    },
    /// Another cluster.
    #[error(
        "go on after {end}: that is a position of database cluster {published}, and this is cluster {here} (pg_upgrade, a \
         restored dump, or another host). Its positions say nothing here. Begin at this cluster's slot: offshoot resume \
         --from-slot"
    )]
    OtherSystem {
        /// How far events have come, there.
        end: Lsn,
        /// Where they came from.
        published: String,
        /// Where we are.
        here: String,
    },
    /// The log is shorter, or older, than what was published from it.
    #[error(
        "go on after {end} of timeline {timeline}: the server's log ends at {end_of_log} of timeline {here}. It was moved back \
         (a restored backup, or an old primary), so events were published that this database does not know. Connect to \
         the right server; or go on from here: offshoot resume --from-slot"
    )]
    LogMovedBack {
        /// How far events have come.
        end: Lsn,
        /// On which timeline.
        timeline: u32,
        /// The end of the server's log.
        end_of_log: Lsn,
        /// The server's timeline.
        here: u32,
    },
    /// What is held of the source's tables is not where it was.
    #[error(
        "go on after {end}: topic {topic} {found}, and what events need of the source's tables is in it. If it was deleted or set back, have \
         it loaded from the source again: offshoot reload"
    )]
    NotHeld {
        /// How far events have come.
        end: Lsn,
        /// The topic.
        topic: String,
        /// What is the matter with it.
        found: String,
    },
    /// Part of a transaction was published as another config would have it.
    #[error(
        "go on within the transaction that commits at {commit}: {index} of its changes were published by another config or \
         version of offshoot, which may have left others out. Start that one until the transaction is published, or \
         publish it again from its start: offshoot resume --from-slot"
    )]
    OtherFingerprint {
        /// Where its commit record starts.
        commit: Lsn,
        /// How many changes are published.
        index: u64,
    },
}

impl Gap {
    /// What goes on with it, once somebody has decided to.
    pub fn mend(&self) -> &'static str {
        match self {
            Self::NoProgress { .. } => {
                "offshoot resume --from-slot; or, if you know how far events have come, --at LSN"
            }
            Self::NoSlot { .. } => "offshoot resume --new-slot",
            Self::LogMovedBack { .. } => "connect to the right server; or offshoot resume --from-slot",
            Self::OtherFingerprint { .. } => {
                "start the config and the version that began it; or offshoot resume --from-slot"
            }
            Self::NotHeld { .. } => "offshoot reload",
            Self::SlotAhead { .. } | Self::OtherSystem { .. } => "offshoot resume --from-slot",
        }
    }
}

/// Whether the log is the one that was published from: asked before anybody is fenced off.
pub fn same_system(progress: Option<&Progress>, here: &Origin) -> Result<(), Gap> {
    match progress {
        Some(Progress { reached: Reached::End { end, .. }, origin, .. })
            if origin.system_identifier != here.system_identifier =>
        {
            let (published, here) = (origin.system_identifier.clone(), here.system_identifier.clone());
            Err(Gap::OtherSystem { end: *end, published, here })
        }
        _ => Ok(()),
    }
}

/// Whether the server's log is older or shorter than what was published from it: asked before anybody is fenced off, and
/// again by `start`. The log is looked at after the record was read: until then somebody else may have published more.
pub fn not_moved_back(progress: Option<&Progress>, timeline: u32, end_of_log: Lsn) -> Result<(), Gap> {
    let Some(Progress { reached: Reached::End { end, .. }, origin, .. }) = progress else { return Ok(()) };
    if (origin.timeline, *end) <= (timeline, end_of_log) {
        return Ok(());
    }
    Err(Gap::LogMovedBack { end: *end, timeline: origin.timeline, end_of_log, here: timeline })
}

/// Whether a slot may be made, or the one that is there be read: asked before either.
///
/// `slot` is what the slot has confirmed, if it is there.
pub fn may_begin(progress: Option<&Progress>, slot: Option<Lsn>, name: &str) -> Result<(), Gap> {
    match (progress.map(|progress| (progress, progress.reached)), slot) {
        (None, Some(confirmed)) => Err(Gap::NoProgress { slot: name.to_owned(), confirmed }),
        (Some((progress, Reached::End { end, .. })), None) => {
            Err(Gap::NoSlot { slot: name.to_owned(), end, since: date(progress.time) })
        }
        _ => Ok(()),
    }
}

/// Where to go on, when the slot is ours and nobody else can write to the progress topic any more.
pub fn start(progress: Option<&Progress>, found: &Found) -> Result<Start, Gap> {
    let slot = || found.origin.slot.clone();
    let Some(progress) = progress else {
        return Err(Gap::NoProgress { slot: slot(), confirmed: found.confirmed });
    };
    same_system(Some(progress), &found.origin)?;
    #[cfg(test)]
    if is_planted(PlantedBug::ResumesFromTheSlot) {
        return Ok(Start { published: found.confirmed, partial: None, never_came_to_be: None });
    }
    let Reached::End { end, partial } = progress.reached else {
        return Ok(Start { published: found.confirmed, partial: None, never_came_to_be: None });
    };
    not_moved_back(Some(progress), found.origin.timeline, found.end_of_log)?;
    let mut going_on = Start { published: end, partial, never_came_to_be: None };
    if progress.origin.timeline != found.origin.timeline {
        let left = found.history.iter().find(|(timeline, _)| *timeline == progress.origin.timeline);
        // A newer timeline that does not come from ours.
        let Some(&(_, left)) = left else {
            return Err(Gap::LogMovedBack {
                end,
                timeline: progress.origin.timeline,
                end_of_log: found.end_of_log,
                here: found.origin.timeline,
            });
        };
        // Where the last transaction commits of which something is published.
        let reached = partial.map_or(end, |partial| partial.commit.max(end));
        if end > left {
            going_on = Start { published: left, partial: None, never_came_to_be: Some((left, reached)) };
        } else if partial.is_some_and(|partial| partial.commit >= left) {
            going_on.partial = None;
            going_on.never_came_to_be = Some((left, reached));
        }
    }
    ahead(progress, found.confirmed, going_on.published, end, slot())?;
    match going_on.partial {
        Some(Partial { commit, index, keeping: false }) if progress.fingerprint != found.fingerprint => {
            Err(Gap::OtherFingerprint { commit, index })
        }
        _ => Ok(going_on),
    }
}

/// What is held in whole, as a record says, and is of the log that we are on. Rows that were loaded at a position which a fail-over has undone may be of
/// transactions that never came to be, as may all rows once such a transaction was published.
pub fn held(progress: &Progress, found: &Found, start: &Start) -> Holding {
    let mut holding = progress.replica.clone().unwrap_or_default();
    let left = found.history.iter().find(|(timeline, _)| *timeline == progress.origin.timeline).map(|(_, left)| *left);
    let is_ours = |from: Lsn| match left {
        Some(left) => from <= left,
        None => progress.origin.timeline == found.origin.timeline,
    };
    let came_to_be = start.never_came_to_be.is_none();
    #[cfg(test)]
    let (is_ours, came_to_be) = match is_planted(PlantedBug::HoldsWhatWasUndone) {
        true => (&(|_| true) as &dyn Fn(Lsn) -> bool, true),
        false => (&is_ours as &dyn Fn(Lsn) -> bool, came_to_be),
    };
    holding.tables.retain(|table| table.complete && came_to_be && is_ours(table.from));
    holding
}

/// Whether the slot has been moved past what was published.
pub fn slot_ahead(progress: &Progress, confirmed: Lsn, slot: &str) -> Result<(), Gap> {
    match progress.reached {
        Reached::End { end, .. } => ahead(progress, confirmed, end, end, slot.to_owned()),
        Reached::Creating => Ok(()),
    }
}

fn ahead(progress: &Progress, confirmed: Lsn, published: Lsn, end: Lsn, slot: String) -> Result<(), Gap> {
    if confirmed <= published {
        return Ok(());
    }
    Err(Gap::SlotAhead { slot, confirmed, end, bytes: confirmed.bytes_since(published), since: date(progress.time) })
}

impl Start {
    /// How many changes of a transaction are published; `None` when it is not to be sent at all.
    pub fn published_of(&self, commit: &Commit) -> Option<u64> {
        #[cfg(test)]
        if is_planted(PlantedBug::SkipsOneTooFew) && commit.end == self.published {
            return Some(0);
        }
        #[cfg(test)]
        if is_planted(PlantedBug::SkipsOneTooMany) && commit.lsn <= self.published {
            return None;
        }
        if commit.end <= self.published {
            return None;
        }
        let partial = self.partial.filter(|partial| partial.commit == commit.lsn).map_or(0, |partial| partial.index);
        #[cfg(test)]
        let partial = match partial {
            0 => 0,
            _ if is_planted(PlantedBug::PartialOneTooFew) => partial - 1,
            _ if is_planted(PlantedBug::PartialOneTooMany) => partial + 1,
            _ => partial,
        };
        Some(partial)
    }
}

/// RFC 3339, to the second.
pub fn date(time: Micros) -> String {
    let since = std::time::Duration::from_micros(time.max(0) as u64);
    humantime::format_rfc3339_seconds(std::time::SystemTime::UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(system: &str, timeline: u32) -> Origin {
        Origin { system_identifier: system.into(), timeline, slot: "offshoot_shop".into() }
    }

    fn at(end: u64) -> Progress {
        let reached = Reached::End { end: Lsn(end), partial: None };
        Progress { reached, ..Progress::creating(1, origin("7", 1), "f".into(), 1_700_000_000_000_000) }
    }

    fn partial(end: u64, commit: u64, index: u64) -> Progress {
        let partial = Some(Partial { commit: Lsn(commit), index, keeping: false });
        Progress { reached: Reached::End { end: Lsn(end), partial }, ..at(0) }
    }

    fn found(confirmed: u64, end_of_log: u64) -> Found {
        Found {
            origin: origin("7", 1),
            history: Vec::new(),
            confirmed: Lsn(confirmed),
            end_of_log: Lsn(end_of_log),
            fingerprint: "f".into(),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let skipped =
            Skipped { commit: Lsn(0x1_0000_0020), xid: 7, by: "ann@host".into(), at: 3, file: "/tmp/x".into() };
        for progress in [at(10), partial(10, 20, 3), Progress { skipped: Some(skipped), ..at(7) }] {
            assert_eq!(Progress::decode(&progress.encode()).unwrap(), progress);
        }
        let text = String::from_utf8(partial(0x1_0000_0010, 0x1_0000_0020, 3).encode()).unwrap();
        assert!(text.contains(r#""end":"1/10","partial":{"commit":"1/20","index":3}"#), "{text}");
    }

    #[test]
    fn a_record_that_says_what_is_held_is_of_a_format_of_its_own() {
        let held = HeldTable {
            table: "public.show".into(),
            oid: 16_400,
            columns: vec!["id int4".into()],
            load: 3,
            from: Lsn(64),
            complete: true,
            alone: true,
        };
        let holding = Holding { generation: "g".into(), end: 7, loads: 3, tables: vec![held], ..Holding::default() };
        let progress = at(100).holding(Some(holding.clone()));
        let text = String::from_utf8(progress.encode()).unwrap();
        assert!(text.starts_with(r#"{"format":2,"#), "{text}");
        assert_eq!(Progress::decode(text.as_bytes()).unwrap(), progress);
        let forgotten = progress.clone().forgetting();
        assert_eq!(forgotten.replica, Some(Holding { tables: Vec::new(), ..holding }));
        assert_eq!(progress.holding(None), at(100));
    }

    #[test]
    fn what_was_loaded_beyond_the_end_of_a_timeline_is_not_held() {
        let table = |from, complete| HeldTable {
            table: "public.show".into(),
            oid: 16_400,
            columns: Vec::new(),
            load: 1,
            from: Lsn(from),
            complete,
            alone: false,
        };
        let holding =
            Holding { tables: vec![table(40, true), table(60, true), table(30, false)], ..Holding::default() };
        let progress = at(30).holding(Some(holding));
        let from = |found: &Found, start: &Start| {
            held(&progress, found, start).tables.iter().map(|table| table.from.0).collect::<Vec<_>>()
        };
        let going_on = |found: &Found| start(Some(&progress), found).unwrap();
        let mut here = found(30, 200);
        assert_eq!(from(&here, &going_on(&here)), [40, 60]);
        here.origin.timeline += 1;
        here.history = vec![(progress.origin.timeline, Lsn(50))];
        assert_eq!(from(&here, &going_on(&here)), [40]);
        here.history = vec![(progress.origin.timeline, Lsn(20))];
        here.confirmed = Lsn(10);
        assert_eq!(from(&here, &going_on(&here)), [0; 0], "what was published has been undone");
    }

    #[test]
    fn a_record_of_another_format_is_refused_with_words() {
        let unknown = r#"{"format":3,"reached":"elsewhere"}"#;
        assert!(matches!(Progress::decode(unknown.as_bytes()), Err(ProgressError::Format { found: 3 })));
        assert!(matches!(Progress::decode(b"{}"), Err(ProgressError::Malformed(_))));
        assert!(matches!(Progress::decode(b"hello"), Err(ProgressError::Malformed(_))));
    }

    #[test]
    fn goes_on_after_what_is_published_and_skips_it_to_the_byte() {
        let going_on = start(Some(&at(100)), &found(90, 200)).unwrap();
        let commit = |lsn, end| Commit { xid: 1, lsn: Lsn(lsn), end: Lsn(end), time: 0 };
        assert_eq!(going_on.published_of(&commit(95, 100)), None);
        assert_eq!(going_on.published_of(&commit(100, 101)), Some(0));
        let within = start(Some(&partial(100, 110, 7)), &found(100, 200)).unwrap();
        assert_eq!(within.published_of(&commit(110, 120)), Some(7));
        assert_eq!(within.published_of(&commit(120, 130)), Some(0));
    }

    #[test]
    fn a_slot_that_is_being_made_is_read_from_where_it_stands() {
        let creating = Progress::creating(1, origin("7", 1), "f".into(), 0);
        assert_eq!(start(Some(&creating), &found(50, 60)).unwrap().published, Lsn(50));
        assert_eq!(may_begin(Some(&creating), None, "s"), Ok(()));
        assert_eq!(may_begin(Some(&creating), Some(Lsn(50)), "s"), Ok(()));
        assert_eq!(may_begin(None, None, "s"), Ok(()));
    }

    #[test]
    fn one_end_without_the_other_is_a_gap() {
        assert!(matches!(may_begin(None, Some(Lsn(5)), "s"), Err(Gap::NoProgress { .. })));
        assert!(matches!(may_begin(Some(&at(9)), None, "s"), Err(Gap::NoSlot { .. })));
        assert!(matches!(start(None, &found(1, 2)), Err(Gap::NoProgress { .. })));
    }

    #[test]
    fn a_slot_ahead_of_its_progress_is_a_gap_and_says_how_much() {
        let Err(Gap::SlotAhead { bytes, since, .. }) = start(Some(&at(100)), &found(140, 200)) else { panic!() };
        assert_eq!((bytes, since.as_str()), (40, "2023-11-14T22:13:20Z"));
        assert!(start(Some(&at(100)), &found(100, 200)).is_ok());
    }

    #[test]
    fn another_cluster_and_a_log_that_was_moved_back_are_refused() {
        let elsewhere = Found { origin: origin("8", 1), ..found(90, 200) };
        assert!(matches!(start(Some(&at(100)), &elsewhere), Err(Gap::OtherSystem { .. })));
        assert!(matches!(start(Some(&at(100)), &found(90, 99)), Err(Gap::LogMovedBack { .. })));
        let older = Progress { origin: origin("7", 3), ..at(100) };
        assert!(matches!(start(Some(&older), &found(90, 200)), Err(Gap::LogMovedBack { .. })));
    }

    #[test]
    fn after_a_fail_over_it_goes_on_from_where_the_log_was_left() {
        let promoted = |left| Found { origin: origin("7", 2), history: vec![(1, Lsn(left))], ..found(80, 300) };
        assert_eq!(start(Some(&at(100)), &promoted(120)).unwrap().published, Lsn(100));
        let lost = start(Some(&at(100)), &promoted(90)).unwrap();
        assert_eq!((lost.published, lost.never_came_to_be), (Lsn(90), Some((Lsn(90), Lsn(100)))));
        let unrelated = Found { origin: origin("7", 2), history: vec![], ..found(80, 300) };
        assert!(matches!(start(Some(&at(100)), &unrelated), Err(Gap::LogMovedBack { .. })));
        // The transaction that was half published committed on the branch that was given up.
        let half = start(Some(&partial(80, 100, 5)), &promoted(90)).unwrap();
        assert_eq!((half.published, half.partial), (Lsn(80), None));
        assert_eq!(half.never_came_to_be, Some((Lsn(90), Lsn(100))));
        let and_half = start(Some(&partial(95, 100, 5)), &promoted(90)).unwrap();
        assert_eq!(and_half.never_came_to_be, Some((Lsn(90), Lsn(100))));
    }

    #[test]
    fn an_epoch_is_the_same_whenever_and_rises_with_each_fail_over_and_each_resume() {
        let primary = found(80, 300);
        assert_eq!(epoch_of(1, &primary, Lsn(90)), 1);
        let promoted = Found { origin: origin("7", 3), history: vec![(1, Lsn(90)), (2, Lsn(200))], ..found(80, 300) };
        let epochs = [89, 90, 199, 200, 500].map(|commit| epoch_of(1, &promoted, Lsn(commit)));
        assert_eq!(epochs, [1, 2, 2, 3, 3], "what was committed before a fail-over keeps its ids");
        let progress = Progress { origin: origin("7", 3), ..at(250) };
        assert_eq!(epoch_of(progress.next_epoch(), &promoted, Lsn(89)), 4, "who goes back repeats no id");
        let creating = Progress { origin: origin("7", 0), ..at(0) };
        assert_eq!((creating.next_epoch(), epoch_of(1, &Found { origin: origin("7", 0), ..primary }, Lsn(1))), (2, 1));
    }

    #[test]
    fn half_a_transaction_is_not_finished_by_another_config() {
        let other = Found { fingerprint: "g".into(), ..found(100, 200) };
        assert!(matches!(start(Some(&partial(100, 110, 7)), &other), Err(Gap::OtherFingerprint { .. })));
        assert!(start(Some(&at(100)), &other).is_ok());
    }

    #[test]
    fn the_later_record_is_the_one_that_has_come_further() {
        assert!(at(20).supersedes(&at(10)) && !at(10).supersedes(&at(20)));
        assert!(partial(10, 15, 2).supersedes(&at(10)));
        let resumed = Progress { epoch: 2, ..at(5) };
        assert!(resumed.supersedes(&at(20)) && !at(20).supersedes(&resumed));
        let promoted = Progress { origin: origin("7", 2), ..at(15) };
        assert!(promoted.supersedes(&at(20)));
    }
}
