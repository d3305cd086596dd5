"""Tasks about things that happen one after another: moves, accounts, queues, caches."""

from __future__ import annotations

from random import Random

from ..family import Code, Family, table, vary


def _times(rng: Random, n: int, step: int) -> list[int]:
    times = [0]
    for _ in range(n - 1):
        times.append(times[-1] + rng.randint(0, step))
    return times


FAMILIES = (
    Family(
        "walk(moves)",
        1,
        "starts at (0, 0) and returns the pair (x, y) reached by a text of moves: '$right' adds $step to x, '$left' "
        "takes $step from it, '$up' adds $step to y, '$down' takes $step from it; other characters do nothing.",
        """
def walk(moves):
    x = $step * (moves.count($right) - moves.count($left))
    y = $step * (moves.count($up) - moves.count($down))
    return x, y
""",
        """
def walk(moves):
    x = y = 0
    steps = {$right: (1, 0), $left: (-1, 0), $up: (0, 1), $down: (0, -1)}
    for move in moves:
        dx, dy = steps[move]
        x, y = x + $step * dx, y + $step * dy
    return x, y
""",
        table(
            "right left up down step",
            ("R", "L", "U", "D", 1),
            ("R", "L", "U", "D", 2),
            (">", "<", "^", "v", 1),
            (">", "<", "^", "v", 5),
            ("E", "W", "N", "S", 1),
            ("E", "W", "N", "S", 10),
            ("d", "a", "w", "s", 3),
        ),
        lambda s: [(s["right"] * 2 + s["up"],), (s["left"] + s["down"] * 3,), (s["up"] + s["down"],)],
        lambda s: [("",), (s["right"] + " " + s["right"],), ("?!",), (s["left"] + "." + s["up"] * 4,)],
        lambda rng, s: ("".join(rng.choices([s["right"], s["left"], s["up"], s["down"], "-"], k=8)),),
    ),
    Family(
        "final_balance(start, changes)",
        2,
        "applies a list of changes to an account and returns the balance at the end. A change that would make the "
        "balance lower than $floor is refused; the later ones still count.",
        """
def final_balance(start, changes):
    for change in changes:
        if change >= 0 or start + change >= $floor:
            start += change
    return start
""",
        """
def final_balance(start, changes):
    for change in changes:
        if start + change < $floor:
            break
        start += change
    return start
""",
        vary("floor", 0, 5, 10, 20, 50, 100, -50),
        lambda s: [(200, [-20, 30]), (150, [10, 10, -40]), (120, [-500])],
        lambda s: [(300, []), (110, [-400, 7]), (s["floor"], [-1, 1]), (s["floor"] + 10, [-10, -1, 5])],
        lambda rng, s: (s["floor"] + 20, [rng.randint(-30, 20) for _ in range(6)]),
    ),
    Family(
        "waiting_times(arrivals)",
        3,
        "returns how long each customer waits. One clerk serves them in the order of arrival, $k minutes each; "
        "`arrivals` is the sorted list of the minutes at which they come.",
        """
def waiting_times(arrivals):
    waits, free = [], 0
    for arrival in arrivals:
        begin = max(arrival, free)
        waits.append(begin - arrival)
        free = begin + $k
    return waits
""",
        """
def waiting_times(arrivals):
    return [max(0, arrivals[0] + $k * index - arrival) for index, arrival in enumerate(arrivals)]
""",
        vary("k", 2, 3, 4, 5, 6, 8, 10),
        lambda s: [([0, 1, 2],), ([5, 5],), ([3, 3, 4, 5],)],
        lambda s: [([],), ([0, 50, 50, 51],), ([1, 1, 100, 101],), ([7],)],
        lambda rng, s: (_times(rng, 7, 2 * s["k"]),),
    ),
    Family(
        "count_hits(keys)",
        3,
        "counts how many keys of a list are found in a cache of at most $k keys, empty at first. A key that is not "
        "found is added; if the cache is full, the key used longest ago leaves it. Being found is a use.",
        """
def count_hits(keys):
    cache, hits = [], 0
    for key in keys:
        if key in cache:
            hits += 1
            cache.remove(key)
        elif len(cache) == $k:
            cache.pop(0)
        cache.append(key)
    return hits
""",
        """
def count_hits(keys):
    cache, hits = [], 0
    for key in keys:
        if key in cache:
            hits += 1
        else:
            if len(cache) == $k:
                cache.pop(0)
            cache.append(key)
    return hits
""",
        vary("k", 2, 3, 4, 5, 6, 7),
        lambda s: [(["a", "b", "a"],), ([1, 1, 1, 2],), ([*range(s["k"] + 1), 0],), ([3, 4],)],
        lambda s: [([],), ([*range(s["k"]), 0, 99, 0],), ([*range(s["k"]), 0, 1, 98, 0, 1],)],
        lambda rng, s: ([rng.randint(0, s["k"]) for _ in range(4 * s["k"])],),
    ),
    Family(
        "allow(times)",
        3,
        "takes the sorted seconds of some requests and returns a list of True or False for each: a request is "
        "allowed if fewer than $k allowed ones came in the $w seconds before it. One exactly $w seconds older no "
        "longer counts.",
        """
def allow(times):
    allowed, results = [], []
    for time in times:
        ok = sum(time - other < $w for other in allowed) < $k
        results.append(ok)
        if ok:
            allowed.append(time)
    return results
""",
        """
def allow(times):
    counts, results = {}, []
    for time in times:
        window = time // $w
        results.append(counts.get(window, 0) < $k)
        counts[window] = counts.get(window, 0) + 1
    return results
""",
        table("k w", (1, 10), (2, 10), (3, 10), (2, 5), (3, 20), (1, 60), (2, 60)),
        lambda s: [([0, 1, 2, 3],), ([0, 3 * s["w"]],), ([1],), ([0, 0, s["w"] * 2],)],
        lambda s: [
            ([],),
            ([s["w"] - 1] * s["k"] + [s["w"]],),
            ([0] * (s["k"] + 1) + [s["w"]],),
            ([s["w"] - 2, s["w"] - 1, s["w"], s["w"] + 1],),
        ],
        lambda rng, s: (_times(rng, 7, s["w"] // 2),),
    ),
    Family(
        "last_left(names)",
        2,
        "puts the names of a list in a circle, counts from the first one on, and takes every $nth name out until one "
        "is left, which it returns. An empty list gives $missing_repr.",
        """
def last_left(names):
    names, place = list(names), 0
    while len(names) > 1:
        place = (place + $k - 1) % len(names)
        names.pop(place)
    return names[0] if names else $missing
""",
        """
def last_left(names):
    names, place = list(names), 0
    while len(names) > 1:
        place = (place + $k - 1) % len(names)
        names.pop(place)
    return names[0]
""",
        table(
            "nth k missing",
            ("second", 2, None),
            ("third", 3, None),
            ("fourth", 4, None),
            ("fifth", 5, None),
            ("second", 2, ""),
            ("third", 3, "nobody"),
        ),
        lambda s: [(["a", "b", "c", "d"],), (["x"],), (["p", "q", "r", "s", "t", "u"],)],
        lambda s: [([],), (["m", "n"],), (list("abcdefghij"),)],
        lambda rng, s: (list("abcdefghijk"[: rng.randint(2, 11)]),),
    ),
    Family(
        "compute(tokens)",
        3,
        "evaluates a list of tokens in postfix order: a number goes onto a stack, an operator replaces the two topmost "
        "numbers a, b (b on top) by its result. '+' and '-' mean a + b and a - b, '$sign' means $words. "
        "It returns the topmost number, or $missing_repr for an empty list.",
        """
def compute(tokens):
    stack = []
    for token in tokens:
        if token in ("+", "-", $sign):
            b, a = stack.pop(), stack.pop()
            stack.append({"+": a + b, "-": a - b}.get(token, $rule))
        else:
            stack.append(token)
    return stack[-1] if stack else $missing
""",
        """
def compute(tokens):
    stack = []
    for token in tokens:
        if token in ("+", "-", $sign):
            a, b = stack.pop(), stack.pop()
            stack.append({"+": a + b, "-": a - b}.get(token, $rule))
        else:
            stack.append(token)
    return stack[-1] if stack else $missing
""",
        table(
            "sign words rule missing",
            ("*", "a * b", Code("a * b"), 0),
            ("max", "the larger of the two", Code("max(a, b)"), None),
            ("min", "the smaller of the two", Code("min(a, b)"), None),
            ("gap", "how far apart the two are", Code("abs(a - b)"), 0),
            ("twice", "2 * (a + b)", Code("2 * (a + b)"), 0),
            ("avg", "(a + b) // 2", Code("(a + b) // 2"), None),
        ),
        lambda s: [([3, 4, "+"],), ([7],), ([2, 5, s["sign"]],), ([1, 2, 3, "+", "+"],)],
        lambda s: [
            ([],),
            ([9, 4, "-"],),
            ([1, 2, 3, "-", "-"],),
            ([8, 6, s["sign"], 1, "-"],),
            ([5, -5, "-", 2, s["sign"]],),
        ],
        lambda rng, s: ([rng.randint(0, 9), rng.randint(0, 9), rng.choice(["-", s["sign"]]), rng.randint(1, 9), "-"],),
    ),
)
