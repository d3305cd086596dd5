"""The committed task suites: made by their generator, right by a second evaluation, their tests find near misses."""

import ast
import importlib
import itertools
import json
import operator
import re
import subprocess
import sys
from collections import Counter
from datetime import date, timedelta
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celr_ray.core.checks import NumericCheck
from celr_ray.core.tasks import ANSWER_RULE, read_tasks
from celr_ray.core.verifier import run_check, run_checks

FOLDER = Path(__file__).parent.parent / "examples" / "tasks"
SUITES = ("arithmetic", "word_problems", "python_functions")
N_SAMPLED = 30


@cache
def load(name):
    """Return the committed tasks of a suite."""
    tasks, rejected = read_tasks(str(FOLDER / f"{name}.jsonl"))
    assert rejected == []
    return tasks


@cache
def load_solutions():
    """Return {task_id: {solution, near_miss}}."""
    with open(FOLDER / "python_functions.solutions.jsonl") as lines:
        return {row["task_id"]: row for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def suites():
    """Import modules of the generator, which is no package of the project."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield lambda name: importlib.import_module(name)


def generate(*arguments):
    """Run the generator as a person does."""
    command = [sys.executable, str(FOLDER / "generate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_committed_files_are_what_the_generator_makes(tmp_path):
    assert generate("all", "--out", tmp_path).returncode == 0
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in FOLDER.glob("*.jsonl")}


def test_other_settings_make_other_tasks(tmp_path):
    made = generate(
        "arithmetic", "--seed", 1, "--per-level", 3, "--with-difficulty", "--verifier", "none", "--out", tmp_path
    )
    tasks = read_tasks(str(tmp_path / "arithmetic.jsonl")).tasks
    assert "15 rows" in made.stdout
    assert {(task.level, task.difficulty) for task in tasks} == {(1, 0.1), (2, 0.3), (3, 0.5), (4, 0.7), (5, 0.9)}
    assert all(task.verifier is None for task in tasks)
    assert [task.prompt for task in tasks] != [task.prompt for task in load("arithmetic") if task.task_id[-3:] < "003"]


def test_more_tasks_than_there_are_is_one_clear_error(tmp_path):
    made = generate("arithmetic", "--per-level", 200, "--out", tmp_path)
    assert (made.returncode, made.stderr.count("\n")) == (2, 1)
    assert "ask for fewer tasks a level" in made.stderr


def test_a_wrong_count_is_refused_before_anything_is_written(tmp_path):
    for flag, value in (("--per-level", 0), ("--n-samples", 1)):
        made = generate("word-problems", flag, value, "--out", tmp_path / "new")
        assert (made.returncode, (tmp_path / "new").exists()) == (2, False)
        assert f"argument {flag}: {value} is less than" in made.stderr


@pytest.mark.parametrize(("name", "n_levels"), [("arithmetic", 5), ("word_problems", 5), ("python_functions", 3)])
def test_suites_are_large_and_without_repeats(name, n_levels):
    tasks = load(name)
    assert len(tasks) >= 300
    assert len({task.prompt for task in tasks}) == len(tasks)
    assert min(Counter(task.level for task in tasks).values()) >= 60
    assert {task.level for task in tasks} == set(range(1, n_levels + 1))
    assert all(task.difficulty is None and task.checker and task.verifier for task in tasks)


def test_prompts_are_short_and_say_how_to_answer():
    ends = {
        "arithmetic": ANSWER_RULE,
        "word_problems": ANSWER_RULE,
        "python_functions": "Reply with one Python code block.",
    }
    for name in SUITES:
        assert all(task.prompt.endswith(ends[name]) for task in load(name))
        assert max(len(task.prompt.split()) for task in load(name)) <= 80


def test_each_suite_has_its_kinds_of_checks():
    kinds = [{(task.checker.kind, task.verifier.kind) for task in load(name)} for name in SUITES]
    assert kinds == [{("numeric", "model")}, {("numeric", "agreement")}, {("python_tests", "python_tests")}]


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def evaluate(text):
    """Evaluate an arithmetic expression exactly."""

    def value(node):
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        return OPERATORS[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(text, mode="eval").body)


def test_arithmetic_answers_are_right():
    for task in load("arithmetic"):
        expression = re.fullmatch(r"[A-Z][a-z ]+ ([\d (].*?)[.?] " + re.escape(ANSWER_RULE), task.prompt)[1]
        assert evaluate(expression) == task.checker.answer, task.prompt


@given(st.integers(1, 5), st.integers(0, 2**32))
def test_expressions_and_their_values_agree(suites, level, seed):
    expression = suites("suites.arithmetic").draw_expression(level, Random(seed))
    assert evaluate(expression.text) == expression.value


def meet(distance, a, lead, b):
    """Drive two trains hour by hour and return how far the first one is when they meet."""
    first, second, hour = 0, distance, 0
    while first < second:
        hour += 1
        first, second = first + a, second - (b if hour > lead else 0)
    return first


FORMULAS = {
    "more": lambda a, b: a + b,
    "gift": lambda a, b: a - b,
    "bags": lambda a, b: sum([b] * a),
    "share": lambda total, k: next(n for n in range(total + 1) if n * k == total),
    "compare": lambda a, b: a - b,
    "seats": lambda a, b: len(range(b, a)),
    "price": lambda a, b: sum([a] * b),
    "age": lambda a, b: a + b,
    "change": lambda n, p, bill: bill - sum([p] * n),
    "boxes": lambda n, a, m, b: sum([a] * n + [b] * m),
    "rest": lambda total, x, k: Fraction(total - x, k),
    "pages": lambda p, a, d: p - sum([a] * d),
    "times": lambda a, k: (k + 1) * a,
    "tram": lambda a, b, c: a + c - b,
    "savings": lambda a, b, w: a + sum([b] * w),
    "fence": lambda a, b: a + b + a + b,
    "discount": lambda p, d, n: Fraction(100 - d, 100) * p * n,
    "trip": lambda h, a, g, b: sum([a] * h + [b] * g),
    "eggs": lambda h, e, w, k: Fraction(h * e * w, k),
    "wages": lambda a, b, h, o: (h - o) * a + o * (a + b),
    "recipe": lambda s, g, f, t: Fraction(g, s) * t - f,
    "tank": lambda a, b, c, m: a + b * m - c * m,
    "outing": lambda s, t, p, q, b: sum([p] * s + [q] * t) + b,
    "ribbon": lambda m, n, c: m * 100 - sum([c] * n),
    "fractions": lambda p, _, k, __, m: p * (1 - Fraction(1, k)) * (1 - Fraction(1, m)),
    "buses": lambda c, s, t, b, p: len(range(0, c * s + t, b)) * p,
    "profit": lambda n, c, k, p: sum([p] * k) + (n - k) * Fraction(p, 2) - n * c,
    "average": lambda a, b, c, d, mean: next(x for x in range(500) if Fraction(a + b + c + d + x, 5) == mean),
    "ratio": lambda a, b, total: Fraction(b, a + b) * total - Fraction(a, a + b) * total,
    "machines": lambda a, b, done, hours: done + sum([a + b] * (hours - 1)) + a,
    "journey": lambda hour, m, a, b, c, end, _: hour * 60 + m + a + b + c - end * 60,
    "up_and_down": lambda p, u, d: p * (1 + Fraction(u, 100)) * (1 - Fraction(d, 100)),
    "purse": lambda a, left: next(x for x in range(1000) if (Fraction(x, 2) - a) * Fraction(2, 3) == left),
    "ages": lambda k, n, total: next(k * x for x in range(200) if k * x + n + x + n == total),
    "trains": meet,
    "coins": lambda n, _, __, total, ___: next(x for x in range(n + 1) if 20 * x + 5 * (n - x) == total),
    "candles": lambda a, x, b, y: next(t for t in range(99) if a - x * t == b - y * t),
    "plans": lambda p, a, q, b, h: max(p + a * h, q + b * h) - min(p + a * h, q + b * h),
    "stock": lambda s, c, a, b, w: s + sum([c, -a, -a, -a, -a, -a, -b, -b] * w),
    "clubs": lambda total, x, y, both: Fraction(2, 3) * (total - (x - both) - (y - both) - both),
}


def solve(name, text):
    """Solve a word problem from the numbers in its text."""
    return FORMULAS[name](*(int(number) for number in re.findall(r"\d+", text)))


def test_word_problem_answers_are_right():
    for task in load("word_problems"):
        name = task.task_id.rsplit("-", 1)[1]
        assert solve(name, task.prompt.removesuffix(ANSWER_RULE)) == task.checker.answer, task.prompt


@settings(max_examples=300)
@given(st.sampled_from(sorted(FORMULAS)), st.integers(0, 2**32))
def test_stories_and_their_answers_agree(suites, name, seed):
    stories = {story.name: story for story in suites("suites.word_problems").STORIES}
    assert set(stories) == set(FORMULAS)
    text, answer = stories[name].tell(Random(seed))
    assert solve(name, text) == answer >= 0
    assert "{" not in text
    assert not re.search(r"\b1 [a-z]+s\b", text)
    assert run_check(NumericCheck(kind="numeric", answer=answer), f"So it is.\nAnswer: {answer}").passed


ORACLES = {
    "count_letters": lambda s: lambda text: len(re.findall(f"(?i)[{s['letters']}]", text)),
    "initials": lambda s: lambda name: s["sep"].join(re.findall(r"(?:^|(?<= ))[^ ]", name)).upper(),
    "chunk": lambda s: lambda items: [items[i : i + s["k"]] for i in range(len(items)) if i % s["k"] == 0],
    "label": lambda s: lambda n: {(0, 1): "A", (1, 0): "B", (0, 0): "AB"}.get((n % s["a"] > 0, n % s["b"] > 0), f"{n}"),
    "is_power": lambda s: lambda n: n in [s["k"] ** e for e in range(40)],
    "encode_runs": lambda s: lambda text: s["sep"].join(f"{m[1]}{len(m[0])}" for m in re.finditer(r"(.)\1*", text)),
    "keep_copies": lambda s: lambda items: [x for i, x in enumerate(items) if items[:i].count(x) < s["k"]],
    "window_sums": lambda s: lambda numbers: [sum(w) for w in zip(*(numbers[i:] for i in range(s["k"])), strict=False)],
    "count_pairs": lambda s: lambda numbers: sum(sum(p) == s["k"] for p in itertools.combinations(numbers, 2)),
    "to_base": lambda s: lambda n: str(n) if n == 0 else f"{'-' * (n < 0)}{digits_of(abs(n), s['k'])}",
    "count_days": lambda s: lambda first, last: sum(day.weekday() == s["number"] for day in days_between(first, last)),
    "count_ways": lambda s: lambda stairs: climb(stairs, s["steps"]),
    "fewest_coins": lambda s: lambda amount: pay(amount, s["coins"]),
    "edit_cost": lambda s: lambda one, two: edit(one, two, s["add"], s["drop"], s["swap"]),
    "is_balanced": lambda s: lambda text: cancel("".join(c for c in text if c in s["pairs"]), s["pairs"]) == "",
    "rotate": lambda s: lambda items: [items[(i + s["k"]) % len(items)] for i in range(len(items))],
    "last_left": lambda s: lambda names: survivor(names, s["k"]) if names else s["missing"],
    "merge_spans": lambda s: lambda spans: merge(spans, s["gap"]),
}
"""Second solutions by another method, for some families: setting → function."""


def digits_of(number, base):
    return digits_of(number // base, base) + str(number % base) if number else ""


def days_between(first, last):
    day = date.fromisoformat(first)
    while day <= date.fromisoformat(last):
        yield day
        day += timedelta(days=1)


@cache
def climb(stairs, steps):
    return 1 if stairs == 0 else sum(climb(stairs - step, steps) for step in steps if step <= stairs)


def pay(amount, coins):
    sums, n = {0}, 0
    while amount not in sums and n <= amount:
        sums, n = {total + coin for total in sums for coin in coins if total + coin <= amount}, n + 1
    return n if amount in sums else -1


@cache
def edit(one, two, add, drop, swap):
    if not one or not two:
        return len(one) * drop + len(two) * add
    swapped = edit(one[1:], two[1:], add, drop, swap) + (one[0] != two[0]) * swap
    return min(swapped, edit(one[1:], two, add, drop, swap) + drop, edit(one, two[1:], add, drop, swap) + add)


def cancel(text, pairs):
    shorter = text
    for i in range(0, len(pairs), 2):
        shorter = shorter.replace(pairs[i : i + 2], "")
    return text if shorter == text else cancel(shorter, pairs)


def survivor(names, k):
    place = 0
    for size in range(2, len(names) + 1):
        place = (place + k) % size
    return names[place]


def merge(spans, gap):
    for a, b in itertools.combinations(spans, 2):
        if max(a[0], b[0]) - min(a[1], b[1]) <= gap:
            rest = list(spans)
            rest.remove(a)
            rest.remove(b)
            return merge([*rest, [min(a[0], b[0]), max(a[1], b[1])]], gap)
    return sorted(spans)


def test_second_solutions_pass_the_same_tests(suites):
    families = {family.name: family for family in suites("suites.python_functions").FAMILIES}
    checked = 0
    for task in load("python_functions"):
        _, name, number = task.task_id.rsplit("/", 1)[1].split("-")
        if name in ORACLES:
            exec(task.checker.tests, {name: ORACLES[name](families[name].settings[int(number)])})
            checked += 1
    assert checked >= 120


def test_families_are_many_and_tell_right_from_wrong_for_any_seed(suites):
    families = suites("suites.python_functions").FAMILIES
    make_tests = suites("suites.family").make_tests
    assert len({family.name for family in families}) == len(families) >= 40
    for family, seed in itertools.product(families, (1, 2)):
        for setting in family.settings:
            visible, hidden = make_tests(family, setting, Random(seed))
            assert hidden.startswith(visible)
            assert 2 <= visible.count("assert ") <= 3
            assert hidden.count("assert ") >= visible.count("assert ") + 3


def sampled_tasks():
    """Return some Python tasks for every run and all of them for the slow one."""
    tasks = load("python_functions")
    few = Random(0).sample(tasks, N_SAMPLED)
    return [
        pytest.param(few, id="sample"),
        pytest.param(tasks, id="all", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ]


def run_sources(tasks, part):
    """Run the visible and the hidden tests on one of the known sources of each task; all of it was written here."""
    answers = [f"Here it is:\n```python\n{load_solutions()[task.task_id][part]}```\n" for task in tasks]
    return tuple(
        run_checks([(check, answer) for check, answer in zip(checks, answers, strict=True)], allow_weak=True)
        for checks in ([task.verifier for task in tasks], [task.checker for task in tasks])
    )


@pytest.mark.parametrize("tasks", sampled_tasks())
def test_solutions_pass_visible_and_hidden_tests(tasks):
    visible, hidden = run_sources(tasks, "solution")
    assert [(r.reason, t.task_id) for r, t in zip(visible + hidden, tasks * 2, strict=True) if not r.passed] == []


@pytest.mark.parametrize("tasks", sampled_tasks())
def test_near_misses_pass_visible_tests_and_fail_hidden_ones(tasks):
    visible, hidden = run_sources(tasks, "near_miss")
    assert [(r.reason, t.task_id) for r, t in zip(visible, tasks, strict=True) if not r.passed] == []
    assert [task.task_id for result, task in zip(hidden, tasks, strict=True) if result.passed] == []
