//! The price of links: what one more GB/s between two tiers would buy.

use lowtide_units::{BytesPerSecond, Seconds};
use serde::{Deserialize, Serialize};

use super::climb::Candidate;
use super::mix::Knobs;
use super::{Request, Search, Seen};
use crate::machine::Machine;
use crate::plan::{LaneKind, Plan};

/// What a faster link would buy: the price of a GB/s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Faster {
    /// The link that is made faster, alone.
    pub link: Link,
    /// By how much.
    pub more: BytesPerSecond,
    /// Time of a step of the same choices with it.
    pub step_seconds: Seconds,
}

/// What bytes move over between tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// From host memory to the device.
    HostToDevice,
    /// From the device to host memory.
    DeviceToHost,
    /// The drives together, both ways.
    Disk,
}

impl Link {
    /// In the order in which they are listed to the user.
    const ALL: [Self; 3] = [Self::HostToDevice, Self::DeviceToHost, Self::Disk];

    /// The machine with a link that is faster by so much.
    fn faster(self, machine: &Machine, more: f64) -> Machine {
        let mut machine = machine.clone();
        match self {
            Self::HostToDevice => machine.h2d.0 += more,
            Self::DeviceToHost => machine.d2h.0 += more,
            Self::Disk => {
                if let Some(disk) = &mut machine.disk {
                    disk.read.0 += more;
                    disk.write.0 += more;
                    disk.mixed.0 += more;
                    if let Some(direct) = &mut disk.direct {
                        direct.read.0 += more;
                        direct.write.0 += more;
                        direct.mixed.0 += more;
                    }
                }
            }
        }
        machine
    }

    /// The lane that uses it.
    fn lane(self) -> LaneKind {
        match self {
            Self::HostToDevice => LaneKind::H2d,
            Self::DeviceToHost => LaneKind::D2h,
            Self::Disk => LaneKind::Disk,
        }
    }
}

/// What a GB/s more of each link that a plan uses would buy. The choices stay; copies begin when the
/// faster link lets them.
pub(super) fn faster(r: &Request<'_>, best: &Candidate, plan: &Plan) -> Vec<Faster> {
    const MORE: f64 = 1e9;
    let busy = |link: &Link| plan.prediction.lanes[link.lane() as usize].busy_seconds.0 > 0.0;
    let each = Link::ALL.into_iter().filter(busy).map(|link| {
        let machine = link.faster(r.machine, MORE);
        let r = Request {
            machine: &machine,
            ..*r
        };
        let (knobs, seen) = (Knobs::new(&r, best.choice.direct), Seen::default());
        let seconds = Search::new(r, &knobs, &seen).step_seconds(&best.choice);
        Faster {
            link,
            more: BytesPerSecond(MORE),
            step_seconds: Seconds(seconds),
        }
    });
    each.collect()
}
