"""One OpenMP runtime in the process: two would fight over the cores."""

import os
import subprocess
import sys

PROGRAM = """
import torch, numpy, dynadapt._C
torch.ones(1 << 20).add_(1)
dynadapt._C.embedding_forward(torch.zeros(4096, dtype=torch.int64), torch.ones(1, 8), None, None, torch.empty(4096, 8))
paths = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
names = ("libgomp", "libiomp", "libomp")
print(*sorted(p for p in paths if p.rsplit("/", 1)[-1].startswith(names)), sep="\\n")
"""


def loaded(imports_first):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", imports_first + PROGRAM], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_one_openmp_runtime():
    assert len(loaded("")) == 1


def test_one_openmp_runtime_when_ours_comes_first():
    assert len(loaded("import dynadapt._C\n")) == 1
