"""Trains what a config says: python main.py --config=configs/NAME.py[:runlocal] --workdir=DIR.

Any key can be set on the command line: --config.optimizer.lr=1e-3. The same command goes on where
the run in DIR stopped. With --distributed the same command runs on every host of a pod.
"""

import re
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "All hosts of this pod or cluster take part, each by this command."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.")


def parse(argv: list[str]) -> list[str]:
    """Parses flags as absl does, but says in one line whatever is wrong."""
    from adaperceiver_jax.tasks.make import RunConfig
    from adaperceiver_jax.train.settings import check_key

    try:
        for text in argv[1:]:
            if key := re.match(r"--?config\.([^=]+)", text):
                check_key(RunConfig, key[1])
        rest = flags.FLAGS(argv)
        flags.FLAGS["config"].value.keys()  # a file that could not be read is an error here
    except (ValueError, flags.Error, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        sys.exit([line for line in lines if line and not line.startswith("Pass --help")][-1])
    return rest


def main(argv: list[str]) -> None:
    """Reads the config, makes its task, trains."""
    if len(argv) > 1:
        raise app.UsageError(f"not understood: {' '.join(argv[1:])}")
    from adaperceiver_jax.data.loading import LoaderEndedError
    from adaperceiver_jax.tasks.make import RunConfig, make_task
    from adaperceiver_jax.train import processes
    from adaperceiver_jax.train.loop import NotFiniteError, TooManyBadImagesError, check, train
    from adaperceiver_jax.train.reports import keep_programs
    from adaperceiver_jax.train.settings import from_config
    from adaperceiver_jax.train.workdir import find_workdir

    logging.set_verbosity(logging.WARNING)
    ends = (
        ValueError,
        OSError,
        FloatingPointError,
        NotFiniteError,
        TooManyBadImagesError,
        LoaderEndedError,
    )
    try:
        config = from_config(RunConfig, _CONFIG.value.to_dict())
        workdir = find_workdir(_WORKDIR.value)
        processes.join(config, _WORKDIR.value, _DISTRIBUTED.value)
        keep_programs(config.compilation_cache, workdir)
        checked = check(config)
        train(config, make_task(config), workdir, checked)
        processes.leave()
    except ends as error:
        refused = isinstance(error, ValueError)
        processes.stop(f"{type(error).__name__}: {error}", goes_on=not refused)
    except KeyboardInterrupt:
        processes.stop(f"stopped; {processes.GOES_ON}", status=130)
    except Exception:
        processes.stop(traceback.format_exc())


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
