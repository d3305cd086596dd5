"""The command line as a person uses it: help, configuration, errors with exit code 2, resume, refusal."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from runs import read_rows

from celr_ray import TrainingPipeline, storage
from celr_ray.cli import COMMANDS, main
from celr_ray.config import PipelineJob, load_job
from celr_ray.errors import ConfigError
from celr_ray.testing import FakeJudge


def run_cli(*arguments) -> int:
    """Call main, with argparse's own exit (help, unknown flags) as a return code."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


SCRIPTS = {"gate": "gatekeeper"}
"""Commands whose script in jobs/ has another name."""


def test_the_installed_command_and_the_job_scripts_are_the_same():
    environment = {**os.environ, "COLUMNS": "100"}
    command = [os.path.join(os.path.dirname(sys.executable), "celr-ray")]
    top = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    for name in COMMANDS:
        assert f"  {name} " in top
        first, *rest = name.split()
        script = str(ROOT / "jobs" / f"{SCRIPTS.get(first, first.replace('-', '_'))}.py")
        helps = [
            subprocess.run([*start, "--help"], capture_output=True, text=True, check=True, env=environment).stdout
            for start in ([*command, first, *rest], [sys.executable, script, *rest])
        ]
        assert helps[0] == helps[1]
        assert "default:" in helps[0]
        assert "--config" in helps[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_documents_every_flag(capsys, name):
    assert run_cli(*name.split(), "--help") == 0
    text = capsys.readouterr().out
    assert "US$" in text or name not in ("pipeline", "score")
    for section in COMMANDS[name].job.model_fields.values():
        fields = getattr(section.annotation, "model_fields", {})
        assert all(field.description for field in fields.values())


def test_flags_win_over_environment_and_environment_over_yaml(tmp_path, monkeypatch):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"logs": ["a"], "out": "o", "judge": {"concurrency": 2, "max_model_len": 512}}))
    monkeypatch.setenv("CELR_RAY_JUDGE__CONCURRENCY", "3")
    monkeypatch.setenv("CELR_RAY_PAIR__MARGIN", "0.3")
    job = load_job(PipelineJob, ["--config", str(path), "--pair.margin", "0.4"], program="x")
    assert (job.judge.concurrency, job.judge.max_model_len, job.pair.margin) == (3, 512, 0.4)


def test_many_logs_behind_one_flag():
    job = load_job(PipelineJob, ["--logs", "a", "b,c", "--out", "o", "--format", "tau_bench"], program="x")
    assert ([os.path.basename(path) for path in job.logs], job.ingest.format) == (["a", "b,c"], "tau_bench")
    assert all(os.path.isabs(path) for path in [*job.logs, job.out])


@pytest.mark.parametrize("name", ["Übung 日本", 'quo"te', "back\\slash", "a,b [1]", "50% #1"])
def test_any_file_name_can_be_named(tmp_path, demo_logs, name):
    logs = tmp_path / f"{name}.jsonl"
    logs.write_bytes((demo_logs / "celr_benchmark.jsonl").read_bytes())
    assert run_cli("score", "--logs", logs, "--run", tmp_path / name) == 0
    assert len(read_rows(tmp_path / name)) == 46


