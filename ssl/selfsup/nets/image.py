"""Backbones for images: ResNet-9, or any network of timm, with a small-image stem as a switch; their export."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.blocks.image import ImageData
from selfsup.errors import UserError
from selfsup.nets.export import write, write_program
from selfsup.nets.fresh import refuse_weights
from selfsup.nn.positions import sincos_positions
from selfsup.params import BackboneParams


def _convolution(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResNet9(nn.Module):
    """The nine-layer residual network of the DAWNBench races, for images of 24 to 96 px (Page 2018), without its head.

    Eight convolutions; the ninth layer of the original is the classifier. Features: 8 `width` channels.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        self.num_features = 8 * width
        self.layers = nn.Sequential(
            _convolution(3, width),
            _convolution(width, 2 * width, pool=True),
            _Residual(2 * width),
            _convolution(2 * width, 4 * width, pool=True),
            _convolution(4 * width, 8 * width, pool=True),
            _Residual(8 * width),
        )

    def forward_features(self, x: Tensor) -> Tensor:  # [B 3 H W] -> [B 8*width H/8 W/8]
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:  # noqa: ARG002, timm's signature
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:  # [B 3 H W] -> [B 8*width]
        return self.forward_head(self.forward_features(x))


class Backbone(nn.Module):
    """A network without classifier, and the normalisation of its input.

    `forward` maps images [B 3 H W] in 0..1 to {"pooled": [B width]} with the features before pooling beside it:
    "map" [B C h w] of a convolutional network or "tokens" [B L C] of a transformer.
    """

    net: Any  # a network with timm's forward_features, forward_head and num_features
    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = net
        self.width = int(getattr(net, "head_hidden_size", None) or net.num_features)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def normalize(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.net.forward_features(self.normalize(images))
        pooled = self.net.forward_head(features, pre_logits=True)
        return {"pooled": pooled, "tokens" if features.ndim == 3 else "map": features}

    def admit(self, size: int) -> None:
        """Take images of `size` x `size` pixels too, for which a vision transformer's positions are interpolated.

        Raises `ValueError` when the network cannot.
        """
        if hasattr(self.net, "dynamic_img_size"):
            from timm.layers import Format  # late: a second to import

            self.net.dynamic_img_size = True
            embed = self.net.patch_embed
            embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
        try:
            with torch.no_grad():
                self.eval()(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(f"the backbone does not take images of {size} px: {error}") from None
        self.train()


def timm_arguments(params: BackboneParams, image_size: int) -> dict:
    """The arguments with which `timm.create_model(params.name, ...)` builds the network, small stem aside."""
    import timm  # late: two seconds to import

    if params.name not in timm.list_models():
        near = difflib.get_close_matches(params.name, ["resnet9", *timm.list_models()], n=3)
        raise UserError(f"backbones: timm has no {params.name!r}; near: {', '.join(near) or 'resnet9, resnet18'}")
    arguments = {"num_classes": 0, **params.options}
    module = timm.models.model_entrypoint(params.name).__module__
    if module.endswith(("vision_transformer", "deit", "swin_transformer", "swin_transformer_v2", "beit", "eva")):
        arguments = {"img_size": image_size, **arguments}
    return arguments


def build_backbone(params: BackboneParams, data: ImageData, facts: Any) -> Backbone:
    """A backbone with fresh weights from torch's generator. It normalises its input by `facts.mean` and `facts.std`.

    Raises `UserError` for an unknown name or option.
    """
    mean, std, image_size = facts.mean, facts.std, data.image_size
    refuse_weights(params)
    try:
        if params.name == "resnet9":
            return Backbone(ResNet9(**params.options), mean, std)
        import timm

        net = timm.create_model(params.name, **timm_arguments(params, image_size))
        _check_patches(net, image_size)
        _fix_positions(net)
        if params.small_stem:
            _shrink_stem(net, params.name)
        return Backbone(net, mean, std)
    except (TypeError, AssertionError, ValueError, AttributeError, LookupError, RuntimeError) as error:  # of any option
        what = str(error) or type(error).__name__
        raise UserError(f"backbones: {params.name} cannot be built with options {params.options}: {what}") from None


@torch.no_grad()
def check_backbone(params: BackboneParams, data: ImageData) -> None:
    """Build a backbone and give it an image. Raises `UserError` where it cannot be built or gives no vector."""
    image_size = data.image_size
    backbone = build_backbone(params, data, SimpleNamespace(mean=[0.0] * 3, std=[1.0] * 3)).eval()
    try:
        shape = list(backbone(torch.zeros(1, 3, image_size, image_size))["pooled"].shape)
        what = f"its features are {shape}" if shape != [1, backbone.width] else ""
    except (TypeError, AssertionError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        what = str(error) or type(error).__name__
    if what:
        raise UserError(
            f"backbones: {params.name} with options {params.options} gives no vector for {image_size} px: {what}"
        )


def _check_patches(net: nn.Module, image_size: int) -> None:
    """A vision transformer would leave out the border pixels that make no whole patch, or fail at the first step."""
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if side and image_size % side:
        raise UserError(
            f"data.image.image_size: {image_size} is not a multiple of the vision transformer's patches of {side} "
            "pixels; change it, or options.patch_size of its block under backbones"
        )


def _shrink_stem(net: nn.Module, name: str) -> None:
    """Replace a ResNet's 7x7 stride-2 convolution and its max-pool, which leave little of an image of 32 px."""
    stem = getattr(net, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(net, "maxpool"):
        raise UserError(f"backbones: small_stem is for timm's ResNets; set small_stem: false for {name}")
    net.conv1 = nn.Conv2d(3, stem.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()


@torch.no_grad()
def _fix_positions(net: nn.Module) -> None:
    """Give a vision transformer fixed two-dimensional sine-cosine positions (as MAE and MoCo v3 do)."""
    positions, embed = getattr(net, "pos_embed", None), getattr(net, "patch_embed", None)
    if isinstance(positions, nn.Parameter) and positions.ndim == 3 and embed is not None:
        height, width = embed.grid_size
        prefix = positions.shape[1] - height * width  # the class token has no position
        positions.zero_()
        positions[0, prefix:] = sincos_positions(height, width, positions.shape[2])
        positions.requires_grad_(False)


class Raw(nn.Module):
    """The identity as an encoder: an image's pixels are its features. [B 3 S S] -> {"pooled": [B 3*S*S]}"""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"pooled": images.flatten(1)}


def export_backbone(backbone: nn.Module, params: BackboneParams, data: ImageData, folder: Path) -> dict[str, Any]:
    """Write the backbone's weights and its `config.json` to `folder`; returns the configuration.

    Where timm can name the network, `timm.create_model("local-dir:<folder>", pretrained=True)` loads it: weights are
    `model.safetensors`, the input is normalised with the configuration's mean and deviation. Where timm cannot (a small
    stem, ResNet-9, a method's own encoder), `backbone.pt2` is a `torch.export` program that takes images in 0..1.
    """
    backbone, size = backbone.eval().cpu(), data.image_size
    named = isinstance(backbone, Backbone) and params.name != "resnet9" and not params.small_stem
    config: dict[str, Any] = {
        "architecture": params.name,
        "num_classes": 0,
        "num_features": getattr(backbone, "width", None),
        "loads_with": "timm" if named else "torch.export",
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": backbone.mean.flatten().tolist() if isinstance(backbone, Backbone) else None,
            "std": backbone.std.flatten().tolist() if isinstance(backbone, Backbone) else None,
            "num_classes": 0,
        },
    }
    if named:
        arguments = timm_arguments(params, size)
        config["model_args"] = {name: value for name, value in arguments.items() if name != "num_classes"}
        # timm passes the input size on to networks that are built for one size
        config["pretrained_cfg"] |= {
            "classifier": None,
            "first_conv": None,
            "fixed_input_size": "img_size" in arguments,
        }
    images = torch.zeros(2, 3, size, size)  # kept in the file, so not drawn: equal runs, equal bytes
    write(folder, config, backbone.net if isinstance(backbone, Backbone) else backbone)
    if not named:
        write_program(folder, backbone, images)
    return config
