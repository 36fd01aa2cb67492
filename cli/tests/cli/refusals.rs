//! Bad files, wrong targets and full disks: what is refused, and that nothing is left.

use std::fs;
use std::path::Path;
use std::process::Command;

use fused_dora::Norm;
use fused_dora::peft::PeftCheckpoint;
use fused_dora::peft::safetensors::Dtype as Stored;
use tempfile::TempDir;

use crate::model::Model;
use crate::program::{call, digits, fail, program, sample, snapshot, succeed, text};
use crate::tensors::{self, Tensors, to, wave};

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
    assert!(error.contains("needs --base"), "{error}");
    // A quantised model: its tensors' names show that it is.
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

/// Where stdout takes nothing, the error says so, and that the output is complete.
#[cfg(target_os = "linux")]
#[test]
fn reports_that_cannot_be_printed_are_errors() {
    let model = Model::new(Norm::Output, Stored::F32);
    let (base, adapter) = (model.model(), model.peft());
    let full = || fs::File::options().write(true).open("/dev/full").expect("a full device");
    for command in [
        program().args(["inspect", "--adapter"]).arg(&adapter),
        program().args(["completions", "bash"]),
        program().arg("--version"),
        program().args(["merge", "--help"]),
    ] {
        let error = fail(command.stdout(full()), 1);
        assert!(error.contains("stdout cannot be written"), "{error}");
    }
    for format in [&[][..], &["--json"]] {
        let out = model.path(&format!("out{}", format.len()));
        let mut merge = program();
        merge.args(call("merge", &base, &adapter, &out)).args(["--device", "cpu"]).args(format);
        let error = fail(merge.stdout(full()), 1);
        assert!(error.contains("is complete, but its report cannot be"), "{error}");
        assert!(out.join("config.json").is_file());
    }
}

/// Whoever reads stdout may stop: files are written all the same, and nothing panics.
#[cfg(unix)]
#[test]
fn a_closed_pipe_stops_no_work() {
    let model = Model::new(Norm::Output, Stored::F32);
    let (base, adapter, out) = (model.model(), model.peft(), model.path("out"));
    let closed = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        writer
    };
    let analyzed = model.path("analyzed.svg");
    let mut merge = program();
    merge.args(call("merge", &base, &adapter, &out)).args(["--device", "cpu"]);
    let mut unmerge = program();
    let gains = model.path("gains");
    let back = model.path("back");
    let mut other = program();
    other.args(call("merge", &base, &adapter, &model.path("other"))).arg("--json");
    other.arg("--gains").arg(&gains).args(["--device", "cpu"]);
    unmerge.args(call("unmerge", &model.path("other"), &adapter, &back));
    unmerge.arg("--gains").arg(&gains).args(["--device", "cpu"]);
    let mut analyze = program();
    analyze.args(["analyze", "--axis", "output", "--device", "cpu", "--base"]).arg(&base);
    analyze.arg("--changed").arg(&out).arg("--svg").arg(&analyzed);
    let mut inspect = program();
    inspect.args(["inspect", "--adapter"]).arg(&adapter);
    let mut completions = program();
    completions.args(["completions", "zsh"]);
    for mut command in [merge, other, unmerge, analyze, inspect, completions] {
        let output = command.stdout(closed()).output().expect("the program");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(output.stderr.is_empty(), "{}", text(&output));
    }
    assert!(out.join("config.json").is_file() && back.join("config.json").is_file());
    assert!(analyzed.is_file());
    // An error is an error, also where stderr takes nothing.
    let mut merge = program();
    merge.args(call("merge", &base, &adapter, &out)).stdout(closed()).stderr(closed());
    assert_eq!(merge.status().expect("the program").code(), Some(2));
}
