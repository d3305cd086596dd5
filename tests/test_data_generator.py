"""Preference pairs: which runs, which way round, which texts; by hand, by property and on real logs."""

import json
import random
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ingest, pair, read_rows, read_table

from celr_ray import PreferencePairGenerator, TrajectoryScorer, storage
from celr_ray.config import PairConfig
from celr_ray.errors import InputError, RunMismatchError
from celr_ray.training.conversations import (
    NO_SPLIT,
    TEXT_SCHEMA,
    Conversations,
    count_shared,
    has_agent_message,
    make_message,
)
from celr_ray.training.pairing import LEVELS
from celr_ray.training.preference import Candidates, choose_pairs
from celr_ray.training.spans import take_rows

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


def converse(*rows):
    """Return the conversations of (messages, task text) rows."""
    prompts, messages = [text for _, text in rows], [messages for messages, _ in rows]
    return Conversations(pa.table([prompts, messages], schema=TEXT_SCHEMA))


def show_cuts(conversations, cuts):
    """Return each cut pair as its three texts, or as the reason why there is none."""
    usable = np.flatnonzero(cuts.no_split < 0)
    shown = [None if code < 0 else NO_SPLIT[code] for code in cuts.no_split]
    prompts, chosen, rejected = (
        column.to_pylist()
        for column in (
            conversations.take_prompts(take_rows(cuts.prompt, usable)),
            conversations.take_spans(take_rows(cuts.chosen, usable)),
            conversations.take_spans(take_rows(cuts.rejected, usable)),
        )
    )
    for place, *texts in zip(usable, prompts, chosen, rejected, strict=True):
        level = LEVELS[int(cuts.is_step[place])]
        shown[place] = SimpleNamespace(level=level, prompt=texts[0], chosen=texts[1], rejected=texts[2])
    return shown


def split_pair(chosen, rejected, task_text):
    both = converse((chosen, task_text), (rejected, task_text))
    return show_cuts(both, both.split_pairs(np.array([0]), np.array([1])))[0]


def split_run(messages, task_text):
    only = converse((messages, task_text))
    cuts = only.split_runs(np.array([0]))
    if not cuts.is_usable[0]:
        return None
    prompt, completion = only.take_prompts(cuts.prompt), only.take_spans(cuts.completion)
    return SimpleNamespace(prompt=prompt[0].as_py(), completion=completion[0].as_py())


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


messages = st.builds(
    say,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.sampled_from([None, "", " \u3000", "a", "b", "Do it"]),
    tool_calls=st.sampled_from([None, "[]"]),
)
conversations = st.lists(st.tuples(st.lists(messages, max_size=6), st.sampled_from([None, "", "Do it", "Do  it"])))


@settings(deadline=None)
@given(conversations.filter(len), st.randoms(use_true_random=False))
def test_cutting_many_pairs_at_once_is_cutting_each_alone(rows, rng):
    many = converse(*rows)
    a, b = (np.array([rng.randrange(len(rows)) for _ in range(20)]) for _ in range(2))
    together = show_cuts(many, many.split_pairs(a, b))
    for i, j, found in zip(a, b, together, strict=True):
        pair = converse(rows[i], rows[j])
        assert show_cuts(pair, pair.split_pairs(np.array([0]), np.array([1]))) == [found]
        if not isinstance(found, str):
            assert found.prompt
            assert has_agent_message(rows[i][0])
            assert has_agent_message(rows[j][0])
        shared = count_shared(rows[i][0], rows[j][0])
        assert rows[i][0][:shared] == rows[j][0][:shared]
        assert rows[i][0][shared : shared + 1] != rows[j][0][shared : shared + 1] or rows[i][0] == rows[j][0]


def list_candidates(runs):
    """Return (task, success, success_score, composite_score, judge_score) rows as columns; None = missing."""
    columns = list(zip(*runs, strict=True)) if runs else [()] * 5
    numbers = [np.array(column, dtype=np.float64) for column in columns[1:]]
    return Candidates(np.array(columns[0], dtype=np.int64), *numbers, 1 + max(columns[0], default=-1))


