"""The emulated device by the driver API, and tensors in the types of kernels."""

import ctypes
import re

import numpy as np

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
SAME_VALUE = "both write the same value"

BITS = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "i32": np.int32}
# The largest relative error of a rounding to the nearest.
ROUNDING = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}


class DeviceError(Exception):
    """A call of the driver failed."""


class Tensor:
    """Values of one of the types in `BITS`, as they lie in memory."""

    def __init__(self, kind, values):
        self.kind = kind
        if kind == "bf16":
            words = np.asarray(values, np.float32).view(np.uint32)
            even = (words >> 16) & 1
            self.bits = ((words + 0x7FFF + even) >> 16).astype(np.uint16)
        else:
            self.bits = np.asarray(values).astype(BITS[kind])

    @classmethod
    def unwritten(cls, kind, shape):
        """A tensor of NaN, or of -1 for integers."""
        tensor = cls(kind, np.zeros(shape))
        tensor.bits.view(np.uint8)[...] = 0xFF
        return tensor

    def values(self):
        """The values in float64."""
        if self.kind == "bf16":
            return (self.bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return self.bits.astype(np.float64)


class Device:
    """Device 0 of a libcuda."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.check("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.check("cuDeviceGet", ctypes.byref(device), 0)
        self.check("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.check("cuCtxSetCurrent", context)

    def text(self, function):
        """What one of the emulator's own functions reports."""
        buffer = ctypes.create_string_buffer(1 << 16)
        function = getattr(self.library, function)
        function.restype = ctypes.c_size_t
        function(buffer, ctypes.c_size_t(len(buffer)))
        return buffer.value.decode()

    def check(self, name, *arguments):
        """Calls a function of the driver."""
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            words = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(words))
            reports = [self.text("cudaEmulatorLastFault"), self.text("cudaEmulatorLastError")]
            words = [(words.value or b"unknown").decode(), *filter(None, reports)]
            raise DeviceError(f"{name}: error {code}: " + "\n".join(words))

    def launch(self, compiled, grid, arguments):
        """Runs a compiled kernel once. Tensors among the arguments are copied there and back."""
        ptx, metadata = compiled.asm["ptx"], compiled.metadata
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.check("cuModuleLoadData", ctypes.byref(module), ptx.encode())
        name = metadata.name.encode()
        self.check("cuModuleGetFunction", ctypes.byref(function), module, name)
        self.check("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, metadata.shared)

        memory, values = [], []
        for argument in arguments:
            if isinstance(argument, Tensor):
                address = ctypes.c_uint64()
                bits = argument.bits
                size = ctypes.c_size_t(bits.nbytes)
                self.check("cuMemAlloc_v2", ctypes.byref(address), size)
                self.check("cuMemcpyHtoD_v2", address, ctypes.c_void_p(bits.ctypes.data), size)
                memory.append((address, bits, size))
                values.append(address)
            elif isinstance(argument, float):
                values.append(ctypes.c_float(argument))
            else:
                values.append(ctypes.c_int32(argument))
        # Triton adds pointers to scratch memory, which these kernels do not use.
        hidden = parameters(ptx, metadata.name)[len(values) :]
        scratch = metadata.global_scratch_size or metadata.profile_scratch_size
        if scratch or any(kind not in ("u64", "b64") for kind in hidden):
            raise DeviceError(f"parameters that this program does not know: {hidden}")
        values += [ctypes.c_uint64(0) for _ in hidden]

        pointers = [ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values]
        pointers = (ctypes.c_void_p * len(values))(*pointers)
        threads = metadata.num_warps * 32
        launch = (*grid, threads, 1, 1, metadata.shared, None, pointers, None)
        self.check("cuLaunchKernel", function, *launch)
        self.check("cuCtxSynchronize")
        for address, bits, size in memory:
            self.check("cuMemcpyDtoH_v2", ctypes.c_void_p(bits.ctypes.data), address, size)
            self.check("cuMemFree_v2", address)
        self.check("cuModuleUnload", module)


def parameters(ptx, name):
    """The types of an entry's parameters."""
    entry = re.search(rf"\.entry\s+{re.escape(name)}\s*\((.*?)\)", ptx, re.DOTALL)
    if entry is None:
        raise DeviceError(f"the PTX has no entry {name}")
    return re.findall(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)", entry[1])
