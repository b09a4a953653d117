"""How many images a second a config's data pipeline makes, and where the time goes.

python tools/benchmark_data.py --config=configs/finetune_in1k.py --config.data.dir=DIR
python tools/benchmark_data.py --config=configs/finetune_in1k.py --made=256    # without data

First step by step on one core, in one thread; then the whole pipeline, on one core and on all.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # leaves accelerators to who trains

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_MADE = flags.DEFINE_integer("made", 0, "Made-up photographs, in place of the config's data.")
_IMAGES = flags.DEFINE_integer("images", 512, "Images a step is timed with.")
_BATCH = flags.DEFINE_integer("batch", 128, "Images a batch.")
_BATCHES = flags.DEFINE_integer("batches", 20, "Batches that the whole pipeline is timed with.")


def main(argv: list[str]) -> None:
    """Reads the config, measures, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"not understood: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    from adaperceiver_jax.tasks.make import RunConfig
    from adaperceiver_jax.train.settings import from_config

    try:
        for flag in (_IMAGES, _BATCH, _BATCHES):
            if flag.value < 1:
                raise ValueError(f"--{flag.name}={flag.value}: must be at least 1")
        measure(from_config(RunConfig, _CONFIG.value.to_dict()))
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def measure(config) -> None:
    """Prints a table of the steps, then the whole pipeline's rate."""
    from adaperceiver_jax.data.loading import Loading, cores
    from adaperceiver_jax.data.sample import Source
    from adaperceiver_jax.data.throughput import MadePhotos, on_cores, time_batches, time_stages
    from adaperceiver_jax.train.feed import open_data, prepared

    if _MADE.value:
        source: Source = MadePhotos(_MADE.value)
        fields: tuple[str, ...] = MadePhotos.fields
    else:
        opened = open_data(config.data)
        if opened.rendered:
            raise ValueError(
                "config.data.source='scenes': is rendered, not read; give a data set, or --made=256"
            )
        source, fields = opened.train.source, opened.train.fields
    preparation = prepared(config, fields, None)
    size = " x ".join(map(str, config.data.size))
    print(f"{source!r}, to {size}")
    with on_cores(cores()[:1]):
        stages = time_stages(source, preparation, _IMAGES.value)
        one = time_batches(
            source, preparation, _BATCH.value, _BATCHES.value, Loading(threads=1, prefetch=1)
        )
    print(f"\n{'one core, one thread':28}{'ms an image':>12}{'of it':>8}{'images/s':>10}")
    total, before = max(one, stages[-1].seconds), 0.0
    for name, seconds in [*((s.name, s.seconds) for s in stages), ("whole pipeline", one)]:
        share = (seconds - before) / total
        print(f"{name:28}{seconds * 1e3:12.3f}{share:8.1%}{1 / seconds:10.0f}")
        before = seconds
    loading = Loading(config.data.threads, config.data.workers, config.data.prefetch)
    every = time_batches(source, preparation, _BATCH.value, _BATCHES.value, loading)
    processes = loading.processes() if loading.workers else 0
    kind = ("process", "es") if processes else ("thread", "s")
    count = processes or loading.threads
    used = min(count, len(cores()))
    print(
        f"\nwhole pipeline, {plural(count, *kind)} on {used} of "
        f"{plural(len(cores()), 'core')}: {1 / every:.0f} images/s, {1 / every / used:.0f} a core"
    )
    print(f"batches of {_BATCH.value}; {os.uname().machine}, {cpu()}")


def plural(count: int, name: str, ending: str = "s") -> str:
    """'1 core' or '2 cores'."""
    return f"{count} {name}{ending * (count != 1)}"


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
