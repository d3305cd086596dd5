"""The criteria of a gate, task by task in the preset order; all must hold, so none needs a correction for the others.

    success vs champion, vs anchor   lower by less than the margin (Tango; with replays Student's t and Gaffke)
    cost vs champion                 below the ratio times the champion's mean (t and bootstrap-t; strict: Gaffke)
    better somewhere                 more successful, or cheaper; each at half the levels (Holm)
    unsafe                           none at all, in tasks enough to rule the rate out
    on the observed figures          strict rule, fallback rate, no stratum proven worse, must-pass tasks

PASS      at the first task at which all tests have passed, if then the conditions on the figures hold too; if they do
          not, nothing is decided before all tasks are in.
FAIL      at an unsafe run, a decision that is none, a must-pass task that is lost, or when the opposite of a needed
          claim is proven; at the end also when a condition on the figures is broken.
else      INCONCLUSIVE: missing evidence never passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from celr_ray.cortex.actions import FloatArray
from celr_ray.cortex.evaluation.sequential import Levels, SequentialTest, watch_cost, watch_success
from celr_ray.cortex.evaluation.statistics import (
    Decision,
    RegressedTask,
    StratumResult,
    clopper_pearson_upper,
    find_regressed,
    strata_worse,
    tasks_for_zero,
)
from celr_ray.cortex.gate.plan import GatePlan
from celr_ray.cortex.gate.results import TaskOutcome
from celr_ray.cortex.gate.settings import GateConfig

__all__ = ["Criteria", "GateDecision", "GateVerdict"]

_ROUNDING = 1e-12

NEEDED = ("success vs champion", "success vs anchor", "cost vs champion")
EITHER = ("more successful than champion", "cheaper than champion")


class GateVerdict(StrEnum):
    """What a gate says."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_code(self) -> int:
        """Return what a command ends with: 0, 3 or 4."""
        return {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4}[self.value]


@dataclass(frozen=True)
class GateDecision:
    """How it ended.

    Attributes:
        verdict: the verdict.
        reasons: why, most important first; one sentence each.
        n_tasks: length of the prefix that it rests on.
        is_early: tasks were left out because nothing could change any more.
        tests: name of each sequential test → its decision, the task it fell at, and the last test's p-value.
        unsafe_upper: Clopper-Pearson upper bound of the rate of unsafe runs.
        strata: of the prefix.
        regressed: tasks of the prefix.
    """

    verdict: GateVerdict
    reasons: tuple[str, ...]
    n_tasks: int
    is_early: bool
    tests: Mapping[str, tuple[Decision, int, float | None]] = field(default_factory=dict)
    unsafe_upper: float | None = None
    strata: tuple[StratumResult, ...] = ()
    regressed: tuple[RegressedTask, ...] = ()


