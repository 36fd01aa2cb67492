//! The program `fused-dora` as a user runs it: what it writes, what it refuses, and what is left
//! when it does not come to its end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use fused_dora::peft::{LayerAdapter, PeftCheckpoint};
use fused_dora::{Dtype, Norm, reference};
use fused_dora_testkit::tensors::{self, Tensors, floats, to, values, wave};
use safetensors::Dtype as Stored;
use serde_json::json;
use tempfile::TempDir;

const DEVICES: [&str; 2] = ["cpu", "emulated"];

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft").join(name)
}

fn digits() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/digits-mlp.safetensors")
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fused-dora"))
}

/// The command line of a command with a base, an adapter and a target.
fn call<'a>(command: &'a str, base: &'a Path, adapter: &'a Path, out: &'a Path) -> Vec<&'a Path> {
    let words = [command, "--base", "--adapter", "--out"].map(Path::new);
    vec![words[0], words[1], base, words[2], adapter, words[3], out]
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program");
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    text
}

/// The error that a command ends with.
fn fail(command: &mut Command, code: i32) -> String {
    let output = command.output().expect("the program");
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains("error: "), "{text}");
    text
}

fn assert_near(what: &str, found: &[f32], expected: &[f32], relative: f32, absolute: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = absolute + relative * expected.abs();
        let error = (found - expected).abs();
        assert!(error <= bound, "{what}, element {index}: {found} where {expected} should be");
    }
}

/// Nothing unfinished is left in a folder.
fn assert_clean(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        assert!(!name.display().to_string().contains(".partial"), "{} is left", name.display());
    }
}

#[test]
fn samples_merge_to_pefts_weights() {
    let folder = TempDir::new().expect("a folder");
    let base = folder.path().join("base.safetensors");
    let wide = tensors::read(&digits());
    tensors::save(&base, &wide.iter().map(|(n, t)| (n.clone(), to(Stored::F32, t))).collect());
    for (name, device) in
        ["dora", "lora"].into_iter().flat_map(|name| DEVICES.map(|device| (name, device)))
    {
        let out = folder.path().join(format!("{name}-{device}.safetensors"));
        let mut merge = program();
        merge.args(call("merge", &base, &sample(name), &out)).args(["--device", device]);
        let report = succeed(&mut merge);
        assert!(report.contains("100.00 %"), "{report}");
        let (found, before) = (tensors::read(&out), tensors::read(&base));
        let expected = tensors::read(&sample(name).join("expected.safetensors"));
        for (tensor, found) in &found {
            match expected.get(&format!("expected.merged.{tensor}")) {
                Some(merged) => {
                    assert_near(tensor, &values(found), &values(merged), 0.0, 1e-5);
                }
                None => assert!(*found == before[tensor], "{tensor} is not as it was"),
            }
        }
        assert_eq!(found.len(), before.len());
    }
    assert_clean(folder.path());
}

/// A model in a folder, in files of a few layers, and an adapter for all but its last one.
struct Model {
    folder: TempDir,
    layers: BTreeMap<String, LayerAdapter>,
}

const SHAPES: [[usize; 2]; 5] = [[48, 40], [33, 7], [40, 48], [64, 64], [16, 24]];

impl Model {
    fn new(norm: Norm, dtype: Stored) -> Self {
        let folder = TempDir::new().expect("a folder");
        let model = folder.path().join("model");
        fs::create_dir(&model).expect("room");
        let mut files = BTreeMap::<String, Tensors>::new();
        let (mut layers, mut map) = (BTreeMap::new(), serde_json::Map::new());
        for (index, shape) in SHAPES.into_iter().enumerate() {
            let (module, seed) = (format!("model.layers.{index}.proj"), index as f32);
            let file = format!("model-{}-of-00003.safetensors", index / 2 + 1);
            let tensors = files.entry(file.clone()).or_default();
            let weight = to(dtype, &wave(&shape, 0.05, seed));
            tensors.insert(format!("{module}.weight"), weight);
            tensors.insert(format!("{module}.bias"), wave(&[shape[0]], 1.0, seed));
            let odd = (Stored::I64, vec![1], 7u64.to_le_bytes().to_vec());
            tensors.insert(format!("{module}.position"), odd);
            for part in ["weight", "bias", "position"] {
                map.insert(format!("{module}.{part}"), file.clone().into());
            }
            if index + 1 < SHAPES.len() {
                layers.insert(module, layer(shape, norm, seed));
            }
        }
        for (file, tensors) in &files {
            tensors::save(&model.join(file), tensors);
        }
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        fs::write(model.join("model.safetensors.index.json"), index.to_string()).expect("room");
        fs::write(model.join("config.json"), "{}").expect("room");
        fs::write(model.join("pytorch_model.bin"), "not ours").expect("room");
        Self { folder, layers }
    }

