//! kubectl's requests that end by themselves: reading, writing, waiting, asking, and being refused.

use super::person::Person;
use crate::fleet::CLUSTERS;

/// A ConfigMap and a Deployment of one pod.
fn manifests(image: &str, first: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: colours}}\ndata: {{first: {first}}}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 1\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 0\n      containers:\n      - name: web\n        image: {image}\n        \
         imagePullPolicy: Never\n        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}\n"
    )
}

#[test]
fn kubectl_reads_each_cluster_as_itself() {
    let person = Person::at("reads");
    person.each(|cluster| {
        let get = |args: &[&str]| person.kubectl(cluster, args).ok();
        let name = "jsonpath={.spec.template.spec.containers[0].env[?(@.name==\"CLUSTER\")].value}";
        assert_eq!(get(&["-n", "default", "get", "deployment", "echo", "-o", name]), cluster);
        assert_eq!(get(&["get", "nodes", "-o", "name"]).trim(), format!("node/{cluster}-node-1"));

        let everywhere = get(&["get", "pods,services,configmaps", "-A", "--chunk-size=3"]);
        for there in ["pod/coredns-", "pod/echo-", "service/kubernetes", "configmap/kube-root-ca.crt"] {
            assert!(everywhere.contains(there), "{cluster} lacks {there}:\n{everywhere}");
        }
        let resources = get(&["api-resources"]);
        for kind in ["deployments", "configmaps", "daemonsets", "networkpolicies"] {
            assert!(resources.lines().any(|line| line.starts_with(kind)), "no {kind}:\n{resources}");
        }
        assert!(get(&["explain", "pod.spec.containers"]).contains("imagePullPolicy"));
        assert!(get(&["version", "-o", "json"]).contains("\"serverVersion\""));
        assert_eq!(get(&["get", "--raw", "/readyz"]), "ok");

        assert_eq!(get(&["auth", "can-i", "delete", "nodes"]).trim(), "yes");
        assert!(get(&["auth", "can-i", "--list"]).contains("selfsubjectaccessreviews"));
        assert!(get(&["auth", "whoami"]).contains("Username"));
    });
}

#[test]
fn kubectl_applies_compares_waits_and_removes() {
    let person = Person::at("writes");
    person.each(|cluster| {
        let image = person.image(cluster);
        let (red, green) = (manifests(&image, "red"), manifests(&image, "green"));
        let apply = ["apply", "--server-side", "-f", "-"];
        let said = person.kubectl_with(cluster, &apply, red.as_bytes()).ok();
        assert_eq!(said, "configmap/colours serverside-applied\ndeployment.apps/web serverside-applied\n");

        let diff = ["diff", "--server-side", "-f", "-"];
        assert_eq!(person.kubectl_with(cluster, &diff, red.as_bytes()).ok(), "");
        let changed = person.kubectl_with(cluster, &diff, green.as_bytes());
        assert_eq!(changed.code, 1, "{changed:?}");
        assert!(changed.out.contains("-  first: red") && changed.out.contains("+  first: green"), "{changed:?}");

        let other = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
        person.kubectl_with(cluster, &other, green.as_bytes()).refused(1, &["conflict", ".data.first"]);
        let forced = ["apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-"];
        person.kubectl_with(cluster, &forced, green.as_bytes()).ok();
        let first = || person.kubectl(cluster, &["get", "configmap", "colours", "-o", "jsonpath={.data.first}"]).ok();
        assert_eq!(first(), "green");
        person.kubectl(cluster, &["patch", "configmap", "colours", "-p", r#"{"data":{"first":"blue"}}"#]).ok();
        assert_eq!(first(), "blue");

        person.kubectl(cluster, &["wait", "--for=condition=Available", "deployment/web", "--timeout=50s"]).ok();
        person.kubectl(cluster, &["scale", "deployment/web", "--replicas=2"]).ok();
        person.kubectl(cluster, &["rollout", "status", "deployment/web", "--timeout=50s"]).ok();
        let pods = person.kubectl(cluster, &["get", "pods", "-l", "app=web", "-o", "name"]).ok();
        assert_eq!(pods.lines().count(), 2, "{pods}");

        // It returns when the watch has told that they are gone.
        person.kubectl(cluster, &["delete", "deployment,configmap", "web", "colours", "--ignore-not-found"]).ok();
        person.kubectl(cluster, &["wait", "--for=delete", "pod", "-l", "app=web", "--timeout=50s"]).ok();
        person.kubectl(cluster, &["get", "deployment", "web"]).refused(1, &["NotFound", "\"web\" not found"]);
    });
}

#[test]
fn kubectl_is_told_in_words_why_not() {
    let person = Person::at("refused");
    person.each(|cluster| {
        let said = person.kubectl(cluster, &["get", "pod", "nosuch"]);
        said.refused(1, &["Error from server (NotFound): pods \"nosuch\" not found"]);
        person.kubectl(cluster, &["get", "nosuchkind"]).refused(1, &["nosuchkind"]);
        person.kubectl(cluster, &["logs", "nosuch"]).refused(1, &["\"nosuch\" not found"]);
        person.kubectl(cluster, &["exec", "nosuch", "--", "true"]).refused(1, &["\"nosuch\" not found"]);
        // Whoever asks to be somebody else must not be the administrator instead.
        person.kubectl(cluster, &["get", "pods", "--as", "viewer"]).refused(1, &["Forbidden", "mpersonat"]);
        person
            .kubectl(cluster, &["auth", "can-i", "delete", "nodes", "--as", "viewer", "--as-group", "viewers"])
            .refused(1, &["Forbidden", "mpersonat"]);
    });
    let nowhere = format!("https://{}/k8s/nosuch", person.fleet.listen);
    // Not `get`: that asks for the API's groups first, and tells of a refusal there without its words.
    person.kubectl("a", &["--server", &nowhere, "create", "token", "default"]).refused(1, &["nosuch"]);
}

/// While the Host App restarts a client gets a refusal or no connection, never another cluster's answer; then all is as before.
#[test]
fn kubectl_works_again_after_the_host_app_was_down() {
    let person = Person::at("down");
    person.fleet.run(&["down"]).ok();
    person.each(|cluster| {
        let said = person.kubectl(cluster, &["get", "nodes"]);
        said.refused(1, &["guildnet up"]);
    });
    person.fleet.run(&["up", "--no-verify"]).ok();
    for cluster in CLUSTERS {
        let nodes = person.kubectl(cluster, &["get", "nodes", "-o", "name"]).ok();
        assert_eq!(nodes.trim(), format!("node/{cluster}-node-1"));
    }
}
