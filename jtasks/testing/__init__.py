"""The conformance kit: checks of a task against the contract, with what to change for each failure.

    from jtasks import config, testing
    print(testing.table(testing.check("my_task.py", config.load("my_task.py"))))

On the command line: `jtasks --config=my_task.py --mode=check`.
"""

from jtasks.testing.kit import check, run
from jtasks.testing.replay import replay
from jtasks.testing.result import Result, table

__all__ = ["Result", "check", "replay", "run", "table"]
