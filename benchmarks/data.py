"""Examples a second from each kind of source, beside a PyTorch DataLoader and what a training step needs.

  python benchmarks/data.py [arrays] [sequence] [pictures] [windows] [--preset=xs] [--rounds=5]

arrays    images in memory; a batch is one fancy index (needed: what `mnist` of step.py eats)
sequence  the same read one by one, by threads (mnist)
pictures  a folder of JPEG files, decoded and scaled to 64x64 (vit)
windows   windows of a stream of tokens mapped from a file (igpt)

Prints one JSON line a case: `jtasks_s` and `peer_s` are seconds a batch, `needed_per_s` the examples that a step on
this machine uses up in a second.
"""

import json

from common import in_turn, parser, sizes, start_ours, start_peer

NEEDS = {"arrays": "mnist", "sequence": "mnist", "pictures": "vit", "windows": "igpt"}
COUNTS = {"arrays": 400, "sequence": 100, "pictures": 4, "windows": 400}


def main() -> None:
    flags = parser(__doc__, NEEDS).parse_args()
    needed = {}
    for case in flags.cases or NEEDS:
        preset, size = sizes(case, flags.preset)
        ours, peer = start_ours(case, flags), start_peer(case, flags)
        result = in_turn(ours, peer, flags.rounds, flags.count or COUNTS[case])
        for program in filter(None, (ours, peer)):
            program.close()
        rates = {f"{side}_per_s": round(size["batch"] / result[f"{side}_s"], 1) for side in ("jtasks", "peer")
                 if result[f"{side}_s"]}  # fmt: skip
        if NEEDS[case] not in needed:
            needed[NEEDS[case]] = eaten(NEEDS[case], flags)
        need = {"needed_per_s": round(needed[NEEDS[case]], 1), "needed_by": NEEDS[case]}
        print(json.dumps({"case": f"data {case}", "preset": preset, **result, **rates, **need}), flush=True)


def eaten(case, flags):
    """Return the examples that our step uses in a second."""
    _, size = sizes(case, flags.preset)
    program = start_ours(case, flags)
    seconds = program.run(1)["seconds"]
    program.close()
    return size.get("images", size["batch"]) / seconds


if __name__ == "__main__":
    main()
