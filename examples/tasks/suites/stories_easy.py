"""The stories of levels 1 to 3."""

from __future__ import annotations

from .stories import Story

_ONE_STEP = (
    Story(
        "more",
        1,
        "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
        lambda r: {"a": r.randint(3, 20), "b": r.randint(2, 15)},
        lambda a, b: a + b,
    ),
    Story(
        "gift",
        1,
        "{name} had {a} {things} and gave {b} of them to {other}. How many {things} does {name} have left?",
        lambda r: {"a": r.randint(10, 25), "b": r.randint(2, 9)},
        lambda a, b: a - b,
    ),
    Story(
        "bags",
        1,
        "There are {a} bags with {b} {things} in each bag. How many {things} are there in all?",
        lambda r: {"a": r.randint(2, 9), "b": r.randint(2, 9)},
        lambda a, b: a * b,
    ),
    Story(
        "share",
        1,
        "{total} {things} are shared equally among {k} children. How many {things} does each child get?",
        lambda r: (lambda k: {"total": k * r.randint(2, 9), "k": k})(r.randint(2, 9)),
        lambda total, k: total // k,
    ),
    Story(
        "compare",
        1,
        "{name} counted {a} {things}. {other} counted {b}. How many more {things} did {name} count?",
        lambda r: {"a": r.randint(12, 30), "b": r.randint(3, 11)},
        lambda a, b: a - b,
    ),
    Story(
        "seats",
        1,
        "A bus has {a} seats and {b} of them are taken. How many seats are free?",
        lambda r: {"a": r.randint(20, 60), "b": r.randint(5, 19)},
        lambda a, b: a - b,
    ),
    Story(
        "price",
        1,
        "In a shop one of the {goods} costs ${a}. How many dollars do {b} {goods} cost?",
        lambda r: {"a": r.randint(2, 9), "b": r.randint(2, 9)},
        lambda a, b: a * b,
    ),
    Story(
        "age",
        1,
        "{name} is {a} years old. How old will {she} be in {b} years?",
        lambda r: {"a": r.randint(5, 40), "b": r.randint(2, 20)},
        lambda a, b: a + b,
    ),
)

_TWO_STEPS = (
    Story(
        "change",
        2,
        "{name} buys {n} {goods} at ${p} each and pays with a ${bill} bill. How many dollars of change does {she} get?",
        lambda r: {"n": r.randint(2, 6), "p": r.randint(3, 8), "bill": r.choice((50, 100))},
        lambda n, p, bill: bill - n * p,
    ),
    Story(
        "boxes",
        2,
        "{name} packs {n} small boxes with {a} {things} each and {m} large boxes with {b} {things} each. "
        "How many {things} does {she} pack?",
        lambda r: {"n": r.randint(2, 9), "a": r.randint(3, 9), "m": r.randint(2, 9), "b": r.randint(10, 20)},
        lambda n, a, m, b: n * a + m * b,
    ),
    Story(
        "rest",
        2,
        "{name} has {total} {things}. {She} loses {x} of them and shares the rest equally among {k} friends. "
        "How many {things} does each friend get?",
        lambda r: (lambda k, x: {"total": k * r.randint(3, 9) + x, "x": x, "k": k})(r.randint(2, 8), r.randint(2, 9)),
        lambda total, x, k: (total - x) // k,
    ),
    Story(
        "pages",
        2,
        "A book has {p} pages. {name} reads {a} pages a day for {d} days. How many pages are left?",
        lambda r: {"p": r.randint(150, 300), "a": r.randint(6, 15), "d": r.randint(3, 9)},
        lambda p, a, d: p - a * d,
    ),
    Story(
        "times",
        2,
        "{name} has {a} {things}. {other} has {k} times as many. How many {things} do they have together?",
        lambda r: {"a": r.randint(4, 25), "k": r.randint(3, 6)},
        lambda a, k: a + a * k,
    ),
    Story(
        "tram",
        2,
        "A tram leaves with {a} passengers. At the next stop {b} get off and {c} get on. How many passengers are on "
        "it now?",
        lambda r: {"a": r.randint(30, 80), "b": r.randint(5, 25), "c": r.randint(3, 30)},
        lambda a, b, c: a - b + c,
    ),
    Story(
        "savings",
        2,
        "{name} has ${a} and saves ${b} every week. How many dollars does {she} have after {w} weeks?",
        lambda r: {"a": r.randint(10, 90), "b": r.randint(4, 15), "w": r.randint(3, 12)},
        lambda a, b, w: a + b * w,
    ),
    Story(
        "fence",
        2,
        "A rectangular garden is {a} metres long and {b} metres wide. How many metres of fence go once around it?",
        lambda r: {"a": r.randint(12, 40), "b": r.randint(3, 11)},
        lambda a, b: 2 * (a + b),
    ),
)

