//! Settings files and command lines of a cluster's programs. Pure text; `cluster.rs` writes and starts them.
//!
//! Paths below `/var/lib`, `/var/log` and `/run` are the node's own (see `launch.rs`).

use crate::{
    images::Images,
    peers::Peers,
    plan::{API_PORT, API_SERVICE, ClusterPlan, DNS_SERVICE, NODE_ADDRESS, POD_NETWORK, Plan, SERVICE_NETWORK},
    process::Spec,
};

/// The container runtime's socket, as the node sees it.
pub(crate) const RUNTIME: &str = "/run/containerd/containerd.sock";

/// One program of a cluster: its name, where it comes from, its arguments.
pub(super) fn spec(cluster: &ClusterPlan, name: &str, program: std::path::PathBuf, args: &[String]) -> Spec {
    Spec {
        name: cluster.process(name),
        program,
        args: args.to_vec(),
        env: vec![],
        netns: Some(cluster.node_ns.clone()),
        holder: Some(cluster.process("node")),
        cgroup: format!("{}/daemons", cluster.cgroup),
    }
}

/// The holder of the node's view of the file system.
pub(crate) fn node(plan: &Plan, cluster: &ClusterPlan) -> Spec {
    let root = &cluster.data_dir;
    let args = [
        "hold-node".into(),
        format!("--root={}", root.display()),
        format!("--hostname={}", cluster.node_name),
        format!("--ready={}", root.join("ready").display()),
    ];
    Spec { holder: None, ..spec(cluster, "node", crate::process::launcher(plan), &args) }
}

pub(crate) fn etcd(cluster: &ClusterPlan, peers: &Peers) -> Spec {
    let args = [
        "--name=default",
        "--data-dir=/var/lib/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
        // A lab that loses its power is made again.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ];
    spec(cluster, "etcd", peers.program("etcd", "etcd"), &args.map(String::from))
}

pub(crate) fn api_server(cluster: &ClusterPlan, peers: &Peers) -> Spec {
    let file = |name: &str| cluster.file(name).display().to_string();
    let args = [
        format!("--advertise-address={NODE_ADDRESS}"),
        format!("--secure-port={API_PORT}"),
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        format!("--client-ca-file={}", file("ca.pem")),
        format!("--tls-cert-file={}", file("apiserver.pem")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--kubelet-certificate-authority={}", file("ca.pem")),
        format!("--kubelet-client-certificate={}", file("apiserver-kubelet.pem")),
        format!("--kubelet-client-key={}", file("apiserver-kubelet.key")),
        // Without it, logs and exec look the node's name up and fail.
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file("service-accounts.pub")),
        format!("--service-account-signing-key-file={}", file("service-accounts.key")),
        "--cert-dir=/var/lib/kube-apiserver".into(),
        "--profiling=false".into(),
    ];
    spec(cluster, "kube-apiserver", peers.program("kubernetes", "kube-apiserver"), &args)
}

pub(crate) fn controller_manager(cluster: &ClusterPlan, peers: &Peers) -> Spec {
    let file = |name: &str| cluster.file(name).display().to_string();
    let args = [
        format!("--kubeconfig={}", file("controller-manager.kubeconfig")),
        "--allocate-node-cidrs=true".into(),
        format!("--cluster-cidr={POD_NETWORK}"),
        format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
        format!("--root-ca-file={}", file("ca.pem")),
        format!("--cluster-signing-cert-file={}", file("ca.pem")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        format!("--service-account-private-key-file={}", file("service-accounts.key")),
        "--use-service-account-credentials=true".into(),
        "--leader-elect=false".into(),
        "--cert-dir=/var/lib/kube-controller-manager".into(),
    ];
    spec(cluster, "kube-controller-manager", peers.program("kubernetes", "kube-controller-manager"), &args)
}

pub(crate) fn scheduler(cluster: &ClusterPlan, peers: &Peers) -> Spec {
    let args = [
        format!("--kubeconfig={}", cluster.file("scheduler.kubeconfig").display()),
        "--leader-elect=false".into(),
        "--cert-dir=/var/lib/kube-scheduler".into(),
    ];
    spec(cluster, "kube-scheduler", peers.program("kubernetes", "kube-scheduler"), &args)
}

pub(crate) fn proxy(cluster: &ClusterPlan, peers: &Peers) -> Spec {
    let args = [
        format!("--kubeconfig={}", cluster.file("proxy.kubeconfig").display()),
        format!("--hostname-override={}", cluster.node_name),
        format!("--cluster-cidr={POD_NETWORK}"),
        "--proxy-mode=iptables".into(),
        // Limits of the whole machine: not a lab's to set.
        "--conntrack-max-per-core=0".into(),
        "--conntrack-min=0".into(),
    ];
    spec(cluster, "kube-proxy", peers.program("kubernetes", "kube-proxy"), &args)
}

pub(crate) fn containerd(cluster: &ClusterPlan) -> Spec {
    let args = [format!("--config={}", cluster.file("containerd.toml").display())];
    spec(cluster, "containerd", "/usr/bin/containerd".into(), &args)
}

pub(crate) fn kubelet(cluster: &ClusterPlan, peers: &Peers) -> Spec {
    let args = [
        format!("--config={}", cluster.file("kubelet.yaml").display()),
        format!("--kubeconfig={}", cluster.file("kubelet.kubeconfig").display()),
        format!("--hostname-override={}", cluster.node_name),
        format!("--node-ip={NODE_ADDRESS}"),
        "--root-dir=/var/lib/kubelet".into(),
        "--cert-dir=/var/lib/kubelet/pki".into(),
    ];
    spec(cluster, "kubelet", peers.program("kubernetes", "kubelet"), &args)
}

pub(crate) fn containerd_config(cluster: &ClusterPlan, images: &Images) -> String {
    let cni = cluster.file("cni");
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{RUNTIME}"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Root without CAP_SYS_RESOURCE may not lower a score.
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"#,
        pause = images.pause,
        cni = cni.display(),
    )
}

/// Pods' network: a bridge on the node, masqueraded beyond the cluster.
pub(crate) fn cni_config() -> String {
    // The one node of a cluster always gets the first /24 of the pods' network.
    r#"{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{ "subnet": "10.244.0.0/24" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
"#
    .into()
}

pub(crate) fn kubelet_config(cluster: &ClusterPlan) -> String {
    let file = |name: &str| cluster.file(name).display().to_string();
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {NODE_ADDRESS}
authentication:
  anonymous:
    enabled: false
  webhook:
    enabled: true
  x509:
    clientCAFile: {ca}
authorization:
  mode: Webhook
tlsCertFile: {cert}
tlsPrivateKeyFile: {key}
containerRuntimeEndpoint: unix://{RUNTIME}
clusterDNS: [{DNS_SERVICE}]
clusterDomain: cluster.local
resolvConf: {resolv}
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}/pods
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
localStorageCapacityIsolation: false
podLogsDir: /var/log/pods
volumePluginDir: /var/lib/kubelet/volume-plugins
registerWithTaints: []
# The machine's disk is not the lab's to judge.
evictionHard:
  imagefs.available: 0%
  nodefs.available: 0%
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
shutdownGracePeriod: 0s
",
        ca = file("ca.pem"),
        cert = file("kubelet.pem"),
        key = file("kubelet.key"),
        resolv = file("resolv.conf"),
        cgroup = cluster.cgroup,
    )
}

