//! The program `memory`, and the guide that has its tables.

use std::process::Command;

#[test]
fn the_guide_has_the_tables() {
    let output = Command::new(env!("CARGO_BIN_EXE_memory")).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let tables = String::from_utf8(output.stdout).unwrap();
    let guide = fused_dora_testkit::workspace().join("docs/memory-and-speed.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let mut found = 0;
    for table in tables.split("\n\n") {
        assert!(guide.contains(table.trim()), "docs/memory-and-speed.md lacks this:\n{table}");
        found += 1;
    }
    assert_eq!(found, 2);
}

#[test]
fn arguments_are_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_memory")).arg("--tokens").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let help = Command::new(env!("CARGO_BIN_EXE_memory")).arg("--help").output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("Usage: memory"));
}
