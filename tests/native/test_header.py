"""The headers by themselves, in each language that may include them, with every warning an error."""

import shutil
import subprocess

import pytest

from dynadapt.interop import linking

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-pedantic-errors"]
LANGUAGES = {
    "c99": ["gcc", "-xc", "-Wstrict-prototypes"],
    "c11": ["gcc", "-xc", "-Wstrict-prototypes"],
    "c17": ["gcc", "-xc", "-Wstrict-prototypes"],
    "c++17": ["g++", "-xc++"],
    "c++20": ["g++", "-xc++"],
}
HEADERS = ("dynadapt", "dlpack")


@pytest.mark.parametrize("compiler", ["", "clang"])
@pytest.mark.parametrize("standard", LANGUAGES)
def test_headers_are_clean(standard, compiler, tmp_path):
    """Each alone, both in either order, each twice, and used."""
    command = [
        compiler or LANGUAGES[standard][0],
        *LANGUAGES[standard][1:],
        f"-std={standard}",
        *WARNINGS,
        "-fsyntax-only",
        f"-I{linking.include_dir()}",
    ]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    use = "int main(void) { DLTensor t; dynadapt_engine_params p; (void)t; dynadapt_engine_params_default(&p, sizeof p); return dynadapt_abi_version(); }\n"
    for names in (("dynadapt",), ("dlpack",), HEADERS, HEADERS[::-1], HEADERS * 2):
        program = "".join(f"#include <dynadapt/{name}.h>\n" for name in names)
        program += (
            use if "dynadapt" in names else "int main(void) { DLManagedTensorVersioned t; (void)t; return DLPACK_MAJOR_VERSION - 1; }\n"
        )
        done = subprocess.run([*command, "-"], input=program, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
