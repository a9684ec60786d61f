import copy
import io

import numpy as np
import pytest
import torch

from support.pretraining_runs import QUIET, records, weights
from support.stopping import stop_after
from voxelwave import load_backbone
from voxelwave.data.listing.cases import find_cases
from voxelwave.downstream.embedding import embed_volume, frame, random_crops
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.errors import DivergedError
from voxelwave.evaluation.probing import knn_probe, linear_probe
from voxelwave.evaluation.retrieval import retrieval
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.data import TrainingData
from voxelwave.jobs.pretrain.gauges import INVERSE_PENALTY, OnlineProbe, Saturation
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.jobs.pretrain.run import pretrain
from voxelwave.ops.seeding import numpy_generator, torch_generator

GAUGES = ("effective_rank_", "feature_std_", "retrieval_", "linear_", "knn_")


@pytest.fixture
def probed(raw_config, heads, tmp_path, undrawn):
    """A run of 6 steps, with cases whose target every second head has."""
    raw_config["training"]["epochs"] = 1
    raw_config["data"]["view_share"] = [1.0, 1.0]
    lines = ["image,subject,modality,odd,same"]
    for number, path in enumerate([*sorted((heads / "mri").iterdir()), *sorted((heads / "ct").iterdir())]):
        lines.append(f"{path},subject {number},{path.parent.name},{number % 2},1")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    raw_config["data"]["probe_cases"] = str(tmp_path / "cases.csv")
    return raw_config


def named(raw, name, **data):
    raw = copy.deepcopy(raw)
    raw["run"]["name"] = name
    raw["data"] |= data
    return check_config(raw)


def gauges(record):
    return {name: value for name, value in record.items() if name.startswith(GAUGES)}


def test_the_gauges_are_those_of_the_same_features_by_hand(probed, heads):
    probed["run"]["tensorboard"] = True
    config = named(probed, "run")
    pretrain(config, console=QUIET)
    by_step = [gauges(record) for record in records(config)]
    # Every fourth step and at the end; of CT there is one odd head, and `same` is no question.
    assert [bool(of) for of in by_step] == [step in (0, 4, 5) for step in range(6)]
    names = {f"{gauge}{modality}" for gauge in GAUGES[:3] for modality in ("mri", "ct")}
    assert by_step[-1].keys() == names | {"linear_odd_mri", "knn_odd_mri"}

    features = load_backbone(config.run_folder())  # as it was at the last step
    size, read = (16, 16, 16), ScanReader(features)
    cases = find_cases(config.data.probe_cases, modality="mri")
    volumes = [frame(read(case.image, "mri").volume, 4, size=size).half().float() for case in cases]
    embeddings = np.stack([embed_volume(features, volume, size=None).numpy() for volume in volumes])
    asked = (embeddings, np.array([0, 1, 0, 1, 0]), np.array([case.subject for case in cases]))
    linear = linear_probe(*asked, inverse_penalties=(INVERSE_PENALTY,))["balanced accuracy"]
    assert by_step[-1]["linear_odd_mri"] == linear.value
    assert by_step[-1]["knn_odd_mri"] == knn_probe(*asked)["balanced accuracy"].value

    files = sorted((heads / "ct").iterdir())
    crops = []
    for number, place in enumerate(numpy_generator(0, "probed scans", "ct").permutation(3)):
        generator, volume = torch_generator(0, "probed crops", "ct", number), read(files[place], "ct").volume
        cut = random_crops(features, volume, count=2, generator=generator, size=size).half().float()
        crops.append([embed_volume(features, crop, size=None).numpy() for crop in cut])
    assert by_step[-1]["retrieval_ct"] == retrieval(np.array(crops), ranks=(1,))["Recall@1"].value

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(config.run_folder() / "tensorboard")).Reload()
    written = events.Scalars("ct/linear_odd_mri")[-1]
    assert (written.step, written.value) == (5, pytest.approx(linear.value))


def test_probing_does_not_change_the_training(probed):
    often, never = named(probed, "often"), named(probed, "never", probe_cases=None)
    often.training.probe_every_steps, never.training.probe_every_steps = 1, 1000
    for config in (often, never):
        pretrain(config, console=QUIET)
    exact = ("loss", "reconstruction", "contrastive", "grad_norm")
    ours, theirs = ([[record[name] for name in exact] for record in records(config)] for config in (often, never))
    assert ours == theirs
    ours, theirs = (weights(config) for config in (often, never))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resumed_run_has_the_same_gauges(probed):
    whole, parts = named(probed, "whole"), named(probed, "parts")
    pretrain(whole, console=QUIET)
    pretrain(parts, console=QUIET, should_stop=stop_after(3))
    assert pretrain(parts, resume=True, console=QUIET)
    assert [gauges(record) for record in records(parts)] == [gauges(record) for record in records(whole)]


