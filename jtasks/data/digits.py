"""The 1,797 handwritten digits of 8 x 8 pixels in scikit-learn: data without a download."""

import numpy as np

CLASSES = tuple("0123456789")
TEST = 360


def read(split: str) -> dict[str, np.ndarray] | None:
    """Read the train (1,437) or test (360) examples: image uint8 [n, 8, 8, 1] with values 0 to 16, label int32 [n].

    The source has no test split, so one fixed permutation selects it, independent of the seed.
    """
    if split == "valid":
        return None
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.argsort(np.random.Philox(0).random_raw(len(digits.target)), kind="stable")
    rows = np.sort(order[-TEST:] if split == "test" else order[:-TEST])
    return {"image": digits.images[rows, :, :, None].astype(np.uint8), "label": digits.target[rows].astype(np.int32)}
