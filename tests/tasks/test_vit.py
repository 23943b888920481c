"""Claims about the task vit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from sklearn.metrics import f1_score

from jtasks import config as configs
from jtasks import models
from jtasks.errors import ConfigError
from jtasks.ops import augment, mixing
from jtasks.run import job
from jtasks.tasks import vit

RNG = jax.random.key(0)

loss = jax.jit(jax.value_and_grad(vit.loss_fn, has_aux=True), static_argnames="config")
evaluate = jax.jit(vit.eval_fn, static_argnames="config")


@functools.cache
def params():
    return tiny.params("vit")


def logits(images):
    model = models.ViT(classes=10, width=16, depth=2, heads=2, patch=4, pool="token")
    return jax.jit(model.apply)({"params": params()}, images)


def test_the_metrics_are_those_of_the_logits_and_padding_counts_nothing():
    batch = tiny.batch(32)
    expected = np.asarray(logits(batch["image"] / 8 - 1))  # 16 is white in these images
    order = np.argsort(-expected, axis=1)
    nats = -jax.nn.log_softmax(expected)[np.arange(32), batch["label"]]
    batch["mask"][20:] = 0
    found = evaluate(params(), batch, config=tiny.config("vit"))
    assert float(found["loss"].count) == 20
    np.testing.assert_allclose(found["loss"].total, nats[:20].sum(), rtol=1e-5)
    assert float(found["accuracy"].total) == (order[:20, 0] == batch["label"][:20]).sum()
    top5 = (order[:20, :5] == batch["label"][:20, None]).any(1).sum()
    assert float(found["top5"].total) == top5 and 0 < top5 < 20
    (value, metrics), gradient = loss(params(), batch, RNG, config=tiny.config("vit"))
    np.testing.assert_allclose(value, found["loss"].value, rtol=1e-5)  # neither augmentation nor dropout
    assert set(metrics) == set(found)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kind", ["igpt", "imagenet"])
def test_training_sees_augmented_images_and_evaluation_does_not(kind):
    batch, config = tiny.batch(16), tiny.config("vit", data__augment=kind)
    if kind == "igpt":
        images = augment.crop_and_flip(jnp.asarray(batch["image"]), jnp.asarray(batch["seed"]), pad=1, mirror=True)
    else:
        images = augment.resized_crop_and_flip(
            jnp.asarray(batch["image"]), jnp.asarray(batch["seed"]), area=0.2, mirror=True
        )
    plain = tiny.config("vit")
    (value, _), _ = loss(params(), batch, RNG, config=config)
    (expected, _), _ = loss(params(), batch | {"image": images}, RNG, config=plain)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert abs(float(value) - float(evaluate(params(), batch, config=plain)["loss"].value)) > 3e-5


def test_a_predicted_class_is_the_likeliest():
    batch = tiny.batch(16)
    outputs = jax.jit(vit.predict_fn, static_argnames="config")(params(), batch, RNG, config=tiny.config("vit"))
    probabilities = jax.nn.softmax(logits(batch["image"] / 8 - 1))
    np.testing.assert_array_equal(outputs["label"], probabilities.argmax(-1))
    np.testing.assert_allclose(outputs["probability"], probabilities.max(-1), rtol=1e-5)


def test_what_is_shown_names_the_classes():
    examples = [{"image": tiny.digits(2)["image"][i], "label": tiny.digits(2)["label"][i]} for i in range(2)]
    outputs = [{"label": np.int32(3), "probability": np.float32(0.25)}] * 2
    shown = vit.show_fn(examples, outputs, tiny.config("vit"))
    assert shown["labels"].splitlines()[0] == f"3 (0.250), truly {examples[0]['label']}"
    assert shown["images"].dtype == np.uint8


def test_the_token_and_the_mean_are_two_models():
    images = jnp.asarray(tiny.batch(2)["image"] / 8 - 1, jnp.float32)
    fields = {"classes": 10, "width": 16, "depth": 2, "heads": 2, "patch": 4}
    shapes = {
        pool: jax.eval_shape(models.ViT(**fields, pool=pool).init, RNG, images)["params"] for pool in ("token", "mean")
    }
    assert set(shapes["token"]) - set(shapes["mean"]) == {"token"}
    assert (shapes["token"]["position"].shape, shapes["mean"]["position"].shape) == ((5, 16), (4, 16))
    # Only the first position is classified: a change of the norm's output elsewhere cannot show, so the mean differs.
    same = {name: leaf for name, leaf in params().items() if name != "token"}
    same["position"] = same["position"][1:]
    assert not np.allclose(models.ViT(**fields).apply({"params": same}, images), logits(images), atol=1e-3)
    with pytest.raises(ValueError, match="pool must be mean, token or map, not 'max'"):
        models.ViT(**fields, pool="max").init(RNG, images)


def test_sizes_come_from_the_data_and_a_wrong_augmentation_is_told():
    found = job.prepare(tiny.config("vit", model__classes=None, model__shape=None, data__size=6)).config.model
    assert (found.classes, found.shape) == (10, (6, 6))
    with pytest.raises(ConfigError, match=r"config\.data\.augment='imagnet': expected igpt, imagenet, or nothing"):
        vit.loss_fn(params(), tiny.batch(2), RNG, tiny.config("vit", data__augment="imagnet"))


def test_the_presets_are_the_published_sizes_or_a_folders(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    model = models.build(models.ViT, configs.load("configs/vit_cifar.py:base"), classes=1000)
    shapes = jax.eval_shape(model.init, RNG, jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 86_567_656  # ViT-B/16 for ImageNet
    message = r"not set: config\.model\.width, config\.model\.depth, config\.model\.heads; give them, or"
    with pytest.raises(ConfigError, match=message):
        job.prepare(configs.load("configs/vit_cifar.py:hf", ["--config.data.name=digits", "--config.init_from="]))


def test_what_the_data_and_a_folder_fill_in_is_a_config_again():
    filled = job.prepare(tiny.config("vit")).config.to_dict()
    filled["model"] |= {"resize": (2, 8, 8, 0, 0)}
    assert configs.freeze(filled).model.resize == (2, 8, 8, 0, 0)
    assert {"mean", "std", "rescale"} <= set(filled["model"])


def test_several_classes_of_a_picture_have_the_f1_of_each_and_are_mixed_as_they_are():
    config = tiny.config("vit", problem="multi_label", data__labels=tuple("abcdefghij"))
    batch = tiny.batch(32)
    hot = np.eye(10, dtype=np.uint8)[batch["label"]] | np.eye(10, dtype=np.uint8)[(batch["label"] + 1) % 10]
    batch["label"], batch["mask"] = hot, np.r_[np.ones(20), np.zeros(12)].astype(np.float32)
    found = evaluate(params(), batch, config=config)
    predicted, true = np.asarray(logits(batch["image"] / 8 - 1) > 0)[:20], hot[:20].astype(bool)
    expected = f1_score(true, predicted, average=None, zero_division=0.0)
    np.testing.assert_allclose([found[f"f1/{name}"].value for name in "abcdefghij"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["f1"].value, f1_score(true, predicted, average="micro"), rtol=1e-6)
    outputs = jax.jit(vit.predict_fn, static_argnames="config")(params(), batch, RNG, config=config)
    rows = [{"probabilities": row} for row in np.asarray(outputs["probabilities"])]
    assert vit.answers(batch, rows, config)[0] == {
        "classes": [n for n, on in zip("abcdefghij", predicted[0], strict=True) if on]
    }
    examples = [{"image": batch["image"][i], "label": hot[i]} for i in range(2)]
    assert (
        vit.show_fn(examples, rows[:2], config)["labels"].splitlines()[1].split(", truly ")[1]
        in "a, b, c, d, e, f, g, h, i, j, a"
    )
    first, second = hot[:16], hot[16:]
    mixed = mixing.training_pairs(
        {"image": batch["image"][:16], "label": first, "seed": batch["seed"][:16]}
        | {"partner_image": batch["image"][16:], "partner_label": second},
        tiny.config("vit", data__mixup=1.0).data,
        10,
        lambda b: b["image"],
    )[1]
    share = (np.asarray(mixed) - second)[first != second] / (first.astype(float) - second)[first != second]
    assert share.min() >= 0 and share.max() <= 1