class Criteria:
    """Takes the outcomes of one task after the other and decides as soon as it may."""

    def __init__(self, plan: GatePlan, config: GateConfig, *, needs_size: bool = True) -> None:
        """Begin with no task.

        Args:
            plan: tasks, roles, cap.
            config: margins and levels.
            needs_size: False = judge without the numbers of tasks that a PASS needs: for policies that must not pass
                whatever their number.
        """
        self._plan, self._config = plan, config
        self._n = len(plan.task_ids)
        self._min_cost = config.min_cost_tasks if needs_size and not config.strict_cost else 0
        self._min_unsafe = tasks_for_zero(config.max_unsafe_rate, config.alpha) if needs_size else 0
        self._tests = self._make_tests()
        self._outcomes: dict[str, list[TaskOutcome]] = {role: [] for role in plan.roles}
        self._unseen = set(plan.must_pass)
        self._has_looked = False
        self.decision: GateDecision | None = None

    def _make_tests(self) -> dict[str, SequentialTest]:
        config, n, seed = self._config, self._n, self._config.seed
        levels = Levels(config.level_early, config.level_final, config.level_futility)
        replays, half = self._plan.replays, levels.share(2)
        cap, strict = self._plan.cap_usd, config.strict_cost
        tests = {
            NEEDED[0]: watch_success(n, config.success_margin, levels, replays=replays, seed=seed),
            NEEDED[2]: watch_cost(n, config.cost_ratio, levels, cap=cap, is_strict=strict, seed=seed),
            EITHER[0]: watch_success(n, 0.0, half, replays=replays, seed=seed),
            EITHER[1]: watch_cost(n, 1.0, half, cap=cap, is_strict=strict, seed=seed),
        }
        if "anchor" in self._plan.roles:
            tests[NEEDED[1]] = watch_success(n, config.success_margin, levels, replays=replays, seed=seed)
        return tests

    @property
    def n(self) -> int:
        """Return how many tasks are in."""
        return len(self._outcomes["candidate"])

    def values(self, role: str, name: str) -> FloatArray:
        """Return one figure of all tasks so far, [n]."""
        return np.array([getattr(outcome, name) for outcome in self._outcomes[role]], dtype=np.float64)

    def update(self, outcomes: Mapping[str, TaskOutcome]) -> GateDecision | None:
        """Take the next task of the preset order; returns the decision once there is one."""
        if self.decision is not None:
            return self.decision
        task_id = self._plan.task_ids[self.n]
        self._unseen.discard(task_id)
        for role in self._plan.roles:
            self._outcomes[role].append(outcomes[role])
        stopped = self._find_stop(task_id, outcomes)
        if stopped is not None:
            return self._end(*stopped)
        self._feed(outcomes)
        lost = self._find_lost()
        if lost:
            return self._end(GateVerdict.FAIL, lost)
        if self.n == self._n:
            return self._finish()
        return self._try_early()

    def _find_stop(self, task_id: str, outcomes: Mapping[str, TaskOutcome]) -> tuple[GateVerdict, list[str]] | None:
        """Return a verdict that one task alone decides, and why."""
        own = outcomes["candidate"]
        if own.problem is not None:
            return GateVerdict.FAIL, [f"the candidate cannot decide on {task_id!r}: {own.problem}"]
        if own.n_unsafe:
            return GateVerdict.FAIL, [f"the candidate's run of {task_id!r} is unsafe"]
        cap = self._plan.cap_usd
        for role in self._plan.roles:
            success, cost = outcomes[role].success, outcomes[role].cost_usd
            if not (0 <= success <= 1 and cost >= 0):
                return GateVerdict.INCONCLUSIVE, [f"the {role}'s result on {task_id!r} is no result: {success}, {cost}"]
            if cost > cap * (1 + 1e-9):
                text = (
                    f"the {role} spent ${cost:.6g} on {task_id!r}, above the cap of ${cap:.6g} that the tests rest on"
                )
                return GateVerdict.INCONCLUSIVE, [text]
        if task_id in self._plan.must_pass and own.success < 1:
            return GateVerdict.FAIL, [f"the candidate does not solve {task_id!r}, which must pass"]
        return None

    def _feed(self, outcomes: Mapping[str, TaskOutcome]) -> None:
        new, old = outcomes["candidate"], outcomes["champion"]
        self._tests[NEEDED[0]].update(new.success - old.success)
        self._tests[NEEDED[2]].update(self._config.cost_ratio * old.cost_usd - new.cost_usd)
        self._tests[EITHER[0]].update(new.success - old.success)
        saved = old.cost_usd - new.cost_usd
        self._tests[EITHER[1]].update(saved if abs(saved) > _ROUNDING * old.cost_usd else 0.0)
        if NEEDED[1] in self._tests:
            self._tests[NEEDED[1]].update(new.success - outcomes["anchor"].success)

    def _decisions(self, names: tuple[str, ...]) -> dict[str, Decision]:
        return {name: self._tests[name].decision for name in names if name in self._tests}

    def _find_lost(self) -> list[str]:
        """Return which needed claims are refuted: their opposites are proven."""
        margin = self._config.success_margin
        texts = {
            NEEDED[0]: f"success is proven lower than the champion's by more than {margin:g}",
            NEEDED[1]: f"success is proven lower than the anchor's by more than {margin:g}",
            NEEDED[2]: f"cost is proven above {self._config.cost_ratio:g} times the champion's",
        }
        lost = [texts[name] for name, found in self._decisions(NEEDED).items() if found is Decision.FUTILE]
        if all(found is Decision.FUTILE for found in self._decisions(EITHER).values()):
            lost.append("proven less successful and dearer than the champion")
        return lost

    def _find_open(self) -> list[str]:
        """Return what is not proven yet."""
        found = [f"not proven: {name}" for name, test in self._decisions(NEEDED).items() if not test.is_pass]
        if not any(test.is_pass for test in self._decisions(EITHER).values()):
            found.append("not proven: better than the champion in success or in cost")
        if self.n < self._min_cost:
            found.append(f"{self.n} tasks prove nothing about cost: it takes {self._min_cost}")
        if self.n < self._min_unsafe:
            rate, needed = self._config.max_unsafe_rate, self._min_unsafe
            found.append(
                f"{self.n} tasks without an unsafe run do not rule out a rate of {rate:.2%}: it takes {needed}"
            )
        if self._unseen:
            found.append(f"{len(self._unseen)} must-pass tasks have not been run")
        return found

    def _find_broken(self) -> list[str]:
        """Return which conditions on the observed figures are broken."""
        config, broken = self._config, []
        success = {role: float(self.values(role, "success").mean()) for role in self._plan.roles}
        cost = {role: float(self.values(role, "cost_usd").mean()) for role in self._plan.roles}
        if config.strict_point_rule and success["candidate"] < success["champion"] - _ROUNDING:
            broken.append(
                f"strict rule: the observed success {success['candidate']:.4f} is below the champion's "
                f"{success['champion']:.4f}"
            )
        if config.strict_point_rule and cost["candidate"] > cost["champion"] * (1 + _ROUNDING):
            broken.append(
                f"strict rule: the observed cost ${cost['candidate']:.6g} is above the champion's "
                f"${cost['champion']:.6g}"
            )
        fallbacks, decisions = (self.values("candidate", name).sum() for name in ("n_fallbacks", "n_decisions"))
        if fallbacks > config.max_fallback_rate * decisions:
            broken.append(
                f"{fallbacks / decisions:.2%} of the decisions were left to the heuristic, more than "
                f"{config.max_fallback_rate:.2%}"
            )
        worse = [stratum for stratum in self._strata() if stratum.is_worse]
        broken += [f"proven worse on {s.grouping} {s.stratum!r}: {s.value:+.3f} in {s.n} tasks" for s in worse]
        return broken

    def _differences(self) -> FloatArray:
        return self.values("candidate", "success") - self.values("champion", "success")

    def _strata(self) -> tuple[StratumResult, ...]:
        groupings = {name: labels[: self.n] for name, labels in self._plan.strata.items()}
        return strata_worse(groupings, self._differences(), replays=self._plan.replays, alpha=self._config.level_strata)

    def _try_early(self) -> GateDecision | None:
        """Look at the conditions once, when all tests have passed."""
        if self._has_looked or self._find_open():
            return None
        self._has_looked = True
        return None if self._find_broken() else self._end(GateVerdict.PASS, self._praise())

    def _finish(self) -> GateDecision:
        still_open, broken = self._find_open(), self._find_broken()
        if broken:
            return self._end(GateVerdict.FAIL, broken + still_open)
        if still_open:
            return self._end(GateVerdict.INCONCLUSIVE, still_open)
        return self._end(GateVerdict.PASS, self._praise())

    def _praise(self) -> list[str]:
        better = [name for name, found in self._decisions(EITHER).items() if found.is_pass]
        return [f"no worse in success and cost, and proven {' and '.join(better)}"]

    def close(self, verdict: GateVerdict, reasons: list[str]) -> GateDecision:
        """End from outside: the results are damaged or missing."""
        return self.decision or self._end(verdict, reasons)

    def _end(self, verdict: GateVerdict, reasons: list[str]) -> GateDecision:
        is_sound = bool(self.n) and all(
            np.isfinite(self.values(role, name)).all() for role in self._plan.roles for name in ("success", "cost_usd")
        )
        n_unsafe = int((self.values("candidate", "n_unsafe") > 0).sum())
        pair = (self.values("candidate", "success"), self.values("champion", "success"))
        self.decision = GateDecision(
            verdict=verdict,
            reasons=tuple(reasons),
            n_tasks=self.n,
            is_early=self.n < self._n,
            tests={name: (test.decision, test.n, test.p_value) for name, test in sorted(self._tests.items())},
            unsafe_upper=clopper_pearson_upper(n_unsafe, self.n, self._config.alpha) if self.n else None,
            strata=self._strata() if is_sound else (),
            regressed=find_regressed(self._plan.task_ids[: self.n], *pair) if is_sound else (),
        )
        return self.decision
