"""Same sequence: two parts of a sequence agree more with each other than with parts of the other sequences.

Textbook knowledge, without a paper. The loss is SimCLR's.
"""

from pydantic import PositiveFloat
from selfsup.views.sequence import view
from torch import Tensor

from selfsup.about import About
from selfsup.draw import Draw
from selfsup.nn.contrastive import info_nce, over_anchors
from selfsup.nn.distributed import gather
from selfsup.nn.heads import mlp
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Batch, Facts, Output, Progress, Task, Tensors

ABOUT = About(
    title="Same sequence",
    family="contrastive",
    kind="sequence",
    idea="two parts of a sequence agree",
    paper=None,
    couples_batch=True,
)


class Params(MethodParams):
    temperature: PositiveFloat
    projector: HeadParams


class SameSequence(Task):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__()
        self.backbone, self.recipe, self.data = facts.backbone(), facts.views, facts.data
        self.projector, self.tau = mlp(self.backbone.width, params.projector), params.temperature

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor]:
        a, b = (view(batch, draw.fork(name), self.recipe, self.data) for name in ("a", "b"))
        return a, b

    def embed(self, views: tuple[Tensor, Tensor], progress: Progress) -> Tensors:
        a, b = (self.projector(self.backbone(tokens)["pooled"]) for tokens in views)
        return {"a": a, "b": b}

    def loss(self, z: Tensors, progress: Progress) -> Output:
        return Output(over_anchors(info_nce, gather(z["a"]), gather(z["b"]), self.tau), embeddings=(z["a"], z["b"]))
