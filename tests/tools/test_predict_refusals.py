"""What tools/predict.py refuses, in one line and before it writes anything."""

import dataclasses
import re

import pytest

import adaperceiver_jax as ap
from tests.convert.test_names import MODELS
from tests.small_models import random_params
from tools import predict as tool


@pytest.mark.parametrize(
    ("checkpoint", "options", "message"),
    [
        ("classification", "--task segment", r"classification is for classify \(AdaPerceiver\)$"),
        ("segmentation", "--task classify", r"segmentation is for segment \(SegmentationModel\)$"),
        ("depth", "--task segment", r"--task=segment: .*depth is for depth \(DepthModel\)$"),
        ("dense", "", r"dense: does none of .* \(AdaPerceiver without classes\)$"),
        ("policy", "", r"policy: does none of classify, segment, depth \(PolicyNetwork"),
        ("classification", "--num-tokens 4 0", "num_tokens=0: must be at least 1$"),
        ("segmentation", "--num-tokens -3", "num_tokens=-3: must be at least 1$"),
        ("segmentation", "--width 24 25", r"width=25: must be in 1\.\.24"),
        ("depth", "--depth 0", r"depth=0: must be in 1\.\.3$"),
        ("depth", "--depth 1 4", r"depth=4: must be in 1\.\.3$"),
        ("vit", "--depth 1", "num_tokens, width, depth: a ViTConfig has no sub-networks"),
        ("vit", "--num-tokens 0", "num_tokens, width, depth: a ViTConfig has no sub-networks"),
        ("vit", "--tau 0.5", r"--tau=0\.5: only an AdaPerceiver exits early, not ViT$"),
        ("segmentation", "--tau 0.5", r"--tau=0\.5: only an .* not SegmentationModel$"),
        ("classification", "--tau 0.5 --depth 2", r"--tau=0\.5: decides the depth; .* --depth"),
        ("classification", "--tau 1.5", r"--tau=1\.5: must be a probability, 0 to 1"),
        ("classification", "--tau nan", "--tau=nan: must be a probability, 0 to 1"),
        ("depth", "--image-size 30", "--image-size=30: must be multiples of the patch, 4; .*: 32$"),
        ("depth", "--image-size 0 16", "--image-size=0 16: must be multiples.* nearest: 4 16$"),
        ("depth", "--image-size 8 8 8", "--image-size=8 8 8: must be a height and"),
        ("classification", "--image-size 8 16", "--image-size=8 16: .*square; give one number"),
        ("classification", "--labels {tmp}/names.txt", r"names\.txt: has 2 names for 5 classes"),
        ("segmentation", "--labels {tmp}/none.txt", r"No such file.*none\.txt"),
        ("depth", "--labels {tmp}/names.txt", r"names\.txt: for depth there are no classes$"),
        ("nowhere", "", "not a checkpoint folder"),
        ("depth", "--step 3", "step=3: only for a run's folder"),
    ],
)
def test_what_cannot_be_is_refused(
    sources, images, tmp_path, refused, checkpoint, options, message
):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    given = options.format(tmp=tmp_path).split()
    out = tmp_path / "out"
    text = refused(
        tool, images[0], "--checkpoint", sources / checkpoint, *given, "--out", out
    )  # fmt: skip
    assert re.search(message, text), text
    assert "\n" not in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.png", r"text\.png: cannot be decoded: is no image"),
        ("short.png", r"short\.png: cannot be decoded: is cut short"),
        ("none.png", r"No such file.*none\.png"),
        ("folder", r"Is a directory.*folder"),
    ],
)
def test_a_bad_image_is_named_before_anything_is_computed(
    sources, images, tmp_path, refused, capsys, name, message
):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "short.png").write_bytes(images[0].read_bytes()[:600])
    (tmp_path / "folder").mkdir()
    out, bad = tmp_path / "out", tmp_path / name
    text = refused(tool, images[0], bad, "--checkpoint", sources / "depth", "--out", out)
    assert re.search(message, text), text
    assert "\n" not in text
    assert capsys.readouterr().out == ""
    assert not out.exists()


def test_a_model_of_grey_images_is_refused(images, tmp_path, refused):
    model = ap.ViT(dataclasses.replace(MODELS["vit"].config, in_channels=1))
    ap.save_pretrained(model, random_params(model), tmp_path / "grey")
    text = refused(tool, images[0], "--checkpoint", tmp_path / "grey")
    assert "grey: its images have 1 channels, not 3" in text
