"""Results that arrive in any order, given out in the preset one: only the longest complete prefix is evaluated.

What ends soon ends differently from what takes long. A policy whose failures take twice as long looks better in order
of arrival than it is, at every moment until the last result is in, and a test that may stop early then stops in its
favour. In a preset order nothing depends on arrival: the same results give the same decision after the same task,
however they were batched, with one worker or with a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from celr_ray.errors import PolicyError

__all__ = ["PrefixMonitor"]

Result = TypeVar("Result")


class PrefixMonitor(Generic[Result]):
    """Holds results back until all results before them are in."""

    def __init__(self, order: Sequence[str]) -> None:
        """Begin with nothing arrived.

        Args:
            order: the units of the preset order, each once.

        Raises:
            PolicyError: the order is empty or holds a unit twice.
        """
        self._order = tuple(order)
        self._place = {unit: place for place, unit in enumerate(self._order)}
        if not self._order or len(self._place) < len(self._order):
            raise PolicyError("the preset order must hold at least one unit, and each once")
        self._waiting: dict[int, Result] = {}
        self._complete = 0

    @property
    def complete(self) -> int:
        """Return the length of the longest complete prefix."""
        return self._complete

    @property
    def is_complete(self) -> bool:
        """Tell whether all units are in."""
        return self._complete == len(self._order)

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the units that have not arrived, in the preset order."""
        late = self._order[self._complete :]
        return tuple(unit for unit in late if self._place[unit] not in self._waiting)

    def add(self, unit: str, result: Result) -> list[tuple[str, Result]]:
        """Take a result and return what the prefix grew by, in the preset order; often nothing.

        Feed what comes back to the tests one by one: a decision belongs to a length of the prefix, not to a batch.

        Raises:
            PolicyError: the unit is not in the order, or its result is already in.
        """
        place = self._place.get(unit)
        if place is None:
            raise PolicyError(f"{unit!r} is not in the preset order of {len(self._order)} units")
        if place < self._complete or place in self._waiting:
            raise PolicyError(f"{unit!r} has a second result; a unit counts once")
        self._waiting[place] = result
        grown: list[tuple[str, Result]] = []
        while self._complete in self._waiting:
            grown.append((self._order[self._complete], self._waiting.pop(self._complete)))
            self._complete += 1
        return grown
