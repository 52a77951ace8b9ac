"""Options that several commands share."""

from __future__ import annotations

import time

import pytest

from ray_jobs.command_line import arguments
from service import exit_status
from service.errors import UsageError


def test_options_become_overrides_after_those_of_set() -> None:
    parser = arguments.make_parser("x.py", "What it does.")
    for option in ("--set", "--epochs", "--seed", "--num-workers", "--schedule", "--gpu-memory"):
        arguments.add_shared(parser, option)
    names = ("epochs", "seed", "num_workers", "schedule", "gpu_memory")
    options = arguments.parse(parser, ["--seed", "0", "--set", "a.b=1", "--schedule", "3,2", "--gpu-memory", "24GB"])
    assert arguments.to_overrides(options, *names) == [
        "a.b=1",
        "recipe.seed=0",
        "model.zoom.schedule=[3,2]",
        "compute.gpu_memory_gb=24.0",
    ]


def test_without_arguments_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    parser = arguments.make_parser("x.py", "What it does.")
    with pytest.raises(SystemExit) as end:
        arguments.parse(parser, [])
    assert end.value.code == exit_status.USAGE
    assert "What it does." in capsys.readouterr().out


def test_new_job_names_are_unique_and_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({arguments.make_job_name("train") for _ in range(50)}) == 50
    real = time.strftime
    monkeypatch.setattr(time, "strftime", lambda form: real(form, time.gmtime(0)))
    early = arguments.make_job_name("train")
    monkeypatch.setattr(time, "strftime", lambda form: real(form, time.gmtime(10**9)))
    assert early < arguments.make_job_name("train")
    assert early.startswith("train-19700101-000000-")


@pytest.mark.parametrize("name", ["cohort-7", "a", "2026.11_x"])
def test_valid_job_names_are_accepted(name: str) -> None:
    assert arguments.choose_job_name(name, "train") == name


@pytest.mark.parametrize("option", [None, ""])
def test_without_a_name_a_new_one_is_made(option: str | None) -> None:
    assert arguments.choose_job_name(option, "tune").startswith("tune-")


@pytest.mark.parametrize("name", ["it's", "a/b", "-x", "a b", "x" * 101, "é"])
def test_job_names_that_folders_or_filters_do_not_accept_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        arguments.choose_job_name(name, "train")


@pytest.mark.parametrize("text", ["", "lots", "0GB", "24MB"])
def test_a_wrong_amount_of_gigabytes_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="for example 24GB"):
        arguments.parse_gigabytes(text)


def test_gigabytes_are_read_with_and_without_unit() -> None:
    assert [arguments.parse_gigabytes(text) for text in ("24GB", "40", "11.5 gb")] == [24, 40, 11.5]
