//! The objects that may name a cluster's networks, and their shapes: each method takes out what one kind of them says.
//!
//! Shapes: `ServiceCIDR` and `Node` are Kubernetes' own; kubeadm's `ClusterConfiguration` (`networking.serviceSubnet`,
//! `networking.podSubnet`); flannel's `net-conf.json` (`Network`); Calico's `IPPool` (`spec.cidr`, `disabled`,
//! `allowedUses`); Cilium's `cilium-config` (`ipam`, `cluster-pool-ipv4-cidr`), `CiliumNode` (`spec.ipam`) and
//! `CiliumPodIPPool` (`spec.ipv4.cidrs`); the annotation `k3s.io/node-args`. What is not understood is left out.

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{ConfigMap, Node},
    networking::v1::ServiceCIDR,
};
use serde_json::Value;

use super::NetworkSource;
use crate::read::{Read, Unread};

/// What flannel's own agent leaves on a node, whoever brought it.
pub(crate) const FLANNEL_ANNOTATION: &str = "flannel.alpha.coreos.com/backend-type";

/// Where k3s and RKE2 leave the arguments that a node was started with; settings of a file are among them.
const ARGUMENTS: [&str; 2] = ["k3s.io/node-args", "rke2.io/node-args"];

/// What k3s and RKE2 take for Pods and Services when they are told nothing (their documented defaults).
const SERVER_DEFAULTS: (&str, &str) = ("10.42.0.0/16", "10.43.0.0/16");

/// Everything that was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    pub(super) service_cidrs: Read<Vec<ServiceCIDR>>,
    /// `kubeadm-config`.
    pub(super) kubeadm: Read<ConfigMap>,
    pub(super) nodes: Read<Vec<Node>>,
    pub(super) calico_pools: Read<Vec<Value>>,
    /// `cilium-config`.
    pub(super) cilium: Read<ConfigMap>,
    pub(super) cilium_nodes: Read<Vec<Value>>,
    pub(super) cilium_pools: Read<Vec<Value>>,
    /// `kube-flannel-cfg`.
    pub(super) flannel: Read<ConfigMap>,
    /// What the API server said to a Service with an impossible address; asked only when nothing else names the Services.
    pub(super) refusal: Read<String>,
}

/// A network of either family, as an object names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) net: IpNet,
    pub(super) source: NetworkSource,
}

/// How Cilium hands out addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CiliumMode {
    /// From the nodes' `podCIDRs`.
    Kubernetes,
    /// From pools of its own.
    Pools,
    /// From somebody else's network, a cloud's for instance.
    Foreign(String),
}

impl Objects {
    /// Whether an object names Service networks, so that the API server need not be asked by a Service that can't be.
    pub(super) fn name_services(&self) -> bool {
        !self.service_cidrs().is_empty() || !self.kubeadm_services().is_empty() || !self.server_services().is_empty()
    }

    /// What could not be read, of that which counts.
    pub(super) fn unread(&self) -> Vec<Unread> {
        let services = self.service_cidrs().is_empty().then(|| Unread::of("ServiceCIDRs", &self.service_cidrs));
        let asked = Unread::of("a Service tried by dry-run", &self.refusal);
        let all = [
            services.flatten(),
            Unread::of("the nodes", &self.nodes),
            Unread::of("ConfigMap kubeadm-config", &self.kubeadm),
            Unread::of("ConfigMap cilium-config", &self.cilium),
            Unread::of("Calico's IPPools", &self.calico_pools),
            Unread::of("Cilium's nodes", &self.cilium_nodes),
            Unread::of("Cilium's pools", &self.cilium_pools),
            Unread::of("ConfigMap kube-flannel-cfg", &self.flannel),
            asked,
        ];
        all.into_iter().flatten().collect()
    }

    pub(super) fn service_cidrs(&self) -> Vec<Named> {
        let each = self.service_cidrs.seen().into_iter().flatten().flat_map(|object| {
            let source = NetworkSource::ServiceCidr(object.metadata.name.clone().unwrap_or_default());
            let cidrs = object.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
            cidrs.into_iter().flatten().filter_map(move |text| named(text, &source))
        });
        each.collect()
    }

