"""Files of weights: read tensor by tensor, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

State = Mapping[str, np.ndarray]
"""Arrays under PyTorch names."""
SAFETENSORS = (".safetensors",)
PICKLED = (".pth", ".pt")
_WRAPPERS = ("module", "_orig_mod")  # of DataParallel and AveragedModel; of torch.compile
_COUNTERS = ("n_averaged", "ema_n_averaged")  # of AveragedModel
_INNER = ("state_dict", "model")  # where training scripts put the weights beside other things
_TORCH_HELP = (
    "needs PyTorch: pip install torch --index-url https://download.pytorch.org/whl/cpu (or convert "
    "the file to .safetensors where PyTorch is)"
)


class SafetensorsFile(Mapping[str, np.ndarray]):
    """The tensors of a .safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = safetensors.safe_open(path, framework="numpy")
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{path}: not a whole .safetensors file ({error}); fetch or export it again"
            ) from error
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_state(path: Path) -> State:
    """The tensors of a .safetensors, .pth or .pt file; ValueError where it holds anything else.

    A pickle is never executed: PyTorch reads it with weights_only=True. What training scripts add
    is taken off: 'module.' and '_orig_mod.' in names, AveragedModel's counters; a position table
    without its first axis gets it.
    """
    if path.suffix in SAFETENSORS:
        return _plain_names(SafetensorsFile(path), path)
    if path.suffix in PICKLED:
        return _plain_names(_read_pickled(path), path)
    raise ValueError(
        f"{path}: weights are read from {', '.join((*SAFETENSORS, *PICKLED))} files, or folders"
    )


def _plain_names(state: State, path: Path) -> State:
    """The state without what wrappers add to names and values."""
    renamed: dict[str, str] = {}
    for name in state:
        if name in _COUNTERS:
            continue
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if plain in renamed:
            raise ValueError(f"{path}: holds {plain} twice, as {renamed[plain]} and as {name}")
        renamed[plain] = name
    table = "patch_embed.pos_embed"
    short = [name for name in renamed if name.endswith(table) and state[renamed[name]].ndim == 2]
    if not short and all(plain == name for plain, name in renamed.items()):
        return state
    plain_state = {plain: state[name] for plain, name in renamed.items()}
    return plain_state | {name: plain_state[name][None] for name in short}


def _read_pickled(path: Path) -> State:
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"{path}: reading it {_TORCH_HELP}") from error
    try:
        try:  # tensors stay in the file until they are used
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            found = torch.load(path, map_location="cpu", weights_only=True)  # before PyTorch 1.6
    except pickle.UnpicklingError as error:
        reason = str(error).replace("\n", " ")
        why = _first_sentence(reason.partition("WeightsUnpickler error:")[2] or reason)
        raise ValueError(
            f"{path}: holds more than plain tensors, or is not PyTorch's ({why}). It is not "
            "executed; save the model's state_dict() alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: PyTorch cannot read it ({_first_sentence(str(error))}); is it whole?"
        ) from error
    for key in _INNER:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path}: holds a {type(found).__name__}, not a state dict of tensors")
    other = [key for key, value in found.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise ValueError(
            f"{path}: {other[0]!r} is a {type(found[other[0]]).__name__}, not a tensor "
            f"({len(other)} such in all); save the model's state_dict() alone"
        )
    return {name: _to_numpy(tensor) for name, tensor in found.items()}


def _first_sentence(text: str) -> str:
    return text.strip().split("\n")[0].split(". ")[0][:200] or "no reason given"


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:  # unknown to NumPy
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def _to_torch(array: np.ndarray) -> Any:
    import torch

    array = np.require(array, requirements=["C", "W"])
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def write_state(path: Path, state: State) -> None:
    """Writes a .safetensors, .pth or .pt file, whole or not at all."""
    if path.suffix in SAFETENSORS:
        write_whole(path, lambda to: safetensors.numpy.save_file(dict(state), to))
    elif path.suffix in PICKLED:
        try:
            import torch
        except ImportError as error:
            raise ValueError(f"{path}: writing it {_TORCH_HELP}") from error
        tensors = {name: _to_torch(array) for name, array in state.items()}
        write_whole(path, lambda to: torch.save(tensors, to))
    else:
        raise ValueError(f"{path}: must end in {', '.join((*SAFETENSORS, *PICKLED))}")


def check_free(path: Path) -> None:
    """Raises ValueError unless nothing, or an empty folder, is there."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path}: is there already; move it away or name another")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` for a file or folder, moved to `path` if no error was raised."""
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        place = Path(folder) / path.name
        yield place
        if path.is_dir():
            path.rmdir()  # empty
        place.rename(path)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Has a file written beside its place and moves it there, so that no half is ever seen."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_whole`, of content that is at hand."""

    def write(to: Path) -> None:
        to.write_bytes(content)

    write_whole(path, write)
