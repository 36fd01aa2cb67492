//! `inspect` and `analyze`: what they print and draw.

use std::fs;

use fused_dora::Norm;
use fused_dora::peft::safetensors::Dtype as Stored;

use crate::model::Model;
use crate::program::{DEVICES, assert_near, call, program, sample, succeed, workspace};

/// Each command in the guide, and what it prints.
#[test]
fn the_guide_shows_what_inspect_prints() {
    let guide = fs::read_to_string(workspace().join("docs/norm-axis.md")).expect("the guide");
    let blocks = guide.split("```text\n$ fused-dora ").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().expect("the block"));
    let mut count = 0;
    for (command, shown) in blocks.filter_map(|block| block.split_once('\n')) {
        let mut inspect = program();
        inspect.current_dir(workspace()).args(command.split(' '));
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
