//! Helm: a chart from the person's folder is installed, upgraded, rolled back and removed.

use serde_json::Value;

use super::person::Person;
use crate::fleet::{Ran, STEP, finish};

const CHART: &str = "apiVersion: v2\nname: demo\nversion: 0.1.0\n";
const VALUES: &str = "colour: red\nimage: \"\"\n";
const CONFIG: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\n\
    data: {colour: {{ .Values.colour }}, revision: \"{{ .Release.Revision }}\"}\n";
const WEB: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata:
      labels: {app: {{ .Release.Name }}}
      annotations: {colour: {{ .Values.colour }}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: {{ required \"an image\" .Values.image }}
        imagePullPolicy: Never
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
";

fn helm(person: &Person, cluster: &str, args: &[&str]) -> Ran {
    let mut command = person.command(person.fleet.lab.program("helm", "helm"));
    let context = format!("guildnet-{cluster}");
    command.args(args).args(["--kube-context", &context, "--namespace", &person.namespace]);
    finish(command, b"", STEP)
}

#[test]
fn helm_installs_upgrades_rolls_back_and_uninstalls() {
    let person = Person::at("helm");
    person.file("chart/Chart.yaml", CHART);
    person.file("chart/values.yaml", VALUES);
    person.file("chart/templates/config.yaml", CONFIG);
    person.file("chart/templates/web.yaml", WEB);
    person.each(|cluster| {
        let image = format!("image={}", person.image(cluster));
        let wait = ["--wait", "--timeout", "50s"];
        let run = |args: &[&str]| helm(&person, cluster, &[args, &wait].concat());
        let colour = || {
            let path = "jsonpath={.data.colour}{.data.revision}";
            person.kubectl(cluster, &["get", "configmap", "demo", "-o", path]).ok()
        };
        run(&["install", "demo", "chart", "--set", &image]).ok();
        assert_eq!(colour(), "red1");
        run(&["upgrade", "demo", "chart", "--reuse-values", "--set", "colour=green"]).ok();
        assert_eq!(colour(), "green2");
        run(&["rollback", "demo", "1"]).ok();
        assert_eq!(colour(), "red1", "the manifest of the first revision");

        let history = helm(&person, cluster, &["history", "demo", "-o", "json"]).ok();
        let history: Value = serde_json::from_str(&history).expect("JSON");
        let states: Vec<&str> =
            history.as_array().expect("a list").iter().filter_map(|r| r["status"].as_str()).collect();
        assert_eq!(states, ["superseded", "superseded", "deployed"]);
        let list = helm(&person, cluster, &["list", "-o", "json"]).ok();
        assert!(list.contains("\"revision\":\"3\""), "{list}");

        run(&["install", "demo", "chart"]).refused(1, &["cannot re-use a name"]);
        run(&["uninstall", "demo"]).ok();
        person.kubectl(cluster, &["get", "deployment", "demo"]).refused(1, &["\"demo\" not found"]);
        assert_eq!(helm(&person, cluster, &["list", "-q"]).ok(), "");
    });
}
