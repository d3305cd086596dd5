"""Cold start and logs without decisions: with too little to learn from, the policy is the heuristic, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from banks import random_bank
from test_dataset import write
from test_execute import blunder, decisions, make_tasks, run, solve

from celr_ray.config import TrainCortexJob
from celr_ray.core.escalation import EscalationConfig, HeuristicPolicy
from celr_ray.cortex.actions import Action
from celr_ray.cortex.artefact import load_artefact
from celr_ray.cortex.cold_start import (
    MIN_AGREEMENT,
    Agreement,
    check_agreement,
    measure_agreement,
    sample_decisions,
    sample_transitions,
)
from celr_ray.cortex.evaluation.replay_run import run_replay
from celr_ray.cortex.learned import LearnedPolicy
from celr_ray.cortex.policy import EpsilonSoft
from celr_ray.cortex.state import FEATURE_INDEX, FEATURES
from celr_ray.cortex.trainer import TrainingReport, run_train_cortex
from celr_ray.errors import InputError, PolicyError

N_LOGS = 10


def learn(logs, out: Path, algorithm: str = "auto", **settings) -> TrainingReport:
    return run_train_cortex(
        TrainCortexJob(
            logs=[str(log) for log in (logs if isinstance(logs, list) else [logs])],
            out=str(out),
            algorithm=algorithm,
            registry="none",
            train=settings,
            runtime={"executor": "loop"},
        )
    )


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """Real logs of 70 tasks by an exploring heuristic; every other answer of the cheap model is wrong."""
    folder = tmp_path_factory.mktemp("executed")

    def stumble(chat, seed):
        return solve(chat, seed) if seed % 2 else blunder(chat, seed)

    return run(folder, make_tasks(70), stumble, execute={"epsilon": 0.4})[0]


@pytest.fixture(scope="session")
def cold(executed, tmp_path_factory):
    """A training on ten logs, for which CQL was asked."""
    folder = tmp_path_factory.mktemp("cold")
    logs = write(folder / "logs.jsonl", executed[:N_LOGS])
    return logs, folder / "out", learn(logs, folder / "out", "cql")


def test_ten_logs_give_a_clone_of_the_heuristic_and_cql_is_refused(cold):
    _, out, report = cold
    assert report.is_cold_start
    assert report.record["trial"] == "bc-heuristic-seed=0"
    assert "10 episodes are fewer than 50, cql refused, the static heuristic is cloned" in str(report)
    manifest = json.loads((out / "policy" / "manifest.json").read_text())
    assert manifest["data_hash"] is None, "the logs were not learned from"
    assert manifest["training"]["metrics"]["agreement_with_heuristic"] >= MIN_AGREEMENT
    page = (out / "training" / "index.html").read_text()
    assert "Cold start" in page
    assert page.endswith("</html>")


def test_the_clone_decides_as_the_heuristic_in_fresh_states_and_by_itself(cold):
    policy = LearnedPolicy(load_artefact(cold[2].artefact_uri))
    for seed in (101, 202):
        agreement = measure_agreement(policy, EscalationConfig(), seed=seed)
        assert min(agreement.overall, agreement.own) >= MIN_AGREEMENT
        assert agreement.fallback_rate < 0.02, "agreement is the network's own, not the fallback's"
    found = sample_decisions(30_000, EscalationConfig(), seed=303)
    wanted = HeuristicPolicy().probabilities(found.obs, found.mask).argmax(axis=1)
    chosen = policy.probabilities(found.obs, found.mask).argmax(axis=1)
    for action in Action:
        rows = wanted == action
        assert rows.sum() > 20, action
        assert (chosen[rows] == action).mean() > 0.9, f"{action.name} is cloned too, rare as it is"


def test_the_clone_decides_as_the_heuristic_in_states_of_another_world(cold):
    """States of a bank's replay, which the sampled world knows nothing of."""
    policy = LearnedPolicy(load_artefact(cold[2].artefact_uri))
    explorer = EpsilonSoft(HeuristicPolicy(), 0.3)
    found = run_replay(random_bank(7, 400), explorer, keep_decisions=True).decisions
    wanted = HeuristicPolicy().probabilities(found.obs, found.mask).argmax(axis=1)
    chosen = policy.probabilities(found.obs, found.mask).argmax(axis=1)
    assert len(wanted) > 500
    assert (wanted == chosen).mean() >= 0.98


