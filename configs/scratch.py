"""All of tokens, depth and width at once on ImageNet-1k, from labels alone, from fresh weights.

python main.py --config=configs/scratch.py --workdir=runs/scratch --config.data.dir=DIR
python main.py --config=configs/scratch.py:runlocal --workdir=/tmp/scratch   # a minute

The paper always distils and leaves open whether this works. The numbers of the update are those
of its stage 1, the augmentation that of its fine-tuning: guesses, not a tuned recipe.
Not run at full size, nor compiled for a slice: no hours, no accuracy.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.paper()
    config.task = "classify"
    config.length = "300 epochs"
    config.ema = 0.9998
    config.model.num_classes = 1000
    config.data.source = "tfds:imagenet2012"
    config.augment.magnitude = 20
    config.loss.update(depths=True, widths=True, depth_schedule="linear")
    config.mixing.update(mixup=0.8, cutmix=0.5, erase=0.25)
    return common.argument(config, arg, common.tiny)
