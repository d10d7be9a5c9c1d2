#!/usr/bin/env python3
"""Makes the wheels that are given away, and checks them: `.ci/wheels.py build FOLDER [ARCHITECTURE...]`.

Such a wheel has to run on every Linux with glibc 2.28 or later, older than most systems that build one, so zig links
it against that version's symbols, and compiles the C code of crates for the other architecture. Needs, beside what
building needs, the packages maturin and ziglang in the environment of the Python that runs this, and rustup.

`.ci/wheels.py check WHEEL...` checks wheels that are there: their command is of the architecture that their name
promises, asks for no newer glibc, by the versions of symbols in its ELF header, and for no library that a system may
lack.
"""

import argparse
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What `build` promises, as names of wheels have it.
PROMISE = "manylinux_2_28"
# An architecture as Rust, wheels and `uname -m` name it, and as ELF numbers it.
MACHINES = {"x86_64": 62, "aarch64": 183}
# What glibc itself consists of, and the unwinder, which every Linux with a C++ library has (PEP 600 lists them all).
LIBRARIES = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1"}
LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}

# Sections, and an entry of the dynamic one, as ELF numbers them.
DYNAMIC, VERSIONS, NEEDED = 6, 0x6FFFFFFE, 1


class Wrong(Exception):
    """What a wheel must not be."""


class Elf:
    """What a program asks of a system: `machine`, `libraries`, and `versions`, pairs of library and version."""

    def __init__(self, data):
        # 64 bits, least byte first; all architectures here are.
        if data[:6] != b"\x7fELF\x02\x01":
            raise Wrong("the command is no ELF file of 64 bits")
        self.data = data
        (self.machine,) = struct.unpack_from("<H", data, 18)
        (at,) = struct.unpack_from("<Q", data, 40)
        size, count = struct.unpack_from("<HH", data, 58)
        # Of each section: type, offset, length, the section it belongs with, number of entries.
        sections = []
        for i in range(count):
            _, kind, _, _, offset, length, link, info = struct.unpack_from("<IIQQQQII", data, at + i * size)
            sections.append((kind, offset, length, link, info))
        self.libraries, self.versions = set(), set()
        for kind, offset, length, link, info in sections:
            if kind == DYNAMIC:
                for tag, value in struct.iter_unpack("<QQ", data[offset : offset + length]):
                    if tag == NEEDED:
                        self.libraries.add(self.string(sections[link][1] + value))
            elif kind == VERSIONS:
                strings = sections[link][1]
                for _ in range(info):
                    _, names, library, name, following = struct.unpack_from("<HHIII", data, offset)
                    at = offset + name
                    for _ in range(names):
                        _, _, _, version, after = struct.unpack_from("<IHHII", data, at)
                        self.versions.add((self.string(strings + library), self.string(strings + version)))
                        at += after
                    offset += following

    def string(self, at):
        return self.data[at : self.data.index(b"\0", at)].decode()


def check(wheel):
    """What the command in a wheel asks for, in a line; `Wrong` where that is more than the wheel's name promises."""
    named = re.fullmatch(rf"lowtide-.*-manylinux_(\d+)_(\d+)_({'|'.join(MACHINES)})\.whl", wheel.name)
    if named is None:
        raise Wrong("its name does not promise a glibc and an architecture")
    glibc, architecture = (int(named[1]), int(named[2])), named[3]
    with zipfile.ZipFile(wheel) as files:
        commands = [f for f in files.namelist() if f.endswith(".data/scripts/lowtide")]
        if len(commands) != 1:
            raise Wrong(f"it has {len(commands)} commands")
        elf = Elf(files.read(commands[0]))
    if elf.machine != MACHINES[architecture]:
        raise Wrong(f"the command is for machine {elf.machine}, {architecture} is {MACHINES[architecture]}")
    foreign = elf.libraries - LIBRARIES - {LOADERS[architecture]}
    if foreign:
        raise Wrong(f"the command asks for {', '.join(sorted(foreign))}")
    numbers = [re.fullmatch(r"GLIBC_(\d+)\.(\d+)(\.\d+)?", version) for _, version in elf.versions]
    asked = max(((int(n[1]), int(n[2])) for n in numbers if n), default=None)
    if asked is None:
        raise Wrong("the command asks for no version of glibc")
    if asked > glibc:
        raise Wrong(f"the command asks for glibc {asked[0]}.{asked[1]}, its name promises {glibc[0]}.{glibc[1]}")
    return f"{wheel.name}: {architecture}, glibc {asked[0]}.{asked[1]}, {' '.join(sorted(elf.libraries))}"


def build(architecture, folder):
    """The wheel of an architecture."""
    target = f"{architecture}-unknown-linux-gnu"
    subprocess.run(["rustup", "target", "add", target], cwd=ROOT, check=True)
    tools = Path(sys.executable).parent  # where maturin looks for the Python that has ziglang
    maturin = [tools / "maturin", "build", "--release", "--locked", "--zig", "--target", target]
    maturin += ["--compatibility", PROMISE, "--out", folder]
    subprocess.run(maturin, cwd=ROOT, check=True, env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"})
    (wheel,) = folder.glob(f"lowtide-*-{PROMISE}_{architecture}.whl")
    return wheel


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build")
    making.add_argument("folder", type=Path)
    making.add_argument("architectures", nargs="*", default=[*MACHINES])
    checking = commands.add_parser("check")
    checking.add_argument("wheels", nargs="+", type=Path)
    args = parser.parse_args()
    if args.command == "build":
        unknown = set(args.architectures) - set(MACHINES)
        if unknown:
            sys.exit(f"no architecture {', '.join(unknown)}; there are {', '.join(MACHINES)}")
        folder = args.folder.absolute()
        if list(folder.glob("*.whl")):
            sys.exit(f"{folder} has wheels already")
        wheels = [build(a, folder) for a in args.architectures]
    else:
        wheels = args.wheels
    wrong = False
    for wheel in wheels:
        try:
            print(check(wheel))
        except Wrong as error:
            wrong = True
            print(f"{wheel}: {error}", file=sys.stderr)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
