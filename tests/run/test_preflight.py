"""The checks before step 1 make the traces from which the run compiles its evaluations and predictions."""

import jtasks
from jtasks import config as configs
from jtasks import task

COUNTED = """
import jax.numpy as jnp, numpy as np
from jtasks.metrics import Mean

TRACES = []

def dataset(split, config):
    x = np.ones((16, 3), np.float32)
    return {"x": x, "y": x.sum(1)}

def init(rng, batch, config):
    return {"w": jnp.zeros(3)}

def loss_fn(params, batch, rng, config):
    TRACES.append("loss_fn")
    loss = Mean.of(jnp.square(batch["x"] @ params["w"] - batch["y"]), batch["mask"])
    return loss.value, {"loss": loss}

def eval_fn(params, batch, config):
    TRACES.append("eval_fn")
    return {"loss": Mean.of(jnp.square(batch["x"] @ params["w"] - batch["y"]), batch["mask"])}

def predict_fn(params, batch, rng, config):
    TRACES.append("predict_fn")
    return {"y": batch["x"] @ params["w"]}

def show_fn(examples, outputs, config):
    return {"text": str(len(outputs))}
"""


def test_evaluation_and_predictions_are_traced_once_for_all_splits_and_each_shape(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text(COUNTED)
    fields = {"steps": 4, "batch_size": 8, "eval_every": 3, "optim": {"name": "sgd", "lr": 0.1}, "data": {"threads": 1}}
    jtasks.train(configs.freeze({"task": str(path), "show_count": 8, **fields}), tmp_path / "run")
    traces = task.load(str(path)).TRACES
    assert [traces.count(name) for name in ("eval_fn", "predict_fn")] == [1, 1]
    assert list((tmp_path / "run/show").glob("*valid*"))
