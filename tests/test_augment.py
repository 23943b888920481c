"""Claims about jtasks.augment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtasks import augment

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
