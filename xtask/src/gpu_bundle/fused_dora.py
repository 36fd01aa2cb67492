"""fused-dora in PyTorch's autograd: the C library through ctypes.

The C header is read at run time, so that its structures are declared nowhere else. The library
works on PyTorch's memory, in PyTorch's context and on its stream. Without a GPU, it works on the
emulated device and on copies of the CPU's tensors.
"""

import contextlib
import ctypes
import math
import os
import pathlib
import re
import weakref

import torch


class CallFailed(RuntimeError):
    """A call of the C library or of the driver failed."""


class HeaderUnknown(RuntimeError):
    """The header has something that `Header` does not know."""


class Header:
    """The enumerators, structures and functions of cbindgen's header, for ctypes.

    The grammar is that of the header. Anything else is an error.
    """

    TYPES = {
        "void": None,
        "bool": ctypes.c_bool,
        "uint8_t": ctypes.c_uint8,
        "int32_t": ctypes.c_int32,
        "uint32_t": ctypes.c_uint32,
        "int64_t": ctypes.c_int64,
        "uint64_t": ctypes.c_uint64,
        "size_t": ctypes.c_size_t,
        "float": ctypes.c_float,
        "double": ctypes.c_double,
    }

    def __init__(self, text):
        text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)
        text = re.sub(r"(?m)^#ifdef __cplusplus\s*?$[^#]*^#endif\s*?$", " ", text)
        guard = r"(?m)^#(?:(?:ifndef|define) FUSED_DORA_H|include <std\w+\.h>|endif)\s*?$"
        text = re.sub(guard, " ", text)
        self.tokens = re.findall(r"\w+|[^\w\s]", text)
        self.at = 0
        self.constants, self.types, self.functions = {}, dict(self.TYPES), {}
        while self.at < len(self.tokens):
            if self.accept("typedef"):
                self.typedef()
            else:
                self.function()

    def fail(self, wanted):
        near = " ".join(self.tokens[max(0, self.at - 8) : self.at + 8])
        raise HeaderUnknown(f"fused_dora.h, near `{near}`: {wanted} was expected")

    def accept(self, token):
        found = self.at < len(self.tokens) and self.tokens[self.at] == token
        self.at += found
        return found

    def expect(self, token):
        if not self.accept(token):
            self.fail(f"`{token}`")

    def word(self, pattern=r"[A-Za-z_]\w*"):
        if self.at >= len(self.tokens) or not re.fullmatch(pattern, self.tokens[self.at]):
            self.fail("a name" if pattern.startswith("[") else "a number")
        self.at += 1
        return self.tokens[self.at - 1]

    def typedef(self):
        if self.accept("enum"):
            name, value = self.word(), -1
            self.expect("{")
            while not self.accept("}"):
                enumerator = self.word()
                value = int(self.word(r"\d+")) if self.accept("=") else value + 1
                self.constants[enumerator] = value
                if not self.accept(","):
                    self.expect("}")
                    break
            self.types[name] = ctypes.c_int
        else:
            self.expect("struct")
            name = self.word()
            self.types[name] = type(name, (ctypes.Structure,), {})
            if self.accept("{"):
                fields = []
                while not self.accept("}"):
                    kind, field = self.declaration()
                    if kind is None:
                        self.fail("a type with a size")
                    self.expect(";")
                    fields.append((field, kind))
                self.types[name]._fields_ = fields
        self.expect(name)
        self.expect(";")

    def declaration(self):
        """A type and the name of what has it."""
        self.accept("const")
        tagged = self.accept("struct") or self.accept("enum")
        name = self.word()
        if name == "char" and not tagged:
            self.expect("*")
            kind = ctypes.c_char_p
        elif name in self.types:
            kind = self.types[name]
        else:
            self.fail(f"a known type and not `{name}`")
        while self.accept("*"):
            kind = ctypes.c_void_p if kind is None else ctypes.POINTER(kind)
        return kind, self.word()

    def function(self):
        result, name = self.declaration()
        self.expect("(")
        arguments = []
        if self.tokens[self.at : self.at + 2] == ["void", ")"]:
            self.expect("void")
        elif self.tokens[self.at] != ")":
            arguments.append(self.declaration()[0])
            while self.accept(","):
                arguments.append(self.declaration()[0])
        self.expect(")")
        self.expect(";")
        self.functions[name] = (result, arguments)


