"""English text as the words that caption metrics count: Penn Treebank tokens without punctuation.

The field's evaluators (COCO, DSTC) tokenize captions with Stanford's PTBTokenizer 3.4.1, a Java program. These few
rules reproduce its tokens for everyday text, so that scores need no Java: 71 of 40,000 lines of captions, news,
abstracts and novels differ, in rare contractions, formulas and web addresses. A telephone number or a tag with a blank
inside is split at the blank, as in the evaluators' BLEU and CIDEr.
"""
# ruff: noqa: RUF001 - the characters that look like others are the point here

import functools
import re

# What COCO's evaluator drops, in the tokenizer's spelling. Brackets stay: the evaluator looks for capital letters
# (-LRB-) after its tokenizer has lowered them (-lrb-), and published scores include them.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Characters that the tokenizer drops everywhere, including those of two UTF-16 units, such as emoji.
_DROPPED = re.compile(
    r"[«»‹›₡-₣₥-₪₫₭-₿\u2010\u2011](?<!\w.(?=\w))|[‒–—―\u200b-\u200f\u2060\ufeff\U00010000-\U0010ffff]|-{2,}|&nbsp;"
)
_FRACTIONS = {"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
_APART = str.maketrans(_FRACTIONS | {"²": " ² ", "³": " ³ ", "\u00ad": None})  # the last one is the soft hyphen
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPELLINGS = _BRACKETS | dict(
    pair.split()
    for pair in (
        *("... ...", "… ...", "“ ``", "” ''", "‘ `", "’ '", "\" ''", "&amp; &", "&lt; <", "&gt; >", "&quot; ''"),
        *("£ #", "€ $", "¤ $", "₠ $", "¢ cents"),
    )
)
_PAIRS = (("can", "not"), ("gon", "na"), ("got", "ta"), ("lem", "me"), ("gim", "me"), ("wan", "na"))
_SPLIT = {first + second: (first, second) for first, second in (*_PAIRS, ("'t", "is"), ("'t", "was"))}
_ABBREVIATIONS = (
    "mr mrs ms dr st prof rev gen sgt lt col capt gov sen rep hon messrs jan feb mar apr aug sep sept oct nov dec"
    " jr sr inc co corp ltd vs etc esq dept est ave blvd rd e.g i.e ph.d u.s a.m p.m al cf mon tue tues wed thu thurs"
    " fri jun jul ft mt okla calif fla adj assn assoc bldg bros cmdr cos intl maj mfg natl pres supt treas univ alex"
    " wm jos cie plc pty ste mme mlle msgr ens pvt pfc cpl adm asst atty insp lieut reps sens det md va ga ala ariz"
    " colo conn ind kan ky mich minn mo mont neb nev penn tenn wis wyo sq tel ph ct adv elec ext"
)
# A letter and a full stop before one of these words end a sentence.
_STARTERS = (
    "A About After An As At But He Her Here However If In It Last Many More Now Once One Other Our She Since So Some"
    " Such That The Their Then There These They This We What When While Yet You"
)
_APOSTROPHE = "['’]"
_LETTER = r"[^\W\d_]"
_MARKS = r"[\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0e31-\u0e4e]"  # written above, below or around a letter
_WORD = rf"(?:\w|(?<=\w){_MARKS}|(?<={_MARKS}){_MARKS})+"
_CLITIC = rf"{_APOSTROPHE}(?i:s|m|d|re|ve|ll)|(?i:n{_APOSTROPHE}t)"
_NUMBER = r"\d+(?:[.,:/]\d+)+"

_LEXER = re.compile(
    "|".join(
        f"(?:{pattern})"
        for pattern in (
            r"https?://\S+|(?:mailto:)?[\w.+-]+@[\w-]+(?:\.[\w-]+)+|#[a-zA-Z]+|@[a-zA-Z_]\w*",
            r"</?[a-zA-Z][^<>\n]*>|&(?:amp|lt|gt|quot|#\d+);",
            r"[<>]?[:;=][-o*']?[()DPp\d|@\\\[\]{o](?!\w)|[<>]?[:;][-o*']?d(?!\w)",  # :-)
            r"\(?(?<!\w)[-x=~<>'^]_[-x=~<>'^](?!\w)\)?",  # (^_^)
            r"\(\d{3}\) ?\d{3}-\d{4}",
            rf"(?i:{'|'.join(map(re.escape, _ABBREVIATIONS.split()))})\.(?!\w)|(?i:nos?)\.(?=\s?\d)",
            rf"{_LETTER}(?:\.{_LETTER})+(?!\w|\.{_LETTER})\.?",  # u.s., and initials:
            rf"{_LETTER}\.(?!{_LETTER}|\s+(?:{'|'.join(_STARTERS.split())})\b)",
            rf"(?i:{_APOSTROPHE}(?:cause|tis|twas|till?|em)|ol{_APOSTROPHE})(?!\w)|{_APOSTROPHE}[nN]{_APOSTROPHE}",
            rf"(?:{_CLITIC}|{_APOSTROPHE}[nN])(?!\w)|(?<!\w){_APOSTROPHE}\d\ds?\b",
            rf"(?i:o{_APOSTROPHE}clock|c{_APOSTROPHE}mon|ma{_APOSTROPHE}am|li{_APOSTROPHE}l|s{_APOSTROPHE}mores)(?!\w)",
            rf"(?i:n?e{_APOSTROPHE}er|hawai{_APOSTROPHE}i|xi{_APOSTROPHE}an|qu{_APOSTROPHE}il)(?!\w)",
            rf"(?i:[dol]{_APOSTROPHE}(?!(?:re|ve|ll)\b)\w\w+|[cjmn]{_APOSTROPHE}(?=\w{{3}})(?!all\b)\w+)",
            rf"(?i:[djly]{_APOSTROPHE})(?=\w)",
            rf"(?:(?<![\w\s])|(?<!\S))[+-]?{_NUMBER}(?!\w)(?:-\w+)*|{_NUMBER}(?=[a-zA-Z]+\b)",
            r"[+-]?(?<!\d)[.,]\d+(?:[.,]\d+)*|[+-]\d+(?!\w)",
            r"[cC]\+\+|[cCfF]#|(?:US|HK|AU|NZ|NT|[ACMRSZ])\$",
            rf"{_LETTER}+(?:[.!?]{_LETTER}+)+|{_LETTER}+\.(?=,)",  # without the space
            rf"\w+?(?=n{_APOSTROPHE}t(?!\w))",
            r"[a-zA-Z]+(?:&[A-Z]+)+(?!\w)",
            rf"{_WORD}(?:[-/\u2010\u2011]{_WORD})*",
            r"\.{2,}|…|[?!]{2,}|\*{2,}|#{2,}|@{2,}|<<|>>|``|''|\S",
        )
    )
)


def words(text: str) -> list[str]:
    """Return the lower-cased words of a text.

    >>> words("He doesn't sit, he's on the T-shirt...")
    ['he', 'does', "n't", 'sit', 'he', "'s", 'on', 'the', 't-shirt']
    """
    return list(_words(text))


@functools.lru_cache(maxsize=65536)  # each evaluation scores the references again
def _words(text: str) -> tuple[str, ...]:
    plain = _DROPPED.sub(" ", text.translate(_APART))
    tokens = (part for token in _LEXER.findall(plain) for part in _parts(token))
    return tuple(token for token in tokens if token not in PUNCTUATION)


def _parts(token: str) -> tuple[str, ...]:
    token = token.replace("’", "'") if re.fullmatch(_CLITIC, token) else token
    token = _SPELLINGS.get("..." if token.startswith("..") else token, token)
    if len(token) > 1:  # a smiley or a telephone number
        token = token.replace("(", "-lrb-").replace(")", "-rrb-")
    return _SPLIT.get(token.lower(), tuple(token.lower().split()))
