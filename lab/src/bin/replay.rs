//! See `fused_dora_lab::replay`.

fn main() -> std::process::ExitCode {
    fused_dora_lab::replay::main()
}
