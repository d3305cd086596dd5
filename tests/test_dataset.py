"""The dataset: every logged decision becomes one lawful row, whatever the cut, the executor or the order of files."""

from __future__ import annotations

import copy
import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import LOOP, count_calls, ingest, kill_at_call, read_rows
from s3_server import S3Server, aws_environment
from test_execute import blunder, decisions, make_tasks, run, solve

import celr_ray
from celr_ray import storage
from celr_ray.config import DatasetConfig, IngestConfig, RuntimeConfig
from celr_ray.cortex.actions import ACTIONS, N_ACTIONS, Action
from celr_ray.cortex.dataset import (
    describe_dataset,
    iter_transitions,
    load_transitions,
    read_dataset_record,
    read_refused,
    run_dataset,
    to_logged_episodes,
)
from celr_ray.cortex.episode_rows import EpisodeRows, make_transition_table, sum_to_go
from celr_ray.cortex.evaluation.estimators import estimate_values
from celr_ray.cortex.foreign_logs import REFUSALS
from celr_ray.cortex.state import FEATURE_INDEX, N_FEATURES, SCHEMA_HASH
from celr_ray.cortex.transition_check import check_transitions
from celr_ray.cortex.transitions import list_parts, table_to_transitions
from celr_ray.errors import InputError, PolicyError, RunMismatchError
from celr_ray.schema import TRANSITION_SCHEMA, Transition, transition_schema

Documents = list[dict[str, Any]]
N_TASKS = 60


def stumble(chat, seed):
    """Answer rightly every other time."""
    return solve(chat, seed) if seed % 2 else blunder(chat, seed)


@pytest.fixture(scope="session")
def documents(tmp_path_factory) -> Documents:
    """Real logs: an exploring policy on tasks with a verifier, another one on tasks without."""
    folder = tmp_path_factory.mktemp("executed")
    verifier = {"kind": "regex", "pattern": "^[0-9]{1,3}$"}
    exploring = {"epsilon": 0.2, "escalation": {"medium_difficulty": 0.05}}
    first, _, _ = run(folder, make_tasks(N_TASKS, verifier=verifier), stumble, execute=exploring, out="a")
    second, _, _ = run(folder, make_tasks(N_TASKS), stumble, policy="random", out="b")
    return [*first, *second]


def write(path: Path, documents: list[Any]) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    text = "".join(json.dumps(document) + "\n" for document in documents)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


def build(logs: Any, out: Path, *, on_ray: bool = False, overwrite: bool = False, cut: int = 2**30, **settings: Any):
    """Make a dataset; settings are those of DatasetConfig."""
    uris = [str(uri) for uri in (logs if isinstance(logs, list) else [logs])]
    return run_dataset(
        uris,
        str(out),
        DatasetConfig(**settings),
        IngestConfig(split_bytes=cut),
        RuntimeConfig(executor="ray", num_cpus=2) if on_ray else LOOP,
        overwrite=overwrite,
        on_ray=on_ray,
    )


def read_all(out: Path) -> dict[str, pa.Table]:
    """Return the rows of both splits, in the order of the files."""
    return {
        split: pa.concat_tables([storage.read_parquet(part) for part in list_parts(str(out), split)]).combine_chunks()
        for split in ("train", "validation")
    }


@pytest.fixture(scope="session")
def made(documents, tmp_path_factory) -> Path:
    """The dataset of the real logs."""
    folder = tmp_path_factory.mktemp("made")
    report = build(write(folder / "logs.jsonl", documents), folder / "out")
    assert report.counts["rows_in"] == report.counts["rows_out"] == 2 * N_TASKS
    return folder


