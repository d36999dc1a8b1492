//! The fleet's entries among those of others: what is written, kept, refused and taken out again.

use guildnet_model::{Class, Explain as _};
use proptest::prelude::*;

use super::*;

const HOME: &str = "/home/p/.guildnet";

fn owner_of(home: &str) -> FleetOwner {
    FleetOwner {
        home: home.into(),
        command: "/usr/local/bin/guildnet".into(),
        host: "https://127.0.0.1:8090".into(),
        ca_pem: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".into(),
    }
}

fn id(text: &str) -> ClusterId {
    text.parse().expect("an id")
}

/// What the file is after the clusters were written to it.
fn written(text: &str, clusters: &[&str]) -> Result<String, FleetError> {
    let mut document = FleetDocument::parse(text)?;
    for cluster in clusters {
        document.put(&owner_of(HOME), &id(cluster))?;
    }
    Ok(document.text()?.expose().clone())
}

/// What it is after everything of ours was taken out.
fn taken_out(text: &str) -> String {
    let mut document = FleetDocument::parse(text).expect("a kubeconfig");
    let gone = document.take_out(HOME, |_| false);
    document.unset_current(&gone);
    document.text().expect("kept").expose().clone()
}

/// What another reader makes of it; lists without entries are left out.
fn meaning(text: &str) -> serde_json::Value {
    let mut all: serde_json::Value = serde_saphyr::from_str(text).expect("YAML");
    if let Some(fields) = all.as_object_mut() {
        fields.retain(|_, value| !value.is_null() && *value != serde_json::json!([]) && *value != "");
    }
    all
}

