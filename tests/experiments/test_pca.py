"""Figures 15 to 17: from images to a CSV to a picture, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import adaperceiver_jax as ap
from adaperceiver_jax.data.scenes import Scenes
from adaperceiver_jax.evaluate.components import Panel, SubNetwork, csv_text, read_panels
from adaperceiver_jax.tasks.make import RunConfig
from experiments.paper import pca
from tests.convert.test_names import MODELS
from tests.tools.conftest import Sources

SIZES = {
    "15": (416, 624, 832),
    "16": (32, 64, 96, 128, 192, 256, 512, 1024),
    "17": range(1, 22),
}


def plain_panels() -> list[Panel]:
    """Panels of two images over widths, each of one colour of its own."""
    return [
        Panel(name, SubNetwork(256, width, 21), np.broadcast_to((i, (1 + k) / 32, 0.6), (4, 4, 3)))
        for i, name in enumerate(("a.png", "b.png"))
        for k, width in enumerate(SIZES["15"])
    ]


def refused(*arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        pca.main([str(argument) for argument in arguments])
    said = stopped.value.code
    assert "\n" not in said
    return said


def test_a_figure_is_drawn_from_a_csv_alone_with_the_change_between_sizes(tmp_path, capsys):
    path, out = tmp_path / "panels.csv", tmp_path / "to" / "figure.png"
    path.write_text(csv_text(plain_panels()))
    pca.main(["15", "--from", str(path), "--out", str(out)])
    changes = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[-1] for line in changes] == ["0.010"] * 2  # one of three channels by 1/32
    colours = np.unique(np.asarray(Image.open(out).convert("RGB")).reshape(-1, 3), axis=0)
    for panel in plain_panels():
        assert (np.abs(colours - 255 * panel.colours[0, 0]).max(-1) <= 1).any()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Sources(tmp_path_factory.mktemp("models"))


@pytest.mark.slow
def test_images_to_csv_to_picture(tmp_path, folders):
    out, path = tmp_path / "figure.png", tmp_path / "panels.csv"
    arguments = ["16", "--checkpoint", folders / "distillation", "--scenes", 1, 4]
    arguments += ["--sizes", 8, 3, "--csv", path, "--out", out]
    pca.main([str(argument) for argument in arguments])
    panels = read_panels(path)
    sizes = [None, SubNetwork(3, 24, 3), SubNetwork(8, 24, 3)]
    assert [(p.image, p.sub_network) for p in panels] == [
        (name, size) for name in ("scene 1", "scene 4") for size in sizes
    ]
    scene = Scenes(5, 16, "validation")[1]["image"]
    np.testing.assert_allclose(panels[0].colours, scene / 255, atol=1e-4)
    assert panels[1].colours.shape == (4, 4, 3)
    assert Image.open(out).size[0] > 300


def test_images_are_shown_as_the_run_was_shown_them_no_larger_than_a_panel(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    assert pca.thumbnail(noise).shape == (128, 85, 3)
    np.testing.assert_array_equal(pca.thumbnail(noise[:20, :30]), noise[:20, :30] / 255)
    (tmp_path / "checkpoints").mkdir()
    config = RunConfig()
    half = dataclasses.replace(config.images, mean=(0.5,) * 3, std=(0.25,) * 3)
    data = dataclasses.replace(config.data, image_size=28)
    config = dataclasses.replace(config, images=half, data=data)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    photo, run = str(tmp_path / "photo.png"), str(tmp_path / "model")
    options = pca.make_parser().parse_args(["15", photo, photo, "--checkpoint", run])
    names, (pixels,), normalised = pca.open_images(MODELS["distillation"], options)
    assert names == [photo]  # named twice, shown once
    assert pixels.shape == (28, 28, 3)
    np.testing.assert_allclose(normalised[0], (pixels / 255 - 0.5) / 0.25, atol=1e-5)


def test_the_sizes_that_each_figure_shows_unasked():
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(output_feat_dim=4))
    for number, figure in pca.FIGURES.items():
        shown = [getattr(s, figure.vary) for s in figure.sub_networks(model, None)]
        assert shown == [*SIZES[number]]


def test_mistakes_are_refused_in_a_line(tmp_path, folders):
    (tmp_path / "notes.txt").write_text("no image")
    good = "--checkpoint", folders / "distillation"
    assert "give images or --scenes" in refused("17", *good)
    assert "notes.txt" in refused("17", tmp_path / "notes.txt", *good)
    assert "missing.png" in refused("17", tmp_path / "missing.png", *good)
    assert "--scenes=-1: must be at least 0" in refused("17", "--scenes", -1, *good)
    assert "depth=9: must be in 1..3" in refused("17", "--scenes", 1, "--sizes", 9, *good)
    for name, message in (("classification", "has no patch features"), ("vit", "model=ViT")):
        said = refused("17", "--scenes", 1, "--checkpoint", folders / name)
        assert f"{folders / name}: " in said
        assert message in said
    path = tmp_path / "panels.csv"
    path.write_text(csv_text(plain_panels()))
    said = refused("16", "--from", path, "--out", tmp_path / "x.png")
    assert "width=[416, 624, 832]: this figure varies num_tokens alone" in said
    path.write_text(csv_text([Panel("a", None, np.zeros((2, 2, 3)))]))
    assert "none of a sub-network" in refused("16", "--from", path)
    assert "leave out scenes" in refused("16", "--from", path, "--scenes", 1)
    assert not (tmp_path / "x.png").exists()
