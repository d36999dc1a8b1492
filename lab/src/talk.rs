//! Progress lines on standard error, each with the seconds since the command began.

use std::{
    io::Write,
    time::{Duration, Instant},
};

/// Where the lab tells what it does. Lines of several threads don't mix.
#[derive(Debug, Clone, Copy)]
pub struct Talk {
    begin: Instant,
}

impl Talk {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self { begin: Instant::now() }
    }

    /// Prints `[  3.2s] WHO: WHAT`.
    pub fn say(&self, who: &str, what: impl std::fmt::Display) {
        let line = format!("[{:>6.1}s] {who}: {what}\n", self.begin.elapsed().as_secs_f64());
        // Nobody listens: the work goes on.
        let _closed = std::io::stderr().write_all(line.as_bytes());
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }
}
