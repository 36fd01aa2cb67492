//! The GPUs whose launches are modelled, and what is assumed of them beyond published peak rates.

use crate::gpu::Gpu;

/// A GPU under load.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub gpu: &'static Gpu,
    /// The clock that it keeps while its tensor cores work.
    pub ghz: f64,
    /// The share of the in-order model's rate that two main tiles on a multiprocessor reach. The
    /// model knows no bank conflicts, no traffic of the L2 cache and no skew between warps.
    pub share: f64,
    /// The same of one main tile beside nothing.
    pub alone: f64,
}

/// Published rates of square products in TFLOP/s, of a kernel written by hand with `mma.sync` and
/// of cuBLAS.
///
/// A100 PCIe of 300 W and RTX 5090 limited to 400 W, bf16: github.com/gau-nernst/learn-cuda,
/// `02b_matmul_sm80`, "v7" and cuBLAS 13.0. H100 SXM, f16:
/// github.com/waynehacking8/blackwell-tensorcore-kernels, `results/bench.csv`.
pub const PUBLISHED: [(&str, usize, Option<f64>, f64); 9] = [
    ("A100", 2048, Some(174.76), 151.15),
    ("A100", 4096, Some(166.73), 227.49),
    ("A100", 8192, Some(141.76), 228.16),
    ("RTX 5090", 2048, Some(133.15), 140.10),
    ("RTX 5090", 4096, Some(174.54), 159.50),
    ("RTX 5090", 8192, Some(162.81), 200.32),
    ("H100", 2048, None, 554.96),
    ("H100", 4096, None, 732.58),
    ("H100", 8192, None, 761.71),
];

/// Where clocks and shares come from, for the document.
pub const CALIBRATION: &str = "\
| GPU | clock, GHz | share | from |
|---|--:|--:|---|
| A100 | 1.35 | 0.87 | an assumption: the published card has 300 W, the modelled one 400 W |
| RTX 4090 | 2.52 | 0.93 | `mma.sync` kernels written by hand reach 98 to 100 % of cuBLAS on RTX \
4090 and L20, and 105 to 113 of L20's 119.5 TFLOP/s \
(github.com/xlite-dev/LeetCUDA, kernels/hgemm) |
| RTX 5090 | 2.41 | 0.93 | that of the RTX 4090: the modelled rates are then near the published \
ones at 2048³, 4096³ and 8192³ |
| H100 | 1.60 | 0.80 | an assumption. FlashAttention-2, which uses `mma.sync` and spends time on \
softmax too, reaches 35 % of 989 TFLOP/s (arXiv:2407.08608), and this share is 41 % |
";

/// All of them, by their names in [`GPUS`](crate::gpu::GPUS).
const ALL: [(&str, f64, f64, f64); 4] = [
    ("A100", 1.35, 0.87, 0.80),
    ("RTX 4090", 2.52, 0.93, 0.93),
    ("RTX 5090", 2.407, 0.93, 0.93),
    ("H100", 1.60, 0.80, 0.80),
];

impl Device {
    pub fn all() -> Result<Vec<Self>, String> {
        let device = |(name, ghz, share, alone)| {
            let gpu = Gpu::by_name(name).ok_or_else(|| format!("{name}: no such GPU is known"))?;
            Ok(Self { gpu, ghz, share, alone })
        };
        ALL.into_iter().map(device).collect()
    }

    /// With other shares, by a factor.
    pub fn faster(self, times: f64) -> Self {
        Self { share: self.share * times, alone: self.alone * times, ..self }
    }

    pub fn multiprocessors(&self) -> usize {
        self.gpu.limits.sm_count as usize
    }
}
