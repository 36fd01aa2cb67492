//! The rows about tensors: their lengths, strides, addresses and types.

use fused_dora::{
    AdapterLayout, Base, Decompose, Decomposition, DoraSpec, Dtype, ElementType, Forward,
    GradientNorm, Merge, MergeReport, Norm, NormGrad, Prepared, Read, Result, Saved, Scaling,
    Workspace, Write, borrow_context,
};

use super::super::{INPUTS, Layer, OUTPUTS, RANK, TOKENS, spec};
use super::Table;

/// An address as memory has them. Nothing is launched where it is used.
const SOMEWHERE: u64 = 1 << 20;

impl Layer {
    /// A merge into a weight of this type, at an address of its own or W's.
    fn merge_at(&mut self, merged: ElementType, in_place: bool) -> Result<()> {
        let Self { kernels, stream, spec, workspace, prepared, lora_a, lora_b, .. } = self;
        let weight = at(SOMEWHERE, spec.dtype().into());
        let target = if in_place { SOMEWHERE } else { 2 * SOMEWHERE };
        let io = Merge {
            weight: weight.into(),
            lora_a: (&*lora_a).into(),
            lora_b: (&*lora_b).into(),
            // SAFETY: as of `at`.
            merged: unsafe { Write::from_address(target, merged) },
            report: None,
        };
        kernels.merge(stream, spec, prepared, workspace, io)
    }
}

/// A tensor at an address.
fn at(address: u64, element: ElementType) -> Read<'static> {
    // SAFETY: the callers ask for what is refused before anything is launched.
    unsafe { Read::from_address(address, element) }
}

/// A layer's prepared operands in memory of the caller.
fn prepared_at(address: u64, bytes: usize) -> Result<()> {
    // SAFETY: nothing uses them.
    unsafe { Prepared::at_address(&spec(Norm::Output), address, bytes) }.map(drop)
}

impl Table {
    /// A forward of many tokens with prepared operands that are nowhere.
    pub(super) fn huge(&self, spec: &DoraSpec) -> Result<()> {
        let mut layer = self.layer(Norm::None);
        let (bf16, Layer { kernels, stream, workspace, .. }) = (ElementType::Bf16, &mut layer);
        // SAFETY: the launch is refused before anything looks there.
        let (prepared, [y, h]) = unsafe {
            let written = || Write::from_address(SOMEWHERE, bf16);
            (Prepared::at_address(spec, SOMEWHERE, usize::MAX)?, [written(), written()])
        };
        let io = Forward {
            tokens: 1 << 13,
            base: Base::new(at(SOMEWHERE, bf16)),
            x: at(SOMEWHERE, bf16),
            y,
            h,
            z: None,
            dropout: None,
            counter: None,
            seed: 0,
        };
        kernels.forward(stream, spec, &prepared, workspace, io)
    }

    /// A workspace in memory of the caller.
    fn workspace_at(&self, address: u64, bytes: usize) -> Result<()> {
        let (stream, specs) = (self.kernels.context().default_stream(), [spec(Norm::Output)]);
        // SAFETY: the callers give memory that is refused.
        unsafe {
            Workspace::at_address(&self.kernels, &stream, &specs, TOKENS, address, bytes).map(drop)
        }
    }
}

pub(super) fn all(table: &mut Table) {
    let short = |layer: &Layer| layer.resize(OUTPUTS * INPUTS - 1);
    let mut prepare = table.layer(Norm::Input);
    prepare.weight = short(&prepare);
    let mut forward = table.prepared(Norm::Input);
    forward.weight = short(&forward);
    let h = forward.resize(forward.h.len() - 1);
    table.row(
        "a tensor of another length than its shape's",
        [
            prepare.prepare(),
            forward.forward(TOKENS),
            table.prepared(Norm::Input).forward(TOKENS + 1),
            table.prepared(Norm::Output).backward(|io| io.h = (&h).into()),
        ],
    );
    let layout = AdapterLayout::new(&spec(Norm::Input));
    let buffer = prepare.stream.alloc_zeros::<f32>(layout.len() + 1).expect("memory");
    table.row(
        "an adapter's buffer of another length than its layout's",
        [layout.view(buffer.as_view()), layout.view(buffer.slice(1..layout.len()))],
    );
    let mut linear = table.linear(Norm::Input);
    linear.saved = linear.layer.saved(TOKENS - 1, None).expect("memory");
    table.row("a `Saved` made for fewer tokens", [linear.forward()]);
    let long = prepare.resize(TOKENS * (INPUTS + 1));
    let strided = |stride| {
        let x = Read::from(&long).with_row_stride(stride);
        table.prepared(Norm::Input).forward_with(|io| io.x = x)
    };
    let outcomes = [strided(INPUTS - 1), strided((1 << 30) + 1)];
    table.row("rows that overlap, or start more than 2³⁰ elements apart", outcomes);
    let apart = || Read::from(&long).with_row_stride(INPUTS + 1);
    let mut layer = table.prepared(Norm::Input);
    table.row(
        "a row stride of a tensor that must be contiguous",
        [
            layer.forward_with(|io| io.base = Base::new(apart())),
            layer.backward(|io| io.h = apart()),
        ],
    );
    addresses(table);
    types(table);
    table.row(
        "a merge over W itself into another dtype, by address",
        [table.prepared(Norm::Output).merge_at(ElementType::F32, true)],
    );
}

