"""FLOPs of matrix products, counted in compiled programs."""

import pytest

from tests.tools.pod_report.texts import entry
from tools.pod_report.hlo import parse
from tools.pod_report.matmuls import Product, product

pytestmark = pytest.mark.nightly(group="pods")


def convolution(left: str, right: str, out: str, attributes: str) -> Product:
    module = parse(
        entry(
            f"%l = {left} parameter(0)",
            f"%r = {right} parameter(1)",
            f"%c = {out} convolution(%l, %r), {attributes}",
        )
    )
    found = product(module.entry, module.entry.root)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("left", "right", "out", "attributes", "expected"),
    [
        (  # (16 x 256, 832) by (832, 2138)
            *("bf16[16,256,832]{2,1,0}", "bf16[832,2138,1]{1,0,2}", "bf16[16,256,2138]{2,1,0}"),
            "window={size=1}, dim_labels=0bf_io0->0bf",
            (1, 16 * 256, 832, 2138),
        ),
        (  # scores of 16 samples and 13 heads: a batch of 208
            *("bf16[16,64,13,32]{3,2,1,0}", "bf16[16,24,13,32]{3,2,1,0}"),
            "f32[16,13,64,24]{3,2,1,0}",
            "window={size=16x13 stride=15x12 lhs_dilate=16x13}, dim_labels=0b1f_0o1i->01bf",
            (16 * 13, 64, 32, 24),
        ),
        (  # an axis that both have and the result has not
            *("bf16[16,832,256]{2,1,0}", "bf16[16,256,128]{2,1,0}", "f32[832,128,1]{2,1,0}"),
            "window={size=16}, dim_labels=0bf_0io->bf0",
            (1, 832, 16 * 256, 128),
        ),
        (  # a convolution that is one: 3 x 3, its edges padded
            *("f32[2,5,5,3]{3,2,1,0}", "f32[3,3,3,7]{3,2,1,0}", "f32[2,5,5,7]{3,2,1,0}"),
            "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            (1, 2 * 5 * 5, 3 * (13 / 5) ** 2, 7),
        ),
        (
            *("f32[2,8,6]{2,1,0}", "f32[1,2,9]{2,1,0}", "f32[2,8,9]{2,1,0}"),
            "window={size=1}, dim_labels=b0f_0io->b0f, feature_group_count=3",
            (3, 16, 2, 3),
        ),
    ],
)
def test_a_product_is_seen_through_its_disguise(left, right, out, attributes, expected):
    found = convolution(left, right, out, attributes)
    groups, rows, inner, columns = expected
    assert found.flops == pytest.approx(2 * groups * rows * inner * columns)
    assert found.groups == groups
    assert {found.rows, found.columns} == {rows, columns}
    assert found.inner == pytest.approx(inner)


@pytest.mark.parametrize(
    ("left", "right", "precision", "passes"),
    [
        ("bf16", "bf16", ", operand_precision={highest,highest}", 1),
        ("f32", "f32", "", 1),
        ("f32", "f32", ", operand_precision={highest,highest}", 6),
        ("f32", "bf16", ", operand_precision={highest,highest}", 3),
    ],
)
def test_float32_passes_the_unit_as_often_as_its_precision_asks(left, right, precision, passes):
    arrays = f"{left}[4,8]{{1,0}}", f"{right}[8,2]{{1,0}}", "f32[4,2]{1,0}"
    assert convolution(*arrays, f"dim_labels=bf_io->bf{precision}").passes == passes