def test_one_file_under_three_names_is_one_file(tmp_path, demo_logs, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes((demo_logs / "celr_benchmark.jsonl").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run_cli("score", "--logs", "a.jsonl", "./a.jsonl", tmp_path / "a.jsonl", "--run", "run") == 0
    assert len(read_rows(tmp_path / "run")) == 46
    monkeypatch.chdir(tmp_path.parent)
    assert run_cli("score", "--logs", tmp_path / "a.jsonl", "--run", tmp_path / "run") == 0


def test_runs_among_the_logs_are_no_logs(tmp_path, demo_logs):
    (tmp_path / "a.jsonl").write_bytes((demo_logs / "celr_benchmark.jsonl").read_bytes())
    for out in ("runs/a", "runs/a", "runs/b"):
        assert run_cli("pipeline", "--logs", tmp_path, "--out", tmp_path / out, "--runtime.executor", "loop") == 0
        assert len(read_rows(tmp_path / out)) == 46


def test_a_judge_that_cannot_be_loaded_leaves_the_run_usable(tmp_path, demo_logs, capsys):
    run, loop = tmp_path / "run", ("--runtime.executor", "loop")
    logs = demo_logs / "celr_benchmark.jsonl"
    assert run_cli("pipeline", "--logs", logs, "--out", run, *loop) == 0
    assert run_cli("judge", "--run", run, "--judge.model-source", tmp_path / "no-model", *loop) == 1
    assert "cannot load the judge" in capsys.readouterr().err
    assert run_cli("pair", "--run", run, "--pair.strategy", "all", "--overwrite", *loop) == 0
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert set(stages) == {"ingest", "pair"}
    assert run_cli("export", "--run", run, *loop) == 0


def test_adding_or_dropping_a_judge_is_refused_before_any_work(tmp_path, demo_logs, capsys):
    run, logs = tmp_path / "run", demo_logs / "celr_benchmark.jsonl"
    plain = ("pipeline", "--logs", logs, "--out", run, "--runtime.executor", "loop")
    assert run_cli(*plain) == 0
    assert run_cli(*plain, "--judge.model-source", "no/such-model") == 2
    assert "pairs made without a judge" in capsys.readouterr().err
    job = {"logs": [str(logs)], "out": str(run), "runtime": {"executor": "loop"}, "overwrite": True}
    TrainingPipeline(job, FakeJudge()).run()
    assert {pair["pair_type"] for pair in read_rows(run, "pairs")} == {"dpo", "self_reward"}
    assert run_cli(*plain) == 2
    assert "was judged" in capsys.readouterr().err
    assert run_cli(*plain, "--overwrite") == 0
    assert {pair["pair_type"] for pair in read_rows(run, "pairs")} == {"dpo"}
    assert not (run / "judgments").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "o"], "--logs: Field required"),
        (["--logs", "a", "--out", "o", "--score.weight-success", "0.9"], "must sum to 1, they sum to 1.3"),
        (["--logs", "a", "--out", "o", "--pair.margin", "2"], "--pair.margin: Input should be less than or equal to 1"),
        (["--logs", "a", "--out", "o", "--config", "none.yaml"], "no such file: none.yaml"),
        (["--logs", "a", "--out", "o", "--judge.engine-kwargs", "{bad"], "judge.engine_kwargs"),
    ],
)
def test_wrong_settings_are_one_clear_line(flags, message):
    with pytest.raises(ConfigError) as error:
        load_job(PipelineJob, flags, program="x")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("judge: {modle_source: x}", "modle"), ("a: [", "cannot read"), ("- a", "cannot read")]
)
def test_a_wrong_yaml_file_is_named(tmp_path, text, message):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_job(PipelineJob, ["--config", str(path), "--logs", "a", "--out", "o"], program="x")
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_usage_errors_exit_with_2_and_name_the_thing(tmp_path, demo_logs, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    good = ("--logs", demo_logs)
    cases = [
        (("pipeline", "--logs", tmp_path / "missing", "--out", tmp_path / "o"), "no such file or folder"),
        (("pipeline", *good, "--out", tmp_path / "file"), "is a file; give a folder"),
        (("pipeline", *good, "--out", tmp_path / "file" / "deep"), "cannot write"),
        (("pipeline", *good, "--out", tmp_path / "other"), "is not empty and holds no celr-ray run"),
        (("pair", "--run", tmp_path / "other"), "holds no run"),
        (("judge", "--run", tmp_path / "other"), "--judge.model-source"),
        (("nonsense",), "no command 'nonsense'"),
        (("pipeline", *good, "--out", tmp_path / "o", "--frobnicate"), "unrecognized arguments: --frobnicate"),
    ]
    for arguments, message in cases:
        assert run_cli(*arguments) == 2, arguments
        assert message in capsys.readouterr().err
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"
    assert not (tmp_path / "o").exists()


def test_pipeline_then_resume_then_refusal_then_overwrite(tmp_path, demo_logs, capsys):
    out = tmp_path / "run"
    command = ("pipeline", "--logs", demo_logs, "--out", out, "--runtime.executor", "loop")
    assert run_cli(*command) == 0
    first = capsys.readouterr()
    assert first.out.count("\n") == 1
    assert first.out.startswith("92 runs in, 0 rejected; 19 pairs of 23 tasks")
    before = {file.uri: file.modified_ns for file in storage.list_files(str(out / "trajectories"))}
    pairs = read_rows(out, "pairs")

    assert run_cli(*command) == 0
    assert "0 of 4 units run now" in capsys.readouterr().err
    assert {file.uri: file.modified_ns for file in storage.list_files(str(out / "trajectories"))} == before

    changed = (*command, "--score.default-budget-usd", "0.2")
    assert run_cli(*changed) == 2
    assert "was scored with other settings" in capsys.readouterr().err
    assert run_cli(*command, "--pair.margin", "0.5") == 2
    assert "pair.margin was 0.05, is 0.5" in capsys.readouterr().err
    other_logs = ("pipeline", "--logs", demo_logs / "celr_benchmark.jsonl", "--out", out)
    assert run_cli(*other_logs) == 2
    assert "inputs" in capsys.readouterr().err
    assert read_rows(out, "pairs") == pairs

    assert run_cli(*changed, "--overwrite") == 0
    assert all(row["cost_score"] is not None for row in read_rows(out) if row["cost_usd"] is not None)


def test_an_interrupted_run_is_finished_by_the_same_command(tmp_path, demo_logs):
    flags = ("--logs", demo_logs, "--ingest.files-per-unit", "1", "--runtime.executor", "loop")
    assert run_cli("pipeline", *flags, "--out", tmp_path / "whole") == 0
    assert run_cli("pipeline", *flags, "--out", tmp_path / "cut") == 0
    for name in ("manifests/ingest/part-00001.json", "trajectories/part-00001.parquet", "run.json"):
        (tmp_path / "cut" / name).unlink()
    for name in ("pairs", "plans/pair.json", "manifests/pair", "plans/export.json", "manifests/export"):
        target = tmp_path / "cut" / name
        storage.delete_directory(str(target))
        storage.delete_file(str(target))
    assert run_cli("pipeline", *flags, "--out", tmp_path / "cut") == 0
    for folder in ("trajectories", "pairs", "unpaired", "tasks"):
        assert read_rows(tmp_path / "cut", folder) == read_rows(tmp_path / "whole", folder)
    assert (tmp_path / "cut" / "run.json").exists()


def test_changed_input_is_noticed(tmp_path, demo_logs, capsys):
    logs = tmp_path / "logs.jsonl"
    logs.write_bytes((demo_logs / "celr_benchmark.jsonl").read_bytes())
    command = ("pipeline", "--logs", logs, "--out", tmp_path / "run")
    assert run_cli(*command) == 0
    with logs.open("ab") as sink:
        sink.write(b"{}\n")
    capsys.readouterr()
    assert run_cli(*command) == 2
    assert str(logs) in capsys.readouterr().err


def test_stages_one_by_one_equal_the_pipeline(tmp_path, demo_logs, capsys):
    loop = ("--runtime.executor", "loop")
    assert run_cli("pipeline", "--logs", demo_logs, "--out", tmp_path / "a", *loop) == 0
    run = tmp_path / "b"
    assert run_cli("score", "--logs", demo_logs, "--run", run, *loop) == 0
    assert run_cli("pair", "--run", run, *loop) == 0
    assert run_cli("export", "--run", run, *loop) == 0
    assert run_cli("report", "--run", run) == 0
    for folder in ("trajectories", "pairs", "unpaired", "tasks"):
        assert read_rows(run, folder) == read_rows(tmp_path / "a", folder)
    assert set(json.loads((run / "run.json").read_text())["stages"]) == {"ingest", "pair", "export"}
    assert "report: " in capsys.readouterr().out


def test_scoring_again_with_new_weights(tmp_path, demo_logs, capsys):
    run = tmp_path / "run"
    assert run_cli("score", "--logs", demo_logs, "--run", run) == 0
    before = {row["trajectory_id"]: row for row in read_rows(run)}
    weights = ("--score.weight-success", "1", "--score.weight-efficiency", "0", "--score.weight-cost", "0")
    assert run_cli("score", "--run", run, *weights, "--score.weight-completion", "0") == 0
    for row in read_rows(run):
        assert row["composite_score"] == row["success_score"]
        assert {**row, "composite_score": 0} == {**before[row["trajectory_id"]], "composite_score": 0}


def test_run_json_conserves_rows_and_is_complete(tmp_path, demo_logs):
    (tmp_path / "logs").mkdir()
    bad = (demo_logs / "celr_benchmark.jsonl").read_bytes() + b'{"broken\n'
    (tmp_path / "logs" / "bad.jsonl").write_bytes(bad)
    assert run_cli("pipeline", "--logs", tmp_path / "logs", "--out", tmp_path / "run") == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    stage = record["stages"]["ingest"]
    assert (stage["rows_in"], stage["rows_out"], stage["rejected"]) == (47, 46, 1)
    assert {"config", "versions", "seed", "stages"} <= set(record)
    assert record["config"]["ingest"]["format"] == "auto"
