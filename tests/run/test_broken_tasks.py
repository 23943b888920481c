"""A task that is wrong is told by one sentence that names the function; an unusual one that is right trains."""

import pathlib

import pytest
from test_mishaps import LATE, TASK, saved

from jtasks import cli

PARTS = {
    "dataset": 'return Rows(split) if split != "test" else None',
    "example": 'return {"x": x, "y": np.float32(x @ [1, 2, 3])}',
    "init": 'return {"w": jnp.zeros(3)}',
    "loss_fn": 'return metrics["loss"].value, metrics',
    "predict_fn": 'return {"y": batch["x"] @ params["w"]}',
    "score_fn": 'return {"error": np.mean([abs(e["y"] - o["y"]) for e, o in zip(examples, outputs)])}',
    "show_fn": 'return {"text": str(len(outputs))}',
}
WEIGHTED = """from jtasks.metrics import Loss
    return metrics["loss"].value, {"nats": Loss.of(batch["y"], batch["mask"], weight=params["w"][0])}"""
END = 'if any(o["y"] != 0 for o in outputs) else'


@pytest.fixture
def run(tmp_path, capfd):
    """Run the linear task with some of its parts replaced, and return the exit code and what it says."""

    def run(extra: str = "", threads: int = 1, **parts: str) -> tuple[int, str]:
        text = TASK + extra
        for name, part in parts.items():
            assert PARTS[name] in text
            text = text.replace(PARTS[name], part)
        (tmp_path / "faults.json").write_text("{}")
        path = tmp_path / "mishap.py"
        path.write_text(text)
        code = cli.run([f"--config={path}", f"--workdir={tmp_path / 'run'}", f"--config.data.threads={threads}"])
        return code, capfd.readouterr().err

    return run


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("dataset", "return 3", "dataset returned a int without a length"),
        ("dataset", "return {'x': [[1.0] * 3] * 8}", "dataset returned 'x', which is not an array [n, ...]"),
        ("dataset", "raise KeyError('x')", "dataset raised KeyError: 'x'\nat "),
        ("dataset", "raise KeyError('x')", "dataset runs on the host, before training"),
        ("example", "return x", "of the dataset is a ndarray: give a dict of arrays by name"),
        ("example", "return None", "of the dataset is a NoneType: give a dict"),
        ("example", "return {1: x}", "of the dataset is a dict: give a dict of arrays by name"),
        ("init", "return None", "init's result is a NoneType without arrays"),
        ("init", "return {'w': jnp.zeros(3), 'name': 'x'}", "in which name is a str"),
        ("init", "return {'a/b': jnp.zeros(3), 'a': {'b': jnp.zeros(2)}}", "init's result has a/b twice"),
        ("init", "raise RuntimeError('RESOURCE_EXHAUSTED: no memory')", "a device's memory is full: a smaller"),
        ("predict_fn", "return ['a'] * 8", "predict_fn returned something other than arrays"),
        ("init", "return {'w': jnp.zeros(3, jnp.int32)}", "only whole numbers: nothing is left to train"),
        ("example", "return {'x': x[: 3 - i % 2], 'y': 1.0}", "their entry 'x' has the shapes [2] and [3]"),
        ("example", "return {'x': x} | ({'y': 1.0} if i % 2 else {})", "not all have an entry 'y'"),
        ("loss_fn", "batch['label']", "loss_fn raised KeyError: 'label'"),
        (
            "loss_fn",
            "return metrics['loss'].value + jnp.sum(params['w'] + 1), metrics",
            "\n-> return jtasks.metrics.total",
        ),
        ("loss_fn", "return 2 * metrics['loss'].value, metrics", "loss_fn returns the loss "),
        ("loss_fn", WEIGHTED, "must be a plain number: multiply the values"),
    ],
)
def test_a_broken_task_is_told_by_its_function_before_step_1(part, text, message, run, tmp_path):
    code, said = run(**{part: text})
    assert code in (1, 2) and message in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "collate_fn must return a dict of arrays by name, not a NoneType"),
        ("return {'x': np.float32(3)}", "collate_fn returned 'x' of shape [] for"),
        ("return {'x': np.stack([e['x'] for e in examples[1:]])}", "give each example one row, in their order"),
    ],
)
def test_a_collate_fn_gives_each_example_a_row(body, message, run, tmp_path):
    code, said = run(f"\ndef collate_fn(examples, config):\n    {body}\n")
    assert code == 2 and message in said and "Traceback" not in said and not (tmp_path / "run").exists()


