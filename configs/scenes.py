"""The demo: a tiny AdaPerceiver on rendered images, through the paper's stages, from labels.

make demo                                                       # all stages, a table and a picture
python main.py --config=configs/scenes.py:stage=1 --workdir=runs/scenes/stage1
python main.py --config=configs/scenes.py:stage=2 --workdir=runs/scenes/stage2 \
    --config.init_from=runs/scenes/stage1
python main.py --config=configs/scenes.py:runlocal --workdir=/tmp/scenes      # a minute

Stages: '1' tokens, '2' tokens and depth, '3' tokens, depth and width (the default: all at once,
from fresh weights if config.init_from names none); 'alone' trains the whole model for nothing but
its full budget, for as many steps as the three stages together.

Hardware, time and results: docs/results.md.
"""

from configs import common

STEPS = {"1": 500, "2": 400, "3": 1200}


def get_config(arg: str = ""):
    config = common.base()
    config.task = "classify"
    common.scenes(config, size=32, train=20_000, validation=4096)
    config.data.difficulty = 0.15
    config.model.update(
        embed_dim=64,
        num_heads=2,
        depth=6,
        max_latent_tokens=32,
        token_granularities=(2, 4, 8, 16, 32),
        widths=(16, 32, 64),
        image_size=32,
        patch_size=4,
        layer_scale=None,
        process_token_init="norm_randn",
    )
    config.init_scale = 6.0
    config.compute.update(dtype="float32", remat=False, attention="masked")
    config.batch_size = 32
    config.log_every = 50
    config.optimizer.update(
        name="soap",
        lr=2e-3,
        b2=0.95,  # a short run: the factors must follow within some dozen steps
        weight_decay=0.003,
        clip=3.0,
        precondition_frequency=20,
        start_preconditioning_step=20,
        max_preconditioner_dim=256,
    )
    config.schedule.update(warmup="20 steps", warmup_lr=1e-6, min_lr=1e-5)
    config.evaluation.update(every="100%", batch_size=512)
    config.checkpoint.update(every="50%", keep_last=1, keep_best=0)

    stages, rest = common.choice(arg, "stage", (*STEPS, "alone"))
    stage = stages or "3"
    config.length = f"{STEPS.get(stage, sum(STEPS.values()))} steps"
    # The stages are short: the learning rate falls once, at the end of the last, and the mean that
    # an early one hands on must not lie far behind its weights.
    early = stage in ("1", "2")
    config.schedule.name = "constant" if early else "cosine"
    config.ema = 0.9 if early else 0.99
    config.loss.update(depths=stage in ("2", "3"), widths=stage == "3")
    if stage == "alone":
        config.model.token_granularities = (config.model.max_latent_tokens,)
    return common.argument(config, rest, small)


def small(config) -> None:
    """The same model, fewer images, 60 steps."""
    config.length = "60 steps"
    config.schedule.warmup = "10%"
    config.data.update(train_count=2048, validation_count=512)
    config.log_every = 10
