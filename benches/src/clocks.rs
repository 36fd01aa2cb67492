//! What a GPU does while it is timed: its clock, its power, and why the driver holds it back.

use std::collections::BTreeSet;

use fused_dora::cudarc::driver::CudaContext;
use fused_dora::cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use fused_dora_testkit::bench::record::Clocks;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::Clock;

/// NVML as drivers install it; the name without a version is of developers' packages.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// One GPU's sensors, by NVML; where there is none, as in some containers, nothing is read.
pub struct Sensors {
    nvml: Option<Nvml>,
    pci_bus_id: String,
}

/// What was read in some rounds.
#[derive(Clone, Default)]
pub struct Readings {
    sm_mhz: Vec<f64>,
    watts: Vec<f64>,
    throttled: BTreeSet<String>,
}

impl Sensors {
    /// The sensors of a context's GPU.
    pub fn of(context: &CudaContext) -> Self {
        let attribute = |which| context.attribute(which).unwrap_or(0);
        let domain = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID);
        let bus = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
        let device = attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID);
        Self {
            nvml: Nvml::builder().lib_path(LIBRARY.as_ref()).init().ok(),
            pci_bus_id: format!("{domain:08x}:{bus:02x}:{device:02x}.0"),
        }
    }

    /// Adds a reading: of what cannot be read there is none.
    pub fn read(&self, readings: &mut Readings) {
        let Some(nvml) = &self.nvml else { return };
        let Ok(device) = nvml.device_by_pci_bus_id(self.pci_bus_id.as_str()) else { return };
        readings.sm_mhz.extend(device.clock_info(Clock::SM).ok().map(f64::from));
        readings
            .watts
            .extend(device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3));
        let reasons = device.current_throttle_reasons().unwrap_or(ThrottleReasons::empty());
        // A GPU that waits for the host is idle, not held back.
        let reasons = reasons - ThrottleReasons::GPU_IDLE - ThrottleReasons::NONE;
        readings.throttled.extend(reasons.iter_names().map(|(name, _)| name.to_lowercase()));
    }
}

impl Readings {
    /// Their summary; `None` if there is no clock among them.
    pub fn summary(mut self) -> Option<Clocks> {
        self.sm_mhz.sort_by(f64::total_cmp);
        self.watts.sort_by(f64::total_cmp);
        let middle = |sorted: &[f64]| sorted.get(sorted.len() / 2).copied();
        let [least, most] = [*self.sm_mhz.first()?, *self.sm_mhz.last()?];
        Some(Clocks {
            sm_mhz: [least, middle(&self.sm_mhz)?, most],
            watts: middle(&self.watts).unwrap_or(0.0),
            throttled: self.throttled.into_iter().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_summed_up() {
        let readings = Readings {
            sm_mhz: vec![1410.0, 1200.0, 1395.0],
            watts: vec![300.0, 390.0, 400.0],
            throttled: BTreeSet::from(["sw_power_cap".to_owned()]),
        };
        let clocks = readings.summary().expect("clocks");
        assert_eq!(clocks.sm_mhz, [1200.0, 1395.0, 1410.0]);
        assert_eq!(clocks.watts, 390.0);
        assert_eq!(clocks.throttled, ["sw_power_cap"]);
        assert_eq!(Readings::default().summary(), None);
    }
}
