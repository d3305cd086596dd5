"""`celr-ray bank replay`: a policy with exploration on a bank's tasks, as a dataset to train from.

Only the training and validation tasks are replayed. The gate's are not touched: a policy must not have seen them. The
same command on a finished folder replays nothing again; other settings are refused.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from celr_ray import storage
from celr_ray.config import BankReplayJob
from celr_ray.cortex.evaluation.bank import Bank, Split, load_bank
from celr_ray.cortex.evaluation.replay import ReplayConfig
from celr_ray.cortex.evaluation.replay_run import ReplayResults, run_replay
from celr_ray.cortex.evaluation.replay_transitions import write_replay_dataset
from celr_ray.cortex.policy import EpsilonSoft, Policy, load_policy
from celr_ray.cortex.state import SCHEMA_HASH
from celr_ray.errors import InputError
from celr_ray.lock import run_lock
from celr_ray.run_folder import check_run_folder, manifest_uri, read_manifests
from celr_ray.stage import StagePlan, StageReport, open_stage, write_run_record

__all__ = ["run_bank_replay"]

_SPLITS: tuple[Split, Split] = ("train", "validation")
_STAGE = "dataset"


def run_bank_replay(job: BankReplayJob) -> str:
    """Replay, write the transitions, and return one line for people.

    Raises:
        InputError: there is no bank, or it has no tasks to train or to validate on.
        OutputError: the folder holds something else.
        PolicyError: the policy cannot be loaded.
        RunMismatchError: the folder holds a replay with other settings.
    """
    started = time.monotonic()
    bank = load_bank(job.bank)
    _check_splits(bank, job.bank)
    policy = load_policy(job.policy, registry=job.registry)
    soft = EpsilonSoft(policy, job.epsilon)
    config = ReplayConfig(seed=job.runtime.seed, replays=job.replays)
    settings = {
        "bank": bank.content_hash,
        "policy": soft.content_hash,
        "epsilon": job.epsilon,
        "replay": config.model_dump(mode="json"),
        "state_schema": SCHEMA_HASH,
        "failure_penalty": job.failure_penalty,
    }
    plan = StagePlan(_STAGE, settings, [{"splits": list(_SPLITS)}])
    check_run_folder(job.out, must_exist=False)
    with run_lock(job.out):
        open_stage(job.out, plan, overwrite=job.overwrite)
        done = read_manifests(job.out, _STAGE)
        made: dict[str, Any] = done[0] if done else _make(job, bank, soft, config)
        report = StageReport(_STAGE, time.monotonic() - started, 1, 1 - len(done), made["counts"], plan.fingerprint)
        write_run_record(job.out, job.model_dump(mode="json", exclude={"registry"}), [report])
    return f"{made['told']} in {job.out}"


def _check_splits(bank: Bank, uri: str) -> None:
    for split in _SPLITS:
        if not bank.select(split).tasks.num_rows:
            flag = f"; build it with a larger --bank.{split}-fraction" if split == "validation" else ""
            raise InputError(f"the bank {uri} has no {split} tasks{flag or ': give it more tasks'}")


def _make(job: BankReplayJob, bank: Bank, policy: Policy, config: ReplayConfig) -> dict[str, Any]:
    """Replay both splits and write dataset and manifest; the manifest, which marks it as done, comes last."""
    train, validation = (run_replay(bank, policy, split=split, config=config, keep_decisions=True) for split in _SPLITS)
    record = write_replay_dataset(job.out, train, validation, seed=config.seed, failure_penalty=job.failure_penalty)
    n_train, n_validation = (record["transitions"][split] for split in _SPLITS)
    manifest = {
        "index": 0,
        "told": f"{_describe(train)}; {n_train:,} transitions to train on and {n_validation:,} to validate",
        "counts": {f"{what}.{split}": record[what][split] for what in ("episodes", "transitions") for split in _SPLITS},
    }
    storage.write_json(manifest_uri(job.out, _STAGE, 0), manifest)
    return manifest


def _describe(results: ReplayResults) -> str:
    success, cost = float(np.nanmean(results.success)), float(np.nanmean(results.cost_usd))
    n_censored = int(results.censored.sum())
    censored = f", {n_censored:,} episodes censored" if n_censored else ""
    n, replays = results.success.shape
    return (
        f"{results.policy} on {n:,} training tasks × {replays}: success {success:.3f}, {cost:.3g} US$ a task{censored}"
    )
