"""``python -m nextscale`` is the command line, for launchers that start modules."""

from nextscale.cli.main import main

if __name__ == "__main__":
    main()
