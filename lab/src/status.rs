//! What there is and what of it runs, for people and for programs.

use std::{collections::BTreeMap, fmt::Write, net::Ipv4Addr, path::PathBuf};

use serde::Serialize;

use crate::{
    cluster, headscale, host,
    peers::{Peers, Versions},
    plan::{API_SERVICE, ECHO_SERVICE, LAN, NODE_ADDRESS, Nat, POD_NETWORK, Person, SERVICE_NETWORK},
    process::is_alive,
    state::State,
};

/// A lab as it was seen just now.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its name.
    pub instance: String,
    /// Which versions it runs, where there is a choice.
    pub versions: Versions,
    /// The bridge: name, address, network.
    pub bridge: Bridge,
    /// The coordination server.
    pub headscale: Headscale,
    /// Who runs `guildnet`, and the folder of what they read.
    pub person: PersonFiles,
    /// The clusters.
    pub clusters: Vec<Cluster>,
    /// The client hosts.
    pub hosts: Vec<ClientHost>,
    /// The standalone relays, by process.
    pub relays: BTreeMap<String, Relay>,
    /// The programs of the peers, by family.
    pub programs: BTreeMap<String, PathBuf>,
}

/// "The internet" of the lab.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bridge {
    /// Interface name.
    pub name: String,
    /// The machine's address on it.
    pub address: Ipv4Addr,
    /// CIDR.
    pub network: String,
}

/// Headscale.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Headscale {
    /// Where clients go.
    pub url: String,
    /// File with its authority's certificate.
    pub ca: PathBuf,
    /// File with an API key.
    pub api_key_file: PathBuf,
    /// Its settings file.
    pub config: PathBuf,
    /// Its process.
    pub process: Process,
}

/// The user's folder.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PersonFiles {
    /// Whose files they are.
    #[serde(flatten)]
    pub ids: Person,
    /// The folder.
    pub dir: PathBuf,
}

/// A process, alive or not.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Process id, 0 if it was never started.
    pub pid: i32,
    /// Whether it runs.
    pub alive: bool,
    /// Its output.
    pub log: PathBuf,
}

/// A client host.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientHost {
    /// Its name.
    pub name: String,
    /// Its network namespace.
    pub namespace: String,
    /// Network namespace of its gateway.
    pub gateway_namespace: String,
    /// The gateway's address on the bridge.
    pub outer: Ipv4Addr,
    /// What the gateway does to addresses.
    pub nat: Nat,
    /// Whether the gateway drops UDP.
    pub udp_blocked: bool,
    /// The link between the gateway and the internet, if there is one.
    pub link: Option<Process>,
}

/// A standalone relay.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Relay {
    /// Its address on the bridge.
    pub address: Ipv4Addr,
    /// Its region's number in the map of relays.
    pub region: u16,
    /// Whether it is cut off from everybody.
    pub cut: bool,
    /// Its process.
    pub process: Process,
}

/// A cluster.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Its name.
    pub id: String,
    /// Whether it is light: etcd and API server, nothing that runs pods.
    pub light: bool,
    /// Whether its node is Ready; of a light cluster, whether its API server is.
    pub ready: bool,
    /// Whether the door is open.
    pub door_open: bool,
    /// Whether its gateway drops UDP.
    pub udp_blocked: bool,
    /// Its routers that are cut off from everything outside it.
    pub cut: Vec<String>,
    /// Its routers that are cut off from it.
    pub detached: Vec<String>,
    /// What its gateway does to addresses.
    pub nat: Nat,
    /// Where the door is: `ADDRESS:PORT` of the gateway.
    pub door: String,
    /// The user's kubeconfig, by the door.
    pub kubeconfig: PathBuf,
    /// The administrator's kubeconfig, for use in the node's namespace.
    pub admin_kubeconfig: PathBuf,
    /// Network namespace of the gateway.
    pub gateway_namespace: String,
    /// Network namespace of the node.
    pub node_namespace: String,
    /// Name of the node.
    pub node: String,
    /// Address of the node on the cluster's LAN.
    pub node_address: Ipv4Addr,
    /// The cluster's LAN.
    pub lan: &'static str,
    /// Pod network.
    pub pods: &'static str,
    /// Service network.
    pub services: &'static str,
    /// Address of the `kubernetes` Service.
    pub api_service: Ipv4Addr,
    /// Address of the echo Service: HTTP on 80, bytes on 9000 (not where the cluster is light).
    pub echo_service: Ipv4Addr,
    /// Its processes.
    pub processes: BTreeMap<String, Process>,
}

