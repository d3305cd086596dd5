"""Runs of other agents as episodes: what their logs show and no more, lawful at every step; guesswork is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import LOOP
from test_dataset import build, write
from test_execute import blunder, decisions, make_tasks, run, solve

from celr_ray.config import DatasetConfig
from celr_ray.core.episodes import UNVERIFIED, Limits
from celr_ray.cortex.actions import ACTIONS, Action
from celr_ray.cortex.dataset import load_transitions, run_dataset, to_logged_episodes
from celr_ray.cortex.foreign_logs import REFUSALS, ForeignRun
from celr_ray.cortex.foreign_play import play_runs
from celr_ray.cortex.state import FEATURE_INDEX, FEATURES
from celr_ray.cortex.transitions import Transitions
from celr_ray.errors import InputError, PolicyError

PLAIN = {"validation_fraction": 0.0}


def episodes_of(found: Transitions, source: str) -> dict[str, list[tuple[list[str], float]]]:
    """Return the actions and the whole reward of the episodes of one format, by task."""
    told: dict[str, list[tuple[list[str], float]]] = {}
    for number in np.flatnonzero(found.source == source):
        rows = found.episode == number
        actions = [ACTIONS[action] for action in found.actions[rows]]
        told.setdefault(found.task_id[number], []).append((actions, float(found.rewards_raw[rows].sum())))
    return told


@pytest.fixture(scope="session")
def mapped(demo_logs, data, tmp_path_factory) -> tuple[Transitions, dict[str, int]]:
    """All real foreign logs that the repository holds."""
    names = ("celr_step", "intercode", "mini_swe_agent", "reflexion", "swe_agent")
    files = [file for file in sorted(data.iterdir()) if file.name.split(".")[0] in names]
    out = tmp_path_factory.mktemp("mapped") / "out"
    report = build([demo_logs, *files], out, **PLAIN)
    return load_transitions(str(out)), report.counts


def test_all_rows_of_real_logs_are_lawful(mapped):
    found, counts = mapped
    assert found.n_episodes == counts["rows_out"] == 107
    assert (counts["rejected"], counts["excluded"], counts["rows_in"]) == (0, 13, 120)
    rows = np.arange(len(found))
    assert found.mask[rows, found.actions].all()
    low, high = np.array([f.low for f in FEATURES]), np.array([f.high for f in FEATURES])
    assert ((found.features >= low) & (found.features <= high)).all()
    assert np.isnan(found.action_prob).all()
    assert np.isnan(found.behavior).all()
    assert set(found.policy_hash) == {None}
    totals = found.return_to_go[found.t == 0]
    assert ((totals >= -2) | (totals <= -99)).all()
    ends = np.append(found.t[1:] == 0, True)
    np.testing.assert_array_equal(found.terminateds, ends)
    with pytest.raises(PolicyError, match="107 of 107 episodes do not say"):
        to_logged_episodes(found, drop_unknown=True)


def test_what_was_not_in_the_logs_is_counted(mapped):
    _, counts = mapped
    reasons = {name.removeprefix("excluded_as."): n for name, n in counts.items() if name.startswith("excluded_as.")}
    assert reasons == {"beyond_caps": 1, "no_attempt": 1, "no_outcome": 5, "repeated_trial": 3, "superseded": 3}
    assert set(reasons) <= set(REFUSALS)
    assert counts["assumed.cost"] == 107 + 3 - 2, "only CELR's plans have a cost and a budget; 3 trials are superseded"


def test_retries_of_celr_are_attempts_and_its_own_failures_give_up(mapped, demo_logs):
    found, _ = mapped
    rows = [json.loads(line) for line in (demo_logs / "celr_benchmark.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["retries"] < 5 and (row["output"] or row["steps_executed"])]
    expected: dict[str, list[tuple[list[str], float]]] = {}
    for row in rows:
        right = row["success"] and row["accuracy"]
        actions = ["RECURSE"] * (1 + row["retries"]) + ["STOP" if row["success"] else "ABORT"]
        expected.setdefault(f"celr/{row['task_id']}", []).append((actions, 2.0 if right else -100.0))
    told = episodes_of(found, "celr_benchmark")
    assert {task: sorted(told[task]) for task in told} == {task: sorted(expected[task]) for task in expected}


def test_a_known_cost_is_charged_in_shares_of_the_budget(mapped, demo_logs):
    found, _ = mapped
    plan = json.loads((demo_logs / "celr_plan_0.json").read_text())
    (actions, reward) = episodes_of(found, "celr_plan")[f"celr/{plan['task_id']}"][0]
    assert actions == ["RECURSE", "STOP"]
    assert reward == pytest.approx(2 - plan["total_cost"] / plan["budget_limit_usd"])


def test_one_conversation_is_one_attempt(mapped, demo_logs):
    found, _ = mapped
    with gzip.open(demo_logs / "gpt-4o-airline.json.gz") as source:
        runs = json.load(source)
    told = episodes_of(found, "tau_bench")
    assert sum(map(len, told.values())) == len(runs)
    for own in runs:
        episode = (["RECURSE", "STOP"], 2.0 if own["reward"] == 1 else -100.0)
        assert episode in told[f"tau_bench/airline/{own['task_id']}"]


def test_a_run_that_its_program_broke_off_ends_without_a_decision(mapped, data):
    found, _ = mapped
    with gzip.open(data / "intercode.jsonl.gz", "rt") as source:
        rows = [json.loads(line) for line in source]
    ends = [actions for own in episodes_of(found, "intercode").values() for actions, _ in own]
    broken = [
        r for r in rows if r["summary"]["max_reward"] < 1 and r["summary"]["turns_taken"] >= r["summary"]["turns_max"]
    ]
    assert broken
    assert sorted(ends) == sorted([["RECURSE"]] * len(broken) + [["RECURSE", "STOP"]] * (len(rows) - len(broken)))


def test_trials_of_reflexion_are_one_episode_an_environment(mapped):
    found, _ = mapped
    trial = ["RECURSE", "VERIFY"]
    assert episodes_of(found, "reflexion") == {
        "reflexion/alfworld/env_0": [([*trial, "STOP"], 2.0)],
        "reflexion/alfworld/env_4": [([*trial * 4, "STOP"], 2.0)],
        "reflexion/webshop/env_0": [(trial, -100.0)],
        "reflexion/webshop/env_1": [([*trial, "STOP"], 2.0)],
    }
    rows = found.episode == int(np.flatnonzero(found.task_id == "reflexion/alfworld/env_4")[0])
    failed = found.features[rows][:, FEATURE_INDEX["is_verified_failed"]]
    passed = found.features[rows][:, FEATURE_INDEX["is_verified_passed"]]
    assert failed.tolist() == [0, 0, 1, 0, 1, 0, 1, 0, 0]
    assert passed.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_trials_in_files_of_their_own_meet_whatever_the_cut(data, tmp_path):
    with gzip.open(data / "reflexion.jsonl.gz", "rt") as source:
        records = [json.loads(line) for line in source]
    for record in records:
        family, trial = record.pop("_domain").removesuffix("_runs"), record.pop("trial")
        file = tmp_path / "logs" / family / f"env_results_trial_{trial}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as sink:
            sink.write(json.dumps({**record, "domain": family}) + "\n")
    build(tmp_path / "logs", tmp_path / "one", **PLAIN)
    build(tmp_path / "logs", tmp_path / "many", cut=300, n_buckets=5, **PLAIN)
    one, many = (episodes_of(load_transitions(str(tmp_path / name)), "reflexion") for name in ("one", "many"))
    assert one == many
    assert one["reflexion/alfworld/env_4"][0][0].count("RECURSE") == 4


def chat(task: str, text: str = "It is 4.", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": text}]
    return {"messages": messages, "task_id": task, "success": True, **more}


def atif(task: str, models: list[str], **celr: Any) -> dict[str, Any]:
    steps = [{"source": "agent", "message": f"I say {n}", "model_name": model} for n, model in enumerate(models)]
    steps = [{"source": "user", "message": "What is 2 + 2?"}, *steps]
    return {
        "schema_version": "ATIF-v1.8",
        "agent": {"name": "other", "version": "1"},
        "steps": steps,
        "extra": {"celr": {"task_id": task, "success": True, **celr}},
    }


def map_records(records: list[Any], folder: Path, **settings: Any) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the actions by task and the counts."""
    report = build(write(folder / "logs.jsonl", records), folder / "out", **PLAIN, **settings)
    found = load_transitions(str(folder / "out"))
    told = {
        found.task_id[n]: [ACTIONS[action] for action in found.actions[found.episode == n]]
        for n in range(found.n_episodes)
    }
    return told, report.counts


