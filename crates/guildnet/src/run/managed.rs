//! `guildnet headscale up|down|status|backup|serve|env-sync-lan`: their flags become requests, their answers are printed.

use guildnet_host::{AddressChoice, ManagedStatus, Settings};
use guildnet_model::Class;

use super::{Context, service};
use crate::{
    cli::{EnvSyncLan, Format, ManagedArgs, ManagedBackup, ManagedUp, Systemd},
    failure::Failure,
    print::{self, Table},
    settings::{self, Flags},
};

fn managed(args: ManagedArgs, context: &Context) -> Result<Settings, Failure> {
    context.settings(Flags { managed: args, ..Flags::default() })
}

pub(super) async fn up(args: ManagedUp, context: &Context) -> Result<(), Failure> {
    let settings = managed(args.managed, context)?;
    if let Some(whose) = args.systemd {
        return print_unit(whose, &settings);
    }
    let up = guildnet_host::headscale_up(&settings, &context.talk).await?;
    let next = if !up.moved.is_empty() { "guildnet verify" } else { "guildnet up --cluster ID=KUBECONFIG" };
    context.talk.say(&format!("Next:\n  {next}\n  guildnet headscale status\n  guildnet headscale backup"));
    Ok(())
}

fn print_unit(whose: Systemd, settings: &Settings) -> Result<(), Failure> {
    let (of, program, home) = service::installed(whose, settings)?;
    print::out(&guildnet_host::unit(of, &program, &home, &settings.managed)?)
}

pub(super) async fn down(purge: bool, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    if !guildnet_host::headscale_down(&settings, purge, &context.talk).await? {
        context.talk.say("the managed Headscale was not running");
    }
    Ok(())
}

pub(super) async fn serve(args: ManagedArgs, context: &Context) -> Result<(), Failure> {
    Ok(guildnet_host::headscale_serve(&managed(args, context)?, &context.talk).await?)
}

pub(super) async fn status(format: Format, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    let status = guildnet_host::headscale_status(&settings).await?;
    match (status.running, &status.url) {
        (true, _) => {}
        (false, Some(_)) => context.talk.say("managed Headscale: not running (start it: guildnet headscale up)"),
        (false, None) => context.talk.say("managed Headscale: none here (start one: guildnet headscale up)"),
    }
    print::data(format, &status, || table(&status))?;
    for problem in &status.problems {
        context.talk.say(&format!("problem: {problem}"));
    }
    let well = status.running && status.answers && status.problems.is_empty();
    if well { Ok(()) } else { Err(Failure::said(Class::Failed)) }
}

fn table(status: &ManagedStatus) -> Table {
    let mut table = Table::new(
        &["STATE", "PID", "VERSION", "URL", "CERTIFICATE ENDS", "KEY ENDS", "LAST BACKUP"],
        &["ADDRESS NOW", "PROGRAM", "BACKUP FILE", "LOG"],
    );
    let state = match (status.running, status.answers) {
        (true, true) => "answers",
        (true, false) => "silent",
        (false, _) => "stopped",
    };
    let backup = status.last_backup.as_ref();
    table.row([
        state.to_owned(),
        status.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        status.version.clone().unwrap_or_default(),
        status.url.as_ref().map(|url| url.to_string().trim_end_matches('/').to_owned()).unwrap_or_default(),
        status.certificate_ends.clone().unwrap_or_default(),
        status.api_key_ends.clone().unwrap_or_default(),
        backup.map(|backup| backup.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default(),
        status.address_now.map(|address| address.to_string()).unwrap_or_default(),
        status.binary.as_ref().map(|binary| binary.display().to_string()).unwrap_or_default(),
        backup.map(|backup| backup.file.display().to_string()).unwrap_or_default(),
        status.log.display().to_string(),
    ]);
    table
}

pub(super) async fn backup(args: ManagedBackup, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    let file = args.file.map(|file| context.env.path(file));
    let made = guildnet_host::headscale_backup(&settings, file.as_deref()).await?;
    context.talk.say("The backup holds private keys: keep it where only you can read it.");
    print::data_or(args.output.output, &made, |_| format!("{}\n", made.file.display()))
}

pub(super) fn env_sync_lan(args: &EnvSyncLan, context: &Context) -> Result<(), Failure> {
    let asked = match &args.address {
        Some(text) => Some(settings::address(text).map_err(|f| f.about("--address"))?),
        None => context.settings(Flags::default())?.managed.address,
    };
    let done = guildnet_host::env_sync_lan(&context.env.path(&args.file), asked.unwrap_or(AddressChoice::Auto))?;
    for change in &done.changes {
        context.talk.say(&format!(
            "{}, line {}: {} now names {} instead of {}",
            done.file.display(),
            change.line,
            change.name,
            change.to,
            change.from
        ));
    }
    if done.changes.is_empty() {
        context
            .talk
            .say(&format!("{}: no setting names this machine's loopback; nothing changed", done.file.display()));
    }
    match args.output.output {
        // What was done was said; there is no table of it.
        Format::Table | Format::Wide => Ok(()),
        format => print::data_or(format, &done, |_| String::new()),
    }
}
