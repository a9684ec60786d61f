#!/usr/bin/env bash
# Build MinkowskiEngine 0.5.4 from its published source package and install it into the environment of $PYTHON.
#
#   PYTHON=.venv/bin/python docker/install_minkowski.sh [cpu|cuda]
#
# Without an argument it builds what the installed torch is: cuda where torch has it, else cpu. Called again, it does
# nothing. A built wheel is kept in $VOXELWAVE_WHEELS (~/.cache/voxelwave/wheels) under the versions of torch, CUDA and
# Python and of this recipe, and taken from there by the next environment. Needs torch, a C++17 compiler, and pip's
# package index; for cuda nvcc of torch's CUDA version, which compiles for the GPUs of TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX").
# MAX_JOBS compilers run at once, of 2 GB each (cuda: 5 GB).
set -euo pipefail

PYTHON=${PYTHON:-python3}
WHEELS=${VOXELWAVE_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/voxelwave/wheels}
RELEASE=0.5.4
SHA256=b1879c00d0b0b1d30ba622cce239886a7e3c78ee9da1064cdfe2f64c2ab15f94
HERE=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOOLS=$HERE/../requirements/minkowski.txt

fail() { echo "install_minkowski: $1" >&2; exit 2; }

# 1. Which build: the version of the wheel says what it was compiled against, and by which recipe.
PYTHON=$(command -v "$PYTHON") || fail "no Python at '$PYTHON': set PYTHON to the environment's interpreter"
[[ $PYTHON = /* ]] || PYTHON=$PWD/$PYTHON
TORCH=$("$PYTHON" -c 'import numpy, torch; print(torch.__version__.split("+")[0], torch.version.cuda or "cpu")') ||
  fail "$PYTHON has no torch with numpy: install them first, the build is tied to torch's version"
read -r TORCH_VERSION TORCH_CUDA <<<"$TORCH"
"$PYTHON" -m pip --version >/dev/null 2>&1 || fail "$PYTHON has no pip to install with: $PYTHON -m ensurepip"
mkdir -p "$WHEELS" && [ -w "$WHEELS" ] || fail "cannot write to $WHEELS: set VOXELWAVE_WHEELS to another folder"
WHEELS=$(CDPATH='' cd -- "$WHEELS" && pwd)
DEVICE=${1:-$([ "$TORCH_CUDA" = cpu ] && echo cpu || echo cuda)}
case $DEVICE in
  cpu) FLAGS=--cpu_only TAG=cpu OTHERS='/^  if .*cuda/,/^  fi/d' ;;
  cuda)
    [ "$TORCH_CUDA" != cpu ] || fail "torch $TORCH_VERSION of $PYTHON is a CPU build: install a CUDA build, or use 'cpu'"
    command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" nvcc >/dev/null ||
      fail "no nvcc: install CUDA $TORCH_CUDA, set CUDA_HOME, or build for the CPU alone with 'cpu'"
    # Code for the A100's generation and the H100's, and PTX for later ones: torch has no default where no GPU is.
    export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-8.0;9.0+PTX}
    FLAGS=--force_cuda TAG=cu${TORCH_CUDA//./} OTHERS='' ;;
  *) fail "unknown device '$DEVICE': use cpu or cuda" ;;
esac
# The recipe is section 2 without comments and the blocks that are OTHERS': an edit for CUDA leaves CPU wheels valid.
RECIPE=$({ sed -n '/^# 2\./,/^# 3\./p' "${BASH_SOURCE[0]}" | sed "/^ *#/d; $OTHERS" | cat - "$HERE/minkowski_blas.hpp"
  grep -o '^[a-z].*==[^ ]*' "$TOOLS"
  [ "$DEVICE" = cpu ] || echo "$TORCH_CUDA_ARCH_LIST"; } | sha256sum | cut -c1-8)
VERSION=$RELEASE+torch$TORCH_VERSION.$TAG.$RECIPE

installed() { "$PYTHON" -c 'import importlib.util, importlib.metadata as metadata
print(importlib.util.find_spec("MinkowskiEngineBackend._C") and metadata.version("MinkowskiEngine"))' 2>/dev/null || true; }
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
  echo "building MinkowskiEngine $VERSION: some minutes, ${MAX_JOBS:=$(env -u OMP_NUM_THREADS nproc)} compilers at once"

  # An environment of its own, so that what only the build needs stays out of $PYTHON's; torch is $PYTHON's.
  "$PYTHON" -m venv "$WORK/venv"
  "$WORK/venv/bin/pip" install --quiet --quiet --require-hashes --requirement "$TOOLS"
  # The PATH's ninja is torch's, without which it compiles one file at a time; the PATH's pip is setup.py's.
  PATH=$WORK/venv/bin:$PATH
  SITE=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$PYTHON" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])' >"$SITE/torch.pth"
  # Before pip hands the package over it runs setup.py as published, for a name: that asks numpy.distutils, gone since
  # Python 3.12, for a BLAS.
  cat >"$SITE/any_blas.py" <<'PYTHON_CODE'
import sys, types
package, module = types.ModuleType("numpy.distutils"), types.ModuleType("numpy.distutils.system_info")
package.system_info, module.get_info = module, lambda blas: {"libraries": []}
sys.modules |= {package.__name__: package, module.__name__: module}
PYTHON_CODE
  echo 'import any_blas' >"$SITE/any_blas.pth"
  pip download --quiet --quiet --no-deps --no-build-isolation --require-hashes --dest "$WORK" \
    --requirement <(echo "MinkowskiEngine==$RELEASE --hash=sha256:$SHA256") ||
    fail "pip could not download MinkowskiEngine $RELEASE: is its package index within reach?"
  tar -xzf "$WORK/MinkowskiEngine-$RELEASE.tar.gz" -C "$WORK"
  cd "$WORK/MinkowskiEngine-$RELEASE"

  # An edit that changes nothing is a mistake, and ends the build.
  edit() { cp "$2" "$WORK/before"; sed -i "$1" "$2"; ! cmp -s "$2" "$WORK/before" || fail "edit '$1' found nothing in $2"; }

  # `pip uninstall` and `rm -rf build` are not for a build to do.
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
  # Maps are made by one thread: several race for the order of the pairs of sites, and no two runs have the same last bits.
  edit '/^#pragma omp parallel for/d' src/coordinate_map_cpu.hpp
  # A pointer that nobody owns: every map of coordinates that was ever made left a kilobyte behind.
  edit 's/py::cast(new CoordinateMapKey(coordinate_size, map_key))/py::cast(CoordinateMapKey(coordinate_size, map_key))/' \
    src/coordinate_map_manager.cpp
  # Rows are gathered and added one by one otherwise, while all cores but one wait; no row comes twice in a loop.
  edit 's/^ *for (row = 0; row < n_active_in_volume; row++)/#pragma omp parallel for\n&/' src/convolution_kernel.hpp
  if [ "$DEVICE" = cuda ]; then
    # thrust::unary_function is gone since CUDA 13, and nothing used what it gave.
    edit '/public thrust::unary_function/,+1c {' src/coordinate_map_functors.cuh
    # Thrust's headers no longer bring each other along, and only nvcc finds them: not the compiler of the .cpp files.
    edit 's/^#ifndef CPU_ONLY/#ifdef __CUDACC__/' src/utils.hpp
    for header in execution_policy for_each iterator/zip_iterator reduce remove scan sequence sort transform tuple unique; do
      edit "/thrust.host_vector.h/a #include <thrust/$header.h>" src/utils.hpp
    done
    # Here it comes before those headers; coordinate_map_manager.hpp, which follows, includes it after them.
    edit '/^#include "coordinate_map_gpu.cuh"/d' src/coordinate_map_manager.cu
    # The bundled nvtx3.hpp clashes with CUDA's own, which CUB includes; it only named a range for the profiler.
    edit '/nvtx\/ranges/d; /CUDF_FUNC_RANGE()/d' src/3rdparty/concurrent_unordered_map.cuh
    # cudaMemPrefetchAsync has other arguments since CUDA 13; it was for managed memory, and the map's never is.
    edit 's/cudaMemPrefetchAsync(.*, stream)/cudaSuccess/' src/3rdparty/concurrent_unordered_map.cuh
    # Its one caller wants a shared_ptr; by way of a unique_ptr __to_address of std and of cuda::std are candidates alike.
    edit 's/std::unique_ptr<Self, .*>{/std::shared_ptr<Self>{/' src/3rdparty/concurrent_unordered_map.cuh
  fi

  MAX_JOBS=$MAX_JOBS CFLAGS="${CFLAGS:-} -g0" python setup.py bdist_wheel "$FLAGS" --blas=openblas \
    --dist-dir "$WORK/dist" >"$LOG" 2>&1 || { tail -n 40 "$LOG" >&2; fail "the build failed; its last lines are above"; }
  mv "$WORK"/dist/*.whl "$WHEEL.$$"
  mv "$WHEEL.$$" "$WHEEL"
fi

# 3. Install, and multiply once.
"$PYTHON" -m pip install --quiet --quiet --no-deps --force-reinstall "$WHEEL"
OMP_NUM_THREADS=1 "$PYTHON" -W ignore - <<'PYTHON_CODE'
import MinkowskiEngine as ME, torch
conv = ME.MinkowskiConvolution(1, 1, kernel_size=3, dimension=3)
torch.nn.init.ones_(conv.kernel)
for device in ["cpu"] + ["cuda"] * (ME.is_cuda_available() and torch.cuda.is_available()):
    sites = ME.SparseTensor(torch.ones(2, 1), torch.IntTensor([[0, 0, 0, 0], [0, 0, 0, 1]]), device=device)
    out = conv.to(device)(sites).F
    assert out.flatten().tolist() == [2.0, 2.0], (device, out)
PYTHON_CODE
echo "installed MinkowskiEngine $VERSION"