RESULTS = [
    ("score_fn", "None", "score_fn must return {name: number}, not None"),
    ("score_fn", "{3: 1.0}", "score_fn must return {name: number}"),
    ("score_fn", "{'error': 'high'}", "score_fn must return a number as 'error', not 'high'"),
    ("score_fn", "{'error': np.ones(3)}", "score_fn must return a number as 'error'"),
    ("show_fn", "None", "show_fn must return {name: picture or text}, not None"),
    ("show_fn", "{'a': 1.0}", "a text or a picture, uint8 [h, w, 1 or 3], not 1.0"),
    ("show_fn", "{'a': np.ones((4, 4, 3))}", "not float64[4, 4, 3]"),
    ("show_fn", "{'a': np.ones((4, 4, 7), np.uint8)}", "not uint8[4, 4, 7]"),
    ("show_fn", "{'a': np.ones((0, 4), np.uint8)}", "not uint8[0, 4]"),
    ("show_fn", "{'../a': 'x'}", "returned the name '../a'"),
]


@pytest.mark.parametrize(("part", "text", "message"), RESULTS)
def test_a_wrong_result_on_the_host_is_told_before_step_1(part, text, message, run, tmp_path):
    code, said = run(**{part: f"return {text}"})
    assert code == 2 and message in said and "Traceback" not in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("part", "text", "message"), RESULTS[::3])
def test_a_wrong_result_at_the_end_alone_leaves_the_state_saved(part, text, message, run, tmp_path):
    code, said = run(**{part: f"return {text} {END} " + PARTS[part].removeprefix("return ")})
    assert code == 2 and message in said and "Traceback" not in said
    assert saved(tmp_path) == [6] and "step 6 is saved" in said


def test_an_error_at_the_end_tells_the_authors_lines_and_no_traceback(run, tmp_path):
    code, said = run(score_fn=f"{LATE}_deeper(examples)\n    return {{}}", extra="\ndef _deeper(x):\n    x[0]['z']\n")
    assert code == 1 and "Traceback" not in said and saved(tmp_path) == [6]
    assert "in score_fn: " in said and "in _deeper: x[0]['z']" in said


def test_a_score_that_would_hide_a_metric_is_refused(run, tmp_path):
    code, said = run(score_fn="return {'loss': 1.0}")
    assert code == 2 and "score_fn and eval_fn both return 'loss'" in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "parts",
    [
        {"init": "return {'w': jnp.zeros(3, jnp.bfloat16)}"},
        {"init": "return {'w': jnp.zeros(3), 'none': None, 'empty': jnp.zeros((0, 2))}"},
        {"dataset": "return Rows(split) if split == 'train' else None"},
        {"dataset": "return [{'x': np.ones(3, np.float32), 'y': 1}] * 16"},
        {"example": "return {'x': x, 'y': 1.0, 'name': f'row {i}'}"},
        {"show_fn": "return {'picture': jnp.ones((4, 4, 3), jnp.uint8), 'text': '\\ud800'}"},
        {"score_fn": "return {'error': jnp.float32(1), 'right': True}"},
        {"loss_fn": "return jnp.mean(jnp.square(batch['x'] @ params['w'] - batch['y'])), metrics"},
    ],
)
def test_an_unusual_task_trains(parts, run, tmp_path):
    code, said = run(**parts)
    assert code == 0, said
    assert saved(tmp_path) == [6]


@pytest.mark.parametrize("changes", ["config.ema = 0.9", "config.accumulate = 2", "config.optim.freeze = 'bias'"])
def test_whole_numbers_among_the_parameters_are_kept(changes, run, tmp_path):
    from jtasks.run import checkpoint

    init = "return {'w': jnp.zeros(3), 'bias': jnp.zeros(2), 'ids': jnp.array([3, 2**24 + 1]), 'on': jnp.array(True)}"
    lines = f"config.optim = dict(name='adamw', lr=0.01)\n    {changes}\n    return config"
    code, said = run(init=init, extra="\nold = get_config\ndef get_config():\n    config = old()\n    " + lines)
    assert code == 0, said
    arrays = checkpoint.arrays(pathlib.Path(tmp_path) / "run" / "checkpoints" / "6")
    assert arrays["params/ids"].tolist() == [3, 2**24 + 1] and arrays["params/on"] == True  # noqa: E712
    assert arrays["params/ids"].dtype == "int32" and (arrays["params/w"] != 0).any()
    if "average/ids" in arrays:
        assert arrays["average/ids"].tolist() == [3, 2**24 + 1]


@pytest.mark.parametrize("jit", [False, True])
def test_a_loss_that_is_computed_from_its_terms_is_known_to_be_their_sum_without_numbers(jit, monkeypatch, run):
    monkeypatch.setattr("jtasks.run.returned_loss.compare", None)
    extra = "\nloss_fn = jax.jit(loss_fn, static_argnames='config')\n" if jit else ""
    code, said = run(extra, loss_fn="from jtasks.metrics import total; return total(metrics), metrics")
    assert code == 0, said
