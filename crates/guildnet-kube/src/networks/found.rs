//! Decides which networks a cluster has, from what its objects say. Pure.
//!
//! Services: the API's own word counts, then what the cluster was made with, then the API server's refusal. Pods: what
//! hands out the addresses counts (Cilium or Calico with pools of their own); else the nodes' `podCIDRs`, each replaced
//! by the wider network that holds it where one is named, so that nodes that come later lie inside.

use ipnet::{IpNet, Ipv4Net};

use super::{
    ClusterNetworks, FoundNetwork, NetworkSource, Objects, few,
    objects::{CiliumMode, Named},
};

/// See the module.
pub(super) fn found(objects: &Objects) -> ClusterNetworks {
    let mut out = ClusterNetworks { unread: objects.unread(), ..ClusterNetworks::default() };
    let services = services(objects, &mut out);
    let pods = pods(objects, &mut out);
    out.services = joined(services);
    out.pods = joined(narrowed(pods, &out.services, &mut out.notes));
    if !out.services.is_empty() && !out.ipv6.is_empty() {
        out.notes.push(format!("IPv6 is left out ({}): GuildNet serves the cluster's IPv4 half", few(&out.ipv6)));
    }
    let hidden: Vec<&str> = out.unread.iter().map(|u| u.what).collect();
    if !out.pods.is_empty() && !hidden.is_empty() {
        out.notes.push(format!(
            "not readable with this kubeconfig: {}; if Pods have addresses outside of {}, give --routes SERVICE_CIDR,POD_CIDR",
            hidden.join(", "),
            nets(&out.pods)
        ));
    }
    if !out.services.is_empty() && out.pods.is_empty() && out.unread.is_empty() {
        out.notes.push(
            "its Pod networks were not found: Services will be reached, Pods not; give both with --routes SERVICE_CIDR,POD_CIDR"
                .to_owned(),
        );
    }
    out
}

/// Networks that Pods have, and the smaller ones that nodes hold of them.
struct Picked {
    used: Vec<FoundNetwork>,
    /// What nodes hold, where that tells which part of a pool is in use.
    nodes: Vec<FoundNetwork>,
}

fn services(objects: &Objects, out: &mut ClusterNetworks) -> Vec<FoundNetwork> {
    let (api, kubeadm) = (objects.service_cidrs(), objects.kubeadm_services());
    let sources = [api.clone(), kubeadm.clone(), objects.server_services(), objects.refused_services()];
    let named = sources.into_iter().find(|source| !source.is_empty()).unwrap_or_default();
    out.services_are_ipv6 = objects.refuses_ipv4() || named.iter().any(|n| matches!(n.net, IpNet::V6(_)));
    let used = ipv4(named, &mut out.ipv6);
    out.services_are_ipv6 &= used.is_empty();
    let made_with = ipv4(kubeadm, &mut Vec::new());
    if !api.is_empty() && !used.is_empty() && made_with.iter().any(|k| !held(&used, &k.net)) {
        out.notes.push(format!(
            "kubeadm-config names {} for Services, the API serves {}: the API's word is taken",
            nets(&made_with),
            nets(&used)
        ));
    }
    used
}

fn pods(objects: &Objects, out: &mut ClusterNetworks) -> Picked {
    if let Some(own) = own_pools(objects, out) {
        let made_with = ipv4(objects.kubeadm_pods(), &mut Vec::new());
        let taken = &own.used;
        if !taken.is_empty() && made_with.iter().any(|k| !held(taken, &k.net)) {
            out.notes.push(format!(
                "kubeadm-config names {} for Pods, but they get addresses of {} ({}): these are taken",
                nets(&made_with),
                nets(taken),
                taken[0].source
            ));
        }
        return own;
    }
    let nodes = ipv4(objects.node_pods(), &mut out.ipv6);
    let candidates = [objects.flannel_pods(), objects.kubeadm_pods(), objects.server_pods()];
    let candidates: Vec<Vec<FoundNetwork>> = candidates.map(|c| ipv4(c, &mut out.ipv6)).into();
    let used = if nodes.is_empty() {
        candidates.into_iter().find(|c| !c.is_empty()).unwrap_or_default()
    } else {
        let wider = |node: &FoundNetwork| candidates.iter().flatten().find(|c| c.net.contains(&node.net)).cloned();
        let (inside, outside): (Vec<_>, Vec<_>) =
            nodes.iter().map(|node| wider(node).ok_or_else(|| node.clone())).partition(Result::is_ok);
        let outside: Vec<FoundNetwork> = outside.into_iter().filter_map(Result::err).collect();
        if let Some(named) = candidates.iter().find(|c| !c.is_empty())
            && !outside.is_empty()
        {
            out.notes.push(format!(
                "{} names {} for Pods, but nodes hold {}: the nodes' are taken",
                named[0].source,
                nets(named),
                nets(&joined(outside.clone()))
            ));
        } else if !outside.is_empty() {
            out.notes.push(
                "nothing names a network for all Pods: the nodes' own are taken, and nodes that come later need \
                 'guildnet router ensure'"
                    .to_owned(),
            );
        }
        // One network for all the nodes that it holds.
        joined(inside.into_iter().filter_map(Result::ok).chain(outside).collect())
    };
    Picked { used, nodes }
}