    fn model(&self) -> PathBuf {
        self.path("model")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The adapter in PEFT's form, if it has one.
    fn peft(&self) -> PathBuf {
        let checkpoint = PeftCheckpoint::new(self.layers.clone()).expect("a checkpoint");
        checkpoint.write(self.path("adapter"), Dtype::F32).expect("room");
        self.path("adapter")
    }

    /// The adapter in LyCORIS's form.
    fn lycoris(&self) -> PathBuf {
        let mut tensors = Tensors::new();
        for (module, layer) in &self.layers {
            let name = format!("lycoris_{}", module.replace('.', "_"));
            let ([o, i], rank) = (layer.shape(), layer.rank());
            let alpha = layer.scaling() * rank as f32;
            tensors.insert(format!("{name}.lora_down.weight"), floats(&[rank, i], layer.lora_a()));
            tensors.insert(format!("{name}.lora_up.weight"), floats(&[o, rank], layer.lora_b()));
            tensors.insert(format!("{name}.alpha"), floats(&[], &[alpha]));
            let shape = match layer.norm() {
                Norm::None => continue,
                Norm::Input => [1, i],
                Norm::Output => [o, 1],
            };
            tensors.insert(format!("{name}.dora_scale"), floats(&shape, layer.magnitude()));
        }
        tensors::save(&self.path("adapter.safetensors"), &tensors);
        self.path("adapter.safetensors")
    }
}

/// A layer of rank 4 that changes its weight a good deal.
fn layer(shape: [usize; 2], norm: Norm, seed: f32) -> LayerAdapter {
    let [o, i] = shape;
    let of = |shape: [usize; 2], size| values(&wave(&shape, size, seed));
    let features = match norm {
        Norm::None => 0,
        Norm::Input => i,
        Norm::Output => o,
    };
    let magnitude = of([1, features], 0.1).iter().map(|m| 0.3 + m).collect();
    let (a, b) = (of([4, i], 0.1), of([o, 4], 0.1));
    LayerAdapter::new(shape, 4, 0.5, norm, a, b, magnitude).expect("a layer")
}

/// Merged with the CPU and with the kernels: the same weights, in the same files, everything else
/// to the byte; and unmerged again.
#[test]
fn models_in_several_files_merge_and_unmerge() {
    for (norm, dtype, ulp) in [
        (Norm::None, Stored::F32, 1e-6),
        (Norm::Input, Stored::F32, 1e-6),
        (Norm::Output, Stored::BF16, 1.0 / 128.0),
        (Norm::Input, Stored::F16, 1.0 / 1024.0),
    ] {
        let model = Model::new(norm, dtype);
        let adapter = if norm == Norm::Input { model.lycoris() } else { model.peft() };
        let mut merged = Vec::new();
        for device in DEVICES {
            let [out, back, gains] =
                ["out", "back", "gains"].map(|name| model.path(&format!("{name}-{device}")));
            let mut merge = program();
            merge.args(call("merge", &model.model(), &adapter, &out)).args(["--device", device]);
            succeed(merge.arg("--gains").arg(&gains));
            let mut unmerge = program();
            unmerge.args(call("unmerge", &out, &adapter, &back)).args(["--device", device]);
            succeed(unmerge.arg("--gains").arg(&gains));
            assert!(out.join("config.json").is_file());
            assert!(!out.join("pytorch_model.bin").exists());
            let mut weights = Vec::new();
            for number in 1..=3 {
                let file = format!("model-{number}-of-00003.safetensors");
                let [before, after, again] =
                    [&model.model(), &out, &back].map(|folder| folder.join(&file));
                assert_eq!(header(&before), header(&after));
                let [before, after, again] =
                    [before, after, again].map(|path| tensors::read(&path));
                for (name, tensor) in &before {
                    let module = name.strip_suffix(".weight").unwrap_or("");
                    let Some(layer) = model.layers.get(module) else {
                        assert!(after[name] == *tensor && again[name] == *tensor, "{name}");
                        continue;
                    };
                    let (old, new) = (values(tensor), values(&after[name]));
                    assert!(new != old, "{name} has not changed");
                    weights.extend(new);
                    // Rounded at W', which W = W'/g magnifies.
                    let least = layer.magnitude().iter().fold(1.0, |a: f32, b| a.min(*b));
                    assert_near(name, &values(&again[name]), &old, ulp, ulp / least);
                }
            }
            merged.push(weights);
        }
        assert_near("kernels against CPU", &merged[1], &merged[0], ulp, 1e-6);
        assert_clean(model.folder.path());
    }
}

fn header(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).expect("a file");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    bytes.truncate(8 + length);
    bytes
}

