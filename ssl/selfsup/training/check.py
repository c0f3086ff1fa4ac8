"""The stage `check`: params.yaml as a whole, before any work, and what the chosen method needs of it."""

from selfsup import methods, needs, nets, views
from selfsup.about import ANY
from selfsup.blocks import models
from selfsup.config import choose
from selfsup.data import formats
from selfsup.errors import UserError
from selfsup.evaluation import protocols
from selfsup.nets.fresh import refuse_weights
from selfsup.params import Params
from selfsup.training.build import method_params


def check(params: Params) -> None:
    """Check all that can be checked before samples are read, then write data/needs. Raises `UserError`."""
    for block in params.backbones.values():  # one that no run needs yet may be needed by the next
        refuse_weights(block)
    blocks = {method: method_params(params, method) for method in [*params.methods, "supervised"]}
    for name, about in methods.declared().items():
        try:
            choose(f"methods/{name}.py: ABOUT.kind", about.kind, [*sorted(models()), ANY])
        except ValueError as error:
            raise UserError(str(error)) from None
    protocols.blocks(params.evaluation)
    kind, architecture = methods.kind_of(params.method, params), blocks[params.method].backbone
    data = params.data.of(kind)
    formats.find(kind)  # a kind whose files are not all there fails here, and not after sharding
    views.find(kind)
    nets.find(kind).check_backbone(params.backbones[architecture], data)
    needs.write(params, kind, architecture)
