"""What is launched, with fresh inputs, and what must come out within which error.

References are computed in float64 from the rounded inputs. Bounds follow from the types: a sum of n
terms in any order has at most n roundings, each relative to the sum of the terms' magnitudes.
"""

from dataclasses import dataclass

import numpy as np

import kernels
from device import ROUNDING, Tensor

FP32 = ROUNDING["fp32"]
MMA = ("mma.sync",)
PIPELINE = ("mma.sync", "cp.async.wait_group", "ldmatrix")

# Tensor cores may truncate where they add, and read fp32 inputs as tf32, with 11 bits.
TENSOR_CORE_SUM = 2.0**-23
TENSOR_CORE_INPUT = {"fp16": 0.0, "bf16": 0.0, "fp32": 2.0**-10}
# Approximate exp2, division and square root, the rounding of their argument aside.
APPROXIMATE = 2.0**-21
# Below this, an fp16 result is subnormal: its rounding has an absolute error.
SMALLEST = {"fp32": 2.0**-126, "fp16": 2.0**-24, "bf16": 2.0**-126}


@dataclass
class Case:
    """One launch.

    `expected` lists outputs, each with its reference and its bound for each element. The PTX must
    hold what it `uses`, or the case does not test what it is for.
    """

    kernel: object
    label: str
    grid: tuple
    arguments: dict
    constants: dict
    expected: list
    uses: tuple = ()
    warps: int = 4
    stages: int = 3