/// A base that stores its weights by input features.
#[test]
fn transposed_weights_merge() {
    let folder = TempDir::new().expect("a folder");
    let [straight, turned] = ["straight", "turned"].map(|name| folder.path().join(name));
    let shape = [12, 20];
    let weight = wave(&shape, 0.3, 0.5);
    let transposed = |values: Vec<f32>, [rows, cols]: [usize; 2]| -> Vec<f32> {
        (0..rows * cols).map(|n| values[n % rows * cols + n / rows]).collect()
    };
    let of_input = floats(&[20, 12], &transposed(values(&weight), shape));
    tensors::save(&straight, &Tensors::from([("a.weight".to_owned(), weight)]));
    tensors::save(&turned, &Tensors::from([("a.weight".to_owned(), of_input)]));
    let layers = BTreeMap::from([("a".to_owned(), layer(shape, Norm::Output, 0.1))]);
    let mut checkpoint = PeftCheckpoint::new(layers).expect("a checkpoint");
    let mut merged = Vec::new();
    for (base, by_input) in [(straight, false), (turned, true)] {
        checkpoint.config =
            checkpoint.config.clone().with("fan_in_fan_out", by_input).expect("a setting");
        let adapter = folder.path().join(format!("adapter-{by_input}"));
        checkpoint.write(&adapter, Dtype::F32).expect("room");
        for device in DEVICES {
            let out = folder.path().join(format!("{by_input}-{device}"));
            let mut merge = program();
            succeed(merge.args(call("merge", &base, &adapter, &out)).args(["--device", device]));
            let found = values(&tensors::read(&out)["a.weight"]);
            merged.push(if by_input { transposed(found, [20, 12]) } else { found });
        }
    }
    for found in &merged[1..] {
        assert_near("transposed", found, &merged[0], 1e-6, 1e-6);
    }
    // The wrong way round it does not fit.
    let out = folder.path().join("wrong");
    let adapter = folder.path().join("adapter-true");
    let base = folder.path().join("straight");
    let error = fail(program().args(call("merge", &base, &adapter, &out)), 1);
    assert!(error.contains("a.weight") && error.contains("fan_in_fan_out is true"), "{error}");
}

/// Each command in the guide, and what it prints.
#[test]
fn the_guide_shows_what_inspect_prints() {
    let guide = include_str!("../docs/norm-axis.md");
    let blocks = guide.split("```text\n$ fused-dora ").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().expect("the block"));
    let mut count = 0;
    for (command, shown) in blocks.filter_map(|block| block.split_once('\n')) {
        let mut inspect = program();
        inspect.current_dir(env!("CARGO_MANIFEST_DIR")).args(command.split(' '));
        assert_eq!(succeed(&mut inspect), shown);
        count += 1;
    }
    assert_eq!(count, 2);
}

