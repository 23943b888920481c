"""Claims about text on its way to batches: files, documents, streams of tokens, pairs, shards, stored arrays."""

import hashlib
import http.server
import itertools
import json
import pathlib
import threading

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.data import pairs, pipeline, shards, shuffle, store, text, tokenizers, tokens
from jtasks.errors import ConfigError, DataError

WORDS = ["the", "of", "a", "house", "river", "green", "runs", "and", "small", "old", "over", "stone", "bird", "sings"]


def document(random: np.random.Generator, sentences: int) -> str:
    return "\n".join(" ".join(random.choice(WORDS, random.integers(3, 14))) for _ in range(sentences))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> pathlib.Path:
    """Sixty documents of 1 to 30 sentences in two files."""
    folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("\n\n".join(document(random, random.integers(1, 31)) for _ in range(30)) + "\n")
    return folder


@pytest.fixture
def files(tmp_path) -> pathlib.Path:
    for name in ("a.txt", "b.txt", "c.md", "text/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("b.txt,a.txt", ["b.txt", "a.txt"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("a.txt, *.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "text/d.txt"]),
        ("d.txt", ["text/d.txt"]),
        ("?.md", ["c.md"]),
    ],
)
def test_files_are_found_by_name_and_pattern(files, patterns, names):
    assert text.locate(patterns, files) == [files / name for name in names]
    absolute = ",".join(f"{files}/{pattern.strip()}" for pattern in patterns.split(",") if "d.txt" not in pattern)
    if absolute:
        assert text.locate(absolute, pathlib.Path("/nowhere")) == [files / name for name in names]


def test_a_name_that_exists_is_no_pattern_and_a_folder_never_is(tmp_path):
    folder = tmp_path / "my [data], *"
    (folder / "text").mkdir(parents=True)
    for name in ("a.txt", "b[1].txt", "b1.txt", "c,d.txt", "e*.txt", "text/f.txt"):
        (folder / name).write_text(name)
    for name in ("a.txt", "b[1].txt", "c,d.txt", "e*.txt"):
        assert text.locate(name, folder) == [folder / name]
        assert text.locate(str(folder / name), pathlib.Path("/nowhere")) == [folder / name]
    assert text.locate("f.txt", folder) == [folder / "text" / "f.txt"]
    assert text.locate("[ab].txt,c\\,d.txt,b[0-9].txt", folder) == [folder / n for n in ("a.txt", "c,d.txt", "b1.txt")]


def test_a_file_that_is_nowhere_is_told_with_the_places(files):
    with pytest.raises(
        ConfigError, match=r"no file for 'x\*.txt' of config.data.valid_files: looked for x\*.txt, .*text"
    ):
        text.locate("a.txt,x*.txt", files, "config.data.valid_files")
    with pytest.raises(ConfigError, match=r"config.data.files is empty: give names of text files"):
        text.locate(" , ", files)


class Shakespeare(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"First Citizen:")

    def log_message(self, *args):
        pass


def test_shakespeare_is_downloaded_once_where_it_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Shakespeare) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        source = ("input.txt", [f"http://127.0.0.1:{server.server_port}/"])
        known = "sha256:" + hashlib.sha256(b"First Citizen:").hexdigest()
        monkeypatch.setattr(text, "_SOURCES", {"tinyshakespeare.txt": (*source, known)})
        try:
            (path,) = text.locate("tinyshakespeare.txt", tmp_path)
        finally:
            server.shutdown()
    assert path == tmp_path / "tinyshakespeare" / "input.txt"
    assert path.read_text() == "First Citizen:"
    assert text.locate("tinyshakespeare.txt", tmp_path) == [path]
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(text.files, "_download", refuse)
        with pytest.raises(DataError, match=r"cannot find or download input.txt\n  looked for: tinyshakespeare.txt"):
            text.locate("tinyshakespeare.txt", tmp_path / "other")


def refuse(*_):
    raise OSError("no network")


def test_the_shared_shakespeare_is_the_one_that_would_be_downloaded(shared):
    (path,) = text.locate("tinyshakespeare.txt", shared / "data")
    assert text._SOURCES[path.name][2] == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def parts(path, kind, seed=0, valid=0.3):
    return [list(text.documents([path], kind, split, seed=seed, valid=valid)) for split in ("train", "valid")]


