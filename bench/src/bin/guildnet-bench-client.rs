//! The benchmark's client; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    guildnet_bench::client()
}
