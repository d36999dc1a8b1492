//! Whether a cluster can be GuildNet's: its version, its network plugin, its nodes, its storage, and whether the router's
//! namespace lets a privileged pod in.
//!
//! [`ApiServer::facts`] reads, each read may be refused; [`judge`] is pure. Absent: `/dev/net/tun`, which no API tells;
//! the router's own pods find out, and `router.rs` names the node.

use guildnet_model::ClusterId;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Namespace, Node, Taint},
};
use kube::{Api, ResourceExt as _, api::ListParams};

use crate::{
    ApiServer, KubeError,
    networks::FLANNEL_ANNOTATION,
    read::Read,
    router::{MANAGED_BY, NAMESPACE},
};

/// The oldest Kubernetes that is supported, as major and minor. Pod Security admission, whose label lets the router's
/// privileged pods in, is stable since 1.25 (KEP-2579); before it a PodSecurityPolicy may silently keep them out. All else
/// that is used (server-side apply, DaemonSets) is older.
const OLDEST: (u32, u32) = (1, 25);

/// The Kubernetes that the tests run. Newer ones are supported too: only stable kinds of version v1 are used, which
/// Kubernetes does not remove within a major version.
const TESTED: (u32, u32) = (1, 34);

/// The label by which Pod Security admission judges a namespace.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// The DaemonSets that network plugins bring, as their own manifests name them.
const PLUGINS: &[(&str, &str)] = &[
    ("calico-node", "Calico"),
    ("canal", "Canal"),
    ("rke2-canal", "Canal"),
    ("cilium", "Cilium"),
    ("anetd", "GKE Dataplane V2"),
    ("kube-flannel-ds", "flannel"),
    ("kube-flannel", "flannel"),
    ("kindnet", "kindnet"),
    ("aws-node", "Amazon VPC CNI"),
    ("azure-cns", "Azure CNI"),
    ("antrea-agent", "Antrea"),
    ("weave-net", "Weave Net"),
    ("kube-router", "kube-router"),
    ("kube-ovn-cni", "Kube-OVN"),
    ("ovnkube-node", "OVN-Kubernetes"),
];

/// How many nodes a sentence names.
const NAMED: usize = 3;

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The version of Kubernetes.
    Version,
    /// The network plugin.
    Network,
    /// The nodes that routers run on.
    Nodes,
    /// Whether the router's namespace admits its pods.
    Admission,
    /// The default StorageClass.
    Storage,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// GuildNet works; a person should know.
    Warn,
    /// GuildNet can't work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub subject: Subject,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What to do about it; empty for a pass.
    pub hint: String,
}

/// What was read of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    version: String,
    nodes: Read<Vec<Node>>,
    /// Names of all DaemonSets.
    daemon_sets: Read<Vec<String>>,
    /// The name of the default StorageClass, if there is one.
    storage: Read<Option<String>>,
    /// The router's namespace.
    namespace: Read<Namespace>,
}

impl ApiServer {
    /// Reads what [`judge`] looks at. Changes nothing.
    ///
    /// # Errors
    /// [`KubeError`] if the server can't be asked.
    pub async fn facts(&self) -> Result<Facts, KubeError> {
        let (version, nodes, daemon_sets, storage, namespace) = tokio::join!(
            self.version(),
            self.try_read(|c| async move { Ok(Api::<Node>::all(c).list(&ListParams::default()).await?.items) }),
            self.try_read(|c| async move {
                let list = Api::<DaemonSet>::all(c).list_metadata(&ListParams::default()).await?;
                Ok(list.items.iter().map(kube::ResourceExt::name_any).collect())
            }),
            self.default_storage_class(),
            self.try_read(|c| async move { Api::<Namespace>::all(c).get(NAMESPACE).await }),
        );
        Ok(Facts {
            version: version?,
            nodes: nodes?,
            daemon_sets: daemon_sets?,
            storage: crate::read::sorted(storage)?,
            namespace: namespace?,
        })
    }
}

