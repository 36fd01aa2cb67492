"""Compares fused-dora with PyTorch and PEFT on one GPU: first the numbers, then the times.

    python3 peft_compare.py --library lib/libfused_dora.so --header include/fused_dora.h --out DIR

It writes DIR/peft_compare.json and DIR/peft_compare.md. With --dry-run it needs no GPU: the
emulated device, whose library CUDA_EMULATOR_LIBRARY names, runs small shapes, and nothing is timed.

The exit status is 0 if all results that were computed are within their bounds (see reference.py),
1 if not, 2 for wrong usage, and 77 without PyTorch or without a GPU.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import sys
import time

try:
    import torch
    from torch.nn import functional
except ImportError as missing:
    print(f"skipped: this Python has no PyTorch ({missing})")
    sys.exit(77)
try:
    import peft
except Exception as missing:  # Transformers of another version raise what they like.
    peft, without_peft = None, str(missing)

import fused_dora
from reference import TENSORS, Case, Reference

RANK, WARMUP, ROUNDS = 16, 3, 21
# Before a run is timed, the GPU is busy for this long, while the host queues the run.
AHEAD_MS = 3.0
# How far a layer in float64 may be from the reference, in the root mean square.
SAME = 1e-11

# (tokens, input features, output features, rank); ragged ones too.
CHECKED = [(1, 512, 512, 16), (33, 1000, 776, 8), (257, 1032, 2056, 16), (77, 333, 219, 5)]
DRY = [(1, 64, 48, 16), (33, 72, 136, 8), (70, 65, 43, 5)]
# (tokens, (output features, input features)). The time box cuts the end off.
SQUARE, WIDE, TALL = (4096, 4096), (14336, 4096), (4096, 14336)
TIMED = [(2048, SQUARE), (512, SQUARE), (2048, WIDE), (2048, TALL)]
TIMED += [(tokens, SQUARE) for tokens in (8192, 64, 1)]
TIMED += [(tokens, shape) for tokens in (512, 8192, 64, 1) for shape in (WIDE, TALL)]

HOW = f"""\
- linear is `torch.nn.functional.linear` with a frozen W: it has no adapter.
- PEFT's modules, and the formulas that stand in for them, have f32 adapters and run under
  `torch.autocast` to bf16, as trainers run them, and not compiled.
- fused LoRA and fused DoRA prepare the adapter in each forward. A training step does so once for
  all of its micro-batches. The later ones take the time of "fused DoRA, prepared".
- The times are medians of {ROUNDS} rounds, by CUDA events. For {AHEAD_MS:g} ms before a run, the
  GPU reads a clean buffer: the L2 holds no operand, and the host queues the run meanwhile. "host"
  is how long it takes for forward and backward. Where that is more than {AHEAD_MS:g} ms, the GPU
  waits.
- The forward alone runs without autograd. The gradients are dX and those of the adapter.
- "memory" is the peak of forward and backward beyond W, x, dY and the adapter. fused-dora's is with
  its workspace, which all layers of a stream share.
