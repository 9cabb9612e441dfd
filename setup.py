"""What pyproject.toml cannot say: the C parts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from distutils.command.build_scripts import build_scripts  # setuptools brings it
from glob import glob

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

STATIC_FLAGS = [
    "-std=gnu11", "-Os", "-static", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wshadow",
    "-Werror=implicit-function-declaration", "-ffunction-sections", "-fdata-sections",
    "-fno-asynchronous-unwind-tables", "-fstack-protector-strong", "-Wl,--gc-sections",
    "-Wl,-z,noexecstack", "-Wl,-z,relro", "-flto", "-Wl,-z,noseparate-code", "-s",
]  # fmt: skip
# These belong to the extension, not to the static monitor.
EXTENSION_ONLY = {"ext_sys.c", "launch.c", "embed.c", "_scow.c"}
FRONT = ["native/front.c", "native/front_request.c", "native/front_serve.c", "native/launch.c"]
COLD = "runtime/scow-oci-cold"


def monitor_sources() -> list[str]:
    """Every C file of native/ that the monitor is made of."""
    others = EXTENSION_ONLY | {os.path.basename(path) for path in FRONT}
    return sorted(p for p in glob("native/*.c") if os.path.basename(p) not in others)


def build_static(target: str, sources: list[str]) -> None:
    """Compile a static program: musl where there is one, because glibc's static start-up is 8 times the size."""
    compiler = shutil.which("musl-gcc")
    if compiler:
        # musl has no kernel headers of its own; those of the host come last, after musl's libc headers.
        triplet = subprocess.run(
            ["gcc", "-print-multiarch"], capture_output=True, text=True, check=True
        ).stdout.strip()
        command = [compiler, "-idirafter", "/usr/include", "-idirafter", f"/usr/include/{triplet}"]
    else:
        print(
            "warning: no musl-gcc: static programs are linked with glibc, ten times larger",
            file=sys.stderr,
        )
        command = [os.environ.get("CC", "cc")]
    os.makedirs(os.path.dirname(target), exist_ok=True)
    subprocess.run([*command, *STATIC_FLAGS, "-o", target, *sources], check=True)


class BuildExt(build_ext):
    """Builds the monitor first, since the extension embeds its bytes."""

    def run(self) -> None:
        """Build both."""
        target = os.path.abspath("build/monitor/scow-monitor")
        build_static(target, monitor_sources())
        self.force = True  # distutils does not see that the embedded binary changed
        for extension in self.extensions:
            extension.define_macros.append(("SCOW_MONITOR_BINARY", f'"{target}"'))
        super().run()


class BuildPy(build_py):
    """Makes the embedded image first, since it is data of the package."""

    def run(self) -> None:
        """Build both."""
        # The builder is no module of the build's environment: it is run as the script that it is.
        subprocess.run([sys.executable, "cri/build_hello.py"], check=True)
        super().run()


class BuildScripts(build_scripts):
    """Puts scow-oci, a program in C, and beside it the entry of its interpreter into bin/."""

    def run(self) -> None:
        """Build both."""
        build_static(os.path.join(self.build_dir, "scow-oci"), FRONT)
        super().run()


setup(
    scripts=[COLD],
    cffi_modules=["native/build.py:ffibuilder"],
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy, "build_scripts": BuildScripts},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
