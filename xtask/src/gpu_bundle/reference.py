"""A layer's inputs, its results in float64, and how far computed results may be from them.

Every element of y, dX, dA, dB and dm must lie within

    LAMBDA * eps * sqrt(q) + acc(n) * a + delta * a + k * eps * |value|

of the result in float64 of the same inputs. eps is the unit roundoff of the dtype: 2^-8 for bf16,
2^-24 for f32.

- q is the sum of the squares of all terms that are rounded to the dtype before they are summed:
  operands that a kernel packs, and H, P and G that it stores. If roundings are independent and
  have mean 0, an error is beyond LAMBDA * eps * sqrt(q) with a probability of at most
  2 * exp(-LAMBDA^2 / 2) (Hoeffding's inequality; Higham and Mary 2019, "A New Approach to
  Probabilistic Rounding Error Analysis"). For LAMBDA = 8 that is 2.5e-14 per element.
- a is the sum over absolute values. acc(n) = 64 * 2^-24 * (1 + n / 4096) bounds a sum of n terms
  in f32, relative to a. delta bounds the relative error of the norm.
- k counts the roundings of the value itself. A kernel rounds a result once. PyTorch and PEFT store
  the result of every elementwise op, which is at most ROUNDINGS times more.

The repository's tests have more precise bounds, which take the exact error of each packed operand
(src/reference/bounds.rs). These here also hold for layers that PyTorch computes.
"""

import copy
import math

import torch

LAMBDA = 8 * 1.05  # 5 % for the products of two roundings, which q leaves out.
ROUNDINGS = 8  # PEFT's DoRA: a cast, base, low-rank, norm, gain, two products, and a sum.
U = 2.0**-24
EPSILON = {"bf16": 2.0**-8, "f32": U}
SCALING, CHUNK = 2.0, 1024
TENSORS = ("y", "dX", "dA", "dB", "dm")


