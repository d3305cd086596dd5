"""Replay of banks: against a plain loop in Python, against known figures, and what no policy may ever bring about."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from banks import ALL_TRAIN, add_fresh, make_parts, random_bank, tau_bench_bank
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celr_ray.config import BankConfig
from celr_ray.core.episodes import EndReason, Limits
from celr_ray.core.escalation import AlwaysCheap, AlwaysStrong, HeuristicPolicy
from celr_ray.cortex.actions import ATTEMPTS, N_ACTIONS, Action
from celr_ray.cortex.evaluation import replay_run
from celr_ray.cortex.evaluation.bank import Bank
from celr_ray.cortex.evaluation.bank_build import assemble_bank
from celr_ray.cortex.evaluation.baselines import (
    RandomMix,
    RetryThenEscalate,
    ThresholdCascade,
    make_baselines,
    tune_cascade,
)
from celr_ray.cortex.evaluation.estimators import estimate_values
from celr_ray.cortex.evaluation.oracle import find_hindsight_ceiling, find_leave_one_out_oracle
from celr_ray.cortex.evaluation.replay import ReplayConfig, SyntheticVerifier
from celr_ray.cortex.evaluation.replay_run import ReplayResults, prepare_replay, run_replay
from celr_ray.cortex.evaluation.replay_transitions import replay_to_transitions, write_replay_dataset
from celr_ray.cortex.policy import EpsilonSoft, RandomPolicy
from celr_ray.cortex.state import FEATURE_INDEX, N_FEATURES
from celr_ray.cortex.transitions import load_transitions, read_dataset_record, table_to_transitions, to_logged_episodes
from celr_ray.errors import InputError, PolicyError
from celr_ray.schema import TRANSITION_SCHEMA

PERFECT = SyntheticVerifier(true_positive_rate=1.0, false_positive_rate=0.0)


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


scalar = load_module(ROOT / "benchmarks" / "scalar_replay.py")

CONFIGS = st.builds(
    ReplayConfig,
    seed=st.integers(0, 2**32),
    replays=st.integers(1, 3),
    is_context_free=st.booleans(),
    verifier=st.sampled_from(
        [None, SyntheticVerifier(true_positive_rate=0.8, false_positive_rate=0.3, cost_usd=0.002, seconds=3)]
    ),
    limits=st.builds(
        Limits,
        attempts_per_tier=st.integers(1, 4),
        verifications_per_answer=st.integers(1, 2),
        decisions=st.integers(2, 12),
    ),
)


@settings(max_examples=25, deadline=None)
@given(bank_seed=st.integers(0, 100), n_tiers=st.integers(1, 3), config=CONFIGS)
@example(957012, 2, ReplayConfig(limits=Limits(attempts_per_tier=2, decisions=3)))  # unsafe, then censored
def test_replay_equals_a_plain_loop_in_python(bank_seed: int, n_tiers: int, config: ReplayConfig) -> None:
    suite = prepare_replay(random_bank(bank_seed, 12, n_tiers), None, config)
    policies = [
        (AlwaysCheap(), scalar.choose_cheap),
        (HeuristicPolicy(), scalar.make_heuristic(suite)),
        (RandomPolicy(), scalar.choose_random),
    ]
    for policy, choose in policies:
        results = run_replay(suite, policy)
        episodes = scalar.run_scalar(suite, choose)

        def figure(name: str, episodes: list = episodes, shape: tuple = results.success.shape) -> np.ndarray:
            return np.array([getattr(episode, name) for episode in episodes]).reshape(shape)

        assert (figure("end").astype(int) == results.end_reason).all()
        assert (figure("decisions") == results.n_decisions).all()
        assert (figure("unsafe") == results.unsafe).all()
        np.testing.assert_allclose(figure("spent"), results.cost_usd, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(figure("elapsed"), results.seconds, rtol=1e-12)
        np.testing.assert_allclose(figure("reward"), results.total_reward, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(bank_seed=st.integers(0, 100), exhausted=st.sampled_from(["mask", "censor"]), config=CONFIGS)
def test_no_policy_can_overspend_or_use_a_record_twice(bank_seed: int, exhausted: str, config: ReplayConfig) -> None:
    config = config.model_copy(update={"exhausted": exhausted})
    suite = prepare_replay(random_bank(bank_seed, 15), None, config)
    results = run_replay(suite, RandomPolicy(), keep_decisions=True)
    decisions = results.decisions
    n = len(results.task_ids)
    assert (results.cost_usd <= results.budget_usd[:, None] * (1 + 1e-9)).all()
    assert decisions.mask[np.arange(len(decisions.t)), decisions.action].all()
    assert (np.bincount(decisions.episode) == results.n_decisions.ravel()).all()
    assert results.success.shape == (n, config.replays)
    assert (np.isnan(results.success) == (results.censored & ~results.unsafe)).all()
    is_attempt = np.isin(decisions.action, ATTEMPTS) & (decisions.outcomes.cost_usd > 0)
    costs = list(zip(decisions.episode[is_attempt], decisions.outcomes.cost_usd[is_attempt], strict=True))
    assert len(costs) == len(set(costs)), "costs are all different, so a repeated one is a record used twice"
    assert (results.success[results.unsafe] == 0).all()
    low, high = results.success_bounds()
    assert ((low <= high) & (low >= 0) & (high <= 1)).all()


def test_chunks_and_company_change_nothing(monkeypatch):
    config = ReplayConfig(replays=3, seed=5)
    bank = random_bank(3)
    whole = run_replay(bank, RandomPolicy(), config=config, keep_decisions=True)
    monkeypatch.setattr(replay_run, "_CHUNK", 7)
    pieces = run_replay(bank, RandomPolicy(), config=config, keep_decisions=True)
    for name in ("success", "cost_usd", "end_reason", "total_reward"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))
    for name in ("episode", "t", "obs", "mask", "action", "reward"):
        np.testing.assert_array_equal(getattr(whole.decisions, name), getattr(pieces.decisions, name))
    part = run_replay(bank.select(task_ids=whole.task_ids[4:9]), RandomPolicy(), config=config)
    np.testing.assert_array_equal(part.cost_usd, whole.cost_usd[4:9])


def tau_results(data: Path, replays: int) -> ReplayResults:
    config = ReplayConfig(replays=replays, is_context_free=True, verifier=PERFECT)
    return run_replay(tau_bench_bank(data), RetryThenEscalate(), config=config, keep_decisions=True)


def test_retries_on_tau_bench_without_replacement_are_worth_half_of_independent_ones(data):
    results = tau_results(data, 400)
    decisions = results.decisions
    is_draw = np.isin(decisions.action, ATTEMPTS)
    right = np.zeros(results.success.size)
    first = is_draw & (decisions.t == 0)
    verdict = np.where(decisions.action == Action.VERIFY, decisions.outcomes.passed, -1)
    right[decisions.episode[decisions.t == 1]] = verdict[decisions.t == 1]
    assert first.sum() == 50 * 400
    marginal, within_two = right.mean(), results.success.mean()
    after_failure = results.success.ravel()[right == 0].mean()
    assert marginal == pytest.approx(0.420, abs=0.008)
    assert within_two == pytest.approx(0.567, abs=0.008)
    assert after_failure == pytest.approx(0.253, abs=0.012)
    independent = 1 - (1 - 0.42) ** 2
    assert independent == pytest.approx(0.664, abs=0.001), "were retries independent draws of the pool"
    rewards = np.array([[r["success"] for r in tau_rows(data, i)] for i in range(50)])
    pairs = [(a | b) for row in rewards for a, b in itertools.permutations(row, 2)]
    assert np.mean(pairs) == pytest.approx(0.567, abs=0.0005), "the exact value over all orders"


def tau_rows(data: Path, task: int) -> list[dict]:
    bank = tau_bench_bank(data)
    return [row for row in bank.attempts.to_pylist() if row["task_id"] == f"tau_bench/airline/{task}"]


def test_every_record_of_a_cell_is_the_first_draw_equally_often():
    parts = make_parts(1)
    for number, cost in enumerate((1.0, 2.0, 3.0, 4.0)):
        add_fresh(parts, "task/1", 0, [1], cost=cost, seed=number)
    results = run_replay(assemble_bank(parts, ALL_TRAIN), AlwaysCheap(), config=ReplayConfig(replays=4000))
    counts = np.bincount(results.cost_usd.ravel().astype(int))[1:]
    assert counts.sum() == 4000
    assert (((counts - 1000) ** 2) / 1000).sum() < 21.1, "χ² with 3 degrees of freedom, p > 1e-4"


def test_policies_meet_the_same_draws_and_noise():
    suite = prepare_replay(random_bank(11), None, ReplayConfig(replays=4, verifier=PERFECT))
    cheap = run_replay(suite, AlwaysCheap())
    retry = run_replay(suite, RetryThenEscalate(), keep_decisions=True).decisions
    is_one_call = cheap.n_decisions.ravel() == 2
    first = (retry.t == 0) & (retry.action == Action.RECURSE) & is_one_call[retry.episode]
    assert first.sum() > 50
    probe = np.repeat(suite.columns.probe_usd, 4)[retry.episode[first]]
    np.testing.assert_allclose(cheap.cost_usd.ravel()[retry.episode[first]], retry.outcomes.cost_usd[first] + probe)
    twice = run_replay(suite, HeuristicPolicy()), run_replay(suite, HeuristicPolicy())
    np.testing.assert_array_equal(twice[0].total_reward, twice[1].total_reward)
    other = run_replay(random_bank(11), AlwaysCheap(), config=ReplayConfig(replays=4, seed=1, verifier=PERFECT))
    assert (other.cost_usd != cheap.cost_usd).any()


def test_common_random_numbers_take_most_of_the_noise_out_of_a_comparison():
    bank, _ = simulated_bank(100, 6)

    def difference(seed_a: int, seed_b: int) -> float:
        results = [
            run_replay(bank, ThresholdCascade("difficulty", threshold), config=ReplayConfig(seed=seed))
            for threshold, seed in ((0.4, seed_a), (0.6, seed_b))
        ]
        return float(results[0].success.mean() - results[1].success.mean())

    paired = np.var([difference(seed, seed) for seed in range(100)])
    independent = np.var([difference(seed, 1000 + seed) for seed in range(100)])
    assert paired < 0.4 * independent


class Insist:
    """Asks for one action as long as it is allowed, then stops or gives up."""

    start_tier = 0
    name = "insist"
    content_hash = "insist"

    def __init__(self, action: Action) -> None:
        self._action = action

    def probabilities(self, obs: np.ndarray, mask: np.ndarray) -> np.ndarray:
        chosen = np.where(mask[:, self._action], int(self._action), np.where(mask[:, 4], 4, 5))
        return np.eye(N_ACTIONS)[chosen]


def few_records() -> Bank:
    parts = make_parts(2)
    for i in range(6):
        add_fresh(parts, f"task/{i}", 0, [0, 1])
        add_fresh(parts, f"task/{i}", 1, [1], cost=2.0)
    return assemble_bank(parts, BankConfig(validation_fraction=0, gate_fraction=0, default_budget_usd=100))


def test_used_up_records_are_masked_or_censor_the_episode():
    masked = run_replay(few_records(), FirstThen(Action.RETRY_COMPRESSED), keep_decisions=True)
    assert not masked.censored.any()
    assert (masked.cost_usd == 2.0).all(), "two records, each once"
    censored = run_replay(
        few_records(), FirstThen(Action.RETRY_COMPRESSED), config=ReplayConfig(exhausted="censor"), keep_decisions=True
    )
    assert censored.censored.all()
    assert (censored.end_reason == EndReason.CENSORED).all()
    assert np.isnan(censored.success).all()
    assert np.isnan(censored.total_reward).all()
    assert (censored.cost_usd == 2.0).all()
    assert [bound.mean() for bound in censored.success_bounds()] == [0, 1]
    assert [bound.mean() for bound in censored.cost_bounds()] == [2.0, 100.0]


class FirstThen(Insist):
    """Attempts, then insists."""

    def probabilities(self, obs: np.ndarray, mask: np.ndarray) -> np.ndarray:
        first = obs[:, FEATURE_INDEX["decisions"]] == 0
        rest = super().probabilities(obs, mask)
        return np.where(first[:, None], np.eye(N_ACTIONS)[0], rest)


@pytest.mark.parametrize("exhausted", ["mask", "censor"])
def test_reflection_that_was_never_recorded_is_not_evaluable(exhausted):
    results = run_replay(
        few_records(),
        FirstThen(Action.RECURSE),
        config=ReplayConfig(exhausted=exhausted, verifier=PERFECT),
        keep_decisions=True,
    )
    assert not results.censored.any()
    assert not results.decisions.mask[results.decisions.t > 0, Action.RECURSE].any()
    free = run_replay(
        few_records(),
        FirstThen(Action.RECURSE),
        config=ReplayConfig(exhausted=exhausted, is_context_free=True),
    )
    assert (free.cost_usd == 2.0).all()
    assert free.censored.all() == (exhausted == "censor")


def test_an_episode_is_censored_when_missing_records_leave_nothing_but_giving_up():
    parts = make_parts(1)
    for i in range(5):
        add_fresh(parts, f"task/{i}", 0, [0], has_answer=False)
    results = run_replay(assemble_bank(parts, ALL_TRAIN), Insist(Action.RECURSE))
    assert results.censored.all(), "the call failed, and no further one was recorded"
    add_fresh(parts, "task/0", 0, [1], seed=1)
    results = run_replay(assemble_bank(parts, ALL_TRAIN), Insist(Action.RECURSE))
    assert not results.censored[0, 0]
    assert results.success[0, 0] == 1
    assert results.censored[1:].all()


def test_reflection_goes_on_from_the_recorded_depth_and_truth():
    parts = make_parts(1)
    add_fresh(parts, "task/1", 0, [0])
    made_from = {"kind": "reflective", "prior_success": False, "prior_refuted": True}
    for depth, success in ((1, 0), (2, 0), (3, 1)):
        add_fresh(parts, "task/1", 0, [success], **made_from, depth=depth)
    config = BankConfig(validation_fraction=0, gate_fraction=0, default_budget_usd=100)
    for seed in range(5):
        results = run_replay(
            assemble_bank(parts, config),
            HeuristicPolicy(),
            config=ReplayConfig(seed=seed, verifier=PERFECT, limits=Limits(attempts_per_tier=8)),
        )
        assert results.success[0, 0] == 1
        assert results.cost_usd[0, 0] == 4.0, "the success comes where it was recorded, never earlier"


def refuting_bank() -> Bank:
    """Make a bank of a right and a wrong first answer of each task; only the wrong ones were ever reflected on."""
    parts = make_parts(1)
    made_from = {"kind": "reflective", "prior_success": False, "prior_refuted": True}
    for i in range(40):
        add_fresh(parts, f"task/{i:02d}", 0, [0, 1])
        add_fresh(parts, f"task/{i:02d}", 0, [1], **made_from, depth=1, cost=3.0)
    return assemble_bank(parts, BankConfig(validation_fraction=0, gate_fraction=0, default_budget_usd=100))


def test_a_mask_does_not_tell_whether_the_answer_is_right():
    config = ReplayConfig(verifier=SyntheticVerifier(true_positive_rate=0.0, false_positive_rate=0.0))
    results = run_replay(refuting_bank(), VerifyThen([Action.RECURSE, Action.STOP]), config=config, keep_decisions=True)
    made = results.decisions
    assert made.mask[made.t == 2, Action.RECURSE].all(), "else it is allowed exactly where the answer is wrong"
    right = results.censored[:, 0]
    assert 5 < right.sum() < 35, "no right answer was reflected on: nobody knows what becomes of it"
    assert (results.success[~right] == 1).all()


class VerifyThen(Insist):
    """Attempts, verifies, then insists."""

    def __init__(self, order: list[Action]) -> None:
        super().__init__(order[0])
        self._order = order

    def probabilities(self, obs: np.ndarray, mask: np.ndarray) -> np.ndarray:
        t = np.rint(obs[:, FEATURE_INDEX["decisions"]] * 32).astype(int)
        wanted = [{0: [Action.RECURSE], 1: [Action.VERIFY], 2: self._order}.get(k, [Action.STOP]) for k in t]
        return np.eye(N_ACTIONS)[[next(a for a in w if m[a]) for w, m in zip(wanted, mask, strict=True)]]


def test_recorded_verdicts_are_used_and_synthetic_ones_have_their_rates():
    parts = make_parts(1)
    for i in range(400):
        right = i % 2
        add_fresh(parts, f"task/{i}", 0, [right], verifier_passed=bool(i % 4 == 1), verifier_cost_usd=0.5)
        parts.tasks[f"task/{i}"].has_verifier = True
    bank = assemble_bank(parts, BankConfig(validation_fraction=0, gate_fraction=0, default_budget_usd=10))
    recorded = run_replay(bank, RetryThenEscalate(), keep_decisions=True).decisions
    is_verify = recorded.action == Action.VERIFY
    assert (recorded.outcomes.passed[is_verify].mean(), recorded.outcomes.cost_usd[is_verify].max()) == (0.25, 0.5)
    verifier = SyntheticVerifier(true_positive_rate=0.9, false_positive_rate=0.3)
    config = ReplayConfig(replays=20, verifier=verifier)
    drawn = run_replay(bank, RetryThenEscalate(), config=config, keep_decisions=True)
    made = drawn.decisions
    is_verify = made.action == Action.VERIFY
    right = np.array([int(task.split("/")[1]) % 2 for task in drawn.task_ids])[made.episode[is_verify] // 20]
    passed = made.outcomes.passed[is_verify]
    assert passed[right == 1].mean() == pytest.approx(0.9, abs=0.02)
    assert passed[right == 0].mean() == pytest.approx(0.3, abs=0.03)


def test_tasks_with_holes_are_left_out_and_counted():
    parts = make_parts(2)
    add_fresh(parts, "task/whole", 0, [1])
    add_fresh(parts, "task/whole", 1, [1])
    add_fresh(parts, "task/hole", 0, [1])
    results = run_replay(assemble_bank(parts, ALL_TRAIN), AlwaysCheap())
    assert (results.task_ids, results.n_incomplete) == (["task/whole"], 1)
    add_fresh(parts, "task/gone", 0, [1])
    with pytest.raises(InputError, match="no split"):
        run_replay(assemble_bank(parts, ALL_TRAIN), AlwaysCheap(), split="test")
    with pytest.raises(InputError, match="none of the 0 tasks"):
        run_replay(assemble_bank(parts, ALL_TRAIN), AlwaysCheap(), split="gate")


def simulated_bank(n_tasks: int, n_records: int, seed: int = 0) -> tuple[Bank, np.ndarray]:
    """Make a bank of two tiers with known chances of success, [n, 2]; difficulty tells the cheap one's."""
    random = np.random.default_rng(seed)
    parts = make_parts(2)
    chances = np.column_stack([random.random(n_tasks), random.uniform(0.5, 1, n_tasks)])
    for i, (weak, strong) in enumerate(chances):
        task = f"task/{i:05d}"
        add_fresh(parts, task, 0, random.random(n_records) < weak, cost=1.0)
        add_fresh(parts, task, 1, random.random(n_records) < strong, cost=10.0)
        parts.tasks[task].difficulty = float(np.clip(1 - weak + random.normal(0, 0.1), 0, 1))
        parts.tasks[task].is_difficulty_known = True
    return assemble_bank(parts, BankConfig(default_budget_usd=40.0)), chances


