//! See `fused_dora_lab::limits`.

fn main() -> std::process::ExitCode {
    fused_dora_lab::limits::main()
}
