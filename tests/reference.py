"""AdaPerceiver once more, in plain NumPy: slow, float64, one head and one query at a time.

Written from the definitions, on weights under their PyTorch names, so that the package's
arithmetic is checked where there are no goldens. It shares no code with the package.
"""

import math

import numpy as np

erf = np.vectorize(math.erf)


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Weights:
    """A view of a state dict below a prefix."""

    def __init__(self, state, prefix=""):
        self.state, self.prefix = state, prefix

    def __truediv__(self, name):
        return Weights(self.state, f"{self.prefix}{name}.")

    def get(self, name):
        value = self.state.get(self.prefix + name)
        return None if value is None else np.asarray(value, np.float64)

    def has(self, name):
        return any(key.startswith(f"{self.prefix}{name}.") for key in self.state)


def linear(x, w):
    y = x @ w.get("weight").T
    return y if w.get("bias") is None else y + w.get("bias")


def layer_norm(x, w, eps=1e-6):
    mean = x.mean(axis=-1, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * w.get("weight") + w.get("bias")


def ffn(x, w, act, hidden=None):
    """All hidden units are computed; those from `hidden` on are then set to zero."""
    y = linear(x, w / "fc1")
    y = act(linear(x, w / "gate")) * y if w.has("gate") else act(y)
    if hidden is not None:
        y[..., hidden:] = 0
    return linear(y, w / "fc2")


def rotate(x, position, theta, scale):
    """One head's vector at one position: pair i turns by position * theta^(-2i/d) / scale."""
    out = x.copy()
    d = len(x)
    for i in range(d // 2):
        angle = position * theta ** (-2 * i / d) / scale
        a, b = x[2 * i], x[2 * i + 1]
        out[2 * i] = a * math.cos(angle) - b * math.sin(angle)
        out[2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def attention(sink, source, w, heads, visible, turn_q=None, turn_k=None):
    """One sample: sink (M, D), source (N, D); visible(i) says how many keys query i sees."""
    q, k, v = linear(sink, w / "q"), linear(source, w / "k"), linear(source, w / "v")
    d = q.shape[-1] // heads
    out = np.zeros_like(q)
    for h in range(heads):
        cut = slice(h * d, (h + 1) * d)
        qh, kh, vh = q[:, cut], k[:, cut], v[:, cut]
        if turn_q:
            qh = np.stack([turn_q(x, i) for i, x in enumerate(qh)])
        if turn_k:
            kh = np.stack([turn_k(x, i) for i, x in enumerate(kh)])
        for i in range(len(qh)):
            seen = visible(i)
            out[i, cut] = softmax(kh[:seen] @ qh[i] / math.sqrt(d)) @ vh[:seen]
    return linear(out, w / "proj")


def keys_seen(kind, num_tokens, granularities):
    """How many keys a query sees, by its position."""
    if kind == "none":
        return lambda i: num_tokens
    if kind == "causal":
        return lambda i: i + 1
    bounds = [g for g in granularities if g <= num_tokens]
    if not bounds or bounds[-1] < num_tokens:
        bounds.append(num_tokens)
    return lambda i: min(g for g in bounds if g > i)


def patch_embed(image, w, config, act):
    """image (H, W, C) at the table's own size -> (patches, D)."""
    p = config.patch_size
    kernel, bias = (w / "embed" / "proj").get("weight"), (w / "embed" / "proj").get("bias")
    patches = []
    for row in range(0, image.shape[0], p):
        for column in range(0, image.shape[1], p):
            patch = image[row : row + p, column : column + p].transpose(2, 0, 1)
            patches.append((kernel * patch).sum(axis=(1, 2, 3)) + bias)
    x = np.stack(patches) + w.get("pos_embed")[0]
    return ffn(layer_norm(x, w / "norm"), w / "ffn", act) if w.has("ffn") else x


def forward(state, config, images, num_tokens=None, width=None, depth=None, read_tokens=None):
    """(logits, features) of one sub-network; the readout sees `read_tokens` latents, else all."""
    w = Weights(state)
    act = gelu if config.act_layer == "gelu" else silu
    n = num_tokens or config.max_latent_tokens
    scale = max(1.0, n / config.max_latent_tokens)
    if config.rope_scale is not None:
        scale = config.rope_scale
    hidden = None if width is None else int(width * config.ffn_ratio)

    def turn(x, position):
        return rotate(x, position, config.rope_theta, scale)

    def cross(sink, source, w, **turns):
        source = layer_norm(source, w / "src_norm")
        heads, count = config.num_heads, len(source)
        sink = layer_norm(sink, w / "snk_norm")
        return attention(sink, source, w / "cattn", heads, lambda i: count, **turns)

    def adapt(x, w):
        if not w.has("norm"):
            return linear(x, w / "ffn")
        return ffn(layer_norm(x, w / "norm"), w / "ffn", act)

    logits, features = [], []
    for image in np.asarray(images, np.float64):
        patches = patch_embed(image, w / "patch_embed", config, act)
        z = np.tile((w / "process_latents").get("token"), (n, 1))
        z = z + cross(z, patches, w / "read_head", turn_q=turn)
        seen = keys_seen(config.mask, n, config.token_granularities)
        for l in range(depth or config.depth):
            b = w / "blocks" / l
            y = layer_norm(z, b / "norm1")
            y = attention(y, y, b / "attn", config.num_heads, seen, turn, turn)
            z = z + (y if not b.has("ls1") else y * (b / "ls1").get("gamma"))
            y = ffn(layer_norm(z, b / "norm2"), b / "ffn", act, hidden)
            z = z + (y if not b.has("ls2") else y * (b / "ls2").get("gamma"))
        z = z[:read_tokens]
        suffix = "_feat" if config.num_classes and config.output_feat_dim else ""
        if config.num_classes:
            o = (w / "output_latents").get("token")
            o = o + cross(o, z, w / "write_head", turn_k=turn)
            logits.append(adapt(o, w / "output_adapter")[0])
        if config.output_feat_dim:
            o = linear(patches, w / f"output_latents{suffix}" / "proj")
            o = o + cross(o, z, w / f"write_head{suffix}", turn_k=turn)
            features.append(adapt(o, w / f"output_adapter{suffix}"))
    return np.array(logits), np.array(features)


def vit_forward(state, config, images):
    """(logits, features with prefix tokens) of a ViT."""
    w = Weights(state)
    eps, d = config.norm_epsilon, config.embed_dim // config.num_heads
    logits, features = [], []
    for image in np.asarray(images, np.float64):
        kernel = (w / "patch_embed" / "proj").get("weight")
        bias = (w / "patch_embed" / "proj").get("bias")
        p, patches = config.patch_size, []
        for row in range(0, image.shape[0], p):
            for column in range(0, image.shape[1], p):
                patch = image[row : row + p, column : column + p].transpose(2, 0, 1)
                patches.append((kernel * patch).sum(axis=(1, 2, 3)))
        x = np.stack(patches) + (0 if bias is None else bias)
        prefix = [t[0] for t in (w.get("cls_token"), w.get("reg_token")) if t is not None]
        if config.no_embed_class:
            x = np.concatenate([*prefix, x + w.get("pos_embed")[0]])
        else:
            x = np.concatenate([*prefix, x]) + w.get("pos_embed")[0]
        if w.has("norm_pre"):
            x = layer_norm(x, w / "norm_pre", eps)
        for l in range(config.depth):
            b = w / "blocks" / l
            qkv = linear(layer_norm(x, b / "norm1", eps), b / "attn" / "qkv")
            q, k, v = np.split(qkv, 3, axis=-1)
            y = np.concatenate(
                [
                    softmax(q[:, i : i + d] @ k[:, i : i + d].T / math.sqrt(d)) @ v[:, i : i + d]
                    for i in range(0, config.embed_dim, d)
                ],
                axis=-1,
            )
            y = linear(y, b / "attn" / "proj")
            x = x + (y if not b.has("ls1") else y * (b / "ls1").get("gamma"))
            y = ffn(layer_norm(x, b / "norm2", eps), b / "mlp", gelu)
            x = x + (y if not b.has("ls2") else y * (b / "ls2").get("gamma"))
        if w.has("norm"):
            x = layer_norm(x, w / "norm", eps)
        features.append(x)
        pooled = x[0] if config.global_pool == "token" else x[config.num_prefix_tokens :].mean(0)
        if w.has("fc_norm"):
            pooled = layer_norm(pooled, w / "fc_norm", eps)
        logits.append(linear(pooled, w / "head"))
    return np.array(logits), np.array(features)


def policy_forward(state, patches, head="head_tokens"):
    """Logits of one head of the policy network."""
    w = Weights(state)
    x = np.asarray(patches, np.float64)
    for name in ("mixer_block", "mixer_block_2"):
        b = w / name
        y = ffn(layer_norm(x, b / "norm1").transpose(0, 2, 1), b / "mlp_tokens", gelu)
        x = x + y.transpose(0, 2, 1)
        x = x + ffn(layer_norm(x, b / "norm2"), b / "mlp_channels", gelu)
    x = layer_norm(x.mean(axis=1), w / "fuse.0", 1e-5)
    x = gelu(linear(gelu(linear(x, w / "fuse.1")), w / "fuse.3"))
    return linear(x, w / head)
