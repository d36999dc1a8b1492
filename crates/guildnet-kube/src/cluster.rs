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
