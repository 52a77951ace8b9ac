"""A signal that ends processes is noticed, in any thread, and ends them again afterwards."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from ray.exceptions import RayActorError

from ray_jobs.training.preemption import Notice


def noticed() -> tuple[bool, bool]:
    """Before and after the signal."""
    with Notice() as notice:
        before = notice.given()
        for _ in range(1000):  # more than a pipe holds
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # has arrived when it returns
        return before, notice.given()


def test_a_thread_notices_the_signal_although_ray_has_a_handler_of_its_own() -> None:
    def fatal(number: int, frame: object) -> None:
        raise SystemExit("the process receives a SIGTERM")

    own = signal.signal(signal.SIGTERM, fatal)
    try:
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(noticed).result() == (False, True)
        assert signal.getsignal(signal.SIGTERM) is fatal
    finally:
        signal.signal(signal.SIGTERM, own)


def test_without_a_training_the_signal_ends_the_process() -> None:
    code = "import os, signal, time\nfrom ray_jobs.training.preemption import Notice\nwith Notice(): pass\n"
    done = subprocess.run([sys.executable, "-c", f"{code}os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)"])
    assert done.returncode == -signal.SIGTERM


def test_what_ray_counts_as_a_preemption_reaches_its_controller_as_one() -> None:
    assert pickle.loads(pickle.dumps(RayActorError(error_msg="leaving", preempted=True))).preempted