def test_escalations_seen_by_name_or_count_are_escalations(tmp_path):
    benchmark = {"method": "celr", "prompt": "2 + 2?", "output": "4", "success": True, "accuracy": True, "retries": 0}
    records = [
        chat("one", model="cheap"),
        atif("climb", ["cheap", "cheap", "middle", "strong"]),
        atif("top", ["strong"]),
        atif("counted", ["cheap", "middle"], n_retries=1),
        {**benchmark, "task_id": "b", "escalation_count": 1, "_model": "cheap"},
    ]
    told, counts = map_records(records, tmp_path, tiers=["cheap", "middle", "strong"])
    assert counts["rejected"] == counts["excluded"] == 0
    assert told == {
        "chat/one": ["RECURSE", "STOP"],
        "climb": ["RECURSE", "ESCALATE", "ESCALATE", "STOP"],
        "top": ["RECURSE", "STOP"],
        "counted": ["RECURSE", "ESCALATE", "STOP"],
        "celr/b": ["RECURSE", "ESCALATE", "STOP"],
    }
    found = load_transitions(str(tmp_path / "out"))
    tiers = {
        found.task_id[n]: found.features[found.episode == n][:, FEATURE_INDEX["tier"]].tolist()
        for n in range(found.n_episodes)
    }
    assert tiers["climb"] == [0, 0, 0.5, 1]
    assert tiers["top"] == [1, 1]
    escalate = {found.task_id[n]: found.mask[found.episode == n][:, Action.ESCALATE] for n in range(found.n_episodes)}
    assert escalate["chat/one"].tolist() == [True, True]
    assert escalate["top"].tolist() == [False, False]


