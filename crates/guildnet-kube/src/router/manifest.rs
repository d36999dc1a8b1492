//! The router's Kubernetes objects, from a plan. Pure.
//!
//! The image is Tailscale's `containerboot`, which starts `tailscaled`, joins with the key, switches IP forwarding on
//! for the routes it is given, and exits when the membership is lost. Its settings are environment variables,
//! documented at the top of `cmd/containerboot/main.go` of the version in `DEFAULT_IMAGE`.

use std::{collections::BTreeMap, fmt::Write as _};

use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet},
        core::v1::{
            Capabilities, ConfigMap, ConfigMapVolumeSource, Container, EnvVar, EnvVarSource, HTTPGetAction,
            HostPathVolumeSource, Namespace, ObjectFieldSelector, PodSpec, PodTemplateSpec, Probe,
            ResourceRequirements, Secret, SecretKeySelector, SecurityContext, ServiceAccount, Toleration, Volume,
            VolumeMount,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{DAEMON_SET, NAMESPACE, RouterPlan};

/// Says whose an object is: only objects with it are ever overwritten by force, or removed.
pub(crate) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "guildnet");

/// The label that names the GuildNet cluster id.
pub(super) const CLUSTER_LABEL: &str = "guildnet.dev/cluster";

/// What the DaemonSet selects its pods by. A selector can't be changed later, so it holds the name alone.
const NAME_LABEL: (&str, &str) = ("app.kubernetes.io/name", DAEMON_SET);

/// The container, for its log and its status.
pub(super) const CONTAINER: &str = "tailscale";

/// The preauth key's Secret, and its only entry.
const KEY_SECRET: (&str, &str) = ("guildnet-router-key", "authkey");

/// The ConfigMap with the certificate authority, its only entry, and where it is mounted.
const CA_MAP: (&str, &str) = ("guildnet-router-ca", "ca.crt");
const CA_FOLDER: &str = "/etc/guildnet/ca";

/// The router's ServiceAccount: it has no rights, and its token isn't mounted.
const ACCOUNT: &str = "guildnet-router";

/// The device that a kernel-mode router needs.
pub(super) const TUN: &str = "/dev/net/tun";

/// Where the identity lives in the container; a folder for each node and login server lies below.
const STATE_FOLDER: &str = "/var/lib/tailscale";

/// The port of containerboot's `/healthz`; only the kubelet asks it.
const HEALTH_PORT: u16 = 9002;

/// One Kubernetes object of the router.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest(pub(super) Object);

/// The kinds that there are. Typed, so that a misspelt field does not compile, and printed in the order of Kubernetes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "five short-lived values, handed over once")]
pub(super) enum Object {
    Namespace(Namespace),
    ServiceAccount(ServiceAccount),
    ConfigMap(ConfigMap),
    Secret(Secret),
    DaemonSet(DaemonSet),
}

impl Manifest {
    /// `Kind/name`, for messages.
    pub fn title(&self) -> String {
        let (kind, meta) = match &self.0 {
            Object::Namespace(o) => ("Namespace", &o.metadata),
            Object::ServiceAccount(o) => ("ServiceAccount", &o.metadata),
            Object::ConfigMap(o) => ("ConfigMap", &o.metadata),
            Object::Secret(o) => ("Secret", &o.metadata),
            Object::DaemonSet(o) => ("DaemonSet", &o.metadata),
        };
        format!("{kind}/{}", meta.name.as_deref().unwrap_or_default())
    }
}

/// The router's objects, in the order in which they are to be applied. Equal plans give equal objects.
///
/// Without a key in the plan there is no Secret: the DaemonSet takes it as optional, so that an existing one is used.
pub fn manifests(plan: &RouterPlan) -> Vec<Manifest> {
    let mut all = vec![Object::Namespace(namespace(plan)), Object::ServiceAccount(account(plan))];
    all.extend(plan.ca_pem.as_ref().map(|pem| Object::ConfigMap(authority(plan, pem))));
    all.extend(plan.auth_key.as_ref().map(|key| Object::Secret(key_secret(plan, key.expose()))));
    all.push(Object::DaemonSet(daemon_set(plan)));
    all.into_iter().map(Manifest).collect()
}

