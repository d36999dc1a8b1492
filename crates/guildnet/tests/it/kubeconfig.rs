//! The fleet in a person's kubeconfig: which file, what stays, what is refused, and the credential that kubectl asks for.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use serde_json::{Value, json};

use crate::sandbox::{Ran, Sandbox, good};

fn yaml(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    serde_saphyr::from_str(&text).expect("YAML")
}

/// The names in one of its lists.
fn names(path: &Path, list: &str) -> Vec<String> {
    let all = yaml(path);
    let entries = all[list].as_array().into_iter().flatten();
    entries.map(|e| e["name"].as_str().expect("a name").to_owned()).collect()
}

/// A sandbox whose home knows these clusters.
fn fleet(ids: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.clusters(ids);
    sandbox
}

#[track_caller]
fn done(ran: Ran) -> Ran {
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran
}

#[test]
fn a_new_file_is_for_its_owner_only_and_names_the_host_app() {
    let sandbox = fleet(&["a", "b"]);
    let file = sandbox.path("work/.kube/config");
    let ran = done(sandbox.run_with(&["kubeconfig", "write"], &[("KUBECONFIG", &sandbox.text("work/.kube/config"))]));
    assert!(ran.err.contains("guildnet-a, guildnet-b") && ran.out.is_empty(), "{ran:#?}");
    assert_eq!(fs::metadata(&file).expect("written").mode() & 0o7777, 0o600);
    let all = yaml(&file);
    for list in ["clusters", "contexts", "users"] {
        assert_eq!(names(&file, list), ["guildnet-a", "guildnet-b"]);
    }
    let server = all["clusters"][0]["cluster"]["server"].as_str().expect("a server");
    assert!(server.starts_with("https://127.0.0.1:") && server.ends_with("/k8s/a"), "{server}");
    assert_eq!(
        all["users"][1]["user"]["exec"]["command"],
        json!(fs::canonicalize(env!("CARGO_BIN_EXE_guildnet")).expect("there"))
    );
    assert_eq!(all["current-context"], Value::Null);
    assert!(!sandbox.path("work/.kube/config.lock").exists(), "the lock is freed");
    let again = done(sandbox.run(&["kubeconfig", "write", "--file", &file.display().to_string()]));
    assert!(again.err.contains("nothing was changed"), "{again:#?}");
    assert_eq!(
        fs::read_dir(file.parent().expect("a folder")).expect("read").count(),
        1,
        "no copy of what was not there"
    );
}

#[test]
fn others_entries_comments_and_mode_are_in_the_copy_and_meaning_and_mode_in_the_file() {
    let sandbox = fleet(&["a"]);
    let before = format!("# mine\n{}", good("x"));
    let file = sandbox.file("work/config", &before);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("mode");
    let was = fs::metadata(&file).expect("there");
    let ran = done(sandbox.run(&["kubeconfig", "write", "--file", "config"]));
    assert!(ran.err.contains("comments are only there now"), "{ran:#?}");
    let copy = sandbox.path("work/config.guildnet-backup");
    assert_eq!(fs::read_to_string(&copy).expect("a copy"), before);
    for path in [Path::new(&file), &copy] {
        let now = fs::metadata(path).expect("there");
        assert_eq!((now.mode(), now.uid(), now.gid()), (was.mode(), was.uid(), was.gid()), "{}", path.display());
    }
    let (old, new): (Value, Value) = (serde_saphyr::from_str(&before).expect("YAML"), yaml(Path::new(&file)));
    for list in ["clusters", "contexts", "users"] {
        assert_eq!(new[list][0], old[list][0], "{list}");
    }
    assert_eq!(new["current-context"], "x");
    done(sandbox.run(&["kubeconfig", "remove", "--file", "config"]));
    assert_eq!(yaml(Path::new(&file)), old);
}

