"""The encoder-decoders of transformers, for `torch_peers.py`."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

Work = Callable[[int], None]


def t5(size: dict[str, Any]) -> torch.nn.Module:
    """Return a T5 (v1.0), dropout 0.1."""
    settings = transformers.T5Config(
        vocab_size=size["vocab"],
        d_model=size["width"],
        d_kv=size["width"] // size["heads"],
        d_ff=size["mlp"],
        num_layers=size["layers"],
        num_heads=size["heads"],
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(settings)


def marian(size: dict[str, Any]) -> torch.nn.Module:
    """Return a Marian, dropout 0.1."""
    both = {
        f"{side}_{name}": size[ours]
        for side in ("encoder", "decoder")
        for name, ours in (("layers", "layers"), ("attention_heads", "heads"), ("ffn_dim", "mlp"))
    }
    settings = transformers.MarianConfig(
        vocab_size=size["vocab"],
        d_model=size["width"],
        max_position_embeddings=max(size["source"], size["target"]),
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        **both,
    )
    return transformers.MarianMTModel(settings)


def make(case: str, size: dict[str, Any], device: str) -> torch.nn.Module:
    """Return the model of a case on the device."""
    return {"t5": t5, "marian": marian}[case.split("_")[0]](size).to(device)


def batch(size: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Make sources, their mask, and labels, with a tenth of padding on both sides."""
    source, labels = (torch.randint(2, size["vocab"], (size["batch"], size[side])) for side in ("source", "target"))
    seen = torch.ones_like(source)
    seen[:, size["source"] - size["source"] // 10 :] = 0
    labels[:, size["target"] - size["target"] // 10 :] = -100
    return source * seen, seen, labels


def search(case: str, size: dict[str, Any], orders: dict[str, Any], wait: Callable[[str], None]) -> Work:
    """Return a function that generates `longest` new ids from random sources."""
    device = orders["device"]
    model = make(case, size, device).eval()
    source = torch.randint(2, size["vocab"], (size["batch"], size["source"]), device=device)
    wanted = dict(num_beams=size["beams"], min_new_tokens=size["longest"], max_new_tokens=size["longest"])

    @torch.inference_mode()
    def work(count: int) -> None:
        for _ in range(count):
            with torch.autocast(device, torch.bfloat16, enabled=orders["bf16"]):
                model.generate(source, attention_mask=torch.ones_like(source), do_sample=False, **wanted)
        wait(device)

    return work
