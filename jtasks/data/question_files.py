"""Files of questions about pictures: easy-VQA, VQA v2, GQA, LAVIS's JSON lists, and tables."""

import io
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jtasks.data import arrow, caption_files, files, parsing, values
from jtasks.errors import DataError

ANSWER_COLUMNS = ("answer", "answers", "direct_answers")  # the last one is A-OKVQA's
COLUMNS = f"{', '.join(caption_files.PICTURE_COLUMNS)}; question; {', '.join(ANSWER_COLUMNS)}"


class Asked(NamedTuple):
    """One question about a picture, and the people's answers with repetitions, () if they are hidden."""

    file: str
    question: str
    answers: tuple[str, ...]
    question_id: int | str
    where: str  # place of the question, for messages
    kind: str = ""  # VQA's answer_type: "yes/no", "number" or "other"
    split: str = ""  # name of its split, in files that hold all splits


def parse(name: str, content: bytes, answers: tuple[str, bytes] | None = None) -> list[Asked]:
    """Return the questions of a file, in order.

    Args:
      name: the file's name, for its kind and for messages.
      content: its text in UTF-8, perhaps with a byte order mark:

        - .json: `[[question, answer, number of the picture N.png], ...]` of easy-VQA; `{"questions": [{"question_id",
          "image_id", "question"}], "data_subtype"}` of VQA v2 (Goyal et al. 2017); `{id: {"question", "answer",
          "imageId"}}` of GQA (Hudson and Manning 2019); or a list `[{"image", "question", "answer": text or list of
          texts, "question_id"}]` as LAVIS has.
        - .csv, .tsv, .jsonl: rows with the columns of COLUMNS, and perhaps question_id.

      answers: name and content of VQA v2's file of answers; None: they are hidden.

    Raises:
      DataError: the file is not of these forms; a question is empty or no text; an id occurs twice. Names the file, and
        the line and column or the entry.
    """
    kind = pathlib.PurePath(name.partition(" in ")[0]).suffix.lower()
    if kind == ".json":
        asked = list(_json(values.parse(files.decode(content, name), name), name, answers))
    elif kind in parsing.KINDS:
        lines = parsing.Lines(parsing.byte_lines(io.BytesIO(content), kind), name)
        asked = list(_rows(parsing.good_rows(lines, kind), name))
    else:
        raise DataError(f"{name}: expected questions in .json, .jsonl, .csv or .tsv")
    if not asked:
        raise DataError(f"{name} has no questions; expected some about pictures")
    return unique(asked)


def from_table(table: arrow.Table) -> list[Asked]:
    """Return the questions of a table; the number of a row is the name of its picture."""
    wanted = ("question", "question_id", *ANSWER_COLUMNS)
    rows = (row | {"image": where.removeprefix("row ")} for where, row in arrow.rows(table, wanted))
    return unique(list(_rows(((f"row {index}", row) for index, row in enumerate(rows)), table.name)))


def unique(asked: list[Asked]) -> list[Asked]:
    """Return the questions; DataError if an id occurs twice."""
    seen: dict[int | str, str] = {}
    for question in asked:
        first = seen.setdefault(question.question_id, question.where)
        if first != question.where:
            raise DataError(
                f"{question.where}: the question_id {question.question_id!r} occurs in {first} too; expected an id for"
                " each question"
            )
    return asked


def _rows(rows: Iterable[tuple[str, Mapping[str, Any]]], name: str) -> Iterator[Asked]:
    """Yield the questions of a table, or of a list of objects."""
    for index, (place, row) in enumerate(rows):
        where = f"{name}, {place}"
        picture, answer = (
            next((column for column in usual if column in row), None)
            for usual in (caption_files.PICTURE_COLUMNS, ANSWER_COLUMNS)
        )
        if picture is None or "question" not in row:
            names = ", ".join(map(repr, row)) or "nothing"
            raise DataError(f"{where} has {names}; expected a picture, a question and perhaps an answer ({COLUMNS})")
        file = values.content(row[picture], f"{where}, {picture!r}")
        question = values.content(row["question"], f"{where}, 'question'")
        told = answer is not None and row[answer] is not None
        answers = caption_files.texts(row[answer], f"{where}, {answer!r}") if answer and told else ()
        own = caption_files.identifier(row.get("question_id", index), f"{where}, 'question_id'")
        yield Asked(file, question, answers, own, where)


