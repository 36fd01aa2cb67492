//! Packed weights in files: what is read, and each way in which one can be wrong.

use std::path::PathBuf;

use fused_dora::Dtype;
use fused_dora::peft::{
    CheckpointError, PackedModules, QuantizationConfig, QuantizedTensor, TensorFile,
};
use fused_dora::quant::{QuantizedWeight, WeightFormat};
use fused_dora_testkit::packed;
use fused_dora_testkit::tensors::{self, Tensors, floats, values};
use half::bf16;
use safetensors::Dtype as Stored;
use serde_json::{Value, json};
use tempfile::TempDir;

const STATE: &str = "m.weight.quant_state.bitsandbytes__nf4";

/// A golden file's packed weight as that of module `m`, next to a bias.
fn module(file: &str) -> Tensors {
    let tensors = tensors::read(&packed::folder().join(format!("{file}.safetensors")));
    let is_part = |name: &str| name.starts_with("weight") || name == "SCB";
    let parts = tensors.into_iter().filter(|(name, _)| is_part(name));
    let mut parts: Tensors = parts.map(|(name, tensor)| (format!("m.{name}"), tensor)).collect();
    parts.insert("m.bias".to_owned(), floats(&[2], &[1.0, 2.0]));
    parts
}

/// Files of a model, one per set of tensors.
struct Model {
    folder: TempDir,
    files: Vec<TensorFile>,
}

impl Model {
    fn new(parts: &[&Tensors]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let path = |number: usize| folder.path().join(format!("{number}.safetensors"));
        let open = |(number, tensors): (usize, &&Tensors)| {
            tensors::save(&path(number), tensors);
            TensorFile::open(path(number)).expect("a file")
        };
        let files = parts.iter().enumerate().map(open).collect();
        Self { folder, files }
    }

    fn config(&self, settings: &Value) -> Option<QuantizationConfig> {
        let path: PathBuf = self.folder.path().join("config.json");
        let settings = json!({ "model_type": "llama", "quantization_config": settings });
        std::fs::write(&path, settings.to_string()).expect("room");
        QuantizationConfig::read(path).expect("JSON")
    }

    fn find(&self, settings: &Value) -> Result<QuantizedTensor, CheckpointError> {
        let modules = PackedModules::new(&self.files, self.config(settings));
        assert_eq!(modules.names().collect::<Vec<_>>(), ["m"]);
        modules.find(&self.files, "m")
    }

    fn read(&self, settings: &Value) -> Result<QuantizedWeight<'static>, CheckpointError> {
        self.find(settings)?.read(&self.files)
    }
}

fn bits4() -> Value {
    json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4" })
}

fn int8() -> Value {
    json!({ "quant_method": "bitsandbytes", "load_in_4bit": false, "load_in_8bit": true })
}

