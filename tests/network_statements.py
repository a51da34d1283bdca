"""Layers stated in plain NumPy, float64, for tests of networks; weights by their keys."""

import numpy as np
import torch
from scipy.special import erf


def seed_weights(module, seed=0):
    """Draws all weights and running statistics, also those that start as 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator) * 0.3
            state[name] = drawn.abs() + 0.5 if name.endswith("running_var") else drawn
    module.load_state_dict(state)
    return module.eval()


def arrays(module):
    return {name: value.numpy().astype(float) for name, value in module.state_dict().items()}


def part(weights, name):
    return {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}


def linear(x, weights):
    return x @ weights["weight"].T + weights.get("bias", 0)


def convolution(x, weights, stride=1, padding=0):
    """(B, c, h, w) to (B, C, ...): a kernel is multiplied with each window, and summed."""
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    kernel = weights["weight"]
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))
    out = np.einsum("bchwyx,kcyx->bkhw", windows[:, :, ::stride, ::stride], kernel)
    return out + weights["bias"][:, None, None] if "bias" in weights else out


def batch_norm(x, weights, eps=1e-6):
    mean, var, scale, bias = (
        weights[name][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + eps) * scale + bias


def layer_norm(x, weights, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * weights["weight"] + weights["bias"]


def relu(x):
    return np.maximum(x, 0)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attention(x, weights, num_heads, scales, masked, project):
    """Self-attention of tokens (B, n, D), a loop over images and heads.

    `scales` holds a factor a head; with `masked` no token reads itself; `project` names the last
    layer.
    """
    width = x.shape[-1] // num_heads
    queries, keys, values = np.split(linear(x, part(weights, "qkv")), 3, axis=-1)
    out = np.empty_like(x)
    for image in range(len(x)):
        for head, scale in enumerate(scales):
            own = slice(head * width, (head + 1) * width)
            scores = queries[image, :, own] @ keys[image, :, own].T * scale
            if masked:
                np.fill_diagonal(scores, -np.inf)
            out[image, :, own] = softmax(scores) @ values[image, :, own]
    return linear(out, part(weights, project))
