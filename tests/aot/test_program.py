"""A compiled program, counted: work, time, softmaxes, donated memory."""

import itertools
from collections.abc import Callable

import pytest

from adaperceiver_jax.aot import program as program_module
from adaperceiver_jax.aot.chips import CHIPS, Layout
from adaperceiver_jax.aot.program import Memory, Program, Sent, read_program
from tests.aot.texts import LOOP, entry

V5E = CHIPS["v5e"]
PLACES = tuple((x, y, 0) for x in range(4) for y in range(4))
MESH = Layout((("data", 4), ("fsdp", 4)), PLACES)
MEMORY = Memory(1, 2, 3, 4)


def read(text: str, layout: Layout = MESH, donated: str = "state") -> Program:
    return read_program("gradients", text, MEMORY, donated, layout, V5E)


def matmul(size: int, kind: str = "bf16", precision: str = "") -> str:
    array = f"{kind}[{size},{size}]{{1,0:T(8,128)}}"
    return entry(
        f"%x = {array} parameter(0)",
        f"%y = {array} convolution(%x, %x), dim_labels=bf_io->bf{precision}",
    )


def test_a_large_product_takes_as_long_as_the_peak_allows():
    work = read(matmul(8192)).work
    assert work.flops == work.tiled == work.passes == 2 * 8192**3
    assert work.seconds == pytest.approx(work.flops / V5E.flops)


def test_a_small_one_as_long_as_its_memory_takes():
    work = read(matmul(128)).work
    assert work.hbm == 3 * 2 * 128**2
    assert work.seconds == pytest.approx(work.hbm / V5E.hbm_bandwidth)


def test_float32_products_take_six_passes():
    work = read(matmul(8192, "f32", ", operand_precision={highest,highest}")).work
    assert (work.tiled, work.passes) == (2 * 8192**3, 12 * 8192**3)
    assert work.seconds == pytest.approx(work.passes / V5E.flops)


def test_filling_up_tiles_is_work_too():
    work = read(matmul(200)).work
    assert work.flops == 2 * 200**3
    assert work.tiled == 2 * 200 * 256 * 256


def test_prefetches_use_the_bandwidth_that_is_left():
    prefetch = (
        "%f = f32[8192,8192]{1,0} parameter(1)",
        "%s = (f32[8192,8192]{1,0:S(1)}, f32[8192,8192]{1,0}, u32[]) copy-start(%f)",
        "%d = f32[8192,8192]{1,0:S(1)} copy-done(%s)",
    )
    x = "%x = bf16[8192,8192]{1,0} parameter(0)"
    product = "%y = bf16[8192,8192]{1,0} convolution(%x, %x), dim_labels=bf_io->bf"
    busy = read(entry(x, *prefetch, product)).work
    assert busy.seconds == pytest.approx(2 * 8192**3 / V5E.flops)
    idle = read(entry(x, *prefetch)).work
    assert idle.seconds == pytest.approx(4 * 8192**2 / V5E.hbm_bandwidth)


def test_loops_count_every_round():
    work = read(LOOP).work
    assert work.hbm == pytest.approx(21 * 3 * 4 * 8 * 128, rel=1e-2)  # and the counter
    assert not read(LOOP).unknown
    waits = LOOP.replace("%next = s32[]{:T(128)} add", "%next = s32[] negate")
    assert [loop.name for loop in read(waits).unknown] == ["loop"]


def test_products_in_loops_that_wait_for_data_are_named():
    square = "f32[128,128]{1,0:T(8,128)}"
    text = LOOP.replace("f32[8,128]{1,0:T(8,128)}", square).replace(
        f"{square} add(%x.1, %x.1)", f"{square} convolution(%x.1, %x.1), dim_labels=bf_io->bf"
    )
    assert read(text).work.flops == 21 * 2 * 128**3
    assert read(text).waiting == ()
    waits = read(text.replace("%next = s32[]{:T(128)} add", "%next = s32[] negate"))
    assert waits.waiting == ("twice",)


def test_products_that_are_done_again_are_told_apart():
    again = matmul(256).replace(
        "bf_io->bf", 'bf_io->bf, metadata={op_name="a/rematted_computation/b"}'
    )
    assert read(again).work.again == read(again).work.flops == 2 * 256**3
    assert read(matmul(256)).work.again == 0


def test_kernels_that_nobody_counts_are_named():
    text = entry(
        "%x = f32[8,128]{1,0} parameter(0)",
        '%y = f32[8,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", '
        'metadata={op_name="attn/flash"}',
        '%z = f32[8,128]{1,0} custom-call(%y), custom_call_target="ConcatBitcast"',
    )
    assert read(text).opaque == ("tpu_custom_call attn/flash",)
    assert read(LOOP).opaque == ()


def gather(groups: str) -> str:
    return entry(
        "%x = f32[1024,1024]{1,0} parameter(0), metadata={op_name=\"params['w']\"}",
        f"%g = f32[4096,1024]{{1,0}} all-gather(%x), replica_groups={groups}, dimensions={{0}}",
    )