class Library:
    """The C library, as its header declares it."""

    def __init__(self, library, header):
        self.header = Header(pathlib.Path(header).read_text(encoding="utf-8"))
        self.library = ctypes.CDLL(str(library))
        for name, (result, arguments) in self.header.functions.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments

    def constant(self, name):
        return self.header.constants[f"FUSED_DORA_{name}"]

    def struct(self, name, **values):
        """A structure with the values, and zeros elsewhere."""
        kind = self.header.types[f"fused_dora_{name}"]
        unknown = set(values) - {field for field, _ in kind._fields_}
        if unknown:
            raise HeaderUnknown(f"fused_dora.h: fused_dora_{name} has no field {sorted(unknown)}")
        try:
            return kind(**values)
        except TypeError as error:
            raise HeaderUnknown(f"fused_dora.h: fused_dora_{name}: {error}") from error

    def call(self, name, *arguments):
        status = getattr(self.library, f"fused_dora_{name}")(*arguments)
        if status != self.constant("STATUS_OK"):
            text = self.library.fused_dora_last_error().decode()
            raise CallFailed(f"fused_dora_{name}: status {status}: {text}")

    def open(self, name, owner, *arguments):
        """Opens a handle, and closes it with its owner."""
        handle = ctypes.POINTER(self.header.types[f"fused_dora_{name}"])()
        self.call(f"{name}_open", *arguments, ctypes.byref(handle))
        weakref.finalize(owner, getattr(self.library, f"fused_dora_{name}_close"), handle)
        return handle


class Driver:
    """The CUDA driver, and the primary context of a device."""

    def __init__(self, path, ordinal):
        self.library = ctypes.CDLL(path)
        device, self.context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        self.call("cuCtxSetCurrent", self.context)
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()

    def call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            raise CallFailed(f"{name}: error {code} of the CUDA driver")


class Gpu:
    """A GPU: tensors are in its memory already."""

    def __init__(self):
        torch.zeros(1, device="cuda")
        self.torch = torch.device("cuda", torch.cuda.current_device())
        self.driver = Driver("libcuda.so.1", self.torch.index)

    def stream(self):
        return torch.cuda.current_stream().cuda_stream

    def scratch(self, size):
        """Memory, and its address. The memory lives as long as the first of the two."""
        memory = torch.empty(max(size, 1), dtype=torch.uint8, device=self.torch)
        return memory, memory.data_ptr()

    @contextlib.contextmanager
    def lend(self):
        """Two functions: for the address of a tensor that a call reads, and of one it writes."""
        yield torch.Tensor.data_ptr, torch.Tensor.data_ptr


class Emulated:
    """The emulated device: calls work on copies of the CPU's tensors."""

    def __init__(self, path):
        self.torch = torch.device("cpu")
        self.driver = Driver(os.path.abspath(path), 0)
        # The C library opens libcuda.so, which is the emulator's soname. The loader takes the
        # library that has the name already.
        if not hasattr(ctypes.CDLL("libcuda.so"), "cudaEmulatorInterface"):
            raise CallFailed(f"libcuda.so is another driver's and not {path}")

    def stream(self):
        return None

    def allocate(self, size):
        address = ctypes.c_uint64()
        self.driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def scratch(self, size):
        """Memory, and its address. The memory lives as long as the process."""
        return None, self.allocate(size)

    @contextlib.contextmanager
    def lend(self):
        lent = []

        def place(tensor, written):
            size = ctypes.c_size_t(tensor.numel() * tensor.element_size())
            address = self.allocate(size.value)
            pointer = ctypes.c_void_p(tensor.data_ptr())
            if not written:
                self.driver.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), pointer, size)
            lent.append((address, pointer, size, written))
            return address

        yield lambda tensor: place(tensor, False), lambda tensor: place(tensor, True)
        self.driver.call("cuCtxSynchronize")
        for address, pointer, size, written in lent:
            if written:
                self.driver.call("cuMemcpyDtoH_v2", pointer, ctypes.c_uint64(address), size)
            self.driver.call("cuMemFree_v2", ctypes.c_uint64(address))


