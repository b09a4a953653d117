"""The scripts of experiments/paper: figures from small sweeps, and the paper's own tables."""

import itertools
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.points import DensePoint, Point, csv_text, kind_of_tokens
from experiments.dense_flops import run as dense_flops
from experiments.paper import counter, figures, table_5, table_6

DOCS = Path(__file__).resolve().parents[2] / "docs"
TRAINED = (4, 8, 16)
TOKENS = (2, 4, 6, 8, 12, 16, 24)
DRAWN = {"2_8": "classify", "3": "classify", "10": "classify", "14": "depth"}
"""A figure of each kind, and the sweep it is drawn from."""


def points(latency=True):
    """A classifier's sub-networks; without latency as tools/sweep.py --no-latency leaves them."""
    measured = dict(batch=8, device="cpu") if latency else {}
    found = []
    for t, w, l in itertools.product(TOKENS, (12, 24), (1, 2, 3)):
        kind, cost, value = kind_of_tokens(t, TRAINED), t * w * l / 100, 0.9 - 1 / (t + l) - 1 / w
        ms = 1 + 9 * cost if latency else None
        found.append(Point(t, w, l, value, cost, None, kind, ms, **measured))
    return found


def dense_points(metric):
    return [
        DensePoint(
            *(p.num_tokens, p.width, p.depth, p.tokens_are, "network", "block", False),
            *({metric: p.accuracy}, p.gflops, 1.0),
        )
        for p in points()
    ]


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """A CSV per task, and one of a classifier without latency."""
    root = tmp_path_factory.mktemp("sweeps")
    texts = {
        "classify": csv_text(points()),
        "unmeasured": csv_text(points(latency=False)),
        "segment": csv_text(dense_points("miou")),
        "depth": csv_text(dense_points("eigen_rmse")),
    }
    for name, text in texts.items():
        (root / f"{name}.csv").write_text(text)
    return {name: root / f"{name}.csv" for name in texts}


