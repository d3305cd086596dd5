"""Input that grows while it is read, two commands on one run, and bad input in the sizes that other tests keep small.

What a damaged record of each kind does is in test_damage.
"""

import gzip
import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from runs import (
    ROWS,
    check_files_are_whole,
    count_manifests,
    ingest,
    pipeline_words,
    quarantine,
    read_contents,
    read_rows,
    write_logs,
)

from celr_ray.cli import main


@pytest.fixture
def logs(tmp_path, demo_logs) -> Path:
    (tmp_path / "logs").mkdir()
    return write_logs(tmp_path / "logs", demo_logs, 3)


class Growth:
    """Appends whole lines to a file, over and over, from a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line = path.read_bytes().splitlines(keepends=True)[0]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._append)

    def _append(self) -> None:
        with self._path.open("ab", buffering=0) as sink:
            while not self._ended.wait(0.001):
                sink.write(self._line)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_a_file_that_grows_while_it_is_read_is_named_and_read_as_planned(logs, tmp_path, capsys):
    path, run = logs / "2.jsonl", tmp_path / "run"
    command = ["score", "--logs", str(logs), "--ingest.split-bytes", "50000", "--runtime.executor", "loop", "--run"]
    with Growth(path):
        assert main([*command, str(run)]) == 0
    planned = json.loads((run / "plans" / "ingest.json").read_text())["settings"]["inputs"][str(path)][0]
    assert planned < path.stat().st_size
    named = f"changed while it was read: {path} had {planned:,} bytes, now has {path.stat().st_size:,}"
    assert named.rsplit(" ", 1)[0] in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["stages"]["ingest"]["inputs_changed"] == 1

    assert main([*command, str(run)]) == 2
    assert str(path) in capsys.readouterr().err
    with path.open("ab") as sink:
        sink.truncate(planned)
    assert main([*command, str(tmp_path / "still")]) == 0
    assert read_contents(run, ROWS) == read_contents(tmp_path / "still", ROWS)


def test_while_a_run_is_at_work_every_other_command_on_it_is_refused(logs, tmp_path, capsys):
    assert main(pipeline_words(logs, tmp_path / "alone")) == 0
    run = tmp_path / "run"
    first = subprocess.Popen([sys.executable, "-m", "celr_ray.cli", *pipeline_words(logs, run)])
    while not count_manifests(run, "ingest"):
        assert first.poll() is None
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)
    try:
        others = [["score"], ["judge", "--judge.model-source", "m"], ["pair"], ["export"], ["convert"]]
        for words in [pipeline_words(logs, run), *([*words, "--run", str(run)] for words in others)]:
            assert main(words) == 2, words
            assert f"{run} is in use by process {first.pid} " in capsys.readouterr().err, words
        check_files_are_whole(run)
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(300) == 0
    assert read_contents(run, ROWS) == read_contents(tmp_path / "alone", ROWS)


@pytest.mark.parametrize(("is_whole", "is_packed"), [(True, False), (False, False), (False, True)])
def test_a_line_of_100_mb_harms_no_neighbour(demo_logs, tmp_path, is_whole, is_packed):
    good = (demo_logs / "celr_benchmark.jsonl").read_bytes().splitlines()[:2]
    long = json.dumps({**json.loads(good[0]), "output": random.Random(0).randbytes(50_000_000).hex()}).encode()
    long = long if is_whole else long[:-1]
    data, path = b"\n".join([good[0], long, good[1]]), tmp_path / ("long.jsonl.gz" if is_packed else "long.jsonl")
    path.write_bytes(gzip.compress(data, compresslevel=1) if is_packed else data)
    report = ingest(tmp_path / "run", path)
    assert (report.counts["rows_out"], report.counts["rejected"]) == ((3, 0) if is_whole else (2, 1))
    assert [(row.line, row.raw_bytes) for row in quarantine(tmp_path / "run")] == ([] if is_whole else [(2, len(long))])
    (tmp_path / "good.jsonl").write_bytes(b"\n".join(good))
    ingest(tmp_path / "good", tmp_path / "good.jsonl")
    found, expected = ({row["trajectory_id"] for row in read_rows(tmp_path / run)} for run in ("run", "good"))
    assert found >= expected
    assert len(found) == len(expected) + is_whole
