"""Small helpers to ingest files and to read what a run holds."""

import gzip
import json
from pathlib import Path

import pyarrow as pa

from celr_ray import storage
from celr_ray.config import IngestConfig, PairConfig, RuntimeConfig, ScoreConfig
from celr_ray.logs.ingest import read_quarantine, run_ingest
from celr_ray.training.pair_stage import run_pair

LOOP = RuntimeConfig(executor="loop")


def ingest(run, *uris, runtime=LOOP, score=None, overwrite=False, **settings):
    """Ingest logs into a run folder; settings are those of IngestConfig."""
    return run_ingest(
        [str(uri) for uri in uris],
        str(run),
        IngestConfig(**settings),
        score or ScoreConfig(),
        runtime,
        overwrite=overwrite,
    )


def pair(run, runtime=LOOP, **settings):
    """Pair a run; settings are those of PairConfig."""
    return run_pair(str(run), PairConfig(**settings), runtime)


def read_table(run, folder) -> pa.Table:
    """Return all parts of one table of a run."""
    files = storage.list_files(str(Path(run) / folder))
    return pa.concat_tables([storage.read_parquet(file.uri) for file in files])


def read_rows(run, folder="trajectories") -> list[dict]:
    """Return all rows of one table, ordered by everything that identifies them."""
    rows = read_table(run, folder).to_pylist()
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True, default=str))


def quarantine(run):
    """Return the rejected records of a run."""
    return read_quarantine(str(run))


def read_gz_json(path):
    """Return the value in a gz JSON file."""
    with gzip.open(path) as source:
        return json.load(source)
