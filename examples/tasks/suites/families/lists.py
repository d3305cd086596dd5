"""Tasks about lists: cutting, choosing, counting, grouping."""

from __future__ import annotations

from random import Random

from ..family import Arguments, Code, Family, Setting, table, vary


def _numbers(rng: Random, low: int, high: int, longest: int = 9) -> list[int]:
    return [rng.randint(low, high) for _ in range(rng.randint(0, longest))]


def _sorted_numbers(rng: Random, setting: Setting) -> Arguments:
    return sorted(_numbers(rng, 0, 6)), rng.randint(0, 6)


FAMILIES = (
    Family(
        "sum_from(numbers)",
        1,
        "returns the sum of all numbers of a list that are at least $k.",
        """
def sum_from(numbers):
    return sum(number for number in numbers if number >= $k)
""",
        """
def sum_from(numbers):
    return sum(number for number in numbers if number > $k)
""",
        vary("k", 1, 3, 5, 8, 10, 12, -2),
        lambda s: [([2, 30, 7, 40],), ([100, -50],), ([-9, -7],), ([15, 16, 17],)],
        lambda s: [([],), ([s["k"]],), ([s["k"] - 1, s["k"], s["k"] + 1],)],
        lambda rng, s: (_numbers(rng, s["k"] - 2, s["k"] + 2),),
    ),
    Family(
        "rotate(items)",
        1,
        "moves the first item of a list to its end, $k times over, and returns the resulting list; an empty list "
        "gives [].",
        """
def rotate(items):
    if not items:
        return []
    start = $k % len(items)
    return items[start:] + items[:start]
""",
        """
def rotate(items):
    return items[$k:] + items[:$k]
""",
        vary("k", 3, 4, 5, 6, 7, 8, 9),
        lambda s: [(list(range(10)),), (list("abcdefghi"),), (list(range(20, 8, -1)),)],
        lambda s: [([],), ([1],), (list(range(s["k"] - 1)),), (list(range(s["k"])),), ([1, 2, 3],)],
        lambda rng, s: (_numbers(rng, 0, 9, s["k"] + 2),),
    ),
    Family(
        "chunk(items)",
        1,
        "cuts a list into lists of $k items each, in order; the last one may be shorter.",
        """
def chunk(items):
    return [items[start : start + $k] for start in range(0, len(items), $k)]
""",
        """
def chunk(items):
    return [items[i * $k : (i + 1) * $k] for i in range(len(items) // $k)]
""",
        vary("k", 2, 3, 4, 5, 6, 7, 8),
        lambda s: [(list(range(s["k"] * 2)),), (list("abcdefgh"[: s["k"]]),), (list(range(s["k"] * 3)),)],
        lambda s: [([],), ([1],), (list(range(s["k"] + 1)),), (list(range(2 * s["k"] - 1)),)],
        lambda rng, s: (_numbers(rng, 0, 9, 12),),
    ),
    Family(
        "closest(numbers)",
        1,
        "returns the number of a list that is closest to $k, of two equally close ones the smaller, "
        "and None for an empty list.",
        """
def closest(numbers):
    return min(numbers, key=lambda number: (abs(number - $k), number), default=None)
""",
        """
def closest(numbers):
    return min(numbers, key=lambda number: abs(number - $k), default=None)
""",
        vary("k", 0, 5, 10, 12, 20, 50, -3),
        lambda s: [([1, 100, 30],), ([s["k"], 7, 99],), ([-40, -60],)],
        lambda s: [([],), ([s["k"] + 2, s["k"] - 2],), ([s["k"] + 1, s["k"] - 1, s["k"] + 5],), ([8],)],
        lambda rng, s: ([s["k"] + rng.randint(-3, 3) for _ in range(3)],),
    ),
    Family(
        "pick_distinct(numbers)",
        2,
        "returns the $rank $which of the different values in a list, equal values counting once, "
        "or None if there are fewer than $n different values.",
        """
def pick_distinct(numbers):
    values = sorted(set(numbers), reverse=$reverse)
    return values[$n - 1] if len(values) >= $n else None
""",
        """
def pick_distinct(numbers):
    values = sorted(numbers, reverse=$reverse)
    return values[$n - 1] if len(values) >= $n else None
""",
        table(
            "rank n which reverse",
            ("second", 2, "largest", True),
            ("third", 3, "largest", True),
            ("fourth", 4, "largest", True),
            ("second", 2, "smallest", False),
            ("third", 3, "smallest", False),
            ("fourth", 4, "smallest", False),
        ),
        lambda s: [([5, 1, 9, 3, 7],), ([10, 20, 30, 40],), ([-1, 4, -6, 2],)],
        lambda s: [([],), ([3, 3, 3, 3],), ([1, 1, 2, 2, 5, 5],), ([4, 4, 4, 1],), ([7],)],
        lambda rng, s: (_numbers(rng, 0, 4),),
    ),
    Family(
        "window_sums(numbers)",
        2,
        "returns the list of the sums of every $k neighbouring numbers, from left to right; "
        "a list of fewer than $k numbers gives [].",
        """
def window_sums(numbers):
    return [sum(numbers[i : i + $k]) for i in range(len(numbers) - $k + 1)]
""",
        """
def window_sums(numbers):
    sums = [sum(numbers[:$k])]
    for i in range($k, len(numbers)):
        sums.append(sums[-1] + numbers[i] - numbers[i - $k])
    return sums
""",
        vary("k", 2, 3, 4, 5, 6, 7),
        lambda s: [(list(range(1, 11)),), ([5] * 8,), ([1, -1, 2, -2, 3, -3, 4, -4],)],
        lambda s: [([],), ([9],), ([1] * (s["k"] - 1),), ([2] * s["k"],)],
        lambda rng, s: (_numbers(rng, -5, 9, 8),),
    ),
    Family(
        "keep_copies(items)",
        2,
        "keeps only the first $k of equal items in a list, drops the later ones, and returns the list of those kept, "
        "in their order.",
        """
def keep_copies(items):
    kept = []
    for item in items:
        if kept.count(item) < $k:
            kept.append(item)
    return kept
""",
        """
def keep_copies(items):
    kept = []
    for item in items:
        if kept[-$k:] != [item] * $k:
            kept.append(item)
    return kept
""",
        vary("k", 2, 3, 4, 5, 6, 7),
        lambda s: [([1, 2, 3],), (["a"] * 8 + ["b"],), ([4, 4, 4, 4, 4, 4, 4, 4, 5],)],
        lambda s: [([],), ([1, 2] * (s["k"] + 1),), (["x"] * s["k"] + ["y"] + ["x"],)],
        lambda rng, s: (_numbers(rng, 0, 2, 12),),
    ),
    Family(
        "longest_streak(numbers)",
        2,
        "returns the length of the longest run of neighbouring numbers in a list that are all $words.",
        """
def longest_streak(numbers):
    best = length = 0
    for number in numbers:
        length = length + 1 if number $test else 0
        best = max(best, length)
    return best
""",
        """
def longest_streak(numbers):
    best = length = 0
    for number in numbers:
        if number $test:
            length += 1
        else:
            best = max(best, length)
            length = 0
    return best
""",
        table(
            "words test",
            ("even", Code("% 2 == 0")),
            ("odd", Code("% 2 == 1")),
            ("greater than 0", Code("> 0")),
            ("below 5", Code("< 5")),
            ("multiples of 3", Code("% 3 == 0")),
            ("at least 4", Code(">= 4")),
            ("different from 0", Code("!= 0")),
        ),
        lambda s: [
            ([6, 6, 9, 3, 3, 0, 7, 8, 7, -1, 0],),
            ([4, 8, 2, 9, 1, -2, 0],),
            ([-1, -3, 5, 0, 1, 0],),
            ([2, 5],),
        ],
        lambda s: [([],), ([3, 3, 3],), ([4, 4],), ([1, 1, 6, 12],), ([0, 0, 1, 6, 7],)],
        lambda rng, s: (_numbers(rng, 0, 6, 12),),
    ),
    Family(
        "count_pairs(numbers)",
        2,
        "counts the pairs of places i < j in a list whose two numbers add up to $k. "
        "Equal numbers at other places make other pairs.",
        """
def count_pairs(numbers):
    return sum(
        numbers[i] + numbers[j] == $k for j in range(len(numbers)) for i in range(j)
    )
""",
        """
def count_pairs(numbers):
    seen, pairs = set(), 0
    for number in numbers:
        if $k - number in seen:
            pairs += 1
        seen.add(number)
    return pairs
""",
        vary("k", 4, 6, 7, 9, 10, 12, 0),
        lambda s: [([s["k"] - 1, 50, 1],), ([s["k"] + 3, -3, 20, s["k"] - 20],), ([100, 200],)],
        lambda s: [([],), ([s["k"]],), ([1, 1, s["k"] - 1],), ([s["k"] // 2] * 3,), ([0, 0, s["k"], s["k"]],)],
        lambda rng, s: ([rng.randint(s["k"] // 2 - 2, s["k"] // 2 + 2) for _ in range(6)],),
    ),
    Family(
        "split_items(items)",
        2,
        "splits a list at every item that is $mark, which is dropped, and returns the list of the parts "
        "that are not empty.",
        """
def split_items(items):
    parts = [[]]
    for item in items:
        if item == $mark:
            parts.append([])
        else:
            parts[-1].append(item)
    return [part for part in parts if part]
""",
        """
def split_items(items):
    parts, part = [], []
    for item in items:
        if item == $mark:
            parts.append(part)
            part = []
        else:
            part.append(item)
    if part:
        parts.append(part)
    return parts
""",
        vary("mark", 0, -1, None, 9, 99, 5, 7),
        lambda s: [([1, 2, s["mark"], 3],), ([4, s["mark"], 8, s["mark"], 6],), ([1, 2, 3],)],
        lambda s: [([],), ([s["mark"]],), ([s["mark"], 1, s["mark"], s["mark"], 2],), ([3, s["mark"]],)],
        lambda rng, s: (rng.choices([1, 2, s["mark"]], k=7),),
    ),
    Family(
        "most_common(numbers)",
        2,
        "returns the list of the $k numbers that occur most often, the most frequent first and of equally frequent "
        "ones the smaller first; all of them if there are fewer.",
        """
def most_common(numbers):
    return sorted(set(numbers), key=lambda number: (-numbers.count(number), number))[:$k]
""",
        """
from collections import Counter

def most_common(numbers):
    return [number for number, _ in Counter(numbers).most_common($k)]
""",
        vary("k", 2, 3, 4, 5, 6),
        lambda s: [([1, 1, 1, 2, 2, 3],), ([7, 7, 8, 8, 8],), ([5],)],
        lambda s: [([],), ([9, 4],), ([3, 1, 2, 1, 3, 2],), ([8, 8, 2, 2, 5, 5, 5],)],
        lambda rng, s: (_numbers(rng, 0, 4, 10),),
    ),
    Family(
        "find_place(numbers, target)",
        2,
        "returns the index of the $which place of `target` in a list that is sorted in rising order, "
        "or $missing_repr if it is not there.",
        """
def find_place(numbers, target):
    places = [index for index, number in enumerate(numbers) if number == target]
    return places[$at] if places else $missing
""",
        """
def find_place(numbers, target):
    low, high = 0, len(numbers) - 1
    while low <= high:
        middle = (low + high) // 2
        if numbers[middle] == target:
            return middle
        if numbers[middle] < target:
            low = middle + 1
        else:
            high = middle - 1
    return $missing
""",
        table(
            "which at missing",
            ("first", 0, -1),
            ("last", -1, -1),
            ("first", 0, None),
            ("last", -1, None),
            ("first", 0, "absent"),
            ("last", -1, "absent"),
        ),
        lambda s: [([1, 4, 6, 9], 6), ([2, 3, 5], 1), ([10, 20], 20)],
        lambda s: [([], 3), ([5, 5, 5], 5), ([1, 2, 2, 2, 3], 2), ([7, 7], 8), ([1, 1, 1, 1], 1)],
        _sorted_numbers,
    ),
)
