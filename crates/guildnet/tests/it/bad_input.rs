//! Wrong input: the thing, the cause and the next step are said, the exit code is the documented one, and nothing is left
//! behind.

use std::net::TcpListener;

use crate::sandbox::{Ran, Sandbox, good, with_user};

/// Runs in a fresh sandbox and asserts that no file came or went.
#[track_caller]
fn leaves_nothing(run: impl FnOnce(&Sandbox) -> Ran) -> Ran {
    prepared(|_| {}, run)
}

/// The same, after the person prepared something.
#[track_caller]
fn prepared(prepare: impl FnOnce(&Sandbox), run: impl FnOnce(&Sandbox) -> Ran) -> Ran {
    let sandbox = Sandbox::new();
    prepare(&sandbox);
    let before = sandbox.listing();
    let ran = run(&sandbox);
    assert_eq!(sandbox.listing(), before, "something was left behind: {ran:#?}");
    ran
}

/// `up` with a kubeconfig of this text.
#[track_caller]
fn up_with(kubeconfig: &str) -> Ran {
    let name = "given.yaml";
    prepared(
        |s| {
            s.kubeconfig(name, kubeconfig);
        },
        |s| s.up(&["--cluster", &format!("a={}", s.text(name))]),
    )
}

#[test]
fn no_cluster_named_lists_the_contexts_and_touches_none() {
    let ran = leaves_nothing(|s| s.run_with(&["up"], &[("KUBECONFIG", &s.text("good"))]));
    ran.refused(2, &["no cluster was named", "good:a-cluster"]);
}

#[test]
fn a_context_that_is_not_there_lists_those_that_are() {
    leaves_nothing(|s| s.up(&["--cluster", &format!("a={}:nosuch", s.text("good"))]))
        .refused(3, &["nosuch", "a-cluster"]);
}

#[test]
fn a_kubeconfig_that_is_not_there() {
    leaves_nothing(|s| s.up(&["--cluster", "a=/nowhere/config"])).refused(3, &["/nowhere/config"]);
}

#[test]
fn a_kubeconfig_that_may_not_be_read() {
    let ran = prepared(|s| s.lock_away("good"), |s| s.up(&["--cluster", &format!("a={}", s.text("good"))]));
    ran.refused(2, &["good", "ermission denied"]);
}

#[test]
fn kubeconfigs_that_are_malformed() {
    up_with("").refused(2, &["given.yaml"]);
    up_with("{not: [yaml").refused(2, &["given.yaml"]);
    up_with("just a sentence").refused(2, &["given.yaml"]);
    up_with("apiVersion: v1\nkind: Config\n").refused(2, &["given.yaml"]);
}

#[test]
fn a_kubeconfig_that_would_run_a_program() {
    let text = good("x").replace(
        "token: a-token",
        "exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/touch, args: [ran]}",
    );
    up_with(&text).refused(2, &["given.yaml", "/bin/touch", "--allow-exec /bin/touch"]);
}

#[test]
fn a_program_is_allowed_by_its_full_name_only() {
    let text = good("x").replace(
        "token: a-token",
        "exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/touch, args: [ran]}",
    );
    let with = |allowed: &str| {
        prepared(
            |s| {
                s.kubeconfig("given.yaml", &text);
            },
            |s| s.up(&["--cluster", &format!("a={}", s.text("given.yaml")), "--allow-exec", allowed]),
        )
    };
    with("touch").refused(2, &["--allow-exec touch", "absolute path"]);
    with("/usr/bin/touch").refused(2, &["/bin/touch"]);
    // Allowed, it is taken: what is missing then is the server.
    with("/bin/touch").refused(5, &["127.0.0.1:9"]);
}

#[test]
fn a_kubeconfig_that_names_other_files() {
    up_with(&with_user("x", "certificate-authority: /etc/ssl/ca.pem", "token: a-token"))
        .refused(2, &["/etc/ssl/ca.pem", "--flatten"]);
}

