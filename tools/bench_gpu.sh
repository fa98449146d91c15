#!/bin/sh
# All that needs a GPU, in one go: the tests that are skipped without one, then every benchmark on it.
#
#   tools/bench_gpu.sh              about half an hour on a large GPU; prints tables, keeps logs in build/bench_gpu
#
# The 7B shape needs about 40 GB of GPU memory and 30 GB of disk for random weights.
set -u
cd "$(dirname "$0")/.."
case "${1:-}" in
-h | --help)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
python=${PYTHON:-python}
logs=build/bench_gpu
mkdir -p "$logs"
failed=0
step() { # name, command...
    name=$1
    shift
    echo "== $name: $*"
    if "$@" >"$logs/$name.log" 2>&1; then tail -n 25 "$logs/$name.log"; else
        failed=$((failed + 1))
        echo "FAILED, see $logs/$name.log"
        tail -n 25 "$logs/$name.log"
    fi
}
step environment "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name(), torch.version.cuda)'
step tests env VIDQA_REQUIRE_GPU=1 "$python" -m pytest -q -m gpu
step encode "$python" tools/bench_encode.py --shape vit-l-14 --device cuda --fp16
step bench_demo "$python" -m vidqa bench --device cuda --json
step answers_tiny "$python" tools/bench_answers.py --device cuda --new-tokens 64
step answers_vit "$python" tools/bench_answers.py --shape vit-l-14 --device cuda --questions 1,2,4,8,16 --new-tokens 64
step answers_7b "$python" tools/bench_answers.py --shape 7b --device cuda --dtype bfloat16 --questions 1,8 --new-tokens 64
step answers_7b_many "$python" tools/bench_answers.py --shape 7b --device cuda --dtype bfloat16 --questions 8 \
    --new-tokens 64 --clips 16 --ways cd
echo "$failed steps failed"
[ "$failed" -eq 0 ]
