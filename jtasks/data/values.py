"""Checks of values in data files: nothing becomes text or a number by guessing."""

import json
import re
from collections.abc import Callable
from typing import Any

from jtasks.errors import DataError

Check = Callable[[Any, str], Any]  # a value and its place in the file -> the value, or a DataError

LARGEST = 3.4028234e38  # of float32, which numbers become
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)  # not Python's 1_000
BLANKS = " \t\r\f\v"  # what an empty line may hold; no-break and ideographic blanks are ordinary characters
_KINDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


def parse(content: str, where: str) -> Any:
    """Parse standard JSON: no NaN or Infinity, and each key of an object once.

    Raises:
      DataError: the text is not JSON, or nested too deeply.
    """
    try:
        return json.loads(content, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def entry(value: Any, key: str, kind: type, where: str) -> Any:
    """Return the entry `key` of a JSON object; DataError unless it is of the type `kind`."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with {key!r}, not {describe(value)}")
    if key not in value:
        raise DataError(f"{where} has no {key!r}")
    if type(value[key]) is not kind:
        raise DataError(f"{where}, {key!r}: expected {_KINDS[kind]}, not {describe(value[key])}")
    return value[key]


def text(value: Any, where: str) -> str:
    """Return `value`; DataError unless it is text, perhaps empty, of valid Unicode."""
    if not isinstance(value, str):
        raise DataError(f"{where}: expected text, not {describe(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where} holds half a surrogate pair, which is not a character: {value!r:.80}") from None
    return value


def content(value: Any, where: str) -> str:
    """Return `value`; DataError unless it is text with more than white space."""
    if not text(value, where).strip():
        raise DataError(f"{where} is empty: expected text")
    return value


def contents(value: Any, where: str) -> list[str]:
    """Return `value`; DataError unless it is a list of texts with more than white space."""
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list of texts, not {describe(value)}")
    return [content(item, f"{where}, item {index}") for index, item in enumerate(value)]


def label(value: Any, where: str) -> str:
    """Return the name of a class: text stripped of blanks, or a whole number; 1 and 1.0 are the class "1".

    Raises:
      DataError: the name is empty, "nan", or of another kind.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        name = str(value)
        if not re.fullmatch(r"-?\d+(\.0)?", name):
            raise DataError(f"{where}: expected a label, a name or a whole number, not {describe(value)}")
    elif isinstance(value, str):
        name = content(value, where).strip(BLANKS)
    else:
        raise DataError(f"{where}: expected a label, a name or a whole number, not {describe(value)}")
    if name.lower() == "nan":
        raise DataError(f"{where} is {name!r}, which stands for a missing label")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", name)


def labels(value: Any, where: str) -> list[str]:
    """Return the names of any number of classes: a list of labels, or text with commas between them; "" has none.

    Raises:
      DataError: a name is wrong (see `label`) or occurs twice.
    """
    if isinstance(value, str):
        value = value.split(",") if value.strip() else []
    if not isinstance(value, list):
        value = [value]
    names = [label(item, f"{where}, item {index}") for index, item in enumerate(value)]
    if len(set(names)) < len(names):
        raise DataError(f"{where}: a label occurs twice in {names}")
    return names


def number(value: Any, where: str) -> float:
    """Return a number that float32 holds, also from text such as "3.8"; DataError for any other value."""
    if isinstance(value, str):
        if not NUMBER.fullmatch(value.strip(BLANKS)):
            raise DataError(f"{where}: expected a number, not {value!r:.80}")
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: expected a number, not {describe(value)}")
    if not abs(value) <= LARGEST:
        raise DataError(f"{where}: expected a finite number of at most {LARGEST:.4g}, not {value!s:.80}")
    return float(value)


def describe(value: Any) -> str:
    """Describe the kind of a JSON value, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one object")
    return entries


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
