"""The execute stage with models whose answers are known: prompts, verifiers, checkers, logs, resume."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import atif
import pytest

from celr_ray.config import ExecuteJob, RuntimeConfig
from celr_ray.core.clients import CallFailure
from celr_ray.core.execute_stage import run_execute
from celr_ray.core.execute_summary import describe, read_episodes, write_summary
from celr_ray.cortex.state import FEATURE_INDEX
from celr_ray.errors import ConfigError, InputError, ModelError, RunMismatchError
from celr_ray.logs.api import normalise_record
from celr_ray.testing import FakeClient

TIERS = """
tiers:
- {name: cheap, engine: vllm, model: fake-cheap, input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.4,
   context_window: 600, max_output_tokens: 40}
- {name: strong, engine: vllm, model: fake-strong, input_usd_per_mtok: 1.0, output_usd_per_mtok: 4.0,
   context_window: 2000, max_output_tokens: 40}
"""

Say = Callable[[Sequence[Mapping[str, str]], int], str | CallFailure]


def solve(chat: Sequence[Mapping[str, str]], seed: int) -> str:
    """Answer `a + b` correctly."""
    a, b = map(int, re.findall(r"(\d+) \+ (\d+)", " ".join(m["content"] for m in chat if m["role"] == "user"))[0])
    return f"I add them.\nAnswer: {a + b}"


def blunder(chat: Sequence[Mapping[str, str]], seed: int) -> str:
    """Answer with a wrong number, another one for each seed."""
    return f"Answer: {100000 + seed % 1000}"


def make_tasks(n: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "task_id": f"sum/{i}",
            "prompt": f"What is {i} + {i}? End with a line 'Answer: <number>'.",
            "checker": {"kind": "numeric", "answer": 2 * i},
            "difficulty": 0.1,
            **more,
        }
        for i in range(n)
    ]


def run(
    folder: Path,
    tasks: Sequence[Mapping[str, Any] | str],
    cheap: Say = blunder,
    strong: Say = solve,
    tiers: str = TIERS,
    out: str = "out",
    **settings: Any,
) -> tuple[list[dict[str, Any]], dict[str, FakeClient], Any]:
    """Execute tasks; returns the logs, the clients and the report."""
    lines = [task if isinstance(task, str) else json.dumps(task) for task in tasks]
    (folder / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "tiers.yaml").write_text(tiers)
    job = ExecuteJob(
        tasks=str(folder / "tasks.jsonl"), tiers=str(folder / "tiers.yaml"), out=str(folder / out), **settings
    )
    clients = {"cheap": FakeClient("cheap", cheap), "strong": FakeClient("strong", strong)}
    report = run_execute(job, clients=clients)
    return read_logs(folder / out), clients, report


def read_logs(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in sorted((out / "logs").iterdir()) for line in part.read_text().splitlines()]


def decisions(log: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [step.get("extra", {}).get("celr", {}).get("decision") for step in log["steps"]]
    return [decision for decision in found if decision]


def test_every_log_is_valid_atif_and_comes_back_through_the_reader(tmp_path):
    logs, _, report = run(tmp_path, make_tasks(20), execute={"epsilon": 0.5})
    assert report.counts["rows_out"] == 20
    for log in logs:
        atif.Trajectory.model_validate(log)
        row = normalise_record(log)
        celr = log["extra"]["celr"]
        assert row["task_id"] == celr["task_id"]
        assert row["success"] is celr["success"]
        assert row["cost_usd"] == pytest.approx(sum(d["cost_usd"] for d in decisions(log)))
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        said = [s for s in log["steps"] if s["source"] == "agent"]
        assert answers == [s["message"] for s in said if not s["extra"]["celr"].get("is_placeholder")]
        assert answers[-1:] == [s["message"] for s in said][-1:], "the last answer's talk is what a trainer sees"
        roles = [m["role"] for m in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2), "one talk, not several as one"
        for number, decision in enumerate(decisions(log)):
            assert decision["t"] == number
            assert decision["mask"][list(decision["probabilities"]).index(decision["action"])]
            assert sum(decision["probabilities"].values()) == pytest.approx(1)


def test_a_refuted_answer_is_reflected_on_and_the_reason_is_shown(tmp_path):
    tasks = make_tasks(3, verifier={"kind": "regex", "pattern": "^[0-9]{1,2}$"})
    logs, clients, _ = run(tmp_path, tasks)
    said = [chat[-1]["content"] for chat, _ in clients["cheap"].calls if len(chat) > 1]
    assert said
    assert all("was checked and it failed: the answer '100" in text for text in said)
    actions = [decision["action"] for decision in decisions(logs[0])]
    assert actions[:3] == ["RECURSE", "VERIFY", "RECURSE"]
    assert [s["source"] for s in logs[0]["steps"]][:2] == ["user", "agent"]


def test_the_checkers_answer_reaches_no_prompt_and_no_state(tmp_path):
    def spend(chat, seed):
        return f"Answer: {seed}"

    tasks = make_tasks(10, verifier={"kind": "regex", "pattern": "^[0-9]$"})
    changed = [{**task, "checker": {"kind": "numeric", "answer": 987654321}} for task in tasks]
    logs, clients, _ = run(tmp_path, tasks, spend, spend, execute={"epsilon": 0.3}, out="a")
    others, other_clients, _ = run(tmp_path, changed, spend, spend, execute={"epsilon": 0.3}, out="b")
    assert [client.calls for client in clients.values()] == [client.calls for client in other_clients.values()]
    for log, other in zip(logs, others, strict=True):
        assert [timeless(d["obs"]) for d in decisions(log)] == [timeless(d["obs"]) for d in decisions(other)]
        assert [d["action"] for d in decisions(log)] == [d["action"] for d in decisions(other)]
    assert "987654321" not in str([client.calls for client in other_clients.values()])


def timeless(obs: list[float]) -> list[float]:
    """Return a state without its share of time, which is measured."""
    return [value for column, value in enumerate(obs) if column != FEATURE_INDEX["time_left"]]


def test_always_cheap_fails_where_always_strong_succeeds_and_costs_less(tmp_path):
    figures = {}
    for policy in ("always-cheap", "always-strong"):
        run(tmp_path, make_tasks(30), policy=policy, out=policy)
        figures[policy] = write_summary(str(tmp_path / policy))
    assert figures["always-cheap"]["success"]["value"] == 0
    assert figures["always-strong"]["success"]["value"] == 1
    assert figures["always-cheap"]["cost_usd"]["value"] < figures["always-strong"]["cost_usd"]["value"]
    assert "success 1.000 [" in describe(figures["always-strong"])


def test_hard_tasks_go_to_the_strong_tier_at_once(tmp_path):
    logs, clients, _ = run(tmp_path, make_tasks(3, difficulty=0.9))
    assert not clients["cheap"].calls
    assert [d["action"] for d in decisions(logs[0])] == ["ESCALATE", "STOP"]
    assert logs[0]["extra"]["celr"]["success"] is True


def test_hidden_tests_decide_and_visible_tests_can_be_wrong(tmp_path):
    task = {
        "task_id": "double",
        "prompt": "Write double(x).",
        "difficulty": 0.1,
        "verifier": {"kind": "python_tests", "tests": "assert double(2) == 4", "entry_point": "double"},
        "checker": {"kind": "python_tests", "tests": "assert double(3) == 6\nassert double(2) == 4"},
    }

    def square(chat, seed):
        return "```python\ndef double(x):\n    return x * x\n```"

    logs, _, _ = run(tmp_path, [task], square)
    first = decisions(logs[0])
    assert [d["action"] for d in first] == ["RECURSE", "VERIFY", "STOP"]
    assert first[1]["verification"]["passed"] is True
    assert first[0]["check"] == {**first[0]["check"], "passed": False, "score": 0.5}
    assert logs[0]["extra"]["celr"]["success"] is False
    assert logs[0]["extra"]["celr"]["reward"] == 0.5


def test_code_that_opens_a_socket_makes_the_run_unsafe_and_a_failure(tmp_path):
    task = {
        "task_id": "x",
        "prompt": "Write f().",
        "difficulty": 0.1,
        "verifier": {"kind": "python_tests", "tests": "assert f() == 1"},
        "checker": {"kind": "python_tests", "tests": "assert f() == 1"},
    }

    def call_home(chat, seed):
        code = "import socket\ndef f():\n    socket.create_connection(('127.0.0.1', 9), 1)\n    return 1"
        return f"```python\n{code}\n```"

    logs, _, _ = run(tmp_path, [task], call_home)
    celr = logs[0]["extra"]["celr"]
    assert celr["episode"]["unsafe"] is True
    assert celr["success"] is False
    assert celr["episode"]["total_reward"] < -190


@pytest.mark.parametrize(("verifier", "n_calls"), [({"kind": "model"}, 1), ({"kind": "agreement", "n_samples": 4}, 3)])
def test_opinions_of_models_are_asked_for_and_paid(tmp_path, verifier, n_calls):
    def say(chat, seed):
        return "VERDICT: PASS" if "proposed_answer" in chat[-1]["content"] else "Answer: 7"

    logs, clients, _ = run(tmp_path, make_tasks(1, verifier=verifier), say)
    verify = decisions(logs[0])[1]
    assert verify["action"] == "VERIFY"
    assert verify["verification"]["passed"] is True
    assert verify["cost_usd"] > 0
    assert len(clients["cheap"].calls) == 1 + n_calls


@pytest.mark.parametrize("reply", [CallFailure("no answer", "timeout", 7.0), "I think so."])
def test_a_verifier_that_says_nothing_refutes_nothing(tmp_path, reply):
    def say(chat, seed):
        return reply if "proposed_answer" in chat[-1]["content"] else solve(chat, seed)

    logs, _, _ = run(tmp_path, make_tasks(1, verifier={"kind": "model"}), say)
    found = decisions(logs[0])
    assert [d["action"] for d in found] == ["RECURSE", "VERIFY", "STOP"]
    assert found[1]["verification"] is None
    assert found[1]["failure"].split(":")[0] in ("timeout", "unreadable")
    assert found[1]["tier"] == "cheap"
    assert logs[0]["extra"]["celr"]["success"] is True


def test_failed_calls_take_time_and_the_limit_ends_them(tmp_path):
    def fail(chat, seed):
        return CallFailure("no answer within 5 s", "timeout", 5.0)

    logs, _, _ = run(tmp_path, make_tasks(1, time_limit_s=8), fail)
    assert [d["action"] for d in decisions(logs[0])] == ["RECURSE", "RECURSE", "ABORT"]


def test_with_default_caps_every_rule_of_the_heuristic_can_fire(tmp_path):
    wrong = {"kind": "regex", "pattern": "^x$"}
    easy, _, _ = run(tmp_path, make_tasks(1, verifier=wrong), out="easy")
    actions = [d["action"] for d in decisions(easy[0])]
    assert actions == ["RECURSE", "VERIFY"] * 4 + ["RETRY_COMPRESSED", "VERIFY", "ABORT"]
    three = TIERS + TIERS.splitlines()[2].replace("cheap", "best") + "\n" + TIERS.splitlines()[3]
    hard = make_tasks(1, verifier=wrong, difficulty=0.85)
    config = {"escalation": {"hard_difficulty": 0.99}}
    (folder := tmp_path / "hard").mkdir()
    logs, _, _ = run_three(folder, hard, three, config)
    assert [d["action"] for d in decisions(logs[0])].count("ESCALATE") == 2


def run_three(folder, tasks, tiers, execute):
    """Execute on three tiers."""
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    (folder / "tiers.yaml").write_text(tiers)
    job = ExecuteJob(
        tasks=str(folder / "tasks.jsonl"),
        tiers=str(folder / "tiers.yaml"),
        out=str(folder / "out"),
        execute={**execute, "default_budget_usd": 1.0},
    )
    clients = {name: FakeClient(name, blunder) for name in ("cheap", "strong", "best")}
    return read_logs(folder / "out") if run_execute(job, clients=clients) else [], clients, None


def test_a_verifier_on_a_tier_that_is_not_there_is_named_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="first 'sum/0': 'huge'"):
        run(tmp_path, make_tasks(2, verifier={"kind": "model", "tier": "huge"}))


def test_code_is_verified_only_where_there_is_code(tmp_path):
    task = make_tasks(1, verifier={"kind": "python_tests", "tests": "assert True"})
    logs, _, _ = run(tmp_path, task, solve)
    assert [d["action"] for d in decisions(logs[0])] == ["RECURSE", "STOP"]


def test_giving_up_with_a_right_answer_is_a_failure_but_no_lesson(tmp_path):
    tasks = make_tasks(60)
    logs, _, _ = run(tmp_path, tasks, solve, policy="random")
    gave_up = [log for log in logs if log["extra"]["celr"]["episode"]["end_reason"] == "ABORTED"]
    with_answer = [log for log in gave_up if any(s["source"] == "agent" for s in log["steps"])]
    assert with_answer
    for log in with_answer:
        assert log["extra"]["celr"]["episode"]["success"] is False
        assert log["extra"]["celr"]["success"] is None
    assert all(log["extra"]["celr"]["status"] == "STUCK" for log in gave_up if log not in with_answer)


def test_a_task_without_a_checker_has_no_outcome_and_is_counted(tmp_path):
    tasks = make_tasks(4)
    del tasks[2]["checker"]
    logs, _, report = run(tmp_path, tasks)
    assert report.counts["without_checker"] == 1
    assert logs[2]["extra"]["celr"]["success"] is None
    assert logs[2]["extra"]["celr"]["episode"]["total_reward"] is None
    assert read_episodes(str(tmp_path / "out"))["success"].to_pylist()[2] is None


def test_a_budget_below_the_cheapest_call_is_counted(tmp_path):
    logs, clients, report = run(tmp_path, make_tasks(3, budget_usd=1e-9))
    assert report.counts["ended.unaffordable"] == 3
    assert [d["action"] for d in decisions(logs[0])] == ["ABORT"]
    assert not clients["cheap"].calls


def test_a_failed_call_fails_the_attempt_with_its_reason_and_no_other(tmp_path):
    def fail_on_two(chat, seed):
        return (
            CallFailure("no answer within 5 s", "timeout") if "What is 2" in chat[0]["content"] else solve(chat, seed)
        )

    logs, _, report = run(tmp_path, make_tasks(4), fail_on_two)
    assert report.counts["failed_calls.timeout"] == 5
    first = decisions(logs[2])[0]
    assert first["failure"] == "timeout: no answer within 5 s"
    assert first["cost_usd"] == 0
    assert [log["extra"]["celr"]["success"] for log in logs] == [True, True, False, True]


@pytest.mark.parametrize(("n_down", "is_told"), [(0, False), (1, False), (4, True)])
def test_where_most_calls_fail_it_is_said_with_their_kinds(tmp_path, caplog, n_down, is_told):
    def say(chat, seed):
        is_down = int(re.findall(r"What is (\d)", chat[0]["content"])[0]) < n_down
        return CallFailure("no contact", "connection") if is_down else solve(chat, seed)

    limits = {"limits": {"attempts_per_tier": 2}}
    run(tmp_path, make_tasks(4), say, execute=limits)
    told = [record.getMessage() for record in caplog.records if "attempts and verifications failed" in record.msg]
    assert told == ([told[0]] if is_told else [])
    assert not is_told or told[0].startswith("8 of 8 attempts and verifications failed (connection 8): ")


def test_one_tier_is_enough_and_escalate_is_never_allowed(tmp_path):
    one = "\n".join(TIERS.splitlines()[:4])
    logs, _, _ = run(tmp_path, make_tasks(5, difficulty=0.9), solve, tiers=one, policy="random")
    assert all(not d["mask"][1] for log in logs for d in decisions(log))


def test_prompts_beyond_the_window_are_not_offered(tmp_path):
    tasks = make_tasks(2)
    tasks[0]["prompt"] = "word " * 400 + tasks[0]["prompt"]
    logs, _, _ = run(tmp_path, tasks, policy="random")
    assert not decisions(logs[0])[0]["mask"][0]
    assert decisions(logs[0])[0]["mask"][1]
    assert decisions(logs[1])[0]["mask"][0]


def test_results_do_not_depend_on_the_size_of_units(tmp_path):
    def noisy(chat, seed):
        return solve(chat, seed) if seed % 3 == 0 else blunder(chat, seed)

    settings = {"policy": "random"}
    one, _, _ = run(tmp_path, make_tasks(23), noisy, out="one", execute={"rows_per_unit": 100}, **settings)
    many, _, _ = run(tmp_path, make_tasks(23), noisy, out="many", execute={"rows_per_unit": 4}, **settings)
    assert strip(one) == strip(many)


def strip(logs: list[dict[str, Any]]) -> str:
    """Return logs without the seconds that checks took."""
    return re.sub(r'"seconds": [0-9.e-]+|"obs": \[[^]]*\]|"(total_)?reward": [-0-9.e]+', "", json.dumps(logs))


def test_an_engine_that_dies_in_mid_episode_loses_its_unit_only(tmp_path):
    state = {"calls": 0}

    def mortal(chat, seed):
        state["calls"] += 1
        if state["calls"] == 9:
            raise ModelError("the engine died")
        return solve(chat, seed)

    with pytest.raises(ModelError):
        run(tmp_path, make_tasks(12), mortal, execute={"rows_per_unit": 3})
    assert len(read_logs(tmp_path / "out")) == 6
    logs, clients, report = run(tmp_path, make_tasks(12), solve, execute={"rows_per_unit": 3})
    assert report.units_run == 2
    assert len(clients["cheap"].calls) == 6
    assert [log["extra"]["celr"]["task_id"] for log in logs] == [f"sum/{i}" for i in range(12)]


def test_other_settings_are_refused_and_nothing_left_to_do_calls_nothing(tmp_path):
    run(tmp_path, make_tasks(4), solve)
    _, clients, report = run(tmp_path, make_tasks(4), solve)
    assert report.units_run == 0
    assert not clients["cheap"].calls
    faster = TIERS.replace("engine: vllm", "engine: openai, base_url: 'http://127.0.0.1:1/v1'")
    run(tmp_path, make_tasks(4), solve, tiers=faster, out="endpoint")
    wider = faster.replace("name: cheap,", "name: cheap, concurrency: 64, api_key_env: OTHER_KEY,")
    _, _, report = run(tmp_path, make_tasks(4), solve, tiers=wider, out="endpoint")
    assert report.units_run == 0, "neither moves a result"
    with pytest.raises(RunMismatchError, match="tiers was"):
        run(tmp_path, make_tasks(4), solve, tiers=faster.replace("2000", "3000"), out="endpoint")
    with pytest.raises(RunMismatchError, match="policy was"):
        run(tmp_path, make_tasks(4), solve, policy="random")


def test_bad_task_lines_are_rejected_with_line_and_reason(tmp_path):
    tasks = [*make_tasks(2), '{"task_id": "x"}', "{broken"]
    _, _, report = run(tmp_path, tasks, solve)
    assert (report.counts["rows_in"], report.counts["rows_out"], report.counts["rejected"]) == (4, 2, 2)
    rows = [json.loads(line) for line in (tmp_path / "out/rejected/part-00000.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [3, 4]
    assert "prompt" in rows[0]["reason"]
    with pytest.raises(InputError):
        run(tmp_path, ["nothing"], solve, out="other")


@pytest.mark.parametrize("is_mortal", [False, True])
def test_models_that_the_stage_opened_are_closed(tmp_path, monkeypatch, is_mortal):
    class Closing(FakeClient):
        n_closed = 0

        def close(self):
            self.n_closed += 1

    def say(chat, seed):
        if is_mortal:
            raise ModelError("the engine died")
        return solve(chat, seed)

    run(tmp_path, make_tasks(2), solve, out="other")
    clients = {name: Closing(name, say) for name in ("cheap", "strong")}
    monkeypatch.setattr("celr_ray.core.execute_stage.open_worker_clients", lambda job, ladder: clients)
    job = ExecuteJob(
        tasks=str(tmp_path / "tasks.jsonl"),
        tiers=str(tmp_path / "tiers.yaml"),
        out=str(tmp_path / "out"),
        runtime=RuntimeConfig(executor="loop"),
    )
    if is_mortal:
        with pytest.raises(ModelError, match="the engine died"):
            run_execute(job)
    else:
        run_execute(job)
    assert [client.n_closed for client in clients.values()] == [1, 1]


def test_what_a_probe_lost_on_failed_calls_is_time_too(tmp_path):
    def fail_first(chat, seed):
        return CallFailure("no answer within 7 s", "timeout", 7.0) if fail_first.calls.pop() else solve(chat, seed)

    fail_first.calls = [False, True, True]
    logs, _, _ = run(tmp_path, make_tasks(1), fail_first, execute={"probe": True})
    assert logs[0]["extra"]["celr"]["episode"]["probe"] is None
    assert logs[0]["extra"]["celr"]["duration_s"] > 7


def test_a_probe_is_paid_shown_and_charged_to_the_first_decision(tmp_path):
    logs, clients, _ = run(tmp_path, make_tasks(3), solve, execute={"probe": True})
    celr = logs[0]["extra"]["celr"]["episode"]
    assert celr["probe"]["agreement"] == 1
    assert celr["probe"]["cost_usd"] > 0
    assert len(clients["cheap"].calls) == 3 * (2 + 1)
    spent = sum(d["cost_usd"] for d in decisions(logs[0])) + celr["probe"]["cost_usd"]
    assert logs[0]["final_metrics"]["total_cost_usd"] == pytest.approx(spent)
    budget = logs[0]["extra"]["celr"]["budget_limit_usd"]
    assert decisions(logs[0])[0]["reward"] <= -(celr["probe"]["cost_usd"]) / budget
