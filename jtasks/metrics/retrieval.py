"""Retrieval on a whole split: pictures by texts and texts by pictures, with several texts of a picture.

The rank of a text's picture is 1 plus the number of other pictures at least as similar to the text. The rank of a
picture's texts is that of its best one: 1 plus the number of other pictures' texts at least as similar. So a tie counts
against the model, and so does a similarity that is not a number. R@k is the fraction of ranks up to k (Karpathy and
Fei-Fei 2015, arXiv:1412.2306).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BLOCK = 512  # pictures whose similarities to all texts are in memory at a time
TIE = 1e-6  # similarities of normalized vectors in float32 that are nearer are equal
TOP = (1, 5, 10)


class Nearest(NamedTuple):
    """The most similar of each query, from the most similar on: their numbers and their similarities [q, k]."""

    numbers: np.ndarray
    similarities: np.ndarray


class Pairs(NamedTuple):
    """Distinct pairs of a picture and a text in rows of one picture each.

    Attributes:
      images: int [r], the picture of each row.
      texts: int [r, s], its texts, -1 behind the last.
    """

    images: np.ndarray
    texts: np.ndarray


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


def nearest(queries: np.ndarray, others: np.ndarray, k: int) -> Nearest:
    """Return the k nearest of `others` [m, d] to each of `queries` [n, d]; all of them if m is below k.

    >>> nearest(np.eye(2), np.array([[0.6, 0.8], [1.0, 0.0], [0.8, 0.6]]), 2).numbers
    array([[1, 2],
           [0, 2]])
    """
    queries, others = np.asarray(queries, np.float32), np.asarray(others, np.float32)
    numbers, similarities = [], []
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK] @ others.T
        numbers.append(np.argsort(-block, axis=1, kind="stable")[:, :k])
        similarities.append(np.take_along_axis(block, numbers[-1], axis=1))
    return Nearest(np.concatenate(numbers), np.concatenate(similarities))


def pairs(texts: Nearest, images: Nearest, slots: int) -> Pairs:
    """Return each pair of a picture and one of its nearest `texts`, or of a text and one of its nearest `images`, once.

    A row has up to `slots` texts of a picture.
    """
    keys = np.unique(np.concatenate([keys.ravel() for keys in _keys(texts, images)]))
    image, text = np.divmod(keys, len(images.numbers))
    place = np.arange(len(keys)) - np.searchsorted(image, image)  # among the pairs of the picture
    begins = place % slots == 0
    rows = np.full((np.count_nonzero(begins), slots), -1)
    rows[np.cumsum(begins) - 1, place % slots] = text
    return Pairs(image[begins], rows)


def rerank(
    first: tuple[np.ndarray, np.ndarray],
    owners: np.ndarray,
    texts: Nearest,
    images: Nearest,
    given: Pairs,
    matches: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks once the nearest are ranked again, by the sum of similarity and matching score (Li et al. 2022).

    What is not among the nearest stays behind them, at its rank by similarity.

    Args:
      first: of `ranks`.
      owners: int [m], the picture of each text.
      texts: the nearest of each picture.
      images: the nearest of each text.
      given: of `pairs`.
      matches: [r, s], the matching score of each pair.
    """
    real = given.texts >= 0
    scored = (given.images[:, None] * len(owners) + given.texts)[real]  # ascending, as `pairs` made them
    by_image, by_text = (matches[real][np.searchsorted(scored, keys)] for keys in _keys(texts, images))
    own_texts = owners[texts.numbers] == np.arange(len(texts.numbers))[:, None]
    return (
        _rank_again(first[0], texts.similarities + by_image, own_texts),
        _rank_again(first[1], images.similarities + by_text, images.numbers == owners[:, None]),
    )


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


def _keys(texts: Nearest, images: Nearest) -> tuple[np.ndarray, np.ndarray]:
    """Return a number for each pair of a picture with its nearest texts [n, k], and of a text with its pictures [m, k].

    Equal pairs have equal numbers.
    """
    n, m = len(texts.numbers), len(images.numbers)
    return np.arange(n)[:, None] * m + texts.numbers, images.numbers * m + np.arange(m)[:, None]


def _rank_again(first: np.ndarray, similar: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the rank of the best own candidate among candidates [q, k]; without one, its earlier rank, after them."""
    best = np.where(own, similar, -np.inf).max(axis=1)  # a NaN stays
    others = np.sum(~(similar < best[:, None] - TIE) & ~own, axis=1)
    return np.where(first == 0, 0, np.where(own.any(axis=1), 1 + others, np.maximum(first, similar.shape[1] + 1)))
