"""tools/predict.py: its tables and pictures against the model's own outputs; what it refuses."""

import dataclasses
import functools
import re

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image

import adaperceiver_jax as ap
from adaperceiver_jax.data.scenes import CLASSES
from adaperceiver_jax.data.transforms import resize
from adaperceiver_jax.tasks.make import make_model
from tests.convert.test_names import MODELS
from tests.models.test_dense import bilinear
from tests.small_models import random_params, run
from tests.train import small
from tools import pictures
from tools import predict as tool

ROW = re.compile(r"^(\S+) +(\d+|-) +(\d+|-) +(\d+|-)  +(.*)$", re.MULTILINE)


def rows(text):
    """[(image, (tokens, width, depth), rest)] of a table."""
    found = [(m[1], (m[2], m[3], m[4]), m[5]) for m in ROW.finditer(text)]
    assert found
    return found


def percents(text):
    """'60.1% class 2, 39.9% class 0' -> {'class 2': 60.1, 'class 0': 39.9}, in that order."""
    return {name: float(x) for x, name in re.findall(r"([\d.]+)% ([^,]+)", text)}


@functools.cache
def weights(name, seed=0):
    return random_params(MODELS[name], seed)


def output(name, pixels, seed=0, **sub_network):
    """What MODELS[name] makes of normalised pixels (H, W, 3)."""
    return run(MODELS[name], weights(name, seed), pixels[None], **sub_network)


def whole(image, height=16, width=16):
    """All of the image as the model is shown it, normalised as is usual."""
    resized = np.asarray(resize(image, (height, width)), np.float32)
    usual = ap.Preprocessing()
    return ((resized / 255 - np.array(usual.mean)) / np.array(usual.std)).astype(np.float32)


def assert_same_classes(text, probabilities):
    """The first five by probability, in order, each to the digits that are printed."""
    got, best = percents(text), np.argsort(-probabilities)[:5]
    assert list(got) == [f"class {k}" for k in best]
    np.testing.assert_allclose(list(got.values()), 100 * probabilities[best], atol=0.06)


def test_a_row_an_image_and_budget(sources, images, said):
    budgets = ("--num-tokens", 4, 32, "--width", 8, "--depth", 1)
    text = said(tool, *images, "--checkpoint", sources / "classification", *budgets)
    table = rows(text)
    wanted = [(path, tokens) for path in images for tokens in (4, 32)]  # trained; more than that
    for (path, tokens), (name, sizes, rest) in zip(wanted, table, strict=True):
        assert (name, sizes) == (str(path), (str(tokens), "8", "1"))
        pixels = ap.Preprocessing(image_size=16)(Image.open(path))
        out = output("classification", pixels, num_tokens=tokens, width=8, depth=1)
        assert_same_classes(rest, jax.nn.softmax(out.logits[0]))
    assert len({rest for *_, rest in table}) == len(table)


def test_a_vit_and_the_size_of_its_images(sources, images, said):
    text = said(tool, images[0], "--checkpoint", sources / "vit", "--image-size", 32)
    ((_, sizes, rest),) = rows(text)
    assert sizes == ("-", "-", "-")
    pixels = ap.Preprocessing(image_size=32)(Image.open(images[0]))
    assert_same_classes(rest, jax.nn.softmax(output("vit", pixels).logits[0]))


@pytest.mark.slow
def test_tau_says_where_each_image_left(sources, images, said):
    model, params, tau = MODELS["classification"], weights("classification"), 0.42
    options = ("--checkpoint", sources / "classification", "--num-tokens", 4, "--tau", tau)
    depths = []
    for path, (_, sizes, rest) in zip(images, rows(said(tool, *images, *options)), strict=True):
        pixels = ap.Preprocessing(image_size=16)(Image.open(path))[None]
        out = ap.early_exit(model, params, pixels, tau, num_tokens=4)
        assert sizes == ("4", "24", str(out.depth[0]))
        assert_same_classes(rest, jax.nn.softmax(out.logits[0]))
        depths.append(sizes[2])
    assert len({*depths}) > 1


