"""Checkpoints survive damage and a full disk."""

import errno

import pytest
import torch

from selfsup.errors import UserError
from selfsup.training import checkpoint


def state(step):
    return {"step": step, "task": {"w": torch.full((100,), float(step))}}


def test_the_newest_is_loaded_and_two_are_kept(tmp_path):
    assert checkpoint.load(tmp_path) is None
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, state(step))
    assert checkpoint.load(tmp_path)["step"] == 10
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_one_is_named_and_passed_over(tmp_path, capsys, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step))
    newest = max(tmp_path.glob("*.pt"))
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "flip" else content[:-10])
    assert checkpoint.load(tmp_path)["step"] == 1
    assert newest.name in capsys.readouterr().err


def test_a_program_in_place_of_weights_is_not_run(tmp_path, capsys):
    checkpoint.save(tmp_path, 1, state(1))
    ran = tmp_path / "ran"

    class Program:
        def __reduce__(self):
            return (ran.touch, ())

    checkpoint.save(tmp_path, 2, state(2) | {"task": Program()})
    assert checkpoint.load(tmp_path)["step"] == 1
    assert "nothing in it is executed" in capsys.readouterr().err and not ran.exists()


@pytest.mark.parametrize("where", ["write", "flush"])
def test_a_full_disk_is_one_line_and_the_old_checkpoint_survives(tmp_path, monkeypatch, where):
    checkpoint.save(tmp_path, 1, state(1))

    def full(*_):
        if where == "write":
            raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((torch, "save", full) if where == "write" else (checkpoint.os, "fsync", full)))
    with pytest.raises(UserError, match="previous checkpoint is intact") as caught:
        checkpoint.save(tmp_path, 2, state(2))
    assert "\n" not in str(caught.value)
    assert [path.name[:14] for path in tmp_path.iterdir()] == ["step-000000001"]
    assert checkpoint.load(tmp_path)["step"] == 1
