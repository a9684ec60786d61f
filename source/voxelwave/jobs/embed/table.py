"""Embeddings as a file: a row a scan, for whatever reads Parquet, CSV or NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from voxelwave.data.listing.cases import Case
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.errors import InputError
from voxelwave.ops.files import replacing
from voxelwave.ops.loggers import printable
from voxelwave.ops.tables import as_csv

Embeddings = Float32[ndarray, "scan embed"]
COLUMNS = ("path", "subject", "modality", "model")


def check_table(path: Path) -> None:
    """Raise InputError for a suffix that cannot be written, or where what writes it is not installed."""
    if path.suffix not in WRITERS:
        raise InputError(f"'{path}' ends in none of {', '.join(WRITERS)}: the ending says how embeddings are written")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise InputError("a .parquet file needs pyarrow: pip install 'voxelwave[export]', or write .csv or .npz")


def write_table(
    path: Path, cases: Sequence[Case], embeddings: Embeddings, features: FeaturePyramid, *, version: str
) -> None:
    """Write one row for each case: path, subject, modality, model, its embedding, and its targets where there are any.

    `model` is the hash of the weights. Parquet and NumPy files also hold the weights' SHA-256, the depth of the
    features, the `version` of voxelwave and the preprocessing as metadata; the same embeddings give the same file, byte
    by byte.
    """
    assert features.report is not None
    model = features.report.sha256
    columns: dict[str, list[Any]] = {
        "path": [printable(f"{case.image}#{case.series.uid}" if case.series else str(case.image)) for case in cases],
        "subject": [printable(case.subject) for case in cases],
        "modality": [case.modality for case in cases],
        "model": [model] * len(cases),
    }
    for name in sorted({name for case in cases for name in case.targets}):
        columns[name if name not in (*COLUMNS, "embedding") else f"target_{name}"] = [
            case.targets.get(name) for case in cases
        ]
    metadata = {
        "weights_sha256": model,
        "depth": str(features.depths[-1]),
        "voxelwave": version,
        "preprocessing": json.dumps(features.description.get("preprocessing", {}), sort_keys=True),
    }
    with replacing(path) as part:
        WRITERS[path.suffix](part, columns, embeddings, metadata)


def _write_parquet(
    path: Path, columns: Mapping[str, list[Any]], embeddings: Embeddings, metadata: Mapping[str, str]
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    texts = {name: pa.array(columns[name], pa.string()) for name in COLUMNS}
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
    targets = {name: pa.array(values, pa.int64()) for name, values in columns.items() if name not in COLUMNS}
    table = pa.table({**texts, "embedding": vectors, **targets})
    parquet.write_table(table.replace_schema_metadata(dict(metadata)), path)


def _write_csv(
    path: Path, columns: Mapping[str, list[Any]], embeddings: Embeddings, metadata: Mapping[str, str]
) -> None:
    numbers = [f"embedding_{number}" for number in range(embeddings.shape[1])]
    rows = (
        dict(zip([*columns, *numbers], [*values, *(f"{x:.9g}" for x in vector)], strict=True))
        for values, vector in zip(zip(*columns.values(), strict=True), embeddings, strict=True)
    )
    path.write_text(as_csv([*columns, *numbers], rows, line_end="\r\n"), encoding="utf-8", newline="")


def _write_npz(
    path: Path, columns: Mapping[str, list[Any]], embeddings: Embeddings, metadata: Mapping[str, str]
) -> None:
    """Write strings, and targets in float64, where NaN stands for one that is not known."""
    arrays: dict[str, Any] = {name: np.array(columns[name]) for name in COLUMNS}
    arrays |= {
        name: np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        for name, values in columns.items()
        if name not in COLUMNS
    }
    np.savez(path, embedding=embeddings, metadata=np.array(json.dumps(dict(metadata))), **arrays)


Writer = Callable[[Path, Mapping[str, list[Any]], Embeddings, Mapping[str, str]], None]
WRITERS: dict[str, Writer] = {".parquet": _write_parquet, ".csv": _write_csv, ".npz": _write_npz}
