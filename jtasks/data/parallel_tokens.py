"""Pairs of texts as tokens for an encoder-decoder, made once and stored in memory-mapped files."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jtasks.config import Config
from jtasks.console import say_once
from jtasks.data import encoding, files, parallel, store, tokenizers
from jtasks.data.parallel import Pair
from jtasks.data.tokens import batches, token_dtype
from jtasks.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH = 4096  # number of pairs tokenized in parallel
_STARTS = ("source_starts", "target_starts", "source_text_starts", "reference_starts", "references")
_ARRAYS = ("source", "source_segment_ids", "target", "target_segment_ids")  # of an example, for the device


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """How the texts of one side become tokens.

    Attributes:
      tokenizer: its own special tokens are added, such as T5's `</s>` at the end, or BART's `<s>` and `</s>`.
      length: maximum number of tokens; a longer text loses tokens from its end, but not the special ones.
      end: id after each text if the tokenizer adds no special tokens.
      pad: id after that, up to `length`.
      prefix: comes before each text.
    """

    tokenizer: "Tokenizer"
    length: int
    end: int
    pad: int
    prefix: str = ""

    @functools.cached_property
    def dtype(self) -> Any:
        """Return the smallest type that holds all ids."""
        return token_dtype(tokenizers.size(self.tokenizer))

    @functools.cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """Return the special tokens before and after each text."""
        before, after = encoding.frame(self.tokenizer)
        return (before, after) if before or after else ([], [self.end])

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the tokens of each text, and the number of texts that were cut."""
        before, after = self.frame
        room = self.length - len(before) - len(after)
        if room < 1:
            raise ConfigError(f"a length of {self.length} tokens has no room for text between the special tokens")
        given = [self.prefix + text for text in texts]
        ids = encoding.ids(self.tokenizer, given)
        return [[*before, *row[:room], *after] for row in ids], sum(len(row) > room for row in ids)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded(Sequence[dict[str, Any]]):
    """A random-access sequence of pairs as padded tokens, cut from the stored ones on access.

    An example has `source` int32 [s] and `source_segment_ids` uint8 [s], 0 for padding and else 1; `target` and
    `target_segment_ids` [t] of the first reference, all padding if there is none; and on the host `source_text` and
    `references`, a tuple of texts. Pairs without `labels` have neither the targets nor `references`.
    """

    arrays: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    sizes: tuple[int, int]  # s and t
    pads: tuple[int, int]
    labels: bool = True

    def __len__(self) -> int:
        return len(self.arrays["source_starts"]) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        example: dict[str, Any] = {}
        for name, size, pad in zip(("source", "target"), self.sizes, self.pads, strict=True):
            ids = self._item(name, index)
            tokens, segment_ids = np.full(size, pad, np.int32), np.zeros(size, np.uint8)
            tokens[: len(ids)], segment_ids[: len(ids)] = ids, 1
            example |= {name: tokens, f"{name}_segment_ids": segment_ids}
        first, last = self._views["references"][index : index + 2].tolist()
        example["source_text"] = self._text("source_text", index)
        example["references"] = tuple(self._text("reference", i) for i in range(first, last))
        return example if self.labels else {name: example[name] for name in (*_ARRAYS[:2], "source_text")}

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each source and target: int32 [n, 2]."""
        starts = (self.arrays[f"{name}_starts"] for name in ("source", "target"))
        return np.stack([np.diff(each).astype(np.int32) for each in starts], axis=1)

    @functools.cached_property
    def _views(self) -> dict[str, np.ndarray]:
        """The arrays as plain np.ndarray: slices of np.memmap are slow to make."""
        return {name: np.asarray(array) for name, array in self.arrays.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the names of the mapped files in place of their contents, for other processes."""
        kept = {name: value for name, value in self.__dict__.items() if name != "_views"}
        return kept | {"arrays": {name: _Mapped.of(array) for name, array in self.arrays.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = {name: x.load() if isinstance(x, _Mapped) else x for name, x in state["arrays"].items()}
        self.__dict__.update(state | {"arrays": arrays})

    def _item(self, name: str, index: int) -> np.ndarray:
        start, end = self._views[f"{name}_starts"][index : index + 2].tolist()
        return self._views[name][start:end]

    def _text(self, name: str, index: int) -> str:
        return self._item(name, index).tobytes().decode()


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """A memory-mapped file."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: np.ndarray) -> Any:
        path = getattr(array, "filename", None)
        return array if path is None else cls(str(path), array.dtype.str, array.shape)

    def load(self) -> np.ndarray:
        return np.memmap(self.path, self.dtype, "r", shape=self.shape)


def encode(split: str, config: Config, source: Side, target: Side) -> Encoded | None:
    """Return the pairs of one split as tokens, made once and stored; None without the split. See `parallel.read`."""
    pairs = parallel.read(split, config)
    if pairs is None:
        return None

    def write(writer: store.Writer) -> None:
        total = np.zeros(2, np.int64)
        ends = dict.fromkeys(_STARTS, 0)
        for name in _STARTS:
            writer.append(name, np.zeros(1, np.int64))
        for batch in batches(pairs, _BATCH):
            arrays, cut = _encode(batch, source, target)
            for name, array in arrays.items():
                if name in ends:
                    writer.append(name, array[1:] + ends[name])
                    ends[name] += int(array[-1])
                else:
                    writer.append(name, array)
            total += cut
        writer.facts["cut"] = total.tolist()

    parts = [(side.tokenizer.to_str(), side.length, side.end, side.prefix) for side in (source, target)]
    folder = files.data_folder(config.data.dir)
    arrays, facts = store.load_or_make("parallel", [parallel.identity(split, config), *parts], folder, write)
    encoded = Encoded(arrays, (source.length, target.length), (source.pad, target.pad))
    for name, side, cut in zip(("source", "target"), (source, target), facts["cut"], strict=True):
        if cut:
            say_once(
                f"{cut:,} of the {len(encoded):,} {name}s of {split} are longer than config.data.{name}_length="
                f"{side.length} tokens, and are cut"
            )
    return encoded


def encode_inputs(texts: Sequence[str], source: Side, target: Side) -> Encoded:
    """Return texts as sources without targets."""
    arrays, cut = _encode([Pair(text, ()) for text in texts], source, target)
    if cut[0]:
        say_once(f"an input is longer than config.data.source_length={source.length} tokens; such inputs are cut")
    return Encoded(arrays, (source.length, target.length), (source.pad, target.pad), labels=False)


def lengths(examples: Sequence[Mapping[str, Any]] | Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the number of tokens of each source and target, 0 for no target: int32 [n, 2]."""
    if isinstance(examples, Encoded):
        return examples.lengths
    names = ("source_segment_ids", "target_segment_ids")
    if isinstance(examples, Mapping):
        return np.stack([np.count_nonzero(examples[name], axis=1) for name in names], axis=1)
    return np.array([[np.count_nonzero(row.get(name, ())) for name in names] for row in examples], np.int32)


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Stack the arrays of examples, [b, ...]; the texts stay on the host."""
    return {name: np.stack([row[name] for row in examples]) for name in _ARRAYS if name in examples[0]}


def _encode(pairs: Sequence[Pair], source: Side, target: Side) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
    """Return the arrays of `Encoded`, with starts that count from 0, and how many sources and targets were cut."""
    references = [reference for pair in pairs for reference in pair.references]
    sources, cut_sources = source.encode([pair.source for pair in pairs])
    labels, cut_targets = target.encode([pair.references[0] for pair in pairs if pair.references])
    rest = iter(labels)
    targets = [next(rest) if pair.references else [] for pair in pairs]
    texts = {"source_text": [pair.source for pair in pairs], "reference": references}
    columns = {"source": (sources, source.dtype), "target": (targets, target.dtype)} | {
        name: ([text.encode() for text in column], np.uint8) for name, column in texts.items()
    }
    arrays = {"references": np.cumsum([0, *(len(pair.references) for pair in pairs)], dtype=np.int64)}
    for name, (rows, dtype) in columns.items():
        arrays[name] = np.fromiter(itertools.chain.from_iterable(rows), dtype)
        arrays[f"{name}_starts"] = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return arrays, (cut_sources, cut_targets)
