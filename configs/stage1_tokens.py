"""Stage 1: adaptivity over tokens (paper D.1), distilled from ViT-H/14 CLIP on ImageNet-12k.

python main.py --config=configs/stage1_tokens.py --workdir=runs/stage1 --config.data.dir=DIR
python main.py --config=configs/stage1_tokens.py:runlocal --workdir=/tmp/stage1   # a minute

Not run at full size: v5e-256, 2.6 to 3.5 hours of steps, estimated (docs/pods.md); no accuracy.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.paper()
    config.length = "50 epochs"
    config.ema = 0.999
    config.loss.update(depths=False, widths=False)
    return common.argument(config, arg, common.tiny)
