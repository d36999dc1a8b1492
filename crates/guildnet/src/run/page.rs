//! `guildnet ui`, `sessions`, `trust`: the page of the Host App, and the browsers that may use it.

use std::io::IsTerminal;

use guildnet_host::{SessionInfo, Settings, Trusted};

use super::Context;
use crate::{
    cli::{Format, Sessions, SessionsCommand, Trust, Ui},
    failure::Failure,
    print::{self, Table},
    settings::Flags,
};

pub(super) async fn ui(args: &Ui, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    if !args.print {
        guildnet_host::ui_open(&settings).await?;
        context.talk.say("Your browser opens the page. Where it warns of the certificate: guildnet trust install");
        return Ok(());
    }
    let link = guildnet_host::ui_link(&settings).await?;
    if std::io::stdout().is_terminal() {
        context.talk.say("This link signs one browser in, once, within a minute; keep it to yourself.");
    }
    print::out(&format!("{}\n", link.expose()))
}

pub(super) async fn sessions(args: Sessions, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    match args.command {
        None => list(args.output.output, &settings).await,
        Some(SessionsCommand::List(output)) => list(output.output, &settings).await,
        Some(SessionsCommand::Revoke { id, all: _ }) => {
            let revoked = guildnet_host::session_revoke(&settings, id.as_deref()).await?;
            context.talk.say(&format!("signed out: {revoked}"));
            Ok(())
        }
    }
}

async fn list(format: Format, settings: &Settings) -> Result<(), Failure> {
    let sessions = guildnet_host::sessions(settings).await?;
    print::data(format, &sessions, || table(&sessions))
}

fn table(sessions: &[SessionInfo]) -> Table {
    let mut table = Table::new(&["ID", "SIGNED IN", "LAST USED", "ENDS", "BROWSER"], &[]);
    for s in sessions {
        let time = |t: jiff::Timestamp| t.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        table.row([s.id.clone(), time(s.made), time(s.last_used), time(s.ends), s.user_agent.clone()]);
    }
    table
}

pub(super) async fn trust(command: Trust, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    let person_dir = context.env.person_dir()?;
    let (done, format) = match command {
        Trust::Install(output) => {
            (guildnet_host::trust_install(&settings, &person_dir, &context.talk).await?, output.output)
        }
        Trust::Remove(output) => (guildnet_host::trust_remove(&settings, &person_dir).await?, output.output),
    };
    if done.stores.iter().any(|store| store.changed) {
        context.talk.say("Browsers that are open take it up when they are started again.");
    }
    print::data(format, &done, || trust_table(&done))
}

/// Takes away what was put into browsers' stores, before what says so is removed.
pub(super) async fn untrust(settings: &Settings, context: &Context) -> Result<(), Failure> {
    let done = guildnet_host::trust_remove(settings, &context.env.person_dir()?).await?;
    for store in done.stores.iter().filter(|store| store.changed) {
        context.talk.say(&format!("{}: the authority is trusted there no longer", store.store.display()));
    }
    Ok(())
}

fn trust_table(done: &Trusted) -> Table {
    let mut table = Table::new(&["STORE", "CHANGED"], &["AUTHORITY"]);
    for store in &done.stores {
        let changed = if store.changed { "yes" } else { "no" };
        table.row([store.store.display().to_string(), changed.into(), done.authority.clone()]);
    }
    table
}
