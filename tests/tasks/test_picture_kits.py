"""Claims about the tasks of pictures with texts: they keep what the library promises, on eight devices."""

import made_captions
import made_questions
import pytest
from front_door import ROOT

from jtasks import cli

SMALL = [f"--config.model.{tower}_{name}" for tower in ("image", "text") for name in ("width=16", "depth=1", "heads=2")]
WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx"]
CONFIGS = {
    "caption_emoji": made_captions.TINY,
    "vqa_easy": made_questions.TINY,
    "blip_retrieval:small": [
        *SMALL,
        "--config.data.size=16",
        "--config.data.tokenizer=wordpiece:60",
        "--config.data.length=8",
        "--config.batch_size=8",
    ],
    "multimodal_classify:easy": [*SMALL, "--config.data.size=None", "--config.batch_size=8"],
}


def write(name, folder):
    """Write the data of a config into a folder."""
    if name == "vqa_easy":
        made_questions.write(folder)
    elif name.startswith("multimodal"):
        made_captions.write(folder)
        for split, count in made_captions.SIZES.items():
            rows = [f"{split}/{i}.png,is it red?,{'yes' if i % 3 == 0 else 'no'}" for i in range(count)]
            (folder / f"{split}.csv").write_text("\n".join(["image,text,label", *rows, ""]))
    else:
        made_captions.write(folder)
    if name.startswith("blip_retrieval"):  # captions that tell the pictures of a batch apart
        for split, count in made_captions.SIZES.items():
            (folder / split / "captions.txt").write_text("".join(f"{i}.png\t{WORDS[i]}\n" for i in range(count)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_task_of_pictures_and_texts_passes_the_conformance_kit(name, tmp_path, capsys):
    write(name, tmp_path)
    file, _, preset = name.partition(":")
    config = f"{ROOT}/configs/{file}.py" + (f":{preset}" if preset else "")
    code = cli.run([f"--config={config}", "--mode=check", f"--config.data.dir={tmp_path}", *CONFIGS[name]])
    assert code == 0, capsys.readouterr().err
