#!/usr/bin/env bash
# Everything to be measured on a GPU, in less than six minutes, on a machine that has one and torch.
#
#     benchmarks/gpu.sh [OUT]
#
# Writes OUT/gpu_*.json, with the card's name, and the output of each step. OUT is benchmarks/results
# if neither it nor the variable of that name is given; PYTHON is the interpreter, `python` if not
# given. Models have random weights: nothing is downloaded. A step that fails or takes too long does
# not stop the others; the exit status is 1 then. DEVICE=cpu tries the script where there is no GPU.
set -uo pipefail
out=$(realpath -m "${1:-${OUT:-$(dirname "$0")/results}}")
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python} device=${DEVICE:-cuda} failed=()
mkdir -p "$out" || exit 1
export PYTHONPATH="$PWD:$PWD/adapters${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

step() { # step NAME SECONDS COMMAND...
    local name=$1 limit=$2 status
    shift 2
    printf '\n== %s, at most %s s\n' "$name" "$limit"
    timeout --kill-after=3 "$limit" "$@" 2>&1 | tee "$out/gpu_$name.txt"
    status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || failed+=("$name ($status)")
}

step card 20 "$python" -c "
import torch, sys
print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')
sys.exit('$device' == 'cuda' and not torch.cuda.is_available())"
step tests 70 "$python" -m pytest -q -n0 -p no:cacheprovider -m cuda tests/test_refiner.py tests/tensors
step speed 140 "$python" benchmarks/speed.py --device "$device" --repeats 5 --only "SD2's" own \
    --json "$out/gpu_speed.json"
step factors 25 "$python" benchmarks/factors.py --device "$device" --json "$out/gpu_factors.json"
step sources 80 "$python" benchmarks/sources.py --device "$device" --dtype float16 --repeats 3 \
    --cases "dinov2-b14, 518, map" "clip-b16, 448, map" "sd2, 512, map" --json "$out/gpu_sources.json"

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed, with their status (124: took too long): %s\n' "${failed[*]}"
    exit 1
fi
printf '\nall steps passed; the results are in %s\n' "$out"
