"""`celr-ray bank replay`: a policy with exploration on a bank's tasks, as a dataset to train from.

The gate's tasks are not touched: a policy must not have seen them.
"""

from __future__ import annotations

import numpy as np

from celr_ray.config import BankReplayJob
from celr_ray.cortex.evaluation.bank import Split, load_bank
from celr_ray.cortex.evaluation.replay import ReplayConfig
from celr_ray.cortex.evaluation.replay_run import ReplayResults, run_replay
from celr_ray.cortex.evaluation.replay_transitions import write_replay_dataset
from celr_ray.cortex.policy import EpsilonSoft, load_policy
from celr_ray.errors import InputError
from celr_ray.stage import check_run_folder

__all__ = ["run_bank_replay"]


def run_bank_replay(job: BankReplayJob) -> str:
    """Replay, write the transitions, and return one line for people.

    Raises:
        InputError: there is no bank, or it has no tasks to train or to validate on.
        OutputError: the folder holds something else.
        PolicyError: the policy cannot be loaded.
    """
    bank = load_bank(job.bank)
    check_run_folder(job.out, must_exist=False)
    policy = load_policy(job.policy, registry=job.registry)
    soft = EpsilonSoft(policy, job.epsilon) if job.epsilon else policy
    config = ReplayConfig(seed=job.runtime.seed, replays=job.replays)
    splits: tuple[Split, Split] = ("train", "validation")
    found = [run_replay(bank, soft, split=split, config=config, keep_decisions=True) for split in splits]
    for split, results in zip(splits, found, strict=True):
        if not len(results.task_ids):
            raise InputError(f"{job.bank} has no {split} tasks: build it with other --bank.*-fraction")
    record = write_replay_dataset(job.out, *found, seed=job.runtime.seed)
    n_train, n_validation = (record["transitions"][split] for split in splits)
    made = f"{n_train:,} transitions to train on and {n_validation:,} to validate in {job.out}"
    return f"{_describe(soft.name, found[0])}; {made}"


def _describe(name: str, results: ReplayResults) -> str:
    success, cost = float(np.nanmean(results.success)), float(np.nanmean(results.cost_usd))
    n_censored = int(results.censored.sum())
    censored = f", {n_censored:,} episodes censored" if n_censored else ""
    n, replays = results.success.shape
    return f"{name} on {n:,} training tasks × {replays}: success {success:.3f}, {cost:.3g} US$ a task{censored}"
