"""Every backbone starts from fresh weights."""

from selfsup.errors import UserError
from selfsup.params import BackboneParams

LOADING = (  # options with which timm's constructors load weights, from a hub or a file
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn"),
    *("pretrained_model_args", "checkpoint_path", "cache_dir", "weights", "state_dict"),
)


def refuse_weights(params: BackboneParams) -> None:
    """Raise `UserError` where an option loads weights: every method and baseline here starts from fresh ones."""
    for option in LOADING:
        if option in params.options:
            raise UserError(
                f"backbones: option {option} of {params.name} loads weights, which is not supported: the row of random "
                "weights would be a pretrained one, and all methods would start from other training; remove it"
            )
