"""What the compiler says of the kernels, and the roofline."""

import pytest

from custom_ops import gpu_resources, gpu_roofline

SAID = """
ptxas info    : Compiling entry function '_ZN10perforated3gpu8MultiplyINS0_10ConvolveOpIfEELb1EEEvT_iii' for 'sm_80'
ptxas info    : Function properties for x
    0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 29184 bytes smem, 540 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN10perforated3gpu10CountSpansENS0_8MaskViewElPl' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 384 bytes cmem[0]
"""  # noqa: E501
MANGLED = "_ZN10perforated3gpu8MultiplyINS0_10ConvolveOpIfEELb1EEEvT_iii"


def test_reads_what_the_compiler_says():
    product, other = gpu_resources.parse(SAID, {MANGLED: 16})
    assert product == gpu_resources.Kernel("Multiply Convolve tf32", 128, 20, 29184, 16)
    assert (other.name, other.registers, other.shared_bytes) == ("CountSpans", 32, 0)
    assert gpu_resources.parse(SAID, None)[0].matrix_instructions is None


def test_reads_which_kernels_wait_after_every_wgmma():
    """As CUDA 13.0 says it."""
    said = (
        "ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async "
        "instructions are serialized due to non wgmma instructions reading accumulator "
        "registers of  a wgmma between start and end of the pipeline stage in the "
        f"function '{MANGLED}'"
    )
    product, other = gpu_resources.parse(said + SAID, None)
    assert product.waits and not other.waits
    assert not any(kernel.waits for kernel in gpu_resources.parse(SAID, None))


@pytest.mark.parametrize(
    "registers, shared, architecture, blocks, occupancy",
    [
        (128, 0, 80, 4, 16 / 64),  # registers: 4 warps of 4096 each
        (129, 0, 80, 3, 12 / 64),  # 136 are handed out
        (32, 40 << 10, 80, 4, 16 / 64),  # 41 of 164 KiB
        (32, 40 << 10, 89, 2, 8 / 48),
        (32, 0, 75, 8, 1.0),  # warps
    ],
)
def test_occupancy(registers, shared, architecture, blocks, occupancy):
    kernel = gpu_resources.Kernel("Multiply", registers, 0, shared, 0)
    assert kernel.resident_blocks(architecture) == blocks
    assert kernel.occupancy(architecture) == occupancy


def test_refuses_other_devices(monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu_resources", "61"])
    with pytest.raises(SystemExit, match="expected any of 75, 80.*; got 61"):
        gpu_resources.main()


def test_roofline():
    device = gpu_roofline.Device("1", 1e12, 1e10, 10, 1e9, False)
    start = gpu_roofline._START
    # 2 tiles of 64 x 64, 1000 deep: limited by shared memory, memory, nothing.
    shared = 2 * (4 * 2 * 32 + 2 * 64) * 1000 * 2 / (128 * 10 * 1e9)
    assert gpu_roofline.product(device, 100, 64, 1000, 0) == pytest.approx(
        max(shared, 2 * 128 * 64 * 1000 / 1e12)
    )
    assert gpu_roofline.product(device, 100, 64, 1000, 1e6) == pytest.approx(1e-4)
    assert gpu_roofline.product(device, 0, 64, 1000, 0) == start
    # By wgmma four warps read a tile once, not twice.
    for has_wgmma, reads in ((False, 2), (True, 1)):
        fast = gpu_roofline.Device("2", 1e15, 1e10, 10, 1e9, has_wgmma)
        seconds = gpu_roofline.product(fast, 100, 64, 100000, 0)
        assert seconds == pytest.approx(100 * shared * (reads + 1) / 3)


def test_break_even_is_where_both_take_the_same():
    device, sizes = gpu_roofline.DEVICES[0], (75, 125, 128, 512)
    share = gpu_roofline.break_even(device, 8, *sizes)
    dense = gpu_roofline.dense_unit(device, 8, *sizes)
    assert gpu_roofline.perforated_unit(device, 8, *sizes, share) <= dense
    assert gpu_roofline.perforated_unit(device, 8, *sizes, share + 0.01) > dense
