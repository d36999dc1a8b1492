//! The unit by which systemd starts a managed Headscale, hardened. Pure text; nothing is installed. What units have in common
//! is `systemd.rs`.

use std::path::Path;

use super::ManagedSettings;
use crate::{
    HostError,
    systemd::{Service, UnitOf, value, word},
};

/// `guildnet headscale down` ends it with success: then it stays down.
const LIFE: &str = "\
Restart=on-failure
RestartSec=5
TimeoutStopSec=20
KillMode=mixed
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
    // Its address is one that the network gives.
    let service = Service {
        how,
        description: "Headscale, managed by GuildNet",
        needs_network: true,
        command: words,
        life: LIFE,
        writes: vec![value(home)?],
    };
    Ok(service.text(of))
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
