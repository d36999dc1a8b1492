//! `guildnet forward`: its flags become requests, its answers are printed.

use guildnet_host::{ForwardRequest, ForwardSession, ForwardSpec, ForwardStatus, ForwardStop, Settings};
use guildnet_model::Class;

use super::Context;
use crate::{
    cli::{Format, Forward},
    failure::Failure,
    print::{self, Table},
    settings::{self, Flags},
};

pub(super) async fn run(args: Forward, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    let cluster = args.cluster.as_deref().map(settings::cluster).transpose()?;
    let format = args.output.output;
    if args.list {
        let mut forwards = guildnet_host::forward_list(&settings).await?;
        forwards.retain(|forward| cluster.as_ref().is_none_or(|of| forward.cluster == *of));
        if forwards.is_empty() {
            context.talk.say("no forwards (make one: guildnet forward CLUSTER 3000:SERVICE.NAMESPACE:PORT)");
        }
        return print::data(format, &forwards, || table(&forwards));
    }
    let which = match cluster {
        of if args.stop_all => ForwardStop::All(of),
        Some(cluster) => {
            let forwards =
                args.forwards.iter().map(|text| text.parse::<ForwardSpec>()).collect::<Result<Vec<_>, _>>()?;
            let request = ForwardRequest { cluster, forwards, keep: args.keep };
            return make(&settings, &request, format, context).await;
        }
        None => ForwardStop::These(args.stop),
    };
    let stopped = guildnet_host::forward_stop(&settings, &which).await?;
    stopped.iter().for_each(|forward| context.talk.say(&format!("stopped: {}", line(forward))));
    if stopped.is_empty() {
        context.talk.say("no forwards to stop");
    }
    Ok(())
}

/// Makes forwards, says where they are, and stays with them unless they are to be kept.
async fn make(settings: &Settings, request: &ForwardRequest, format: Format, context: &Context) -> Result<(), Failure> {
    let session = guildnet_host::forward(settings, request).await?;
    match format {
        Format::Table | Format::Wide => {
            let lines: Vec<String> = session.forwards.iter().map(|forward| line(forward) + "\n").collect();
            print::out(&lines.concat())?;
        }
        Format::Json | Format::Yaml => print::data(format, &session.forwards, || table(&session.forwards))?,
    }
    if request.keep { Ok(()) } else { stay(session, context).await }
}

/// Says what goes wrong for as long as the forwards live.
async fn stay(mut session: ForwardSession, context: &Context) -> Result<(), Failure> {
    while let Some((local, trouble)) = session.trouble().await? {
        context.talk.say(&format!("{local}: {}", trouble.why));
    }
    Err(Failure::new(
        Class::Failed,
        "the forwards were stopped by somebody else, or with their cluster",
        "what there is: guildnet forward --list",
    ))
}

fn line(forward: &ForwardStatus) -> String {
    format!("{} -> {} in {}", forward.local, forward.target, forward.cluster)
}

fn table(forwards: &[ForwardStatus]) -> Table {
    let mut table = Table::new(
        &["ID", "CLUSTER", "TARGET", "OPEN", "TOTAL", "SENT", "RECEIVED", "LAST ERROR"],
        &["KEPT", "LISTENING"],
    );
    for f in forwards {
        let t = &f.traffic;
        table.row([
            f.id.clone(),
            f.cluster.to_string(),
            f.target.clone(),
            t.open.to_string(),
            t.total.to_string(),
            t.sent.to_string(),
            t.received.to_string(),
            t.last_error.as_ref().map(|e| format!("{:.0} {}", e.at, e.why)).unwrap_or_default(),
            if f.kept { "yes" } else { "no" }.into(),
            if t.listening { "yes" } else { "no" }.into(),
        ]);
    }
    table
}
