"""Another kind of data than images goes through sharding and reading by files in its own name only (`toykind/`)."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsup import blocks
from selfsup.blocks import KindData, Shared
from selfsup.data import formats, sources
from selfsup.data.index import load_index, verify
from selfsup.data.loader import Split, open_split, ordered_batches
from selfsup.data.shards import said, write
from selfsup.data.watch import watched
from selfsup.errors import UserError
from selfsup.needs import READING
from tests import toykinds
from tests.data.make import contents
from tests.helpers import ROOT, params

pytestmark = pytest.mark.usefixtures("sequence_kind")


def data(**overrides) -> KindData:
    """`data.sequence` with the shared keys."""
    shared = {name: value for name, value in overrides.items() if name in Shared.model_fields}
    block = toykinds.BLOCK | {name: value for name, value in overrides.items() if name not in shared}
    options = {f"data__{name}": value for name, value in ({"cache": "memory"} | shared).items()}
    return params(data__sequence=block, **options).data.of("sequence")


def folder_of(root: Path, sequences: dict[str, str]) -> dict[str, str]:
    """Files below `root`; the source that reads them."""
    for name, text in sequences.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return {"source": "sequence_folder", "path": str(root)}


def written(classes: str = "ab", count: int = 12, first: int = 0) -> dict[str, str]:
    """Different sequences of 3 to 7 numbers, by file."""
    names = [f"{label}/{i:02d}.txt" for label in classes for i in range(count)]
    return {name: " ".join(map(str, range(first + n, first + n + 3 + n % 5))) for n, name in enumerate(names)}


@pytest.fixture(scope="module")
def steps(sequence_kind, tmp_path_factory) -> Path:  # noqa: ARG001 - mounted before
    """The 300 sequences that come with the kind, in shards of 40."""
    folder = tmp_path_factory.mktemp("steps") / "shards"
    write(data(samples_per_shard=40), 0, folder, processes=1)
    return folder


def split_of(folder: Path, name: str = "train", **overrides) -> Split:
    return open_split(folder, name, data(**overrides))


def test_batches_hold_the_kinds_own_tensors(steps):
    split = split_of(steps)
    batch = split.gather([5, 0, 5])
    assert list(batch) == ["id", "tokens", "valid", "label"]
    assert (batch["tokens"].dtype, batch["tokens"].shape) == (torch.int32, (3, 8))
    assert (batch["valid"].dtype, batch["valid"].tolist()) == (torch.int16, [8, 8, 8])
    for row, number in enumerate([5, 0, 5]):
        assert batch["tokens"][row].tolist() == [int(word) + 1 for word in split.read(number).split()]
        assert split.classes[batch["label"][row]] == ["ones", "twos", "threes"][int(split.names[number][:-4]) % 3]
    assert sum(len(each["id"]) for each in ordered_batches(split, 50)) == len(split) == 216


def test_the_index_holds_the_facts_of_the_training_samples(steps):
    index, split = load_index(steps), split_of(steps)
    numbers = Counter(word for number in range(len(split)) for word in split.read(number).split())
    assert index.kind == "sequence" and split.facts == index.facts and index.facts.lowest == 0
    shares = [numbers[b"%d" % number] / numbers.total() for number in range(index.facts.vocabulary - 1)]
    assert index.facts.shares == pytest.approx([0, *shares])
    assert said(index)[0] == "train 216, validation 24, test 60 sequences; 3 classes; 0 skipped"


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from selfsup import blocks, config
from selfsup.data.shards import write
if __name__ == "__main__":
    data = config.parse(blocks.Data, eval(sys.argv[2])).of("sequence")
    write(data, 0, sys.argv[3], processes=3)
"""


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    """In a copy of the package to which the kind's files were added, as worker processes import it by name."""
    shutil.copytree(ROOT / "ssl/selfsup", tmp_path / "ssl/selfsup", ignore=shutil.ignore_patterns("__pycache__"))
    toykinds.copy_into(tmp_path / "ssl/selfsup")
    (tmp_path / "program.py").write_text(PROGRAM)
    texts = written(first=-5)  # numbers below 0: some shards are read twice
    values = data(samples_per_shard=4, **folder_of(tmp_path / "texts", texts))
    shared = values.model_dump(include=set(Shared.model_fields))
    section = shared | {"sequence": values.model_dump(exclude=set(shared))}
    command = [sys.executable, "program.py", str(tmp_path / "ssl"), repr(section), str(tmp_path / "three")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for again in ("one", "two"):
        write(values, 0, tmp_path / again, processes=1)
        assert contents(tmp_path / "three") == contents(tmp_path / again)
    assert len(list((tmp_path / "three/train").glob("*.tar"))) == 5
    assert load_index(tmp_path / "three").facts.lowest == -5


def test_what_needs_all_files_is_read_twice(tmp_path):
    texts = written() | {"a/30.txt": "-3 4", "b/30.txt": "7"}
    values = data(samples_per_shard=4, length=5, **folder_of(tmp_path / "texts", texts))
    index = write(values, 0, tmp_path / "shards", processes=1)
    assert index.facts.lowest == -3
    seen = {}
    for name in index.splits:
        split = open_split(tmp_path / "shards", name, values)
        for number, batch in enumerate(split.gather(range(len(split)))["tokens"]):
            seen[split.names[number]] = [token - 4 for token in batch.tolist() if token]
    assert seen == {name: [int(word) for word in text.split()][:5] for name, text in texts.items()}
    assert sum(len(text.split()) < 5 for text in texts.values()) == int(index.notes[0].split()[0])


def test_all_kinds_of_faults_in_shards_are_found(steps, tmp_path):
    copy = shutil.copytree(steps, tmp_path / "shards")
    values = json.loads((copy / "index.json").read_text())
    for lowest, fault in ((1, "edited since it was written"), ("a", "damaged or edited")):
        (copy / "index.json").write_text(json.dumps(values | {"facts": values["facts"] | {"lowest": lowest}}))
        with pytest.raises(UserError, match=f"{fault}.*run `dvc repro --force --single-item shard`"):
            load_index(copy)
    no_file = r"data/formats/nothing\.py: not found; the kind of data 'nothing' needs it"
    for kind, fault in (("nothing", no_file), ("../image", "damaged or edited"), ("image.files", "damaged or edited")):
        (copy / "index.json").write_text(json.dumps(values | {"kind": kind}))
        with pytest.raises(UserError, match=rf"index\.json: {fault}"):
            load_index(copy)
    (copy / "index.json").write_text(json.dumps(values))
    tar = copy / "train/000001.tar"
    tar.write_bytes(tar.read_bytes().replace(b" 1 ", b" 2 ", 1))
    verify(copy, "size")
    with pytest.raises(UserError, match=r"train/000001\.tar: its bytes changed"):
        verify(copy)


def test_shards_of_another_kind_are_refused(steps):
    with pytest.raises(UserError, match="of the kind image, but sequence is needed"):
        open_split(steps, "train", params().data.of("image"))
    with pytest.raises(UserError, match=r"pretrain\.batch_size: 500 is more than the 216 training sequences; lower it"):
        from selfsup.data.loader import train_batches

        train_batches(split_of(steps), seed=0, batch_size=500, start_step=0, steps=1)


@pytest.mark.parametrize("cache", ["disk", "none", "auto"])
def test_every_cache_holds_arrays_of_any_shape(steps, tmp_path, monkeypatch, cache):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    expected = split_of(steps).gather([3, 1])
    for _ in range(2):  # written, then read
        found = split_of(steps, cache=cache).gather([3, 1])
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    shorter = split_of(steps, cache=cache, length=3).gather([3, 1])
    assert torch.equal(shorter["tokens"], expected["tokens"][:, :3]), "another length needs no other shards"
    sizes = sorted(file.stat().st_size for file in tmp_path.rglob("tokens"))
    assert sizes == ([] if cache == "none" else [216 * 3 * 4, 216 * 8 * 4])
    assert [file.stat().st_size for file in tmp_path.rglob("valid")] == [216 * 2] * len(sizes)


def test_arrays_that_are_not_as_declared_are_an_error(steps, monkeypatch):
    from selfsup.data.formats import sequence

    monkeypatch.setattr(sequence.Decoder, "__call__", lambda self, file: {"tokens": np.int32(1), "valid": np.int16(1)})
    with pytest.raises(ValueError, match=r"tokens: decoded to \(\) int32, but declared as .*\(8,\)"):
        split_of(steps).gather([0])


def test_a_signal_does_not_hide_ids(steps, monkeypatch):
    from selfsup.data.formats import sequence

    monkeypatch.setattr(sequence.Decoder, "signals", {"id": sequence.Signal((), np.int64)})
    with pytest.raises(UserError, match=r"data/formats/sequence\.py: no signal may be named id; rename it"):
        split_of(steps)


def test_another_version_of_the_decoder_has_another_cache(steps, tmp_path, monkeypatch):
    from selfsup.data.formats import sequence

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for version in (1, 2):
        monkeypatch.setattr(sequence, "VERSION", version)
        split_of(steps, cache="disk").gather([0])
    assert len(list(tmp_path.rglob("tokens"))) == 2


COPY = {"a/50.txt": "100 101 102", "b/50.txt": "100  101\n102\n"}  # other bytes, equal numbers


def test_copies_are_sequences_of_equal_numbers(tmp_path):
    options = folder_of(
        tmp_path / "texts", written("ab", 40) | COPY | {"a/51.txt": "100 101", "b/51.txt": "10010 1102"}
    )
    index = write(data(**options), 0, tmp_path / "warn", processes=1)
    assert index.copies.surplus == 1 and index.copies.relabelled == 2
    assert "2 sequences equal another one with another label (such as a/50.txt and b/50.txt)" in index.notes[-1]
    index = write(data(duplicates="drop", **options), 0, tmp_path / "drop", processes=1)
    assert sum(index.samples(split) for split in index.splits) == 83
    assert "copies of sequences (of equal numbers) are left out, as data.duplicates says: 1" in index.notes


def test_copies_in_two_splits_are_said_in_the_kinds_words(tmp_path):
    names = [f"{label}/{i:02d}.txt" for label in "ab" for i in range(20)]
    options = folder_of(tmp_path / "texts", {name: "1 2 3" if name[0] == "a" else "4 5" for name in names})
    with pytest.raises(
        UserError, match=r"are of equal numbers \(sequences of validation that are also in train: \d+\)"
    ):
        write(data(duplicates="fail", **options), 0, tmp_path / "fail", processes=1)
    notes = write(data(**options), 0, tmp_path / "warn", processes=1).notes
    assert any(note.startswith("sequences of test that are also in train: 8 of 8, of equal numbers") for note in notes)


def test_groups_stay_together(tmp_path):
    texts = {f"a/{g}-{i}.txt": f"{g} {i} 7" for g in range(12) for i in range(3)}
    texts |= {f"b/{g}-{i}.txt": f"{g} {i} 9" for g in range(12, 24) for i in range(3)}
    values = data(group=r"/(\d+)-", **folder_of(tmp_path / "texts", texts))
    write(values, 0, tmp_path / "shards", processes=1)
    groups = [
        {name.split("-")[0] for name in open_split(tmp_path / "shards", split, values).names}
        for split in ("train", "validation", "test")
    ]
    assert sum(map(len, groups)) == 24 == len(set.union(*groups))


BAD = {"a/90.txt": "1 2 three", "a/91.txt": "", "a/92.txt": " \n", "a/93.txt": "9999999999 1"}


def test_unreadable_files(tmp_path):
    options = folder_of(tmp_path / "texts", written() | BAD | {"b/notes.md": "none"})
    where = r"sequence_folder: a/9\d\.txt: unreadable \(.*\); fix or remove it, or set data\.on_error: skip"
    with pytest.raises(UserError, match=where):
        write(data(**options), 0, tmp_path / "fail", processes=1)
    index = write(data(on_error="skip", **options), 0, tmp_path / "skip", processes=1)
    reasons = {entry.name: entry.reason for entry in index.skipped}
    assert reasons.keys() == BAD.keys()
    assert reasons["a/90.txt"].startswith("no whole numbers: ")
    assert (reasons["a/91.txt"], reasons["a/92.txt"]) == ("an empty file", "no numbers")
    assert reasons["a/93.txt"] == "a number of more than 16 bits"
    kind = "Files left out, as their names are not those of sequences: 1 .md; convert those that are sequences."
    assert kind in index.notes and index.left_out == {".md": 1}


def test_classes_without_samples_are_said_in_the_kinds_words(tmp_path):
    options = folder_of(tmp_path / "texts", written() | {"c/0.txt": "1"})
    with pytest.raises(UserError, match=r"class 'c' has no sequences for train .*: add sequences, set data\.rare"):
        write(data(rare="fail", **options), 0, tmp_path / "fail", processes=1)
    notes = write(data(**options), 0, tmp_path / "keep", processes=1).notes
    assert any(note.startswith("1 of 3 classes has too few sequences for train") for note in notes)


def test_the_source_says_what_is_watched(tmp_path):
    assert watched(data()) == "sequences: not watched, steps come with the kind\n"
    options = folder_of(tmp_path / "texts", {"a/0.txt": "1", "b/0.txt": "2"})
    first = watched(data(watch="content", **options))
    assert first.startswith(f'sequences: sequence_folder "{tmp_path}/texts" by content: 2 files, ')
    folder_of(tmp_path / "texts", {"a/0.txt": "3"})
    assert watched(data(watch="content", **options)) != first


@pytest.mark.parametrize(
    ("package", "lines", "said"),
    [
        (
            formats,
            "VERSION = 1\n",
            r"data/formats/half\.py: Facts, Intake, .* missing; a kind of data declares VERSION, Facts",
        ),
        (
            sources,
            "def listing(): ...\n",
            r"data/sources/half\.py: watched missing; a source declares listing, watched",
        ),
    ],
)
def test_a_file_without_its_declarations_is_one_line(tmp_path, monkeypatch, package, lines, said):
    (tmp_path / "half.py").write_text(lines)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    with pytest.raises(UserError, match=said):
        package.find("half")
    monkeypatch.delitem(sys.modules, f"{package.__name__}.half")
    (tmp_path / "half.py").write_text("import nothing_such\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_such"):
        package.find("half")
    with pytest.raises(UserError, match=r"data/\w+/quarter\.py: not found; the [\w ]+ 'quarter' needs it"):
        package.find("quarter")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", r"blocks/half\.py: Block missing; a kind of data declares Block"),
        (
            "from selfsup.blocks.base import KindData\nclass Block(KindData):\n    kind = 'half'\n    reads = ()",
            r"blocks/half\.py: noun missing; a Block declares kind, noun, reads$",
        ),
        (
            "from selfsup.blocks.image import Block",
            r"blocks/half\.py: Block is of the kind 'image'; name it as the file",
        ),
    ],
)
def test_a_file_without_its_block_is_one_line(tmp_path, monkeypatch, lines, said):
    (tmp_path / "half.py").write_text(lines)
    monkeypatch.setattr(blocks, "__path__", [*blocks.__path__, str(tmp_path)])
    with pytest.raises(UserError, match=said):
        blocks.models.__wrapped__()
    del sys.modules["selfsup.blocks.half"]


def test_a_fault_of_a_format_names_the_file(tmp_path, monkeypatch):
    from selfsup.data.formats import sequence

    monkeypatch.setattr(sequence, "read", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        write(data(**folder_of(tmp_path / "texts", written())), 0, tmp_path / "shards", processes=1)
    assert caught.value.__notes__[0].startswith("in sequence_folder: a/")


def test_a_source_belongs_to_its_kind():
    said = r"data\.sequence\.source: digits is a source of the kind image; choose one of sequence_folder, steps"
    with pytest.raises(UserError, match=said):
        data(source="digits")
    with pytest.raises(UserError, match=r"data\.sequence\.path: source sequence_folder needs a path"):
        data(source="sequence_folder")
    assert set(READING) < set(Shared.model_fields)
