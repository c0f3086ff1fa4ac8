"""What lies inside a frozen network: its stages with what each gives, and the attention of its blocks.

The network is any of timm's, or one with the same face: `forward_features` finds it in an encoder, `feature_info` names
its stages. Without `feature_info` the stages are the parts of its longest sequence of modules, as in ResNet-9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.evaluation.result import Unfit

FEWEST = 4  # places along a side of a feature map that is worth a picture


def network(encoder: nn.Module) -> Any:
    """The network in an encoder, which may put something before it, such as a Sobel filter. Raises `Unfit`."""
    for module in encoder.modules():
        if hasattr(module, "forward_features"):
            return module
    raise Unfit("has no network to look into")


def stages(encoder: nn.Module) -> dict[str, nn.Module]:
    """The stages of the network in order of depth: blocks of a transformer, or parts of a convolutional network."""
    net = network(encoder)
    infos = getattr(net, "feature_info", None)
    if infos:
        return {info["module"]: net.get_submodule(info["module"]) for info in infos}
    sequences = {name: each for name, each in net.named_modules() if isinstance(each, nn.Sequential)}
    if not sequences:
        return {}
    longest = max(sequences, key=lambda name: len(sequences[name]))
    return {f"{longest}.{name}".lstrip("."): part for name, part in sequences[longest].named_children()}


@torch.no_grad()
def read(encoder: nn.Module, images: Tensor, take: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """`take` of what each stage gives for `images` [B 3 S S]: maps [B C h w], or tokens [B L C] with their prefix.

    Of maps of the same size the deepest counts. `take` is called at once: later stages may overwrite their input.
    """
    net, found, sizes = network(encoder), {}, {}
    last = getattr(net, "output_fmt", None) == "NHWC"

    def hook(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            x = output.permute(0, 3, 1, 2) if last and output.ndim == 4 else output
            found[name], sizes[name] = take(x), x.shape[2:] if x.ndim == 4 else name

        return note

    handles = [module.register_forward_hook(hook(name)) for name, module in stages(encoder).items()]
    try:
        encoder(images)
    finally:
        for handle in handles:
            handle.remove()
    deepest = {size: name for name, size in sizes.items()}
    return {name: x for name, x in found.items() if deepest[sizes[name]] == name}


def pooled(net: Any, x: Tensor) -> Tensor:
    """A vector per image, [B C]: the mean over places; the class token where that is what the network pools by."""
    if x.ndim == 4:
        return x.mean((2, 3))
    prefix = int(getattr(net, "num_prefix_tokens", 0))
    return x[:, 0] if prefix and getattr(net, "global_pool", "") == "token" else x[:, prefix:].mean(1)


@contextmanager
def _attention_of(block: nn.Module, note: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `note` with the attention [B heads L L] of `block`, which then computes it without fused kernels."""
    drop, owner = block.get_submodule("attn_drop"), block
    before = getattr(owner, "fused_attn", None)
    handle = drop.register_forward_hook(lambda _module, _inputs, output: note(output))
    if before is not None:
        owner.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        handle.remove()
        if before is not None:
            owner.fused_attn = before


@torch.no_grad()
def attention(encoder: nn.Module, images: Tensor) -> Tensor | None:
    """What the last block of a transformer looks at, [B heads h w]; None where it has no attention over a grid.

    With a class token: its attention to each patch. Without one: the attention that each patch receives, its mean over
    all patches. Each row of attention sums to 1 over the patches and the prefix tokens.
    """
    net = network(encoder)
    blocks = [module for module in net.modules() if hasattr(module, "attn_drop") and hasattr(module, "num_heads")]
    if not blocks:
        return None
    seen: list[Tensor] = []
    with _attention_of(blocks[-1], seen.append):
        encoder(images)
    return places(seen[0].float(), images, net) if len(seen) == 1 and seen[0].ndim == 4 else None


def places(weights: Tensor, images: Tensor, net: Any) -> Tensor | None:
    """From attention [B heads L L] to what `attention` returns; None where the tokens are no grid of patches."""
    prefix, class_token = int(getattr(net, "num_prefix_tokens", 0)), getattr(net, "cls_token", None) is not None
    received = weights[:, :, 0, prefix:] if class_token else weights[:, :, prefix:, prefix:].mean(2)
    side = round(received.shape[-1] ** 0.5)
    if len(weights) != len(images) or side**2 != received.shape[-1]:
        return None
    return received.unflatten(2, (side, side))


@torch.no_grad()
def patches(encoder: nn.Module, images: Tensor) -> Tensor:
    """The deepest features that still have places, [B C h w] with h >= 4 where a stage has as many. Raises `Unfit`."""
    net = network(encoder)

    def grid(x: Tensor) -> Tensor:
        if x.ndim == 4:
            return x.float()
        x = x[:, int(getattr(net, "num_prefix_tokens", 0)) :]
        side = round(x.shape[1] ** 0.5)
        return x.transpose(1, 2).unflatten(2, (side, side)).float() if side**2 == x.shape[1] else x[..., :0].float()

    found = [x for x in read(encoder, images, lambda x: grid(x).clone()).values() if x.ndim == 4]
    if not found:
        raise Unfit("has no features of places that can be read")
    return next((x for x in reversed(found) if min(x.shape[2:]) >= FEWEST), found[0])
