"""Which sub-network a ViT is timed against."""

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
        "FlexViT-B (ps=30)": 32,
        "FlexViT-B (ps=24)": 32,
        "FlexViT-B (ps=16)": 96,
        "FlexiViT-L (ps=48)": 32,
        "FlexiViT-L (ps=30)": 32,
        "FlexiViT-L (ps=24)": 64,
        "FlexiViT-L (ps=16)": 192,
    }
    assert vits.fewest_tokens(99, found, tokens) is None
