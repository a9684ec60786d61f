"""Whether anything but a value or an error of one line comes of files and settings that were changed at random.

python benchmarks/faults/fuzz.py [--inputs 100000] [--quick]

Each kind of input starts from a good one; one to four changes overwrite, insert, repeat, cut or delete bytes, or put in
words that have broken parsers elsewhere. Chunks of the store get their right checksums afterwards. Processes of their
own try the inputs, 500 each, so that an abort is counted and does not end the rest. --quick tries 20 of each kind.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import struct
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1]))
from reporting import publish, table
from voxelwave.data.listing.cases import find_cases
from voxelwave.data.listing.discovery import Source, find_files
from voxelwave.data.listing.manifest import Row, read_manifest, write_manifest
from voxelwave.data.reading.dicom import find_series, read_series
from voxelwave.data.reading.nifti import read_volume
from voxelwave.data.reading.nrrd import read_nrrd
from voxelwave.data.store import StoredInfo, StoredVolume, write_stored
from voxelwave.downstream.weights import OWN_CHECKSUM, read_weights, save_weights
from voxelwave.engine.run_log import read_metrics, summarise
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.finetune.config import load_finetune_config
from voxelwave.jobs.pretrain.config import load_config
from voxelwave.ops.loggers import printable

ROOT = Path(__file__).parents[2]
PER_PROCESS, MEMORY_BYTES, TIMEOUT_S = 500, 6 << 30, 600
WORDS = (
    *(
        b"\0",
        b"\xff\xfe",
        b"'",
        b'"',
        b"[" * 3000,
        b"{" * 3000,
        b"&a [*a, *a]",
        b"!!python/object:os.system x",
        b"2024-13-45",
    ),
    *(
        b"0x_",
        b"0b_",
        b"1e999",
        b"-1e999",
        b"nan",
        b"9" * 400,
        b",,,,",
        b"\n\n",
        b"\r",
        b"../../x",
        b"/etc/passwd",
        b"$(x)",
    ),
    *(
        b"null",
        b"true",
        b"~",
        b"- - -",
        b"<<: *a",
        b"%",
        b"\x1b[2J",
        b"x" * 140_000,
        "\u2028".encode(),
        b"\xed\xa0\x80",
    ),
)
FINE = (InputError, UnusableVolume)
Reader = Callable[[Path], Any]


def changed(content: bytes, random: np.random.Generator) -> bytes:
    """Return `content` after one to four changes."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        place = int(random.integers(len(data) + 1))
        length = int(random.integers(1, 9))
        kind = random.integers(6)
        if kind == 0:
            data[place : place + length] = random.bytes(length)
        elif kind == 1:
            data[place:place] = WORDS[random.integers(len(WORDS))]
        elif kind == 2:
            data[place : place + 8 * length] = b""
        elif kind == 3:
            data[place:place] = data[place : place + 16 * length]
        elif kind == 4:
            del data[place:]
        elif place < len(data):
            data[place] ^= 1 << int(random.integers(8))
    return bytes(data)


def changed_chunk(content: bytes, random: np.random.Generator) -> bytes:
    """Return a store whose only chunk was changed, with the checksums that it then has to have."""
    magic, length, _ = struct.unpack_from("<8sII", content)
    head, chunk = bytearray(content[16 : 16 + length]), content[16 + length :]
    # Half of the changes are to the chunk's own header, which says how long it is.
    header, rest = chunk[:32], chunk[32:]
    chunk = changed(header, random) + rest if random.integers(2) else header + changed(rest, random)
    struct.pack_into("<II", head, len(head) - 8, len(chunk), zlib.crc32(chunk))
    return struct.pack("<8sII", magic, length, zlib.crc32(head)) + bytes(head) + chunk


def overridden(path: Path) -> Any:
    """Read a configuration with a line of the file as its override."""
    line = path.read_bytes().decode("utf-8", "replace")
    return load_config(ROOT / "configs" / "pretrain" / "demo.yaml", [line])


def series_at(path: Path) -> Any:
    """Read the volumes of a folder of DICOM files, of which one was changed."""
    for series in find_series(sorted(path.parent.glob("*.dcm")))[0]:
        read_series(series)


def stored_at(path: Path) -> Any:
    """Read a stored volume whole."""
    return StoredVolume(path).read()


def summarised(path: Path) -> Any:
    """Read the records of a run, and average them where there are any."""
    records = read_metrics(path)
    return summarise(records) if records else None


