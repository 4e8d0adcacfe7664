//! `latchkeyd volumes`: lists the volumes.

use clap::Args;

use super::target::Target;
use super::{Failure, output};
use crate::admin::protocol::Request;
use crate::service::listing::VolumeListing;
use crate::service::registration::whereabouts;

/// List the volumes and the policy of each
#[derive(Debug, Args)]
pub struct Volumes {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl Volumes {
    pub fn run(self) -> Result<(), Failure> {
        let volumes: Vec<VolumeListing> = self.target.ask(&Request::Volumes)?;
        if self.json {
            return output::json(&volumes);
        }
        let rows: Vec<_> = volumes.iter().map(row).collect();
        output::listing(
            ["VOLUME", "CLIENT", "LABEL", "STATE", "POLICY"],
            &rows,
            "no volume yet; on a machine that joined: latchkey bind DEVICE",
        )
    }
}

fn row(volume: &VolumeListing) -> [String; 5] {
    let state = match (volume.destroyed, volume.retired) {
        (Some(time), _) => format!("destroyed {}", time.text()),
        (None, Some(time)) => format!("given up {}", time.text()),
        (None, None) => format!("opened {}", whereabouts(volume.opened_by)),
    };
    [
        volume.id.to_string(),
        volume.client.to_string(),
        volume.label.clone(),
        state,
        volume.policy_text.clone(),
    ]
}
