"""Small transitions for tests, as columns and as the Parquet files that the dataset stage writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from celr_ray.cortex.actions import N_ACTIONS
from celr_ray.cortex.algorithms.columns import COLUMNS


def number_rows(n: int) -> dict[str, np.ndarray]:
    """Return n legal transitions whose first feature is their number."""
    obs = np.zeros((n, 3 + N_ACTIONS), dtype=np.float32)
    obs[:, 0] = np.arange(n)
    obs[:, 3:] = 1
    zeros = np.zeros(n)
    return {
        "obs": obs,
        "new_obs": obs,
        "actions": np.arange(n) % N_ACTIONS,
        "rewards": zeros,
        "terminateds": zeros.astype(bool),
        "truncateds": zeros.astype(bool),
    }


def write_parquet(folder: Path, columns: dict[str, np.ndarray], row_group_size: int, n_files: int = 1) -> str:
    """Write transitions as the dataset stage lays them out."""
    target = folder / "transitions" / "train"
    target.mkdir(parents=True)
    arrays = {}
    for name, dtype in COLUMNS.items():
        values = np.asarray(columns[name], dtype=dtype)
        flat = pa.array(values.ravel())
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
    table = pa.table(arrays)
    size = -(-len(table) // n_files)
    for number in range(n_files):
        part = table.slice(number * size, size)
        pq.write_table(part, target / f"part-{number:05}.parquet", row_group_size=row_group_size)
    return str(folder)
