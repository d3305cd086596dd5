"""The decision process on a bank in plain Python, one episode at a time: the vectorised replay is measured against it.

Written from the rules, not from the vectorised code, so that equal results are evidence for both. It knows the default
way of replaying (`exhausted="mask"`) and the three policies below, and uses the bank's cells and shuffled orders as
they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from celr_ray.core.episodes import EndReason
from celr_ray.cortex.actions import Action
from celr_ray.cortex.evaluation.replay_run import ReplaySuite

WORD = 2**64 - 1
VERIFIER_STREAM = 0x5645524946494552
FRESH = 0

Chooser = Callable[["Episode", list[bool], float], Action]


def mix(*keys: int) -> int:
    """Combine 64-bit keys (SplitMix64's finaliser)."""
    mixed = 0x9E3779B97F4A7C15
    for key in keys:
        mixed = ((mixed ^ (key & WORD)) + 0x9E3779B97F4A7C15) & WORD
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & WORD
        mixed ^= mixed >> 31
    return mixed


def uniform(seed: int, *keys: int) -> float:
    """Return the number in [0, 1) of a seed and keys."""
    return (mix(seed, *keys) >> 11) / 2**53


@dataclass
class Episode:
    """One episode under way."""

    task: int
    replay: int
    key: int
    budget: float
    time_limit: float
    difficulty: float
    has_verifier: bool
    needs_code: bool
    tier: int
    spent: float
    elapsed: float
    attempts: list[int]
    used: dict[int, int] = field(default_factory=dict)
    decisions: int = 0
    attempt: int = -1
    context: int = -1
    is_call_failed: bool = False
    has_code: bool = False
    verified: int = -1
    answer_verifications: int = 0
    unsafe: bool = False
    answer_key: int = 0
    talk_key: int = 0
    seen: set[tuple[int, int, int, int]] = field(default_factory=set)
    reward: float = 0.0
    end: EndReason = EndReason.RUNNING


def make_tables(suite: ReplaySuite) -> Any:
    """Return the suite's arrays as lists, which plain Python reads faster."""
    columns = {name: value for name, value in vars(suite.columns).items() if name != "key"}
    arrays = {**vars(suite.cells), **columns, "attempt_key": suite.cells.key, "task_key": suite.columns.key}
    lists = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in arrays.items()}
    return SimpleNamespace(**lists, suite=suite, order=suite.order.tolist(), n_codes=len(suite.cells.column_of))


def run_scalar(suite: ReplaySuite, choose: Chooser, *, start_tier: int = 0) -> list[Episode]:
    """Run all episodes of a suite, one after another, ordered by task and replay."""
    tables = make_tables(suite)
    n, replays = len(suite.columns.key), suite.config.replays
    return [
        run_one(tables, choose, task, replay, range(suite.cells.n_tiers)[start_tier])
        for task in range(n)
        for replay in range(replays)
    ]


def run_one(tables: Any, choose: Chooser, task: int, replay: int, tier: int) -> Episode:
    """Run one episode to its end."""
    episode = Episode(
        task=task,
        replay=replay,
        key=mix(tables.task_key[task], replay),
        budget=tables.budget_usd[task],
        time_limit=tables.time_limit_s[task],
        difficulty=tables.difficulty[task],
        has_verifier=tables.has_verifier[task],
        needs_code=tables.needs_code[task],
        tier=tier,
        spent=tables.probe_usd[task],
        elapsed=tables.probe_s[task],
        attempts=[0] * tables.n_tiers,
    )
    while episode.end == EndReason.RUNNING:
        decide(tables, episode, choose)
    finish(tables, episode)
    return episode


