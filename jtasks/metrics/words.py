"""English text as the words that caption metrics count: those of the Penn Treebank, without punctuation.

The field's evaluators (COCO, DSTC) split captions with Stanford's PTBTokenizer, a Java program. These few
rules split everyday text as it does, so that scores need no Java.
"""
# ruff: noqa: RUF001 - the characters that look like others are the point here

import functools
import re

# What COCO's evaluator drops, in the tokenizer's spelling. Brackets are not among them: it looks for capital
# letters (-LRB-) where its tokenizer has lowered them (-lrb-), and published scores have that in them.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_SPELLINGS = dict(
    pair.split()
    for pair in (
        *("( -lrb-", ") -rrb-", "[ -lsb-", "] -rsb-", "{ -lcb-", "} -rcb-"),
        *("... ...", "… ...", "— --", "– --", "“ ``", "” ''", "‘ `", "’ '", "\" ''", "&amp; &"),
    )
)
_PAIRS = (("can", "not"), ("gon", "na"), ("got", "ta"), ("lem", "me"), ("gim", "me"), ("wan", "na"))
_SPLIT = {first + second: (first, second) for first, second in (*_PAIRS, ("'t", "is"), ("'t", "was"))}
_ABBREVIATIONS = (
    "mr mrs ms dr st prof rev gen sgt lt col capt gov sen rep hon messrs jan feb mar apr aug sep sept oct nov dec"
    " jr sr inc co corp ltd bros vs etc esq approx dept est ave blvd rd e.g i.e ph.d u.s a.m p.m"
)
_APOSTROPHE = "['’]"
_LETTER = r"[^\W\d_]"

_LEXER = re.compile(
    "|".join(
        f"(?:{pattern})"
        for pattern in (
            r"https?://\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+|[#@][a-zA-Z_]\w*",
            r"</?[a-zA-Z][^<>\n]*>|&(?:amp|lt|gt|quot);",
            rf"(?i:{'|'.join(map(re.escape, _ABBREVIATIONS.split()))})\.(?!\w)|[nN]os?\.(?=\s\d)",
            rf"{_LETTER}(?:\.{_LETTER})+(?!\w)\.?|[A-Z]\.(?=\s+\S)",  # u.s., and initials
            rf"{_APOSTROPHE}(?i:s|m|d|re|ve|ll)(?!\w)",  # after a word or on its own
            rf"(?i:n{_APOSTROPHE}t)(?!\w)",
            rf"{_APOSTROPHE}(?i:tis|twas|em)\b|{_APOSTROPHE}\d\ds?\b|{_APOSTROPHE}[nN]{_APOSTROPHE}(?!\w)",
            rf"(?i:o{_APOSTROPHE}clock|c{_APOSTROPHE}mon|ma{_APOSTROPHE}am|[dol]{_APOSTROPHE}(?=[aeiouhcmnr])\w\w+)",
            rf"(?i:[dy]{_APOSTROPHE})(?=\w)",
            r"(?:(?<![\w\s])|(?<!\S))[+-]?\d+(?:[.,:/]\d+)+(?!\w)(?:-\w+)*|(?<!\S)[+-]\d+(?!\w)",
            rf"{_LETTER}{{2,}}(?:\.{_LETTER}{{2,}})+",  # a full stop without its space
            rf"\w+?(?=n{_APOSTROPHE}t(?!\w))",
            r"[A-Z]+(?:&[A-Z]+)+(?!\w)",
            r"\w+(?:[-/]\w+)*",
            r"\.{3,}|…|-{2,}|—|–|[?!]{2,}|``|''|\S",
        )
    )
)


def words(text: str) -> list[str]:
    """The lower-cased words of a text.

    >>> words("He doesn't sit, he's on the T-shirt...")
    ['he', 'does', "n't", 'sit', 'he', "'s", 'on', 'the', 't-shirt']
    """
    return list(_words(text))


@functools.lru_cache(maxsize=65536)  # references are scored again at each evaluation
def _words(text: str) -> tuple[str, ...]:
    tokens = (part for token in _LEXER.findall(text) for part in _parts(token.lower()))
    return tuple(token for token in tokens if token not in PUNCTUATION)


def _parts(token: str) -> tuple[str, ...]:
    token = _SPELLINGS.get(token[:3] if token.startswith("...") else token, token.replace("’", "'"))
    return _SPLIT.get(token, (token,))
