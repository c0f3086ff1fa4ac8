"""What a method's file declares: a mistake is one line that names file and field, and what it says is true."""

import inspect
import sys

import pytest
import torch

from selfsup import methods
from selfsup.about import ANY, FAMILIES
from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.task import Progress
from selfsup.training.check import check
from tests.contract.runs import build
from tests.contract.test_knobs import knobs, others
from tests.helpers import METHODS as NAMES
from tests.helpers import params

PAPER = 'Paper(authors="A et al.", year=2020, title="A Paper", arxiv="2001.00001")'
ABOUT = {"title": '"Toy"', "family": '"pretext"', "kind": '"image"', "idea": '"an idea"', "paper": PAPER,
         "couples_batch": "False"}  # fmt: skip
FILE = """
from selfsup.about import About, Paper
from selfsup.params import MethodParams
from selfsup.task import Task

{declaration}

class Params(MethodParams):
    pass

class Toy(Task):
    {reference}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a method's file into a folder that replaces methods/; its module is forgotten after the test."""
    monkeypatch.setattr(methods, "__path__", [str(tmp_path)])

    def writer(name="toy_a", reference="about = ABOUT", declaration=None, **changes):
        fields = ", ".join(f"{key}={value}" for key, value in (ABOUT | changes).items() if value is not None)
        text = f"ABOUT = About({fields})" if declaration is None else declaration
        (tmp_path / f"{name}.py").write_text(FILE.format(declaration=text, reference=reference))

    yield writer
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"selfsup.methods.{path.stem}", None)


def test_no_method_of_images_is_left_out():
    assert set(NAMES) == {name for name, about in methods.declared().items() if about.kind in ("image", ANY)}


def test_a_file_with_its_declaration_is_a_method(write):
    write()
    _, task = methods.find("toy_a")
    assert (task.about.title, task.about.paper.cited, task.about.couples_batch) == ("Toy", "A et al. 2020", False)
    assert task.about.paper.url == "https://arxiv.org/abs/2001.00001"
    assert list(methods.declared()) == ["toy_a"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"declaration": "", "reference": "pass"},
            "methods/toy_a.py: has no declaration; add ABOUT = About(...) with title, family, kind, idea, paper, coup",
        ),
        ({"declaration": "ABOUT = {}"}, "methods/toy_a.py: has no declaration; add ABOUT"),
        ({"reference": "pass"}, "methods/toy_a.py: Toy does not refer to the declaration; add about = ABOUT"),
        ({"idea": None}, "methods/toy_a.py: ABOUT.idea: missing"),
        ({"family": '"pretexts"'}, "methods/toy_a.py: ABOUT.family: input should be 'contrastive', 'no negatives'"),
        ({"couples_batch": '"no"'}, "methods/toy_a.py: ABOUT.couples_batch: input should be a valid boolean"),
        ({"couples_batch": "True"}, "methods/toy_a.py: ABOUT.couples_batch is true, so Toy needs embed and loss"),
        ({"idea": '"a | b"'}, "methods/toy_a.py: ABOUT.idea: string should match pattern"),
        ({"titel": '"Toy"'}, "methods/toy_a.py: ABOUT.titel: unknown"),
        ({"paper": PAPER.replace("2001.00001", "arXiv:1")}, "methods/toy_a.py: ABOUT.paper.arxiv: string should match"),
        ({"paper": PAPER.replace("year=2020, ", "")}, "methods/toy_a.py: ABOUT.paper.year: missing"),
        ({"paper": PAPER.replace(', arxiv="2001.00001"', "")}, "methods/toy_a.py: ABOUT.paper: has neither arxiv nor"),
    ],
)
def test_a_wrong_declaration_is_one_line(write, change, line):
    write(**change)
    with pytest.raises(UserError) as caught:
        methods.declared()
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_a_kind_of_data_that_does_not_exist_is_one_line(write, monkeypatch):
    write("toy_b", kind='"imagee"')
    monkeypatch.setattr("selfsup.training.check.method_params", lambda params, name: None)  # toys have no block
    with pytest.raises(UserError) as caught:
        check(params())
    line = "methods/toy_b.py: ABOUT.kind: unknown 'imagee'; did you mean image? Known: image, any"
    assert str(caught.value) == line


def test_a_title_is_there_once(write):
    write("toy_a")
    write("toy_b", title='"toy"')
    with pytest.raises(UserError, match=r"^methods/toy_b\.py: ABOUT\.title: 'toy' is methods/toy_a\.py's; choose anot"):
        methods.declared()


def test_tables_list_methods_by_family_and_year(write):
    write("toy_a", family='"clustering"')
    write("toy_b", title='"B"')
    write("toy_c", title='"C"', paper=PAPER.replace("2020", "2019"))
    write("toy_d", title='"D"', family='"contrastive"')
    assert list(methods.declared()) == ["toy_d", "toy_a", "toy_c", "toy_b"]


def test_all_methods_are_declared():
    found = methods.declared()
    assert sorted(found) == NAMES
    assert {about.family for about in found.values()} == set(FAMILIES)


@pytest.mark.parametrize("method", NAMES)
def test_the_docstring_has_five_parts(method):
    """Idea, citation, equation, differences from the paper, and what to expect; the paper is the declared one."""
    _, task = methods.find(method)
    about, document = task.about, inspect.getdoc(inspect.getmodule(task))
    idea, citation, *rest = document.split("\n\n")
    assert idea.startswith(f"{about.title}: ") and idea.endswith(".")
    if about.paper:
        cited = " ".join(citation.split())
        assert (
            about.paper.title in cited
            and (f"arXiv:{about.paper.arxiv}" if about.paper.arxiv else about.paper.doi) in cited
        )
    equation = [i for i, part in enumerate(rest) if part.startswith("    ") and " = " in part]
    differences = [i for i, part in enumerate(rest) if part.startswith("Differences")]
    expected = [i for i, part in enumerate(rest) if part.startswith("Expect: ")]
    assert len(differences) == len(expected) == 1 and equation[0] < differences[0] < expected[0] == len(rest) - 1


def depends_on_the_whole_batch(method, shards, settings):
    """Whether the loss of a batch is not the mean of its halves' losses, or `carry` is of all its images.

    Batch norm is that of evaluation, and some images have no label.
    """
    task, split, _ = build(method, shards, double=True, **settings)
    task.eval()

    def output(ids):
        batch = split.gather(ids)
        batch = batch | {"label": torch.where(batch["id"] < 3, -1, batch["label"])}
        return task(task.views(batch, Draw(0, 0, batch["id"])), Progress(5, 10, 5))

    ids = torch.arange(16)
    whole, halves = output(ids), [output(half).loss for half in ids.chunk(2)]
    return bool(whole.carry) or not torch.isclose(whole.loss, torch.stack(halves).mean(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", NAMES)
def test_a_loss_couples_the_batch_as_declared(hundred, method):
    """Where it is declared, in one setting at least: the usual one, or one with another value of a knob."""
    settings = ({}, *(change for path in knobs(method) for change in others(method, path)))
    if not methods.find(method)[1].about.couples_batch:
        assert not any(found(method, hundred, change) for change in settings)
    else:
        assert any(found(method, hundred, change) for change in settings)


def found(method, shards, settings):
    try:
        return depends_on_the_whole_batch(method, shards, settings)
    except UserError:  # not all values of a knob are admitted
        return False