def _json(content: Any, name: str, answers: tuple[str, bytes] | None = None) -> Iterator[Asked]:
    if isinstance(content, list) and content and isinstance(content[0], list):
        return _triples(content, name)
    if isinstance(content, list):
        return _rows(_objects(content, name), name)
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        return _vqa(content, name, _answers(answers))
    if isinstance(content, dict) and all(isinstance(item, dict) and "imageId" in item for item in content.values()):
        return _gqa(content, name)
    raise DataError(
        f"{name}: expected VQA's {{'questions': [...]}}, a list of {{'image', 'question', 'answer'}}, or a list of"
        f" [question, answer, number of the picture], not {values.describe(content)}"
        f"{' without questions' if isinstance(content, dict) else ''}"
    )


def _objects(content: list[Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, item in enumerate(content):
        if not isinstance(item, dict):
            raise DataError(f"{name}, item {index}: expected an object, not {values.describe(item)}")
        yield f"item {index}", item


def _triples(content: list[Any], name: str) -> Iterator[Asked]:
    for index, item in enumerate(content):
        where = f"{name}, item {index}"
        if not isinstance(item, list) or len(item) != 3 or type(item[2]) is not int:
            raise DataError(f"{where}: expected [question, answer, number of the picture], not {item!r:.80}")
        question, answer = (values.content(text, f"{where}, {key}") for text, key in zip(item, KEYS, strict=False))
        yield Asked(f"{item[2]}.png", question, (answer,), index, where)


KEYS = ("the question", "the answer")


def _gqa(content: dict[str, Any], name: str) -> Iterator[Asked]:
    for own, item in content.items():
        where = f"{name}, question {own!r}"
        picture = caption_files.identifier(item["imageId"], f"{where}, 'imageId'")
        question = values.content(values.entry(item, "question", str, where), f"{where}, 'question'")
        answers = caption_files.texts(item["answer"], f"{where}, 'answer'") if "answer" in item else ()
        yield Asked(f"{picture}.jpg", question, answers, own, where)


def _vqa(content: dict[str, Any], name: str, answers: Mapping[Any, tuple[tuple[str, ...], str]]) -> Iterator[Asked]:
    subtype = content.get("data_subtype")
    start = f"COCO_{subtype}_" if isinstance(subtype, str) else ""
    for index, item in enumerate(content["questions"]):
        where = f"{name}, question {index}"
        own = caption_files.identifier(item.get("question_id"), f"{where}, 'question_id'")
        picture = values.entry(item, "image_id", int, where)
        question = values.content(values.entry(item, "question", str, where), f"{where}, 'question'")
        if answers and own not in answers:
            raise DataError(f"{where}: the file of answers has none for the question_id {own!r}")
        told, kind = answers.get(own, ((), ""))
        yield Asked(f"{start}{picture:012d}.jpg", question, told, own, where, kind)


def _answers(file: tuple[str, bytes] | None) -> dict[Any, tuple[tuple[str, ...], str]]:
    """Return answers and kind by question_id, from VQA v2's file of annotations."""
    if file is None:
        return {}
    name, content = file
    parsed, answers = values.parse(files.decode(content, name), name), {}
    for index, item in enumerate(values.entry(parsed, "annotations", list, name)):
        where = f"{name}, annotation {index}"
        given = values.entry(item, "answers", list, where)
        texts = tuple(values.text(values.entry(x, "answer", str, where), f"{where}, 'answer'") for x in given)
        answers[item.get("question_id")] = texts, str(item.get("answer_type") or "")
    return answers