def colours(path):
    """Number of colours that cover more than 20 pixels each."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return (np.unique(pixels, axis=0, return_counts=True)[1] > 20).sum()


def refusal(script, *arguments):
    """The one line that a script ends with."""
    with pytest.raises(SystemExit) as stopped:
        script.main([str(argument) for argument in arguments])
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


@pytest.mark.slow
def test_figures_are_drawn_from_a_sweep(sweeps, tmp_path, capsys):
    for name, task in DRAWN.items():
        out = tmp_path / "new" / f"{name}.png"
        figures.main([name, str(sweeps[task]), "--out", str(out)])
        assert capsys.readouterr().out == f"{out}\n"
        assert colours(out) > 5, name
        assert min(Image.open(out).size) > 600, name
    figures.main(["2_8", "--out", str(out)])  # the paper's models alone
    assert colours(out) > 5


def test_flops_need_no_latency_where_there_is_a_choice(sweeps, tmp_path, capsys):
    out = tmp_path / "a.png"
    said = refusal(figures, "3", sweeps["unmeasured"], "--out", out)
    assert "unmeasured.csv: " in said
    assert "not measured at 2 tokens, width 12, depth 3" in said
    assert not out.exists()
    figures.main(["3", str(sweeps["unmeasured"]), "--x", "gflops", "--out", str(out)])
    assert colours(out) > 5
    with pytest.raises(SystemExit):
        figures.main(["4", str(sweeps["segment"]), "--x", "gflops"])
    assert "figure 4 takes no --x; figures 3, 9, 10 do" in capsys.readouterr().err


def test_a_mistake_in_drawing_is_no_refusal_of_the_sweep(sweeps, tmp_path, monkeypatch):
    def mistaken(*_):
        raise ValueError("a mistake")

    monkeypatch.setattr(figures.figures, "plot_tokens", mistaken)
    with pytest.raises(ValueError, match="a mistake"):
        figures.main(["10", str(sweeps["classify"]), "--out", str(tmp_path / "a.png")])


def test_files_that_are_no_sweep_of_the_figures_task_are_refused(sweeps, tmp_path):
    path = tmp_path / "other.csv"
    assert "other.csv" in refusal(figures, "2_8", path)
    path.write_text("colour,size\nred,3\n")
    assert "other.csv: has no column num_tokens" in refusal(figures, "2_8", path)
    path.write_text(sweeps["classify"].read_text().splitlines()[0] + "\n")
    assert "holds no sub-network" in refusal(figures, "2_8", path)
    said = refusal(figures, "4", sweeps["depth"])
    assert "has no column miou; must be a sweep of the figure's task" in said


def test_the_papers_table_5_is_whole_and_rebuilt_to_the_printed_digit():
    printed = table_5.read_table()
    assert len({row.model for row in printed}) == 62
    named = {**figures.ADAPTIVE, **figures.SINGLE}
    assert named.keys() <= {figures.family(row.model) for row in printed}
    for r in map(table_5.rebuild, printed):
        misprinted = r.printed.model == table_5.MISPRINT
        assert table_5.agrees(r.rebuilt, r.printed.forward_gflops) is not misprinted
        backward = r.printed.backward_gflops
        if r.rebuilt_backward is not None:
            # rounded; those printed without decimals are rounded or cut
            within = 0.9 if "." not in str(backward) else 0.06
            assert r.rebuilt_backward == pytest.approx(float(backward), abs=within)
        assert r.ours > r.ours_linear > 0.8 * r.ours
    found = [table_5.agrees(value, Decimal("16.3")) for value in (16.2501, 16.24)]
    assert found == [True, False]


def test_the_closed_formula_is_the_packages_count_of_a_vit():
    sizes = {"DeiT-B/16": (768, 12, 12, 16), "ViT-H/14": (1280, 32, 16, 14)}
    for name, (dim, depth, heads, patch) in sizes.items():
        config = ap.ViTConfig(
            embed_dim=dim, depth=depth, num_heads=heads, patch_size=patch, num_classes=1000
        )
        model = counter.vit(name)
        ours = 2 * (model.linear() + model.attention())
        assert ours == pytest.approx(ap.flops(config).total / 1e9, rel=1e-12)


def test_tables_are_printed_and_written_and_stand_in_the_docs(tmp_path, capsys):
    page, out = (DOCS / "paper_tables.md").read_text(), tmp_path / "ours.csv"
    for script, rows in ((table_5, 62), (table_6, 15)):
        script.main(["--out", str(out)])
        said = capsys.readouterr().out
        assert len(said.splitlines()) == 2 + rows
        assert len(out.read_text().splitlines()) == 1 + rows
        assert said in page
    assert "folder" in refusal(table_5, "--out", tmp_path / "folder" / "a.csv")
    capsys.readouterr()
    dense_flops.main()
    assert capsys.readouterr().out == (DOCS / "dense_flops.md").read_text()


def test_implied_depths_and_tokens_invert_the_counter():
    for t, l in ((32, 7), (256, 21)):
        once, each = table_6.mean_depths(t, counter.classifier(t, l))
        assert once == pytest.approx(l, abs=1e-6)
        assert 0 < each < once
    assert table_6.mean_tokens(counter.classifier(80)) == pytest.approx(80, abs=1e-6)


def test_our_policies_stand_under_the_papers_and_other_files_are_refused(tmp_path, capsys):
    head = "policy,accuracy,gflops,choosing_gflops,ms,images\n"
    path, out = tmp_path / "policies.csv", tmp_path / "ours.csv"
    path.write_text(f"{head}RL,0.6,0.0019,0.0002,,512\n")
    table_6.main([str(path), "--out", str(out)])
    assert "| RL | 60 | 0.0019 | 0.0002 | - | 512 |" in capsys.readouterr().out
    assert out.read_text().splitlines()[1] == "RL,60,0.0019,0.0002,,512"
    for text, said in (
        ("policy,accuracy\na,1\n", "has no column gflops; needs policy, accuracy, gflops"),
        (head, "holds no row"),
        (f"{head}a,high,1,0,1,1\n", "line 2: accuracy='high': must be a number"),
    ):
        path.write_text(text)
        assert re.search(rf"policies\.csv\b.*{said}", refusal(table_6, path))
    path.write_text(table_5.TABLE.read_text().replace("5.7", "many", 1))
    with pytest.raises(ValueError, match=r"policies\.csv, line 2: must hold numbers"):
        table_5.read_table(path)
