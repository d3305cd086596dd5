"""How fast a learned policy decides, and how often it falls back on states like those of its training.

Three questions, one run, all on one thread:
- the network alone: ours in numpy (float64, rounded) beside numpy in float32, ONNX Runtime, PyTorch, and the RLModule
  that trained it; one state and batches
- the whole decision of `MetaPolicy`: checks, support, network, mask, choice
- the support: states of an ε-soft heuristic on random banks (`tests/banks.py`), learned from n tasks, then shown the
  states of 1,000 other tasks, of other policies, and states that cannot be

Run: python benchmarks/policy_inference.py --out benchmarks/results/policy_inference.json
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when numpy and torch are imported

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from measure import describe_machine, find_versions, write_result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from banks import random_bank

from celr_ray.core.escalation import AlwaysStrong, HeuristicPolicy
from celr_ray.cortex.actions import ACTIONS, N_ACTIONS
from celr_ray.cortex.artefact import make_artefact
from celr_ray.cortex.evaluation.replay_run import run_replay
from celr_ray.cortex.learned import make_policy
from celr_ray.cortex.network import Network
from celr_ray.cortex.policy import EpsilonSoft, MetaPolicy, Policy, RandomPolicy
from celr_ray.cortex.state import FEATURE_INDEX, N_FEATURES
from celr_ray.cortex.support import fit_support

Call = Callable[[Any], Any]
BATCHES = (1, 1024, 16384)
SECONDS = 0.3
"""CPU time of each measurement."""


def make_network(hidden: tuple[int, ...]) -> Network:
    random = np.random.default_rng(0)
    sizes = (N_FEATURES, *hidden, N_ACTIONS)
    layers = [(random.normal(size=(o, i)) / np.sqrt(i), random.normal(size=o)) for i, o in pairwise(sizes)]
    return Network.from_mlp(np.full(N_FEATURES, 0.4), np.full(N_FEATURES, 0.5), layers)


def time_call(call: Call, argument: Any) -> float:
    """Return CPU seconds of one call."""
    call(argument)
    n, start = 0, time.process_time()
    while (spent := time.process_time() - start) < SECONDS:
        call(argument)
        n += 1
    return spent / n


def use_float32(network: Network) -> Call:
    weights = [(np.ascontiguousarray(weight.T), bias) for weight, bias in network.layers]

    def score(obs: np.ndarray) -> np.ndarray:
        hidden = (obs.astype(np.float32) - network.mean) / network.scale
        for number, (weight, bias) in enumerate(weights):
            hidden = hidden @ weight + bias
            if number < len(weights) - 1:
                np.maximum(hidden, 0, out=hidden)
        return hidden

    return score


def use_onnx(network: Network) -> Call:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Sub", ["obs", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["h0"]),
    ]
    arrays = {"mean": network.mean, "scale": network.scale}
    last = len(network.layers) - 1
    for number, (weight, bias) in enumerate(network.layers):
        arrays |= {f"w{number}": weight, f"b{number}": bias}
        out = "scores" if number == last else f"z{number}"
        nodes.append(helper.make_node("Gemm", [f"h{number}", f"w{number}", f"b{number}"], [out], transB=1))
        if number < last:
            nodes.append(helper.make_node("Relu", [out], [f"h{number + 1}"]))
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, [None, N_FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, N_ACTIONS])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda obs: session.run(None, {"obs": obs.astype(np.float32)})[0]


def use_torch(network: Network) -> Call:
    import torch

    torch.set_num_threads(1)
    layers: list[torch.nn.Module] = []
    for weight, bias in network.layers:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        layers += [layer, torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers[:-1])
    mean, scale = torch.tensor(network.mean), torch.tensor(network.scale)

    def score(obs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = module((torch.from_numpy(obs.astype(np.float32)) - mean) / scale).numpy()
            return found

    return score


def use_rl_module(network: Network) -> Call:
    import gymnasium as gym
    import torch

    from celr_ray.cortex.algorithms.module import PolicyModule

    hidden = [len(bias) for _, bias in network.layers[:-1]]
    module = PolicyModule(
        observation_space=gym.spaces.Box(-np.inf, np.inf, (N_FEATURES + N_ACTIONS,), np.float32),
        action_space=gym.spaces.Discrete(N_ACTIONS),
        model_config={"hidden": hidden, "mean": network.mean.tolist(), "scale": network.scale.tolist()},
    )
    for number, (weight, bias) in enumerate(network.layers):
        module.policy[2 * number].weight.data = torch.tensor(weight)
        module.policy[2 * number].bias.data = torch.tensor(bias)

    def score(obs: np.ndarray) -> np.ndarray:
        both = np.concatenate([obs, np.ones((len(obs), N_ACTIONS))], axis=1).astype(np.float32)
        with torch.inference_mode():
            found: np.ndarray = module.forward_inference({"obs": torch.from_numpy(both)})["action_dist_inputs"].numpy()
            return found

    return score


def measure_networks(obs: np.ndarray, repeats: int) -> dict[str, Any]:
    """Time the contenders in turns; CPU µs of a state, and over ours."""
    result: dict[str, Any] = {}
    for hidden in ((128, 128), (256, 256)):
        network = make_network(hidden)
        calls: dict[str, Call] = {
            "celr-ray": network.scores,
            "numpy, float32": use_float32(network),
            "onnxruntime": use_onnx(network),
            "torch": use_torch(network),
            "RLModule": use_rl_module(network),
        }
        expected = network.scores(obs[:500])
        for name, call in calls.items():
            assert np.allclose(call(obs[:500]), expected, atol=1e-4), name
        rows: dict[str, Any] = {}
        for batch in BATCHES:
            states = np.tile(obs, (batch // len(obs) + 1, 1))[:batch]
            runs = {name: [] for name in calls}
            for _ in range(repeats):
                for name, call in calls.items():
                    runs[name].append(1e6 * time_call(call, states) / batch)
            medians = {name: statistics.median(found) for name, found in runs.items()}
            rows[f"batch {batch}"] = {
                "over_ours": {name: round(value / medians["celr-ray"], 2) for name, value in medians.items()},
                "cpu_us_per_state": {name: round(value, 3) for name, value in medians.items()},
            }
        result["hidden " + " × ".join(map(str, hidden))] = rows
    return result


def measure_decisions(obs: np.ndarray, mask: np.ndarray, repeats: int) -> dict[str, Any]:
    """Time whole decisions: one by one with their spread, and in batches."""
    artefact = make_artefact(
        make_network((128, 128)), fit_support(obs), name="bench", algorithm="iql", decision="softmax"
    )
    meta = MetaPolicy(make_policy(artefact))
    named = {name: obs[0, column] for name, column in FEATURE_INDEX.items() if not name.startswith("previous")}
    allowed = [name for name, ok in zip(ACTIONS, mask[0], strict=True) if ok]
    result: dict[str, Any] = {"hidden": [128, 128], "target": {"one_us": 100, "batch_per_cpu_s": 200_000}}
    for what, call in {
        "one decision, state vector": lambda: meta.decide(obs[0], mask[0]),
        "one decision, features by name": lambda: meta.decide(named, allowed),
    }.items():
        cpu = [1e6 * time_call(lambda _, call=call: call(), None) for _ in range(repeats)]
        result[what] = {"cpu_us": round(statistics.median(cpu), 1), "wall": measure_spread(call)}
    for batch in (1024, 16384):
        states, masks = (np.tile(x, (batch // len(obs) + 1, 1))[:batch] for x in (obs, mask))
        rates = [batch / time_call(lambda _, s=states, m=masks: meta.decide_batch(s, m), None) for _ in range(repeats)]
        result[f"decisions per CPU second, batch {batch}"] = round(statistics.median(rates))
    return result


def measure_spread(call: Callable[[], Any], n: int = 5000) -> dict[str, float]:
    """Return median and 99th percentile of the wall time, µs."""
    taken = np.empty(n)
    for i in range(n):
        start = time.perf_counter_ns()
        call()
        taken[i] = (time.perf_counter_ns() - start) / 1000
    return {"median_us": round(float(np.median(taken)), 1), "p99_us": round(float(np.quantile(taken, 0.99)), 1)}


def play(seed: int, n_tasks: int, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    decisions = run_replay(random_bank(seed, n_tasks), policy, keep_decisions=True).decisions
    assert decisions is not None
    return decisions.obs, decisions.mask


def measure_support() -> list[dict[str, Any]]:
    """Return the share of states left to the heuristic, by what the support was learned from."""
    behavior = EpsilonSoft(HeuristicPolicy(), 0.2)
    held_out, _ = play(2, 1000, behavior)
    random = np.random.default_rng(0)
    both = held_out.copy()
    both[:, [FEATURE_INDEX["is_verified_passed"], FEATURE_INDEX["is_verified_failed"]]] = 1
    shown = {
        "held-out tasks": held_out,
        "random policy, other tasks": play(3, 500, RandomPolicy())[0],
        "heuristic, other tasks": play(3, 500, HeuristicPolicy())[0],
        "always-strong, other tasks (starts on a tier never started on)": play(3, 500, AlwaysStrong())[0],
        "cannot be: passed and failed": both,
        "cannot be: features of different states": held_out[
            random.integers(len(held_out), size=(5000, N_FEATURES)), np.arange(N_FEATURES)
        ],
        "cannot be: uniform": random.random((5000, N_FEATURES)),
    }
    rows = []
    for n_tasks in (30, 100, 300, 1000, 3000):
        trained, _ = play(1, n_tasks, behavior)
        support = fit_support(trained)
        rejected = {name: round(float(1 - support.contains(states).mean()), 4) for name, states in shown.items()}
        rows.append(
            {
                "tasks": n_tasks,
                "states": len(trained),
                "looks": support.facts["looks"],
                "share_left_to_heuristic": rejected,
            }
        )
    return rows


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each measurement")
    parser.add_argument("--out", default=None, help="JSON file for the results")
    options = parser.parse_args()
    obs, mask = play(1, 1000, EpsilonSoft(HeuristicPolicy(), 0.2))
    result = {
        "decisions": measure_decisions(obs, mask, options.repeats),
        "network": measure_networks(obs, options.repeats),
        "support": measure_support(),
        "command": f"python benchmarks/policy_inference.py --repeats {options.repeats}",
        "machine": describe_machine(),
        "versions": find_versions(sys.executable, ("celr-ray", "numpy", "onnxruntime", "torch", "ray")),
    }
    write_result(options.out, result)


if __name__ == "__main__":
    main()
