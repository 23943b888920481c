"""generation_config.json as fields of config.beam: how the people who trained a model decode with it."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jtasks.errors import CheckpointError
from jtasks.interop import files

FILE = "generation_config.json"
SAME = ("num_beams", "length_penalty", "early_stopping", "repetition_penalty", "no_repeat_ngram_size")
FORCED = ("forced_bos_token_id", "forced_eos_token_id")
# Fields that would change the result and that our beam search does not have, with the values that change nothing.
OTHERS: Mapping[str, Any] = {
    "do_sample": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "renormalize_logits": False,
    "guidance_scale": None,
    "penalty_alpha": None,
}


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Return the folder's decoding settings: generation_config.json, or in older folders config.json."""
    path = folder / FILE
    return files.read_json(path) if path.exists() else files.read_config(folder)


def fields(folder: pathlib.Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Return the fields of config.beam that the folder of an encoder-decoder sets, by their names there.

    Lengths of transformers count the id that begins a target; lengths of config.beam do not.

    Args:
      folder: in the format of `save_pretrained`.
      warn: called with the names of fields that our beam search does not have.

    Raises:
      CheckpointError: a field has an odd value.
    """
    given = {name: value for name, value in read(folder).items() if value is not None}
    beam = {name: given[name] for name in SAME if name in given}
    beam |= {name: _one(name, given[name]) for name in FORCED if name in given}
    beam |= {
        ours: given[name]
        for name, ours in (("min_new_tokens", "min_len"), ("max_new_tokens", "max_len"))
        if name in given
    }
    for name, ours in (("min_length", "min_len"), ("max_length", "max_len")):
        if name in given and ours not in beam:
            beam[ours] = max(_whole(name, given[name]) - 1, int(ours == "max_len"))
    if words := given.get("bad_words_ids"):
        ends = given.get("eos_token_id")
        words = [_ids(word) for word in words] if isinstance(words, list) else [_ids(words)]
        beam["bad_words_ids"] = tuple(word for word in words if word != (ends,))
    unknown = {name: given[name] for name, usual in OTHERS.items() if given.get(name, usual) not in (usual, [])}
    if unknown:
        listed = ", ".join(f"{name}={value!r}" for name, value in unknown.items())
        warn(f"{folder} asks for {listed[:200]} when texts are written; the beam search of jtasks does without")
    return beam


def written(beam: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation_config.json for config.beam and the ids of config.model; `fields` inverts it."""
    own = {name: beam[name] for name in (*SAME, *FORCED) if beam.get(name) is not None}
    own |= {
        theirs: beam[ours] + 1
        for ours, theirs in (("min_len", "min_length"), ("max_len", "max_length"))
        if ours in beam
    }
    words = {"bad_words_ids": [list(word) for word in beam["bad_words_ids"]]} if beam.get("bad_words_ids") else {}
    marks = {"decoder_start_token_id": model["begin"], "eos_token_id": model["end"], "pad_token_id": model["pad"]}
    return {**own, **words, **marks}


def _one(name: str, value: Any) -> int:
    return _whole(name, value[0] if isinstance(value, list) and len(value) == 1 else value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"{FILE} says {name}={value!r}: expected a whole number")
    return value


def _ids(word: Any) -> tuple[int, ...]:
    if not isinstance(word, list) or not word:
        raise CheckpointError(f"{FILE} says bad_words_ids with {word!r}: expected lists of ids")
    return tuple(_whole("bad_words_ids", number) for number in word)
