import subprocess
import sys


def test_timm_is_importable_whatever_torchvision_was_built_for():
    # In a process of its own: an import that failed once stays half done.
    code = (
        "from voxelwave.ops.torchvision_operators import make_torchvision_importable as make\n"
        "make(); make()\n"
        "import timm.optim, torchvision\n"
        "print(timm.optim.param_groups_layer_decay.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["param_groups_layer_decay"], done.stderr
