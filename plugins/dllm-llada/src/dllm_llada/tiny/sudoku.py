"""4x4 sudoku: all 288 grids, their symmetry classes, and puzzles with exactly one solution.

A grid is a string of 16 digits 1-4, row by row; a puzzle is the same with ``.`` in the empty cells.

What is held out is a whole *symmetry class*. Relabelling the digits, swapping rows inside a band, swapping the bands,
the same for columns, and transposing turn a grid into another grid; under these, the 288 grids fall into two classes
of 96 and 192 (OEIS A109741). No held-out grid is therefore a disguised training grid: holding out single grids would
leave disguises of nearly all of them in the training set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from itertools import permutations

import numpy as np

from dllm_llada.tiny.splits import Split

SIDE = 4
CELLS = SIDE * SIDE
EMPTY = "."
MIN_CLUES, MAX_CLUES = 5, 10


def peers(cell: int) -> set[int]:
    """The cells that share a row, a column or a 2x2 box with `cell`."""
    row, column = divmod(cell, SIDE)
    return {
        other
        for other in range(CELLS)
        if other != cell
        and (
            other // SIDE == row
            or other % SIDE == column
            or (other // SIDE // 2, other % SIDE // 2) == (row // 2, column // 2)
        )
    }


@cache
def all_grids() -> tuple[str, ...]:
    """Every solved grid, sorted: 288 strings of 16 digits."""
    neighbours = [peers(cell) for cell in range(CELLS)]

    def extend(grid: str) -> Iterator[str]:
        cell = len(grid)
        if cell == CELLS:
            yield grid
            return
        taken = {grid[other] for other in neighbours[cell] if other < cell}
        for digit in "1234":
            if digit not in taken:
                yield from extend(grid + digit)

    return tuple(extend(""))


def _cell_symmetries() -> list[Callable[[str], str]]:
    """Generators of the symmetries that move cells: row swaps, band swap, transposition (columns follow from these)."""
    transpose = [column * SIDE + row for row in range(SIDE) for column in range(SIDE)]
    row_orders = [(1, 0, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1)]
    orders = [transpose] + [[row * SIDE + column for row in rows for column in range(SIDE)] for rows in row_orders]
    return [lambda grid, order=order: "".join(grid[cell] for cell in order) for order in orders]


def relabelled(grid: str) -> str:
    """The grid with its digits renamed so that the first row reads 1234: the name of its relabelling orbit."""
    return grid.translate(str.maketrans(grid[:SIDE], "1234"))


@cache
def symmetry_classes() -> tuple[frozenset[str], ...]:
    """The classes of grids that symmetries turn into one another, smallest first: 96 and 192 grids."""
    digits = [dict(zip("1234", names, strict=True)) for names in permutations("1234")]
    unseen, classes = set(all_grids()), []
    while unseen:
        frontier = [min(unseen)]
        found = set(frontier)
        while frontier:
            grid = frontier.pop()
            moved = [move(grid) for move in _cell_symmetries()]
            moved += ["".join(names[digit] for digit in grid) for names in digits]
            new = set(moved) - found
            found |= new
            frontier += new
        classes.append(frozenset(found))
        unseen -= found
    return tuple(sorted(classes, key=len))


@cache
def grids_of(split: Split) -> tuple[str, ...]:
    """The grids of one split, sorted: the class of 96 is held out, the class of 192 is for training."""
    held_out, train = symmetry_classes()
    return tuple(sorted(held_out if split == "held_out" else train))


@cache
def _grid_table() -> np.ndarray:
    return np.array([list(grid) for grid in all_grids()])  # (288, 16) characters


def solutions(puzzle: str) -> int:
    """How many of the 288 grids agree with the clues of `puzzle`."""
    table, cells = _grid_table(), np.array(list(puzzle))
    clues = cells != EMPTY
    return int((table[:, clues] == cells[clues]).all(axis=1).sum())


def make_puzzle(grid: str, rng: random.Random) -> str:
    """Empties cells of `grid` in random order, down to a random number of clues, while the solution stays unique."""
    cells, clues = list(grid), CELLS
    target = rng.randint(MIN_CLUES, MAX_CLUES)
    for cell in rng.sample(range(CELLS), CELLS):
        if clues == target:
            break
        cells[cell] = EMPTY
        if solutions("".join(cells)) == 1:
            clues -= 1
        else:
            cells[cell] = grid[cell]
    return "".join(cells)


def rows(cells: str, separator: str) -> str:
    """The four rows of a grid or puzzle, joined by `separator`."""
    return separator.join(cells[start : start + SIDE] for start in range(0, CELLS, SIDE))
