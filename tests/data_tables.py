"""Tables as the library `datasets` writes them, made with pyarrow."""

import io
import json
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TEXT = {"dtype": "string", "_type": "Value"}


def class_label(*names: str) -> dict[str, Any]:
    """The feature of a column of classes."""
    return {"names": list(names), "_type": "ClassLabel"}


def sequence(feature: dict[str, Any], kind: str = "List") -> dict[str, Any]:
    """The feature of a column of lists."""
    return {"feature": feature, "_type": kind}


def table(columns: dict[str, list], features: dict[str, Any] | None = None) -> pa.Table:
    """A table with the metadata that `datasets` writes."""
    made = pa.table(columns)
    if features is None:
        return made
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(made: pa.Table, rows: int | None = None) -> bytes:
    """The bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(made, buffer, row_group_size=rows)
    return buffer.getvalue()


def save_to_disk(folder: pathlib.Path, *parts: pa.Table, features: dict[str, Any] | None = None) -> None:
    """What Dataset.save_to_disk writes, a file for each part."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        with pa.ipc.new_stream(folder / name, part.schema) as stream:
            stream.write_table(part, max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))


def save_splits(folder: pathlib.Path, splits: dict[str, pa.Table]) -> None:
    """What DatasetDict.save_to_disk writes."""
    for name, part in splits.items():
        save_to_disk(folder / name, part)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
