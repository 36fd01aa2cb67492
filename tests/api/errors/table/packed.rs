//! The rows about packed weights.

use fused_dora::quant::{BlockScales, Code4, QuantizedWeight, WeightFormat};
use fused_dora::{
    Adapter, Dequantize, DoraSpec, Dtype, InPlace, NestedOffset, NestedTarget, Norm, PackedWeight,
    Prepare, Quantize, Result, SharedWeight, Weight,
};

use super::{INPUTS, Layer, OUTPUTS, Table, spec};

pub(super) fn all(table: &mut Table) {
    let blocks = |block| WeightFormat::Code4 {
        code: Code4::Nf4,
        block,
        scales: BlockScales::F32,
        state: Dtype::Bf16,
    };
    let pack = |values: &[f32], format| {
        QuantizedWeight::quantize(values, [2, 64], format).map(|weight| weight.bytes())
    };
    table.row(
        "a packed format that does not exist, or numbers that cannot be packed",
        [
            pack(&[0.0; 128], blocks(48)),
            pack(&[f32::NAN; 128], blocks(64)),
            pack(&[1e6; 128], WeightFormat::Int8Rows),
        ],
    );
    let unpack = |bytes: usize, scales: usize| {
        let weight = QuantizedWeight::new([2, 64], blocks(64), vec![0; bytes], vec![1.0; scales]);
        weight.map(|weight| weight.bytes())
    };
    table.row(
        "a packed weight with parts of other lengths than its shape's",
        [unpack(63, 2), unpack(64, 1), pack(&[0.0; 127], blocks(64))],
    );
    for_ops(table, blocks(64));
}

/// `prepare` of a layer with some weight.
fn prepare(layer: &mut Layer, weight: Weight<'_>) -> Result<()> {
    let Layer { kernels, stream, spec, workspace, prepared, lora_a, lora_b, magnitude, .. } = layer;
    let inputs = Prepare {
        weight,
        lora_a: (&*lora_a).into(),
        lora_b: (&*lora_b).into(),
        magnitude: Some(&*magnitude).into(),
        bias: None,
    };
    kernels.prepare(stream, spec, workspace, prepared, inputs)
}

/// What the ops refuse.
fn for_ops(table: &mut Table, nf4: WeightFormat) {
    let packed = |format| -> DoraSpec { spec(Norm::Input).with_weight(format).expect("a format") };
    let mut layer = Layer::on(&table.kernels, packed(nf4));
    let stream = layer.stream.clone();
    let shared = |format| {
        let zeros = [0.0f32; OUTPUTS * INPUTS];
        let weight = QuantizedWeight::quantize(&zeros, [OUTPUTS, INPUTS], format);
        SharedWeight::packed(&stream, Dtype::Bf16, &weight.expect("a packed W")).expect("memory")
    };
    let int8 = shared(WeightFormat::Int8Rows);
    let mut linear = table.linear(Norm::Input);
    let adapter = Adapter::new(&stream, &packed(nf4), false).expect("memory");
    table.row(
        "a dense W for a spec of a packed one, or another format",
        [
            layer.prepare(),
            prepare(&mut layer, int8.read()),
            linear.layer.attach("packed", adapter),
            prepare(&mut Layer::on(&table.kernels, spec(Norm::Input)), int8.read()),
        ],
    );
    let bytes = |len: usize| stream.alloc_zeros::<u8>(len).expect("memory");
    let floats = |len: usize| stream.alloc_zeros::<f32>(len).expect("memory");
    let (elements, few, scales, one) = (bytes(60), bytes(59), floats(2), floats(1));
    let of = |elements, scales| {
        Weight::from(PackedWeight { format: nf4, elements, scales, nested: None })
    };
    table.row(
        "parts of a packed W on the device of other lengths than its shape's",
        [
            prepare(&mut layer, of((&few).into(), (&scales).into())),
            prepare(&mut layer, of((&elements).into(), (&one).into())),
        ],
    );
    table.row(
        "packed elements that are not u8, or scales of another type than the format's",
        [
            prepare(&mut layer, of((&floats(60)).into(), (&scales).into())),
            prepare(&mut layer, of((&elements).into(), (&bytes(2)).into())),
        ],
    );
    let nested = match nf4 {
        WeightFormat::Code4 { code, block, state, .. } => {
            WeightFormat::Code4 { code, block, state, scales: BlockScales::Nested }
        }
        other => other,
    };
    let mut of_nested = Layer::on(&table.kernels, packed(nested));
    let codes = bytes(2);
    let without = PackedWeight {
        format: nested,
        elements: (&elements).into(),
        scales: (&codes).into(),
        nested: None,
    };
    table.row("nested scales without their parts", [prepare(&mut of_nested, without.into())]);
    for_packing(table, nf4, nested);
    let Layer { kernels, stream, spec, workspace, prepared, lora_a, lora_b, weight, .. } =
        &mut layer;
    let (lora_a, lora_b) = (&*lora_a, &*lora_b);
    let mut in_place = |merges: bool| {
        let io =
            InPlace { weight: (&mut *weight).into(), lora_a: lora_a.into(), lora_b: lora_b.into() };
        match merges {
            true => kernels.merge_in_place(stream, spec, prepared, workspace, io, None),
            false => kernels.unmerge_in_place(stream, spec, prepared, workspace, io),
        }
    };
    let refused = [in_place(true), in_place(false)];
    table.row("a merge in place, or an unmerge, of a packed W", refused);
}

