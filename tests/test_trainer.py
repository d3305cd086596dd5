"""The trainer on replays of a bank whose best policy is known: choice, resume, Ray Tune, registry, damaged data."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import kill_at_call
from test_report import needs_browser, open_in_browser
from trainings import deceiving_bank, replay, train

from celr_ray import storage
from celr_ray.cli import main
from celr_ray.config import RuntimeConfig, TrainConfig, TrainCortexJob
from celr_ray.core.escalation import HeuristicPolicy
from celr_ray.cortex.actions import N_ACTIONS, Action
from celr_ray.cortex.evaluation.bank import load_bank, write_bank
from celr_ray.cortex.evaluation.evaluate import evaluate_transitions
from celr_ray.cortex.evaluation.loopholes import Insistent
from celr_ray.cortex.evaluation.replay import ReplayConfig
from celr_ray.cortex.evaluation.replay_run import run_replay
from celr_ray.cortex.learned import load_artefact_policy
from celr_ray.cortex.registry import PolicyRegistry
from celr_ray.cortex.reward import find_return_range, reprice, total_reward
from celr_ray.cortex.selection import Score, choose, score_policies, unevaluable
from celr_ray.cortex.state import FEATURE_INDEX, N_FEATURES
from celr_ray.cortex.trainer import OfflineTrainer
from celr_ray.cortex.transition_check import check_transitions
from celr_ray.cortex.transitions import list_parts, load_transitions, read_dataset_record
from celr_ray.cortex.trials import Trial, list_trials
from celr_ray.errors import CelrRayError, ConfigError, InputError, PolicyError, RunMismatchError

LOOP = RuntimeConfig(executor="loop")


@pytest.fixture(scope="session")
def bank(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bank") / "bank"
    write_bank(str(folder), deceiving_bank())
    return folder


@pytest.fixture(scope="session")
def data(bank, tmp_path_factory) -> str:
    """A replay of the heuristic with exploration."""
    return replay(bank, tmp_path_factory.mktemp("replay") / "data")


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """A training of two seeds of each setting."""
    out = tmp_path_factory.mktemp("trained") / "out"
    return out, train(data, out, seeds=[0, 1])


def gate_success(bank: Path, policy) -> float:
    """Return what a policy reaches on tasks that no training has seen."""
    return float(np.nanmean(run_replay(load_bank(str(bank)), policy, split="gate", config=ReplayConfig()).success))


def words(data: str, out: Path) -> list[str]:
    """Return the command of a small training of CQL."""
    flags = ["--train.hidden", "32", "--train.updates", "300", "--train.bc-updates", "160", "--train.alphas", "0.1"]
    flags += ["--train.expectiles", "0.9", "--train.betas", "3.0", "--name", "router", "--algorithm", "cql"]
    return ["train-cortex", "--transitions", data, "--out", str(out), "--registry", "none", *flags]


def trial_hashes(report) -> dict[str, str]:
    return {trial["name"]: trial["content_hash"] for trial in report.record["trials"]}


def test_the_chosen_policy_beats_the_heuristic_on_tasks_that_nobody_saw(trained, bank, data):
    out, report = trained
    learned, heuristic = gate_success(bank, load_artefact_policy(str(out / "policy"))), HeuristicPolicy()
    assert gate_success(bank, heuristic) < 0.65
    assert learned > 0.9
    assert report.algorithm in ("cql", "iql")
    record = json.loads((out / "training" / "training.json").read_text())
    scores = {trial["name"]: trial["score"] for trial in record["trials"]}
    assert scores[record["trial"]]["ci_low"] > record["heuristic"]["value"]
    assert len(scores) == 6
    assert report.n_run == 6
    seen = {task for split in ("train", "validation") for task in load_transitions(data, split).task_id}
    assert not seen & set(load_bank(str(bank)).select("gate").task_ids)
    assert seen == {t for split in ("train", "validation") for t in load_bank(str(bank)).select(split).task_ids}


def test_the_report_can_be_quoted_and_the_record_holds_everything(trained, data):
    out, report = trained
    line = str(report)
    for part in (
        report.record["trial"],
        "chosen from 6 trials",
        "validation episodes",
        report.content_hash,
        "not registered",
    ):
        assert part in line
    assert "\n" not in line
    run = json.loads((out / "run.json").read_text())
    assert (run["stages"]["train"]["units"], run["stages"]["train"]["units_run_now"]) == (6, 6)
    manifest = json.loads((out / "policy" / "manifest.json").read_text())
    assert manifest["data_hash"] == read_dataset_record(data)["data_hash"]
    assert manifest["training"]["metrics"] == report.record["metrics"]
    assert manifest["training"]["reason"] == report.reason
    assert all(len(trial["curve"]) == 20 for trial in report.record["trials"])


def test_a_killed_training_goes_on_and_gives_the_same_policy(trained, data, tmp_path):
    out = tmp_path / "out"
    kill_at_call(partial(main, words(data, out)), 2, of=("run_trial",))
    (kept,) = out.glob("manifests/train/*.json")
    made = kept.stat().st_mtime_ns
    assert not (out / "policy").exists()
    report = train(data, out, "cql")
    assert report.n_run == 1
    assert kept.stat().st_mtime_ns == made
    assert trial_hashes(report).items() <= trial_hashes(trained[1]).items(), "same seeds, same policies"
    again = train(data, out, "cql")
    assert (again.n_run, again.content_hash, again.reason) == (0, report.content_hash, report.reason)
    with pytest.raises(RunMismatchError, match=r"train.lr was 0.001, is 0.01"):
        train(data, out, "cql", lr=0.01)
    replaced = train(data, out, "bc", overwrite=True, bc_updates=20)
    assert (replaced.n_trials, replaced.n_run) == (1, 1)
    assert [path.name for path in (out / "training").iterdir() if path.is_dir()] == ["bc-seed=0"]


def test_tune_gives_the_policies_of_the_loop(local_ray, trained, data, tmp_path, capfd):
    report = train(data, tmp_path / "out", "cql", runtime={"executor": "ray", "num_cpus": 2})
    assert trial_hashes(report).items() <= trial_hashes(trained[1]).items()
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("train")]
    assert [line.split(":")[0] for line in lines] == [
        "train     1 of 2  bc-seed=0",
        "train     2 of 2  cql-alpha=0.1-seed=0",
    ]


def test_an_error_in_a_tune_trial_is_one_clear_line(local_ray, data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise PolicyError("the weights ran away")

    monkeypatch.setattr("celr_ray.cortex.trial_runner.run_trial", fail)
    monkeypatch.setattr("celr_ray.cortex.trial_runner._run_one", lambda *arguments: fail())
    with pytest.raises(PolicyError, match=r"^the weights ran away$"):
        train(data, tmp_path / "out", "bc", runtime={"executor": "ray", "num_cpus": 2})
    with pytest.raises(ConfigError, match=r"needs 4 CPUs .* has 2"):
        train(data, tmp_path / "other", "bc", runtime={"executor": "ray"}, num_learners=3)


def test_large_data_are_streamed(data, tmp_path):
    report = train(data, tmp_path / "out", "cql", stream_bytes=0)
    assert report.algorithm == "cql"
    assert report.record["trials"][0]["curve"][-1]["total"] < report.record["trials"][0]["curve"][0]["total"]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["loop", "ray"])
def test_a_learner_in_a_process_of_its_own(local_ray, data, tmp_path, executor):
    report = train(data, tmp_path / "out", "bc", runtime={"executor": executor, "num_cpus": 2}, num_learners=1)
    alone = train(data, tmp_path / "alone", "bc")
    ends = [r.record["trials"][0]["curve"][-1]["total"] for r in (report, alone)]
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def test_the_registry_gets_one_version_and_a_run_for_each_trial(data, tmp_path):
    pytest.importorskip("mlflow")
    place = str(tmp_path / "mlflow.db")
    out = tmp_path / "out"
    report = train(data, out, "cql", registry=place, name="registered")
    assert report.version == "registered@2, challenger"
    registry = PolicyRegistry(place)
    version = registry.resolve("registered@challenger")
    assert registry.load(version).content_hash == report.content_hash
    client = registry._open().client
    experiment = client.get_run(version.run_id).info.experiment_id
    query = f"tags.`mlflow.parentRunId` = '{version.run_id}'"
    children = {run.info.run_name: run for run in client.search_runs([experiment], query)}
    assert set(children) == {"bc-seed=0", "cql-alpha=0.1-seed=0"}
    cql = children["cql-alpha=0.1-seed=0"]
    assert cql.data.params == {"algorithm": "cql", "seed": "0", "alpha": "0.1"}
    curve = client.get_metric_history(cql.info.run_id, "total")
    assert [point.step for point in curve] == [15 * (number + 1) for number in range(20)]
    assert client.get_run(version.run_id).data.params["trial"] == report.record["trial"]
    for _ in range(2):
        assert train(data, out, "cql", registry=place, name="registered").version == report.version
        assert len(client.search_runs([experiment], query)) == 2
        assert len(registry.history("registered").versions) == 2
        (out / "training" / "registered.json").unlink()  # as if killed before it was written
    assert "registry" not in json.loads((out / "run.json").read_text())["config"]


def test_without_mlflow_the_policy_is_written_all_the_same(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    report = train(data, tmp_path / "out", "bc", registry=None)
    assert report.version is None
    assert "pip install 'celr-ray[tracking]'" in caplog.text
    with pytest.raises(PolicyError, match=r"the policy is in .*, but it is not registered: the registry needs MLflow"):
        train(data, tmp_path / "asked", "bc", registry=str(tmp_path / "mlflow.db"))
    assert load_artefact_policy(str(tmp_path / "asked" / "policy")).content_hash == report.content_hash
    assert (tmp_path / "asked" / "run.json").exists()
    with pytest.raises(PolicyError, match="no name of a policy"):
        train(data, tmp_path / "named", name="my policy")


# What is chosen


def known_scores(lows: list[float | None]) -> list[Score]:
    return [unevaluable("no support") if low is None else Score(low + 5, low, low + 10, 0.0, 100, 50.0) for low in lows]


TRIALS = [
    *(Trial("bc", {}, seed) for seed in (0, 1)),
    *(Trial("cql", {"alpha": alpha}, seed) for alpha in (0.1, 1.0) for seed in (0, 1)),
]


@pytest.mark.parametrize(
    ("lows", "wanted", "taken"),
    [
        ([0, 0, -9, 5, 1, 2], "auto", 5),  # the best trial belongs to a setting that is worse on average
        ([0, 0, 9, None, 1, 2], "auto", 2),  # a seed that does not count is taken as the worst that does: 9 and 0
        ([0, 0, 2, None, 1, 2], "auto", 5),
        ([9, 9, 0, 0, 1, 2], "cql", 5),
        ([9, 9, 0, 0, 1, 2], "auto", 0),
        ([3, 3 + 1e-9, 3, 3, 3, 3], "auto", 0),  # equal but for rounding: the first
        ([None, None, 4, None, None, None], "auto", 2),
        ([None] * 6, "auto", 0),
        ([3, 3, None, None, None, None], "cql", 0),
    ],
)
def test_the_setting_is_chosen_before_the_seed(lows, wanted, taken):
    choice = choose(TRIALS, known_scores(lows), wanted)
    assert choice.number == taken
    is_blind = all(low is None for low, t in zip(lows, TRIALS, strict=True) if wanted in ("auto", t.algorithm))
    assert ("behavior cloning, because no trial can be evaluated" in choice.reason) == is_blind


def test_held_out_tasks_tell_a_better_policy_from_a_worse_one(bank, data):
    attempts = {"cheap": Action.RECURSE, "strong": Action.ESCALATE}
    policies = [Insistent(name, [Action.STOP, attempt]) for name, attempt in attempts.items()]
    truth = [gate_success(bank, policy) for policy in policies]
    scores = score_policies(data, policies, LOOP, min_ess=30)
    trials = [Trial("bc", {}, 0), Trial("cql", {"alpha": 0.1}, 0)]
    assert truth[1] > truth[0] + 0.3
    assert choose(trials, scores).number == 1
    strict = score_policies(data, policies, LOOP, min_ess=1e6)
    assert all("effective sample size" in score.problem for score in strict)
    json.dumps([score.to_json() for score in [*scores, unevaluable("why")]], allow_nan=False)


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        ("cql", {"alphas": []}, "--train.alphas"),
        ("iql", {"betas": []}, "--train.betas"),
        ("auto", {"seeds": [0, 0]}, "bc-seed=0 is listed twice"),
        ("auto", {"alphas": [0.1, 0.1]}, "listed twice"),
    ],
)
def test_settings_that_make_no_sense_are_refused(algorithm, settings, message):
    with pytest.raises(ConfigError, match=message):
        list_trials(algorithm, TrainConfig(**settings))


def test_logs_or_transitions_and_not_both(tmp_path):
    with pytest.raises(ConfigError, match="not both"):
        OfflineTrainer(TrainCortexJob(out=str(tmp_path / "out"))).train()


@pytest.mark.parametrize(
    ("section", "value", "flag"),
    [
        ("dataset", {"failure_penalty": 7.0}, "--dataset.failure-penalty"),
        ("ingest", {"redact": False}, "--ingest.redact"),
    ],
)
def test_settings_of_logs_are_refused_where_none_are_read(data, tmp_path, section, value, flag):
    with pytest.raises(ConfigError, match=f"{flag} says how logs become transitions"):
        OfflineTrainer(TrainCortexJob(transitions=data, out=str(tmp_path / "out"), **{section: value})).train()


# What cannot be trained on


def rewrite(data: str, out: Path, change, split: str = "train") -> str:
    """Copy a dataset, with the columns of one split changed."""
    for name in ("train", "validation"):
        table = storage.read_parquet(list_parts(data, name)[0])
        columns = {column: table[column].to_pylist() for column in table.column_names}
        if name == split:
            change(columns)
        changed = pa.table({field.name: pa.array(columns[field.name], field.type) for field in table.schema})
        storage.write_parquet(str(out / "transitions" / name / "part-00000.parquet"), changed)
    storage.write_json(str(out / "transitions" / "dataset.json"), read_dataset_record(data))
    return str(out)


def set_obs(columns, place, value):
    columns["obs"][7] = [*columns["obs"][7][:place], value, *columns["obs"][7][place + 1 :]]


def forbid(columns):
    set_obs(columns, N_FEATURES + columns["actions"][7], 0.0)


def set_value(column, value):
    return lambda columns: columns[column].__setitem__(7, value)


def reward_before_the_end(columns):
    at = columns["terminateds"].index(False)
    columns["rewards_raw"][at], columns["rewards"][at] = 1.5, 0.015


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: set_obs(c, 0, float("nan")), "1 transitions have obs that is not finite, first at row 7: column 0"),
        (forbid, "an action that its own mask forbids, first at row 7"),
        (lambda c: set_obs(c, FEATURE_INDEX["risk"], 1.7), "a feature outside its bounds, first at row 7: risk is 1.7"),
        (set_value("rewards_raw", 1e6), "a reward outside -202 to 2, .* row 7: 1000000.0"),
        (set_value("rewards_raw", float("nan")), "a reward outside"),
        (set_value("rewards_raw", -50.0), "a reward that neither a step nor an end can have, first at row 7: -50"),
        (reward_before_the_end, "a reward that neither a step nor an end can have, first at row"),
        (set_value("rewards", 0.7), "rewards that are not 0.01 of rewards_raw, first at row 7"),
        (set_value("action_prob", 0.0), "an action_prob that is not the behavior probability"),
        (set_value("actions", 17), "an action outside 0 to 5|an action_prob"),
        (set_value("obs", None), "no table of transitions|not finite|lists to be of size=39"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_damaged_transitions_are_an_error_that_says_where(data, tmp_path, change, message, split):
    damaged = rewrite(data, tmp_path / "data", change, split)
    with pytest.raises(CelrRayError, match=message) as caught:
        train(damaged, tmp_path / "out", "bc")
    assert split in str(caught.value)
    assert not (tmp_path / "out" / "policy").exists()


def test_transitions_of_another_version_are_refused(data, tmp_path):
    other = rewrite(data, tmp_path / "data", lambda columns: None)
    record = read_dataset_record(data) | {"schema_hash": "0123"}
    storage.write_json(str(tmp_path / "data" / "transitions" / "dataset.json"), record)
    with pytest.raises(PolicyError, match="its schema_hash is 0123, here it is"):
        train(other, tmp_path / "out")
    with pytest.raises(InputError, match="no finished dataset"):
        train(str(tmp_path), tmp_path / "out")


def test_a_dataset_from_before_failure_penalties_could_be_set_is_as_good_as_ever(data, tmp_path):
    old = rewrite(data, tmp_path / "data", lambda columns: None)
    record = read_dataset_record(data)
    del record["failure_penalty"]
    storage.write_json(str(tmp_path / "data" / "transitions" / "dataset.json"), record)
    assert train(old, tmp_path / "out", "bc").record["failure_penalty"] == 100
    found = [evaluate_transitions(uri, HeuristicPolicy()).report.screen.value_low for uri in (old, data)]
    assert found[0] == found[1]


@pytest.mark.parametrize("penalty", ["much", True, 0, -1.0, None])
def test_a_failure_penalty_that_is_none_is_one_clear_error(data, tmp_path, penalty):
    damaged = rewrite(data, tmp_path / "data", lambda columns: None)
    place = str(tmp_path / "data" / "transitions" / "dataset.json")
    storage.write_json(place, read_dataset_record(data) | {"failure_penalty": penalty})
    for use in (
        lambda: train(damaged, tmp_path / "out", "bc"),
        lambda: evaluate_transitions(damaged, HeuristicPolicy()),
    ):
        with pytest.raises(InputError, match=f"dataset.json: failure_penalty is {penalty!r}, not a number above 0"):
            use()
    storage.write_json(place, [])
    with pytest.raises(InputError, match=r"dataset.json is no record of a dataset"):
        train(damaged, tmp_path / "out", "bc")


def drop_split(data: str, out: Path, split: str) -> str:
    rewrite(data, out, lambda columns: None)
    record = read_dataset_record(data)
    for counts in ("episodes", "transitions"):
        record[counts] = {name: n for name, n in record[counts].items() if name != split}
    storage.delete_directory(str(out / "transitions" / split))
    storage.write_json(str(out / "transitions" / "dataset.json"), record)
    return str(out)


def test_an_empty_split(data, tmp_path):
    report = train(drop_split(data, tmp_path / "a", "validation"), tmp_path / "blind")
    assert report.algorithm == "bc"
    assert report.n_trials == 1
    assert "there are no validation episodes" in report.reason
    with pytest.raises(InputError, match=r"the train split of .* has no transitions"):
        train(drop_split(data, tmp_path / "b", "train"), tmp_path / "none")


def test_one_action_everywhere_is_learned_and_nothing_more(data, tmp_path):
    """Every episode aborts at once: nothing to learn but that, and a warning-free run with a usable policy."""

    def abort(columns):
        first = [n for n, t in enumerate(columns["t"]) if t == 0]
        for name in columns:
            columns[name] = [columns[name][n] for n in first]
        n = len(first)
        columns["actions"] = [int(Action.ABORT)] * n
        columns["behavior"] = [[0.0] * (N_ACTIONS - 1) + [1.0]] * n
        columns["action_prob"], columns["terminateds"] = [1.0] * n, [True] * n
        columns["new_obs"] = [[0.0] * N_FEATURES + [0, 0, 0, 0, 0, 1.0]] * n
        columns["rewards_raw"], columns["rewards"] = [-100.0] * n, [-1.0] * n
        columns["return_to_go"] = [-100.0] * n

    only = rewrite(data, tmp_path / "a", abort, "train")
    only = rewrite(only, tmp_path / "b", abort, "validation")
    report = train(only, tmp_path / "out", bc_updates=40, updates=40)
    policy = load_artefact_policy(report.artefact_uri)
    validation = load_transitions(only, "validation")
    chosen = policy.probabilities(validation.features.astype(float), validation.mask).argmax(axis=1)
    assert (chosen == Action.ABORT).all()


def test_the_check_counts_episodes_over_batches(data, monkeypatch):
    record = read_dataset_record(data)
    monkeypatch.setattr("celr_ray.cortex.transition_check._BATCH_ROWS", 7)
    found = check_transitions(data, record)
    assert {name: facts.n_episodes for name, facts in found.items()} == record["episodes"]
    assert {name: facts.n_rows for name, facts in found.items()} == record["transitions"]
    assert all(facts.n_known == facts.n_episodes for facts in found.values())


# The command line


def test_replays_are_finished_once_and_other_settings_are_refused(bank, tmp_path, capsys):
    flags = ["bank", "replay", "--bank", str(bank), "--out", str(tmp_path / "out"), "--epsilon", "0.5"]
    assert main(flags) == 0
    line = capsys.readouterr().out
    assert "heuristic (ε 0.5) on" in line
    part = Path(list_parts(str(tmp_path / "out"))[0])
    made = part.stat().st_mtime_ns
    assert main(flags) == 0
    assert (capsys.readouterr().out, part.stat().st_mtime_ns) == (line, made)
    assert main([*flags, "--replays", "2"]) == 2
    assert "replay.replays was 4, is 2" in capsys.readouterr().err
    assert main([*flags, "--replays", "2", "--overwrite"]) == 0
    assert part.stat().st_mtime_ns > made


SHARES = st.floats(0, 1)


@given(SHARES, SHARES, SHARES, st.booleans(), st.booleans(), st.floats(0.01, 500))
def test_any_failure_penalty_keeps_the_order_of_outcomes(cost, time, correctness, success, unsafe, penalty):
    total = total_reward([float(success)], [correctness], [cost], [time], [unsafe])
    (priced,) = reprice(total, penalty)
    low, high = find_return_range(penalty)
    assert low <= priced <= high
    assert reprice(total, 100.0) == total
    counts_as_success = success and not unsafe
    assert priced == pytest.approx(total[0] if counts_as_success else total[0] + 100 - penalty)
    worst_success, best_failure = 1 + correctness - 2, 1 - penalty
    assert priced >= worst_success - 1e-9 if counts_as_success else priced <= best_failure + 1e-9
    if unsafe:
        assert priced < -2 - penalty + 1e-9, "below any safe failure"


def test_a_dataset_with_another_failure_penalty_is_trained_and_evaluated_in_its_own_units(bank, data, tmp_path):
    cheap = replay(bank, tmp_path / "cheap", failure_penalty=2.0)
    usual, priced = load_transitions(data), load_transitions(cheap)
    assert priced.rewards_raw == pytest.approx(usual.rewards_raw + 98 * (usual.rewards_raw < -50))
    assert priced.rewards == pytest.approx(priced.rewards_raw / 2, abs=1e-6)
    record = read_dataset_record(cheap)
    assert (record["failure_penalty"], record["reward_scale"]) == (2.0, 0.5)
    assert record["data_hash"] != read_dataset_record(data)["data_hash"]
    report = train(cheap, tmp_path / "out", "cql")
    manifest = json.loads((tmp_path / "out" / "policy" / "manifest.json").read_text())
    assert manifest["reward_scale"] == 0.5
    assert report.record["failure_penalty"] == 2.0
    assert "a failure about −2." in (tmp_path / "out" / "training" / "index.html").read_text()
    assert -4 < report.record["metrics"]["validation_value"] < 2
    screen = evaluate_transitions(cheap, HeuristicPolicy()).report.screen
    assert find_return_range(2.0)[0] < screen.value_low < screen.value_high <= 2
    usual_screen = evaluate_transitions(data, HeuristicPolicy()).report.screen
    assert screen.value_high - screen.value_low < usual_screen.value_high - usual_screen.value_low
    storage.write_json(str(tmp_path / "cheap/transitions/dataset.json"), {**record, "failure_penalty": 100.0})
    with pytest.raises(PolicyError, match=r"reward_scale is 0\.5"):
        train(cheap, tmp_path / "other", "cql")


def test_a_bank_without_validation_tasks_says_so(tmp_path):
    bank = deceiving_bank(40)
    tasks = bank.tasks.set_column(
        bank.tasks.column_names.index("split"),
        bank.tasks.schema.field("split"),
        pa.array(["train"] * bank.tasks.num_rows, bank.tasks.schema.field("split").type),
    )
    from celr_ray.cortex.evaluation.bank import make_bank

    write_bank(str(tmp_path / "bank"), make_bank(bank.tiers, tasks, bank.attempts))
    with pytest.raises(InputError, match=r"has no validation tasks; build it with a larger --bank.validation-fraction"):
        replay(tmp_path / "bank", tmp_path / "out")


@needs_browser
def test_a_real_browser_draws_the_page(trained, tmp_path):
    page, console = open_in_browser(trained[0] / "training" / "index.html", tmp_path / "profile")
    assert not console
    assert page.count('class="main-svg"') >= 4, "scores and three kinds of losses"
    assert "static heuristic" in page
    assert page.count("<tr") == 1 + 6 + 1 + len(trained[1].record["metrics"])