def test_every_decision_of_real_logs_is_one_row(made, documents):
    rows = [row for table in read_all(made / "out").values() for row in table.to_pylist()]
    assert len(rows) == sum(len(decisions(d)) for d in documents)
    assert {a for d in documents for a in (x["action"] for x in decisions(d))} == set(ACTIONS), "all six were logged"
    logged = {(d["extra"]["celr"]["task_id"], d["extra"]["celr"]["episode"]["policy_hash"]): d for d in documents}
    for row in rows:
        Transition(**row)
        document = logged[row["task_id"], row["policy_hash"]]
        own = decisions(document)
        decision, rewards = own[row["t"]], [d["reward"] for d in own]
        is_last = row["t"] == len(own) - 1
        assert row["obs"] == [*np.float32(decision["obs"]), *map(float, decision["mask"])]
        following = (
            [*np.float32(own[row["t"] + 1]["obs"]), *map(float, own[row["t"] + 1]["mask"])] if not is_last else []
        )
        assert row["new_obs"] == (following or [0.0] * N_FEATURES + [0, 0, 0, 0, 0, 1])
        assert row["actions"] == ACTIONS.index(decision["action"])
        assert row["behavior"] == list(decision["probabilities"].values())
        assert row["action_prob"] == decision["probabilities"][decision["action"]]
        assert row["rewards_raw"] == decision["reward"]
        assert row["rewards"] == np.float32(decision["reward"] / 100)
        assert row["return_to_go"] == pytest.approx(sum(rewards[row["t"] :]))
        assert (row["terminateds"], row["truncateds"]) == (is_last, False)
        if row["t"] == 0:
            assert row["return_to_go"] == pytest.approx(document["extra"]["celr"]["episode"]["total_reward"])


def test_ids_are_those_of_the_trajectories(made, tmp_path):
    ingest(tmp_path / "run", made / "logs.jsonl")
    trajectories = {row["trajectory_id"]: row["task_id"] for row in read_rows(tmp_path / "run")}
    train = load_transitions(str(made / "out"))
    assert {trajectories[eps_id] for eps_id in train.eps_id} == set(train.task_id)


def test_no_task_is_in_both_splits_and_rows_of_an_episode_stay_together(made):
    splits = {split: load_transitions(str(made / "out"), split) for split in ("train", "validation")}
    tasks = {split: set(found.task_id) for split, found in splits.items()}
    assert not tasks["train"] & tasks["validation"]
    assert len(tasks["train"] | tasks["validation"]) == N_TASKS
    assert 0.05 < len(tasks["validation"]) / N_TASKS < 0.4
    for found in splits.values():
        assert len(set(found.eps_id)) == found.n_episodes, "no episode is torn apart"
        assert (found.t[1:] == np.where(found.episode[1:] == found.episode[:-1], found.t[:-1] + 1, 0)).all()
    order = [task.split("/")[-1] for task in splits["train"].task_id]
    assert order != sorted(order, key=int)
    half = len(order) // 2
    assert min(Counter(splits["train"].policy_hash[:half]).values()) > half / 4, "both policies' episodes are mixed"


@pytest.mark.parametrize("layout", ["cut", "buckets", "files", "container"])
def test_order_rows_and_hash_do_not_depend_on_the_cut(made, documents, tmp_path, layout):
    if layout in ("cut", "buckets"):
        settings = {"cut": 40_000} if layout == "cut" else {"cut": 100_000, "n_buckets": 7}
        report = build(made / "logs.jsonl", tmp_path / "out", **settings)
        assert report.units > 5
    elif layout == "files":
        for number in range(5):
            suffix = ".gz" if number % 2 else ""
            write(tmp_path / "logs" / f"{9 - number}.jsonl{suffix}", documents[number::5])
        build(tmp_path / "logs", tmp_path / "out")
    else:  # a JSON list: its elements have the bytes of the lines
        text = f"[{','.join(json.dumps(document) for document in documents)}]"
        (tmp_path / "logs.json").write_text(text)
        build(tmp_path / "logs.json", tmp_path / "out")
    assert read_all(tmp_path / "out") == read_all(made / "out")
    ours, theirs = (read_dataset_record(str(place / "out")) for place in (tmp_path, made))
    assert ours == theirs


def test_ray_gives_what_the_loop_gives(made, tmp_path, local_ray):
    report = build(made / "logs.jsonl", tmp_path / "out", on_ray=True, cut=100_000, n_buckets=3)
    assert report.units_run == report.units > 5
    assert read_all(tmp_path / "out") == read_all(made / "out")
    assert read_dataset_record(str(tmp_path / "out")) == read_dataset_record(str(made / "out"))
    counted = {
        split: celr_ray.read_transitions(str(tmp_path / "out"), split).count() for split in ("train", "validation")
    }
    assert counted == read_dataset_record(str(made / "out"))["transitions"]
    batch = celr_ray.read_transitions(str(tmp_path / "out")).take_batch(16)
    whole = load_transitions(str(made / "out"))
    places = {(whole.eps_id[e], t): row for row, (e, t) in enumerate(zip(whole.episode, whole.t, strict=True))}
    rows = [places[key] for key in zip(batch["eps_id"], batch["t"], strict=True)]  # Ray Data reads files in any order
    np.testing.assert_array_equal(np.stack(batch["obs"]), whole.obs[rows])


