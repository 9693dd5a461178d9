"""The version of the package, of its builds and of the C library. CMakeLists.txt and pyproject.toml read it here."""

VERSION = "0.1.0"