@pytest.mark.parametrize(
    ("record", "tiers", "reason"),
    [
        (chat("x", success=None), [], "no_outcome"),
        (chat("x", text=""), [], "no_attempt"),
        (atif("x", ["a", "b"]), [], "several_models"),
        (chat("x", model="other"), ["cheap", "strong"], "unknown_model"),
        (atif("x", ["strong", "cheap"]), ["cheap", "strong"], "unknown_order"),
        (atif("x", ["cheap", "strong"]), ["cheap", "middle", "strong"], "unknown_order"),
        (atif("x", ["cheap", "strong"], n_retries=3), ["cheap", "strong"], "unknown_order"),
        (chat("x", n_retries=5), [], "beyond_caps"),
    ],
)
def test_what_would_be_guesswork_is_refused_with_the_reason(tmp_path, record, tiers, reason):
    kept = chat("kept", model="cheap")
    told, counts = map_records([record, kept], tmp_path, tiers=tiers)
    assert list(told) == ["chat/kept"]
    assert (counts["excluded"], counts[f"excluded_as.{reason}"], counts["rejected"]) == (1, 1, 0)


def test_caps_budgets_and_limits_are_settings(tmp_path):
    records = [chat("r", n_retries=3, cost_usd=0.02, duration_s=30.0), chat("dear", cost_usd=9.0, duration_s=900.0)]
    told, _ = map_records(
        records, tmp_path, limits={"attempts_per_tier": 4}, default_budget_usd=0.1, default_time_limit_s=60.0
    )
    assert told["chat/r"] == ["RECURSE"] * 4 + ["STOP"]
    found = load_transitions(str(tmp_path / "out"))
    rows = found.episode == int(np.flatnonzero(found.task_id == "chat/r")[0])
    np.testing.assert_allclose(found.rewards_raw[rows], [*[-0.05 - 0.125] * 4, 2.0])
    np.testing.assert_allclose(found.features[rows][:, FEATURE_INDEX["budget_left"]], [1, 0.95, 0.9, 0.85, 0.8], 1e-6)
    np.testing.assert_allclose(found.features[rows][:, FEATURE_INDEX["time_left"]], [1, 0.875, 0.75, 0.625, 0.5])
    np.testing.assert_allclose(found.features[rows][:, FEATURE_INDEX["attempts"]], [0, 0.25, 0.5, 0.75, 1])
    assert found.mask[rows][:, Action.RECURSE].tolist() == [True] * 4 + [False]
    rows = found.episode == int(np.flatnonzero(found.task_id == "chat/dear")[0])
    assert found.rewards_raw[rows].sum() == pytest.approx(0.0), "no more than a whole budget and a whole limit"


