//! `guildnet`, the command: parse, become the person, resolve settings, call `guildnet-host`, print, exit code.
//!
//! The order matters: privileges are dropped before anything is read that others may have written (`.env`, kubeconfigs)
//! and before there is a second thread. What can be typed is in `cli.rs`, what it does in `run.rs`.

mod cli;
mod environment;
mod failure;
mod log;
mod print;
mod report;
mod run;
mod settings;
mod talk;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use guildnet_host::{Handed, LogFormat, daemon};
use guildnet_model::Class;

use crate::{
    cli::{Cli, Command},
    environment::Environment,
    failure::Failure,
    run::Context,
    talk::Talk,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let root = rustix::process::geteuid().is_root();
    let mut talk = Talk::new();
    match prepare_and_run(cli, &mut talk) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let failure = if root { failure.of_former_root() } else { failure };
            talk.fail(&failure);
            failure.exit_code()
        }
    }
}

fn prepare_and_run(cli: Cli, talk: &mut Talk) -> Result<(), Failure> {
    match cli.command {
        Command::Version(args) => return run::version(args.output),
        Command::Completion { shell } => return run::completion(shell),
        _ => {}
    }
    // `.env` is not asked for the folder that root prepares: whoever wrote it could name any.
    let named = settings::home(cli.home.as_deref(), &Environment::of_process());
    let folders = folders(&cli.command);
    let root = rustix::process::geteuid().is_root();
    // Asked before: the person may not be able to see into this folder, which is no reason to stop if nothing is there.
    let env_file = Some(Path::new(".env")).filter(|file| file.exists());
    let person = daemon::become_person(named.as_deref(), &folders)?;
    if let Command::Kubeconfig(cli::Kubeconfig::Credential) = cli.command {
        // kubectl runs it in whatever folder and waits for it: no `.env` of that folder, no second thread.
        return run::kubeconfig::credential(&person.home, &Talk::new());
    }
    // Root's own folder is of no use to the person.
    let person_dir = if root { own_folder(person.uid) } else { std::env::home_dir() };
    let env = Environment::read(env_file, person_dir)?;
    let home = match named {
        Some(_) => person.home,
        None => settings::home(None, &env).unwrap_or(person.home),
    };
    let serves_fleet = matches!(&cli.command, Command::Serve(args) if args.systemd.is_none());
    let serves = serves_fleet || matches!(cli.command, Command::Headscale(cli::Headscale::Serve(_)));
    // Before anything of its own is open.
    let handed = if serves_fleet { Handed::take()? } else { Handed::default() };
    if serves {
        // In the background it was started by way of /proc/self/exe, which `ps` would show. Only a name: no matter if refused.
        let _unnamed = rustix::thread::set_name(c"guildnet");
    }
    let format = match &cli.command {
        Command::Serve(args) => settings::log_format(args.log_format, &env)?,
        Command::Headscale(cli::Headscale::Serve(_)) => settings::log_format(None, &env)?,
        _ => LogFormat::Text,
    };
    log::start(cli.verbose, serves, format);
    if serves {
        *talk = talk.in_log(format);
    }
    if let Some(warning) = env_file.and_then(|file| env.warning(file)) {
        talk.say(&warning);
    }
    let context = Context { home, env, talk: *talk };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|why| {
        Failure::new(
            Class::Precondition,
            format!("no thread or event queue: {why}"),
            "free some memory or raise the limits, see 'ulimit -a'",
        )
    })?;
    let done = runtime.block_on(run::run(cli.command, handed, &context));
    // A read of standard input can't be interrupted; nothing else is left to wait for.
    runtime.shutdown_timeout(Duration::ZERO);
    done
}

/// The person's folder, as the user database has it.
fn own_folder(uid: u32) -> Option<PathBuf> {
    nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.dir)
}

/// Folders of the working directory that the command writes to: made before privileges are dropped.
fn folders(command: &Command) -> Vec<&'static Path> {
    match command {
        Command::Headscale(cli::Headscale::Namespace(args)) if args.file.is_none() => vec![Path::new("tmp")],
        _ => Vec::new(),
    }
}