def test_documents_are_files_blocks_or_lines(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\n\none\ntwo\r\n\n \t\n\nthree\n")
    assert list(text.documents([path, path], "file")) == ["\n\none\ntwo\r\n\n \t\n\nthree\n"] * 2
    assert list(text.documents([path], "blank")) == ["one\ntwo", "three"]
    assert list(text.documents([path], "line")) == ["one", "two", "three"]


def test_only_line_ends_part_lines_and_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "x.txt"
    odd = ["a\u0085b", "\u3000", "\u00a0", "c\u2028d\u2029", '"e']
    path.write_text("\ufeff" + "\r\n".join(odd) + "\r\r", newline="")
    assert list(text.documents([path], "line")) == odd
    assert list(text.documents([path], "blank")) == ["\n".join(odd)]
    assert list(text.documents([path], "file")) == ["\r\n".join(odd) + "\r\r"]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), seed=st.integers(0, 3), valid=st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_each_document_is_in_one_part_and_the_seed_decides_in_which(tmp_path_factory, count, seed, valid):
    path = tmp_path_factory.mktemp("x") / "x.txt"
    path.write_text("\n\n".join(f"document {i}\nends" for i in range(count)))
    train, kept = parts(path, "blank", seed, valid)
    assert sorted(train + kept) == sorted(text.documents([path], "blank"))
    assert len(kept) == min(round(valid * count), count - 1)
    assert parts(path, "blank", seed, valid) == [train, kept]


def test_a_file_gives_its_end_away(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("abcdefghij")
    assert parts(path, "file") == [["abcdefg"], ["hij"]]
    assert parts(path, "file", valid=0.0) == [["abcdefghij"], []]


def test_wrong_ways_of_reading_text_are_told(tmp_path):
    path = tmp_path / "x.txt"
    for content, message in (
        (b"a\n\ncaf\xe9", ", line 3: byte [0-9]+ is not UTF-8"),
        (b"a\nb\0", ", line 2: a zero byte"),
        ("a".encode("utf-16"), " is in UTF-16"),
    ):
        path.write_bytes(content)
        for kind in text.DOCUMENTS:
            with pytest.raises(DataError, match=rf"{path}{message}.*expected text in UTF-8"):
                list(text.documents([path], kind))
    with pytest.raises(ConfigError, match=r"config.data.documents='word' must be one of file, blank, line"):
        list(text.documents([path], "word"))
    with pytest.raises(ConfigError, match=r"config.data.valid_fraction=1.0 must be at least 0 and less than 1"):
        list(text.documents([path], "line", valid=1.0))


@settings(max_examples=100, deadline=None)
@given(document=st.text("ab \n\t", max_size=300), size=st.integers(1, 40))
def test_chunks_lose_nothing_and_part_words_only_where_there_is_no_space(document, size):
    found = list(tokens.chunks(document, size))
    assert "".join(found) == document
    for chunk, following in itertools.pairwise(found):
        assert size <= len(chunk) <= 2 * size
        assert following[0].isspace() or len(chunk) == 2 * size


def test_chunks_do_not_change_the_tokens_of_bpe(corpus, tmp_path):
    whole = (corpus / "a.txt").read_text()
    tokenizer = tokenizers.load("bpe:300", texts=lambda: iter([whole]), folder=tmp_path)
    expected = tokenizer.encode(whole).ids
    assert [i for chunk in tokens.chunks(whole, 50) for i in tokenizer.encode(chunk).ids] == expected


def streamed(path, folder, kind="blank", split="train", spec="bytes"):
    return tokens.stream([path], kind, split, tokenizers.load(spec), seed=0, valid=0.2, folder=folder)


def test_a_stream_is_the_documents_with_an_end_between_them(corpus, tmp_path):
    path = corpus / "a.txt"
    train, valid = parts(path, "blank", valid=0.2)
    for split, expected in (("train", train), ("valid", valid)):
        stream, size = streamed(path, tmp_path, split=split)
        assert stream.dtype == np.uint16 and isinstance(stream, np.memmap)
        found = np.split(stream, np.flatnonzero(stream == 256))
        found = [bytes(part[part < 256].astype(np.uint8).tolist()).decode() for part in found]
        assert found == expected
        assert size == len(stream) == sum(len(part) + 1 for part in expected) - 1


def test_a_stream_is_made_once_for_the_same_files_and_again_for_changed_ones(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text("abc\n\nde")
    first, _ = streamed(path, tmp_path, "file")
    with monkeypatch.context() as patch:
        patch.setattr(text, "documents", lambda *_, **__: pytest.fail("the text was read again"))
        again, _ = streamed(path, tmp_path, "file")
    np.testing.assert_array_equal(first, again)
    path.write_text("xyzxyzxyz")
    assert bytes(streamed(path, tmp_path, "file")[0].astype(np.uint8).tolist()) == b"xyzxyzx"


def test_an_empty_part_is_told(tmp_path):
    (tmp_path / "x.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"the train part of the text is empty: .*x.txt"):
        streamed(tmp_path / "x.txt", tmp_path)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 90), length=st.integers(1, 20), stride=st.integers(1, 25))
def test_windows_to_train_on_lie_in_the_stream_and_those_to_evaluate_count_each_token_once(n, length, stride):
    stream = np.arange(n, dtype=np.uint16)
    if n <= length:
        for make in (lambda: tokens.windows(stream, n, length, stride), lambda: tokens.eval_windows(stream, n, length)):
            with pytest.raises(DataError, match=f"only {n} tokens, but config.data.length={length}"):
                make()
        return
    train = tokens.windows(stream, 3 * n, length, stride)
    assert {len(array) for array in train.values()} == {len(range(0, n - length, stride))}
    assert np.shares_memory(train["tokens"], stream)
    np.testing.assert_array_equal(train["tokens"][:, 0], np.arange(0, n - length, stride))
    np.testing.assert_array_equal(np.diff(train["tokens"].astype(int), axis=1), 1)
    np.testing.assert_allclose(train["bytes"], 3 * length)

    found = tokens.eval_windows(stream, 3 * n, length)
    counted = np.arange(length) >= found["skip"][:, None]
    np.testing.assert_array_equal(found["tokens"][:, 1:][counted], np.arange(1, n))
    np.testing.assert_array_equal(np.diff(found["tokens"].astype(int), axis=1), 1)
    np.testing.assert_allclose(found["bytes"].sum(), 3 * (n - 1), rtol=1e-6)


def test_a_stride_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"config.data.stride=0 must be at least 1"):
        tokens.windows(np.arange(9), 9, 3, 0)


