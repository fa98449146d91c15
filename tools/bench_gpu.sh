#!/bin/sh
# Run everything that needs a GPU: the tests that are skipped without one and all benchmarks, in parts of ten minutes.
#
#   tools/bench_gpu.sh                     all parts, about half an hour on a large GPU
#   tools/bench_gpu.sh llm tests           some parts
#
# Parts:
#   llm      the LLM alone: GPU tests of the engine, float32 and bfloat16, the 7B shape (needs only torch, transformers
#            and tokenizers)
#   tests    all tests marked gpu; a skipped test counts as a failure
#   stages   vidqa doctor and vidqa bench, ONNX Runtime against torch for a ViT-L/14 in float16, training steps
#   answers  transformers' loop against vidqa: a tiny model, and ViT-L/14 encoders with a small LLM
#   full     the same with the full 7B shape in bfloat16, 64 new tokens: Q = 8 for 64 clips (transformers' loop for one
#            of them), then one clip with Q = 1 and 8
#
# A part may take PART_SECONDS (570). A step that would exceed this is stopped; it counts as failed, like the steps after
# it, but its output so far is kept. The last lines of each step are printed when it ends. At the end, the results are
# printed as one JSON line per step. They are also written to results.jsonl, and the full output of each part to PART.log,
# in the folder $OUT or build/bench_gpu. PYTHON selects the interpreter; the default is the first of python and python3
# that has torch. The 7B shape needs about 60 GB of GPU memory and 30 GB of disk (TMPDIR) for random weights. The exit
# code is 1 if a step failed.
set -u
cd "$(dirname "$0")/.."
case "${1:-}" in
-h | --help)
    sed -n '2,/^set -u/{/^set -u/d;s/^# \{0,1\}//p;}' "$0"
    exit 0
    ;;
esac
for one in "$@"; do
    case "$one" in
    all | llm | tests | stages | answers | full) ;;
    *)
        echo "unknown part $one; the parts are llm, tests, stages, answers, full" >&2
        exit 2
        ;;
    esac
done
python=${PYTHON:-}
for one in python python3; do
    [ -z "$python" ] && "$one" -c 'import torch' 2>/dev/null && python=$one
done
if [ -z "$python" ]; then
    echo "neither python nor python3 has torch; set PYTHON to an interpreter that has it" >&2
    exit 1
fi
logs=${OUT:-build/bench_gpu}
mkdir -p "$logs"
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
PYTHONUNBUFFERED=1
export PYTHONPATH PYTHONUNBUFFERED
results=$logs/results.jsonl
: >"$results"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0
start_part() { # name of the part
    log=$logs/$1.log
    : >"$log"
    ends=$(($(date +%s) + ${PART_SECONDS:-570}))
}
step() { # name, command...
    name=$1
    shift
    echo "== $name: $*" | tee -a "$log"
    began=$(date +%s)
    left=$((ends - began))
    if [ "$left" -le 5 ]; then
        echo "FAILED: no time left" | tee -a "$log"
        failed=$((failed + 1))
        return
    fi
    timeout -k 5 "$left" "$@" >"$scratch/out" 2>&1
    code=$?
    cat "$scratch/out" >>"$log"
    grep -v '^{.*}$' "$scratch/out" | tail -n 25
    grep '^{.*}$' "$scratch/out" | tail -n 1 |
        sed "s/^{/{\"step\": \"$name\", \"seconds\": $(($(date +%s) - began)), \"exit\": $code, /" >>"$results"
    if [ "$code" -ne 0 ]; then
        echo "FAILED with exit code $code (124 means a timeout)" | tee -a "$log"
        failed=$((failed + 1))
    fi
}
answers() { # name, arguments...
    name=$1
    shift
    step "$name" "$python" tools/bench_answers.py --device cuda --new-tokens 64 "$@"
}
part() {
    start_part "$1"
    case "$1" in
    llm)
        step llm_tests env VIDQA_REQUIRE_GPU=1 "$python" -m pytest -q -p no:cacheprovider tests/generate/test_on_gpu.py
        step attention "$python" tools/bench_attention.py
        step llm_small "$python" tools/bench_llm.py --device cuda
        step llm_small_bf16 "$python" tools/bench_llm.py --device cuda --dtype bfloat16
        step llm_7b_bf16 "$python" tools/bench_llm.py --layers 32 --width 4096 --new-tokens 64 --device cuda \
            --dtype bfloat16
        step llm_7b_16_clips "$python" tools/bench_llm.py --layers 32 --width 4096 --new-tokens 64 --device cuda \
            --dtype bfloat16 --clips 16 --profile
        ;;
    tests) step tests env VIDQA_REQUIRE_GPU=1 "$python" -m pytest -q -p no:cacheprovider -m gpu ;;
    stages)
        step doctor "$python" -m vidqa doctor
        step bench_demo "$python" -m vidqa bench --device cuda --json -q
        step encode "$python" tools/bench_encode.py --shape vit-l-14 --device cuda --fp16 --batches 1 8 32
        step train "$python" tools/bench_train.py --device cuda
        ;;
    answers)
        answers answers_tiny
        answers answers_vit --shape vit-l-14
        ;;
    full)
        answers answers_7b_many --shape 7b --dtype bfloat16 --questions 8 --clips 64 --usual-clips 1 \
            --bundle "$scratch/7b"
        answers answers_7b --shape 7b --dtype bfloat16 --questions 1,8 --bundle "$scratch/7b"
        ;;
    esac
}
start_part environment
step environment "$python" -c 'import json, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name()}))'
[ $# -eq 0 ] && set -- all
for one in "$@"; do
    if [ "$one" = all ]; then
        for each in llm tests stages answers full; do part "$each"; done
    else
        part "$one"
    fi
done
echo "== results"
cat "$results"
echo "$failed steps failed"
[ "$failed" -eq 0 ]
