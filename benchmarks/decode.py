"""Seconds of a beam search over a batch of prompts, beside transformers' `generate` on the same sizes.

  python benchmarks/decode.py [beam] [--preset=xs] [--rounds=5]
  python benchmarks/decode.py --preset=gpt2 --device=cuda --bf16

Random prompts and weights; 5 beams, 5 to 20 new tokens. Compilation is left out and told as `compile_s`. Prints one
JSON line a case, as step.py does.
"""

import json

from common import in_turn, parser, sizes, start_ours, start_peer


def main() -> None:
    flags = parser(__doc__, ["beam"]).parse_args()
    preset, size = sizes("beam", flags.preset)
    ours, peer = start_ours("beam", flags), start_peer("beam", flags)
    result = in_turn(ours, peer, flags.rounds, flags.count or 3, warm=1)
    for program in filter(None, (ours, peer)):
        program.close()
    facts = {"compile_s": round(ours.facts["compile_s"], 2), "device": ours.facts["device"], "bf16": flags.bf16}
    rate = {"sequences_per_s": round(size["batch"] / result["jtasks_s"], 2)}
    print(json.dumps({"case": "beam", "preset": preset, **result, **facts, **rate}), flush=True)


if __name__ == "__main__":
    main()