def panel(picture, k, height=24, width=48):
    """The pixels of panel k of a picture of an image 48 wide, one for each of the image's."""
    cell = round(pictures.DPI * pictures.PANEL) // width
    step, gap = pictures.PANEL + pictures.GAP, pictures.GAP
    left, top = (round(pictures.DPI * x) for x in (gap + k * step, pictures.TITLE))
    part = np.asarray(picture.convert("RGB"))[top:, left:][: cell * height, : cell * width]
    return part[cell // 2 :: cell, cell // 2 :: cell]


@pytest.mark.slow
def test_class_maps_are_drawn_at_the_images_own_size(images, tmp_path, said):
    model, seed = MODELS["segmentation"], 11  # these weights see three classes
    ap.save_pretrained(model, random_params(model, seed), tmp_path / "model")
    out, options = tmp_path / "new" / "out", ("--num-tokens", 2, 16, "--depth", 1)
    text = said(tool, images[0], "--checkpoint", tmp_path / "model", "--out", out, *options)
    picture, image = Image.open(out / "a_segment.png"), Image.open(images[0])
    np.testing.assert_array_equal(panel(picture, 0), np.asarray(image))
    grey = np.asarray(image, np.float64).mean(-1, keepdims=True)
    table = rows(text)
    assert [sizes for _, sizes, _ in table] == [("2", "24", "1"), ("16", "24", "1")]
    for k, (sizes, (*_, rest)) in enumerate(zip((2, 16), table, strict=True)):
        logits = output("segmentation", whole(image), seed, num_tokens=sizes, depth=1).logits[0]
        classes = bilinear(np.asarray(logits), 24, 48).argmax(-1)
        part = 100 * np.bincount(classes.ravel(), minlength=3) / classes.size
        got = percents(rest.partition("  ")[2])
        assert list(got) == [f"class {c}" for c in np.argsort(-part) if part[c] > 0]
        for name, percent in got.items():  # a pixel may be on the line between two classes
            assert percent == pytest.approx(part[int(name[-1])], abs=0.15)
        colours = 0.4 * grey + 0.6 * pictures.palette(3)[classes]
        wrong = (np.abs(panel(picture, k + 1) - colours) > 1).any(-1)
        assert wrong.mean() < 0.003


@pytest.mark.slow
def test_depth_has_one_scale_of_colours_for_all_budgets(sources, images, tmp_path, said):
    budgets = [dict(num_tokens=2, depth=depth) for depth in (1, 3)]
    text = said(
        tool, images[0], "--checkpoint", sources / "depth", "--out", tmp_path / "out",
        *("--num-tokens", 2, "--depth", 1, 3, "--image-size", 20, 32),
    )  # fmt: skip
    image = Image.open(images[0])
    outputs = (output("depth", whole(image, 20, 32), **budget) for budget in budgets)
    maps = [bilinear(np.asarray(out.depth)[0, ..., None], 24, 48)[..., 0] for out in outputs]
    for budget, metres, (_, _, rest) in zip(budgets, maps, rows(text), strict=True):
        got = [float(x) for x in re.findall(r"(?:min|mean|max) ([\d.]+)", rest)]
        np.testing.assert_allclose(got, [metres.min(), metres.mean(), metres.max()], atol=6e-4)
        flops = ap.flops(MODELS["depth"].config, **budget, image_size=(20, 32)).total
        assert float(rest.split()[0]) == pytest.approx(flops / 1e9, rel=0.006)
    picture = Image.open(tmp_path / "out" / "a_depth.png")
    low, high = np.min(maps), np.max(maps)
    assert maps[0].max() - maps[0].min() < 0.99 * (high - low)  # alone it would be drawn otherwise
    for k, metres in enumerate(maps):
        shade = matplotlib.colormaps["magma_r"]((metres - low) / (high - low))
        np.testing.assert_allclose(panel(picture, k + 1), 255 * shade[..., :3], atol=12)


def test_no_picture_is_written_over_another_or_over_an_image(tmp_path):
    """Two images of one name, and one that is called as a picture would be."""
    inputs = [str(tmp_path / name) for name in ("x.png", "other/X.jpg", "x_depth.png")]
    options = tool.read_options([*inputs, "--checkpoint", "x", "--out", str(tmp_path)])
    made = ["x_2_depth.png", "X_3_depth.png", "x_depth_depth.png"]
    assert tool.places("depth", options) == [tmp_path / name for name in made]


def test_a_class_has_its_own_colour_however_many_there_are():
    colours = pictures.palette(150)
    np.testing.assert_array_equal(pictures.palette(11), colours[:11])
    assert len({tuple(colour) for colour in colours}) == 150


def test_a_runs_images_are_prepared_as_it_evaluated(images):
    """Whole, or cut, and normalised in its own way."""
    image, mean, std = Image.open(images[1]), (0.2, 0.3, 0.4), (0.1, 0.2, 0.3)
    config = small.run_config("scratch", {"images.mean": mean, "images.std": std})
    model, options = make_model(config), tool.read_options(["x.png", "--checkpoint", "run"])
    size, view = tool.find_view("classify", model, config, options)
    assert size == (16, 16)
    squeezed = np.asarray(resize(image, size), np.float32) / 255
    np.testing.assert_allclose(view(image), (squeezed - mean) / std, atol=1e-5)
    augment = dataclasses.replace(config.augment, crop=(0.3, 1.0), evaluation_crop=0.5)
    config = dataclasses.replace(config, augment=augment)
    _, view = tool.find_view("classify", model, config, options)
    assert view == ap.Preprocessing(image_size=16, crop=0.5, mean=mean, std=std)


def test_the_names_of_classes(tmp_path):
    config = small.run_config("ade20k")
    three = MODELS["segmentation"]
    eleven = ap.SegmentationModel(dataclasses.replace(three.config, num_classes=11))
    assert tool.class_names("segment", eleven, config, None) == ("background", *CLASSES)
    numbers = tuple(f"class {k}" for k in range(3))
    for of_run in (config, None):
        assert tool.class_names("segment", three, of_run, None) == numbers
    (tmp_path / "names.txt").write_bytes("\ufeffcat \r\nd\u00f6g\r\nowl, barn\r\n\n".encode())
    names = tool.class_names("segment", three, config, tmp_path / "names.txt")
    assert names == ("cat", "d\u00f6g", "owl, barn")


def test_timms_models_look_as_timm_does():
    name = "vit_base_patch16_clip_384.laion2b_ft_in1k"
    timm = ap.timm_model(name)
    assert timm.preprocessing != ap.Preprocessing(image_size=384)
    for given in (name, f"timm/{name}"):
        options = tool.read_options(["x.png", "--checkpoint", given])
        found = tool.find_view("classify", ap.ViT(timm.config), None, options)
        assert found == ((384, 384), timm.preprocessing)


def test_a_turned_photo_is_shown_upright(images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    turned = Image.open(images[0]).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    shown = tool.open_image(tmp_path / "turned.png")
    np.testing.assert_array_equal(shown, Image.open(images[0]))


@pytest.mark.parametrize(
    ("checkpoint", "options", "message"),
    [
        ("classification", "--task segment", r"classification is for classify \(AdaPerceiver\)$"),
        ("depth", "--task segment", r"--task=segment: .*depth is for depth \(DepthModel\)$"),
        ("dense", "", r"dense: does none of .* \(AdaPerceiver without classes\)$"),
        ("segmentation", "--width 24 25", r"width=25: must be in 1\.\.24"),
        ("vit", "--depth 1", "num_tokens, width, depth: a ViTConfig has no sub-networks"),
        ("segmentation", "--tau 0.5", r"--tau=0\.5: only an .* not SegmentationModel$"),
        ("classification", "--tau 0.5 --depth 2", r"--tau=0\.5: decides the depth; .* --depth"),
        ("classification", "--tau 1.5", r"--tau=1\.5: must be a probability, 0 to 1"),
        ("depth", "--image-size 30", "--image-size=30: must be multiples of the patch, 4; .*: 32$"),
        ("classification", "--image-size 8 16", "--image-size=8 16: .*square; give one number"),
        ("classification", "--labels {tmp}/names.txt", r"names\.txt: has 2 names for 5 classes"),
        ("depth", "--labels {tmp}/names.txt", r"names\.txt: for depth there are no classes$"),
        ("nowhere", "", "not a checkpoint folder"),
        ("depth", "{tmp}/text.png", r"text\.png: cannot be decoded: is no image"),
        ("depth", "{tmp}/short.png", r"short\.png: cannot be decoded: is cut short"),
        ("depth", "{tmp}/none.png", r"No such file.*none\.png"),
        ("depth", "{tmp}", r"Is a directory"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(
    sources, images, tmp_path, refused, capsys, checkpoint, options, message
):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "short.png").write_bytes(images[0].read_bytes()[:600])
    given, out = options.format(tmp=tmp_path).split(), tmp_path / "out"
    text = refused(tool, images[0], *given, "--checkpoint", sources / checkpoint, "--out", out)
    assert re.search(message, text), text
    assert "\n" not in text
    assert capsys.readouterr().out == ""
    assert not out.exists()


def test_a_model_of_grey_images_is_refused():
    model = ap.ViT(dataclasses.replace(MODELS["vit"].config, in_channels=1))
    options = tool.read_options(["x.png", "--checkpoint", "grey"])
    with pytest.raises(ValueError, match="grey: its images have 1 channels, not 3"):
        tool.find_view("classify", model, None, options)
