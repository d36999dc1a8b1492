//! The log: events of GuildNet's own crates on standard error, which is the log file when the Host App runs in the
//! background. As text, or each line as a JSON object.
//!
//! Libraries may only warn. There is no free filter on purpose: some of them print whole messages at lower levels, keys
//! included.

use std::io::IsTerminal;

use guildnet_host::LogFormat;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts the log: warnings, one level more for a server, one more for each `-v`.
pub(crate) fn start(verbose: u8, server: bool, format: LogFormat) {
    let level = match verbose.saturating_add(u8::from(server)) {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        // A prefix: all of our crates begin with it.
        .with_target("guildnet", level)
        // The wire formats of the engine: their warnings may hold addresses with queries.
        .with_target("ts_", LevelFilter::OFF);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        // The fields at the top, as collectors of logs want them; the spans say which cluster and which request.
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    // Only a second start could fail; there is one.
    let _started = tracing_subscriber::registry().with(filter).with(lines).try_init();
}
