"""The errors a user can act on; the command line prints their message without a traceback.

Each message says what was wrong, where, what was expected and what to do next.
"""

EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal with the state saved; run the same command again


class ConfigError(ValueError):
    """The command, the config or the task module is wrong: exit code 2."""


class DataError(RuntimeError):
    """Data is absent, corrupt or cannot be fetched: exit code 1."""


class CheckpointError(RuntimeError):
    """A checkpoint is absent, damaged or does not fit: exit code 1."""


class TrainingError(RuntimeError):
    """Training cannot go on, for example after too many non-finite steps: exit code 1."""


class CheckError(RuntimeError):
    """A task does not keep the contract: exit code 1."""