"""


class Linear:
    """The frozen layer alone."""

    name = "linear"

    def __init__(self, case):
        self.case, self.parameters = case, []

    def __call__(self, x):
        return functional.linear(x, self.case.weight)


class Formula:
    """LoRA or DoRA, written from the definition."""

    name = "formula"

    def __init__(self, case):
        self.case, self.parameters = case, case.leaves()

    def autocast(self):
        kind, enabled = self.case.x.device.type, self.case.dtype == "bf16"
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=enabled)

    def __call__(self, x):
        with self.autocast():
            case, (a, b, *magnitude) = self.case, self.parameters
            gain = 1
            if magnitude:
                with torch.no_grad():
                    norms = case.norms(case.weight + case.scaling * (b @ a).to(x.dtype))
                gain = magnitude[0] / norms
            scaled = x * gain if case.norm == "input" else x
            low_rank = functional.linear(functional.linear(scaled, a), b)
            y = functional.linear(scaled, case.weight) + case.scaling * low_rank
            return (y * gain if case.norm == "output" else y).to(x.dtype)


class Peft(Formula):
    """PEFT's own module, for LoRA and for DoRA on the output axis."""

    name = "PEFT"

    def __init__(self, case):
        super().__init__(case)
        base = torch.nn.Linear(1, 1, bias=False)
        base.weight = torch.nn.Parameter(case.weight, requires_grad=False)
        base.in_features, base.out_features = case.inputs, case.outputs
        config = peft.LoraConfig(
            r=case.rank,
            lora_alpha=case.scaling * case.rank,
            lora_dropout=0.0,
            target_modules=["layer"],
            use_dora=case.norm == "output",
        )
        model = peft.get_peft_model(torch.nn.ModuleDict({"layer": base}), config)
        self.module = model.base_model.model["layer"].train()
        names = ["lora_A", "lora_B"] + ["lora_magnitude"] * (case.norm == "output")
        values, self.parameters = self.parameters, []
        for name, value in zip(names, values):
            (found,) = [tensor for key, tensor in self.module.named_parameters() if name in key]
            if found.shape != value.shape:
                raise ValueError(f"PEFT's {name} is {list(found.shape)}, not {list(value.shape)}")
            found.data = value.detach()
            self.parameters.append(found)

    def __call__(self, x):
        with self.autocast():
            return self.module(x)


def counterpart(case):
    """What fused-dora is compared with: PEFT has no norm axis input."""
    return Formula(case) if peft is None or case.norm == "input" else Peft(case)


def results(layer):
    """y, dX, dA, dB and dm, as autograd returns them."""
    x = layer.case.x.clone().requires_grad_()
    y = layer(x)
    grads = torch.autograd.grad(y, [x, *layer.parameters], layer.case.grad)
    return dict(zip(TENSORS, (y.detach(), *grads)))


