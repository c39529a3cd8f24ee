"""What the CUDA compiler makes of the kernels: registers, spills, memory, occupancy.

    python -m custom_ops.gpu_resources [80 89 90]

Prints a table for each compute capability (times 10), a kernel per row. Matrix
instructions are counted in the machine code by `nvdisasm` (of the CUDA toolkit, or
`pip install nvidia-cuda-nvdisasm`); without it, one line says so. The figures are the
compiler's, none is measured. Exits with 1 if a product kernel spills registers, or if
the compiler says that it lets a kernel wait after every `wgmma` of 9.0.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from custom_ops import build

ARCHITECTURES = (80, 89, 90)

# From the CUDA programming guide: warps, blocks and bytes of shared memory of a
# multiprocessor.
_LIMITS = {
    75: (32, 16, 64 << 10),
    80: (64, 32, 164 << 10),
    86: (48, 16, 100 << 10),
    89: (48, 24, 100 << 10),
    90: (64, 32, 228 << 10),
}
_REGISTERS = 65536
_WARP = 32
_RESERVED_BYTES = 1024  # of shared memory for each block
_PRODUCT_THREADS, _OTHER_THREADS = 128, 256
_MATRIX_INSTRUCTIONS = r"\b(HMMA|HGMMA)\b"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Attributes are the compiler's figures per thread or block."""

    name: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    matrix_instructions: int | None
    waits: bool = False  # after every wgmma

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices, and so is what takes the time."""
        return self.name.startswith("Multiply")

    @property
    def threads(self) -> int:
        """Of a block."""
        return _PRODUCT_THREADS if self.is_product else _OTHER_THREADS

    def resident_blocks(self, architecture: int) -> int:
        """Returns how many blocks a multiprocessor holds at once."""
        warps, blocks, shared = _LIMITS[architecture]
        own_warps = self.threads // _WARP
        # Registers come in lots of 256 per warp, shared memory in lots of 128 bytes.
        per_warp = -(-self.registers * _WARP // 256) * 256
        own_shared = -(-self.shared_bytes // 128) * 128 + _RESERVED_BYTES
        return min(
            blocks,
            warps // own_warps,
            _REGISTERS // per_warp // own_warps,
            shared // own_shared,
        )

    def occupancy(self, architecture: int) -> float:
        """Returns the share of the warps that a multiprocessor could hold."""
        warps = self.resident_blocks(architecture) * self.threads // _WARP
        return warps / _LIMITS[architecture][0]


def _disassembler() -> str | None:
    """Returns `nvdisasm`, from PATH or PyPI's package, or None."""
    found = shutil.which("nvdisasm")
    if found is not None:
        return found
    for place in map(pathlib.Path, sys.path):
        for path in sorted(place.glob("nvidia/*/bin/nvdisasm")):
            return str(path)
    return None


def _short(mangled: str, demangled: str) -> str:
    """A kernel's name without its namespaces and arguments."""
    name = re.sub(r"perforated::gpu::|\(anonymous namespace\)::|^void ", "", demangled)
    name = re.sub(r"\(.*", "", name).replace("__nv_", "").replace("__half", "half")
    return re.sub(r"<(\w+)Op<(\w+)>, (true|false)>", _product_name, name) or mangled


def _product_name(match) -> str:
    op, element, tensor_cores = match.groups()
    if tensor_cores == "true" and element == "float":
        element = "tf32"
    return f" {op} {element}"


def kernels(architecture: int) -> list[Kernel]:
    """Compiles all kernels for one compute capability, times 10.

    Raises:
        custom_ops.build.BuildError: If there is no CUDA compiler, or it fails.
    """
    cuda = build._cuda()
    if cuda is None:
        raise build.BuildError("there is no CUDA compiler (nvcc; or set NVCC)")
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for source in build._CUDA_SOURCES:
            cubin = pathlib.Path(directory) / f"{source}.cubin"
            command = [*cuda.command, "-std=c++17", "-O3", cuda.code(architecture)]
            command += ["-cubin", "-Xptxas", "-v", "-o", str(cubin)]
            done = subprocess.run(
                [*command, str(build._KERNELS / source)], capture_output=True, text=True
            )
            if done.returncode:
                raise build.BuildError(f"{source}: {done.stderr[-500:]}")
            counts = _count_matrix_instructions(cubin)
            found += parse(done.stderr, counts)
    return sorted(found, key=lambda kernel: (not kernel.is_product, kernel.name))


def parse(text: str, counts: dict[str, int] | None) -> list[Kernel]:
    """Reads what `ptxas -v` says.

    Args:
        text: Its output.
        counts: Matrix instructions by mangled name; None: unknown.
    """
    parts = re.split(r"Compiling entry function '(\w+)'", text)[1:]
    mangled = parts[::2]
    names = build._run(["c++filt", *mangled]).splitlines() if mangled else []
    waiting = re.findall(r"wgmma.* serialized .*function '(\w+)'", text)
    found = []
    for name, demangled, figures in zip(mangled, names, parts[1::2]):

        def number(pattern, figures=figures):
            return sum(map(int, re.findall(pattern, figures)))

        found.append(
            Kernel(
                _short(name, demangled),
                number(r"Used (\d+) registers"),
                number(r"(\d+) bytes spill stores")
                + number(r"(\d+) bytes spill loads"),
                number(r"(\d+) bytes smem"),
                None if counts is None else counts.get(name, 0),
                name in waiting,
            )
        )
    return found


def _count_matrix_instructions(cubin: pathlib.Path) -> dict[str, int] | None:
    program = _disassembler()
    if program is None:
        return None
    counts, name = collections.Counter(), ""
    for line in build._run([program, "-c", str(cubin)]).splitlines():
        section = re.match(r"\s*\.section\s+\.text\.(\w+)", line)
        if section:
            name = section[1]
        counts[name] += len(re.findall(_MATRIX_INSTRUCTIONS, line))
    return dict(counts)


def print_table(architecture: int, found: list[Kernel]) -> None:
    """Prints a table in Markdown."""
    print(f"\nCompute capability {architecture / 10}:\n")
    print("| kernel | registers | spilled | shared bytes | blocks | occupancy | MMA |")
    print("|---|---|---|---|---|---|---|")
    for k in found:
        count = "?" if k.matrix_instructions is None else k.matrix_instructions
        print(
            f"| {k.name} | {k.registers} | {k.spilled_bytes} | {k.shared_bytes} | "
            f"{k.resident_blocks(architecture)} | {k.occupancy(architecture):.0%} | "
            f"{count} |"
        )


def main() -> None:
    """Prints the tables."""
    wanted = [int(argument) for argument in sys.argv[1:]] or ARCHITECTURES
    unknown = set(wanted) - set(_LIMITS)
    if unknown:
        sys.exit(
            "custom_ops.gpu_resources: expected any of "
            f"{', '.join(map(str, _LIMITS))}; got "
            f"{', '.join(map(str, sorted(unknown)))}"
        )
    if _disassembler() is None:
        print("Matrix instructions are not counted: there is no nvdisasm.")
    spills = waits = False
    try:
        for architecture in wanted:
            found = kernels(architecture)
            print_table(architecture, found)
            spills |= any(k.is_product and k.spilled_bytes for k in found)
            waits |= any(k.waits for k in found)
    except build.BuildError as error:
        sys.exit(f"custom_ops.gpu_resources: {error}")
    if spills:
        sys.exit("custom_ops.gpu_resources: a product kernel spills registers")
    if waits:
        sys.exit("custom_ops.gpu_resources: a kernel waits after every wgmma")


if __name__ == "__main__":
    main()
