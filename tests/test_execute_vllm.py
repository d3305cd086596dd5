"""The executor on real vLLM engines: a tiny random Llama on both tiers, through the command line and through Ray."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from celr_ray.testing import make_tiny_llama

N_TASKS = 24

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tasks and tiers."""
    folder = tmp_path_factory.mktemp("execute")
    model = make_tiny_llama(folder / "llama")
    tasks = [
        {
            "task_id": f"t/{i}",
            "prompt": f"Say something about {i}.",
            "checker": {"kind": "regex", "pattern": "a"},
            "verifier": {"kind": "agreement", "n_samples": 2, "answer": "text"},
            "difficulty": 0.1,
        }
        for i in range(N_TASKS)
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    tier = f"engine: vllm, model: {model}, context_window: 2048, max_output_tokens: 12, temperature: 0.7"
    (folder / "tiers.yaml").write_text(
        f"tiers:\n- {{name: cheap, {tier}, input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.2}}\n"
        f"- {{name: strong, {tier}, input_usd_per_mtok: 1, output_usd_per_mtok: 2}}\n"
    )
    return folder


def command(inputs: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "celr_ray.cli", "execute"),
        *("--tasks", str(inputs / "tasks.jsonl"), "--tiers", str(inputs / "tiers.yaml"), "--out", str(out)),
        *("--execute.rows-per-unit", "4", "--execute.epsilon", "0.3", *more),
    ]


def read_logs(out: Path) -> list[str]:
    """Return the logs without what was measured: seconds, and the shares of time made of them."""
    lines = [line for part in sorted((out / "logs").iterdir()) for line in part.read_text().splitlines()]
    timed = r'"(duration_s|seconds|reward|total_reward)":[-0-9.e+]+|"obs":\[[^]]*\]'
    return [re.sub(timed, "", line) for line in lines]


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An execution that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = subprocess.run(command(inputs, out), stdout=subprocess.PIPE, text=True, check=True)
    assert f"{N_TASKS} tasks by heuristic" in done.stdout
    return out


def test_the_engine_answers_and_every_log_is_whole(undisturbed):
    logs = read_logs(undisturbed)
    assert len(logs) == N_TASKS
    assert len({json.loads(line)["extra"]["celr"]["task_id"] for line in _raw(undisturbed)}) == N_TASKS
    assert any('"VERIFY"' in line for line in logs)


def _raw(out: Path) -> list[str]:
    return [line for part in sorted((out / "logs").iterdir()) for line in part.read_text().splitlines()]


def test_killed_in_mid_episode_it_resumes_with_the_same_logs(inputs, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(command(inputs, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("manifests/execute/part-*"))) < 2:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    n_done = len(list(out.glob("manifests/execute/part-*")))
    assert 2 <= n_done < N_TASKS // 4, "the kill came in the middle"
    before = {path: path.stat().st_mtime_ns for path in out.glob("manifests/execute/part-*")}
    subprocess.run(command(inputs, out), stdout=subprocess.DEVNULL, check=True)
    assert read_logs(out) == read_logs(undisturbed)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items()), "finished units are not redone"


@pytest.mark.slow
def test_through_ray_the_logs_are_the_same(inputs, undisturbed, tmp_path):
    out = tmp_path / "out"
    subprocess.run(command(inputs, out, "--runtime.executor", "ray"), stdout=subprocess.DEVNULL, check=True)
    assert read_logs(out) == read_logs(undisturbed)
