"""Outs that are whole or not there."""

import os
import signal
from pathlib import Path

import pytest

from selfsup.files import beside, replaced


def write(place: Path, text: str) -> None:
    """A file, or a folder with one file, as the name says."""
    if place.name.startswith("folder"):
        place.mkdir()
        place = place / "file"
    place.write_text(text)


def content(place: Path) -> str:
    return (place / "file" if place.is_dir() else place).read_text()


@pytest.fixture(params=["file", "folder"])
def place(request, tmp_path) -> Path:
    return tmp_path / "deep" / request.param


def test_the_new_takes_the_place_of_the_old(place):
    for text in ("old", "new"):
        with replaced(place) as new:
            write(new, text)
        assert content(place) == text
        assert list(place.parent.iterdir()) == [place]


def test_an_error_leaves_what_was_there(place):
    with replaced(place) as new:
        write(new, "old")
    with pytest.raises(OSError, match="full"), replaced(place) as new:
        write(new, "half")
        raise OSError("full")
    assert content(place) == "old" and list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize("moment", ["written", "between the renames"])
def test_a_kill_leaves_the_old_or_nothing_and_the_next_run_mends_it(place, moment, monkeypatch):
    with replaced(place) as new:
        write(new, "old")
    child = os.fork()
    if not child:
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        monkeypatch.setattr(Path, "replace", die if moment == "between the renames" else Path.replace)
        try:
            with replaced(place) as new:
                write(new, "half")
                die() if moment == "written" else None
        finally:
            os._exit(0)  # it was not killed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert content(place) == "old" if place.exists() else (moment != "written" and place.name == "folder")
    assert beside(place).exists()
    with replaced(place) as new:
        assert not new.exists()
        write(new, "new")
    assert content(place) == "new" and list(place.parent.iterdir()) == [place]
