"""Importer of the executor's own logs: what every call of a model led to, of any policies, merged.

The checker judges every answer of an episode, accepted or not, so each attempt is a row with its own outcome. Runs of
several policies with one seed meet the same draws: an attempt that stands in several logs counts once, and takes its
verification from whichever log has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from celr_ray.core.episodes import hash_text
from celr_ray.core.models import TierLadder
from celr_ray.core.verifier import has_code
from celr_ray.cortex.actions import Action
from celr_ray.cortex.evaluation.bank import BankTier
from celr_ray.cortex.evaluation.bank_rows import BankParts, TaskFacts, make_attempt
from celr_ray.cortex.evaluation.bank_sources import reject_value
from celr_ray.cortex.state import FEATURE_INDEX, SCHEMA_HASH
from celr_ray.errors import ConfigError, InputError, RecordError
from celr_ray.logs.framing import FileRange, LineCounter, iter_values
from celr_ray.logs.planning import find_files

__all__ = ["import_logs"]

_MAX_RECORD_BYTES = 256 * 2**20
_IDENTITY = ("task_id", "tier", "kind", "depth", "prior_success", "prior_refuted", "seed", "attempt", "answer_key")
_NO_CHECKER = "the task has no checker, so outcomes are not known"


def import_logs(uris: Sequence[str], ladder: TierLadder | None = None) -> BankParts:
    """Read logs of `celr-ray execute`.

    Args:
        uris: files, folders or globs.
        ladder: the tiers they ran on, for prices and worst cases; None = the costs as recorded, and the highest of a
            tier as its worst case.

    Raises:
        InputError: no file, no usable log, or logs of different ladders.
        ConfigError: the ladder is another than the logs'.
    """
    merge = _Merge(BankParts(tiers=[]), ladder)
    for file in find_files(uris):
        counter = LineCounter()
        for value in iter_values(FileRange(file.uri), _MAX_RECORD_BYTES, counter):
            merge.parts.rows_in += 1
            try:
                if value.damage is not None:
                    raise RecordError(value.damage)
                merge.add(_read_document(value.raw))
            except RecordError as error:
                rejected = reject_value(file.uri, value.offset, counter.line, None, str(error), value.raw)
                merge.parts.rejected.append(rejected)
    return merge.finish(uris)


@dataclass(frozen=True)
class _Log:
    """One log as far as a bank needs it."""

    task_id: str
    run: Mapping[str, Any]
    episode: Mapping[str, Any]
    decisions: Sequence[Mapping[str, Any]]
    texts: Sequence[str | None]


def _read_document(raw: bytes | memoryview) -> _Log:
    """Read one ATIF document.

    Raises:
        RecordError: it is none of the executor's, or of another version of the state.
    """
    try:
        document = msgspec.json.decode(raw)
        run = document["extra"]["celr"]
        episode = run["episode"]
        steps = [(step.get("extra") or {}).get("celr") or {} for step in document["steps"]]
        found = [
            (own["decision"], step) for own, step in zip(steps, document["steps"], strict=True) if "decision" in own
        ]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise RecordError(f"no log of celr-ray execute: {type(error).__name__} {error}") from error
    if episode.get("state_schema") != SCHEMA_HASH:
        raise RecordError(f"states of schema {episode.get('state_schema')}, this version reads {SCHEMA_HASH}")
    decisions = [decision for decision, _ in found]
    if not decisions or [decision["t"] for decision in decisions] != list(range(len(decisions))):
        raise RecordError("its decisions are not numbered from 0 without gaps")
    texts = [step["message"] if step["source"] == "agent" else None for _, step in found]
    return _Log(run["task_id"], run, episode, decisions, texts)


class _Merge:
    """Puts the attempts of logs into one bank."""

    def __init__(self, parts: BankParts, ladder: TierLadder | None) -> None:
        self.parts = parts
        self._ladder = ladder
        self._tiers: list[str] | None = None
        self._known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def add(self, log: _Log) -> None:
        """Add the attempts of a log.

        Raises:
            RecordError: a field is missing.
            InputError: another ladder than the logs before it.
        """
        if self._tiers is None:
            self._tiers = list(log.episode["tiers"])
            self._check_ladder(self._tiers)
        if list(log.episode["tiers"]) != self._tiers:
            raise InputError(
                f"logs of different ladders cannot share a bank: {self._tiers} and {log.episode['tiers']} "
                f"(task {log.task_id!r})"
            )
        try:
            rows = list(_attempts(log, self._ladder))
            facts = _facts(log)
        except (KeyError, TypeError, IndexError) as error:
            raise RecordError(f"a decision lacks a field: {type(error).__name__} {error}") from error
        if not rows:
            self.parts.exclude(_NO_CHECKER if log.episode["success"] is None else "no attempt was made")
            return
        self._merge_facts(log.task_id, facts)
        for row in rows:
            self._merge_attempt(row)

    def _check_ladder(self, tiers: Sequence[str]) -> None:
        if self._ladder is not None and [tier.name for tier in self._ladder.tiers] != list(tiers):
            names = ", ".join(tier.name for tier in self._ladder.tiers)
            raise ConfigError(f"the logs ran on the tiers {', '.join(tiers)}, the ladder given has {names}")

    def _merge_facts(self, task_id: str, facts: TaskFacts) -> None:
        known = self.parts.tasks.setdefault(task_id, facts)
        known.has_verifier |= facts.has_verifier
        if facts.budget_usd is not None:
            known.budget_usd = max(known.budget_usd or 0.0, facts.budget_usd)
        if known.probe is None:
            known.probe = facts.probe

    def _merge_attempt(self, row: dict[str, Any]) -> None:
        key = tuple(row[name] for name in _IDENTITY)
        known = self._known.setdefault(key, row)
        if known is row:
            self.parts.attempts.append(row)
            return
        self.parts.duplicates += 1
        if known["verifier_cost_usd"] is None:
            known.update({name: row[name] for name in row if name.startswith("verifier_")})

    def finish(self, uris: Sequence[str]) -> BankParts:
        """Return all that was found.

        Raises:
            InputError: no attempt with an outcome.
        """
        parts = self.parts
        if not parts.attempts:
            first = f"; the first record: {parts.rejected[0].reason}" if parts.rejected else ""
            raise InputError(f"no attempt with a known outcome in {', '.join(uris)}{first}")
        tiers = {tier.name: tier for tier in self._ladder.tiers} if self._ladder else {}
        parts.tiers = [
            BankTier(name, tiers[name].model, tiers[name].input_usd_per_mtok, tiers[name].output_usd_per_mtok)
            if name in tiers
            else BankTier(name)
            for name in self._tiers or ()
        ]
        parts.notes = {"origin": "logs of celr-ray execute", "costs": "as recorded"}
        return parts


def _facts(log: _Log) -> TaskFacts:
    """Return what was known before the first call; flags are in the first state."""
    first = log.decisions[0]["obs"]
    episode = log.episode
    is_coding, has_verifier = (first[FEATURE_INDEX[name]] > 0.5 for name in ("is_coding", "has_verifier"))
    return TaskFacts(
        domain=log.run.get("domain"),
        text=log.run.get("prompt"),
        difficulty=episode["difficulty"],
        is_difficulty_known=episode["is_difficulty_known"],
        risk=episode["risk"],
        is_coding=is_coding,
        has_verifier=has_verifier,
        needs_code=is_coding and has_verifier,
        budget_usd=log.run.get("budget_limit_usd"),
        time_limit_s=episode["time_limit_s"],
        probe=episode.get("probe"),
    )


def _attempts(log: _Log, ladder: TierLadder | None) -> list[dict[str, Any]]:
    """Return the attempts of a log as rows; none if there is no checker."""
    rows: list[dict[str, Any]] = []
    talk = _Talk()
    numbers: dict[str, int] = {}
    current: dict[str, Any] | None = None
    for n, decision in enumerate(log.decisions):
        action = decision["action"]
        if action == Action.VERIFY.name and current is not None:
            talk.verify(decision)
            current.update(_verification(decision))
        if action not in _ATTEMPT_NAMES:
            continue
        tier = decision["tier"]
        number = numbers.get(tier, 0)
        numbers[tier] = number + 1
        made_from = talk.attempt(action)
        following = log.decisions[n + 1]["obs"] if n + 1 < len(log.decisions) else None
        row = _attempt_row(log, decision, log.texts[n], following, number, made_from, ladder)
        talk.answer(row)
        if row["success"] is None:
            return []
        rows.append(row)
        if row["has_answer"]:
            current = row
    return rows


_ATTEMPT_NAMES = (Action.RECURSE.name, Action.ESCALATE.name, Action.RETRY_COMPRESSED.name)


class _Talk:
    """Follows what an attempt is made from, by the rules of `prompts.build_chat`."""

    def __init__(self) -> None:
        self._made_from: dict[str, Any] | None = None
        self._is_call_failed = False
        self._success: bool | None = None
        self._is_refuted = False

    def attempt(self, action: str) -> dict[str, Any]:
        """Return the columns of an attempt's context."""
        fresh = {"kind": "fresh", "depth": 0, "prior_success": None, "prior_refuted": False}
        if action == Action.RETRY_COMPRESSED.name and self._is_refuted:
            made_from = {"kind": "compressed", "depth": 0, "prior_success": self._success, "prior_refuted": True}
        elif action != Action.RECURSE.name or self._made_from is None:
            made_from = fresh
        elif self._is_call_failed:
            made_from = self._made_from
        else:
            made_from = {
                "kind": "reflective",
                "depth": self._made_from["depth"] + 1,
                "prior_success": self._success,
                "prior_refuted": self._is_refuted,
            }
        self._made_from = made_from
        return made_from

    def answer(self, row: Mapping[str, Any]) -> None:
        """Note whether the attempt gave an answer, and a right one."""
        self._is_call_failed = not row["has_answer"]
        if row["has_answer"]:
            self._success, self._is_refuted = row["success"], False

    def verify(self, decision: Mapping[str, Any]) -> None:
        """Note whether the verifier refuted the answer."""
        verdict = decision["verification"]
        self._is_refuted = verdict is not None and not verdict["passed"]