    pub(super) fn kubeadm_services(&self) -> Vec<Named> {
        self.kubeadm_list("serviceSubnet")
    }

    pub(super) fn kubeadm_pods(&self) -> Vec<Named> {
        self.kubeadm_list("podSubnet")
    }

    fn kubeadm_list(&self, field: &str) -> Vec<Named> {
        let Some(text) = self.kubeadm.seen().and_then(|map| entry(map, "ClusterConfiguration")) else { return vec![] };
        let Ok(config) = serde_saphyr::from_str::<Value>(text) else { return vec![] };
        list(config["networking"][field].as_str().unwrap_or_default(), &NetworkSource::Kubeadm)
    }

    /// The range in the API server's refusal: `The range of valid IPs is 10.96.0.0/12` (`ipallocator`, `ErrNotInRange`).
    pub(super) fn refused_services(&self) -> Vec<Named> {
        let said = self.refusal.seen().map(String::as_str).unwrap_or_default();
        let Some((_, rest)) = said.split_once("range of valid IPs is ") else { return vec![] };
        let word = rest.split_whitespace().find(|word| word.contains('/')).unwrap_or_default();
        named(word.trim_end_matches(|c: char| !c.is_ascii_hexdigit()), &NetworkSource::Refusal).into_iter().collect()
    }

    /// Whether the API server said that it gives no IPv4 addresses to Services.
    pub(super) fn refuses_ipv4(&self) -> bool {
        self.refusal.seen().is_some_and(|said| said.contains("IPv4") && said.contains("not configured"))
    }

    pub(super) fn node_pods(&self) -> Vec<Named> {
        let each = self.nodes.seen().into_iter().flatten().flat_map(|node| {
            let source = NetworkSource::Nodes(vec![node.metadata.name.clone().unwrap_or_default()]);
            let spec = node.spec.as_ref();
            let cidrs = spec.and_then(|s| s.pod_cidrs.clone()).or_else(|| Some(vec![spec?.pod_cidr.clone()?]));
            cidrs.into_iter().flatten().filter_map(move |text| named(&text, &source))
        });
        each.collect()
    }

    pub(super) fn flannel_pods(&self) -> Vec<Named> {
        let text = self.flannel.seen().and_then(|map| entry(map, "net-conf.json"));
        let Some(config) = text.and_then(|t| serde_json::from_str::<Value>(t).ok()) else { return vec![] };
        let fields = ["Network", "IPv6Network"].map(|field| config[field].as_str().unwrap_or_default());
        fields.iter().filter_map(|text| named(text, &NetworkSource::Flannel)).collect()
    }

    /// Whether flannel gives the Pods of this cluster their addresses, brought by itself, by Canal or by k3s.
    pub(super) fn has_flannel(&self) -> bool {
        self.flannel.seen().is_some()
            || self.nodes.seen().into_iter().flatten().any(|node| annotation(node, FLANNEL_ANNOTATION).is_some())
    }

    /// Calico's pools for Pods that are in use.
    pub(super) fn calico_pods(&self) -> Vec<Named> {
        let in_use = |pool: &&Value| {
            let uses = pool["spec"]["allowedUses"].as_array();
            pool["spec"]["disabled"] != Value::Bool(true)
                && uses.is_none_or(|uses| uses.is_empty() || uses.iter().any(|u| u == "Workload"))
        };
        let each = self.calico_pools.seen().into_iter().flatten().filter(in_use);
        each.filter_map(|pool| named(pool["spec"]["cidr"].as_str()?, &NetworkSource::CalicoPool(name(pool)))).collect()
    }

    /// How Cilium gives addresses; `None` where there is no Cilium.
    pub(super) fn cilium_mode(&self) -> Option<CiliumMode> {
        let config = self.cilium.seen()?;
        Some(match entry(config, "ipam").unwrap_or("cluster-pool") {
            "kubernetes" => CiliumMode::Kubernetes,
            "cluster-pool" | "cluster-pool-v2beta" | "multi-pool" => CiliumMode::Pools,
            other => CiliumMode::Foreign(other.to_owned()),
        })
    }

