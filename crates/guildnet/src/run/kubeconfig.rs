//! `guildnet kubeconfig`: its flags become requests, its answers are printed.

use std::path::{Path, PathBuf};

use guildnet_host::{KubeconfigChange, KubeconfigDone, KubeconfigWrite};
use guildnet_model::{Class, ClusterId};

use super::Context;
use crate::{
    cli::{self, Kubeconfig},
    failure::Failure,
    print,
    settings::{self, Flags},
    talk::Talk,
};

pub(super) async fn run(command: Kubeconfig, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    match command {
        Kubeconfig::Write(args) => write(args, context).await,
        Kubeconfig::Print { set_current, clusters } => {
            let current = set_current.as_deref().map(settings::cluster).transpose()?;
            let text = guildnet_host::kubeconfig_print(&settings, &ids(&clusters)?, current.as_ref()).await?;
            print::out(text.expose())
        }
        Kubeconfig::Remove { file, clusters } => {
            let remembered = file.is_none();
            let files = files(file, context)?;
            let done = guildnet_host::kubeconfig_remove(&settings, &files, remembered, &ids(&clusters)?).await?;
            if done.changes.is_empty() {
                context.talk.say("no kubeconfig has such contexts of GuildNet's");
            }
            done.changes.iter().for_each(|change| say(change, context));
            Ok(())
        }
        // Done in `main`, before anything is read that it does not need.
        Kubeconfig::Credential => credential(&context.home, &context.talk),
    }
}

async fn write(args: cli::KubeconfigWrite, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    let asked = KubeconfigWrite {
        files: files(args.file, context)?,
        clusters: ids(&args.clusters)?,
        set_current: args.set_current.as_deref().map(settings::cluster).transpose()?,
    };
    let KubeconfigDone { contexts, changes } = guildnet_host::kubeconfig_write(&settings, &asked).await?;
    if changes.is_empty() {
        context.talk.say("the kubeconfig is as it should be: nothing was changed");
    }
    changes.iter().for_each(|change| say(change, context));
    if let Some(first) = contexts.first() {
        context.talk.say(&format!("Next:\n  kubectl --context {first} get nodes"));
    }
    Ok(())
}

fn say(change: &KubeconfigChange, context: &Context) {
    let KubeconfigChange { file, contexts, removed, backup, comments_lost, current_unset } = change;
    let list = |names: &[String]| if names.is_empty() { "none".into() } else { names.join(", ") };
    let gone = if removed.is_empty() { String::new() } else { format!("; removed: {}", removed.join(", ")) };
    context.talk.say(&format!("{}: contexts of GuildNet's: {}{gone}", file.display(), list(contexts)));
    if *current_unset {
        context
            .talk
            .say("  its current context was one that is removed: choose another with kubectl config use-context NAME");
    }
    if let Some(backup) = backup {
        let comments = if *comments_lost { "; its comments are only there now" } else { "" };
        context.talk.say(&format!("  what was there before: {}{comments}", backup.display()));
    }
}

fn ids(texts: &[String]) -> Result<Vec<ClusterId>, Failure> {
    texts.iter().map(|text| settings::cluster(text)).collect()
}

/// The file that was named, else those that kubectl uses.
fn files(named: Option<PathBuf>, context: &Context) -> Result<Vec<PathBuf>, Failure> {
    let files = named.map_or_else(|| context.env.kubeconfigs(), |file| vec![context.env.path(file)]);
    if files.is_empty() {
        return Err(Failure::new(Class::Usage, "no kubeconfig", "name one with --file FILE"));
    }
    Ok(files)
}

/// What kubectl runs. It shows the person what is said here on standard error, so that is short.
pub(crate) fn credential(home: &Path, talk: &Talk) -> Result<(), Failure> {
    let asked = std::env::var("KUBERNETES_EXEC_INFO").ok();
    let made = guildnet_host::kube_credential(home, asked.as_deref())?;
    if let Some(warning) = made.warning {
        talk.say(&format!("guildnet: {warning}"));
    }
    print::out(made.json.expose())
}
