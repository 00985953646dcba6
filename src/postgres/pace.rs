//! Reads and segments counted -> how much to read at once, and when to wait a little. Pure.
//!
//! The walsender sends every message by itself. Read as fast as it writes and each row travels in segments of its own,
//! at half the rate; wait a little between bounded reads and it fills them. Which bound keeps it there is found while
//! reading, from the size of the segments: a fixed one fell into the slow mode at times.

use std::time::Duration;

/// How long to wait between two reads while data keeps coming.
pub(crate) const PAUSE: Duration = Duration::from_micros(500);
/// So many reads in a row that did not wait longer than a pause are a backlog; fewer may be one commit, and are not made to wait.
const READS_BEFORE_PAUSE: u32 = 8;
const READ_BYTES_FIRST: usize = 16 << 10;
const READ_BYTES_MIN: usize = 8 << 10;
const READ_BYTES_MAX: usize = 200 << 10;
/// Judged by bytes received and not by time: intervals without arrivals would throttle.
const JUDGE_BYTES: u64 = 200 << 10;
const SEGMENT_SMALL: u64 = 1536;
const SEGMENT_LARGE: u64 = 6 << 10;

/// What the kernel counted on a connection so far (`TCP_INFO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// `tcpi_bytes_received`
    pub(crate) bytes: u64,
    /// `tcpi_data_segs_in`
    pub(crate) segments: u32,
    /// `tcpi_advmss`: no segment is larger than this.
    pub(crate) segment_max: u32,
}

/// Decides how one TCP connection is read.
#[derive(Debug)]
pub(crate) struct Pace {
    read_bytes: usize,
    prompt_reads: u32,
    since_judged: u64,
    judged: Received,
}

impl Pace {
    pub(crate) fn new(received: Received) -> Pace {
        Pace { read_bytes: READ_BYTES_FIRST, prompt_reads: 0, since_judged: 0, judged: received }
    }

    /// The most that the next read may take.
    pub(crate) fn read_bytes(&self) -> usize {
        self.read_bytes
    }

    /// Whether the next read should come `PAUSE` after the last.
    pub(crate) fn pauses(&self) -> bool {
        self.prompt_reads >= READS_BEFORE_PAUSE
    }

    /// Notes a read that had to wait for the server; true asks for `judge`.
    pub(crate) fn read(&mut self, bytes: usize, waited: Duration) -> bool {
        self.prompt_reads = if waited < PAUSE { self.prompt_reads.saturating_add(1) } else { 0 };
        self.since_judged += bytes as u64;
        self.since_judged >= JUDGE_BYTES
    }

    /// Adapts the bound to the size of the segments that came since it was called last.
    pub(crate) fn judge(&mut self, now: Received) {
        let segments = u64::from(now.segments.wrapping_sub(self.judged.segments));
        let bytes = now.bytes.wrapping_sub(self.judged.bytes);
        if bytes < JUDGE_BYTES {
            // What was read had come before: too little is new to be judged.
            self.since_judged = bytes;
            return;
        }
        (self.since_judged, self.judged) = (0, now);
        let Some(average) = bytes.checked_div(segments) else { return };
        // Off the loopback a full segment is 1448 bytes: as large as it gets, not a sign of the slow mode.
        let segment_max = u64::from(now.segment_max);
        if average < SEGMENT_SMALL.min(segment_max * 6 / 10) {
            self.read_bytes = (self.read_bytes * 7 / 10).max(READ_BYTES_MIN);
        } else if average > SEGMENT_LARGE.min(segment_max * 9 / 10) {
            self.read_bytes = (self.read_bytes * 11 / 10).min(READ_BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: Received = Received { bytes: 0, segments: 0, segment_max: 65_483 };

    fn judged(pace: &mut Pace, rounds: u32, segment: u64) -> usize {
        for _ in 0..rounds {
            let segments = (JUDGE_BYTES / segment) as u32;
            let before = pace.judged;
            pace.judge(Received { bytes: before.bytes + JUDGE_BYTES, segments: before.segments + segments, ..before });
        }
        pace.read_bytes()
    }

    #[test]
    fn small_segments_shrink_the_reads_and_large_ones_grow_them() {
        let mut pace = Pace::new(LOOPBACK);
        assert_eq!(judged(&mut pace, 1, 3_000), READ_BYTES_FIRST);
        assert_eq!(judged(&mut pace, 20, 200), READ_BYTES_MIN);
        assert_eq!(judged(&mut pace, 1, 10_000), READ_BYTES_MIN * 11 / 10);
        assert_eq!(judged(&mut pace, 100, 10_000), READ_BYTES_MAX);
    }

    #[test]
    fn full_segments_of_a_real_network_are_large() {
        let mut pace = Pace::new(Received { segment_max: 1448, ..LOOPBACK });
        assert_eq!(judged(&mut pace, 100, 1448), READ_BYTES_MAX);
        assert_eq!(judged(&mut pace, 100, 300), READ_BYTES_MIN);
    }

    #[test]
    fn pauses_only_in_a_backlog() {
        let mut pace = Pace::new(LOOPBACK);
        for _ in 0..READS_BEFORE_PAUSE {
            assert!(!pace.pauses());
            pace.read(100, Duration::ZERO);
        }
        assert!(pace.pauses());
        pace.read(100, PAUSE);
        assert!(!pace.pauses());
    }

    #[test]
    fn asks_to_be_judged_by_bytes() {
        let mut pace = Pace::new(LOOPBACK);
        assert!(!pace.read(JUDGE_BYTES as usize - 1, Duration::ZERO));
        assert!(pace.read(1, Duration::ZERO));
        pace.judge(LOOPBACK);
        assert!(!pace.read(1, Duration::ZERO));
    }
}
