"""What `kubectl kustomize` makes of a folder, for the few of its features that infra/k8s uses; others are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonpatch
import jsonschema
import yaml

from tests.infra.schemas import TEXT, TEXTS, Manifest, closed, listed, one_of

CLUSTER_WIDE = ("Namespace", "ClusterQueue", "ResourceFlavor")
KUSTOMIZATION = closed(
    "apiVersion kind resources",
    apiVersion={"const": "kustomize.config.k8s.io/v1beta1"},
    kind=one_of("Kustomization"),
    namespace=TEXT,
    resources=listed(TEXT),
    labels=listed(closed("pairs", pairs=TEXTS)),
    images=listed(closed("name newName newTag", name=TEXT, newName=TEXT, newTag=TEXT)),
    patches=listed(
        closed("target patch", target=closed("kind", group=TEXT, version=TEXT, kind=TEXT, name=TEXT), patch=TEXT)
    ),
)


def rendered(folder: Path) -> list[Manifest]:
    """The folder's manifests.

    Raises:
        jsonschema.ValidationError: the kustomization has an unknown key.
        ValueError: a patch meets no manifest, or a resource is not there.
        jsonpatch.JsonPatchException: a patch does not fit.
    """
    own = yaml.safe_load((folder / "kustomization.yaml").read_text())
    jsonschema.validate(own, KUSTOMIZATION)
    manifests = [manifest for name in own["resources"] for manifest in _resource(folder / name)]
    for patch in own.get("patches", []):
        manifests = _patched(manifests, patch["target"], jsonpatch.JsonPatch(yaml.safe_load(patch["patch"])))
    images = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in own.get("images", [])}
    for manifest in manifests:
        for pairs in own.get("labels", []):
            manifest["metadata"].setdefault("labels", {}).update(pairs["pairs"])
        if "namespace" in own and manifest["kind"] not in CLUSTER_WIDE:
            manifest["metadata"]["namespace"] = own["namespace"]
        _rename(manifest, images)
    return manifests


def _resource(path: Path) -> list[Manifest]:
    if path.is_dir():
        return rendered(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there")
    return list(yaml.safe_load_all(path.read_text()))


def _patched(manifests: list[Manifest], target: Manifest, patch: jsonpatch.JsonPatch) -> list[Manifest]:
    meant = [_is_meant(manifest, target) for manifest in manifests]
    if not any(meant):
        raise ValueError(f"a patch is for {target}, which is not there")
    return [patch.apply(manifest) if hit else manifest for manifest, hit in zip(manifests, meant, strict=True)]


def _is_meant(manifest: Manifest, target: Manifest) -> bool:
    group, _, version = manifest["apiVersion"].rpartition("/")
    found = {"group": group, "version": version, "kind": manifest["kind"], "name": manifest["metadata"]["name"]}
    return all(re.fullmatch(wanted, found[key]) for key, wanted in target.items())


def _rename(part: Any, images: dict[str, str]) -> None:
    """Images of all containers, wherever they are, as kustomize does."""
    if isinstance(part, dict):
        for container in part.get("containers", []):
            container["image"] = images.get(container["image"], container["image"])
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _rename(inner, images)
