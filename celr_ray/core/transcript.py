"""What was said and checked in one episode, decision by decision; numbers are in `executor.Decisions`."""

from __future__ import annotations

from dataclasses import dataclass, field

from celr_ray.core.prompts import Chat
from celr_ray.core.tasks import Task
from celr_ray.core.verifier import CheckResult

__all__ = ["Event", "Transcript"]


@dataclass
class Event:
    """One decision.

    Attributes:
        action: name of the action.
        tier: name of the tier it called; None = it called none.
        sent: messages of an attempt.
        text: what came back; None = no answer.
        failure: why a call gave none.
        finish_reason: why the model stopped.
        verification: what the verifier said, if it was run.
        check: what the checker says of this answer; filled in after the episode's end, for logs only.
        unsafe: rules that the monitor saw broken.
    """

    action: str
    tier: str | None = None
    sent: Chat | None = None
    text: str | None = None
    failure: str | None = None
    finish_reason: str | None = None
    verification: CheckResult | None = None
    check: CheckResult | None = None
    unsafe: tuple[str, ...] = ()

    @property
    def failure_kind(self) -> str | None:
        """The failure in one word: a `FailureKind`, "empty" or "unreadable"."""
        return None if self.failure is None else self.failure.split(":", 1)[0]


@dataclass
class Transcript:
    """All events of one task's episode."""

    task: Task
    events: list[Event] = field(default_factory=list)

    @property
    def last_attempt(self) -> Event | None:
        """The last event that called a model for an answer, whether it gave one or not."""
        return next((event for event in reversed(self.events) if event.sent is not None), None)

    @property
    def last_answer(self) -> Event | None:
        """The event of the current answer."""
        return next((event for event in reversed(self.events) if event.text is not None), None)

    @property
    def last_failure(self) -> str | None:
        """Why the verifier refuted the current answer, if it was run on it and did."""
        for event in reversed(self.events):
            if event.text is not None:
                return None
            if event.verification is not None:
                return None if event.verification.passed else event.verification.reason
        return None
