//! The report of the benches' results, as a user makes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use approx::assert_relative_eq;
use fused_dora_testkit::bench::record::{
    Clocks, Counts, FUSED, MICRO_BATCH, Peaks, Record, Results, Time, Work,
};

const PEAKS: Peaks = Peaks { bytes_per_second: 1e12, flop_per_second: [1e14, 1e13] };

/// A record of a layer of some tokens and rank, of `median_us` or of counts.
fn record(contender: &str, [tokens, rank]: [usize; 2], median_us: Option<f64>) -> Record {
    let work = Work { bytes: 2_000_000, flop: 400_000_000 };
    let time = |median_us| Time { median_us, quartiles_us: [median_us; 2], samples: 40 };
    let counts = Counts { launches: 5, dram_bytes: 3_000_000, l2_bytes: 4_000_000, mma: 1000 };
    Record {
        contender: contender.to_owned(),
        phase: MICRO_BATCH.to_owned(),
        dtype: "bf16".to_owned(),
        norm: "Output".to_owned(),
        tokens,
        in_features: 4096,
        out_features: 4096,
        rank,
        graph: false,
        work: if contender == FUSED { vec![work] } else { Vec::new() },
        time: median_us.map(time),
        clocks: None,
        counts: if median_us.is_none() { Some(counts) } else { None },
    }
}

/// Results of layers of several tokens and ranks in two ways.
fn results(emulated: bool) -> Results {
    let layers = [[512, 16], [2048, 16], [8192, 16], [8192, 64]];
    let of_layer = |[tokens, rank]: [usize; 2]| {
        let plain = tokens as f64 / 4.0;
        let time = |factor: f64| (!emulated).then_some(factor * plain);
        [
            record(FUSED, [tokens, rank], time(1.25)),
            record("plain linear (cuBLASLt)", [tokens, rank], time(1.0)),
        ]
    };
    Results {
        bench: "layer".to_owned(),
        device: "Some GPU".to_owned(),
        emulated,
        products: Some("cuBLASLt".to_owned()),
        peaks: (!emulated).then_some(PEAKS),
        left_out: Vec::new(),
        records: layers.into_iter().flat_map(of_layer).collect(),
    }
}

#[test]
fn a_bound_is_the_longer_of_bytes_and_operations() {
    let mut fused = record(FUSED, [512, 16], Some(8.0));
    // 2 µs of bytes, 4 µs of operations.
    assert_relative_eq!(fused.bound_us(&PEAKS).expect("work"), 4.0);
    let plain = record("plain linear", [512, 16], Some(5.0));
    let line = fused.line(Some(&PEAKS), Some(&plain));
    assert_eq!(line, "8.0 µs | 250 GB/s | 50.0 TFLOP/s | 50 % of the bound | 1.600 × plain linear");
    // Parts run one after the other: 4 µs, and 3 µs of bytes.
    fused.work.push(Work { bytes: 3_000_000, flop: 0 });
    assert_relative_eq!(fused.bound_us(&PEAKS).expect("work"), 7.0);
    // f32 has another peak; what is not known is not printed.
    fused.dtype = "f32".to_owned();
    assert_relative_eq!(fused.bound_us(&PEAKS).expect("work"), 43.0);
    assert_eq!(fused.line(None, None), "8.0 µs | 625 GB/s | 50.0 TFLOP/s");
    assert_eq!(plain.line(Some(&PEAKS), None), "5.0 µs");
    assert_eq!(record(FUSED, [512, 16], None).line(Some(&PEAKS), None), "");
}

#[test]
fn medians_and_quartiles_lie_between_samples() {
    let time = Time::new(vec![4e-6, 1e-6, 3e-6, 2e-6]).expect("samples");
    assert_relative_eq!(time.median_us, 2.5, max_relative = 1e-12);
    assert_relative_eq!(time.quartiles_us[0], 1.75, max_relative = 1e-12);
    assert_relative_eq!(time.quartiles_us[1], 3.25, max_relative = 1e-12);
    assert_eq!(Time::new(Vec::new()), None);
}

/// An empty folder of this name.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("an old folder of this test");
    }
    folder
}

/// Runs the program.
fn report(arguments: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_report")).args(arguments).output().expect("the program")
}

fn report_of(from: &Path, out: &Path) -> Output {
    report(&[Path::new("--from"), from, Path::new("--out"), out])
}

