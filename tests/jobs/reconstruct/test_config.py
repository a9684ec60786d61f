"""What is wrong with a configuration is one line, said before anything is made, opened or trained."""

import pytest
import yaml

from voxelwave.errors import InputError
from voxelwave.jobs.reconstruct.config import check_reconstruction_config
from voxelwave.jobs.reconstruct.plan import load_plan
from voxelwave.jobs.reconstruct.router.config import check_router_config, router_config_of

UNET = {"name": "unet", "channels": 2, "depth": 1}
SPECIALISTS = {
    "model": UNET,
    "specialists": {"brain": {"data.anatomy": "brain"}, "knee": {"data.anatomy": "knee", "data.files": "knees"}},
}


def refused(raw, said):
    with pytest.raises(InputError, match=said) as caught:
        check_reconstruction_config({"model": UNET} | raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("validation", [1.0, -0.1, float("nan"), True, None, [], "", 2])
def test_validation_is_a_place_or_a_share(validation):
    refused(
        {"data": {"validation": validation}},
        r"key 'data.validation': a file, a folder or a glob is needed, or a share of the files, at least 0 and below 1",
    )


def test_a_place_that_is_not_named_is_not_the_working_folder():
    refused({"data": {"files": ""}}, "data.files.*at least 1 character")


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([{"epochs": 2, "warmup_epochs": 5}], r"'blocks.0.warmup_epochs': 5 are more than the 2 epochs"),
        ([{"epochs": 5}, {"epochs": 5, "zero_at_epoch": 9}], r"'blocks.1.zero_at_epoch': 9, .* ends with epoch 10"),
        ([{"epochs": 5, "warmup_epochs": 3, "zero_at_epoch": 2}], r"'blocks.0.zero_at_epoch': 2"),
    ],
)
def test_a_block_learns_until_its_end(blocks, said):
    refused({"blocks": blocks}, said)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"model": UNET | {"channels": 0}}, "channels and depth must be at least 1"),
        ({"model": UNET | {"depth": 40}}, "'unet' cannot be built"),
        ({"model": {"name": "promptmr_plus", "num_cascades": 10**6}}, "num_cascades must be 1 to 100"),
        ({"training": {"objective": {"name": "self_supervised"}}}, "does not tell what each coil sees"),
        ({"training": {"objective": {"name": "supervised", "a": 1}}}, "takes: no settings"),
        ({"data": {"band_rows": 40, "readout_rows": 32}}, "'data.band_rows': 40 are more than data.readout_rows=32"),
        ({"data": {"band_rows": 8}}, "data.band_rows.*16"),
        ({"model": None}, "key 'model': a section is needed, with keys below it, got None"),
        ({"data": {"synthesize": {"slices": 10**9}}}, "data.synthesize.slices"),
    ],
)
def test_what_cannot_be_built_is_said_with_the_configuration(raw, said):
    refused(raw, said)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"router": 3}, "'router': a section is needed"),
        ({"router": {"data": 3}}, r"'router.data': a section is needed, with keys below it, got 3"),
        (
            {"router": {"data": {"anatomies": {}}}},
            r"'router.data.anatomies' follows from the specialists: leave it out",
        ),
        ({"router": {"run": {"name": "x"}}}, r"'router.run.name' follows from the specialists"),
        ({"specialists": {"brain": {"data": {"acceleration": 8}}}}, r"name the keys .* as 'data.acceleration'"),
    ],
)
def test_what_a_file_of_specialists_would_pass_over_is_said(tmp_path, changed, said):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SPECIALISTS | changed))
    with pytest.raises(InputError, match=said):
        router_config_of(load_plan(path), str(path))


def test_an_anatomy_of_a_router_has_files():
    with pytest.raises(InputError, match="of 'knee' no files are named"):
        check_router_config({"data": {"anatomies": {"brain": "a", "knee": []}}})