/// Judges what was read, one finding for each subject.
pub fn judge(facts: &Facts, cluster: &ClusterId) -> Vec<Finding> {
    vec![
        version(&facts.version),
        network(facts),
        nodes(&facts.nodes),
        admission(&facts.namespace, cluster),
        storage(facts),
    ]
}

impl Finding {
    fn pass(subject: Subject, seen: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Pass, seen: seen.into(), hint: String::new() }
    }

    fn warn(subject: Subject, seen: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Warn, seen: seen.into(), hint: hint.into() }
    }

    fn fail(subject: Subject, seen: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Fail, seen: seen.into(), hint: hint.into() }
    }

    fn unseen(subject: Subject, what: &str, why: &str) -> Self {
        Self::warn(
            subject,
            format!("{what} can't be looked at: {why}"),
            format!("give a kubeconfig whose user may read {what}"),
        )
    }
}

/// Major and minor of texts like `v1.34.4`, `v1.30.4+k3s1` and `v1.31.2-gke.1`.
fn number(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix('v')?.split(['.', '+', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn version(text: &str) -> Finding {
    let of = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    match number(text) {
        None => Finding::warn(
            Subject::Version,
            format!("its version is not understood: {text:?}"),
            format!("GuildNet supports Kubernetes {} and later", of(OLDEST)),
        ),
        Some(found) if found < OLDEST => Finding::fail(
            Subject::Version,
            format!("Kubernetes {text} is older than {}, the oldest that GuildNet supports", of(OLDEST)),
            format!("upgrade the cluster to Kubernetes {} or later", of(OLDEST)),
        ),
        Some(found) if found > TESTED => {
            Finding::pass(Subject::Version, format!("Kubernetes {text} (tested: {})", of(TESTED)))
        }
        Some(_) => Finding::pass(Subject::Version, format!("Kubernetes {text}")),
    }
}

fn network(facts: &Facts) -> Finding {
    let subject = Subject::Network;
    let nodes = facts.nodes.seen().map(Vec::as_slice).unwrap_or_default();
    let sets = facts.daemon_sets.seen().map(Vec::as_slice).unwrap_or_default();
    let mut plugins: Vec<&str> =
        PLUGINS.iter().filter(|(set, _)| sets.iter().any(|s| s == set)).map(|(_, name)| *name).collect();
    plugins.dedup();
    if plugins.is_empty() && nodes.iter().any(|n| n.annotations().contains_key(FLANNEL_ANNOTATION)) {
        plugins.push("flannel");
    }
    if !plugins.is_empty() {
        return Finding::pass(subject, format!("network by {}", plugins.join(" and ")));
    }
    if let Some(why) = facts.daemon_sets.refusal() {
        return Finding::unseen(subject, "the network plugin's DaemonSets", why);
    }
    if nodes.iter().any(|n| n.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some() || s.pod_cidrs.is_some())) {
        return Finding::pass(subject, "network plugin not recognised; its nodes have podCIDRs");
    }
    Finding::warn(
        subject,
        "its network plugin is not recognised and its nodes have no podCIDRs",
        "compare 'guildnet cluster show' with the addresses of 'kubectl get pods -A -o wide'; give others with --routes",
    )
}

fn nodes(read: &Read<Vec<Node>>) -> Finding {
    let subject = Subject::Nodes;
    let all = match read {
        Read::Seen(all) => all,
        Read::Refused { why } => return Finding::unseen(subject, "the nodes", why),
        Read::Absent => return Finding::unseen(subject, "the nodes", "the server does not know them"),
    };
    let (linux, others): (Vec<&Node>, Vec<&Node>) = all.iter().partition(|n| is_linux(n));
    let (ready, waiting): (Vec<&Node>, Vec<&Node>) = linux.iter().partition(|n| not_ready(n).is_none());
    let told = |some: &[&Node]| {
        let mut each: Vec<String> = some
            .iter()
            .take(NAMED)
            .map(|n| format!("{} ({})", n.name_any(), not_ready(n).unwrap_or_default()))
            .collect();
        if some.len() > NAMED {
            each.push(format!("and {} more", some.len() - NAMED));
        }
        each.join(", ")
    };
    let see = "see 'kubectl get nodes' and 'kubectl describe node'";
    if linux.is_empty() {
        let seen = if others.is_empty() { "it has no node" } else { "it has no Linux node for the router" };
        return Finding::fail(subject, seen, "join a Linux node to the cluster, then run the command again");
    }
    if ready.is_empty() {
        return Finding::fail(
            subject,
            format!("no Linux node is ready: {}", told(&waiting)),
            format!("{see}; a network plugin must be there"),
        );
    }
    if !waiting.is_empty() {
        return Finding::warn(
            subject,
            format!("{} of {} Linux nodes ready; not ready: {}", ready.len(), linux.len(), told(&waiting)),
            see,
        );
    }
    let rest =
        if others.is_empty() { String::new() } else { format!("; {} of another system run no router", others.len()) };
    Finding::pass(subject, format!("{} Linux node{} ready{rest}", ready.len(), if ready.len() == 1 { "" } else { "s" }))
}

/// A node that does not say what it is counts as Linux: the router's pod will tell.
fn is_linux(node: &Node) -> bool {
    let info = node.status.as_ref().and_then(|s| s.node_info.as_ref()).map(|i| i.operating_system.as_str());
    let label = node.labels().get("kubernetes.io/os").map(String::as_str);
    info.filter(|i| !i.is_empty()).or(label).is_none_or(|system| system == "linux")
}

/// Why a node is not ready; `None` if it is.
fn not_ready(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let Some(ready) = conditions.into_iter().flatten().find(|c| c.type_ == "Ready") else {
        return Some("it has not reported yet".to_owned());
    };
    if ready.status == "True" {
        return None;
    }
    let gone = |t: &Taint| t.key == "node.kubernetes.io/unreachable";
    if node.spec.as_ref().and_then(|s| s.taints.as_ref()).is_some_and(|taints| taints.iter().any(gone)) {
        return Some("unreachable".to_owned());
    }
    Some(ready.message.clone().or_else(|| ready.reason.clone()).unwrap_or_else(|| "not ready".to_owned()))
}

fn admission(read: &Read<Namespace>, cluster: &ClusterId) -> Finding {
    let subject = Subject::Admission;
    let namespace = match read {
        Read::Absent => {
            return Finding::pass(subject, format!("namespace {NAMESPACE} is to be made, for privileged pods"));
        }
        Read::Refused { why } => return Finding::unseen(subject, &format!("namespace {NAMESPACE}"), why),
        Read::Seen(namespace) => namespace,
    };
    let (label, value) = MANAGED_BY;
    let ours = namespace.labels().get(label).is_some_and(|v| v == value);
    match namespace.labels().get(ENFORCE).map(String::as_str) {
        Some("privileged") => Finding::pass(subject, format!("namespace {NAMESPACE} admits privileged pods")),
        Some(level) if !ours => Finding::fail(
            subject,
            format!("namespace {NAMESPACE} is somebody else's and admits {level} pods only; the router is privileged"),
            format!("remove or rename it, or: kubectl label namespace {NAMESPACE} {ENFORCE}=privileged --overwrite"),
        ),
        Some(level) => Finding::warn(
            subject,
            format!("namespace {NAMESPACE} was changed to admit {level} pods only: a new router pod would be refused"),
            format!("guildnet router ensure {cluster}"),
        ),
        None => Finding::pass(subject, format!("namespace {NAMESPACE} has no Pod Security level of its own")),
    }
}

fn storage(facts: &Facts) -> Finding {
    let subject = Subject::Storage;
    match &facts.storage {
        Read::Seen(Some(name)) => Finding::pass(subject, format!("default StorageClass {name}")),
        Read::Seen(None) | Read::Absent => Finding::warn(
            subject,
            "there is no default StorageClass: claims without a class stay pending",
            "kubectl annotate storageclass NAME storageclass.kubernetes.io/is-default-class=true",
        ),
        Read::Refused { why } => Finding::unseen(subject, "the StorageClasses", why),
    }
}

#[cfg(test)]
mod tests;
