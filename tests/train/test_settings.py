"""What the trainer is told: durations, unknown keys, types, limits."""

import dataclasses

import pytest

from adaperceiver_jax.tasks.make import RunConfig, make_task
from adaperceiver_jax.train.settings import (
    EvaluationSettings,
    Plan,
    Settings,
    check_key,
    from_config,
    make_plan,
    steps_of,
    with_key,
)

pytestmark = pytest.mark.quick
SEGMENT, MLP = {"task": "segment"}, {"mlp": True}


def test_durations():
    want = {"50 epochs": 500, "1 epoch": 10, "0.5epochs": 5, "7 steps": 7, "1 step": 1}
    want |= {"10%": 20, " 2.5 % ": 5}
    assert {text: steps_of(text, "config.length", 100, 10, total=200) for text in want} == want


@pytest.mark.parametrize("text", ["", "50", "-1 steps", "5 hours", "5 steps 3", "1e3 steps"])
def test_what_is_no_duration_is_an_error_that_names_the_key(text):
    with pytest.raises(ValueError, match=r"config.checkpoint.every=.*: must read like '50 epochs'"):
        from_config(Settings, {"checkpoint": {"every": text}})


def test_a_runs_length_is_not_a_percentage_nor_nothing():
    with pytest.raises(ValueError, match=r"config.length='10%': must be in epochs or steps"):
        make_plan(Settings(length="10%"), images=100)
    with pytest.raises(ValueError, match=r"config.length='0 steps': is less than one step"):
        make_plan(Settings(length="0 steps"), images=100)


