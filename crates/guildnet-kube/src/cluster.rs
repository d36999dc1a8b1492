//! What a cluster says about itself: who it is, where its API server stands inside, its storage. Its networks:
//! `networks.rs`.

use std::net::{IpAddr, SocketAddr};

use guildnet_model::Target;
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    storage::v1::StorageClass,
};
use kube::{Api, api::ListParams};

use crate::{ApiServer, KubeError, error::KubeCause};

/// Marks the StorageClass that claims without a class get (`storage.k8s.io`, "default StorageClass").
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// Where a cluster's own DNS lives.
const DNS_NAMESPACE: &str = "kube-system";

/// The port of DNS, over UDP and TCP alike (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

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

    /// Where the cluster's DNS answers over TCP: the Service `kube-dns` of the namespace `kube-system`, or one there that is
    /// labelled `k8s-app=kube-dns`. `None` if there is neither, or it has no cluster IP.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn dns_address(&self) -> Result<Option<Target>, KubeError> {
        let named = match self.service(DNS_NAMESPACE, "kube-dns").await {
            Ok(service) => return Ok(self.dns_of(&service)),
            Err(KubeError { cause: KubeCause::NotFound { .. }, .. }) => None,
            // Who may not read this one may still be allowed to list.
            Err(e @ KubeError { cause: KubeCause::Forbidden { .. }, .. }) => Some(e),
            Err(e) => return Err(e),
        };
        let labelled = self
            .read(|client| async move {
                let params = ListParams::default().labels("k8s-app=kube-dns");
                Api::<Service>::namespaced(client, DNS_NAMESPACE).list(&params).await
            })
            .await;
        match (labelled, named) {
            (Ok(list), _) => Ok(list.items.iter().find_map(|service| self.dns_of(service))),
            (Err(_), Some(refused)) => Err(refused),
            (Err(e), None) => Err(e),
        }
    }

    /// The DNS behind a Service, at the port that it calls `dns-tcp`, else at DNS's own.
    fn dns_of(&self, service: &Service) -> Option<Target> {
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        let named = ports.iter().find(|p| p.name.as_deref() == Some("dns-tcp"));
        let port = named.and_then(|p| u16::try_from(p.port).ok()).filter(|port| *port > 0).unwrap_or(DNS_PORT);
        Some(SocketAddr::new(self.cluster_ip(service).ok()?, port).into())
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

#[cfg(test)]
mod tests;
