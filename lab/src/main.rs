//! The lab's command: parse, call the library, print, exit code. Data on standard output, talk on standard error.

use std::{ffi::OsString, io::Write, os::unix::process::CommandExt, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use guildnet_lab::{
    Ceiling, HoldNode, Host, Instance, Lab, LabError, Launch, LinkChange, Nat, RouterArgs, RunLink, Status, Talk,
    Wanted, WantedVersions,
};

/// A real fleet on one machine: Headscale and Kubernetes clusters in network namespaces.
///
/// All clusters have the same networks (pods 10.244.0.0/16, Services 10.96.0.0/16, nodes 192.168.77.0/24), each behind
/// a masquerading gateway of its own. Needs root. GUILDNET_LAB_INSTANCE names a lab, so that several can be up;
/// GUILDNET_LAB_CACHE is where the built peers are kept (/var/cache/guildnet-lab).
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 no such lab, cluster or process, 5 timed out, 6 conflict with the lab that
/// is up, 8 something of the machine is missing (root, Go, a package).
#[derive(Debug, Parser)]
#[command(name = "guildnet-lab", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Bring the lab up, or start what is dead in it; prints where kubeconfigs, URL and API key are
    Up {
        /// How many clusters, or their names: 3, or a,b,west [default: those that are there, else a,b]
        #[arg(long)]
        clusters: Option<String>,
        /// Make those that are new light: etcd and API server alone, 0.35 GiB each, nothing that runs pods
        #[arg(long)]
        light: bool,
        /// Run two standalone relays with STUN, derp-1 and derp-2, beside Headscale's own
        #[arg(long)]
        relays: bool,
        #[command(flatten)]
        versions: WantedVersions,
    },
    /// Remove everything: processes, namespaces, mounts, cgroups, files
    Down,
    /// Show what there is and what runs; fails if something does not
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Open or shut a cluster's door: the gateway's port 6443 that leads to its API server
    Door {
        /// A cluster, or all
        cluster: String,
        /// What to do
        #[arg(value_enum)]
        to: Door,
    },
    /// Run a command inside a host: a is cluster a's node, gw-a its gateway, a.2 its second router's; KUBECONFIG is set
    Exec {
        /// The host
        host: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Start a router of a light cluster, a real tailscaled, and have it join a tailnet
    Router {
        /// The light cluster
        cluster: String,
        #[command(flatten)]
        args: RouterArgs,
    },
    /// Make a client host behind a gateway of its own; prints its namespace
    Host {
        /// Its name
        name: String,
        /// What its gateway does to addresses
        #[arg(long, value_enum)]
        nat: Option<Nat>,
        /// Put a link between its gateway and the internet, with this seed
        #[arg(long, value_name = "SEED", num_args = 0..=1, default_missing_value = "1")]
        link: Option<u64>,
    },
    /// Take a client host to another network, or back: it and its gateway change their addresses; prints the gateway's
    Move {
        /// The host
        host: String,
    },
    /// Set what the gateway of a cluster or a client host does to addresses
    Nat {
        /// The cluster or host
        name: String,
        /// The kind
        #[arg(value_enum)]
        kind: Nat,
    },
    /// Change what the link of a client host does, while packets flow; prints settings and counts as JSON
    ///
    /// 'up' or 'down' first: one way only, as the host sees it. Then knobs: delay=20ms jitter=5ms loss=0.1% burst=4
    /// duplicate=1% reorder=5% reorder-by=1ms rate=12.5MB/s queue=100ms cut=on; 'clear' turns all of them back. What is not
    /// named stays; with nothing named it only prints.
    Link {
        /// The host
        host: String,
        /// The change
        change: Vec<String>,
    },
    /// Build the peers into the cache, nothing else (no root needed if the cache is yours)
    Build(WantedVersions),
    /// Break something, or mend it
    Fault {
        #[command(subcommand)]
        fault: Fault,
    },
    /// Measure what a link passes on at most, beside a plain cable; needs no lab
    LinkCeiling {
        /// Settings of links that are measured, too, as in 'delay=10ms' [default: none but a link that does nothing]
        settings: Vec<LinkChange>,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    #[command(hide = true)]
    RunLink(RunLink),
    #[command(hide = true)]
    Launch(Launch),
    #[command(hide = true)]
    HoldNode(HoldNode),
}

#[derive(Debug, Subcommand)]
enum Fault {
    /// The gateway of a cluster or a client host drops all UDP
    BlockUdp {
        /// The cluster or host
        name: String,
    },
    /// The gateway of a cluster or a client host lets UDP through again
    UnblockUdp {
        /// The cluster or host
        name: String,
    },
    /// End a process: headscale, a/kube-apiserver, a/kubelet, ...
    Stop {
        /// The process
        process: String,
    },
    /// Kill a process: it takes leave of nobody
    Kill {
        /// The process
        process: String,
    },
    /// Start a process that was stopped or killed
    Start {
        /// The process
        process: String,
    },
    /// Freeze a process: it keeps its connections and answers nothing
    Freeze {
        /// The process
        process: String,
    },
    /// Let a frozen process go on
    Thaw {
        /// The process
        process: String,
    },
    /// Drop whatever a router of a light cluster sends out of its cluster or is sent from there: it lives, unreachable; or
    /// whatever a standalone relay sends or is sent
    Cut {
        /// The router or relay: a/router, a/router-2, derp-1, ...
        router: String,
    },
    /// Let the packets of a router or relay through again
    Mend {
        /// The router or relay
        router: String,
    },
    /// Drop what a router of a light cluster forwards into its cluster: its tunnels work, its networks are dead
    Detach {
        /// The router, on a host of its own: a/router-2, ...
        router: String,
    },
    /// Let a router reach its cluster again
    Attach {
        /// The router
        router: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Door {
    Open,
    Shut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(why) => {
            let mut err = std::io::stderr().lock();
            // Nobody listens: the exit code still tells.
            let _closed = writeln!(err, "error: {why}");
            if let Some(hint) = why.hint() {
                let _closed = writeln!(err, "  hint: {hint}");
            }
            ExitCode::from(why.exit_code())
        }
    }
}

fn run(command: What) -> Result<ExitCode, LabError> {
    let talk = Talk::start();
    match command {
        What::LinkCeiling { settings, output } => {
            let nothing = "clear".parse()?;
            let all = guildnet_lab::ceiling(&[vec![nothing], settings].concat())?;
            print(&match output {
                Format::Table => Ceiling::table(&all),
                Format::Json => serde_json::to_string_pretty(&all).expect("plain data") + "\n",
            });
        }
        // These never come back but by an error.
        What::Launch(args) => match guildnet_lab::launch(args)? {},
        What::RunLink(args) => match guildnet_lab::run_link(&args)? {},
        What::HoldNode(args) => match guildnet_lab::hold_node(&args)? {},
        What::Up { clusters, light, relays, versions } => {
            let clusters = clusters.as_deref().map(guildnet_lab::cluster_names).transpose()?;
            let instance = Instance::from_env()?;
            guildnet_lab::up(&instance, Wanted { clusters, light, relays, versions }, &talk)?;
            print(&Lab::of(&instance)?.status()?.text());
        }
        What::Down => guildnet_lab::down(&Instance::from_env()?, &talk)?,
        What::Status { output } => {
            let status = Lab::attach()?.status()?;
            print(&shown(&status, output));
            if !status.is_whole() {
                return Ok(ExitCode::FAILURE);
            }
        }
        What::Door { cluster, to } => Lab::attach()?.door(&cluster, to == Door::Open)?,
        What::Exec { host, command } => {
            let (program, args) = command.split_first().expect("clap requires a command");
            let mut inside = Lab::attach()?.inside(&host, program)?;
            let why = inside.args(args).stdin(std::process::Stdio::inherit()).exec();
            return Err(LabError::Io { what: format!("cannot run {}", program.display()), source: why });
        }
        What::Router { cluster, args } => {
            let address = Lab::attach()?.start_router(&cluster, &args, &talk)?;
            print(&format!("{address}\n"));
        }
        What::Host { name, nat, link } => {
            let lab = Lab::attach()?;
            let host = lab.host(&Host { link, ..Host::new(name) }, &talk)?;
            if let Some(nat) = nat {
                lab.set_nat(&host.name, nat)?;
            }
            print(&format!("{}\n", host.behind.host_ns));
        }
        What::Move { host } => print(&format!("{}\n", Lab::attach()?.move_host(&host)?.behind.outer)),
        What::Nat { name, kind } => Lab::attach()?.set_nat(&name, kind)?,
        What::Link { host, change } => {
            let answer = Lab::attach()?.link(&host, &change.join(" ").parse()?)?;
            print(&(serde_json::to_string_pretty(&answer).expect("plain data") + "\n"));
        }
        What::Build(versions) => guildnet_lab::build(&versions, &talk)?,
        What::Fault { fault } => {
            let lab = Lab::attach()?;
            match fault {
                Fault::BlockUdp { name } => lab.block_udp(&name, true)?,
                Fault::UnblockUdp { name } => lab.block_udp(&name, false)?,
                Fault::Stop { process } => lab.stop_process(&process)?,
                Fault::Kill { process } => lab.kill_process(&process)?,
                Fault::Start { process } => lab.start_process(&process)?,
                Fault::Freeze { process } => lab.freeze_process(&process, true)?,
                Fault::Thaw { process } => lab.freeze_process(&process, false)?,
                Fault::Cut { router } => lab.cut(&router, true)?,
                Fault::Mend { router } => lab.cut(&router, false)?,
                Fault::Detach { router } => lab.detach(&router, true)?,
                Fault::Attach { router } => lab.detach(&router, false)?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(status: &Status, output: Format) -> String {
    match output {
        Format::Table => status.text(),
        Format::Json => serde_json::to_string_pretty(status).expect("plain data") + "\n",
    }
}

fn print(text: &str) {
    // A closed pipe is the reader's choice.
    let _closed = std::io::stdout().write_all(text.as_bytes());
}
