"""Runs kernels that Triton compiles on the emulated device, and compares them with numpy.

    python3 -B run.py LIBRARY [SEED]

LIBRARY is the emulator's libcuda_emulator.so. SEED repeats the inputs of another run. Python needs
triton and numpy, and no GPU.
"""

import multiprocessing
import os
import secrets
import sys

import numpy as np
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cases import all_cases
from device import SAME_VALUE, Device, DeviceError, Tensor

SCHEDULES = ("0", "1")
# A launch takes less than a second.
PATIENCE = 300
PASSED, FAILED, WRITES_SAME_VALUE = 0, 1, 2
SAME_VALUE_WRITES = "CUDA_EMULATOR_SAME_VALUE_WRITES"


def compiled(case):
    """The case's kernel for sm_80."""
    signature, attributes = {}, {}
    for position, name in enumerate(case.kernel.arg_names):
        value = case.arguments.get(name)
        if name in case.constants:
            signature[name] = "constexpr"
        elif isinstance(value, Tensor):
            signature[name] = f"*{value.kind}"
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        # As Triton's own launcher does: what 16 divides is compiled for.
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, case.constants, attributes)
    options = {"num_warps": case.warps, "num_stages": case.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)


def compare(case, note):
    """Prints the element of each output that is nearest to its bound, or furthest beyond it."""
    passed = True
    for name, out, reference, bound in case.expected:
        error = np.abs(out.values() - reference)
        error = np.where(np.isnan(error), np.inf, error)
        share = np.where(error == 0, 0, error / np.maximum(bound, 1e-300))
        worst = np.unravel_index(np.argmax(share), share.shape)
        wrong = np.count_nonzero(~(error <= bound))
        verdict = f"WRONG in {wrong} of {error.size}" if wrong else "ok"
        place = f"error {error[worst]:.2e}, bound {bound[worst]:.2e}"
        print(f"{verdict}: {case.label}, {name}{list(map(int, worst))}: {place}{note}", flush=True)
        passed &= wrong == 0
    return passed


def in_child(library, case, kernel, settings):
    """Runs and compares one case; the exit code of its process says how it went."""
    absent = [name for name in case.uses if name not in kernel.asm["ptx"]]
    if absent:
        print(f"FAILED: {case.label}: Triton emits no {', '.join(absent)}", flush=True)
        sys.exit(FAILED)
    os.environ.update(settings)
    note = "".join(f", {name.removeprefix('CUDA_EMULATOR_')}={settings[name]}" for name in settings)
    try:
        Device(library).launch(kernel, case.grid, case.arguments.values())
    except DeviceError as error:
        if SAME_VALUE in str(error) and SAME_VALUE_WRITES not in settings:
            sys.exit(WRITES_SAME_VALUE)
        print(f"FAILED: {case.label}{note}: {error}", flush=True)
        sys.exit(FAILED)
    sys.exit(PASSED if compare(case, note) else FAILED)


def attempt(*arguments):
    """The exit code of `in_child` in a process of its own, as a fault ends a device."""
    child = multiprocessing.get_context("fork").Process(target=in_child, args=arguments)
    child.start()
    child.join(PATIENCE)
    if child.exitcode is None:
        print(f"it did not end within {PATIENCE} s", flush=True)
        child.kill()
        child.join()
    return child.exitcode


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    library = os.path.abspath(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) == 3 else secrets.randbits(32)
    print(f"Triton {triton.__version__}, seed of the inputs {seed}", flush=True)
    # What is tested is the strict device.
    os.environ.pop(SAME_VALUE_WRITES, None)
    os.environ["CUDA_EMULATOR_SANITIZER"] = "1"
    failed = 0
    cases = all_cases(np.random.default_rng(seed))
    for case in cases:
        kernel = compiled(case)
        for schedule in SCHEDULES:
            settings = {"CUDA_EMULATOR_SEED": schedule}
            code = attempt(library, case, kernel, settings)
            if code == WRITES_SAME_VALUE:
                settings[SAME_VALUE_WRITES] = "1"
                code = attempt(library, case, kernel, settings)
            if code not in (PASSED, FAILED):
                print(f"FAILED: {case.label}: its process ended with {code}", flush=True)
            failed += code != PASSED
    runs = len(cases) * len(SCHEDULES)
    print(f"{runs - failed} of {runs} runs passed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
