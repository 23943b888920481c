"""Claims about the start of every mode."""

import pytest
import tiny

from jtasks.errors import DataError
from jtasks.run import job


def test_a_process_that_lacks_what_the_first_one_prepared_is_told_what_to_do(monkeypatch):
    def fill(*_, **__):
        raise DataError("there is no palette")

    monkeypatch.setattr(job, "fill", fill)
    with pytest.raises(DataError) as alone:
        job.prepare(tiny.config("vit"))
    assert not hasattr(alone.value, "__notes__")
    monkeypatch.setattr(job.processes, "on_first_process", lambda function: None)
    monkeypatch.setattr(job.processes, "first", lambda: False)
    with pytest.raises(DataError) as other:
        job.prepare(tiny.config("vit"))
    assert "--config.data.shared=False" in other.value.__notes__[0]
