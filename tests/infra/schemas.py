"""Schemas of the manifests in infra/, closed: an unknown key is an error.

Compose's and Kubernetes' are the projects' own, from the packages check-jsonschema and kubernetes-validate; Ray's
cluster file has one in Ray itself. KubeRay's, Kueue's and the Prometheus operator's are in no package: here are closed
ones of the keys that infra/ uses, weaker evidence than a project's own: see infra/README.md for what they rest on.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.37.0"

Manifest = dict[str, Any]


def closed(required: str, **properties: Any) -> dict[str, Any]:
    """An object of exactly these properties; the names in `required` must be there."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


TEXT, COUNT, SWITCH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
SECRET_KEY = closed("name key", name=TEXT, key=TEXT)
SELECTOR = closed("matchLabels", matchLabels=TEXTS)
POD: dict[str, Any] = {"type": "object"}
"""A pod template, which `check` gives to Kubernetes' own schema."""
SECURITY = closed(
    "", allowPrivilegeEscalation=SWITCH, capabilities=closed("drop", drop=listed(TEXT)), runAsNonRoot=SWITCH
)

RAY_CLUSTER = closed(
    "rayVersion headGroupSpec workerGroupSpecs authOptions",
    rayVersion=TEXT,
    enableInTreeAutoscaling=SWITCH,
    autoscalerOptions=closed(
        "",
        idleTimeoutSeconds=COUNT,
        upscalingMode=one_of("Conservative", "Default", "Aggressive"),
        securityContext=SECURITY,
    ),
    authOptions=closed("mode", mode=one_of("disabled", "token"), secretName=TEXT),
    gcsFaultToleranceOptions=closed(
        "redisAddress",
        redisAddress=TEXT,
        redisPassword=closed("valueFrom", valueFrom=closed("secretKeyRef", secretKeyRef=SECRET_KEY)),
        externalStorageNamespace=TEXT,
    ),
    headGroupSpec=closed("rayStartParams template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=listed(
        closed(
            "groupName replicas minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
RAY_JOB = closed(
    "entrypoint rayClusterSpec shutdownAfterJobFinishes",
    submissionMode=one_of("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
    entrypoint=TEXT,
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes={"const": True},  # Kueue refuses a RayJob without
    ttlSecondsAfterFinished=COUNT,
    submitterPodTemplate=POD,
    rayClusterSpec=RAY_CLUSTER,
)
QUOTA = closed("name nominalQuota", name=TEXT, nominalQuota=TEXT)
RESOURCE_GROUP = closed(
    "coveredResources flavors",
    coveredResources=listed(TEXT),
    flavors=listed(closed("name resources", name=TEXT, resources=listed(QUOTA))),
)
SPECS: dict[tuple[str, str], dict[str, Any] | None] = {
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): None,
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): closed("clusterQueue", clusterQueue=TEXT),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): closed(
        "resourceGroups",
        namespaceSelector=SELECTOR,
        queueingStrategy=one_of("BestEffortFIFO", "StrictFIFO"),
        resourceGroups=listed(RESOURCE_GROUP),
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): closed(
        "selector podMetricsEndpoints",
        selector=SELECTOR,
        podMetricsEndpoints=listed(closed("port", port=TEXT, path=TEXT, interval=TEXT)),
    ),
}
"""Of each kind that Kubernetes itself does not know, the schema of `spec`; None: it has none here."""
METADATA = closed("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)

ALERT = closed(
    "alert expr labels annotations",
    alert=TEXT,
    expr=TEXT,
    labels=closed("severity", severity=one_of("page", "ticket")),
    annotations=closed("summary action", summary=TEXT, action=TEXT),
    **{"for": TEXT},
)
RULES = closed("groups", groups=listed(closed("name rules", name=TEXT, rules=listed(ALERT))))


def check_kubernetes(manifest: Manifest) -> None:
    """Raises what its schema has against a manifest."""
    known = (manifest["apiVersion"], manifest["kind"])
    if known not in SPECS:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    spec = SPECS[known]
    whole = {"apiVersion": TEXT, "kind": TEXT, "metadata": METADATA} | ({"spec": spec} if spec else {})
    jsonschema.validate(manifest, closed("metadata spec" if spec else "metadata", **whole))
    for template in pod_templates(manifest):
        as_kind = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        kubernetes_validate.validate(as_kind, KUBERNETES, strict=True)


def pod_templates(manifest: Manifest) -> list[Manifest]:
    """Of a manifest's pods, wherever they are."""
    spec: Manifest = manifest.get("spec", {})
    own = [spec[key] for key in ("template", "submitterPodTemplate") if key in spec]
    cluster: Manifest = spec.get("rayClusterSpec", spec)
    groups = [cluster[key] for key in ("headGroupSpec",) if key in cluster] + cluster.get("workerGroupSpecs", [])
    return own + [group["template"] for group in groups]


def check_compose(manifest: Manifest) -> None:
    """Raises what the Compose specification's schema has against a file."""
    text = (files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text()
    jsonschema.validate(manifest, json.loads(text))


def check_ray_cluster_file(manifest: Manifest) -> None:
    """Raises what Ray's own schema has against a cluster file, with each node type closed as well."""
    schema = json.loads((files("ray") / "autoscaler" / "ray-schema.json").read_text())
    for node_type in schema["properties"]["available_node_types"]["patternProperties"].values():
        node_type["additionalProperties"] = False
    jsonschema.validate(manifest, schema)


def check_rules(manifest: Manifest) -> None:
    """Raises what is wrong with a file of alerts."""
    jsonschema.validate(manifest, RULES)
