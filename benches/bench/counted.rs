//! What is counted of a reader: rows, by whoever reads them; processor time and segments, by the kernel.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::postgres::Session;

/// Rows and commits of a stream that is thrown away.
pub(crate) struct Tally {
    rows: u64,
    commits: u64,
    transactions: u64,
    began: Option<Instant>,
    last: Option<Instant>,
}

impl Tally {
    /// Full after so many transactions.
    pub(crate) fn of(transactions: u64) -> Tally {
        Tally { rows: 0, commits: 0, transactions, began: None, last: None }
    }

    /// A message of pgoutput. Messages before the first row of a published table, such as those of transactions that have none, are
    /// no rows.
    pub(crate) fn count(&mut self, message: &[u8]) {
        match message.first() {
            Some(b'I' | b'U' | b'D') => {
                self.rows += 1;
                if self.began.is_none() {
                    self.began = Some(Instant::now());
                }
            }
            Some(b'C') => {
                self.commits += 1;
                if self.is_full() {
                    self.last = Some(Instant::now());
                }
            }
            _ => {}
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.commits >= self.transactions
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// When the last commit came.
    pub(crate) fn end(&self) -> Instant {
        self.last.expect("it is full")
    }

    /// From the first row to the last commit.
    pub(crate) fn took(&self) -> Duration {
        self.end() - self.began.expect("there were rows")
    }
}

/// Processor time of this thread, in user and system mode together.
pub(crate) fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one timespec, which is ours.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Processor time of a process to the nanosecond, of the threads that it has now.
pub(crate) fn exact_cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let nanos = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// A line of `/proc/PID/status` in bytes.
pub(crate) fn memory(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// What the kernel has counted of a slot's connection, whoever reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// On the reading end.
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
    /// The walsender's processor time.
    pub(crate) walsender: Duration,
}

/// By `ss`, which asks the kernel for any connection of this machine; `None` without it, or where the slot is not read over TCP.
pub(crate) fn received(session: &Session, slot: &str) -> Option<Received> {
    let both = session.text(&format!(
        "SELECT client_port || ' ' || pid FROM pg_stat_replication WHERE pid = (SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}')"
    ));
    let (port, pid) = both.split_once(' ')?;
    let walsender = exact_cpu(pid.parse().ok()?);
    let mut command = Command::new("ss");
    command.args(["-tinH", "sport", "=", &format!(":{}", port.parse::<u16>().ok()?)]).stdin(Stdio::null());
    let said = String::from_utf8(command.output().ok()?.stdout).ok()?;
    let field = |name: &str| said.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok());
    Some(Received { segments: field("data_segs_in:")?, bytes: field("bytes_received:")?, walsender })
}