#[test]
fn of_several_files_each_entry_stays_in_its_own_and_new_ones_go_to_the_first_that_exists() {
    let sandbox = fleet(&["a"]);
    let path = |name: &str| sandbox.path(&format!("work/{name}"));
    let list = |names: &[&str]| names.iter().map(|n| path(n).display().to_string()).collect::<Vec<_>>().join(":");
    let write = |names: &[&str]| done(sandbox.run_with(&["kubeconfig", "write"], &[("KUBECONFIG", &list(names))]));
    write(&["none1", "none2"]);
    assert!(!path("none1").exists());
    assert_eq!(names(&path("none2"), "contexts"), ["guildnet-a"], "none exists: the last");
    sandbox.file("work/first", &good("x"));
    sandbox.clusters(&["a", "b"]);
    write(&["none1", "first", "none2"]);
    assert_eq!(names(&path("first"), "contexts"), ["x", "guildnet-b"]);
    assert_eq!(names(&path("none2"), "contexts"), ["guildnet-a"]);
    assert!(!path("none1").exists());
    done(sandbox.run(&["kubeconfig", "remove"]));
    assert_eq!((names(&path("first"), "contexts"), names(&path("none2"), "users")), (vec!["x".to_owned()], vec![]));
}

#[test]
fn the_current_context_is_set_only_on_request_and_unset_with_its_cluster() {
    let sandbox = fleet(&["a", "b"]);
    let file = sandbox.path("work/config");
    done(sandbox.run(&["kubeconfig", "write", "--file", "config", "--set-current", "b"]));
    assert_eq!(yaml(&file)["current-context"], "guildnet-b");
    let ran = done(sandbox.run(&["kubeconfig", "remove", "--file", "config", "b"]));
    assert!(ran.err.contains("kubectl config use-context"), "{ran:#?}");
    assert_eq!(
        (yaml(&file)["current-context"].clone(), names(&file, "contexts")),
        ("".into(), vec!["guildnet-a".into()])
    );
    sandbox
        .run(&["kubeconfig", "write", "--file", "config", "--set-current", "b", "a"])
        .refused(3, &["--set-current b"]);
}

#[test]
fn a_lock_that_stays_is_a_conflict_and_the_file_is_as_it_was() {
    let sandbox = fleet(&["a"]);
    let file = sandbox.file("work/config", &good("x"));
    sandbox.file("work/config.lock", "");
    sandbox.run(&["kubeconfig", "write", "--file", "config"]).refused(6, &["config.lock"]);
    assert_eq!(fs::read_to_string(file).expect("there"), good("x"));
    assert!(sandbox.path("work/config.lock").exists(), "somebody else's lock is left alone");
}

