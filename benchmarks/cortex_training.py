"""Offline training: transitions per CPU second through RLlib, beside a plain PyTorch loop and d3rlpy.

Every contender trains on the same random transitions (33 features, 6 actions), with minibatches of 1,024, two hidden
layers of 128, Adam and one thread, in a fresh process; imports, building, loading and 50 minibatches are not counted.

    rllib      `Algorithm.train()` of celr_ray.cortex.algorithms, transitions in memory
    stream     the same, transitions streamed from Parquet (reading and shuffling are counted)
    plain      a loop of twenty lines over tensors: the same losses and networks, no RLlib
    d3rlpy     `fit` of DiscreteBC and DiscreteCQL: double Q as ours, but neither masks nor standardised features, and
               its target network is copied now and then instead of moved at each step; BC adds an L2 penalty on logits

Peak memory is that of the whole process, data included.

    uv venv build/d3rlpy --python 3.11                                  # d3rlpy's own environment
    uv pip install --python build/d3rlpy/bin/python torch==2.13.0 numpy # first, or it pulls a CUDA build
    uv pip install --python build/d3rlpy/bin/python --no-deps d3rlpy
    uv pip install --python build/d3rlpy/bin/python tqdm h5py "gym>=0.26" click structlog colorama dataclasses-json \\
        gymnasium==1.0.0 scikit-learn
    python benchmarks/cortex_training.py speed --out benchmarks/results/cortex_training.json           (2 to 4 minutes)
    python benchmarks/cortex_training.py sizes --out benchmarks/results/cortex_training_sizes.json     (3 minutes, 1 GB)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import describe_machine, find_versions, measure, take_medians, timed, write_result

D3RLPY = Path("build/d3rlpy/bin/python")
N_FEATURES, N_ACTIONS, BATCH, HIDDEN, WARM_UP = 33, 6, 1024, (128, 128), 50
_PART_ROWS, _ROW_GROUP, _SPEED_ROWS = 250_000, 16_384, 200_000
_ENV = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def draw_transitions(n: int, seed: int) -> dict[str, Any]:
    """Return n random legal transitions of episodes of three steps."""
    rng = np.random.default_rng(seed)
    obs = rng.standard_normal((2, n, N_FEATURES + N_ACTIONS), dtype=np.float32)
    obs[..., N_FEATURES:] = obs[..., N_FEATURES:] < 0.5
    actions = rng.integers(N_ACTIONS, size=n)
    obs[0, np.arange(n), N_FEATURES + actions] = 1
    obs[1, :, -1] = 1
    ends = np.arange(n) % 3 == 2
    rewards = np.where(ends, rng.choice([-1.0, 0.02], n), -0.001).astype(np.float32)
    return {
        "obs": obs[0],
        "new_obs": obs[1],
        "actions": actions,
        "rewards": rewards,
        "terminateds": ends,
        "truncateds": np.zeros(n, dtype=bool),
    }


def write_transitions(folder: Path, n: int) -> None:
    """Write n transitions as the dataset stage lays them out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = folder / "transitions" / "train"
    target.mkdir(parents=True)
    for number, start in enumerate(range(0, n, _PART_ROWS)):
        columns = draw_transitions(min(_PART_ROWS, n - start), number)
        arrays = {}
        for name, values in columns.items():
            flat = pa.array(values.ravel())
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
        path = target / f"part-{number:05}.parquet"
        pq.write_table(
            pa.table(arrays),
            path,
            row_group_size=_ROW_GROUP,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
        )


