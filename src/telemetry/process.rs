//! `/proc/self` -> the numbers that every Prometheus client tells of its process, by their usual names. Linux only: where
//! there is no `/proc` they are not told.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Reads `/proc` at each scrape.
#[derive(Debug)]
pub(super) struct Process;

/// What `/proc/self` says.
#[derive(Debug, Default, PartialEq)]
struct Numbers {
    cpu_seconds: f64,
    start_time_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_fds: u64,
    max_fds: u64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(of) = numbers() else { return Ok(()) };
        let mut tell = |name, help, unit: Option<&Unit>, metric: &dyn Told| {
            metric.encode_into(encoder.encode_descriptor(name, help, unit, metric.metric())?)
        };
        let (bytes, seconds) = (Some(&Unit::Bytes), Some(&Unit::Seconds));
        tell("process_cpu", "Processor time, user and system.", seconds, &ConstCounter::new(of.cpu_seconds))?;
        tell(
            "process_start_time",
            "When the process started, as Unix time.",
            seconds,
            &ConstGauge::new(of.start_time_seconds),
        )?;
        tell("process_resident_memory", "Resident memory.", bytes, &ConstGauge::new(of.resident_bytes))?;
        tell("process_virtual_memory", "Virtual memory.", bytes, &ConstGauge::new(of.virtual_bytes))?;
        tell("process_open_fds", "Open file descriptors.", None, &ConstGauge::new(of.open_fds))?;
        tell("process_max_fds", "How many file descriptors may be open.", None, &ConstGauge::new(of.max_fds))
    }
}

/// A metric behind a reference, so that one closure can tell counters and gauges.
trait Told {
    fn metric(&self) -> prometheus_client::metrics::MetricType;
    fn encode_into(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result;
}

impl<M: EncodeMetric> Told for M {
    fn metric(&self) -> prometheus_client::metrics::MetricType {
        self.metric_type()
    }

    fn encode_into(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> fmt::Result {
        self.encode(encoder)
    }
}

fn numbers() -> Option<Numbers> {
    let read = |path: &str| fs::read_to_string(path).ok();
    // SAFETY: no memory is involved.
    let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK) as f64, libc::sysconf(libc::_SC_PAGESIZE) as u64) };
    let mut numbers = parse(&read("/proc/self/stat")?, &read("/proc/stat")?, &read("/proc/self/limits")?, ticks, page)?;
    // One of them is that of the directory itself.
    numbers.open_fds = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64;
    Some(numbers)
}

/// proc(5): the fields of `stat` are counted from 1, and the second, the program's name, may hold anything.
fn parse(stat: &str, system: &str, limits: &str, ticks: f64, page: u64) -> Option<Numbers> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let booted = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<f64>().ok()?;
    let max_fds = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    Some(Numbers {
        cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
        start_time_seconds: booted + field(22)? as f64 / ticks,
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page,
        open_fds: 0,
        max_fds: max_fds.split_whitespace().next()?.parse().unwrap_or(u64::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_by_its_fields() {
        let stat =
            "7 (a) b (c) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 4 0 1000 4096000 25 18446744073709551615 1";
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        let numbers = parse(stat, "cpu 1 2\nbtime 1700000000\n", limits, 100.0, 4096).unwrap();
        let expected = Numbers {
            cpu_seconds: 2.0,
            start_time_seconds: 1_700_000_010.0,
            resident_bytes: 25 * 4096,
            virtual_bytes: 4_096_000,
            open_fds: 0,
            max_fds: 1024,
        };
        assert_eq!(numbers, expected);
        assert_eq!(parse("7 (a) S 1", "btime 1\n", limits, 100.0, 4096), None);
    }
}
