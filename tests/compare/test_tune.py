"""Tuning finds a better recipe, treats methods alike, survives kills, and sees no image of the test split."""

import csv
import json
import math
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsup.compare import knobs, setup, trials, tune, tuned
from selfsup.compare.knobs import Knob
from selfsup.compare.trials import Study, Trial
from selfsup.errors import UserError
from selfsup.processes.accelerator import make_accelerator
from selfsup.training import resume, session
from selfsup.training.build import method_params
from tests.helpers import ROOT, SMALL, values

RANGES = {"every": {"optimizer.lr": {"times": [0.1, 10.0]}, "temperature": {"log": [0.05, 1.0]}}}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Fifty training and twenty test images of two classes, bright squares at the top or at the bottom."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 25), ("test", 10)):
        for label in range(2):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 120, (16, 16, 3), np.uint8)
                image[4 * label : 4 * label + 8, rng.integers(0, 8) :] += 60
                Image.fromarray(image).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Where all projects keep their shards."""
    return tmp_path_factory.mktemp("shards")


@pytest.fixture
def project(tmp_path, pictures, shards, monkeypatch) -> Path:
    """A project whose trainings take half a second; the working folder."""
    root = tmp_path / "project"
    (root / "setups/tune").mkdir(parents=True)
    (root / tune.PLACE).mkdir(parents=True)
    (root / tune.PLACE / "shards").symlink_to(shards)
    data = {"data__image__source": "image_folder", "data__image__path": str(pictures), "data__validation": 0.4}
    small = {"pretrain__batch_size": 8, "pretrain__epochs": 3}
    params = values(**(SMALL | data | small))
    params["methods"] = {name: params["methods"][name] for name in ("simclr", "dcl", "ring", "simsiam", "supervised")}
    (root / "params.yaml").write_text(json.dumps(params))  # short, as it is read often
    (root / "setups/mine.yaml").write_text(json.dumps({"views": {"flip": 0.4}}))
    (root / knobs.FILE).write_text(json.dumps(RANGES))
    shutil.copytree(ROOT / "compare", root / "compare", ignore=lambda *_: ["run.py"])
    monkeypatch.chdir(root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return root


def command(monkeypatch, *words: str) -> int:
    """Run the command; its exit status."""
    monkeypatch.setattr(sys, "argv", ["tune", *words])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        tune.main()
    except SystemExit as end:
        return int(end.code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def forget(root: Path) -> None:
    """Remove all studies."""
    for folder in (root / tune.PLACE).glob("*-*/"):
        shutil.rmtree(folder)


def kept(root: Path) -> dict[str, dict]:
    """The trials on disk, by method and number, without their times."""
    found = {}
    for path in sorted((root / tune.PLACE).glob("*/trial-*.json")):
        trial = json.loads(path.read_text())
        del trial["seconds"]
        found[f"{path.parent.name.rpartition('-')[0]} {trial['number']}"] = trial
    return found


def written(root: Path, name: str = "tuned-mine") -> dict:
    return setup.read(root, name, setup.base_of(root)) | {"tuned": tuned.read(root, name).model_dump()}


def toy(best_lr: float, calls: list | None = None):
    """A stand-in for training: the nearer the learning rate is to `best_lr`, the better, in every epoch."""

    def trained(params, method, block, *rest):
        hear = rest[-1]
        if calls is not None:
            calls.append((method, block.optimizer.lr))
        off = math.log(block.optimizer.lr / best_lr) ** 2 + 0.1 * math.log(block.temperature / 0.3) ** 2
        for epoch in range(1, params.pretrain.epochs + 1):
            hear(epoch, math.exp(-off) * epoch / params.pretrain.epochs)
        return math.exp(-off)

    return trained


METHODS = ("--methods", "simclr", "dcl", "--setup", "mine")


def test_a_known_optimum_is_found_with_equally_many_trials(project, monkeypatch, capsys):
    calls: list = []
    monkeypatch.setattr(trials, "trained", toy(7.0, calls))
    assert command(monkeypatch, *METHODS, "--trials", "30") == 0
    assert [method for method, _ in calls] == ["simclr", "dcl"] * 30, "in turns"
    assert [lr for _, lr in calls[:2]] == [2.0, 2.0], "the first is the recipe as it is"
    found = written(project)
    for method in ("simclr", "dcl"):
        assert found["methods"][method]["optimizer"]["lr"] == pytest.approx(7.0, rel=0.2)
        winner = found["tuned"]["methods"][method]
        assert winner["trials"] == 30 and winner["best"] > 0.9 > winner["recipe"]
    assert found["views"] == {"flip": 0.4}, "what the tuned set-up has, the new one has"
    assert tuned.trials_of("tuned-mine", project) == {"simclr": 30, "dcl": 30}
    states = [trial["state"] for trial in kept(project).values()]
    assert states.count("pruned") > 5 and set(states[: trials.FIRST]) == {"finished"}
    assert "trial 60 of 60: dcl, trial 30 of 30: " in capsys.readouterr().err


def test_the_files_tell_what_was_found(project, monkeypatch):
    monkeypatch.setattr(trials, "trained", toy(7.0))
    command(monkeypatch, *METHODS, "--trials", "4")
    report = (project / "compare/tuned-mine/index.md").read_text()
    assert "on 30 images (seeds: 0)" in report and "kNN on 20 other images" in report and "is 5.00 points" in report
    rows = list(csv.DictReader((project / "compare/tuned-mine/index.csv").open()))
    trial = kept(project)["simclr 2"]
    assert len(rows) == 8 and rows[1]["optimizer.lr"] == str(trial["values"]["optimizer.lr"])
    best, other = (
        max(float(row["knn"]) for row in part if row["state"] == "finished") for part in (rows[:4], rows[4:])
    )
    error = max(100 * math.sqrt(p * (1 - p) / 20) for p in (best, other))
    assert f"a standard error of up to {error:.1f} points" in report
    assert f"| simclr | 4 (0, 0) | {100 * float(rows[0]['knn']):.1f} | {100 * best:.1f} |" in report
    head = (project / "setups/tuned-mine.yaml").read_text()
    assert "#   dvc exp run $(python -m selfsup.compare.setup tuned-mine) -S method=simclr\n" in head


def test_two_tunings_of_the_same_are_equal_and_one_of_another_seed_is_not(project, monkeypatch):
    monkeypatch.setattr(trials, "trained", toy(7.0))
    found = []
    for seed in ("0", "0", "1"):
        forget(project)
        command(monkeypatch, *METHODS, "--trials", "9", "--seeds", seed)
        found.append(kept(project))
    assert found[0] == found[1]
    assert all(found[0][key] != found[2][key] for key in ("simclr 2", "simclr 9", "dcl 2"))
    assert found[0]["simclr 2"]["values"] != found[0]["dcl 2"]["values"], "each method draws its own"


def test_more_trials_continue_and_other_conditions_are_another_study(project, monkeypatch):
    calls: list = []
    monkeypatch.setattr(trials, "trained", toy(7.0, calls))
    command(monkeypatch, *METHODS, "--trials", "8")
    few = kept(project)
    command(monkeypatch, *METHODS, "--trials", "11")
    assert len(calls) == 22 and {key: one for key, one in kept(project).items() if key in few} == few
    command(monkeypatch, *METHODS, "--trials", "8")
    assert len(calls) == 22
    assert tuned.trials_of("tuned-mine", project) == {"simclr": 8, "dcl": 8}, "later trials do not count"
    again = (*METHODS, "--trials", "2")
    for more in (["--epochs", "2"], ["-S", "views.grey=0.1"], ["--seeds", "1"]):
        before = len(calls)
        command(monkeypatch, *again, *more)
        assert len(calls) == before + 4, more
    (project / knobs.FILE).write_text(json.dumps({"every": {"optimizer.lr": {"times": [0.2, 10.0]}}}))
    command(monkeypatch, *again)
    monkeypatch.setattr(session, "code_checksum", lambda _: "other")
    command(monkeypatch, *again)
    assert len(calls) == 22 + 5 * 4


class Killed(BaseException):
    pass


def listening(monkeypatch, act) -> None:
    """Call `act(number of the row)` for every row of the curves that a training logs."""
    run, rows = session.run, iter(range(10**6))

    def heard(params, method, block, splits, folder, title, log, accelerator):
        def logged(row, step):
            log(row, step)
            act(next(rows))

        return run(params, method, block, splits, folder, title, logged, accelerator)

    monkeypatch.setattr(trials.session, "run", heard)


def test_killed_or_interrupted_and_continued_is_as_if_it_was_not(project, monkeypatch, capsys):
    monkeypatch.setattr("selfsup.processes.interruption.GRACE", 600)  # seconds: the machine may be busy
    monkeypatch.setattr(trials, "FIRST", 2)  # so that the third is suggested by TPE and may be pruned
    words = ("--methods", "simclr", "dcl", "--trials", "3")
    command(monkeypatch, *words)
    expected, text = kept(project), written(project, "tuned")
    assert len(expected) == 6
    forget(project)
    (project / "setups/tuned.yaml").unlink()

    def act(number: int) -> None:
        if number == 14:
            raise Killed
        if number == 42:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        listening(patch, act)
        with pytest.raises(Killed):
            command(patch, *words)
        assert list(kept(project)) == ["simclr 1"]
        assert command(patch, *words) == 130
        assert signal.setitimer(signal.ITIMER_REAL, 0) == (0, 0), "no alarm is left to kill the process"
    stopped = kept(project)
    assert 4 <= len(stopped) < 6
    assert tuned.trials_of("tuned", project) == {"simclr": len(stopped) // 2, "dcl": len(stopped) // 2}
    assert "run the same command again" in capsys.readouterr().err
    command(monkeypatch, *words)
    assert kept(project) == expected and written(project, "tuned") == text
    assert not list((project / tune.PLACE).glob("*/work-*"))


def test_stopped_at_once_writes_no_set_up(project, monkeypatch):
    monkeypatch.setattr("selfsup.processes.interruption.GRACE", 600)
    listening(monkeypatch, lambda number: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(UserError, match=r"^stopped before every method had two trials: no set-up is written; the same"):
        command(monkeypatch, "--methods", "simclr", "--trials", "2")
    assert not (project / "setups/tuned.yaml").exists()


def test_the_test_split_changes_nothing_and_the_held_out_images_decide(project, pictures, monkeypatch, tmp_path):
    words = ("--methods", "simclr", "--trials", "2")
    command(monkeypatch, *words)
    expected, text = kept(project), written(project, "tuned")
    assert {path.name for path in (project / tune.PLACE / "shards").glob("*/*/")} == {"train", "validation"}
    poisoned = tmp_path / "poisoned"
    shutil.copytree(pictures, poisoned)
    (poisoned / "test/class0").rename(poisoned / "test/x")
    (poisoned / "test/class1").rename(poisoned / "test/class0")
    (poisoned / "test/x").rename(poisoned / "test/class1")
    for path in (poisoned / "test").glob("*/*.png"):
        Image.fromarray(np.full((16, 16, 3), 255, np.uint8)).save(path)
    forget(project)
    params = json.loads((project / "params.yaml").read_text())
    params["data"]["image"]["path"] = str(poisoned)
    (project / "params.yaml").write_text(json.dumps(params))
    command(monkeypatch, *words)
    assert kept(project) == expected and written(project, "tuned") == text

    def swapped(*arguments):
        splits = held_out(*arguments)
        splits["validation"].labels = 1 - splits["validation"].labels
        return splits

    held_out = tune.held_out
    monkeypatch.setattr(tune, "held_out", swapped)
    forget(project)
    command(monkeypatch, *words)
    assert all(
        one["accuracies"] != other["accuracies"]
        for one, other in zip(kept(project).values(), expected.values(), strict=True)
    )


def one_study(project: Path, ranges: dict, method: str = "simclr", **more) -> Study:
    (project / knobs.FILE).write_text(json.dumps(ranges))
    words = ["--methods", method, "--trials", "2", *(word for pair in more.items() for word in pair)]
    return tune.studies(project, tune.requested(project, tune.arguments().parse_args(words), "tune"))[0]


def test_the_first_trial_is_the_run_of_the_pipeline(project, tmp_path):
    """Its reading is that of the weights which the stage `pretrain` would write."""
    study = one_study(project, RANGES)
    trial = study.run("simclr")
    params = tune.requested(project, tune.arguments().parse_args(["--methods", "simclr"]), "").params(0)
    splits = study.data[0]
    task, _ = session.run(
        params, "simclr", method_params(params, "simclr"), splits, tmp_path / "run", "", lambda *_: None,
        make_accelerator("fp32"),
    )  # fmt: skip
    probe = trials.knn_probe(splits["train"], splits["validation"])
    assert probe and trial.accuracies == [dict(probe(task.eval().encoder()))["knn_validation"]]
    assert trial.number == 1 and trial.values == {"optimizer.lr": 2.0, "temperature": 0.2}


def test_a_loss_that_is_not_finite_and_a_collapse_are_trials_with_their_reasons(project, monkeypatch):
    study = one_study(project, {"every": {"optimizer.lr": {"choices": [1e30]}}}, "simsiam")
    assert study.run("").state == "finished"
    trial = study.run("")
    assert (trial.state, trial.accuracies) == ("failed", []) and "the loss is not finite at step" in (
        trial.reason or ""
    )
    assert study.best(2) == study.trials[0]
    monkeypatch.setattr("selfsup.training.monitors.alarm", lambda rows: "collapsed: all is one")
    study.trials.clear()
    assert study.run("").reason == "collapsed: all is one"


def test_a_failed_trial_counts_and_the_others_continue(project, monkeypatch, capsys):
    good = toy(7.0)

    def trained(params, method, block, *rest):
        if method == "dcl" and block.optimizer.lr != 2.0:
            raise UserError("the loss is not finite")
        if method == "ring":
            raise ValueError("Input contains NaN")
        return good(params, method, block, *rest)

    monkeypatch.setattr(trials, "trained", trained)
    command(monkeypatch, *METHODS, "--trials", "7")
    states = [trial["state"] for trial in kept(project).values()]
    assert states[:7] == ["finished"] + ["failed"] * 6 and "failed" not in states[7:]
    assert written(project)["tuned"]["methods"]["dcl"]["trial"] == 1
    assert tuned.trials_of("tuned-mine", project) == {"simclr": 7, "dcl": 7}
    with pytest.raises(UserError, match=r"^ring: no trial was trained to its end, so no set-up is written; .*: Input"):
        command(monkeypatch, "--methods", "simclr", "ring", "--trials", "3", "--name", "other")
    assert not (project / "setups/other.yaml").exists()
    assert "failed (the loss is not finite)" in capsys.readouterr().err


def test_a_full_disk_is_no_failed_trial(project, monkeypatch):
    def trained(*_):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise UserError("checkpoint of step 3 could not be written") from error

    monkeypatch.setattr(trials, "trained", trained)
    with pytest.raises(UserError, match="could not be written"):
        command(monkeypatch, *METHODS, "--trials", "3")
    assert not kept(project)


def ended(number: int, state: str, accuracies: list[float]) -> Trial:
    return Trial(
        number=number, values={}, state=state, reason=None, accuracies=accuracies, readings={2: 0.9}, seconds=1
    )


def test_neither_a_pruned_nor_a_failed_nor_a_later_trial_wins():
    study = Study(None, "simclr", {}, {}, Path())
    study.trials = [
        ended(1, "finished", [0.5, 0.6]),
        ended(2, "pruned", []),
        ended(3, "failed", [0.9]),
        ended(4, "finished", [0.6, 0.5]),
        ended(5, "finished", [0.7, 0.7]),
    ]
    assert [getattr(study.best(count), "number", None) for count in range(6)] == [None, 1, 1, 1, 1, 5]


def test_a_trial_is_pruned_by_the_readings_of_earlier_ones(project, monkeypatch):
    """Not before a third of the epochs, and not after the last one."""
    seen: list = []

    def trained(*arguments):
        number = len(study.trials) + 1
        for epoch in range(1, 10):
            seen.append((number, epoch))
            arguments[-1](epoch, 0.5 if number <= trials.FIRST or (number == 7 and epoch < 9) else 0.1)
        return 0.5

    study = one_study(project, RANGES, **{"--epochs": "9"})
    monkeypatch.setattr(trials, "trained", trained)
    for _ in range(7):
        study.run("")
    assert [trial.state for trial in study.trials] == ["finished"] * 5 + ["pruned", "finished"]
    assert [epoch for number, epoch in seen if number == 6] == [1, 2, 3]
    assert study.trials[5].reason == "below the median of earlier trials after 3 epochs"


def test_choices_alone_and_as_many_trials_are_a_grid(project, monkeypatch):
    calls: list = []
    monkeypatch.setattr(trials, "trained", toy(7.0, calls))
    grid = {"every": {"optimizer.lr": {"choices": [1.0, 2.0, 4.0]}, "projector.layers": {"linear": [1, 2]}}}
    (project / knobs.FILE).write_text(json.dumps(grid))
    command(monkeypatch, "--methods", "simclr", "--trials", "6")
    tried = {tuple(trial["values"].values()) for trial in kept(project).values()}
    assert tried == {(lr, layers) for lr in (1.0, 2.0, 4.0) for layers in (1, 2)}
    with pytest.raises(
        UserError, match=r"^setups/tune/ranges\.yaml: simclr has only 6 settings; lower --trials or add"
    ):
        command(monkeypatch, "--methods", "simclr", "--trials", "7")


def test_a_damaged_trial_is_run_again(project, monkeypatch, caplog):
    monkeypatch.setattr(trials, "trained", toy(7.0))
    command(monkeypatch, *METHODS, "--trials", "4")
    expected = kept(project)
    (damaged,) = (project / tune.PLACE).glob("simclr-*/trial-003.json")
    damaged.write_text("{")
    command(monkeypatch, *METHODS, "--trials", "4")
    assert kept(project) == expected and "trial-003.json is damaged; the trial is run again" in caplog.text


def test_a_second_process_waits_and_runs_no_trial_twice(project, monkeypatch):
    calls: list = []
    monkeypatch.setattr(trials, "trained", toy(7.0, calls))
    study = one_study(project, RANGES)
    other = one_study(project, RANGES)

    def work() -> None:
        with tune.owned([other]):
            tune.run([other], 2)

    first = resume.lock(study.folder, "run")
    first.acquire()
    thread = threading.Thread(target=work)
    thread.start()
    tune.run([study], 2)
    first.release()
    thread.join(timeout=60)
    assert len(calls) == 2 and other.trials == study.trials


BAD = {
    "--methods simclrr": "--methods: unknown 'simclrr'; did you mean simclr? Known: ",
    "--methods simclr simclr": "--methods: names simclr twice; remove one",
    "--methods simclr --seeds 1 1": "--seeds: different whole numbers from 0, got 1 1",
    "--methods simclr --seeds -1": "--seeds: different whole numbers from 0, got -1",
    "--methods simclr --trials 1": "--trials: 1 leaves nothing to choose: the first is the recipe as it is; raise it",
    "--methods simclr --epochs 0": "--epochs: 0 trains nothing; give a number from 1",
    "--methods simclr --held-out 0.6": "--held-out: a share of the training images above 0 and below 0.5, got 0.6",
    "--methods simclr --setup mnie": "setups/: unknown 'mnie'; did you mean mine? Known: mine",
    "--methods simclr -S views.flop=1": "-S views.flop=1: params.yaml has no views.flop; correct the name",
    "--methods simclr --ranges no.yaml": "--ranges: no.yaml: not found; setups/tune/ranges.yaml is the project's own",
    "--methods simclr --name a/b": "--name: 'a/b' is no name of a file in setups/; use letters, digits, - and _",
    "--methods simclr --name mine": "setups/mine.yaml: would be replaced, and tuning did not write it; choose another ",
    "--file compare/temperature.yaml": "--file: the rows of temperature are temperature, not methods; choose another ",
    "--file compare/no.yaml": "compare/: unknown 'no'",
}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("words", BAD)
def test_a_wrong_argument_is_one_line(words, monkeypatch):
    with pytest.raises(UserError) as error:
        command(monkeypatch, *words.split())
    assert str(error.value).startswith(BAD[words]) and "\n" not in str(error.value)


@pytest.mark.usefixtures("project")
def test_winners_of_other_methods_are_not_lost(monkeypatch):
    monkeypatch.setattr(trials, "trained", toy(7.0))
    command(monkeypatch, *METHODS, "--trials", "2")
    with pytest.raises(UserError, match=r"^setups/tuned-mine\.yaml: would lose dcl; add to --methods"):
        command(monkeypatch, "--methods", "simclr", "--setup", "mine", "--trials", "2")


def test_images_without_labels_are_refused_before_any_trial(project, monkeypatch):
    with pytest.raises(UserError, match=r"^data\.labels: tuning compares settings by kNN, which needs labels"):
        command(monkeypatch, "--methods", "simclr", "--trials", "2", "-S", "data.labels=none")
    assert not kept(project)


def test_with_more_images_held_out_a_trial_has_as_many_steps(project):
    args = tune.arguments().parse_args(["--methods", "simclr", "--held-out", "0.2", "-S", "pretrain.epochs=8"])
    plan = tune.requested(project, args, "")
    (study,) = tune.studies(project, plan)
    assert (study.data[0]["train"].samples, study.data[0]["validation"].samples) == (40, 10)
    assert study.params.pretrain.epochs == round(8 * 3 / 5), "30 images give three steps of 8, 40 give five"


def test_a_comparison_gives_its_conditions_and_the_set_up_holds_them(project, monkeypatch):
    monkeypatch.setattr(trials, "trained", toy(7.0))
    file = {"overrides": {"views": {"flip": 0.3}, "pretrain": {"epochs": 3}}, "setup": "mine", "seeds": [1]}
    plan = {"title": "t", "expect": "e", "axis": "method", "show": {"kNN": "knn.top1"}, "methods": ["simclr", "dcl"]}
    (project / "compare/own.yaml").write_text(json.dumps(plan | file))
    command(monkeypatch, "--file", "compare/own.yaml", "--trials", "2", "-S", "views.grey=0.1")
    found = written(project, "tuned-own-mine")
    assert (found["views"], found["pretrain"]) == ({"flip": 0.3, "grey": 0.1}, {"epochs": 3})
    assert found["tuned"]["seeds"] == [1] and list(found["tuned"]["methods"]) == ["simclr", "dcl"]


def test_the_difference_of_parameters_is_an_overlay():
    base = {"a": {"x": 1, "y": [2]}, "optimizer": {"name": "lars", "lr": 2.0, "trust": 1}, "options": {"width": 8}}
    values = {"a": {"x": 1, "y": [3]}, "optimizer": {"name": "sgd", "lr": 2.0}, "options": {"depth": 3}, "new": None}
    own = setup.difference(base, values)
    assert own == {"a": {"y": [3]}, "optimizer": {"name": "sgd", "lr": 2.0}, "options": {"depth": 3}, "new": None}
    assert setup.merged(base, own) == values
    assert setup.difference({"x": 1}, {"x": True}) == {"x": True} and setup.difference(base, base) == {}


def test_settings_of_a_knob_are_counted():
    assert Knob("a", 1, 1, 4).settings == 4 and Knob("a", 1.0, 1.0, 4.0).settings == math.inf
    assert Knob("a", 1, choices=(1, 2)).settings == 2
