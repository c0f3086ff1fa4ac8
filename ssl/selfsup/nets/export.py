"""How a backbone leaves the project: a folder that timm loads by itself, or a `torch.export` program."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from selfsup.nets.image import Backbone, timm_arguments
from selfsup.params import BackboneParams


class _Pooled(nn.Module):
    """Images in 0..1 -> pooled features: what the exported program computes."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:  # [B 3 S S] -> [B width]
        return self.backbone(images)["pooled"]


def export_backbone(backbone: nn.Module, params: BackboneParams, image_size: int, folder: Path) -> dict:
    """Write the backbone's weights and its `config.json` to `folder`; returns the configuration.

    Where timm can name the network, `timm.create_model("local-dir:<folder>", pretrained=True)` loads it: weights are
    `model.safetensors`, the input is normalised with the configuration's mean and deviation. Where timm cannot (a small
    stem, ResNet-9, a method's own encoder), `backbone.pt2` is a `torch.export` program that takes images in 0..1.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    backbone = backbone.eval().cpu()
    named = isinstance(backbone, Backbone) and params.name != "resnet9" and not params.small_stem
    net = backbone.net if isinstance(backbone, Backbone) else backbone
    config: dict = {
        "architecture": params.name,
        "num_classes": 0,
        "num_features": getattr(backbone, "width", None),
        "loads_with": "timm" if named else "torch.export",
        "pretrained_cfg": {
            "input_size": [3, image_size, image_size],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": backbone.mean.flatten().tolist() if isinstance(backbone, Backbone) else None,
            "std": backbone.std.flatten().tolist() if isinstance(backbone, Backbone) else None,
            "num_classes": 0,
        },
    }
    if named:
        arguments = timm_arguments(params, image_size)
        config["model_args"] = {name: value for name, value in arguments.items() if name != "num_classes"}
        # timm passes the input size on to networks that are built for one size
        config["pretrained_cfg"] |= {
            "classifier": None,
            "first_conv": None,
            "fixed_input_size": "img_size" in arguments,
        }
    else:
        images = torch.zeros(2, 3, image_size, image_size)  # kept in the file, so not drawn: equal runs, equal bytes
        program = torch.export.export(
            _Pooled(backbone), (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}}
        )
        torch.export.save(program, folder / "backbone.pt2")
    save_file({name: x.contiguous() for name, x in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return config