@pytest.fixture(scope="module")
def wordpiece(corpus, tmp_path_factory):
    paths = sorted(corpus.iterdir())
    folder = tmp_path_factory.mktemp("wordpiece")
    return tokenizers.load("wordpiece:60", texts=lambda: text.documents(paths, "blank"), folder=folder)


def made(corpus, wordpiece, folder, *, length=48, duplicates=4, seed=0):
    sources = pairs.tokenize(sorted(corpus.glob("*.txt")), "train", wordpiece, seed=0, valid=0.0, folder=folder)
    return sources, pairs.make_pairs(
        sources, ["corpus"], length=length, duplicates=duplicates, seed=seed, folder=folder
    )


@pytest.fixture(scope="module")
def paired(corpus, wordpiece, tmp_path_factory):
    return made(corpus, wordpiece, tmp_path_factory.mktemp("pairs"))


def test_sentences_and_documents_are_told_apart_and_lose_nothing(corpus, wordpiece, paired):
    sources, _ = paired
    originals = list(text.documents(sorted(corpus.glob("*.txt")), "blank"))
    assert len(sources["documents"]) == len(originals) + 1
    for index, original in enumerate(originals):
        bounds = sources["sentences"][sources["documents"][index] : sources["documents"][index + 1] + 1]
        found = [wordpiece.decode(sources["tokens"][a:b].tolist()) for a, b in itertools.pairwise(bounds)]
        assert found == original.split("\n")


def documents_of(sources, places):
    starts = sources["sentences"][sources["documents"]]
    return np.searchsorted(starts, places, side="right")