_THREE_STEPS = (
    Story(
        "discount",
        3,
        "One of the {goods} costs ${p}. Today there is a discount of {d} percent. "
        "How many dollars does {name} pay for {n} {goods}?",
        lambda r: {"p": 20 * r.randint(1, 9), "d": 5 * r.randint(1, 8), "n": r.randint(3, 8)},
        lambda p, d, n: n * (p - p * d // 100),
    ),
    Story(
        "trip",
        3,
        "{name} drives {h} hours at {a} km an hour and then {g} hours at {b} km an hour. How many km does {she} drive?",
        lambda r: {"h": r.randint(2, 6), "a": r.randint(45, 75), "g": r.randint(2, 5), "b": r.randint(80, 120)},
        lambda h, a, g, b: h * a + g * b,
    ),
    Story(
        "eggs",
        3,
        "{name} has {h} hens, and each lays {e} eggs a week. {She} packs the eggs of {w} weeks into boxes of {k}. "
        "How many boxes does {she} fill?",
        lambda r: {"h": 6 * r.randint(2, 7), "e": r.randint(4, 6), "w": 2 * r.randint(1, 4), "k": r.choice((6, 12))},
        lambda h, e, w, k: h * e * w // k,
    ),
    Story(
        "wages",
        3,
        "{name} earns ${a} an hour, and ${b} more for each hour of overtime. {She} worked {h} hours, "
        "{o} of them overtime. How many dollars did {she} earn?",
        lambda r: {"a": r.randint(12, 30), "b": r.randint(3, 9), "h": r.randint(36, 50), "o": r.randint(3, 12)},
        lambda a, b, h, o: a * h + b * o,
    ),
    Story(
        "recipe",
        3,
        "A recipe for {s} people needs {g} grams of flour. {name} has {f} grams and wants to cook for {t} people. "
        "How many grams are missing?",
        lambda r: (lambda s, each: {"s": s, "g": s * each, "f": r.randint(20, 150), "t": s + r.randint(2, 8)})(
            r.randint(2, 6), r.randint(40, 90)
        ),
        lambda s, g, f, t: g // s * t - f,
    ),
    Story(
        "tank",
        3,
        "A tank holds {a} litres of water. A pump adds {b} litres a minute while {c} litres a minute leak out. "
        "How many litres are in it after {m} minutes?",
        lambda r: {"a": r.randint(40, 300), "b": r.randint(12, 30), "c": r.randint(2, 11), "m": r.randint(6, 25)},
        lambda a, b, c, m: a + (b - c) * m,
    ),
    Story(
        "outing",
        3,
        "{s} pupils and {t} teachers visit a museum. A pupil pays ${p}, a teacher ${q}, and the bus costs ${b}. "
        "How many dollars does the outing cost?",
        lambda r: {
            "s": r.randint(18, 32),
            "t": r.randint(2, 4),
            "p": r.randint(3, 8),
            "q": r.randint(9, 15),
            "b": r.randint(80, 190),
        },
        lambda s, t, p, q, b: s * p + t * q + b,
    ),
    Story(
        "ribbon",
        3,
        "{name} has {m} metres of ribbon and cuts off {n} pieces of {c} centimetres each. "
        "How many centimetres of ribbon are left?",
        lambda r: {"m": r.randint(4, 9), "n": r.randint(5, 12), "c": r.randint(12, 33)},
        lambda m, n, c: 100 * m - n * c,
    ),
)

EASY_STORIES = (*_ONE_STEP, *_TWO_STEPS, *_THREE_STEPS)
