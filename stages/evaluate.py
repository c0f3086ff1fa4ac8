"""Judge the frozen features and those of the baselines: metrics/evaluate/<protocol>.json, evaluations/<protocol>."""

import argparse
import difflib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.errors import UserError, one_line_errors
from selfsup.evaluation.run import PROTOCOLS, evaluate, read_inputs
from selfsup.params import load
from selfsup.tracking import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol", help=", ".join(PROTOCOLS))
    name = parser.parse_args().protocol
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"protocol: unknown {name!r}{hint} Known: {', '.join(PROTOCOLS)}")
    params = load()
    inputs = read_inputs(params)
    origin = {protocol: inputs.computed_from(protocol, params) for protocol in PROTOCOLS}
    with record.nested(params, f"evaluate {name}", inputs.weights, origin) as (parent, run):
        rows = {row: values for row, values in evaluate(name, params, inputs)[name].items() if isinstance(values, dict)}
        run.metrics({f"{name}.{row}.{key}": value for row in rows for key, value in rows[row].items()}, 0)
        parent.metrics({f"{name}.{key}": value for key, value in rows.get("method", {}).items()}, 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
