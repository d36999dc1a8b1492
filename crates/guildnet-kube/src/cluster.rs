//! What a cluster says about itself: who it is, where its API server stands inside, its networks, its storage.
//!
//! Networks are taken from the two places where the API itself has them. Clusters whose network plugin keeps its own
//! Pod ranges are not understood here.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use guildnet_model::{Networks, NetworksError, Target};
use ipnet::Ipv4Net;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Service},
    networking::v1::ServiceCIDR,
    storage::v1::StorageClass,
};
use kube::{Api, api::ListParams};

use crate::{ApiServer, KubeError, error::KubeCause};

/// Marks the StorageClass that claims without a class get (`storage.k8s.io`, "default StorageClass").
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// Where a network was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkSource {
    /// A `ServiceCIDR` object.
    ServiceCidr(String),
    /// A node's `spec.podCIDRs`.
    Node(String),
}

impl fmt::Display for NetworkSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceCidr(name) => write!(f, "ServiceCIDR {name}"),
            Self::Node(name) => write!(f, "podCIDRs of node {name}"),
        }
    }
}

/// A network and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundNetwork {
    /// The network.
    pub net: Ipv4Net,
    /// Where it was found.
    pub source: NetworkSource,
}

/// The IPv4 networks that a cluster names itself. Empty lists: it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterNetworks {
    /// Service networks.
    pub services: Vec<FoundNetwork>,
    /// Pod networks: one for each node, so nodes that come later may lie outside.
    pub pods: Vec<FoundNetwork>,
}

impl ClusterNetworks {
    /// All of them as one list; neighbours are joined.
    ///
    /// # Errors
    /// [`NetworksError`] if there are none, or they can't be a cluster's.
    pub fn networks(&self) -> Result<Networks, NetworksError> {
        let all: Vec<Ipv4Net> = self.services.iter().chain(&self.pods).map(|found| found.net).collect();
        Networks::new(Ipv4Net::aggregate(&all))
    }
}

impl ApiServer {
    /// The cluster's identity: the UID of its `kube-system` namespace, which lives as long as the cluster.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn cluster_uid(&self) -> Result<String, KubeError> {
        let namespace =
            self.read(|client| async move { Api::<Namespace>::all(client).get_metadata("kube-system").await }).await?;
        namespace.metadata.uid.ok_or_else(|| self.unusable("the namespace kube-system has no UID"))
    }

    /// The API server's address inside the cluster: the `kubernetes` Service of the namespace `default`.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn api_address(&self) -> Result<Target, KubeError> {
        let service = self.service("default", "kubernetes").await?;
        let ip = self.cluster_ip(&service)?;
        let port = service
            .spec
            .and_then(|spec| spec.ports)
            .and_then(|ports| ports.into_iter().find(|p| p.name.as_deref() == Some("https")))
            .and_then(|port| u16::try_from(port.port).ok())
            .ok_or_else(|| self.unusable("the Service kubernetes has no port named https"))?;
        Ok(SocketAddr::new(ip, port).into())
    }

    /// The cluster IP of a Service.
    ///
    /// # Errors
    /// [`KubeError`]; [`KubeCause::NotFound`] if there is no such Service or it has no cluster IP.
    pub async fn service_cluster_ip(&self, namespace: &str, name: &str) -> Result<IpAddr, KubeError> {
        self.cluster_ip(&self.service(namespace, name).await?)
    }

    /// The name of the default StorageClass, if there is one.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn default_storage_class(&self) -> Result<Option<String>, KubeError> {
        let classes = self
            .read(|client| async move { Api::<StorageClass>::all(client).list_metadata(&ListParams::default()).await })
            .await?;
        let is_default = |class: &&kube::core::PartialObjectMeta<StorageClass>| {
            class.metadata.annotations.as_ref().and_then(|a| a.get(DEFAULT_CLASS)).is_some_and(|v| v == "true")
        };
        Ok(classes.items.iter().find(is_default).and_then(|class| class.metadata.name.clone()))
    }

    /// Pod and Service networks (IPv4), as far as the API names them: `ServiceCIDR` objects (Kubernetes 1.33 and
    /// later) and the nodes' `podCIDRs`.
    ///
    /// # Errors
    /// [`KubeError`]; a server without the `ServiceCIDR` API yields no Service networks, not an error.
    pub async fn discover_networks(&self) -> Result<ClusterNetworks, KubeError> {
        let (services, nodes) = tokio::join!(
            self.read(|client| async move { Api::<ServiceCIDR>::all(client).list(&ListParams::default()).await }),
            self.read(|client| async move { Api::<Node>::all(client).list(&ListParams::default()).await }),
        );
        let services = match services {
            Err(KubeError { cause: KubeCause::NotFound { .. }, .. }) => Vec::new(),
            other => other?.items,
        };
        let services = services.into_iter().flat_map(|object| {
            let source = NetworkSource::ServiceCidr(object.metadata.name.unwrap_or_default());
            found(object.spec.and_then(|spec| spec.cidrs).unwrap_or_default(), source)
        });
        let pods = nodes?.items.into_iter().flat_map(|node| {
            let source = NetworkSource::Node(node.metadata.name.unwrap_or_default());
            found(node.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default(), source)
        });
        Ok(ClusterNetworks { services: services.collect(), pods: pods.collect() })
    }

    async fn service(&self, namespace: &str, name: &str) -> Result<Service, KubeError> {
        self.read(|client| async move { Api::<Service>::namespaced(client, namespace).get(name).await }).await
    }

    fn cluster_ip(&self, service: &Service) -> Result<IpAddr, KubeError> {
        let text = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
        text.parse().map_err(|_| {
            let name = service.metadata.name.as_deref().unwrap_or_default();
            self.error(KubeCause::NotFound { what: format!("the Service {name} has no cluster IP") })
        })
    }

    fn unusable(&self, why: &str) -> KubeError {
        self.error(KubeCause::Answer { why: why.to_owned() })
    }
}

/// The IPv4 networks among `cidrs`; a dual-stack cluster lists IPv6 ones too.
fn found(cidrs: Vec<String>, source: NetworkSource) -> impl Iterator<Item = FoundNetwork> {
    cidrs
        .into_iter()
        .filter_map(|cidr| cidr.parse::<Ipv4Net>().ok())
        .map(move |net| FoundNetwork { net: net.trunc(), source: source.clone() })
}

#[cfg(test)]
mod tests;
