#!/usr/bin/env bash
# Build MinkowskiEngine 0.5.4 from its published source package and install it into the environment of $PYTHON.
#
#   PYTHON=.venv/bin/python docker/install_minkowski.sh [cpu|cuda]
#
# Without an argument it builds what the installed torch is: cuda where torch has it, else cpu. Called again, it does
# nothing. A built wheel is kept in $VOXELWAVE_WHEELS (~/.cache/voxelwave/wheels) under the versions of torch, CUDA and
# Python and of this recipe, and taken from there by the next environment. Needs torch, a C++17 compiler, and pip's
# package index; for cuda nvcc of torch's CUDA version. MAX_JOBS compilers run at once, of 2 GB each (cuda: 5 GB).
set -euo pipefail

PYTHON=${PYTHON:-python3}
WHEELS=${VOXELWAVE_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/voxelwave/wheels}
RELEASE=0.5.4
SHA256=b1879c00d0b0b1d30ba622cce239886a7e3c78ee9da1064cdfe2f64c2ab15f94
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() { echo "install_minkowski: $1" >&2; exit 2; }

# 1. Which build: the version of the wheel says what it was compiled against, and by which recipe.
PYTHON=$(command -v "$PYTHON") || fail "no Python at '$PYTHON': set PYTHON to the environment's interpreter"
[[ $PYTHON = /* ]] || PYTHON=$PWD/$PYTHON
TORCH=$("$PYTHON" -c 'import numpy, torch; print(torch.__version__.split("+")[0], torch.version.cuda or "cpu")') ||
  fail "$PYTHON has no torch with numpy: install them first, the build is tied to torch's version"
read -r TORCH_VERSION TORCH_CUDA <<<"$TORCH"
DEVICE=${1:-$([ "$TORCH_CUDA" = cpu ] && echo cpu || echo cuda)}
case $DEVICE in
  cpu) FLAGS=--cpu_only TAG=cpu ;;
  cuda)
    [ "$TORCH_CUDA" != cpu ] || fail "torch $TORCH_VERSION of $PYTHON is a CPU build: install a CUDA build, or use 'cpu'"
    FLAGS=--force_cuda TAG=cu${TORCH_CUDA//./} ;;
  *) fail "unknown device '$DEVICE': use cpu or cuda" ;;
esac
RECIPE=$(sed -n '/^# 2\./,/^# 3\./p' "${BASH_SOURCE[0]}" | cat - "$HERE/minkowski_blas.hpp" | sha256sum | cut -c1-8)
VERSION=$RELEASE+torch$TORCH_VERSION.$TAG.$RECIPE

installed() { "$PYTHON" -c 'from importlib.metadata import version; print(version("MinkowskiEngine"))' 2>/dev/null || true; }
if [ "$(installed)" = "$VERSION" ]; then
  echo "MinkowskiEngine $VERSION is installed"
  exit
fi

# 2. Build, where no wheel of this version for this Python is kept.
TAGS=$("$PYTHON" -c 'import sys, sysconfig
py = f"cp{sys.version_info.major}{sys.version_info.minor}"
print(py, py, sysconfig.get_platform().replace("-", "_").replace(".", "_"), sep="-")')
WHEEL=$WHEELS/minkowskiengine-$VERSION-$TAGS.whl
if [ ! -f "$WHEEL" ]; then
  command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler: install one (Debian: apt-get install g++)"
  WORK=$(mktemp -d)
  trap 'rm -rf "$WORK"' EXIT
  LOG=$WORK/build.log
  echo "building MinkowskiEngine $VERSION: some minutes, ${MAX_JOBS:=$(nproc)} compilers at once"

  # An environment of its own, so that the old setuptools which setup.py wants stay out of $PYTHON's; torch is $PYTHON's.
  "$PYTHON" -m venv "$WORK/venv"
  "$WORK/venv/bin/pip" install --quiet --quiet 'setuptools==69.5.1' 'wheel==0.45.1' 'ninja==1.13.0'
  SITE=$("$WORK/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$PYTHON" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])' >"$SITE/torch.pth"
  # Before pip hands the package over it runs setup.py as published, for a name: that asks numpy.distutils, gone since
  # Python 3.12, for a BLAS, and the pip of the PATH to uninstall.
  cat >"$SITE/any_blas.py" <<'PYTHON_CODE'
import sys, types
package, module = types.ModuleType("numpy.distutils"), types.ModuleType("numpy.distutils.system_info")
package.system_info, module.get_info = module, lambda blas: {"libraries": []}
sys.modules |= {package.__name__: package, module.__name__: module}
PYTHON_CODE
  echo 'import any_blas' >"$SITE/any_blas.pth"
  PATH=$WORK/venv/bin:$PATH pip download --quiet --quiet --no-deps --no-build-isolation --require-hashes --dest "$WORK" \
    --requirement <(echo "MinkowskiEngine==$RELEASE --hash=sha256:$SHA256") ||
    fail "pip could not download MinkowskiEngine $RELEASE: is its package index within reach?"
  tar -xzf "$WORK/MinkowskiEngine-$RELEASE.tar.gz" -C "$WORK"
  cd "$WORK/MinkowskiEngine-$RELEASE"

  # An edit that changes nothing is a mistake, and ends the build.
  edit() { cp "$2" "$WORK/before"; sed -i "$1" "$2"; ! cmp -s "$2" "$WORK/before" || fail "edit '$1' found nothing in $2"; }

  # pip of the PATH would uninstall from another environment, and `rm -rf build` throws away what ninja needs.
  edit '/^run_command(/d' setup.py
  # Products are torch's own: a second BLAS with threads of its own takes three times as long (see minkowski_blas.hpp).
  cp "$HERE/minkowski_blas.hpp" src/mkl_alternate.hpp
  edit 's/libraries.append(BLAS)/pass/' setup.py
  # The wheel says what it was built against.
  edit "s/^__version__ = .*/__version__ = \"$VERSION\"/" MinkowskiEngine/__init__.py
  # collections.Sequence is gone since Python 3.10.
  for file in MinkowskiCoordinateManager MinkowskiKernelGenerator MinkowskiTensorField MinkowskiCommon utils/quantization; do
    edit 's/^from collections import Sequence/from collections.abc import Sequence/' MinkowskiEngine/$file.py
  done
  edit 's/^from collections.abc import Sequence, namedtuple/from collections import namedtuple\nfrom collections.abc import Sequence/' \
    MinkowskiEngine/MinkowskiKernelGenerator.py
  # Threads would race for the order of the pairs of sites, so that no two runs had the same last bits.
  edit '/^#pragma omp parallel for/d' src/coordinate_map_cpu.hpp
  # A pointer that nobody owns: every map of coordinates that was ever made left a kilobyte behind.
  edit 's/py::cast(new CoordinateMapKey(coordinate_size, map_key))/py::cast(CoordinateMapKey(coordinate_size, map_key))/' \
    src/coordinate_map_manager.cpp
  # Rows are gathered and added one by one otherwise, while all cores but one wait; no row comes twice in a loop.
  edit 's/^ *for (row = 0; row < n_active_in_volume; row++)/#pragma omp parallel for\n&/' src/convolution_kernel.hpp

  MAX_JOBS=$MAX_JOBS CFLAGS="${CFLAGS:-} -g0" "$WORK/venv/bin/python" setup.py bdist_wheel "$FLAGS" --blas=openblas \
    --dist-dir "$WORK/dist" >"$LOG" 2>&1 || { tail -n 40 "$LOG" >&2; fail "the build failed; its last lines are above"; }
  mkdir -p "$WHEELS"
  mv "$WORK"/dist/*.whl "$WHEEL.part"
  mv "$WHEEL.part" "$WHEEL"
fi

# 3. Install, and multiply once.
"$PYTHON" -m pip install --quiet --quiet --no-deps --force-reinstall "$WHEEL"
OMP_NUM_THREADS=1 "$PYTHON" -W ignore - <<'PYTHON_CODE'
import MinkowskiEngine as ME, torch
sites = ME.SparseTensor(torch.ones(2, 1), torch.IntTensor([[0, 0, 0, 0], [0, 0, 0, 1]]))
conv = ME.MinkowskiConvolution(1, 1, kernel_size=3, dimension=3)
torch.nn.init.ones_(conv.kernel)
assert conv(sites).F.flatten().tolist() == [2.0, 2.0], conv(sites).F
PYTHON_CODE
echo "installed MinkowskiEngine $VERSION"
