"""Off-policy evaluation of transitions in parts: in a loop, on Ray, in any partition, as in memory; and its command."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ope_problems import RETRY_EVALUATION, RETRY_VALUE, masked_retry, retry_evaluation
from test_execute import blunder, make_tasks, run, solve

from celr_ray.cli import main
from celr_ray.config import DatasetConfig
from celr_ray.core.episodes import hash_text
from celr_ray.cortex.dataset import load_transitions, run_dataset, to_logged_episodes
from celr_ray.cortex.episode_rows import EpisodeRows, make_transition_table
from celr_ray.cortex.evaluation.episode_values import finish_sums, join_values, sum_part, value_episodes
from celr_ray.cortex.evaluation.estimators import estimate_all, make_report
from celr_ray.cortex.evaluation.evaluate import evaluate_transitions, iter_logged_episodes
from celr_ray.cortex.evaluation.logged import LoggedEpisodes, join_logs
from celr_ray.cortex.policy import load_policy
from celr_ray.errors import InputError, PolicyError

EXPLORING = {"epsilon": 0.2}
RANGE = (-1.3, 1.0)


def make_policy():
    """Return the evaluation policy of MaskedRetry; a class of its own each time, which Ray sends whole."""

    class Retrying:
        name = "retrying"
        content_hash = "0" * 16
        start_tier = 0

        def probabilities(self, obs, mask):
            return RETRY_EVALUATION.reshape(-1, 3)[obs.argmax(axis=1)]

    return Retrying()


def to_table(log: LoggedEpisodes, tasks: list[str], behavior: np.ndarray | None = None) -> pa.Table:
    """Write the episodes as the dataset does."""
    n = log.n_episodes
    rows = EpisodeRows(
        eps_id=[f"e{number:06d}" for number in range(n)],
        run_id=[f"e{number:06d}" for number in range(n)],
        rank=[0] * n,
        task_id=tasks,
        policy_hash=["f" * 16] * n,
        source=["test"] * n,
        is_cut=log.is_cut,
        length=np.bincount(log.episode),
        obs=log.obs,
        mask=log.mask,
        action=log.action,
        reward=log.reward,
        behavior=log.behavior if behavior is None else behavior,
    )
    return make_transition_table(rows)


def write_parts(folder: Path, log: LoggedEpisodes, tasks: list[str], bounds: list[int]) -> str:
    """Write parts that begin at the given episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    table = to_table(log, tasks)
    rows = np.searchsorted(log.episode, [0, *bounds, log.n_episodes])
    for number, (start, end) in enumerate(pairwise(rows)):
        pq.write_table(table.slice(start, end - start), folder / f"part-{number:05d}.parquet", row_group_size=37)
    return str(folder)


@pytest.fixture(scope="module")
def logged() -> tuple[LoggedEpisodes, list[str]]:
    """Episodes of 150 tasks, some of them several times."""
    log = masked_retry(400, 0)
    tasks = [f"task {number % 150}" for number in range(400)]
    keys = np.array([hash_text(task) for task in tasks], dtype=np.uint64).astype(np.int64)
    return dataclasses.replace(log, task=keys), tasks


def flatten(report) -> dict[str, float]:
    """Return every number of a report by its place."""
    flat = {}

    def visit(prefix, value):
        if isinstance(value, dict):
            for key, part in value.items():
                visit(f"{prefix}.{key}", part)
        elif not isinstance(value, (tuple, list)):
            flat[prefix] = value

    visit("", dataclasses.asdict(report))
    return flat


def assert_same(left, right) -> None:
    """Compare two reports up to rounding."""
    a, b = flatten(left), flatten(right)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=1e-7, abs=1e-9, nan_ok=True), name


def test_parts_in_a_loop_give_what_memory_gives(logged, tmp_path):
    log, tasks = logged
    uri = write_parts(tmp_path / "parts", log, tasks, [1, 90, 333])
    found = evaluate_transitions(uri, make_policy(), return_range=RANGE, on_ray=False)
    assert (found.n_transitions, found.n_unknown) == (len(log.t), 0)
    whole = estimate_all(log, retry_evaluation(log), RANGE)
    assert whole.screen.diagnostics.is_evaluable
    assert_same(found.report, whole)


