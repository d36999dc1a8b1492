//! `guildnet headscale policy`: its flags become requests, its answers are printed.

use guildnet_host::{PolicyCluster, PolicyDone, PolicyShown};
use guildnet_model::{Class, Networks, SiteNumber};

use super::{Context, show_report};
use crate::{
    cli::{HeadscaleArgs, Policy, PolicyArgs, PolicyCheck, PolicyRollback, PolicyShow},
    failure::Failure,
    print,
    settings::{self, Flags},
    talk::Style,
};

pub(super) async fn run(command: Policy, context: &Context) -> Result<(), Failure> {
    match command {
        Policy::Show(args) => show(args, context).await,
        Policy::Diff(args) => diff(args, context).await,
        Policy::Apply(args) => apply(args, context).await,
        Policy::Check(args) => check(args, context).await,
        Policy::Rollback(args) => rollback(args, context).await,
    }
}

fn settings_of(headscale: HeadscaleArgs, context: &Context) -> Result<guildnet_host::Settings, Failure> {
    context.settings(Flags { headscale, ..Flags::default() })
}

async fn show(args: PolicyShow, context: &Context) -> Result<(), Failure> {
    let PolicyArgs { clusters, consent, headscale } = args.policy;
    let named = clusters.iter().map(|text| cluster(text)).collect::<Result<Vec<_>, _>>()?;
    let settings = settings_of(headscale, context)?;
    if args.compiled {
        let document = guildnet_host::policy_compiled(&settings, &named, consent.into()).await?;
        return print::out(&format!("{}\n", document.trim_end()));
    }
    if !named.is_empty() || consent.merge || consent.cut_off_others {
        let hint = "add --compiled, or see 'guildnet headscale policy diff'";
        return Err(Failure::new(Class::Usage, "only what would be applied depends on these flags", hint));
    }
    let shown = guildnet_host::policy_show(&settings).await?;
    about(&shown).iter().for_each(|line| context.talk.say(line));
    print::data_or(args.output.output, &shown, |_| {
        shown.document.as_deref().map(|d| format!("{}\n", d.trim_end())).unwrap_or_default()
    })
}

/// What is said of the policy beside the document itself.
fn about(shown: &PolicyShown) -> Vec<String> {
    let place = if shown.in_file { "in a file" } else { "in the database" };
    let mut lines = vec![format!("policy of Headscale {} at {}, {place}: {}", shown.version, shown.server, shown.seen)];
    if shown.document.is_none() {
        lines.push("there is no document".into());
    }
    let others: Vec<&str> = shown.clusters.iter().filter(|c| !c.stored).map(|c| c.id.as_str()).collect();
    if !others.is_empty() {
        lines.push(format!("clusters that only other devices have: {}", others.join(", ")));
    }
    if !shown.foreign.is_empty() {
        lines.push(format!("not GuildNet's: {}", shown.foreign.join(", ")));
    }
    lines.extend(shown.usurped.iter().map(|what| format!("under GuildNet's names, but not GuildNet's: {what}")));
    if let Some(last) = shown.replaced.first() {
        let kept = if last.current { "can be undone" } else { "was changed by somebody since" };
        lines.push(format!(
            "last written from here at {} ({}); {kept}: guildnet headscale policy rollback",
            last.at, last.what
        ));
    }
    lines
}

async fn diff(args: PolicyArgs, context: &Context) -> Result<(), Failure> {
    let named = args.clusters.iter().map(|text| cluster(text)).collect::<Result<Vec<_>, _>>()?;
    let settings = settings_of(args.headscale, context)?;
    let diff = guildnet_host::policy_diff(&settings, &named, args.consent.into()).await?;
    print::out(&coloured(&diff.lines, Style::of(&std::io::stdout())))?;
    match diff.refusal {
        Some(why) => Err(why.into()),
        None if diff.lines.is_empty() => Ok(()),
        None => Err(Failure::said(Class::Failed)),
    }
}

async fn apply(args: PolicyArgs, context: &Context) -> Result<(), Failure> {
    let named = args.clusters.iter().map(|text| cluster(text)).collect::<Result<Vec<_>, _>>()?;
    let settings = settings_of(args.headscale, context)?;
    let done = guildnet_host::policy_apply(&settings, &named, args.consent.into(), &context.talk).await?;
    ended(&done, context)
}

fn ended(done: &PolicyDone, context: &Context) -> Result<(), Failure> {
    if let Some(diff) = &done.diff {
        print::out(&coloured(diff, Style::of(&std::io::stdout())))?;
    }
    context.talk.say(&done.said);
    if done.diff.is_some() {
        context.talk.say("To undo it: guildnet headscale policy rollback");
    }
    Ok(())
}

async fn check(args: PolicyCheck, context: &Context) -> Result<(), Failure> {
    let settings = settings_of(args.headscale, context)?;
    let report = guildnet_host::policy_check(&settings).await?;
    show_report(&report, args.output.output)?;
    if report.success { Ok(()) } else { Err(Failure::said(Class::Failed)) }
}

async fn rollback(args: PolicyRollback, context: &Context) -> Result<(), Failure> {
    let settings = settings_of(args.headscale, context)?;
    let done =
        guildnet_host::policy_rollback(&settings, args.discard_changes, args.cut_off_others, &context.talk).await?;
    ended(&done, context)
}

/// Lines that come are green, lines that go red.
fn coloured(diff: &str, style: Style) -> String {
    let line = |line: &str| match line.chars().next() {
        Some('+') => style.green(line),
        Some('-') => style.red(line),
        _ => line.to_owned(),
    };
    diff.lines().map(|l| line(l) + "\n").collect()
}

/// `ID=CIDR,...[@SITE]`.
fn cluster(text: &str) -> Result<PolicyCluster, Failure> {
    let about = |why: Failure| why.about(format!("--cluster {text}"));
    let (id, rest) = text.split_once('=').ok_or_else(|| {
        let hint = "write ID=CIDR,..., like home=10.96.0.0/16,10.244.0.0/16";
        Failure::new(Class::Usage, format!("--cluster {text:?} is not ID=CIDR,...[@SITE]"), hint)
    })?;
    let (routes, site) = rest.split_once('@').map_or((rest, None), |(routes, site)| (routes, Some(site)));
    Ok(PolicyCluster {
        id: settings::cluster(id).map_err(about)?,
        routes: routes.parse::<Networks>().map_err(Failure::from).map_err(about)?,
        site: site.map(str::parse::<SiteNumber>).transpose().map_err(Failure::from).map_err(about)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_id_networks_and_perhaps_a_site() {
        let read = |text: &str| {
            let c = cluster(text).map_err(|f| f.render(Style::PLAIN))?;
            Ok::<_, String>(format!("{} {} {:?}", c.id, c.routes, c.site.map(|s| s.get())))
        };
        assert_eq!(read("a=10.96.0.0/16,10.244.0.0/16"), Ok("a 10.96.0.0/16,10.244.0.0/16 None".into()));
        assert_eq!(read("a=10.96.0.0/16@7"), Ok("a 10.96.0.0/16 Some(7)".into()));
        for wrong in ["a", "=10.0.0.0/16", "a=", "a=10.96.0.1/16", "a=10.96.0.0/16@0"] {
            let said = read(wrong).expect_err(wrong);
            assert!(said.contains("--cluster") && said.contains("hint:"), "{said}");
        }
    }
}
