"""Stage 2: adaptivity over tokens and depth (paper D.1), from stage 1's EMA weights.

python main.py --config=configs/stage2_depth.py --workdir=runs/stage2 \
    --config.init_from=runs/stage1 --config.data.dir=DIR
python main.py --config=configs/stage2_depth.py:runlocal --workdir=/tmp/stage2   # a minute

Not run at full size: v5e-256, 3.7 to 4.9 hours of steps, estimated (docs/pods.md); no accuracy.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.paper()
    config.init_from = "runs/stage1"
    config.length = "65 epochs"
    config.ema = 0.999
    config.loss.update(depths=True, widths=False, depth_schedule="linear")
    return common.argument(config, arg, common.tiny)
