"""The baselines of depth on NYUv2: the same head on a frozen ViT (CLIP, LAION-2B).

python main.py --config=configs/vit_nyuv2.py:vit=h --workdir=runs/vit_h_nyuv2 \
    --config.data.dir=DIR
python main.py --config=configs/vit_nyuv2.py:runlocal --workdir=/tmp/vit_nyuv2   # a minute

vit: 'b' (B/16), 'l' (L/14) or 'h' (H/14, the default). As the reference has them: an MLP over all
tokens, the class token joined to each patch; without them: --config.dense.mlp=False
--config.dense.class_token=False. A patch of 16 divides 608, not 602.

Not run at full size, nor compiled for a slice: no hours, no RMSE.
"""

from configs import common, dense


def get_config(arg: str = ""):
    vit, rest = common.choice(arg, "vit", tuple(dense.VITS))
    config = dense.nyuv2()
    dense.on_vit(config, vit or "h")
    if config.vit.patch_size == 16:
        config.data.image_width = 608
    return common.argument(config, rest, dense.tiny)
