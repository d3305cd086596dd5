"""The lock of a run folder, with real processes: refused, taken over, released, refreshed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from runs import LOOP, ingest

from celr_ray import lock as lock_module
from celr_ray import owner as owner_module
from celr_ray import storage
from celr_ray.atomic import TEMPORARY_PREFIX
from celr_ray.cli import main
from celr_ray.errors import OutputError
from celr_ray.lock import LOCK_NAME, run_lock
from celr_ray.owner import STALE_S, encode_owner, forget_owner, make_owner
from celr_ray.run_folder import check_run_folder
from celr_ray.runtime import Work
from celr_ray.stage import StagePlan, run_stage

HOLD = """
import sys, time
from celr_ray.lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def holder(run):
    """Another process that holds the lock of the run."""
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def lock_file(run) -> Path:
    return Path(run, LOCK_NAME)


def leave_lock(run, untouched_s=0.0, **fields) -> None:
    """Put a lock there whose owner differs from this process in some fields."""
    owner = make_owner()
    forget_owner(owner)
    values = {**json.loads(encode_owner(owner)), **fields}
    storage.write_bytes(str(lock_file(run)), json.dumps(values).encode())
    os.utime(lock_file(run), times=(time.time() - untouched_s,) * 2)


def run_score(run, demo_logs) -> int:
    return main(["score", "--logs", str(demo_logs), "--run", run, "--runtime.executor", "loop"])


def test_a_second_command_is_refused_and_the_owner_named(run, holder, demo_logs, capsys):
    owner = json.loads(lock_file(run).read_text())
    assert run_score(run, demo_logs) == 2
    error = capsys.readouterr().err
    assert f"in use by process {holder.pid} on host {owner['host']}, started {owner['started']}" in error
    assert not Path(run, "plans").exists()


def test_a_killed_owner_leaves_a_lock_that_is_taken_over_at_once(run, holder, demo_logs, capsys):
    left = Path(run, f"{TEMPORARY_PREFIX}{'0' * 32}-part-00000.parquet")
    left.write_bytes(b"half")
    holder.send_signal(signal.SIGKILL)
    while ") Z " not in Path(f"/proc/{holder.pid}/stat").read_text():  # killed, and not yet waited for
        time.sleep(0.01)
    assert run_score(run, demo_logs) == 0
    assert f"took over from process {holder.pid}" in capsys.readouterr().err
    assert not lock_file(run).exists()
    assert not left.exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, None])
def test_it_is_released_on_interrupt_and_on_errors(run, holder, stop):
    if stop is None:
        with pytest.raises(ZeroDivisionError), run_lock(f"{run}-2"):
            raise ZeroDivisionError
        assert not Path(f"{run}-2").exists()
        return
    holder.send_signal(stop)
    holder.wait()
    assert not lock_file(run).exists()


def test_a_later_process_with_the_owners_number_is_no_owner(run, capsys):
    leave_lock(run, pid=os.getppid(), process_started="1")
    with run_lock(run):
        pass
    assert "took over" in capsys.readouterr().err


def test_a_lock_that_this_process_failed_to_remove_is_taken_over(run):
    leave_lock(run)
    with run_lock(run):
        pass


def test_a_living_owner_on_this_machine_is_never_overruled(run, holder):
    os.utime(lock_file(run), times=(0, 0))
    with pytest.raises(OutputError, match=f"process {holder.pid}"), run_lock(run):
        pass


@pytest.mark.parametrize("contents", ["another machine", "empty"])
def test_elsewhere_it_counts_as_left_behind_after_minutes_without_a_touch(run, contents, capsys):
    for untouched_s, is_taken in ((0, False), (STALE_S - 30, False), (STALE_S + 30, True)):
        leave_lock(run, untouched_s, machine="boot/1", host="far")
        if contents == "empty":
            lock_file(run).write_bytes(b"")
            os.utime(lock_file(run), times=(time.time() - untouched_s,) * 2)
        if is_taken:
            with run_lock(run):
                pass
        else:
            with pytest.raises(OutputError, match="in use by process"), run_lock(run):
                pass
    assert "took over" in capsys.readouterr().err