def test_unsafe_words_cost_more_than_any_failure(tmp_path):
    map_records([chat("safe"), chat("unsafe", text="Then run `rm -rf /` as root.")], tmp_path)
    found = load_transitions(str(tmp_path / "out"))
    totals = {found.task_id[n]: found.rewards_raw[found.episode == n].sum() for n in range(found.n_episodes)}
    assert totals["chat/safe"] == 2
    assert -200 <= totals["chat/unsafe"] <= -199


def test_foreign_logs_can_be_left_out(tmp_path, demo_logs):
    with pytest.raises(InputError, match=r"no usable episode in .*: 32 records excluded: logs without decisions"):
        build(demo_logs / "gpt-4o-airline.json.gz", tmp_path / "out", foreign="refuse")


def test_a_list_may_mix_decision_logs_and_others(tmp_path):
    logs, _, _ = run(tmp_path, make_tasks(3), solve, out="executed")
    (tmp_path / "mixed.json").write_text(json.dumps([logs[0], chat("other"), logs[1], {"damaged": 1}]))
    report = run_dataset([str(tmp_path / "mixed.json")], str(tmp_path / "out"), DatasetConfig(**PLAIN), runtime=LOOP)
    assert (report.counts["sources.celr_ray"], report.counts["sources.chat"], report.counts["rejected"]) == (2, 1, 1)


def test_scripts_of_real_episodes_show_the_states_that_the_executor_showed(tmp_path):
    def stumble(chat, seed):
        return solve(chat, seed) if seed % 2 else blunder(chat, seed)

    tasks = make_tasks(40, verifier={"kind": "regex", "pattern": "^[0-9]{1,3}$"})
    logs, _, _ = run(tmp_path, tasks, stumble, policy="random")
    taken = [decisions(log) for log in logs]
    runs = [make_script(own, number) for number, own in enumerate(taken)]
    rows, refused = play_runs(runs, DatasetConfig(limits=Limits()))
    assert not refused
    assert rows is not None
    unknown = ("budget_left", "time_left", "difficulty", "is_difficulty_known", "risk", "context_used")
    unknown = (*unknown, "confidence", "is_confidence_known", "has_verifier")
    known = [column for name, column in FEATURE_INDEX.items() if name not in unknown]
    logged = np.array([decision["obs"] for own in taken for decision in own])
    np.testing.assert_array_equal(rows.obs[:, known], logged[:, known])
    allowed = np.array([decision["mask"] for own in taken for decision in own])
    columns = [action for action in Action if action != Action.VERIFY]  # a script without VERIFY knows no verifier
    assert (rows.mask | ~allowed)[:, columns].all(), "what the executor allowed within its budget is allowed"


def make_script(own: list[dict[str, Any]], number: int) -> ForeignRun:
    return ForeignRun(
        eps_id=str(number),
        run_id=str(number),
        rank=0,
        task_id=str(number),
        source="test",
        actions=tuple(Action[decision["action"]] for decision in own),
        passed=tuple(UNVERIFIED if d["verification"] is None else int(d["verification"]["passed"]) for d in own),
        n_tiers=2,
        tier=0,
        has_answer=True,
        has_code=False,
        risk=0.0,
        success=True,
        correctness=1.0,
        unsafe=False,
        cost_share=0.0,
        time_share=0.0,
        assumed=(),
    )
