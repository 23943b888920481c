"""Claims about jtasks.metrics.words; the expected words are what Stanford's PTBTokenizer 3.4.1 printed."""
# ruff: noqa: RUF001 - typographic characters are what some of these are about

import json
import pathlib
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtasks.metrics.words import PUNCTUATION, words

SAID = [
    ("Don't you think he'll cannot go?", "do n't you think he 'll can not go"),
    ("It's the cat's. I'm gonna wanna see.", "it 's the cat 's i 'm gon na wan na see"),
    ("I gotta gimme lemme cannot", "i got ta gim me lem me can not"),
    ("U.S. and Mr. Smith's dog, e.g. here i.e. there etc.", "u.s. and mr. smith 's dog e.g. here i.e. there etc."),
    ("A (small) [red] {thing}: \"quoted\" text", "a -lrb- small -rrb- -lsb- red -rsb- -lcb- thing -rcb- quoted text"),
    ("'single' quoted—dash -- more... end....", "single quoted dash more end"),
    ("$5.99 and 50% off, 1,000 people at 3:00 p.m.", "$ 5.99 and 50 % off 1,000 people at 3:00 p.m."),
    ("a t-shirt and/or 1/2 cup 20's the '90s", "a t-shirt and/or 1/2 cup 20 's the '90s"),
    ("two-way man&woman AT&T m&m", "two-way man & woman at&t m & m"),
    ("doesnt cant dont ive", "doesnt cant dont ive"),
    ("mail foo@bar.com or http://a.com/x?y=1 #tag", "mail foo@bar.com or http://a.com/x?y=1 #tag"),
    ("isn't can't won't ain't y'all", "is n't ca n't wo n't ai n't y' all"),
    ("'tis late , 'twas cold", "'t is late 't was cold"),
    ("who's there?! yes!!", "who 's there ?! yes !!"),
    ("the man 's hat , can 't see .", "the man 's hat can t see"),
    ("his parents' house", "his parents house"),
    ("rock 'n' roll o'clock c'mon", "rock 'n' roll o'clock c'mon"),
    ("naïve café’s — “yes”, ‘no’ …", "naïve café 's yes no"),
    ("<b>10-year-old</b> man's e-mail &amp; more", "<b> 10-year-old </b> man 's e-mail & more"),
    ("tv. yes.there is one, no. 5 and no.", "tv yes.there is one no. 5 and no"),
    ("A. B. Smith has 20 - 30 of -1", "a. b. smith has 20 30 of -1"),
    ("Rock'n'roll and rock-n-roll, r'n'b, drum’n’bass.", "rock 'n' roll and rock-n-roll r 'n' b drum ’n’ bass"),
    ('she :-) ;) :D =) :( :-[ >:( at him :)', 'she :--rrb- ;-rrb- :d =-rrb- :-lrb- :-[ >:-lrb- at him :-rrb-'),
    ('^_^ (-_-) >_< hello:)', '^_^ -lrb--_--rrb- >_< hello :-rrb-'),
    ('it costs £5, €5, 50¢, ¥5, US$5 or A$5; 5€ is $-5', 'it costs # 5 $ 5 50 cents ¥ 5 us$ 5 or a$ 5 5 $ is $ -5'),
    ('C++, C# and F# on .NET and ASP.NET', 'c++ c# and f# on net and asp.net'),
    ('½ cup and 3½ cups, 1/2 of it', '1/2 cup and 3 1/2 cups 1/2 of it'),
    ('12:30pm, 5pm and 12:30 p.m.', '12:30 pm 5pm and 12:30 p.m.'),
    ('&lt; and &gt; and &quot;a&quot; &nbsp; b', '< and > and a b'),
    ('** bold ** *** ## << >> -- --- a – b — c', '** bold ** *** ## << >> a b c'),
    ('😀 hello 😀😀 ‹x› ₹5', 'hello x 5'),
    ("'cause 'til ol' O'Brien's d'you y'all li'l Xi'an", "'cause 'til ol' o'brien 's d'you y' all li'l xi'an"),
    ('naïve café soft\xadhyphen हिन्दी m²', 'naïve café softhyphen हिन्दी m ²'),
    ('(555) 555-1234 and (555)555-1234', '-lrb-555-rrb- 555-1234 and -lrb-555-rrb-555-1234'),
    ('plan b. Then plan b. then plan B.', 'plan b then plan b. then plan b.'),
    ('Mon. and Tues. at approx. nine, fig. one', 'mon. and tues. at approx nine fig one'),
    ('hello!world e.g.the snow.,A dog ,3.2', 'hello!world e.g.the snow. a dog ,3.2'),
    ('a.k.a. and no.1, No. 5, no.', 'a.k.a. and no. 1 no. 5 no'),
    ('<br /> <b>bold</b>', '<br /> <b> bold </b>'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), SAID)
def test_words_are_those_of_the_fields_tokenizer(text, expected):
    assert words(text) == expected.split()


def test_the_fields_tokenizer_itself_prints_these_words_and_those_of_captions(shared, tmp_path):
    jars = sorted(pathlib.Path(pytest.importorskip("pycocoevalcap").__path__[0]).glob("tokenizer/*.jar"))
    if not jars or shutil.which("java") is None:
        pytest.skip("needs java and pycocoevalcap's tokenizer")
    golden = json.loads((shared / "data" / "avsd" / "avsd_metrics_golden_public.json").read_text())["items"]
    texts = [text for text, _ in SAID] + [" ".join(text.split()) for item in golden for text in item["references"]]
    (tmp_path / "texts").write_text("\n".join(texts), encoding="utf-8")
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jars[0]), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", str(tmp_path / "texts")]
    printed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\n")[: len(texts)]
    theirs = [[word for word in line.split() if word not in PUNCTUATION] for line in printed]
    assert [words(text) for text in texts] == theirs


@given(st.text(max_size=60))
def test_any_text_splits_into_lower_case_words_that_are_no_punctuation(text):
    found = words(text)
    assert all(word == word.lower() and word not in PUNCTUATION and word.split() for word in found if word.isascii())


@given(st.lists(st.from_regex(r"[a-z]{5,9}", fullmatch=True), max_size=8))
def test_plain_words_are_kept_as_they_are(plain):
    kept = [word for word in plain if word not in ("gonna", "gotta", "lemme", "gimme", "wanna")]
    assert words(" , ".join(kept)) == words(" ".join(kept)) == kept


def test_what_is_returned_may_be_changed():
    words("a man sits").append("down")
    assert words("a man sits") == ["a", "man", "sits"]
