"""What a comparison asks for, refuses, shows and estimates, without DVC."""

import io
import os
import signal
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from selfsup.compare import estimate, git, jobs, measure, plan, progress, run, setup
from selfsup.compare.jobs import DONE, FAILED, QUEUED, RUNNING, STOPPED, Job, look, reason
from selfsup.compare.leaderboard import differing
from selfsup.compare.locks import Project
from selfsup.compare.plan import Cell
from selfsup.errors import UserError
from selfsup.task import Progress
from tests.helpers import ROOT, SMALL, params, values

BASE = setup.base_of(ROOT)


def job(method: str = "simclr", seed: int = 0, **changes) -> Job:
    """A job that nobody runs."""
    cell = Cell(method, "", method, method, seed, {**BASE, "method": method, "seed": seed})
    found = Job(cell, None, [], f"{method}-s{seed}", f"{method}{seed}", "baselines")
    for name, value in changes.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Running stage 'shard':", "error: data.image.path: not found", "ERROR: failed to reproduce 'shard'"],
         "data.image.path: not found"),
        (["ERROR: Unable to acquire lock"], "Unable to acquire lock"),
        (["ERROR: failed to reproduce 'pretrain': exit 1", "error: a", "error: no space left on device; free some"],
         "no space left on device; free some"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failed_run_is_what_its_stage_says(lines, expected, tmp_path):
    (tmp_path / "log").write_text("\n".join(lines))
    assert reason(tmp_path / "log", 255) == expected


def test_a_run_that_said_nothing_names_its_output(tmp_path):
    assert reason(tmp_path / "log", -9) == f"exit status -9; its output is in {tmp_path / 'log'}"


def test_the_stage_and_its_share_are_read_from_the_output(tmp_path):
    one = job(state=RUNNING, log=tmp_path / "log")
    one.log.write_text("Running stage 'shard':\nshard: 100%|####|\nStage 'pixels' is cached\n")
    look(one)
    assert one.stage == "pixels"
    with one.log.open("a") as file:
        file.write("Running stage 'pretrain':\nsimclr:   3%|#  | 1/30\rsimclr:  12%|#  | 4/30\r")
    look(one)
    assert one.stage == "pretrain 12 %"


def ended(method: str, seconds: float) -> Job:
    return job(method, state=DONE, began=0.0, ended=seconds)


def test_what_is_left_is_expected_to_take_as_long_as_what_was_run(monkeypatch):
    monkeypatch.setattr(jobs.time, "monotonic", lambda: 1000.0)
    assert progress.remaining([job()], 1) is None
    plain = [ended("simclr", 100), ended("byol", 300), job("simclr"), job("mae"), job("byol", state=RUNNING, began=900)]
    assert progress.remaining(plain, 1) == 100 + 200 + (300 - 100)
    assert progress.remaining(plain, 2) == 250
    assert progress.remaining([job("simclr", state=DONE), job("byol")], 1) is None, "it was found, not run"


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_are_in_words(seconds, text):
    assert progress.duration(seconds) == text


def test_away_from_a_terminal_a_line_tells_each_change():
    stream, one, other = io.StringIO(), job(), job("byol")
    with progress.shown(1, stream) as view:
        view([one, other])
        one.state = RUNNING
        view([one, other])
        view([one, other])
        one.state, one.reason = FAILED, "no space left on device"
        view([one, other])
    assert stream.getvalue().splitlines() == [
        "[0/2] simclr, seed 0: running",
        "[1/2] simclr, seed 0: failed: no space left on device",
    ]


def test_the_table_shows_first_what_runs_and_what_failed():
    from rich.console import Console

    many = [job(seed=seed, state=DONE) for seed in range(30)]
    many[20].state, many[25].state, many[25].reason = RUNNING, FAILED, "why it failed"
    console = Console(file=io.StringIO(), width=100)
    console.print(progress.table(many, 1, 12))
    text = console.file.getvalue()
    assert "29 of 30 runs ended" in text and "seed 20" in text and "why it failed" in text and "24 more" in text
    assert len(text.splitlines()) <= 12


def test_what_runs_share_is_computed_by_one_of_them_first(monkeypatch):
    monkeypatch.setattr(jobs, "EVERY", 0.01)
    seen: list[tuple[str, set[str]]] = []
    a, b, c = job("simclr"), job("byol"), job("mae", shared="others")
    running: set[str] = set()

    def work(one: Job) -> None:
        running.add(one.name)
        one.state = RUNNING
        jobs.time.sleep(0.1)
        seen.append((one.name, set(running)))
        running.discard(one.name)
        one.state = DONE

    runner = jobs.Runner(None, None, 2, lambda _: None)
    monkeypatch.setattr(runner, "_one", work)
    runner.run([a, b, c], set())
    assert dict(seen)["simclr-s0"] <= {"simclr-s0", "mae-s0"}, "byol waits for what simclr computes"
    assert {a.state, b.state, c.state} == {DONE}


def test_a_failed_run_leaves_the_others_alone(monkeypatch):
    monkeypatch.setattr(jobs, "EVERY", 0.01)
    runner = jobs.Runner(Project(ROOT, git.snapshot(ROOT)), None, 1, lambda _: None)
    monkeypatch.setattr(jobs.shutil, "disk_usage", lambda _: SimpleNamespace(free=11_000_000))

    def work(one: Job) -> None:
        if one.cell.method == "simclr":
            raise OSError(28, "No space left on device")
        one.state = DONE

    monkeypatch.setattr(runner, "_one", work)
    first, second = job("simclr"), job("byol")
    runner.run([first, second], set())
    assert (first.state, second.state) == (FAILED, DONE)
    assert first.reason == "[Errno 28] No space left on device; only 11 MB of disk are left, so free some space"


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_request_to_stop_is_passed_on_and_nothing_else_is_started(number, ended, monkeypatch):
    monkeypatch.setattr(jobs, "EVERY", 0.01)
    runner = jobs.Runner(None, None, 1, lambda _: None)
    closed = []

    def work(one: Job) -> None:
        one.state = RUNNING
        os.kill(os.getpid(), number)
        assert runner.stop.wait(20)
        one.state = STOPPED
        jobs.time.sleep(0.1)  # the copy is removed
        closed.append(one.name)

    monkeypatch.setattr(runner, "_one", work)
    first, second = job("simclr"), job("byol")
    before = signal.getsignal(number)
    with pytest.raises(ended):
        runner.run([first, second], set())
    assert (closed, second.state) == ([first.name], QUEUED)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_under_nohup_a_closed_terminal_stops_nothing(handler):
    before, stop = signal.signal(signal.SIGHUP, handler), threading.Event()
    try:
        with jobs.stopping(stop) as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.is_set() == bool(request) == (handler == signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("row", ["0..1", "+", "x" * 300, "a@{b", "size, large", ".hidden.lock"])
def test_every_row_has_a_name_that_git_and_dvc_take(row):
    wanted = Project(ROOT, git.snapshot(ROOT)).wanted(BASE)
    name = run.job(BASE, Cell(row, "", row, row, 3, BASE), wanted).name
    git.git(ROOT, "check-ref-format", f"refs/exps/ab/cd/{name}")
    assert name[0].isalnum() and len(name) < 100 and "-s3-" in name


@pytest.mark.parametrize(
    ("given", "count", "expected"),
    [({}, 1, "8"), ({}, 3, "2"), ({"NPROC": "2"}, 2, "2"), ({"OMP_NUM_THREADS": "5"}, 4, "5"), ({}, 20, "1")],
)
def test_runs_share_the_cores(given, count, expected, monkeypatch):
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 8)
    for name in ("OMP_NUM_THREADS", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert jobs.environment(count)["OMP_NUM_THREADS"] == expected


def test_rows_of_other_data_or_methods_of_another_budget_are_refused():
    project = Project(ROOT, git.snapshot(ROOT))
    one = plan.of_methods(plan.read(ROOT, "methods"), ["simclr", "byol"])
    simclr, byol = plan.cells(ROOT, "methods", one)
    wanted = [project.wanted(cell.values) for cell in (simclr, byol)]
    run.comparable(one, [simclr, byol], wanted)
    longer = replace(byol, values=setup.merged(byol.values, {"pretrain": {"epochs": 51}}))
    with pytest.raises(UserError, match=r"^simclr and byol differ in budget \(`pretrain`\), so their figures must"):
        run.comparable(one, [simclr, longer], wanted)
    run.comparable(one.model_copy(update={"methods": False}), [simclr, longer], wanted)  # a study of batch sizes, say
    fewer = project.wanted(setup.merged(byol.values, {"data": {"limit": 100}}))
    with pytest.raises(UserError, match=r"^simclr and byol differ in data, "):
        run.comparable(one, [simclr, byol], [wanted[0], fewer])


def test_the_leaderboard_leaves_out_nothing_that_is_asked_for(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["run", "--leaderboard", "--seeds", "0"])
    with pytest.raises(UserError, match=r"^--seeds: the leaderboard has every experiment of the data set; leave"):
        run.main()


def test_the_leaderboard_says_in_what_recipes_differ():
    recipes = [{"lr": 1, "tau": 2}, {"lr": 1, "tau": 3}, {"lr": 9}]
    assert differing(recipes, ["simclr", "simclr", "byol"]) == ["tau=2", "tau=3", ""]
    assert differing(recipes) == ["lr=1, tau=2", "lr=1, tau=3", "lr=9, tau=None"]


def test_an_estimate_has_time_memory_and_disk_of_every_row_and_what_is_shared(hundred, tmp_path):
    """Two methods on a hundred images: the structure, and what can be said exactly."""
    small = values(**(SMALL | {"pretrain__epochs": 40, "evaluation__protocols": ["knn"], "baselines": ["random"]}))
    measured = estimate.child(small, hundred, True, tmp_path, 1)
    assert measured["steps"] == 40 * (measured["samples"]["train"] // 32) and measured["epochs"] == 40
    assert 0 < measured["step"] < measured["start"] and measured["memory"] > 100e6
    assert set(measured["protocols"]) == {"knn"} and measured["protocols"]["knn"] > 0
    one = job(state=QUEUED)
    one.cell = replace(one.cell, values=small)
    cost = estimate.run_cost(measured, measured, one)
    assert cost.seconds > measured["steps"] * measured["step"]
    samples = sum(measured["samples"].values())
    assert cost.disk == 2 * measured["weights"] + 4 * samples * measured["width"]
    found = estimate.Estimate({"simclr": (3, cost)}, estimate.Cost(10, 1e3, 7e6), ["A note."])
    total = found.total()
    assert (total.seconds, total.memory, total.disk) == pytest.approx(
        (3 * cost.seconds + 10, cost.memory, 3 * cost.disk + 7e6)
    )
    text = estimate.said(found, 2, 5, 1).splitlines()
    assert (
        text[0].split("  ")[-1] == "disk of a run" and text[1].startswith("simclr  3 ") and text[2].startswith("shared")
    )
    assert text[-2].endswith("2 of 5 runs are done already.") and text[-1] == "A note."
    assert not [path for path in tmp_path.iterdir() if path.name in ("data", "models", "features", "metrics")]


@pytest.mark.parametrize("per_epoch", [2, 100])
def test_the_time_of_a_step_is_told_apart_from_that_of_a_sweep(per_epoch, tmp_path, monkeypatch):
    """Steps of 1 s, and a sweep of 10 s before every second epoch, by a clock of the test's."""
    clock = [0.0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure.time, "monotonic", lambda: clock[0])

    def spend(seconds: float) -> None:
        clock[0] += seconds

    def train(task, *_) -> None:
        for step in range(1_000):
            if step % per_epoch == 0:
                task.start_epoch(Progress(step, 1_000, per_epoch), None)
            spend(1)
            task.after_step({}, None)

    def start_epoch(progress, _) -> None:
        spend(10 if progress.epoch % 2 == 0 else 0)

    monkeypatch.setattr("selfsup.training.loop.train", train)
    monkeypatch.setattr("selfsup.training.probe.knn_probe", lambda *_: None)
    task = SimpleNamespace(start_epoch=start_epoch, after_step=lambda *_: None)
    block = SimpleNamespace(every=2, optimizer=None)
    found = measure.trained(task, params(), block, {"train": None, "validation": None})
    assert found == {"step": 1.0, "sweep": 10.0, "reading": 0.0}


def test_a_method_that_cannot_be_measured_says_why(tmp_path, monkeypatch):
    (tmp_path / "measure.py").write_text("import sys; sys.exit('  3%|#  | 1/9error: data/shards: not found')")
    monkeypatch.setattr(estimate, "MEASURE", tmp_path / "measure.py")
    with pytest.raises(UserError, match=r"^simclr: cannot be measured: data/shards: not found$"):
        estimate.child(values(), tmp_path, False, tmp_path, 1)


def test_nothing_is_estimated_where_all_is_done():
    assert estimate.estimate(None, [job(state=DONE)], [], set(), 1) == "every run is done: nothing will be run"