def test_collectives_take_the_links_of_the_torus_axes_they_span():
    (one,) = read(gather("[4,4]<=[16]")).sent
    assert (one.axes, one.what, one.bytes) == ("fsdp", "params['w']", 4 * 4096 * 1024)
    # Sides of four close in no ring on this chip: half of an axis' links.
    assert one.seconds == pytest.approx(one.bytes * 3 / 4 / (V5E.ici_bandwidth / 4))
    (both,) = read(gather("[1,16]<=[16]")).sent
    assert both.seconds == pytest.approx(both.bytes * 15 / 16 / (V5E.ici_bandwidth / 2))


def torus(*sides: int) -> Layout:
    """A mesh of one axis over it."""
    places = tuple((*place, 0) for place in itertools.product(*map(range, sides)))
    return Layout((("data", len(places)),), places)


def exchange(layout: Layout, chips: int) -> Sent:
    """Of a MiB each of the first `chips`, two arrays a chip in turn."""
    groups = f"[{layout.size // chips},{chips}]<=[{layout.size}]"
    text = entry(
        "%x = f32[512,512]{1,0} parameter(0)",
        f"%g = f32[512,512]{{1,0}} all-to-all(%x), replica_groups={groups}, dimensions={{0}}",
    )
    (sent,) = read(text, layout).sent
    return sent


def test_what_is_exchanged_over_two_axes_goes_a_quarter_around_each():
    axis = V5E.ici_bandwidth / 2
    whole, ring = exchange(torus(16, 16), 256), exchange(torus(16, 16), 16)
    assert ring.seconds == pytest.approx(4 * 2**20 / axis)
    assert whole.seconds == pytest.approx(ring.seconds)  # eight links, of twice as many
    # Rows of four: half of a ring's links, on both axes.
    assert exchange(torus(4, 4), 16).seconds == pytest.approx(2 * 2**20 / axis)
    # The ring of sixteen takes longer than the row of eight has.
    assert exchange(torus(8, 16), 128).seconds == pytest.approx(4 * 2**20 / axis)


def permuted(layout: Layout, to: Callable[[int, int], tuple[int, int]]) -> Sent:
    """Every chip sends a MiB to where `to` says, on a torus of two axes."""
    numbers = {place[:2]: number for number, place in enumerate(layout.coordinates)}
    pairs = ",".join(f"{{{n},{numbers[to(*place)]}}}" for place, n in numbers.items())
    text = entry(
        "%x = f32[512,512]{1,0} parameter(0)",
        f"%g = f32[512,512]{{1,0}} collective-permute(%x), source_target_pairs={{{pairs}}}",
    )
    (sent,) = read(text, layout).sent
    return sent


@pytest.mark.parametrize(
    ("sides", "to", "most"),
    [
        ((16, 16), lambda x, y: (x, (y + 1) % 16), 1),
        ((16, 16), lambda x, y: (x, (y - 3) % 16), 3),
        ((16, 16), lambda x, y: ((x + 8) % 16, (y + 1) % 16), 8),
        ((16, 16), lambda x, y: (15 - x, y), 4),  # two pairs in the middle, and around
        ((4, 4), lambda x, y: (x, (y + 1) % 4), 1),  # back along the row, against the others
        ((4, 4), lambda x, y: ((x + 2) % 4, y), 2),
        ((4, 4), lambda x, y: (x, y), 1),
    ],
)
def test_a_permutation_takes_as_long_as_its_fullest_link(sides, to, most):
    sent = permuted(torus(*sides), to)
    assert sent.seconds == pytest.approx(most * 2**20 / (V5E.ici_bandwidth / 4))


@pytest.mark.parametrize(
    ("kind", "sides", "spanned", "links"),
    [
        ("v5e", (16, 16, 1), (0,), 1),
        ("v5e", (16, 16, 1), (0, 1), 2),
        ("v5e", (8, 16, 1), (0, 1), 1.5),
        ("v6e", (8, 8, 1), (1,), 0.5),
        ("v4", (4, 4, 4), (0, 2), 2),
        ("v4", (4, 4, 8), (2,), 1),
        ("v4", (2, 2, 4), (2,), 0.5),
        ("v4", (2, 2, 1), (0, 1), 1),
    ],
)
def test_short_sides_are_rows_and_long_ones_rings(kind, sides, spanned, links):
    places = tuple(itertools.product(*map(range, sides)))
    mesh = Layout((("data", len(places)),), places)
    group = [
        number
        for number, place in enumerate(places)
        if not any(place[axis] for axis in range(3) if axis not in spanned)
    ]
    assert mesh.links(group, CHIPS[kind]) == links
    if kind == "v5e" and links == 1:  # half of a ring is a row
        assert mesh.links(group[: len(group) // 2], CHIPS[kind]) == 0.5


def test_donated_arguments_that_nothing_takes_the_place_of_are_named():
    assert read(LOOP).donated == 1
    assert read(LOOP).kept == ()
    kept = read(LOOP.replace("(1, {}, may-alias)", "(0, {}, may-alias)")).kept
    assert kept == (("state.params['w']", 4 * 8 * 128),)


@pytest.mark.parametrize(
    ("said", "needs"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (40.40G) exceeds available HBM (15.75G).",
            40.4,
        ),
        ("the total memory required for HLO temporaries (2.00T) exceeds available HBM (1G)", 2048),
        ("Ran out of memory in memory space hbm. Used 20.18G of 15.75G hbm.", 20.18),
        ("INTERNAL: something else", None),
    ],
)
def test_what_the_compiler_says_of_too_large_a_program_is_understood(said, needs):
    assert program_module._needed(said) == needs