class Layer:
    """A layer of fused-dora. It is called like a module."""

    name = "fused"

    def __init__(self, library, device, kernels, case):
        self.library, self.device, self.case = library, device, case
        self.spec = library.struct(
            "spec",
            in_features=case.inputs,
            out_features=case.outputs,
            rank=case.rank,
            scaling_kind=library.constant("SCALING_VALUE"),
            scaling=case.scaling,
            norm=library.constant(f"NORM_{case.norm.upper()}"),
            norm_grad=library.constant("NORM_GRAD_DETACHED"),
            dtype=library.constant(f"DTYPE_{case.dtype.upper()}"),
        )
        spec, size = ctypes.byref(self.spec), ctypes.c_size_t()
        self.sizes = library.struct("sizes")
        library.call("sizes_of", spec, ctypes.byref(self.sizes))
        library.call("workspace_bytes", kernels, spec, 1, case.tokens, ctypes.byref(size))
        self.memory = [device.scratch(size.value), device.scratch(self.sizes.layer_bytes)]
        (_, shared), (_, own) = self.memory
        stream = device.stream()
        arguments = (kernels, spec, 1, case.tokens, shared, size.value, stream)
        self.workspace = library.open("workspace", self, *arguments)
        self.handle = library.open("layer", self, kernels, spec, own, self.sizes.layer_bytes)
        self.parameters = case.leaves()
        # Whether each forward is the first of an optimizer step, and whether outputs hold NaN.
        self.prepares, self.poisons = True, True

    def call(self, name, io):
        handles = (self.handle, self.workspace, self.device.stream())
        self.library.call(name, *handles, ctypes.byref(io))

    def matrix(self, address, tensor):
        return self.library.struct("matrix", pointer=address, stride=tensor.shape[1])

    def prepare(self):
        """What a step needs once: the norms, and operands in the dtype."""
        with self.device.lend() as (read, _):
            names = ("lora_a", "lora_b", "magnitude")
            tensors = {name: read(tensor.detach()) for name, tensor in zip(names, self.parameters)}
            weight = read(self.case.weight)
            self.call("prepare", self.library.struct("prepare_io", weight=weight, **tensors))

    def __call__(self, x):
        if self.prepares:
            self.prepare()
        return Operation.apply(x, self, *self.parameters)

    def fresh(self, like, *shape):
        made = torch.empty(*shape, dtype=like.dtype, device=like.device)
        return made.fill_(math.nan) if self.poisons else made

    def forward(self, x):
        y = self.fresh(x, x.shape[0], self.case.outputs)
        h = self.fresh(x, x.shape[0], self.sizes.padded_rank)
        with self.device.lend() as (read, write):
            io = self.library.struct(
                "forward_io",
                tokens=x.shape[0],
                x=self.matrix(read(x), x),
                weight=read(self.case.weight),
                y=self.matrix(write(y), y),
                h=write(h),
            )
            self.call("forward", io)
        return y, h

    def backward(self, x, y, h, grad):
        grads = [self.fresh(tensor, *tensor.shape) for tensor in (x, *self.parameters)]
        with self.device.lend() as (read, write):
            names = ("grad_lora_a", "grad_lora_b", "grad_magnitude")
            parameters = {name: write(tensor) for name, tensor in zip(names, grads[1:])}
            io = self.library.struct(
                "backward_io",
                tokens=x.shape[0],
                gradients=self.library.constant("GRADIENTS_OVERWRITE"),
                x=self.matrix(read(x), x),
                weight=read(self.case.weight),
                y=self.matrix(read(y), y),
                grad_output=self.matrix(read(grad), grad),
                h=read(h),
                grad_input=self.matrix(write(grads[0]), x),
                **parameters,
            )
            self.call("backward", io)
        return grads


class Operation(torch.autograd.Function):
    """The layer in autograd."""

    @staticmethod
    def forward(ctx, x, layer, *parameters):
        x = x.contiguous()
        y, h = layer.forward(x)
        ctx.layer = layer
        ctx.save_for_backward(x, y, h)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, h = ctx.saved_tensors
        dx, *grads = ctx.layer.backward(x, y, h, grad.contiguous())
        return (dx, None, *grads)
