"""The same work in PyTorch, as its users write it; started by the benchmarks, never by the library.

Fused attention, fused optimizers, `torch.compile` where asked for; BERT and beam search are those of transformers.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

from common import serve

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    raise SystemExit(
        f"PyTorch is not installed here ({error}); --peer-python names an interpreter that has it"
    ) from None

Work = Callable[[int], None]


def setup(orders: dict[str, Any]) -> tuple[Work, dict[str, Any]]:
    """Return the work of a case, warmed up."""
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high")  # on a GPU JAX's float32 products are TensorFloat-32 too
    case = orders["case"]
    if case in ("arrays", "sequence", "pictures", "windows"):
        import sources

        return sources.theirs(case, orders["sizes"])
    work = CASES[case](orders["sizes"], orders)
    if case != "mnist":
        work(2)
    return work, {}


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.query_key_value(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # [b, h, t, d] each
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.mixed(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class PixelModel(nn.Module):
    """A GPT that gives its loss on [b, t] tokens, or with inputs on labels."""

    def __init__(self, vocab: int, length: int, layers: int, width: int, heads: int, tied: bool):
        super().__init__()
        self.embed, self.position = nn.Embedding(vocab + (not tied), width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(layers)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        for table in (self.embed, self.position):
            nn.init.normal_(table.weight, std=0.02)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        places = torch.arange(inputs.shape[1], device=inputs.device)
        hidden = self.last(self.blocks(self.embed(inputs) + self.position(places)))
        return functional.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())


class VisionModel(nn.Module):
    """A vision transformer on uint8 [b, h, w, c], pooled by averaging; gives its loss."""

    def __init__(self, size: int, patch: int, classes: int, layers: int, width: int, heads: int):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(3 * patch**2, width)
        self.position = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(layers)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        grid = (images / 127.5 - 1).unfold(1, self.patch, self.patch).unfold(2, self.patch, self.patch)
        x = self.embed(grid.flatten(3).flatten(1, 2)) + self.position
        return functional.cross_entropy(self.head(self.last(self.blocks(x)).mean(1)), labels)


class ImageTower(nn.Module):
    """A vision transformer on uint8 [b, h, w, c], pooled by a class token."""

    def __init__(self, size: int, patch: int, layers: int, width: int, heads: int):
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch, bias=False)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.position = nn.Parameter(0.02 * torch.randn((size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(layers)))
        self.first, self.last = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed((images / 127.5 - 1).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, -1), x], dim=1) + self.position
        return self.last(self.blocks(self.first(x))[:, 0])


class TextTower(nn.Module):
    """A causal transformer on ids [b, t], pooled at the largest id."""

    def __init__(self, vocab: int, length: int, layers: int, width: int, heads: int):
        super().__init__()
        self.embed, self.position = nn.Embedding(vocab, width), nn.Parameter(0.01 * torch.randn(length, width))
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(layers)))
        self.last = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.last(self.blocks(self.embed(tokens) + self.position))
        return x[torch.arange(len(x), device=x.device), tokens.argmax(1)]


class Clip(nn.Module):
    """Two towers that give their contrastive loss."""

    def __init__(self, size: dict[str, Any]):
        super().__init__()
        self.image = ImageTower(*(size[name] for name in ("size", "patch", "layers", "width", "heads")))
        self.text = TextTower(*(size[name] for name in ("vocab", "length", "text_layers", "text_width", "text_heads")))
        self.image_projection = nn.Linear(size["width"], size["width"], bias=False)
        self.text_projection = nn.Linear(size["text_width"], size["width"], bias=False)
        self.scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        image = functional.normalize(self.image_projection(self.image(images)), dim=-1)
        text = functional.normalize(self.text_projection(self.text(tokens)), dim=-1)
        logits, own = self.scale.exp().clamp(max=100) * image @ text.T, torch.arange(len(image), device=image.device)
        return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def trainer(model: nn.Module, batches: Iterator[tuple[torch.Tensor, ...]], loss: Any, orders: dict[str, Any]) -> Work:
    """Return a function that runs steps of AdamW on the loss of a batch."""
    device = orders["device"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    forward = torch.compile(loss) if orders["compile"] else loss

    def work(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=orders["bf16"]):
                value = forward(*next(batches))
            value.backward()
            optimizer.step()
        wait(device)

    return work


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def device_peak() -> int | None:
    """Return the peak bytes of the GPU's memory, None on a CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def eight(made: Callable[[], tuple[torch.Tensor, ...]], device: str) -> Iterator[tuple[torch.Tensor, ...]]:
    """Cycle over eight batches on the device."""
    return itertools.cycle([tuple(x.to(device) for x in made()) for _ in range(8)])


def igpt(size: dict[str, Any], orders: dict[str, Any]) -> Work:
    length, vocab, tied = size["length"], size["vocab"], size["tied"]
    model = PixelModel(vocab, length, size["layers"], size["width"], size["heads"], tied).to(orders["device"])

    def made() -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(vocab, (size["batch"], length + 1))
        if not tied:
            tokens[:, 0] = vocab  # the start
        return tokens[:, :-1], tokens[:, 1:]

    return trainer(model, eight(made, orders["device"]), model, orders)