def _read_all(folder: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    parts = []
    for path in sorted((folder / "transitions" / "train").glob("*.parquet")):
        table = pq.read_table(path)
        part = {name: table[name].combine_chunks() for name in table.column_names}
        parts.append(
            {
                name: column.flatten().to_numpy().reshape(len(column), -1)
                if name.endswith("obs")
                else column.to_numpy(zero_copy_only=False)
                for name, column in part.items()
            }
        )
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


def run_rllib(algorithm: str, folder: Path, updates: int, *, is_streamed: bool) -> None:
    """Train through RLlib."""
    import torch

    from celr_ray.cortex.algorithms.algorithm import MaskedBCConfig, MaskedCQLConfig, MaskedIQLConfig
    from celr_ray.cortex.algorithms.feeding import MemorySource, ParquetSource

    torch.set_num_threads(1)
    source = ParquetSource(str(folder)) if is_streamed else MemorySource(_read_all(folder))
    config = {"bc": MaskedBCConfig, "cql": MaskedCQLConfig, "iql": MaskedIQLConfig}[algorithm]().transitions(source)
    config.training(hidden=HIDDEN, train_batch_size_per_learner=BATCH, updates_per_iteration=WARM_UP).debugging(seed=0)
    trained = config.build_algo()
    trained.train()
    n_calls = updates // WARM_UP

    def train() -> dict[str, Any]:
        for _ in range(n_calls):
            trained.train()
        return {"transitions": n_calls * WARM_UP * BATCH}

    timed(train)


def run_plain(algorithm: str, folder: Path, updates: int) -> None:
    """Train in a plain loop."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tensors = {name: torch.from_numpy(values) for name, values in _read_all(folder).items()}
    step = _plain_step(algorithm, tensors["obs"][:, :N_FEATURES])
    minibatches = _shuffle(tensors)

    def train(n: int) -> dict[str, Any]:
        for _ in range(n):
            step(next(minibatches))
        return {"transitions": n * BATCH}

    train(WARM_UP)
    timed(lambda: train(updates))


def _shuffle(tensors: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch

    n = len(tensors["actions"])
    while True:
        rows = torch.randperm(n)
        for start in range(0, n - BATCH + 1, BATCH):
            yield {name: tensor[rows[start : start + BATCH]] for name, tensor in tensors.items()}


def _plain_step(algorithm: str, features: Any) -> Callable[[dict[str, Any]], None]:
    """Return one gradient step; moves target networks too."""
    import copy

    import torch

    from celr_ray.cortex.algorithms.losses import bc_loss, cql_loss, iql_loss, take
    from celr_ray.cortex.algorithms.module import make_mlp

    mean, scale = features.mean(dim=0), features.std(dim=0)

    def split(obs: Any) -> tuple[Any, Any]:
        return (obs[:, :N_FEATURES] - mean) / scale, obs[:, N_FEATURES:] > 0.5

    def network(n_out: int) -> Any:
        return make_mlp([N_FEATURES, *HIDDEN, n_out])

    heads = {"bc": [N_ACTIONS], "cql": [N_ACTIONS], "iql": [N_ACTIONS] * 3 + [1]}[algorithm]
    nets = torch.nn.ModuleList(network(n_out) for n_out in heads)
    followed = {"bc": [], "cql": [0], "iql": [1, 2]}[algorithm]
    targets = [copy.deepcopy(nets[number]).requires_grad_(False) for number in followed]
    to = [p for target in targets for p in target.parameters()]
    of = [p.data for number in followed for p in nets[number].parameters()]
    optimizer = torch.optim.Adam(nets.parameters(), lr=1e-3, fused=True)

    def loss(b: dict[str, Any]) -> Any:
        x, mask = split(b["obs"])
        if algorithm == "bc":
            return bc_loss(nets[0](x), mask, b["actions"]).total
        rest = (b["actions"], b["rewards"], b["terminateds"], b["truncateds"])
        with torch.no_grad():
            after, next_mask = split(b["new_obs"])
        if algorithm == "cql":
            with torch.no_grad():
                target, online = targets[0](after), nets[0](after)
            q = nets[0](x)
            return cql_loss(q, target, mask, next_mask, *rest, alpha=0.1, gamma=1.0, online_next_q=online).total
        with torch.no_grad():
            target = torch.stack([take(net(x), b["actions"]) for net in targets]).min(dim=0).values
            next_value = nets[3](after)[:, 0]
        critics = tuple(take(nets[number](x), b["actions"]) for number in (1, 2))
        value = nets[3](x)[:, 0]
        settings = {"expectile": 0.8, "beta": 10.0, "gamma": 1.0}
        return iql_loss(nets[0](x), critics, target, value, next_value, mask, *rest, **settings).total

    def step(minibatch: dict[str, Any]) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(minibatch).backward()
        optimizer.step()
        if to:
            torch._foreach_lerp_(to, of, 0.005)

    return step


def run_d3rlpy(algorithm: str, updates: int) -> None:
    """Train with d3rlpy."""
    import d3rlpy
    import torch

    torch.set_num_threads(1)
    columns = draw_transitions(_SPEED_ROWS, 0)  # what the one Parquet file of this comparison holds
    dataset = d3rlpy.dataset.MDPDataset(
        columns["obs"],
        columns["actions"][:, None],
        columns["rewards"],
        columns["terminateds"],
        action_space=d3rlpy.ActionSpace.DISCRETE,
        action_size=N_ACTIONS,
    )
    config = {"bc": d3rlpy.algos.DiscreteBCConfig, "cql": d3rlpy.algos.DiscreteCQLConfig}[algorithm]
    encoder = d3rlpy.models.VectorEncoderFactory(hidden_units=list(HIDDEN))
    trained = config(batch_size=BATCH, learning_rate=1e-3, encoder_factory=encoder).create(device="cpu")

    def train(n: int) -> dict[str, Any]:
        quiet = {"logger_adapter": d3rlpy.logging.NoopAdapterFactory(), "show_progress": False}
        trained.fit(dataset, n_steps=n, n_steps_per_epoch=n, **quiet)
        return {"transitions": n * BATCH}

    train(WARM_UP)
    timed(lambda: train(updates))


def run(contender: str, algorithm: str, folder: Path, updates: int) -> dict[str, Any]:
    """Measure a contender in a process of its own."""
    python = str(D3RLPY) if contender == "d3rlpy" else sys.executable
    command = [python, __file__, "contender", contender, algorithm, str(folder), str(updates)]
    figures = measure(command, _ENV)
    figures["per_cpu_s"] = figures["transitions"] / figures["cpu_s"]
    figures["per_wall_s"] = figures["transitions"] / figures["wall_s"]
    return figures


def compare_speed(repeats: int, updates: int) -> dict[str, Any]:
    """Measure all contenders in turns on 200,000 transitions."""
    pairs = [
        (c, a)
        for a in ("bc", "cql", "iql")
        for c in ("rllib", "stream", "plain", "d3rlpy")
        if (c, a) != ("d3rlpy", "iql")
    ]
    with tempfile.TemporaryDirectory() as temporary:
        write_transitions(Path(temporary), _SPEED_ROWS)
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(repeats):
            for contender, algorithm in pairs:
                n = updates // 2 if contender == "d3rlpy" else updates
                runs.setdefault(f"{algorithm} {contender}", []).append(
                    run(contender, algorithm, Path(temporary), n // WARM_UP * WARM_UP)
                )
    medians = {name: take_medians(found) for name, found in runs.items()}

    def ratio(algorithm: str, one: str, two: str) -> float:
        return round(medians[f"{algorithm} {one}"]["per_cpu_s"] / medians[f"{algorithm} {two}"]["per_cpu_s"], 3)

    return {
        "plain_over_rllib": {a: ratio(a, "plain", "rllib") for a in ("bc", "cql", "iql")},
        "plain_over_stream": {a: ratio(a, "plain", "stream") for a in ("bc", "cql", "iql")},
        "rllib_over_d3rlpy": {a: ratio(a, "rllib", "d3rlpy") for a in ("bc", "cql")},
        "transitions": _SPEED_ROWS,
        "repeats": repeats,
        "medians": medians,
    }


def compare_sizes(sizes: list[int], algorithm: str) -> dict[str, Any]:
    """Train one epoch or 500 minibatches, whichever is more, on data of several sizes."""
    found: dict[str, Any] = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            write_transitions(Path(temporary), n)
            updates = max(500, -(-n // BATCH // WARM_UP) * WARM_UP)
            for contender in ("rllib", "stream"):
                figures = run(contender, algorithm, Path(temporary), updates)
                figures["cpu_us_per_transition"] = 1e6 * figures["cpu_s"] / figures["transitions"]
                found[f"{contender} {n}"] = {name: round(value, 3) for name, value in figures.items()}

    def growth(contender: str, what: str) -> float:
        first, last = (found[f"{contender} {n}"][what] for n in (sizes[0], sizes[-1]))
        return round(last / first, 3)

    return {
        "time_per_transition_last_over_first": {c: growth(c, "cpu_us_per_transition") for c in ("rllib", "stream")},
        "peak_memory_last_over_first": {c: growth(c, "peak_memory_mb") for c in ("rllib", "stream")},
        "algorithm": algorithm,
        "sizes": found,
    }


def _run_contender(contender: str, algorithm: str, folder: str, updates: str) -> None:
    place, n = Path(folder), int(updates)
    if contender == "plain":
        run_plain(algorithm, place, n)
    elif contender == "d3rlpy":
        run_d3rlpy(algorithm, n)
    else:
        run_rllib(algorithm, place, n, is_streamed=contender == "stream")


def main() -> None:
    """Run one of the two comparisons, or be a contender."""
    if sys.argv[1:2] == ["contender"]:
        _run_contender(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("speed", "sizes"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 3_000_000])
    parser.add_argument("--algorithm", default="cql")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.what == "speed":
        result = compare_speed(options.repeats, options.updates)
    else:
        result = compare_sizes(options.sizes, options.algorithm)
    write_result(
        options.out,
        {
            "benchmark": f"cortex_training {options.what}",
            **result,
            "batch_size": BATCH,
            "hidden": HIDDEN,
            "threads": 1,
            "versions": find_versions(sys.executable, ["ray", "torch", "numpy", "pyarrow"]),
            "peer_versions": find_versions(str(D3RLPY), ["d3rlpy", "torch", "numpy"]) if D3RLPY.exists() else {},
            "machine": describe_machine(),
        },
    )


if __name__ == "__main__":
    main()
