#!/bin/sh
# Builds the native code with AddressSanitizer and UndefinedBehaviorSanitizer and runs the native tests on it, once per
# instruction set given as arguments (default: the best one and portable). Leaks are not checked: Python keeps much to
# its end. PYTHON chooses the interpreter, BUILD the build directory.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
build=${BUILD:-$root/build/sanitized}
sanitizers=address,undefined

pybind11=$("$python" -m pybind11 --cmakedir)
mkdir -p "$(dirname "$build")"
cmake -G Ninja -S "$root" -B "$build" -DDYNADAPT_SANITIZE=$sanitizers -DCMAKE_CXX_FLAGS_RELEASE="-O1" \
  -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" -Dpybind11_DIR="$pybind11" >"$build.log" 2>&1 ||
  { cat "$build.log"; exit 1; }
cmake --build "$build" --parallel "${JOBS:-2}"

# The package as it is, with the sanitized libraries in the place of the installed ones.
package=$build/package/dynadapt
rm -rf "$build/package"
mkdir -p "$package"
for entry in "$root"/dynadapt/*; do
  case $entry in *.so | */__pycache__) ;; *) ln -s "$entry" "$package/" ;; esac
done
ln -s "$build"/python/*.so "$package/"

# libstdc++ is named because AddressSanitizer looks for its throw when it starts.
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so.6)"
cd "$build"
for isa in ${*:-"" portable}; do
  echo "instruction set: ${isa:-the best}"
  DYNADAPT_CPU_ISA=$isa PYTHONPATH="$build/package" LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    "$python" -m pytest -q -p no:cacheprovider -m "not slow" --rootdir "$root" --ignore "$here/test_instruction_sets.py" \
    --ignore "$here/test_runtime.py" --ignore "$here/test_linking.py" --ignore "$here/test_engine_program.py" "$here"
done
