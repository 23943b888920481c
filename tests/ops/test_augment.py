"""Claims about jtasks.ops.augment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtasks.config import Config
from jtasks.ops import augment, pixels

N, H, W, PAD = 64, 5, 6, 2

IMAGES = np.random.default_rng(0).integers(0, 256, (N, H, W, 3)).astype(np.uint8)
SEEDS = jnp.asarray(np.random.default_rng(1).integers(0, 2**32, N, dtype=np.uint32))

crop_and_flip = jax.jit(augment.crop_and_flip, static_argnames=("pad", "mirror"))


def window(image, cropped):
    """Where `cropped` lies in the reflected `image`, or None."""
    padded = np.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect")
    places = np.ndindex(2 * PAD + 1, 2 * PAD + 1)
    return next(
        ((top, left) for top, left in places if np.array_equal(padded[top : top + H, left : left + W], cropped)), None
    )


def test_a_crop_is_a_window_of_the_reflected_image_and_all_windows_occur():
    images = np.repeat(IMAGES[:1], 1000, 0)
    keys = augment.keys(jnp.arange(1000, dtype=jnp.uint32))
    cropped = np.asarray(jax.jit(augment.crop, static_argnums=2)(images, keys, PAD))
    assert cropped.shape == images.shape and cropped.dtype == np.uint8
    places = [window(images[0], image) for image in cropped[:300]]
    assert None not in places
    assert len(set(places)) == (2 * PAD + 1) ** 2


def test_half_of_the_images_are_mirrored_left_to_right_and_nothing_else():
    images = np.repeat(IMAGES[:1], 2000, 0)
    flipped = np.asarray(augment.flip(images, augment.keys(jnp.arange(2000, dtype=jnp.uint32))))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 0.45 < mirrored.mean() < 0.55


@pytest.mark.parametrize(("pad", "mirror"), [(PAD, True), (PAD, False), (0, True)])
def test_an_example_is_augmented_alike_in_any_batch(pad, mirror):
    whole = crop_and_flip(IMAGES, SEEDS, pad=pad, mirror=mirror)
    order = np.random.default_rng(2).permutation(N)
    np.testing.assert_array_equal(crop_and_flip(IMAGES[order], SEEDS[order], pad=pad, mirror=mirror), whole[order])
    np.testing.assert_array_equal(crop_and_flip(IMAGES[:3], SEEDS[:3], pad=pad, mirror=mirror), whole[:3])
    assert not np.array_equal(whole, IMAGES)


def test_another_seed_is_another_augmentation():
    other = crop_and_flip(IMAGES, SEEDS + 1, pad=PAD, mirror=True)
    assert (np.asarray(other != crop_and_flip(IMAGES, SEEDS, pad=PAD, mirror=True)).any((1, 2, 3))).mean() > 0.8


def test_without_crop_and_flip_images_stay_as_they_are():
    np.testing.assert_array_equal(crop_and_flip(IMAGES, SEEDS, pad=0, mirror=False), IMAGES)


def test_crop_and_flip_do_not_go_together():
    both = np.asarray(crop_and_flip(np.repeat(IMAGES[:1], N, 0), SEEDS, pad=PAD, mirror=True))
    unflipped = [window(IMAGES[0], image) for image in both]
    places = [p or window(IMAGES[0], image[:, ::-1]) for p, image in zip(unflipped, both, strict=True)]
    assert None not in places
    left = np.array([p[1] for p in places])
    kept = np.array([p is not None for p in unflipped])
    assert 0 < kept[left < PAD].mean() < 1 and 0 < kept[left > PAD].mean() < 1


def parts(n, area, ratio=(3 / 4, 4 / 3), h=H, w=W):
    """Where each resized crop lies: top, left, height and width, read off images of their own coordinates."""
    rows, columns = np.meshgrid(np.arange(h) + 0.5, np.arange(w) + 0.5, indexing="ij")
    images = np.broadcast_to(np.stack([rows, columns], axis=-1)[None], (n, h, w, 2)).astype(np.float32)
    keys = augment.keys(jnp.arange(n, dtype=jnp.uint32))
    cropped = np.asarray(jax.jit(lambda x, k: augment.resized_crop(x, k, area, ratio))(images, keys))
    assert cropped.shape == images.shape
    middle = cropped[:, 1:-1, 1:-1]  # near the border the nearest pixel stands for what is outside
    height, width = np.diff(middle[:, :, 0, 0]).mean(1) * h, np.diff(middle[:, 0, :, 1]).mean(1) * w
    top, left = cropped[:, h // 2, 0, 0], cropped[:, 0, w // 2, 1]
    return top - (h // 2 + 0.5) / h * height, left - (w // 2 + 0.5) / w * width, height, width


def test_a_resized_crop_is_a_part_of_the_image_of_the_asked_size_and_shape():
    h, w = 20, 24
    top, left, height, width = parts(400, (0.3, 0.6), h=h, w=w)
    share, ratio = height * width / (h * w), width / height
    whole = (height < h - 1e-3) & (width < w - 1e-3)  # not cut off at the border
    assert whole.mean() > 0.8
    assert (share[whole] > 0.299).all() and (share[whole] < 0.601).all() and (share < 0.601).all()
    assert (ratio[whole] > 3 / 4 - 0.01).all() and (ratio[whole] < 4 / 3 + 0.01).all()
    np.testing.assert_allclose(share[whole].mean(), 0.45, atol=0.02)
    np.testing.assert_allclose(np.log(ratio[whole]).mean(), 0, atol=0.03)
    assert (top > -1e-3).all() and (left > -1e-3).all()
    assert (top + height < h + 1e-3).all() and (left + width < w + 1e-3).all()
    np.testing.assert_allclose((top / np.maximum(h - height, 1e-3))[whole].mean(), 0.5, atol=0.06)


def test_all_of_an_image_is_the_image():
    images = IMAGES[:4, :, :H]  # square, so that nothing is cut off
    found = augment.resized_crop(images, augment.keys(SEEDS[:4]), (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_allclose(found, images, atol=1e-2)


def test_a_resized_crop_depends_on_the_examples_own_seed_alone():
    run = jax.jit(lambda images, seeds: augment.resized_crop_and_flip(images, seeds, area=0.2, mirror=True))
    all_, last = run(IMAGES, SEEDS), run(IMAGES[32:], SEEDS[32:])
    np.testing.assert_allclose(all_[32:], last, atol=1e-3)
    same = run(np.repeat(IMAGES[:1], N, 0), SEEDS)
    assert len(np.unique(np.asarray(same).reshape(N, -1), axis=0)) == N


def test_colors_change_within_the_levels_and_alike_in_any_batch():
    color = jax.jit(augment.color, static_argnames=("strength", "white"))
    whole = np.asarray(color(IMAGES, SEEDS, strength=0.5, white=255.0))
    np.testing.assert_allclose(color(IMAGES[::-1], SEEDS[::-1], strength=0.5, white=255.0), whole[::-1], atol=1e-3)
    assert whole.min() >= 0 and whole.max() <= 255 and np.abs(whole - IMAGES).mean((1, 2, 3)).min() > 0.5
    gray = IMAGES[..., :1]
    np.testing.assert_allclose(color(gray, SEEDS, strength=0.0, white=255.0), gray, atol=1e-3)


def test_a_hue_turns_by_at_most_its_part_of_the_circle_and_keeps_luma_and_grays():
    luma = np.array([0.299, 0.587, 0.114])
    pale = np.clip(IMAGES, 100, 140)  # no level is cut
    turned = np.asarray(jax.jit(augment.hue, static_argnames=("turn", "white"))(pale, SEEDS, turn=0.1, white=255.0))
    np.testing.assert_allclose(turned @ luma, pale @ luma, atol=0.1)
    chroma = np.array([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    before, after = (np.einsum("nhwc,dc->nhwd", x, chroma) @ [1, 1j] for x in (pale, turned))
    angles = np.angle((after * before.conj()).sum((1, 2))) / (2 * np.pi)  # of each image, one of all of its pixels
    np.testing.assert_allclose(after, before * np.exp(2j * np.pi * angles)[:, None, None], atol=0.1)
    assert np.abs(angles).max() <= 0.1 and angles.min() < -0.05 and angles.max() > 0.05
    reverse = augment.hue(pale[::-1], SEEDS[::-1], turn=0.1, white=255.0)
    np.testing.assert_allclose(reverse, turned[::-1], atol=1e-3)
    grays = np.repeat(IMAGES[..., :1], 3, -1)
    np.testing.assert_allclose(augment.hue(grays, SEEDS, turn=0.5, white=255.0), grays, atol=0.1)
    np.testing.assert_array_equal(augment.hue(IMAGES[..., :1], SEEDS, turn=0.5, white=255.0), IMAGES[..., :1])


def test_the_fields_of_hue_and_grayscale_reach_the_pictures_of_training():
    batch, options = {"image": jnp.asarray(IMAGES), "seed": SEEDS}, {"augment": "", "color": 0.0, "white": 255.0}
    turned = pixels.for_training(batch, Config(options | {"hue": 0.2}))
    np.testing.assert_allclose(turned, augment.hue(IMAGES, SEEDS, turn=0.2, white=255.0), atol=1e-3)
    gray = pixels.for_training(batch, Config(options | {"hue": 0.2, "grayscale": 0.5}))
    np.testing.assert_allclose(gray, augment.grayscale(turned, SEEDS, fraction=0.5), atol=1e-3)


def test_a_fraction_of_the_images_becomes_gray_and_the_others_stay():
    gray = np.asarray(jax.jit(augment.grayscale, static_argnames="fraction")(IMAGES, SEEDS, fraction=0.3))
    is_gray = np.ptp(gray, axis=-1).max((1, 2)) < 1e-3
    assert 0.1 < is_gray.mean() < 0.5
    np.testing.assert_array_equal(gray[~is_gray], IMAGES[~is_gray].astype(np.float32))
    luma = IMAGES @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(gray[is_gray][..., 0], luma[is_gray], atol=1e-3)
    np.testing.assert_array_equal(augment.grayscale(IMAGES[..., :1], SEEDS, fraction=1.0), IMAGES[..., :1])


def test_an_area_above_one_scales_the_image_down_onto_the_color_of_its_border():
    images = np.full((N, 24, 24, 3), 200.0, np.float32)
    images[:, 6:18, 6:18] = 20.0
    shrink = jax.jit(lambda x, seeds: augment.resized_crop(x, augment.keys(seeds), (4.0, 4.0), (1.0, 1.0)))
    smaller = np.asarray(shrink(images, SEEDS))
    dark = (200 - smaller[..., 0]).sum((1, 2)) / 180
    np.testing.assert_allclose(dark, 36, rtol=0.02)  # pixels: a quarter of the 144 of the square, wherever it is
    np.testing.assert_allclose(smaller[:, [0, -1]], 200, atol=0.5)
    assert len({tuple(np.argwhere(image < 110)[0]) for image in smaller[..., 0]}) > 1
