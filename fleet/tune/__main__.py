"""``python -m fleet.tune VERB``: the verbs of the tuning loop alone, without a fleet at hand.

Knows: how errors are shown. Does not know: what the verbs do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fleet.errors import INTERRUPTED, FleetError
from fleet.tune import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb, return the exit code."""
    top = argparse.ArgumentParser(prog="python -m fleet.tune", description=__doc__)
    cli.add_verbs(top.add_subparsers(dest="verb", required=True, metavar="VERB"))
    top.set_defaults(runtime=None, run=".run", project=None, file=None)
    options = top.parse_args(argv)
    try:
        cli.run(options, os.environ)
    except FleetError as error:
        sys.stderr.write(f"{error.what}\nNext: {error.then}\n")
        return error.code
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; the same command goes on\n")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
