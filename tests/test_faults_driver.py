"""The driver gets SIGKILL in the middle of each stage: the same command afterwards makes what it makes undisturbed.

The moments are seeded and spread evenly over the calls that the undisturbed command makes, so each kill hits its stage
whatever the machine is doing; some commands are killed twice in a row.
"""

import random
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from runs import OUTPUTS, check_files_are_whole, count_calls, kill_at_call, read_contents, write_logs

from celr_ray.cli import main

CUT = ("--ingest.split-bytes", "8000", "--ingest.files-per-unit", "1", "--ingest.n-buckets", "16")
COARSE = ("--ingest.split-bytes", "30000", "--ingest.files-per-unit", "1", "--ingest.n-buckets", "4")
WEIGHTS = ("--score.weight-success", "0.5", "--score.weight-efficiency", "0.25")
DELETIONS = ("delete_directory", "delete_file")


@dataclass(frozen=True)
class Fault:
    """A command to kill.

    Attributes:
        words: the command; LOGS and RUN stand for paths.
        needs: the state in which it finds the run.
        stage: the stage whose manifests it writes; none for the report.
    """

    words: tuple[str, ...]
    needs: str
    stage: str

    def command(self, logs: Path, run: Path) -> list[str]:
        places = {"LOGS": str(logs), "RUN": str(run)}
        return [*(places.get(word, word) for word in self.words), "--runtime.executor", "loop"]


FAULTS = {
    "ingest": Fault(("score", "--logs", "LOGS", "--run", "RUN", *CUT), "empty", "ingest"),
    "rescore": Fault(("score", "--run", "RUN", *WEIGHTS), "ingested", "ingest"),
    "pair": Fault(("pair", "--run", "RUN"), "ingested", "pair"),
    "export": Fault(("export", "--run", "RUN"), "paired", "export"),
    "report": Fault(("report", "--run", "RUN"), "exported", "report"),
    "convert": Fault(("convert", "--run", "RUN"), "ingested", "convert"),
    "overwrite": Fault(("score", "--logs", "LOGS", "--run", "RUN", "--overwrite", *COARSE), "exported", "ingest"),
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory, demo_logs) -> Path:
    return write_logs(tmp_path_factory.mktemp("logs"), demo_logs, 1)


@pytest.fixture(scope="module")
def states(tmp_path_factory, logs) -> dict[str, Path]:
    """Runs in the states in which the commands find them."""
    folder = tmp_path_factory.mktemp("states")
    states = {"empty": folder / "empty"}
    states["empty"].mkdir()
    for before, stage, after in (("empty", "ingest", "ingested"), ("ingested", "pair", "paired")):
        states[after] = shutil.copytree(states[before], folder / after)
        assert main(FAULTS[stage].command(logs, states[after])) == 0
    states["exported"] = shutil.copytree(states["paired"], folder / "exported")
    assert main(FAULTS["export"].command(logs, states["exported"])) == 0
    return states


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, logs, states):
    """How many calls each command makes if nothing disturbs it, and what the run holds then; found when asked for."""
    found = {}

    def measure(name):
        if name not in found:
            fault, run = FAULTS[name], tmp_path_factory.mktemp(name) / "run"
            shutil.copytree(states[fault.needs], run)
            n_calls = count_calls(partial(main, fault.command(logs, run)))
            found[name] = (n_calls, read_contents(run, OUTPUTS))
        return found[name]

    return measure


def count_units_done(run: Path, state: Path, stage: str) -> int:
    """Return how many manifests of a stage were written since the run was in a state."""
    folder = Path("manifests", stage)
    old = {path.name: path.read_bytes() for path in (state / folder).glob("part-*.json")}
    return sum(old.get(path.name) != path.read_bytes() for path in (run / folder).glob("part-*.json"))


def kill(fault: Fault, logs: Path, run: Path, n_calls: int, of: tuple[str, ...] = ()) -> None:
    """Kill a command at one of its calls and check that no file under a final name is a part of one."""
    kill_at_call(partial(main, fault.command(logs, run)), n_calls, of)
    check_files_are_whole(run)


def check_finishes(fault: Fault, logs: Path, run: Path, expected) -> None:
    """Check that the same command makes of what a kill left what it makes undisturbed."""
    assert main(fault.command(logs, run)) == 0
    assert not list(run.rglob(".*"))
    assert read_contents(run, OUTPUTS) == expected


@pytest.mark.parametrize("name", FAULTS)
def test_killed_driver(logs, states, undisturbed, tmp_path, name):
    fault = FAULTS[name]
    n_calls, expected = undisturbed(name)
    run = shutil.copytree(states[fault.needs], tmp_path / "run")
    kill(fault, logs, run, int(n_calls * 0.7))
    check_finishes(fault, logs, run, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_driver_killed_at_ten_moments(logs, states, undisturbed, tmp_path, name):
    fault, rng, done = FAULTS[name], random.Random(name), set()
    n_calls, expected = undisturbed(name)
    for number in range(10):
        run = shutil.copytree(states[fault.needs], tmp_path / str(number) / "run")
        kill(fault, logs, run, int(n_calls * (number + rng.random()) / 10.2))
        done.add(count_units_done(run, states[fault.needs], fault.stage))
        if number in (2, 5):
            kill(fault, logs, run, int(n_calls * rng.uniform(0.05, 0.3)))
        check_finishes(fault, logs, run, expected)
    assert len(done) > 2 or name == "report", done  # the report is one file, the others were killed in mid-stage


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_a_deletion_of_an_overwrite(logs, states, undisturbed, tmp_path, step):
    fault = FAULTS["overwrite"]
    _, expected = undisturbed("overwrite")
    whole = shutil.copytree(states[fault.needs], tmp_path / "whole")
    n_deletions = count_calls(partial(main, fault.command(logs, whole)), DELETIONS)
    assert n_deletions > len(OUTPUTS)
    for number in range(n_deletions, 0, -step):
        run = shutil.copytree(states[fault.needs], tmp_path / str(number) / "run")
        kill(fault, logs, run, number, DELETIONS)
        check_finishes(fault, logs, run, expected)
