"""Files of weights, under PyTorch names: .safetensors, .pth, .pt."""

from __future__ import annotations

import contextlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from adaperceiver_jax.convert.whole import write_whole

State = Mapping[str, np.ndarray]
"""Arrays under PyTorch names."""
SAFETENSORS = (".safetensors",)
PICKLED = (".pth", ".pt")
_WRAPPERS = ("module", "_orig_mod")  # of DataParallel and AveragedModel; of torch.compile
_COUNTERS = ("n_averaged", "ema_n_averaged")  # of AveragedModel
_SAFETENSORS_DTYPES = ("F16", "BF16", "F32", "F64")


def _import_torch(use: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{use} needs PyTorch: pip install torch --index-url "
            "https://download.pytorch.org/whl/cpu (or convert the file to .safetensors where "
            "PyTorch is)"
        ) from error
    return torch


def _first_sentence(text: str) -> str:
    return text.strip().split("\n")[0].split(". ")[0][:200] or "no reason given"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's name before what is wrong with its content."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error


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
        dtype = self._file.get_slice(name).get_dtype()
        if dtype not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{name} is of dtype {dtype}; weights are float16, bfloat16, or wider")
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
    torch = _import_torch(f"{path}: reading it")
    _check_zip(path)
    try:
        try:  # tensors stay in the file until they are used
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            found = torch.load(path, map_location="cpu", weights_only=True)  # before PyTorch 1.6
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it names {named[1]}" if named else _first_sentence(str(error))
        raise ValueError(
            f"{path}: holds more than plain tensors, or is not PyTorch's ({why}). It is not "
            "executed; save the model's state_dict() alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: PyTorch cannot read it ({_first_sentence(str(error))}); is it whole?"
        ) from error
    return {name: _to_numpy(tensor) for name, tensor in _tensors(found, path).items()}


def _check_zip(path: Path) -> None:
    """ValueError if a part of the file is not what was written; PyTorch does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile:
        return  # from before PyTorch 1.6, or no weights at all
    if broken:
        raise ValueError(f"{path}: {broken} in it is damaged (its checksum is another)")


def _tensors(found: Any, path: Path) -> Mapping[str, Any]:
    """The one state dict that a file holds, alone or beside other things."""
    import torch

    def is_state(value: Any) -> bool:
        return isinstance(value, Mapping) and any(
            isinstance(tensor, torch.Tensor) for tensor in value.values()
        )

    if isinstance(found, Mapping):
        inner = [key for key, value in found.items() if is_state(value)]
        if len(inner) > 1:
            raise ValueError(
                f"{path}: holds several state dicts ({', '.join(map(str, inner))}); save one alone"
            )
        found = found[inner[0]] if inner else found
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path}: holds a {type(found).__name__}, not a state dict of tensors")
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path}: {key!r} is a {type(value).__name__}, not a tensor under a name; save the "
                "model's state_dict() alone"
            )
        if key not in _COUNTERS and (value.dtype not in kinds or value.layout != torch.strided):
            raise ValueError(
                f"{path}: {key} is of dtype {value.dtype}, layout {value.layout}; weights are "
                "dense, float16, bfloat16, or wider"
            )
    return found


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
        torch = _import_torch(f"{path}: writing it")
        tensors = {name: _to_torch(array) for name, array in state.items()}
        write_whole(path, lambda to: torch.save(tensors, to))
    else:
        raise ValueError(f"{path}: must end in {', '.join((*SAFETENSORS, *PICKLED))}")
