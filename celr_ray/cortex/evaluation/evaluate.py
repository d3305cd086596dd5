"""Evaluates a policy on transitions of any size: two passes over the parts, in a loop or on Ray.

A unit is one Parquet part, read in batches of whole episodes. Unlike in other stages nothing is written: what a part
comes to travels back as arrays (the first pass: some hundred kilobytes of sums; the second: some 60 bytes an episode).
They are put together in the order of the parts, so the result does not depend on who finished first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from celr_ray import storage
from celr_ray.config import RuntimeConfig
from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.episode_values import (
    N_FOLDS,
    Fits,
    PartSums,
    finish_sums,
    join_values,
    sum_part,
    value_episodes,
)
from celr_ray.cortex.evaluation.estimators import OpeReport, make_report
from celr_ray.cortex.evaluation.logged import LoggedEpisodes
from celr_ray.cortex.policy import Policy
from celr_ray.cortex.reward import RETURN_RANGE, find_return_range
from celr_ray.cortex.state import FEATURE_INDEX
from celr_ray.cortex.transitions import (
    dataset_record_uri,
    find_failure_penalty,
    iter_row_batches,
    list_parts,
    read_dataset_record,
    table_to_transitions,
    to_logged_episodes,
)
from celr_ray.errors import PolicyError
from celr_ray.runtime import Manifest, Unit, UnitFunction, Work, progress, run_units, uses_ray

__all__ = ["TransitionEvaluation", "evaluate_transitions", "iter_logged_episodes"]

_BATCH_ROWS = 50_000
_LARGE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class TransitionEvaluation:
    """What transitions tell of a policy.

    Attributes:
        report: estimates, bounds, diagnostics.
        n_transitions: rows read.
        n_unknown: episodes left out because the log does not say with which probabilities they were decided.
    """

    report: OpeReport
    n_transitions: int
    n_unknown: int


def evaluate_transitions(
    uri: str,
    policy: Policy,
    runtime: RuntimeConfig | None = None,
    *,
    split: str = "validation",
    return_range: tuple[float, float] | None = None,
    n_folds: int = N_FOLDS,
    alpha: float = 0.05,
    seed: int = 0,
    on_ray: bool | None = None,
) -> TransitionEvaluation:
    """Estimate what a policy would have earned on the tasks of a split.

    Args:
        uri: run folder of a dataset, or a folder of Parquet parts.
        policy: whom to evaluate; on Ray it is sent to the workers.
        runtime: where to run.
        split: `train` or `validation`; a policy that learned from a split looks better there than it is.
        return_range: (R_lo, R_hi) that no return can leave; None = that of the dataset's rewards.
        n_folds: of the cross-fit, at least 2.
        alpha: 1 − confidence of each bound.
        seed: of folds and Gaffke's draws.
        on_ray: None = where the input is large, or on a cluster.

    Raises:
        InputError: there are no transitions, or the dataset's record is damaged.
        PolicyError: no episode has known probabilities, or the policy gives none.
    """
    runtime = runtime or RuntimeConfig()
    parts = list_parts(uri, split)
    has_tiers = storage.stat(dataset_record_uri(uri)) is not None
    if on_ray is None:
        stats = [storage.stat(part) for part in parts]
        on_ray = uses_ray(runtime, is_large=sum(stat.size_bytes for stat in stats if stat) > _LARGE_BYTES)
    units: list[Unit] = [{"index": index, "part": part} for index, part in enumerate(parts)]

    sums, n_transitions, n_unknown = None, 0, 0
    for found in _run_in_order(
        f"{policy.name}: weights", units, partial(_sum_unit, policy, n_folds, seed, has_tiers), runtime, on_ray
    ):
        sums = _add(sums, found["sums"])
        n_transitions += found["rows_in"]
        n_unknown += found["n_unknown"]
    if sums is None:
        raise PolicyError(
            f"none of the {n_unknown:,} episodes in {uri} says with which probabilities it was decided (logs of other "
            "agents never do): no off-policy estimate is possible. Log with `celr-ray execute --execute.epsilon 0.2`."
        )
    fits = finish_sums(sums, seed=seed)
    second = _run_in_order(f"{policy.name}: values", units, partial(_value_unit, policy, fits), runtime, on_ray)
    values = join_values([found["values"] for found in second if found["values"] is not None])
    report = make_report(values, sums, fits, return_range or _find_return_range(uri), alpha=alpha, seed=seed)
    return TransitionEvaluation(report, n_transitions, n_unknown)


def _find_return_range(uri: str) -> tuple[float, float]:
    """Return the range of a dataset's rewards; a folder of parts has those of `cortex.reward` as they are."""
    if storage.stat(dataset_record_uri(uri)) is None:
        return RETURN_RANGE
    return find_return_range(find_failure_penalty(uri, read_dataset_record(uri)))


