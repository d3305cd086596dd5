"""Tasks about grids: turning, neighbours, lines, regions."""

from __future__ import annotations

from random import Random

from ..family import Arguments, Code, Family, Setting, table, vary


def _grid(rng: Random, values: str, n_rows: int, n_columns: int) -> list[str]:
    return ["".join(rng.choices(values, k=n_columns)) for _ in range(n_rows)]


def _mark_grid(rng: Random, setting: Setting) -> Arguments:
    return (_grid(rng, setting["mark"] + ".", 4, 5),)


FAMILIES = (
    Family(
        "turn(grid)",
        2,
        "takes a list of rows of equal length and returns it $words, as a list of lists; an empty list gives [].",
        """
def turn(grid):
    return [list(row) for row in $right]
""",
        """
def turn(grid):
    n = len(grid)
    return [[$wrong for j in range(n)] for i in range(n)]
""",
        table(
            "words right wrong",
            ("turned by 90 degrees clockwise", Code("zip(*grid[::-1])"), Code("grid[n - 1 - j][i]")),
            (
                "turned by 180 degrees",
                Code("[row[::-1] for row in grid[::-1]]"),
                Code("grid[n - 1 - i][n - 1 - j]"),
            ),
            ("turned by 90 degrees counterclockwise", Code("list(zip(*grid))[::-1]"), Code("grid[j][n - 1 - i]")),
            ("mirrored left to right", Code("[row[::-1] for row in grid]"), Code("grid[i][n - 1 - j]")),
            ("mirrored at the diagonal, rows becoming columns", Code("zip(*grid)"), Code("grid[j][i]")),
        ),
        lambda s: [([[1, 2], [3, 4]],), ([[1, 2, 3], [4, 5, 6], [7, 8, 9]],), ([[5]],)],
        lambda s: [([],), ([[1, 2, 3]],), ([[1], [2]],), ([[1, 2, 3], [4, 5, 6]],)],
        lambda rng, s: ([[rng.randint(0, 9) for _ in range(3)] for _ in range(rng.randint(1, 4))],),
    ),
    Family(
        "count_neighbours(grid, row, column)",
        2,
        "counts how many cells next to the given one $words hold '$mark'. The grid is a list of texts of equal length; "
        "cells outside do not count, nor does the cell itself.",
        """
def count_neighbours(grid, row, column):
    count = 0
    for i in range(len(grid)):
        for j in range(len(grid[i])):
            distance = $distance(abs(i - row), abs(j - column))
            count += distance == 1 and grid[i][j] == $mark
    return count
""",
        """
def count_neighbours(grid, row, column):
    count = 0
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            if $distance(abs(i), abs(j)) == 1:
                try:
                    count += grid[row + i][column + j] == $mark
                except IndexError:
                    pass
    return count
""",
        table(
            "words mark distance",
            ("(up, down, left, right)", "#", Code("(lambda a, b: a + b)")),
            ("(also diagonally)", "#", Code("max")),
            ("(up, down, left, right)", "x", Code("(lambda a, b: a + b)")),
            ("(also diagonally)", "o", Code("max")),
            ("(up, down, left, right)", "1", Code("(lambda a, b: a + b)")),
            ("(also diagonally)", "*", Code("max")),
        ),
        lambda s: [
            ([s["mark"] * 3, ".." + s["mark"], "..."], 1, 1),
            (["....", "....", "...."], 1, 2),
            ([s["mark"] * 3] * 3, 1, 1),
        ],
        lambda s: [
            ([s["mark"] * 3] * 3, 0, 0),
            ([s["mark"]], 0, 0),
            ([s["mark"] * 4] * 2, 0, 2),
            ([s["mark"] * 3] * 3, 2, 2),
        ],
        lambda rng, s: (_grid(rng, s["mark"] + ".", 3, 4), rng.randint(0, 2), rng.randint(0, 3)),
    ),
    Family(
        "best_column(rows)",
        2,
        "takes a list of rows of numbers, all of the same length, and returns the index of the column with the "
        "$which sum, of equal ones the $side one. No rows, or empty rows, give $missing_repr.",
        """
def best_column(rows):
    sums = [sum(column) for column in zip(*rows)]
    if not sums:
        return $missing
    places = [index for index, total in enumerate(sums) if total == $pick(sums)]
    return places[$at]
""",
        """
def best_column(rows):
    if not rows:
        return $missing
    sums = [sum(row[index] for row in rows) for index in range(len(rows[0]))]
    order = sorted(range(len(sums)), key=lambda index: sums[index])
    return order[$end]
""",
        table(
            "which side missing pick at end",
            ("largest", "leftmost", None, Code("max"), 0, -1),
            ("smallest", "rightmost", None, Code("min"), -1, 0),
            ("largest", "leftmost", -1, Code("max"), 0, -1),
            ("smallest", "rightmost", -1, Code("min"), -1, 0),
        ),
        lambda s: [([[1, 5, 2], [3, 1, 9]],), ([[4, 1], [0, 2]],), ([[7]],)],
        lambda s: [([],), ([[], []],), ([[2, 2]],), ([[1, 3, 1, 3]],), ([[0, 1], [1, 0]],)],
        lambda rng, s: ([[rng.randint(0, 2) for _ in range(4)] for _ in range(2)],),
    ),
    Family(
        "largest_region(grid)",
        3,
        "returns the number of cells in the largest connected region of '$mark' in a grid, a list of texts of equal "
        "length. Cells are connected $words; without any '$mark' the result is 0.",
        """
def largest_region(grid):
    left = {(i, j) for i, row in enumerate(grid) for j, cell in enumerate(row) if cell == $mark}
    best = 0
    while left:
        todo, size = [left.pop()], 0
        while todo:
            row, column = todo.pop()
            size += 1
            near = {(row + i, column + j) for i, j in $steps} & left
            left -= near
            todo.extend(near)
        best = max(best, size)
    return best
""",
        """
def largest_region(grid):
    seen = set()

    def visit(row, column):
        try:
            if (row, column) in seen or grid[row][column] != $mark:
                return 0
        except IndexError:
            return 0
        seen.add((row, column))
        return 1 + sum(visit(row + i, column + j) for i, j in $steps)

    sizes = [visit(row, column) for row in range(len(grid)) for column in range(len(grid[row]))]
    return max(sizes, default=0)
""",
        table(
            "mark words steps",
            ("#", "up, down, left and right", ((0, 1), (1, 0), (0, -1), (-1, 0))),
            ("x", "up, down, left and right", ((0, 1), (1, 0), (0, -1), (-1, 0))),
            ("*", "up and down only", ((1, 0), (-1, 0))),
            ("o", "left and right only", ((0, 1), (0, -1))),
            ("1", "also diagonally", tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j)),
            ("@", "diagonally only", ((1, 1), (1, -1), (-1, 1), (-1, -1))),
        ),
        lambda s: [
            ([".....", f".{s['mark'] * 2}..", "....."],),
            ([f".{s['mark']}.", "..."],),
            ([".....", ".....", f"..{s['mark']}.."],),
            (["..."],),
        ],
        lambda s: [
            ([],),
            ([s["mark"] + "." + s["mark"]],),
            ([s["mark"], ".", s["mark"]],),
            ([s["mark"] * 3] * 3,),
            ([f"{s['mark']}..", f"..{s['mark']}", f"{s['mark']}.."],),
        ],
        _mark_grid,
    ),
    Family(
        "has_line(grid, mark)",
        3,
        "returns True if a square grid, a list of texts, has $k equal signs `mark` next to each other in a row, a "
        "column or along any diagonal, else False.",
        """
def has_line(grid, mark):
    cells = {(i, j) for i, row in enumerate(grid) for j, cell in enumerate(row) if cell == mark}
    return any(
        all((i + step * a, j + step * b) in cells for step in range($k))
        for i, j in cells
        for a, b in ((0, 1), (1, 0), (1, 1), (1, -1))
    )
""",
        """
def has_line(grid, mark):
    cells = {(i, j) for i, row in enumerate(grid) for j, cell in enumerate(row) if cell == mark}
    return any(
        all((i + step * a, j + step * b) in cells for step in range($k))
        for i, j in cells
        for a, b in ((0, 1), (1, 0), (1, 1))
    )
""",
        vary("k", 2, 3, 4, 5, 6),
        lambda s: [
            (["x" * s["k"], *["." * s["k"]] * (s["k"] - 1)], "x"),
            (["o" + "." * (s["k"] - 1)] * s["k"], "o"),
            (["." * 3] * 3, "x"),
        ],
        lambda s: [
            (["." * (s["k"] - 1 - i) + "x" + "." * i for i in range(s["k"])], "x"),
            (["." * i + "x" + "." * (s["k"] - 1 - i) for i in range(s["k"])], "x"),
            ([], "x"),
            (["x" * (s["k"] - 1) + "." + "x" * (s["k"] - 1)] + ["." * (2 * s["k"] - 1)] * (2 * s["k"] - 2), "x"),
        ],
        lambda rng, s: (_grid(rng, "xo", s["k"] + 1, s["k"] + 1), "x"),
    ),
)
