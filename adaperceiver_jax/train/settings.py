"""Everything the trainer can be told, with its default: checked before any compilation."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import operator
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from adaperceiver_jax.data.augment import AugmentSettings

T = TypeVar("T")


WAYS = ("all", "fsdp", "whole")
"""Ways to split an array over the devices: train/sharding.py."""
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """How the devices are laid out; -1 takes what the other axis leaves."""

    data: int = -1
    """Devices along which only the batch is split."""
    fsdp: int = 1
    """Devices along which parameters and optimizer state are split too."""
    rules: tuple[tuple[str, str], ...] = ()
    """(pattern of an array's path, 'all', 'fsdp' or 'whole'), before those of train/sharding.py."""
    gradients: str = "float32"
    """Dtype in which kernels' gradients are summed over the devices; 'bfloat16' moves half as much,
    of these and of the kernels under fsdp."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the images come from."""

    source: str = "scenes"
    """'scenes' is rendered here and needs no download; or 'tfds:NAME', 'array_record:FILES',
    'folder:PATH', 'wds:SHARDS' (docs/data.md)."""
    validation: str = ""
    """Another such source; or a part of the training images that is held out, '10%'; '' takes the
    validation images that the source has itself."""
    dir: str = ""
    """Where TFDS has its data sets; other paths are relative to it."""
    image_size: int = 224
    """Height and width of what the model sees."""
    image_width: int = 0
    """Width, where it is not the height."""
    zero_is_ignored: bool = False
    """True where label maps hold k + 1 for class k, and 0 does not count, as in ADE20K."""
    depth_scale: float = 1000.0
    """Units per metre of depth maps in whole numbers."""
    max_depth: float = 10.0
    """Metres; what is deeper does not count."""
    bad_images: int = 100
    """Images per epoch that may not decode; others take their places. 0 stops at the first."""
    train_count: int = 0
    """Images that are rendered; the most that are drawn from a disk, 0 for all."""
    validation_count: int = 0
    """Same for validation."""
    seed: int = 0
    """Seed of rendered images and of what is held out; the order follows the run's seed."""
    difficulty: float = 0.7
    """Difficulty of the hardest rendered images, from 0 to 1."""
    workers: int = 0
    """Processes that load, one per core; 0 loads in threads, -1 takes all cores but one."""
    threads: int = 4
    """Threads in each of them."""
    prefetch: int = 4
    """Batches made ahead, by all together, and at least one by each."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.image_size, self.image_width or self.image_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The numbers of the update."""

    name: str = "soap"
    """'soap', 'nadamw' or 'adamw'."""
    lr: float = 1e-3
    weight_decay: float = 0.003
    b1: float = 0.9
    b2: float = 0.999
    clip: float = 3.0
    """Largest global norm of the gradient."""
    precondition_frequency: int = 100
    start_preconditioning_step: int = 500
    max_preconditioner_dim: int = 8192
    overlap: bool = False
    """SOAP's eigenvectors are found while steps go on, and used from the next refresh on; otherwise
    steps wait for them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The learning rate over the run."""

    name: str = "cosine"
    """'cosine', 'poly' or 'constant'."""
    warmup: str = "0 steps"
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    power: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Validation during the run, with EMA weights."""

    every: str = "10%"
    batch_size: int = 256
    sub_networks: tuple[tuple[int, int, int], ...] = ()
    """(num_tokens, width, depth) each; the whole model always comes first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Saving and keeping checkpoints."""

    every: str = "5%"
    keep_last: int = 2
    keep_best: int = 1
    """Best checkpoints by the whole model's validation metric."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """A trace of a few steps, in the run's folder under `profile/`."""

    start: int = 10
    """The first step of them, counted from where the run begins or resumes."""
    steps: int = 0
    """0 traces nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """Patience of several processes with each other."""

    wait: float = 300.0
    """Seconds that one may come later than the first to where all meet."""
    lost_after: float = 60.0
    """Seconds of silence after which a process is lost. One that is killed is missed at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A training run. Durations read '50 epochs', '1000 steps' or '10%' (of the run)."""

    seed: int = 0
    length: str = "1000 steps"
    batch_size: int = 256
    """Images per update, over all devices."""
    accumulate: int = 1
    """Parts a batch is cut into, one after another, to save memory."""
    init_from: str = ""
    """Another run's folder (its EMA weights), or a folder or hub id of `save_pretrained`."""
    init_skip: tuple[str, ...] = ()
    """Patterns of parameters that may stay fresh where `init_from` does not have them."""
    train_only: tuple[str, ...] = ()
    """Patterns of the parameters that are trained; () trains all."""
    ema: float = 0.999
    log_every: int = 50
    """Steps."""
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    mesh: MeshSettings = MeshSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    profile: ProfileSettings = ProfileSettings()
    processes: ProcessSettings = ProcessSettings()
    compilation_cache: str = "compiled"
    """Where main.py keeps compiled programs, so that a resumed run need not wait for them: a folder
    in the run's, which all hosts share; '' keeps none. $JAX_COMPILATION_CACHE_DIR comes
    first."""

    def __post_init__(self) -> None:
        check = functools.partial(check_fields, self, "config")
        check("batch_size accumulate log_every", lambda n: n >= 1, "at least 1")
        check("data.threads data.prefetch evaluation.batch_size", lambda n: n >= 1, "at least 1")
        check("data.workers", lambda n: n >= -1, "at least -1")
        check("data.bad_images data.image_width", lambda n: n >= 0, "at least 0")
        check("data.train_count data.validation_count", lambda n: n >= 0, "at least 0")
        check("data.image_size data.depth_scale data.max_depth", lambda x: x > 0, "above 0")
        check("seed", lambda n: 0 <= n < 2**32, "at least 0 and below 2**32")
        check("optimizer.b1 optimizer.b2 ema", lambda x: 0 <= x < 1, "in [0, 1)")
        check("optimizer.lr optimizer.clip", lambda x: x > 0, "above 0")
        check("optimizer.weight_decay profile.steps", lambda x: x >= 0, "at least 0")
        check("profile.start", lambda n: n >= 1, "at least 1")
        check("mesh.gradients", DTYPES.__contains__, f"in {DTYPES}")
        check("processes.wait processes.lost_after", lambda x: x >= 1, "at least 1 (second)")
        check("checkpoint.keep_last", lambda n: n >= 1, "at least 1: a run resumes from the last")
        check("checkpoint.keep_best", lambda n: n >= 0, "at least 0")
        for rule in self.mesh.rules:
            if len(rule) != 2 or rule[1] not in WAYS:
                ways = " or ".join(map(repr, WAYS))
                raise ValueError(f"config.mesh.rules={rule!r}: must be pairs (pattern, {ways})")
        for sub_network in self.evaluation.sub_networks:
            if len(sub_network) != 3:
                raise ValueError(
                    f"config.evaluation.sub_networks={sub_network!r}: must be triples "
                    "(num_tokens, width, depth)"
                )
        for name in ("length", "schedule.warmup", "evaluation.every", "checkpoint.every"):
            text = operator.attrgetter(name)(self)
            if parse_duration(text, f"config.{name}")[0] == 0 and name.endswith("every"):
                raise ValueError(f"config.{name}={text!r}: must be above 0")


def check_fields(
    settings: Any, where: str, names: str, good: Callable[[Any], bool], allowed: str
) -> None:
    """ValueError for the first of the fields, named as 'a b.c', whose value is not good."""
    for name in names.split():
        value = operator.attrgetter(name)(settings)
        if not good(value):
            raise ValueError(f"{where}.{name}={value!r}: must be {allowed}")


_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(epochs?|steps?|%)\s*")


def parse_duration(text: str, name: str) -> tuple[float, str]:
    """'50 epochs' -> (50.0, 'epochs'); the unit is 'epochs', 'steps' or '%'."""
    found = _DURATION.fullmatch(str(text))
    if not found:
        raise ValueError(f"{name}={text!r}: must read like '50 epochs', '1000 steps' or '10%'")
    unit = found[2] if found[2] == "%" else found[2].rstrip("s") + "s"
    return float(found[1]), unit


def steps_of(text: str, name: str, images: int, batch_size: int, total: int | None = None) -> int:
    """A duration in steps.

    Args:
      text: as `parse_duration` reads it.
      name: of the config's key, for the error.
      images: an epoch's.
      batch_size: images a step.
      total: steps of the run, which percents refer to.
    """
    value, unit = parse_duration(text, name)
    if unit == "epochs":
        return round(value * images / batch_size)
    if unit == "steps":
        return round(value)
    if total is None:
        raise ValueError(f"{name}={text!r}: must be in epochs or steps, not a percentage")
    return round(value / 100 * total)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's durations, in steps."""

    last: int
    warmup: int
    evaluate: int
    save: int


def make_plan(settings: Settings, images: int) -> Plan:
    """The durations for an epoch of so many images; ValueError where they make no sense."""

    def steps(name: str, total: int | None = None) -> int:
        text = operator.attrgetter(name)(settings)
        return steps_of(text, f"config.{name}", images, settings.batch_size, total)

    last = steps("length")
    if last < 1:
        raise ValueError(f"config.length={settings.length!r}: is less than one step")
    evaluate, save = (max(1, steps(f"{name}.every", last)) for name in ("evaluation", "checkpoint"))
    return Plan(last, steps("schedule.warmup", last), evaluate, save)


def from_config(kind: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """A config's values as a dataclass; ValueError names an unknown key or bad type.

    Keys that are left out keep their defaults. Sections that are dataclasses are read the same
    way; tuples may come as lists.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(fields))}"
            raise ValueError(f"{where}.{key}: there is no such key; {hint}")
        arguments[key] = _read(hints[key], value, f"{where}.{key}")
    return kind(**arguments)


def check_key(kind: type, name: str) -> None:
    """Raises ValueError, with the nearest that there is, unless 'a.b' is a key of a config."""
    known = list(keys_of(kind))
    if name in known:
        return
    section = name.rpartition(".")[0]
    inside = [other for other in known if other.rpartition(".")[0] == section]
    near = difflib.get_close_matches(name, known, 1, 0.8)
    if near:
        hint = f"did you mean config.{near[0]}?"
    elif inside:
        keys = ", ".join(other.rpartition(".")[2] for other in inside)
        hint = f"config{'.' * bool(section)}{section} has {keys}"
    else:
        hint = f"there is no section config.{section}"
    raise ValueError(f"config.{name}: there is no such key; {hint}")


def with_key(kind: type, values: Mapping[str, Any], name: str, text: str) -> dict[str, Any]:
    """A config's values with key 'a.b' set from text, as on a command line."""
    check_key(kind, name)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return _with(values, name, value)


def _with(values: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    section, dot, rest = name.partition(".")
    if not dot:
        return {**values, name: value}
    return {**values, section: _with(values.get(section) or {}, rest, value)}


def keys_of(kind: type, above: str = "") -> Iterator[str]:
    """All keys of a config, 'a' and 'a.b'."""
    for name, hint in typing.get_type_hints(kind).items():
        yield above + name
        if dataclasses.is_dataclass(hint):
            yield from keys_of(hint, f"{above}{name}.")  # type: ignore[arg-type]


def _read(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}={value!r}: must be a section of keys")
        return from_config(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ValueError(f"{where}={value!r}: must be a tuple")
        return tuple(tuple(v) if isinstance(v, list | tuple) else v for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ValueError(f"{where}={value!r}: must be of type {hint.__name__}")
    return value
