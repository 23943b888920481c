"""The shipped configs, found by name from any folder: `igpt_digits`, `igpt_cifar:xxs`."""

import ast
import difflib
import pathlib


def paths() -> dict[str, pathlib.Path]:
    """Return the file of each shipped config by its name."""
    folder = pathlib.Path(__file__).parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("[a-z]*.py"))}


def nearest(name: str) -> list[str]:
    """Return the names of all shipped configs, the most similar to `name` first."""
    return sorted(paths(), key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())


def listing() -> str:
    """Return one line for each shipped config: its name and the first line of its docstring."""
    width = max(map(len, paths()), default=0)
    return "\n".join(f"{name:{width}}  {_summary(path)}" for name, path in paths().items())


def _summary(path: pathlib.Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
