"""The `segue` program, `python -m segue` too: `torchrun -m segue`, and where no script is found."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback even while modules are imported."""
    try:
        from segue.apps.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
