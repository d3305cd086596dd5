"""Small helpers to ingest files, to read what a run holds, and to kill a command at an exact moment."""

import gzip
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from celr_ray import storage
from celr_ray.config import IngestConfig, PairConfig, RuntimeConfig, ScoreConfig
from celr_ray.logs.ingest import read_quarantine, run_ingest
from celr_ray.training.pair_stage import run_pair

LOOP = RuntimeConfig(executor="loop")
ROWS = ("trajectories", "quarantine", "judgments", "pairs", "unpaired", "tasks", "exports", "atif")
OUTPUTS = (*ROWS, "report")
N_DEMO_LINES = 46
_PRELOADED = (
    "pytest",
    "celr_ray.cli",
    "celr_ray.training.pipeline",
    "celr_ray.report.render",
    "celr_ray.logs.convert",
    "detect_secrets.core.plugins.util",
    "detect_secrets.filters.heuristic",
)


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


def write_logs(folder: Path, demo_logs: Path, n_copies: int) -> Path:
    """Write four JSONL files of the demo's benchmark rows, each its own run, and one damaged line a copy."""
    lines = [json.loads(line) for line in (demo_logs / "celr_benchmark.jsonl").read_text().splitlines()]
    assert len(lines) == N_DEMO_LINES
    for number in range(4):
        with (folder / f"{number}.jsonl").open("w") as sink:
            for copy in range(n_copies):
                for line in lines:
                    changed = {
                        "task_id": f"{line['task_id']}-{number}-{copy % 8}",
                        "output": f"{line['output']} ({number}, {copy})",
                        "latency_s": copy + line["latency_s"],
                    }
                    sink.write(json.dumps({**line, **changed}) + "\n")
                sink.write('{"damaged": \n')
    return folder


def pipeline_words(logs: Path, run: Path, executor: str = "loop") -> list[str]:
    """Return a pipeline command with many small units."""
    words = ["pipeline", "--logs", str(logs), "--out", str(run), "--ingest.split-bytes", "100000"]
    words += ["--ingest.files-per-unit", "1", "--ingest.n-buckets", "32"]
    return [*words, "--runtime.executor", executor, "--runtime.num-cpus", "2"]


def find_visible(run: Path) -> list[Path]:
    """Return all files of a run that stand under a final name: neither hidden nor in a hidden folder."""
    return sorted(
        path
        for path in run.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(run).parts)
    )


def check_files_are_whole(run: Path) -> None:
    """Check that whatever stands under a final name can be read in full."""
    for path in find_visible(run):
        if path.suffix == ".parquet":
            pq.ParquetFile(path).read()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
        else:
            assert path.read_text().endswith("\n"), path


def read_contents(run: Path, folders: tuple[str, ...]) -> dict[str, Any]:
    """Return what the files of some folders of a run hold, by path in the run: rows of Parquet, else bytes."""
    contents: dict[str, Any] = {}
    for path in find_visible(run):
        name = str(path.relative_to(run))
        if name.split("/")[0] in folders:
            is_table = path.suffix == ".parquet"
            contents[name] = pq.read_table(path) if is_table else path.read_bytes().replace(bytes(run), b"RUN")
    assert contents
    return contents


def count_manifests(run: Path, stage: str) -> int:
    """Return how many units of a stage are finished."""
    return len(list(run.glob(f"manifests/{stage}/part-*.json")))


def count_calls(job: Callable[[], Any], of: tuple[str, ...] = ()) -> int:
    """Run a job to its end in a process of its own; return how many calls it made, all or those `of` some names."""
    exit_code, n_calls = _run_counted(job, of, None)
    assert exit_code == 0
    assert n_calls is not None
    return n_calls


def kill_at_call(job: Callable[[], Any], n_calls: int, of: tuple[str, ...] = ()) -> None:
    """Run a job in a process of its own that gets SIGKILL at a given call: no load of the machine moves the moment."""
    exit_code, _ = _run_counted(job, of, n_calls)
    assert exit_code == -signal.SIGKILL


def _run_counted(job: Callable[[], Any], of: tuple[str, ...], limit: int | None) -> tuple[int | None, int | None]:
    context = multiprocessing.get_context("forkserver")  # every job starts in the same state: it makes the same calls
    context.set_forkserver_preload(list(_PRELOADED))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_count_and_die, args=(job, of, limit, sender))
    process.start()
    sender.close()
    process.join()
    n_calls = receiver.recv() if process.exitcode == 0 else None
    return process.exitcode, n_calls


def _count_and_die(job: Callable[[], Any], of: tuple[str, ...], limit: int | None, sender: Connection) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    n_calls = 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal n_calls
        n_calls += event.endswith("call") if not of else event == "call" and frame.f_code.co_name in of
        if n_calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    failure = job()
    sys.setprofile(None)
    if failure:
        sys.exit(failure)
    sender.send(n_calls)
