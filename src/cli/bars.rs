//! A load's progress -> bars in a terminal, below the log. Log lines go through the same hands, so that neither tears the other.

use std::{
    fmt,
    io::{self, Write},
    time::Duration,
};

use indicatif::{
    HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use tokio::time::sleep;
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::{LogFormat, Metrics, TableLoad};

/// How often bars are drawn.
const DRAWN_EVERY: Duration = Duration::from_millis(100);
/// Where it is known how many rows a table has, roughly.
const KNOWN: &str = "{prefix} {wide_bar} {human_pos} of about {human_len} rows{rate}{left}";
/// And where not.
const UNKNOWN: &str = "{prefix} {spinner} {human_pos} rows{rate}";

/// What is drawn on stderr, and where log lines go. A clone is the same.
#[derive(Clone, Debug)]
pub struct Bars(MultiProgress);

/// One table's.
struct Bar {
    bar: ProgressBar,
    table: String,
    is_known: bool,
}

impl Bars {
    /// Nothing is drawn but in a terminal that can go back in what it shows, and where people read the log.
    pub fn new(format: LogFormat) -> Self {
        let target = match format {
            LogFormat::Text => ProgressDrawTarget::stderr(),
            LogFormat::Json => ProgressDrawTarget::hidden(),
        };
        Self(MultiProgress::with_draw_target(target))
    }

    /// Whether anything is.
    pub fn are_drawn(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Draws whatever is loaded, for ever. What is drawn is taken away with this.
    pub async fn draw(self, metrics: Metrics) {
        if !self.are_drawn() {
            return;
        }
        let mut loads = metrics.loads();
        let mut bars: Vec<Bar> = Vec::new();
        loop {
            let tables = loads.borrow_and_update().clone();
            self.show(&mut bars, &tables);
            if !tables.is_empty() {
                sleep(DRAWN_EVERY).await;
            } else if loads.changed().await.is_err() {
                return;
            }
        }
    }

    fn show(&self, bars: &mut Vec<Bar>, tables: &[TableLoad]) {
        if !bars.iter().map(|bar| &bar.table).eq(tables.iter().map(|table| &table.table)) {
            for Bar { bar, .. } in bars.drain(..) {
                bar.finish_and_clear();
                self.0.remove(&bar);
            }
            let widest = tables.iter().map(|table| table.table.chars().count()).max().unwrap_or(0);
            bars.extend(tables.iter().map(|TableLoad { table, .. }| {
                let bar = self.0.add(ProgressBar::new(0).with_style(style(UNKNOWN)));
                bar.set_prefix(format!("{table:widest$}"));
                Bar { bar, table: table.clone(), is_known: false }
            }));
        }
        for (Bar { bar, is_known, .. }, &TableLoad { rows, expected, .. }) in bars.iter_mut().zip(tables) {
            // What the catalog thinks of a table may be old.
            if std::mem::replace(is_known, rows <= expected && expected > 0) != *is_known {
                bar.set_style(style(if *is_known { KNOWN } else { UNKNOWN }));
                bar.set_length(expected);
            }
            bar.set_position(rows);
            bar.tick();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
        let rate = state.per_sec() as u64;
        // A writer into a text does not fail.
        let _ = if rate > 0 { write!(out, ", {}/s", HumanCount(rate)) } else { Ok(()) };
    };
    let left = |state: &ProgressState, out: &mut dyn fmt::Write| {
        let is_known = state.per_sec() >= 1.0 && state.len().is_some_and(|len| state.pos() < len);
        let _ = if is_known { write!(out, ", {:#} left", HumanDuration(state.eta())) } else { Ok(()) };
    };
    let style = ProgressStyle::with_template(template).expect("a template");
    style.with_key("rate", rate).with_key("left", left)
}

impl Write for Bars {
    /// A line of the log.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.are_drawn() {
            return io::stderr().write(line);
        }
        self.0.suspend(|| io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'w> MakeWriter<'w> for Bars {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_drawn_where_programs_read_the_log() {
        assert!(!Bars::new(LogFormat::Json).are_drawn());
    }
}