def test_logs_and_dataset_may_lie_on_an_object_store(made, tmp_path, monkeypatch):
    server = S3Server(tmp_path / "s3")
    server.start()
    try:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in aws_environment(server.port).items():
            monkeypatch.setenv(name, value)
        server.client().create_bucket(Bucket="dataset")
        storage.write_bytes("s3://dataset/logs/logs.jsonl", (made / "logs.jsonl").read_bytes())
        out = "s3://dataset/out"
        report = run_dataset(["s3://dataset/logs"], out, ingest=IngestConfig(split_bytes=100_000), runtime=LOOP)
        assert report.units > 3
        assert read_dataset_record(out) == read_dataset_record(str(made / "out"))
        for split in ("train", "validation"):
            ours, theirs = load_transitions(out, split), load_transitions(str(made / "out"), split)
            np.testing.assert_array_equal(ours.eps_id, theirs.eps_id)
            np.testing.assert_array_equal(ours.obs, theirs.obs)
            assert sum(map(len, iter_transitions(out, split, 50))) == len(theirs)
    finally:
        server.kill()


def test_seed_and_share_change_order_split_and_hash(made, tmp_path):
    record = read_dataset_record(str(made / "out"))
    build(made / "logs.jsonl", tmp_path / "seed", seed=1)
    build(made / "logs.jsonl", tmp_path / "share", validation_fraction=0.0)
    ids = [tuple(load_transitions(str(place)).eps_id) for place in (made / "out", tmp_path / "seed")]
    assert ids[0] != ids[1]
    hashes = {read_dataset_record(str(place))["data_hash"] for place in (tmp_path / "seed", tmp_path / "share")}
    assert len(hashes | {record["data_hash"]}) == 3
    assert read_dataset_record(str(tmp_path / "share"))["episodes"] == {"train": 2 * N_TASKS, "validation": 0}
    with pytest.raises(InputError, match=r"the validation split of .* has no transitions"):
        load_transitions(str(tmp_path / "share"), "validation")


def test_copies_are_dropped_and_counted(documents, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "logs" / f"{name}.jsonl", documents[:30])
    report = build(tmp_path / "logs", tmp_path / "out")
    assert (report.counts["rows_in"], report.counts["rows_out"], report.counts["duplicates"]) == (60, 30, 30)
    build(tmp_path / "logs" / "a.jsonl", tmp_path / "single")
    assert read_all(tmp_path / "out") == read_all(tmp_path / "single")


def test_a_second_call_does_nothing_and_changed_input_is_noticed(documents, tmp_path):
    logs = tmp_path / "logs.jsonl"
    write(logs, documents[:20])
    assert build(logs, tmp_path / "out").units_run == 2
    again = build(logs, tmp_path / "out")
    assert again.units_run == 0
    assert again.counts["rows_out"] == 20
    write(logs, documents[:21])
    with pytest.raises(RunMismatchError, match=r"logs\.jsonl has [\d,]+ bytes, had"):
        build(logs, tmp_path / "out")
    with pytest.raises(RunMismatchError, match=r"logs\.jsonl has"):
        build(logs, tmp_path / "out", validation_fraction=0.5)
    assert build(logs, tmp_path / "out", overwrite=True).counts["rows_out"] == 21
    with pytest.raises(RunMismatchError, match=r"validation_fraction was 0.2, is 0.5"):
        build(logs, tmp_path / "out", validation_fraction=0.5)
    assert build(logs, tmp_path / "out", validation_fraction=0.5, overwrite=True).units_run == 1, (
        "logs are not read again"
    )


def _build_quietly(logs: str, out: str) -> None:
    build(logs, Path(out), cut=60_000, n_buckets=3)