class Clock:
    """Times runs by CUDA events, with nothing of theirs in the L2."""

    def __init__(self, device):
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        self.clean = torch.zeros(max(4 * cache, 1 << 28) // 4, device=device)
        self.sum = torch.zeros((), device=device)
        self.reads = 1
        for _ in range(WARMUP):
            alone, _ = self.time(self.flush)
        self.reads = math.ceil(AHEAD_MS / alone)

    def flush(self):
        for _ in range(self.reads):
            torch.sum(self.clean, dim=0, out=self.sum)

    def time(self, run):
        """The milliseconds of a run: the GPU's, and the host's for queueing it."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush()
        start.record()
        began = time.perf_counter()
        run()
        host = time.perf_counter() - began
        end.record()
        end.synchronize()
        return start.elapsed_time(end), 1e3 * host


class Contender:
    """A layer whose forward and step are timed."""

    def __init__(self, layer):
        self.layer, self.x = layer, layer.case.x.clone().requires_grad_()
        self.times = {"forward": [], "step": [], "host": []}

    def forward(self):
        with torch.no_grad():
            self.layer(self.x)

    def step(self):
        inputs = [self.x, *self.layer.parameters]
        return torch.autograd.grad(self.layer(self.x), inputs, self.layer.case.grad)

    def peak(self):
        """The memory of a step, in MiB."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        before -= sum(memory.numel() for memory, _ in getattr(self.layer, "memory", []))
        self.step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def turn(self, clock):
        forward, _ = clock.time(self.forward)
        step, host = clock.time(self.step)
        for name, taken in (("forward", forward), ("step", step), ("host", host)):
            self.times[name].append(taken)

    def medians(self):
        return {name: statistics.median(taken[WARMUP:]) for name, taken in self.times.items()}


class Run:
    """What was checked, what was timed, what was left out, and what failed."""

    def __init__(self, options, device):
        self.options, self.device, self.started = options, device, time.monotonic()
        self.checks, self.times, self.left_out, self.failures = [], [], [], []
        self.library = fused_dora.Library(options.library, options.header)
        self.kernels = self.library.open("kernels", self, device.driver.context)

    def seconds(self):
        return time.monotonic() - self.started

    def out_of_time(self):
        return self.seconds() > self.options.seconds

    def case(self, shape, dtype, norm):
        return Case(shape, dtype, norm, self.device.torch, seed=len(self.checks))

    def fused(self, case):
        return fused_dora.Layer(self.library, self.device, self.kernels, case)

    def check(self, reference, layer):
        """Compares a layer's results with the reference. Returns the worst share of a bound."""
        eager = not isinstance(layer, fused_dora.Layer)
        verdicts = reference.check(results(layer), eager)
        row = {"layer": layer.name, "case": str(layer.case)}
        row["rms"] = {tensor: verdict.rms() for tensor, verdict in verdicts.items()}
        row["of_bound"] = {tensor: verdict.share for tensor, verdict in verdicts.items()}
        self.checks.append(row)
        for tensor, verdict in verdicts.items():
            if not verdict.share <= 1:
                self.failures.append(f"{layer.name}, {layer.case}: {tensor} {verdict}")
        return max(verdict.share for verdict in verdicts.values())

    def check_formula(self, case):
        """The counterpart in float64 must compute what the reference does."""
        layer = counterpart(case.in_float64())
        for tensor, verdict in Reference(layer.case).check(results(layer), False).items():
            if not verdict.rms() <= SAME:
                self.failures.append(
                    f"{layer.name} in float64, {case}: {tensor} differs from this program's "
                    f"reference by {verdict.rms():.3g} of its size, where {SAME:g} is allowed"
                )

    def check_shape(self, shape):
        tokens, inputs, outputs, rank = shape
        title = f"T {tokens}, W [{outputs}, {inputs}], r {rank}"
        worst = {}
        for norm in ("none", "output", "input"):
            for dtype in ("f32", "bf16"):
                if self.out_of_time():
                    self.left_out.append(f"the check of {title}, {dtype}, norm {norm}")
                    continue
                case = self.case(shape, dtype, norm)
                if dtype == "f32":
                    self.check_formula(case)
                reference = Reference(case)
                for layer in (self.fused(case), counterpart(case)):
                    share = self.check(reference, layer)
                    worst[layer.name] = max(share, worst.get(layer.name, 0))
        shares = ", ".join(f"{name} {share:.3f}" for name, share in worst.items())
        print(f"{title}: largest error / its bound: {shares or 'left out'}", flush=True)

    def time_shape(self, tokens, features):
        title = f"T {tokens}, W {list(features)}"
        try:
            rows = None if self.out_of_time() else self.medians((tokens, *features[::-1], RANK))
        except torch.cuda.OutOfMemoryError as error:
            self.left_out.append(f"the times of {title}: {error}")
            return
        if rows is None:
            self.left_out.append(f"the times of {title}: --seconds {self.options.seconds:g}")
            return
        self.times.append({"shape": title, "layers": rows})
        cells = (f"{name} {row['forward']:.3f} {row['step']:.3f}" for name, row in rows.items())
        print(f"{title}, ms forward, forward and backward: {'; '.join(cells)}", flush=True)

    def medians(self, shape):
        """All layers of a shape, checked and then timed in turns; None if time is up."""
        norms = ("none", "output", "input")
        lora, output, inputs = (self.case(shape, "bf16", norm) for norm in norms)
        layers = {"linear": Linear(lora)}
        for name, case in (("LoRA", lora), ("DoRA", output), ("DoRA, input axis", inputs)):
            for layer in (counterpart(case), self.fused(case)):
                self.check(Reference(case), layer)
                layers[f"{layer.name} {name}"] = layer
        layers["fused DoRA, prepared"] = self.fused(output)
        for name, layer in layers.items():
            if isinstance(layer, fused_dora.Layer):
                layer.prepare()
                layer.poisons, layer.prepares = False, not name.endswith("prepared")
        contenders = {name: Contender(layer) for name, layer in layers.items()}
        peaks = {name: contender.peak() for name, contender in contenders.items()}
        clock = Clock(self.device.torch)
        for _ in range(WARMUP + ROUNDS):
            if self.out_of_time():
                return None
            for contender in contenders.values():
                contender.turn(clock)
        return {name: {**c.medians(), "peak_mib": peaks[name]} for name, c in contenders.items()}

    def report(self):
        facts = {
            "device": self.device.driver.name,
            "torch": torch.__version__,
            "peft": getattr(peft, "__version__", None),
            "dry_run": self.options.dry_run,
            "seconds": round(self.seconds(), 1),
        }
        lists = {"failures": self.failures, "left_out": self.left_out}
        lists.update(times_ms=self.times, checks=self.checks)
        folder = pathlib.Path(self.options.out)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**facts, **lists}, indent=1)
        (folder / "peft_compare.json").write_text(text + "\n", encoding="utf-8")
        (folder / "peft_compare.md").write_text(self.markdown(facts), encoding="utf-8")

    def markdown(self, facts):
        lines = ["# fused-dora, PyTorch and PEFT", ""]
        lines += [", ".join(f"{name}: {value}" for name, value in facts.items())]
        for title, items in (("Failures", self.failures), ("Left out", self.left_out)):
            if items:
                lines += ["", f"## {title}", "", *(f"- {item}" for item in items)]
        if self.times:
            lines += ["", f"## Times, bf16, r {RANK}", "", HOW.rstrip()]
            lines += ["", "| shape | layer | forward, ms | forward + backward, ms | host, ms | "]
            lines[-1] += "memory, MiB |"
            lines += ["|---|---|---|---|---|---|"]
        for timed in self.times:
            for name, row in timed["layers"].items():
                cells = [timed["shape"], name, f"{row['forward']:.4f}", f"{row['step']:.4f}"]
                cells += [f"{row['host']:.2f}", f"{row['peak_mib']:.0f}"]
                lines += [f"| {' | '.join(cells)} |"]
        lines += ["", "## Errors against float64, in the root mean square", ""]
        lines += [f"| case | layer | {' | '.join(TENSORS)} | largest / its bound |"]
        lines += ["|---" * (len(TENSORS) + 3) + "|"]
        for row in self.checks:
            cells = [f"{row['rms'][name]:.1e}" if name in row["rms"] else "" for name in TENSORS]
            cells = [row["case"], row["layer"], *cells, f"{max(row['of_bound'].values()):.3f}"]
            lines += [f"| {' | '.join(cells)} |"]
        return "\n".join(lines) + "\n"


