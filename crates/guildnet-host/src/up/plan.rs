//! The input of `up`, read and checked whole before anything is changed anywhere.

use std::collections::BTreeMap;

use guildnet_kube::{Allow, ClusterAccess, Kubeconfig};
use guildnet_model::{Class, ClusterId, Networks};

use super::{KubeconfigRef, UpRequest};
use crate::{HostError, Settings, error::Explained as _};

/// A cluster that is to be set up: its input is well formed.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) id: ClusterId,
    pub(crate) access: ClusterAccess,
    /// Networks, if they were given.
    pub(crate) routes: Option<Networks>,
}

/// Reads all kubeconfigs and checks them against each other.
///
/// # Errors
/// The first thing that is wrong, naming the cluster.
pub(crate) fn read(settings: &Settings, request: &UpRequest) -> Result<Vec<Asked>, HostError> {
    let mut wanted: Vec<Asked> = Vec::with_capacity(request.clusters.len());
    for (id, file) in &request.clusters {
        if wanted.iter().any(|w| w.id == *id) {
            return Err(HostError::new(Class::Usage, format!("cluster {id} is named twice"))
                .with_hint("give every cluster its own id: --cluster ID=KUBECONFIG"));
        }
        let access = access(settings, file).map_err(|e| e.of_cluster(id))?;
        wanted.push(Asked {
            id: id.clone(),
            access,
            routes: request.routes.clone().or_else(|| settings.routes.clone()),
        });
    }
    let servers = wanted.iter().map(|w| (w.access.server().to_string(), w.id.clone()));
    distinct(servers, "have the same API server address")?;
    Ok(wanted)
}

/// The credential behind a kubeconfig.
///
/// # Errors
/// The file, the context, or what the kubeconfig asks for is refused.
pub(crate) fn access(settings: &Settings, file: &KubeconfigRef) -> Result<ClusterAccess, HostError> {
    let allow = Allow { files: settings.allow_files, programs: settings.allow_exec.clone() };
    let kubeconfig = match &file.content {
        Some(content) => Kubeconfig::parse(&file.path, content),
        None => Kubeconfig::read(&file.path),
    };
    let kubeconfig = kubeconfig.explained()?;
    kubeconfig.access(file.context.as_deref(), &allow).explained()
}

/// Refuses two ids that share what only one cluster can have.
///
/// # Errors
/// The first two ids that do.
pub(crate) fn distinct(marks: impl IntoIterator<Item = (String, ClusterId)>, what: &str) -> Result<(), HostError> {
    let mut seen: BTreeMap<String, ClusterId> = BTreeMap::new();
    for (mark, id) in marks {
        match seen.get(&mark) {
            Some(other) if *other != id => {
                return Err(HostError::new(
                    Class::Conflict,
                    format!("clusters {other} and {id} {what}: they are one cluster"),
                )
                .with_hint(format!("name it once; to rename it: guildnet cluster remove {other}")));
            }
            _ => {
                seen.insert(mark, id);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;
    use crate::Consent;

    fn kubeconfig(server: &str) -> tempfile::NamedTempFile {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n\
             clusters: [{{name: x, cluster: {{server: '{server}'}}}}]\nusers: [{{name: x, user: {{token: t}}}}]\n"
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    fn read_all(clusters: &[(&str, &tempfile::NamedTempFile)]) -> Result<Vec<Asked>, HostError> {
        let cluster = |(id, file): &(&str, &tempfile::NamedTempFile)| {
            (id.parse().expect("an id"), KubeconfigRef { path: file.path().to_owned(), context: None, content: None })
        };
        let clusters = clusters.iter().map(cluster).collect();
        let request = UpRequest { clusters, routes: None, consent: Consent::default(), start_host: true, verify: true };
        read(&Settings::new("/nonexistent".into()), &request)
    }

    #[test]
    fn two_clusters_are_read() {
        let (a, b) = (kubeconfig("https://192.0.2.1:6443"), kubeconfig("https://192.0.2.2:6443"));
        assert_eq!(read_all(&[("a", &a), ("b", &b)]).expect("good").len(), 2);
    }

    #[test]
    fn one_id_twice_is_refused() {
        let (a, b) = (kubeconfig("https://192.0.2.1:6443"), kubeconfig("https://192.0.2.2:6443"));
        let said = read_all(&[("a", &a), ("a", &b)]).expect_err("twice");
        assert_eq!((said.class(), said.to_string().as_str()), (Class::Usage, "cluster a is named twice"));
    }

    #[test]
    fn one_cluster_under_two_ids_is_refused() {
        let a = kubeconfig("https://192.0.2.1:6443");
        let said = read_all(&[("a", &a), ("b", &a)]).expect_err("one cluster");
        assert_eq!(said.class(), Class::Conflict);
        assert!(said.to_string().contains("a and b"), "{said}");
    }

    #[test]
    fn a_kubeconfig_that_is_not_there_names_the_cluster_and_the_file() {
        let gone = kubeconfig("https://192.0.2.1:6443");
        let path = gone.path().to_owned();
        drop(gone);
        let file = KubeconfigRef { path: path.clone(), context: None, content: None };
        let request = UpRequest {
            clusters: vec![("a".parse().expect("an id"), file)],
            routes: None,
            consent: Consent::default(),
            start_host: true,
            verify: true,
        };
        let said = read(&Settings::new("/nonexistent".into()), &request).expect_err("missing");
        assert!(
            said.to_string().starts_with("cluster a: ") && said.to_string().contains(&path.display().to_string()),
            "{said}"
        );
        assert_eq!(said.class(), Class::NotFound);
    }
}
