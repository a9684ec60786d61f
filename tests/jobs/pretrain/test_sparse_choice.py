import io
import re
from functools import cache

import pytest

from support.pretraining_runs import records, tiny
from support.stopping import stop_after
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.errors import InputError
from voxelwave.jobs.common.config_file import apply_override
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain import sparse_choice
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.run import pretrain
from voxelwave.sparse.fastest import Trial

pytestmark = pytest.mark.usefixtures("undrawn")


def run(raw, **how):
    """Train, and return what was printed on one line each."""
    said = io.StringIO()
    pretrain(check_config(raw), console=Console(file=said, width=500), **how)
    return said.getvalue()


def losses(raw):
    return [record["loss"] for record in records(check_config(raw))]


@pytest.fixture(scope="module")
def on(heads, tmp_path_factory):
    """Train once on a backend, and return the losses and what was printed."""

    @cache
    def train(sparse):
        raw = tiny(heads, tmp_path_factory.mktemp("whole"))
        raw["model"]["sparse"] = sparse
        said = run(raw)
        return losses(raw), said

    return train


@pytest.mark.parametrize(
    ("given", "use_sparse", "sparse"),
    [
        (None, "true", "auto"),
        (None, "false", "dense"),
        ("auto", "true", "auto"),
        ("auto", "false", "dense"),
        ("gather", "true", "gather"),
        ("dense", "false", "dense"),
    ],
)
def test_use_sparse_is_understood(raw_config, given, use_sparse, sparse):
    raw_config["model"].pop("sparse")
    if given:
        raw_config["model"]["sparse"] = given
    apply_override(raw_config, f"model.use_sparse={use_sparse}")
    model = check_config(raw_config).model
    assert model.sparse == sparse
    assert "use_sparse" not in model.model_dump()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_sparse": "maybe"}, "use_sparse is true or false, got maybe"),
        ({"use_sparse": True, "sparse": "dense"}, "use_sparse: true contradicts sparse: dense"),
        ({"use_sparse": False, "sparse": "gather"}, "use_sparse: false contradicts sparse: gather"),
        ({"sparse": "spconv"}, "sparse"),
    ],
)
def test_a_wrong_backend_in_a_config_is_one_line(raw_config, values, message):
    del raw_config["model"]["sparse"]
    raw_config["model"].update(values)
    with pytest.raises(InputError, match=message) as caught:
        check_config(raw_config)
    assert "\n" not in str(caught.value)


def test_auto_says_once_which_backend_and_why(on):
    said = [line for line in on("auto")[1].splitlines() if line.startswith("sparse: ")]
    assert len(said) == 1
    assert re.match(
        r"sparse: (gather|minkowski|dense), none is 5 % faster .* \(ms a pass: gather .*, dense .*\)", said[0]
    )


def test_auto_draws_no_random_number_and_counts_no_step(on):
    """The losses are those of the same backend named in the config."""
    found, said = on("auto")
    chosen = re.search(r"sparse: (\w+), none", said)[1]
    assert found == on(chosen)[0]


def test_a_resumed_run_on_minkowskiengine_equals_the_uninterrupted_one_bit_for_bit(on, raw_config, minkowski):
    raw_config["model"]["sparse"] = minkowski
    run(raw_config, should_stop=stop_after(3))
    assert len(losses(raw_config)) == 3
    run(raw_config, resume=True)
    assert losses(raw_config) == on(minkowski)[0]


def test_a_resumed_run_keeps_the_backend_that_auto_had_chosen(raw_config, monkeypatch):
    raw_config["model"]["sparse"] = "auto"
    monkeypatch.setattr(sparse_choice, "try_backends", lambda *_: Trial({"gather": 2.0, "dense": 1.0}, {}))
    assert "sparse: dense, none is 5 % faster" in run(raw_config, should_stop=lambda: True)
    assert load_checkpoint(check_config(raw_config).run_folder() / "last.pth")["sparse"] == "dense"
    monkeypatch.setattr(sparse_choice, "try_backends", lambda *_: Trial({"gather": 1.0, "dense": 2.0}, {}))
    assert "sparse: dense, as in the run so far" in run(raw_config, resume=True)


def test_a_run_whose_backend_is_gone_goes_on_with_another(raw_config, monkeypatch):
    raw_config["model"]["sparse"] = "auto"
    monkeypatch.setattr(sparse_choice, "try_backends", lambda *_: Trial({"dense": 1.0}, {}))
    run(raw_config, should_stop=lambda: True)
    monkeypatch.setattr(sparse_choice, "why_not", lambda name, device: "gone" if name == "dense" else None)
    monkeypatch.setattr(sparse_choice, "try_backends", lambda *_: Trial({"gather": 1.0}, {}))
    said = run(raw_config, resume=True)
    assert "sparse: gather" in said
    assert "the run began with dense (gone)" in said


@pytest.mark.parametrize("other", ["gather", "minkowski"])
def test_a_run_on_any_backend_has_the_same_losses(on, other, request):
    if other == "minkowski":
        request.getfixturevalue("minkowski")
    found, said = on(other)
    assert f"sparse: {other}, as configured" in said
    assert found == pytest.approx(on("dense")[0], rel=1e-4)


def test_a_run_goes_on_with_another_backend(on, raw_config):
    raw_config["model"]["sparse"] = "dense"
    run(raw_config, should_stop=stop_after(1))
    raw_config["model"]["sparse"] = "gather"
    assert "sparse: gather, as configured" in run(raw_config, resume=True)
    assert losses(raw_config) == pytest.approx(on("dense")[0], rel=1e-4)


def test_a_backend_that_does_not_run_on_the_device_is_refused(raw_config, monkeypatch):
    monkeypatch.setattr(sparse_choice, "why_not", lambda name, device: "was built without CUDA")
    with pytest.raises(InputError, match="was built without CUDA"):
        run(raw_config)