def decide(tables: Any, episode: Episode, choose: Chooser) -> None:
    """Make one decision and carry it out."""
    config = tables.suite.config
    cells = next_cells(tables, episode)
    mask, own = make_masks(tables, episode, cells)
    action = choose(episode, mask, uniform(config.seed, episode.key, episode.decisions))
    if not mask[action]:
        raise ValueError(f"{action.name} is not allowed")
    before = shares(episode)
    is_forced = action == Action.ABORT and not any(mask[:5]) and any(own[:5])
    is_news = is_missing = False
    if action in cells and episode.used.get(cells[action][2], 0) >= count_records(tables, cells[action][2]):
        is_missing = True
    elif action in (Action.RECURSE, Action.ESCALATE, Action.RETRY_COMPRESSED):
        is_news = attempt(tables, episode, action, cells[action])
    elif action == Action.VERIFY:
        is_news = verify(tables, episode)
    repeated = is_news and note_state(episode)
    is_hopeless = episode.decisions == 0 and sum(mask) == 1
    episode.decisions += 1
    if repeated:
        episode.end = EndReason.REPEATED_STATE
    if episode.spent > episode.budget * (1 + 1e-9):
        episode.end = EndReason.OVER_BUDGET
    if action == Action.STOP:
        episode.end = EndReason.STOPPED
    if action == Action.ABORT:
        episode.end = EndReason.UNAFFORDABLE if is_hopeless else EndReason.ABORTED
    if is_forced or is_missing:
        episode.end = EndReason.CENSORED
    after = shares(episode)
    episode.reward += -(after[0] - before[0]) - (after[1] - before[1])


def target_tier(tables: Any, episode: Episode) -> int:
    """Return where ESCALATE leads."""
    rules = tables.suite.config.escalation
    left = max(episode.budget - episode.spent, 0.0) / episode.budget
    is_hard = episode.attempt < 0 and episode.difficulty >= rules.hard_difficulty and left >= rules.hard_budget
    return tables.n_tiers - 1 if is_hard else min(episode.tier + 1, tables.n_tiers - 1)


def next_cells(tables: Any, episode: Episode) -> dict[Action, tuple[int, int, int]]:
    """Return tier, context and cell (−1 = none) of each attempt that could follow."""
    target = target_tier(tables, episode)
    compressed = recurse = FRESH
    if not tables.suite.config.is_context_free and episode.context >= 0:
        truth = int(tables.success[episode.attempt]) if episode.attempt >= 0 else 0
        is_refuted = episode.verified == 0
        first_compressed = tables.n_codes - 3
        depth = (episode.context - 1) // 6 if 0 < episode.context < first_compressed else 0
        improve = 1 + (min(depth + 1, 255) * 3 + truth) * 2 + int(is_refuted)
        recurse = episode.context if episode.is_call_failed else improve
        compressed = first_compressed + truth if is_refuted else FRESH
    found = {}
    for action, tier, context in (
        (Action.RECURSE, episode.tier, recurse),
        (Action.ESCALATE, target, FRESH),
        (Action.RETRY_COMPRESSED, episode.tier, compressed),
    ):
        column = tables.column_of[context]
        cell = -1 if column < 0 else (episode.task * tables.n_tiers + tier) * tables.n_contexts + column
        found[action] = (tier, context, cell)
    return found


