"""What is wrong with a task: a fault with its remedy, and where in the author's code an error arose."""

import inspect
import linecache
import pathlib
import traceback
from collections.abc import Iterable
from types import CodeType, ModuleType

from jtasks import task as tasks

CONTRACT = (*tasks.REQUIRED, *tasks.OPTIONAL)


class Fault(Exception):  # noqa: N818 (a finding about the task, no error of the library)
    """A check failed: what was found, and what to do."""

    def __init__(self, detail: str, hint: str):
        super().__init__(detail)
        self.detail, self.hint = detail, hint


def require(condition: bool, detail: str, hint: str) -> None:
    """Raise a Fault unless it holds."""
    if not condition:
        raise Fault(detail, hint)


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def explained(error: BaseException, task: ModuleType | None, *, whole: bool = False) -> str:
    """One sentence: the function of the contract, the exception, and the author's own line, or all of these lines."""
    frames, function = _frames(error, task), raised_in(error, task)
    text = " ".join(str(error).strip().split("\n\n")[0].split())
    text = text if len(text) <= 400 else text[:400] + " ..."
    raised = f"{function} raised {type(error).__name__}" if function else type(error).__name__
    return "\n".join([f"{raised}: {text}", *(f"at {located(frame)}" for frame in (frames if whole else frames[-1:]))])


def raised_in(error: BaseException, task: ModuleType | None) -> str:
    """The function of the contract in which an error arose, "" for none."""
    names = {code.co_name: name for name, code in _codes(task).items()}
    return next((names[frame.name] for frame in _frames(error, task) if frame.name in names), "")


def located(frame: traceback.FrameSummary) -> str:
    """A frame as `file.py:12, in function: code`."""
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{frame.filename}:{frame.lineno}, in {frame.name}" + (f": {line}" if line else "")


def author_files(task: ModuleType | None) -> set[str]:
    """The files in which the task's functions are written."""
    files = {getattr(task, "__file__", None)} | {code.co_filename for code in _codes(task).values()}
    return {file for file in files if file}


def author_frames(frames: Iterable[traceback.FrameSummary], task: ModuleType | None) -> list[traceback.FrameSummary]:
    """Those of the author's files; where there are none, those outside of this library and of installed ones."""
    frames, files = list(frames), author_files(task)
    own = [frame for frame in frames if frame.filename in files]
    library = str(pathlib.Path(__file__).parent)
    return own or [f for f in frames if not f.filename.startswith((library, "<")) and "site-packages" not in f.filename]


def _codes(task: ModuleType | None) -> dict[str, CodeType]:
    """The code of each of the contract's functions."""
    functions = {name: getattr(task, name, None) for name in CONTRACT}
    codes = {name: getattr(inspect.unwrap(f), "__code__", None) for name, f in functions.items() if callable(f)}
    return {name: code for name, code in codes.items() if code is not None}


def _frames(error: BaseException, task: ModuleType | None) -> list[traceback.FrameSummary]:
    """The author's frames of an error or of what caused it, outermost first."""
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
