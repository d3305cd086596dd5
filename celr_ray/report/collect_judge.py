"""Collects what the judge did, and how far it agrees with outcomes that are known without it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from celr_ray.report.data import Histogram, JudgeData
from celr_ray.report.reading import find_rows, read_light
from celr_ray.report.statistics import Bools, Estimate, Floats, Ints, estimate_auc, estimate_kappa
from celr_ray.schema import JUDGMENT_SCHEMA

THRESHOLD = 0.5
"""A judge score from here on counts as "success" for kappa."""

_N_BINS = 20
_COLUMNS = ("trajectory_id", "judge_model", "status", "judge_score", "prompt_tokens", "cut_tokens", "self_judged")
_STATUS_ORDER = ("ok", "garbled", "too_long", "empty", "engine_error")


def collect_judge(run: str, runs: pa.Table) -> JudgeData:
    """Read the judgments and compare them with the runs' outcomes.

    Args:
        run: run folder.
        runs: distinct runs, with `trajectory_id`, `task_id` and `success`.
    """
    table = read_light(run, "judge", "judgments", JUDGMENT_SCHEMA, _COLUMNS)
    scores = table["judge_score"].to_numpy()
    outcome, tasks = _find_outcomes(table, runs)
    scored = ~np.isnan(scores)
    known = scored & (outcome >= 0)
    auc = estimate_auc(scores[known], outcome[known] == 1, tasks[known])
    kappa = estimate_kappa(scores[known] >= THRESHOLD, outcome[known] == 1, tasks[known])
    n_success, n_failure = int((outcome[known] == 1).sum()), int((outcome[known] == 0).sum())
    statuses = {row["values"]: row["counts"] for row in table["status"].value_counts().to_pylist()}
    cut = table["cut_tokens"].to_numpy()
    return JudgeData(
        n_rows=table.num_rows,
        models=sorted(pc.unique(table["judge_model"]).to_pylist()),
        statuses=[(name, statuses.get(name, 0)) for name in [*_STATUS_ORDER, *sorted({*statuses} - {*_STATUS_ORDER})]],
        histogram=_histogram(scores[scored], table.num_rows),
        by_outcome=_split_by_outcome(scores[scored], outcome[scored]),
        n_cut=int((cut > 0).sum()),
        cut_tokens=int(cut.sum()),
        max_cut_tokens=int(cut.max()) if len(cut) else 0,
        prompt_tokens=pc.sum(table["prompt_tokens"]).as_py(),
        n_self_judged=int(pc.sum(table["self_judged"].cast(pa.int64())).as_py() or 0),
        n_success=n_success,
        n_failure=n_failure,
        n_tasks=len(np.unique(tasks[known])),
        auc=auc,
        kappa=kappa,
        threshold=THRESHOLD,
        meaning=explain_agreement(auc, n_success, n_failure),
    )


def _find_outcomes(judgments: pa.Table, runs: pa.Table) -> tuple[Ints, Ints]:
    """Return, for each judgment, the run's outcome (1, 0, −1 unknown) and its task's code."""
    if runs.num_rows == 0 or judgments.num_rows == 0:
        nothing = np.full(judgments.num_rows, -1, dtype=np.int64)
        return nothing, nothing
    place = find_rows(runs["trajectory_id"], judgments["trajectory_id"])
    success = pc.fill_null(runs["success"].cast(pa.int64()), -1).to_numpy()
    tasks = runs["task_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return np.where(place >= 0, success[place], -1), np.where(place >= 0, tasks[place], -1)


def _histogram(scores: Floats, n_rows: int) -> Histogram:
    counts, edges = np.histogram(scores, bins=_N_BINS, range=(0, 1))
    mean = float(scores.mean()) if len(scores) else None
    return Histogram("judge_score", edges.tolist(), counts.tolist(), len(scores), n_rows - len(scores), mean)


def _split_by_outcome(scores: Floats, outcome: Ints) -> list[tuple[str, list[int]]]:
    """Count the scores of succeeded, failed and unknown runs apart; empty groups are left out."""
    groups: list[tuple[str, Bools]] = [
        ("run succeeded", outcome == 1),
        ("run failed", outcome == 0),
        ("outcome unknown", outcome == -1),
    ]
    edges = np.linspace(0, 1, _N_BINS + 1)
    return [(name, np.histogram(scores[mask], edges)[0].tolist()) for name, mask in groups if mask.any()]


def explain_agreement(auc: Estimate | None, n_success: int, n_failure: int) -> str:
    """Say in one plain sentence what the AUC means."""
    if auc is None:
        if n_success + n_failure == 0:
            return "No judged run has a known outcome, so nothing says how good this judge is."
        which = "succeeded" if n_success else "failed"
        return (
            f"All {n_success + n_failure:,} judged runs with a known outcome {which}, so agreement cannot be measured."
        )
    odds = (
        f"of one run that succeeded and one that failed, it scores the first higher {100 * auc.value:.0f} % of the time"
    )
    if auc.ci_low > 0.5:
        return f"Better than chance: {odds} (50 % would be guessing)."
    if auc.ci_high < 0.5:
        return f"Worse than chance: {odds} (50 % would be guessing), so its scores point the wrong way here."
    return (
        f"No better than chance as far as these runs can tell: {odds}, and the interval contains 50 %, which is "
        "guessing. Do not train on this judge's scores."
    )
