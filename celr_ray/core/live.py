"""The live world: actions carried out by model tiers, verifiers and checkers.

In each wave the calls of all episodes are gathered, then sent as one batch to each tier, so that an offline engine
stays full. The checker runs after an episode's end, on every answer it gave; nothing of it reaches a prompt or a state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from celr_ray.core.calls import Call, Models, Reply, make_seed
from celr_ray.core.clients import CallFailure, Generation
from celr_ray.core.episodes import UNVERIFIED, Episodes, Outcomes, hash_text
from celr_ray.core.executor import Verdicts
from celr_ray.core.monitor import Monitor
from celr_ray.core.prompts import build_chat, first_chat
from celr_ray.core.tasks import Task
from celr_ray.core.transcript import Event, Transcript
from celr_ray.core.verifier import (
    AgreementCheck,
    CheckResult,
    ModelCheck,
    RuleCheck,
    agreement,
    has_code,
    parse_verdict,
    run_checks,
    verifier_messages,
)
from celr_ray.cortex.actions import ATTEMPTS, N_ACTIONS, Action, FloatArray, IntArray

__all__ = ["LiveWorld", "hash_text"]

_VERDICT_TOKENS = 16


class LiveWorld:
    """Carries out actions for the episodes of some tasks, and keeps what was said."""

    def __init__(
        self,
        tasks: Sequence[Task],
        models: Models,
        monitor: Monitor,
        *,
        system_prompt: str | None = None,
        seed: int = 0,
        allow_weak_sandbox: bool = False,
    ) -> None:
        """Prepare the world.

        Args:
            tasks: [B], in the order of the episodes.
            models: the tiers.
            monitor: tells what is unsafe.
            system_prompt: in front of every task; None = nothing.
            seed: of the models' sampling; the same task, tier and attempt get the same draw under every policy.
            allow_weak_sandbox: run tests even where files or network cannot be isolated.
        """
        self._models = models
        self._monitor = monitor
        self._system_prompt = system_prompt
        self._seed = seed
        self._allow_weak = allow_weak_sandbox
        self.transcripts = [Transcript(task) for task in tasks]
        self._attempts: dict[tuple[int, int], Call] = {}
        self._verifications: dict[int, list[Call]] = {}

    def quote_usd(self, episodes: Episodes, live: IntArray) -> FloatArray:
        """Return the worst-case price of each action, [K, A] US$, infinite where the prompt is too long."""
        quotes = np.zeros((len(live), N_ACTIONS))
        self._attempts = {(k, a): self._plan_attempt(episodes, live, k, a) for k in range(len(live)) for a in ATTEMPTS}
        self._verifications = {k: self._plan_verification(episodes, live, k) for k in range(len(live))}
        planned = [(key, [call]) for key, call in self._attempts.items()]
        planned += [((k, Action.VERIFY), calls) for k, calls in self._verifications.items()]
        flat = [(key, call) for key, calls in planned for call in calls]
        for (key, _), price in zip(flat, self._models.worst_case_usd([call for _, call in flat]), strict=True):
            quotes[key] += price
        return quotes

    def _plan_attempt(self, episodes: Episodes, live: IntArray, k: int, action: Action) -> Call:
        row = int(live[k])
        transcript = self.transcripts[row]
        last = transcript.last_attempt
        tier = int(episodes.target_tier(live[k : k + 1])[0]) if action == Action.ESCALATE else int(episodes.tier[row])
        chat = build_chat(
            action,
            (last.sent if last else None) or [],
            last.text if last else None,
            transcript.last_failure,
            transcript.task.prompt,
            self._system_prompt,
        )
        return Call(k, tier, chat, self._call_seed(episodes, row, tier, int(episodes.attempts[row, tier])))

    def _call_seed(self, episodes: Episodes, row: int, tier: int, attempt: int) -> int:
        return make_seed(self._seed, episodes.tasks.key[row : row + 1], tier, attempt)

    def _plan_verification(self, episodes: Episodes, live: IntArray, k: int) -> list[Call]:
        """Return the model calls that verifying the current answer takes; rules and tests take none."""
        row = int(live[k])
        transcript = self.transcripts[row]
        answer, check = transcript.last_answer, transcript.task.verifier
        if answer is None:
            return []
        if isinstance(check, ModelCheck):
            tier = int(episodes.tier[row]) if check.tier == "current" else self._models.ladder.index(check.tier)
            messages = verifier_messages(transcript.task.prompt, answer.text or "", check.question)
            seed = self._call_seed(episodes, row, tier, 1000 + int(episodes.verifications[row]))
            return [Call(k, tier, messages, seed, temperature=0.0, max_output_tokens=_VERDICT_TOKENS)]
        if isinstance(check, AgreementCheck):
            tier = int(episodes.tier[row])
            chat = first_chat(transcript.task.prompt, self._system_prompt)
            first = 2000 + int(episodes.verifications[row]) * check.n_samples
            seeds = [self._call_seed(episodes, row, tier, first + n) for n in range(check.n_samples - 1)]
            return [Call(k, tier, chat, seed, self._models.sampling_temperature(tier)) for seed in seeds]
        return []

    def act(self, episodes: Episodes, live: IntArray, actions: IntArray) -> Outcomes:
        """Do one action for each episode: model calls in one batch a tier, tests side by side."""
        outcomes = Outcomes.nothing(len(live))
        events = [Event(Action(int(action)).name) for action in actions]
        calls: list[Call] = []
        for k, action in enumerate(actions):
            if action in ATTEMPTS:
                calls.append(self._attempts[k, Action(int(action))])
            elif action == Action.VERIFY:
                calls += self._verifications[k]
        replies: dict[int, list[Reply]] = defaultdict(list)
        for call, reply in zip(calls, self._models.send(calls), strict=True):
            replies[call.position].append(reply)
            self._charge(outcomes, call, reply)
        for k, action in enumerate(actions):
            if action in ATTEMPTS:
                self._take_answer(events[k], outcomes, self._attempts[k, Action(int(action))], replies[k][0])
        verified = [k for k, action in enumerate(actions) if action == Action.VERIFY]
        self._verify(events, outcomes, live, verified, replies)
        for k, event in enumerate(events):
            outcomes.unsafe[k] |= bool(event.unsafe)
            self.transcripts[int(live[k])].events.append(event)
        return outcomes

    def _charge(self, outcomes: Outcomes, call: Call, reply: Reply) -> None:
        """Add what a call cost; the samples of one verification run side by side."""
        outcomes.seconds[call.position] = max(outcomes.seconds[call.position], reply.seconds)
        if isinstance(reply, CallFailure):
            return
        outcomes.cost_usd[call.position] += self._models.price_usd(call, reply)
        outcomes.prompt_tokens[call.position] += reply.prompt_tokens
        outcomes.output_tokens[call.position] += reply.output_tokens

    def _take_answer(self, event: Event, outcomes: Outcomes, call: Call, reply: Reply) -> None:
        tier = self._models.tier(call.tier)
        event.tier, event.sent = tier.name, call.chat
        if isinstance(reply, CallFailure):
            event.failure = f"{reply.kind}: {reply.reason}"
            return
        event.finish_reason = reply.finish_reason
        k = call.position
        outcomes.context_used[k] = reply.prompt_tokens / tier.context_window
        if not reply.text.strip():
            event.failure = "empty: the model wrote nothing"
            return
        event.text = reply.text
        event.unsafe = self._monitor.check_output(reply.text)
        outcomes.has_answer[k] = True
        outcomes.has_code[k] = has_code(reply.text)
        outcomes.answer_key[k] = hash_text(reply.text.strip())
        if reply.mean_logprob is not None:
            outcomes.confidence[k] = np.exp(reply.mean_logprob)

    def _verify(
        self,
        events: Sequence[Event],
        outcomes: Outcomes,
        live: IntArray,
        verified: Sequence[int],
        replies: Mapping[int, Sequence[Reply]],
    ) -> None:
        """Run the verifiers of the episodes at `verified`, positions in the wave."""
        by_rule: list[tuple[int, RuleCheck, str]] = []
        for k in verified:
            transcript = self.transcripts[int(live[k])]
            check, answer = transcript.task.verifier, transcript.last_answer
            text = "" if answer is None else answer.text or ""
            if isinstance(check, ModelCheck | AgreementCheck):
                events[k].tier = self._models.tier(self._verifications[k][0].tier).name
                _take_opinion(events[k], check, text, replies[k])
            elif check is not None:
                by_rule.append((k, check, text))
        results = run_checks([(check, text) for _, check, text in by_rule], allow_weak=self._allow_weak)
        for (k, _, _), result in zip(by_rule, results, strict=True):
            events[k].verification = result
            events[k].unsafe = self._monitor.check_sandbox(result.unsafe)
            outcomes.seconds[k] = result.seconds
        for k in verified:
            verification = events[k].verification
            outcomes.passed[k] = UNVERIFIED if verification is None else int(verification.passed)

    def check(self, episodes: Episodes) -> Verdicts:
        """Run the checkers on every answer; the last one of each episode counts."""
        answers = [
            (row, event, transcript.task.checker, event.text)
            for row, transcript in enumerate(self.transcripts)
            if transcript.task.checker is not None
            for event in transcript.events
            if event.text is not None
        ]
        checks = [(checker, text) for _, _, checker, text in answers]
        has_checker = np.array([transcript.task.checker is not None for transcript in self.transcripts], dtype=bool)
        success = np.where(has_checker, 0.0, np.nan)
        correctness = success.copy()
        unsafe = np.zeros(len(self.transcripts), dtype=bool)
        results = run_checks(checks, allow_weak=self._allow_weak)
        for (row, event, _, _), result in zip(answers, results, strict=True):
            event.check = result
            success[row], correctness[row] = float(result.passed), result.score
            violations = self._monitor.check_sandbox(result.unsafe)
            event.unsafe += violations
            unsafe[row] = bool(violations)  # answers that were replaced count only by what they did at run time
        return Verdicts(success, correctness, unsafe)


def _take_opinion(event: Event, check: ModelCheck | AgreementCheck, answer: str, replies: Sequence[Reply]) -> None:
    """Note what models said of an answer; where a call failed or the reply is unreadable, nothing is known of it."""
    failed = [reply for reply in replies if isinstance(reply, CallFailure)]
    if failed:
        event.failure = f"{failed[0].kind}: {failed[0].reason}"
        return
    said = [reply for reply in replies if isinstance(reply, Generation)]
    seconds = max(reply.seconds for reply in said)
    if isinstance(check, AgreementCheck):
        event.verification = replace(agreement(check, [answer, *(reply.text for reply in said)]), seconds=seconds)
        return
    verdict = parse_verdict(said[0].text)
    if verdict is None:
        event.failure = "unreadable: the verifier's reply holds no verdict"
        return
    reason = "" if verdict else "a second look found it wrong"
    event.verification = CheckResult(passed=verdict, score=float(verdict), reason=reason, seconds=seconds)
