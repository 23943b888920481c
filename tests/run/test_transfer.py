"""Claims about what lies beside parameters: rows keep their meaning when config.init_from takes them, and on export."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from jtasks.data import assets, palettes, tokenizers
from jtasks.errors import CheckpointError, ConfigError
from jtasks.interop import beside, image_processors, model_config
from jtasks.ops import pixels
from jtasks.run import job, transfer

NAMES = st.lists(st.text("abcdXYZ-_ ", min_size=3, max_size=6).map(lambda s: f"n{s}"), min_size=2, max_size=8)


def take(there, here):
    """The classifier's rows here of a model whose row i is i + 1, fresh ones 0."""
    taken = {"classifier": {"kernel": jnp.arange(1.0, len(there) + 1)[None], "bias": jnp.arange(1.0, len(there) + 1)}}
    fresh = {"classifier": {"kernel": jnp.zeros((1, len(here))), "bias": jnp.zeros(len(here))}}
    report = {"taken": ["classifier/kernel", "classifier/bias"]}
    params, _ = transfer.reorder_classes(taken, fresh, report, transfer.class_order(there, here))
    np.testing.assert_array_equal(params["classifier"]["kernel"][0], params["classifier"]["bias"])
    return np.asarray(params["classifier"]["bias"]).tolist()


@settings(max_examples=30, deadline=None)
@given(names=NAMES, data=st.data())
def test_each_class_keeps_its_row(names, data):
    names = list({name.strip().casefold(): name for name in names}.values())
    there = data.draw(st.permutations(names))
    assert [there[int(row) - 1] for row in take(there, names)] == names


@pytest.mark.parametrize(
    ("there", "here", "rows"),
    [
        (["pos", "neutral", "neg"], ["neg", "neutral", "pos"], [3, 2, 1]),
        (["NEGATIVE", "POSITIVE"], ["positive", "negative"], [2, 1]),
        (["O", "B-MISC", "I-MISC", "B-PER", "I-PER"], ["O", "B-PER", "I-PER", "B-MISC", "I-MISC"], [1, 4, 5, 2, 3]),
        (["A", "a"], ["a", "A"], [2, 1]),  # case tells them apart
        (["LABEL_0", "LABEL_1"], ["neg", "pos"], [1, 2]),
        (["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"], [2, 1]),
        (["NEGATIVE", "POSITIVE"], ["0", "1"], [1, 2]),  # numbers are no names
        (["1", "0"], ["0", "1"], [2, 1]),
    ],
)
def test_rows_are_put_in_order_by_name_and_without_names_stay(there, here, rows, capsys):
    assert take(there, here) == rows
    assert not capsys.readouterr().err


def test_rows_of_other_classes_start_afresh_and_are_told(capsys):
    assert take(["cat", "dog", "bird"], ["dog", "fish", "cat"]) == [2, 0, 1]
    assert "1 of 3 classes are not among the classes there" in capsys.readouterr().err
    assert take(["cat", "dog"], ["up", "down"]) == [0, 0]
    assert "2 of 2 classes" in capsys.readouterr().err


def test_class_names_of_a_folder(tmp_path):
    def names(**config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return model_config.class_names(tmp_path)

    assert names(id2label={"1": "b", "0": "a"}) == ["a", "b"] and names() is None
    for odd in (["a", "b"], {"0": "a", "2": "b"}, 3):
        with pytest.raises(CheckpointError, match="expected a name for each of 0, 1"):
            names(id2label=odd)


# Tokenizers


def vocabulary(folder, *pieces):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces]) + "\n")
    return folder, tokenizers.assets(tokenizers.load(str(folder)))


@pytest.mark.parametrize("source", ["run", "hf:folder"])
def test_a_model_of_another_tokenizer_is_refused_and_of_the_same_taken_in_silence(source, tmp_path, capsys):
    config = tiny.config("vit")
    (there, files), (_, other) = vocabulary(tmp_path / "a", "sun", "moon"), vocabulary(tmp_path / "b", "cat", "moon")
    (_, longer), (_, shorter) = vocabulary(tmp_path / "c", "sun", "moon", "new"), vocabulary(tmp_path / "d", "sun")
    if source == "run":  # a run's tokenizer.json
        there = tmp_path / "run"
        there.mkdir()
        (there / "tokenizer.json").write_text(files["tokenizer.json"])
    transfer.compare_tokens(source, there, files, config)
    transfer.compare_tokens(source, there, shorter, config)
    transfer.compare_tokens(source, tmp_path, other, config)  # nothing to compare with
    transfer.compare_tokens(source, there, {}, config)
    assert not capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"1 of 6 ids stand for other tokens there, 4 for 'sun' and here for 'cat'"):
        transfer.compare_tokens(source, there, other, config)
    transfer.compare_tokens(source, there, longer, config)
    assert "1 tokens, such as 'new', are not in the tokenizer" in capsys.readouterr().err


# Pictures


def test_pixels_go_in_as_the_folders_processor_makes_them(tmp_path):
    processor = {"image_mean": [0.485, 0.456, 0.406], "image_std": 0.25, "rescale_factor": 1 / 255}
    found = image_processors.normalization(processor, "vit", 3, tmp_path)
    config = types.SimpleNamespace(model=found)
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    expected = (images * (1 / 255) - np.array(processor["image_mean"])) / 0.25
    np.testing.assert_allclose(pixels.normalize(jnp.asarray(images), config), expected, atol=1e-6)
    written = json.loads(
        assets.image_processor(found["mean"], found["std"], found["rescale"])["preprocessor_config.json"]
    )
    assert image_processors.normalization(written, "vit", 3, tmp_path) == found


