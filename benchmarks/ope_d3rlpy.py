"""d3rlpy's `DiscreteFQE` on logs of ours; runs in d3rlpy's own environment, `ope_table.py` starts it.

    python ope_d3rlpy.py LOGS.npz N_STEPS        prints a JSON list: the value of each log

d3rlpy's FQE asks the policy for its best action, so it evaluates deterministic policies only: here "always action 1".
LOGS.npz holds, for each k, `obs_k`, `action_k`, `reward_k`, `terminal_k`, `first_k`.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import d3rlpy
import numpy as np
import structlog
import torch
from d3rlpy.logging import NoopAdapterFactory
from d3rlpy.ope import DiscreteFQE, FQEConfig

ACTION = 1


class _AlwaysOne:
    """What `DiscreteFQE` needs of the policy."""

    def __init__(self) -> None:
        self.impl = self

    def predict_best_action(self, x: Any) -> torch.Tensor:
        return torch.full((len(x),), ACTION, dtype=torch.int64)


def evaluate(logs: Any, number: int, n_steps: int) -> float:
    """Fit on one log and return the mean value of its first states."""
    d3rlpy.seed(number)
    obs, first = logs[f"obs_{number}"].astype(np.float32), logs[f"first_{number}"]
    dataset = d3rlpy.dataset.MDPDataset(
        obs, logs[f"action_{number}"], logs[f"reward_{number}"], logs[f"terminal_{number}"],
        action_space=d3rlpy.ActionSpace.DISCRETE, action_size=2,
    )  # fmt: skip
    config = FQEConfig(learning_rate=1e-3, batch_size=100, gamma=1.0, target_update_interval=100)
    fqe = DiscreteFQE(_AlwaysOne(), config)  # type: ignore[arg-type]
    fqe.fit(
        dataset, n_steps=n_steps, n_steps_per_epoch=n_steps, show_progress=False,
        logger_adapter=NoopAdapterFactory(), save_interval=10**9,
    )  # fmt: skip
    start = obs[first]
    return float(fqe.predict_value(start, np.full(len(start), ACTION)).mean())


def main() -> None:
    """Evaluate every log of the file."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    torch.set_num_threads(1)
    logs = np.load(sys.argv[1])
    count = sum(name.startswith("obs_") for name in logs.files)
    print(json.dumps([evaluate(logs, number, int(sys.argv[2])) for number in range(count)]))


if __name__ == "__main__":
    main()
