//! `guildnet ui` and `guildnet sessions`: signing a browser in at the running Host App, and out again.
//!
//! The link holds a one-time code behind `#`: browsers send that part to nobody. It is not put into the arguments of the
//! program that opens it either, where every user of the machine could read it, but into a private file that leads to it.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use guildnet_model::{Class, Secret};
use guildnet_store::private;
use tokio::{process::Command, time::timeout};

use crate::{HostError, SessionInfo, Settings, client::HostClient, error::Explained as _};

/// The file that leads a browser to the link.
const FILE: &str = "ui.html";
/// What opens a file in the person's own browser.
const OPENER: (&str, &str) = if cfg!(target_os = "macos") {
    ("open", "")
} else {
    ("xdg-open", "install it (Debian, Fedora, Arch: xdg-utils), or ")
};
/// How long the opener is watched for a failure. Some end at once, others only with the browser that they start.
const WATCHED: Duration = Duration::from_secs(3);

/// See [`crate::ui_link`].
pub(crate) async fn ui_link(settings: &Settings) -> Result<Secret<String>, HostError> {
    let client = running(&settings.home)?;
    let code = client.login_code().await?;
    Ok(Secret::new(format!("{}/#code={}", client.url(), code.expose())))
}

/// See [`crate::ui_open`].
pub(crate) async fn ui_open(settings: &Settings) -> Result<(), HostError> {
    let link = ui_link(settings).await?;
    let file = settings.home.join(FILE);
    private::write(&file, page(link.expose()).as_bytes()).explained()?;
    open(OPENER.0, &std::path::absolute(&file).unwrap_or(file)).await
}

/// A page that leads on to the link. It is of no use to anybody after a minute, nor once it was used.
fn page(link: &str) -> String {
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<meta name=\"referrer\" content=\"no-referrer\">\n<title>GuildNet</title>\n\
         <meta http-equiv=\"refresh\" content=\"0;url={link}\">\n<p><a href=\"{link}\">Open GuildNet</a>\n"
    )
}

async fn open(program: &str, file: &PathBuf) -> Result<(), HostError> {
    let hint = format!("{}open the link yourself: guildnet ui --print", OPENER.1);
    let failed = |why: String| {
        HostError::new(Class::Precondition, format!("{program}: {why}: no browser was opened")).with_hint(hint.as_str())
    };
    // In a group of its own: it may become the browser, which is not to end with this command's terminal.
    let mut child = Command::new(program)
        .arg(file)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|why| match why.kind() {
            io::ErrorKind::NotFound => failed("there is no such program".into()),
            _ => failed(why.to_string()),
        })?;
    match timeout(WATCHED, child.wait()).await {
        Ok(Ok(status)) if !status.success() => Err(failed(status.to_string())),
        Ok(Err(why)) => Err(failed(why.to_string())),
        _ => Ok(()),
    }
}

/// See [`crate::sessions`].
pub(crate) async fn sessions(settings: &Settings) -> Result<Vec<SessionInfo>, HostError> {
    running(&settings.home)?.sessions().await
}

/// See [`crate::session_revoke`].
pub(crate) async fn session_revoke(settings: &Settings, id: Option<&str>) -> Result<usize, HostError> {
    let client = running(&settings.home)?;
    match id {
        Some(id) => client.revoke_session(id).await.map(|()| 1),
        None => client.revoke_sessions().await,
    }
}

fn running(home: &Path) -> Result<HostClient, HostError> {
    HostClient::discover(home)?.ok_or_else(|| {
        HostError::new(Class::Precondition, "the Host App is not running").with_hint("start it: guildnet up")
    })
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;

    #[test]
    fn the_page_leads_to_the_link_and_nowhere_else() {
        let page = page("https://127.0.0.1:8090/#code=abc_-");
        assert_eq!(page.matches("https://").count(), 2);
        assert!(page.contains("content=\"0;url=https://127.0.0.1:8090/#code=abc_-\"") && page.contains("no-referrer"));
        assert!(!page.contains("<script"));
    }

    #[tokio::test]
    async fn a_browser_that_can_t_be_opened_is_told_with_the_other_way() {
        let file = PathBuf::from("/x/ui.html");
        let missing = open("no-such-opener", &file).await.expect_err("missing");
        assert_eq!(missing.to_string(), "no-such-opener: there is no such program: no browser was opened");
        assert!(missing.hint().is_some_and(|hint| hint.contains("guildnet ui --print")));
        let failing = open("false", &file).await.expect_err("it says no");
        assert!(failing.to_string().contains("exit status: 1"), "{failing}");
        open("true", &file).await.expect("opened");
    }
}
