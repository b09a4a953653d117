"""A teacher by its timm name: loaded late, frozen, in bfloat16, split over devices."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.convert import hub
from adaperceiver_jax.tasks import make
from adaperceiver_jax.tasks.distill import Distill
from adaperceiver_jax.tasks.make import TeacherSettings, find_teacher
from adaperceiver_jax.tasks.objective import ImageSettings
from adaperceiver_jax.tasks.once_for_all import LossSettings
from adaperceiver_jax.train.settings import MeshSettings
from adaperceiver_jax.train.sharding import held, make_mesh, placed, tree_shardings
from tests.convert.test_names import same
from tests.small_models import TINY, random_images, random_params
from tests.train.small import run_config

VIT = ap.ViTConfig(
    embed_dim=24, depth=2, num_heads=3, image_size=16, patch_size=4, num_classes=5, pre_norm=True
)
DEIT = "deit_tiny_patch16_224"
MODEL = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY))


def distill(dtype="bfloat16"):
    teacher = ap.ViT(VIT, dtype=jnp.dtype(dtype))
    params = random_params(teacher)
    return Distill(model=MODEL, teacher=teacher, teacher_params=lambda: params), params


def test_kernels_are_kept_in_bfloat16_and_it_is_the_same_teacher():
    task, params = distill()
    constants = task.constants()
    kinds = {
        (path[-1].key, leaf.dtype.name)
        for path, leaf in jax.tree_util.tree_leaves_with_path(constants)
    }
    assert ("kernel", "bfloat16") in kinds
    assert all(dtype == "float32" for name, dtype in kinds if name != "kernel")
    images = jnp.asarray(random_images(MODEL.config))
    targets = jax.jit(lambda c: task.targets(c, {"images": images}).labels)
    np.testing.assert_array_equal(targets(constants), targets(params))
    assert targets(constants).dtype == jnp.float32


@pytest.mark.slow
def test_no_gradient_reaches_the_teacher():
    task, _ = distill("float32")
    task = dataclasses.replace(task, settings=LossSettings(depths=False, widths=False))
    samples = {"images": random_images(MODEL.config), "labels": jnp.zeros((2, 5))}

    @jax.jit
    @jax.grad
    def gradients(constants, params):
        return task.loss(params, constants, samples, {}, jax.random.key(0))[0]

    grads = gradients(task.constants(), random_params(MODEL))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_the_papers_teacher_splits_over_fsdp():
    """ViT-H/14 at full size, by its shapes: no large array is replicated."""
    config = ap.timm_model("vit_huge_patch14_clip_224.laion2b_ft_in12k").config
    shapes = ap.param_shapes(ap.ViT(config))
    shardings = tree_shardings(shapes, make_mesh(MeshSettings(data=2, fsdp=4)))
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert total == pytest.approx(646e6, rel=0.01)
    assert held(placed(shapes, shardings)) / (4 * total) < 1.001 / 4


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    """A DeiT-Ti of 7 classes as timm publishes one."""
    folder = tmp_path_factory.mktemp("deit")
    model = ap.ViT(dataclasses.replace(ap.timm_model(f"{DEIT}.fb_in1k").config, num_classes=7))
    ap.save_pretrained(model, random_params(model), folder)
    (folder / "config.json").write_text(json.dumps({"architecture": DEIT, "num_classes": 7}))
    return folder


def test_a_config_names_a_timm_checkpoint_whose_bare_name_is_its_hub_id(
    timm_folder, tmp_path, monkeypatch
):
    asked = []

    def download(name, **_):
        asked.append(name)
        return timm_folder

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    for name in (f"{DEIT}.fb_in1k", f"timm/{DEIT}.fb_in1k", str(timm_folder)):
        found, read = find_teacher(TeacherSettings(path=name), VIT, 1.0)
        assert found == dataclasses.replace(ap.timm_model(f"{DEIT}.fb_in1k").config, num_classes=7)
    assert asked == [f"timm/{DEIT}.fb_in1k"] * 2
    assert same(jax.tree.map(jnp.asarray, read()), random_params(ap.ViT(found)))


def test_a_finished_runs_folder_is_a_teacher_if_it_holds_a_vit(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    settings = TeacherSettings(path=str(tmp_path))
    with pytest.raises(ValueError, match="a run that has not left its model/ yet"):
        find_teacher(settings, VIT, 1.0)
    ap.save_pretrained(MODEL, random_params(MODEL), tmp_path / "model")
    with pytest.raises(ValueError, match="holds no ViT but: AdaPerceiver"):
        find_teacher(settings, VIT, 1.0)
    ap.save_pretrained(ap.ViT(VIT), random_params(ap.ViT(VIT)), tmp_path / "model")
    assert find_teacher(settings, VIT, 1.0)[0] == VIT


def test_a_teacher_that_does_not_fit_is_refused_before_its_weights_are_read(timm_folder, tmp_path):
    shutil.copy(timm_folder / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    config = run_config("stage3_width", {"teacher.path": str(tmp_path)})
    with pytest.raises(ValueError, match="the teacher has 7 classes"):
        make.make_task(config)


def test_a_teacher_that_saw_other_pixels_is_told_of(caplog):
    name = "timm/vit_large_patch14_clip_224.laion2b_ft_in12k"
    make.warn_of_other_pixels(name, ImageSettings())
    assert "was trained with mean (0.5, 0.5, 0.5)" in caplog.text
    caplog.clear()
    make.warn_of_other_pixels(name, ImageSettings(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    make.warn_of_other_pixels("timm/vit_huge_patch14_clip_224.laion2b_ft_in12k", ImageSettings())
    make.warn_of_other_pixels("some/folder", ImageSettings())
    assert caplog.text == ""
