#!/usr/bin/env bash
# Makes an environment on an image that has Python and a CUDA torch already, and runs a GPU session in it:
#
#     benchmarks/gpu.sh --out results            gpu.py, one GPU
#     benchmarks/gpu.sh two --out results        gpu_two.py, two GPUs
#
#     WHEELS=folder   wheels to install without a network; see docs/gpu.md for what makes that folder
#     PYTHON=path     the image's Python that has torch (default: python3)
#     SITE=folder     where what is missing goes (default: a new folder in TMPDIR); nothing of the image is touched
set -euo pipefail

root=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
python=${PYTHON:-python3}
site=${SITE:-$(mktemp -d "${TMPDIR:-/tmp}/yolods-site.XXXXXX")}
script=gpu.py
[[ ${1:-} != two ]] || { script=gpu_two.py && shift; }

# Looked for where the session will look: in the folder, in the image, in the checkout.
export PYTHONPATH=$root:$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 YOLODS_CACHE=${YOLODS_CACHE:-$site/cache}

# --no-deps: pip would otherwise put another torch beside the image's, whose CUDA may not be the driver's.
# DS_BUILD_OPS=0: DeepSpeed compiles an operator when a run first needs it, not all of them now.
if [[ -n ${WHEELS:-} ]]; then
    echo "installing the wheels of $WHEELS into $site"
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl
else
    mapfile -t missing < <("$python" "$root/benchmarks/gpu_missing.py" "$root/constraints.txt")
    echo "installing into $site: ${missing[*]:-nothing}"
    ((${#missing[@]} == 0)) || DS_BUILD_OPS=0 "$python" -m pip install -q --no-deps --no-compile --target "$site" "${missing[@]}"
fi
exec "$python" "$root/benchmarks/$script" "$@"
