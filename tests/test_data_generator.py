"""Preference pairs: which runs, which way round, which texts; by hand, by property and on real logs."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ingest, pair, read_rows

from celr_ray import PreferencePairGenerator, TrajectoryScorer, storage
from celr_ray.config import PairConfig
from celr_ray.errors import InputError, RunMismatchError
from celr_ray.training.conversations import make_message, split_pair, split_run
from celr_ray.training.preference import Candidate, iter_choices

ALL = PairConfig(strategy="all")


def say(role, content, **fields):
    return {**make_message(role, content), **fields}


def row(name, task="t", success=True, composite=None, messages=None, prompt="Do it", model="m"):
    score = None if success is None else float(success)
    return {
        "trajectory_id": name,
        "task_id": task,
        "success": success,
        "success_score": score,
        "composite_score": score if composite is None else composite,
        "model": model,
        "prompt": prompt,
        "messages": messages or [say("user", "Do it"), say("assistant", f"answer of {name}")],
    }


def ids(pairs):
    return [(p.chosen_id, p.rejected_id) for p in pairs]


def test_success_is_chosen_over_failure_of_the_same_task():
    pairs = PreferencePairGenerator().create_dpo_pairs([row("a", success=False), row("b")])
    assert ids(pairs) == [("b", "a")]
    assert pairs[0].chosen_score > pairs[0].rejected_score


def test_pairs_never_mix_tasks():
    rows = [row("a", "t1"), row("b", "t2", success=False)]
    assert PreferencePairGenerator(ALL).create_dpo_pairs(rows) == []


def test_best_against_worst_is_one_pair_and_all_is_capped():
    rows = [row(f"w{i}", composite=0.9 + i / 1000) for i in range(5)]
    rows += [row(f"l{i}", success=False, composite=0.1 + i / 1000) for i in range(5)]
    assert ids(PreferencePairGenerator().create_dpo_pairs(rows)) == [("w4", "l0")]
    every = PreferencePairGenerator(PairConfig(strategy="all", max_pairs_per_task=100)).create_dpo_pairs(rows)
    assert len(every) == len(set(ids(every))) == 25
    capped = PreferencePairGenerator(PairConfig(strategy="all", max_pairs_per_task=7)).create_dpo_pairs(rows)
    assert len(capped) == 7


def test_outcome_outranks_composite_and_judge():
    rows = [row("cheap_failure", success=False, composite=0.9), row("dear_success", composite=0.1)]
    judged = PreferencePairGenerator().create_dpo_pairs(rows, {"cheap_failure": 1.0, "dear_success": 0.0})
    assert ids(judged) == [("dear_success", "cheap_failure")]


def test_the_judge_breaks_ties_and_without_it_a_tie_is_no_pair():
    rows = [row("a"), row("b")]
    generator = PreferencePairGenerator()
    assert generator.create_dpo_pairs(rows) == []
    assert ids(generator.create_dpo_pairs(rows, {"a": 0.2, "b": 0.9})) == [("b", "a")]
    assert generator.create_dpo_pairs(rows, {"a": 0.5, "b": 0.5}) == []
    assert generator.create_dpo_pairs(rows, {"a": 0.2, "b": None}) == []


def test_two_successes_pair_only_above_the_margin():
    rows = [row("a", composite=0.9), row("b", composite=0.8)]
    assert ids(PreferencePairGenerator(PairConfig(margin=0.05)).create_dpo_pairs(rows)) == [("a", "b")]
    assert PreferencePairGenerator(PairConfig(margin=0.2)).create_dpo_pairs(rows) == []


def test_a_cheap_failure_is_never_chosen_over_a_dear_one():
    rows = [row("a", success=False, composite=0.4), row("b", success=False, composite=0.0)]
    assert PreferencePairGenerator(ALL).create_dpo_pairs(rows, {"a": 1.0, "b": 0.0}) == []


def test_unscored_runs_make_no_pair():
    rows = [row("a"), row("b", success=None, composite=0.1)]
    assert PreferencePairGenerator(ALL).create_dpo_pairs(rows) == []


def test_self_reward_follows_the_judge_unless_the_outcome_says_the_opposite():
    rows = [row("a", success=None, composite=0.5), row("b", success=None, composite=0.5)]
    generator = PreferencePairGenerator()
    assert ids(generator.create_self_reward_pairs(rows, {"a": 0.9, "b": 0.3})) == [("a", "b")]
    known = [row("a", success=False), row("b", success=True)]
    assert generator.create_self_reward_pairs(known, {"a": 0.9, "b": 0.3}) == []
    assert generator.create_self_reward_pairs(known, {"a": None, "b": 0.3}) == []


def test_identical_texts_are_no_pair_and_the_next_ones_are_taken():
    same = [say("user", "Do it"), say("assistant", "105")]
    rows = [row("a", messages=same), row("b", success=False, composite=0.0, messages=same)]
    assert PreferencePairGenerator().create_dpo_pairs(rows) == []
    rows.append(row("c", success=False, composite=0.1))
    assert ids(PreferencePairGenerator().create_dpo_pairs(rows)) == [("a", "c")]


def test_spin_joins_by_prompt():
    sft = [{"prompt": "What is  2+2?", "response": "4"}, {"prompt": "Other", "response": "x"}]
    responses = [
        {"prompt": "What is 2+2? ", "response": "5"},
        {"prompt": "Unknown", "response": "y"},
        {"messages": [{"role": "user", "content": "Other"}, {"role": "assistant", "content": "x"}]},
    ]
    (only,) = PreferencePairGenerator().create_spin_pairs(sft, responses)
    assert (only.pair_type, only.level) == ("spin", "step")
    assert (only.chosen[0].content, only.rejected[0].content) == ("4", "5")


def test_exports_of_the_front_door(tmp_path):
    generator = PreferencePairGenerator()
    pairs = generator.create_dpo_pairs([row("a", success=False), row("b")])
    assert generator.export_trl_format(pairs, str(tmp_path / "trl.jsonl")) == 1
    (line,) = (tmp_path / "trl.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert [written[key][0]["content"] for key in ("prompt", "chosen", "rejected")] == [
        "Do it",
        "answer of b",
        "answer of a",
    ]
    assert generator.export_sharegpt_format(pairs, str(tmp_path / "sharegpt.jsonl")) == 1
    assert "answer of b" in (tmp_path / "sharegpt.jsonl").read_text()


def test_level_step_where_the_agents_part():
    shared = [say("system", "S"), say("user", "U"), say("assistant", "look", tool_calls="[]"), say("tool", "found")]
    a = [*shared, say("assistant", "right"), say("user", "thanks")]
    b = [*shared, say("assistant", "wrong")]
    split = split_pair(a, b, "the task")
    assert split.level == "step"
    assert (split.prompt, split.chosen, split.rejected) == (shared, a[4:], b[4:])


def test_level_trajectory_where_the_user_or_a_tool_parted_first():
    a = [say("system", "S"), say("user", "Hi"), say("assistant", "A")]
    b = [say("system", "S"), say("user", "Hello"), say("assistant", "B")]
    split = split_pair(a, b, "the task")
    assert split.level == "trajectory"
    assert split.prompt == [say("system", "S"), say("user", "the task")]
    assert (split.chosen, split.rejected) == (a[1:], b[1:])


def test_no_common_prompt_is_no_pair():
    a = [say("user", "Hi"), say("assistant", "A")]
    b = [say("user", "Hello"), say("assistant", "B")]
    assert split_pair(a, b, None) == "no_task_text"
    assert split_pair([say("system", "S1"), *a], [say("system", "S2"), *b], "task") == "different_system_texts"
    assert split_pair(a, [*a, say("user", "more")], None) == "no_task_text"
    assert split_pair(a, a, "task") == "equal_texts"
    assert split_pair(a[1:], b[1:], None) == "no_task_text"


def test_parting_at_the_agent_after_shared_messages_is_a_step_even_without_a_user():
    shared = [say("assistant", "look"), say("tool", "found")]
    split = split_pair([*shared, say("assistant", "A")], [*shared, say("assistant", "B")], None)
    assert (split.level, split.prompt) == ("step", shared)
    with_task = split_pair([*shared, say("assistant", "A")], [*shared, say("assistant", "B")], "the task")
    assert with_task.prompt == [say("user", "the task"), *shared]


def test_one_id_with_two_task_texts_is_two_tasks():
    rows = [row("a", success=False, prompt="Write a poem"), row("b", prompt="What is 2+2?")]
    assert PreferencePairGenerator(ALL).create_dpo_pairs(rows) == []
    spaced = [row("a", success=False, prompt="Do  it"), row("b", prompt="Do it ")]
    assert len(PreferencePairGenerator(ALL).create_dpo_pairs(spaced)) == 1


def test_ranked_scores_go_straight_into_pairs():
    def log(status, output):
        steps = [{"description": "do", "status": "COMPLETED", "output": output, "retry_count": 0}]
        return {"task_id": "t", "original_request": "Do it", "final_status": status, "plan": steps, "total_cost": 0.1}

    ranked = TrajectoryScorer().rank([log("FAILED", "wrong"), log("SUCCESS", "right")])
    (only,) = PreferencePairGenerator().create_dpo_pairs(ranked)
    assert "right" in only.chosen[0].content
    assert only.chosen_id == ranked[0].trajectory_id


def test_a_run_that_failed_with_a_right_answer_is_no_success():
    rows = [
        {**row("a", success=False), "success_score": 1.0, "composite_score": 0.9},
        {**row("b", success=True), "success_score": 1.0, "composite_score": 0.5},
    ]
    assert ids(PreferencePairGenerator(ALL).create_dpo_pairs(rows)) == [("b", "a")]


def test_an_empty_answer_is_nothing_to_learn_from():
    user = say("user", "U")
    assert split_pair([user, say("assistant", "A")], [user, say("assistant", " ")], "task") == "empty_answer"
    assert split_run([user, say("assistant", None)], None) is None
    assert split_run([user, say("assistant", None, tool_calls="[{}]")], None) is not None


def test_a_run_is_cut_before_the_agents_answer():
    greeting = [say("assistant", "Hello, how can I help?"), say("user", "U"), say("assistant", "A"), say("user", "B")]
    split = split_run(greeting, None)
    assert (split.prompt, split.completion) == (greeting[:2], greeting[2:])
    assert split_run([say("assistant", "A")], None) is None


candidates = st.lists(
    st.builds(
        Candidate,
        trajectory_id=st.uuids().map(str),
        success=st.none() | st.booleans(),
        success_score=st.none() | st.sampled_from([0.0, 1.0]),
        composite_score=st.none() | st.floats(0, 1),
        judge_score=st.none() | st.floats(0, 1),
    ).map(
        lambda c: Candidate(
            c.trajectory_id,
            bool(c.success_score) if c.success_score is not None else None,
            c.success_score,
            c.composite_score,
            c.judge_score,
        )
    ),
    max_size=12,
    unique_by=lambda c: c.trajectory_id,
)


@settings(deadline=None)
@given(candidates, st.sampled_from(["dpo", "self_reward"]), st.randoms(use_true_random=False))
def test_choices_are_ordered_unique_and_independent_of_the_input_order(runs, pair_type, rng):
    choices = list(iter_choices(runs, pair_type, ALL))
    assert len({frozenset((c.chosen.trajectory_id, c.rejected.trajectory_id)) for c in choices}) == len(choices)
    for choice in choices:
        assert choice.chosen_score > choice.rejected_score or pair_type == "dpo"
        won, lost = choice.chosen.success_score, choice.rejected.success_score
        if won is not None and lost is not None:
            assert won >= lost
        if pair_type == "dpo":
            assert choice.chosen.success
    shuffled = list(runs)
    rng.shuffle(shuffled)
    assert list(iter_choices(shuffled, pair_type, ALL)) == choices


def test_a_task_with_20000_runs_is_bounded():
    rng = random.Random(0)
    runs = [Candidate(f"{i:05d}", bool(s := rng.randrange(2)), float(s), rng.random(), None) for i in range(20_000)]
    first = next(iter_choices(runs, "dpo", ALL))
    best = max(runs, key=lambda c: (c.success_score, c.composite_score))
    worst = min(runs, key=lambda c: (c.success_score, c.composite_score))
    assert (first.chosen, first.rejected) == (best, worst)
    assert len(list(iter_choices(runs, "dpo", ALL))) == 64 * 16


@pytest.fixture(scope="module")
def paired(tmp_path_factory, demo_logs):
    run = tmp_path_factory.mktemp("paired")
    ingest(run, demo_logs)
    report = pair(run, strategy="all", sft=[str(demo_logs.parent / "sft.jsonl")])
    return run, report


def test_every_demo_task_with_both_outcomes_has_a_pair(paired):
    tasks = read_rows(paired[0], "tasks")
    both = [task for task in tasks if task["n_success"] and task["n_failure"]]
    assert len(both) == 6 + 5 + 8
    assert all(task["n_dpo"] >= 1 and task["dpo_reason"] is None for task in both)


def test_real_pairs_are_consistent(paired):
    runs = {r["trajectory_id"]: r for r in read_rows(paired[0])}
    pairs = read_rows(paired[0], "pairs")
    assert {p["level"] for p in pairs} == {"step", "trajectory"}
    assert {p["pair_type"] for p in pairs} == {"dpo", "spin"}
    for p in (p for p in pairs if p["pair_type"] == "dpo"):
        chosen, rejected = runs[p["chosen_id"]], runs[p["rejected_id"]]
        assert chosen["task_id"] == rejected["task_id"] == p["task_id"]
        assert chosen["success"]
        if p["level"] == "step":
            assert p["chosen"][0]["role"] == p["rejected"][0]["role"] == "assistant"
            assert p["chosen"][0] != p["rejected"][0]
            assert p["prompt"] + p["chosen"] == chosen["messages"]
            assert p["prompt"] + p["rejected"] == rejected["messages"]


def test_no_score_cost_status_or_id_leaks_into_texts(paired):
    runs = {r["trajectory_id"]: r for r in read_rows(paired[0])}
    for p in read_rows(paired[0], "pairs"):
        text = json.dumps([p["prompt"], p["chosen"], p["rejected"]])
        assert p["task_id"] not in text
        assert p["chosen_id"] not in text
        own = runs[p["rejected_id"]]
        source = json.dumps([own["messages"], own["prompt"]])
        for leak in ("LLM call", "total_cost", "final_status", "retry_count", "reward_info", "benchmark_gpt4"):
            assert leak not in text or leak in source


def test_one_sided_tasks_go_to_kto_and_every_run_is_accounted_for(paired):
    run, report = paired
    tasks = {t["task_id"]: t for t in read_rows(run, "tasks")}
    kto = read_rows(run, "unpaired")
    assert kto
    for r in kto:
        task = tasks[r["task_id"]]
        assert (task["n_success"] > 0) == r["label"]
        assert (task["n_failure"] > 0) != r["label"]
    counts = report.counts
    assert counts["runs.in_pairs"] + counts["runs.in_kto_only"] + counts["runs.in_neither"] == counts["rows_out"] == 92


def test_reasons_are_given_for_each_task_without_a_pair(paired):
    for task in read_rows(paired[0], "tasks"):
        assert (task["n_dpo"] == 0) == (task["dpo_reason"] is not None)
        assert task["self_reward_reason"] in ("no_judgment", "single_run")
        assert (task["n_spin"] == 0) == (task["spin_reason"] is not None)


def test_pairs_do_not_depend_on_buckets_or_parts(tmp_path, demo_logs):
    ingest(tmp_path / "a", demo_logs, n_buckets=1)
    ingest(tmp_path / "b", demo_logs, n_buckets=13, split_bytes=20_000, files_per_unit=1)
    for name in ("a", "b"):
        pair(tmp_path / name, strategy="all")
    for folder in ("pairs", "unpaired", "tasks"):
        assert read_rows(tmp_path / "a", folder) == read_rows(tmp_path / "b", folder)


def test_exact_duplicates_count_once(tmp_path, demo_logs):
    raw = (demo_logs / "celr_benchmark.jsonl").read_bytes()
    storage.write_bytes(str(tmp_path / "logs" / "a.jsonl"), raw)
    storage.write_bytes(str(tmp_path / "logs" / "b.jsonl"), raw)
    ingest(tmp_path / "once", tmp_path / "logs" / "a.jsonl")
    ingest(tmp_path / "twice", tmp_path / "logs")
    once, twice = pair(tmp_path / "once"), pair(tmp_path / "twice")
    assert (once.counts["duplicates"], twice.counts["duplicates"]) == (0, 46)
    assert read_rows(tmp_path / "once", "pairs") == read_rows(tmp_path / "twice", "pairs")
    assert sum(task["n_duplicates"] for task in read_rows(tmp_path / "twice", "tasks")) == 46


def test_bad_sft_data_is_one_clear_error(tmp_path, demo_logs):
    ingest(tmp_path / "run", demo_logs / "celr_benchmark.jsonl")
    (tmp_path / "sft.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt"\n')
    with pytest.raises(InputError, match=r"sft.jsonl, line 2: not valid JSON"):
        pair(tmp_path / "run", sft=[str(tmp_path / "sft.jsonl")])


def test_pairing_before_ingest_is_refused(tmp_path):
    with pytest.raises(RunMismatchError, match="ingest is not finished"):
        pair(tmp_path)
