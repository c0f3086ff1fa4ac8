"""`params.yaml` as strict, documented models: an unknown key, a wrong type or a value out of range is one clear line.

Blocks live elsewhere: the section `data` in `blocks`; each `methods/<name>.py` has its own `Params`, a subclass of
`MethodParams`, and so has each `evaluation/protocols/<name>.py`.
Nothing here has a default: values live in `params.yaml` only. This module imports neither torch nor DVC.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from selfsup.blocks import Data
from selfsup.config import Strict, choose, known, parse, read_yaml, shown
from selfsup.epochs import Readings, WarmUp
from selfsup.errors import ROOT, UserError

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
METHODS = [str(Path(__file__).parent / "methods")]
"""The folders of methods: the package's search path, to which tests add one."""


class BackboneParams(Strict):
    """One architecture: `resnet9` or any name timm knows."""

    name: str
    small_stem: bool  # 3x3 stride-1 first convolution, no max-pool: for images up to 64 px
    options: dict[str, Any]  # passed to the network's constructor: `width`, `patch_size`, `depth`, ...


class JitterParams(Strict):
    """Colour jitter: each factor is drawn from [1 - s, 1 + s], hue from [-s, s] turns, in a random order per image."""

    p: Probability
    brightness: Annotated[float, Field(ge=0, le=1)]
    contrast: Annotated[float, Field(ge=0, le=1)]
    saturation: Annotated[float, Field(ge=0, le=1)]
    hue: Annotated[float, Field(ge=0, le=0.5)]


Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
PairOfProbabilities = Annotated[list[Probability], Field(min_length=2, max_length=2)]


class ViewsParams(Strict):
    """The augmentations that every method shares, so that a comparison is of methods and not of augmentations."""

    crop_scale: Pair  # share of the image's area that a crop covers
    crop_ratio: Pair  # width / height of a crop before it is resized
    flip: Probability  # left-right
    jitter: JitterParams
    colour: Literal["exact", "matrix"]  # jitter and grey as torchvision's, or as one affine map of each image's colours
    grey: Probability
    blur: PairOfProbabilities  # Gaussian blur, of the first view and of the second
    blur_sigma: Pair  # pixels
    solarize: PairOfProbabilities  # inversion of the pixels above one half, of the first view and of the second

    @model_validator(mode="after")
    def _ranges(self) -> "ViewsParams":
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"views.{name}: needs 0 < low <= high, got [{low}, {high}]")
        if self.crop_scale[1] > 1:
            raise ValueError(f"views.crop_scale: a crop cannot cover more than the image, got {self.crop_scale[1]}")
        return self


class Pretrain(Strict):
    """The budget, equal for every method and for the supervised baseline."""

    epochs: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]  # images per optimiser step over all processes
    chunk_size: PositiveInt | None  # images of a batch that go through the network at a time; null: all
    warmup_epochs: WarmUp
    precision: Literal["fp32", "bf16", "fp16"]
    clip_grad_norm: PositiveFloat | None
    compile: bool  # torch.compile the backbone: pays in long runs on a GPU
    channels_last: bool
    log_every: PositiveInt  # steps between two lines of curves and monitors
    checkpoint_every: PositiveInt  # steps between two checkpoints; the end of an epoch has one too
    # epochs between two kNN readings on the validation split; 0: never
    knn_every: Readings

    @model_validator(mode="after")
    def _chunks_fill_batch(self) -> "Pretrain":
        if self.chunk_size and self.batch_size % self.chunk_size:
            raise ValueError(
                f"pretrain.chunk_size: {self.chunk_size} does not divide pretrain.batch_size, {self.batch_size}; "
                "change one of them"
            )
        return self


class SGD(Strict):
    name: Literal["sgd"]
    lr: PositiveFloat  # per 256 images
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegativeFloat


