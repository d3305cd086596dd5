"""What training reads: transitions as plain arrays, and the facts that one look through them gives.

The look finds what would spoil a training in silence (NaN, a forbidden action, an empty mask) and measures what the
networks need (sizes, means and scales of the features). It goes batch by batch, so it needs no more memory than one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from celr_ray.errors import PolicyError

__all__ = ["COLUMNS", "Columns", "Facts", "look_through", "read_columns"]

Array = NDArray[Any]
Columns = Mapping[str, Array]
"""N transitions by column name; all arrays have N rows."""

COLUMNS: Mapping[str, Any] = {
    "obs": np.float32,
    "new_obs": np.float32,
    "actions": np.int64,
    "rewards": np.float32,
    "terminateds": np.bool_,
    "truncateds": np.bool_,
}
"""Names and types. `obs` and `new_obs` are [N, D + A]: features, then the mask as 0 and 1; the others are [N]."""

_MIN_SCALE = 1e-6


@dataclass(frozen=True)
class Facts:
    """What one look through the training data gives.

    Attributes:
        n: transitions.
        n_features: D.
        n_actions: A.
        mean, scale: [D] of each feature; the scale of a constant one is 1.
        reward_mean, reward_scale: of the scaled rewards.
        action_counts: [A] how often each was done.
    """

    n: int
    n_features: int
    n_actions: int
    mean: Array
    scale: Array
    reward_mean: float
    reward_scale: float
    action_counts: tuple[int, ...]


def read_columns(columns: Mapping[str, Any]) -> dict[str, Array]:
    """Return the columns of a training set as contiguous arrays of the right types, copied only where needed.

    Args:
        columns: `COLUMNS` by name, as anything that numpy takes; more columns are left out.

    Raises:
        PolicyError: a column is missing, or lengths or shapes differ.
    """
    if missing := [name for name in COLUMNS if name not in columns]:
        raise PolicyError(f"the transitions have no column {', '.join(missing)}; training needs {', '.join(COLUMNS)}")
    arrays = {name: np.ascontiguousarray(columns[name], dtype=dtype) for name, dtype in COLUMNS.items()}
    n = len(arrays["obs"])
    for name, array in arrays.items():
        wanted = 2 if name in ("obs", "new_obs") else 1
        if array.ndim != wanted or len(array) != n:
            raise PolicyError(f"the column {name} has shape {array.shape}; it needs {wanted} axes and {n} rows")
    if arrays["obs"].shape != arrays["new_obs"].shape:
        raise PolicyError(
            f"obs has shape {arrays['obs'].shape} and new_obs {arrays['new_obs'].shape}: they must be alike"
        )
    return arrays


def look_through(batches: Iterable[Columns], n_actions: int) -> Facts:
    """Check all transitions and measure them.

    Args:
        batches: parts of the data, as `read_columns` returns them, in order.
        n_actions: A, the length of the masks at the end of each observation.

    Raises:
        PolicyError: there are none, or something in them is unusable; the message says what and where.
    """
    n = 0
    counts = np.zeros(n_actions, dtype=np.int64)
    moments: _Moments | None = None
    for batch in batches:
        _check(batch, n_actions, n)
        features = batch["obs"][:, :-n_actions].astype(np.float64)
        values = np.concatenate([features, batch["rewards"][:, None].astype(np.float64)], axis=1)
        moments = (moments or _Moments.start(values.shape[1])).add(values)
        counts += np.bincount(batch["actions"], minlength=n_actions)
        n += len(values)
    if n == 0 or moments is None:
        raise PolicyError("there are no transitions to train on; if the split is empty, give more episodes or tasks")
    mean, deviation = moments.mean, np.sqrt(moments.squares / n)
    scale = np.where(deviation < _MIN_SCALE, 1.0, deviation)
    return Facts(
        n,
        len(mean) - 1,
        n_actions,
        mean[:-1].astype(np.float32),
        scale[:-1].astype(np.float32),
        float(mean[-1]),
        float(scale[-1]),
        tuple(int(count) for count in counts),
    )


@dataclass(frozen=True)
class _Moments:
    """Mean and sum of squared deviations of each column, mergeable: Chan, Golub & LeVeque (1983)."""

    n: int
    mean: Array
    squares: Array

    @classmethod
    def start(cls, width: int) -> _Moments:
        return cls(0, np.zeros(width), np.zeros(width))

    def add(self, values: Array) -> _Moments:
        k = len(values)
        if k == 0:
            return self
        mean = values.mean(axis=0)
        delta, n = mean - self.mean, self.n + k
        squares = self.squares + ((values - mean) ** 2).sum(axis=0) + delta**2 * (self.n * k / n)
        return _Moments(n, self.mean + delta * (k / n), squares)


def _check(batch: Columns, n_actions: int, offset: int) -> None:
    """Find the first defect of a batch.

    Args:
        batch: some rows.
        n_actions: A.
        offset: number of the batch's first row, for the message.

    Raises:
        PolicyError: there is one.
    """
    if batch["obs"].shape[1] <= n_actions:
        raise PolicyError(
            f"an observation has {batch['obs'].shape[1]} numbers: features are missing before its mask of {n_actions}"
        )
    masks = {name: batch[name][:, -n_actions:] for name in ("obs", "new_obs")}
    known = (batch["actions"] >= 0) & (batch["actions"] < n_actions)
    done = np.where(known, batch["actions"], 0)
    for what, bad in (
        ("obs that is not finite", ~np.isfinite(batch["obs"]).all(axis=1)),
        ("new_obs that is not finite", ~np.isfinite(batch["new_obs"]).all(axis=1)),
        ("a reward that is not finite", ~np.isfinite(batch["rewards"])),
        ("a mask with something else than 0 and 1", _is_no_mask(masks["obs"]) | _is_no_mask(masks["new_obs"])),
        ("a mask that allows nothing", ~(masks["obs"].any(axis=1) & masks["new_obs"].any(axis=1))),
        (f"an action outside 0 to {n_actions - 1}", ~known),
        ("an action that its own mask forbids", masks["obs"][np.arange(len(done)), done] == 0),
    ):
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise PolicyError(
                f"{int(bad.sum())} transitions have {what}, first at row {offset + at}: {_show(batch, what, at)}. "
                "Nothing was trained; mend the data set or build it anew"
            )


def _is_no_mask(mask: Array) -> NDArray[np.bool_]:
    return cast("NDArray[np.bool_]", ((mask != 0) & (mask != 1)).any(axis=1))


def _show(batch: Columns, what: str, at: int) -> str:
    if "reward" in what:
        return f"reward {batch['rewards'][at]}"
    if "new_obs" in what:
        return f"column {int(np.flatnonzero(~np.isfinite(batch['new_obs'][at]))[0])} of new_obs"
    if "obs that" in what:
        return f"column {int(np.flatnonzero(~np.isfinite(batch['obs'][at]))[0])} of obs"
    return f"action {batch['actions'][at]}"
