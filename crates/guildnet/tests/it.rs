//! The built command as a black box: what a person types and what they get. Needs no fleet and no network beyond
//! loopback; the fleet's own tests are the lab's.

#[path = "it/bad_input.rs"]
mod bad_input;
#[path = "it/command.rs"]
mod command;
#[path = "it/forward.rs"]
mod forward;
#[path = "it/kubeconfig.rs"]
mod kubeconfig;
#[path = "it/managed.rs"]
mod managed;
#[path = "it/sandbox.rs"]
mod sandbox;
#[path = "it/secrets.rs"]
mod secrets;
#[path = "it/service.rs"]
mod service;
#[path = "it/trust.rs"]
mod trust;
