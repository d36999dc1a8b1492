//! The connector and its peers, measured side by side on the lab's fleet.
//!
//! Each client is a process of its own, so that processor time and memory are its own, and rounds are interleaved, so
//! that a noisy machine troubles all of them alike. Nothing here passes or fails: it reports. `compare.rs` is the
//! benchmark of connectors, `kube.rs` that of the Kubernetes proxy, `bulkheads.rs` of clusters beside each other,
//! `soak.rs` what a connector does for an hour, `client.rs` the client on our connector, `peers/tsnet` the one on Go's tsnet,
//! `tailnet.rs` how this process joins.

mod bulkheads;
mod client;
mod compare;
mod figures;
mod kube;
mod protocol;
mod soak;
mod tailnet;
mod usage;

use std::process::ExitCode;

use clap::Parser;

use self::figures::Failure;

/// Measures the connector and its peers, and the Kubernetes proxy, side by side.
#[derive(Debug, Parser)]
#[command(version)]
enum Command {
    /// Run every client through the same rounds and print the table.
    Compare(compare::Compare),
    /// Ask an API server directly and through the Host App, and print what the way costs.
    Kube(kube::Kube),
    /// Ask a healthy cluster alone and beside others that hang, are late and are flooded.
    Bulkheads(bulkheads::Bulkheads),
    /// Be those others; started by the one before.
    #[command(hide = true)]
    Crowd(bulkheads::Crowd),
    /// Keep one connector busy for an hour and print a line each minute.
    Soak(soak::Soak),
}

/// The command `guildnet-bench`.
#[must_use]
pub fn bench() -> ExitCode {
    exit(match Command::parse() {
        Command::Compare(compare) => compare.run(),
        Command::Kube(kube) => kube.run(),
        Command::Bulkheads(bulkheads) => bulkheads.run(),
        Command::Crowd(crowd) => crowd.run(),
        Command::Soak(soak) => soak.run(),
    })
}

/// The benchmark's client, started by `guildnet-bench compare`: a program of its own, with nothing in it but the connector, as
/// the one on Go's tsnet is.
#[must_use]
pub fn client() -> ExitCode {
    exit(client::Client::parse().run())
}

fn exit(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            #[expect(clippy::print_stderr, reason = "a command tells its user what went wrong")]
            {
                eprintln!("error: {why}");
            }
            ExitCode::FAILURE
        }
    }
}