def parsed():
    parser = argparse.ArgumentParser(description="Compares fused-dora with PyTorch and PEFT.")
    parser.add_argument("--library", required=True, help="libfused_dora.so")
    parser.add_argument("--header", required=True, help="fused_dora.h of the same version")
    parser.add_argument("--out", required=True, help="the folder for the results")
    parser.add_argument("--dry-run", action="store_true", help="small shapes, no GPU, no times")
    parser.add_argument("--seconds", type=float, default=600, help="the time box")
    options = parser.parse_args()
    files = [options.library, options.header]
    if options.dry_run:
        options.emulator = os.environ.get("CUDA_EMULATOR_LIBRARY", "")
        if not options.emulator:
            parser.error("--dry-run needs CUDA_EMULATOR_LIBRARY, the path of libcuda_emulator.so")
        files.append(options.emulator)
    for path in files:
        if not pathlib.Path(path).is_file():
            parser.error(f"{path} is not a file")
    return options


def main():
    options = parsed()
    if not options.dry_run and not torch.cuda.is_available():
        print("skipped: PyTorch finds no CUDA device (--dry-run needs none)")
        return 77
    if peft is None:
        print(f"without PEFT, whose formulas stand in for its modules: {without_peft}")
    # cuBLAS multiplies and sums in f32, as the bounds assume.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    try:
        emulated = options.dry_run and fused_dora.Emulated(options.emulator)
        run = Run(options, emulated or fused_dora.Gpu())
    except (RuntimeError, OSError) as error:
        print(f"FAILED: {error}")
        return 1
    try:
        for shape in DRY if options.dry_run else CHECKED:
            run.check_shape(shape)
        for tokens, features in [] if options.dry_run else TIMED:
            run.time_shape(tokens, features)
            run.report()
    except (RuntimeError, ValueError) as error:
        run.failures.append(str(error))
    finally:
        if not run.checks and not run.failures:
            run.failures.append("nothing was checked")
        run.report()
    for item in run.left_out:
        print(f"left out: {item}")
    for item in run.failures:
        print(f"FAILED: {item}")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
