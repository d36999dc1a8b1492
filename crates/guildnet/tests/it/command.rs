//! What works without a fleet: plain commands, formats, an empty home.

use crate::sandbox::Sandbox;

#[test]
fn version_is_data() {
    let sandbox = Sandbox::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(sandbox.run(&["version"]).out, format!("guildnet {version}\n"));
    assert_eq!(sandbox.run(&["version", "-o", "json"]).out, format!("{{\n  \"version\": \"{version}\"\n}}\n"));
    assert_eq!(sandbox.run(&["version", "-o", "yaml"]).out.trim_end(), format!("version: \"{version}\""));
}

#[test]
fn an_unknown_format_is_a_usage_error() {
    let ran = Sandbox::new().run(&["version", "-o", "xml"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("table, wide, json, yaml"), "{ran:?}");
}

#[test]
fn completion_knows_the_subcommands() {
    let ran = Sandbox::new().run(&["completion", "bash"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("guildnet__subcmd__verify") || ran.out.contains("guildnet__verify"), "no verify in it");
}

#[test]
fn plain_commands_make_no_home() {
    let sandbox = Sandbox::new();
    let home = sandbox.path("home/below");
    for args in [&["version"][..], &["completion", "zsh"], &["--help"], &["up", "--nonsense"]] {
        sandbox.run_with(args, &[("GUILDNET_HOME", &home.display().to_string())]);
        assert!(!home.exists(), "{args:?} made {}", home.display());
    }
}

#[test]
fn an_empty_home_has_no_clusters_and_no_host_app() {
    let sandbox = Sandbox::new();
    let ran = sandbox.run(&["cluster", "list", "-o", "json"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "[]\n"), "{ran:?}");
    let ran = sandbox.run(&["status", "-o", "json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.contains("\"running\": false"), "{ran:?}");
    assert!(ran.err.contains("guildnet up"), "{ran:?}");
}

#[test]
fn down_without_a_host_app_is_done() {
    let ran = Sandbox::new().run(&["down"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("not running"), "{ran:?}");
}

#[test]
fn output_that_nobody_reads_is_no_error() {
    let sandbox = Sandbox::new();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_guildnet"))
        .args(["completion", "bash"])
        .env("GUILDNET_HOME", sandbox.path("home"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the command starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_key_in_an_env_file_that_others_can_read_is_warned_of() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("work/.env", "TS_AUTHKEY=hskey-auth-x\n");
    assert!(!sandbox.run(&["cluster", "list"]).err.contains("chmod"), "only its owner can read it");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("mode");
    let ran = sandbox.run(&["cluster", "list"]);
    assert!(ran.err.contains("warning: .env holds a key") && !ran.err.contains("hskey"), "{ran:?}");
}
