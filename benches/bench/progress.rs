//! What is being done now, for whoever waits: a bar on a terminal, else a line each.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Told on standard error; the results go to standard output.
pub(crate) struct Progress {
    bar: ProgressBar,
    began: Instant,
}

impl Progress {
    pub(crate) fn new(turns: u64, estimate: Duration) -> Progress {
        let minutes = estimate.as_secs_f64() / 60.0;
        eprintln!("bench: about {minutes:.0} minutes on two cores where nothing else runs; {turns} turns of readers");
        let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} {wide_msg}");
        let bar = ProgressBar::new(turns).with_style(style.expect("the template is right"));
        bar.enable_steady_tick(Duration::from_secs(1));
        Progress { bar, began: Instant::now() }
    }

    /// What is done now.
    pub(crate) fn tell(&self, what: &str) {
        if self.bar.is_hidden() {
            eprintln!("bench: {:>5.0} s  {what}", self.began.elapsed().as_secs_f64());
        }
        self.bar.set_message(what.to_owned());
    }

    /// A reader's turn begins.
    pub(crate) fn turn(&self, what: &str) {
        self.tell(what);
        self.bar.inc(1);
    }

    /// All is done; how long it took.
    pub(crate) fn end(self) -> Duration {
        self.bar.finish_and_clear();
        self.began.elapsed()
    }
}
