"""Retrieval on a whole split: pictures by texts and texts by pictures, with several texts of a picture.

The rank of a text's picture is 1 plus the number of other pictures at least as similar to the text. The rank of a
picture's texts is that of its best one: 1 plus the number of other pictures' texts at least as similar. So a tie counts
against the model, and so does a similarity that is not a number. R@k is the fraction of ranks up to k (Karpathy and
Fei-Fei 2015, arXiv:1412.2306).
"""

from collections.abc import Callable

import numpy as np

BLOCK = 512  # pictures whose similarities to all texts are in memory at a time
TIE = 1e-6  # similarities of normalized vectors in float32 that are nearer are equal
TOP = (1, 5, 10)


def ranks(images: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each picture's best text, int [n], and of each text's picture, int [m].

    Args:
      images: [n, d] embeddings, each of length 1.
      texts: [m, d] embeddings, each of length 1.
      owners: int [m], the picture of each text. A picture without a text has the rank 0.
    """
    images, texts = np.asarray(images, np.float32), np.asarray(texts, np.float32)
    own = np.einsum("md,md->m", images[owners], texts)
    return _count(lambda rows: images[rows] @ texts.T, own, owners, len(images))


def matrix_ranks(similarities: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks of `ranks` from the similarities [n, m] of n pictures and m texts.

    >>> matrix_ranks(np.array([[0.9, 0.1, 0.8], [0.2, 0.3, 0.7]]), np.array([0, 1, 1]))
    (array([1, 1]), array([1, 1, 2]))
    """
    own = similarities[owners, np.arange(len(owners))]
    return _count(lambda rows: similarities[rows], own, owners, len(similarities))


def scores(image_to_text: np.ndarray, text_to_image: np.ndarray) -> dict[str, float]:
    """Return R@1, R@5, R@10 and the median rank both ways, and `mean_recall`, the mean of the six recalls.

    Args:
      image_to_text: int [n], the rank of each picture's best text; 0 for a picture without a text, which is left out.
      text_to_image: int [m], the rank of each text's picture.

    >>> scores(np.array([1, 3, 20]), np.array([2, 2]))["image_to_text_r5"]
    0.6666666666666666
    """
    named = {"image_to_text": image_to_text[image_to_text > 0], "text_to_image": text_to_image}
    if not all(map(len, named.values())):
        return {}
    recalls = {f"{name}_r{k}": float(np.mean(own <= k)) for name, own in named.items() for k in TOP}
    medians = {f"{name}_median_rank": float(np.median(own)) for name, own in named.items()}
    return recalls | medians | {"mean_recall": float(np.mean(list(recalls.values())))}


def _count(
    rows: Callable[[slice], np.ndarray], own: np.ndarray, owners: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count, block by block of pictures, what is at least as similar as what belongs together."""
    best = np.full(count, -np.inf)
    np.maximum.at(best, owners, own)  # a NaN stays
    image_ranks, text_ranks = np.isin(np.arange(count), owners).astype(np.int64), np.ones(len(owners), np.int64)
    for start in range(0, count, BLOCK):
        block = slice(start, min(start + BLOCK, count))
        similar, others = rows(block), np.arange(count)[block, None] != owners[None]
        text_ranks += np.sum(~(similar < own[None] - TIE) & others, axis=0)
        image_ranks[block] += np.sum(~(similar < best[block, None] - TIE) & others, axis=1) * (image_ranks[block] > 0)
    return image_ranks, text_ranks
