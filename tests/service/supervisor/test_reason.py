"""The reason of a failure, from the output of a command that did not record its error."""

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
    collected = Reason()
    for line in "".join(texts).splitlines():
        collected.take(line)
    return collected.text(killed=killed)


def test_an_exception_comes_before_the_last_line() -> None:
    assert reason("epoch 3 done\n", TRACEBACK, RAY, NATIVE, "bye\n").startswith("ray.exceptions.ActorDiedError: The")
    assert reason("epoch 3 done\n", RAY, NATIVE) == "epoch 3 done"
    assert reason(RAY, NATIVE) == ""


def test_the_last_line_is_quoted_without_the_word_error() -> None:
    assert reason("step 3/9\n", "error: no such slide\n", RAY) == "no such slide"


def test_the_line_of_a_worker_is_quoted_without_the_name_of_its_process() -> None:
    assert reason("(RayTrainWorker pid=7, ip=10.0.0.2) KeyError: 'x'\n", RAY) == "KeyError: 'x'"


def test_a_crash_in_native_code_is_named_as_python_names_it() -> None:
    assert reason("Fatal Python error: Segmentation fault\n", NATIVE) == "Fatal Python error: Segmentation fault"


def test_an_exception_before_a_kill_is_not_the_reason() -> None:
    assert reason("KeyError: 'x'\n", "step 3/9\n", RAY, killed=True) == "step 3/9"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (137, "killed by SIGKILL, as when memory runs out; last output: step 3"),
        (139, "killed by SIGSEGV, a crash in native code; last output: step 3"),
        (143, "killed by SIGTERM, as when its node or cluster is shut down; last output: step 3"),
        (1, None),
        (128, None),
        (255, None),
    ],
)
def test_a_signal_is_named_with_its_usual_cause(code: int, reason: str | None) -> None:
    assert signal_reason(code, "step 3") == reason
