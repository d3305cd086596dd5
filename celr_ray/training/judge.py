"""The judge stage: every distinct trajectory of a run gets one row in `RUN/judgments`, judged or not.

A unit is part of a task bucket, its rows ordered by task, so that runs of one task share the engine's prefix
cache. An own actor around `vllm.LLM` is used rather than `ray.data.llm`: rows that fail stay rows with a
status, the unit of loss is one unit, and no engine starts when nothing is left to do.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from celr_ray import run_folder, stage, storage
from celr_ray.buckets import plan_bucket_units
from celr_ray.config import JudgeConfig, RuntimeConfig
from celr_ray.errors import ConfigError, InputError
from celr_ray.runtime import Manifest, Unit, UnitFunction, Work
from celr_ray.schema import JUDGMENT_SCHEMA
from celr_ray.stage import StagePlan, StageReport
from celr_ray.training.conversations import has_agent_message
from celr_ray.training.engine import VllmJudgeEngine, engine_environment
from celr_ray.training.judge_prompt import JudgeRequest, request_from_trajectory
from celr_ray.training.judge_rows import UnitRows
from celr_ray.training.judgment_cache import JudgmentCache, make_judge_key, make_request_key
from celr_ray.training.lasting_judge import LastingJudge
from celr_ray.training.self_reward import JudgeLLM, JudgeReply, judge_id, judgment_from_reply

__all__ = ["JudgeFactory", "JudgeLLM", "judge_plan", "judge_work", "run_judge"]

_SILENT = JudgeReply("empty", detail="the log holds no message of the agent")

_COLUMNS = ("task_id", "model", "prompt", "messages")


def judge_plan(run: str, config: JudgeConfig) -> StagePlan:
    """List the units of the judge stage: each task bucket, cut into pieces of at most `max_unit_rows` rows.

    Raises:
        ConfigError: no judge is configured.
        InputError: the run's ingest stage is missing or unfinished.
    """
    if not config.is_enabled:
        raise ConfigError("no judge is configured: give --judge.model-source a model name or folder")
    ingest = run_folder.read_plan(run, "ingest")
    if ingest is None or not run_folder.is_complete(run, "ingest"):
        raise InputError(f"{run} holds no finished ingest stage: run `celr-ray pipeline` or `celr-ray score` first")
    settings = {
        "ingest": ingest["fingerprint"],
        "judge_id": judge_id(config),
        "model_source": config.model_source,
        "max_model_len": config.max_model_len,
        "rubric": config.rubric,
        "max_unit_rows": config.max_unit_rows,  # decides which rows a unit holds
    }
    step = config.max_unit_rows
    n_buckets = ingest["settings"]["ingest"]["n_buckets"]
    units = [
        {**bucket, "n_buckets": n_buckets, "start": start, "stop": min(start + step, bucket["n_rows"])}
        for bucket in plan_bucket_units(run)
        for start in range(0, bucket["n_rows"], step)
    ]
    return StagePlan("judge", settings, units)


def run_judge(
    run: str,
    config: JudgeConfig,
    runtime: RuntimeConfig,
    *,
    on_ray: bool,
    overwrite: bool = False,
    llm: JudgeLLM | None = None,
) -> StageReport:
    """Judge the trajectories of a run that are not judged yet; no engine starts if there are none.

    Args:
        run: run folder.
        config: the judge's settings.
        runtime: where the work runs.
        on_ray: Ray Data, or a loop in this process.
        overwrite: replace what other settings left.
        llm: a judge to use in this process instead of a vLLM engine; `config.model_source` names it, or, where
            that is `none`, its own name.

    Raises:
        ConfigError: no judge is configured, or `llm` is to be used on Ray.
        InputError: the run's ingest stage is missing or unfinished.
        ModelError: the judge cannot be loaded, or its engines die whatever they are asked.
        RunMismatchError: the run was judged with other settings.
    """
    if llm is not None:
        if on_ray:
            raise ConfigError("a judge object works in this process only: set runtime.executor to loop")
        if not config.is_enabled:
            config = config.model_copy(update={"model_source": llm.name})
    if not on_ray:
        config = config.model_copy(update={"concurrency": 1})  # a loop has one engine: it may use all CPUs
    if config.retry_errors:
        _forget_errors(run)
    work = judge_work(config, llm=llm)
    return stage.run_stage(run, judge_plan(run, config), work, runtime, on_ray=on_ray, overwrite=overwrite)


def judge_work(config: JudgeConfig, *, llm: JudgeLLM | None = None) -> Work:
    """Say how the units of the judge stage are run.

    Args:
        config: the judge's settings.
        llm: a judge to use in this process instead of a vLLM engine.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Work(
        factory=JudgeFactory(config, num_threads=int(threads) if threads.isdecimal() else None, llm=llm),
        is_stateful=True,
        concurrency=config.concurrency,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        env=engine_environment(config.num_gpus),
    )


