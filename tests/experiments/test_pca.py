"""Figures 15 to 17: from images to a CSV to a picture, and what is refused."""

import argparse
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
from tests.small_models import random_params

WHOLE = SubNetwork(256, 832, 21)
SIZES = {"15": (416, 624, 832), "16": (32, 64, 1024), "17": range(1, 22)}
UNASKED = {**SIZES, "16": (32, 64, 96, 128, 192, 256, 512, 1024)}


def plain_panels(number: str, own: bool) -> list[Panel]:
    """Panels of two images, each of one colour of its own."""
    panels = []
    for i, name in enumerate(("a.png", "b.png")):
        if own:
            panels.append(Panel(name, None, np.broadcast_to((0, i, 0.2), (8, 8, 3))))
        for k, size in enumerate(SIZES[number]):
            sub_network = WHOLE._replace(**{pca.FIGURES[number].vary: size})
            colour = np.broadcast_to((i, (1 + k) / 32, 0.6), (4, 4, 3))
            panels.append(Panel(name, sub_network, colour))
    return panels


def places(picture: Image.Image, panels: list[Panel]) -> list[tuple[int, int]]:
    """The corner of each panel's colour in the picture, x and y; it must fill a panel."""
    pixels, found = np.asarray(picture.convert("RGB")).astype(np.int16), []
    for panel in panels:
        near = np.abs(pixels - 255 * panel.colours[0, 0]).max(-1) <= 1
        assert near.sum() > 0.9 * (pca.PANEL * pca.DPI) ** 2
        y, x = np.nonzero(near)
        found.append((int(x.min()), int(y.min())))
    return found


def refused(*arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        pca.main([str(argument) for argument in arguments])
    said = stopped.value.code
    assert "\n" not in said
    return said


@pytest.mark.parametrize(("number", "own"), [("16", False), ("17", True)])
def test_each_figure_is_drawn_from_a_csv_alone(tmp_path, number, own, capsys, monkeypatch):
    monkeypatch.setattr(pca, "DPI", 40)
    panels, out = plain_panels(number, own), tmp_path / "to" / "figure.png"
    (tmp_path / "panels.csv").write_text(csv_text(panels))
    pca.main([number, "--from", str(tmp_path / "panels.csv"), "--out", str(out)])
    found = places(Image.open(out), panels)
    each = len(panels) // 2
    rows = [found[:each], found[each:]]
    for row in rows:
        assert row == sorted(row, key=lambda place: (place[1], place[0]))
        assert len({y for _, y in row}) == (2 if number == "17" else 1)
    assert max(rows[0])[0] == max(rows[1])[0]
    assert max(y for _, y in rows[0]) < min(y for _, y in rows[1])
    changes = capsys.readouterr().out.splitlines()[2:]
    assert len(changes) == len(SIZES[number]) - 1
    assert changes[0].endswith("0.010")  # one of three channels by 1/32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each model."""
    root = tmp_path_factory.mktemp("models")
    for name in ("distillation", "classification", "vit"):
        ap.save_pretrained(MODELS[name], random_params(MODELS[name]), root / name)
    return root


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
    again = tmp_path / "again.png"
    pca.main(["16", "--from", str(path), "--out", str(again)])
    one, other = (np.asarray(Image.open(picture)).astype(int) for picture in (out, again))
    np.testing.assert_allclose(one, other, atol=1)  # four decimals round to a neighbour at most


def test_images_are_shown_as_the_run_was_shown_them(tmp_path, folders):
    """With a run's mean and size, else AdaPerceiver's; kept no larger than a panel shows."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    assert pca.thumbnail(noise).shape == (128, 85, 3)
    np.testing.assert_array_equal(pca.thumbnail(noise[:20, :30]), noise[:20, :30] / 255)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = RunConfig()
    half = dataclasses.replace(config.images, mean=(0.5,) * 3, std=(0.25,) * 3)
    data = dataclasses.replace(config.data, image_size=28)
    config = dataclasses.replace(config, images=half, data=data)
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    options = argparse.Namespace(
        images=[tmp_path / "photo.png"] * 2, scenes=[], image_size=None, model=None
    )
    model = MODELS["distillation"]
    for place, mean, std, size in (
        (run / "model", half.mean, half.std, 28),
        (folders / "distillation", ap.Preprocessing().mean, ap.Preprocessing().std, 16),
    ):
        options.checkpoint = str(place)
        names, (pixels,), normalised = pca.open_images(model, options)
        assert names == [str(tmp_path / "photo.png")]  # named twice, shown once
        want = (pixels / 255 - np.array(mean)) / np.array(std)
        np.testing.assert_allclose(normalised[0], want, atol=1e-5)
        assert pixels.shape == (size, size, 3)


def test_the_sizes_that_each_figure_shows_unasked():
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(output_feat_dim=4))
    for number, figure in pca.FIGURES.items():
        shown = [getattr(s, figure.vary) for s in figure.sub_networks(model, None)]
        assert shown == [*UNASKED[number]]


def test_mistakes_are_refused_in_a_line(tmp_path, folders):
    (tmp_path / "notes.txt").write_text("no image")
    good = "--checkpoint", folders / "distillation"
    assert "give images or --scenes" in refused("17", *good)
    assert "give images or --scenes" in refused("17", "a.png", "--scenes", 1, *good)
    assert "notes.txt" in refused("17", tmp_path / "notes.txt", *good)
    assert "missing.png" in refused("17", tmp_path / "missing.png", *good)
    assert "--scenes=-1: must be at least 0" in refused("17", "--scenes", -1, *good)
    assert "depth=9: must be in 1..3" in refused("17", "--scenes", 1, "--sizes", 9, *good)
    for name, message in (("classification", "has no patch features"), ("vit", "model=ViT")):
        said = refused("17", "--scenes", 1, "--checkpoint", folders / name)
        assert message in said
        assert str(folders / name) in said
    path = tmp_path / "panels.csv"
    path.write_text(csv_text(plain_panels("15", False)))
    said = refused("16", "--from", path, "--out", tmp_path / "x.png")
    assert "width=[416, 624, 832]: this figure varies num_tokens alone" in said
    path.write_text(csv_text([Panel("a", None, np.zeros((2, 2, 3)))]))
    assert "none of a sub-network" in refused("16", "--from", path)
    assert "leave out scenes" in refused("16", "--from", path, "--scenes", 1)
    assert not (tmp_path / "x.png").exists()