class LARS(Strict):
    """You et al. 2017, arXiv:1708.03888."""

    name: Literal["lars"]
    lr: PositiveFloat  # per 256 images
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: PositiveFloat  # without decay, rates are not adapted
    trust_coefficient: PositiveFloat


class AdamW(Strict):
    name: Literal["adamw"]
    lr: PositiveFloat  # per 256 images
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    weight_decay: NonNegativeFloat


OptimizerParams = Annotated[SGD | LARS | AdamW, Field(discriminator="name")]


class MethodParams(Strict):
    """What every block under `methods` has."""

    backbone: str  # one of the blocks under `backbones`
    optimizer: OptimizerParams


class HeadParams(Strict):
    """A projector or predictor: `layers` linear layers, batch norm and ReLU between them; 0 layers is the identity."""

    layers: Annotated[int, Field(ge=0, le=4)]
    hidden: PositiveInt
    out: PositiveInt


class TeacherHeadParams(HeadParams):
    """A projector whose norm and activation are choices: DINO's and iBOT's have neither batch norm nor ReLU."""

    norm: Literal["batch", "layer", "none"]  # before each activation
    activation: Literal["relu", "gelu"]


class CropsParams(Strict):
    """Small views of every image beside the two of `data.image.image_size` pixels."""

    count: Annotated[int, Field(ge=0)]  # of each image; 0: none
    size: PositiveInt  # pixels
    scale: Pair  # share of the image's area that one covers

    @model_validator(mode="after")
    def _within_the_image(self) -> "CropsParams":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"crops.scale: needs 0 < low <= high <= 1, got {self.scale}")
        return self


class Evaluation(Strict):
    """The chosen protocols, and a block per protocol, which `evaluation.protocols.blocks` validates by its `Params`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    protocols: Annotated[list[str], Field(min_length=1)]  # of features
    encoder_protocols: list[str]  # that look inside the frozen networks

    @property
    def listed(self) -> list[str]:
        """All chosen protocols, in the order of tables."""
        return [*self.protocols, *self.encoder_protocols]


class Tracking(Strict):
    enabled: bool
    uri: str | None  # null: sqlite in the repository's root
    experiment: Annotated[str, Field(min_length=1)]


class Params(Strict):
    """The whole of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    method: str
    data: Data
    backbones: Annotated[dict[str, BackboneParams], Field(min_length=1)]
    views: ViewsParams
    pretrain: Pretrain
    methods: dict[str, dict[str, Any]]
    baselines: list[Literal["majority", "pixels", "random", "supervised"]]
    evaluation: Evaluation
    tracking: Tracking

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        for name in (self.method, *self.methods):
            choose("method" if name == self.method else "methods", name, known(METHODS))
        if self.method not in self.methods:
            raise ValueError(f"methods.{self.method}: missing block; add it")
        lists = {f"evaluation.{name}": getattr(self.evaluation, name) for name in ("protocols", "encoder_protocols")}
        for where, names in (*lists.items(), ("baselines", self.baselines)):
            if len(set(names)) < len(names):
                raise ValueError(f"{where}: names something twice, got {shown(names)}; remove one")
        return self


def load(path: Path | str = "params.yaml") -> Params:
    """Read and validate `params.yaml` (YAML 1.2, so 1e-4 is a number). Raises `UserError`."""
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; {_home()}") from None
    if _stray(Path(path), values):
        raise UserError(f"{path}: {Path.cwd()} is not the project's root; delete this file and {_home()}")
    return parse(Params, values)


def _home() -> str:
    return f"run from the project's root{f', {ROOT}' if (ROOT / 'params.yaml').is_file() else ''}"


def _stray(path: Path, values: Any) -> bool:
    """Whether a file in a subfolder of the project is not its parameters: `dvc exp run -S +a.b=1` there makes one."""
    folder = path.resolve().parent
    few = isinstance(values, dict) and set(values) < set(Params.model_fields)
    return few and ROOT in folder.parents and not (folder / "dvc.yaml").exists()
