"""Which sub-network a ViT is timed against, and that both are timed."""

import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate import machine
from configs import scratch
from experiments.side_by_side import vits


def test_a_vit_stands_against_the_fewest_tokens_that_are_as_right():
    found = vits.accuracies()
    tokens = (32, 64, 96, 128, 192, 256)
    against = {name: vits.fewest_tokens(found[name], found, tokens) for name in vits.VITS}
    assert against == {
        "DeiT-Ti/16": 32,
        "DeiT-S/16": 32,
        "DeiT-B/16": 32,
        "DeiT3-S/16": 32,
        "DeiT3-B/16": 64,
        "DeiT3-L/16": 96,
        "FlexViT-B (ps=48)": 32,
        "FlexViT-B (ps=40)": 32,
        "FlexViT-B (ps=30)": 32,
        "FlexViT-B (ps=24)": 32,
        "FlexViT-B (ps=20)": 64,
        "FlexViT-B (ps=16)": 96,
        "FlexiViT-L (ps=48)": 32,
        "FlexiViT-L (ps=40)": 32,
        "FlexiViT-L (ps=30)": 32,
        "FlexiViT-L (ps=24)": 64,
        "FlexiViT-L (ps=20)": 128,
        "FlexiViT-L (ps=16)": 192,
    }
    assert vits.fewest_tokens(99, found, tokens) is None


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--train",)])
def test_each_is_timed_with_ours(arguments, monkeypatch, capsys):
    """ViTs of one small block; a call is beside the whole of ours, a step beside a small one's."""
    names = ("DeiT-S/16", "DeiT-B/16", "DeiT3-L/16")
    small = ap.ViTConfig(embed_dim=64, depth=1, num_heads=1, image_size=32, patch_size=8)
    whole = scratch.get_config
    monkeypatch.setattr(scratch, "get_config", lambda argument: whole(f"runlocal,{argument}"))
    monkeypatch.setattr(vits, "VITS", dict.fromkeys(names, small))
    monkeypatch.setattr(machine, "measure_ceiling", lambda dtype: machine.Ceiling(1e9, 1e9))
    vits.main([*arguments, "--batch", "8", "--repeats", "1"])
    *_, a, b, c = capsys.readouterr().out.splitlines()
    for name, line in zip(names, (a, b, c), strict=True):
        assert line.startswith(name)
        assert float(line.split()[-4]) > 0
