"""A policy on ImageNet-1k (paper I.3): which token count an image gets, learned by REINFORCE.

python main.py --config=configs/policy_in1k.py --workdir=runs/policy --config.data.dir=DIR
python main.py --config=configs/policy_in1k.py:policy.learner=regress,policy.looks_at=peek \
    --workdir=runs/peek --config.data.dir=DIR
python main.py --config=configs/policy_in1k.py:runlocal --workdir=/tmp/policy   # a minute
python main.py --config=configs/policy_in1k.py:runlocal,policy.path=runs/demo/stage3 \
    --workdir=/tmp/policy                                  # for the demo's model (make demo)

The model of config.policy.path, fine-tuned on ImageNet-1k, is not changed; config.model is not
looked at, but where that path is 'made-up'. Images are cropped at random and flipped, no more: what
an image costs is to be learned of images as they are, and the loss needs their own labels. The
paper does not say how its images were augmented.
Not run at full size, nor compiled for a slice: no hours, no accuracy.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.paper()
    config.task = "policy"
    config.policy.path = "runs/in1k"
    config.length = "1 epochs"
    config.batch_size = 256
    config.ema = 0.0
    config.model.num_classes = 1000
    config.data.source = "tfds:imagenet2012"
    config.augment.rand_augment = 0
    config.mixing.mixup = 0.0
    config.teacher.path = ""
    config.optimizer.update(name="adamw", lr=1e-4, weight_decay=0.0)
    config.schedule.warmup = "500 steps"
    config.evaluation.update(every="20%", batch_size=256, sub_networks=())
    return common.argument(config, arg, small)


def small(config) -> None:
    """Scenes as the demo's model knows them, a higher learning rate, a made-up model."""
    common.tiny(config)
    config.data.difficulty = 0.15
    config.policy.path = "made-up"
    config.optimizer.lr = 1e-3
    config.evaluation.sub_networks = ()
