# SPDX-License-Identifier: Apache-2.0
"""Pods of the tests, in the shapes in which an injector leaves them. All of them answer HTTP and say who they are."""
import copy
import json

from images import POD

LISTEN = {"dual": "", "ipv4": "0.0.0.0", "ipv6": "[::]"}
PROXY_UID = 1337
CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "privileged": False, "readOnlyRootFilesystem": True}
AS_PROXY = CONFINED | {"runAsGroup": PROXY_UID, "runAsNonRoot": True, "runAsUser": PROXY_UID}

AS_APPLICATION = CONFINED | {"runAsGroup": 1000, "runAsNonRoot": True, "runAsUser": 1000}


def field(name, path):
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def plain(name, namespace="default", listen="dual", node=None, labels=None, grace=1):
    """A pod outside the mesh."""
    pod = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name} | (labels or {}), "annotations": {}},
        "spec": {
            "terminationGracePeriodSeconds": grace,
            "containers": [{
                "name": "app", "image": POD,
                "command": ["pod", "serve", f"{LISTEN[listen]}:8080", f"echo={LISTEN[listen]}:9000", ":9090"],
                "env": [field("POD_NAME", "metadata.name")],
                "ports": [{"containerPort": 8080}],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                "securityContext": AS_APPLICATION,
            }],
        },
    }
    if node:
        pod["spec"]["nodeName"] = node
    return pod


def sidecar(name, namespace="default", native=False, annotations=None, dual_stack=True, **options):
    """A pod with an injected proxy: a container, or a native sidecar among the init containers."""
    pod = plain(name, namespace, **options)
    proxy = {
        "name": "istio-proxy", "image": POD, "command": ["pilot-agent"],
        "args": ["proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local", "--proxyLogLevel=warning",
                 "--proxyComponentLogLevel=misc:error", "--log_output_level=default:info"],
        "env": [
            field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"), field("INSTANCE_IP", "status.podIP"),
            {"name": "PROXY_CONFIG", "value": "{}\n"},
            {"name": "ISTIO_META_POD_PORTS", "value": '[{"containerPort":8080}]'},
            {"name": "ISTIO_META_APP_CONTAINERS", "value": "app"},
            {"name": "ISTIO_META_CLUSTER_ID", "value": "Kubernetes"},
            {"name": "ISTIO_META_INTERCEPTION_MODE", "value": "REDIRECT"},
            {"name": "ISTIO_META_WORKLOAD_NAME", "value": name},
            *([{"name": "ISTIO_DUAL_STACK", "value": "true"}] if dual_stack else []),
        ],
        "ports": [{"containerPort": 15090, "name": "http-envoy-prom", "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 1, "timeoutSeconds": 3},
        "resources": {"requests": {"cpu": "1m", "memory": "40Mi"}},
        "securityContext": AS_PROXY,
        "volumeMounts": [{"mountPath": "/etc/istio/proxy", "name": "istio-envoy"}],
    }
    initial = ["istio-validation"]
    spec = pod["spec"]
    spec["initContainers"] = [validation()]
    if native:
        proxy |= {"restartPolicy": "Always", "startupProbe": dict(proxy["readinessProbe"], failureThreshold=600)}
        spec["initContainers"].append(proxy)
        initial.append("istio-proxy")
    else:
        spec["containers"].append(proxy)
    spec["volumes"] = [{"name": "istio-envoy", "emptyDir": {"medium": "Memory"}}]
    status = {"initContainers": initial, "containers": None if native else ["istio-proxy"], "volumes": ["istio-envoy"],
              "imagePullSecrets": None, "revision": "default"}
    pod["metadata"]["labels"] |= {"security.istio.io/tlsMode": "istio", "service.istio.io/canonical-name": name}
    pod["metadata"]["annotations"] |= {
        "istio.io/rev": "default",
        "sidecar.istio.io/interceptionMode": "REDIRECT",
        "sidecar.istio.io/status": json.dumps(status),
        "traffic.sidecar.istio.io/excludeInboundPorts": "15020",
        "traffic.sidecar.istio.io/includeInboundPorts": "*",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "*",
    } | (annotations or {})
    return pod


def idle(name, namespace, node=None, mesh=True, **options):
    """A pod that is up at once and does nothing, redirected or not; of the mesh it has what the agent reads of a proxy."""
    pod = (sidecar if mesh else plain)(name, namespace, node=node, grace=0, **options)
    keep = ("name", "image", "env", "securityContext")
    pod["spec"]["containers"] = [{key: container[key] for key in keep} | {"command": ["sleep", "36000"]}
                                 for container in pod["spec"]["containers"]]
    pod["spec"].pop("initContainers", None)
    return pod


def validation():
    return {
        "name": "istio-validation", "image": POD, "command": ["pilot-agent"],
        "args": ["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*",
                 "-d", "15090,15021,15020", "--log_output_level=default:info", "--run-validation", "--skip-rule-apply"],
        "env": [field("INSTANCE_IP", "status.podIP")],
        "securityContext": AS_PROXY,
    }


def workload(kind, pod, replicas=1):
    """A Deployment, StatefulSet or DaemonSet of pods like this one."""
    pod = copy.deepcopy(pod)
    meta = pod["metadata"]
    spec = {"selector": {"matchLabels": {"app": meta["labels"]["app"]}}, "replicas": replicas,
            "template": {"metadata": {key: meta[key] for key in ("labels", "annotations")}, "spec": pod["spec"]}}
    if kind == "DaemonSet":
        del spec["replicas"]
    if kind == "StatefulSet":
        spec["serviceName"] = meta["name"]
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": meta["name"], "namespace": meta["namespace"]}, "spec": spec}


def listing(*objects):
    """What `kubectl apply -f -` takes."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
