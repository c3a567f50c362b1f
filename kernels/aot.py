"""Compile a launch ahead of time: real PTX and machine code for a compute capability, on a machine without a GPU.

`python -m roofplan.kernels.aot 90 gemm decode` prints what the kernels of modules use, one JSON line a launch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

from . import registry, resources
from .data import interpreted
from .microkernel import Call, Microkernel
from .resources import Resources

ALIGNMENT = 16  # what a launch assumes of pointers and whole numbers it finds divisible by it

# Triton's names of torch's formats.
FORMATS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float8_e4m3fn": "fp8e4nv",
    "int8": "i8",
    "uint8": "u8",
    "int32": "i32",
    "int64": "i64",
}


class Each(StrEnum):
    """What is compiled: everything a calibration will, one launch of each tile, or the widest launch of a function."""

    SPECIALISATION = "specialisation"
    TILE = "tile"
    FUNCTION = "function"


class Compiled(NamedTuple):
    """A compiled launch: Triton's object with every stage of its code, and what it uses."""

    kernel: Any
    resources: Resources


class Signature(NamedTuple):
    """What a launch is specialised on; equal signatures are one compiled kernel."""

    function: Any
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    warps: int
    stages: int


def signature(call: Call) -> Signature:
    """The specialisation a launch on a device would choose: 1 is a constant, multiples of 16 are known to be."""
    types, constants, aligned = [], dict(call.constants), []
    general = {parameter.name for parameter in call.function.params if parameter.do_not_specialize}
    for name, value in call.arguments.items():
        if name in general:
            types.append((name, _type(value)))
            continue
        if isinstance(value, int) and value == 1:
            constants[name] = 1
            continue
        types.append((name, _type(value)))
        if _is_tensor(value) or (isinstance(value, int) and value % ALIGNMENT == 0):
            aligned.append(name)
    return Signature(
        call.function, tuple(types), tuple(sorted(constants.items())), tuple(aligned), call.warps, call.stages
    )


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "data_ptr")


def _type(value: Any) -> str:
    if _is_tensor(value):
        return f"*{_format(value)}"
    if hasattr(value, "block_shape"):  # a tensor descriptor
        return f"tensordesc<{_format(value.base)}{list(value.block_shape)}>"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _format(tensor: Any) -> str:
    return FORMATS[str(tensor.dtype).removeprefix("torch.")]


def compiled(call: Call, capability: int) -> Compiled:
    """One launch for a compute capability; equal ones are compiled once."""
    return _compiled(signature(call), capability)


@cache
def _compiled(wanted: Signature, capability: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, types, constants = wanted.function.arg_names, dict(wanted.types), dict(wanted.constants)
    kinds = {name: types.get(name, "constexpr") for name in names}
    missing = [name for name in names if name not in types and name not in constants]
    if missing:
        raise TypeError(f"{wanted.function.__name__}: no value for {', '.join(missing)}")
    attributes = {(names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in wanted.aligned}
    source = ASTSource(wanted.function, kinds, constants, attributes)
    options = {"num_warps": wanted.warps, "num_stages": wanted.stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Compiled(kernel, resources.of(kernel, capability))


def distinct(kernel: Microkernel[Any, Any], capability: int, quick: bool = True) -> Iterator[tuple[str, Call]]:
    """Label and launch of every specialisation that calibration and judging need."""
    seen: set[Signature] = set()
    for table in (kernel.calibration(quick), kernel.held_out()):
        for row, label in enumerate(table.label):
            case = table.take([row])
            for call in kernel.calls(kernel.make(case, "meta", 0), capability):
                key = signature(call)
                if key not in seen:
                    seen.add(key)
                    yield label, call


def chosen(kernel: Microkernel[Any, Any], capability: int, each: Each) -> list[tuple[str, Call]]:
    """The launches to compile: of those that count as one, that with the most programs."""
    widest: dict[Any, tuple[str, Call]] = {}
    for label, call in distinct(kernel, capability):
        key: Any = signature(call)
        if each is Each.TILE:
            key = key.function, tuple((k, v) for k, v in key.constants if k in call.constants), call.warps, call.stages
        elif each is Each.FUNCTION:
            key = key.function
        if key not in widest or call.programs > widest[key][1].programs:
            widest[key] = label, call
    return list(widest.values())


def main() -> None:
    """Compile kernels for one compute capability and print what they use."""
    parser = argparse.ArgumentParser(prog="python -m roofplan.kernels.aot", description=main.__doc__)
    parser.add_argument("capability", type=int, help="compute capability times ten: 80, 90, 100")
    parser.add_argument("modules", nargs="+", choices=registry.ALL, metavar="MODULE", help=", ".join(registry.ALL))
    parser.add_argument("--each", type=Each, choices=list(Each), default=Each.SPECIALISATION, help="what to compile")
    given = parser.parse_args()
    if interpreted():
        parser.error("TRITON_INTERPRET is set: interpreted functions cannot be compiled")
    for kernel in (k for module in given.modules for k in registry.load(module)):
        if kernel.least_capability > given.capability:
            continue
        for label, call in chosen(kernel, given.capability, given.each):
            used = compiled(call, given.capability).resources
            what = {"kernel": kernel.name, "case": label, "function": call.function.__name__}
            print(json.dumps(what | {"warps": call.warps, "programs": call.programs} | used._asdict()), flush=True)


if __name__ == "__main__":
    main()
