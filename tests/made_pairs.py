"""Made pairs of texts: a language in which each word has one translation, and adjectives follow nouns."""

import pathlib

WORDS = {"red": "rot", "blue": "azul", "old": "vieux", "cat": "gato", "dog": "chien", "bird": "vogel"}
ADJECTIVES, NOUNS = ("red", "blue", "old"), ("cat", "dog", "bird")
SIZES = {"train": 24, "valid": 6, "test": 5}
TINY = [
    *("--config.steps=4", "--config.batch_size=8", "--config.show_count=2", "--config.log_every=2"),
    *("--config.eval_every=0", "--config.save_every=0", "--config.batch_tokens=0", "--config.epochs=0.0"),
    *("--config.model.width=16", "--config.model.encoder_depth=1", "--config.model.decoder_depth=1"),
    *("--config.model.heads=2", "--config.model.mlp_dim=32", "--config.data.tokenizer=bpe:300"),
    *("--config.data.source_length=8", "--config.data.target_length=10", "--config.beam.max_len=10"),
    *("--config.data.train=train.en,train.xx", "--config.data.valid=valid.en,valid.xx"),
    "--config.data.test=test.en,test.xx,other.xx",
]


def pair(i: int) -> tuple[str, str]:
    """A text and its translation."""
    adjective, noun = ADJECTIVES[i % 3], NOUNS[i // 3 % 3]
    return f"the {adjective} {noun} .", f"el {WORDS[noun]} {WORDS[adjective]} ."


def write(folder: pathlib.Path) -> pathlib.Path:
    """Write SPLIT.en and SPLIT.xx, and other.xx with a second reference of each test text."""
    for split, count in SIZES.items():
        sources, targets = zip(*map(pair, range(count)), strict=True)
        (folder / f"{split}.en").write_text("".join(f"{text}\n" for text in sources))
        (folder / f"{split}.xx").write_text("".join(f"{text}\n" for text in targets))
    (folder / "other.xx").write_text("".join(f"un{pair(i)[1][2:]}\n" for i in range(SIZES["test"])))
    return folder
