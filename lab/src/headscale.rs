//! Headscale: settings, certificate, start, API key. Its relay and STUN are embedded; it reaches nothing outside.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use crate::{
    cgroup::Cgroups,
    command::{command, finish, until},
    error::LabError,
    files,
    peers::Peers,
    pki::{Authority, Subject},
    plan::{HEADSCALE_PORT, Plan, STUN_PORT},
    process::{self, Spec},
    relay,
    state::StateFile,
    talk::Talk,
};

/// Name of its process.
pub(crate) const NAME: &str = "headscale";

/// The map of the standalone relays, which it reads if this lab has them.
const RELAY_MAP: &str = "relays.yaml";

/// Time it has to answer; measured: 2 s.
const READY: Duration = Duration::from_secs(30);

fn dir(plan: &Plan) -> PathBuf {
    plan.instance.data_dir().join("headscale")
}

/// Certificate and key of the standalone relays, by the same authority.
pub(crate) fn relay_certificate(plan: &Plan) -> PathBuf {
    dir(plan).join("relay.crt")
}

/// See [`relay_certificate`].
pub(crate) fn relay_key(plan: &Plan) -> PathBuf {
    dir(plan).join("relay.key")
}

/// Its settings file.
pub(crate) fn config_file(plan: &Plan) -> PathBuf {
    dir(plan).join("config.yaml")
}

pub(crate) fn spec(plan: &Plan, peers: &Peers) -> Spec {
    Spec {
        name: NAME.into(),
        program: peers.program("headscale", "headscale"),
        args: vec!["serve".into(), "-c".into(), config_file(plan).display().to_string()],
        env: vec![],
        netns: None,
        holder: None,
        cgroup: format!("{}/headscale", plan.instance.cgroup()),
    }
}

/// Starts it unless it runs, and sees to the files that the user reads.
pub(crate) fn up(state: &StateFile, cgroups: &Cgroups, peers: &Peers, talk: &Talk) -> Result<(), LabError> {
    let known = state.get();
    let plan = known.plan;
    let dir = dir(&plan);
    files::folder(&dir, 0o700)?;
    if !dir.join("tls.key").exists() {
        let authority = Authority::new("GuildNet lab: Headscale")?;
        let address = IpAddr::from(plan.host_address());
        let server = authority.sign(Subject {
            name: "headscale",
            group: None,
            dns: &["localhost"],
            ips: &[address, plan.spare_address().into(), Ipv4Addr::LOCALHOST.into()],
        })?;
        files::write(&dir.join("ca.pem"), authority.pair().cert, 0o644)?;
        files::write(&dir.join("tls.crt"), server.cert, 0o644)?;
        let addresses = plan.relays().map(|relay| IpAddr::from(relay.address));
        let relays = authority.sign(Subject { name: "relays", group: None, dns: &[], ips: &addresses })?;
        files::write(&relay_certificate(&plan), relays.cert, 0o644)?;
        files::write(&relay_key(&plan), relays.key, 0o600)?;
        // Last: its presence says that all of them are there.
        files::write(&dir.join("tls.key"), server.key, 0o600)?;
    }
    files::write(&dir.join(RELAY_MAP), relay::map(&plan), 0o600)?;
    let settings = config(&plan, known.relays);
    if files::read(&config_file(&plan)).is_ok_and(|there| there != settings) {
        // It reads them once.
        process::stop(state, NAME)?;
    }
    files::write(&config_file(&plan), settings, 0o600)?;
    let started = process::ensure(state, cgroups, &spec(&plan, peers))?;
    wait(state)?;

    let person = plan.person_dir();
    let write = |name: &str, text: String| files::write_for(plan.person, &person.join(name), text);
    write("headscale-url", format!("{}\n", plan.headscale_url()))?;
    write("headscale-ca.pem", files::read(&dir.join("ca.pem"))?)?;
    if !person.join("headscale-api-key").exists() {
        let mut create = client(&plan, peers);
        // Ten years: a lab does not live that long.
        create.args(["apikeys", "create", "--expiration", "87600h"]);
        write("headscale-api-key", format!("{}\n", finish(create, None)?.trim()))?;
    }
    let word = if started { "started" } else { "runs" };
    talk.say(NAME, format!("{word} at {}", plan.headscale_url()));
    Ok(())
}

/// Waits until it answers.
pub(crate) fn wait(state: &StateFile) -> Result<(), LabError> {
    let known = state.get();
    let peers = Peers(known.peers.clone());
    let address = SocketAddr::from((known.plan.host_address(), HEADSCALE_PORT));
    until("Headscale's answer", READY, |seen| {
        process::check(state, NAME)?;
        if let Err(why) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            *seen = why.to_string();
            return Ok(false);
        }
        // Not `health`: older ones don't have it.
        let mut list = client(&known.plan, &peers);
        list.args(["users", "list"]);
        Ok(finish(list, None).map_err(|why| *seen = why.to_string()).is_ok())
    })
}

/// Its own command line, as administrator.
pub(crate) fn client(plan: &Plan, peers: &Peers) -> std::process::Command {
    let mut client = command(peers.program("headscale", "headscale"));
    client.arg("-c").arg(config_file(plan));
    client
}

fn config(plan: &Plan, relays: bool) -> String {
    let address = plan.host_address();
    let dir = dir(plan).display().to_string();
    let url = plan.headscale_url();
    let paths = if relays { format!("[{dir}/{RELAY_MAP}]") } else { "[]".into() };
    format!(
        "server_url: {url}
listen_addr: {address}:{HEADSCALE_PORT}
metrics_listen_addr: {address}:9090
grpc_listen_addr: {address}:50443
grpc_allow_insecure: false
tls_cert_path: {dir}/tls.crt
tls_key_path: {dir}/tls.key
noise:
  private_key_path: {dir}/noise_private.key
prefixes:
  v4: 100.64.0.0/10
  v6: fd7a:115c:a1e0::/48
  allocation: sequential
derp:
  server:
    enabled: true
    region_id: 999
    region_code: lab
    region_name: GuildNet lab
    verify_clients: true
    stun_listen_addr: {address}:{STUN_PORT}
    private_key_path: {dir}/derp_private.key
    automatically_add_embedded_derp_region: true
    ipv4: {address}
  urls: []
  paths: {paths}
  auto_update_enabled: false
disable_check_updates: true
database:
  type: sqlite
  sqlite:
    path: {dir}/db.sqlite
    write_ahead_log: true
policy:
  mode: database
dns:
  magic_dns: false
  base_domain: lab.guildnet.test
  override_local_dns: false
  nameservers:
    global: []
unix_socket: {dir}/headscale.sock
unix_socket_permission: \"0700\"
logtail:
  enabled: false
log:
  level: info
  format: text
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_keep_everything_on_the_bridge() {
        let plan = Plan::sample(&["a"]);
        insta::assert_snapshot!(config(&plan, false));
    }
}