def test_pairs_are_of_one_document_or_of_two_as_their_label_says(paired):
    sources, (spans, labels, _) = paired
    assert (spans[:, 0] < spans[:, 1]).all() and (spans[:, 2] < spans[:, 3]).all()
    first, second = documents_of(sources, spans[:, 0]), documents_of(sources, spans[:, 2])
    for start, stop, of in ((0, 1, first), (2, 3, second)):
        np.testing.assert_array_equal(documents_of(sources, spans[:, stop] - 1), of)
        assert spans[:, start].min() >= 0
    np.testing.assert_array_equal(first != second, labels == 1)
    follows = labels == 0
    assert (spans[follows, 2] >= spans[follows, 1]).all()
    # A real second text goes on where the first stops, unless the two were cut to fit.
    uncut = follows & (spans[:, 1] - spans[:, 0] + spans[:, 3] - spans[:, 2] < 45)
    assert uncut.sum() > 20
    np.testing.assert_array_equal(spans[uncut, 2], spans[uncut, 1])


def test_pairs_fill_their_length_and_halves_of_them_follow(paired):
    _, (spans, labels, facts) = paired
    sizes = spans[:, 1] - spans[:, 0] + spans[:, 3] - spans[:, 2] + 3
    assert sizes.max() == 48
    assert facts["padding"] == pytest.approx(1 - sizes.mean() / 48)
    assert facts["follows"] == pytest.approx((labels == 0).mean())
    assert facts["pairs"] == len(labels) > 500
    # One in ten aims at a uniform length, and the ends of documents are short.
    assert 0.05 < (sizes < 48).mean() < 0.35
    assert 0.4 < (labels == 0).mean() < 0.55  # a lone sentence at a document's end has none to follow it