    pub(super) fn cilium_pool_list(&self) -> Vec<Named> {
        if self.cilium.seen().and_then(|config| entry(config, "ipam")) == Some("multi-pool") {
            let pools = self.cilium_pools.seen().into_iter().flatten().flat_map(|pool| {
                let source = NetworkSource::CiliumPool(name(pool));
                let cidrs = ["ipv4", "ipv6"].map(|family| &pool["spec"][family]["cidrs"]);
                // A list of texts; an early form wrapped each in an object.
                let texts = cidrs.into_iter().filter_map(Value::as_array).flatten();
                texts
                    .filter_map(|c| c.as_str().or_else(|| c["cidr"].as_str()))
                    .filter_map(|text| named(text, &source))
                    .collect::<Vec<_>>()
            });
            return pools.collect();
        }
        let Some(config) = self.cilium.seen() else { return vec![] };
        let families = ["cluster-pool-ipv4-cidr", "cluster-pool-ipv6-cidr"];
        // The name for IPv6 is there with its default value whether it is used or not.
        let used = |key: &&str| !key.contains("ipv6") || entry(config, "enable-ipv6") == Some("true");
        let texts = families.into_iter().filter(used).filter_map(|key| entry(config, key));
        texts.flat_map(|text| list(text, &NetworkSource::CiliumConfig)).collect()
    }

    /// What Cilium gave to each node.
    pub(super) fn cilium_node_pods(&self) -> Vec<Named> {
        let each = self.cilium_nodes.seen().into_iter().flatten().flat_map(|node| {
            let source = NetworkSource::CiliumNodes(vec![name(node)]);
            let ipam = &node["spec"]["ipam"];
            let plain = ipam["podCIDRs"].as_array().into_iter().flatten();
            let pools = ipam["pools"]["allocated"].as_array().into_iter().flatten();
            let of_pools = pools.filter_map(|pool| pool["cidrs"].as_array()).flatten();
            plain.chain(of_pools).filter_map(|c| named(c.as_str()?, &source)).collect::<Vec<_>>()
        });
        each.collect()
    }

    /// What the servers of k3s or RKE2 were told for Pods.
    pub(super) fn server_pods(&self) -> Vec<Named> {
        self.server_list("--cluster-cidr", SERVER_DEFAULTS.0)
    }

    /// What the servers of k3s or RKE2 were told for Services.
    pub(super) fn server_services(&self) -> Vec<Named> {
        self.server_list("--service-cidr", SERVER_DEFAULTS.1)
    }

    /// The flag's values on the first server; the default if the servers were told nothing.
    fn server_list(&self, flag: &str, default: &str) -> Vec<Named> {
        let mut is_server = false;
        for node in self.nodes.seen().into_iter().flatten() {
            let text = ARGUMENTS.iter().find_map(|key| annotation(node, key));
            let Some(args) = text.and_then(|t| serde_json::from_str::<Vec<String>>(t).ok()) else { continue };
            if args.first().map(String::as_str) != Some("server") {
                continue;
            }
            is_server = true;
            let source = NetworkSource::ServerArguments(node.metadata.name.clone().unwrap_or_default());
            let told: Vec<Named> = values(&args, flag).iter().flat_map(|text| list(text, &source)).collect();
            if !told.is_empty() {
                return told;
            }
        }
        if is_server { list(default, &NetworkSource::ServerDefault) } else { vec![] }
    }
}

/// Each value of a flag, written as `--flag value` or `--flag=value`.
fn values<'a>(args: &'a [String], flag: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for (at, arg) in args.iter().enumerate() {
        match arg.strip_prefix(flag) {
            Some("") => found.extend(args.get(at + 1).map(String::as_str)),
            Some(rest) => found.extend(rest.strip_prefix('=')),
            None => {}
        }
    }
    found
}

/// The networks of a text that separates them by commas or blanks.
fn list(text: &str, source: &NetworkSource) -> Vec<Named> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter_map(|part| named(part, source)).collect()
}

fn named(text: &str, source: &NetworkSource) -> Option<Named> {
    let net: IpNet = text.trim().parse().ok()?;
    Some(Named { net: net.trunc(), source: source.clone() })
}

fn entry<'a>(map: &'a ConfigMap, key: &str) -> Option<&'a str> {
    map.data.as_ref()?.get(key).map(String::as_str)
}

fn annotation<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}
