"""Tasks about names and marks in texts: gaps, versions, paths, tags."""

from __future__ import annotations

from random import Random

from ..family import Family, table, vary


def _join(rng: Random, parts: list[str], n: int) -> str:
    return "".join(rng.choices(parts, k=n))


FAMILIES = (
    Family(
        "fill(text, values)",
        2,
        "replaces every $open_repr + name + $close_repr in a text by the value of that name, as text, in the dict "
        "`values`, where names are runs of letters a-z. Unknown names stay as they are, and inserted values are not "
        "searched again.",
        """
import re

def fill(text, values):
    pattern = re.escape($open) + "([a-z]+)" + re.escape($close)
    return re.sub(pattern, lambda match: str(values.get(match[1], match[0])), text)
""",
        """
def fill(text, values):
    for name, value in values.items():
        text = text.replace($open + name + $close, value)
    return text
""",
        table("open close", ("{", "}"), ("<", ">"), ("[", "]"), ("%", "%"), ("{{", "}}"), ("(", ")"), ("<<", ">>")),
        lambda s: [
            (f"dear {s['open']}name{s['close']}!", {"name": "Ada"}),
            (f"{s['open']}x{s['close']} and {s['open']}y{s['close']}", {"x": "1"}),
            ("no gaps", {"x": "1"}),
        ],
        lambda s: [
            ("", {}),
            (f"{s['open']}n{s['close']}", {"n": 5}),
            (f"{s['open']}a{s['close']}{s['open']}b{s['close']}", {"a": f"{s['open']}b{s['close']}", "b": "z"}),
            (f"{s['open']}a{s['close']}", {}),
        ],
        lambda rng, s: (_join(rng, ["so ", f"{s['open']}a{s['close']}"], 4), {"a": rng.choice([3, "x"])}),
    ),
    Family(
        "is_newer(one, two)",
        2,
        "compares versions such as '1${sep}12${sep}3' part by part as numbers and returns True if the first one is "
        "newer, else False. Missing parts at the end count as 0.",
        """
def is_newer(one, two):
    a, b = ([int(part) for part in text.split($sep)] for text in (one, two))
    longest = max(len(a), len(b))
    return a + [0] * (longest - len(a)) > b + [0] * (longest - len(b))
""",
        """
def is_newer(one, two):
    return one.split($sep) > two.split($sep)
""",
        vary("sep", ".", "-", "_", ":", "/", ","),
        lambda s: [
            ("2{sep}0".format(**s), "1{sep}9".format(**s)),
            ("1{sep}2".format(**s), "1{sep}2".format(**s)),
            ("3", "4"),
        ],
        lambda s: [
            ("1{sep}10".format(**s), "1{sep}9".format(**s)),
            ("1{sep}0".format(**s), "1"),
            ("1", "1{sep}0{sep}0".format(**s)),
            ("2{sep}0{sep}1".format(**s), "2".format(**s)),
            ("007", "7"),
        ],
        lambda rng, s: (f"1{s['sep']}{rng.randint(8, 12)}", f"1{s['sep']}{rng.randint(8, 12)}"),
    ),
    Family(
        "rename(name)",
        1,
        "turns a name such as 'maxItemCount' into 'max${sep}item${sep}count': every capital letter becomes small, "
        "with '$sep' before it unless it comes first.",
        """
def rename(name):
    new = "".join($sep + letter.lower() if letter.isupper() else letter for letter in name)
    return new[len($sep) :] if name[:1].isupper() else new
""",
        """
def rename(name):
    return "".join($sep + letter.lower() if letter.isupper() else letter for letter in name)
""",
        vary("sep", "_", "-", ".", " ", "/", ":", "__"),
        lambda s: [("maxItemCount",), ("plain",), ("aB",)],
        lambda s: [("",), ("MaxItem",), ("X",), ("getURL",), ("ABc1D",)],
        lambda rng, s: (_join(rng, list("abXY"), 5),),
    ),
    Family(
        "tidy_path(path)",
        3,
        "takes a path of parts separated by '$sep' and drops empty parts and '.'; '..' removes the part before it, "
        "and does nothing at the start. The result is joined by '$sep' again.",
        """
def tidy_path(path):
    parts = []
    for part in path.split($sep):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return $sep.join(parts)
""",
        """
def tidy_path(path):
    parts = []
    for part in path.split($sep):
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return $sep.join(parts)
""",
        vary("sep", "/", "\\", ":", ">", "|", "-"),
        lambda s: [(s["sep"].join("abc"),), (s["sep"].join(["a", ".", "b"]),), (s["sep"].join(["a", "..", "b"]),)],
        lambda s: [
            ("",),
            ("..",),
            (s["sep"].join(["..", "..", "x"]),),
            (s["sep"].join(["a", "", "b", ""]),),
            (s["sep"].join(["a", "b", "..", "..", "..", "c"]),),
        ],
        lambda rng, s: (s["sep"].join(rng.choices(["a", "b", "..", ".", ""], k=6)),),
    ),
    Family(
        "find_tags(text)",
        2,
        "returns the list of the tags in a text, in lower case, in order, each once. A tag is '$mark' followed by "
        "one or more letters or digits; it ends before any other character, and is returned without '$mark'.",
        """
import re

def find_tags(text):
    return list(dict.fromkeys(re.findall(re.escape($mark) + "([a-z0-9]+)", text.lower())))
""",
        """
def find_tags(text):
    tags = []
    for word in text.lower().split():
        if word.startswith($mark) and word[1:] not in tags:
            tags.append(word[1:])
    return tags
""",
        vary("mark", "#", "@", "!", "%", "&", "~", "+"),
        lambda s: [
            ("see {mark}one and {mark}Two".format(**s),),
            ("no tags",),
            ("{mark}a {mark}a {mark}b".format(**s),),
        ],
        lambda s: [
            ("",),
            ("({mark}x), {mark}y.".format(**s),),
            (s["mark"],),
            ("{mark}a{mark}b {mark}{mark}c".format(**s),),
        ],
        lambda rng, s: (_join(rng, ["ab", " ", s["mark"] + "c", s["mark"] + "D1", ", "], 6),),
    ),
)
