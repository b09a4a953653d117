"""Which sub-network a ViT is timed against, and that both are timed."""

import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate import machine
from adaperceiver_jax.evaluate.turns import Turns
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


def made_up(programs, repeats):
    """What `take_turns` gives, by a clock on which a call of theirs takes 1 s, and ours 2 s."""
    for call in programs.values():
        call()
    wall = {"its": [1.0] * repeats, "ours": [2.0] * repeats}
    return Turns(wall, wall)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--train",)])
def test_each_is_timed_with_ours(arguments, monkeypatch, capsys):
    """ViTs of one small block, beside the whole of ours or a small one's step, by a made-up clock:
    real ones differ so much in size that their ratio could be printed as 0."""
    names = ("DeiT-S/16", "DeiT-B/16", "DeiT3-L/16")
    small = ap.ViTConfig(embed_dim=64, depth=1, num_heads=1, image_size=32, patch_size=8)
    whole = scratch.get_config
    monkeypatch.setattr(scratch, "get_config", lambda argument: whole(f"runlocal,{argument}"))
    monkeypatch.setattr(vits, "VITS", dict.fromkeys(names, small))
    monkeypatch.setattr(machine, "measure_ceiling", lambda dtype: machine.Ceiling(1e9, 1e9))
    monkeypatch.setattr(vits, "take_turns", made_up)
    vits.main([*arguments, "--batch", "8", "--repeats", "1"])
    *_, a, b, c = capsys.readouterr().out.splitlines()
    for name, line in zip(names, (a, b, c), strict=True):
        assert line.startswith(name)
        assert line.split()[-4] == "0.500"