/// The objects as YAML, for `kubectl apply --server-side --field-manager guildnet -f -` on the cluster's own side. The
/// key is in it only if `with_key`.
pub fn manifests_yaml(plan: &RouterPlan, with_key: bool) -> String {
    let plan = RouterPlan { auth_key: plan.auth_key.clone().filter(|_| with_key), ..plan.clone() };
    let mut yaml = String::new();
    for Manifest(object) in manifests(&plan) {
        let text = serde_saphyr::to_string(&object).expect("Kubernetes objects are plain maps, lists and texts");
        write!(yaml, "---\n{}\n", text.trim_end()).expect("a String takes any write");
    }
    yaml
}

fn map<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
    entries.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn meta(plan: &RouterPlan, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        labels: Some(map([MANAGED_BY, NAME_LABEL, (CLUSTER_LABEL, plan.cluster.as_str())])),
        ..ObjectMeta::default()
    }
}

fn namespace(plan: &RouterPlan) -> Namespace {
    let mut metadata = meta(plan, NAMESPACE);
    metadata.namespace = None;
    // The router is privileged: without these a cluster that enforces a stricter default refuses its pods.
    let admission = ["enforce", "audit", "warn"].map(|mode| format!("pod-security.kubernetes.io/{mode}"));
    metadata.labels.get_or_insert_default().extend(admission.into_iter().map(|mode| (mode, "privileged".to_owned())));
    Namespace { metadata, ..Namespace::default() }
}

fn account(plan: &RouterPlan) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(plan, ACCOUNT),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

fn authority(plan: &RouterPlan, pem: &str) -> ConfigMap {
    ConfigMap { metadata: meta(plan, CA_MAP.0), data: Some(map([(CA_MAP.1, pem)])), ..ConfigMap::default() }
}

fn key_secret(plan: &RouterPlan, key: &str) -> Secret {
    Secret {
        metadata: meta(plan, KEY_SECRET.0),
        data: Some([(KEY_SECRET.1.to_owned(), ByteString(key.as_bytes().to_vec()))].into()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

fn daemon_set(plan: &RouterPlan) -> DaemonSet {
    DaemonSet {
        metadata: meta(plan, DAEMON_SET),
        spec: Some(DaemonSetSpec {
            selector: LabelSelector { match_labels: Some(map([NAME_LABEL])), ..LabelSelector::default() },
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDaemonSet {
                    // One at a time: the other nodes' routers carry the cluster meanwhile.
                    max_unavailable: Some(IntOrString::Int(1)),
                    ..RollingUpdateDaemonSet::default()
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(map([MANAGED_BY, NAME_LABEL, (CLUSTER_LABEL, plan.cluster.as_str())])),
                    // Mounted files change without the process noticing: another authority has to start new pods. The
                    // key is not part of it: a router that has joined keeps its place without one.
                    annotations: plan.ca_pem.as_ref().map(|pem| map([("guildnet.dev/ca-sha256", &hash(pem, 64))])),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(plan)),
            },
            ..DaemonSetSpec::default()
        }),
        ..DaemonSet::default()
    }
}

fn pod(plan: &RouterPlan) -> PodSpec {
    PodSpec {
        service_account_name: Some(ACCOUNT.to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        node_selector: Some(map([("kubernetes.io/os", "linux")])),
        // Every node's pods are to be reached, the control plane's too.
        tolerations: Some(vec![Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() }]),
        termination_grace_period_seconds: Some(10),
        containers: vec![container(plan)],
        volumes: Some(volumes(plan)),
        ..PodSpec::default()
    }
}

fn container(plan: &RouterPlan) -> Container {
    Container {
        name: CONTAINER.to_owned(),
        image: Some(plan.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        env: Some(environment(plan)),
        security_context: Some(SecurityContext {
            // Forwarding is a setting of the pod's network namespace, and /proc/sys is read-only for anything less.
            privileged: Some(true),
            capabilities: Some(Capabilities { add: Some(vec!["NET_ADMIN".to_owned()]), ..Capabilities::default() }),
            ..SecurityContext::default()
        }),
        // Ready means joined: containerboot answers 200 once this start of it has an address from the login server.
        readiness_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/healthz".to_owned()),
                port: IntOrString::Int(HEALTH_PORT.into()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(2),
            timeout_seconds: Some(2),
            failure_threshold: Some(3),
            ..Probe::default()
        }),
        resources: Some(ResourceRequirements {
            requests: Some(
                [("cpu", "20m"), ("memory", "64Mi")].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into(),
            ),
            ..ResourceRequirements::default()
        }),
        volume_mounts: Some(mounts(plan)),
        ..Container::default()
    }
}

fn environment(plan: &RouterPlan) -> Vec<EnvVar> {
    let routes = plan.routes.as_slice().iter().map(ToString::to_string);
    let routes: Vec<_> = routes.chain(plan.site_routes.iter().map(ToString::to_string)).collect();
    let server = plan.login_server.as_str().trim_end_matches('/');
    let mut all = vec![
        from_field("NODE_NAME", "spec.nodeName"),
        from_field("POD_IP", "status.podIP"),
        from_field("POD_IPS", "status.podIPs"),
        EnvVar {
            name: "TS_AUTHKEY".to_owned(),
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: KEY_SECRET.0.to_owned(),
                    key: KEY_SECRET.1.to_owned(),
                    optional: Some(true),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        },
        // Join at each start, not only the first time: a router whose node was removed on the server, or whose server
        // was set up anew, would otherwise run on with what it remembers. For a node that the server knows, it accepts
        // an expired key too (seen with Headscale 0.29.2), so a restart is the same node.
        set("TS_AUTH_ONCE", "false"),
        set("TS_EXTRA_ARGS", format!("--login-server={server}")),
        set("TS_HOSTNAME", format!("{}-$(NODE_NAME)", plan.hostname)),
        set("TS_ROUTES", routes.join(",")),
        // One identity for each node and login server: another server means another node, not a confused one.
        set("TS_STATE_DIR", format!("{STATE_FOLDER}/$(NODE_NAME)-{}", hash(server, 8))),
        // In the kernel: forwarding at full speed.
        set("TS_USERSPACE", "false"),
        // Cluster DNS stays as it is.
        set("TS_ACCEPT_DNS", "false"),
        // Empty: the state is in the folder, not in a Secret that the pod would need rights for.
        EnvVar { name: "TS_KUBE_SECRET".to_owned(), ..EnvVar::default() },
        // The image may lack iptables; nftables is spoken without a program.
        set("TS_DEBUG_FIREWALL_MODE", "nftables"),
        set("TS_ENABLE_HEALTH_CHECK", "true"),
        set("TS_LOCAL_ADDR_PORT", format!("$(POD_IP):{HEALTH_PORT}")),
        // Nothing is sent to anybody but the login server and its relays.
        set("TS_NO_LOGS_NO_SUPPORT", "true"),
    ];
    if plan.ca_pem.is_some() {
        all.push(set("SSL_CERT_FILE", format!("{CA_FOLDER}/{}", CA_MAP.1)));
    }
    all
}

fn set(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), ..EnvVar::default() }
}

