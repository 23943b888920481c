"""Claims about jtasks.metrics.captions: the numbers are those of COCO's evaluator and of DSTC7's."""

import importlib.util
import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.errors import ConfigError, DataError
from jtasks.metrics import captions

NO_JAVA = ("bleu", "rouge_l", "cider")
OFFICIAL = {"bleu_1": "Bleu_1", "bleu_2": "Bleu_2", "bleu_3": "Bleu_3", "bleu_4": "Bleu_4", "rouge_l": "ROUGE_L"}
SENTENCE = st.lists(st.sampled_from(["man", "woman", "dog", "sits", "stands", "red"]), max_size=7).map(" ".join)


@pytest.fixture(scope="module")
def golden(shared):
    """What two systems answered, six references each, and what the official evaluator of DSTC7 gave each answer."""
    return json.loads((shared / "data" / "avsd" / "avsd_metrics_golden_public.json").read_text())["items"]


@pytest.fixture(scope="module")
def system(golden):
    name = "baseline_i3d_rgb-i3d_flow"
    answers, references = [item["hyp"][name]["raw"] for item in golden], [item["references"] for item in golden]
    return answers, references, [item["scores"][name] for item in golden]


def test_every_item_scores_as_the_official_evaluator_scored_it(system):
    answers, references, official = system
    found = captions.item_scores(answers, references, protocol="dstc7", metrics=["bleu", "rouge_l"])
    for mine, theirs in OFFICIAL.items():
        np.testing.assert_allclose([item[mine] for item in found], [item[theirs] for item in official], atol=1e-12)


def test_the_corpus_scores_of_the_public_items(system):
    # The reference implementation's numbers on these items; all 1,710 items have .621 .480 .379 .305 .481 .733.
    answers, references, _ = system
    found = captions.scores(answers, references, protocol="dstc7", metrics=NO_JAVA)
    expected = {"bleu_1": 0.6287270, "bleu_2": 0.4896840, "bleu_3": 0.3900669, "bleu_4": 0.3154565}
    assert found == pytest.approx(expected | {"rouge_l": 0.4872872, "cider": 0.7728746}, abs=1e-7)


def test_the_protocol_of_dstc7_drops_words_of_one_character_from_hypotheses_alone(system):
    answers, references, _ = system
    filtered = [" ".join(word for word in text.split() if len(word) > 1) for text in answers]
    by_hand = captions.scores(filtered, references, metrics=["rouge_l", "bleu"])
    assert captions.scores(answers, references, protocol="dstc7", metrics=["rouge_l", "bleu"]) == by_hand
    assert captions.scores(answers, references, metrics=["rouge_l", "bleu"]) != by_hand
    assert captions.scores(["a man"], ["a man"], protocol="dstc7", metrics=["rouge_l"])["rouge_l"] < 1


@pytest.mark.slow
@pytest.mark.skipif(bool(captions.meteor_missing()), reason=captions.meteor_missing() or "nothing is missing")
def test_meteor_is_the_official_evaluators(system):
    answers, references, official = (rows[:40] for rows in system)
    found = captions.item_scores(answers, references, protocol="dstc7", metrics=["meteor"])
    np.testing.assert_allclose([item["meteor"] for item in found], [item["METEOR"] for item in official], atol=1e-12)


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs; the closer reference has 7 words, so brevity costs exp(1 - 7/6).
    hypothesis = "the cat sat on the mat"
    references = ["the cat sat upon the old mat", "there is a cat and it sits on a mat"]
    found = captions.scores([hypothesis], [references], metrics=["bleu"])
    brevity = math.exp(1 - 7 / 6)
    assert found["bleu_1"] == pytest.approx(6 / 6 * brevity)  # "on" is in the second reference
    assert found["bleu_2"] == pytest.approx(math.sqrt(1 * 2 / 5) * brevity)  # the cat, cat sat
    assert found["bleu_3"] == pytest.approx((2 / 5 * 1 / 4) ** (1 / 3) * brevity)


def test_a_repeated_word_counts_as_often_as_a_reference_has_it():
    found = captions.scores(["the the the the"], [["the cat and the dog", "the cat sat here"]], metrics=["bleu"])
    assert found["bleu_1"] == pytest.approx(2 / 4)


def test_corpus_bleu_adds_counts_up_and_is_no_mean_of_bleus():
    answers, references = ["a dog", "men sit on chairs"], ["a dog", "men are standing there"]
    whole = captions.scores(answers, references, metrics=["bleu"])["bleu_1"]
    each = [item["bleu_1"] for item in captions.item_scores(answers, references, metrics=["bleu"])]
    assert each == pytest.approx([1, 1 / 4])
    assert whole == pytest.approx(3 / 6)


def test_rouge_by_hand():
    # The longest common subsequence is "cat on mat": precision 3/4, recall 3/6.
    found = captions.scores(["cat lies on mat"], ["the cat sat on the mat"], metrics=["rouge_l"])["rouge_l"]
    assert found == pytest.approx((1 + 1.44) * 0.75 * 0.5 / (0.5 + 1.44 * 0.75))


def test_rouge_takes_the_best_precision_and_the_best_recall_of_several_references():
    found = captions.scores(["he sits"], [["he", "he sits on a chair"]], metrics=["rouge_l"])["rouge_l"]
    assert found == 1  # precision 1 by the second, recall 1 by the first


