"""Lists and watches the ConfigMaps of a namespace, prints a line for each event; then runs a command in a pod.

KUBECONFIG CONTEXT NAMESPACE LAST: ends after the event DELETED of the object LAST.
"""
import sys

from kubernetes import client, config, watch
from kubernetes.stream import stream

kubeconfig, context, namespace, last = sys.argv[1:]
config.load_kube_config(config_file=kubeconfig, context=context)
core = client.CoreV1Api()
listed = core.list_namespaced_config_map(namespace)
print("listed", flush=True)
events = watch.Watch().stream(
    core.list_namespaced_config_map, namespace, resource_version=listed.metadata.resource_version, timeout_seconds=50
)
for event in events:
    name = event["object"].metadata.name
    print(event["type"], name, flush=True)
    if (event["type"], name) == ("DELETED", last):
        break
pod = core.list_namespaced_pod("default", label_selector="app=echo").items[0].metadata.name
command = ["sh", "-c", "echo in $CLUSTER"]
print(stream(core.connect_get_namespaced_pod_exec, pod, "default", command=command, stdout=True, stderr=True), flush=True)
