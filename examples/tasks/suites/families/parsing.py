"""Tasks about small languages: pairs, ranges, expressions, quotes, units."""

from __future__ import annotations

from random import Random

from ..family import Code, Family, table


def _join(rng: Random, parts: list[str], n: int) -> str:
    return "".join(rng.choices(parts, k=n))


def _sum_text(rng: Random, sign: str) -> str:
    return " ".join(
        [str(rng.randint(1, 9)), *(f"{rng.choice(['+', '-', sign])} {rng.randint(1, 9)}" for _ in range(4))]
    )


FAMILIES = (
    Family(
        "parse_pairs(text)",
        2,
        "reads a text such as 'a${mid}1${end}b${mid}2' into a dict of texts. '$end' separates pairs, the first "
        "'$mid' of a pair separates key and value. Blanks around both are removed, empty pairs skipped; of equal "
        "keys the last counts.",
        """
def parse_pairs(text):
    pairs = {}
    for part in text.split($end):
        if part.strip():
            key, _, value = part.partition($mid)
            pairs[key.strip()] = value.strip()
    return pairs
""",
        """
def parse_pairs(text):
    pairs = {}
    for part in text.split($end):
        key, value = part.split($mid)
        pairs[key.strip()] = value.strip()
    return pairs
""",
        table("mid end", ("=", ";"), (":", ","), ("=", "&"), ("=", ","), (":", ";"), ("->", ","), ("=", "|")),
        lambda s: [
            ("a{mid}1{end}b{mid}2".format(**s),),
            ("x {mid} hello".format(**s),),
            ("k{mid}1{end}k{mid}3".format(**s),),
        ],
        lambda s: [
            ("",),
            ("a{mid}b{mid}c".format(**s),),
            ("a{mid}1{end}".format(**s),),
            ("{end} {end}z{mid}".format(**s),),
        ],
        lambda rng, s: (s["end"].join(f"{rng.choice('ab')}{s['mid']}{rng.choice(['1', ' 2', ''])}" for _ in range(4)),),
    ),
    Family(
        "read_numbers(text)",
        3,
        "reads whole numbers that are not negative, separated by '$sep', into a list. 'a${to}b' stands for all "
        "numbers from a to b, both included, and runs downwards if b is smaller. Blanks do not matter; an empty text "
        "gives [].",
        """
def read_numbers(text):
    numbers = []
    for part in text.replace(" ", "").split($sep):
        if part:
            ends = [int(end) for end in part.split($to)]
            first, last = ends[0], ends[-1]
            step = 1 if last >= first else -1
            numbers.extend(range(first, last + step, step))
    return numbers
""",
        """
def read_numbers(text):
    numbers = []
    for part in text.split($sep):
        if $to in part:
            first, last = part.split($to)
            numbers.extend(range(int(first), int(last) + 1))
        else:
            numbers.append(int(part))
    return numbers
""",
        table("sep to", (",", "-"), (";", "-"), (",", ".."), ("/", "-"), (";", ".."), ("|", ":"), (",", "~")),
        lambda s: [("1{sep}5{sep}7".format(**s),), ("2{to}5".format(**s),), ("9{sep}3{to}4".format(**s),)],
        lambda s: [("",), ("5{to}2".format(**s),), ("4{to}4{sep}1".format(**s),), (" 8 {sep} 10{to}8 ".format(**s),)],
        lambda rng, s: (s["sep"].join(f"{rng.randint(0, 9)}{s['to']}{rng.randint(0, 9)}" for _ in range(2)),),
    ),
    Family(
        "evaluate(text)",
        3,
        "computes an expression of whole numbers with +, - and '$sign', where 'a $sign b' is $words. '$sign' binds "
        "tighter than + and -; otherwise it goes from left to right. Blanks may stand anywhere between.",
        """
import re

def evaluate(text):
    total = 0
    for plus_minus, term in re.findall(r"([+-]?)([^+-]+)", text.replace(" ", "")):
        numbers = [int(number) for number in term.split($sign)]
        a = numbers[0]
        for b in numbers[1:]:
            a = $rule
        total += -a if plus_minus == "-" else a
    return total
""",
        """
import re

def evaluate(text):
    tokens = re.findall(r"\\d+|[^\\d\\s]", text)
    a = int(tokens[0])
    for operator, number in zip(tokens[1::2], tokens[2::2]):
        b = int(number)
        a = {"+": a + b, "-": a - b}.get(operator, $rule)
    return a
""",
        table(
            "sign words rule",
            ("*", "their product", Code("a * b")),
            ("@", "the larger of the two", Code("max(a, b)")),
            ("&", "the smaller of the two", Code("min(a, b)")),
            ("~", "how far apart the two are", Code("abs(a - b)")),
            ("#", "10a + b", Code("10 * a + b")),
            ("^", "the square of a, plus b", Code("a * a + b")),
        ),
        lambda s: [("3 + 4 - 2",), (f"5 {s['sign']} 3",), ("12",), (f"2{s['sign']}7+1",)],
        lambda s: [
            ("0",),
            (f"1 + 2 {s['sign']} 9",),
            (f"9-3{s['sign']}5-1",),
            (f"10 - 4 {s['sign']} 2 {s['sign']} 6",),
        ],
        lambda rng, s: (_sum_text(rng, s["sign"]),),
    ),
    Family(
        "split_line(line)",
        3,
        "splits a line at every '$sep' that is not between two $name quotes and returns the list of the parts. "
        "The quotes themselves are left out; an empty line gives [''].",
        """
def split_line(line):
    parts, quoted = [""], False
    for letter in line:
        if letter == $quote:
            quoted = not quoted
        elif letter == $sep and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
""",
        """
def split_line(line):
    return [part.strip($quote) for part in line.split($sep)]
""",
        table(
            "sep name quote",
            (",", "double", '"'),
            (";", "double", '"'),
            (" ", "double", '"'),
            (",", "single", "'"),
            (";", "single", "'"),
            ("|", "double", '"'),
            (":", "single", "'"),
        ),
        lambda s: [
            ("a{sep}b{sep}c".format(**s),),
            ("{quote}x{quote}{sep}y".format(**s),),
            ("one{sep}{sep}two".format(**s),),
        ],
        lambda s: [
            ("",),
            ("{quote}a{sep}b{quote}{sep}c".format(**s),),
            ("{quote}{quote}{sep}".format(**s),),
            ("p{quote}q{sep}{quote}r".format(**s),),
        ],
        lambda rng, s: (_join(rng, ["a", "b", s["sep"], "{quote}c{sep}{quote}".format(**s)], 6),),
    ),
    Family(
        "read_amount(text)",
        2,
        "turns a text such as '$example' into a number of $words. Units may be missing but keep their order; blanks "
        "between the parts are allowed; a leading '-' makes the whole negative.",
        """
import re

def read_amount(text):
    total = sum(int(count) * $units[unit] for count, unit in re.findall(r"(\\d+)\\s*([a-z]+)", text))
    return -total if text.strip().startswith("-") else total
""",
        """
def read_amount(text):
    total, digits = 0, ""
    for letter in text:
        if letter.isdigit():
            digits += letter
        elif letter in $units:
            total += int(digits) * $units[letter]
            digits = ""
    return total
""",
        table(
            "example words units",
            ("1h 30m 5s", "seconds, where h, m and s are hours, minutes and seconds", {"h": 3600, "m": 60, "s": 1}),
            ("2d 5h 10m", "minutes, where d, h and m are days, hours and minutes", {"d": 1440, "h": 60, "m": 1}),
            ("3w 2d", "days, where w and d are weeks and days", {"w": 7, "d": 1}),
            ("2y 5m", "months, where y and m are years and months", {"y": 12, "m": 1}),
            ("5e 20c", "cents, where e and c are euros and cents", {"e": 100, "c": 1}),
            ("1k 200g", "grams, where k and g are kilograms and grams", {"k": 1000, "g": 1}),
        ),
        lambda s: [(s["example"],), ("4" + min(s["units"]),), ("12" + max(s["units"]),)],
        lambda s: [
            ("",),
            ("-" + s["example"],),
            ("- 7" + min(s["units"]),),
            (s["example"].replace(" ", ""),),
            ("0" + max(s["units"]),),
        ],
        lambda rng, s: (rng.choice(["", "-"]) + "".join(f"{rng.randint(0, 40)}{unit}" for unit in s["units"]),),
    ),
    Family(
        "is_valid(code)",
        3,
        "checks a code of digits: from the left, they are multiplied by the weights $weights over and over again, "
        "and the sum must be divisible by $m. Blanks and hyphens are ignored. Any other character, or no digit, "
        "gives False.",
        """
def is_valid(code):
    digits = code.replace(" ", "").replace("-", "")
    if not digits or any(digit not in "0123456789" for digit in digits):
        return False
    weights = $weights
    return sum(int(digit) * weights[i % len(weights)] for i, digit in enumerate(digits)) % $m == 0
""",
        """
def is_valid(code):
    digits = [int(digit) for digit in code if digit.isdigit()]
    weights = $weights
    return sum(digit * weights[i % len(weights)] for i, digit in enumerate(digits)) % $m == 0
""",
        table(
            "weights m",
            ((1, 3), 10),
            ((2, 1), 9),
            ((1, 2), 7),
            ((3, 1), 10),
            ((1, 2, 3), 5),
            ((7, 3, 1), 10),
            ((3, 2, 1), 11),
        ),
        lambda s: [("0000",), ("1234",), ("90-12 3",), ("55",)],
        lambda s: [("",), ("--",), ("0a0",), ("x",), (str(s["m"] * 1001),), ("0 0-0",)],
        lambda rng, s: (str(rng.randint(10, 99999)) + rng.choice(["", "z"]),),
    ),
)
