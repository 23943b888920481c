"""Claims about the page of a run: it holds what the run left, needs nothing from outside, and survives damage."""

import html.parser
import json
import math
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from jtasks import cli
from jtasks.errors import ConfigError
from jtasks.run import page, provenance
from jtasks.run.chart import Line, chart, thin

VOID = {"meta", "img"}
NASTY = "<img src=x onerror=alert(1)>&\"' a b[1]#?%20é"
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000020000000308000000") + bytes(8)


class Page(html.parser.HTMLParser):
    """A page as a browser would read it: its elements, and the text of each kind of element."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.texts = [], [], {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def tags(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self):
        return "\n".join(text for texts in self.texts.values() for text in texts)


def make_run(folder, rows=(), config=None, **environment):
    """Write a run's folder: `rows` are (step, split, metrics)."""
    (folder / "show").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"task": "t", "steps": 40} | (config or {})))
    lines = [json.dumps({"step": step, "split": split, "wall": 1e9 + step, **m}) for step, split, m in rows]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if environment:
        (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def descent(count=4):
    train = [(step, "train", {"loss": 9.0 / step, "lr": 0.1, "seconds_per_step": 0.5}) for step in range(10, 41, 10)]
    valid = [(step, "valid", {"loss": 8.0 / step, "accuracy": step / 40}) for step in (20, 40)]
    return sorted(train[:count] + valid, key=lambda row: row[0])


def test_a_page_has_the_curves_results_pictures_and_texts_of_a_run(tmp_path):
    run = make_run(tmp_path / "run", descent(), {"best": "valid/accuracy", "best_mode": "max"})
    for step in (20, 40):
        (run / "show" / f"grid-valid-{step}.png").write_bytes(PNG)
    (run / "show" / "sample-test-40.txt").write_text("To be, or not")
    made = Page(page.write(run))
    charts = [attributes["aria-label"] for attributes in made.tags("svg") if "aria-label" in attributes]
    assert charts == ["loss by step", "accuracy by step", "lr by step", "seconds_per_step by step"]
    assert {"0.225", "0.2", "1"} <= set(made.texts["td"])
    assert "step 40\ntrain 0.225\nvalid 0.2" in made.texts["title"]
    (picture,) = made.tags("img")
    assert picture["alt"] == "grid, valid, step 40" and picture["src"].startswith("data:image/png;base64,")
    assert made.texts["pre"] == ["To be, or not"]
    assert "Best valid/accuracy: 1 at step 40." in made.texts["p"]
    assert any("step 40 of 40 · 30 s · 2 steps/s" in text for text in made.texts["p"])


def test_numbers_of_a_limited_evaluation_say_so(tmp_path):
    few = {"evaluated_examples": 128.0, "split_examples": 5000.0}
    run = make_run(tmp_path / "run", [*descent(), (30, "valid", {"loss": 7.5} | few)], {"best": "valid/loss"})
    made = Page(page.write(run))
    heads = [text for text in made.texts["th"] if ", step" in text]
    assert heads == ["train, step 40", "valid, step 40", "valid, first 128, step 30"]
    assert "Best valid/loss: 0.2 at step 40." in made.texts["p"]
    assert "evaluated_examples" not in made.text()
    assert "valid, first 128: loss" in Page(page.write_comparison([run], tmp_path / "all.html")).texts["th"]


def test_a_page_names_what_the_config_changes_and_what_the_run_ran_on(tmp_path):
    part = {"wall": 1e9, "step": 0, "steps": 40, "host": "node7", "facts": {"devices": "8 x TPU v4"}}
    part |= {"versions": {"jax": "0.10.2"}, "git": [{"folder": "/src", "commit": "c0ffee" * 7, "dirty": True}]}
    usual = {"config.task": "", "config.steps": 0, "config.seed": 0, "config.optim.lr": 0.001}
    config = {"seed": 0, "optim": {"lr": 0.5}}
    cells = Page(page.write(make_run(tmp_path / "run", config=config, defaults=usual, parts=[part])))
    assert {"0.001", "0.5", "node7", "8 x TPU v4", "0.10.2"} <= set(cells.texts["td"])
    assert "optim.lr" in cells.texts["th"] and "seed" not in cells.texts["th"]
    assert "c0ffeec0ffee, with uncommitted changes, /src" in cells.texts["td"]


def test_nothing_in_a_run_becomes_markup_or_leaves_the_page(tmp_path):
    rows = [(1, "train", {"loss": 1.0, NASTY: 2.0}), (2, NASTY, {"loss": 1.0, NASTY: 3.0})]
    run = make_run(tmp_path / NASTY, rows, {"task": NASTY, NASTY: NASTY, "best": f"{NASTY}/{NASTY}"})
    (run / "show" / f"{NASTY}-valid-2.txt").write_text("</pre><script>alert(1)</script>\x00")
    (run / "show" / f"{NASTY}-valid-2.png").write_bytes(PNG)
    for path in (page.write(run), page.write_comparison([run, run], tmp_path / "both.html")):
        made = Page(path)
        assert not {"script", "link", "iframe", "a", "i", "b"} & {tag for tag, _ in made.elements}
        assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in made.elements)
        assert not any(name.startswith("on") for _, attributes in made.elements for name in attributes)
        assert NASTY in made.text() and "http" not in path.read_text().replace("http-equiv", "")