def _forget_errors(run: str) -> None:
    """Mark the units that hold engine errors as not done; their other rows come out of the cache again."""
    for index, manifest in run_folder.read_manifests(run, "judge").items():
        if manifest["status"].get("engine_error"):
            storage.delete_file(run_folder.manifest_uri(run, "judge", index))


@dataclass(frozen=True)
class JudgeFactory:
    """Makes the function that judges a unit; picklable.

    Attributes:
        config: the judge's settings.
        num_threads: compute threads of a CPU engine; None = its share of the CPUs of the machine it runs on.
        llm: use this judge and load no model; only without Ray.
    """

    config: JudgeConfig
    num_threads: int | None = None
    llm: JudgeLLM | None = None

    def __call__(self) -> UnitFunction:
        """Return a function that loads the engine when it gets its first unit."""
        llm = self.llm
        if llm is not None:
            return _JudgeUnit(lambda: llm, self.config)
        return _JudgeUnit(lambda: LastingJudge(self.load_engine), self.config)

    def load_engine(self) -> VllmJudgeEngine:
        """Load the engine.

        Raises:
            ModelError: the judge cannot be loaded.
        """
        config = self.config
        share = max(int(config.num_cpus), len(os.sched_getaffinity(0)) // config.concurrency, 1)
        return VllmJudgeEngine(
            config.model_source,
            max_model_len=config.max_model_len,
            rubric=config.rubric,
            num_gpus=config.num_gpus,
            num_threads=self.num_threads or share,
            engine_kwargs=config.engine_kwargs,
        )


class _JudgeUnit:
    """Judges units with one judge, a chunk at a time; what the cache holds is not judged again.

    The judge is made by the thread that uses it: Ray Data makes an actor in one thread and calls it in another, and
    with compute threads made by both, OpenMP takes the CPUs for overbooked and lets its threads sleep at every step.
    """

    def __init__(self, make_judge: Callable[[], JudgeLLM], config: JudgeConfig) -> None:
        self._make_judge = make_judge
        self._config = config
        self._judge_id = judge_id(config)
        self._judge_key = make_judge_key(config)
        self._rows = UnitRows(_COLUMNS)

    @cached_property
    def _llm(self) -> JudgeLLM:
        return self._make_judge()

    def __call__(self, unit: Unit) -> Manifest:
        rows, n_duplicates = self._rows.read(unit)
        requests = [request_from_trajectory(row) for row in rows]
        keys = [make_request_key(request) for request in requests]
        cache_uri = self._config.cache or storage.join(unit["run"], "cache", "judgments")
        cache = JudgmentCache(cache_uri, self._judge_key, unit["bucket"], unit["n_buckets"])
        cached = cache.load(set(keys))
        silent = {key: _SILENT for key, row in zip(keys, rows, strict=True) if not has_agent_message(row["messages"])}
        known = {**cached, **silent}
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
        fresh = self._judge(missing, cache)
        replies = {**known, **fresh}
        judgments = [
            judgment_from_reply(row, replies[key], judge_id=self._judge_id, judge_model=self._config.model_source)
            for row, key in zip(rows, keys, strict=True)
        ]
        uri = storage.join(unit["run"], "judgments", run_folder.part_name(unit["index"]))
        columns = [judgment.model_dump() for judgment in judgments]
        storage.write_parquet(uri, pa.Table.from_pylist(columns, schema=JUDGMENT_SCHEMA))
        counted_duplicates = n_duplicates if unit["start"] == 0 else 0  # once a bucket
        return {
            "bucket": unit["bucket"],
            "rows_in": len(rows) + counted_duplicates,
            "rows_out": len(judgments),
            "duplicates": counted_duplicates,
            "self_judged_rows": sum(judgment.self_judged for judgment in judgments),
            "status": dict(sorted(Counter(judgment.status for judgment in judgments).items())),
            "cut_rows": sum(judgment.cut_tokens > 0 for judgment in judgments),
            "rows_from_cache": sum(key in cached for key in keys),
            "prompts_run": len(fresh),
            **_count_tokens(list(fresh.values())),
        }

    def _judge(self, requests: Mapping[str, JudgeRequest], cache: JudgmentCache) -> dict[str, JudgeReply]:
        """Judge requests, each once, and save the replies chunk by chunk."""
        replies: dict[str, JudgeReply] = {}
        keys = list(requests)
        for start in range(0, len(keys), self._config.checkpoint_rows):
            chunk = keys[start : start + self._config.checkpoint_rows]
            answers = self._llm.generate([requests[key] for key in chunk])
            made = dict(zip(chunk, answers, strict=True))
            cache.save(made)
            replies |= made
        return replies


def _count_tokens(replies: Sequence[JudgeReply]) -> dict[str, Any]:
    """Add up the tokens of prompts that ran now; `cached_tokens` of them came out of the engine's prefix cache."""
    ran = [reply for reply in replies if reply.status in ("ok", "garbled")]
    return {
        "prompt_tokens": sum(reply.prompt_tokens or 0 for reply in ran),
        "cached_tokens": sum(reply.cached_tokens for reply in ran),
    }