fn from_field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            // The version is written out: the server would fill it in, and own it.
            field_ref: Some(ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path.to_owned() }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn mounts(plan: &RouterPlan) -> Vec<VolumeMount> {
    let at = |name: &str, path: &str, read_only: Option<bool>| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only,
        ..VolumeMount::default()
    };
    let mut all = vec![at("state", STATE_FOLDER, None), at("tun", TUN, None)];
    all.extend(plan.ca_pem.as_ref().map(|_| at("ca", CA_FOLDER, Some(true))));
    all
}

fn volumes(plan: &RouterPlan) -> Vec<Volume> {
    let host = |name: &str, path: String, kind: &str| Volume {
        name: name.to_owned(),
        host_path: Some(HostPathVolumeSource { path, type_: Some(kind.to_owned()) }),
        ..Volume::default()
    };
    let mut all = vec![
        host("state", format!("/var/lib/guildnet/router-{}", plan.cluster), "DirectoryOrCreate"),
        // As a requirement: a node without the device says so in an event, by name.
        host("tun", TUN.to_owned(), "CharDevice"),
    ];
    all.extend(plan.ca_pem.as_ref().map(|_| Volume {
        name: "ca".to_owned(),
        config_map: Some(ConfigMapVolumeSource { name: CA_MAP.0.to_owned(), ..ConfigMapVolumeSource::default() }),
        ..Volume::default()
    }));
    all
}

/// The first `digits` hexadecimal digits of a text's SHA-256.
fn hash(text: &str, digits: usize) -> String {
    let mut hex = Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a String takes any write");
        hex
    });
    hex.truncate(digits);
    hex
}

/// Objects that are ours by name, in the order of removal; the namespace comes last.
pub(super) const OWNED: [(&str, &str); 4] =
    [("DaemonSet", DAEMON_SET), ("Secret", KEY_SECRET.0), ("ConfigMap", CA_MAP.0), ("ServiceAccount", ACCOUNT)];

#[cfg(test)]
mod tests;