def test_the_leave_one_out_oracle_nears_the_best_known_tier_and_never_sees_its_own_draw():
    bank, chances = simulated_bank(600, 60)
    suite = prepare_replay(bank, None, ReplayConfig(replays=5))
    oracle = find_leave_one_out_oracle(suite)
    assert oracle.is_defined.all()
    best = chances.max(axis=1).mean()
    assert oracle.success.mean() == pytest.approx(best, abs=0.025)
    assert oracle.success.mean() > run_replay(suite, AlwaysStrong()).success.mean() + 0.02
    one, _ = simulated_bank(20, 1)
    single = find_leave_one_out_oracle(prepare_replay(one))
    assert not single.is_defined.any()
    assert np.isnan(single.success).all()
    noise = make_parts(2)
    random = np.random.default_rng(1)
    for i in range(3000):
        for tier in (0, 1):
            add_fresh(noise, f"task/{i}", tier, random.random(3) < 0.5)
    blind = find_leave_one_out_oracle(prepare_replay(assemble_bank(noise, ALL_TRAIN), None, ReplayConfig(replays=3)))
    assert blind.success.mean() == pytest.approx(0.5, abs=0.03), "with nothing to know, it knows nothing"
    ceiling = find_hindsight_ceiling(prepare_replay(assemble_bank(noise, ALL_TRAIN)))
    assert ceiling.success.mean() > 0.9, "hindsight picks luck"


