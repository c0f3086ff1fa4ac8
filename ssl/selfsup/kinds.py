"""Kinds of data, such as images: what the pipeline asks of a kind, and in which files it looks for it.

A kind is found by its name. A kind `text` is added by files of that name only: the block of `data.text` (see `blocks`),
and one module or package in each of three rooms.

`selfsup/data/formats/text.py` is what a stored file holds; `selfsup.data.format` describes it.

`selfsup/views/text.py` is what a network sees of samples:
    plain(batch, data) -> Tensor    whole samples, without randomness, on the batch's device: what encoders are given
    view(batch, draw, recipe, data) -> Tensor   one random view of every sample, for the supervised baseline
    pictures(views, data) -> list   the views of a batch as pictures [n 3 H W] in 0..1 for the report, or none
    suspicious(batch) -> str        a sentence on samples that make a loss infinite, or nothing

`selfsup/nets/text.py` is the networks:
    build_backbone(params, data, facts) -> nn.Module    with new weights from torch's generator; has a `width`
    check_backbone(params, data)                        builds one and gives it a sample; raises `UserError`
    Raw() -> nn.Module                                  the encoder of the baseline `pixels`: the samples themselves
    export_backbone(encoder, params, data, folder)      writes what a user takes away; returns its config.json

`batch` has `id`, `label` and the kind's own tensors, `data` is the kind's block, `facts` is what sharding found of the
training split, and `params` is a block under `backbones`. An encoder maps what `plain` returns to {"pooled": [B D]}.
Each room has a function `find(kind)`.
"""

from collections.abc import Callable
from typing import Any

from selfsup.errors import UserError


def checked(
    room: str, name: str, load: Callable[[], Any], declared: tuple[str, ...], what: str = "kind of data"
) -> Any:
    """The module of a kind of data, or of `what` else has a name, in a room of the package; `load` imports it.

    Raises `UserError` that names the file, where it is missing or lacks one of `declared`.
    """
    file = f"{room}/{name}.py"
    try:
        module = load()
    except ModuleNotFoundError as error:
        if error.name != f"selfsup.{room.replace('/', '.')}.{name}":
            raise
        raise UserError(f"{file}: not found; the {what} {name!r} needs it (see selfsup/kinds.py)") from None
    if lacking := [name for name in declared if not hasattr(module, name)]:
        raise UserError(f"{file}: {', '.join(lacking)} missing; a {what} declares {', '.join(declared)}")
    return module
