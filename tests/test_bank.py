"""Outcome banks: importers on real records, the executor's logs against replay, content hash, splits, bad input."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from banks import ALL_TRAIN, add_fresh, make_parts, random_bank
from test_execute import blunder, make_tasks, read_logs, run, solve

from celr_ray.cli import main
from celr_ray.config import BankBuildJob, BankConfig
from celr_ray.core.escalation import AlwaysCheap, AlwaysStrong, HeuristicPolicy
from celr_ray.core.models import load_tiers
from celr_ray.cortex.evaluation.bank import load_bank, make_bank, write_bank
from celr_ray.cortex.evaluation.bank_build import assemble_bank, run_bank_build, split_tasks
from celr_ray.cortex.evaluation.bank_logs import import_logs
from celr_ray.cortex.evaluation.bank_sources import import_reflexion, import_routellm, import_runs
from celr_ray.cortex.evaluation.replay_run import run_replay
from celr_ray.cortex.state import FEATURE_INDEX
from celr_ray.errors import ConfigError, InputError, OutputError

MIXTRAL, GPT4 = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"


def read_gzip(path: str) -> Any:
    with gzip.open(path) as file:
        return json.load(file)


def conserved(parts) -> bool:
    return parts.rows_in == len(parts.attempts) + sum(parts.excluded.values()) + len(parts.rejected) + parts.duplicates


def test_routellm_outcomes_are_the_files_and_prices_are_the_published_ones(data):
    uris = [str(data / "gsm8k_responses.parquet"), str(data / "mmlu_responses.parquet")]
    parts = import_routellm(uris)
    bank = assemble_bank(parts, BankConfig())
    assert [tier.name for tier in bank.tiers] == [MIXTRAL, GPT4], "the cheaper model first"
    table = pq.read_table(uris[0])
    n = table.num_rows + pq.read_table(uris[1]).num_rows
    assert bank.tasks.num_rows == n
    assert bank.attempts.num_rows == 2 * n
    rows = {(row["task_id"], row["tier"]): row for row in bank.attempts.to_pylist()}
    for index, question in enumerate(table.to_pylist()):
        for model in (MIXTRAL, GPT4):
            assert rows[f"routellm/gsm8k/{index:04d}", model]["success"] is question[model]
    question = table.to_pylist()[0]
    row = rows["routellm/gsm8k/0000", GPT4]
    prompt, output = -(-len(question["prompt"]) // 4), -(-len(question[f"{GPT4}_response"]) // 4)
    assert (row["prompt_tokens"], row["output_tokens"]) == (prompt, output)
    assert row["cost_usd"] == pytest.approx((10 * prompt + 30 * output) / 1e6)
    assert bank.notes["licence"] == "Apache-2.0"


def test_a_model_without_a_known_price_is_refused(tmp_path):
    pq.write_table(pa.table({"prompt": ["1 + 1?"], "new/model": [True]}), tmp_path / "x_responses.parquet")
    with pytest.raises(ConfigError, match=r"new/model.*--bank\.prices"):
        import_routellm([str(tmp_path / "x_responses.parquet")])
    parts = import_routellm([str(tmp_path / "x_responses.parquet")], {"new/model": (1.0, 2.0)})
    assert parts.attempts[0]["cost_usd"] == pytest.approx((2 * 1.0 + 1 * 2.0) / 1e6)


def test_tau2_runs_keep_their_real_dollars_and_the_dearer_model_is_the_stronger_tier(demo_logs):
    files = [str(demo_logs / f"airline_{name}.json.gz") for name in ("gpt-4o-2024-11-20", "qwen2.5-7b")]
    parts = import_runs([*files, str(demo_logs / "tasks_airline.json.gz")])
    assert conserved(parts)
    bank = assemble_bank(parts, BankConfig())
    assert "qwen" in bank.tiers[0].name
    assert "gpt-4o" in bank.tiers[1].name
    for path, tier in zip(files, reversed(bank.tiers), strict=True):
        logged = {run["task_id"]: run for run in read_gzip(path)["simulations"]}
        own = [row for row in bank.attempts.to_pylist() if row["tier"] == tier.name]
        assert len(own) == len(logged) == 6
        for row in own:
            run_ = logged[row["task_id"].split("/")[-1]]
            assert row["cost_usd"] == pytest.approx(run_["agent_cost"])
            assert row["seconds"] == pytest.approx(run_["duration"])
            assert row["success"] == (run_["reward_info"]["reward"] == 1)
    assert bank.complete().tasks.num_rows == 6


def test_runs_without_costs_need_a_stated_price(demo_logs, tmp_path):
    uri = str(demo_logs / "gpt-4o-airline.json.gz")
    with pytest.raises(InputError, match=r"32 runs have no cost.*trial-usd"):
        import_runs([uri])
    parts = import_runs([uri, uri], trial_usd=1.0)
    assert len(parts.attempts) == 32
    assert parts.duplicates == 0, "one file named twice is read once"
    assert Counter(row["attempt"] for row in parts.attempts) == dict.fromkeys(range(4), 8)
    (tmp_path / "copy.json").write_bytes(gzip.decompress(Path(uri).read_bytes()))
    twice = import_runs([uri, str(tmp_path)], ["gpt-4o", "copy"], trial_usd=1.0)
    assert len(twice.attempts) == 64, "a run without a model counts as of its file's name"


def test_reflexion_chains_end_with_the_first_success_and_later_trials_reflect(data):
    parts = import_reflexion([str(data / "reflexion.jsonl.gz")])
    assert conserved(parts)
    chain = [row for row in parts.attempts if row["task_id"].endswith("alfworld/env_4")]
    assert [row["success"] for row in chain] == [False, False, False, True]
    assert [row["kind"] for row in chain] == ["fresh"] + ["reflective"] * 3
    assert [row["depth"] for row in chain] == [0, 1, 2, 3]
    assert all(row["prior_refuted"] and row["prior_success"] is False for row in chain[1:])
    assert parts.excluded == {"the trial repeats an earlier success": 3}


def test_retries_of_runs_without_reflection_are_no_fair_sample(tmp_path):
    trials = [
        {"name": "env_0", "memory": [], "is_success": t == 2, "trial": t, "_domain": "alfworld"} for t in range(3)
    ]
    path = tmp_path / "base_run" / "trials.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(trial) + "\n" for trial in [*trials, {"name": "x"}]))
    parts = import_reflexion([str(path)])
    assert [row["success"] for row in parts.attempts] == [False]
    assert sum(parts.excluded.values()) == 2
    assert len(parts.rejected) == 1
    assert parts.rejected[0].line == 4
    assert conserved(parts)


POLICIES = {"always-cheap": AlwaysCheap, "always-strong": AlwaysStrong, "heuristic": HeuristicPolicy}


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """Real episodes of three policies on the same tasks; half of the answers of the cheap tier are wrong."""
    folder = tmp_path_factory.mktemp("executed")
    checked = {"verifier": {"kind": "regex", "pattern": "^[0-9]{1,2}$"}}
    tasks = [{**task, "difficulty": 0.05 * i} for i, task in enumerate(make_tasks(20, **checked))]

    def cheap(chat, seed):
        return solve(chat, seed) if int(chat[0]["content"].split()[2]) % 2 else blunder(chat, 7)

    for policy in POLICIES:
        run(folder, tasks, cheap, solve, policy=policy, out=policy)
    return folder


def logs_of(folder: Path, *policies: str) -> list[str]:
    return [str(folder / policy / "logs") for policy in policies or POLICIES]


def test_every_attempt_of_the_executors_logs_is_a_row_with_its_own_outcome(executed):
    ladder = load_tiers(str(executed / "tiers.yaml"))
    parts = import_logs(logs_of(executed, "heuristic"), ladder)
    logs = read_logs(executed / "heuristic")
    decisions = {log["extra"]["celr"]["task_id"]: log for log in logs}
    called = Counter()
    for task_id, log in decisions.items():
        found = [
            s["extra"]["celr"]["decision"] for s in log["steps"] if "decision" in s.get("extra", {}).get("celr", {})
        ]
        attempts = [d for d in found if d["tier"] and d["action"] != "VERIFY"]
        rows = [row for row in parts.attempts if row["task_id"] == task_id]
        assert len(rows) == len(attempts)
        for row, decision in zip(rows, attempts, strict=True):
            assert row["success"] is decision["check"]["passed"]
            assert row["cost_usd"] == decision["cost_usd"]
            assert row["quote_usd"] >= row["cost_usd"]
            called[row["kind"], row["depth"] > 0, row["prior_refuted"]] += 1
    assert called["fresh", False, False] == 20
    assert called["reflective", True, True] > 0
    assert called["compressed", False, True] > 0


def test_merged_logs_count_an_attempt_once_and_take_the_verdict_from_whichever_has_it(executed):
    alone = import_logs(logs_of(executed, "always-cheap"))
    assert all(row["verifier_cost_usd"] is None for row in alone.attempts)
    for order in (("always-cheap", "heuristic"), ("heuristic", "always-cheap")):
        merged = import_logs(logs_of(executed, *order))
        fresh = [r for r in merged.attempts if r["kind"] == "fresh" and r["tier"] == "cheap"]
        assert len(fresh) == 20
        verified = [row for row in fresh if row["verifier_passed"] is not None]
        assert len(verified) >= 8
        assert all(row["verifier_passed"] == row["success"] for row in verified)
        assert merged.duplicates == sum(row["verifier_cost_usd"] is not None for row in fresh)


@pytest.mark.parametrize("name", POLICIES)
def test_replay_of_the_logs_makes_the_very_decisions_that_were_made_live(executed, name):
    ladder = load_tiers(str(executed / "tiers.yaml"))
    bank = assemble_bank(import_logs(logs_of(executed), ladder), BankConfig())
    results = run_replay(bank, POLICIES[name](), keep_decisions=True)
    assert results.n_incomplete == 0
    assert not results.censored.any()
    logs = {log["extra"]["celr"]["task_id"]: log for log in read_logs(executed / name)}
    made = results.decisions
    for row, task_id in enumerate(results.task_ids):
        celr = logs[task_id]["extra"]["celr"]
        steps = logs[task_id]["steps"]
        live = [s["extra"]["celr"]["decision"] for s in steps if "decision" in s.get("extra", {}).get("celr", {})]
        own = np.flatnonzero(made.episode == row)
        assert [d["action"] for d in live] == [_name(a) for a in made.action[own]]
        for n, decision in zip(own, live, strict=True):
            assert (made.mask[n] <= np.array(decision["mask"])).all(), "what was not recorded is masked, nothing else"
            timeless = [c for c in range(len(decision["obs"])) if c != FEATURE_INDEX["time_left"]]
            np.testing.assert_allclose(np.array(decision["obs"])[timeless], made.obs[n][timeless], atol=1e-12)
        assert results.success[row, 0] == celr["episode"]["success"]
        assert results.cost_usd[row, 0] == pytest.approx(sum(d["cost_usd"] for d in live))
        assert results.total_reward[row, 0] == pytest.approx(celr["episode"]["total_reward"])


def _name(action: int) -> str:
    from celr_ray.cortex.actions import ACTIONS

    return ACTIONS[action]


def test_logs_that_cannot_be_read_are_rejected_with_file_line_and_reason(executed, tmp_path):
    good = (executed / "always-cheap" / "logs" / "part-00000.jsonl").read_text().splitlines()
    other_schema = json.loads(good[0])
    other_schema["extra"]["celr"]["episode"]["state_schema"] = "0000"
    gap = json.loads(good[1])
    decision = next(s for s in gap["steps"] if "decision" in s.get("extra", {}).get("celr", {}))
    decision["extra"]["celr"]["decision"]["t"] = 5
    lines = [good[2], "{broken", json.dumps(other_schema), json.dumps(gap), '{"steps": []}']
    path = tmp_path / "logs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    parts = import_logs([str(path)])
    assert [row.line for row in parts.rejected] == [2, 3, 4, 5]
    assert len(parts.attempts) == 1
    assert "0000" in parts.rejected[1].reason
    assert "numbered" in parts.rejected[2].reason


def test_logs_of_different_ladders_cannot_share_a_bank(executed, tmp_path):
    lines = (executed / "always-cheap" / "logs" / "part-00000.jsonl").read_text().splitlines()
    other = json.loads(lines[0])
    other["extra"]["celr"]["episode"]["tiers"] = ["small", "large"]
    (tmp_path / "logs.jsonl").write_text(lines[1] + "\n" + json.dumps(other) + "\n")
    with pytest.raises(InputError, match="different ladders"):
        import_logs([str(tmp_path / "logs.jsonl")])


def test_tasks_without_a_checker_are_counted_not_scored(tmp_path):
    tasks = [{key: value for key, value in task.items() if key != "checker"} for task in make_tasks(3)]
    run(tmp_path, [*tasks, {**make_tasks(1)[0], "task_id": "checked"}], policy="always-cheap")
    parts = import_logs([str(tmp_path / "out" / "logs")])
    assert len(parts.attempts) == 1
    assert sum(parts.excluded.values()) == 3


def test_the_content_hash_depends_on_what_is_recorded_and_not_on_its_order(tmp_path):
    bank = random_bank(1)
    order = np.random.default_rng(0).permutation(bank.attempts.num_rows)
    shuffled = make_bank(bank.tiers, bank.tasks.take(list(range(29, -1, -1))), bank.attempts.take(order))
    assert shuffled.content_hash == bank.content_hash
    for column, value in (("success", True), ("cost_usd", 9.0), ("verifier_passed", True), ("source", "other")):
        rows = bank.attempts.to_pylist()
        row = next(r for r in rows if r[column] != value and r["has_answer"] and r["verifier_cost_usd"] is not None)
        row[column] = value
        changed = make_bank(bank.tiers, bank.tasks, pa.Table.from_pylist(rows, schema=bank.attempts.schema))
        assert changed.content_hash != bank.content_hash, column


def test_a_bank_comes_back_as_it_was_written_and_a_changed_one_is_refused(tmp_path):
    bank = random_bank(2)
    write_bank(str(tmp_path), bank)
    again = load_bank(str(tmp_path))
    assert again.content_hash == bank.content_hash
    assert again.tasks.equals(bank.tasks)
    assert again.attempts.equals(bank.attempts)
    record = json.loads((tmp_path / "bank.json").read_text())
    record["tiers"][0]["input_usd_per_mtok"] = 0.001
    (tmp_path / "bank.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="changed after it was made"):
        load_bank(str(tmp_path))
    write_bank(str(tmp_path), bank)
    rows = bank.attempts.to_pylist()
    rows[0]["cost_usd"] /= 2
    pq.write_table(pa.Table.from_pylist(rows, schema=bank.attempts.schema), tmp_path / "attempts.parquet")
    with pytest.raises(InputError, match="changed after it was made"):
        load_bank(str(tmp_path))
    (tmp_path / "bank.json").unlink()
    with pytest.raises(InputError, match=r"no bank\.json"):
        load_bank(str(tmp_path))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("cost_usd", float("nan"), "has no cost, or a negative one"),
        ("cost_usd", -1.0, "has no cost, or a negative one"),
        ("seconds", float("inf"), "duration"),
        ("tier", "tier9", "none of the tiers"),
        ("kind", "lucky", "kind"),
        ("task_id", "nobody", "unknown task"),
        ("confidence", 1.5, "confidence"),
        ("correctness", None, "has no correctness"),
        ("verifier_passed", True, "verdict but no cost"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused_by_name(column: str, value: Any, message: str):
    parts = make_parts(1)
    add_fresh(parts, "task/1", 0, [1, 0])
    bank = assemble_bank(parts, ALL_TRAIN)
    rows = bank.attempts.to_pylist()
    rows[1][column] = value
    table = pa.Table.from_pylist(rows, schema=pa.schema([f.with_nullable(True) for f in bank.attempts.schema]))
    with pytest.raises(InputError, match=message):
        make_bank(bank.tiers, bank.tasks, table)


def test_splits_go_by_task_and_equal_texts_fall_into_one():
    config = BankConfig(split_seed=3, validation_fraction=0.2, gate_fraction=0.3)
    keys = [f"question {i}" for i in range(4000)]
    splits = split_tasks(keys, config)
    assert splits == split_tasks(keys, config)
    shares = {name: count / 4000 for name, count in Counter(splits).items()}
    assert shares == pytest.approx({"train": 0.5, "validation": 0.2, "gate": 0.3}, abs=0.03)
    assert split_tasks(keys[:7], config) == splits[:7]
    assert splits != split_tasks(keys, BankConfig(split_seed=4, validation_fraction=0.2, gate_fraction=0.3))
    parts = make_parts(1)
    for i in range(40):
        add_fresh(parts, f"task/{i}", 0, [1])
        parts.tasks[f"task/{i}"].text = f"text {i % 5}"
    rows = assemble_bank(parts, config).tasks.to_pylist()
    found = {row["task_id"]: row["split"] for row in rows}
    assert all(found[f"task/{i}"] == found[f"task/{i % 5}"] for i in range(40))


def test_difficulty_is_learned_from_training_tasks_alone(monkeypatch):
    monkeypatch.setattr("celr_ray.cortex.evaluation.bank_estimates._FOLDS", 2)
    parts = make_parts(2)
    for i in range(240):
        is_hard = i % 2 == 0
        add_fresh(parts, f"task/{i}", 0, [0 if is_hard else 1])
        add_fresh(parts, f"task/{i}", 1, [1], cost=5.0)
        kind = "integrate the series and prove convergence" if is_hard else "add the numbers and report the sum"
        parts.tasks[f"task/{i}"].text = f"{kind} for case {i}"
    config = BankConfig(difficulty="train")
    bank = assemble_bank(parts, config)
    table = bank.tasks.to_pylist()
    for split in ("train", "validation", "gate"):
        hard = [r["difficulty"] for r in table if r["split"] == split and int(r["task_id"][5:]) % 2 == 0]
        easy = [r["difficulty"] for r in table if r["split"] == split and int(r["task_id"][5:]) % 2 == 1]
        assert min(hard) > max(easy), split
    held_out = {r["task_id"] for r in table if r["split"] != "train"}
    for row in parts.attempts:
        if row["task_id"] in held_out:
            row["success"] = not row["success"]
    again = assemble_bank(parts, config).tasks
    assert again["difficulty"].to_pylist() == bank.tasks["difficulty"].to_pylist(), "held-out outcomes are not seen"


def test_the_command_builds_repeats_refuses_and_replaces(data, tmp_path, capsys):
    out = tmp_path / "bank"
    build = ["bank", "build", "--source", "routellm", "--out", str(out), "--files"]
    assert main([*build, str(data / "gsm8k_responses.parquet")]) == 0
    assert "80 attempts of 40 tasks" in capsys.readouterr().out
    first = load_bank(str(out)).content_hash
    assert main([*build, str(data / "gsm8k_responses.parquet")]) == 0
    assert main([*build, str(data / "mmlu_responses.parquet")]) == 2
    assert "another bank" in capsys.readouterr().err
    assert load_bank(str(out)).content_hash == first
    assert main([*build, str(data / "mmlu_responses.parquet"), "--overwrite"]) == 0
    assert load_bank(str(out)).content_hash != first
    assert main(["bank", "build", "--out", str(out)]) == 2
    assert "either --logs" in capsys.readouterr().err
    assert main(["bank", "build", "--files", str(data), "--out", str(out)]) == 2
    assert main(["bank", "mend"]) == 2


def test_rejected_records_are_kept_beside_the_bank(data, tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_bytes(gzip.decompress((data / "reflexion.jsonl.gz").read_bytes()) + b'{"name": "env_0"}\n')
    job = BankBuildJob(source="reflexion", files=[str(path)], out=str(tmp_path / "bank"))
    report = run_bank_build(job)
    assert report.rejected == 1
    row = json.loads((tmp_path / "bank" / "rejected.jsonl").read_text())
    assert row["line"] == 11
    assert row["reason"]
    other = tmp_path / "full"
    other.mkdir()
    (other / "thesis.txt").write_text("do not touch")
    with pytest.raises(OutputError, match="holds no bank"):
        run_bank_build(BankBuildJob(source="reflexion", files=[str(path)], out=str(other)))
