"""The manifests of infra/k8s, as each overlay renders them."""

from __future__ import annotations

import copy
import functools
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from ray_jobs import score, train, tune
from service.environment import read_cluster_limit
from service.settings.service import read_service_settings
from tests.infra.kustomize import rendered
from tests.infra.schemas import Manifest, check_kubernetes, pod_templates

K8S = Path(__file__).parents[2] / "infra" / "k8s"
FOLDERS = ["overlays/staging", "overlays/production", "overlays/staging/jobs", "overlays/production/jobs"]


@functools.cache
def _all(folder: str) -> tuple[Manifest, ...]:
    return tuple(rendered(K8S / folder))


def _find(folder: str, kind: str, name: str) -> Manifest:
    return copy.deepcopy(next(m for m in _all(folder) if (m["kind"], m["metadata"]["name"]) == (kind, name)))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_manifest_keeps_to_its_schema(folder: str) -> None:
    for manifest in _all(folder):
        check_kubernetes(manifest)


BREAKS: dict[str, tuple[str, str, str, Callable[[Manifest], object]]] = {
    "unknown key in a deployment": ("overlays/staging", "Deployment", "api", lambda m: m["spec"].update(replica=3)),
    "unknown key in a container": (
        "overlays/staging",
        "RayCluster",
        "magnet",
        lambda m: m["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0].update(imagePullPolcy="Always"),
    ),
    "misspelt RayCluster key": ("overlays/staging", "RayCluster", "magnet", lambda m: m["spec"].update(authOption={})),
    "misspelt RayJob key": (
        "overlays/staging/jobs",
        "RayJob",
        "example-train",
        lambda m: m["spec"].update(backofLimit=1),
    ),
    "number where Ray wants text": (
        "overlays/staging",
        "RayCluster",
        "magnet",
        lambda m: m["spec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    ),
    "RayJob that Kueue refuses": (
        "overlays/staging/jobs",
        "RayJob",
        "example-score",
        lambda m: m["spec"].update(shutdownAfterJobFinishes=False),
    ),
    "policy's port misspelt": (
        "overlays/production",
        "NetworkPolicy",
        "redis",
        lambda m: m["spec"]["ingress"][0]["ports"][0].update(prot=6379),
    ),
    "quota under a wrong key": (
        "overlays/production",
        "ClusterQueue",
        "magnet",
        lambda m: m["spec"].update(resourceGroup=m["spec"].pop("resourceGroups")),
    ),
    "monitor without port": (
        "overlays/production",
        "PodMonitor",
        "ray",
        lambda m: m["spec"]["podMetricsEndpoints"][0].pop("port"),
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_manifest_is_caught(what: str) -> None:
    folder, kind, name, damage = BREAKS[what]
    manifest = _find(folder, kind, name)
    damage(manifest)
    with pytest.raises(jsonschema.ValidationError):
        check_kubernetes(manifest)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("namespace: magnet-staging", "namspace: magnet-staging", "namspace"),
        ("kind: RayCluster, name: magnet", "kind: RayCluster, name: other", "is not there"),
        ("  - postgres.yaml", "  - postgresql.yaml", "is not there"),
    ],
)
def test_a_broken_kustomization_is_caught(tmp_path: Path, old: str, new: str, message: str) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s/overlays/staging/kustomization.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises((ValueError, jsonschema.ValidationError), match=message):
        rendered(file.parent)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_pod_runs_as_root_and_every_pinned_image_has_a_tag(folder: str) -> None:
    for manifest in _all(folder):
        for template in pod_templates(manifest):
            pod = template["spec"]
            assert pod["securityContext"]["runAsNonRoot"], manifest["metadata"]["name"]
            for container in pod["containers"]:
                assert not container["securityContext"]["allowPrivilegeEscalation"], container["name"]
                tag = container["image"].partition("/")[2].partition(":")[2] or container["image"].partition(":")[2]
                assert tag not in ("", "latest"), container["image"]
                mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
                claims = [c["metadata"]["name"] for c in manifest["spec"].get("volumeClaimTemplates", [])]
                assert mounted == {volume["name"] for volume in pod.get("volumes", [])} | set(claims)


@pytest.mark.parametrize("overlay", ["staging", "production"])
def test_what_pods_refer_to_is_there_or_a_documented_secret(overlay: str) -> None:
    manifests = _all(f"overlays/{overlay}")
    there = {m["metadata"]["name"] for m in manifests if m["kind"] == "ConfigMap"}
    readme = (K8S.parent / "README.md").read_text()
    for manifest in manifests:
        for template in pod_templates(manifest):
            for volume in template["spec"].get("volumes", []):
                if "configMap" in volume:
                    assert volume["configMap"]["name"] in there
                if "secret" in volume:
                    assert f"`{volume['secret']['secretName']}`" in readme
            for container in template["spec"]["containers"]:
                assert {source["configMapRef"]["name"] for source in container.get("envFrom", [])} <= there


@pytest.mark.parametrize("overlay", ["staging", "production"])
def test_the_service_takes_its_settings(overlay: str, tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(_find(f"overlays/{overlay}", "ConfigMap", "magnet-settings")["data"]["service.yaml"])
    settings = read_service_settings(str(file), [])
    assert settings.ray == "http://magnet-head-svc:8265"  # KubeRay's name: the cluster's, then -head-svc
    assert (
        _find(f"overlays/{overlay}", "RayCluster", "magnet")["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"]
        == "0"
    )
    assert settings.mlflow == "http://mlflow:5000"


@pytest.mark.parametrize(("kind", "module"), [("train", train), ("tune", tune), ("score", score)])
def test_jobs_are_commands_that_the_image_has(kind: str, module: object) -> None:
    words = shlex.split(_find("overlays/production/jobs", "RayJob", f"example-{kind}")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", f"ray_jobs.{kind}"]
    parser = module._make_parser()  # type: ignore[attr-defined]  # the one that the job's own main uses
    parser.parse_args(words[3:])
    with pytest.raises(SystemExit):
        parser.parse_args([*words[3:], "--manifset", "x"])


@pytest.mark.parametrize("overlay", ["staging", "production"])
def test_jobs_know_what_the_cluster_can_grow_to(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it begins without a GPU."""
    spec = _find(f"overlays/{overlay}", "RayCluster", "magnet")["spec"]
    [variable] = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    monkeypatch.setenv(variable["name"], variable["value"])
    most = {"CPU": 0.0, "GPU": 0.0}
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        most["CPU"] += group["maxReplicas"] * int(limits["cpu"])
        most["GPU"] += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    assert read_cluster_limit() == most
    assert {group["groupName"]: group["minReplicas"] for group in spec["workerGroupSpecs"]}["gpu"] == 0
