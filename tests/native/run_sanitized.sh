#!/bin/sh
# usage: run_sanitized.sh [--quick] address,undefined|thread [INSTRUCTION SET...]
#
# Builds the native code with these sanitizers and runs the native tests on it, once per instruction set given (default: the
# best one and portable). AddressSanitizer and UndefinedBehaviorSanitizer take all native tests; leaks are not checked, because
# Python keeps much to its end. ThreadSanitizer takes programs/, which have no uninstrumented runtime inside: OpenMP's threads
# are asked for their number and never used. --quick: the programs alone, on the best instruction set, under ThreadSanitizer on the portable
# kernels, the threads being the same. PYTHON chooses the interpreter, BUILD the build directory.
set -eu

quick=
[ "${1:-}" = --quick ] && quick=1 && shift
sanitizers=${1:?address,undefined or thread}
shift
[ $# -gt 0 ] || if [ -n "$quick" ]; then set -- ""; else set -- "" portable; fi
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
build=${BUILD:-$root/build/sanitized-$sanitizers}
with_python=ON
portable=OFF
[ "$sanitizers" = thread ] || [ -n "$quick" ] && with_python=OFF
[ "$sanitizers" = thread ] && [ -n "$quick" ] && portable=ON

pybind11=$("$python" -m pybind11 --cmakedir)
mkdir -p "$(dirname "$build")"
cmake -G Ninja -S "$root" -B "$build" -DDYNADAPT_SANITIZE=$sanitizers -DDYNADAPT_PYTHON=$with_python -DDYNADAPT_PORTABLE=$portable \
  -DCMAKE_CXX_FLAGS_RELEASE="-O1" -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
  -Dpybind11_DIR="$pybind11" >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
cmake --build "$build" --parallel "${JOBS:-2}"

# Programs that call the library from many threads, with the sanitizer in them as well.
model=$build/model
rm -rf "$model"
(cd "$root" && "$python" -c "import sys; from tests.native.engine_c import write; write(__import__('pathlib').Path(sys.argv[1]), layers=1)" "$model")
${CXX:-g++} -std=c++20 -O1 -g -fsanitize=$sanitizers -I"$root/csrc/include" "$here/programs/op_races.cpp" -L"$build" -ldynadapt \
  -Xlinker -rpath -Xlinker "$build" -o "$build/op_races"  # not -Wl: the path has a comma
for isa in "$@"; do
  echo "races, instruction set: ${isa:-the best}"
  DYNADAPT_CPU_ISA=$isa TSAN_OPTIONS=halt_on_error=1:die_after_fork=0 ASAN_OPTIONS=detect_leaks=0 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 "$build/op_races" 20 "$model"
done
[ "$with_python" = OFF ] && exit 0

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
for isa in "$@"; do
  echo "instruction set: ${isa:-the best}"
  DYNADAPT_CPU_ISA=$isa PYTHONPATH="$build/package" LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    "$python" -m pytest -q -p no:cacheprovider -m "not slow" --rootdir "$root" --ignore "$here/test_instruction_sets.py" \
    --ignore "$here/test_runtime.py" --ignore "$here/test_linking.py" --ignore "$here/test_engine_program.py" \
    --ignore "$here/test_races.py" --ignore "$here/test_aarch64.py" --ignore "$here/test_disassembly.py" "$here"
done
