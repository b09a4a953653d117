"""Hub folders: saved and loaded whole, and everything else refused by name."""

import dataclasses
import json
import shutil

import jax
import orbax.checkpoint as ocp
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.convert import describe, whole
from adaperceiver_jax.convert.hub import find_model, save_orbax
from tests.convert.test_names import MODELS, same
from tests.small_models import random_config, random_params

MODEL, OTHER = MODELS["classification"], MODELS["distillation"]


@pytest.mark.parametrize("name", MODELS)
def test_save_then_load_is_the_identity_bit_for_bit(name, tmp_path):
    model = MODELS[name]
    params = random_params(model)
    ap.save_pretrained(model, params, tmp_path / "new" / "folder")
    loaded, loaded_params = ap.from_pretrained(tmp_path / "new" / "folder")
    assert loaded == model
    assert same(loaded_params, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded_params))


# What config.json says.


def test_any_configuration_survives_its_config_json():
    for seed in range(20):
        model = ap.AdaPerceiver(random_config(seed))
        text = json.dumps(describe.config_to_dict(model))
        assert describe.model_from_dict(json.loads(text)) == model


def test_a_hub_config_holds_only_what_the_reference_knows():
    keys = set(describe.config_to_dict(MODELS["distillation"]))
    assert keys >= {"mask_token_grans", "mat_dims", "img_size", "ls_init_values", "num_classes"}
    assert not keys & {"max_width", "rope_scale", "fourier_bands", "model"}
    assert "output_feat_dim" not in describe.config_to_dict(MODEL)


def test_a_dense_config_holds_only_what_says_something():
    for name, keys in (
        ("segmentation", {"num_classes"}),
        ("depth", {"bins", "min_depth", "max_depth"}),
        ("segmenter", {"num_classes", "head", "decoder_features", "decoder_depth"}),
        ("vit segmentation", {"num_classes", "class_token", "mlp"}),
    ):
        config = describe.config_to_dict(MODELS[name])
        assert set(config) == {"model", "backbone", "head_drop"} | keys
        assert config["backbone"].get("model") == ("ViT" if name.startswith("vit") else None)
    c = MODELS["segmentation"].config
    usual = ap.SegmentationModel(dataclasses.replace(c, head="segmenter"))
    values = describe.config_to_dict(usual)
    assert (values["decoder_features"], values["decoder_depth"]) == (768, 2)
    for change in (dict(head="segmenter"), dict(decoder_features=64), dict(decoder_depth=3)):
        model = ap.SegmentationModel(dataclasses.replace(c, **change))
        assert describe.model_from_dict(describe.config_to_dict(model)) == model


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (dict(model=None), "not an AdaPerceiver's config: unknown keys"),
        (dict(model="PolicyNetwork"), "not a PolicyNetwork's config: unknown keys"),
        (dict(width=3), r"not a ViT's config: unknown keys \['width'\]"),
        (dict(global_pool="avg"), "backbone: a ViT whose last norm comes after"),
    ],
)
def test_a_backbone_that_is_none_is_refused(edit, message):
    values = describe.config_to_dict(MODELS["vit depth"])
    edited = {key: x for key, x in {**values["backbone"], **edit}.items() if x is not None}
    with pytest.raises(ValueError, match=message):
        describe.model_from_dict({**values, "backbone": edited})
    policy = describe.config_to_dict(MODELS["policy"])
    with pytest.raises(ValueError, match="backbone: a PolicyNetwork; must be an AdaPerceiver or"):
        describe.model_from_dict({**values, "backbone": policy})


# Folders.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    ap.save_pretrained(MODEL, random_params(MODEL), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


