"""Results of checks, and their table."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

WIDTH = 110


class Result(NamedTuple):
    """The outcome of one check."""

    name: str
    passed: bool | None  # None: skipped
    detail: str  # the finding, or the reason of a skip
    hint: str = ""  # what to do about a failure


class Skip(Exception):  # noqa: N818
    """The reason why a check does not apply."""


def table(results: Sequence[Result]) -> str:
    """Format results as plain text: a line per check, with its detail, and its hint below.

    >>> print(table([Result("a claim", True, "1e-7"), Result("another", False, "2 is not 3", "add 1")]))
    pass  a claim: 1e-7
    FAIL  another: 2 is not 3
          -> add 1
    1 passed, 1 failed, 0 skipped
    """
    lines = []
    for name, passed, detail, hint in results:
        word = {True: "pass", False: "FAIL", None: "skip"}[passed]
        lines += _wrap(f"{name}: {detail}" if detail else name, f"{word}  ")
        lines += _wrap(hint, "      -> ") if hint else []
    count = [sum(result.passed is outcome for result in results) for outcome in (True, False, None)]
    return "\n".join([*lines, "{} passed, {} failed, {} skipped".format(*count)])


def _wrap(text: str, start: str) -> list[str]:
    indent = " " * len(start)
    return [
        line
        for i, part in enumerate(text.splitlines())
        for line in textwrap.wrap(
            part, WIDTH, initial_indent=indent if i else start, subsequent_indent=indent, break_on_hyphens=False
        )
    ]