def make_run(task, score, composite, judge):
    return task, None if score is None else bool(score), score, composite, judge


scores = st.none() | st.sampled_from([0.0, 0.5, 0.52, 1.0]) | st.floats(0, 1)
tasks_of_runs = st.lists(
    st.builds(make_run, st.integers(0, 3), st.sampled_from([None, 0.0, 1.0]), scores, scores), max_size=24
).map(lambda runs: sorted(runs, key=lambda run: run[0]))


@settings(deadline=None)
@given(tasks_of_runs, st.sampled_from(["dpo", "self_reward"]))
def test_choices_are_ordered_unique_and_within_a_task(runs, pair_type):
    found = choose_pairs(list_candidates(runs), pair_type, ALL, 1000)
    rows = list(zip(*found, strict=True))
    assert len({frozenset(row[1:3]) for row in rows}) == len(rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    for task, chosen, rejected, chosen_score, rejected_score in rows:
        won, lost = runs[chosen], runs[rejected]
        assert won[0] == lost[0] == task
        assert chosen_score > rejected_score or pair_type == "dpo"
        assert won[2] is None or lost[2] is None or won[2] >= lost[2]
        assert won[1] or pair_type == "self_reward"


@settings(deadline=None)
@given(tasks_of_runs, st.sampled_from(["dpo", "self_reward"]), st.integers(1, 5))
def test_choosing_for_many_tasks_at_once_is_choosing_for_each_alone(runs, pair_type, n_choices):
    together = choose_pairs(list_candidates(runs), pair_type, ALL, n_choices)
    alone = []
    for task, members in groupby(enumerate(runs), key=lambda item: item[1][0]):
        places, own = zip(*members, strict=True)
        found = choose_pairs(list_candidates([(0, *run[1:]) for run in own]), pair_type, ALL, 1000)
        alone += [(task, places[row[1]], places[row[2]], *row[3:]) for row in zip(*found, strict=True)][:n_choices]
    assert list(zip(*together, strict=True)) == alone


def test_a_task_with_20000_runs_is_bounded():
    rng = random.Random(0)
    runs = [make_run(0, float(rng.randrange(2)), rng.random(), None) for _ in range(20_000)]
    found = choose_pairs(list_candidates(runs), "dpo", ALL, 10**6)
    best = max(range(20_000), key=lambda i: runs[i][2:4])
    worst = min(range(20_000), key=lambda i: runs[i][2:4])
    assert (found.chosen[0], found.rejected[0]) == (best, worst)
    assert len(found.task) == 64 * 16


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


@pytest.mark.parametrize("config", [PairConfig(), PairConfig(strategy="all", max_pairs_per_task=3)])
def test_the_stage_makes_the_pairs_of_the_front_door(tmp_path, demo_logs, config):
    rng = random.Random(0)
    turns = [["a"], ["a"], ["b", " "], [" "], ["b", "c", "d"], ["b", "c", "e"]]
    logs = [
        {
            "task_id": f"t{rng.randrange(60)}",
            "reward": rng.randrange(2),
            "info": {"task": {"instruction": "Do it"}} if rng.randrange(3) else {},
            "traj": [
                {"role": "system", "content": rng.choice("SSST")},
                *({"role": ("assistant", "user")[n % 2], "content": c} for n, c in enumerate(rng.choice(turns))),
            ],
            "trial": trial,
        }
        for trial in range(150)
    ]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs))
    ingest(tmp_path / "run", demo_logs, tmp_path / "odd.jsonl", n_buckets=3)
    pair(tmp_path / "run", **config.model_dump())
    made = PreferencePairGenerator(config).create_dpo_pairs(read_table(tmp_path / "run", "trajectories").to_pylist())
    stored = sorted(read_table(tmp_path / "run", "pairs").to_pylist(), key=lambda pair: pair["task_id"])
    assert [pair.model_dump() for pair in made] == stored
    reasons = {task["dpo_reason"] for task in read_rows(tmp_path / "run", "tasks")}
    assert reasons >= {"equal_texts", "empty_answer", None}


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
