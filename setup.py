"""Build the one extension; everything else is in pyproject.toml.

Environment switches: PYSECCOMP_DEBUG=1 (-O0 -g, assertions), PYSECCOMP_SANITIZE=1 (ASan, UBSan).
"""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

debug = os.environ.get("PYSECCOMP_DEBUG") == "1"
sanitize = os.environ.get("PYSECCOMP_SANITIZE") == "1"

compile_args = ["-std=gnu17", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"]
compile_args += ["-O0", "-g", "-UNDEBUG"] if debug else ["-O2"]
sanitizers = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if sanitize else []

core = Extension(
    "pyseccomp._core",
    sources=["pyseccomp/_core.pyx", *sorted(set(glob("csrc/*.c")) - {"csrc/guardian_main.c"})],
    depends=[*glob("csrc/*.h"), *glob("csrc/arch/*.h"), *glob("csrc/syscalls/*"), "pyseccomp/cpsc.pxd"],
    include_dirs=["csrc"],
    extra_compile_args=compile_args + sanitizers,
    extra_link_args=sanitizers,
)


# What is built beside the extension, in the package: the guardian, and what other C programs are linked with.
GUARDIAN, LIBRARY, HEADER = "guardian", "lib/libpsc.a", "include/psc.h"


class BuildCore(build_ext):
    """Build the guardian's executable and libpsc.a beside the extension, of the same objects."""

    def build_extension(self, ext):
        super().build_extension(ext)
        sources = [source for source in ext.sources if source.startswith("csrc/")]
        objects = self.compiler.object_filenames(sources, output_dir=self.build_temp)
        main = self.compiler.compile(
            ["csrc/guardian_main.c"], output_dir=self.build_temp, include_dirs=ext.include_dirs, extra_postargs=ext.extra_compile_args
        )
        package = os.path.dirname(self.get_ext_fullpath(ext.name))
        library = os.path.join(package, LIBRARY)
        for built in (LIBRARY, HEADER):
            self.mkpath(os.path.dirname(os.path.join(package, built)))
        if os.path.exists(library):  # ar would keep the objects of files that are no more
            os.unlink(library)
        self.compiler.create_static_lib(objects, "psc", output_dir=os.path.dirname(library))
        self.copy_file("csrc/psc.h", os.path.join(package, HEADER))
        self.compiler.link_executable(
            main, GUARDIAN, output_dir=package, extra_preargs=[], extra_postargs=[library, "-pthread", *ext.extra_link_args]
        )

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        package = self.get_finalized_command("build_py").get_package_dir("pyseccomp")
        for built in (GUARDIAN, LIBRARY, HEADER):
            self.mkpath(os.path.dirname(os.path.join(package, built)))
            self.copy_file(os.path.join(self.build_lib, "pyseccomp", built), os.path.join(package, built))

    def get_outputs(self):
        return [*super().get_outputs(), *(os.path.join(self.build_lib, "pyseccomp", b) for b in (GUARDIAN, LIBRARY, HEADER))]


setup(
    ext_modules=cythonize([core], compiler_directives={"language_level": 3, "embedsignature": True}),
    cmdclass={"build_ext": BuildCore},
)