/// What is applied to a new cluster: DNS, a default StorageClass, the echo workload.
pub(crate) fn manifests(cluster: &ClusterPlan, images: &Images) -> String {
    concat!(include_str!("manifests.yaml"), "---\n", include_str!("storage.yaml"))
        .replace("${CLUSTER}", &cluster.id)
        .replace("${COREDNS}", &images.coredns)
        .replace("${ECHO}", &images.echo)
        .replace("${DNS_SERVICE}", &DNS_SERVICE.to_string())
        .replace("${ECHO_SERVICE}", &crate::plan::ECHO_SERVICE.to_string())
}

/// Names that the API server's certificate bears, besides its addresses.
pub(crate) const API_NAMES: [&str; 5] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"];

/// Addresses by which the API server is reached: the door's, the node's, the Service's, its own.
pub(crate) fn api_addresses(cluster: &ClusterPlan) -> [std::net::IpAddr; 4] {
    [cluster.outer, NODE_ADDRESS, API_SERVICE, std::net::Ipv4Addr::LOCALHOST].map(std::net::IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterPlan {
        let plan = Plan::sample(&["a"]);
        plan.cluster("a").expect("it is there")
    }

    fn images() -> Images {
        Images { all: vec![], pause: "pause:1".into(), echo: "echo:1".into(), coredns: "coredns:1".into() }
    }

    #[test]
    fn the_door_is_in_the_certificate() {
        let addresses = api_addresses(&cluster()).map(|ip| ip.to_string());
        assert_eq!(addresses, ["10.99.0.11", "192.168.77.10", "10.96.0.1", "127.0.0.1"]);
    }

    #[test]
    fn containerd_settings() {
        insta::assert_snapshot!(containerd_config(&cluster(), &images()));
    }

    #[test]
    fn kubelet_settings() {
        insta::assert_snapshot!(kubelet_config(&cluster()));
    }

    #[test]
    fn api_server_arguments() {
        insta::assert_snapshot!(api_server(&cluster(), &Peers(std::collections::BTreeMap::new())).args.join("\n"));
    }

    #[test]
    fn every_place_in_the_manifests_is_filled() {
        let text = manifests(&cluster(), &images());
        assert!(!text.contains("${"), "{text}");
        assert!(text.contains("value: a\n") && text.contains("clusterIP: 10.96.0.80"), "{text}");
    }
}