class Case:
    """The inputs of a layer. norm is none (LoRA), input or output (DoRA)."""

    def __init__(self, shape, dtype, norm, device, seed):
        self.tokens, self.inputs, self.outputs, self.rank = shape
        self.dtype, self.norm, self.scaling = dtype, norm, SCALING
        kind = torch.bfloat16 if dtype == "bf16" else torch.float32
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*size, scale=1.0, kind=torch.float32):
            values = torch.randn(*size, generator=generator, device=device)
            return values.mul_(scale).to(kind)

        deviation = self.inputs**-0.5
        self.x = normal(self.tokens, self.inputs, kind=kind)
        self.weight = normal(self.outputs, self.inputs, scale=deviation, kind=kind)
        self.lora_a = normal(self.rank, self.inputs, scale=deviation)
        self.lora_b = normal(self.outputs, self.rank, scale=0.3)
        self.grad = normal(self.tokens, self.outputs, kind=kind)
        self.magnitude = None
        if norm != "none":
            # Trained magnitudes are near the norms.
            norms = self.norms(self.weight.float() + SCALING * self.lora_b @ self.lora_a)
            self.magnitude = norms * (1 + normal(norms.numel(), scale=0.2))

    def norms(self, v):
        return torch.linalg.vector_norm(v, dim=1 if self.norm == "output" else 0)

    def leaves(self):
        """The parameters, as autograd's leaves."""
        found = [self.lora_a, self.lora_b] + ([] if self.norm == "none" else [self.magnitude])
        return [tensor.clone().requires_grad_() for tensor in found]

    def in_float64(self):
        """The same case with all tensors in float64."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(twin, name, value.double())
        return twin

    def __str__(self):
        layer = "LoRA" if self.norm == "none" else f"DoRA, norm axis {self.norm}"
        shape = f"T {self.tokens}, W [{self.outputs}, {self.inputs}], r {self.rank}"
        return f"{layer}, {self.dtype}, {shape}"


def accumulation(n):
    return 64 * U * (1 + n / 4096)


class Reference:
    """The layer in float64, and the bounds. Tokens come in chunks, so that memory is bounded."""

    def __init__(self, case):
        self.case = case
        self.w, self.a = case.weight.double(), case.lora_a.double()
        self.sb = case.scaling * case.lora_b.double()
        v = self.w + self.sb @ self.a
        self.v2 = v**2
        one = torch.ones((), dtype=torch.float64, device=v.device)
        self.g_in, self.g_out, self.delta, self.c = one, one, one * 0, None
        if case.norm != "none":
            self.c = case.norms(v)
            g = case.magnitude.double() / self.c
            wide = self.w.abs() + self.sb.abs() @ self.a.abs()
            axis, n = (1, case.inputs) if case.norm == "output" else (0, case.outputs)
            self.delta = (64 * U * v.abs() * wide).sum(axis) / self.c**2 + accumulation(n)
            self.g_out, self.g_in = (g, one) if case.norm == "output" else (one, g)

    def check(self, found, eager):
        """Compares results with the reference: for each tensor, the worst element and the rms."""
        case, sums, verdicts = self.case, {}, {}
        for start in range(0, case.tokens, CHUNK):
            part = slice(start, start + CHUNK)
            chunk = self.chunk(case.x[part].double(), case.grad[part].double(), eager)
            for name, (value, *bound) in chunk.items():
                if name in ("y", "dX"):
                    bound = self.bound(name, value, bound, eager)
                    verdict = Verdict(found[name][part], value, bound)
                    verdicts[name] = verdict.join(verdicts.get(name))
                else:
                    former = sums.get(name, (0, 0, 0, 0))
                    sums[name] = [old + new for old, new in zip(former, (value, *bound))]
        for name, (value, *bound) in sums.items():
            if name in found:
                bound = self.bound(name, value, bound, eager)
                verdicts[name] = Verdict(found[name], value, bound)
        return {name: verdicts[name] for name in TENSORS if name in found}

    def bound(self, name, value, parts, eager):
        """The bound of the module's text, from its q, its part in f32 and what is rounded last."""
        squares, exact, last = parts
        epsilon = EPSILON[self.case.dtype]
        error = LAMBDA * epsilon * squares.sqrt() + exact
        stored = epsilon if name in ("y", "dX") else U
        return error + stored * (value.abs() + error) + (ROUNDINGS * epsilon * last if eager else 0)

    def chunk(self, x, dy, eager):
        """For each result: the value, q, the bound of the sums in f32, and what eager ops round."""
        case, w, a, sb = self.case, self.w, self.a, self.sb
        g_in, g_out, delta = self.g_in, self.g_out, self.delta
        over_i, over_o, over_t = map(accumulation, (case.inputs, case.outputs, case.tokens))
        # Where a kernel rounds an operand once, eager ops round two terms and their sum.
        worst, times = delta.max(), 4 if eager else 1
        xs, g = x * g_in, dy * g_out
        # The kernel rounds x∘g to either neighbour, and G to the nearest.
        qx = 4 * xs**2 if case.norm == "input" else 0 * xs
        qg = times * g**2 if case.norm == "output" else 0 * g
        if eager and case.norm == "output":
            qg = 4 * (dy.abs() + g.abs()) ** 2  # PEFT sums dY and (g − 1)∘dY.
        # The forward.
        h, ah = xs @ a.T, xs.abs() @ a.abs().T
        base, low = xs @ w.T, h @ sb.T
        z, az = base + low, xs.abs() @ w.abs().T + 2 * ah @ sb.abs().T
        qh = xs**2 @ (a**2).T + h**2
        qz = qh @ (sb**2).T + h**2 @ (sb**2).T + qx @ self.v2.T
        qh = qh + qx @ (a**2).T
        in_error = worst if case.norm == "input" else 0
        out_error = delta if case.norm == "output" else 0
        ez = (over_i + in_error) * az
        last = (base.abs() + low.abs()) * (1 + g_out.abs())
        y = (z * g_out, g_out**2 * qz, g_out.abs() * (ez + out_error * z.abs()), last)
        # The backward.
        p, ap = g @ sb, g.abs() @ sb.abs()
        from_base, from_low = g @ w, p @ a
        d, ad = from_base + from_low, g.abs() @ w.abs() + 2 * ap @ a.abs()
        qp = times * (g**2 @ sb**2) + p**2
        qd = qg @ w**2 + qp @ a**2 + p**2 @ a**2
        ed = (over_o + (worst if case.norm == "output" else 0)) * ad
        last = (from_base.abs() + from_low.abs()) * g_in.abs()
        own = delta if case.norm == "input" else 0
        dx = (d * g_in, g_in**2 * qd, g_in.abs() * (ed + own * d.abs()), last)
        da, db = (p.T @ x) * g_in, case.scaling * g.T @ h
        eager_x = x**2 * (g_in**2) if eager and case.norm == "input" else 0 * x
        da_q = (qp.T @ x**2) * g_in**2 + (p**2).T @ eager_x
        wide = over_t * p.abs() + (over_o + worst) * ap
        lora_a = (da, da_q, (wide.T @ x.abs()) * g_in.abs(), da.abs())
        db_q = case.scaling**2 * ((g**2).T @ qh + (times * qg if eager else 0 * g).T @ h**2)
        wide = over_t * h.abs() + (over_i + worst) * ah
        lora_b = (db, db_q, abs(case.scaling) * g.abs().T @ wide, db.abs())
        found = {"y": y, "dX": dx, "dA": lora_a, "dB": lora_b}
        if case.norm == "output":
            # The kernel takes z from y, which is rounded. PEFT sums dY∘base and dY∘low.
            q = (dy**2 * (qz + z**2 + (times * (base**2 + low**2) if eager else 0))).sum(0)
            exact = (dy.abs() * ((over_t + delta) * z.abs() + ez)).sum(0)
            last = (dy * base).sum(0).abs() + (dy * low).sum(0).abs()
            found["dm"] = ((dy * z).sum(0), q, exact, last)
        if case.norm == "input":
            q = (x**2 * (qd + (times * (from_base**2 + from_low**2) if eager else 0))).sum(0)
            exact = (x.abs() * ((over_t + delta) * d.abs() + ed)).sum(0)
            found["dm"] = ((x * d).sum(0), q, exact, (x * d).sum(0).abs())
        if "dm" in found:
            value, q, exact, last = found["dm"]
            found["dm"] = (value / self.c, q / self.c**2, exact / self.c, last / self.c)
        return found


class Verdict:
    """How far a tensor is from the reference."""

    def __init__(self, found, value, bound):
        found = found.double().reshape(value.shape)
        error = (found - value).abs()
        share = torch.nan_to_num(error / bound.clamp_min(1e-300), nan=math.inf)
        at = int(share.argmax())
        self.share, self.error = share.flatten()[at].item(), error.flatten()[at].item()
        self.bound, self.value = bound.flatten()[at].item(), value.flatten()[at].item()
        self.found = found.flatten()[at].item()
        self.squares = (error**2).sum().item(), (value**2).sum().item()

    def join(self, former):
        """With the verdict on the tokens before."""
        if former is None:
            return self
        worse = self if self.share >= former.share else former
        worse.squares = tuple(map(sum, zip(self.squares, former.squares)))
        return worse

    def __str__(self):
        return (
            f"is {self.found:.9g} where float64 has {self.value:.9g}: the error {self.error:.3g} "
            f"is {self.share:.3g} times its bound {self.bound:.3g}"
        )

    def rms(self):
        """The error relative to the tensor, in the root mean square."""
        return math.sqrt(self.squares[0] / self.squares[1])
