#!/usr/bin/env bash
# The GPU lane, on a machine with a GPU, a CUDA torch and nvcc; nothing is fetched. Builds in place, runs every test that
# has a device on the GPU, runs the kernels' tests under compute-sanitizer, then times, alone. It ends within SECONDS_IN_ALL
# whatever hangs; logs and the result file are in LOGS; the table comes last.
set -uo pipefail
cd "$(dirname "$0")/.."
out="${LOGS:-build/gpu}"
python="${PYTHON:-python3}"
end=$((SECONDS + ${SECONDS_IN_ALL:-530}))
mkdir -p "$out"
rm -f "$out"/*.log "$out"/*.failed "$out/gpu.json"
export PATH="$PATH:/usr/local/cuda/bin"
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 # what is stopped in the middle leaves a log

step() { # name, seconds at most, command…
  local name="$1" most="$2" left=$((end - SECONDS)) begin=$SECONDS
  shift 2
  if ((left < most)); then most=$((left > 1 ? left : 1)); fi
  if timeout -k 5 "$most" "$@" >"$out/$name.log" 2>&1; then
    echo "ok      $name ($((SECONDS - begin)) s)"
  else
    echo "FAILED  $name ($((SECONDS - begin)) s; $out/$name.log)"
    tail -n 12 "$out/$name.log"
    touch "$out/$name.failed"
  fi
}

arch="${STITCHKERN_CUDA_ARCHS:-$("$python" -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a >= 9))')}"
step build 200 env STITCHKERN_CUDA=1 STITCHKERN_CUDA_ARCHS="${arch:-80;90a}" "$python" setup.py build_ext --inplace
step doctor 40 "$python" -m stitchkern doctor

# the tests share the GPU, each with a core or two to itself
export OMP_NUM_THREADS=2
pytest=(-v --tb=short --maxfail=25 -o faulthandler_timeout=60 -p no:cacheprovider)
tests() { # name, path…
  local name="$1"
  shift
  step "tests-$name" 160 "$python" -m pytest "${pytest[@]}" -k cuda "$@" &
}
tests moments tests/test_moments.py tests/test_lsq.py tests/test_lasso_op.py
tests hsic tests/test_hsic.py tests/test_hsic_gradients.py
tests sparse tests/test_spconv.py tests/test_nn_sparse.py tests/test_estimators.py tests/test_estimators_lasso.py
tests models tests/test_on_device.py tests/solvers tests/test_similarity.py tests/similarity
small="cuda and (((test_layouts or test_dtypes or test_weights) and not 300) or (test_sizes and (cuda-9- or cuda-33- or 128-33) \
and not 200) or (test_unsolvable and 20-8) or cuda-64-200-97 or cuda-7-1-193 or cuda-5-97 or test_sides_repeatably or \
test_nothing_to_explain or test_stops_where_it_must)"
for tool in memcheck racecheck synccheck; do
  more=()
  if [[ $tool == memcheck ]]; then more=(--report-api-errors no); fi # libraries probe for what is not there
  step "$tool" 160 compute-sanitizer --tool "$tool" --error-exitcode 9 "${more[@]}" "$python" -m pytest "${pytest[@]}" \
    tests/test_moments.py tests/test_lsq.py tests/test_hsic.py tests/test_hsic_gradients.py tests/test_spconv.py \
    tests/test_lasso_op.py -k "$small" &
done
wait
unset OMP_NUM_THREADS
step benchmarks 200 "$python" -m benchmarks.gpu "$out/gpu.json"
for log in "$out"/tests-*.log "$out"/*check.log; do echo "$(basename "$log"): $(tail -n 1 "$log" 2>/dev/null)"; done
if grep -q '^## summary' "$out/benchmarks.log"; then
  grep '^FAILED' "$out/benchmarks.log"
  sed -n '/^## summary/,$p' "$out/benchmarks.log"
elif [[ -e "$out/gpu.json" ]]; then # it was stopped before the end
  "$python" -m benchmarks.table "$out/gpu.json"
fi
failed=("$out"/*.failed)
[[ ! -e "${failed[0]}" ]]