def test_a_cold_start_is_finished_once(cold, caplog):
    logs, out, report = cold
    made = (out / "training" / "bc-heuristic-seed=0" / "policy.npz").stat().st_mtime_ns
    again = learn(logs, out, "cql")
    assert (again.n_run, again.content_hash) == (0, report.content_hash)
    assert (out / "training" / "bc-heuristic-seed=0" / "policy.npz").stat().st_mtime_ns == made
    assert "--algorithm cql is refused. The static heuristic is cloned instead" in caplog.text


def test_sampled_states_are_valid_and_know_ladders_of_every_length():
    found = sample_decisions(12_000, EscalationConfig(), seed=5)
    low, high = np.array([f.low for f in FEATURES]), np.array([f.high for f in FEATURES])
    assert ((found.obs >= low) & (found.obs <= high)).all()
    assert found.mask[:, Action.ABORT].all()
    tiers = np.unique(found.obs[:, FEATURE_INDEX["tier"]].round(6))
    assert np.allclose(tiers, [0, 1 / 3, 1 / 2, 2 / 3, 1])
    columns = sample_transitions(2_000, EscalationConfig(), seed=5)
    mask = columns["obs"][:, -len(Action) :]
    assert mask[np.arange(len(mask)), columns["actions"]].all(), "the heuristic's own choice is allowed"


def test_a_clone_that_is_none_is_refused(executed, tmp_path):
    with pytest.raises(PolicyError, match=r"agrees with it in 80.00% of fresh states, not in 99%"):
        check_agreement(Agreement(0.999, 0.8, 0.9, 100))
    with pytest.raises(PolicyError, match=r"raise --train.bc-updates"):
        learn(write(tmp_path / "logs.jsonl", executed[:N_LOGS]), tmp_path / "out", bc_updates=2, hidden=[4])
    assert not (tmp_path / "out" / "policy").exists()


def test_enough_logs_are_learned_from_and_damaged_ones_are_left_out(executed, tmp_path, caplog):
    damaged = json.loads(json.dumps(executed))
    for number, document in enumerate(damaged[:5]):
        decision = decisions(document)[0]
        if number == 0:
            decision["obs"][0] = None
        elif number == 1:
            decision["mask"] = [False] * 5 + [True]
        else:
            decision["reward"] = 1e9
    small = {"hidden": [16], "updates": 40, "bc_updates": 40, "alphas": [0.1], "min_ess": 1}
    report = learn(write(tmp_path / "logs.jsonl", damaged), tmp_path / "out", "cql", **small)
    assert not report.is_cold_start
    assert sum(split["n_episodes"] for split in report.record["splits"].values()) == 65
    assert "65 episodes" in caplog.text
    assert "5 damaged records refused" in caplog.text
    run_record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert list(run_record["stages"]) == ["dataset", "train"]
    assert run_record["stages"]["dataset"]["rejected"] == 5


def test_logs_without_outcomes_are_an_error_that_says_so(tmp_path):
    logs = run(tmp_path, [{k: v for k, v in task.items() if k != "checker"} for task in make_tasks(5)])[0]
    with pytest.raises(InputError, match=r"no usable episode.*5 records excluded"):
        learn(write(tmp_path / "logs.jsonl", logs), tmp_path / "learned")


def test_logs_of_other_agents_give_bc_with_the_reason(demo_logs, data, tmp_path, caplog):
    """Real logs of CELR, tau-bench, SWE-agent, InterCode and Reflexion: nobody knows their probabilities."""
    names = ("celr_step", "intercode", "mini_swe_agent", "reflexion", "swe_agent")
    files = [file for file in sorted(data.iterdir()) if file.name.split(".")[0] in names]
    report = learn([demo_logs, *files], tmp_path / "out", bc_updates=100)
    assert (report.algorithm, report.n_trials, report.is_cold_start) == ("bc", 1, False)
    assert "says with which probabilities it was decided (logs of other agents never do)" in report.reason
    assert "only BC is trained" in caplog.text
    assert report.record["trials"][0]["score"]["value"] is None
    asked = learn([demo_logs, *files], tmp_path / "asked", "cql", bc_updates=20, updates=20, alphas=[0.1])
    assert (asked.algorithm, asked.n_trials) == ("bc", 2)
    assert "behavior cloning, because no trial can be evaluated" in asked.reason
    assert (tmp_path / "asked" / "training" / "cql-alpha=0.1-seed=0" / "manifest.json").exists()
