//! Reads what may name a cluster's networks. Each read may be refused; only a server that can't be asked is an error.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Node, Service, ServicePort, ServiceSpec},
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams},
};
use serde_json::Value;

use super::{ClusterNetworks, Objects, found};
use crate::{ApiServer, KubeError, error::KubeCause, read::Read};

/// An address that no cluster gives to a Service: it is set aside for documentation (RFC 5737, TEST-NET-1).
const IMPOSSIBLE: &str = "192.0.2.1";

/// Where flannel's own manifests put its configuration, newest first.
const FLANNEL_PLACES: [&str; 2] = ["kube-flannel", "kube-system"];

/// Where each version of Calico keeps its pools: its own storage, and the API that newer ones serve natively.
const CALICO_POOLS: [(&str, &str); 2] = [("crd.projectcalico.org", "v1"), ("projectcalico.org", "v3")];

/// Versions of Cilium's pools, newest first.
const CILIUM_POOLS: [(&str, &str); 2] = [("cilium.io", "v2"), ("cilium.io", "v2alpha1")];

impl ApiServer {
    /// The cluster's Pod and Service networks (IPv4), from whatever of it names them. Changes nothing: the Service that
    /// the API server is asked for, where nothing else tells, is a dry-run.
    ///
    /// # Errors
    /// [`KubeError`] if the server can't be asked. What it does not let this account read stands in
    /// [`ClusterNetworks::unread`].
    pub async fn discover_networks(&self) -> Result<ClusterNetworks, KubeError> {
        let (service_cidrs, kubeadm, nodes, calico_pools, cilium, cilium_nodes, cilium_pools, flannel) = tokio::join!(
            self.try_read(|c| async move { Ok(Api::<ServiceCIDR>::all(c).list(&ListParams::default()).await?.items) }),
            self.config_map("kube-system", "kubeadm-config"),
            self.try_read(|c| async move { Ok(Api::<Node>::all(c).list(&ListParams::default()).await?.items) }),
            self.first_kind(&CALICO_POOLS, "IPPool", "ippools"),
            self.config_map("kube-system", "cilium-config"),
            self.first_kind(&[("cilium.io", "v2")], "CiliumNode", "ciliumnodes"),
            self.first_kind(&CILIUM_POOLS, "CiliumPodIPPool", "ciliumpodippools"),
            self.flannel(),
        );
        let mut objects = Objects {
            service_cidrs: service_cidrs?,
            kubeadm: kubeadm?,
            nodes: nodes?,
            calico_pools: calico_pools?,
            cilium: cilium?,
            cilium_nodes: cilium_nodes?,
            cilium_pools: cilium_pools?,
            flannel: flannel?,
            refusal: Read::Absent,
        };
        if !objects.name_services() {
            objects.refusal = self.impossible_service().await?;
        }
        Ok(found(&objects))
    }

    async fn config_map(&self, namespace: &str, name: &str) -> Result<Read<ConfigMap>, KubeError> {
        self.try_read(|c| async move { Api::<ConfigMap>::namespaced(c, namespace).get(name).await }).await
    }

    async fn flannel(&self) -> Result<Read<ConfigMap>, KubeError> {
        let mut last = Read::Absent;
        for namespace in FLANNEL_PLACES {
            match self.config_map(namespace, "kube-flannel-cfg").await? {
                Read::Absent => {}
                Read::Seen(map) => return Ok(Read::Seen(map)),
                refused @ Read::Refused { .. } => last = refused,
            }
        }
        Ok(last)
    }

    /// The objects of a kind that an extension may have brought, of the first version that there is.
    async fn first_kind(
        &self,
        versions: &[(&str, &str)],
        kind: &str,
        plural: &str,
    ) -> Result<Read<Vec<Value>>, KubeError> {
        let mut last = Read::Absent;
        for (group, version) in versions {
            let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
            let read = self.try_read(|c| {
                let resource = &resource;
                async move { Ok(Api::<DynamicObject>::all_with(c, resource).list(&ListParams::default()).await?.items) }
            });
            match read.await? {
                Read::Absent => {}
                Read::Refused { why } => last = Read::Refused { why },
                Read::Seen(list) => {
                    let plain = |object: DynamicObject| {
                        let mut value = object.data;
                        value["metadata"]["name"] = object.metadata.name.into();
                        value
                    };
                    return Ok(Read::Seen(list.into_iter().map(plain).collect()));
                }
            }
        }
        Ok(last)
    }

    /// What the API server says to a Service that wants [`IMPOSSIBLE`]. Nothing is made, whatever it says.
    async fn impossible_service(&self) -> Result<Read<String>, KubeError> {
        let port = ServicePort { port: 443, ..ServicePort::default() };
        let spec = ServiceSpec {
            cluster_ip: Some(IMPOSSIBLE.to_owned()),
            ports: Some(vec![port]),
            selector: Some(BTreeMap::new()),
            ..ServiceSpec::default()
        };
        let metadata = ObjectMeta { name: Some("guildnet-network-probe".to_owned()), ..ObjectMeta::default() };
        let service = Service { metadata, spec: Some(spec), status: None };
        let how = PostParams { dry_run: true, ..PostParams::default() };
        let answer =
            self.write(|c| async move { Api::<Service>::namespaced(c, "default").create(&how, &service).await }).await;
        match answer {
            // The address is one of this cluster's: no range is told.
            Ok(_) => Ok(Read::Absent),
            Err(KubeError { cause: KubeCause::Refused { code: 422, message }, .. }) => Ok(Read::Seen(message)),
            Err(e) => crate::read::sorted(Err(e)),
        }
    }
}
