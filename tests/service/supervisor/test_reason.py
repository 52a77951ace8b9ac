"""The line that says why a command failed."""

from __future__ import annotations

import pytest

from service.queue.signals import signal_reason
from service.supervisor.reason import Reason

TRACEBACK = """Traceback (most recent call last):
  File "/opt/x.py", line 3, in main
    raise ValueError("x")
          ^^^^^^^^^^^^^^^
ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
"""
NATIVE = """*** SIGSEGV received at time=1764312000 on cpu 1 ***
PC: @     0x7f3a1c2d4e5f  (unknown)  raise
    @     0x7f3a1c2d4e5f         64  (unknown)
[2026-11-28 06:00:00,123 E 343 376] logging.cc:460: *** SIGSEGV received at time=1764312000 on cpu 1 ***
Current thread 0x00007f3a1c2d4e5f (most recent call first):
  File "/opt/x.py", line 3 in main
  <no Python frame>
Extension modules: numpy._core._multiarray_umath, torch._C (total: 2)
#0 0x00007f3a1c2d4e5f in raise () from /lib/libc.so.6
/lib/x86_64-linux-gnu/libc.so.6(+0x42520) [0x7f3a1c2d4e5f]
"""
RAY = """(raylet) Some workers of the worker process(1) have not registered within the timeout.
(autoscaler +1m2s) Tip: use `ray status` to view detailed cluster status.
[2026-11-23 04:04:19,726 E 343 376] core_worker.cc:2465: something of Ray's own
[2026-11-23 04:04:19,726 C 343 376] (raylet) node_manager.cc:2: Check failed: x
2026-11-28 06:00:00,123\tWARNING worker.py:1234 -- a worker died
2026-11-28 06:00:00,123\tERROR services.py:1 -- Failed to start
scoring:  45%|####      | 5/11 [00:10<00:12, 1.2s/slide]
"""


def reason(*texts: str, killed: bool = False) -> str:
    own = Reason()
    for line in "".join(texts).splitlines():
        own.take(line)
    return own.text(killed=killed)


def test_the_jobs_own_error_comes_before_exceptions_and_last_lines() -> None:
    assert reason("error: no such slide\n", TRACEBACK, NATIVE, RAY, "bye\n") == "no such slide"


def test_of_several_problems_the_first_one_is_named() -> None:
    lines = ("error: m.csv: 2 problems\n", "  row 2, column uri: is empty\n", "  row 3: has 1 cells\n")
    assert reason(*lines) == "m.csv: 2 problems: row 2, column uri: is empty"


def test_then_the_exception_and_then_the_last_line() -> None:
    assert reason("epoch 3 done\n", TRACEBACK, RAY, NATIVE, "bye\n").startswith("ray.exceptions.ActorDiedError: The")
    assert reason("epoch 3 done\n", RAY, NATIVE) == "epoch 3 done"
    assert reason(RAY, NATIVE) == ""


def test_a_worker_that_ray_names_is_quoted_without_its_name() -> None:
    assert reason("(RayTrainWorker pid=7, ip=10.0.0.2) KeyError: 'x'\n", RAY) == "KeyError: 'x'"


def test_of_a_crash_python_itself_says_what_it_was() -> None:
    assert reason("Fatal Python error: Segmentation fault\n", NATIVE) == "Fatal Python error: Segmentation fault"


def test_an_error_before_a_kill_is_not_its_reason() -> None:
    assert reason("error: retried\n", "step 3/9\n", RAY, killed=True) == "step 3/9"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (137, "killed by SIGKILL, as when memory runs out; last output: step 3"),
        (139, "killed by SIGSEGV, a crash in native code; last output: step 3"),
        (143, "killed by SIGTERM, as when its node or cluster is shut down; last output: step 3"),
        (1, None),
        (128, None),
        (255, None),
    ],
)
def test_signals_are_named_with_what_they_come_from(code: int, said: str | None) -> None:
    assert signal_reason(code, "step 3") == said
