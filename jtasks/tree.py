"""Names of the leaves of a tree."""

from typing import Any

import jax


def leaf_name(path: tuple[Any, ...]) -> str:
    """Return the path of a leaf joined by "/", such as "blocks/up/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by name."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
