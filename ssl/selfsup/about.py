"""What a method declares at the top of its file, in one place: tables, pages and the training loop read it."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from selfsup.config import Strict

Family = Literal["contrastive", "no negatives", "clustering", "pretext", "reconstruction", "with labels"]
FAMILIES: tuple[str, ...] = get_args(Family)
"""In the order in which tables list them."""

ANY = "any"
"""The kind of data of a method that takes every kind."""

Line = Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[^\n|]*$")]  # a cell of a Markdown table


class Paper(Strict):
    """Where a method was published, by arXiv or else by DOI."""

    authors: Line  # "Chen et al.", "Wang & Isola"
    year: Annotated[int, Field(ge=1950, le=2100)]
    title: str
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}$")] | None = None
    doi: Annotated[str, Field(pattern=r"^10\.\d+/\S+$")] | None = None

    @model_validator(mode="after")
    def _can_be_found(self) -> "Paper":
        if not self.arxiv and not self.doi:
            raise ValueError("ABOUT.paper: has neither arxiv nor doi; add one of them")
        return self

    @property
    def cited(self) -> str:
        return f"{self.authors} {self.year}"

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else f"https://doi.org/{self.doi}"


class About(Strict):
    """The declaration of a method. Its class refers to it: `about = ABOUT`."""

    title: Line  # the method's name as the paper writes it; no two methods have the same
    family: Family
    kind: str  # of data, such as "image"; `ANY`
    idea: Line  # for the reader of a table
    paper: Paper | None  # None: textbook knowledge
    couples_batch: bool  # the loss, or the `carry` of its `Output`, depends on the batch as a whole; else the loss is
    # the mean of the samples' own losses, and a batch may go through the network in parts
