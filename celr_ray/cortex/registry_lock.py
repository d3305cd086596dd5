"""One writer at a time for each policy of a registry, on any MLflow: embedded or a server.

MLflow has no conditional write. So whoever wants to write puts a claim of its own among the policy's tags, then reads
all claims, and goes on only if there is no other live one: of two claimants, the one that wrote later sees the other.
If both see each other, both withdraw and try again after a random pause. That needs a store in which a tag can be read
as soon as it was set, as in one database behind one server. A claim whose process is gone is cleared: at once on its
own machine, elsewhere after five minutes, by this machine's clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from celr_ray.cortex.registry_store import TAG, Store
from celr_ray.errors import PolicyError
from celr_ray.owner import Owner, decode_owner, encode_owner, forget_owner, is_gone, make_owner

__all__ = ["WAIT_S", "Claim", "claim_policy"]

WAIT_S = 30.0
"""How long a writer waits for another one, seconds."""

_PREFIX = "lock."


class Claim:
    """A right to write that is held."""

    def __init__(self, store: Store, name: str) -> None:
        """Prepare a claim to a policy; `acquire` puts it."""
        self._store = store
        self._name = name
        self._owner = make_owner()
        self._key = f"{_PREFIX}{self._owner.token}"

    def acquire(self, wait_s: float) -> None:
        """Put the claim, when no other is there.

        Raises:
            PolicyError: another writer was there all the time.
        """
        deadline = time.monotonic() + wait_s
        while True:
            other = self._find_other()
            if other is None:
                self._store.set_tag(self._name, self._key, encode_owner(self._owner).decode())
                other = self._find_other()
                if other is None:
                    return
                self._store.delete_tag(self._name, self._key)
            if time.monotonic() > deadline:
                raise PolicyError(
                    f"{self._name} is being changed by {other} in the registry {self._store.uri}; try again later"
                )
            time.sleep(random.uniform(0.05, 0.4))

    def _find_other(self) -> Owner | None:
        """Return the owner of a live claim of another; clear claims that were left behind."""
        _, tags = self._store.read(self._name)
        for tag, value in tags.items():
            key = tag.removeprefix(TAG)
            if not key.startswith(_PREFIX) or key == self._key:
                continue
            owner = decode_owner(value.encode())
            if not is_gone(owner, _age_s(owner)):
                return owner
            with suppress(PolicyError):  # another cleared it
                self._store.delete_tag(self._name, key)
        return None

    def check(self) -> None:
        """Check that the claim still stands.

        Raises:
            PolicyError: it was cleared, as of a process that gave no sign of life for minutes.
        """
        if f"{TAG}{self._key}" not in self._store.read(self._name)[1]:
            raise PolicyError(f"the claim to {self._name} was cleared by another writer; nothing was changed")

    def release(self) -> None:
        """Take the claim back; if the store does not answer, others will clear it."""
        try:
            with suppress(PolicyError):
                self._store.delete_tag(self._name, self._key)
        finally:
            forget_owner(self._owner)


def _age_s(owner: Owner) -> float:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(owner.started)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")


@contextmanager
def claim_policy(store: Store, name: str, wait_s: float = WAIT_S) -> Iterator[Claim]:
    """Hold the right to change a policy.

    Raises:
        PolicyError: another writer held it all the time.
    """
    claim = Claim(store, name)
    try:
        claim.acquire(wait_s)
        yield claim
    finally:
        claim.release()
