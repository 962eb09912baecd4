use super::{cuda_facts, device_facts};
use crate::exec::{Around, Probe, Prober};
use crate::session::start_threads;
use crate::{Device, Element, Session, SessionBuilder};
use anyhow::{Context, Result, bail, ensure};
use laud_kernels::cuda::{Cuda, Driver};
use laud_kernels::{CUDA_SOURCE_HASH, Cpu, Isa, SOURCE_HASH};
use laud_models::NetSpec;
use laud_predictor::profile::Profile;
use laud_predictor::workload::DType;
use laud_predictor::{DeviceFacts, DeviceKind};
use std::path::Path;
use std::sync::Arc;

/// What is calibrated: a device and what it stores.
#[derive(Clone)]
pub struct Target {
    place: Place,
    element: Element,
}

#[derive(Clone)]
enum Place {
    Cpu(Isa),
    Cuda(Arc<dyn Driver>),
}

impl Target {
    /// The CPU with an instruction set.
    pub fn cpu(isa: Isa, element: Element) -> Self {
        Self { place: Place::Cpu(isa), element }
    }

    /// A CUDA device.
    pub fn cuda(device: Arc<dyn Driver>, element: Element) -> Self {
        Self { place: Place::Cuda(device), element }
    }

    /// What it says about itself.
    pub fn facts(&self) -> DeviceFacts {
        match &self.place {
            Place::Cpu(isa) => device_facts(*isa, self.element),
            Place::Cuda(device) => cuda_facts(device.properties()),
        }
    }

    /// What it stores, as the predictor names it.
    pub fn dtype(&self) -> DType {
        self.element.dtype()
    }

    /// Version of the driver, where there is one.
    pub fn driver(&self) -> Option<String> {
        let Place::Cuda(device) = &self.place else { return None };
        let version = device.properties().driver_version;
        Some(format!("CUDA {}.{}", version / 1000, version % 1000 / 10))
    }

    /// What times kernel calls one by one; a CUDA device has one thread.
    ///
    /// # Errors
    /// When the device has no such element type, threads cannot be started or memory runs out.
    pub fn prober(&self, threads: usize) -> Result<Box<dyn Prober>> {
        let around = Around::cpu(self.facts().l2_bytes, threads, self.dtype().bytes() as usize);
        Ok(match (&self.place, self.element) {
            (Place::Cuda(device), element) => {
                ensure!(threads == 1, "a CUDA device is calibrated with one thread, not {threads}");
                let around = Around::gpu(device.properties().l2_bytes, self.dtype().bytes() as usize);
                Box::new(Probe::new(Cuda::new(device.clone(), element.precision()?), around)?)
            }
            (Place::Cpu(isa), Element::F32) => {
                Box::new(Probe::new(Cpu::<f32>::new(*isa, start_threads(threads)?), around)?)
            }
            (Place::Cpu(isa), Element::Bf16) => {
                Box::new(Probe::new(Cpu::<half::bf16>::new(*isa, start_threads(threads)?), around)?)
            }
            (Place::Cpu(isa), Element::Int8) => {
                Box::new(Probe::new(Cpu::<i8>::new(*isa, start_threads(threads)?), around)?)
            }
            (Place::Cpu(_), Element::F16 | Element::Tf32) => {
                bail!("the cpu has f32, bf16 and int8; f16 and tf32 need a CUDA device")
            }
        })
    }

    /// Begins a session on it.
    pub fn session(&self, spec: NetSpec, threads: usize) -> SessionBuilder {
        let builder = Session::builder(spec).element(self.element);
        match &self.place {
            Place::Cpu(isa) => builder.device(Device::Cpu).threads(threads).isa(isa.name()),
            Place::Cuda(device) => builder.cuda(device.clone()),
        }
    }
}

/// Hash of the sources of the kernels that a kind of device runs.
pub fn kernel_hash(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cpu => SOURCE_HASH,
        DeviceKind::Cuda => CUDA_SOURCE_HASH,
    }
}

/// Reads a profile that was measured with the kernels of this program, on a device of either kind.
///
/// # Errors
/// When the file cannot be read, is not a profile, or other kernels were measured.
pub fn load(path: &Path) -> Result<Profile> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", name()))?;
    let profile = Profile::from_json(&text, None).with_context(name)?;
    profile.check_kernels(kernel_hash(profile.model.facts().kind)).with_context(name)?;
    Ok(profile)
}
