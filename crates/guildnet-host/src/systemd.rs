//! What GuildNet and systemd have to do with each other: the units that are printed, and what a unit's process is handed.
//!
//! Here is what all units have in common: their form, the hardening, and how a path stands in one. Pure text; nothing is
//! installed. `systemd/host_app.rs` has the Host App's units, `managed/unit.rs` the managed Headscale's;
//! `systemd/handed.rs` is the other side, in the process that such a unit starts.

mod handed;
mod host_app;

use std::{fmt::Write as _, path::Path};

use guildnet_model::Class;

pub use handed::Handed;
pub(crate) use handed::VARIABLES;
pub use host_app::{host_socket, host_unit};

use crate::HostError;

/// Whose systemd is to start it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitOf {
    /// The person's own: no root is needed. It starts with the person's session, with lingering at boot.
    Person,
    /// The machine's, as this user: it starts at boot, and is locked in further.
    System {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// What both kinds of systemd can do. None of it needs a namespace: a person's own systemd may not make any.
const HARDENED: &str = "\
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
";

/// What only the machine's systemd can do.
const SYSTEM_ONLY: &str = "\
CapabilityBoundingSet=
AmbientCapabilities=
PrivateDevices=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
RemoveIPC=yes
";

/// A service, before it is written down for one systemd or the other.
#[derive(Debug)]
pub(crate) struct Service<'a> {
    /// Comment lines at the top: how to install it.
    pub(crate) how: &'a str,
    /// What it is called.
    pub(crate) description: &'a str,
    /// Whether it can't begin before the network gave this machine its address.
    pub(crate) needs_network: bool,
    /// The command's words, each as it stands in a unit: see [`word`].
    pub(crate) command: Vec<String>,
    /// Its life, as whole lines: type, restarts, end.
    pub(crate) life: &'a str,
    /// What the machine's systemd lets it write to, each as it stands in a unit: see [`value`].
    pub(crate) writes: Vec<String>,
}

impl Service<'_> {
    /// The unit's text.
    pub(crate) fn text(&self, of: UnitOf) -> String {
        let mut text = self.how.to_owned();
        let mut line = |line: &str| writeln!(text, "{line}").expect("a string grows");
        line(&format!("\n[Unit]\nDescription={}\nDocumentation=man:systemd.exec(5)", self.description));
        if self.needs_network && matches!(of, UnitOf::System { .. }) {
            // A person's systemd does not know of the network.
            line("Wants=network-online.target\nAfter=network-online.target");
        }
        line("\n[Service]");
        line(&format!("ExecStart={}", self.command.join(" ")));
        line(self.life.trim_end());
        if let UnitOf::System { uid, gid } = of {
            line(&format!("User={uid}\nGroup={gid}"));
            self.writes.iter().for_each(|path| line(&format!("ReadWritePaths={path}")));
        }
        text.push_str(HARDENED);
        let target = match of {
            UnitOf::Person => "default.target",
            UnitOf::System { .. } => {
                text.push_str(SYSTEM_ONLY);
                "multi-user.target"
            }
        };
        writeln!(text, "\n[Install]\nWantedBy={target}").expect("a string grows");
        text
    }
}

/// One word of a unit's command: as [`value`], and nothing is taken for a variable (systemd.service(5), "Command lines").
pub(crate) fn word(path: &Path) -> Result<String, HostError> {
    value(path).map(|text| text.replace('$', "$$"))
}

/// A path in a unit: what systemd gives a meaning to is taken literally (systemd.syntax(7), systemd.unit(5)).
pub(crate) fn value(path: &Path) -> Result<String, HostError> {
    let text = plain(path)?.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    let harmless = |c: char| c.is_ascii_alphanumeric() || "/._-%$+@:,=".contains(c);
    Ok(if text.chars().all(harmless) { text } else { format!("\"{text}\"") })
}

/// A path that is the whole of a setting, which systemd does not unquote.
fn whole_value(path: &Path) -> Result<String, HostError> {
    let text = plain(path)?;
    // One at the end would join the next line to this one.
    if text.ends_with('\\') || text.ends_with(' ') { Err(cant_stand(path)) } else { Ok(text.replace('%', "%%")) }
}

fn plain(path: &Path) -> Result<&str, HostError> {
    path.to_str().filter(|text| !text.contains(char::is_control)).ok_or_else(|| cant_stand(path))
}

fn cant_stand(path: &Path) -> HostError {
    HostError::new(Class::Usage, format!("{} can't stand in a systemd unit", path.display()))
        .with_hint("use a folder with a plain name: GUILDNET_HOME=DIR")
}