def make_masks(
    tables: Any, episode: Episode, cells: dict[Action, tuple[int, int, int]]
) -> tuple[list[bool], list[bool]]:
    """Return what is allowed, and what would be if every record that exists on the tier's kind were still there."""
    limits = tables.suite.config.limits
    answered = episode.attempt >= 0
    left = max(episode.budget - episode.spent, 0.0)
    may_go_on = episode.decisions < limits.decisions - 1 and episode.elapsed < episode.time_limit
    mask, own = [False] * 6, [False] * 6
    for action, (tier, context, _) in cells.items():
        is_possible = episode.attempts[tier] < limits.attempts_per_tier
        if action == Action.ESCALATE:
            is_possible &= tier > episode.tier
        if action == Action.RETRY_COMPRESSED:
            is_possible &= sum(episode.attempts) > 0
        kind = 0 if context == FRESH else 1 if context < tables.n_codes - 3 else 2
        found = [look(tables, episode, tier, context), look(tables, episode, tier, flip_truth(tables, context))]
        recorded = [price for price, count, _ in found if count > 0]
        price = max(recorded or [price for price, _, _ in found])
        is_known = tables.suite.config.is_context_free or tables.is_evaluable[tier][kind]
        own[action] = is_possible and may_go_on and is_known and price <= left
        mask[action] = own[action] and any(used < count for _, count, used in found)
    can_verify = (
        answered
        and episode.has_verifier
        and (episode.has_code or not episode.needs_code)
        and episode.verified == -1
        and episode.answer_verifications < limits.verifications_per_answer
        and may_go_on
    )
    verifier = tables.suite.config.verifier
    if verifier is not None:
        mask[Action.VERIFY] = own[Action.VERIFY] = can_verify and verifier.cost_usd <= left
    elif answered:
        price = tables.verification_usd[tables.tier[episode.attempt]]
        own[Action.VERIFY] = can_verify and not math.isnan(price) and price <= left
        mask[Action.VERIFY] = own[Action.VERIFY] and tables.is_verified[episode.attempt]
    mask[Action.STOP] = own[Action.STOP] = answered
    mask[Action.ABORT] = own[Action.ABORT] = True
    return mask, own


def flip_truth(tables: Any, context: int) -> int:
    """Return the context in which the earlier answer is right instead of wrong, or the other way round."""
    first_compressed = tables.n_codes - 3
    if context == FRESH:
        return FRESH
    if context >= first_compressed:
        truth = context - first_compressed
        return first_compressed + (1, 0, 2)[truth]
    depth_and_truth, is_refuted = divmod(context - 1, 2)
    depth, truth = divmod(depth_and_truth, 3)
    return 1 + (depth * 3 + (1, 0, 2)[truth]) * 2 + is_refuted


def count_records(tables: Any, cell: int) -> int:
    """Return how many attempts a cell holds; −1 = there is no such cell."""
    return tables.start[cell + 1] - tables.start[cell] if cell >= 0 else 0


def look(tables: Any, episode: Episode, tier: int, context: int) -> tuple[float, int, int]:
    """Return price, number of records and number of used ones of a context's cell."""
    row = (episode.task * tables.n_tiers + tier) * tables.n_contexts
    column = tables.column_of[context]
    if column < 0:
        return tables.quote_usd[row + tables.column_of[FRESH]], 0, 0
    cell = row + column
    return tables.quote_usd[cell], count_records(tables, cell), episode.used.get(cell, 0)


def attempt(tables: Any, episode: Episode, action: Action, place: tuple[int, int, int]) -> bool:
    """Draw an attempt; returns whether it gave an answer."""
    tier, context, cell = place
    used = episode.used.get(cell, 0)
    episode.used[cell] = used + 1
    drawn = tables.order[episode.replay][tables.start[cell] + used]
    last = mix(episode.answer_key, episode.verified + 1)
    if action == Action.RECURSE:
        episode.talk_key = mix(episode.talk_key, last) if episode.attempt >= 0 else episode.talk_key
    else:
        episode.talk_key = last if action == Action.RETRY_COMPRESSED and episode.verified == 0 else 0
    episode.tier = tier
    episode.attempts[tier] += 1
    episode.context = context
    episode.spent += tables.cost_usd[drawn]
    episode.elapsed += tables.seconds[drawn]
    episode.unsafe |= tables.unsafe[drawn]
    episode.is_call_failed = not tables.has_answer[drawn]
    if episode.is_call_failed:
        return False
    episode.attempt = drawn
    episode.has_code = tables.has_code[drawn]
    episode.verified = -1
    episode.answer_verifications = 0
    episode.answer_key = tables.answer_key[drawn]
    return True


