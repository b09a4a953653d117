"""Fine-tuning on ImageNet-1k (paper D.2): write head, output token and adapter, from stage 3.

python main.py --config=configs/finetune_in1k.py --workdir=runs/in1k \
    --config.init_from=runs/stage3 --config.data.dir=DIR
python main.py --config=configs/finetune_in1k.py:runlocal --workdir=/tmp/in1k   # a minute

The adapter starts fresh, since the classes are others (were they as many, it would be loaded).
Everything else is frozen.
Not run at full size: v5e-256, 0.09 to 0.12 hours of steps, estimated (docs/pods.md).
The paper: 82.6% with 32 tokens to 85.4% with 256.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.paper()
    config.task = "classify"
    config.init_from = "runs/stage3"
    config.init_skip = ("output_adapter/.*",)
    config.train_only = ("write_head/.*", "output_latents/.*", "output_adapter/.*")
    config.length = "70 epochs"
    config.batch_size = 1024
    config.ema = 0.9995
    config.model.num_classes = 1000
    config.data.source = "tfds:imagenet2012"
    config.augment.magnitude = 20
    config.optimizer.update(lr=5e-4, precondition_frequency=30, start_preconditioning_step=250)
    config.schedule.warmup = "500 steps"
    config.loss.update(depths=True, widths=True, depth_schedule="linear")
    config.mixing.update(mixup=0.8, cutmix=0.5, erase=0.25)
    return common.argument(config, arg, common.tiny)
