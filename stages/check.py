"""Check params.yaml before any work is done: every section, every method's block, the protocols, the backbones."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.errors import one_line_errors
from selfsup.params import load


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params = load()
    from selfsup import methods
    from selfsup.evaluation import protocols
    from selfsup.nets.image import check_backbone, refuse_weights
    from selfsup.training.build import method_params

    for backbone in (params.backbones.conv, params.backbones.vit):  # of which one may not be needed yet
        refuse_weights(backbone)
    needed = {method_params(params, params.method).backbone}
    needed |= {"conv", "vit"} if set(params.baselines) & {"random", "supervised"} else set()
    for architecture in sorted(needed):  # names, options and patches, before images are read
        check_backbone(getattr(params.backbones, architecture), params.data.image_size)
    for method in [*params.methods, "supervised"]:
        method_params(params, method)
    methods.declared()
    protocols.blocks(params.evaluation)
    Path("data").mkdir(exist_ok=True)
    Path("data/checked.txt").write_text("params.yaml is valid\n")  # the same on every run: nothing below reruns for it


if __name__ == "__main__":
    with one_line_errors():
        main()
