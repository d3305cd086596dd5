"""The stories of levels 4 and 5."""

from __future__ import annotations

from random import Random

from .stories import Story


def _draw_fractions(rng: Random) -> dict[str, int]:
    k, m = rng.randint(3, 6), rng.randint(2, 5)
    return {"p": k * m * rng.randint(4, 12), "k": k, "m": m}


def _draw_profit(rng: Random) -> dict[str, int]:
    n, price = rng.randint(20, 50), 2 * rng.randint(6, 15)
    return {"n": n, "c": rng.randint(2, 5), "k": n - rng.randint(4, 12), "p": price}


def _draw_average(rng: Random) -> dict[str, int]:
    mean = rng.randint(70, 85)
    scores = {name: mean + rng.randint(-12, 6) for name in "abcd"}
    return {**scores, "mean": mean}


def _draw_ratio(rng: Random) -> dict[str, int]:
    a = rng.randint(2, 5)
    b = a + rng.choice((1, 2, 3, 5))
    return {"a": a, "b": b, "total": (a + b) * rng.randint(6, 20)}


def _draw_machines(rng: Random) -> dict[str, int]:
    a, b = rng.randint(12, 40), rng.randint(12, 40)
    return {"a": a, "b": b, "done": rng.randint(20, 90), "hours": rng.randint(3, 9)}


