//! Every metric of the server, in the text format of OpenMetrics.

mod process;
mod registry;
mod relayed;
mod traffic;

pub(crate) use self::{
    registry::{CONTENT_TYPE, Gauges, Metrics},
    relayed::{Relayed, RelayedTraffic},
    traffic::Traffic,
};
