//! The Host App's Kubernetes API, asked by programs that are not ours: kubectl, helm, Debian's Python client, client-go.
//!
//! Each test does its client's work on both clusters at the same moment, with the doors shut, as the person and not as root,
//! through contexts that `guildnet kubeconfig write` wrote. A step that must hold against the real thing is checked there:
//! with the administrator's kubectl from the cluster's node.

#[path = "clients/helm.rs"]
mod helm;
#[path = "clients/kubectl.rs"]
mod kubectl;
#[path = "clients/libraries.rs"]
mod libraries;
#[path = "clients/person.rs"]
pub(crate) mod person;
#[path = "clients/read_only.rs"]
mod read_only;
#[path = "clients/running.rs"]
pub(crate) mod running;
#[path = "clients/streams.rs"]
mod streams;
