"""``python -m sealrelay`` is the ``sealrelay`` command."""

from sealrelay.cli import main

if __name__ == "__main__":
    main()
