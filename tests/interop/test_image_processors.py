"""Claims about image processors: pixels are those of transformers with Pillow, from preprocessor_config.json alone."""

import json
import pathlib

import numpy as np
import pytest

from jtasks.config import Config
from jtasks.data import pictures
from jtasks.data.examples import fit
from jtasks.errors import CheckpointError
from jtasks.interop import image_processors
from jtasks.ops import pixels

FOLDER = pathlib.Path(__file__).resolve().parent / "image_processors"
PICTURES = [path.name for path in sorted(FOLDER.glob("*.png"))]  # odd sizes, gray, RGBA, smaller than the crop
IO = np.load(FOLDER / "io.npz")


def ours(processor, name):
    """Normalized pixels [h, w, 3] of a picture by the task's own functions."""
    path, fields = FOLDER / f"{processor}.json", json.loads((FOLDER / f"{processor}.json").read_text())
    resize = image_processors.read(fields, "", path)
    model = image_processors.normalization(fields, "", 3, path)
    image = fit(pictures.decode(str(FOLDER / name)), resize)
    return np.asarray(pixels.normalize(image[None], Config({"model": model, "data": {"white": 255.0}})))[0], model


@pytest.mark.parametrize("processor", [path.stem for path in sorted(FOLDER.glob("*.json"))])
def test_pixels_are_those_of_transformers_with_pillow(processor):
    for name in PICTURES:
        made, _ = ours(processor, name)
        theirs = IO[f"{processor}/pil/{name.removesuffix('.png')}"].transpose(1, 2, 0)
        np.testing.assert_allclose(made, theirs, rtol=1e-6, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("processor", ["clip", "siglip", "blip"])
def test_torchvision_rounds_pixels_otherwise_by_a_few_of_255_levels(processor):
    for name in PICTURES:
        made, model = ours(processor, name)
        theirs = IO[f"{processor}/torchvision/{name.removesuffix('.png')}"].transpose(1, 2, 0)
        levels = np.abs(made - theirs) * np.array(model["std"]) * 255
        assert levels.max() < 3.1 and levels.mean() < 0.4, name


@pytest.mark.parametrize(
    ("family", "fields", "resize", "mean"),
    [
        ("clip", {}, (3, 24, 0, 24, 24), 0.4815),
        ("clip", {"size": 30, "crop_size": 26}, (3, 30, 0, 26, 26), 0.4815),
        ("clip", {"image_mean": None, "size": {"height": 20, "width": 10}}, (3, 20, 10, 24, 24), 0.4815),
        ("siglip", {}, (3, 24, 24, 0, 0), 0.5),
        ("siglip", {"resample": 2, "do_normalize": False}, (2, 24, 24, 0, 0), 0.0),
        ("siglip", {"image_processor_type": "BlipImageProcessor", "do_pad": True, "size": 9}, (3, 9, 9, 0, 0), 0.4815),
        ("vit", {}, (2, 24, 24, 0, 0), 0.5),
    ],
)
def test_absent_fields_have_the_values_of_the_models_own_processor(tmp_path, family, fields, resize, mean):
    for name, content in (("preprocessor_config.json", fields), ("processor_config.json", {"image_processor": fields})):
        (tmp_path / name).write_text(json.dumps(content))
        model = image_processors.model_fields(tmp_path, family, (24, 24), 3)
        assert model["resize"] == resize and round(model["mean"][0], 4) == mean
        (tmp_path / name).unlink()


def test_a_folder_without_an_image_processor_has_that_of_its_family(tmp_path):
    model = image_processors.model_fields(tmp_path, "blip", (24, 24), 3)
    assert model["resize"] == (3, 24, 24, 0, 0) and round(model["std"][2], 4) == 0.2758
    assert image_processors.model_fields(tmp_path, "vit", (24, 24), 3) == {}


def test_a_damaged_image_processor_is_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        image_processors.model_fields(tmp_path, "clip", (24, 24), 3)
