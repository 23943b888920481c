"""Seconds of a training step, beside those of the same model in PyTorch.

  python benchmarks/step.py [igpt] [bert] [mnist] [vit] [clip] [t5] [marian] [--preset=xs] [--rounds=5]
      [--busy] [--config.FIELD=VALUE ...]
  python benchmarks/step.py igpt --preset=s --device=cuda --bf16 --compile

igpt   a pre-norm GPT on pixels (preset gpt2: GPT-2 on text), AdamW
bert   masked language modeling and next-sentence prediction, dropout 0.1, AdamW; the peer is transformers'
mnist  an epoch of the classic two-convolution network on 60,000 images, with the shuffling and cutting of batches
vit    a small vision transformer
clip   open_clip's ViT-S-16, image and text tower with the softmax loss over the batch
t5     transformers' T5 (v1.0, small), dropout 0.1, AdamW
marian transformers' Marian of the same size

The two run in turn (A B A B ...), random data in memory, compilation and warm-up left out. Prints one JSON line a
case: `jtasks_s`, `peer_s` (null without PyTorch), the `ratio` of their medians, and `mfu`, the share of the device's
peak that the model's operations make up (null where the peak is not known, as on a CPU).
"""

import json

from common import in_turn, parser, sizes, start_ours, start_peer

COUNTS = {
    "cpu": {"igpt": 2, "bert": 2, "mnist": 1, "vit": 5, "clip": 1, "t5": 2, "marian": 2},
    "cuda": {"igpt": 20, "bert": 20, "mnist": 1, "vit": 20, "clip": 20, "t5": 20, "marian": 20},
}


def main() -> None:
    arguments = parser(__doc__, COUNTS["cpu"])
    arguments.add_argument("--busy", action="store_true", help="measure beside another process that keeps a core busy")
    flags, overrides = arguments.parse_known_args()
    if wrong := [override for override in overrides if not override.startswith("--config.")]:
        raise SystemExit(f"unknown arguments {' '.join(wrong)}; see --help")
    for case in flags.cases or COUNTS["cpu"]:
        preset, _ = sizes(case, flags.preset)
        ours = start_ours(case, flags, overrides)
        peer = start_peer(case, flags)
        warm = 0 if case == "mnist" else 1  # an epoch is long enough
        result = in_turn(ours, peer, flags.rounds, flags.count or COUNTS[flags.device][case], warm, flags.busy)
        for program in filter(None, (ours, peer)):
            program.close()
        facts = ours.facts
        rates = {f"{side}_gflops": facts["flops"] / result[f"{side}_s"] / 1e9 for side in ("jtasks", "peer")
                 if result[f"{side}_s"]}  # fmt: skip
        peak = facts["peak_flops"]
        mfu = {side.replace("gflops", "mfu"): round(rate * 1e9 / peak, 4) if peak else None
               for side, rate in rates.items()}  # fmt: skip
        settings = {"device": facts["device"], "bf16": flags.bf16, "compile": flags.compile, "busy": flags.busy}
        record = {"case": case, "preset": preset, **result, **settings, "parameters": facts["parameters"]}
        print(json.dumps(record | {name: round(rate, 1) for name, rate in rates.items()} | mfu), flush=True)


if __name__ == "__main__":
    main()
