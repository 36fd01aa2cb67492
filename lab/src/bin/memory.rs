//! See `fused_dora_lab::memory`.

fn main() -> std::process::ExitCode {
    fused_dora_lab::memory::main()
}
