"""Writes a data set as ArrayRecord files, which are read at random from a local or mounted disk.

python tools/prepare_data.py folder:photos /data/photos --validation 10%
python tools/prepare_data.py 'wds:/tars/imagenet12k-train-{0000..1023}.tar' /data/imagenet12k \\
    --validation 'wds:/tars/imagenet12k-validation-{0000..0511}.tar' --expect imagenet12k
python main.py --config=configs/stage1_tokens.py --workdir=runs/stage1 --config.data.dir=/data

Every image is decoded once; those that cannot be are left out, named here and in dataset.json. The
same command goes on where it was stopped.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHOWN = 20


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from adaperceiver_jax.data.prepare import KNOWN, PER_SHARD

    out = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("source", help="folder:PATH, wds:SHARDS or tfds:NAME, as config.data.source")
    out.add_argument("folder", type=Path, help="where the files go; a new one")
    out.add_argument(
        "--validation", default="", help="another source, or a part held out: 10%%; else its own"
    )
    out.add_argument("--dir", default="", help="where TFDS has its data sets")
    out.add_argument(
        "--expect",
        choices=sorted(KNOWN),
        help="ends at once unless there are as many images and classes as were published",
    )
    out.add_argument("--per-shard", type=int, default=PER_SHARD, help="images a file (%(default)s)")
    out.add_argument("--workers", type=int, default=0, help="processes; 0, the default: one a core")
    return out


def main() -> None:
    """Reads the command line, writes."""
    options = parser().parse_args()
    from adaperceiver_jax.data.loading import cores
    from adaperceiver_jax.data.prepare import check_known, prepare
    from adaperceiver_jax.data.sources import SCENES, open_source

    try:
        for name in ("per_shard", "workers"):
            least = 1 if name == "per_shard" else 0
            if getattr(options, name) < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}={getattr(options, name)}: must be at least {least}")
        if options.source == SCENES:
            raise ValueError("scenes are rendered as they are needed; there is nothing to prepare")
        opened = open_source(options.source, options.dir, options.validation)
        if options.expect:
            check_known(opened, options.expect)
        workers = options.workers or len(cores())
        done = prepare(opened, options.folder, options.per_shard, workers)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    if done.bad:
        print(f"{len(done.bad)} images do not decode and were left out:")
        print("\n".join(f"  {line}" for line in done.bad[:SHOWN]))
        if len(done.bad) > SHOWN:
            print(f"  ... all are listed in {options.folder / 'dataset.json'}")
    counts = ", ".join(f"{count:,} {name}" for name, count in done.counts.items())
    print(f"{options.folder}: {counts} images. Train on them with")
    print(f"  --config.data.source=array_record:{os.path.abspath(options.folder)}")


if __name__ == "__main__":
    main()
