//! `latchkeyd check-config`: says whether the configuration is good.

use clap::Args;

use super::target::ConfigSource;
use super::{Failure, output};

/// Check the configuration without starting anything
#[derive(Debug, Args)]
#[command(visible_alias = "validate")]
pub struct CheckConfig {
    #[command(flatten)]
    source: ConfigSource,
}

impl CheckConfig {
    pub fn run(self) -> Result<(), Failure> {
        let (_, path) = self.source.load()?;
        output::data(&format!("'{}' is good", path.display()))
    }
}
