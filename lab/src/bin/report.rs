//! See `fused_dora_lab::report`.

fn main() -> std::process::ExitCode {
    fused_dora_lab::report::main()
}
