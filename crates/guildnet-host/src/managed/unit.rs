//! The unit by which systemd starts a managed Headscale, hardened. Pure text; nothing is installed.

use std::{fmt::Write as _, path::Path};

use guildnet_model::Class;

use super::ManagedSettings;
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

/// The unit's text: `program` is guildnet itself, `asked` is what it shall be told.
///
/// # Errors
/// A path can't stand in a unit.
pub fn unit(of: UnitOf, program: &Path, home: &Path, asked: &ManagedSettings) -> Result<String, HostError> {
    let mut words = vec![word(program)?, "headscale".into(), "serve".into(), "--home".into(), word(home)?];
    if let Some(binary) = &asked.binary {
        words.extend(["--headscale-binary".into(), word(binary)?]);
    }
    let flags = [
        ("--address", asked.address.map(|address| address.to_string())),
        ("--listen", asked.listen.map(|listen| listen.to_string())),
        ("--stun-port", asked.stun_port.map(|port| port.to_string())),
    ];
    for (flag, value) in flags {
        words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
    }
    let mut text = String::new();
    let how = match of {
        UnitOf::Person => {
            "\
# A unit of your own systemd; root is not needed:
#   guildnet headscale up --systemd > ~/.config/systemd/user/guildnet-headscale.service
#   systemctl --user daemon-reload && systemctl --user enable --now guildnet-headscale
#   loginctl enable-linger        # to run without a session of yours, from boot on
# Then, once: guildnet headscale up     (it finds the server running, and makes its API key)
"
        }
        UnitOf::System { .. } => {
            "\
# A unit of the machine's systemd, which runs it as you and locks it in further (ProtectSystem and others):
#   guildnet headscale up --systemd=system | sudo tee /etc/systemd/system/guildnet-headscale.service
#   sudo systemctl daemon-reload && sudo systemctl enable --now guildnet-headscale
# Then, once: guildnet headscale up     (it finds the server running, and makes its API key)
"
        }
    };
    text.push_str(how);
    let mut line = |line: &str| writeln!(text, "{line}").expect("a string grows");
    line("\n[Unit]\nDescription=Headscale, managed by GuildNet\nDocumentation=man:systemd.exec(5)");
    if matches!(of, UnitOf::System { .. }) {
        // Its address is one that the network gives; a person's systemd does not know of the network.
        line("Wants=network-online.target\nAfter=network-online.target");
    }
    line("\n[Service]");
    line(&format!("ExecStart={}", words.join(" ")));
    // `guildnet headscale down` ends it with success: then it stays down.
    line("Restart=on-failure\nRestartSec=5\nTimeoutStopSec=20\nKillMode=mixed");
    if let UnitOf::System { uid, gid } = of {
        line(&format!("User={uid}\nGroup={gid}"));
        line(&format!("ReadWritePaths={}", value(home)?));
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
    Ok(text)
}

/// One word of a unit's command: as [`value`], and nothing is taken for a variable (systemd.service(5), "Command lines").
fn word(path: &Path) -> Result<String, HostError> {
    value(path).map(|text| text.replace('$', "$$"))
}

/// A path in a unit: what systemd gives a meaning to is taken literally (systemd.syntax(7), systemd.unit(5)).
fn value(path: &Path) -> Result<String, HostError> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control)).ok_or_else(|| {
        HostError::new(Class::Usage, format!("{} can't stand in a systemd unit", path.display()))
            .with_hint("use a folder with a plain name: GUILDNET_HOME=DIR")
    })?;
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-%$+@:,=".contains(c);
    Ok(if text.chars().all(plain) { text } else { format!("\"{text}\"") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managed::AddressChoice;

    fn asked() -> ManagedSettings {
        ManagedSettings { binary: Some("/usr/local/bin/headscale".into()), ..ManagedSettings::default() }
    }

    fn text(of: UnitOf, home: &str, asked: &ManagedSettings) -> String {
        unit(of, Path::new("/usr/local/bin/guildnet"), Path::new(home), asked).expect("a unit")
    }

    #[test]
    fn a_persons_unit() {
        insta::assert_snapshot!(text(UnitOf::Person, "/home/me/.guildnet", &asked()));
    }

    #[test]
    fn a_system_unit() {
        let asked = ManagedSettings {
            address: Some(AddressChoice::This([192, 168, 1, 20].into())),
            listen: "0.0.0.0:8443".parse().ok(),
            stun_port: Some(3479),
            ..asked()
        };
        insta::assert_snapshot!(text(UnitOf::System { uid: 1000, gid: 100 }, "/home/me/.guildnet", &asked));
    }

    #[test]
    fn what_systemd_would_expand_is_taken_literally() {
        let said = text(UnitOf::Person, "/home/a b/50%/$x\"", &ManagedSettings::default());
        assert!(said.contains(r#"serve --home "/home/a b/50%%/$$x\"""#), "{said}");
        let said = text(UnitOf::System { uid: 1, gid: 1 }, "/home/a b/50%/$x", &ManagedSettings::default());
        assert!(said.contains("\nReadWritePaths=\"/home/a b/50%%/$x\"\n"), "no variables there: {said}");
        let refused = unit(UnitOf::Person, Path::new("/g"), Path::new("/a\nb"), &asked()).expect_err("a new line");
        assert!(refused.message().contains("systemd unit"));
    }
}
