"""Feature distillation (paper D.1): logits and patch features of the teacher, from stage 3.

python main.py --config=configs/features.py --workdir=runs/features \
    --config.init_from=runs/stage3 --config.data.dir=DIR
python main.py --config=configs/features.py:runlocal --workdir=/tmp/features   # a minute

The second stream of output tokens, its write head and its adapter start fresh.
Not run at full size: v5e-256, 1.8 to 2.2 hours of steps, estimated (docs/pods.md); no accuracy.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.paper()
    config.init_from = "runs/stage3"
    config.init_skip = ("(output_latents|write_head|output_adapter)_feat/.*",)
    config.length = "20 epochs"
    config.ema = 0.9995
    config.optimizer.update(lr=5e-4, precondition_frequency=30)
    config.model.output_feat_dim = 1280
    config.loss.update(depths=True, widths=True, depth_schedule="linear", features=True)
    return common.argument(config, arg, common.tiny)
