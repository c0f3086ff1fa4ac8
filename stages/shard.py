"""Write the images of `data.source` as checked, reproducible WebDataset shards in data/shards."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup import params
from selfsup.data.shards import write
from selfsup.errors import one_line_errors
from selfsup.logs import one_line
from selfsup.tracking import record


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with one_line_errors():
        values = params.load()
        used = values.model_dump(include={"seed", "data"})
        with record.single(values, "shard", True, used) as run:
            index = write(values.data, values.seed, "data/shards")
            run.metrics({f"images.{split}": index.samples(split) for split in index.splits}, 0)
            run.metrics({"skipped": index.skipped_count}, 0)
            run.artifact("data/shards/index.json")
        classes = f"{len(index.classes)} {'class' if len(index.classes) == 1 else 'classes'}"
        counts = ", ".join(f"{split} {index.samples(split)}" for split in index.splits)
        left_out = ", ".join(f"{count:,} {kind}" for kind, count in index.left_out.items())
        print(
            f"{counts} images; {classes}; {index.skipped_count} skipped"
            + (f"; left out: {left_out}" if left_out else "")
        )
        for note in index.notes:
            print(f"note: {one_line(note)}")


if __name__ == "__main__":
    main()