def _add(sums: PartSums | None, more: PartSums | None) -> PartSums | None:
    return more if sums is None else sums if more is None else sums + more


def _run_in_order(
    title: str, units: Sequence[Unit], run_unit: UnitFunction, runtime: RuntimeConfig, on_ray: bool
) -> Iterator[Manifest]:
    """Run the units and yield what they return in their order; what comes early waits."""
    waiting: dict[int, Manifest] = {}
    next_index = 0
    with progress(title, len(units)) as advance:
        for found in run_units(units, Work(partial(_use, run_unit)), runtime, on_ray=on_ray):
            advance(found)
            waiting[found["index"]] = found
            while next_index in waiting:
                yield waiting.pop(next_index)
                next_index += 1


def _use(run_unit: UnitFunction) -> UnitFunction:
    return run_unit


def _sum_unit(policy: Policy, n_folds: int, seed: int, has_tiers: bool, unit: Unit) -> Manifest:
    """Make the first pass over one part; `has_tiers`: its states are those of `cortex.state`."""
    sums, counts = None, Counter[str]()
    for log in iter_logged_episodes(unit["part"], counts):
        found = sum_part(log, _decide(policy, log), n_folds=n_folds, seed=seed)
        n_elsewhere = _count_elsewhere(policy, log) if has_tiers else 0
        sums = _add(sums, replace(found, n_unsupported=found.n_unsupported + n_elsewhere))
    return {"index": unit["index"], "sums": sums, "rows_in": counts["rows"], "n_unknown": counts["unknown"]}


def _count_elsewhere(policy: Policy, log: LoggedEpisodes) -> int:
    """Count the episodes that began on another tier than the policy does: a first RECURSE called another model."""
    name, wanted = ("tier", 0.0) if policy.start_tier == 0 else ("is_strongest", 1.0)
    return int((log.obs[log.t == 0, FEATURE_INDEX[name]] != wanted).sum())


def _value_unit(policy: Policy, fits: Fits, unit: Unit) -> Manifest:
    """Make the second pass over one part."""
    counts = Counter[str]()
    found = [value_episodes(log, _decide(policy, log), fits) for log in iter_logged_episodes(unit["part"], counts)]
    return {"index": unit["index"], "values": join_values(found) if found else None, "rows_in": counts["rows"]}


def _decide(policy: Policy, log: LoggedEpisodes) -> FloatArray:
    return np.asarray(policy.probabilities(log.obs, log.mask), dtype=np.float64)


def iter_logged_episodes(part: str, counts: Counter[str], batch_rows: int = _BATCH_ROWS) -> Iterator[LoggedEpisodes]:
    """Read a Parquet part in batches of whole episodes whose behavior probabilities are known.

    Args:
        part: URI.
        counts: takes `rows` read, and `unknown`: episodes left out.
        batch_rows: about how many rows to hold at a time.

    Raises:
        InputError: the part is damaged.
        PolicyError: the rows are no episodes.
    """
    rest = None
    for table in iter_row_batches(part, batch_rows):
        joined = table if rest is None else pa.concat_tables([rest, table])
        starts = np.flatnonzero(joined["t"].to_numpy() == 0)
        end = int(starts[-1]) if len(starts) else 0
        rest = joined.slice(end)
        yield from _read_episodes(joined.slice(0, end), counts)
    if rest is not None:
        yield from _read_episodes(rest, counts)


def _read_episodes(table: pa.Table, counts: Counter[str]) -> Iterator[LoggedEpisodes]:
    if not table.num_rows:
        return
    transitions = table_to_transitions(table)
    is_unknown = np.isnan(transitions.behavior).any(axis=1) | np.isnan(transitions.action_prob)
    n_known = transitions.n_episodes - len(np.unique(transitions.episode[is_unknown]))
    counts["rows"] += len(transitions)
    counts["unknown"] += transitions.n_episodes - n_known
    if n_known:
        yield to_logged_episodes(transitions, drop_unknown=True)
