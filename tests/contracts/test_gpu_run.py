"""What is to be measured on a GPU runs on a CPU at a tiny size, so that it runs where there is one for ten minutes."""

import json
import os
import subprocess
import sys

from support.command import ROOT


def test_the_run_for_a_gpu_leaves_figures_of_every_part(tmp_path):
    command = ["bash", ROOT / "benchmarks" / "gpu" / "run.sh", tmp_path, "--tiny", "--objectives", "cross_contrast"]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    subprocess.run(list(map(str, command)), check=True, env=environment, timeout=300)
    figures = json.loads((tmp_path / "gpu.json").read_text())
    ended = [figures[name] for name in ("step", "reconstruction", "heads", "probed")]
    ended += [figures["cross_contrast"][name] for name in ("run", "probe")]
    assert [of.get("exit_code") for of in ended] == [0] * 6, figures
    step = json.loads((tmp_path / "step.json").read_text())
    assert step["ours, gather"]["flops_a_step"] > 1e6
    assert step["ours, gather"]["volumes_per_second"] > 0
    reconstruction = json.loads((tmp_path / "reconstruction.json").read_text())
    assert reconstruction["2 coils, 16×16"]["step_s"] > reconstruction["2 coils, 16×16"]["reconstruction_s"] > 0
    table = (tmp_path / "gpu.md").read_text()
    assert "| tissue | mri→ct |" in table
    assert "cross_contrast" in table