#[test]
fn what_may_not_be_written_is_left_alone() {
    let sandbox = fleet(&["a"]);
    let file = sandbox.file("work/config", &good("x"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).expect("mode");
    sandbox.run(&["kubeconfig", "write", "--file", "config"]).refused(8, &["read-only", "chmod u+w"]);
    assert_eq!(fs::read_to_string(&file).expect("there"), good("x"));
    sandbox.file("work/broken", "users: [very, {secret");
    let ran = sandbox.run(&["kubeconfig", "write", "--file", "broken"]);
    ran.refused(2, &["broken", "line 1"]);
    assert!(!ran.err.contains("secret"), "{ran:#?}");
    symlink("nowhere", sandbox.path("work/dangling")).expect("a link");
    sandbox.run(&["kubeconfig", "write", "--file", "dangling"]).refused(2, &["is a link to a file that is not there"]);
    sandbox.run(&["kubeconfig", "write", "--file", "."]).refused(2, &["no plain file"]);
    sandbox.file("work/theirs", "contexts: [{name: guildnet-a, context: {cluster: x}}]\n");
    sandbox.run(&["kubeconfig", "write", "--file", "theirs"]).refused(6, &["guildnet-a", "rename-context"]);
    let left = fs::read_dir(sandbox.path("work")).expect("read").count();
    assert_eq!(left, 4, "no lock, copy or new file: {:?}", sandbox.listing());
}

#[test]
fn a_link_stays_a_link() {
    let sandbox = fleet(&["a"]);
    sandbox.file("work/real", &good("x"));
    let link = sandbox.path("work/link");
    symlink("real", &link).expect("a link");
    done(sandbox.run(&["kubeconfig", "write", "--file", "link"]));
    assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    assert_eq!(names(&sandbox.path("work/real"), "contexts"), ["x", "guildnet-a"]);
}

#[test]
fn without_the_cluster_there_is_nothing_to_write() {
    let sandbox = Sandbox::new();
    let before = sandbox.listing();
    sandbox.run(&["kubeconfig", "write", "--file", "config"]).refused(2, &["guildnet up --cluster"]);
    sandbox.run(&["kubeconfig", "print"]).refused(2, &["guildnet up --cluster"]);
    assert_eq!(sandbox.listing(), before, "nothing was made");
    sandbox.clusters(&["a"]);
    sandbox.run(&["kubeconfig", "write", "--file", "config", "nosuch"]).refused(3, &["nosuch", "known clusters: a"]);
    assert!(!sandbox.path("work/config").exists());
}

#[test]
fn printed_it_is_a_kubeconfig_of_its_own() {
    let sandbox = fleet(&["a", "b"]);
    let ran = done(sandbox.run(&["kubeconfig", "print", "--set-current", "b", "b"]));
    let all: Value = serde_saphyr::from_str(&ran.out).expect("YAML");
    assert_eq!((&all["current-context"], &all["contexts"][0]["name"]), (&"guildnet-b".into(), &"guildnet-b".into()));
    assert_eq!((all["contexts"].as_array().map(Vec::len), all["kind"].as_str()), (Some(1), Some("Config")));
}

#[test]
fn kubectl_gets_a_token_whatever_lies_in_the_folder_where_it_runs() {
    let sandbox = fleet(&["a"]);
    sandbox.run(&["kubeconfig", "credential"]).refused(4, &["no Host App was ever started", "guildnet up"]);
    done(sandbox.run(&["kubeconfig", "write", "--file", "config"]));
    sandbox.file("work/.env", "this is no setting\n");
    let home = sandbox.text("home");
    let info =
        r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","spec":{"interactive":false}}"#;
    let env = [("GUILDNET_HOME", "/nowhere"), ("KUBERNETES_EXEC_INFO", info)];
    let ran = done(sandbox.run_with(&["kubeconfig", "credential", "--home", &home], &env));
    assert_eq!(ran.err, "guildnet: the Host App is not running; start it: guildnet up\n");
    let said: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert!(said["status"]["token"].as_str().expect("a token").starts_with("gnk1."), "{said}");
    let long = fs::read_to_string(sandbox.path("home/token")).expect("the long token");
    assert!(!ran.out.contains(long.trim()), "the long token stays at home");
}

#[test]
fn the_file_follows_new_certificates_and_clusters_that_come_and_go() {
    let sandbox = fleet(&["a", "b"]);
    let file = sandbox.path("work/config");
    let chosen = sandbox.path("work/chosen");
    done(sandbox.run(&["kubeconfig", "write", "--file", "config"]));
    done(sandbox.run(&["kubeconfig", "write", "--file", "chosen", "a"]));
    let before = yaml(&file)["clusters"][0]["cluster"]["certificate-authority-data"].clone();
    sandbox.clusters(&["a", "c"]);
    let ran = done(sandbox.run(&["certs", "regen", "--new-ca"]));
    assert!(ran.err.contains("config brought in step"), "{ran:#?}");
    assert_ne!(yaml(&file)["clusters"][0]["cluster"]["certificate-authority-data"], before);
    assert_eq!(names(&file, "contexts"), ["guildnet-a", "guildnet-c"]);
    assert_eq!(names(&chosen, "contexts"), ["guildnet-a"], "only what was named");
    // Who takes them out by hand does not get them back.
    sandbox.file("work/config", "apiVersion: v1\nkind: Config\n");
    done(sandbox.run(&["certs", "regen"]));
    assert_eq!(names(&file, "contexts"), Vec::<String>::new());
}

#[test]
fn when_everything_is_removed_the_contexts_go_too() {
    let sandbox = fleet(&["a"]);
    sandbox.file("work/config", &good("x"));
    done(sandbox.run(&["kubeconfig", "write", "--file", "config"]));
    let ran = done(sandbox.run(&["down", "--purge"]));
    assert!(ran.err.contains("contexts removed from"), "{ran:#?}");
    assert_eq!(names(&sandbox.path("work/config"), "contexts"), ["x"]);
}
