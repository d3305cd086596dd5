"""Runs of which files are gone, damaged or older than others: each is said, and mended by the command that is named."""

import json
import shutil

import pytest
from runs import read_contents, read_rows
from test_cli import run_cli

from celr_ray import storage
from celr_ray.config import RuntimeConfig
from celr_ray.run_folder import PART_FILES, STAGE_FOLDERS, manifest_uri, part_name
from celr_ray.runtime import Work
from celr_ray.stage import StagePlan, run_stage

LOOP = ("--runtime.executor", "loop")
FOLDERS = ("trajectories", "quarantine", "pairs", "unpaired", "tasks", "exports")
WEIGHTS = (
    *("--score.weight-success", "0.2", "--score.weight-efficiency", "0.2"),
    *("--score.weight-cost", "0.5", "--score.weight-completion", "0.1"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, demo_logs):
    """A finished run of the demo logs and one damaged line, in two buckets; and its logs."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(demo_logs, folder / "logs")
    (folder / "logs" / "bad.jsonl").write_text("{no\n")
    assert run_cli(*pipeline(folder)) == 0
    return folder


@pytest.fixture
def place(whole, tmp_path):
    """A copy of the run; the logs are where they were."""
    shutil.copytree(whole / "run", tmp_path / "run")
    (tmp_path / "logs").symlink_to(whole / "logs")
    return tmp_path


def pipeline(place, run=None):
    logs = (place / "logs").resolve()
    return ("pipeline", "--logs", logs, "--out", run or place / "run", "--ingest.n-buckets", "2", *LOOP)


def test_what_stages_write_is_what_they_are_asked_for():
    for stage, parts in PART_FILES.items():
        assert {folder.split("/")[0] for folder, _, _ in parts} <= set(STAGE_FOLDERS[stage])


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_lost_folder_is_made_again_by_the_same_command(place, folder, capsys):
    before = read_contents(place / "run", FOLDERS)
    shutil.rmtree(place / "run" / folder)
    assert run_cli(*pipeline(place)) == 0
    assert read_contents(place / "run", FOLDERS) == before
    assert "are gone; these run again" in capsys.readouterr().err
    assert run_cli(*pipeline(place)) == 0
    assert "gone" not in capsys.readouterr().err


def test_lost_pairs_are_named_and_made_by_the_command_that_is_named(place, capsys):
    run = place / "run"
    before = read_contents(run, FOLDERS)
    (run / "pairs" / "part-00000.parquet").unlink()
    for command in (("export", "--run", run, "--overwrite"), ("report", "--run", run)):
        assert run_cli(*command) == 2
        error = capsys.readouterr().err
        assert "pairs/part-00000.parquet is missing although its unit is finished" in error
        assert "celr-ray pair" in error
    assert run_cli("pair", "--run", run, *LOOP) == 0
    assert "1 of 2 units run now" in capsys.readouterr().err
    assert run_cli("export", "--run", run, *LOOP) == 0
    assert run_cli("report", "--run", run) == 0
    assert read_contents(run, FOLDERS) == before


def test_lost_trajectories_are_not_reported_as_there(place, capsys):
    run = place / "run"
    before = read_contents(run, FOLDERS)
    shutil.rmtree(run / "trajectories")
    for command in (("report",), ("pair", "--overwrite"), ("export", "--overwrite"), ("convert",)):
        assert run_cli(command[0], "--run", run, *command[1:]) == 2
        assert "trajectories/part-00000.parquet is missing" in capsys.readouterr().err
    logs = (place / "logs").resolve()
    assert run_cli("score", "--logs", logs, "--run", run, "--ingest.n-buckets", "2", *LOOP) == 0
    assert read_contents(run, FOLDERS) == before
    assert run_cli("report", "--run", run) == 0


def test_a_lost_quarantine_is_missed_only_where_something_was_rejected(place, demo_logs, capsys):
    run = place / "run"
    shutil.rmtree(run / "quarantine")
    assert run_cli("pair", "--run", run, *LOOP) == 0
    assert run_cli("report", "--run", run) == 2
    assert "quarantine/part-00000.jsonl is missing" in capsys.readouterr().err
    assert run_cli("score", "--logs", demo_logs, "--run", place / "clean", *LOOP) == 0
    assert not (place / "clean" / "quarantine").exists()
    assert run_cli("report", "--run", place / "clean") == 0


def test_lost_atif_files_are_written_again(place, capsys):
    run = place / "run"
    assert run_cli("convert", "--run", run, *LOOP) == 0
    before = read_contents(run, ("atif",))
    (run / "atif" / "part-00000" / "000003.json").unlink()
    assert run_cli("convert", "--run", run, *LOOP) == 0
    assert read_contents(run, ("atif",)) == before
    capsys.readouterr()
    assert run_cli("convert", "--run", run, *LOOP) == 0
    assert "0 of 1 units run now" in capsys.readouterr().err


def test_one_listing_a_folder_and_no_look_at_single_files(tmp_path, monkeypatch):
    run = str(tmp_path)

    def run_unit(unit):
        for folder in STAGE_FOLDERS["pair"]:
            storage.write_bytes(storage.join(run, folder, part_name(unit["index"])), b"")
        return {}

    def go():
        return run_stage(run, plan, Work(lambda: run_unit), RuntimeConfig(executor="loop"), on_ray=False).units_run

    plan = StagePlan("pair", {}, [{}] * 20)
    assert go() == 20
    calls = []
    for name in ("stat", "list_files"):
        made = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda *a, made=made, **k: calls.append(a[0]) or made(*a, **k))
    assert go() == 0
    assert not [uri for uri in calls if "part-" in uri]
    assert sum(uri.endswith("/pairs") for uri in calls) == 1
    storage.delete_file(storage.join(run, "tasks", part_name(7)))
    assert go() == 1


def test_a_killed_repair_leaves_no_old_done_marker(tmp_path):
    run = str(tmp_path)
    state = {"fails": False}

    def run_unit(unit):
        if state["fails"]:
            assert storage.stat(manifest_uri(run, "judge", unit["index"])) is None
            raise KeyboardInterrupt
        storage.write_bytes(storage.join(run, "judgments", part_name(unit["index"])), b"")
        return {}

    plan = StagePlan("judge", {}, [{}, {}])
    arguments = (run, plan, Work(lambda: run_unit), RuntimeConfig(executor="loop"))
    run_stage(*arguments, on_ray=False)
    shutil.rmtree(tmp_path / "judgments")
    state["fails"] = True
    with pytest.raises(KeyboardInterrupt):
        run_stage(*arguments, on_ray=False)
    state["fails"] = False
    assert run_stage(*arguments, on_ray=False).units_run == 2


def test_an_export_of_pairs_older_than_the_scores_is_refused(place, capsys):
    run = place / "run"
    assert run_cli("score", "--run", run, *WEIGHTS, *LOOP) == 0
    capsys.readouterr()
    assert run_cli("export", "--run", run, *LOOP) == 2
    assert f"celr-ray pair --run {run} --overwrite" in capsys.readouterr().err
    before = read_rows(run, "pairs")
    assert run_cli("pair", "--run", run, "--overwrite", *LOOP) == 0
    assert run_cli("export", "--run", run, *LOOP) == 0
    assert "2 of 2 units run now" in capsys.readouterr().err
    assert read_rows(run, "pairs") != before


@pytest.mark.parametrize("command", ["score", "convert"])
@pytest.mark.parametrize(
    ("flags", "is_refused"),
    [
        (("--ingest.redact",), True),
        (("--ingest.format", "chat"), True),
        (("--ingest.n-buckets", "7"), True),
        (("--ingest.split-bytes", "1000"), True),
        (("--no-ingest.redact", "--format", "auto", "--ingest.n-buckets", "2"), False),
        (("--ingest.split-bytes", str(2**27)), False),
        ((), False),
    ],
)
def test_settings_of_ingest_without_logs_are_not_ignored(place, command, flags, is_refused, capsys):
    assert run_cli(command, "--run", place / "run", *flags, *LOOP) == (2 if is_refused else 0)
    error = capsys.readouterr().err
    assert ("is of no effect without --logs" in error) == is_refused
    if is_refused:
        assert flags[0] in error
        logs = (place / "logs").resolve()
        assert run_cli(command, "--run", place / "run", "--logs", logs, "--overwrite", *flags, *LOOP) == 0


@pytest.mark.parametrize("value", [{}, [], 1, {"stages": []}, {"settings": {}}, {"index": 5}])
@pytest.mark.parametrize(
    "name", ["manifests/ingest/part-00000.json", "plans/ingest.json", "plans/pair.json", "run.json"]
)
def test_run_files_of_another_shape_are_named(place, name, value, capsys):
    path = place / "run" / name
    path.write_text(json.dumps(value))
    assert run_cli(*pipeline(place)) == 2
    assert str(path) in capsys.readouterr().err
    commands = [("pair",), ("export",), ("score", *WEIGHTS), ("convert",), ("report",)]
    codes = [run_cli(command, "--run", place / "run", *flags) for command, *flags in commands]
    assert set(codes) <= {0, 2}


@pytest.mark.parametrize("name", ["manifests/ingest/part-00000.json", "plans/pair.json", "run.json"])
def test_damaged_run_files_are_mended_as_the_message_says(place, name, capsys):
    before = read_contents(place / "run", FOLDERS)
    (place / "run" / name).write_text("{}")
    assert run_cli(*pipeline(place)) == 2
    assert "delete it" in capsys.readouterr().err
    (place / "run" / name).unlink()
    if name.startswith("plans/"):
        shutil.rmtree(place / "run" / "manifests" / "pair")
    assert run_cli(*pipeline(place)) == 0
    assert read_contents(place / "run", FOLDERS) == before


def test_a_manifest_of_ingest_without_weights_is_named(place, capsys):
    path = place / "run" / "manifests" / "ingest" / "part-00000.json"
    path.write_text('{"index": 0}')
    assert run_cli("pair", "--run", place / "run") == 2
    assert f"{path} does not say how its part was scored" in capsys.readouterr().err


def test_changed_sft_files_are_told_in_words(tmp_path, demo_logs, capsys):
    sft = tmp_path / "sft.jsonl"
    sft.write_text('{"prompt": "p", "response": "r"}\n')
    command = ("pipeline", "--logs", demo_logs, "--out", tmp_path / "run", "--pair.sft", sft, *LOOP)
    assert run_cli(*command) == 0
    size = sft.stat().st_size
    sft.write_text(sft.read_text() * 2)
    assert run_cli(*command) == 2
    assert f"{sft} has {2 * size} bytes, had {size}" in capsys.readouterr().err


def test_changed_inputs_are_told_in_words(tmp_path, demo_logs, capsys):
    logs = tmp_path / "logs"
    logs.mkdir()
    text = (demo_logs / "celr_benchmark.jsonl").read_text()
    for name in "abc":
        (logs / f"{name}.jsonl").write_text(text)
    command = ("score", "--logs", logs, "--run", tmp_path / "run", *LOOP)
    assert run_cli(*command) == 0
    (logs / "a.jsonl").unlink()
    (logs / "b.jsonl").write_text(text + "{}\n")
    (logs / "c.jsonl").write_text(text)
    (logs / "d.jsonl").write_text(text)
    capsys.readouterr()
    assert run_cli(*command) == 2
    error = capsys.readouterr().err
    assert f"{logs}/a.jsonl is gone from the inputs" in error
    assert f"{logs}/b.jsonl has {len(text) + 3:,} bytes, had {len(text):,}" in error
    assert f"{logs}/c.jsonl has another modification time" in error
    assert f"{logs}/d.jsonl is new among the inputs" in error
    for name in "efgh":
        (logs / f"{name}.jsonl").write_text(text)
    assert run_cli(*command) == 2
    assert "; and 4 more" in capsys.readouterr().err