#[test]
fn times_become_tables_and_pictures() {
    let (from, out) = (folder("times"), folder("times-report"));
    let results = results(false);
    results.write(&from).expect("a writable folder");
    let output = report_of(&from, &out);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(out.join("REPORT.md")).expect("a report");
    assert!(text.starts_with("# Benchmarks: Some GPU\n"), "{text}");
    for expected in [
        "forward and backward, bf16 norm=Output T=8192 I=4096 O=4096 r=64",
        "| fused                   | 2560.0 µs | 2560.0–2560.0 | 1.000 |",
        "| plain linear (cuBLASLt) | 2048.0 µs | 2048.0–2048.0 | 1.250 |",
        "![forward and backward, ratio by tokens: bf16, norm Output, I=4096, O=4096, r=16]",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    for picture in ["time-by-tokens", "ratio-by-tokens", "time-by-rank", "ratio-by-rank"] {
        let path = out.join(format!("{picture}-bf16-output.svg"));
        let picture = fs::read_to_string(&path).expect("a picture");
        assert!(picture.starts_with("<svg") && picture.contains("fused"), "{}", path.display());
    }
    // The folder holds all that it takes to make the report again, there.
    assert_eq!(Results::read_all(&out).expect("results"), [results]);
    assert!(
        fs::read_to_string(out.join("machine.json")).expect("a description").contains("Some GPU")
    );
    assert!(report_of(&out, &out).status.success());
}

/// Of a folder of executables: phases apart, as graphs as well, with the GPU's clocks, and some left out.
#[test]
fn graphs_clocks_and_what_is_left_out_are_reported() {
    let (from, out) = (folder("layers"), folder("layers-report"));
    let mut layers = Results { bench: "layers".to_owned(), ..results(false) };
    layers.device = "NVIDIA A100-SXM4-80GB".to_owned();
    let own = |record: &Record| {
        let time = record.time.map(|time| Time { median_us: 2.0 * time.median_us, ..time });
        let contender = "plain linear (own GEMM)".to_owned();
        (record.contender != FUSED).then(|| Record { contender, time, ..record.clone() })
    };
    layers.records.extend(layers.records.iter().filter_map(own).collect::<Vec<_>>());
    for record in &mut layers.records {
        record.phase = "backward".to_owned();
        record.clocks = Some(Clocks {
            sm_mhz: [1200.0, 1395.0, 1410.0],
            watts: 390.0,
            throttled: vec!["sw_power_cap".to_owned()],
        });
    }
    let graph = |record: &Record| Record { graph: true, ..record.clone() };
    layers.records.extend(layers.records.iter().map(graph).collect::<Vec<_>>());
    layers.left_out.push("bf16 norm=Input T=8192: no time was left".to_owned());
    layers.write(&from).expect("a writable folder");
    let output = report_of(&from, &out);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(out.join("REPORT.md")).expect("a report");
    for expected in [
        "backward, as a graph, bf16 norm=Output T=8192 I=4096 O=4096 r=64",
        "SM clock 1395 MHz (1200–1410), 390 W, held back by sw_power_cap",
        "- left out: bf16 norm=Input T=8192: no time was left",
        "](backward-ratio-by-tokens-bf16-output.svg)",
        "## Model and measurement",
        // 1.25 of cuBLASLt's time is 0.625 of twice that.
        "| backward, norm=Output T=8192 r=16 |      4096 |",
        "|  0.62 |",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

#[test]
fn counts_are_not_times() {
    let (from, out) = (folder("counts"), folder("counts-report"));
    results(true).write(&from).expect("a writable folder");
    let output = report_of(&from, &out);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(out.join("REPORT.md")).expect("a report");
    assert!(text.contains("No time was measured") && !text.contains("µs"), "{text}");
    assert!(text.contains("| fused                   |        5 |  1.00 |   3.000 |"), "{text}");
    let pictures = fs::read_dir(&out).expect("a folder").flatten();
    let mut pictures =
        pictures.filter(|entry| entry.path().extension().is_some_and(|e| e == "svg"));
    assert!(pictures.next().is_none());
}

#[test]
fn what_cannot_be_reported_is_an_error() {
    let out = folder("nothing-report");
    let failure = |from: &Path, complaint: &str| {
        let output = report_of(from, &out);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(complaint), "{text}");
        assert!(!out.exists(), "{complaint}: something was written");
    };
    failure(&folder("absent"), "run `cargo bench` first");
    let empty = folder("empty");
    fs::create_dir_all(&empty).expect("a writable folder");
    failure(&empty, "run `cargo bench` first");
    fs::write(empty.join("other.json"), "{}").expect("a writable folder");
    failure(&empty, "other.json is not of a bench");

    let mixed = folder("mixed");
    results(false).write(&mixed).expect("a writable folder");
    let other = Results { bench: "adamw".to_owned(), device: "Other".to_owned(), ..results(false) };
    other.write(&mixed).expect("a writable folder");
    failure(&mixed, "results of Other (adamw) and of Some GPU (layer)");

    let output = report(&[Path::new("--frm")]);
    assert_eq!(output.status.code(), Some(2));
}
