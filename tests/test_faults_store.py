"""Where a run is kept fails: the disk is full in any stage, the object store dies during an upload.

Each is one clear error that names the path, leaves no part of a file under a final name, and is made good by the same
command once there is room, or the store is back.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import LOOP, ROWS, check_files_are_whole, read_contents, write_logs
from s3_server import CuttingProxy, S3Server, aws_environment

from celr_ray import storage
from celr_ray.cli import main
from celr_ray.config import JudgeConfig
from celr_ray.errors import UsageError
from celr_ray.testing import FakeJudge
from celr_ray.training.judge import run_judge

UNITS = ("--ingest.files-per-unit", "1", "--ingest.split-bytes", "40000", "--ingest.n-buckets", "4")
IN_A_LOOP = ("--runtime.executor", "loop")
BUCKET = "celr-faults"


STAGES = ("ingest", "judge", "pair", "export", "report", "convert")


def run_stage(stage: str, logs: Path, run: Path | str) -> int:
    """Run one stage by its command, the judge without a model; returns the exit code, errors are on stderr."""
    if stage == "judge":
        try:
            run_judge(str(run), JudgeConfig(checkpoint_rows=20), LOOP, on_ray=False, llm=FakeJudge())
        except UsageError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        return 0
    words = ["score", "--logs", str(logs), *UNITS] if stage == "ingest" else [stage]
    return main([*words, "--run", str(run), *([] if stage == "report" else IN_A_LOOP)])


@pytest.fixture(scope="module")
def logs(tmp_path_factory, demo_logs) -> Path:
    return write_logs(tmp_path_factory.mktemp("logs"), demo_logs, 2)


@pytest.fixture
def disk(tmp_path):
    """A file system in memory; skips where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def resize(disk: Path, room_bytes: int) -> None:
    """Leave so much room on a file system, whatever is on it."""
    state = os.statvfs(disk)
    used = (state.f_blocks - state.f_bfree) * state.f_frsize
    subprocess.run(["mount", "-o", f"remount,size={used + room_bytes}", str(disk)], check=True)


def measure_pages(run: Path) -> int:
    """Return the bytes of whole pages that a run's files take."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in run.rglob("*") if path.is_file())


def test_a_full_disk_in_each_stage(logs, disk, tmp_path, capsys):
    whole, run = tmp_path / "whole", disk / "run"
    for stage in STAGES:
        before = measure_pages(whole)
        assert run_stage(stage, logs, whole) == 0
        resize(disk, (measure_pages(whole) - before) // 2)
        assert run_stage(stage, logs, run) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"cannot write {run}/" in error
        assert "No space left on device" in error
        check_files_are_whole(run)
        resize(disk, 32 * 2**20)
        assert run_stage(stage, logs, run) == 0
    assert not list(run.rglob(".*"))
    assert (run / "report" / "index.html").exists()
    assert read_contents(run, ROWS) == read_contents(whole, ROWS)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = S3Server(tmp_path_factory.mktemp("s3"))
    one.start()
    try:
        one.client().create_bucket(Bucket=BUCKET)
        yield one
    finally:
        one.kill()


def download(uri: str, folder: Path) -> Path:
    """Copy a run from the store to disk, hidden objects included."""
    for file in storage.list_files(uri, recursive=True, with_hidden=True):
        storage.write_bytes(str(folder / file.uri.removeprefix(f"{uri}/")), storage.read_bytes(file.uri))
    return folder


@pytest.mark.slow
def test_a_store_that_dies_during_requests_of_each_stage(server, logs, tmp_path, monkeypatch, capsys):
    proxy = CuttingProxy(server.port)
    for name, value in aws_environment(proxy.port).items():
        monkeypatch.setenv(name, value)
    whole, run = (f"s3://{BUCKET}/{name}/run" for name in ("whole", "hit"))
    for stage in STAGES:
        proxy.cut(None)
        assert run_stage(stage, logs, whole) == 0
        proxy.cut(proxy.passed // 2, then=server.kill)
        assert run_stage(stage, logs, run) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f" {run}/" in error
        assert "does not answer" in error
        server.start()
        proxy.cut(None)
        check_files_are_whole(download(run, tmp_path / stage))
        assert run_stage(stage, logs, run) == 0
    hit = download(run, tmp_path / "hit")
    assert not list(hit.rglob(".*"))
    assert (hit / "report" / "index.html").exists()
    assert read_contents(hit, ROWS) == read_contents(download(whole, tmp_path / "whole"), ROWS)
    proxy.close()