LARGE = pytest.param(10**400, 2, id="large")


@pytest.mark.parametrize(
    ("value", "marked"), [("nan", 2), ("inf", 2), ("-inf", 2), LARGE, (1e308, 0), (-1e308, 0), (5e-324, 0), (0, 0)]
)
def test_values_that_are_not_finite_are_marked_and_do_not_break_the_axes(tmp_path, value, marked):
    rows = [(1, "train", {"loss": value}), (2, "train", {"loss": 1.0}), (3, "valid", {"loss": value})]
    made = Page(page.write(make_run(tmp_path / "run", rows)))
    crosses = [a for a in made.tags("path") if "cross" in a["class"]]
    assert len(crosses) == marked
    drawn = " ".join(attributes.get("d", "") for attributes in made.tags("path"))
    assert "nan" not in drawn and "inf" not in drawn


def test_damage_is_named_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path / "run", descent())
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'\xff\xfe\n[]\n{"step": 50, "spl')
    (run / "config.json").write_text("[1]")
    (run / "environment.json").write_text('{"defaults": [1], "parts": [1, {"wall": 1e99, "step": 0, "steps": 1}]}')
    (run / "show" / "grid-valid-20.png").write_text("no picture")
    made = Page(page.write(run))
    problems = [a for a in made.tags("p") if a.get("class") == "problem"]
    assert len(problems) == 3 and "2 damaged lines left out" in made.text()
    assert "0.225" in made.texts["td"]


@pytest.mark.parametrize("rows", [[], [(1, "train", {})], descent(1)[:1]])
def test_a_run_that_has_just_begun_has_a_page(tmp_path, rows):
    assert "run" in Page(page.write(make_run(tmp_path / "run", rows))).texts["h1"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        page.write(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        page.write(tmp_path / "absent")
    assert not list(tmp_path.iterdir())


def test_runs_side_by_side_show_their_curves_results_and_differences(tmp_path):
    a = make_run(tmp_path / "x" / "run", descent(), {"seed": 0, "optim": {"lr": 0.1}})
    b = make_run(tmp_path / "y" / "run", descent(2)[:-1], {"seed": 0, "optim": {"lr": 0.2}})
    c = make_run(tmp_path / "z" / "run", [(10, "train", {"loss": 3.0})], {"seed": 0, "optim": {"lr": 0.1}, "own": 7})
    made = Page(page.write_comparison([a, b, c], tmp_path / "all.html"))
    assert [text for text in made.texts["th"] if text in ("optim.lr", "own", "seed")] == ["optim.lr", "own"]
    assert made.texts["li"] == ["x/run", "y/run", "z/run"]
    assert "step 20\nx/run train 0.45\nx/run valid 0.4\ny/run train 0.45\ny/run valid 0.4" in made.texts["title"]
    colors = {a["class"].split()[1] for a in made.tags("path") if a["class"].startswith("line")}
    assert colors == {"c0", "c1", "c2"}


def test_thinned_lines_keep_their_extremes_and_ends():
    points = [(step, math.sin(step / 999) + (step == 54_321) * 9) for step in range(100_000)]
    points[777] = (777, math.nan)
    kept = thin(points, 200)
    assert len(kept) <= 602 and {points[0], points[-1], points[54_321]} <= set(kept)
    assert any(step == 777 for step, _ in kept)
    assert kept == sorted(kept, key=lambda point: point[0])


def test_only_a_loss_that_spans_a_lot_has_a_logarithmic_axis():
    falling = tuple((step, 10.0 ** -(step / 10)) for step in range(50))
    assert "log scale" in chart("loss", [Line("train", falling)])
    assert "log scale" not in chart("lr", [Line("train", falling)])
    assert "log scale" not in chart("loss", [Line("train", falling[:10])])
    assert "log scale" not in chart("loss", [Line("train", (*falling, (50, 0.0)))])
    assert ET.fromstring(chart("<loss>", [Line("<train>", falling)])).tag == "svg"


def test_the_state_of_the_code_says_whether_it_has_changed(tmp_path):
    def git(*words):
        author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *words], check=True, capture_output=True)

    file = tmp_path / "task.py"
    file.write_text("one = 1\n")
    git("init")
    assert provenance.git_state(file) is None  # no commit yet
    (tmp_path / ".gitignore").write_text("venv\n")
    git("add", ".gitignore")
    git("commit", "-m", "first")
    assert provenance.git_state(file)["dirty"]
    git("add", "task.py")
    git("commit", "-m", "second")
    assert provenance.git_state(file)["dirty"] is False
    assert len(provenance.git_state(file)["commit"]) == 40
    file.write_text("one = 2\n")
    assert provenance.git_state(file)["dirty"]
    ignored = tmp_path / "venv" / "package.py"
    ignored.parent.mkdir()
    ignored.touch()
    assert provenance.git_state(ignored) is None


