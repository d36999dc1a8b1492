//! The line protocol between the benchmark and its clients, and the far end's byte protocol.
//!
//! A client reads commands on standard input and answers each with one line of JSON, an [`Answer`]. The Go program in
//! `peers/tsnet` speaks the same.
//!
//! | command | what is done |
//! |---|---|
//! | `join` | joins, and echoes a first byte |
//! | `down BYTES`, `up BYTES` | one transfer on the flow that the join has opened |
//! | `many COUNT down BYTES`, `many COUNT up BYTES` | as many flows at once, so many bytes on each |
//! | `rtt COUNT`, `beside COUNT` | single bytes there and back, alone and beside a download on another flow |
//! | `dial COUNT` | connections opened and closed, one after the other |
//! | `flow down SECONDS`, `flow up SECONDS` | one transfer on a flow of its own for so long; `bytes` says how far it came |
//! | `direct` | waits until packets to the router take the direct path |
//! | `crowd COUNT` | joins until so many connectors run in the process, each of them dialled once |
//! | `peers COUNT` | waits until the network map has so many peers |
//! | `rest SECONDS` | nothing for so long |
//! | `forward TARGET` | a local `port` that leads to another address inside the cluster |

use serde::{Deserialize, Serialize};

/// Length of the far end's header: a command letter and a big-endian 64-bit length.
pub(crate) const HEADER: usize = 9;

/// What a flow of fixed length sends and has acknowledged at a time, bytes.
pub(crate) const PIECE: u64 = 1 << 16;

/// One answer of a client.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Wall clock of the command, seconds.
    pub(crate) seconds: f64,
    /// User plus system time of the client's process during the command, seconds.
    pub(crate) cpu: f64,
    /// Median of the samples, microseconds.
    #[serde(default)]
    pub(crate) p50_us: u64,
    /// 99th percentile of the samples, microseconds.
    #[serde(default)]
    pub(crate) p99_us: u64,
    /// Time of the flow that was done first, of many; seconds.
    #[serde(default)]
    pub(crate) fastest: f64,
    /// Time of the one that was done last, seconds.
    #[serde(default)]
    pub(crate) slowest: f64,
    /// What a flow of fixed length has moved: up counts what the far end has said it took.
    #[serde(default)]
    pub(crate) bytes: u64,
    /// The local port that was opened.
    #[serde(default)]
    pub(crate) port: u16,
    /// Resident memory after the command, KiB.
    pub(crate) rss_kib: u64,
    /// Why the command failed, if it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) error: String,
}

/// The far end's header for a command.
pub(crate) fn header(command: u8, length: u64) -> [u8; HEADER] {
    let mut header = [command; HEADER];
    header[1..].copy_from_slice(&length.to_be_bytes());
    header
}
