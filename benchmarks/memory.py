"""Peak resident memory of a training step, in a process of its own, beside that of the peer.

  python benchmarks/memory.py [igpt] [bert] [--preset=xs] [--count=3]

Prints one JSON line a case: `jtasks_bytes` and `peer_bytes` are the peaks of the whole process, with imports and
compilation, `ratio` theirs; `..._steps_bytes` are the peaks during the steps alone (Linux). On a GPU all bytes are
the device's, counted from the start. `jtasks_s` and `peer_s` are seconds a step.
"""

import json

from common import parser, sizes, start_ours, start_peer

CASES = ("igpt", "bert")


def main() -> None:
    flags, overrides = parser(__doc__, CASES).parse_known_args()
    for case in flags.cases or CASES:
        preset, _ = sizes(case, flags.preset)
        record = {"case": f"memory {case}", "preset": preset}
        for side in ("jtasks", "peer"):  # one after the other: neither sees the other's memory
            program = start_ours(case, flags, overrides) if side == "jtasks" else start_peer(case, flags)
            record |= measured(side, program, flags.count or 3)
        for ratio, name in (("ratio", "bytes"), ("steps_ratio", "steps_bytes")):
            theirs = record[f"peer_{name}"]
            record[ratio] = round(record[f"jtasks_{name}"] / theirs, 4) if theirs else None
        print(json.dumps(record), flush=True)


def measured(side, program, count):
    names = [f"{side}_{name}" for name in ("s", "bytes", "steps_bytes")]
    if program is None:
        return dict.fromkeys(names)
    steps = program.run(count)
    program.close()
    whole = max(program.facts["peak_bytes"], steps["peak_bytes"])
    return dict(zip(names, (round(steps["seconds"], 5), whole, steps["peak_bytes"]), strict=True))


if __name__ == "__main__":
    main()
