"""Synthetic logs for load tests only: realistic sizes, Zipf tasks, one hot task, some damaged lines.

Nothing in them is worth learning from. A log is 2–8 KB: a CELR plan of three to six steps, or a tau-bench
conversation. The tasks follow a Zipf law with exponent 0.7, about eight runs a task; the hot task has 20,000 runs, or a
twentieth of all rows where that is less. Equal tasks have equal requests. One line in a thousand is damaged in one of
the ways of tests/test_damage.py. Equal arguments give equal bytes.

    python benchmarks/generate_logs.py --rows 100000 --out logs/ --files 2 --gzip
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

HOT_TASK = "hot"
HOT_ROWS = 20_000
ZIPF_EXPONENT = 0.7
ROWS_PER_TASK = 8
_POOL_LINES = 200_000
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Generated:
    """What was written.

    Attributes:
        files: paths, in the order of their rows.
        rows: lines, damaged ones included.
        damaged: lines that no reader may accept.
        hot_rows: lines of the hot task, damaged ones included.
        n_bytes: uncompressed size.
    """

    files: list[str]
    rows: int
    damaged: int
    hot_rows: int
    n_bytes: int


class TextPool:
    """Some 16 MB of JSON-escaped lines made once; a text is a run of them, so that writing is mostly copying."""

    def __init__(self, rng: np.random.Generator) -> None:
        letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
        frequency = 1 / np.arange(1, 27) ** 0.8
        words = ["".join(rng.choice(letters, size=n, p=frequency / frequency.sum())) for n in rng.integers(2, 11, 8000)]
        words += ["naïve", "→", "“so”", "\\t", '\\"id\\":', "0.25", "def f(x):", "東京"]
        rank = 1 / np.arange(1, len(words) + 1) ** 0.9
        picked = np.array(words, dtype=object)[
            rng.choice(rng.permutation(len(words)), size=_POOL_LINES * 12, p=rank / rank.sum())
        ]
        cuts = np.cumsum(rng.integers(6, 18, _POOL_LINES))
        lines = [(" ".join(picked[a:b]) + "\\n").encode() for a, b in zip([0, *cuts[:-1]], cuts, strict=True) if b > a]
        self._starts = np.concatenate([[0], np.cumsum([len(line) for line in lines])]).tolist()
        self._bytes = b"".join(lines)
        self.n_lines = len(lines)

    def take(self, first: int, n_lines: int) -> bytes:
        """Return `n_lines` escaped lines, the first of them line `first` modulo the pool."""
        start = first % (self.n_lines - n_lines)
        return self._bytes[self._starts[start] : self._starts[start + n_lines]]


def choose_tasks(n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return the task number of each row, shape (n_rows,); task 0 is the hot one."""
    n_hot = min(HOT_ROWS, n_rows // 20)
    n_tasks = max(n_rows // ROWS_PER_TASK, 2)
    weight = 1 / np.arange(1, n_tasks) ** ZIPF_EXPONENT
    tasks = rng.choice(np.arange(1, n_tasks), size=n_rows, p=weight / weight.sum())
    tasks[rng.choice(n_rows, size=n_hot, replace=False)] = 0
    return tasks


def write_plan_log(task: int, row: int, rng: np.random.Generator, pool: TextPool) -> bytes:
    """Return one log in CELR's plan form, without its line end."""
    n_steps = int(rng.integers(3, 7))
    numbers = rng.integers(0, 2**31, size=(n_steps, 4)).tolist()
    n_lines = int(rng.integers(18, 92)) // n_steps
    steps = b",".join(
        b'{"id":"step-%d","description":"%s","status":"%s","difficulty":0.3,"agent":null,"output":"%s","retry_count":%d}'
        % (
            i,
            pool.take(text, 1),
            b"FAILED" if status % 4 == 0 else b"COMPLETED",
            pool.take(output, n_lines),
            max(retries % 5 - 2, 0),
        )
        for i, (text, status, output, retries) in enumerate(numbers)
    )
    return (
        b'{"task_id":"%s","original_request":"%s","final_status":"%s","total_cost":%.6f,"budget_limit_usd":1.0,'
        b'"plan":[%s],"execution_log":["[2026-02-12T22:17:12] LLM call: ollama/llama3.2, tokens=%d, cost=$0.0004"]}'
        % (
            _task_name(task),
            pool.take(task * 7919, 4),
            b"SUCCESS" if rng.random() < 0.55 else b"FAILED",
            rng.random(),
            steps,
            row,
        )
    )


def write_tau_log(task: int, row: int, rng: np.random.Generator, pool: TextPool) -> bytes:
    """Return one log in tau-bench's form, without its line end; policy and first user message belong to the task."""
    lines = [b'{"role":"system","content":"# Retail agent policy\\n%s"}' % pool.take(0, 12)]
    lines.append(b'{"role":"user","content":"%s"}' % pool.take(task * 7919, 3))
    for call, text in enumerate(rng.integers(0, 2**31, size=int(rng.integers(1, 5))).tolist()):
        lines.append(
            b'{"role":"assistant","content":null,"tool_calls":[{"id":"c%d-%d","type":"function","function":'
            b'{"name":"get_order","arguments":"{\\"order\\": %d}"}}]}' % (row, call, text % 9999)
        )
        lines.append(
            b'{"role":"tool","name":"get_order","tool_call_id":"c%d-%d","content":"%s"}'
            % (row, call, pool.take(text, 5))
        )
        lines.append(b'{"role":"assistant","content":"%s"}' % pool.take(text + 9, 4))
    return b'{"task_id":"%s","reward":%d,"info":{"task":{"instruction":"%s"}},"traj":[%s],"trial":%d}' % (
        _task_name(task),
        int(rng.random() < 0.55),
        pool.take(task * 7919, 3),
        b",".join(lines),
        row,
    )


def _task_name(task: int) -> bytes:
    return b"task-%d" % task if task else HOT_TASK.encode()


def _swap(line: bytes, key: bytes, value: bytes) -> bytes:
    """Replace the value of the first occurrence of a key, up to the next comma."""
    start = line.index(key) + len(key)
    return line[:start] + value + line[line.index(b",", start) :]


_NUMBER = {False: b'"total_cost":', True: b'"reward":'}

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut_line": lambda line: line[: len(line) // 2],
    "unknown_shape": lambda line: b'{"hello":"world","n":1}',
    "not_an_object": lambda line: b"42",
    "wrong_encoding": lambda line: line.replace(b"\\n", b"\xe9 ", 1),
    "value_out_of_bounds": lambda line: _swap(line, _NUMBER[b'"traj"' in line], b"-1e300"),
    "empty_id": lambda line: _swap(line, b'"task_id":', b'"  "'),
    "nan": lambda line: _swap(line, _NUMBER[b'"traj"' in line], b"NaN"),
    "deep_nesting": lambda line: b'{"a":' * 3000 + b"1" + b"}" * 3000,
}


def iter_lines(n_rows: int, seed: int, damaged: set[int], tau_share: float) -> Iterator[bytes]:
    """Yield the lines of all files, line ends included."""
    rng = np.random.default_rng(seed)
    pool = TextPool(rng)
    ways = list(DAMAGE.values())
    n_damaged = 0
    for row, task in enumerate(choose_tasks(n_rows, rng).tolist()):
        is_tau = tau_share > 0 and rng.random() < tau_share
        line = (write_tau_log if is_tau else write_plan_log)(task, row, rng, pool)
        if row in damaged:
            line = ways[n_damaged % len(ways)](line)
            n_damaged += 1
        yield line + b"\n"


def generate(
    folder: Path,
    n_rows: int,
    *,
    seed: int = 0,
    n_files: int = 1,
    damaged_share: float = 0.001,
    tau_share: float = 0.0,
    compress: bool = False,
) -> Generated:
    """Write the logs into `folder`, spread over `n_files` files of equal numbers of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = np.random.default_rng([seed, 1]).choice(n_rows, size=round(n_rows * damaged_share), replace=False)
    damaged = set(chosen.tolist())
    lines = iter_lines(n_rows, seed, damaged, tau_share)
    files, n_bytes, n_hot = [], 0, 0
    for number in range(n_files):
        path = folder / f"logs-{number:03d}.jsonl{'.gz' if compress else ''}"
        files.append(str(path))
        rows = range(number * n_rows // n_files, (number + 1) * n_rows // n_files)
        with gzip.open(path, "wb", compresslevel=1) if compress else path.open("wb") as sink:
            for start in range(0, len(rows), _CHUNK_ROWS):
                chunk = [next(lines) for _ in rows[start : start + _CHUNK_ROWS]]
                n_hot += sum(line.startswith(b'{"task_id":"hot"') for line in chunk)
                n_bytes += sum(map(len, chunk))
                sink.write(b"".join(chunk))
    return Generated(files, n_rows, len(damaged), n_hot, n_bytes)


def main() -> None:
    """Write logs and print what was written, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="lines to write")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--files", type=int, default=1, help="number of files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--damaged", type=float, default=0.001, help="share of damaged lines")
    parser.add_argument("--tau", type=float, default=0.0, help="share of logs in tau-bench's form")
    parser.add_argument("--gzip", action="store_true", help="write .jsonl.gz")
    options = parser.parse_args()
    done = generate(
        options.out,
        options.rows,
        seed=options.seed,
        n_files=options.files,
        damaged_share=options.damaged,
        tau_share=options.tau,
        compress=options.gzip,
    )
    print(json.dumps(asdict(done)))


if __name__ == "__main__":
    main()
