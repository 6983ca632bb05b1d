"""Models of the built-in tasks.

Variable names end in their shape: B samples, T positions, C channels, H heads, K channels per head,
V vocabulary. Weights come from torch's default generator: seed it alike on every rank.
"""
# ruff: noqa: N803, N806  # shape suffixes are capitals

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention, silu

_STD = 0.02
_ROPE_BASE = 10_000.0


@dataclass(frozen=True, slots=True)
class GPTShape:
    """Everything that determines a decoder; ``width`` is a multiple of ``2 * heads``."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    tied: bool
    dropout: float


class GPT(nn.Module):
    """A decoder: rotary positions, RMSNorm before each part, SwiGLU."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight
        self._init_weights(shape.layers)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits for the next token at each position, shape (B, T, V)."""
        x_BTC = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTC = block(x_BTC)
        logits_BTV: Tensor = self.head(self.norm(x_BTC))
        return logits_BTV

    def _init_weights(self, layers: int) -> None:
        """Normal weights; those that write to the residual stream shrink with depth (GPT-2)."""
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue
            writes_to_stream = name.endswith(("attention.out.weight", "mlp.down.weight"))
            nn.init.normal_(weight, std=_STD / (2 * layers) ** 0.5 if writes_to_stream else _STD)


class Block(nn.Module):
    """Attention, then a gated feed-forward layer, each added to the residual stream."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.attention_norm = nn.RMSNorm(shape.width)
        self.attention = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.width)
        self.mlp = SwiGLU(shape.width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Shape (B, T, C) to the same."""
        x_BTC = x_BTC + self._drop(self.attention(self.attention_norm(x_BTC)))
        return x_BTC + self._drop(self.mlp(self.mlp_norm(x_BTC)))

    def _drop(self, x_BTC: Tensor) -> Tensor:
        return dropout(x_BTC, self.dropout, self.training)


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Shape (B, T, C) to the same."""
        qkv_BTHK = self.qkv(x_BTC).unflatten(-1, (3 * self.heads, -1))
        q_BHTK, k_BHTK, v_BHTK = qkv_BTHK.transpose(1, 2).chunk(3, dim=1)
        y_BHTK = scaled_dot_product_attention(
            rotate(q_BHTK), rotate(k_BHTK), v_BHTK, is_causal=True
        )
        out_BTC: Tensor = self.out(y_BHTK.transpose(1, 2).flatten(2))
        return out_BTC


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``, about 8/3 as wide inside (Shazeer, 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = -(-8 * width // 3 // 8) * 8
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Shape (B, T, C) to the same."""
        gate, up = self.gate_up(x_BTC).chunk(2, dim=-1)
        out_BTC: Tensor = self.down(silu(gate) * up)
        return out_BTC


class DigitClassifier(nn.Module):
    """A small convolutional network for 8 x 8 images of one channel in ten classes."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(width, dropout) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, 10), of images, shape (B, 1, 8, 8)."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class ConvBlock(nn.Module):
    """A residual convolution; normalized per sample, so that ranks need no common statistics."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.GroupNorm(1, width)
        self.conv = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, C, 8, 8) to the same."""
        y: Tensor = self.conv(silu(self.norm(x)))
        return x + dropout(y, self.dropout, self.training)


def rotate(x_BHTK: Tensor) -> Tensor:
    """Turn channel pairs by angles that grow with the position (Su et al., RoFormer, 2021).

    The table is computed in float32 at each call: as a buffer it would be cast to the training
    precision, and broadcast by DDP.
    """
    positions, channels = x_BHTK.shape[-2:]
    device = x_BHTK.device
    pairs = torch.arange(0, channels, 2, device=device, dtype=torch.float32)
    frequencies = _ROPE_BASE ** (-pairs / channels)
    angles = torch.outer(torch.arange(positions, device=device, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    first, second = x_BHTK.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
    return turned.to(x_BHTK.dtype)
