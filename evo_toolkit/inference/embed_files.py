"""Files of embeddings: NumPy, Parquet and AnnData, written group by group in bounded memory.

    .npz       `ids`, one array for each further column, `manifest` (JSON), and for each layer an
               array [n, C] under its name; of every position an array [positions, C] for each
               layer and sequence, LAYER/ID
    .parquet   one row for each sequence and layer: the columns, `layer`, `embedding` (list of float32),
               and of every position a row each, with `position`; `evo_toolkit` in the metadata is
               the manifest
    .h5ad      AnnData: X [n, channels of all layers side by side] float32, obs the columns, var `layer`
               and `channel`, uns["evo_toolkit"] the manifest; of every position a row each, with
               `position` in obs

Positions count from 0, among those that were kept.

Source of .h5ad: AnnData, "On-disk format" (anndata.readthedocs.io), encoding versions 0.1.0 and 0.2.0.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo_data.files import atomic_output
from evo_toolkit.errors import UsageError
from evo_toolkit.inference.embed import column_names
from evo_toolkit.inference.readings import Pool, Strands, Values

EMBEDDING_SUFFIXES = (".npz", ".parquet", ".h5ad")

_ROW_GROUP_BYTES = 64 << 20
# zip's own epoch: equal embeddings are equal files.
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedGroup:
    """Some sequences, what is known of them, and their embeddings.

    Attributes:
        columns: `id`, and whatever else there is, one value (text or integer) per sequence.
        layers: For each layer one array per sequence, `[C]` or `[positions, C]`.
    """

    columns: Mapping[str, Sequence[Any]]
    layers: Mapping[str, Sequence[Values]]

    def __len__(self) -> int:
        return len(self.columns["id"])


Groups = Callable[[Sequence[str]], Iterator[EmbeddedGroup]]
"""Reads the groups, in order, with these of their layers; is called several times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFile:
    """What is to be written.

    Attributes:
        layers: Their names.
        pool, strands: Of the embeddings.
        columns: "text" or "integer" by name; `id` first.
        manifest: What the file says about the run.
    """

    layers: Sequence[str]
    pool: Pool
    strands: Strands
    columns: Mapping[str, str]
    manifest: Mapping[str, object]


def check_suffix(path: Path | str) -> str:
    """The ending of an output's name, once what writes it is known to be installed.

    Raises:
        UsageError: for another ending, or an .h5ad without h5py.
    """
    suffix = Path(path).suffix
    if suffix not in EMBEDDING_SUFFIXES:
        raise UsageError(
            f"output {path} has none of the endings {', '.join(EMBEDDING_SUFFIXES)}; use one of them"
        )
    if suffix == ".h5ad":
        _h5py()
    return suffix


def write_embeddings(
    path: Path | str, file: EmbeddingFile, groups: Groups, *, force: bool = False
) -> None:
    """Write a file of embeddings, whole or not at all; its ending says which kind.

    Raises:
        UsageError: as `check_suffix`.
        OutputExistsError: if the file exists and `force` is not given.
    """
    write = {".npz": _write_npz, ".parquet": _write_parquet, ".h5ad": _write_h5ad}
    with atomic_output(path, force=force) as temporary:
        write[check_suffix(path)](temporary, file, groups)


def _write_npz(path: Path, file: EmbeddingFile, groups: Groups) -> None:
    columns: dict[str, list[Any]] = {name: [] for name in file.columns}
    for group in groups(()):
        for name in columns:
            columns[name] += group.columns[name]
    num = len(columns["id"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, values in columns.items():
            kind = np.dtype(str) if file.columns[name] == "text" else np.dtype(np.int64)
            _member(archive, "ids" if name == "id" else name, [np.array(values, dtype=kind)])
        _member(archive, "manifest", [np.array(json.dumps(dict(file.manifest)))])
        for layer in file.layers:
            if file.pool == "none":
                for group in groups((layer,)):
                    for name, rows in zip(group.columns["id"], group.layers[layer], strict=True):
                        _member(archive, f"{layer}/{name}", [rows])
            else:
                parts = (np.stack(group.layers[layer]) for group in groups((layer,)))
                _member(archive, layer, parts, num)


def _member(archive: zipfile.ZipFile, name: str, parts: Any, num_rows: int | None = None) -> None:
    """One array, given in parts along its first axis; the first part says what it is like."""
    parts = iter(parts)
    first = next(parts, np.empty((0, 0), np.float32))
    shape = first.shape if num_rows is None else (num_rows, *first.shape[1:])
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape},
    )  # fmt: skip
    entry = zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH)
    with archive.open(entry, "w", force_zip64=True) as out:
        out.write(header.getvalue())
        out.write(np.ascontiguousarray(first).tobytes())
        for part in parts:
            out.write(np.ascontiguousarray(part).tobytes())


