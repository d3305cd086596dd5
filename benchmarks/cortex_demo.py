"""The whole chain on recorded outcomes, `make cortex-demo`, timed: its verdicts and the figures of the two gates.

python benchmarks/cortex_demo.py --out benchmarks/results/cortex_demo.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import describe_machine, find_versions, write_result

ROOT = Path(__file__).parents[1]
FIGURES = ("success", "cost_usd", "n_unsafe", "n_fallbacks", "n_decisions")


def read_gate(folder: Path) -> dict[str, Any]:
    """Return verdict and figures of a gate; costs in US$ a task."""
    report = json.loads((folder / "gate_report.json").read_text())
    figures = {role: {name: report["figures"][role][name] for name in FIGURES} for role in ("candidate", "champion")}
    names = ("verdict", "reasons", "n_tasks", "n_tasks_used")
    cost = {role: figures[role]["cost_usd"] for role in figures}
    return {
        **{name: report[name] for name in names},
        "cost_over_champion": cost["candidate"] / cost["champion"],
        "names": {role: report[role]["name"] for role in figures},
        "figures": figures,
        "baselines": report["comparison"],
    }


def main() -> None:
    """Run the demo and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=None, help="JSON file for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "CELR_RAY": str(Path(sys.executable).with_name("celr-ray"))}
        started = time.perf_counter()
        subprocess.run([str(ROOT / "examples/cortex/demo.sh"), folder], cwd=ROOT, env=environment, check=True)
        wall_s = time.perf_counter() - started
        gates = {name: read_gate(Path(folder, name)) for name in ("gate", "worse-gate")}
    result = {
        "command": "python benchmarks/cortex_demo.py",
        "wall_s": round(wall_s, 1),
        **gates,
        "machine": describe_machine(),
        "versions": find_versions(sys.executable, ["celr-ray", "ray", "torch", "mlflow", "numpy"]),
    }
    write_result(options.out, result)


if __name__ == "__main__":
    main()
