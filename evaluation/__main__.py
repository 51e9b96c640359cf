"""The command `attnkd`, also as `python -m captum_attnkd.evaluation`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, or say what is to be installed for it."""
    try:
        from .cli import app
    except ImportError as error:
        sys.exit(f"attnkd: {error}; the command needs more than the package: pip install 'captum-attnkd[evaluation]'")
    app()


if __name__ == "__main__":
    main()
