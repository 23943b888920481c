"""Claims about SentencePiece models: the ids are those of transformers' T5Tokenizer and MarianTokenizer."""

import json
import shutil

import pytest
from front_door import ROOT

from jtasks.data import encoding, sentence_pieces, tokenizers
from jtasks.errors import DataError

T5, MARIAN = (ROOT / "tests" / "golden" / f"{name}_pieces" for name in ("t5", "marian"))
SIDES = {
    "t5": (T5, str(T5), "ids"),
    "source": (MARIAN, str(MARIAN), "source"),
    "target": (MARIAN, str(MARIAN / "target.spm"), "target"),
}


def read(folder):
    return json.loads((folder / "ids.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("side", SIDES)
def test_the_ids_are_those_of_transformers_in_any_script(side):
    folder, spec, name = SIDES[side]
    tokenizer, wanted = tokenizers.load(spec), read(folder)
    before, after = encoding.frame(tokenizer)
    ids = [[*before, *line, *after] for line in encoding.ids(tokenizer, wanted["lines"])]
    for line, ours, theirs in zip(wanted["lines"], ids, wanted[name], strict=True):
        assert ours == theirs, line
    stored = tokenizers.parse(tokenizers.assets(tokenizer)["tokenizer.json"])
    assert encoding.ids(stored, wanted["lines"]) == encoding.ids(tokenizer, wanted["lines"])


@pytest.mark.parametrize("side", ["t5", "target"])
def test_the_texts_come_back_as_in_transformers(side):
    folder, spec, name = SIDES[side]
    wanted, tokenizer = read(folder), tokenizers.load(spec)
    texts = [text.strip() for text in tokenizer.decode_batch(wanted[name])]
    assert texts == [text.replace(">>jpn<<", "").strip() for text in wanted["texts"]]


SIGLIP = {  # ids of transformers' SiglipTokenizer with the pieces of T5's
    "A photo of a Dog.": [22, 3, 380, 340, 212, 341, 49, 22, 626, 1],
    "two  cats,\tone mat!": [3, 27, 375, 878, 9, 270, 127, 121, 1],
    "it's 3,000 km: well-known (yes) [x]": [48, 9, 458, 700, 951, 703, 59, 62, 103, 433, 249, 51, 382, 9, 3, 796, 1],
    "na\u00efve CAF\u00c9 \u00bd \ufb01n": [198, 394, 2, 287, 216, 394, 1227, 2, 407, 2, 1286, 519, 1],
    "": [1],
}


def test_siglip_drops_case_and_punctuation_as_transformers_does(tmp_path):
    shutil.copy(T5 / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>"}')
    tokenizer = tokenizers.load(str(tmp_path))
    assert {text: tokenizer.encode(text).ids for text in SIGLIP} == SIGLIP
    assert tokenizers.size(tokenizer) == len(sentence_pieces.read(T5 / "spiece.model").pieces)


def test_t5_has_its_sentinels_after_the_pieces_and_as_many_as_its_config_says(tmp_path):
    pieces = len(sentence_pieces.read(T5 / "spiece.model").pieces)
    assert tokenizers.load(str(T5)).token_to_id("<extra_id_0>") == pieces + 99
    shutil.copy(T5 / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 3, "tokenizer_class": "T5Tokenizer"}')
    assert tokenizers.size(tokenizers.load(str(tmp_path))) == pieces + 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "source.spm").write_bytes(b"\x0a\xff\xff"), "expected a model of SentencePiece"),
        (lambda folder: (folder / "source.spm").write_bytes(b""), "has no pieces"),
        (lambda folder: (folder / "vocab.json").unlink(), "needs vocab.json beside it"),
        (lambda folder: (folder / "vocab.json").write_text('{"</s>": 0, "<unk>": 2}'), "without gaps"),
        (lambda folder: (folder / "vocab.json").write_text('{"</s>": 0, "a": 1}'), "has no <unk>"),
        (lambda folder: (folder / "vocab.json").write_text('{"</s>": "0"}'), "an id for each piece"),
        # The kind of the model is field 3 of field 2: here BPE.
        (lambda folder: (folder / "source.spm").write_bytes(b"\x0a\x03\x0a\x01a\x12\x02\x18\x02"), "is a BPE model"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_a_way_out(tmp_path, change, message):
    folder = shutil.copytree(MARIAN, tmp_path / "a b[1]")
    change(folder)
    with pytest.raises(DataError, match=message):
        tokenizers.load(str(folder / "source.spm"))


def test_the_model_of_another_family_is_refused_by_its_name(tmp_path):
    shutil.copy(T5 / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    with pytest.raises(DataError, match=r"of a AlbertTokenizer.*tokenizer\.json"):
        tokenizers.load(str(tmp_path))
