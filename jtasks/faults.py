"""Faults of a task, each with its remedy, and the lines of the author's code that raised an error."""

import inspect
import linecache
import pathlib
import traceback
from collections.abc import Iterable
from types import CodeType, ModuleType

from jtasks import task as tasks

CONTRACT = (*tasks.REQUIRED, *tasks.OPTIONAL)


class Fault(Exception):  # noqa: N818 (a finding about the task, no error of the library)
    """A failed check: the finding, and what to do."""

    def __init__(self, detail: str, hint: str):
        super().__init__(detail)
        self.detail, self.hint = detail, hint


def require(condition: bool, detail: str, hint: str) -> None:
    """Raise a Fault unless the condition holds."""
    if not condition:
        raise Fault(detail, hint)


def some(names: Iterable[str], limit: int = 5) -> str:
    """Return the first few names, and the number of further ones."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def explain(error: BaseException, task: ModuleType | None, *, whole: bool = False) -> str:
    """Describe an error by the contract's function, the exception, and the author's last line, or all such lines."""
    frames, function = _frames(error, task), raised_in(error, task)
    text = " ".join(str(error).strip().split("\n\n")[0].split())
    text = text if len(text) <= 400 else text[:400] + " ..."
    raised = f"{function} raised {type(error).__name__}" if function else type(error).__name__
    return "\n".join(
        [f"{raised}: {text}", *(f"at {format_frame(frame)}" for frame in (frames if whole else frames[-1:]))]
    )


def raised_in(error: BaseException, task: ModuleType | None) -> str:
    """Return the contract's function that raised an error, "" for none."""
    names = {code.co_name: name for name, code in _codes(task).items()}
    return next((names[frame.name] for frame in _frames(error, task) if frame.name in names), "")


def format_frame(frame: traceback.FrameSummary) -> str:
    """Format a frame as `file.py:12, in function: code`."""
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{frame.filename}:{frame.lineno}, in {frame.name}" + (f": {line}" if line else "")


def author_files(task: ModuleType | None) -> set[str]:
    """Return the source files of the task's functions."""
    files = {getattr(task, "__file__", None)} | {code.co_filename for code in _codes(task).values()}
    return {file for file in files if file}


def author_frames(frames: Iterable[traceback.FrameSummary], task: ModuleType | None) -> list[traceback.FrameSummary]:
    """Return the frames in the author's files; if there are none, those outside of this and of installed libraries."""
    frames, files = list(frames), author_files(task)
    own = [frame for frame in frames if frame.filename in files]
    library = str(pathlib.Path(__file__).parent)
    return own or [f for f in frames if not f.filename.startswith((library, "<")) and "site-packages" not in f.filename]


def _codes(task: ModuleType | None) -> dict[str, CodeType]:
    """Return the code of each of the contract's functions."""
    functions = {name: getattr(task, name, None) for name in CONTRACT}
    codes = {name: getattr(inspect.unwrap(f), "__code__", None) for name, f in functions.items() if callable(f)}
    return {name: code for name, code in codes.items() if code is not None}


def _frames(error: BaseException, task: ModuleType | None) -> list[traceback.FrameSummary]:
    """Return the author's frames of an error or of its cause, outermost first."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    files = author_files(task)
    for link in reversed(chain):
        frames = [frame for frame in traceback.extract_tb(link.__traceback__) if frame.filename in files]
        if frames:
            return frames
    return author_frames(traceback.extract_tb(error.__traceback__), task)
