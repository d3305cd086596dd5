"""Writes the task suites of this folder, and others like them: `python examples/tasks/generate.py --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from suites import arithmetic, python_functions, word_problems
from suites.rows import Row, SuiteOptions, write_rows

from celr_ray.core.tasks import gsm8k_tasks
from celr_ray.errors import UsageError

PER_LEVEL = 64
QUESTION = "Is the result of this calculation right?"

_HELP = """
Writes task suites for `celr-ray execute`: JSON lines, one task each, with

  checker    the ground truth, hidden until the end of an episode
  verifier   what a policy may run before; it can be wrong

The same command gives the same files, byte for byte. The committed suites are made by

  python examples/tasks/generate.py all

More tasks, other ones, or ones whose difficulty is known beforehand:

  python examples/tasks/generate.py arithmetic --per-level 80 --out /tmp/tasks
  python examples/tasks/generate.py word-problems --seed 7 --with-difficulty --out /tmp/tasks
  python examples/tasks/generate.py word-problems --verifier none --out /tmp/tasks
  python examples/tasks/generate.py gsm8k --parquet gsm8k_responses.parquet --out /tmp/tasks
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; see `--help`."""
    options = _make_parser().parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for write in options.writers:
            write(options)
    except (OSError, UsageError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _make_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=_HELP, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="SUITE")
    suites = {
        "all": ([_write_arithmetic, _write_word_problems, _write_python], "the three suites of this folder"),
        "arithmetic": ([_write_arithmetic], "calculations in five levels; verifier: a model's opinion"),
        "word-problems": ([_write_word_problems], "short stories in five levels; verifier: agreement of samples"),
        "python-functions": ([_write_python], "functions to write in three levels; verifier: visible tests"),
        "gsm8k": ([_write_gsm8k], "GSM8K as RouteLLM publishes it; verifier: agreement of samples"),
    }
    for name, (writers, text) in suites.items():
        command = commands.add_parser(name, help=text, description=f"Writes {text}.")
        command.set_defaults(writers=writers)
        _add_options(command, name)
    return parser


def _add_options(command: argparse.ArgumentParser, name: str) -> None:
    folder = Path(__file__).parent if name == "all" else Path()
    command.add_argument("--out", type=Path, default=folder, help="folder to write to; default %(default)s")
    if name == "gsm8k":
        command.add_argument("--parquet", required=True, help="RouteLLM's gsm8k_responses.parquet, path or s3:// URI")
    else:
        command.add_argument("--seed", type=int, default=0, help="other seeds give other tasks; default %(default)s")
        command.add_argument(
            "--with-difficulty",
            action="store_true",
            help="also write `difficulty`, from the level; left out by default, since a policy has to estimate it",
        )
    if name not in ("gsm8k", "python-functions"):
        command.add_argument(
            "--per-level", type=_at_least(1), default=PER_LEVEL, help="tasks a level; default %(default)s"
        )
    if name != "python-functions":
        command.add_argument(
            "--verifier",
            choices=("model", "agreement", "none"),
            help="model: a model is asked whether the answer is right; agreement: samples must agree with it",
        )
        command.add_argument(
            "--n-samples", type=_at_least(2), default=3, help="samples of `agreement`; default %(default)s"
        )


def _at_least(low: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} is less than {low}")
        return int(text)

    return count


def _make_options(options: argparse.Namespace, verifier: str) -> SuiteOptions:
    """Return a suite's settings; `verifier` is the kind where the command line names none."""
    return SuiteOptions(
        seed=options.seed,
        per_level=options.per_level,
        with_difficulty=options.with_difficulty,
        verifier=_make_verifier(options, verifier),
    )


def _make_verifier(options: argparse.Namespace, kind: str) -> Row | None:
    kind = options.verifier or kind
    if kind == "none":
        return None
    if kind == "model":
        return {"kind": "model", "question": QUESTION}
    return {"kind": "agreement", "n_samples": options.n_samples}


def _write(options: argparse.Namespace, name: str, rows: Sequence[Row]) -> None:
    path = options.out / name
    print(f"{path}: {write_rows(path, rows):,} rows")


def _write_arithmetic(options: argparse.Namespace) -> None:
    _write(options, "arithmetic.jsonl", arithmetic.make_rows(_make_options(options, "model")))


def _write_word_problems(options: argparse.Namespace) -> None:
    _write(options, "word_problems.jsonl", word_problems.make_rows(_make_options(options, "agreement")))


def _write_python(options: argparse.Namespace) -> None:
    rows, solutions = python_functions.make_rows(options.seed, with_difficulty=options.with_difficulty)
    _write(options, "python_functions.jsonl", rows)
    _write(options, "python_functions.solutions.jsonl", solutions)


def _write_gsm8k(options: argparse.Namespace) -> None:
    tasks, rejected = gsm8k_tasks(options.parquet)
    verifier = _make_verifier(options, "agreement")
    rows = [task.model_dump(mode="json", exclude_none=True) for task in tasks]
    _write(options, "gsm8k.jsonl", [row | ({"verifier": verifier} if verifier else {}) for row in rows])
    print(f"left out: {len(rejected):,} questions without an answer that is sure", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