#[test]
fn a_kubeconfig_that_skips_tls() {
    up_with(&with_user("x", "insecure-skip-tls-verify: true", "token: a-token"))
        .refused(2, &["insecure-skip-tls-verify"]);
}

#[test]
fn the_same_id_twice() {
    leaves_nothing(|s| {
        let flag = format!("a={}", s.text("good"));
        s.up(&["--cluster", &flag, "--cluster", &flag])
    })
    .refused(2, &["a"]);
}

#[test]
fn ids_that_are_no_labels() {
    for (flag, cause) in
        [("A=/x", "'A'"), ("1a=/x", "'1'"), ("a_b=/x", "'_'"), ("../a=/x", "'.'"), ("a-=/x", "ends with '-'")]
    {
        leaves_nothing(|s| s.up(&["--cluster", flag])).refused(2, &["cluster id", cause]);
    }
    leaves_nothing(|s| s.run(&["cluster", "show", "x/../y"])).refused(2, &["'/'"]);
}

#[test]
fn cluster_flags_without_a_file() {
    for flag in ["a", "a=", "=/x"] {
        leaves_nothing(|s| s.up(&["--cluster", flag])).refused(2, &[]);
    }
}

#[test]
fn networks_with_host_bits_or_overlap() {
    let with =
        |routes: &str| leaves_nothing(|s| s.up(&["--cluster", &format!("a={}", s.text("good")), "--routes", routes]));
    with("10.96.0.1/16").refused(2, &["--routes", "10.96.0.1/16", "10.96.0.0/16"]);
    with("10.96.0.0/12,10.96.0.0/16").refused(6, &["--routes", "overlap"]);
    with("10.96.0.0/16,100.64.0.0/16")
        .refused(6, &["--routes", "100.64.0.0/16 is the tailnet's own range", "Headscale gives"]);
    with("10.96.0.0/16,127.0.0.0/8").refused(6, &["--routes", "127.0.0.0/8 is loopback"]);
    with("0.0.0.0/0").refused(6, &["--routes", "the default route"]);
    with("0.0.0.0/1,128.0.0.0/1").refused(6, &["--routes", "holds 127.0.0.0/8"]);
    with("fd00:10:96::/112").refused(2, &["--routes", "not an IPv4 network"]);
    with("0.0.0.0/0").refused(6, &["default route"]);
    with("fd00::/64").refused(2, &["IPv4"]);
}

#[test]
fn policy_commands_without_a_server_a_key_or_a_sensible_cluster() {
    let url = ["--headscale-url", "https://127.0.0.1:9"];
    for command in ["show", "diff", "apply", "check", "rollback"] {
        let policy = ["headscale", "policy", command];
        leaves_nothing(|s| s.run(&policy)).refused(2, &["no Headscale server is known", "--headscale-url"]);
        leaves_nothing(|s| s.run(&[&policy[..], &url].concat()))
            .refused(4, &["no API key", "--headscale-api-key-file"]);
    }
    for wrong in ["a", "a=10.96.0.1/16", "A=10.96.0.0/16", "a=10.96.0.0/16@70000"] {
        leaves_nothing(|s| s.run(&["headscale", "policy", "diff", "--cluster", wrong]))
            .refused(2, &["--cluster", wrong]);
    }
    leaves_nothing(|s| s.run(&["headscale", "policy", "show", "--merge"])).refused(2, &["--compiled"]);
}

#[test]
fn a_headscale_that_does_not_answer() {
    let ran = leaves_nothing(|s| s.up(&["--cluster", &format!("a={}", s.text("good")), "--routes", "10.96.0.0/16"]));
    ran.refused(5, &["https://127.0.0.1:9"]);
}

#[test]
fn addresses_of_headscale_that_are_none() {
    for url in ["http://headscale.example", "headscale.example", "https://u:p@headscale.example", "https://h/path"] {
        let ran =
            leaves_nothing(|s| s.run(&["headscale", "namespace", "a", "--file", "x.json", "--headscale-url", url]));
        ran.refused(2, &["--headscale-url", "https://HOST"]);
        assert!(!ran.err.contains("u:p"), "a password was shown: {ran:?}");
    }
}

