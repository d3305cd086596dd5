"""Tasks about dicts: merging, grouping, counting, following."""

from __future__ import annotations

from random import Random

from ..family import Code, Family, table, vary

_NAMES = ("ann", "Bo", "cy", "Dee", "eli")


def _table(rng: Random, low: int, high: int) -> dict[str, int]:
    return {name: rng.randint(low, high) for name in rng.sample(_NAMES, rng.randint(0, 4))}


FAMILIES = (
    Family(
        "merge_tables(one, two)",
        1,
        "merges two dicts of numbers into a new one; for a key that is in both it takes $words.",
        """
def merge_tables(one, two):
    merged = {**one, **two}
    for key in one:
        if key in two:
            a, b = one[key], two[key]
            merged[key] = $rule
    return merged
""",
        """
def merge_tables(one, two):
    merged = {}
    for key in one:
        a, b = one[key], two.get(key)
        merged[key] = a if b is None else $rule
    return merged
""",
        table(
            "words rule",
            ("the sum", Code("a + b")),
            ("the larger number", Code("max(a, b)")),
            ("the smaller number", Code("min(a, b)")),
            ("the product", Code("a * b")),
            ("the number of the first dict minus that of the second", Code("a - b")),
            ("the list of both, the first dict's number first", Code("[a, b]")),
        ),
        lambda s: [({"a": 1, "b": 5}, {"a": 3}), ({"x": 2}, {"x": 7}), ({"k": 4}, {})],
        lambda s: [({}, {}), ({}, {"z": 1}), ({"a": 2}, {"b": 3}), ({"a": 0, "b": 9}, {"a": 6, "c": 1})],
        lambda rng, s: (_table(rng, 0, 9), _table(rng, 0, 9)),
    ),
    Family(
        "passed(scores)",
        1,
        "takes a dict of names and scores and returns the sorted list of the names with a score of at least $k.",
        """
def passed(scores):
    return sorted(name for name, score in scores.items() if score >= $k)
""",
        """
def passed(scores):
    return sorted(name for name, score in scores.items() if score > $k)
""",
        vary("k", 40, 50, 55, 60, 65, 70, 75),
        lambda s: [({"bo": 90, "al": 80},), ({"cy": 10, "di": 99, "ed": 20},), ({"flo": 0},)],
        lambda s: [({},), ({"a": s["k"], "b": s["k"] - 1, "c": s["k"] + 1},), ({"only": s["k"]},)],
        lambda rng, s: (_table(rng, s["k"] - 1, s["k"] + 1),),
    ),
    Family(
        "total_by_name(rows)",
        2,
        "takes a list of pairs [name, amount] and returns a dict from each name to the sum of its amounts, "
        "leaving out names whose sum is below $k.",
        """
def total_by_name(rows):
    totals = {}
    for name, amount in rows:
        totals[name] = totals.get(name, 0) + amount
    return {name: total for name, total in totals.items() if total >= $k}
""",
        """
def total_by_name(rows):
    totals = {}
    for name, amount in rows:
        if amount >= $k:
            totals[name] = totals.get(name, 0) + amount
    return totals
""",
        vary("k", 5, 8, 10, 15, 20, 25, 30),
        lambda s: [([["a", 40], ["b", 2]],), ([["x", 35], ["x", 50], ["y", 60]],), ([["solo", 1]],)],
        lambda s: [([],), ([["a", s["k"] - 1], ["a", 1]],), ([["b", s["k"]]],), ([["c", s["k"]], ["c", -1]],)],
        lambda rng, s: ([[rng.choice("ab"), rng.randint(0, s["k"])] for _ in range(5)],),
    ),
    Family(
        "group_words(words)",
        2,
        "takes a list of words and returns a dict from the $which $n letters of the words, in lower case, "
        "to the list of those words as they are, in their order. A word that is shorter counts whole.",
        """
def group_words(words):
    groups = {}
    for word in words:
        groups.setdefault(word.lower()[$cut], []).append(word)
    return groups
""",
        """
def group_words(words):
    groups = {}
    for word in words:
        groups.setdefault(word[$cut], []).append(word)
    return groups
""",
        table(
            "which n cut",
            ("first", 2, Code(":2")),
            ("first", 3, Code(":3")),
            ("first", 4, Code(":4")),
            ("last", 2, Code("-2:")),
            ("last", 3, Code("-3:")),
            ("last", 4, Code("-4:")),
        ),
        lambda s: [(["tree", "trek", "sea"],), (["ring", "king", "ride"],), (["one"],)],
        lambda s: [([],), (["Sun", "sun", "SUNNY"],), (["a", "A"],), (["Banana", "bandana", "CANANA"],)],
        lambda rng, s: (rng.choices(["Tea", "tea", "team", "Steam", "at", "AT"], k=4),),
    ),
    Family(
        "look_up(data, path)",
        3,
        "follows a path such as 'a${sep}b' through nested dicts and returns what is there, or $default_repr "
        "if a key is missing or something on the way is no dict.",
        """
def look_up(data, path):
    for key in path.split($sep):
        if not isinstance(data, dict) or key not in data:
            return $default
        data = data[key]
    return data
""",
        """
def look_up(data, path):
    for key in path.split($sep):
        data = data.get(key, {})
    return data if data != {} else $default
""",
        table(
            "sep default", (".", None), ("/", None), (":", -1), (".", 0), ("-", "none"), ("/", "missing"), ("|", None)
        ),
        lambda s: [({"a": {"b": 5}}, f"a{s['sep']}b"), ({"x": 1}, "x"), ({"a": {"b": 5}}, f"a{s['sep']}c")],
        lambda s: [
            ({}, "a"),
            ({"a": 3}, f"a{s['sep']}b"),
            ({"a": {}}, "a"),
            ({"a": {"b": {"c": [1]}}}, "a.b"),
            ({"a": None}, "a"),
        ],
        lambda rng, s: ({"a": {"b": rng.choice([7, {"c": 8}])}}, s["sep"].join(rng.choice(["ab", "abc", "ac"]))),
    ),
    Family(
        "count_stock(events)",
        2,
        "takes a list of pairs [item, change] and returns a dict from each item to its number in stock. All start at "
        "0; after each change a number below 0 becomes 0 and one above $k becomes $k.",
        """
def count_stock(events):
    stock = {}
    for item, change in events:
        stock[item] = min(max(stock.get(item, 0) + change, 0), $k)
    return stock
""",
        """
def count_stock(events):
    stock = {}
    for item, change in events:
        stock[item] = stock.get(item, 0) + change
    return {item: min(max(number, 0), $k) for item, number in stock.items()}
""",
        vary("k", 10, 12, 15, 20, 25, 50, 100),
        lambda s: [([["nut", 5], ["nut", -2]],), ([["a", 3], ["b", 4], ["a", 1]],), ([["c", 500]],)],
        lambda s: [([],), ([["a", -3], ["a", 5]],), ([["b", s["k"] + 5], ["b", -5]],), ([["c", -1]],)],
        lambda rng, s: ([[rng.choice("ab"), rng.randint(-s["k"], s["k"])] for _ in range(6)],),
    ),
    Family(
        "count_words(text)",
        2,
        "returns a dict from each word of a text, in lower case, to how often it occurs, for words of at least $n "
        "letters. A word is a run of letters a-z or A-Z; all other characters separate words.",
        """
import re

def count_words(text):
    counts = {}
    for word in re.findall("[a-z]+", text.lower()):
        if len(word) >= $n:
            counts[word] = counts.get(word, 0) + 1
    return counts
""",
        """
def count_words(text):
    counts = {}
    for word in text.lower().split():
        if len(word) >= $n:
            counts[word] = counts.get(word, 0) + 1
    return counts
""",
        vary("n", 2, 3, 4, 5, 6),
        lambda s: [("the cat and the dog",), ("Summer winter summer",), ("one",)],
        lambda s: [
            ("",),
            ("Yes, yes; yes!",),
            ("well-known, well made",),
            ("don't stop (stopping)",),
            ("a1b2 window2window",),
        ],
        lambda rng, s: ("".join(rng.choices(["garden", "sea", "a", " ", ", ", "-"], k=12)),),
    ),
    Family(
        "rank(scores)",
        3,
        "takes a dict from names to points and returns a dict from names to places: place 1 for the $best points. "
        "Equal points share a place, and the next place after a shared one $next.",
        """
def rank(scores):
    points = sorted($values, reverse=$reverse)
    return {name: points.index(score) + 1 for name, score in scores.items()}
""",
        """
def rank(scores):
    names = sorted(scores, key=scores.get, reverse=$reverse)
    return {name: names.index(name) + 1 for name in scores}
""",
        table(
            "best next values reverse",
            ("most", "leaves out as many numbers as were shared (1, 1, 3)", Code("scores.values()"), True),
            ("most", "is the next number (1, 1, 2)", Code("set(scores.values())"), True),
            ("fewest", "leaves out as many numbers as were shared (1, 1, 3)", Code("scores.values()"), False),
            ("fewest", "is the next number (1, 1, 2)", Code("set(scores.values())"), False),
        ),
        lambda s: [({"a": 3, "b": 9, "c": 5},), ({"x": 1},), ({"p": 20, "q": 10},)],
        lambda s: [
            ({},),
            ({"a": 5, "b": 5, "c": 1},),
            ({"a": 1, "b": 1, "c": 2, "d": 2, "e": 3},),
            ({"m": 0, "n": 0},),
        ],
        lambda rng, s: (_table(rng, 0, 3),),
    ),
    Family(
        "follow(table, key)",
        3,
        "looks a key up in a dict, the found value again, and so on, and returns the first one that is no key; "
        "if that never ends it returns $marker_repr.",
        """
def follow(table, key):
    seen = set()
    while key in table:
        if key in seen:
            return $marker
        seen.add(key)
        key = table[key]
    return key
""",
        """
def follow(table, key):
    for _ in range(len(table)):
        key = table.get(key, key)
    return key
""",
        vary("marker", None, -1, "loop", "endless", 0, "cycle", False),
        lambda s: [({"a": "b", "b": "c"}, "a"), ({"x": "y"}, "q"), ({"1": "2", "2": "3", "3": "4"}, "2")],
        lambda s: [({}, "a"), ({"a": "a"}, "a"), ({"a": "b", "b": "a"}, "a"), ({"a": "b", "b": "c", "c": "b"}, "a")],
        lambda rng, s: ({a: rng.choice("abcd") for a in "abc"}, rng.choice("abc")),
    ),
)
