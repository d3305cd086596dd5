"""Logs to transitions: time per transition and peak memory at 10⁴, 10⁵, 10⁶ episodes, beside two ways without checks.

The logs are real documents of the executor (scripted models, a policy with ε = 0.2), copied under new task ids; one
line in a hundred is an exact copy and one in a thousand is damaged. Every contender runs in a fresh process, in turns.

    loop    our dataset in one process: read, check, hash, order, split by task, drop copies, write, resume
    ray_2   the same through Ray Data with two workers
    plain   what one would write by hand: json.loads, lists, one Arrow table, one Parquet file; all in memory
    bound   typed decoding, the same columns, one Parquet file a 128 MiB piece: the least that our libraries need

`plain` and `bound` check nothing, keep copies and the order of the logs, and split nothing.

    python benchmarks/dataset.py --out benchmarks/results/dataset.json
    python benchmarks/dataset.py --sizes 10000 100000 1000000 --only loop      # 4 GB of disk for a million episodes
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import describe_machine, find_versions, measure, take_medians, timed, write_result

_TEMPLATES = 400
_TIERS = """
tiers:
- {name: cheap, engine: vllm, model: fake-cheap, input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.4,
   context_window: 600, max_output_tokens: 40}
- {name: strong, engine: vllm, model: fake-strong, input_usd_per_mtok: 1.0, output_usd_per_mtok: 4.0,
   context_window: 2000, max_output_tokens: 40}
