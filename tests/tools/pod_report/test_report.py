"""The verdict on a step, and what is printed of it."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.train.sharding import held
from tests.tools.pod_report.test_program import MESH, read
from tests.tools.pod_report.texts import LOOP, entry
from tools.pod_report.chips import CHIPS
from tools.pod_report.collectives import Collective
from tools.pod_report.hlo import Array
from tools.pod_report.program import Memory, Work
from tools.pod_report.report import Report, checks, replicated
from tools.pod_report.topology import GIB, Topology
from tools.pod_report.traffic import Softmax

pytestmark = pytest.mark.nightly(group="pods")
ALL = (tuple(range(16)),)
TRAINED = 8 * 1024 * 1024
LOSS, OPTIMIZER = "jit(gradients)/transpose(jvp(Model))/reduce_sum", "jit(gradients)/ab,bc->ac"


def reduced(numbers: int, where: str = LOSS) -> Collective:
    return Collective("all-reduce", (Array("bf16", (numbers,)),), ALL, 1, where)


def gathered(what: str, numbers: int, where: str = LOSS) -> Collective:
    arrays = (Array("bf16", (numbers,)),)
    return Collective("all-gather", arrays, ALL, 1, where, what=what, seconds=1e-3)


@pytest.fixture
def lean() -> Report:
    plain = dataclasses.replace(
        read(LOOP),
        memory=Memory(4 * GIB, GIB, 0, 2 * GIB),
        work=Work(1e12, 1.1e12, 2e12, 5e9, 0.02, again=4e11),
        softmaxes=2,
    )
    sent = (
        gathered("params['w']", 2**21),
        reduced(TRAINED),  # scattered over fsdp, and its part over data
        reduced(TRAINED // 4),
    )
    device = jax.devices()[0]
    return Report(
        name="configs/x.py",
        topology=Topology("v5e:4x4", CHIPS["v5e"], (device,)),
        layout=MESH,
        batch=64,
        model_flops=7e11,
        trained=TRAINED,
        gradients=dataclasses.replace(plain, sent=sent),
        apply=dataclasses.replace(plain, name="apply", work=Work(1e11, 1e11, 1e11, 5e9, 0.02)),
        replicated=(),
        meant=frozenset(),
        beside=(0.5 * GIB, 0.25 * GIB),
    )


def wrong(report: Report) -> list[str]:
    return [check.what for check in checks(report) if not check.good]


def change(report: Report, **changes) -> Report:
    """The report, its gradients' program changed."""
    return dataclasses.replace(report, gradients=dataclasses.replace(report.gradients, **changes))


def waiting(size: int) -> Collective:
    """A reduction in a loop that waits for data, as numbers are drawn."""
    return dataclasses.replace(reduced(size // 2, OPTIMIZER), waits=True)


def test_a_lean_step_has_nothing_wrong(lean):
    assert wrong(lean) == []
    # The optimizer sends what it wants, and random numbers are drawn in loops that wait for data.
    its = reduced(TRAINED, OPTIMIZER), gathered("", 2**21, OPTIMIZER), waiting(4)
    assert wrong(change(lean, sent=(*lean.gradients.sent, *its))) == []


def host(report: Report) -> Report:
    """Each of the ways to the host, and a call that goes nowhere."""
    text = entry(
        "%x = f32[4]{0} parameter(0)",
        "%a = (f32[4]{0}, token[]) infeed(%x)",
        "%b = f32[4]{0:S(5)} copy(%x)",
        '%c = f32[4]{0} custom-call(%x), custom_call_target="MoveToHost"',
        '%d = f32[4]{0} custom-call(%x), custom_call_target="xla_python_cpu_callback"',
        '%e = f32[4]{0} custom-call(%x), custom_call_target="ConcatBitcast"',
    )
    transfers = read(text).host
    assert [visit.instruction.name for visit in transfers] == [*"abcd"]
    return change(report, host=transfers)


def more(report: Report, sent: Collective) -> Report:
    return change(report, sent=(*report.gradients.sent, sent))


def without_softmax(report: Report) -> Report:
    none = dataclasses.replace(report.apply, softmaxes=0)
    return dataclasses.replace(change(report, softmaxes=0), apply=none)


SPILLED = (Softmax((8, 8), "blocks/attn/exp", 1e9),)
WHOLE = (("constants/head", 2**24),)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: change(r, memory=Memory(14 * GIB, 2 * GIB, 0, 0)), "it fits"),
        (lambda r: dataclasses.replace(r, replicated=WHOLE), "no large array is replicated"),
        (host, "nothing goes to the host"),
        (lambda r: more(r, gathered("batch['image']", 2**21)), "gathers nothing but weights"),
        (lambda r: more(r, reduced(TRAINED)), "gradients are reduced once"),
        (lambda r: change(r, sent=()), "gradients are reduced once"),
        (lambda r: change(r, kept=(("opt_state", 2.0**21),)), "donated memory is used again"),
        (lambda r: change(r, softmaxes=3, spilled=SPILLED), "softmax stays on the chip"),
        (without_softmax, "softmax stays on the chip"),
        (
            lambda r: change(r, work=dataclasses.replace(r.gradients.work, again=3e11)),
            "90% of FLOPs are the model's",
        ),
        (lambda r: change(r, waiting=("loss/dot_general",)), "loops of unknown length"),
        (lambda r: more(r, waiting(2048)), "loops of unknown length"),
        (lambda r: change(r, opaque=("tpu_custom_call attn",)), "no kernel hides its FLOPs"),
    ],
)
def test_each_fault_is_found_and_no_other(lean, spoil, said):
    [what] = wrong(spoil(lean))
    assert said in what
    allowed = dataclasses.replace(lean, replicated=WHOLE, meant=frozenset({"constants/head"}))
    assert wrong(allowed) == []  # a rule wants it whole


def test_times_are_of_both_programs_with_what_is_sent_beside_or_after(lean):
    assert lean.needed == 5.5 * GIB
    assert lean.seconds == pytest.approx((0.04, 0.04 + lean.sending(lean.gradients)))
    sent = [dataclasses.replace(s, seconds=1.0) for s in lean.gradients.sent]
    assert change(lean, sent=tuple(sent)).seconds == pytest.approx((3.02, 3.04))
    assert lean.mfu(0.04) == pytest.approx(7e11 / 0.04 / 197e12)


def test_large_arrays_that_every_chip_holds_whole_are_listed_the_largest_first():
    mesh = Mesh(np.array(jax.devices()[:2]), ("fsdp",))

    def shape(size, *axes):
        sharding = NamedSharding(mesh, P(*axes))
        return jax.ShapeDtypeStruct((size,), "float32", sharding=sharding)

    tree = {"a": shape(2**20), "b": shape(2**22), "c": shape(2**22, "fsdp")}
    assert replicated({**tree, "small": shape(2**20 - 1)}) == (("b", 2**24), ("a", 2**22))
    assert held(tree) == 2**22 + 2**24 + 2**23
