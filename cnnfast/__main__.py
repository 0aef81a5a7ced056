"""``python -m cnnfast``: the command line."""

from cnnfast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
