"""The command `rbd` of the experiment suite; where only the library is installed, it says what to install."""

from __future__ import annotations

import sys
from importlib.util import find_spec

NEEDED = ("filelock", "matplotlib", "safetensors", "torchvision", "tqdm")  # of the extra `suite`, by every run
ALWAYS = {"-h", "--help", "--version"}  # answered without any of them


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 where the suite is not installed."""
    given = sys.argv[1:] if arguments is None else arguments
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking and not ALWAYS & set(given):
        print(f"rbd: error: the experiment suite needs {', '.join(lacking)}: install the extra `suite`, "
              "as in pip install '.[suite]' in a clone", file=sys.stderr)  # fmt: skip
        return 2
    from rbd.suite import cli

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
