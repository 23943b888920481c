"""Claims about the task contrast, retrieval, zero-shot classes, and probes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from front_door import ROOT, run
from PIL import Image

import jtasks
from jtasks import cli
from jtasks import config as configs
from jtasks.data import pipeline
from jtasks.errors import ConfigError, DataError
from jtasks.metrics import probes, retrieval
from jtasks.run import job
from jtasks.tasks import contrast

COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "black": (0, 0, 0)}
TINY = [
    *(f"model.{tower}_{name}" for tower in ("image", "text") for name in ("width=16", "depth=1", "heads=2")),
    *("model.embed_dim=16", "model.patch=4", "model.dropout=0.0", "data.size=8", "data.length=24"),
    *("data.tokenizer=characters", "batch_size=8", "steps=2", "show_count=6", "save_every=0", "log_every=1"),
]


@pytest.fixture(scope="session")
def colors(tmp_path_factory):
    """Pictures of one color with one or two captions, and the same pictures in folders of classes."""
    folder, random = tmp_path_factory.mktemp("colors a[1]"), np.random.default_rng(0)
    for split, count in (("train", 16), ("valid", 5), ("test", 8)):
        (folder / split).mkdir()
        lines = []
        for i in range(count):
            name = list(COLORS)[i % 4]
            noise = random.integers(-9, 9, (8, 8, 3))
            picture = Image.fromarray(np.clip(np.array(COLORS[name]) + noise, 0, 255).astype(np.uint8))
            picture.save(folder / split / f"{i}.png")
            lines += [f"{i}.png\t{name} square {i}", *([f"{i}.png\ta {name} one"] if i % 2 else [])]
            place = folder / "classes" / split / name
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{i}.png")
        (folder / split / "captions.txt").write_text("\n".join(lines))
    return folder


def made(folder, *changes):
    fields = [f"--config.{field}" for field in (*TINY, f"data.dir={folder}", *changes)]
    return job.prepare(configs.load(f"{ROOT}/configs/clip_emoji.py", fields))


def first(own, split="test"):
    examples = own.task.dataset(split, own.config)
    plan = pipeline.BatchPlan(len(examples), 0, len(examples), shuffle=False)
    return pipeline.batch_at(examples, plan, 0, own.collate)


def init(own, batch):
    return jax.jit(lambda batch: contrast.init(jax.random.key(0), batch, own.config))(batch)


def test_training_draws_any_caption_of_a_picture_and_no_other(colors):
    own = made(colors, "data.augment=", "data.color=0.0")
    batch = first(own)
    assert batch["tokens"].shape[1] == 2 and batch["count"].tolist() == [1, 2] * 4
    params = init(own, batch)
    all_texts = jax.jit(lambda b: contrast.predict_fn(params, b, None, own.config))(batch)["texts"]
    embed = jax.jit(lambda b, rng: contrast.embed_fn(params, b, rng, own.config))
    drawn = set()
    for seed in range(12):
        embedded = embed(batch | {"seed": np.arange(8, dtype=np.uint32) + 8 * seed}, jax.random.key(0))["text"]
        near = np.abs(np.asarray(embedded)[:, None] - all_texts).max(-1) < 1e-5
        assert near.any(1).all() and not near[::2, 1].any()
        drawn |= {(row, int(near[row].argmax())) for row in range(8)}
    assert drawn == {(row, k) for row in range(8) for k in range(1 + row % 2)}
    alone = embed(batch, None)
    np.testing.assert_allclose(alone["text"], all_texts[:, 0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(alone["image"], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_is_the_papers_and_leaves_out_what_lacks_a_picture_or_a_text(loss, colors):
    own = made(colors, f"model.loss={loss}")
    random = np.random.default_rng(0)
    pair = random.normal(size=(2, 6, 16)).astype(np.float32)
    image, text = pair / np.linalg.norm(pair, axis=-1, keepdims=True)
    params = {"scale": jnp.log(7.0)} | ({"bias": jnp.float32(-2.0)} if loss == "sigmoid" else {})
    mask, pictured, count = np.ones(6, np.float32), np.ones(6, bool), np.ones(6, np.int32)
    mask[5], pictured[0], count[2] = 0, False, 0
    batch = {"mask": mask, "pictured": pictured, "count": count}
    value, metrics = contrast.batch_loss_fn(params, {"image": image, "text": text}, batch, own.config)
    real = [1, 3, 4]
    logits = 7 * image[real] @ text[real].T
    if loss == "softmax":
        nats = [-jax.nn.log_softmax(logits, axis)[np.arange(3), np.arange(3)] for axis in (0, 1)]
        expected = np.mean(nats)
    else:
        expected = np.sum(np.log1p(np.exp(-(2 * np.eye(3) - 1) * (logits - 2)))) / 3
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert float(metrics["image_to_text"].total) == (logits.argmax(1) == np.arange(3)).sum()
    assert float(metrics["scale"].value) == pytest.approx(7, rel=1e-6)


def test_a_locked_tower_has_no_gradient(colors):
    own = made(colors, "optim.freeze=^image")
    batch = first(own)
    params = init(own, batch)

    def loss(params):
        embeddings = contrast.embed_fn(params, batch, jax.random.key(0), own.config)
        return contrast.batch_loss_fn(params, embeddings, batch, own.config)[0]

    gradient = jax.jit(jax.grad(loss))(params)
    for name, tree in gradient.items():
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
        assert (largest == 0) == name.startswith("image"), name


def test_an_input_is_a_picture_a_text_or_both(colors):
    own = made(colors)
    path, picture = colors / "test" / "1.png", Image.open(colors / "test" / "1.png")
    inputs = [str(path), path, picture, "green square 1", (picture, "green square 1"), f"{path}\tgreen square 1"]
    inputs += [{"image": str(path), "caption": "green square 1"}, {"text": "green square 1", "id": 4}]
    made_of = contrast.examples(inputs, own.config)
    assert made_of["pictured"].tolist() == [True] * 3 + [False] + [True] * 3 + [False]
    assert made_of["count"].tolist() == [0] * 3 + [1] * 5
    theirs = own.task.dataset("test", own.config)[1]
    assert (
        all((made_of["image"][i] == theirs["image"]).all() for i in (0, 1, 2, 4, 5, 6))
        and not made_of["image"][3].any()
    )
    assert all((made_of["tokens"][i, 0] == theirs["tokens"][0]).all() for i in range(3, 8))
    for bad in (3, {"id": 1}, (picture,), (picture, 3), "", {"image": str(path), "text": ""}, "absent.png"):
        with pytest.raises(DataError):
            contrast.examples([bad], own.config)


def test_a_tower_that_reads_its_padding_needs_all_of_it(colors):
    with pytest.raises(ConfigError, match=r"config\.data\.length=24: this text tower reads its padding.*=25 tokens"):
        first(made(colors, "model.text_tower=bidirectional", "model.max_length=25"))


@pytest.fixture(scope="module")
def trained(colors, tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    fields = [f"--config.{field}" for field in (*TINY, f"data.dir={colors}")]
    run("--config=configs/clip_emoji.py", f"--workdir={folder}", *fields)  # on one device
    return folder


def command(capsys, *arguments):
    code = cli.run([str(argument) for argument in arguments])
    output, errors = capsys.readouterr()
    assert code == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def test_a_run_finds_classifies_and_shows(trained, colors, capsys):
    (scores,) = command(capsys, f"--workdir={trained}", "--mode=eval")
    command(capsys, f"--workdir={trained}", "--mode=predict")
    rows = [json.loads(line) for line in (trained / "predictions-test.jsonl").read_text().splitlines()]
    counts = [1, 2] * 4
    captions = np.concatenate([np.array(row["texts"])[:count] for row, count in zip(rows, counts, strict=True)])
    images, owners = np.array([row["image"] for row in rows]), np.repeat(np.arange(8), counts)
    expected = retrieval.scores(*retrieval.matrix_ranks(images @ captions.T, owners))
    assert {name: scores[f"test/{name}"] for name in expected} == pytest.approx(expected)
    assert rows[1]["similarity"] == pytest.approx(max(images[1] @ captions[1], images[1] @ captions[2]), abs=1e-6)
    assert Image.open(next((trained / "show").glob("nearest-test-*.png"))).width > 5 * 64

    model = jtasks.load(trained)
    embedded = model.embed([str(colors / "test" / "1.png"), "green square 1", (str(colors / "test" / "1.png"), "a")])
    np.testing.assert_allclose(embedded["image"][[0, 2]], images[[1, 1]], atol=1e-5)
    np.testing.assert_allclose(embedded["text"][1], captions[1], atol=1e-5)
    assert not embedded["image"][1].any() and not embedded["text"][0].any()

    classes = f"--config.zero_shot.classes={tuple(COLORS)}"
    pictures = f"--input={colors / 'test'}"
    answers = command(capsys, f"--workdir={trained}", "--mode=predict", pictures, classes)
    texts = model.embed([f"a photo of a {name}." for name in COLORS])["text"]
    assert [answer["class"] for answer in answers] == [list(COLORS)[i] for i in (images @ texts.T).argmax(1)]

    data = f"--config.probe.name=folder:{colors / 'classes'}"
    (probed,) = command(capsys, f"--workdir={trained}", "--mode=probe", data, "--config.probe.shots=(1, 0)")
    assert set(probed) == {"step", *(f"{kind}/top{k}" for kind in ("zero_shot", "1_shot", "linear") for k in (1, 5))}
    assert probed["zero_shot/top5"] == probed["linear/top1"] == 1  # four classes; colors are linear in the pixels
    right = [answer["class"] == list(COLORS)[i % 4] for i, answer in enumerate(answers)]
    assert probed["zero_shot/top1"] == pytest.approx(np.mean(right))


def test_a_probe_without_pictures_says_what_to_give(trained, capsys):
    assert cli.run([f"--workdir={trained}", "--mode=probe"]) == 2
    assert "--config.probe.name=mnist|cifar10|digits|folder:PATH" in capsys.readouterr().err


def test_a_class_without_a_score_is_never_found():
    random = np.random.default_rng(0)
    train, labels = random.normal(size=(30, 4)), np.arange(30) % 3
    train[np.arange(30), labels] += 20
    assert probes.linear(train, labels, train, labels) == {"top1": 1, "top5": 1}
    assert probes.linear(train, labels, train, labels + 3) == {"top1": 0, "top5": 0}
    assert probes.zero_shot(np.full((30, 4), np.nan), train[:3], labels) == {"top1": 0, "top5": 0}
    rows = probes.few(labels, 2, seed=1)
    assert np.bincount(labels[rows]).tolist() == [2, 2, 2] and set(rows) != set(probes.few(labels, 2, seed=2))
    with pytest.raises(ConfigError, match=r"expected texts with {}"):
        probes.prompts(["cat"], ["a photo"])


@pytest.mark.parametrize(("names", "named"), [(("a", "a"), "'a' twice"), (("a", " "), "' '"), (("a", 3), "3")])
def test_classes_are_distinct_names(names, named):
    probes.require_classes(("cat", "dog"))
    with pytest.raises(ConfigError, match=rf"config\.zero_shot\.classes has {named}"):
        probes.require_classes(names)


@pytest.mark.slow
def test_the_task_passes_the_conformance_kit(colors, capsys):
    fields = [f"--config.{field}" for field in (*TINY, f"data.dir={colors}")]
    code = cli.run([f"--config={ROOT}/configs/clip_emoji.py", "--mode=check", *fields])
    assert code == 0, capsys.readouterr().err
