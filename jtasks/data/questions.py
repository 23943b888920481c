"""Questions about pictures, with answers: easy-VQA, VQA v2, GQA, LAVIS's lists, and tables."""

import functools
import pathlib
import posixpath
from collections.abc import Iterator, Sequence

from jtasks.config import Config
from jtasks.data import arrow, picture_sources, question_files, tars
from jtasks.data.picture_rows import Rows
from jtasks.data.picture_sources import FIELDS, Member, Names, Source
from jtasks.data.question_files import Asked
from jtasks.errors import DataError

__all__ = ["FIELDS", "read", "texts"]

File = pathlib.Path | Member

SUFFIXES = ("json", "jsonl", "csv", "tsv")
OWN = (
    *(f"questions_{{}}.{suffix}" for suffix in SUFFIXES),
    *(
        f"{folder}v2_OpenEnded_mscoco_{{}}{year}_questions.json"
        for year in (2014, 2015)
        for folder in ("", "Questions/")
    ),
    *(f"{folder}vqa_{{}}.json" for folder in ("", "annotations/")),
    *(f"{folder}{{}}_balanced_questions.json" for folder in ("", "questions1.2/")),
    *(f"{{}}/questions.{suffix}" for suffix in SUFFIXES),
)
WHOLE = tuple(f"questions.{suffix}" for suffix in SUFFIXES)
ARCHIVES = ("easy_vqa.tar", "easy_vqa.tar.xz", "easy_vqa.tar.gz")
NAMES = Names("questions about pictures", OWN, WHOLE, ARCHIVES, ("vqa", "easy_vqa", "vqa/easy_vqa"))


def read(split: str, config: Config) -> Rows | None:
    """Return the questions of one split in the order of their file, each with its picture.

    Without a file of its own, valid has all questions about the fraction `config.data.valid_fraction` of train's
    pictures that config.seed chooses.

    Returns:
      Rows with `question`, a text; `answers`, a tuple of texts, all people's answers with repetitions, empty if they
      are hidden; `question_id`, a number or a text; `kind`, VQA's answer_type, or ""; and `file`, the picture's name.
      Train has only questions with answers. None: there is no such split.

    Raises:
      ConfigError: config.data names a file or folder that does not exist, or there is no file for train.
      DataError: a file is wrong, or a picture is missing; names file and line or entry.
    """
    source, asked = _read(split, config)
    if not asked:
        return None
    names = ("file", "question", "answers", "question_id", "kind")
    entries = [{name: getattr(row, name) for name in names} for row in asked]
    return picture_sources.rows(source, entries, asked, config)


def texts(config: Config) -> Iterator[str]:
    """Yield the questions of the train split and their answers, without the pictures."""
    for row in _read("train", config)[1]:
        yield from (row.question, *row.answers)


def _read(split: str, config: Config) -> tuple[Source, Sequence[Asked]]:
    source, asked = picture_sources.read(split, config, NAMES, _parse)
    if split == "train" and not (asked := [row for row in asked if row.answers]):
        raise DataError(
            f"{source} has no answers for the train split; expected some in it, or beside it in VQA v2's file of"
            " annotations"
        )
    return source, asked


def _parse(source: Source) -> Sequence[Asked]:
    if isinstance(source, arrow.Table):
        return question_files.from_table(source)
    answers = _annotations(source)
    identities = [picture_sources.identity(file) for file in (source, answers) if file is not None]
    return _parse_file(source, answers, *identities)


@functools.lru_cache(maxsize=4)
def _parse_file(source: File, answers: File | None, *identities: str) -> Sequence[Asked]:
    told = None if answers is None else (str(answers), picture_sources.content(answers, "answers"))
    return question_files.parse(str(source), picture_sources.content(source, NAMES.what), told)


def _annotations(source: File) -> File | None:
    """Return VQA v2's file of answers, which lies beside the questions; None if there is none."""
    path = pathlib.PurePosixPath(source.name)
    name = path.name.replace("OpenEnded_", "").replace("questions", "annotations")
    names = [name, f"Annotations/{name}", f"../Annotations/{name}", path.name.replace("questions", "annotations")]
    names = [name for name in names if name != path.name]
    if isinstance(source, Member):
        inside = [posixpath.normpath(str(path.parent / name)) for name in names]
        return next((source._replace(name=name) for name in inside if name in tars.index(source.archive)), None)
    return next((place for name in names if (place := source.parent / name).is_file()), None)
