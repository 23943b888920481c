"""Train, evaluate and look at a task: python main.py --config=configs/NAME.py --workdir=DIR."""

from jtasks.__main__ import main

if __name__ == "__main__":
    main()
