"""Tasks that need a stack, a search or a table: nesting, trees, paths, choices."""

from __future__ import annotations

from random import Random
from typing import Any

from ..family import Code, Family, table, vary


def _nested(rng: Random, depth: int) -> list[Any]:
    return [_nested(rng, depth - 1) if depth and rng.random() < 0.5 else rng.randint(0, 9) for _ in range(3)]


def _tree(rng: Random, depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"value": rng.randint(0, 9)}
    if depth and rng.random() < 0.8:
        tree["children"] = [_tree(rng, depth - 1) for _ in range(rng.randint(0, 2))]
    return tree


def _chain(n: int) -> dict[str, Any]:
    """Return a tree of n nodes below each other, with an empty list of children at the end."""
    tree: dict[str, Any] = {"value": n, "children": []}
    for value in range(n - 1, 0, -1):
        tree = {"value": value, "children": [tree]}
    return tree


def _intervals(rng: Random, gap: int) -> list[list[int]]:
    starts = [rng.randint(0, 30) for _ in range(5)]
    return [[start, start + rng.randint(1, 6 + gap)] for start in starts]


_RING = [["a", "b"], ["b", "c"], ["c", "d"], ["d", "e"], ["a", "e"]]

FAMILIES = (
    Family(
        "flatten(items)",
        3,
        "takes a list that may hold lists inside lists and opens the inner lists up to $k levels deep: items deeper "
        "than that stay in lists. The order stays.",
        """
def flatten(items, levels=$k):
    flat = []
    for item in items:
        if isinstance(item, list) and levels:
            flat.extend(flatten(item, levels - 1))
        else:
            flat.append(item)
    return flat
""",
        """
def flatten(items):
    flat = []
    for item in items:
        if isinstance(item, list):
            flat.extend(flatten(item))
        else:
            flat.append(item)
    return flat
""",
        vary("k", 2, 3, 4, 5, 6),
        lambda s: [([1, [2, 3], 4],), ([[1], [2], []],), ([5, 6],)],
        lambda s: [([],), ([[[[[[[[1]], 2]]]]]],), ([0, [1, [2, [3, [4, [5, [6, [7, [8]]]]]]]]],), ([[], [[]]],)],
        lambda rng, s: (_nested(rng, s["k"] + 2 if s["k"] < 3 else s["k"]),),
    ),
    Family(
        "is_balanced(text)",
        2,
        "returns True if every opening bracket in a text is closed by its partner in the right order, else False. "
        "The brackets are $pairs; all other characters are ignored.",
        """
def is_balanced(text):
    partners = dict(zip($pairs[1::2], $pairs[::2]))
    stack = []
    for letter in text:
        if letter in partners.values():
            stack.append(letter)
        elif letter in partners and (not stack or stack.pop() != partners[letter]):
            return False
    return not stack
""",
        """
def is_balanced(text):
    return all(text.count($pairs[i]) == text.count($pairs[i + 1]) for i in range(0, len($pairs), 2))
""",
        vary("pairs", "()", "()[]", "()[]{}", "()<>", "[]{}", "<>{}", "{}"),
        lambda s: [(s["pairs"],), (s["pairs"][0] * 2 + s["pairs"][1],), (f"a {s['pairs'][0]}b{s['pairs'][1]} c",)],
        lambda s: [
            ("",),
            ("none",),
            (s["pairs"][1] + s["pairs"][0],),
            (s["pairs"][0],),
            (s["pairs"][::2] + s["pairs"][1::2],),
        ],
        lambda rng, s: ("".join(rng.choices(s["pairs"], k=4)),),
    ),
    Family(
        "can_pay(coins, amount)",
        3,
        "tells whether `amount` can be made from a list of different positive numbers when each may be used at most "
        "$words: True or False. Nothing has to be used for 0.",
        """
def can_pay(coins, amount):
    sums = {0}
    for coin in coins:
        sums = {total + coin * count for total in sums for count in range($k + 1)}
    return amount in sums
""",
        """
def can_pay(coins, amount):
    sums = {0}
    for part in range(1, amount + 1):
        if any(part - coin in sums for coin in coins):
            sums.add(part)
    return amount in sums
""",
        table("words k", ("once", 1), ("twice", 2), ("3 times", 3), ("4 times", 4), ("5 times", 5)),
        lambda s: [([3, 8], 11), ([5, 7], 4), ([2, 9, 20], 29), ([10, 4], 13)],
        lambda s: [([], 0), ([], 5), ([3], 3 * s["k"]), ([3], 3 * s["k"] + 3), ([2, 5], 7 * s["k"] + 2), ([4, 6], 0)],
        lambda rng, s: (rng.sample(range(1, 9), 2), rng.randint(1, 14 * s["k"])),
    ),
    Family(
        "sum_tree(tree)",
        3,
        "adds up the values of a tree down to depth $k, where the root has depth 0. A node is a dict with 'value' and "
        "perhaps 'children', a list of nodes.",
        """
def sum_tree(tree, depth=$k):
    total = tree["value"]
    if depth:
        total += sum(sum_tree(child, depth - 1) for child in tree.get("children", []))
    return total
""",
        """
def sum_tree(tree, depth=$k):
    if depth == 0:
        return tree["value"]
    return tree["value"] + sum(sum_tree(child, depth - 1) for child in tree["children"])
""",
        vary("k", 1, 2, 3, 4, 5, 6),
        lambda s: [(_chain(2),), (_chain(1),), (_chain(10),)],
        lambda s: [({"value": 7},), ({"value": 1, "children": [{"value": 5}, _chain(9)]},), (_chain(s["k"] + 1),)],
        lambda rng, s: (_tree(rng, s["k"] + 1 if s["k"] < 3 else 3),),
    ),
    Family(
        "list_choices(letters)",
        3,
        "returns the sorted list of all different texts made of $k letters of a text, $words. "
        "A letter can be used as often as the text has it.",
        """
from itertools import $tool

def list_choices(letters):
    return sorted({"".join(choice) for choice in $tool($source, $k)})
""",
        """
from itertools import $tool

def list_choices(letters):
    return sorted("".join(choice) for choice in $tool($source, $k))
""",
        table(
            "k words tool source",
            (2, "in any order", Code("permutations"), Code("letters")),
            (3, "in any order", Code("permutations"), Code("letters")),
            (2, "in the order in which they stand there", Code("combinations"), Code("letters")),
            (3, "in the order in which they stand there", Code("combinations"), Code("letters")),
            (2, "their letters in alphabetical order", Code("combinations"), Code("sorted(letters)")),
            (3, "their letters in alphabetical order", Code("combinations"), Code("sorted(letters)")),
        ),
        lambda s: [("abc",), ("dog",), ("wxyz",)],
        lambda s: [("",), ("a",), ("aab",), ("zaza",), ("bbb",)],
        lambda rng, s: ("".join(rng.choices("abc", k=4)),),
    ),
    Family(
        "merge_spans(spans)",
        3,
        "takes a list of spans [start, end] in any order and returns them sorted, joining spans that overlap, touch, "
        "or have a gap of at most $gap between the end of one and the start of the next.",
        """
def merge_spans(spans):
    merged = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= $gap:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged
""",
        """
def merge_spans(spans):
    merged = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= $gap:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return merged
""",
        vary("gap", 0, 1, 2, 3, 4, 5, 10),
        lambda s: [([[1, 5], [3, 8]],), ([[30, 40], [1, 2]],), ([[4, 6]],)],
        lambda s: [
            ([],),
            ([[1, 20], [3, 5]],),
            ([[0, 3], [3 + s["gap"], 30]],),
            ([[0, 3], [4 + s["gap"], 30]],),
            ([[2, 9], [2, 4], [6, 7]],),
        ],
        lambda rng, s: (_intervals(rng, s["gap"]),),
    ),
    Family(
        "count_hops(links, start, goal)",
        3,
        "returns the least number of links on a way from `start` to `goal`, or $missing_repr if there is none. "
        "A link [a, b] can be used $words.",
        """
def count_hops(links, start, goal):
    hops = {start: 0}
    todo = [start]
    for place in todo:
        for a, b in $ways:
            if a == place and b not in hops:
                hops[b] = hops[a] + 1
                todo.append(b)
    return hops.get(goal, $missing)
""",
        """
def count_hops(links, start, goal, seen=()):
    if start == goal:
        return 0
    for a, b in $ways:
        if a == start and b not in seen:
            rest = count_hops(links, b, goal, (*seen, a))
            if rest is not None and rest != $missing:
                return rest + 1
    return $missing
""",
        table(
            "words missing ways",
            ("in both directions", -1, Code("links + [[b, a] for a, b in links]")),
            ("from a to b only", -1, Code("links")),
            ("from b to a only", -1, Code("[[b, a] for a, b in links]")),
            ("in both directions", None, Code("links + [[b, a] for a, b in links]")),
            ("from a to b only", None, Code("links")),
        ),
        lambda s: [
            ([["a", "b"], ["b", "c"]], "a", "c"),
            ([["x", "y"]], "x", "z"),
            ([["a", "b"]], "a", "b"),
            ([["p", "q"]], "q", "p"),
        ],
        lambda s: [
            ([], "a", "a"),
            ([], "a", "b"),
            (_RING, "a", "e"),
            (_RING, "e", "a"),
            (_RING, "a", "d"),
            (_RING, "d", "a"),
        ],
        lambda rng, s: ([rng.sample("abcde", 2) for _ in range(6)], "a", rng.choice("bcde")),
    ),
    Family(
        "edit_cost(one, two)",
        3,
        "returns the least cost of turning the first text into the second, where inserting a character costs $add, "
        "deleting one costs $drop, and replacing one by another costs $swap.",
        """
def edit_cost(one, two):
    row = [$add * j for j in range(len(two) + 1)]
    for i, a in enumerate(one, 1):
        new = [$drop * i]
        for j, b in enumerate(two, 1):
            same = row[j - 1] + (0 if a == b else $swap)
            new.append(min(same, row[j] + $drop, new[-1] + $add))
        row = new
    return row[-1]
""",
        """
def edit_cost(one, two):
    cost = sum($swap for a, b in zip(one, two) if a != b)
    longer = len(two) - len(one)
    return cost + (longer * $add if longer > 0 else -longer * $drop)
""",
        table("add drop swap", (1, 1, 1), (1, 1, 2), (2, 1, 2), (1, 2, 2), (2, 2, 3), (1, 3, 2), (3, 1, 3)),
        lambda s: [("cat", "cut"), ("tree", "trees"), ("same", "same"), ("loop", "lo")],
        lambda s: [("", ""), ("", "ab"), ("abc", ""), ("abcd", "bcd"), ("xabc", "abcx"), ("kitten", "sitting")],
        lambda rng, s: ("".join(rng.choices("ab", k=5)), "".join(rng.choices("ab", k=rng.randint(3, 6)))),
    ),
)
