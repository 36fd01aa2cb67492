//! TEMPORARY
#![allow(missing_docs, dead_code)]
pub(crate) mod dropout {
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Dropout {
        pub(crate) seed: u64,
        pub(crate) threshold: u32,
        pub(crate) scale: f32,
    }
    impl Default for Dropout {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for Dropout {}
}
pub(crate) mod forward {
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct ForwardParams {
        pub(crate) x: u64,
        pub(crate) weight: u64,
        pub(crate) a: u64,
        pub(crate) sb: u64,
        pub(crate) bias: u64,
        pub(crate) gain: u64,
        pub(crate) xs: u64,
        pub(crate) rest: u64,
        pub(crate) h: u64,
        pub(crate) z: u64,
        pub(crate) y: u64,
        pub(crate) partial_h: u64,
        pub(crate) partial_z: u64,
        pub(crate) board: u64,
        pub(crate) h_counters: u64,
        pub(crate) z_counters: u64,
        pub(crate) seed: u64,
        pub(crate) dropout: super::dropout::Dropout,
        pub(crate) low_rank_tiles: i32,
        pub(crate) h_splits: i32,
        pub(crate) h_chunk: i32,
        pub(crate) z_splits: i32,
        pub(crate) z_chunk: i32,
        pub(crate) tokens: i32,
        pub(crate) in_features: i32,
        pub(crate) out_features: i32,
        pub(crate) padded_rank: i32,
        pub(crate) x_stride: i32,
        pub(crate) y_stride: i32,
        pub(crate) gain_on_input: i32,
        pub(crate) aligned: i32,
        pub(crate) _padding: i32,
    }
    impl Default for ForwardParams {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for ForwardParams {}
}
pub(crate) mod backward {
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct BackwardParams {
        pub(crate) grad_output: u64,
        pub(crate) output: u64,
        pub(crate) x: u64,
        pub(crate) weight: u64,
        pub(crate) bias: u64,
        pub(crate) h: u64,
        pub(crate) a: u64,
        pub(crate) sb: u64,
        pub(crate) gsb: u64,
        pub(crate) input_gain: u64,
        pub(crate) output_gain: u64,
        pub(crate) norm: u64,
        pub(crate) scaled_grad: u64,
        pub(crate) p: u64,
        pub(crate) grad_input: u64,
        pub(crate) grad_lora_a: u64,
        pub(crate) grad_lora_b: u64,
        pub(crate) grad_magnitude: u64,
        pub(crate) grad_bias: u64,
        pub(crate) partial_p: u64,
        pub(crate) sum_b: u64,
        pub(crate) sum_bias: u64,
        pub(crate) sum_m: u64,
        pub(crate) sum_a: u64,
        pub(crate) partial_d: u64,
        pub(crate) board: u64,
        pub(crate) chunk_counters: u64,
        pub(crate) strip_turns: u64,
        pub(crate) column_counters: u64,
        pub(crate) lora_a_turns: u64,
        pub(crate) dropout: super::dropout::Dropout,
        pub(crate) scaling: f32,
        pub(crate) tokens: i32,
        pub(crate) in_features: i32,
        pub(crate) out_features: i32,
        pub(crate) rank: i32,
        pub(crate) padded_rank: i32,
        pub(crate) grad_stride: i32,
        pub(crate) output_stride: i32,
        pub(crate) x_stride: i32,
        pub(crate) grad_input_stride: i32,
        pub(crate) adapter_tiles: i32,
        pub(crate) input_tiles: i32,
        pub(crate) d_splits: i32,
        pub(crate) d_chunk: i32,
        pub(crate) chunk: i32,
        pub(crate) lora_a_chunk: i32,
        pub(crate) peft_dropout: i32,
        pub(crate) aligned: i32,
        pub(crate) accumulate: i32,
        pub(crate) _padding: i32,
    }
    impl Default for BackwardParams {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for BackwardParams {}
}
pub(crate) mod prepare {
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct PrepareParams {
        pub(crate) weight: u64,
        pub(crate) lora_a: u64,
        pub(crate) lora_b: u64,
        pub(crate) magnitude: u64,
        pub(crate) magnitude_out: u64,
        pub(crate) bias: u64,
        pub(crate) norm: u64,
        pub(crate) gain: u64,
        pub(crate) a: u64,
        pub(crate) sb: u64,
        pub(crate) gsb: u64,
        pub(crate) packed_bias: u64,
        pub(crate) partials: u64,
        pub(crate) counters: u64,
        pub(crate) scaling: f32,
        pub(crate) in_features: i32,
        pub(crate) out_features: i32,
        pub(crate) rank: i32,
        pub(crate) padded_rank: i32,
        pub(crate) norm_on_input: i32,
        pub(crate) has_norm: i32,
        pub(crate) split_tiles: i32,
        pub(crate) aligned: i32,
        pub(crate) aligned_a: i32,
        pub(crate) aligned_b: i32,
        pub(crate) part: i32,
    }
    impl Default for PrepareParams {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for PrepareParams {}
}
pub(crate) mod norm_gradient {
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct NormGradientParams {
        pub(crate) weight: u64,
        pub(crate) lora_a: u64,
        pub(crate) lora_b: u64,
        pub(crate) gain: u64,
        pub(crate) norm: u64,
        pub(crate) grad_magnitude: u64,
        pub(crate) grad_lora_a: u64,
        pub(crate) grad_lora_b: u64,
        pub(crate) partial_a: u64,
        pub(crate) partial_b: u64,
        pub(crate) grams: u64,
        pub(crate) scaling: f32,
        pub(crate) in_features: i32,
        pub(crate) out_features: i32,
        pub(crate) rank: i32,
        pub(crate) padded_rank: i32,
        pub(crate) norm_on_input: i32,
        pub(crate) strips: i32,
        pub(crate) chunk: i32,
        pub(crate) chunks: i32,
        pub(crate) aligned: i32,
        pub(crate) aligned_a: i32,
        pub(crate) aligned_b: i32,
    }
    impl Default for NormGradientParams {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for NormGradientParams {}
}
pub(crate) mod merge {
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct MergeParams {
        pub(crate) source: u64,
        pub(crate) target: u64,
        pub(crate) lora_a: u64,
        pub(crate) lora_b: u64,
        pub(crate) gain: u64,
        pub(crate) report: u64,
        pub(crate) partials: u64,
        pub(crate) counter: u64,
        pub(crate) scaling: f32,
        pub(crate) in_features: i32,
        pub(crate) out_features: i32,
        pub(crate) rank: i32,
        pub(crate) gain_on_input: i32,
        pub(crate) merged_dtype: i32,
        pub(crate) aligned: i32,
        pub(crate) aligned_a: i32,
        pub(crate) aligned_b: i32,
        pub(crate) _padding: i32,
    }
    impl Default for MergeParams {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for MergeParams {}
}
pub(crate) mod decompose {
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct DecomposeParams {
        pub(crate) weight: u64,
        pub(crate) changed: u64,
        pub(crate) lora_a: u64,
        pub(crate) lora_b: u64,
        pub(crate) gain: u64,
        pub(crate) result: u64,
        pub(crate) partials: u64,
        pub(crate) strip_sums: u64,
        pub(crate) strip_counters: u64,
        pub(crate) counter: u64,
        pub(crate) scaling: f32,
        pub(crate) in_features: i32,
        pub(crate) out_features: i32,
        pub(crate) rank: i32,
        pub(crate) gain_on_input: i32,
        pub(crate) on_input: i32,
        pub(crate) changed_dtype: i32,
        pub(crate) split_tiles: i32,
        pub(crate) aligned: i32,
        pub(crate) aligned_a: i32,
        pub(crate) aligned_b: i32,
        pub(crate) _padding: i32,
    }
    impl Default for DecomposeParams {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for DecomposeParams {}
}
pub(crate) mod adamw {
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Part {
        pub(crate) start: i64,
        pub(crate) len: i64,
        pub(crate) first_chunk: u32,
        pub(crate) learning_rate_factor: f32,
        pub(crate) weight_decay: f32,
        pub(crate) _padding: u32,
    }
    impl Default for Part {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for Part {}
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Parts {
        pub(crate) part: [Part; 64],
        pub(crate) count: u32,
        pub(crate) chunks: u32,
    }
    impl Default for Parts {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for Parts {}
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct AdamWParams {
        pub(crate) parameters: u64,
        pub(crate) gradients: u64,
        pub(crate) exp_avg: u64,
        pub(crate) exp_avg_sq: u64,
        pub(crate) norm: u64,
        pub(crate) schedule: u64,
        pub(crate) learning_rate: f32,
        pub(crate) correction: f32,
        pub(crate) correction_sq: f32,
        pub(crate) rate: f32,
        pub(crate) rate_sq: f32,
        pub(crate) log_beta1: f32,
        pub(crate) log_beta2: f32,
        pub(crate) epsilon: f32,
        pub(crate) max_norm: f32,
        pub(crate) aligned: i32,
        pub(crate) parts: Parts,
    }
    impl Default for AdamWParams {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for AdamWParams {}
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct GradientNormParams {
        pub(crate) gradients: u64,
        pub(crate) norm: u64,
        pub(crate) partials: u64,
        pub(crate) counter: u64,
        pub(crate) first: i32,
        pub(crate) last: i32,
        pub(crate) aligned: i32,
        pub(crate) _padding: i32,
        pub(crate) parts: Parts,
    }
    impl Default for GradientNormParams {
        fn default() -> Self {
            unsafe { std::mem::zeroed() }
        }
    }
    unsafe impl cudarc::driver::DeviceRepr for GradientNormParams {}
}
