"""The Perceiver connector written out: one image, one head, one latent at a time, in double precision.

Nothing is shared with `modeling/perceiver_connector.py` but the names of the weights. Slow on purpose.
"""

import math

import torch


def naive_connector(
    weights: dict[str, torch.Tensor],
    config: dict,
    images: list[torch.Tensor],
    grids: list[tuple[int, int]],
) -> list[torch.Tensor]:
    """Soft tokens of each image.

    Args:
        weights: state dict of the connector.
        config: its configuration as a dict.
        images: for each image the (P, C) features of its real patches, in raster order.
        grids: for each image (height, width) in patches.

    Returns:
        For each image (L, D).
    """
    weights = {name: tensor.double() for name, tensor in weights.items()}
    return [_one_image(weights, config, p.double(), grid) for p, grid in zip(images, grids, strict=True)]


def naive_positions(height: int, width: int, size: int) -> torch.Tensor:
    """(height * width, size): sines and cosines of the row, then sines and cosines of the column."""
    codes = []
    for row in range(height):
        for column in range(width):
            code = []
            for place in (row, column):
                angles = [place / 10_000 ** (k / (size // 4)) for k in range(size // 4)]
                code += [math.sin(angle) for angle in angles]
                code += [math.cos(angle) for angle in angles]
            codes.append(code)
    return torch.tensor(codes, dtype=torch.float64)


def _one_image(weights: dict, config: dict, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    eps = config["layer_norm_eps"]
    if config["vision_layer_norm"]:
        patches = _layer_norm(patches, weights, "vision_ln", eps)
    patches = _linear(patches, weights, "resampler.proj_in")
    if config["kv_layer_norm"]:
        patches = _layer_norm(patches, weights, "resampler.kv_norm", eps)
    keyed = patches
    if config["position_encoding"] == "sincos2d":
        keyed = patches + naive_positions(*grid, patches.shape[1])
    latents = weights["resampler.latents"]
    for layer in range(config["depth"]):
        name = f"resampler.layers.{layer}"
        normed = _layer_norm(latents, weights, f"{name}.ln1", eps)
        latents = latents + _attention(normed, keyed, patches, weights, f"{name}.cross_attn", config)
        normed = _layer_norm(latents, weights, f"{name}.ln2", eps)
        latents = latents + _mlp(normed, weights, f"{name}.mlp")
    if config["final_layer_norm"]:
        latents = _layer_norm(latents, weights, "resampler.norm", eps)
    return _mlp(latents, weights, "projector")


def _attention(
    latents: torch.Tensor, keyed: torch.Tensor, patches: torch.Tensor, weights: dict, name: str, config: dict
) -> torch.Tensor:
    queries = _linear(latents, weights, f"{name}.q_proj")
    keys = _linear(keyed, weights, f"{name}.k_proj")
    values = _linear(patches, weights, f"{name}.v_proj")
    head_dim = config["head_dim"]
    mixed = torch.zeros_like(queries)
    for head in range(config["num_heads"]):
        columns = range(head * head_dim, (head + 1) * head_dim)
        for latent in range(len(latents)):
            scores = [
                sum(float(queries[latent, c] * keys[patch, c]) for c in columns) / math.sqrt(head_dim)
                for patch in range(len(patches))
            ]
            total = sum(math.exp(score - max(scores)) for score in scores)
            for patch, score in enumerate(scores):
                share = math.exp(score - max(scores)) / total
                for c in columns:
                    mixed[latent, c] += share * values[patch, c]
    return _linear(mixed, weights, f"{name}.o_proj")


def _linear(states: torch.Tensor, weights: dict, name: str) -> torch.Tensor:
    return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _layer_norm(states: torch.Tensor, weights: dict, name: str, eps: float) -> torch.Tensor:
    centred = states - states.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _mlp(states: torch.Tensor, weights: dict, name: str) -> torch.Tensor:
    hidden = _linear(states, weights, f"{name}.fc1")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))  # GELU
    return _linear(hidden, weights, f"{name}.fc2")