/// What is wrong with an address.
fn addresses(table: &mut Table) {
    let mut layer = table.prepared(Norm::Output);
    let bf16 = ElementType::Bf16;
    let mut forward = |x, weight| {
        layer.forward_with(|io| {
            io.x = at(x, bf16);
            io.base = Base::new(at(weight, bf16));
        })
    };
    let (odd_x, odd_weight) =
        (forward(SOMEWHERE + 1, SOMEWHERE), forward(SOMEWHERE, SOMEWHERE + 1));
    let (no_x, no_weight) = (forward(0, SOMEWHERE), forward(SOMEWHERE, 0));
    // SAFETY: it is never written.
    let no_h = layer.forward_with(|io| io.h = unsafe { Write::from_address(0, bf16) });
    table.row("a device address that no element can have", [odd_x, odd_weight]);
    table.row(
        "memory of the caller that starts at no multiple of 256 bytes",
        [table.workspace_at(SOMEWHERE + 16, usize::MAX), prepared_at(SOMEWHERE + 16, usize::MAX)],
    );
    table.row(
        "an address of 0 for a tensor, a context or memory that is needed",
        [
            // SAFETY: it is refused.
            unsafe { borrow_context(std::ptr::null_mut()) }.map(drop),
            no_x,
            no_weight,
            no_h,
            table.workspace_at(0, usize::MAX),
            prepared_at(0, usize::MAX),
        ],
    );
    let bytes = Workspace::bytes(&table.kernels, &[spec(Norm::Output)], TOKENS).expect("a size");
    table.row(
        "memory of the caller with too few bytes",
        [
            table.workspace_at(SOMEWHERE, bytes - 1),
            prepared_at(SOMEWHERE, Prepared::bytes(&spec(Norm::Output)) - 1),
        ],
    );
}

/// Elements of another type than the op takes.
fn types(table: &mut Table) {
    let mut layer = table.prepared(Norm::Output);
    let (bf16, f16) = (ElementType::Bf16, ElementType::F16);
    let (f32, f64) = (ElementType::F32, ElementType::F64);
    let tensor = |element| at(SOMEWHERE, element);
    // SAFETY: as of `at`.
    let written = |element| unsafe { Write::from_address(SOMEWHERE, element) };
    let (scaling, detached) = (Scaling::Value(1.0), NormGrad::Detached);
    let wide = DoraSpec::new(INPUTS, OUTPUTS, RANK, scaling, Norm::Input, detached, Dtype::F32);
    let mut linear = table.linear(Norm::Input);
    linear.saved =
        Saved::new(&layer.stream, &[wide.expect("a layer")], TOKENS, None).expect("memory");
    table.row(
        "x, W, b, y, H, z, or a gradient of x or y, of another dtype than the spec's",
        [
            layer.forward_with(|io| io.x = tensor(f32)),
            layer.forward_with(|io| io.base = Base::new(tensor(f16))),
            layer.forward_with(|io| io.base.bias = Some(tensor(f32))),
            layer.forward_with(|io| io.y = written(f64)),
            layer.forward_with(|io| io.h = written(f32)),
            layer.backward(|io| io.output = Some(tensor(f16))),
            layer.backward(|io| io.grad_output = tensor(f32)),
            layer.backward(|io| io.grad_input = Some(written(f16))),
            linear.forward(),
        ],
    );
    let Layer { kernels, stream, workspace, .. } = &mut layer;
    let norm = GradientNorm { len: 4, parts: &[], gradients: tensor(bf16), norm: written(f32) };
    let norm = kernels.gradient_norm(stream, workspace, norm);
    table.row(
        "parameters, their gradients, or a buffer of the optimizer that are not f32",
        [
            layer.backward(|io| io.grad_lora_a = written(bf16)),
            layer.backward(|io| io.grad_magnitude = Some(written(f64))),
            norm,
        ],
    );
    let Layer { kernels, stream, spec, workspace, prepared, weight, lora_a, lora_b, .. } =
        &mut layer;
    let mut merged = stream.alloc_zeros::<f32>(OUTPUTS * INPUTS).expect("memory");
    let mut sums = stream.alloc_zeros::<f32>(MergeReport::LEN).expect("memory");
    let io = Merge {
        weight: (&*weight).into(),
        lora_a: (&*lora_a).into(),
        lora_b: (&*lora_b).into(),
        merged: (&mut merged).into(),
        report: Some((&mut sums).into()),
    };
    let report = kernels.merge(stream, spec, prepared, workspace, io);
    let mut change = |changed: Read<'_>, result: Write<'_>| {
        let (axis, weight) = (Norm::Input, (&*weight).into());
        let io = Decompose { axis, weight, changed, result };
        kernels.decompose(stream, spec, workspace, io)
    };
    let result = change((&merged).into(), sums.slice_mut(..Decomposition::LEN).into());
    let of_f64 = change(tensor(f64), written(f64));
    table.row("a merge's report, or a decomposition's result, that is not f64", [report, result]);
    table.row(
        "W' of a merge, or W_t of a decomposition, in f64",
        [table.prepared(Norm::Output).merge_at(f64, false), of_f64],
    );
}