def test_it_is_hidden_and_leaves_no_folder_behind(run):
    with run_lock(f"{run}/a/b"):
        assert lock_file(f"{run}/a/b").exists()
        assert storage.list_files(run, recursive=True) == []
        check_run_folder(f"{run}/a/b", must_exist=False)
    assert not Path(run).exists()
    with run_lock(f"{run}/a/b"):
        storage.write_bytes(f"{run}/a/file", b"")
    assert os.listdir(run) == ["a"]
    assert os.listdir(f"{run}/a") == ["file"]


def test_it_can_be_entered_again_in_its_thread_only_and_by_any_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    errors = []

    def other():
        try:
            with run_lock(run):
                pass
        except OutputError as error:
            errors.append(str(error))

    with run_lock(run) as outer:
        with run_lock("run") as inner, run_lock(f"file://{run}"):
            assert inner is outer
        assert lock_file(run).exists()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in errors[0]
    assert not Path(run).exists()


def test_a_file_or_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file; give a folder"), run_lock(str(tmp_path / "file")):
        pass
    with pytest.raises(OutputError, match="cannot write"), run_lock(str(tmp_path / "file" / "deep" / "deeper")):
        pass


def test_it_is_touched_while_held_and_a_lost_one_stops_the_command(run, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.02)
    with run_lock(run) as lock:
        os.utime(lock_file(run), times=(0, 0))
        deadline = time.monotonic() + 10
        while lock_file(run).stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lock.check()
        leave_lock(run, machine="boot/1", host="far")
        time.sleep(1)
        with pytest.raises(OutputError, match="no longer ours"):
            lock.check()
    assert json.loads(lock_file(run).read_text())["host"] == "far"


def test_a_stage_holds_it_while_units_run(run):
    seen = []

    def unit_function(unit):
        seen.append(lock_file(unit["run"]).exists())
        return {"rows_in": 0}

    run_stage(run, StagePlan("pair", {}, [{}, {}]), Work(lambda: unit_function), LOOP, on_ray=False)
    assert seen == [True, True]
    assert not lock_file(run).exists()


CONTEND = """
import os, sys, time
from celr_ray.errors import OutputError
from celr_ray.lock import run_lock
run, log = sys.argv[1:]
while not os.path.exists(log):
    time.sleep(0.001)
descriptor = os.open(log, os.O_APPEND | os.O_WRONLY)
for _ in range(30):
    try:
        with run_lock(run):
            os.write(descriptor, f"in {os.getpid()}\\n".encode())
            time.sleep(0.002)
            os.write(descriptor, f"out {os.getpid()}\\n".encode())
            if os.getpid() % 2 and _ == 10:
                os._exit(0)
    except OutputError:
        time.sleep(0.001)
"""


def test_of_many_processes_one_at_a_time_holds_it_even_if_some_die_with_it(run, tmp_path):
    leave_lock(run, pid=os.getppid(), process_started="1")
    log = tmp_path / "log"
    processes = [subprocess.Popen([sys.executable, "-c", CONTEND, run, str(log)]) for _ in range(6)]
    time.sleep(1)
    log.write_text("")
    for process in processes:
        assert process.wait(120) == 0
    lines = log.read_text().splitlines()
    assert len(lines) > 10
    for entered, left in zip(lines[::2], lines[1::2], strict=True):
        assert (entered.split()[0], left.split()[0]) == ("in", "out")
        assert entered.split()[1] == left.split()[1]


def test_process_numbers_mean_nothing_on_another_machine(monkeypatch):
    owner = make_owner()
    assert not owner_module.is_gone(owner, STALE_S + 1)
    monkeypatch.setattr(owner_module, "_machine", lambda: "elsewhere")
    assert owner_module.is_gone(owner, STALE_S + 1)
    assert not owner_module.is_gone(owner, STALE_S - 1)
    forget_owner(owner)


def test_a_run_made_under_the_lock_is_an_ordinary_run(run, demo_logs):
    with run_lock(run):
        assert ingest(run, demo_logs).counts["rows_out"] == 92
    assert not [name for name in os.listdir(run) if name.startswith(".")]
