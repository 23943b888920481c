"""The folders of reference weights and outputs: those in tests/golden, or in $JTASKS_GOLDEN, laid out as there."""

import json
import os
import pathlib

import pytest

OURS = pathlib.Path(__file__).parent / "golden"
FOLDER = pathlib.Path(os.environ.get("JTASKS_GOLDEN") or OURS).resolve()
# What jtasks reads, by the class that wrote the folder.
GPT2, IMAGEGPT, VIT = "GPT2LMHeadModel", "ImageGPTForCausalImageModeling", "ViTForImageClassification"
BERT_PRETRAINING, BERT_ANSWERS = "BertForPreTraining", "BertForQuestionAnswering"
CLASSIFIERS = ("BertForSequenceClassification", "BertForTokenClassification", VIT)
TOWERS = ("CLIPModel", "SiglipModel")
BLIP_RETRIEVAL, BLIP_ANSWERS = "BlipForImageTextRetrieval", "BlipForQuestionAnswering"
BLIP_CAPTIONS = "BlipForConditionalGeneration"
PAIRS = ("T5ForConditionalGeneration", "BartForConditionalGeneration", "MarianMTModel")
OWN = (BLIP_RETRIEVAL, BLIP_ANSWERS, BLIP_CAPTIONS, *PAIRS)  # with tests of their own
KNOWN = (GPT2, IMAGEGPT, BERT_PRETRAINING, BERT_ANSWERS, *CLASSIFIERS, *TOWERS)


def of(*architectures):
    """Marks a test with the folders of these architectures, by default of all; others are skipped, with the reason."""
    paths = sorted(path.parent for path in FOLDER.glob("*/io.npz"))
    wrote = {path: json.loads((path / "config.json").read_text())["architectures"][0] for path in paths}
    cases = [pytest.param(path, id=path.name) for path in paths if wrote[path] in (architectures or KNOWN)]
    if not architectures:
        others = [path for path in paths if wrote[path] not in (*KNOWN, *OWN)]
        cases += [skipped(path.name, f"jtasks has no {wrote[path]}") for path in others]
    return pytest.mark.parametrize(
        "folder", cases or [skipped("none", f"{FOLDER} has no {' or '.join(architectures)}")]
    )


def skipped(name, reason):
    """A case that is skipped."""
    return pytest.param(None, id=name, marks=pytest.mark.skip(reason=reason))
