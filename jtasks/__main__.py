"""Run the command: python -m jtasks --config=NAME --workdir=DIR."""

from jtasks.cli import main

if __name__ == "__main__":
    main()
