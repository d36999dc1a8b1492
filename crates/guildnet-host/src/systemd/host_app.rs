//! The units by which systemd starts the Host App: the service, and a socket that holds its port while it does not run.
//! Pure text; nothing is installed.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
};

use guildnet_model::Class;

use super::{Service, UnitOf, value, whole_value, word};
use crate::{DEFAULT_LISTEN, HostError, Settings, door};

/// `Type=notify`: it counts as started once the door serves. The end of a stop is `guildnet down`'s. What was asked for
/// wrongly (exit code 2) is not tried again; `guildnet down` ends it with success, and then it stays down.
const LIFE: &str = "\
Type=notify
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2
TimeoutStopSec=20
KillMode=mixed
";

const HOW_PERSON: &str = "\
# A unit of your own systemd; root is not needed:
#   guildnet down                 # if a Host App runs already
#   guildnet serve --systemd > ~/.config/systemd/user/guildnet.service
#   systemctl --user daemon-reload && systemctl --user enable --now guildnet
#   loginctl enable-linger        # to run without a session of yours, from boot on
# Its log: journalctl --user -u guildnet
";

const HOW_SYSTEM: &str = "\
# A unit of the machine's systemd, which runs it as you and locks it in further (ProtectSystem and others):
#   guildnet down                 # if a Host App runs already
#   guildnet serve --systemd=system | sudo tee /etc/systemd/system/guildnet.service
#   sudo systemctl daemon-reload && sudo systemctl enable --now guildnet
# Its log: journalctl -u guildnet
# It may write to GuildNet's folder and beside the kubeconfigs that have its contexts now: print it again after
# 'guildnet kubeconfig write' to another folder.
";

const HOW_SOCKET_PERSON: &str = "\
# A socket of your own systemd, beside guildnet.service: it keeps the port while the Host App is not running, and starts it
# with the first connection. Connections wait while it is restarted.
#   guildnet down                 # if a Host App runs already
#   guildnet serve --systemd --socket > ~/.config/systemd/user/guildnet.socket
#   systemctl --user daemon-reload && systemctl --user enable --now guildnet.socket
";

const HOW_SOCKET_SYSTEM: &str = "\
# A socket of the machine's systemd, beside guildnet.service: it keeps the port while the Host App is not running, and
# starts it with the first connection. Connections wait while it is restarted.
#   guildnet down                 # if a Host App runs already
#   guildnet serve --systemd=system --socket | sudo tee /etc/systemd/system/guildnet.socket
#   sudo systemctl daemon-reload && sudo systemctl enable --now guildnet.socket
";

/// `guildnet.service`: `program` is guildnet itself, `home` the home folder by its absolute path, `kubeconfigs` what the
/// Host App keeps in step.
///
/// # Errors
/// A path can't stand in a unit; the Host App can't listen there.
pub fn host_unit(
    of: UnitOf,
    program: &Path,
    home: &Path,
    settings: &Settings,
    kubeconfigs: &[PathBuf],
) -> Result<String, HostError> {
    door::check_listen(settings.listen)?;
    let mut command = vec![word(program)?, "serve".into(), "--home".into(), word(home)?];
    if settings.listen != DEFAULT_LISTEN {
        command.extend(["--listen".into(), settings.listen.to_string()]);
    }
    command.extend(settings.log_format.flag().map(Into::into));
    let mut writes = vec![value(home)?];
    // A whole file takes the place of the old one, so it is the folder that is written to.
    let folders: BTreeSet<&Path> = kubeconfigs.iter().filter_map(|file| file.parent()).collect();
    for folder in folders.into_iter().filter(|folder| !folder.starts_with(home)) {
        // The sign before it: one that is gone is no reason not to start.
        let mut optional = OsString::from("-");
        optional.push(folder);
        writes.push(value(Path::new(&optional))?);
    }
    // Not the person's own folder, whose `.env` is for other commands; GuildNet's, as in the background.
    let life = format!("{LIFE}WorkingDirectory=-{}\n", whole_value(home)?);
    let how = match of {
        UnitOf::Person => HOW_PERSON,
        UnitOf::System { .. } => HOW_SYSTEM,
    };
    // No cluster is waited for at the start, so neither is the network.
    let service =
        Service { how, description: "The Host App of GuildNet", needs_network: false, command, life: &life, writes };
    Ok(service.text(of))
}

