"""Questions about paragraphs, in SQuAD's JSON 1.1 or 2.0, as windows for a model."""

import collections
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jtasks.data import encoding, files, table_files, tables, tokenizers, values
from jtasks.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NO_SPAN = -1e30  # score where there is no span; JSON has no infinity

MIRRORS = ("https://rajpurkar.github.io/SQuAD-explorer/dataset/",)
OFFICIAL = {
    "train-v1.1.json": "sha256:3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    "dev-v1.1.json": "sha256:95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    "train-v2.0.json": "sha256:68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
    "dev-v2.0.json": "sha256:80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
}


class Question(NamedTuple):
    """A question about a context.

    `answers` are (first character, text): empty if the question is unanswerable, None if the file has none.
    """

    name: str
    text: str
    context: str
    answers: list[tuple[int, str]] | None


class Prediction(NamedTuple):
    """Prediction for a question, merged from its windows."""

    question: Question
    best: list[tuple[str, float]]  # texts and their scores, best first
    odds: float  # score of no answer minus that of the best text

    def answer(self, threshold: float = np.inf) -> str:
        """Return the best text, or "" if the odds against an answer exceed the threshold."""
        return self.best[0][0] if self.best and self.odds <= threshold else ""


def questions(name: str, split: str, *, folder: str | None = None) -> list[Question]:
    """Read the questions of a file, or of a table that `arrow.find` reads; an absent official file is downloaded.

    A byte order mark is skipped. A question that is_impossible has no answers, even if the file lists some. A question
    without `answers`, as in a test file, can be predicted for.

    Raises:
      ConfigError: the file is absent.
      DataError: the file is not in SQuAD's format, a text is empty, an id repeats, or an answer is not at its position;
        names the paragraph or the question's id.
    """
    root = files.data_folder(folder)
    if table_files.is_table(name, root):
        return _unique(_table_questions(name, split, folder), name)
    try:
        text = tables.read(name, f"config.data.{split}", folder=folder)
    except ConfigError:
        if name not in OFFICIAL:
            raise
        own = root / "squad"
        searched = [root, own]
        path = own / name
        path = path if path.exists() else files.fetch(name, OFFICIAL[name], MIRRORS, own, [name], searched)
        text = files.decode(files.read(path), str(path))
    return _unique(_questions(values.parse(text, name), name), name)


def _unique(questions: Iterable[Question], name: str) -> list[Question]:
    by_name: dict[str, Question] = {}
    for question in questions:
        if question.name in by_name:
            raise DataError(f"{name}: the id {question.name!r} occurs twice; each question needs an id of its own")
        by_name[question.name] = question
    if not by_name:
        raise DataError(f"{name} has no questions")
    return list(by_name.values())


def windows(
    tokenizer: "Tokenizer", given: Sequence[Question], *, length: int, question: int, stride: int
) -> dict[str, np.ndarray]:
    """Encode questions as arrays [n, length], a long context as overlapping windows (Devlin et al. 2019).

    Args:
      tokenizer: must return offsets of its tokens in the text.
      given: the questions.
      length: of `[CLS] question [SEP] part of the context [SEP]`.
      question: maximum number of tokens of a question; the rest is cut off.
      stride: tokens from the start of a window to the start of the next.

    Returns:
      `tokens` int32, `token_types` uint8 and `segment_ids` uint8 as in `encoding.pairs`; `start` and `end` int32 [n],
      positions of the first answer, both 0 if the window does not hold all of it and -1 if the file has no answers;
      `begin` int32 [n], position of the context's first token; and for the host: `offsets`, bounds in characters of
      each window's context tokens, int32 [tokens, 2]; `question`, the Question.

    Raises:
      ConfigError: these lengths leave no room for the context.
    """
    room = length - 3 - question
    if room < 1 or not 1 <= stride <= room or question < 1:
        raise ConfigError(
            f"config.data.length={length} leaves {room} tokens for the context beside"
            f" config.data.max_question_tokens={question}; expected at least 1, and config.data.stride={stride} between"
            " 1 and that"
        )
    marked = encoding.marks(tokenizer)
    asked = [ids[:question] for ids in encoding.ids(tokenizer, [q.text for q in given])]
    contexts = list(dict.fromkeys(q.context for q in given))
    read = dict(zip(contexts, tokenizers.encode(tokenizer, contexts), strict=True))
    rows: list[tuple[list[int], list[int]]] = []
    spans: list[tuple[int, int, int]] = []
    places: list[Any] = []
    for entry, ids in zip(given, asked, strict=True):
        context = read[entry.context]
        offsets = np.array(context.offsets, np.int32).reshape(-1, 2)
        answer = _tokens_of(entry, offsets)
        space = length - 3 - len(ids)
        first = 0
        while True:
            last = min(first + space, len(offsets))
            inside = answer is not None and first <= answer[0] and answer[1] < last
            begin = len(ids) + 2
            shift = begin - first
            rows.append((ids, context.ids[first:last]))
            none = -1 if entry.answers is None else 0
            spans.append((answer[0] + shift, answer[1] + shift, begin) if inside and answer else (none, none, begin))
            places.append((offsets[first:last], entry))
            if last == len(offsets):
                break
            first += stride
    start, end, begin = np.array(spans or np.empty((0, 3)), np.int32).T
    return {
        **encoding.stack(rows, marked, length),
        "start": start,
        "end": end,
        "begin": begin,
        "offsets": _objects([offsets for offsets, _ in places]),
        "question": _objects([entry for _, entry in places]),
    }


