"""``python -m rondo``, and the entry point of the command ``rondo``."""

import sys

from . import check_packages


def main() -> None:
    """Runs the command line, unless another package has the name of one of rondo's."""
    try:
        check_packages()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  before anything of rondo's can be imported
        sys.exit(1)
    from flows.cli.main import main as run_command

    run_command()


if __name__ == "__main__":
    main()