def test_killed_anywhere_it_resumes_with_the_same_dataset(documents, tmp_path):
    logs = write(tmp_path / "logs.jsonl", [*documents[:40], {"damaged": 1}])
    _build_quietly(logs, str(tmp_path / "whole"))
    writes = ("write_parquet", "write_json", "write_bytes")
    n_writes = count_calls(partial(_build_quietly, logs, str(tmp_path / "counted")), writes)
    assert n_writes > 10
    for moment in range(2, n_writes + 1, 6):
        out = tmp_path / f"killed-{moment}"
        kill_at_call(partial(_build_quietly, logs, str(out)), moment, writes)
        _build_quietly(logs, str(out))
        assert read_all(out) == read_all(tmp_path / "whole"), moment
        assert read_dataset_record(str(out)) == read_dataset_record(str(tmp_path / "whole"))
        assert [row.line for row in read_refused(str(out))] == [41]


def _first(document: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = decisions(document)[0]
    return found


def _last(document: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = decisions(document)[-1]
    return found


def _episode(document: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["extra"]["celr"]["episode"]
    return found


def _set_feature(value: float | None) -> Callable[[dict[str, Any]], None]:
    def spoil(document: dict[str, Any]) -> None:
        _first(document)["obs"][FEATURE_INDEX["difficulty"]] = value

    return spoil


def _forbid_what_was_done(document: dict[str, Any]) -> None:
    decision = _first(document)
    decision["mask"][ACTIONS.index(decision["action"])] = False
    decision["probabilities"] = None


def _give_to_the_forbidden(document: dict[str, Any]) -> None:
    decision = _first(document)
    probabilities = {**dict.fromkeys(ACTIONS, 0.0), decision["action"]: 0.9}
    decision["probabilities"] = {**probabilities, "STOP": 0.1}  # nothing to stop with before the first attempt


def _give_nothing_to_what_was_done(document: dict[str, Any]) -> None:
    decision = _first(document)
    other = "RECURSE" if decision["action"] != "RECURSE" else "ABORT"
    decision["probabilities"] = {**dict.fromkeys(ACTIONS, 0.0), other: 1.0}


def _drop_last(document: dict[str, Any]) -> None:
    steps = [s for s in document["steps"] if "decision" in s.get("extra", {}).get("celr", {})]
    document["steps"].remove(steps[-1])


def _add(key: str, amount: float, find: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable[[Any], None]:
    def spoil(document: dict[str, Any]) -> None:
        find(document)[key] += amount

    return spoil


def _update(find: Callable[[Mapping[str, Any]], dict[str, Any]], **values: Any) -> Callable[[Any], None]:
    return lambda document: find(document).update(values)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "nan": (_set_feature(None), "decision 0 has no number as its feature difficulty"),
    "bounds": (_set_feature(1.5), "decision 0 has a feature difficulty outside of its bounds 0 and 1"),
    "forbidden": (_forbid_what_was_done, "decision 0 has the action [A-Z]+, which its own mask forbids"),
    "no abort": (lambda d: _first(d)["mask"].__setitem__(5, False), "decision 0 has a mask that forbids ABORT"),
    "sum": (lambda d: _first(d)["probabilities"].update(RETRY_COMPRESSED=0.3), "probabilities that do not sum to 1"),
    "negative": (lambda d: _first(d)["probabilities"].update(ABORT=-0.1), "a probability that is none"),
    "no number": (lambda d: _first(d)["probabilities"].update(ABORT=None), "a probability that is none"),
    "given to the forbidden": (_give_to_the_forbidden, "a probability for an action that its mask forbids"),
    "nothing for the done": (_give_nothing_to_what_was_done, "a probability of 0 for what was done"),
    "other schema": (_update(_episode, state_schema="0" * 16), f"feature schema 0{{16}}, .* knows {SCHEMA_HASH}"),
    "no schema": (_update(_episode, state_schema=None), r"feature schema \(none\)"),
    "gap": (_update(_last, t=17), "gap in t: decision [0-9]+ has t 17"),
    "missing end": (_drop_last, "missing end: the episode ended as STOPPED, its last decision is"),
    "other end": (_update(_episode, end_reason="ABORTED"), "missing end: the episode ended as ABORTED"),
    "goes on after the end": (_update(_first, action="STOP"), "decision 0 is STOP, and [A-Z]+ follows it"),
    "step reward": (_add("reward", 3.0, _first), "decision 0 has a reward that no step can have"),
    "no step reward": (_update(_first, reward=None), "decision 0 has a reward that no step can have"),
    "end reward": (_add("reward", 50.0, _last), "the rewards sum to .*: no episode has that with the outcome success"),
    "other total": (_add("total_reward", 0.5, _episode), "the rewards sum to .*, logged as"),
    "other outcome": (_update(_episode, unsafe=True), "no episode has that with the outcome unsafe"),
    "reward without outcome": (_update(_episode, success=None), "no episode has that with the outcome success None"),
    "outcome without reward": (_update(_last, reward=None), "a reward is missing"),
    "unknown action": (_update(_first, action="JUMP"), "wrong shape: Invalid enum value 'JUMP'"),
    "short state": (lambda d: _first(d)["obs"].pop(), "decision 0 has 32 features and a mask of 6, not 33 and 6"),
    "text in a state": (_set_feature("high"), "wrong shape: Expected `float | null`"),  # type: ignore[arg-type]
    "no rules": (lambda d: d["extra"]["celr"].pop("episode"), "decisions, but no extra.celr.episode"),
    "no decisions": (lambda d: [s.pop("extra", None) for s in d["steps"]], "the episode has no decisions"),
}


@pytest.fixture(scope="session")
def stopped(documents) -> dict[str, Any]:
    """A real log of three decisions and more, that ended with STOP."""
    return next(
        d
        for d in documents
        if len(decisions(d)) > 2 and _last(d)["action"] == "STOP" and not _first(d)["mask"][Action.STOP]
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_unlawful_logs_are_refused_with_the_reason_and_the_place(documents, stopped, tmp_path, fault):
    spoil, reason = FAULTS[fault]
    spoiled = copy.deepcopy(stopped)
    spoil(spoiled)
    others = [d for d in documents[:7] if d is not stopped]
    logs = write(tmp_path / "logs.jsonl", [*others, spoiled, *documents[7:9]])
    report = build(logs, tmp_path / "out", cut=20_000)
    (row,) = read_refused(str(tmp_path / "out"))
    assert (row.file, row.line) == (logs, len(others) + 1)
    assert re.search(reason, row.reason), row.reason
    assert json.loads(row.raw) == spoiled
    assert report.counts["rejected"] == 1
    assert report.counts["rows_out"] == len(others) + 2


def test_a_cut_log_is_truncated_not_terminated(stopped, tmp_path):
    cut = copy.deepcopy(stopped)
    _drop_last(cut)
    _episode(cut).update(end_reason=None, success=None, total_reward=None)
    report = build(write(tmp_path / "logs.jsonl", [cut]), tmp_path / "out", validation_fraction=0.0)
    assert report.counts["truncated"] == 1
    found = load_transitions(str(tmp_path / "out"))
    assert len(found) == len(decisions(stopped)) - 1
    assert not found.terminateds.any()
    assert found.truncateds.tolist() == [False] * (len(found) - 1) + [True]
    assert found.return_to_go[0] == pytest.approx(sum(d["reward"] for d in decisions(cut)))


def test_another_failure_penalty_reprices_failures_and_nothing_else(documents, demo_logs, tmp_path):
    usable = [d for d in documents if _episode(d)["success"] is not None]
    success, failure, unsafe = (
        copy.deepcopy(next(d for d in usable if _episode(d)["success"] is wanted)) for wanted in (True, False, False)
    )
    _episode(unsafe)["unsafe"] = True
    _last(unsafe)["reward"] -= 100
    _episode(unsafe)["total_reward"] -= 100
    cut = copy.deepcopy(next(d for d in usable if len(decisions(d)) > 1))
    _drop_last(cut)
    _episode(cut).update(end_reason=None, success=None, total_reward=None)
    own = write(tmp_path / "logs" / "own.jsonl", [success, failure, unsafe, cut])
    kinds = {"failure_penalty": 100.0, "validation_fraction": 0.0}
    build([own, demo_logs], tmp_path / "usual", **kinds)
    build([own, demo_logs], tmp_path / "priced", **kinds | {"failure_penalty": 0.5})
    usual, priced = (load_transitions(str(tmp_path / name)) for name in ("usual", "priced"))
    np.testing.assert_array_equal(usual.eps_id, priced.eps_id)
    is_failure = usual.rewards_raw < -50
    assert not (is_failure & ~usual.terminateds).any()
    assert is_failure.sum() > 2, "of ours, and of other agents"
    np.testing.assert_allclose(priced.rewards_raw, usual.rewards_raw + 99.5 * is_failure)
    np.testing.assert_allclose(priced.rewards, priced.rewards_raw, rtol=1e-6)
    assert priced.rewards_raw.min() < -100, "an unsafe run keeps its own penalty"
    assert (priced.return_to_go[priced.terminateds] == priced.rewards_raw[priced.terminateds]).all()
    assert check_transitions(str(tmp_path / "priced"), read_dataset_record(str(tmp_path / "priced")))
    with pytest.raises(RunMismatchError, match=r"failure_penalty was 0\.5, is 100\.0"):
        build([own, demo_logs], tmp_path / "priced", **kinds)


def test_unknown_probabilities_are_null_and_bar_off_policy_estimates(documents, stopped, tmp_path):
    unknown = copy.deepcopy(stopped)
    for decision in decisions(unknown):
        decision["probabilities"] = None
    others = [d for d in documents[:9] if d is not stopped]
    build(write(tmp_path / "logs.jsonl", [*others, unknown]), tmp_path / "out", validation_fraction=0.0)
    found = load_transitions(str(tmp_path / "out"))
    assert np.isnan(found.action_prob).sum() == len(decisions(stopped))
    assert np.isnan(found.behavior).any(axis=1).sum() == len(decisions(stopped))
    with pytest.raises(PolicyError, match=f"1 of {len(others) + 1} episodes do not say with which probabilities"):
        to_logged_episodes(found)
    assert to_logged_episodes(found, drop_unknown=True).n_episodes == len(others)


def test_episodes_without_a_checker_are_left_out_and_counted(documents, tmp_path):
    tasks = [{k: v for k, v in task.items() if k != "checker"} for task in make_tasks(5)]
    logs, _, _ = run(tmp_path, tasks)
    report = build(write(tmp_path / "mixed.jsonl", [*logs, *documents[:5]]), tmp_path / "made")
    assert report.counts["rows_in"] == 10
    assert (report.counts["excluded"], report.counts["excluded_as.no_outcome"]) == (5, 5)
    assert (report.counts["rejected"], report.counts["rows_out"]) == (0, 5)
    assert f"5 left out: {REFUSALS['no_outcome']}" in describe_dataset(report)
    with pytest.raises(InputError, match=r"no usable episode in .*: 5 records excluded: the log does not say"):
        build(write(tmp_path / "alone.jsonl", logs), tmp_path / "none")


def test_only_damage_is_one_clear_error(stopped, tmp_path):
    spoiled = copy.deepcopy(stopped)
    _episode(spoiled)["state_schema"] = "0" * 16
    with pytest.raises(InputError, match=r"2 damaged, first .*logs.jsonl line 1: the states have the feature schema"):
        build(write(tmp_path / "logs.jsonl", [spoiled, {"damaged": 1}]), tmp_path / "out")


def test_estimators_take_the_episodes_and_give_the_behavior_its_own_return(made):
    log = to_logged_episodes(load_transitions(str(made / "out")))
    returns = log.pad(log.reward).sum(axis=1)
    for name in ("is", "wis", "pdis"):
        assert estimate_values(log, log.behavior)[name].value == pytest.approx(returns.mean())


def test_batches_are_the_whole_in_order(made):
    whole = load_transitions(str(made / "out"))
    for size in (1, 7, 64, 10**6):
        batches = list(iter_transitions(str(made / "out"), batch_size=size))
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        for name in (
            "t",
            "obs",
            "new_obs",
            "actions",
            "rewards",
            "rewards_raw",
            "terminateds",
            "behavior",
            "return_to_go",
        ):
            joined = np.concatenate([getattr(batch, name) for batch in batches])
            np.testing.assert_array_equal(joined, getattr(whole, name))
    assert whole.n_features == N_FEATURES
    assert whole.mask[np.arange(len(whole)), whole.actions].all()
    with pytest.raises(InputError, match="batch_size is 0"):
        next(iter_transitions(str(made / "out"), batch_size=0))


def test_what_is_no_dataset_is_one_clear_error(made, tmp_path):
    with pytest.raises(InputError, match="no split 'gate'"):
        load_transitions(str(made / "out"), "gate")
    with pytest.raises(InputError, match="has no transitions"):
        load_transitions(str(tmp_path))
    with pytest.raises(InputError, match="no finished dataset"):
        read_dataset_record(str(tmp_path))
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 torn")
    for read in (load_transitions, lambda uri: list(iter_transitions(uri))):
        with pytest.raises(InputError, match="not a whole Parquet file"):
            read(str(tmp_path))
    storage.write_parquet(str(tmp_path / "part-00000.parquet"), pa.table({"t": [0]}))
    with pytest.raises(InputError, match=r"the columns action_prob, .* are missing"):
        load_transitions(str(tmp_path))


@given(st.lists(st.lists(st.floats(-300, 3), min_size=1, max_size=9), min_size=1, max_size=6))
def test_rewards_to_go_are_the_sums_from_each_row_on(episodes):
    length = np.array([len(rewards) for rewards in episodes])
    found = sum_to_go(np.concatenate(episodes), length)
    np.testing.assert_allclose(found, [sum(r[t:]) for r in episodes for t in range(len(r))], rtol=1e-12, atol=1e-9)
    alone = [sum_to_go(np.array(r), np.array([len(r)])) for r in episodes]
    np.testing.assert_array_equal(found, np.concatenate(alone), "it does not depend on the other episodes")


@given(st.integers(1, 5), st.integers(1, 8), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms())
def test_any_number_of_features_and_actions_comes_back(n_features, n_actions, lengths, random):
    n, generator = sum(lengths), np.random.default_rng(random.randrange(2**32))
    is_known = generator.random(n) < 0.5
    mask = generator.random((n, n_actions)) < 0.7
    action = generator.integers(n_actions, size=n)
    mask[np.arange(n), action] = True
    rows = EpisodeRows(
        eps_id=[f"e{i}" for i in range(len(lengths))],
        run_id=[f"e{i}" for i in range(len(lengths))],
        rank=[0] * len(lengths),
        task_id=["task"] * len(lengths),
        policy_hash=[None] * len(lengths),
        source=["test"] * len(lengths),
        is_cut=generator.random(len(lengths)) < 0.5,
        length=np.array(lengths),
        obs=generator.random((n, n_features)),
        mask=mask,
        action=action,
        reward=generator.normal(size=n),
        behavior=np.where(is_known[:, None], mask / mask.sum(axis=1, keepdims=True), np.nan),
    )
    table = make_transition_table(rows)
    assert table.schema == transition_schema(n_features, n_actions)
    table.validate(full=True)
    found = table_to_transitions(table)
    assert (found.n_features, found.n_actions, found.n_episodes) == (n_features, n_actions, len(lengths))
    np.testing.assert_array_equal(found.features, rows.obs.astype(np.float32))
    np.testing.assert_array_equal(found.mask, rows.mask)
    np.testing.assert_array_equal(found.behavior, rows.behavior)
    np.testing.assert_array_equal(np.isnan(found.action_prob), ~is_known)
    ends = found.terminateds | found.truncateds
    np.testing.assert_array_equal(np.flatnonzero(ends), np.cumsum(lengths) - 1)
    np.testing.assert_array_equal(found.truncateds[ends], rows.is_cut)
    np.testing.assert_array_equal(found.new_obs[:-1][~ends[:-1]], found.obs[1:][~ends[:-1]])
    assert (found.new_obs[ends][:, n_features:].sum(axis=1) == 1).all(), "a mask is never empty"


def test_the_schema_has_the_sizes_of_the_cortex():
    assert transition_schema(N_FEATURES, N_ACTIONS) == TRANSITION_SCHEMA
    assert list(Transition.model_fields) == TRANSITION_SCHEMA.names
    assert [f.name for f in TRANSITION_SCHEMA if f.nullable] == ["action_prob", "policy_hash"]
