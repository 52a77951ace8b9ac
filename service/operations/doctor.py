"""Checks of everything that a service needs, each with an instruction for the case that it fails."""

from __future__ import annotations

from collections.abc import Callable

import httpx2

from service.errors import MagnetError
from service.operations import machine_checks, part_checks
from service.operations.check import Check
from service.settings.service import ServiceSettings

CHECKS: tuple[tuple[str, Callable[[ServiceSettings], Check], str], ...] = (
    (
        "storage",
        machine_checks.check_storage,
        "check the credentials (AWS_*), AWS_ENDPOINT_URL, and that the bucket or folder exists",
    ),
    ("disk", machine_checks.check_disk, "check that the storage folder exists"),
    ("secrets", machine_checks.check_secrets, "check the owner of the files"),
    ("network", machine_checks.check_network, "check host, hosts, tls_certificate and tls_key in the settings"),
    (
        "database",
        part_checks.check_database,
        "start the database, check `database` in the settings, and the rights of the database's user",
    ),
    ("dispatcher", part_checks.check_dispatcher, "start a dispatcher: magnet dispatch --config FILE, or magnet serve"),
    (
        "ray",
        part_checks.check_ray,
        "start the Ray cluster, and check `ray` in the settings, RAY_AUTH_MODE and RAY_AUTH_TOKEN",
    ),
    ("gpu", part_checks.check_gpus, "add nodes with GPUs; without them, jobs run slowly on CPUs"),
    (
        "mlflow",
        part_checks.check_mlflow,
        "start MLflow: mlflow server ..., with --allowed-hosts for host names other than localhost",
    ),
    ("api", part_checks.check_api, "start the API: magnet api --config FILE, or magnet serve"),
    ("versions", machine_checks.check_versions, "reinstall the environment: pip install -e . -c constraints.txt"),
)
"""Name, function, and instruction for an error that the function raises."""


def run_checks(settings: ServiceSettings) -> list[Check]:
    """Run all checks; each is independent, so that a failed check hides no other.

    Args:
        settings: service settings.
    """
    outcomes = []
    for name, check, fix in CHECKS:
        try:
            outcomes.append(check(settings))
        # Any other error is one of this program, and must show its traceback.
        except (MagnetError, httpx2.HTTPError, OSError) as error:
            message = (str(error) or type(error).__name__).splitlines()[0]
            outcomes.append(Check(name, False, message, fix))
    return outcomes