@settings(max_examples=20, deadline=None)
@given(bank_seed=st.integers(0, 50))
def test_no_policy_passes_the_hindsight_ceiling(bank_seed: int) -> None:
    suite = prepare_replay(random_bank(bank_seed, 20), None, ReplayConfig(replays=2, verifier=PERFECT))
    ceiling = find_hindsight_ceiling(suite)
    for policy in (RandomPolicy(), RetryThenEscalate(), HeuristicPolicy(), AlwaysStrong()):
        results = run_replay(suite, policy)
        won = results.success == 1
        assert (ceiling.success[won] == 1).all()
        assert (ceiling.cost_usd[won] <= results.cost_usd[won] + 1e-12).all()


def test_the_random_mix_lies_on_the_line_between_cheap_and_strong():
    bank, _ = simulated_bank(400, 2)
    suite = prepare_replay(bank, None, ReplayConfig(replays=20))
    cheap, strong = run_replay(suite, AlwaysCheap()), run_replay(suite, AlwaysStrong())
    for share in (0.0, 0.3, 1.0):
        mix = run_replay(suite, RandomMix(share))
        line = (1 - share) * cheap.cost_usd.mean() + share * strong.cost_usd.mean()
        assert mix.cost_usd.mean() == pytest.approx(line, rel=0.03)
        line = (1 - share) * cheap.success.mean() + share * strong.success.mean()
        assert mix.success.mean() == pytest.approx(line, abs=0.02)
    with pytest.raises(PolicyError, match="share_strong"):
        RandomMix(1.5)


