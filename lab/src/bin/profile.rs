//! See `fused_dora_lab::profile`.

fn main() -> std::process::ExitCode {
    fused_dora_lab::profile::main()
}
