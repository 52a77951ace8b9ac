"""SIGTERM is noticed in any thread during a training, and ends the process again afterwards."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from ray.exceptions import RayActorError

from ray_jobs.training.preemption import PreemptionNotice


def send_signals() -> tuple[bool, bool]:
    """Return whether there is a notice before the signals, and after them."""
    with PreemptionNotice() as notice:
        before = notice.signalled()
        for _ in range(1000):  # their tracebacks exceed what a pipe can hold
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # it has arrived when this returns
        return before, notice.signalled()


def test_a_thread_notices_the_signal_instead_of_the_handler_of_ray() -> None:
    def fatal(number: int, frame: object) -> None:
        raise SystemExit("the process receives a SIGTERM")

    previous = signal.signal(signal.SIGTERM, fatal)
    try:
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(send_signals).result() == (False, True)
        assert signal.getsignal(signal.SIGTERM) is fatal
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_after_a_training_the_signal_ends_the_process() -> None:
    code = """
import os, signal, time
from ray_jobs.training.preemption import PreemptionNotice
with PreemptionNotice(): pass
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code])
    assert done.returncode == -signal.SIGTERM


def test_the_error_that_ray_counts_as_a_preemption_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(RayActorError(error_msg="leaving", preempted=True))).preempted