def test_ray_gives_exactly_what_the_loop_gives(logged, tmp_path, local_ray):
    log, tasks = logged
    uri = write_parts(tmp_path / "parts", log, tasks, [50, 51, 200])
    loop = evaluate_transitions(uri, make_policy(), return_range=RANGE, on_ray=False)
    assert evaluate_transitions(uri, make_policy(), return_range=RANGE, on_ray=True) == loop


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(1, 59), max_size=6, unique=True), seed=st.integers(0, 1000), n_folds=st.integers(2, 4))
def test_any_partition_gives_the_same(cuts, seed, n_folds):
    log = masked_retry(60, seed)
    log = dataclasses.replace(log, task=np.arange(60) // 2)
    bounds = [0, *sorted(cuts), 60]
    parts = [log.take(np.arange(a, b)) for a, b in pairwise(bounds)]
    sums = [sum_part(part, retry_evaluation(part), n_folds=n_folds) for part in parts]
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    fits = finish_sums(total)
    values = join_values([value_episodes(part, retry_evaluation(part), fits) for part in parts])
    found = make_report(values, total, fits, RANGE)
    assert_same(found, estimate_all(log, retry_evaluation(log), RANGE, n_folds=n_folds))


def test_episodes_are_read_whole_whatever_the_batch(logged, tmp_path):
    log, tasks = logged
    write_parts(tmp_path, log, tasks, [])
    for rows in (1, 2, 7, 100, 10**6):
        counts: Counter[str] = Counter()
        read = join_logs(list(iter_logged_episodes(str(tmp_path / "part-00000.parquet"), counts, rows)))
        assert counts == {"rows": len(log.t), "unknown": 0}
        for name, column in vars(log).items():
            assert np.array_equal(getattr(read, name), column), name


def test_the_estimates_hold_the_exact_value(tmp_path):
    log = masked_retry(20_000, 1)
    uri = write_parts(tmp_path, log, [f"{number}" for number in range(20_000)], [7_000])
    report = evaluate_transitions(uri, make_policy(), return_range=RANGE, on_ray=False).report
    for name, estimate in report.estimates.items():
        half = max(estimate.ci_high - estimate.value, 0.01)
        assert abs(estimate.value - RETRY_VALUE) < 1.6 * half, name
    assert report.screen.betting_low <= report.screen.value_low < RETRY_VALUE < report.screen.value_high


def test_episodes_without_probabilities_are_left_out_and_counted(logged, tmp_path):
    log, tasks = logged
    unknown = np.where(log.episode[:, None] < 25, np.nan, log.behavior)
    pq.write_table(to_table(log, tasks, unknown), tmp_path / "part-00000.parquet")
    found = evaluate_transitions(str(tmp_path), make_policy(), return_range=RANGE, on_ray=False)
    assert found.n_unknown == 25
    rest = log.take(np.arange(25, 400))
    assert_same(found.report, estimate_all(rest, retry_evaluation(rest), RANGE))
    pq.write_table(to_table(log, tasks, log.behavior * np.nan), tmp_path / "part-00000.parquet")
    with pytest.raises(PolicyError, match=r"none of the 400 episodes .* says with which probabilities"):
        evaluate_transitions(str(tmp_path), make_policy(), on_ray=False)
    with pytest.raises(InputError, match="has no transitions"):
        evaluate_transitions(str(tmp_path / "nothing"), make_policy(), on_ray=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """The dataset of real logs by the exploring heuristic, with tasks exactly at its thresholds."""
    folder = tmp_path_factory.mktemp("evaluated")
    verifier = {"kind": "regex", "pattern": "^[0-9]{1,3}$"}
    levels = (0.1, 0.4, 0.7)
    tasks = [{**task, "difficulty": levels[i % 3]} for i, task in enumerate(make_tasks(150, verifier=verifier))]
    run(folder, tasks, lambda chat, seed: solve(chat, seed) if seed % 2 else blunder(chat, seed), execute=EXPLORING)
    run_dataset([str(folder / "out" / "logs")], str(folder / "set"), DatasetConfig(validation_fraction=0.5))
    return str(folder / "set")


def test_the_heuristic_decides_on_its_own_transitions_as_it_did(dataset):
    log = to_logged_episodes(load_transitions(dataset, "validation"))
    same = np.eye(log.mask.shape[1])[log.behavior.argmax(axis=1)]
    found = evaluate_transitions(dataset, load_policy("heuristic"), on_ray=False)
    assert_same(found.report, estimate_all(log, same))
    assert abs(found.report.screen.diagnostics.mean_weight_z) < 3


def test_the_command_shows_a_table_and_the_screens_word(dataset, tmp_path, capsys):
    arguments = ["evaluate-policy", "--transitions", dataset, "--policy", "always-cheap", "--out", str(tmp_path / "x")]
    assert main([*arguments, "--champion", "heuristic"]) == 0
    shown = capsys.readouterr().out
    assert "doubly robust" in shown
    assert "effective episodes" in shown
    record = json.loads((tmp_path / "x").read_text())
    assert shown.splitlines()[-1] == f"{record['veto']['verdict']}: {record['veto']['reason']}"
    champion = record["champion"]["report"]
    assert champion["screen"]["diagnostics"]["problems"] == []
    assert champion["screen"]["value_low"] < champion["estimates"]["dr"]["value"] < champion["screen"]["value_high"]
    assert main([*arguments[:3], "--policy", "nobody"]) == 2
    assert "no policy 'nobody'" in capsys.readouterr().err
