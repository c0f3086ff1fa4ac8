"""Write the samples of `data` as checked, reproducible WebDataset shards in data/shards."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup import needs, params
from selfsup.data.shards import said, write
from selfsup.errors import one_line_errors
from selfsup.tracking import record


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    values, data = params.load(), needs.data()
    with record.single(values, "shard", True, {"seed": values.seed, "data": data.model_dump()}) as run:
        index = write(data, values.seed, "data/shards")
        run.metrics({f"{data.noun}.{split}": index.samples(split) for split in index.splits}, 0)
        run.metrics({"skipped": index.skipped_count}, 0)
        run.artifact("data/shards/index.json")
    print("\n".join(said(index)))


if __name__ == "__main__":
    with one_line_errors():
        main()