fn grid() -> Value {
    json!({ "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128] })
}

fn compressed(strategy: &str) -> Value {
    let weights = json!({ "num_bits": 8, "type": "float", "strategy": strategy });
    json!({
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": { "group_0": { "weights": weights, "targets": ["Linear"] } },
    })
}

/// Each golden weight is read with the settings of its program and without any, from one file and
/// from as many as it has tensors.
#[test]
fn golden_weights_are_read() {
    let none = Value::Null;
    for (file, settings) in [
        ("quant_nf4", bits4()),
        ("quant_nf4_nested", bits4()),
        ("quant_nf4_odd", bits4()),
        ("quant_nf4_rows_straddle", json!({ "_load_in_4bit": true, "load_in_4bit": true })),
        ("quant_nf4_block4096", bits4()),
        ("quant_int8", int8()),
        ("quant_fp8_block", grid()),
        ("quant_fp8_tensor", json!({ "quant_method": "fp8", "weight_block_size": null })),
        ("quant_fp8_tensor", compressed("tensor")),
        ("quant_fp8_row", compressed("channel")),
    ] {
        let golden = tensors::read(&packed::folder().join(format!("{file}.safetensors")));
        let tensors = module(file);
        let single: Vec<Tensors> =
            tensors.iter().map(|(name, it)| [(name.clone(), it.clone())].into()).collect();
        for model in [Model::new(&[&tensors]), Model::new(&single.iter().collect::<Vec<_>>())] {
            for settings in [&settings, &none] {
                let found = model.find(settings).unwrap_or_else(|error| panic!("{file}: {error}"));
                let weight = found.read(&model.files).expect("right numbers");
                assert_eq!(found.format(), weight.format());
                assert_eq!(found.shape(), weight.shape());
                let mut keys: Vec<_> = found.keys().iter().map(String::as_str).collect();
                assert_eq!(keys[0], "m.weight");
                keys.sort_unstable();
                let all = tensors.keys().map(String::as_str).filter(|name| *name != "m.bias");
                assert_eq!(keys, all.collect::<Vec<_>>(), "{file}");
                let total = keys.iter().map(|key| tensors[*key].2.len()).sum::<usize>();
                assert_eq!(found.bytes(&model.files), total);
                let expected = golden.get("dequantized.bf16");
                let Some(expected) = expected else { continue };
                let found: Vec<bf16> = weight.dequantize();
                let found: Vec<_> = found.into_iter().map(f32::from).collect();
                assert!(found == values(expected), "{file}");
            }
        }
    }
    let nf4 = Model::new(&[&module("quant_nf4")]).find(&bits4()).expect("a weight");
    assert_eq!(nf4.state(), Some(Dtype::Bf16));
    let int8 = Model::new(&[&module("quant_int8")]).find(&int8()).expect("a weight");
    assert_eq!((int8.state(), int8.format()), (None, WeightFormat::Int8Rows));
}

/// bitsandbytes stores the same bytes under other types (`bnb_4bit_quant_storage`), and fp8 may have
/// scales of 16 bits, or none in image models.
#[test]
fn other_types_of_the_same_bytes_are_read() {
    let mut tensors = module("quant_nf4");
    let expected = Model::new(&[&tensors]).read(&bits4()).expect("a weight");
    let weight = tensors.get_mut("m.weight").expect("a weight");
    (weight.0, weight.1) = (Stored::BF16, vec![weight.2.len() / 2, 1]);
    let found = Model::new(&[&tensors]).read(&bits4()).expect("a weight");
    assert_eq!(found, expected);

    let mut tensors = module("quant_fp8_row");
    let scales = tensors["m.weight_scale"].clone();
    tensors.insert("m.weight_scale".to_owned(), tensors::to(Stored::BF16, &scales));
    tensors.get_mut("m.weight_scale").expect("scales").1 = vec![40];
    let found = Model::new(&[&tensors]).read(&compressed("channel")).expect("a weight");
    let rounded = values(&tensors["m.weight_scale"]);
    assert_eq!((0..40).map(|row| found.scale(row)).collect::<Vec<_>>(), rounded);

    tensors.remove("m.weight_scale");
    let found = Model::new(&[&tensors]).read(&Value::Null).expect("a weight");
    assert_eq!(found.scale(0), 1.0);
}

/// A change of a model's tensors or settings, and what the error says.
type Change = fn(&mut Tensors, &mut Value);

fn state(tensors: &mut Tensors, key: &str, change: impl FnOnce(&mut Value)) {
    let tensor = tensors.get_mut(key).expect("a state");
    let mut value = serde_json::from_slice(&tensor.2).expect("JSON");
    change(&mut value);
    tensor.2 = value.to_string().into_bytes();
    tensor.1 = vec![tensor.2.len()];
}

/// Sets a field of the JSON.
fn set(tensors: &mut Tensors, field: &str, to: Value) {
    state(tensors, STATE, |state| state[field] = to);
}

/// Drops the last element along a tensor's first dimension.
fn cut(tensors: &mut Tensors, name: &str) {
    let tensor = tensors.get_mut(name).expect("a tensor");
    let row = tensor.2.len() / tensor.1[0];
    tensor.1[0] -= 1;
    tensor.2.truncate(tensor.2.len() - row);
}

fn float(tensors: &mut Tensors, name: &str, place: usize, value: f32) {
    tensors.get_mut(name).expect("a tensor").2[4 * place..4 * place + 4]
        .copy_from_slice(&value.to_le_bytes());
}

fn refuse(file: &str, settings: &Value, cases: &[(Change, &str, &[&str])]) {
    for (change, variant, parts) in cases {
        let (mut tensors, mut settings) = (module(file), settings.clone());
        change(&mut tensors, &mut settings);
        let model = Model::new(&[&tensors]);
        let Err(error) = model.read(&settings) else { panic!("{file}, {parts:?}: is taken") };
        assert!(format!("{error:?}").starts_with(variant), "{parts:?}: {error:?}");
        let text = error.to_string();
        for part in *parts {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("m.") || text.contains("config.json"), "{text}");
    }
}

#[test]
fn damaged_4_bit_weights_are_refused() {
    refuse(
        "quant_nf4",
        &bits4(),
        &[
            (|t, _| set(t, "quant_type", json!("nf8")), "Setting", &["quant_type", "nf8", "nf4"]),
            (|t, _| set(t, "quant_type", json!("fp4")), "Setting", &["quant_type", "fp4", "nf4"]),
            (|t, _| set(t, "blocksize", json!(48)), "Setting", &["blocksize", "48", "32 to 4096"]),
            (|t, _| set(t, "blocksize", json!(8192)), "Setting", &["blocksize", "8192"]),
            (
                |t, _| set(t, "dtype", json!("float64")),
                "Setting",
                &["dtype", "float64", "bfloat16"],
            ),
            (|t, _| set(t, "shape", json!([64])), "Setting", &["shape", "[64]", "[O, I]"]),
            (|t, _| set(t, "shape", json!([64, -1])), "Setting", &["shape", "[64,-1]"]),
            (
                |t, _| set(t, "shape", json!([64, 130])),
                "Shape",
                &["m.weight`", "[64, 130]", "4160", "4096"],
            ),
            (|t, _| cut(t, "m.weight"), "Shape", &["m.weight`", "4096 bytes", "4095"]),
            (|t, _| cut(t, "m.weight.absmax"), "Shape", &["absmax", "[127]", "128 elements"]),
            (|t, _| drop(t.remove("m.weight.absmax")), "MissingTensor", &["absmax", "128 blocks"]),
            (|t, _| drop(t.remove("m.weight")), "MissingTensor", &["m.weight`", "incomplete"]),
            (|t, _| drop(t.remove(STATE)), "MissingTensor", &["quant_state", "block size"]),
            (
                |t, _| t.get_mut(STATE).expect("a state").2[0] = b'!',
                "Malformed",
                &["quant_state", "no JSON"],
            ),
            (
                |t, _| float(t, "m.weight.quant_map", 3, 0.5),
                "Malformed",
                &["quant_map", "number 3", "nf4"],
            ),
            (
                |t, _| float(t, "m.weight.absmax", 7, f32::NAN),
                "Malformed",
                &["absmax is NaN", "number 7"],
            ),
            (
                |t, _| float(t, "m.weight.absmax", 0, f32::INFINITY),
                "Malformed",
                &["absmax is inf", "number 0"],
            ),
            (|t, _| float(t, "m.weight.absmax", 0, -1.0), "Malformed", &["absmax is -1"]),
            (
                |t, _| {
                    drop(t.insert(
                        "m.weight.absmax".to_owned(),
                        (Stored::U8, vec![128], vec![0; 128]),
                    ))
                },
                "Dtype",
                &["absmax", "U8", "nested"],
            ),
            (
                |_, s| s["bnb_4bit_quant_type"] = json!("fp4"),
                "Setting",
                &["bnb_4bit_quant_type", "fp4", "nf4"],
            ),
            (|_, s| *s = int8(), "Setting", &["load_in_8bit", "true", "nf4"]),
            (|_, s| *s = grid(), "Setting", &["quant_method", "nf4"]),
        ],
    );
    refuse(
        "quant_nf4_nested",
        &bits4(),
        &[
            (
                |t, _| set(t, "nested_blocksize", json!(128)),
                "Setting",
                &["nested_blocksize", "256"],
            ),
            (
                |t, _| set(t, "nested_dtype", json!("float16")),
                "Setting",
                &["nested_dtype", "float16", "float32"],
            ),
            (|t, _| set(t, "nested_offset", json!("x")), "Setting", &["nested_offset", "finite"]),
            (|t, _| cut(t, "m.weight.absmax"), "Shape", &["absmax", "[287]", "288 blocks"]),
            (
                |t, _| cut(t, "m.weight.nested_absmax"),
                "Shape",
                &["nested_absmax", "[1]", "2 elements"],
            ),
            (|t, _| cut(t, "m.weight.nested_quant_map"), "Shape", &["nested_quant_map", "256"]),
            (
                |t, _| drop(t.remove("m.weight.nested_absmax")),
                "MissingTensor",
                &["nested_absmax", "each 256"],
            ),
            (
                |t, _| float(t, "m.weight.nested_absmax", 1, f32::NAN),
                "Malformed",
                &["nested_absmax is NaN", "number 1"],
            ),
            (
                |t, _| float(t, "m.weight.nested_quant_map", 9, f32::INFINITY),
                "Malformed",
                &["nested_quant_map is inf", "number 9"],
            ),
            (
                |t, _| {
                    state(t, STATE, |state| {
                        let fields = state.as_object_mut().expect("an object");
                        fields.retain(|name, _| !name.starts_with("nested"));
                    });
                },
                "Dtype",
                &["absmax", "U8"],
            ),
        ],
    );
}

#[test]
fn damaged_int8_weights_are_refused() {
    refuse(
        "quant_int8",
        &int8(),
        &[
            (|t, _| cut(t, "m.SCB"), "Shape", &["m.SCB", "[47]", "48 elements"]),
            (|t, _| drop(t.remove("m.SCB")), "MissingTensor", &["m.SCB", "a scale per row"]),
            (|t, _| float(t, "m.SCB", 2, f32::NAN), "Malformed", &["SCB is NaN", "number 2"]),
            (
                |t, _| t.get_mut("m.weight_format").expect("a format").2[0] = 1,
                "Setting",
                &["weight_format", "[1]", "old GPUs"],
            ),
            (|_, s| *s = bits4(), "Setting", &["bnb_4bit_quant_type", "nf4", "int8"]),
        ],
    );
}

#[test]
fn damaged_fp8_weights_are_refused() {
    refuse(
        "quant_fp8_block",
        &grid(),
        &[
            (|t, _| cut(t, "m.weight_scale_inv"), "Shape", &["[1, 2]", "[2, 2]", "128×128"]),
            (
                |_, s| s["weight_block_size"] = json!([64, 128]),
                "Shape",
                &["[2, 2]", "[3, 2]", "64×128"],
            ),
            (
                |_, s| s["weight_block_size"] = json!([0, 128]),
                "Setting",
                &["weight_block_size", "[0,128]"],
            ),
            (|_, s| *s = compressed("tensor"), "Shape", &["[2, 2]", "[1]"]),
            (
                |t, _| float(t, "m.weight_scale_inv", 3, f32::INFINITY),
                "Malformed",
                &["weight_scale_inv is inf", "number 3"],
            ),
            (
                |t, _| t.get_mut("m.weight").expect("a weight").2[5] = 0x7f,
                "Malformed",
                &["NaN (number 5)", "0x7f"],
            ),
            (
                |t, _| t.get_mut("m.weight").expect("a weight").0 = Stored::F8_E5M2,
                "Dtype",
                &["m.weight`", "F8_E5M2", "F8_E4M3"],
            ),
            (
                |t, _| t.get_mut("m.weight_scale_inv").expect("scales").0 = Stored::I32,
                "Dtype",
                &["weight_scale_inv", "I32", "F32"],
            ),
            (
                |t, _| drop(t.insert("m.weight_scale".to_owned(), floats(&[1], &[1.0]))),
                "UnexpectedTensor",
                &["weight_scale_inv", "weight_scale"],
            ),
            (
                |t, _| drop(t.remove("m.weight_scale_inv")),
                "MissingTensor",
                &["scale", "incomplete"],
            ),
            (
                |t, s| {
                    let scale = t.remove("m.weight_scale_inv").expect("scales");
                    t.insert("m.scale_weight".to_owned(), scale);
                    *s = Value::Null;
                },
                "UnexpectedTensor",
                &["m.scale_weight", "not known"],
            ),
            (|_, s| *s = bits4(), "Setting", &["nf4", "fp8"]),
        ],
    );
    refuse(
        "quant_fp8_row",
        &compressed("channel"),
        &[
            (|t, _| cut(t, "m.weight_scale"), "Shape", &["[39, 1]", "[40, 1]"]),
            (
                |_, s| s["format"] = json!("pack-quantized"),
                "Setting",
                &["format", "pack-quantized"],
            ),
            (
                |_, s| s["config_groups"]["group_0"]["weights"]["num_bits"] = json!(4),
                "Setting",
                &["group_0", "4"],
            ),
            (
                |_, s| s["config_groups"]["group_0"]["weights"]["strategy"] = json!("group"),
                "Setting",
                &["strategy", "group"],
            ),
            (|_, s| s["config_groups"] = json!({}), "Setting", &["config_groups", "empty"]),
        ],
    );
}

/// What is not supported is refused by name, by the settings or by the tensors alone.
#[test]
fn other_formats_are_refused_by_name() {
    for method in ["gptq", "awq", "mxfp4", "hqq", "torchao", "quanto", "modelopt"] {
        let model = Model::new(&[&module("quant_nf4")]);
        let error = model.read(&json!({ "quant_method": method })).expect_err("refused");
        let text = error.to_string();
        assert!(text.contains(method) && text.contains("quant_method"), "{text}");
        assert!(text.contains("made from"), "{text}");
    }
    let old = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true,
        "bnb_4bit_quant_type": "int4" });
    let error = Model::new(&[&module("quant_nf4")]).read(&old).expect_err("refused").to_string();
    assert!(error.contains("bnb_4bit_quant_type") && error.contains("int4"), "{error}");
    for (part, name) in
        [("qweight", "GPTQ"), ("weight_packed", "compressed-tensors"), ("weight_blocks", "MXFP4")]
    {
        let tensor = (Stored::I32, vec![2], vec![0; 8]);
        let model = Model::new(&[&Tensors::from([(format!("m.{part}"), tensor)])]);
        let error = model.read(&Value::Null).expect_err("refused").to_string();
        assert!(error.contains(name) && error.contains(part), "{error}");
    }
    // Bytes that nothing explains.
    let tensor = (Stored::U8, vec![4, 4], vec![0; 16]);
    let model = Model::new(&[&Tensors::from([("m.weight".to_owned(), tensor)])]);
    let error = model.read(&Value::Null).expect_err("refused").to_string();
    assert!(error.contains("m.weight") && error.contains("quant_state"), "{error}");
}