def verify(tables: Any, episode: Episode) -> bool:
    """Verify the answer; returns whether a verdict came."""
    verifier = tables.suite.config.verifier
    if verifier is None:
        verdict = tables.verdict[episode.attempt]
        episode.spent += tables.verifier_cost_usd[episode.attempt]
        episode.elapsed += tables.verifier_seconds[episode.attempt]
    else:
        is_right = tables.success[episode.attempt] > 0
        rate = verifier.true_positive_rate if is_right else verifier.false_positive_rate
        key = mix(tables.attempt_key[episode.attempt], episode.replay, episode.answer_verifications, VERIFIER_STREAM)
        verdict = int(uniform(tables.suite.config.seed, key) < rate)
        episode.spent += verifier.cost_usd
        episode.elapsed += verifier.seconds
    episode.answer_verifications += 1
    episode.verified = verdict
    return bool(verdict != -1)


def note_state(episode: Episode) -> bool:
    """Note the state; returns whether it was there before."""
    state = (episode.tier, episode.answer_key, episode.verified, episode.talk_key)
    if state in episode.seen:
        return episode.attempt >= 0
    episode.seen.add(state)
    return False


def shares(episode: Episode) -> tuple[float, float]:
    """Return cost and time so far in units of budget and limit; 0 before the first decision."""
    if episode.decisions == 0:
        return 0.0, 0.0
    return min(episode.spent / episode.budget, 1.0), min(episode.elapsed / episode.time_limit, 1.0)


def finish(tables: Any, episode: Episode) -> None:
    """Add the reward of the end."""
    if episode.end == EndReason.CENSORED:
        episode.reward = math.nan
        return
    is_accepted = episode.end == EndReason.STOPPED
    success = tables.success[episode.attempt] if is_accepted and not episode.unsafe else 0.0
    correctness = tables.correctness[episode.attempt] if is_accepted else 0.0
    episode.reward += success + correctness - 100 * episode.unsafe - 100 * (1 - success)


def choose_cheap(episode: Episode, mask: list[bool], u: float) -> Action:
    """Always-cheap: the first answer of the cheapest tier."""
    wanted = Action.STOP if episode.attempt >= 0 else Action.RECURSE
    return wanted if mask[wanted] else Action.ABORT


def choose_random(episode: Episode, mask: list[bool], u: float) -> Action:
    """Return any allowed action with equal probability."""
    allowed = [action for action in Action if mask[action]]
    share = 1 / len(allowed)
    total = [share * (n + 1) for n in range(len(allowed))]
    return next((action for action, edge in zip(allowed, total, strict=True) if u * total[-1] < edge), allowed[-1])


def make_heuristic(suite: ReplaySuite) -> Chooser:
    """Return the static heuristic with the suite's thresholds."""
    rules, limits = suite.config.escalation, suite.config.limits

    def choose(episode: Episode, mask: list[bool], u: float) -> Action:
        budget = min(max(max(episode.budget - episode.spent, 0.0) / episode.budget, 0.0), 1.0)
        retries = max(episode.attempts[episode.tier] - 1, 0) / max(limits.attempts_per_tier - 1, 1)
        wanted: list[Action] = []
        if budget < rules.abort_budget:
            wanted.append(Action.ABORT)
        if episode.attempt < 0:
            is_hard = episode.difficulty >= rules.hard_difficulty and budget >= rules.hard_budget
            if is_hard or episode.difficulty >= rules.medium_difficulty:
                wanted.append(Action.ESCALATE)
            wanted.append(Action.RECURSE)
        elif episode.verified == -1:
            wanted += [Action.VERIFY] * episode.has_verifier + [Action.STOP]
        elif episode.verified == 1:
            wanted.append(Action.STOP)
        else:
            if episode.difficulty > rules.escalate_difficulty and retries > rules.escalate_retries:
                wanted.append(Action.ESCALATE)
            if retries > rules.compress_retries:
                wanted.append(Action.RETRY_COMPRESSED)
            if retries > rules.abort_retries:
                wanted.append(Action.ABORT)
            wanted.append(Action.RECURSE)
        return next((action for action in wanted if mask[action]), Action.ABORT)

    return choose
