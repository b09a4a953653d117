"""Policies on the demo's model: one budget, early exit, learned ones and the oracle side by side.

python -m experiments.policies.run --model runs/demo/stage3 --workdir runs/policies

Sweeps the model over 20,000 images that it was not trained on, learns a policy over tokens four
ways (REINFORCE as the paper does it, and a regression of every budget's loss; each looking at the
patches and at what the smallest sub-network says after one block) and one over tokens, width and
depth, and compares them all: `policies.csv` and `policies.png`. Called again, it goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("--set", "data.validation_count=20000")
TOKENS = "2,3,4,6,8,16,32"
"""Token counts of the baselines: those that the demo trains, and two between them."""
SETTINGS = {
    "patches": "length=1000 steps",
    "peek": "length=6000 steps,optimizer.lr=2e-3",
}
"""Settings of learning, by what a network looks at: one on patches takes far longer per step."""
LEARNED = {
    "REINFORCE on patches": ("reinforce", "patches", "tokens"),
    "REINFORCE on a peek": ("reinforce", "peek", "tokens"),
    "regression on patches": ("regress", "patches", "tokens"),
    "regression on a peek": ("regress", "peek", "tokens"),
    "regression on a peek, all axes": ("regress", "peek", "tokens", "width", "depth"),
}
TARGETS = (5.2, 5.4, 5.6, 5.8, 7.0)
"""MFLOPs an image that the regressions are to take, those that are within a policy's reach."""


def call(*command: object) -> None:
    print("$ python", *command, flush=True)
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a finished run, the demo's say")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5, help="times each policy is timed (5)")
    options = parser.parse_args()
    model, workdir = options.model.resolve(), options.workdir.resolve()
    sweep = workdir / "sweep.csv"
    some = (*IMAGES, "--tokens", TOKENS)
    call("tools/sweep.py", "--checkpoint", model, *some, "--no-latency", "--out", sweep)
    runs: list[object] = []
    for name, (learner, looks_at, *axes) in LEARNED.items():
        argument = f"runlocal,policy.path={model},policy.learner={learner}"
        argument += f",policy.looks_at={looks_at},{SETTINGS[looks_at]},batch_size=128"
        argument += ",data.train_count=20000,data.validation_count=4096,log_every=100"
        argument += ",evaluation.every=100%,checkpoint.every=100%"
        run = workdir / name
        config = f"--config=configs/policy_in1k.py:{argument}"
        call("main.py", config, f"--config.policy.axes={tuple(axes)}", f"--workdir={run}")
        runs += ["--learned", run]
    call(
        *("tools/policies.py", "--checkpoint", model, *some),
        *("--outcomes", sweep.with_suffix(".outcomes"), *runs, "--taus", "0.9"),
        *("--targets", ",".join(f"{target / 1e3:g}" for target in TARGETS)),
        *("--repeats", options.repeats, "--timed", 1024),
        *("--out", workdir / "policies.csv", "--figure", workdir / "policies.png"),
    )


if __name__ == "__main__":
    main()
