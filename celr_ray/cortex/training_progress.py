"""What a person sees of a training: a bar on a terminal, and lines on stderr that a log file can hold.

train     3 of 9  cql-alpha=0.1-seed=0: total 0.0213 (first 0.187) after 1,500 steps, 5.1 s
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from celr_ray.config import TrainConfig
from celr_ray.cortex.trials import Trial

__all__ = ["TrainingProgress", "show_training"]

_LINE_EVERY_S = 30.0


class TrainingProgress:
    """Takes what trials report, in any order."""

    def __init__(self, bar: Progress, trials: Sequence[Trial], config: TrainConfig, n_done: int) -> None:
        """Begin with some trials done."""
        self._bar, self._config, self._n, self._n_done = bar, config, len(trials), n_done
        self._task = bar.add_task("train", total=self._n, completed=n_done)
        self._seen: dict[str, float] = {}
        """Seconds at which a trial was last told of."""

    def point(self, trial: Trial, losses: Mapping[str, float]) -> None:
        """Take a point of a curve; every half minute it becomes a line."""
        told = f"step {int(losses['step']):,} of {trial.count_steps(self._config):,}, total {losses['total']:.4g}"
        self._bar.update(self._task, description=f"train {trial.name}: {told}")
        now = time.monotonic()
        if now - self._seen.setdefault(trial.name, now) >= _LINE_EVERY_S:
            self._seen[trial.name] = now
            self._tell(f"train     {trial.name}: {told}")

    def finish(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Take the result of a trial."""
        self._n_done += 1
        curve = result["curve"]
        self._bar.update(self._task, completed=self._n_done)
        self._tell(
            f"train     {self._n_done} of {self._n}  {trial.name}: total {curve[-1]['total']:.4g} (first "
            f"{curve[0]['total']:.4g}) after {int(curve[-1]['step']):,} steps, {result['seconds']:.1f} s"
        )

    def _tell(self, line: str) -> None:
        self._bar.console.print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def show_training(trials: Sequence[Trial], config: TrainConfig, *, n_done: int) -> Iterator[TrainingProgress]:
    """Show a training while it goes on.

    Args:
        trials: all of them.
        config: their numbers of steps.
        n_done: how many were finished before.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("trials"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield TrainingProgress(bar, trials, config, n_done)
