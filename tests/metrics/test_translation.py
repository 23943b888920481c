"""Claims about jtasks.metrics.translation: the numbers are those of sacrebleu's command and of rouge-score."""

import sys

import pytest

from jtasks.errors import ConfigError, DataError
from jtasks.metrics import translation

SAID = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
FIRST = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
SECOND = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]
BOTH = list(zip(FIRST, SECOND, strict=True))


def test_bleu_and_chrf_are_those_of_the_command():
    # sacrebleu FIRST SECOND -i SAID -m bleu chrf -w 6
    score, signature = translation.bleu(SAID, BOTH)
    assert score == pytest.approx(48.530827, abs=1e-6)
    assert signature.startswith("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    score, signature = translation.chrf(SAID, BOTH)
    assert score == pytest.approx(59.727518, abs=1e-6)
    assert signature.startswith("nrefs:2|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert translation.chrf(SAID, BOTH, word_order=2)[0] == pytest.approx(59.153104, abs=1e-6)


def test_a_hypothesis_may_have_fewer_references_than_another():
    fewer = [FIRST[0], *BOTH[1:]]
    score, signature = translation.bleu(SAID, fewer)
    assert score == pytest.approx(48.530827, abs=1e-6)  # the command, with an empty line in SECOND
    assert signature.startswith("nrefs:var|")
    assert translation.bleu(SAID[::-1], fewer[::-1]) == (score, signature)
    assert translation.chrf(SAID, fewer)[1].startswith("nrefs:var|")


def test_tokenizers_and_case_change_bleu_as_in_sacrebleu():
    assert translation.bleu(["a b c d e"], ["A B c d e"], lowercase=True)[0] == pytest.approx(100)
    assert translation.bleu(["a b c d e"], ["A B c d e"])[0] < 70
    assert translation.bleu(["a b c, d"], ["a b c , d"], tokenize="13a")[0] == pytest.approx(100)
    assert translation.bleu(["a b c, d"], ["a b c , d"], tokenize="none")[0] < 50
    assert translation.bleu(["我们都很好"], ["我们都很好"], tokenize="zh")[0] == pytest.approx(100)
    assert translation.bleu(["我们都很好"], ["我们都很好"])[0] == 0  # one word has no 2-gram


def test_text_tokenized_by_its_owner_brings_no_warning(caplog):
    lines = ["he sits ."] * 100
    assert translation.bleu(lines, lines, tokenize="none")[1].split("|")[3] == "tok:none"
    assert not caplog.records


def test_rouge_is_that_of_rouge_scores_own_tests():
    scores = translation.rouge(["w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"], ["w1 w2 w3 w4 w5"])
    assert scores["rougeLsum"] == pytest.approx(2 * 0.8 * 0.4 / 1.2)  # recall 0.8, precision 0.4
    assert translation.rouge(["testing"], ["testing one two"])["rouge1"] == pytest.approx(0.5)
    assert translation.rouge(["friends had a meeting"], ["friend had meetings"])["rouge1"] < 0.3
    assert translation.rouge(["friends had a meeting"], ["friend had meetings"], stem=True)["rouge1"] > 0.8


def test_rouge_takes_the_best_reference_and_the_mean_over_hypotheses():
    one, two = translation.rouge(["a b"], ["a b c"]), translation.rouge(["a b"], ["b"])
    best = {name: max(one[name], two[name]) for name in one}
    assert translation.rouge(["a b"], [["b", "a b c"]]) == best
    assert translation.rouge(["a b", "x"], [["b", "a b c"], "y"]) == {name: best[name] / 2 for name in best}


def test_rouge_lsum_takes_lines_as_sentences():
    turned = translation.rouge(["c d\na b"], ["a b\nc d"])
    assert turned["rougeLsum"] == 1
    assert turned["rougeL"] == 0.5
    assert translation.rouge(["c d. a b"], ["a b. c d"])["rougeLsum"] == 0.5


def test_empty_texts_score_nothing_and_break_nothing():
    said, wanted = ["", "a b", "日本語"], [["a b"], [""], ["日本語"]]
    assert translation.bleu(said[:2], wanted[:2])[0] == 0
    assert translation.chrf(said[:2], wanted[:2])[0] == 0
    assert set(translation.rouge(said, wanted).values()) == {0.0}  # rouge-score's words are a-z and 0-9
    assert translation.exact_match(said, wanted) == 1 / 3
    assert translation.exact_match([" Yes\n", "NO"], [["no", "yes"], "no"], lowercase=True) == 1


def test_all_scores_have_their_names():
    scores, signatures = translation.scores(SAID, BOTH, metrics=translation.METRICS, tokenize="none")
    assert list(scores) == ["bleu", "chrf", *translation.ROUGE, "exact_match"]
    assert scores["rougeL"] == translation.rouge(SAID, BOTH)["rougeL"]
    assert "tok:none" in signatures["bleu"] and list(signatures) == ["bleu", "chrf"]


def test_errors_say_what_is_wrong(monkeypatch):
    with pytest.raises(DataError, match="1 hypotheses for 2 lists"):
        translation.bleu(["a"], ["a", "b"])
    with pytest.raises(DataError, match="0 hypotheses"):
        translation.rouge([], [])
    with pytest.raises(DataError, match=r"items \[1\] \(1 in all\) have no reference"):
        translation.exact_match(["a", "b"], ["a", []])
    with pytest.raises(ConfigError, match="unknown tokenizer '14a' of BLEU; sacrebleu has none, 13a"):
        translation.bleu(["a"], ["a"], tokenize="14a")
    with pytest.raises(ConfigError, match="unknown score 'rogue' of texts, did you mean rouge"):
        translation.scores(["a"], ["a"], metrics=["rogue"])
    monkeypatch.setitem(sys.modules, "MeCab", None)
    with pytest.raises(ConfigError, match=r"'ja-mecab' cannot be made: .*pip install sacrebleu\[ja\]"):
        translation.bleu(["a"], ["a"], tokenize="ja-mecab")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ConfigError, match=r"chrF is computed by sacrebleu, .*pip install 'jtasks\[translation\]'"):
        translation.chrf(["a"], ["a"])
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ConfigError, match=r"ROUGE is computed by rouge-score, .*pip install 'jtasks\[translation\]'"):
        translation.rouge(["a"], ["a"])