def test_the_cascade_is_tuned_on_training_tasks_within_the_cost_and_beats_the_mix():
    bank, _ = simulated_bank(1500, 2)
    config = ReplayConfig(replays=3)
    tuned = tune_cascade(bank, max_cost_usd=5.0, config=config)
    assert tuned.is_within_cost
    assert tuned.policy.signal == "difficulty"
    assert tuned.chosen.cost_usd <= 5.0
    gate = prepare_replay(bank, "gate", config)
    cascade = run_replay(gate, tuned.policy)
    assert cascade.cost_usd.mean() == pytest.approx(5.0, rel=0.15)
    mix = run_replay(gate, RandomMix((cascade.cost_usd.mean() - 1) / 9))
    assert cascade.success.mean() > mix.success.mean() + 0.05
    names = [policy.name for policy in make_baselines(prepare_replay(bank, "train", config), max_cost_usd=5.0)]
    assert [name.split(" ")[0] for name in names] == [
        "always-cheap", "always-strong", "random-mix", "heuristic", "retry-then-escalate", "cascade",
    ]  # fmt: skip
    poor = tune_cascade(bank, max_cost_usd=0.5, config=config)
    assert not poor.is_within_cost
    assert poor.chosen.cost_usd == pytest.approx(1.0)


def test_cascades_on_confidence_and_probe_read_their_signals():
    obs = np.zeros((4, N_FEATURES))
    mask = np.ones((4, N_ACTIONS), dtype=bool)
    obs[:, FEATURE_INDEX["has_answer"]] = 1
    obs[:3, FEATURE_INDEX["is_confidence_known"]] = 1
    obs[:, FEATURE_INDEX["confidence"]] = [0.9, 0.5, 0.2, 0.9]
    chosen = ThresholdCascade("confidence", 0.5).probabilities(obs, mask).argmax(axis=1)
    assert chosen.tolist() == [Action.STOP, Action.ESCALATE, Action.ESCALATE, Action.ESCALATE]
    obs = np.zeros((4, N_FEATURES))
    obs[:3, FEATURE_INDEX["is_probed"]] = 1
    obs[:, FEATURE_INDEX["probe_agreement"]] = [1, 1, 0, 0]
    obs[:, FEATURE_INDEX["probe_confidence"]] = [0.9, 0.3, 0.9, 0]
    chosen = ThresholdCascade("probe", 0.5).probabilities(obs, mask).argmax(axis=1)
    assert chosen.tolist() == [Action.RECURSE, Action.ESCALATE, Action.ESCALATE, Action.RECURSE]