def test_pairs_do_not_depend_on_numpys_generator(corpus, wordpiece, paired, tmp_path, monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", None)
    for mine, same in zip(made(corpus, wordpiece, tmp_path)[1][:2], paired[1][:2], strict=True):
        np.testing.assert_array_equal(mine, same)


def test_pairs_without_room_for_two_texts_are_refused(corpus, wordpiece, tmp_path):
    made(corpus, wordpiece, tmp_path, length=5)
    with pytest.raises(ConfigError, match=r"config.data.length=4 must be at least 5"):
        made(corpus, wordpiece, tmp_path, length=4)


def test_long_documents_leave_a_padding_near_the_papers_expectation(wordpiece, tmp_path):
    """Ten per cent of the pairs are half as long on average: 5 % of padding, and little more for ends."""
    random = np.random.default_rng(1)
    (tmp_path / "long.txt").write_text("\n\n".join(document(random, 600) for _ in range(4)))
    _, (spans, labels, facts) = made(tmp_path, wordpiece, tmp_path, length=128)
    assert facts["padding"] == pytest.approx(0.05, abs=0.015)
    assert facts["follows"] == pytest.approx(0.5, abs=3 * 0.5 / len(labels) ** 0.5)
    sizes = spans[:, 1] - spans[:, 0] + spans[:, 3] - spans[:, 2] + 3
    assert (sizes == 128).mean() == pytest.approx(0.9, abs=0.03)


def test_four_passes_hold_nearly_every_token(paired):
    sources, (spans, _, _) = paired
    seen = np.zeros(len(sources["tokens"]), bool)
    for a, b, c, d in spans:
        seen[a:b] = seen[c:d] = True
    assert seen.mean() > 0.95


def test_pairs_are_a_function_of_the_seed_and_passes_differ(corpus, wordpiece, paired, tmp_path):
    _, (spans, labels, _) = paired
    _, (again, again_labels, _) = made(corpus, wordpiece, tmp_path)
    np.testing.assert_array_equal(spans, again)
    np.testing.assert_array_equal(labels, again_labels)
    _, (other, _, _) = made(corpus, wordpiece, tmp_path, seed=1)
    assert not np.array_equal(spans[:100], other[:100])
    _, (single, _, _) = made(corpus, wordpiece, tmp_path, duplicates=1)
    np.testing.assert_array_equal(spans[: len(single)], single)
    distinct = len({tuple(span) for span in spans.tolist()})
    assert distinct > 2.5 * len(single)


@settings(max_examples=200, deadline=None)
@given(first=st.integers(1, 60), second=st.integers(1, 60), room=st.integers(2, 80), seed=st.integers(0, 5))
def test_cutting_fits_and_takes_from_the_longer_text(first, second, room, seed):
    a, b, c, d = pairs.cut(100, 100 + first, 500, 500 + second, room, shuffle.draws(seed))
    assert 100 <= a < b <= 100 + first and 500 <= c < d <= 500 + second
    assert (b - a) + (d - c) == min(first + second, room)
    if first + second > room:
        assert abs((b - a) - (d - c)) <= 1 or min(b - a, d - c) == min(first, second)


def test_an_example_has_its_special_tokens_types_and_padding(paired):
    sources, (spans, labels, _) = paired
    begins = np.arange(60) % 2
    examples = pairs.Pairs(sources["tokens"], spans, labels, 48, first=2, separator=3, begins=begins.astype(np.uint8))
    assert len(examples) == len(spans)
    for index in (0, 1, int(np.argmin(spans[:, 1] - spans[:, 0] + spans[:, 3] - spans[:, 2]))):
        example, (a, b, c, d) = examples[index], spans[index]
        ids = [2, *sources["tokens"][a:b], 3, *sources["tokens"][c:d], 3]
        padding = [0] * (48 - len(ids))
        np.testing.assert_array_equal(example["tokens"], ids + padding)
        np.testing.assert_array_equal(example["segment_ids"], [1] * len(ids) + padding)
        np.testing.assert_array_equal(example["token_types"], [0] * (b - a + 2) + [1] * (d - c + 1) + padding)
        np.testing.assert_array_equal(example["begins"], begins[example["tokens"]])
        assert example["next"] == labels[index] and example["tokens"].dtype == np.uint16
    assert "begins" not in pairs.Pairs(sources["tokens"], spans, labels, 48, 2, 3)[0]


def test_text_of_one_document_cannot_be_paired(wordpiece, tmp_path):
    (tmp_path / "one.txt").write_text("the house\nruns over\n")
    with pytest.raises(DataError, match="the train part of the text has 1 documents; at least 2 are needed"):
        made(tmp_path, wordpiece, tmp_path)


def shard(path: pathlib.Path, n: int, *, t=16, m=4, seed=0, **changes) -> dict[str, np.ndarray]:
    """A file of the kind that NVIDIA's scripts write."""
    random = np.random.default_rng(seed)
    arrays = {
        "input_ids": random.integers(0, 50, (n, t)).astype(np.int32),
        "input_mask": (np.arange(t)[None] < random.integers(8, t + 1, n)[:, None]).astype(np.int8),
        "segment_ids": random.integers(0, 2, (n, t)).astype(np.int8),
        "masked_lm_positions": np.tile(np.array([3, 5, 0, 0][:m], np.int32), (n, 1)),
        "masked_lm_ids": random.integers(0, 50, (n, m)).astype(np.int32),
        "next_sentence_labels": random.integers(0, 2, n).astype(np.int8),
    } | changes
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file.create_dataset(name, data=array, compression="gzip")
    return arrays


def read_shards(paths, folder, split="train", valid=0.0):
    return shards.read(paths, split, seed=0, valid=valid, vocab=50, folder=folder)


def test_shards_are_read_in_order_under_our_names(tmp_path):
    paths = [tmp_path / "0.hdf5", tmp_path / "1.h5"]
    originals = [shard(path, n, seed=n) for path, n in zip(paths, (5, 7), strict=True)]
    found = read_shards(paths, tmp_path)
    for name, (ours, kind) in shards.FIELDS.items():
        np.testing.assert_array_equal(found[ours], np.concatenate([arrays[name] for arrays in originals]))
        assert found[ours].dtype == kind and isinstance(found[ours], np.memmap)
    train, valid = (read_shards(paths, tmp_path, split, valid=0.25) for split in ("train", "valid"))
    assert all(isinstance(part.array, np.memmap) for part in (*train.values(), *valid.values()))
    assert (train["tokens"].shape, train["tokens"].dtype, train["tokens"][:2].shape) == ((9, 16), np.int32, (2, 16))
    batch = pipeline.fetch(train, np.array([8, 0]), None)
    np.testing.assert_array_equal(batch["tokens"], np.asarray(train["tokens"])[[8, 0]])
    assert (len(train["next"]), len(valid["next"])) == (9, 3)
    both = np.concatenate([train["tokens"], valid["tokens"]])
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, found["tokens"].tolist()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment_ids": None}, "lacks segment_ids; it has input_ids, input_mask"),
        ({"next_sentence_labels": np.zeros(4, int)}, "arrays of unequal lengths: .*'next': 4"),
        ({"input_ids": np.full((5, 16), 50)}, "input_ids has 50 to 50; expected 0 to 49; the vocabulary has 50"),
        ({"input_ids": np.full((5, 16), 2**32 + 5)}, "input_ids has 4294967301 to"),
        ({"input_ids": np.zeros((5, 16))}, r"input_ids is float64 \[5, 16\]; expected integers"),
        ({"input_ids": np.zeros(5, int)}, r"input_ids is int64 \[5\]; expected integers"),
        ({"segment_ids": np.full((5, 16), 256)}, "segment_ids has 256 to 256; expected 0 to 1"),
        ({"next_sentence_labels": np.full(5, -1)}, "next_sentence_labels has -1 to -1; expected 0 to 1"),
        ({"masked_lm_positions": np.full((5, 4), 16)}, "masked_lm_positions has 16 to 16; expected 0 to 15"),
    ],
)
def test_a_shard_that_is_wrong_is_told(changes, message, tmp_path):
    path = tmp_path / "0.hdf5"
    shard(path, 5, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_shards([path], tmp_path)
    assert str(path) in str(caught.value)
    assert not list((tmp_path / "prepared").iterdir())


@pytest.mark.parametrize("kind", ["external", "link", "soft", "group", "fill", "virtual"])
def test_shards_hold_their_own_data(tmp_path, kind):
    path, other = tmp_path / "0.hdf5", tmp_path / "other.hdf5"
    shard(path, 5, input_ids=None)
    shard(other, 5)
    with h5py.File(path, "a") as file:
        if kind == "external":
            file.create_dataset("input_ids", (5, 16), "i4", external=[(str(other), 0, h5py.h5f.UNLIMITED)])
        elif kind == "link":
            file["input_ids"] = h5py.ExternalLink("other.hdf5", "/input_ids")
        elif kind == "soft":
            file["away"] = h5py.ExternalLink("other.hdf5", "/input_ids")
            file["input_ids"] = h5py.SoftLink("/away")
        elif kind == "group":
            file.create_group("input_ids")
        elif kind == "fill":
            file.create_dataset("input_ids", (10**9, 16), "i4", chunks=(99, 16), fillvalue=1)
        else:
            layout = h5py.VirtualLayout((5, 16), "i4")
            layout[:] = h5py.VirtualSource(str(other), "input_ids", (5, 16))
            file.create_virtual_dataset("input_ids", layout)
    with pytest.raises(DataError, match=r"0\.hdf5: input_ids (is a link|has its data in another|unfolds 0 bytes)"):
        read_shards([path], tmp_path)


def test_shards_that_are_none_or_do_not_fit_together_are_told(tmp_path):
    (tmp_path / "0.hdf5").write_text("no HDF5")
    with pytest.raises(DataError, match=r"0.hdf5 is not an HDF5 file, or is damaged"):
        read_shards([tmp_path / "0.hdf5"], tmp_path)
    shard(tmp_path / "1.hdf5", 5)
    shard(tmp_path / "2.hdf5", 5, t=32)
    with pytest.raises(DataError, match=r"do not fit together: tokens is int32"):
        read_shards([tmp_path / "1.hdf5", tmp_path / "2.hdf5"], tmp_path)


def grow(writer: store.Writer) -> None:
    writer.append("x", np.arange(6, dtype=np.int16).reshape(3, 2))
    writer.append("x", np.arange(4, dtype=np.int16).reshape(2, 2))
    writer.append("empty", np.zeros((0, 3)))
    writer.facts["count"] = 5


def test_stored_arrays_come_back_with_their_facts_and_are_made_once(tmp_path):
    for write in (grow, lambda _: pytest.fail("made again")):
        arrays, facts = store.load_or_make("things", ["a", 1], tmp_path, write)
        np.testing.assert_array_equal(arrays["x"], [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]])
        assert arrays["x"].dtype == np.int16 and not arrays["x"].flags.writeable
        assert arrays["empty"].shape == (0, 3)
        assert facts == {"count": 5}
    store.load_or_make("things", ["a", 2], tmp_path, grow)
    assert len(list((tmp_path / "prepared").iterdir())) == 2


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fail(writer: store.Writer) -> None:
        grow(writer)
        raise KeyError("broken")

    with pytest.raises(KeyError):
        store.load_or_make("things", [], tmp_path, fail)
    assert not list((tmp_path / "prepared").iterdir())
    assert store.load_or_make("things", [], tmp_path, grow)[1] == {"count": 5}