_FOUR_STEPS = (
    Story(
        "fractions",
        4,
        "A book has {p} pages. On Monday {name} reads 1/{k} of it, on Tuesday 1/{m} of what is left. "
        "How many pages remain after Tuesday?",
        _draw_fractions,
        lambda p, k, m: (p - p // k) - (p - p // k) // m,
    ),
    Story(
        "buses",
        4,
        "{c} classes of {s} pupils and {t} adults go on a trip. A bus takes {b} people and costs ${p}. "
        "How many dollars do the buses cost?",
        lambda r: {
            "c": r.randint(3, 7),
            "s": r.randint(19, 29),
            "t": r.randint(5, 14),
            "b": r.randint(32, 54),
            "p": 10 * r.randint(12, 30),
        },
        lambda c, s, t, b, p: -(-(c * s + t) // b) * p,
    ),
    Story(
        "profit",
        4,
        "{name} buys {n} {goods} at ${c} each. {She} sells {k} of them at ${p} each and the others at half that price. "
        "How many dollars of profit does {she} make?",
        _draw_profit,
        lambda n, c, k, p: k * p + (n - k) * p // 2 - n * c,
    ),
    Story(
        "average",
        4,
        "{name} scored {a}, {b}, {c} and {d} points in four tests. "
        "How many points does {she} need in the fifth test for an average of {mean}?",
        _draw_average,
        lambda a, b, c, d, mean: 5 * mean - (a + b + c + d),
    ),
    Story(
        "ratio",
        4,
        "A box holds red and blue {things} in the ratio {a} to {b}, {total} in all. "
        "How many more blue than red {things} are there?",
        _draw_ratio,
        lambda a, b, total: total // (a + b) * (b - a),
    ),
    Story(
        "machines",
        4,
        "One machine makes {a} parts an hour, another {b}. {done} parts are ready; then both run for {hours} hours, "
        "but the second one stands still for the last hour. How many parts are there at the end?",
        _draw_machines,
        lambda a, b, done, hours: done + a * hours + b * (hours - 1),
    ),
    Story(
        "journey",
        4,
        "{name} leaves home at 7:{m:02d}. {She} walks {a} minutes, waits {b} minutes, and rides a train for {c} "
        "minutes. How many minutes after 8:00 does {she} arrive?",
        lambda r: {"m": r.randint(5, 40), "a": r.randint(8, 25), "b": r.randint(4, 15), "c": r.randint(45, 95)},
        lambda m, a, b, c: m + a + b + c - 60,
    ),
    Story(
        "up_and_down",
        4,
        "The price of a bicycle is ${p}. It rises by {u} percent, and then the new price falls by {d} percent. "
        "How many dollars does the bicycle cost now?",
        lambda r: {"p": 100 * r.randint(2, 9), "u": 10 * r.randint(1, 6), "d": 10 * r.randint(1, 5)},
        lambda p, u, d: p * (100 + u) * (100 - d) // 10_000,
    ),
)


def _draw_purse(rng: Random) -> dict[str, int]:
    return {"a": rng.randint(4, 20), "left": 2 * rng.randint(4, 15)}


def _draw_ages(rng: Random) -> dict[str, int]:
    young, k, n = rng.randint(5, 14), rng.randint(3, 5), rng.randint(2, 9)
    return {"k": k, "n": n, "total": (k + 1) * young + 2 * n}


def _draw_trains(rng: Random) -> dict[str, int]:
    a, b, hours, lead = 10 * rng.randint(5, 9), 10 * rng.randint(6, 12), rng.randint(2, 5), rng.randint(2, 3)
    return {"distance": a * (hours + lead) + b * hours, "a": a, "lead": lead, "b": b}


def _draw_coins(rng: Random) -> dict[str, int]:
    n, large = rng.randint(20, 45), rng.randint(5, 18)
    return {"n": n, "total": 5 * (n - large) + 20 * large}


def _draw_candles(rng: Random) -> dict[str, int]:
    x, y, minutes = rng.randint(7, 12), rng.randint(2, 5), rng.randint(6, 15)
    b = y * minutes + rng.randint(15, 60)
    return {"a": b + (x - y) * minutes, "x": x, "b": b, "y": y}


def _draw_plans(rng: Random) -> dict[str, int]:
    cheap, dear, same = rng.randint(2, 5), rng.randint(6, 9), rng.randint(12, 40)
    base = rng.randint(10, 60)
    return {"p": base + (dear - cheap) * same, "a": cheap, "q": base, "b": dear, "h": same + rng.randint(5, 30)}


def _draw_stock(rng: Random) -> dict[str, int]:
    a, b, w = rng.randint(6, 15), rng.randint(10, 30), rng.randint(3, 6)
    return {"s": rng.randint(600, 900), "c": rng.randint(40, 90), "a": a, "b": b, "w": w}


def _draw_clubs(rng: Random) -> dict[str, int]:
    both, chess, ball = rng.randint(2, 8), rng.randint(3, 10), rng.randint(4, 12)
    neither = 3 * rng.randint(2, 6)
    return {"total": chess + ball + both + neither, "x": chess + both, "y": ball + both, "both": both}


_MANY_STEPS = (
    Story(
        "purse",
        5,
        "{name} spent half of {her} money on a coat and then ${a} on lunch. "
        "Of what was left, {she} gave one third to {other}. {name} still has ${left}. "
        "How many dollars did {she} have at first?",
        _draw_purse,
        lambda a, left: 2 * (left * 3 // 2 + a),
    ),
    Story(
        "ages",
        5,
        "{name} is {k} times as old as {other}. In {n} years their ages will add up to {total}. How old is {name} now?",
        _draw_ages,
        lambda k, n, total: (total - 2 * n) // (k + 1) * k,
    ),
    Story(
        "trains",
        5,
        "Two towns are {distance} km apart. A train leaves the first town at {a} km an hour. After {lead} hours a "
        "second train leaves the other town towards it at {b} km an hour. How many km has the first train gone when "
        "they meet?",
        _draw_trains,
        lambda distance, a, lead, b: a * (lead + (distance - a * lead) // (a + b)),
    ),
    Story(
        "coins",
        5,
        "{name} has {n} coins, only 5-cent and 20-cent coins, worth {total} cents together. "
        "How many 20-cent coins does {she} have?",
        _draw_coins,
        lambda n, total: (total - 5 * n) // 15,
    ),
    Story(
        "candles",
        5,
        "A thin candle is {a} millimetres tall and burns down {x} millimetres a minute; a thick one is {b} millimetres "
        "tall and burns down {y} a minute. Both are lit at once. After how many minutes are they equally tall?",
        _draw_candles,
        lambda a, x, b, y: (a - b) // (x - y),
    ),
    Story(
        "plans",
        5,
        "Renting a boat costs ${p} plus ${a} an hour at one pier, and ${q} plus ${b} an hour at another. "
        "{name} needs it for {h} hours. How many dollars does the cheaper pier save {name}?",
        _draw_plans,
        lambda p, a, q, b, h: abs(p + a * h - q - b * h),
    ),
    Story(
        "stock",
        5,
        "A shop has {s} {goods}. Every week {c} new ones arrive; {a} are sold on each of the five weekdays and {b} "
        "on each of the two days of the weekend. How many {goods} are there after {w} weeks?",
        _draw_stock,
        lambda s, c, a, b, w: s + w * (c - 5 * a - 2 * b),
    ),
    Story(
        "clubs",
        5,
        "Of {total} pupils {x} play chess, {y} play football and {both} do both. One third of those who do neither "
        "sing in the choir. How many pupils do none of the three?",
        _draw_clubs,
        lambda total, x, y, both: (total - (x + y - both)) * 2 // 3,
    ),
)

HARD_STORIES = (*_FOUR_STEPS, *_MANY_STEPS)