def make_inputs(place: Path) -> dict[str, tuple[Path, Reader, Callable[[bytes, np.random.Generator], bytes]]]:
    """Write a good file of each kind, and return each with what reads it and what changes it."""
    values = np.random.default_rng(0).integers(0, 900, (12, 12, 12)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), place / "scan.nii")
    nrrd.write(str(place / "scan.nrrd"), values, {"space": "LPS", "space directions": np.eye(3)})
    for number in range(8):
        dataset = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small.dcm"))
        dataset.ImagePositionPatient, dataset.SOPInstanceUID = [0, 0, number], f"1.2.3.{number}"
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.save_as(place / f"slice{number}.dcm")
    write_stored(place / "scan.vxw", values, StoredInfo(modality="mri", affine=np.eye(4).tolist()))
    rows = [Row(file=f"/scans/{name}.nii", status="accepted", output=f"mri/{name}.vxw", subject=name) for name in "ab"]
    write_manifest(place / "manifest.csv", rows)
    (place / "cases.csv").write_text("image,label,subject,modality,split,odd\nscan.nii,,a,mri,train,1\n")
    (place / "list.csv").write_text("path,modality\nscan.nii,mri\n")
    record = {"epoch": 1, "modality": "mri", "loss": 0.5, "learning_rate": 1e-3, "volumes_per_second": 3.0}
    (place / "metrics.jsonl").write_text("".join(json.dumps({"step": step, **record}) + "\n" for step in range(4)))
    (place / "override.txt").write_text("training.learning_rate=1e-3")
    for job in ("pretrain/subset", "finetune/segmentation"):
        (place / f"{job.partition('/')[0]}.yaml").write_bytes((ROOT / "configs" / f"{job}.yaml").read_bytes())
    import torch

    architecture = {"name": "waveformer", "in_channels": [1], "settings": {"depth": 2}}
    described = {"architecture": architecture, "preprocessing": {"spacing_mm": 1.0, "modalities": {}}}
    save_weights(place / "weights.safetensors", {"w": torch.zeros(3)}, place / "weights.json", described)
    # Without the checksum of its own, which would refuse every change.
    text = json.loads((place / "weights.json").read_text())
    (place / "weights.json").write_text(json.dumps({key: of for key, of in text.items() if key != OWN_CHECKSUM}))
    return {
        "NIfTI": (place / "scan.nii", read_volume, changed),
        "NRRD": (place / "scan.nrrd", read_nrrd, changed),
        "DICOM": (place / "slice3.dcm", series_at, changed),
        "store, whole file": (place / "scan.vxw", stored_at, changed),
        "store, chunk with right checksums": (place / "scan.vxw", stored_at, changed_chunk),
        "manifest": (place / "manifest.csv", read_manifest, changed),
        "list of cases": (place / "cases.csv", find_cases, changed),
        "list of files": (place / "list.csv", lambda path: find_files(Source(str(path), "")), changed),
        "records": (place / "metrics.jsonl", summarised, changed),
        "override": (place / "override.txt", overridden, changed),
        "configuration of pretrain": (place / "pretrain.yaml", load_config, changed),
        "configuration of finetune": (place / "finetune.yaml", load_finetune_config, changed),
        "description of weights": (
            place / "weights.json",
            partial(read_weights, place / "weights.safetensors"),
            changed,
        ),
    }


def attempt(kind: str, start: int, count: int, results: Any) -> None:
    """Try inputs number `start` and on of a kind, and put what became of them into `results`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    foreign: list[str] = []
    with TemporaryDirectory() as folder:
        path, read, change = make_inputs(Path(folder))[kind]
        content = path.read_bytes()
        read(path)  # as it is, it has to be good
        for number in range(start, start + count):
            path.write_bytes(change(content, np.random.default_rng((number, *kind.encode()))))
            try:
                read(path)
                counts["read"] += 1
            except FINE as error:
                # As the command line prints it.
                counts["refused" if "\n" not in printable(str(error)) else "several lines"] += 1
            except Exception as error:  # what is looked for
                counts["foreign"] += 1
                foreign.append(f"{number}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    results.put((dict(counts), foreign[:5]))


def tried(kind: str, inputs: int) -> tuple[Counter[str], list[str]]:
    """Try `inputs` inputs of a kind in processes of their own, one after the other."""
    counts: Counter[str] = Counter()
    examples: list[str] = []
    context = multiprocessing.get_context("fork")
    for start in range(0, inputs, PER_PROCESS):
        results = context.Queue()
        process = context.Process(target=attempt, args=(kind, start, min(PER_PROCESS, inputs - start), results))
        process.start()
        process.join(TIMEOUT_S)
        if process.exitcode != 0 or results.empty():
            process.kill()
            counts["aborted"] += 1
            examples.append(f"process of inputs from {start} ended with {process.exitcode}")
            continue
        more, foreign = results.get()
        counts.update(more)
        examples += foreign
    return counts, examples


def main() -> None:
    """Try all kinds, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all kinds together")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        kinds = list(make_inputs(Path(folder)))
    per_kind = 20 if arguments.quick else -(-arguments.inputs // len(kinds))
    figures: dict[str, Any] = {"inputs_of_each_kind": per_kind, "kinds": {}}
    outcomes = ("read", "refused", "several lines", "foreign", "aborted")
    for kind in kinds:
        counts, examples = tried(kind, per_kind)
        figures["kinds"][kind] = {name: counts[name] for name in outcomes} | {"examples": examples[:5]}
        print(kind, dict(counts), *examples[:5], sep="\n  ", flush=True)
    rows = [(kind, *(of[name] for name in outcomes)) for kind, of in figures["kinds"].items()]
    publish("faults/fuzz", figures, table(f"input | {' | '.join(outcomes)}", rows), quick=arguments.quick)


if __name__ == "__main__":
    main()
