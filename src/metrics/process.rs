//! What the process takes of the machine, under the names that programs of any kind have in Prometheus.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::{
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

/// The metrics of the process as they are now.
pub(super) fn registry(started: SystemTime) -> Registry {
    let mut registry = Registry::default();
    if let Some(seconds) = cpu_seconds() {
        let help = "Processor time of the process, with that of the kernel for it";
        let seconds = ConstCounter::new(seconds);
        registry.register_with_unit("process_cpu", help, Unit::Seconds, seconds);
    }
    if let Some(bytes) = resident_bytes() {
        let help = "Memory of the process that is in RAM";
        let bytes = ConstGauge::new(bytes);
        registry.register_with_unit("process_resident_memory", help, Unit::Bytes, bytes);
    }
    let help = "Unix time at which the server started";
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let started = ConstGauge::new(started.as_secs_f64());
    registry.register_with_unit("process_start_time", help, Unit::Seconds, started);
    registry
}

#[cfg(unix)]
fn cpu_seconds() -> Option<f64> {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

#[cfg(not(unix))]
fn cpu_seconds() -> Option<f64> {
    None
}

/// From the file system `proc`, which only Linux has.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}
