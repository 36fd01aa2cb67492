//! See `fused_dora_lab::mutation`.

fn main() -> std::process::ExitCode {
    fused_dora_lab::mutation::main()
}
