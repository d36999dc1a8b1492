//! `guildnet -> host -> {tailnet, kube, headscale, store} -> model`; siblings meet in the host crate only.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{CargoOpt, DependencyKind, Metadata, MetadataCommand};

fn metadata() -> Metadata {
    let mut command = MetadataCommand::new();
    command.manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
    command.features(CargoOpt::SomeFeatures(vec![]));
    // What is built is what is looked at: no network, no other versions.
    command.other_options(vec!["--offline".to_owned(), "--locked".to_owned()]);
    command.exec().expect("cargo metadata of this workspace")
}

/// What each crate of the workspace names in its manifest, tests left out.
fn named(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let names = |package: &cargo_metadata::Package| {
        let dependencies = package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
        (package.name.to_string(), dependencies.map(|d| d.name.clone()).collect())
    };
    metadata.workspace_packages().into_iter().map(names).collect()
}

#[test]
fn arrows_point_from_the_command_down_to_the_model() {
    let named = named(&metadata());
    let siblings = ["guildnet-tailnet", "guildnet-kube", "guildnet-headscale", "guildnet-store"];
    let allowed: BTreeMap<&str, Vec<&str>> = [
        ("guildnet-model", vec![]),
        ("guildnet-host", siblings.iter().copied().chain(["guildnet-model"]).collect()),
        ("guildnet", vec!["guildnet-host", "guildnet-model"]),
    ]
    .into_iter()
    .chain(siblings.map(|s| (s, vec!["guildnet-model"])))
    .collect();
    for (from, allowed) in allowed {
        let names = named.get(from).unwrap_or_else(|| panic!("{from} is not in the workspace"));
        let ours = names.iter().filter(|n| n.as_str() == "guildnet" || n.starts_with("guildnet-"));
        let wrong: Vec<_> = ours.filter(|n| !allowed.contains(&n.as_str())).collect();
        assert!(wrong.is_empty(), "{from} may not name {wrong:?}");
    }
}

/// Asserts that no crate but `only` names a dependency for which `is` holds.
fn only_named_by(only: &str, what: &str, is: impl Fn(&str) -> bool) {
    for (from, names) in named(&metadata()) {
        let wrong: Vec<_> = names.iter().filter(|n| is(n)).collect();
        assert!(from == only || wrong.is_empty(), "only {only} may name {what}: {from} names {wrong:?}");
    }
}

#[test]
fn kubernetes_libraries_stay_in_the_kube_crate() {
    only_named_by("guildnet-kube", "Kubernetes libraries", |n| {
        n == "kube" || n.starts_with("kube-") || n == "k8s-openapi"
    });
}

#[test]
fn tailnet_libraries_stay_in_the_tailnet_crate() {
    let of_the_engine = |n: &str| n.starts_with("ts_") || ["boringtun", "smoltcp", "quinn-udp"].contains(&n);
    only_named_by("guildnet-tailnet", "Tailscale, WireGuard and TCP libraries", of_the_engine);
}

#[test]
fn databases_stay_in_the_store_crate() {
    only_named_by("guildnet-store", "database libraries", |n| n == "sqlx");
}

#[test]
fn rustls_has_one_provider() {
    // Two providers in one graph: every `ClientConfig::builder()` without a provider panics at run time.
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().expect("a resolved graph");
    let rustls: BTreeSet<_> = metadata.packages.iter().filter(|p| p.name.as_str() == "rustls").map(|p| &p.id).collect();
    assert!(!rustls.is_empty(), "the graph has rustls");
    for node in resolve.nodes.iter().filter(|n| rustls.contains(&n.id)) {
        let features: Vec<&str> = node.features.iter().map(|f| f.as_str()).collect();
        assert!(features.contains(&"aws_lc_rs"), "{features:?}");
        assert!(!features.contains(&"ring"), "{features:?}");
    }
}
