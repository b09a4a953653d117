"""Depth on NYUv2 (paper D.4): a linear head on the feature-distilled model.

python main.py --config=configs/nyuv2.py --workdir=runs/nyuv2 \
    --config.init_from=runs/features --config.data.dir=DIR
python main.py --config=configs/nyuv2.py:runlocal --workdir=/tmp/nyuv2   # three minutes

Not run at full size: v5e-16, 0.38 to 0.39 hours of steps, estimated (docs/pods.md); no RMSE. A step
takes 14.5 of one v5e chip's 16 GiB (docs/dense_memory.md). Evaluation, all else: docs/dense.md.
"""

from configs import common, dense


def get_config(arg: str = ""):
    config = dense.nyuv2()
    dense.on_adaperceiver(config)
    return common.argument(config, arg, dense.tiny)