def test_processes_that_make_the_same_at_once_agree(tmp_path):
    def overtaken(writer: store.Writer) -> None:
        store.load_or_make("things", [], tmp_path, grow)  # as another process would, which ends first
        writer.append("x", np.zeros(1))

    partial = tmp_path / "prepared"
    arrays, facts = _as_another_process(lambda: store.load_or_make("things", [], tmp_path, overtaken))
    assert facts == {"count": 5} and len(arrays["x"]) == 5
    assert [path.name for path in partial.iterdir() if path.name.startswith(".")] == []


def _as_another_process(action):
    """Run `action` under another process id, so that its unfinished folder has a name of its own."""
    with pytest.MonkeyPatch.context() as patch:
        ids = iter([1, 2])
        patch.setattr(store.os, "getpid", lambda: next(ids))
        return action()


def test_where_the_folder_cannot_be_written_the_cache_serves(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.load_or_make("things", [], tmp_path / "file", grow)[1] == {"count": 5}
    assert list((tmp_path / "cache").rglob("arrays.json"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="things can be stored neither beside the data nor in the user's cache folder"):
        store.load_or_make("things", [], tmp_path / "file", grow)


@pytest.mark.parametrize("damage", ["short", "absent", "json"])
def test_damage_is_told_with_the_way_out(damage, tmp_path):
    store.load_or_make("things", [], tmp_path, grow)
    (folder,) = (tmp_path / "prepared").iterdir()
    if damage == "short":
        (folder / "x").write_bytes((folder / "x").read_bytes()[:-1])
    elif damage == "absent":
        (folder / "x").unlink()
    else:
        (folder / "arrays.json").write_text(json.dumps({"arrays": 3})[:-1])
    with pytest.raises(DataError, match=f"{folder} is damaged .* delete that folder, and it is made again"):
        store.load_or_make("things", [], tmp_path, grow)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("../../secret", {}),
        ("/etc/hostname", {}),
        ("x", {"dtype": "|O"}),
        ("x", {"dtype": "|V2"}),
        ("x", {"dtype": "<U1"}),
        ("x", {"dtype": [["a", "<i2"]]}),
        ("x", {"shape": [-5, -2]}),
        ("x", {"shape": [2.5, 4]}),
        ("x", {"shape": None}),
        ("x", {"more": 1}),
    ],
)
def test_only_numbers_under_plain_names_are_mapped(tmp_path, name, change):
    store.load_or_make("things", [], tmp_path, grow)
    (folder,) = (tmp_path / "prepared").iterdir()
    (tmp_path / "secret").write_bytes(bytes(20))
    described = json.loads((folder / "arrays.json").read_text())
    described["arrays"] = {name: described["arrays"]["x"] | change}
    (folder / "arrays.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match=f"{folder} is damaged"):
        store.load_or_make("things", [], tmp_path, grow)


@pytest.mark.parametrize("content", ["[1]", "null", '{"arrays": []}', '{"arrays": {}}', "[" * 100_000])
def test_a_description_of_another_kind_is_damage(tmp_path, content):
    store.load_or_make("things", [], tmp_path, grow)
    (folder,) = (tmp_path / "prepared").iterdir()
    (folder / "arrays.json").write_text(content)
    with pytest.raises(DataError, match=f"{folder} is damaged"):
        store.load_or_make("things", [], tmp_path, grow)


def test_rows_of_another_shape_are_refused(tmp_path):
    writer = store.Writer(tmp_path)
    writer.append("x", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"x is float64 \[n, 3\], so float64 \[2, 4\] cannot be appended"):
        writer.append("x", np.zeros((2, 4)))
    writer.close()


def test_a_share_of_one_document_is_no_valid_split(tmp_path, capsys):
    path = tmp_path / "one.txt"
    path.write_text("a single document\n")
    assert streamed(path, tmp_path, split="valid") is None
    assert "there is no valid split" in capsys.readouterr().err
    assert len(streamed(path, tmp_path)[0])
