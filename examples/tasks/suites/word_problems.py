"""Word problems in five levels: forty stories, each told with other people, things and numbers in every task.

| level | what |
|---|---|
| 1 | one step, small numbers |
| 2 | two steps |
| 3 | three steps, larger numbers |
| 4 | four steps: fractions, percentages, remainders |
| 5 | five steps or more, or to be solved backwards |

Numbers are drawn so that every answer is a whole number that is not negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random

from celr_ray.core.tasks import ANSWER_RULE

from .rows import Row, SuiteOptions, add_difficulty, draw_new, make_row, number_check
from .stories import Story
from .stories_easy import EASY_STORIES
from .stories_hard import HARD_STORIES

N_LEVELS = 5
STORIES: Sequence[Story] = (*EASY_STORIES, *HARD_STORIES)


def make_rows(options: SuiteOptions) -> list[Row]:
    """Return the suite's rows, level by level; the stories of a level take turns.

    Raises:
        ValueError: more tasks are asked for than a story can give.
    """
    rows = []
    for level in range(1, N_LEVELS + 1):
        stories = [story for story in STORIES if story.level == level]
        rng = Random(f"word problems {level} {options.seed}")
        seen: set[str] = set()
        for number in range(options.per_level):
            story = stories[number % len(stories)]
            text, answer = draw_new(partial(story.tell, rng), seen)
            task_id = f"celr/word_problems/{level}-{number:03d}-{story.name}"
            prompt = f"{text} {ANSWER_RULE}"
            rows.append(make_row(task_id, prompt, number_check(answer), options.verifier, "word_problems", level))
    return add_difficulty(rows, N_LEVELS) if options.with_difficulty else rows
