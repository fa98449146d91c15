#!/usr/bin/env python3
"""Compile the GPU kernels for GPUs that need not be present; report registers, shared memory and spills.

    python tools/compile_kernels.py                       compute capabilities 8.0, 8.6, 9.0 and 12.0
    python tools/compile_kernels.py --capabilities 90 --widths 64 128 256

Prints one line per kernel and size, as used by a decode step (16 rows) and by new questions (64 rows). Spilled
registers cost memory traffic; the exit code is 1 if a kernel spills more than --spills bytes or does not compile. Needs
Triton, which includes NVIDIA's assembler. tools/bench_attention.py measures the speed on a GPU.
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
from vidqa.model.llama import fused_ops as llama

#: Kernel parameters by type; all others are integers.
TYPES = {
    "*fp32": ("lse", "means"),
    "*i64": ("sequence_at", "lengths", "cell_of", "first_column", "next_column"),
    "*bf16": ("query", "keys", "values", "result", "new_keys", "new_values", "heads", "cos", "sin", "gate_up", "out"),
    "fp32": ("scale",),
}
TYPE_OF = {name: type_ for type_, names in TYPES.items() for name in names}


def source(kernel: Any, constants: dict[str, object], unaligned: tuple[str, ...]) -> ASTSource:
    """Return a kernel specialized as for a call in bfloat16, where strides and addresses are multiples of 16."""
    types = {n: "constexpr" if n in constants else TYPE_OF.get(n, "i32") for n in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, type_) in enumerate(types.items())
        if type_ not in ("constexpr", "fp32") and name not in unaligned
    }
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return ASTSource(kernel, types, constexprs=values, attrs=aligned)


def cases(head_dim: int) -> list[tuple[str, Any, dict[str, object], tuple[str, ...], int]]:
    """Return (name, kernel, constants, parameters that are not multiples of 16, warps) of every case."""
    made: list[tuple[str, Any, dict[str, object], tuple[str, ...], int]] = []
    changing = ("n", "n_columns", "prefix_length", "first", "n_prefilled", "n_cells", "n_splits")
    for rows in (16, 64):
        common: dict[str, object] = {"n_kv_heads": 32, "head_dim": head_dim, "block_rows": rows}
        common |= {"n_new": 1} if rows == 16 else {}
        prefix = common | {"block_size": attention._PREFIX_BLOCK, "has_sequence_at": True, "has_lengths": True}
        merge = common | {"block_size": attention._SUFFIX_BLOCK, "has_padding": True}
        unaligned = (*changing, "n_new")
        made.append((f"prefix, {rows} rows", attention.prefix_kernel, prefix, unaligned, attention._WARPS))
        made.append((f"merge, {rows} rows", attention.merge_kernel, merge, unaligned, attention._WARPS))
    made.append(("store", attention.store_kernel, {"head_dim": head_dim, "block_rows": 16}, (), 2))
    made.append(("rotary", llama._rotary_kernel, {"half_dim": head_dim // 2, "block_rows": 8}, ("n_rotated",), 2))
    made.append(("silu_mul", llama._silu_mul_kernel, {"block_size": 1024}, (), 4))
    return made


def assembled(ptx: str, capability: int) -> tuple[int, int]:
    """Assemble; return registers per thread and spilled bytes."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
        assert target
        command = [get_ptxas(capability).path, "-v", f"-arch={target[1]}", file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
        output = done.stdout + done.stderr
    registers, spilled = re.search(r"Used (\d+) registers", output), re.search(r"(\d+) bytes spill stores", output)
    assert registers and spilled, output
    return int(registers[1]), int(spilled[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 86, 90, 120], help="[80 86 90 120]")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128], help="head dimensions [64 128]")
    parser.add_argument("--spills", type=int, default=64, help="allowed spilled bytes per kernel [64]")
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