def test_saving_again_replaces_and_a_failed_save_leaves_the_old_files(folder, monkeypatch):
    files = ["config.json", "model.safetensors"]
    params = random_params(MODEL, seed=1)
    ap.save_pretrained(MODEL, params, folder)
    assert same(ap.from_pretrained(folder)[1], params)
    assert sorted(path.name for path in folder.iterdir()) == files
    before = (folder / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(whole.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        ap.save_pretrained(MODEL, random_params(MODEL, seed=2), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == files


def test_parameters_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="do not fit AdaPerceiver"):
        ap.save_pretrained(MODEL, {}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


CONFIG = describe.config_to_dict(MODEL)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({k: x for k, x in CONFIG.items() if k != "depth"}, r"missing keys \['depth'\]"),
        (CONFIG | dict(mixture=3), r"unknown keys \['mixture'\]"),
        (CONFIG | dict(depth=0), r"depth=0: must be an integer, at least 1"),
        (CONFIG | dict(model="Swin"), r"model='Swin': must be one of SegmentationModel"),
        (CONFIG | dict(depth=4), r"model\.safetensors: .*missing: blocks\.3\."),
        (CONFIG | dict(num_classes=6), r"output_adapter\.ffn\.bias is \(5,\), the model's"),
        ([1, 2], r"config\.json: holds a list, not an object"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, config, message):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        ap.from_pretrained(folder)


def test_a_damaged_folder_is_refused(folder):
    for path in (folder / "model.safetensors", folder / "config.json"):
        content = path.read_bytes()
        path.write_bytes(content[:-100])
        with pytest.raises(ValueError, match=rf"{path.name}: "):
            ap.from_pretrained(folder)
        path.unlink()
        with pytest.raises(ValueError, match=f"it has no {path.name}"):
            ap.from_pretrained(folder)
        path.write_bytes(content)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="not a checkpoint folder"):
        ap.from_pretrained(folder)


def test_a_hub_id_is_read_from_the_hubs_cache(saved, tmp_path, monkeypatch):
    """The cache as huggingface_hub lays it out, with the network switched off."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--someone--adaperceiver"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    model, params = ap.from_pretrained("someone/adaperceiver", revision="v1")
    assert model == MODEL
    assert same(params, ap.from_pretrained(saved)[1])
    with pytest.raises(ValueError, match="someone/other: neither a folder here nor"):
        ap.from_pretrained("someone/other")


def test_a_model_alone_is_found_without_weights_and_what_is_meant_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match=r"a file, not a folder; tools/convert\.py makes one"):
        ap.from_pretrained(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert find_model(folder) == find_model(folder / "config.json") == MODEL
    name = "vit_tiny_patch16_224.augreg_in21k"
    assert find_model(name) == ap.ViT(ap.timm_model(name).config)
    with pytest.raises(ValueError, match=r"not a checkpoint folder, it has no config\.json"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"did you mean timm's vit_base_patch16_224\."):
        ap.from_pretrained("vit_base_patch16_224")


# Orbax's folders.


@pytest.fixture
def orbax_folder(tmp_path):
    save_orbax(OTHER, random_params(OTHER), tmp_path / "orbax")
    return tmp_path / "orbax"


def test_orbax_folders_are_read_here_and_by_orbax_alone_onto_a_mesh(orbax_folder):
    model, params = ap.from_pretrained(orbax_folder)
    assert model == OTHER
    assert same(params, random_params(OTHER))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = jax.tree.map(lambda leaf: leaf.update(sharding=place), ap.param_shapes(OTHER))
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(orbax_folder / "params", shapes)
    assert same(params, random_params(OTHER))
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(params))


def test_an_orbax_folder_of_another_model_or_damaged(orbax_folder):
    config = (orbax_folder / "config.json").read_text()
    (orbax_folder / "config.json").write_text(describe.config_text(MODEL))
    with pytest.raises(ValueError, match=r"orbax/params: these parameters do not fit"):
        ap.from_pretrained(orbax_folder)
    (orbax_folder / "config.json").write_text(config)
    for path in sorted((orbax_folder / "params").rglob("*")):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"orbax/params: Orbax cannot read it .*is it whole\?"):
        ap.from_pretrained(orbax_folder)


def test_a_folder_holds_one_format(folder, orbax_folder):
    with pytest.raises(ValueError, match=r"has weights in model\.safetensors already"):
        save_orbax(MODEL, random_params(MODEL), folder)
    with pytest.raises(ValueError, match="has weights in params already"):
        ap.save_pretrained(OTHER, random_params(OTHER), orbax_folder)
    shutil.copy(folder / "model.safetensors", orbax_folder)
    with pytest.raises(ValueError, match=r"has both model\.safetensors and params/"):
        ap.from_pretrained(orbax_folder)