def test_a_run_may_go_on_with_other_cases_or_none(probed):
    config = named(probed, "run")
    pretrain(config, console=QUIET, should_stop=stop_after(3))
    assert pretrain(named(probed, "run", probe_cases=None), resume=True, console=QUIET)
    last = gauges(records(config)[-1])
    assert last.keys() == {f"{gauge}{modality}" for gauge in GAUGES[:3] for modality in ("mri", "ct")}


def online(config, writes=True, console=QUIET):
    data = TrainingData(config, rank=0, world_size=1, pin_memory=False, console=QUIET)
    return OnlineProbe(config, build_pretrainer(config), data, cropped=None, writes=writes, console=console)


def test_what_is_probed_is_said(probed, heads, tmp_path):
    raw = copy.deepcopy(probed)
    (tmp_path / "broken.nii").write_bytes(b"no volume")
    with (tmp_path / "cases.csv").open("a") as file:
        file.write(f"{tmp_path / 'broken.nii'},nobody,mri,1,1\n")
    output = io.StringIO()
    config = named(raw, "run", max_volumes_per_modality=2)
    assert "linear_odd_mri" in online(config, console=Console(file=output))(0)
    said = output.getvalue()
    assert "probe cases: 9, of 4 of them the files are also trained on" in said
    assert "not probed: odd (ct): each class needs two subjects" in said
    assert "not probed: same (mri): every case is of class 1" in said
    assert f"left out of the probes: {tmp_path / 'broken.nii'}: " in said


def test_features_that_are_no_numbers_end_the_run_in_one_line(probed):
    probe = online(named(probed, "run"))
    with torch.no_grad():
        for weights_of in probe._features.parameters():
            weights_of.fill_(torch.nan)
    with pytest.raises(
        DivergedError, match=r"features of mri are not finite after step 7: lower training.learning_rate"
    ):
        probe(7)


def test_other_ranks_take_the_gauges_of_collapse_alone(probed):
    names = {f"{gauge}{modality}" for gauge in GAUGES[:2] for modality in ("mri", "ct")}
    assert online(named(probed, "run"), writes=False)(0).keys() == names


def test_scans_are_read_once(probed, tmp_path):
    config = named(probed, "run")
    probe = online(config)
    first = probe(0)
    (tmp_path / "cases.csv").unlink()
    read = []
    probe._reader = lambda path, modality: read.append(path)
    assert probe(0) == first
    assert not read


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ("nowhere", "key 'data.probe_cases': nowhere is neither a list of cases"),
        ("image,modality\n{mri},mri\n", "key 'data.probe_cases': no case of .* is of mri or ct and has a target"),
    ],
)
def test_cases_that_cannot_be_used_are_one_line_before_training(probed, heads, tmp_path, cases, message):
    path = tmp_path / "other.csv"
    path.write_text(cases.format(mri=heads / "mri" / "head_0000_T1.nii.gz"))
    config = named(probed, "run", probe_cases="nowhere" if cases == "nowhere" else str(path))
    with pytest.raises(ValueError, match=message) as caught:
        pretrain(config, console=QUIET)
    assert "\n" not in str(caught.value)
    assert not config.run_folder().exists()


def test_a_solved_contrastive_task_is_said_once():
    rows = [
        {"epoch": number, "loss": 0.5, "alignment": mean, "mri_alignment": mri, "ct_alignment": ct}
        for number, (mean, mri, ct) in enumerate(
            [(0.9, 0.9, 0.9), (0.992, 0.999, 0.985), (1.0, 0.998, 1.0), (1.0, 1.0, 1.0)]
        )
    ]
    for weight, said in ((0.5, ["in epoch 2"]), (0.0, [])):
        console = Console(file=io.StringIO())
        saturation = Saturation(console, weight=weight)
        assert [saturation(row) for row in rows] == [0.5] * 4
        lines = console.file.getvalue().splitlines()
        assert len(lines) == len(said)
        assert all(
            part in line and "is solved and teaches nothing more" in line
            for part, line in zip(said, lines, strict=True)
        )


def test_a_run_says_that_its_contrastive_task_is_solved(raw_config, monkeypatch):
    monkeypatch.setattr("voxelwave.jobs.pretrain.gauges.SOLVED", -1.0)
    console = Console(file=io.StringIO())
    pretrain(check_config(raw_config), console=console)
    assert console.file.getvalue().count("the contrastive task is solved") == 1
