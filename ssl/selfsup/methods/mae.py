"""MAE: reconstruct the patches that were removed from the image.

He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377. The encoder sees only the visible
patches; a light decoder predicts the pixels of the masked ones (section 3). `masked_mse` is the loss:

    L = mean over masked patches of (mean over pixels of (prediction - (x - mean(x)) / sqrt(var(x) + 1e-6))^2)

x are the pixels of a patch, standardised by its own mean and variance if `normalize_target` is set.

Differences from the paper: class and mask tokens are not decayed, as in all methods here; the authors' code decays
them.

Expect: 77.6 % kNN accuracy on 9,000 images of Fashion-MNIST (small vision transformer, 20 epochs), where random weights
reach 64.3 %.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from selfsup.about import About, Paper
from selfsup.config import Strict
from selfsup.draw import Draw
from selfsup.errors import KnobError, UserError
from selfsup.nn.positions import sincos_positions
from selfsup.nn.precision import full_precision
from selfsup.params import MethodParams
from selfsup.task import Batch, Facts, Output, Progress, Task
from selfsup.views.image.recipe import crop_view, patch_mask

ABOUT = About(
    title="MAE",
    family="reconstruction",
    kind="image",
    idea="reconstruct the patches that were removed",
    paper=Paper(
        authors="He et al.", year=2021, title="Masked Autoencoders Are Scalable Vision Learners", arxiv="2111.06377"
    ),
    couples_batch=False,
)


class DecoderParams(Strict):
    width: PositiveInt  # 512 in the paper
    depth: PositiveInt  # 8 in the paper
    heads: PositiveInt


class Params(MethodParams):
    mask_ratio: Annotated[float, Field(gt=0, lt=1)]  # r: int((1 - r) L) patches stay visible
    mask: Literal["random", "block", "grid"]
    mask_tokens: Literal["decoder", "encoder"]  # where masked patches enter; `encoder` is the paper's ablation
    decoder: DecoderParams
    normalize_target: bool


def patchify(images: Tensor, p: int) -> Tensor:  # [B C H W] -> [B L p*p*C], patches row by row
    b, c, h, w = images.shape
    return images.view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, h // p * (w // p), p * p * c)


def take(tokens: Tensor, index: Tensor) -> Tensor:  # [B L D], [B K] -> [B K D]
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


@full_precision
def masked_mse(prediction: Tensor, target: Tensor, masked: Tensor, normalize: bool) -> Tensor:
    """L = mean over masked patches l and their P numbers of (x_l - y_l)^2, y being the target.

    With `normalize`, each patch of the target has mean 0 and deviation 1. [B L P], [B L P], [B L] with 1 = masked,
    0 = visible -> []
    """
    if normalize:
        variance = target.var(dim=2, keepdim=True)  # unbiased
        target = (target - target.mean(dim=2, keepdim=True)) * (variance + 1e-6).rsqrt()
    error = (prediction - target).square().mean(2)  # [B L]
    masked = masked.to(error.dtype)
    return (error * masked).sum() / masked.sum()


class MAE(Task):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__()
        from timm.models.vision_transformer import Block, VisionTransformer  # late: two seconds to import

        self.recipe, self.size, self.params = facts.views, facts.image_size, params
        self.backbone = facts.backbone()
        net = self.backbone.net
        if not isinstance(net, VisionTransformer):
            raise KnobError("backbone", "MAE masks the tokens of a VisionTransformer of timm; choose vit")
        self.patch = net.patch_embed.patch_size[0]
        self.length = net.patch_embed.num_patches  # L
        prefix = 0 if net.cls_token is None else 1
        embedded = net.pos_embed is not None and net.pos_embed.shape[1] == prefix + self.length
        if not embedded or net.num_prefix_tokens != prefix or isinstance(net.norm, nn.Identity):
            raise UserError("backbones.vit.options: MAE needs positions, no register tokens and fc_norm: false")
        height, width = net.patch_embed.grid_size
        self.grid = (height, width)
        if not 0 < int((1 - params.mask_ratio) * self.length) < self.length:
            raise KnobError("mask_ratio", f"leaves none or all of the {self.length} patches visible")
        decoder = params.decoder
        if decoder.width % (4 * decoder.heads):
            raise KnobError("decoder.width", f"must be a multiple of 4 x heads ({4 * decoder.heads})")
        self.decoder_embed = nn.Linear(net.embed_dim, decoder.width)
        inside = net.embed_dim if params.mask_tokens == "encoder" else decoder.width
        self.mask_token = nn.Parameter(torch.randn(inside) * 0.02)
        self.register_buffer("positions", sincos_positions(height, width, decoder.width))
        self.decoder = nn.Sequential(
            *(Block(decoder.width, decoder.heads, qkv_bias=True) for _ in range(decoder.depth)),
            nn.LayerNorm(decoder.width, eps=1e-6),
            nn.Linear(decoder.width, self.patch**2 * 3),
        )

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        images = crop_view(batch, draw, self.recipe, self.size)
        keep, restore = patch_mask(draw, self.params.mask, self.params.mask_ratio, *self.grid)  # [B K], [B L]
        return images, keep.to(images.device), restore.to(images.device)

    def encode(self, images: Tensor, keep: Tensor, restore: Tensor) -> Tensor:
        """Tokens of the visible patches, or of all with mask tokens in place of the others. -> [B prefix+K D]"""
        net = self.backbone.net
        x = net.patch_embed(self.backbone.normalize(images))  # [B L D]
        if self.params.mask_tokens == "encoder":
            hidden = (restore >= keep.shape[1])[:, :, None]  # [B L 1]
            x = torch.where(hidden, self.mask_token.to(x.dtype), x) + net.pos_embed[:, net.num_prefix_tokens :]
        else:
            x = take(x + net.pos_embed[:, net.num_prefix_tokens :], keep)  # [B K D]
        if net.cls_token is not None:
            x = torch.cat([net.cls_token.expand(len(x), -1, -1), x], dim=1)
        return net.norm(net.blocks(net.norm_pre(x)))

    def decode(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """Pixels of every patch from the tokens. [B prefix+K D], [B L] -> [B L p*p*3]"""
        x = self.decoder_embed(tokens[:, self.backbone.net.num_prefix_tokens :])  # [B K width]
        if self.params.mask_tokens == "decoder":
            missing = self.mask_token.to(x.dtype).expand(len(x), self.length - x.shape[1], -1)
            x = take(torch.cat([x, missing], dim=1), restore)  # [B L width], every token back in its place
        return self.decoder(x + self.positions)

    def forward(self, views: tuple[Tensor, Tensor, Tensor], progress: Progress) -> Output:
        images, keep, restore = views
        tokens = self.encode(images, keep, restore)
        prediction = self.decode(tokens, restore)
        masked = (restore >= keep.shape[1]).to(prediction.dtype)  # [B L], 1 = masked
        target = patchify(self.backbone.normalize(images), self.patch)
        loss = masked_mse(prediction, target, masked, self.params.normalize_target)
        return Output(loss, embeddings=[tokens.mean(1)])
