import json
import shutil
import subprocess
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow

from support.exported_runs import CLASSIFICATION, SEGMENTATION, run_export, write_backbone, write_model
from voxelwave import __version__, load_backbone
from voxelwave.downstream.bundle import inference
from voxelwave.downstream.bundle_metadata import BundleContent, metadata
from voxelwave.downstream.embedding import embed_volume
from voxelwave.downstream.finetuned import load_finetuned
from voxelwave.downstream.inference import labels_onto_grid, predict_volume
from voxelwave.downstream.scan_reader import ScanReader


def written(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


SIGNS = ["@x", "$5", "100%", "%run", "$import os", "@##a"]  # each means something to MONAI


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_backbone(folder / "backbone")
    write_model(folder / "segmentation", SEGMENTATION)
    write_model(folder / "classification", CLASSIFICATION)
    write_model(folder / "signs", CLASSIFICATION | {"targets": SIGNS})
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory, heads):
    """Two MRI heads, one of them turned and below a folder, and what is no image."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "sub").mkdir()
    for name, head in zip(("a_T1.nii.gz", "sub/b_T1.nii"), sorted((heads / "mri").iterdir()), strict=False):
        image = nibabel.load(head)
        turned = nibabel.as_closest_canonical(image).slicer[::-1] if "/" in name else image
        nibabel.save(turned, folder / name)
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.eye(4)), folder / "a_T1_seg.nii.gz")
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, runs, scans):
    """One bundle of each kind, run as MONAI does, in a process of its own, from another folder."""
    folder = tmp_path_factory.mktemp("bundles")
    for run in runs.iterdir():
        run_export(run, folder / run.name, file_format="bundle")
    # `python -m monai.bundle run` is this function behind a parser of arguments that the package does not need.
    code = (
        "import sys; from monai.bundle import run\n"
        "for root in sys.argv[2:]:\n"
        "    run(config_file=f'{root}/configs/inference.json', bundle_root=root, dataset_dir=sys.argv[1])\n"
    )
    command = [sys.executable, "-W", "error::UserWarning:voxelwave", "-c", code, str(scans)]
    ended = subprocess.run(
        [*command, *(str(path) for path in sorted(folder.iterdir()))], cwd=folder, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


FILES = {
    "LICENSE",
    "configs/inference.json",
    "configs/logging.conf",
    "configs/metadata.json",
    "docs/README.md",
}


def test_a_bundle_of_a_segmentation_gives_the_labels_that_the_model_gives(bundles, runs, scans):
    model, _ = load_finetuned(runs / "segmentation")
    for name in ("a_T1.nii.gz", "sub/b_T1.nii"):
        scaled = ScanReader(model.features)(scans / name, "mri")
        logits = predict_volume(model, scaled.volume, window=(12, 16, 16))
        expected = labels_onto_grid(logits, scaled.affine, shape=scaled.source.grid, to_affine=scaled.source.affine)
        out = nibabel.load(bundles / "segmentation" / "predictions" / f"{name.partition('.')[0]}_seg.nii.gz")
        assert np.array_equal(np.asarray(out.dataobj), expected)
        assert len(np.unique(expected)) > 1
        assert np.array_equal(out.affine, nibabel.load(scans / name).affine)
    assert len(written(bundles / "segmentation" / "predictions")) == 2


def test_a_bundle_of_a_backbone_gives_its_embeddings(bundles, runs, scans):
    features = load_backbone(runs / "backbone")
    scaled = ScanReader(features)(scans / "a_T1.nii.gz", "mri")
    embedding = np.load(bundles / "backbone" / "predictions" / "a_T1.npz")["embedding"]
    np.testing.assert_allclose(embedding, embed_volume(features, scaled.volume, size=None).detach(), atol=1e-5)


def test_a_bundle_of_a_classification_gives_probabilities_by_name(bundles):
    given = json.loads((bundles / "classification" / "predictions" / "sub" / "b_T1.json").read_text())
    assert given.keys() == {"lesion", "aneurysm"}
    assert all(0 < probability < 1 for probability in given.values())


def test_a_bundle_is_whole_and_says_what_it_is(bundles):
    files = {path for path in written(bundles / "segmentation") if not path.startswith("predictions")}
    assert files == FILES | {"models/model.safetensors", "models/model.json"}
    metadata = json.loads((bundles / "segmentation" / "configs" / "metadata.json").read_text())
    # What MONAI's schema of 2024-07-25 requires, of the whole and of a tensor.
    assert {"schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"} <= metadata.keys()
    assert {"required_packages_version", "task", "description", "authors", "copyright"} <= metadata.keys()
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    for tensor in (image, pred):
        assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"} <= tensor.keys()
    assert pred["channel_def"] == {"0": "background", "1": "brain", "2": "skull"}
    assert image["spatial_shape"] == ["4*n", "4*m", "4*k"]
    assert metadata["required_packages_version"]["voxelwave"] == __version__
    said = "A model with the backbone 'waveformer', pretrained on 9 mri volumes in 70 steps, fine-tuned with cases: "
    assert metadata["description"] == f"{said}4 train, 1 validation"
    of_segmentation = (bundles / "segmentation" / "LICENSE").read_text()
    assert "No licence is stated for the weights" in of_segmentation
    assert "fine-tuned from is licensed under MIT" in of_segmentation
    assert "CC-BY-4.0" in (bundles / "backbone" / "LICENSE").read_text()
    of_both = json.loads((bundles / "backbone" / "configs" / "metadata.json").read_text())
    assert of_both["ct_data_format"]["inputs"]["image"]["channel_def"]["0"] == "window at 40, 80 wide, in HU"


def test_monai_finds_every_property_of_an_inference_in_a_bundle(bundles, scans):
    root = bundles / "segmentation"
    config = str(root / "configs" / "inference.json")
    given = {"bundle_root": str(root), "dataset_dir": str(scans), "logging_file": False}
    workflow = ConfigWorkflow(config, workflow_type="infer", **given)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.network_def(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 3, 8, 8, 8)


def test_a_scan_that_cannot_be_read_is_named_and_the_others_are_predicted(tmp_path, bundles, scans):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a_T1.nii.gz").write_bytes((scans / "a_T1.nii.gz").read_bytes())
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no")
    root = bundles / "backbone"
    given = {"bundle_root": str(root), "dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
    workflow = ConfigWorkflow(
        str(root / "configs" / "inference.json"), workflow_type="infer", logging_file=False, **given
    )
    workflow.initialize()
    with pytest.raises(ValueError, match=r"1 of 2 scans could not be read: .*broken.nii.gz: not a NIfTI"):
        workflow.evaluator.run()
    assert written(tmp_path / "out") == {"a_T1.npz"}


def test_a_bundle_of_several_modalities_tells_each_scan_as_predict_does(tmp_path, bundles, runs, heads, scans):
    (tmp_path / "in").mkdir()
    shutil.copy(scans / "a_T1.nii.gz", tmp_path / "in" / "a_T1.nii.gz")
    nibabel.save(nibabel.load(min((heads / "ct").iterdir())), tmp_path / "in" / "a_CT.nii.gz")
    root = bundles / "backbone"
    given = {"bundle_root": str(root), "dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
    workflow = ConfigWorkflow(
        str(root / "configs" / "inference.json"), workflow_type="infer", logging_file=False, **given
    )
    workflow.initialize()
    workflow.evaluator.run()
    features = load_backbone(runs / "backbone")
    for name, modality in (("a_T1", "mri"), ("a_CT", "ct")):
        scaled = ScanReader(features)(tmp_path / "in" / f"{name}.nii.gz", modality)
        embedding = np.load(tmp_path / "out" / f"{name}.npz")["embedding"]
        np.testing.assert_allclose(embedding, embed_volume(features, scaled.volume, size=None).detach(), atol=1e-5)
    assert "mri and ct scans" in (root / "docs" / "README.md").read_text()


def test_names_that_mean_something_to_monai_are_names(bundles):
    given = json.loads((bundles / "signs" / "predictions" / "a_T1.json").read_text())
    assert list(given) == SIGNS


hostile = st.text("$@%#: _importaget[]()'x", min_size=1, max_size=12) | st.sampled_from(
    [
        "$__import__('os').getcwd()",
        "$import os",
        "@network_def",
        "%configs/inference.json::run",
        "@" + "#" * 30,
        "%",
        "$",
    ]
)


@settings(deadline=None, max_examples=40)
@given(
    names=st.lists(hostile, min_size=1, max_size=3),
    license=hostile,
    window=hostile,
    task=st.sampled_from(["segmentation", "classification"]),
)
def test_nothing_of_a_description_is_evaluated(tmp_path_factory, names, license, window, task):
    description = {
        "architecture": {"name": "waveformer"},
        "preprocessing": {"modalities": {"ct": {"windows_hu": [[window, window]] * 3}, "mri": {}}},
        "license": license,
    }
    content = BundleContent(task, description, (1, 3), 4, (8, 8, 8), names, len(names), "0", lambda folder: None)
    harmless = replace(content, outputs=["a"] * len(names), description=description | {"license": None})
    assert evaluated(content) == evaluated(harmless)


def evaluated(content):
    """What MONAI calls, evaluates, refers to or replaces in the files of a bundle, by its place."""
    parser = ConfigParser()
    parser.read_config(json.loads(json.dumps(inference(content))))
    parser["_meta_"] = json.loads(json.dumps(metadata(content)))
    parser.parse()
    items = {name: item.get_config() for name, item in parser.ref_resolver.items.items()}
    return {
        name: config
        for name, config in items.items()
        if ConfigComponent.is_instantiable(config) or (isinstance(config, str) and config[:1] in {"$", "@", "%"})
    }
