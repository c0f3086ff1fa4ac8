"""Fuzz the shard reader, the reader of others' tars and the params loader for so many minutes: `make fuzz`.

Rounds of 200 examples a target have the seeds 0, 1, 2, ...; a failure ends the run with the smallest input that shows
it and the round's seed. The last line is the summary.
"""

import argparse
import contextlib
import os
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

ROUND = 200


def fuzz(name: str, examples: int, number: int = 0) -> Counter[str]:
    """What came of so many inputs. Raises what the target raised, for the smallest input that it found."""
    found: Counter[str] = Counter()

    @seed(number)
    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data):
        found[TARGETS[name](data.draw)] += 1

    run()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    minutes, start, number = parser.parse_args().minutes, time.monotonic(), 0
    found = {name: Counter[str]() for name in TARGETS}
    while time.monotonic() - start < 60 * minutes:
        for name in TARGETS:
            print(f"round {number}, {name}", flush=True)
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):  # the bars
                found[name] += fuzz(name, ROUND, number)
        number += 1
    counts = "; ".join(f"{name} {each['read']} read, {each['refused']} refused" for name, each in found.items())
    total, seconds = sum(each.total() for each in found.values()), time.monotonic() - start
    print(f"fuzz: {total} examples in {seconds:.0f} s, seeds 0 to {number - 1}: {counts}; nothing else")


if __name__ == "__main__":
    main()