def test_transitions_keep_rewards_masks_and_probabilities():
    config = ReplayConfig(replays=3, exhausted="censor")
    results = run_replay(random_bank(5), EpsilonSoft(HeuristicPolicy(), 0.3), config=config, keep_decisions=True)
    assert 0 < results.censored.sum() < results.censored.size
    table = replay_to_transitions(results)
    assert table.schema.equals(TRANSITION_SCHEMA)
    rows = table.to_pylist()
    by_episode = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["eps_id"])]
    assert len(by_episode) == len({row["eps_id"] for row in rows}) == (~results.censored).sum()
    rewards = results.total_reward[~results.censored]
    for episode, reward in zip(by_episode, rewards, strict=True):
        assert [row["t"] for row in episode] == list(range(len(episode)))
        assert episode[0]["return_to_go"] == pytest.approx(reward)
        assert episode[-1]["return_to_go"] == episode[-1]["rewards_raw"]
        assert [row["terminateds"] for row in episode] == [False] * (len(episode) - 1) + [True]
        for row, after in itertools.pairwise(episode):
            assert row["new_obs"] == after["obs"]
        assert np.flatnonzero(episode[-1]["new_obs"]).tolist() == [N_FEATURES + Action.ABORT]
        for row in episode:
            assert row["obs"][N_FEATURES + row["actions"]] == 1
            assert row["action_prob"] == row["behavior"][row["actions"]] > 0
            assert row["rewards"] == pytest.approx(row["rewards_raw"] / 100, rel=1e-6)
    again = run_replay(random_bank(5), EpsilonSoft(HeuristicPolicy(), 0.3), config=config)
    with pytest.raises(InputError, match="keep_decisions"):
        replay_to_transitions(again)