const FOREIGN: &str = "\
# my clusters
apiVersion: v1
kind: Config
current-context: work
preferences: {colors: true}
x-tool: [1, 1.0, 0x1F, yes, 'yes', ~, 2024-01-01]
users:
- user: {token: 'abc: #d', exec: {command: aws, args: [\"--x\", '1']}}
  name: work
clusters:
- name: work
  cluster:
    server: https://work.example
    certificate-authority-data: |
      QUJD
      REVG
contexts:
- context: {cluster: work, user: work, namespace: \"007\"}
  name: work
  unknown: [a, [b, {c: d}], []]
extensions:
- name: of-another-tool
  extension: {a: 1e3, b: \"\\u0001\\ttab\"}
";

#[test]
fn a_new_file_has_what_kubectl_needs() {
    insta::assert_snapshot!(written("", &["a"]).expect("written"), @r#"
    apiVersion: v1
    kind: Config
    clusters:
    - cluster:
        certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCkFBPT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=
        extensions:
        - extension:
            home: /home/p/.guildnet
          name: guildnet
        server: https://127.0.0.1:8090/k8s/a
      name: guildnet-a
    contexts:
    - context:
        cluster: guildnet-a
        extensions:
        - extension:
            home: /home/p/.guildnet
          name: guildnet
        user: guildnet-a
      name: guildnet-a
    users:
    - user:
        exec:
          apiVersion: client.authentication.k8s.io/v1
          args:
          - kubeconfig
          - credential
          - --home
          - /home/p/.guildnet
          command: /usr/local/bin/guildnet
          env: null
          installHint: "GuildNet is not where it was when this file was written. Install it there, or run 'guildnet kubeconfig write' with the one that you have."
          interactiveMode: Never
          provideClusterInfo: false
        extensions:
        - extension:
            home: /home/p/.guildnet
          name: guildnet
      name: guildnet-a
    "#);
}

#[test]
fn what_others_have_is_kept_as_it_was_written() {
    let text = written(FOREIGN, &["a"]).expect("written");
    let ours = text.split("- cluster:\n    certificate-authority-data: LS0t").next().expect("a part");
    insta::assert_snapshot!(ours, @r#"
    apiVersion: v1
    kind: Config
    current-context: work
    preferences:
      colors: true
    x-tool:
    - 1
    - 1.0
    - 0x1F
    - yes
    - "yes"
    - null
    - 2024-01-01
    users:
    - user:
        token: "abc: #d"
        exec:
          command: aws
          args:
          - "--x"
          - "1"
      name: work
    - user:
        exec:
          apiVersion: client.authentication.k8s.io/v1
          args:
          - kubeconfig
          - credential
          - --home
          - /home/p/.guildnet
          command: /usr/local/bin/guildnet
          env: null
          installHint: "GuildNet is not where it was when this file was written. Install it there, or run 'guildnet kubeconfig write' with the one that you have."
          interactiveMode: Never
          provideClusterInfo: false
        extensions:
        - extension:
            home: /home/p/.guildnet
          name: guildnet
      name: guildnet-a
    clusters:
    - name: work
      cluster:
        server: https://work.example
        certificate-authority-data: "QUJD\nREVG\n"
    "#);
    assert!(text.contains("namespace: \"007\"") && text.contains("- - b\n    - c: d\n"), "{text}");
}

#[test]
fn written_and_taken_out_again_it_means_what_it_did() {
    for before in [FOREIGN, "", "clusters: null\nusers: []\n", "{}"] {
        let after = taken_out(&written(before, &["a", "b"]).expect("written"));
        let mut wanted = if before.is_empty() { serde_json::json!({}) } else { meaning(before) };
        if before.is_empty() {
            wanted = serde_json::json!({"apiVersion": "v1", "kind": "Config"});
        }
        assert_eq!(meaning(&after), wanted, "{before}");
    }
}

#[test]
fn a_second_time_nothing_changes_even_after_kubectl_wrote_it() {
    let once = written(FOREIGN, &["a"]).expect("written");
    let again = |text: &str| {
        let mut document = FleetDocument::parse(text).expect("a kubeconfig");
        document.put(&owner_of(HOME), &id("a")).expect("ours");
        document.is_changed()
    };
    assert!(!again(&once));
    // kubectl sorts fields, drops quotes and leaves out what is null.
    let rewritten =
        once.replace("          env: null\n", "").replace("  name: guildnet-a\n", "  \"name\": 'guildnet-a'\n");
    assert!(!again(&rewritten), "{rewritten}");
    assert!(again(&once.replace("127.0.0.1:8090", "127.0.0.1:9000")));
}

#[test]
fn json_is_taken_too() {
    let json = r#"{"apiVersion":"v1","kind":"Config","clusters":[{"name":"x","cluster":{"server":"https://x"}}],"users":null}"#;
    let text = written(json, &["a"]).expect("written");
    let mut left = meaning(&text);
    left["clusters"].as_array_mut().expect("a list").truncate(1);
    assert_eq!(left["clusters"], meaning(json)["clusters"]);
    assert_eq!(meaning(&text)["users"][0]["name"], "guildnet-a");
}

#[test]
fn a_context_keeps_what_a_person_put_there() {
    let text = written("", &["a"]).expect("written");
    let with_namespace = text.replace("    user: guildnet-a\n", "    user: guildnet-a\n    namespace: x\n");
    assert_ne!(text, with_namespace);
    let mut moved = owner_of(HOME);
    moved.host = "https://127.0.0.1:9000".into();
    let mut document = FleetDocument::parse(&with_namespace).expect("a kubeconfig");
    document.put(&moved, &id("a")).expect("ours");
    let after = meaning(document.text().expect("kept").expose());
    assert_eq!(after["contexts"][0]["context"]["namespace"], "x");
    assert_eq!(after["clusters"][0]["cluster"]["server"], "https://127.0.0.1:9000/k8s/a");
}

#[test]
fn an_entry_of_the_same_name_that_is_not_ours_is_a_conflict() {
    let said = |text: &str| {
        let error = written(text, &["a"]).expect_err("refused");
        assert_eq!(error.class(), Class::Conflict, "{error}");
        (error.to_string(), error.hint().expect("a hint"))
    };
    let (error, hint) = said("contexts: [{name: guildnet-a, context: {cluster: x}}]");
    assert_eq!(error, "it has a context guildnet-a that GuildNet did not make");
    assert!(hint.contains("kubectl config rename-context guildnet-a OTHER"), "{hint}");
    let (error, hint) = said("users: [{name: guildnet-a, user: {token: t}}]");
    assert!(error.contains("a user guildnet-a") && hint.contains("delete-user guildnet-a"), "{error} {hint}");
    let of_another = written("", &["a"]).expect("written").replace(HOME, "/home/q/.guildnet");
    let (error, hint) = said(&of_another);
    assert_eq!(error, "it has a cluster guildnet-a that belongs to GuildNet's folder /home/q/.guildnet");
    assert!(hint.contains("guildnet kubeconfig remove --home /home/q/.guildnet"), "{hint}");
}

#[test]
fn only_what_is_ours_is_taken_out() {
    let theirs = written("", &["b"]).expect("written").replace(HOME, "/home/q/.guildnet");
    let both = written(&theirs, &["a", "c"]).expect("written");
    let mut document = FleetDocument::parse(&both).expect("a kubeconfig");
    assert_eq!(document.clusters_of(HOME), BTreeSet::from([id("a"), id("c")]));
    let gone = document.take_out(HOME, |cluster| cluster == Some(&id("c")));
    assert_eq!(gone, ["guildnet-a"]);
    assert_eq!(document.clusters_of(HOME), BTreeSet::from([id("c")]));
    assert_eq!(document.clusters_of("/home/q/.guildnet"), BTreeSet::from([id("b")]));
    assert_eq!(meaning(&taken_out(&both)), meaning(&theirs));
}

#[test]
fn a_renamed_context_is_still_ours_and_goes_with_its_cluster() {
    let text = written("", &["a"]).expect("written");
    let at = text.find("contexts:").expect("contexts");
    let (before, after) = text.split_at(at);
    let renamed = format!("{before}{}", after.replacen("  name: guildnet-a\n", "  name: mine\n", 1));
    let mut document = FleetDocument::parse(&renamed).expect("a kubeconfig");
    assert_eq!(document.take_out(HOME, |cluster| cluster != Some(&id("a"))), ["mine"]);
    assert!(!document.is_of(HOME));
}

#[test]
fn the_current_context_changes_only_if_it_is_asked_for_or_gone() {
    let current = |text: &str| FleetDocument::parse(text).expect("a kubeconfig").current().map(str::to_owned);
    assert_eq!(current(&written("", &["a"]).expect("written")), None);
    assert_eq!(current(&written(FOREIGN, &["a"]).expect("written")).as_deref(), Some("work"));
    assert_eq!(current(&taken_out(&written(FOREIGN, &["a"]).expect("written"))).as_deref(), Some("work"));
    let mut document = FleetDocument::parse(&written(FOREIGN, &["a"]).expect("written")).expect("a kubeconfig");
    document.set_current(&id("a"));
    let text = document.text().expect("kept").expose().clone();
    assert_eq!(current(&text).as_deref(), Some("guildnet-a"));
    assert_eq!(current(&taken_out(&text)), None);
}

#[test]
fn what_can_not_be_kept_is_refused_with_its_place() {
    let said = |text: &str| {
        let error = FleetDocument::parse(text).expect_err("refused");
        assert_eq!((error.class(), error.hint().is_some()), (Class::Usage, true), "{error}");
        error.to_string()
    };
    assert_eq!(said("users:\n- name: u\n  user:\n    token: [very, secret\n"), "line 4, column 12 is not YAML");
    assert_eq!(said("a: &x 1\nb: *x\n"), "line 1 has an anchor, which can't be kept");
    assert_eq!(said("a: !!binary AA==\n"), "line 1 has a tag, which can't be kept");
    assert_eq!(said("apiVersion: v1\n---\napiVersion: v1\n"), "line 2 has a second document, which can't be kept");
    assert_eq!(said("a: 1\nb: 2\na: 3\n"), "line 3 has a key that stands there twice");
    assert_eq!(said("? [a]\n: 1\n"), "line 1 has a key that is no short text, which can't be kept");
    assert_eq!(said("just a sentence"), "it is no kubeconfig: the whole of it is no map");
    assert_eq!(said("kind: Pod\n"), "it is no kubeconfig: its kind is not Config");
    assert_eq!(said("clusters: {a: 1}\n"), "it is no kubeconfig: its clusters is no list");
    assert_eq!(said(&format!("{}{}", "[".repeat(100), "]".repeat(100))), "line 1 is nested deeper than 64 levels");
    assert_eq!(said(&" ".repeat(MAX_TEXT + 1)), "it is larger than 4 MiB");
}

#[test]
fn line_ends_of_windows_and_a_byte_order_mark_make_no_difference() {
    let unix = written(FOREIGN, &["a"]).expect("written");
    assert_eq!(written(&FOREIGN.replace('\n', "\r\n"), &["a"]).expect("written"), unix);
    assert_eq!(written(&format!("\u{feff}{FOREIGN}"), &["a"]).expect("written"), unix);
}

#[test]
fn a_huge_file_is_kept_whole() {
    let entries: String =
        (0..5_000).map(|n| format!("- name: u{n}\n  user:\n    token: {}\n", "x".repeat(400))).collect();
    let text = written(&format!("users:\n{entries}"), &["a"]).expect("written");
    assert_eq!(meaning(&text)["users"].as_array().map(Vec::len), Some(5_001));
}

/// Any tree of this depth. Scalars without quotes are those that readers of different versions disagree about.
fn tree(depth: u32) -> impl Strategy<Value = Node> {
    let plain = prop::sample::select(vec![
        "yes",
        "No",
        "on",
        "true",
        "null",
        "~",
        "1",
        "1.0",
        "1e3",
        "0o17",
        "0x1F",
        "1_000",
        "12:30",
        "2024-01-01",
        ".inf",
        "a b",
        "a:b",
        "a#b",
        "http://x/?y=[z]",
        "-x",
        "=",
    ]);
    let scalar = prop_oneof![plain.prop_map(Node::word), any::<String>().prop_map(|t| Node::Text(Secret::new(t)))];
    scalar.prop_recursive(depth, 24, 4, |inner| {
        let key = prop_oneof!["[a-z-]{1,8}", "\\PC{0,12}"].prop_map(|key| Node::Text(Secret::new(key)));
        let fields = prop::collection::vec((key, inner.clone()), 0..4).prop_map(|fields| {
            let mut seen = BTreeSet::new();
            let unique = fields.into_iter().filter(|(key, _)| seen.insert(key.scalar().map(str::to_owned)));
            Node::Map(unique.collect())
        });
        prop_oneof![prop::collection::vec(inner, 0..4).prop_map(Node::List), fields]
    })
}

/// A kubeconfig of others, with whatever in every place where something may stand.
fn foreign() -> impl Strategy<Value = Node> {
    let entries = |field: &'static str| {
        let entry = (0..1_000_u32, tree(3), tree(2)).prop_map(move |(n, value, other)| {
            Node::map([(field, value), ("name", Node::word(format!("other-{n}"))), ("unknown", other)])
        });
        prop::collection::vec(entry, 0..3).prop_map(Node::List)
    };
    (entries("cluster"), entries("user"), entries("context"), tree(3), tree(2)).prop_map(
        |(clusters, users, contexts, preferences, extensions)| {
            Node::map([
                ("preferences", preferences),
                ("users", users),
                ("contexts", contexts),
                ("extensions", extensions),
                ("clusters", clusters),
            ])
        },
    )
}

proptest! {
    #[test]
    fn whatever_others_have_survives(root in foreign()) {
        let text = tree::write(&root).expose().clone();
        let read = tree::parse(&text).expect("what is written is read").root.expect("a document");
        prop_assert!(root.is_kept_in(&read), "{}", text);
        let after = written(&text, &["a", "b"]).expect("written");
        let mut document = FleetDocument::parse(&after).expect("read");
        document.take_out(HOME, |_| false);
        // Every list stood there before: what is left must be the same to the letter, and in the same order.
        let left = document.text().expect("kept");
        prop_assert_eq!(left.expose(), &text);
    }
}