/// Looks at everything.
#[must_use]
pub(crate) fn status(state: &State) -> Status {
    let plan = &state.plan;
    let peers = Peers(state.peers.clone());
    let process = |name: &str| {
        let running = state.processes.get(name);
        Process { pid: running.map_or(0, |r| r.pid), alive: running.is_some_and(is_alive), log: plan.log(name) }
    };
    let person = plan.person_dir();
    let clusters = plan
        .all_clusters()
        .into_iter()
        .map(|c| Cluster {
            light: c.light,
            ready: cluster::is_ready(&peers, &c),
            door_open: !state.shut_doors.contains(&c.id),
            udp_blocked: state.udp_blocked.contains(&c.id),
            nat: state.nat(&c.id),
            cut: of_cluster(&state.cut, &c.id),
            detached: of_cluster(&state.detached, &c.id),
            door: format!("{}:{}", c.outer, crate::plan::API_PORT),
            kubeconfig: person.join(format!("{}.kubeconfig", c.id)),
            admin_kubeconfig: c.file("admin.kubeconfig"),
            node_address: NODE_ADDRESS,
            lan: LAN,
            pods: POD_NETWORK,
            services: SERVICE_NETWORK,
            api_service: API_SERVICE,
            echo_service: ECHO_SERVICE,
            processes: cluster::specs(state, &c, &peers)
                .into_iter()
                .map(|s| (s.name.clone(), process(&s.name)))
                .collect(),
            gateway_namespace: c.gateway_ns,
            node_namespace: c.node_ns,
            node: c.node_name,
            id: c.id,
        })
        .collect();
    let hosts = plan
        .all_hosts()
        .into_iter()
        .map(|host| ClientHost {
            nat: state.nat(&host.name),
            udp_blocked: state.udp_blocked.contains(&host.name),
            link: host::spec(plan, &host).map(|spec| process(&spec.name)),
            name: host.name,
            namespace: host.behind.host_ns,
            gateway_namespace: host.behind.gateway_ns,
            outer: host.behind.outer,
        })
        .collect();
    let relays = plan
        .relays()
        .into_iter()
        .filter(|_| state.relays)
        .map(|r| {
            let (cut, process) = (state.cut.contains(&r.process), process(&r.process));
            (r.process, Relay { address: r.address, region: r.region, cut, process })
        })
        .collect();
    Status {
        hosts,
        relays,
        instance: plan.instance.to_string(),
        versions: state.versions.clone(),
        bridge: Bridge { name: plan.bridge_name(), address: plan.host_address(), network: plan.network_cidr() },
        headscale: Headscale {
            url: plan.headscale_url(),
            ca: person.join("headscale-ca.pem"),
            api_key_file: person.join("headscale-api-key"),
            config: headscale::config_file(plan),
            process: process(headscale::NAME),
        },
        person: PersonFiles { ids: plan.person, dir: person },
        clusters,
        programs: state.peers.clone(),
    }
}

fn nat_word(nat: Nat) -> String {
    use clap::ValueEnum;
    nat.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The processes of a cluster on a list.
fn of_cluster(list: &[String], cluster: &str) -> Vec<String> {
    list.iter().filter(|name| name.split_once('/').is_some_and(|(of, _)| of == cluster)).cloned().collect()
}

impl Status {
    /// Whether everything that should run runs.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.headscale.process.alive
            && self.clusters.iter().all(|c| c.ready && c.processes.values().all(|p| p.alive))
            && self.hosts.iter().all(|host| host.link.as_ref().is_none_or(|link| link.alive))
            && self.relays.values().all(|relay| relay.process.alive)
    }

    /// The text for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |what: &str, value: &str| {
            // Writing to a String does not fail.
            let _never = writeln!(out, "{what:<22} {value}");
        };
        let word = |alive| if alive { "runs" } else { "does not run" };
        line("instance", &self.instance);
        line("versions", &self.versions.to_string());
        line("bridge", &format!("{} {}", self.bridge.name, self.bridge.network));
        line("headscale", &format!("{} ({})", self.headscale.url, word(self.headscale.process.alive)));
        line("headscale api key", &self.headscale.api_key_file.display().to_string());
        line("headscale ca", &self.headscale.ca.display().to_string());
        for cluster in &self.clusters {
            let mut said = if cluster.light { vec!["light".to_owned()] } else { vec![] };
            said.push(if cluster.ready { "Ready".to_owned() } else { "not Ready".to_owned() });
            said.push(format!("door {} {}", cluster.door, if cluster.door_open { "open" } else { "shut" }));
            if cluster.udp_blocked {
                said.push("UDP blocked".into());
            }
            if cluster.nat != Nat::default() {
                said.push(format!("NAT {}", nat_word(cluster.nat)));
            }
            said.extend(cluster.cut.iter().map(|router| format!("{router} is cut")));
            said.extend(cluster.detached.iter().map(|router| format!("{router} is detached")));
            said.extend(
                cluster.processes.iter().filter(|(_, p)| !p.alive).map(|(name, _)| format!("{name} does not run")),
            );
            line(&format!("cluster {}", cluster.id), &said.join(", "));
            line(&format!("cluster {} kubeconfig", cluster.id), &cluster.kubeconfig.display().to_string());
        }
        for (name, relay) in &self.relays {
            let cut = if relay.cut { ", cut" } else { "" };
            line(&format!("relay {name}"), &format!("{} ({}{cut})", relay.address, word(relay.process.alive)));
        }
        for host in &self.hosts {
            let mut said = vec![format!("behind {} (NAT {})", host.outer, nat_word(host.nat))];
            said.extend(host.link.as_ref().map(|link| format!("link {}", word(link.alive))));
            said.extend(host.udp_blocked.then(|| "UDP blocked".to_owned()));
            line(&format!("host {}", host.name), &said.join(", "));
        }
        out
    }
}