def predictions(
    examples: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]], most: int
) -> list[Prediction]:
    """Merge the predictions of each question's windows: each text at its best score, no answer at its worst.

    Args:
      examples: as `windows` makes them.
      outputs: of each window `start`, `end` and `score` [n] of its best spans, and the score `none` of no answer.
      most: maximum number of texts of a question.
    """
    questions: dict[str, Question] = {}
    texts: dict[str, dict[str, float]] = collections.defaultdict(dict)
    none: dict[str, float] = {}
    for example, output in zip(examples, outputs, strict=True):
        question, offsets, begin = example["question"], example["offsets"], int(example["begin"])
        name = question.name
        questions[name] = question
        none[name] = min(none.get(name, np.inf), float(output["none"]))
        for start, end, score in zip(output["start"], output["end"], output["score"], strict=True):
            if score > NO_SPAN:
                text = question.context[offsets[start - begin][0] : offsets[end - begin][1]]
                texts[name][text] = max(texts[name].get(text, -np.inf), float(score))
    merged = []
    for name, question in questions.items():
        best = sorted(texts[name].items(), key=lambda item: -item[1])[:most]
        merged.append(Prediction(question, best, none[name] - (best[0][1] if best else NO_SPAN)))
    return merged


def prediction_files(predicted: Sequence[Prediction], threshold: float | None) -> dict[str, str]:
    """Return the official file of answers {id: text}, the best texts of each question, and the odds against an answer.

    Args:
      predicted: of each question.
      threshold: odds above which a question has no answer; None: every question has one.
    """
    limit = np.inf if threshold is None else threshold
    best = {p.question.name: [{"text": text, "score": score} for text, score in p.best] for p in predicted}
    contents = {"answers.json": {p.question.name: p.answer(limit) for p in predicted}, "best.json": best}
    odds = {} if threshold is None else {"odds.json": {p.question.name: p.odds for p in predicted}}
    return {name: json.dumps(x, ensure_ascii=False, indent=1) + "\n" for name, x in {**contents, **odds}.items()}


def _questions(content: Any, name: str) -> Iterator[Question]:
    for a, article in enumerate(values.entry(content, "data", list, name)):
        for p, paragraph in enumerate(values.entry(article, "paragraphs", list, f"{name}, article {a}")):
            where = f"{name}, article {a}, paragraph {p}"
            context = values.content(values.entry(paragraph, "context", str, where), f"{where}, 'context'")
            for q, given in enumerate(values.entry(paragraph, "qas", list, where)):
                yield _question(given, context, name, f"{where}, question {q}")


def _table_questions(name: str, split: str, folder: str | None) -> Iterator[Question]:
    """Yield the questions of a table with the columns of SQuAD on the hub; one without answers is unanswerable."""
    fields: dict[str, values.Check] = dict.fromkeys(("id", "question", "context"), values.content)
    fields["answers"] = lambda value, where: value
    for row in tables.rows(name, split, fields, optional=("answers",), folder=folder):
        where = f"{name}, question {row['id']!r}"
        answers = row.get("answers")
        if answers is not None:
            parts = (values.entry(answers, key, list, where) for key in ("text", "answer_start"))
            given = [{"text": text, "answer_start": start} for text, start in zip(*parts, strict=True)]
            answers = [_answer(answer, row["context"], where) for answer in given]
        yield Question(row["id"], row["question"], row["context"], answers)


def _question(given: Any, context: str, name: str, where: str) -> Question:
    own = values.content(values.entry(given, "id", str, where), f"{where}, 'id'")
    where = f"{name}, question {own!r}"
    text = values.content(values.entry(given, "question", str, where), f"{where}, 'question'")
    if "is_impossible" in given and values.entry(given, "is_impossible", bool, where):
        return Question(own, text, context, [])
    if "answers" not in given:
        return Question(own, text, context, None)
    answers = [_answer(answer, context, where) for answer in values.entry(given, "answers", list, where)]
    return Question(own, text, context, answers)


def _answer(given: Any, context: str, where: str) -> tuple[int, str]:
    text = values.content(values.entry(given, "text", str, where), f"{where}, the answer's 'text'")
    start = values.entry(given, "answer_start", int, where)
    if start < 0 or context[start : start + len(text)] != text:
        raise DataError(f"{where}: the context has no {text!r} at answer_start {start}")
    return start, text


def _tokens_of(question: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """Return the first and the last token of the first answer; None without an answer."""
    if not question.answers or not len(offsets):
        return None
    start, text = question.answers[0]
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], start + len(text), side="left")) - 1
    return (first, last) if first <= last else None


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array
