"""A ResNet-9, a small vision transformer and the heads on them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.3, 0.5, 0.6), (0.1, 0.3, 0.2)  # of the images' channels, as different as no grey image's
SAMPLES = 26  # images of the whole set
HEAD = (12, 10)  # hidden and output width of a projector


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResNet9(nn.Module):
    """Page 2018, "How to train your ResNet"."""

    def __init__(self, w: int = 4):
        super().__init__()
        self.width = 8 * w
        parts = [convolution(3, w), convolution(w, 2 * w), Residual(2 * w)]
        parts += [convolution(2 * w, 4 * w), convolution(4 * w, 8 * w), Residual(8 * w)]
        self.layers = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        stem, second, residual, third, fourth, last = self.layers
        x = residual(F.max_pool2d(second(stem(x)), 2))
        return last(F.max_pool2d(fourth(F.max_pool2d(third(x), 2)), 2)).mean((2, 3))


class Attention(nn.Module):
    """Vaswani et al. 2017, arXiv:1706.03762, equation 1, with two heads."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = []
        for q, k, v in zip(*(part.chunk(2, dim=2) for part in self.qkv(x).chunk(3, dim=2)), strict=True):
            heads.append((q @ k.mT / math.sqrt(q.shape[2])).softmax(2) @ v)
        return self.proj(torch.cat(heads, dim=2))


class Block(nn.Module):
    """Dosovitskiy et al. 2021, arXiv:2010.11929, equations 2 and 3."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Patches of 4 px, a class token, which is the output, two blocks. Positions are interpolated for small images."""

    def __init__(self, width: int = 16, side: int = 4):
        super().__init__()
        self.width, self.side = width, side
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def patches(self, x: Tensor) -> Tensor:  # [B 3 H W] -> [B L D], with positions
        x = self.patch_embed.proj(x)
        places = self.pos_embed[:, 1:]
        if x.shape[3] != self.side:  # in float32, as timm does
            grid = places.mT.unflatten(2, (self.side, self.side)).float()
            places = F.interpolate(grid, x.shape[2:], mode="bicubic", antialias=True).to(x.dtype).flatten(2).mT
        return x.flatten(2).mT + places

    def tokens(self, patches: Tensor) -> Tensor:  # [B L D] -> [B 1+L D]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
        return self.norm(self.blocks(torch.cat([first, patches], dim=1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.patches(x))[:, 0]


class Backbone(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.net = ResNet9() if kind == "conv" else ViT()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))
        self.width = self.net.width

    def normalise(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.normalise(images))


def head(inputs: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
    )


def head_with_norm(inputs: int, hidden: int, out: int) -> nn.Sequential:
    """With a batch norm on the output, without scale and shift."""
    first = head(inputs, hidden, out)[:3]
    return nn.Sequential(*first, nn.Linear(hidden, out, bias=False), nn.BatchNorm1d(out, affine=False))
