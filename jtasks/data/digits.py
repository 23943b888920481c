"""The 1,797 handwritten digits of 8 x 8 pixels in scikit-learn: data without a download."""

import importlib.util
import pathlib

import numpy as np

CLASSES = tuple("0123456789")
TEST = 360


def read(split: str) -> dict[str, np.ndarray] | None:
    """Read the train (1,437) or test (360) examples: image uint8 [n, 8, 8, 1] with values 0 to 16, label int32 [n].

    The source has no test split, so one fixed permutation selects it, independent of the seed.
    """
    if split == "valid":
        return None
    table = _table()
    order = np.argsort(np.random.Philox(0).random_raw(len(table)), kind="stable")
    digits = table[np.sort(order[-TEST:] if split == "test" else order[:-TEST])]
    return {"image": digits[:, :-1].reshape(-1, 8, 8, 1).astype(np.uint8), "label": digits[:, -1].copy()}


def _table() -> np.ndarray:
    """Return the pixels and the label of each digit, int32 [n, 65]: the file alone, as importing sklearn takes 1 s."""
    package = importlib.util.find_spec("sklearn")
    file = pathlib.Path(package.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if package else None
    if file and file.is_file():
        return np.loadtxt(file, np.int32, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True)).astype(np.int32)
