"""The sub-network that a ViT is timed against, and that both are timed."""

import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.turns import Turns
from configs import scratch
from experiments.side_by_side import vits
from tools import speed


def test_a_vit_stands_against_the_fewest_tokens_that_are_as_right():
    found = vits.accuracies()
    tokens = (32, 64, 96, 128, 192, 256)
    against = [vits.fewest_tokens(found[name], found, tokens) for name in vits.VITS]
    assert against == [32, 32, 32, 32, 64, 96, *(32, 32, 32, 32, 64, 96), 32, 32, 32, 64, 128, 192]
    assert vits.fewest_tokens(99, found, tokens) is None


@pytest.mark.nightly(group="experiments")
@pytest.mark.parametrize("arguments", [(), ("--train",)])
def test_each_vit_is_timed_with_ours(arguments, monkeypatch, capsys):
    """ViTs of one small block, beside the whole of ours or a small one's step, by a made-up clock:
    real ones differ so much in size that their ratio could be printed as 0."""

    def take_turns(programs, repeats):
        for call in programs.values():
            call()
        wall = {"its": [1.0] * repeats, "ours": [2.0] * repeats}
        return Turns(wall, wall)

    names = ("DeiT-S/16", "DeiT-B/16", "DeiT3-L/16")
    small = ap.ViTConfig(embed_dim=64, depth=1, num_heads=1, image_size=32, patch_size=8)
    whole = scratch.get_config
    monkeypatch.setattr(scratch, "get_config", lambda argument: whole(f"runlocal,{argument}"))
    monkeypatch.setattr(vits, "VITS", dict.fromkeys(names, small))
    monkeypatch.setattr(speed, "measure_ceiling", lambda dtype: speed.Ceiling(1e9, 1e9))
    monkeypatch.setattr(vits, "take_turns", take_turns)
    vits.main([*arguments, "--batch", "8", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()[-3:]
    for name, line in zip(names, lines, strict=True):
        assert line.startswith(name)
        assert line.split()[-4] == "0.500"
