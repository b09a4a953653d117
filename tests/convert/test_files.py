"""Files of weights: what training scripts add is taken off, and what is no weights is refused."""

import pickle

import ml_dtypes
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
def test_what_is_written_is_read_to_the_bit(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    values = np.linspace(-3, 3, 7).reshape(7, 1)
    dtypes = ("float32", "float16", ml_dtypes.bfloat16)
    weights = WEIGHTS | {f"w{i}": values.astype(dtype) for i, dtype in enumerate(dtypes)}
    write_state(path, weights)
    assert_weights(read_state(path), weights)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_prefixes_of_wrappers_and_their_counters_are_taken_off(tmp_path):
    for prefix in ("module.", "_orig_mod.module."):
        found = {prefix + name: tensor for name, tensor in tensors().items()}
        torch.save({**found, "n_averaged": torch.tensor(5)}, tmp_path / "ema.pth")
        assert_weights(read_state(tmp_path / "ema.pth"))


@pytest.mark.slow
def test_averaged_model_and_compile_as_pytorch_saves_them(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    want = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for wrapped in (torch.optim.swa_utils.AveragedModel(model), torch.compile(model)):
        torch.save(wrapped.state_dict(), tmp_path / "wrapped.pth")
        assert_weights(read_state(tmp_path / "wrapped.pth"), want)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_position_table_without_its_first_axis_gets_it(tmp_path, prefix):
    found = tensors() | {"patch_embed.pos_embed": tensors()["patch_embed.pos_embed"][0]}
    torch.save({prefix + name: tensor for name, tensor in found.items()}, tmp_path / "old.pth")
    want = {prefix + name: array for name, array in WEIGHTS.items()}
    assert_weights(read_state(tmp_path / "old.pth"), want)


def test_weights_beside_other_plain_things_and_from_before_pytorchs_zip_format(tmp_path):
    for key in ("state_dict", "model", "ema"):
        torch.save({key: tensors(), "epoch": 7, "note": "a string"}, tmp_path / "all.pth")
        assert_weights(read_state(tmp_path / "all.pth"))
    torch.save(tensors(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_weights(read_state(tmp_path / "old.pth"))


class Bomb:
    """A pickle that would write a file if it were executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (torch.save, r"it names (_?io|builtins)\.open\). It is not executed"),
        (lambda x, path: path.write_bytes(pickle.dumps(x)), "is not PyTorch's|PyTorch cannot"),
    ],
)
def test_a_pickle_is_never_executed(tmp_path, write, message):
    path = tmp_path / "bomb.pth"
    write({"w": torch.zeros(1), "b": Bomb(str(tmp_path / "executed"))}, path)
    with pytest.raises(ValueError, match=rf"bomb\.pth: .*({message})"):
        read_state(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": 3}, "'w' is a int, not a tensor"),
        ({3: torch.zeros(2)}, "3 is a Tensor, not a tensor under a name"),
        ({"w": torch.zeros(2, dtype=torch.int32)}, r"w is of dtype torch\.int32"),
        ({"w": torch.zeros(2, dtype=torch.float8_e4m3fn)}, r"w is of dtype torch\.float8"),
        ({"w": torch.zeros(2, 2).to_sparse()}, r"w is of .* layout torch\.sparse_coo"),
        (
            {"model": {"w": torch.zeros(2)}, "model_ema": {"w": torch.ones(2)}},
            r"holds several state dicts \(model, model_ema\); save one alone",
        ),
        ({}, "holds a dict, not a state dict"),
        ({"a": torch.zeros(2), "n": {"x": 3}}, "'n' is a dict, not a tensor"),
    ],
)
def test_a_file_of_other_things(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"other\.pth: {message}"):
        read_state(tmp_path / "other.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_is_not_one_or_not_whole(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    write_state(path, {"w": np.arange(10_000, dtype=np.float32)})
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (b"", b"<html>not found</html>" * 20, whole[:-100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"weights{suffix}: "):
            read_state(path)
    if suffix == ".pth":  # which has checksums
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"weights\.pth: .* in it is damaged"):
            read_state(path)


def test_safetensors_are_read_one_by_one_and_refused_so(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": np.zeros(3, np.int32), "x": np.ones(2, np.float32)}, path)
    state = SafetensorsFile(path)
    assert (len(state), "absent" in state, state["x"].tolist()) == (2, False, [1, 1])
    with pytest.raises(KeyError):
        state["absent"]
    with pytest.raises(ValueError, match=r"w is of dtype I32; weights are float16"):
        read_state(path)["w"]
    save_file({**WEIGHTS, "module.blocks.0.attn.q.weight": np.ones(2, np.float32)}, path)
    with pytest.raises(ValueError, match=r"holds blocks\.0\.attn\.q\.weight twice"):
        read_state(path)


def test_another_kind_of_file_and_a_pickle_without_pytorch(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"x\.ckpt: weights are read from \.safetensors"):
        read_state(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x\.ckpt: must end in"):
        write_state(tmp_path / "x.ckpt", WEIGHTS)
    torch.save(tensors(), tmp_path / "w.pth")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ValueError, match=r"w\.pth: reading it needs PyTorch: pip install"):
        read_state(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: writing it needs PyTorch: pip install"):
        write_state(tmp_path / "w.pth", WEIGHTS)