#[test]
fn inspect_and_analyze_print_and_draw() {
    let text = succeed(program().args(["inspect", "--adapter"]).arg(sample("dora")));
    assert!(text.contains("layers.1 |    [256, 256] |    8 |  2.0000 | output |       4352 |"));
    assert!(text.contains("PEFT: 3 layers, 9306 parameters"), "{text}");
    let model = Model::new(Norm::Input, Stored::F32);
    let adapter = model.lycoris();
    let mut inspect = program();
    inspect.args(["inspect", "--base"]).arg(model.model()).arg("--adapter").arg(&adapter);
    let text = succeed(&mut inspect);
    assert!(text.contains("LyCORIS: 4 layers") && text.contains("3 file(s)"), "{text}");

    let out = model.path("out");
    succeed(program().args(call("merge", &model.model(), &adapter, &out)));
    let (svg, mut tables) = (model.path("picture.svg"), Vec::new());
    for device in DEVICES {
        let mut analyze = program();
        analyze.args(["analyze", "--base"]).arg(model.model()).arg("--changed").arg(&out);
        analyze.args(["--axis", "input", "--device", device, "--svg"]).arg(&svg);
        let text = succeed(&mut analyze);
        assert!(text.contains("4 of 5 weights moved"), "{text}");
        let drawn = fs::read_to_string(&svg).expect("a picture");
        assert!(drawn.starts_with("<svg") && drawn.matches("<circle").count() == 4);
        let lines = text.lines().filter(|line| line.starts_with("model.layers."));
        let number = |word: &str| word.trim().parse::<f32>().expect("a number");
        tables.push(lines.flat_map(|line| line.split('|').skip(2).map(number)).collect::<Vec<_>>());
    }
    assert_eq!(tables[0].len(), 10);
    assert_near("kernels against CPU", &tables[1], &tables[0], 1e-3, 1e-9);
}

#[test]
fn wrong_calls_are_explained() {
    for (arguments, part) in [
        (&[][..], "no command given"),
        (&["smerge"], "inspect, merge, unmerge or analyze"),
        (&["merge", "--base", "x"], "merge needs --adapter"),
        (&["inspect", "--adapter", "x", "--out", "y"], "--out is no option"),
        (&["analyze", "--base", "x", "--changed", "y"], "needs --axis"),
        (&["analyze", "--axis", "sideways"], "input or output"),
        (&["merge", "--device", "abacus"], "auto, cuda, emulated or cpu"),
    ] {
        let error = fail(program().args(arguments), 2);
        assert!(error.contains(part) && error.contains("Usage: fused-dora"), "{error}");
    }
    assert!(succeed(program().arg("--help")).contains("Usage: fused-dora"));
}

/// Everything in a folder, to the byte.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files.extend(snapshot(&path)),
            false => drop(files.insert(path.clone(), fs::read(path).expect("a file"))),
        }
    }
    files
}

