"""Triton's kernels of norms and sums compiled for GPUs that need not be here: wide accesses, 64-bit offsets."""

import pytest
from kernel_cases import (
    compiled_ahead_of_time,
    needs_triton,
)

AHEAD_OF_TIME = """
import json, re, sys
import torch, cvvae_kernels
x = torch.zeros(1, 4, 1, 2, 2)
cvvae_kernels.norm_silu_pad(x, *torch.zeros(2, 1, 2), x[0, :, 0, 0, 0], x[0, :, 0, 0, 0], [0] * 6, "zeros", "zeros")
cvvae_kernels.add_with_statistics(x, x, 2)
answer = {"triton_imported": "triton" in sys.modules, "refusal": "", "kernels": []}
try:
    cvvae_kernels.ops.group_statistics_op(x, 2)
except ValueError as error:
    answer["refusal"] = str(error)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cvvae_kernels import gather, norm

def note(name, capability, channels_last, kernel, types, constants, warps):
    names = kernel.arg_names
    signature = {n: types.get(n, "constexpr" if n in constants else "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in types and types[n] != "i64"}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()}, aligned)
    asm = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}).asm
    answer["kernels"].append({
        "name": name, "capability": capability, "channels_last": channels_last, "cubin": len(asm["cubin"]),
        "target": re.search(r"\\.target (\\w+)", asm["ptx"])[1],
        "accesses": sorted(set(re.findall(r"(?:ld\\.global|st\\.global|cp\\.async)[.\\w]*", asm["ptx"]))),
        "corner_offsets": re.findall(r"tt\\.addptr [^\\n]*: !tt\\.ptr<\\w+>, (\\w+)", asm["ttir"]),
    })

for capability in (80, 90, 120):
    for channels_last in (False, True) if capability == 90 else (True,):
        shape = (1, 128, 17, 256, 256)
        plan = norm.plan_launch(shape, 2, channels_last, (2, 0, 1, 1, 1, 1), ("replicate", "replicate"))
        constants = plan.constants | {"CHANNELS": 128, "GROUP": 4, "CHANNELS_LAST": channels_last, "BLANKS": False}
        types = dict.fromkeys(("source", "target"), "*bf16") | dict.fromkeys(("mean", "rstd", "weight", "bias"), "*fp32")
        note("norm", capability, channels_last, norm._norm_silu_pad_kernel, types, constants, norm._WARPS)
        plan = gather.plan_statistics(shape, 2, channels_last, 32)
        types = {"h": "*bf16", "x": "*bf16", "parts": "*fp32", "length": "i64"}
        constants = plan.constants | {"ADD": channels_last}
        note("gather", capability, channels_last, gather._gather_kernel, types, constants, gather.WARPS)
    types = {"parts": "*fp32", "result": "*fp32"}
    note("pool", capability, None, gather._pool_kernel, types, {"BLOCK": 2048}, gather._POOL_WARPS)
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def ahead_of_time(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return compiled_ahead_of_time(AHEAD_OF_TIME, tmp_path_factory.mktemp("triton"))


@needs_triton
def test_on_the_cpu_nothing_imports_triton_and_triton_refuses(ahead_of_time: dict) -> None:
    assert not ahead_of_time["triton_imported"]
    assert "Triton gathers statistics on CUDA, not on cpu" in ahead_of_time["refusal"]


@needs_triton
def test_kernels_compile_for_every_architecture(ahead_of_time: dict) -> None:
    assert len(ahead_of_time["kernels"]) == 3 * 3 + 2
    for kernel in ahead_of_time["kernels"]:
        assert kernel["target"].startswith(f"sm_{kernel['capability']}") and kernel["cubin"] > 1000


@needs_triton
def test_kernels_use_wide_accesses_and_64_bit_offsets(ahead_of_time: dict) -> None:
    for kernel in ahead_of_time["kernels"]:
        if kernel["name"] == "gather":
            assert set(kernel["corner_offsets"]) == {"i64"}, kernel
            assert "ld.global.v4.b32" in kernel["accesses"] and "cp.async.cg.shared.global" in kernel["accesses"], kernel
            assert ("st.global.v4.b32" in kernel["accesses"]) == kernel["channels_last"], kernel  # where it adds
        elif kernel["name"] == "norm" and kernel["channels_last"]:
            assert set(kernel["corner_offsets"]) == {"i64"}, kernel
            assert {"ld.global.v4.b32", "st.global.v4.b32"} <= set(kernel["accesses"]), kernel