def vit(size: dict[str, Any], orders: dict[str, Any]) -> Work:
    shape = [size[name] for name in ("size", "patch", "classes", "layers", "width", "heads")]
    model = VisionModel(*shape).to(orders["device"])

    def made() -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.randint(256, (size["batch"], size["size"], size["size"], 3), dtype=torch.uint8)
        return images, torch.randint(size["classes"], (size["batch"],))

    return trainer(model, eight(made, orders["device"]), model, orders)


def clip(size: dict[str, Any], orders: dict[str, Any]) -> Work:
    model, length, end = Clip(size).to(orders["device"]), size["length"], size["vocab"] - 1

    def made() -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.randint(256, (size["batch"], size["size"], size["size"], 3), dtype=torch.uint8)
        tokens = torch.randint(1, end, (size["batch"], length))
        tokens[:, length // 2], tokens[:, length // 2 + 1 :] = end, 0
        return images, tokens

    return trainer(model, eight(made, orders["device"]), model, orders)


def bert(size: dict[str, Any], orders: dict[str, Any]) -> Work:
    import transformers

    settings = transformers.BertConfig(
        vocab_size=size["vocab"],
        hidden_size=size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        intermediate_size=4 * size["width"],
        max_position_embeddings=size["length"],
    )
    model = transformers.BertForPreTraining(settings).to(orders["device"]).train()

    def made() -> tuple[torch.Tensor, ...]:
        shape = (size["batch"], size["length"])
        tokens, seen = torch.randint(4, size["vocab"], shape), torch.ones(shape, dtype=torch.long)
        seen[:, size["length"] - size["length"] // 10 :] = 0
        hidden = (torch.rand(shape) < 0.15) & (seen > 0)
        return torch.where(hidden, 3, tokens), seen, torch.where(hidden, tokens, -100), torch.randint(2, shape[:1])

    def loss(tokens: Any, seen: Any, labels: Any, follows: Any) -> torch.Tensor:
        return model(input_ids=tokens, attention_mask=seen, labels=labels, next_sentence_label=follows).loss

    return trainer(model, eight(made, orders["device"]), loss, orders)


def mnist(size: dict[str, Any], orders: dict[str, Any]) -> Work:
    device = orders["device"]
    images = torch.randint(256, (size["images"], 1, 28, 28), dtype=torch.uint8, device=device)
    labels = torch.randint(10, (size["images"],), device=device)
    features = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.25)]
    head = [nn.Flatten(), nn.Linear(64 * 12 * 12, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
    model = nn.Sequential(*features, *head).to(device).train()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    forward = torch.compile(model) if orders["compile"] else model

    def steps(rows: torch.Tensor) -> None:
        for part in rows.split(size["batch"]):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=orders["bf16"]):
                loss = functional.cross_entropy(forward(images[part] / 127.5 - 1), labels[part])
            loss.backward()
            optimizer.step()
        wait(device)

    def work(count: int) -> None:
        for _ in range(count):
            steps(torch.randperm(size["images"], device=device))

    steps(torch.arange(min(3 * size["batch"], size["images"]), device=device))
    return work


def search(size: dict[str, Any], orders: dict[str, Any]) -> Work:
    import transformers

    device = orders["device"]
    settings = transformers.GPT2Config(
        vocab_size=size["vocab"],
        n_embd=size["width"],
        n_layer=size["layers"],
        n_head=size["heads"],
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = transformers.GPT2LMHeadModel(settings).to(device).eval()
    prompts = torch.randint(3, size["vocab"], (size["batch"], size["prompt"]), device=device)
    wanted = dict(num_beams=size["beams"], min_new_tokens=size["shortest"], max_new_tokens=size["longest"])

    @torch.inference_mode()
    def work(count: int) -> None:
        for _ in range(count):
            with torch.autocast(device, torch.bfloat16, enabled=orders["bf16"]):
                model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, **wanted)
        wait(device)

    return work


def pairs(size: dict[str, Any], orders: dict[str, Any]) -> Work:
    import torch_pairs

    if "beams" in size:
        return torch_pairs.search(orders["case"], size, orders, wait)
    model = torch_pairs.make(orders["case"], size, orders["device"]).train()

    def loss(source: torch.Tensor, seen: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return model(input_ids=source, attention_mask=seen, labels=labels).loss

    return trainer(model, eight(lambda: torch_pairs.batch(size), orders["device"]), loss, orders)


CASES = {"igpt": igpt, "bert": bert, "mnist": mnist, "vit": vit, "clip": clip, "beam": search, "greedy": search}
CASES |= dict.fromkeys([f"{case}{search}" for case in ("t5", "marian") for search in ("", "_greedy", "_beam")], pairs)

if __name__ == "__main__":
    serve(setup, device_peak)