def blocks(extent, block):
    return -(-extent // block)


def rounded(kind, reference, error):
    """The bound of a result that is rounded to `kind` after an error."""
    return error + ROUNDING[kind] * (np.abs(reference) + error) + SMALLEST[kind]


def matmul(random, kind, shape, tile, out_kind, **options):
    m, n, k = shape
    a = Tensor(kind, random.standard_normal((m, k)))
    b = Tensor(kind, random.standard_normal((k, n)))
    out = Tensor.unwritten(out_kind, (m, n))
    reference = a.values() @ b.values()
    magnitude = np.abs(a.values()) @ np.abs(b.values())
    error = (k * TENSOR_CORE_SUM + 2.001 * TENSOR_CORE_INPUT[kind]) * magnitude
    bound = rounded(out_kind, reference, error)
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K")
    return Case(
        kernels.matmul,
        f"matmul {kind} to {out_kind} {m}x{n}x{k}, tile {'x'.join(map(str, tile))}",
        (blocks(m, tile[0]), blocks(n, tile[1]), 1),
        {"a": a, "b": b, "out": out, "M": m, "N": n, "K": k},
        dict(zip(names, tile)),
        [("out", out, reference, bound)],
        **options,
    )


def softmax(random, kind, rows, columns, **options):
    x = Tensor(kind, 3 * random.standard_normal((rows, columns)))
    out = Tensor.unwritten(kind, (rows, columns))
    values = x.values()
    centred = values - values.max(axis=1, keepdims=True)
    weights = np.exp(centred)
    reference = weights / weights.sum(axis=1, keepdims=True)
    # The argument of exp2 is rounded twice, and the constant in it once.
    exp = 3 * FP32 * np.abs(centred) + APPROXIMATE
    worst = exp.max(axis=1, keepdims=True)
    error = (exp + worst + columns * FP32 + APPROXIMATE) * reference
    return Case(
        kernels.softmax,
        f"softmax {kind} {rows}x{columns}",
        (rows, 1, 1),
        {"x": x, "out": out, "N": columns},
        {"BLOCK": 1 << (columns - 1).bit_length()},
        [("out", out, reference, rounded(kind, reference, error))],
        **options,
    )


def layer_norm(random, kind, rows, columns, block, **options):
    eps = 1e-5
    x = Tensor(kind, 0.5 + random.standard_normal((rows, columns)))
    weight = Tensor(kind, random.standard_normal(columns))
    bias = Tensor(kind, random.standard_normal(columns))
    out = Tensor.unwritten(kind, (rows, columns))
    mean_out = Tensor.unwritten("fp32", (rows, 1))
    rstd_out = Tensor.unwritten("fp32", (rows, 1))
    values, scale, shift = x.values(), weight.values(), bias.values()
    mean = values.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt(((values - mean) ** 2).mean(axis=1, keepdims=True) + eps)
    centred = values - mean
    reference = centred * rstd * scale + shift
    # An error of the mean moves every difference, and a difference has a rounding of its own.
    sum_error = columns * FP32
    mean_error = (sum_error + APPROXIMATE) * np.abs(values).mean(axis=1, keepdims=True)
    moved = mean_error + FP32 * np.abs(centred)
    # The variance's relative error is twice that of the differences, and rstd's is half of it.
    rstd_error = (sum_error / 2 + 2 * APPROXIMATE) + moved.max(axis=1, keepdims=True) * rstd
    factor = np.abs(rstd * scale)
    error = factor * (moved + np.abs(centred) * (rstd_error + 2 * FP32))
    error = error + 2 * FP32 * (np.abs(reference) + np.abs(shift))
    return Case(
        kernels.layer_norm,
        f"layer_norm {kind} {rows}x{columns}",
        (rows, 1, 1),
        {"x": x, "weight": weight, "bias": bias, "out": out}
        | {"mean_out": mean_out, "rstd_out": rstd_out, "N": columns, "eps": eps},
        {"BLOCK": block},
        [
            ("out", out, reference, rounded(kind, reference, error)),
            ("mean", mean_out, mean, rounded("fp32", mean, mean_error)),
            ("rstd", rstd_out, rstd, rounded("fp32", rstd, rstd_error * rstd)),
        ],
        **options,
    )


def attention(random, kind, shape, causal, tile, **options):
    heads, n, d = shape
    q, k, v = (Tensor(kind, random.standard_normal(shape)) for _ in range(3))
    out = Tensor.unwritten(kind, shape)
    scale = float(np.float32(d**-0.5))
    queries, keys, values = q.values(), k.values().transpose(0, 2, 1), v.values()
    scores = queries @ keys * scale
    magnitude = np.abs(queries) @ np.abs(keys) * scale
    seen = np.tril(np.ones((n, n), bool)) if causal else np.ones((n, n), bool)
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    reference = weights @ values
    # A score's absolute error is the relative error of its weight. Each block of keys adds an
    # exp2 and a product, and weights are rounded to the type before the second product.
    score_error = (d * TENSOR_CORE_SUM + 2 * FP32) * magnitude
    centred = np.where(seen, np.abs(scores - scores.max(axis=2, keepdims=True)), 0.0)
    steps = blocks(n, tile[1])
    exp = (score_error + 3 * FP32 * centred) * seen
    worst = 2 * exp.max(axis=2, keepdims=True) + (steps + 1) * (APPROXIMATE + 2 * FP32)
    spread = weights @ np.abs(values)
    small = SMALLEST[kind] * (n * np.abs(values).max(axis=1, keepdims=True))
    error = (2 * worst + n * FP32 + APPROXIMATE) * spread
    error = error + (ROUNDING[kind] + n * TENSOR_CORE_SUM) * spread + small
    return Case(
        kernels.attention,
        f"attention {kind} {heads}x{n}x{d}{' causal' if causal else ''}",
        (blocks(n, tile[0]), heads, 1),
        {"q": q, "k": k, "v": v, "out": out, "N": n, "scale": scale},
        {"D": d, "CAUSAL": causal, "BLOCK_M": tile[0], "BLOCK_N": tile[1]},
        [("out", out, reference, rounded(kind, reference, error))],
        **options,
    )


def histogram(random, count, bins, block, **options):
    x = Tensor("i32", random.integers(0, bins, count))
    out = Tensor("i32", np.zeros(bins))
    reference = np.bincount(x.bits, minlength=bins).astype(np.float64)
    return Case(
        kernels.histogram,
        f"histogram {count} in {bins} bins",
        (blocks(count, block), 1, 1),
        {"x": x, "out": out, "N": count},
        {"BINS": bins, "BLOCK": block},
        [("out", out, reference, np.zeros(bins))],
        **options,
    )


def all_cases(random):
    """Every kernel in several types, with shapes that fill their tiles and shapes that do not."""
    return [
        matmul(random, "fp16", (128, 128, 256), (64, 64, 32), "fp32", uses=PIPELINE),
        matmul(random, "bf16", (128, 192, 160), (64, 64, 32), "bf16", stages=4, uses=PIPELINE),
        matmul(random, "bf16", (144, 80, 112), (128, 64, 32), "fp32", warps=8, uses=PIPELINE),
        matmul(random, "fp16", (77, 101, 203), (64, 32, 64), "fp16", stages=2, uses=MMA),
        matmul(random, "bf16", (1, 33, 17), (16, 32, 32), "fp32", uses=MMA),
        matmul(random, "fp32", (64, 96, 128), (32, 32, 32), "fp32", uses=PIPELINE),
        matmul(random, "fp32", (65, 31, 70), (64, 32, 32), "fp32", uses=PIPELINE),
        softmax(random, "fp32", 16, 1024),
        softmax(random, "fp32", 7, 781, warps=8),
        softmax(random, "fp16", 5, 129),
        softmax(random, "bf16", 3, 1),
        layer_norm(random, "fp32", 8, 1024, 256),
        layer_norm(random, "fp16", 5, 1111, 512, warps=8),
        layer_norm(random, "bf16", 3, 96, 128, warps=2),
        attention(random, "fp16", (2, 128, 64), False, (64, 64), uses=PIPELINE),
        attention(random, "fp16", (2, 128, 64), True, (64, 32), uses=PIPELINE),
        attention(random, "bf16", (1, 193, 32), True, (64, 64), warps=8, uses=PIPELINE),
        attention(random, "bf16", (2, 101, 128), False, (64, 32), stages=2, uses=PIPELINE),
        histogram(random, 8192, 256, 1024),
        histogram(random, 3001, 128, 512),
        histogram(random, 100, 16, 128, warps=1),
    ]
