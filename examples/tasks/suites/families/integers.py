"""Tasks about whole numbers: digits, bases, factors, coins."""

from __future__ import annotations

from ..family import Code, Family, table, vary

FAMILIES = (
    Family(
        "clamp(number)",
        1,
        "returns the number, but $low if it is below $low and $high if it is above $high.",
        """
def clamp(number):
    return max($low, min($high, number))
""",
        """
def clamp(number):
    return min($high, abs(number))
""",
        table("low high", (0, 10), (1, 6), (2, 20), (0, 100), (3, 9), (5, 50), (1, 12)),
        lambda s: [(s["high"] + 5,), (s["low"] + 1,), (s["high"],)],
        lambda s: [(s["low"] - 2,), (-s["high"] - 3,), (s["low"],), (-1,)],
        lambda rng, s: (rng.randint(-s["high"], 2 * s["high"]),),
    ),
    Family(
        "sum_digits(number)",
        1,
        "returns the sum of those decimal digits of a whole number, which may be negative, that are $words.",
        """
def sum_digits(number):
    return sum(int(digit) for digit in str(abs(number)) if int(digit) $test)
""",
        """
def sum_digits(number):
    total = 0
    while number > 0:
        number, digit = divmod(number, 10)
        if digit $test:
            total += digit
    return total
""",
        table(
            "words test",
            ("even", Code("% 2 == 0")),
            ("odd", Code("% 2 == 1")),
            ("greater than 4", Code("> 4")),
            ("less than 7", Code("< 7")),
            ("multiples of 3", Code("% 3 == 0")),
            ("different from 5", Code("!= 5")),
        ),
        lambda s: [(1234,), (90567,), (8,)],
        lambda s: [(0,), (-1234,), (-6,), (5555,), (-98765,)],
        lambda rng, s: (rng.randint(-9999, 9999),),
    ),
    Family(
        "round_to(number)",
        1,
        "rounds a whole number to the nearest multiple of $k; halfway between two, it takes the larger one.",
        """
def round_to(number):
    return (number + $k // 2) // $k * $k
""",
        """
def round_to(number):
    return round(number / $k) * $k
""",
        vary("k", 2, 4, 6, 10, 20, 50, 100),
        lambda s: [(7 * s["k"],), (3 * s["k"] + s["k"] // 2,), (11 * s["k"],), (5 * s["k"] + s["k"] // 2,)],
        lambda s: [(0,), (s["k"] // 2,), (2 * s["k"] + s["k"] // 2,), (-s["k"] // 2,), (1,), (-1,)],
        lambda rng, s: (rng.randint(-3 * s["k"], 3 * s["k"]),),
    ),
    Family(
        "label(number)",
        1,
        "returns 'A' for a multiple of $a, 'B' for a multiple of $b, 'AB' for a multiple of both, "
        "and else the number as text.",
        """
def label(number):
    return ("A" * (number % $a == 0) + "B" * (number % $b == 0)) or str(number)
""",
        """
def label(number):
    if number % $a == 0:
        return "A"
    if number % $b == 0:
        return "B"
    return str(number)
""",
        table("a b", (3, 5), (2, 7), (4, 5), (3, 7), (5, 7), (2, 9), (4, 9)),
        lambda s: [(s["a"],), (s["b"],), (1,), (11,)],
        lambda s: [(0,), (s["a"] * s["b"],), (2 * s["a"] * s["b"],), (-s["a"],), (13,)],
        lambda rng, s: (rng.randint(1, 3 * s["a"] * s["b"]),),
    ),
    Family(
        "is_power(number)",
        1,
        "returns True if a whole number is 1, $k, $k*$k or a higher power of $k, else False. "
        "The number may be 0 or negative.",
        """
def is_power(number):
    power = 1
    while power < number:
        power *= $k
    return power == number
""",
        """
def is_power(number):
    while number > 1:
        if number % $k:
            return False
        number //= $k
    return True
""",
        vary("k", 2, 3, 4, 5, 6, 7, 10),
        lambda s: [(s["k"] ** 2,), (s["k"] + 1,), (s["k"],), (s["k"] ** 3 - 1,)],
        lambda s: [(0,), (1,), (-s["k"],), (-1,), (s["k"] ** 10,), (2 * s["k"] ** 2,)],
        lambda rng, s: (rng.choice([s["k"] ** rng.randint(1, 8), rng.randint(-5, 500)]),),
    ),
    Family(
        "percent(part, whole)",
        1,
        "returns how many percent `part` is of `whole`, rounded down to a whole number, at most 100, "
        "and $default_repr if `whole` is 0. Both are whole numbers that are not negative.",
        """
def percent(part, whole):
    if whole == 0:
        return $default
    return min(part * 100 // whole, 100)
""",
        """
def percent(part, whole):
    if not whole:
        return $default
    return part * 100 // whole
""",
        vary("default", None, -1, 0, 100, "none", False),
        lambda s: [(1, 4), (2, 3), (5, 5), (0, 9)],
        lambda s: [(0, 0), (3, 0), (7, 5), (200, 1), (1, 1000)],
        lambda rng, s: (rng.randint(0, 20), rng.randint(0, 12)),
    ),
    Family(
        "term(n)",
        1,
        "returns f(n) for a whole number n from 0 on, where f(0) = $a, f(1) = $b, and f(n) = f(n-1) + f(n-2).",
        """
def term(n):
    a, b = $a, $b
    for _ in range(n):
        a, b = b, a + b
    return a
""",
        """
def term(n):
    a, b = $a, $b
    for _ in range(n - 1):
        a, b = b, a + b
    return b
""",
        table("a b", (0, 1), (2, 1), (1, 3), (3, 4), (5, 2), (0, 4), (7, 3)),
        lambda s: [(2,), (5,), (1,)],
        lambda s: [(0,), (3,), (10,), (60,)],
        lambda rng, s: (rng.randint(4, 40),),
    ),
    Family(
        "to_base(number)",
        2,
        "writes a whole number in base $k, with a leading '-' if it is negative. Zero is '0'.",
        """
def to_base(number):
    rest, digits = abs(number), ""
    while rest:
        rest, digit = divmod(rest, $k)
        digits = str(digit) + digits
    return ("-" if number < 0 else "") + (digits or "0")
""",
        """
def to_base(number):
    digits = ""
    while number > 0:
        digits = str(number % $k) + digits
        number //= $k
    return digits
""",
        vary("k", 2, 3, 4, 5, 6, 7, 8, 9),
        lambda s: [(10,), (63,), (1,)],
        lambda s: [(0,), (-5,), (s["k"],), (s["k"] ** 3 - 1,), (-(s["k"] ** 2),)],
        lambda rng, s: (rng.randint(-200, 900),),
    ),
    Family(
        "prime_factors(number)",
        2,
        "returns the list of the prime factors of a whole number that are at least $k, in rising order, each as "
        "often as it occurs. Numbers below 2 give [].",
        """
def prime_factors(number):
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return [factor for factor in factors if factor >= $k]
""",
        """
def prime_factors(number):
    factors = []
    for divisor in range($k, number + 1):
        is_prime = all(divisor % smaller for smaller in range(2, divisor))
        if number % divisor == 0 and is_prime:
            factors.append(divisor)
    return factors
""",
        vary("k", 2, 3, 5, 7, 11, 13),
        lambda s: [(30,), (77,), (13,), (39,)],
        lambda s: [
            (1,),
            (0,),
            (-6,),
            (4 * s["k"] ** 2,),
            (144,),
            (s["k"] ** 3 if s["k"] in (2, 3, 5, 7) else 338,),
            (121,),
        ],
        lambda rng, s: (rng.randint(2, 400),),
    ),
    Family(
        "fewest_coins(amount)",
        3,
        "returns the least number of coins that add up to `amount`, or -1 if that is impossible. "
        "There are coins of $words, as many of each as needed; 0 needs no coin.",
        """
def fewest_coins(amount):
    least = [0]
    for part in range(1, amount + 1):
        options = [least[part - coin] for coin in $coins if coin <= part and least[part - coin] >= 0]
        least.append(min(options) + 1 if options else -1)
    return least[amount]
""",
        """
def fewest_coins(amount):
    count = 0
    for coin in sorted($coins, reverse=True):
        count += amount // coin
        amount %= coin
    return count if amount == 0 else -1
""",
        table(
            "words coins",
            ("1, 3 and 4", (1, 3, 4)),
            ("1, 5, 6 and 9", (1, 5, 6, 9)),
            ("1, 6 and 10", (1, 6, 10)),
            ("2 and 5", (2, 5)),
            ("3 and 5", (3, 5)),
            ("1, 7 and 10", (1, 7, 10)),
            ("4 and 9", (4, 9)),
        ),
        lambda s: [(s["coins"][-1],), (2 * s["coins"][-1],), (s["coins"][-1] + s["coins"][0],)],
        lambda s: [(0,), (1,), (6,), (7,), (8,), (11,), (12,), (14,), (31,)],
        lambda rng, s: (rng.randint(5, 60),),
    ),
    Family(
        "count_ways(stairs)",
        2,
        "counts the ways to climb a number of stairs with steps of $words, order mattering. "
        "There is one way to climb 0 stairs.",
        """
def count_ways(stairs):
    ways = [1]
    for height in range(1, stairs + 1):
        ways.append(sum(ways[height - step] for step in $steps if step <= height))
    return ways[stairs]
""",
        """
def count_ways(stairs):
    ways = [1] + [0] * stairs
    for step in $steps:
        for height in range(step, stairs + 1):
            ways[height] += ways[height - step]
    return ways[stairs]
""",
        table(
            "words steps",
            ("1 or 2", (1, 2)),
            ("1 or 3", (1, 3)),
            ("2 or 3", (2, 3)),
            ("1, 2 or 3", (1, 2, 3)),
            ("2 or 5", (2, 5)),
            ("3 or 4", (3, 4)),
            ("1 or 4", (1, 4)),
        ),
        lambda s: [(s["steps"][0],), (s["steps"][1],), (1,), (2,), (3,), (4,)],
        lambda s: [(0,), (4,), (6,), (9,), (10,), (15,), (25,)],
        lambda rng, s: (rng.randint(5, 30),),
    ),
    Family(
        "bell(hour)",
        1,
        "tells how often a clock strikes at an hour from 0 to 23: once for each hour on a $n-hour clock, "
        "where the hours go from 1 to $n and start again, so that hour 0 strikes $n times.",
        """
def bell(hour):
    return hour % $n or $n
""",
        """
def bell(hour):
    return hour if hour <= $n else hour - $n
""",
        vary("n", 4, 6, 8, 10, 12),
        lambda s: [(1,), (3,), (s["n"] + 1,), (s["n"],)],
        lambda s: [(0,), (23,), (2 * s["n"] % 24,), (2,)],
        lambda rng, s: (rng.randint(0, 23),),
    ),
)
