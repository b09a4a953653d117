"""Runs main.py and interferes: python -m tests.train.killed MOMENT STEP [main.py's flags].

MOMENT: 'logged' (the step's row is written, nothing of it saved), 'saving' (its checkpoint is being
written), 'saved' (it was), 'handing-on' (the run is over, the folder model/ is not there yet),
'asked' (as 'logged', but a SIGTERM, and it may go on), 'interrupted' (a Ctrl-C, likewise),
'evaluating' (a SIGTERM as the step's evaluation begins, likewise), 'failing' (as 'logged', but an
error of its own), 'full' (as 'logged', but no file of this process can grow any more, and it goes
on), or 'woven': nothing happens, but the mesh takes a device of each process in turn, as one on a
pod's torus does.
"""

import os
import resource
import runpy
import signal
import sys

import jax

import adaperceiver_jax.train.loop as loop
from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.reports import Writer


def send(number: signal.Signals):
    return lambda *_: os.kill(os.getpid(), number)


def after(owner, name: str, number, what) -> None:
    """Has `what` happen when a method returns from a call that concerns the step."""
    original = getattr(owner, name)

    def method(*arguments, **keywords):
        result = original(*arguments, **keywords)
        if number(*arguments) == STEP:
            what(arguments[0])
        return result

    setattr(owner, name, method)


def wait_and_die(checkpoints) -> None:
    checkpoints.wait()
    send(signal.SIGKILL)()


def fail(_) -> None:
    raise OSError("part-7: cannot be read")


def fill(_) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def ask_in_evaluation() -> None:
    original = loop.evaluate

    def evaluate(task, programs, state, *rest):
        if int(state.step) == STEP:
            send(signal.SIGTERM)()
        return original(task, programs, state, *rest)

    loop.evaluate = evaluate


def weave() -> None:
    original = jax.make_mesh

    def make_mesh(*arguments, devices=None, **keywords):
        devices = jax.devices() if devices is None else devices
        woven = sorted(
            devices, key=lambda device: (device.id % jax.local_device_count(), device.id)
        )
        return original(*arguments, devices=woven, **keywords)

    jax.make_mesh = make_mesh


WRITTEN = {
    "logged": send(signal.SIGKILL),
    "asked": send(signal.SIGTERM),
    "interrupted": send(signal.SIGINT),
    "failing": fail,
    "full": fill,
}
SAVED = {"saving": send(signal.SIGKILL), "saved": wait_and_die}
MOMENT, STEP = sys.argv[1], int(sys.argv[2])
if MOMENT in WRITTEN:
    after(Writer, "write", lambda _, step, *rest: step, WRITTEN[MOMENT])
elif MOMENT in SAVED:
    after(Checkpoints, "save", lambda _, state, step, *rest: step, SAVED[MOMENT])
elif MOMENT == "evaluating":
    ask_in_evaluation()
elif MOMENT == "woven":
    weave()
elif MOMENT == "handing-on":
    loop.save_pretrained = send(signal.SIGKILL)
else:
    sys.exit(f"{MOMENT!r}: no such moment")
sys.argv = ["main.py", *sys.argv[3:]]
runpy.run_path("main.py", run_name="__main__")