/// Nothing is written where something is wrong, and nothing that was there is changed.
#[test]
fn bad_input_is_refused_and_nothing_is_written() {
    let model = Model::new(Norm::Output, Stored::BF16);
    let (base, adapter, out) = (model.model(), model.peft(), model.path("out"));
    let [first, weights] =
        [base.join("model-1-of-00003.safetensors"), adapter.join(PeftCheckpoint::FILE)];
    let index = base.join("model.safetensors.index.json");
    // What is done to one file, and what the error says.
    type Change<'a> = Box<dyn Fn(&mut Tensors) + 'a>;
    let changes: [(&Path, Change<'_>, &[&str]); 5] = [
        (
            &first,
            Box::new(|tensors| drop(tensors.remove("model.layers.0.proj.weight"))),
            &["model.layers.0.proj.weight", "missing"],
        ),
        (
            &first,
            Box::new(|tensors| {
                let small = to(Stored::BF16, &wave(&[40, 40], 1.0, 0.0));
                tensors.insert("model.layers.0.proj.weight".to_owned(), small);
            }),
            &["model.layers.0.proj.weight", "[40, 40]", "[48, 40]", "another model"],
        ),
        (
            &first,
            Box::new(|tensors| {
                let packed = (Stored::U8, vec![48, 40], vec![0; 48 * 40]);
                tensors.insert("model.layers.0.proj.weight".to_owned(), packed);
            }),
            &["model.layers.0.proj.weight", "U8", "quantised"],
        ),
        (
            &weights,
            Box::new(|tensors| {
                tensors.retain(|name, _| !name.ends_with("3.proj.lora_magnitude_vector"));
            }),
            &["model.layers.3.proj.lora_magnitude_vector", "missing", "use_dora"],
        ),
        (
            &weights,
            Box::new(|tensors| {
                let tensor = tensors.get_mut("base_model.model.model.layers.1.proj.lora_A.weight");
                tensor.expect("a tensor").2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }),
            &["model.layers.1.proj.weight", "not finite"],
        ),
    ];
    let refused = |changed: &Path, parts: &[&str]| {
        let before = snapshot(model.folder.path());
        let error = fail(program().args(call("merge", &base, &adapter, &out)), 1);
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
        let file = changed.file_name().expect("a name").display().to_string();
        assert!(error.contains(&file) || error.contains(".safetensors"), "{file}: {error}");
        assert!(!out.exists());
        assert!(snapshot(model.folder.path()) == before, "something was changed");
    };
    for (path, change, parts) in changes {
        let whole = fs::read(path).expect("a file");
        let mut tensors = tensors::read(path);
        change(&mut tensors);
        tensors::save(path, &tensors);
        refused(path, parts);
        fs::write(path, whole).expect("room");
    }
    for (path, bytes, parts) in [
        (&first, &b"PK\x03\x04 something else"[..], &["no safetensors file"][..]),
        (&weights, b"", &["adapter_model.safetensors", "0 bytes"]),
        (&index, b"{ \"weight_map\": { \"a\": \"../b\" } }", &["same folder"]),
        (&index, b"{}", &["index.json", "weight_map"]),
    ] {
        let whole = fs::read(path).expect("a file");
        fs::write(path, bytes).expect("room");
        refused(path, parts);
        fs::write(path, &whole[..whole.len() - 1]).expect("room");
        refused(path, &[&path.file_name().expect("a name").display().to_string()]);
        fs::remove_file(path).expect("a file");
        fs::create_dir(path).expect("room");
        refused(path, &[]);
        fs::remove_dir(path).expect("a folder");
        fs::write(path, whole).expect("room");
    }
    // And then all is well.
    succeed(program().args(call("merge", &base, &adapter, &out)));
}

#[test]
fn adapters_of_another_model_are_refused() {
    let model = Model::new(Norm::Output, Stored::BF16);
    let out = model.path("out");
    let error = fail(program().args(call("merge", &model.model(), &sample("dora"), &out)), 1);
    assert!(error.contains("layers.0.weight") && error.contains("another model"), "{error}");
    let file = sample("dora").join(PeftCheckpoint::FILE);
    let error = fail(program().args(call("merge", &model.model(), &file, &out)), 1);
    assert!(error.contains("name the folder"), "{error}");
    let error = fail(program().args(["inspect", "--adapter"]).arg(model.lycoris()), 2);
    assert!(error.contains("takes --base"), "{error}");
    // A model that is quantised, as its tensors' names tell.
    let base = model.path("packed.safetensors");
    let packed = (Stored::I32, vec![2], vec![0; 8]);
    tensors::save(&base, &Tensors::from([("layers.0.qweight".to_owned(), packed)]));
    let error = fail(program().args(call("merge", &base, &sample("dora"), &out)), 1);
    assert!(error.contains("quantised") && error.contains("layers.0.qweight"), "{error}");
    let mut analyze = program();
    analyze.args(["analyze", "--axis", "output", "--base"]).arg(digits()).arg("--changed");
    let error = fail(analyze.arg(model.model()), 1);
    assert!(error.contains("layers.0.weight") && error.contains("one model"), "{error}");
}

#[test]
fn inputs_and_what_exists_are_no_targets() {
    let model = Model::new(Norm::Output, Stored::BF16);
    let (base, adapter) = (model.model(), model.peft());
    let before = snapshot(model.folder.path());
    for (out, part) in [
        (&base, "also read (--base)"),
        (&base.join("model-1-of-00003.safetensors"), "also read (--base)"),
        (&adapter, "also read (--adapter)"),
    ] {
        let error = fail(program().args(call("merge", &base, &adapter, out)), 2);
        assert!(error.contains(part), "{error}");
    }
    let there = TempDir::new_in(model.folder.path()).expect("a folder");
    let error = fail(program().args(call("merge", &base, &adapter, there.path())), 2);
    assert!(error.contains("exists already"), "{error}");
    drop(there);
    let nowhere = model.path("no/such/folder");
    let error = fail(program().args(call("merge", &base, &adapter, &nowhere)), 1);
    assert!(error.contains("cannot be written"), "{error}");
    // The gains' place is known to be good before the work is done.
    let out = model.path("x");
    for (gains, code, part) in [
        (&out, 2, "are both"),
        (&adapter, 2, "also read (--adapter)"),
        (&nowhere, 1, "cannot be written"),
    ] {
        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &out)).arg("--gains").arg(gains);
        let error = fail(&mut merge, code);
        assert!(error.contains(part) && !error.contains("kept"), "{error}");
    }
    let error = fail(program().args(call("unmerge", &base, &adapter, &out)), 2);
    assert!(error.contains("--gains") && error.contains("model.layers.0"), "{error}");
    assert!(snapshot(model.folder.path()) == before, "something was changed");
}

