"""Claims about the ranks and recalls of retrieval."""

import numpy as np
import pytest

from jtasks.metrics import retrieval


def normalized(random, *shape):
    x = random.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def by_force(similarities, owners):
    """Rank as one would with paper and pencil: sort all, and put whatever is as similar first."""
    n, m = similarities.shape
    texts_of = [[j for j in range(m) if owners[j] == i] for i in range(n)]
    image_ranks = [
        1 + sum(similarities[i, j] >= max(similarities[i, k] for k in own) - 1e-6 for j in range(m) if j not in own)
        if own
        else 0
        for i, own in enumerate(texts_of)
    ]
    text_ranks = [
        1 + sum(similarities[i, j] >= similarities[owners[j], j] - 1e-6 for i in range(n) if i != owners[j])
        for j in range(m)
    ]
    return image_ranks, text_ranks


@pytest.mark.parametrize("block", [512, 7])
def test_ranks_are_those_of_all_similarities_sorted(block, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    random = np.random.default_rng(0)
    owners = np.sort(random.integers(0, 20, 45))
    images, texts = normalized(random, 22, 6), normalized(random, 45, 6)
    texts = texts + 0.8 * images[owners]
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    images[3], texts[10] = images[4], texts[30]  # ties
    expected = by_force(images @ texts.T, owners)
    for found in (retrieval.ranks(images, texts, owners), retrieval.matrix_ranks(images @ texts.T, owners)):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    image_ranks, text_ranks = (np.array(ranks) for ranks in expected)
    assert (image_ranks == 0).sum() == 22 - len(set(owners))  # without a text
    scores = retrieval.scores(image_ranks, text_ranks)
    assert scores["text_to_image_r5"] == np.mean(text_ranks <= 5)
    assert scores["image_to_text_r5"] == np.mean(image_ranks[image_ranks > 0] <= 5)
    assert scores["text_to_image_median_rank"] == np.median(text_ranks)
    recalls = [scores[f"{way}_r{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert scores["mean_recall"] == pytest.approx(np.mean(recalls)) and 0.1 < np.mean(recalls) < 0.95


def test_a_collapsed_or_broken_model_finds_nothing():
    images = np.tile(np.float32([1, 0]), (30, 1))
    for texts in (images, np.full_like(images, np.nan)):
        found = retrieval.scores(*retrieval.ranks(images, texts, np.arange(30)))
        assert found["image_to_text_r10"] == found["text_to_image_r10"] == 0
        assert found["text_to_image_median_rank"] == 30


def test_nothing_to_find_has_no_scores():
    assert retrieval.scores(*retrieval.ranks(np.zeros((2, 4)), np.zeros((0, 4)), np.zeros(0, int))) == {}


@pytest.mark.parametrize("slots", [1, 3, 50])
def test_each_pair_of_either_side_is_in_one_row_of_its_picture(slots):
    random = np.random.default_rng(1)
    images, texts = normalized(random, 9, 4), normalized(random, 20, 4)
    near = retrieval.nearest(images, texts, 5), retrieval.nearest(texts, images, 3)
    pairs = retrieval.pairs(*near, slots)
    wanted = {(i, int(j)) for i, row in enumerate(near[0].numbers) for j in row}
    wanted |= {(int(i), j) for j, row in enumerate(near[1].numbers) for i in row}
    listed = [(int(i), int(j)) for i, row in zip(*pairs, strict=True) for j in row if j >= 0]
    assert sorted(listed) == sorted(wanted) and pairs.texts.shape[1] == slots


def test_a_score_that_is_not_a_number_ranks_last_among_the_nearest():
    owners, images = np.arange(4), np.eye(4, dtype=np.float32)
    near = retrieval.nearest(images, images, 2), retrieval.nearest(images, images, 2)
    pairs = retrieval.pairs(*near, 2)
    matches = np.where(pairs.texts == pairs.images[:, None], np.nan, 0.0)
    ranks = retrieval.rerank(retrieval.ranks(images, images, owners), owners, *near, pairs, matches)
    assert [each.tolist() for each in ranks] == [[2] * 4, [2] * 4]
