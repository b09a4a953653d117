"""The baselines of segmentation on ADE20K: the same head on a frozen ViT (CLIP, LAION-2B).

python main.py --config=configs/vit_ade20k.py:vit=h --workdir=runs/vit_h_ade20k \
    --config.data.dir=DIR
python main.py --config=configs/vit_ade20k.py:runlocal --workdir=/tmp/vit_ade20k   # a minute

vit: 'b' (B/16), 'l' (L/14) or 'h' (H/14, the default). As the reference has them: an MLP over all
tokens, the class token joined to each patch; without them: --config.dense.mlp=False
--config.dense.class_token=False. A patch of 16 divides 512, not 518.

Not run at full size, nor compiled for a slice: no hours, no mIoU.
"""

from configs import common, dense


def get_config(arg: str = ""):
    vit, rest = common.choice(arg, "vit", tuple(dense.VITS))
    config = dense.ade20k()
    dense.on_vit(config, vit or "h")
    if config.vit.patch_size == 16:
        config.data.image_size = 512
    return common.argument(config, rest, dense.tiny)
