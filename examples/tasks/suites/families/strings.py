"""Tasks about text: counting, cutting, joining, rewriting."""

from __future__ import annotations

from random import Random

from ..family import Family, table, vary

_WORDS = ("apple", "river", "of", "stone", "and", "Mirror", "the", "sky", "Extra", "to", "lantern", "a")


def _sentence(rng: Random, n_words: int = 6) -> str:
    return " ".join(rng.choices(_WORDS, k=n_words))


def _letters(rng: Random, alphabet: str, low: int, high: int) -> str:
    return "".join(rng.choices(alphabet, k=rng.randint(low, high)))


FAMILIES = (
    Family(
        "count_letters(text)",
        1,
        "returns how many characters of the text are one of the letters '$letters', in upper or lower case.",
        """
def count_letters(text):
    return sum(text.lower().count(letter) for letter in $letters)
""",
        """
def count_letters(text):
    return sum(1 for letter in text if letter in $letters)
""",
        vary("letters", "aeiou", "xyz", "st", "abc", "lmn", "eo", "rt"),
        lambda s: [("a small test in the lab",), ("lazy boxes stay on the roof",), ("mm",), (s["letters"],)],
        lambda s: [("",), (s["letters"].upper(),), ("THE Quick Brown FOX",), (s["letters"].title() * 3,)],
        lambda rng, s: (_sentence(rng),),
    ),
    Family(
        "shorten(text)",
        1,
        "returns the text unchanged if it has at most $n characters, and otherwise its beginning followed by '...', "
        "$n characters in all.",
        """
def shorten(text):
    return text if len(text) <= $n else text[: $n - 3] + "..."
""",
        """
def shorten(text):
    if len(text) < $n:
        return text
    return text[: $n - 3] + "..."
""",
        vary("n", 6, 8, 9, 10, 12, 15, 20),
        lambda s: [("short",), ("a text that is much longer than that",), ("ab",), ("0123456789" * 4,)],
        lambda s: [("x" * s["n"],), ("y" * (s["n"] + 1),), ("z" * (s["n"] - 1),), ("",)],
        lambda rng, s: (_letters(rng, "abc ", s["n"] - 1, s["n"] + 2),),
    ),
    Family(
        "initials(name)",
        1,
        "returns the first letters of the words of a name as capitals, joined by '$sep'. "
        "There may be several blanks between words, before and after them.",
        """
def initials(name):
    return $sep.join(word[0].upper() for word in name.split())
""",
        """
def initials(name):
    return $sep.join(word[0].upper() for word in name.split(" "))
""",
        vary("sep", ".", "-", "_", "/", "+", " ", "|"),
        lambda s: [("ada lovelace",), ("Grace Brewster Murray Hopper",), ("plato",)],
        lambda s: [("",), ("  ada   lovelace ",), ("a  b",), ("emmy ",)],
        lambda rng, s: (_sentence(rng, 3).replace(" ", " " * rng.randint(1, 2)),),
    ),
    Family(
        "join_lines(lines)",
        1,
        "joins a list of texts with '$sep', leaving out those that are empty or hold only blanks, "
        "and with the blanks around the others removed.",
        """
def join_lines(lines):
    return $sep.join(line.strip() for line in lines if line.strip())
""",
        """
def join_lines(lines):
    return $sep.join(line.strip() for line in lines if line)
""",
        vary("sep", ", ", "; ", " / ", "-", "|", " and ", "+"),
        lambda s: [(["one", "two", "three"],), ([" a", "b ", "", "c"],), (["alone"],)],
        lambda s: [([],), (["   ", "a", "  "],), ([" ", ""],), (["x", "\t", "y"],)],
        lambda rng, s: (rng.choices(["a", " b", "", "  ", "c d "], k=5),),
    ),
    Family(
        "shift(text)",
        2,
        "moves every letter a-z and A-Z by $k places in the alphabet, from z on to a again, "
        "keeping its case; other characters stay.",
        """
def shift(text):
    moved = []
    for letter in text:
        if "a" <= letter <= "z":
            letter = chr((ord(letter) - 97 + $k) % 26 + 97)
        elif "A" <= letter <= "Z":
            letter = chr((ord(letter) - 65 + $k) % 26 + 65)
        moved.append(letter)
    return "".join(moved)
""",
        """
def shift(text):
    moved = []
    for letter in text:
        if letter.islower():
            letter = chr((ord(letter) - ord("a") + $k) % 26 + ord("a"))
        moved.append(letter)
    return "".join(moved)
""",
        vary("k", 2, 3, 4, 5, 7, 11, 13),
        lambda s: [("hello world",), ("xyz, abc!",), ("a-b-c 123",)],
        lambda s: [("",), ("Hello World",), ("ZYX ABC",), ("42!",)],
        lambda rng, s: (_letters(rng, "abcxyzABCXYZ .", 4, 9),),
    ),
    Family(
        "is_palindrome(text)",
        2,
        "returns True if the text reads the same in both directions when upper and lower case count as equal "
        "and the characters $names are left out, else False.",
        """
def is_palindrome(text):
    kept = [letter for letter in text.lower() if letter not in $skipped]
    return kept == kept[::-1]
""",
        """
def is_palindrome(text):
    kept = [letter for letter in text if letter not in $skipped]
    return kept == kept[::-1]
""",
        table(
            "names skipped",
            ("blank and comma", " ,"),
            ("dot and blank", ". "),
            ("hyphen and blank", "- "),
            ("'!' and '?'", "!?"),
            ("blank and apostrophe", " '"),
            ("'_' and '/'", "_/"),
            ("colon and semicolon", ":;"),
        ),
        lambda s: [("level",), ("abc",), ("not a" + s["skipped"][0] + "ton",), ("ab" + s["skipped"] + "ba",)],
        lambda s: [
            ("",),
            ("Level",),
            ("A" + s["skipped"][0] + "ba",),
            (s["skipped"],),
            ("Abc",),
            ("No" + s["skipped"][1] + "on",),
        ],
        lambda rng, s: (_letters(rng, "aA" + s["skipped"], 2, 6),),
    ),
    Family(
        "encode_runs(text)",
        2,
        "writes each run of equal characters as the character and the run's length, joined by '$sep': "
        "'aaab' has the parts 'a3' and 'b1'.",
        """
def encode_runs(text):
    parts = []
    for index, letter in enumerate(text):
        if index and letter == text[index - 1]:
            parts[-1][1] += 1
        else:
            parts.append([letter, 1])
    return $sep.join(f"{letter}{count}" for letter, count in parts)
""",
        """
def encode_runs(text):
    counts = {}
    for letter in text:
        counts[letter] = counts.get(letter, 0) + 1
    return $sep.join(f"{letter}{count}" for letter, count in counts.items())
""",
        vary("sep", "", "-", ",", " ", "|", "/", ":"),
        lambda s: [("aaab",), ("xyyzzz",), ("q",)],
        lambda s: [("",), ("aabaa",), ("abab",), ("A" * 12 + "a",)],
        lambda rng, s: (_letters(rng, "ab", 5, 10),),
    ),
    Family(
        "make_title(text)",
        2,
        "writes every word of the text with a capital first letter and the rest in lower case, except that the words "
        "'$one' and '$two' are wholly in lower case unless they come first. Words are separated by single blanks.",
        """
def make_title(text):
    words = []
    for index, word in enumerate(text.split()):
        small = index > 0 and word.lower() in ($one, $two)
        words.append(word.lower() if small else word.capitalize())
    return " ".join(words)
""",
        """
def make_title(text):
    words = []
    for word in text.split():
        words.append(word if word in ($one, $two) else word.capitalize())
    return " ".join(words)
""",
        table(
            "one two",
            ("of", "the"),
            ("and", "or"),
            ("in", "on"),
            ("a", "an"),
            ("to", "by"),
            ("at", "for"),
            ("with", "from"),
        ),
        lambda s: [(f"song {s['one']} nights",), (f"tales {s['two']} Winter",), ("plain words only",)],
        lambda s: [("",), (f"{s['one']} mice",), (f"SEA {s['two'].upper()} SKY",), (f"{s['two']} {s['one']}",)],
        lambda rng, s: (_sentence(rng, 4) + f" {s['one']} end",),
    ),
    Family(
        "mask(code)",
        1,
        "replaces all but the last $n characters of a text by '$sign'. A text of at most $n characters stays as it is.",
        """
def mask(code):
    hidden = max(len(code) - $n, 0)
    return $sign * hidden + code[hidden:]
""",
        """
def mask(code):
    hidden = len(code) - $n
    return $sign * hidden + code[hidden:]
""",
        table("n sign", (4, "*"), (3, "#"), (7, "x"), (5, "*"), (3, "-"), (4, "."), (6, "?")),
        lambda s: [("1234567890",), ("secretword",), ("abcdefg",)],
        lambda s: [("",), ("ab"[: s["n"] - 1],), ("z" * s["n"],), ("hello"[: s["n"] - 1],)],
        lambda rng, s: (_letters(rng, "abcdef", 1, 9),),
    ),
    Family(
        "wrap(text)",
        3,
        "breaks a text into a list of lines of at most $width characters. Words are separated by blanks and never cut; "
        "each line takes as many words as fit; a word longer than $width stands alone on its line.",
        """
def wrap(text):
    lines = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= $width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
""",
        """
def wrap(text):
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) >= $width:
            lines.append(line)
            line = word
        else:
            line = (line + " " + word).strip()
    lines.append(line)
    return lines
""",
        vary("width", 8, 10, 11, 12, 14, 16, 20),
        lambda s: [("one two",), ("the cat sat on the mat",), ("to be or not to be",), ("hello",)],
        lambda s: [("",), ("x" * (s["width"] + 4) + " y",), ("a " + "b" * (s["width"] - 2),), ("  many   blanks  ",)],
        lambda rng, s: (_sentence(rng, 9),),
    ),
)
