"""How near to the optimum offline training comes when its settings are chosen by held-out evaluation alone.

On the tabular problem of tests/tabular_mdp.py, whose exact values are known: 7 settings of CQL and IQL are trained on
mixed-quality logs, the one with the best doubly robust estimate on held-out episodes is taken, and only then its exact
value is looked at; 5 problems, 3 sizes. Values are normalised: 0 = uniformly random, 1 = the optimum.

    python benchmarks/cortex_tabular.py --out benchmarks/results/cortex_tabular.json     (3 to 6 minutes)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from measure import describe_machine, find_versions, write_result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tabular_training import CANDIDATES, select

_SIZES = (300, 1000, 3000)
_SEEDS = range(5)


def main() -> None:
    """Run all and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [select(seed, n_train, n_train // 2) for n_train in _SIZES for seed in _SEEDS]
    summary = {}
    for n_train in _SIZES:
        values = [run["value"] for run in runs if run["n_train"] == n_train]
        summary[str(n_train)] = {"median": float(np.median(values)), "worst": min(values)}
    write_result(
        arguments.out,
        {
            "benchmark": "cortex_tabular",
            "command": "python benchmarks/cortex_tabular.py",
            "value_of_the_chosen_by_training_episodes": summary,
            "candidates": [[name, settings] for name, settings in CANDIDATES],
            "runs": runs,
            "versions": find_versions(sys.executable, ["ray", "torch", "numpy"]),
            "machine": describe_machine(),
        },
    )


if __name__ == "__main__":
    main()
