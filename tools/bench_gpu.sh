#!/bin/sh
# All that needs a GPU: the tests that are skipped without one, and every benchmark on it, in parts of some minutes each.
#
#   tools/bench_gpu.sh                     all parts, about half an hour on a large GPU
#   tools/bench_gpu.sh llm tests           some parts; each is meant to stay below ten minutes
#
# Parts:
#   llm      the LLM's part alone: the tests of the engine on the GPU, float32 and bfloat16, the 7B shape (needs torch,
#            transformers and tokenizers only)
#   tests    all tests marked gpu, a skipped one counting as failed
#   stages   vidqa doctor and vidqa bench, ONNX Runtime against torch for a ViT-L/14 in float16, tuning steps
#   answers  the usual loop against vidqa: a tiny model, and ViT-L/14 encoders with a small LLM
#   full     the same with the whole 7B shape in bfloat16: Q = 1 and 8, 64 new tokens, then 16 clips
#
# Tables are printed; whole logs, each with a JSON line last, lie in $OUT, or in build/bench_gpu. The 7B shape needs about
# 40 GB of GPU memory and 30 GB of disk for random weights. Exit code 1 when a step failed.
set -u
cd "$(dirname "$0")/.."
case "${1:-}" in
-h | --help)
    sed -n '2,/^set -u/{/^set -u/d;s/^# \{0,1\}//p;}' "$0"
    exit 0
    ;;
esac
python=${PYTHON:-python}
logs=${OUT:-build/bench_gpu}
mkdir -p "$logs"
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
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
part() {
    case "$1" in
    llm)
        step llm_tests env VIDQA_REQUIRE_GPU=1 "$python" -m pytest -q -p no:cacheprovider tests/generate/test_on_gpu.py
        step llm_small "$python" tools/bench_llm.py --device cuda
        step llm_small_bf16 "$python" tools/bench_llm.py --device cuda --dtype bfloat16
        step llm_7b_bf16 "$python" tools/bench_llm.py --layers 32 --width 4096 --new-tokens 64 --device cuda --dtype bfloat16
        ;;
    tests) step tests env VIDQA_REQUIRE_GPU=1 "$python" -m pytest -q -m gpu ;;
    stages)
        step doctor "$python" -m vidqa doctor
        step bench_demo "$python" -m vidqa bench --device cuda --json
        step encode "$python" tools/bench_encode.py --shape vit-l-14 --device cuda --fp16 --batches 1 8 32
        step train "$python" tools/bench_train.py --device cuda
        ;;
    answers)
        step answers_tiny "$python" tools/bench_answers.py --device cuda --new-tokens 64
        step answers_vit "$python" tools/bench_answers.py --shape vit-l-14 --device cuda --new-tokens 64
        ;;
    full)
        step answers_7b "$python" tools/bench_answers.py --shape 7b --device cuda --dtype bfloat16 --questions 1,8 \
            --new-tokens 64
        step answers_7b_many "$python" tools/bench_answers.py --shape 7b --device cuda --dtype bfloat16 --questions 8 \
            --new-tokens 64 --clips 16 --ways cd
        ;;
    *)
        echo "no part $1: llm, tests, stages, answers, full" >&2
        exit 2
        ;;
    esac
}
step environment "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name(), torch.version.cuda)'
for one in "${@:-all}"; do
    if [ "$one" = all ]; then
        for each in llm tests stages answers full; do part "$each"; done
    else
        part "$one"
    fi
done
echo "$failed steps failed"
[ "$failed" -eq 0 ]