"""
_PIECE_EPISODES = 50_000


def make_templates(folder: Path) -> list[tuple[bytes, bytes, int]]:
    """Execute some tasks with scripted models and return their documents: bytes, task id, decisions."""
    from celr_ray.config import ExecuteJob
    from celr_ray.core.execute_stage import run_execute
    from celr_ray.testing import FakeClient

    def answer(chat: Any, seed: int) -> str:
        number = int(chat[0]["content"].split()[2])
        return f"I add them.\nAnswer: {2 * number if seed % 2 else 100_000 + seed % 1000}"

    tasks = [
        {
            "task_id": f"sum/{n}",
            "prompt": f"What is {n} + {n}? End with a line 'Answer: <number>'.",
            "checker": {"kind": "numeric", "answer": 2 * n},
            "verifier": {"kind": "regex", "pattern": "^[0-9]{1,4}$"},
        }
        for n in range(_TEMPLATES)
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    (folder / "tiers.yaml").write_text(_TIERS)
    job = ExecuteJob(
        tasks=str(folder / "tasks.jsonl"), tiers=str(folder / "tiers.yaml"), out=str(folder / "executed"),
        execute={"epsilon": 0.2},
    )  # fmt: skip
    run_execute(job, clients={name: FakeClient(name, answer) for name in ("cheap", "strong")})
    lines = [
        line for part in sorted((folder / "executed" / "logs").iterdir()) for line in part.read_bytes().splitlines()
    ]
    return [(line, json.loads(line)["extra"]["celr"]["task_id"].encode(), line.count(b'"decision"')) for line in lines]


def write_logs(folder: Path, templates: list[tuple[bytes, bytes, int]], n_episodes: int) -> dict[str, int]:
    """Write logs of n episodes and say what is in them; eight episodes share a task."""
    folder.mkdir()
    made = {"lines": 0, "transitions": 0, "bytes": 0, "copies": 0, "damaged": 0}
    with (folder / "part-00000.jsonl").open("wb") as sink:
        for number in range(n_episodes):
            line, task_id, n_decisions = templates[number % len(templates)]
            copy = number // len(templates)
            own = line.replace(b'"task_id":"' + task_id, b'"task_id":"' + task_id + b"/%d" % (copy // 8))
            own = own.replace(b'"duration_s":', b'"copy":%d,"duration_s":' % copy) + b"\n"
            made["transitions"] += n_decisions
            made["bytes"] += sink.write(own)
            made["lines"] += 1
            if number % 100 == 0:
                made["bytes"] += sink.write(own)
                made["copies"] += 1
            if number % 1000 == 0:
                made["bytes"] += sink.write(own[: len(own) // 2] + b"\n")
                made["damaged"] += 1
    return made


def run_ours(logs: Path, out: Path, workers: int) -> dict[str, Any]:
    """Our dataset, in a loop (0 workers) or through Ray."""
    from celr_ray.config import IngestConfig, RuntimeConfig
    from celr_ray.cortex.dataset import run_dataset

    runtime = RuntimeConfig(executor="ray" if workers else "loop", num_cpus=workers or None)
    counts = run_dataset([str(logs)], str(out), None, IngestConfig(), runtime).counts
    return {key: counts[key] for key in ("rows_in", "rows_out", "rejected", "duplicates")}


def run_plain(logs: Path, out: Path) -> dict[str, Any]:
    """Read with the standard library into lists, all in memory, and write one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = (
        "eps_id",
        "task_id",
        "t",
        "obs",
        "new_obs",
        "actions",
        "rewards",
        "terminateds",
        "behavior",
        "to_go",
    )
    columns: dict[str, list[Any]] = {name: [] for name in names}
    actions: dict[str, int] = {}
    n_episodes = 0
    for file in sorted(logs.iterdir()):
        for line in file.open("rb"):
            try:
                document = json.loads(line)
            except ValueError:
                continue
            found = [step.get("extra", {}).get("celr", {}).get("decision") for step in document["steps"]]
            decisions = [decision for decision in found if decision]
            seen = [[*decision["obs"], *decision["mask"]] for decision in decisions]
            to_go = 0.0
            for t in reversed(range(len(decisions))):
                to_go += decisions[t]["reward"]
                probabilities = decisions[t]["probabilities"]
                actions = actions or {name: column for column, name in enumerate(probabilities)}
                columns["eps_id"].append(n_episodes)
                columns["task_id"].append(document["extra"]["celr"]["task_id"])
                columns["t"].append(t)
                columns["obs"].append(seen[t])
                columns["new_obs"].append(seen[t + 1] if t + 1 < len(seen) else [0.0] * len(seen[t]))
                columns["actions"].append(actions[decisions[t]["action"]])
                columns["rewards"].append(decisions[t]["reward"])
                columns["terminateds"].append(t + 1 == len(decisions))
                columns["behavior"].append(list(probabilities.values()))
                columns["to_go"].append(to_go)
            n_episodes += 1
    vector = pa.list_(pa.float32())
    table = pa.table({n: pa.array(c, type=vector if n.endswith("obs") else None) for n, c in columns.items()})
    out.mkdir(parents=True)
    pq.write_table(table, out / "transitions.parquet", compression="zstd", compression_level=1)
    return {"rows_out": n_episodes}


def run_bound(logs: Path, out: Path) -> dict[str, Any]:
    """Decode into our structs, build our columns and write them, piece by piece; nothing else."""
    from celr_ray import storage
    from celr_ray.cortex.decision_documents import read_decisions
    from celr_ray.cortex.decision_rows import gather_rows
    from celr_ray.cortex.episode_rows import make_transition_table
    from celr_ray.errors import RecordError

    waiting: list[Any] = []
    tables: list[Any] = []
    n_episodes = n_files = 0

    def build() -> None:
        tables.append(make_transition_table(gather_rows(waiting, [str(n) for n in range(len(waiting))])))
        waiting.clear()

    def flush() -> None:
        nonlocal n_files
        import pyarrow as pa

        storage.write_parquet(str(out / f"{n_files}.parquet"), pa.concat_tables(tables))
        tables.clear()
        n_files += 1

    out.mkdir(parents=True)
    for file in sorted(logs.iterdir()):
        for line in file.open("rb"):
            try:
                episode = read_decisions(line)
            except RecordError:
                continue
            if episode is None:
                continue
            waiting.append(episode)
            n_episodes += 1
            if len(waiting) == 256:
                build()
            if len(tables) * 256 >= _PIECE_EPISODES:
                flush()
    if waiting:
        build()
    if tables:
        flush()
    return {"rows_out": n_episodes}


