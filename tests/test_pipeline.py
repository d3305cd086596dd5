"""The whole pipeline through the specification's front door, with a fake judge on real logs."""

import pytest
from runs import read_rows

from celr_ray import TrainingPipeline
from celr_ray.config import PipelineJob
from celr_ray.errors import InputError, RunMismatchError
from celr_ray.testing import FakeJudge


def settings(tmp_path, demo_logs, **changes):
    return {
        "logs": [str(demo_logs)],
        "out": str(tmp_path / "run"),
        "runtime": {"executor": "loop"},
        "pair": {"strategy": "all", "sft": [str(demo_logs.parent / "sft.jsonl")]},
        **changes,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, demo_logs):
    folder = tmp_path_factory.mktemp("pipeline")
    report = TrainingPipeline(settings(folder, demo_logs), FakeJudge()).run()
    return folder / "run", report


def test_all_stages_report(finished):
    run, report = finished
    assert [stage.name for stage in report.stages] == ["ingest", "judge", "pair", "export"]
    assert report.count("ingest", "rows_in") == 92
    assert report.count("judge", "rows_out") == 92
    assert report.count("pair", "pairs") == len(read_rows(run, "pairs")) > 19
    assert str(report).startswith("92 runs in, 0 rejected; 92 judged (")
    assert report.report_uri == str(run / "report" / "index.html")


def test_every_distinct_run_is_judged_once(finished):
    run, _ = finished
    judged = [row["trajectory_id"] for row in read_rows(run, "judgments")]
    assert sorted(judged) == sorted(row["trajectory_id"] for row in read_rows(run))


def test_all_three_pair_types_are_made_and_exported(finished):
    run, _ = finished
    assert {pair["pair_type"] for pair in read_rows(run, "pairs")} == {"dpo", "spin", "self_reward"}
    for folder in ("trl/dpo", "trl/self_reward", "spin", "sft", "kto", "axolotl/sharegpt"):
        assert list((run / "exports" / folder).glob("*.parquet")), folder


def test_self_reward_pairs_follow_the_judge(finished):
    run, _ = finished
    scores = {row["trajectory_id"]: row["judge_score"] for row in read_rows(run, "judgments")}
    pairs = [pair for pair in read_rows(run, "pairs") if pair["pair_type"] == "self_reward"]
    for pair in pairs:
        assert scores[pair["chosen_id"]] - scores[pair["rejected_id"]] >= 0.05
        assert pair["chosen_score"] == scores[pair["chosen_id"]]


def test_the_same_settings_as_an_object(tmp_path, demo_logs):
    job = PipelineJob(**settings(tmp_path, demo_logs, logs=[str(demo_logs / "celr_benchmark.jsonl")]))
    report = TrainingPipeline(job).run()
    assert [stage.name for stage in report.stages] == ["ingest", "pair", "export"]
    assert report.count("pair", "tasks") == 8


def test_a_second_run_repeats_nothing(tmp_path, demo_logs):
    job = settings(tmp_path, demo_logs)
    first = TrainingPipeline(job, FakeJudge()).run()
    second = TrainingPipeline(job, FakeJudge()).run()
    assert all(stage.units_run == 0 for stage in second.stages)
    assert [stage.counts for stage in second.stages] == [stage.counts for stage in first.stages]


def test_changed_judge_is_refused_before_any_work(tmp_path, demo_logs):
    TrainingPipeline(settings(tmp_path, demo_logs), FakeJudge()).run()
    changed = settings(tmp_path, demo_logs, judge={"model_source": "another", "max_model_len": 512})
    with pytest.raises(RunMismatchError, match="judge"):
        TrainingPipeline(changed).run()


def test_missing_logs_are_named(tmp_path, demo_logs):
    with pytest.raises(InputError, match="no such file or folder"):
        TrainingPipeline(settings(tmp_path, demo_logs, logs=[str(tmp_path / "nowhere")])).run()


def test_unknown_settings_are_refused(tmp_path, demo_logs):
    with pytest.raises(ValueError, match="judgee"):
        TrainingPipeline(settings(tmp_path, demo_logs, judgee={}))