def _write_parquet(path: Path, file: EmbeddingFile, groups: Groups) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"text": pa.string(), "integer": pa.int64()}
    every = file.pool == "none"
    schema = pa.schema(
        [
            *((name, types[kind]) for name, kind in file.columns.items()),
            ("layer", pa.string()),
            *([("position", pa.int64())] if every else []),
            ("embedding", pa.list_(pa.float32())),
        ],
        metadata={"evo_toolkit": json.dumps(dict(file.manifest))},
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in groups(file.layers):
            for layer in file.layers:
                found = group.layers[layer]
                counts = [len(values) if every else 1 for values in found]
                rows = np.concatenate([np.atleast_2d(values) for values in found])
                columns: dict[str, Any] = {
                    name: np.repeat(np.array(values, dtype=object), counts)
                    for name, values in group.columns.items()
                }
                columns["layer"] = [layer] * len(rows)
                if every:
                    columns["position"] = np.concatenate([np.arange(n) for n in counts])
                # Offsets of a list are 32-bit: pieces stay far below that.
                size = max(1, _ROW_GROUP_BYTES // (4 * max(1, rows.shape[1])))
                offsets = np.arange(min(size, len(rows)) + 1, dtype=np.int32) * rows.shape[1]
                for start in range(0, len(rows), size):
                    part = slice(start, start + size)
                    values = rows[part]
                    table = {name: column[part] for name, column in columns.items()}
                    table["embedding"] = pa.ListArray.from_arrays(
                        offsets[: len(values) + 1].astype(np.int32), pa.array(values.reshape(-1))
                    )
                    writer.write_table(pa.table(table, schema=schema), row_group_size=size)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UsageError(
            "an .h5ad needs h5py, which is not installed: pip install 'evo-toolkit[anndata]'; or write .npz or .parquet"
        ) from None
    return h5py


def _write_h5ad(path: Path, file: EmbeddingFile, groups: Groups) -> None:
    h5py = _h5py()
    obs: dict[str, list[Any]] = {name: [] for name in file.columns}
    positions: list[NDArray[np.int64]] = []
    var: dict[str, list[Any]] = {"index": [], "layer": [], "channel": []}
    with h5py.File(path, "w") as out:
        _encode(out, "anndata", "0.1.0")
        matrix, num_rows = None, 0
        for group in groups(file.layers):
            found = [group.layers[layer] for layer in file.layers]
            rows = np.concatenate(
                [np.concatenate([np.atleast_2d(v) for v in values]) for values in found], axis=1
            )
            counts = [len(v) if file.pool == "none" else 1 for v in found[0]]
            if matrix is None:
                for layer, values in zip(file.layers, found, strict=True):
                    width = values[0].shape[-1]
                    var["index"] += column_names(layer, width, file.strands)
                    var["layer"] += [layer] * width
                    var["channel"] += range(width)
                matrix = _matrix(out, rows.shape[1])
            matrix.resize(num_rows + len(rows), axis=0)
            matrix[num_rows:] = rows
            num_rows += len(rows)
            for name in obs:
                obs[name] += np.repeat(np.array(group.columns[name], dtype=object), counts).tolist()
            positions += [np.arange(n) for n in counts]
        if matrix is None:
            _matrix(out, 0)
        names = obs.pop("id")
        columns: dict[str, Any] = dict(obs)
        if file.pool == "none":
            columns = {"id": names, "position": np.concatenate([*positions, np.empty(0, np.int64)])}
            columns |= obs
            names = [f"{n}:{p}" for n, p in zip(names, columns["position"].tolist(), strict=True)]
        _frame(out, "obs", names, columns)
        _frame(out, "var", var.pop("index"), {"layer": var["layer"], "channel": var["channel"]})
        for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
            _encode(out.create_group(name), "dict", "0.1.0")
        manifest = out["uns"].create_dataset(
            "evo_toolkit", data=json.dumps(dict(file.manifest)), dtype=h5py.string_dtype()
        )
        _encode(manifest, "string", "0.2.0")


def _matrix(out: Any, width: int) -> Any:
    # Chunks of a megabyte, so that rows can be read without the rest.
    chunk = max(1, (1 << 18) // max(1, width))
    data = out.create_dataset(
        "X", shape=(0, width), maxshape=(None, width), chunks=(chunk, max(1, width)), dtype="<f4"
    )
    _encode(data, "array", "0.2.0")
    return data


def _frame(out: Any, name: str, index: Sequence[str], columns: Mapping[str, Any]) -> None:
    """A table in the form of AnnData."""
    group = out.create_group(name)
    _encode(group, "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    group.attrs.create("column-order", list(columns), dtype=_h5py().string_dtype())
    for column, values in {"_index": list(index), **columns}.items():
        text = column == "_index" or (len(values) > 0 and isinstance(values[0], str))
        data = (
            group.create_dataset(column, data=list(values), dtype=_h5py().string_dtype())
            if text
            else group.create_dataset(column, data=np.asarray(values, dtype=np.int64))
        )
        _encode(data, "string-array" if text else "array", "0.2.0")


def _encode(item: Any, kind: str, version: str) -> None:
    item.attrs["encoding-type"], item.attrs["encoding-version"] = kind, version
