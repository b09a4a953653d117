"""Files of weights: what training scripts add is taken off, and what is no weights is refused."""

import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from adaperceiver_jax.convert.files import SafetensorsFile, read_state, write_state

torch = pytest.importorskip("torch")
WEIGHTS = {
    "patch_embed.pos_embed": np.arange(24, dtype=np.float32).reshape(1, 6, 4),
    "blocks.0.attn.q.weight": np.eye(4, dtype=np.float32),
}


def tensors(weights=WEIGHTS):
    return {name: torch.from_numpy(array) for name, array in weights.items()}


def assert_weights(state, weights=WEIGHTS):
    assert set(state) == set(weights)
    for name, want in weights.items():
        assert state[name].dtype == want.dtype
        np.testing.assert_array_equal(state[name], want)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_what_is_written_is_read(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    write_state(path, WEIGHTS)
    assert_weights(read_state(path))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_its_bits(tmp_path, suffix, dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    half = {"w": np.linspace(-3, 3, 7).astype(kind).reshape(7, 1)}
    path = tmp_path / f"weights{suffix}"
    write_state(path, half)
    assert_weights(read_state(path), half)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_the_prefixes_of_wrappers_and_their_counters_are_taken_off(tmp_path, prefix):
    found = {prefix + name: tensor for name, tensor in tensors().items()}
    torch.save({**found, "n_averaged": torch.tensor(5)}, tmp_path / "ema.pth")
    assert_weights(read_state(tmp_path / "ema.pth"))


def test_averaged_model_and_compile_as_pytorch_saves_them(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    want = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), tmp_path / "ema.pth")
    torch.save(torch.compile(model).state_dict(), tmp_path / "compiled.pth")
    assert_weights(read_state(tmp_path / "ema.pth"), want)
    assert_weights(read_state(tmp_path / "compiled.pth"), want)


def test_a_position_table_without_its_first_axis_gets_it(tmp_path):
    found = tensors() | {"patch_embed.pos_embed": tensors()["patch_embed.pos_embed"][0]}
    torch.save(found, tmp_path / "old.pth")
    assert_weights(read_state(tmp_path / "old.pth"))
    torch.save({f"backbone.{k}": v for k, v in found.items()}, tmp_path / "dense.pth")
    dense = {f"backbone.{k}": v for k, v in WEIGHTS.items()}
    assert_weights(read_state(tmp_path / "dense.pth"), dense)


@pytest.mark.parametrize("key", ["state_dict", "model", "ema"])
def test_weights_beside_other_plain_things(tmp_path, key):
    torch.save({key: tensors(), "epoch": 7, "note": "a string"}, tmp_path / "all.pth")
    assert_weights(read_state(tmp_path / "all.pth"))


def test_files_from_before_pytorchs_zip_format(tmp_path):
    torch.save(tensors(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_weights(read_state(tmp_path / "old.pth"))


class Bomb:
    """A pickle that would write a file if it were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_is_never_executed(tmp_path, writer):
    bomb = {"w": torch.zeros(1), "b": Bomb(str(tmp_path / "executed"))}
    path = tmp_path / "bomb.pth"
    if writer == "torch":
        torch.save(bomb, path)
    else:
        path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(ValueError, match=r"bomb\.pth: .*not.*executed|bomb\.pth: PyTorch cannot"):
        read_state(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": 3}, "'w' is a int, not a tensor"),
        ({3: torch.zeros(2)}, "3 is a Tensor, not a tensor under a name"),
        ({"w": torch.zeros(2, dtype=torch.int32)}, r"w is of dtype torch\.int32"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, r"w is of dtype torch\.complex64"),
        ({"w": torch.zeros(2, dtype=torch.float8_e4m3fn)}, r"w is of dtype torch\.float8"),
        ({"w": torch.zeros(2, 2).to_sparse()}, r"w is of .* layout torch\.sparse_coo"),
        (
            {"model": {"w": torch.zeros(2)}, "model_ema": {"w": torch.ones(2)}},
            r"holds several state dicts \(model, model_ema\); save one alone",
        ),
        ({}, "holds a dict, not a state dict"),
        ([1, 2], "holds a list, not a state dict"),
        ({"a": torch.zeros(2), "n": {"x": 3}}, "'n' is a dict, not a tensor"),
    ],
)
def test_a_file_of_other_things(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"other\.pth: {message}"):
        read_state(tmp_path / "other.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "half"])
def test_a_file_that_is_not_one_or_not_whole(tmp_path, suffix, damage):
    path = tmp_path / f"weights{suffix}"
    write_state(path, {"w": np.arange(10_000, dtype=np.float32)})
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"<html>not found</html>" * 20,
            "truncated": content[:-100],
            "half": content[: len(content) // 2],
        }[damage]
    )
    with pytest.raises(ValueError, match=rf"weights{suffix}: "):
        read_state(path)


def test_a_flipped_bit_in_a_pickled_file(tmp_path):
    path = tmp_path / "w.pth"
    write_state(path, {"w": np.arange(10_000, dtype=np.float32)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pth: .* in it is damaged"):
        read_state(path)


def test_safetensors_of_other_dtypes_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": np.zeros(3, np.int32)}, path)
    with pytest.raises(ValueError, match=r"w is of dtype I32; weights are float16"):
        read_state(path)["w"]


def test_what_a_refused_pickle_names_is_said(tmp_path):
    torch.save({"b": Bomb(str(tmp_path / "executed"))}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match=r"it names (_?io|builtins)\.open"):
        read_state(tmp_path / "bomb.pth")


def test_the_same_tensor_under_two_names_is_refused(tmp_path):
    twice = {**WEIGHTS, "module.blocks.0.attn.q.weight": WEIGHTS["blocks.0.attn.q.weight"]}
    save_file(twice, tmp_path / "twice.safetensors")
    with pytest.raises(ValueError, match=r"holds blocks\.0\.attn\.q\.weight twice"):
        read_state(tmp_path / "twice.safetensors")


def test_another_kind_of_file(tmp_path):
    with pytest.raises(ValueError, match=r"x\.ckpt: weights are read from \.safetensors"):
        read_state(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt: must end in"):
        write_state(tmp_path / "x.ckpt", WEIGHTS)


def test_without_pytorch_a_pickle_says_what_it_needs(tmp_path, monkeypatch):
    torch.save(tensors(), tmp_path / "w.pth")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ValueError, match=r"w\.pth: reading it needs PyTorch: pip install"):
        read_state(tmp_path / "w.pth")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    from adaperceiver_jax.convert import whole

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(whole.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_state(tmp_path / "w.safetensors", WEIGHTS)
    assert not list(tmp_path.iterdir())


def test_safetensors_are_read_one_by_one(tmp_path):
    write_state(tmp_path / "w.safetensors", WEIGHTS)
    state = SafetensorsFile(tmp_path / "w.safetensors")
    assert len(state) == 2
    assert "absent" not in state
    with pytest.raises(KeyError):
        state["absent"]
