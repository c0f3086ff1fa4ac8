"""What is read of an experiment: its own figures, else the reason why it has none."""

import json
import shutil
from pathlib import Path

import pytest

from selfsup import digests, needs
from selfsup.compare import gather, leaderboard
from selfsup.compare.gather import Experiment
from selfsup.errors import UserError
from selfsup.params import Params
from tests.evaluation import workspace
from tests.helpers import values

FILES = (
    *("metrics/pretrain.json", "metrics/times/pretrain.json", "plots/pretrain.csv", "metrics/extract.json"),
    *("metrics/evaluate/knn.json", "evaluations/knn", "data/shards", "data/needs/shards.json", "data/watched.txt"),
)


class Places:
    """A cache whose checksums are paths in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, total: str) -> Path:
        return self.folder / total

    def json(self, total: str):
        return json.loads(self.path(total).read_text())

    def listing(self, total: str) -> dict[str, str]:
        return {path.name: str(path.relative_to(self.folder)) for path in self.path(total).iterdir() if path.is_file()}

    def has(self, total: str | None) -> bool:
        return total is not None and self.path(total).exists()

    def place(self, total: str, target: Path) -> Path:
        return Path(shutil.copytree(self.path(total), target))


@pytest.fixture
def project(tmp_path, shards, monkeypatch) -> Path:
    """What a run of simclr leaves, with figures by kNN."""
    monkeypatch.chdir(tmp_path)
    params = workspace.make(tmp_path, shards, evaluation__protocols=["knn"])
    needs.write(params, "image", "conv", tmp_path)
    workspace.evaluate("knn", params)
    written(params)
    return tmp_path


def written(params: Params) -> None:
    features = json.loads(Path("metrics/evaluate/knn.json").read_text())["computed_from"]["features"]["method"]
    run = {"method": "simclr", "seed": 0, "backbone": "conv", "weights": "w", "alarm": None, "last": {}}
    run["computed_from"] = {"kind": "image", "parameters": digests.of_training(params, "simclr", "image", "conv")}
    texts = {
        "metrics/pretrain.json": json.dumps(run),
        "metrics/times/pretrain.json": json.dumps({"seconds": 9.0}),
        "metrics/extract.json": json.dumps({"computed_from": {"weights": "w"}, "features": features}),
        "plots/pretrain.csv": "step,loss\n1,\n2,0.5\n",
        "data/watched.txt": "nothing",
    }
    for name, text in texts.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def experiment(without: str = "", **changes) -> Experiment:
    chosen = {"data__cache": "none", "tracking__enabled": False, "evaluation__protocols": ["knn"]} | changes
    made = [{"path": path, "md5": path} for path in FILES if path != without]
    return Experiment("odd-yam", "1" * 40, {"pretrain": {"outs": made}}, values(**chosen))


def test_figures_are_read_with_what_they_must_share(project):
    one = experiment()
    run = leaderboard.read(project, one, Places(project), one.values)
    assert run.found["knn"].results["method"].metrics["top1"].value > 0.5 and run.skipped == {}
    assert run.curve == [{"step": 1.0}, {"step": 2.0, "loss": 0.5}] and run.times == {"seconds": 9.0}
    assert run.conditions.budget == "50 epochs, batches of 64, fp32"
    assert run.conditions.data.startswith("digits, 16 px (data ") and run.command == "dvc exp run evaluate"
    longer = gather.command(one.values, values(pretrain__epochs=9, evaluation__encoder_protocols=["layers"]))
    assert longer.startswith("dvc exp run evaluate examine -S ") and "-S pretrain.epochs=9" in longer


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (lambda: experiment("metrics/pretrain.json"), "odd-yam: has no metrics/pretrain.json; it stopped before"),
        (lambda: experiment("metrics/evaluate/knn.json"), "odd-yam: no protocol has figures of simclr (not run)"),
        (lambda: experiment(method="byol"), "odd-yam: was not trained with its parameters; it stopped before"),
        (lambda: experiment(pretrain__epochs=9), "odd-yam: was not trained with its parameters"),
        (lambda: experiment(evaluation__knn={"k": [3], "temperature": 0.1}), "odd-yam: no protocol has figures"),
        (lambda: experiment(views={}), "odd-yam: params.yaml: views.crop_scale: missing parameter"),
    ],
)  # fmt: skip
def test_an_experiment_without_figures_of_its_own_is_left_out_with_the_reason(one, message, project):
    with pytest.raises(UserError) as error:
        leaderboard.read(project, one(), Places(project), values())
    assert str(error.value).startswith(message)


def test_what_the_cache_lost_is_named_with_the_remedy(project):
    (project / "metrics/times/pretrain.json").unlink()
    with pytest.raises(UserError, match=r"^odd-yam: DVC's cache does not have its figures \(.*\); `dvc fetch`"):
        gather.run(project, experiment(), "simclr", Places(project), values())


def test_features_that_the_cache_lost_are_named_with_the_remedy(project):
    with pytest.raises(UserError, match=r"^odd-yam: DVC's cache does not have its features/pretrained; `dvc fetch`"):
        gather.run(project, experiment(), "simclr", Places(project), values(), ["features.tolerance"])