/// `guildnet.socket`, which belongs to the service by its name.
///
/// # Errors
/// The Host App can't listen there, or it would be another port each time.
pub fn host_socket(of: UnitOf, settings: &Settings) -> Result<String, HostError> {
    door::check_listen(settings.listen)?;
    if settings.listen.port() == 0 {
        return Err(HostError::new(Class::Usage, "a socket unit needs a port, and 0 is none")
            .with_hint("give --listen 127.0.0.1:8090"));
    }
    let how = match of {
        UnitOf::Person => HOW_SOCKET_PERSON,
        UnitOf::System { .. } => HOW_SOCKET_SYSTEM,
    };
    Ok(format!(
        "{how}\n[Unit]\nDescription=The door of GuildNet's Host App\nDocumentation=man:systemd.socket(5)\n\n\
         [Socket]\nListenStream={}\n\n[Install]\nWantedBy=sockets.target\n",
        settings.listen
    ))
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;

    fn settings(listen: &str) -> Settings {
        let mut settings = Settings::new("/home/me/.guildnet".into());
        settings.listen = listen.parse().expect("an address");
        settings
    }

    fn text(of: UnitOf, home: &str, listen: &str, kubeconfigs: &[&str]) -> String {
        let kubeconfigs: Vec<PathBuf> = kubeconfigs.iter().map(PathBuf::from).collect();
        let program = Path::new("/usr/local/bin/guildnet");
        host_unit(of, program, Path::new(home), &settings(listen), &kubeconfigs).expect("a unit")
    }

    #[test]
    fn a_persons_unit() {
        insta::assert_snapshot!(text(
            UnitOf::Person,
            "/home/me/.guildnet",
            "127.0.0.1:8090",
            &["/home/me/.kube/config"]
        ));
    }

    #[test]
    fn a_system_unit() {
        let kubeconfigs =
            ["/home/me/.kube/config", "/home/me/.kube/other", "/home/me/.guildnet/own", "/srv/a b/config"];
        let of = UnitOf::System { uid: 1000, gid: 100 };
        insta::assert_snapshot!(text(of, "/home/me/.guildnet", "127.0.0.1:9443", &kubeconfigs));
    }

    #[test]
    fn sockets() {
        let person = host_socket(UnitOf::Person, &settings("127.0.0.1:8090")).expect("a unit");
        let system = host_socket(UnitOf::System { uid: 1, gid: 1 }, &settings("[::1]:9443")).expect("a unit");
        insta::assert_snapshot!(format!("{person}\n{system}"));
    }

    #[test]
    fn what_systemd_would_expand_is_taken_literally() {
        let said = text(UnitOf::System { uid: 1, gid: 1 }, "/home/a b/50%", "127.0.0.1:8090", &[]);
        assert!(said.contains("serve --home \"/home/a b/50%%\"\n"), "{said}");
        assert!(said.contains("\nWorkingDirectory=-/home/a b/50%%\n"), "{said}");
        let refused = host_unit(UnitOf::Person, Path::new("/g"), Path::new("/a\\"), &settings("127.0.0.1:1"), &[]);
        assert!(refused.expect_err("it would join two lines").message().contains("systemd unit"));
    }

    #[test]
    fn where_the_host_app_can_not_listen_there_is_no_unit() {
        let everywhere = settings("0.0.0.0:8090");
        for refused in [
            host_socket(UnitOf::Person, &everywhere),
            host_socket(UnitOf::Person, &settings("127.0.0.1:0")),
            host_unit(UnitOf::Person, Path::new("/g"), Path::new("/h"), &everywhere, &[]),
        ] {
            assert_eq!(refused.expect_err("refused").class(), Class::Usage);
        }
    }
}
