#!/usr/bin/env bash
# Proves and measures the kernels of this folder on this machine's GPU, the most valuable step first,
# each in a time box. It goes on after failures, and its exit code is 1 where a step failed.
set -u
usage='Usage: bash run.sh [--minutes N] [--out DIR] [--tests FILTER] [--dry-run]

  --minutes N     begin no step after so many minutes (10)
  --out DIR       where the results go (gpu-results)
  --tests FILTER  only the tests whose names contain FILTER
  --dry-run       on the emulated device, in software: no times, and no NVIDIA tools'
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) || exit 2
minutes=10 out=$PWD/gpu-results device=cuda tests=()
while [ $# -gt 0 ]; do
    case $1 in
        --minutes | --out | --tests)
            [ $# -gt 1 ] || { echo "run.sh: $1 needs a value" >&2; exit 2; }
            case $1 in
                --minutes) minutes=$2 ;;
                --out) out=$2 ;;
                --tests) tests=("$2") ;;
            esac
            shift 2
            ;;
        --dry-run) device=emulated; shift ;;
        --help) echo "$usage"; exit 0 ;;
        *) printf 'run.sh: unknown argument %s\n\n%s\n' "$1" "$usage" >&2; exit 2 ;;
    esac
done
case $minutes in
    '' | *[!0-9]*) echo "run.sh: --minutes $minutes: it must be a whole number" >&2; exit 2 ;;
esac
logs=$out/logs
mkdir -p "$logs" && out=$(cd "$out" && pwd) && logs=$out/logs || exit 2

export CUDA_EMULATOR_DEVICE=$device FUSED_DORA_WORKSPACE=$here PYTHONDONTWRITEBYTECODE=1
export FUSED_DORA_COMMIT=$(cat "$here/commit.txt")
# The programs here share the PTX that the driver translates at the first use of a kernel.
export CUDA_CACHE_MAXSIZE=${CUDA_CACHE_MAXSIZE:-1073741824}
# At the end the report needs some seconds.
end=$((SECONDS + minutes * 60 - 10))
failed=0 json=() table=()

# left SECONDS: so many, or what is left of all.
left() {
    local rest=$((end - SECONDS))
    echo $((rest < $1 ? rest : $1))
}

# row NAME SECONDS RESULT: says how a step went.
row() {
    printf '%-16s %4s s  %s\n' "$@"
    json+=("{\"step\": \"$1\", \"seconds\": $2, \"result\": \"$3\"}")
    table+=("| $1 | $2 | $3 |")
}

# step NAME SECONDS COMMAND...: runs a command for at most so long; what it prints is a log. A command
# that ends with 77 has found that this machine lacks what it needs.
step() {
    local name=$1 limit start=$SECONDS code
    limit=$(left "$2")
    shift 2
    if [ "$limit" -le 0 ]; then
        failed=1
        row "$name" 0 'left out: no time'
        return
    fi
    timeout --kill-after=5 "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null
    code=$?
    # The driver lets administrators alone count.
    if grep -q ERR_NVGPUCTRPERM "$logs/$name.log"; then code=77; fi
    case $code in
        0) row "$name" $((SECONDS - start)) ok ;;
        77) row "$name" $((SECONDS - start)) "left out: $(tail -n 1 "$logs/$name.log" | tr '"|\\' "'  ")" ;;
        124 | 137) failed=1; row "$name" $((SECONDS - start)) 'out of time' ;;
        *) failed=1; row "$name" $((SECONDS - start)) "failed ($code), see logs/$name.log" ;;
    esac
}

# tool NAME SECONDS PROGRAM ARGUMENTS...: a step of a program that a machine may lack.
tool() {
    if command -v "$3" >/dev/null; then
        step "$@"
    else
        row "$1" 0 "left out: no $3 on the path"
    fi
}

# sanitize NAME ARGUMENTS...: a small case of each kernel under one of the sanitizer's tools.
small=(ops::ragged_shapes adamw:: adapter:: merge:: decompose:: norm_gradient:: packed::)
sanitize() {
    tool "$1" 90 compute-sanitizer --tool "$1" --error-exitcode 9 \
        "$here/bin/kernels" --test-threads 1 "${tests[@]:-${small[@]}}"
}

# cuBLASLt may be in a folder that the loader does not search, such as that of a Python wheel, or have
# a version in its name that the programs do not know.
wheels='import glob, sys; print(*(f for d in sys.path for f in glob.glob(d + "/nvidia/*/lib/libcublasLt.so.*")))'
if [ "$device" = cuda ] && ! ldconfig -p 2>/dev/null | grep -qE 'libcublasLt\.so(\.1[12])? '; then
    for file in $(python3 -c "$wheels" 2>/dev/null) /usr/local/cuda*/lib64/libcublasLt.so.*; do
        [ -f "$file" ] || continue
        libraries=$(mktemp -d) && ln -s "$file" "$libraries/libcublasLt.so" || break
        trap 'rm -r "$libraries"' EXIT
        export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        break
    done
fi

if [ "$device" = cuda ]; then tool device 20 nvidia-smi -q; fi
step kernels 400 "$here/bin/kernels" "${tests[@]}"
step alone 200 "$here/bin/alone" "${tests[@]}"
if [ ${#tests[@]} -gt 0 ] && ! grep -qE '^running [1-9]' "$logs/kernels.log" "$logs/alone.log"; then
    failed=1
    row tests 0 "failed: no test has '${tests[0]}' in its name"
fi
step bench-layers 260 "$here/bin/bench" layers --out "$out" --seconds "$(left 240)"
step bench-ops 60 "$here/bin/bench" ops --out "$out" --seconds "$(left 50)"
compare=("$here/pytorch/peft_compare.py" --library "$here/lib/libfused_dora.so"
    --header "$here/include/fused_dora.h" --out "$out/pytorch")
if [ "$device" = cuda ]; then
    tool pytorch 100 python3 "${compare[@]}" --seconds "$(left 80)"
    sanitize memcheck
    sanitize racecheck
    tool ncu 60 ncu --csv --page raw --section SpeedOfLight --section ComputeWorkloadAnalysis \
        --section MemoryWorkloadAnalysis --section WarpStateStats "$here/bin/bench" once
else
    export CUDA_EMULATOR_LIBRARY=$here/bin/libcuda_emulator.so
    tool pytorch 100 python3 "${compare[@]}" --dry-run
    step bench-once 60 "$here/bin/bench" once
fi
end=$((SECONDS + 30))
step report 30 "$here/bin/report" --from "$out" --out "$out"

{
    printf '\n## Steps of run.sh\n\n| step | seconds | result |\n| --- | --: | --- |\n'
    printf '%s\n' "${table[@]}"
} >>"$out/REPORT.md"
separator=
{
    printf '['
    for one in "${json[@]}"; do
        printf '%s\n  %s' "$separator" "$one"
        separator=,
    done
    printf '\n]\n'
} >"$logs/steps.json"
echo "results: $out"
exit $failed
