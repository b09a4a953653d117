"""Policies on the demo's model: one budget, early exit, learned ones and the oracle side by side.

python -m experiments.policies.run --model runs/demo/stage3 --workdir runs/policies

Sweeps the model over its validation images, learns a policy four ways (REINFORCE as the paper does
it, and a regression of every budget's loss; each looking at the patches and at what the smallest
sub-network says after one block), and compares them all: `policies.csv`, `policies.png` and, with
--seeds, how the learned ones do from other seeds. Called again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEARNED = {
    "REINFORCE on patches": ("reinforce", "patches"),
    "REINFORCE on a peek": ("reinforce", "peek"),
    "regression on patches": ("regress", "patches"),
    "regression on a peek": ("regress", "peek"),
}
TARGETS = (5.3, 5.45, 5.6, 5.8, 6.0, 6.5, 7.0, 8.0)
"""MFLOPs an image that the regressions are to take."""


def call(*command: object) -> None:
    print("$ python", *command, flush=True)
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a finished run, the demo's say")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000, help="of learning each policy (1000)")
    parser.add_argument("--seeds", type=int, default=1, help="each policy is learned from (1)")
    parser.add_argument("--repeats", type=int, default=5, help="times each policy is timed (5)")
    options = parser.parse_args()
    model, workdir = options.model.resolve(), options.workdir.resolve()
    sweep = workdir / "sweep.csv"
    call("tools/sweep.py", "--checkpoint", model, "--out", sweep, "--batch", 64, "--no-latency")
    runs: list[object] = []
    for seed in range(options.seeds):
        for name, (learner, looks_at) in LEARNED.items():
            run = workdir / (name if options.seeds == 1 else f"{name}, seed {seed}")
            argument = f"runlocal,length={options.steps} steps,policy.path={model}"
            argument += f",policy.learner={learner},policy.looks_at={looks_at},seed={seed}"
            argument += ",batch_size=128,data.train_count=20000,data.validation_count=4096"
            argument += ",log_every=100,evaluation.every=100%,checkpoint.every=100%"
            call("main.py", f"--config=configs/policy_in1k.py:{argument}", f"--workdir={run}")
            runs += ["--learned", run]
    targets = ",".join(f"{target / 1e3:g}" for target in TARGETS)
    call(
        *("tools/policies.py", "--checkpoint", model, "--outcomes", sweep.with_suffix(".outcomes")),
        *(*runs, "--targets", targets, "--repeats", options.repeats, "--timed", 1024),
        *("--out", workdir / "policies.csv", "--figure", workdir / "policies.png"),
    )


if __name__ == "__main__":
    main()