/// A full disk: one of a megabyte, or where none can be mounted, a limit on the length of files.
#[test]
fn a_full_disk_leaves_nothing() {
    let model = Model::new(Norm::Output, Stored::F32);
    let big = model.model().join("model-3-of-00003.safetensors");
    let mut tensors = tensors::read(&big);
    tensors.insert("more".to_owned(), wave(&[500_000], 1.0, 0.0));
    tensors::save(&big, &tensors);
    let (base, adapter, place) = (model.model(), model.peft(), model.path("place"));
    fs::create_dir(&place).expect("room");
    let before = snapshot(model.folder.path());
    let out = place.join("out");
    let mounted = "mount -t tmpfs -o size=1m tmpfs \"$0\" || exit 77; \"$@\"; code=$?; \
                   ls -A \"$0\"; exit $code";
    let limited = "trap '' XFSZ; ulimit -f 1000; \"$@\"; code=$?; ls -A \"$0\"; exit $code";
    let run = |wrapper: &mut Command| {
        wrapper.arg(&place).arg(program().get_program());
        wrapper.args(call("merge", &base, &adapter, &out)).args(["--device", "cpu"]).output()
    };
    let tmpfs =
        run(Command::new("unshare").args(["--mount", "--map-root-user", "sh", "-c", mounted]));
    let output = match tmpfs {
        Ok(output) if text(&output).contains("cannot be written") => output,
        _ => run(Command::new("sh").args(["-c", limited])).expect("a shell"),
    };
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot be written") && text.contains("model-3-of-00003"), "{text}");
    println!("{text}");
    assert!(!text.contains(".partial"), "{text}");
    assert!(snapshot(model.folder.path()) == before, "something was changed");
}

/// 64 MiB of weights, the largest of them 8 MiB, in four files; and an adapter for them all.
fn large() -> Model {
    let folder = TempDir::new().expect("a folder");
    fs::create_dir(folder.path().join("model")).expect("room");
    let (mut layers, mut map) = (BTreeMap::new(), serde_json::Map::new());
    let shape = [LARGEST / 2 / 1024, 1024];
    for file in 0..4 {
        let name = format!("model-{file}.safetensors");
        let mut tensors = Tensors::new();
        for number in 0..2 {
            let module = format!("layers.{}", 2 * file + number);
            let bytes = (0..LARGEST / 2).flat_map(|i| [(i * 37 + i / 7) as u8, 0x3c]).collect();
            tensors.insert(format!("{module}.weight"), (Stored::BF16, shape.to_vec(), bytes));
            map.insert(format!("{module}.weight"), name.clone().into());
            layers.insert(module, layer(shape, Norm::Output, number as f32));
        }
        tensors::save(&folder.path().join("model").join(name), &tensors);
    }
    let index = json!({ "weight_map": map }).to_string();
    fs::write(folder.path().join("model/model.safetensors.index.json"), index).expect("room");
    Model { folder, layers }
}

const LARGEST: usize = 8 << 20;

/// The most memory that a process had in use so far, in bytes.
#[cfg(target_os = "linux")]
fn peak_memory(process: &Child) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.parse::<usize>().ok()?)
}

/// Started, and its output folder begun.
#[cfg(target_os = "linux")]
fn begun(model: &Model, out: &Path) -> (Child, PathBuf) {
    let mut merge = program();
    merge.args(call("merge", &model.model(), &model.peft(), out)).args(["--device", "cpu"]);
    let child = merge.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the program");
    let begun = |path: &PathBuf| {
        path.extension().is_some_and(|it| it == "partial")
            && path.join("model-1.safetensors").exists()
    };
    let unfinished = loop {
        let entries = fs::read_dir(model.folder.path()).expect("a folder");
        if let Some(path) = entries.map(|entry| entry.expect("an entry").path()).find(begun) {
            break path;
        }
        assert!(child.try_wait().expect("a process").is_none(), "it has ended already");
        sleep(Duration::from_millis(1));
    };
    (child, unfinished)
}

