"""How well the difficulty estimator tells from a question's text alone whether a cheap model fails it.

Input: one or more Parquet files in the shape of RouteLLM's evaluation data, a row for each question: `prompt`, and one
boolean column for each model, true = its answer is correct. Rows with equal prompts are one task. Held out is a fifth
of the questions, another for each seed; the splits overlap, so their mean has no interval of its own. `permuted_auc` is
that of the first seed with the outcomes shuffled: away from .5 it would be a leak.

    python benchmarks/difficulty.py gsm8k_responses.parquet mmlu_responses.parquet --out difficulty.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from celr_ray.cortex.difficulty import train_difficulty

Bools = NDArray[np.bool_]
CHEAP = "mistralai/Mixtral-8x7B-Instruct-v0.1"


def measure(path: Path, model: str, seeds: list[int]) -> dict[str, Any]:
    """Train on one file, once for each seed, and return the figures."""
    table = pq.read_table(path, columns=["prompt", model])
    texts = table["prompt"].to_pylist()
    failed = ~np.array(table[model].to_pylist(), dtype=bool)
    splits = [measure_split(texts, failed, seed) for seed in seeds]
    values = {name: [split[name]["value"] for split in splits] for name in ("auc", "brier", "ece")}
    shuffled = np.random.default_rng(seeds[0]).permutation(failed)
    permuted = train_difficulty(texts, shuffled, texts, seed=seeds[0])[1].to_dict()["auc"]
    return {
        "n": len(texts),
        "n_questions": len(set(texts)),
        "share_failed": round(float(failed.mean()), 4),
        "mean_of_splits": {name: round(float(np.mean(found)), 4) for name, found in values.items()},
        "permuted_auc": round_all(permuted),
        "splits": splits,
    }


def measure_split(texts: list[str], failed: Bools, seed: int) -> dict[str, Any]:
    """Return the figures of one split."""
    start = time.process_time()
    trained, report = train_difficulty(texts, failed, texts, seed=seed)
    train_s = time.process_time() - start
    start = time.process_time()
    trained.predict(texts)
    predict_s = time.process_time() - start
    return round_all(
        {
            **report.to_dict(),
            "train_cpu_s": train_s,
            "predict_texts_per_cpu_s": len(texts) / predict_s,
        }
    )


def round_all(value: Any) -> Any:
    """Round every number in a JSON value to four places."""
    if isinstance(value, dict):
        return {key: round_all(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [round_all(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Measure each file and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="Parquet files")
    parser.add_argument("--model", default=CHEAP, help=f"column of the cheap model (default: {CHEAP})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="a split for each")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    options = parser.parse_args()
    names = " ".join(path.name for path in options.files)
    seeds = " ".join(map(str, options.seeds))
    result = {
        "command": f"python benchmarks/difficulty.py {names} --model {options.model} --seeds {seeds}",
        "source": "lm-sys/RouteLLM, evaluation responses (Apache-2.0)",
        "interval": "95 %, of one split: bootstrap over questions; AUC: not narrower than its closed interval",
        "files": {path.name: measure(path, options.model, options.seeds) for path in options.files},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: metadata.version(name) for name in ("celr-ray", "scikit-learn", "numpy", "scipy")},
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
