from pathlib import Path

import pytest
import torch
import yaml

from voxelwave.errors import InputError
from voxelwave.jobs.pretrain.config import check_config, load_config
from voxelwave.jobs.pretrain.sparse_choice import hardly_masked
from voxelwave.ops.patches import token_grid
from voxelwave.registry import MASKINGS
from voxelwave.sparse.encoder import active_shares

CONFIGS = Path(__file__).parents[3] / "configs" / "pretrain"


def test_fixed_names_are_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        """
        run:      {name: phase0_subset_validation, out_dir: checkpoints, seed: 0}
        data:     {crop_size: [32, 32, 32], max_volumes_per_modality: 50, num_workers: 2,
                   sources: [{path: data/demo/mri, modality: mri}, {path: data/demo/ct, modality: ct}]}
        model:    {backbone: {name: waveformer, patch_size: 4, embed_dim: 128, depth: 4, num_heads: 4},
                   target: voxels, sparse: auto}
        masking:  {name: mim, global_ratio: 0.6, local_ratio: 0.8}
        loss:     {contrastive_weight: 0.5, temperature: 0.07}
        training: {epochs: 10, max_steps: null, batch_size: {mri: 2, ct: 2}, learning_rate: 1e-3,
                   precision: fp32, device: auto}
        """
    )
    config = load_config(path)
    assert config.training.learning_rate == 1e-3
    assert config.loss.settings["temperature"] == 0.07
    assert config.model.backbone.settings["embed_dim"] == 128


SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def masking_of(config):
    masking = MASKINGS.build(config.masking.name, **config.masking.settings)
    return masking, config.model.backbone.settings["patch_size"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_scale_of_a_shipped_config_is_masked(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    masking, patch_size = masking_of(config)
    visible = masking(token_grid(config.data.crop_size, patch_size), 4, torch.Generator().manual_seed(0)).visible
    shares = active_shares(visible, len(config.model.encoder_widths))
    assert shares == pytest.approx([1 - masking.global_ratio] * len(shares), abs=0.02)
    assert hardly_masked(config, masking, patch_size) == ""


def test_a_scale_that_is_hardly_masked_is_said():
    config = load_config(CONFIGS / "subset.yaml", ["model.encoder_widths=[128, 192, 256]"])
    said = hardly_masked(config, *masking_of(config))
    assert "98% of the encoder's coarsest scale" in said
    assert "first 2 of 3" in said


@pytest.mark.parametrize("name", ["demo", "subset", "production"])
def test_every_config_of_the_repository_is_valid(name):
    assert load_config(CONFIGS / f"{name}.yaml").modalities() == ["mri", "ct"]


def test_a_resolved_config_resolves_to_itself(raw_config):
    resolved = check_config(raw_config).model_dump(mode="json")
    assert resolved["masking"] == {"name": "mim", "global_ratio": 0.6, "local_ratio": 0.8, "block_side": "even"}
    assert resolved["data"]["modalities"]["ct"]["windows_hu"] == [[40, 80], [80, 200], [600, 2800]]
    assert check_config(yaml.safe_load(yaml.safe_dump(resolved))).model_dump(mode="json") == resolved


def test_overrides_take_yaml_values_lists_and_positions(config_file):
    overrides = [
        "training.learning_rate=2e-4",
        "data.sources.1.path=other",
        "data.crop_size=[8, 8, 8]",
        "masking={name: mim, global_ratio: 0.5}",
    ]
    config = load_config(config_file, overrides)
    assert config.training.learning_rate == 2e-4
    assert config.data.sources[1].path == "other"
    assert config.data.crop_size == (8, 8, 8)
    assert config.masking.settings["global_ratio"] == 0.5
    config = load_config(config_file, ["data.sources=[{path: X, modality: mri}]", "training.max_steps=7"])
    assert [source.path for source in config.data.sources] == ["X"]
    assert config.training.max_steps == 7


def test_mri_steps_come_first_whatever_the_order_of_the_sources(raw_config):
    raw_config["data"]["sources"].reverse()
    assert check_config(raw_config).modalities() == ["mri", "ct"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "unknown key 'training.epoch'; known here: epochs, max_steps"),
        ("trainig.epochs=3", "unknown key 'trainig'; known here: run, data"),
        ("data.sources.0.kind=mri", "unknown key 'data.sources.0.kind'; known here: path, modality"),
        (
            "model.backbone.embed_dims=3",
            "unknown key 'model.backbone.embed_dims'; backbone 'waveformer' takes: patch_size",
        ),
        ("model.backbone.depth=deep", "key 'model.backbone.depth': .*valid integer.*got 'deep'"),
        ("model.backbone.name=unet", "unknown backbone 'unet'; known: residual_cnn, waveformer"),
        ("masking.ratio=0.5", "unknown key 'masking.ratio'; masking 'mim' takes: global_ratio"),
        ("loss.tau=0.1", "unknown key 'loss.tau'; contrastive loss 'spatial_infonce' takes: temperature"),
        ("loss.reconstruction.x=1", "unknown key 'loss.reconstruction.x'"),
        ("training.learning_rate=fast", "key 'training.learning_rate': .*got 'fast'"),
        ("training.epochs=0", "key 'training.epochs': .*greater than 0.*got 0"),
        ("training.precision=fp8", "key 'training.precision': .*'fp32', 'bf16' or 'fp16'.*got 'fp8'"),
        ("training.batch_size={mri: 2}", "'training.batch_size' says nothing of modality 'ct'"),
        ("data.sources=[]", "one of data.sources and data.pairs is needed"),
        ("data.sources.0.modality=pet", "unknown modality 'pet'; known: ct, mri"),
        ("data.sources.7.path=x", "'7' must be a position 0…1 of the list"),
        ("run.name=a/b", "key 'run.name'"),
        ("training", "--set takes KEY=VALUE"),
        ("model.features.ema_momentum=0.9", "'model.features' is of model.target: features"),
        ("training.epochs.x=1", "'training.epochs' is a value, not a section"),
        ("training.epochs=[1", "is not a YAML value"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(config_file, override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config(config_file, [override])
    assert "\n" not in str(caught.value)


def test_a_share_of_the_crops_is_refused_where_there_are_views(config_file):
    with pytest.raises(InputError, match=r"'data.foreground_share' is of crops"):
        load_config(config_file, ["data.view_share=[0.5, 1]", "data.foreground_share=0.3"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read config"),
        ("a: [1", "cannot read config"),
        ("- 1", "must hold sections"),
        ("", "must hold sections"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.num_workers=true", "data.num_workers"),
        ("data.crop_size=[true, 16, 16]", "data.crop_size"),
        ("training.learning_rate=true", "training.learning_rate"),
        ("training.batch_size={mri: true, ct: 2}", "training.batch_size"),
        ("model.backbone={name: waveformer, patch_size: true}", "model.backbone.patch_size"),
        ("masking={name: mim, block_side: true}", "masking.block_side"),
    ],
)
def test_a_yes_or_no_is_no_number(override, key):
    with pytest.raises(InputError, match=f"key '{key}': a number is wanted, not yes or no"):
        load_config(CONFIGS / "demo.yaml", [override])


def test_a_yes_or_no_stays_one_where_it_is_asked_for():
    config = load_config(CONFIGS / "demo.yaml", ["training.deterministic=true", "data.augment={mri: {}, ct: {}}"])
    assert config.training.deterministic is True
