"""Where a result comes from: code, packages and machine, as tags of a run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path

import psutil
import torch

PACKAGES = ("torch", "timm", "ray", "mlflow", "numpy", "imagecodecs", "obstore", "openslide-python")
"""Packages whose versions become tags; `installed_packages` lists all packages."""


def environment_tags() -> dict[str, str]:
    """Return code, versions, machine and Ray job of this process."""
    tags = {f"version.{name}": version(name) for name in PACKAGES}
    tags |= {"python": platform.python_version(), "host": platform.node(), "mlflow.user": os.environ.get("USER", "")}
    tags |= {"mlflow.source.name": " ".join(sys.argv), "mlflow.source.type": "JOB"}
    if job := json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {}):
        tags["ray_job"] = job.get("job_submission_id", "")
    return tags | git_tags(Path(__file__).resolve().parents[2])


def installed_packages() -> str:
    """Return all packages of this interpreter with their versions, in the format of pip's requirements files."""
    # A set: a package that several folders of sys.path hold is listed several times.
    lines = {
        f"{package.metadata['Name']}=={package.version}" for package in distributions() if package.metadata["Name"]
    }
    return "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def hardware_tags(device: torch.device) -> dict[str, str]:
    """Return CPU, memory and GPU of the machine that this process computes on."""
    tags = {
        "hardware.cpu": f"{platform.machine()}, {os.cpu_count()} logical cores",
        "hardware.memory_gb": f"{psutil.virtual_memory().total / 1e9:.0f}",
        "hardware.gpu": "none",
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        tags |= {
            "hardware.gpu": gpu.name,
            "hardware.gpu_memory_gb": f"{gpu.total_memory / 1e9:.0f}",
            "hardware.cuda": str(torch.version.cuda),
        }
    return tags


def git_tags(folder: Path) -> dict[str, str]:
    """Return the commit of a folder, and whether its files were changed.

    Without git or a repository (as in a container image) the commit is the value of MAGNET_GIT_COMMIT.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        commit, dirty = os.environ.get("MAGNET_GIT_COMMIT", "unknown"), False
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(dirty).lower()}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
