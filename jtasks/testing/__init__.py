"""The conformance kit: does a task keep the contract, and if not, what should its author change?

    from jtasks import config, testing
    print(testing.table(testing.check("my_task.py", config.load("my_task.py"))))

The same from the command line: `python main.py --config=my_task.py --workdir=DIR --mode=check`.
"""

from jtasks.testing.kit import check, run
from jtasks.testing.replay import replay
from jtasks.testing.result import Result, table

__all__ = ["Result", "check", "replay", "run", "table"]