def test_off_policy_estimates_from_a_replay_agree_with_the_replay_itself():
    bank, _ = simulated_bank(400, 2)
    suite = prepare_replay(bank, None, ReplayConfig(replays=5))
    behavior = EpsilonSoft(RandomMix(0.4), 0.3)
    table = replay_to_transitions(run_replay(suite, behavior, keep_decisions=True))
    logged = to_logged_episodes(table_to_transitions(table))
    target = RandomMix(0.7)
    truth = run_replay(suite, target).total_reward.mean()
    evaluation = target.probabilities(logged.obs, logged.mask)
    for name, estimate in estimate_values(logged, evaluation).items():
        assert estimate.value == pytest.approx(truth, abs=6.0), name
    own = estimate_values(logged, logged.behavior)["is"].value
    assert own == pytest.approx(np.array(table["return_to_go"])[logged.t == 0].mean())


def test_a_replay_becomes_a_dataset_without_the_gates_tasks(tmp_path):
    bank, _ = simulated_bank(200, 2)
    config = ReplayConfig(replays=2)
    behavior = EpsilonSoft(HeuristicPolicy(), 0.2)
    parts = {
        split: run_replay(bank, behavior, split=split, config=config, keep_decisions=True)
        for split in ("train", "validation", "gate")
    }
    record = write_replay_dataset(str(tmp_path), parts["train"], parts["validation"])
    assert read_dataset_record(str(tmp_path)) == record
    for split in ("train", "validation"):
        read = load_transitions(str(tmp_path), split)
        assert len(read) == record["transitions"][split]
        assert set(read.task_id) == set(parts[split].task_ids)
        assert read.return_to_go[read.t == 0].sum() == pytest.approx(parts[split].total_reward.sum())
        in_order = [task for task in parts[split].task_ids for _ in range(2)]
        assert (list(read.task_id) == in_order) == (split == "validation")
    with pytest.raises(PolicyError, match="not gate"):
        write_replay_dataset(str(tmp_path), parts["gate"], parts["validation"])


class Doubtful(AlwaysCheap):
    """Leaves every decision on a task of difficulty above one half to a simpler policy."""

    def is_fallback(self, obs: np.ndarray) -> np.ndarray:
        return obs[:, FEATURE_INDEX["difficulty"]] > 0.5


def test_decisions_left_to_a_simpler_policy_are_counted():
    suite = prepare_replay(random_bank(4))
    results = run_replay(suite, Doubtful())
    assert (results.fallback[:, 0] == (suite.columns.difficulty > 0.5)).all()
    assert (results.n_fallbacks == results.n_decisions * results.fallback).all()
    assert not run_replay(suite, AlwaysCheap()).fallback.any()
