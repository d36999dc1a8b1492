//! The Host App as a process and as a server: who it runs as, what it tells, what it keeps to itself.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
    process::Command,
    time::Duration,
};

use crate::fleet::{CLUSTERS, Fleet, eventually, finish, listing};

/// Gives a file to the user that the command runs as, readable by them only.
pub(crate) fn give_to_person(fleet: &Fleet, file: &Path) {
    let (uid, gid) = fleet.lab.person();
    chown(file, Some(uid), Some(gid)).expect("root may give files away");
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("mode");
}

/// The part of an API key by which Headscale lists it: `hskey-api-PREFIX-SECRET`, formerly `PREFIX.SECRET`.
pub(crate) fn api_key_prefix(key: &str) -> String {
    // Random characters of a URL's base64: a dash may be among them, so their number decides.
    let bare = key.strip_prefix("hskey-api-").expect("a key of 0.29");
    bare.chars().take(12).collect()
}

/// A field of what the kernel says of a process (`/proc/PID/status`).
pub(crate) fn field<'s>(status: &'s str, name: &str) -> &'s str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in\n{status}")).trim()
}

#[test]
fn it_runs_as_the_invoking_user_without_capabilities() {
    let fleet = Fleet::up();
    let status = fs::read_to_string(format!("/proc/{}/status", fleet.host_pid())).expect("it runs");
    let (uid, gid) = fleet.lab.person();
    assert_eq!(field(&status, "Uid"), [uid.to_string().as_str(); 4].join("\t"));
    assert_eq!(field(&status, "Gid"), [gid.to_string().as_str(); 4].join("\t"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    let mine = fs::read_link("/proc/self/ns/net").expect("a namespace");
    let its = fs::read_link(format!("/proc/{}/ns/net", fleet.host_pid())).expect("a namespace");
    assert_eq!(mine, its, "it serves in the machine's own namespace");
}

#[test]
fn its_door_wants_the_token_and_its_certificate_is_trusted_by_its_own_authority_only() {
    let fleet = Fleet::up();
    let base = format!("https://{}", fleet.listen);
    let ca = fleet.home.join("certs/host-ca.crt").display().to_string();
    let token = fleet.run(&["token"]).ok();
    let curl = |args: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10"]).args(args);
        finish(command, b"", Duration::from_secs(15))
    };
    let bearer = format!("Authorization: Bearer {}", token.trim());
    assert_eq!(curl(&["--cacert", &ca, &format!("{base}/healthz")]).ok(), "200");
    assert_eq!(curl(&["--cacert", &ca, &format!("{base}/api/v1/clusters")]).ok(), "401");
    assert_eq!(
        curl(&["--cacert", &ca, "-H", "Authorization: Bearer x", &format!("{base}/api/v1/clusters")]).ok(),
        "401"
    );
    assert_eq!(curl(&["--cacert", &ca, "-H", &bearer, &format!("{base}/api/v1/clusters")]).ok(), "200");
    assert_eq!(curl(&["--cacert", &ca, "-H", &bearer, &format!("{base}/readyz")]).ok(), "200");
    let forged =
        curl(&["--cacert", &ca, "-H", &bearer, "-H", "Host: evil.example", &format!("{base}/api/v1/clusters")]).ok();
    assert!(["400", "403", "421"].contains(&forged.as_str()), "a forged Host got {forged}");
    assert_eq!(curl(&[&format!("{base}/healthz")]).code, 60, "not trusted without the authority");
}

#[test]
fn a_slow_client_is_let_go_and_others_are_served() {
    let fleet = Fleet::up();
    let mut slow = TcpStream::connect(fleet.listen).expect("the port is open");
    slow.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    slow.write_all(&[0x16]).expect("one byte of a handshake");
    fleet.run(&["status"]).ok();
    // The server closes: the read ends with nothing, or with a reset.
    assert_eq!(slow.read(&mut [0; 64]).unwrap_or(0), 0);
}

#[test]
fn secrets_are_nowhere_but_sealed() {
    let fleet = Fleet::up();
    let person = fleet.lab.person_dir();
    let api_key = fs::read_to_string(person.join("headscale-api-key")).expect("the lab wrote it").trim().to_owned();
    let kubeconfig = fs::read_to_string(person.join("a.kubeconfig")).expect("the lab wrote it");
    let key_data =
        kubeconfig.lines().find_map(|l| l.trim().strip_prefix("client-key-data:")).expect("inline").trim().to_owned();
    let secrets = [api_key.as_str(), key_data.as_str(), &key_data[40..80]];

    let pid = fleet.host_pid();
    let mut places: Vec<(String, Vec<u8>)> = Vec::new();
    for file in listing(&fleet.home).into_iter().filter(|f| Path::new(f).is_file()) {
        places.push((file.clone(), fs::read(&file).expect("root reads it")));
    }
    for of in ["cmdline", "environ"] {
        let path = format!("/proc/{pid}/{of}");
        places.push((path.clone(), fs::read(path).expect("it runs")));
    }
    for args in [
        &["status", "-o", "json"][..],
        &["cluster", "list", "-o", "json"],
        &["cluster", "show", "a", "-o", "json"],
        &["verify", "-o", "json"],
        &["router", "status", "a", "-o", "json"],
    ] {
        let ran = fleet.run(args);
        places.push((args.join(" "), format!("{}{}", ran.out, ran.err).into_bytes()));
    }
    assert!(places.len() > 8, "the home folder holds files");
    for (place, bytes) in &places {
        for secret in secrets {
            let hit = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!hit, "a secret stands in {place}");
        }
    }
    for file in listing(&fleet.home) {
        let meta = fs::symlink_metadata(&file).expect("it is there");
        assert_eq!(meta.mode() & 0o077, 0, "{file} can be read by others");
    }
}

#[test]
fn down_ends_the_process_and_up_alone_starts_it_again() {
    let fleet = Fleet::up();
    let pid = fleet.host_pid();
    fleet.run(&["down"]).ok();
    // A process that ended but was not reaped yet has no program any more.
    assert!(!Path::new(&format!("/proc/{pid}/exe")).exists(), "down returned before the process had ended");
    fleet.run(&["down"]).ok();
    fleet.run(&["up", "--no-verify"]).ok();
    for cluster in CLUSTERS {
        eventually("the cluster answers", Duration::from_secs(30), || fleet.echo(cluster).code == 0);
    }
}