/// The pools of a plugin that hands out addresses by itself; `None` if the nodes' `podCIDRs` are what counts.
fn own_pools(objects: &Objects, out: &mut ClusterNetworks) -> Option<Picked> {
    match objects.cilium_mode() {
        Some(CiliumMode::Pools) => {
            let nodes = ipv4(objects.cilium_node_pods(), &mut out.ipv6);
            let pools = ipv4(objects.cilium_pool_list(), &mut out.ipv6);
            let used = if pools.is_empty() { nodes.clone() } else { pools };
            return (!used.is_empty()).then_some(Picked { used, nodes });
        }
        Some(CiliumMode::Foreign(ipam)) => {
            let nodes = ipv4(objects.cilium_node_pods(), &mut out.ipv6);
            if nodes.is_empty() {
                out.notes.push(format!("Cilium gives Pods addresses of another network (ipam {ipam})"));
            }
            return Some(Picked { used: nodes.clone(), nodes });
        }
        Some(CiliumMode::Kubernetes) | None => {}
    }
    let calico = ipv4(objects.calico_pods(), &mut out.ipv6);
    if calico.is_empty() || !objects.has_flannel() {
        return (!calico.is_empty()).then_some(Picked { used: calico, nodes: vec![] });
    }
    // Canal: flannel's network, Calico's policies. Its pools are made by default and not used.
    let others = ipv4([objects.flannel_pods(), objects.node_pods()].concat(), &mut Vec::new());
    if calico.iter().any(|pool| !held(&others, &pool.net) && !others.iter().any(|o| pool.net.contains(&o.net))) {
        out.notes.push(format!(
            "{} ({}) is left out: flannel gives the Pods their addresses",
            nets(&calico),
            calico[0].source
        ));
    }
    None
}

/// Takes the place of a pool that shares addresses with a Service network: what nodes hold of it, if that is known.
fn narrowed(pods: Picked, services: &[FoundNetwork], notes: &mut Vec<String>) -> Vec<FoundNetwork> {
    let mut out = Vec::new();
    for pool in pods.used {
        let shares = |s: &&FoundNetwork| s.net.contains(&pool.net) || pool.net.contains(&s.net);
        let Some(service) = services.iter().find(shares) else {
            out.push(pool);
            continue;
        };
        let what = format!("{} ({}) shares addresses with the Service network {}", pool.net, pool.source, service.net);
        let inside: Vec<FoundNetwork> = pods.nodes.iter().filter(|n| pool.net.contains(&n.net)).cloned().collect();
        if inside.is_empty() || inside.iter().all(|n| n.net == pool.net) {
            notes.push(format!(
                "{what}: a Pod and a Service may have the same address; give Pods a network of their own"
            ));
            out.push(pool);
        } else {
            notes.push(format!(
                "{what}: narrowed to what the nodes hold, {}; nodes that come later need 'guildnet router ensure'",
                nets(&joined(inside.clone()))
            ));
            out.extend(inside);
        }
    }
    out
}

/// The IPv4 ones; the others are noted as they are written.
fn ipv4(named: Vec<Named>, ipv6: &mut Vec<String>) -> Vec<FoundNetwork> {
    let mut found: Vec<FoundNetwork> = Vec::new();
    for Named { net, source } in named {
        match net {
            IpNet::V4(net) => found.push(FoundNetwork { net, source }),
            IpNet::V6(net) => {
                let text = net.to_string();
                if !ipv6.contains(&text) {
                    ipv6.push(text);
                }
            }
        }
    }
    found
}

fn held(by: &[FoundNetwork], net: &Ipv4Net) -> bool {
    by.iter().any(|f| f.net.contains(net))
}

fn nets(found: &[FoundNetwork]) -> String {
    let mut each: Vec<String> = found.iter().map(|f| f.net.to_string()).collect();
    each.dedup();
    each.join(", ")
}

/// Neighbours of nodes joined, doubles and what lies in another one taken out; the first source of each is kept.
fn joined(found: Vec<FoundNetwork>) -> Vec<FoundNetwork> {
    let all: Vec<Ipv4Net> = found.iter().map(|f| f.net).collect();
    let mut out: Vec<FoundNetwork> = Vec::new();
    for net in Ipv4Net::aggregate(&all) {
        let parts: Vec<&FoundNetwork> = found.iter().filter(|f| net.contains(&f.net)).collect();
        // Named whole by one source, or put together from what nodes hold.
        let whole = parts.iter().find(|f| f.net == net).map(|f| f.source.clone());
        if let Some(source) = whole.or_else(|| of_nodes(&parts)) {
            out.push(FoundNetwork { net, source });
            continue;
        }
        // Neighbours that somebody named one by one stay apart, each with its source.
        let inside = |one: &FoundNetwork| parts.iter().any(|o| o.net != one.net && o.net.contains(&one.net));
        for part in parts.iter().filter(|part| !inside(part)) {
            if out.iter().all(|o| o.net != part.net) {
                out.push((*part).clone());
            }
        }
    }
    out
}

/// The source of a network that is put together from those of nodes; `None` if a part comes from elsewhere.
fn of_nodes(parts: &[&FoundNetwork]) -> Option<NetworkSource> {
    let mut names: Vec<String> = Vec::new();
    let mut by_cilium = false;
    for part in parts {
        match &part.source {
            NetworkSource::Nodes(of) => names.extend(of.iter().cloned()),
            NetworkSource::CiliumNodes(of) => {
                by_cilium = true;
                names.extend(of.iter().cloned());
            }
            _ => return None,
        }
    }
    names.sort();
    names.dedup();
    Some(if by_cilium { NetworkSource::CiliumNodes(names) } else { NetworkSource::Nodes(names) })
}
