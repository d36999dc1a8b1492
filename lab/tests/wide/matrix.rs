//! The matrix of versions: every Headscale that is supported with every router, two equal clusters each.
//!
//! Every pair of versions gets a lab of its own, and all of them are tried whatever the others do. The table goes to
//! standard error and, where `GUILDNET_MATRIX_FILE` says so, into the documentation.

use std::{
    any::Any,
    fmt::Write,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    fleet::{check, finish, pretty},
    isolation::{self, Form},
    light::{Device, LightLab},
    ten::version_is_judged,
};

const HEADSCALES: [(&str, Form); 4] =
    [("0.26.1", Form::BySite), ("0.27.1", Form::BySite), ("0.28.0", Form::BySite), ("0.29.2", Form::Plain)];
const ROUTERS: [&str; 2] = ["1.90.9", "1.98.10"];

/// What is tried of each pair, in this order.
const STEPS: [&str; 5] = ["contract", "joined, one after the other", "both echoes at once", "verify", "isolation"];

/// One pair of versions.
struct Pair {
    headscale: &'static str,
    router: &'static str,
    /// What each step said, as far as it came.
    cells: Vec<String>,
    took: Duration,
    failed: Option<Box<dyn Any + Send>>,
}

#[test]
fn every_headscale_with_every_router() {
    let mut pairs = Vec::new();
    for (headscale, form) in HEADSCALES {
        for router in ROUTERS {
            eprintln!("\nHeadscale {headscale}, router {router}");
            let begin = Instant::now();
            let mut cells = Vec::new();
            let tried = catch_unwind(AssertUnwindSafe(|| pair(headscale, router, form, &mut cells)));
            pairs.push(Pair { headscale, router, cells, took: begin.elapsed(), failed: tried.err() });
        }
    }
    let table = table(&pairs);
    eprintln!("\n{table}");
    if let Some(file) = std::env::var_os("GUILDNET_MATRIX_FILE") {
        std::fs::write(&file, page(&table)).expect("the table's file can be written");
    }
    // Each was printed when it happened; the first decides.
    if let Some(why) = pairs.into_iter().find_map(|pair| pair.failed) {
        resume_unwind(why);
    }
}

/// Tries one pair; a step that fails ends it.
fn pair(headscale: &str, router: &str, form: Form, cells: &mut Vec<String>) {
    let lab = LightLab::up(2, headscale, router);
    let device = Device::new();
    let mut step = |verdict: &str, begin: Instant| {
        cells.push(format!("{verdict}, {:.0} s", begin.elapsed().as_secs_f64().max(1.0)));
    };
    let begin = Instant::now();
    contract(&device);
    step("pass", begin);

    // As a person does it: the first cluster is served alone for a while, then there is a second with the same networks.
    let begin = Instant::now();
    for cluster in device.clusters() {
        device.namespace(&cluster);
        device.router(&cluster);
        device.add(&cluster);
        device.serve();
    }
    step("pass", begin);

    let begin = Instant::now();
    device.all_answer_with_their_own_names();
    step("pass", begin);

    let begin = Instant::now();
    let (code, report) = device.fleet.verify();
    assert_eq!((code, &report["success"]), (0, &true.into()), "{}", pretty(&report));
    version_is_judged(&report, form);
    for cluster in device.clusters() {
        assert_eq!(check(&report, &cluster, "isolation")["result"], "pass", "{}", pretty(&report));
    }
    let verdict = match form {
        Form::Plain => format!("pass ({} passed, {} warned)", report["passed"], report["warned"]),
        Form::BySite => format!("warn: 4via6 ({} passed, {} warned)", report["passed"], report["warned"]),
    };
    step(&verdict, begin);

    let begin = Instant::now();
    eprintln!("{}", isolation::holds(&device, form));
    step("pass", begin);
    eprintln!("the lab itself was up in {:.0} s", lab.took.as_secs_f64());
}

/// The contract of the Headscale crate, against this server.
fn contract(device: &Device) {
    let lab = &device.fleet.lab;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace"))
        .args(["test", "--release", "--locked", "-p", "guildnet-headscale", "--lib", "--", "--ignored", "--exact"])
        .arg("contract::tests::a_real_server_meets_the_contract")
        .env("GUILDNET_HEADSCALE_URL", lab.plan().headscale_url())
        .env("GUILDNET_HEADSCALE_API_KEY_FILE", lab.person_dir().join("headscale-api-key"))
        .env("GUILDNET_HEADSCALE_CA", lab.person_dir().join("headscale-ca.pem"));
    let ran = finish(cargo, b"", Duration::from_secs(600));
    assert!(ran.out.contains("1 passed"), "the contract: exit code {}\n{}\n{}", ran.code, ran.out, ran.err);
}

fn table(pairs: &[Pair]) -> String {
    let mut text =
        format!("| Headscale | router | {} | all |\n|---|---|{}---|\n", STEPS.join(" | "), "---|".repeat(STEPS.len()));
    for pair in pairs {
        let cell = |n: usize| match pair.cells.get(n) {
            Some(said) => said.as_str(),
            None if n == pair.cells.len() => "**fail**",
            None => "not reached",
        };
        let cells: Vec<&str> = (0..STEPS.len()).map(cell).collect();
        let seconds = pair.took.as_secs_f64();
        writeln!(text, "| {} | {} | {} | {seconds:.0} s |", pair.headscale, pair.router, cells.join(" | "))
            .expect("a string grows");
    }
    text
}

fn page(table: &str) -> String {
    format!(
        "# Versions that were tried\n\n\
         `make lab-matrix` writes this page. Each line is a lab of its own: that Headscale, two light clusters with equal\n\
         networks behind masquerading gateways, and in each a router of that Tailscale version. *Contract*: what GuildNet relies\n\
         on of Headscale's API. *Joined*: the first cluster is added and served alone, then the second with the same\n\
         networks. *Both echoes at once*: one address, two clusters, each answers with its own name. *Verify*: nothing failed or\n\
         skipped; below 0.29 it warns that equal networks are told apart by 4via6. *Isolation*: every client against every\n\
         cluster's router, Service and Pod, plain and by 4via6, past the client's own filters. Times include starting what a step\n\
         needs, on the machine that ran it last.\n\n{table}"
    )
}
