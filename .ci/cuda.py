"""Compiles every CUDA kernel for every supported architecture and records what it takes.

Compiles as a session does: NVRTC, the project's own headers, none of a toolkit. Fails on an error or warning, on a kernel
that spills registers or takes more shared memory than its architecture has, and when kernels/cuda/resources.csv does not say
what came out; `--write` writes it. Needs the wheels of cuda-requirements.txt and no GPU.
"""

import argparse
import csv
import ctypes
import io
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
TABLE = KERNELS / "cuda" / "resources.csv"
COLUMNS = ["kernel", "arch", "registers", "static_shared_bytes", "spill_bytes", "stack_bytes"]

# Architecture, major version of NVRTC, and the most static shared memory of a thread block in bytes.
ARCHITECTURES = {
    "70": 12,
    "72": 12,
    "75": 13,
    "80": 13,
    "86": 13,
    "89": 13,
    "90": 13,
    "90a": 13,
    "100": 13,
    "120": 13,
}
STATIC_SHARED_BYTES = 48 << 10
MOST_REGISTERS = 255


def library(major):
    """NVRTC from the wheels of this environment; its builtins first, which it looks for by bare name."""
    folders = [Path(p) / "nvidia" / ("cu13" if major == 13 else "cuda_nvrtc") / "lib" for p in sys.path]
    for folder in folders:
        for builtins in folder.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))
            return ctypes.CDLL(str(folder / f"libnvrtc.so.{major}"))
    sys.exit(f"error: NVRTC {major} is not installed: pip install -r .ci/cuda-requirements.txt")


def compile(task):
    """The compiler's log, and whether it succeeded."""
    source, arch = task
    nvrtc = library(ARCHITECTURES[arch])
    headers = {header.name: header for header in (KERNELS / "cuda").glob("*.h")}
    headers |= {str(header.relative_to(KERNELS)): header for header in KERNELS.glob("*/*.cuh")}
    names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
    texts = (ctypes.c_char_p * len(headers))(*(header.read_bytes() for header in headers.values()))
    program = ctypes.c_void_p()
    path = str(source.relative_to(ROOT)).encode()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), path, len(headers), texts, names):
        return arch, source, False, "nvrtcCreateProgram failed"
    options = [b"--std=c++17", b"--gpu-architecture=sm_" + arch.encode(), b"--ptxas-options=-v"]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return arch, source, not failed, log.value.decode(errors="replace")


def read(arch, log):
    """A row for each kernel that the assembler reports on, and the lines that are not reports."""
    rows, others, kernel = [], [], None
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found[1]
            row = dict.fromkeys(COLUMNS, 0) | {"kernel": kernel, "arch": arch}
            rows.append(row)
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            row["stack_bytes"], row["spill_bytes"] = int(found[1]), int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            row["registers"] = int(found[1])
            if found := re.search(r"(\d+) bytes smem", line):
                row["static_shared_bytes"] = int(found[1])
        elif line.strip() and not line.startswith("ptxas") and "deprecated" not in line:
            others.append(line)
    return rows, others


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing with it")
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="only this one; prints, compares nothing")
    arguments = parser.parse_args()
    sources = sorted(KERNELS.glob("*/*.cu"), key=lambda source: -source.stat().st_size)
    tasks = [(source, arch) for source in sources for arch in arguments.arch or ARCHITECTURES]
    rows, problems = [], []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for arch, source, succeeded, log in pool.map(compile, tasks):
            found, others = read(arch, log)
            rows += found
            name = f"{source.relative_to(ROOT)} for sm_{arch}"
            if not succeeded:
                problems.append(f"{name} does not compile")
            problems += [f"{name}: {line}" for line in others]
            if succeeded and not found:
                problems.append(f"{name}: no kernel")
    for row in rows:
        name = f"{row['kernel']} on sm_{row['arch']}"
        if row["spill_bytes"] or row["stack_bytes"]:
            problems.append(f"{name} spills: {row['spill_bytes']} bytes, {row['stack_bytes']} of stack")
        if row["static_shared_bytes"] > STATIC_SHARED_BYTES or row["registers"] > MOST_REGISTERS:
            problems.append(f"{name} is over the limit: {row}")
    order = list(ARCHITECTURES)
    rows.sort(key=lambda row: (row["kernel"], order.index(row["arch"])))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if arguments.arch:
        print(text.getvalue(), end="")
    elif arguments.write:
        TABLE.write_text(text.getvalue())
    elif not TABLE.exists() or TABLE.read_text() != text.getvalue():
        problems.append(f"{TABLE.relative_to(ROOT)} is stale: .ci/cuda --write, then look at what has changed")
    print(f"{len(rows)} kernels on {len(arguments.arch or ARCHITECTURES)} architectures", file=sys.stderr)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