def _attempt_row(
    log: _Log,
    decision: Mapping[str, Any],
    text: str | None,
    following: Sequence[float] | None,
    number: int,
    made_from: Mapping[str, Any],
    ladder: TierLadder | None,
) -> dict[str, Any]:
    """Return the row of one attempt; `success` is None without a checker, False where the call gave no answer."""
    check = decision["check"]
    has_answer = text is not None
    prompt_tokens = int(decision["prompt_tokens"])
    known = following is not None and following[FEATURE_INDEX["is_confidence_known"]] > 0.5
    row = make_attempt(
        log.task_id,
        decision["tier"],
        success=bool(check["passed"]) if check else False,
        cost_usd=float(decision["cost_usd"]),
        source=log.episode["policy_hash"],
        **made_from,
        attempt=number,
        seed=log.episode["seed"],
        correctness=float(check["score"]) if check else 0.0,
        has_answer=has_answer,
        has_code=has_answer and has_code(text or ""),
        answer_key=hash_text((text or "").strip()),
        confidence=following[FEATURE_INDEX["confidence"]] if known and has_answer and following else None,
        context_used=following[FEATURE_INDEX["context_used"]] if following else 0.0,
        quote_usd=_quote(ladder, decision["tier"], prompt_tokens),
        seconds=float(decision["seconds"]),
        prompt_tokens=prompt_tokens,
        output_tokens=int(decision["output_tokens"]),
        unsafe=bool(decision["unsafe"]),
    )
    if has_answer and check is None:
        row["success"] = None
    return row


def _quote(ladder: TierLadder | None, tier: str, prompt_tokens: int) -> float | None:
    """Return the worst case that the executor checked; a failed call has counted no tokens, so its is not known."""
    if ladder is None or not prompt_tokens:
        return None
    return float(ladder.tiers[ladder.index(tier)].worst_case_usd(prompt_tokens))


def _verification(decision: Mapping[str, Any]) -> dict[str, Any]:
    verdict = decision["verification"]
    return {
        "verifier_passed": None if verdict is None else bool(verdict["passed"]),
        "verifier_cost_usd": float(decision["cost_usd"]),
        "verifier_seconds": float(decision["seconds"]),
    }
