"""Semantic segmentation on ADE20K (paper D.3): a linear head on the feature-distilled model.

python main.py --config=configs/ade20k.py --workdir=runs/ade20k \
    --config.init_from=runs/features --config.data.dir=DIR
python main.py --config=configs/ade20k.py:runlocal --workdir=/tmp/ade20k   # two minutes

Not run at full size: v5e-16, 0.10 to 0.12 hours of steps, estimated (docs/pods.md); no mIoU. A step
takes 9.3 of one v5e chip's 16 GiB (docs/dense_memory.md). Evaluation, another head, all else:
docs/dense.md.
"""

from configs import common, dense


def get_config(arg: str = ""):
    config = dense.ade20k()
    dense.on_adaperceiver(config)
    config.model.head_drop = 0.25
    config.dense.token_granularities = (32, 64, 96, 128, 192, 256, 512)
    return common.argument(config, arg, dense.tiny)
