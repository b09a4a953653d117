"""Stage 3: adaptivity over tokens, depth and width (paper D.1), from stage 2's EMA weights.

python main.py --config=configs/stage3_width.py --workdir=runs/stage3 \
    --config.init_from=runs/stage2 --config.data.dir=DIR
python main.py --config=configs/stage3_width.py:runlocal --workdir=/tmp/stage3   # a minute

The paper trains widths by drawing one a sample; --config.loss.width_loss=1 adds their own loss.
Not run at full size: v5e-256, 1.1 to 1.5 hours of steps, estimated (docs/pods.md); no accuracy.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.paper()
    config.init_from = "runs/stage2"
    config.length = "20 epochs"
    config.ema = 0.9998
    config.optimizer.lr = 5e-4
    config.schedule.update(name="constant", warmup="0 steps")
    config.loss.update(depths=True, widths=True, depth_schedule="linear")
    return common.argument(config, arg, common.tiny)
