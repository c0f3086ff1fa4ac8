"""How a backbone leaves the project: weights and a configuration, and where needed a `torch.export` program."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class _Pooled(nn.Module):
    """What an encoder takes -> pooled features: what the exported program computes."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, samples: Tensor) -> Tensor:  # [B ...] -> [B width]
        return self.backbone(samples)["pooled"]


def write(folder: Path, config: dict[str, Any], net: nn.Module) -> None:
    """Write the network's weights as `model.safetensors` and `config.json` to `folder`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: x.contiguous() for name, x in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_program(folder: Path, backbone: nn.Module, samples: Tensor) -> None:
    """Write `backbone.pt2`, a program that takes any number of samples shaped as the two in `samples`."""
    shapes = {"samples": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(_Pooled(backbone), (samples,), dynamic_shapes=shapes)
    torch.export.save(program, folder / "backbone.pt2")
