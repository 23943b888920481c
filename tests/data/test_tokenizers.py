"""Claims about reading, training and storing tokenizers."""

import json
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.data import encoding, tokenizer_training, tokenizers
from jtasks.data.tokenizers import Corpus
from jtasks.errors import ConfigError, DataError

LINES = [
    "The quick brown fox jumps over the lazy dog; it unbelievably outruns the hounds.",
    "Straße, naïve café: 日本語 and Ελλάδα, 3.14 and €5!",
    "running runner runs ran, jumping jumper jumps jumped, walking walker walks walked",
] * 3
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "Hello", "un", "##able", "##s", ",", "ö"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: tokenizers.END not in text)


def lines():
    return iter(LINES)


def never():
    raise AssertionError("the text was read again")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def byte_pairs(folder):
    return tokenizers.load("bpe:360", texts=lines, folder=folder)


@pytest.fixture
def vocabulary(tmp_path) -> pathlib.Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return path


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@settings(max_examples=60, deadline=None)
@given(text=ANY_TEXT)
def test_bytes_are_their_own_ids_and_lose_nothing(text):
    tokenizer = tokenizers.load("bytes")
    assert encode(tokenizer, text) == list(text.encode())
    assert tokenizer.decode(encode(tokenizer, text)) == text
    assert tokenizers.special(tokenizer, tokenizers.END) == 256 == tokenizer.get_vocab_size() - 1


@settings(max_examples=60, deadline=None)
@given(text=ANY_TEXT)
def test_byte_level_bpe_loses_nothing_even_of_unseen_text(byte_pairs, text):
    assert byte_pairs.decode(encode(byte_pairs, text)) == text


def test_bpe_of_its_own_text_is_shorter_than_bytes_and_has_the_size_asked_for(byte_pairs):
    assert byte_pairs.get_vocab_size() == 360
    assert len(encode(byte_pairs, LINES[0])) < 0.5 * len(LINES[0])


