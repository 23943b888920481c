"""Claims about answers in the shell: each input gets its row in order, at once, whole, or an error with its place."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from front_door import ROOT
from safetensors.numpy import load_file

from jtasks import cli

MIXED = 'id,text\n1,one\n2,"two\nlines"\n3, \n4,a,b\n5,five\n'


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("run") / "a b[1]"
    assert cli.run([f"--config={ROOT}/tests/data_tasks/words.py", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def ask(trained, capfd, monkeypatch, tmp_path):
    """A function that runs the command on a run, and returns its code, the rows on stdout, and stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments, mode="predict"):
        place = [] if any(word.startswith("--workdir") for word in arguments) else [f"--workdir={trained}"]
        code = cli.run([*place, f"--mode={mode}", *arguments])
        output, errors = capfd.readouterr()
        return code, [json.loads(line) for line in output.splitlines()], errors

    return command


def start(workdir, shell="exec", after="", **options) -> subprocess.Popen[str]:
    """Begin the command in a shell, with the text `after` behind it."""
    command = f'{shell} "$0" main.py --workdir="$1" --mode=predict --input=- --skip-bad {after}'
    return subprocess.Popen(
        ["bash", "-c", command, sys.executable, workdir],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_rows_keep_their_order_and_their_fields(ask, tmp_path):
    pathlib.Path("in.jsonl").write_text(
        "".join(f'{{"text": "{i}abc", "length": null, "n": [{i}]}}\n' for i in range(11))
    )
    code, rows, errors = ask("--input=in.jsonl")
    assert code == 0 and "answers: 11; skipped: 0" in errors
    assert rows == [
        {
            "index": i,
            "text": f"{i}abc",
            "n": [i],
            "input": {"length": None},
            "length": len(f"{i}abc"),
            "starts": f"{i}abc"[:2],
        }
        for i in range(11)
    ]
    code, (result,), _ = ask("--input=in.jsonl", "--output=out.csv")
    assert (code, result) == (0, {"predictions": "out.csv", "answers": 11, "skipped": 0})
    assert pathlib.Path("out.csv").read_text().splitlines()[1] == '0,0abc,[0],"{""length"": null}",4,0a'


def test_a_bad_row_ends_the_command_and_leaves_no_file(ask, tmp_path):
    pathlib.Path("in.csv").write_text(MIXED)
    code, rows, errors = ask("--input=in.csv", "--output=out.jsonl")
    assert (code, rows) == (1, []) and os.listdir() == ["in.csv"]
    assert (
        errors.splitlines()[-1] == "error: in.csv, line 5: ' ' is no text; expected some; --skip-bad goes on without it"
    )


def test_bad_rows_are_skipped_by_name_and_have_rows_in_json_lines_alone(ask):
    pathlib.Path("in.csv").write_text(MIXED)
    code, rows, errors = ask("--input=in.csv", "--skip-bad")
    assert code == 0 and "answers: 3; skipped: 2" in errors
    assert [(row["index"], row.get("id"), row.get("starts")) for row in rows] == [
        (0, "1", "on"), (1, "2", "tw"), (2, "3", None), (3, None, None), (4, "5", "fi")
    ]  # fmt: skip
    assert rows[3]["error"] == "in.csv, line 6: 3 columns, expected 2: ['id', 'text']"
    assert all(f"WARNING: skipped: {row['error']}" in errors for row in rows if "error" in row)
    code, _, errors = ask("--input=in.csv", "--skip-bad", "--output=out.tsv")
    assert code == 1 and "row 1 holds a tab or a line end, which TSV cannot" in errors
    assert ask("--input=in.csv", "--skip-bad", "--output=out.csv")[1] == [
        {"predictions": "out.csv", "answers": 3, "skipped": 2}
    ]
    assert len(pathlib.Path("out.csv").read_text().splitlines()) == 5  # of these, one is within quotes


def test_a_function_of_the_task_that_fails_is_named_with_its_line(ask):
    pathlib.Path("in.jsonl").write_text('{"words": "one"}\n')
    code, rows, errors = ask("--input=in.jsonl")
    assert (code, rows) == (1, []) and "error: in.jsonl, line 1: examples raised KeyError: 'text' at " in errors
    assert "words.py:" in errors


def test_embeddings_of_inputs_and_of_a_split(ask, trained):
    pathlib.Path("in.txt").write_text("one\n\ntwo\n")
    assert ask("--input=in.txt", "--output=out.safetensors", mode="embed")[0] == 0
    arrays = load_file("out.safetensors")
    assert arrays["index"].tolist() == [0, 1] and bytes(arrays["features"][1].astype(np.uint8)[:3]) == b"two"
    code, (result,), _ = ask("--split=valid", mode="embed")
    assert (code, result) == (0, {"embeddings": str(trained / "embeddings-valid.safetensors")})
    assert load_file(result["embeddings"])["features"].tolist() == np.arange(48.0).reshape(6, 8).tolist()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input=absent.csv"], 2, "--input=absent.csv: there is no such file or folder"),
        (["--input=.", "--split=test"], 2, "--input and --split exclude each other"),
        (["--skip-bad"], 2, "describe an --input, which is not given"),
        (["--input=.", "--output=out.xlsx"], 2, "--output=out.xlsx is of unknown kind"),
        (["--input=.", "--output=out.safetensors"], 2, "--output=out.safetensors is of unknown kind"),
        (["--input="], 2, "--input= is empty: give a file or a folder"),
        (["--input=out.jsonl", "--output=out.jsonl"], 2, "--output=out.jsonl is the --input"),
        (["--workdir=hf:x"], 2, "--workdir=hf:x is a model without a run: it needs --input"),
        (["--input=/dev/null"], 1, "/dev/null holds no input: expected at least a row or a line"),
        (["--input=."], 1, ". holds no input: expected at least a picture"),
    ],
)
def test_a_wrong_command_is_one_message(arguments, code, message, ask):
    pathlib.Path("out.jsonl").touch()
    assert (given := ask(*arguments))[:2] == (code, []) and message in given[2] and "Traceback" not in given[2]


def test_a_person_gets_an_answer_to_each_line(trained):
    process = start(trained)
    for line, entry, value in (("one", "length", 3), ("{", "length", 1), (" \n\tthree", "length", 6)):
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())[entry] == value
    process.stdin.buffer.write(b"\xff\n")
    process.stdin.flush()
    assert "stdin, line 5: byte 0 is not UTF-8" in json.loads(process.stdout.readline())["error"]
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "") and errors.endswith("answers: 3; skipped: 1\n")


@pytest.mark.parametrize(
    ("shell", "after", "code", "message"),
    [
        ("set -o pipefail; yes |", "| head -n 1", 141, ""),
        pytest.param(
            "", "<&-", 1, "error: stdin holds no input: expected at least a row or a line", marks=pytest.mark.slow
        ),
    ],
)
def test_a_reader_that_leaves_and_a_closed_stdin_end_the_command(shell, after, code, message, trained):
    process = start(trained, shell, after)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == code and message in errors and "Traceback" not in errors and "Exception" not in errors
    assert len(output.splitlines()) == (not message)