def test_a_plan_counts_in_steps_and_never_in_none():
    settings = from_config(
        Settings,
        {
            "length": "2 epochs",
            "batch_size": 10,
            "schedule": {"warmup": "10%"},
            "evaluation": {"every": "1 epochs"},
            "checkpoint": {"every": "0.1%"},
        },
    )
    assert make_plan(settings, images=105) == Plan(last=21, warmup=2, evaluate=10, save=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bach_size": 1}, r"config.bach_size: there is no such key; did you mean 'batch_size'"),
        ({"optimizer": {"lrr": 1}}, r"config.optimizer.lrr: .*; did you mean 'lr'"),
        ({"mesh": {"zzz": 1}}, r"config.mesh.zzz: there is no such key; it has data, fsdp"),
        ({"batch_size": "8"}, r"config.batch_size='8': must be of type int"),
        ({"batch_size": True}, r"config.batch_size=True: must be of type int"),
        ({"batch_size": 8.0}, r"config.batch_size=8.0: must be of type int"),
        ({"augment": {"flip": 1}}, r"config.augment.flip=1: must be of type bool"),
        ({"train_only": "head/.*"}, r"config.train_only='head/..': must be a tuple"),
        ({"mesh": 3}, r"config.mesh=3: must be a section"),
        ({"mesh": {"gradients": "float16"}}, r"config.mesh.gradients='float16': must be in \("),
        ({"mesh": {"rules": (("a", "here"),)}}, r"config.mesh.rules=\('a', 'here'\): must be pai"),
        (
            {"mesh": {"gradients": "bfloat16"}, "compute": {"dtype": "float32"}},
            r"config.mesh.gradients='bfloat16' with config.compute.dtype='float32': gradients",
        ),
        ({"evaluation": {"every": "0%"}}, r"config.evaluation.every='0%': must be above 0"),
        ({"batch_size": 0}, r"config.batch_size=0: must be at least 1"),
        ({"accumulate": 0}, r"config.accumulate=0: must be at least 1"),
        ({"data": {"workers": -2}}, r"config.data.workers=-2: must be at least -1"),
        ({"data": {"threads": 0}}, r"config.data.threads=0: must be at least 1"),
        ({"data": {"bad_images": -1}}, r"config.data.bad_images=-1: must be at least 0"),
        ({"data": {"train_count": -5}}, r"config.data.train_count=-5: must be at least 0"),
        ({"ema": 1.0}, r"config.ema=1.0: must be in \[0, 1\)"),
        ({"optimizer": {"lr": 0.0}}, r"config.optimizer.lr=0.0: must be above 0"),
        ({"optimizer": {"clip": 0}}, r"config.optimizer.clip=0.0: must be above 0"),
        ({"checkpoint": {"keep_last": 0}}, r"config.checkpoint.keep_last=0: must be at least 1"),
        ({"checkpoint": {"keep_best": -1}}, r"config.checkpoint.keep_best=-1: must be at least 0"),
        ({"evaluation": {"batch_size": 0}}, r"config.evaluation.batch_size=0: must be at least 1"),
        ({"evaluation": {"sub_networks": ((1, 2),)}}, r"sub_networks=\(1, 2\): must be triples"),
        ({"task": "dream"}, r"config.task='dream': must be one of distill, classify, teacher"),
        ({"compute": {"dtype": "float8"}}, r"config.compute.dtype='float8': must be 'float32'"),
        ({"evaluation": {"sub_networks": ((0, 832, 21),)}}, r"sub_networks: .*0"),
        ({"evaluation": {"sub_networks": ((256, 833, 21),)}}, r"sub_networks: .*833"),
        ({"evaluation": {"sub_networks": ((256, 832, 22),)}}, r"sub_networks: .*22"),
        ({"data": {"image_size": 225}}, r"config.data.image_size=225: must be a multiple"),
        ({"data": {"image_width": 225}}, r"config.data.image_width=225: must be a multiple"),
        ({"task": "depth", "accumulate": 2}, r"config.accumulate=2: the loss of depth is one of"),
        (
            {**SEGMENT, "dense": {"backbone": "vit"}, "evaluation": {"sub_networks": ((1, 1, 1),)}},
            r"config.evaluation.sub_networks=.*: a ViT has none",
        ),
        ({"dense": {"backbone": "swin"}}, r"config.dense.backbone='swin': must be one of adap"),
        ({"loss": {"temperature": 0.0}}, r"config.loss.temperature=0.0: must be above 0"),
        ({"loss": {"width_loss": -1.0}}, r"config.loss.width_loss=-1.0: must be at least 0"),
        ({"dense": {"sig_weight": -1.0}}, r"config.dense.sig_weight=-1.0: must be at least 0"),
        ({"dense": {"token_granularities": (4, 2)}}, r"token_granularities=\(4, 2\): must be as"),
        ({"dense": {"token_granularities": (4,), "backbone": "vit"}}, r"a ViT has none"),
        ({**SEGMENT, "mixing": {"mixup": 0.8}}, r"config.mixing.mixup=0.8: label and depth"),
        (SEGMENT, r"config.dense and config.model: backbone with num_classes=1000"),
        ({**SEGMENT, "dense": {"backbone": "vit"}}, r"config.vit.num_classes=1000: a ViT under a"),
        (
            {**SEGMENT, "model": {"num_classes": None, "output_feat_dim": 8}, "dense": MLP},
            r"mlp=True: is for a ViT",
        ),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(values, message):
    with pytest.raises(ValueError, match=message):
        make_task(from_config(RunConfig, values))


def test_a_key_is_set_from_text():
    values = {"data": {"dir": "a", "seed": 1}, "seed": 2}
    changed = with_key(RunConfig, values, "data.dir", "/b")
    assert changed == {"data": {"dir": "/b", "seed": 1}, "seed": 2}
    assert with_key(RunConfig, {}, "dense.eigen_crop", "True") == {"dense": {"eigen_crop": True}}
    assert values["data"]["dir"] == "a"
    with pytest.raises(ValueError, match=r"config.data.dirr: there is no such key"):
        with_key(RunConfig, values, "data.dirr", "b")


def test_what_is_left_out_keeps_its_default_and_the_rest_is_read():
    got = from_config(
        Settings, {"optimizer": {"lr": 1}, "evaluation": {"sub_networks": [[1, 2, 3]]}}
    )
    assert got == dataclasses.replace(
        Settings(),
        optimizer=dataclasses.replace(Settings().optimizer, lr=1.0),
        evaluation=EvaluationSettings(sub_networks=((1, 2, 3),)),
    )
    assert type(got.optimizer.lr) is float


def test_keys_of_the_command_line():
    for name in ("seed", "optimizer.lr", "model", "model.embed_dim"):
        check_key(RunConfig, name)
    for name, hint in {
        "optimizr.lr": "did you mean config.optimizer.lr",
        "model.embed_dims": "did you mean config.model.embed_dim",
        "mesh.rows": "config.mesh has data, fsdp",
        "elsewhere.x": "there is no section config.elsewhere",
    }.items():
        with pytest.raises(ValueError, match=f"config.{name}: there is no such key; {hint}"):
            check_key(RunConfig, name)