#[test]
fn key_files_that_hold_no_key() {
    let with = |text: &str| {
        prepared(
            |s| {
                s.file("key", text);
            },
            |s| {
                s.run(&[
                    "up",
                    "--cluster",
                    &format!("a={}", s.text("good")),
                    "--headscale-api-key-file",
                    &s.text("key"),
                ])
            },
        )
    };
    with("").refused(4, &["--headscale-api-key-file", "holds no key"]);
    let two = with("secret1 secret2");
    two.refused(4, &["holds no key"]);
    assert!(!two.err.contains("secret1"), "a secret was shown: {two:?}");
    leaves_nothing(|s| s.up(&["--headscale-api-key-file", "/nowhere/key"])).refused(4, &["/nowhere/key"]);
}

#[test]
fn a_secret_is_no_flag() {
    let ran = leaves_nothing(|s| s.run(&["up", "--headscale-api-key", "hskey-api-x"]));
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("--headscale-api-key-file"), "{ran:?}");
}

#[test]
fn an_authority_that_is_no_certificate() {
    leaves_nothing(|s| s.up(&["--headscale-ca", &s.text("api-key")]))
        .refused(2, &["--headscale-ca", "holds no certificate"]);
}

#[test]
fn an_env_file_with_a_wrong_line_is_refused_without_showing_it() {
    let ran = prepared(
        |s| {
            s.file("work/.env", "# fine\nHEADSCALE_URL=https://h\nhskey-api-without-a-name\n");
        },
        |s| s.run(&["status"]),
    );
    ran.refused(2, &[".env, line 3"]);
    assert!(!ran.err.contains("hskey"), "a secret was shown: {ran:?}");
}

#[test]
fn a_setting_of_the_env_file_is_named_by_its_variable() {
    let ran = prepared(
        |s| {
            s.file("work/.env", "TS_ROUTES=10.96.0.1/16\n");
        },
        |s| s.run(&["status"]),
    );
    ran.refused(2, &["TS_ROUTES: 10.96.0.1/16"]);
}

#[test]
fn a_target_that_can_not_be_dialled() {
    for target in ["10.96.0.1", "10.96.0.1:0", "10.96.0.1:99999", "echo:80"] {
        leaves_nothing(|s| s.run(&["dial", "a", target])).refused(2, &[target, "10.96.0.1:443"]);
    }
}

#[test]
fn a_cluster_that_is_not_known() {
    let id = "nosuch";
    for args in
        [&["cluster", "show", id][..], &["cluster", "remove", id], &["dial", id, "10.96.0.1:443"], &["verify", id]]
    {
        Sandbox::new().run(args).refused(3, &["guildnet up --cluster"]);
    }
}

#[test]
fn a_listening_address_that_others_could_reach() {
    leaves_nothing(|s| s.run(&["serve", "--listen", "0.0.0.0:8090"])).refused(2, &["--listen", "loopback"]);
}

#[test]
fn a_port_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("bound").to_string();
    let sandbox = Sandbox::new();
    sandbox.run(&["serve", "--listen", &addr]).refused(6, &[&addr, "--listen"]);
    // The next start, on a free port, must not be stopped by what this one left.
    assert!(!sandbox.path("home/host.pid").exists(), "{:?}", sandbox.listing());
}

#[test]
fn a_switch_is_on_or_off_of_a_cluster_that_there_is() {
    let ran = leaves_nothing(|s| s.run(&["cluster", "set", "a", "--read-only", "maybe"]));
    assert!(ran.code == 2 && ran.err.contains("on, off"), "{ran:?}");
    let ran = leaves_nothing(|s| s.run(&["cluster", "set", "a"]));
    assert!(ran.code == 2 && ran.err.contains("--read-only"), "{ran:?}");
    leaves_nothing(|s| s.run(&["cluster", "set", "a", "--read-only", "on"])).refused(3, &["there is no cluster a"]);
}