CONTENDERS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "loop": lambda logs, out: run_ours(logs, out, 0),
    "ray_2": lambda logs, out: run_ours(logs, out, 2),
    "plain": run_plain,
    "bound": run_bound,
}


def run_size(n_episodes: int, names: list[str], repeats: int, scratch: Path | None) -> dict[str, Any]:
    """Make the logs of one size and run every contender on them, in turns."""
    with tempfile.TemporaryDirectory(dir=scratch) as text:
        folder = Path(text)
        templates = make_templates(folder)
        made = write_logs(folder / "logs", templates, n_episodes)
        write_logs(folder / "warm", templates, 300)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(repeats):
            for name in names:
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    command = [sys.executable, str(Path(__file__).resolve()), "--contender", name, "--scratch", out]
                    figures = measure([*command, "--logs", str(folder / "logs"), "--warm", str(folder / "warm")])
                    stored = sum(
                        f.stat().st_size for f in Path(out, "timed").rglob("*.parquet") if "decisions" not in f.parts
                    )
                figures["cpu_us_per_transition"] = figures["cpu_s"] / made["transitions"] * 1e6
                runs[name].append({**figures, "output_mb": stored / 1e6})
                print(f"{n_episodes} {number + 1} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
                check_counts(name, figures, made)
        return {"episodes": n_episodes, **made, "medians": {name: take_medians(found) for name, found in runs.items()}}


def check_counts(name: str, figures: dict[str, Any], made: dict[str, int]) -> None:
    """Check that ours gave every episode once, and every damaged line a reason."""
    if name in ("loop", "ray_2"):
        expected = {"rows_out": made["lines"], "duplicates": made["copies"], "rejected": made["damaged"]}
        if {key: figures[key] for key in expected} != expected:
            raise RuntimeError(f"{name}: {figures} is not {expected}")


def compute_ratios(sizes: dict[str, Any]) -> dict[str, float]:
    """Return the figures that the targets are about."""
    ratios: dict[str, float] = {}
    for size, found in sizes.items():
        medians = found["medians"]
        for name in ("plain", "bound", "ray_2"):
            if name in medians:
                ratios[f"cpu_of_{name}_over_loop_{size}"] = medians[name]["cpu_s"] / medians["loop"]["cpu_s"]
    ours = {size: found["medians"]["loop"] for size, found in sizes.items() if "loop" in found["medians"]}
    for small, large in (("10000", "100000"), ("100000", "1000000")):
        if small in ours and large in ours:
            key, peak = "cpu_us_per_transition", "peak_memory_mb"
            ratios[f"{key}_{large}_over_{small}"] = ours[large][key] / ours[small][key]
            ratios[f"{peak}_{large}_over_{small}"] = ours[large][peak] / ours[small][peak]
    return {key: round(value, 2) for key, value in ratios.items()}


def main() -> None:
    """Run all sizes and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="numbers of episodes")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each contender")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="contenders")
    parser.add_argument("--alone-from", type=int, default=1_000_000, help="from this size on, only our loop")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for temporary data")
    parser.add_argument("--out", default=None, help="JSON file for the results; rewritten after every size")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--warm", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        job = CONTENDERS[options.contender]
        job(options.warm, options.scratch / "warm")
        timed(lambda: job(options.logs, options.scratch / "timed"))
        return
    sizes: dict[str, Any] = {}
    for size in options.sizes:
        names = options.only if size < options.alone_from else ["loop"]
        sizes[str(size)] = run_size(size, names, options.repeats, options.scratch)
        result = {
            **compute_ratios(sizes),
            "sizes": sizes,
            "repeats": options.repeats,
            "command": f"python benchmarks/dataset.py --sizes {' '.join(map(str, options.sizes))} "
            f"--repeats {options.repeats}",
            "machine": describe_machine(),
            "versions": find_versions(sys.executable, ["celr-ray", "ray", "pyarrow", "msgspec", "numpy"]),
        }
        write_result(options.out, result)


if __name__ == "__main__":
    main()
