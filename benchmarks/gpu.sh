#!/usr/bin/env bash
# The GPU lane, on a machine with a GPU, a CUDA torch and nvcc; nothing is fetched. Builds in place, runs the suite on the
# GPU too, runs the kernels' tests under compute-sanitizer, times; the tables come last. OUT: where logs go.
set -uo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-build/gpu}"
python="${PYTHON:-python3}"
mkdir -p "$out"
failed=0
step() { # name, seconds, command…
  local name="$1" seconds="$2"
  shift 2
  if timeout "$seconds" "$@" >"$out/$name.log" 2>&1; then echo "ok      $name"; else
    echo "FAILED  $name ($out/$name.log)"
    tail -n 15 "$out/$name.log"
    failed=1
  fi
}
step build 240 env STITCHKERN_CUDA=1 "$python" setup.py build_ext --inplace
step doctor 60 "$python" -m stitchkern doctor
step tests 180 "$python" -m pytest -q -x tests/test_moments.py tests/test_lsq.py tests/test_lasso_op.py tests/solvers tests/test_similarity.py tests/matching tests/models
step tests-hsic 180 "$python" -m pytest -q -x tests/test_hsic.py tests/test_hsic_gradients.py -k cuda
step tests-spconv 180 "$python" -m pytest -q -x tests/test_spconv.py tests/test_nn_sparse.py -k cuda
for tool in memcheck racecheck synccheck; do
  step "$tool" 140 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -x tests/test_moments.py \
    tests/test_lsq.py tests/test_hsic.py tests/test_hsic_gradients.py tests/test_spconv.py -k "cuda and (((test_layouts or test_dtypes or \
    test_weights) and not 300) or (test_sizes and (cuda-9- or cuda-33- or 128-33) and not 200) or (test_unsolvable and \
    20-8) or cuda-64-200-97 or cuda-7-1-193 or cuda-5-97 or test_sides_repeatably)"
done
step moments 120 "$python" -m benchmarks.gpu_moments "$out/moments.json"
step lsq 60 "$python" -m benchmarks.gpu_lsq "$out/lsq.json"
step hsic 120 "$python" -m benchmarks.gpu_hsic "$out/hsic.json"
step spconv 120 "$python" -m benchmarks.gpu_spconv "$out/spconv.json"
step task 120 "$python" -m benchmarks.test_task
tail -n 40 "$out/moments.log" "$out/lsq.log" "$out/hsic.log" "$out/spconv.log" "$out/task.log"
exit "$failed"