def test_a_run_leaves_its_page_and_its_environment(tmp_path, monkeypatch, capsys):
    from jtasks import config as configs
    from jtasks.run import train

    linear = str(pathlib.Path(__file__).parents[1] / "data_tasks" / "linear.py")
    train(configs.load(linear, ["--config.steps=3", "--config.log_every=1"]), tmp_path)
    made = Page(tmp_path / "report.html")
    assert "batch_size" in made.texts["th"] and any("step 3 of 3" in text for text in made.texts["p"])
    monkeypatch.setattr(page, "of_run", lambda run, now: run.absent)
    result = train(configs.load(linear, ["--config.steps=5", "--config.log_every=1"]), tmp_path)
    assert result["step"] == 5 and "report.html is not written" in capsys.readouterr().err
    recorded = json.loads((tmp_path / "environment.json").read_text())
    assert [(part["step"], part["steps"]) for part in recorded["parts"]] == [(0, 3), (3, 5)]
    assert recorded["defaults"]["config.batch_size"] == 64 and recorded["parts"][0]["facts"]["devices"] == "8 x cpu"


def test_the_command_writes_pages_without_jax(tmp_path):
    run = make_run(tmp_path / "a b[1]", descent())
    make_run(tmp_path / "a,b", descent())
    script = "import sys; from jtasks import cli; assert not cli.run(sys.argv[1:]) and 'jax' not in sys.modules"

    def command(*arguments):
        words = [sys.executable, "-c", script, "--mode=report", *arguments]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
        path = tmp_path / json.loads(done.stdout)["report"]
        assert done.stderr.endswith(f"wrote {json.loads(done.stdout)['report']}\n")
        return path, Page(path).texts["h1"]

    assert command("--workdir=a b[1]") == (run / "report.html", ["a b[1]"])
    assert command("--workdir=a b[1]", "--output=x.html") == (tmp_path / "x.html", ["a b[1]"])
    assert command('--runs=a b[1],"a,b"') == (tmp_path / "comparison.html", ["2 runs"])
    assert command("--runs=a*", "--output=y.html") == (tmp_path / "y.html", ["2 runs"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=absent"], "absent is no folder"),
        (["--workdir=."], "holds no run"),
        (["--runs=absent*"], "no folder of this name holds a run"),
        (["--runs=,"], "--runs= is empty"),
        (["--runs=run", "--workdir=run"], "instead of --workdir"),
        (["--workdir=run", "--config=mnist"], "it takes no --config"),
        (["--workdir=run", "--config.steps=3"], "it takes no --config"),
        (["--workdir=run", "--output=run"], "run is not a file"),
        (["--workdir=run", "--output=link"], "link is not a file"),
        (["--workdir=run", "--output=absent/page.html"], "absent"),
        ([], "needs --workdir=DIR"),
    ],
)
def test_a_report_that_cannot_be_made_says_why(tmp_path, monkeypatch, capsys, arguments, message):
    make_run(tmp_path / "run", descent())
    (tmp_path / "link").symlink_to("elsewhere")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["--mode=report", *arguments]) == (1 if message == "absent" else 2)
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"config.json", "metrics.jsonl"}