def test_cider_by_hand():
    # Two items whose references share no word: every n-gram weighs log 2, and a sentence of its own reference's
    # words has similarity 1 for n = 1, 2, 3 and none for 4, which it lacks.
    answers, references = ["man sits down", "red dog stands"], ["man sits down", "red dog stands"]
    assert captions.scores(answers, references, metrics=["cider"])["cider"] == pytest.approx(10 * 3 / 4)
    # One of the three words, and no pair: (1 / (sqrt 3 * sqrt 3)) / 4, of equal length.
    each = captions.item_scores(["man walks away", answers[1]], references, metrics=["cider"])
    assert each[0]["cider"] == pytest.approx(10 * (1 / 3) / 4)


def test_words_that_every_item_has_weigh_nothing_in_cider():
    found = captions.scores(["the yes", "the no"], ["the man", "the dog"], metrics=["cider"])
    assert found == {"cider": 0}


def test_cider_fades_with_the_difference_in_length():
    references = ["man sits down", "red dog stands"]
    short, long = (captions.item_scores([text, "x"], references, metrics=["cider"])[0]["cider"] for text in
                   ("man", "man oh oh oh oh oh"))  # fmt: skip
    assert long == pytest.approx(10 / 4 / math.sqrt(3) / math.sqrt(1 + 25) * math.exp(-(3**2) / 72), rel=1e-6)
    assert short == pytest.approx(10 / 4 / math.sqrt(3) * math.exp(-(2**2) / 72))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_scores_lie_in_their_range_and_references_have_no_order(items):
    answers, references = [answer for answer, _ in items], [texts for _, texts in items]
    found = captions.scores(answers, references, metrics=NO_JAVA)
    assert list(found) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
    assert all(0 <= score <= (10 if name == "cider" else 1) + 1e-6 for name, score in found.items())
    turned = captions.scores(answers, [texts[::-1] for texts in references], metrics=NO_JAVA)
    assert turned == pytest.approx(found, abs=1e-12)


def test_a_reference_may_be_a_text_or_a_list_of_one():
    texts = ["he sits on a chair", "yes"]
    alone = captions.scores(["he sits", "no"], texts, metrics=NO_JAVA)
    assert alone == captions.scores(["he sits", "no"], [[text] for text in texts], metrics=NO_JAVA)


def test_nothing_said_scores_nothing():
    found = captions.scores(["", "."], ["he sits on a chair", "yes"], metrics=NO_JAVA)
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-6)


def test_without_java_meteor_is_left_out_with_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert list(captions.scores(["he sits"], ["he sits"], metrics=["rouge_l", "meteor"])) == ["rouge_l"]
    assert "METEOR is a Java program" in capsys.readouterr().err


def test_without_its_package_meteor_is_left_out_with_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert captions.scores(["he sits"], ["he sits"], metrics=["meteor"]) == {}
    assert "pip install 'jtasks[captions]'" in capsys.readouterr().err


def test_a_broken_java_is_named(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 3\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(captions, "_meteor_jar", lambda: tmp_path / "meteor-1.5.jar")
    with pytest.raises(DataError, match=r"METEOR's program ended.*java.*meteor-1.5.jar"):
        captions.scores(["he sits"] * 3, ["he sits"] * 3, metrics=["meteor"])


def test_errors_say_what_is_wrong():
    with pytest.raises(ConfigError, match="unknown protocol 'dstc8' of caption scores; there are plain, dstc7"):
        captions.scores(["a"], ["a"], protocol="dstc8")
    with pytest.raises(ConfigError, match=r"unknown caption metrics \['spice'\]; there are bleu, rouge_l"):
        captions.scores(["a"], ["a"], metrics=["bleu", "spice"])
    with pytest.raises(DataError, match="2 hypotheses for 1 lists of references"):
        captions.scores(["a", "b"], ["a"])
    with pytest.raises(DataError, match="0 hypotheses for 0 lists"):
        captions.scores([], [])
    with pytest.raises(DataError, match=r"items \[1\] \(1 in all\) have no reference"):
        captions.scores(["a", "b"], ["a", []])


@pytest.mark.parametrize(
    ("hypothesis", "references", "expected"),
    [("", [""], 1.0), ("", ["a man", ""], 1.0), ("", ["a man"], 0.0), ("a man", [""], 0.0), (".", ["!"], 1.0)],
)
def test_texts_without_words_equal_each_other_for_rouge_as_for_cocos_evaluator(hypothesis, references, expected):
    found = captions.scores([hypothesis], [references], metrics=["rouge_l"])
    assert found["rouge_l"] == pytest.approx(expected)


def test_texts_without_words_score_as_in_cocos_evaluator():
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    mine = ["", "a man sits", "", "he stands up there"]
    theirs = [[""], [""], ["a man sits here"], ["he stands up"]]
    found = captions.scores(mine, theirs, metrics=["bleu", "cider"])
    results, references = {i: [text] for i, text in enumerate(mine)}, dict(enumerate(theirs))
    whole, _ = bleu.compute_score(references, results, verbose=0)
    np.testing.assert_allclose([found[f"bleu_{n}"] for n in range(1, 5)], whole, rtol=1e-9)
    np.testing.assert_allclose(found["cider"], cider.compute_score(references, results)[0], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(bool(captions.meteor_missing()), reason=captions.meteor_missing() or "nothing is missing")
def test_meteor_of_texts_without_words_is_the_official_evaluators():
    # What pycocoevalcap's Meteor().compute_score printed of these words.
    items = {("", "a man"): 0.0, ("a man", ""): 0.0, ("", ""): 0.0, (".", "!"): 0.0, ("a man", "a man"): 1.0}
    hypotheses, references = zip(*items, strict=True)
    found = captions.item_scores([*hypotheses, "a man"], [*references, ["", "a man"]], metrics=["meteor"])
    assert [item["meteor"] for item in found] == [*items.values(), 1.0]
