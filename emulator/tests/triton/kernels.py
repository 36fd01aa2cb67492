"""Kernels in Triton's language, of the kinds that Triton is used for. `cases.py` runs them."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    a,
    b,
    out,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[M, N] = a[M, K] @ b[K, N]: one tile of `out` for each program."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, K, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        left_mask = (rows[:, None] < M) & (inner[None, :] < K)
        left = tl.load(a + rows[:, None] * K + inner[None, :], mask=left_mask, other=0.0)
        right_mask = (inner[:, None] < K) & (columns[None, :] < N)
        right = tl.load(b + inner[:, None] * N + columns[None, :], mask=right_mask, other=0.0)
        sums = tl.dot(left, right, sums)
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(out + rows[:, None] * N + columns[None, :], sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def softmax(x, out, N, BLOCK: tl.constexpr):
    """out[row] = softmax(x[row]): one row for each program, in one piece."""
    start = tl.program_id(0) * N
    columns = tl.arange(0, BLOCK)
    mask = columns < N
    row = tl.load(x + start + columns, mask=mask, other=-float("inf")).to(tl.float32)
    weights = tl.exp(row - tl.max(row, axis=0))
    share = weights / tl.sum(weights, axis=0)
    tl.store(out + start + columns, share.to(out.dtype.element_ty), mask=mask)


@triton.jit
def layer_norm(x, weight, bias, out, mean_out, rstd_out, N, eps, BLOCK: tl.constexpr):
    """out[row] = (x[row] - mean) * rstd * weight + bias: one row for each program, in pieces."""
    program = tl.program_id(0)
    start = program * N
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, N, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        sums += tl.load(x + start + columns, mask=columns < N, other=0.0).to(tl.float32)
    mean = tl.sum(sums, axis=0) / N
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, N, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        piece = tl.load(x + start + columns, mask=columns < N, other=0.0).to(tl.float32)
        centred = tl.where(columns < N, piece - mean, 0.0)
        squares += centred * centred
    rstd = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / N + eps)
    tl.store(mean_out + program, mean)
    tl.store(rstd_out + program, rstd)
    for first in range(0, N, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = columns < N
        piece = tl.load(x + start + columns, mask=mask, other=0.0).to(tl.float32)
        scale = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
        shift = tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
        result = (piece - mean) * rstd * scale + shift
        tl.store(out + start + columns, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def attention(
    q,
    k,
    v,
    out,
    N,
    scale,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out = softmax(q @ k^T * scale) @ v for each head, by a running maximum and sum.

    All are [heads, N, D]. Program (i, h) has the queries of block i in head h.
    """
    head = tl.program_id(1) * N * D
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tl.arange(0, D)
    offsets = head + rows[:, None] * D + features[None, :]
    queries = tl.load(q + offsets, mask=rows[:, None] < N, other=0.0)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, D), tl.float32)
    end = N
    if CAUSAL:
        end = tl.minimum(N, (tl.program_id(0) + 1) * BLOCK_M)
    for first in range(0, end, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        key_offsets = head + keys[None, :] * D + features[:, None]
        key_tile = tl.load(k + key_offsets, mask=keys[None, :] < N, other=0.0)
        scores = tl.dot(queries, key_tile) * scale
        seen = keys[None, :] < N
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None])
        scores = tl.where(seen, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp(scores - new_top[:, None])
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(weights, axis=1)
        value_offsets = head + keys[:, None] * D + features[None, :]
        values = tl.load(v + value_offsets, mask=keys[:, None] < N, other=0.0)
        sums = tl.dot(weights.to(values.dtype), values, sums * shrink[:, None])
        top = new_top
    result = sums / total[:, None]
    tl.store(out + offsets, result.to(out.dtype.element_ty), mask=rows[:, None] < N)


@triton.jit
def histogram(x, out, N, BINS: tl.constexpr, BLOCK: tl.constexpr):
    """out[bin] += how many of x are bin."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < N
    values = tl.load(x + offsets, mask=mask, other=0)
    counts = tl.histogram(values, BINS, mask=mask)
    tl.atomic_add(out + tl.arange(0, BINS), counts)
