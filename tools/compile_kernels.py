#!/usr/bin/env python3
"""Compile the GPU's kernels for GPUs that need not be there: registers, shared memory, and what does not fit.

    python tools/compile_kernels.py                       compute capabilities 8.0, 8.6, 9.0 and 12.0
    python tools/compile_kernels.py --capabilities 90 --widths 64 128 256

A line a kernel and size, as a step (16 rows) and questions that come in (64 rows) ask for it. Spilled bytes are traffic
that a kernel has with itself; the exit code is 1 where there are more than --spills, or a kernel does not compile.
Needs Triton, which brings NVIDIA's assembler; speed is measured by tools/bench_attention.py, on a GPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.compiler import compile as compile_for

from vidqa.generate.attention import triton_kernels as attention
from vidqa.generate.attention import triton_source
from vidqa.model.llama import fused_ops as llama

#: Arguments by their types; all others are integers.
TYPES = {
    "*fp32": ("lse", "means"),
    "*i64": ("lines", "lengths", "where", "start", "now"),
    "*bf16": ("query", "keys", "values", "result", "new_keys", "new_values", "heads", "cos", "sin", "both", "out"),
    "fp32": ("scale",),
}
TYPE_OF = {name: type_ for type_, names in TYPES.items() for name in names}


def source(kernel: Any, constants: dict[str, object], unaligned: tuple[str, ...]) -> ASTSource:
    """A kernel with the types of a call in bfloat16; strides and addresses are multiples of 16, as they are there."""
    types = {n: "constexpr" if n in constants else TYPE_OF.get(n, "i32") for n in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, type_) in enumerate(types.items())
        if type_ not in ("constexpr", "fp32") and name not in unaligned
    }
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return ASTSource(kernel, types, constexprs=values, attrs=aligned)


def cases(width: int) -> list[tuple[str, Any, dict[str, object], tuple[str, ...], int]]:
    """Name, kernel, constants, numbers that are no multiples of 16, warps."""
    made: list[tuple[str, Any, dict[str, object], tuple[str, ...], int]] = []
    changing = ("n", "n_places", "n_positions", "first", "n_before", "n_counted", "n_stretches")
    for rows in (16, 64):
        common: dict[str, object] = {"n_groups": 32, "d": width, "n_rows": rows} | ({"n_new": 1} if rows == 16 else {})
        over = common | {"n_columns": attention._COLUMNS, "has_lines": True, "has_lengths": True}
        join = common | {"n_columns": attention._OWN_COLUMNS, "some_do_not_count": True}
        unaligned = (*changing, "n_new")
        made.append(
            (f"beginnings, {rows} rows", triton_source.over_beginnings_kernel, over, unaligned, attention._WARPS)
        )
        made.append((f"join, {rows} rows", triton_source.join_kernel, join, unaligned, attention._WARPS))
    made.append(("store", triton_source.store_kernel, {"d": width, "n_rows": 16}, (), 2))
    made.append(("turn", llama._turn_kernel, {"half": width // 2, "n_rows": 8}, ("n_turned",), 2))
    made.append(("gate", llama._gate_kernel, {"n_columns": 1024}, (), 4))
    return made


def assembled(ptx: str, capability: int) -> tuple[int, int]:
    """Registers a thread and bytes that are spilled."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
        assert target
        command = [get_ptxas(capability).path, "-v", f"-arch={target[1]}", file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
        said = done.stdout + done.stderr
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert registers and spilled, said
    return int(registers[1]), int(spilled[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 86, 90, 120], help="[80 86 90 120]")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128], help="of a head [64 128]")
    parser.add_argument("--spills", type=int, default=64, help="bytes that a kernel may spill [64]")
    args = parser.parse_args()
    bad = 0
    print(f"{'for':>6} {'width':>6}  {'kernel':<22}{'registers':>10}{'shared bytes':>14}{'spilled bytes':>15}")
    for capability in args.capabilities:
        for width in args.widths:
            for name, kernel, constants, unaligned, warps in cases(width):
                options = {"num_warps": warps, "num_stages": attention._STAGES}
                made = compile_for(
                    source(kernel, constants, unaligned), target=GPUTarget("cuda", capability, 32), options=options
                )
                registers, spilled = assembled(made.asm["ptx"], capability)
                bad += spilled > args.spills
                print(
                    f"sm_{capability:<3} {width:>6}  {name:<22}{registers:>10}{made.metadata.shared:>14}{spilled:>15}"
                )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
