"""Local paths that do not exist, in commands that submit jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cli.main import run
from tests.service.cli.http_server import Reply, serving


@pytest.mark.parametrize(
    "argv",
    [
        ["submit", "check", "--manifest", "none.csv"],
        ["check", "none.csv"],
        ["submit", "score", "--manifest", "here.csv", "--model", "models:/m@champion", "--outlines", "none"],
        ["schedule", "0 2 * * *", "check", "--manifest", "none.csv"],
        ["watch", "none/"],
    ],
    ids=" ".join,
)
def test_a_missing_local_path_is_refused_before_anything_is_sent(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.csv").write_text("slide_id,uri\n")
    with serving({}) as server:
        monkeypatch.setenv("MAGNET_URL", server.url)
        assert run(argv) == 2
        assert f"{tmp_path}/none" in capsys.readouterr().err
        assert server.requests == []
        run([*argv, "--no-path-check"])  # the service runs elsewhere, behind a tunnel
        assert [request.method for request in server.requests] == ["POST"]


def test_paths_of_a_service_on_another_machine_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving({"POST http://magnet.invalid/v1/jobs": Reply({"detail": "no"}, 422)}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("MAGNET_URL", "http://magnet.invalid")
        assert run(["check", "/none.csv"]) == 2
        assert len(proxy.requests) == 1
