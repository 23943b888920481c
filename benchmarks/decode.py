"""Seconds of a search over a batch of prompts, beside transformers' `generate` on the same sizes.

  python benchmarks/decode.py [beam] [greedy] [t5_greedy] [t5_beam] [marian_greedy] [marian_beam] [--preset=xs]
      [--rounds=5] [--busy]
  python benchmarks/decode.py beam --preset=gpt2 --device=cuda --bf16

beam                        a GPT-2, 5 beams, 5 to 20 new tokens
greedy                      a GPT-2, one prompt, 64 new tokens
t5_greedy, marian_greedy    the encoder-decoders of step.py, 32 new tokens
t5_beam, marian_beam        the same with 4 beams

Random prompts and weights. Compilation is left out and told as `compile_s`. Prints one JSON line a case, as step.py
does.
"""

import json

from common import in_turn, parser, sizes, start_ours, start_peer


def main() -> None:
    cases = ["beam", "greedy", "t5_greedy", "t5_beam", "marian_greedy", "marian_beam"]
    arguments = parser(__doc__, cases)
    arguments.add_argument("--busy", action="store_true", help="measure beside another process that keeps a core busy")
    flags = arguments.parse_args()
    for case in flags.cases or cases:
        preset, size = sizes(case, flags.preset)
        ours, peer = start_ours(case, flags), start_peer(case, flags)
        result = in_turn(ours, peer, flags.rounds, flags.count or 3, warm=1, busy=flags.busy)
        for program in filter(None, (ours, peer)):
            program.close()
        facts = {"compile_s": round(ours.facts["compile_s"], 2), "device": ours.facts["device"]}
        facts |= {"bf16": flags.bf16, "busy": flags.busy}
        facts |= {"token_s": round(result["jtasks_s"] / size["longest"], 6)}
        rate = {"sequences_per_s": round(size["batch"] / result["jtasks_s"], 2)}
        print(json.dumps({"case": case, "preset": preset, **result, **facts, **rate}), flush=True)


if __name__ == "__main__":
    main()
