"""The contenders of judge_throughput.py; each call is one fresh process that prints its figures as a line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from celr_ray import stage, storage
from celr_ray.config import JudgeConfig, RuntimeConfig
from celr_ray.small_models import resolve_model
from celr_ray.training.engine import VllmJudgeEngine, engine_arguments, engine_environment
from celr_ray.training.judge import JudgeFactory, judge_plan, judge_work
from celr_ray.training.self_reward import SAMPLING

WINDOW = 4096
BLOCK = 32
N_THREADS = len(os.sched_getaffinity(0))


class Sampler:
    """Notes the CPU seconds of this process and all its descendants, five times a second, by kind of process."""

    def __init__(self) -> None:
        self._root = psutil.Process()
        self._seen: dict[int, tuple[str, float]] = {}
        self.samples: list[tuple[float, dict[str, float]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _keep_looking(self) -> None:
        while not self._stop.wait(0.2):
            self.look()

    def look(self) -> None:
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                kind = "self" if process.pid == self._root.pid else name_process(process)
                used = process.cpu_times()
            except psutil.Error:
                continue
            self._seen[process.pid] = (kind, used.user + used.system)
        total: dict[str, float] = {}
        for kind, seconds in self._seen.values():
            total[kind] = total.get(kind, 0.0) + seconds
        self.samples.append((time.time(), total))

    def cpu_between(self, start: float, end: float) -> dict[str, float]:
        """Return the CPU seconds by kind between two times (time.time())."""
        first = max((s for s in self.samples if s[0] <= start), key=lambda s: s[0], default=self.samples[0])
        last = min((s for s in self.samples if s[0] >= end), key=lambda s: s[0], default=self.samples[-1])
        used = {kind: seconds - first[1].get(kind, 0.0) for kind, seconds in last[1].items()}
        return {kind: round(seconds, 1) for kind, seconds in sorted(used.items()) if seconds >= 0.05}


def name_process(process: psutil.Process) -> str:
    """Name what a process is for: an actor, the engine core, or one of Ray's own."""
    words = " ".join(process.cmdline())
    for word, kind in (("MapWorker", "actor"), ("EngineCore", "engine_core"), ("ray::", "ray_worker")):
        if word in words:
            return kind
    return "ray"


@dataclass(frozen=True)
class Measured:
    """When a contender's engine was loaded and when its last verdict was there (time.time()), and what it judged."""

    ready: float
    end: float
    prompts: int
    prompt_tokens: int
    cached_tokens: int | None


def read_prompts(folder: Path) -> list[list[int]]:
    found: list[list[int]] = json.loads((folder / "prompts.json").read_text())
    return found


def make_arguments(model: str, **extra: Any) -> dict[str, Any]:
    """Return the engine arguments that all contenders use."""
    return engine_arguments(resolve_model(model), max_model_len=WINDOW, num_gpus=0, engine_kwargs=extra)


def run_raw(folder: Path, model: str, name: str) -> Measured:
    """One call of `LLM.generate`, as a person would write it, without compilation of the sampler (17 s, no gain)."""
    import torch
    import vllm
    from vllm.sampling_params import StructuredOutputsParams

    torch.set_num_threads(N_THREADS)
    prompts = read_prompts(folder)
    if "shuffled" in name:
        random.Random(0).shuffle(prompts)
    extra = {}
    if "small_cache" in name:
        extra["num_gpu_blocks_override"] = max(sum(map(len, prompts)) // BLOCK // 8, WINDOW // BLOCK + 1)
    llm = vllm.LLM(**make_arguments(model, **extra))
    options = {key: value for key, value in SAMPLING.items() if key != "regex"}
    sampling = vllm.SamplingParams(**options, structured_outputs=StructuredOutputsParams(regex=SAMPLING["regex"]))

    tokenizer = llm.get_tokenizer()
    given = [tokenizer.decode(ids) if name == "raw_texts" else {"prompt_token_ids": ids} for ids in prompts]

    def generate() -> list[Any]:
        with torch.compiler.set_stance("force_eager"):
            found: list[Any] = llm.generate(given, sampling, use_tqdm=False)
        return found

    ready = time.time()
    outputs = ThreadPoolExecutor(1).submit(generate).result() if name == "raw_other_thread" else generate()
    end = time.time()
    n_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    return Measured(ready, end, len(outputs), n_tokens, sum(output.num_cached_tokens for output in outputs))


@dataclass(frozen=True)
class TimedFactory(JudgeFactory):
    """Loads the engine as the stage does and writes down when it was loaded."""

    note: str = ""

    def load_engine(self) -> VllmJudgeEngine:
        engine = super().load_engine()
        Path(self.note).write_text(str(time.time()))
        return engine


def run_stage(folder: Path, model: str, name: str) -> Measured:
    """The judge stage through Ray; it ends when the manifest of its last unit is written."""
    run, note = str(folder / "stage"), str(folder / "ready")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "run", run)
    config = JudgeConfig(model_source=model)
    work = replace(judge_work(config), factory=TimedFactory(config, num_threads=N_THREADS, note=note))
    on_ray = name == "stage"
    runtime = RuntimeConfig(executor="ray" if on_ray else "loop")
    report = stage.run_stage(run, judge_plan(run, config), work, runtime, on_ray=on_ray)
    files = storage.list_files(storage.join(run, "manifests", "judge"))
    end = max(os.stat(file.uri).st_mtime for file in files)
    counts = report.counts
    assert counts["prompts_run"] == counts["status.ok"] == counts["rows_in"]
    return Measured(
        float(Path(note).read_text()), end, counts["prompts_run"], counts["prompt_tokens"], counts["cached_tokens"]
    )