/// A merge that is killed midway leaves its inputs, and no target; one that is interrupted leaves
/// nothing at all; and the next one has its memory bounded by the largest weight.
#[cfg(target_os = "linux")]
#[test]
fn large_models_take_little_memory_and_killed_merges_leave_no_target() {
    let model = large();
    let (before, out) = (snapshot(&model.model()), model.path("out"));
    let (mut child, unfinished) = begun(&model, &out);
    child.kill().expect("a process");
    assert_eq!(child.wait().expect("a process").code(), None, "it was done before it was killed");
    assert!(!out.exists() && unfinished.exists());
    fs::remove_dir_all(unfinished).expect("a folder");

    let (child, unfinished) = begun(&model, &out);
    let signal = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &signal]).status().expect("a shell").success());
    let output = child.wait_with_output().expect("a process");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("interrupted: nothing was written"), "{}", text(&output));
    assert!(!out.exists() && !unfinished.exists());
    assert!(snapshot(&model.model()) == before, "an input was changed");

    let (mut child, _) = begun(&model, &out);
    let mut peak = 0;
    while child.try_wait().expect("a process").is_none() {
        peak = peak.max(peak_memory(&child).unwrap_or(0));
        sleep(Duration::from_millis(1));
    }
    assert!(out.is_dir());
    // For a gigabyte, one and a half times the largest weight and 200 MB; so for a sixteenth of it:
    let bound = LARGEST * 3 / 2 + 200_000_000 / 16;
    println!("peak memory: {peak} bytes of {bound}");
    assert!((1..=bound).contains(&peak), "{peak} bytes, more than {bound}");
    compare_first_layer(&model, &out);
}

/// Of weights that are read in pieces, the first one: W' at the pieces' edges, and how far it moved.
#[cfg(target_os = "linux")]
fn compare_first_layer(model: &Model, out: &Path) {
    let layer = &model.layers["layers.0"];
    let ([rows, columns], rank, scaling) = (layer.shape(), layer.rank(), layer.scaling());
    let weight = |folder: &Path| -> Vec<f64> {
        let tensors = tensors::read(&folder.join("model-0.safetensors"));
        values(&tensors["layers.0.weight"]).into_iter().map(f64::from).collect()
    };
    let (before, after) = (weight(&model.model()), weight(out));
    for row in [0, 1, rows / 2 - 1, rows / 2, rows - 1] {
        let v: Vec<f64> = (0..columns)
            .map(|column| {
                let product = (0..rank).map(|r| {
                    f64::from(layer.lora_b()[row * rank + r] * scaling)
                        * f64::from(layer.lora_a()[r * columns + column])
                });
                before[row * columns + column] + product.sum::<f64>()
            })
            .collect();
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let gain = f64::from(layer.magnitude()[row]) / norm;
        for (column, v) in v.iter().enumerate() {
            let (found, expected) = (after[row * columns + column], v * gain);
            let error = (found - expected).abs();
            assert!(error <= expected.abs() / 250.0, "[{row}, {column}]: {found}, {expected}");
        }
    }
    let mut analyze = program();
    analyze.args(["analyze", "--device", "cpu", "--axis", "output", "--base"]).arg(model.model());
    let text = succeed(analyze.arg("--changed").arg(out));
    let line = text.lines().find(|line| line.starts_with("layers.0.weight")).expect("its line");
    let found: Vec<f64> = line.split('|').skip(2).map(|w| w.trim().parse().unwrap()).collect();
    let change: Vec<f64> =
        after.iter().zip(&before).map(|(after, before)| after - before).collect();
    let exact = vec![0.0; change.len()];
    let shape = [rows, columns];
    let (moved, _) = reference::decompose(shape, Norm::Output, &before, &change, &exact);
    for (found, expected) in found.iter().zip([moved.magnitude, moved.direction]) {
        assert!((found - expected).abs() <= 1e-4 * expected, "{line}: {expected:e}");
    }
}
