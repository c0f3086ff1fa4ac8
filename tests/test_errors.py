"""A stage ends in one line that is true: what the user can fix has its remedy, a fault of the program its traceback."""

import errno
import logging
import os
import re
import signal
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from selfsup import logs
from selfsup.errors import WORKERS, UserError, missing, one_line_errors, writer
from tests.evaluation import workspace
from tests.helpers import ROOT, values

STAGES = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]


def ends(error: BaseException) -> str:
    """The line with which a stage ends that raises `error`."""
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code != 0
    assert "\n" not in str(ended.value.code)
    return str(ended.value.code)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some disk space, then run the same command again"),
        (errno.EDQUOT, "free some disk space, then run the same command again"),
        (errno.EACCES, "give this user access to it, then run the same command again"),
        (errno.EROFS, "give this user access to it, then run the same command again"),
        (errno.EPERM, "give this user access to it, then run the same command again"),
    ],
)
def test_what_the_user_can_do_about_the_system(here, number, remedy):
    assert ends(OSError(number, os.strerror(number), "x.npy")) == f"error: {os.strerror(number)} (x.npy): {remedy}"
    assert not (here / ".cache").exists()


@pytest.mark.parametrize(
    "error",
    [
        KeyError("parent"),
        AssertionError("a\nb"),
        RecursionError("too deep"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "nowhere/x"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError("of no number"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_everything_else_is_a_fault_whose_traceback_is_in_a_file(here, error):
    line = ends(error)
    found = re.search(r": a fault of the program; its traceback is in (\.cache/logs/\S+\.log)$", line)
    assert found and not re.search("space|access|run the same", line), line
    text = (here / found[1]).read_text()
    assert "Traceback (most recent call last)" in text and "raise error" in text
    assert type(error).__name__ in text


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")])
def test_memory_that_does_not_suffice_is_no_fault_of_the_program(here, error):
    assert re.match(r"error: out of memory \(.*\): end other programs, or in training lower ", ends(error))
    assert not (here / ".cache").exists()


def test_files_of_faults_do_not_grow_without_bound(here, monkeypatch):
    monkeypatch.setattr(logs, "KEPT", 3)
    for i in range(6):
        (here / ".cache/logs").mkdir(parents=True, exist_ok=True)
        old = here / f".cache/logs/old-{i}.log"
        old.write_text("old")
        os.utime(old, (i, i))
    path = logs.keep_fault("x" * 10_000_000)
    assert sorted(file.name for file in path.parent.iterdir()) == sorted(["old-4.log", "old-5.log", path.name])
    assert path.stat().st_size < 300_000


def test_a_fault_that_no_file_takes_is_on_stderr(here, capsys):
    (here / ".cache").write_text("no folder")
    assert "its traceback is above" in ends(KeyError("parent"))
    assert "KeyError: 'parent'" in capsys.readouterr().err


def test_of_several_processes_the_first_prints_the_error(here, monkeypatch):
    monkeypatch.setenv(WORKERS, str(here))
    assert ends(UserError("the same on all")) == "error: the same on all"
    assert ends(UserError("the same on all")) == "1"
    monkeypatch.setenv(WORKERS, str(here / "removed, as its launcher was killed"))
    assert ends(UserError("said all the same")) == "error: said all the same"


@pytest.mark.parametrize(
    ("level", "said"),
    [("error", ""), ("warning", "a warning\n"), ("info", "a warning\na note\n"), ("", "a warning\na note\n")],
)
def test_the_level_of_the_log(monkeypatch, capsys, level, said):
    monkeypatch.setenv("SELFSUP_LOG", level) if level else monkeypatch.delenv("SELFSUP_LOG", raising=False)
    with one_line_errors():
        log = logging.getLogger("selfsup.somewhere")
        log.warning("a warning")
        log.info("a note")
        log.debug("a step")
    assert capsys.readouterr().err == said


def test_debug_prints_steps_and_tracebacks(monkeypatch, capsys):
    monkeypatch.setenv("SELFSUP_LOG", "debug")
    assert ends(UserError("mistaken")) == "error: mistaken"
    said = capsys.readouterr().err
    assert "DEBUG selfsup.errors: this ends the stage" in said and "UserError: mistaken" in said


def test_an_unknown_level_is_one_line(monkeypatch):
    monkeypatch.setenv("SELFSUP_LOG", "loud")
    assert ends(KeyError("not reached")) == "error: SELFSUP_LOG=loud: must be one of debug, info, warning, error"


def test_a_hostile_name_in_the_log_is_written_out(monkeypatch, capsys):
    monkeypatch.delenv("SELFSUP_LOG", raising=False)
    with one_line_errors():
        logging.getLogger("selfsup.somewhere").warning("%s is damaged", "a\x1b[2J\nerror: b")
    assert capsys.readouterr().err == "a\\x1b[2J\\nerror: b is damaged\n"


def outs() -> list[tuple[str, str]]:
    """Every out of dvc.yaml for an item of its matrix, and the name of the stage that writes it."""
    found = []
    for name, stage in STAGES.items():
        if name == "examine":
            continue  # its outs lie beside those of evaluate
        (item,) = stage.get("matrix") or [""]
        for kind in ("outs", "metrics", "plots"):
            for entry in stage.get(kind, []):
                out = next(iter(entry)) if isinstance(entry, dict) else entry
                found.append((out.replace(f"${{item.{item}}}", "conv"), f"{name}@conv" if "item" in out else name))
    return found


@pytest.mark.parametrize(("out", "stage"), outs())
def test_whatever_a_stage_writes_is_known_as_its_own(here, out, stage):
    assert str(missing(out)) == f"{out}: not found; run `dvc repro {stage}` first"
    assert writer(f"{out}/below.json") == writer(here / out) == stage
    assert writer(f"{out}.other") is writer(f"elsewhere/{out}") is None


@pytest.mark.parametrize(("listed", "stage"), [([], "evaluate@a"), (["b"], "evaluate@a"), (["b", "a"], "examine@a")])
def test_of_two_stages_with_the_same_outs_the_one_that_lists_the_item_is_named(here, listed, stage):
    YAML().dump({"evaluation": {"protocols": ["linear"], "encoder_protocols": listed}}, here / "params.yaml")
    assert writer("evaluations/a/details.json") == writer("metrics/evaluate/a.json") == stage


PROTOCOL = values()["evaluation"]["protocols"][0]
PRETRAINED = "models/pretrained/task.safetensors"


@pytest.mark.parametrize(
    ("script", "removed", "stage"),
    [
        ("watch", "data/needs", "check"),
        ("baseline backbone", "data/needs/backbone.json", "check"),
        ("pretrain", "data/shards", "shard"),
        ("extract", "data/shards", "shard"),
        ("extract", PRETRAINED, "pretrain"),
        ("baseline pixels", "data/shards", "shard"),
        ("baseline backbone", "data/shards", "shard"),
        (f"evaluate {PROTOCOL}", "data/shards", "shard"),
        (f"evaluate {PROTOCOL}", "features", "extract"),
        (f"evaluate {PROTOCOL}", "features/pretrained/test.npy", "extract"),
        (f"evaluate {PROTOCOL}", "features/baselines/pixels/train.npy", "pixels"),
        (f"evaluate {PROTOCOL}", "features/baselines/random/train.npy", "baseline"),
        ("report", "data/shards", "shard"),
        ("report", "features", "extract"),
        ("report", f"evaluations/{PROTOCOL}", f"evaluate@{PROTOCOL}"),
    ],
)
def test_a_missing_input_names_the_stage_to_run(here, hundred, monkeypatch, script, removed, stage):
    workspace.make(here, hundred, **workspace.quick())
    (here / PRETRAINED).parent.mkdir(exist_ok=True)
    monkeypatch.syspath_prepend(ROOT / "stages")
    if removed.startswith("evaluations"):
        run(f"evaluate {PROTOCOL}", monkeypatch)
    (here / removed).exists() and (here / removed).rename(here / "removed")
    with pytest.raises(SystemExit) as ended, one_line_errors():
        run(script, monkeypatch)
    line = str(ended.value.code)
    assert line.startswith(f"error: {removed}"), line
    assert line.endswith(f": not found; run `dvc repro {stage}` first"), line


def run(command: str, monkeypatch) -> None:
    """A stage's `main`, in this process, whose signal handlers stay as they were."""
    script, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [f"stages/{script}.py", *arguments])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        __import__(script).main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_evaluating_before_pretraining_as_a_user_sees_it(tmp_path):
    """The whole stage, in a folder that has parameters and nothing else."""
    YAML().dump(values(), tmp_path / "params.yaml")
    command = [sys.executable, str(ROOT / "stages/evaluate.py"), PROTOCOL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"error: \S+: not found; run `dvc repro (extract|shard)` first\n", done.stderr), done.stderr


def test_no_module_prints_its_notes():
    """They go to the log, whose level is set; only the last line of a stage does not."""
    sources = [*(ROOT / "ssl").rglob("*.py"), *(ROOT / "stages").glob("*.py")]
    printing = {path.name for path in sources if re.search(r"print\([^\n]*file=sys\.stderr", path.read_text())}
    assert printing <= {"errors.py", "logs.py"}
    assert not [
        path for path in sources if "logging.getLogger(" in (text := path.read_text()) and 'print(f"note' in text
    ]
