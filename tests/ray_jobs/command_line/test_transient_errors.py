"""Which errors are transient, so that another attempt may succeed."""

from __future__ import annotations

import pickle

import mlflow.exceptions
import pytest
import ray.exceptions
import torch
from ray.train import WorkerGroupError

from ray_jobs.command_line.transient_errors import find_root_error, is_transient
from service.errors import AccessError, SlideError, StorageError, UsageError


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ConnectionResetError(),
        TimeoutError(),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("[gloo] Connection closed by peer [10.0.0.2]:4711"),
        RuntimeError("can't start new thread"),
        mlflow.exceptions.MlflowException("503"),
        ray.exceptions.NodeDiedError("gone"),
        StorageError("no answer"),
        SlideError("torn"),
    ],
    ids=repr,
)
def test_failures_of_stores_network_devices_and_clusters_are_transient(error: Exception) -> None:
    assert is_transient(find_root_error(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        TypeError(),
        KeyError("x"),
        AssertionError(),
        RecursionError(),
        NotImplementedError(),
        UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        UsageError("no such column"),
        AccessError("no"),
    ],
    ids=repr,
)
def test_errors_of_the_program_and_of_the_user_are_not_transient_also_within_a_worker(error: Exception) -> None:
    from_task = ray.exceptions.RayTaskError("f", "Traceback ...", error).as_instanceof_cause()
    of_group = WorkerGroupError("two failed", {0: ConnectionResetError(), 1: error})
    for wrapped in (error, from_task, of_group):
        assert type(find_root_error(wrapped)) is type(error)
        assert not is_transient(find_root_error(wrapped))
    assert pickle.loads(pickle.dumps(of_group)).worker_failures.keys() == {0, 1}
