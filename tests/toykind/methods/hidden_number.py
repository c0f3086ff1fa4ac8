"""Hidden numbers: which number stood at each place that was hidden.

Textbook knowledge, without a paper. The loss is the cross-entropy at the hidden places.
"""

import torch.nn.functional as F
from pydantic import PositiveInt
from selfsup.views.sequence import plain
from torch import Tensor, nn

from selfsup.about import About
from selfsup.draw import Draw
from selfsup.params import MethodParams
from selfsup.task import Batch, Facts, Output, Progress, Task

ABOUT = About(
    title="Hidden numbers",
    family="reconstruction",
    kind="sequence",
    idea="which number was hidden",
    paper=None,
    couples_batch=False,
)


class Params(MethodParams):
    hidden: PositiveInt  # places per sequence


class HiddenNumber(Task):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__()
        self.backbone, self.hidden, self.data = facts.backbone(), params.hidden, facts.data
        self.mask = facts.found.vocabulary
        self.head = nn.Linear(self.backbone.width, facts.found.vocabulary)

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        tokens = plain(batch, self.data)
        places = draw.permutation("hidden", tokens.shape[1])[:, : self.hidden].to(tokens.device)  # [B m]
        return tokens.scatter(1, places, self.mask), places, tokens.gather(1, places)

    def forward(self, views: tuple[Tensor, Tensor, Tensor], progress: Progress) -> Output:
        seen, places, wanted = views
        x = self.backbone(seen)["tokens"]  # [B L D]
        logits = self.head(x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2])))  # [B m K]
        return Output(F.cross_entropy(logits.flatten(0, 1), wanted.flatten()), embeddings=[x.mean(1)])