def test_characters_are_one_id_each_and_unseen_ones_are_unknown(folder):
    tokenizer = tokenizers.load("characters", texts=lines, folder=folder)
    text = "the Straße\x00日 dogs"
    ids = encode(tokenizer, text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text.replace("\x00", "[UNK]")
    assert tokenizer.get_vocab_size() == len(set("".join(LINES))) + 2
    order = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    assert order[1:-1] == sorted(order[1:-1])


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_drops_case_and_accents_only_where_asked(folder, lowercase):
    tokenizer = tokenizers.load("wordpiece:150", lowercase=lowercase, texts=lines, folder=folder)
    assert tokenizer.get_vocab_size() == 150
    assert (encode(tokenizer, "THE Café") == encode(tokenizer, "the cafe")) == lowercase
    assert tokenizer.decode(encode(tokenizer, "the dog jumps over")) == "the dog jumps over"
    encoded = tokenizer.encode("the dog", "jumps")
    assert [encoded.ids[0], encoded.ids[-1]] == [tokenizers.special(tokenizer, name) for name in ("[CLS]", "[SEP]")]
    assert [tokenizers.special(tokenizer, name) for name in tokenizers.BERT] == [0, 1, 2, 3, 4]


def test_words_begin_where_no_continuation_stands(folder):
    tokenizer = tokenizers.load("wordpiece:150", texts=lines, folder=folder)
    begins = tokenizers.words(tokenizer)
    encoded = tokenizer.encode("unbelievably runs", add_special_tokens=False)
    assert sum(begins[i] for i in encoded.ids) == 2 < len(encoded.ids)
    assert [begins[i] for i in encoded.ids] == [not token.startswith("##") for token in encoded.tokens]
    with pytest.raises(DataError, match="no pieces that continue a word"):
        tokenizers.words(tokenizers.load("bytes"))


TRAIN = """
import pathlib, sys
from jtasks.data import tokenizers
from jtasks.data.tokenizers import Corpus
lines = open(sys.argv[2], encoding="utf-8").read().split("\\n")
for spec in ("characters", "wordpiece:160", "bpe:350"):
    tokenizers.load(spec, texts=lambda: iter(lines), folder=pathlib.Path(sys.argv[1]))
"""


def test_training_gives_the_same_files_in_every_process(tmp_path):
    """Hash orders differ from process to process, and the library's own training with them."""
    source, files = tmp_path / "text", []
    source.write_text("\n".join(LINES), encoding="utf-8")
    for i in range(3):
        subprocess.run([sys.executable, "-c", TRAIN, tmp_path / str(i), source], check=True, timeout=300)
        files.append({path.name: path.read_text() for path in (tmp_path / str(i) / "tokenizers").iterdir()})
    assert len(files[0]) == 3
    assert files[0] == files[1] == files[2]


def test_a_tokenizer_is_trained_once_and_again_for_other_text(tmp_path):
    first = tokenizers.load("bpe:300", texts=lambda: Corpus(lines, "one"), folder=tmp_path)
    assert tokenizers.load("bpe:300", texts=lambda: Corpus(never, "one"), folder=tmp_path) is first
    tokenizers.load("bpe:300", texts=lambda: Corpus(lambda: LINES[:1], "two"), folder=tmp_path)
    tokenizers.load("bpe:300", texts=lambda: iter(LINES[1:]), folder=tmp_path)
    assert len(list((tmp_path / "tokenizers").glob("bpe300-*.json"))) == len(list((tmp_path / "tokenizers").iterdir()))
    assert len(list((tmp_path / "tokenizers").iterdir())) == 3


def test_where_the_folder_of_data_cannot_be_written_the_cache_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").write_text("a file, so that nothing can be made in it")
    tokenizer = tokenizers.load("bpe:300", texts=lambda: Corpus(lines, "x"), folder=tmp_path / "data")
    assert tokenizers.load("bpe:300", texts=lambda: Corpus(never, "x"), folder=tmp_path / "data") is tokenizer
    assert len(list((tmp_path / "cache" / "jtasks" / "tokenizers").iterdir())) == 1


def test_a_vocabulary_of_bert_gives_its_line_numbers(vocabulary):
    lower, cased = tokenizers.load(str(vocabulary)), tokenizers.load(str(vocabulary), lowercase=False)
    assert encode(lower, "Hello, unables xyz") == [5, 11, 8, 9, 10, 1]
    assert encode(cased, "Hello, unables xyz") == [7, 11, 8, 9, 10, 1]
    assert lower.encode("hello", "world").ids == [2, 5, 3, 6, 3]
    assert lower.encode("hello", "world").type_ids == [0, 0, 0, 1, 1]
    assert encode(lower, "ö") == [1] and encode(cased, "ö") == [12]
    assert tokenizers.load(str(vocabulary)) is lower


def test_windows_line_ends_are_no_part_of_the_pieces(vocabulary):
    vocabulary.write_bytes(vocabulary.read_bytes().replace(b"\n", b"\r\n"))
    assert encode(tokenizers.load(str(vocabulary)), "hello world") == [5, 6]


def test_a_runs_folder_is_a_tokenizer(byte_pairs, tmp_path):
    for name, content in tokenizers.assets(byte_pairs).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    again = tokenizers.load(str(tmp_path))
    assert again.to_str() == byte_pairs.to_str()
    assert again.to_str() == tokenizers.load(str(tmp_path / "tokenizer.json")).to_str()


def test_a_relative_path_is_looked_for_in_the_folder_of_data_too(vocabulary):
    assert encode(tokenizers.load("vocab.txt", folder=vocabulary.parent), "world") == [6]
    assert encode(tokenizers.load(vocabulary.parent.name, folder=vocabulary.parent.parent), "world") == [6]


def test_a_file_that_changed_is_read_again(vocabulary):
    assert encode(tokenizers.load(str(vocabulary)), "world") == [6]
    vocabulary.write_text("[UNK]\nworld\n")
    assert encode(tokenizers.load(str(vocabulary)), "world") == [1]


def test_the_official_vocabulary_of_bert(shared):
    tokenizer = tokenizers.load(str(shared / "data" / "text" / "bert_base_uncased_vocab.txt"))
    assert tokenizer.get_vocab_size() == 30522
    # The ids of transformers' documentation of BERT.
    assert tokenizer.encode("Hello, my dog is cute").ids == [101, 7592, 1010, 2026, 3899, 2003, 10140, 102]
    assert tokenizers.special(tokenizer, "[MASK]") == 103


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wordpeice", "unknown tokenizer config.data.tokenizer='wordpeice': expected bytes, characters"),
        ("bpe:256", "should be bpe:N with a whole number N of at least 257"),
        ("wordpiece:many", "should be wordpiece:N with a whole number N of at least 6"),
        ("wordpiece:30", "too small: the characters of this text alone take"),
    ],
)
def test_a_wrong_spec_is_told(spec, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        tokenizers.load(spec, texts=lines, folder=tmp_path)


def test_training_without_text_is_told(tmp_path):
    with pytest.raises(ConfigError, match="'bpe:300' must be trained on text, and there is no text"):
        tokenizers.load("bpe:300", folder=tmp_path)
    with pytest.raises(DataError, match="no text to train the tokenizer on"):
        tokenizers.load("bpe:300", texts=lambda: iter(["", "\n"]), folder=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", b"[UNK]\nhello\nhello\n", "has 'hello' twice"),
        ("vocab.txt", b"hello\nworld\n", r"has no line \[UNK\]"),
        ("vocab.txt", b"\xff\xfe", "expected a text file in UTF-8"),
        ("tokenizer.json", b'{"model": ', "is not a tokenizer"),
        ("tokenizer.json", json.dumps({"width": 3}).encode(), "is not a tokenizer"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_told(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        tokenizers.load(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


def test_an_absent_file_is_told_with_the_places(tmp_path):
    with pytest.raises(ConfigError, match=f"looked for nowhere/vocab.txt, {tmp_path}/nowhere/vocab.txt\n  what to do"):
        tokenizers.load("nowhere/vocab.txt", folder=tmp_path)
    with pytest.raises(ConfigError, match=r"no tokenizer in .*: looked for tokenizer.json, source.spm, vocab.txt"):
        tokenizers.load(str(tmp_path))


def test_a_missing_special_token_is_told(byte_pairs):
    assert tokenizers.special(byte_pairs, "[MASK]", tokenizers.END) == byte_pairs.token_to_id(tokenizers.END)
    with pytest.raises(DataError, match=r"has no token \[MASK\] or <mask>.* choose another config.data.tokenizer"):
        tokenizers.special(byte_pairs, "[MASK]", "<mask>")


# Files as people have them


def wordpiece_json(path, vocabulary, **more):
    """A tokenizer.json of WordPiece at `path`, its JSON with `more` fields."""
    (path.parent / "v.txt").write_text("\n".join(VOCABULARY) + "\n")
    state = json.loads(tokenizers.load(str(path.parent / "v.txt")).to_str())
    state["model"]["vocab"] = vocabulary
    path.write_text(json.dumps(state | more), encoding="utf-8-sig")
    return str(path)


def numbered(pieces):
    return {piece: i for i, piece in enumerate(pieces)}


TRUNCATION = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
PADDING |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}


def test_a_files_own_truncation_and_padding_are_off_and_its_byte_order_mark_is_none(tmp_path):
    file = wordpiece_json(tmp_path / "t.json", numbered(VOCABULARY), truncation=TRUNCATION, padding=PADDING)
    tokenizer = tokenizers.load(file)
    assert tokenizers.encode(tokenizer, ["hello world , hello"], offsets=False)[0].ids == [5, 6, 11, 5]
    assert json.loads(tokenizers.assets(tokenizer)["tokenizer.json"])["truncation"] is None


@settings(max_examples=20, deadline=None)
@given(gaps=st.lists(st.integers(0, 50), min_size=len(VOCABULARY), max_size=len(VOCABULARY)))
def test_the_size_is_the_largest_id_and_one(gaps, tmp_path_factory):
    ids = {piece: i + sum(gaps[: i + 1]) for i, piece in enumerate(VOCABULARY)}
    tokenizer = tokenizers.load(wordpiece_json(tmp_path_factory.mktemp("gaps") / "t.json", ids, added_tokens=[]))
    assert tokenizers.size(tokenizer) == max(ids.values()) + 1
    assert tokenizer.encode("hello", add_special_tokens=False).ids == [ids["hello"]]


def test_ids_without_bound_are_refused(tmp_path):
    file = wordpiece_json(tmp_path / "t.json", {"[UNK]": 2**32 - 1}, added_tokens=[], post_processor=None)
    with pytest.raises(DataError, match="has ids up to 4294967295: expected 0 to at most 16777215"):
        tokenizers.load(file)


def test_a_panic_in_rust_is_an_error_like_others(tmp_path):
    damaged = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    file = wordpiece_json(tmp_path / "t.json", numbered(VOCABULARY), normalizer=damaged)
    with pytest.raises(DataError, match=r"t\.json is not a tokenizer.*precompiled_charsmap"):
        tokenizers.load(file)
    with pytest.raises(DataError, match="cannot read a text of the data"):
        tokenizers.encode(tokenizers.load("bytes"), ["half of a pair: \ud800"])


def test_a_tokenizer_that_fails_on_unknown_characters_is_told_at_once(tmp_path):
    file = wordpiece_json(tmp_path / "t.json", {"a": 0}, added_tokens=[], post_processor=None)
    with pytest.raises(DataError, match=r"cannot be used .*Missing \[UNK\]"):
        tokenizers.load(file)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n\n", ""])
def test_a_vocabulary_keeps_its_ids_whatever_ends_it(end, vocabulary):
    vocabulary.write_bytes(b"\xef\xbb\xbf" + ("\n".join(VOCABULARY) + end).encode())
    tokenizer = tokenizers.load(str(vocabulary))
    assert encode(tokenizer, "hello world") == [5, 6] and tokenizers.size(tokenizer) == len(VOCABULARY)


def test_an_empty_line_of_a_vocabulary_counts(vocabulary):
    vocabulary.write_text("\n".join(["[UNK]", "", "", "hello"]))
    assert encode(tokenizers.load(str(vocabulary)), "hello") == [3]


@pytest.fixture
def beside(vocabulary):
    """Writes a file of JSON beside the vocabulary."""
    return lambda name, **content: (vocabulary.parent / name).write_text(json.dumps(content), encoding="utf-8-sig")


@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("asked", [True, False])
def test_what_the_folder_says_of_case_decides_and_a_contradiction_is_told(form, asked, vocabulary, beside, capsys):
    if form == "tokenizer.json":
        wordpiece_json(vocabulary.parent / form, numbered(VOCABULARY))
    beside("tokenizer_config.json", do_lower_case=False, tokenizer_class="BertTokenizer")
    tokenizer = tokenizers.load(str(vocabulary.parent), lowercase=asked)
    assert encode(tokenizer, "Hello ö") == [7, 12]
    assert ("config.data.lowercase=True is not used" in capsys.readouterr().err) == asked


def test_the_folders_accents_and_special_tokens_are_used(vocabulary, beside):
    vocabulary.write_text("<unk>\nhello\nö\n<s>\n</s>\n")
    beside("special_tokens_map.json", unk_token="<unk>", cls_token={"content": "<s>"}, sep_token="</s>")
    beside("tokenizer_config.json", do_lower_case=True, strip_accents=False)
    tokenizer = tokenizers.load(str(vocabulary.parent))
    assert tokenizer.encode("Hello Ö x").ids == [3, 1, 2, 0, 4]


@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_added_tokens_keep_their_ids(form, vocabulary, beside):
    if form == "tokenizer.json":
        wordpiece_json(vocabulary.parent / form, numbered(VOCABULARY))
    beside("added_tokens.json", **{"[NEW]": 20})
    beside("tokenizer_config.json", added_tokens_decoder={"22": {"content": "<x>", "special": True}})
    tokenizer = tokenizers.load(str(vocabulary.parent))
    assert encode(tokenizer, "hello[NEW] <x>") == [5, 20, 22] and tokenizers.size(tokenizer) == 23
    assert tokenizer.decode([5, 22]) == "hello"
    beside("added_tokens.json", hello=3)
    with pytest.raises(DataError, match=r"gives 'hello' the id 5, while .* says 3"):
        tokenizers.load(str(vocabulary.parent))


def test_clips_vocabulary_and_merges_are_its_tokenizer(tmp_path):
    """The ids are those of CLIPTokenizer in transformers 5.24 for the same files."""
    chars, start, end = tokenizer_training.byte_chars(), "<|startoftext|>", "<|endoftext|>"
    pieces = [*chars, *(f"{char}</w>" for char in chars), "ca", "cat</w>", "th", "the</w>", start, end]
    (tmp_path / "vocab.json").write_text(json.dumps(numbered(pieces)), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nt h\nth e</w>\n", encoding="utf-8")
    tokenizer = tokenizers.load(str(tmp_path))
    for text, expected in {
        "The  CAT's 12\n": ["the</w>", "cat</w>", "'", "s</w>", "1</w>", "2</w>"],
        "cafe\u0301!? ": ["ca", "f", "Ã", "©</w>", "!", "?</w>"],
        "": [],
        f"{end}the catthe": [end, "the</w>", "ca", "t", "the</w>"],
    }.items():
        assert tokenizer.encode(text).tokens == [start, *expected, end]
    rows = encoding.rows(tokenizer, ["The  CAT's 12\n", ""], 6, pad=517)
    assert rows.tolist() == [[516, 515, 513, 39, 371, 517], [516, 517, 517, 517, 517, 517]]
    del pieces[-1]
    (tmp_path / "vocab.json").write_text(json.dumps(numbered(pieces)), encoding="utf-8")
    with pytest.raises(DataError, match=r"endoftext"):
        tokenizers.load(str(tmp_path))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_gpt2s_vocabulary_and_merges_are_a_tokenizer(end, tmp_path):
    pieces = [*tokenizer_training.byte_chars(), "he", "Ġhe", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps(numbered(pieces)), encoding="utf-8")
    (tmp_path / "merges.txt").write_text(end.join(["#version: 0.2", "h e", "Ġ he", ""]), encoding="utf-8", newline="")
    tokenizer = tokenizers.load(str(tmp_path))
    assert tokenizer.encode("he he<|endoftext|>x").ids == [256, 257, 258, pieces.index("x")]
    assert tokenizer.decode(tokenizer.encode("Straße, 日本語").ids) == "Straße, 日本語"
    (tmp_path / "merges.txt").write_text("h e\nh\n")
    with pytest.raises(DataError, match=r"merges\.txt, line 2: 'h'; expected two pieces"):
        tokenizers.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", b"[]", "holds list: expected a JSON object"),
        ("tokenizer_config.json", b'{"do_lower_case": "no"}', "do_lower_case is 'no', expected bool"),
        ("tokenizer_config.json", b'{"unk_token": 3}', "unk_token is 3, expected str"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}', "added_tokens_decoder has 'x'"),
        ("added_tokens.json", b'{"[NEW]": "nine"}', r"'\[NEW\]' has the id 'nine'"),
        ("special_tokens_map.json", b"[" * 100_000, "cannot be read"),
        ("special_tokens_map.json", b'{"unk_token": "<unk>"}', "has no line <unk>"),
    ],
)
def test_odd_files_beside_a_vocabulary_are_told(name, content, message, vocabulary):
    (vocabulary.parent / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        tokenizers.load(str(vocabulary.parent))


@pytest.mark.parametrize("name", ["tokenizer_gaps", "tokenizer_truncates", "cased_vocabulary"])
def test_cases_from_bug_reports(name, shared):
    folder = shared / "cases" / name
    file = {"tokenizer_gaps": "gaps.json", "tokenizer_truncates": "truncates.json"}.get(name, "model")
    tokenizer = tokenizers.load(str(folder / file))
    if name == "tokenizer_gaps":
        assert tokenizers.size(tokenizer) == 105
    elif name == "cased_vocabulary":
        assert tokenizer.encode("Rome Is[NEW]", add_special_tokens=False).tokens == ["Rome", "Is", "[NEW]"]
    else:
        assert tokenizer.truncation is None is tokenizer.padding