@pytest.mark.parametrize(
    ("processor", "mean", "std", "rescale"),
    [
        ({}, 0.5, 0.5, 1 / 255),
        ({"image_mean": None, "do_rescale": True}, 0.5, 0.5, 1 / 255),
        ({"do_normalize": False, "image_mean": [9, 9, 9]}, 0.0, 1.0, 1 / 255),
        ({"do_rescale": False, "image_mean": 127, "image_std": 63}, 127.0, 63.0, 1.0),
    ],
)
def test_processors_have_the_defaults_of_transformers(processor, mean, std, rescale, tmp_path):
    found = image_processors.normalization(processor, "vit", 3, tmp_path)
    assert found == {"mean": (mean,) * 3, "std": (std,) * 3, "rescale": rescale}


@pytest.mark.parametrize(
    "odd",
    [{"image_mean": [0.5]}, {"image_std": 0}, {"image_mean": "half"}, {"rescale_factor": [1, 2]}, {"image_std": {}}],
)
def test_an_odd_processor_is_told(odd, tmp_path):
    with pytest.raises(CheckpointError, match=f"{next(iter(odd))} is .*expected"):
        image_processors.normalization(odd, "vit", 3, tmp_path)


def test_a_run_that_saw_other_pixels_or_colors_is_refused(tmp_path):
    half, other = (0.5,) * 3, (0.4, 0.5, 0.6)
    for name, text in assets.image_processor(other, half, 1 / 255).items():
        (tmp_path / name).write_text(text)
    transfer.compare_pictures("run", tmp_path, {"mean": other, "std": half})
    with pytest.raises(ConfigError, match=r"config\.model\.mean=.*, but config\.init_from=run"):
        transfer.compare_pictures("run", tmp_path, {"mean": half, "std": half})
    palette = ((0.0, 1.0, 2.0), (9.0, 8.0, 7.0))
    for name, text in assets.palette_files({"palette": palette, "shape": (8, 8)}).items():
        (tmp_path / name).write_text(text)
    transfer.compare_pictures("run", tmp_path, {"palette": palette})
    with pytest.raises(ConfigError, match=r"set --config\.data\.palette="):
        transfer.compare_pictures("run", tmp_path, {"palette": palette[::-1]})


@pytest.mark.parametrize("name", ["vit", "igpt", "classifier", "mnist"])
def test_tasks_of_pictures_say_what_lies_beside_their_parameters(name):
    found = job.prepare(tiny.config(name))
    files = {key: json.loads(text) for key, text in found.task.assets(found.config).items()}
    if name != "igpt":
        assert files["labels.json"] == [str(digit) for digit in range(10)]
    if "igpt" in name:
        assert files["palette.json"] == [list(color) for color in found.config.model.palette]
    if name == "vit":
        assert files["preprocessor_config.json"]["rescale_factor"] == 1 / 16


# Out


def test_an_export_names_its_classes_and_special_tokens(tmp_path):
    _, files = vocabulary(tmp_path / "a", "sun")
    written = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "id2label": {},
        "vocab_size": 9,
    }
    whole = beside.config(written, {}, files | assets.labels(["yes", "no"]), {})
    assert whole["id2label"] == {"0": "yes", "1": "no"} and whole["label2id"] == {"yes": 0, "no": 1}
    assert whole["pad_token_id"] == 0 and whole["bos_token_id"] is None
    more = beside.more(whole | {"max_position_embeddings": 16}, {}, files)
    assert list(more) == ["tokenizer_config.json", "special_tokens_map.json"]
    assert more["special_tokens_map.json"].items() <= more["tokenizer_config.json"].items()
    assert more["special_tokens_map.json"]["pad_token"] == "[PAD]"
    tokenizer = more["tokenizer_config.json"]
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and tokenizer["model_max_length"] == 16
    assert tokenizer["cls_token"] == "[CLS]" and "mask_token" not in tokenizer


def test_what_a_folder_says_beside_its_weights_survives():
    first = {"vocab_size": 9, "eos_token_id": 7, "bos_token_id": 5, "summary_type": "mean", "torch_dtype": "bfloat16"}
    written = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 257, "eos_token_id": None}
    whole = beside.config(written, first, {}, {})
    assert whole["summary_type"] == "mean" and whole["vocab_size"] == 257 and whole["dtype"] == "float32"
    assert (whole["eos_token_id"], whole["bos_token_id"]) == (7, 5) and "torch_dtype" not in whole
    more = beside.more(whole, {"max_length": 40, "eos_token_id": 3}, {})
    assert more["generation_config.json"] == {"max_length": 40, "eos_token_id": 7, "bos_token_id": 5}
    greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    drawn = greedy | {"temperature": 0.7, "top_k": 5}
    limits = {"max_length": None, "eos_token_id": 7, "bos_token_id": 5, "pad_token_id": 7}
    for sampling, said in ((greedy, {"do_sample": False}), (drawn, {"do_sample": True} | drawn)):
        more = beside.more(whole | {"n_positions": 32}, {"max_length": 40}, {}, sampling)
        assert more["generation_config.json"] == limits | said | {"max_length": 32}
    files = tokenizers.assets(tokenizers.load("bytes"))
    other = beside.config(written, first, files, {"cat": 0})  # ids of another tokenizer than the folder's
    assert (other["eos_token_id"], other["bos_token_id"], other["pad_token_id"]) == (256, 256, None)
    inputs = beside.more(other, {}, files)["tokenizer_config.json"]["model_input_names"]
    assert "token_type_ids" not in inputs  # GPT-2 would add an embedding of them


def test_a_palette_of_a_run_can_be_named(tmp_path):
    (tmp_path / "palette.json").write_text("[[0.0], [16.0]]")
    assert palettes.load(tmp_path / "palette.json", 1) == ((0.0,), (16.0,))
