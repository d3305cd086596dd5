"""Measures a contender in a fresh process: wall time, CPU seconds and peak memory of it and of all its descendants.

A contender is a script that calls `timed(job)`: whatever comes before it (imports, a warm-up) is not counted, nor is
what comes after. Times are read from /proc by the parent, ten times a second, so the workers of Ray are counted like
everything else; what a process uses in its last tenth of a second can be missed.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")
_START, _END = "measure: start", "measure: end "
_PERIOD_S = 0.1
PEERS = Path("build/peers/bin/python")
"""The peers' own environment: `uv venv build/peers && uv pip install --python build/peers/bin/python duckdb polars`."""


def timed(job: Callable[[], dict[str, Any] | None]) -> None:
    """Run a job as the measured part of this process; what it returns goes into the figures."""
    print(_START, flush=True)
    started = time.perf_counter()
    result = job() or {}
    wall_s = time.perf_counter() - started
    print(_END + json.dumps({"wall_s": wall_s, **result}), flush=True)
    time.sleep(2 * _PERIOD_S)  # the parent's last look at this process and its workers


def take_turns(names: Sequence[str], number: int) -> list[str]:
    """Return the contenders in the order of a round: random, the same in each call.

    What a contender costs depends a little on the one before it: memory that a large one gave back is dear to touch
    where the host of a virtual machine takes it away.
    """
    return random.Random(number).sample(list(names), len(names))


class _Watch:
    """Looks at a process and all its descendants, and remembers those that have gone."""

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._known = {pid}
        self.cpu_s: dict[int, float] = {}
        self.kernel_s: dict[int, float] = {}
        self.peak_mb: dict[int, float] = {}
        self.names: dict[int, str] = {}

    def look(self) -> None:
        parents: dict[int, int] = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    fields = Path("/proc", name, "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                parents[int(name)] = int(fields[1])
                if int(name) in self._known or int(fields[1]) in self._known:
                    self._known.add(int(name))
                    self._read(int(name), fields)
        for pid, parent in parents.items():  # a child may be listed before its parent: next look finds its own children
            if parent in self._known:
                self._known.add(pid)

    def sum_times(self) -> list[float]:
        """Return the CPU seconds of all processes, and those of them that the kernel took."""
        return [sum(self.cpu_s.values()), sum(self.kernel_s.values())]

    def _read(self, pid: int, fields: Sequence[str]) -> None:
        self.cpu_s[pid] = (int(fields[11]) + int(fields[12])) / _TICK
        self.kernel_s[pid] = int(fields[12]) / _TICK
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return
        peak = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
        if peak is not None:
            self.peak_mb[pid] = int(peak.split()[1]) / 1024
            self.names[pid] = os.path.basename(words[0].decode()) or self.names.get(pid, "")


def measure(command: Sequence[str], env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command that calls `timed`.

    Returns:
        wall_s, cpu_s (all processes), kernel_s (the kernel's share of it), peak_memory_mb (the process itself),
        peak_memory_worker_mb (largest descendant; 0 without one), and what the job returned.

    Raises:
        RuntimeError: the command failed; the text holds the end of its stderr.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    ) as process:
        watch, lock = _Watch(process.pid), threading.Lock()
        errors: list[str] = []
        stop = threading.Event()

        def keep_looking() -> None:
            while not stop.wait(_PERIOD_S):
                with lock:
                    watch.look()

        threads = [
            threading.Thread(target=keep_looking),
            threading.Thread(target=lambda: errors.append(process.stderr.read() if process.stderr else "")),
        ]
        for thread in threads:
            thread.start()
        before: list[float] = []
        figures: dict[str, Any] | None = None
        for line in process.stdout or ():
            if line.startswith(_START):
                with lock:
                    watch.look()
                    before = watch.sum_times()
            elif line.startswith(_END):
                with lock:
                    watch.look()
                    cpu_s, kernel_s = (end - start for end, start in zip(watch.sum_times(), before, strict=True))
                    figures = {**json.loads(line.removeprefix(_END)), "cpu_s": cpu_s, "kernel_s": kernel_s}
        process.wait()
        stop.set()
        for thread in threads:
            thread.join()
    if figures is None or process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {''.join(errors)[-2000:]}")
    workers = {pid: peak for pid, peak in watch.peak_mb.items() if pid != process.pid}
    python = [peak for pid, peak in workers.items() if watch.names.get(pid, "").startswith(("python", "ray::"))]
    return {
        **figures,
        "peak_memory_mb": watch.peak_mb[process.pid],
        "peak_memory_worker_mb": max(python, default=0.0),
    }


def take_medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each number over runs of one contender, other values from the first."""
    result: dict[str, Any] = {}
    for key, value in runs[0].items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        result[key] = round(statistics.median(run[key] for run in runs), 3) if is_number else value
    return result


def describe_machine() -> dict[str, Any]:
    """Return what is needed to judge the figures; no names or paths of the machine."""
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "?: ?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "cpu": f"{os.cpu_count()} × {model.split(':', 1)[1].strip()}",
        "memory_gib": round(memory),
        "load_average": [round(x, 1) for x in os.getloadavg()],
    }


def find_versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of packages in the environment of an interpreter; absent ones are left out."""
    code = (
        "import sys, json; from importlib import metadata as m; "
        "f = {d.metadata['Name'].lower(): d.version for d in m.distributions()}; "
        "print(json.dumps({p: f[p] for p in sys.argv[1:] if p in f}))"
    )
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", code, *packages], text=True))
    return found


def write_result(path: str | None, result: dict[str, Any]) -> None:
    """Print a result and, with a path, write it."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if path:
        Path(path).write_text(text + "\n")
