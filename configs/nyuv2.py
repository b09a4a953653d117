"""Depth on NYUv2 (paper D.4): a linear head on the feature-distilled model.

python main.py --config=configs/nyuv2.py --workdir=runs/nyuv2 \
    --config.init_from=runs/features --config.data.dir=DIR
python main.py --config=configs/nyuv2.py:runlocal --workdir=/tmp/nyuv2   # two minutes
"""

from configs import common, dense


def get_config(arg: str = ""):
    config = dense.nyuv2()
    dense.on_adaperceiver(config)
    return common.argument(config, arg, dense.tiny)