def run_ray_data_llm(folder: Path, model: str, name: str) -> Measured:
    """`build_processor` on the token ids; it begins when the first request arrives at its engine.

    `num_cpus=4` on two cores, as its actors starve each other else; a CPU placement, as it asks for a GPU else.
    """
    os.environ.update({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"})
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    variables = {**engine_environment(0), "OMP_NUM_THREADS": str(N_THREADS), "VLLM_LOGGING_LEVEL": "INFO"}
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False
    arguments = make_arguments(model)
    source = arguments.pop("model")
    arguments.pop("use_tqdm_on_load")
    config = vLLMEngineProcessorConfig(
        model_source=source,
        engine_kwargs=arguments,
        runtime_env={"env_vars": variables},
        batch_size=32,
        concurrency=1,
        placement_group_config={"bundles": [{"CPU": 1}]},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
    )
    sampling = {key: value for key, value in SAMPLING.items() if key != "regex"}
    sampling["structured_outputs"] = {"regex": SAMPLING["regex"]}
    processor = build_processor(
        config,
        preprocess=lambda row: {"tokenized_prompt": row["ids"], "sampling_params": sampling},
        postprocess=lambda row: {
            "n_tokens": row["num_input_tokens"],
            "arrived": row["metrics"]["arrival_time"],
            "text": row["generated_text"],
        },
    )
    prompts = read_prompts(folder)
    blocks = max(len(prompts) // 32, 1)
    source_rows = ray.data.from_items([{"ids": ids} for ids in prompts], override_num_blocks=blocks)
    rows = list(processor(source_rows).iter_rows())
    end = time.time()
    n_tokens = sum(row["n_tokens"] for row in rows)
    hit_rate = read_hit_rate(Path("/tmp/ray", ray.get_runtime_context().get_session_name(), "logs"))
    ready = min(row["arrived"] for row in rows)
    return Measured(ready, end, len(rows), n_tokens, None if hit_rate is None else round(hit_rate * n_tokens))


def read_hit_rate(folder: Path) -> float | None:
    """Return the last prefix cache hit rate that vLLM wrote into its log (of its last 1,000 requests)."""
    found = [
        rate
        for path in sorted(folder.glob("worker-*"), key=lambda path: path.stat().st_mtime)
        for rate in re.findall(r"Prefix cache hit rate: ([\d.]+)%", path.read_text(errors="replace"))
    ]
    return float(found[-1]) / 100 if found else None


def run_contender(name: str, folder: Path, model: str) -> dict[str, Any]:
    """Run one contender and return its figures."""
    os.environ.update(engine_environment(0))
    os.environ["OMP_NUM_THREADS"] = str(N_THREADS)
    # Ray starts workers with niceness 15: beside other work they would get less of the CPUs than raw vLLM.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    jobs: dict[str, Callable[[Path, str, str], Measured]] = {
        "stage": run_stage,
        "stage_loop": run_stage,
        "ray_data_llm": run_ray_data_llm,
    }
    started = time.time()
    with Sampler() as sampler:
        done = jobs.get(name, run_raw)(folder, model, name)
        sampler.look()
    cpu = sampler.cpu_between(done.ready, done.end)
    seconds = done.end - done.ready
    return {
        "prompts_per_s": done.prompts / seconds,
        "wall_s": seconds,
        "cpu_s": sum(cpu.values()),
        "start_s": done.ready - started,
        "cache_hit_rate": None if done.cached_tokens is None else done.cached_tokens / done.prompt_tokens,
        "prompts": done.prompts,
        "prompt_tokens": done.prompt_tokens,
        "cpu_s_by_process": cpu,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    options = parser.parse_args()
    print(json.dumps(run_contender(options.name, options.folder, options.model)))
