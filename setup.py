"""Build the one extension; everything else is in pyproject.toml.

Environment switches: PYSECCOMP_DEBUG=1 (-O0 -g, assertions), PYSECCOMP_SANITIZE=1 (ASan, UBSan).
"""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("PYSECCOMP_DEBUG") == "1"
sanitize = os.environ.get("PYSECCOMP_SANITIZE") == "1"

compile_args = ["-std=gnu17", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"]
compile_args += ["-O0", "-g", "-UNDEBUG"] if debug else ["-O2"]
sanitizers = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if sanitize else []

core = Extension(
    "pyseccomp._core",
    sources=["pyseccomp/_core.pyx", *sorted(glob("csrc/*.c"))],
    depends=[*glob("csrc/*.h"), *glob("csrc/arch/*.h"), *glob("csrc/syscalls/*"), "pyseccomp/cpsc.pxd"],
    include_dirs=["csrc"],
    extra_compile_args=compile_args + sanitizers,
    extra_link_args=sanitizers,
)

setup(ext_modules=cythonize([core], compiler_directives={"language_level": 3, "embedsignature": True}))