/// What `quantize` and `dequantize` refuse, besides tensors.
fn for_packing(table: &mut Table, nf4: WeightFormat, nested: WeightFormat) {
    let layer = Layer::on(&table.kernels, spec(Norm::Input));
    let Layer { kernels, stream, mut workspace, weight, .. } = layer;
    let bytes = |len: usize| stream.alloc_zeros::<u8>(len).expect("memory");
    let floats = |len: usize| stream.alloc_zeros::<f32>(len).expect("memory");
    let (mut elements, mut codes, mut scales, map) = (bytes(60), bytes(2), floats(2), floats(256));
    let (mut absmax, mut target) = (floats(1), weight.clone());
    let mut quantize = |format: Option<WeightFormat>, parts: bool, offset: f32| {
        let dense = spec(Norm::Input);
        let spec = format.map_or(Ok(dense), |format| dense.with_weight(format))?;
        let is_nested = format.is_some_and(WeightFormat::is_nested);
        let io = Quantize {
            weight: (&weight).into(),
            elements: (&mut elements).into(),
            scales: if is_nested { (&mut codes).into() } else { (&mut scales).into() },
            nested: parts.then(|| NestedTarget {
                absmax: (&mut absmax).into(),
                map: (&map).into(),
                offset: NestedOffset::Given(offset),
            }),
        };
        kernels.quantize(&stream, &spec, &mut workspace, io)
    };
    let mut refused = vec![quantize(None, false, 0.0), quantize(Some(nested), true, f32::INFINITY)];
    let without = quantize(Some(nested), false, 0.0);
    let too_many = quantize(Some(nf4), true, 0.0);
    let mut dequantize = |spec: &DoraSpec| {
        let io = Dequantize { weight: (&weight).into(), target: (&mut target).into() };
        kernels.dequantize(&stream, spec, io)
    };
    refused.push(dequantize(&spec(Norm::Input)));
    let of_nested = spec(Norm::Input).with_weight(nested).expect("a format");
    let dense = dequantize(&of_nested);
    for outcome in refused {
        table.row(
            "packing or unpacking for a spec without a packed format, or by an offset that is not \
             finite",
            [outcome],
        );
    }
    table.row("nested scales without their parts", [without]);
    table.row("nested parts for a format without nested scales", [too_many]);
    table.row("a dense W for a spec of a packed one, or another format", [dense]);
}
