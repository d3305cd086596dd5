"""A story: a text with gaps, how its numbers are drawn, and its answer as a function of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

_PEOPLE = (
    ("Ana", "she", "her"),
    ("Ben", "he", "his"),
    ("Chika", "she", "her"),
    ("Dario", "he", "his"),
    ("Elif", "she", "her"),
    ("Femi", "he", "his"),
    ("Greta", "she", "her"),
    ("Hugo", "he", "his"),
    ("Ines", "she", "her"),
    ("Jonas", "he", "his"),
    ("Kavya", "she", "her"),
    ("Luca", "he", "his"),
    ("Mei", "she", "her"),
    ("Nadir", "he", "his"),
    ("Olga", "she", "her"),
    ("Pavel", "he", "his"),
)
_THINGS = ("stickers", "marbles", "shells", "buttons", "stamps", "beads", "coins", "cards", "pebbles", "badges")
_GOODS = ("notebooks", "mugs", "candles", "scarves", "lamps", "puzzles", "plants", "umbrellas", "kites", "baskets")


@dataclass(frozen=True)
class Story:
    """A word problem with gaps.

    Attributes:
        name: short, unique; part of the task id.
        level: 1 to 5.
        text: `str.format` text. Gaps: the drawn numbers by name; {name}, {she}, {She}, {her}, {other} (people);
            {things} (small and countable), {goods} (sold in shops).
        draw: draws the numbers.
        answer: the answer, called with the numbers by name.
    """

    name: str
    level: int
    text: str
    draw: Callable[[Random], dict[str, int]]
    answer: Callable[..., int]

    def tell(self, rng: Random) -> tuple[str, int]:
        """Return the text with all gaps filled, and the answer."""
        numbers = self.draw(rng)
        (name, she, her), (other, _, _) = rng.sample(_PEOPLE, 2)
        words = {"name": name, "she": she, "She": she.capitalize(), "her": her, "other": other}
        words |= {"things": rng.choice(_THINGS), "goods": rng.choice(_GOODS)}
        return self.text.format(**words, **numbers), self.answer(**numbers)
